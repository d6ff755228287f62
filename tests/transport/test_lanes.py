"""Where messages wait: which go first, how many fit, and who hears of room."""

import math
from typing import Any

import pytest
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.transport.budgets import WHOLE_BYTES
from drakkar.transport.frames import FrameKind, FrameReader
from drakkar.transport.lanes import BulkLane, ControlLane
from drakkar.transport.message_frames import Packed, decode_messages, frame_of, pack
from drakkar.transport.parts import PART_BYTES, PartReader
from drakkar.transport.peer import _WRITE_BYTES, _frames_of
from drakkar.transport.room import RoomQueue
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.support import heartbeat

KIB = 1 << 10


def replicate(shard: int, number: int, size: int = 0) -> Message:
    entries = (Entry(number, 1, payload=bytes(size)),) if size else ()
    return Message(MessageType.REPLICATE, to=2, sender=1, shard=shard, term=number, entries=entries)


def put(lane: BulkLane, *messages: Message) -> None:
    for message in messages:
        assert not lane.full
        lane.put(pack(message), message)


class Receiver:
    """Decodes what was taken out of a lane."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._parts = PartReader(64 << 20)

    def take(self, items: list[Packed | bytes]) -> list[Message]:
        before = len(self.messages)
        for item in items:
            for frame in FrameReader().feed(item if isinstance(item, bytes) else frame_of([item])):
                whole: Any = self._parts.feed(frame.body) if frame.kind == FrameKind.PART else frame.body
                if whole is not None:
                    self.messages += decode_messages(whole).messages
        return self.messages[before:]


@pytest.mark.parametrize("last", [PART_BYTES, PART_BYTES + 1], ids=["a message", "a part"])
def test_the_largest_frame_that_is_written_needs_no_room_at_its_receiver(last: int) -> None:
    """A write ends with the item by which it has `_WRITE_BYTES`."""
    lane = BulkLane(64 << 20, 100)

    def of_size(size: int) -> Message:
        return replicate(1, 1, size - pack(replicate(1, 1, size)).size + size)

    put(lane, of_size(_WRITE_BYTES // 2), of_size(_WRITE_BYTES // 2 - 1), of_size(last))
    written = _frames_of(lane.take(_WRITE_BYTES), 64 << 20)
    largest = max(len(frame.body) for frame in FrameReader().feed(written))
    assert len(written) > WHOLE_BYTES - 100
    assert largest <= WHOLE_BYTES


# ---- control


def test_what_equals_a_message_can_be_recalled_while_it_waits() -> None:
    lane = ControlLane(max_bytes=10_000, max_items=10)
    for number in (1, 2, 1, 3):
        lane.put(pack(heartbeat(number)))
    lane.put(b"a frame")
    assert lane.recall(pack(heartbeat(1))) == 2
    assert lane.recall(pack(heartbeat(9))) == 0
    assert lane.take(1000) == [pack(heartbeat(2)), pack(heartbeat(3)), b"a frame"]
    assert lane.bytes == 0


def test_control_is_bounded_in_messages_and_in_bytes() -> None:
    lane = ControlLane(max_bytes=1000, max_items=3)
    assert [lane.put(pack(heartbeat(number))) for number in range(5)] == [True] * 3 + [False] * 2
    assert lane.clear() == 3
    assert lane.put(b"x" * 2000)  # alone
    assert not lane.put(b"x")
    assert (lane.take(1), lane.bytes) == ([b"x" * 2000], 0)
    assert lane.put(b"x")


# ---- the order of bulk


def test_the_bulk_of_one_shard_keeps_its_order() -> None:
    lane, receiver = BulkLane(64 << 20, 1000), Receiver()
    sent = [replicate(1, number, size * KIB) for number, size in enumerate([1, 300, 0, 130, 127, 129, 2], 1)]
    put(lane, *sent)
    while lane.count:
        receiver.take(lane.take(1))
    assert receiver.messages == sent
    assert lane.bytes == 0


def test_shards_are_served_in_turn_by_bytes_and_not_by_messages() -> None:
    lane, receiver = BulkLane(64 << 20, 10_000), Receiver()
    put(lane, *(replicate(1, number, 60 * KIB) for number in range(1, 101)))
    put(lane, *(replicate(2, number, 6 * KIB) for number in range(1, 101)))
    half = receiver.take(lane.take(800 * KIB))
    of = [sum(message.entries[0].payload.__len__() for message in half if message.shard == s) for s in (1, 2)]
    assert of[0] == pytest.approx(of[1], abs=128 * KIB)


def test_a_small_shard_is_not_behind_a_large_one() -> None:
    lane, receiver = BulkLane(64 << 20, 1000), Receiver()
    put(lane, replicate(1, 1, 30 << 20), *(replicate(1, number, KIB) for number in range(2, 10)))
    receiver.take(lane.take(1))
    put(lane, replicate(2, 1, KIB))
    receiver.take(lane.take(300 * KIB))
    assert receiver.messages == [replicate(2, 1, KIB)]


def test_two_large_messages_are_not_sent_into_each_other() -> None:
    lane, receiver = BulkLane(64 << 20, 1000), Receiver()
    put(lane, replicate(1, 1, 1 << 20), replicate(2, 1, 1 << 20), replicate(3, 1, KIB))
    while lane.count:
        receiver.take(lane.take(1))
    assert [message.shard for message in receiver.messages] == [3, 1, 2]


# ---- room


def test_room_is_what_is_left_of_the_budget_but_never_less_than_a_quarter() -> None:
    lane = BulkLane(1 << 20, 1000)
    assert lane.room() == UNLIMITED
    put(lane, replicate(1, 1, 500 * KIB))
    assert lane.room() == (1 << 20) - lane.bytes
    put(lane, replicate(2, 1, 268 * KIB))
    assert (1 << 20) - lane.bytes < 256 * KIB
    assert (lane.room(), lane.full) == (0, False)
    put(lane, replicate(2, 2, 400 * KIB))  # it may exceed the budget by one message
    assert (lane.room(), lane.full) == (0, True)


def test_room_is_bounded_in_messages_too() -> None:
    lane = BulkLane(1 << 20, 10)
    put(lane, *(replicate(1, number) for number in range(10)))
    assert (lane.room(), lane.full, lane.drained()) == (0, True, 0)
    lane.take(200)
    assert not lane.full


def test_a_message_waits_until_its_last_part_was_taken() -> None:
    lane = BulkLane(1 << 20, 10)
    put(lane, replicate(1, 1, 300 * KIB))
    for _ in range(2):
        lane.take(1)
        assert (lane.waiting(1), lane.count) == (1, 1)
        assert lane.bytes > 300 * KIB
    lane.take(1)
    assert (lane.waiting(1), lane.count, lane.bytes) == (0, 0, 0)


def test_what_a_lost_connection_leaves_is_dropped_but_for_what_no_leader_sends_again() -> None:
    lane, receiver = BulkLane(1 << 20, 10), Receiver()
    propose = Message(
        MessageType.PROPOSE, to=2, sender=1, shard=1, entries=(Entry(payload=bytes(200 * KIB)),)
    )
    put(lane, propose, replicate(2, 1), replicate(1, 2))
    lane.take(1)  # a part of it
    assert lane.clear() == (2, [propose])
    assert (lane.count, lane.bytes, lane.room()) == (0, 0, UNLIMITED)
    put(lane, replicate(1, 3, 200 * KIB))
    while lane.count:
        receiver.take(lane.take(1))
    assert receiver.messages == [replicate(1, 3, 200 * KIB)]


def test_those_that_were_refused_first_are_told_first_and_only_as_many_as_there_is_room_for() -> None:
    queue = RoomQueue(100)
    assert [queue.ask(shard, 0) for shard in (5, 3, 9, 5)] == [0] * 4
    assert queue.tell(200) == [5, 3]
    assert queue.tell(50) == []
    assert queue.tell(100) == [9]
    assert len(queue) == 0


def test_a_shard_that_did_not_wait_gets_no_room_before_those_that_do() -> None:
    queue = RoomQueue(100)
    queue.ask(1, 0)
    assert queue.ask(2, 500) == 0
    assert queue.tell(100) == [1]
    assert (queue.ask(3, 500), queue.ask(1, 500), queue.ask(1, 400)) == (0, 500, 400)
    queue.used(1, 100)  # its share
    assert queue.ask(1, 300) == 0
    assert queue.tell(1000) == [2, 3, 1]
    assert [queue.ask(shard, 70) for shard in (3, 2, 4)] == [70] * 3


def test_one_that_was_told_may_send_a_message_larger_than_what_is_free_but_not_a_second_one() -> None:
    queue = RoomQueue(100)
    assert queue.ask(1, 500, least=501) == 0
    assert queue.tell(500) == [1]
    assert queue.ask(1, 200) == 200
    assert queue.ask(1, 200, least=501) == 501
    queue.used(1, 90)
    assert queue.ask(1, 200, least=501) == 0
    assert queue.tell(500) == [1]


def test_a_reserve_passes_those_that_wait_until_a_share_has_passed_them() -> None:
    queue = RoomQueue(100)
    assert (queue.ask(1, 0), queue.ask(2, 0, reserve=30), queue.ask(3, 0, least=31, reserve=30)) == (0, 30, 0)
    for _ in range(4):
        assert queue.ask(2, 500, reserve=30) == 30
        queue.used(2, 30)
    assert queue.ask(2, 500, reserve=30) == 0
    assert queue.tell(200) == [1, 3]
    assert queue.ask(4, 0, reserve=30) == 30


def test_a_shard_has_a_reserve_of_a_turn_while_nothing_of_it_waits() -> None:
    lane = BulkLane(1 << 20, 1000)
    put(lane, replicate(1, 1, 900 * KIB))
    assert (lane.room(), lane.reserve(1), lane.reserve(2)) == (0, 0, 64 * KIB)
    put(lane, replicate(3, 1, 90 * KIB))
    assert lane.reserve(2) == (1 << 20) - lane.bytes < 64 * KIB


@pytest.mark.parametrize("budget", [math.inf, 1 << 80])
def test_a_lane_without_a_limit_has_room(budget: Any) -> None:
    lane = BulkLane(budget, budget)
    put(lane, replicate(1, 1, 1 << 20))
    assert lane.share * 4 == UNLIMITED
    assert lane.room() == lane.drained() == UNLIMITED - lane.bytes


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("put"),
                st.integers(1, 4),
                st.sampled_from([0, 1, 10, 70, 130, 200, 400]).map(lambda k: k * KIB),
            ),
            st.tuples(
                st.just("take"), st.sampled_from([1, 64, 128, 1000]).map(lambda k: k * KIB), st.just(0)
            ),
        ),
        max_size=60,
    )
)
def test_whatever_is_put_and_taken_each_shard_gets_its_messages_in_order_and_the_figures_agree(
    operations: list[tuple[str, int, int]],
) -> None:
    budget = 1 << 20
    lane, receiver = BulkLane(budget, 30), Receiver()
    sent: dict[int, list[Message]] = {}
    got: dict[int, list[Message]] = {}
    largest = number = 0
    for kind, first, second in operations:
        if kind == "put" and not lane.full:
            number += 1
            message = replicate(first, number, second)
            largest = max(largest, pack(message).size)
            put(lane, message)
            sent.setdefault(first, []).append(message)
        elif kind == "take":
            items = lane.take(first)
            assert bool(items) == bool(sum(map(len, sent.values())) - sum(map(len, got.values())))
            for message in receiver.take(items):
                got.setdefault(message.shard, []).append(message)
        for shard, messages in sent.items():
            arrived = got.get(shard, [])
            assert messages[: len(arrived)] == arrived
            assert lane.waiting(shard) == len(messages) - len(arrived)
        assert lane.count == sum(lane.waiting(shard) for shard in sent)
        assert (lane.bytes == 0) == (lane.count == 0)
        assert lane.bytes <= budget + largest + 200
        assert lane.room() in {0, UNLIMITED, budget - lane.bytes}
    while lane.count:
        for message in receiver.take(lane.take(100 * KIB)):
            got.setdefault(message.shard, []).append(message)
    assert got == sent


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["send", "send", "take"]), st.integers(1, 6)), max_size=80))
def test_in_any_order_of_sending_and_reading_shards_hear_of_room_as_they_were_refused_and_all_in_the_end(
    operations: list[tuple[str, int]],
) -> None:
    """As a peer does it: a shard asks, and sends where it gets room; bytes leave, and then those that wait hear of it."""
    lane = BulkLane(100 * KIB, 1000)
    queue = RoomQueue(lane.share)
    refused: list[int] = []
    number = 0

    def tell() -> None:
        chosen = queue.tell(lane.drained())
        assert chosen == refused[: len(chosen)]
        assert len(chosen) * lane.share <= max(lane.drained(), 0)
        del refused[: len(chosen)]

    for what, shard in operations:
        if what == "take":
            lane.take(shard * 10 * KIB)
            tell()
        elif room := queue.ask(shard, lane.room()):
            assert not lane.full
            assert room >= lane.share
            number += 1
            message = replicate(shard, number, min(room, 9 * KIB))
            put(lane, message)
            queue.used(shard, 9 * KIB)
        elif shard not in refused:
            refused.append(shard)
        assert len(queue) == len(refused)
    for _ in range(100):
        lane.take(10 * KIB)
        tell()
    assert (refused, lane.count) == ([], 0)
