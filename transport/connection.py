"""One connection to another host: frames with deadlines, dialing, and the introduction that opens it."""

import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from math import inf
from time import perf_counter
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

import trio
from drakkar.handlers.errors import TransportError
from drakkar.transport.addresses import canonical, parse_address
from drakkar.transport.budgets import WHOLE_BYTES
from drakkar.transport.certificates import Certificate
from drakkar.transport.frames import (
    MAGIC,
    SMALL_FRAME_LIMIT,
    TLS_HANDSHAKE,
    Frame,
    FrameError,
    FrameKind,
    FrameReader,
)
from drakkar.transport.hello import (
    FullError,
    Hello,
    Identity,
    RefusedError,
    decode_hello,
    decode_reason,
    encode_hello,
    encode_reason,
)
from drakkar.transport.options import Counters, Options
from drakkar.transport.records import Records
from drakkar.transport.sockets import track
from drakkar.transport.tls import Tls

__all__ = ["Admit", "Connection", "NobodyListens", "Place", "dial", "network_error", "refuses"]

_READ_BYTES: Final = 256 << 10
# Each slice has a deadline of its own, so that a big frame on a slow link does not look like a dead peer.
_WRITE_BYTES: Final = 256 << 10
_NOT_SENT_BYTES: Final = 256 << 10
"""Bytes that the kernel takes ahead of what it has sent. They are ahead of control too: for 10 ms on a link
of 200 Mbit/s. The kernel asks for more when half of them are left, so a loop that comes 5 ms late does not
leave such a link idle."""

MAX_PROVED: Final = 64
"""Addresses of which a connection remembers whether the other side may speak as the host there."""

_LOST: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What reading and writing raise where the connection is lost; the last one where this host has ended it: see `Connection.end`."""

_CALLER_IS_PLAIN: Final = (
    "the host that dialed speaks no TLS, and the one that it dialed only TLS: give tls to both, or to neither"
)
_CALLER_HAS_TLS: Final = (
    "the host that dialed speaks TLS, and the one that it dialed does not: give tls to both, or to neither"
)
_NO_PLACE: Final = (
    "the other side has too many connections that have not introduced themselves, or waited too long for this one; its log "
    "says more"
)
"""What `NO_PLACE_ALERT` says."""


class NobodyListens(TransportError):
    """The kernel at each address of the other host has refused the connection: no process listens at the port."""


class Place(NamedTuple):
    """Where a connection leads to, as the kernel names it."""

    family: int
    address: tuple[Any, ...]


class Connection:
    """Frames over a byte stream, with deadlines. Every fault of the peer or the network becomes a `TransportError`.

    All timeouts are in seconds. For the trio loop's thread only.
    """

    def __init__(
        self, stream: trio.abc.Stream, counters: Counters, frame_limit: int, tls: Tls | None = None
    ) -> None:
        """`tls` says which certificates are taken, where `stream` has TLS."""
        self.stream = stream
        self._why = ""
        """Why it was ended from here; empty where it was not."""
        self._tls = tls
        if tls is not None:
            tls.connections.add(self)
        self._certificate: Certificate | None = None
        """The one that the other side has shown."""
        self._proved: dict[str, bool] = {}
        beneath = stream.transport_stream if isinstance(stream, trio.SSLStream) else None
        self._records = beneath if isinstance(beneath, Records) else None
        self.fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        """The socket, where its bytes may be read and written directly; -1 where TLS is in between."""
        self._counters = counters
        self._frame_limit = frame_limit
        self._reader = FrameReader(SMALL_FRAME_LIMIT)
        self._pending: list[Frame] = []
        self._silence = trio.CancelScope()
        self._silence_timeout = inf
        self.read_size = 0
        """Bytes of the last read."""
        self.read_at = 0.0
        """When the bytes of the last frames were read, by `time.perf_counter`."""
        self.place: Place | None = None
        """Where it leads to, if this host has dialed."""

    # ---- reading

    async def read_until_lost(
        self, silence_timeout: float, handle: Callable[[list[Frame]], Awaitable[None]]
    ) -> NoReturn:
        """Give all frames to `handle` until the connection ends.

        Always raises: `FrameError` for malformed bytes, and `TransportError` at the end of the connection, or where no
        byte comes for `silence_timeout` seconds.
        """
        # One deadline that is moved from time to time: a scope around each read would cost more than the read.
        with _silence(silence_timeout) as scope:
            self._silence, self._silence_timeout = scope, silence_timeout
            while True:
                await handle(await self._read())
                deadline = trio.current_time() + silence_timeout
                if scope.deadline < deadline - silence_timeout / 8:
                    scope.deadline = deadline

    @contextmanager
    def pause(self) -> Iterator[None]:
        """While this host does not read, it is no fault of the other side that nothing comes."""
        self._silence.deadline = inf
        try:
            yield
        finally:
            self._silence.deadline = trio.current_time() + self._silence_timeout

    @property
    def unfinished(self) -> tuple[int, int]:
        """Bytes of the large frame that is not complete, and how many of them are here; zeros: none is."""
        wanted, came = self._reader.unfinished
        return (wanted, came) if wanted > WHOLE_BYTES else (0, 0)

    async def read(self, silence_timeout: float) -> list[Frame]:
        """Wait for at least one frame.

        Raises `FrameError` for malformed bytes, and `TransportError` at the end of the connection, or where no byte
        comes for `silence_timeout` seconds.
        """
        while True:
            with _silence(silence_timeout):
                frames = await self._read()
            if frames:
                return frames

    def limit_frames(self, limit: int) -> None:
        """Accept frames whose bodies have up to `limit` bytes from now on."""
        self._reader.limit = limit

    async def drain(self) -> None:
        """Read and discard until the peer closes the connection.

        Closing a socket with unread bytes resets it, and the peer may then lose the last frame that was sent to it.
        """
        self._pending = []
        with suppress(*_LOST, FrameError):
            while await self._read_bytes():
                pass

    async def _read(self) -> list[Frame]:
        """Wait for some bytes, and return the frames that they complete."""
        if self._pending:
            frames, self._pending = self._pending, []
            return frames
        if self._reader.more:
            await trio.lowlevel.checkpoint()
            self.read_at = perf_counter()
            return self._reader.feed(b"")
        return self._reader.feed(await self._read_some())

    async def _read_some(self) -> bytes:
        try:
            data = await self._read_bytes()
        except _LOST as error:
            raise self._fault(error) from error
        if not data:
            raise TransportError(self._why or "the other side closed the connection")
        self._counters.received_bytes += len(data)
        self.read_size = len(data)
        return bytes(data)

    def _fault(self, error: BaseException) -> TransportError:
        return TransportError(self._why) if self._why else network_error(error)

    async def _read_bytes(self) -> bytes | bytearray:
        if self.fd < 0:
            data = await self.stream.receive_some(_READ_BYTES)
            self.read_at = perf_counter()
            if self._records is not None:
                self._records.brought(len(data))
            return data
        # `receive_some` tries to read before it waits. Here the previous read has emptied the socket, so that attempt
        # would fail, and cost a system call and an exception for each message.
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            self.read_at = perf_counter()
            try:
                return os.read(self.fd, _READ_BYTES)
            except BlockingIOError:  # a socket may be reported as readable when it is not
                continue

    # ---- the introduction

    async def secure(self) -> None:
        """Do the TLS handshake, where the connection has TLS. Raises `TransportError` where it fails."""
        if not isinstance(self.stream, trio.SSLStream):
            return
        try:
            await self._check_first_byte(self.stream)
            await self._shake_hands(self.stream)
        except _LOST as error:
            if not self.stream.server_side and _is_end(error):
                # It judges this host's certificate only after that, so this is no refusal.
                raise TransportError(
                    self._why or "the other side closed the connection during the handshake"
                ) from error
            raise self._fault(error) from error
        self._certificate = Certificate.read(self.stream.getpeercert())

    async def _shake_hands(self, stream: "trio.SSLStream[trio.abc.Stream]") -> None:
        with nullcontext() if self._records is None else self._records.handshake():
            await stream.do_handshake()

    @property
    def handshake_seconds(self) -> float:
        """What the handshake has cost this host."""
        return 0.0 if self._records is None else self._records.seconds

    async def _check_first_byte(self, stream: "trio.SSLStream[trio.abc.Stream]") -> None:
        """Raise `RefusedError` where the caller speaks, but without TLS; it can be answered in the same way then."""
        plain = stream.transport_stream
        if not (stream.server_side and isinstance(plain, Records)):
            return
        if await plain.socket.recv(1, socket.MSG_PEEK) == MAGIC[:1]:
            self.stream = plain
            await plain.receive_some()  # a socket that is closed with unread bytes loses the answer
            raise RefusedError(_CALLER_IS_PLAIN, "TLS")

    @property
    def is_secured(self) -> bool:
        """Whether frames can be exchanged: there is no TLS, or its handshake is done."""
        return self._certificate is not None or not isinstance(self.stream, trio.SSLStream)

    def proves(self, address: str) -> bool:
        """Return whether the other side has proved, by its certificate, that it may speak as the host at `address`.

        False without TLS. With `TlsConfig.check_hostname` off, each certificate of the authority proves each address.
        """
        tls, certificate = self._tls, self._certificate
        if tls is None or certificate is None:
            return False
        if address not in self._proved:
            if len(self._proved) == MAX_PROVED:
                self._proved.clear()
            # It stays so: a connection ends where what is trusted changes.
            self._proved[address] = tls.speaks_for(certificate, address)
        return self._proved[address]

    def is_certified_as(self, names: Iterable[str]) -> bool:
        """Return whether the other side has shown a certificate that has one of these names, or is for a host of that name."""
        certificate = self._certificate
        return certificate is not None and any(
            certificate.has(name) or certificate.is_for(name) for name in names
        )

    def may_be(self, address: str) -> bool:
        """Return whether the other side may be the host at `address`, as far as its certificate tells: without TLS it may."""
        return self._tls is None or self.proves(address)

    def check_name(self, address: str) -> None:
        """Raise `RefusedError` where there is TLS, and the other side may not speak as the host at `address`."""
        tls, certificate = self._tls, self._certificate
        if tls is not None and certificate is not None and (why := tls.objection(certificate, address)):
            raise RefusedError(why, "certificate")

    async def read_hello(self) -> Hello:
        """Wait for the peer's introduction, the first frame. Frames of full size are accepted after it.

        Raises `RefusedError` where the peer refuses this host, `FullError` where it has no place for it, and `FrameError`
        where the frame is no introduction.
        """
        data = await self._read_some()
        if data[0] == TLS_HANDSHAKE:
            raise RefusedError(_CALLER_HAS_TLS, "TLS")
        frames = self._reader.feed(data)
        while not frames:
            frames = await self._read()
        first, *self._pending = frames
        if first.kind == FrameKind.REFUSED:
            raise RefusedError(decode_reason(first.body), "by the other host")
        if first.kind == FrameKind.FULL:
            raise FullError(decode_reason(first.body))
        if first.kind not in {FrameKind.HELLO, FrameKind.STREAM_HELLO}:
            raise FrameError(f"the first frame is of kind {first.kind}, and not a HELLO")
        hello = decode_hello(first.body, stream=first.kind == FrameKind.STREAM_HELLO)
        try:
            canonical(hello.address)
            canonical(hello.dialed)
        except TransportError as error:
            raise FrameError(f"a HELLO contains an invalid address: {error}") from error
        self._reader.limit = self._frame_limit
        return hello

    # ---- writing

    async def write(self, data: bytes | memoryview, stall_timeout: float) -> None:
        """Write all of `data`.

        Raises `TransportError` where the connection is lost, or the kernel takes more than `stall_timeout` seconds for
        256 KiB.
        """
        view = memoryview(data)
        for at in range(0, len(view), _WRITE_BYTES):
            part = view[at : at + _WRITE_BYTES]
            with _deadline(stall_timeout, f"the other side took nothing for {stall_timeout:g} s"):
                try:
                    await self.stream.send_all(part)
                except _LOST as error:
                    raise self._fault(error) from error
            self._counters.sent_bytes += len(part)

    def write_now(self, data: bytes) -> bytes | memoryview:
        """Write what the kernel takes at once; return the rest, which is to be written next. With TLS that is all of it.

        It costs a fifth of `write`, and is no checkpoint. Raises `TransportError` where the connection is lost.
        """
        if self.fd < 0:
            return data
        try:
            written = os.write(self.fd, data)
        except BlockingIOError:
            return data
        except OSError as error:
            raise self._fault(error) from error
        self._counters.sent_bytes += written
        return memoryview(data)[written:]

    def end(self, why: str) -> None:
        """Let it end soon, as lost for this reason. What reads or writes raises `TransportError` with it."""
        self._why = why
        stream = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        if isinstance(stream, trio.SocketStream | Records):
            with suppress(OSError):  # it is lost already
                stream.socket.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Close it at once, without waiting, also while the caller is being cancelled."""
        await trio.aclose_forcefully(self.stream)


# ---- dialing


Admit: TypeAlias = Callable[[Hello, Callable[[str], bool]], Awaitable[None]]
"""See `dial`."""


async def dial(
    address: str,
    identity: Identity,
    options: Options,
    counters: Counters,
    *,
    tls: Tls | None,
    admit: Admit,
    stream: bool = False,
) -> tuple[Connection, Hello]:
    """Connect to the host at `address` and introduce this one; return the connection, and the peer's introduction.

    `admit` raises `RefusedError` for an introduction that is to be refused, beside those that `identity` objects to; it is called
    with the introduction, and the `may_be` of the connection.
    `stream` asks for a connection for one stream instead of messages.

    Raises `TransportError` where that fails or takes longer than `connect_timeout`, `RefusedError` where one of the two
    hosts refuses the other, and `FullError` where the other has no place for this one now.
    """
    timeout = options.connect_timeout
    with _deadline(timeout, f"no connection within {timeout:g} s"):
        # Resolved again each time: a peer may come back under its old name with a new IP address.
        host, port = parse_address(address)
        try:
            plain = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise _dialing_error(error) from error
        except UnicodeError as error:  # of a name that cannot be one, such as "a..b"
            raise TransportError(f"{host!r} cannot be the name of a host") from error
        track(plain.socket)
        secure: trio.abc.Stream = plain
        if tls is not None:
            secure = trio.SSLStream(
                Records(plain), tls.credentials.client, server_hostname=host, https_compatible=True
            )
        connection = Connection(secure, counters, options.frame_limit, tls)
        connection.place = _place(plain)
        try:
            if not stream:
                _bound_unsent(plain)
            hello = identity.hello(address, stream=stream)
            callee = await _introduce(connection, identity, hello, timeout, admit)
        except BaseException:
            await connection.close()
            raise
        return connection, callee


def _place(stream: trio.SocketStream) -> Place | None:
    try:
        return Place(stream.socket.family, stream.socket.getpeername())
    except OSError:  # it has ended already
        return None


async def refuses(place: Place, seconds: float) -> bool:
    """Return whether the kernel at a place refuses a connection, which takes so many seconds at most.

    For a place where there was a connection: the name of the host may lead elsewhere by now.
    """
    with trio.move_on_after(seconds), trio.socket.socket(place.family) as attempt:
        track(attempt)
        try:
            await attempt.connect(place.address)
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
    return False


def _bound_unsent(stream: trio.SocketStream) -> None:
    # Not on all systems. Control is then behind what the kernel buffers.
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)


async def _introduce(
    connection: Connection,
    identity: Identity,
    hello: Hello,
    stall_timeout: float,
    admit: Admit,
) -> Hello:
    await connection.secure()
    async with _telling_why(connection, stall_timeout):
        connection.check_name(hello.dialed)
    await connection.write(encode_hello(hello), stall_timeout)
    callee = await _answer(connection)
    async with _telling_why(connection, stall_timeout):
        if objection := identity.objection_to_callee(callee, hello.dialed):
            raise RefusedError(objection, "introduction")
        await admit(callee, connection.may_be)
    return callee


@asynccontextmanager
async def _telling_why(connection: Connection, stall_timeout: float) -> AsyncIterator[None]:
    """Tell the other side why the block refuses it."""
    try:
        yield
    except RefusedError as error:
        with suppress(TransportError):  # it is gone already: the reason counts
            await connection.write(encode_reason(str(error)), stall_timeout)
        raise


async def _answer(connection: Connection) -> Hello:
    try:
        return await connection.read_hello()
    except (RefusedError, FullError):
        raise
    except TransportError as error:
        if not isinstance(connection.stream, trio.SSLStream):
            raise
        # In TLS 1.3 the callee checks the caller's certificate after the caller's handshake is complete. A caller
        # whose certificate is not trusted sees only that the connection ends.
        raise TransportError(
            f"{error}; the peer may not trust the certificate of this host: see the peer's log"
        ) from error


# ---- faults


@contextmanager
def _deadline(seconds: float, message: str) -> Iterator[trio.CancelScope]:
    """Raise `TransportError` with `message` where the block takes longer than `seconds`."""
    try:
        with trio.fail_after(seconds) as scope:
            yield scope
    except trio.TooSlowError as error:
        raise TransportError(message) from error


def _silence(seconds: float) -> AbstractContextManager[trio.CancelScope]:
    return _deadline(seconds, f"nothing came for {seconds:g} s")


def _first_cause(error: BaseException) -> BaseException:
    cause = error
    while True:
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        elif cause.__cause__ is not None:
            cause = cause.__cause__
        else:
            return cause


def _is_end(error: BaseException) -> bool:
    """Return whether TLS has met the end of the connection."""
    return isinstance(_first_cause(error), ssl.SSLEOFError)


def _dialing_error(error: OSError) -> TransportError:
    """Return why no connection could be made."""
    return NobodyListens(str(network_error(error))) if _was_refused(error) else network_error(error)


def _was_refused(error: BaseException) -> bool:
    """Return whether all attempts to connect have failed, and each of them since nothing listens."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_was_refused, error.exceptions))
    if error.__cause__ is not None:
        return _was_refused(error.__cause__)
    return isinstance(error, ConnectionRefusedError)


def network_error(error: BaseException) -> TransportError:
    """Return, in one line, what sockets and TLS spread over a chain of causes."""
    cause = _first_cause(error)
    if isinstance(cause, ssl.SSLEOFError):
        return RefusedError(
            "TLS: the other side closed the connection; it may not trust the certificate of this host", "TLS"
        )
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return RefusedError(_CALLER_HAS_TLS, "TLS")  # what came instead of TLS
    if isinstance(cause, ssl.SSLError) and cause.reason == "TLSV1_ALERT_INTERNAL_ERROR":
        return FullError(_NO_PLACE)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return RefusedError(f"TLS: the other side's certificate is not taken: {cause.verify_message}", "TLS")
    if isinstance(cause, ssl.SSLError):
        return RefusedError(f"TLS: {cause.reason or cause}", "TLS")
    return TransportError(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)
