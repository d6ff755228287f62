"""Whether this replica's disk has room for entries."""

from dataclasses import dataclass

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
