"""Messages between hosts over TCP: one listener, one connection to each peer, everything bounded."""

import errno
import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from random import Random
from typing import Final

import trio
from drakkar.handlers.errors import ConfigError, TransportError
from drakkar.handlers.messages import Message
from drakkar.transport.connection import (
    Connection,
    Counters,
    Identity,
    Options,
    RefusedError,
    canonical,
    parse_address,
)
from drakkar.transport.peer import Peer, PeerStatus
from drakkar.transport.streams import Incoming, Outgoing, StreamSink, StreamSource
from drakkar.transport.tls import TlsConfig
from drakkar.transport.wire import (
    FIRST_FREE_KIND,
    PROTOCOL_VERSION,
    Decoded,
    Frame,
    FrameError,
    FrameKind,
    Hello,
    decode_messages,
    decode_reason,
    encode_frame,
    encode_hello,
    encode_reason,
)

__all__ = ["Counters", "Options", "PeerStatus", "TcpTransport", "parse_address"]

_log: Final = logging.getLogger("drakkar.transport")

_ECHO_BYTES: Final = 64
"""Bytes of a PING that come back, at most."""
_TURN_BYTES: Final = 64 << 10
"""Bytes of frames that are decoded before others on the loop have their turn: about a millisecond's work."""


class TcpTransport:
    """Sends messages to other hosts, and delivers theirs.

    Everything here is for the trio loop's thread. Messages may be lost, but not altered, and those that arrive over one
    connection arrive in the order in which they were sent.

    `address` is what this host advertises, by which others dial it and know it. `listen_address` is where it listens,
    if that is something else: behind a NAT, or "0.0.0.0:7000" for all interfaces. Port 0 takes a free one, and
    `address` tells which, once `serve` has started.

    `deliver` is called with the sender's address and the messages that came, in order; `unreachable` with the address of a peer each time that
    messages to it were lost, or may have been: when a connection is lost or cannot be made, and what waited for it is
    gone too, and, from within `send`, when messages are dropped. Both must return soon and raise nothing.
    `frames` has receivers for further kinds of frames, called with the sender's address and the body, which has to be
    copied if it is to be kept.
    `streams` is called with the sender's address and the header when a stream begins, and returns what takes it in; it
    must return soon, and raises `TransportError`, or another `DrakkarError`, to refuse the stream, whose sender gets to
    read the text. Without it, all streams are refused.

    Raises `TransportError` for an address that is none, and `ConfigError` for a kind of frame that is not free and for
    TLS files that are no good.
    """

    def __init__(
        self,
        address: str,
        *,
        deliver: Callable[[str, list[Message]], None],
        unreachable: Callable[[str], None],
        deployment_id: str = "default",
        listen_address: str | None = None,
        tls: TlsConfig | None = None,
        frames: Mapping[int, Callable[[str, memoryview], None]] | None = None,
        streams: Callable[[str, bytes], StreamSink] | None = None,
        version: tuple[int, int] = PROTOCOL_VERSION,
        features: Iterable[str] = (),
        random: Random | None = None,
        options: Options | None = None,
    ) -> None:
        parse_address(listen_address or address)
        if canonical(address).startswith(("0.0.0.0:", "[::]:")):
            raise TransportError(
                f"address {address!r}: others cannot dial it; advertise an address of this host, and give this one "
                "as listen_address"
            )
        self.counters = Counters()
        self.options = options or Options()
        self._identity = Identity(address, deployment_id, version, frozenset(features))
        encode_hello(self._identity.hello(address))  # what is too long is better found now
        self._listen_address = listen_address or address
        self._deliver, self._on_unreachable = deliver, unreachable
        self._frames = dict(frames or {})
        for kind in self._frames:
            _check_kind(kind)
        self._server_tls: ssl.SSLContext | None = tls.server_context() if tls else None
        self._client_tls: ssl.SSLContext | None = tls.client_context() if tls else None
        self._random = random or Random()
        self._incoming = Incoming(streams, self.options, self.counters)
        self._outgoing = Outgoing(self.options, self.counters, self._client_tls)
        self._peers: dict[str, Peer] = {}
        self._guests: dict[str, trio.CancelScope] = {}
        self._strangers = 0
        self._nursery: trio.Nursery | None = None
        self._ended = False

    @property
    def address(self) -> str:
        """What this host advertises."""
        return self._identity.address

    # ---- the outgoing side

    def send(self, address: str, messages: Sequence[Message]) -> int:
        """Queue messages for the host at `address`; never blocks. Return how many were dropped.

        Dropped is what finds the queue of that peer full, and what cannot be encoded, which is logged as an error. A
        call with all there is to say at the moment becomes one frame, so it is cheaper than a call for each.

        Before `serve` has started, messages wait; after it has ended, they are dropped.
        """
        if not messages:
            return 0
        if self._ended:
            self.counters.dropped += len(messages)
            return len(messages)
        return self._peer(address).offer(messages)

    def send_frame(self, address: str, kind: int, body: bytes) -> bool:
        """Queue a frame of a kind of your own, in order with the messages; return whether there was room for it.

        Raises `ConfigError` for a kind that is not from 16 to 255, and `TransportError` for a body that is too long.
        """
        _check_kind(kind)
        if len(body) > self.options.frame_limit:
            raise TransportError(
                f"a frame of {len(body)} bytes is longer than {self.options.frame_limit}: send it in parts"
            )
        if self._ended:
            self.counters.dropped += 1
            return False
        return self._peer(address).offer_frame(encode_frame(kind, body))

    async def send_stream(self, address: str, header: bytes, source: StreamSource) -> None:
        """Send all that `source` gives to the host at `address`, on a connection of its own, beside the messages.

        Returns once the receiver has said that it has everything, and has kept it. `header` tells it what comes, in at
        most 64 KiB. To be awaited by a task of the loop; cancelling it closes the connection.

        Raises `TransportError` with the address, how many bytes were sent and the reason: the receiver refused or failed, the
        connection broke, `source` failed (it is the `__cause__` then), or the transport stopped. Once all was sent, the
        receiver may have kept it all the same. At once, it raises where `max_outgoing_streams` are running, and where
        `serve` is not.
        """
        if self._nursery is None:
            raise TransportError(f"the stream to {address} was not sent: {self.address} does not serve")
        await self._outgoing.send(address, header, source, self._identity)

    def peers(self) -> dict[str, PeerStatus]:
        """Return how it stands with each peer that was sent to lately."""
        return {address: peer.status() for address, peer in self._peers.items()}

    def _peer(self, address: str) -> Peer:
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(
                address,
                identity=lambda: self._identity,
                options=self.options,
                counters=self.counters,
                unreachable=self._tell_unreachable,
                tls=self._client_tls,
                random=self._random,
            )
            if self._nursery is not None:
                self._nursery.start_soon(self._run_peer, peer)
        return peer

    async def _run_peer(self, peer: Peer) -> None:
        try:
            await peer.run()
        finally:
            del self._peers[peer.address]

    def _tell_unreachable(self, address: str) -> None:
        try:
            self._on_unreachable(address)
        except Exception:  # noqa: BLE001  # it is logged, and must not end the sending to everybody
            self.counters.failed += 1
            _log.exception("the host failed to hear that %s cannot be reached", address)

    # ---- the incoming side

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, and talk to peers, until cancelled; then everything is closed. Reports the address when it listens.

        Raises `TransportError` where it cannot listen.
        """
        if self._nursery is not None:
            raise TransportError(f"{self.address} serves already: make another transport for another address")
        listeners = await self._listen()
        async with trio.open_nursery() as nursery:
            self._nursery, self._ended = nursery, False
            try:
                for peer in self._peers.values():
                    nursery.start_soon(self._run_peer, peer)
                task_status.started(self.address)
                await trio.serve_listeners(self._accept, listeners, handler_nursery=nursery)
            finally:
                self._nursery, self._ended = None, True
                self._outgoing.stop()

    async def _listen(self) -> list[trio.SocketListener]:
        host, port = parse_address(self._listen_address)
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise TransportError(f"cannot listen on {self._listen_address}: {_remedy(error)}") from error
        advertised, advertised_port = parse_address(self.address)
        if advertised_port == 0:
            port = listeners[0].socket.getsockname()[1]
            name = f"[{advertised}]" if ":" in advertised else advertised
            self._identity = replace(self._identity, address=f"{name}:{port}")
        return listeners

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Talk with whoever dialed, until one side has enough. Nothing that he does is an error of this host."""
        secure: trio.abc.Stream = stream
        if self._server_tls is not None:
            secure = trio.SSLStream(stream, self._server_tls, server_side=True, https_compatible=True)
        connection = Connection(secure, self.counters, self.options.frame_limit)
        who = _name_of(stream)
        try:
            await self._talk(connection, who)
        except TransportError as error:
            await self._part(connection, who, error)
        except Exception:  # noqa: BLE001  # it is logged, and must not end the listening to everybody
            self.counters.failed += 1
            _log.exception("this host failed to handle what %s sent, and closes the connection", who)
        finally:
            await connection.close()

    async def _talk(self, connection: Connection, who: str) -> None:
        timeout = self.options.connect_timeout
        self._strangers += 1
        try:
            with trio.fail_after(timeout):
                guest = await self._admit(connection)
        except trio.TooSlowError as error:
            raise RefusedError(f"no introduction within {timeout:g} s") from error
        finally:
            self._strangers -= 1
        if guest.stream:
            await self._incoming.receive(connection, guest.address)
            return
        self.counters.accepted += 1
        _log.info("%s connected from %s", guest.address, who)
        with trio.CancelScope() as scope:
            await self._listen_to(connection, guest, scope)

    async def _admit(self, connection: Connection) -> Hello:
        """Exchange introductions, and let in whom we should talk to."""
        limit, timeout = self.options.max_incoming, self.options.connect_timeout
        full = RefusedError(f"{self.address} has {limit} connections from others, and takes no more")
        # Those who did not say who they are take no places from those who did.
        if self._strangers > limit:
            raise full
        await connection.secure()
        guest = await connection.introduction()
        if objection := self._identity.objection_to_guest(guest):
            raise RefusedError(objection)
        if not guest.stream and len(self._guests) >= limit and canonical(guest.address) not in self._guests:
            raise full
        await connection.send(encode_hello(self._identity.hello(guest.dialed)), timeout)
        return guest

    async def _listen_to(self, connection: Connection, guest: Hello, scope: trio.CancelScope) -> None:
        name = canonical(guest.address)
        # Whoever dials again has given the old connection up, even if this host has not noticed yet.
        if (old := self._guests.get(name)) is not None:
            old.cancel()
        self._guests[name] = scope
        for peer in self._peers.values():
            if peer.is_at(name):
                peer.revive()
        # A PING comes in each keep-alive interval; one may be late, or lost in a busy host.
        silence = 2 * self.options.keepalive + self.options.answer_timeout
        try:
            await connection.listen(silence, partial(self._receive, connection, guest))
        finally:
            if self._guests.get(name) is scope:
                del self._guests[name]

    async def _receive(self, connection: Connection, guest: Hello, frames: Iterable[Frame]) -> None:
        """Deliver what one read brought, letting others on the loop have their turn now and then."""
        messages: list[Message] = []
        decoded = 0
        for frame in frames:
            if decoded > _TURN_BYTES:
                messages = self._hand_over(guest, messages)
                decoded = 0
                await trio.lowlevel.checkpoint()
            decoded += len(frame.body)
            if frame.kind == FrameKind.MESSAGES:
                messages += self._decoded(frame.body, guest)
            elif frame.kind == FrameKind.PING:
                pong = encode_frame(FrameKind.PONG, bytes(frame.body[:_ECHO_BYTES]))
                await connection.send(pong, self.options.send_timeout)
            else:
                messages = self._hand_over(guest, messages)
                self._other(frame, guest)
        self._hand_over(guest, messages)

    def _hand_over(self, guest: Hello, messages: list[Message]) -> list[Message]:
        """Deliver messages; return an empty list for those that follow."""
        if messages:
            self.counters.received += len(messages)
            self._deliver(guest.address, messages)
        return []

    def _decoded(self, body: memoryview, guest: Hello) -> list[Message]:
        decoded = decode_messages(body)
        if decoded.unknown or decoded.local or decoded.anonymous:
            self._count_dropped(decoded, guest)
        return decoded.messages

    def _count_dropped(self, decoded: Decoded, guest: Hello) -> None:
        counters = self.counters
        # Counted always, logged the first time: whoever sends one will send many.
        first = not (counters.unknown_types or counters.local_types or counters.anonymous)
        counters.unknown_types += decoded.unknown
        counters.local_types += decoded.local
        counters.anonymous += decoded.anonymous
        _log.log(
            logging.WARNING if first else logging.DEBUG,
            "dropped messages from %s: %d of unknown type, %d of a type that no peer may send, %d without a sender",
            guest.address,
            decoded.unknown,
            decoded.local,
            decoded.anonymous,
        )

    def _other(self, frame: Frame, guest: Hello) -> None:
        """Handle a frame that is neither messages nor keep-alive."""
        if frame.kind == FrameKind.REFUSED:
            raise RefusedError(decode_reason(frame.body))
        receiver = self._frames.get(frame.kind)
        if receiver is not None:
            receiver(guest.address, frame.body)
            return
        level = logging.DEBUG if self.counters.unknown_frames else logging.WARNING
        self.counters.unknown_frames += 1
        _log.log(level, "dropped a frame of unknown kind %d from %s", frame.kind, guest.address)

    async def _part(self, connection: Connection, who: str, error: TransportError) -> None:
        """Say why, on both sides, where there is something to say."""
        blamed = isinstance(error, (FrameError, RefusedError))
        self.counters.blame(error)
        _log.log(logging.WARNING if blamed else logging.INFO, "closed the connection from %s: %s", who, error)
        if blamed:
            with trio.move_on_after(1), suppress(TransportError):
                await connection.send(encode_reason(str(error)), 1)


def _check_kind(kind: int) -> None:
    if not FIRST_FREE_KIND <= kind <= 0xFF:
        raise ConfigError("kind of frame", kind, f"number your own from {FIRST_FREE_KIND} to 255")


def _name_of(stream: trio.SocketStream) -> str:
    """Return where a connection comes from, for the log."""
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:
        return "somebody who is gone already"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _remedy(error: OSError) -> str:
    """Say what is wrong with an address, and what to do about it."""
    cause: BaseException = error
    while not isinstance(cause, socket.gaierror) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, socket.gaierror):
        return f"the name cannot be resolved ({cause.strerror}); check it, or give an IP address"
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is taken; stop the process that has it, or choose another port"
        case errno.EADDRNOTAVAIL:
            return "no interface of this machine has the address; give one that it has as listen_address"
        case errno.EACCES:
            return "this user may not have the port; choose one from 1024 up"
        case _:
            return f"{error.strerror or error}; give an address of this machine as listen_address"
