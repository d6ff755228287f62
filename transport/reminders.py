"""How often the same warning is written: what lasts is repeated once a minute, not each time that it is seen."""

import time
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["Reminders", "and_others"]

REPEAT_AFTER_S: Final = 60.0
MAX_REMINDERS: Final = 10_000
"""Causes that are remembered; of more, the oldest is forgotten, and may be told again too early."""


class _Written:
    """One warning."""

    __slots__ = ("at", "since")

    def __init__(self, at: float) -> None:
        self.at = at
        self.since = 0
        """Events like it that were not written."""


class Reminders:
    """What was written in the last minute, and how much was not. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: dict[Hashable, _Written] = {}

    def due(self, cause: Hashable) -> int:
        """Return how many events of this cause the warning stands for that is to be written now; 0: none is to be written.

        The first is written at once, and those of the next minute are counted for the one after it. `cause` is the kind of
        event, without what differs each time, such as ports and names: each cause takes memory.
        """
        now, written = self._clock(), self._written
        last = written.get(cause)
        if last is not None and now < last.at + REPEAT_AFTER_S:
            last.since += 1
            return 0
        written.pop(cause, None)
        written[cause] = _Written(now)
        if len(written) > MAX_REMINDERS:
            del written[next(iter(written))]
        return 1 if last is None else last.since + 1


def and_others(count: int) -> str:
    """Return what a warning says of the other events that it stands for: `count` is what `due` returned."""
    return "" if count <= 1 else f" (and {count - 1} like it since the last warning)"
