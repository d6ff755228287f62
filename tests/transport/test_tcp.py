"""Transports over real sockets on the loopback interface."""

import socket
from typing import Any

import pytest
import trio
import trio.testing
from drakkar.handlers.errors import ConfigError, TransportError
from drakkar.handlers.messages import Message
from drakkar.transport import peer
from drakkar.transport.frames import FrameKind
from drakkar.transport.options import Options
from drakkar.transport.tcp import TcpTransport

from tests.ports import free_ports
from tests.transport.support import HEARTBEAT, REPLICATE, Host, bulk, heartbeat, on_loop, running, until

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
async def test_messages_of_each_lane_arrive_in_the_order_in_which_they_were_sent() -> None:
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
    assert [m.term for m in b.received if m.type is REPLICATE] == list(range(0, 20_000, 1000))


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
        # The message may have arrived before its writer has come to rest.
        await trio.testing.wait_all_tasks_blocked()
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
    assert b.received == [heartbeat(2), bulk(40 << 20)]


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
async def test_frames_of_other_kinds_reach_their_receiver_in_order_with_messages() -> None:
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


@pytest.mark.parametrize("kind", [0, int(FrameKind.PONG), 256, "16", True])
def test_a_kind_of_frame_that_is_not_free_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="from 16 to 255"):
        Host(frames={kind: print})
    with pytest.raises(ConfigError, match="from 16 to 255"):
        Host().transport.send_frame("127.0.0.1:1", kind, b"")


# ---- listening


@pytest.mark.parametrize("address", ["0.0.0.0:7000", "[::]:7000"])
def test_an_address_that_cannot_be_dialed_is_not_advertised(address: str) -> None:
    with pytest.raises(TransportError, match="as listen_address"):
        TcpTransport(address, deliver=print, unreachable=print)
    TcpTransport("10.0.0.1:7000", listen_address=address, deliver=print, unreachable=print)


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


@pytest.mark.parametrize("host", ["localhost", "[::1]", "127.0.0.1"])
@on_loop
async def test_names_and_both_kinds_of_ip_addresses_work(host: str) -> None:
    if host == "[::1]":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    a, b = Host(), Host(f"{host}:{free_ports(1)[0]}")
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)
