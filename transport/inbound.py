"""The connections that other hosts open to this one: admission, and what comes over them."""

import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import trio
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message
from drakkar.transport.addresses import canonical
from drakkar.transport.admission import Admission, AdmittedConnection, PendingConnection, Stage
from drakkar.transport.budgets import Work
from drakkar.transport.callers import Caller, CallerFrames
from drakkar.transport.connection import Connection
from drakkar.transport.entrance import Entrance
from drakkar.transport.frames import FrameError, FrameKind
from drakkar.transport.hello import FullError, Hello, Identity, RefusedError, encode_hello, encode_reason
from drakkar.transport.incoming_streams import IncomingStreams
from drakkar.transport.known_hosts import KnownHosts
from drakkar.transport.liveness import Liveness
from drakkar.transport.options import Counters, Log, Options
from drakkar.transport.records import Records
from drakkar.transport.reminders import Reminders, and_others
from drakkar.transport.resolver import Resolver
from drakkar.transport.shard_frames import ShardHello
from drakkar.transport.sockets import track
from drakkar.transport.tls import Tls

__all__ = ["Inbound"]


class Inbound:
    """All connections that other hosts open to this one. For the trio loop's thread only.

    `connected` is called with the canonical address of a caller whose connection for messages was accepted, and `redial`
    with that of one that is to be dialed at once, since it may be gone. For the other arguments see `TcpTransport`.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        resolver: Resolver,
        identity: Callable[[], Identity],
        options: Options,
        counters: Counters,
        tls: Tls | None,
        log: Log,
        streams: IncomingStreams,
        known: KnownHosts,
        liveness: Liveness,
        work: Work,
        deliver: Callable[[str, list[Message]], None],
        connected: Callable[[str], None],
        redial: Callable[[str], None],
        greeted: Callable[[str, str], None],
        parted: Callable[[str, bool], None],
        introduced: Callable[[str, ShardHello], None],
        frames: Mapping[int, Callable[[str, memoryview], None]],
        called: Callable[[str, list[list[Any]]], None] | None,
        start_soon: Callable[..., None],
    ) -> None:
        self._identity, self._options, self._counters, self._tls = identity, options, counters, tls
        self._log = log
        self._streams, self._connected = streams, connected
        self._liveness, self._redial = liveness, redial
        self._greeted, self._parted = greeted, parted
        self.frames = CallerFrames(
            options=options,
            counters=counters,
            log=log,
            work=work,
            deliver=deliver,
            introduced=introduced,
            frames=frames,
            called=called,
            liveness=liveness,
            start_soon=start_soon,
        )
        self._known = known
        self._reminders = Reminders()
        self._callers: dict[str, Caller] = {}
        self._admission, self._resolver = admission, resolver

    async def run(self, listeners: Sequence[socket.socket]) -> None:
        """Accept connections and serve them, until cancelled; then the listeners are closed."""
        entrance = Entrance(
            admission=self._admission,
            options=self._options,
            source_of=self._resolver.source_of,
            serve=self.accept,
            warn=self._warn,
            tls=self._tls is not None,
        )
        await entrance.run(listeners)

    def has(self, name: str) -> bool:
        """Return whether the host at a canonical address has a connection for messages to this one."""
        return name in self._callers

    def is_at_home(self, address: str) -> bool:
        """See `TcpTransport`."""
        caller = self._callers.get(canonical(address))
        return caller is not None and caller.at_home

    def proves(self, speaker: str, address: str) -> bool:
        """See `TcpTransport.proves`."""
        caller = self._callers.get(canonical(speaker))
        return caller is not None and caller.connection.proves(address)

    def is_certified_as(self, address: str, names: Iterable[str]) -> bool:
        """See `TcpTransport`."""
        caller = self._callers.get(canonical(address))
        return caller is not None and caller.connection.is_certified_as(names)

    def drop_gone(self, name: str) -> None:
        """Close a connection that says it is of a run which is gone. A host that lives comes again, and is asked then."""
        caller = self._callers.get(name)
        if caller is not None and self._liveness.is_gone(caller.hello):
            caller.give_up()

    async def accept(
        self, stream: trio.SocketStream, pending: PendingConnection, scope: trio.CancelScope
    ) -> None:
        """Serve one inbound connection until it closes. Its errors never stop the listener.

        `scope` ends when one that has not introduced itself is evicted, and when its time is over.
        """
        track(stream.socket)
        secure: trio.abc.Stream = stream
        if self._tls is not None:
            secure = trio.SSLStream(
                Records(stream), self._tls.credentials.server, server_side=True, https_compatible=True
            )
        connection = Connection(secure, self._counters, self._options.frame_limit, self._tls)
        source = _remote_address(stream)
        try:
            await self._serve(connection, source, pending, scope)
        except TransportError as error:
            await self._report(connection, source, error)
        except Exception:  # noqa: BLE001  # logged; one connection must not stop the listener
            self._counters.failed += 1
            self._log.exception("this host failed to handle what %s sent, and closes the connection", source)
        finally:
            self._admission.leave(pending)
            await connection.close()

    async def _serve(
        self, connection: Connection, source: str, pending: PendingConnection, scope: trio.CancelScope
    ) -> None:
        with scope:
            hello, admitted = await self._admit(connection, pending)
        if scope.cancelled_caught:
            raise pending.evicted or self._admission.count_late(self._options.introduce_timeout)
        self._admission.leave(pending)
        try:
            is_member = partial(self._admission.is_member, admitted)
            if hello.stream:
                with self._noted(connection, hello, at_home=admitted.at_home):
                    await self._streams.receive(connection, hello.address, member=is_member())
                return
            self._counters.accepted += 1
            self._log_connected(admitted, hello.address, source)
            caller = self.frames.caller(connection, hello, is_member, at_home=admitted.at_home)
            await self._read(caller)
        finally:
            admitted.leave()

    async def _admit(
        self, connection: Connection, pending: PendingConnection
    ) -> tuple[Hello, AdmittedConnection]:
        """Exchange introductions, and return the caller's, and its place.

        Raises `RefusedError` where the caller is refused, and `FullError` where there is no place for it.
        """
        identity = self._identity()
        try:
            await connection.secure()
        finally:
            pending.spend(connection.handshake_seconds)
        if self._tls is not None:
            self._admission.advance(pending, Stage.SECURED)
        hello = await connection.read_hello()
        connection.check_name(hello.address)
        if objection := identity.objection_to_caller(hello):
            raise RefusedError(objection, "introduction")
        at_home = connection.proves(hello.address) or await self._resolver.comes_from(
            hello.address, pending.ip
        )
        admitted = self._admission.admit(
            canonical(hello.address), pending.source, at_home=at_home, stream=hello.stream
        )
        try:
            await self._known.admit(hello, connection.may_be, at_home=at_home)
            self._check_alive(hello)
            await connection.write(encode_hello(identity.hello(hello.dialed)), self._options.connect_timeout)
        except BaseException:
            admitted.leave()
            raise
        return hello, admitted

    def _check_alive(self, hello: Hello) -> None:
        """Raise `FullError` for a stream of a run that is taken for gone, and so may have been sent before it ended."""
        if hello.stream and self._liveness.is_gone(hello):
            raise FullError(
                f"{hello.address} is taken for gone, until it has answered on a connection for messages"
            )

    async def _read(self, caller: Caller) -> None:
        hello = caller.hello
        name = canonical(hello.address)
        self._known.add(hello, caller, at_home=caller.at_home)
        # A host that dials again has given up its old connection, even where this host has not noticed yet.
        if (old := self._callers.get(name)) is not None:
            old.give_up()
        self._callers[name] = caller
        caller.proved = not self._liveness.is_gone(hello)
        self._greeted(hello.address, hello.host_id)
        self._connected(name)
        try:
            with self._noted(caller, hello, at_home=caller.at_home):
                await self.frames.read(caller)
        finally:
            self._known.remove(hello, caller, at_home=caller.at_home)
            newest = self._callers.get(name)
            if newest is caller:
                del self._callers[name]
            # A host may spell its address in several ways, and what is told of it goes by that.
            if newest is caller or newest is None or newest.hello.address != hello.address:
                self._parted(hello.address, newest is caller or newest is None)

    @contextmanager
    def _noted(self, link: object, hello: Hello, *, at_home: bool) -> Iterator[None]:
        """Let the liveness of hosts know of a connection while what comes over it is delivered."""
        self._liveness.opened(link, hello, at_home=at_home)
        try:
            yield
        finally:
            if self._liveness.ended(link):
                self._redial(canonical(hello.address))

    # ---- what is logged

    async def _report(self, connection: Connection, source: str, error: TransportError) -> None:
        """Log why a connection ends, and tell the peer where a host is at fault and not the network."""
        self._counters.count_fault(error)
        at_fault = isinstance(error, (FrameError, RefusedError, FullError))
        text = f"closed the connection from {source}: {error}"
        self._tell(_cause(error), text, logging.WARNING if at_fault else logging.INFO)
        if at_fault and connection.is_secured:
            kind = FrameKind.FULL if isinstance(error, FullError) else FrameKind.REFUSED
            with trio.move_on_after(1), suppress(TransportError):
                await connection.write(encode_reason(str(error), kind), 1)

    def _warn(self, cause: str, text: str) -> None:
        self._tell(cause, text, logging.WARNING)

    def _tell(self, cause: str, text: str, level: int) -> None:
        """Log once a minute and cause, since strangers can cause as much as they like."""
        count = self._reminders.due(cause)
        self._log.log(level if count else logging.DEBUG, "%s%s", text, and_others(count))

    def _log_connected(self, admitted: AdmittedConnection, address: str, source: str) -> None:
        """Log it once a minute for each member, and once for all others."""
        cause = ("connected", admitted.address if self._admission.is_member(admitted) else "")
        level = logging.INFO if self._reminders.due(cause) else logging.DEBUG
        self._log.log(level, "%s connected from %s", address, source)


def _cause(error: TransportError) -> str:
    """Return what warnings are counted by."""
    if isinstance(error, (RefusedError, FullError)):
        return error.cause
    return "malformed" if isinstance(error, FrameError) else "lost"


def _remote_address(stream: trio.SocketStream) -> str:
    """Return where a connection comes from, for the log."""
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:
        return "an address that is no longer known"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
