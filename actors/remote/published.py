"""What other hosts can reach of this one: its published actors, and those that were named in a message.

An actor has a number, which no other has in this run of the host. A reference names the run and the number, so one that is
restarted under the same name is another actor. Numbers are drawn at random from 2**62: whoever was not told one, by its name or in a
message, cannot reach the actor.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any, Final

import pykka
from drakkar.actors.remote.errors import NameTaken, UnknownName
from drakkar.actors.remote.records import Attributes, check_name
from drakkar.actors.runtime.futures import brief
from drakkar.handlers.errors import ConfigError, SystemBusy

__all__ = ["Published", "PublishedActor", "described"]

MAX_ACTORS: Final = 100_000
"""Actors of a host that others can reach."""
MAX_ATTRIBUTES: Final = 1_000
"""Attributes of one actor that a proxy reaches."""
_NOT_REACHED: Final = frozenset(name for name in dir(pykka.ThreadingActor) if not name.startswith("_"))
"""What each actor has: other hosts neither stop it nor call its hooks."""


@dataclass(frozen=True, slots=True, eq=False)
class PublishedActor:
    """One actor of this host that others can reach."""

    number: int
    ref: pykka.ActorRef[Any]
    name: str = ""
    """Empty for one that is known by references alone."""
    attributes: Attributes = field(default_factory=dict)
    acl: frozenset[str] | None = None
    """The addresses of which a caller must prove one by its certificate; None: all may call."""

    def reaches(self, path: Iterable[str]) -> bool:
        """Return whether a proxy reaches the attribute at a path."""
        there: bool | Attributes = self.attributes
        for name in path:
            if isinstance(there, bool) or name not in there:
                return False
            there = there[name]
        return there is not self.attributes


class Published:
    """The actors of one host that others can reach. From any thread."""

    def __init__(self, watch: Callable[[PublishedActor], None]) -> None:
        """`watch` is called with each actor when it is added: it is to call `forget` when the actor has ended."""
        self._watch = watch
        self._lock = threading.Lock()
        self._names: dict[str, PublishedActor] = {}
        self._numbers: dict[int, PublishedActor] = {}
        self._urns: dict[str, PublishedActor] = {}
        """Those that can be exported again by their number: by the urn of the actor, the one without a name or the first name."""

    def publish(
        self,
        name: str,
        ref: pykka.ActorRef[Any],
        proxy: bool | Iterable[str] = False,
        acl: Iterable[str] | None = None,
    ) -> None:
        """Let other hosts reach an actor under a name. Raises as `NodeHost.publish` does."""
        check_name("name", name)
        attributes = described(ref, proxy)
        with self._lock:
            there = self._names.get(name)
            if there is not None and there.ref.is_alive() and there.ref.actor_urn != ref.actor_urn:
                raise NameTaken("name", name, f"{there.ref} has it, and lives: unpublish it first")
            added = self._add(ref, name, attributes, None if acl is None else frozenset(acl))
            if there is not None:
                self._drop(there)
            self._names[name] = added
        self._watch(added)

    def unpublish(self, name: str) -> bool:
        """Take a name away; return whether it was there. References that other hosts have are of no use from now on."""
        with self._lock:
            there = self._names.pop(name, None)
            if there is not None:
                self._drop(there)
        return there is not None

    def export(self, ref: pykka.ActorRef[Any]) -> PublishedActor:
        """Return what other hosts are told of an actor of this host, which can be reached from now on.

        Raises `SystemBusy` where `MAX_ACTORS` can be reached.
        """
        with self._lock:
            there = self._urns.get(ref.actor_urn)
            if there is not None:
                return there
            added = self._add(ref, "", {}, None)
        self._watch(added)
        return added

    def _add(
        self, ref: pykka.ActorRef[Any], name: str, attributes: Attributes, acl: frozenset[str] | None
    ) -> PublishedActor:
        if len(self._numbers) >= MAX_ACTORS:
            raise SystemBusy(
                f"{MAX_ACTORS} actors of this host can be reached by others, and more are not allowed: unpublish some, or let "
                "those end that are named in messages"
            )
        added = PublishedActor(randbits(62), ref, name, attributes, acl)
        self._numbers[added.number] = added
        before = self._urns.get(ref.actor_urn)
        if before is None or not before.name:
            self._urns[ref.actor_urn] = added
        return added

    def _drop(self, actor: PublishedActor) -> None:
        self._numbers.pop(actor.number, None)
        if self._urns.get(actor.ref.actor_urn) is actor:
            del self._urns[actor.ref.actor_urn]

    def forget(self, actor: PublishedActor) -> None:
        """Let an actor go that has ended, with its name."""
        with self._lock:
            self._drop(actor)
            if self._names.get(actor.name) is actor:
                del self._names[actor.name]

    def by_name(self, name: str) -> PublishedActor:
        """Return the actor with a name. Raises `UnknownName`."""
        there = self._names.get(name)
        if there is None or not there.ref.is_alive():
            raise UnknownName(f"no actor is published as {name!r}")
        return there

    def by_number(self, number: int) -> PublishedActor | None:
        """Return the actor with a number; None where it has ended, or was unpublished."""
        return self._numbers.get(number)

    def names(self) -> dict[str, pykka.ActorRef[Any]]:
        """Return the published actors by name: a copy."""
        with self._lock:
            return {name: actor.ref for name, actor in self._names.items()}


def described(ref: pykka.ActorRef[Any], proxy: bool | Iterable[str]) -> Attributes:
    """Return what a proxy reaches: nothing, all that is public, or what is listed. Raises `ConfigError`."""
    if proxy is False:
        return {}
    actor = ref._actor_weakref()
    if actor is None or not ref.is_alive():
        raise ConfigError("ref", str(ref), "has ended: publish an actor that lives")
    there = _public(actor)
    if proxy is True:
        return there
    if isinstance(proxy, str) or not isinstance(proxy, Iterable):
        raise ConfigError("proxy", brief(proxy), "True, False, or a list of names of methods and attributes")
    listed = list(proxy)
    for name in listed:
        if name not in there:
            raise ConfigError(
                "proxy", name, f"{type(actor).__name__} has no public method or attribute of that name, beside what each actor has"
            )
    return {name: there[name] for name in listed}


def _public(owner: Any, beside: frozenset[str] = _NOT_REACHED, depth: int = 3) -> dict[str, bool | Attributes]:
    names = [name for name in _names_of(owner) if not name.startswith("_") and name not in beside]
    if len(names) > MAX_ATTRIBUTES:
        raise ConfigError("proxy", True, f"{type(owner).__name__} has {len(names)} attributes: list those that are to be reached")
    return {name: _kind(owner, name, depth) for name in sorted(names)}


def _names_of(owner: Any) -> set[str]:
    names = set(vars(owner)) if hasattr(owner, "__dict__") else set()
    return names.union(*(vars(each) for each in type(owner).__mro__))


def _kind(owner: Any, name: str, depth: int) -> bool | Attributes:
    # As pykka looks: without running properties.
    value = vars(owner).get(name) if hasattr(owner, "__dict__") else None
    if value is None:
        value = next((vars(each)[name] for each in type(owner).__mro__ if name in vars(each)), None)
    if isinstance(value, (staticmethod, classmethod)):
        return True
    marked = getattr(value, "_pykka_traversable", False) is True or getattr(value, "pykka_traversable", False) is True
    if marked and depth and not isinstance(value, type):
        return _public(value, frozenset(), depth - 1)
    return callable(value)
