"""Messages between hosts over TCP: one listener, one outgoing connection to each peer, and limits on everything."""

import errno
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from logging import getLogger
from random import Random
from typing import Final

import trio
from drakkar.handlers.checks import check_whole
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message
from drakkar.transport.addresses import canonical, parse_address
from drakkar.transport.frames import FIRST_FREE_KIND, encode_frame
from drakkar.transport.hello import PROTOCOL_VERSION, Identity, encode_hello
from drakkar.transport.inbound import Inbound
from drakkar.transport.incoming_streams import IncomingStreams
from drakkar.transport.options import Counters, Options
from drakkar.transport.outgoing_streams import OutgoingStreams
from drakkar.transport.peer import Peer, PeerStatus
from drakkar.transport.streams import StreamSink, StreamSource
from drakkar.transport.tls import TlsConfig

__all__ = ["TcpTransport"]

_log: Final = getLogger("drakkar.transport")


class TcpTransport:
    """Sends messages to other hosts, and delivers theirs.

    For the trio loop's thread only. Messages may be lost, but not altered. Those that arrive over one connection
    arrive in the order in which they were sent.

    `address` is the address that this host advertises: others dial it and know this host by it. `listen_address` is
    where it listens, where that differs: behind a NAT, or "0.0.0.0:7000" for all interfaces. Port 0 takes a free port,
    which `address` shows once `serve` has started.

    `deliver` is called with the sender's address and its messages, in order.
    `unreachable` is called with the address of a peer each time that messages to it were lost, or may have been: when
    its connection is lost or cannot be made, which also drops its queue, and from within `send` when messages are
    dropped. Both must return soon and raise nothing.
    `frames` has receivers for further kinds of frames. They are called with the sender's address and the body, which
    must be copied to be kept.
    `streams` is called with the sender's address and the header when a stream begins, and returns the sink for it. It
    must return soon. It raises `TransportError`, or another `DrakkarError`, to refuse the stream; the sender gets the
    text. Without `streams`, all streams are refused.

    Raises `TransportError` for an invalid address, and `ConfigError` for a kind of frame that is not free and for TLS
    files that cannot be used.
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
        encode_hello(self._identity.hello(address))  # raises now, and not at the first connection
        self._listen_address = listen_address or address
        self._on_unreachable = unreachable
        frames = dict(frames or {})
        for kind in frames:
            _check_kind(kind)
        self._client_tls = tls.client_context() if tls else None
        self._random = random or Random()
        self._outgoing_streams = OutgoingStreams(self.options, self.counters, self._client_tls)
        self._inbound = Inbound(
            identity=lambda: self._identity,
            options=self.options,
            counters=self.counters,
            tls=tls.server_context() if tls else None,
            streams=IncomingStreams(streams, self.options, self.counters),
            deliver=deliver,
            connected=self._revive,
            frames=frames,
        )
        self._peers: dict[str, Peer] = {}
        self._nursery: trio.Nursery | None = None
        self._ended = False

    @property
    def address(self) -> str:
        """The address that this host advertises."""
        return self._identity.address

    # ---- sending

    def send(self, address: str, messages: Sequence[Message]) -> int:
        """Queue messages for the host at `address`; never blocks. Return how many were dropped.

        A message is dropped where the peer's queue is full, and where it cannot be encoded, which is logged as an
        error. One call with many messages makes one frame, which is cheaper than one call for each.

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
        """Send all bytes of `source` to the host at `address`, on a connection of their own.

        Returns once the receiver has confirmed that it stored everything. `header` tells the receiver what comes, in
        64 KiB at most. To be awaited by a task of the loop; cancelling it closes the connection.

        Raises `TransportError` with the address, the number of bytes sent and the reason: the receiver refused or
        failed, the connection was lost, `source` failed (then it is the `__cause__`), or the transport stopped. After
        all bytes were sent, the receiver may have stored them all the same. Raises at once where
        `max_outgoing_streams` are being sent, and where `serve` is not running.
        """
        if self._nursery is None:
            raise TransportError(f"the stream to {address} was not sent: {self.address} does not serve")
        await self._outgoing_streams.send(address, header, source, self._identity)

    def peers(self) -> dict[str, PeerStatus]:
        """Return the state of each peer, by address, to which something was sent lately."""
        return {address: peer.status() for address, peer in self._peers.items()}

    def _peer(self, address: str) -> Peer:
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(
                address,
                identity=lambda: self._identity,
                options=self.options,
                counters=self.counters,
                unreachable=self._report_unreachable,
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

    def _report_unreachable(self, address: str) -> None:
        try:
            self._on_unreachable(address)
        except Exception:  # noqa: BLE001  # logged; it must not stop the sending to others
            self.counters.failed += 1
            _log.exception("this host failed to handle that %s is unreachable", address)

    def _revive(self, name: str) -> None:
        for peer in self._peers.values():
            if peer.is_at(name):
                peer.revive()

    # ---- serving

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, and exchange messages, until cancelled; then everything is closed. Reports the address at the start.

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
                await trio.serve_listeners(self._inbound.accept, listeners, handler_nursery=nursery)
            finally:
                self._nursery, self._ended = None, True
                self._outgoing_streams.stop()

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


def _check_kind(kind: int) -> None:
    check_whole("kind of frame", kind, FIRST_FREE_KIND, 0xFF)


def _remedy(error: OSError) -> str:
    """Return what is wrong with an address to listen on, and what to do about it."""
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
            return "this user may not use the port; choose one from 1024 up"
        case _:
            return f"{error.strerror or error}; give an address of this machine as listen_address"
