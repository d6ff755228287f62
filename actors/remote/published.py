"""What other hosts can reach of this one: its published actors, and those that were named in a message.

An actor that is reached has a number, which no other has in this run of the host, and under which all references to it go. So an
actor that is restarted under the same name is another one. Numbers are drawn at random from 2**62: who was not told one, by a name or
in a message, cannot reach the actor.

What another host may do with an actor is what the actor's names grant it, however it got the reference: each name has an `acl`, and a
reach of proxies. An actor without a name may be told and asked by all who were told of it.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from secrets import randbits
from typing import Any, Final

import pykka
from drakkar.actors.remote.errors import NameTaken, UnknownName
from drakkar.actors.remote.reach import reach_of
from drakkar.actors.remote.records import Attributes
from drakkar.handlers.checks import check_name
from drakkar.handlers.errors import ConfigError, SystemBusy

__all__ = ["MAX_ACTORS", "Grant", "Published", "PublishedActor"]

MAX_ACTORS: Final = 100_000
"""Actors of a host that others can reach, and names that they have."""
MAX_NAMES_OF_ONE: Final = 100
"""Of these names, of one actor: all are looked at for each message to it."""
_NAMELESS: Final = ""
"""Stands among the names of an actor for the references to it that were given out under none."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a name lets other hosts do with its actor, beside to tell and ask it."""

    attributes: Attributes = field(default_factory=dict)
    """What a proxy reaches."""
    acl: frozenset[str] | None = None
    """Names of which a host must have shown one in its certificate; None: it is for all hosts."""


@dataclass(frozen=True, slots=True, eq=False)
class PublishedActor:
    """One actor of this host that others can reach, as it is at the moment."""

    number: int
    ref: pykka.ActorRef[Any]
    grants: Mapping[str, Grant]
    """By name, in the order in which these were given."""

    def __str__(self) -> str:
        kind = self.ref.actor_class.__name__
        return f"{kind} {self.name!r}" if self.name else kind

    @property
    def name(self) -> str:
        """By which references in messages go: the first that is for all hosts, or else the first. Empty where there is none."""
        names = [name for name in self.grants if name]
        return next((name for name in names if self.grants[name].acl is None), "".join(names[:1]))

    @property
    def attributes(self) -> Attributes:
        """What a proxy reaches by that name."""
        return self.grants[self.name].attributes

    def granted_to(self, is_certified_as: Callable[[frozenset[str]], bool]) -> list[Grant]:
        """Return what a host is granted, which has shown a certificate with one of these names, or not. Nothing: it is kept out."""
        grants = [grant for name, grant in self.grants.items() if name] or self.grants.values()
        return [grant for grant in grants if grant.acl is None or is_certified_as(grant.acl)]


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
        self._names: dict[str, int] = {}
        """The numbers of actors by their names."""
        self._numbers: dict[int, PublishedActor] = {}
        self._actors: dict[str, PublishedActor] = {}
        """By urn."""

    def __len__(self) -> int:
        """How many actors can be reached."""
        return len(self._numbers)

    def publish(
        self,
        name: str,
        ref: pykka.ActorRef[Any],
        proxy: bool | Iterable[str] = False,
        acl: Iterable[str] | None = None,
    ) -> PublishedActor:
        """Let other hosts reach an actor under a name. Raises as `NodeHost.publish` does."""
        check_name("name", name)
        if not ref.is_alive():
            raise ConfigError("ref", str(ref), "has ended: publish an actor that lives")
        attributes, allowed = reach_of(ref, proxy), _names_of(acl)
        with self._lock:
            before = self._named(name)
            if before is not None and before.ref.actor_urn != ref.actor_urn and before.ref.is_alive():
                raise NameTaken(
                    name, str(before.ref), "it lives, so unpublish it first, or choose another name"
                )
            if before is None and len(self._names) >= MAX_ACTORS:
                raise SystemBusy(
                    f"actors of this host have {MAX_ACTORS} names, and more are not allowed: unpublish some"
                )
            there = self._actors.get(ref.actor_urn)
            if there is not None and name not in there.grants and len(there.grants) >= MAX_NAMES_OF_ONE:
                raise SystemBusy(
                    f"{there} has {MAX_NAMES_OF_ONE} names, and more are not allowed: unpublish some of them"
                )
            actor = self._grant(ref, name, Grant(attributes, allowed))
            self._names[name] = actor.number
        return actor

    def unpublish(self, name: str, ref: pykka.ActorRef[Any] | None = None) -> PublishedActor | None:
        """Take a name away, with `ref` only where that actor has it; return what had it, as it was.

        References to the actor are of use to those whom another of its names lets in, or to all who were told of it without a name, but
        for those whom the last name has kept out. Where there is no other name and no such reference, the actor is reached no more: if it is
        published again, it is another one for other hosts.
        """
        with self._lock:
            there = self._named(name)
            if there is None or (ref is not None and there.ref.actor_urn != ref.actor_urn):
                return None
            del self._names[name]
            grants = dict(there.grants)
            last = grants.pop(name)
            if grants.keys() == {_NAMELESS}:
                grants[_NAMELESS] = Grant(acl=last.acl)
            if grants:
                self._put(replace(there, grants=grants))
            else:
                self._drop(there)
        return there

    def export(self, ref: pykka.ActorRef[Any], *, lasting: bool = False) -> PublishedActor:
        """Return what other hosts are told of an actor of this host, which can be reached from now on.

        One without a name can be reached until it ends; one with a name until that is taken away, or, if `lasting`, until it ends too.
        Raises `SystemBusy` where `MAX_ACTORS` can be reached.
        """
        with self._lock:
            there = self._actors.get(ref.actor_urn)
            if there is None or (lasting and _NAMELESS not in there.grants):
                there = self._grant(ref, _NAMELESS, Grant())
        return there

    def _named(self, name: str) -> PublishedActor | None:
        number = self._names.get(name)
        return None if number is None else self._numbers.get(number)

    def _grant(self, ref: pykka.ActorRef[Any], name: str, grant: Grant) -> PublishedActor:
        there = self._actors.get(ref.actor_urn)
        if there is None:
            there = PublishedActor(self._new_number(), ref, {})
            self._watch(ref)
        return self._put(replace(there, grants={**there.grants, name: grant}))

    def _new_number(self) -> int:
        if len(self._numbers) >= MAX_ACTORS:
            raise SystemBusy(
                f"{MAX_ACTORS} actors of this host can be reached by others, and more are not allowed: unpublish some, or let "
                "those end that are named in messages"
            )
        return randbits(62)

    def _put(self, actor: PublishedActor) -> PublishedActor:
        self._actors[actor.ref.actor_urn] = self._numbers[actor.number] = actor
        return actor

    def _drop(self, actor: PublishedActor) -> None:
        del self._actors[actor.ref.actor_urn], self._numbers[actor.number]
        self._unwatch(actor.ref)

    def forget(self, urn: str) -> PublishedActor | None:
        """Let an actor go that has ended, with its names; return how it was reached."""
        with self._lock:
            gone = self._actors.pop(urn, None)
            if gone is not None:
                del self._numbers[gone.number]
                for name in gone.grants:
                    if self._names.get(name) == gone.number:
                        del self._names[name]
        return gone

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            known = [actor.ref for actor in self._actors.values()]
            self._names.clear()
            self._numbers.clear()
            self._actors.clear()
        for ref in known:
            self._unwatch(ref)

    def by_name(self, name: str) -> PublishedActor:
        """Return the actor with a name. Raises `UnknownName`."""
        there = self._named(name)
        if there is None or name not in there.grants or not there.ref.is_alive():
            raise UnknownName(f"no actor is published as {name!r}")
        return there

    def by_number(self, number: int) -> PublishedActor | None:
        """Return the actor with a number; None where it has ended, or was unpublished."""
        return self._numbers.get(number)

    def names(self) -> dict[str, pykka.ActorRef[Any]]:
        """Return the published actors by name: a copy. One that has ended a moment ago may still be among them."""
        with self._lock:
            return {name: self._numbers[number].ref for name, number in self._names.items()}


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
