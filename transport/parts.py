"""Large messages in parts, so that control need not wait for a whole one. Pure functions, no sockets.

A PART frame carries some bytes of the body that a MESSAGES frame of one message would have:

    length of that body | offset of these bytes in it | the bytes
             4                       4                               (big-endian)

The parts of one message come in order. Between two of them other frames may come, but no part of another message: so
a receiver needs one buffer a connection.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from drakkar.transport.frames import HEADER_SIZE, FrameError, FrameKind, encode_frame
from drakkar.transport.message_frames import Packed, body_of

__all__ = ["PART_BYTES", "PartReader", "PartWriter"]

_HEAD: Final = struct.Struct(">II")
PART_BYTES: Final = (128 << 10) - HEADER_SIZE - _HEAD.size
"""Maximum bytes of a message in one part. A whole part takes 5 ms on a link of 200 Mbit/s."""


class PartWriter:
    """One message, cut into PART frames."""

    __slots__ = ("_left", "_slices", "_total")

    def __init__(self, packed: Packed) -> None:
        body = body_of([packed])
        self._total = self._left = sum(map(len, body))
        self._slices = _slices(body)

    @property
    def done(self) -> bool:
        """All parts were made."""
        return not self._left

    def next(self) -> bytes:
        """Make the next PART frame."""
        pieces = next(self._slices)
        head = _HEAD.pack(self._total, self._total - self._left)
        self._left -= sum(map(len, pieces))
        return encode_frame(FrameKind.PART, head, *pieces)


def _slices(pieces: Sequence[bytes]) -> Iterator[list[memoryview]]:
    """Cut the joined `pieces` into slices of `PART_BYTES`, without joining them."""
    taken: list[memoryview] = []
    free = PART_BYTES
    for piece in pieces:
        view = memoryview(piece)
        while len(view) >= free:
            taken.append(view[:free])
            yield taken
            view, taken, free = view[free:], [], PART_BYTES
        if view:
            taken.append(view)
            free -= len(view)
    if taken:
        yield taken


class PartReader:
    """Puts the parts of messages together again, one message at a time."""

    __slots__ = ("_body", "_limit", "_total")

    def __init__(self, limit: int) -> None:
        """`limit`: maximum bytes of a body."""
        self._limit = limit
        self._body = bytearray()
        self._total = 0

    @property
    def unfinished(self) -> tuple[int, int]:
        """Bytes of the message that is not complete, as its first part says, and how many of them are here; zeros: none is."""
        return (self._total, len(self._body)) if self._body else (0, 0)

    def feed(self, part: memoryview) -> bytearray | None:
        """Take the body of the next PART frame; return the body of the MESSAGES frame that it completes.

        Raises `FrameError` where it is not the next part, or has more bytes than it says or than are allowed.
        """
        if len(part) <= _HEAD.size:
            raise FrameError("a part of a message has no bytes")
        total, offset = _HEAD.unpack_from(part)
        body = self._body
        if not body:
            self._total = total
            if total > self._limit:
                raise FrameError(f"a message in parts has {total} bytes, and {self._limit} are allowed")
        if (total, offset) != (self._total, len(body)):
            raise FrameError(
                f"a part begins at byte {offset} of {total}, where byte {len(body)} of {self._total} was due"
            )
        body += part[_HEAD.size :]
        if len(body) > total:
            raise FrameError(f"the parts of a message of {total} bytes have {len(body)}")
        if len(body) < total:
            return None
        self._body = bytearray()
        return body
