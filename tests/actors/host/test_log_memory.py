"""The memory that the logs of all replicas of a host share."""

import pytest
from drakkar.actors import IN_MEMORY, NodeHost

from tests.actors.support import TICK, InlineFailing, InlineLedger, commit, settled, until
from tests.ports import free_addresses

KIB = 1 << 10
LIMIT = 1000 * KIB


@pytest.fixture
def host():
    (address,) = free_addresses(1)
    with NodeHost(address, IN_MEMORY, tick_interval=TICK, log_memory_bytes=LIMIT) as made:
        yield made


def beside(host, *replicas):
    """Bytes that count beside what these replicas hold: short entries that were read again."""
    return host.log_memory - sum(replica.status().log_memory_bytes for replica in replicas)


def start(host, shard, machine=InlineLedger):
    replica = host.start_replica(
        machine, shard_id=shard, replica_id=1, members={1: host.address}, config={"snapshot_entries": 0}
    )
    until(lambda: replica.status().leader_id)
    return replica


def test_busy_and_quiet_replicas_share_it_and_old_entries_are_still_there(host):
    replicas = [start(host, shard) for shard in (1, 2)]
    for replica in (*replicas, *replicas[:1] * 4):
        for number in range(8):
            commit(replica, bytes([number]) * 64 * KIB)
            assert host.log_memory <= LIMIT
    until(lambda: 0 <= beside(host, *replicas) < 4 * KIB)
    assert min(replica.status().log_memory_bytes for replica in replicas) > LIMIT // 4
    entries = (
        replicas[0].query_log(1, 12).get(timeout=10)
    )  # the members, a leader, its home, and the commands
    assert [entry.payload[:1] for entry in entries if len(entry.payload) == 64 * KIB] == [
        bytes([number]) for number in range(8)
    ]
    assert beside(host, *replicas) > 2 * 64 * KIB  # one of them was read again, and is kept
    assert host.log_memory <= LIMIT


@pytest.mark.parametrize("end", ["it is stopped", "it fails"])
def test_a_replica_that_ends_gives_back_its_part(host, end):
    ended = start(host, 1, lambda: InlineFailing("apply", ValueError("told to")))
    other = start(host, 2)
    for replica in (ended, other):
        commit(replica, bytes(64 * KIB))
    if end == "it is stopped":
        ended.stop()
    else:
        assert settled(ended.propose(b"fail"))
    until(lambda: 0 <= beside(host, other) < 4 * KIB)
    assert ended.status().last_index >= 2
