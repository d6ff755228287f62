"""A disk that hangs: the host falls silent, so that others take it for dead."""

from typing import Final, Protocol

from drakkar.actors.log.store import StoreStatus
from drakkar.actors.runtime.log_lines import Lines
from drakkar.transport.liveness import DEAD_TICKS

__all__ = ["FlushWatch"]

HUNG_TICKS: Final = DEAD_TICKS
"""Ticks of one flush after which the disk counts as hung: as long as others wait before they take a host for dead."""


class _Store(Protocol):
    """What a log store tells of itself."""

    @property
    def status(self) -> StoreStatus:
        """The figures of this moment."""
        ...


class FlushWatch:
    """Counts the ticks that a flush of the host's log takes. For the loop's thread.

    Flushes are off the loop, so a host whose disk hangs could go on answering heartbeats, though nothing that it is asked for can
    be done. Its replicas look for themselves (`node.disk_watch`); this one speaks for all that lives on the host.
    """

    def __init__(self, store: _Store, lines: Lines) -> None:
        self._store, self._lines = store, lines
        self.hangs = False
        """As of the last tick."""
        self._flushes = 0
        self._ticks = 0
        """How many the flush that is under way has taken."""

    def tick(self) -> bool:
        """Count a tick, and return whether the disk hangs. One that flushes does not, however much waits for it."""
        status = self._store.status
        if status.busy_since is None or status.commits != self._flushes:
            self._ticks, self._flushes = 0, status.commits
        else:
            self._ticks += 1
        hangs = self._ticks > HUNG_TICKS
        if hangs and not self.hangs:
            self._lines.warning(
                "sends and answers no heartbeats until its disk has finished a flush, which hangs"
            )
        elif self.hangs and not hangs:
            self._lines.warning("sends and answers heartbeats again: its disk writes")
        self.hangs = hangs
        return hangs
