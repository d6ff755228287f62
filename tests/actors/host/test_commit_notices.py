"""What hosts do for commit notices: one timer for all shards, and the last notice of a replica that stops."""

import math
import threading

import pytest
import trio
from drakkar.actors.host import commit_timer
from drakkar.actors.host.commit_timer import DELAY_S, CommitTimer
from trio.testing import MockClock

from tests.actors.support import TIMEOUT_S, Hosts, InlineLedger, settled, until

RARE_HEARTBEATS = {"heartbeat_ticks": 20, "election_ticks": 200}
"""With ticks of 10 ms: a heartbeat each 0.2 s."""


class Signalling(InlineLedger):
    """Tells a test of what it has applied."""

    changed = threading.Condition()

    def apply(self, command):
        with self.changed:
            number = super().apply(command)
            self.changed.notify_all()
        return number


@pytest.fixture
def shard():
    """Three hosts, the number of the leader, and what each replica has applied."""
    with Hosts(tick_interval=0.01) as hosts:
        machines = {}

        def machine(number):
            return lambda: machines.setdefault(number, Signalling())

        for number in hosts.members:
            hosts.run(machine(number), numbers=[number], config=RARE_HEARTBEATS)
        leader = hosts.leader()
        assert settled(hosts[leader].propose(b"first")) == 1
        until(lambda: all(one.commands for one in machines.values()))
        yield hosts, leader, machines


def count(replica, name):
    return replica.counters.get(name, 0)


def between_heartbeats(leader, act):
    """Act, again and again, until the leader sent no heartbeat meanwhile; return what the last act returned."""
    while True:
        before = count(leader, "handled LEADER_HEARTBEAT in LEADER")
        result = act()
        if count(leader, "handled LEADER_HEARTBEAT in LEADER") == before:
            return result


def test_after_a_single_proposal_all_know_the_commit_without_a_heartbeat_or_an_answer(shard):
    hosts, leader, machines = shard

    def act():
        answers = count(hosts[leader], "handled REPLICATE_RESP in LEADER")
        number = settled(hosts[leader].propose(b"x"))
        with Signalling.changed:
            for one in machines.values():
                assert Signalling.changed.wait_for(lambda: len(one.commands) >= number, TIMEOUT_S)  # noqa: B023
        return count(hosts[leader], "handled REPLICATE_RESP in LEADER") - answers

    assert between_heartbeats(hosts[leader], act) == 2
    for number in hosts.others(leader):
        assert count(hosts[number], "handled COMMIT in FOLLOWER") >= 1


def test_a_client_of_a_follower_waits_for_no_timer(shard, monkeypatch):
    hosts, leader, _ = shard
    monkeypatch.setattr(commit_timer, "DELAY_S", 600.0)
    follower = hosts[hosts.others(leader)[0]]

    def act():
        told = count(follower, "handled COMMIT in FOLLOWER")
        assert settled(follower.propose(b"x")) > 1
        return count(follower, "handled COMMIT in FOLLOWER") - told

    assert between_heartbeats(hosts[leader], act) == 1


@pytest.mark.parametrize("stopped", ["the replica", "the host"])
def test_a_leader_that_is_stopped_tells_what_it_owes_first(shard, monkeypatch, stopped):
    hosts, leader, _ = shard
    monkeypatch.setattr(commit_timer, "DELAY_S", 600.0)
    others = {number: hosts[number] for number in hosts.others(leader)}
    told = {number: count(other, "handled COMMIT in FOLLOWER") for number, other in others.items()}
    assert settled(hosts[leader].propose(b"last")) == 2
    if stopped == "the host":
        hosts.stop(leader)
    else:
        hosts[leader].stop()
    until(
        lambda: any(
            count(other, "handled COMMIT in FOLLOWER") > told[number] for number, other in others.items()
        )
    )


class TestTheTimer:
    @staticmethod
    def run(*steps):
        """Take steps, each after some milliseconds; return which shards were told, and after how many."""
        told = []

        async def main():
            timer = CommitTimer(
                lambda shard: told.append((shard, round(trio.current_time() * 1000 - begin, 3)))
            )
            begin = trio.current_time() * 1000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(timer.run)
                for after, method, shard in steps:
                    await trio.sleep_until((begin + after) / 1000)
                    getattr(timer, method)(shard)
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
            assert not timer._due
            assert timer._sleep.deadline == math.inf

        trio.run(main, clock=MockClock(autojump_threshold=0))
        return told

    DELAY = DELAY_S * 1000

    def test_a_shard_is_told_once(self):
        assert self.run((5, "start", 7)) == [(7, 5 + self.DELAY)]

    def test_not_what_was_told_by_an_append(self):
        assert self.run((5, "start", 7), (5.5, "cancel", 7)) == []

    def test_each_shard_at_its_own_time(self):
        told = self.run((5, "start", 7), (5.25, "start", 8), (5.5, "cancel", 7), (5.5, "start", 7))
        assert told == [(8, 5.25 + self.DELAY), (7, 5.5 + self.DELAY)]

    def test_what_was_not_started_can_be_cancelled(self):
        assert self.run((1, "cancel", 7), (2, "start", 8)) == [(8, 2 + self.DELAY)]
