"""Whether what clients saw can be explained by operations that took effect one at a time, each at some moment
between its invocation and its return.

The problem is that of Herlihy and Wing (1990). The search is that of Wing and Gong (1993) in the form that Lowe
gave it (2017): just-in-time linearization. It goes from return to return in the order of time, with
configurations that explain what has returned so far. A configuration is what a later operation could notice: the
state, which of the open operations took effect already, and which of those with unknown outcome did. At a return
it is led on, through any open operations in any order, until the returning one took effect; each way in which
that can be is a configuration for the next return. Of those alike, one is enough.

First this goes depth first, because a linearizable history mostly lets the first choice stand. Where that takes
long, all configurations go abreast: those that others make needless are then gone before anything is built on
them. The two take turns, with more patience each time. A return that no configuration passes is the earliest that
nothing explains.

Operations with unknown outcome never return, so they stay open for ever, and their subsets would drown the
search. Five rules keep it small; none changes a verdict:

- One that took effect without need is worse than one that is still to come, so of two configurations alike but
  for that, the one that spent less is kept.
- One that changes nothing is not spent. Nor is a second one right after a first, where it alone does the same.
- Where an operation and one of unknown outcome may change places, the known one goes first.
- Of several that are alike, the one invoked first is spent first.
- A model may say which states no answer can tell apart (`Register.narrowed`).

A read that fits is placed at once: it changes nothing, so waiting gains nothing. Keys are judged apart, which is
sound because linearizability is local.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["Model", "NotLinearizable", "Operation", "Register", "check"]

_SHOWN_BEFORE: Final = 12
_SHOWN_AFTER: Final = 12
"""Operations that an explanation shows at most, of those that fit and those that do not."""
_SHOWN_VALUE: Final = 50
"""Characters of a value that it shows."""
_PATIENCE: Final = 100
"""Configurations that the search may lead on, for each return, before it tries the other order."""


@dataclass(slots=True)
class Operation:
    """What a client asked, what it was told, and when. Times are of one clock, in any unit."""

    client: int
    key: str
    kind: str
    """A kind that the model knows. One that only reads must be called "get"."""
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
    """What one key may answer when operations come one at a time. States are hashable, and never changed.

    Two methods more may help the search: `narrowed(operations)`, asked once a key, returns the model to judge
    these by; and that one's `alike(operation)` groups those with unknown outcome that do the same in every state
    (those of one kind and argument, where a model does not say).
    """

    initial: Hashable

    def step(self, state: Any, operation: Operation) -> tuple[bool, Hashable]:
        """Tell whether `operation.result` is what it may answer in that state, and the state after it.

        One with unknown outcome may answer anything. A "get" must leave the state as it is.
        """
        ...


class NotLinearizable(AssertionError):
    """No order explains the history. The text shows the longest that was found, and what does not fit."""


class _Unseen:
    """The register's state where it holds a value that no answer speaks of."""

    def __repr__(self) -> str:
        return "a value that nobody saw"


_UNSEEN: Final = _Unseen()


class Register:
    """A register of hashable values, None at first.

    get() answers the value; put(value) the one before it; add(text) appends to a text (None counts as "") and
    answers the new one; cas((old, new)) puts the new value if the old one is there, and answers whether it was.
    """

    initial: Hashable = None

    def step(self, state: Any, operation: Operation) -> tuple[bool, Hashable]:
        """See `Model.step`. Raises `ValueError` for a kind that it does not know."""
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
                raise ValueError(f"a register knows no {kind!r}: use get, put, add or cas")
        return operation.returned is None or operation.result == answer, after

    def narrowed(self, operations: Sequence[Operation]) -> Model:
        """A model with the same verdict on these operations, but with fewer states."""
        # What a subclass answers is its own business.
        return _NarrowRegister(operations) if type(self) is Register else self


class _NarrowRegister(Register):
    """Takes all values that no answer speaks of, and that cannot grow into one of which one does, for the same.

    All that can be told of such a value is that it is not another one: by a cas that failed. Without any, an
    operation with unknown outcome that writes one explains nothing, and is ruled out.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        spoken_of = set(_values_spoken_of(operations))
        self._texts = sorted(value for value in spoken_of if isinstance(value, str))
        # The empty register is a beginning of any text, but no text.
        self._told: dict[Hashable, bool] = {None: True} | dict.fromkeys(spoken_of, True)
        self._unseen_matters = any(
            operation.kind == "cas" and operation.returned is not None and not operation.result
            for operation in operations
        )

    def step(self, state: Any, operation: Operation) -> tuple[bool, Hashable]:
        if state is _UNSEEN and operation.kind == "add":
            return operation.returned is None, _UNSEEN
        fits, after = super().step(state, operation)
        if self._can_be_told(after):
            return fits, after
        return fits and (self._unseen_matters or operation.returned is not None), _UNSEEN

    def alike(self, operation: Operation) -> Hashable:
        """Operations with unknown outcome that have this in common do the same in every state."""
        match operation.kind, operation.argument:
            case "put", value:
                return "put", self._narrow(value)
            case "cas", (old, new):
                return "cas", old, self._narrow(new)
            case "add", text:
                # What is in no text that was seen makes any text an unseen one.
                return "add", text if any(text in seen for seen in self._texts) else _UNSEEN
        return operation.kind, operation.argument

    def _narrow(self, value: Hashable) -> Hashable:
        return value if self._can_be_told(value) else _UNSEEN

    def _can_be_told(self, value: Hashable) -> bool:
        told = self._told.get(value)
        if told is None:
            told = self._told[value] = isinstance(value, str) and self._begins_a_text(value)
        return told

    def _begins_a_text(self, value: str) -> bool:
        at = bisect_left(self._texts, value)
        return at < len(self._texts) and self._texts[at].startswith(value)


def _values_spoken_of(operations: Iterable[Operation]) -> Iterator[Hashable]:
    for operation in operations:
        if operation.kind == "cas":
            yield operation.argument[0]
        elif operation.returned is not None:
            yield operation.result


def check(history: Iterable[Operation], model: Model = Register()) -> None:  # noqa: B008  # it has no state
    """Judge a history, in any order. Operations that meet at a moment count as concurrent.

    Raises `NotLinearizable` for the first key whose operations nothing explains, in the order in which the keys
    appear, and `ValueError` for an operation that returned before it was invoked.
    """
    keys: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.returned is not None and operation.returned < operation.invoked:
            raise ValueError(f"{operation} returned before it was invoked: take both times from one clock")
        # Nobody heard the answer, so it says nothing.
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
    """The unknown outcome that was made up last, and the state before it."""

    state: Hashable
    which: int


class _Configuration(NamedTuple):
    """One explanation of what has returned so far, as far as the future can notice it."""

    done: int
    """The open operations that took effect, one bit each."""
    spent: int
    """The operations with unknown outcome that did, one bit each."""
    state: Hashable
    trail: _Placed | None
    detour: _Detour | None = None
    """Set where the last operation has an unknown outcome: what could be done without it need not be done here."""


class _Frontier:
    """Configurations of which none makes another one needless."""

    def __init__(self) -> None:
        self._alike: dict[tuple[int, Hashable], list[_Configuration]] = {}

    def __iter__(self) -> Iterator[_Configuration]:
        for rivals in self._alike.values():
            yield from rivals

    def add(self, new: _Configuration) -> bool:
        """Whether it was worth adding: none that is alike spent the same, or less."""
        rivals = self._alike.setdefault((new.done, new.state), [])
        if any(not rival.spent & ~new.spent for rival in rivals):
            return False
        rivals[:] = [rival for rival in rivals if new.spent & ~rival.spent]
        rivals.append(new)
        return True


_Effects = Sequence[tuple[int, Hashable]]
"""Which of the different operations with unknown outcome, and the state that it would lead to."""


class _Unknown:
    """The operations with unknown outcome of one key. `which` counts the different ones among them."""

    def __init__(self, operations: Iterable[Operation], model: Model) -> None:
        """Take them in the order of invocation, which is also the order of their bits."""
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
        """The first of its like that is among those left."""
        return next((each for each in self._same[which] if each[0] & left), None)

    def worth_trying(self, state: Hashable, detour: _Detour | None) -> _Effects:
        """What each, invoked or not, would make of that state, and would not have made before the detour."""
        instead = frozenset() if detour is None else self._effects_on(detour.state)
        return self._apart(self._effects_on(state), instead)

    def _effects_on(self, state: Hashable) -> frozenset[tuple[int, Hashable]]:
        effects = self._effects.get(state)
        if effects is None:
            outcomes = ((which, *self._step(state, self.one_of(which))) for which in range(len(self._same)))
            effects = frozenset((which, after) for which, fits, after in outcomes if fits and after != state)
            # Often the same ones, and one object is quicker to compare.
            effects = self._effects[state] = self._interned.setdefault(effects, effects)
        return effects


def _apart(effects: frozenset[tuple[int, Hashable]], others: frozenset[tuple[int, Hashable]]) -> _Effects:
    # In the order of invocation, so that the same history gets the same explanation.
    return sorted(effects - others, key=itemgetter(0))


def _alike(operation: Operation) -> Hashable:
    try:
        hash(operation.argument)
    except TypeError:
        return id(operation)
    return operation.kind, operation.argument


class _Moment(NamedTuple):
    """The return of an operation, and what may take effect up to then."""

    bit: int
    open: dict[int, Operation]
    """By their bits; those that are open together have different ones."""
    invoked: int
    """The operations with unknown outcome that were invoked, one bit each."""


class _Search:
    """The history of one key, moment by moment."""

    def __init__(self, key: str, operations: Sequence[Operation], model: Model) -> None:
        narrowed = getattr(model, "narrowed", None)
        model = narrowed(operations) if narrowed is not None else model
        self._key, self._model, self._step = key, model, model.step
        events = sorted(_events(operations), key=itemgetter(0, 1))
        self._unknown = _Unknown([each for _, _, each in events if each.returned is None], model)
        self._moments = list(_moments(events))
        self._effort = 0
        """Configurations led on since the search began, or began anew."""

    def run(self) -> None:
        start = _Configuration(0, 0, self._model.initial, None)
        patience = _PATIENCE * len(self._moments)
        # Either may take for ever where the other is quick, so they take turns.
        while not (self._one_way_through(start, patience) or self._all_ways_through(start, patience)):
            patience *= 4

    def _one_way_through(self, start: _Configuration, patience: int) -> bool:
        """Whether an explanation is found, depth first, before that many configurations were led on."""
        if not self._moments:
            return True
        reached = [_Frontier() for _ in self._moments]
        passed = [_Frontier() for _ in self._moments]
        path = [self._ways_past(0, start, reached[0], passed[0])]
        self._effort = 0
        while path and self._effort < patience:
            at = len(path)
            configuration = next(path[-1], None)
            if configuration is None:
                path.pop()
            elif at == len(self._moments):
                return True
            else:
                path.append(self._ways_past(at, configuration, reached[at], passed[at]))
        return False

    def _all_ways_through(self, start: _Configuration, patience: int) -> bool:
        """Whether there is an explanation; False also where that many configurations did not tell.

        Follows all abreast. Raises `NotLinearizable` at the return where none is left.
        """
        frontier = [start]
        self._effort = 0
        for at, moment in enumerate(self._moments):
            reached, passed = _Frontier(), _Frontier()
            for configuration in frontier:
                deque(self._ways_past(at, configuration, reached, passed), maxlen=0)
                if self._effort >= patience:
                    return False
            frontier = list(passed)
            if not frontier:
                raise NotLinearizable(self._explain(moment, list(reached)))
        return True

    def _ways_past(
        self, at: int, start: _Configuration, reached: _Frontier, passed: _Frontier
    ) -> Iterator[_Configuration]:
        """Lead the configuration on until the operation that returns took effect; shorter ways first.

        Leaves out what the others that share the frontiers make needless.
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
        """Place all open reads that fit."""
        done, _, state, trail, _ = configuration
        for bit, operation in moment.open.items():
            if operation.kind == "get" and not done & bit and self._step(state, operation)[0]:
                done |= bit
                trail = _Placed(operation, state, trail)
        if done == configuration.done:
            return configuration
        # Without the detour, these reads might not have fitted.
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
        """Whether the operation could as well have come before the unknown one."""
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
        if len(placed) > _SHOWN_BEFORE:
            lines.append(f"these fit in this order, after {len(placed) - _SHOWN_BEFORE} others:")
        else:
            lines.append("these fit in this order:" if placed else "nothing fits before them:")
        lines += [f"  {each.operation}, then {_brief(each.state)}" for each in placed[-_SHOWN_BEFORE:]]
        lines.append("and nowhere before the first of them returned:")
        lines += [f"  {operation}" for operation in misfits[:_SHOWN_AFTER]]
        if len(misfits) > _SHOWN_AFTER:
            lines.append(f"  and {len(misfits) - _SHOWN_AFTER} more")
        return "\n".join(lines)


def _events(operations: Iterable[Operation]) -> Iterator[tuple[float, bool, Operation]]:
    """When, whether it is a return, and of what. Of one moment the invocations come first."""
    for operation in operations:
        yield operation.invoked, False, operation
        if operation.returned is not None:
            yield operation.returned, True, operation


def _moments(events: Iterable[tuple[float, bool, Operation]]) -> Iterator[_Moment]:
    """The returns. Operations with unknown outcome have their bits in the order of invocation."""
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
    # Texts that grow differ at their end.
    text = repr(value)
    half = _SHOWN_VALUE // 2 - 2
    return text if len(text) <= _SHOWN_VALUE else f"{text[:half]}...{text[-half:]}"
