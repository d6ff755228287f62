"""What a log finds when it is opened: all records are read, in order, and checked.

A record that is not whole was either torn by a crash during the last write, or damaged later. It is damage if a later
record says that the log was durable up to it, or if there are whole records in a later segment; otherwise the log ends
before it. The head of the later record is enough, even if the rest of that record was torn. Damage is reported and never
skipped. If it is in the entries of one replica, that replica alone cannot be opened; otherwise the whole log cannot.
Nothing is changed on disk before all is read and checked.

While the records are read, each replica is only collected: where its runs are, and the newest of what is stored beside
them. Its state and the usage of the segments follow at the end, at once. To keep them up to date with each record, as
`ReplicaLog.apply` does, would make a start noticeably slower.
"""

from collections import defaultdict
from typing import Final, NamedTuple

from drakkar.actors.log.data_dir import REMEDY
from drakkar.actors.log.index import RunIndex, place_of
from drakkar.actors.log.records import (
    Kind,
    Record,
    ReplicaKey,
    find_head,
    first_run,
    named,
    read_record,
    seems_record,
)
from drakkar.actors.log.replica import ReplicaLog, Usage
from drakkar.actors.log.segments import HEADER_BYTES, Segment, Segments
from drakkar.handlers.errors import CorruptData

__all__ = ["Recovered", "recover"]

_KINDS: Final = {int(kind): kind for kind in Kind}
_RUN: Final = int(Kind.RUN)


class Recovered(NamedTuple):
    """What was found in a log."""

    replicas: dict[ReplicaKey, ReplicaLog]
    usage: Usage
    sequence: int
    """The number of the next record."""
    active: Segment
    """The last segment that holds a record, or the first one."""
    last_record: int
    """Where the last record in it begins; its `end` if it holds none."""


def recover(segments: Segments, *, salvage: bool = False) -> Recovered:
    """Read all segments. Changes nothing on disk. Raises `CorruptData` for damage, and `OSError`.

    A replica of which the data contradicts itself is `broken`, and so is one of which entries are damaged. `salvage`:
    damaged entries alone do not break a replica, so that its other entries can be read; reading the damaged ones raises
    `CorruptData`.
    """
    return _Recovery(segments, salvage=salvage).run()


class _Found:
    """What was found of one replica in the records read so far."""

    __slots__ = ("_moved", "damaged", "facts", "index", "last")

    def __init__(self) -> None:
        self.index = RunIndex(_ignore)
        self._moved = RunIndex(_ignore)
        """Runs that were written again, and whose first copies were in segments that are gone. Mostly in order."""
        self.facts: dict[Kind, tuple[int, bytes]] = {}
        """For each kind of what is stored beside the entries: the segment of the newest, and its content."""
        self.last = 0
        """The last index."""
        self.damaged: dict[int, str] = {}
        """The places of runs that do not match their checksums, each with its description for an operator."""

    def append(self, first: int, last: int, term: int, place: int, size: int) -> None:
        self.index.append(first, term, place, size)
        if self._moved.firsts and first <= self._moved.firsts[-1]:
            self._moved.cut(first)
        self.last = last

    def move(self, first: int, last: int, term: int, place: int, size: int) -> None:
        if not self.index.move(first, place, size) and not self._moved.move(first, place, size):
            self._moved.insert(first, term, place, size)
        self.last = max(self.last, last)

    def clear(self) -> None:
        self.index.clear()
        self._moved.clear()
        self.last = 0

    def whole(self) -> RunIndex:
        """Return the index of all runs."""
        self.index.merge(self._moved)
        return self.index


class _Recovery:
    def __init__(self, segments: Segments, *, salvage: bool) -> None:
        self._segments, self._salvage = segments, salvage
        self._found: defaultdict[ReplicaKey, _Found] = defaultdict(_Found)
        self._sequence = segments.in_use[0].sequence
        self._active = segments.in_use[0]
        self._last_record = HEADER_BYTES
        self._ends: list[tuple[Segment, int, memoryview]] = []
        """Where the next record may begin: behind the last one, or at the beginning of a segment after that."""

    def run(self) -> Recovered:
        for segment in self._segments.in_use:
            self._read(segment, self._load(segment))
        usage = Usage()
        replicas = {key: self._replica(key, found, usage) for key, found in self._found.items()}
        return Recovered(replicas, usage, self._sequence, self._active, self._last_record)

    def _replica(self, key: ReplicaKey, found: _Found, usage: Usage) -> ReplicaLog:
        replica = ReplicaLog(key, usage)
        try:
            replica.recover(found.whole(), found.facts, found.last)
            if not self._salvage:
                _check_damage(replica, found)
        except CorruptData as error:
            replica.state = None
            replica.broken = CorruptData(
                f"{self._segments.files.path}: {named(key)}: {error}. Remove the replica from its shard, then its data, and "
                "add a new one; or restore the log from a copy"
            )
        return replica

    def _load(self, segment: Segment) -> memoryview:
        data = memoryview(self._segments.files.read(segment.name, 0, segment.size))
        if len(data) < segment.size:
            raise self._damage(segment, len(data), data, "the file was cut off")
        return data

    def _read(self, segment: Segment, data: memoryview) -> None:
        """Take in the records of a segment."""
        segment.sequence = self._sequence
        at = HEADER_BYTES
        while (record := read_record(data, at, segment.number, segment.salt)) is not None:
            if record.damaged and not self._was_durable(segment, data, record):
                break
            if record.sequence != self._sequence:
                self._ends.append((segment, at, data))
                raise self._damage(
                    *self._place(),
                    f"record {self._sequence} is missing, and record {record.sequence} follows",
                )
            self._ends.clear()
            self._take(segment, data, record)
            self._active, self._last_record = segment, at
            self._sequence += 1
            segment.end = at = record.end
        self._ends.append((segment, at, data))
        later = find_head(data, at, segment.number, segment.salt, after=self._sequence)
        if later is not None and later.durable >= self._sequence:
            raise self._damage(
                *self._place(),
                f"record {self._sequence} is damaged, and record {later.sequence} says that the log was durable up to "
                f"record {later.durable}",
            )

    def _place(self) -> tuple[Segment, int, memoryview]:
        """Return where the missing record seems to have been."""
        for segment, at, data in self._ends:
            if seems_record(data, at, segment.number, self._sequence):
                return segment, at, data
        return self._ends[0]

    def _was_durable(self, segment: Segment, data: memoryview, record: Record) -> bool:
        """Return whether a later record says that this one was durable."""
        number = record.sequence
        later = find_head(data, record.end, segment.number, segment.salt, after=number)
        for other in self._segments.in_use if later is None else ():
            if later is None and other.number > segment.number:
                later = find_head(self._load(other), HEADER_BYTES, other.number, other.salt, after=number)
        return later is not None and later.durable >= number

    def _take(self, segment: Segment, data: memoryview, record: Record) -> None:
        for kind, key, at, size in record.others:
            self._take_other(kind, self._found[key], segment, at, bytes(data[at : at + size]))
        base = place_of(segment.number, 0)
        for kind, key, at, size, first, last, term in record.runs:
            found = self._found[key]
            if kind == _RUN:
                found.append(first, last, term, base + at, size)
            else:
                found.move(first, last, term, base + at, size)
            if record.damaged and at in record.damaged:
                found.damaged[base + at] = f"{segment.name}, offset {at}, from index {first} on"

    def _take_other(self, kind: int, found: _Found, segment: Segment, at: int, content: bytes) -> None:
        if kind == Kind.CLEAR:
            found.clear()
        elif kind in _KINDS:
            if kind == Kind.REMOVED:
                found.facts.clear()
                found.clear()
            elif kind == Kind.BOOTSTRAP:
                found.facts.pop(Kind.REMOVED, None)
            found.facts[_KINDS[kind]] = segment.number, content
        else:
            raise CorruptData(
                f"{self._segments.files.path}/{segment.name}, offset {at}: a change of kind {kind} is unknown: use the "
                "version that wrote it"
            )

    def _damage(self, segment: Segment, at: int, data: memoryview, problem: str) -> CorruptData:
        found = first_run(data, at)
        held = f"; it held entries of {named(found[0])} from {found[1]} on" if found is not None else ""
        return CorruptData(
            f"{self._segments.files.path}/{segment.name}, offset {at}: {problem}{held}: {REMEDY}"
        )


def _ignore(_segment: int, _size: int) -> None:
    pass


def _check_damage(replica: ReplicaLog, found: _Found) -> None:
    """Raise `CorruptData` if entries are damaged that the log still holds."""
    for place, where in found.damaged.items():
        if place in replica.index.places:
            raise CorruptData(f"a run of entries does not match its checksum, in {where}")
