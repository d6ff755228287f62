"""The connection to a peer: how it is opened, lost and opened again, and what a slow or silent peer may cost."""

import logging
import socket
from dataclasses import replace
from typing import Any

import pytest
import trio
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.hello import FullError, encode_reason
from drakkar.transport.options import Options

from tests.ports import free_ports
from tests.transport.support import (
    QUICK,
    FakePeer,
    Host,
    bulk,
    heartbeat,
    listening,
    on_loop,
    open_files,
    running,
    say_nothing,
    until,
    warnings,
    welcome,
    welcome_and_say_nothing,
)

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
    a, b = Host(options=slow), Host(f"127.0.0.1:{free_ports(1)[0]}")
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
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a):
        assert a.send(nowhere, heartbeat(1), heartbeat(2)) == 0
        await until(lambda: a.lost)
        assert a.lost == [nowhere]
        assert (a.counters.dropped, a.counters.connect_failures) == (2, 1)
        a.send(nowhere)
        status = a.transport.peers()[nowhere]
    assert (status.connected, status.failures, status.queued_messages) == (False, 1, 1)
    assert "refused" in status.error.lower()
    assert a.lost == [nowhere]


@on_loop
async def test_an_attempt_is_only_made_while_there_is_something_to_send() -> None:
    a = Host()
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a):
        a.send(nowhere)
        await until(lambda: a.lost)
        await until(lambda: a.transport.peers()[nowhere].queued_messages == 0)
        with trio.move_on_after(QUICK.backoff_last * 4) as window:
            await until(lambda: a.counters.connect_failures > 1)
    assert window.cancelled_caught


@on_loop
async def test_a_failure_is_logged_as_a_warning_once_and_not_at_each_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "drakkar.transport")
    a = Host()
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a):
        await until(lambda: a.send(nowhere) or a.counters.connect_failures >= 4)
    assert [text for text in warnings(caplog) if nowhere in text and "cannot reach" in text] == warnings(
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
        await until(lambda: b.transport._inbound._callers == {})
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


@on_loop
async def test_of_hosts_that_are_no_members_only_so_many_are_dialed(caplog: pytest.LogCaptureFixture) -> None:
    """As many as may be connected."""
    most = 100
    a, b, asks = Host(options=replace(QUICK, max_incoming=most)), Host(), Host()
    async with running(a, b, asks):
        a.transport.members([b.address, "127.0.0.1:1"])
        a.send("127.0.0.1:1")
        a.send(b)
        await until(lambda: b.received)
        for port in range(2, 2 + 2 * most):
            a.send(asks)  # it is one that is used
            a.send(f"127.0.0.1:{port}")
            await trio.lowlevel.checkpoint()
        peers = a.transport.peers()
        assert len(peers) == most + 2
        assert {b.address, asks.address, "127.0.0.1:1", f"127.0.0.1:{port}"} <= peers.keys()
        assert "127.0.0.1:2" not in peers
        await until(lambda: asks.received and a.counters.dropped >= most)
    told = [text for text in warnings(caplog) if "cannot reach" in text and "127.0.0.1:1:" not in text]
    assert len(told) == 1


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
            for caller in list(b.transport._inbound._callers.values()):
                caller.give_up()
            await until(lambda count=count: a.counters.lost == count)
            await until(lambda: a.send(b) or a.connected(b))
            await until(lambda: b.transport._inbound._callers)
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
            caller = await FakePeer.introduced(a)
            await FakePeer.dial(a)
            await until(lambda: a.send(silent, bulk(1 << 20)))
            a.send(mute)
            await until(lambda: len(a.transport._admission) == 1)
            await a.stop()
            await caller.closed()
    assert open_files() == files


@on_loop
async def test_a_peer_that_has_no_place_now_is_dialed_again_soon_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0

    async def full_until_the_fifth(caller: FakePeer) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 5:
            await welcome(caller)
            await trio.sleep_forever()
        await caller.next_frame()
        await caller.send(encode_reason(f"no place for {attempts}", FrameKind.FULL))

    # Were it a refusal, or a failure, the next attempt would not come within the time of the test.
    a = Host(options=Options(backoff_first=0.01, backoff_last=1000, backoff_refused=1000))
    async with listening(full_until_the_fifth) as address, running(a):
        await until(lambda: a.send(address) or a.connected(address))
    assert a.transport._known.host_id_at(address)
    assert a.counters.connect_failures == 4
    assert [
        text for text in warnings(caplog) if "no place for 1; next attempt in 0.01 s" in text
    ] == warnings(caplog)


@on_loop
async def test_a_peer_that_answers_with_other_nonsense_each_time_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0

    async def nonsense(caller: FakePeer) -> None:
        nonlocal attempts
        attempts += 1
        await caller.next_frame()
        await caller.send(b"%02d" % attempts + bytes(14))

    a = Host()
    async with listening(nonsense) as address, running(a):
        await until(lambda: a.send(address) or a.counters.malformed == 5)
    assert len([text for text in warnings(caplog) if "is not a Drakkar host" in text]) == 1


@on_loop
async def test_a_peer_that_stays_full_is_dialed_less_and_less() -> None:
    a = Host(options=Options(backoff_first=1, backoff_last=64))
    peer = a.transport._peer("127.0.0.1:1")
    waits = [peer._wait_after(FullError("full")) for _ in range(27)]
    assert max(waits[:21]) <= 1
    assert all(2**number <= wait <= 2 ** (number + 1) for number, wait in enumerate(waits[21:]))
    peer.revive()
    assert peer._wait_after(FullError("full")) <= 1


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
        assert status.queued_bytes <= limit + 100_000 + 1000  # one message may exceed it
        assert a.counters.dropped == dropped
        assert a.lost == []  # it is connected
        a.send(b, heartbeat(7))
        await until(lambda: b.received == [heartbeat(7)])


@on_loop
async def test_the_queue_is_bounded_in_messages_too() -> None:
    a = Host(options=Options(queue_messages=10))
    async with listening(say_nothing) as mute, running(a):
        assert a.send(mute, *map(heartbeat, range(8))) == 0
        assert a.send(mute, *map(heartbeat, range(8))) == 6
    assert a.counters.dropped == 6
    assert a.lost == []


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
    """As when its machine lost power: nothing answers, and the kernel takes heartbeats for a long time."""
    a = Host(options=Options(keepalive=0.05, answer_timeout=0.05))

    async def read_and_never_answer(caller: FakePeer) -> None:
        await welcome(caller)
        while True:
            await caller.next_frame()

    async with listening(read_and_never_answer) as silent, running(a):
        await until(lambda: a.send(silent) or a.counters.lost)
        assert silent in a.lost
        assert "nothing came" in a.transport.peers()[silent].error


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
async def test_a_host_that_accepts_and_says_nothing_is_unreachable() -> None:
    a = Host(options=Options(connect_timeout=0.05))
    async with listening(say_nothing) as mute, running(a):
        a.send(mute)
        await until(lambda: a.lost == [mute])
        assert a.transport.peers()[mute].error == "no connection within 0.05 s"


# ---- addresses


@pytest.mark.parametrize("nowhere", ["no-such-host.invalid:7000", "no address at all", "a..b:7000"])
@on_loop
async def test_a_peer_whose_address_leads_nowhere_is_unreachable(nowhere: str) -> None:
    a = Host()
    async with running(a):
        a.send(nowhere)
        await until(lambda: a.lost == [nowhere])
        assert a.transport.peers()[nowhere].error


class MovingHost(trio.abc.HostnameResolver):
    """Answers the first question with an address on which nothing listens, and then with the right one."""

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
    port = free_ports(1)[0]
    a, b = Host(), Host(f"moving-host:{port}", listen_address=f"127.0.0.2:{port}")
    resolver = MovingHost()
    async with running(a, b):
        trio.socket.set_custom_hostname_resolver(resolver)
        a.send(b)
        await until(lambda: a.lost)
        a.send(b)
        await until(lambda: b.received)
    assert resolver.asked == 2


@on_loop
async def test_a_host_whose_address_is_spelt_in_two_ways_has_one_connection() -> None:
    a, b = Host("localhost:0"), Host("localhost:0")
    async with running(a, b):
        for number in range(1, 21):
            assert a.send((b.address, b.address.upper())[number % 2], heartbeat(number)) == 0
            await until(lambda number=number: heartbeat(number) in b.received)
        assert len(a.transport.peers()) == 1
    assert (a.counters.connects, a.counters.lost) == (1, 0)
