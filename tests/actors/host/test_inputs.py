"""What a host brings its nodes of its connections: room again, what was not sent, what was lost."""

from collections import Counter
from itertools import pairwise

import pytest
import trio
from drakkar.actors.host.services import TICK_PARTS, TICK_TOGETHER, NodeInputs
from drakkar.handlers import Membership, MemoryLog, RaftConfig, State, raft_handlers
from drakkar.handlers.messages import Message, MessageType
from trio.testing import MockClock

M = MessageType
THREE = {1: "one:1", 2: "two:2", 3: "three:3"}


class Reports:
    """What nodes are told, instead of nodes."""

    def __init__(self, shard, members=THREE, replica=1, state=State.LEADER):
        self.actor_ref = self
        self.raft = self
        self.config = RaftConfig(replica_id=replica, shard_id=shard)
        self.id, self.membership = replica, MemoryLog(membership=Membership(voters=members)).membership
        self.state, self.handlers = state, raft_handlers()
        self.heard = []

    @property
    def tick_waits(self):
        return False  # it handles each at once

    @tick_waits.setter
    def tick_waits(self, _waits):
        pass

    def tell(self, message):
        self.heard.append((message.type, trio.current_time()))

    def hear(self, report):
        self.heard.append((report.type, report.sender))


def hosts(*nodes):
    counters = Counter()
    return NodeInputs({each.config.shard_id: each for each in nodes}, counters)


def test_the_nodes_with_a_peer_at_the_lost_host_are_told_once_each():
    first, second, third = Reports(1, THREE), Reports(2, {1: "one:1", 7: "two:2"}), Reports(3, {1: "one:1"})
    hosts(first, second, third).report_unreachable("two:2")
    assert (first.heard, second.heard, third.heard) == ([(M.UNREACHABLE, 2)], [(M.UNREACHABLE, 7)], [])


def test_of_a_lost_connection_only_those_are_told_whose_table_has_a_handler_for_it():
    follower, own = Reports(1, state=State.FOLLOWER), Reports(2, state=State.FOLLOWER)
    own.handlers.on(M.UNREACHABLE, State.FOLLOWER, replace=True)(lambda raft, message: None)
    hosts(follower, own).report_unreachable("two:2")
    assert (follower.heard, own.heard) == ([], [(M.UNREACHABLE, 2)])


def test_only_the_shards_that_the_lane_names_are_told_that_it_has_drained():
    first, second = Reports(1, THREE), Reports(2, THREE)
    hosts(first, second).report_drained("two:2", [2, 9])
    assert (first.heard, second.heard) == ([], [(M.LANE_DRAINED, 2)])


def test_what_was_not_sent_is_handed_back_to_the_replica_that_sent_it():
    first, again = Reports(1, THREE), Reports(2, {4: "one:1", 2: "two:2"}, replica=4)
    messages = [Message(M.REPLICATE, to=2, sender=1, shard=shard) for shard in (1, 2, 3)]
    hosts(first, again).hand_back("two:2", messages)
    assert (first.heard, again.heard) == ([(M.NOT_SENT, 2)], [])


INTERVAL = 0.8


def ticked(nodes, intervals):
    """When each node was told of ticks, and when the host looked after itself, in seconds, for so many intervals."""
    own = []

    async def run():
        began = trio.current_time()
        with trio.move_on_after((intervals + 0.99) * INTERVAL):
            await hosts(*nodes).tick(INTERVAL, lambda: own.append(round(trio.current_time() - began, 3)))
        for each in nodes:
            each.heard = [round(time - began, 3) for _, time in each.heard]

    trio.run(run, clock=MockClock(autojump_threshold=0))
    return own


@pytest.mark.parametrize("count", [1, TICK_TOGETHER])
def test_few_nodes_tick_together(count):
    nodes = [Reports(shard) for shard in range(1, count + 1)]
    assert ticked(nodes, 3) == [0.8, 1.6, 2.4]
    assert {tuple(each.heard) for each in nodes} == {(0.8, 1.6, 2.4)}


def test_the_ticks_of_many_are_spread_and_each_comes_once_an_interval():
    nodes = [Reports(shard) for shard in range(1, 81)]
    assert ticked(nodes, 3) == [0.8, 1.6, 2.4]
    moments = Counter(each.heard[0] for each in nodes)
    assert moments == {round(0.8 + 0.1 * part, 3): 10 for part in range(TICK_PARTS)}
    for each in nodes:
        assert [round(later - sooner, 3) for sooner, later in pairwise(each.heard)] == [INTERVAL] * 2
