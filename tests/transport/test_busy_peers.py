"""A peer that takes less than is sent to it: what overtakes, who waits for room, and what is handed back."""

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.transport import peer
from drakkar.transport.frames import Frame, FrameKind
from drakkar.transport.message_frames import decode_messages
from drakkar.transport.options import Options
from drakkar.transport.parts import PartReader

from tests.ports import free_ports
from tests.transport.support import (
    HEARTBEAT,
    FakePeer,
    Host,
    heartbeat,
    listening,
    on_loop,
    running,
    until,
    welcome,
)

KIB, MIB = 1 << 10, 1 << 20
ONE_TRY = Options(backoff_first=1000, backoff_last=1000)


def replicate(shard: int, number: int = 1, size: int = 100 * KIB) -> Message:
    entries = (Entry(number, 1, payload=bytes(size)),)
    return Message(MessageType.REPLICATE, to=2, sender=1, shard=shard, term=number, entries=entries)


def propose(shard: int, size: int = 10) -> Message:
    return Message(MessageType.PROPOSE, to=2, sender=1, shard=shard, entries=(Entry(payload=bytes(size)),))


class BusyHost(Host):
    """It asks for room, and hears what becomes of it."""

    def __init__(self, **settings: Any) -> None:
        self.drained: list[list[int]] = []
        self.unsent: list[Message] = []
        settings = {
            "drained": lambda _, shards: self.drained.append(list(shards)),
            "handed_back": lambda _, messages: self.unsent.extend(messages),
        } | settings
        super().__init__(**settings)

    def fill(self, to: str, shard: int = 1, **fields: Any) -> int:
        """Send to a peer that does not read until its lane has no room; return how many messages."""
        number = 0
        while self.transport.room(to, shard):
            number += 1
            assert self.send(to, replicate(shard, number, **fields)) == 0
        return number


class SlowPeer:
    """A peer that reads when it is told to."""

    def __init__(self) -> None:
        self.read = trio.Event()
        self.connected = trio.Event()
        self.messages: list[Message] = []
        self.bytes_before: dict[MessageType, int] = {}
        """Bytes that came before the first message of each type."""
        self.lose = trio.CancelScope()

    async def answer(self, caller: FakePeer) -> None:
        await welcome(caller)
        self.connected.set()
        parts = PartReader(64 * MIB)
        size = 0
        with self.lose:
            await self.read.wait()
            while True:
                frame = await caller.next_frame()
                for message in _messages(frame, parts):
                    self.bytes_before.setdefault(message.type, size)
                    self.messages.append(message)
                size += len(frame.body)


def _messages(frame: Frame, parts: PartReader) -> list[Message]:
    body: Any = frame.body
    if frame.kind == FrameKind.PART:
        body = parts.feed(body)
    elif frame.kind != FrameKind.MESSAGES:
        return []
    return [] if body is None else decode_messages(body).messages


@asynccontextmanager
async def slow_peer(a: Host) -> AsyncIterator[tuple[str, SlowPeer]]:
    """A peer to which `a` is connected, and that does not read yet."""
    slow = SlowPeer()
    async with listening(slow.answer) as address, running(a):
        a.send(address, heartbeat(0))
        await until(lambda: a.connected(address))
        yield address, slow


# ---- control and bulk


@pytest.mark.parametrize("size", [50 * KIB, 4 * MIB])
@on_loop
async def test_control_overtakes_a_full_lane_of_bulk(size: int) -> None:
    a = BusyHost()
    async with slow_peer(a) as (address, slow):
        sent = 0
        while a.transport.room(address, 1):
            sent += 1
            a.send(address, replicate(1, sent, size))
            await trio.lowlevel.checkpoint()
        assert a.transport.peers()[address].bulk_bytes > 20 * MIB
        a.send(address, Message(MessageType.REQUEST_VOTE, to=2, sender=1, shard=1, term=9))
        slow.read.set()
        await until(lambda: len(slow.messages) == sent + 2)
    assert slow.bytes_before[MessageType.REQUEST_VOTE] < 3 * MIB  # what the kernels of both sides had taken
    assert [m.term for m in slow.messages if m.type is MessageType.REPLICATE] == list(range(1, sent + 1))


@on_loop
async def test_an_order_to_campaign_can_be_recalled_until_the_kernel_has_it() -> None:
    a = BusyHost()
    order = Message(MessageType.TIMEOUT_NOW, to=2, sender=1, shard=1, term=9)
    other = Message(MessageType.TIMEOUT_NOW, to=2, sender=1, shard=2, term=9)
    async with slow_peer(a) as (address, slow):
        a.fill(address)
        await trio.testing.wait_all_tasks_blocked(0.05)
        a.send(address, order, other)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert a.transport.recall(address, order) == 1
        assert a.transport.recall(address, order) == 0
        assert a.transport.recall("127.0.0.1:1", order) == 0
        assert a.counters.recalled == 1
        slow.read.set()
        await until(lambda: other in slow.messages)
        assert order not in slow.messages


@on_loop
async def test_a_shard_with_little_to_send_is_not_behind_one_with_much() -> None:
    a = BusyHost()
    async with slow_peer(a) as (address, slow):
        for number in range(1, 200):
            a.send(address, replicate(1, number))
            await trio.lowlevel.checkpoint()
        a.send(address, replicate(2, size=KIB))
        slow.read.set()
        await until(lambda: any(message.shard == 2 for message in slow.messages))
        before = sum(
            message.shard == 1 for message in slow.messages[: slow.messages.index(replicate(2, size=KIB))]
        )
        assert before < 40


@on_loop
async def test_the_kernel_takes_little_ahead_of_control() -> None:
    """Else votes and heartbeats would wait behind megabytes that no lane can be asked for."""
    a = BusyHost()
    async with slow_peer(a) as (address, _):
        a.fill(address)
        await trio.testing.wait_all_tasks_blocked(0.05)
        sent = a.counters.sent_bytes
        assert sent < MIB
        a.send(address, *(replicate(2, number) for number in range(1, 20)))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert a.counters.sent_bytes == sent


@on_loop
async def test_the_kernel_is_told_how_little_to_take() -> None:
    a, b = Host(), Host()
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)
        await trio.testing.wait_all_tasks_blocked()
        with socket.socket(fileno=os.dup(a.transport._peers[b.address]._ready_fd)) as same:
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 256 * KIB


@on_loop
async def test_what_is_written_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that takes everything must not keep the loop from its other tasks and actors."""
    a = BusyHost()
    async with slow_peer(a) as (address, slow):
        slow.read.set()
        await until(lambda: slow.messages)
        await trio.testing.wait_all_tasks_blocked()
        sent = a.counters.sent_bytes
        monkeypatch.setattr(peer, "os", SimpleNamespace(write=lambda _, data: len(data)))
        a.send(address, *(replicate(1, number) for number in range(1, 100)))
        assert 512 * KIB <= a.counters.sent_bytes - sent < 800 * KIB


# ---- room


@on_loop
async def test_a_peer_that_is_not_connected_has_no_room_and_is_dialed_and_has_it_then() -> None:
    a, b = BusyHost(), Host()
    async with running(a, b):
        assert a.transport.room(b.address, 7) == a.transport.room(b.address, 3) == 0
        assert a.transport.peers()[b.address].busy_shards == 2
        await until(lambda: a.drained)
        assert a.drained == [[7, 3]]
        assert a.connected(b)
        assert a.transport.room(b.address, 3) == UNLIMITED
        assert (a.counters.busy, a.counters.connects, a.counters.sent) == (0, 1, 0)


@on_loop
async def test_a_peer_that_cannot_be_reached_is_told_of_to_those_that_waited_and_nothing_drains() -> None:
    a = BusyHost(options=ONE_TRY)
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a):
        assert a.transport.room(nowhere, 1) == 0
        await until(lambda: a.lost)
        assert (a.lost, a.drained, a.transport.peers()[nowhere].busy_shards) == ([nowhere], [], 0)


@on_loop
async def test_a_host_that_has_stopped_has_no_room() -> None:
    a, b = BusyHost(), Host()
    async with running(a, b):
        await a.stop()
        assert (a.transport.room(b.address, 1), a.transport.waiting(b.address, 1)) == (0, 0)


@on_loop
async def test_the_shards_hear_of_room_in_the_order_in_which_they_were_refused() -> None:
    a = BusyHost(options=Options(queue_bytes=4 * MIB))
    async with slow_peer(a) as (address, slow):
        a.fill(address)
        shards = [5, 9, 2, 8, 1, 7, 3, 6]
        assert [a.transport.room(address, shard, 100 * KIB) for shard in shards] == [0] * 8
        status = a.transport.peers()[address]
        assert status.busy_shards == 8
        assert 3 * MIB <= status.bulk_bytes <= 3 * MIB + 101 * KIB
        told_at: list[int] = []
        record, bulk = a.transport._on_drained, a.transport._peers[address]._bulk
        assert record is not None
        a.transport._on_drained = lambda *told: (told_at.append(bulk.bytes), record(*told))
        slow.read.set()
        await until(lambda: sum(map(len, a.drained)) == 8)
        assert told_at[0] > MIB  # not only when nothing waits any more
        # Shard 1 was refused first, as it filled the lane.
        assert [shard for told in a.drained for shard in told] == [
            1,
            *(shard for shard in shards if shard != 1),
        ]
        assert all(len(told) <= 4 for told in a.drained)  # a quarter of the budget for each


@on_loop
async def test_shards_that_always_have_more_to_send_starve_no_other() -> None:
    """Forty shards that send whenever they get room, four of them without end."""
    a = BusyHost(options=Options(queue_bytes=MIB))
    finished: set[int] = set()

    def send(shard: int) -> None:
        while (room := a.transport.room(address, shard)) and shard not in finished:
            if shard > 4 and room:
                finished.add(shard)
            assert a.send(address, replicate(shard, size=50 * KIB)) == 0

    a.transport._on_drained = lambda _, shards: [send(shard) for shard in shards]
    async with slow_peer(a) as (address, slow), trio.open_nursery() as nursery:

        async def insist() -> None:
            while True:
                for shard in range(1, 5):
                    send(shard)
                await trio.lowlevel.checkpoint()

        slow.read.set()
        nursery.start_soon(insist)
        await until(lambda: a.counters.busy > 4)
        for shard in range(5, 41):
            send(shard)
        sent = a.counters.sent
        await until(lambda: len(finished) == 36)
        nursery.cancel_scope.cancel()
    assert a.counters.sent - sent < 1500
    assert a.unsent == []


@on_loop
async def test_what_was_let_in_is_never_handed_back_and_what_is_full_takes_nothing() -> None:
    limit = 2 * MIB
    a = BusyHost(options=Options(queue_bytes=limit))
    async with slow_peer(a) as (address, slow):
        sent = a.fill(address, size=300 * KIB)
        assert (a.unsent, a.counters.handed_back) == ([], 0)
        for number in range(30):  # without asking
            a.send(address, replicate(2, number, 300 * KIB))
        status = a.transport.peers()[address]
        assert limit <= status.bulk_bytes < limit + 301 * KIB
        assert [message.shard for message in a.unsent] == [2] * len(a.unsent)
        kept = 30 - len(a.unsent)
        assert [message.term for message in a.unsent] == list(range(kept, 30))
        assert (a.counters.handed_back, a.counters.dropped, a.lost) == (len(a.unsent), 0, [])
        slow.read.set()
        await until(lambda: len(slow.messages) == 1 + sent + kept)
        assert Counter(message.shard for message in slow.messages if message.entries) == {1: sent, 2: kept}


@on_loop
async def test_messages_wait_until_they_have_left() -> None:
    a = BusyHost()
    async with slow_peer(a) as (address, slow):
        a.send(address, *(replicate(shard, number, MIB) for number in range(1, 9) for shard in (1, 2)))
        assert [a.transport.waiting(address, shard) for shard in (1, 2, 3)] == [8, 8, 0]
        slow.read.set()
        await until(lambda: len(slow.messages) == 17)
        assert [a.transport.waiting(address, shard) for shard in (1, 2, 3)] == [0, 0, 0]


@on_loop
async def test_a_command_larger_than_half_the_lane_gets_its_turn_beside_shards_without_end() -> None:
    a = BusyHost(options=Options(queue_bytes=4 * MIB))
    large, sent = 3 * MIB, False
    window: Counter[int] = Counter()

    def fill(shard: int) -> None:
        while a.transport.waiting(address, shard) < 8 and a.transport.room(address, shard, 100 * KIB):
            assert a.send(address, replicate(shard)) == 0
            window[shard] += 1

    def send_large() -> None:
        nonlocal sent
        if a.transport.room(address, 99) and a.transport.room(address, 99, large):
            assert a.send(address, replicate(99, size=large - KIB)) == 0
            sent = True

    def go_on(_: str, shards: list[int]) -> None:
        for shard in shards:
            send_large() if shard == 99 else fill(shard)

    a.transport._on_drained = go_on  # type: ignore[assignment]
    async with slow_peer(a) as (address, slow), trio.open_nursery() as nursery:

        async def insist() -> None:
            while True:
                for shard in range(1, 9):
                    fill(shard)
                await trio.lowlevel.checkpoint()

        slow.read.set()
        nursery.start_soon(insist)
        await until(lambda: a.counters.busy > 8)
        before = a.counters.sent
        send_large()
        assert not sent
        await until(lambda: sent or a.counters.sent > before + 2000)
        nursery.cancel_scope.cancel()
    assert sent
    assert a.counters.sent < before + 300
    assert a.unsent == []


@on_loop
async def test_a_shard_with_little_to_send_has_room_beside_many_that_wait() -> None:
    """Its reserve is small, and so is what all such shards take together."""
    a = BusyHost(options=Options(queue_bytes=8 * MIB))
    async with slow_peer(a) as (address, slow):
        a.fill(address)
        assert [a.transport.room(address, shard) for shard in range(1, 25)] == [0] + [64 * KIB] * 23
        assert [a.transport.room(address, shard, MIB) for shard in range(1, 25)] == [0] * 24
        quiet = range(101, 1001)
        assert a.transport.room(address, 101) == 64 * KIB
        let_in = []
        for shard in quiet:
            if a.transport.room(address, shard, 50 * KIB):
                assert a.send(address, replicate(shard, size=50 * KIB)) == 0
                let_in.append(shard)
        assert let_in == list(quiet[: len(let_in)])
        assert 20 < len(let_in) <= 2 * MIB // (50 * KIB) + 1
        assert a.transport.room(address, 101) == 0, "something of it waits"
        assert a.unsent == []
        slow.read.set()
        await until(lambda: not a.transport.peers()[address].busy_shards)
        assert sum(map(len, a.drained)) == 24 + len(quiet) - len(let_in) + 1


@on_loop
async def test_a_leader_whose_append_was_handed_back_hears_of_room() -> None:
    a = BusyHost(options=Options(queue_bytes=2 * MIB))
    async with slow_peer(a) as (address, slow):
        filling = (replicate(1, number, 300 * KIB) for number in range(8))
        a.send(address, *filling, replicate(2), propose(3))
        assert [message.shard for message in a.unsent] == [1, 2, 3]
        slow.read.set()
        await until(lambda: a.drained)
        assert a.drained == [[1, 2]], "and not the shard whose client hears of its proposal"


@on_loop
async def test_it_hears_of_room_though_an_idle_socket_took_all_the_others_at_once() -> None:
    a, b = BusyHost(options=Options(queue_bytes=100 * KIB, keepalive=1000)), Host()
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)
        await trio.testing.wait_all_tasks_blocked()
        a.send(b, *(replicate(1, number, 40 * KIB) for number in range(4)))
        assert [message.term for message in a.unsent] == [3]
        await until(lambda: a.drained == [[1]])


@on_loop
async def test_a_shard_that_heard_of_room_has_none_where_another_has_filled_the_lane_since() -> None:
    a = BusyHost(options=Options(queue_bytes=4 * MIB))
    async with slow_peer(a) as (address, slow):
        a.fill(address)
        assert [a.transport.room(address, shard, MIB) for shard in (1, 2)] == [0, 0]
        slow.read.set()
        await until(lambda: sum(map(len, a.drained)) == 2)
        assert a.transport.room(address, 1, 16 * MIB) >= 16 * MIB
        a.send(address, replicate(1, size=16 * MIB))
        assert a.transport.room(address, 2, MIB) == 0
        assert a.counters.handed_back == 0
        await until(lambda: len(a.drained) > 1)
        assert a.drained[-1] == [2]


# ---- losses


@on_loop
async def test_a_lost_connection_is_told_once_and_drops_what_waits_but_hands_proposals_back() -> None:
    a = BusyHost(options=ONE_TRY)
    async with slow_peer(a) as (address, slow):
        filled = a.fill(address)
        assert a.transport.room(address, 2, MIB) == 0
        proposals = [propose(shard, 2 * MIB) for shard in (3, 4)]  # more than the kernel takes
        a.send(address, *proposals)
        slow.lose.cancel()
        await until(lambda: a.lost)
        status = a.transport.peers()[address]
        assert (status.queued_messages, status.queued_bytes, status.busy_shards) == (0, 0, 0)
        assert a.unsent == proposals
        assert a.counters.handed_back == 2
        assert a.counters.dropped > 100
        assert a.counters.sent + a.counters.dropped == 1 + filled  # the first was a heartbeat
        assert (a.lost, a.drained) == ([address], [])


@on_loop
async def test_proposals_to_a_peer_that_cannot_be_reached_are_handed_back() -> None:
    a = BusyHost(options=ONE_TRY)
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a):
        a.send(nowhere, propose(1), replicate(1), heartbeat(1))
        await until(lambda: a.lost)
        assert (a.unsent, a.counters.dropped) == ([propose(1)], 2)


@on_loop
async def test_a_message_in_parts_that_a_connection_interrupts_is_sent_whole_or_not_at_all() -> None:
    a = BusyHost()
    async with slow_peer(a) as (address, slow):
        a.send(address, replicate(1, 1, 20 * MIB))
        await until(lambda: a.counters.sent_bytes > 100 * KIB)
        slow.lose.cancel()
        await until(lambda: a.lost)
        slow.lose = trio.CancelScope()
        slow.read.set()
        await until(lambda: a.send(address, heartbeat(1)) or a.connected(address))
        a.send(address, replicate(1, 2, MIB))
        await until(lambda: any(message.entries for message in slow.messages))
        assert [message.term for message in slow.messages if message.entries] == [2]


# ---- rounds


@on_loop
async def test_what_a_round_sends_leaves_in_one_write_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []

    def write(fd: int, data: bytes) -> int:
        writes.append(fd)
        return os.write(fd, data)

    monkeypatch.setattr(peer, "os", SimpleNamespace(write=write))
    put_off: list[Callable[[], object]] = []
    a, b, c = BusyHost(at_round_end=put_off.append), Host(), Host()

    def end_round() -> None:
        due = put_off.copy()
        put_off.clear()
        for action in due:
            action()

    async with running(a, b, c):
        a.send(b, heartbeat(0))
        a.send(c, heartbeat(0))
        end_round()
        await until(lambda: b.received and c.received)
        await trio.testing.wait_all_tasks_blocked()
        sent = a.counters.sent_bytes
        for shard in range(1, 301):
            a.send(b, replicate(shard, size=16))
            a.send(b, Message(HEARTBEAT, to=2, sender=1, shard=shard))
            a.send(c, Message(HEARTBEAT, to=3, sender=1, shard=shard))
        assert (len(put_off), a.counters.sent_bytes) == (1, sent)
        writes.clear()
        assert a.transport.waiting(b.address, 7) == 1
        end_round()
        assert len(writes) == len(set(writes)) == 2  # one for each peer
        assert a.transport.waiting(b.address, 7) == 0
        await until(lambda: len(b.received) == 601 and len(c.received) == 301)
        assert [message.type for message in b.received[1:301]] == [HEARTBEAT] * 300


@on_loop
async def test_messages_are_delivered_within_a_call_that_does_what_they_cause_at_once() -> None:
    rounds: list[str] = []

    def run_now(fn: Callable[[], object]) -> None:
        rounds.append("begin")
        fn()
        rounds.append("end")

    a, b = Host(), Host(run_now=run_now, deliver=lambda *_: rounds.append("deliver"))
    async with running(a, b):
        a.send(b)
        await until(lambda: rounds)
    assert rounds == ["begin", "deliver", "end"]
