"""A disk that hangs: how a replica notices it."""

import logging

__all__ = ["DiskWatch"]

logger = logging.getLogger(__name__)


class DiskWatch:
    """Counts the ticks that a write takes. All methods are for the loop's thread.

    Writes are off the loop, so a leader whose disk hangs would go on sending heartbeats, and no other replica would be
    elected. A host whose write takes longer than an election timeout is as good as dead: its replica must not lead.
    """

    def __init__(self, replica: str, *, timeout_ticks: int) -> None:
        """`replica` names it in the log; a disk hangs when a write takes more than `timeout_ticks`."""
        self._replica = replica
        self._timeout_ticks = timeout_ticks
        self.ticks = 0
        """Ticks of the host's clock, counted even while the disk hangs."""
        self.hangs = False
        """As of the last tick."""

    def tick(self, waits_since: int | None) -> bool:
        """Count a tick, and return whether the disk hangs.

        `waits_since` is the tick in which the oldest write was ordered that is not done; None if all are.
        """
        self.ticks += 1
        hangs = waits_since is not None and self.ticks - waits_since > self._timeout_ticks
        if hangs and not self.hangs:
            logger.error("%s: the disk has not finished a write for an election timeout", self._replica)
        elif self.hangs and not hangs:
            logger.warning("%s: the disk writes again", self._replica)
        self.hangs = hangs
        return hangs
