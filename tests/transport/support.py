"""Hosts with a real transport on the loopback interface, and peers that misbehave."""

import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

import cbor2
import pytest
import trio
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.transport.addresses import parse_address
from drakkar.transport.frames import Frame, FrameKind, FrameReader
from drakkar.transport.hello import PROTOCOL_VERSION, Hello, Run, decode_hello, decode_reason, encode_hello
from drakkar.transport.options import Options
from drakkar.transport.tcp import TcpTransport

HEARTBEAT, REPLICATE = MessageType.HEARTBEAT, MessageType.REPLICATE
LOCAL = "127.0.0.1:0"
QUICK = Options(backoff_first=0.01, backoff_last=0.05)


def on_loop(scenario: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test, for half a minute at most."""

    @wraps(scenario)
    def run(**fixtures: Any) -> None:
        async def bounded() -> None:
            with trio.fail_after(30):
                await scenario(**fixtures)

        trio.run(bounded)

    return run


async def until(true: Callable[[], object]) -> None:
    """Wait until a condition holds that no event announces. The test's own deadline ends the wait."""
    while not true():  # noqa: ASYNC110  # counters are numbers without events
        await trio.sleep(0.001)


class Host:
    """A transport, and what it reported."""

    def __init__(self, address: str = LOCAL, **settings: Any) -> None:
        self.received: list[Message] = []
        self.batches: list[list[Message]] = []
        self.lost: list[str] = []
        self.callers: list[FakePeer] = []
        self.scope = trio.CancelScope()
        self.stopped = trio.Event()
        settings = {"deliver": self.deliver, "unreachable": self.lost.append, "options": QUICK} | settings
        self.transport = TcpTransport(address, **settings)

    @property
    def address(self) -> str:
        return self.transport.address

    @property
    def counters(self) -> Any:
        return self.transport.counters

    def deliver(self, _address: str, messages: list[Message]) -> None:
        self.received += messages
        self.batches.append(messages)

    def send(self, to: "Host | str", *messages: Message) -> int:
        return self.transport.send(to if isinstance(to, str) else to.address, messages or [heartbeat(0)])

    def connected(self, to: "Host | str") -> bool:
        status = self.transport.peers().get(to if isinstance(to, str) else to.address)
        return status is not None and status.connected

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self.scope:
                await self.transport.serve(task_status=task_status)
        finally:
            self.stopped.set()

    async def stop(self) -> None:
        self.scope.cancel()
        await self.stopped.wait()


@asynccontextmanager
async def running(*hosts: Host) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for host in hosts:
            await nursery.start(host.run)
        yield nursery
        nursery.cancel_scope.cancel()
    for host in hosts:
        for caller in host.callers:
            await trio.aclose_forcefully(caller.stream)


def heartbeat(number: int, **fields: Any) -> Message:
    return Message(HEARTBEAT, to=2, sender=1, shard=1, term=number, **fields)


def bulk(size: int, number: int = 1) -> Message:
    return Message(REPLICATE, to=2, sender=1, term=number, entries=(Entry(number, 1, payload=bytes(size)),))


def body(control: Any, bulk: bytes = b"") -> bytes:
    """The body of a MESSAGES frame, made by hand."""
    data = control if isinstance(control, bytes) else cbor2.dumps(control)
    return struct.pack(">I", len(data)) + data + bulk


def lengths(*runs: int) -> bytes:
    """What stands before the runs of a message."""
    return struct.pack(f">{len(runs)}I", *runs)


def message_row(**fields: Any) -> list[Any]:
    """A heartbeat as it travels, with some of its fields changed."""
    row: dict[str, Any] = {
        "type": int(MessageType.HEARTBEAT), "to": 2, "sender": 1, "shard": 0, "term": 0, "log_term": 0, "log_index": 0,
        "commit": 0, "reject": False, "hint": 0, "hint_high": 0, "runs": 0, "snapshot": None, "payload": None,
    }  # fmt: skip
    return list((row | fields).values())


class FakePeer:
    """A peer that speaks the protocol as badly as a test wants it to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.reader = FrameReader()
        self.frames: list[Frame] = []

    @classmethod
    async def dial(cls, host: Host, source: str | None = None) -> "FakePeer":
        """One that has a connection to `host`, from the IP address `source`."""
        where, port = parse_address(host.address)
        host.callers.append(cls(await trio.open_tcp_stream(where, port, local_address=source)))
        return host.callers[-1]

    @classmethod
    async def introduced(cls, host: Host, *, source: str | None = None, **fields: Any) -> "FakePeer":
        """One that dialed `host` and was accepted."""
        fake = await cls.dial(host, source)
        await fake.send(encode_hello(hello(host.address, **fields)))
        assert (await fake.next_frame()).kind == FrameKind.HELLO
        return fake

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def next_frame(self) -> Frame:
        while not self.frames:
            data = await self.stream.receive_some(1 << 16)
            if not data:
                raise trio.EndOfChannel
            self.frames += self.reader.feed(bytes(data))
        return self.frames.pop(0)

    async def told(self) -> tuple[int, str]:
        """The kind of the next frame, and the reason in it."""
        frame = await self.next_frame()
        return frame.kind, decode_reason(frame.body)

    async def closed(self) -> None:
        """Wait for the end of the connection."""
        with suppress(trio.EndOfChannel, trio.BrokenResourceError):
            while True:
                await self.next_frame()


def hello(dialed: str, **fields: Any) -> Hello:
    settings: dict[str, Any] = {
        "version": PROTOCOL_VERSION,
        "deployment_id": "default",
        "address": "10.9.9.9:1",
        "run": Run.first(1),
    } | fields
    settings.setdefault("host_id", "host at " + settings["address"])
    return Hello(dialed=dialed, **settings)


@asynccontextmanager
async def listening(answer: Callable[[FakePeer], Awaitable[None]]) -> AsyncIterator[str]:
    """A listener on a free port, which treats each connection with `answer`; gives its address."""

    async def treat(stream: trio.SocketStream) -> None:
        try:
            await answer(FakePeer(stream))
        except (trio.BrokenResourceError, trio.EndOfChannel):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(partial(trio.serve_listeners, treat, [listener], handler_nursery=nursery))
        yield f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def welcome(caller: FakePeer, **fields: Any) -> Hello:
    """Accept a transport that dialed, as the host that it wanted to reach."""
    frame = await caller.next_frame()
    introduction = decode_hello(frame.body)
    await caller.send(encode_hello(hello(introduction.address, address=introduction.dialed, **fields)))
    return introduction


async def say_nothing(_: FakePeer) -> None:
    await trio.sleep_forever()


async def welcome_and_say_nothing(caller: FakePeer) -> None:
    await welcome(caller)
    await trio.sleep_forever()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_open(one: socket.socket) -> bool:
    """Whether the other side has not closed a connection, which does not block; close it where it has. What came is thrown away."""
    try:
        is_open = one.recv(4096) != b""
    except BlockingIOError:
        return True
    except OSError:
        is_open = False
    if not is_open:
        one.close()
    return is_open
