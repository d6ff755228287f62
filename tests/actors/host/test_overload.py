"""A shard of a host that has no room for more messages: its members hear so, and the other shards of the host go on."""

import pytest
from drakkar.actors import SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries, Run

from tests.actors.support import Hosts, InlineLedger, commit, settled

NO_ELECTION = {"election_ticks": 5_000}
"""On a busy machine the proposer may be elected, and then needs nobody's room."""


@pytest.fixture
def hosts():
    with Hosts() as hosts:
        yield hosts


def test_a_full_inbox_is_told_to_those_that_propose_and_no_other_shard_suffers(hosts):
    full = hosts.run(InlineLedger, shard_id=1, config=NO_ELECTION)
    other = hosts.run(InlineLedger, shard_id=2, config=NO_ELECTION)
    leader = hosts.leader(full)
    hosts.leader(other)
    member = hosts.others(leader)[0]
    proposer, here = full[member], other[leader]
    commit(proposer, b"a")
    commit(here, b"a")
    host, inbox = hosts.hosts[leader], full[leader]._node.actor_inbox
    useless, term = host.metrics()["transport_useless_total"], here.status().term
    inbox._max_bytes, inbox.entry_bytes = 1, 1  # as if an entry waited that is never taken

    assert type(settled(proposer.propose(b"b", timeout=10.0))) is SystemBusy
    append = Message(
        MessageType.REPLICATE,
        to=leader,
        sender=member,
        shard=1,
        term=1,
        entries=Entries([Run(1, 1, [b"x"], b"", 0, 0)]),
    )
    # A member that is charged for so many has used up its half second, and is not heard for some ten.
    host._loop.call(lambda: host._inputs.deliver(hosts.addresses[member - 1], [append] * 30_000))
    assert type(settled(proposer.propose(b"b", timeout=10.0))) is SystemBusy
    commit(other[member], b"b")
    commit(here, b"c")
    assert host.metrics()["transport_pauses_total"] == 0
    assert host.metrics()["transport_useless_total"] - useless < 100
    assert here.status().term == term

    inbox._max_bytes, inbox.entry_bytes = 1 << 20, 0
    assert commit(proposer, b"d") == 2
