"""Runs of one replica that were read from the disk, and are kept for a moment: its reader asks for them again soon.

They count in the budget that the logs of a host share. The newest page stays until it is taken, since a
replica waits for it; all else may be dropped, and is read again.
"""

from collections import deque
from typing import Final

from drakkar.handlers.errors import CorruptData, StorageFailed
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.log_memory import LogMemory

__all__ = ["KeptRuns", "Page", "Unreadable"]

Unreadable = CorruptData | StorageFailed
Page = dict[int, Run | Unreadable]
"""By first index: the runs, and what is wrong with the one behind them, if it could not be read."""

_MAX_PAGES: Final = 2


class KeptRuns:
    """The newest pages, and the run that was used last. For the log's thread. A `Holder` of a `LogMemory`."""

    def __init__(self) -> None:
        self.memory: LogMemory | None = None
        """Where they count; None: nowhere."""
        self.bytes = self.spare = 0
        self._pages: deque[_KeptPage] = deque(maxlen=_MAX_PAGES)
        self._recent: tuple[int, Run] | None = None

    def add_page(self, cuts: int, page: Page) -> None:
        """Keep a page that was valid after so many cuts of the log; the oldest one goes."""
        self._pages.append(_KeptPage(cuts, page))
        self._count()

    def take(self, first: int, cuts: int) -> Run | None:
        """Return the run that begins at `first` if it is in a page, and keep it there no longer.

        Raises what is wrong with it, if it could not be read.
        """
        for page in self._pages:
            found = page.take(first) if page.cuts == cuts else None
            if found is not None:
                self._count()
                if isinstance(found, Unreadable):
                    raise found
                return found
        return None

    def remember(self, cuts: int, run: Run) -> None:
        """Keep the run that was used last: it often holds the next page too."""
        self._recent = cuts, run
        self._count()

    def recent(self, first: int, cuts: int) -> Run | None:
        """Return the run that was used last, if it is this one."""
        if self._recent is not None and self._recent[0] == cuts and self._recent[1].first == first:
            return self._recent[1]
        return None

    def drop(self, size: int) -> None:
        """Drop what may be dropped: `size` bytes or more, or all."""
        if size > 0:
            self._recent = None
            while len(self._pages) > 1:
                self._pages.popleft()
            self._count()

    def clear(self) -> None:
        """Drop all."""
        self._recent = None
        self._pages.clear()
        self._count()

    def _count(self) -> None:
        before = self.bytes
        self.bytes = sum(page.bytes for page in self._pages)
        self.bytes += self._recent[1].memory if self._recent is not None else 0
        self.spare = self.bytes - (self._pages[-1].bytes if self._pages else 0)
        if self.memory is None:
            return
        if self.bytes > before:
            self.memory.grew(self, self.bytes - before)
        elif self.bytes < before:
            self.memory.shrank(self, before - self.bytes)
        if self.spare:
            self.memory.spared(self)


class _KeptPage:
    """What is left of one page."""

    __slots__ = ("_page", "bytes", "cuts")

    def __init__(self, cuts: int, page: Page) -> None:
        self.cuts, self._page = cuts, page
        self.bytes = sum(run.memory for run in page.values() if isinstance(run, Run))
        """What its runs take in memory. They are taken one by one, so it is not summed up anew each time."""

    def take(self, first: int) -> Run | Unreadable | None:
        """Return what begins at `first`, and keep it no longer."""
        found = self._page.pop(first, None)
        if isinstance(found, Run):
            self.bytes -= found.memory
        return found
