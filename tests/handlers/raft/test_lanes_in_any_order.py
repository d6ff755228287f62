"""A leader and one peer between which anything may happen to lanes and connections, in any order.

Nothing is sent beyond the room, nothing is sent twice before something was lost, and when the faults end the
peer catches up.
"""

from collections import deque
from contextlib import suppress
from random import Random

from drakkar.handlers import (
    Entry,
    Membership,
    MemoryLog,
    Message,
    MessageType,
    Raft,
    RaftConfig,
    RequestDropped,
)
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.lanes import UNLIMITED, not_sent
from drakkar.handlers.testing import drain
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.handlers.raft.support import DEFAULTS, T, vote

M = MessageType
VOTERS = Membership((1, 2))


def size_of(message):
    return Entries.of(message.entries).size


class LaneAndPeer(RuleBasedStateMachine):
    """Replica 1 leads. Its bulk for 2 waits in a lane, and leaves by a stream that control goes by too, at once."""

    @initialize(
        capacity=st.sampled_from([40, 100, 1000]),
        message_bytes=st.sampled_from([0, 40, 100]),
        window=st.integers(1, 4),
        inflight_bytes=st.sampled_from([0, 100]),
        batch=st.booleans(),
        notices=st.booleans(),
        turns=st.booleans(),
    )
    def begin(self, capacity, message_bytes, window, inflight_bytes, batch, notices, turns):
        self.capacity, self.message_bytes = capacity, message_bytes
        self.connected, self.asked = True, False
        self.lane, self.stream, self.answers = deque(), deque(), deque()
        self.files = deque()  # snapshots have a connection of their own
        self.reports = deque()  # what the host has not stepped yet
        self.hands_back = False
        self.turns = turns
        self.troubled = False  # something was lost, and not all is well again
        self.sent = set()
        self.config = {
            "max_message_bytes": message_bytes,
            "max_inflight_messages": window,
            "max_inflight_bytes": inflight_bytes,
            "batch_append": batch,
            "commit_notices": notices,
            **DEFAULTS,
        }
        self.leader = Raft(RaftConfig(replica_id=1, **self.config), MemoryLog(membership=VOTERS), lanes=self)
        self.disk = MemoryLog(membership=VOTERS)
        self.start_follower()
        self.leader.step(Message(M.ELECTION, sender=1))
        self.pump()
        self.leader.step(vote(2, 1))
        self.stream.clear()
        self.pump()

    def start_follower(self):
        self.follower = Raft(RaftConfig(replica_id=2, **self.config), self.disk, random=Random(0))

    # -- the lane -----------------------------------------------------------------------------------------------

    def room(self, replica, least=1):
        if not self.connected:
            self.asked = True
            return 0
        if not self.lane:
            return UNLIMITED
        room = max(self.capacity - sum(map(size_of, self.lane)), 0)
        self.asked |= room < least
        return room if room >= least else 0

    def waiting(self, replica):
        return len(self.lane)

    def pump(self):
        """Do what the leader's host does."""
        while self.leader.has_ready:
            ready = self.leader.ready()
            self.hand(ready.messages)
            self.leader.log.storage.save(ready)
            self.leader.persisted(ready)
            self.hand(ready.messages_after_save)
            if ready.committed:
                self.leader.applied(ready.committed.runs[-1].last)

    def hand(self, messages):
        bulk = [message for message in messages if message.type is M.REPLICATE]
        self.check_room(bulk)
        back = self.hands_back and bulk
        for message in messages:
            if message.type is M.REPLICATE:
                self.check_once(message)
            if message.type is M.INSTALL_SNAPSHOT:
                self.files.append(message)
            elif message.type.traits.bulk:
                if back or not self.connected:
                    self.trouble()
                    self.asked = True
                    self.reports.append(not_sent(message))
                else:
                    self.lane.append(message)
            elif self.connected:
                self.stream.append(message)
        self.hands_back = False

    def check_room(self, bulk):
        size = sum(map(size_of, bulk))
        if self.lane and size:
            assert sum(map(size_of, self.lane)) + size <= self.capacity, (bulk, self.lane)
        elif len(bulk) > 1:
            assert size <= max(self.message_bytes, size_of(bulk[0])), bulk

    def check_once(self, message):
        indexes = {entry.index for entry in message.entries}
        again = self.sent & indexes
        assert self.troubled or not again, f"{again} again by {message}: {self.leader.progress[2]}"
        self.sent |= indexes

    def trouble(self):
        self.troubled = True

    def settle(self):
        """All is well again if nothing is under way and nothing is to be told."""
        peer = self.leader.progress[2]
        on_their_way = self.leader.has_ready or self.lane or self.stream or self.answers or self.reports
        if not on_their_way and peer.match == self.leader.log.last_index and not peer.unanswered:
            self.troubled = False
            self.sent.clear()

    def tell(self, message):
        self.leader.step(message)
        self.end_turn()

    def end_turn(self):
        """A host takes in several messages before it hands out what results from them."""
        if not self.turns:
            self.pump()

    # -- what may happen ----------------------------------------------------------------------------------------

    @rule(sizes=st.lists(st.sampled_from([1, 10, 30, 200]), min_size=1, max_size=3))
    def propose(self, sizes):
        entries = tuple(Entry(payload=b"x" * size) for size in sizes)
        self.tell(Message(M.PROPOSE, sender=1, entries=entries))

    @rule(count=st.integers(1, 3))
    def tick(self, count):
        for _ in range(count):
            self.leader.tick()
            self.end_turn()

    @rule()
    def end_of_a_long_turn(self):
        self.pump()

    @rule(read=st.integers(1, 1 << 30))
    def read(self, read):
        self.tell(Message(M.READ_INDEX, sender=1, hint=read))

    @rule(count=st.integers(1, 4))
    def leave(self, count):
        for _ in range(min(count, len(self.lane))):
            self.stream.append(self.lane.popleft())

    @rule(count=st.integers(1, 6))
    def arrive(self, count):
        for _ in range(min(count, len(self.stream))):
            self.follower.step(self.stream.popleft())
            out = drain(self.follower)
            self.answers += [message for message in out if message.to == 1]

    @rule(count=st.integers(1, 6))
    def answer(self, count):
        for _ in range(min(count, len(self.answers))):
            self.tell(self.answers.popleft())
        self.settle()

    @rule()
    def report(self):
        if self.reports:
            self.tell(self.reports.popleft())

    @precondition(lambda self: self.asked and self.connected)
    @rule()
    def drained(self):
        if 2 * sum(map(size_of, self.lane)) <= self.capacity:
            self.asked = False
            self.tell(Message(M.LANE_DRAINED, sender=2))

    @rule()
    def ask_for_a_snapshot(self):
        self.trouble()
        with suppress(RequestDropped):
            self.follower.request_snapshot()
        self.answers += drain(self.follower)

    @rule(compact=st.booleans())
    def take_a_snapshot(self, compact):
        taken = self.leader.snapshot_point(self.leader.log.applied)
        if taken is not None and taken.index > self.leader.log.snapshot.index:
            self.leader.snapshot_taken(taken)
            self.leader.log.storage.snapshot = taken
            if compact:
                self.leader.compact(taken.index)
                self.leader.log.storage.compact(taken.index)
            self.end_turn()

    @precondition(lambda self: self.files)
    @rule(fails=st.booleans())
    def end_a_file(self, fails):
        self.trouble()
        message = self.files.popleft()
        if not fails:
            self.follower.step(message)
            self.answers += drain(self.follower)
        self.reports.append(Message(M.SNAPSHOT_STATUS, sender=2, reject=fails, hint=2))

    @rule()
    def tell_commit(self):
        if self.leader.commit_untold:
            self.tell(Message(M.COMMIT_DUE, sender=1))

    # -- faults ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.connected)
    @rule(kept=st.integers(0, 5))
    def lose_the_connection(self, kept):
        self.trouble()
        self.connected = self.asked = False
        self.lane.clear()
        while len(self.stream) > kept:
            self.stream.pop()
        self.reports.append(Message(M.UNREACHABLE, sender=2))

    @precondition(lambda self: not self.connected)
    @rule(told=st.booleans())
    def connect(self, told):
        self.connected = True
        if told:
            self.drained()

    @rule(kept=st.integers(0, 1))
    def lose_answers(self, kept):
        self.trouble()
        while len(self.answers) > kept:
            self.answers.pop()

    @rule()
    def drop_on_arrival(self):
        """The peer's host has no place for a message."""
        if self.stream:
            self.trouble()
            self.stream.popleft()

    @rule()
    def hand_the_next_ones_back(self):
        self.hands_back = True

    @rule()
    def restart_the_peer(self):
        self.trouble()
        self.start_follower()

    @rule(full=st.booleans())
    def disk(self, full):
        self.trouble()
        self.follower.step(Message(M.DISK_FULL if full else M.DISK_ROOM, sender=2))
        drain(self.follower)

    # -- the end --------------------------------------------------------------------------------------------------

    def teardown(self):
        if not hasattr(self, "leader"):
            return
        self.connected, self.hands_back, self.turns = True, False, False
        self.pump()
        self.follower.step(Message(M.DISK_ROOM, sender=2))
        told = self.capacity > 40  # else nothing tells that the lane has drained
        peer = self.leader.progress[2]
        for _ in range(T + 10 * self.leader.log.last_index):
            self.tick(1)
            self.take_a_snapshot(False)
            for _ in range(40):
                if self.files:
                    self.end_a_file(False)
                self.leave(1)
                self.arrive(9)
                self.answer(9)
                self.report()
                if told and self.asked:
                    self.drained()
            if self.caught_up():
                break
        assert self.caught_up(), peer

    def caught_up(self):
        last, peer = self.leader.log.last_index, self.leader.progress[2]
        logs = (self.leader.log, self.follower.log)
        return peer.match == last and all((log.last_index, log.committed) == (last, last) for log in logs)


TestLaneAndPeer = LaneAndPeer.TestCase
TestLaneAndPeer.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
