"""`LogMeter`: how many bytes the entries of a replica have, by index, as far as snapshots need to know."""

from bisect import bisect_left, bisect_right

from drakkar.handlers.raft.entries import Entries

__all__ = ["LogMeter"]


class LogMeter:
    """Bytes of the entries that were given to the state machine since the start, noted in steps.

    An answer is exact to within a step and a batch. For the loop's thread.
    """

    def __init__(self, step: int) -> None:
        """`step` is how many bytes are noted together, at least."""
        self._step = step
        self._indexes = [0]
        self._totals = [0]
        """Bytes up to the index in the same place."""
        self._total = 0

    def note(self, entries: Entries) -> None:
        """Count entries, which follow those counted before, unless a snapshot was loaded between them."""
        self._total += entries.size
        if self._total - self._totals[-1] >= self._step:
            self._indexes.append(entries.runs[-1].last)
            self._totals.append(self._total)

    def behind(self, index: int) -> int:
        """Return how many bytes of entries were counted behind `index`."""
        return self._total - self._totals[bisect_right(self._indexes, index) - 1]

    def before(self, index: int, limit: int) -> int:
        """Return the lowest index after which, and up to `index`, there are at most `limit` bytes; 0 if that is not known."""
        least = self._total - self.behind(index) - limit
        return self._indexes[bisect_left(self._totals, least)] if least > 0 else 0

    def forget(self, index: int) -> None:
        """Forget what was before `index`, which is compacted."""
        gone = bisect_right(self._indexes, index) - 1
        del self._indexes[:gone], self._totals[:gone]
