"""The outgoing side: one peer, its bounded queue, and the one connection that this host opens to it.

Messages to a peer travel on the connection that this host opened, those from it on the one that it opened. So each
connection has one writer and one direction, nobody has to agree on which of two to keep, and whoever can be reached
is reached, even if he cannot reach back.

A peer's life is a loop: wait until there is something to send, dial, write until the connection is lost, say so,
wait a little. Nothing is sent twice: what was lost, the protocol above repeats.
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
from drakkar.transport.connection import (
    Connection,
    Counters,
    Identity,
    Options,
    RefusedError,
    canonical,
    dial,
    network_error,
)
from drakkar.transport.wire import (
    Frame,
    FrameKind,
    Packed,
    batches,
    decode_reason,
    encode_frame,
    frame_of,
    pack,
)

__all__ = ["Backoff", "Peer", "PeerStatus"]

_log: Final = logging.getLogger("drakkar.transport")

_WRITE_BYTES: Final = 4 << 20
"""Bytes that are taken out of a queue at once, so that a long queue is not held twice."""
_ITEM_OVERHEAD: Final = 128
"""Bytes that a waiting message counts beside what is sent of it."""
_PING: Final = struct.Struct(">d")

_Item: TypeAlias = Packed | bytes
"""What waits to be sent: a message, or a frame that is ready."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """How it stands between this host and a peer."""

    connected: bool
    queued_messages: int
    queued_bytes: int
    rtt: float | None
    """Seconds that the last PING took there and back; None before the first PONG."""
    failures: int
    """Attempts to connect that failed since one succeeded."""
    features: frozenset[str]
    """What the peer said that it understands, when it was last reached."""
    error: str
    """Why there is no connection, or why the last one was lost; empty if nothing went wrong yet."""


class Backoff:
    """How long to wait after a failure: twice as long as after the one before, within bounds, and never in step.

    Hosts that lost the same peer at the same moment would otherwise all knock again at the same moment.
    """

    def __init__(self, first: float, last: float, random: Random) -> None:
        self._first, self._last, self._random = first, last, random
        self.failures = 0

    def next(self) -> float:
        """Return the seconds to wait after one more failure."""
        # The exponent is bounded, since a float ends at 2**1023 and a peer may be away for longer.
        delay = min(self._last, self._first * 2.0 ** min(self.failures, 60))
        self.failures += 1
        return delay * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin anew with short waits."""
        self.failures = 0


class Peer:
    """Another host, as this one reaches it. Everything here is for the trio loop's thread."""

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
            self._name = address  # which is none, as each attempt to dial it will say
        self._identity, self._options, self._counters = identity, options, counters
        self._unreachable, self._tls, self._random = unreachable, tls, random
        self._backoff = Backoff(options.backoff_first, options.backoff_last, random)
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0
        self._rest: bytes | memoryview = b""  # of what the kernel took in part
        self._wake = trio.Event()  # there is something to send
        self._revived = trio.Event()  # there is no need to wait any longer before the next attempt
        self._used_at = trio.current_time()
        self._ready_fd = -1  # the socket, while nothing is in the way of writing to it at once
        self._ended: TransportError | None = None  # why the connection is over
        self._connected = False
        self._ping = b""
        self._rtt: float | None = None
        self._features: frozenset[str] = frozenset()
        self._error = ""

    # ---- what the host calls

    def offer(self, messages: Iterable[Message]) -> int:
        """Queue messages, and write them at once if nothing is in the way; return how many were dropped."""
        dropped = 0
        for message in messages:
            # One that will not fit is not worth encoding: whoever is away for long gets many of them.
            packed = self._pack(message) if self._room(0) else None
            if packed is None or not self._put(packed):
                dropped += 1
        self._push()
        if dropped:
            self._drop(dropped)
        return dropped

    def offer_frame(self, frame: bytes) -> bool:
        """Queue a whole frame of whatever kind; return whether there was room for it."""
        room = self._put(frame)
        self._push()
        if not room:
            self._drop(1)
        return room

    def revive(self) -> None:
        """Forget past failures and dial at once if need be: the peer just showed that it is alive."""
        self._backoff.reset()
        self._revived.set()

    def is_at(self, address: str) -> bool:
        """Whether this is the peer at `address`, which is spelled canonically."""
        return self._name == address

    def status(self) -> PeerStatus:
        """Return how it stands."""
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
            _log.error("not sent to %s: %s", self.address, error)  # the text says whose fault it is
            return None

    def _room(self, size: int) -> bool:
        limits = self._options
        return not self._queue or (
            len(self._queue) < limits.queue_messages and self._queued_bytes + size <= limits.queue_bytes
        )

    def _put(self, item: _Item) -> bool:
        size = _size(item)
        if not self._room(size):
            return False
        self._queue.append(item)
        self._queued_bytes += size
        return True

    def _drop(self, count: int) -> None:
        self._counters.dropped += count
        self._unreachable(self.address)

    def _drop_queue(self) -> None:
        """Forget what waited for a peer that is away: when it is back, the protocol will have newer things to say."""
        self._counters.dropped += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0

    def _take(self) -> bytes:
        """Take what is waiting, or a good part of it, as frames."""
        items: list[_Item] = []
        size = 0
        while self._queue and size < _WRITE_BYTES:
            item = self._queue.popleft()
            items.append(item)
            size += _size(item)
        self._queued_bytes -= size
        self._counters.sent += len(items)
        frames: list[bytes] = []
        for ready, group in groupby(items, _is_frame):
            if ready:
                frames.extend(cast("Iterator[bytes]", group))
            else:
                frames.extend(
                    map(frame_of, batches(cast("Iterator[Packed]", group), self._options.frame_limit))
                )
        return frames[0] if len(frames) == 1 else b"".join(frames)

    # ---- writing

    def _push(self) -> None:
        """Get what is queued on its way.

        To wake the writer costs a turn of the loop. A socket that is ready takes the bytes here and now, and the
        writer is woken for what is left over.
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
            self._ended = network_error(error)
            self._wake.set()
            return
        self._counters.sent_bytes += written
        if written < len(data) or self._queue:
            self._rest = memoryview(data)[written:]
            self._wake.set()

    async def _write(self, connection: Connection) -> None:
        """Write what is queued, and a PING now and then, until the peer is no longer used."""
        patience = self._options.send_timeout
        ping_at = 0.0
        while self._ended is None:
            now = trio.current_time()
            if self._rest:
                rest, self._rest = self._rest, b""
                await connection.send(rest, patience)
            elif now >= ping_at:
                ping_at = now + self._options.keepalive
                self._ping = _PING.pack(now)
                await connection.send(encode_frame(FrameKind.PING, self._ping), patience)
            elif self._queue:
                await connection.send(self._take(), patience)
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
        """Read the answers to the PINGs. That none comes is how a peer that vanished without a word is noticed."""
        await connection.listen(self._options.keepalive + self._options.answer_timeout, self._hear)

    async def _hear(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._hear_one(frame)

    def _hear_one(self, frame: Frame) -> None:
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
        """Dial, write, wait, and so on; return once the peer was not used for a long time."""
        while await self._wanted():
            try:
                connection = await self._connect()
            except TransportError as error:
                self._counters.connect_failures += 1
                await self._fail("cannot reach", error)
            else:
                await self._use(connection)

    async def _wanted(self) -> bool:
        """Wait until there is something to send; False if that takes too long."""
        while not self._queue:
            self._wake = trio.Event()
            with trio.move_on_at(self._used_at + self._options.idle_timeout) as patience:
                await self._wake.wait()
            if patience.cancelled_caught and not self._queue:
                return False
        return True

    async def _connect(self) -> Connection:
        connection, owner = await dial(
            self.address, self._identity(), self._options, self._counters, tls=self._tls
        )
        self._features = owner.features
        return connection

    async def _use(self, connection: Connection) -> None:
        """Write and read until the connection is lost, or the peer no longer used."""
        self._counters.connects += 1
        self._connected, self._ended, self._error = True, None, ""
        since = trio.current_time()
        _log.info("connected to %s", self.address)
        try:
            async with trio.open_nursery() as nursery:
                for work in (self._read, self._write):
                    nursery.start_soon(self._until_lost, work, connection, nursery.cancel_scope)
        finally:
            self._connected, self._rest, self._rtt = False, b"", None
            await connection.close()
        if self._ended is not None:
            self._counters.lost += 1
            # One that is lost as soon as it was made is no better than one that could not be made.
            if trio.current_time() > since + self._options.backoff_last:
                self._backoff.reset()
            await self._fail("lost the connection to", self._ended)

    async def _until_lost(
        self, work: Callable[[Connection], Awaitable[None]], connection: Connection, both: trio.CancelScope
    ) -> None:
        try:
            await work(connection)
        except TransportError as error:
            self._ended = self._ended or error
        finally:
            both.cancel()

    async def _fail(self, what: str, error: TransportError) -> None:
        """Forget what waited, tell everybody who wants to know, and wait a little."""
        self._drop_queue()
        delay = self._backoff.next()
        if isinstance(error, RefusedError):
            delay = self._options.backoff_refused * self._random.uniform(0.5, 1.0)
        self._counters.blame(error)
        # Said once, and not at every attempt, until it changes.
        level = logging.DEBUG if self._error == str(error) else logging.WARNING
        self._error = str(error)
        _log.log(level, "%s %s: %s; next attempt in %.2f s", what, self.address, error, delay)
        self._revived = trio.Event()
        self._unreachable(self.address)
        with trio.move_on_after(delay):
            await self._revived.wait()


def _is_frame(item: _Item) -> bool:
    return type(item) is bytes


def _size(item: _Item) -> int:
    """Return what an item counts in the queue."""
    return (len(item) if isinstance(item, bytes) else item.size) + _ITEM_OVERHEAD
