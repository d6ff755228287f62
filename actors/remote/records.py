"""What hosts say to each other about actors: records, as tuples and as bytes.

A record is a CBOR list: its kind, then its fields. CALLS frames carry lists of them. A value of users is in its record as
bytes, so that it is decoded where the record is answered: one that cannot be decoded fails that call, and no other.

A field that no correct host sends raises `FrameError`, and so ends the connection. A later minor version may append fields to
a record, which this one ignores, and add kinds of records, which it drops.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from math import ceil
from typing import Any, Final, NamedTuple, TypeAlias, Union

import cbor2
from drakkar.actors.remote.failures import MAX_ARGS_BYTES, MAX_TEXT, MAX_TRACEBACK, MAX_TYPE, Failure
from drakkar.handlers.checks import MAX_NAME, is_text, is_whole
from drakkar.transport.frames import FrameError, loads_strict

__all__ = [
    "MAX_MILLISECONDS",
    "MAX_NAMES",
    "MAX_PATH",
    "RECORD_DEPTH",
    "Answer",
    "Ask",
    "Attributes",
    "Call",
    "Describe",
    "Died",
    "FailKind",
    "Failed",
    "Found",
    "Get",
    "Lookup",
    "Names",
    "Record",
    "Set",
    "Target",
    "Tell",
    "Unwatch",
    "Watch",
    "attributes_of",
    "class_name",
    "decode",
    "decode_found",
    "decode_names",
    "encode",
    "encode_found",
    "encode_names",
    "plain_attributes",
    "to_milliseconds",
]

MAX_NAMES: Final = 10_000
"""Names in one answer: of the actors that a host publishes, or of the attributes of one actor."""
MAX_PATH: Final = 16
"""Attributes of attributes that a proxy goes down."""
MAX_MILLISECONDS: Final = 1 << 40
"""The longest deadline, 35 years; a longer one is sent as this."""
MAX_ATTRIBUTE_DEPTH: Final = 4
"""Attributes inside each other that a proxy is told of."""
Attributes: TypeAlias = Mapping[str, Union[bool, "Attributes"]]
"""What a proxy reaches: True for what can be called, False for what can be read and set, or what is below a traversable."""
RECORD_DEPTH: Final = 2
"""Lists inside each other in a record; the record is one."""


class FailKind(StrEnum):
    """What failed, where a question is answered by a failure."""

    RAISED = "raised"
    """The actor answered with an exception, or with what cannot be sent: it has handled the question."""
    DEAD = "dead"
    """The actor has ended, or ended before it answered."""
    UNKNOWN = "unknown"
    """No actor has this name or number here."""
    BUSY = "busy"
    """Too many questions or messages wait for the actor. It did not see this one."""
    REFUSED = "refused"
    """The host does not let it pass: it may not be asked by this host, or cannot be decoded. The actor did not see it."""
    LATE = "late"
    """Its time was over before it reached the actor."""


_FAIL_KINDS: Final = {str(kind): kind for kind in FailKind}


class Target(NamedTuple):
    """An actor, on the host that numbered it."""

    run: int
    """Of that host; in another run the number means nothing, or another actor."""
    number: int


class Tell(NamedTuple):
    """A message without an answer."""

    target: Target
    message: bytes


class Ask(NamedTuple):
    """A message with an answer."""

    question: int
    """A number of the asking host's run, given anew with each; see `Answer` and `Failed`."""
    target: Target
    milliseconds: int
    """How long the asker still waits."""
    message: bytes


class Call(NamedTuple):
    """The call of a method, through a proxy. With 0 as its question its result is not waited for."""

    question: int
    target: Target
    milliseconds: int
    path: tuple[str, ...]
    """The attribute, after those in which it is found."""
    args: bytes
    """A packed list."""
    kwargs: bytes
    """A packed dict."""


class Get(NamedTuple):
    """The value of an attribute, through a proxy."""

    question: int
    target: Target
    milliseconds: int
    path: tuple[str, ...]


class Set(NamedTuple):
    """A new value for an attribute, through a proxy. It is answered by None."""

    question: int
    target: Target
    milliseconds: int
    path: tuple[str, ...]
    value: bytes


class Answer(NamedTuple):
    """The answer to any question."""

    question: int
    value: bytes


class Failed(NamedTuple):
    """A question that has no answer, or a watch that does not stand any more, and why."""

    question: int
    kind: FailKind
    failure: Failure


class Lookup(NamedTuple):
    """Which actor has this name? The answer's value is a `Found`."""

    question: int
    name: str


class Names(NamedTuple):
    """Which names are published for the asker? The answer's value is a list of them."""

    question: int


class Watch(NamedTuple):
    """Tell when this actor ends, by a `Died`. Answered by an `Answer` with None when the watch stands, else by a `Failed`."""

    watch: int
    """Of the same numbers as questions."""
    target: Target


class Unwatch(NamedTuple):
    """Do not tell any more."""

    watch: int


class Died(NamedTuple):
    """The actor of a watch has ended."""

    watch: int
    reason: Failure | None
    """The exception with which it failed; None if it was stopped."""


class Describe(NamedTuple):
    """What is this actor, and what may a proxy of mine reach of it? The answer's value is a `Found`."""

    question: int
    target: Target


Record: TypeAlias = (
    Tell | Ask | Call | Get | Set | Answer | Failed | Lookup | Names | Watch | Unwatch | Died | Describe
)  # fmt: skip


class Found(NamedTuple):
    """What an asker learns of an actor, by its name or its number."""

    target: Target
    cls: str
    """The name of its class, for people."""
    attributes: Attributes
    """What a proxy reaches; nothing if it was published without one."""


# ---- to bytes


def encode(record: Record) -> bytes:
    """Return the bytes of a record. Its fields must be within the bounds that `decode` checks."""
    row = [field if type(field) in _AS_IT_IS else _plain(field) for field in record]
    return cbor2.dumps([_KINDS[type(record)], *row])


def _plain(field: Any) -> Any:
    """Return what CBOR encodes for a field. It takes named tuples too, but longer."""
    if isinstance(field, tuple):
        return list(field)
    return field.value if isinstance(field, FailKind) else field


def encode_found(found: Found) -> bytes:
    """Return the value of the answer to a `Lookup`, or a `Describe`."""
    return cbor2.dumps([list(found.target), class_name(found.cls), plain_attributes(found.attributes)])


def class_name(name: str) -> str:
    """Return the name of a class as other hosts take it."""
    return name[:MAX_NAME] if is_text(name[:MAX_NAME], MAX_NAME) else "?"


def plain_attributes(attributes: Attributes, below: str = "") -> list[str]:
    """Return what a proxy reaches, as it travels: `library.title`, and `library.search()` for what can be called."""
    plain: list[str] = []
    for name, kind in attributes.items():
        if not name.isidentifier():
            continue  # one that only `getattr` reaches, and which might look like a path
        path = below + name
        if isinstance(kind, bool):
            plain.append(path + "()" * kind)
        else:
            plain += plain_attributes(kind, f"{path}.")
    return [path for path in plain if is_text(path, MAX_NAME)][:MAX_NAMES]


def encode_names(names: Iterable[str]) -> bytes:
    """Return the value of the answer to `Names`: of the first `MAX_NAMES` of them."""
    return cbor2.dumps(_nameable(names))


def _nameable(names: Iterable[str]) -> list[str]:
    return [name for name in names if is_text(name, MAX_NAME)][:MAX_NAMES]


def to_milliseconds(seconds: float) -> int:
    """Return how long an asker waits, as records say it: rounded up, so that no deadline is earlier than it was meant."""
    return max(0, ceil(min(seconds * 1000, MAX_MILLISECONDS)))


# ---- and back


def decode(row: Any) -> Record | None:
    """Return the record of a decoded list, which may come from a hostile host; None if this host does not know its kind.

    Raises `FrameError` if a field is missing, or not of its type, or out of its bounds.
    """
    if type(row) is not list or not row or not is_whole(row[0]):
        raise FrameError("a record is no list that begins with a number")
    form = _FORMS.get(row[0])
    if form is None:
        return None
    cls, readers = form
    if len(row) <= len(readers):
        raise FrameError(f"a {cls.__name__} has {len(row) - 1} of {len(readers)} fields")
    record: Record = cls(*[read(field) for read, field in zip(readers, row[1:], strict=False)])
    return record


def decode_found(value: bytes) -> Found:
    """Return what the answer to a `Lookup`, or a `Describe`, says. Raises `FrameError` unless a host sends such an answer."""
    row = loads_strict(value, 2, max_items=MAX_NAMES + 10)
    if type(row) is not list or len(row) < 3:
        raise FrameError("what is known of an actor is no list of three fields")
    target, cls, attributes = row[:3]
    return Found(_target(target), _name(cls), attributes_of(attributes))


def attributes_of(plain: Any) -> Attributes:
    """Return what a proxy reaches, as another host tells it. Raises `FrameError`."""
    attributes: dict[str, Any] = {}
    for text in _names(plain):
        *above, name = path = text.removesuffix("()").split(".")
        if not all(map(str.isidentifier, path)):
            raise FrameError(f"a proxy reaches {text!r:.60}, which is no path of attributes")
        if len(above) >= MAX_ATTRIBUTE_DEPTH:
            raise FrameError(
                f"a proxy reaches {text!r:.60}, which is more than {MAX_ATTRIBUTE_DEPTH} attributes inside each other"
            )
        there = attributes
        for each in above:
            there = there.setdefault(each, {})
            if type(there) is not dict:
                raise FrameError(f"a proxy reaches {text!r:.60} below what can be called or read")
        there[name] = text.endswith("()")
    return attributes


def decode_names(value: bytes) -> list[str]:
    """Return the names that an answer to `Names` lists. Raises `FrameError` unless a host sends such an answer."""
    return list(_names(loads_strict(value, 1, max_items=MAX_NAMES + 10)))


def _number(field: Any) -> int:
    if not is_whole(field):
        raise FrameError(f"the number of a question or a watch is {field!r:.60}")
    return field


def _target(field: Any) -> Target:
    if type(field) is not list or len(field) != 2 or not (is_whole(field[0]) and is_whole(field[1])):
        raise FrameError(f"the actor of a record is {field!r:.60}, and not the numbers of a run and an actor")
    return Target(*field)


def _milliseconds(field: Any) -> int:
    if not is_whole(field, 0, MAX_MILLISECONDS):
        raise FrameError(f"the time of a question is {field!r:.60}, and not from 0 to {MAX_MILLISECONDS}")
    return field


def _value(field: Any) -> bytes:
    if type(field) is not bytes:
        raise FrameError("the value of a record is no byte string")
    return field


def _name(field: Any) -> str:
    if not is_text(field, MAX_NAME):
        raise FrameError(f"a name is {field!r:.60}, and not 1 to {MAX_NAME} printable characters")
    return field


def _names(field: Any) -> tuple[str, ...]:
    if type(field) is not list or len(field) > MAX_NAMES:
        raise FrameError(f"names are no list of at most {MAX_NAMES}")
    return tuple(map(_name, field))


def _path(field: Any) -> tuple[str, ...]:
    if type(field) is not list or not 0 < len(field) <= MAX_PATH:
        raise FrameError(f"the path of an attribute is no list of 1 to {MAX_PATH} names")
    return tuple(map(_name, field))


def _fail_kind(field: Any) -> FailKind:
    kind = _FAIL_KINDS.get(field) if type(field) is str else None
    if kind is None:
        raise FrameError(
            f"a question failed for the reason {field!r:.60}, which is none of {', '.join(FailKind)}"
        )
    return kind


def _failure(field: Any) -> Failure:
    if type(field) is not list or len(field) < 4:
        raise FrameError("an exception is no list of four fields")
    kind, text, traceback, args = field[:4]
    for part, most in ((kind, MAX_TYPE), (text, MAX_TEXT), (traceback, MAX_TRACEBACK)):
        if type(part) is not str or len(part) > most:
            raise FrameError(f"a text of an exception is {part!r:.60}, and not at most {most} characters")
    if args is not None and (type(args) is not bytes or len(args) > MAX_ARGS_BYTES):
        raise FrameError(
            f"the arguments of an exception are no byte string of at most {MAX_ARGS_BYTES} bytes"
        )
    return Failure(kind, text, traceback, args)


def _reason(field: Any) -> Failure | None:
    return None if field is None else _failure(field)


# The numbers are part of the protocol.
_FORMS: Final[dict[int, tuple[type[Any], tuple[Callable[[Any], Any], ...]]]] = {
    1: (Tell, (_target, _value)),
    2: (Ask, (_number, _target, _milliseconds, _value)),
    3: (Call, (_number, _target, _milliseconds, _path, _value, _value)),
    4: (Get, (_number, _target, _milliseconds, _path)),
    5: (Set, (_number, _target, _milliseconds, _path, _value)),
    6: (Answer, (_number, _value)),
    7: (Failed, (_number, _fail_kind, _failure)),
    8: (Lookup, (_number, _name)),
    9: (Names, (_number,)),
    10: (Watch, (_number, _target)),
    11: (Unwatch, (_number,)),
    12: (Died, (_number, _reason)),
    13: (Describe, (_number, _target)),
}
_KINDS: Final = {cls: number for number, (cls, _) in _FORMS.items()}
_AS_IT_IS: Final[frozenset[type[Any]]] = frozenset({int, str, bytes})
"""Types of fields that CBOR encodes as they are."""
