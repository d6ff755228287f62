"""One other host as this one reaches it: a bounded queue, and the one connection that this host opens to it.

Messages to a peer travel on the connection that this host opened, and messages from it on the one that the peer
opened. So each connection has one writer and one direction, two hosts never have to agree on which of two connections
to keep, and a peer that can be reached receives messages even where it cannot connect back.

A peer's task is a loop: wait until there is something to send, dial, write until the connection is lost, report that,
wait a little. Nothing is sent twice: the protocol above repeats what was lost.
"""

import logging
import os
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import Final, TypeAlias, cast

import trio
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message
from drakkar.transport.addresses import canonical
from drakkar.transport.backoff import Backoff
from drakkar.transport.connection import Connection, dial, network_error
from drakkar.transport.frames import Frame, FrameKind, encode_frame
from drakkar.transport.hello import Identity, RefusedError, decode_reason
from drakkar.transport.message_frames import Packed, batches, frame_of, pack
from drakkar.transport.options import Counters, Options

__all__ = ["Peer", "PeerStatus"]

_log: Final = logging.getLogger("drakkar.transport")

_WRITE_BYTES: Final = 4 << 20
"""Bytes that are taken out of the queue at once, so that a long queue is not in memory twice."""
_ITEM_OVERHEAD: Final = 128
"""Bytes that a queued message counts in addition to its encoded bytes."""
_PING: Final = struct.Struct(">d")

_Item: TypeAlias = Packed | bytes
"""An entry of the queue: an encoded message, or a complete frame."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """The state of the connection to a peer."""

    connected: bool
    queued_messages: int
    queued_bytes: int
    rtt: float | None
    """Round-trip time of the last PING, in seconds; None before the first PONG."""
    failures: int
    """Failed attempts to connect since the last success."""
    features: frozenset[str]
    """The features that the peer announced when it was last reached."""
    error: str
    """Why there is no connection, or why the last one was lost; empty where nothing failed yet."""


class Peer:
    """Another host, as this one reaches it. For the trio loop's thread only."""

    def __init__(
        self,
        address: str,
        *,
        identity: Callable[[], Identity],
        options: Options,
        counters: Counters,
        unreachable: Callable[[str], None],
        tls: ssl.SSLContext | None,
        random: Random,
    ) -> None:
        self.address = address
        try:
            self._name = canonical(address)
        except TransportError:
            self._name = address  # each attempt to dial it will report the error
        self._identity, self._options, self._counters = identity, options, counters
        self._unreachable, self._tls = unreachable, tls
        self._backoff = Backoff(options.backoff_first, options.backoff_last, random)
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0
        self._rest: bytes | memoryview = b""  # of a write that the kernel took in part
        self._wake = trio.Event()  # there is something to send
        self._revived = trio.Event()  # the next attempt need not wait any longer
        self._used_at = trio.current_time()
        self._ready_fd = -1  # the socket, while `_push` may write to it
        self._lost: TransportError | None = None  # why the connection is over
        self._connected = False
        self._ping = b""
        self._rtt: float | None = None
        self._features: frozenset[str] = frozenset()
        self._error = ""

    # ---- what the transport calls

    def offer(self, messages: Iterable[Message]) -> int:
        """Queue messages, and write them at once where the socket is idle; return how many were dropped."""
        dropped = 0
        for message in messages:
            # Encoding is skipped where the queue is full, as it often is while a peer is away.
            packed = self._pack(message) if self._has_room(0) else None
            if packed is None or not self._put(packed):
                dropped += 1
        self._push()
        if dropped:
            self._drop(dropped)
        return dropped

    def offer_frame(self, frame: bytes) -> bool:
        """Queue a complete frame of any kind; return whether there was room for it."""
        queued = self._put(frame)
        self._push()
        if not queued:
            self._drop(1)
        return queued

    def revive(self) -> None:
        """Forget past failures and dial without further waiting: the peer has just shown that it is alive."""
        self._backoff.reset()
        self._revived.set()

    def is_at(self, address: str) -> bool:
        """Whether this is the peer at `address`, in canonical spelling."""
        return self._name == address

    def status(self) -> PeerStatus:
        """Return the state of the connection to this peer."""
        return PeerStatus(
            connected=self._connected,
            queued_messages=len(self._queue),
            queued_bytes=self._queued_bytes,
            rtt=self._rtt,
            failures=self._backoff.failures,
            features=self._features,
            error=self._error,
        )

    # ---- the queue

    def _pack(self, message: Message) -> Packed | None:
        try:
            return pack(message, self._options.frame_limit)
        except TransportError as error:
            _log.error("not sent to %s: %s", self.address, error)  # the text names the message and the remedy
            return None

    def _has_room(self, size: int) -> bool:
        limits = self._options
        return not self._queue or (
            len(self._queue) < limits.queue_messages and self._queued_bytes + size <= limits.queue_bytes
        )

    def _put(self, item: _Item) -> bool:
        size = _size(item)
        if not self._has_room(size):
            return False
        self._queue.append(item)
        self._queued_bytes += size
        return True

    def _drop(self, count: int) -> None:
        self._counters.dropped += count
        self._unreachable(self.address)

    def _drop_queue(self) -> None:
        """Drop what waits for a peer that is away. By the time it is back, the protocol has newer messages."""
        self._counters.dropped += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0

    def _take(self) -> bytes:
        """Take up to `_WRITE_BYTES`, and at least one item, out of the queue, as frames."""
        items: list[_Item] = []
        size = 0
        while self._queue and size < _WRITE_BYTES:
            item = self._queue.popleft()
            items.append(item)
            size += _size(item)
        self._queued_bytes -= size
        self._counters.sent += len(items)
        frames: list[bytes] = []
        for complete, group in groupby(items, _is_frame):
            if complete:
                frames.extend(cast("Iterator[bytes]", group))
            else:
                packed = cast("Iterator[Packed]", group)
                frames.extend(map(frame_of, batches(packed, self._options.frame_limit)))
        return frames[0] if len(frames) == 1 else b"".join(frames)

    # ---- writing

    def _push(self) -> None:
        """Get the queue on its way.

        Waking the writer costs a turn of the loop. A socket that is ready takes the bytes here, and the writer is woken
        only for the rest.
        """
        if not self._queue:
            return
        self._used_at = trio.current_time()
        if self._ready_fd < 0 or self._wake.is_set():
            self._wake.set()
            return
        data = self._take()
        try:
            written = os.write(self._ready_fd, data)
        except BlockingIOError:
            written = 0
        except OSError as error:
            self._lost = network_error(error)
            self._wake.set()
            return
        self._counters.sent_bytes += written
        if written < len(data) or self._queue:
            self._rest = memoryview(data)[written:]
            self._wake.set()

    async def _write(self, connection: Connection) -> None:
        """Write the queue, and a PING in each keep-alive interval, until the peer is no longer used."""
        timeout = self._options.send_timeout
        ping_at = 0.0
        while self._lost is None:
            now = trio.current_time()
            if self._rest:
                rest, self._rest = self._rest, b""
                await connection.write(rest, timeout)
            elif now >= ping_at:
                ping_at = now + self._options.keepalive
                self._ping = _PING.pack(now)
                await connection.write(encode_frame(FrameKind.PING, self._ping), timeout)
            elif self._queue:
                await connection.write(self._take(), timeout)
            elif now >= self._used_at + self._options.idle_timeout:
                return
            else:
                await self._sleep(connection, ping_at)

    async def _sleep(self, connection: Connection, until: float) -> None:
        """Wait until there is something to write that `_push` could not write itself."""
        self._wake = trio.Event()
        self._ready_fd = connection.fd
        try:
            with trio.move_on_at(until):
                await self._wake.wait()
        finally:
            self._ready_fd = -1

    # ---- reading

    async def _read(self, connection: Connection) -> None:
        """Read the answers to PINGs. Their absence is how a peer that vanished without a word is noticed."""
        await connection.read_until_lost(
            self._options.keepalive + self._options.answer_timeout, self._handle_frames
        )

    async def _handle_frames(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._handle_frame(frame)

    def _handle_frame(self, frame: Frame) -> None:
        if frame.kind == FrameKind.PONG:
            if frame.body == self._ping:
                self._rtt = trio.current_time() - _PING.unpack(self._ping)[0]
        elif frame.kind == FrameKind.REFUSED:
            raise RefusedError(decode_reason(frame.body))
        else:
            self._counters.unknown_frames += 1
            _log.debug("dropped a frame of kind %d from %s", frame.kind, self.address)

    # ---- the life of a peer

    async def run(self) -> None:
        """Dial, write, wait, and repeat; return once nothing was sent to the peer for `idle_timeout` seconds."""
        while await self._wait_for_work():
            try:
                connection = await self._connect()
            except TransportError as error:
                self._counters.connect_failures += 1
                await self._fail("cannot reach", error)
            else:
                await self._use(connection)

    async def _wait_for_work(self) -> bool:
        """Wait until there is something to send; return False where nothing comes for `idle_timeout` seconds."""
        while not self._queue:
            self._wake = trio.Event()
            with trio.move_on_at(self._used_at + self._options.idle_timeout) as idle:
                await self._wake.wait()
            if idle.cancelled_caught and not self._queue:
                return False
        return True

    async def _connect(self) -> Connection:
        connection, callee = await dial(
            self.address, self._identity(), self._options, self._counters, tls=self._tls
        )
        self._features = callee.features
        return connection

    async def _use(self, connection: Connection) -> None:
        """Write and read until the connection is lost, or the peer is no longer used."""
        self._counters.connects += 1
        self._connected, self._lost, self._error = True, None, ""
        since = trio.current_time()
        _log.info("connected to %s", self.address)
        try:
            async with trio.open_nursery() as nursery:
                for work in (self._read, self._write):
                    nursery.start_soon(self._until_lost, work, connection, nursery.cancel_scope)
        finally:
            self._connected, self._rest, self._rtt = False, b"", None
            await connection.close()
        if self._lost is not None:
            self._counters.lost += 1
            # A connection that is lost at once counts like one that could not be opened.
            if trio.current_time() > since + self._options.backoff_last:
                self._backoff.reset()
            await self._fail("lost the connection to", self._lost)

    async def _until_lost(
        self, work: Callable[[Connection], Awaitable[None]], connection: Connection, both: trio.CancelScope
    ) -> None:
        try:
            await work(connection)
        except TransportError as error:
            self._lost = self._lost or error
        finally:
            both.cancel()

    async def _fail(self, what: str, error: TransportError) -> None:
        """Drop the queue, report the failure, and wait before the next attempt."""
        self._drop_queue()
        wait = self._backoff.next()
        if isinstance(error, RefusedError):
            wait = self._backoff.jitter(self._options.backoff_refused)
        self._counters.count_fault(error)
        # One warning until the reason changes, not one per attempt.
        level = logging.DEBUG if self._error == str(error) else logging.WARNING
        self._error = str(error)
        _log.log(level, "%s %s: %s; next attempt in %.2f s", what, self.address, error, wait)
        self._revived = trio.Event()
        self._unreachable(self.address)
        with trio.move_on_after(wait):
            await self._revived.wait()


def _is_frame(item: _Item) -> bool:
    return type(item) is bytes


def _size(item: _Item) -> int:
    """Return the bytes that an item counts in the queue."""
    return (len(item) if isinstance(item, bytes) else item.size) + _ITEM_OVERHEAD
