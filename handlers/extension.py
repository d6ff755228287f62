"""`Extension`: state of one's own in each node, with handlers that are its methods."""

import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, TypeVar

from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.errors import ExtensionFailed, HandlerTableError
from drakkar.handlers.messages import MessageType
from drakkar.handlers.signature import fault_in, where

__all__ = [
    "COMMANDS",
    "LATER",
    "MAX_NAME",
    "Delivers",
    "Extension",
    "Handles",
    "call",
    "check_class",
    "delivers",
    "delivery_of",
    "failed",
    "handler_of",
    "handles",
    "marks_of",
    "name_of_extension",
    "wrapper_of",
]

_Method = TypeVar("_Method", bound=Callable[..., Any])

COMMANDS: Final = (EntryKind.COMMAND, EntryKind.SESSION, EntryKind.ENCODED)
"""The kinds of Raft's own that may be delivered."""

MAX_NAME: Final = 64
"""Maximum characters of an extension's name."""


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
    timers (`node.after`, `node.every`); it must not send. A class without one finds its node as `self.node`.
    `node.extension(Audit)` finds the instance.

    What a method returns answers an ask. None means: not answered yet; call `node.reply(message, answer)` later, before the
    ask's deadline.

    Optional methods, for records (see `delivers`):

    - `save(self) -> bytes`, `load(self, data: bytes) -> None`: the state as a part of snapshots. Both, or none. `save` is called
      exactly when all up to the snapshot's index is delivered, and something was; `load` replaces the state.
    - `check(self) -> None`: raises `AssertionError` if an invariant is broken; tests call it after each step.

    Instances are used in one thread, that of their node's loop.
    """

    name: ClassVar[str] = ""
    """The name under which `save` is kept in snapshots, the same for all versions; at most 64 printable characters. By default the
    name of the class."""

    def __init__(self, node: Any) -> None:
        """Make the state of one node, which is `self.node` from here on."""
        self.node = node


@dataclass(frozen=True, slots=True)
class Handles:
    """What `@handles` notes on a method."""

    type: Any
    states: tuple[Any, ...]
    wrap: bool
    replace: bool
    fatal: bool
    elsewhere: str


@dataclass(frozen=True, slots=True)
class Delivers:
    """What `@delivers` notes on a method."""

    kinds: tuple[Any, ...]


_MARKS: Final = "__drakkar_marks__"


def handles(
    type_: MessageType | IntEnum,
    *states: Any,
    wrap: bool = False,
    replace: bool = False,
    fatal: bool = False,
    elsewhere: str = "",
) -> Callable[[_Method], _Method]:
    """Mark a method of an `Extension` as the handler of a message type in these states; without states, as `HandlerTable.on`.

    The method is `method(self, message)`; with `wrap`, it runs around the handlers in these cells, as `HandlerTable.wrap`, and is
    `method(self, message, inner)`, where `inner(message)` runs the wrapped handler.

    `elsewhere`: in the states where nothing is declared for the type, messages are legal and change nothing, for this reason.
    `replace` and `fatal` as in `HandlerTable.on`; none of the three goes with `wrap`. A method may have several marks.
    """
    if not isinstance(type_, MessageType | IntEnum):
        what = where(type_) if callable(type_) else reprlib.repr(type_)
        raise HandlerTableError(
            f"@handles({what}): this is not a message type: write @handles(TYPE, State.LEADER), with one of MessageType, "
            "or yours from MessageType.define(name, number)"
        )
    return _marked(Handles(type_, states, wrap, replace, fatal, elsewhere))


def delivers(*kinds: EntryKind) -> Callable[[_Method], _Method]:
    """Mark a method of an `Extension` as the receiver of committed entries of these kinds, in log order.

    The method is `method(self, entry)`, and is called on each replica that keeps commands, so not on witnesses. Kinds are your
    own (`EntryKind.define`), each of which one method takes, or COMMAND, SESSION and ENCODED. After a restart, entries behind
    the loaded snapshot are delivered again, to the new instance. An exception ends the replica: half-done state diverges.
    """
    if not kinds or not all(isinstance(kind, EntryKind) for kind in kinds):
        found = ", ".join(where(kind) if callable(kind) else reprlib.repr(kind) for kind in kinds)
        raise HandlerTableError(
            f"@delivers({found}): these are not kinds of entries: write @delivers(KIND), with yours from "
            "EntryKind.define(name, number)"
        )
    return _marked(Delivers(kinds))


def _marked(mark: Handles | Delivers) -> Callable[[_Method], _Method]:
    def note(method: _Method) -> _Method:
        setattr(method, _MARKS, (*getattr(method, _MARKS, ()), mark))
        return method

    return note


# -- what a table reads of a class -----------------------------------------------------------------------------------


def name_of_extension(class_: type[Extension]) -> str:
    """Return the name under which the state of this extension is saved."""
    return class_.name or class_.__name__


def check_class(class_: Any) -> None:
    """Raise `HandlerTableError` for a class of which nodes can make no instances, or whose methods do not go together."""
    if not isinstance(class_, type) or not issubclass(class_, Extension):
        raise HandlerTableError(f"use({reprlib.repr(class_)}): pass a class that extends Extension")
    name = name_of_extension(class_)
    if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
        raise HandlerTableError(
            f"{where(class_)} has name {reprlib.repr(name)}: choose at most {MAX_NAME} printable characters"
        )
    faults = [fault_in(class_, f"{class_.__name__}(node)")]
    for method, form in _OPTIONAL.items():
        if hasattr(class_, method):
            faults.append(fault_in(getattr(class_, method), form))
    for one, other in (("save", "load"), ("load", "save")):
        if hasattr(class_, one) and not hasattr(class_, other):
            faults.append(f"{where(class_)} has {one} and no {other}: give it both, or none")
    marks = [mark for _, mark in marks_of(class_)]
    if hasattr(class_, "save") and not any(isinstance(mark, Delivers) for mark in marks):
        faults.append(
            f"{where(class_)} has save, and takes no entries: what is saved is what entries have made of its state, so mark a "
            "method with @delivers, or leave save and load out"
        )
    if not marks:
        faults.append(f"{where(class_)} registers nothing: mark a method with @handles or @delivers")
    for fault in filter(None, faults):
        raise HandlerTableError(fault)


_OPTIONAL: Final = {"save": "save(self)", "load": "load(self, data)", "check": "check(self)"}


def marks_of(class_: type[Extension]) -> Iterator[tuple[str, Handles | Delivers]]:
    """Yield the names of marked methods and their marks, base classes first, in the order of their definition.

    A method that is overridden keeps its marks, unless the new one has marks of its own.
    """
    names = dict.fromkeys(name for base in reversed(class_.__mro__) for name in vars(base))
    for name in names:
        for base in class_.__mro__:
            member = vars(base).get(name)
            # A static or a class method is none that fits, and is refused for that, not passed over.
            marks = getattr(getattr(member, "__func__", member), _MARKS, None)
            if isinstance(marks, tuple):
                yield from ((name, mark) for mark in marks)
                break


def handler_of(class_: type[Extension], method: str) -> Callable[[Any, Any], Any]:
    """Return a handler that calls the method of the node's instance."""
    _check_method(class_, method, f"{method}(self, message)")

    def cell(node: Any, message: Any) -> Any:
        answer = getattr(node.extension(class_), method)(message)
        return LATER if answer is None else answer

    return _named(cell, class_, method)


def wrapper_of(class_: type[Extension], method: str) -> Callable[[Any, Any, Any], Any]:
    """Return a wrapper that calls the method of the node's instance."""
    _check_method(class_, method, f"{method}(self, message, inner)")

    def cell(node: Any, message: Any, inner: Callable[[Any, Any], Any]) -> Any:
        answer = getattr(node.extension(class_), method)(message, lambda message: inner(node, message))
        return LATER if answer is None else answer

    return _named(cell, class_, method)


def delivery_of(class_: type[Extension], method: str) -> Callable[[Any, Any], None]:
    """Return a function of a node and an entry that calls the method of the node's instance. Raises as `call`."""
    _check_method(class_, method, f"{method}(self, entry)")

    def deliver(node: Any, entry: Any) -> None:
        node.undelivered.reached.add(class_)
        call(node, class_, method, entry.index, entry)

    return _named(deliver, class_, method)


def call(node: Any, class_: type[Extension], method: str, index: int, *args: Any) -> Any:
    """Call a method of the node's instance whose failure must end the node. Raises `ExtensionFailed`, and notes it in the tally."""
    try:
        return getattr(node.extension(class_), method)(*args)
    except Exception as error:
        raise failed(node, class_, method, index, repr(error)) from error


def failed(node: Any, class_: type[Extension], method: str, index: int, why: str) -> ExtensionFailed:
    """Return the error that ends the node, and note it in its tally."""
    error = ExtensionFailed(class_.__name__, method, index, why)
    node.tally.note_broken(error, node.state, f"{class_.__name__}.{method}")
    return error


def _check_method(class_: type[Extension], method: str, form: str) -> None:
    fault = fault_in(getattr(class_, method), form)
    if fault:
        raise HandlerTableError(fault)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _named(function: _Function, class_: type[Extension], method: str) -> _Function:
    function.__name__ = function.__qualname__ = f"{class_.__name__}.{method}"
    function.__module__ = class_.__module__
    return function
