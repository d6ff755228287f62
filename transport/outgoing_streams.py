"""The streams that this host sends."""

import logging
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio
from drakkar.handlers.backoff import Backoff
from drakkar.handlers.errors import TransportError
from drakkar.transport.addresses import peer_name
from drakkar.transport.bandwidth import Bandwidth
from drakkar.transport.connection import Admit, Connection, dial
from drakkar.transport.frames import Frame, FrameError, FrameKind, encode_frame
from drakkar.transport.hello import FullError, Identity, decode_reason, encode_reason
from drakkar.transport.options import Counters, Log, Options
from drakkar.transport.reminders import Reminders, and_others
from drakkar.transport.stream_frames import (
    STREAM_HEADER_LIMIT,
    STREAM_PIECE_LIMIT,
    encode_stream_end,
    encode_stream_piece,
)
from drakkar.transport.streams import LAST_FRAME_TIMEOUT_S, StreamConnection, StreamSource, describe, told
from drakkar.transport.tls import Tls

__all__ = ["OutgoingStreams"]

_SHARE_OF_ONE: Final = 3 / 4
"""Of all streams that this host sends, so much goes to one host at most: one that hangs keeps none from the others."""
_STORED_PER_S: Final = 1 << 20
"""Bytes that a receiver stores in a second at least."""


class OutgoingStreams:
    """All streams that this host sends. For the trio loop's thread only."""

    def __init__(
        self,
        options: Options,
        counters: Counters,
        tls: Tls | None,
        log: Log,
        admit: Admit,
    ) -> None:
        """`admit`: see `dial`."""
        self._options, self._counters, self._tls, self._log = options, counters, tls, log
        self._admit = admit
        self._bandwidth = Bandwidth(options.stream_bytes_per_second)
        self._running: dict[trio.CancelScope, str] = {}
        """The canonical address to which each of them goes."""
        self._reminders = Reminders()

    async def send(self, address: str, header: bytes, source: StreamSource, identity: Identity) -> None:
        """Send one stream. Raises `TransportError` where it was not delivered."""
        self._check(address, header)
        stream = _Sending(source, self._options, self._counters, self._bandwidth, self._log)
        with trio.CancelScope() as scope:
            self._running[scope] = peer_name(address)
            try:
                await self._deliver(address, header, stream, identity)
            except TransportError as error:
                self._counters.count_fault(error)
                raise self._failed(address, stream, str(error)) from stream.fault or error
            except BaseException:
                self._failed(address, stream, "it was cancelled")
                raise
            finally:
                del self._running[scope]
        if scope.cancelled_caught:
            raise TransportError(_not_delivered(address, stream, f"{identity.address} stopped serving"))
        self._counters.streams_sent += 1
        self._log.debug("%s has stored the stream of %d bytes", address, stream.sent)

    def stop(self) -> None:
        """End all of them."""
        for scope in self._running:
            scope.cancel()

    def _check(self, address: str, header: bytes) -> None:
        limit = self._options.max_outgoing_streams
        there = list(self._running.values()).count(peer_name(address))
        if len(self._running) >= limit or there + 1 > max(1, limit * _SHARE_OF_ONE):
            raise TransportError(
                f"the stream to {address} was not sent: {len(self._running)} are being sent already, {there} of them there; "
                "wait until one has ended"
            )
        if len(header) > STREAM_HEADER_LIMIT:
            raise TransportError(
                f"the stream to {address} was not sent: its header has {len(header)} bytes, and "
                f"{STREAM_HEADER_LIMIT} are allowed; put long data into the stream"
            )

    async def _deliver(self, address: str, header: bytes, stream: "_Sending", identity: Identity) -> None:
        connection = await self._connect(address, identity)
        self._log.debug("sending a stream to %s", address)
        try:
            await stream.run(StreamConnection(connection, self._options), header)
        finally:
            await connection.close()

    async def _connect(self, address: str, identity: Identity) -> Connection:
        """Dial; and where the other host has no place, dial again, for as long as one attempt may take."""
        until = trio.current_time() + self._options.connect_timeout
        backoff = Backoff(self._options.backoff_first, self._options.backoff_last)
        while True:
            try:
                connection, _ = await dial(
                    address,
                    identity,
                    self._options,
                    self._counters,
                    tls=self._tls,
                    admit=self._admit,
                    stream=True,
                )
            except FullError:
                if trio.current_time() > until:
                    raise
                await trio.sleep(backoff.next())
            else:
                return connection

    def _failed(self, address: str, stream: "_Sending", reason: str) -> TransportError:
        self._counters.streams_failed += 1
        text = _not_delivered(address, stream, reason)
        count = self._reminders.due(address)
        self._log.log(logging.WARNING if count else logging.DEBUG, "%s%s", text, and_others(count))
        return TransportError(text)


def _not_delivered(address: str, stream: "_Sending", reason: str) -> str:
    return f"the stream to {address} was not delivered; {stream.sent} bytes of it were sent: {reason}"


class _Sending:
    """One stream that is being sent."""

    def __init__(
        self,
        source: StreamSource,
        options: Options,
        counters: Counters,
        bandwidth: Bandwidth,
        log: Log,
    ) -> None:
        self._source, self._options, self._counters, self._bandwidth = source, options, counters, bandwidth
        self._log = log
        self.sent = 0
        """Bytes that were given to the kernel."""
        self.fault: Exception | None = None
        """What the source raised."""
        self._pieces = self._checksum = 0
        self._all_sent = False
        self._error: TransportError | None = None

    async def run(self, connection: StreamConnection, header: bytes) -> None:
        """Send everything and wait for the answer. Raises `TransportError` for a refusal, and where no answer comes."""
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(self._read, connection, scope)
            nursery.start_soon(self._until_lost, partial(self._write, connection, header), scope)
            nursery.start_soon(self._until_lost, connection.keep_alive, scope)
        if self._error is not None:
            raise self._error

    async def _until_lost(self, work: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await work()
        except TransportError as error:
            if self._error is None:
                # The receiver may have sent the reason, which `_read` is about to read.
                await trio.sleep(LAST_FRAME_TIMEOUT_S)
                self._error = error
            scope.cancel()

    # ---- writing

    async def _write(self, connection: StreamConnection, header: bytes) -> None:
        await connection.write(encode_frame(FrameKind.STREAM_BEGIN, header))
        size = self._bandwidth.piece
        while data := await self._next(connection):
            for at in range(0, len(data), size):
                await self._write_piece(connection, data[at : at + size])
        self._all_sent = True
        await connection.write(encode_stream_end(self.sent, self._checksum), last=True)
        allowed = self._options.stream_timeout + self.sent / _STORED_PER_S
        await trio.sleep(allowed)
        raise TransportError(f"the receiver sent signs of life, and has not stored it within {allowed:.0f} s")

    async def _next(self, connection: StreamConnection) -> memoryview:
        """Return the next bytes of the source; where it fails, tell the receiver."""
        try:
            return _check_size(await self._source.read())
        except Exception as error:
            self.fault = error
            self._error = TransportError(f"the source failed: {describe(error)}")
            with suppress(TransportError):
                await connection.write(encode_reason(f"the source failed: {told(error)}"), last=True)
            raise self._error from error

    async def _write_piece(self, connection: StreamConnection, data: memoryview) -> None:
        await self._bandwidth.take(len(data))
        self._checksum = zlib.crc32(data, self._checksum)
        await connection.write(encode_stream_piece(self._pieces, data))
        self._pieces += 1
        self.sent += len(data)
        self._counters.stream_bytes_sent += len(data)

    # ---- reading

    async def _read(self, connection: StreamConnection, scope: trio.CancelScope) -> None:
        """Wait for the receiver's answer. A reason that it gives takes precedence over an error of the network."""
        try:
            done = False
            while not done:
                for frame in await connection.read():
                    done = done or self._is_done(frame)
        except TransportError as error:
            self._error = self._error or error
        scope.cancel()

    def _is_done(self, frame: Frame) -> bool:
        if frame.kind == FrameKind.REFUSED:
            raise TransportError(f"refused: {decode_reason(frame.body)}")
        if frame.kind == FrameKind.STREAM_DONE:
            if not self._all_sent:
                raise FrameError("the receiver confirmed the stream before all of it was sent")
            return True
        if frame.kind != FrameKind.PING:
            self._counters.unknown_frames += 1
            self._log.debug("dropped a frame of kind %d in answer to a stream", frame.kind)
        return False


def _check_size(data: bytes) -> memoryview:
    """Return `data`. Raises `TransportError` where a source returned more than it may."""
    view = memoryview(data)
    if len(view) > STREAM_PIECE_LIMIT:
        raise TransportError(f"it returned {len(view)} bytes at once, and {STREAM_PIECE_LIMIT} are allowed")
    return view
