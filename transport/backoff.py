"""How long to wait before the next attempt."""

from random import Random

__all__ = ["Backoff"]

_MAX_DOUBLINGS = 60


class Backoff:
    """Waits that double with each failure, from `first` to `last` seconds, with jitter.

    Each wait is cut by up to half at random, so it is between `first / 2` and `last` seconds. Hosts that lose the
    same peer at the same moment therefore do not all dial it again at the same moment.
    """

    def __init__(self, first: float, last: float, random: Random) -> None:
        self._first, self._last, self._random = first, last, random
        self.failures = 0
        """Failures since the start, or since the last `reset`."""

    def next(self) -> float:
        """Count one more failure, and return the seconds to wait after it."""
        # A peer may be away for long, and 2.0**1024 is more than a float holds.
        wait = min(self._last, self._first * 2.0 ** min(self.failures, _MAX_DOUBLINGS))
        self.failures += 1
        return self.jittered(wait)

    def jittered(self, wait: float) -> float:
        """Return `wait`, cut by up to half at random."""
        return wait * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again with the shortest wait, after a success."""
        self.failures = 0
