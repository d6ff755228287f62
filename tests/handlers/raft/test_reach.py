"""A change after which a quorum could not be reached is refused (rules of membership, INV43; etcd's strict check)."""

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    CorruptData,
    EntryKind,
    Membership,
    Message,
    MessageType,
    Refusal,
    State,
    Transition,
)
from drakkar.handlers.raft.entries import Entries, Run

from tests.handlers.raft.support import (
    T,
    ack,
    hear,
    heartbeat_answer,
    of_type,
    propose,
    replica,
    tick,
)

M = MessageType
KINDS = {
    "v": ChangeType.ADD_VOTER,
    "r": ChangeType.REMOVE,
    "o": ChangeType.ADD_OBSERVER,
    "w": ChangeType.ADD_WITNESS,
    "u": ChangeType.UPDATE,
}


def change(text, **fields):
    """`"v4 r1"`: add voter 4, remove 1; `o` observer, `w` witness, `u` update."""
    made = tuple(Change(KINDS[word[0]], int(word[1:])) for word in text.split())
    return ConfigChange(made, **fields)


def ask(raft, text, **fields):
    """Propose a change; returns the replicas that it lacks, None where it was logged."""
    out = propose(raft, change(text, **fields).encode(), kind=EntryKind.CONFIG_CHANGE)
    if not out.dropped:
        return None
    (refused,) = out.dropped
    assert refused.because is Refusal.QUORUM_UNREACHABLE
    return refused.replicas


def leader(*heard, **options):
    """1 leads, and has heard some of the others."""
    raft = replica(
        **{"state": State.LEADER, "check_quorum": True, "strict_membership_changes": True, **options}
    )
    hear(raft, *(ack(peer, raft.term, raft.log.last_index) for peer in heard))
    return raft


@pytest.mark.parametrize(
    ("voters", "heard", "text", "lacks"),
    [
        pytest.param((1,), (), "v2", (2,), id="a second voter that nobody ever heard"),
        pytest.param((1,), (), "w2", (2,), id="or a witness"),
        pytest.param((1,), (), "v2 v3", (2, 3), id="or two"),
        pytest.param((1, 2), (2,), "v3", None, id="a third, since two are enough"),
        pytest.param((1, 2, 3), (2,), "v4", (3, 4), id="a fourth, while one of three is down"),
        pytest.param((1, 2, 3), (2, 3), "v4", None, id="a fourth, while all are up"),
        pytest.param((1, 2, 3), (2,), "r3", None, id="the one that is down is removed"),
        pytest.param((1, 2, 3), (2,), "r2", (3,), id="one that is up is removed, while one is down"),
        pytest.param((1, 2, 3), (2,), "r1", (3,), id="the leader removes itself, while one is down"),
        pytest.param((1, 2, 3), (2, 3), "r1", None, id="the leader removes itself"),
        pytest.param((1, 2, 3, 4, 5), (2, 3), "r5", None, id="one of two that are down is removed"),
        pytest.param((1, 2, 3, 4, 5), (2, 3), "v6", (4, 5, 6), id="two are down, and a sixth is added"),
        pytest.param((1, 2, 3), (2,), "v4 r2", (3, 4), id="jointly: the new half has one of two"),
        pytest.param((1, 2, 3), (2, 3), "v4 r2", None, id="jointly: the new half has two of three"),
        pytest.param((1,), (), "o2", None, id="an observer decides nothing"),
        pytest.param((1, 2, 3), (2,), "u2", None, id="nor does an update"),
    ],
)
def test_a_change_needs_a_quorum_that_is_heard(voters, heard, text, lacks):
    raft = leader(*heard, voters=voters)
    last = raft.log.last_index
    assert ask(raft, text) == lacks
    kinds = [entry.kind for entry in raft.log.entries(last + 1, raft.log.last_index + 1)]
    assert kinds == [EntryKind.NO_OP if lacks else EntryKind.CONFIG_CHANGE]


def test_a_change_is_made_all_the_same_where_it_is_forced():
    raft = leader(voters=(1,))
    assert ask(raft, "v2", forced=True) is None
    assert raft.membership.voters == {1, 2}


@pytest.mark.parametrize(
    "options", [{"strict_membership_changes": False}, {"disable_conf_change_validation": True}]
)
def test_without_the_option_nothing_is_asked(options):
    raft = leader(voters=(1,), **options)
    assert ask(raft, "v2") is None


def test_from_one_voter_a_shard_grows_by_an_observer_that_has_caught_up():
    raft = leader(voters=(1,))
    ask(raft, "o2")
    assert ask(raft, "v2") == (2,), "it was never heard"
    hear(raft, ack(2, 1, 0))
    assert ask(raft, "v2") == (2,), "it has not caught up"
    hear(raft, ack(2, 1, raft.log.last_index))
    assert ask(raft, "v2") is None
    hear(raft, ack(2, 1, raft.log.last_index))
    assert raft.membership.voters == {1, 2}
    assert ask(raft, "v3") is None
    hear(raft, ack(2, 1, raft.log.last_index))
    assert raft.membership.voters == {1, 2, 3}


def test_an_observer_has_caught_up_that_lags_by_less_than_two_election_timeouts():
    raft = leader(voters=(1,), observers=(2,))

    def write_and_wait():
        propose(raft, b"x")
        tick(raft, T)
        hear(raft, heartbeat_answer(2, 1))
        return raft.log.last_index

    first, second, third = write_and_wait(), write_and_wait(), write_and_wait()
    assert ask(raft, "v2") == (2,)
    hear(raft, ack(2, 1, first))
    assert ask(raft, "v2") == (2,)
    hear(raft, ack(2, 1, second))
    assert raft.log.last_index > third > second
    assert ask(raft, "v2") is None


@pytest.mark.parametrize("check_quorum", [True, False])
def test_who_was_not_heard_for_two_rounds_is_not_reachable(check_quorum):
    raft = leader(2, 3, check_quorum=check_quorum)
    tick(raft, T)
    hear(raft, heartbeat_answer(2, 1))
    assert ask(raft, "r9") is None  # 3 was heard in the last round
    hear(raft, ack(2, 1, raft.log.last_index))
    tick(raft, T)
    hear(raft, heartbeat_answer(2, 1))
    assert raft.state is State.LEADER
    assert ask(raft, "v4") == (3, 4)
    hear(raft, heartbeat_answer(3, 1))
    assert ask(raft, "v4") is None


def test_whose_connection_is_lost_is_not_reachable_before_it_answers():
    raft = leader(2, 3)
    hear(raft, Message(M.UNREACHABLE, sender=3))
    assert ask(raft, "v4") == (3, 4)
    hear(raft, heartbeat_answer(3, 1))
    assert ask(raft, "v4") is None


def test_who_is_only_taken_for_active_was_not_heard():
    """A peer that is new, and all after a sleep, count as active for CheckQuorum."""
    raft = leader(2)
    ask(raft, "o4")
    hear(raft, ack(2, 1, raft.log.last_index))
    assert raft.progress[4].active
    assert not raft.progress[4].reachable
    hear(raft, Message(M.UNREACHABLE, sender=2))
    raft.wake()
    assert raft.progress[2].active
    assert not raft.progress[2].reachable


@pytest.mark.parametrize("answer", [M.REPLICATE_RESP, M.HEARTBEAT_RESP, M.LOG_FULL, M.SNAPSHOT_REQUEST])
def test_every_answer_shows_that_a_peer_is_there(answer):
    raft = leader(2)
    fields = {"hint": 1, "log_term": 1} if answer is M.SNAPSHOT_REQUEST else {}
    hear(raft, Message(answer, sender=3, term=1, log_index=1, **fields))
    assert raft.progress[3].reachable


def test_a_joint_membership_can_always_be_left():
    joint = Membership((1, 2), outgoing=(1, 2, 3))
    raft = leader(3, membership=joint)
    hear(raft, ack(2, 1, raft.log.last_index), Message(M.UNREACHABLE, sender=2))
    out = propose(raft, ConfigChange().encode(), kind=EntryKind.CONFIG_CHANGE)
    assert not out.dropped


@pytest.mark.parametrize("transition", [Transition.IMPLICIT, Transition.EXPLICIT])
def test_a_joint_change_needs_both_halves(transition):
    raft = leader(2)
    assert ask(raft, "r2", transition=transition) == (3,)
    raft = leader(2, 3)
    assert ask(raft, "r2", transition=transition) is None


def test_a_change_that_its_rules_forbid_is_refused_by_them():
    raft = leader(2)
    assert ask(raft, "v2") is None
    hear(raft, ack(2, 1, raft.log.last_index))
    assert raft.membership.voters == {1, 2, 3}


def test_who_forwarded_the_change_is_told_whom_it_lacks():
    raft = leader(2, voters=(1, 2, 3))
    payload = change("v4").encode()
    run = Run(0, 0, [payload], bytes([EntryKind.CONFIG_CHANGE]), origin=7, key=5)
    sent = hear(raft, Message(M.PROPOSE, sender=2, entries=Entries([run])))
    (told,) = of_type(sent, M.PROPOSE_REFUSED)
    assert (told.to, told.payload, told.hint, told.hint_high) == (2, ["QUORUM_UNREACHABLE", 3, 4], 7, 5)
    follower = replica(2, leader=1, term=1)
    (dropped,) = hear(follower, told).dropped
    assert (dropped.because, dropped.replicas, dropped.origin, dropped.key) == (
        Refusal.QUORUM_UNREACHABLE,
        (3, 4),
        7,
        5,
    )


@pytest.mark.parametrize(
    ("payload", "because", "replicas"),
    [
        (["QUORUM_UNREACHABLE"], Refusal.QUORUM_UNREACHABLE, ()),
        (["QUORUM_UNREACHABLE", "x", -1, 4], Refusal.QUORUM_UNREACHABLE, (4,)),
        ([], Refusal.NO_LEADER, ()),
        ([7, 8], Refusal.NO_LEADER, (8,)),
        (["SOMETHING_NEW", 4], Refusal.NO_LEADER, (4,)),
    ],
)
def test_a_refusal_is_read_whatever_it_says(payload, because, replicas):
    follower = replica(2, leader=1, term=1)
    refusal = Message(M.PROPOSE_REFUSED, sender=1, hint=7, hint_high=5, log_index=1, payload=payload)
    (dropped,) = hear(follower, refusal).dropped
    assert (dropped.because, dropped.replicas) == (because, replicas)


def test_that_a_change_is_forced_stands_in_its_entry():
    forced, plain = change("v2", forced=True), change("v2")
    assert ConfigChange.decode(forced.encode()) == forced
    assert ConfigChange.decode(plain.encode()) == plain
    assert len(plain.encode()) < len(forced.encode()), "as earlier versions wrote it"


@pytest.mark.parametrize("row", [b"\x83\x00\x00\xf4", b"\x86\x00\x00\xf4\x80\xf5\xf5"])
def test_a_change_with_too_few_or_too_many_parts_is_none(row):
    with pytest.raises(CorruptData):
        ConfigChange.decode(row)


def test_a_new_leader_asks_of_an_observer_that_it_holds_what_the_leader_inherited():
    raft = leader(2, terms=(1, 1, 1), observers=(4,))
    hear(raft, ack(4, raft.term, 1))
    assert raft.progress[4].reachable
    assert not raft.progress[4].caught_up
    hear(raft, ack(4, raft.term, raft.log.last_index))
    assert raft.progress[4].caught_up
