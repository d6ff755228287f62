"""The lives of hosts over real sockets: heartbeats that are late, lost and out of order; cuts, restarts, and evidence of an end."""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message
from drakkar.transport.addresses import parse_address
from drakkar.transport.budgets import Work
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.hello import (
    ALIVE_FEATURE,
    Run,
    decode_hello,
    decode_reason,
    encode_hello,
    encode_reason,
)
from drakkar.transport.liveness import HostState, HostStateChanged, decode_alive, encode_alive
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.options import Options
from drakkar.transport.tls import TlsConfig

from tests.ports import free_ports
from tests.transport.support import (
    LOCAL,
    FakePeer,
    Host,
    heartbeat,
    hello,
    listening,
    on_loop,
    running,
    until,
    warnings,
    welcome_and_say_nothing,
)

UNKNOWN, ALIVE, SUSPECT, DEAD = HostState
QUICK = Options(backoff_first=0.01, backoff_last=0.05, run_timeout=0.1)
SLOW = Options(backoff_first=1000, backoff_last=1000, run_timeout=0.1)
"""After a failure no attempt is made but those that the liveness of hosts asks for."""


class Watching(Host):
    """A host that keeps what it is told of the lives of others, and in which order with their messages."""

    def __init__(self, address: str = LOCAL, **settings: Any) -> None:
        self.changes: list[HostStateChanged] = []
        self.gone: list[tuple[str, str, int]] = []
        self.order: list[str] = []
        told = {"host_changed": self.changes.append, "gone": self._note_gone, "options": QUICK}
        super().__init__(address, **(told | settings))

    def _note_gone(self, address: str, host_id: str, run: int) -> None:
        self.gone.append((address, host_id, run))
        self.order.append(f"run {run} is gone")

    def deliver(self, address: str, messages: list[Message]) -> None:
        super().deliver(address, messages)
        self.order += [str(message.term) for message in messages]

    @property
    def id(self) -> str:
        return self.transport.host_id

    def state(self, of: "Host | str") -> HostState:
        status = self.transport.peers().get(of if isinstance(of, str) else of.address)
        return UNKNOWN if status is None else status.state

    def states(self) -> list[HostState]:
        """Those that it was told of, in order."""
        return [event.state for event in self.changes]

    def runs(self) -> list[tuple[HostState, int]]:
        return [(event.state, event.run) for event in self.changes]

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.transport.tick()

    def meet(self, *others: "Host | str") -> None:
        """Have these be members, and a tick pass."""
        self.transport.members([other if isinstance(other, str) else other.address for other in others])
        self.tick()


async def acquainted(*hosts: Watching) -> None:
    """All of them are members of one shard, and alive."""
    for host in hosts:
        host.meet(*hosts)
    for host in hosts:
        await until(lambda host=host: all(host.state(other) is ALIVE for other in hosts if other is not host))
        await until(lambda host=host: len(host.transport._inbound._callers) == len(hosts) - 1)


async def heard_ticks(host: Watching, times: int) -> None:
    """Let ticks pass, each of which the others have time to hear and to answer."""
    for _ in range(times):
        host.tick()
        await trio.testing.wait_all_tasks_blocked(0.002)


class Gate:
    """A proxy before a host: it can hold up what goes in or comes out, break its connections, refuse new ones, and lead elsewhere."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.address = f"127.0.0.1:{self.port}"
        self.back = ""
        self.inward, self.outward = _open_event(), _open_event()
        self._connections: set[trio.CancelScope] = set()
        self._listening = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as self._nursery:
            await self.admit()
            task_status.started()
            await trio.sleep_forever()

    async def admit(self) -> None:
        self._listening = trio.CancelScope()
        await self._nursery.start(self._listen)

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        with self._listening:
            task_status.started()
            await trio.serve_listeners(self._guide, listeners, handler_nursery=self._nursery)

    def refuse(self) -> None:
        """Break all connections; the kernel refuses new ones."""
        self._listening.cancel()
        self.reset()

    def reset(self) -> None:
        for scope in list(self._connections):
            scope.cancel()

    async def _guide(self, guest: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                host = await trio.open_tcp_stream(*parse_address(self.back))
                async with host, trio.open_nursery() as both:
                    both.start_soon(self._carry, guest, host, "inward", scope)
                    both.start_soon(self._carry, host, guest, "outward", scope)
            except OSError:
                pass  # nothing listens behind it
            finally:
                self._connections.discard(scope)
                await trio.aclose_forcefully(guest)

    async def _carry(
        self, source: trio.SocketStream, sink: trio.SocketStream, way: str, both: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(1 << 16):
                await getattr(self, way).wait()
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        both.cancel()


def _open_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@asynccontextmanager
async def gates(count: int) -> AsyncIterator[list[Gate]]:
    made = [Gate() for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for gate in made:
            await nursery.start(gate.run)
        yield made
        nursery.cancel_scope.cancel()


def behind(gate: Gate, **settings: Any) -> Watching:
    """A host that others reach through a gate."""
    gate.back = f"127.0.0.1:{free_ports(1)[0]}"
    return Watching(gate.address, listen_address=gate.back, **settings)


def in_run(host: Watching, count: int, host_id: str = "b") -> Watching:
    """The same host, in one of its runs."""
    host.transport.identify(host_id, Run(count, tuple(range(count, 0, -1))))
    return host


# ---- heartbeats


@on_loop
async def test_hosts_that_answer_are_alive_and_say_in_which_run() -> None:
    a, b = Watching(), in_run(Watching(), 7)
    async with running(a, b):
        await acquainted(a, b)
        status = a.transport.peers()[b.address]
        assert (status.state, status.host_id, status.run) == (ALIVE, "b", 7)
        assert a.transport.host_states() == {ALIVE: 1}
        for _ in range(20):
            # More ticks than answers would make it suspect, and as many would not.
            before = a.transport._liveness._hosts[b.address].answered
            a.tick()
            await until(lambda before=before: a.transport._liveness._hosts[b.address].answered != before)
    assert [(event.address, event.host_id, event.run, event.state) for event in a.changes] == [
        (b.address, "b", 7, ALIVE)
    ]
    assert a.counters.state_changes == 1
    assert a.gone == b.gone == []


@on_loop
async def test_a_host_that_does_not_answer_is_suspect_then_dead_and_its_connection_stays() -> None:
    a, b = Watching(), Watching()
    async with running(a, b):
        await acquainted(a, b)
        b.transport.silence(True)
        await heard_ticks(a, 4)
        assert a.state(b) is SUSPECT
        await heard_ticks(a, 10)
        assert a.state(b) is DEAD
        b.transport.silence(False)
        a.tick()
        await until(lambda: a.state(b) is ALIVE)
        assert a.connected(b)
    assert a.states() == [ALIVE, SUSPECT, DEAD, ALIVE]
    assert a.gone == [], "a timeout is no evidence"
    assert a.counters.lost == 0


@on_loop
async def test_a_host_that_is_silent_sends_no_heartbeats_and_leaves_what_it_knew() -> None:
    a, b = Watching(), Watching()
    async with running(a, b):
        await acquainted(a, b)
        number = a.transport._liveness.number
        a.transport.silence(True)
        assert a.transport.is_silent
        a.tick(50)
        assert a.transport._liveness.number == number
        assert a.state(b) is ALIVE
        await heard_ticks(b, 14)
        assert b.state(a) is DEAD, "to the others it is as good as dead"
        a.transport.silence(False)
        a.tick()
        b.tick()
        await until(lambda: b.state(a) is ALIVE)
    assert a.states() == [ALIVE]


@on_loop
async def test_each_change_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "drakkar.transport")
    a, b = Watching(), in_run(Watching(), 3)
    async with running(a, b):
        await acquainted(a, b)
        b.transport.silence(True)
        await heard_ticks(a, 14)
    said = [record.getMessage() for record in caplog.records]
    told = [text for text in said if f"of the host b at {b.address} is" in text]
    assert [text.partition(" is ")[2] for text in told] == [
        "alive: it answers",
        "suspect: it has not answered for 3 ticks",
        "dead: it has not answered for 10 ticks",
    ]
    assert warnings(caplog)[-1:] == told[-1:]


class Answering:
    """A host that hears heartbeats, and answers those that a test names."""

    def __init__(self, *, features: frozenset[str] = frozenset({ALIVE_FEATURE})) -> None:
        self.heard: list[int] = []
        self._features = features
        self._caller: FakePeer

    async def serve(self, caller: FakePeer) -> None:
        introduction = decode_hello((await caller.next_frame()).body)
        said = hello(introduction.address, address=introduction.dialed, features=self._features)
        await caller.send(encode_hello(said))
        self._caller = caller
        while True:
            frame = await caller.next_frame()
            if frame.kind == FrameKind.ALIVE:
                self.heard.append(decode_alive(frame.body))

    async def answer(self, *numbers: int) -> None:
        await self._caller.send(b"".join(map(encode_alive, numbers)))


@on_loop
async def test_one_heartbeat_a_tick_is_sent_and_answers_that_are_late_or_out_of_order_make_no_host_younger() -> (
    None
):
    a, b = Watching(), Answering()
    async with listening(b.serve) as address, running(a):
        a.meet(address)
        await until(lambda: b.heard == [1])
        await b.answer(1)
        await until(lambda: a.state(address) is ALIVE)
        for number in range(2, 8):
            a.tick()
            await until(lambda number=number: b.heard == list(range(1, number + 1)))
        assert a.state(address) is SUSPECT
        # Of seven that were sent, the third was answered, late, and what is older comes after it.
        await b.answer(3, 2, 1, 3)
        await until(lambda: a.transport._liveness._hosts[address].answered == 3)
        assert a.state(address) is SUSPECT
        await b.answer(5)
        await until(lambda: a.state(address) is ALIVE)
        a.tick(2)
        assert a.state(address) is SUSPECT, "it counts from when the fifth was sent"
        assert a.connected(address)
    assert a.states() == [ALIVE, SUSPECT, ALIVE, SUSPECT]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(encode_alive(99), id="one that was not sent"),
        pytest.param(encode_frame(FrameKind.ALIVE, bytes(7)), id="of another length"),
    ],
)
@on_loop
async def test_a_host_whose_answers_are_malformed_is_lost(answer: bytes) -> None:
    async def lie(caller: FakePeer) -> None:
        await welcome_and_answer(caller, answer)

    a = Watching()
    async with listening(lie) as address, running(a):
        a.meet(address)
        await until(lambda: a.counters.malformed)
        assert a.state(address) is UNKNOWN
    assert a.gone == []


async def welcome_and_answer(caller: FakePeer, data: bytes) -> None:
    introduction = decode_hello((await caller.next_frame()).body)
    await caller.send(encode_hello(hello(introduction.address, address=introduction.dialed)) + data)
    await trio.sleep_forever()


@on_loop
async def test_a_caller_whose_heartbeats_are_malformed_is_refused() -> None:
    a = Watching()
    async with running(a):
        caller = await FakePeer.introduced(a)
        await caller.send(encode_frame(FrameKind.ALIVE, bytes(9)))
        frame = await caller.next_frame()
        assert frame.kind == FrameKind.REFUSED
        assert "has 9 bytes, and not 8" in decode_reason(frame.body)


@on_loop
async def test_heartbeats_of_a_caller_are_answered_with_the_same_numbers_unless_this_host_is_silent() -> None:
    a = Watching()
    async with running(a):
        caller = await FakePeer.introduced(a)
        await caller.send(encode_alive(5) + encode_alive(1 << 63))
        assert [decode_alive((await caller.next_frame()).body) for _ in range(2)] == [5, 1 << 63]
        a.transport.silence(True)
        await caller.send(encode_alive(6) + encode_frame(FrameKind.PING, b"?"))
        assert (await caller.next_frame()).kind == FrameKind.PONG
        a.transport.silence(False)
        await caller.send(encode_alive(7))
        assert decode_alive((await caller.next_frame()).body) == 7


@on_loop
async def test_a_host_that_knows_no_heartbeats_is_sent_none_and_its_end_is_noticed_all_the_same() -> None:
    a, b = Watching(), Answering(features=frozenset())
    async with running(a):
        async with listening(b.serve) as address:
            a.meet(address)
            await until(lambda: a.connected(address))
            a.tick(20)
            a.send(address, heartbeat(1))
            assert a.state(address) is UNKNOWN
        await until(lambda: a.gone)
        assert a.state(address) is DEAD
    assert b.heard == []


@on_loop
async def test_a_host_that_reads_nothing_has_one_heartbeat_waiting_at_most() -> None:
    """The kernel takes thousands; what it does not take must not fill the lane of votes."""

    async def deaf(caller: FakePeer) -> None:
        caller.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        introduction = decode_hello((await caller.next_frame()).body)
        said = hello(introduction.address, address=introduction.dialed, features=frozenset({ALIVE_FEATURE}))
        await caller.send(encode_hello(said))
        await trio.sleep_forever()

    a = Watching()
    async with listening(deaf) as address, running(a):
        a.meet(address)
        await until(lambda: a.connected(address))

        def waiting() -> int:
            return a.transport.peers()[address].queued_messages

        large = heartbeat(0, payload=bytes(60_000))
        await until(lambda: a.send(address, large) or waiting())
        before = waiting()
        a.tick(1000)
        assert waiting() <= before + 1


@on_loop
async def test_heartbeats_keep_a_connection_that_nothing_else_uses_until_no_one_watches_the_host() -> None:
    brief = Options(idle_timeout=0.05, keepalive=0.02, backoff_first=1000, backoff_last=1000)
    a, b = Watching(options=brief), Watching()
    async with running(a, b):
        a.transport.members([])
        assert a.transport.watch_host(b.address) is UNKNOWN
        assert a.transport.watch_host(b.address) is UNKNOWN
        await until(lambda: a.state(b) is ALIVE)
        with trio.move_on_after(10 * brief.idle_timeout):
            await until(lambda: not a.connected(b))
        assert a.connected(b), "no tick has passed, and it is kept"
        a.transport.unwatch_host(b.address)
        assert a.transport.watch_host(b.address) is ALIVE
        a.transport.unwatch_host(b.address)
        a.transport.unwatch_host(b.address)
        await until(lambda: a.transport.peers() == {})
        with pytest.raises(ConfigError, match="is not watched"):
            a.transport.unwatch_host(b.address)


@on_loop
async def test_a_host_that_waits_is_dialed_and_its_connection_kept_without_heartbeats() -> None:
    brief = Options(idle_timeout=0.05, keepalive=0.02, backoff_first=0.01, backoff_last=0.01)
    a, b = Watching(options=brief), Watching()
    async with running(a, b):
        a.transport.members([])
        a.transport.keep([b.address, a.address])
        await until(lambda: a.connected(b))
        a.tick()
        with trio.move_on_after(10 * brief.idle_timeout):
            await until(lambda: not a.connected(b))
        assert a.connected(b)
        assert a.transport.host_states() == {}
        assert a.state(b) is UNKNOWN
        a.transport.keep([])
        await until(lambda: a.transport.peers() == {})


@on_loop
async def test_a_host_does_not_watch_itself() -> None:
    a = Watching()
    async with running(a):
        a.meet(a)
        a.transport.watch_host(a.address)
        a.tick(20)
        assert a.transport.peers() == {}
    assert a.changes == []


@on_loop
async def test_a_host_that_is_watched_keeps_its_place_among_those_that_are_no_members() -> None:
    a, b = Watching(options=Options(max_incoming=2)), Watching()
    async with running(a, b):
        a.transport.members([])
        a.transport.watch_host(b.address)
        for port in range(1, 20):
            a.send(f"127.0.0.1:{port}")
        assert b.address in a.transport.peers()


@on_loop
async def test_a_host_that_is_away_is_dialed_for_heartbeats_and_only_what_was_sent_is_told_as_lost() -> None:
    a = Watching()
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    async with running(a):
        a.meet(nowhere)
        await until(lambda: a.counters.connect_failures > 3)
        assert a.lost == []
        a.send(nowhere)
        await until(lambda: a.lost)
    assert a.changes == []
    assert a.gone == [], "it was never reached"


# ---- a host has ended


def tls_for(folder: Path) -> TlsConfig:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "host.pem")
    issued.private_key_pem.write_to_path(folder / "host.key")
    return TlsConfig(ca=folder / "ca.pem", cert=folder / "host.pem", key=folder / "host.key")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@on_loop
async def test_a_host_that_has_ended_is_gone_before_any_tick_and_lives_in_its_next_run(
    secure: bool, tmp_path: Path
) -> None:
    tls = tls_for(tmp_path) if secure else None
    port = free_ports(1)[0]
    a, b = Watching(tls=tls, options=SLOW), in_run(Watching(f"127.0.0.1:{port}", tls=tls), 1)
    async with running(a, b) as nursery:
        await acquainted(a, b)
        await b.stop()
        await until(lambda: a.gone)
        assert a.gone == [(b.address, "b", 1)]
        assert a.state(b) is DEAD
        assert a.counters.gone == 1
        again = in_run(Watching(b.address, tls=tls), 2)
        await nursery.start(again.run)
        again.meet(a)
        await until(lambda: a.state(b) is ALIVE)
        again.send(a, heartbeat(5))
        await until(lambda: heartbeat(5) in a.received)
        assert a.transport.peers()[b.address].run == 2
    assert a.runs() == [(ALIVE, 1), (DEAD, 1), (UNKNOWN, 2), (ALIVE, 2)]
    assert a.gone == [(b.address, "b", 1)], "once a run"


@on_loop
async def test_a_host_that_has_never_called_is_gone_too() -> None:
    a, b = Watching(), Watching()
    async with running(a, b):
        a.meet(b)
        await until(lambda: a.state(b) is ALIVE)
        await b.stop()
        await until(lambda: a.gone == [(b.address, b.id, 1)])


@on_loop
async def test_all_that_a_host_had_sent_is_delivered_before_it_is_reported() -> None:
    """Its listener is closed and this host's connection lost, and its own one is not read to its end."""
    a = Watching(options=SLOW)
    async with running(a):
        async with listening(welcome_and_say_nothing) as b:
            a.meet(b)
            await until(lambda: a.connected(b))
            caller = await FakePeer.introduced(a, address=b)
        await until(lambda: "refused" in a.transport.peers()[b].error)
        assert a.gone == []
        await caller.send(b"".join(encode_messages([heartbeat(number) for number in (1, 2, 3)])))
        await caller.stream.aclose()
        await until(lambda: a.gone)
    assert a.order == ["1", "2", "3", "run 1 is gone"]


async def stale(host: Watching, address: str, number: int) -> FakePeer:
    """A connection of a run that is gone, which has waited in the kernel: it brings a heartbeat."""
    caller = await FakePeer.introduced(host, address=address)
    await caller.send(encode_messages([heartbeat(number)])[0])
    return caller


@on_loop
async def test_what_comes_of_a_run_that_is_gone_is_dropped_until_it_has_answered_a_question() -> None:
    a = Watching()
    async with running(a):
        async with listening(welcome_and_say_nothing) as b:
            a.meet(b)
            await until(lambda: a.connected(b))
        await until(lambda: a.gone)
        caller = await stale(a, b, 1)
        await until(lambda: a.counters.gone_messages == 1)
        await caller.stream.aclose()
        lives = await stale(a, b, 2)
        assert (await lives.next_frame()).kind == FrameKind.PING
        await until(lambda: a.counters.gone_messages == 2)
        assert a.received == []
        await lives.send(encode_frame(FrameKind.PONG) + encode_messages([heartbeat(3)])[0])
        await until(lambda: a.received == [heartbeat(3)])
        assert a.state(b) is UNKNOWN, "it was wrongly taken for gone; heartbeats it does not know"
    assert a.order == ["run 1 is gone", "3"]


@on_loop
async def test_a_stream_of_a_run_that_is_gone_is_put_off_until_that_run_has_shown_that_it_lives() -> None:
    a = Watching()
    async with running(a):
        async with listening(welcome_and_say_nothing) as b:
            a.meet(b)
            await until(lambda: a.connected(b))
        await until(lambda: a.gone)
        caller = await FakePeer.dial(a)
        await caller.send(encode_hello(hello(a.address, address=b, stream=True)))
        kind, why = await caller.told()
        assert kind == FrameKind.FULL
        assert f"{b} is taken for gone" in why


@on_loop
async def test_a_host_whose_next_run_answers_already_is_gone_in_the_last_one() -> None:
    """It has started again so fast that nothing was refused."""
    async with gates(1) as [gate]:
        a, b = Watching(), in_run(behind(gate), 1)
        async with running(a, b) as nursery:
            await acquainted(a, b)
            again = in_run(behind(gate), 2)
            await nursery.start(again.run)
            await b.stop()
            await until(lambda: a.gone)
            await until(lambda: a.state(gate.address) is ALIVE)
        assert a.gone == [(gate.address, "b", 1)]
        assert a.runs() == [(ALIVE, 1), (DEAD, 1), (UNKNOWN, 2), (ALIVE, 2)]


@on_loop
async def test_the_last_run_is_reported_before_the_first_message_of_the_next() -> None:
    """Its connections hang, and do not answer: what is still on its way in them is never delivered."""
    a = Watching()
    async with listening(welcome_and_say_nothing) as b, running(a):
        a.meet(b)
        await until(lambda: a.connected(b))
        old = await FakePeer.introduced(a, address=b)
        new = await FakePeer.introduced(a, address=b, run=Run(2, (2, 1)))
        assert a.order == ["run 1 is gone"]
        await old.send(encode_messages([heartbeat(1)])[0])
        await new.send(encode_messages([heartbeat(2)])[0])
        await until(lambda: a.received)
        await old.closed()
    assert a.order == ["run 1 is gone", "2"]


@on_loop
async def test_of_a_host_that_starts_again_and_again_each_run_is_gone_once() -> None:
    port = free_ports(1)[0]
    a = Watching()
    async with running(a) as nursery:
        for count in range(1, 6):
            b = in_run(Watching(f"127.0.0.1:{port}"), count)
            await nursery.start(b.run)
            a.meet(b)
            b.meet(a)
            await until(lambda count=count: a.runs()[-1:] == [(ALIVE, count)])
            await b.stop()
        await until(lambda: len(a.gone) == 5)
    assert a.gone == [(b.address, "b", count) for count in range(1, 6)]


# ---- what is no evidence


@on_loop
async def test_a_reset_alone_is_none() -> None:
    async with gates(2) as [one, two]:
        a, b = behind(one), behind(two)
        async with running(a, b):
            await acquainted(a, b)
            for _ in range(3):
                connects = a.counters.connects
                one.reset()
                two.reset()
                await until(lambda connects=connects: a.counters.connects > connects)
                await until(lambda: a.connected(b))
            a.tick()
            await until(lambda: a.state(b) is ALIVE)
        assert a.gone == []
        assert DEAD not in a.states()


@on_loop
async def test_a_proxy_that_refuses_while_the_host_itself_still_calls_is_none() -> None:
    async with gates(1) as [gate]:
        a, b = Watching(), behind(gate)
        async with running(a, b):
            await acquainted(a, b)
            gate.refuse()
            await until(lambda: "refused" in a.transport.peers()[b.address].error)
            await until(lambda: a.counters.connect_failures > 3)
            b.send(a, heartbeat(4))
            await until(lambda: a.received == [heartbeat(4)])
        assert a.gone == []


@on_loop
async def test_a_flapping_proxy_is_taken_for_an_end_once_and_the_host_is_heard_again() -> None:
    async with gates(2) as [before_a, before_b]:
        a, b = behind(before_a), behind(before_b)
        async with running(a, b):
            await acquainted(a, b)
            for flap in range(3):
                before_a.refuse()
                before_b.refuse()
                await until(lambda flap=flap: a.states().count(DEAD) == flap + 1)
                await before_a.admit()
                await until(lambda: b.connected(a) and not a.transport._liveness._hosts[b.address].gone)
                assert a.state(b) is ALIVE, "it has said so itself, though it cannot be reached"
                b.send(a, heartbeat(flap))
                await until(lambda flap=flap: heartbeat(flap) in a.received)
                await before_b.admit()
                await until(lambda: a.connected(b) and a.state(b) is ALIVE)
        assert a.gone == [(b.address, b.id, 1)], "once a run, however often it flaps"


@pytest.mark.parametrize("way", ["inward", "outward"])
@on_loop
async def test_a_cut_in_one_direction_makes_a_host_dead_and_never_gone(way: str) -> None:
    """What goes to b, or what comes back, is held up; what b says on its own connection arrives all the while."""
    async with gates(1) as [gate]:
        a, b = Watching(), behind(gate)
        async with running(a, b):
            await acquainted(a, b)
            setattr(gate, way, trio.Event())
            a.tick(12)
            assert a.state(b) is DEAD
            b.send(a, heartbeat(1))
            b.tick()
            await until(lambda: a.received == [heartbeat(1)])
            await until(lambda: b.state(a) is ALIVE)
            getattr(gate, way).set()
            a.tick()
            await until(lambda: a.state(b) is ALIVE)
        assert a.gone == b.gone == []


async def full(caller: FakePeer) -> None:
    await caller.next_frame()
    await caller.send(encode_reason("no place", FrameKind.FULL))


async def nonsense(caller: FakePeer) -> None:
    await caller.next_frame()
    await caller.send(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")


async def hang_up(_caller: FakePeer) -> None:
    return


async def another_host(caller: FakePeer) -> None:
    introduction = decode_hello((await caller.next_frame()).body)
    said = hello(introduction.address, address=introduction.dialed, host_id="another")
    await caller.send(encode_hello(said))
    await trio.sleep_forever()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(full, id="it is full"),
        pytest.param(nonsense, id="another process has the port"),
        pytest.param(hang_up, id="it hangs up"),
        pytest.param(another_host, id="another host has the address"),
    ],
)
@on_loop
async def test_whatever_answers_at_the_address_is_none(answer: Callable[[FakePeer], Awaitable[None]]) -> None:
    async with gates(1) as [gate], listening(answer) as elsewhere:
        a, b = Watching(), behind(gate)
        async with running(a, b):
            await acquainted(a, b)
            attempts = a.counters.connects + a.counters.connect_failures
            gate.back = elsewhere
            gate.reset()
            await b.stop()
            await until(lambda: a.counters.connects + a.counters.connect_failures > attempts)
            a.tick(20)
            assert a.state(b) in {DEAD, UNKNOWN}
        assert a.gone == []


@on_loop
async def test_a_listener_whose_queue_is_full_is_none() -> None:
    """The kernel of a process that is stopped, or that is too busy to accept, answers nothing in the end."""
    a = Watching(options=Options(connect_timeout=0.1, backoff_first=0.01, backoff_last=0.01))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listener.setblocking(False)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with running(a):
            a.meet(address)
            await trio.lowlevel.wait_readable(listener)
            accepted = FakePeer(trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0])))
            introduction = decode_hello((await accepted.next_frame()).body)
            await accepted.send(encode_hello(hello(introduction.address, address=address)))
            await until(lambda: a.connected(address))
            await trio.aclose_forcefully(accepted.stream)
            await until(lambda: a.counters.connect_failures > 3)
            await until(lambda: "no connection within" in a.transport.peers()[address].error)
    assert a.gone == []


# ---- names


class Names(trio.abc.HostnameResolver):
    """Every name leads to these addresses."""

    def __init__(self, *ips: str) -> None:
        self.ips = list(ips)

    async def getaddrinfo(self, host: Any, port: Any, *rest: int) -> Any:
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (ip, int(port or 0))) for ip in self.ips]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def named(*ips: str) -> AsyncIterator[tuple[Watching, Watching, Names]]:
    """Two hosts, of which the first has reached the second by a name that leads to these addresses; it listens at the first of them."""
    port = free_ports(1)[0]
    a, b = Watching(), Watching(f"some-host:{port}", listen_address=f"{ips[0]}:{port}")
    names = Names(*ips)
    async with running(a, b):
        trio.socket.set_custom_hostname_resolver(names)
        a.meet(b)
        await until(lambda: a.state(b) is ALIVE)
        yield a, b, names


@on_loop
async def test_a_host_with_several_addresses_is_gone_when_all_of_them_refuse() -> None:
    async with named("127.0.0.2", "127.0.0.3") as (a, b, _):
        await b.stop()
        await until(lambda: a.gone == [(b.address, b.id, 1)])


@on_loop
async def test_a_host_with_several_addresses_is_not_gone_while_one_of_them_does_not_refuse() -> None:
    async with named("127.0.0.2", "127.0.0.3") as (a, b, _):
        _, port = parse_address(b.address)
        with socket.create_server(("127.0.0.3", port)):
            failures = a.counters.connect_failures
            await b.stop()
            await until(lambda: not a.connected(b))
            with trio.move_on_after(0.2):
                await until(lambda: a.gone or a.counters.connect_failures > failures)
            assert a.gone == []


@on_loop
async def test_a_name_that_leads_elsewhere_is_no_evidence_while_the_old_place_does_not_refuse() -> None:
    """A container is started anew under the same name, while the old one is cut off and lives."""
    async with named("127.0.0.2") as (a, b, names):
        names.ips = ["127.0.0.4"]
        for caller in list(b.transport._inbound._callers.values()):
            caller.give_up()
        await until(lambda: "refused" in a.transport.peers()[b.address].error)
        assert a.gone == []
        assert a.state(b) is not DEAD
        await b.stop()
        await until(lambda: a.gone == [(b.address, b.id, 1)])


# ---- what it costs


@on_loop
async def test_strangers_that_send_heartbeats_without_end_are_read_more_slowly() -> None:
    a = Watching()
    async with running(a) as nursery:
        caller = await FakePeer.introduced(a)

        async def flood() -> None:
            while True:
                await caller.send(encode_alive(1) * 4096)

        nursery.start_soon(flood)
        nursery.start_soon(caller.closed)
        await until(lambda: a.counters.pauses > 2)
        nursery.cancel_scope.cancel()


@on_loop
async def test_heartbeats_take_no_more_than_their_share_of_the_loop_however_short_ticks_are() -> None:
    a, b = Watching(), Watching()
    now = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drakkar.transport.tcp.Work", partial(Work, lambda: now))
        a = Watching()
    async with running(a, b):
        a.meet(b)
        await until(lambda: a.state(b) is ALIVE)
        number = a.transport._liveness.number
        a.tick(10_000)
        saved = a.transport._liveness.number - number
        assert 1000 < saved <= 2001, "saved up for a burst"
        for _ in range(10_000):
            now += 0.0001
            a.tick()
            await trio.lowlevel.checkpoint()
        assert 1990 <= a.transport._liveness.number - number - saved <= 2010, "in that second"
        await until(lambda: a.state(b) is ALIVE)


@on_loop
async def test_members_have_their_heartbeats_first_however_many_others_are_watched() -> None:
    member, other = Watching(), Watching()
    now = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drakkar.transport.tcp.Work", partial(Work, lambda: now))
        a = Watching(options=SLOW)
    async with running(a, member, other):
        a.meet(member)
        a.transport.watch_host(other.address)
        for port in range(1, 500):
            a.transport.watch_host(f"127.0.0.1:{port}")
        await until(lambda: a.state(member) is a.state(other) is ALIVE)
        lives, beaten = a.transport._liveness, 0
        number = lives.number
        for _ in range(200):
            now += 0.05
            a.tick()
            due = [member]
            if lives._rounds[-1] == lives.number:
                beaten += 1
                due.append(other)
            await until(
                lambda due=due: all(lives._hosts[each.address].answered == lives.number for each in due)
            )
        assert lives.number == number + 200, "each of them is for the member"
        assert 30 <= beaten <= 45, "500 hosts, 2,000 heartbeats a second, 10 s"
        await until(lambda: a.state(member) is a.state(other) is ALIVE)
    assert [event for event in a.changes if event.state in {SUSPECT, DEAD}] == []


@on_loop
async def test_a_hundred_hosts_are_asked_and_answered_in_one_tick() -> None:
    others = [Answering() for _ in range(100)]
    a = Watching()
    async with trio.open_nursery() as nursery, running(a):
        addresses = []
        for other in others:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def treat(stream: trio.SocketStream, other: Answering = other) -> None:
                with suppress(trio.EndOfChannel, trio.BrokenResourceError):
                    await other.serve(FakePeer(stream))

            nursery.start_soon(partial(trio.serve_listeners, treat, [listener], handler_nursery=nursery))
            addresses.append(f"127.0.0.1:{listener.socket.getsockname()[1]}")
        a.meet(*addresses)
        await until(lambda: all(other.heard == [1] for other in others))
        a.tick()
        await until(lambda: all(other.heard == [1, 2] for other in others))
        for other in others:
            await other.answer(2)
        await until(lambda: a.transport.host_states() == {ALIVE: 100})
        nursery.cancel_scope.cancel()
