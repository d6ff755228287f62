"""`HandlerTable`: what a node does with a message, by its state. For any protocol; Raft's table is in `raft.matrix`.

Every cell of the table is declared: a handler, `Ignore` (legal, counted, changes nothing) or `Never` (no correct
peer can cause it). `Ignore` and `Never` give a reason. `check` refuses a table with an undeclared cell.

Only `HandlerTable.dispatch` looks up the cell of a message; a `Tally` counts the outcomes.
"""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from drakkar.handlers.cells import (
    EMPTY,
    SWALLOW,
    SWALLOWED,
    Cell,
    Guard,
    Handler,
    Ignore,
    Never,
    Undeclared,
    Wrapper,
)
from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.errors import HandlerTableError
from drakkar.handlers.extension import (
    COMMANDS,
    Delivers,
    Extension,
    Handles,
    check_class,
    delivery_of,
    handler_of,
    marks_of,
    name_of_extension,
    wrapper_of,
)
from drakkar.handlers.messages import PEER_NEWS, MessageType, is_own
from drakkar.handlers.signature import fault_in, where
from drakkar.handlers.table_text import describe, name_of
from drakkar.handlers.tally import Tally

__all__ = [
    "EMPTY",
    "SWALLOW",
    "Cell",
    "Guard",
    "Handler",
    "HandlerTable",
    "Ignore",
    "Never",
    "Tally",
    "Undeclared",
]


class Node(Protocol):
    """The target of `dispatch`: it is in one of the table's states, and has a tally."""

    state: Any
    tally: Tally


_HANDLER: Final = "handler(node, message)"
_WRAPPER: Final = "wrapper(node, message, inner)"
_GUARD: Final = "guard(node, message)"

_UNKNOWN: Final = Ignore("a message type that this table does not know")
_UNDECLARED: Final = Undeclared()


class _Row(dict[Any, Cell]):
    """The cells of one state. A type without a row is ignored and counted, never a `KeyError`."""

    def __missing__(self, _type: MessageType) -> Cell:
        return _UNKNOWN


class _Rows(dict[Any, _Row]):
    """The cells by state. Looking up an unknown state raises an error that names the states of the table."""

    def __missing__(self, state: Any) -> _Row:
        raise self.no_such(state)

    def no_such(self, state: Any) -> HandlerTableError:
        return HandlerTableError(
            f"{reprlib.repr(state)} is not a state of this table: use one of {_names(self)}"
        )


class HandlerTable:
    """`table[state][type]` is a cell: a handler, or a falsy `Ignore`, `Never` or `Undeclared`.

    Build one from a literal (see `raft.matrix`), or cell by cell:

        class Light(IntEnum):
            RED = 0
            GREEN = 1

        PRESS = MessageType.define("light.press", 2200)
        table = HandlerTable(Light)

        @table.on(PRESS, Light.RED)
        def turn_green(node, message):
            node.state = Light.GREEN

        table.ignore(PRESS, Light.GREEN, because="it is green already")
        table.check()

    Handlers that have state of their own are methods of an `Extension`: register its class with `use`.

    Message types come from `MessageType`, or from an `IntEnum` of yours if messages stay in this process. A cell is
    declared once: pass `replace=True` to `on`, `ignore` or `impossible` to replace it, also in a built-in table.

    Every method that finds a mistake raises `HandlerTableError` and changes nothing.

    Not thread-safe: change a table before its node starts, or in the thread of the node's loop.
    """

    def __init__(
        self, states: Iterable[Any], rows: Iterable[tuple[Any, ...]] = (), guards: Iterable[Guard] = ()
    ) -> None:
        """Declare the states, and optionally rows of `(type, cell, cell, …)` with one cell for each state."""
        self.states: tuple[Any, ...] = _checked_states(states)
        self.guards: list[Guard] = []
        """They run in this order before dispatch. Those of a built-in table come first, so yours can rely on them."""
        self._rows = _Rows((state, _Row()) for state in self.states)
        self._types: dict[Any, Any] = {}
        self._sealed: dict[tuple[Any, MessageType], str] = {}
        self._fatal: set[tuple[Any, Any]] = set()
        self._checked_guards: list[Guard] = []
        self.extensions: tuple[type[Extension], ...] = ()
        """The classes that were registered with `use`, in order."""
        self.kinds: frozenset[EntryKind] = frozenset()
        """The kinds of records that an extension takes: those of one's own, without those of Raft."""
        self.deliveries: dict[int, tuple[Handler, ...]] = {}
        """The methods of extensions that take committed entries, by their kinds: functions of the node and the entry."""
        for type_, *cells in rows:
            self._check_type(type_)
            if len(cells) != len(self.states):
                raise HandlerTableError(
                    f"the row of {type_} has {len(cells)} cells for {len(self.states)} states"
                )
            for state, cell in zip(self.states, cells, strict=True):
                if not isinstance(cell, EMPTY):
                    _refuse(fault_in(cell, _HANDLER))
                self._declare(type_, [state], cell, f"the row of {type_}")
        for guard in guards:
            self.guard(guard)

    def __getitem__(self, state: Any) -> Mapping[MessageType, Cell]:
        return MappingProxyType(self._rows[state])

    def dispatch(self, node: Node, message: Any) -> Any:
        """Run the guards, then the handler for `node.state` and `message.type`, and count the outcome in `node.tally`.

        Returns the handler's result. Where there is no handler, or a guard swallowed the message, that is one of `EMPTY`: it
        says why, by `because`. Exceptions of guards and handlers pass through, and the tally notes which of them must end the
        node. Raises `HandlerTableError` if the node is in a state that the table lacks: that ends it.
        """
        try:
            for guard in self.guards:
                if guard(node, message) is SWALLOW:
                    node.tally.dropped += 1
                    node.tally.swallowed[node.state, message.type] += 1
                    return SWALLOWED
        except BaseException as error:
            node.tally.note_broken(error, node.state, message.type)
            raise
        state, type_ = node.state, message.type  # after the guards, which may change the state
        try:
            cell: Any = self._rows[state][type_]
        except HandlerTableError as error:
            node.tally.broken = node.tally.broken or error  # no message gets it out of there
            raise
        if callable(cell):
            node.tally.handled[state, type_] += 1
            try:
                return cell(node, message)
            except BaseException as error:
                if self.is_fatal(state, type_) or not isinstance(error, Exception):
                    node.tally.note_broken(error, state, type_)
                else:
                    node.tally.failed[state, type_] += 1
                raise
        if isinstance(cell, Never):
            node.tally.count_impossible(state, type_, cell)
        else:
            node.tally.dropped += 1
            node.tally.ignored[state, type_] += 1
        return cell

    def is_fatal(self, state: Any, type_: MessageType | IntEnum) -> bool:
        """Whether an exception of the handler in this cell must end the node: with `fatal=True`, and for built-in types.

        News of peers, PEER_UP and PEER_DOWN, has no handlers but those of users.
        """
        return not (is_own(type_) or type_ in PEER_NEWS) or (state, type_) in self._fatal

    @property
    def types(self) -> tuple[MessageType, ...]:
        """The message types that have a row, ordered by number."""
        return tuple(sorted(self._types))

    def cells(self) -> Iterator[tuple[Any, MessageType, Cell]]:
        """Yield every cell as (state, message type, content of the cell)."""
        for type_ in self.types:
            for state in self.states:
                yield state, type_, self._rows[state].get(type_, _UNDECLARED)

    def copy(self) -> Self:
        """Return an independent copy, which you can extend without changing this table.

        mine = raft_handlers().copy()
        mine.wrap(MessageType.REPLICATE)(count_replications)
        """
        twin = type(self)(self.states)
        twin.guards, twin._checked_guards = list(self.guards), list(self._checked_guards)
        twin._types = dict(self._types)
        twin._rows = _Rows((state, _Row(row)) for state, row in self._rows.items())
        twin._sealed = dict(self._sealed)
        twin._fatal = set(self._fatal)
        twin.extensions, twin.kinds, twin.deliveries = self.extensions, self.kinds, dict(self.deliveries)
        return twin

    def on(
        self, type_: MessageType | IntEnum, *states: Any, replace: bool = False, fatal: bool = False
    ) -> Callable[[Handler], Handler]:
        """Put the decorated handler into the cells of a type. Without states, it fills all cells except impossible ones.

            @table.on(AUDIT_PING, State.LEADER)
            def answer(raft, message):
                raft.send(Message(AUDIT_PONG, to=message.sender))

        Declare the cells of the other states too, with another handler, `ignore` or `impossible`. `check` refuses a row
        that is filled only in part, and a handler in a cell that was declared impossible.

        An exception of a handler of a type of your own (from number 1000 up, or of an `IntEnum`) goes to who asked, or else is
        logged; it is counted in `Tally.failed`, and the node goes on; what the handler did before stands. With `fatal=True` it
        ends the node, as one of a guard or of a handler of Raft's types does.
        """
        chosen = self._choose(type_, states)
        if not states:
            chosen = self._fillable(type_)

        def fill(handler: Handler) -> Handler:
            _refuse(fault_in(handler, _HANDLER))
            self._fill(type_, chosen, handler, where(handler), replace=replace, fatal=fatal)
            return handler

        return fill

    def wrap(self, type_: MessageType | IntEnum, *states: Any) -> Callable[[Wrapper], Wrapper]:
        """Put the decorated function around the handlers in these cells. Without states, it wraps all in the row.

            @table.wrap(MessageType.REPLICATE, State.FOLLOWER)
            def count(raft, message, inner):
                seen[message.sender] += 1
                inner(raft, message)

        Raises `HandlerTableError` if a named cell has no handler, or if no cell of the row has one.
        """
        chosen = self._choose(type_, states)

        def fill(wrapper: Wrapper) -> Wrapper:
            _refuse(fault_in(wrapper, _WRAPPER))
            self._wrap(type_, chosen, wrapper, named=bool(states))
            return wrapper

        return fill

    def use(self, *classes: type[Extension]) -> Self:
        """Register extensions: their `@handles` methods fill and wrap cells, their `@delivers` methods take committed entries.

            table = raft_handlers().use(Audit)

        A node that gets this table makes an instance of each class, in this order. Returns this table.

        Raises `HandlerTableError`, with class and method, for any mistake in a class that can be seen before a node starts.
        """
        twin = self.copy()
        for class_ in classes:
            twin._use(class_)
        # Only now, so that a mistake changes nothing.
        self._rows, self._types, self._fatal = twin._rows, twin._types, twin._fatal
        self.extensions, self.kinds, self.deliveries = twin.extensions, twin.kinds, twin.deliveries
        return self

    def guard(self, guard: Guard) -> Guard:
        """Add a check that runs before dispatch in every state. It may return `SWALLOW` to drop the message.

        @table.guard
        def only_from_peers(raft, message):
            return SWALLOW if message.sender == 9 else None
        """
        _refuse(fault_in(guard, _GUARD))
        if guard in self.guards:
            raise HandlerTableError(f"{where(guard)} is already a guard of this table: register it once")
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
        """Declare that messages are legal in these cells but change nothing. Without states, it declares the whole row.

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
        """Declare that no correct peer can reach these cells. Without states, it declares the whole row.

        `check` refuses a handler in such a cell.

        table.impossible(AUDIT_PONG, State.WITNESS, because="a witness sends no pings")
        """
        self._declare(
            type_, self._choose(type_, states), Never(because), f"impossible({type_})", replace=replace
        )

    def check(self, states: Iterable[Any] | None = None) -> None:
        """Check the whole table: no undeclared cell, no handler in an impossible cell, and only guards that can be called.

        `states` are those of the node that will use the table; the table must have exactly these. Raises
        `HandlerTableError`, which names all faults and the remedy for each.
        """
        faults = []
        wanted = self.states if states is None else tuple(states)
        if len(wanted) != len(self.states) or not all(map(self.has_state, wanted)):
            faults.append(
                f"its states are {_names(self.states)}, but its node's are {_names(wanted)}: make a table with those"
            )
        faults += [
            f"{type_} in {state.name} is undeclared: use on, ignore or impossible, or `elsewhere` where an extension has the others"
            for state, type_, cell in self.cells()
            if isinstance(cell, Undeclared)
        ]
        faults += [
            f"{type_} in {state.name} has a handler, but must stay empty: {because}"
            for (state, type_), because in self._sealed.items()
            if callable(self._rows[state][type_])
        ]
        added = [guard for guard in self.guards if guard not in self._checked_guards]  # not by `guard`
        faults += [fault for guard in added if (fault := fault_in(guard, _GUARD))]
        if faults:
            raise HandlerTableError("the handler table is refused: " + "; ".join(faults))

    def describe(self, counts: Tally | None = None) -> str:
        """Return the matrix as text: a line for each message type, a column for each state, then the reasons.

        With the tally of a node, each cell shows what became of its messages there: "audit.count 12, 1 failed".
        """
        rows = {
            type_: [self._rows[state].get(type_, _UNDECLARED) for state in self.states]
            for type_ in self.types
        }
        return describe(self.states, rows, self.guards, self.deliveries, counts)

    def has_state(self, state: Any) -> bool:
        """Return whether `state` is one of the table's. A member of another enum is not, even if it is equal."""
        return any(type(known) is type(state) and known == state for known in self.states)

    def _use(self, class_: type[Extension]) -> None:
        check_class(class_)
        name = name_of_extension(class_)
        same = [used for used in self.extensions if name_of_extension(used) == name]
        if same:
            raise HandlerTableError(
                f"{where(class_)}: this table already uses {where(same[0])} under the name {name!r}: use each extension once, "
                "and set `name` in the class if two are called alike"
            )
        marks = list(marks_of(class_))
        handled = [(method, mark) for method, mark in marks if isinstance(mark, Handles)]
        for method, mark in sorted(handled, key=lambda found: found[1].wrap):
            with _naming(class_, method):
                self._use_handler(class_, method, mark)
        for method, mark in handled:
            if mark.elsewhere:
                with _naming(class_, method):
                    rest = [state for state in self.states if mark.type not in self._rows[state]]
                    self._declare(mark.type, rest, Ignore(mark.elsewhere), "")
        for method, other in marks:
            if isinstance(other, Delivers):
                with _naming(class_, method):
                    self._use_delivery(class_, method, other)
        self.extensions += (class_,)

    def _use_handler(self, class_: type[Extension], method: str, mark: Handles) -> None:
        chosen = self._choose(mark.type, mark.states)
        if not mark.wrap:
            chosen = chosen if mark.states else self._fillable(mark.type)
            handler = handler_of(class_, method)
            what = f"handles({mark.type})"
            self._fill(mark.type, chosen, handler, what, replace=mark.replace, fatal=mark.fatal)
        elif mark.replace or mark.fatal or mark.elsewhere:
            raise HandlerTableError(
                f"handles({mark.type}, wrap=True): a wrapper takes neither replace, fatal nor elsewhere"
            )
        else:
            self._wrap(mark.type, chosen, wrapper_of(class_, method), named=bool(mark.states))

    def _use_delivery(self, class_: type[Extension], method: str, mark: Delivers) -> None:
        deliver = delivery_of(class_, method)
        for kind in mark.kinds:
            takers = self.deliveries.get(kind, ())
            if kind < EntryKind.FIRST_FREE and kind not in COMMANDS:
                raise HandlerTableError(
                    f"delivers({kind}): of Raft's own kinds only {', '.join(map(str, COMMANDS))} are delivered; define yours "
                    "with EntryKind.define(name, number)"
                )
            if takers and kind >= EntryKind.FIRST_FREE:
                raise HandlerTableError(
                    f"delivers({kind}): {name_of(takers[0])} takes this kind already: define another kind"
                )
            self.deliveries[kind] = (*takers, deliver)
        self.kinds |= {kind for kind in mark.kinds if kind >= EntryKind.FIRST_FREE}

    def _choose(self, type_: Any, states: tuple[Any, ...]) -> list[Any]:
        """Check a type and states. Returns the states, or all states of the table if none is given."""
        self._check_type(type_)
        for state in states:
            if not self.has_state(state):
                raise self._rows.no_such(state)
        return list(states or self.states)

    def _check_type(self, type_: Any) -> None:
        if not isinstance(type_, MessageType | IntEnum) or self.has_state(type_):
            raise HandlerTableError(
                f"{where(type_) if callable(type_) else reprlib.repr(type_)} is not a message type: use one of "
                "MessageType, such as MessageType.REPLICATE, or define yours with MessageType.define(name, number)"
            )
        known = self._types.get(type_, type_)
        if known is not type_:
            raise HandlerTableError(
                f"{type_!r} has the number of {known!r}, which this table already has: use another number"
            )

    def _fillable(self, type_: Any) -> list[Any]:
        """The states in which a handler may stand that is registered without states."""
        fillable = [state for state in self.states if (state, type_) not in self._sealed]
        if not fillable:
            raise HandlerTableError(
                f"on({type_}): all cells of the row must stay empty, so there is none to fill"
            )
        return fillable

    def _fill(
        self, type_: Any, states: Iterable[Any], handler: Handler, what: str, *, replace: bool, fatal: bool
    ) -> None:
        states = list(states)
        self._declare(type_, states, handler, what, replace=replace)
        cells = {(state, type_) for state in states}
        self._fatal = self._fatal | cells if fatal else self._fatal - cells

    def _wrap(self, type_: Any, states: Iterable[Any], wrapper: Wrapper, *, named: bool) -> None:
        """Put `wrapper` around the handlers in these states; where they were `named`, there must be one in each."""
        chosen = list(states)
        filled = [state for state in chosen if callable(self._rows[state][type_])]
        if not filled or (named and len(filled) != len(chosen)):
            empty = _names(state for state in chosen if state not in filled)
            raise HandlerTableError(
                f"wrap({type_}): there is no handler in {empty}: add one with `on` instead"
            )
        for state in filled:
            inner: Any = self._rows[state][type_]
            self._rows[state][type_] = _around(wrapper, inner, watch=self.is_fatal(state, type_))

    def _declare(
        self, type_: Any, states: Iterable[Any], cell: Cell, what: str, *, replace: bool = False
    ) -> None:
        """Put `cell` into the cells of these states. Without `replace`, refuse cells that are declared already."""
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
            f"{state.name} ({name_of(old) if callable(old) else old})"
            for state, old in standing.items()
            # A handler in place of a `Never` is refused by `check`, with the reason.
            if not isinstance(old, Undeclared) and not (callable(cell) and (state, type_) in self._sealed)
        ]
        if declared:
            raise HandlerTableError(
                f"{what}: {type_} is already declared in {', '.join(declared)}. "
                "Use replace=True to replace it, or `wrap` to run code around a handler"
            )


@contextmanager
def _naming(class_: type[Extension], method: str) -> Iterator[None]:
    """Name class and method in the error."""
    try:
        yield
    except HandlerTableError as error:
        raise HandlerTableError(f"{class_.__name__}.{method}: {error}") from None


def _checked_states(states: Any) -> tuple[Any, ...]:
    found = tuple(states) if isinstance(states, Iterable) else ()
    if not found or not all(hasattr(state, "name") for state in found) or len(set(found)) < len(found):
        raise HandlerTableError(
            f"{reprlib.repr(states)} are not states of a table: pass an enum, or some of its members, each once"
        )
    return found


def _names(states: Iterable[Any]) -> str:
    return ", ".join(state.name for state in states)


def _refuse(fault: str | None) -> None:
    if fault:
        raise HandlerTableError(fault)


def _around(wrapper: Wrapper, inner: Any, *, watch: bool) -> Handler:
    def watched(node: Any, message: Any) -> Any:
        state = node.state
        try:
            return inner(node, message)
        except BaseException as error:
            node.tally.note_broken(error, state, message.type)  # the wrapper may catch it
            raise

    runs = watched if watch else inner

    def wrapped(node: Any, message: Any) -> Any:
        return wrapper(node, message, runs)

    wrapped.__name__ = f"{name_of(wrapper)}({name_of(inner)})"
    wrapped.__module__ = ""
    return wrapped
