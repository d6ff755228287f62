"""How long to wait before the next attempt."""

from random import Random
from typing import Final

__all__ = ["Backoff"]

_MAX_DOUBLINGS: Final = 60
_RANDOM: Final = Random()


class Backoff:
    """Waits that double with each failure, from `first` to `last` seconds, with jitter.

    Each wait is cut by up to half at random, so it lasts from `first / 2` to `last` seconds. Callers that fail at the
    same moment therefore do not all come back at the same moment. Use one object for each sequence of attempts, in one
    thread at a time. `random` is for tests.
    """

    __slots__ = ("_first", "_last", "_random", "failures")

    def __init__(self, first: float, last: float, random: Random = _RANDOM) -> None:
        self._first, self._last, self._random = first, last, random
        self.failures = 0
        """Failures since the start, or since the last `reset`."""

    def next(self) -> float:
        """Count one more failure, and return the seconds to wait after it."""
        # Failures may go on for days, and 2.0**1024 is more than a float holds.
        wait = min(self._last, self._first * 2.0 ** min(self.failures, _MAX_DOUBLINGS))
        self.failures += 1
        return self.jitter(wait)

    def jitter(self, wait: float) -> float:
        """Return `wait`, cut by up to half at random."""
        return wait * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again with the shortest wait, after a success."""
        self.failures = 0
