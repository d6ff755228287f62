"""Which messages of other hosts reach a node, and what it is told of their senders before."""

from collections import Counter

import pytest
from drakkar.actors.host import services
from drakkar.actors.host.services import MAX_SHARDS, IntroducedShards, NodeInputs
from drakkar.actors.node.introductions import Introduced
from drakkar.handlers import MemoryLog, RaftConfig
from drakkar.handlers.errors import SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.lives import Standing, home_number
from drakkar.transport.frames import FrameError
from drakkar.transport.shard_frames import ShardHello

THREE = {1: "one:1", 2: "two:2", 3: "three:3"}
UNKNOWN = "messages of replicas that were not introduced"
BUSY = "messages for nodes that could not take them"


class Node:
    """A node that notes what it is told."""

    def __init__(self, shard=1):
        self.actor_ref = self.raft = self.router = self.introductions = self
        self.config = RaftConfig(replica_id=1, shard_id=shard)
        self.id, self.membership = 1, MemoryLog(membership=THREE).membership
        self.heard_on, self.told, self.learned = {}, [], {}
        self.body, self.busy = b"what it says", False
        self.members, self.refused = set(), []

    def tell(self, message):
        if self.busy:
            raise SystemBusy("it is busy")
        self.told.append(message)

    def is_members(self, replica, address):
        return (replica, address) in self.members

    def refuse_untaken(self, message):
        self.refused.append(message)

    def learn(self, replica, address):
        self.learned[replica] = address


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def counters():
    return Counter()


@pytest.fixture
def inputs(node, counters):
    made = NodeInputs({1: node}, counters)
    made.greet("two:2", "host 2")
    return made


def message(sender=2, shard=1):
    return Message(MessageType.HEARTBEAT, sender=sender, to=1, shard=shard)


def hello(replica=2, shard=1, standing=Standing.SETTLED):
    return ShardHello(shard, replica, standing=standing)


def test_a_node_is_told_of_a_replica_before_its_messages_and_once(inputs, node):
    inputs.hear_introduction("two:2", hello())
    inputs.deliver("two:2", [message(), message()])
    inputs.deliver("two:2", [message()])
    said = Introduced(hello(), home_number("host 2"), "two:2")
    assert node.told == [said, message(), message(), message()]


def test_messages_of_a_replica_that_was_not_introduced_are_dropped_and_counted(inputs, node, counters):
    inputs.deliver("two:2", [message()])
    inputs.hear_introduction("two:2", hello(replica=9))
    inputs.deliver("two:2", [message(), message(sender=9)])
    inputs.deliver("another:1", [message()])
    assert [each.sender for each in node.told[1:]] == [9]
    assert counters[UNKNOWN] == 3


def test_on_another_connection_a_replica_is_introduced_anew(inputs, node, counters):
    """Another host may have taken the address."""
    inputs.hear_introduction("two:2", hello())
    inputs.greet("two:2", "host 2 with another disk")
    inputs.deliver("two:2", [message()])
    assert counters[UNKNOWN] == 1
    inputs.hear_introduction("two:2", hello(standing=Standing.NEWBORN))
    inputs.deliver("two:2", [message()])
    assert [type(each) for each in node.told] == [Introduced, Introduced, Message]
    assert node.told[1].life.home == home_number("host 2 with another disk")


def test_of_two_hosts_with_one_replica_each_message_follows_its_own_introduction(inputs, node):
    inputs.greet("copy:2", "host 9")
    for address in ("two:2", "copy:2"):
        inputs.hear_introduction(address, hello())
    for address in ("two:2", "copy:2", "copy:2", "two:2"):
        inputs.deliver(address, [message()])
    told = [each.address if type(each) is Introduced else "a message" for each in node.told]
    one, other, each = "two:2", "copy:2", "a message"
    assert told == [one, other, one, each, other, each, each, one, each]


def test_a_host_is_charged_for_messages_that_are_of_no_use(node, counters):
    charged = Counter()
    inputs = NodeInputs({1: node}, counters, lambda address, count: charged.update({address: count}))
    inputs.deliver("two:2", [message()] * 4)
    inputs.greet("two:2", "host 2")
    assert charged.pop("two:2") == 4
    inputs.hear_introduction("two:2", hello())
    inputs.deliver("two:2", [message(), message()])
    assert charged == {}
    inputs.deliver("two:2", [message(), message(shard=2), message(shard=3), message(sender=9)])
    assert charged.pop("two:2") == 3
    # What it says again, and of shards that are not here, is of no use either.
    inputs.hear_introduction("two:2", hello(standing=Standing.NEWBORN))
    inputs.hear_introduction("two:2", hello(shard=2))
    assert charged.pop("two:2") == 2
    node.busy = True
    inputs.deliver("two:2", [message(), message()])
    assert charged == {"two:2": 2}


def test_a_member_is_not_charged_for_what_a_node_has_no_room_for_but_told_of_it(node, counters):
    charged = Counter()
    inputs = NodeInputs({1: node}, counters, lambda address, count: charged.update({address: count}))
    for address in ("two:2", "nine:9"):
        inputs.greet(address, address)
    inputs.hear_introduction("two:2", hello())
    inputs.hear_introduction("nine:9", hello(replica=9))
    node.members.add((2, "two:2"))
    node.busy = True
    inputs.deliver("two:2", [message()])
    inputs.deliver("nine:9", [message(sender=9)])
    inputs.deliver("nine:9", [message()])  # it names a member that speaks elsewhere
    assert charged == {"nine:9": 2}
    assert node.refused == [message()]
    assert counters[BUSY] == 2


def test_a_node_that_starts_later_is_told_by_the_first_message(counters):
    nodes = {}
    inputs = NodeInputs(nodes, counters)
    inputs.greet("two:2", "host 2")
    inputs.hear_introduction("two:2", hello())
    nodes[1] = node = Node()
    inputs.deliver("two:2", [message()])
    assert [type(each) for each in node.told] == [Introduced, Message]


def test_a_node_that_cannot_take_an_introduction_is_told_again(inputs, node, counters):
    node.busy = True
    inputs.hear_introduction("two:2", hello())
    inputs.deliver("two:2", [message()])
    assert counters[BUSY] == 2
    node.busy = False
    inputs.deliver("two:2", [message()])
    assert [type(each) for each in node.told] == [Introduced, Message]


def test_what_a_node_says_of_itself_is_told_while_it_runs(inputs):
    assert inputs.introduction(1) == b"what it says"
    assert inputs.introduction(2) is None


def test_the_shards_of_one_host_are_bounded():
    caller = IntroducedShards("two:2", 2)
    caller.shards = dict.fromkeys(range(MAX_SHARDS))
    caller.add(hello(shard=0), here=True)
    with pytest.raises(FrameError, match="more than"):
        caller.add(hello(shard=MAX_SHARDS), here=True)


@pytest.mark.parametrize("more", [{"founders": {1: "one:1"}}, {"kinds": {200: "audit.mark"}}], ids=str)
def test_what_is_said_of_shards_that_are_not_here_is_bounded_over_all_hosts(
    inputs, node, counters, monkeypatch, more
):
    monkeypatch.setattr(services, "MAX_AHEAD", 20)
    inputs.greet("greedy:1", "host 9")
    inputs.hear_introduction("two:2", hello())
    for shard in (2, 3):
        inputs.hear_introduction("two:2", hello(shard=shard))
    for shard in range(2, 20):
        inputs.hear_introduction("greedy:1", hello(shard=shard))
        inputs.hear_introduction("greedy:1", hello(shard=shard))
    assert counters["introductions forgotten"] == 0
    inputs.hear_introduction("greedy:1", ShardHello(100, 1, **more))
    assert counters["introductions forgotten"] == 20
    # The others have lost nothing.
    inputs._nodes[3] = node
    inputs.deliver("two:2", [message(), message(shard=3)])
    assert counters[UNKNOWN] == 0
    inputs.deliver("greedy:1", [message(shard=3)])
    assert counters[UNKNOWN] == 1


def test_what_a_host_has_said_is_forgotten_with_its_connection(inputs, counters):
    inputs.hear_introduction("two:2", hello(shard=2))
    inputs.hear_introduction("two:2", hello())
    inputs.forget("two:2")
    inputs.forget("two:2")
    assert (inputs._callers, inputs._ahead) == ({}, 0)
    inputs.deliver("two:2", [message()])
    assert counters[UNKNOWN] == 1
