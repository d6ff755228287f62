"""What the tests of values and records share: messages, actors that are only numbers, and a way to compare with all types."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from drakkar.actors.remote.failures import Failure
from drakkar.actors.remote.message_classes import message
from drakkar.actors.remote.records import (
    MAX_MILLISECONDS,
    MAX_NAME,
    MAX_PATH,
    Answer,
    Ask,
    Call,
    Describe,
    Died,
    Failed,
    FailKind,
    Get,
    Lookup,
    Names,
    Set,
    Target,
    Tell,
    Unwatch,
    Watch,
)
from drakkar.handlers.checks import MAX_SIGNED, is_whole
from drakkar.handlers.errors import DrakkarError
from hypothesis import strategies as st


@message("test.deposit")
@dataclass(frozen=True, slots=True)
class Deposit:
    account: Any
    amount: Any = 0


@message("test.note")
@dataclass
class Note:
    text: Any = ""
    more: Any = field(default_factory=list)


@message("test.nothing")
@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class Ref:
    """Stands for a reference to an actor."""

    number: int


class NumberedRefs:
    """References as their numbers; those from 1000 up are refused at both ends."""

    def export(self, value: Any) -> list[Any] | None:
        if not isinstance(value, Ref):
            return None
        if value.number >= 1000:
            raise DrakkarError("too many references")
        return ["a:1", value.number, ["balance", "deposit"], None]

    def import_(self, exported: list[Any]) -> Ref:
        address, number, names, nothing = exported if len(exported) == 4 else (None,) * 4
        if not is_whole(number, 0, 999) or self.export(Ref(number)) != [address, number, names, nothing]:
            raise DrakkarError("no such actor")
        return Ref(number)


REFS = NumberedRefs()

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 64), (1 << 64) - 1),
    st.floats(),
    TEXTS,
    st.binary(max_size=8),
)
KEYS = st.one_of(st.sampled_from(["@", "@@", "a"]), TEXTS)
VALUES = st.recursive(
    st.one_of(PLAIN, st.builds(Ref, st.integers(0, 999))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.builds(Deposit, inner, inner),
        st.builds(Note, inner, st.lists(inner, max_size=3)),
        st.just(Nothing()),
    ),
    max_leaves=12,
)

numbers = st.one_of(st.integers(0, MAX_SIGNED), st.sampled_from([0, MAX_SIGNED]))
targets = st.builds(Target, numbers, numbers)
times = st.integers(0, MAX_MILLISECONDS)
printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=MAX_NAME)
paths = st.lists(printable, min_size=1, max_size=MAX_PATH).map(tuple)
failures = st.builds(Failure, TEXTS, TEXTS, TEXTS, st.one_of(st.none(), st.binary()))
RECORDS = st.one_of(
    st.builds(Tell, targets, st.binary()),
    st.builds(Ask, numbers, targets, times, st.binary()),
    st.builds(Call, numbers, targets, times, paths, st.binary(), st.binary()),
    st.builds(Get, numbers, targets, times, paths),
    st.builds(Set, numbers, targets, times, paths, st.binary()),
    st.builds(Answer, numbers, st.binary()),
    st.builds(Failed, numbers, st.sampled_from(FailKind), failures),
    st.builds(Lookup, numbers, printable),
    st.builds(Names, numbers),
    st.builds(Watch, numbers, targets),
    st.builds(Unwatch, numbers),
    st.builds(Died, numbers, st.one_of(st.none(), failures)),
    st.builds(Describe, numbers, targets),
)


def shape(value: Any) -> Any:
    """A value with the types of all that it holds, since 1 == 1.0 == True, and NaN is not NaN."""
    if type(value) is list:
        return list, [shape(each) for each in value]
    if type(value) is dict:
        return dict, [(shape(key), shape(each)) for key, each in value.items()]
    if is_dataclass(value):
        return type(value), [shape(getattr(value, each.name)) for each in fields(value)]
    return type(value), repr(value)


def nested(values: Iterable[Any], depth: int) -> Any:
    """Containers inside each other, each made by the next of `values`, which are functions, again and again."""
    makers = list(values)
    value: Any = None
    for level in range(depth):
        value = makers[level % len(makers)](value)
    return value
