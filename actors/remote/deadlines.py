"""Ends what has no answer in time: one task of the loop for all questions, in slots of 50 ms."""

import time
from collections.abc import Callable
from typing import Final, Protocol

import trio

__all__ = ["SLOT_S", "Deadlines", "slot_of"]

SLOT_S: Final = 0.05
"""How much later than its deadline a question may end whose future no thread waits for. A timer for each question
would cost more than the question."""


class Waiting(Protocol):
    """What has a deadline. It is hashed by identity."""

    @property
    def slot(self) -> int:
        """The slot of its deadline; always the same."""
        ...

    def give_up(self) -> None:
        """The deadline has passed. Raises nothing."""


def slot_of(deadline: float) -> int:
    """Return the first slot that ends after a time of `time.monotonic`."""
    return int(deadline / SLOT_S) + 1


class Deadlines:
    """What waits for an answer, by the slot of its deadline. For the thread of the loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots: dict[int, dict[Waiting, None]] = {}
        self._some = trio.Event()
        """Something waits."""

    def add(self, waiting: Waiting) -> None:
        """Have it give up at its deadline."""
        if not self._slots:
            self._some.set()
        self._slots.setdefault(waiting.slot, {})[waiting] = None

    def remove(self, waiting: Waiting) -> None:
        """It has its answer. Nothing happens if it was not added, or has given up."""
        slot = self._slots.get(waiting.slot)
        if slot is not None:
            slot.pop(waiting, None)
            if not slot:
                del self._slots[waiting.slot]

    async def run(self) -> None:
        """End what is late. Never returns."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            while self._slots:
                await trio.sleep(SLOT_S)
                self.end_late()

    def end_late(self) -> None:
        """Let all give up whose deadline has passed."""
        now = self._clock()
        for late in [slot for slot in self._slots if slot * SLOT_S <= now]:
            for waiting in self._slots.pop(late, {}):
                waiting.give_up()
