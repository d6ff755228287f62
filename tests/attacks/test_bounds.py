"""Numbers beyond their bounds: by a peer with a bug, whose name and certificate are as they should be."""

import pytest
from drakkar.handlers.checks import MAX_TERM
from drakkar.handlers.messages import MessageType
from drakkar.handlers.raft.ends import NEAR_END

from tests.actors.support import until
from tests.attacks import forge
from tests.attacks.forge import row, rows

pytestmark = pytest.mark.xdist_group("attacks")


TYPES = (
    "REPLICATE",
    "HEARTBEAT",
    "REQUEST_VOTE",
    "REQUEST_PRE_VOTE",
    "INSTALL_SNAPSHOT",
    "COMMIT",
    "NO_OP",
    "TIMEOUT_NOW",
)


def _member(target, number=2):
    """A peer with a bug: the host of a member, which all else is believed."""
    link = forge.introduced(
        target.members[1],
        target.members[number],
        host_id=target.ask(number, "host_id"),
        run=forge.Run(*target.ask(number, "run")),
        **target.member(number),
    )
    link.send(forge.shard(1, number, target.members))
    return link


def _numbers(term):
    """Messages with a number out of its bounds each, by a name."""
    for value in (MAX_TERM + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        for kind in TYPES:
            yield row(type=int(MessageType[kind]), term=value)
        for name in ("log_term", "log_index", "commit"):
            yield row(type=int(MessageType.REPLICATE), term=term, **{name: value})
    for value in (1 << 63, (1 << 64) - 1):
        for name in ("hint", "hint_high"):
            yield row(type=int(MessageType.REPLICATE), term=term, **{name: value})
        for name in ("to", "sender", "shard"):
            yield row(type=int(MessageType.HEARTBEAT), term=term, **{name: value})


def test_numbers_out_of_their_bounds(plain):
    """Each ends the connection, and nothing more: terms stay, and the shard lives, also after a restart."""
    with plain.attack("terms, indexes and ids beyond their bounds") as seen:
        before = plain.status()["term"]
        absurd = list(_numbers(before))
        malformed = plain.counter(1, "transport: malformed")
        for each in absurd:
            # Not in the place of a member's host, which would come back to it, and end the connection too.
            with forge.introduced(plain.members[1]) as link:
                link.send(rows(each))
                assert link.closed(), each
        seen.watch(0.5)
        assert plain.status()["term"] < before + 100
        until(lambda: plain.counter(1, "transport: malformed") >= malformed + len(absurd))
        seen.note(f"{len(absurd)} messages")
    term = plain.status()["term"] + 3
    within = rows(
        row(type=int(MessageType.REPLICATE), term=term)
    )  # the control: the same message, within bounds
    forge.say_until(lambda: _member(plain), within, lambda: plain.status()["term"] >= term)


@pytest.mark.slow
def test_the_last_term_of_all(plain):
    """The last term that can be said, by a peer that has lost its mind: it takes the shard nearer, and leaves it terms enough.

    It elects a leader again, and its hosts and the other shards go on.
    """
    with plain.attack("the last term that there is") as seen:
        if 4 not in plain.opened:
            plain.open_shard(4)

        def is_near():
            """Say it, again if the host of the member has come back and ended the connection before."""
            with _member(plain, 2) as link:
                link.send(forge.shard(4, 2, plain.members))
                link.send(rows(row(type=int(MessageType.REPLICATE), shard=4, term=MAX_TERM)))
                link.closed(within=0.2)
            return plain.status(1, 4)["term"] >= NEAR_END

        until(is_near)
        seen.watch(2)
        until(lambda: plain.status(1, 4)["leader"])
        assert plain.status(1, 4)["term"] < MAX_TERM - (1 << 39)
        for host in plain.hosts:
            assert plain.status(host, 1)["ended"] == ""
            assert plain.status(host, 4)["ended"] == ""
