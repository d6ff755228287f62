"""Logs in memory, under the same rules as on disk: for hosts without a data directory, and for tests."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import Lock
from typing import final

from drakkar.actors.log.records import ReplicaKey
from drakkar.actors.log.state import LogChanges, LogState
from drakkar.handlers.raft.entries import Run

__all__ = ["MemoryDisk"]


class _MemoryLog:
    """The runs of one replica, in order."""

    __slots__ = ("firsts", "runs")

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self.runs: list[Run] = []

    def append(self, run: Run) -> None:
        self.firsts.append(run.first)
        self.runs.append(run)

    def cut(self, index: int) -> None:
        kept = bisect_left(self.firsts, index)
        del self.firsts[kept:], self.runs[kept:]
        if self.runs and self.runs[-1].last >= index:
            self.runs[-1] = self.runs[-1].slice(self.firsts[-1], index)

    def trim(self, upto: int) -> None:
        """Drop the runs that end at or before `upto`, as the start of the next run shows."""
        kept = max(bisect_right(self.firsts, upto + 1) - 1, 0)
        del self.firsts[:kept], self.runs[:kept]


@final
class MemoryDisk:
    """A disk that lasts as long as this object. Another store that is given it goes on from there."""

    def __init__(self) -> None:
        self.path = "memory"
        self.commit_seconds = 0.0
        self._lock = Lock()
        self._states: dict[ReplicaKey, LogState] = {}
        self._logs: dict[ReplicaKey, _MemoryLog] = {}
        self._removed: set[ReplicaKey] = set()

    @contextmanager
    def reading(self, key: ReplicaKey, low: int) -> Iterator[Iterator[Run]]:
        """Read the runs of a replica, from the one that holds `low` on."""
        with self._lock:
            log = self._logs[key]
            yield islice(log.runs, max(bisect_right(log.firsts, low) - 1, 0), None)

    def replicas(self) -> list[ReplicaKey]:
        """Return all replicas on it."""
        with self._lock:
            return sorted(self._states)

    def unneeded(self) -> dict[ReplicaKey, int]:
        """Return nothing: dropped entries are deleted at once."""
        return {}

    def removed(self, key: ReplicaKey) -> bool:
        """Return whether the replica was removed."""
        return key in self._removed

    def load(self, key: ReplicaKey) -> LogState | None:
        """Return the state of the replica's log."""
        return self._states.get(key)

    def write(self, changes: Sequence[LogChanges], trims: Mapping[ReplicaKey, int]) -> dict[ReplicaKey, int]:
        """Write all of it."""
        with self._lock:
            for changed in changes:
                self._put(changed)
            for key in trims.keys() & self._logs.keys():
                self._logs[key].trim(trims[key])
        return {}

    def _put(self, changed: LogChanges) -> None:
        if changed.state is None:
            self._states.pop(changed.key, None)
            self._logs.pop(changed.key, None)
            if changed.removed:
                self._removed.add(changed.key)
            return
        self._removed.discard(changed.key)
        log = self._logs.setdefault(changed.key, _MemoryLog())
        for change in changed.log:
            if isinstance(change, Run):
                log.append(change)
            else:
                log.cut(change)
        self._states[changed.key] = changed.state

    def reclaim(self) -> None:
        """Do nothing: deleted entries take no space."""

    def close(self) -> None:
        """Do nothing: the data stays as long as this object."""
