"""Observers receive the log and count for nothing (thesis §4.2.1); witnesses vote and count, but keep no commands.

Facts N1 to N5 of docs/protocol.md, and the bug BUG-E14 that bit other implementations.
"""

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    ConfigError,
    EntryKind,
    Membership,
    MemoryLog,
    Message,
    MessageType,
    ProtocolViolation,
    State,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    T,
    ack,
    append,
    campaign,
    cluster,
    heartbeat,
    of_type,
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
FOLLOWER, LEADER, OBSERVER, WITNESS = State.FOLLOWER, State.LEADER, State.OBSERVER, State.WITNESS

ROLES = pytest.mark.parametrize("role", [OBSERVER, WITNESS], ids=lambda role: role.name)


def onlooker(role, **options):
    """Replica 1 in this role, beside the voters 2 and 3."""
    members = {"observers": (1,)} if role is OBSERVER else {"witnesses": (1,)}
    return replica(voters=(2, 3), **members, **{"term": 1, **options})


# -- never campaigning ----------------------------------------------------------------------------------------------


@ROLES
@pytest.mark.parametrize("options", [{}, {"pre_vote": True, "check_quorum": True}], ids=["plain", "pre-vote"])
@pytest.mark.parametrize(
    "push",
    [
        pytest.param(lambda raft: tick(raft, 4 * T), id="no leader for long"),
        pytest.param(campaign, id="ELECTION"),
        pytest.param(lambda raft: raft.step(Message(M.TIMEOUT_NOW, sender=2, term=1)), id="TIMEOUT_NOW"),
        pytest.param(lambda raft: raft.step(vote(2, 1)), id="a vote"),
    ],
)
def test_onlookers_never_campaign(role, push, options):
    """N1, BUG-E14, INV17: not even when a leader asks them to."""
    raft = onlooker(role, **options)
    push(raft)
    assert drain(raft) == []
    assert standing(raft) == (role, 1, 0, 0)


def test_a_shard_without_its_voters_elects_no_leader():
    """BUG-E14: neither observers nor witnesses lead, however many they are."""
    group = cluster(Membership((1,), observers=(2, 3), witnesses=(4, 5)), pre_vote=True, check_quorum=True)
    group.elect(1)
    group.crash(1)
    group.tick(6 * T)
    assert {each: (group[each].state, group[each].term) for each in (2, 3, 4, 5)} == {
        2: (OBSERVER, 1),
        3: (OBSERVER, 1),
        4: (WITNESS, 1),
        5: (WITNESS, 1),
    }


# -- voting -----------------------------------------------------------------------------------------------------------


@ROLES
@pytest.mark.parametrize("ask", [vote_request, pre_vote_request], ids=["vote", "pre-vote"])
def test_onlookers_answer_requests_for_votes_like_anyone(role, ask):
    """N2, N5, BUG-E14: an observer may be a voter already without knowing it, and its silence would block."""
    raft = onlooker(role, terms=[1, 1])
    raft.step(ask(2, 2, 11, 1))
    raft.step(ask(3, 2, 1, 1))
    assert [(answer.to, answer.reject) for answer in drain(raft)] == [(2, False), (3, True)]
    voted = ask is vote_request
    assert standing(raft) == (role, 2 if voted else 1, 2 if voted else 0, 0)


@ROLES
def test_an_onlookers_vote_is_durable_before_it_leaves(role):
    """Rules of durability: it counts, or may count, like any other."""
    raft = onlooker(role)
    raft.step(vote_request(2, 2, 11, 1))
    ready = raft.ready()
    assert (ready.hard_state.vote, ready.messages, routes(ready.messages_after_save)) == (
        2,
        [],
        [(M.REQUEST_VOTE_RESP, 2)],
    )


def test_a_witness_decides_an_election_and_an_observer_does_not():
    """N5 (thesis §11.7.2)."""
    for members, state in (
        (Membership((1, 2), witnesses=(3,)), LEADER),
        (Membership((1, 2), observers=(3,)), State.CANDIDATE),
    ):
        group = cluster(members)
        group.crash(2)
        group.elect(1)
        assert group[1].state is state


def test_a_witness_lets_no_one_win_without_the_newest_entry():
    """N5: it keeps no commands, yet it knows that there are some, and of which term (thesis §11.7.2)."""
    group = cluster(Membership((1, 2), witnesses=(3,)))
    group.elect(1)
    group.crash(2)
    group.propose(1, b"x")
    assert group.applied(1) == [b"x"], "committed by 1 and the witness"
    group.crash(1)
    group.restart(2)
    group.elect(2)
    assert group[2].state is not LEADER
    group.restart(1)
    group.elect(1)
    group.tick()
    assert group.applied(2) == [b"x"]


def test_candidates_ask_witnesses_and_no_observers():
    """Rules of elections."""
    raft = replica(voters=(1, 2), observers=(3,), witnesses=(4,))
    assert routes(campaign(raft)) == [(M.REQUEST_VOTE, 2), (M.REQUEST_VOTE, 4)]


# -- following ------------------------------------------------------------------------------------------------------------


def test_an_observer_receives_all_that_is_committed():
    """N3: a single voter commits without it."""
    group = cluster(Membership((1,), observers=(2,)))
    group.elect(1)
    group.cut(1, 2)
    group.propose(1, b"x")
    assert (group[1].log.committed, group[2].log.committed) == (2, 1)
    group.heal()
    group.tick(2)
    assert (group[1].log.committed, group[2].log.committed) == (2, 2)
    assert (group[1].progress[2].match, group.applied(2)) == (2, [b"x"])


@ROLES
@pytest.mark.parametrize("message", [heartbeat, append], ids=["HEARTBEAT", "REPLICATE"])
def test_onlookers_follow_a_leader_and_stay_what_they_are(role, message):
    """Rules of the matrix."""
    raft = onlooker(role)
    raft.step(message(2, 4))
    assert standing(raft) == (role, 4, 0, 2)
    assert len(drain(raft)) == 1


# -- changing the role ----------------------------------------------------------------------------------------------------


def test_a_promoted_observer_campaigns():
    """N4: at the same term, and it still knows its leader."""
    raft = onlooker(OBSERVER, leader=2)
    raft.step(Message(M.CONFIG_CHANGE_EVENT, hint=1, hint_high=ChangeType.ADD_VOTER))
    assert standing(raft) == (FOLLOWER, 1, 0, 2)
    assert ticks_until_campaign(raft) > 0
    assert raft.state is State.CANDIDATE


def test_an_observer_is_promoted_and_elected():
    """N4 as a story."""
    group = cluster(Membership((1, 2), observers=(3,)))
    group.elect(1)
    promotion = ConfigChange((Change(ChangeType.ADD_VOTER, 3),)).encode()
    group.propose(1, promotion, kind=EntryKind.CONFIG_CHANGE)
    group.tick(2)
    assert (group[3].state, group[3].membership.voters) == (FOLLOWER, {1, 2, 3})
    group.crash(1)
    group.elect(3)
    assert group[3].state is LEADER


def test_a_replica_that_does_not_know_of_its_promotion_votes_for_the_one_who_does():
    """K11, BUG-E14: 3 is a voter, and has not received the entry that says so; 1 is down."""
    group = cluster(Membership((1, 2), observers=(3,)))
    group.elect(1)
    group.isolate(3)
    group.propose(1, ConfigChange((Change(ChangeType.ADD_VOTER, 3),)).encode(), kind=EntryKind.CONFIG_CHANGE)
    group.tick()
    group.crash(1)
    group.heal()
    assert (group[3].state, group[2].membership.voters) == (OBSERVER, {1, 2, 3})
    group.elect(2)
    assert (group[2].state, group[3].state) == (LEADER, FOLLOWER)
    assert group[2].log.committed == group[2].log.last_index


@pytest.mark.parametrize("role", [ChangeType.ADD_VOTER, ChangeType.ADD_OBSERVER], ids=["voter", "observer"])
def test_a_witness_stays_one(role):
    """N6: it holds no commands, so it could neither lead nor serve reads; this replica must stop."""
    raft = onlooker(WITNESS)
    with pytest.raises(ProtocolViolation, match=r"replica 1 cannot become \w+ from WITNESS"):
        raft.step(Message(M.CONFIG_CHANGE_EVENT, hint=1, hint_high=role))


def test_onlookers_receive_no_requests_that_they_could_not_answer():
    """Rules of elections: no candidate asks an observer for a vote, so nothing that it does delays an election."""
    group = cluster(Membership((1, 2, 3), observers=(4,)))
    group.crash(4)
    group.elect(1)
    assert group[1].state is LEADER
    assert {message.to for message in of_type(group.lost, M.REQUEST_VOTE, M.REQUEST_PRE_VOTE)} == set()


@pytest.mark.parametrize("compacted", [False, True], ids=["by the log", "by a snapshot"])
@pytest.mark.parametrize(
    ("added", "started", "remedy"),
    [
        pytest.param(ChangeType.ADD_WITNESS, {}, "is_witness=True", id="a witness as a voter"),
        pytest.param(
            ChangeType.ADD_WITNESS, {"is_observer": True}, "is_witness=True", id="a witness as an observer"
        ),
        pytest.param(
            ChangeType.ADD_VOTER, {"is_witness": True}, "is_witness=False", id="a voter as a witness"
        ),
    ],
)
def test_one_that_joins_in_another_role_than_it_was_added_in_is_told_how_to_start(
    added, started, remedy, compacted
):
    """What it is sent is not what it needs; it would wait for ever, or apply what lacks all content."""
    group = cluster(3)
    group.elect(1)
    change = ConfigChange((Change(added, 4),)).encode()
    group.propose(1, change, kind=EntryKind.CONFIG_CHANGE)
    if compacted:
        group.compact(1, group[1].log.applied)
    group.add(4, MemoryLog(membership=group.membership), **started)
    with pytest.raises(ProtocolViolation, match=f"If it has just joined, start it with {remedy}"):
        group.tick(3)


def test_one_that_starts_in_another_role_than_it_has_is_told_which():
    with pytest.raises(
        ConfigError, match=r"lists replica 1 as FOLLOWER: leave is_observer and is_witness out"
    ):
        replica(is_witness=True)


# What a witness may know: it remembers entries but cannot lead, so that it must not be the only one who does


@pytest.mark.parametrize("batch_append", [False, True])
def test_a_witness_is_sent_nothing_that_its_leader_might_forget(batch_append):
    raft = replica(membership=Membership((1, 2), (), (3,)), batch_append=batch_append)
    campaign(raft)
    raft.step(vote(2, raft.term))
    ready = raft.ready()
    entries = {message.to for message in ready.messages if message.entries}
    raft.persisted(ready)
    entries |= {message.to for message in ready.messages_after_save if message.entries}
    assert 3 not in entries
    assert [message.to for message in drain(raft) if message.entries and message.to == 3] == [3]


def test_a_leader_that_is_to_go_leads_until_a_voter_has_all_that_a_witness_may_know():
    shard = cluster(Membership((1, 2), (), (3,)))
    shard.elect(1)
    shard.cut(1, 2)
    shard.change(1, ConfigChange((Change(ChangeType.REMOVE, 1),)))
    # The witness and the leader hold its removal; the voter that remains knows nothing of it.
    assert shard[1].state is LEADER
    assert 1 in shard[1].membership.voters
    shard.propose(1, b"too late")
    assert b"too late" not in shard.applied(1)
    shard.heal()
    shard.tick(2)
    assert shard[1].state is FOLLOWER
    shard.elect(2)
    assert shard[2].state is LEADER
    assert 1 in shard[2].membership.removed


def test_a_change_that_leaves_the_leader_in_place_waits_for_no_peer():
    shard = cluster(Membership((1, 2), (), (3,)))
    shard.elect(1)
    shard.cut(1, 2)
    shard.change(1, ConfigChange((Change(ChangeType.REMOVE, 2),)))
    assert shard[1].membership.voters == {1}


@pytest.mark.parametrize("witnesses", [(3,), (3, 4)], ids=["one witness", "two witnesses"])
def test_a_leader_that_was_removed_in_an_older_term_does_not_hold_the_witnesses_back(witnesses):
    shard = cluster(Membership((1, 2), (), witnesses), pre_vote=True, check_quorum=True)
    others = (2, *witnesses)
    shard.elect(1)
    # 1 alone learns that 2 is removed: all hold the removal, and none but 1 hears that it is committed.
    for other in others:
        shard.cut_one_way(other, 1)
    shard.change(1, ConfigChange((Change(ChangeType.REMOVE, 2),)))
    for other in others:
        shard.cut(1, other)
    for other in others:
        shard.step(1, ack(other, 1, shard[1].log.last_index))
    assert 2 in shard[1].membership.removed
    # Cut off, it leads no more, and the others elect 2. It does not follow 2; the witnesses may not know what 2 alone has.
    shard.tick(2 * T, 1)
    shard.elect(2)
    shard.heal()
    assert (shard[1].state, shard[2].state) == (FOLLOWER, LEADER)
    assert shard[2].log.last_index > shard[3].log.last_index
    shard.tick(20 * T)
    shard.propose(1, b"x")
    assert (shard[1].state, shard.applied(1)) == (LEADER, [b"x"])
    assert 2 in shard[2].membership.removed
