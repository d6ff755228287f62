"""A log in memory: what a `Raft` starts from in tests, and what a restarted one starts from again."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Self

from drakkar.handlers.raft.entries import Entries, Entry, Run, fitting
from drakkar.handlers.raft.lives import Lives
from drakkar.handlers.raft.log import check_compaction
from drakkar.handlers.raft.state import HardState, Membership, Snapshot
from drakkar.handlers.raft.window import Window

__all__ = ["MemoryLog"]


class MemoryLog:
    """A `Storage` in memory. `save(ready)` does to it what a host's log store does to its disk.

    The indexes of `entries` may be left out (0): then they count up from the snapshot.
    """

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        hard_state: HardState | None = None,
        membership: Membership | Mapping[int, str] | Collection[int] | None = None,
        snapshot: Snapshot | None = None,
        lives: Lives | None = None,
    ) -> None:
        self.snapshot = snapshot or Snapshot()
        self.hard_state = hard_state or HardState(commit=self.snapshot.index)
        self.lives = lives or Lives()
        if membership is None:
            self.membership = self.snapshot.membership
        else:
            self.membership = membership if isinstance(membership, Membership) else Membership(membership)
        self._marker = (self.snapshot.index, self.snapshot.term)
        self._window = Window(self.snapshot.index + 1)
        placed = (
            Entry(number, entry.term, entry.kind, entry.payload, entry.origin, entry.key)
            for number, entry in enumerate(entries, self.first_index)
        )
        for run in Entries.of(tuple(placed)).runs:
            self._window.append(run)

    def copy(self) -> Self:
        """Return a log that holds the same now, and shares nothing that changes."""
        copied = type(self)((), self.hard_state, self.membership, self.snapshot, self.lives)
        copied._marker = self._marker
        copied._window = Window(self.first_index)
        for run in self._window.runs:
            copied._window.append(run)
        return copied

    @property
    def first_index(self) -> int:
        """The oldest entry still held."""
        return self._marker[0] + 1

    @property
    def last_index(self) -> int:
        """The newest entry held."""
        return self._window.last

    def term(self, index: int) -> int:
        """The term at `index`; 0 where it is unknown."""
        if index == self._marker[0]:
            return self._marker[1]
        return self._window.at(index).term if self.first_index <= index <= self.last_index else 0

    def runs(self, low: int, high: int, limit: int) -> list[Run]:
        """Entries `low` up to, but without, `high`: at most `limit` bytes, but at least one."""
        return fitting(self._window.between(low, high), limit)

    def entries(self) -> tuple[Entry, ...]:
        """All entries held, as objects."""
        return tuple(Entries(self._window.runs))

    def save(self, ready: Any) -> None:
        """Keep what a `Ready` says must be durable."""
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.lives is not None:
            self.lives = ready.lives
        if ready.snapshot is not None:
            self.install(ready.snapshot)
        for run in Entries.of(ready.entries).runs:
            self._window.cut(run.first)
            self._window.append(run)

    def install(self, snapshot: Snapshot) -> None:
        """Begin anew behind a snapshot that a leader sent."""
        self.snapshot, self.membership = snapshot, snapshot.membership
        self._marker = (snapshot.index, snapshot.term)
        self._window.clear(snapshot.index + 1)

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`. Raises `ConfigError` where it is not one of those held."""
        check_compaction(index, self.first_index, self.last_index)
        self._marker = (index, self.term(index))
        self._window.drop_through(index)
