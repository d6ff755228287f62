"""What a snapshot of a state machine holds.

    facts     in the footer of the file: see `Facts`
    content   8 bytes of length, big-endian; the client sessions; then what the state machine wrote

The content is empty if `Facts.has_content` is False.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, BinaryIO, Final, Self

from drakkar.actors.machine.sessions import SessionTable
from drakkar.handlers.checks import is_whole
from drakkar.handlers.errors import CorruptData

__all__ = ["Facts", "read_sessions", "with_sessions"]

_LENGTH: Final = Struct(">Q")
_MAX_SESSIONS_BYTES: Final = 256 << 20
_KEYS: Final = ("shard", "machine_index", "content")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader must know of a snapshot before it reads the content."""

    shard_id: int
    machine_index: int
    """The last entry that the state machine held. A state machine on disk may be ahead of the snapshot's index."""
    has_content: bool = True
    """False for a state machine on disk that keeps its state itself: the snapshot only says that the log may be deleted."""

    def encode(self) -> dict[str, Any]:
        """Return them as a map for the footer of a snapshot's file."""
        return dict(zip(_KEYS, (self.shard_id, self.machine_index, self.has_content), strict=True))

    @classmethod
    def decode(cls, facts: Mapping[str, Any]) -> Self:
        """Return the facts of a snapshot's file, which may hold others too. Raises `CorruptData`."""
        shard_id, machine_index, has_content = (facts.get(key) for key in _KEYS)
        if not (is_whole(shard_id) and is_whole(machine_index) and type(has_content) is bool):
            raise CorruptData(f"the facts of a snapshot are {facts!r:.200}, and do not say whose it is")
        return cls(shard_id, machine_index, has_content)


def with_sessions(sessions: bytes, write_state: Callable[[BinaryIO], None]) -> Callable[[BinaryIO], None]:
    """Return a function that writes the encoded sessions, and then the state."""

    def write(sink: BinaryIO) -> None:
        sink.write(_LENGTH.pack(len(sessions)))
        sink.write(sessions)
        write_state(sink)

    return write


def read_sessions(source: BinaryIO) -> SessionTable:
    """Read the sessions; the state machine's state is what follows. Raises `CorruptData`."""
    (size,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    if size > _MAX_SESSIONS_BYTES:
        raise CorruptData(
            f"a snapshot says that its sessions take {size} bytes, and at most {_MAX_SESSIONS_BYTES} are allowed"
        )
    return SessionTable.decode(_exactly(source, size))


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise CorruptData(f"a snapshot ends {size - len(data)} bytes before its state begins")
    return data
