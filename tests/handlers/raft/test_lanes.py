"""Lanes: a leader sends what fits on its way, and counts as lost only what is. See `heartbeat` and `lanes` in the core."""

import pytest
from drakkar.handlers import (
    Entry,
    Membership,
    Message,
    MessageType,
    ProgressState,
    Refusal,
    Snapshot,
    State,
)
from drakkar.handlers.raft.entries import ENTRY_OVERHEAD
from drakkar.handlers.raft.lanes import UNLIMITED, not_sent
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    FakeLanes,
    ack,
    acknowledge_all,
    append,
    become_leader,
    hear,
    heartbeat,
    heartbeat_answer,
    install,
    of_type,
    propose,
    rejection,
    replica,
    tick,
    vote_request,
)

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT
T = MessageType
UNREACHABLE = Message(T.UNREACHABLE, sender=2)
DRAINED = Message(T.LANE_DRAINED, sender=2)
ONE = ENTRY_OVERHEAD + 1
"""What an entry of one byte counts."""


@pytest.fixture
def lanes():
    return FakeLanes()


@pytest.fixture
def raft(lanes):
    """Leads term 1 with lanes.

    Entry 1 is committed, and peers 2 and 3 have it: each was sent and answered two appends.
    """
    return leader(lanes)


def leader(lanes, **options):
    raft = replica(state=State.LEADER, lanes=lanes, **options)
    acknowledge_all(raft)
    return raft


def probing(lanes, **options):
    """Leads term 1; peers are in PROBE, and the empty entry 1 is on its way to them as append 1."""
    return replica(state=State.LEADER, lanes=lanes, **options)


def appends(messages, peer=2):
    """The appends to one peer, as their numbers and the indexes of their entries."""
    return [
        (m.hint, [entry.index for entry in m.entries]) for m in of_type(messages, T.REPLICATE) if m.to == peer
    ]


def named(messages, peer=2):
    """The number that the heartbeats to a peer name."""
    return [m.log_term for m in of_type(messages, T.HEARTBEAT) if m.to == peer]


def answer(raft, number, *, heard=True, peer=2):
    """What the leader sends when the peer answers a heartbeat that named `number`."""
    return hear(raft, heartbeat_answer(peer, raft.term, log_term=number, reject=not heard))


# -- numbers -------------------------------------------------------------------------------------------------------


class TestTheNumbers:
    def test_each_append_to_a_peer_has_the_next_one(self, raft):
        before = raft.progress[2].numbered
        sent = [appends(propose(raft, b"x")) for _ in range(3)]
        assert sent == [[(before + n, [n + 1])] for n in (1, 2, 3)]
        assert raft.progress[2].numbered == before + 3

    def test_peers_are_numbered_each_for_itself(self, raft, lanes):
        lanes.rooms[3] = 0
        before = raft.progress[3].numbered
        propose(raft, b"x")
        assert (raft.progress[2].numbered, raft.progress[3].numbered) == (before + 1, before)

    def test_they_survive_the_changes_between_the_states_of_a_peer(self, raft):
        before = raft.progress[2].numbered
        propose(raft, b"x")
        sent = hear(raft, UNREACHABLE)
        assert raft.progress[2].state is PROBE
        assert appends(sent) == [(before + 2, [2])]

    def test_they_begin_anew_with_a_term(self, lanes):
        raft = probing(lanes)
        propose(raft, b"x")
        hear(raft, heartbeat(3, 2))
        assert appends(become_leader(raft)) == [(1, [3])]

    def test_without_lanes_there_are_none(self):
        raft = replica(state=State.LEADER)
        sent = acknowledge_all(raft) + propose(raft, b"x") + tick(raft)
        assert {m.hint for m in of_type(sent, T.REPLICATE)} == {0}
        assert {m.log_term for m in of_type(sent, T.HEARTBEAT)} == {0}

    def test_a_heartbeat_names_the_last_append_that_has_left(self, raft, lanes):
        before = raft.progress[2].numbered
        propose(raft, b"x")
        propose(raft, b"y")
        for waits, name in ((0, before + 2), (1, before + 1), (2, before)):
            lanes.waits[2] = waits
            assert named(tick(raft)) == [name]

    def test_what_waits_of_an_earlier_term_makes_no_name_fall_below_zero(self, raft, lanes):
        lanes.waits[2] = 100
        assert named(tick(raft)) == [0]

    def test_an_append_that_the_host_has_not_been_handed_has_not_left(self, raft):
        """The heartbeat would overtake it."""
        before = raft.progress[2].numbered
        raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"x"),)))
        raft.tick()
        sent = drain(raft)
        assert appends(sent) == [(before + 1, [2])]
        assert named(sent) == [before]
        assert named(tick(raft)) == [before + 1]

    def test_nor_has_one_that_waits_for_a_write(self, lanes):
        """A single voter leads before its vote is durable, and what it sends to its observers waits for that."""
        raft = replica(voters=(1,), observers=(2,), lanes=lanes)
        raft.step(Message(T.ELECTION, sender=1))
        assert raft.state is State.LEADER
        held = raft.ready()
        assert appends(held.messages_after_save) == [(1, [1])]
        raft.tick()
        later = raft.ready()
        assert named(later.messages_after_save) == [0]
        raft.persisted(held)
        raft.persisted(later)
        drain(raft)
        assert named(tick(raft)) == [1]

    def test_none_overtakes_one_that_waits_for_the_vote_and_for_the_write_of_later_entries(self, lanes):
        """INV30: the host sends what waits for a write only when all earlier writes are done, too."""
        raft = replica(voters=(1,), observers=(2,), lanes=lanes)
        raft.step(Message(T.ELECTION, sender=1))
        vote = raft.ready()
        raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"x"),)))
        raft.step(ack(2, raft.term, 0))
        waiting = raft.ready()
        assert waiting.must_save
        assert appends(waiting.messages_after_save)
        raft.persisted(vote)
        raft.step(ack(2, raft.term, 1))
        raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"y"),)))
        later = raft.ready()
        assert not appends(later.messages)
        assert appends(later.messages_after_save)
        raft.persisted(waiting)
        raft.persisted(later)
        raft.step(ack(2, raft.term, 2))
        raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"z"),)))
        assert appends(raft.ready().messages)


class TestAFollower:
    @pytest.mark.parametrize(
        ("numbers", "name", "heard"),
        [
            pytest.param([], 0, True, id="nothing was sent"),
            pytest.param([1, 2], 2, True, id="the last one"),
            pytest.param([1, 2], 1, True, id="an earlier one: the heartbeat was overtaken"),
            pytest.param([1, 2], 3, False, id="one that is lost"),
            pytest.param([2, 1], 2, True, id="an old copy comes late"),
            pytest.param([3], 2, True, id="a later one, which tells of the gap by itself"),
        ],
    )
    def test_it_says_whether_it_heard_the_append_that_a_heartbeat_names(self, numbers, name, heard):
        raft = replica()
        for number in numbers:
            hear(raft, append(2, 1, hint=number))
        [reply] = hear(raft, heartbeat(2, 1, log_term=name))
        assert (reply.type, reply.log_term, reply.reject) == (T.HEARTBEAT_RESP, name, not heard)

    def test_it_has_heard_what_it_refuses(self):
        raft = replica()
        hear(raft, append(2, 1, (5, 1), [1], hint=7))
        assert raft.heard.number == 7

    def test_it_has_heard_what_it_has_no_room_for(self):
        raft = replica()
        hear(raft, Message(T.DISK_FULL, sender=1), append(2, 1, terms=[1], hint=7))
        assert raft.heard.number == 7

    def test_it_has_heard_what_it_does_not_take_in_while_it_asks_for_a_snapshot(self):
        raft = replica(terms=[1], leader=2)
        raft.request_snapshot()
        hear(raft, append(2, 1, (1, 1), [1], hint=7))
        assert raft.heard.number == 7

    @pytest.mark.parametrize(
        "newer", [heartbeat(3, 2), append(3, 2), vote_request(3, 2)], ids=lambda message: str(message.type)
    )
    def test_a_new_term_has_numbers_of_its_own(self, newer):
        raft = replica()
        hear(raft, append(2, 1, hint=7), newer)
        assert raft.heard.number == 0

    def test_an_election_in_the_same_term_forgets_nothing(self):
        raft = replica(pre_vote=True)
        hear(raft, append(2, 1, hint=7))
        hear(raft, Message(T.ELECTION, sender=1))
        assert raft.state is State.PRE_CANDIDATE
        [reply] = hear(raft, heartbeat(2, 1, log_term=7))
        assert not reply.reject

    def test_an_append_of_an_older_term_was_not_heard(self):
        raft = replica(term=2)
        hear(raft, append(2, 1, hint=7))
        assert raft.heard.number == 0

    @pytest.mark.parametrize("role", ["observers", "witnesses"])
    def test_those_that_do_not_lead_hear_alike(self, role):
        raft = replica(**{role: (1,)}, voters=(2, 3))
        hear(raft, append(2, 1, hint=7))
        [reply] = hear(raft, heartbeat(2, 1, log_term=8))
        assert reply.reject


# -- what counts as lost -------------------------------------------------------------------------------------------


class TestALostAppend:
    def test_a_probe_that_was_not_heard_is_sent_again(self, lanes):
        raft = probing(lanes)
        assert appends(answer(raft, 1, heard=False)) == [(2, [1])]

    def test_a_probe_that_waits_in_its_lane_is_not_while_heartbeats_are_answered(self, lanes):
        raft = probing(lanes)
        lanes.waits[2] = 1
        for _ in range(20):
            assert named(tick(raft)) == [0]
            assert appends(answer(raft, 0)) == []
        assert raft.progress[2].probe_sent

    def test_a_window_that_was_not_heard_is_sent_again_from_a_probe_on(self, raft):
        for _ in range(3):
            propose(raft, b"x")
        last = raft.progress[2].numbered
        assert appends(answer(raft, last, heard=False)) == [(last + 1, [2, 3, 4])]
        assert raft.progress[2].state is PROBE

    def test_a_window_that_waits_in_its_lane_is_not(self, raft, lanes):
        before = raft.progress[2].numbered
        for _ in range(3):
            propose(raft, b"x")
        lanes.waits[2] = 3
        for _ in range(20):
            assert named(tick(raft)) == [before]
            assert appends(answer(raft, before)) == []
        assert raft.progress[2].inflight.count == 3

    def test_it_counts_once_however_many_heartbeats_named_it(self, lanes):
        """The answer to an older heartbeat, which left before the probe was repeated."""
        raft = probing(lanes)
        assert appends(answer(raft, 1, heard=False)) == [(2, [1])]
        assert appends(answer(raft, 1, heard=False)) == []
        assert appends(answer(raft, 2, heard=False)) == [(3, [1])]

    def test_an_answer_to_an_older_heartbeat_that_was_heard_says_nothing_of_the_probe(self, lanes):
        raft = probing(lanes)
        answer(raft, 1, heard=False)
        assert appends(answer(raft, 0)) == []
        assert raft.progress[2].probe_sent

    def test_the_loss_of_an_empty_append_says_nothing_of_the_probe_after_it(self, raft):
        [(empty, [])] = appends(hear(raft, UNREACHABLE))
        [(probe, [_])] = appends(propose(raft, b"x"))
        assert appends(answer(raft, empty, heard=False)) == []
        assert len(appends(answer(raft, probe, heard=False))) == 1

    def test_nor_of_the_window_after_it(self, raft):
        propose(raft, b"committed")
        [(empty, [])] = appends(hear(raft, ack(2, 1, raft.log.last_index)))
        [(window, [_])] = appends(propose(raft, b"x"))
        assert appends(answer(raft, empty, heard=False)) == []
        assert len(appends(answer(raft, window, heard=False))) == 1

    def test_a_late_answer_of_an_earlier_state_is_no_loss(self, raft):
        """The peer restarted, say: what it had heard in REPLICATE is of no interest any more in PROBE."""
        propose(raft, b"x")
        number = raft.progress[2].numbered
        hear(raft, UNREACHABLE)
        assert appends(answer(raft, number, heard=False)) == []

    def test_a_follower_that_restarted_has_heard_nothing_and_is_asked_once(self, raft):
        number = raft.progress[2].numbered
        assert appends(answer(raft, number, heard=False)) == [(number + 1, [])]
        sent = hear(raft, ack(2, 1, 1)) + answer(raft, number + 1)
        assert appends(sent) == []
        assert raft.progress[2].state is REPLICATE

    def test_a_lost_connection_counts_for_the_probe_and_the_window_and_another_is_sent(self, lanes):
        raft = probing(lanes)
        assert appends(hear(raft, UNREACHABLE)) == [(2, [1])]
        acknowledge_all(raft)
        propose(raft, b"x")
        [(_, indexes)] = appends(hear(raft, UNREACHABLE))
        assert indexes == [2]

    def test_a_lost_connection_while_a_snapshot_is_on_its_way_says_nothing_of_it(self, lanes):
        raft = behind_a_snapshot(lanes)
        assert appends(hear(raft, UNREACHABLE)) == []
        assert raft.progress[2].state is SNAPSHOT

    def test_to_a_peer_without_room_for_entries_only_the_clock_sends_another(self, lanes):
        raft = probing(lanes)
        hear(raft, Message(T.LOG_FULL, sender=2, term=1, log_index=0))
        assert raft.progress[2].full
        assert appends(answer(raft, 1, heard=False)) == []
        assert appends(hear(raft, UNREACHABLE)) == []
        assert len(appends(tick(raft, 10))) == 1


class TestALostAnswer:
    def test_where_all_was_heard_and_nothing_waits_an_empty_append_asks_for_it(self, raft):
        propose(raft, b"x")
        number = raft.progress[2].numbered
        assert appends(tick(raft) + answer(raft, number)) == []
        assert appends(tick(raft) + answer(raft, number)) == [(number + 1, [])]
        hear(raft, ack(2, 1, 2))
        assert not raft.progress[2].inflight

    def test_for_a_probe_too(self, lanes):
        raft = probing(lanes)
        assert appends(tick(raft, 2) + answer(raft, 1)) == [(2, [])]
        hear(raft, ack(2, 1, 0))
        assert raft.progress[2].state is REPLICATE
        assert raft.progress[2].inflight.indexes == (1,)

    def test_it_asks_through_a_full_window(self, lanes):
        raft = leader(lanes, max_inflight_messages=2)
        for _ in range(3):
            propose(raft, b"x")
        number = raft.progress[2].numbered
        assert appends(tick(raft, 2) + answer(raft, number)) == [(number + 1, [])]

    def test_not_before_what_waits_has_left(self, raft, lanes):
        propose(raft, b"x")
        lanes.waits[2] = 1
        assert appends(tick(raft, 5) + answer(raft, 2)) == []
        lanes.waits[2] = 0
        assert len(appends(answer(raft, 2))) == 1

    def test_not_while_appends_are_answered(self, raft):
        for index in range(2, 12):
            propose(raft, b"x")
            propose(raft, b"x")
            assert appends(tick(raft) + answer(raft, raft.progress[2].numbered)) == []
            hear(raft, ack(2, 1, index))

    def test_once_for_so_many_heartbeats(self, raft):
        propose(raft, b"x")
        number = raft.progress[2].numbered
        assert len(appends(tick(raft, 2) + answer(raft, number))) == 1
        assert appends(answer(raft, number)) == []
        assert appends(tick(raft) + answer(raft, number)) == []
        assert len(appends(tick(raft) + answer(raft, number))) == 1

    def test_idle_heartbeats_before_do_not_count(self, raft):
        tick(raft, 9)
        propose(raft, b"x")
        assert appends(answer(raft, raft.progress[2].numbered)) == []

    def test_its_loss_is_found_in_its_turn(self, raft):
        propose(raft, b"x")
        number = raft.progress[2].numbered
        tick(raft, 2)
        answer(raft, number)
        assert appends(answer(raft, number + 1, heard=False)) == [(number + 2, [2])]


# -- busy ----------------------------------------------------------------------------------------------------------


class TestABusyPeer:
    def test_it_is_sent_nothing_before_its_lane_has_drained(self, raft, lanes):
        lanes.rooms[2] = 0
        assert [appends(propose(raft, b"x")) for _ in range(3)] == [[]] * 3
        assert raft.progress[2].busy
        assert "busy" in str(raft.progress[2])
        lanes.rooms[2] = UNLIMITED
        number = raft.progress[2].numbered
        assert appends(hear(raft, DRAINED)) == [(number + 1, [2, 3, 4])]
        assert not raft.progress[2].busy

    def test_its_lane_is_not_asked_meanwhile(self, raft, lanes):
        lanes.rooms[2] = 0
        propose(raft, b"x")
        lanes.asked.clear()
        propose(raft, b"x")
        assert 2 not in lanes.asked

    def test_its_lane_is_asked_once_a_message(self, raft, lanes):
        lanes.asked.clear()
        propose(raft, b"x")
        assert sorted(lanes.asked) == [2, 3]
        lanes.asked.clear()
        tick(raft)
        hear(raft, ack(2, 1, 2), ack(3, 1, 2))
        assert lanes.asked == [2, 3], "each is told the commit index, and nothing else is due"

    def test_its_lane_knows_how_much_room_its_first_entry_takes(self, raft, lanes):
        """So LANE_DRAINED follows though there is some room."""
        lanes.rooms[2] = 100
        propose(raft, bytes(200))
        assert raft.progress[2].busy
        assert lanes.least[2] == ENTRY_OVERHEAD + 200
        lanes.rooms[2] = ENTRY_OVERHEAD + 200
        assert [indexes for _, indexes in appends(hear(raft, DRAINED))] == [[2]]

    def test_its_lane_knows_how_much_room_it_takes_beside_what_it_was_not_handed_yet(self, raft, lanes):
        lanes.rooms[2] = 300
        for size in (1, 300 - ENTRY_OVERHEAD):
            raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=bytes(size)),)))
        assert lanes.least[2] == ONE + 300

    def test_others_go_on(self, raft, lanes):
        lanes.rooms[2] = 0
        assert len(appends(propose(raft, b"x"), 3)) == 1

    @pytest.mark.parametrize("batch", [False, True])
    def test_the_whole_window_goes_when_it_has_drained(self, lanes, batch):
        raft = leader(lanes, max_message_bytes=0, batch_append=batch)
        lanes.rooms[2] = 0
        for _ in range(3):
            propose(raft, b"x")
        lanes.rooms[2] = 1000
        assert [indexes for _, indexes in appends(hear(raft, DRAINED))] == [[2], [3], [4]]

    def test_it_is_told_the_commit_index_when_its_lane_has_drained(self, raft, lanes):
        propose(raft, b"x")
        lanes.rooms[2] = 0
        hear(raft, ack(3, 1, 2))
        assert raft.log.committed == 2
        lanes.rooms[2] = 1000
        [message] = [m for m in of_type(hear(raft, DRAINED), T.REPLICATE) if m.to == 2]
        assert (message.commit, message.entries) == (2, ())

    def test_an_empty_append_needs_room_too(self, raft, lanes):
        lanes.rooms[2] = 0
        propose(raft, b"x")
        assert appends(hear(raft, ack(3, 1, 2))) == []

    def test_drained_means_nothing_to_a_peer_that_is_not_busy(self, raft):
        assert hear(raft, DRAINED) == []

    def test_it_may_be_busy_again_at_once(self, raft, lanes):
        lanes.rooms[2] = 0
        propose(raft, b"x")
        assert appends(hear(raft, DRAINED)) == []
        assert raft.progress[2].busy

    def test_it_is_asked_for_again_when_it_answers_a_heartbeat(self, raft, lanes):
        """LANE_DRAINED may be lost."""
        lanes.rooms[2] = ONE - 1
        assert appends(propose(raft, b"x")) == []
        lanes.rooms[2] = ONE
        number = raft.progress[2].numbered
        assert appends(answer(raft, number)) == [(number + 1, [2])]

    def test_it_is_asked_for_again_when_the_peer_asks_for_a_snapshot_instead(self, raft, lanes):
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2), ack(3, 1, 2))
        lanes.rooms[2] = ONE - 1
        propose(raft, b"y")
        assert raft.progress[2].busy
        raft.snapshot_taken(raft.snapshot_point(raft.log.applied))
        lanes.rooms[2] = ONE
        ask = Message(T.SNAPSHOT_REQUEST, sender=2, term=1, log_index=2, log_term=1, hint=2)
        assert [m.to for m in of_type(hear(raft, ask), T.INSTALL_SNAPSHOT)] == [2]

    def test_it_is_no_longer_busy_when_it_becomes_unreachable_but_its_lane_has_no_room_then(
        self, raft, lanes
    ):
        """So the lane knows that it is waited for, and says so when there is a connection."""
        lanes.rooms[2] = 0
        propose(raft, b"x")
        lanes.asked.clear()
        assert appends(hear(raft, UNREACHABLE)) == []
        assert lanes.asked == [2]
        assert raft.progress[2].busy
        lanes.rooms[2] = UNLIMITED
        assert [indexes for _, indexes in appends(hear(raft, DRAINED))] == [[2]]

    def test_a_peer_without_a_connection_is_sent_nothing_by_a_leader_elected_later(self, lanes):
        lanes.rooms[2] = 0
        raft = replica(lanes=lanes)
        sent = become_leader(raft) + tick(raft, 5)
        assert appends(sent) == []
        assert len(named(sent)) == 5

    def test_a_leader_that_steps_down_forgets_it_and_the_appends_that_are_due(self, lanes):
        raft = leader(lanes, batch_append=True, max_message_bytes=0)
        lanes.rooms[2] = 0
        raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"x"),)))
        assert raft.appends_due
        sent = hear(raft, heartbeat(3, 2), DRAINED)
        assert of_type(sent, T.REPLICATE) == []
        assert not raft.has_ready
        assert not raft.progress[2].busy

    def test_a_peer_without_room_for_entries_is_probed_once_its_lane_has_drained(self, lanes):
        raft = probing(lanes)
        hear(raft, Message(T.LOG_FULL, sender=2, term=1, log_index=0))
        lanes.rooms[2] = 0
        assert appends(tick(raft, 10)) == []
        assert raft.progress[2].busy
        lanes.rooms[2] = 1000
        assert len(appends(hear(raft, DRAINED))) == 1
        assert appends(hear(raft, DRAINED)) == []

    def test_a_witness_is_judged_by_what_it_is_sent(self, lanes):
        raft = replica(voters=(1, 3), witnesses=(2,), state=State.LEADER, lanes=lanes)
        acknowledge_all(raft)
        lanes.rooms[2] = ENTRY_OVERHEAD
        assert [indexes for _, indexes in appends(propose(raft, b"x" * 1000))][-1] == [2]


class TestTheRoom:
    def test_a_lane_with_room_for_a_part_is_sent_that_part(self, raft, lanes):
        """What is left goes when there is room: first it is busy."""
        lanes.rooms[2] = 3 * ONE - 1
        raft.step(Message(T.PROPOSE, sender=1, entries=tuple(Entry(payload=b"x") for _ in range(5))))
        assert [indexes for _, indexes in appends(drain(raft))] == [[2, 3]]
        lanes.rooms[2] = 0
        hear(raft, ack(2, 1, 3))
        assert raft.progress[2].busy
        lanes.rooms[2] = UNLIMITED
        assert [indexes for _, indexes in appends(hear(raft, DRAINED))] == [[4, 5, 6]]

    def test_what_was_not_handed_out_yet_takes_room_too(self, lanes):
        raft = leader(lanes)
        lanes.rooms[2] = 3 * ONE - 1
        for _ in range(5):
            raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"x"),)))
        assert appends(raft.ready().messages) == [(3, [2]), (4, [3])]
        assert not raft.progress[2].busy, "its lane knows of these only now"
        lanes.rooms[2] = ONE - 1
        assert raft.has_ready
        assert appends(raft.ready().messages) == []
        assert raft.progress[2].busy
        assert not raft.has_ready

    def test_an_empty_lane_takes_a_command_of_any_size_but_then_no_other(self, lanes):
        raft = leader(lanes, max_message_bytes=100)
        for _ in range(2):
            raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"x" * 1000),)))
        assert appends(raft.ready().messages) == [(3, [2])]
        lanes.rooms[2] = 2000
        assert appends(raft.ready().messages) == [(4, [3])]

    def test_after_an_empty_append_a_lane_holds_something(self, lanes):
        raft = leader(lanes, max_message_bytes=100)
        raft.progress[2].become_probe()
        raft.step(heartbeat_answer(2, 1))
        raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"x" * 1000),)))
        assert [indexes for _, indexes in appends(raft.ready().messages)] == [[]]
        assert [indexes for _, indexes in appends(raft.ready().messages)] == [[2]]

    def test_an_empty_lane_takes_small_messages_together_up_to_the_size_of_one(self, lanes):
        raft = leader(lanes, max_message_bytes=3 * ONE)
        for _ in range(5):
            raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"x"),)))
        assert [indexes for _, indexes in appends(raft.ready().messages)] == [[2], [3], [4]]
        assert [indexes for _, indexes in appends(raft.ready().messages)] == [[5, 6]]

    def test_a_command_larger_than_the_window_and_the_budget_passes_alone(self, lanes):
        raft = leader(lanes, max_message_bytes=100, max_inflight_bytes=200)
        assert [indexes for _, indexes in appends(propose(raft, b"x" * 1000))][-1] == [2]
        assert appends(propose(raft, b"x")) == []
        assert [indexes for _, indexes in appends(hear(raft, ack(2, 1, 2))) if indexes] == [[3]]

    def test_a_command_larger_than_the_room_waits_for_an_empty_lane(self, raft, lanes):
        lanes.rooms[2] = 999
        assert appends(propose(raft, b"x" * 1000)) == []
        lanes.rooms[2] = UNLIMITED
        assert [indexes for _, indexes in appends(hear(raft, DRAINED))] == [[2]]

    def test_a_snapshot_needs_room_too(self, lanes):
        raft = behind_a_snapshot(lanes, room=0)
        assert (raft.progress[2].state, raft.progress[2].busy) == (PROBE, True)
        lanes.rooms[2] = 1
        assert [m.to for m in of_type(hear(raft, DRAINED), T.INSTALL_SNAPSHOT)] == [2]


def behind_a_snapshot(lanes, room=UNLIMITED):
    """A leader whose peer 2 needs what only its snapshot up to 2 holds."""
    snapshot = Snapshot(2, 1, Membership((1, 2, 3)))
    raft = replica(terms=[1], snapshot=snapshot, state=State.LEADER, lanes=lanes)
    raft.progress[2].active = True
    lanes.rooms[2] = room
    hear(raft, rejection(2, raft.term, 3, 0))
    return raft


# -- handed back ---------------------------------------------------------------------------------------------------


def handed_back(raft, *messages):
    """What the leader sends when its lane hands these back."""
    return hear(raft, *map(not_sent, messages))


def taken(raft, lanes, *payloads):
    """The appends to peer 2 for proposals of these payloads, one each; then its lane is full."""
    sent = [m for payload in payloads for m in of_type(propose(raft, payload), T.REPLICATE) if m.to == 2]
    lanes.rooms[2] = 0
    return sent


class TestHandedBack:
    def test_in_replicate_the_window_and_next_are_as_before(self, raft, lanes):
        first, second, third = taken(raft, lanes, b"x", b"y", b"z")
        assert handed_back(raft, second, third) == []
        peer = raft.progress[2]
        assert (peer.state, peer.next, peer.inflight.indexes, peer.busy) == (REPLICATE, 3, (2,), True)
        lanes.rooms[2] = UNLIMITED
        assert [indexes for _, indexes in appends(hear(raft, DRAINED))] == [[3, 4]]
        assert first.hint < second.hint

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    def test_in_any_order(self, raft, lanes, order):
        sent = taken(raft, lanes, b"x", b"y", b"z")
        handed_back(raft, *(sent[at] for at in order))
        assert (raft.progress[2].next, raft.progress[2].inflight.count) == (2, 0)

    def test_after_the_peers_acknowledgement_nothing_is_undone_below_it(self, raft, lanes):
        """It had those entries from an earlier leader, and an earlier append showed that."""
        _, second = taken(raft, lanes, b"x", b"y")
        hear(raft, ack(2, 1, 3))
        handed_back(raft, second)
        peer = raft.progress[2]
        assert (peer.match, peer.next, peer.busy) == (3, 4, True)

    def test_a_part_of_which_the_peer_has_acknowledged_is_sent_again_behind_that(self, raft, lanes):
        raft.step(Message(T.PROPOSE, sender=1, entries=tuple(Entry(payload=b"x") for _ in range(4))))
        [message] = [m for m in of_type(drain(raft), T.REPLICATE) if m.to == 2]
        lanes.rooms[2] = 0
        hear(raft, ack(2, 1, 3))
        handed_back(raft, message)
        assert (raft.progress[2].next, raft.progress[2].inflight.count) == (4, 0)

    def test_in_probe_the_probe_may_go_again(self, lanes):
        raft = replica(lanes=lanes)
        [probe] = [m for m in of_type(become_leader(raft), T.REPLICATE) if m.to == 2]
        lanes.rooms[2] = 0
        handed_back(raft, probe)
        peer = raft.progress[2]
        assert (peer.state, peer.probe_sent, peer.busy) == (PROBE, False, True)
        lanes.rooms[2] = UNLIMITED
        assert [indexes for _, indexes in appends(hear(raft, DRAINED))] == [[1]]

    def test_one_of_an_earlier_state_lets_no_second_probe_go(self, raft, lanes):
        [message] = taken(raft, lanes, b"x")
        lanes.rooms[2] = UNLIMITED
        hear(raft, UNREACHABLE)
        handed_back(raft, message)
        assert raft.progress[2].probe_sent
        assert appends(hear(raft, DRAINED)) == []

    def test_one_that_was_sent_again_takes_back_nothing_of_that(self, raft, lanes):
        first, second = taken(raft, lanes, b"x", b"y")
        handed_back(raft, first)
        lanes.rooms[2] = UNLIMITED
        assert [indexes for _, indexes in appends(hear(raft, DRAINED))] == [[2, 3]]
        handed_back(raft, second)
        peer = raft.progress[2]
        assert (peer.next, peer.inflight.indexes, peer.busy) == (4, (3,), True)

    def test_a_heartbeat_that_names_it_counts_nothing_as_lost(self, raft, lanes):
        """It waits no more, so it seems to have left."""
        first, second = taken(raft, lanes, b"x", b"y")
        handed_back(raft, second)
        assert named(tick(raft)) == [second.hint]
        assert appends(answer(raft, second.hint, heard=False)) == []
        assert raft.progress[2].inflight.indexes == (2,)
        assert first.hint == second.hint - 1

    def test_what_was_lost_before_it_is_found_by_what_goes_after_it(self, raft, lanes):
        _, second = taken(raft, lanes, b"x", b"y")
        handed_back(raft, second)
        lanes.rooms[2] = UNLIMITED
        [(number, _)] = appends(hear(raft, DRAINED))
        assert [indexes for _, indexes in appends(answer(raft, number, heard=False))] == [[2, 3]]

    def test_an_empty_one_undoes_nothing_and_is_repeated(self, raft, lanes):
        propose(raft, b"x")
        tick(raft, 2)
        [empty] = [m for m in of_type(answer(raft, raft.progress[2].numbered), T.REPLICATE) if m.to == 2]
        lanes.rooms[2] = 0
        handed_back(raft, empty)
        assert raft.progress[2].inflight.indexes == (2,)
        lanes.rooms[2] = UNLIMITED
        assert appends(hear(raft, DRAINED)) == [(empty.hint + 1, [])]

    def test_one_of_an_older_term_means_nothing(self, lanes):
        raft = leader(lanes)
        old, _ = taken(raft, lanes, b"x", b"y")
        lanes.rooms[2] = UNLIMITED
        hear(raft, heartbeat(3, 2))
        become_leader(raft)
        before = str(raft.progress[2])
        handed_back(raft, old)
        assert str(raft.progress[2]) == before

    def test_to_a_peer_that_was_removed_means_nothing(self, raft, lanes):
        [old] = taken(raft, lanes, b"x")
        old.to = 9
        assert handed_back(raft, old) == []
        assert not raft.faults

    def test_at_a_follower_an_append_means_nothing(self):
        raft = replica(leader=2)
        assert handed_back(raft, append(1, 1, (0, 0), [1], to=2, hint=1)) == []

    def test_a_snapshot_goes_again_when_its_lane_has_drained(self, lanes):
        raft = behind_a_snapshot(lanes)
        assert raft.progress[2].state is SNAPSHOT
        snapshot = install(1, raft.term, (2, 1), to=2)
        assert handed_back(raft, snapshot) == []
        assert (raft.progress[2].state, raft.progress[2].busy) == (PROBE, True)
        assert [m.to for m in of_type(hear(raft, DRAINED), T.INSTALL_SNAPSHOT)] == [2]

    def test_a_late_snapshot_changes_nothing_but_that_its_lane_is_full(self, raft):
        handed_back(raft, install(1, 1, (1, 1), to=2))
        assert (raft.progress[2].state, raft.progress[2].busy) == (REPLICATE, True)

    @pytest.mark.parametrize("state", [State.FOLLOWER, State.PRE_CANDIDATE, State.LEADER])
    def test_proposals_are_refused_each_run_for_itself(self, state):
        """They surely have no effect. Who led then may lead no more, or be no member any more."""
        raft = replica(state=state)
        drain(raft)
        ask = Message(
            T.PROPOSE,
            to=9,
            sender=1,
            entries=(Entry(payload=b"x", origin=7, key=1), Entry(payload=b"y", origin=8, key=5)),
        )
        raft.step(not_sent(ask))
        dropped = raft.ready().dropped
        assert [(d.because, d.origin, d.key, d.count) for d in dropped] == [
            (Refusal.NOT_SENT, 7, 1, 1),
            (Refusal.NOT_SENT, 8, 5, 1),
        ]

    @pytest.mark.parametrize("payload", [None, "PROPOSE", 7, Message(T.HEARTBEAT, to=2)], ids=repr)
    def test_what_names_no_message_means_nothing(self, raft, payload):
        assert hear(raft, Message(T.NOT_SENT, sender=2, payload=payload)) == []


# -- the vouched commit index --------------------------------------------------------------------------------------


class TestWhatALeaderVouchedFor:
    def read_answer(self, index, term=1):
        return Message(T.READ_INDEX_RESP, sender=2, term=term, log_index=index, hint=1)

    def test_a_reads_answer_that_overtakes_its_entries_commits_them_when_they_come(self):
        raft = replica(leader=2, term=1)
        hear(raft, self.read_answer(2))
        assert raft.log.committed == 0
        hear(raft, append(2, 1, terms=[1, 1, 1], commit=0))
        assert raft.log.committed == 2

    def test_not_beyond_what_agrees_with_the_leader(self):
        raft = replica(terms=[1, 1, 1], term=2, leader=2)
        hear(raft, self.read_answer(3, 2))
        assert raft.log.committed == 0
        hear(raft, append(2, 2, (1, 1), [2]))
        assert raft.log.committed == 2

    def test_not_the_rest_of_a_log_that_an_append_did_not_reach(self):
        raft = replica(terms=[1, 1, 1], term=2, leader=2)
        hear(raft, self.read_answer(3, 2), append(2, 2, (1, 1)))
        assert (raft.log.last_index, raft.log.committed) == (3, 1)

    def test_what_is_vouched_for_stays_so_with_another_leader(self):
        raft = replica(leader=2, term=1)
        hear(raft, self.read_answer(2))
        hear(raft, append(3, 2, terms=[1, 1, 2], commit=0))
        assert raft.log.committed == 2

    def test_an_older_answer_does_not_lower_it(self):
        raft = replica(leader=2, term=1)
        hear(raft, self.read_answer(3), self.read_answer(1))
        hear(raft, append(2, 1, terms=[1, 1, 1]))
        assert raft.log.committed == 3


def test_a_witness_that_may_know_no_more_is_sent_one_empty_append(lanes):
    """What was queued for it in the same turn leaves no room, but there is nothing to wait with."""
    raft = leader(lanes, voters=(1, 2), witnesses=(3,), batch_append=True, max_message_bytes=0)
    raft.step(Message(T.PROPOSE, sender=1, entries=(Entry(payload=b"x"),)))
    assert [entries for _, entries in appends(raft.ready().messages, peer=3)] == [[]]
    assert not raft.has_ready
