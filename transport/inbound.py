"""The connections that other hosts open to this one: admission, and what comes over them."""

import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import trio
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message
from drakkar.transport.addresses import canonical
from drakkar.transport.connection import Connection
from drakkar.transport.frames import Frame, FrameError, FrameKind, encode_frame
from drakkar.transport.hello import Hello, Identity, RefusedError, decode_reason, encode_hello, encode_reason
from drakkar.transport.incoming_streams import IncomingStreams
from drakkar.transport.message_frames import Decoded, decode_messages
from drakkar.transport.options import Counters, Options

__all__ = ["Inbound"]

_log: Final = logging.getLogger("drakkar.transport")

_ECHO_BYTES: Final = 64
"""Maximum bytes of a PING that come back in the PONG."""
_TURN_BYTES: Final = 64 << 10
"""Bytes of frames that are decoded before other tasks of the loop get a turn: about a millisecond of work."""


class Inbound:
    """All connections that other hosts open to this one. For the trio loop's thread only.

    `connected` is called with the canonical address of a caller whose connection for messages was accepted. For the
    other arguments see `TcpTransport`.
    """

    def __init__(
        self,
        *,
        identity: Callable[[], Identity],
        options: Options,
        counters: Counters,
        tls: ssl.SSLContext | None,
        streams: IncomingStreams,
        deliver: Callable[[str, list[Message]], None],
        connected: Callable[[str], None],
        frames: Mapping[int, Callable[[str, memoryview], None]],
    ) -> None:
        self._identity, self._options, self._counters, self._tls = identity, options, counters, tls
        self._streams, self._deliver, self._connected, self._frames = streams, deliver, connected, frames
        self._callers: dict[str, trio.CancelScope] = {}
        self._introducing = 0
        """Connections whose caller has not introduced itself yet."""

    async def accept(self, stream: trio.SocketStream) -> None:
        """Serve one inbound connection until it closes. Its errors never stop the listener."""
        secure: trio.abc.Stream = stream
        if self._tls is not None:
            secure = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        connection = Connection(secure, self._counters, self._options.frame_limit)
        source = _remote_address(stream)
        try:
            await self._serve(connection, source)
        except TransportError as error:
            await self._report(connection, source, error)
        except Exception:  # noqa: BLE001  # logged; one connection must not stop the listener
            self._counters.failed += 1
            _log.exception("this host failed to handle what %s sent, and closes the connection", source)
        finally:
            await connection.close()

    async def _serve(self, connection: Connection, source: str) -> None:
        timeout = self._options.connect_timeout
        self._introducing += 1
        try:
            with trio.fail_after(timeout):
                caller = await self._admit(connection)
        except trio.TooSlowError as error:
            raise RefusedError(f"no introduction within {timeout:g} s") from error
        finally:
            self._introducing -= 1
        if caller.stream:
            await self._streams.receive(connection, caller.address)
            return
        self._counters.accepted += 1
        _log.info("%s connected from %s", caller.address, source)
        with trio.CancelScope() as scope:
            await self._read(connection, caller, scope)

    async def _admit(self, connection: Connection) -> Hello:
        """Exchange introductions, and return the caller's. Raises `RefusedError` where the caller is refused."""
        limit, identity = self._options.max_incoming, self._identity()
        full = RefusedError(f"{identity.address} has {limit} connections from others, and takes no more")
        # Connections without an introduction have a limit of their own: they take no places from known hosts.
        if self._introducing > limit:
            raise full
        await connection.secure()
        caller = await connection.read_hello()
        if objection := identity.objection_to_caller(caller):
            raise RefusedError(objection)
        if (
            not caller.stream
            and len(self._callers) >= limit
            and canonical(caller.address) not in self._callers
        ):
            raise full
        await connection.write(encode_hello(identity.hello(caller.dialed)), self._options.connect_timeout)
        return caller

    async def _read(self, connection: Connection, caller: Hello, scope: trio.CancelScope) -> None:
        name = canonical(caller.address)
        # A host that dials again has given up its old connection, even where this host has not noticed yet.
        if (old := self._callers.get(name)) is not None:
            old.cancel()
        self._callers[name] = scope
        self._connected(name)
        # A PING comes in each keep-alive interval. One may be late, or lost in a busy host.
        timeout = 2 * self._options.keepalive + self._options.answer_timeout
        try:
            await connection.read_until_lost(timeout, partial(self._handle_frames, connection, caller))
        finally:
            if self._callers.get(name) is scope:
                del self._callers[name]

    async def _handle_frames(self, connection: Connection, caller: Hello, frames: Iterable[Frame]) -> None:
        """Deliver the frames of one read, and give other tasks of the loop a turn now and then."""
        messages: list[Message] = []
        decoded = 0
        for frame in frames:
            if decoded > _TURN_BYTES:
                messages = self._hand_over(caller, messages)
                decoded = 0
                await trio.lowlevel.checkpoint()
            decoded += len(frame.body)
            if frame.kind == FrameKind.MESSAGES:
                messages += self._decode(frame.body, caller)
            elif frame.kind == FrameKind.PING:
                pong = encode_frame(FrameKind.PONG, bytes(frame.body[:_ECHO_BYTES]))
                await connection.write(pong, self._options.send_timeout)
            else:
                messages = self._hand_over(caller, messages)
                self._handle_other(frame, caller)
        self._hand_over(caller, messages)

    def _hand_over(self, caller: Hello, messages: list[Message]) -> list[Message]:
        """Deliver messages; return an empty list for the next ones."""
        if messages:
            self._counters.received += len(messages)
            self._deliver(caller.address, messages)
        return []

    def _decode(self, body: memoryview, caller: Hello) -> list[Message]:
        decoded = decode_messages(body)
        if decoded.unknown or decoded.local or decoded.anonymous:
            self._count_dropped(decoded, caller)
        return decoded.messages

    def _count_dropped(self, decoded: Decoded, caller: Hello) -> None:
        counters = self._counters
        # One warning: a host that sends one such message will send many.
        first = not (counters.unknown_types or counters.local_types or counters.anonymous)
        counters.unknown_types += decoded.unknown
        counters.local_types += decoded.local
        counters.anonymous += decoded.anonymous
        _log.log(
            logging.WARNING if first else logging.DEBUG,
            "dropped messages from %s: %d of unknown type, %d of a type that no peer may send, %d without a sender",
            caller.address,
            decoded.unknown,
            decoded.local,
            decoded.anonymous,
        )

    def _handle_other(self, frame: Frame, caller: Hello) -> None:
        """Handle a frame that is neither messages nor keep-alive."""
        if frame.kind == FrameKind.REFUSED:
            raise RefusedError(decode_reason(frame.body))
        receiver = self._frames.get(frame.kind)
        if receiver is not None:
            receiver(caller.address, frame.body)
            return
        level = logging.DEBUG if self._counters.unknown_frames else logging.WARNING
        self._counters.unknown_frames += 1
        _log.log(level, "dropped a frame of unknown kind %d from %s", frame.kind, caller.address)

    async def _report(self, connection: Connection, source: str, error: TransportError) -> None:
        """Log why a connection ends, and tell the peer where a host is at fault and not the network."""
        at_fault = isinstance(error, (FrameError, RefusedError))
        self._counters.count_fault(error)
        _log.log(
            logging.WARNING if at_fault else logging.INFO, "closed the connection from %s: %s", source, error
        )
        if at_fault:
            with trio.move_on_after(1), suppress(TransportError):
                await connection.write(encode_reason(str(error)), 1)


def _remote_address(stream: trio.SocketStream) -> str:
    """Return where a connection comes from, for the log."""
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:
        return "an address that is no longer known"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
