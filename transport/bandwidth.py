"""A limit on bytes per second."""

import math
from typing import Final

import trio

__all__ = ["Bandwidth"]

_PIECE_BYTES: Final = 128 << 10
"""Bytes that are sent at once: their checksum and copy hold the loop up for about a tenth of a millisecond."""
_MIN_PIECE_BYTES: Final = 4 << 10
"""Bytes that are sent at once where the bandwidth is very small."""
_PIECE_SECONDS: Final = 0.1
"""The share of a small bandwidth that one piece takes, so that others do not wait long for their turn."""
_BURST_SECONDS: Final = 0.02
"""How much unused bandwidth may be used later: enough to make up for a loop that wakes late."""


class Bandwidth:
    """A token bucket that several tasks share. They are served in the order in which they ask."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._turn = trio.Lock()
        self._free_at = -math.inf
        self.piece = int(min(_PIECE_BYTES, max(_MIN_PIECE_BYTES, bytes_per_second * _PIECE_SECONDS)))
        """The number of bytes to ask for at once."""

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent. A task that is cancelled while it waits has used nothing."""
        async with self._turn:
            begin = max(self._free_at, trio.current_time() - _BURST_SECONDS)
            end = begin + size / self._rate
            await trio.sleep_until(end)
            self._free_at = end
