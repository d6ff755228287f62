"""What the commands of the log take to decode, by what their entries say of themselves. Nothing is decoded to know it.

A command of some kilobytes may be one of megabytes once it is decoded, at a rate of 200 MB a second. So what would keep the loop
for longer than a few milliseconds is left to a worker.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from drakkar.actors.machine.compression import announced, beginning
from drakkar.actors.machine.sessions import request_size, requested
from drakkar.handlers.checks import check_whole
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.entries import Entry, EntryKind, Run

__all__ = ["CODED", "coded_entries", "command_of", "command_size", "decoding_work"]

_COMMAND: Final = int(EntryKind.COMMAND)
_ENCODED: Final = int(EntryKind.ENCODED)
_SESSION: Final = int(EntryKind.SESSION)
CODED: Final = (_ENCODED, _SESSION)
"""The kinds of entries whose payloads are not the command itself."""
ENTRY_WORK: Final = 512
"""What an entry counts beside the bytes of its command: its own decoding takes some 2 µs."""


def command_size(kind: int, payload: bytes) -> int:
    """Return how many bytes the command of an entry has, as the entry says; those of the payload if it does not say."""
    try:
        if kind == _ENCODED:
            return announced(payload)
        if kind == _SESSION:
            return request_size(payload)
    except CorruptData:
        pass  # decoding will tell, and takes no time
    return len(payload)


def command_of(entry: Entry, *, limit: int) -> bytes | None:
    """Return the command in an entry as it was proposed, also of a session's or a compressed one: its first `limit` bytes.

    For handlers of yours, which are given entries as they are logged. No more than `limit` bytes are decoded, on the loop; where you
    must know whether the command has more, name one more than you look at. None for an entry without a command, such as a record or
    the opening of a session, and for one that cannot be decoded.
    """
    check_whole("limit", limit, 1, 1 << 30)
    try:
        if entry.kind == _ENCODED:
            return beginning(entry.payload, limit)
        if entry.kind == _SESSION:
            request = requested(entry.payload)
            if request is None:
                return None
            command, encoded = request
            return beginning(command, limit) if encoded else command[:limit]
    except CorruptData:
        return None
    return entry.payload[:limit] if entry.kind == _COMMAND else None


def coded_entries(runs: Iterable[Run]) -> Iterator[tuple[int, bytes]]:
    """Return kind and payload of the entries that must be decoded."""
    for run in runs:
        if run.kinds:
            yield from (entry for entry in zip(run.kinds, run.payloads, strict=True) if entry[0] in CODED)


def decoding_work(runs: Iterable[Run]) -> int:
    """Return what the entries of these runs take to decode, in bytes of commands; 0 if all are plain."""
    return sum(ENTRY_WORK + command_size(kind, payload) for kind, payload in coded_entries(runs))
