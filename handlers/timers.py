"""Timers of a node: messages that it steps to itself some ticks later."""

from drakkar.handlers.messages import Message

__all__ = ["MAX_TICKS", "MAX_TIMERS", "Timer", "Timers"]

MAX_TICKS = 1 << 31
"""The longest time of a timer, in ticks."""
MAX_TIMERS = 10_000
"""Active timers of one node."""


class Timer:
    """One timer, as `node.after` and `node.every` return it."""

    @property
    def active(self) -> bool:
        """Whether it will still be due."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Let it not be due any more. Cancelling again changes nothing."""
        raise NotImplementedError


class Timers:
    """The timers of one node, by the tick at which they are due."""

    def after(self, ticks: int, message: Message) -> Timer:
        """Have `message` be due once, `ticks` ticks from now.

        Raises `ConfigError` for a time outside 1..2**31 or a message of a built-in type, `SystemBusy` beyond 10,000 timers.
        """
        raise NotImplementedError

    def every(self, ticks: int, message: Message) -> Timer:
        """Have a copy of `message` be due every `ticks` ticks, first `ticks` from now, until it is cancelled. Raises as `after`."""
        raise NotImplementedError

    def __len__(self) -> int:
        """How many are active."""
        raise NotImplementedError

    def advance(self) -> list[Message]:
        """One tick has passed: return the messages that are due, by their tick, then in the order of their registration."""
        raise NotImplementedError
