"""Connections from other hosts: who is accepted, and what malformed or silent ones may cost."""

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.transport.budgets import FRUITFUL_BYTES, FRUITLESS_S, PACE_MESSAGES, PACE_S, SAVED_S, Work
from drakkar.transport.callers import CallerFrames
from drakkar.transport.frames import FrameKind, FrameReader, encode_frame
from drakkar.transport.hello import decode_reason, encode_hello
from drakkar.transport.message_frames import body_of, encode_messages, pack
from drakkar.transport.options import Counters, Options
from drakkar.transport.parts import PartWriter
from drakkar.transport.reminders import REPEAT_AFTER_S

from tests.ports import free_ports
from tests.transport.support import (
    HEARTBEAT,
    REPLICATE,
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
        full = await third.next_frame()
        assert (full.kind, "2 connections" in decode_reason(full.body)) == (FrameKind.FULL, True)
        await third.closed()
        # A known one may still come back.
        await FakePeer.introduced(a, address="10.0.0.1:1")
        await callers[1].send(encode_messages([heartbeat(1)])[0])
        await until(lambda: a.received)


@on_loop
async def test_the_end_of_a_connection_is_told_but_not_where_another_has_taken_its_place() -> None:
    told: list[str] = []
    a = Host(
        greeted=lambda address, _: told.append(f"greeted {address}"),
        parted=lambda address, _: told.append(address),
    )
    async with running(a):
        old = await FakePeer.introduced(a, address="10.0.0.1:1")
        new = await FakePeer.introduced(a, address="10.0.0.1:1")
        await old.closed()
        await until(lambda: len(told) == 2)
        await trio.aclose_forcefully(new.stream)
        await until(lambda: len(told) == 3)
    assert told == ["greeted 10.0.0.1:1", "greeted 10.0.0.1:1", "10.0.0.1:1"]


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
    a = Host(options=Options(introduce_timeout=0.05))
    async with running(a):
        for beginning in (b"", b"D"):
            mute = await FakePeer.dial(a)
            await mute.send(beginning)
            late = await mute.next_frame()
            assert decode_reason(late.body) == "no introduction within 0.05 s"
            assert late.kind == FrameKind.FULL  # a host that is late is not refused for that
            await mute.closed()
    assert (a.counters.late, a.counters.refused) == (2, 0)


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


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        pytest.param(encode_frame(200), "dropped a frame of unknown kind 200 from ", id="frames"),
        pytest.param(
            encode_frame(FrameKind.MESSAGES, body([message_row(type=60_000)])),
            "1 of unknown type, 0 of a type that no peer may send",
            id="messages",
        ),
    ],
)
@on_loop
async def test_what_is_dropped_is_told_again_after_a_while(
    frame: bytes, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a count; and strangers are told of together, whatever they call themselves."""
    a = Host()
    now = 0.0
    async with running(a):
        a.transport._inbound.frames._reminders._clock = lambda: now
        callers = [await FakePeer.introduced(a, address=f"10.0.0.{number}:1") for number in range(3)]
        for caller in callers:
            await caller.send(frame + GOOD)
        await until(lambda: len(a.received) == 3)
        now = REPEAT_AFTER_S
        await callers[0].send(frame + GOOD)
        await until(lambda: len(a.received) == 4)
    first, second = warnings(caplog)
    assert text in first
    assert text in second
    assert second.endswith(" (and 2 like it since the last warning)")


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


@pytest.mark.parametrize(
    "at_once", [pytest.param([bulk(30_000)], id="bytes"), pytest.param([heartbeat(1)] * 100, id="messages")]
)
@on_loop
async def test_much_that_comes_at_once_leaves_the_loop_turns_for_others(at_once: list[Message]) -> None:
    a = Host()
    turns = 0
    seen: set[int] = set()

    async def another_task() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    a.transport._inbound.frames._deliver = lambda *_: seen.add(turns)
    async with running(a) as nursery:
        await FakePeer.introduced(a)
        nursery.start_soon(another_task)
        frames = encode_messages(at_once)[0] * 90
        inbound = a.transport._inbound
        await until(lambda: inbound._callers)
        (link,) = inbound._callers.values()
        reader = FrameReader()
        found = reader.feed(frames)
        while reader.more:
            found += reader.feed(b"")
        await inbound.frames.handle(link, found)
    assert len(seen) >= 10


@on_loop
async def test_a_peer_that_floods_this_host_does_not_starve_another() -> None:
    flood = encode_messages([heartbeat(1)] * 300 + [bulk(50_000)])[0] * 20
    flooded = 0
    answered: set[int] = set()

    def deliver(_address: str, messages: list[Message]) -> None:
        nonlocal flooded
        if messages[0].shard == 2:
            answered.add(messages[0].term)
        else:
            flooded += len(messages)

    async def send_without_end(caller: FakePeer) -> None:
        while True:
            await caller.send(flood)

    a = Host(deliver=deliver)
    async with running(a) as nursery:
        flooding = await FakePeer.introduced(a, address="10.0.0.1:1")
        quiet = await FakePeer.introduced(a, address="10.0.0.2:1")
        nursery.start_soon(send_without_end, flooding)
        await until(lambda: flooded)
        for number in range(30):
            before = flooded
            await quiet.send(encode_messages([Message(HEARTBEAT, to=2, sender=1, shard=2, term=number)])[0])
            await until(lambda number=number: number in answered)
            assert flooded - before < 6000
        nursery.cancel_scope.cancel()


# ---- what connections may cost


def charging(*charged: str, **settings: Any) -> Host:
    """A host to which the messages from some addresses are of no use."""

    def deliver(address: str, messages: list[Message]) -> None:
        if address in charged:
            a.transport.charge(address, len(messages))
        a.deliver(address, messages)

    a = Host(deliver=deliver, **settings)
    return a


async def send_without_end(caller: FakePeer, data: bytes) -> None:
    while True:
        await caller.send(data)


@on_loop
async def test_a_connection_of_useless_messages_is_read_more_slowly_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a = charging("10.0.0.1:1")
    async with running(a) as nursery:
        useless = await FakePeer.introduced(a, address="10.0.0.1:1")
        useful = await FakePeer.introduced(a, address="10.0.0.2:1")
        nursery.start_soon(send_without_end, useless, for_many_shards())
        await until(lambda: a.counters.pauses > 2)
        seen, pauses = a.counters.received, a.counters.pauses
        await useful.send(for_many_shards())
        await until(lambda: a.counters.received >= seen + 50_000)
        # Each pause is some twenty times as long as the turn before it.
        assert a.counters.pauses < pauses + 200
        assert len(a.received) - 50_000 - seen < 25_000
        nursery.cancel_scope.cancel()
    assert a.counters.useless > 1000
    (told,) = warnings(caplog)
    assert "reads from 10.0.0.1:1 more slowly" in told


def for_many_shards() -> bytes:
    """100 messages for each of 500 shards."""
    said = [Message(HEARTBEAT, to=2, sender=1, shard=shard, term=1) for shard in range(1, 501)]
    return encode_messages(said)[0] * 100


@on_loop
async def test_a_connection_of_too_many_messages_for_one_shard_is_read_more_slowly_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a = Host()
    flood = encode_messages([heartbeat(1)] * 500)[0] * 100
    async with running(a) as nursery:
        one = await FakePeer.introduced(a, address="10.0.0.1:1")
        many = await FakePeer.introduced(a, address="10.0.0.2:1")
        began = trio.current_time()
        nursery.start_soon(send_without_end, one, flood)
        await until(lambda: a.counters.pauses > 2)
        await many.send(for_many_shards())
        await until(lambda: sum(message.shard > 1 for message in a.received) >= 99 * 499)
        slow = sum(message.shard == 1 for message in a.received) - 100
        # A turn may bring 512 before it ends.
        rests = (trio.current_time() - began) / PACE_S
        assert slow < (rests + 1) * (PACE_MESSAGES + 512)
        nursery.cancel_scope.cancel()
    assert a.counters.useless == 0
    (told,) = warnings(caplog)
    assert "reads from 10.0.0.1:1 more slowly: it sends so many messages for one shard" in told


@on_loop
async def test_one_warning_stands_for_all_names_that_a_stranger_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [f"10.0.0.{number}:1" for number in range(3)]
    a = charging(*names)
    flood = encode_messages([heartbeat(1)] * 500)[0] * 100
    async with running(a):
        for name in names:
            pauses = a.counters.pauses
            stranger = await FakePeer.introduced(a, address=name)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_without_end, stranger, flood)
                await until(lambda pauses=pauses: a.counters.pauses > pauses)
                nursery.cancel_scope.cancel()
    # A slow machine may pause them for a second reason, that all messages are for one shard.
    reasons = [text.partition("more slowly: ")[2] for text in warnings(caplog) if "more slowly" in text]
    assert len(reasons) == len(set(reasons)) > 0


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(encode_frame(FrameKind.PING) * 4096, id="pings"),
        pytest.param(encode_frame(FrameKind.PONG) * 4096, id="pongs"),
        pytest.param(encode_frame(200) * 4096, id="frames of unknown kinds"),
        pytest.param(
            encode_frame(FrameKind.MESSAGES, body([message_row(type=60_000)] * 500)) * 10,
            id="messages of unknown types",
        ),
    ],
)
@on_loop
async def test_what_no_host_needs_much_of_is_useless(flood: bytes) -> None:
    a = Host()
    async with running(a) as nursery:
        caller = await FakePeer.introduced(a)
        nursery.start_soon(send_without_end, caller, flood)
        nursery.start_soon(caller.closed)
        await until(lambda: a.counters.pauses > 2)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("size", "pauses"), [(256, True), (1 << 10, True), (FRUITFUL_BYTES, False)])
def test_reads_of_few_bytes_that_complete_nothing_make_pauses(size: int, pauses: bool) -> None:
    counters = Counters()
    work = Work(lambda: 1000.0)  # while they come, no time passes
    frames = CallerFrames(
        options=Options(),
        counters=counters,
        log=logging.getLogger("drakkar.transport"),
        work=work,
        deliver=lambda *_: None,
        introduced=lambda *_: None,
        frames={},
        start_soon=lambda *_: None,
    )
    connection: Any = SimpleNamespace(read_size=size, read_at=999.9, unfinished=(0, 0), pause=nullcontext)
    caller = frames.caller(connection, hello("127.0.0.1:1"), lambda: True)

    async def read() -> None:
        for _ in range(int(4 * SAVED_S / FRUITLESS_S)):
            if counters.pauses == 0:
                await frames.handle(caller, [])

    trio.run(read, clock=trio.testing.MockClock(autojump_threshold=0))
    assert bool(counters.pauses) == pauses


@on_loop
async def test_a_peer_that_answers_without_end_is_read_more_slowly() -> None:
    async def chatter(caller: FakePeer) -> None:
        await welcome(caller)
        await send_without_end(caller, encode_frame(200, b"") * 4096)

    a = Host()
    async with listening(chatter) as address, running(a):
        a.send(address)
        await until(lambda: a.counters.pauses > 2)
        assert a.connected(address)


@on_loop
async def test_a_peer_that_answers_with_a_large_frame_is_lost() -> None:
    async def answer(caller: FakePeer) -> None:
        await welcome(caller)
        await caller.next_frame()
        await caller.send(encode_frame(200, bytes(100_000)))
        await trio.sleep_forever()

    a = Host()
    async with listening(answer) as address, running(a):
        a.send(address)
        await until(lambda: a.counters.lost)
        assert a.counters.malformed == 1


@on_loop
async def test_a_frame_has_no_more_messages_than_hosts_put_into_one() -> None:
    a = Host()
    async with running(a):
        caller = await FakePeer.introduced(a)
        await caller.send(encode_frame(FrameKind.MESSAGES, body([message_row()] * 512)))
        await until(lambda: len(a.received) == 512)
        await caller.send(encode_frame(FrameKind.MESSAGES, body([message_row()] * 513)))
        assert "513 messages, and 512 are allowed" in decode_reason((await caller.next_frame()).body)


@on_loop
async def test_a_message_of_very_many_runs_leaves_the_loop_turns_for_others() -> None:
    runs = [Run(at, 1, [b""], origin=at % 2, key=at) for at in range(1, 6000)]
    (frame,) = encode_messages([Message(REPLICATE, to=2, sender=1, term=1, entries=Entries(runs))])
    a = Host()
    turns = 0

    async def another_task() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with running(a) as nursery:
        await FakePeer.introduced(a)
        inbound = a.transport._inbound
        await until(lambda: inbound._callers)
        (link,) = inbound._callers.values()
        nursery.start_soon(another_task)
        await inbound.frames.handle(link, FrameReader().feed(frame))
        assert len(a.received) == 1
        assert turns > 5


@on_loop
async def test_what_others_have_overdrawn_does_not_begin_anew_with_each_connection() -> None:
    a = Host()
    work = a.transport._work
    async with running(a):
        work._others.time.spend(10.0, work.clock())
        late = await FakePeer.introduced(a)
        await late.send(GOOD)
        await until(lambda: a.counters.pauses or a.received)
        assert a.received == []


@on_loop
async def test_who_has_not_shown_where_it_is_does_not_use_up_the_account_of_the_host_that_is_there() -> None:
    a = charging("10.0.0.1:1")
    async with running(a) as nursery:
        stranger = await FakePeer.introduced(a, address="10.0.0.1:1")
        nursery.start_soon(send_without_end, stranger, GOOD * 1000)
        await until(lambda: a.counters.pauses)
        nursery.cancel_scope.cancel()
    work = a.transport._work
    assert set(work._own) == {"? 10.0.0.1:1"}
    assert work.account("10.0.0.1:1", lambda: True).wait() == 0.0


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(lambda: parts(600_000), id="in parts"),
        pytest.param(lambda: whole(600_000), id="in one frame"),
    ],
)
@on_loop
async def test_large_messages_wait_for_room_and_are_not_read_until_there_is(
    pieces: Callable[[], list[bytes]],
) -> None:
    a = Host(options=Options(unfinished_bytes=2 << 20))
    *most, last = pieces()
    async with running(a) as nursery:
        callers = [await FakePeer.introduced(a, address=f"10.0.0.{number}:1") for number in range(3)]
        await callers[0].send(b"".join(most))
        await until(lambda: a.transport.unfinished_bytes)
        for caller in callers[1:]:
            nursery.start_soon(caller.send, b"".join([*most, last]))
        await until(lambda: a.transport._inbound.frames._rooms.others.wanted)
        held = a.transport.unfinished_bytes
        assert 600_000 < held < 610_000
        # Small messages of others go on, and the large ones when there is room, one after the other.
        small = await FakePeer.introduced(a, address="10.0.0.9:1")
        await small.send(GOOD)
        await until(lambda: a.received == [heartbeat(1)])
        await callers[0].send(last)
        await until(lambda: len(a.received) == 4)
        assert a.received[1:] == [bulk(600_000)] * 3
        assert a.transport.unfinished_bytes == 0


@on_loop
async def test_a_connection_that_finds_no_room_ends_and_so_does_one_that_does_not_go_on() -> None:
    a = Host(options=Options(unfinished_bytes=2 << 20, keepalive=0.1, answer_timeout=0.1))
    async with running(a) as nursery:
        stuck, waiting = [await FakePeer.introduced(a, address=f"10.0.0.{number}:1") for number in range(2)]
        for caller in (stuck, waiting):
            await caller.send(parts(600_000)[0])

        async def ping() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await stuck.send(encode_frame(FrameKind.PING))
                    await trio.sleep(0.05)

        nursery.start_soon(ping)
        await waiting.closed()
        await stuck.closed()
        await until(lambda: not a.transport.unfinished_bytes)
        nursery.cancel_scope.cancel()


@on_loop
async def test_what_a_host_sends_in_the_usual_way_needs_no_room_but_for_large_messages() -> None:
    a, b = Host(), Host()
    rooms = b.transport._inbound.frames._rooms
    taken: list[int] = []
    take, rooms.others.take = rooms.others.take, lambda size: (taken.append(size), take(size))[1]
    async with running(a, b):
        a.send(b, heartbeat(0))
        await until(lambda: a.connected(b))
        for number in range(1, 40):
            a.send(b, *[heartbeat(number)] * 100, bulk(100_000, number), bulk(120_000, number))
        await until(lambda: len(b.received) == 39 * 102 + 1)
        assert taken == []
        a.send(b, bulk(400_000))
        await until(lambda: len(b.received) == 39 * 102 + 2)
    (size,) = taken
    assert 400_000 < size < 401_000


# ---- messages in parts


def whole(size: int) -> list[bytes]:
    """A message in one frame, as no host sends it, in pieces."""
    (frame,) = encode_messages([bulk(size)])
    return [frame[at : at + 200_000] for at in range(0, len(frame), 200_000)]


def parts(size: int) -> list[bytes]:
    writer = PartWriter(body_of([pack(bulk(size))]))
    made = []
    while not writer.done:
        made.append(writer.next())
    return made


@on_loop
async def test_messages_in_parts_are_put_together_and_others_may_come_between() -> None:
    a = Host()
    async with running(a):
        caller = await FakePeer.introduced(a)
        first, second, *rest = parts(600_000)
        await caller.send(
            first + GOOD + encode_frame(200, b"?") + second + encode_frame(FrameKind.PING, b"1")
        )
        await until(lambda: a.received == [heartbeat(1)])
        assert (await caller.next_frame()).kind == FrameKind.PONG
        await caller.send(b"".join(rest))
        await until(lambda: len(a.received) == 2)
    assert a.received == [heartbeat(1), bulk(600_000)]
    assert a.counters.received == 2


@on_loop
async def test_parts_of_two_connections_have_nothing_to_do_with_each_other() -> None:
    a = Host()
    async with running(a):
        callers = [await FakePeer.introduced(a, address=f"10.0.0.{number}:1") for number in (1, 2)]
        for pieces in zip(parts(300_000), parts(300_000), strict=True):
            for caller, piece in zip(callers, pieces, strict=True):
                await caller.send(piece)
        await until(lambda: len(a.received) == 2)
    assert a.received == [bulk(300_000)] * 2


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(lambda: [parts(300_000)[0], parts(200_000)[0]], id="interleaved"),
        pytest.param(lambda: [parts(300_000)[1]], id="no beginning"),
        pytest.param(lambda: [parts(2_000_000)[0]], id="too long"),
        pytest.param(lambda: [encode_frame(FrameKind.PART, bytes(8))] * 2, id="without end"),
        pytest.param(lambda: [encode_frame(FrameKind.PART, b"\0\0\0\1\0\0\0\0\xff")], id="no messages"),
    ],
)
@on_loop
async def test_parts_that_no_host_sends_end_the_connection(pieces: Callable[[], list[bytes]]) -> None:
    a = Host(options=Options(frame_limit=1 << 20))
    async with running(a):
        caller = await FakePeer.introduced(a)
        await caller.send(b"".join(pieces()))
        assert (await caller.next_frame()).kind == FrameKind.REFUSED
        await caller.closed()
    assert (a.counters.malformed, a.received) == (1, [])


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


@on_loop
async def test_the_end_of_the_last_connection_of_a_host_is_told() -> None:
    """Also where the host has spelt its address in several ways: what was told of each must be forgotten, and the host only at last."""
    told: list[str] = []
    a = Host(
        greeted=lambda address, _: told.append(f"+{address}"),
        parted=lambda address, last: told.append(f"-{address}{' at last' if last else ''}"),
    )
    one, other = "[::5]:1", "[0::5]:1"
    async with running(a):
        first = await FakePeer.introduced(a, address=one)
        await until(lambda: len(told) == 1)
        again = await FakePeer.introduced(a, address=one)
        await first.closed()
        await until(lambda: len(told) == 2)
        last = await FakePeer.introduced(a, address=other)
        await again.closed()
        await until(lambda: len(told) == 4)
        await last.stream.aclose()
        await until(lambda: len(told) == 5)
    assert told == [f"+{one}", f"+{one}", f"+{other}", f"-{one}", f"-{other} at last"]


@on_loop
async def test_what_several_tasks_write_to_a_caller_arrives_whole_where_the_kernel_takes_it_in_part() -> None:
    a = Host()
    async with running(a) as nursery:
        caller = await FakePeer.introduced(a)
        await until(lambda: a.transport._inbound._callers)
        (link,) = a.transport._inbound._callers.values()
        for number in range(3):
            nursery.start_soon(link.write, encode_frame(200, bytes([number]) * (8 << 20)))
        await trio.testing.wait_all_tasks_blocked()
        came = [bytes((await caller.next_frame()).body) for _ in range(3)]
    assert sorted(came) == [bytes([number]) * (8 << 20) for number in range(3)]
