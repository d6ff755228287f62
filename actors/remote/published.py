"""What other hosts can reach of this one: its published actors, and those that were named in a message.

An actor that is reached has a number, which no other has in this run of the host: one for each name, and one without a name. A
reference names the run and the number, so an actor that is restarted under the same name is another one. Numbers are drawn at random
from 2**62: who was not told one, by a name or in a message, cannot reach the actor.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any, Final

import pykka
from drakkar.actors.remote.errors import NameTaken, UnknownName
from drakkar.actors.remote.reach import reach_of
from drakkar.actors.remote.records import Attributes, check_name
from drakkar.handlers.errors import ConfigError, SystemBusy

__all__ = ["MAX_ACTORS", "Published", "PublishedActor"]

MAX_ACTORS: Final = 100_000
"""Numbers of actors of a host that others can reach."""


@dataclass(frozen=True, slots=True, eq=False)
class PublishedActor:
    """One actor of this host that others can reach."""

    number: int
    ref: pykka.ActorRef[Any]
    name: str = ""
    """Empty for one that is known by references alone."""
    attributes: Attributes = field(default_factory=dict)
    """What a proxy reaches."""
    acl: frozenset[str] | None = None
    """Names of which a host must have shown one in its certificate; None: all hosts reach it."""

    def __str__(self) -> str:
        kind = self.ref.actor_class.__name__
        return f"{kind} {self.name!r}" if self.name else kind


class Published:
    """The actors of one host that others can reach. From any thread."""

    def __init__(
        self, watch: Callable[[pykka.ActorRef[Any]], object], unwatch: Callable[[pykka.ActorRef[Any]], object]
    ) -> None:
        """Hold nothing yet.

        `watch` is called with each actor that comes in, to call `forget` when it has ended, and `unwatch` when it is
        reached no more. Where `watch` raises, the actor is not reached.
        """
        self._watch, self._unwatch = watch, unwatch
        self._lock = threading.Lock()
        self._names: dict[str, PublishedActor] = {}
        self._numbers: dict[int, PublishedActor] = {}
        self._actors: dict[str, dict[int, PublishedActor]] = {}
        """By the urn of an actor, and by number."""

    def __len__(self) -> int:
        """How many numbers there are."""
        return len(self._numbers)

    def publish(
        self,
        name: str,
        ref: pykka.ActorRef[Any],
        proxy: bool | Iterable[str] = False,
        acl: Iterable[str] | None = None,
    ) -> None:
        """Let other hosts reach an actor under a name. Raises as `NodeHost.publish` does."""
        check_name("name", name)
        if not ref.is_alive():
            raise ConfigError("ref", str(ref), "has ended: publish an actor that lives")
        attributes, allowed = reach_of(ref, proxy), _names_of(acl)
        with self._lock:
            before = self._names.get(name)
            if before is not None and before.ref.actor_urn == ref.actor_urn:
                number = before.number  # the references that others have remain of use
            elif before is not None and before.ref.is_alive():
                raise NameTaken(
                    name, str(before.ref), "it lives, so unpublish it first, or choose another name"
                )
            else:
                number = self._new_number()  # one that has ended keeps its own until `forget`
            self._put(PublishedActor(number, ref, name, attributes, allowed))

    def unpublish(self, name: str, ref: pykka.ActorRef[Any] | None = None) -> PublishedActor | None:
        """Take a name away, with `ref` only where that actor has it; return what had it.

        References that other hosts have to it are of no use from now on.
        """
        with self._lock:
            there = self._names.get(name)
            if there is None or (ref is not None and there.ref.actor_urn != ref.actor_urn):
                return None
            del self._names[name]
            self._drop(there)
        return there

    def export(self, ref: pykka.ActorRef[Any]) -> PublishedActor:
        """Return what other hosts are told of an actor of this host, which can be reached from now on.

        One that is published goes by its first name. Raises `SystemBusy` where `MAX_ACTORS` can be reached.
        """
        with self._lock:
            numbers = self._actors.get(ref.actor_urn)
            if numbers is not None:
                return next((each for each in numbers.values() if each.name), next(iter(numbers.values())))
            return self._put(PublishedActor(self._new_number(), ref))

    def _new_number(self) -> int:
        if len(self._numbers) >= MAX_ACTORS:
            raise SystemBusy(
                f"{MAX_ACTORS} actors of this host can be reached by others, and more are not allowed: unpublish some, or let "
                "those end that are named in messages"
            )
        return randbits(62)

    def _put(self, actor: PublishedActor) -> PublishedActor:
        urn = actor.ref.actor_urn
        if urn not in self._actors:
            self._watch(actor.ref)
        self._actors.setdefault(urn, {})[actor.number] = actor
        self._numbers[actor.number] = actor
        if actor.name:
            self._names[actor.name] = actor
        return actor

    def _drop(self, actor: PublishedActor) -> None:
        """Forget a number."""
        urn = actor.ref.actor_urn
        numbers = self._actors.get(urn, {})
        if numbers.pop(actor.number, None) is None:
            return
        self._numbers.pop(actor.number, None)
        if not numbers:
            del self._actors[urn]
            self._unwatch(actor.ref)

    def forget(self, urn: str) -> list[PublishedActor]:
        """Let an actor go that has ended, with its names; return how it was reached."""
        with self._lock:
            gone = list(self._actors.pop(urn, {}).values())
            for actor in gone:
                self._numbers.pop(actor.number, None)
                if self._names.get(actor.name) is actor:
                    del self._names[actor.name]
        return gone

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            known = [next(iter(numbers.values())).ref for numbers in self._actors.values()]
            self._names.clear()
            self._numbers.clear()
            self._actors.clear()
        for ref in known:
            self._unwatch(ref)

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
        """Return the published actors by name: a copy. One that has ended a moment ago may still be among them."""
        with self._lock:
            return {name: actor.ref for name, actor in self._names.items()}


def _names_of(acl: Iterable[str] | None) -> frozenset[str] | None:
    if acl is None:
        return None
    if isinstance(acl, str | bytes) or not isinstance(acl, Iterable):
        raise ConfigError("acl", acl, "must be a list of names in certificates, or None")
    names = list(acl)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError("acl", name, "must be a name in certificates, such as 'teller.example'")
    return frozenset(names)
