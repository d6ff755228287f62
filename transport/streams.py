"""What is too big for messages, from one host to another: each stream over a connection of its own.

A stream has a header, which says what it is, and bytes, which nobody here looks at. They come out of a source at one
end and go into a sink at the other, piece by piece: whoever is slower holds the other up, and at neither end is there
ever more of it in memory than about two pieces, whatever the size of the whole.

The stream is delivered once the receiver's sink has kept it, and said so. That may take long after the last byte, as
disks do, so the receiver sends signs of life until then; and so does the sender, as long as his source or the limit on
bandwidth lets nothing through. Whatever else happens, both ends close the connection, say why, and the sink is told to
forget the stream. Nothing is taken up where it broke off: whoever sent the stream sends another.

Messages have their own connection, and overtake streams there. What they share is the loop, which a piece holds up for
a fraction of a millisecond, and the network, of which streams take no more than they may.
"""

import logging
import math
import ssl
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, Protocol

import trio
from drakkar.handlers.errors import DrakkarError, TransportError
from drakkar.transport.connection import Connection, Counters, Identity, Options, RefusedError, dial
from drakkar.transport.wire import (
    STREAM_FRAME_LIMIT,
    STREAM_HEADER_LIMIT,
    STREAM_PIECE_LIMIT,
    Frame,
    FrameError,
    FrameKind,
    decode_reason,
    decode_stream_end,
    decode_stream_piece,
    encode_frame,
    encode_reason,
    encode_stream_end,
    encode_stream_piece,
)

__all__ = ["Bandwidth", "Incoming", "Outgoing", "StreamSink", "StreamSource"]

_log: Final = logging.getLogger("drakkar.transport")

_PIECE_BYTES: Final = 128 << 10
"""Bytes that are sent at once: to checksum and copy them holds the loop up for about a tenth of a millisecond."""
_SMALLEST_PIECE: Final = 4 << 10
"""Bytes that are sent at once where the bandwidth is very small."""
_PIECE_SECONDS: Final = 0.1
"""What a piece takes of a smaller bandwidth, so that others are not held up in turn."""
_BURST_SECONDS: Final = 0.02
"""How much of the bandwidth that nobody used may be used later: as much as makes up for a loop that wakes late."""
_LAST_WORD_SECONDS: Final = 1.0
"""How long to wait for the reason that the other side gives, or for it to read ours, before the connection is closed."""


class StreamSource(Protocol):
    """Where a stream comes from. Everything here is called on the loop's thread, one call at a time."""

    async def read(self) -> bytes:
        """Return the next bytes, of any number up to 1 MiB, and b"" at the end.

        What it raises ends the stream: the receiver is told the text.
        """
        ...


class StreamSink(Protocol):
    """Where a stream goes. Everything here is called on the loop's thread, one call at a time, and must not block it.

    After `write` calls comes either one `finish` that returns, or one `abort`. What `write` and `finish` raise ends
    the stream: a `DrakkarError` is a refusal, anything else a failure of this host; the sender is told the text.
    """

    async def write(self, data: bytes) -> None:
        """Take the next bytes, in order, at most 1 MiB. More are read from the network once it has returned."""
        ...

    async def finish(self) -> None:
        """Keep what came, which is all, and as it was sent. The sender hears of it once this has returned.

        It may take long. If it is cancelled, or raises, `abort` follows.
        """
        ...

    async def abort(self, error: Exception) -> None:
        """Forget what came: the stream broke off, or was refused, because of `error`.

        It cannot be cancelled, so it should return soon. What it raises is logged.
        """
        ...


class Bandwidth:
    """So many bytes in a second, for all who ask, in the order in which they ask: a token bucket."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._turn = trio.Lock()
        self._free_at = -math.inf
        self.piece = int(min(_PIECE_BYTES, max(_SMALLEST_PIECE, bytes_per_second * _PIECE_SECONDS)))
        """Bytes to ask for at once."""

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent. Whoever is cancelled while he waits has used nothing."""
        async with self._turn:
            begin = max(self._free_at, trio.current_time() - _BURST_SECONDS)
            end = begin + size / self._rate
            await trio.sleep_until(end)
            self._free_at = end


class _Line:
    """The connection of a stream, on which two tasks speak: one that works, and one that shows that this end lives."""

    def __init__(self, connection: Connection, options: Options) -> None:
        self._connection, self._options = connection, options
        self._turn = trio.Lock()
        self._quiet = False
        connection.limit_frames(STREAM_FRAME_LIMIT)

    async def say(self, frame: bytes, *, last: bool = False) -> None:
        """Write one frame; after the last one no sign of life follows."""
        async with self._turn:
            await self._connection.send(frame, self._options.send_timeout)
            self._quiet = self._quiet or last

    async def keep_alive(self) -> None:
        """Give signs of life until the last frame was said."""
        ping = encode_frame(FrameKind.PING)
        await trio.sleep(self._options.keepalive)
        while not self._quiet:
            await self.say(ping)
            await trio.sleep(self._options.keepalive)

    async def hear(self) -> list[Frame]:
        """Wait for some frames. That none comes is how a host that vanished without a word is noticed."""
        # One sign of life may be late, or lost in a busy host.
        return await self._connection.frames(2 * self._options.keepalive + self._options.answer_timeout)

    async def part(self, frame: bytes) -> None:
        """Say the last word, and see to it that it arrives, if it can."""
        with suppress(TransportError):
            await self.say(frame, last=True)
            await self._connection.drain(_LAST_WORD_SECONDS)


# ---- the outgoing side


class Outgoing:
    """All streams that this host sends. Everything here is for the trio loop's thread."""

    def __init__(self, options: Options, counters: Counters, tls: ssl.SSLContext | None) -> None:
        self._options, self._counters, self._tls = options, counters, tls
        self._bandwidth = Bandwidth(options.stream_bytes_per_second)
        self._running: set[trio.CancelScope] = set()

    async def send(self, address: str, header: bytes, source: StreamSource, identity: Identity) -> None:
        """Send one stream. Raises `TransportError` where it was not delivered."""
        self._check(address, header)
        stream = _Sending(source, self._options, self._counters, self._bandwidth)
        with trio.CancelScope() as scope:
            self._running.add(scope)
            try:
                await self._deliver(address, header, stream, identity)
            except TransportError as error:
                self._counters.blame(error)
                raise self._failed(address, stream, str(error)) from stream.fault or error
            except BaseException:
                self._failed(address, stream, "it was cancelled")
                raise
            finally:
                self._running.discard(scope)
        if scope.cancelled_caught:
            raise TransportError(_broke(address, stream, f"{identity.address} stopped serving"))
        self._counters.streams_sent += 1
        _log.info("%s has kept the stream of %d bytes", address, stream.sent)

    def stop(self) -> None:
        """End all of them."""
        for scope in self._running:
            scope.cancel()

    def _check(self, address: str, header: bytes) -> None:
        limit = self._options.max_outgoing_streams
        if len(self._running) >= limit:
            raise TransportError(
                f"the stream to {address} was not sent: {limit} are being sent already; wait until one has ended"
            )
        if len(header) > STREAM_HEADER_LIMIT:
            raise TransportError(
                f"the stream to {address} was not sent: its header has {len(header)} bytes, and "
                f"{STREAM_HEADER_LIMIT} are allowed; send what is long in the stream"
            )

    async def _deliver(self, address: str, header: bytes, stream: "_Sending", identity: Identity) -> None:
        connection, _ = await dial(
            address, identity, self._options, self._counters, tls=self._tls, stream=True
        )
        _log.info("sends a stream to %s", address)
        try:
            await stream.run(_Line(connection, self._options), header)
        finally:
            await connection.close()

    def _failed(self, address: str, stream: "_Sending", reason: str) -> TransportError:
        self._counters.streams_failed += 1
        text = _broke(address, stream, reason)
        _log.warning("%s", text)
        return TransportError(text)


def _broke(address: str, stream: "_Sending", reason: str) -> str:
    return f"the stream to {address} was not delivered; {stream.sent} bytes of it were sent: {reason}"


class _Sending:
    """One stream that is being sent."""

    def __init__(
        self, source: StreamSource, options: Options, counters: Counters, bandwidth: Bandwidth
    ) -> None:
        self._source, self._options, self._counters, self._bandwidth = source, options, counters, bandwidth
        self.sent = 0
        """Bytes that were handed to the kernel."""
        self.fault: Exception | None = None
        """What the source raised."""
        self._pieces = self._checksum = 0
        self._all_said = False
        self._error: TransportError | None = None

    async def run(self, line: _Line, header: bytes) -> None:
        """Send everything, and wait for the answer. Raises `TransportError` if it does not come, or is a refusal."""
        async with trio.open_nursery() as nursery:
            over = nursery.cancel_scope
            nursery.start_soon(self._hear, line, over)
            nursery.start_soon(self._until_lost, partial(self._write, line, header), over)
            nursery.start_soon(self._until_lost, line.keep_alive, over)
        if self._error is not None:
            raise self._error

    async def _until_lost(self, work: Callable[[], Awaitable[None]], over: trio.CancelScope) -> None:
        try:
            await work()
        except TransportError as error:
            if self._error is None:
                # The receiver may have said why, which `_hear` is about to read.
                await trio.sleep(_LAST_WORD_SECONDS)
                self._error = error
            over.cancel()

    # ---- writing

    async def _write(self, line: _Line, header: bytes) -> None:
        await line.say(encode_frame(FrameKind.STREAM_BEGIN, header))
        size = self._bandwidth.piece
        while data := await self._next(line):
            for at in range(0, len(data), size):
                await self._say_piece(line, data[at : at + size])
        self._all_said = True
        await line.say(encode_stream_end(self.sent, self._checksum), last=True)

    async def _next(self, line: _Line) -> memoryview:
        """Return what the source gives next; if it fails, tell the receiver."""
        try:
            return _checked(await self._source.read())
        except Exception as error:
            self.fault = error
            self._error = TransportError(f"the source failed: {_told(error)}")
            with suppress(TransportError):
                await line.say(encode_reason(str(self._error)), last=True)
            raise self._error from error

    async def _say_piece(self, line: _Line, data: memoryview) -> None:
        await self._bandwidth.take(len(data))
        self._checksum = zlib.crc32(data, self._checksum)
        await line.say(encode_stream_piece(self._pieces, data))
        self._pieces += 1
        self.sent += len(data)
        self._counters.stream_bytes_sent += len(data)

    # ---- reading

    async def _hear(self, line: _Line, over: trio.CancelScope) -> None:
        """Wait for the receiver's word: what it says comes before what the network says."""
        try:
            done = False
            while not done:
                for frame in await line.hear():
                    done = done or self._is_done(frame)
        except TransportError as error:
            self._error = self._error or error
        over.cancel()

    def _is_done(self, frame: Frame) -> bool:
        if frame.kind == FrameKind.REFUSED:
            raise TransportError(f"refused: {decode_reason(frame.body)}")
        if frame.kind == FrameKind.STREAM_DONE:
            if not self._all_said:
                raise FrameError("the receiver has everything before everything was sent")
            return True
        if frame.kind != FrameKind.PING:
            self._counters.unknown_frames += 1
            _log.debug("dropped a frame of kind %d in answer to a stream", frame.kind)
        return False


# ---- the incoming side


class Incoming:
    """All streams that others send to this host. Everything here is for the trio loop's thread."""

    def __init__(
        self, begin: Callable[[str, bytes], StreamSink] | None, options: Options, counters: Counters
    ) -> None:
        self._begin, self._options, self._counters = begin, options, counters
        self._running = 0

    async def receive(self, connection: Connection, sender: str) -> None:
        """Take in the one stream of a connection, and answer. Whatever becomes of it is told, and raised to nobody."""
        line = _Line(connection, self._options)
        stream = _Receiving(sender, line, self._counters)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_show_life, line)
                await self._take(stream)
                nursery.cancel_scope.cancel()
        except BaseException:
            if not stream.over:
                self._fail(stream, TransportError("it was cancelled, as this host stops"))
            raise

    async def _take(self, stream: "_Receiving") -> None:
        try:
            with self._place() as begin:
                header = await stream.header()
                await stream.take(begin(stream.sender, header))
        except Exception as error:  # noqa: BLE001  # both sides are told, and others go on
            self._fail(stream, error)
            await stream.line.part(encode_reason(_told(error)))
        else:
            stream.over = True
            self._counters.streams_received += 1
            _log.info("kept a stream of %d bytes from %s", stream.taken, stream.sender)
            await stream.line.part(encode_frame(FrameKind.STREAM_DONE))

    @contextmanager
    def _place(self) -> Iterator[Callable[[str, bytes], StreamSink]]:
        """Take a place for one more stream; give what begins it. Raises `RefusedError` if there may be none."""
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
        stream.over = True
        self._counters.streams_failed += 1
        ours = not isinstance(error, DrakkarError)
        if ours:
            self._counters.failed += 1
        elif isinstance(error, TransportError):
            self._counters.blame(error)
        _log.warning(
            "the stream from %s was not kept; %d bytes of it came: %s",
            stream.sender,
            stream.taken,
            _told(error),
            exc_info=error if ours else None,
        )


async def _show_life(line: _Line) -> None:
    # Whether the sender still listens matters only once there is an answer to give.
    with suppress(TransportError):
        await line.keep_alive()


class _Receiving:
    """One stream that is being received."""

    def __init__(self, sender: str, line: _Line, counters: Counters) -> None:
        self.sender, self.line, self._counters = sender, line, counters
        self.taken = 0
        """Bytes that the sink took."""
        self.over = False
        """Whether it was counted as received, or as failed."""
        self._pieces = self._checksum = 0
        self._waiting: list[Frame] = []  # the last first

    async def header(self) -> bytes:
        """Wait for the beginning. Raises `FrameError` where it is none."""
        frame = await self._next()
        if frame.kind != FrameKind.STREAM_BEGIN:
            raise FrameError(f"a stream begins with a frame of kind {frame.kind}")
        if len(frame.body) > STREAM_HEADER_LIMIT:
            raise FrameError(
                f"the header of a stream has {len(frame.body)} bytes, and {STREAM_HEADER_LIMIT} are allowed"
            )
        return bytes(frame.body)

    async def take(self, sink: StreamSink) -> None:
        """Let the sink have, and keep, what comes. Raises what was in the way, after the sink was told to forget it."""
        _log.info("a stream from %s begins", self.sender)
        try:
            while await self._take_one(sink):
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
            except Exception:  # noqa: BLE001  # it is logged, and must not hide why the stream ended
                self._counters.failed += 1
                _log.exception("this host failed to forget the stream from %s", self.sender)

    async def _take_one(self, sink: StreamSink) -> bool:
        """Take one frame; False if it was the end, and everything was as it should be."""
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
            self._waiting = (await self.line.hear())[::-1]
        else:
            # Many small pieces that came at once leave others on the loop their turns.
            await trio.lowlevel.checkpoint()
        return self._waiting.pop()


def _checked(data: bytes) -> memoryview:
    """Refuse what a source must not give."""
    view = memoryview(data)
    if len(view) > STREAM_PIECE_LIMIT:
        raise TransportError(f"it gave {len(view)} bytes at once, and {STREAM_PIECE_LIMIT} are allowed")
    return view


def _told(error: Exception) -> str:
    """Say what went wrong, as it is told to the other side."""
    return str(error) if isinstance(error, DrakkarError) else f"{type(error).__name__}: {error}"
