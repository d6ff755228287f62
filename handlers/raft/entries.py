"""A sequence of entries, held as runs. What `runs` has can be imported from here as well."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from drakkar.handlers.raft.runs import (
    ENTRY_OVERHEAD,
    MAX_ENTRIES,
    Entry,
    EntryKind,
    Run,
    changes,
    fitting,
    pages,
)

__all__ = [
    "ENTRY_OVERHEAD",
    "MAX_ENTRIES",
    "Entries",
    "EntriesNotLoaded",
    "Entry",
    "EntryKind",
    "Run",
    "changes",
    "fitting",
    "pages",
]


class EntriesNotLoaded(Exception):
    """The host must read these entries from its disk first, and says ENTRIES_LOADED when it has. No error of anyone."""


class Entries(Sequence[Entry]):
    """A sequence of entries, held as runs. Equal to any sequence of equal entries. Immutable.

    Iterating makes an object an entry: fine for a test or a membership change, too dear for the hot path, which
    takes `runs`.
    """

    __slots__ = ("_starts", "runs")

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self.runs: tuple[Run, ...] = tuple(runs)
        self._starts: list[int] | None = None

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Entries":
        """The same entries, in as few runs as they need."""
        if isinstance(entries, Entries):
            return entries
        groups: list[list[Entry]] = []
        for entry in entries:
            if groups and _continues(groups[-1], entry):
                groups[-1].append(entry)
            else:
                groups.append([entry])
        return cls(map(_run_of, groups))

    @property
    def size(self) -> int:
        """Bytes of the payloads, plus a fixed overhead an entry."""
        return sum(run.size for run in self.runs)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payloads alone."""
        return sum(run.payload_bytes for run in self.runs)

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def __bool__(self) -> bool:
        return bool(self.runs)

    def __iter__(self) -> Iterator[Entry]:
        for run in self.runs:
            for index in range(run.first, run.last + 1):
                yield run.entry(index)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, at: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(at, slice):
            return tuple(self)[at]
        if at < 0:
            at += len(self)
        if self._starts is None:
            self._starts = [0]
            for run in self.runs:
                self._starts.append(self._starts[-1] + len(run))
        if not 0 <= at < self._starts[-1]:
            raise IndexError(at)
        which = bisect_right(self._starts, at) - 1
        run = self.runs[which]
        return run.entry(run.first + at - self._starts[which])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Entries({list(self.runs)})"


def _continues(group: Sequence[Entry], entry: Entry) -> bool:
    """Whether `entry` may stand behind these in one run. Proposals have no index yet: all are 0."""
    first, count = group[0], len(group)
    return (
        entry.term == first.term
        and entry.index == (first.index + count if first.index else 0)
        and entry.origin == first.origin
        and (not first.origin or entry.key == first.key + count)
    )


def _run_of(group: Sequence[Entry]) -> Run:
    """The run of entries that continue one another."""
    first = group[0]
    kinds = bytes(entry.kind for entry in group)
    payloads = [entry.payload for entry in group]
    return Run(first.index, first.term, payloads, kinds if any(kinds) else b"", first.origin, first.key)
