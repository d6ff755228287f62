"""Elections (thesis §3.4, §3.6.1): who campaigns and when, who votes for whom, and what a majority of votes does.

Facts A and Q of docs/protocol.md, and the bugs BUG-E10 to BUG-E20 that bit other implementations.
"""

from collections import Counter
from random import Random

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
    ProtocolViolation,
    Raft,
    RaftConfig,
    Refusal,
    State,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    DEFAULTS,
    FIXED,
    T,
    ack,
    acknowledge_all,
    append,
    become_leader,
    campaign,
    cluster,
    disk,
    heartbeat,
    install,
    of_type,
    pre_vote_request,
    propose,
    replica,
    routes,
    standing,
    tick,
    ticks_until_campaign,
    vote,
    vote_request,
)

M = MessageType
FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = (
    State.FOLLOWER,
    State.PRE_CANDIDATE,
    State.CANDIDATE,
    State.LEADER,
)

PRE_VOTE = pytest.mark.parametrize("pre_vote", [False, True], ids=["plain", "pre-vote"])


def change_entry(term, *changes):
    """A membership change, as a leader of `term` logs it."""
    return Entry(term=term, kind=EntryKind.CONFIG_CHANGE, payload=ConfigChange(changes).encode())


ADD_4 = Change(ChangeType.ADD_VOTER, 4)

# -- the beginning, and timeouts -------------------------------------------------------------------------------------


def test_a_new_replica_is_a_follower_that_knows_no_peer():
    """A1 (thesis §3.4)."""
    assert standing(replica()) == (FOLLOWER, 0, 0, 0)


@pytest.mark.parametrize(
    ("state", "term"), [(FOLLOWER, 2), (CANDIDATE, 3)], ids=["A4 follower", "A5 candidate"]
)
def test_a_replica_that_hears_no_leader_campaigns_in_a_new_term(state, term):
    """Thesis §3.4: it votes for itself, and asks all others."""
    raft = replica(state=state, term=term - 1)
    sent = tick(raft, 2 * T - 1)
    assert standing(raft) == (CANDIDATE, term, 1, 0)
    requests = of_type(sent, M.REQUEST_VOTE)
    assert [(ask.to, ask.term, ask.log_index, ask.log_term) for ask in requests] == [
        (2, term, 0, 0),
        (3, term, 0, 0),
    ]


@pytest.fixture(scope="module")
def campaigns():
    """After how many ticks a replica that hears nothing campaigned, 1000 times over."""
    raft = replica(seed=4)
    return Counter(ticks_until_campaign(raft) for _ in range(1000))


def test_election_timeouts_are_spread_from_one_to_two_timeouts(campaigns):
    """A10 (thesis §3.4): every value of 10..19, and nothing else."""
    assert set(campaigns) == set(range(T, 2 * T))


@pytest.mark.parametrize(
    ("ticks", "probability"), [(5, 0), (10, 0.1), (13, 0.4), (15, 0.6), (18, 0.9), (20, 1)]
)
def test_the_probability_to_have_campaigned_grows_evenly(campaigns, ticks, probability):
    """A11."""
    fired = sum(count for after, count in campaigns.items() if after <= ticks)
    assert fired / campaigns.total() == pytest.approx(probability, abs=0.05)


def test_an_election_range_of_one_tick_leaves_no_choice():
    """Q4: the last row; the refused ranges are among the tests of the options."""
    raft = replica(min_election_ticks=12, max_election_ticks=13)
    assert [ticks_until_campaign(raft) for _ in range(5)] == [12] * 5


@pytest.mark.parametrize("size", range(2, 8))
def test_replicas_that_start_together_do_not_split_their_votes_for_ever(size):
    """BUG-E19: each draws for itself, and anew each time, so one is alone soon."""
    for seed in range(3):
        group = cluster(size, seed=seed)
        group.tick(8 * T)
        assert group.leader is not None


def test_replicas_without_a_given_random_source_draw_different_timeouts():
    """BUG-E19: equal seeds would split every vote."""
    rafts = [Raft(RaftConfig(replica_id=1), disk(membership=Membership((1, 2, 3)))) for _ in range(30)]
    assert len({raft.timers.randomized_timeout for raft in rafts}) > 1


# -- counting votes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "yes", "no", "outcome"),
    [
        pytest.param(1, "", "", LEADER, id="alone"),
        pytest.param(3, "23", "", LEADER, id="3: all"),
        pytest.param(3, "2", "", LEADER, id="3: two"),
        pytest.param(5, "2345", "", LEADER, id="5: all"),
        pytest.param(5, "234", "", LEADER, id="5: four"),
        pytest.param(5, "23", "", LEADER, id="5: three"),
        pytest.param(3, "", "23", FOLLOWER, id="3: two refuse"),
        pytest.param(5, "", "2345", FOLLOWER, id="5: four refuse"),
        pytest.param(5, "2", "345", FOLLOWER, id="5: three refuse"),
        pytest.param(4, "", "23", FOLLOWER, id="4: two refuse, so no majority is left"),
        pytest.param(3, "", "", CANDIDATE, id="3: silence"),
        pytest.param(5, "2", "", CANDIDATE, id="5: two"),
        pytest.param(5, "", "23", CANDIDATE, id="5: two refuse"),
        pytest.param(5, "", "", CANDIDATE, id="5: silence"),
        pytest.param(2, "", "", CANDIDATE, id="2: one is no majority"),
        pytest.param(4, "2", "", CANDIDATE, id="4: two are no majority"),
        pytest.param(6, "23", "", CANDIDATE, id="6: three are no majority"),
        pytest.param(6, "234", "", LEADER, id="6: four"),
        pytest.param(7, "23", "", CANDIDATE, id="7: three are no majority"),
        pytest.param(7, "234", "", LEADER, id="7: four"),
    ],
)
def test_one_round_of_votes(size, yes, no, outcome):
    """A6, A7 and BUG-E19 (thesis §3.4)."""
    raft = replica(voters=range(1, size + 1))
    campaign(raft)
    for voter in yes:
        raft.step(vote(int(voter), 1))
    for voter in no:
        raft.step(vote(int(voter), 1, reject=True))
    assert (raft.state, raft.term) == (outcome, 1)


def test_each_voters_first_answer_counts():
    """A31: of the answers yes, no, yes, yes two are of one voter, and one contradicts another."""
    raft = replica(voters=range(1, 6), state=CANDIDATE)
    raft.step(vote(2, 1, reject=True))
    raft.step(vote(3, 1))
    raft.step(vote(2, 1))
    assert raft.state is CANDIDATE
    raft.step(vote(4, 1))
    assert raft.state is LEADER


def test_one_voter_that_answers_twice_elects_no_leader():
    """BUG-E16: a counter in place of a set of voters makes a leader of five with two votes."""
    raft = replica(voters=range(1, 6), state=CANDIDATE)
    for _ in range(4):
        raft.step(vote(2, 1))
    assert raft.state is CANDIDATE


def test_a_candidate_that_asks_again_is_granted_again():
    """BUG-E17: our first answer may have been lost, and the vote with it."""
    raft = replica()
    for _ in range(2):
        raft.step(vote_request(2, 1))
        (answer,) = drain(raft)
        assert (answer.type, answer.to, answer.reject) == (M.REQUEST_VOTE_RESP, 2, False)


def test_votes_of_observers_do_not_count():
    """Rules of elections: not even while a change of their role is on its way."""
    raft = replica(voters=(1, 2, 3), observers=(4, 5), state=CANDIDATE)
    raft.step(vote(4, 1))
    raft.step(vote(5, 1))
    assert raft.state is CANDIDATE


def test_a_joint_election_needs_both_majorities():
    """Rules of elections (thesis §4.3)."""
    members = Membership(voters=(1, 2, 3), outgoing=(1, 4, 5))
    raft = replica(membership=members)
    assert routes(campaign(raft)) == [(M.REQUEST_VOTE, peer) for peer in (2, 3, 4, 5)]
    raft.step(vote(2, 1))
    raft.step(vote(3, 1))
    assert raft.state is CANDIDATE
    raft.step(vote(4, 1))
    assert raft.state is LEADER


@pytest.mark.parametrize("answer", [vote(3, 1), vote(3, 1, reject=True)], ids=["grant", "refusal"])
@pytest.mark.parametrize("state", [FOLLOWER, LEADER], ids=lambda state: state.name)
def test_a_vote_that_comes_after_the_election_changes_nothing(state, answer):
    """Rules of terms: of the same term, in the wrong state."""
    raft = replica(state=LEADER, term=1) if state is LEADER else replica(leader=2, term=1)
    before = standing(raft)
    raft.step(answer)
    assert drain(raft) == []
    assert standing(raft) == before


# -- granting votes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "last", "granted"),
    [
        ([1], (1, 1), True),
        ([1], (2, 1), True),
        ([1], (1, 2), True),
        ([1], (2, 2), True),
        ([1, 1], (1, 2), True),
        ([1, 1], (1, 1), False),
        ([2], (1, 1), False),
        ([2], (2, 1), False),
        ([2, 2], (1, 1), False),
    ],
)
@pytest.mark.parametrize("ask", [vote_request, pre_vote_request], ids=["vote", "pre-vote"])
def test_only_a_log_that_is_up_to_date_gets_the_vote(ask, terms, last, granted):
    """A16 (thesis §3.6.1), `last` being index and term of the asker's last entry."""
    raft = replica(terms=terms)
    raft.step(ask(2, 3, *last))
    (answer,) = drain(raft)
    assert (answer.to, answer.reject) == (2, not granted)


@pytest.mark.parametrize(
    ("index", "log_term", "granted"),
    [(index, term, term == 3) for index in (0, 1) for term in range(4)]
    + [(index, term, term >= 2) for index in (2, 3) for term in range(4)],
)
def test_a_vote_within_the_term(index, log_term, granted):
    """A17: the log is [2, 2], and no vote was cast yet."""
    raft = replica(terms=[2, 2], term=max(2, log_term))
    raft.step(vote_request(2, raft.term, index, log_term))
    (answer,) = drain(raft)
    assert answer.reject is not granted
    assert raft.vote == (2 if granted else 0)


@pytest.mark.parametrize(
    ("setup", "voted", "granted"),
    [
        pytest.param({}, 2, True, id="follower that voted for the asker"),
        pytest.param({}, 1, False, id="follower that voted for another"),
        pytest.param({"leader": 3}, 0, False, id="follower that did not vote, but knows the leader"),
        pytest.param({"leader": 3}, 2, True, id="follower that voted for the asker, and knows the leader"),
        pytest.param({"state": LEADER}, 1, False, id="leader"),
        pytest.param({"state": CANDIDATE}, 1, False, id="candidate"),
        pytest.param({"state": PRE_CANDIDATE}, 1, False, id="pre-candidate that was candidate"),
    ],
)
def test_a_vote_that_is_given(setup, voted, granted):
    """A18: one vote a term, first come, first served; and none against a leader that is known (etcd's rule)."""
    raft = replica(terms=[2, 2], term=3, vote=voted, **setup)
    before = standing(raft)
    raft.step(vote_request(2, 3, 9, 3))
    (answer,) = drain(raft)
    assert (answer.type, answer.reject, answer.term) == (M.REQUEST_VOTE_RESP, not granted, 3)
    assert standing(raft) == before


@pytest.mark.parametrize(
    "setup",
    [{"vote": 2}, {"vote": 1}, {}, {"state": LEADER}, {"state": CANDIDATE}, {"state": PRE_CANDIDATE}],
    ids=["voted for the asker", "voted for another", "free", "leader", "candidate", "pre-candidate"],
)
def test_a_pre_vote_about_the_present_term_is_always_refused(setup):
    """A18 by dragonboat's rule: an election in this term would come too late."""
    raft = replica(terms=[2, 2], term=3, **setup)
    raft.step(pre_vote_request(2, 3, 9, 2))
    (answer,) = drain(raft)
    assert (answer.type, answer.reject, answer.term) == (M.REQUEST_PRE_VOTE_RESP, True, 3)


@pytest.mark.parametrize("term", [1, 2], ids=["of this term", "of a newer one"])
def test_granting_a_vote_postpones_our_own_election(term):
    """A30."""
    raft = replica(term=1, **FIXED)
    tick(raft, T - 1)
    raft.step(vote_request(2, term))
    assert raft.vote == 2
    assert ticks_until_campaign(raft) == T


def test_a_refused_candidate_cannot_keep_a_better_log_from_its_turn():
    """A28 and BUG-E10: a shorter log that asks every few ticks would starve the only one that can win."""
    raft = replica(terms=[1, 1], **FIXED)
    for ticks in range(1, 3 * T):
        if ticks % 3 == 0:
            raft.step(vote_request(2, raft.term + 1, 1, 1))
        if of_type(tick(raft), M.REQUEST_VOTE):
            break
    assert ticks == T


@pytest.mark.parametrize(
    "lose_office",
    [
        pytest.param(lambda raft: raft.step(heartbeat(3, 1)), id="candidate hears the term's leader"),
        pytest.param(campaign, id="candidate asks first again"),
        pytest.param(
            lambda raft: (
                raft.step(vote(2, 1, reject=True)),
                raft.step(vote(3, 1, reject=True)),
            ),
            id="candidate loses",
        ),
        pytest.param(
            lambda raft: (raft.step(vote(2, 1)), raft.step(Message(M.CHECK_QUORUM))),
            id="leader without quorum",
        ),
    ],
)
def test_a_vote_outlives_every_change_of_state_within_the_term(lose_office):
    """BUG-E18: a vote that is forgotten in its term can be cast twice."""
    raft = replica(pre_vote=True, state=CANDIDATE)
    lose_office(raft)
    drain(raft)
    assert (raft.state in (FOLLOWER, PRE_CANDIDATE), raft.term, raft.vote) == (True, 1, 1)
    raft.step(vote_request(2, 1, 9, 1))
    assert [answer.reject for answer in of_type(drain(raft), M.REQUEST_VOTE_RESP)] == [True]


def test_a_vote_leaves_only_once_it_is_durable():
    """Rules of durability, INV10: what a crash can forget must not be known to anybody."""
    raft = replica()
    raft.step(vote_request(2, 1))
    ready = raft.ready()
    assert (ready.hard_state.vote, ready.must_save, ready.messages) == (2, True, [])
    assert routes(ready.messages_after_save) == [(M.REQUEST_VOTE_RESP, 2)]


def test_nothing_leaves_in_a_term_that_is_not_durable_yet():
    """Rules of durability: a peer that hears from us in a term may rely on our being in it."""
    raft = replica(term=1, leader=2)
    raft.step(heartbeat(3, 2))
    assert raft.ready().messages == []
    raft = replica(term=1, leader=2)
    raft.step(heartbeat(2, 1))
    assert routes(raft.ready().messages) == [(M.HEARTBEAT_RESP, 2)]


# -- losing and yielding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize(
    "message", [heartbeat, append, install], ids=["HEARTBEAT", "REPLICATE", "INSTALL_SNAPSHOT"]
)
@pytest.mark.parametrize("state", [PRE_CANDIDATE, CANDIDATE], ids=lambda state: state.name)
def test_a_candidate_yields_to_a_leader(state, message, term):
    """A9 (thesis §3.4): of its own term, or of a newer one."""
    raft = replica(state=state, term=1)
    raft.step(message(2, term))
    assert (raft.state, raft.term, raft.leader_id) == (FOLLOWER, term, 2)
    assert [answer.term for answer in drain(raft)][-1:] == [term]


def test_a_candidate_yields_to_a_snapshot():
    """A9 and BUG-S6: a replica that lags so far that it is sent one would campaign for ever."""
    group = cluster(3)
    group.isolate(3)
    group.elect(1)
    group.propose(1, b"a", b"b")
    group.compact(1, 3)
    campaign(group[3])
    group.heal()
    assert standing(group[3]) == (CANDIDATE, 1, 3, 0)
    group.tick(3, 1)
    assert (group[3].state, group[3].leader_id, group[3].log.committed) == (FOLLOWER, 1, 3)


def test_a_candidate_that_was_cut_off_concedes_to_the_leader_of_its_term():
    """A21."""
    group = cluster(3)
    group.isolate(1)
    group.elect(1)
    group.elect(3)
    assert (group[1].state, group[3].state, group[1].term, group[3].term) == (CANDIDATE, LEADER, 1, 1)
    group.heal()
    group.tick(1, 3)
    group.propose(3, b"x")
    assert standing(group[1]) == (FOLLOWER, 1, 1, 3)
    assert [(group.terms(each), group[each].log.committed) for each in (1, 2, 3)] == [([1, 1], 2)] * 3


@pytest.mark.parametrize(
    "speak",
    [lambda group: group.tick(1, 1), lambda group: group.step(3, append(1, 3, (3, 3)))],
    ids=["HEARTBEAT", "REPLICATE"],
)
def test_a_candidate_of_an_old_term_returns_to_the_leader(speak):
    """A22."""
    group = cluster(3)
    group.elect(1)
    group.isolate(3)
    group.elect(2)
    group.elect(1)
    group.tick(2 * T - 1, 3)
    assert (group[3].state, group[3].term, group[1].term) == (CANDIDATE, 2, 3)
    group.heal()
    speak(group)
    assert (group[3].state, group[3].term, group[3].leader_id) == (FOLLOWER, 3, 1)


@pytest.mark.parametrize("voters", [(1,), (1, 2, 3)], ids=["alone", "of three"])
def test_a_leader_that_is_asked_to_campaign_goes_on_leading(voters):
    """A23 and BUG-E13: an election against itself is defeated by its own heartbeats."""
    raft = replica(voters=voters, state=LEADER, term=4)
    assert campaign(raft) == []
    assert standing(raft) == (LEADER, 4, 1, 1)


@pytest.mark.parametrize("state", [FOLLOWER, PRE_CANDIDATE, LEADER], ids=lambda state: state.name)
def test_only_a_candidate_becomes_leader(state):
    """A19: leading without an election is a bug of ours, so this replica must stop."""
    with pytest.raises(ProtocolViolation, match="cannot become leader without an election"):
        replica(state=state, term=1).become_leader()


@pytest.mark.parametrize("move", ["become_candidate", "become_pre_candidate"])
@pytest.mark.parametrize(
    "setup",
    [{"state": LEADER}, {"voters": (2, 3), "observers": (1,)}, {"voters": (2, 3), "witnesses": (1,)}],
    ids=["leader", "observer", "witness"],
)
def test_neither_leaders_nor_onlookers_become_candidates(setup, move):
    """A19."""
    raft = replica(term=1, **setup)
    with pytest.raises(ProtocolViolation, match="cannot become"):
        getattr(raft, move)()


def test_a_candidate_raises_the_term_and_a_pre_candidate_does_not():
    """A19."""
    raft = replica(term=4, leader=2)
    raft.become_pre_candidate()
    assert standing(raft) == (PRE_CANDIDATE, 4, 0, 0)
    raft.become_candidate()
    assert standing(raft) == (CANDIDATE, 5, 1, 0)


# -- whole clusters -----------------------------------------------------------------------------------------------------


@PRE_VOTE
@pytest.mark.parametrize(
    ("size", "dead", "wins"), [(3, 0, True), (3, 1, True), (3, 2, False), (4, 2, False), (5, 2, True)]
)
def test_an_election_needs_a_majority_that_is_up(size, dead, wins, pre_vote):
    """A12."""
    group = cluster(size, pre_vote=pre_vote)
    for number in range(dead):
        group.crash(size - number)
    group.elect(1)
    failed = (PRE_CANDIDATE, 0) if pre_vote else (CANDIDATE, 1)
    assert (group[1].state, group[1].term) == ((LEADER, 1) if wins else failed)


@PRE_VOTE
def test_a_majority_of_longer_logs_refuses(pre_vote):
    """A13."""
    logs = {number: disk(terms) for number, terms in enumerate([[], [1], [1], [1, 1], []], 1)}
    for log in logs.values():
        log.membership = Membership(range(1, 6))
    group = cluster(5, pre_vote=pre_vote, logs=logs)
    group.elect(1)
    assert (group[1].state, group[1].term) == (FOLLOWER, 1)


@PRE_VOTE
def test_each_of_three_can_lead_in_turn(pre_vote):
    """A14."""
    group = cluster(3, pre_vote=pre_vote)
    for term, candidate in enumerate([1, 2, 3, 1], 1):
        group.elect(candidate)
        states = {each: (group[each].state, group[each].term) for each in group.nodes}
        assert states == {each: (LEADER if each == candidate else FOLLOWER, term) for each in group.nodes}


@PRE_VOTE
def test_a_leader_overwrites_a_newer_entry_that_no_majority_holds(pre_vote):
    """A15: voters for a leader of term 2 refuse, and tell the new term in passing; then the second try wins."""
    members = Membership(range(1, 6))
    group = cluster(
        members,
        pre_vote=pre_vote,
        logs={
            1: disk([1], membership=members),
            2: disk([1], membership=members),
            3: disk([2], vote=3, membership=members),
            4: disk([], term=2, vote=3, membership=members),
            5: disk([], term=2, vote=3, membership=members),
        },
    )
    group.elect(1)
    assert (group[1].state, group[1].term) == (FOLLOWER, 2)
    group.elect(1)
    assert (group[1].state, group[1].term) == (LEADER, 3)
    assert [group.terms(each) for each in group.nodes] == [[1, 3]] * 5


# -- what is not durable yet ---------------------------------------------------------------------------------------------


def test_a_candidates_own_vote_leaves_no_trace_before_it_is_durable():
    """A24, rules of durability: we count our own vote at once, and therefore send nothing before it is saved."""
    raft = replica()
    raft.step(Message(M.ELECTION, sender=1))
    ready = raft.ready()
    assert ready.messages == []
    assert routes(ready.messages_after_save) == [(M.REQUEST_VOTE, 2), (M.REQUEST_VOTE, 3)]
    raft.step(heartbeat(2, 1))
    raft.persisted(ready)
    assert standing(raft) == (FOLLOWER, 1, 1, 2)


def test_a_single_voter_leads_at_once_but_commits_only_what_is_durable():
    """Rules of elections: it wins within the same step."""
    raft = replica(voters=(1,), pre_vote=True)
    raft.step(Message(M.ELECTION, sender=1))
    assert standing(raft) == (LEADER, 1, 1, 1)
    ready = raft.ready()
    assert raft.log.committed == 0
    raft.persisted(ready)
    assert raft.log.committed == 1


def test_a_write_of_an_earlier_leadership_does_not_count_for_a_later_one():
    """A25: entry 1 of term 1 was replaced before it was durable, and that one is not durable either."""
    raft = replica()
    raft.step(Message(M.ELECTION, sender=1))
    first = raft.ready()
    raft.persisted(first)
    raft.step(vote(2, 1))
    old = raft.ready()
    raft.step(append(2, 2, terms=[2]))
    new = raft.ready()
    raft.step(Message(M.ELECTION, sender=1))
    raft.step(vote(3, 3))
    assert standing(raft) == (LEADER, 3, 1, 1)
    raft.persisted(old)
    assert raft.progress[1].match == 0
    raft.persisted(new)
    assert raft.progress[1].match == 1


# -- who may campaign ----------------------------------------------------------------------------------------------------


CAUSES = {
    "timeout": lambda raft: [raft.tick() for _ in range(3 * T)],
    "ELECTION": lambda raft: raft.step(Message(M.ELECTION, sender=1)),
    "TIMEOUT_NOW": lambda raft: raft.step(Message(M.TIMEOUT_NOW, sender=2, term=raft.term)),
}


@pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)
@pytest.mark.parametrize(
    ("voters", "promotable"),
    [({1}, True), ({1, 2, 3}, True), ((), False), ({2, 3}, False)],
    ids=["alone", "one of three", "no peer known", "others"],
)
def test_only_a_member_campaigns(voters, promotable, cause):
    """A27."""
    raft = replica(voters=voters, term=1)
    cause(raft)
    assert (raft.state is not FOLLOWER) is promotable


@pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)
def test_no_replica_campaigns_while_a_snapshot_waits_to_be_loaded(cause):
    """Rules of elections, INV18: until then the membership that counts is not in effect."""
    raft = replica(term=1)
    raft.step(install(2, 1, (7, 1)))
    cause(raft)
    assert raft.state is FOLLOWER
    drain(raft)
    cause(raft)
    assert raft.state is CANDIDATE


@pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)
@PRE_VOTE
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((ADD_4,), id="add"),
        pytest.param((Change(ChangeType.REMOVE, 3),), id="remove"),
        pytest.param((ADD_4, Change(ChangeType.ADD_VOTER, 5)), id="joint"),
    ],
)
def test_no_replica_campaigns_while_a_committed_change_waits_to_be_applied(cause, pre_vote, changes):
    """A26, BUG-M1: its old quorum need not meet the new one, so a term could have two leaders."""
    raft = replica(terms=[1, change_entry(1, *changes)], commit=2, pre_vote=pre_vote)
    cause(raft)
    assert standing(raft) == (FOLLOWER, 1, 0, 0)
    drain(raft)
    cause(raft)
    assert raft.state in (PRE_CANDIDATE, CANDIDATE)


@pytest.mark.parametrize(
    ("applied", "free"),
    [(0, False), (5, False), (6, False), (7, True), (10, True)],
    ids=str,
)
def test_unapplied_commands_keep_no_replica_from_campaigning(applied, free):
    """A34 by etcd's rule: of the entries up to the commit index 10, only the change at 7 counts."""
    entries = [change_entry(1, ADD_4) if index == 7 else 1 for index in range(1, 11)]
    raft = replica(terms=entries, commit=10, max_apply_bytes=1)
    while raft.log.applied < applied:
        ready = raft.ready()
        raft.persisted(ready)
        raft.applied(ready.committed[-1].index)
    raft.step(Message(M.ELECTION, sender=1))
    assert (raft.state is CANDIDATE) is free


def test_a_change_that_is_not_known_to_be_committed_does_not_block():
    """A26's other side: else an uncommitted change in the only up-to-date log could never be committed."""
    raft = replica(terms=[1, change_entry(1, ADD_4)], commit=1)
    campaign(raft)
    assert raft.state is CANDIDATE


# -- a new leader ---------------------------------------------------------------------------------------------------------


def test_a_new_leader_sends_an_empty_entry_of_its_term_to_all():
    """Rules of elections (thesis §6.4)."""
    raft = replica(terms=[1, 1], term=2, commit=2, state=CANDIDATE)
    raft.step(vote(2, 2))
    sent = of_type(drain(raft), M.REPLICATE)
    assert [(ask.to, ask.log_index, ask.log_term) for ask in sent] == [(2, 2, 1), (3, 2, 1)]
    for ask in sent:
        assert [(entry.index, entry.term, entry.kind, entry.payload) for entry in ask.entries] == [
            (3, 2, EntryKind.NO_OP, b"")
        ]


def test_a_new_leader_commits_only_with_an_entry_of_its_own_term():
    """A32 (thesis §3.6.2): its empty entry, once another holds it."""
    raft = replica(terms=[1], state=LEADER)
    raft.step(ack(2, 2, 1))
    assert (raft.log.committed, raft.has_committed_in_term) == (0, False)
    raft.step(ack(2, 2, 2))
    assert (raft.log.committed, raft.has_committed_in_term) == (2, True)


@pytest.mark.parametrize("inherited", [1, change_entry(1, ADD_4)], ids=["a command", "a change"])
def test_a_new_leader_logs_no_change_before_all_it_inherited_is_applied(inherited):
    """A33 by etcd's rule: all that is in the tail may be in effect elsewhere."""
    raft = replica(terms=[1, inherited], state=LEADER)
    another = ConfigChange((Change(ChangeType.ADD_OBSERVER, 9),)).encode()
    out = propose(raft, another, kind=EntryKind.CONFIG_CHANGE)
    assert [dropped.because for dropped in out.dropped] == [Refusal.CHANGE_PENDING]
    assert [entry.kind for entry in raft.log.entries(4, 5)] == [EntryKind.NO_OP]
    acknowledge_all(raft)
    assert propose(raft, another, kind=EntryKind.CONFIG_CHANGE).dropped == []


# -- priorities ------------------------------------------------------------------------------------------------------------


NEWEST, BEHIND = [1, 1], [1]


@pytest.mark.parametrize(
    ("logs", "priorities", "wins"),
    [
        pytest.param((NEWEST, BEHIND, BEHIND), (1, 3, 3), True, id="only its log is newest, low"),
        pytest.param((NEWEST, BEHIND, BEHIND), (3, 1, 1), True, id="only its log is newest, high"),
        pytest.param((NEWEST, NEWEST, NEWEST), (3, 1, 1), True, id="equal logs, highest"),
        pytest.param((NEWEST, NEWEST, NEWEST), (2, 2, 2), True, id="equal logs, equal priorities"),
        pytest.param(
            (BEHIND, BEHIND, NEWEST), (1, 1, 3), True, id="one log is newer, the other's owner equal"
        ),
        pytest.param((BEHIND, NEWEST, NEWEST), (3, 1, 1), False, id="its log is behind, high"),
        pytest.param((BEHIND, NEWEST, NEWEST), (1, 1, 1), False, id="its log is behind"),
        pytest.param((NEWEST, NEWEST, NEWEST), (1, 3, 3), False, id="equal logs, lowest"),
        pytest.param(
            (BEHIND, BEHIND, NEWEST), (1, 3, 1), False, id="one log is newer, the other's owner higher"
        ),
        pytest.param((NEWEST, NEWEST, NEWEST), (-2, -1, -1), False, id="negative priorities count, too"),
    ],
)
@PRE_VOTE
def test_among_equal_logs_the_higher_priority_is_elected(logs, priorities, wins, pre_vote):
    """Q1 (raft-rs)."""
    members = Membership((1, 2, 3))
    group = cluster(
        members,
        pre_vote=pre_vote,
        logs={number: disk(terms, membership=members) for number, terms in enumerate(logs, 1)},
    )
    for number, priority in enumerate(priorities, 1):
        group[number].priority = priority
    group.elect(1)
    assert group[1].state is (LEADER if wins else FOLLOWER)


# -- commit by vote ----------------------------------------------------------------------------------------------------------


@PRE_VOTE
def test_a_vote_request_tells_its_refuser_of_the_commit_that_lets_it_win(pre_vote):
    """Q3 (raft-rs), BUG-M7: 1 leads 1 to 4, removes itself, and dies with 3.

    Only 2 knows that. 4 has the longer log, so 2 cannot win; and 4, which counts 1 and 3 still, cannot either.
    """
    members = Membership((1, 2, 3, 4))
    removal = change_entry(1, Change(ChangeType.REMOVE, 1))
    group = cluster(
        members,
        pre_vote=pre_vote,
        logs={
            2: disk([1, removal], commit=2, membership=members),
            4: disk([1, removal, 1], commit=1, membership=members),
        },
    )
    group.crash(1)
    group.crash(3)
    group.deliver()
    assert group[2].membership.voters == {2, 3, 4}
    group.elect(4)
    assert group[4].state is not LEADER
    group.elect(2)
    assert group[2].state is not LEADER
    assert (group[4].log.committed, group[4].membership.voters) == (2, {2, 3, 4})
    group.elect(4)
    assert group[4].state is LEADER


@pytest.mark.parametrize("reject", [True, False], ids=["refusal", "grant"])
@pytest.mark.parametrize("state", [PRE_CANDIDATE, CANDIDATE], ids=lambda state: state.name)
def test_a_candidate_that_learns_of_an_unapplied_change_by_an_answer_steps_back(state, reject):
    """Rules of elections, commit by vote: it counts by a membership that may be out of date."""
    raft = replica(terms=[1, change_entry(1, ADD_4)], term=2, state=state)
    type_ = M.REQUEST_VOTE_RESP if state is CANDIDATE else M.REQUEST_PRE_VOTE_RESP
    term = 3 if state is PRE_CANDIDATE and not reject else 2
    raft.step(Message(type_, sender=2, term=term, reject=reject, commit=2, hint_high=1))
    assert (raft.state, raft.term, raft.leader_id, raft.log.committed) == (FOLLOWER, 2, 0, 2)


@PRE_VOTE
def test_a_grant_tells_of_the_end_of_a_joint_membership(pre_vote):
    """1 holds the entry that leaves it and does not know that it is committed: the old half's other voter, 2, is gone."""
    joint = Membership((1,), witnesses=(3,), outgoing=(1, 2), auto_leave=True)
    leave = Entry(term=1, kind=EntryKind.CONFIG_CHANGE, payload=ConfigChange().encode())
    group = cluster(
        joint,
        pre_vote=pre_vote,
        logs={
            1: disk([1, leave], commit=1, membership=joint),
            3: disk([1, leave], commit=2, membership=joint),
        },
    )
    group.crash(2)
    group.deliver()
    group.elect(1)
    assert group[1].state is not LEADER
    assert (group[1].log.committed, group[1].membership.joint) == (2, False)
    group.elect(1)
    assert group[1].state is LEADER


@pytest.mark.parametrize(
    ("setup", "last", "fields", "learnt"),
    [
        pytest.param({}, (1, 1), {"commit": 2, "hint_high": 1}, 2, id="refused, entry held"),
        pytest.param({}, (3, 1), {"commit": 2, "hint_high": 1}, 0, id="granted: a leader will tell"),
        pytest.param({}, (1, 1), {"commit": 2, "hint_high": 2}, 0, id="another entry is held there"),
        pytest.param({}, (1, 1), {"commit": 9, "hint_high": 1}, 0, id="beyond the log"),
        pytest.param({}, (1, 1), {"commit": 2, "hint_high": 0}, 0, id="no term"),
        pytest.param({"commit": 2}, (1, 1), {"commit": 1, "hint_high": 1}, 2, id="known already"),
        pytest.param(
            {"state": LEADER}, (1, 1), {"commit": 2, "hint_high": 1}, 0, id="a leader counts by itself"
        ),
    ],
)
def test_what_a_vote_request_teaches(setup, last, fields, learnt):
    """Rules of elections, commit by vote: the request side learns only when it refuses."""
    raft = replica(terms=[1, 1, 1], term=4, **setup)
    raft.step(vote_request(2, 4 if setup.get("state") else 5, *last, **fields))
    assert raft.log.committed == learnt


# -- clocks and switches ---------------------------------------------------------------------------------------------------------


def test_a_heartbeat_that_waited_through_a_stall_is_taken_before_the_tick():
    """BUG-E20, the core's half: a host hands over first what waits, and then late ticks as one (see the loop)."""
    raft = replica(term=1, leader=2, **FIXED)
    tick(raft, T - 1)
    raft.step(heartbeat(2, 1))
    assert of_type(tick(raft, T - 1), M.REQUEST_VOTE) == []
    assert raft.state is FOLLOWER


def test_check_quorum_can_be_switched_at_run_time():
    """Q7."""
    raft = replica(state=LEADER)
    tick(raft, 3 * T)
    assert raft.state is LEADER
    raft.check_quorum = True
    tick(raft, T)
    assert raft.state is FOLLOWER
    become_leader(raft)
    raft.check_quorum = False
    tick(raft, 3 * T)
    assert raft.state is LEADER


def test_two_replicas_with_the_same_random_source_live_the_same_life():
    """Rules of elections: the random source is passed in, so a simulation can be replayed."""
    lives = []
    for _ in range(2):
        raft = Raft(
            RaftConfig(replica_id=1, **DEFAULTS), disk(membership=Membership((1, 2, 3))), random=Random(7)
        )
        lives.append([ticks_until_campaign(raft) for _ in range(5)])
    assert lives[0] == lives[1]
    assert len(set(lives[0])) > 1
