"""Transports over real sockets on the loopback interface."""

import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from drakkar.handlers.errors import ConfigError, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.transport import peer
from drakkar.transport.connection import canonical
from drakkar.transport.peer import Backoff
from drakkar.transport.tcp import Options, TcpTransport, parse_address
from drakkar.transport.wire import (
    Frame,
    FrameKind,
    FrameReader,
    Hello,
    decode_hello,
    decode_reason,
    encode_frame,
    encode_hello,
    encode_messages,
)

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
    """Wait for something that no event announces; the test's own deadline ends a wait in vain."""
    while not true():  # noqa: ASYNC110  # counters are numbers, and tell nobody when they change
        await trio.sleep(0.001)


class Host:
    """A transport, and what it reported."""

    def __init__(self, address: str = LOCAL, **settings: Any) -> None:
        self.received: list[Message] = []
        self.batches: list[list[Message]] = []
        self.lost: list[str] = []
        self.guests: list[Stranger] = []
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
        for guest in host.guests:
            await trio.aclose_forcefully(guest.stream)


def heartbeat(number: int, **fields: Any) -> Message:
    return Message(HEARTBEAT, to=2, sender=1, shard=1, term=number, **fields)


def bulk(size: int, number: int = 1) -> Message:
    return Message(REPLICATE, to=2, sender=1, term=number, entries=(Entry(number, 1, payload=bytes(size)),))


class Stranger:
    """A peer that speaks the protocol as badly as a test wants it to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.reader = FrameReader()
        self.frames: list[Frame] = []

    @classmethod
    async def dial(cls, host: Host) -> "Stranger":
        where, port = parse_address(host.address)
        host.guests.append(cls(await trio.open_tcp_stream(where, port)))
        return host.guests[-1]

    @classmethod
    async def introduced(cls, host: Host, **fields: Any) -> "Stranger":
        """One that dialed `host`, and was let in."""
        stranger = await cls.dial(host)
        await stranger.say(encode_hello(hello(host.address, **fields)))
        assert (await stranger.next_frame()).kind == FrameKind.HELLO
        return stranger

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def next_frame(self) -> Frame:
        while not self.frames:
            data = await self.stream.receive_some(1 << 16)
            if not data:
                raise trio.EndOfChannel
            self.frames += self.reader.feed(bytes(data))
        return self.frames.pop(0)

    async def closed(self) -> None:
        """Wait for the end of the connection."""
        with suppress(trio.EndOfChannel, trio.BrokenResourceError):
            while True:
                await self.next_frame()


def hello(dialed: str, **fields: Any) -> Hello:
    settings: dict[str, Any] = {
        "version": (1, 0),
        "deployment_id": "default",
        "address": "10.9.9.9:1",
    } | fields
    return Hello(dialed=dialed, **settings)


@asynccontextmanager
async def listening(answer: Callable[[Stranger], Awaitable[None]]) -> AsyncIterator[str]:
    """A listener on a free port, which treats each connection with `answer`; gives its address."""

    async def treat(stream: trio.SocketStream) -> None:
        try:
            await answer(Stranger(stream))
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


async def welcome(guest: Stranger) -> Hello:
    """Let a transport that dialed in, as whoever it wanted to reach."""
    frame = await guest.next_frame()
    introduction = decode_hello(frame.body)
    await guest.say(encode_hello(hello(introduction.address, address=introduction.dialed)))
    return introduction


async def say_nothing(_: Stranger) -> None:
    await trio.sleep_forever()


async def welcome_and_say_nothing(guest: Stranger) -> None:
    await welcome(guest)
    await trio.sleep_forever()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]  # type: ignore[no-any-return]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- messages go there and back


@on_loop
async def test_two_hosts_exchange_messages() -> None:
    a, b = Host(), Host()
    async with running(a, b):
        assert a.send(b, heartbeat(1), bulk(1000)) == 0
        await until(lambda: len(b.received) == 2)
        b.send(a, heartbeat(2, reject=True, payload={"k": [1, b"2"]}))
        await until(lambda: a.received)
    assert b.received == [heartbeat(1), bulk(1000)]
    assert a.received == [heartbeat(2, reject=True, payload={"k": [1, b"2"]})]
    assert (a.counters.sent, a.counters.received) == (2, 1)
    assert a.counters.sent_bytes > 1000
    assert a.lost == b.lost == []


@on_loop
async def test_messages_arrive_in_the_order_in_which_they_were_sent() -> None:
    a, b = Host(), Host()
    async with running(a, b):
        for start in range(0, 20_000, 100):
            assert a.send(b, *(heartbeat(at) for at in range(start, start + 100))) == 0
            if start % 1000 == 0:
                await trio.lowlevel.checkpoint()
                a.send(b, bulk(100_000, start))
            await until(lambda: a.transport.peers()[b.address].queued_messages < 5000)
        await until(lambda: len(b.received) == 20_020)
    assert [m.term for m in b.received if m.type is HEARTBEAT] == list(range(20_000))
    terms = [m.term for m in b.received]
    assert all(terms[at - 1] == m.term + 99 for at, m in enumerate(b.received) if m.type is REPLICATE)


@on_loop
async def test_what_is_sent_together_arrives_together() -> None:
    a, b = Host(), Host()
    async with running(a, b):
        a.send(b, heartbeat(0))
        await until(lambda: b.received)
        a.send(b, *(Message(HEARTBEAT, sender=1, shard=shard) for shard in range(500)))
        await until(lambda: len(b.received) == 501)
    assert [len(batch) for batch in b.batches] == [1, 500]


@on_loop
async def test_an_idle_connection_takes_a_message_within_the_call() -> None:
    """No turn of the loop passes between `send` and the kernel."""
    a, b = Host(), Host()
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)
        before = a.counters.sent_bytes
        a.send(b)
        assert a.counters.sent_bytes > before
        assert a.transport.peers()[b.address].queued_messages == 0


@on_loop
async def test_what_is_more_than_one_write_follows_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_WRITE_BYTES", 1000)
    a, b = Host(), Host()
    async with running(a, b):
        a.send(b, heartbeat(0))
        await until(lambda: b.received)
        a.send(b, *(bulk(900, number) for number in range(1, 20)))
        await until(lambda: len(b.received) == 20)


@on_loop
async def test_a_message_of_many_megabytes_arrives_whole() -> None:
    a, b = Host(), Host()
    async with running(a, b):
        a.send(b, bulk(40 << 20), heartbeat(2))
        await until(lambda: len(b.received) == 2)
    assert b.received == [bulk(40 << 20), heartbeat(2)]


@on_loop
async def test_a_host_may_send_to_itself() -> None:
    a = Host()
    async with running(a):
        a.send(a, heartbeat(1))
        await until(lambda: a.received == [heartbeat(1)])


@on_loop
async def test_messages_sent_before_the_host_serves_wait_for_it_and_those_after_it_ended_are_dropped() -> (
    None
):
    a, b = Host(), Host()
    async with running(b):
        a.send(b, heartbeat(1))
        async with running(a):
            await until(lambda: b.received == [heartbeat(1)])
        assert a.send(b, heartbeat(2), heartbeat(3)) == 2
        assert not a.transport.send_frame(b.address, 100, b"")
    assert a.counters.dropped == 3
    assert a.transport.peers() == {}


@on_loop
async def test_frames_of_other_kinds_reach_whoever_asked_for_them_in_order_with_messages() -> None:
    seen: list[Any] = []
    b = Host(
        frames={100: lambda sender, body: seen.append((sender, bytes(body)))},
        deliver=lambda _, messages: seen.extend(message.term for message in messages),
    )
    a = Host()
    async with running(a, b):
        a.send(b, heartbeat(1))
        assert a.transport.send_frame(b.address, 100, b"two")
        a.send(b, heartbeat(3))
        await until(lambda: len(seen) == 3)
    assert seen == [1, (a.address, b"two"), 3]


def test_a_frame_longer_than_the_limit_is_refused_to_its_sender() -> None:
    host = Host(options=Options(frame_limit=1 << 16))
    with pytest.raises(TransportError, match="send it in parts"):
        host.transport.send_frame("127.0.0.1:1", 100, bytes(70_000))


@pytest.mark.parametrize("kind", [0, int(FrameKind.PONG), 256])
def test_a_kind_of_frame_that_is_not_free_is_refused(kind: int) -> None:
    with pytest.raises(ConfigError, match="from 16 to 255"):
        Host(frames={kind: print})
    with pytest.raises(ConfigError, match="from 16 to 255"):
        Host().transport.send_frame("127.0.0.1:1", kind, b"")


# ---- peers that come and go


@on_loop
async def test_a_peer_that_restarts_is_found_again() -> None:
    a, b = Host(), Host()
    async with running(a, b) as nursery:
        for round_ in range(3):
            await until(lambda b=b: a.send(b) or b.received)
            lost = len(a.lost)
            await b.stop()
            await until(lambda lost=lost: len(a.lost) > lost)
            assert set(a.lost) == {b.address}
            assert a.counters.lost == round_ + 1
            b = Host(b.address)
            await nursery.start(b.run)
        await until(lambda: a.send(b) or b.received)


@on_loop
async def test_a_peer_that_comes_back_is_dialed_at_once_and_not_after_the_back_off() -> None:
    slow = Options(backoff_first=1000, backoff_last=1000)
    a, b = Host(options=slow), Host(f"127.0.0.1:{free_port()}")
    async with running(a) as nursery:
        a.send(b, heartbeat(1))
        await until(lambda: a.lost)
        a.send(b, heartbeat(2))
        await nursery.start(b.run)
        b.send(a)
        await until(lambda: b.received)
    assert b.received == [heartbeat(2)]


@on_loop
async def test_unreachable_is_told_once_an_attempt_and_what_waited_is_dropped() -> None:
    a = Host(options=Options(backoff_first=1000, backoff_last=1000))
    nobody = f"127.0.0.1:{free_port()}"
    async with running(a):
        assert a.send(nobody, heartbeat(1), heartbeat(2)) == 0
        await until(lambda: a.lost)
        assert a.lost == [nobody]
        assert (a.counters.dropped, a.counters.connect_failures) == (2, 1)
        a.send(nobody)
        status = a.transport.peers()[nobody]
    assert (status.connected, status.failures, status.queued_messages) == (False, 1, 1)
    assert "refused" in status.error.lower()
    assert a.lost == [nobody]


@on_loop
async def test_an_attempt_is_only_made_while_there_is_something_to_send() -> None:
    a = Host()
    nobody = f"127.0.0.1:{free_port()}"
    async with running(a):
        a.send(nobody)
        await until(lambda: a.lost)
        await until(lambda: a.transport.peers()[nobody].queued_messages == 0)
        with trio.move_on_after(QUICK.backoff_last * 4) as window:
            await until(lambda: a.counters.connect_failures > 1)
    assert window.cancelled_caught


@on_loop
async def test_a_failure_is_logged_as_a_warning_once_and_not_at_each_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "drakkar.transport")
    a = Host()
    nobody = f"127.0.0.1:{free_port()}"
    async with running(a):
        await until(lambda: a.send(nobody) or a.counters.connect_failures >= 4)
    assert [text for text in warnings(caplog) if nobody in text and "cannot reach" in text] == warnings(
        caplog
    )
    assert len(warnings(caplog)) == 1


@on_loop
async def test_a_peer_that_is_not_used_any_more_is_forgotten() -> None:
    a, b = Host(options=Options(idle_timeout=0.05, keepalive=0.02)), Host()
    async with running(a, b):
        a.send(b)
        a.send("127.0.0.1:1")
        await until(lambda: b.received)
        await until(lambda: a.transport.peers() == {})
        await until(lambda: b.transport._guests == {})
        a.send(b, heartbeat(9))
        await until(lambda: heartbeat(9) in b.received)


@on_loop
async def test_hundreds_of_peers_that_are_away_do_not_delay_one_that_answers() -> None:
    a, b = Host(), Host()
    async with running(a, b):
        for port in range(1, 300):
            a.send(f"127.0.0.1:{port}")
        a.send(b)
        await until(lambda: b.received)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@on_loop
async def test_two_hundred_reconnects_and_a_stop_leave_no_socket_and_no_task() -> None:
    a, b = Host(options=Options(backoff_first=0.001, backoff_last=0.001)), Host()
    # Name resolution and the like open what they keep at the first use.
    async with running(Host()):
        pass
    files, tasks = open_files(), trio.lowlevel.current_statistics().tasks_living
    async with running(a, b):
        await until(lambda: a.send(b) or b.received)
        busy = trio.lowlevel.current_statistics().tasks_living
        for count in range(1, 201):
            for scope in list(b.transport._guests.values()):
                scope.cancel()
            await until(lambda count=count: a.counters.lost == count)
            await until(lambda: a.send(b) or a.connected(b))
            await until(lambda: b.transport._guests)
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= busy)
    assert a.counters.connects == 201
    assert open_files() == files
    assert trio.lowlevel.current_statistics().tasks_living == tasks


@on_loop
async def test_a_host_that_is_stopped_while_it_dials_writes_and_listens_leaves_no_socket() -> None:
    async with running(Host()):
        pass
    files = open_files()
    async with (
        listening(welcome_and_say_nothing) as silent,
        listening(say_nothing) as mute,
    ):
        a = Host()
        async with running(a):
            guest = await Stranger.introduced(a)
            await Stranger.dial(a)
            await until(lambda: a.send(silent, bulk(1 << 20)))
            a.send(mute)
            await until(lambda: a.transport._strangers == 1)
            await a.stop()
            await guest.closed()
    assert open_files() == files


# ---- slow and silent peers


@on_loop
async def test_a_peer_that_never_reads_fills_its_own_queue_only() -> None:
    limit = 4 << 20
    a, b = Host(options=Options(queue_bytes=limit)), Host()
    async with listening(welcome_and_say_nothing) as stuck, running(a, b):
        dropped = 0
        for _ in range(200):
            dropped += a.send(stuck, bulk(100_000))
            await trio.lowlevel.checkpoint()
        status = a.transport.peers()[stuck]
        assert dropped > 0
        assert status.queued_bytes <= limit
        assert a.counters.dropped == dropped
        assert set(a.lost) == {stuck}
        a.send(b, heartbeat(7))
        await until(lambda: b.received == [heartbeat(7)])


@on_loop
async def test_the_queue_is_bounded_in_messages_too() -> None:
    a = Host(options=Options(queue_messages=10))
    async with listening(say_nothing) as mute, running(a):
        assert a.send(mute, *map(heartbeat, range(8))) == 0
        assert a.send(mute, *map(heartbeat, range(8))) == 6
    assert a.counters.dropped == 6
    assert a.lost == [mute]


@on_loop
async def test_a_message_longer_than_the_queue_passes_when_nothing_else_waits() -> None:
    a, b = Host(options=Options(queue_bytes=1000)), Host()
    async with running(a, b):
        assert a.send(b, bulk(100_000), bulk(1)) == 1
        await until(lambda: b.received == [bulk(100_000)])


@on_loop
async def test_a_peer_that_never_reads_is_given_up_after_the_send_timeout() -> None:
    a = Host(options=Options(send_timeout=0.05, keepalive=60))
    async with listening(welcome_and_say_nothing) as stuck, running(a):
        await until(lambda: a.counters.lost or a.send(stuck, bulk(1 << 20)))
        await until(lambda: a.counters.lost)
        status = a.transport.peers()[stuck]
        assert "took nothing" in status.error
        # What is stale by now is not sent when it comes back.
        assert (status.queued_messages, status.queued_bytes) == (0, 0)
        assert a.counters.dropped > 0


@on_loop
async def test_a_peer_that_went_silent_is_noticed_although_there_is_always_something_to_send() -> None:
    """As when its machine lost power: nobody answers, and the kernel takes heartbeats for a long time."""
    a = Host(options=Options(keepalive=0.05, answer_timeout=0.05))

    async def read_and_never_answer(guest: Stranger) -> None:
        await welcome(guest)
        while True:
            await guest.next_frame()

    async with listening(read_and_never_answer) as silent, running(a):
        await until(lambda: a.send(silent) or a.counters.lost)
        assert silent in a.lost
        assert "nothing came" in a.transport.peers()[silent].error


@on_loop
async def test_a_guest_that_went_silent_is_put_out() -> None:
    a = Host(options=Options(keepalive=0.02, answer_timeout=0.02))
    async with running(a):
        guest = await Stranger.introduced(a)
        await guest.closed()
        await until(lambda: not a.transport._guests)


@on_loop
async def test_a_guest_that_keeps_sending_pings_stays_and_has_them_answered() -> None:
    a = Host(options=Options(keepalive=0.02, answer_timeout=0.1))
    async with running(a):
        guest = await Stranger.introduced(a)
        for number in range(30):
            await guest.say(encode_frame(FrameKind.PING, b"%d" % number))
            frame = await guest.next_frame()
            assert (frame.kind, bytes(frame.body)) == (FrameKind.PONG, b"%d" % number)
            await trio.sleep(0.01)
        assert a.transport._guests


@on_loop
async def test_pings_keep_an_idle_connection_and_measure_the_round_trip() -> None:
    quick = Options(keepalive=0.02, answer_timeout=1)
    a, b = Host(options=quick), Host(options=quick)
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)
        await until(lambda: a.transport.peers()[b.address].rtt is not None)
        received = b.counters.received_bytes
        await until(lambda: b.counters.received_bytes > received + 100)
        assert a.connected(b)
    assert (a.counters.lost, a.counters.connects) == (0, 1)


@on_loop
async def test_a_busy_connection_has_its_pings_too() -> None:
    quick = Options(keepalive=0.02, answer_timeout=0.3)
    a, b = Host(options=quick), Host(options=quick)
    async with running(a, b):
        pongs = 40 * len(encode_frame(FrameKind.PONG, bytes(8)))
        await until(lambda: a.send(b) or a.counters.received_bytes > pongs)
    assert (a.counters.lost, a.counters.connects) == (0, 1)


@on_loop
async def test_whoever_dials_and_says_nothing_is_put_out() -> None:
    a = Host(options=Options(connect_timeout=0.05))
    async with running(a):
        mute = await Stranger.dial(a)
        assert "no introduction" in decode_reason((await mute.next_frame()).body)
        await mute.closed()
    assert a.counters.refused == 1


@on_loop
async def test_a_host_that_accepts_and_says_nothing_is_unreachable() -> None:
    a = Host(options=Options(connect_timeout=0.05))
    async with listening(say_nothing) as mute, running(a):
        a.send(mute)
        await until(lambda: a.lost == [mute])
        assert a.transport.peers()[mute].error == "no connection within 0.05 s"


# ---- hosts that do not belong together


async def refusal(a: Host, b: Host, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Let a dial b in vain; the warnings of both."""
    async with running(a, b):
        a.send(b)
        await until(lambda: a.lost)
        await until(lambda: b.counters.refused)
        assert not a.connected(b)
    assert (a.counters.refused, b.counters.refused) == (1, 1)
    assert b.received == []
    return warnings(caplog)


@on_loop
async def test_another_deployment_is_refused_and_both_sides_say_why(caplog: pytest.LogCaptureFixture) -> None:
    said = await refusal(Host(deployment_id="blue"), Host(deployment_id="green"), caplog)
    assert len(said) == 2
    assert all(
        "deployment 'blue'" in text and "'green'" in text and "same deployment_id" in text for text in said
    )


@on_loop
async def test_another_major_version_is_refused_and_both_sides_say_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = await refusal(Host(version=(1, 4)), Host(version=(2, 0)), caplog)
    assert len(said) == 2
    assert all("version 1.4" in text and "2.0" in text and "upgrade" in text for text in said)


@on_loop
async def test_another_minor_version_is_welcome_and_features_are_told() -> None:
    a, b = Host(version=(1, 0)), Host(version=(1, 9), features=["streams"])
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)
        assert a.transport.peers()[b.address].features == {"streams"}


@on_loop
async def test_a_host_under_another_address_is_refused_and_both_sides_say_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A message for one host must not reach another that took over its port, or is misnamed in the membership."""
    port = free_port()
    a, b = Host(), Host("10.1.2.3:7000", listen_address=f"127.0.0.1:{port}")
    async with running(a, b):
        a.send(f"127.0.0.1:{port}")
        await until(lambda: a.lost)
        await until(lambda: b.counters.refused)
    said = warnings(caplog)
    assert len(said) == 2
    assert all(f"dialed 127.0.0.1:{port}" in text and "10.1.2.3:7000" in text for text in said)


@on_loop
async def test_whoever_dials_finds_out_himself_where_the_other_side_is_lenient() -> None:
    """An old or foreign host may answer a HELLO that it should refuse."""
    said: list[str] = []

    async def lenient(guest: Stranger) -> None:
        await guest.next_frame()
        await guest.say(encode_hello(hello("10.9.9.9:1", address="10.7.7.7:7")))
        said.append(decode_reason((await guest.next_frame()).body))

    a = Host()
    async with listening(lenient) as address, running(a):
        a.send(address)
        await until(lambda: said)
        await until(lambda: a.lost)
    assert "10.7.7.7:7" in said[0]
    assert a.counters.refused == 1


@on_loop
async def test_a_refused_host_knocks_at_a_slower_pace() -> None:
    a, b = Host(deployment_id="blue"), Host(deployment_id="green")
    async with running(a, b):
        a.send(b)
        await until(lambda: a.lost)
        a.send(b)
        with trio.move_on_after(QUICK.backoff_last * 4) as window:
            await until(lambda: a.counters.refused > 1)
    assert window.cancelled_caught


@on_loop
async def test_addresses_are_compared_as_addresses_not_as_text() -> None:
    port = free_port()
    a, b = Host(), Host(f"LOCALHOST.:{port}", listen_address=f"127.0.0.1:{port}")
    async with running(a, b):
        a.send(f"localhost:{port}")
        await until(lambda: b.received)


@on_loop
async def test_a_host_that_dials_again_takes_the_place_of_its_old_connection() -> None:
    a = Host()
    async with running(a):
        old = await Stranger.introduced(a, address="10.0.0.1:1")
        other = await Stranger.introduced(a, address="10.0.0.2:1")
        new = await Stranger.introduced(a, address="10.0.0.1:1")
        await old.closed()
        for guest, number in ((new, 1), (other, 2)):
            await guest.say(encode_messages([heartbeat(number)])[0])
            await until(lambda number=number: heartbeat(number) in a.received)
        assert len(a.transport._guests) == 2


@on_loop
async def test_the_number_of_connections_is_bounded() -> None:
    a = Host(options=Options(max_incoming=2))
    async with running(a):
        guests = [await Stranger.introduced(a, address=f"10.0.0.{number}:1") for number in (1, 2)]
        third = await Stranger.dial(a)
        await third.say(encode_hello(hello(a.address, address="10.0.0.3:1")))
        assert "2 connections" in decode_reason((await third.next_frame()).body)
        await third.closed()
        # A known one may still come back, and those who say nothing are bounded too.
        await Stranger.introduced(a, address="10.0.0.1:1")
        mutes = [await Stranger.dial(a) for _ in range(3)]
        assert "2 connections" in decode_reason((await mutes[-1].next_frame()).body)
        await guests[1].say(encode_messages([heartbeat(1)])[0])
        await until(lambda: a.received)


# ---- what no host would send


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", id="a browser"),
        pytest.param(os.urandom(1000), id="noise"),
        pytest.param(encode_frame(FrameKind.PING), id="no introduction"),
        pytest.param(encode_frame(FrameKind.HELLO, b"\xa0"), id="a HELLO that is none"),
        pytest.param(encode_frame(FrameKind.HELLO, bytes(5000)), id="a HELLO too long"),
        pytest.param(encode_hello(hello("not an address")), id="a HELLO to no address"),
        pytest.param(encode_hello(hello("127.0.0.1:1", address="")), id="a HELLO from no address"),
    ],
)
@on_loop
async def test_garbage_ends_that_connection_and_no_other(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = Host(), Host()
    async with running(a, b):
        b.send(a, heartbeat(1))
        await until(lambda: a.received)
        stranger = await Stranger.dial(a)
        await stranger.say(data)
        await stranger.closed()
        b.send(a, heartbeat(2))
        await until(lambda: len(a.received) == 2)
    assert a.counters.malformed == 1
    assert (b.counters.connects, b.counters.lost) == (1, 0)
    assert any("closed the connection from 127.0.0.1:" in text for text in warnings(caplog))


GOOD = encode_messages([heartbeat(1)])[0]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(GOOD[:-1] + bytes([GOOD[-1] ^ 1]), id="a flipped bit"),
        pytest.param(encode_frame(FrameKind.MESSAGES, b"\xff" * 20), id="a body that is none"),
        pytest.param(encode_frame(FrameKind.MESSAGES)[:-4] + b"\0\0\0\0", id="a header that is none"),
    ],
)
@on_loop
async def test_a_malformed_frame_ends_the_connection_after_what_came_before_it(bad: bytes) -> None:
    a = Host()
    async with running(a):
        guest = await Stranger.introduced(a)
        await guest.say(GOOD)
        await until(lambda: a.received == [heartbeat(1)])
        await guest.say(bad)
        assert (await guest.next_frame()).kind == FrameKind.REFUSED
        await guest.closed()
    assert a.counters.malformed == 1


@on_loop
async def test_a_frame_longer_than_the_receivers_limit_ends_the_connection_and_both_sides_say_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = Host(), Host(options=Options(frame_limit=1 << 16))
    async with running(a, b):
        a.send(b, heartbeat(1))
        await until(lambda: b.received)
        a.send(b, bulk(100_000))
        await until(lambda: a.counters.lost)
    assert b.counters.malformed == 1
    assert [text for text in warnings(caplog) if "65536 are allowed" in text]


@on_loop
async def test_a_message_that_cannot_be_sent_is_dropped_and_logged_and_the_others_arrive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = Host(options=Options(frame_limit=1 << 16)), Host()
    async with running(a, b):
        unsent = a.send(b, heartbeat(1), heartbeat(2, payload=object()), bulk(100_000), heartbeat(3))
        await until(lambda: len(b.received) == 2)
    assert unsent == a.counters.dropped == 2
    assert b.received == [heartbeat(1), heartbeat(3)]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert ["object is no type" in errors[0], "65536 are allowed" in errors[1]] == [True, True]


@on_loop
async def test_an_unknown_kind_of_frame_is_counted_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    a = Host()
    async with running(a):
        guest = await Stranger.introduced(a)
        await guest.say(encode_frame(200, b"from the future") * 3 + GOOD)
        await until(lambda: a.received == [heartbeat(1)])
    assert (a.counters.unknown_frames, a.counters.malformed) == (3, 0)
    assert [text for text in warnings(caplog) if "unknown kind 200" in text] == warnings(caplog)


@on_loop
async def test_an_answer_of_unknown_kind_is_counted_and_dropped() -> None:
    async def chatter(guest: Stranger) -> None:
        await welcome(guest)
        await guest.say(encode_frame(200, b"from the future"))
        await trio.sleep_forever()

    a = Host()
    async with listening(chatter) as address, running(a):
        a.send(address)
        await until(lambda: a.counters.unknown_frames == 1)
        assert a.connected(address)


@on_loop
async def test_messages_that_no_peer_may_send_are_counted_and_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a = Host()
    bad = [
        Message(MessageType.ELECTION, sender=1),
        Message(HEARTBEAT, sender=0),
        Message(MessageType.LOCAL_TICK, sender=1),
    ]
    async with running(a):
        guest = await Stranger.introduced(a)
        for _ in range(2):
            await guest.say(encode_messages([*bad, heartbeat(1)])[0])
        await until(lambda: a.received == [heartbeat(1)] * 2)
    assert (a.counters.local_types, a.counters.anonymous, a.counters.unknown_types) == (4, 2, 0)
    assert len(warnings(caplog)) == 1


@on_loop
async def test_messages_that_come_with_the_introduction_are_delivered() -> None:
    a = Host()
    async with running(a):
        guest = await Stranger.dial(a)
        await guest.say(encode_hello(hello(a.address)) + GOOD)
        await until(lambda: a.received == [heartbeat(1)])


@on_loop
async def test_much_that_comes_at_once_leaves_the_loop_turns_for_others() -> None:
    a = Host()
    turns = 0
    seen: set[int] = set()

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    a.transport._deliver = lambda *_: seen.add(turns)
    async with running(a) as nursery:
        guest = await Stranger.introduced(a)
        nursery.start_soon(somebody_else)
        frames = encode_messages([bulk(30_000)])[0] * 90
        reader = FrameReader()
        await a.transport._receive(guest, hello("x:1"), reader.feed(frames))  # type: ignore[arg-type]
    assert len(seen) >= 10


# ---- faults of the host


@on_loop
async def test_a_host_that_fails_to_take_a_message_is_logged_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def deliver(_address: str, messages: list[Message]) -> None:
        if messages[0].term == 13:
            raise ZeroDivisionError("a bug")
        got.extend(messages)

    got: list[Message] = []
    a, b = Host(), Host(deliver=deliver)
    async with running(a, b):
        a.send(b, heartbeat(13))
        await until(lambda: b.counters.failed)
        await until(lambda: a.counters.lost)
        await until(lambda: a.send(b, heartbeat(1)) or got)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "failed to handle" in record.getMessage()


@on_loop
async def test_a_host_that_fails_to_hear_of_an_unreachable_peer_is_logged_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def unreachable(address: str) -> None:
        raise ZeroDivisionError(address)

    a, b = Host(unreachable=unreachable), Host()
    nobody = f"127.0.0.1:{free_port()}"
    async with running(a, b):
        a.send(nobody)
        await until(lambda: a.counters.failed)
        a.send(b)
        await until(lambda: b.received)
    assert any(record.exc_info for record in caplog.records)


# ---- addresses and settings


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("10.0.0.1:7000", ("10.0.0.1", 7000)),
        ("db-1.example:1", ("db-1.example", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:0", ("fe80::1%eth0", 0)),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, parsed: tuple[str, int]) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address",
    ["", "10.0.0.1", ":7000", "a:", "a:b", "a:70000", "a:-1", "::1:7000", "[::1]", "[a]:1", "a b:1", "a:1 "],
)
def test_what_is_no_address_is_refused_with_the_remedy(address: str) -> None:
    with pytest.raises(TransportError) as caught:
        TcpTransport(address, deliver=print, unreachable=print)
    assert repr(address) in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("write it as", "ports end", "must be IPv6"))


@pytest.mark.parametrize("address", ["0.0.0.0:7000", "[::]:7000"])
def test_an_address_that_nobody_can_dial_is_not_advertised(address: str) -> None:
    with pytest.raises(TransportError, match="as listen_address"):
        TcpTransport(address, deliver=print, unreachable=print)
    TcpTransport("10.0.0.1:7000", listen_address=address, deliver=print, unreachable=print)


@pytest.mark.parametrize(
    ("one", "other"),
    [("[::1]:1", "[0:0::1]:1"), ("Db-1.Example:1", "db-1.example.:1"), ("[::ffff:1]:01", "[::FFFF:0001]:1")],
)
def test_an_address_has_one_canonical_spelling(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@on_loop
async def test_a_port_that_is_taken_is_refused_with_the_remedy() -> None:
    a = Host()
    async with running(a):
        with pytest.raises(TransportError) as caught:
            await Host(a.address).transport.serve()
        assert a.address in str(caught.value)
        assert "choose another port" in str(caught.value)
        with pytest.raises(TransportError, match="serves already"):
            await a.transport.serve()
        a.send(a)
        await until(lambda: a.received)


@pytest.mark.parametrize(
    ("listen_address", "remedy"),
    [("192.0.2.1:7000", "listen_address"), ("no-such-host.invalid:7000", "cannot be resolved")],
)
@on_loop
async def test_an_address_that_cannot_be_bound_is_refused_with_the_remedy(
    listen_address: str, remedy: str
) -> None:
    with pytest.raises(TransportError) as caught:
        await Host("10.0.0.1:7000", listen_address=listen_address).transport.serve()
    assert listen_address in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("nowhere", ["no-such-host.invalid:7000", "no address at all"])
@on_loop
async def test_a_peer_whose_address_leads_nowhere_is_unreachable(nowhere: str) -> None:
    a = Host()
    async with running(a):
        a.send(nowhere)
        await until(lambda: a.lost == [nowhere])
        assert a.transport.peers()[nowhere].error


@pytest.mark.parametrize("host", ["localhost", "[::1]", "127.0.0.1"])
@on_loop
async def test_names_and_both_kinds_of_ip_addresses_work(host: str) -> None:
    if host == "[::1]":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    a, b = Host(), Host(f"{host}:{free_port()}")
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)


class MovingHost(trio.abc.HostnameResolver):
    """Says at the first question that the host is where nobody is, and afterwards where it is."""

    def __init__(self) -> None:
        self.asked = 0

    async def getaddrinfo(self, host: Any, port: Any, *rest: int) -> Any:
        self.asked += 1
        ip = "127.0.0.3" if self.asked == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (ip, int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@on_loop
async def test_a_name_is_resolved_anew_at_every_attempt() -> None:
    """A container that is restarted comes back under its name, with another IP address."""
    port = free_port()
    a, b = Host(), Host(f"moving-host:{port}", listen_address=f"127.0.0.2:{port}")
    resolver = MovingHost()
    async with running(a, b):
        trio.socket.set_custom_hostname_resolver(resolver)
        a.send(b)
        await until(lambda: a.lost)
        a.send(b)
        await until(lambda: b.received)
    assert resolver.asked == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queue_bytes", 0),
        ("queue_messages", -1),
        ("keepalive", 0.0),
        ("frame_limit", 100),
        ("frame_limit", 1 << 33),
    ],
)
def test_an_option_out_of_its_bounds_names_itself(option: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Options(**{option: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{option}={value!r}: ")


def test_a_deployment_id_too_long_to_be_told_is_refused() -> None:
    with pytest.raises(TransportError, match="shorten the deployment id"):
        Host(deployment_id="x" * 5000)


# ---- waiting


def delays(seed: int, count: int) -> list[float]:
    backoff = Backoff(0.05, 2.0, Random(seed))
    return [backoff.next() for _ in range(count)]


def test_waits_double_up_to_a_limit_and_are_cut_by_up_to_half() -> None:
    for at, delay in enumerate(delays(1, 2000)):
        whole = min(0.05 * 2.0 ** min(at, 10), 2.0)
        assert whole / 2 <= delay <= whole


def test_two_hosts_do_not_knock_in_step() -> None:
    assert len({round(delay, 6) for seed in range(50) for delay in delays(seed, 4)}) > 190


def test_waits_begin_anew_after_a_reset() -> None:
    backoff = Backoff(0.05, 2.0, Random(1))
    assert any(later > earlier for earlier, later in pairwise([backoff.next() for _ in range(5)]))
    backoff.reset()
    assert (backoff.failures, backoff.next() <= 0.05) == (0, True)
