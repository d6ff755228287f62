"""Whether this replica's disk has room for entries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drakkar.handlers.raft.runs import Entry

__all__ = ["Room"]


@dataclass(slots=True)
class Room:
    """Whether this replica's disk has room for entries, as its host last said, and what the lack of it has cost."""

    full: bool = False
    """No more entries are taken in, but for what the reserve is for; see `room`."""
    dropped: int = 0
    """Entries of a leader that were dropped before they reached the log; a leader sends them again."""
    refused: int = 0
    """Proposals that this replica, as the leader, refused."""
    judge: Callable[[Sequence[Entry]], None] | None = None
    """Asks the host whether there is room, before entries are taken in that no message of the host has: `RoomWatch.judge`.
    None: it is not asked."""
