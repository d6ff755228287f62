"""Entries in bulk: runs of columns, which are encoded once unless they are large.

An object an entry would cost more than the whole protocol does, so entries travel, are stored and are applied
as *runs*: consecutive entries of one term, with a column for each field. Terms, origins and indexes are constant
or count up along a run, so that only the payloads are a list. The bytes of an encoded run are what the leader
stores and sends, and what the followers store again. Of large commands these bytes are not kept: to encode them is to
copy them once, and that is cheaper than to hold them twice for as long as a peer may need them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM, is_whole
from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.errors import CorruptData, ProtocolViolation

__all__ = ["ENTRY_OVERHEAD", "MAX_ENTRIES", "Entry", "EntryKind", "Run", "changes", "fitting", "pages"]


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

MAX_ENTRIES: Final = 1 << 18
"""Entries of one run: so many are decoded in some 50 ms. 4 MiB of entries never have more, by their overhead alone."""

_ENTRY_MEMORY: Final = 56
_RUN_MEMORY: Final = 320
"""Bytes that the objects take beside the bytes of the payloads: those of an entry, and those of a run."""

_LARGE: Final = 128 << 10
"""Bytes an entry, on average, from which a run is large: it is encoded in some 10 µs for each of them."""

_NUMBER: Final = 0
_BYTES: Final = 2
_LIST: Final = 4
"""The types of CBOR items of which a run consists."""

_KINDS: Final = tuple(kind for kind in EntryKind if kind < EntryKind.FIRST_FREE)
_LEGAL: Final = bytes([*_KINDS, *range(EntryKind.FIRST_FREE, 256)])
"""The bytes that may stand for a kind: those of Raft, and those that are free for users, though not all are defined here."""
_COMMAND: Final = int(EntryKind.COMMAND)
_METADATA: Final = int(EntryKind.METADATA)
_CONFIG_CHANGE: Final = int(EntryKind.CONFIG_CHANGE)
_SETTLED: Final = int(EntryKind.SETTLED)
_CHANGES: Final = frozenset({_CONFIG_CHANGE, _SETTLED})
"""Kinds of entries that change a membership: who belongs to it, or where a replica lives. Witnesses keep them."""


class Run:
    """Consecutive entries of one term and one proposer. Immutable.

    `kinds` is one byte an entry, or empty where all are commands. `origin` and `key` are those of the first entry;
    keys count up along the run, unless `origin` is 0.
    """

    __slots__ = ("_encoded", "_size", "first", "key", "kinds", "origin", "payloads", "term")

    def __init__(
        self,
        first: int,
        term: int,
        payloads: Sequence[bytes],
        kinds: bytes = b"",
        origin: int = 0,
        key: int = 0,
    ) -> None:
        # A tuple of bytes is nothing to Python's garbage collector, which would visit each item of a list again and
        # again as long as the run is in memory: 20 ms each time for a million of them.
        self.first, self.term, self.payloads, self.kinds = first, term, tuple(payloads), kinds
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
    def memory(self) -> int:
        """Bytes that it takes in memory, about, once it was stored, sent or received.

        The encoded bytes count, if it keeps them. A run of a single short command is mostly its own objects.
        """
        copies = 1 if self._is_large else 2
        return copies * self.payload_bytes + _ENTRY_MEMORY * len(self.payloads) + _RUN_MEMORY

    @property
    def _is_large(self) -> bool:
        """Whether its encoded bytes are mostly those of large payloads, and are not kept."""
        return self.size >= _LARGE * len(self.payloads)

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
        if not self.kinds:
            return EntryKind.COMMAND
        number = self.kinds[index - self.first]
        return _KINDS[number] if number < len(_KINDS) else EntryKind.of_log(number)

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
        """What a witness keeps: changes of the membership whole, of all else only index and term (thesis §11.7.2)."""
        kinds = self.kinds or bytes(len(self.payloads))
        kept = [
            payload if kind in _CHANGES else b"" for kind, payload in zip(kinds, self.payloads, strict=True)
        ]
        stripped = bytes(kind if kind in _CHANGES else _METADATA for kind in kinds)
        return Run(self.first, self.term, kept, stripped)

    def fitting(self, limit: int) -> "Run":
        """The longest prefix of at most `limit` bytes, but at least one entry."""
        return self if self.size <= limit else self._between(0, self._end_of_part(0, limit))

    def parts(self, limit: int) -> Iterator["Run"]:
        """The run, cut into runs of at most `limit` bytes and `MAX_ENTRIES` each, but of at least one entry."""
        start = 0
        while start < len(self.payloads):
            stop = self._end_of_part(start, limit)
            yield self._between(start, stop)
            start = stop

    def _end_of_part(self, start: int, limit: int) -> int:
        """Where the longest part ends that begins at the place `start` and has at most `limit` bytes, or one entry.

        Nor has it more than `MAX_ENTRIES`.
        """
        size, end = 0, min(len(self.payloads), start + MAX_ENTRIES)
        for place in range(start, end):
            size += len(self.payloads[place]) + ENTRY_OVERHEAD
            if size > limit and place > start:
                return place
        return end

    def _between(self, start: int, stop: int) -> "Run":
        """The entries from the place `start` up to, but without, `stop`; places count from 0."""
        # A proposal has no index before a leader logs it.
        first = self.first + start if self.first else 0
        key = self.key + start if self.origin else 0
        return Run(first, self.term, self.payloads[start:stop], self.kinds[start:stop], self.origin, key)

    def encode(self) -> bytes:
        """The run as CBOR bytes; encoded at the first call, and remembered for the others unless it is large.

        Raises `ProtocolViolation` for numbers that `decode` would refuse.
        """
        if self._encoded is not None:
            return self._encoded
        beyond = _beyond(self.first, self.term, self.origin, self.key, len(self.payloads))
        if beyond:
            raise ProtocolViolation(f"{self} can be neither stored nor sent: its {beyond}")
        encoded = cbor2.dumps([self.first, self.term, self.kinds, self.origin, self.key, self.payloads])
        if not self._is_large:
            self._encoded = encoded
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The run of these bytes. Raises `CorruptData` where they are none."""
        if len(data) > MAX_ENTRIES:  # fewer bytes have no more entries
            _check_count(data)
        try:
            columns = cbor.loads(data, max_depth=2)
        except ValueError as error:
            raise CorruptData(f"a run cannot be decoded: {error}") from error
        _check_columns(columns)
        first, term, kinds, origin, key, payloads = columns
        run = cls(first, term, payloads, kinds, origin, key)
        if not run._is_large:
            run._encoded = data
        return run


def _check_count(data: bytes) -> None:
    """Raise `CorruptData` unless these bytes begin as those of a run of at most `MAX_ENTRIES`. Nothing is decoded for that."""
    try:
        (columns, _), at = _head(data, 0)
        heads = []
        for _ in range(6):
            (kind, value), at = _head(data, at)
            heads.append(kind)
            if kind == _BYTES:
                at += value
    except IndexError as error:
        raise CorruptData("a run ends before its entries begin") from error
    if (columns, *heads) != (_LIST, _NUMBER, _NUMBER, _BYTES, _NUMBER, _NUMBER, _LIST):
        raise CorruptData("a run is not a list of six columns")
    if value > MAX_ENTRIES:
        raise CorruptData(f"a run has {value} entries, and {MAX_ENTRIES} are allowed")


def _head(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return type and value of the head of the CBOR item at `at`, and where it ends. Raises `IndexError` behind the data."""
    kind, value = divmod(data[at], 32)
    if value < 24:
        return (kind, value), at + 1
    end = at + 1 + (1 << min(value - 24, 3))
    if end > len(data):
        raise IndexError(end)
    return (kind, int.from_bytes(data[at + 1 : end])), end


def _check_columns(columns: Any) -> None:
    """Raise `CorruptData` unless these are the columns of a run: they came from a disk or a peer."""
    if type(columns) is not list or len(columns) != 6:
        raise CorruptData("a run is not a list of six columns")
    first, term, kinds, origin, key, payloads = columns
    for name, value in (("first", first), ("term", term), ("origin", origin), ("key", key)):
        if not is_whole(value):
            raise CorruptData(f"a run's {name} is not a number from 0 to 2**63 - 1")
    if type(payloads) is not list or not payloads or set(map(type, payloads)) != {bytes}:
        raise CorruptData("a run's payloads are not a list of byte strings")
    beyond = _beyond(first, term, origin, key, len(payloads))
    if beyond:
        raise CorruptData(f"a run's {beyond}")
    if type(kinds) is not bytes or (kinds and (len(kinds) != len(payloads) or kinds.translate(None, _LEGAL))):
        raise CorruptData("a run's kinds do not match its payloads")


def _beyond(first: int, term: int, origin: int, key: int, count: int) -> str:
    """Which number of a run of `count` entries is above its bound, and the bound; "" if none is."""
    if count > MAX_ENTRIES:
        return f"entries are {count}, and {MAX_ENTRIES} are allowed"
    if first + count - 1 > MAX_INDEX:
        return f"last index is {first + count - 1}, and {MAX_INDEX} is the largest"
    if term > MAX_TERM:
        return f"term is {term}, and {MAX_TERM} is the last"
    if origin > MAX_SIGNED:
        return f"origin is {origin}, and {MAX_SIGNED} is the largest"
    if key + count - 1 > MAX_SIGNED:
        return f"last key is {key + count - 1}, and {MAX_SIGNED} is the largest"
    return ""


def changes(runs: Iterable[Run]) -> Iterator[Entry]:
    """The entries of these runs that change the membership: who belongs to it, and where a replica lives."""
    for run in runs:
        if _CONFIG_CHANGE in run.kinds or _SETTLED in run.kinds:
            for place, kind in enumerate(run.kinds):
                if kind in _CHANGES:
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
