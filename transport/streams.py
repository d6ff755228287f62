"""Streams: what is too big for messages goes from one host to another over a connection of its own.

A stream has a header, which says what it is, and bytes, which the transport does not interpret. They come out of a
source at one end and go into a sink at the other, piece by piece. The slower of the two sets the pace, and neither
host ever holds more than about two pieces in memory.

The stream is delivered once the receiver's sink has stored it and the receiver has said so. That may take long after
the last byte, as disks do, so the receiver sends signs of life until then. So does the sender while its source, or the
limit on bandwidth, lets nothing through. But signs of life alone keep no stream open: the sender must send some of it
in each `stream_timeout`, and the receiver must store it in a time that grows with its size.

Where anything fails, both ends log why and close the connection, and the sink is told to discard the stream. Of a failure
of its own a host tells the other one only the kind: errors of files hold paths. A broken stream is not resumed: the sender
starts another.

Messages have their own connection, and overtake streams. The two share the loop, which one piece holds up for a
fraction of a millisecond, and the network, of which all streams together take a limited bandwidth.
"""

from contextlib import suppress
from typing import Final, Protocol

import trio
from drakkar.handlers.errors import CorruptData, DiskFull, DrakkarError, StorageFailed, TransportError
from drakkar.transport.connection import Connection
from drakkar.transport.frames import Frame, FrameError, FrameKind, encode_frame
from drakkar.transport.options import Options
from drakkar.transport.stream_frames import STREAM_FRAME_LIMIT

__all__ = [
    "DAMAGED",
    "LAST_FRAME_TIMEOUT_S",
    "StreamConnection",
    "StreamSink",
    "StreamSource",
    "describe",
    "told",
]

DAMAGED: Final = "damaged on its way"
"""Stands in what a receiver tells of a stream that is not as its sink needs it, so that the sender checks its own copy."""

LAST_FRAME_TIMEOUT_S: Final = 1.0
"""How long to wait for the other side's last frame, or for it to read ours, before the connection is closed."""
_FREE_FRAMES: Final = 64
_FRAMES_PER_KEEPALIVE: Final = 4
_BYTES_PER_FRAME: Final = 2 << 10
"""So many frames are taken from the other side: a few at once, a few for each sign of life that is due, and one for each
2 KiB. Others than signs of life have more, but the last one of what a source returns."""


class StreamSource(Protocol):
    """Where a stream comes from. Called on the loop's thread, one call at a time."""

    async def read(self) -> bytes:
        """Return the next bytes, 1 MiB at most, and b"" at the end.

        What it raises ends the stream; the receiver is told what `told` returns.
        """
        ...


class StreamSink(Protocol):
    """Where a stream goes. Called on the loop's thread, one call at a time, and must not block it.

    First comes one `begin`. After the `write` calls comes either one `finish` that returns, or one `abort`. What the others
    raise ends the stream: a `DrakkarError` is a refusal, anything else a failure of this host. The sender gets what `told`
    returns: so the text of a `TransportError`.
    """

    async def begin(self) -> None:
        """Make ready for the stream, or refuse it. `abort` follows a refusal too."""
        ...

    async def write(self, data: bytes) -> None:
        """Take the next bytes, in order, 1 MiB at most. No more are read from the network until it returns."""
        ...

    async def finish(self) -> None:
        """Store the stream, which is complete and as it was sent. The sender is told once this has returned.

        It may take long. Where it is cancelled, or raises, `abort` follows.
        """
        ...

    async def abort(self, error: Exception) -> None:
        """Discard the stream, which was interrupted or refused because of `error`.

        It cannot be cancelled, so it should return soon. What it raises is logged.
        """
        ...


class StreamConnection:
    """The connection of a stream. Two tasks write to it: one sends the stream, the other signs of life."""

    def __init__(self, connection: Connection, options: Options) -> None:
        self._connection, self._options = connection, options
        self._writing = trio.Lock()
        self._closing = False
        self._frames = self._bytes = 0
        self._since = trio.current_time()
        connection.limit_frames(STREAM_FRAME_LIMIT)

    async def write(self, frame: bytes, *, last: bool = False) -> None:
        """Write one frame; after the last one no sign of life follows."""
        async with self._writing:
            await self._connection.write(frame, self._options.send_timeout)
            self._closing = self._closing or last

    async def keep_alive(self) -> None:
        """Write signs of life until the last frame was written."""
        ping = encode_frame(FrameKind.PING)
        await trio.sleep(self._options.keepalive)
        while not self._closing:
            await self.write(ping)
            await trio.sleep(self._options.keepalive)

    async def read(self) -> list[Frame]:
        """Wait for at least one frame. Raises `TransportError` where no sign of life comes, or the connection ends.

        Raises `FrameError` where there are more of them than a host sends: each costs this host some of its time.
        """
        # One sign of life may be late, or lost in a busy host.
        frames = await self._connection.read(2 * self._options.keepalive + self._options.answer_timeout)
        self._frames += len(frames)
        self._bytes += sum(len(frame.body) for frame in frames)
        due = (trio.current_time() - self._since) / self._options.keepalive
        if self._frames > _FREE_FRAMES + _FRAMES_PER_KEEPALIVE * due + self._bytes / _BYTES_PER_FRAME:
            raise FrameError(
                f"{self._frames} frames came with {self._bytes} bytes in all, which are too many"
            )
        return frames

    async def write_last(self, frame: bytes) -> None:
        """Write the last frame, and wait a little for the other side to read it. Errors do not matter any more."""
        with suppress(TransportError):
            await self.write(frame, last=True)
            with trio.move_on_after(LAST_FRAME_TIMEOUT_S):
                await self._connection.drain()


def describe(error: Exception) -> str:
    """Return the text of an error for the log: it has no traceback, so a foreign error shows its type."""
    return str(error) if isinstance(error, DrakkarError) else f"{type(error).__name__}: {error}"


def told(error: Exception) -> str:
    """Return what the other host is told of an error. Only a `TransportError` was written for it: others may hold paths."""
    match error:
        case TransportError():
            return str(error)
        case CorruptData():
            return "what it has is damaged; its log says more"
        case DiskFull():
            return "its disk has no room for it; its log says more"
        case StorageFailed():
            return "it cannot use its disk now; its log says more"
        case _:
            return f"a failure of its own ({type(error).__name__}); its log says more"
