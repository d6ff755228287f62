"""Asking whether an election could be won before starting one (thesis §9.6), so that no leader is disturbed in vain.

Facts B of docs/protocol.md, and the bugs BUG-E1 to BUG-E11 that bit other implementations. A follower is told to forget its
leader (B13) by a call, where etcd has a message.
"""

from random import Random

import pytest
from drakkar.handlers import (
    Membership,
    Message,
    MessageType,
    State,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    FIXED,
    T,
    campaign,
    cluster,
    disk,
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
SWITCHES = pytest.mark.parametrize("options", [{"pre_vote": True}, BOTH], ids=["pre-vote", "and CheckQuorum"])


def hup(group, replica_id):
    """Let one replica time out, in the others' leases or not."""
    group.step(replica_id, Message(M.ELECTION, sender=replica_id))


def states(group):
    return {each: (group[each].state, group[each].term) for each in group.nodes}


def assert_alive(group, timeouts=6):
    """V12: within so many election timeouts there is a leader, and what it takes is committed."""
    for _ in range(timeouts * 2 * T):
        group.tick()
        leader = group.leader
        if leader is not None:
            before = leader.log.committed
            group.propose(leader.id, b"alive")
            if leader.state is LEADER and leader.log.committed > before:
                return
    pytest.fail(f"no leader that commits: {[node.raft for node in group.nodes.values()]}")


# -- the asker --------------------------------------------------------------------------------------------------------


def test_a_pre_candidate_asks_about_the_next_term_and_stays_in_its_own():
    """Rules of elections (thesis §9.6): nothing that must be durable has changed."""
    raft = replica(terms=[4], term=5, vote=3, pre_vote=True)
    raft.step(Message(M.ELECTION, sender=1))
    ready = raft.ready()
    assert (ready.hard_state, ready.must_save) == (None, False)
    sent = ready.messages + ready.messages_after_save
    assert [(ask.type, ask.to, ask.term, ask.log_index, ask.log_term) for ask in sent] == [
        (M.REQUEST_PRE_VOTE, 2, 6, 1, 4),
        (M.REQUEST_PRE_VOTE, 3, 6, 1, 4),
    ]
    assert standing(raft) == (PRE_CANDIDATE, 5, 3, 0)


def test_encouraged_by_a_majority_it_starts_the_election():
    """Rules of elections."""
    raft = replica(term=5, state=PRE_CANDIDATE)
    raft.step(pre_vote(2, 6))
    assert standing(raft) == (CANDIDATE, 6, 1, 0)
    assert routes(drain(raft)) == [(M.REQUEST_VOTE, 2), (M.REQUEST_VOTE, 3)]


def test_refused_by_a_majority_it_is_a_follower_again():
    """Rules of elections: of the same term, so no replica was disturbed."""
    raft = replica(term=5, state=PRE_CANDIDATE)
    for voter in (2, 3):
        raft.step(pre_vote(voter, 5, reject=True))
    assert standing(raft) == (FOLLOWER, 5, 0, 0)


@pytest.mark.parametrize(
    ("state", "answer", "outcome"),
    [
        pytest.param(FOLLOWER, pre_vote(3, 11), (FOLLOWER, 10), id="a grant reaches a follower"),
        pytest.param(
            FOLLOWER, pre_vote(3, 20, reject=True), (FOLLOWER, 20), id="a refusal reaches a follower"
        ),
        pytest.param(PRE_CANDIDATE, pre_vote(3, 11), (PRE_CANDIDATE, 10), id="a grant"),
        pytest.param(
            PRE_CANDIDATE, pre_vote(3, 20, reject=True), (FOLLOWER, 20), id="a refusal by a newer term"
        ),
        pytest.param(CANDIDATE, pre_vote(3, 11), (CANDIDATE, 10), id="a grant reaches a candidate"),
        pytest.param(CANDIDATE, pre_vote(3, 10, reject=True), (CANDIDATE, 10), id="a refusal reaches one"),
    ],
)
def test_what_an_answer_to_a_pre_vote_does(state, answer, outcome):
    """B2: only a refusal carries a term that exists."""
    raft = replica(voters=range(1, 6), term=10, state=state, pre_vote=True)
    raft.step(answer)
    assert (raft.state, raft.term) == outcome


def test_grants_of_an_earlier_round_do_not_count_in_the_next():
    """BUG-E3: two of five in each of two rounds are no majority."""
    raft = replica(voters=range(1, 6), term=5, state=PRE_CANDIDATE)
    raft.step(pre_vote(2, 6))
    campaign(raft)
    raft.step(pre_vote(3, 6))
    assert raft.state is PRE_CANDIDATE
    raft.step(pre_vote(4, 6))
    assert raft.state is CANDIDATE


def test_a_late_grant_of_an_earlier_terms_round_does_not_count():
    """BUG-E7, rules of terms: the term that it names has been tried meanwhile."""
    raft = replica(voters=range(1, 6), term=6, state=CANDIDATE, pre_vote=True)
    campaign(raft)
    assert standing(raft) == (PRE_CANDIDATE, 6, 1, 0)
    for voter in (2, 3, 4, 5):
        raft.step(pre_vote(voter, 6))
    assert raft.state is PRE_CANDIDATE


def test_a_vote_does_not_count_as_a_pre_vote_nor_the_reverse():
    """Rules of the matrix: only the phase that asked counts the answer."""
    raft = replica(term=5, state=PRE_CANDIDATE)
    raft.step(Message(M.REQUEST_VOTE_RESP, sender=2, term=5))
    assert raft.state is PRE_CANDIDATE
    raft = replica(term=5, state=CANDIDATE, pre_vote=True)
    raft.step(pre_vote(2, 6))
    assert raft.state is CANDIDATE


def test_each_further_attempt_asks_first_again_without_losing_the_raised_term():
    """Rules of elections: a candidate that got no answers falls back to asking."""
    raft = replica(term=6, state=CANDIDATE, pre_vote=True)
    sent = tick(raft, 2 * T - 1)
    assert standing(raft) == (PRE_CANDIDATE, 6, 1, 0)
    assert {ask.term for ask in of_type(sent, M.REQUEST_PRE_VOTE)} == {7}


# -- the asked ----------------------------------------------------------------------------------------------------------


def test_a_pre_vote_is_granted_to_everybody_who_could_win():
    """B3: it promises nothing."""
    raft = replica(terms=[4], term=10)
    for asker in (2, 3):
        raft.step(pre_vote_request(asker, 11, 1, 4))
    assert [(answer.to, answer.term, answer.reject) for answer in drain(raft)] == [
        (2, 11, False),
        (3, 11, False),
    ]
    assert standing(raft) == (FOLLOWER, 10, 0, 0)


def test_a_pre_vote_of_an_older_term_is_told_the_newer_one():
    """B4 and BUG-E4: the asker adopts it, and its next attempt counts."""
    raft = replica(term=10, pre_vote=True)
    raft.step(pre_vote_request(2, 9, 5, 8))
    (answer,) = drain(raft)
    assert (answer.type, answer.term, answer.reject) == (M.REQUEST_PRE_VOTE_RESP, 10, True)
    assert raft.term == 10


def test_a_replica_that_does_not_ask_first_still_answers_those_who_do():
    """B5 as recommended: so that a shard can be switched over, one replica at a time."""
    raft = replica(terms=[4], term=10, pre_vote=False)
    raft.step(pre_vote_request(2, 11, 1, 4))
    assert [(answer.term, answer.reject) for answer in drain(raft)] == [(11, False)]


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(pre_vote_request(2, 9, 9, 9), id="older term"),
        pytest.param(pre_vote_request(2, 10, 9, 10), id="same term, longer log"),
        pytest.param(pre_vote_request(2, 11, 9, 10), id="next term, longer log"),
        pytest.param(pre_vote_request(2, 11), id="next term, empty log"),
        pytest.param(pre_vote_request(2, 99, 9, 10), id="much newer term"),
    ],
)
@pytest.mark.parametrize(
    "setup",
    [
        {"state": FOLLOWER, "vote": 3},
        {"state": FOLLOWER, "leader": 3},
        {"state": PRE_CANDIDATE},
        {"state": CANDIDATE},
        {"state": LEADER},
        {"voters": (2, 3, 4), "observers": (1,)},
        {"voters": (2, 3), "witnesses": (1,)},
    ],
    ids=["voted", "led", "pre-candidate", "candidate", "leader", "observer", "witness"],
)
def test_a_pre_vote_changes_nothing_at_the_asked(setup, ask):
    """INV16, BUG-E6: neither term nor vote, state, leader or log."""
    raft = replica(terms=[1, 2], term=10, **setup)
    before = standing(raft), raft.log.last_index, raft.log.committed, raft.votes
    raft.step(ask)
    ready = raft.ready()
    assert (ready.hard_state, list(ready.entries)) == (None, [])
    assert (standing(raft), raft.log.last_index, raft.log.committed, raft.votes) == before


def test_granting_pre_votes_does_not_keep_a_follower_from_its_own_election():
    """BUG-E9: a replica that asks for ever would stop all elections."""
    raft = replica(term=10, **FIXED)
    for _ in range(T - 1):
        raft.step(pre_vote_request(2, 11, 9, 9))
        tick(raft)
    assert ticks_until_campaign(raft) == 1


# -- the lease ----------------------------------------------------------------------------------------------------------------


def test_those_who_hear_their_leader_leave_a_pre_vote_unanswered():
    """B12, first half (thesis §4.2.3, §6.2)."""
    group = cluster(3, **BOTH)
    group.elect(1)
    hup(group, 3)
    assert of_type(group.seen, M.REQUEST_PRE_VOTE_RESP)[2:] == []
    assert states(group) == {1: (LEADER, 1), 2: (FOLLOWER, 1), 3: (PRE_CANDIDATE, 1)}


@pytest.mark.parametrize(
    ("setup", "silence"),
    [
        pytest.param({"leader": 2}, T, id="the leader is silent"),
        pytest.param({"state": PRE_CANDIDATE}, 0, id="it asks around itself"),
    ],
)
def test_those_who_do_not_hear_it_any_more_answer(setup, silence):
    """B12, second half."""
    raft = replica(term=5, **BOTH, **setup, min_election_ticks=2 * T, max_election_ticks=3 * T)
    tick(raft, silence)
    raft.step(pre_vote_request(3, 6, 9, 5))
    assert [(answer.to, answer.reject) for answer in drain(raft)] == [(3, False)]


@pytest.mark.parametrize(
    "role", [{}, {"voters": (1, 3), "observers": (2,)}, {"voters": (1, 3), "witnesses": (2,)}]
)
def test_a_replica_that_forgets_its_leader_votes_inside_its_lease(role):
    """B13, etcd's: an operator who knows that the leader is gone need not wait. A log that is behind is refused."""
    raft = replica(2, terms=[1, 1], leader=1, **BOTH, **role)
    assert hear(raft, pre_vote_request(3, 2, 2, 1)) == []
    raft.forget_leader()
    assert raft.leader_id == 0
    (behind,) = hear(raft, pre_vote_request(3, 2, 1, 1))
    (granted,) = hear(raft, pre_vote_request(3, 2, 2, 1))
    assert (behind.reject, granted.reject) == (True, False)
    (elected,) = hear(raft, vote_request(3, 2, 2, 1))
    assert (elected.reject, raft.vote) == (False, 3)


def test_the_leader_that_was_forgotten_is_known_again_by_its_next_heartbeat():
    raft = replica(2, term=1, leader=1, check_quorum=True)
    raft.forget_leader()
    hear(raft, heartbeat(1, 1))
    assert raft.leader_id == 1
    assert hear(raft, vote_request(3, 2)) == []


def test_a_shard_elects_another_while_one_of_them_still_hears_the_leader():
    """B13 as a story: 2 has just heard 1."""
    group = cluster(3, pre_vote=True, check_quorum=True)
    group.elect(1)
    group.tick()
    group[2].forget_leader()
    group.cut(1, 3)
    hup(group, 3)
    assert (group[3].state, group[3].term, group[2].vote) == (LEADER, 2, 3)


@pytest.mark.parametrize(
    ("setup", "leader"),
    [
        pytest.param({"state": LEADER}, 1, id="a leader"),
        pytest.param({"leader": 2, "read_mode": "lease", "check_quorum": True}, 2, id="leases of reads"),
    ],
)
def test_where_a_leader_cannot_be_forgotten(setup, leader):
    raft = replica(term=1, **setup)
    raft.forget_leader()
    assert raft.leader_id == leader


def test_a_pre_candidate_forgets_its_leader_and_so_does_not_defend_it():
    """B9 and BUG-E2: the leader is cut off, 3 times out, then 2 does; each order must end in a leader."""
    group = cluster(3, **BOTH)
    group.elect(1)
    group.isolate(1)
    hup(group, 3)
    assert (group[3].state, group[3].leader_id) == (PRE_CANDIDATE, 0)
    hup(group, 2)
    assert (group[2].state, group[3].state) == (LEADER, FOLLOWER)


def test_a_leader_that_steps_down_alone_finds_votes_as_soon_as_the_lease_ends():
    """BUG-E8: two of three are alive, and the follower still believes in the leader that asks."""
    group = cluster(3, **BOTH)
    group.elect(1)
    group.crash(3)
    group.crash(1)
    group.restart(1)
    assert group[1].leader_id == 0
    hup(group, 1)
    assert group.leader is None
    assert_alive(group)


# -- stories -------------------------------------------------------------------------------------------------------------------


def test_two_pre_candidates_that_cannot_hear_each_other_disturb_no_leader():
    """B1."""
    group = cluster(3, pre_vote=True)
    group.cut(1, 3)
    group.elect(1)
    group.elect(3)
    assert states(group) == {1: (LEADER, 1), 2: (FOLLOWER, 1), 3: (FOLLOWER, 1)}
    group.heal()
    group.elect(3)
    assert states(group) == {1: (LEADER, 1), 2: (FOLLOWER, 1), 3: (FOLLOWER, 1)}
    assert {each: (group.terms(each), group[each].log.committed) for each in group.nodes} == {
        1: ([1], 1),
        2: ([1], 1),
        3: ([], 0),
    }
    group.tick()
    assert group.terms(3) == [1]


def test_a_shorter_log_cannot_even_raise_the_term():
    """B6: without CheckQuorum no leader is protected by a lease, so a replica with all entries may still take over."""
    group = cluster(3, pre_vote=True)
    group.elect(1)
    group.propose(1, *[b"x"] * 10)
    group.isolate(3)
    group.propose(1, b"x")
    group.heal()
    assert [group[each].log.last_index for each in (1, 2, 3)] == [12, 12, 11]
    group.elect(3)
    refusals = of_type(group.seen, M.REQUEST_PRE_VOTE_RESP)[-2:]
    assert [(answer.sender, answer.reject, answer.term) for answer in refusals] == [
        (1, True, 1),
        (2, True, 1),
    ]
    assert states(group) == {1: (LEADER, 1), 2: (FOLLOWER, 1), 3: (FOLLOWER, 1)}
    group.elect(2)
    assert states(group) == {1: (FOLLOWER, 2), 2: (LEADER, 2), 3: (FOLLOWER, 2)}


def test_a_replica_that_was_away_does_not_depose_the_leader():
    """B7 (thesis §9.6)."""
    group = cluster(3, **BOTH)
    group.elect(2)
    group.elect(1)
    group.isolate(3)
    group.propose(1, b"a", b"b", b"c")
    group.heal()
    hup(group, 3)
    assert states(group) == {1: (LEADER, 2), 2: (FOLLOWER, 2), 3: (PRE_CANDIDATE, 2)}
    group.tick()
    assert states(group) == {1: (LEADER, 2), 2: (FOLLOWER, 2), 3: (FOLLOWER, 2)}
    assert group.terms(3) == group.terms(1)


def test_a_grant_carries_the_term_that_was_asked_for():
    """B8 and BUG-E1: 3 comes back with an old term, the leader is lost, and 1's round counts 3's answer.

    With its own, older term in it the answer would be thrown away as late, and no replica could ever win.
    """
    group = cluster(3, pre_vote=True)
    group.isolate(3)
    group.elect(1)
    group.elect(2)
    group.elect(1)
    group.elect(2)
    assert (group[2].state, group[1].term, group[3].term) == (LEADER, 4, 0)
    group.heal()
    group.crash(2)
    hup(group, 3)
    hup(group, 1)
    assert (group[1].state, group[1].term) == (LEADER, 5)
    assert group[3].term == 5


@SWITCHES
@pytest.mark.parametrize("order", [(1, 3), (3, 1)], ids=["longer log first", "shorter log first"])
def test_a_replica_of_a_low_term_and_one_of_a_short_log_elect_a_leader(order, options):
    """B8, BUG-E1 and BUG-E4, in both orders and with leases."""
    group = cluster(3, **options)
    group.elect(2)
    group.isolate(3)
    group.propose(2, b"x")
    for candidate in (1, 2, 1, 2):
        group.elect(candidate)
    group.heal()
    group.crash(2)
    for candidate in order:
        group.elect(candidate)
    assert_alive(group)


@SWITCHES
def test_a_replica_that_raised_its_term_before_pre_vote_was_switched_on_is_freed(options):
    """B10 and BUG-E4: it is at term 4 with a short log; 1 leads 1 and 2 in term 2.

    It can neither win nor, by its higher term, listen: it tells the leader its term, which gives way to an election.
    """
    members = Membership((1, 2, 3))
    logs = {
        1: disk([1, 1], membership=members),
        2: disk([1, 1], membership=members),
        3: disk([1], term=4, membership=members),
    }
    group = cluster(members, logs=logs, **options)
    group.isolate(3)
    group.elect(1)
    group.heal()
    for _ in range(2):
        hup(group, 3)
        assert states(group) == {1: (LEADER, 2), 2: (FOLLOWER, 2), 3: (PRE_CANDIDATE, 4)}
    group.step(3, heartbeat(1, 2))
    assert (group[1].state, group[1].term) == (FOLLOWER, 4)
    assert_alive(group)


@SWITCHES
def test_candidates_of_one_majority_that_is_barely_alive_do_not_block_each_other(options):
    """BUG-E5: seven voters, three stopped, so that all four others must agree. The shorter log is candidate already.

    First it tells the longer one its term, by a refusal; then it has to encourage it, candidate or not.
    """
    members = Membership(range(1, 8))
    logs = {each: disk([1, 1] if each == 2 else [1], membership=members) for each in members.voters}
    group = cluster(members, logs=logs, **options)
    group.isolate(2)
    group.auto_deliver = False
    hup(group, 1)
    while group[1].state is not CANDIDATE:
        group.deliver_one()
    for dead in (5, 6, 7):
        group.crash(dead)
    group.deliver()
    assert {each: group[each].term for each in (1, 2, 3, 4)} == {1: 2, 2: 1, 3: 2, 4: 2}
    group.auto_deliver = True
    group.heal()
    hup(group, 2)
    assert (group[1].state, group[2].state, group[2].term) == (CANDIDATE, FOLLOWER, 2)
    hup(group, 2)
    assert (group[2].state, group[2].term) == (LEADER, 3)


@pytest.mark.parametrize("mixed", [(1,), (1, 2)], ids=["one asks first", "two ask first"])
def test_a_shard_whose_replicas_are_switched_over_one_by_one_stays_alive(mixed):
    """BUG-E4: a replica of the old kind comes back from a partition with a high term."""
    group = cluster(3)
    for each in mixed:
        group.add(each, pre_vote=True)
    group.elect(1)
    group.isolate(3)
    group.propose(1, b"x")
    group.tick(8 * T, 3)
    assert group[3].term > group[1].term
    group.heal()
    assert_alive(group)


@pytest.mark.parametrize("seed", range(6))
def test_after_any_partitions_with_pre_vote_and_check_quorum_there_is_a_leader_again(seed):
    """BUG-E11: clusters in production never elected again. Random cuts, also one-way, and restarts."""
    random = Random(seed)
    group = cluster(5, seed=seed, **BOTH)
    for _ in range(12):
        group.heal()
        for _ in range(random.randrange(1, 9)):
            one, other = random.sample(range(1, 6), 2)
            random.choice((group.cut, group.cut_one_way))(one, other)
        if random.random() < 0.3:
            group.restart(random.randrange(1, 6))
        group.tick(random.randrange(2 * T))
    group.heal()
    assert_alive(group)


def test_a_plain_vote_request_of_the_leaders_lease_is_no_pre_vote():
    """Rules of terms: with pre-vote alone, a real request of a newer term deposes; the lease is CheckQuorum's."""
    raft = replica(term=5, leader=2, pre_vote=True)
    raft.step(vote_request(3, 6, 9, 5))
    assert (raft.term, raft.vote) == (6, 3)
