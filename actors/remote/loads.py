"""How many bytes of messages from other hosts wait for actors here, and how many may.

A message counts from when it is put into an inbox until the actor has taken it out and let go of its envelope. pykka tells nobody
when that is, so the envelope does, when it is thrown away.
"""

from collections import deque
from typing import Any, Final

from drakkar.handlers.errors import SystemBusy
from pykka._envelope import Envelope

__all__ = ["MAX_BYTES", "MAX_BYTES_OF_ONE", "Delivered", "Load"]

MAX_BYTES: Final = 128 << 20
"""Bytes, as they travel, of the messages of all hosts that wait. In memory they may be some times as many."""
MAX_BYTES_OF_ONE: Final = 32 << 20
"""Of the messages of one host."""
_OVERHEAD: Final = 512
"""What a message counts beside its bytes."""


class Load:
    """The bytes that wait. For the thread of the loop, but for what an envelope calls."""

    def __init__(self, limit: int, whose: str, all_of_them: "Load | None" = None) -> None:
        """`whose`: in errors. `all_of_them`: of which this is a part."""
        self._limit, self._whose, self._all = limit, whose, all_of_them
        self._bytes = 0
        self._freed: deque[int] = deque()
        """What is not subtracted yet: it comes from any thread, in the middle of anything, so it must not wait for a lock."""

    @property
    def bytes(self) -> int:
        """How many wait."""
        freed = self._freed
        while freed:
            self._bytes -= freed.popleft()
        return self._bytes

    def check(self, size: int) -> None:
        """Raise `SystemBusy` where a message of so many bytes finds no room. One of any size does where nothing waits."""
        waiting = self.bytes
        if waiting and waiting + size + _OVERHEAD > self._limit:
            raise SystemBusy(
                f"{waiting} bytes of messages from {self._whose} wait for actors, and {self._limit} are allowed: wait a little, "
                "and send it again"
            )
        if self._all is not None:
            self._all.check(size)

    def add(self, size: int) -> None:
        """One is put into an inbox."""
        self._bytes += size + _OVERHEAD
        if self._all is not None:
            self._all.add(size)

    def take(self, size: int) -> None:
        """It is out again. From any thread."""
        self._freed.append(size + _OVERHEAD)
        if self._all is not None:
            self._all.take(size)


class Delivered(Envelope[Any]):
    """A message from another host, in the inbox of its actor."""

    __slots__ = ("_load", "_size")

    def __init__(self, message: Any, reply_to: Any, load: Load, size: int) -> None:
        super().__init__(message, reply_to)
        self._load, self._size = load, size
        load.add(size)

    def __del__(self) -> None:
        self._load.take(self._size)
