"""The audit: what it refuses and what it has on record, on real hosts and under faults."""

import re

import cbor2
import pytest
from drakkar.handlers import (
    Entry,
    EntryKind,
    Extension,
    Message,
    MessageType,
    State,
    delivers,
    handles,
    raft_handlers,
)
from drakkar.handlers.testing import Cluster, Violation

from examples.audit import MARK, TRAIL, WAITING, Audit

AGAIN = 10
"""Ticks in which a replica proposes all its marks."""
TICKETLESS, TICKET = b"delete a", b"delete a ticket 7"


def cluster_of(audit=Audit, **options):
    return Cluster(3, handlers=raft_handlers().use(audit), **options)


def trails(cluster):
    return [cluster.ask(replica, Message(TRAIL)) for replica in cluster.nodes]


def test_the_trail_is_the_same_on_real_hosts(run):
    program = run("audit")
    status, _ = program.end()
    assert status == 0
    assert program.said[:3] == [
        "done: set a 1",
        "refused: write: delete KEY ticket NUMBER",
        "done: delete a ticket 7",
    ]
    one, *others = program.said[3:]
    assert others == [one, one]
    assert re.search(r"replica (\d) made replica (?!\1)\d lead, after term \d+", one)
    assert "b'delete a' was refused" in one


@pytest.mark.parametrize("replica", [1, 2])
def test_a_deletion_needs_a_ticket_at_each_replica(replica):
    cluster = cluster_of()
    cluster.elect(1)
    cluster.propose(replica, b"set a 1", TICKETLESS, TICKET)
    assert cluster.applied(1) == [b"set a 1", TICKET]
    [refused] = cluster.nodes[replica].dropped
    assert refused.text == "write: delete KEY ticket NUMBER"
    cluster.tick(AGAIN)
    assert trails(cluster) == [["b'delete a' was refused"]] * 3


def test_an_order_to_lead_is_on_record_and_an_election_is_not():
    cluster = cluster_of()
    cluster.elect(1)
    cluster.transfer(1, 3)
    cluster.tick(AGAIN)
    assert trails(cluster) == [["replica 1 made replica 3 lead, after term 1"]] * 3


def test_a_mark_outlives_leaders_restarts_and_snapshots():
    cluster = cluster_of()
    cluster.elect(1)
    cluster.propose(1, TICKETLESS)
    cluster.isolate(1)
    cluster.elect(2)
    cluster.heal()
    cluster.tick(2 * AGAIN)
    [[mark], *others] = trails(cluster)
    assert others == [[mark], [mark]]
    cluster.compact(3)
    cluster.crash(3)
    cluster.restart(3)
    assert trails(cluster)[2] == [mark]


def test_what_is_kept_is_bounded():
    audit = cluster_of()[1].extension(Audit)
    for number in range(1_001):
        audit.keep(Entry(kind=MARK, payload=cbor2.dumps({f"{number}": ""})))
    assert list(audit.trail)[::999] == ["1", "1000"]


def test_of_what_finds_no_room_there_is_one_mark_with_the_number():
    cluster = cluster_of()
    cluster.elect(1)
    cluster.isolate(2)
    for number in range(WAITING + 7):
        cluster[2].extension(Audit).mark(f"{number}")
        cluster.tick()
    assert len(cluster[2].extension(Audit).waiting) == WAITING
    cluster.heal()
    cluster.tick(5 * AGAIN)
    kept = [*map(str, range(WAITING)), "there were 7 more, for which replica 2 had no room"]
    assert [sorted(trail) for trail in trails(cluster)] == [sorted(kept)] * 3


def test_a_ticket_is_found_however_long_the_key_is():
    cluster = cluster_of()
    cluster.elect(1)
    command = b"delete " + b"a" * 1_000 + b" ticket 7"
    cluster.propose(2, command)
    assert cluster.applied(1) == [command]


# -- under faults


class Committed(Extension):
    """Sees whether a deletion without a ticket is committed."""

    ticketless = b""

    @delivers(EntryKind.COMMAND)
    def see(self, entry):
        if entry.payload.startswith(b"delete ") and b"ticket" not in entry.payload:
            self.ticketless = entry.payload

    def check(self):
        assert not self.ticketless, f"{self.ticketless!r} is committed"


class Clients:
    """Propose deletions, some with a ticket. Remember all marks, and the replicas that made them."""

    def __init__(self):
        self.made = {}

    def traffic(self, raft, random):
        payload = random.choice((b"delete %d", b"delete %d ticket 7")) % random.randrange(1 << 30)
        raft.step(Message(MessageType.PROPOSE, sender=raft.id, entries=(Entry(payload=payload),)))

    def check(self, rafts):
        for raft in rafts.values():
            for tag in raft.extension(Audit).waiting:
                self.made.setdefault(tag, raft)
        for raft in rafts.values():
            unknown = raft.extension(Audit).trail.keys() - self.made.keys()
            assert not unknown, f"nobody made these marks, or they are kept twice: {unknown}"

    def settled(self, rafts):
        keepers = [raft for raft in rafts.values() if raft.base_state is not State.WITNESS]
        trails = {raft.log.applied: raft.extension(Audit).trail for raft in keepers}
        for raft in keepers:
            assert raft.extension(Audit).trail == trails[raft.log.applied], "replicas have other trails"
        for tag, raft in self.made.items():
            if raft in rafts.values():  # it has not crashed since
                known = raft.extension(Audit)
                assert tag in known.trail or tag in known.waiting, f"a mark of replica {raft.id} is lost"


def storm(audit, seeds=10):
    return Cluster(3, handlers=raft_handlers().use(audit, Committed)).storm(range(seeds), user=Clients)


def test_no_mark_is_lost_or_kept_twice_whatever_happens():
    happened = storm(Audit)
    assert happened["a record was delivered"] > 50
    assert happened["extensions were loaded"]


class KeepsTwice(Audit):
    def keep(self, entry):
        for tag, text in cbor2.loads(entry.payload).items():
            self.waiting.pop(tag, None)
            self.trail[f"{tag} at {entry.index}"] = text


class ProposesOnce(Audit):
    def flush(self, message):
        super().flush(message)
        self.waiting.clear()


class SavesNothing(Audit):
    def save(self):
        return cbor2.dumps({})


class RefusesAtFollowers(Audit):
    @handles(MessageType.PROPOSE, State.FOLLOWER, wrap=True)
    def refuse(self, message, inner):
        super().refuse(message, inner)


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        pytest.param(KeepsTwice, "nobody made these marks, or they are kept twice", id="kept twice"),
        pytest.param(ProposesOnce, "a mark of replica . is lost", id="proposed once", marks=pytest.mark.slow),
        pytest.param(SavesNothing, "replicas have other trails", id="not saved", marks=pytest.mark.slow),
        pytest.param(RefusesAtFollowers, "is committed", id="the leader's own", marks=pytest.mark.slow),
    ],
)
def test_its_storm_catches_what_is_wrong(mutant, what):
    with pytest.raises(Violation, match=what):
        storm(mutant, 12)
