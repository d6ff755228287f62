"""Connections that say nothing, or come in floods, on real sockets: members get in meanwhile."""

import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from drakkar.transport import entrance as entrance_module
from drakkar.transport.addresses import parse_address
from drakkar.transport.admission import Admission, PendingConnection
from drakkar.transport.entrance import (
    _AGAIN_S,
    _BATCH,
    _BURST,
    _PLAIN_BEGINS_PER_S,
    Entrance,
    _Accepted,
    _Pace,
    _Turns,
)
from drakkar.transport.frames import NO_PLACE_ALERT, TLS_HANDSHAKE, FrameKind
from drakkar.transport.hello import encode_hello
from drakkar.transport.options import Counters, Options

from tests.transport.support import (
    QUICK,
    FakePeer,
    Host,
    heartbeat,
    hello,
    is_open,
    listening,
    on_loop,
    open_files,
    running,
    until,
    warnings,
)
from tests.transport.test_tls import Files


async def is_evicted(caller: FakePeer, source: str = "127.0.0.1") -> bool:
    """Whether a caller was told that others have got its place."""
    kind, text = await caller.told()
    assert "connections to this host have not introduced themselves" in text
    return kind == FrameKind.FULL and f"of them from {source}, and a newer one has got the place" in text


class Flood:
    """Strangers that hold connections, and open one that is closed again at once."""

    def __init__(self, host: Host, count: int, *, source: str | None = None, beginning: bytes = b"") -> None:
        self.address = parse_address(host.address)
        self.count, self.source, self.beginning = count, source, beginning
        self.opened = 0
        self.held: list[socket.socket] = []

    async def run(self) -> None:
        try:
            while True:
                self.held = [one for one in self.held if is_open(one)]
                for _ in range(min(64, self.count - len(self.held))):
                    self.held.append(self.open())
                await trio.sleep(0.002)
        finally:
            for one in self.held:
                one.close()

    def open(self) -> socket.socket:
        one = socket.create_connection(self.address, source_address=(self.source, 0) if self.source else None)
        one.setblocking(False)
        one.send(self.beginning)
        self.opened += 1
        return one


@contextmanager
def closing(crowd: list[socket.socket]) -> Iterator[None]:
    try:
        yield
    finally:
        for one in crowd:
            one.close()


@asynccontextmanager
async def flooded(host: Host, count: int = 300, **how: Any) -> AsyncIterator[Flood]:
    flood = Flood(host, count, **how)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood.run)
        await until(lambda: host.counters.evicted > 200)
        yield flood
        nursery.cancel_scope.cancel()


# ---- silent connections


@pytest.mark.parametrize(
    ("beginning", "options"),
    [
        pytest.param(b"", Options(), id="silent"),
        pytest.param(b"D", Options(), id="one byte"),
        pytest.param(b"D", Options(max_introducing=8, max_introducing_per_source=4), id="few places"),
    ],
)
@on_loop
async def test_a_host_gets_in_at_once_while_strangers_of_its_own_ip_address_come_and_come(
    beginning: bytes, options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = Host(options=options), Host()
    async with running(a, b), flooded(a, beginning=beginning):
        began = trio.current_time()
        await until(lambda: b.send(a, heartbeat(1)) or heartbeat(1) in a.received)
        took = trio.current_time() - began
    assert took < 5
    assert len(a.transport._admission) == 0
    assert (
        len([text for text in warnings(caplog) if "have not introduced" in text and "127.0.0.1:" not in text])
        <= 1
    )


@on_loop
async def test_the_oldest_silent_connection_of_a_source_is_closed_for_a_newer_one_and_told_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a = Host(options=Options(max_introducing_per_source=2))
    async with running(a):
        mutes = [await FakePeer.dial(a) for _ in range(4)]
        assert await is_evicted(mutes[0])
        assert await is_evicted(mutes[1])
        await mutes[0].closed()
        await mutes[3].send(encode_hello(hello(a.address)))
        assert (await mutes[3].next_frame()).kind == FrameKind.HELLO
        assert (a.counters.evicted, a.counters.refused) == (2, 0)
    (told,) = warnings(caplog)
    assert (
        "closed the connection from 127.0.0.1: 2 connections to this host have not introduced themselves, 2 of"
        in told
    )


@on_loop
async def test_a_source_with_few_connections_loses_none_to_one_with_many() -> None:
    a = Host(options=Options(max_introducing=4))
    async with running(a):
        few = await FakePeer.dial(a, "127.0.0.2")
        many = [await FakePeer.dial(a, "127.0.0.3") for _ in range(6)]
        for mute in many[:3]:
            assert await is_evicted(mute, "127.0.0.3")
        await few.send(encode_hello(hello(a.address)))
        assert (await few.next_frame()).kind == FrameKind.HELLO


@on_loop
async def test_an_introduction_that_comes_in_pieces_is_read_when_it_is_complete() -> None:
    a = Host()
    async with running(a):
        introduction = encode_hello(hello(a.address))
        slow = await FakePeer.dial(a)
        for at in range(len(introduction) - 1):
            await slow.send(introduction[at : at + 1])
            await until(lambda: len(a.transport._admission) == 1)
            assert a.transport._admission._at_work() == 0
        await slow.send(introduction[-1:])
        assert (await slow.next_frame()).kind == FrameKind.HELLO


@on_loop
async def test_an_introduction_is_read_although_the_kernel_reports_it_before_it_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def want(accepted: _Accepted, size: int) -> None:
        accepted.wanted = size

    looks: list[object] = []
    hear = Entrance._hear

    def count(entrance: Entrance, accepted: _Accepted) -> None:
        looks.append(accepted)
        hear(entrance, accepted)

    monkeypatch.setattr(_Accepted, "want", want)  # as if each byte were enough
    monkeypatch.setattr(Entrance, "_hear", count)
    a = Host(options=Options(max_introducing_per_source=3))
    async with running(a):
        introduction = encode_hello(hello(a.address))
        slow = [await FakePeer.dial(a) for _ in range(3)]
        for each in slow:
            await each.send(introduction[:3])
        await until(lambda: len(looks) >= 3)
        slow.append(await FakePeer.dial(a))
        assert await is_evicted(slow.pop(0))
        await slow[-1].send(introduction[:3])
        await until(lambda: len(looks) >= 9)
        began = trio.current_time()
        await until(lambda: len(looks) >= 18)
        assert trio.current_time() - began > 2 * _AGAIN_S
        for each in slow:
            await each.send(introduction[3:])
            assert (await each.next_frame()).kind == FrameKind.HELLO
        await until(lambda: len(a.transport._admission) == 0)
        half = await FakePeer.dial(a)
        await half.send(introduction[:3])
        await until(lambda: len(a.transport._admission) == 1)
        await half.stream.send_eof()
        await half.closed()
    assert (a.counters.malformed, a.counters.refused, a.counters.late) == (0, 0, 0)


@on_loop
async def test_a_part_of_an_introduction_is_no_more_than_silence() -> None:
    a = Host(options=Options(max_introducing_per_source=3))
    async with running(a):
        slow = [await FakePeer.dial(a) for _ in range(5)]
        for each in slow[2:]:
            await each.send(encode_hello(hello(a.address))[:-1])
        assert await is_evicted(slow[0])
        assert await is_evicted(slow[1])
        await FakePeer.introduced(a)
        assert await is_evicted(slow[2])
        for each in slow[3:]:
            assert await each.told() == (FrameKind.FULL, "no introduction within 1 s")
        half = await FakePeer.dial(a)
        await half.send(encode_hello(hello(a.address))[:-1])
        await half.stream.send_eof()
        await half.closed()
    assert (a.counters.malformed, a.counters.refused, a.counters.late) == (0, 0, 2)


@on_loop
async def test_a_host_gets_in_although_more_wait_for_their_turn_than_have_it_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """60 wait for 0.6 s, and have 0.2 s for their introductions: those whose turn came would all be late."""
    strangers = 60
    a = Host(options=replace(QUICK, introduce_timeout=0.2, max_introducing_per_source=strangers + 4))
    b = Host(options=QUICK)
    async with running(a, b), trio.open_nursery() as nursery:
        flood = Flood(a, strangers, beginning=encode_hello(hello(a.address, deployment_id="another")))
        nursery.start_soon(flood.run)
        await until(lambda: a.counters.late > strangers)
        await until(lambda: b.send(a, heartbeat(1)) or heartbeat(1) in a.received)
        nursery.cancel_scope.cancel()
    assert any("so many wait that this one had no turn within 0.1 s" in text for text in warnings(caplog))


@on_loop
async def test_one_that_waits_keeps_no_place_although_no_turn_is_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after handshakes that cost much."""
    monkeypatch.setattr(entrance_module, "_PLAIN_BEGINS_PER_S", 0.001)
    monkeypatch.setattr(entrance_module, "_BURST", 0)
    a = Host(options=replace(QUICK, introduce_timeout=0.2))
    async with running(a):
        callers = [await FakePeer.dial(a) for _ in range(2)]
        for caller in callers:
            await caller.send(encode_hello(hello(a.address)))
        await callers[0].next_frame()
        text = "so many wait that this one had no turn within 0.1 s"
        assert await callers[1].told() == (FrameKind.FULL, text)


# ---- with TLS


@on_loop
async def test_a_caller_with_tls_that_is_evicted_or_late_is_told_so_without_a_handshake(
    tmp_path: Path,
) -> None:
    options = Options(max_introducing_per_source=2, introduce_timeout=0.2)
    a = Host(tls=Files(tmp_path).config(), options=options)
    async with running(a):
        beginnings = (b"", bytes([TLS_HANDSHAKE, 3, 1]), bytes([TLS_HANDSHAKE]), b"D")
        callers = [await FakePeer.dial(a) for _ in beginnings[:2]]
        for caller, beginning in zip(callers, beginnings, strict=False):
            await caller.send(beginning)
        await until(lambda: len(a.transport._admission) == 2)
        callers += [await FakePeer.dial(a) for _ in beginnings[2:]]
        for caller, beginning in zip(callers[2:], beginnings[2:], strict=True):
            await caller.send(beginning)
        answers = [await everything(caller) for caller in callers]
    assert answers[:3] == [NO_PLACE_ALERT] * 3
    assert b"no introduction within 0.2 s" in answers[3]  # it is about to introduce itself without TLS
    assert (a.counters.evicted, a.counters.late, a.counters.full) == (2, 2, 0)


async def everything(caller: FakePeer) -> bytes:
    """What a caller is sent until the end."""
    sent = b""
    while data := await caller.stream.receive_some(4096):
        sent += data
    return sent


@on_loop
async def test_a_host_without_a_place_is_dialed_again_soon_with_tls_too(tmp_path: Path) -> None:
    async def turn_away(caller: FakePeer) -> None:
        await caller.stream.receive_some(4096)
        await caller.send(NO_PLACE_ALERT)

    a = Host(tls=Files(tmp_path).config(), options=replace(QUICK, backoff_refused=60))
    async with listening(turn_away) as address, running(a):
        while a.counters.connect_failures < 5:
            a.send(address)
            await trio.sleep(0.001)
        assert "too many connections" in a.transport.peers()[address].error
    assert a.counters.refused == 0


@on_loop
async def test_a_connection_that_ends_without_a_word_leaves_nothing_behind() -> None:
    a = Host()
    async with running(a):
        await FakePeer.introduced(a)
        files = open_files()
        for _ in range(50):
            scanner = await FakePeer.dial(a)
            await until(lambda: len(a.transport._admission) == 1)
            await trio.aclose_forcefully(scanner.stream)
            await until(lambda: len(a.transport._admission) == 0)
        assert open_files() == files
    assert a.counters.failed == a.counters.malformed == a.counters.late == 0


@on_loop
async def test_the_log_has_one_line_of_many_that_are_refused_for_one_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "drakkar.transport")
    a = Host()
    async with running(a):
        for number in range(20):
            caller = await FakePeer.dial(a)
            await caller.send(encode_hello(hello(a.address, deployment_id=f"their {number}")))
            kind, text = await caller.told()
            assert (kind, f"'their {number}'" in text) == (FrameKind.REFUSED, True)
    assert a.counters.refused == 20
    assert [record.getMessage() for record in caplog.records if "closed" in record.getMessage()] == warnings(
        caplog
    )
    assert len(warnings(caplog)) == 1


def test_introductions_have_a_pace_and_may_come_together_after_a_pause() -> None:
    pace = _Pace(per_second=10)
    assert sum(pace.take(0.0) for _ in range(1000)) == pytest.approx(_BURST, abs=1)
    assert 0 < pace.free_at <= 0.1
    assert sum(pace.take(now / 100) for now in range(1, 201)) == pytest.approx(20, abs=1)
    assert sum(pace.take(1000.0) for _ in range(1000)) == pytest.approx(_BURST, abs=1)


def test_handshakes_that_cost_much_leave_room_for_fewer() -> None:
    pace = _Pace(per_second=50)
    while pace.take(100.0):
        pass
    free_at = pace.free_at
    pace.spend(0.002)  # what one costs that is as usual
    assert pace.free_at == free_at
    pace.spend(0.012)
    assert pace.free_at == pytest.approx(free_at + 0.1)


async def nobody_comes(*_: object) -> None:
    raise AssertionError


class BadListener:
    """Fails in one way after another."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def accept(self) -> Any:
        raise OSError(self.errors.pop(0), "it failed")


@on_loop
async def test_a_host_without_file_descriptors_says_so_and_tries_again() -> None:
    said: list[tuple[str, str]] = []
    options = Options()
    entrance = Entrance(
        admission=Admission(options, Counters()),
        options=options,
        source_of=str,
        serve=nobody_comes,
        warn=lambda cause, text: said.append((cause, text)),
        tls=False,
    )
    listener: Any = BadListener(errno.ECONNABORTED, errno.EMFILE, errno.EAGAIN)
    assert entrance._accept(listener) > 0
    assert said == [("files", "cannot accept connections: it failed; raise the limit (ulimit -n)")]
    assert entrance._accept(listener) == 0
    entrance._close([])


def test_sources_take_turns_however_many_connections_each_has() -> None:
    turns = _Turns(_Pace(1))
    sources = {}
    for source in ("a", "a", "a", "b", "c"):
        with socket.socket() as unused:
            accepted = _Accepted(unused)
        accepted.pending = PendingConnection("", source, 0, lambda: None)
        sources[accepted] = source
        turns.put(accepted)
    lost = next(accepted for accepted, source in sources.items() if source == "c")
    turns.drop(lost)
    turns.drop(lost)
    assert lost not in list(turns)
    assert [sources[turns.take()] for _ in range(4)] == ["a", "b", "a", "a"]
    assert not turns


@on_loop
async def test_other_tasks_of_the_loop_have_their_turns_between_a_few_connections() -> None:
    a = Host()
    async with running(a):
        crowd: list[socket.socket] = []
        with closing(crowd):
            crowd += [socket.create_connection(parse_address(a.address)) for _ in range(100)]
            most = 0
            while a.counters.evicted < 60:
                before = len(a.transport._admission) + a.counters.evicted
                await trio.lowlevel.checkpoint()
                most = max(most, len(a.transport._admission) + a.counters.evicted - before)
    assert 0 < most <= _BATCH


@on_loop
async def test_strangers_do_not_have_more_introductions_begun_than_their_pace_allows() -> None:
    a = Host(options=Options(max_introducing_per_source=128))
    async with running(a):
        began = trio.current_time()
        crowd: list[socket.socket] = []
        with closing(crowd):
            for _ in range(120):
                crowd.append(socket.create_connection(parse_address(a.address)))
                crowd[-1].send(b"GET / HTTP/1.1\r\n\r\n")
            while a.counters.malformed < 100:
                await trio.sleep(0.001)
                allowed = _BURST + 2 + _PLAIN_BEGINS_PER_S * (trio.current_time() - began)
                assert a.counters.malformed <= allowed
        assert trio.current_time() - began >= (100 - _BURST - 2) / _PLAIN_BEGINS_PER_S


# ---- places of those that have introduced themselves


@on_loop
async def test_members_have_places_however_many_others_have_come() -> None:
    a, b = Host(options=Options(max_incoming=8)), Host()
    async with running(a, b):
        a.transport.members([a.address, b.address])
        for number in range(7):
            await FakePeer.introduced(a, address=f"10.0.0.{number}:1")
        one_more = await FakePeer.dial(a)
        await one_more.send(encode_hello(hello(a.address, address="10.0.0.9:1")))
        kind, text = await one_more.told()
        assert (kind, "this host has 7 connections of hosts that are no members" in text) == (
            FrameKind.FULL,
            True,
        )
        b.send(a, heartbeat(1))
        await until(lambda: heartbeat(1) in a.received)
    assert (a.counters.full, b.counters.connect_failures) == (1, 0)


@on_loop
async def test_a_stranger_does_not_get_the_place_of_a_member_by_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = Host(options=Options(max_incoming=1)), Host()
    async with running(a, b):
        a.transport.members([b.address])
        b.send(a, heartbeat(1))
        await until(lambda: a.received)
        assert a.transport.is_at_home(b.address)
        thief = await FakePeer.dial(a, "127.0.0.2")
        await thief.send(encode_hello(hello(a.address, address=b.address)))
        kind, text = await thief.told()
        assert (kind, "to one from elsewhere" in text) == (FrameKind.FULL, True)
        b.send(a, heartbeat(2))
        await until(lambda: heartbeat(2) in a.received)
        assert b.counters.lost == 0


@on_loop
async def test_a_host_is_at_home_where_its_connection_comes_from_where_its_address_leads_to() -> None:
    a = Host()
    async with running(a):
        for address, source, at_home in (
            ("127.0.0.2:1", "127.0.0.2", True),
            ("127.0.0.2:2", "127.0.0.3", False),
            ("localhost:3", "127.0.0.1", True),
            ("no-such-host.invalid:4", "127.0.0.1", False),
        ):
            await FakePeer.introduced(a, source=source, address=address)
            await until(lambda address=address: address in a.transport._inbound._callers)
            assert a.transport.is_at_home(address) is at_home
        assert not a.transport.is_at_home("127.0.0.1:9")
