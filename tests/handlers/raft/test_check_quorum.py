"""A leader that lost its quorum gives up, and those who hear a leader stand by it (thesis §6.2, §4.2.3).

Facts C of docs/protocol.md, and the bugs BUG-E12 and BUG-E15 that bit other implementations. C10, a table of terms, is
among the tests of terms, and so is C12.
"""

from itertools import combinations

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    EntryKind,
    Membership,
    Message,
    MessageType,
    State,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    T,
    ack,
    cluster,
    heartbeat,
    heartbeat_answer,
    of_type,
    propose,
    replica,
    routes,
    standing,
    tick,
    vote_request,
)

M = MessageType
FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = (
    State.FOLLOWER,
    State.PRE_CANDIDATE,
    State.CANDIDATE,
    State.LEADER,
)

ON = {"check_quorum": True}
BOTH = {"pre_vote": True, "check_quorum": True}


def hup(group, replica_id):
    """Let one replica time out, though the others may hold leases."""
    group.step(replica_id, Message(M.ELECTION, sender=replica_id))


def states(group):
    return {each: (group[each].state, group[each].term) for each in group.nodes}


# -- the leader ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [heartbeat_answer, ack], ids=["HEARTBEAT_RESP", "REPLICATE_RESP"])
def test_a_leader_that_hears_one_of_two_peers_goes_on(answer):
    """C1."""
    raft = replica(state=LEADER, **ON)
    for _ in range(4 * T):
        tick(raft)
        raft.step(ack(2, 1, 0) if answer is ack else heartbeat_answer(2, 1))
    assert standing(raft) == (LEADER, 1, 1, 1)


@pytest.mark.parametrize(
    ("voters", "heard"),
    [
        pytest.param({"voters": (1, 2, 3)}, (), id="none of three"),
        pytest.param({"voters": range(1, 6)}, (2,), id="one of five"),
        pytest.param({"voters": (1, 2, 3, 4)}, (2,), id="one of four"),
        pytest.param({"voters": (1, 2), "observers": (4,)}, (4,), id="only an observer"),
        pytest.param(
            {"membership": Membership((1, 2, 3), outgoing=(1, 4, 5))}, (2, 3), id="one half of a joint change"
        ),
    ],
)
def test_a_leader_that_hears_no_quorum_gives_up_within_its_term(voters, heard):
    """C2 (thesis §6.2): so that its clients look elsewhere."""
    raft = replica(state=LEADER, **voters, **ON)
    for _ in range(T + 1):
        for peer in heard:
            raft.step(heartbeat_answer(peer, 1))
        tick(raft)
    assert standing(raft) == (FOLLOWER, 1, 1, 0)


@pytest.mark.parametrize(
    ("voters", "heard"),
    [
        pytest.param({"voters": (1,)}, (), id="it needs no other"),
        pytest.param({"voters": (1, 2), "witnesses": (3,)}, (3,), id="a witness counts"),
        pytest.param(
            {"membership": Membership((1, 2, 3), outgoing=(1, 4, 5))},
            (2, 4),
            id="both halves of a joint change",
        ),
    ],
)
def test_a_leader_that_hears_a_quorum_goes_on(voters, heard):
    """Rules of CheckQuorum."""
    raft = replica(state=LEADER, **voters, **ON)
    for _ in range(3 * T):
        for peer in heard:
            raft.step(heartbeat_answer(peer, 1))
        tick(raft)
    assert raft.state is LEADER


@pytest.mark.parametrize(
    ("removed", "heard", "leads"),
    [
        pytest.param(1, 3, False, id="only the witness, which is told nothing more"),
        pytest.param(1, 2, True, id="the voter that stays"),
        pytest.param(2, 3, True, id="the witness, while the leader stays"),
    ],
)
def test_a_leader_that_is_to_go_must_hear_a_voter_that_stays(removed, heard, leads):
    """Witnesses help it to commit only what such a voter has on disk."""
    raft = replica(voters=(1, 2), witnesses=(3,), state=LEADER, **ON)
    change = ConfigChange((Change(ChangeType.REMOVE, removed),))
    propose(raft, change.encode(), kind=EntryKind.CONFIG_CHANGE)
    for _ in range(3 * T):
        raft.step(heartbeat_answer(heard, 1))
        tick(raft)
    assert (raft.state is LEADER) == leads


@pytest.mark.parametrize("last_heard", range(T))
def test_a_leader_that_is_cut_off_lasts_between_one_and_two_timeouts(last_heard):
    """Rules of CheckQuorum, INV20: it checks every T ticks, also when peers were heard since the last check."""
    raft = replica(state=LEADER, **ON)
    tick(raft, last_heard)
    raft.step(heartbeat_answer(2, 1))
    ticks = 0
    while raft.state is LEADER:
        tick(raft)
        ticks += 1
    assert T <= ticks < 2 * T + 1
    assert ticks == 2 * T - last_heard


def test_without_check_quorum_a_leader_without_followers_leads_on():
    """Rules of CheckQuorum: it is an option."""
    raft = replica(state=LEADER)
    tick(raft, 5 * T)
    assert raft.state is LEADER


def test_the_tick_that_costs_the_leadership_sends_no_heartbeats():
    """Rules of the matrix: one that stepped down sends nothing as a leader."""
    raft = replica(state=LEADER, **ON)
    tick(raft, T - 1)
    assert tick(raft, 1) == []
    assert raft.state is FOLLOWER
    assert (raft.tally.ignored, raft.tally.swallowed, raft.tally.impossible) == ({}, {}, {}), (
        "a heartbeat was wanted of one that is no leader any more"
    )


def test_a_voter_that_was_just_added_counts_as_heard():
    """C11 by etcd's rule: else the first check would depose the leader, before the new one could answer."""
    raft = replica(voters=(1,), state=LEADER, **ON)
    tick(raft, T - 1)
    raft.step(Message(M.CONFIG_CHANGE_EVENT, hint=2, hint_high=ChangeType.ADD_VOTER))
    tick(raft)
    assert raft.state is LEADER
    tick(raft, T)
    assert raft.state is FOLLOWER


# -- the followers -----------------------------------------------------------------------------------------------------


def test_fresh_replicas_vote_at_once_and_later_once_their_leases_are_over():
    """C3."""
    group = cluster(3, **ON)
    hup(group, 1)
    assert states(group) == {1: (LEADER, 1), 2: (FOLLOWER, 1), 3: (FOLLOWER, 1)}
    hup(group, 3)
    assert (group[1].state, group[3].state) == (LEADER, CANDIDATE)
    group.elect(3)
    assert (group[1].state, group[3].state) == (FOLLOWER, LEADER)


def test_a_candidate_stuck_at_a_high_term_is_freed_by_the_leaders_heartbeat():
    """C4: no peer takes its vote requests inside the lease, and it hears no leader of a lower term."""
    group = cluster(3, **ON)
    group.elect(1)
    group.isolate(1)
    for ahead in (1, 2):
        hup(group, 3)
        assert states(group) == {1: (LEADER, 1), 2: (FOLLOWER, 1), 3: (CANDIDATE, 1 + ahead)}
    group.heal()
    group.step(3, heartbeat(1, 1))
    assert states(group) == {1: (FOLLOWER, 3), 2: (FOLLOWER, 1), 3: (CANDIDATE, 3)}
    hup(group, 3)
    assert (group[3].state, group[3].term) == (LEADER, 4)


def test_a_follower_whose_heartbeat_was_late_causes_one_election_and_no_deadlock():
    """C6: a delayed heartbeat is answered with the newer term, which ends the old one."""
    group = cluster(3, **ON)
    group.elect(2)
    group.elect(1)
    assert states(group) == {1: (LEADER, 2), 2: (FOLLOWER, 2), 3: (FOLLOWER, 2)}
    hup(group, 3)
    assert states(group) == {1: (LEADER, 2), 2: (FOLLOWER, 2), 3: (CANDIDATE, 3)}
    group.step(3, heartbeat(1, 2))
    assert states(group) == {1: (FOLLOWER, 3), 2: (FOLLOWER, 2), 3: (CANDIDATE, 3)}


@pytest.mark.parametrize("setup", [{"state": LEADER}, {"leader": 2}], ids=["leader", "follower"])
def test_inside_the_lease_a_vote_request_is_as_good_as_lost(setup):
    """C7 (thesis §4.2.3)."""
    raft = replica(term=5, **ON, **setup)
    before = standing(raft)
    raft.step(vote_request(3, 6, 9, 5))
    assert drain(raft) == []
    assert standing(raft) == before


def test_an_old_leader_that_beats_a_candidate_becomes_its_voter():
    """C8: and one vote that is freed is enough, though 3 still stands by the old leader."""
    group = cluster(3, **ON)
    group.elect(1)
    hup(group, 2)
    assert states(group) == {1: (LEADER, 1), 2: (CANDIDATE, 2), 3: (FOLLOWER, 1)}
    group.step(2, heartbeat(1, 1))
    assert of_type(group.seen, M.NO_OP)[-1].term == 2
    assert (group[1].state, group[1].term) == (FOLLOWER, 2)
    before = len(of_type(group.seen, M.REQUEST_VOTE_RESP))
    hup(group, 2)
    voters = {answer.sender for answer in of_type(group.seen, M.REQUEST_VOTE_RESP)[before:]}
    assert (voters, group[2].state, group[2].term) == ({1}, LEADER, 3)


def test_the_longer_log_wins_against_a_much_higher_term():
    """C9: 3 was cut off and campaigned four times, while 1 committed without it; then 1 is lost."""
    group = cluster(3, **ON)
    group.elect(2)
    group.isolate(3)
    for _ in range(4):
        hup(group, 3)
    group.elect(1)
    group.propose(1, b"a", b"b", b"c")
    assert (group[1].term, group[3].term) == (2, 5)
    group.heal()
    group.crash(1)
    for _ in range(3):
        for candidate in (3, 2):
            if group.leader is None or group.leader is group[1]:
                group.elect(candidate)
    assert (group[2].state, group[3].state) == (LEADER, FOLLOWER)


# -- bugs of others ---------------------------------------------------------------------------------------------------------


def splits(members):
    """Every way to split these into groups."""
    if not members:
        return [[]]
    first, *rest = members
    return [
        [{first, *one}, *groups[:at], *groups[at + 1 :]]
        for groups in splits(rest)
        for at, one in [*enumerate(groups), (len(groups), ())]
    ]


BRIDGES = [
    pytest.param(
        bridge, groups, id=f"{bridge} among {' '.join(''.join(map(str, group)) for group in groups)}"
    )
    for bridge in (1, 2)
    for groups in splits([each for each in range(1, 6) if each != bridge])
    if len(groups) > 1
]


@pytest.mark.parametrize(("bridge", "groups"), BRIDGES)
def test_with_any_one_replica_as_the_bridge_a_majority_elects_and_commits(bridge, groups):
    """BUG-E12: five replicas of which only one sees all. 1 leads at first, as the bridge or at one end of it.

    Where only the bridge can win, a leader whose heartbeats keep it loyal must give up by itself.
    """
    group = cluster(5, **BOTH)
    group.elect(1)
    for one, other in combinations([each for each in range(1, 6) if each != bridge], 2):
        if not any({one, other} <= side for side in groups):
            group.cut(one, other)
    for _ in range(8 * T):
        group.tick()
        leader = group.leader
        if leader is not None:
            group.propose(leader.id, b"alive")
        if any(b"alive" in group.applied(each) for each in group.nodes):
            return
    pytest.fail(f"nothing commits: {states(group)}")


def test_a_leader_that_cannot_commit_over_a_bridge_steps_down():
    """BUG-E12: 1 sees only 2, and 2 sees all."""
    group = cluster(5, **BOTH)
    group.elect(1)
    for other in (3, 4, 5):
        group.cut(1, other)
    group.tick(2 * T)
    assert group[1].state is not LEADER


@pytest.mark.parametrize("options", [ON, BOTH], ids=["CheckQuorum", "and pre-vote"])
def test_a_replica_that_does_not_know_of_its_removal_topples_no_leader(options):
    """BUG-E15: it was cut off when it was removed, and comes back asking for votes."""
    group = cluster(4, **options)
    group.elect(1)
    group.isolate(4)
    group.propose(1, ConfigChange((Change(ChangeType.REMOVE, 4),)).encode(), kind=EntryKind.CONFIG_CHANGE)
    assert group[1].membership.voters == {1, 2, 3}
    group.tick(5 * T)
    group.heal()
    group.tick(10 * T)
    assert (group[1].state, group[1].term) == (LEADER, 1)


def test_a_replica_that_does_not_know_of_its_demotion_topples_no_leader():
    """BUG-E15: it was cut off when it was made an observer; with pre-vote its term has not grown meanwhile."""
    group = cluster(4, **BOTH)
    group.elect(1)
    group.isolate(4)
    demotion = ConfigChange((Change(ChangeType.ADD_OBSERVER, 4), Change(ChangeType.UPDATE, 4)))
    group.propose(1, demotion.encode(), kind=EntryKind.CONFIG_CHANGE)
    group.tick(5 * T)
    assert (group[1].membership.observers, group[1].membership.joint) == ({4}, False)
    group.heal()
    group.tick(5 * T)
    assert (group[1].state, group[1].term) == (LEADER, 1)
    assert (group[4].state, group[4].leader_id, group.terms(4)) == (State.OBSERVER, 1, group.terms(1))


def test_a_demoted_replica_whose_term_has_grown_costs_one_election():
    """BUG-E15 without pre-vote: its term gets through with its answers, once; then all is calm for ever."""
    group = cluster(4, **ON)
    group.elect(1)
    group.isolate(4)
    demotion = ConfigChange((Change(ChangeType.ADD_OBSERVER, 4), Change(ChangeType.UPDATE, 4)))
    group.propose(1, demotion.encode(), kind=EntryKind.CONFIG_CHANGE)
    group.tick(6 * T)
    assert group[4].term > 1
    group.heal()
    group.tick(4 * T)
    leader = group.leader
    term = leader.term
    assert group[4].state is State.OBSERVER
    group.tick(10 * T)
    assert (group.leader, leader.term) == (leader, term)


def test_refusing_to_serve_is_told_apart_from_losing_a_term():
    """C2's report: a leader that gave up may vote again, for a newer term at once, since it has no lease left."""
    raft = replica(state=LEADER, **ON)
    tick(raft, T)
    assert standing(raft) == (FOLLOWER, 1, 1, 0)
    raft.step(vote_request(2, 2, 9, 1))
    assert routes(drain(raft)) == [(M.REQUEST_VOTE_RESP, 2)]
    assert raft.vote == 2
