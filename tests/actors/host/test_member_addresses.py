"""What the transport is told of the members of all shards of a host."""

from types import SimpleNamespace

from drakkar.actors.host.member_addresses import MemberAddresses
from drakkar.actors.node.events import MembershipChanged, ReplicaEnded
from drakkar.handlers.raft.state import Membership

ADDRESSES = {1: "a:1", 2: "b:1"}


class Told:
    """Addresses of members, and what a transport heard of them, in order."""

    def __init__(self):
        self.said = []
        self.addresses = MemberAddresses(
            lambda members: self.said.append(sorted(members)),
            lambda before, after: self.said.append((before, after)),
        )

    def start(self, shard, members):
        raft = SimpleNamespace(config=SimpleNamespace(shard_id=shard), membership=Membership(members))
        self.addresses.add(SimpleNamespace(raft=raft))

    def change(self, shard, members):
        self.addresses.note(MembershipChanged(shard, 1, Membership(members)))


def test_all_members_are_told_when_one_comes_or_goes():
    told = Told()
    told.start(1, ADDRESSES)
    told.start(2, {1: "a:1", 7: "c:1"})
    told.change(2, {1: "a:1"})
    told.change(2, {1: "a:1", 2: "b:1"})
    told.addresses.note(ReplicaEnded(2, 1, None))
    assert told.said == [[], ["a:1", "b:1"], ["a:1", "b:1", "c:1"], ["a:1", "b:1"]]


def test_where_a_member_has_moved_is_told_first():
    told = Told()
    told.start(1, ADDRESSES)
    told.start(2, {3: "b:1"})
    told.change(1, {1: "a:1", 2: "new:1"})
    told.change(2, {3: "new:1", 4: "no address"})
    assert told.said[2:] == [("b:1", "new:1"), ["a:1", "b:1", "new:1"], ("b:1", "new:1"), ["a:1", "new:1"]]
