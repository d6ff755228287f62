"""`NodeServices`: what a node offers to handlers and extensions, whatever its protocol is."""

import reprlib
from typing import Any, TypeVar

from drakkar.handlers.effects import Effects
from drakkar.handlers.errors import HandlerTableError
from drakkar.handlers.extension import Extension
from drakkar.handlers.messages import Message
from drakkar.handlers.signature import where
from drakkar.handlers.table import HandlerTable, Tally
from drakkar.handlers.timers import Timer, Timers

__all__ = ["NodeServices"]

_Extension = TypeVar("_Extension", bound=Extension)


class NodeServices:
    """What a node offers to its handlers and extensions, beside `send` and `reply`. Mixed into `Raft` and `TableNode`.

    Not thread-safe: for the thread of the node's loop.

    What is private here is named `_node_…`, in `TableNode` too: applications name what their actors have as they like.
    """

    __slots__ = ()

    handlers: HandlerTable
    tally: Tally
    effects: Effects
    message_timers: Timers
    _node_extensions: dict[type[Extension], Any]

    def extension(self, class_: type[_Extension]) -> _Extension:
        """Return this node's instance of an extension, or of the one that extends it.

        Raises `HandlerTableError` if its table used none at the start, or several that extend it.
        """
        try:
            found: _Extension = self._node_extensions[class_]
        except KeyError:
            found = self._node_extending(class_)
        return found

    def _node_extending(self, class_: Any) -> Any:
        what = where(class_) if callable(class_) else reprlib.repr(class_)
        found = [
            used for used in self._node_extensions if isinstance(class_, type) and issubclass(used, class_)
        ]
        if not found:
            raise HandlerTableError(
                f"{what} is no extension of this node: call table.use(...) before the node starts"
            )
        if len(found) > 1:
            names = ", ".join(map(where, found))
            raise HandlerTableError(f"{what} is extended by several that this node has: name one of {names}")
        return self._node_extensions[found[0]]

    def after(self, ticks: int, message: Message) -> Timer:
        """Step `message` to this node in `ticks` ticks, unless the returned timer is cancelled. See `Timers.after`."""
        return self.message_timers.after(ticks, message)

    def every(self, ticks: int, message: Message) -> Timer:
        """Step a copy of `message` to this node every `ticks` ticks, until the timer is cancelled. See `Timers.every`."""
        return self.message_timers.every(ticks, message)

    def tell(self, ref: Any, message: Any) -> None:
        """Have the host tell another actor a message, after this batch. One to an actor that ended is dropped and counted."""
        self.effects.tell(ref, message)

    def publish_event(self, event: Any) -> None:
        """Have the host publish an event, after this batch."""
        self.effects.publish(event)

    def step(self, message: Message) -> Any:
        """Answer one message. Returns what `HandlerTable.dispatch` does."""
        raise NotImplementedError

    def _node_make_extensions(self) -> None:
        """Make an instance of each extension of the table, in order. Raises `HandlerTableError` where one cannot be made."""
        for class_ in self.handlers.extensions:
            try:
                self._node_extensions[class_] = class_(self)
            except Exception as error:
                raise HandlerTableError(
                    f"{where(class_)} cannot be made: its __init__ raised {error!r}"
                ) from error

    def _node_step_due(self) -> None:
        """Step the messages of the timers that are due now. A mistake in a handler of one's own type ends nobody."""
        for message in self.message_timers.advance():
            try:
                self.step(message)
            except Exception as error:
                if self.tally.broken is not None:
                    raise
                self.effects.fail(message, error)
