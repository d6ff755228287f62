"""Timers of a node: messages that it steps to itself some ticks later."""

from collections.abc import Iterator
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import Any, Final

from drakkar.handlers.checks import check_whole
from drakkar.handlers.errors import ConfigError, SystemBusy
from drakkar.handlers.messages import Message, is_own

__all__ = ["MAX_TICKS", "MAX_TIMERS", "Timer", "Timers"]

MAX_TICKS: Final = 1 << 31
"""The longest time of a timer, in ticks."""
MAX_TIMERS: Final = 10_000
"""Active timers of one node."""


class Timer:
    """One timer, as `node.after` and `node.every` return it."""

    __slots__ = ("_cancelled", "_message", "_period", "_timers")

    def __init__(self, timers: "Timers", message: Message, period: int) -> None:
        self._timers, self._message = timers, message
        self._period = period
        """Ticks until it is due again; 0: never."""
        self._cancelled = False

    @property
    def active(self) -> bool:
        """Whether it will still be due."""
        return not self._cancelled

    def cancel(self) -> None:
        """Let it not be due any more, not even in the tick that is being stepped. Cancelling again changes nothing."""
        if not self._cancelled:
            self._cancelled = True
            self._timers.note_cancelled()


class Timers:
    """The timers of one node, by the tick at which they are due. Ticks count only while there are timers."""

    def __init__(self, owner: Any) -> None:
        """`owner`: the id or name of the node, which is the sender of all messages."""
        self._owner = owner
        self._now = self._made = 0
        self.waiting: list[tuple[int, int, Timer]] = []
        """A heap of (tick, number, timer); the cancelled ones among them are dropped later. Empty: nothing to advance."""
        self._cancelled = 0

    def __len__(self) -> int:
        """How many are active."""
        return len(self.waiting) - self._cancelled

    def after(self, ticks: int, message: Message) -> Timer:
        """Have a copy of `message` be due once, `ticks` ticks from now, with this node as its sender.

        Raises `ConfigError` for a time outside 1..2**31 or a message of a built-in type, `SystemBusy` beyond 10,000 timers.
        """
        return self._add(ticks, message, 0)

    def every(self, ticks: int, message: Message) -> Timer:
        """Have a copy of `message` be due every `ticks` ticks, first `ticks` from now, until it is cancelled. Raises as `after`."""
        return self._add(ticks, message, ticks)

    def _add(self, ticks: int, message: Message, period: int) -> Timer:
        check_whole("ticks", ticks, 1, MAX_TICKS)
        if not is_own(message.type):
            raise ConfigError(
                "message",
                message.type,
                "a timer steps a message of a type of your own: see MessageType.define",
            )
        if len(self) >= MAX_TIMERS:
            raise SystemBusy(
                f"this node has {MAX_TIMERS} active timers already: cancel some, or use one for many"
            )
        timer = Timer(self, replace(message, sender=self._owner), period)
        self._made += 1
        heappush(self.waiting, (self._now + ticks, self._made, timer))
        return timer

    def advance(self) -> Iterator[Message]:
        """One tick has passed: yield the messages that are due, in the order in which their timers were set.

        One that is cancelled before its turn is not yielded. What is set meanwhile is due in a later tick.
        """
        self._now += 1
        return self._due()

    def _due(self) -> Iterator[Message]:
        while self.waiting and self.waiting[0][0] <= self._now:
            _, number, timer = heappop(self.waiting)
            if not timer.active:
                self._cancelled -= 1
            elif timer._period:
                heappush(self.waiting, (self._now + timer._period, number, timer))
                yield replace(timer._message)
            else:
                timer._cancelled = True
                yield timer._message

    def note_cancelled(self) -> None:
        """A timer was cancelled. Most are before they are due, so they must not pile up until then."""
        self._cancelled += 1
        if self._cancelled > 16 and self._cancelled > len(self):
            self.waiting = [entry for entry in self.waiting if entry[2].active]
            heapify(self.waiting)
            self._cancelled = 0
