"""Quick failover: what replicas do whose leader's process is gone, and what they still refuse. Rules of quick failover."""

from collections import Counter

import pytest
from drakkar.handlers import Change, ChangeType, ConfigChange, Entry, EntryKind, Message, MessageType, State
from drakkar.handlers.raft.failover import ATTEMPTS
from drakkar.handlers.raft.reads import MAX_LEASE_TIMEOUTS

from tests.handlers.raft.support import (
    FIXED,
    T,
    acknowledge_all,
    cluster,
    hear,
    heartbeat,
    of_type,
    pre_vote,
    pre_vote_request,
    replica,
    routes,
    standing,
    tick,
    ticks_until_campaign,
    vote_request,
)

M = MessageType
FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = (
    State.FOLLOWER,
    State.PRE_CANDIDATE,
    State.CANDIDATE,
    State.LEADER,
)
BOTH = {"pre_vote": True, "check_quorum": True}
LEASE = BOTH | {"read_mode": "lease"}
PATIENT = {"min_election_ticks": 1000, "max_election_ticks": 1001}
"""No election timeout is over in these tests."""
FIRST, SECOND = {"shard_id": 2}, {"shard_id": 1}
"""Shards in which replica 1 asks first, or second, when the leader 2 of 1, 2 and 3 is gone."""
ASKED = [(M.REQUEST_PRE_VOTE, 2), (M.REQUEST_PRE_VOTE, 3)]


def follower(**options):
    """1 follows 2 in term 1, and has an entry of it."""
    return replica(1, **{"terms": [1], "leader": 2, **BOTH, **PATIENT, **options})


def gone(raft, replica=2):
    """Tell it that a replica's process is gone; returns what it sends."""
    return hear(raft, Message(M.LEADER_GONE, sender=replica))


def ticks_until_asked(raft, leader=2):
    """After how many ticks it asks for pre-votes when its leader is gone; 0: at once."""
    return 0 if of_type(gone(raft, leader), M.REQUEST_PRE_VOTE) else ticks_until_campaign(raft)


# -- who asks, and when --------------------------------------------------------------------------------------------


def test_the_first_voter_asks_at_once_in_its_term():
    raft = follower(**FIRST)
    assert routes(gone(raft)) == ASKED
    assert standing(raft) == (PRE_CANDIDATE, 1, 0, 0)


def test_without_pre_vote_it_asks_first_as_well():
    """The evidence may be wrong, and a term that rises would end a leader that is alive."""
    raft = follower(**FIRST, pre_vote=False, check_quorum=False)
    assert routes(gone(raft)) == ASKED
    assert standing(raft) == (PRE_CANDIDATE, 1, 0, 0)
    assert routes(hear(raft, pre_vote(3, 2))) == [(M.REQUEST_VOTE, 2), (M.REQUEST_VOTE, 3)]


@pytest.mark.parametrize(("shard", "ticks"), [(4, 0), (3, 2), (2, 3), (1, 4)])
def test_each_one_asks_more_than_a_tick_after_the_one_before(shard, ticks):
    """The tick in which it is told counts for nothing: it may be over at once."""
    assert ticks_until_asked(follower(voters=range(1, 6), shard_id=shard)) == ticks


def test_all_compute_the_same_places_and_shards_begin_with_different_voters():
    others, firsts = (1, 3, 4, 5), Counter()
    for shard in range(8):
        ticks = {
            each: ticks_until_asked(
                replica(each, voters=range(1, 6), terms=[1], leader=2, **BOTH, **PATIENT, shard_id=shard)
            )
            for each in others
        }
        assert sorted(ticks.values()) == [0, 2, 3, 4]
        firsts[min(ticks, key=ticks.get)] += 1
    assert firsts == dict.fromkeys(others, 2)


def test_witnesses_have_no_place():
    raft = follower(voters=(1, 2), witnesses=(3,), **SECOND)
    assert routes(gone(raft)) == ASKED, "there is no other voter"


def test_a_step_is_a_tenth_of_the_election_timeout():
    """It is to be more than a round trip and a flush, however short the ticks are."""
    assert ticks_until_asked(follower(**SECOND, election_ticks=30)) == 4


def without_an_entry_of_the_term():
    return follower(**FIRST, term=2)


def behind_a_read():
    raft = follower(**FIRST)
    hear(raft, Message(M.READ_INDEX_RESP, sender=2, term=1, log_index=2, hint=7))
    return raft


def waits_for_a_snapshot():
    raft = follower(**FIRST)
    raft.request_snapshot()
    return raft


@pytest.mark.parametrize("lags", [without_an_entry_of_the_term, behind_a_read, waits_for_a_snapshot])
def test_a_voter_that_knows_that_it_lags_asks_behind_all_others(lags):
    assert ticks_until_asked(lags()) == 3


def test_only_a_member_campaigns():
    raft = follower(voters=(2, 3), **FIRST)
    assert gone(raft) == []
    assert raft.leader_id == 0
    assert ticks_until_campaign(raft, 30) == 0


def test_one_that_is_told_of_another_peer_or_knows_no_leader_does_nothing():
    raft = follower(**FIRST)
    assert gone(raft, 3) == []
    assert standing(raft) == (FOLLOWER, 1, 0, 2)
    raft = replica(1, terms=[1], **BOTH, **FIRST)
    assert gone(raft, 0) == gone(raft, 2) == []
    assert standing(raft) == (FOLLOWER, 1, 0, 0)


# -- what the others answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "role", [{}, {"voters": (1, 3), "observers": (2,)}, {"voters": (1, 3), "witnesses": (2,)}]
)
def test_one_that_was_told_votes_and_one_that_was_not_protects_its_leader(role):
    """Rule 3. An observer, which may have become a voter, and a witness forget their leader too."""
    raft = replica(2, terms=[1], leader=1, **BOTH, **PATIENT, **role)
    assert hear(raft, pre_vote_request(3, 2, 1, 1), vote_request(3, 2, 1, 1)) == []
    gone(raft, 1)
    assert raft.leader_id == 0
    assert [answer.reject for answer in hear(raft, pre_vote_request(3, 2, 1, 1))] == [False]
    assert [answer.reject for answer in hear(raft, vote_request(3, 2, 1, 1))] == [False]


@pytest.mark.parametrize("role", [{"observers": (2,)}, {"witnesses": (2,)}])
def test_observers_and_witnesses_never_campaign(role):
    raft = replica(2, voters=(1, 3), terms=[1], leader=1, **BOTH, **role)
    assert of_type(gone(raft, 1) + tick(raft, 3 * T), M.REQUEST_PRE_VOTE, M.REQUEST_VOTE) == []


def test_one_that_gets_no_answer_asks_again_each_step_but_not_for_ever():
    """Others may be told later, or never: then their leases end before this one gives up."""
    raft = follower(**FIRST, **FIXED)
    assert routes(gone(raft)) == ASKED
    asked = [number for number in range(1, 3 * T + 1) if of_type(tick(raft), M.REQUEST_PRE_VOTE)]
    last = ATTEMPTS - 1
    assert last > T
    assert asked == [*range(1, ATTEMPTS), last + T], "then its election timer counts"


def test_a_second_report_of_the_same_end_changes_nothing():
    raft = follower(**FIRST)
    gone(raft)
    assert gone(raft) == []
    raft = follower(**SECOND)
    gone(raft)
    tick(raft)
    gone(raft)
    assert ticks_until_campaign(raft) == 1


def test_one_that_learns_a_newer_term_from_a_refusal_asks_for_the_next_one():
    raft = follower(**FIRST)
    gone(raft)
    hear(raft, pre_vote(3, 5, reject=True))
    assert standing(raft) == (FOLLOWER, 5, 0, 0)
    assert {ask.term for ask in of_type(tick(raft), M.REQUEST_PRE_VOTE)} == {6}


# -- what ends it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [FIRST, SECOND])
def test_a_leader_that_is_heard_after_all_is_followed_again(place):
    raft = follower(**place)
    gone(raft)
    hear(raft, heartbeat(2, 1))
    assert standing(raft) == (FOLLOWER, 1, 0, 2)
    assert ticks_until_campaign(raft, 3 * T) == 0
    assert hear(raft, heartbeat(2, 1), vote_request(3, 2, 1, 1))[1:] == [], "and protected again"


def test_one_that_grants_a_pre_vote_waits_for_half_an_election_timeout():
    """So that the one that asked first is elected."""
    raft = follower(**SECOND)
    gone(raft)
    tick(raft)
    assert [answer.reject for answer in hear(raft, pre_vote_request(3, 2, 1, 1))] == [False]
    assert ticks_until_campaign(raft) == T // 2 + 2


@pytest.mark.parametrize(
    ("place", "state"), [(FIRST, CANDIDATE), (SECOND, FOLLOWER)], ids=["it is first", "the other is"]
)
def test_of_two_that_ask_at_once_the_second_in_place_stops(place, state):
    """Both would win their pre-votes, and none the votes."""
    raft = follower(**place, **FIXED)
    gone(raft)
    tick(raft, 2)
    assert raft.state is PRE_CANDIDATE
    assert [answer.reject for answer in hear(raft, pre_vote_request(3, 2, 1, 1))] == [False]
    hear(raft, pre_vote(3, 2))
    assert raft.state is state


def test_one_that_stops_asks_again_later_and_its_election_timer_runs_on():
    raft = follower(**SECOND)
    gone(raft)
    tick(raft, 2)
    hear(raft, pre_vote_request(3, 2, 1, 1))
    assert ticks_until_campaign(raft) == T // 2 + 2
    raft = follower(**SECOND, election_ticks=30, min_election_ticks=30, max_election_ticks=31)
    gone(raft)
    tick(raft, 4)
    assert raft.state is PRE_CANDIDATE
    tick(raft, 2)
    for _ in range(30 - 2 - 1):
        hear(raft, pre_vote_request(3, 2, 1, 1))
        assert of_type(tick(raft), M.REQUEST_PRE_VOTE) == []
    assert ticks_until_campaign(raft) == 1


def test_one_that_asks_since_its_time_is_over_does_not_stop():
    raft = follower(**SECOND, **FIXED)
    gone(raft)
    hear(raft, heartbeat(2, 1))
    assert ticks_until_campaign(raft) == T
    hear(raft, pre_vote_request(3, 2, 1, 1))
    assert raft.state is PRE_CANDIDATE


def test_one_that_is_no_voter_here_stops_no_voter():
    raft = follower(**SECOND)
    gone(raft)
    tick(raft, 2)
    hear(raft, pre_vote_request(9, 2, 1, 1))
    assert raft.state is PRE_CANDIDATE


def test_one_that_refuses_a_pre_vote_does_not_wait():
    raft = follower(**SECOND)
    gone(raft)
    tick(raft)
    assert [answer.reject for answer in hear(raft, pre_vote_request(3, 2, 0, 0))] == [True]
    assert ticks_until_campaign(raft) == 1


def test_granting_pre_votes_does_not_put_off_the_election_timer():
    """BUG-E9: a replica that asks for ever would stop all elections."""
    raft = follower(**SECOND, **FIXED)
    gone(raft)
    for _ in range(T - 1):
        raft.step(pre_vote_request(3, 2, 1, 1))
        assert of_type(tick(raft), M.REQUEST_PRE_VOTE) == []
    assert ticks_until_campaign(raft) == 1


def test_one_that_votes_leaves_the_rest_to_its_election_timer():
    raft = follower(**SECOND, **FIXED)
    gone(raft)
    hear(raft, vote_request(3, 2, 1, 1))
    assert raft.vote == 3
    assert ticks_until_campaign(raft) == T


def test_so_does_a_candidate():
    """It must not give up an election that it may win."""
    raft = follower(**FIRST, **FIXED)
    gone(raft)
    hear(raft, pre_vote(3, 2))
    assert raft.state is CANDIDATE
    assert ticks_until_campaign(raft) == T


# -- beside other rules --------------------------------------------------------------------------------------------


def test_a_voter_without_room_waits_for_its_longer_timeout():
    """INV29."""
    raft = follower(**FIRST, **FIXED)
    hear(raft, Message(M.DISK_FULL, sender=1))
    assert gone(raft) == []
    assert ticks_until_campaign(raft) == 3 * T


def test_it_asks_as_soon_as_it_has_room():
    raft = follower(**FIRST)
    hear(raft, Message(M.DISK_FULL, sender=1))
    gone(raft)
    tick(raft, 3)
    hear(raft, Message(M.DISK_ROOM, sender=1))
    assert ticks_until_campaign(raft) == 1


@pytest.mark.parametrize("place", [FIRST, SECOND])
def test_one_that_its_leader_asked_to_campaign_does_so_once(place):
    """It had to apply a change first, and its leader ended meanwhile."""
    change = ConfigChange((Change(ChangeType.ADD_VOTER, 4),)).encode()
    entries = [1, Entry(term=1, kind=EntryKind.CONFIG_CHANGE, payload=change)]
    raft = replica(1, terms=entries, commit=2, **BOTH, **PATIENT, **place)
    raft.step(heartbeat(2, 1))
    raft.step(Message(M.TIMEOUT_NOW, sender=2, term=1))
    raft.step(Message(M.LEADER_GONE, sender=2))
    assert raft.state is FOLLOWER
    sent = hear(raft)
    assert routes(of_type(sent, M.REQUEST_VOTE)) == [(M.REQUEST_VOTE, to) for to in (2, 3, 4)]
    assert (raft.state, raft.term) == (CANDIDATE, 2)
    gone(raft)
    assert ticks_until_campaign(raft, 3 * T) == 0


def test_one_that_waits_for_its_turn_still_obeys_its_leader():
    """The evidence may be wrong, and the order opens the leases of those that were not told."""
    raft = follower(**SECOND)
    gone(raft)
    sent = hear(raft, Message(M.TIMEOUT_NOW, sender=2, term=1))
    assert {(ask.type, ask.hint) for ask in sent} == {(M.REQUEST_VOTE, 1)}
    assert ticks_until_campaign(raft, 3 * T) == 0


class TestASleepingShard:
    def sleeper(self, **options):
        raft = follower(quiesce=True, **options)
        hear(raft, Message(M.QUIESCE, sender=2))
        tick(raft, 5 * T)
        assert raft.quiesce.quiesced
        return raft

    def test_wakes_up_and_elects(self):
        raft = self.sleeper(**FIRST)
        assert routes(gone(raft)) == ASKED
        assert not raft.quiesce.quiesced

    def test_wakes_at_the_others_too(self):
        raft = self.sleeper(**SECOND)
        assert ticks_until_asked(raft) == 2

    def test_sleeps_on_where_another_peer_is_gone(self):
        raft = self.sleeper(**FIRST)
        gone(raft, 3)
        assert raft.quiesce.quiesced
        assert raft.leader_id == 2


# -- leases --------------------------------------------------------------------------------------------------------

ANY_OPTIONS = [
    pytest.param({"pre_vote": False, "check_quorum": False}, id="plain"),
    pytest.param(BOTH, id="CheckQuorum"),
    pytest.param(LEASE, id="leases"),
]
REQUESTS = [pytest.param(pre_vote_request, id="pre-vote"), pytest.param(vote_request, id="vote")]


def leased(payload=T, **options):
    """1 follows 2, whose newest heartbeat says that it reads by leases."""
    raft = follower(**options)
    tick(raft, 2 * T)  # what it promised before it was started is over
    hear(raft, heartbeat(2, 1, log_index=7, payload=payload))
    return raft


def test_heartbeats_say_where_reads_rely_on_leases():
    for options, payload in ((BOTH, None), (LEASE, T), (LEASE | {"election_ticks": 20}, 20)):
        raft = replica(1, state=LEADER, **options)
        acknowledge_all(raft)
        assert [sent.payload for sent in of_type(tick(raft), M.HEARTBEAT)] == [payload] * 2


@pytest.mark.parametrize("options", ANY_OPTIONS)
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_lease_binds_to_its_last_tick_whatever_the_options_are(options, request_):
    raft = leased(**SECOND, **options)
    assert of_type(gone(raft) + tick(raft, T - 1), M.REQUEST_PRE_VOTE) == []
    assert hear(raft, request_(3, 2, 1, 1)) == []
    tick(raft)
    assert [answer.reject for answer in hear(raft, request_(3, 2, 1, 1))] == [False]


@pytest.mark.parametrize("options", ANY_OPTIONS)
@pytest.mark.parametrize(("place", "ticks"), [(FIRST, T), (SECOND, T + 2)])
def test_the_quick_failover_begins_when_the_lease_is_over(options, place, ticks):
    assert ticks_until_asked(leased(**place, **options)) == ticks


def test_without_news_of_its_leader_no_voter_campaigns_in_its_lease_either():
    """A leader with a longer timeout than its followers."""
    assert ticks_until_campaign(leased(2 * T, **FIXED)) == 2 * T


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_lease_outlives_the_term(request_):
    raft = leased()
    hear(raft, Message(M.NO_OP, sender=3, term=5))
    assert (raft.term, raft.leader_id) == (5, 0)
    assert hear(raft, request_(3, 6, 1, 1)) == []
    assert [answer.reject for answer in hear(raft, vote_request(3, 5, 1, 1))] == [True], "of this very term"
    tick(raft, T)
    assert [answer.reject for answer in hear(raft, request_(3, 6, 1, 1))] == [False]


def test_a_leader_without_leases_does_not_end_that_of_the_one_before():
    raft = leased()
    hear(raft, heartbeat(3, 2))
    assert (raft.term, raft.leader_id) == (2, 3)
    gone(raft, 3)
    tick(raft, T - 1)
    assert hear(raft, pre_vote_request(3, 3, 1, 1)) == []
    tick(raft)
    assert [answer.reject for answer in hear(raft, pre_vote_request(3, 3, 1, 1))] == [False]


@pytest.mark.parametrize("term", [5, 6], ids=["its term", "the next term"])
def test_a_leader_that_asks_for_an_election_has_no_lease(term):
    raft = leased()
    hear(raft, Message(M.NO_OP, sender=3, term=5))
    [answer] = hear(raft, vote_request(3, term, 1, 1, hint=3))
    assert (answer.reject, raft.vote) == (False, 3)
    [again] = hear(raft, vote_request(3, term, 1, 1))
    assert not again.reject, "it has voted for it already"


def test_a_leader_may_ask_one_that_keeps_its_lease_to_campaign():
    raft = leased()
    hear(raft, Message(M.TIMEOUT_NOW, sender=2, term=1))
    assert raft.state is CANDIDATE


@pytest.mark.parametrize(
    ("payload", "ticks"),
    [
        (1, 1),
        (2 * T, 2 * T),
        (10**18, MAX_LEASE_TIMEOUTS * T),
        (-5, 0),
        (0, 0),
        (True, 0),
        ("x", 0),
        (7.5, 0),
        (None, 0),
    ],
)
def test_what_a_leader_says_of_its_lease_is_not_believed_beyond_reason(payload, ticks):
    """A faulty leader must not silence its shard for long."""
    assert ticks_until_asked(leased(payload, **FIRST)) == ticks


@pytest.mark.parametrize(("mode", "ticks"), [("lease", T), ("safe", 0)])
def test_a_leader_of_an_older_version_is_believed_to_do_as_its_followers(mode, ticks):
    """4.1 stamps its heartbeats, with leases and with homes, and does not say which."""
    assert ticks_until_asked(leased(None, **FIRST, read_mode=mode)) == ticks


@pytest.mark.parametrize("leaders", [LEASE, LEASE | {"pre_vote": False}], ids=["asks first", "does not"])
@pytest.mark.parametrize("others", ANY_OPTIONS)
def test_no_lease_read_is_stale_though_all_others_were_told_of_an_end_that_was_none(leaders, others):
    """The leader, which alone has leases or not, is cut off, and reads at each tick."""
    group = cluster(3, **FIXED, **others)
    group.add(1, **leaders)
    group.elect(1)
    group.tick(2)
    group.isolate(1)
    group.report_gone(1)
    served = 0
    for number in range(3 * T):
        group.read(1, number + 1)
        if group.nodes[1].reads:
            assert group.leader is group[1], f"a stale read after {number} ticks"
            served += 1
        group.nodes[1].reads.clear()
        group.tick()
    assert served > T / 2, "the lease is of some use"
    assert group.leader is not group[1]


# -- stories -------------------------------------------------------------------------------------------------------


def test_a_shard_whose_leader_was_killed_has_another_one_before_any_tick():
    for shard, first in ((1, 3), (2, 2)):
        group = cluster(3, **BOTH, shard_id=shard)
        group.elect(1)
        group.crash(1)
        group.report_gone(1)
        assert (group.leader, group[first].term) == (group[first], 2)
        group.propose(2, b"x")
        assert group.applied(2) == group.applied(3) == [b"x"]


def test_the_next_one_asks_where_the_first_is_gone_too():
    group = cluster(5, **BOTH, **PATIENT)
    group.elect(1)
    group.crash(1)
    group.crash(3)
    group.report_gone(1)
    group.tick()
    assert group.leader is None
    group.tick()
    assert group.leader is group[4]


def test_one_that_was_told_first_is_elected_when_the_other_is_told():
    group = cluster(3, **BOTH, **PATIENT)
    group.elect(1)
    group.crash(1)
    group.report_gone(1, 3)
    group.tick(3)
    assert (group[3].state, group[2].leader_id) == (PRE_CANDIDATE, 1)
    group.report_gone(1, 2)
    group.tick()
    assert (group.leader, group[3].term) == (group[3], 2)


def test_one_that_alone_was_told_is_elected_when_the_others_have_waited_out_the_lease():
    group = cluster(3, **BOTH, **PATIENT)
    group.elect(1)
    group.crash(1)
    group.report_gone(1, 3)
    group.tick(T)
    assert group.leader is group[3]


def test_one_that_is_told_wrongly_in_a_sleeping_shard_wakes_it_and_deposes_nobody():
    group = cluster(3, **BOTH, quiesce=True)
    group.elect(1)
    group.tick(21 * T)
    assert all(group[each].quiesce.quiesced for each in (1, 2, 3))
    group.report_gone(1, 3)
    group.tick(2 * T)
    assert {node.raft.term for node in group.nodes.values()} == {1}
    assert [group[each].leader_id for each in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize("pre_vote", [True, False])
def test_one_that_is_told_wrongly_deposes_nobody(pre_vote):
    group = cluster(3, check_quorum=True, pre_vote=pre_vote)
    group.elect(1)
    for _ in range(2 * T):
        group.report_gone(1, 3)
        group.tick()
        assert group[3].leader_id == 1, "by its next heartbeat"
    assert {node.raft.term for node in group.nodes.values()} == {1}
    assert group.leader is group[1]


def test_a_majority_that_is_told_wrongly_does():
    group = cluster(3, **BOTH)
    group.elect(1)
    group.report_gone(1)
    assert group.leader is group[3]
    group.tick()
    assert (group[1].state, group[1].leader_id) == (FOLLOWER, 3)
