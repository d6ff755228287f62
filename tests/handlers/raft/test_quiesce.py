"""Quiesce (dragonboat's): an idle shard falls silent, and wakes when a request comes."""

import pytest
from drakkar.handlers import (
    Entry,
    Message,
    MessageType,
    State,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    T as TIMEOUT,
)
from tests.handlers.raft.support import (
    acknowledge_all,
    append,
    cluster,
    hear,
    heartbeat,
    of_type,
    pre_vote_request,
    propose,
    replica,
    routes,
    tick,
    vote_request,
)

T = MessageType
SETTLING = 2 * TIMEOUT
"""e: ticks after falling asleep in which heartbeats still come from others."""
THRESHOLD = 10 * SETTLING


def leader(**options):
    raft = replica(state=State.LEADER, quiesce=True, **options)
    acknowledge_all(raft)
    return raft


def follower(**options):
    return replica(
        term=1, leader=2, quiesce=True, min_election_ticks=1000, max_election_ticks=1001, **options
    )


def sleeper():
    """A leader that has just fallen asleep."""
    raft = leader()
    while not raft.quiesce.quiesced:
        tick(raft)
    return raft


class TestFallingAsleep:
    def test_it_takes_the_threshold_and_a_tick(self):
        """P1: and the other voters are told, once."""
        raft = leader(observers=(4,))
        tick(raft, THRESHOLD)
        assert not raft.quiesce.quiesced
        assert routes(of_type(tick(raft), T.QUIESCE)) == [(T.QUIESCE, 2), (T.QUIESCE, 3)]
        assert raft.quiesce.quiesced
        assert tick(raft, 3 * THRESHOLD) == []

    def test_plain_heartbeats_do_not_put_it_off(self):
        """P2."""
        raft = follower()
        for _ in range(THRESHOLD):
            tick(raft)
            hear(raft, heartbeat(2, 1))
        tick(raft)
        assert raft.quiesce.quiesced

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(append(2, 1), id="an append"),
            pytest.param(heartbeat(2, 1, hint=5), id="a heartbeat with a read"),
            pytest.param(Message(T.PROPOSE, entries=(Entry(payload=b"x"),)), id="a proposal"),
            pytest.param(Message(T.READ_INDEX, hint=5), id="a read"),
        ],
    )
    def test_every_request_puts_it_off(self, message):
        raft = follower()
        tick(raft, THRESHOLD)
        hear(raft, message)
        tick(raft, THRESHOLD)
        assert not raft.quiesce.quiesced
        tick(raft)
        assert raft.quiesce.quiesced

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(Message(T.SNAPSHOT_STATUS, sender=2), id="a report on a snapshot"),
            pytest.param(Message(T.UNREACHABLE, sender=2), id="a lost connection"),
        ],
    )
    def test_routine_does_not(self, message):
        raft = leader()
        tick(raft, THRESHOLD)
        hear(raft, message)
        tick(raft)
        assert raft.quiesce.quiesced

    def test_one_that_is_asked_to_follows(self):
        raft = follower()
        hear(raft, Message(T.QUIESCE, sender=2))
        assert raft.quiesce.quiesced
        assert tick(raft, 5000) == []

    def test_a_non_member_cannot_ask(self):
        raft = follower()
        hear(raft, Message(T.QUIESCE, sender=9))
        assert not raft.quiesce.quiesced

    def test_but_not_one_that_has_just_woken(self):
        """It has a reason to be awake."""
        raft = sleeper()
        propose(raft, b"x")
        tick(raft, THRESHOLD - 1)
        hear(raft, Message(T.QUIESCE, sender=2))
        assert not raft.quiesce.quiesced
        acknowledge_all(raft)
        tick(raft)
        hear(raft, Message(T.QUIESCE, sender=2))
        assert raft.quiesce.quiesced

    def test_where_it_is_off_nothing_of_it_happens(self):
        raft = replica(state=State.LEADER)
        acknowledge_all(raft)
        hear(raft, Message(T.QUIESCE, sender=2))
        assert len(of_type(tick(raft, 2 * THRESHOLD), T.HEARTBEAT)) == 4 * THRESHOLD


class TestAsleep:
    @pytest.mark.parametrize("state", [State.LEADER, State.FOLLOWER])
    def test_quiesced_ticks_only_count(self, state):
        """O6: 200 of them, and no message."""
        raft = replica(state=state, term=1)
        for _ in range(200):
            raft.step(Message(T.LOCAL_TICK, reject=True))
        assert drain(raft) == []
        assert (raft.state, raft.term, raft.timers.election_elapsed) == (state, 1, 200)

    def test_a_whole_shard_is_silent(self):
        """INV27: no messages after e ticks, and no new term."""
        shard = cluster(3, quiesce=True, check_quorum=True, pre_vote=True)
        shard.elect(1)
        shard.propose(1, b"x")
        shard.tick(THRESHOLD + SETTLING)
        shard.seen.clear()
        shard.tick(5 * THRESHOLD)
        assert shard.seen == []
        assert [shard[n].term for n in (1, 2, 3)] == [1, 1, 1]
        shard.propose(2, b"y")
        shard.tick(5 * TIMEOUT)
        assert [shard.applied(n) for n in (1, 2, 3)] == [[b"x", b"y"]] * 3
        assert [shard[n].term for n in (1, 2, 3)] == [1, 1, 1], "waking causes no election"
        assert shard[1].state is State.LEADER


class TestWaking:
    @pytest.mark.parametrize(
        ("after", "asleep"),
        [
            pytest.param(0, True, id="at once"),
            pytest.param(SETTLING - 1, True, id="while others are about to fall asleep"),
            pytest.param(SETTLING, False, id="later: a peer is awake"),
        ],
    )
    def test_a_plain_heartbeat_wakes_only_when_all_should_be_asleep(self, after, asleep):
        """P2."""
        raft = follower()
        hear(raft, Message(T.QUIESCE, sender=2))
        tick(raft, after)
        hear(raft, heartbeat(2, 1))
        assert raft.quiesce.quiesced is asleep

    def test_a_read_or_a_proposal_wakes_at_once(self):
        for wish in (Message(T.READ_INDEX, hint=3), Message(T.PROPOSE, entries=(Entry(),))):
            raft = sleeper()
            hear(raft, wish)
            assert not raft.quiesce.quiesced

    @pytest.mark.parametrize("ask", [pre_vote_request, vote_request])
    @pytest.mark.parametrize("leads", [False, True])
    def test_a_request_for_a_vote_wakes_it_and_meets_the_lease_of_its_leader(self, ask, leads):
        """INV20: it has not heard its leader for long, but for no fault of that one."""
        raft = leader(check_quorum=True) if leads else follower(check_quorum=True)
        hear(raft, Message(T.QUIESCE, sender=2))
        tick(raft, 500)
        assert raft.quiesce.quiesced
        known = raft.leader_id
        assert hear(raft, ask(3, raft.term + 1, 9, 9)) == []
        assert (raft.quiesce.quiesced, raft.leader_id) == (False, known)

    def test_one_whose_leader_does_not_wake_grants_when_the_lease_is_over(self):
        raft = follower(check_quorum=True)
        hear(raft, Message(T.QUIESCE, sender=2))
        tick(raft, 500)
        assert hear(raft, pre_vote_request(3, 2, 9, 9)) == []
        tick(raft, TIMEOUT)
        assert [answer.reject for answer in hear(raft, pre_vote_request(3, 2, 9, 9))] == [False]

    def test_no_peer_is_blamed_for_the_silence(self):
        """Rules of quiesce: no election storm: timers begin anew, and a leader counts all as heard."""
        raft = sleeper()
        tick(raft, 500)
        raft.check_quorum = True
        for peer in (2, 3):
            raft.progress[peer].active = False
        propose(raft, b"x")
        assert not raft.quiesce.quiesced
        assert raft.timers.election_elapsed == 0
        tick(raft, TIMEOUT)
        assert raft.state is State.LEADER


def test_a_shard_that_was_torn_apart_finds_a_leader_when_it_is_whole_again():
    """INV26: replicas that campaign in vain do not fall asleep over it, even without a request that wakes them."""
    group = cluster(3, quiesce=True, pre_vote=True)
    group.isolate(1)
    group.isolate(2)
    group.tick(40 * TIMEOUT)
    assert not any(group[each].quiesce.quiesced for each in (1, 2, 3))
    group.heal()
    group.tick(3 * TIMEOUT)
    assert group.leader is not None


def test_a_late_report_of_a_followers_size_wakes_no_replica():
    raft = leader(max_in_mem_log_bytes=200)
    while not raft.quiesce.quiesced:
        tick(raft)
    hear(raft, Message(T.RATE_LIMIT, sender=2, term=raft.term))
    assert raft.quiesce.quiesced
