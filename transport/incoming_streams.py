"""The streams that other hosts send to this one."""

import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio
from drakkar.handlers.errors import DrakkarError, TransportError
from drakkar.transport.connection import Connection
from drakkar.transport.frames import Frame, FrameError, FrameKind, encode_frame
from drakkar.transport.hello import RefusedError, decode_reason, encode_reason
from drakkar.transport.options import Counters, Options
from drakkar.transport.stream_frames import STREAM_HEADER_LIMIT, decode_stream_end, decode_stream_piece
from drakkar.transport.streams import StreamConnection, StreamSink, describe

__all__ = ["IncomingStreams"]

_log: Final = logging.getLogger("drakkar.transport")


class IncomingStreams:
    """All streams that other hosts send to this one. For the trio loop's thread only."""

    def __init__(
        self, begin: Callable[[str, bytes], StreamSink] | None, options: Options, counters: Counters
    ) -> None:
        self._begin, self._options, self._counters = begin, options, counters
        self._running = 0

    async def receive(self, connection: Connection, sender: str) -> None:
        """Receive the one stream of a connection, and answer. A failure is logged and told to the sender, not raised."""
        stream = _Receiving(sender, StreamConnection(connection, self._options), self._counters)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep_alive, stream.connection)
                await self._receive(stream)
                nursery.cancel_scope.cancel()
        except BaseException:
            if not stream.counted:
                self._fail(stream, TransportError("it was cancelled, as this host stops"))
            raise

    async def _receive(self, stream: "_Receiving") -> None:
        try:
            with self._slot() as begin:
                header = await stream.header()
                await stream.store(begin(stream.sender, header))
        except Exception as error:  # noqa: BLE001  # both sides are told, and other streams go on
            self._fail(stream, error)
            await stream.connection.write_last(encode_reason(describe(error)))
        else:
            stream.counted = True
            self._counters.streams_received += 1
            _log.info("stored a stream of %d bytes from %s", stream.taken, stream.sender)
            await stream.connection.write_last(encode_frame(FrameKind.STREAM_DONE))

    @contextmanager
    def _slot(self) -> Iterator[Callable[[str, bytes], StreamSink]]:
        """Count one more running stream; give the function that begins it. Raises `RefusedError` at the limit."""
        if self._begin is None:
            raise RefusedError("this host takes no streams")
        limit = self._options.max_incoming_streams
        if self._running >= limit:
            raise RefusedError(f"this host takes {limit} streams at once already; try again later")
        self._running += 1
        try:
            yield self._begin
        finally:
            self._running -= 1

    def _fail(self, stream: "_Receiving", error: Exception) -> None:
        stream.counted = True
        self._counters.streams_failed += 1
        ours = not isinstance(error, DrakkarError)
        if ours:
            self._counters.failed += 1
        elif isinstance(error, TransportError):
            self._counters.count_fault(error)
        _log.warning(
            "the stream from %s was not stored; %d bytes of it came: %s",
            stream.sender,
            stream.taken,
            describe(error),
            exc_info=error if ours else None,
        )


async def _keep_alive(connection: StreamConnection) -> None:
    # A lost connection ends the reading of the stream, or shows when the answer is written.
    with suppress(TransportError):
        await connection.keep_alive()


class _Receiving:
    """One stream that is being received."""

    def __init__(self, sender: str, connection: StreamConnection, counters: Counters) -> None:
        self.sender, self.connection, self._counters = sender, connection, counters
        self.taken = 0
        """Bytes that the sink took."""
        self.counted = False
        """Whether it was counted as received or as failed."""
        self._pieces = self._checksum = 0
        self._waiting: list[Frame] = []  # the next one is the last

    async def header(self) -> bytes:
        """Wait for the beginning. Raises `FrameError` where the first frame is none."""
        frame = await self._next()
        if frame.kind != FrameKind.STREAM_BEGIN:
            raise FrameError(f"a stream begins with a frame of kind {frame.kind}, and not a STREAM_BEGIN")
        if len(frame.body) > STREAM_HEADER_LIMIT:
            raise FrameError(
                f"the header of a stream has {len(frame.body)} bytes, and {STREAM_HEADER_LIMIT} are allowed"
            )
        return bytes(frame.body)

    async def store(self, sink: StreamSink) -> None:
        """Give all bytes to the sink, and let it store them. What fails is raised after the sink was aborted."""
        _log.info("receiving a stream from %s", self.sender)
        try:
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
                _log.exception("this host failed to discard the stream from %s", self.sender)

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
        _log.debug("dropped a frame of unknown kind %d in a stream from %s", frame.kind, self.sender)

    async def _next(self) -> Frame:
        if not self._waiting:
            self._waiting = (await self.connection.read())[::-1]
        else:
            # Many small pieces that came at once must not keep the loop from other tasks.
            await trio.lowlevel.checkpoint()
        return self._waiting.pop()
