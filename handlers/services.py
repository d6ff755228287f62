"""`NodeServices`: what a node offers to handlers and extensions, whatever its protocol is."""

from typing import Any, TypeVar

from drakkar.handlers.effects import Effects
from drakkar.handlers.extension import Extension
from drakkar.handlers.messages import Message
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.timers import Timer, Timers

__all__ = ["NodeServices"]

_Extension = TypeVar("_Extension", bound=Extension)


class NodeServices:
    """What a node offers to its handlers and extensions. Mixed into `Raft` and `TableNode`. Not thread-safe: for the loop."""

    __slots__ = ()

    handlers: HandlerTable
    effects: Effects
    message_timers: Timers
    _extensions: dict[type[Extension], Any]

    def extension(self, cls: type[_Extension]) -> _Extension:
        """Return this node's instance of an extension. Raises `HandlerTableError` if its table does not use it."""
        raise NotImplementedError

    def after(self, ticks: int, message: Message) -> Timer:
        """Step `message` to this node in `ticks` ticks, unless the returned timer is cancelled. See `Timers.after`."""
        raise NotImplementedError

    def every(self, ticks: int, message: Message) -> Timer:
        """Step a copy of `message` to this node every `ticks` ticks, until the timer is cancelled. See `Timers.every`."""
        raise NotImplementedError

    def tell(self, ref: Any, message: Any) -> None:
        """Have the host tell another actor a message, after this batch. One to an actor that ended is dropped and counted."""
        raise NotImplementedError

    def publish_event(self, event: Any) -> None:
        """Have the host publish an event, after this batch."""
        raise NotImplementedError

    def reply(self, message: Message, answer: Any, **fields: Any) -> None:
        """Answer a message. If it was asked in this process, `answer` is the value that the ask returns.

        If it came from another node, `answer` is a `MessageType`, and the message that is sent has these fields.
        """
        raise NotImplementedError
