"""`Extension`: state of one's own in each node, with handlers that are its methods."""

from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.messages import MessageType

__all__ = ["LATER", "Extension", "delivers", "handles"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


class _Later:
    """The type of `LATER`."""

    def __repr__(self) -> str:
        return "LATER"


LATER: Final = _Later()
"""What a handler returns that will answer an ask later, by `node.reply(message, answer)`."""


class Extension:
    """State of your own in each node. Subclass it, and register the class with the table: `table.use(Audit)`.

        class Audit(Extension):
            def __init__(self, node):
                self.node, self.seen = node, 0

            @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
            def count(self, message, inner):
                self.seen += len(message.entries)
                inner(message)

            @handles(AUDIT_ASK)
            def answer(self, message):
                return {"seen": self.seen}

    Each node makes an instance of its own when it starts, by `Audit(node)`: a `Raft`, or a node without Raft. `__init__` may set
    timers (`node.after`, `node.every`); it must not send. `node.extension(Audit)` finds the instance.

    What a method returns answers an ask. None means: not answered yet; call `node.reply(message, answer)` later, before the
    ask's deadline.

    Optional methods, for records (see `delivers`):

    - `save(self) -> bytes`, `load(self, data: bytes) -> None`: the state as a part of snapshots. Both, or none. `save` is called
      exactly when all up to the snapshot's index is delivered; `load` replaces the state.
    - `check(self) -> None`: raises `AssertionError` if an invariant is broken; tests call it after each step.

    Instances are used in one thread, that of their node's loop.
    """

    name: ClassVar[str] = ""
    """The name under which `save` is kept in snapshots: the same for all versions. By default the name of the class."""

    def __init__(self, node: Any) -> None:
        """Make the state of one node."""


def handles(
    type_: MessageType,
    *states: Any,
    wrap: bool = False,
    replace: bool = False,
    fatal: bool = False,
    elsewhere: str = "",
) -> Callable[[_Method], _Method]:
    """Mark a method of an `Extension` as the handler of a message type in these states; without states, as `HandlerTable.on`.

    The method is `method(self, message)`; with `wrap`, it runs around the handlers in these cells, as `HandlerTable.wrap`, and is
    `method(self, message, inner)`, where `inner(message)` runs the wrapped handler.

    `elsewhere`: in the states where the extension declares nothing for the type, messages are legal and change nothing, for this
    reason. `replace` and `fatal` as in `HandlerTable.on`.
    """
    raise NotImplementedError


def delivers(*kinds: EntryKind) -> Callable[[_Method], _Method]:
    """Mark a method of an `Extension` as the receiver of committed entries of these kinds, in log order.

    The method is `method(self, entry)`, and is called on each replica that keeps commands, so not on witnesses. Kinds are your
    own (`EntryKind.define`), or COMMAND, SESSION and ENCODED. After a restart, entries after the loaded snapshot are delivered
    again to the new instance. An exception ends the replica: half-done state diverges.
    """
    raise NotImplementedError
