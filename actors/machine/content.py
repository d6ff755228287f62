"""What a snapshot of a state machine holds.

    facts        in the footer of the file: see `Facts`
    sessions     8 bytes of length, big-endian; the client sessions
    extensions   8 bytes of length, big-endian; what the extensions have saved; only where `Facts.extensions` names some
    state        what the state machine wrote

If `Facts.has_content` is False, there are neither sessions nor a state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, BinaryIO, Final, Self, TypeAlias

from drakkar.actors.machine.sessions import SessionTable
from drakkar.handlers import cbor
from drakkar.handlers.checks import is_whole
from drakkar.handlers.errors import CorruptData

__all__ = [
    "Facts",
    "WriteContent",
    "names_in",
    "read_extensions",
    "read_sessions",
    "whole_content",
    "write_extensions",
]

WriteContent: TypeAlias = Callable[[BinaryIO, bytes], None]
"""Writes the content of a snapshot, of whose extensions these bytes are the encoded state; none: no extension has any."""

_LENGTH: Final = Struct(">Q")
_MAX_SESSIONS_BYTES: Final = 256 << 20
_MAX_EXTENSIONS_BYTES: Final = 32 << 20
"""More than what the core lets extensions save."""
_KEYS: Final = ("shard", "machine_index", "content")
_KEYS_WITH_EXTENSIONS: Final = ("shard", "machine_index", "content_after_extensions", "extensions")
"""A version without extensions would take their part for the state machine's state: it refuses facts without `content`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader must know of a snapshot before it reads the content."""

    shard_id: int
    machine_index: int
    """The last entry that the state machine held. A state machine on disk may be ahead of the snapshot's index."""
    has_content: bool = True
    """False for a state machine on disk that keeps its state itself: the snapshot only says that the log may be deleted."""
    extensions: tuple[str, ...] = ()
    """The names of the extensions whose state is in it, as of the snapshot's index."""

    def encode(self) -> dict[str, Any]:
        """Return them as a map for the footer of a snapshot's file."""
        values = (self.shard_id, self.machine_index, self.has_content)
        if not self.extensions:
            return dict(zip(_KEYS, values, strict=True))
        return dict(zip(_KEYS_WITH_EXTENSIONS, (*values, list(self.extensions)), strict=True))

    @classmethod
    def decode(cls, facts: Mapping[str, Any]) -> Self:
        """Return the facts of a snapshot's file, which may hold others too. Raises `CorruptData`."""
        names = facts.get("extensions", [])
        if type(names) is not list or not all(type(name) is str for name in names):
            raise CorruptData(
                f"the extensions in the facts of a snapshot are {names!r:.200}, which is no list of names"
            )
        keys = _KEYS_WITH_EXTENSIONS if names else _KEYS
        shard_id, machine_index, has_content = (facts.get(key) for key in keys[:3])
        if not (is_whole(shard_id) and is_whole(machine_index) and type(has_content) is bool):
            raise CorruptData(f"the facts of a snapshot are {facts!r:.200}, and do not say whose it is")
        return cls(shard_id, machine_index, has_content, tuple(names))


def whole_content(sessions: bytes, write_state: Callable[[BinaryIO], None]) -> WriteContent:
    """Return a function that writes the encoded sessions, the state of the extensions, and then that of the state machine."""

    def write(sink: BinaryIO, extensions: bytes) -> None:
        _write_part(sink, sessions)
        write_extensions(sink, extensions)
        write_state(sink)

    return write


def write_extensions(sink: BinaryIO, extensions: bytes) -> None:
    """Write the encoded state of the extensions, if there is any."""
    if extensions:
        _write_part(sink, extensions)


def _write_part(sink: BinaryIO, part: bytes) -> None:
    sink.write(_LENGTH.pack(len(part)))
    sink.write(part)


def read_sessions(source: BinaryIO) -> SessionTable:
    """Read the sessions, with which the content begins. Raises `CorruptData`."""
    return SessionTable.decode(_read_part(source, "sessions", _MAX_SESSIONS_BYTES))


def read_extensions(source: BinaryIO) -> bytes:
    """Read the encoded state of the extensions, behind the sessions if there are any. Raises `CorruptData`."""
    return _read_part(source, "extensions", _MAX_EXTENSIONS_BYTES)


def names_in(extensions: bytes) -> tuple[str, ...]:
    """Return the names of the extensions of which this is the encoded state, sorted; none of no bytes."""
    return tuple(sorted(cbor.loads(extensions, max_depth=1))) if extensions else ()


def _read_part(source: BinaryIO, what: str, limit: int) -> bytes:
    (size,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    if size > limit:
        raise CorruptData(
            f"a snapshot says that its {what} take {size} bytes, and at most {limit} are allowed"
        )
    return _exactly(source, size)


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise CorruptData(f"a snapshot ends {size - len(data)} bytes before its state begins")
    return data
