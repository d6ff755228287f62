"""A leader that hands its office over (thesis §3.10): it takes no proposals, brings its successor up to date, and asks it
to campaign at once.

Facts J of docs/protocol.md, and the bugs BUG-T1 to BUG-T5 that bit other implementations.
"""

from dataclasses import replace

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
    Refusal,
    State,
)
from drakkar.handlers.raft.lives import encode_settled
from drakkar.handlers.raft.transfer import successor
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    FIXED,
    T,
    ack,
    acknowledge_all,
    cluster,
    heartbeat,
    heartbeat_answer,
    of_type,
    propose,
    replica,
    routes,
    standing,
    tick,
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


def transfer(raft, target, sender=0):
    """Ask a replica for `target` to lead; returns what it sends, and on it `.dropped`."""
    raft.step(Message(M.LEADER_TRANSFER, sender=sender, hint=target))
    return drain(raft)


def refusals(out):
    return [dropped.because for dropped in out.dropped]


def leader(**options):
    """1 leads 2 and 3, which hold all of its log."""
    raft = replica(state=LEADER, **options)
    acknowledge_all(raft)
    return raft


def leader_with_laggard(**options):
    """1 leads, 2 holds all of its log, and 3 lacks the last entry."""
    raft = leader(**options)
    propose(raft, b"x")
    raft.step(ack(2, raft.term, raft.log.last_index))
    drain(raft)
    return raft


def tick_out(raft):
    """One tick, with all that it brings."""
    raft.tick()
    return drain(raft)


def pending(raft):
    """Whether a transfer is on its way: then proposals are refused (thesis §3.10)."""
    return refusals(propose(raft, b"probe")) == [Refusal.TRANSFERRING]


# -- the request ---------------------------------------------------------------------------------------------------------


def test_a_target_that_is_up_to_date_is_asked_to_campaign_at_once():
    """J12 (2, no, yes)."""
    raft = leader()
    assert [(sent.type, sent.to, sent.term) for sent in transfer(raft, 2)] == [(M.TIMEOUT_NOW, 2, 1)]
    assert pending(raft)


def test_a_target_that_is_behind_is_sent_what_it_lacks_first():
    """J12 (2, no, no), by etcd's rule: it need not wait for the next heartbeat."""
    raft = leader()
    propose(raft, b"x")
    raft.step(Message(M.UNREACHABLE, sender=3))
    (sent,) = transfer(raft, 3)
    assert (sent.type, sent.to, sent.log_index) == (M.REPLICATE, 3, 1)
    raft.step(ack(3, 1, 2))
    assert routes(of_type(drain(raft), M.TIMEOUT_NOW)) == [(M.TIMEOUT_NOW, 3)]


def test_each_step_forward_of_the_target_is_checked():
    """Rules of transfers: only the whole log will do."""
    raft = leader()
    propose(raft, b"a", b"b")
    transfer(raft, 2)
    raft.step(ack(2, 1, 2))
    assert of_type(drain(raft), M.TIMEOUT_NOW) == []
    raft.step(ack(2, 1, 3))
    assert routes(of_type(drain(raft), M.TIMEOUT_NOW)) == [(M.TIMEOUT_NOW, 2)]


@pytest.mark.parametrize(
    ("target", "because"),
    [
        pytest.param(4, Refusal.BAD_TARGET, id="J6 unknown"),
        pytest.param(0, Refusal.BAD_TARGET, id="no replica"),
        pytest.param(5, Refusal.BAD_TARGET, id="observer"),
        pytest.param(6, Refusal.BAD_TARGET, id="witness"),
        pytest.param(1, Refusal.ALREADY_LEADER, id="J12 (1, no, no) itself"),
    ],
)
def test_a_target_that_cannot_lead_is_refused_with_the_reason(target, because):
    """BUG-T4: only a voter can win, and the one that asked must not wait for it."""
    raft = replica(observers=(5,), witnesses=(6,), state=LEADER)
    out = transfer(raft, target)
    assert (out, refusals(out), [dropped.key for dropped in out.dropped]) == ([], [because], [target])
    assert not pending(raft)


@pytest.mark.parametrize("target", [2, 4], ids=["of the old half", "of the new half"])
def test_a_voter_of_either_half_of_a_joint_membership_may_be_the_target(target):
    """K9: it needs both majorities, but need not belong to both halves."""
    raft = replica(membership=Membership((1, 3, 4), outgoing=(1, 2, 3)), state=LEADER)
    acknowledge_all(raft)
    assert routes(transfer(raft, target)) == [(M.TIMEOUT_NOW, target)]


def test_the_same_request_again_changes_nothing():
    """J12 (2, yes, no)."""
    raft = leader_with_laggard()
    transfer(raft, 3)
    tick(raft, T - 1)
    out = transfer(raft, 3)
    assert (out, refusals(out)) == ([], [])
    tick(raft)
    assert not pending(raft), "the second request gave it more time"


@pytest.mark.parametrize("sender", [0, 1], ids=["by the host", "by itself"])
def test_a_transfer_to_the_leader_itself_calls_it_off(sender):
    """J10 and J12 (1, yes, no) by etcd's rule: an operator can take it back."""
    raft = leader_with_laggard()
    transfer(raft, 3)
    assert pending(raft)
    out = transfer(raft, 1, sender)
    assert (out, refusals(out), out.dropped[0].key) == ([], [Refusal.TRANSFER_CALLED_OFF], 3)
    assert standing(raft) == (LEADER, 1, 1, 1)
    assert not pending(raft)


def test_another_target_replaces_the_first():
    """J11."""
    raft = leader_with_laggard()
    transfer(raft, 3)
    out = transfer(raft, 2)
    assert routes(out) == [(M.TIMEOUT_NOW, 2)]
    assert [(dropped.because, dropped.key) for dropped in out.dropped] == [(Refusal.TRANSFER_REPLACED, 3)]
    raft.step(ack(3, 1, 2))
    assert of_type(drain(raft), M.TIMEOUT_NOW) == []


# -- while it is on its way ------------------------------------------------------------------------------------------------


def test_proposals_during_a_transfer_are_refused_and_nothing_else_stands_still():
    """Rules of transfers, BUG-T2: accepted, they would let the target fall behind for ever."""
    raft = leader_with_laggard()
    transfer(raft, 3)
    last = raft.log.last_index
    assert refusals(propose(raft, b"x", b"y")) == [Refusal.TRANSFERRING]
    change = ConfigChange((Change(ChangeType.ADD_OBSERVER, 9),)).encode()
    assert refusals(propose(raft, change, kind=EntryKind.CONFIG_CHANGE)) == [Refusal.TRANSFERRING]
    assert raft.log.last_index == last
    raft.step(Message(M.READ_INDEX, hint=7))
    assert routes(drain(raft)) == [(M.HEARTBEAT, 2), (M.HEARTBEAT, 3)]
    assert routes(tick(raft)) == [(M.HEARTBEAT, 2), (M.HEARTBEAT, 3)]


def test_a_transfer_has_one_election_timeout():
    """J7 (thesis §3.10), INV28."""
    raft = leader_with_laggard()
    tick(raft, T // 2)
    transfer(raft, 3)
    tick(raft, T - 1)
    assert pending(raft)
    assert refusals(tick_out(raft)) == [Refusal.TRANSFER_TIMED_OUT]
    assert not pending(raft)
    assert standing(raft) == (LEADER, 1, 1, 1)


ENDS = [
    pytest.param(lambda raft: [raft.tick() for _ in range(T)], id="it takes too long"),
    pytest.param(lambda raft: raft.step(Message(M.LEADER_TRANSFER, hint=1)), id="it is called off"),
    pytest.param(lambda raft: raft.step(Message(M.LEADER_TRANSFER, hint=2)), id="another replaces it"),
    pytest.param(lambda raft: raft.step(Message(M.DISK_HUNG, sender=1)), id="the leader steps down"),
    pytest.param(lambda raft: raft.step(heartbeat(2, 9)), id="there is a newer leader"),
]


@pytest.mark.parametrize("end", ENDS)
def test_the_order_of_a_transfer_that_is_over_is_recalled(end):
    """Thesis §3.10: a target that is asked to campaign afterwards would only disturb."""
    raft = leader()
    (order,) = transfer(raft, 3)
    assert not raft.ready().recalled
    end(raft)
    assert raft.ready().recalled == [order]
    assert not raft.ready().recalled


@pytest.mark.parametrize("end", ENDS[1:])
def test_an_order_that_was_not_handed_out_yet_never_is(end):
    raft = leader()
    raft.step(Message(M.LEADER_TRANSFER, hint=3))
    end(raft)
    assert (M.TIMEOUT_NOW, 3) not in routes(drain(raft))


def test_a_transfer_without_an_order_has_nothing_to_recall():
    raft = leader_with_laggard()
    transfer(raft, 3)
    transfer(raft, 1)
    assert not raft.ready().recalled


def test_a_transfer_keeps_no_leader_in_office_without_a_quorum():
    """Rules of the matrix: CheckQuorum is asked when the transfer's time is over, and comes first."""
    raft = leader_with_laggard(check_quorum=True)
    tick(raft, T)
    assert raft.state is LEADER, "2 was heard before"
    transfer(raft, 3)
    tick(raft, T)
    assert standing(raft) == (FOLLOWER, 1, 1, 0)


def test_alternating_targets_do_not_put_off_the_question_for_a_quorum():
    """Thesis §6.2: a leader that no peer hears steps down, and no request of its operators delays that."""
    raft = leader_with_laggard(check_quorum=True)
    propose(raft, b"y")
    for number in range(2 * T):
        transfer(raft, 2 + number % 2)
        tick(raft)
    assert raft.state is FOLLOWER
    assert not raft.transfer.target


def test_a_replica_that_forwarded_a_request_is_told_that_it_is_refused_or_given_up():
    """INV22: at the host that asked, not at the leader's."""
    raft = leader_with_laggard()
    (refused,) = transfer(raft, 9, sender=2)
    assert (refused.type, refused.to, refused.hint_high) == (M.TRANSFER_REFUSED, 2, 9)
    transfer(raft, 3, sender=2)
    transfer(raft, 3, sender=3)
    transfer(raft, 3)
    tick(raft, T - 1)
    out = tick_out(raft)
    told = [(message.to, message.payload) for message in of_type(out, M.TRANSFER_REFUSED)]
    assert told == [(2, "TRANSFER_TIMED_OUT"), (3, "TRANSFER_TIMED_OUT")]
    assert refusals(out) == [Refusal.TRANSFER_TIMED_OUT]


@pytest.mark.parametrize("state", [FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER], ids=lambda state: state.name)
def test_the_host_that_asked_hears_of_a_refusal_in_every_state(state):
    raft = replica(state=state, term=4)
    raft.step(Message(M.TRANSFER_REFUSED, sender=2, hint_high=9, log_index=1, payload="BAD_TARGET"))
    out = drain(raft)
    assert [(dropped.type, dropped.because, dropped.key) for dropped in out.dropped] == [
        (M.LEADER_TRANSFER, Refusal.BAD_TARGET, 9)
    ]
    assert (out, raft.transfer.target) == ([], 0)


def test_a_leader_that_makes_way_for_its_successor_does_not_call_the_transfer_lost():
    """Rules of transfers: the newer term most likely is the target's; who leads next tells what became of it."""
    raft = leader()
    transfer(raft, 2)
    raft.step(vote_request(2, 2, 1, 1, hint=2))
    assert (standing(raft), raft.transfer.target) == ((FOLLOWER, 2, 2, 0), 0)
    assert refusals(drain(raft)) == []


def test_a_leader_that_steps_down_within_its_term_gives_the_transfer_up():
    raft = leader()
    transfer(raft, 2)
    raft.step(Message(M.CHECK_QUORUM))
    assert refusals(drain(raft)) == []
    raft.step(Message(M.CHECK_QUORUM))
    assert (raft.state, refusals(drain(raft))) == (FOLLOWER, [Refusal.STEPPED_DOWN])


def test_a_vote_for_another_ends_the_transfer():
    """J8."""
    raft = leader_with_laggard()
    transfer(raft, 3)
    raft.step(vote_request(2, 2, 2, 1))
    assert standing(raft) == (FOLLOWER, 2, 2, 0)
    assert refusals(drain(raft)) == [Refusal.STEPPED_DOWN], "3 was not even asked to campaign"
    raft.step(heartbeat(2, 2))
    assert (raft.leader_id, raft.transfer.target) == (2, 0)


@pytest.mark.parametrize("change", [ChangeType.REMOVE, ChangeType.ADD_OBSERVER], ids=["removed", "demoted"])
def test_a_target_that_is_no_voter_any_more_ends_the_transfer(change):
    """J9."""
    raft = leader_with_laggard()
    transfer(raft, 3)
    raft.step(Message(M.CONFIG_CHANGE_EVENT, hint=3, hint_high=change))
    assert refusals(drain(raft)) == [Refusal.BAD_TARGET]
    assert raft.state is LEADER
    assert not pending(raft)


def test_a_leader_that_is_elected_again_has_forgotten_its_transfer():
    """BUG-T1: the flag survived a lost quorum, and muted the leader of the next term."""
    raft = leader_with_laggard()
    transfer(raft, 3)
    raft.step(Message(M.CHECK_QUORUM))
    assert raft.state is LEADER, "2 was heard"
    raft.step(Message(M.CHECK_QUORUM))
    assert raft.state is FOLLOWER
    raft.step(Message(M.ELECTION, sender=1))
    raft.step(vote(2, 2))
    assert (raft.state, raft.term) == (LEADER, 2)
    assert not pending(raft)


def test_a_lease_ends_when_another_is_asked_to_campaign():
    """BUG-T5: the successor's request overrides all leases, so this leader's own is worth nothing from then on."""
    raft = leader(check_quorum=True, read_mode="lease")
    for message in of_type(tick(raft), M.HEARTBEAT):
        raft.step(heartbeat_answer(message.to, 1, log_index=message.log_index))

    def served_at_once(context):
        raft.step(Message(M.READ_INDEX, hint=context))
        return [read.context for read in drain(raft).reads] == [(context, 0)]

    assert served_at_once(7)
    transfer(raft, 2)
    assert not served_at_once(8)
    transfer(raft, 1)
    assert not served_at_once(9), "the order to campaign is on its way, though the transfer was given up"


# -- the target ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"pre_vote": True, "check_quorum": True}], ids=["plain", "pre-vote and lease"]
)
def test_a_follower_that_is_asked_to_campaigns_at_once_with_the_leaders_mark(options):
    """J13, BUG-T3: it asks no peer first, and the mark opens the leases of the others."""
    raft = replica(id_=2, term=1, leader=1, **options)
    raft.step(Message(M.TIMEOUT_NOW, sender=1, term=1))
    assert standing(raft) == (CANDIDATE, 2, 2, 0)
    assert [(ask.type, ask.to, ask.term, ask.hint) for ask in drain(raft)] == [
        (M.REQUEST_VOTE, 1, 2, 2),
        (M.REQUEST_VOTE, 3, 2, 2),
    ]


def test_the_mark_lasts_for_one_attempt():
    """Rules of transfers: the next one asks first, like any other."""
    raft = replica(id_=2, term=1, leader=1, pre_vote=True, **FIXED)
    raft.step(Message(M.TIMEOUT_NOW, sender=1, term=1))
    drain(raft)
    sent = tick(raft, T)
    assert {(ask.type, ask.hint) for ask in sent} == {(M.REQUEST_PRE_VOTE, 0)}


@pytest.mark.parametrize("state", [PRE_CANDIDATE, CANDIDATE, LEADER], ids=lambda state: state.name)
def test_only_a_follower_follows_the_order_to_campaign(state):
    """Rules of the matrix."""
    raft = replica(state=state, term=4)
    raft.step(Message(M.TIMEOUT_NOW, sender=2, term=4))
    assert drain(raft) == []
    assert (raft.state, raft.term) == (state, 4)


def test_a_removed_replica_does_not_campaign_for_anybody():
    """J14."""
    raft = replica(voters=(2, 3, 4), term=1)
    raft.step(Message(M.TIMEOUT_NOW, sender=2, term=1))
    for voter in (2, 3):
        raft.step(vote(voter, 1))
    assert (raft.state, raft.term) == (FOLLOWER, 1)
    assert drain(raft) == []


@pytest.mark.parametrize("pre_vote", [False, True], ids=["plain", "pre-vote"])
def test_an_unapplied_change_stands_against_a_transfer_too(pre_vote):
    """J15, BUG-M1: and leaves no mark behind, so that a later attempt of its own is no transfer."""
    change = ConfigChange((Change(ChangeType.ADD_VOTER, 4),)).encode()
    entries = [1, Entry(term=1, kind=EntryKind.CONFIG_CHANGE, payload=change)]
    raft = replica(id_=2, terms=entries, commit=2, pre_vote=pre_vote)
    raft.step(Message(M.TIMEOUT_NOW, sender=1, term=1))
    assert raft.state is FOLLOWER
    assert {ask.hint for ask in drain(raft)} == {2}, "it obeys when the change is applied"
    raft.step(Message(M.ELECTION, sender=2))
    assert {ask.hint for ask in drain(raft)} == {0}
    raft.step(heartbeat(1, raft.term))
    raft.step(Message(M.TIMEOUT_NOW, sender=1, term=raft.term))
    assert raft.state is CANDIDATE


# -- requests elsewhere -----------------------------------------------------------------------------------------------------------


def test_a_follower_sends_the_request_on_to_its_leader():
    """J2, BUG-T4: without a term, or it would raise terms or be dropped as late."""
    raft = replica(id_=2, term=5, leader=1)
    (sent,) = transfer(raft, 3)
    assert (sent.type, sent.to, sent.hint, sent.term) == (M.LEADER_TRANSFER, 1, 3, 0)


def test_a_request_is_not_sent_on_twice():
    """Two replicas that each believe the other leads would send it back and forth."""
    raft = replica(id_=2, term=5, leader=1)
    (sent,) = transfer(raft, 3, sender=3)
    assert (sent.type, sent.to, sent.payload) == (M.TRANSFER_REFUSED, 3, "NO_LEADER")


@pytest.mark.parametrize("state", [PRE_CANDIDATE, CANDIDATE], ids=lambda state: state.name)
def test_a_campaigning_replica_refuses_a_transfer(state):
    """As it refuses a proposal: to its own host, and to another replica that forwarded it."""
    raft = replica(state=state, term=4)
    assert refusals(transfer(raft, 3)) == [Refusal.CAMPAIGNING]
    (sent,) = transfer(raft, 3, sender=2)
    assert (sent.type, sent.to, sent.hint_high) == (M.TRANSFER_REFUSED, 2, 3)
    assert sent.payload == "CAMPAIGNING"


def test_a_follower_without_a_leader_says_so():
    """Rules of transfers, BUG-T2: a request in any state must come to an end."""
    assert refusals(transfer(replica(term=5), 3)) == [Refusal.NO_LEADER]


@pytest.mark.parametrize(
    "setup",
    [
        {"voters": (2, 3), "observers": (1,), "leader": 2},
        {"voters": (2, 3), "witnesses": (1,), "leader": 2},
    ],
    ids=["observer", "witness"],
)
def test_elsewhere_a_request_is_counted_and_changes_nothing(setup):
    """Rules of the matrix: these cells are empty, so a host must see by the cell that there will be no transfer."""
    raft = replica(term=5, **setup)
    before = standing(raft)
    assert transfer(raft, 3) == []
    assert standing(raft) == before
    assert raft.tally.ignored[raft.state, M.LEADER_TRANSFER] == 1


# -- stories ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_quorum", [False, True], ids=["", "CheckQuorum"])
@pytest.mark.parametrize("pre_vote", [False, True], ids=["", "pre-vote"])
@pytest.mark.parametrize("asked_at", [1, 2, 3])
def test_the_office_goes_to_and_fro(asked_at, pre_vote, check_quorum):
    """J1, J2, J3, BUG-T3: with loyal followers and without, asked at the leader, the target or a third."""
    group = cluster(3, pre_vote=pre_vote, check_quorum=check_quorum)
    group.elect(1)
    group.propose(1, b"a")
    asked = len(of_type(group.seen, M.REQUEST_PRE_VOTE))
    group.tick()
    group.transfer(asked_at, 2)
    assert (group[2].state, group[1].state, group[1].leader_id) == (LEADER, FOLLOWER, 2)
    group.propose(2, b"b")
    group.transfer(asked_at, 1)
    assert (group[1].state, group[2].leader_id) == (LEADER, 1)
    assert len(of_type(group.seen, M.REQUEST_PRE_VOTE)) == asked
    group.propose(1, b"c")
    group.tick()
    assert [group.applied(each) for each in (1, 2, 3)] == [[b"a", b"b", b"c"]] * 3


def test_a_slow_target_is_brought_up_to_date_first():
    """J4."""
    group = cluster(3)
    group.elect(1)
    group.isolate(3)
    group.propose(1, b"a")
    group.propose(1, b"b")
    group.heal()
    group.step(1, Message(M.UNREACHABLE, sender=3))
    group.transfer(1, 3)
    assert group[3].state is LEADER


def test_a_target_that_needs_a_snapshot_is_waited_for():
    """J5."""
    group = cluster(3)
    group.elect(1)
    group.isolate(3)
    for payload in (b"a", b"b", b"c"):
        group.propose(1, payload)
    group.compact(1, group[1].log.last_index)
    group.heal()
    group.cut_one_way(3, 1)
    group.transfer(1, 3)
    assert pending(group[1])
    group.tick(2, 1)
    group.heal()
    group.tick(2, 1)
    assert group[3].state is LEADER
    assert group[3].log.first_index == 5


def test_a_transfer_under_load_succeeds_or_is_over_within_an_election_timeout():
    """BUG-T2: proposals keep coming in, at all replicas, while the target catches up."""
    group = cluster(3, pre_vote=True, check_quorum=True, max_inflight_messages=1, max_message_bytes=0)
    group.elect(1)
    group.isolate(3)
    for number in range(10):
        group.propose(1, b"%d" % number)
    group.heal()
    group.transfer(1, 3)
    for number in range(2 * T):
        if group[1].state is LEADER:
            group.propose(1 + number % 3, b"load")
        group.tick()
    assert group[3].state is LEADER
    group.propose(3, b"done")
    assert [group.applied(each)[-1] for each in (1, 2, 3)] == [b"done"] * 3


def test_a_transfer_to_a_replica_that_is_gone_ends_with_the_old_leader():
    """J7 as a story: the leader takes proposals again, and a late order to campaign is harmless."""
    group = cluster(3, pre_vote=True, check_quorum=True)
    group.elect(1)
    group.tick()
    group.crash(3)
    group.transfer(1, 3)
    group.propose(1, b"refused")
    assert group.applied(1) == []
    group.tick(T)
    group.propose(1, b"taken")
    assert (group[1].state, group.applied(1)) == (LEADER, [b"taken"])
    group.restart(3)
    group.tick(2)
    group.step(3, Message(M.TIMEOUT_NOW, sender=1, term=group[1].term))
    group.tick(2)
    assert (group.leader, group.leader.term) == (group[3], 2)
    assert group.applied(3) == [b"taken"]


# -- a leader that leaves -----------------------------------------------------------------------------------------------------------


def remove(*replicas):
    return ConfigChange(tuple(Change(ChangeType.REMOVE, each) for each in replicas)).encode()


def best(raft):
    return successor(raft, raft.membership)


def test_the_successor_is_a_voter_that_holds_most_of_the_log_and_was_heard():
    raft = leader_with_laggard()
    assert best(raft) == 2
    raft.step(Message(M.UNREACHABLE, sender=2))
    assert best(raft) == 3
    raft.step(Message(M.LOG_FULL, sender=3, term=raft.term, log_index=raft.log.last_index))
    assert best(raft) == 0
    acknowledge_all(raft)
    assert best(raft)


def test_no_successor_is_one_that_is_silent_for_two_election_timeouts():
    raft = leader(**FIXED)
    for _ in range(2):
        assert best(raft)
        for _ in range(T):
            raft.tick()
            raft.step(heartbeat_answer(3, raft.term))
        drain(raft)
    assert best(raft) == 3
    silent = leader(check_quorum=False, quiesce=False)
    silent.progress[2].active = silent.progress[3].active = False
    assert best(silent) == 0


def test_no_successor_was_added_and_has_not_settled():
    raft = leader()
    raft.membership = replace(raft.membership, homes={1: 11, 2: 0, 3: 0})
    assert best(raft) == 0
    raft.membership = replace(raft.membership, homes={1: 11, 2: 0, 3: 13})
    assert best(raft) == 3


def test_no_successor_is_frozen_or_doubted():
    """Both have forgotten something, or seem to: neither may lead before that is settled."""
    raft = leader()
    raft.progress[2].frozen = "it contradicts"
    assert best(raft) == 3
    raft.lives.doubted = frozenset({3})
    assert best(raft) == 0


def test_no_successor_is_an_observer_a_witness_or_the_leader_itself():
    raft = replica(state=LEADER, voters=[1], observers=[2], witnesses=[3])
    acknowledge_all(raft)
    assert best(raft) == 0


def test_among_equals_the_shard_decides_and_a_transfer_that_is_under_way_is_kept():
    chosen = set()
    for shard in range(1, 5):
        raft = leader(shard_id=shard)
        first = best(raft)
        chosen.add(first)
        raft.progress[5 - first].active = True
        transfer(raft, 5 - first)
        assert best(raft) == 5 - first
    assert chosen == {2, 3}


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_leader_that_is_removed_asks_another_one_to_campaign_before_it_leaves(pre_vote):
    """So that the shard is without a leader for a round trip, and not for an election timeout."""
    group = cluster(3, pre_vote=pre_vote, check_quorum=True)
    group.elect(1)
    group.propose(1, remove(1), kind=EntryKind.CONFIG_CHANGE)
    assert group[1].state is FOLLOWER
    assert (group.leader.id, group.leader.term) == (2, 2)
    assert group[3].leader_id == 2
    group.propose(2, b"goes on")
    assert [group.applied(each)[-1] for each in (2, 3)] == [b"goes on"] * 2


def test_a_leader_that_leaves_ends_the_transfer_that_was_asked_for_and_prefers_its_target():
    raft = leader()
    propose(raft, remove(1), kind=EntryKind.CONFIG_CHANGE)
    transfer(raft, 3, sender=2)
    raft.step(ack(2, raft.term, raft.log.last_index))
    out = drain(raft)
    assert raft.state is FOLLOWER
    assert [each.to for each in of_type(out, M.TIMEOUT_NOW)] == [3]
    assert [(each.to, each.payload) for each in of_type(out, M.TRANSFER_REFUSED)] == [(2, "STEPPED_DOWN")]


REMOVAL = Entry(term=1, kind=EntryKind.CONFIG_CHANGE, payload=remove(1))


def ordered_too_early(change=REMOVAL, **options):
    """2 follows 1, which orders it to campaign; a change is committed, and not applied here."""
    raft = replica(id_=2, terms=[1, change], commit=2, **options)
    raft.step(heartbeat(1, 1))
    raft.step(Message(M.TIMEOUT_NOW, sender=1, term=1))
    assert raft.state is FOLLOWER
    return raft


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(REMOVAL, id="the leader is removed"),
        pytest.param(replace(REMOVAL, payload=remove(3)), id="another one is removed"),
        pytest.param(replace(REMOVAL, kind=EntryKind.SETTLED, payload=encode_settled(1, 77)), id="settled"),
    ],
)
def test_a_successor_campaigns_as_soon_as_it_has_applied_the_change(change):
    """J15: not before, since it could count by the wrong quorum. A leader of a young shard tells right before its order that
    entries are committed, and one of them says where its replicas live."""
    raft = ordered_too_early(change)
    asked = of_type(drain(raft), M.REQUEST_VOTE)
    assert raft.state is CANDIDATE
    assert {ask.hint for ask in asked} == {2}


def test_its_order_tells_that_the_change_is_committed_since_it_overtakes_the_append_that_does():
    raft = leader()
    propose(raft, remove(1), kind=EntryKind.CONFIG_CHANGE)
    raft.step(ack(2, raft.term, raft.log.last_index))
    [order] = of_type(drain(raft), M.TIMEOUT_NOW)
    assert (order.to, order.commit) == (2, raft.log.last_index)
    entries = [1, Entry(term=1, kind=EntryKind.CONFIG_CHANGE, payload=remove(1))]
    second = replica(id_=2, terms=entries, commit=1)
    second.step(heartbeat(1, 1))
    second.step(order)
    assert second.state is FOLLOWER
    asked = of_type(drain(second), M.REQUEST_VOTE)
    assert [ask.to for ask in asked] == [3], "it counts by the membership without the leader"


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param(lambda raft: [raft.tick() for _ in range(T)], id="it waited for an election timeout"),
        pytest.param(lambda raft: raft.step(heartbeat(3, 2)), id="another one leads"),
    ],
)
def test_an_order_that_waits_does_not_last(meanwhile):
    raft = ordered_too_early(**FIXED, pre_vote=True)
    meanwhile(raft)
    drain(raft)
    assert raft.state is not CANDIDATE
