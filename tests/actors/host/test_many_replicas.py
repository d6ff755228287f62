"""Many replicas on one host: they start together, all or none, and stop together."""

import threading
import time

import pytest
from drakkar.actors import (
    ConfigError,
    CorruptData,
    DrakkarError,
    HandlerTableError,
    OutcomeUnknown,
    RaftConfig,
    ReplicaSpec,
    ReplicaStopped,
    State,
    StorageFailed,
    TransportError,
)
from drakkar.actors.host import store_asker
from drakkar.actors.host.host import NodeHost

from tests.actors.support import (
    TIMEOUT_S,
    Hosts,
    InlineLedger,
    Ledger,
    commit,
    settled,
    until,
)

SHARDS = range(1, 41)
LATE = {"election_ticks": 5000}
"""No election, and so no write, while a test looks at the disk."""


@pytest.fixture(params=["memory", "disk"])
def hosts(request, tmp_path):
    with Hosts(1, data=tmp_path if request.param == "disk" else None) as hosts:
        yield hosts


@pytest.fixture
def on_disk(tmp_path):
    with Hosts(1, data=tmp_path) as hosts:
        yield hosts


def spec(hosts, shard_id, machine=InlineLedger, **options):
    return ReplicaSpec(
        machine, **{"shard_id": shard_id, "replica_id": 1, "members": hosts.members, **options}
    )


def start(hosts, shards=SHARDS, **options):
    return hosts.hosts[1].start_replicas([spec(hosts, shard, **options) for shard in shards])


# -- To start


def test_many_replicas_start_together_and_again(hosts):
    for life in (1, 2):
        if life == 1 or hosts.data is not None:
            hosts.start(1)
        else:
            for shard in SHARDS:
                hosts.hosts[1].replica(shard).stop()
        replicas = start(hosts)
        assert [(replica.shard_id, replica.replica_id) for replica in replicas] == [(s, 1) for s in SHARDS]
        for shard, replica in zip(SHARDS, replicas, strict=True):
            assert hosts.hosts[1].replica(shard) is replica
            assert commit(replica, b"%d" % shard) == life
        if hosts.data is not None:
            hosts.stop(1)


def test_many_first_starts_share_a_flush_and_one_needs_one(on_disk):
    """So the record of a replica and its first entry are durable at once: a crash cannot come between them."""
    host = on_disk.start(1)
    before = host.store_status.commits
    (replica,) = start(on_disk, [99], config=LATE)
    assert host.store_status.commits == before + 1
    assert replica.status().last_index == 1
    start(on_disk, config=LATE)
    # The log's thread may have taken the first request while the others came.
    assert host.store_status.commits <= before + 4


def test_none_is_no_mistake(hosts):
    assert hosts.start(1).start_replicas([]) == []


def test_a_start_can_wait_until_many_have_applied_their_logs(on_disk):
    on_disk.start(1)
    for replica in start(on_disk, range(1, 5)):
        commit(replica, b"x")
    on_disk.stop(1)
    on_disk.start(1)
    for replica in start(on_disk, range(1, 5), config={"wait_ready": True, **LATE}):
        assert settled(replica.stale_read(None)) == [b"x"]


def mistakes():
    """What is wrong with one of many; the error, and what it says."""
    yield "a member list", {"members": {2: "127.0.0.1:1"}}, ConfigError, r"members=.* must contain replica 1 "
    yield "an address", {"members": {1: "nowhere"}}, TransportError, r"'nowhere'.*\(shard 7, replica 1\)"
    yield "an id", {"replica_id": 0}, ConfigError, r"replica_id=0: .*\(shard 7, replica 0\)"
    yield "an option", {"config": {"colour": 1}}, ConfigError, r"config=.*colour.*\(shard 7, replica 1\)"
    yield "another's config", {"config": RaftConfig(replica_id=2)}, ConfigError, r"config=.*\(shard 7, rep"
    yield "a role", {"role": State.WITNESS}, ConfigError, r"role=.*\(shard 7, replica 1\)"
    yield "a state machine", {"machine": dict}, ConfigError, r"state_machine=.*\(shard 7, replica 1\)"
    yield "a table", {"handlers": {}}, HandlerTableError, r"no HandlerTable.*\(shard 7, replica 1\)"
    yield "groups", {"groups": {1: 1}}, ConfigError, r"groups=.*\(shard 7, replica 1\)"


@pytest.mark.parametrize(
    ("wrong", "error", "says"), [pytest.param(*rest, id=name) for name, *rest in mistakes()]
)
def test_a_mistake_in_one_refuses_all_and_records_nothing(hosts, wrong, error, says):
    host = hosts.start(1)
    specs = [spec(hosts, shard) for shard in range(1, 7)]
    with pytest.raises(error, match=says):
        host.start_replicas([*specs, spec(hosts, 7, **wrong), spec(hosts, 8)])
    assert host._store.replicas() == []
    assert host._registry.nodes == {}
    assert len(host.start_replicas(specs)) == 6


def test_what_is_no_spec_or_comes_twice_is_refused(hosts):
    host = hosts.start(1)
    with pytest.raises(ConfigError, match=r"specs=.*: must be a ReplicaSpec"):
        host.start_replicas([spec(hosts, 1), {"shard_id": 2}])
    with pytest.raises(ConfigError, match=r"specs=1: is named twice"):
        host.start_replicas([spec(hosts, 1), spec(hosts, 2), spec(hosts, 1, replica_id=2)])
    assert host._store.replicas() == []


def test_what_the_host_holds_already_refuses_all_too(hosts):
    host = hosts.start(1)
    start(hosts, [3, 4, 5])
    for shard in (4, 5):
        host.replica(shard).stop()
    host.remove_data(5, 1)
    for wrong, says in (
        (spec(hosts, 3), "shard_id=3: runs already"),
        (spec(hosts, 4, Ledger), r"state_machine='Ledger': .*\(shard 4, replica 1\)"),
        (spec(hosts, 4, replica_id=2, members={2: hosts.addresses[0]}), "holds replica 1 of shard 4"),
        (spec(hosts, 5), r"replica_id=1: its data was removed .*\(shard 5, replica 1\)"),
    ):
        with pytest.raises(ConfigError, match=says):
            host.start_replicas([spec(hosts, 1), wrong, spec(hosts, 2)])
    assert host._store.replicas() == [(3, 1), (4, 1)]
    assert sorted(host._registry.nodes) == [3]
    assert len(start(hosts, [1, 2, 4])) == 3


def test_a_snapshot_that_is_missing_refuses_all(on_disk):
    class Saved(InlineLedger):
        def save(self, sink):
            sink.write(b"state")

    on_disk.start(1)
    (replica,) = start(on_disk, [1], machine=Saved)
    commit(replica, b"x")
    replica.snapshot().get(timeout=TIMEOUT_S)
    on_disk.stop(1)
    (file,) = (on_disk.data / "1" / "snapshots").glob("1-1/*.snapshot")
    file.unlink()
    host = on_disk.start(1)
    with pytest.raises(CorruptData, match=f"{file} does not exist"):
        host.start_replicas([spec(on_disk, 2), spec(on_disk, 1, Saved)])
    assert host._store.replicas() == [(1, 1)]


def test_a_node_that_cannot_be_made_lets_none_run_and_the_same_call_completes_it(hosts, monkeypatch):
    host, make = hosts.start(1), NodeHost._make_node

    def fail(host, start, log):
        if start.options.shard_id == 3:
            raise CorruptData("entry 1 of shard 3")
        return make(host, start, log)

    with monkeypatch.context() as patch:
        patch.setattr(NodeHost, "_make_node", fail)
        with pytest.raises(CorruptData, match="entry 1 of shard 3"):
            start(hosts, range(1, 5))
    assert host._registry.nodes == {}
    assert [commit(replica, b"x") for replica in start(hosts, range(1, 5))] == [1, 1, 1, 1]


def test_a_disk_that_fails_is_reported_and_nothing_runs(hosts, monkeypatch):
    host = hosts.start(1)

    def break_disk(*_):
        raise OSError("broken")

    monkeypatch.setattr(host._store._files, "write", break_disk)
    with pytest.raises(StorageFailed, match="broken"):
        start(hosts)
    assert host._registry.nodes == {}


def test_a_disk_that_hangs_is_reported_and_the_same_call_completes_it(on_disk, monkeypatch):
    host, held = on_disk.start(1), []
    driver = host._store._driver
    with monkeypatch.context() as patch:
        patch.setattr(driver, "flush", lambda *given: held.append(given))
        patch.setattr(store_asker, "STORE_TIMEOUT_S", 0.05)
        with pytest.raises(OutcomeUnknown, match=r"did not finish within 0.05 s: its disk is very busy"):
            start(on_disk)
    for given in held:
        host.loop.run_soon(driver.flush, *given)
    assert len(start(on_disk)) == len(SHARDS)


def test_a_host_that_is_stopped_meanwhile_says_so(hosts, monkeypatch):
    host, launch = hosts.start(1), NodeHost._launch
    stopper = threading.Thread(target=host.stop)

    def stop_after_ten(host, node):
        if node.raft.config.shard_id == 10:
            stopper.start()
            until(lambda: not host.loop.running)
        return launch(host, node)

    monkeypatch.setattr(NodeHost, "_launch", stop_after_ten)
    with pytest.raises(ReplicaStopped, match="make a new one"):
        start(hosts)
    stopper.join(TIMEOUT_S)
    assert not stopper.is_alive()
    assert host._registry.nodes == {}


# -- To stop


def test_many_replicas_stop_under_load_and_answer_every_request(hosts):
    hosts.start(1)
    replicas = start(hosts)
    for replica in replicas:
        commit(replica, b"first")
    futures, enough = [], threading.Event()

    def work():
        while not enough.is_set() and len(futures) < 100_000:
            futures.extend(replica.propose(b"x", timeout=5.0) for replica in replicas)

    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: len(futures) > 1000 and futures[0].done)
    hosts.stop(1)
    enough.set()
    worker.join(TIMEOUT_S)
    outcomes = [settled(future) for future in futures]
    assert {type(each) for each in outcomes if not isinstance(each, DrakkarError)} == {int}
    assert type(settled(replicas[0].propose(b"late"))) is ReplicaStopped


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_six_hundred_shards_on_three_hosts_start_and_stop_in_seconds(tmp_path):
    """The bounds are several times what a slow machine needs; one replica after the other would take minutes."""
    shards = range(1, 601)
    with Hosts(data=tmp_path, tick_interval=0.5) as hosts:
        for number in hosts.members:
            hosts.start(number)
        started = {}

        def begin(number):
            started[number] = hosts.hosts[number].start_replicas(
                [spec(hosts, shard, replica_id=number) for shard in shards]
            )

        threads = [threading.Thread(target=begin, args=(number,)) for number in hosts.members]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 40
        futures = [replica.propose(b"x", timeout=120) for replica in started[1] for _ in range(3)]
        outcomes = [settled(future, timeout=130) for future in futures]
        assert {type(outcome) for outcome in outcomes} == {int}
        began = time.monotonic()
        for number in list(hosts.members):
            hosts.stop(number)
        assert time.monotonic() - began < 20
        hosts.start(1)
        replicas = start(hosts, shards)
        assert all(replica.status().last_index >= 4 for replica in replicas)
