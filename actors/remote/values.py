"""Values of users as bytes, and back: what is in the messages, answers and arguments that travel between hosts.

On the wire is CBOR without tags:

    None, bool, int, float, str, bytes     as CBOR has them
    list, tuple                            a list
    dict                                   a map; one that has the key "@": {"@": that map}
    a registered dataclass                 {"@": its name, field: value, …}
    a reference to an actor                {"@": [what the references of this host make of it]}

Only registered dataclasses are made of what comes in, by `cls(**fields)`; that is the only code of users which runs here,
beside the properties that a class may have for its fields. Both directions bound what a value may cost. So the time that a
hostile host can take from the loop by one value is some milliseconds, and the memory a few megabytes.
"""

import datetime as dt
import decimal
import enum
from collections import Counter
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, Final, Protocol

import cbor2
import pykka
from drakkar.actors.remote.message_classes import MARK, MessageClass, message_of_class, message_of_name
from drakkar.actors.remote.registry import place_of
from drakkar.actors.runtime.futures import in_full
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_UNSIGNED
from drakkar.handlers.errors import ConfigError, DrakkarError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_ITEMS", "Refs", "ValueRefused", "pack", "unpack"]

MAX_BYTES: Final = 1 << 20
"""Bytes of a value, unless the caller says otherwise."""
MAX_DEPTH: Final = 32
"""Lists, tuples, dicts and messages inside each other."""
MAX_ITEMS: Final = 1 << 14
"""Values and keys in a value, all in all. To decode one takes 0.1 to 1 µs, so this is what bounds the time for a value."""

_MAX_PATH: Final = 200
"""Characters of a path in an error text."""
_MAX_SAID: Final = 300
"""Characters of what user code says of itself in an error text."""
_WIRE_DEPTH: Final = 2 * MAX_DEPTH + 4
"""A dict that is escaped takes two levels. A reference is no container, and has three levels of its own."""
_MIN_INT: Final = -MAX_UNSIGNED - 1

_FREE: Final[frozenset[type[Any]]] = frozenset({NoneType, bool, float})
"""Types of which each value can be sent, and costs nothing beside its item."""
_LEAVES: Final[frozenset[type[Any]]] = _FREE | {int, str, bytes}
"""Types of what the decoder makes of an item that holds no others."""


class ValueRefused(ConfigError):
    """A value cannot be sent to another host, or cannot be used there. Nothing was done with it.

    `option` is the path to what is wrong, such as "message['a'][3].amount", `value` says what is wrong with it, and
    `remedy` what to do.
    """

    def __str__(self) -> str:
        return f"{self.option} {self.value}: {self.remedy}"


class Refs(Protocol):
    """What knows references to actors: turns them into plain values, and these into references."""

    def export(self, value: Any) -> list[Any] | None:
        """Return what stands for a reference or a proxy, in the thread that packs; None if `value` is neither.

        The list holds None, bools, numbers, strings, byte strings and lists of those. Raises `DrakkarError` if the
        reference cannot be sent now.
        """

    def import_(self, exported: list[Any]) -> Any:
        """Return the reference that a list stands for, in the thread that unpacks.

        The list may come from a hostile host: nothing is known but the types that `export` may return. Raises
        `DrakkarError` if it stands for no reference that can be used.
        """


def pack(value: Any, refs: Refs, *, what: str = "message", limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a value, `limit` at most. Do not change the value meanwhile. From any thread.

    Only exact types can be sent: see `docs/values.md`. A tuple comes out as a list. A reference may be exported though
    another part of the value is then refused.

    Raises `ValueRefused` for all else, also for what is nested too deeply, holds itself, or has too many items. `what` is
    how the error names the whole value.
    """
    try:
        data = cbor2.dumps(_Packer(refs, limit).value(value, MAX_DEPTH))
        if len(data) > limit:
            raise _too_long(limit)
    except _Fault as fault:
        raise fault.of(what) from None
    return data


def unpack(data: bytes, refs: Refs, *, what: str = "message", dropped: Counter[str] | None = None) -> Any:
    """Return the value of these bytes, which may come from a hostile host.

    `dropped` counts, by the names of messages, the fields that this host does not know, and which are dropped.

    Raises `ValueRefused`, and nothing else, unless they are what `pack` returns, and each message in them is registered,
    has all fields that need a value, and can be made. `what` is how the error names the whole value.
    """
    try:
        wire = cbor.loads(data, _WIRE_DEPTH, max_items=MAX_ITEMS)
    except ValueError as error:
        raise ValueRefused(
            what, f"cannot be decoded ({error!s:.{_MAX_SAID}})", "only send what `pack` returns"
        ) from None
    try:
        return _Unpacker(refs, dropped).value(wire, MAX_DEPTH)
    except _Fault as fault:
        raise fault.of(what) from None


class _Fault(Exception):
    """What is wrong with a part of a value. The path to that part grows while the error leaves the value."""

    def __init__(self, problem: str, remedy: str, *, whole: bool = False) -> None:
        """`whole`: it is no fault of the part where it is noticed."""
        super().__init__(problem, remedy)
        self._problem, self._remedy, self._whole = problem, remedy, whole
        self._steps: list[str] = []

    def inside(self, step: str) -> None:
        """Note in which part of a container it was noticed."""
        if not self._whole:
            self._steps.append(step)

    def of(self, what: str) -> ValueRefused:
        """Return the error for users, after it has left the whole value."""
        path = what + "".join(reversed(self._steps))
        if len(path) > _MAX_PATH:
            path = f"{path[: _MAX_PATH // 2]}…{path[-_MAX_PATH // 2 :]}"
        return ValueRefused(path, self._problem, self._remedy)


def _too_long(limit: int) -> _Fault:
    return _Fault(
        f"takes more than {limit} bytes",
        "send it in several messages, or raise call_limit on all hosts",
        whole=True,
    )


def _too_deep() -> _Fault:
    return _Fault(
        f"is nested too deeply, as {MAX_DEPTH} lists, dicts and messages inside each other are allowed",
        "send a flatter value, and none that holds itself",
    )


def _step(key: Any) -> str:
    """Return the step of a path that leads to the value of a key."""
    return f"[{key!r:.60}]"


class _Packer:
    """Makes of one value what CBOR encodes, and stops as soon as it is sure to become too large.

    So one list that is held many times over, or holds itself, ends soon.
    """

    __slots__ = ("_bytes", "_items", "_limit", "_refs")

    def __init__(self, refs: Refs, limit: int) -> None:
        self._refs, self._limit = refs, limit
        self._bytes = limit
        self._items = MAX_ITEMS - 1

    def value(self, value: Any, depth: int) -> Any:
        """`depth`: how many containers may still be inside each other."""
        kind = type(value)
        if kind is str:
            self._count_text(value)
            return value
        if kind in _FREE:
            return value
        if kind is int:
            if _MIN_INT <= value <= MAX_UNSIGNED:
                return value
            raise _Fault("is an int of more than 64 bits", "send it as a string or as bytes")
        if kind is bytes:
            self._count_bytes(len(value))
            return value
        if kind is dict:
            return self._dict(value, depth)
        if kind is list or kind is tuple:
            return self._list(value, depth)
        return self._object(value, depth)

    def _count_text(self, text: str) -> None:
        self._count_bytes(len(text))
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise _Fault(
                    "is a string with half a surrogate pair, which is no valid Unicode",
                    'send bytes, for example value.encode("utf-8", "surrogatepass")',
                ) from None

    def _count_bytes(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise _too_long(self._limit)

    def _open(self, items: int, depth: int) -> None:
        """Begin a container."""
        if depth == 0:
            raise _too_deep()
        self._items -= items
        if self._items < 0:
            raise _Fault(
                f"has more than {MAX_ITEMS} values and keys",
                "send it in several messages, or many numbers as bytes",
                whole=True,
            )

    def _list(self, values: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        self._open(len(values), depth)
        wire: list[Any] = []
        try:
            wire.extend(value if type(value) in _FREE else self.value(value, depth - 1) for value in values)
        except _Fault as fault:
            fault.inside(f"[{len(wire)}]")
            raise
        return wire

    def _dict(self, values: dict[Any, Any], depth: int) -> dict[str, Any]:
        self._open(2 * len(values), depth)
        wire: dict[str, Any] = {}
        for key, value in values.items():
            if type(key) is not str:
                raise _Fault(
                    f"has the key {key!r:.60} of type {place_of(type(key))}",
                    "use strings as keys, or send a list of pairs",
                )
            try:
                self._count_text(key)
                wire[key] = value if type(value) in _FREE else self.value(value, depth - 1)
            except _Fault as fault:
                fault.inside(_step(key))
                raise
        if MARK in wire:
            self._open(2, depth)
            return {MARK: wire}
        return wire

    def _object(self, value: Any, depth: int) -> dict[str, Any]:
        form = message_of_class(type(value))
        if form is not None:
            return self._message(form, value, depth)
        exported = self._refs.export(value)
        if exported is None:
            raise _Fault(f"is of type {place_of(type(value)):.100}", _remedy(value))
        # It is no container, so the depth of what it is in does not matter.
        self._open(2, 1)
        return {MARK: self._list(exported, 2)}

    def _message(self, form: MessageClass, value: Any, depth: int) -> dict[str, Any]:
        self._open(2 * len(form.fields) + 2, depth)
        wire: dict[str, Any] = {MARK: form.name}
        for field in form.fields:
            try:
                part = getattr(value, field)
            except AttributeError:
                raise _Fault(
                    f"has no {field!r}, which is a field of {place_of(form.cls)}", "give each field a value"
                ) from None
            try:
                wire[field] = part if type(part) in _FREE else self.value(part, depth - 1)
            except _Fault as fault:
                fault.inside(f".{field}")
                raise
        return wire


class _Unpacker:
    """Makes the values that were sent of what CBOR decodes. It changes the lists and maps in place."""

    __slots__ = ("_dropped", "_refs")

    def __init__(self, refs: Refs, dropped: Counter[str] | None) -> None:
        self._refs, self._dropped = refs, dropped

    def value(self, wire: Any, depth: int) -> Any:
        """`depth`: how many containers may still be inside each other."""
        kind = type(wire)
        if kind in _LEAVES:
            return wire
        if kind is dict:
            return self._marked(wire, depth) if MARK in wire else self._dict(wire, depth)
        if kind is list:
            return self._list(wire, depth)
        raise _Fault("is a CBOR value that no host sends", "only send what `pack` returns")

    def _list(self, wire: list[Any], depth: int) -> list[Any]:
        if depth == 0:
            raise _too_deep()
        if not _LEAVES.issuperset(map(type, wire)):
            for at, part in enumerate(wire):
                if type(part) not in _LEAVES:
                    try:
                        wire[at] = self.value(part, depth - 1)
                    except _Fault as fault:
                        fault.inside(f"[{at}]")
                        raise
        return wire

    def _dict(self, wire: dict[Any, Any], depth: int) -> dict[str, Any]:
        if depth == 0:
            raise _too_deep()
        for key, part in wire.items():
            if type(key) is not str:
                raise _Fault(f"has the key {key!r:.60}, which is no string", "use strings as keys")
            if type(part) not in _LEAVES:
                try:
                    wire[key] = self.value(part, depth - 1)
                except _Fault as fault:
                    fault.inside(_step(key))
                    raise
        return wire

    def _marked(self, wire: dict[Any, Any], depth: int) -> Any:
        """Return what a map with the mark stands for."""
        mark = wire[MARK]
        if type(mark) is str:
            return self._message(mark, wire, depth)
        if len(wire) == 1:
            if type(mark) is dict:
                return self._dict(mark, depth)
            if type(mark) is list:
                return self._reference(mark)
        raise _Fault(f"is a map with the key {MARK!r} that no host sends", "only send what `pack` returns")

    def _message(self, name: str, wire: dict[Any, Any], depth: int) -> Any:
        if depth == 0:
            raise _too_deep()
        form = message_of_name(name)
        if form is None:
            raise _Fault(
                f"is a {name!r:.110}, and no class of that name is known there",
                f"import the module that has its class, with @message({name!r:.110}), on the host that receives it",
            )
        del wire[MARK]
        # Before the values are made, since those of an unknown field may be of classes that are not known either.
        if wire.keys() != form.known:
            self._match_fields(form, wire)
        for field, part in wire.items():
            if type(part) not in _LEAVES:
                try:
                    wire[field] = self.value(part, depth - 1)
                except _Fault as fault:
                    fault.inside(f".{field}")
                    raise
        try:
            return form.cls(**wire)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - of a constructor of users
            raise _Fault(
                f"is a {name!r}, whose class {place_of(form.cls)} raised {in_full(error):.{_MAX_SAID}}",
                "send what the class allows",
            ) from None

    def _match_fields(self, form: MessageClass, wire: dict[Any, Any]) -> None:
        """Drop the fields that this host does not know. Those that the sender does not know need a default."""
        missing = form.needed - wire.keys()
        if missing:
            raise _Fault(
                f"is a {form.name!r} without {', '.join(map(repr, sorted(missing)))}",
                f"send the field, or give it a default in {place_of(form.cls)} of the host that receives it",
            )
        unknown = wire.keys() - form.known
        for field in unknown:
            del wire[field]
        if unknown and self._dropped is not None:
            self._dropped[form.name] += len(unknown)

    def _reference(self, exported: list[Any]) -> Any:
        for part in exported:
            if type(part) not in _LEAVES and not (type(part) is list and _LEAVES.issuperset(map(type, part))):
                raise _Fault("is a reference that no host sends", "only send what `pack` returns")
        try:
            return self._refs.import_(exported)
        except DrakkarError as error:
            raise _Fault(
                f"is a reference to an actor, which cannot be used: {in_full(error):.{_MAX_SAID}}",
                "look the actor up anew, and send that reference",
            ) from None


_REMEDIES: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (enum.Enum, "send its value: member.value"),
    (BaseException, "raise it, or send its text: str(error)"),
    (pykka.Actor, "send its reference: actor.actor_ref"),
    (pykka.Future, "send what it holds: future.get()"),
    ((bytearray, memoryview), "send bytes(value)"),
    ((set, frozenset), "send a list, such as sorted(value)"),
    (decimal.Decimal, "send str(value)"),
    ((dt.date, dt.time), "send value.isoformat(), or a number of seconds"),
    (dt.timedelta, "send value.total_seconds()"),
    *((base, f"send {base.__name__}(value)") for base in (str, int, float, bytes, dict, list, tuple)),
)
"""What to send in place of an instance of a class, or of one derived from it; the first one counts."""


def _remedy(value: Any) -> str:
    if is_dataclass(type(value)):
        return 'write @message("a.name") above the @dataclass of this very class, on all hosts'
    for kinds, remedy in _REMEDIES:
        if isinstance(value, kinds):
            return remedy
    return "send plain values, references to actors, or a dataclass with @message"
