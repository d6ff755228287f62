"""The door of this room: what a host does to publish its actors, and to call those of others.

    asking      a thread ──► refs, proxies ──► links ──► the transport's lane for calls
    serving     the transport ──► serving ──► the actor's inbox ──► its answer ──► links ──► the transport
    answers     the transport ──► links ──► the future of the question

Messages are packed and answers to others are packed in the thread of whoever sends them; all that comes in is unpacked in the thread
of the host's loop.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import pykka
import trio
from drakkar.actors.remote.failures import decode_failure
from drakkar.actors.remote.links import SLOT_S, Deadlines, Link, Question, Wire
from drakkar.actors.remote.proxies import RemoteProxy
from drakkar.actors.remote.published import Published, PublishedActor
from drakkar.actors.remote.records import (
    Answer,
    Ask,
    Attributes,
    Call,
    Died,
    Failed,
    FailKind,
    Get,
    Lookup,
    Names,
    Record,
    Set,
    Target,
    Tell,
    Unwatch,
    Watch,
    attributes_of,
    check_name,
    class_name,
    decode,
    decode_found,
    decode_names,
    plain_attributes,
    to_milliseconds,
)
from drakkar.actors.remote.refs import DEFAULT_ASK_S, Place, RemoteRef
from drakkar.actors.remote.serving import Serving
from drakkar.actors.remote.values import pack, unpack
from drakkar.actors.runtime.futures import ActorFuture, brief
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import watch
from drakkar.handlers.checks import check_number, is_whole
from drakkar.handlers.errors import ConfigError, DrakkarError, TransportError
from drakkar.transport.addresses import canonical, peer_name
from drakkar.transport.frames import FrameError
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

__all__ = ["Calls", "Transport"]

MAX_TIMEOUT_S: Final = 86_400.0 * 365
_PROXIED: Final = (ProxyCall, ProxyGetAttr, ProxySetAttr)
_EXPORTED_FIELDS: Final = 6


class Transport(Wire, Protocol):
    """See `TcpTransport`. For the thread of the loop, but for `call_room` and `address`."""

    @property
    def address(self) -> str:
        """The address of this host."""
        ...

    @property
    def run(self) -> int:
        """The nonce of this run."""
        ...

    @property
    def certified(self) -> bool:
        """Whether hosts show certificates."""
        ...

    def charge(self, address: str, count: int) -> None:
        """So many records of a host were of no use."""

    def is_certified_as(self, address: str, names: Iterable[str]) -> bool:
        """Return whether the host at an address has shown a certificate with one of these names."""
        ...

    def watch_host(self, address: str) -> None:
        """Notice soon when the host dies, and keep the connection to it."""

    def unwatch_host(self, address: str) -> None:
        """End that."""


class Calls:
    """The remote calls of one host. From any thread, but for what the transport calls."""

    def __init__(
        self, transport: Transport, loop: TrioLoop, counters: Counter[str], lines: Lines
    ) -> None:
        self._transport, self._loop = transport, loop
        self._counters, self._lines = counters, lines
        self._published = Published(self._watch_published)
        self._serving: Serving | None = None
        self._links: dict[str, Link] = {}
        """By the canonical address."""
        self._watched_hosts: set[str] = set()
        self._late = trio.Event()
        """There are questions with a deadline."""
        self._deadlines = Deadlines(self._wake)

    def start(self) -> None:
        """Serve other hosts, once this one knows its run and its address. In the thread of the loop."""
        self._serving = Serving(
            self._transport.run, self._published, self, self, self._counters, self._lines
        )
        self._loop.spawn(self._watch_deadlines, name="deadlines of calls")

    # ---- names

    def publish(
        self,
        name: str,
        ref: pykka.ActorRef[Any],
        proxy: bool | Iterable[str] = False,
        acl: Iterable[str] | None = None,
    ) -> None:
        """See `NodeHost.publish`."""
        if isinstance(ref, pykka.ActorProxy):
            ref = ref.actor_ref
        if not isinstance(ref, pykka.ActorRef) or isinstance(ref, RemoteRef):
            raise ConfigError("ref", brief(ref), "publish the reference of an actor of this process: what `start` returns")
        if acl is not None and not self._transport.certified:
            raise ConfigError("acl", acl, "only certificates tell hosts apart: give the hosts tls, or leave acl out")
        if isinstance(acl, str):
            raise ConfigError("acl", acl, "a list of names in certificates")
        self._published.publish(name, ref, proxy, acl)

    def unpublish(self, name: str) -> bool:
        """See `NodeHost.unpublish`."""
        return self._published.unpublish(name)

    @property
    def published(self) -> dict[str, pykka.ActorRef[Any]]:
        """See `NodeHost.published`."""
        return self._published.names()

    def _watch_published(self, actor: PublishedActor) -> None:
        watch(actor.ref, lambda died: self._loop.run_soon(self._forget, actor))

    def _forget(self, actor: PublishedActor) -> None:
        self._published.forget(actor)
        if self._serving is not None:
            self._serving.end_of(actor)

    def find(self, address: str, name: str, timeout: float | None) -> ActorFuture[pykka.ActorRef[Any]]:
        """See `NodeHost.remote`."""
        check_name("name", name)
        link = self._link(address)
        if self._is_here(address):
            found: ActorFuture[pykka.ActorRef[Any]] = ActorFuture()
            try:
                found.set(self._published.by_name(name).ref)
            except DrakkarError as error:
                found.fail(error)
            return found

        def read(value: bytes) -> RemoteRef:
            there = decode_found(value)
            place = Place(address, there.target.run, there.target.number)
            return RemoteRef(self, place, name=name, class_name=there.cls, attributes=there.attributes)

        number = link.number()
        return self._question(link, Lookup(number, name), number, timeout, f"{name!r} at {address}", read)

    def names(self, address: str, timeout: float | None) -> ActorFuture[list[str]]:
        """See `NodeHost.remote_names`."""
        if self._is_here(address):
            here: ActorFuture[list[str]] = ActorFuture()
            here.set(sorted(self.published))
            return here
        link = self._link(address)
        number = link.number()
        return self._question(link, Names(number), number, timeout, f"the host at {address}", lambda value: sorted(decode_names(value)))

    def _is_here(self, address: str) -> bool:
        return canonical(address) == canonical(self._transport.address)

    def _link(self, address: str) -> Link:
        name = peer_name(address)
        link = self._links.get(name)
        if link is None:
            made = Link(canonical(address), self._transport, self._loop, self._deadlines)
            link = self._links.setdefault(name, made)
        return link

    # ---- what references ask: see `refs.Caller`

    def tell(self, ref: RemoteRef, message: Any) -> None:
        """Send a message without an answer."""
        if not ref.is_alive():
            raise pykka.ActorDeadError(f"{ref} has ended")
        link, target = self._link(ref.place.address), _target(ref)
        if isinstance(message, ProxyCall):
            args, kwargs = pack(list(message.args), self, what="args"), pack(message.kwargs, self, what="kwargs")
            link.put(Call(0, target, 0, tuple(message.attr_path), args, kwargs))
        else:
            link.put(Tell(target, pack(message, self)))

    def ask(self, ref: RemoteRef, message: Any, timeout: float | None) -> ActorFuture[Any]:
        """Send a message with an answer. What it raises is of the caller's making; all else goes into the future."""
        if not ref.is_alive():
            dead: ActorFuture[Any] = ActorFuture()  # as pykka does it
            dead.fail(pykka.ActorDeadError(f"{ref} has ended"))
            return dead
        link = self._link(ref.place.address)
        number = link.number()
        record = self._asking(number, _target(ref), to_milliseconds(_seconds(timeout)), message)
        return self._question(link, record, number, timeout, str(ref), self._read_answer, ref)

    def _asking(self, number: int, target: Target, milliseconds: int, message: Any) -> Record:
        match message:
            case ProxyCall():
                args, kwargs = pack(list(message.args), self, what="args"), pack(message.kwargs, self, what="kwargs")
                return Call(number, target, milliseconds, tuple(message.attr_path), args, kwargs)
            case ProxyGetAttr():
                return Get(number, target, milliseconds, tuple(message.attr_path))
            case ProxySetAttr():
                return Set(number, target, milliseconds, tuple(message.attr_path), pack(message.value, self, what="value"))
            case _:
                return Ask(number, target, milliseconds, pack(message, self))

    def _read_answer(self, value: bytes) -> Any:
        return unpack(value, self, what="answer", dropped=self._counters)

    def _question(
        self,
        link: Link,
        record: Record,
        number: int,
        timeout: float | None,
        what: str,
        read: Callable[[bytes], Any],
        ref: RemoteRef | None = None,
    ) -> ActorFuture[Any]:
        question = Question(number, _seconds(timeout), what, read, ref)
        link.put(record, question)
        return question.future

    def answer_of(self, ref: RemoteRef, future: ActorFuture[Any], timeout: float | None) -> Any:
        """Wait for an answer, exactly as long as it was said: what nobody waits for may end a little later."""
        try:
            return future.get(timeout=_seconds(timeout))
        except pykka.Timeout:
            if future.done:
                return future.get()  # it has come a moment later; or this is the answer
            raise self._link(ref.place.address).late(str(ref)) from None

    def watch(self, ref: RemoteRef) -> None:
        """Have the host of an actor tell of its end."""
        link = self._link(ref.place.address)
        number = link.number()
        link.watched[number] = ref
        try:
            link.put(Watch(number, _target(ref)))
        except DrakkarError as error:
            link.watched.pop(number, None)
            ref.termination.lost(error)

    def unwatch(self, ref: RemoteRef) -> None:
        """The end of an actor is of no interest any more."""
        link = self._link(ref.place.address)
        for number, watched in list(link.watched.items()):
            if watched is ref and link.watched.pop(number, None) is not None:
                link.put(Unwatch(number))

    # ---- references in messages: see `values.Refs`

    def export(self, value: Any) -> list[Any] | None:
        """Return what stands for a reference in a message."""
        if isinstance(value, (pykka.ActorProxy, RemoteProxy)):
            value = value.actor_ref
        if isinstance(value, RemoteRef):
            place, attributes = value.place, plain_attributes(value.attributes)
            name, cls = value.name, value.actor_class.__name__
            return [place.address, place.run, place.number, name, class_name(cls), attributes]
        if isinstance(value, pykka.ActorRef):
            actor = self._published.export(value)
            attributes = plain_attributes(actor.attributes)
            cls = class_name(value.actor_class.__name__)
            return [self._transport.address, self._transport.run, actor.number, actor.name, cls, attributes]
        return None

    def import_(self, exported: list[Any]) -> pykka.ActorRef[Any]:
        """Return the reference that came in a message."""
        if len(exported) != _EXPORTED_FIELDS:
            raise FrameError("a reference is no list of six fields")
        address, run, number, name, cls, attributes = exported
        if not (is_whole(run) and is_whole(number) and all(type(text) is str for text in (address, name, cls))):
            raise FrameError("a reference has a field of another type")
        if run == self._transport.run and (actor := self._published.by_number(number)) is not None:
            return actor.ref
        place = Place(canonical(address), run, number)
        return RemoteRef(self, place, name=name, class_name=cls, attributes=attributes_of(attributes))

    # ---- what serving asks: see `serving.Replies`

    def send(self, address: str, record: Record) -> None:
        """Send an answer."""
        self._link(address).put(record)

    def is_allowed(self, address: str, actor: PublishedActor) -> bool:
        """Return whether a host may reach an actor."""
        return actor.acl is None or self._transport.is_certified_as(address, actor.acl)

    # ---- what the transport calls, in the thread of the loop

    def called(self, address: str, rows: list[list[Any]]) -> None:
        """Records of another host have come."""
        serving = self._serving
        assert serving is not None, "it is started before the transport"
        link = self._link(address)
        link.heard = True
        useless = 0
        for row in rows:
            record = decode(row)
            match record:
                case Answer() | Failed():
                    useless += not self._hear_answer(link, record)
                case Died():
                    useless += not self._hear_end(link, record)
                case None:
                    useless += 1
                case _:
                    useless += not serving.hear(link.address, record)
        if useless:
            self._transport.charge(address, useless)
        self._watch_host(link)

    def _hear_answer(self, link: Link, record: Answer | Failed) -> bool:
        question = link.answered(record.question)
        if question is None:
            self._counters["remote answers that came too late"] += 1
            return False
        if isinstance(record, Answer):
            try:
                question.future.try_set(question.read(record.value))
            except DrakkarError as error:
                question.future.try_fail(error)
            return True
        error = decode_failure(record.failure, self)
        if record.kind is FailKind.DEAD and question.ref is not None:
            question.ref.actor_stopped.set()
        question.future.try_fail(error)
        return True

    def _hear_end(self, link: Link, record: Died) -> bool:
        ref = link.watched.pop(record.watch, None)
        if ref is None:
            return False
        ref.termination.ended(None if record.reason is None else decode_failure(record.reason, self))
        return True

    def handed_back(self, address: str, records: list[bytes], why: TransportError) -> None:
        """Records have not left this host."""
        self._link(address).handed_back(records, why)

    def lost(self, address: str, why: str) -> None:
        """A connection to or from a host has ended, or the host is dead."""
        link = self._links.get(peer_name(address))
        if self._serving is not None:
            self._serving.lost(canonical(address))
        if link is not None:
            link.lost(why)
            self._watch_host(link)

    def tick(self) -> None:
        """Let hosts go that nothing is waited for, and that wait for nothing."""
        for name, link in list(self._links.items()):
            self._watch_host(link)
            if link.idle and link.address not in self._watched_hosts:
                del self._links[name]

    def _watch_host(self, link: Link) -> None:
        waits = not link.idle or (self._serving is not None and self._serving.waits(link.address))
        if waits and link.address not in self._watched_hosts:
            self._watched_hosts.add(link.address)
            self._transport.watch_host(link.address)
        elif not waits and link.address in self._watched_hosts:
            self._watched_hosts.discard(link.address)
            self._transport.unwatch_host(link.address)

    # ---- deadlines

    def _wake(self) -> None:
        self._late.set()

    async def _watch_deadlines(self) -> None:
        while True:
            await self._late.wait()
            while self._deadlines:
                await trio.sleep(SLOT_S)
                self._deadlines.end_late(time.monotonic())
            self._late = trio.Event()


def _target(ref: RemoteRef) -> Target:
    return Target(ref.place.run, ref.place.number)


def _seconds(timeout: float | None) -> float:
    if timeout is None:
        return DEFAULT_ASK_S
    check_number("timeout", timeout, 0.0, MAX_TIMEOUT_S)
    return timeout
