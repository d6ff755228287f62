"""However a replica ends: its status says so, and that it leads no more is told before its end is."""

import threading
import time

import pykka
import pytest
from drakkar.actors import (
    HostStateChanged,
    LeaderChanged,
    OutcomeUnknown,
    ReplicaEnded,
    ReplicaStopped,
    StorageFailed,
)
from drakkar.actors.host import host as host_module
from drakkar.handlers.messages import MessageType
from drakkar.handlers.raft.matrix import raft_handlers
from drakkar.handlers.raft.state import State

from tests.actors.support import Failing, Hosts, Ledger, Notices, settled, until

LONG = "the reason is long: " + "x" * 2000


class Unspeakable(Exception):
    """Its text cannot be had."""

    def __str__(self):
        raise RuntimeError


def fails():
    return Failing("apply", ValueError(LONG))


def stop(host, replica):
    replica.stop()


def stop_host(host, replica):
    host.stop()


def stop_all(host, replica):
    pykka.ActorRegistry.stop_all()


def fail_machine(host, replica):
    assert LONG in str(settled(replica.propose(b"fail")))


def fail_disk(host, replica):
    host.loop.call(host._store.fail, StorageFailed(LONG))
    settled(replica.propose(b"what cannot be saved"))


def crash_loop(host, replica):
    host.loop.run_soon(host.loop._nursery.cancel_scope.cancel)


WAYS = [
    pytest.param(stop, None, "was stopped", id="stopped"),
    pytest.param(stop_host, None, "was stopped", id="its host was stopped"),
    pytest.param(stop_all, None, "was stopped", id="pykka stopped all actors"),
    pytest.param(fail_machine, "state machine failed", LONG, id="its state machine failed"),
    pytest.param(fail_disk, LONG, LONG, id="its disk failed"),
    pytest.param(crash_loop, "crashed", "crashed", id="its loop crashed"),
]


@pytest.mark.parametrize(("way", "reason", "why"), WAYS)
def test_a_leader_that_has_ended_never_says_again_that_it_leads(tmp_path, way, reason, why):
    notices = Notices.start()
    kept = notices._actor_weakref()
    heard = []
    with Hosts(1, data=tmp_path) as hosts:
        replica = hosts.run(fails)[1]
        host = hosts.hosts[1]
        hosts.leader()
        assert replica.status().ended is None
        host.subscribe(lambda event: heard.append((event, replica.status())))
        if way is not stop_all:
            host.subscribe(notices)
        before = time.time()
        way(host, replica)
        until(lambda: heard and isinstance(heard[-1][0], ReplicaEnded))
        events = [event for event, _ in heard]
        assert [type(event) for event in events] == [LeaderChanged, ReplicaEnded]
        assert (events[0].shard, events[0].replica, events[0].leader) == (1, 1, 0)
        assert reason in str(events[1].reason) if reason else events[1].reason is None
        for status in (*(status for _, status in heard), replica.status()):
            assert (status.state, status.leader_id, status.match) == (State.FOLLOWER, 0, {})
            assert before <= status.ended.at <= time.time()
            assert why in status.ended.why
            assert status.ended.reason is events[1].reason
        late = settled(replica.propose(b"late"))
        assert type(late) is ReplicaStopped
        assert why in str(late)
        if way is not stop_all:
            kept.wait_for(lambda event: isinstance(event, ReplicaEnded))
            assert kept.events == events
    notices.stop()


def test_a_handler_that_fails_is_told_as_well():
    table = raft_handlers()

    @table.on(MessageType.LEADER_TRANSFER, replace=True)
    def fail(raft, message):
        raise ValueError(LONG)

    events = []
    with Hosts(1) as hosts:
        replica = hosts.run(handlers=table)[1]
        hosts.leader()
        hosts.hosts[1].subscribe(events.append)
        outcome = settled(replica.transfer_leadership(1))
        until(lambda: events and isinstance(events[-1], ReplicaEnded))
        assert LONG in str(outcome)
        assert LONG in replica.status().ended.why
        assert replica.status().leader_id == 0
        assert [getattr(event, "leader", None) for event in events] == [0, None]


def keep(events, event):
    """Keep an event of this host's own replicas: other hosts may be heard at any moment."""
    if not isinstance(event, HostStateChanged):
        events.append(event)


def test_a_follower_that_ends_knows_no_leader_and_one_without_a_leader_tells_of_none():
    events = []
    with Hosts(3) as hosts:
        hosts.run()
        leader = hosts.leader()
        follower = hosts.others(leader)[0]
        until(lambda: hosts[follower].status().leader_id)
        hosts.hosts[follower].subscribe(lambda event: keep(events, event))
        hosts[follower].stop()
        assert hosts[follower].status().leader_id == 0
        until(lambda: len(events) == 2)
        assert [getattr(event, "leader", None) for event in events] == [0, None]
    events.clear()
    with Hosts(2) as hosts:
        hosts.run(numbers=[1], config={"election_ticks": 1000})
        until(lambda: hosts[1].status().term)
        # It tells of the term at the end of that turn, as one without a leader.
        hosts.hosts[1].loop.call(lambda: None)
        hosts.hosts[1].subscribe(events.append)
        hosts[1].stop()
        until(lambda: events and isinstance(events[-1], ReplicaEnded))
        assert not [event for event in events if isinstance(event, LeaderChanged)]


def test_a_removed_replica_says_when_it_has_ended_that_it_was_removed():
    with Hosts(3, tick_interval=0.01) as hosts:
        hosts.run()
        leader = hosts.leader()
        gone = hosts.others(leader)[0]
        settled(hosts[leader].remove_replica(gone))
        ended = until(lambda: hosts[gone].status().ended)
        assert "was removed from its shard" in ended.why
        assert ended.reason is None
        assert hosts[gone].status().leader_id == 0


def test_a_replica_whose_host_could_not_be_stopped_does_not_say_that_it_leads_either(monkeypatch):
    monkeypatch.setattr(host_module, "LOOP_STOP_TIMEOUT_S", 0.2)
    gate, events = threading.Event(), []
    with Hosts(1) as hosts:
        replica = hosts.run(Ledger)[1]
        hosts.leader()
        host = hosts.hosts.pop(1)
        host.subscribe(events.append)
        host.loop.run_soon(gate.wait)
        try:
            with pytest.raises(OutcomeUnknown):
                host.stop()
            assert replica.status().leader_id == 0
            assert "whose loop hangs" in replica.status().ended.why
        finally:
            gate.set()
        until(lambda: len(events) == 2)
        assert [getattr(event, "leader", None) for event in events] == [0, None]


def test_an_error_whose_text_cannot_be_had_still_answers_all_who_wait():
    with Hosts(1) as hosts:
        replica = hosts.run(lambda: Failing("apply", Unspeakable()))[1]
        hosts.leader()
        outcome = settled(replica.propose(b"fail"))
        assert type(outcome) is OutcomeUnknown
        assert "Unspeakable" in str(outcome)
        assert "Unspeakable" in until(lambda: replica.status().ended).why


def test_what_failed_is_the_cause_of_what_those_who_wait_are_told():
    with Hosts(1) as hosts:
        replica = hosts.run(fails)[1]
        hosts.leader()
        settled(replica.propose(b"fail"))
        until(lambda: replica.status().ended)
        late = settled(replica.read(None))
        assert type(late) is ReplicaStopped
        assert str(late.__cause__.__cause__) == LONG
