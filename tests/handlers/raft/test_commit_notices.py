"""Commit notices: a COMMIT tells what no append does, is clipped to what its receiver holds, and is never answered."""

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    Entry,
    EntryKind,
    Membership,
    Message,
    MessageType,
    State,
)
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    T,
    ack,
    acknowledge_all,
    cluster,
    hear,
    heartbeat_answer,
    of_type,
    propose,
    replica,
    routes,
    standing,
    tick,
)

M = MessageType
REMOVE_3 = ConfigChange((Change(ChangeType.REMOVE, 3),)).encode()
DUE = Message(M.COMMIT_DUE)


def leader(**options):
    """1 leads 2 and 3 in term 1; they hold, and know as committed, its empty entry."""
    raft = replica(state=State.LEADER, commit_notices=True, **options)
    acknowledge_all(raft)
    hear(raft, DUE)
    for peer in raft.peers:
        hear(raft, heartbeat_answer(peer, 1, commit=1))
    return raft


def notices(messages):
    return [(message.to, message.commit) for message in of_type(messages, M.COMMIT)]


def notice(sender, term, commit):
    return Message(M.COMMIT, sender=sender, term=term, commit=commit)


def forwarded(sender, payload=b"x"):
    return Message(M.PROPOSE, sender=sender, entries=(Entry(payload=payload),))


class TestALeader:
    def test_it_sends_nothing_for_a_commit_before_the_notice_is_due(self):
        raft = leader()
        propose(raft, b"x")
        assert of_type(hear(raft, ack(2, 1, 2)), M.REPLICATE, M.COMMIT) == []
        assert raft.log.committed == 2
        assert raft.commit_untold
        assert notices(hear(raft, DUE)) == [(2, 2)]
        assert not raft.commit_untold
        assert hear(raft, DUE) == []

    def test_an_append_that_leaves_before_carries_it(self):
        raft = leader()
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2), ack(3, 1, 2))
        assert [message.commit for message in propose(raft, b"y")] == [2, 2]
        assert not raft.commit_untold
        assert hear(raft, DUE) == []

    def test_a_peer_is_told_once_it_is_known_to_hold_what_is_committed(self):
        raft = leader()
        propose(raft, b"x", b"y")
        hear(raft, ack(2, 1, 3), DUE)
        assert not raft.commit_untold
        hear(raft, ack(3, 1, 2))
        assert notices(hear(raft, DUE)) == [(3, 2)]
        hear(raft, ack(3, 1, 3))
        assert notices(hear(raft, DUE)) == [(3, 3)]

    @pytest.mark.parametrize("state", [ProgressState.PROBE, ProgressState.SNAPSHOT])
    def test_only_a_peer_whose_log_is_known_to_agree_is_told(self, state):
        """To the others goes an append, or a snapshot, which tells them."""
        raft = leader()
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2), ack(3, 1, 2))
        raft.progress[3].become_probe() if state is ProgressState.PROBE else raft.progress[3].become_snapshot(
            1
        )
        assert notices(hear(raft, DUE)) == [(2, 2)]

    def test_without_the_option_an_append_tells_at_once(self):
        raft = replica(state=State.LEADER)
        acknowledge_all(raft)
        propose(raft, b"x")
        assert routes(hear(raft, ack(2, 1, 2))) == [(M.REPLICATE, 2), (M.REPLICATE, 3)]
        assert not raft.commit_untold
        assert hear(raft, DUE) == []

    def test_a_host_is_asked_for_no_notices_where_commits_are_not_told(self):
        raft = leader(skip_commit_broadcast=True)
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2))
        assert not raft.commit_untold

    @pytest.mark.parametrize("batch_append", [True, False])
    def test_entries_go_with_the_whole_commit_index(self, batch_append):
        """Not clipped to what the peer holds: 3 holds nothing of it yet."""
        raft = leader(batch_append=batch_append)
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2))
        assert [(message.to, message.commit) for message in propose(raft, b"y")] == [(2, 2), (3, 2)]


class TestWhatCannotWait:
    def test_the_peer_that_forwarded_a_proposal_is_told_as_soon_as_it_is_committed(self):
        raft = leader()
        hear(raft, forwarded(2))
        assert notices(hear(raft, ack(2, 1, 2))) == [(2, 2)]
        assert notices(hear(raft, ack(3, 1, 2))) == []

    def test_it_is_told_when_its_own_acknowledgement_comes_later(self):
        raft = leader()
        hear(raft, forwarded(2))
        assert notices(hear(raft, ack(3, 1, 2))) == []
        assert notices(hear(raft, ack(2, 1, 2))) == [(2, 2)]

    def test_an_earlier_one_of_several_is_told_as_well(self):
        raft = leader()
        hear(raft, forwarded(2), forwarded(2))
        assert notices(hear(raft, ack(2, 1, 2))) == [(2, 2)]
        assert notices(hear(raft, ack(2, 1, 3))) == [(2, 3)]

    def test_an_append_in_the_same_turn_tells_instead(self):
        raft = leader(batch_append=True)
        hear(raft, forwarded(2))
        sent = hear(raft, ack(2, 1, 2), forwarded(2))
        assert [(message.type, message.commit) for message in sent if message.to == 2] == [(M.REPLICATE, 2)]

    def test_a_commit_that_covers_a_membership_change_is_told_by_an_append(self):
        """Also to 3, which is being removed and has not acknowledged the change: a COMMIT would be clipped."""
        raft = leader()
        propose(raft, REMOVE_3, kind=EntryKind.CONFIG_CHANGE)
        raft.step(ack(2, 1, 2))
        told = of_type(raft.ready().messages, M.REPLICATE)
        assert [(message.to, message.commit) for message in told] == [(2, 2), (3, 2)]

    def test_a_peer_with_a_full_window_is_told_of_a_membership_change_by_a_notice(self):
        raft = leader()
        propose(raft, REMOVE_3, kind=EntryKind.CONFIG_CHANGE)
        raft.progress[3].inflight.max_messages = 0
        assert notices(hear(raft, ack(3, 1, 2))) == [(3, 2)]

    def test_one_that_acknowledges_the_change_just_before_it_is_applied_is_told_before_it_leaves(self):
        raft = leader(batch_append=True)
        propose(raft, REMOVE_3, kind=EntryKind.CONFIG_CHANGE)
        raft.progress[3].inflight.max_messages = 0
        raft.step(ack(2, 1, 2))
        raft.persisted(raft.ready())
        raft.step(ack(3, 1, 2))
        raft.applied(2)
        assert 3 not in raft.progress
        assert notices(drain(raft)) == [(3, 2)]

    def test_all_are_told_before_the_successor_is_asked_to_campaign(self):
        raft = leader()
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2), ack(3, 1, 2))
        sent = hear(raft, Message(M.LEADER_TRANSFER, sender=1, hint=2))
        assert routes(sent) == [(M.COMMIT, 2), (M.COMMIT, 3), (M.TIMEOUT_NOW, 2)]

    @pytest.mark.parametrize("reason", [M.DISK_HUNG, M.CHECK_QUORUM])
    def test_all_are_told_before_the_leader_steps_down(self, reason):
        raft = leader(check_quorum=True)
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2), ack(3, 1, 2))
        for peer in raft.peers:
            raft.progress[peer].active = False
        sent = hear(raft, Message(reason, sender=1))
        assert raft.state is State.FOLLOWER
        assert [(message.to, message.commit, message.term) for message in of_type(sent, M.COMMIT)] == [
            (2, 2, 1),
            (3, 2, 1),
        ]

    def test_peers_with_a_full_window_are_told_before_a_removed_leader_retires(self):
        raft = leader()
        remove_1 = ConfigChange((Change(ChangeType.REMOVE, 1),)).encode()
        propose(raft, remove_1, kind=EntryKind.CONFIG_CHANGE)
        for peer in raft.peers:
            raft.progress[peer].inflight.max_messages = 0
        raft.step(ack(2, 1, 2))
        raft.notices_due.clear()
        assert notices(drain(raft)) == [(2, 2)]
        assert raft.state is State.FOLLOWER


class TestAFollower:
    @pytest.mark.parametrize(
        "role", [{}, {"voters": (2, 3), "observers": (1,)}, {"voters": (2, 3), "witnesses": (1,)}]
    )
    def test_it_commits_what_it_is_told_and_does_not_answer(self, role):
        raft = replica(terms=(1, 1), term=1, **role)
        assert hear(raft, notice(2, 1, 2)) == []
        assert raft.log.committed == 2
        assert raft.leader_id == 2

    def test_it_has_heard_its_leader(self):
        raft = replica(terms=(1,), leader=2, min_election_ticks=50, max_election_ticks=51)
        tick(raft, 5)
        hear(raft, notice(2, 1, 1))
        assert raft.timers.election_elapsed == 0

    def test_an_older_one_takes_nothing_back(self):
        raft = replica(terms=(1, 1), term=1)
        hear(raft, notice(2, 1, 2), notice(2, 1, 1))
        assert raft.log.committed == 2

    def test_one_of_an_older_term_is_answered_as_a_heartbeat_is(self):
        raft = replica(terms=(1, 2), check_quorum=True)
        answer = hear(raft, notice(2, 1, 1))
        assert [(message.type, message.to, message.term) for message in answer] == [(M.NO_OP, 2, 2)]
        assert raft.log.committed == 0
        assert raft.leader_id == 0

    @pytest.mark.parametrize("state", [State.PRE_CANDIDATE, State.CANDIDATE])
    def test_a_candidate_follows_the_leader_of_its_term(self, state):
        raft = replica(terms=(1,), term=2, state=state)
        hear(raft, notice(2, 2, 1))
        assert standing(raft)[0] is State.FOLLOWER
        assert (raft.leader_id, raft.log.committed) == (2, 1)

    def test_it_sleeps_on(self):
        """The entries that a notice is about have woken the shard."""
        raft = replica(terms=(1,), leader=2, quiesce=True, min_election_ticks=1000, max_election_ticks=1001)
        tick(raft, 20 * T + 1)
        assert raft.quiesce.quiesced
        hear(raft, notice(2, 1, 1))
        assert raft.quiesce.quiesced
        assert raft.log.committed == 1


class TestASleepyLeader:
    SLEEP = 20 * T + 1

    def idle(self, raft, told):
        """Let a leader be idle until it may fall asleep, and a peer say how far it knows the log as committed."""
        sent = []
        for _ in range(self.SLEEP):
            sent += tick(raft)
            for peer in raft.peers:
                sent += hear(raft, heartbeat_answer(peer, 1, commit=told.get(peer, 2)))
        return sent

    def busy_leader(self, *, check_quorum=True):
        raft = leader(quiesce=True, check_quorum=check_quorum)
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2, commit=1), ack(3, 1, 2, commit=1))
        return raft

    def test_it_sleeps_once_all_know_what_is_committed(self):
        raft = self.busy_leader()
        self.idle(raft, {})
        assert raft.quiesce.quiesced

    def test_it_does_not_while_a_peer_does_not(self):
        raft = self.busy_leader()
        self.idle(raft, {3: 1})
        assert not raft.quiesce.quiesced
        hear(raft, heartbeat_answer(3, 1, commit=2))
        tick(raft)
        assert raft.quiesce.quiesced

    def test_nor_does_it_follow_another_that_falls_asleep(self):
        raft = self.busy_leader()
        hear(raft, heartbeat_answer(2, 1, commit=2), Message(M.QUIESCE, sender=2))
        assert not raft.quiesce.quiesced
        hear(raft, heartbeat_answer(3, 1, commit=2), Message(M.QUIESCE, sender=2))
        assert raft.quiesce.quiesced

    @pytest.mark.parametrize("check_quorum", [True, False])
    def test_a_peer_that_was_not_heard_for_two_election_timeouts_is_not_waited_for(self, check_quorum):
        raft = self.busy_leader(check_quorum=check_quorum)
        sent = []
        for _ in range(self.SLEEP):
            sent += tick(raft)
            hear(raft, heartbeat_answer(2, 1, commit=2))
        assert raft.quiesce.quiesced
        assert notices(sent) == [(2, 2), (3, 2)]

    def test_but_one_that_was_heard_before_the_last_check_of_the_quorum_is(self):
        raft = self.busy_leader()
        self.idle(raft, {3: 1})
        raft.step(Message(M.CHECK_QUORUM, sender=1))
        assert not raft.progress[3].active
        raft.tick()
        assert not raft.quiesce.quiesced

    def test_all_are_told_before_it_sleeps(self):
        raft = self.busy_leader()
        raft.progress[3].active = False
        hear(raft, heartbeat_answer(2, 1, commit=2))
        sent = hear(raft, Message(M.QUIESCE, sender=2))
        assert raft.quiesce.quiesced
        assert notices(sent) == [(2, 2), (3, 2)]


class TestAShard:
    def test_no_notice_is_answered(self):
        shard = cluster(3, commit_notices=True)
        shard.elect(1)
        shard.propose(1, b"x")
        shard.seen.clear()
        shard.tell_commits()
        assert routes(shard.seen) == [(M.COMMIT, 2), (M.COMMIT, 3)]
        assert [shard[number].log.committed for number in (1, 2, 3)] == [2, 2, 2]

    def test_a_follower_whose_client_waits_needs_no_timer(self):
        shard = cluster(3, commit_notices=True, batch_append=True)
        shard.elect(1)
        shard.propose(3, b"x")
        assert shard.applied(3) == [b"x"]

    def test_a_removed_replica_learns_of_it_without_a_timer(self):
        shard = cluster(Membership((1, 2, 3)), commit_notices=True, batch_append=True)
        shard.elect(1)
        shard.change(1, ConfigChange((Change(ChangeType.REMOVE, 3),)))
        assert 3 in shard[3].membership.removed
