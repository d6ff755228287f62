"""Rate limiting (dragonboat's): how much log may wait to be applied, here and at the followers."""

import pytest
from drakkar.handlers import (
    Message,
    MessageType,
    RaftConfig,
    State,
)
from drakkar.handlers.raft.entries import ENTRY_OVERHEAD
from drakkar.handlers.raft.rate_limit import RateLimit

from tests.handlers.raft.support import (
    FIXED,
    acknowledge_all,
    append,
    hear,
    heartbeat,
    of_type,
    propose,
    replica,
    tick,
)
from tests.handlers.raft.support import (
    T as TIMEOUT,
)

T = MessageType
BOUND = 200


def limit(bound=BOUND):
    return RateLimit(RaftConfig(replica_id=1, max_in_mem_log_bytes=bound))


def rate_ticks(limit, count):
    """Let `count` rate ticks pass, each an election timeout."""
    for _ in range(count * TIMEOUT):
        limit.tick()


class TestTheLimit:
    @pytest.mark.parametrize(
        ("own", "reported", "limited"),
        [
            pytest.param(BOUND, 0, False, id="just the bound here"),
            pytest.param(BOUND + 1, 0, True, id="more here"),
            pytest.param(0, BOUND, False, id="just the bound at a follower"),
            pytest.param(0, BOUND + 1, True, id="more at a follower"),
        ],
    )
    def test_the_largest_size_counts(self, own, reported, limited):
        """P3."""
        rate = limit()
        rate.note(2, reported)
        assert rate.update(own) is limited

    @pytest.mark.parametrize(("age", "limited"), [(3, True), (4, False)])
    def test_an_old_report_does_not_count(self, age, limited):
        """P4: dropped when it is older than three rate ticks."""
        rate = limit()
        rate.note(2, BOUND + 1)
        rate_ticks(rate, age)
        assert rate.update(0) is limited

    def test_a_newer_report_of_the_same_follower_replaces_the_older(self):
        rate = limit()
        rate.note(2, BOUND + 1)
        rate.note(2, 0)
        assert not rate.update(0)

    @pytest.mark.parametrize(
        ("now", "limited"),
        [
            pytest.param(BOUND * 7 // 10, True, id="70 percent"),
            pytest.param(BOUND * 7 // 10 - 1, False, id="less"),
        ],
    )
    def test_it_is_lifted_well_below_the_bound(self, now, limited):
        """So that it does not flutter."""
        rate = limit()
        rate.update(BOUND + 1)
        rate_ticks(rate, 11)
        assert rate.update(now) is limited

    def test_it_does_not_change_its_mind_more_than_once_in_ten_rate_ticks(self):
        rate = limit()
        assert rate.update(BOUND + 1)
        rate_ticks(rate, 10)
        assert rate.update(0)
        rate_ticks(rate, 1)
        assert not rate.update(0)
        assert not rate.update(BOUND + 1)
        rate_ticks(rate, 11)
        assert rate.update(BOUND + 1)

    def test_a_new_term_forgets_what_was_reported(self):
        """P5."""
        rate = limit()
        rate.note(2, BOUND + 1)
        rate.reset()
        assert not rate.update(0)

    def test_it_is_off_by_default(self):
        rate = limit(0)
        assert not rate.on
        assert not rate.update(1 << 40)


class TestReports:
    """P5: who says what to whom."""

    def full_follower(self, **options):
        """A follower with 300 payload bytes that are committed and cannot be applied yet."""
        raft = replica(
            term=1, max_in_mem_log_bytes=BOUND, min_election_ticks=500, max_election_ticks=501, **options
        )
        raft.step(append(2, 1, (0, 0), [1] * 20, commit=15))
        return raft

    def reports(self, raft, count):
        sent = []
        for _ in range(count):
            raft.tick()
            sent += of_type(raft.ready().messages, T.RATE_LIMIT)
        return sent

    def test_a_follower_reports_every_election_timeout(self):
        raft = self.full_follower()
        sent = self.reports(raft, 3 * TIMEOUT)
        assert [(m.to, m.term) for m in sent] == [(2, 1)] * 3

    def test_it_reports_what_is_committed_and_not_applied(self):
        """Its own size without the uncommitted part; 20 entries of a byte, 15 of them committed."""
        [report] = self.reports(self.full_follower(), TIMEOUT)
        assert report.hint == 15 * (1 + ENTRY_OVERHEAD)

    def test_it_reports_nothing_to_fear_as_zero(self):
        raft = replica(
            term=1, leader=2, max_in_mem_log_bytes=BOUND, min_election_ticks=500, max_election_ticks=501
        )
        [report] = of_type(tick(raft, TIMEOUT), T.RATE_LIMIT)
        assert (report.to, report.hint) == (2, 0)

    @pytest.mark.parametrize(
        ("state", "options"),
        [
            pytest.param(State.FOLLOWER, {}, id="no leader is known"),
            pytest.param(State.CANDIDATE, {}, id="it campaigns"),
            pytest.param(State.LEADER, {}, id="it leads"),
        ],
    )
    def test_no_other_replica_reports(self, state, options):
        raft = replica(state=state, term=1, max_in_mem_log_bytes=BOUND, **FIXED, **options)
        assert of_type(tick(raft, 5 * TIMEOUT), T.RATE_LIMIT) == []

    def test_where_it_is_off_no_replica_reports(self):
        raft = replica(term=1, leader=2, min_election_ticks=500, max_election_ticks=501)
        assert of_type(tick(raft, 5 * TIMEOUT), T.RATE_LIMIT) == []


class TestAtTheLeader:
    def leader(self):
        raft = replica(state=State.LEADER, max_in_mem_log_bytes=BOUND)
        acknowledge_all(raft)
        return raft

    def test_a_followers_report_limits_the_shard(self):
        raft = self.leader()
        hear(raft, Message(T.RATE_LIMIT, sender=2, term=1, hint=BOUND + 1))
        tick(raft)
        assert raft.rate_limit.limited

    def test_one_of_a_non_member_does_not(self):
        """Rules of the matrix."""
        raft = self.leader()
        hear(raft, Message(T.RATE_LIMIT, sender=9, term=1, hint=BOUND + 1))
        tick(raft)
        assert not raft.rate_limit.limited

    def test_its_own_unapplied_log_limits_it_too(self):
        raft = self.leader()
        propose(raft, b"x" * BOUND)
        tick(raft)
        assert raft.rate_limit.limited

    def test_reports_of_an_earlier_term_are_forgotten(self):
        """P5: any reset clears them."""
        raft = self.leader()
        hear(raft, Message(T.RATE_LIMIT, sender=2, term=1, hint=BOUND + 1), heartbeat(2, 2))
        assert raft.rate_limit.largest(0) == 0
