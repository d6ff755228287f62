"""Streams over real sockets on the loopback interface."""

import errno
import logging
import math
import os
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from drakkar.handlers.errors import ConfigError, CorruptData, DrakkarError, StorageFailed, TransportError
from drakkar.transport.addresses import parse_address
from drakkar.transport.bandwidth import Bandwidth
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.hello import decode_reason, encode_hello, encode_reason
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.options import Options
from drakkar.transport.stream_frames import STREAM_HEADER_LIMIT, encode_stream_end, encode_stream_piece
from drakkar.transport.streams import describe

from tests.ports import free_ports
from tests.transport.support import (
    QUICK,
    FakePeer,
    Host,
    heartbeat,
    hello,
    listening,
    on_loop,
    open_files,
    running,
    until,
    warnings,
    welcome,
)
from tests.transport.test_tls import Files

MIB = 1 << 20
PIECE_BYTES = Bandwidth(math.inf).piece
CALM = Options(keepalive=60)
"""No sign of life is due while a test runs, so that as many bytes travel each time."""
LIVELY = Options(keepalive=0.02, answer_timeout=0.4)
LOST = "the other side closed|reset|Broken pipe"


class Source:
    """Gives `data` in pieces of many lengths."""

    def __init__(self, data: bytes, sizes: tuple[int, ...] = (MIB, 1, 300_000, 4096)) -> None:
        self.data, self.sizes, self.at, self.reads = data, sizes, 0, 0

    async def read(self) -> bytes:
        size = self.sizes[self.reads % len(self.sizes)]
        piece = self.data[self.at : self.at + size]
        self.at += len(piece)
        self.reads += 1
        return piece


class Zeros:
    """Gives `count` MiB, each made when it is asked for."""

    def __init__(self, count: int = 1 << 20) -> None:
        self.left = count

    async def read(self) -> bytes:
        self.left -= 1
        return bytes(MIB) if self.left >= 0 else b""


class Sink:
    """Keeps what comes, and what it was told; a test may hook into what it does."""

    def __init__(self, sender: str, header: bytes) -> None:
        self.sender, self.header = sender, header
        self.data = bytearray()
        self.writes = self.finished = 0
        self.aborts: list[Exception] = []

    async def begin(self) -> None:
        await trio.lowlevel.checkpoint()

    async def write(self, data: bytes) -> None:
        self.data += data
        self.writes += 1

    async def finish(self) -> None:
        self.finished += 1

    async def abort(self, error: Exception) -> None:
        await trio.lowlevel.checkpoint()  # fails where the call is not shielded
        self.aborts.append(error)


class Receiver(Host):
    """A host that takes streams in."""

    def __init__(self, *args: Any, sink: type[Sink] = Sink, **settings: Any) -> None:
        self.sinks: list[Sink] = []
        self.members: list[bool] = []
        self.sink = sink
        super().__init__(*args, **{"streams": self.begin} | settings)

    def begin(self, sender: str, header: bytes, member: bool) -> Sink:
        self.members.append(member)
        sink = self.sink(sender, header)
        self.sinks.append(sink)
        return sink


async def send(a: Host, b: "Host | str", data: bytes = b"some bytes", header: bytes = b"what it is") -> None:
    await a.transport.send_stream(b if isinstance(b, str) else b.address, header, Source(data))


async def fails(a: Host, b: "Host | str", source: Any = None, match: str | None = None) -> TransportError:
    """Send a stream that does not arrive; return why."""
    with pytest.raises(TransportError, match=match) as caught:
        await a.transport.send_stream(b if isinstance(b, str) else b.address, b"", source or Zeros())
    return caught.value


async def still_works(a: Host, b: Receiver) -> None:
    """Messages and streams still work."""
    b.sink = Sink
    b.received.clear()
    a.send(b, heartbeat(77))
    await send(a, b, b"afterwards")
    assert (b.sinks[-1].data, b.sinks[-1].finished, b.sinks[-1].aborts) == (b"afterwards", 1, [])
    await until(lambda: heartbeat(77) in b.received)
    await until(lambda: len(b.transport._admission.streams) == 0)
    assert not a.transport._outgoing_streams._running


# ---- streams go there


@on_loop
async def test_a_stream_of_many_megabytes_arrives_as_it_was_sent() -> None:
    a, b = Host(), Receiver()
    data = os.urandom(20 * MIB)
    async with running(a, b):
        await send(a, b, data, b"h" * STREAM_HEADER_LIMIT)
    (sink,) = b.sinks
    assert (sink.sender, sink.header) == (a.address, b"h" * STREAM_HEADER_LIMIT)
    assert sink.data == data
    assert (sink.finished, sink.aborts) == (1, [])
    assert (a.counters.streams_sent, a.counters.stream_bytes_sent) == (1, 20 * MIB)
    assert (b.counters.streams_received, b.counters.stream_bytes_received) == (1, 20 * MIB)
    assert a.counters.streams_failed == b.counters.streams_failed == b.counters.malformed == 0


@on_loop
async def test_an_empty_stream_arrives_too() -> None:
    a, b = Host(), Receiver()
    async with running(a, b):
        await send(a, b, b"", b"")
    assert [(sink.header, sink.data, sink.finished) for sink in b.sinks] == [(b"", b"", 1)]


@on_loop
async def test_streams_of_several_hosts_and_both_directions_pass_at_the_same_time() -> None:
    a, b, c = Receiver(), Receiver(), Receiver()
    pairs = [(a, b), (a, b), (b, a), (c, b), (c, a), (a, a)]
    data = [os.urandom(2 * MIB) for _ in pairs]
    async with running(a, b, c), trio.open_nursery() as nursery:
        for (sender, receiver), sent in zip(pairs, data, strict=True):
            nursery.start_soon(send, sender, receiver, sent)
    arrived = sorted(bytes(sink.data) for host in (a, b, c) for sink in host.sinks)
    assert arrived == sorted(data)


@pytest.mark.parametrize("end", [0, 1], ids=["at the sender", "at the receiver"])
@on_loop
async def test_a_stream_ends_where_other_certificates_are_trusted(tmp_path: Path, end: int) -> None:
    """It may be one of those that are not any more. A new one tells."""
    files = Files(tmp_path)
    a, b = Host(tls=files.config()), Receiver(tls=files.config())

    async def change() -> None:
        await until(lambda: b.sinks and b.sinks[0].writes)
        transport = (a, b)[end].transport
        transport.use_certificates(files.config(allowed=["127.0.0.1"]).load(), transport.credentials)

    async with running(a, b) as nursery:
        nursery.start_soon(change)
        await fails(a, b, match=("trusts other certificates", LOST)[end])
        await until(lambda: b.sinks[0].aborts)
        await still_works(a, b)


def test_a_stream_passes_over_tls(tmp_path: Path) -> None:
    files = Files(tmp_path)

    @on_loop
    async def scenario() -> None:
        a, b = Host(tls=files.config()), Receiver(tls=files.config())
        data = os.urandom(3 * MIB)
        plain = Host(options=Options(connect_timeout=0.2))
        async with running(a, b, plain):
            await send(a, b, data)
            assert b.sinks[0].data == data
            await fails(plain, b, match="0 bytes of it were sent")

            class Full(Sink):
                async def write(self, data: bytes) -> None:
                    raise TransportError("no room")

            b.sink = Full
            await fails(a, b, match="no room")
            await still_works(a, b)

    scenario()


@on_loop
async def test_messages_go_on_while_a_stream_passes_and_keep_their_connection() -> None:
    """Of the heartbeats that leave, one with each piece that arrives, never more than a few are on their way."""

    class Counting(Sink):
        async def write(self, data: bytes) -> None:
            await super().write(data)
            a.send(b, heartbeat(self.writes))
            behind.append(self.writes - len(b.received))

    a, b = Host(), Receiver(sink=Counting)
    behind: list[int] = []
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)
        (caller,) = b.transport._inbound._callers.values()
        b.received.clear()
        await send(a, b, bytes(30 * MIB))
        await until(lambda: len(b.received) == len(behind))
        assert list(b.transport._inbound._callers.values()) == [caller]
    assert len(behind) > 100
    assert max(behind) <= 5
    assert (a.counters.connects, a.counters.lost, b.counters.accepted) == (1, 0, 1)


@on_loop
async def test_memory_does_not_grow_with_the_stream() -> None:
    class Forgetful(Sink):
        async def write(self, data: bytes) -> None:
            self.writes += 1

    a, b = Host(options=Options(stream_bytes_per_second=math.inf)), Receiver(sink=Forgetful)
    async with running(a, b):
        await a.transport.send_stream(b.address, b"", Zeros(1))
        tracemalloc.start()
        try:
            await a.transport.send_stream(b.address, b"", Zeros(64))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert b.counters.stream_bytes_received == 65 * MIB
    assert peak < 8 * MIB


@on_loop
async def test_a_sink_that_takes_its_time_holds_the_source_up() -> None:
    class Gated(Sink):
        async def write(self, data: bytes) -> None:
            await gate.wait()
            await super().write(data)

    gate = trio.Event()
    a, b = Host(options=Options(stream_bytes_per_second=math.inf)), Receiver(sink=Gated)
    source = Zeros(60)
    async with running(a, b) as nursery:
        nursery.start_soon(a.transport.send_stream, b.address, b"", source)
        await until(lambda: b.sinks)
        # Until the buffers of the kernel are full, which hold some megabytes.
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert source.left > 20
        gate.set()
        await until(lambda: a.counters.streams_sent)
    assert len(b.sinks[0].data) == 60 * MIB


# ---- signs of life


@on_loop
async def test_a_sink_that_finishes_for_a_long_time_is_waited_for_and_done_is_said_after_it() -> None:
    class Slow(Sink):
        async def finish(self) -> None:
            # Thirty signs of life take longer than a host without any is waited for.
            before = a.counters.received_bytes
            await until(lambda: a.counters.received_bytes >= before + 30 * 16)
            assert a.counters.streams_sent == 0
            await super().finish()

    a, b = Host(options=LIVELY), Receiver(sink=Slow, options=LIVELY)
    async with running(a, b):
        await send(a, b)
    assert (b.sinks[0].finished, b.sinks[0].aborts) == (1, [])


@on_loop
async def test_a_source_that_reads_for_a_long_time_is_waited_for() -> None:
    class Slow(Source):
        async def read(self) -> bytes:
            before = b.counters.received_bytes
            await until(lambda: b.counters.received_bytes >= before + 30 * 16)
            return await super().read()

    a, b = Host(options=LIVELY), Receiver(options=LIVELY)
    async with running(a, b):
        await a.transport.send_stream(b.address, b"", Slow(b"some bytes"))
    assert b.sinks[0].data == b"some bytes"


@on_loop
async def test_a_receiver_that_vanished_without_a_word_is_noticed() -> None:
    async def take_everything_and_say_nothing(caller: FakePeer) -> None:
        await welcome(caller)
        while True:
            await caller.next_frame()

    a = Host(options=Options(keepalive=0.05, answer_timeout=0.05))
    async with listening(take_everything_and_say_nothing) as silent, running(a):
        error = await fails(a, silent, Zeros(2), "nothing came for")
    assert f"the stream to {silent} was not delivered; {2 * MIB} bytes" in str(error)
    assert a.counters.streams_failed == 1


@on_loop
async def test_a_receiver_that_takes_nothing_is_given_up_after_the_send_timeout() -> None:
    async def say_nothing(caller: FakePeer) -> None:
        await welcome(caller)
        await trio.sleep_forever()

    a = Host(options=Options(send_timeout=0.1, keepalive=60))
    async with listening(say_nothing) as stuck, running(a):
        await fails(a, stuck, match=r"took nothing for 0\.1 s")


@on_loop
async def test_a_sender_that_vanished_without_a_word_is_noticed() -> None:
    b = Receiver(options=Options(keepalive=0.05, answer_timeout=0.05))
    async with running(b):
        caller = await stream_of_fake_peer(b, PIECE)
        await until(lambda: b.sinks and b.sinks[0].aborts)
        await caller.closed()
    assert "nothing came for" in str(b.sinks[0].aborts[0])
    assert b.counters.streams_failed == 1


@on_loop
async def test_an_address_without_a_listener_fails_at_once() -> None:
    a = Host()
    async with running(a):
        await fails(a, f"127.0.0.1:{free_ports(1)[0]}", match="0 bytes of it were sent: .*refused")
        await fails(a, "no address", match="write it as")
    assert a.counters.streams_failed == 2


# ---- refusals


def failing(stage: str, error: Exception) -> type[Sink]:
    """A sink that fails at `stage`."""

    class Failing(Sink):
        def __init__(self, sender: str, header: bytes) -> None:
            if stage == "made":
                raise error
            super().__init__(sender, header)

        async def begin(self) -> None:
            if stage == "begin":
                raise error

        async def write(self, data: bytes) -> None:
            await super().write(data)
            if stage == "write" and self.writes == 3:
                raise error

        async def finish(self) -> None:
            if stage == "finish":
                raise error

    return Failing


SECRET = "/srv/drakkar/host-1/snapshots"
"""A path of the receiver."""


@pytest.mark.parametrize("stage", ["made", "begin", "write", "finish"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(TransportError("this is of no use here"), "this is of no use here", id="refused"),
        pytest.param(CorruptData(f"{SECRET}/1 is no snapshot"), "it was damaged on its way", id="damaged"),
        pytest.param(StorageFailed(f"{SECRET}/1 cannot be written"), "cannot use its disk", id="disk"),
        pytest.param(
            OSError(errno.ENOSPC, "this disk is full", f"{SECRET}/1"), "failure of its own", id="failed"
        ),
    ],
)
@on_loop
async def test_the_sender_reads_why_the_receiver_does_not_want_it(
    stage: str, error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it was sending as fast as it can. And what comes after a refusal is not taken for the rest of it.

    The sender reads no path. The log of the receiver has all of it, once.
    """
    a = Host(options=Options(stream_bytes_per_second=math.inf))
    b = Receiver()
    async with running(a, b):
        for count in range(1, 6):
            b.sink = failing(stage, error)
            failure = await fails(a, b, Zeros(10), match=f"the stream to {b.address} .*: refused: .*{said}")
            assert SECRET not in str(failure)
            assert a.counters.streams_failed == b.counters.streams_failed == count
            assert b.counters.failed == (0 if isinstance(error, DrakkarError) else count)
            assert b.counters.malformed == b.counters.streams_received == 0
            assert all(sink.aborts == [error] for sink in b.sinks)
            b.sinks.clear()
            await still_works(a, b)
            b.sinks.clear()
            b.counters.streams_received = 0
    came = {"write": 2 * PIECE_BYTES, "finish": 10 * MIB}.get(stage, 0)
    line = f"the stream from {a.address} was not stored; {came} bytes of it came: {describe(error)}"
    assert [text for text in warnings(caplog) if "was not stored" in text] == [line]
    assert len([text for text in warnings(caplog) if "was not delivered" in text]) == 1


@on_loop
async def test_a_refusal_is_read_although_the_connection_was_reset_right_after_it() -> None:
    """Unlike a host of ours, this one does not wait until its last word was read."""

    async def refuse_and_hang_up(caller: FakePeer) -> None:
        await welcome(caller)
        await trio.testing.wait_all_tasks_blocked(0.02)  # the buffers are full, and the sender waits
        os.write(caller.stream.socket.fileno(), encode_reason("no room"))
        caller.stream.socket.close()

    a = Host(options=Options(stream_bytes_per_second=math.inf))
    async with listening(refuse_and_hang_up) as rude, running(a):
        for _ in range(10):
            await fails(a, rude, match="refused: no room")


@on_loop
async def test_a_host_without_a_receiver_for_streams_refuses_them() -> None:
    a, b = Host(), Host()
    async with running(a, b):
        await fails(a, b, match="takes no streams")
        a.send(b)
        await until(lambda: b.received)


@on_loop
async def test_another_deployment_is_refused() -> None:
    a, b = Host(deployment_id="blue"), Receiver(deployment_id="green")
    async with running(a, b):
        await fails(a, b, match="same deployment_id")
    assert (a.counters.refused, b.counters.refused, b.sinks) == (1, 1, [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EIO, "this disk is broken", SECRET), "a failure of its own (OSError)"),
        (CorruptData(f"{SECRET}: this disk is broken"), "what it has is damaged"),
        (StorageFailed(f"{SECRET}: this disk is broken"), "it cannot use its disk now"),
    ],
)
@on_loop
async def test_a_source_that_fails_is_told_to_both(error: Exception, told: str) -> None:
    """To the receiver without what only the host itself is to know."""

    class Broken(Source):
        async def read(self) -> bytes:
            if self.reads == 2:
                raise error
            return await super().read()

    a, b = Host(), Receiver()
    async with running(a, b):
        failure = await fails(a, b, Broken(bytes(5 * MIB)), match="this disk is broken")
        assert failure.__cause__ is error
        assert f"{MIB + 1} bytes" in str(failure)
        await until(lambda: b.sinks[0].aborts)
        (abort,) = b.sinks[0].aborts
        assert str(abort) == f"its sender gave it up: the source failed: {told}; its log says more"
        await fails(a, b, Source(bytes(5 * MIB), sizes=(MIB + 1,)), match="1048576 are allowed")
        await still_works(a, b)


@on_loop
async def test_a_sink_that_fails_to_forget_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Sink):
        async def abort(self, error: Exception) -> None:
            raise ZeroDivisionError("a bug")

        async def write(self, data: bytes) -> None:
            raise TransportError("no room")

    a, b = Host(), Receiver(sink=Stubborn)
    async with running(a, b):
        await fails(a, b, match="no room")
        await still_works(a, b)
    assert [r.getMessage() for r in caplog.records if r.exc_info and r.levelno == logging.ERROR] == [
        f"this host failed to discard the stream from {a.address}"
    ]


# ---- limits


class Waiting(Sink):
    """Stores nothing until its gate is opened."""

    gate: trio.Event

    async def finish(self) -> None:
        await self.gate.wait()
        await super().finish()


def waiting() -> type[Waiting]:
    return type("Waiting", (Waiting,), {"gate": trio.Event()})


@on_loop
async def test_the_number_of_streams_is_bounded_at_both_ends() -> None:
    """One host gets three quarters of those that another sends, and one source a quarter of those that it takes."""
    a, b = Host(options=Options(max_outgoing_streams=3)), Receiver(sink=waiting())
    c, d = Host(), Receiver(sink=waiting(), options=Options(max_incoming_streams=8))
    async with running(a, b, c, d), trio.open_nursery() as nursery:
        for sender, receiver in ((a, b), (c, d)):
            for _ in range(2):
                nursery.start_soon(send, sender, receiver)
        await until(lambda: len(b.sinks) == len(d.sinks) == 2)
        await fails(a, b, match="2 are being sent already, 2 of them there; wait")
        await fails(c, d, match=r"takes 2 streams from 127\.0\.0\.1 at once already; try again later")
        assert len(b.sinks) == len(d.sinks) == 2
        for receiver in (b, d):
            receiver.sink.gate.set()
        await until(lambda: a.counters.streams_sent == c.counters.streams_sent == 2)
        await still_works(a, b)
        await still_works(c, d)


@on_loop
async def test_a_receiver_that_never_stores_anything_keeps_no_other_from_being_sent_streams() -> None:
    port = free_ports(1)[0]
    a, c = Host(options=Options(max_outgoing_streams=4)), Receiver()
    b = Receiver(f"localhost:{port}", listen_address=f"127.0.0.1:{port}", sink=waiting())
    async with running(a, b, c), trio.open_nursery() as nursery:
        for name in ("localhost", "LocalHost", "LOCALHOST"):
            nursery.start_soon(send, a, f"{name}:{port}")
        await until(lambda: len(b.sinks) == 3)
        await fails(a, f"localhost:{port}", match="3 of them there")
        await send(a, c)
        assert c.sinks[0].finished == 1
        b.sink.gate.set()


@on_loop
async def test_a_host_with_all_the_callers_that_it_takes_still_takes_streams() -> None:
    a, b = Host(), Receiver(options=Options(max_incoming=1))
    async with running(a, b):
        await FakePeer.introduced(b)
        await send(a, b)


@on_loop
async def test_a_stream_waits_a_little_for_a_place() -> None:
    a, b = (
        Host(options=replace(QUICK, connect_timeout=0.5)),
        Receiver(options=Options(max_incoming_streams=1)),
    )
    async with running(a, b):
        other = await FakePeer.introduced(b, address="10.0.0.1:1", stream=True)
        await fails(a, b, match="takes 1 streams at once already; try again later")
        assert b.counters.full > 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, a, b)
            full = b.counters.full
            await until(lambda: b.counters.full > full)
            await trio.aclose_forcefully(other.stream)
    assert b.counters.streams_received == 1


@on_loop
async def test_what_cannot_be_sent_is_refused_at_once() -> None:
    a, b = Host(), Receiver()
    await fails(a, b, match="does not serve")
    async with running(a, b):
        with pytest.raises(TransportError, match="its header has 65537 bytes, and 65536 are allowed"):
            await send(a, b, header=bytes(STREAM_HEADER_LIMIT + 1))
    assert b.sinks == []


@pytest.mark.parametrize(
    "option", ["max_incoming_streams", "max_outgoing_streams", "stream_bytes_per_second", "stream_timeout"]
)
def test_limits_are_above_zero(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option}=0: must be a .*number from [\d.]+ up"):
        Options(**{option: 0})


# ---- bandwidth


def on_virtual_clock(scenario: Callable[..., Awaitable[None]]) -> Callable[[], None]:
    return lambda: trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


async def _bandwidth_is_shared_and_kept() -> None:
    bandwidth = Bandwidth(1000)
    ends: list[float] = []

    async def use(count: int) -> None:
        for _ in range(count):
            await bandwidth.take(100)
            ends.append(trio.current_time() - start)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(use, 10)
    # All but the little that had not been used before.
    assert ends == [pytest.approx(0.1 * number - 0.02) for number in range(1, 41)]
    # After an hour without a stream, its bandwidth may not be used all at once.
    await trio.sleep(3600)
    start = trio.current_time()
    ends.clear()
    await use(10)
    assert ends[-1] == pytest.approx(0.98)


async def _a_cancelled_wait_uses_nothing() -> None:
    bandwidth = Bandwidth(1000)
    with trio.move_on_after(5):
        await bandwidth.take(10_000)
    start = trio.current_time()
    await bandwidth.take(100)
    assert trio.current_time() - start == pytest.approx(0.08)


test_bandwidth_is_shared_in_turn_and_not_saved_up = on_virtual_clock(_bandwidth_is_shared_and_kept)
test_a_task_that_is_cancelled_while_it_waits_for_bandwidth_has_used_none = on_virtual_clock(
    _a_cancelled_wait_uses_nothing
)


@pytest.mark.parametrize(
    ("rate", "piece"),
    [(math.inf, 128 << 10), (64 * MIB, 128 << 10), (500_000, 50_000), (1, 4096)],
)
def test_pieces_are_smaller_where_the_bandwidth_is(rate: float, piece: int) -> None:
    assert Bandwidth(rate).piece == piece


@on_loop
async def test_all_streams_of_a_host_share_its_bandwidth() -> None:
    a, b = Host(options=Options(stream_bytes_per_second=4 * MIB)), Receiver()
    async with running(a, b):
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(send, a, b, bytes(MIB))
        assert trio.current_time() - start > 0.45
    assert b.counters.streams_received == 2


# ---- connections that break


class Proxy:
    """Stands between two hosts, and breaks what passes when it is told to."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.callee = f"127.0.0.1:{free_ports(1)[0]}"
        self.passed = {"there": 0, "back": 0}
        self.cut_at = {"there": math.inf, "back": math.inf}
        self.flip_at = math.inf

    async def relay(self, way: str, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for piece in source:
            data = bytearray(piece)
            begin = self.passed[way]
            end = begin + len(data)
            if way == "there" and begin <= self.flip_at < end:
                data[int(self.flip_at) - begin] ^= 4
            if end > self.cut_at[way]:
                await sink.send_all(data[: int(self.cut_at[way]) - begin])
                return
            self.passed[way] = end
            await sink.send_all(data)

    async def treat(self, caller: trio.SocketStream) -> None:
        self.passed = dict.fromkeys(self.passed, 0)
        host, port = parse_address(self.callee)

        async def one_way(way: str, *ends: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.relay(way, *ends)
            both.cancel_scope.cancel()

        async with caller, await trio.open_tcp_stream(host, port) as callee, trio.open_nursery() as both:
            both.start_soon(one_way, "there", caller, callee)
            both.start_soon(one_way, "back", callee, caller)

    @asynccontextmanager
    async def between(self, a: Host, **settings: Any) -> AsyncIterator[Receiver]:
        b = Receiver(self.address, listen_address=self.callee, **settings)
        _, port = parse_address(self.address)
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        async with running(a, b) as nursery:
            nursery.start_soon(trio.serve_listeners, self.treat, [listener])
            yield b


@pytest.mark.parametrize(
    ("way", "where", "outcome"),
    [
        pytest.param("there", lambda _: 30, (0, 0, 0), id="in the introduction"),
        pytest.param("back", lambda _: 30, (1, 0, 0), id="in the answer to it"),
        pytest.param("there", lambda total: total - 3 * MIB - 2000, (1, 0, 0), id="in the header"),
        pytest.param("there", lambda total: total // 2, (1, 1, 0), id="in the middle"),
        pytest.param("there", lambda total: total - 1, (1, 1, 0), id="in the end"),
        pytest.param("back", lambda total: total - 1, (0, 0, 1), id="in the last answer"),
    ],
)
@on_loop
async def test_a_connection_that_breaks_is_told_at_both_ends(
    way: str,
    where: Callable[[int], int],
    outcome: tuple[int, int, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The outcome at the receiver: streams that failed, sinks that forget, sinks that finish."""
    files = open_files()
    proxy, a = Proxy(), Host(options=CALM)
    async with proxy.between(a, options=CALM) as b:

        async def transfer() -> None:
            await send(a, b, bytes(3 * MIB), bytes(2000))

        def seen() -> tuple[int, int, int]:
            return (
                b.counters.streams_failed,
                sum(len(sink.aborts) for sink in b.sinks),
                sum(sink.finished for sink in b.sinks),
            )

        await transfer()
        b.sinks.clear()
        proxy.cut_at[way] = where(proxy.passed[way])
        with pytest.raises(TransportError, match=f"the stream to {b.address} was not delivered; .*({LOST})"):
            await transfer()
        assert a.counters.streams_failed == 1
        await until(lambda: seen() == outcome)
        proxy.cut_at[way] = math.inf
        await still_works(a, b)
        assert seen() == (outcome[0], outcome[1], outcome[2] + 1)
    said = [text for text in warnings(caplog) if "not delivered" in text or "not stored" in text]
    assert len(said) == 1 + outcome[0]
    assert open_files() == files


@on_loop
async def test_a_flipped_bit_is_noticed() -> None:
    proxy, a = Proxy(), Host(options=CALM)
    async with proxy.between(a) as b:
        proxy.flip_at = 2 * MIB
        await fails(a, b, Zeros(4), match="refused: the body of a frame .* does not match its checksum")
        assert "checksum" in str(b.sinks[0].aborts[0])
        assert (len(b.sinks[0].aborts), b.sinks[0].finished, b.counters.malformed) == (1, 0, 1)
        proxy.flip_at = math.inf
        await still_works(a, b)


@on_loop
async def test_a_sender_that_is_cancelled_closes_the_connection() -> None:
    a, b = Host(options=Options(stream_bytes_per_second=10 * MIB)), Receiver()
    async with running(a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.transport.send_stream, b.address, b"", Zeros())
            await until(lambda: b.sinks and b.sinks[0].writes > 2)
            nursery.cancel_scope.cancel()
        await until(lambda: b.sinks[0].aborts)
        assert (a.counters.streams_failed, b.counters.streams_failed) == (1, 1)
        await still_works(a, b)
    assert len(b.sinks[0].aborts) == 1


@pytest.mark.parametrize("stage", ["write", "finish"])
@on_loop
async def test_a_receiver_that_stops_forgets_what_came_and_the_sender_is_told(stage: str) -> None:
    class Slow(Sink):
        async def write(self, data: bytes) -> None:
            await super().write(data)
            await self.reach("write")

        async def finish(self) -> None:
            await self.reach("finish")

        async def reach(self, here: str) -> None:
            if here == stage:
                reached.set()
                await trio.sleep_forever()

    reached = trio.Event()
    files = open_files()
    a, b = Host(), Receiver(sink=Slow)
    async with running(a, b) as nursery:

        async def stop() -> None:
            await reached.wait()
            await b.stop()

        nursery.start_soon(stop)
        await fails(a, b, Zeros(1), match=LOST)
    (sink,) = b.sinks
    assert [str(error) for error in sink.aborts] == [f"the stream from {a.address} was cancelled"]
    assert b.counters.streams_failed == 1
    assert open_files() == files


@on_loop
async def test_a_transport_that_stops_ends_its_streams() -> None:
    a, b = Host(options=Options(stream_bytes_per_second=10 * MIB)), Receiver()
    async with running(a, b) as nursery:

        async def stop() -> None:
            await until(lambda: b.sinks and b.sinks[0].writes > 2)
            await a.stop()

        nursery.start_soon(stop)
        await fails(a, b, match="stopped serving")
        await until(lambda: b.sinks[0].aborts)
    assert a.counters.streams_failed == 1


# ---- what no host would send

BEGIN = encode_frame(FrameKind.STREAM_BEGIN, b"header")
PIECE = encode_stream_piece(0, b"abc")
END = encode_stream_end(3, zlib.crc32(b"abc"))


async def stream_of_fake_peer(b: Host, *frames: bytes) -> FakePeer:
    """Begin a stream as a peer that may send anything."""
    caller = await FakePeer.introduced(b, stream=True)
    await caller.send(b"".join((BEGIN, *frames)))
    return caller


@on_loop
async def test_a_peer_that_keeps_to_the_protocol_gets_its_answer() -> None:
    b = Receiver()
    async with running(b):
        later = encode_frame(200, b"from the future")
        caller = await stream_of_fake_peer(b, encode_frame(FrameKind.PING), PIECE, later, END)
        assert (await caller.next_frame()).kind == FrameKind.STREAM_DONE
    assert (b.sinks[0].data, b.sinks[0].finished, b.counters.unknown_frames) == (b"abc", 1, 1)


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        pytest.param([os.urandom(100)], "begins with", id="garbage"),
        pytest.param([PIECE, PIECE], "piece 0 of a stream came where piece 1 was due", id="a repeat"),
        pytest.param([PIECE, encode_stream_piece(2, b"abc")], "piece 2 of a stream came where", id="a gap"),
        pytest.param([encode_stream_piece(0, b"")], "no bytes", id="a piece without bytes"),
        pytest.param([encode_stream_piece(0, bytes(MIB + 1))], "are allowed", id="a piece too long"),
        pytest.param([END], "0 bytes of a stream came", id="too few bytes"),
        pytest.param([PIECE, encode_stream_end(3, 7)], "with 00000007", id="other bytes"),
        pytest.param([PIECE, encode_frame(FrameKind.STREAM_END)], "must have 12", id="an end that is none"),
        pytest.param([PIECE, BEGIN], "kind 7 came in the middle", id="a second beginning"),
        pytest.param(encode_messages([heartbeat(1)]), "kind 2 came in the middle", id="messages"),
        pytest.param([PIECE, encode_reason("sorry")], "gave it up: sorry", id="a sender that gives up"),
    ],
)
@on_loop
async def test_what_no_host_would_send_ends_that_stream_and_no_other(frames: list[bytes], why: str) -> None:
    a, b = Host(), Receiver()
    async with running(a, b):
        caller = await stream_of_fake_peer(b)
        await until(lambda: b.sinks)
        await caller.send(b"".join(frames))
        frame = await caller.next_frame()
        assert frame.kind == FrameKind.REFUSED
        assert why in decode_reason(frame.body)
        await caller.stream.aclose()
        (sink,) = b.sinks
        assert (len(sink.aborts), sink.finished) == (1, 0)
        assert why in str(sink.aborts[0])
        assert (b.counters.malformed, b.counters.streams_failed) == (int("sorry" not in why), 1)
        assert b.received == []
        await still_works(a, b)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        pytest.param(PIECE, "begins with a frame of kind 8", id="a piece"),
        pytest.param(
            encode_frame(FrameKind.STREAM_BEGIN, bytes(STREAM_HEADER_LIMIT + 1)), "65536", id="a long header"
        ),
    ],
)
@on_loop
async def test_what_does_not_begin_like_a_stream_reaches_no_sink(frame: bytes, why: str) -> None:
    a, b = Host(), Receiver()
    async with running(a, b):
        caller = await FakePeer.introduced(b, stream=True)
        await caller.send(frame)
        assert why in decode_reason((await caller.next_frame()).body)
        assert b.sinks == []
        await still_works(a, b)


@on_loop
async def test_a_receiver_that_has_everything_too_early_is_not_believed() -> None:
    async def lie(caller: FakePeer) -> None:
        await welcome(caller)
        await caller.send(encode_frame(200, b"from the future") + encode_frame(FrameKind.STREAM_DONE))
        await caller.closed()

    a = Host()
    async with listening(lie) as liar, running(a):
        await fails(a, liar, match="before all of it was sent")
    assert (a.counters.malformed, a.counters.unknown_frames, a.counters.streams_sent) == (1, 1, 0)


# ---- what a peer may cost

PING = encode_frame(FrameKind.PING)
HASTY = Options(keepalive=0.02, answer_timeout=0.4, stream_timeout=0.3)


async def ends(caller: FakePeer) -> str:
    """Return why a host ends the stream of a peer."""
    while (frame := await caller.next_frame()).kind == FrameKind.PING:
        pass
    assert frame.kind == FrameKind.REFUSED
    return decode_reason(frame.body)


async def keep_sending(caller: FakePeer, frames: Any, interval: float) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for frame in frames:
            await caller.send(frame)
            await trio.sleep(interval)


@pytest.mark.parametrize(
    ("frames", "came"),
    [
        pytest.param(repeat(PING), 3, id="signs of life"),
        pytest.param((encode_stream_piece(number, b"x") for number in count(1)), None, id="byte after byte"),
        pytest.param(
            (bytes([byte]) for byte in encode_stream_piece(1, bytes(MIB))), 3, id="an endless frame"
        ),
    ],
)
@on_loop
async def test_a_stream_that_does_not_go_on_ends_and_gives_its_place_back(
    frames: Any, came: int | None
) -> None:
    b = Receiver(options=HASTY)
    async with running(b) as nursery:
        caller = await stream_of_fake_peer(b, PIECE)
        nursery.start_soon(keep_sending, caller, frames, 0.02)
        began = trio.current_time()
        assert "only" in await ends(caller)
        assert trio.current_time() - began > 0.2
        (sink,) = b.sinks
        assert (len(sink.aborts), sink.finished) == (1, 0)
        assert came is None or len(sink.data) == came
        await until(lambda: len(b.transport._admission.streams) == 0)


@on_loop
async def test_a_stream_that_goes_on_slowly_is_taken_to_its_end() -> None:
    """It lasts several times as long as one that does not go on."""

    class Slow(Source):
        async def read(self) -> bytes:
            await trio.sleep(0.15)
            return await super().read()

    a, b = Host(options=HASTY), Receiver(options=HASTY)
    data = os.urandom(8 * 64 << 10)
    async with running(a, b):
        began = trio.current_time()
        await a.transport.send_stream(b.address, b"", Slow(data, sizes=(64 << 10,)))
        assert trio.current_time() - began > 3 * HASTY.stream_timeout
    assert b.sinks[0].data == data


@on_loop
async def test_what_the_receiver_takes_itself_is_not_held_against_the_sender() -> None:
    class Slow(Sink):
        async def write(self, data: bytes) -> None:
            await trio.sleep(2 * HASTY.stream_timeout)
            await super().write(data)

    a, b = Host(options=HASTY), Receiver(sink=Slow, options=HASTY)
    async with running(a, b):
        await send(a, b, b"some bytes")
    assert b.sinks[0].data == b"some bytes"


@on_loop
async def test_a_stream_that_never_begins_has_a_place_for_a_short_time() -> None:
    b = Receiver(options=Options(keepalive=0.02, answer_timeout=0.3))
    async with running(b) as nursery:
        caller = await FakePeer.introduced(b, stream=True)
        await until(lambda: len(b.transport._admission.streams) == 1)
        header = encode_frame(FrameKind.STREAM_BEGIN, bytes(1000))
        nursery.start_soon(keep_sending, caller, (bytes([byte]) for byte in header), 0.02)
        assert "only 0 bytes of it" in await ends(caller)
        await until(lambda: len(b.transport._admission.streams) == 0)
        assert b.sinks == []


@pytest.mark.parametrize(
    "flood", [PING * 1000, b"".join(encode_stream_piece(number, b"x") for number in range(1, 1000))]
)
@on_loop
async def test_more_frames_than_a_host_sends_end_a_stream(flood: bytes) -> None:
    a, b = Host(), Receiver()
    async with running(a, b):
        caller = await stream_of_fake_peer(b, PIECE)
        with suppress(trio.BrokenResourceError):
            await caller.send(flood)
        assert "which are too many" in await ends(caller)
        assert b.counters.malformed == 1
        await still_works(a, b)


@on_loop
async def test_a_receiver_that_sends_more_frames_than_a_host_is_given_up() -> None:
    async def flood(caller: FakePeer) -> None:
        await welcome(caller)
        await caller.send(PING * 1000)
        await caller.closed()

    a = Host()
    async with listening(flood) as noisy, running(a):
        await fails(a, noisy, match="which are too many")


@on_loop
async def test_a_receiver_that_has_everything_and_stores_nothing_is_given_up() -> None:
    async def take_everything_and_only_live(caller: FakePeer) -> None:
        await welcome(caller)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_sending, caller, repeat(PING), 0.02)
            await caller.closed()
            nursery.cancel_scope.cancel()

    a, b = Host(options=HASTY), Receiver()
    async with listening(take_everything_and_only_live) as idle, running(a, b):
        began = trio.current_time()
        await fails(a, idle, Zeros(1), match="has not stored it within 1 s")
        assert trio.current_time() - began > 1.3
        await still_works(a, b)


@on_loop
async def test_streams_of_one_source_leave_places_for_members() -> None:
    """A source without members has a quarter of them, and a member finds a place where all are taken."""
    b = Receiver(sink=waiting(), options=Options(max_incoming_streams=4))
    async with running(b):
        places = b.transport._admission.streams
        (await stream_of_fake_peer(b, PIECE, END))
        await until(lambda: len(places) == 1)
        another = await FakePeer.dial(b)
        await another.send(encode_hello(hello(b.address, stream=True)))
        kind, text = await another.told()
        assert (kind, "1 streams from 127.0.0.1 at once already" in text) == (FrameKind.FULL, True)
        assert (b.counters.full, b.counters.refused) == (1, 0)
        assert b.members == [False]
