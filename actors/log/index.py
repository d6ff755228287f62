"""Where the entries of one replica are: one row for each stored run, in memory, column by column.

A place is one number, made of the number of a segment and an offset in it. Runs follow one another without a gap. Where
the end of a run was replaced, the next run begins within it.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from drakkar.actors.log.records import CHANGE_BYTES

__all__ = ["Row", "RunIndex", "place_of", "segment_of"]

OFFSET_BITS: Final = 32


class Row(NamedTuple):
    """One stored run."""

    first: int
    term: int
    place: int
    size: int
    """Bytes, checksum included."""


def place_of(segment: int, offset: int) -> int:
    """Return the place of an offset in a segment."""
    return segment << OFFSET_BITS | offset


def segment_of(place: int) -> int:
    """Return the number of the segment in which a place is."""
    return place >> OFFSET_BITS


def offset_of(place: int) -> int:
    """Return the offset of a place in its segment."""
    return place & (1 << OFFSET_BITS) - 1


class RunIndex:
    """The stored runs of one replica. 28 bytes a run, and 8 more in `Usage.written`."""

    __slots__ = ("dropped", "firsts", "places", "sizes", "terms")

    def __init__(self, dropped: Callable[[int, int], None]) -> None:
        """`dropped` is called when runs are no longer needed: with their segment, and the bytes of their changes there."""
        self.dropped = dropped
        self.firsts = array("Q")
        self.terms = array("Q")
        self.places = array("Q")
        self.sizes = array("I")

    def __len__(self) -> int:
        return len(self.firsts)

    def term(self, index: int) -> int:
        """Return the term at `index`, which must be at or after the first entry and at or before the last."""
        at = bisect_right(self.firsts, index) - 1
        return self.terms[at]

    def rows(self, low: int, end: int) -> Iterator[tuple[Row, int]]:
        """Yield the runs from the one that holds `low` on, each with the first index of the next run, or `end`."""
        count = len(self.firsts)
        for at in range(max(bisect_right(self.firsts, low) - 1, 0), count):
            yield self._row(at), self.firsts[at + 1] if at + 1 < count else end

    def append(self, first: int, term: int, place: int, size: int) -> None:
        """Add a run at the end, in place of all entries from its first on."""
        if self.firsts and first <= self.firsts[-1]:
            self.cut(first)
        self.firsts.append(first)
        self.terms.append(term)
        self.places.append(place)
        self.sizes.append(size)

    def move(self, first: int, place: int, size: int) -> bool:
        """Note the new place of the run that begins at `first`; return False if there is no such run."""
        at = bisect_left(self.firsts, first)
        if at == len(self.firsts) or self.firsts[at] != first:
            return False
        self.dropped(segment_of(self.places[at]), CHANGE_BYTES + self.sizes[at])
        self.places[at], self.sizes[at] = place, size
        return True

    def insert(self, first: int, term: int, place: int, size: int) -> None:
        """Add a run in order. Quick only at the end."""
        at = bisect_left(self.firsts, first)
        for column, value in zip(self._columns(), (first, term, place, size), strict=True):
            column.insert(at, value)

    def merge(self, other: "RunIndex") -> None:
        """Add the runs of another index, none of which is in this one."""
        if other.firsts:
            rows = sorted((*zip(*self._columns(), strict=True), *zip(*other._columns(), strict=True)))
            for column, values in zip(self._columns(), zip(*rows, strict=True), strict=True):
                column[:] = array(column.typecode, values)

    def find(self, first: int) -> Row | None:
        """Return the run that begins at `first`; None if there is no such run."""
        at = bisect_left(self.firsts, first)
        return self._row(at) if at < len(self.firsts) and self.firsts[at] == first else None

    def end_of(self, first: int, end: int) -> int:
        """Return the first index of the run after the one that begins at `first`; `end` if that is the last."""
        at = bisect_right(self.firsts, first)
        return self.firsts[at] if at < len(self.firsts) else end

    def cut(self, index: int) -> None:
        """Drop the runs that begin at or after `index`."""
        self._drop(bisect_left(self.firsts, index), len(self.firsts))

    def trim(self, upto: int, last: int) -> None:
        """Drop the runs that end at or before `upto`; `last` is where the last run ends."""
        kept = bisect_right(self.firsts, upto + 1) - 1
        self._drop(0, len(self.firsts) if last <= upto else max(kept, 0))

    def clear(self) -> None:
        """Drop all runs."""
        self._drop(0, len(self.firsts))

    def _drop(self, begin: int, end: int) -> None:
        if begin >= end:
            return
        dropped: defaultdict[int, int] = defaultdict(int)
        for place, size in zip(self.places[begin:end], self.sizes[begin:end], strict=True):
            dropped[place >> OFFSET_BITS] += CHANGE_BYTES + size
        for segment, total in dropped.items():
            self.dropped(segment, total)
        for column in self._columns():
            del column[begin:end]

    def _columns(self) -> "tuple[array[int], array[int], array[int], array[int]]":
        return self.firsts, self.terms, self.places, self.sizes

    def _row(self, at: int) -> Row:
        return Row(self.firsts[at], self.terms[at], self.places[at], self.sizes[at])
