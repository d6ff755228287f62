"""The states of extensions as a part of snapshots: saved at exactly the labelled index, and loaded with the snapshot."""

from collections.abc import Mapping
from typing import Any, Final

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.errors import ConfigError, CorruptData, MissingExtension
from drakkar.handlers.extension import call, failed, name_of_extension
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.state import State
from drakkar.handlers.raft.undelivered import Done

__all__ = ["MAX_SAVED_BYTES", "encode", "load", "save"]

MAX_SAVED_BYTES: Final = 16 << 20
"""Maximum bytes that all extensions of a replica save together: it is done on the loop."""

_OVERHEAD: Final = 1 << 16
"""Bytes for names, and for the heads of CBOR."""
_MAX_ITEMS: Final = 1 << 12
"""Names and parts that are decoded."""


def save(raft: RaftCore, index: int, done: Done) -> None:
    """Call `done` with the state as of `index`; see `Raft.save_extensions`."""
    if index < raft.log.applied:
        raise ConfigError("index", index, f"entries up to {raft.log.applied} are delivered already")
    if index == raft.log.applied:
        done(encode(raft))
    else:
        raft.undelivered.save_at(index, done)


def encode(raft: RaftCore) -> bytes:
    """Return what the extensions save now; empty where none saves anything.

    One to which nothing was delivered has no part: replicas that do not have it yet must be able to load the snapshot.
    """
    if raft.base_state is State.WITNESS:
        return b""
    index = raft.log.applied
    parts: dict[str, bytes] = {}
    size = 0
    for class_ in raft.handlers.extensions:
        if class_ not in raft.undelivered.reached or not hasattr(class_, "save"):
            continue
        part = call(raft, class_, "save", index)
        if type(part) is not bytes:
            raise failed(raft, class_, "save", index, f"it returned {type(part).__name__}, not bytes")
        size += len(part)
        if size > MAX_SAVED_BYTES:
            why = f"with it, {size} bytes are saved, and {MAX_SAVED_BYTES} are allowed for all extensions"
            raise failed(raft, class_, "save", index, why)
        parts[name_of_extension(class_)] = part
    return cbor2.dumps(parts) if parts else b""


def load(raft: RaftCore, data: bytes, index: int) -> None:
    """Hand extensions their parts of a snapshot; see `Raft.load_extensions`."""
    parts = _decoded(data) if data else {}
    takers = {
        name_of_extension(class_): class_ for class_ in raft.handlers.extensions if hasattr(class_, "load")
    }
    for name in parts:
        if name not in takers:
            raise MissingExtension(index, f"a part of a snapshot that the extension {name!r} has saved")
    raft.undelivered.stood_for(index)
    for name, part in parts.items():
        raft.undelivered.reached.add(takers[name])
        call(raft, takers[name], "load", index, part)


def _decoded(data: bytes) -> Mapping[str, bytes]:
    if len(data) > MAX_SAVED_BYTES + _OVERHEAD:
        raise CorruptData(f"extensions have saved {len(data)} bytes, and {MAX_SAVED_BYTES} are allowed")
    try:
        parts = cbor.loads(data, max_depth=1, max_items=_MAX_ITEMS)
    except ValueError as error:
        raise CorruptData(f"what extensions have saved cannot be decoded: {error}") from error
    if type(parts) is not dict or not all(map(_is_part, parts.items())):
        raise CorruptData("what extensions have saved is no map from their names to bytes")
    return parts


def _is_part(item: tuple[Any, Any]) -> bool:
    name, part = item
    return type(name) is str and type(part) is bytes
