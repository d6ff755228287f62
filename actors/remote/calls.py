"""The door of this room: what a host does to publish its actors, and to call those of others.

    asking      a thread ──► refs, proxies ──► asking ──► links ──► the transport's lane for calls
    serving     the transport ──► serving ──► the actor's inbox ──► its answer ──► links ──► the transport
    answers     the transport ──► asking ──► the future of the question

Messages and answers are packed in the thread that sends them; all that comes in is unpacked in the thread of the host's loop.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import pykka
from drakkar.actors.remote.asking import Asking, seconds_of
from drakkar.actors.remote.deadlines import Deadlines
from drakkar.actors.remote.errors import HostGone
from drakkar.actors.remote.exports import Exports
from drakkar.actors.remote.links import Link, Links, Wire
from drakkar.actors.remote.published import Published
from drakkar.actors.remote.questions import Asked, settled
from drakkar.actors.remote.records import decode
from drakkar.actors.remote.refs import RemoteRef
from drakkar.actors.remote.replies import Replies
from drakkar.actors.remote.serving import Serving, takes_long
from drakkar.actors.runtime.futures import ActorFuture, brief, forbid_blocking
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorDied, unwatch, watch
from drakkar.handlers.checks import check_name
from drakkar.handlers.errors import ConfigError, DrakkarError, LoopError, TransportError
from drakkar.transport.addresses import canonical, peer_name
from drakkar.transport.liveness import HostState
from drakkar.transport.options import Options

__all__ = ["CallFigures", "Calls", "Transport"]

MAX_DESCRIBE_S: Final = 1.0
"""How long to wait for what a proxy reaches of an actor that was found: one that is only told and asked is of use without."""
LINGER_TICKS: Final = 100
"""Ticks for which heartbeats go on to a host of which nothing is waited for any more: else each question would begin and end them."""
_OVERHEAD: Final = 64
"""Bytes of a record beside its value, as far as that is not the path of an attribute."""


class Transport(Wire, Protocol):
    """What is used of `TcpTransport`. For the thread of the loop, but for `call_room` and what is said to be for any."""

    options: Options

    @property
    def address(self) -> str:
        """The address of this host. From any thread."""
        ...

    @property
    def run(self) -> int:
        """The nonce of this run. From any thread."""
        ...

    @property
    def certified(self) -> bool:
        """Whether hosts show certificates. From any thread."""
        ...

    def charge_calls(self, address: str, count: int) -> None:
        """So many of the records that are being handed over were of no use."""

    def is_certified_as(self, address: str, names: Iterable[str]) -> bool:
        """Return whether the host at an address has shown a certificate with one of these names."""
        ...

    def host_state(self, address: str) -> HostState:
        """Return whether a host that is watched is alive."""
        ...

    def reachable(self, address: str) -> bool:
        """Return whether a host is connected, or was not tried yet."""
        ...

    def watch_host(self, address: str) -> HostState:
        """Exchange heartbeats with a host, and keep the connection to it."""
        ...

    def unwatch_host(self, address: str) -> None:
        """End that."""

    def keep(self, addresses: Iterable[str]) -> None:
        """Keep the connections to these hosts, which wait for something, and to no others."""


class CallFigures(NamedTuple):
    """What the calls of a host come to now."""

    questions: int
    """Of this host to others, without an answer."""
    open_questions: int
    """Of others to actors here, without an answer."""
    watches: int
    """Actors of others that are watched here."""
    watchers: int
    """Actors here that others watch, counted for each of them."""
    published: int
    """Actors here that others can reach: by a name, or since they were named in a message."""


class Calls:
    """The remote calls of one host. From any thread, but for what the transport calls."""

    def __init__(self, transport: Transport, loop: TrioLoop, counters: Counter[str], lines: Lines) -> None:
        """`transport` knows its run already; it does not serve yet. `loop` runs."""
        self._transport, self._loop = transport, loop
        self._deadlines = Deadlines()
        self._links = Links(transport, loop, self._deadlines)
        self._published = Published(self._watch_soon, self._unwatch_soon)
        self._exports = Exports(transport, self._published)
        longest = max(1, transport.options.longest_call - _OVERHEAD)
        self.unknown_fields: Counter[str] = Counter()
        """Fields of messages that came and are not known here, by the names of the messages."""
        self._asking = Asking(
            self._links,
            self._exports,
            counters=counters,
            unknown_fields=self.unknown_fields,
            longest_value=longest,
        )
        self._exports.caller = self._asking
        replies = Replies(self._exports, longest, counters, lines)
        self._serving = Serving(self, self._published, self._exports, replies, self.unknown_fields)
        self._handlers: Mapping[type[Any], Callable[[Link, Any], bool]] = {
            **self._asking.handlers,
            **self._serving.handlers,
        }
        self._callers: dict[str, Link] = {}
        """By address: of the hosts that have a connection to this one. It holds their links."""
        self._attended: dict[str, int] = {}
        """The hosts that heartbeats are exchanged with for this room, and the tick in which something was waited for last."""
        self._kept: frozenset[str] = frozenset()
        """The hosts to which connections are kept, since they wait for this one. No heartbeats are exchanged for that: it is theirs to
        see whether this host lives, and strangers in any number are to cost no more than their connections."""
        self._ticks = 0
        self._closed = ""
        loop.spawn(self._deadlines.run, name="deadlines of calls")

    @property
    def run(self) -> int:
        """The nonce of this run of the host."""
        return self._transport.run

    def is_certified_as(self, address: str, names: Iterable[str]) -> bool:
        """See `Transport`."""
        return self._transport.is_certified_as(address, names)

    @property
    def figures(self) -> CallFigures:
        """What there is now."""
        links = self._links.all()
        return CallFigures(
            sum(link.questions for link in links),
            self._serving.questions,
            sum(len(link.watches) for link in links),
            self._serving.watches,
            len(self._published),
        )

    # ---- what users call: see `NodeHost`

    def publish(
        self,
        name: str,
        ref: pykka.ActorRef[Any],
        *,
        proxy: bool | Iterable[str] = False,
        acl: Iterable[str] | None = None,
    ) -> Callable[[], bool]:
        """See `NodeHost.publish`."""
        if isinstance(ref, pykka.ActorProxy):
            ref = ref.actor_ref
        if not isinstance(ref, pykka.ActorRef) or isinstance(ref, RemoteRef):
            raise ConfigError(
                "ref", brief(ref), "must be the reference of an actor of this process: what `start` returns"
            )
        if acl is not None and not self._transport.certified:
            raise ConfigError(
                "acl", acl, "only certificates tell hosts apart: give the hosts tls, or leave acl out"
            )
        self._check_open()
        actor = self._published.publish(name, ref, proxy, acl)
        if acl is not None:
            self._run_soon(self._serving.regranted, actor)
        return partial(self.unpublish, name, ref)

    def unpublish(self, name: str, ref: pykka.ActorRef[Any] | None = None) -> bool:
        """See `NodeHost.unpublish`. With `ref`: only where that actor has the name."""
        there = self._published.unpublish(name, ref)
        if there is not None:
            self._run_soon(self._serving.regranted, there)
        return there is not None

    @property
    def published(self) -> dict[str, pykka.ActorRef[Any]]:
        """See `NodeHost.published`."""
        return self._published.names()

    def remote(self, address: str, name: str, *, block: bool = True, timeout: float | None = None) -> Any:
        """See `NodeHost.remote`."""
        if block:
            forbid_blocking(f"remote({name!r:.100})", "block=False")
        asked = self._find(address, name, timeout)
        return asked.wait() if block else asked.future

    def remote_names(self, address: str, *, block: bool = True, timeout: float | None = None) -> Any:
        """See `NodeHost.remote_names`."""
        if block:
            forbid_blocking("remote_names()", "block=False")
        asked = self._list(address, timeout)
        return asked.wait() if block else asked.future

    def _find(self, address: str, name: str, timeout: float | None) -> Asked:
        if not self._is_here(address):
            return self._asking.look_up(address, name, timeout)
        check_name("name", name)
        seconds_of(timeout)
        try:
            return settled(self._published.by_name(name).ref)
        except DrakkarError as error:
            return settled(error=error)

    def _list(self, address: str, timeout: float | None) -> Asked:
        if not self._is_here(address):
            return self._asking.list_names(address, timeout)
        seconds_of(timeout)
        return settled(sorted(self.published))

    def _is_here(self, address: str) -> bool:
        return canonical(address) == canonical(self._transport.address)

    def place_of(self, ref: pykka.ActorRef[Any]) -> tuple[int, bytes]:
        """See `Exports`."""
        return self._exports.place_of(ref)

    def ref_of(self, place: bytes, timeout: float) -> ActorFuture[Any]:
        """Return a future of the reference for what `place_of` returned, on any host, with what a proxy reaches now.

        It is set within `timeout` seconds, and within `MAX_DESCRIBE_S`. Raises `ValueError` for what is no place.
        """
        ref = self._exports.ref_of(place)
        if isinstance(ref, RemoteRef) and ref.is_alive():
            return self._asking.describe(ref, min(timeout, MAX_DESCRIBE_S))
        return settled(ref).future

    # ---- the ends of actors that others reach

    def _watch_soon(self, ref: pykka.ActorRef[Any]) -> None:
        self._check_open()
        # In the loop's thread: it is this loop that looks for the ends of pykka's own actors.
        self._loop.run_soon(watch, ref, self._on_died)

    def _unwatch_soon(self, ref: pykka.ActorRef[Any]) -> None:
        self._run_soon(unwatch, ref, self._on_died)

    def _on_died(self, died: ActorDied) -> None:
        self._run_soon(self._end, died)

    def _end(self, died: ActorDied) -> None:
        actor = self._published.forget(died.ref.actor_urn)
        if actor is not None:
            self._serving.end_of(actor, died.reason)

    def _run_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Call a function in the loop's thread; it is not needed where the loop has ended."""
        with suppress(LoopError):
            self._loop.run_soon(fn, *args)

    # ---- the end of this host

    def _check_open(self) -> None:
        if self._closed:
            raise HostGone(self._closed)

    def close(self) -> None:
        """Fail all that is waited for, and take nothing more: the host stops."""
        self._closed = f"this host, {self._transport.address}, has stopped"
        self._links.close(self._closed)
        self._published.clear()

    # ---- what the transport calls, in the thread of the loop

    def called(self, address: str, rows: list[list[Any]]) -> None:
        """Records of another host have come. Raises `FrameError` for one that no host sends, after the ones before it."""
        link = self._links.of(address)
        link.heard = link.incoming = True
        useless, slow = 0, False
        try:
            for row in rows:
                record = decode(row)
                slow = slow or takes_long(record)
                handler = self._handlers.get(type(record))
                if handler is None or not handler(link, record):
                    useless += 1
        finally:
            if useless or slow:
                self._transport.charge_calls(address, len(rows) if slow else useless)

    def handed_back(self, address: str, records: list[bytes], why: TransportError) -> None:
        """Records have not left this host."""
        link = self._links.known(address)
        if link is not None:
            link.handed_back(records, why)

    def greeted(self, address: str) -> None:
        """A host has opened a connection to this one, perhaps in place of another: what came on that one is no more use to it."""
        link = self._links.of(address)
        self._serving.lost(link.address)
        if link.incoming:
            link.lost(f"{address} connected anew")
        link.incoming = True
        self._callers[link.address] = link

    def parted(self, address: str) -> None:
        """The connection that a host had opened has ended."""
        self._callers.pop(peer_name(address), None)
        self._lost(address, f"the connection from {address} was lost")

    def unreachable(self, address: str) -> None:
        """The connection to a host has ended, or could not be made."""
        self._lost(address, f"the connection to {address} was lost")

    def _lost(self, address: str, why: str) -> None:
        self._serving.lost(peer_name(address))
        link = self._links.known(address)
        if link is not None:
            link.lost(why)

    def tick(self) -> None:
        """Look after the hosts that something is waited for: whether they live, and which of them wait for this one."""
        self._ticks += 1
        self._serving.tick()
        self._links.let_go()
        links = self._links.all()
        for link in links:
            if link.waits and self._hangs(link.address):
                link.lost(f"{link.address}, which answers no heartbeats, was taken for dead", hangs=True)
            if link.waits:
                self._attend(link.address)
        self._keep(frozenset(link.address for link in links if self._serving.waits(link.address)))
        for address, last in list(self._attended.items()):
            if self._ticks - last > LINGER_TICKS:
                del self._attended[address]
                self._transport.unwatch_host(address)

    def _keep(self, addresses: frozenset[str]) -> None:
        if addresses != self._kept:
            self._kept = addresses
            self._transport.keep(addresses)

    def _hangs(self, address: str) -> bool:
        """Return whether a host is connected and does not answer.

        What is for one without a connection has not left, and the next attempt to connect will tell what becomes of it. That may succeed,
        as the host may have been started again.
        """
        return self._transport.host_state(address) is HostState.DEAD and self._transport.reachable(address)

    def _attend(self, address: str) -> None:
        if address not in self._attended:
            self._transport.watch_host(address)
        self._attended[address] = self._ticks
