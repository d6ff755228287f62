"""What the log store keeps, as bytes: keys that sort like the log, and values with a checksum.

A value's checksum covers its key too, so a value under another value's key is found to be corrupt. A run of entries is
stored as the bytes that were sent (`Run.encode`), after its checksum.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Any, Final
from zlib import crc32

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_UNSIGNED, check_whole
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.codec import decode_membership, encode_membership
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = ["Bootstrap", "ReplicaKey"]

ReplicaKey = tuple[int, int]
"""Shard and replica."""

BOOTSTRAP: Final = b"b"
HARD_STATE: Final = b"h"
MARKER: Final = b"m"
"""Index and term of the entry before the first: it and all entries before it were compacted."""
REMOVED: Final = b"r"
"""The replica was removed for good, and its id must not be used again. The rest of its log waits to be deleted."""
SNAPSHOT: Final = b"s"

ALL_ENTRIES: Final = (1 << 64) - 1
"""An index after the end of every log."""

_REPLICA: Final = Struct(">QQ")
_RUN: Final = Struct(">QQQ")
_CHECKSUM: Final = Struct(">I")


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How a replica began. Written once, before everything else."""

    membership: Membership
    """The initial members; empty if `join`."""
    join: bool = False
    """It joins an existing shard, whose leader tells it the members."""
    state_machine: str = ""
    """The type of its state machine, by name. Its log has no meaning for another type."""


def replica_key(shard_id: int, replica_id: int) -> ReplicaKey:
    """Return both ids as a key. Raises `ConfigError` for an id out of bounds."""
    check_whole("shard_id", shard_id, 0, MAX_UNSIGNED)
    check_whole("replica_id", replica_id, 1, MAX_UNSIGNED)
    return shard_id, replica_id


def named(key: ReplicaKey) -> str:
    """Return a replica's name, for errors and logs."""
    return f"shard {key[0]} replica {key[1]}"


def replica_prefix(key: ReplicaKey) -> bytes:
    """Return the prefix of the keys of all runs and records of a replica."""
    return _REPLICA.pack(*key)


def run_key(key: ReplicaKey, first: int) -> bytes:
    """Return the key of the run that begins at index `first`."""
    return _RUN.pack(*key, first)


def first_of(stored_key: bytes) -> int:
    """Return the index at which the run under this key begins."""
    first: int = _RUN.unpack(stored_key)[2]
    return first


def replica_of(stored_key: bytes) -> ReplicaKey:
    """Return the replica of the run or record under this key."""
    shard_id, replica_id = _REPLICA.unpack_from(stored_key)
    return shard_id, replica_id


def seal(key: bytes, content: bytes) -> bytes:
    """Return the value to store under `key`."""
    return _CHECKSUM.pack(crc32(content, crc32(key))) + content


def unseal(key: bytes, value: memoryview) -> bytes:
    """Return the content of a value. Raises `CorruptData` if it is not what was stored under `key`."""
    content = value[_CHECKSUM.size :]
    if len(value) < _CHECKSUM.size or _CHECKSUM.unpack_from(value)[0] != crc32(content, crc32(key)):
        raise CorruptData(f"a value of {len(value)} bytes does not match its checksum")
    return bytes(content)


def encode_hard_state(state: HardState) -> bytes:
    """Encode it as a CBOR list."""
    return cbor2.dumps([state.term, state.vote, state.commit])


def decode_hard_state(content: bytes) -> HardState:
    """Decode it. Raises `CorruptData`."""
    return HardState(*_columns(content, "hard state", int, int, int))


def encode_marker(marker: tuple[int, int]) -> bytes:
    """Encode it as a CBOR list of index and term."""
    return cbor2.dumps(list(marker))


def decode_marker(content: bytes) -> tuple[int, int]:
    """Decode it. Raises `CorruptData`."""
    index, term = _columns(content, "compaction marker", int, int)
    return index, term


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
    return Snapshot(index, term, decode_membership(members), payload, witness, size)


def encode_bootstrap(record: Bootstrap) -> bytes:
    """Encode it as a CBOR list."""
    return cbor2.dumps([encode_membership(record.membership), record.join, record.state_machine])


def decode_bootstrap(content: bytes) -> Bootstrap:
    """Decode it. Raises `CorruptData`."""
    members, join, state_machine = _columns(content, "bootstrap record", list, bool, str)
    return Bootstrap(decode_membership(members), join, state_machine)


def _columns(content: bytes, what: str, *types: type) -> list[Any]:
    try:
        columns = cbor.loads(content, max_depth=8)
    except ValueError as error:
        raise CorruptData(f"a {what} cannot be decoded: {error}") from error
    if type(columns) is not list or tuple(map(type, columns)) != types:
        raise CorruptData(f"a {what} is not a list of {', '.join(each.__name__ for each in types)}")
    return columns
