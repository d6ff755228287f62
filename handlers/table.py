"""`HandlerTable`: what a node does with a message, by the state it is in. For any protocol; Raft's is in `matrix`.

Every cell of the table is declared: a handler, `Ignore` (legal, counted, changes nothing) or `Never` (no correct
peer can cause it), the last two with their reason. An undeclared cell is a forgotten one, and `check` refuses it.

`HandlerTable.dispatch` is the only place where a message meets its cell; a `Tally` counts what became of it.
"""

import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, Protocol, Self, TypeAlias

from drakkar.handlers.errors import HandlerTableError
from drakkar.handlers.messages import MessageType
from drakkar.handlers.signature import fault_in, where

__all__ = ["SWALLOW", "Cell", "Guard", "Handler", "HandlerTable", "Ignore", "Never", "Tally", "Undeclared"]

Handler: TypeAlias = Callable[[Any, Any], Any]
"""`handler(node, message)`: changes the node's state and queues what is to be done; it does no I/O itself."""

Wrapper: TypeAlias = Callable[[Any, Any, Handler], Any]
"""`wrapper(node, message, inner)`: calls `inner(node, message)` if the old handler is to run. Returns the answer."""

Guard: TypeAlias = Callable[[Any, Any], bool | None]
"""`guard(node, message)`: runs before dispatch, in every state. Returning `SWALLOW` ends the message there."""

SWALLOW: Final = True


@dataclass(frozen=True, slots=True)
class Ignore:
    """Legal here, counted, and changes nothing."""

    because: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Never:
    """No correct peer can cause this: if it happens, there is a bug. Counted, and changes nothing."""

    because: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Undeclared:
    """What happens here was not declared, so `check` refuses the table."""

    because: str = "undeclared"

    def __bool__(self) -> bool:
        return False


Cell: TypeAlias = Handler | Ignore | Never | Undeclared


class Tally:
    """What became of the messages that were dispatched: four counters, each by state and message type."""

    __slots__ = ("handled", "ignored", "impossible", "on_impossible", "swallowed")

    def __init__(self, on_impossible: Callable[[Any, Any, Never], None] | None = None) -> None:
        """`on_impossible(state, type, cell)` is called for the first message that meets each `Never`."""
        self.handled: Counter[tuple[Any, Any]] = Counter()
        """How often each handler was entered."""
        self.ignored: Counter[tuple[Any, Any]] = Counter()
        """Messages that met an `Ignore`, or are of a type that the table does not know."""
        self.impossible: Counter[tuple[Any, Any]] = Counter()
        """Messages that met a `Never`: there is a bug, here or at a peer."""
        self.swallowed: Counter[tuple[Any, Any]] = Counter()
        """Messages that a guard ended."""
        self.on_impossible = on_impossible

    def count_impossible(self, state: Any, type_: Any, cell: Never) -> None:
        """Count a message that met a `Never`. Only the first is reported: a faulty peer may send it for ever."""
        self.impossible[state, type_] += 1
        if self.on_impossible is not None and self.impossible[state, type_] == 1:
            self.on_impossible(state, type_, cell)


class Node(Protocol):
    """What messages are dispatched to: it is in one of the table's states, and keeps a tally."""

    state: Any
    tally: Tally


_HANDLER: Final = "handler(node, message)"
_WRAPPER: Final = "wrapper(node, message, inner)"
_GUARD: Final = "guard(node, message)"

_UNKNOWN: Final = Ignore("a message type that this table does not know")
_UNDECLARED: Final = Undeclared()


class _Row(dict[Any, Cell]):
    """One state's cells. A type that has no row at all is ignored and counted, never a `KeyError`."""

    def __missing__(self, _type: MessageType) -> Cell:
        return _UNKNOWN


class _Rows(dict[Any, _Row]):
    """The rows by state. A state that the table does not have is an error that names those it has."""

    def __missing__(self, state: Any) -> _Row:
        raise self.no_such(state)

    def no_such(self, state: Any) -> HandlerTableError:
        return HandlerTableError(
            f"{reprlib.repr(state)} is no state of this table; its states are {_names(self)}"
        )


class Picture(str):
    """Text that the interactive prompt shows as it is, without quotes and escapes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class HandlerTable:
    """`table[state][type]` is a cell: a handler, or a falsy `Ignore`, `Never` or `Undeclared`.

    Build one from a literal (see `matrix`), or cell by cell:

        class Light(IntEnum):
            RED = 0
            GREEN = 1

        PRESS = MessageType.define("light.press", 1200)
        table = HandlerTable(Light)

        @table.on(PRESS, Light.RED)
        def turn_green(node, message):
            node.state = Light.GREEN

        table.ignore(PRESS, Light.GREEN, because="it is green already")
        table.check()

    Types are of `MessageType`, or members of an `IntEnum` of yours if messages stay in this process. A cell is declared
    once: `on`, `ignore` and `impossible` take `replace=True` to declare it anew, also where a built-in table did.

    Every method raises `HandlerTableError` for a mistake, and then changes nothing.

    Not thread-safe: fill it before its node starts, or from that node's own loop.
    """

    def __init__(
        self, states: Iterable[Any], rows: Iterable[tuple[Any, ...]] = (), guards: Iterable[Guard] = ()
    ) -> None:
        """Declare the states, and optionally rows of `(type, cell, cell, …)` with one cell for each state."""
        self.states: tuple[Any, ...] = _checked_states(states)
        self.guards: list[Guard] = []
        """Run in this order before dispatch. Those of a built-in table come first, so yours may rely on them."""
        self._rows = _Rows((state, _Row()) for state in self.states)
        self._types: dict[Any, Any] = {}
        self._sealed: dict[tuple[Any, MessageType], str] = {}
        self._checked_guards: list[Guard] = []
        for type_, *cells in rows:
            self._check_type(type_)
            if len(cells) != len(self.states):
                raise HandlerTableError(
                    f"the row of {type_} has {len(cells)} cells for {len(self.states)} states"
                )
            for state, cell in zip(self.states, cells, strict=True):
                if not isinstance(cell, Ignore | Never | Undeclared):
                    _refuse(fault_in(cell, _HANDLER))
                self._declare(type_, [state], cell, f"the row of {type_}")
        for guard in guards:
            self.guard(guard)

    def __getitem__(self, state: Any) -> Mapping[MessageType, Cell]:
        return MappingProxyType(self._rows[state])

    def dispatch(self, node: Node, message: Any) -> Any:
        """Run the guards, then the cell of `node.state` and `message.type`, and count what became of the message.

        Returns what the handler returns; None if a guard ended the message or the cell is empty.
        """
        for guard in self.guards:
            if guard(node, message) is SWALLOW:
                node.tally.swallowed[node.state, message.type] += 1
                return None
        state, type_ = node.state, message.type  # after the guards, which may change the state
        cell: Any = self._rows[state][type_]
        if callable(cell):
            node.tally.handled[state, type_] += 1
            return cell(node, message)
        if isinstance(cell, Never):
            node.tally.count_impossible(state, type_, cell)
        else:
            node.tally.ignored[state, type_] += 1
        return None

    @property
    def types(self) -> tuple[MessageType, ...]:
        """The message types that have a row, by number."""
        return tuple(sorted(self._types))

    def cells(self) -> Iterator[tuple[Any, MessageType, Cell]]:
        """Every cell: its state, its message type, and what stands in it."""
        for type_ in self.types:
            for state in self.states:
                yield state, type_, self._rows[state].get(type_, _UNDECLARED)

    def copy(self) -> Self:
        """Return an independent copy, to extend without changing this table.

        mine = raft_handlers().copy()
        mine.wrap(MessageType.REPLICATE)(count_replications)
        """
        twin = type(self)(self.states)
        twin.guards, twin._checked_guards = list(self.guards), list(self._checked_guards)
        twin._types = dict(self._types)
        twin._rows = _Rows((state, _Row(row)) for state, row in self._rows.items())
        twin._sealed = dict(self._sealed)
        return twin

    def on(
        self, type_: MessageType | IntEnum, *states: Any, replace: bool = False
    ) -> Callable[[Handler], Handler]:
        """Fill cells with the decorated handler; without states, all the row's cells that may be filled.

            @table.on(AUDIT_PING, State.LEADER)
            def answer(raft, message):
                raft.send(Message(AUDIT_PONG, to=message.sender))

        The cells of the other states still have to be declared, by a handler of their own, `ignore` or `impossible`:
        `check` refuses a row that is filled in part, and a handler in a cell that was declared impossible.
        """
        chosen = self._choose(type_, states)
        if not states:
            chosen = [state for state in chosen if (state, type_) not in self._sealed]
            if not chosen:
                raise HandlerTableError(
                    f"on({type_}): all cells of the row must stay empty, so there is none to fill"
                )

        def fill(handler: Handler) -> Handler:
            _refuse(fault_in(handler, _HANDLER))
            self._declare(type_, chosen, handler, where(handler), replace=replace)
            return handler

        return fill

    def wrap(self, type_: MessageType | IntEnum, *states: Any) -> Callable[[Wrapper], Wrapper]:
        """Put the decorated function around the handlers in these cells; without states, around all in the row.

            @table.wrap(MessageType.REPLICATE, State.FOLLOWER)
            def count(raft, message, inner):
                seen[message.sender] += 1
                inner(raft, message)

        Refused where there is no handler to wrap.
        """
        chosen = self._choose(type_, states)

        def fill(wrapper: Wrapper) -> Wrapper:
            _refuse(fault_in(wrapper, _WRAPPER))
            filled = [state for state in chosen if callable(self._rows[state][type_])]
            if not filled or (states and len(filled) != len(states)):
                empty = _names(state for state in chosen if state not in filled)
                raise HandlerTableError(
                    f"wrap({type_}): no handler stands in {empty}; fill the cell with `on` instead"
                )
            for state in filled:
                self._rows[state][type_] = _around(wrapper, self._rows[state][type_])
            return wrapper

        return fill

    def guard(self, guard: Guard) -> Guard:
        """Add a check that runs before dispatch in every state; it may return `SWALLOW` to end the message.

        @table.guard
        def only_from_peers(raft, message):
            return SWALLOW if message.sender == 9 else None
        """
        _refuse(fault_in(guard, _GUARD))
        if guard in self.guards:
            raise HandlerTableError(f"{where(guard)} is a guard of this table already: register it once")
        self.guards.append(guard)
        self._checked_guards.append(guard)
        return guard

    def ignore(
        self,
        type_: MessageType | IntEnum,
        *states: Any,
        because: str = "of no use in this state",
        replace: bool = False,
    ) -> None:
        """Declare cells whose messages are legal, counted, and change nothing; without states, the whole row.

        table.ignore(AUDIT_PING, State.OBSERVER, because="observers are not audited")
        """
        self._declare(
            type_, self._choose(type_, states), Ignore(because), f"ignore({type_})", replace=replace
        )

    def impossible(
        self,
        type_: MessageType | IntEnum,
        *states: Any,
        because: str = "no correct peer sends it here",
        replace: bool = False,
    ) -> None:
        """Declare cells that no correct peer can reach, and that must stay empty; without states, the whole row.

        table.impossible(AUDIT_PONG, State.WITNESS, because="a witness sends no pings")
        """
        self._declare(
            type_, self._choose(type_, states), Never(because), f"impossible({type_})", replace=replace
        )

    def check(self, states: Iterable[Any] | None = None) -> None:
        """Refuse a table that has a hole, a handler where none may stand, or a guard that cannot be called.

        `states`: those of the node that is to use the table; it must have exactly these. Raises `HandlerTableError`,
        which names all faults and what to do about each.
        """
        faults = []
        wanted = self.states if states is None else tuple(states)
        if len(wanted) != len(self.states) or not all(map(self.has_state, wanted)):
            faults.append(
                f"its states are {_names(self.states)}, but its node's are {_names(wanted)}: make a table of those"
            )
        faults += [
            f"{type_} in {state.name} is undeclared: use on, ignore or impossible"
            for state, type_, cell in self.cells()
            if isinstance(cell, Undeclared)
        ]
        faults += [
            f"{type_} in {state.name} has a handler, but must stay empty: {because}"
            for (state, type_), because in self._sealed.items()
            if callable(self._rows[state][type_])
        ]
        added = [guard for guard in self.guards if guard not in self._checked_guards]  # to the list itself
        faults += [fault for guard in added if (fault := fault_in(guard, _GUARD))]
        if faults:
            raise HandlerTableError("the handler table is refused: " + "; ".join(faults))

    def describe(self) -> str:
        """The whole matrix as text: a line for each message type, a column for each state, then the reasons."""
        reasons: dict[Cell, str] = {}
        rows = [["", *(state.name for state in self.states)]]
        for type_ in self.types:
            cells = (self._rows[state].get(type_, _UNDECLARED) for state in self.states)
            rows.append([str(type_), *(_label(cell, reasons) for cell in cells)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows
        ]
        notes = [f"{mark:>4} {cell.because}" for cell, mark in reasons.items() if not callable(cell)]
        guards = ["", "before dispatch: " + ", ".join(map(_name, self.guards))] if self.guards else []
        return Picture("\n".join(line.rstrip() for line in [*lines, "", *notes, *guards]))

    def has_state(self, state: Any) -> bool:
        """Whether this is one of the table's states. A member of another enum is not, even if it is equal."""
        return any(type(known) is type(state) and known == state for known in self.states)

    def _choose(self, type_: Any, states: tuple[Any, ...]) -> list[Any]:
        """Check a type and states. Returns the states, or all of the table if none is given."""
        self._check_type(type_)
        for state in states:
            if not self.has_state(state):
                raise self._rows.no_such(state)
        return list(states or self.states)

    def _check_type(self, type_: Any) -> None:
        if not isinstance(type_, MessageType | IntEnum) or self.has_state(type_):
            raise HandlerTableError(
                f"{where(type_) if callable(type_) else reprlib.repr(type_)} is no message type: take one of "
                "MessageType, such as MessageType.REPLICATE, or define yours with MessageType.define(name, number)"
            )
        known = self._types.get(type_, type_)
        if known is not type_:
            raise HandlerTableError(
                f"{type_!r} has the number of {known!r}, which this table has already: use another number"
            )

    def _declare(
        self, type_: Any, states: Iterable[Any], cell: Cell, what: str, *, replace: bool = False
    ) -> None:
        """Put `cell` into the cells. Refuses to replace cells that were declared, unless `replace` is given."""
        if not replace:
            self._refuse_declared(type_, states, cell, what)
        self._types[type_] = type_
        for state in states:
            self._rows[state][type_] = cell
            if isinstance(cell, Never):
                self._sealed[state, type_] = cell.because

    def _refuse_declared(self, type_: Any, states: Iterable[Any], cell: Cell, what: str) -> None:
        standing = {state: self._rows[state].get(type_, _UNDECLARED) for state in states}
        declared = [
            f"{state.name} ({_name(old) if callable(old) else old})"
            for state, old in standing.items()
            # A handler over a `Never` is for `check` to refuse, with the reason.
            if not isinstance(old, Undeclared) and not (callable(cell) and (state, type_) in self._sealed)
        ]
        if declared:
            raise HandlerTableError(
                f"{what}: {type_} is declared already in {', '.join(declared)}. "
                "Use replace=True to replace that, or `wrap` to run code around a handler"
            )


def _checked_states(states: Any) -> tuple[Any, ...]:
    found = tuple(states) if isinstance(states, Iterable) else ()
    if not found or not all(hasattr(state, "name") for state in found) or len(set(found)) < len(found):
        raise HandlerTableError(
            f"{reprlib.repr(states)} are no states of a table: give an enum, or some of its members, each once"
        )
    return found


def _names(states: Iterable[Any]) -> str:
    return ", ".join(state.name for state in states)


def _refuse(fault: str | None) -> None:
    if fault:
        raise HandlerTableError(fault)


def _around(wrapper: Wrapper, inner: Any) -> Handler:
    def wrapped(node: Any, message: Any) -> Any:
        return wrapper(node, message, inner)

    wrapped.__name__ = f"{_name(wrapper)}({_name(inner)})"
    wrapped.__module__ = ""
    return wrapped


def _name(function: Any) -> str:
    """`election.grant_vote` for a handler of that module: it reads as a phrase."""
    name: str = getattr(function, "__name__", type(function).__name__)
    module = str(getattr(function, "__module__", "")).rpartition(".")[2]
    return f"{module}.{name}" if module else name


def _label(cell: Cell, reasons: dict[Cell, str]) -> str:
    """A handler's name, or a mark with a number under which its reason is listed."""
    if isinstance(cell, Undeclared):
        return "?"
    if isinstance(cell, Ignore | Never):
        mark = "-" if isinstance(cell, Ignore) else "x"
        return reasons.setdefault(cell, f"{mark}{len(reasons) + 1}")
    return _name(cell)
