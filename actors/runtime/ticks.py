"""`Ticks`: how many ticks have passed, for a node whose turns come when they come."""

import time
from collections.abc import Callable
from typing import Final

__all__ = ["MAX_AT_ONCE", "Ticks"]

MAX_AT_ONCE: Final = 10
"""Ticks that are made up for after a pause. After a longer one, of a process that was stopped say, timers go on as if it had been
so long: one of each tick must not ring a thousand times in a row."""


class Ticks:
    """The ticks since a node began. For one thread."""

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`interval`: seconds a tick."""
        self._interval, self._clock = interval, clock
        self._last = clock()

    @property
    def next(self) -> float:
        """When the next one is over, in seconds of the clock."""
        return self._last + self._interval

    def passed(self) -> int:
        """Return how many ticks are over since the last call, `MAX_AT_ONCE` at most."""
        passed = self.idle()
        if passed > MAX_AT_ONCE:
            self._last = self._clock()
        return min(passed, MAX_AT_ONCE)

    def idle(self) -> int:
        """Return how many are over since the last call, however many: where nothing waits for any of them."""
        passed = max(0, int((self._clock() - self._last) / self._interval))
        self._last += passed * self._interval
        return passed
