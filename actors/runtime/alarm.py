"""`Alarm`: gives an actor a turn at a time, for one whose deadlines are data that it looks at in each turn."""

import math
import time
from collections.abc import Callable
from contextlib import suppress

import trio
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.tasks import Task
from drakkar.handlers.errors import LoopError

__all__ = ["Alarm"]


class Alarm:
    """Calls a function at one time, the last that it was set to. For the loop's thread."""

    def __init__(
        self, loop: TrioLoop, ring: Callable[[], object], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`ring` is called in the loop's thread. `clock` is in seconds."""
        self._loop, self._ring, self._clock = loop, ring, clock
        self._at = math.inf
        self._task: Task | None = None

    @property
    def at(self) -> float:
        """When it rings, in seconds of the clock; infinity: never."""
        return self._at

    def set(self, at: float) -> None:
        """Ring at `at`, in seconds of the clock, in place of the time that it was set to; infinity: never."""
        if at == self._at:
            return
        self.cancel()
        self._at = at
        if at < math.inf:
            with suppress(LoopError):  # the loop ends, and its actors have
                self._task = self._loop.spawn(self._sleep, at, name="an alarm")

    def cancel(self) -> None:
        """Do not ring."""
        task, self._task, self._at = self._task, None, math.inf
        if task is not None:
            task.cancel()

    async def _sleep(self, at: float) -> None:
        await trio.sleep(max(0.0, at - self._clock()))
        if self._at == at:
            self._task, self._at = None, math.inf
            self._ring()
