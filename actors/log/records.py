"""What is on disk: records, each of which changes the logs of some replicas, or changes nothing.

    record   checksum, bytes of the body, segment, sequence number, durable, checksum of all of these but the first; then the
             body: changes, one after the other
    change   kind, shard, replica, bytes of the content; then the content
    run      first, last, term, checksum; then the entries as they were sent (`Run.encode`)

`durable` is the sequence number up to which the log was durable when the record was written. A record's checksum covers
all but the entries: those of each run have a checksum of their own, so that they can be read and checked alone. The
record's checksum begins with the salt of its segment, so that neither what a client sends nor what an earlier use of the
file left can pass for a record.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, Final, NamedTuple
from zlib import crc32

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM, are_whole, check_whole, is_whole
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.codec import decode_membership, encode_membership
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.lives import Lives, Standing
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = ["Bootstrap", "ReplicaKey"]

ReplicaKey = tuple[int, int]
"""Shard and replica."""


class Kind(IntEnum):
    """What a change does."""

    RUN = 1
    """Append entries, in place of all entries at or after the first of them."""
    MOVED_RUN = 2
    """Entries that the log holds already, written again because their segment is to be dropped."""
    CLEAR = 3
    """Drop all entries."""
    HARD_STATE = 4
    """Term, vote and commit index."""
    MARKER = 5
    """Drop the entries up to an index: they were compacted. The term of that index stays known."""
    SNAPSHOT = 6
    """The newest snapshot."""
    BOOTSTRAP = 7
    """How the replica began."""
    REMOVED = 8
    """Drop all data of the replica. It was removed for good, and its id must never be used again."""
    LIVES = 9
    """How the shard was founded, and what the replica remembers of its own life; a directory of before has none."""


_RECORD: Final = Struct("<IIQQQI")
_CHANGE: Final = Struct("<BQQI")
_RUN: Final = Struct("<QQQI")
_RUN_KEY: Final = Struct("<QQQQQ")
_HARD_STATE: Final = Struct("<QQQ")
_MARKER: Final = Struct("<QQ")

RECORD_BYTES: Final = _RECORD.size
"""Bytes of an empty record."""
CHANGE_BYTES: Final = _CHANGE.size
"""Bytes of a change without its content."""

_RUNS: Final = (int(Kind.RUN), int(Kind.MOVED_RUN))


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How a replica began. It never changes, unless an import replaces the replica."""

    membership: Membership
    """The initial members; empty if `join`."""
    join: bool = False
    """The replica joins an existing shard, whose leader tells it the members."""
    state_machine: str = ""
    """The name of the type of its state machine. The log has no meaning for another type."""
    generation: int = 0
    """The number of the file from which the shard was imported, which founded it anew; 0 where it was not."""


class StoredRun(NamedTuple):
    """A run as it is stored: where it stands in the log, and its bytes. Apart, the entries are copied only once."""

    first: int
    last: int
    term: int
    head: bytes
    entries: bytes | memoryview

    @property
    def size(self) -> int:
        """Bytes of both parts."""
        return _RUN.size + len(self.entries)


class Head(NamedTuple):
    """The part of a record's head that tells its place in the log."""

    sequence: int
    durable: int


class Record(NamedTuple):
    """A record that was read, and that matches its checksum."""

    sequence: int
    durable: int
    end: int
    """Where the next record may begin."""
    runs: list[tuple[int, ReplicaKey, int, int, int, int, int]]
    """Of each run: kind, replica, where the stored run begins, its bytes, first index, last index, term."""
    others: list[tuple[int, ReplicaKey, int, int]]
    """Of each other change: kind, replica, where its content begins, its bytes."""
    damaged: list[int]
    """Where the runs begin that do not match their own checksums."""


def replica_key(shard_id: int, replica_id: int) -> ReplicaKey:
    """Return both ids as a key. Raises `ConfigError` for an id out of bounds."""
    check_whole("shard_id", shard_id, 0, MAX_SIGNED)
    check_whole("replica_id", replica_id, 1, MAX_SIGNED)
    return shard_id, replica_id


def named(key: ReplicaKey) -> str:
    """Return a replica's name, for errors and logs."""
    return f"shard {key[0]} replica {key[1]}"


# -- writing ----------------------------------------------------------------------------------------------------------


class RecordBuilder:
    """Collects the changes of one record."""

    __slots__ = ("_checked", "_parts", "size")

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []
        self._checked: list[bytes] = []
        """The parts that the record's checksum covers."""
        self.size = _RECORD.size
        """Bytes of the record so far."""

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, kind: Kind, key: ReplicaKey, content: bytes) -> int:
        """Add a change other than a run; return its size in bytes."""
        part = _CHANGE.pack(kind, *key, len(content)) + content
        self._parts.append(part)
        self._checked.append(part)
        self.size += len(part)
        return len(part)

    def add_run(self, kind: Kind, key: ReplicaKey, run: StoredRun) -> int:
        """Add a run; return its offset from the beginning of the record."""
        head = _CHANGE.pack(kind, *key, run.size) + run.head
        self._parts += (head, run.entries)
        self._checked.append(head)
        begin = self.size + _CHANGE.size
        self.size += _CHANGE.size + run.size
        return begin

    def finish(self, segment: int, salt: int, sequence: int, durable: int) -> bytes:
        """Return the record as bytes. `salt` is that of its segment."""
        head = _RECORD.pack(0, self.size - _RECORD.size, segment, sequence, durable, 0)[4:-4]
        own = crc32(head, salt)
        checksum = crc32(b"".join(self._checked), own)
        return b"".join((checksum.to_bytes(4, "little"), head, own.to_bytes(4, "little"), *self._parts))


def stored_run(key: ReplicaKey, run: Run) -> StoredRun:
    """Return a run in the form in which it is stored for this replica."""
    encoded, first, last, term = run.encode(), run.first, run.last, run.term
    checksum = crc32(encoded, crc32(_RUN_KEY.pack(*key, first, last, term)))
    return StoredRun(first, last, term, _RUN.pack(first, last, term, checksum), encoded)


def read_run(data: bytes) -> StoredRun:
    """Return the stored run of these bytes."""
    return StoredRun(*run_head(data), data[: _RUN.size], memoryview(data)[_RUN.size :])


# -- reading ----------------------------------------------------------------------------------------------------------


def read_record(data: memoryview, at: int, segment: int, salt: int) -> Record | None:
    """Return the record that begins at `at` in a segment's bytes; None if no whole record of this segment does.

    A record whose entries alone are damaged is returned. Its runs and its other changes are in two lists: the
    order between them makes no difference, except that `Kind.CLEAR` takes effect before the runs of its record.
    """
    if at + _RECORD.size > len(data):
        return None
    checksum, size, number, sequence, durable, own = _RECORD.unpack_from(data, at)
    end = at + _RECORD.size + size
    if number != segment or end > len(data):
        return None
    found = crc32(data[at + 4 : at + _RECORD.size - 4], salt)
    # What a client sends may be full of false heads. Each must be rejected by itself, without reading what follows it.
    if found != own:
        return None
    checked = at + _RECORD.size
    runs, others, damaged = [], [], []
    at += _RECORD.size
    while at < end:
        content = at + _CHANGE.size
        if content > end:
            return None
        kind, shard, replica, size = _CHANGE.unpack_from(data, at)
        at = content + size
        if at > end:
            return None
        if kind not in _RUNS:
            others.append((kind, (shard, replica), content, size))
            continue
        if size < _RUN.size:
            return None
        begin = content + _RUN.size
        found, checked = crc32(data[checked:begin], found), at
        first, last, term, own = _RUN.unpack_from(data, content)
        if crc32(data[begin:at], crc32(_RUN_KEY.pack(shard, replica, first, last, term))) != own:
            damaged.append(content)
        runs.append((kind, (shard, replica), content, size, first, last, term))
    if crc32(data[checked:end], found) != checksum:
        return None
    return Record(sequence, durable, end, runs, others, damaged)


def seems_record(data: memoryview, at: int, segment: int, sequence: int) -> bool:
    """Return whether the head of this record seems to be at `at`, even if it is damaged; for a report."""
    if at + _RECORD.size > len(data):
        return False
    _, _, number, found, _, _ = _RECORD.unpack_from(data, at)
    return bool(number == segment or found == sequence)


def find_record(data: memoryview, at: int, segment: int, salt: int) -> Record | None:
    """Return the first whole record that begins at or after `at`, whatever lies before it."""
    for found, _ in _heads(data, at, segment, salt):
        record = read_record(data, found, segment, salt)
        if record is not None:
            return record
    return None


def find_head(data: memoryview, at: int, segment: int, salt: int, *, after: int) -> Head | None:
    """Return the first head at or after `at` of a record later than number `after`. The rest of it may be damaged."""
    return next((head for _, head in _heads(data, at, segment, salt) if head.sequence > after), None)


def _heads(data: memoryview, at: int, segment: int, salt: int) -> Iterator[tuple[int, Head]]:
    """Yield the heads of records from `at` on that match their own checksums, each with where its record begins.

    Between them may be anything.
    """
    wanted, place = segment.to_bytes(8, "little"), 8  # of the segment's number within a record
    searched = bytes(data)
    while (found := searched.find(wanted, at + place)) >= 0:
        begin = found - place
        if begin + _RECORD.size > len(data):
            return
        _, _, _, sequence, durable, own = _RECORD.unpack_from(data, begin)
        if crc32(data[begin + 4 : begin + _RECORD.size - 4], salt) == own:
            yield begin, Head(sequence, durable)
        at = begin + 1


def run_is_whole(key: ReplicaKey, data: bytes | memoryview) -> bool:
    """Return whether the bytes of a stored run match their checksum, as a run of this replica."""
    if len(data) < _RUN.size:
        return False
    first, last, term, checksum = _RUN.unpack_from(data)
    return bool(crc32(data[_RUN.size :], crc32(_RUN_KEY.pack(*key, first, last, term))) == checksum)


def run_head(data: bytes | memoryview, at: int = 0) -> tuple[int, int, int]:
    """Return first index, last index and term of the stored run that begins at `at`."""
    first, last, term, _checksum = _RUN.unpack_from(data, at)
    return int(first), int(last), int(term)


def decode_run(key: ReplicaKey, data: bytes | bytearray) -> Run:
    """Return the entries of a stored run. Raises `CorruptData` if it does not match its checksum."""
    view = memoryview(data)
    if not run_is_whole(key, view):
        raise CorruptData(f"a run of {len(data)} bytes does not match its checksum")
    return Run.decode(bytes(view[_RUN.size :]))


def first_run(data: memoryview, at: int) -> tuple[ReplicaKey, int] | None:
    """Return replica and first index of the first run in a damaged record, if one can be seen; for a report."""
    at += _RECORD.size
    while at + _CHANGE.size + _RUN.size <= len(data):
        kind, shard, replica, size = _CHANGE.unpack_from(data, at)
        if kind not in tuple(Kind):
            return None
        if kind in _RUNS:
            return (shard, replica), run_head(data, at + _CHANGE.size)[0]
        at += _CHANGE.size + size
    return None


# -- contents ---------------------------------------------------------------------------------------------------------


def encode_hard_state(state: HardState) -> bytes:
    """Encode term, vote and commit index."""
    return _HARD_STATE.pack(state.term, state.vote, state.commit)


def decode_hard_state(content: bytes) -> HardState:
    """Decode it. Raises `CorruptData`."""
    state = HardState(*_unpack(_HARD_STATE, content, "hard state"))
    check_hard_state(state)
    return state


def check_hard_state(state: HardState) -> None:
    """Raise `CorruptData` for numbers that no replica reaches."""
    if state.term > MAX_TERM or state.commit > MAX_INDEX or state.vote > MAX_SIGNED:
        raise CorruptData(
            f"a hard state has term {state.term}, vote {state.vote} and commit index {state.commit}: terms end at "
            f"{MAX_TERM}, indexes at {MAX_INDEX}, replica ids at {MAX_SIGNED}"
        )


def encode_marker(marker: tuple[int, int]) -> bytes:
    """Encode index and term."""
    return _MARKER.pack(*marker)


def decode_marker(content: bytes) -> tuple[int, int]:
    """Decode it. Raises `CorruptData`."""
    index, term = _unpack(_MARKER, content, "compaction marker")
    _check_point("compaction marker", index, term)
    return index, term


def _check_point(what: str, index: int, term: int) -> None:
    """Raise `CorruptData` unless an entry may have this index and this term; those of none are 0."""
    if not (is_whole(index, 0, MAX_INDEX) and is_whole(term, 0, MAX_TERM)):
        raise CorruptData(
            f"a {what} is at index {index} in term {term}: indexes end at {MAX_INDEX}, terms at {MAX_TERM}"
        )


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Encode it as a CBOR list. The state machine's state is in a file, which `Snapshot.payload` names."""
    members = encode_membership(snapshot.membership)
    return cbor2.dumps(
        [snapshot.index, snapshot.term, members, snapshot.payload, snapshot.witness, snapshot.size]
    )


def decode_snapshot(content: bytes) -> Snapshot:
    """Decode it. Raises `CorruptData`."""
    index, term, members, payload, witness, size = _columns(
        content, "snapshot", int, int, list, bytes, bool, int
    )
    _check_point("snapshot", index, term)
    if not is_whole(size):
        raise CorruptData(f"a snapshot has {size} bytes")
    return Snapshot(index, term, decode_membership(members), payload, witness, size)


def encode_bootstrap(record: Bootstrap) -> bytes:
    """Encode it as a CBOR list. The generation is left out where it is 0."""
    columns = [encode_membership(record.membership), record.join, record.state_machine]
    return cbor2.dumps([*columns, record.generation] if record.generation else columns)


def decode_bootstrap(content: bytes) -> Bootstrap:
    """Decode it. Raises `CorruptData`."""
    members, join, state_machine, *generation = _columns(
        content, "bootstrap record", list, bool, str, optional=(int,)
    )
    if not are_whole(generation):
        raise CorruptData(
            f"a bootstrap record has the generation {generation[0]}, which is no number of a file"
        )
    return Bootstrap(decode_membership(members), join, state_machine, *generation)


def encode_lives(lives: Lives) -> bytes:
    """Encode it as a CBOR list."""
    companions = [[replica, lives.companions[replica]] for replica in sorted(lives.companions)]
    return cbor2.dumps([lives.founding, int(lives.standing), companions])


def decode_lives(content: bytes) -> Lives:
    """Decode it. Raises `CorruptData`."""
    founding, standing, companions = _columns(content, "record of a life", bytes, int, list)
    for pair in companions:
        if type(pair) is not list or len(pair) != 2 or not are_whole(pair):
            raise CorruptData(
                f"a companion in a record of a life is {pair!r:.60}, which is no pair of numbers"
            )
    try:
        return Lives(founding, Standing(standing), dict(companions))
    except ValueError as error:
        raise CorruptData(f"a record of a life has the standing {standing}, which is none") from error


def _unpack(layout: Struct, content: bytes, what: str) -> tuple[Any, ...]:
    if len(content) != layout.size:
        raise CorruptData(f"a {what} has {len(content)} bytes and not {layout.size}")
    return layout.unpack(content)


def _columns(content: bytes, what: str, *types: type, optional: tuple[type, ...] = ()) -> list[Any]:
    """Decode a list of columns of these types; those that are `optional` may be missing at its end."""
    try:
        columns = cbor.loads(content, max_depth=8)
    except ValueError as error:
        raise CorruptData(f"a {what} cannot be decoded: {error}") from error
    if type(columns) is not list or tuple(map(type, columns)) not in {types, types + optional}:
        raise CorruptData(f"a {what} is not a list of {', '.join(each.__name__ for each in types)}")
    return columns
