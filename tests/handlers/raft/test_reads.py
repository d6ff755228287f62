"""Linearizable reads without a log entry (thesis §6.4), and by a lease (§6.4.1).

Facts I of docs/protocol.md, and the bugs BUG-R1 to BUG-R5 that bit other implementations. I4, an index that goes back,
cannot be brought about from outside: the commit index of one leader never falls.
"""

import pytest
from drakkar.handlers import (
    ConfigError,
    Entry,
    Membership,
    Message,
    MessageType,
    RaftConfig,
    Refusal,
    State,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    FIXED,
    T,
    ack,
    acknowledge_all,
    append,
    campaign,
    cluster,
    heartbeat,
    heartbeat_answer,
    of_type,
    propose,
    replica,
    routes,
    standing,
    tick,
    ticks_until_campaign,
    vote,
)

M = MessageType
FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = (
    State.FOLLOWER,
    State.PRE_CANDIDATE,
    State.CANDIDATE,
    State.LEADER,
)

JOINT = {"membership": Membership((1, 2, 3), outgoing=(1, 4, 5))}


def read(raft, context, sender=0):
    """Ask a replica for a read; returns what it sends, and on it `.reads` and `.dropped`."""
    hint, hint_high = context
    raft.step(Message(M.READ_INDEX, sender=sender, hint=hint, hint_high=hint_high))
    return drain(raft)


def answers(out):
    """The reads that were confirmed, as (index, context)."""
    return [(ready.index, ready.context) for ready in out.reads]


def responses(out):
    """The reads of other replicas that were answered, as (to, index, context)."""
    return [
        (sent.to, sent.log_index, (sent.hint, sent.hint_high)) for sent in of_type(out, M.READ_INDEX_RESP)
    ]


def refusals(out):
    """The reads that were not taken, as (context, reason)."""
    return [((dropped.origin, dropped.key), dropped.because) for dropped in out.dropped]


def round_of(out):
    """The name that the heartbeats of a round carry."""
    (name,) = {(sent.hint, sent.hint_high) for sent in of_type(out, M.HEARTBEAT)}
    return name


def confirm(raft, peer, name):
    """A peer answers the heartbeat of a round; returns what the leader sends."""
    raft.step(heartbeat_answer(peer, raft.term, name))
    return drain(raft)


def leader(**options):
    """A leader whose empty entry, index 1, is committed everywhere."""
    raft = replica(state=LEADER, **options)
    acknowledge_all(raft)
    return raft


# -- one round -----------------------------------------------------------------------------------------------------------


def test_a_read_costs_one_round_of_heartbeats():
    """I1 (thesis §6.4): the commit index counts once a majority, with the leader, still stands by it."""
    raft = leader()
    out = read(raft, (101, 1002))
    assert routes(out) == [(M.HEARTBEAT, 2), (M.HEARTBEAT, 3)]
    assert round_of(out) == (101, 1002)
    assert answers(confirm(raft, 3, (101, 1002))) == [(1, (101, 1002))]


def test_a_read_is_answered_with_the_index_of_its_beginning():
    """Rules of reads: what is committed meanwhile need not be waited for."""
    raft = leader()
    name = round_of(read(raft, (7, 0)))
    propose(raft, b"x")
    raft.step(ack(2, 1, 2))
    assert raft.log.committed == 2
    assert answers(confirm(raft, 2, name)) == [(1, (7, 0))]


def test_a_single_voter_needs_no_confirmation():
    """Rules of reads."""
    raft = leader(voters=(1,))
    out = read(raft, (7, 0))
    assert (out, answers(out)) == ([], [(1, (7, 0))])


@pytest.mark.parametrize(
    ("setup", "peers", "confirmed"),
    [
        pytest.param({}, [2], True, id="one of two others"),
        pytest.param({"voters": range(1, 6)}, [2], False, id="one of four others"),
        pytest.param({"voters": range(1, 6)}, [2, 2, 2], False, id="one of four others, three times"),
        pytest.param({"voters": range(1, 6)}, [2, 5], True, id="two of four others"),
        pytest.param({"voters": (1, 2, 3), "observers": (4, 5)}, [4, 5], False, id="observers do not count"),
        pytest.param({"voters": (1, 2), "witnesses": (3,)}, [3], True, id="a witness counts"),
        pytest.param(JOINT, [2, 3], False, id="one half of a joint membership"),
        pytest.param(JOINT, [2, 4], True, id="both halves of a joint membership"),
    ],
)
def test_who_confirms_a_read(setup, peers, confirmed):
    """Rules of reads: the voters of the moment, each once, in both halves."""
    raft = leader(**setup)
    name = round_of([sent for sent in read(raft, (7, 0)) if sent.to not in raft.membership.observers])
    found = [answer for peer in peers for answer in answers(confirm(raft, peer, name))]
    assert found == [(1, (7, 0))] * confirmed


def test_observers_are_not_asked_to_confirm():
    """Rules of the matrix: their heartbeats carry no context."""
    raft = leader(voters=(1, 2, 3), observers=(4,))
    contexts = {sent.to: (sent.hint, sent.hint_high) for sent in read(raft, (7, 5))}
    assert contexts == {2: (7, 5), 3: (7, 5), 4: (0, 0)}


def test_the_newest_round_confirms_all_reads_before_it():
    """Rules of reads: each is answered to the replica that asked, with its own context and the newest index."""
    raft = leader(voters=(1, 2, 3))
    first = round_of(read(raft, (7, 0)))
    read(raft, (8, 0), sender=2)
    propose(raft, b"x")
    raft.step(ack(2, 1, 2))
    drain(raft)
    third = round_of(read(raft, (9, 0)))
    read(raft, (10, 0), sender=3)
    out = confirm(raft, 3, third)
    assert answers(out) == [(2, (7, 0)), (2, (9, 0))]
    assert responses(out) == [(2, 2, (8, 0))]
    assert answers(confirm(raft, 2, first)) == []


def test_an_answer_to_a_later_round_counts_for_the_earlier_ones_too():
    """Rules of reads: two of four others have answered since the first read, and only one since the second."""
    raft = leader(voters=range(1, 6))
    first = round_of(read(raft, (7, 0)))
    second = round_of(read(raft, (8, 0)))
    assert answers(confirm(raft, 3, second)) == []
    assert answers(confirm(raft, 2, first)) == [(1, (7, 0))]
    assert answers(confirm(raft, 2, first)) == [], "it is late, and says nothing of the second"
    assert answers(confirm(raft, 2, second)) == [(1, (8, 0))]


def test_a_late_answer_takes_back_nothing():
    """Rules of reads: answers may come in any order."""
    raft = leader(voters=range(1, 6))
    first = round_of(read(raft, (7, 0)))
    second = round_of(read(raft, (8, 0)))
    for peer, name in ((3, second), (3, first), (2, second)):
        out = confirm(raft, peer, name)
    assert answers(out) == [(1, (7, 0)), (1, (8, 0))]


def test_an_answer_to_an_unknown_round_confirms_nothing():
    """Rules of reads."""
    raft = leader()
    read(raft, (7, 0))
    for name in ((8, 0), (7, 1)):
        assert answers(confirm(raft, 2, name)) == []


def test_every_further_heartbeat_repeats_the_newest_round():
    """Rules of reads, BUG-R3: so that lost messages delay a read, and do not lose it."""
    raft = leader()
    read(raft, (7, 0))
    newest = round_of(read(raft, (8, 0)))
    assert round_of(tick(raft)) == newest
    assert answers(confirm(raft, 2, newest)) == [(1, (7, 0)), (1, (8, 0))]
    assert round_of(tick(raft)) == (0, 0)


def test_the_same_read_again_is_not_queued_twice():
    """I3."""
    raft = leader()
    name = round_of(read(raft, (7, 0)))
    out = read(raft, (7, 0))
    assert (out, out.dropped) == ([], [])
    assert answers(confirm(raft, 2, name)) == [(1, (7, 0))]


def test_nothing_is_kept_of_an_answered_read():
    """I5."""
    raft = leader(voters=(1, 2))
    name = round_of(read(raft, (7, 0)))
    confirm(raft, 2, name)
    assert len(raft.reads) == 0
    assert answers(confirm(raft, 2, name)) == []


def test_reads_at_the_leader_and_at_an_observer_see_all_that_was_committed_before_them():
    """I6."""
    group = cluster(Membership((1,), observers=(2,)))
    group.elect(1)
    for number, at in enumerate((1, 2, 1, 2), 1):
        for _ in range(10):
            group.propose(1, b"x")
        group.read(at, 1000 + number)
    assert {each: [(ready.index, ready.context) for ready in group.nodes[each].reads] for each in (1, 2)} == {
        1: [(11, (1001, 0)), (31, (1003, 0))],
        2: [(21, (1002, 0)), (41, (1004, 0))],
    }


# -- before the first commit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", [0, 3], ids=["of its own host", "of another replica"])
def test_a_new_leader_answers_no_read_before_it_has_committed_in_its_term(sender):
    """I2 by etcd's rule, BUG-R1: until then it does not know what is committed, and its answer would be stale."""
    raft = replica(terms=[1, 1], commit=1, state=LEADER)
    out = read(raft, (7, 0), sender)
    assert (out, out.reads, out.dropped) == ([], [], [])
    raft.step(ack(2, 2, 2))
    assert of_type(drain(raft), M.HEARTBEAT) == []
    raft.step(ack(2, 2, 3))
    out = confirm(raft, 2, round_of(drain(raft)))
    assert answers(out) + responses(out) == ([(3, 3, (7, 0))] if sender else [(3, (7, 0))])


def test_a_single_voter_that_restarts_reads_all_that_it_had_committed():
    """BUG-R5: its commit index on disk may lag, so it must not answer by that."""
    raft = replica(voters=(1,), terms=[1, 1], commit=0)
    raft.step(Message(M.ELECTION, sender=1))
    raft.step(Message(M.READ_INDEX, hint=7))
    ready = raft.ready()
    assert (raft.state, ready.reads) == (LEADER, [])
    raft.persisted(ready)
    assert answers(drain(raft)) == [(3, (7, 0))]


def test_postponed_reads_are_told_when_the_leader_steps_down():
    """Rules of terms: etcd forgets them there, and answers them in a later term."""
    raft = replica(state=LEADER)
    read(raft, (7, 0))
    raft.step(heartbeat(2, 2))
    assert refusals(drain(raft)) == [((7, 0), Refusal.STEPPED_DOWN)]
    campaign(raft)
    raft.step(vote(3, 3))
    raft.step(ack(3, 3, 2))
    assert of_type(drain(raft), M.READ_INDEX_RESP) == []
    assert len(raft.reads) == 0


# -- elsewhere ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observer", [False, True], ids=["follower", "observer"])
def test_a_replica_that_knows_the_leader_forwards_reads_to_it(observer):
    """I11."""
    members = {"voters": (2, 3), "observers": (1,)} if observer else {}
    raft = replica(term=4, leader=2, **members)
    (sent,) = read(raft, (7, 9))
    assert (sent.type, sent.to, sent.term, sent.hint, sent.hint_high) == (M.READ_INDEX, 2, 0, 7, 9)


@pytest.mark.parametrize(
    ("setup", "because"),
    [
        ({}, Refusal.NO_LEADER),
        ({"voters": (2, 3), "observers": (1,)}, Refusal.NO_LEADER),
        ({"state": PRE_CANDIDATE}, Refusal.CAMPAIGNING),
        ({"state": CANDIDATE}, Refusal.CAMPAIGNING),
    ],
    ids=["follower", "observer", "pre-candidate", "candidate"],
)
def test_without_a_leader_a_read_is_refused_at_once(setup, because):
    """Rules of the matrix: reported, and once."""
    out = read(replica(term=4, **setup), (7, 9))
    assert (out, refusals(out)) == ([], [((7, 9), because)])


def test_a_witness_takes_no_reads():
    """I10: it has nothing to read."""
    raft = replica(voters=(2, 3), witnesses=(1,), term=4, leader=2)
    out = read(raft, (7, 9))
    assert (out, out.reads, out.dropped) == ([], [], [])
    assert raft.tally.impossible[State.WITNESS, M.READ_INDEX] == 1


def test_a_leader_answers_no_witness():
    """Rules of reads."""
    raft = leader(voters=(1, 2), witnesses=(3,))
    assert read(raft, (7, 0), sender=3) == []


def test_an_observer_of_a_single_voter_is_answered_at_once():
    """I9, first half."""
    raft = leader(voters=(1,), observers=(2,))
    assert responses(read(raft, (7, 9), sender=2)) == [(2, 1, (7, 9))]


def test_an_observer_is_answered_after_the_word_of_the_other_voter():
    """I9, second half: its own word does not count."""
    raft = leader(voters=(1, 2), observers=(3,))
    out = read(raft, (7, 9), sender=3)
    assert responses(out) == []
    name = round_of([sent for sent in out if sent.to == 2])
    assert responses(confirm(raft, 3, name)) == []
    assert responses(confirm(raft, 2, name)) == [(3, 1, (7, 9))]


def test_the_answer_makes_a_read_ready_and_proves_the_leader():
    """Rules of the matrix: it resets the election timer."""
    raft = replica(term=4, **FIXED)
    tick(raft, T - 1)
    raft.step(Message(M.READ_INDEX_RESP, sender=2, term=4, log_index=9, hint=7, hint_high=1))
    assert answers(drain(raft)) == [(9, (7, 1))]
    assert standing(raft) == (FOLLOWER, 4, 0, 2)
    assert ticks_until_campaign(raft) == T


@pytest.mark.parametrize("state", [PRE_CANDIDATE, CANDIDATE], ids=lambda state: state.name)
def test_an_answer_that_comes_during_a_campaign_is_dropped(state):
    """Rules of the matrix: the campaign has told its host already that there will be no answer."""
    raft = replica(term=4, state=state)
    raft.step(Message(M.READ_INDEX_RESP, sender=2, term=4, log_index=0, hint=7))
    out = drain(raft)
    assert (out.reads, raft.state) == ([], state)


@pytest.mark.parametrize(
    ("terms", "index", "commit"),
    [
        pytest.param([1, 2, 2], 3, 3, id="held, of this term"),
        pytest.param([1, 1, 1], 3, 1, id="held, but of an older term"),
        pytest.param([1, 2], 3, 1, id="not held yet"),
    ],
)
def test_the_answer_may_raise_the_commit_index(terms, index, commit):
    """I13 (raft-rs): an entry of the leader's own term is the leader's own entry."""
    raft = replica(terms=terms, term=2, commit=1, leader=2)
    raft.step(Message(M.READ_INDEX_RESP, sender=2, term=2, log_index=index, hint=7))
    assert answers(drain(raft)) == [(index, (7, 0))]
    assert raft.log.committed == commit


def test_a_leader_that_steps_down_tells_its_host_which_reads_are_lost():
    """Rules of reads: the reads of other replicas are told by their own clocks."""
    raft = leader()
    read(raft, (7, 0))
    read(raft, (8, 0), sender=2)
    name = round_of(read(raft, (9, 0)))
    raft.step(heartbeat(2, 2))
    assert refusals(drain(raft)) == [
        ((7, 0), Refusal.STEPPED_DOWN),
        ((9, 0), Refusal.STEPPED_DOWN),
    ]
    campaign(raft)
    raft.step(vote(3, 3))
    raft.step(ack(3, 3, 2))
    drain(raft)
    assert answers(confirm(raft, 3, name)) == []


@pytest.mark.parametrize("committed", [True, False], ids=["confirmable", "postponed"])
def test_reads_are_bounded(committed):
    """Rules of reads: one too many is refused at once, to the replica that asked."""
    raft = replica(state=LEADER, max_pending_reads=2)
    if committed:
        acknowledge_all(raft)
    read(raft, (7, 0))
    read(raft, (8, 0), sender=2)
    assert refusals(read(raft, (9, 0))) == [((9, 0), Refusal.TOO_MANY_READS)]
    (sent,) = read(raft, (10, 0), sender=3)
    assert (sent.type, sent.to, sent.hint, sent.payload) == (M.READ_REFUSED, 3, 10, "TOO_MANY_READS")


def test_a_refusal_by_the_leader_reaches_the_host_that_asked():
    """Rules of reads, V11: it need not wait for its clock."""
    raft = replica(term=4, leader=2)
    read(raft, (7, 9))
    raft.step(Message(M.READ_REFUSED, sender=2, hint=7, hint_high=9, payload="TOO_MANY_READS"))
    out = drain(raft)
    assert (refusals(out), out.reads) == ([((7, 9), Refusal.TOO_MANY_READS)], [])


@pytest.mark.parametrize("state", [State.PRE_CANDIDATE, State.CANDIDATE], ids=lambda state: state.name)
def test_a_campaigning_replica_refuses_the_read_of_another(state):
    """As it refuses a proposal: the other need not wait for its clock."""
    raft = replica(state=state, term=4)
    (sent,) = read(raft, (7, 9), sender=3)
    assert (sent.type, sent.to, sent.term, sent.hint, sent.hint_high) == (M.READ_REFUSED, 3, 0, 7, 9)
    assert sent.payload == "CAMPAIGNING"
    other = replica(3, term=4, leader=1)
    other.step(sent)
    assert refusals(drain(other)) == [((7, 9), Refusal.CAMPAIGNING)]


# -- bugs of others ---------------------------------------------------------------------------------------------------------


def test_late_answers_to_a_first_round_confirm_no_second_one():
    """I8, BUG-R2: 2's read comes twice, as networks duplicate. 1 was deposed between the two.

    Rounds named by the caller's context would take 3's late answer for the second copy's, and with it for read B.
    """
    group = cluster(3)
    group.elect(1)
    group.propose(1, b"old")
    copy = Message(M.READ_INDEX, sender=2, to=1, hint=7)
    group.auto_deliver = False
    group.step(1, copy)
    name = round_of(group.network)
    group.step(1, heartbeat_answer(2, 1, name))
    assert responses(group.network) == [(2, 2, (7, 0))]
    late = heartbeat_answer(3, 1, name)
    group.network.clear()
    group.auto_deliver = True
    group.isolate(1)
    group.elect(2)
    group.propose(2, b"new")
    assert group.applied(2) == [b"old", b"new"]
    assert group[1].state is LEADER
    group.read(1, 8)
    group.step(1, copy)
    group.step(1, late)
    assert group.nodes[1].reads == []


def test_a_context_that_this_host_repeats_gets_a_round_of_its_own():
    """BUG-R2 for local reads: never trust that contexts are unique."""
    raft = leader()
    first = round_of(read(raft, (7, 0)))
    confirm(raft, 2, first)
    second = round_of(read(raft, (7, 0)))
    assert answers(confirm(raft, 3, first)) == []
    assert answers(confirm(raft, 3, second)) == [(1, (7, 0))]


def test_a_copy_of_another_replicas_read_gets_a_round_of_its_own_however_late_it_comes():
    """BUG-R2: what a leader remembers is bounded, and the network's memory is not known."""
    raft = leader(max_pending_reads=1)
    names = []
    for context in (7, 8, 9, 10, 11, 12, 7):
        names.append(round_of(read(raft, (context, 0), sender=3)))
        confirm(raft, 2, names[-1])
    assert len(set(names)) == len(names)


def test_two_replicas_may_use_the_same_context():
    """BUG-R2: neither confirms, nor hides, the other's read."""
    raft = leader()
    read(raft, (7, 0))
    read(raft, (7, 0), sender=2)
    name = round_of(read(raft, (7, 0), sender=3))
    out = confirm(raft, 2, name)
    assert (answers(out), responses(out)) == ([(1, (7, 0))], [(2, 1, (7, 0)), (3, 1, (7, 0))])


def test_a_read_without_a_context_is_confirmed_by_no_plain_heartbeat():
    """BUG-R2: (0, 0) is what all other heartbeats carry."""
    raft = leader()
    name = round_of(read(raft, (0, 0)))
    assert name != (0, 0)
    assert answers(confirm(raft, 2, (0, 0))) == []
    assert answers(confirm(raft, 2, name)) == [(1, (0, 0))]


def test_removing_dead_voters_releases_the_reads_that_waited_for_them():
    """I12, BUG-R3 (raft-rs)."""
    raft = leader()
    read(raft, (7, 0))
    read(raft, (8, 0), sender=2)
    for dead, found in ((2, []), (3, [(1, (7, 0))])):
        raft.step(Message(M.CONFIG_CHANGE_EVENT, hint=dead, hint_high=1))
        assert answers(drain(raft)) == found


@pytest.mark.parametrize(
    "lost", [M.HEARTBEAT, M.HEARTBEAT_RESP, None], ids=["request", "answer", "reordered"]
)
def test_lost_and_reordered_answers_only_delay_reads(lost):
    """BUG-R3."""
    raft = leader()
    first = round_of(read(raft, (7, 0)))
    second = round_of(read(raft, (8, 0)))
    found = []
    if lost is None:
        found += answers(confirm(raft, 2, second))
        found += answers(confirm(raft, 2, first))
    else:
        found += answers(confirm(raft, 2, round_of(tick(raft))))
    assert found == [(1, (7, 0)), (1, (8, 0))]
    assert len(raft.reads) == 0


def test_a_deposed_leader_confirms_nothing_and_steps_down_by_the_answers():
    """BUG-R5: the question is asked after the read began, so there is no window between the two."""
    group = cluster(3)
    group.elect(1)
    group.isolate(1)
    group.elect(2)
    group.propose(2, b"new")
    group.read(1, 7)
    group.heal()
    group.tick(2)
    assert group.nodes[1].reads == []
    assert [(dropped.origin, dropped.because) for dropped in group.nodes[1].dropped] == [
        (7, Refusal.STEPPED_DOWN)
    ]


# -- leases --------------------------------------------------------------------------------------------------------------------


LEASE = {"read_mode": "lease", "check_quorum": True, "pre_vote": True}


def hear_all(raft, *peers):
    """One tick, and the answers of these peers, or of all, to its heartbeats."""
    for sent in of_type(tick(raft), M.HEARTBEAT):
        if not peers or sent.to in peers:
            raft.step(heartbeat_answer(sent.to, raft.term, log_index=sent.log_index))
    drain(raft)


def served_by_lease(raft, context=(7, 0)):
    """Whether a read is answered at once."""
    return answers(read(raft, context)) == [(raft.log.committed, context)]


def test_a_lease_needs_check_quorum():
    """Rules of reads: without it no follower defends the leader."""
    with pytest.raises(ConfigError, match="check_quorum"):
        RaftConfig(replica_id=1, read_mode="lease", check_quorum=False)


def test_reads_by_lease_see_all_that_was_committed_before_them():
    """I7."""
    group = cluster(3, **LEASE)
    group.elect(1)
    group.tick()
    for number in range(6):
        for _ in range(10):
            group.propose(1, b"x")
        group.read(number % 3 + 1, 1000 + number)
    assert {each: [ready.index for ready in group.nodes[each].reads] for each in (1, 2, 3)} == {
        1: [11, 41],
        2: [21, 51],
        3: [31, 61],
    }


def test_inside_its_lease_a_leader_asks_no_peer():
    """Rules of reads (thesis §6.4.1); elsewhere and by default a round is needed."""
    raft = leader(**LEASE)
    hear_all(raft)
    assert served_by_lease(raft)
    raft = leader(check_quorum=True)
    hear_all(raft)
    raft.step(heartbeat_answer(2, 1, log_index=raft.timers.ticks))
    assert not served_by_lease(raft)


def test_a_lease_does_not_replace_the_first_commit_of_the_term():
    """Rules of reads, BUG-R1."""
    raft = replica(terms=[1], state=LEADER, **LEASE)
    hear_all(raft)
    assert not served_by_lease(raft)


@pytest.mark.parametrize(
    ("setup", "peers", "holds"),
    [
        pytest.param({}, [2], True, id="one of two others"),
        pytest.param({"voters": range(1, 6)}, [2], False, id="one of four others"),
        pytest.param({"voters": range(1, 6)}, [2, 3], True, id="two of four others"),
        pytest.param({"voters": (1, 2, 3), "observers": (4,)}, [4], False, id="an observer"),
        pytest.param(JOINT, [2, 3], False, id="one half of a joint membership"),
    ],
)
def test_whose_answers_make_a_lease(setup, peers, holds):
    """Thesis §6.4.1: a quorum's."""
    raft = leader(**setup, **LEASE)
    hear_all(raft, *peers)
    assert served_by_lease(raft) is holds


def test_a_lease_runs_from_when_the_answered_heartbeat_left():
    """BUG-R4: a late answer says nothing about the time that it took, and CheckQuorum's flags even less."""
    raft = leader(**LEASE)
    heartbeats = of_type(tick(raft), M.HEARTBEAT)
    tick(raft, T - 4)
    raft.step(heartbeat_answer(2, 1, log_index=heartbeats[0].log_index))
    assert served_by_lease(raft, (7, 0))
    tick(raft, 2)
    assert not served_by_lease(raft, (8, 0))


@pytest.mark.parametrize("phase", [0.01, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("rate", [0.9, 1.0, 1.1])
def test_a_lease_is_over_before_another_leads_though_clocks_drift(rate, phase):
    """BUG-R4: within the drift of a tenth that lease reads assume, whenever the clocks tick.

    1 leads and is cut off at time 0. The others' clocks run at `rate`, and tick first at `phase`.
    """
    group = cluster(3, **LEASE, **FIXED)
    group.elect(1)
    group.tick()
    group.isolate(1)
    ours = [(float(number), (1,)) for number in range(1, 3 * T)]
    theirs = [(phase + number / rate, (2, 3)) for number in range(3 * T)]
    served = []
    for now, who in sorted(ours + theirs):
        group.tick(1, *who)
        if group[1].state is LEADER:
            before = len(group.nodes[1].reads)
            group.read(1, int(now * 1000))
            if len(group.nodes[1].reads) > before:
                assert group.leader is group[1], f"a stale read at {now}"
                served.append(now)
    assert max(served) > T / 2, "the lease is of some use"
    assert group.leader is not group[1]


def test_a_proposal_that_is_sent_on_and_a_read_keep_their_order():
    """Rules of reads: a client that has seen its write committed reads at or behind it, wherever it asks."""
    group = cluster(3)
    group.elect(1)
    group.propose(2, b"x")
    group.read(3, 7)
    (ready,) = group.nodes[3].reads
    assert group[1].log.entries(ready.index, ready.index + 1)[0] == Entry(2, 1, payload=b"x")


def test_an_append_of_a_newer_leader_ends_all_pending_reads():
    """Rules of reads: any reset clears the queue."""
    raft = leader()
    name = round_of(read(raft, (7, 0)))
    raft.step(append(2, 2))
    raft.step(heartbeat_answer(3, 2, name))
    assert answers(drain(raft)) == []


def leader_whose_follower_restarts():
    """1 leads 2 and 3 by a lease that 2 alone has confirmed lately; then 2 restarts, and hears only 3."""
    group = cluster(3, **{**LEASE, **FIXED})
    group.elect(1)
    group.tick(2)
    group.cut(1, 3)
    group.tick(T - 1)
    group.crash(2)
    group.restart(2)
    group.cut(1, 2)
    return group


def test_a_restarted_follower_grants_no_vote_while_a_lease_may_last_that_it_has_forgotten():
    """§6.4.1: it confirmed the lease just before, so another leader could commit what reads at the old one miss."""
    group = leader_whose_follower_restarts()
    group.tick(2, 3)
    group.propose(3, b"new")
    assert group[2].log.committed == 1
    group.read(1, 77)
    assert [ready.index for ready in group.nodes[1].reads] == [1], "by the lease, which holds"


def test_a_restarted_follower_votes_again_once_the_lease_is_over():
    group = leader_whose_follower_restarts()
    group.tick(3 * T)
    assert group.leader is not None
    assert group.leader.id != 1
    group.read(1, 77)
    assert not group.nodes[1].reads


def test_without_leases_a_restarted_follower_votes_at_once():
    raft = replica(term=3, check_quorum=True)
    raft.step(Message(M.REQUEST_VOTE, sender=2, term=4, log_index=9, log_term=3))
    [answer] = drain(raft)
    assert (answer.type, answer.reject) == (M.REQUEST_VOTE_RESP, False)
