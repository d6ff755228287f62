"""Entries that the host must read from its disk first: all that needs them waits, all else goes on, and they are asked for again."""

from random import Random

import pytest
from drakkar.handlers import (
    Entry,
    EntryKind,
    HardState,
    Membership,
    MemoryLog,
    Message,
    MessageType,
    ProgressState,
    Raft,
    RaftConfig,
    Refusal,
    Snapshot,
    State,
)
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    DEFAULTS,
    FIXED,
    FakeLanes,
    T,
    ack,
    append,
    become_leader,
    campaign,
    heartbeat_answer,
    of_type,
    propose,
    rejection,
    tick,
)

M = MessageType
LOADED = Message(M.ENTRIES_LOADED, sender=1)
CHANGE = ConfigChange((Change(ChangeType.ADD_OBSERVER, 9),)).encode()


class Shelf(MemoryLog):
    """A log of which some entries are not in memory: its reader asks in vain until they are `fetched`."""

    absent = frozenset()
    asked = ()

    def runs(self, low, high, limit):
        if low in self.absent:
            self.asked += (low,)
            raise EntriesNotLoaded
        return super().runs(low, min([high, *(index for index in self.absent if index > low)]), limit)

    def fetched(self, *indexes):
        self.absent -= set(indexes)


def started(count, absent, *, commit=0, change=0, membership=(1, 2, 3), **config):
    """A follower of term 1 whose log of `count` entries was written in an earlier life; `absent` are not in memory."""
    kinds = {change: EntryKind.CONFIG_CHANGE}
    entries = [
        Entry(
            index,
            1,
            kinds.get(index, EntryKind.COMMAND),
            CHANGE if index == change else b"%d" % index,
        )
        for index in range(1, count + 1)
    ]
    members = membership if isinstance(membership, Membership) else Membership(membership)
    log = Shelf(entries, HardState(1, 0, commit), members)
    log.absent = frozenset(absent)
    return Raft(RaftConfig(replica_id=1, **{**DEFAULTS, **config}), log, random=Random(1)), log


def snapshot(index):
    """A snapshot of term 1."""
    return Snapshot(index, 1, Membership((1, 2, 3)))


def load(raft, log, *indexes):
    """Read these entries, and say so; returns what it sends, and the rest on it."""
    log.fetched(*indexes)
    raft.step(LOADED)
    return drain(raft)


def sent_to(peer, messages):
    """The entries of each append to one peer, as lists of indexes."""
    return [
        [entry.index for entry in message.entries]
        for message in of_type(messages, M.REPLICATE)
        if message.to == peer
    ]


class TestApplying:
    def test_nothing_is_handed_out_before_the_next_entries_are_loaded_and_then_all_in_order(self):
        raft, log = started(5, {3, 4}, commit=5)
        assert [entry.index for entry in drain(raft).committed] == [1, 2]
        assert not raft.has_ready  # it does not spin
        assert [entry.index for entry in load(raft, log, 3).committed] == [3]
        assert not raft.has_ready
        assert [entry.index for entry in load(raft, log, 4).committed] == [4, 5]

    def test_news_without_the_entries_make_it_ask_once_more(self):
        raft, log = started(3, {1}, commit=3)
        drain(raft)
        assert not load(raft, log).committed
        assert log.asked == (1, 1)
        assert not raft.has_ready
        assert raft.log.not_loaded == 2

    def test_a_later_commit_does_not_make_it_ask_again(self):
        raft, log = started(3, {1}, commit=2)
        drain(raft)
        raft.step(append(2, 1, (3, 1), [1], commit=4))
        drain(raft)
        assert log.asked == (1,)
        assert [entry.index for entry in load(raft, log, 1).committed] == [1, 2, 3, 4]

    def test_a_snapshot_that_comes_meanwhile_takes_their_place(self):
        raft, log = started(3, {1}, commit=3)
        drain(raft)
        raft.step(Message(M.INSTALL_SNAPSHOT, sender=2, term=1, snapshot=snapshot(8)))
        drain(raft)
        assert (raft.log.applied, load(raft, log).committed) == (8, [])


class TestSending:
    def leader(self, absent, **config):
        """Leads term 2 with entries 1 to 5 of term 1, and its own at 6."""
        raft, log = started(5, (), **config)
        become_leader(raft)
        log.absent = frozenset(absent)
        return raft, log

    def test_a_peer_is_sent_nothing_and_its_progress_stays_as_it_is(self):
        raft, _ = self.leader({3})
        raft.step(rejection(2, 2, 5, 2, log_term=1))
        assert sent_to(2, drain(raft)) == []
        peer = raft.progress[2]
        assert (peer.state, peer.next, peer.paused) == (ProgressState.PROBE, 3, False)
        assert not raft.has_ready
        assert raft.log.not_loaded == 1

    def test_nothing_is_loaded_for_a_peer_whose_lane_has_no_room(self):
        raft, log = self.leader({3})
        raft.lanes = FakeLanes()
        raft.lanes.rooms[2] = 0
        raft.step(rejection(2, 2, 5, 2, log_term=1))
        drain(raft)
        assert raft.progress[2].busy
        assert not log.asked

    @pytest.mark.parametrize("batched", [False, True])
    def test_it_is_sent_them_when_they_are_loaded(self, batched):
        raft, log = self.leader({3}, batch_append=batched)
        raft.step(rejection(2, 2, 5, 2, log_term=1))
        drain(raft)
        assert sent_to(2, load(raft, log, 3)) == [[3, 4, 5, 6]]
        assert sent_to(2, load(raft, log)) == []  # later news mean nothing

    def test_a_window_goes_on_where_it_stopped(self):
        """Each message holds one entry; the third is not loaded when its turn comes."""
        raft, log = self.leader({4}, max_message_bytes=1)
        raft.step(rejection(2, 2, 5, 1, log_term=1))
        assert sent_to(2, drain(raft)) == [[2]]
        raft.step(ack(2, 2, 2))
        assert sent_to(2, drain(raft)) == [[3]]
        assert sent_to(2, load(raft, log, 4)) == [[4], [5], [6]]

    def test_each_peer_waits_for_itself_and_the_first_to_wait_is_the_first_to_go_on(self):
        raft, log = self.leader({2, 4})
        raft.step(rejection(3, 2, 5, 3, log_term=1))
        raft.step(rejection(2, 2, 5, 1, log_term=1))
        assert of_type(drain(raft), M.REPLICATE) == []
        out = load(raft, log, 2)
        assert (sent_to(3, out), sent_to(2, out)) == ([], [[2, 3]])
        assert log.asked == (4, 2, 4)
        assert sent_to(3, load(raft, log, 4)) == [[4, 5, 6]]

    def test_heartbeats_go_on_and_their_answers_ask_again(self):
        """So a peer does not depend on the news alone."""
        raft, log = self.leader({3})
        raft.step(rejection(2, 2, 5, 2, log_term=1))
        assert [message.to for message in of_type(tick(raft), M.HEARTBEAT)] == [2, 3]
        log.fetched(3)
        raft.step(heartbeat_answer(2, 2))
        assert sent_to(2, drain(raft)) == [[3, 4, 5, 6]]

    def test_a_leader_that_stepped_down_sends_nothing(self):
        raft, log = self.leader({3})
        raft.step(rejection(2, 2, 5, 2, log_term=1))
        raft.step(append(2, 3, (6, 2), [3]))
        drain(raft)
        assert not raft.awaiting_load
        assert of_type(load(raft, log, 3), M.REPLICATE) == []

    def test_what_was_compacted_meanwhile_goes_as_a_snapshot(self):
        raft, log = self.leader(())
        raft.step(ack(3, 2, 6))
        drain(raft)
        log.absent = frozenset({3})
        raft.step(rejection(2, 2, 5, 2, log_term=1))
        raft.snapshot_taken(snapshot(5))
        raft.compact(5)
        assert [message.to for message in of_type(load(raft, log), M.INSTALL_SNAPSHOT)] == [2]

    def test_a_peer_without_room_is_probed_on_time_by_an_empty_append(self):
        """Else its probe would come late, and the next one too soon after it."""
        raft, _ = self.leader({3})
        raft.step(Message(M.LOG_FULL, sender=2, term=2, log_index=2))
        sent = tick(raft, T)
        assert sent_to(2, sent) == [[]]


class TestCampaigns:
    """A voter with a committed membership change to apply does not campaign (rules of elections): first it must know."""

    def test_none_while_the_log_is_not_loaded_and_then_at_the_next_tick(self):
        raft, log = started(5, {3}, commit=5, **FIXED)
        drain(raft)
        assert tick(raft, T + 3) == []
        assert raft.state is State.FOLLOWER
        log.fetched(3)
        assert {message.type for message in tick(raft)} == {M.REQUEST_VOTE}

    def test_none_where_the_search_finds_a_change(self):
        raft, log = started(5, {3}, commit=5, change=4, **FIXED)
        raft.log.take_committed(1)  # a slow state machine has its first entry
        log.fetched(3)
        assert campaign_only(raft) == []
        assert [entry.index for entry in raft.log.unapplied_changes(5)] == [4]

    def test_what_was_handed_out_to_be_applied_is_not_read_again(self):
        raft, log = started(5, (), commit=5, change=4)
        raft.log.take_committed(1 << 20)
        log.absent = frozenset(range(1, 6))
        assert [entry.index for entry in raft.log.unapplied_changes(5)] == [4]
        assert raft.snapshot_point(5).membership.observers == {9}
        raft.applied(5)
        assert (raft.membership.observers, log.asked) == ({9}, ())

    def test_a_long_log_is_searched_in_several_ticks(self):
        """Ten entries of a MiB. Each tick searches four pages at most, since the loop waits for it."""
        entries = [Entry(payload=bytes(1 << 20), term=1) for _ in range(10)]
        log = MemoryLog(entries, HardState(1, 0, 10), (1, 2, 3))
        raft = Raft(RaftConfig(replica_id=1, **DEFAULTS, **FIXED), log, random=Random(1))
        raft.log.take_committed(1)  # a slow state machine has its first entry
        ticks = 0
        while raft.state is State.FOLLOWER:
            raft.tick()
            ticks += 1
        assert ticks == T + 2

    def test_a_candidate_gives_up_where_a_commit_may_bring_a_change(self):
        """Commit by vote: a refusal tells of commits, and what lies before them was not searched."""
        raft, log = started(5, (), commit=1)
        drain(raft)
        campaign(raft)
        log.absent = frozenset({2})
        raft.step(Message(M.REQUEST_VOTE_RESP, sender=2, term=raft.term, reject=True, commit=5, hint_high=1))
        assert (raft.state, raft.log.committed) == (State.FOLLOWER, 5)


def campaign_only(raft):
    """Let it campaign, and apply nothing; returns what it sends."""
    raft.step(Message(M.ELECTION, sender=1))
    return raft.ready().messages_after_save


class TestWitnesses:
    MEMBERS = Membership((1, 2), witnesses=(3,))

    def test_a_witness_is_told_nothing_while_it_is_not_known_which_voters_stay(self):
        """Inherited entries may hold a change, so the leader has to search them."""
        raft, log = started(5, (), membership=self.MEMBERS, change=4)
        log.absent = frozenset({1})
        raft.step(Message(M.ELECTION, sender=1))
        drain(raft)
        raft.step(Message(M.REQUEST_VOTE_RESP, sender=2, term=2))
        out = drain(raft)
        assert (sent_to(2, out), sent_to(3, out)) == ([[6]], [])
        assert sent_to(3, load(raft, log, 1)) == [[6]]

    def test_check_quorum_counts_it_meanwhile(self):
        raft, log = started(5, (), membership=self.MEMBERS, change=4, check_quorum=True)
        log.absent = frozenset({1})
        raft.step(Message(M.ELECTION, sender=1))
        drain(raft)
        raft.step(Message(M.REQUEST_VOTE_RESP, sender=3, term=2))
        raft.step(heartbeat_answer(3, 2))
        drain(raft)
        raft.step(Message(M.CHECK_QUORUM, sender=1))
        assert raft.state is State.LEADER


class TestLogQueries:
    def query(self, raft, first, end):
        raft.step(Message(M.LOG_QUERY, sender=first, to=end, hint=1 << 20))
        return drain(raft)

    def test_one_is_answered_when_its_entries_are_loaded(self):
        raft, log = started(5, (), commit=5)
        drain(raft)
        log.absent = frozenset({2})
        assert self.query(raft, 2, 4).log_query is None
        assert load(raft, log).log_query is None
        answer = load(raft, log, 2).log_query
        assert [entry.index for entry in answer.entries] == [2, 3]
        assert load(raft, log).log_query is None

    def test_another_is_refused_meanwhile(self):
        raft, log = started(5, (), commit=5)
        drain(raft)
        log.absent = frozenset({2})
        self.query(raft, 2, 4)
        dropped = self.query(raft, 4, 5).dropped
        assert [(one.because, one.key) for one in dropped] == [(Refusal.QUERY_PENDING, 4)]


class TestTheSizeOfProposals:
    def test_it_is_given_back_without_reading(self):
        """`max_uncommitted_bytes`: what counts was proposed in this term, and is in memory until it is applied."""
        raft, log = started(5, (), commit=5, membership=(1,), max_uncommitted_bytes=100)
        drain(raft)
        campaign(raft)
        log.absent = frozenset(range(1, 6))
        propose(raft, b"x" * 10)
        assert (raft.uncommitted_bytes, log.asked) == (0, ())
