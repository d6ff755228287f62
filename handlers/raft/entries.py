"""Entries in bulk: runs of columns, encoded once.

An object an entry would cost more than the whole protocol does, so entries travel, are stored and are applied
as *runs*: consecutive entries of one term, with a column for each field. Terms, origins and indexes are constant
or count up along a run, so that only the payloads are a list. The bytes of an encoded run are what the leader
stores and sends, and what the followers store again.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self, overload

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.checks import is_whole
from drakkar.handlers.errors import CorruptData

__all__ = ["ENTRY_OVERHEAD", "Entries", "Entry", "EntryKind", "Run", "changes", "fitting", "pages"]


class EntryKind(IntEnum):
    """What an entry is for. Only COMMAND, ENCODED and SESSION reach the state machine."""

    COMMAND = 0
    NO_OP = 1
    """The empty entry with which a leader begins its term (thesis §6.4)."""
    CONFIG_CHANGE = 2
    SESSION = 3
    """A command, or the opening or closing of a session, under a client's series number (thesis §6.3)."""
    METADATA = 4
    """Stands for an entry whose content a witness does not keep."""
    ENCODED = 5
    """A command that its proposer has compressed; hosts decode it before they apply it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log.

    `origin` and `key` name the proposal: a number that the proposing replica drew for its present life, and
    the proposal's number within it. Zero: no proposer waits for it. They let the proposer recognise its own entry
    when it is applied, whichever leader logged it.
    """

    index: int = 0
    term: int = 0
    kind: EntryKind = EntryKind.COMMAND
    payload: bytes = b""
    origin: int = 0
    key: int = 0


ENTRY_OVERHEAD: Final = 16
"""Bytes that an entry counts beside its payload, wherever sizes are limited."""

_KINDS: Final = tuple(EntryKind)
_COMMAND: Final = int(EntryKind.COMMAND)
_METADATA: Final = int(EntryKind.METADATA)
_CONFIG_CHANGE: Final = int(EntryKind.CONFIG_CHANGE)


class Run:
    """Consecutive entries of one term and one proposer. Immutable.

    `kinds` is one byte an entry, or empty where all are commands. `origin` and `key` are those of the first entry;
    keys count up along the run, unless `origin` is 0.
    """

    __slots__ = ("_encoded", "_size", "first", "key", "kinds", "origin", "payloads", "term")

    def __init__(
        self, first: int, term: int, payloads: list[bytes], kinds: bytes = b"", origin: int = 0, key: int = 0
    ) -> None:
        self.first, self.term, self.payloads, self.kinds = first, term, payloads, kinds
        self.origin, self.key = origin, key
        self._encoded: bytes | None = None
        self._size = -1

    @property
    def last(self) -> int:
        """The index of the last entry."""
        return self.first + len(self.payloads) - 1

    @property
    def size(self) -> int:
        """Bytes of the payloads, plus a fixed overhead an entry."""
        if self._size < 0:
            self._size = sum(map(len, self.payloads)) + ENTRY_OVERHEAD * len(self.payloads)
        return self._size

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payloads alone."""
        return self.size - ENTRY_OVERHEAD * len(self.payloads)

    @property
    def plain(self) -> bool:
        """All entries are commands."""
        return not self.kinds

    def __len__(self) -> int:
        return len(self.payloads)

    def __repr__(self) -> str:
        return f"Run({self.first}..{self.last}@{self.term})"

    def kind(self, index: int) -> EntryKind:
        """The kind of the entry at `index`."""
        return _KINDS[self.kinds[index - self.first]] if self.kinds else EntryKind.COMMAND

    def entry(self, index: int) -> Entry:
        """The entry at `index`, as an object."""
        at = index - self.first
        key = self.key + at if self.origin else 0
        # A proposal has no index before a leader logs it.
        return Entry(
            index if self.first else 0, self.term, self.kind(index), self.payloads[at], self.origin, key
        )

    def slice(self, low: int, high: int) -> "Run":
        """The entries `low` up to, but without, `high`, which must lie within the run."""
        if low <= self.first and high > self.last:
            return self
        return self._between(max(low - self.first, 0), min(high, self.last + 1) - self.first)

    def placed(self, first: int, term: int) -> "Run":
        """The same entries, as a leader of `term` logs them from index `first` on."""
        return Run(first, term, self.payloads, self.kinds, self.origin, self.key)

    def without_content(self) -> "Run":
        """What a witness keeps: membership changes whole, of all else only index and term (thesis §11.7.2)."""
        kinds = self.kinds or bytes(len(self.payloads))
        kept = [
            payload if kind == _CONFIG_CHANGE else b""
            for kind, payload in zip(kinds, self.payloads, strict=True)
        ]
        stripped = bytes(kind if kind == _CONFIG_CHANGE else _METADATA for kind in kinds)
        return Run(self.first, self.term, kept, stripped)

    def fitting(self, limit: int) -> "Run":
        """The longest prefix of at most `limit` bytes, but at least one entry."""
        return self if self.size <= limit else self._between(0, self._end_of_part(0, limit))

    def parts(self, limit: int) -> Iterator["Run"]:
        """The run, cut into runs of at most `limit` bytes each, but of at least one entry."""
        start = 0
        while start < len(self.payloads):
            stop = self._end_of_part(start, limit)
            yield self._between(start, stop)
            start = stop

    def _end_of_part(self, start: int, limit: int) -> int:
        """Where the longest part ends that begins at the place `start` and has at most `limit` bytes, or one entry."""
        size = 0
        for place in range(start, len(self.payloads)):
            size += len(self.payloads[place]) + ENTRY_OVERHEAD
            if size > limit and place > start:
                return place
        return len(self.payloads)

    def _between(self, start: int, stop: int) -> "Run":
        """The entries from the place `start` up to, but without, `stop`; places count from 0."""
        # A proposal has no index before a leader logs it.
        first = self.first + start if self.first else 0
        key = self.key + start if self.origin else 0
        return Run(first, self.term, self.payloads[start:stop], self.kinds[start:stop], self.origin, key)

    def encode(self) -> bytes:
        """The run as CBOR bytes; encoded at the first call, remembered for the others."""
        if self._encoded is None:
            self._encoded = cbor2.dumps(
                [self.first, self.term, self.kinds, self.origin, self.key, self.payloads]
            )
        return self._encoded

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The run of these bytes. Raises `CorruptData` where they are none."""
        try:
            columns = cbor.loads(data, max_depth=3)
        except ValueError as error:
            raise CorruptData(f"a run cannot be decoded: {error}") from error
        _check_columns(columns)
        first, term, kinds, origin, key, payloads = columns
        run = cls(first, term, payloads, kinds, origin, key)
        run._encoded = data
        return run


def _check_columns(columns: Any) -> None:
    """Raise `CorruptData` unless these are the columns of a run: they came from a disk or a peer."""
    if type(columns) is not list or len(columns) != 6:
        raise CorruptData("a run is not a list of six columns")
    first, term, kinds, origin, key, payloads = columns
    for name, value in (("first", first), ("term", term), ("origin", origin), ("key", key)):
        if not is_whole(value):
            raise CorruptData(f"a run's {name} is not a number of 64 bits")
    if type(payloads) is not list or not payloads or set(map(type, payloads)) != {bytes}:
        raise CorruptData("a run's payloads are not a list of byte strings")
    if max(first, key) + len(payloads) > 1 << 64:
        raise CorruptData("a run's last index or key is above 64 bits")
    if type(kinds) is not bytes or (kinds and (len(kinds) != len(payloads) or max(kinds) >= len(_KINDS))):
        raise CorruptData("a run's kinds do not match its payloads")


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
        runs: list[Run] = []
        for entry in entries:
            last = runs[-1] if runs else None
            if last is not None and _continues(last, entry):
                last.payloads.append(entry.payload)
                if last.kinds or entry.kind != _COMMAND:
                    last.kinds = (last.kinds or bytes(len(last.payloads) - 1)) + bytes([entry.kind])
            else:
                kinds = bytes([entry.kind]) if entry.kind != _COMMAND else b""
                runs.append(Run(entry.index, entry.term, [entry.payload], kinds, entry.origin, entry.key))
        return cls(runs)

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


def _continues(run: Run, entry: Entry) -> bool:
    """Whether `entry` may stand at the end of `run`. Proposals have no index yet: all are 0."""
    count = len(run.payloads)
    return (
        entry.term == run.term
        and entry.index == (run.first + count if run.first else 0)
        and entry.origin == run.origin
        and (not run.origin or entry.key == run.key + count)
    )


def changes(runs: Iterable[Run]) -> Iterator[Entry]:
    """The membership changes among the entries of these runs."""
    for run in runs:
        if _CONFIG_CHANGE in run.kinds:
            for place, kind in enumerate(run.kinds):
                if kind == _CONFIG_CHANGE:
                    yield run.entry(run.first + place)


def fitting(runs: Iterable[Run], limit: int) -> list[Run]:
    """The longest prefix of at most `limit` bytes, but at least one entry."""
    taken: list[Run] = []
    for run in runs:
        if run.size <= limit:
            taken.append(run)
            limit -= run.size
            continue
        part = run.fitting(limit)
        if not taken or part.size <= limit:
            taken.append(part)
        break
    return taken


def pages(read: Callable[[int, int, int], list[Run]], low: int, high: int, limit: int) -> Iterator[list[Run]]:
    """The entries `low` up to, but without, `high`, in pages of at most `limit` bytes, or one entry.

    `read(low, high, limit)` returns one page, as `Storage.runs` does; an empty one is the end.
    """
    while low < high and (page := read(low, high, limit)):
        yield page
        low = page[-1].last + 1
