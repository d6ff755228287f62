"""Consecutive runs of entries, found by index: the mechanics of a log, without any of its rules."""

from bisect import bisect_right
from collections.abc import Iterator

from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.log_memory import LogMemory

__all__ = ["Window"]


class Window:
    """The runs from `first` on, without a gap. With a `LogMemory`, what they take in memory is counted there."""

    __slots__ = ("_memory", "_spare_runs", "bytes", "first", "firsts", "runs", "spare")

    def __init__(self, first: int, memory: LogMemory | None = None) -> None:
        self.runs: list[Run] = []
        self.firsts: list[int] = []
        self.first = first
        self.bytes = 0
        """Bytes that the runs take in memory, as `Run.memory` counts them."""
        self.spare = 0
        """Bytes of those that may be dropped."""
        self._spare_runs = 0
        self._memory = memory

    @property
    def last(self) -> int:
        """The last index held; `first - 1` where there is none."""
        return self.runs[-1].last if self.runs else self.first - 1

    def append(self, run: Run) -> None:
        """Add a run that follows on the last one. To make room for it, spare ones may be dropped."""
        self.runs.append(run)
        self.firsts.append(run.first)
        self._count(run.memory)

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
        """Drop `index` and all after it, none of which is spare."""
        self.first = min(index, self.first)
        dropped = 0
        while self.runs and self.firsts[-1] >= index:
            self.firsts.pop()
            dropped += self.runs.pop().memory
        if self.runs and self.runs[-1].last >= index:
            whole = self.runs[-1]
            self.runs[-1] = kept = whole.slice(whole.first, index)
            dropped += whole.memory - kept.memory
        self._count(-dropped)

    def clear(self, first: int) -> None:
        """Drop all, and begin anew at `first`."""
        self.runs.clear()
        self.firsts.clear()
        self.first = first
        self.spare = self._spare_runs = 0
        self._count(-self.bytes)

    # -- what may be dropped ------------------------------------------------------------------------------------

    def release(self, index: int) -> None:
        """Whole runs up to `index` may be dropped from now on: they are spare."""
        runs, count, size = self.runs, self._spare_runs, 0
        while count < len(runs) and runs[count].last <= index:
            size += runs[count].memory
            count += 1
        if size:
            self._spare_runs = count
            self.spare += size
            if self._memory is not None:
                self._memory.spared(self)

    def drop(self, size: int) -> None:
        """Drop the oldest spare runs: `size` bytes or a few more, or all if they are fewer."""
        count = dropped = 0
        while count < self._spare_runs and dropped < size:
            dropped += self.runs[count].memory
            count += 1
        if count:
            self._drop_runs(count, dropped)

    def drop_through(self, index: int) -> None:
        """Drop all up to `index`, spare or not. The window begins behind it then, or later."""
        count = dropped = 0
        while count < len(self.runs) and self.runs[count].last <= index:
            dropped += self.runs[count].memory
            count += 1
        if count:
            self._drop_runs(count, dropped)
        if self.runs and self.firsts[0] <= index:
            whole = self.runs[0]
            kept = self.runs[0] = whole.slice(index + 1, whole.last + 1)
            self.firsts[0] = kept.first
            less = whole.memory - kept.memory
            self.spare -= less if self._spare_runs else 0
            self._count(-less)
        self.first = max(self.first, index + 1)

    def _drop_runs(self, count: int, size: int) -> None:
        self.first = self.runs[count - 1].last + 1
        del self.runs[:count], self.firsts[:count]
        if count >= self._spare_runs:
            self._spare_runs = self.spare = 0
        else:
            self._spare_runs -= count
            self.spare -= size
        self._count(-size)

    def _count(self, change: int) -> None:
        self.bytes += change
        if self._memory is None:
            return
        if change > 0:
            self._memory.grew(self, change)
        elif change:
            self._memory.shrank(self, -change)
