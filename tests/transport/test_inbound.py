"""Connections from other hosts: who is accepted, and what malformed or silent ones may cost."""

import logging
import os

import pytest
import trio
from drakkar.handlers.messages import Message, MessageType
from drakkar.transport.frames import FrameKind, FrameReader, encode_frame
from drakkar.transport.hello import decode_reason, encode_hello
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.options import Options

from tests.ports import free_ports
from tests.transport.support import (
    HEARTBEAT,
    FakePeer,
    Host,
    body,
    bulk,
    heartbeat,
    hello,
    listening,
    message_row,
    on_loop,
    running,
    until,
    warnings,
    welcome,
)

# ---- which callers are accepted


@on_loop
async def test_a_host_that_dials_again_takes_the_place_of_its_old_connection() -> None:
    a = Host()
    async with running(a):
        old = await FakePeer.introduced(a, address="10.0.0.1:1")
        other = await FakePeer.introduced(a, address="10.0.0.2:1")
        new = await FakePeer.introduced(a, address="10.0.0.1:1")
        await old.closed()
        for caller, number in ((new, 1), (other, 2)):
            await caller.send(encode_messages([heartbeat(number)])[0])
            await until(lambda number=number: heartbeat(number) in a.received)
        assert len(a.transport._inbound._callers) == 2


@on_loop
async def test_the_number_of_connections_is_bounded() -> None:
    a = Host(options=Options(max_incoming=2))
    async with running(a):
        callers = [await FakePeer.introduced(a, address=f"10.0.0.{number}:1") for number in (1, 2)]
        third = await FakePeer.dial(a)
        await third.send(encode_hello(hello(a.address, address="10.0.0.3:1")))
        assert "2 connections" in decode_reason((await third.next_frame()).body)
        await third.closed()
        # A known one may still come back, and those who say nothing are bounded too.
        await FakePeer.introduced(a, address="10.0.0.1:1")
        mutes = [await FakePeer.dial(a) for _ in range(3)]
        assert "2 connections" in decode_reason((await mutes[-1].next_frame()).body)
        await callers[1].send(encode_messages([heartbeat(1)])[0])
        await until(lambda: a.received)


# ---- silent callers


@on_loop
async def test_a_caller_that_went_silent_is_disconnected() -> None:
    a = Host(options=Options(keepalive=0.02, answer_timeout=0.02))
    async with running(a):
        caller = await FakePeer.introduced(a)
        await caller.closed()
        await until(lambda: not a.transport._inbound._callers)


@on_loop
async def test_a_caller_that_keeps_sending_pings_stays_and_has_them_answered() -> None:
    a = Host(options=Options(keepalive=0.02, answer_timeout=0.1))
    async with running(a):
        caller = await FakePeer.introduced(a)
        for number in range(30):
            await caller.send(encode_frame(FrameKind.PING, b"%d" % number))
            frame = await caller.next_frame()
            assert (frame.kind, bytes(frame.body)) == (FrameKind.PONG, b"%d" % number)
            await trio.sleep(0.01)
        assert a.transport._inbound._callers


@on_loop
async def test_a_caller_that_does_not_introduce_itself_is_disconnected() -> None:
    a = Host(options=Options(connect_timeout=0.05))
    async with running(a):
        mute = await FakePeer.dial(a)
        assert "no introduction" in decode_reason((await mute.next_frame()).body)
        await mute.closed()
    assert a.counters.refused == 1


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
        fake = await FakePeer.dial(a)
        await fake.send(data)
        await fake.closed()
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
        caller = await FakePeer.introduced(a)
        await caller.send(GOOD)
        await until(lambda: a.received == [heartbeat(1)])
        await caller.send(bad)
        assert (await caller.next_frame()).kind == FrameKind.REFUSED
        await caller.closed()
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
    assert ["object cannot be sent" in errors[0], "a frame may have 65536" in errors[1]] == [True, True]


@on_loop
async def test_an_unknown_kind_of_frame_is_counted_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    a = Host()
    async with running(a):
        caller = await FakePeer.introduced(a)
        await caller.send(encode_frame(200, b"from the future") * 3 + GOOD)
        await until(lambda: a.received == [heartbeat(1)])
    assert (a.counters.unknown_frames, a.counters.malformed) == (3, 0)
    assert [text for text in warnings(caplog) if "unknown kind 200" in text] == warnings(caplog)


@on_loop
async def test_an_answer_of_unknown_kind_is_counted_and_dropped() -> None:
    async def chatter(caller: FakePeer) -> None:
        await welcome(caller)
        await caller.send(encode_frame(200, b"from the future"))
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
    local = [message_row(type=int(kind)) for kind in (MessageType.ELECTION, MessageType.LOCAL_TICK)]
    forged = encode_frame(FrameKind.MESSAGES, body([*local, message_row(sender=0), message_row(term=1)]))
    async with running(a):
        caller = await FakePeer.introduced(a)
        for _ in range(2):
            await caller.send(forged)
        await until(lambda: a.received == [Message(HEARTBEAT, to=2, sender=1, term=1)] * 2)
    assert (a.counters.local_types, a.counters.anonymous, a.counters.unknown_types) == (4, 2, 0)
    assert len(warnings(caplog)) == 1


@on_loop
async def test_messages_that_come_with_the_introduction_are_delivered() -> None:
    a = Host()
    async with running(a):
        caller = await FakePeer.dial(a)
        await caller.send(encode_hello(hello(a.address)) + GOOD)
        await until(lambda: a.received == [heartbeat(1)])


@on_loop
async def test_much_that_comes_at_once_leaves_the_loop_turns_for_others() -> None:
    a = Host()
    turns = 0
    seen: set[int] = set()

    async def another_task() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    a.transport._inbound._deliver = lambda *_: seen.add(turns)
    async with running(a) as nursery:
        caller = await FakePeer.introduced(a)
        nursery.start_soon(another_task)
        frames = encode_messages([bulk(30_000)])[0] * 90
        reader = FrameReader()
        inbound = a.transport._inbound
        await inbound._handle_frames(caller, hello("x:1"), reader.feed(frames))  # type: ignore[arg-type]
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
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a, b):
        a.send(nowhere)
        await until(lambda: a.counters.failed)
        a.send(b)
        await until(lambda: b.received)
    assert any(record.exc_info for record in caplog.records)
