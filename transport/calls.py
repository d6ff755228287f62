"""The third lane to a peer, behind control and beside bulk: records of remote calls; and how many may be on their way.

Any code of an application may call, as often as it likes. A lane bounds what waits here, but not what has left: the
kernels of the two hosts take some megabytes when the receiver is busy, and a vote that is written next is behind all of
them. Of bulk there is little, since a leader waits for answers. Calls need not have any.

So the receiver gives *credit*. Each side counts what was sent in CALLS bodies on the connection. The receiver hands
records to their actors, and then says on the same connection how many it has taken in all, whenever these are
`CREDIT_RECORDS` or `CREDIT_BYTES` more than it has said before; later, where they take too much of its time (`budgets`). The sender has no more than `WINDOW_RECORDS` and
`WINDOW_BYTES` without credit. A record alone may exceed that, since one may be larger than the window, but only while
no credit is due. So a sender that must wait is owed credit, and neither waits for ever.

A vote is behind that much at most, or behind one larger record and less than `CREDIT_BYTES`, however slow the receiver
is. A receiver that fails to give credit stops the calls to it and nothing else. Once a record has begun to leave in
parts it goes on without credit, since bulk waits for its end.

Plain data, for the thread of the loop.
"""

import struct
from collections import deque
from collections.abc import Iterable
from typing import Final

from drakkar.transport.call_frames import JOINED_BYTES, LIST_HEAD, RECORDS_PER_FRAME, calls_body, list_head
from drakkar.transport.call_rooms import CallRoom
from drakkar.transport.frames import FrameError, FrameKind, encode_frame
from drakkar.transport.parts import PART_BYTES, PartTurns, PartWriter

__all__ = ["CREDIT_BYTES", "CREDIT_RECORDS", "WINDOW_BYTES", "WINDOW_RECORDS", "CallLane", "CallWindow"]

WINDOW_RECORDS: Final = 512
"""Records on their way at most."""
WINDOW_BYTES: Final = 256 << 10
"""Bytes of CALLS bodies on their way at most, but for a record that is alone."""
CREDIT_RECORDS: Final = 128
"""Records for which a receiver may owe credit."""
CREDIT_BYTES: Final = 64 << 10
"""Bytes for which it may: a quarter of the window, so that a sender with much to send never stops for it."""
_CREDIT: Final = struct.Struct(">QQ")


class CallWindow:
    """What was sent in CALLS bodies on one connection, and what of it has credit. Each side has one.

    The sender's hears of a credit later than the receiver's, and never earlier. So what the sender's lets out the
    receiver's lets in.
    """

    __slots__ = ("_bytes", "_credited_bytes", "_credited_records", "_records")

    def __init__(self) -> None:
        self._records = self._bytes = 0
        self._credited_records = self._credited_bytes = 0

    @property
    def due(self) -> bool:
        """So much is without credit that the receiver gives some when it has taken it."""
        return (
            self._records - self._credited_records >= CREDIT_RECORDS
            or self._bytes - self._credited_bytes >= CREDIT_BYTES
        )

    def fits(self, records: int, size: int) -> bool:
        """Return whether a body of so many records and bytes may be sent."""
        return (
            self._records + records - self._credited_records <= WINDOW_RECORDS
            and self._bytes + size - self._credited_bytes <= WINDOW_BYTES
        ) or (records == 1 and not self.due)

    def add(self, records: int, size: int) -> None:
        """A body of so many records and bytes was sent, or has come. It `fits`."""
        self._records += records
        self._bytes += size

    def give(self) -> bytes:
        """Return a frame that gives credit for all that has come. At the receiver, when all of it was handed over."""
        self._credited_records, self._credited_bytes = self._records, self._bytes
        return encode_frame(FrameKind.CALLS, _CREDIT.pack(self._records, self._bytes))

    def take(self, body: memoryview) -> bool:
        """Take the body of such a frame; return whether it brought credit. At the sender.

        Raises `FrameError` where it is malformed, gives credit for more than was sent, or takes some back.
        """
        if len(body) != _CREDIT.size:
            raise FrameError(f"a credit for calls has {len(body)} bytes, and not {_CREDIT.size}")
        records, size = _CREDIT.unpack(body)
        if not (
            self._credited_records <= records <= self._records and self._credited_bytes <= size <= self._bytes
        ):
            raise FrameError(
                f"a credit is for {records} calls of {size} bytes, where {self._records} of {self._bytes} were sent, "
                f"and {self._credited_records} of {self._credited_bytes} had credit"
            )
        brought = (records, size) != (self._credited_records, self._credited_bytes)
        self._credited_records, self._credited_bytes = records, size
        return brought


class CallLane:
    """Encoded records for one peer, first in, first out. Each has a place in the `room` before it is put."""

    __slots__ = ("_records", "_turns", "_window", "_writer", "room")

    def __init__(self, room: CallRoom, turns: PartTurns) -> None:
        """`turns`: shared with the lane of bulk."""
        self.room: Final = room
        self._turns = turns
        self._records: deque[bytes] = deque()
        self._window = CallWindow()
        self._writer: PartWriter | None = None
        """Of the first record, while it is being sent in parts."""

    @property
    def count(self) -> int:
        """Records that wait."""
        return len(self._records)

    @property
    def ready(self) -> bool:
        """The first of them may leave now: it need not wait for credit."""
        if self._writer is not None:
            return True
        return bool(self._records) and self._window.fits(1, len(self._records[0]) + LIST_HEAD)

    def put(self, records: Iterable[bytes]) -> None:
        """Queue records that have their places."""
        self._records.extend(records)

    def take(self, limit: int) -> list[bytes]:
        """Take CALLS frames, and PART frames of large records, until they have `limit` bytes or more.

        Nothing where the first record waits for credit, or for the end of a large message of bulk.
        """
        taken: list[bytes] = []
        size = 0
        while size < limit and self.ready and (frame := self._next()):
            taken.append(frame)
            size += len(frame)
        return taken

    def _next(self) -> bytes:
        if self._writer is None:
            first = self._records[0]
            if len(first) <= PART_BYTES - LIST_HEAD:
                return self._next_frame()
            if not self._turns.take(self):
                return b""
            self._writer = PartWriter([list_head(1), first])
        return self._next_part(self._writer)

    def _next_frame(self) -> bytes:
        """Join records, as many as may leave together."""
        records, window = self._records, self._window
        joined = [records.popleft()]
        size = len(joined[0])
        while records and len(joined) < RECORDS_PER_FRAME:
            more = size + len(records[0])
            body = more + LIST_HEAD
            if body > JOINED_BYTES or not window.fits(len(joined) + 1, body):
                break
            joined.append(records.popleft())
            size = more
        whole = calls_body(joined)
        self._left(len(joined), size, len(whole))
        return encode_frame(FrameKind.CALLS, whole)

    def _next_part(self, writer: PartWriter) -> bytes:
        part = writer.next()
        if writer.done:
            self._writer = None
            self._turns.leave(self)
            size = len(self._records.popleft())
            self._left(1, size, len(list_head(1)) + size)
        return part

    def _left(self, records: int, size: int, body: int) -> None:
        self._window.add(records, body)
        self.room.left(records, size)

    def credit(self, body: memoryview) -> bool:
        """Take the body of a CALLS frame of the peer. See `CallWindow.take`."""
        return self._window.take(body)

    def reconnect(self) -> None:
        """The connection has ended: what leaves from now on needs no credit of the last one."""
        self._window = CallWindow()
        self.room.disconnected()

    def clear(self) -> list[bytes]:
        """Drop all; return them, in order. None of them has left whole, so none has an effect."""
        unsent = list(self._records)
        self._records.clear()
        self._writer = None
        self._turns.leave(self)
        self.room.dropped(len(unsent), sum(map(len, unsent)))
        return unsent
