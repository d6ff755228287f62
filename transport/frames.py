"""Frames: bytes with a header, and how they are found again in a stream of bytes. Pure functions, no sockets.

A frame is a header of 16 bytes and a body:

    magic "DK" | framing version | kind | body length | body checksum | header checksum
         2             1            1         4              4                4          (big-endian)

The header has a checksum of its own. So a flipped bit in the length is noticed at once, and not after waiting for
megabytes that never come. The framing version is that of these 16 bytes alone. The protocol has its own version
(`hello.PROTOCOL_VERSION`), so hosts of different versions can still tell each other why they do not connect.

Nothing that comes from a peer is trusted: bytes that no correct host sends raise `FrameError`.
"""

import struct
import zlib
from enum import IntEnum
from typing import Any, Final, NamedTuple

from drakkar.handlers import cbor
from drakkar.handlers.errors import TransportError

__all__ = [
    "FIRST_FREE_KIND",
    "FRAMES_AT_ONCE",
    "FRAME_LIMIT",
    "HEADER_SIZE",
    "NO_PLACE_ALERT",
    "SMALL_FRAME_LIMIT",
    "TLS_HANDSHAKE",
    "Frame",
    "FrameError",
    "FrameKind",
    "FrameReader",
    "encode_frame",
    "loads_strict",
]

FRAME_LIMIT: Final = 64 << 20
"""Maximum bytes of a frame's body, unless `Options.frame_limit` says otherwise."""
SMALL_FRAME_LIMIT: Final = 4 << 10
"""Maximum bytes of a frame's body before the peer has introduced itself."""
FIRST_FREE_KIND: Final = 16
"""The first kind of frame that applications may define; the last is 255."""

FRAMES_AT_ONCE: Final = 512
"""Frames that a reader finds in one go: less than a millisecond of work. A read may have thousands of empty ones."""

_SMALL_PIECE: Final = 4 << 10
_SMALL_PIECES: Final = 256
"""So many small pieces of a frame are joined, before there are more."""
_SMALL_BODY: Final = 4 << 10
MAGIC: Final = b"DK"
TLS_HANDSHAKE: Final = 0x16
"""The first byte that a caller with TLS sends, with which no frame begins."""
NO_PLACE_ALERT: Final = bytes((21, 3, 3, 0, 2, 2, 80))
"""What a caller with TLS is sent in place of a FULL, since a handshake costs more than there is for it: a record with the fatal
alert "internal error", which stands for a lack of resources too (RFC 8446, section 6.2)."""
_FRAMING: Final = 1
_START: Final = struct.Struct(">2sBBII")
_CHECKSUM: Final = struct.Struct(">I")
HEADER_SIZE: Final = _START.size + _CHECKSUM.size


class FrameError(TransportError):
    """The peer's fault: bytes that no correct host sends. The connection cannot be used any further."""


class FrameKind(IntEnum):
    """What a frame is for. Kinds from 16 to 255 belong to applications.

    A receiver counts and drops a frame of a kind that it does not know.
    """

    HELLO = 1
    """The first frame in each direction: who speaks, and to whom."""
    MESSAGES = 2
    PING = 3
    """Keep-alive; the body comes back in a PONG."""
    PONG = 4
    REFUSED = 5
    """The last frame: why its sender closes the connection."""
    STREAM_HELLO = 6
    """The caller's HELLO on a connection that carries one stream and no messages.

    A kind of its own and not a field of the HELLO: a host that does not know streams would ignore the field, and let
    the connection replace the one that it has for messages. It refuses an unknown kind.
    """
    STREAM_BEGIN = 7
    """What the stream is, in a header that only sender and receiver understand."""
    STREAM_PIECE = 8
    """The next bytes, after their number, which starts at 0."""
    STREAM_END = 9
    """How many bytes that were, and the checksum of them all."""
    STREAM_DONE = 10
    """The answer to STREAM_END: the receiver has stored the stream."""
    PART = 11
    """Some of the bytes of a large message; see `parts`."""
    SHARD = 12
    """What the sender says of its replica of a shard, before the replica's first message; see `shard_frames`."""
    FULL = 13
    """In place of the answer to a HELLO: there is no place for the caller now, and there may be one soon."""
    CALLS = 14
    """Records of remote calls, see `call_frames`; or, from the host that was dialed, its credit for them, see `calls`."""
    ALIVE = 15
    """A heartbeat of the host, and its answer, with the same number; see `liveness`."""


class Frame(NamedTuple):
    """One frame. `kind` may be a number that is not a `FrameKind`."""

    kind: int
    body: memoryview


def encode_frame(kind: int, *parts: bytes | memoryview) -> bytes:
    """Return one frame, whose body is `parts` joined."""
    length = sum(map(len, parts))
    if length <= _SMALL_BODY:  # to copy it once more costs less than a checksum of each part
        parts = (b"".join(parts),)
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    start = _START.pack(MAGIC, _FRAMING, kind, length, checksum)
    return b"".join((start, _CHECKSUM.pack(zlib.crc32(start)), *parts))


class FrameReader:
    """Frames out of a stream of bytes that comes in pieces of any length.

    `limit` is the maximum number of bytes of a body. It may be changed between two calls. After a `FrameError` the
    stream cannot be read any further, since it is not known where the next frame begins.
    """

    __slots__ = ("_available", "_pieces", "_small", "_wanted", "limit", "more")

    def __init__(self, limit: int = FRAME_LIMIT) -> None:
        self.limit = limit
        self.more = False
        """Complete frames may be left: call `feed(b"")` before more is read."""
        self._pieces: list[bytes] = []
        self._small = 0
        """How many pieces at the end are small."""
        self._available = 0
        # Pieces are joined only once this many bytes are there: a big frame is copied once, not once per piece.
        self._wanted = HEADER_SIZE

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes, and return the frames that they complete, `FRAMES_AT_ONCE` at most.

        The bodies are views of the bytes that were read: copy what must be kept.

        Raises `FrameError` for a wrong magic, framing version, length or checksum.
        """
        self._pieces.append(data)
        self._available += len(data)
        if self._available < self._wanted:
            self._join_small()
            return []
        joined = b"".join(self._pieces) if len(self._pieces) > 1 else data
        frames, used = self._split(memoryview(joined))
        self._pieces = [joined[used:]] if used < len(joined) else []
        self._small = 0
        self._available = len(joined) - used
        return frames

    @property
    def unfinished(self) -> tuple[int, int]:
        """Bytes of the frame that is not complete, as its header says, and how many of them are here."""
        return self._wanted, self._available

    def _join_small(self) -> None:
        """Join the last pieces where these are many and small: each takes more memory than its bytes."""
        self._small = self._small + 1 if len(self._pieces[-1]) < _SMALL_PIECE else 0
        if self._small == _SMALL_PIECES:
            joined = b"".join(self._pieces[-_SMALL_PIECES:])
            self._pieces[-_SMALL_PIECES:] = [joined]
            self._small = int(len(joined) < _SMALL_PIECE)

    def _split(self, data: memoryview) -> tuple[list[Frame], int]:
        """Return complete frames in `data`, and how many bytes they take."""
        frames: list[Frame] = []
        at = 0
        self._wanted = HEADER_SIZE
        while len(data) - at >= HEADER_SIZE:
            if len(frames) == FRAMES_AT_ONCE:
                self.more = True
                return frames, at
            kind, length, checksum = self._header(data[at : at + HEADER_SIZE])
            end = at + HEADER_SIZE + length
            if end > len(data):
                self._wanted = HEADER_SIZE + length
                break
            body = data[at + HEADER_SIZE : end]
            if zlib.crc32(body) != checksum:
                raise FrameError(f"the body of a frame of {length} bytes does not match its checksum")
            frames.append(Frame(kind, body))
            at = end
        self.more = False
        return frames, at

    def _header(self, header: memoryview) -> tuple[int, int, int]:
        magic, framing, kind, length, checksum = _START.unpack_from(header)
        if magic != MAGIC:
            raise FrameError(f"a frame begins with {magic!r}, not {MAGIC!r}: the peer is not a Drakkar host")
        if zlib.crc32(header[: _START.size]) != _CHECKSUM.unpack_from(header, _START.size)[0]:
            raise FrameError("the header of a frame does not match its checksum")
        if framing != _FRAMING:
            raise FrameError(
                f"a frame has framing version {framing}, and this host knows {_FRAMING}: upgrade the older host"
            )
        if length > self.limit:
            raise FrameError(f"a frame has {length} bytes, and {self.limit} are allowed")
        return kind, length, checksum


def loads_strict(
    data: bytes | memoryview, max_depth: int, *, plain_keys: bool = True, max_items: int | None = None
) -> Any:
    """Decode CBOR that a peer sent, as `cbor.loads` does. Raises `FrameError` where that raises `ValueError`."""
    try:
        return cbor.loads(data, max_depth, plain_keys=plain_keys, max_items=max_items)
    except ValueError as error:
        raise FrameError(str(error)) from error
