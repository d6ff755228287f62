"""Checks that a history is linearizable: operations took effect one at a time, each between its invocation and return.

The problem is from Herlihy and Wing (1990). The search is that of Wing and Gong (1993) in the form of Lowe (2017):
just-in-time linearization. It goes from return to return in the order of time, with configurations that explain what
has returned so far. A configuration is everything that a later operation could notice: the state, which of the open
operations took effect already, and which operations with unknown outcome did. At a return, the search extends a
configuration by open operations in any order, until the returning operation took effect. Every possible way gives a
configuration for the next return. Of equal configurations one is kept.

The search first goes depth first, because in a linearizable history the first choice is mostly right. If that takes too
long, it goes breadth first, which drops superfluous configurations before it extends them. The two take turns, with a
limit that grows each time. The earliest return that no configuration passes shows that the history is not linearizable.

Operations with unknown outcome never return, so they stay open for ever, and there are very many subsets of them. Five
rules keep the search small; none changes a verdict:

- An operation that took effect without need could still take effect later. So if two configurations differ only in
  the operations with unknown outcome that they used, and one used fewer, that one is kept.
- An operation that changes nothing is not used. Nor is a second one right after a first, if the second alone leads to
  the same state.
- If an operation with a known outcome and one with an unknown outcome commute, the known one goes first.
- Of several equal operations, the one that was invoked first is used first.
- A model may say which states no answer can distinguish (`Register.narrowed`).

A read that fits is placed at once: it changes nothing, so there is no reason to wait. Each key is checked separately,
which is sound because linearizability is local.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["Model", "NotLinearizable", "Operation", "Register", "check"]

_MAX_SHOWN_BEFORE: Final = 12
_MAX_SHOWN_AFTER: Final = 12
"""The largest number of operations that an explanation shows: of those that fit, and of those that do not."""
_MAX_SHOWN_VALUE: Final = 50
"""The largest number of characters of a value that an explanation shows."""
_FIRST_LIMIT: Final = 100
"""Configurations per return that the search extends before it first changes from depth first to breadth first."""


@dataclass(slots=True)
class Operation:
    """A client's request, its answer, and their times. All times are from one clock, in any unit."""

    client: int
    key: str
    kind: str
    """A kind that the model knows. A kind that only reads must be called "get"."""
    argument: Any = None
    result: Any = None
    """Meaningless while `returned` is None."""
    invoked: float = 0.0
    returned: float | None = None
    """None: the outcome is unknown. It may take effect at any time after `invoked`, or never."""

    def __str__(self) -> str:
        argument = "" if self.argument is None else _brief(self.argument)
        when = "..." if self.returned is None else f"{self.returned:.10g}"
        answer = "unknown" if self.returned is None else _brief(self.result)
        return f"[{self.invoked:.10g}, {when}] client {self.client}: {self.kind}({argument}) -> {answer}"


class Model(Protocol):
    """The sequential behaviour of one key. States are hashable and immutable.

    Two optional methods speed up the search. `narrowed(operations)` is called once for each key, and returns a model for
    these operations only. `alike(operation)` of that model returns a key that is equal for operations with unknown
    outcome that do the same in every state; by default that is their kind and argument.
    """

    initial: Hashable

    def step(self, state: Any, operation: Operation) -> tuple[bool, Hashable]:
        """Return whether `operation.result` is correct in this state, and the state after the operation.

        Any result of an operation with unknown outcome is correct. A "get" must not change the state.
        """
        ...


class NotLinearizable(AssertionError):
    """No order explains the history. The text shows the longest order found, and the operations that do not fit."""


class _Unseen:
    """The state of a register that holds a value which appears in no answer."""

    def __repr__(self) -> str:
        return "a value that no client saw"


_UNSEEN: Final = _Unseen()


class Register:
    """A register of hashable values, None at first.

    get() returns the value. put(value) sets it and returns the previous value. add(text) appends to a string (None
    counts as "") and returns the new string. cas((old, new)) sets the new value if the old one is there, and returns
    whether it was.
    """

    initial: Hashable = None

    def step(self, state: Any, operation: Operation) -> tuple[bool, Hashable]:
        """See `Model.step`. Raises `ValueError` for an unknown kind."""
        match operation.kind:
            case "get":
                answer, after = state, state
            case "put":
                answer, after = state, operation.argument
            case "add":
                answer = after = ("" if state is None else state) + operation.argument
            case "cas":
                old, new = operation.argument
                answer = state == old
                after = new if answer else state
            case kind:
                raise ValueError(f"{kind!r} is not an operation of a register: use get, put, add or cas")
        return operation.returned is None or operation.result == answer, after

    def narrowed(self, operations: Sequence[Operation]) -> Model:
        """Return a model with the same verdict on these operations, but with fewer states."""
        # A subclass may answer differently, so it is not narrowed.
        return _NarrowRegister(operations) if type(self) is Register else self


class _NarrowRegister(Register):
    """Treats as equal all values that appear in no answer and cannot grow into one that does.

    Only a failed cas says anything about such a value: that it differs from another. If there is no failed cas, an
    operation with unknown outcome that writes such a value explains nothing, and is ruled out.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        answered = set(_answered_values(operations))
        self._texts = sorted(value for value in answered if isinstance(value, str))
        # The empty register can grow into any string, but is not a string itself.
        self._distinct: dict[Hashable, bool] = {None: True} | dict.fromkeys(answered, True)
        self._unseen_matters = any(
            operation.kind == "cas" and operation.returned is not None and not operation.result
            for operation in operations
        )

    def step(self, state: Any, operation: Operation) -> tuple[bool, Hashable]:
        if state is _UNSEEN and operation.kind == "add":
            return operation.returned is None, _UNSEEN
        fits, after = super().step(state, operation)
        if self._is_distinct(after):
            return fits, after
        return fits and (self._unseen_matters or operation.returned is not None), _UNSEEN

    def alike(self, operation: Operation) -> Hashable:
        """Return a key that is equal for operations with unknown outcome that do the same in every state."""
        match operation.kind, operation.argument:
            case "put", value:
                return "put", self._narrow(value)
            case "cas", (old, new):
                return "cas", old, self._narrow(new)
            case "add", text:
                # A string that is part of no seen string turns any value into an unseen one.
                return "add", text if any(text in seen for seen in self._texts) else _UNSEEN
        return operation.kind, operation.argument

    def _narrow(self, value: Hashable) -> Hashable:
        return value if self._is_distinct(value) else _UNSEEN

    def _is_distinct(self, value: Hashable) -> bool:
        distinct = self._distinct.get(value)
        if distinct is None:
            distinct = self._distinct[value] = isinstance(value, str) and self._begins_a_text(value)
        return distinct

    def _begins_a_text(self, value: str) -> bool:
        at = bisect_left(self._texts, value)
        return at < len(self._texts) and self._texts[at].startswith(value)


def _answered_values(operations: Iterable[Operation]) -> Iterator[Hashable]:
    for operation in operations:
        if operation.kind == "cas":
            yield operation.argument[0]
        elif operation.returned is not None:
            yield operation.result


def check(history: Iterable[Operation], model: Model = Register()) -> None:  # noqa: B008  # it has no state
    """Check a history, whose operations may be in any order. If one returns when another is invoked, they are concurrent.

    Raises `NotLinearizable` for the first key, in the order of appearance, whose operations no order explains. Raises
    `ValueError` for an operation that returned before it was invoked, or of an unknown kind.
    """
    keys: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.returned is not None and operation.returned < operation.invoked:
            raise ValueError(f"{operation} returned before it was invoked: take both times from one clock")
        # A read without an answer says nothing.
        if operation.returned is not None or operation.kind != "get":
            keys.setdefault(operation.key, []).append(operation)
    for key, operations in keys.items():
        _Search(key, operations, model).run()


class _Placed(NamedTuple):
    """The end of a linearization: its last operation, the state after it, and what came before."""

    operation: Operation
    state: Hashable
    before: "_Placed | None"


class _Detour(NamedTuple):
    """The last operation with unknown outcome that was used, and the state before it."""

    state: Hashable
    which: int


class _Configuration(NamedTuple):
    """One explanation of the operations that have returned so far, reduced to what later operations can notice."""

    done: int
    """The open operations that took effect, one bit each."""
    spent: int
    """The operations with unknown outcome that took effect, one bit each."""
    state: Hashable
    trail: _Placed | None
    detour: _Detour | None = None
    """Set if the last operation has an unknown outcome. Steps that are possible without it are not repeated after it."""


class _Frontier:
    """Configurations of which none makes another superfluous."""

    def __init__(self) -> None:
        self._alike: dict[tuple[int, Hashable], list[_Configuration]] = {}

    def __iter__(self) -> Iterator[_Configuration]:
        for rivals in self._alike.values():
            yield from rivals

    def add(self, new: _Configuration) -> bool:
        """Add a configuration; return False if an equal one has spent the same operations or fewer."""
        rivals = self._alike.setdefault((new.done, new.state), [])
        if any(not rival.spent & ~new.spent for rival in rivals):
            return False
        rivals[:] = [rival for rival in rivals if new.spent & ~rival.spent]
        rivals.append(new)
        return True


_Effects = Sequence[tuple[int, Hashable]]
"""Pairs of an operation with unknown outcome, by number, and the state that it leads to."""


class _Unknown:
    """The operations with unknown outcome of one key. `which` is the number of a group of equal ones."""

    def __init__(self, operations: Iterable[Operation], model: Model) -> None:
        """`operations` are in the order of invocation, which is also the order of their bits."""
        self._step = model.step
        alike = getattr(model, "alike", _alike)
        same: dict[Hashable, list[tuple[int, Operation]]] = {}
        for at, operation in enumerate(operations):
            same.setdefault(alike(operation), []).append((1 << at, operation))
        self._same = list(same.values())
        self._effects: dict[Hashable, frozenset[tuple[int, Hashable]]] = {}
        self._interned: dict[frozenset[tuple[int, Hashable]], frozenset[tuple[int, Hashable]]] = {}
        self._apart = lru_cache(maxsize=4096)(_apart)

    def one_of(self, which: int) -> Operation:
        return self._same[which][0][1]

    def available(self, which: int, left: int) -> tuple[int, Operation] | None:
        """Return the first operation of a group whose bit is in `left`."""
        return next((each for each in self._same[which] if each[0] & left), None)

    def worth_trying(self, state: Hashable, detour: _Detour | None) -> _Effects:
        """Return the effects on a state, whether invoked or not, without those that were possible before the detour."""
        instead = frozenset() if detour is None else self._effects_on(detour.state)
        return self._apart(self._effects_on(state), instead)

    def _effects_on(self, state: Hashable) -> frozenset[tuple[int, Hashable]]:
        effects = self._effects.get(state)
        if effects is None:
            outcomes = ((which, *self._step(state, self.one_of(which))) for which in range(len(self._same)))
            effects = frozenset((which, after) for which, fits, after in outcomes if fits and after != state)
            # Many states have the same effects, and identical objects compare faster.
            effects = self._effects[state] = self._interned.setdefault(effects, effects)
        return effects


def _apart(effects: frozenset[tuple[int, Hashable]], others: frozenset[tuple[int, Hashable]]) -> _Effects:
    # In the order of invocation, so the same history gets the same explanation.
    return sorted(effects - others, key=itemgetter(0))


def _alike(operation: Operation) -> Hashable:
    try:
        hash(operation.argument)
    except TypeError:
        return id(operation)
    return operation.kind, operation.argument


class _Moment(NamedTuple):
    """The return of an operation, and the operations that may take effect before it."""

    bit: int
    open: dict[int, Operation]
    """The open operations by bit. Operations that are open at the same time have different bits."""
    invoked: int
    """The operations with unknown outcome that were invoked before, one bit each."""


class _Search:
    """The search for one key."""

    def __init__(self, key: str, operations: Sequence[Operation], model: Model) -> None:
        narrowed = getattr(model, "narrowed", None)
        model = narrowed(operations) if narrowed is not None else model
        self._key, self._model, self._step = key, model, model.step
        events = sorted(_events(operations), key=itemgetter(0, 1))
        self._unknown = _Unknown([each for _, _, each in events if each.returned is None], model)
        self._moments = list(_moments(events))
        self._effort = 0
        """The number of configurations that were extended since the last change of order."""

    def run(self) -> None:
        start = _Configuration(0, 0, self._model.initial, None)
        limit = _FIRST_LIMIT * len(self._moments)
        # Either order may take very long where the other is fast, so they take turns.
        while not (self._depth_first(start, limit) or self._breadth_first(start, limit)):
            limit *= 4

    def _depth_first(self, start: _Configuration, limit: int) -> bool:
        """Search depth first; return whether an explanation was found within `limit` configurations."""
        if not self._moments:
            return True
        reached = [_Frontier() for _ in self._moments]
        passed = [_Frontier() for _ in self._moments]
        path = [self._ways_past(0, start, reached[0], passed[0])]
        self._effort = 0
        while path and self._effort < limit:
            at = len(path)
            configuration = next(path[-1], None)
            if configuration is None:
                path.pop()
            elif at == len(self._moments):
                return True
            else:
                path.append(self._ways_past(at, configuration, reached[at], passed[at]))
        return False

    def _breadth_first(self, start: _Configuration, limit: int) -> bool:
        """Search breadth first; return whether an explanation was found within `limit` configurations.

        Raises `NotLinearizable` at a return that no configuration passes.
        """
        frontier = [start]
        self._effort = 0
        for at, moment in enumerate(self._moments):
            reached, passed = _Frontier(), _Frontier()
            for configuration in frontier:
                deque(self._ways_past(at, configuration, reached, passed), maxlen=0)
                if self._effort >= limit:
                    return False
            frontier = list(passed)
            if not frontier:
                raise NotLinearizable(self._explain(moment, list(reached)))
        return True

    def _ways_past(
        self, at: int, start: _Configuration, reached: _Frontier, passed: _Frontier
    ) -> Iterator[_Configuration]:
        """Extend the configuration until the returning operation took effect; shorter ways come first.

        Leaves out configurations that others in the same frontiers make superfluous.
        """
        moment = self._moments[at]
        waiting = deque([self._with_reads(moment, start)])
        while waiting:
            configuration = waiting.popleft()
            if configuration.done & moment.bit:
                configuration = configuration._replace(done=configuration.done & ~moment.bit)
                if passed.add(configuration):
                    yield configuration
            elif reached.add(configuration):
                self._effort += 1
                waiting.extend(self._known_steps(moment, configuration))
                waiting.extend(self._unknown_steps(moment, configuration))

    def _with_reads(self, moment: _Moment, configuration: _Configuration) -> _Configuration:
        """Place all open reads that fit the state."""
        done, _, state, trail, _ = configuration
        for bit, operation in moment.open.items():
            if operation.kind == "get" and not done & bit and self._step(state, operation)[0]:
                done |= bit
                trail = _Placed(operation, state, trail)
        if done == configuration.done:
            return configuration
        # These reads might not have fitted without the last operation, so it was no detour.
        return configuration._replace(done=done, trail=trail, detour=None)

    def _known_steps(self, moment: _Moment, configuration: _Configuration) -> Iterator[_Configuration]:
        done, spent, state, trail, detour = configuration
        for bit, operation in moment.open.items():
            if done & bit:
                continue
            fits, after = self._step(state, operation)
            if fits and not (detour is not None and self._may_come_first(operation, detour, after)):
                trail_after = _Placed(operation, after, trail)
                yield self._with_reads(moment, _Configuration(done | bit, spent, after, trail_after))

    def _may_come_first(self, operation: Operation, detour: _Detour, after: Hashable) -> bool:
        """Return whether the operation could also come before the one with unknown outcome, with the same effect."""
        fits, between = self._step(detour.state, operation)
        return fits and self._step(between, self._unknown.one_of(detour.which)) == (True, after)

    def _unknown_steps(self, moment: _Moment, configuration: _Configuration) -> Iterator[_Configuration]:
        done, spent, state, trail, detour = configuration
        for which, after in self._unknown.worth_trying(state, detour):
            available = self._unknown.available(which, moment.invoked & ~spent)
            if available is not None:
                bit, operation = available
                trail_after = _Placed(operation, after, trail)
                yield self._with_reads(
                    moment, _Configuration(done, spent | bit, after, trail_after, _Detour(state, which))
                )

    def _explain(self, moment: _Moment, reached: Sequence[_Configuration]) -> str:
        best = max(reached, key=lambda each: (each.done.bit_count(), -each.spent.bit_count()))
        placed = _operations_before(best.trail)
        fitted = 0
        for configuration in reached:
            fitted |= configuration.done
        others = (each for bit, each in moment.open.items() if bit != moment.bit and not fitted & bit)
        misfits = [moment.open[moment.bit], *others]
        lines = [f"key {_brief(self._key)} is not linearizable"]
        if len(placed) > _MAX_SHOWN_BEFORE:
            lines.append(f"these fit in this order, after {len(placed) - _MAX_SHOWN_BEFORE} others:")
        else:
            lines.append("these fit in this order:" if placed else "nothing fits before them:")
        lines += [f"  {each.operation}, then {_brief(each.state)}" for each in placed[-_MAX_SHOWN_BEFORE:]]
        lines.append("and nowhere before the first of them returned:")
        lines += [f"  {operation}" for operation in misfits[:_MAX_SHOWN_AFTER]]
        if len(misfits) > _MAX_SHOWN_AFTER:
            lines.append(f"  and {len(misfits) - _MAX_SHOWN_AFTER} more")
        return "\n".join(lines)


def _events(operations: Iterable[Operation]) -> Iterator[tuple[float, bool, Operation]]:
    """Yield time, whether it is a return, and operation. At equal times, invocations come first."""
    for operation in operations:
        yield operation.invoked, False, operation
        if operation.returned is not None:
            yield operation.returned, True, operation


def _moments(events: Iterable[tuple[float, bool, Operation]]) -> Iterator[_Moment]:
    """Yield the returns. The bits of operations with unknown outcome are in the order of invocation."""
    still_open: dict[int, Operation] = {}
    bits: dict[int, int] = {}
    invoked = 0
    for _, is_return, operation in events:
        if operation.returned is None:
            invoked = invoked << 1 | 1
        elif not is_return:
            bits[id(operation)] = bit = _lowest_free(still_open)
            still_open[bit] = operation
        else:
            bit = bits.pop(id(operation))
            yield _Moment(bit, dict(still_open), invoked)
            del still_open[bit]


def _lowest_free(bits: Iterable[int]) -> int:
    taken = sum(bits)
    return ~taken & (taken + 1)


def _operations_before(trail: _Placed | None) -> list[_Placed]:
    placed = []
    while trail is not None:
        placed.append(trail)
        trail = trail.before
    return placed[::-1]


def _brief(value: Any) -> str:
    # Strings that grow differ at their end.
    text = repr(value)
    half = _MAX_SHOWN_VALUE // 2 - 2
    return text if len(text) <= _MAX_SHOWN_VALUE else f"{text[:half]}...{text[-half:]}"
