"""State machines that hang do not stop the others of their host, and one can see which they are."""

import time
from functools import partial

import pykka
import pytest
from drakkar.actors import IN_MEMORY, ConfigError, NodeHost
from drakkar.actors.host import hang_watch
from drakkar.actors.host import host as node_host
from drakkar.actors.machine import applier

from tests.actors.support import TICK, TIMEOUT_S, Gated, Ledger, settled, until

HANGING = 4
CALM = {"election_ticks": 10, "snapshot_entries": 0}


@pytest.fixture(autouse=True)
def _workers_are_replaced_soon(monkeypatch):
    monkeypatch.setattr(node_host, "WORKER_HANG_S", 0.2)
    monkeypatch.setattr(hang_watch, "LOOK_INTERVAL_S", 0.05)


@pytest.fixture
def host():
    with NodeHost("127.0.0.1:0", IN_MEMORY, tick_interval=TICK) as host:
        yield host


@pytest.fixture
def impatient(monkeypatch):
    """A state machine hangs after a fraction of a second."""
    monkeypatch.setattr(applier, "HANG_S", 0.3)


def start(host, machine, shard_id):
    replica = host.start_replica(
        lambda: machine, shard_id=shard_id, replica_id=1, members={1: host.address}, config=CALM
    )
    until(lambda: replica.status().leader_id)
    return replica


@pytest.fixture
def hanging(host):
    """As many state machines that hang as the host has workers; let go in the end."""
    machines = [Gated(apply_waits=True) for _ in range(HANGING)]
    replicas = [start(host, machine, number) for number, machine in enumerate(machines, 1)]
    waiting = [replica.propose(b"a", timeout=60) for replica in replicas]
    assert all(machine.arrived.wait(TIMEOUT_S) for machine in machines)
    yield replicas, waiting, machines
    for machine in machines:
        machine.gate.set()


def release(hanging):
    _, waiting, machines = hanging
    for machine in machines:
        machine.gate.set()
    assert [settled(future) for future in waiting] == [1] * HANGING


def test_others_of_the_host_go_on(host, hanging):
    other = start(host, Ledger(), 9)
    assert settled(other.propose(b"first", timeout=TIMEOUT_S)) == 1, (
        "its work waited for the state machines that hang"
    )
    began = time.monotonic()
    for _ in range(20):
        assert isinstance(settled(other.propose(b"more")), int)
    assert settled(other.read(None))
    assert time.monotonic() - began < 5
    figures = host.metrics()
    assert figures["workers_hanging"] == HANGING
    assert HANGING < figures["workers_threads"] <= 2 * HANGING
    release(hanging)
    until(lambda: host.metrics()["workers_threads"] == HANGING)
    assert host.metrics()["workers_hanging"] == 0


def test_one_sees_which_hang_and_since_when(host, hanging, impatient, caplog):
    began = time.time()
    other = start(host, Ledger(), 9)
    until(lambda: host.metrics()["replicas_hanging"] == HANGING)
    hang = hanging[0][0].status().hang
    assert hang.what.startswith("applying entr")
    assert began - 2 < hang.since <= time.time()
    assert host.metrics(1)["replicas_hanging"] == 1
    assert other.status().hang is None
    until(
        lambda: (
            caplog.text.count("its state machine hangs: it has not returned from applying entr") == HANGING
        )
    )
    for shard_id in range(1, HANGING + 1):
        assert f"{host.address} replica 1 of shard {shard_id}: its state machine hangs" in caplog.text
    release(hanging)
    until(lambda: host.metrics()["replicas_hanging"] == 0)
    until(lambda: caplog.text.count("its state machine hangs no more") == HANGING)
    assert caplog.text.count("its state machine hangs:") == HANGING


def test_a_replica_that_was_stopped_is_told_of_when_its_state_machine_returns(host, impatient, caplog):
    machine = Gated(apply_waits=True)
    replica = start(host, machine, 1)
    replica.propose(b"a", timeout=60)
    until(lambda: "its state machine hangs:" in caplog.text)
    with pytest.raises(pykka.Timeout):
        replica.stop(timeout=0.5)
    machine.gate.set()
    until(lambda: "its state machine hangs no more" in caplog.text)


def test_a_host_stops_in_time_though_more_of_them_hang_than_it_has_workers(caplog, monkeypatch):
    host = NodeHost("127.0.0.1:0", IN_MEMORY, tick_interval=TICK, workers=1, max_workers=3)
    machines = [Gated(apply_waits=True) for _ in range(3)]
    replicas = [start(host, machine, number) for number, machine in enumerate(machines, 1)]
    for replica in replicas:
        replica.propose(b"a", timeout=60)
    assert all(machine.arrived.wait(TIMEOUT_S) for machine in machines)
    monkeypatch.setattr(host._pool, "stop", partial(host._pool.stop, timeout=0.5))
    began = time.monotonic()
    host.stop()
    assert time.monotonic() - began < 5
    assert "3 workers still work" in caplog.text
    assert "the state machines of shards 1, 2, 3 have not returned" in caplog.text
    for machine in machines:
        machine.gate.set()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 8, "max_workers": 4}, "max_workers=4: must be a whole number from 8 to 1024"),
        ({"max_workers": 2.5}, "max_workers=2.5"),
    ],
)
def test_the_bound_is_no_less_than_the_workers(options, words):
    with pytest.raises(ConfigError, match=words):
        NodeHost("127.0.0.1:0", IN_MEMORY, **options)
