"""One connection to another host: frames with deadlines, dialing, and the introduction that opens it."""

import os
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final, NoReturn

import trio
from drakkar.handlers.errors import TransportError
from drakkar.transport.addresses import canonical, parse_address
from drakkar.transport.frames import SMALL_FRAME_LIMIT, Frame, FrameError, FrameKind, FrameReader
from drakkar.transport.hello import (
    Hello,
    Identity,
    RefusedError,
    decode_hello,
    decode_reason,
    encode_hello,
    encode_reason,
)
from drakkar.transport.options import Counters, Options

__all__ = ["Connection", "dial", "network_error"]

_READ_BYTES: Final = 256 << 10
# Each slice has a deadline of its own, so that a big frame on a slow link does not look like a dead peer.
_WRITE_BYTES: Final = 256 << 10


class Connection:
    """Frames over a byte stream, with deadlines. Every fault of the peer or the network becomes a `TransportError`.

    All timeouts are in seconds. For the trio loop's thread only.
    """

    def __init__(self, stream: trio.abc.Stream, counters: Counters, frame_limit: int) -> None:
        self.stream = stream
        self.fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        """The socket, where its bytes may be read and written directly; -1 where TLS is in between."""
        self._counters = counters
        self._frame_limit = frame_limit
        self._reader = FrameReader(SMALL_FRAME_LIMIT)
        self._pending: list[Frame] = []

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
            while True:
                await handle(await self._read())
                deadline = trio.current_time() + silence_timeout
                if scope.deadline < deadline - silence_timeout / 8:
                    scope.deadline = deadline

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
        with suppress(OSError, trio.BrokenResourceError):
            while await self._read_bytes():
                pass

    async def _read(self) -> list[Frame]:
        """Wait for some bytes, and return the frames that they complete."""
        if self._pending:
            frames, self._pending = self._pending, []
            return frames
        try:
            data = await self._read_bytes()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise network_error(error) from error
        if not data:
            raise TransportError("the other side closed the connection")
        self._counters.received_bytes += len(data)
        return self._reader.feed(bytes(data))

    async def _read_bytes(self) -> bytes | bytearray:
        if self.fd < 0:
            return await self.stream.receive_some(_READ_BYTES)
        # `receive_some` tries to read before it waits. Here the previous read has emptied the socket, so that attempt
        # would fail, and cost a system call and an exception for each message.
        while True:
            await trio.lowlevel.wait_readable(self.fd)
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
            await self.stream.do_handshake()
        except (OSError, trio.BrokenResourceError) as error:
            raise network_error(error) from error

    async def read_hello(self) -> Hello:
        """Wait for the peer's introduction, the first frame. Frames of full size are accepted after it.

        Raises `RefusedError` where the peer refuses this host, and `FrameError` where the frame is no introduction.
        """
        while not (frames := await self._read()):
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
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise network_error(error) from error
            self._counters.sent_bytes += len(part)

    async def close(self) -> None:
        """Close it at once, without waiting, also while the caller is being cancelled."""
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
    """Connect to the host at `address` and introduce this one; return the connection, and the peer's introduction.

    `stream` asks for a connection for one stream instead of messages.

    Raises `TransportError` where that fails or takes longer than `connect_timeout`, and `RefusedError` where one of the
    two hosts refuses the other.
    """
    timeout = options.connect_timeout
    with _deadline(timeout, f"no connection within {timeout:g} s"):
        # Resolved again each time: a peer may come back under its old name with a new IP address.
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
            callee = await _introduce(connection, identity, identity.hello(address, stream=stream), timeout)
        except BaseException:
            await connection.close()
            raise
        return connection, callee


async def _introduce(connection: Connection, identity: Identity, hello: Hello, stall_timeout: float) -> Hello:
    await connection.secure()
    await connection.write(encode_hello(hello), stall_timeout)
    callee = await _answer(connection)
    if objection := identity.objection_to_callee(callee, hello.dialed):
        await connection.write(encode_reason(objection), stall_timeout)
        raise RefusedError(objection)
    return callee


async def _answer(connection: Connection) -> Hello:
    try:
        return await connection.read_hello()
    except RefusedError:
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


def network_error(error: BaseException) -> TransportError:
    """Return, in one line, what sockets and TLS spread over a chain of causes."""
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
            "TLS: the other side closed the connection; it may not trust the certificate of this host"
        )
    if isinstance(cause, ssl.SSLError):
        return RefusedError(f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or cause}")
    return TransportError(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)
