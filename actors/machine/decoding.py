"""What the commands of the log take to decode, by what their entries say of themselves. Nothing is decoded to know it.

A command of some kilobytes may be one of megabytes once it is decoded, at a rate of 200 MB a second. So what would keep the loop
for longer than a few milliseconds is left to a worker.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from drakkar.actors.machine.compression import announced
from drakkar.actors.machine.sessions import request_size
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.entries import EntryKind, Run

__all__ = ["CODED", "coded_entries", "command_size", "decoding_work"]

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


def coded_entries(runs: Iterable[Run]) -> Iterator[tuple[int, bytes]]:
    """Return kind and payload of the entries that must be decoded."""
    for run in runs:
        if run.kinds:
            yield from (entry for entry in zip(run.kinds, run.payloads, strict=True) if entry[0] in CODED)


def decoding_work(runs: Iterable[Run]) -> int:
    """Return what the entries of these runs take to decode, in bytes of commands; 0 if all are plain."""
    return sum(ENTRY_WORK + command_size(kind, payload) for kind, payload in coded_entries(runs))
