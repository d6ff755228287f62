"""What stands between hosts on one machine, and breaks their connections: a TCP proxy before each of them."""

import queue
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from tests.actors.support import TIMEOUT_S

CHUNK = 64 << 10
BURST = 0.02
"""Seconds for which a link makes up, as this process is not always in time."""
QUEUE = 0.02
"""Seconds that a full link takes for what waits before it."""


@dataclass(frozen=True, slots=True)
class Link:
    """How slow the way to a host is: bytes a second, over all connections, and seconds that a byte is on its way."""

    bytes_per_second: float
    delay: float

    @property
    def queue_bytes(self):
        """Bytes that wait before it at most, as in a router."""
        return int(QUEUE * self.bytes_per_second)


class Proxies:
    """Gates through which hosts reach one another: each has its own, and what goes to it passes there.

    A context manager. It runs on a thread of its own, and its methods are for any other.

    `routes`: by number, the address that the others dial and the one at which the host listens.
    `link`: how slow the way to each host is.
    """

    def __init__(self, routes, random, link=None):
        self._gates = {number: _Gate(front, back, link) for number, (front, back) in routes.items()}
        self._random = random
        self._started = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        started = self._started.get(timeout=TIMEOUT_S)
        if isinstance(started, BaseException):
            raise started
        self._token, self._scope = started
        return self

    def __exit__(self, *_):
        self._call(self._scope.cancel)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the proxies hang"

    def reset(self, numbers):
        """Break connections to these hosts: all, or each with one chance in two."""
        share = self._random.choice((0.5, 1.0))
        for number in numbers:
            self._call(self._gates[number].reset, lambda: self._random.random() < share)

    @contextmanager
    def refusing(self, numbers):
        """Break all connections to these hosts, and refuse new ones meanwhile."""
        for number in numbers:
            self._call(self._gates[number].refuse)
        yield
        for number in numbers:
            self._call(self._gates[number].admit)

    @contextmanager
    def frozen(self, numbers):
        """Hold back what is on its way to these hosts: it arrives in the end, when it is old."""
        for number in numbers:
            self._call(self._gates[number].freeze)
        yield
        for number in numbers:
            self._call(self._gates[number].thaw)

    def _call(self, function, *args):
        trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def _run(self):
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001  # the test's thread raises it
            self._started.put(error)

    async def _serve(self):
        async with trio.open_nursery() as nursery:
            for gate in self._gates.values():
                await nursery.start(gate.serve)
            self._started.put((trio.lowlevel.current_trio_token(), nursery.cancel_scope))


class _Gate:
    """In front of one host. For the trio thread."""

    def __init__(self, front, back, link):
        self._front, self._back = _parsed(front), _parsed(back)
        self._link, self._free_at = link, 0.0
        self._refusing = False
        self._passage = trio.Event()  # set while what comes may pass
        self._passage.set()
        self._connections = set()

    async def serve(self, *, task_status):
        host, port = self._front
        listeners = await trio.open_tcp_listeners(port, host=host)
        if self._link is not None:
            for listener in listeners:  # else the kernel takes megabytes, which are on no link
                listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._link.queue_bytes)
        await trio.serve_listeners(self._guide, listeners, task_status=task_status)

    def reset(self, chosen=lambda: True):
        for scope in list(self._connections):
            if chosen():
                scope.cancel()

    def refuse(self):
        self._refusing = True
        self.reset()

    def admit(self):
        self._refusing = False

    def freeze(self):
        if self._passage.is_set():
            self._passage = trio.Event()

    def thaw(self):
        self._passage.set()

    async def _guide(self, guest):
        """Let one connection through, until an end of it closes, or it is reset."""
        if self._refusing:
            await _slam(guest)
            return
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                await self._passage.wait()
                await self._join(guest)
            finally:
                self._connections.discard(scope)
                await _slam(guest)

    async def _join(self, guest):
        try:
            host = await trio.open_tcp_stream(*self._back)
        except OSError:
            return  # it was killed, so it accepts no connection
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_in, guest, host, nursery)
                nursery.start_soon(self._carry, host, guest, nursery.cancel_scope)
        finally:
            await _slam(host)

    async def _carry_in(self, guest, host, nursery):
        """Towards the host, at the rate of the link, and as much later."""
        if self._link is not None:
            source, guest = guest, _Underway()
            nursery.start_soon(guest.fill, source, self._transmit)
        await self._carry(guest, host, nursery.cancel_scope)

    async def _transmit(self, size):
        """Wait until the link has taken so many bytes; return when they are at its other end."""
        now = trio.current_time()
        self._free_at = free_at = max(self._free_at, now - BURST) + size / self._link.bytes_per_second
        await trio.sleep_until(free_at)
        return max(free_at, now) + self._link.delay

    async def _carry(self, source, sink, both):
        with suppress(trio.BrokenResourceError):
            while data := await source.receive_some(CHUNK):
                await self._passage.wait()
                await sink.send_all(data)
        both.cancel()


class _Underway:
    """The bytes of a connection that are on a link."""

    CHUNKS = 256

    def __init__(self):
        self._put, self._get = trio.open_memory_channel(self.CHUNKS)

    async def fill(self, source, transmit):
        with self._put, suppress(trio.BrokenResourceError):
            while data := await source.receive_some(CHUNK):
                await self._put.send((await transmit(len(data)), data))

    async def receive_some(self, _):
        try:
            there_at, data = await self._get.receive()
        except trio.EndOfChannel:
            return b""
        await trio.sleep_until(there_at)
        return data


async def _slam(stream):
    """Close a connection such that the other end sees it broken, not ended."""
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with trio.CancelScope(shield=True):
        await stream.aclose()


def _parsed(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)
