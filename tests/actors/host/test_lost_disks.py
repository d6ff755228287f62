"""A host whose data are gone: its replica is replaced by a new one, or recovers under its old id, and is not believed before."""

import logging
import shutil

import pytest
from drakkar.actors import ConfigError, CorruptData, NodeHost
from drakkar.handlers.raft.lives import Standing

from tests.actors.support import TICK, Hosts, Ledger, commit, contents, settled, until
from tests.ports import free_addresses


@pytest.fixture
def hosts(tmp_path):
    with Hosts(data=tmp_path) as hosts:
        yield hosts


def run(hosts):
    """Start all, and wait until the log says of each where it lives: before, none of them may be missing."""
    hosts.run()
    until(lambda: all(each.status().standing is Standing.SETTLED for each in hosts.replicas.values()))


def wipe(hosts, number):
    """Stop a host and lose its disk."""
    hosts.stop(number)
    shutil.rmtree(hosts.data / str(number))


def warnings(caplog, *words):
    said = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    return [line for line in said if all(word in line for word in words)]


def test_a_wiped_machine_comes_back_under_the_same_address_with_a_new_replica(hosts):
    run(hosts)
    commit(hosts[1], b"before")
    wipe(hosts, 3)
    member = hosts[hosts.leader()]
    settled(member.remove_replica(3, timeout=10))
    settled(member.add_observer(4, hosts.members[3], timeout=10))
    replica = hosts.start(3).start_replica(Ledger, shard_id=1, replica_id=4, join=True)
    until(lambda: contents(replica) == [b"before"])
    settled(member.add_replica(4, hosts.members[3], timeout=10))
    # It counts: of the three, another one may be missing now.
    hosts.stop(hosts.others(hosts.leader())[0])
    commit(replica, b"after")
    assert contents(replica) == [b"before", b"after"]
    assert replica.status().standing is Standing.SETTLED


@pytest.mark.parametrize("how", ["as before", "to join"])
def test_a_wiped_machine_that_is_started_with_its_old_id_recovers(hosts, caplog, how):
    run(hosts)
    commit(hosts[1], b"before")
    wipe(hosts, 3)
    if how == "to join":
        hosts.replicas[3] = hosts.start(3).start_replica(Ledger, shard_id=1, replica_id=3, join=True)
    else:
        hosts.run(numbers=[3])
    until(lambda: hosts[3].status().standing is Standing.SETTLED)
    until(lambda: warnings(caplog, "starts with an empty data directory, though it has lived elsewhere"))
    hosts.stop(hosts.others(hosts.leader())[0])
    commit(hosts[3], b"after")
    assert contents(hosts[3]) == [b"before", b"after"]


def test_a_wiped_machine_does_not_help_one_that_lags_to_lose_what_was_acknowledged(hosts):
    """Two of three would be a majority: one that lags, and one that has forgotten what it acknowledged."""
    run(hosts)
    commit(hosts[1], b"before")
    lags = hosts.others(hosts.leader())[0]
    hosts.stop(lags)
    commit(hosts[hosts.leader()], b"acknowledged")
    leader = hosts.leader()
    [emptied] = {1, 2, 3} - {lags, leader}
    hosts.stop(leader)
    wipe(hosts, emptied)
    hosts.run(numbers=[lags, emptied])
    until(lambda: hosts[emptied].status().last_index > 0 or hosts[lags].status().term > 0)
    asked = hosts[lags].propose(b"lost?", timeout=2.0)
    assert isinstance(settled(asked), Exception)
    assert hosts[emptied].status().standing is Standing.NEWBORN
    hosts.run(numbers=[leader])
    commit(hosts[emptied], b"after")
    for replica in hosts.replicas.values():
        assert [each for each in contents(replica) if each != b"lost?"] == [
            b"before",
            b"acknowledged",
            b"after",
        ]


def test_one_that_had_joined_recovers_by_joining_again(hosts):
    hosts.run()
    hosts.addresses += free_addresses(1)
    member = hosts[hosts.leader()]
    settled(member.add_observer(4, hosts.members[4], timeout=10))

    def join():
        hosts.replicas[4] = hosts.start(4).start_replica(Ledger, shard_id=1, replica_id=4, join=True)
        until(lambda: hosts[4].status().standing is Standing.SETTLED)

    join()
    settled(member.add_replica(4, hosts.members[4], timeout=10))
    commit(member, b"before")
    wipe(hosts, 4)
    join()
    hosts.stop(hosts.others(hosts.leader())[0])
    commit(hosts[4], b"after")
    assert contents(hosts[4]) == [b"before", b"after"]


def test_a_disk_that_is_mounted_again_once_its_host_has_recovered_without_it_is_refused(hosts, caplog):
    run(hosts)
    commit(hosts[1], b"before")
    hosts.stop(3)
    (hosts.data / "3").rename(hosts.data / "unmounted")
    hosts.run(numbers=[3])
    until(lambda: hosts[3].status().standing is Standing.SETTLED)
    commit(hosts[3], b"without it")
    wipe(hosts, 3)
    (hosts.data / "unmounted").rename(hosts.data / "3")
    hosts.run(numbers=[3])
    until(lambda: warnings(caplog, "refuses replica 3", "but by the log it lives on another host"))
    commit(hosts[1], b"after")
    assert [hosts[number].status().ended for number in (1, 2, 3)] == [None, None, None]
    assert contents(hosts[1]) == [b"before", b"without it", b"after"]


def test_hosts_in_memory_restart_one_at_a_time_and_lose_nothing():
    with Hosts() as hosts:
        run(hosts)
        written = []
        for number in (3, 2, 1):
            hosts.stop(number)
            hosts.run(numbers=[number])
            commit(hosts[number], b"%d" % number)
            written.append(b"%d" % number)
            until(lambda each=number: hosts[each].status().standing is Standing.SETTLED)
        for replica in hosts.replicas.values():
            assert contents(replica) == written


def test_a_replica_in_memory_that_starts_again_on_its_host_has_forgotten_nothing():
    """Its home stays the same, so nothing would show that it had."""
    with Hosts() as hosts:
        run(hosts)
        commit(hosts[1], b"before")
        until(lambda: contents(hosts[3]) == [b"before"])
        hosts[3].stop()
        for number in (1, 2):
            hosts.stop(number)
        hosts.run(numbers=[3])
        assert hosts[3].status().standing is Standing.SETTLED
        until(lambda: settled(hosts[3].stale_read(None)) == [b"before"])


@pytest.mark.parametrize("kept", ["nothing", "MANIFEST"])
def test_a_host_does_not_start_with_the_identity_of_a_log_that_was_emptied(hosts, kept):
    """Its replicas would be newborn at the home that the log names already, and count at once."""
    run(hosts)
    hosts.stop(3)
    log = hosts.data / "3" / "log"
    for file in log.iterdir():
        if file.name != kept:
            file.unlink()
    with pytest.raises(CorruptData, match=str(log)):
        hosts.start(3)


def test_hosts_in_memory_that_all_restart_at_once_begin_anew():
    with Hosts() as hosts:
        commit(hosts.run()[1], b"forgotten")
        for number in (1, 2, 3):
            hosts.stop(number)
        commit(hosts.run()[1], b"new")
        for replica in hosts.replicas.values():
            assert contents(replica) == [b"new"]


def test_a_replica_does_not_join_where_another_of_its_shard_lives(hosts):
    hosts.run()
    commit(hosts[1], b"a")
    hosts.stop(3)
    with (
        NodeHost(hosts.members[3], hosts.data / "3", tick_interval=TICK) as host,
        pytest.raises(ConfigError, match="replica_id=4"),
    ):
        host.start_replica(Ledger, shard_id=1, replica_id=4, join=True)
