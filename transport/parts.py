"""Large messages and calls in parts, so that control need not wait for a whole one. Pure functions, no sockets.

A PART frame carries some bytes of the body that a MESSAGES frame of one message, or a CALLS frame of one record, would have:

    length of that body | offset of these bytes in it | the bytes
             4                       4                               (big-endian)

The parts of one body come in order. Between two of them other frames may come, but no part of another body: so
a receiver needs one buffer a connection, and a sender has a `PartTurns`.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from drakkar.transport.call_frames import is_calls
from drakkar.transport.frames import HEADER_SIZE, FrameError, FrameKind, encode_frame

__all__ = ["PART_BYTES", "PartReader", "PartTurns", "PartWriter"]

_HEAD: Final = struct.Struct(">II")
PART_BYTES: Final = (128 << 10) - HEADER_SIZE - _HEAD.size
"""Maximum bytes of a message in one part. A whole part takes 5 ms on a link of 200 Mbit/s."""


class PartWriter:
    """One body, cut into PART frames."""

    __slots__ = ("_left", "_slices", "_total")

    def __init__(self, body: Sequence[bytes]) -> None:
        """`body`: the pieces that, joined, are the body."""
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


class PartTurns:
    """Which of the two lanes of a connection may send something large in parts: one at a time, and each in turn."""

    __slots__ = ("_has_turn", "_waits")

    def __init__(self) -> None:
        self._has_turn: object = None
        self._waits: object = None
        """The lane that was refused, and is next."""

    def take(self, lane: object) -> bool:
        """Return whether a lane that has no turn may begin one now. If not, it has to ask again, and is the next.

        A lane that was refused must go on asking, unless it leaves: the other one has no turn before it.
        """
        if self._has_turn is not None:
            self._waits = lane
        elif self._waits in (None, lane):
            self._has_turn, self._waits = lane, None
        return self._has_turn is lane

    def leave(self, lane: object) -> None:
        """A lane has sent the last part, or has dropped what it had."""
        if self._has_turn is lane:
            self._has_turn = None
        if self._waits is lane:
            self._waits = None


class PartReader:
    """Puts the parts of messages and calls together again, one at a time."""

    __slots__ = ("_body", "_call_limit", "_limit", "_total")

    def __init__(self, limit: int, call_limit: int | None = None) -> None:
        """`limit`: maximum bytes of a body, and `call_limit` of one of calls, if that is less."""
        self._limit, self._call_limit = limit, limit if call_limit is None else min(limit, call_limit)
        self._body = bytearray()
        self._total = 0

    @property
    def unfinished(self) -> tuple[int, int]:
        """Bytes of the body that is not complete, as its first part says, and how many of them are here; zeros: none is."""
        return (self._total, len(self._body)) if self._body else (0, 0)

    def feed(self, part: memoryview) -> bytearray | None:
        """Take the body of the next PART frame; return the body of the MESSAGES or CALLS frame that it completes.

        Raises `FrameError` where it is not the next part, or has more bytes than it says or than are allowed.
        """
        if len(part) <= _HEAD.size:
            raise FrameError("a part of a message has no bytes")
        total, offset = _HEAD.unpack_from(part)
        body = self._body
        if not body:
            self._total = total
            limit = self._call_limit if is_calls(part[_HEAD.size :]) else self._limit
            if total > limit:
                raise FrameError(f"a message in parts has {total} bytes, and {limit} are allowed")
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
