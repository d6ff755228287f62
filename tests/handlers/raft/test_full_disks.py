"""A full disk: rules of full disks in docs/protocol.md."""

from itertools import pairwise

import pytest
from drakkar.handlers import Entry, EntryKind, Membership, Message, MessageType, Refusal, State
from drakkar.handlers.raft.room import CAMPAIGN_TIMEOUTS
from drakkar.handlers.raft.room_watch import RoomWatch
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    FIXED,
    T,
    ack,
    acknowledge_all,
    append,
    cluster,
    hear,
    heartbeat,
    heartbeat_answer,
    install,
    of_type,
    propose,
    rejection,
    replica,
    routes,
    terms_of,
    tick,
    ticks_until_campaign,
    vote_request,
)

M = MessageType
FOLLOWER, LEADER = State.FOLLOWER, State.LEADER
FULL = Message(M.DISK_FULL, sender=1)
ROOM = Message(M.DISK_ROOM, sender=1)
NO_OP = Entry(index=3, term=2, kind=EntryKind.NO_OP)
OPENING = [NO_OP]


def full(**options):
    """A replica without room, with a log of `[1,1]`, in term 2 of leader 2."""
    raft = replica(**{"terms": [1, 1], "term": 2, "leader": 2, **options})
    hear(raft, FULL)
    return raft


def leader(**options):
    """1 leads 2 and 3, which hold all of its log, in REPLICATE."""
    raft = replica(state=LEADER, **options)
    acknowledge_all(raft)
    return raft


def log_full(sender, term, index):
    return Message(M.LOG_FULL, sender=sender, term=term, log_index=index)


# -- a follower ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("previous", "terms", "held", "log"),
    [
        pytest.param((2, 1), [1], 2, [1, 1], id="a new entry"),
        pytest.param((1, 1), [1, 1], 2, [1, 1], id="one that is here, and a new one"),
        pytest.param((1, 1), [1], 2, [1, 1], id="only what is here"),
        pytest.param((2, 1), [], 2, [1, 1], id="no entry"),
        pytest.param((1, 1), [2], 1, [1, 1], id="a conflict, which stays"),
        pytest.param((2, 1), OPENING, 3, [1, 1, 2], id="the entry that begins the term"),
        pytest.param((1, 1), [1, NO_OP, 2], 3, [1, 1, 2], id="it behind what is here, and one more"),
        pytest.param((2, 1), [1, Entry(index=4, term=2)], 2, [1, 1], id="it behind one that is dropped"),
        pytest.param(
            (2, 1), [Entry(index=3, term=2, payload=b"x")], 2, [1, 1], id="a term that begins with a command"
        ),
    ],
)
def test_a_follower_without_room_takes_no_entries_and_says_how_far_its_log_agrees(previous, terms, held, log):
    raft = full()
    [answer] = hear(raft, append(2, 2, previous, terms))
    assert (answer.type, answer.to, answer.log_index, answer.reject) == (M.LOG_FULL, 2, held, False)
    assert terms_of(raft) == log


def test_what_is_dropped_is_counted():
    raft = full()
    hear(raft, append(2, 2, (2, 1), [1, 1, 1]), append(2, 2, (1, 1), [1, 1]))
    assert raft.room.dropped == 4


def test_the_answer_leaves_once_what_it_acknowledges_is_durable():
    raft = full()
    raft.step(append(2, 2, (2, 1), OPENING))
    ready = raft.ready()
    assert [m.type for m in ready.messages_after_save] == [M.LOG_FULL]
    assert not of_type(ready.messages, M.LOG_FULL)


def test_what_it_holds_is_committed_as_far_as_the_message_vouches_for_it():
    raft = full()
    hear(raft, append(2, 2, (1, 1), [1, 1], commit=3))
    assert raft.log.committed == 2
    raft = full()
    hear(raft, heartbeat(2, 2, commit=2))
    assert raft.log.committed == 2


def test_a_log_that_parts_from_the_leaders_is_refused_as_always():
    """So the leader finds out where they agree, which needs no room."""
    [answer] = hear(full(), append(2, 2, (5, 2), [2]))
    assert (answer.type, answer.reject, answer.hint) == (M.REPLICATE_RESP, True, 2)


def test_it_votes_answers_heartbeats_and_takes_a_snapshot():
    raft = full(leader=0)
    [vote] = hear(raft, vote_request(3, 3, 2, 1))
    assert (vote.type, vote.reject) == (M.REQUEST_VOTE_RESP, False)
    raft = full()
    assert routes(hear(raft, heartbeat(2, 2))) == [(M.HEARTBEAT_RESP, 2)]
    [answer] = hear(raft, install(2, 2, (9, 2)))
    assert (answer.type, answer.log_index, raft.log.last_index) == (M.LOG_FULL, 9, 9)


@pytest.mark.parametrize("roles", [{"observers": (1,)}, {"witnesses": (1,)}], ids=["observer", "witness"])
def test_observers_and_witnesses_take_no_entries_either(roles):
    raft = full(voters=(2, 3), **roles)
    [answer] = hear(raft, append(2, 2, (2, 1), [1]))
    assert (answer.type, answer.log_index, raft.log.last_index) == (M.LOG_FULL, 2, 2)


def test_with_room_again_it_takes_what_is_sent():
    raft = full()
    hear(raft, ROOM)
    [answer] = hear(raft, append(2, 2, (2, 1), [1]))
    assert (answer.type, answer.log_index) == (M.REPLICATE_RESP, 3)


def test_a_sleeping_replica_wakes_when_there_is_room_again():
    """It may lack entries, and its leader sleeps too."""
    raft = full(quiesce=True)
    hear(raft, Message(M.QUIESCE, sender=2))
    assert raft.quiesce.quiesced
    hear(raft, ROOM)
    assert not raft.quiesce.quiesced


# -- its leader ------------------------------------------------------------------------------------------------------


def entries_to(replica, sent):
    return [m for m in of_type(sent, M.REPLICATE) if m.to == replica and m.entries]


def test_a_peer_without_room_is_sent_one_probe_in_an_election_timeout():
    """Neither a proposal nor a heartbeat's answer makes another; what was in flight is not sent again."""
    raft = leader()
    propose(raft, b"x", b"y")
    assert not hear(raft, log_full(2, 1, 1))
    probes = []
    for now in range(3 * T):
        sent = (
            propose(raft, b"z")
            + tick(raft)
            + hear(raft, heartbeat_answer(2, 1), ack(3, 1, raft.log.last_index))
        )
        to_full = [m for m in of_type(sent, M.REPLICATE) if m.to == 2]
        if to_full:
            probes.append(now)
            assert [(m.log_index, len(m.entries) > 0) for m in to_full] == [(1, True)]
            assert not of_type(hear(raft, log_full(2, 1, 1)), M.REPLICATE)
    assert len(probes) == 3
    assert [later - one for one, later in pairwise(probes)] == [T, T]


def test_a_probe_that_is_lost_is_repeated_no_sooner():
    raft = leader()
    propose(raft, b"x")
    hear(raft, log_full(2, 1, 1))
    sent = [m for _ in range(2 * T) for m in tick(raft) + hear(raft, heartbeat_answer(2, 1))]
    assert len(entries_to(2, sent)) == 2


def test_a_peer_that_asks_for_a_snapshot_is_probed_no_sooner_either():
    """Seed 730044109: it was probed when it no longer asked, and then again by the clock."""
    raft = leader()
    propose(raft, b"x")
    hear(raft, log_full(2, 1, 1))
    tick(raft, T - 1)
    ask = Message(M.SNAPSHOT_REQUEST, sender=2, term=1, log_index=1, log_term=1, hint=1)
    sent = hear(raft, ask, heartbeat_answer(2, 1)) + propose(raft, b"y")
    assert not entries_to(2, sent)
    assert entries_to(2, tick(raft))


def test_a_probe_goes_with_its_tick_though_the_host_asks_for_work_late():
    """Seed 1294001351: it was put off until the host asked, and the next one came with its own tick, too soon after it."""
    raft = leader(batch_append=True)
    propose(raft, b"x")
    hear(raft, log_full(2, 1, 1))
    for _ in range(T):
        raft.tick()
    assert len(entries_to(2, raft.outbox.messages)) == 1
    assert len(entries_to(2, drain(raft))) == 1


def test_what_it_holds_counts_for_the_commit():
    raft = leader()
    propose(raft, b"x")
    sent = hear(raft, log_full(2, 1, 2))
    assert (raft.log.committed, raft.progress[2].match) == (2, 2)
    assert not [m for m in sent if m.to == 2]


def test_with_room_again_it_is_sent_all_that_it_lacks():
    raft = leader(max_message_bytes=0)
    propose(raft, b"x", b"y", b"z")
    hear(raft, log_full(2, 1, 1))
    hear(raft, *[ack(3, 1, 4)])
    tick(raft, T)
    sent = hear(raft, ack(2, 1, 2))
    assert [m.log_index for m in entries_to(2, sent)] == [2, 3]
    assert not raft.progress[2].full


@pytest.mark.parametrize(
    "answer",
    [log_full(2, 1, 1), ack(2, 1, 1), rejection(2, 1, 3, 1)],
    ids=["LOG_FULL below match", "an accept below match", "a refusal beyond what was probed"],
)
def test_an_old_answer_changes_nothing(answer):
    raft = leader()
    propose(raft, b"x", b"y")
    hear(raft, ack(2, 1, 2))
    before = str(raft.progress[2])
    assert not of_type(hear(raft, answer), M.REPLICATE) or answer.reject
    if not answer.reject:
        assert str(raft.progress[2]) == before
    hear(raft, log_full(2, 1, 2))
    before = str(raft.progress[2])
    assert not hear(raft, answer)
    assert str(raft.progress[2]) == before
    assert "full" in before


def test_a_late_refusal_of_what_it_holds_is_no_reason_to_probe_again():
    """It was sent before the entry came, and arrives behind the answer that the disk is full."""
    raft = leader()
    propose(raft, b"x", b"y")
    hear(raft, log_full(2, 1, 2))
    assert not hear(raft, rejection(2, 1, 2, 1))


def test_an_acknowledgement_of_what_was_never_sent_is_a_fault():
    raft = leader()
    hear(raft, log_full(2, 1, 9))
    assert raft.faults["acknowledged what was never sent"] == 1
    assert not raft.progress[2].full


def test_a_peer_without_room_keeps_its_leader_in_office():
    """Rules of CheckQuorum: it counts as heard."""
    raft = leader(check_quorum=True)
    for _ in range(3 * T):
        hear(raft, log_full(2, 1, 1))
        tick(raft)
    assert raft.state is LEADER


def test_a_peer_that_needs_a_snapshot_is_sent_it_with_the_next_probe():
    """It may be what frees the peer's log, so it is not refused."""
    shard = cluster(3)
    shard.elect(1)
    shard.fill_disk(3)
    shard.propose(1, b"a", b"b")
    shard.compact(1, 3)
    shard.tick(T + 1)
    assert (shard[3].log.committed, shard[3].log.last_index) == (3, 3)
    shard.propose(1, b"c")
    assert shard[3].log.last_index == 3
    shard.free_disk(3)
    shard.tick(T + 1)
    assert shard[3].log.committed == 4


def test_its_snapshot_counts_as_arrived_when_it_says_that_it_is_full():
    raft = leader(terms=[1, 1], term=2)
    raft.progress[2].become_snapshot(2)
    hear(raft, log_full(2, 2, 3))
    assert str(raft.progress[2]) == "PROBE match=3 next=4 sent_commit=3 full paused active"


# -- a leader without room -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EntryKind.COMMAND, EntryKind.CONFIG_CHANGE], ids=lambda kind: kind.name)
def test_a_leader_without_room_refuses_proposals(kind):
    raft = leader()
    hear(raft, FULL)
    out = propose(raft, b"x", b"y", kind=kind)
    assert {dropped.because for dropped in out.dropped} == {Refusal.DISK_FULL}
    assert (raft.log.last_index, raft.room.refused) == (1, 2)
    hear(raft, ROOM)
    assert not propose(raft, b"x").dropped


def test_a_proposer_elsewhere_is_told():
    shard = cluster(3)
    shard.elect(1)
    for each in (2, 3, 1):
        shard.fill_disk(each)
    shard.propose(2, b"x")
    assert [dropped.because for dropped in shard.nodes[2].dropped] == [Refusal.DISK_FULL]


def test_a_leader_without_room_asks_at_once_and_hands_over_to_the_first_that_accepts():
    raft = leader()
    assert sorted(routes(hear(raft, FULL))) == [(M.REPLICATE, 2), (M.REPLICATE, 3)]
    assert not of_type(hear(raft, log_full(2, 1, 1)), M.TIMEOUT_NOW)
    assert routes(hear(raft, ack(3, 1, 1))) == [(M.TIMEOUT_NOW, 3)]


def test_it_asks_again_once_in_an_election_timeout_and_those_without_room_too():
    raft = leader()
    hear(raft, FULL, log_full(2, 1, 1))
    sent = tick(raft, 2 * T)
    assert [m.to for m in of_type(sent, M.REPLICATE)] == [2, 3, 2, 3]


@pytest.mark.parametrize(
    ("members", "answers"),
    [
        pytest.param({}, [log_full(2, 1, 2), log_full(3, 1, 2)], id="none has room"),
        pytest.param({}, [ack(2, 1, 1)], id="it lacks entries"),
        pytest.param({"voters": (1, 3), "observers": (2,)}, [ack(2, 1, 2)], id="an observer"),
        pytest.param({"voters": (1, 3), "witnesses": (2,)}, [ack(2, 1, 2)], id="a witness"),
    ],
)
def test_where_no_voter_with_room_holds_its_log_it_stays(members, answers):
    raft = leader(**members)
    propose(raft, b"x")
    hear(raft, FULL)
    assert not of_type(hear(raft, *answers), M.TIMEOUT_NOW)
    assert not raft.transfer.target


def test_one_that_lacks_entries_is_sent_them_and_handed_over_to():
    raft = leader()
    propose(raft, b"x")
    hear(raft, FULL)
    assert of_type(hear(raft, ack(2, 1, 2)), M.TIMEOUT_NOW)


def test_a_transfer_that_an_operator_asked_for_goes_on():
    raft = leader()
    propose(raft, b"x")
    hear(raft, Message(M.LEADER_TRANSFER, hint=3), FULL)
    hear(raft, ack(2, 1, 2))
    assert raft.transfer.target == 3


def test_a_successor_that_does_not_take_over_is_not_waited_for():
    raft = leader()
    hear(raft, FULL, ack(3, 1, 1))
    tick(raft, T)
    assert not raft.transfer.target
    assert routes(of_type(hear(raft, ack(2, 1, 1)), M.TIMEOUT_NOW)) == [(M.TIMEOUT_NOW, 2)]


def test_its_reads_and_the_commit_of_what_it_holds_go_on():
    raft = leader()
    propose(raft, b"x")
    hear(raft, FULL)
    raft.step(Message(M.READ_INDEX, hint=7))
    raft.step(log_full(2, 1, 2))
    raft.step(heartbeat_answer(2, 1, (7, 0)))
    out = drain(raft)
    assert [read.index for read in out.reads] == [1]
    assert raft.log.committed == 2


def test_it_leaves_a_joint_membership_from_the_reserve():
    members = Membership((1, 2), outgoing=(1, 3), auto_leave=True)
    raft = replica(membership=members, state=LEADER)
    hear(raft, FULL, log_full(2, 1, 1), log_full(3, 1, 1))
    tick(raft)
    assert raft.log.last_index == 2


# -- a voter without room ------------------------------------------------------------------------------------------------


def test_a_voter_without_room_campaigns_later_than_others_but_not_never():
    assert ticks_until_campaign(full(**FIXED)) == CAMPAIGN_TIMEOUTS * T
    raft = full(**FIXED)
    hear(raft, ROOM)
    assert ticks_until_campaign(raft) == T


def test_it_campaigns_at_once_where_its_leader_asks():
    raft = full()
    assert of_type(hear(raft, Message(M.TIMEOUT_NOW, sender=2, term=2)), M.REQUEST_VOTE)


def test_one_with_room_leads_where_both_could():
    shard = cluster(3, **FIXED)
    shard.elect(1)
    shard.fill_disk(2)
    shard.crash(1)
    shard.tick(2 * T)
    assert shard.leader.id == 3


def test_one_without_room_leads_where_no_other_can_and_hands_over_once_the_other_holds_its_log():
    shard = cluster(3)
    shard.elect(1)
    shard.cut(1, 3)
    shard.propose(1, b"x")
    shard.fill_disk(2)
    shard.crash(1)
    shard.tick(12 * T)
    assert (shard.leader.id, shard[2].room.full) == (3, True)
    assert b"x" in shard.applied(3)


# -- the host ------------------------------------------------------------------------------------------------------------


class Space:
    def __init__(self, size):
        self.size, self.asked = size, []

    def __call__(self, size):
        self.asked.append(size)
        return size <= self.size


def entries(count, size=4):
    """`count` entries that take 20 bytes each, with what each counts beside its payload."""
    return tuple(Entry(payload=b"x" * size) for _ in range(count))


def watch(size):
    raft = leader()
    told = []
    space = Space(size)
    return raft, space, RoomWatch(raft, space, changed=told.append), told


def test_room_is_judged_for_all_that_was_let_through_and_is_not_saved():
    raft, space, room, told = watch(100)
    for _ in range(5):
        room.judge(entries(1))
    assert (space.asked, raft.room.full) == ([20, 40, 60, 80, 100], False)
    room.saved()
    room.judge(entries(5))
    room.judge(entries(1))
    assert (raft.room.full, told) == (True, [True])


def test_what_brings_no_entries_needs_no_room():
    raft, space, room, _ = watch(0)
    room.judge(())
    assert (space.asked, raft.room.full) == ([], False)


def test_while_it_is_full_only_the_clock_asks_for_the_largest_that_was_wanted_in_the_last_tick_with_any():
    raft, space, room, told = watch(100)
    room.judge(entries(50))
    room.tick()
    assert space.asked == [1000, 1000]
    space.asked.clear()
    for count in (1, 6, 2):
        room.judge(entries(count))
    room.judge(())
    assert space.asked == []
    room.tick()
    assert (space.asked, raft.room.full) == ([120], True)
    space.size = 120
    room.tick()
    assert (raft.room.full, told) == (False, [True, False])
    room.tick()
    assert space.asked == [120, 120]
