"""A member of one shard sends it as many legal messages as it takes: the other shards of the host go on."""

import pytest
from drakkar.handlers.messages import MessageType

from tests.actors.support import until
from tests.attacks import forge
from tests.attacks.cluster import Target
from tests.attacks.forge import Attackers, Flood, Run, row, rows

pytestmark = [pytest.mark.xdist_group("attacks"), pytest.mark.slow]

SHARD, ATTACKER = 2, 3
FLOODS = {
    "answers to heartbeats": (MessageType.HEARTBEAT_RESP, {}),
    "acknowledgements": (MessageType.REPLICATE_RESP, {}),
    "reads": (MessageType.READ_INDEX, {"hint": 1, "hint_high": 7}),
    "requests for pre-votes": (MessageType.REQUEST_PRE_VOTE, {}),
}


@pytest.fixture
def target(tmp_path):
    """Hosts of its own: what an attacker says in a member's name is not forgotten."""
    with Target(tmp_path / "target") as hosts:
        hosts.open_shard(SHARD)
        yield hosts


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_what_a_member_may_say(target, name):
    type_, fields = FLOODS[name]
    term = target.status(1, SHARD)["term"]
    _flood(
        target, name, rows(*[row(type=int(type_), shard=SHARD, sender=ATTACKER, term=term, **fields)] * 512)
    )


def test_a_flood_of_small_proposals(target):
    command = forge.messages(forge.propose(ATTACKER, 1, b"x" * 10, SHARD))
    _flood(target, "small proposals", command * 200, weight=MessageType.PROPOSE.traits.weight)


def _flood(target, name, flood, weight=1):
    """Attack in the name of the third host, which is a member of both shards."""
    counted = "transport: received"
    with target.attack(f"{name} of a member, to another shard") as seen:
        before = target.counter(1, counted)
        flooding = Flood(
            target.members[1],
            flood,
            as_address=target.members[ATTACKER],
            first=forge.shard(SHARD, ATTACKER, target.members),
            host_id=target.ask(ATTACKER, "host_id"),
            run=Run(*target.ask(ATTACKER, "run")),
            **target.member(ATTACKER),
        )
        with Attackers(flooding):
            seen.watch(2.0)
            until(lambda: target.counter(1, counted) - before > 10_000 / weight)  # else the attack was none
        seen.note(f"{target.counter(1, counted) - before:,} messages came")
