"""What a `NodeHost` tells of the life of other hosts, and that it falls silent while its disk hangs."""

import threading
from dataclasses import dataclass, replace

import pytest
from drakkar.actors import HostState, HostStateChanged
from drakkar.actors.host.flush_watch import HUNG_TICKS, FlushWatch
from drakkar.actors.log.store import log_in_memory
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.handlers.messages import Message, MessageType

from tests.actors.support import TIMEOUT_S, Hosts, Notices, until

ALIVE, SUSPECT, DEAD = HostState.ALIVE, HostState.SUSPECT, HostState.DEAD


@pytest.fixture
def hosts(tmp_path):
    # Evidence of an end must come within three ticks, and an attempt to connect that comes too early is repeated after 50 to
    # 100 ms. So these ticks are as long as those of a host by default.
    with Hosts(data=tmp_path, tick_interval=0.1) as hosts:
        hosts.run()
        hosts.leader()
        yield hosts


@pytest.fixture
def notices():
    ref = Notices.start()
    yield ref
    ref.stop()


def states(host):
    return {address: peer.state for address, peer in host.peers().items()}


def all_alive(hosts, number):
    """Wait until a host has heard all others."""
    others = {hosts.members[other]: ALIVE for other in hosts.hosts if other != number}
    until(lambda: states(hosts.hosts[number]) == others)


def test_peers_subscribers_and_metrics_tell_of_a_host_that_ends_and_comes_back(hosts, notices):
    all_alive(hosts, 1)
    host, ended = hosts.hosts[1], hosts.members[3]

    def heard(state):
        def wanted(event):
            changed = isinstance(event, HostStateChanged)
            return changed and (event.address, event.state) == (ended, state)

        return notices._actor_weakref().wait_for(wanted)

    host.subscribe(notices)
    run = host.peers()[ended].run
    hosts.stop(3)
    event = heard(DEAD)
    assert (event.run, event.host_id) == (run, host.peers()[ended].host_id)
    until(lambda: host.metrics()["hosts_gone_total"])
    figures = host.metrics()
    assert (figures["hosts_alive"], figures["hosts_dead"], figures["hosts_gone_total"]) == (1, 1, 1)
    hosts.run(numbers=[3])
    assert heard(ALIVE).run == run + 1
    all_alive(hosts, 1)
    assert host.peers()[ended].run == run + 1
    assert host.metrics()["host_state_changes_total"] >= 4


def test_replicas_hear_that_the_host_of_their_leader_is_gone(hosts):
    all_alive(hosts, 1)
    leader = hosts.leader()
    told = []
    for number in hosts.others(leader):
        node = hosts[number]._node

        def note(message, node=node, step=node.on_receive):
            if isinstance(message, Message) and message.type is MessageType.LEADER_GONE:
                told.append((node.raft.id, message.sender))
            return step(message)

        node.on_receive = note
    # Its replica hands over first, and that is heard before the host is gone.
    hosts.stop(leader)
    until(lambda: len(told) == 2)
    assert sorted(told) == [(number, leader) for number in sorted({1, 2, 3} - {leader})]


def test_a_host_whose_disk_hangs_is_dead_to_the_others_until_it_writes_again(hosts, monkeypatch):
    for number in (1, 2):
        all_alive(hosts, number)
    hangs = threading.Event()
    monkeypatch.setattr(hosts.hosts[3]._flush_watch, "tick", hangs.is_set)
    hangs.set()
    for number in (1, 2):
        until(lambda number=number: states(hosts.hosts[number])[hosts.members[3]] is DEAD)
    assert hosts.hosts[3].metrics()["silent_on_hung_disk"] == 1
    hangs.clear()
    for number in (1, 2, 3):
        all_alive(hosts, number)
    assert hosts.hosts[1].metrics()["hosts_gone_total"] == 0, "no silence is evidence of an end"


@dataclass
class Store:
    """The figures of a log store that a test sets."""

    status: object

    def set(self, **figures):
        self.status = replace(self.status, **figures)


def test_a_disk_hangs_when_a_flush_takes_more_than_ten_ticks_and_none_is_done_meanwhile(caplog):
    store = Store(log_in_memory().status)
    watch = FlushWatch(store, HostLines("one:1").of("drakkar.actors.host"))
    assert not any(watch.tick() for _ in range(100)), "nothing is being flushed"
    store.set(busy_since=1.0)
    assert [watch.tick() for _ in range(HUNG_TICKS + 2)] == [False] * HUNG_TICKS + [True] * 2
    store.set(commits=store.status.commits + 1)
    assert not watch.tick(), "the next one is under way"
    for _ in range(5):
        for _ in range(HUNG_TICKS):
            assert not watch.tick()
        store.set(commits=store.status.commits + 1)
        assert not watch.tick(), "a slow disk that writes does not hang"
    assert [watch.tick() for _ in range(HUNG_TICKS + 1)][-1]
    store.set(busy_since=None)
    assert not watch.tick()
    said = [record.getMessage().partition(" heartbeats ")[2] for record in caplog.records]
    assert [text[:5] for text in said] == ["until", "again"] * 2


def test_the_disk_of_a_host_is_looked_at_in_each_of_its_ticks():
    with Hosts(1) as hosts:
        hosts.run()
        host = hosts.hosts[1]
        looked = threading.Event()
        ticked = host._flush_watch.tick

        def tick():
            looked.set()
            return ticked()

        host._flush_watch.tick = tick
        assert looked.wait(TIMEOUT_S)
        assert host.metrics()["silent_on_hung_disk"] == 0
