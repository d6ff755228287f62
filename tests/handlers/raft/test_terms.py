"""Whose term is right is settled before any handler runs (thesis §3.3), with the exceptions of §4.2.3 and §9.6.

The tables follow the rules of terms in docs/protocol.md, rule by rule; `c10` is dragonboat's own table.
"""

import itertools

import pytest
from drakkar.handlers import (
    Entry,
    Message,
    MessageType,
    Never,
    Snapshot,
    State,
    raft_handlers,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    FIXED,
    T,
    ack,
    append,
    heartbeat,
    heartbeat_answer,
    install,
    pre_vote,
    pre_vote_request,
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

ROLES = [FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER, State.OBSERVER, State.WITNESS]
NAMED = {"ids": lambda value: getattr(value, "name", None)}


def in_role(role, *, term=10, **options):
    """A replica of any role; the resting ones know leader 2."""
    resting = {"leader": 2, "term": term, **options}
    if role is State.OBSERVER:
        return replica(1, voters=(2, 3, 4), observers=(1,), **resting)
    if role is State.WITNESS:
        return replica(1, voters=(2, 3), witnesses=(1,), **resting)
    if role is FOLLOWER:
        return replica(1, **resting)
    return replica(1, state=role, term=term, **options)


def one_of_each(**options):
    return [in_role(role, **options) for role in ROLES]


LEADER_TYPES = [
    pytest.param(heartbeat, id="HEARTBEAT"),
    pytest.param(append, id="REPLICATE"),
    pytest.param(install, id="INSTALL_SNAPSHOT"),
]

# -- a newer term ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER], **NAMED)
@pytest.mark.parametrize("message", LEADER_TYPES)
def test_a_leader_of_a_newer_term_is_followed(role, message):
    """Rule 7 and A2."""
    raft = in_role(role)
    raft.step(message(3, 11))
    assert standing(raft) == (FOLLOWER, 11, 0, 3)


@pytest.mark.parametrize("role", [State.OBSERVER, State.WITNESS], **NAMED)
@pytest.mark.parametrize("message", LEADER_TYPES[:2])
def test_an_observer_or_witness_stays_what_it_is_in_a_newer_term(role, message):
    """Rule 7: only the term and the leader change."""
    raft = in_role(role)
    raft.step(message(3, 11))
    assert standing(raft) == (role, 11, 0, 3)


@pytest.mark.parametrize("role", ROLES, **NAMED)
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(ack(3, 20, 0), id="REPLICATE_RESP"),
        pytest.param(heartbeat_answer(3, 20), id="HEARTBEAT_RESP"),
        pytest.param(vote(3, 20), id="REQUEST_VOTE_RESP"),
        pytest.param(pre_vote(3, 20, reject=True), id="REQUEST_PRE_VOTE_RESP refused"),
        pytest.param(Message(M.NO_OP, sender=3, term=20), id="NO_OP"),
        pytest.param(vote_request(3, 20, 99, 19, commit=0), id="REQUEST_VOTE"),
    ],
)
def test_any_other_message_of_a_newer_term_makes_a_follower_without_a_leader(role, message):
    """Rules 6 and 7. What an answer says counts for nothing: it meets a cell that is empty, and stays uncounted."""
    raft = in_role(role)
    raft.step(message)
    resting = role if role in (State.OBSERVER, State.WITNESS) else FOLLOWER
    granted = 3 if message.type is M.REQUEST_VOTE else 0
    assert standing(raft) == (resting, 20, granted, 0)
    assert raft.faults == {}


@pytest.mark.parametrize("role", ROLES, **NAMED)
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(pre_vote_request(3, 11, 99, 11), id="request, longer log"),
        pytest.param(pre_vote_request(3, 20), id="request, empty log"),
        pytest.param(pre_vote(3, 20), id="grant of a term without a request"),
    ],
)
def test_a_term_that_was_only_asked_about_is_not_adopted(role, message):
    """Rules 4 and 5 (thesis §9.6)."""
    raft = in_role(role)
    before = standing(raft)
    raft.step(message)
    assert standing(raft) == before


@pytest.mark.parametrize(
    ("check_quorum", "term", "message", "leader", "sent"),
    [
        pytest.param(False, 20, append, 3, [M.REPLICATE_RESP], id="off 20 REPLICATE"),
        pytest.param(False, 20, ack, 0, [], id="off 20 REPLICATE_RESP"),
        pytest.param(False, 10, append, 3, [M.REPLICATE_RESP], id="off 10 REPLICATE"),
        pytest.param(False, 10, ack, 2, [], id="off 10 REPLICATE_RESP"),
        pytest.param(True, 5, append, 2, [M.NO_OP], id="on 5 REPLICATE"),
        pytest.param(True, 5, ack, 2, [], id="on 5 REPLICATE_RESP"),
        pytest.param(False, 5, append, 2, [], id="off 5 REPLICATE"),
        pytest.param(False, 5, ack, 2, [], id="off 5 REPLICATE_RESP"),
    ],
)
def test_what_a_follower_of_term_10_makes_of_another_replicas_term(check_quorum, term, message, leader, sent):
    """C10. In the third row the handler runs, and it follows the leader of the term."""
    raft = replica(term=10, leader=2, check_quorum=check_quorum)
    raft.step(message(3, term, 0) if message is ack else message(3, term))
    assert [answer.type for answer in drain(raft)] == sent
    assert (raft.leader_id, raft.term) == (leader, max(10, term))


# -- an older term --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "told"), [({}, 0), ({"check_quorum": True}, 1), ({"pre_vote": True}, 1)])
@pytest.mark.parametrize("message", LEADER_TYPES)
def test_a_leader_of_an_older_term_is_told_only_where_votes_may_be_ignored(options, told, message):
    """Rules 9 and 10: without CheckQuorum and pre-vote the next REQUEST_VOTE tells it anyway, of any sender."""
    for raft in one_of_each(**options):
        before = standing(raft), raft.log.last_index
        raft.step(message(3, 9))
        # A pre-candidate is there only because pre-vote is on.
        always = raft.state in (PRE_CANDIDATE, State.OBSERVER, State.WITNESS)
        expected = [(M.NO_OP, 3, 10)] * (told or always)
        assert [(answer.type, answer.to, answer.term) for answer in drain(raft)] == expected
        assert (standing(raft), raft.log.last_index) == before


@pytest.mark.parametrize("options", [{}, {"check_quorum": True, "pre_vote": True}], ids=["off", "on"])
def test_a_candidate_of_an_older_term_hears_of_the_newer_one_where_no_vote_request_would_tell_it(options):
    """Rule 8a: else a candidate that is not known as a member, or only asks one that cannot campaign, tries for ever."""
    for raft, candidate in itertools.product(one_of_each(**options), (3, 8)):
        before = standing(raft), raft.log.last_index
        raft.step(vote_request(candidate, 9, 99, 9))
        told = candidate == 8 or raft.state in (State.OBSERVER, State.WITNESS)
        answers = [(answer.type, answer.to, answer.term, answer.reject) for answer in drain(raft)]
        assert answers == [(M.REQUEST_VOTE_RESP, candidate, 10, True)] * told
        assert (standing(raft), raft.log.last_index) == before


@pytest.mark.parametrize("options", [{}, {"check_quorum": True, "pre_vote": True}], ids=["off", "on"])
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(vote(3, 9), id="REQUEST_VOTE_RESP"),
        pytest.param(vote(3, 9, reject=True), id="REQUEST_VOTE_RESP refused"),
        pytest.param(pre_vote(3, 9), id="REQUEST_PRE_VOTE_RESP"),
        pytest.param(pre_vote(3, 9, reject=True), id="REQUEST_PRE_VOTE_RESP refused"),
        pytest.param(ack(3, 9, 1), id="REPLICATE_RESP"),
        pytest.param(heartbeat_answer(3, 9), id="HEARTBEAT_RESP"),
        pytest.param(Message(M.TIMEOUT_NOW, sender=3, term=9), id="TIMEOUT_NOW"),
        pytest.param(Message(M.READ_INDEX_RESP, sender=3, term=9, log_index=1, hint=5), id="READ_INDEX_RESP"),
        pytest.param(Message(M.RATE_LIMIT, sender=3, term=9, hint=500), id="RATE_LIMIT"),
        pytest.param(
            Message(M.PROPOSE, sender=3, term=9, entries=(Entry(payload=b"x"),)), id="PROPOSE with a term"
        ),
        pytest.param(Message(M.READ_INDEX, sender=3, term=9, hint=5), id="READ_INDEX with a term"),
        pytest.param(Message(M.LEADER_TRANSFER, sender=3, term=9, hint=3), id="LEADER_TRANSFER with a term"),
    ],
)
def test_all_else_of_an_older_term_is_ignored_without_an_answer(message, options):
    """Rule 12, in every state."""
    for raft in one_of_each(**options):
        before = standing(raft), raft.log.last_index, raft.match_of(3)
        raft.step(message)
        out = drain(raft)
        assert (out, out.reads, out.dropped) == ([], [], [])
        assert (standing(raft), raft.log.last_index, raft.match_of(3)) == before


@pytest.mark.parametrize("role", ROLES, **NAMED)
def test_no_handler_runs_for_a_leader_of_an_older_term(role):
    """A2, seen from a table of one's own."""
    table, called = raft_handlers(), []

    @table.wrap(M.REPLICATE, *(state for state in State if state is not LEADER))
    def note(raft, message, inner):
        called.append(message.term)
        inner(raft, message)

    raft = in_role(role, handlers=table)
    raft.step(append(3, 9, terms=[9]))
    assert called == []
    raft.step(append(3, 11, terms=[11]))
    assert called == [11]


# -- the lease ----------------------------------------------------------------------------------------------------


REQUESTS = [
    pytest.param(vote_request, id="REQUEST_VOTE"),
    pytest.param(pre_vote_request, id="REQUEST_PRE_VOTE"),
]


@pytest.mark.parametrize("role", [FOLLOWER, LEADER, State.OBSERVER, State.WITNESS], **NAMED)
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_replica_that_hears_a_leader_neither_answers_a_campaign_nor_adopts_its_term(role, request_):
    """Rule 3, C7 (thesis §4.2.3). A leader is its own known leader, so it is protected as well."""
    raft = in_role(role, check_quorum=True)
    before = standing(raft)
    raft.step(request_(3, 11, 99, 11))
    assert drain(raft) == []
    assert standing(raft) == before


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    ("what", "silent_ticks", "options"),
    [
        pytest.param(
            "lease over", T, {"min_election_ticks": 2 * T, "max_election_ticks": 3 * T}, id="T, not RT"
        ),
        pytest.param("no lease", 0, {"check_quorum": False}, id="CheckQuorum off"),
        pytest.param("no leader", 0, {"leader": 0}, id="no leader known"),
    ],
)
def test_a_campaign_is_answered_where_no_lease_stands_against_it(request_, what, silent_ticks, options):
    """Rule 3: the lease is the fixed timeout, and needs CheckQuorum and a leader."""
    raft = replica(**{"term": 10, "leader": 2, "check_quorum": True, **options})
    tick(raft, silent_ticks)
    raft.step(request_(3, 11, 99, 10))
    (answer,) = drain(raft)
    assert (answer.to, answer.reject, answer.term) == (3, False, 11)


def test_the_lease_holds_until_the_last_tick_before_the_election_timeout():
    """Rule 3: a counter below T."""
    raft = replica(term=10, leader=2, check_quorum=True, min_election_ticks=T, max_election_ticks=2 * T)
    tick(raft, T - 1)
    raft.step(vote_request(3, 11, 99, 10))
    assert drain(raft) == []


@pytest.mark.parametrize(
    ("marked", "answers"),
    [
        pytest.param({"hint": 3}, [(M.REQUEST_VOTE_RESP, 3)], id="the leader asked for it"),
        pytest.param({"hint": 4}, [], id="a mark of another replica"),
        pytest.param({}, [], id="no mark"),
    ],
)
@pytest.mark.parametrize("role", [FOLLOWER, LEADER], **NAMED)
def test_a_transfer_overrides_the_lease(role, marked, answers):
    """Rule 3's exception (thesis §3.10): the mark is the candidate's own id."""
    raft = in_role(role, check_quorum=True)
    raft.step(vote_request(3, 11, 99, 10, **marked))
    assert routes(drain(raft)) == answers


def test_a_mark_of_transfer_opens_no_lease_to_a_pre_vote():
    """Rule 3: a transfer skips pre-votes, so none of them can be one."""
    raft = replica(term=10, leader=2, check_quorum=True)
    raft.step(pre_vote_request(3, 11, 99, 10, hint=3))
    assert drain(raft) == []


# -- timers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "left"),
    [
        pytest.param(vote_request(3, 3), 1, id="a refused REQUEST_VOTE keeps it"),
        pytest.param(vote_request(3, 3, 9, 2), T, id="a granted REQUEST_VOTE resets it"),
        pytest.param(append(3, 5), T, id="REPLICATE resets it"),
        pytest.param(heartbeat(3, 5), T, id="HEARTBEAT resets it"),
        pytest.param(Message(M.NO_OP, sender=3, term=5), T, id="NO_OP resets it"),
    ],
)
def test_what_the_adoption_of_a_newer_term_does_to_the_election_timer(message, left):
    """Rule 7a and A28: a request alone does not put off our own election."""
    raft = replica(terms=[2], leader=2, **FIXED)
    tick(raft, T - 1)
    raft.step(message)
    assert ticks_until_campaign(raft) == left


def test_a_refused_request_of_a_newer_term_keeps_the_timeout_that_was_drawn():
    """Rule 7a: a new draw, at each request, would favour long timeouts."""
    for seed in range(20):
        undisturbed, asked = (replica(terms=[2], leader=2, seed=seed) for _ in range(2))
        tick(asked, T // 2)
        asked.step(vote_request(3, 3))
        assert T // 2 + ticks_until_campaign(asked) == ticks_until_campaign(undisturbed)


# -- messages without a term, and messages sent --------------------------------------------------------------------------


NEED_A_TERM = [
    M.REPLICATE,
    M.REPLICATE_RESP,
    M.REQUEST_VOTE,
    M.REQUEST_VOTE_RESP,
    M.INSTALL_SNAPSHOT,
    M.HEARTBEAT,
    M.HEARTBEAT_RESP,
    M.READ_INDEX_RESP,
    M.TIMEOUT_NOW,
    M.RATE_LIMIT,
    M.REQUEST_PRE_VOTE,
    M.REQUEST_PRE_VOTE_RESP,
]


@pytest.mark.parametrize("type_", NEED_A_TERM, ids=str)
def test_a_message_that_lacks_the_term_it_must_have_is_refused(type_):
    """Rule 2, rules of message types: only requests and a host's own messages come without a term."""
    for raft in one_of_each():
        before = standing(raft), raft.log.last_index, raft.log.committed
        raft.step(Message(type_, sender=3, commit=1, snapshot=Snapshot(5, 5)))
        out = drain(raft)
        assert (out, out.reads) == ([], [])
        assert (standing(raft), raft.log.last_index, raft.log.committed) == before
        assert raft.faults == {"without a term": 1}


@pytest.mark.parametrize(
    ("asked", "answer", "term"),
    [
        pytest.param(vote_request(2, 12, 9, 9), M.REQUEST_VOTE_RESP, 12, id="vote, granted"),
        pytest.param(vote_request(2, 12), M.REQUEST_VOTE_RESP, 12, id="vote, refused"),
        pytest.param(
            pre_vote_request(2, 12, 9, 9), M.REQUEST_PRE_VOTE_RESP, 12, id="pre-vote, granted: as asked"
        ),
        pytest.param(pre_vote_request(2, 12), M.REQUEST_PRE_VOTE_RESP, 10, id="pre-vote, refused: our own"),
        pytest.param(
            pre_vote_request(2, 9, 9, 9), M.REQUEST_PRE_VOTE_RESP, 10, id="pre-vote of an older term"
        ),
        pytest.param(append(2, 10), M.REPLICATE_RESP, 10, id="REPLICATE"),
        pytest.param(heartbeat(2, 10), M.HEARTBEAT_RESP, 10, id="HEARTBEAT"),
    ],
)
def test_the_term_that_an_answer_carries(asked, answer, term):
    """Rules of message types: which carry what term."""
    raft = replica(terms=[8], term=10)
    raft.step(asked)
    assert [(sent.type, sent.to, sent.term) for sent in drain(raft)] == [(answer, 2, term)]


@pytest.mark.parametrize("type_", [M.PROPOSE, M.READ_INDEX, M.LEADER_TRANSFER], ids=str)
def test_a_request_is_sent_on_without_a_term(type_):
    """I11, C12 and BUG-T4: with a term of its own it would raise the leader's, or be dropped as old."""
    raft = replica(term=10, leader=2)
    raft.step(Message(type_, sender=1, hint=3, entries=(Entry(payload=b"x"),)))
    assert [(sent.type, sent.to, sent.term) for sent in drain(raft)] == [(type_, 2, 0)]


def test_all_that_a_leader_sends_by_itself_carries_its_term():
    """C12."""
    raft = replica(state=LEADER, term=4)
    sent = tick(raft, T)
    assert {message.type for message in sent} >= {M.HEARTBEAT}
    assert {message.term for message in sent} == {4}


# -- reaching the table ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER], **NAMED)
def test_an_acknowledgement_of_a_newer_term_reaches_an_empty_cell(role):
    """Rules of terms: the payload of an answer to a stale leader is not looked at any more."""
    raft = in_role(role)
    assert isinstance(raft.handlers[FOLLOWER][M.REPLICATE_RESP], Never)
    raft.step(ack(2, 11, 1))
    assert raft.tally.impossible == {(FOLLOWER, M.REPLICATE_RESP): 1}
    assert raft.log.committed == 0


def test_a_message_for_another_replica_is_refused():
    """The sender's idea of who is where may be out of date, so a wrong replica must not answer."""
    raft = replica(term=1)
    raft.step(vote_request(2, 5, 9, 4, to=3))
    assert drain(raft) == []
    assert raft.term == 1
    assert raft.faults == {"addressed to another replica": 1}


@pytest.mark.parametrize(
    "answer",
    [
        vote(9, 1),
        pre_vote(9, 2),
        ack(9, 1, 1),
        heartbeat_answer(9, 1),
        Message(M.LEADER_TRANSFER, sender=9, hint=2),
        Message(M.RATE_LIMIT, sender=9, term=1, hint=500),
        Message(M.UNREACHABLE, sender=9),
        Message(M.SNAPSHOT_STATUS, sender=9),
    ],
    ids=lambda message: message.type.name,
)
@pytest.mark.parametrize("role", [PRE_CANDIDATE, CANDIDATE, LEADER], **NAMED)
def test_answers_of_non_members_count_for_nothing(role, answer):
    """Rules of message types, answers and reports. REQUEST_PRE_VOTE_RESP is among them, which dragonboat forgets."""
    raft = in_role(role, term=1)
    before = standing(raft)
    raft.step(answer)
    assert drain(raft) == []
    assert standing(raft) == before
    assert raft.faults == {"answer from a non-member": 1}


@pytest.mark.parametrize("sender", [0, 1], ids=["unnamed", "named"])
def test_a_host_may_ask_its_own_replica_for_a_transfer_with_any_membership(sender):
    """Rules of message types: members are asked for, so that non-members cannot; a host is none."""
    raft = replica(1, voters=(2, 3), term=4, leader=2)
    raft.step(Message(M.LEADER_TRANSFER, sender=sender, hint=3))
    assert routes(drain(raft)) == [(M.LEADER_TRANSFER, 2)]


@pytest.mark.parametrize("kind", [M.PROPOSE, M.READ_INDEX, M.QUIESCE, M.PROPOSE_REFUSED], ids=str)
def test_a_type_without_a_term_raises_none(kind):
    """A peer that gives it one all the same must not depose a leader by it."""
    raft = replica(term=3, state=State.LEADER)
    raft.step(Message(kind, sender=2, term=99))
    assert (raft.state, raft.term) == (State.LEADER, 3)
