"""A host that stops hands leadership over first, and so does a replica that stops or is removed.

The election timeout is longer than a test may last: that another replica leads shows that it was asked to.
"""

import threading
import time
from contextlib import contextmanager

import pytest
from drakkar.actors import DeadlockError, NodeHost
from drakkar.actors.host.handover import HAND_OVER_TIMEOUT_S
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.state import State

from tests.actors.support import TIMEOUT_S, Hosts, InlineLedger, commit, contents, settled, until

NO_ELECTION = {"election_ticks": 5_000}
"""An election timeout of 100 s."""


def lead(replicas, number):
    """Have one replica lead, without waiting for an election timeout."""

    def asked():
        if replicas[number].status().state is not State.LEADER:
            replicas[number].ref.tell(Message(MessageType.ELECTION, sender=number))
            time.sleep(0.05)
        return all(replica.status().leader_id == number for replica in replicas.values())

    until(asked)
    commit(replicas[number], b"first")


@pytest.fixture
def hosts(tmp_path):
    with Hosts(data=tmp_path) as hosts:
        hosts.run(InlineLedger, config=NO_ELECTION)
        yield hosts


def successor(hosts, *gone):
    """Wait for the next leader, and see that it works."""
    left = {number: replica for number, replica in hosts.replicas.items() if number not in gone}
    number = hosts.leader(left)
    assert isinstance(commit(left[number], b"goes on"), int)
    return number


def test_a_rolling_restart_needs_no_election_and_loses_no_command(hosts):
    lead(hosts.replicas, 1)
    leader, written, term = 1, [b"first"], hosts[1].status().term
    for each in range(6):
        number = leader if each % 2 else each // 2 + 1
        hosts.stop(number)
        leader = successor(hosts)
        written.append(b"goes on")
        hosts.run(InlineLedger, numbers=[number], config=NO_ELECTION)
        until(lambda number=number: hosts[number].status().leader_id)
    assert contents(hosts[leader]) == written
    assert hosts[leader].status().term <= term + 6, "no more terms than leaders"


def test_what_was_proposed_before_is_answered(hosts):
    lead(hosts.replicas, 1)
    futures = [hosts[1].propose(b"%d" % each, timeout=TIMEOUT_S) for each in range(200)]
    hosts.stop(1)
    assert [type(settled(future)) for future in futures] == [int] * 200
    successor(hosts)


def test_one_replica_that_is_stopped_hands_over_too_and_its_host_goes_on(hosts):
    first = dict(hosts.replicas)
    second = hosts.run(InlineLedger, shard_id=2, config=NO_ELECTION)
    for replicas in (first, second):
        lead(replicas, 1)
    first[1].stop()
    assert first[1].status().ended
    hosts.replicas = first
    assert successor(hosts, 1) in (2, 3)
    assert second[2].status().leader_id == 1
    assert isinstance(commit(second[1], b"x"), int)


def test_the_leaders_of_many_shards_are_spread_over_the_others(hosts):
    shards = {shard: hosts.run(InlineLedger, shard_id=shard, config=NO_ELECTION) for shard in range(10, 22)}
    for replicas in shards.values():
        lead(replicas, 3)
    hosts.stop(3)
    leaders = [hosts.leader({number: replicas[number] for number in (1, 2)}) for replicas in shards.values()]
    assert min(leaders.count(1), leaders.count(2)) >= 3, leaders


def test_a_leader_that_is_removed_hands_over_before_it_leaves(hosts):
    lead(hosts.replicas, 2)
    settled(hosts[2].remove_replica(2))
    assert successor(hosts, 2) in (1, 3)


def test_a_shard_that_sleeps_is_handed_over_too():
    with Hosts() as hosts:
        replicas = hosts.run(InlineLedger, config={"quiesce": True, "election_ticks": 5})
        leader = hosts.leader()
        until(lambda: all(each._node.raft.quiesce.quiesced for each in replicas.values()))
        hosts.stop(leader)
        assert hosts.leader() != leader, "though nothing was asked that would wake it"


def test_hosts_that_stop_together_do_not_wait_for_one_another(hosts):
    lead(hosts.replicas, 1)
    threads = [threading.Thread(target=host.stop) for host in hosts.hosts.values()]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert time.monotonic() - began < 3 * HAND_OVER_TIMEOUT_S


# -- where none can take over


@contextmanager
def quickly(seconds=HAND_OVER_TIMEOUT_S / 2):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_the_only_voter_stops_at_once():
    with Hosts(1) as hosts:
        hosts.run(InlineLedger)
        hosts.leader()
        with quickly():
            hosts.stop(1)


def test_a_leader_whose_peers_are_gone_stops_at_once(hosts):
    lead(hosts.replicas, 1)
    for number in (2, 3):
        hosts.stop(number)
    until(lambda: not any(peer.connected for peer in hosts.hosts[1].peers().values()))
    with quickly():
        hosts.stop(1)


def test_a_leader_whose_peers_say_nothing_waits_for_a_second_for_all_shards_together(hosts, caplog):
    shards = [hosts.run(InlineLedger, shard_id=shard, config=NO_ELECTION) for shard in (2, 3, 4)]
    for replicas in shards:
        lead(replicas, 1)
    gate = threading.Event()
    try:
        for number in (2, 3):
            hosts.hosts[number].loop.run_soon(gate.wait)
        began = time.monotonic()
        hosts.hosts[1].stop()
        assert HAND_OVER_TIMEOUT_S <= time.monotonic() - began < 3 * HAND_OVER_TIMEOUT_S
    finally:
        gate.set()
    assert "stops, though 3 of its leaders had not handed over" in caplog.text


# -- stopping twice, and from elsewhere


def test_another_thread_that_stops_the_host_meanwhile_waits_for_the_end(hosts):
    lead(hosts.replicas, 1)
    gate = threading.Event()
    host = hosts.hosts[1]
    host.loop.run_soon(gate.wait)
    done = []
    threads = [threading.Thread(target=lambda: done.append(host.stop())) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert not done
    gate.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert done == [None, None]
    host.stop()
    with NodeHost(hosts.addresses[0]):
        pass  # the port is free


def test_in_the_loop_neither_a_host_nor_a_replica_is_stopped(hosts):
    host = hosts.hosts[1]
    for stop in (host.stop, hosts[1].stop):
        with pytest.raises(DeadlockError):
            host.loop.call(stop)
    assert host.loop.running


def test_a_signal_handler_that_stops_the_host_while_it_stops_does_not_wait_for_itself(hosts, monkeypatch):
    host, call = hosts.hosts[1], hosts.hosts[1]._loop.call
    with monkeypatch.context() as patch:
        patch.setattr(host._loop, "call", lambda *args, **options: host.stop() or call(*args, **options))
        host.stop()
    assert not host.loop.running


def test_an_interrupt_while_a_host_stops_leaves_nothing_behind_that_a_second_stop_does_not_stop(
    hosts, monkeypatch
):
    host = hosts.hosts[1]
    with monkeypatch.context() as patch:
        patch.setattr(host._loop, "call", lambda *_, **__: interrupt())

        def interrupt():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            host.stop()
    assert host.loop.running
    host.stop()
    assert not host.loop.running
    with NodeHost(hosts.addresses[0]):
        pass  # the port is free
