"""A disk that hangs: how a replica notices it. And one that is full: how an operator does."""

from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.raft.raft import Raft

__all__ = ["DiskWatch", "tell_of_room"]


class DiskWatch:
    """Counts the ticks that a write takes. All methods are for the loop's thread.

    Writes are off the loop, so a leader whose disk hangs would go on sending heartbeats, and no other replica would be
    elected. A host whose write takes longer than an election timeout is as good as dead: its replica must not lead.

    All replicas of a host share its disk, and their writes wait for one another. A disk that finishes writes
    does not hang, however long that queue is: else replicas that are far behind would make their host deaf to
    what all of them are sent.
    """

    def __init__(self, lines: Lines, *, timeout_ticks: int) -> None:
        """A disk hangs when a write waits, and none is done, for more than `timeout_ticks`."""
        self._lines = lines
        self._timeout_ticks = timeout_ticks
        self.ticks = 0
        """Ticks of the host's clock, counted even while the disk hangs."""
        self.hangs = False
        """As of the last tick."""
        self._written = 0
        self._progress_at = 0
        """The tick in which it was last seen that a write was done."""

    def tick(self, waits_since: int | None, written: int) -> bool:
        """Count a tick, and return whether the disk hangs.

        `waits_since` is the tick in which the oldest write of the replica was ordered that is not done; None
        if all are.
        `written` is how many writes the disk has done so far, also for other replicas.
        """
        self.ticks += 1
        if written != self._written:
            self._written, self._progress_at = written, self.ticks
        hangs = (
            waits_since is not None and self.ticks - max(waits_since, self._progress_at) > self._timeout_ticks
        )
        if hangs and not self.hangs:
            self._lines.error("the disk has not finished a write for an election timeout")
        elif self.hangs and not hangs:
            self._lines.warning("the disk writes again")
        self.hangs = hangs
        return hangs


def tell_of_room(raft: Raft, lines: Lines, *, full: bool) -> None:
    """Log that the disk of a replica's host has become full, or has room again."""
    host = raft.membership.addresses.get(raft.id) or "this host"
    what = (
        "is full: it takes no entries until there is room, and needs no restart then"
        if full
        else "has room again"
    )
    lines.warning("the disk of %s %s", host, what)
