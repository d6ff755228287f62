"""What of an actor a proxy reaches from another host: public methods and attributes, as there are when it is published."""

from collections.abc import Iterable
from inspect import get_annotations
from typing import Any, Final

import pykka
from drakkar.actors.remote.records import Attributes
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import brief
from drakkar.actors.runtime.table_actor import TableActor
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.services import NodeServices
from drakkar.handlers.table_node import TableNode

__all__ = ["kind_at", "reach_of"]

MAX_ATTRIBUTES: Final = 1_000
"""Attributes of one object that a proxy reaches."""
_DEPTH: Final = 3
"""Traversable attributes inside each other that a proxy goes down."""

_OF_ALL: Final = {
    pykka.Actor: frozenset[str](),
    pykka.ThreadingActor: frozenset[str](),
    TrioActor: frozenset[str](),
    TableActor: frozenset(
        {"tally", "name", "peers", "peer_links", "tick_count", "effects", "message_timers"}
    ),
    TableNode: frozenset[str](),
    NodeServices: frozenset[str](),
}
"""The classes of which actors are made, each with what only its instances show. What they define is not reached: other hosts neither
stop an actor nor call its hooks, nor put another inbox in its place."""


def kind_at(attributes: Attributes, path: Iterable[str]) -> bool | None:
    """Return whether what a proxy reaches at a path can be called, or else read and set; None: it reaches nothing there."""
    there: bool | Attributes = attributes
    for name in path:
        if isinstance(there, bool) or name not in there:
            return None
        there = there[name]
    return there if isinstance(there, bool) else None


def reach_of(ref: pykka.ActorRef[Any], proxy: bool | Iterable[str]) -> Attributes:
    """Return what a proxy reaches: nothing, all that is public, or what is listed. Raises `ConfigError`."""
    if proxy is False:
        return {}
    if not isinstance(proxy, Iterable | bool) or isinstance(proxy, str | bytes):
        raise ConfigError(
            "proxy", brief(proxy), "must be True, False, or a list of names of methods and attributes"
        )
    actor = ref._actor_weakref()
    if actor is None:
        raise ConfigError("ref", str(ref), "has ended: publish an actor that lives")
    public = _public(actor, _of_all(type(actor)))
    names = public if isinstance(proxy, bool) else _listed(proxy, public, type(actor).__name__)
    return _reached(actor, names, _DEPTH)


def _listed(names: Iterable[Any], public: set[str], cls: str) -> set[str]:
    listed = list(names)
    for name in listed:
        if not isinstance(name, str) or name not in public:
            raise ConfigError(
                "proxy",
                brief(name),
                f"{cls} has no public method or attribute of that name, beside what each actor has",
            )
    return set(listed)


def _of_all(cls: type[Any]) -> frozenset[str]:
    """Return the names that an actor has since it is one."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base in _OF_ALL:
            names.update(vars(base), get_annotations(base), _OF_ALL[base])
    return frozenset(names)


def _public(owner: Any, beside: frozenset[str] = frozenset()) -> set[str]:
    return {name for name in _names_of(owner) if not name.startswith("_") and name not in beside}


def _reached(owner: Any, names: set[str], depth: int) -> dict[str, bool | Attributes]:
    if len(names) > MAX_ATTRIBUTES:
        raise ConfigError(
            "proxy",
            f"of {len(names)} attributes of {type(owner).__name__:.200}",
            f"{MAX_ATTRIBUTES} can be reached: list those that are needed",
        )
    return {name: _kind(owner, name, depth) for name in sorted(names)}


def _names_of(owner: Any) -> set[str]:
    return set(_instance(owner)).union(*(vars(each) for each in type(owner).__mro__))


def _instance(owner: Any) -> dict[str, Any]:
    # A copy in one step: the actor's own thread may add to it meanwhile.
    return dict(owner.__dict__) if hasattr(owner, "__dict__") else {}


def _kind(owner: Any, name: str, depth: int) -> bool | Attributes:
    value = _without_running(owner, name)
    if isinstance(value, staticmethod | classmethod):
        return True
    marked = (getattr(value, mark, False) is True for mark in ("_pykka_traversable", "pykka_traversable"))
    if any(marked) and not isinstance(value, type):
        return _reached(value, _public(value), depth - 1) if depth else False
    return callable(value)


def _without_running(owner: Any, name: str) -> Any:
    """Return an attribute as pykka looks at it: a property itself, and not what it computes."""
    instance = _instance(owner)
    if name in instance:
        return instance[name]
    return next((vars(each)[name] for each in type(owner).__mro__ if name in vars(each)), None)
