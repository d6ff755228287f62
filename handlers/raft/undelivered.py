"""The committed entries of one replica that wait to be delivered to its extensions, and the saves that wait for some of them."""

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from drakkar.handlers.raft.runs import Run

__all__ = ["Done", "Undelivered"]

Done: TypeAlias = Callable[[bytes | None], None]
"""It is told what extensions have saved; None: a snapshot of a leader was loaded that is newer, so it is not saved any more."""


class Undelivered:
    """What was handed out to be applied, and is not reported back. Nothing is kept where no extension takes entries."""

    def __init__(self) -> None:
        self.runs: deque[Run] = deque()
        """In log order, without a gap."""
        self.saves: deque[tuple[int, Done]] = deque()
        """Who waits for the state as of an index, in the order of the indexes."""
        self.reached: set[object] = set()
        """The classes of the extensions to which an entry was delivered, or which were loaded: snapshots have parts of these alone."""

    def take(self, index: int) -> list[Run]:
        """Take out all entries up to `index`."""
        taken: list[Run] = []
        while self.runs and self.runs[0].last <= index:
            taken.append(self.runs.popleft())
        if self.runs and self.runs[0].first <= index:
            run = self.runs[0]
            taken.append(run.slice(run.first, index + 1))
            self.runs[0] = run.slice(index + 1, run.last + 1)
        return taken

    def stood_for(self, index: int) -> None:
        """A snapshot as of `index` is loaded in the place of all entries up to there, so there is no state any more as of an earlier one."""
        self.take(index)
        while self.saves and self.saves[0][0] < index:
            self.saves.popleft()[1](None)

    def save_at(self, index: int, done: Done) -> None:
        """Let `done` wait for `index`."""
        place = len(self.saves)
        while place and self.saves[place - 1][0] > index:
            place -= 1
        self.saves.insert(place, (index, done))
