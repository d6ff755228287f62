"""Consecutive runs of entries, found by index: the mechanics of a log, without any of its rules."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from drakkar.handlers.raft.entries import Run

__all__ = ["Window"]

_RUN_OVERHEAD: Final = 320


def _weight(run: Run) -> int:
    """Bytes that a run takes in memory, about: one of a single short command is mostly its own objects."""
    return run.size + _RUN_OVERHEAD


class Window:
    """The runs from `first` on, without a gap."""

    __slots__ = ("bytes", "first", "firsts", "runs")

    def __init__(self, first: int) -> None:
        self.runs: list[Run] = []
        self.firsts: list[int] = []
        self.first = first
        self.bytes = 0

    @property
    def last(self) -> int:
        """The last index held; `first - 1` where there is none."""
        return self.runs[-1].last if self.runs else self.first - 1

    def append(self, run: Run) -> None:
        """Add a run that follows on the last one."""
        self.runs.append(run)
        self.firsts.append(run.first)
        self.bytes += _weight(run)

    def at(self, index: int) -> Run:
        """The run that holds `index`, which must be there."""
        return self.runs[bisect_right(self.firsts, index) - 1]

    def between(self, low: int, high: int) -> Iterator[Run]:
        """The runs of `low` up to, but without, `high`, cut to fit."""
        if low >= high or not self.runs:
            return
        position = max(bisect_right(self.firsts, low) - 1, 0)
        while position < len(self.runs) and self.firsts[position] < high:
            run = self.runs[position]
            yield run.slice(low, high)
            position += 1

    def cut(self, index: int) -> None:
        """Drop `index` and all after it."""
        self.first = min(index, self.first)
        while self.runs and self.firsts[-1] >= index:
            self.firsts.pop()
            self.bytes -= _weight(self.runs.pop())
        if self.runs and self.runs[-1].last >= index:
            whole = self.runs[-1]
            self.runs[-1] = kept = whole.slice(whole.first, index)
            self.bytes += kept.size - whole.size

    def drop_through(self, index: int, limit: int) -> None:
        """Forget whole runs up to `index`, oldest first, until at most `limit` bytes are held."""
        count = 0
        while count < len(self.runs) and self.bytes > limit and self.runs[count].last <= index:
            self.bytes -= _weight(self.runs[count])
            count += 1
        if count:
            self.first = self.runs[count - 1].last + 1
            del self.runs[:count], self.firsts[:count]
