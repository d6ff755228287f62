"""What all connections have in common: addresses, dialing, the introduction, frames with deadlines."""

import ipaddress
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn

import trio
from drakkar.handlers.checks import check_whole
from drakkar.handlers.errors import ConfigError, TransportError
from drakkar.transport.wire import (
    FRAME_LIMIT,
    SMALL_FRAME_LIMIT,
    Frame,
    FrameError,
    FrameKind,
    FrameReader,
    Hello,
    decode_hello,
    decode_reason,
    encode_hello,
    encode_reason,
)

__all__ = [
    "Connection",
    "Counters",
    "Identity",
    "Options",
    "RefusedError",
    "canonical",
    "dial",
    "network_error",
    "parse_address",
]

_RECEIVE_BYTES: Final = 256 << 10
# The deadline of a write is one for each slice, so that a big frame on a slow link is not taken for a dead peer.
_SEND_BYTES: Final = 256 << 10


class RefusedError(TransportError):
    """One side does not talk to the other: somebody has to change a setting before it makes sense to try again."""


# ---- addresses

_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^\[\]:\s]+)):(?P<port>[0-9]{1,5})")


def parse_address(address: str) -> tuple[str, int]:
    """Split "host:port", "10.0.0.1:7000" or "[::1]:7000". From any thread.

    Raises `TransportError` with the address and the remedy.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise TransportError(f"address {address!r}: write it as 'host:port', an IPv6 address as '[::1]:7000'")
    port = int(match["port"])
    if port > 0xFFFF:
        raise TransportError(f"address {address!r}: ports end at 65535")
    if match["v6"] is not None:
        try:
            ipaddress.IPv6Address(match["v6"])
        except ValueError as error:
            raise TransportError(
                f"address {address!r}: what stands in brackets must be IPv6: {error}"
            ) from error
    return match["v6"] or match["name"], port


def canonical(address: str) -> str:
    """Spell `address` the one way in which addresses are compared. From any thread.

    Raises `TransportError` where it is none.
    """
    host, port = parse_address(address)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return f"{host.lower().removesuffix('.')}:{port}"
    return f"[{ip.compressed}]:{port}" if ip.version == 6 else f"{ip}:{port}"


# ---- settings and figures


@dataclass(frozen=True, slots=True)
class Options:
    """Limits in bytes and counts, deadlines in seconds. All must be positive; `math.inf` is no limit.

    The keep-alive times and the frame limit should be the same on all hosts.
    """

    queue_bytes: int = 64 << 20
    """Bytes that wait for one peer, at most; a single message may exceed it when nothing else waits."""
    queue_messages: int = 8192
    """Messages that wait for one peer, at most."""
    frame_limit: int = FRAME_LIMIT
    """Bytes of one frame, sent or received, at most."""
    max_incoming: int = 256
    """Connections that others may have opened to this host, at most."""
    connect_timeout: float = 5.0
    """For the connection, TLS and the introduction together."""
    send_timeout: float = 10.0
    """For each 256 KiB to be taken by the kernel."""
    keepalive: float = 3.0
    """Between two PINGs on a connection."""
    answer_timeout: float = 5.0
    """How much later than expected a sign of life may come."""
    idle_timeout: float = 300.0
    """A peer to whom nothing was sent for so long is forgotten, and its connection closed."""
    backoff_first: float = 0.05
    """The wait after the first failure; it doubles with each further one, and is cut by up to half at random."""
    backoff_last: float = 2.0
    """The longest wait after a failure."""
    backoff_refused: float = 10.0
    """The wait after a refusal, which somebody has to mend first."""
    max_incoming_streams: int = 16
    """Streams that others may send to this host at the same time, at most; further ones are refused."""
    max_outgoing_streams: int = 8
    """Streams that this host sends at the same time, at most; further ones are refused."""
    stream_bytes_per_second: float = 64 << 20
    """What all streams that this host sends may use of the network together."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if type(value) not in {int, float} or not value > 0:
                raise ConfigError(name, value, "give a number above 0")
        # More than that does not fit the length field.
        check_whole("frame_limit", self.frame_limit, 1 << 16, (1 << 32) - 1)


@dataclass(slots=True)
class Counters:
    """What happened since the start, over all peers."""

    sent: int = 0
    """Messages that were handed to the kernel; whether they arrived, nobody knows."""
    received: int = 0
    """Messages that were delivered."""
    sent_bytes: int = 0
    received_bytes: int = 0
    dropped: int = 0
    """Messages that were not sent: the queue was full, the peer was not reachable, or they cannot be encoded."""
    unknown_types: int = 0
    """Messages received of a type that nobody defined here, and dropped."""
    local_types: int = 0
    """Messages received of a type that no peer may send, and dropped."""
    anonymous: int = 0
    """Messages received without a sender, and dropped."""
    unknown_frames: int = 0
    """Frames received of a kind that is not known here, and dropped."""
    malformed: int = 0
    """Connections closed because of what came over them."""
    refused: int = 0
    """Introductions that failed, on either side: other version, deployment or address, too many connections, TLS."""
    connects: int = 0
    """Connections to peers that were opened for messages."""
    connect_failures: int = 0
    """Connections to peers that could not be opened."""
    lost: int = 0
    """Connections to peers that were lost after they had been opened."""
    accepted: int = 0
    """Connections from peers that were opened for messages."""
    failed: int = 0
    """Connections from peers closed because this host failed to handle what came: a bug, and logged as one."""
    streams_sent: int = 0
    """Streams of which the receiver said that it has kept them."""
    streams_received: int = 0
    """Streams that were kept here."""
    streams_failed: int = 0
    """Streams, sent or received, that were refused, broke off or were cancelled."""
    stream_bytes_sent: int = 0
    """Bytes of streams that were handed to the kernel."""
    stream_bytes_received: int = 0
    """Bytes of streams that their sinks took."""

    def blame(self, error: TransportError) -> None:
        """Count why a connection ended, where that is somebody's fault."""
        if isinstance(error, FrameError):
            self.malformed += 1
        elif isinstance(error, RefusedError):
            self.refused += 1


# ---- the introduction


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this host is, and whom it talks to."""

    address: str
    deployment_id: str
    version: tuple[int, int]
    features: frozenset[str]

    def hello(self, dialed: str, *, stream: bool = False) -> Hello:
        """Introduce this host on a connection to `dialed`."""
        return Hello(self.version, self.deployment_id, self.address, dialed, self.features, stream)

    def objection_to_guest(self, guest: Hello) -> str | None:
        """Say why the host that dialed is not let in; None if it is."""
        return self._objection(guest) or self._wrong_house(guest.dialed, self.address, guest.address)

    def objection_to_owner(self, owner: Hello, dialed: str) -> str | None:
        """Say why the host that answered is not talked to; None if it is."""
        return self._objection(owner) or self._wrong_house(dialed, owner.address, self.address)

    def _objection(self, other: Hello) -> str | None:
        if other.version[0] != self.version[0]:
            return (
                f"{other.address} speaks protocol version {_dotted(other.version)}, and {self.address} "
                f"{_dotted(self.version)}: the first numbers must be equal, so upgrade the older host"
            )
        if other.deployment_id != self.deployment_id:
            return (
                f"{other.address} belongs to deployment {other.deployment_id!r}, and {self.address} to "
                f"{self.deployment_id!r}: give all hosts of a deployment the same deployment_id"
            )
        return None

    @staticmethod
    def _wrong_house(dialed: str, found: str, caller: str) -> str | None:
        if canonical(dialed) == canonical(found):
            return None
        return (
            f"{caller} dialed {dialed}, and reached the host that advertises {found}: members must be named by the "
            "address that their host advertises"
        )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# ---- the connection


class Connection:
    """Frames over a stream, with deadlines; every fault of peer or network becomes a `TransportError`."""

    def __init__(self, stream: trio.abc.Stream, counters: Counters, frame_limit: int) -> None:
        self.stream = stream
        self.fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        """The socket, where bytes may be read from it and written to it as they are; else -1."""
        self._counters = counters
        self._frame_limit = frame_limit
        self._reader = FrameReader(SMALL_FRAME_LIMIT)
        self._pending: list[Frame] = []

    async def listen(self, patience: float, hear: Callable[[list[Frame]], Awaitable[None]]) -> NoReturn:
        """Read until the connection ends, which raises; `patience` is how many seconds nothing at all may come.

        Raises `FrameError` if what comes is malformed.
        """
        # One deadline that is moved on now and then: a scope around each read would cost more than the read.
        with _too_slow(f"nothing came for {patience:g} s"), trio.fail_after(patience) as scope:
            while True:
                await hear(await self._receive())
                soon = trio.current_time() + patience
                if scope.deadline < soon - patience / 8:
                    scope.deadline = soon

    async def frames(self, patience: float) -> list[Frame]:
        """Wait for whole frames, one at least; `patience` is how many seconds nothing at all may come.

        Raises `FrameError` if what comes is malformed.
        """
        while True:
            with _too_slow(f"nothing came for {patience:g} s"), trio.fail_after(patience):
                frames = await self._receive()
            if frames:
                return frames

    def limit_frames(self, limit: int) -> None:
        """From now on, take frames whose body has `limit` bytes at most."""
        self._reader.limit = limit

    async def drain(self, patience: float) -> None:
        """Read, and forget, until the other side has closed the connection, for `patience` seconds at most.

        Whoever closes a connection before he has read everything takes back what he said last.
        """
        self._pending = []
        with trio.move_on_after(patience), suppress(OSError, trio.BrokenResourceError):
            while await self._some_bytes():
                pass

    async def _receive(self) -> list[Frame]:
        """Wait for some bytes, and return the frames that they complete."""
        if self._pending:
            frames, self._pending = self._pending, []
            return frames
        try:
            data = await self._some_bytes()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise network_error(error) from error
        if not data:
            raise TransportError("the other side closed the connection")
        self._counters.received_bytes += len(data)
        return self._reader.feed(bytes(data))

    async def _some_bytes(self) -> bytes | bytearray:
        if self.fd < 0:
            return await self.stream.receive_some(_RECEIVE_BYTES)
        # The stream itself would look for bytes before it waits for some. Whoever has just read all there was looks in
        # vain, at the price of a system call and an exception for each message.
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            try:
                return os.read(self.fd, _RECEIVE_BYTES)
            except BlockingIOError:  # the system was wrong, which it may be
                continue

    async def secure(self) -> None:
        """Show and check certificates, where the connection has TLS."""
        if not isinstance(self.stream, trio.SSLStream):
            return
        try:
            await self.stream.do_handshake()
        except (OSError, trio.BrokenResourceError) as error:
            raise network_error(error) from error

    async def introduction(self) -> Hello:
        """Wait for the first frame, which says who the other is; then frames of full size are welcome.

        Raises `RefusedError` where the other side does not want this one.
        """
        while not (frames := await self._receive()):
            pass
        first, *self._pending = frames
        if first.kind == FrameKind.REFUSED:
            raise RefusedError(decode_reason(first.body))
        if first.kind not in {FrameKind.HELLO, FrameKind.STREAM_HELLO}:
            raise FrameError(f"the first frame is of kind {first.kind}, and not a HELLO")
        hello = decode_hello(first.body, stream=first.kind == FrameKind.STREAM_HELLO)
        try:
            canonical(hello.address)
            canonical(hello.dialed)
        except TransportError as error:
            raise FrameError(f"a HELLO with an address that is none: {error}") from error
        self._reader.limit = self._frame_limit
        return hello

    async def send(self, data: bytes | memoryview, patience: float) -> None:
        """Write all of `data`; `patience` is how many seconds each part of it may take."""
        view = memoryview(data)
        for at in range(0, len(view), _SEND_BYTES):
            part = view[at : at + _SEND_BYTES]
            with _too_slow(f"the other side took nothing for {patience:g} s"), trio.fail_after(patience):
                try:
                    await self.stream.send_all(part)
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise network_error(error) from error
            self._counters.sent_bytes += len(part)

    async def close(self) -> None:
        """Close it at once; also where the caller is being cancelled."""
        await trio.aclose_forcefully(self.stream)


# ---- dialing


async def dial(
    address: str,
    identity: Identity,
    options: Options,
    counters: Counters,
    *,
    tls: ssl.SSLContext | None,
    stream: bool = False,
) -> tuple[Connection, Hello]:
    """Connect to the host at `address`, and say who we are; return the connection, and who answered.

    Raises `TransportError` if that fails, or takes longer than it may, and `RefusedError` where one side does not talk
    to the other.
    """
    timeout = options.connect_timeout
    with _too_slow(f"no connection within {timeout:g} s"), trio.fail_after(timeout):
        # Resolved anew each time: a peer may come back under its old name with a new IP address.
        host, port = parse_address(address)
        try:
            plain = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise network_error(error) from error
        secure: trio.abc.Stream = plain
        if tls is not None:
            secure = trio.SSLStream(plain, tls, server_hostname=host, https_compatible=True)
        connection = Connection(secure, counters, options.frame_limit)
        try:
            owner = await _introduce(connection, identity, identity.hello(address, stream=stream), timeout)
        except BaseException:
            await connection.close()
            raise
        return connection, owner


async def _introduce(connection: Connection, identity: Identity, hello: Hello, patience: float) -> Hello:
    await connection.secure()
    await connection.send(encode_hello(hello), patience)
    owner = await _answer(connection)
    if objection := identity.objection_to_owner(owner, hello.dialed):
        await connection.send(encode_reason(objection), patience)
        raise RefusedError(objection)
    return owner


async def _answer(connection: Connection) -> Hello:
    try:
        return await connection.introduction()
    except RefusedError:
        raise
    except TransportError as error:
        if not isinstance(connection.stream, trio.SSLStream):
            raise
        # The certificate is looked at only now, and TLS tells whoever showed it nothing but this.
        raise TransportError(
            f"{error}; it may not trust the certificate of this host: see its log"
        ) from error


# ---- faults


@contextmanager
def _too_slow(message: str) -> Iterator[None]:
    """Say what took too long, as a fault of the network."""
    try:
        yield
    except trio.TooSlowError as error:
        raise TransportError(message) from error


def network_error(error: BaseException) -> TransportError:
    """Say in one line what sockets and TLS spread over a chain of causes."""
    cause = error
    while True:
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        elif cause.__cause__ is not None:
            cause = cause.__cause__
        else:
            break
    if isinstance(cause, ssl.SSLEOFError):
        return RefusedError(
            "TLS: the other side hung up; it may not trust the certificate that was shown to it"
        )
    if isinstance(cause, ssl.SSLError):
        return RefusedError(f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or cause}")
    return TransportError(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)
