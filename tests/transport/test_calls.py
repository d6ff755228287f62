"""The lane for remote calls: its order, its room, and the credit without which none of them leaves."""

import math
import os
import struct
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cbor2
import pytest
import trio
import trio.testing
from drakkar.handlers.errors import SystemBusy, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries, Entry, Run
from drakkar.transport import peer
from drakkar.transport.budgets import SERVED
from drakkar.transport.call_frames import JOINED_BYTES, MAX_ITEMS, calls_body, decode_calls, is_calls
from drakkar.transport.call_rooms import CallRoom, CallRooms
from drakkar.transport.calls import (
    CREDIT_BYTES,
    CREDIT_RECORDS,
    WINDOW_BYTES,
    WINDOW_RECORDS,
    CallLane,
    CallWindow,
)
from drakkar.transport.frames import Frame, FrameError, FrameKind, FrameReader, encode_frame
from drakkar.transport.hello import ALIVE_FEATURE, CALLS_FEATURE
from drakkar.transport.lanes import BulkLane
from drakkar.transport.message_frames import Packed, decode_messages, encode_messages, frame_of, pack
from drakkar.transport.options import Options
from drakkar.transport.parts import PART_BYTES, PartReader, PartTurns, PartWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ports import free_ports
from tests.transport.support import (
    FakePeer,
    Host,
    heartbeat,
    listening,
    on_loop,
    running,
    until,
    warnings,
    welcome,
)
from tests.transport.test_tls import Files

KIB, MIB = 1 << 10, 1 << 20
ONE_TRY = Options(backoff_first=1000, backoff_last=1000)
VOTE = Message(MessageType.REQUEST_VOTE, to=2, sender=1, shard=1, term=9)


def record(number: int, size: int = 0) -> bytes:
    return cbor2.dumps([1, number, bytes(size)])


def numbers(records: Sequence[bytes] | Sequence[list[Any]]) -> list[int]:
    return [(cbor2.loads(each) if isinstance(each, bytes) else each)[1] for each in records]


def replicate(shard: int, number: int, size: int = 0) -> Message:
    entries = (Entry(number, 1, payload=bytes(size)),) if size else ()
    return Message(MessageType.REPLICATE, to=2, sender=1, shard=shard, term=number, entries=entries)


# ---- the window


def test_a_window_has_so_many_records_and_bytes_without_credit() -> None:
    window = CallWindow()
    window.add(WINDOW_RECORDS - 1, 0)
    assert (window.fits(1, 1), window.fits(2, 1)) == (True, False)
    window = CallWindow()
    window.add(CREDIT_RECORDS, WINDOW_BYTES - 10)
    assert (window.fits(1, 10), window.fits(1, 11)) == (True, False)


@pytest.mark.parametrize(
    ("records", "size", "fits"),
    [
        pytest.param(0, 0, True, id="nothing is on its way"),
        pytest.param(
            CREDIT_RECORDS - 1, CREDIT_BYTES - 1, True, id="no credit is due for what is on its way"
        ),
        pytest.param(CREDIT_RECORDS, 0, False, id="credit is due for the records"),
        pytest.param(1, CREDIT_BYTES, False, id="credit is due for the bytes"),
    ],
)
def test_a_record_larger_than_the_window_goes_alone_and_only_where_no_credit_is_due(
    records: int, size: int, fits: bool
) -> None:
    window = CallWindow()
    window.add(records, size)
    assert window.fits(1, 1 << 30) == fits
    assert not window.fits(2, 1 << 30)


def test_credit_is_for_all_that_has_come_and_lets_as_much_again_out() -> None:
    sender, receiver = CallWindow(), CallWindow()
    for window in (sender, receiver):
        window.add(WINDOW_RECORDS, 1000)
    assert receiver.due
    (frame,) = FrameReader().feed(receiver.give())
    assert (frame.kind, bytes(frame.body)) == (FrameKind.CALLS, struct.pack(">QQ", WINDOW_RECORDS, 1000))
    assert not receiver.due
    assert not sender.fits(1, 1)
    assert sender.take(frame.body)
    assert sender.fits(WINDOW_RECORDS, WINDOW_BYTES)
    assert not sender.take(frame.body), "once more it brings nothing"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(struct.pack(">QQ", 11, 100), id="for more records than were sent"),
        pytest.param(struct.pack(">QQ", 10, 101), id="for more bytes than were sent"),
        pytest.param(struct.pack(">QQ", 4, 100), id="for fewer records than before"),
        pytest.param(struct.pack(">QQ", 10, 49), id="for fewer bytes than before"),
        pytest.param(struct.pack(">QQ", 1 << 63, 1 << 63), id="for very many"),
        pytest.param(struct.pack(">Q", 10), id="too short"),
        pytest.param(struct.pack(">QQQ", 10, 100, 0), id="too long"),
        pytest.param(b"", id="empty"),
    ],
)
def test_credit_that_no_receiver_gives_is_refused(body: bytes) -> None:
    window = CallWindow()
    window.add(10, 100)
    assert window.take(memoryview(struct.pack(">QQ", 5, 50)))
    with pytest.raises(FrameError, match="credit"):
        window.take(memoryview(body))


# ---- the lane


class Receiver:
    """Decodes what was taken out of lanes, and gives credit, as a host does."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.messages: list[Message] = []
        self.frames: list[Frame] = []
        self.window = CallWindow()
        self._parts = PartReader(64 * MIB)

    def take(self, *items: Packed | bytes) -> None:
        for item in items:
            for frame in FrameReader().feed(item if isinstance(item, bytes) else frame_of([item])):
                self.frames.append(frame)
                body: Any = self._parts.feed(frame.body) if frame.kind == FrameKind.PART else frame.body
                if body is not None and is_calls(body):
                    self._take_calls(body)
                elif body is not None:
                    self.messages += decode_messages(body).messages

    def _take_calls(self, body: memoryview) -> None:
        calls = decode_calls(body)
        assert self.window.fits(len(calls), len(body)), "it came without credit"
        self.window.add(len(calls), len(body))
        self.calls += numbers(calls)

    def give(self) -> memoryview:
        (frame,) = FrameReader().feed(self.window.give())
        return frame.body


def lane_of(options: Options | None = None, turns: PartTurns | None = None) -> CallLane:
    return CallLane(CallRooms(options or Options()).of("10.0.0.1:1"), turns or PartTurns())


def put(lane: CallLane, *records: bytes) -> None:
    assert lane.room.take(list(map(len, records))) == len(records)
    lane.put(records)


def test_calls_leave_in_order_and_joined_and_give_their_places_back() -> None:
    lane, receiver = lane_of(), Receiver()
    put(lane, *(record(number) for number in range(300)))
    while lane.ready:
        receiver.take(*lane.take(1))
    assert receiver.calls == list(range(300))
    assert [len(decode_calls(frame.body)) for frame in receiver.frames] == [128, 128, 44]
    assert (lane.count, lane.room.records, lane.room.bytes) == (0, 0, 0)


def test_frames_of_calls_have_so_many_bytes_at_most() -> None:
    lane, receiver = lane_of(), Receiver()
    put(lane, *(record(number, 3 * KIB) for number in range(5)), record(5, 100 * KIB))
    while lane.count:
        receiver.take(*lane.take(1))
        lane.credit(receiver.give())
    assert receiver.calls == list(range(6))
    sizes = [len(frame.body) for frame in receiver.frames]
    assert [frame.kind for frame in receiver.frames] == [FrameKind.CALLS] * 4
    assert max(sizes[:3]) <= JOINED_BYTES < sizes[3] <= PART_BYTES


def test_a_call_in_parts_waits_until_its_last_part_was_taken_and_those_behind_it_keep_their_order() -> None:
    lane, receiver = lane_of(), Receiver()
    put(lane, record(1), record(2, 300 * KIB), record(3))
    receiver.take(*lane.take(1))
    for _ in range(2):
        receiver.take(*lane.take(1))
        assert (lane.count, lane.room.records, receiver.calls) == (2, 2, [1])
        assert lane.room.bytes > 300 * KIB
    receiver.take(*lane.take(1))
    assert (lane.count, lane.room.records, receiver.calls) == (1, 1, [1, 2])
    assert not lane.ready, "the large one is more than the window"
    lane.credit(receiver.give())
    receiver.take(*lane.take(1))
    assert receiver.calls == [1, 2, 3]


@pytest.mark.parametrize("size", [PART_BYTES - 2, PART_BYTES - 1, PART_BYTES])
def test_what_is_too_long_for_one_piece_leaves_in_parts(size: int) -> None:
    lane, receiver = lane_of(), Receiver()
    call = record(1, size - len(record(1, size)) + size)
    assert len(call) == size
    put(lane, call)
    while lane.count:
        receiver.take(*lane.take(1))
    assert receiver.calls == [1]
    assert [frame.kind for frame in receiver.frames] == (
        [FrameKind.CALLS] if size <= PART_BYTES - 2 else [FrameKind.PART] * -(-(size + 1) // PART_BYTES)
    )


def test_what_has_not_left_whole_is_given_back_in_order_and_leaves_on_no_other_connection() -> None:
    lane, receiver = lane_of(), Receiver()
    records = [record(1), record(2, 300 * KIB), record(3)]
    put(lane, *records)
    lane.take(1)
    lane.take(1)  # a part of the second
    unsent = lane.clear()
    assert [one is other for one, other in zip(unsent, records[1:], strict=True)] == [True, True]
    lane.reconnect()
    assert (lane.count, lane.ready, lane.room.records, lane.room.bytes) == (0, False, 0, 0)
    put(lane, record(4, 200 * KIB))
    while lane.count:
        receiver.take(*lane.take(1))
    assert receiver.calls == [4]


def test_a_new_connection_needs_no_credit_of_the_last_one() -> None:
    lane = lane_of()
    put(lane, *(record(number) for number in range(WINDOW_RECORDS + 1)))
    while lane.ready:
        lane.take(1)
    assert lane.count == 1
    lane.reconnect()
    assert lane.ready


def test_a_large_call_and_a_large_message_are_not_sent_into_each_other_and_have_turns() -> None:
    turns = PartTurns()
    calls, bulk, receiver = lane_of(turns=turns), BulkLane(64 * MIB, 100, turns), Receiver()
    for number in (1, 2):
        put(calls, record(number, 300 * KIB))
        message = replicate(number, number, MIB)
        bulk.put(pack(message), message)
    order: list[str] = []
    while calls.count or bulk.count:
        for lane in (bulk, calls):
            taken = lane.take(1)
            order += [lane.__class__.__name__] * len(taken)
            receiver.take(*taken)
        if receiver.window.due:
            calls.credit(receiver.give())
    assert receiver.calls == [1, 2]
    assert [message.term for message in receiver.messages] == [1, 2]
    starts = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert starts == ["BulkLane", "CallLane", "BulkLane", "CallLane"]


def test_small_messages_pass_a_large_call_and_large_ones_wait_for_it() -> None:
    turns = PartTurns()
    calls, bulk, receiver = lane_of(turns=turns), BulkLane(64 * MIB, 100, turns), Receiver()
    put(calls, record(1, 300 * KIB))
    receiver.take(*calls.take(1))
    for shard, size in ((1, MIB), (2, 2 * MIB), (3, KIB), (4, 100 * KIB)):
        message = replicate(shard, shard, size)
        bulk.put(pack(message), message)
    receiver.take(*bulk.take(10 * MIB))
    assert [message.shard for message in receiver.messages] == [3, 4]
    assert bulk.take(10 * MIB) == []
    receiver.take(*calls.take(MIB))
    assert receiver.calls == [1]
    receiver.take(*bulk.take(10 * MIB))
    assert sorted(message.shard for message in receiver.messages) == [1, 2, 3, 4]


def test_what_a_lane_drops_leaves_the_turn_to_the_other() -> None:
    turns = PartTurns()
    calls, bulk = lane_of(turns=turns), BulkLane(64 * MIB, 100, turns)
    message = replicate(1, 1, MIB)
    for first, second in ((calls, bulk), (bulk, calls)):
        put(calls, record(1, 300 * KIB))
        bulk.put(pack(message), message)
        assert (len(first.take(1)), len(second.take(1))) == (1, 0)
        first.clear()
        assert len(second.take(1)) == 1
        second.clear()
        calls.reconnect()


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from([0, 1, 10, 60, 120, 200, 300]).map(lambda k: k * KIB)),
            st.tuples(st.just("many"), st.integers(1, 400)),
            st.tuples(st.just("take"), st.sampled_from([1, 64 * KIB, MIB])),
            st.tuples(st.just("receive"), st.integers(1, 6)),
            st.tuples(st.just("hear"), st.integers(1, 3)),
        ),
        max_size=40,
    )
)
def test_in_any_order_little_is_on_its_way_none_comes_without_credit_and_all_come_in_the_end(
    operations: list[tuple[str, int]],
) -> None:
    """As two hosts do it: what is taken is on its way for some time, and so is credit."""
    lane, receiver = lane_of(Options(call_records=math.inf, call_bytes=math.inf)), Receiver()  # type: ignore[arg-type]
    there: deque[bytes] = deque()
    back: deque[memoryview] = deque()
    sent = largest = 0

    def send(size: int) -> None:
        nonlocal sent, largest
        largest = max(largest, size)
        put(lane, record(sent, size))
        sent += 1

    def receive() -> None:
        receiver.take(there.popleft())
        if receiver.window.due:
            back.append(receiver.give())

    for what, amount in operations:
        if what == "put":
            send(amount)
        elif what == "many":
            for _ in range(amount):
                send(0)
        elif what == "take":
            there += lane.take(amount)
        elif what == "receive":
            for _ in range(min(amount, len(there))):
                receive()
        else:
            for _ in range(min(amount, len(back))):
                lane.credit(back.popleft())
        assert sum(map(len, there)) < max(WINDOW_BYTES, CREDIT_BYTES + largest) + 10 * KIB
        on_their_way = sent - lane.count - len(receiver.calls)
        assert on_their_way <= WINDOW_RECORDS
    for _ in range(4 * sent):
        if not (lane.count or there):
            break
        there += lane.take(64 * KIB)
        while there:
            receive()
        while back:
            lane.credit(back.popleft())
    assert receiver.calls == list(range(sent))
    assert (lane.count, lane.room.records, lane.room.bytes) == (0, 0, 0)


# ---- room


def test_a_lane_has_room_for_so_many_calls_and_bytes_or_for_one() -> None:
    room = CallRooms(Options(call_records=3, call_bytes=1000)).of("10.0.0.1:1")
    assert room.take([10] * 5) == 3
    room.give_back(3, 30)
    assert room.take([600, 401, 1]) == 1, "in order: none passes one that found no room"
    room.give_back(1, 600)
    assert room.take([5000]) == 1
    assert room.take([1]) == 0
    room.give_back(1, 5000)
    assert (room.records, room.bytes) == (0, 0)


def test_a_call_that_finds_no_room_fails_at_once_and_says_what_to_do() -> None:
    rooms = CallRooms(Options(call_records=2, call_limit=100))
    room = rooms.of("10.0.0.1:1")
    room.admit(record(1))
    room.admit(record(2))
    with pytest.raises(SystemBusy, match=r"2 calls of \d+ bytes wait for 10.0.0.1:1, .* raise call_records"):
        room.admit(record(3))
    with pytest.raises(TransportError, match="raise call_limit on all hosts"):
        room.admit(record(4, 200))
    assert (rooms.refused, room.records) == (1, 2)


def waits(room: CallRoom, within: float) -> bool:
    """Whether a question with so much time is let in."""
    try:
        room.admit(record(1), within)
    except SystemBusy:
        return False
    room.give_back(1, len(record(1)))
    return True


def test_a_question_that_would_wait_too_long_for_its_turn_is_refused() -> None:
    """Else a host that is asked more than it can do answers all of them too late."""
    now, size = 100.0, len(record(1))
    rooms = CallRooms(Options(), lambda: now)
    room = rooms.of("10.0.0.1:1")
    for _ in range(4):
        room.admit(record(1))
        now += 0.4
    assert waits(room, 1.0), "none has left: the host may be dialed only now"
    room.left(1, size)
    assert waits(room, 1.0), "it has just begun to take them"
    now += 0.3
    with pytest.raises(SystemBusy, match=r"3 calls wait for 10\.0\.0\.1:1.*0\.30 s.*within 1 s"):
        room.admit(record(1), 1.0)
    assert waits(room, 2.0)
    room.admit(record(1))  # nobody waits for an answer
    assert (room.records, rooms.refused) == (4, 1)
    room.left(3, 3 * size)
    assert waits(room, 1.0), "the first one has come just now"
    room.left(1, size)
    now += 10
    assert waits(room, 1.0)


def test_what_is_given_back_does_not_count_as_taken_by_the_host() -> None:
    now, size = 100.0, len(record(1))
    rooms = CallRooms(Options(), lambda: now)
    room = rooms.of("10.0.0.1:1")
    room.admit(record(1))
    room.admit(record(1))
    now += 10
    room.give_back(1, size)
    assert waits(room, 1.0)
    room.dropped(0, 0)
    room.disconnected()
    now += 10
    assert waits(room, 1.0)
    room.dropped(1, size)
    assert room.records == 0


def test_of_what_is_given_back_the_last_one_is_not_waited_for_any_more() -> None:
    now, size = 100.0, len(record(1))
    rooms = CallRooms(Options(), lambda: now)
    room = rooms.of("10.0.0.1:1")
    room.admit(record(1))
    room.admit(record(1))
    room.left(1, size)
    now += 10
    room.admit(record(1))
    room.give_back(1, size)
    assert not waits(room, 1.0), "the first one waits still"


def test_a_host_that_is_dialed_again_has_its_time_again() -> None:
    now, size = 100.0, len(record(1))
    rooms = CallRooms(Options(), lambda: now)
    room = rooms.of("10.0.0.1:1")
    room.admit(record(1))
    room.admit(record(1))
    room.left(1, size)
    now += 10
    assert not waits(room, 1.0)
    room.disconnected()
    assert waits(room, 1.0)


def test_however_many_threads_take_places_there_are_no_more_than_there_are() -> None:
    rooms = CallRooms(Options(call_records=1000, call_bytes=50_000))
    room, call = rooms.of("10.0.0.1:1"), record(1)
    busy: list[int] = []
    given: list[int] = []

    def insist() -> None:
        refused = 0
        for _ in range(2000):
            try:
                room.admit(call)
            except SystemBusy:
                refused += 1
        busy.append(refused)

    def let_go() -> None:
        for _ in range(2000):
            if room.records > 500:
                room.give_back(1, len(call))
                given.append(1)

    threads = [threading.Thread(target=what) for what in (insist, insist, let_go, insist, insist)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    admitted = 8000 - sum(busy)
    assert (room.records, room.bytes) == (admitted - len(given), (admitted - len(given)) * len(call))
    assert room.records <= 1000
    assert rooms.refused == sum(busy)


def test_a_host_has_one_room_however_its_address_is_spelt_and_none_that_no_one_uses() -> None:
    rooms = CallRooms(Options())
    room = rooms.of("[::1]:7000")
    assert rooms.of("[0::1]:7000") is room
    for port in range(1000):
        rooms.of(f"10.0.0.1:{port}")
    assert len(rooms._rooms) == 1


# ---- between hosts


class CallingHost(Host):
    """It calls and is called, and keeps what comes of it."""

    def __init__(self, address: str = "127.0.0.1:0", **settings: Any) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.returned: list[tuple[str, list[bytes], str]] = []
        settings = {"called": self.take, "calls_handed_back": self.take_back} | settings
        super().__init__(address, **settings)

    def take(self, address: str, records: list[list[Any]]) -> None:
        self.calls += [(address, each) for each in records]

    def take_back(self, address: str, records: list[bytes], why: TransportError) -> None:
        self.returned.append((address, records, str(why)))

    def call(self, to: "Host | str", *records: bytes) -> int:
        return self.transport.send_calls(to if isinstance(to, str) else to.address, records)

    @property
    def numbers(self) -> list[int]:
        return numbers([each for _, each in self.calls])


class Callee:
    """A peer that reads when it is told to, and gives credit as a host does, or as badly as a test wants."""

    def __init__(self, features: Sequence[str] = (CALLS_FEATURE,)) -> None:
        self.features = frozenset(features)
        self.read = trio.Event()
        self.gives_credit = True
        self.caller: FakePeer
        self.calls: list[int] = []
        self.messages: list[Message] = []
        self.pings = 0
        self.kinds: list[int] = []
        self.bytes = {"calls": 0, "messages": 0}
        self.log: list[tuple[str, int]] = []
        """Each call and message with the bytes of the other kind that had come before it."""
        self.window = CallWindow()
        self.lose = trio.CancelScope()

    async def answer(self, caller: FakePeer) -> None:
        await welcome(caller, features=self.features)
        self.caller, self.window, parts = caller, CallWindow(), PartReader(64 * MIB)
        with self.lose:
            await self.read.wait()
            while True:
                frame = await caller.next_frame()
                self.kinds.append(frame.kind)
                body: Any = frame.body
                if frame.kind == FrameKind.PING:
                    self.pings += 1
                    await caller.send(encode_frame(FrameKind.PONG, bytes(body)))
                    continue
                if frame.kind == FrameKind.PART and (body := parts.feed(body)) is None:
                    continue
                await self._take(body)

    async def _take(self, body: memoryview) -> None:
        if not is_calls(body):
            self.bytes["messages"] += len(body)
            for message in decode_messages(body).messages:
                self.messages.append(replace(message, entries=()))
                self.log.append((message.type.name, self.bytes["calls"]))
            return
        calls = decode_calls(body)
        assert self.window.fits(len(calls), len(body))
        self.window.add(len(calls), len(body))
        self.bytes["calls"] += len(body)
        self.calls += numbers(calls)
        self.log += [("call", self.bytes["messages"])] * len(calls)
        if self.gives_credit and self.window.due:
            await self.caller.send(self.window.give())


@asynccontextmanager
async def calling(a: Host, callee: Callee) -> AsyncIterator[str]:
    """A peer to which `a` is connected; gives its address."""
    async with listening(callee.answer) as address, running(a):
        a.send(address, heartbeat(0))
        await until(lambda: a.connected(address))
        yield address


@on_loop
async def test_calls_reach_the_other_host_in_order_with_the_address_of_their_sender() -> None:
    a, b = CallingHost(), CallingHost()
    async with running(a, b):
        for number in range(1000):
            assert a.call(b, record(number)) == 0
        b.call(a, record(7), record(8))
        await until(lambda: len(b.calls) == 1000 and len(a.calls) == 2)
    assert b.calls == [(a.address, [1, number, b""]) for number in range(1000)]
    assert a.calls == [(b.address, [1, number, b""]) for number in (7, 8)]
    assert (a.counters.calls_sent, b.counters.calls_received) == (1000, 1000)
    assert a.returned == b.returned == []


@on_loop
async def test_calls_of_all_sizes_and_messages_between_them_arrive_whole() -> None:
    a, b = CallingHost(), CallingHost()
    sizes = [0, 1, 100 * KIB, PART_BYTES - 20, PART_BYTES, 200 * KIB, MIB - 20, 0, 700 * KIB]
    sent = [record(number, size) for number, size in enumerate(sizes * 3)]
    async with running(a, b):
        for each in sent:
            assert a.call(b, each) == 0
            a.send(b, heartbeat(1), replicate(1, 1, 500 * KIB))
        await until(lambda: len(b.calls) == len(sent) and len(b.received) == 2 * len(sent))
        await until(lambda: b.transport.unfinished_bytes == 0)
    assert [each for _, each in b.calls] == [cbor2.loads(each) for each in sent]


@on_loop
async def test_two_hosts_that_flood_each_other_with_calls_and_bulk_lose_none_and_keep_their_order() -> None:
    a, b = CallingHost(), CallingHost()
    count = 3000
    async with running(a, b) as nursery:

        async def flood(one: CallingHost, other: CallingHost) -> None:
            sent = 0
            while sent < count:
                refused = one.call(
                    other, *(record(number, 2 * KIB) for number in range(sent, min(sent + 100, count)))
                )
                sent = min(sent + 100, count) - refused
                await trio.lowlevel.checkpoint()

        async def replicate_on(one: CallingHost, other: CallingHost) -> None:
            for number in range(1, 61):
                while not one.transport.room(other.address, 1, 600 * KIB):
                    await trio.lowlevel.checkpoint()
                one.send(other, replicate(1, number, 500 * KIB), heartbeat(number))

        for one, other in ((a, b), (b, a)):
            nursery.start_soon(flood, one, other)
            nursery.start_soon(replicate_on, one, other)
        await until(lambda: all(len(host.calls) == count and len(host.received) == 120 for host in (a, b)))
    for host in (a, b):
        assert host.numbers == list(range(count))
        assert [message.term for message in host.received if message.entries] == list(range(1, 61))
        assert (host.counters.malformed, host.counters.lost, host.returned) == (0, 0, [])


@on_loop
async def test_calls_over_tls_go_on_when_credit_comes(tmp_path: Any) -> None:
    files = Files(tmp_path)
    a, b = (CallingHost(tls=files.config(into=name)) for name in ("a", "b"))
    async with running(a, b):
        for number in range(3 * WINDOW_RECORDS):
            assert a.call(b, record(number, KIB)) == 0
        await until(lambda: len(b.calls) == 3 * WINDOW_RECORDS)
    assert b.numbers == list(range(3 * WINDOW_RECORDS))


@on_loop
async def test_what_calls_cause_is_done_at_once_and_what_a_round_calls_leaves_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds: list[Any] = []

    def run_now(fn: Callable[[], object]) -> None:
        rounds.append("begin")
        fn()
        rounds.append("end")

    writes: list[int] = []

    def write(fd: int, data: bytes) -> int:
        writes.append(len(data))
        return os.write(fd, data)

    put_off: list[Callable[[], object]] = []
    a = CallingHost(at_round_end=put_off.append)
    b = CallingHost(run_now=run_now, called=lambda _, records: rounds.append(numbers(records)))
    async with running(a, b):
        a.send(b, heartbeat(0))
        put_off.pop()()
        await until(lambda: b.received)
        await trio.testing.wait_all_tasks_blocked()
        rounds.clear()
        monkeypatch.setattr(peer, "os", SimpleNamespace(write=write))
        for number in range(5):
            a.call(b, record(number))
        assert (len(put_off), writes) == (1, [])
        put_off.pop()()
        assert len(writes) == 1
        await until(lambda: rounds)
    assert rounds == ["begin", [0, 1, 2, 3, 4], "end"]


# ---- the bounds of a lane


@on_loop
async def test_a_full_lane_refuses_the_last_ones_and_counts_them() -> None:
    a, callee = CallingHost(options=Options(call_records=600)), Callee()
    async with calling(a, callee) as address:
        sent = a.call(address, *(record(number) for number in range(600)))
        assert sent == 0
        await trio.testing.wait_all_tasks_blocked(0.05)
        left = a.counters.calls_sent
        assert left == WINDOW_RECORDS
        refused = a.call(address, *(record(number) for number in range(600, 1200)))
        assert refused == 600 - left
        assert a.transport.refused_calls == refused
        status = a.transport.peers()[address]
        assert status.call_records == 600
        assert a.transport.call_room(address).records == 600
        callee.read.set()
        await until(lambda: len(callee.calls) == 600 + left)
        assert callee.calls == list(range(600 + left))
        assert a.transport.peers()[address].call_bytes == 0


@on_loop
async def test_a_thread_learns_that_a_lane_is_full_before_the_loop_has_seen_any_of_its_calls() -> None:
    a, b = CallingHost(options=Options(call_records=50)), CallingHost()
    admitted: list[bytes] = []

    def in_a_thread() -> None:
        room = a.transport.call_room(b.address)
        for number in range(100):
            room.admit(record(number))
            admitted.append(record(number))

    async with running(a, b):
        room = a.transport.call_room(b.address)
        with pytest.raises(SystemBusy, match="50 calls"):
            await trio.to_thread.run_sync(in_a_thread)
        assert (room.records, len(admitted), a.transport.refused_calls) == (50, 50, 1)
        assert a.transport.peers() == {}, "the loop has seen none"


@on_loop
async def test_what_a_thread_has_admitted_is_never_refused_and_gives_its_place_back() -> None:
    a, b = CallingHost(options=Options(call_records=50)), CallingHost()
    async with running(a, b):
        room = a.transport.call_room(b.address)
        records = [record(number) for number in range(50)]
        for each in records:
            room.admit(each)
        assert a.call(b, record(99)) == 1, "the loop finds the lane as full as threads do"
        assert a.transport.send_calls(b.address, records, admitted=True) == 0
        await until(lambda: len(b.calls) == 50)
        assert b.numbers == list(range(50))
        assert (room.records, room.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(record(1, 2 * MIB), "raise call_limit", id="too long"),
        pytest.param(b"\x01", "no encoded list", id="no list"),
        pytest.param(cbor2.dumps([1, [[]] * 100_000]), "as bytes", id="too many values"),
    ],
)
@on_loop
async def test_a_call_that_the_receiver_would_not_take_is_refused_and_none_beside_it_is_sent(
    bad: bytes, reason: str
) -> None:
    a, b = CallingHost(), CallingHost()
    async with running(a, b):
        a.call(b, record(1))
        await until(lambda: b.calls)
        with pytest.raises(TransportError, match=reason):
            a.call(b, record(2), bad)
        a.call(b, record(3))
        await until(lambda: len(b.calls) == 2)
        assert b.numbers == [1, 3]
        assert a.transport.call_room(b.address).records == 0
    assert (a.counters.lost, b.counters.malformed) == (0, 0)


# ---- credit


@on_loop
async def test_without_credit_so_many_leave_and_control_and_bulk_are_not_behind_the_others() -> None:
    a, callee = CallingHost(), Callee()
    callee.gives_credit = False
    callee.read.set()
    async with calling(a, callee) as address:
        a.call(address, *(record(number) for number in range(2000)))
        await until(lambda: len(callee.calls) == WINDOW_RECORDS)
        a.send(address, VOTE, replicate(1, 1, 300 * KIB))
        await until(lambda: len(callee.messages) == 3)
        assert len(callee.calls) == WINDOW_RECORDS
        assert a.counters.calls_sent == WINDOW_RECORDS
        await callee.caller.send(callee.window.give())
        await until(lambda: len(callee.calls) == 2 * WINDOW_RECORDS)
        assert callee.calls == list(range(2 * WINDOW_RECORDS))


@on_loop
async def test_what_is_on_its_way_to_a_peer_that_reads_nothing_is_bounded_in_bytes() -> None:
    a, callee = CallingHost(), Callee()
    async with calling(a, callee) as address:
        before = a.counters.sent_bytes
        a.call(address, *(record(number, 10 * KIB) for number in range(500)))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 200 * KIB < a.counters.sent_bytes - before <= WINDOW_BYTES + KIB
        a.send(address, VOTE)
        callee.read.set()
        await until(lambda: len(callee.messages) == 2)
        (behind,) = [size for name, size in callee.log if name == "REQUEST_VOTE"]
        assert behind <= WINDOW_BYTES
        await until(lambda: len(callee.calls) == 500)


@on_loop
async def test_control_leaves_before_calls_that_waited_longer() -> None:
    a, callee = CallingHost(), Callee()
    callee.read.set()
    async with listening(callee.answer) as address, running(a):
        a.call(address, *(record(number, KIB) for number in range(100)))
        a.send(address, VOTE)
        await until(lambda: len(callee.calls) == 100)
    assert callee.log[0] == ("REQUEST_VOTE", 0)


@on_loop
async def test_calls_and_bulk_leave_in_turn_by_their_bytes() -> None:
    a, callee = CallingHost(), Callee()
    callee.read.set()
    turn = 64 * KIB + 10 * KIB
    async with listening(callee.answer) as address, running(a):
        a.call(address, *(record(number, 6 * KIB) for number in range(40)))
        a.send(address, *(replicate(1, number, 6 * KIB) for number in range(1, 41)))
        await until(lambda: len(callee.calls) == 40 and len(callee.messages) == 40)
    came = {"call": 0, "REPLICATE": 0}
    for kind, other_bytes in callee.log:
        assert abs(other_bytes - came[kind]) <= turn
        came[kind] += 6 * KIB


@pytest.mark.parametrize(
    "credit",
    [
        pytest.param(struct.pack(">QQ", 2, 1000), id="for more than was sent"),
        pytest.param(b"\x81\x81\x01", id="a record"),
        pytest.param(b"", id="nothing"),
    ],
)
@on_loop
async def test_a_peer_that_gives_credit_as_no_host_does_is_lost(credit: bytes) -> None:
    a, callee = CallingHost(options=ONE_TRY), Callee()
    callee.read.set()
    async with calling(a, callee) as address:
        a.call(address, record(1))
        await until(lambda: callee.calls)
        await callee.caller.send(encode_frame(FrameKind.CALLS, credit))
        await until(lambda: a.lost)
        assert "credit" in a.transport.peers()[address].error
    assert (a.counters.malformed, a.counters.failed) == (1, 0)


@on_loop
async def test_a_peer_that_gives_the_same_credit_without_end_is_read_more_slowly() -> None:
    a, callee = CallingHost(options=Options(keepalive=100)), Callee()
    callee.read.set()
    async with calling(a, callee) as address, trio.open_nursery() as nursery:
        a.call(address, record(1))
        await until(lambda: callee.calls)
        again = callee.window.give() * 4096

        async def insist() -> None:
            while True:
                await callee.caller.send(again)

        nursery.start_soon(insist)
        await until(lambda: a.counters.pauses > 2)
        assert a.connected(address)
        nursery.cancel_scope.cancel()


@on_loop
async def test_a_connection_whose_calls_wait_for_credit_is_in_use() -> None:
    a, callee = CallingHost(options=Options(idle_timeout=0.05, keepalive=0.02)), Callee()
    callee.gives_credit = False
    callee.read.set()
    async with calling(a, callee) as address:
        a.call(address, *(record(number) for number in range(WINDOW_RECORDS + 1)))
        await until(lambda: callee.pings > 10)
        assert a.connected(address)
        await callee.caller.send(callee.window.give())
        await until(lambda: len(callee.calls) == WINDOW_RECORDS + 1)
        await until(lambda: a.transport.peers() == {})
    assert a.returned == []


# ---- beside bulk


def much_bulk(total: int) -> list[Message]:
    """Messages of a mebibyte each, which are one in memory."""
    entries = Entries([Run(1, 1, [bytes(MIB)])])
    return [
        Message(MessageType.REPLICATE, to=2, sender=1, shard=1, term=number, entries=entries)
        for number in range(1, total // MIB + 1)
    ]


@on_loop
async def test_with_hundreds_of_megabytes_of_bulk_waiting_calls_flow() -> None:
    a, callee = CallingHost(options=Options(queue_bytes=1 << 30)), Callee()
    async with calling(a, callee) as address:
        waiting = much_bulk(200 * MIB)
        assert a.send(address, *waiting) == 0
        assert a.transport.peers()[address].bulk_bytes > 190 * MIB
        sizes = [KIB] * 500 + [200 * KIB, KIB, 300 * KIB, KIB]
        assert a.call(address, *(record(number, size) for number, size in enumerate(sizes))) == 0
        callee.read.set()
        await until(lambda: len(callee.calls) == len(sizes))
        assert callee.calls == list(range(len(sizes)))
        # Calls wait for the credit of those before, and what the kernels hold of bulk is ahead of it each time.
        assert callee.bytes["messages"] < 50 * MIB
        await until(lambda: len(callee.messages) == 1 + len(waiting))
        assert [message.term for message in callee.messages[1:]] == [message.term for message in waiting]


@on_loop
async def test_with_calls_without_end_control_and_bulk_flow() -> None:
    a, callee = CallingHost(), Callee()
    callee.read.set()
    async with calling(a, callee) as address, trio.open_nursery() as nursery:
        flood = [record(number, KIB) for number in range(100)]

        async def insist() -> None:
            while True:
                a.call(address, *flood)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(insist)
        await until(lambda: len(callee.calls) > 5000 and a.transport.refused_calls)
        for number in range(20):
            before = callee.bytes["calls"]
            a.send(address, Message(MessageType.REQUEST_VOTE, to=2, sender=1, shard=1, term=number))
            await until(lambda number=number: any(message.term == number for message in callee.messages[1:]))
            behind = [size for name, size in callee.log if name == "REQUEST_VOTE"][-1] - before
            assert behind <= WINDOW_BYTES
        callee.log.clear()
        before = callee.bytes["calls"]
        sent = [replicate(1, number, size) for number, size in enumerate([90 * KIB, 500 * KIB] * 20, 1)]
        assert a.send(address, *sent) == 0
        await until(lambda: sum(name == "REPLICATE" for name, _ in callee.log) == len(sent))
        calls_meanwhile = [size for name, size in callee.log if name == "REPLICATE"][-1] - before
        bulk_bytes = sum(pack(message).size for message in sent)
        assert calls_meanwhile < bulk_bytes + MIB
        nursery.cancel_scope.cancel()


# ---- losses


@on_loop
async def test_a_lost_connection_hands_back_in_order_what_had_not_left_and_then_tells_that_it_was_lost() -> (
    None
):
    told: list[str] = []
    a, callee = CallingHost(options=ONE_TRY), Callee()
    a.transport._on_unreachable = lambda _: told.append(f"lost, {len(a.returned)} told before")
    records = [record(number, KIB) for number in range(1000)]
    async with calling(a, callee) as address:
        assert a.call(address, *records[:900]) == 0
        await trio.testing.wait_all_tasks_blocked(0.05)
        left = a.counters.calls_sent
        assert 0 < left < 300
        assert a.call(address, *records[900:]) == 0
        callee.lose.cancel()
        await until(lambda: told)
        ((where, unsent, why),) = a.returned
        assert (where, len(unsent)) == (address, 1000 - left)
        assert all(one is other for one, other in zip(unsent, records[left:], strict=True))
        assert f"lost the connection to {address}" in why
        assert told == ["lost, 1 told before"]
        assert a.transport.call_room(address).records == 0
        assert (a.counters.calls_sent, a.counters.calls_handed_back) == (left, 1000 - left)


@on_loop
async def test_a_large_call_of_which_only_parts_have_left_has_no_effect_and_is_handed_back() -> None:
    options = Options(call_limit=32 * MIB, call_bytes=64 * MIB, backoff_first=1000, backoff_last=1000)
    a, callee = CallingHost(options=options), Callee()
    large = record(1, 20 * MIB)
    async with calling(a, callee) as address:
        a.call(address, large, record(2))
        await until(lambda: a.counters.sent_bytes > 200 * KIB)
        callee.lose.cancel()
        await until(lambda: a.lost)
        ((_, unsent, _),) = a.returned
        assert unsent[0] is large
        assert numbers(unsent[1:]) == [2]
        assert a.counters.calls_sent == 0


@on_loop
async def test_calls_to_a_host_that_cannot_be_reached_are_handed_back_with_the_reason() -> None:
    a = CallingHost(options=ONE_TRY)
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a):
        a.call(nowhere, record(1), record(2))
        await until(lambda: a.lost)
        ((where, unsent, why),) = a.returned
        assert (where, numbers(unsent)) == (nowhere, [1, 2])
        assert f"cannot reach {nowhere}" in why
        a.call(nowhere, record(3))
        assert a.transport.peers()[nowhere].call_records == 1


@on_loop
async def test_why_a_host_cannot_be_reached_is_known_until_the_next_attempt_is_due() -> None:
    a = CallingHost(options=ONE_TRY)
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a) as nursery:
        assert a.transport.away(nowhere) == ""
        a.call(nowhere, record(1))
        assert a.transport.away(nowhere) == "", "nothing has failed yet"
        await until(lambda: a.lost)
        assert f"cannot reach {nowhere}" in a.transport.away(nowhere)
        a.call(nowhere, record(2))
        b = CallingHost(nowhere)
        await nursery.start(b.run)
        b.call(a, record(3))  # so a hears that it is there
        await until(lambda: b.numbers)
        assert b.numbers == [2]
        assert a.transport.away(nowhere) == ""
        b.scope.cancel()
        await until(lambda: len(a.lost) > 1)
        assert a.transport.away(nowhere) == "", "a connection that was lost may soon be another one"


@on_loop
async def test_a_host_that_could_not_be_reached_is_known_as_that_until_it_is_found_to_be_back() -> None:
    a = CallingHost(options=Options(backoff_first=0.01, backoff_last=1000))
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a) as nursery:
        a.transport.knock(nowhere)
        assert a.transport.unreached(nowhere) == ""
        a.call(nowhere, record(1))
        assert a.transport.unreached(nowhere) == "", "nothing has failed yet"
        for attempts in range(1, 8):
            await until(lambda attempts=attempts: a.counters.connect_failures == attempts)
            await until(lambda: not a.transport.away(nowhere))
            assert f"cannot reach {nowhere}" in a.transport.unreached(nowhere)
            a.transport.knock(nowhere)
        assert a.lost == [nowhere], "of a knock nothing was lost"
        await until(lambda: a.counters.connect_failures == 8 and not a.transport.away(nowhere))
        b = CallingHost(nowhere)
        await nursery.start(b.run)
        a.transport.knock(nowhere)
        await until(lambda: a.connected(b))
        assert a.transport.unreached(nowhere) == ""
        b.scope.cancel()
        await until(lambda: len(a.lost) > 1)
        assert a.transport.unreached(nowhere) == "", "a connection that was lost may soon be another one"


@on_loop
async def test_a_host_that_was_not_used_for_long_is_forgotten_though_it_was_knocked_at() -> None:
    a = CallingHost(options=Options(backoff_first=0.01, backoff_last=0.01, idle_timeout=0.05))
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a):
        a.call(nowhere, record(1))
        await until(lambda: a.transport.unreached(nowhere))
        a.transport.knock(nowhere)
        await until(lambda: a.transport.peers() == {})
        assert a.transport.unreached(nowhere) == ""


@on_loop
async def test_a_refusal_is_no_news_for_long_and_calls_that_come_later_have_the_host_dialed_at_once() -> None:
    """A host that was started again is found by the next call, and not when the wait is over that has grown while it was away."""
    a = CallingHost(options=Options(backoff_first=0.02, backoff_last=1000))
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a) as nursery:
        for failures in range(1, 20):
            a.call(nowhere, record(failures))
            await until(lambda failures=failures: len(a.lost) == failures)
            await until(lambda: not a.transport.away(nowhere))
        assert a.transport.peers()[nowhere].failures == 19, "the wait is minutes now"
        b = CallingHost(nowhere)
        await nursery.start(b.run)
        a.call(nowhere, record(20))
        await until(lambda: b.numbers)
        assert b.numbers == [20]


@on_loop
async def test_hosts_that_are_called_need_not_give_way_to_those_that_are_answered() -> None:
    a = CallingHost(options=replace(ONE_TRY, max_incoming=3))
    called, answered = ([f"127.0.0.1:{port}" for port in range(first, first + 20)] for first in (1, 101))
    async with running(a):
        a.transport.members([])
        for address, other in zip(called, answered, strict=True):
            a.call(address, record(1))
            a.transport.send_calls(other, [record(2)], answers=True)
        a.call(answered[-1], record(3))
        a.transport.send_calls("127.0.0.1:200", [record(2)], answers=True)
        assert a.transport.peers().keys() == {*called, *answered[-3:], "127.0.0.1:200"}
        assert numbers([each for _, records, _ in a.returned for each in records]) == [2] * 17
        assert a.lost == answered[:17], "what was sent to them will not be answered"


@on_loop
async def test_hosts_that_are_connected_are_answered_before_those_that_have_gone() -> None:
    a = CallingHost(options=replace(ONE_TRY, max_incoming=3))
    async with running(a):
        a.transport.members([])
        here = [f"127.0.0.1:{port}" for port in range(1, 3)]
        for address in here:
            await FakePeer.introduced(a, address=address)
        await until(lambda: len(a.transport._inbound._callers) == 2)
        for address in [*here, *(f"127.0.0.1:{port}" for port in range(101, 120))]:
            a.transport.send_calls(address, [record(1)], answers=True)
        assert a.transport.peers().keys() == {*here, "127.0.0.1:119"}


@on_loop
async def test_of_very_many_hosts_that_are_called_the_last_ones_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("drakkar.transport.tcp.MAX_CALLED_HOSTS", 5)
    a, member = CallingHost(options=ONE_TRY), "127.0.0.1:50"
    async with running(a):
        a.transport.members([member])
        a.call(member, record(1))
        hosts = [f"127.0.0.1:{port}" for port in range(1, 8)]
        for address in hosts:
            a.call(address, record(1))
        assert a.transport.peers().keys() == {*hosts[2:], member}
        assert a.lost == hosts[:2]
        for address in hosts[2:]:
            a.transport.watch_host(address)
        room = a.transport.call_room(hosts[0])
        room.admit(record(2))
        with pytest.raises(TransportError, match="waited for from 5 hosts"):
            a.transport.send_calls(hosts[0], [record(2)], admitted=True)
        assert (room.records, room.bytes) == (0, 0)
        a.transport.send_calls(hosts[0], [record(3)], answers=True)
        a.call(hosts[-1], record(4))
        a.call(member, record(4))
        assert len(a.lost) == 2


@on_loop
async def test_calls_are_written_at_once_where_the_caller_has_joined_those_of_its_round() -> None:
    rounds: list[Callable[[], object]] = []
    a, b = CallingHost(at_round_end=rounds.append), CallingHost()
    async with running(a, b):
        a.call(b, record(1))
        while rounds:
            rounds.pop(0)()
        await until(lambda: b.numbers == [1])
        # Else the writer of the first takes the next one along.
        await trio.testing.wait_all_tasks_blocked(0.01)
        a.call(b, record(2))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert b.numbers == [1], "it waits for the end of the round"
        assert a.transport.send_calls(b.address, [record(3)], now=True) == 0
        assert not rounds[1:]
        await until(lambda: b.numbers == [1, 2, 3])


def _now(function: Callable[[], object]) -> None:
    function()


@pytest.mark.parametrize("run_now", [None, _now])
@on_loop
async def test_a_record_that_no_host_sends_ends_its_connection_and_no_other(run_now: Any) -> None:
    def take(address: str, records: list[list[Any]]) -> None:
        b.take(address, records)
        if [1, 13, b""] in records:
            raise FrameError("a record that no host sends")

    a, c, b = CallingHost(), CallingHost(), CallingHost(called=take, run_now=run_now)
    async with running(a, b, c):
        c.call(b, record(1))
        a.call(b, record(12), record(13))
        await until(lambda: a.lost)
        assert "a record that no host sends" in a.transport.peers()[b.address].error
        assert (b.counters.malformed, b.counters.failed, c.lost) == (1, 0, [])
        c.call(b, record(2))
        await until(lambda: b.numbers[-1] == 2)


@on_loop
async def test_calls_that_take_too_long_have_credit_later_and_delay_no_vote() -> None:
    """Messages of the same connection are read on while calls wait for credit."""
    a, b, c = CallingHost(), CallingHost(called=lambda *_: _spin(0.02)), CallingHost()
    async with running(a, b, c):
        for number in range(SERVED):
            c.send(b, Message(MessageType.REPLICATE, to=2, sender=1, term=number))
        await until(lambda: len(b.received) == SERVED)
        a.call(b, *(record(number) for number in range(WINDOW_RECORDS + 200)))
        await until(lambda: b.counters.pauses == 1)
        a.send(b, heartbeat(7))
        await until(lambda: b.received[-1].term == 7)
        assert b.counters.calls_received <= WINDOW_RECORDS
        await until(lambda: b.counters.calls_received == WINDOW_RECORDS + 200)
        assert a.connected(b)
        assert not a.lost


def _spin(seconds: float) -> None:
    until_then = time.perf_counter() + seconds
    while time.perf_counter() < until_then:
        pass


@on_loop
async def test_between_frames_whose_calls_take_long_others_have_their_turns() -> None:
    """Values are decoded where records are handed over, and one may take tens of milliseconds."""
    turns: list[str] = []

    def take(_address: str, records: list[list[Any]]) -> None:
        for _ in records:
            turns.append("call")
            _spin(0.002)

    async def other() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            turns.append("other")

    a = CallingHost(called=take)
    async with running(a) as nursery:
        caller = await FakePeer.introduced(a)
        nursery.start_soon(other)
        await caller.send(calls_frame(record(1)) * 4)
        await until(lambda: turns.count("call") == 4)
    first, last = turns.index("call"), len(turns) - turns[::-1].index("call")
    assert turns[first:last].count("other") >= 2, (
        "trio's order is random: two turns beside each other may be of two rounds"
    )


@on_loop
async def test_the_next_connection_needs_no_credit_of_the_last_one() -> None:
    a, callee = CallingHost(), Callee()
    callee.gives_credit = False
    callee.read.set()
    async with calling(a, callee) as address:
        a.call(address, *(record(number) for number in range(WINDOW_RECORDS + 5)))
        await until(lambda: len(callee.calls) == WINDOW_RECORDS)
        lose, callee.lose = callee.lose, trio.CancelScope()
        lose.cancel()
        await until(lambda: a.lost)
        assert [len(unsent) for _, unsent, _ in a.returned] == [5]
        callee.gives_credit = True
        callee.calls.clear()
        a.call(address, *(record(number) for number in range(1000)))
        await until(lambda: len(callee.calls) == 1000)
        assert callee.calls == list(range(1000))


@on_loop
async def test_a_host_that_takes_no_calls_is_sent_none_and_its_callers_are_told_why() -> None:
    a, b = CallingHost(), Host()
    async with running(a, b):
        a.call(b, record(1))
        await until(lambda: a.returned)
        ((where, unsent, why),) = a.returned
        assert (where, numbers(unsent)) == (b.address, [1])
        assert "takes no remote calls: upgrade it" in why
        assert "takes no remote calls" in a.transport.unreached(b.address)
        with pytest.raises(TransportError, match=f"{b.address} takes no remote calls"):
            a.call(b, record(2))
        room = a.transport.call_room(b.address)
        room.admit(record(3))
        with pytest.raises(TransportError, match="takes no remote calls"):
            a.transport.send_calls(b.address, [record(3)], admitted=True)
        assert room.records == 0
        a.send(b, heartbeat(1))
        await until(lambda: b.received)
    assert (a.counters.lost, b.counters.unknown_frames, a.counters.calls_sent) == (0, 0, 0)


@on_loop
async def test_a_host_that_stops_hands_back_what_waits_and_takes_no_more() -> None:
    a, callee = CallingHost(), Callee()
    async with calling(a, callee) as address:
        a.call(address, *(record(number) for number in range(WINDOW_RECORDS + 3)))
        await trio.testing.wait_all_tasks_blocked(0.05)
        room = a.transport.call_room(address)
        await a.stop()
        ((where, unsent, why),) = a.returned
        assert (where, numbers(unsent)) == (address, [WINDOW_RECORDS + number for number in range(3)])
        assert "stops" in why
        assert a.call(address, record(1), record(2)) == 2
        room.admit(record(3))
        assert a.transport.send_calls(address, [record(3)], admitted=True) == 1
        assert (room.records, a.transport.refused_calls) == (0, 3)


@on_loop
async def test_a_host_that_fails_to_take_calls_back_is_logged_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    a, b = CallingHost(calls_handed_back=fail), CallingHost()
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a, b):
        a.call(nowhere, record(1))
        await until(lambda: a.counters.failed)
        a.call(b, record(2))
        await until(lambda: b.calls)
    assert any(each.exc_info for each in caplog.records)


# ---- what a caller may bring


def calls_frame(*records: bytes) -> bytes:
    return encode_frame(FrameKind.CALLS, calls_body(records))


def in_parts(body: bytes) -> list[bytes]:
    writer = PartWriter([body])
    made = []
    while not writer.done:
        made.append(writer.next())
    return made


@on_loop
async def test_a_host_that_is_no_member_may_call_and_gets_credit() -> None:
    a = CallingHost()
    a.transport.members(["10.9.9.9:9"])
    async with running(a):
        caller = await FakePeer.introduced(a, address="10.0.0.1:1")
        for frame in range(4):
            await caller.send(calls_frame(*(record(100 * frame + number) for number in range(100))))
        await until(lambda: len(a.calls) == 400)
        assert a.numbers == list(range(400))
        assert {address for address, _ in a.calls} == {"10.0.0.1:1"}
        credit = await caller.next_frame()
        assert credit.kind == FrameKind.CALLS
        records, _ = struct.unpack(">QQ", credit.body)
        assert CREDIT_RECORDS <= records <= 400


@on_loop
async def test_credit_is_given_after_the_calls_were_handed_over() -> None:
    handed_over: list[int] = []
    credited: list[int] = []
    a = CallingHost(called=lambda _, records: handed_over.extend(numbers(records)))
    give = CallWindow.give

    def watched(window: CallWindow) -> bytes:
        credited.append(len(handed_over))
        return give(window)

    async with running(a):
        caller = await FakePeer.introduced(a)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CallWindow, "give", watched)
            await caller.send(calls_frame(*map(record, range(100))) * 3)
            records, _ = struct.unpack(">QQ", (await caller.next_frame()).body)
            assert credited[0] == records


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([encode_frame(FrameKind.CALLS)], id="no body"),
        pytest.param([encode_frame(FrameKind.CALLS, b"\x80")], id="no records"),
        pytest.param([encode_frame(FrameKind.CALLS, bytes(20))], id="messages"),
        pytest.param([encode_frame(FrameKind.CALLS, struct.pack(">QQ", 0, 0))], id="credit"),
        pytest.param([encode_frame(FrameKind.CALLS, b"\x81\x61a")], id="a record that is none"),
        pytest.param([encode_frame(FrameKind.CALLS, b"\x81\x82\x01\xc0\x60")], id="a tag"),
        pytest.param([calls_frame(record(1, 200 * KIB))], id="a large one in one piece"),
        pytest.param(in_parts(calls_body([record(1, MIB)])), id="longer than a call may be"),
        pytest.param(in_parts(b"\x81\x61" + bytes(200 * KIB)), id="parts of no call"),
        pytest.param(
            in_parts(calls_body([cbor2.dumps([1, [[]] * 500_000])])), id="a list of very many values"
        ),
        pytest.param(
            [calls_frame(*[record(1)] * 128)] * 4 + [calls_frame(record(1))], id="more than the window"
        ),
        pytest.param(
            [calls_frame(record(1, 60 * KIB))] * 4 + [calls_frame(record(1, 60 * KIB))] * 4,
            id="more bytes than the window",
        ),
        pytest.param(
            [calls_frame(*[record(1)] * 128), *in_parts(calls_body([record(1, 300 * KIB)]))],
            id="a large one while credit is due",
        ),
    ],
)
@on_loop
async def test_what_no_host_sends_is_refused(pieces: list[bytes]) -> None:
    """All of it comes in one turn, so it is before any credit."""
    a = CallingHost()
    async with running(a):
        await FakePeer.introduced(a)
        await until(lambda: a.transport._inbound._callers)
        (link,) = a.transport._inbound._callers.values()
        frames = [frame for piece in pieces for frame in FrameReader().feed(piece)]
        with pytest.raises(FrameError):
            await _all_in_one_turn(a, link, frames)


async def _all_in_one_turn(a: CallingHost, link: Any, frames: list[Frame]) -> None:
    frames_of = a.transport._inbound.frames
    with pytest.MonkeyPatch.context() as patch:
        for bound in ("_TURN_UNITS", "_TURN_BYTES", "_TURN_S"):
            patch.setattr(f"drakkar.transport.callers.{bound}", 1 << 30)
        await frames_of.handle(link, frames)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(encode_frame(FrameKind.CALLS, b"\xff" * 20), id="a body that is none"),
        pytest.param(in_parts(calls_body([record(1, 2 * MIB)]))[0], id="longer than a call may be"),
    ],
)
@on_loop
async def test_a_malformed_call_ends_that_connection_and_no_other(
    bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = CallingHost(), CallingHost()
    async with running(a, b):
        b.call(a, record(1))
        await until(lambda: a.calls)
        caller = await FakePeer.introduced(a)
        await caller.send(calls_frame(record(2)))
        await until(lambda: len(a.calls) == 2)
        await caller.send(bad)
        kind, _ = await caller.told()
        assert kind == FrameKind.REFUSED
        b.call(a, record(3))
        await until(lambda: len(a.calls) == 3)
    assert a.numbers == [1, 2, 3]
    assert (a.counters.malformed, a.counters.failed, b.counters.lost) == (1, 0, 0)
    assert any("closed the connection from 127.0.0.1:" in text for text in warnings(caplog))


@on_loop
async def test_useless_calls_get_credit_later_and_delay_no_question_whether_this_host_is_alive() -> None:
    useful: list[int] = []

    def called(address: str, records: list[list[Any]]) -> None:
        if address == "10.0.0.1:1":
            _spin(0.01)
            a.transport.charge_calls(address, len(records))
        else:
            useful.extend(numbers(records))

    a = CallingHost(called=called)
    async with running(a):
        flooding = await FakePeer.introduced(a, address="10.0.0.1:1")
        quiet = await FakePeer.introduced(a, address="10.0.0.2:1")

        body, window = calls_body([record(1)] * 100), CallWindow()
        while window.fits(100, len(body)):
            window.add(100, len(body))
            await flooding.send(encode_frame(FrameKind.CALLS, body))
        await until(lambda: a.counters.pauses)
        assert a.counters.useless > 0
        await flooding.send(encode_frame(FrameKind.PING))
        while (frame := await flooding.next_frame()).kind != FrameKind.PONG:
            window.take(frame.body)  # of the first, which overdrew nothing yet
        assert window.due, "it gets no credit yet"
        await quiet.send(calls_frame(record(1), record(2)))
        await until(lambda: useful == [1, 2])
        while window.due:
            window.take((await flooding.next_frame()).body)


@on_loop
async def test_a_large_call_that_is_not_complete_takes_room_as_a_large_message_does() -> None:
    a = CallingHost()
    first, *rest = in_parts(calls_body([record(1, 600 * KIB)]))
    async with running(a):
        caller = await FakePeer.introduced(a)
        await caller.send(first + encode_messages([heartbeat(1)])[0] + calls_frame(record(2)))
        await until(lambda: a.received and a.calls)
        assert 600 * KIB < a.transport.unfinished_bytes < 601 * KIB
        await caller.send(b"".join(rest))
        await until(lambda: len(a.calls) == 2)
        assert a.numbers == [2, 1]
        assert a.transport.unfinished_bytes == 0


@on_loop
async def test_calls_of_very_many_values_leave_the_loop_turns_for_others() -> None:
    a = CallingHost()
    turns = 0

    async def another_task() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    count = 20
    (frame,) = FrameReader().feed(calls_frame(cbor2.dumps([1, 7, [1000] * (MAX_ITEMS - 4)])))
    async with running(a) as nursery:
        await FakePeer.introduced(a)
        inbound = a.transport._inbound
        await until(lambda: inbound._callers)
        (link,) = inbound._callers.values()
        nursery.start_soon(another_task)
        with pytest.MonkeyPatch.context() as patch:
            # As on a machine where each takes as long as a turn may, or longer.
            patch.setattr("drakkar.transport.callers._TURN_S", 0)
            patch.setattr(CallWindow, "fits", lambda *_: True)
            await inbound.frames.handle(link, [frame] * count)
        assert a.numbers == [7] * count
        assert turns >= count - 1, "one between two of them"
        nursery.cancel_scope.cancel()


@on_loop
async def test_a_host_that_takes_no_calls_drops_and_counts_them_as_frames_that_it_does_not_know() -> None:
    a = Host()
    async with running(a):
        caller = await FakePeer.introduced(a)
        await caller.send(calls_frame(record(1)) + encode_messages([heartbeat(1)])[0])
        await until(lambda: a.received)
        assert (a.counters.unknown_frames, a.counters.useless, a.counters.malformed) == (1, 0, 0)


@on_loop
async def test_only_hosts_that_take_calls_say_so() -> None:
    a, b, c = CallingHost(features=["streams"]), CallingHost(), Host()
    async with running(a, b, c):
        b.send(a, heartbeat(1))
        b.send(c, heartbeat(1))
        await until(lambda: a.received and c.received)
        peers = b.transport.peers()
        assert peers[a.address].features == {"streams", CALLS_FEATURE, ALIVE_FEATURE}
        assert peers[c.address].features == {ALIVE_FEATURE}
