"""A log whose older entries sometimes have to be read from a disk first, as those of a real host."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Final

from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.lives import Lives
from drakkar.handlers.raft.log import EntriesNotLoaded, RaftLog, Storage
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = ["SlowReads", "reading"]

_MAX_LOADED: Final = 2
_LONGEST: Final = 40
"""The longest time that a read takes, in units of time: a few ticks."""
_LOST: Final = 0.2
"""The probability that what was read is of no use, so that it has to be asked for again."""


class SlowReads:
    """A `Storage` in front of another one."""

    def __init__(
        self,
        storage: Storage,
        random: Random,
        *,
        chance: Callable[[], float],
        later: Callable[[int, Callable[[], None]], None],
        loaded: Callable[[], None],
    ) -> None:
        """`chance()` is the probability of a slow read; `later` calls a function after some time, unless the host crashes.

        `loaded` is called after each slow read.
        """
        self._storage, self._random = storage, random
        self._chance, self._later, self._notify = chance, later, loaded
        self._reading: set[int] = set()
        self._loaded: deque[int] = deque(maxlen=_MAX_LOADED)
        self.at_once = False

    @property
    def hard_state(self) -> HardState:
        """As in the other one."""
        return self._storage.hard_state

    @property
    def lives(self) -> Lives:
        """As in the other one."""
        return self._storage.lives

    @property
    def snapshot(self) -> Snapshot:
        """As in the other one."""
        return self._storage.snapshot

    @property
    def membership(self) -> Membership:
        """As in the other one."""
        return self._storage.membership

    @property
    def first_index(self) -> int:
        """As in the other one."""
        return self._storage.first_index

    @property
    def last_index(self) -> int:
        """As in the other one."""
        return self._storage.last_index

    def term(self, index: int) -> int:
        """As in the other one."""
        return self._storage.term(index)

    def runs(self, low: int, high: int, limit: int) -> list[Run]:
        """Return a page, sometimes a short one, or raise `EntriesNotLoaded`."""
        chance = 0.0 if self.at_once else self._chance()
        if not chance:
            return self._storage.runs(low, high, limit)
        if low in self._loaded:
            self._loaded.remove(low)
        elif low in self._reading or self._random.random() < chance:
            if low not in self._reading:
                self._reading.add(low)
                self._later(self._random.randint(1, _LONGEST), partial(self._end, low))
            raise EntriesNotLoaded(f"entries from {low} on")
        return self._storage.runs(low, high, self._random.choice((limit, 1)))

    def _end(self, low: int) -> None:
        self._reading.discard(low)
        if self._random.random() >= _LOST:
            self._loaded.append(low)
        self._notify()


@contextmanager
def reading(log: RaftLog) -> Iterator[None]:
    """Let a check read a log without delay, so that it only observes."""
    slow = log.storage if isinstance(log.storage, SlowReads) else None
    if slow is not None:
        slow.at_once = True
    try:
        yield
    finally:
        if slow is not None:
            slow.at_once = False
