"""The streams that other hosts send to this one."""

import logging
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio
from drakkar.handlers.errors import CorruptData, DrakkarError, TransportError
from drakkar.transport.connection import Connection
from drakkar.transport.frames import Frame, FrameError, FrameKind, encode_frame
from drakkar.transport.hello import RefusedError, decode_reason, encode_reason
from drakkar.transport.options import Counters, Log, Options
from drakkar.transport.reminders import Reminders, and_others
from drakkar.transport.stream_frames import STREAM_HEADER_LIMIT, decode_stream_end, decode_stream_piece
from drakkar.transport.streams import DAMAGED, StreamConnection, StreamSink, describe, told

__all__ = ["IncomingStreams"]

_PROGRESS_BYTES: Final = 64 << 10
"""Bytes of a stream that must come in each `stream_timeout`."""


class IncomingStreams:
    """All streams that other hosts send to this one. For the trio loop's thread only."""

    def __init__(
        self,
        begin: Callable[[str, bytes, bool], StreamSink] | None,
        options: Options,
        counters: Counters,
        log: Log,
    ) -> None:
        self._begin, self._options, self._counters, self._log = begin, options, counters, log
        self._reminders = Reminders()

    async def receive(self, connection: Connection, sender: str, *, member: bool = False) -> None:
        """Receive the one stream of a connection, and answer. A failure is logged and told to the sender, not raised.

        `member`: the sender has shown that it is a member of a shard of this host.
        """
        stream = _Receiving(
            sender, StreamConnection(connection, self._options), self._options, self._counters, self._log
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep_alive, stream.connection)
                await self._receive(stream, member=member)
                nursery.cancel_scope.cancel()
        except BaseException:
            if not stream.counted:
                self._fail(stream, TransportError("it was cancelled, as this host stops"))
            raise

    async def _receive(self, stream: "_Receiving", *, member: bool) -> None:
        try:
            header = await stream.header()
            await stream.store(self._sink(stream.sender, header, member))
        except Exception as error:  # noqa: BLE001  # both sides are told, and other streams go on
            self._fail(stream, error)
            text = f"it was {DAMAGED}" if isinstance(error, CorruptData) else told(error)
            await stream.connection.write_last(encode_reason(text))
        else:
            stream.counted = True
            self._counters.streams_received += 1
            self._log.debug("stored a stream of %d bytes from %s", stream.taken, stream.sender)
            await stream.connection.write_last(encode_frame(FrameKind.STREAM_DONE))

    def _sink(self, sender: str, header: bytes, member: bool) -> StreamSink:
        if self._begin is None:
            raise RefusedError("this host takes no streams")
        return self._begin(sender, header, member)

    def _fail(self, stream: "_Receiving", error: Exception) -> None:
        stream.counted = True
        self._counters.streams_failed += 1
        ours = not isinstance(error, DrakkarError)
        if ours:
            self._counters.failed += 1
        elif isinstance(error, TransportError):
            self._counters.count_fault(error)
        count = self._reminders.due(type(error).__name__)
        self._log.log(
            logging.WARNING if count else logging.DEBUG,
            "the stream from %s was not stored; %d bytes of it came: %s%s",
            stream.sender,
            stream.taken,
            describe(error),
            and_others(count),
            exc_info=error if ours else None,
        )


async def _keep_alive(connection: StreamConnection) -> None:
    # A lost connection ends the reading of the stream, or shows when the answer is written.
    with suppress(TransportError):
        await connection.keep_alive()


class _Receiving:
    """One stream that is being received."""

    def __init__(
        self, sender: str, connection: StreamConnection, options: Options, counters: Counters, log: Log
    ) -> None:
        self.sender, self.connection, self._counters, self._log = sender, connection, counters, log
        self._options = options
        self.taken = 0
        """Bytes that the sink took."""
        self.counted = False
        """Whether it was counted as received or as failed."""
        self._pieces = self._checksum = 0
        self._waiting: list[Frame] = []  # the next one is the last
        # It is sent as soon as the introduction is answered.
        self._left = 2 * options.keepalive + options.answer_timeout
        """Seconds for which the sender is waited for, until some bytes have come. What this host takes itself is not counted."""
        self._fresh = 0
        """Bytes since then."""

    async def header(self) -> bytes:
        """Wait for the beginning. Raises `FrameError` where the first frame is none."""
        frame = await self._next()
        self._renew()
        if frame.kind != FrameKind.STREAM_BEGIN:
            raise FrameError(f"a stream begins with a frame of kind {frame.kind}, and not a STREAM_BEGIN")
        if len(frame.body) > STREAM_HEADER_LIMIT:
            raise FrameError(
                f"the header of a stream has {len(frame.body)} bytes, and {STREAM_HEADER_LIMIT} are allowed"
            )
        return bytes(frame.body)

    async def store(self, sink: StreamSink) -> None:
        """Give all bytes to the sink, and let it store them. What fails is raised after the sink was aborted."""
        self._log.debug("receiving a stream from %s", self.sender)
        try:
            await sink.begin()
            while await self._take_frame(sink):
                pass
            await sink.finish()
        except BaseException as error:
            await self._abort(sink, error)
            raise

    async def _abort(self, sink: StreamSink, error: BaseException) -> None:
        if not isinstance(error, Exception):
            error = TransportError(f"the stream from {self.sender} was cancelled")
        with trio.CancelScope(shield=True):
            try:
                await sink.abort(error)
            except Exception:  # noqa: BLE001  # logged; it must not hide why the stream ended
                self._counters.failed += 1
                self._log.exception("this host failed to discard the stream from %s", self.sender)

    async def _take_frame(self, sink: StreamSink) -> bool:
        """Take one frame; return False where it was the end. Raises where the stream is not as it was sent."""
        frame = await self._next()
        if frame.kind == FrameKind.STREAM_PIECE:
            await self._take_piece(sink, frame.body)
        elif frame.kind == FrameKind.STREAM_END:
            self._check_end(frame.body)
            return False
        elif frame.kind == FrameKind.REFUSED:
            raise TransportError(f"its sender gave it up: {decode_reason(frame.body)}")
        elif frame.kind != FrameKind.PING:
            self._drop(frame)
        return True

    async def _take_piece(self, sink: StreamSink, body: memoryview) -> None:
        number, data = decode_stream_piece(body)
        if number != self._pieces:
            raise FrameError(f"piece {number} of a stream came where piece {self._pieces} was due")
        self._checksum = zlib.crc32(data, self._checksum)
        await sink.write(bytes(data))
        self._pieces += 1
        self.taken += len(data)
        self._counters.stream_bytes_received += len(data)
        self._fresh += len(data)
        if self._fresh >= _PROGRESS_BYTES:
            self._renew()

    def _renew(self) -> None:
        self._left, self._fresh = self._options.stream_timeout, 0

    def _check_end(self, body: memoryview) -> None:
        total, checksum = decode_stream_end(body)
        if (total, checksum) != (self.taken, self._checksum):
            raise FrameError(
                f"{self.taken} bytes of a stream came, with checksum {self._checksum:08x}, and its sender says that "
                f"they are {total}, with {checksum:08x}"
            )

    def _drop(self, frame: Frame) -> None:
        if frame.kind in FrameKind.__members__.values():
            raise FrameError(f"a frame of kind {frame.kind} came in the middle of a stream")
        self._counters.unknown_frames += 1
        self._log.debug("dropped a frame of unknown kind %d in a stream from %s", frame.kind, self.sender)

    async def _next(self) -> Frame:
        if not self._waiting:
            self._waiting = (await self._read())[::-1]
        else:
            # Many small pieces that came at once must not keep the loop from other tasks.
            await trio.lowlevel.checkpoint()
        return self._waiting.pop()

    async def _read(self) -> list[Frame]:
        began = trio.current_time()
        with trio.move_on_after(self._left):
            frames = await self.connection.read()
            self._left -= trio.current_time() - began
            return frames
        raise TransportError(
            f"its sender sent signs of life, and only {self._fresh} bytes of it while this host waited for more"
        )
