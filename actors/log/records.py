"""What the log store keeps, as bytes: keys that sort like the log, and values that carry a checksum.

A value's checksum covers its key too, so that a value found under another's key is as corrupt as one with a
flipped bit. A run of entries is stored as the very bytes that travelled (`Run.encode`), behind its checksum.
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
"""Index and term of the entry just before the first: whatever lies at or before it was compacted away."""
REMOVED: Final = b"r"
"""The replica is gone for good, and its id never used again; what may be left of its log waits to be deleted."""
SNAPSHOT: Final = b"s"

ALL_ENTRIES: Final = (1 << 64) - 1
"""An index beyond every log."""

_REPLICA: Final = Struct(">QQ")
_RUN: Final = Struct(">QQQ")
_CHECKSUM: Final = Struct(">I")


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How a replica began; written once, before anything else of it."""

    membership: Membership
    """The initial members; empty where `join`."""
    join: bool = False
    """It joins a shard that exists, whose leader will tell it the members."""
    state_machine: str = ""
    """The type of its state machine, by name: its log makes no sense to another."""


def replica_key(shard: int, replica: int) -> ReplicaKey:
    """Return both ids as a key. Raises `ConfigError` where one is out of bounds."""
    check_whole("shard_id", shard, 0, MAX_UNSIGNED)
    check_whole("replica_id", replica, 1, MAX_UNSIGNED)
    return shard, replica


def replica_prefix(key: ReplicaKey) -> bytes:
    """Return what the keys of all runs and records of a replica begin with."""
    return _REPLICA.pack(*key)


def run_key(key: ReplicaKey, first: int) -> bytes:
    """Return the key of the run that begins at index `first`."""
    return _RUN.pack(*key, first)


def first_of(stored_key: bytes) -> int:
    """Return the index at which the run under this key begins."""
    first: int = _RUN.unpack(stored_key)[2]
    return first


def replica_of(stored_key: bytes) -> ReplicaKey:
    """Return the replica that this key belongs to."""
    shard, replica = _REPLICA.unpack_from(stored_key)
    return shard, replica


def seal(key: bytes, content: bytes) -> bytes:
    """Return the value to store under `key`."""
    return _CHECKSUM.pack(crc32(content, crc32(key))) + content


def unseal(key: bytes, value: memoryview) -> bytes:
    """Return the content of a value. Raises `CorruptData` where it is not what was stored under `key`."""
    content = value[_CHECKSUM.size :]
    if len(value) < _CHECKSUM.size or _CHECKSUM.unpack_from(value)[0] != crc32(content, crc32(key)):
        raise CorruptData(f"a value of {len(value)} bytes does not match its checksum")
    return bytes(content)


def encode_hard_state(state: HardState) -> bytes:
    """Encode it as a CBOR list."""
    return cbor2.dumps([state.term, state.vote, state.commit])


def decode_hard_state(content: bytes) -> HardState:
    """Decode it. Raises `CorruptData` where it is none."""
    return HardState(*_columns(content, "hard state", int, int, int))


def encode_marker(marker: tuple[int, int]) -> bytes:
    """Encode it as a CBOR list of index and term."""
    return cbor2.dumps(list(marker))


def decode_marker(content: bytes) -> tuple[int, int]:
    """Decode it. Raises `CorruptData` where it is none."""
    index, term = _columns(content, "compaction marker", int, int)
    return index, term


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Encode it as a CBOR list; of the content only what `Snapshot.payload` holds."""
    members = encode_membership(snapshot.membership)
    return cbor2.dumps(
        [snapshot.index, snapshot.term, members, snapshot.payload, snapshot.witness, snapshot.size]
    )


def decode_snapshot(content: bytes) -> Snapshot:
    """Decode it. Raises `CorruptData` where it is none."""
    index, term, members, payload, witness, size = _columns(
        content, "snapshot", int, int, list, bytes, bool, int
    )
    return Snapshot(index, term, decode_membership(members), payload, witness, size)


def encode_bootstrap(record: Bootstrap) -> bytes:
    """Encode it as a CBOR list."""
    return cbor2.dumps([encode_membership(record.membership), record.join, record.state_machine])


def decode_bootstrap(content: bytes) -> Bootstrap:
    """Decode it. Raises `CorruptData` where it is none."""
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
