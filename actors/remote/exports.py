"""References to actors in messages: as plain values, and back.

A reference travels as what another host needs to reach the actor: [address, run, number, name, class, what a proxy reaches]. It may be
sent on to a third host, and comes out as the actor's own reference at its home.
"""

from typing import Any, Final, Protocol

import cbor2
import pykka
from drakkar.actors.remote.proxies import RemoteProxy
from drakkar.actors.remote.published import Published
from drakkar.actors.remote.records import attributes_of, class_name, plain_attributes
from drakkar.actors.remote.refs import Caller, Place, RemoteRef
from drakkar.actors.runtime.futures import brief
from drakkar.handlers import cbor
from drakkar.handlers.checks import check_name, is_whole
from drakkar.handlers.errors import ConfigError, DrakkarError
from drakkar.transport.addresses import canonical, peer_name
from drakkar.transport.frames import FrameError

__all__ = ["Exports"]

_FIELDS: Final = 6
_DEPTH: Final = 2
"""Of the lists in a reference."""


class Home(Protocol):
    """What is used of the host. From any thread."""

    @property
    def address(self) -> str:
        """By which others reach it."""
        ...

    @property
    def run(self) -> int:
        """The nonce of this run."""
        ...


class Exports:
    """Turns references into plain values and back: see `values.Refs`. From any thread."""

    def __init__(self, home: Home, published: Published) -> None:
        self._home, self._published = home, published
        self.caller: Caller
        """What references are made with; to be set before any is."""

    def export(self, value: Any) -> list[Any] | None:
        """See `values.Refs`. An actor of this host can be reached by others from now on."""
        if isinstance(value, pykka.ActorProxy | RemoteProxy):
            value = value.actor_ref
        if isinstance(value, RemoteRef):
            place = value.place
            names = (value.name, class_name(value.class_name), plain_attributes(value.attributes))
            return [place.address, place.run, place.number, *names]
        if isinstance(value, pykka.ActorRef):
            actor = self._published.export(value)
            names = (actor.name, class_name(value.actor_class.__name__), plain_attributes(actor.attributes))
            return [self._home.address, self._home.run, actor.number, *names]
        return None

    def import_(self, exported: list[Any]) -> pykka.ActorRef[Any]:
        """See `values.Refs`."""
        if len(exported) != _FIELDS:
            raise FrameError(f"a reference has {len(exported)} fields, and not {_FIELDS}")
        address, run, number, name, cls, attributes = exported
        if not (type(address) is str and is_whole(run) and is_whole(number)):
            raise FrameError("a reference does not begin with an address and two numbers")
        if name != "":
            check_name("name", name)
        check_name("class", cls)
        place = Place(canonical(address), run, number)
        if run == self._home.run and (actor := self._published.by_number(number)) is not None:
            return actor.ref
        ref = RemoteRef(self.caller, place, name=name, class_name=cls, attributes=attributes_of(attributes))
        if place.address == peer_name(self._home.address):
            # Of this run, or an earlier one. No need to ask this host itself.
            ref.termination.ended(pykka.ActorDeadError(f"{ref} has ended"))
        return ref

    # ---- for directories of names

    def place_of(self, ref: pykka.ActorRef[Any]) -> tuple[int, bytes]:
        """Return the number of an actor of this host in this run of it, and how others reach it until it ends, as bytes.

        It has a bound, since it does not tell what a proxy reaches, which may change too. Raises `ConfigError` for an actor of another host, and for one that has ended.
        """
        if not isinstance(ref, pykka.ActorRef) or isinstance(ref, RemoteRef) or not ref.is_alive():
            raise ConfigError(
                "ref", brief(ref), "must be the reference of an actor of this process that lives"
            )
        actor = self._published.export(ref, lasting=True)
        name, cls = actor.name, class_name(ref.actor_class.__name__)
        return actor.number, cbor2.dumps([self._home.address, self._home.run, actor.number, name, cls])

    def ref_of(self, place: bytes) -> pykka.ActorRef[Any]:
        """Return the reference for what `place_of` has returned, on any host. Raises `ValueError` for what it has not.

        For an actor of another host it does not tell what a proxy reaches: see `Asking.describe`.
        """
        exported = cbor.loads(place, _DEPTH)
        if type(exported) is not list:
            raise ValueError("the place of an actor is no list")
        try:
            return self.import_([*exported, []])
        except DrakkarError as error:
            raise ValueError(f"the place of an actor cannot be used: {error}") from error
