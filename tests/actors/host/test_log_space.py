"""What the log of a replica takes: all entries, and their bytes, bring on snapshots, and the log behind them goes."""

import json

import pytest
from drakkar.actors import DiskStateMachine, StateMachine
from drakkar.actors.node.snapshots import SnapshotKeeper

from tests.actors.support import TIMEOUT_S, Hosts, until

EVERY = 20
CONFIG = {"snapshot_entries": EVERY, "compaction_overhead": 0, "election_ticks": 20}
KIB = 1 << 10
BYTES = 64 * KIB


class Small(StateMachine):
    """Counts, so that its snapshots are small."""

    def __init__(self):
        self.count = 0

    def apply(self, _command):
        self.count += 1
        return self.count

    def query(self, _query):
        return self.count

    def save(self, sink):
        sink.write(json.dumps(self.count).encode())

    def load(self, source):
        self.count = json.loads(source.read())


class Large(Small):
    """Has a state of 256 KiB."""

    def save(self, sink):
        sink.write(json.dumps(self.count).encode().ljust(4 * BYTES))


class OnDisk(DiskStateMachine):
    """Keeps nothing but the index, which is all that its snapshots say."""

    def open(self):
        return 0

    def apply_entries(self, entries):
        return [index for index, _ in entries]

    def query(self, _query):
        return None

    def sync(self):
        pass


def count_snapshots(monkeypatch):
    taken = []
    take = SnapshotKeeper._take

    def counted(keeper):
        before = keeper._tried
        take(keeper)
        if keeper._tried != before:
            taken.append(keeper._tried)

    monkeypatch.setattr(SnapshotKeeper, "_take", counted)
    return taken


def fill(replica, count, size=3 * KIB):
    replica.propose_many([bytes(size)] * count, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)


@pytest.mark.parametrize("hosts_count", [1, 3])
def test_membership_changes_bring_on_snapshots_and_the_log_goes(tmp_path, hosts_count):
    with Hosts(hosts_count, data=tmp_path) as hosts:
        hosts.run(Small, config=CONFIG)
        leader = hosts[hosts.leader()]
        # There is always an observer that was added a moment ago, and that is never heard.
        for number in range(100, 100 + 2 * EVERY):
            leader.add_observer(number, f"127.0.0.1:{number}", timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
            leader.remove_replica(number, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
        for replica in hosts.replicas.values():
            until(lambda replica=replica: replica.status().first_index > 3 * EVERY)


def test_what_was_kept_for_a_peer_goes_later_without_another_snapshot(tmp_path, monkeypatch):
    needed = [0]
    monkeypatch.setattr(SnapshotKeeper, "_needed_by_peers", lambda keeper, index: min(index, *needed))
    with Hosts(1, data=tmp_path) as hosts:
        replica = hosts.run(Small, config=CONFIG)[1]
        hosts.leader()
        fill(replica, EVERY, 1)
        until(lambda: replica._node.raft.log.snapshot.index >= EVERY)
        assert replica.status().first_index == 1
        needed[0] = EVERY  # the peer has caught up
        until(lambda: replica.status().first_index == EVERY + 1)


@pytest.mark.parametrize("machine", [Small, OnDisk])
def test_bytes_bring_on_snapshots_and_bound_what_is_kept(tmp_path, monkeypatch, machine):
    taken = count_snapshots(monkeypatch)
    with Hosts(1, data=tmp_path) as hosts:
        # By entries there would be none, and as many would be kept.
        config = {"snapshot_bytes": BYTES, "compaction_overhead": 1_000}
        replica = hosts.run(machine, config=config)[1]
        hosts.leader()
        for _ in range(20):
            fill(replica, 8)
        status = until(lambda: (one := replica.status()).first_index > 100 and one)
        assert (status.last_index - status.first_index) * 3 * KIB < 2.5 * BYTES
        # 480 KiB, of which each snapshot takes 64 or a little more.
        assert 4 <= len(taken) <= 8


def test_a_large_state_is_saved_for_as_many_bytes_as_it_has(tmp_path, monkeypatch):
    taken = count_snapshots(monkeypatch)
    with Hosts(1, data=tmp_path) as hosts:
        replica = hosts.run(Large, config={"snapshot_bytes": BYTES})[1]
        hosts.leader()
        for _ in range(40):
            fill(replica, 8)
        # 960 KiB: the first 64 bring on a snapshot of 256, and each of the next takes as many.
        until(lambda: len(taken) >= 4)
        assert len(taken) == 4


def test_without_bytes_only_entries_count(tmp_path, monkeypatch):
    taken = count_snapshots(monkeypatch)
    with Hosts(1, data=tmp_path) as hosts:
        replica = hosts.run(Small, config={"snapshot_bytes": 0, "snapshot_entries": 1_000})[1]
        hosts.leader()
        fill(replica, 500)
        assert not taken
        assert replica.status().first_index == 1


def test_bytes_count_from_the_last_snapshot_after_a_restart(tmp_path, monkeypatch):
    taken = count_snapshots(monkeypatch)
    config = {"snapshot_bytes": BYTES, "compaction_overhead": 0}
    with Hosts(1, data=tmp_path) as hosts:
        hosts.run(Small, config=config)
        hosts.leader()
        fill(hosts[1], 15)
        assert not taken
        hosts.stop(1)
        hosts.run(Small, config=config)
        hosts.leader()
        fill(hosts[1], 8)
        until(lambda: taken)


def test_a_disk_is_filled_no_further_than_the_bytes_allow(tmp_path):
    config = {"snapshot_bytes": 256 * KIB}
    with Hosts(3, data=tmp_path, log_memory_bytes=1 << 20) as hosts:
        hosts.run(Small, config=config)
        replica = hosts[hosts.leader()]
        for _ in range(20):
            fill(replica, 100)
        for one in hosts.replicas.values():
            status = until(lambda one=one: (now := one.status()).applied >= 2_000 and now)
            until(lambda one=one: one.status().first_index > 1_700)
            assert status.last_index < 2_100
        stores = [host._store for host in hosts.hosts.values()]
        until(lambda: max(store.status.live_bytes for store in stores) < 3 * 256 * KIB)
