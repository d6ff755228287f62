"""The log: what a follower takes in (thesis §3.5, §3.6), what is durable, what may be applied; and a plain list beside it."""

from collections import deque
from itertools import product

import pytest
from drakkar.handlers import (
    ConfigError,
    CorruptData,
    Entries,
    Entry,
    EntryKind,
    HardState,
    Membership,
    MemoryLog,
    MessageType,
    ProtocolViolation,
    Raft,
    RaftConfig,
    Ready,
    Run,
    Snapshot,
)
from drakkar.handlers.raft.entries import ENTRY_OVERHEAD
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.log import RaftLog
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.testing import drain
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.handlers.raft.support import append, become_leader, disk, hear, heartbeat, replica, terms_of


def run_of(first, *terms, payload=b"x"):
    """Entries of these terms from `first` on, as the log takes them."""
    return Entries.of(tuple(Entry(index, term, payload=payload) for index, term in enumerate(terms, first)))


def log_of(*terms, stored=None, commit=0, snapshot=None, memory=0):
    """A log of these terms, whose first `stored` entries (all, unless said) are on disk and the others in memory."""
    stored = len(terms) if stored is None else stored
    base = snapshot.index if snapshot else 0
    log = RaftLog(disk(terms[:stored], commit=commit, snapshot=snapshot), memory=LogMemory(memory))
    for run in run_of(base + stored + 1, *terms[stored:]).runs:
        log.append(run)
    return log


def take_in(log, entries):
    """What a follower does with entries that follow what it has; returns where they differed."""
    found = log.conflict(entries)
    if found:
        log.replace_from(found, entries)
    return found


class TestWhatAFollowerTakesIn:
    """Log `[1, 2]` at term 2, nothing committed, unless said (facts D of docs/protocol.md)."""

    @pytest.mark.parametrize(
        ("previous", "terms", "commit", "last", "committed"),
        [
            pytest.param((1, 1), [], 1, 2, 1, id="D2 empty, up to the entry before"),
            pytest.param((2, 2), [], 3, 2, 2, id="D2 empty, up to our last"),
            pytest.param((2, 2), [], 4, 2, 2, id="D2 empty, far beyond our last"),
            pytest.param((0, 0), [2], 1, 1, 1, id="D3 replaces all"),
            pytest.param((2, 2), [2, 2], 3, 4, 3, id="D4 extends, part is committed"),
            pytest.param((2, 2), [2], 4, 3, 3, id="D4 extends, more is committed elsewhere"),
            pytest.param((1, 1), [2], 4, 2, 2, id="D5 clipped to the entries that came"),
            pytest.param((1, 1), [], 3, 2, 1, id="D5 clipped to the entry before, though we hold more"),
            pytest.param((1, 1), [2], 3, 2, 2, id="D5 clipped though all was here"),
        ],
    )
    def test_a_match_is_answered_with_its_last_index_and_commits_no_further(
        self, previous, terms, commit, last, committed
    ):
        """Thesis §3.5; the commit index is clipped to what this message has shown to agree."""
        raft = replica(terms=[1, 2], term=2)
        [answer] = hear(raft, append(2, 2, previous, terms, commit))
        assert (raft.log.last_index, raft.log.committed) == (last, committed)
        assert (answer.type, answer.reject) == (MessageType.REPLICATE_RESP, False)
        assert (answer.to, answer.log_index) == (2, previous[0] + len(terms))

    @pytest.mark.parametrize("previous", [(2, 3), (3, 3)], ids=["another term there", "nothing there"])
    def test_a_mismatch_is_rejected_and_changes_nothing(self, previous):
        """D1, thesis §3.5."""
        raft = replica(terms=[1, 2], term=2)
        [answer] = hear(raft, append(2, 2, previous, [], commit=3))
        assert (answer.reject, answer.log_index) == (True, previous[0])
        assert (raft.log.last_index, raft.log.committed) == (2, 0)

    def test_an_index_beyond_the_last_never_matches_not_even_with_term_zero(self):
        """Rules of replication: dragonboat's lookup yields 0 outside the log, so that (9, 0) would match."""
        raft = replica(terms=[1, 2], term=2)
        [answer] = hear(raft, append(2, 2, (9, 0)))
        assert (answer.reject, raft.log.last_index) == (True, 2)

    @pytest.mark.parametrize(
        ("previous", "terms", "log", "to_save"),
        [
            pytest.param((2, 2), [3], [1, 2, 3], [3], id="behind the end"),
            pytest.param((1, 1), [3, 4], [1, 3, 4], [3, 4], id="a conflict cuts our tail"),
            pytest.param((0, 0), [1], [1, 2], [], id="all here already, and shorter"),
            pytest.param((0, 0), [3], [3], [3], id="a conflict in the first entry"),
        ],
    )
    def test_entries_are_appended_from_the_first_that_differs(self, previous, terms, log, to_save):
        """D6, thesis §3.5: only what is new is saved."""
        raft = replica(terms=[1, 2], term=2)
        raft.step(append(2, 4, previous, terms))
        assert terms_of_entries(raft.ready().entries) == to_save
        assert terms_of(raft) == log

    @pytest.mark.parametrize(("count", "commit"), [(1, 1), (2, 2), (2, 1)])
    def test_what_is_committed_is_applied_once_it_is_saved_and_no_more(self, count, commit):
        """D7."""
        raft = replica(term=1)
        raft.step(append(2, 1, (0, 0), [1] * count, commit))
        out = drain(raft)
        assert [entry.index for entry in out.committed] == list(range(1, commit + 1))

    def test_appends_that_were_reordered_end_in_the_same_log(self):
        """D19."""
        raft = replica(term=1)
        first, second = append(2, 1, (0, 0), [1, 1]), append(2, 1, (2, 1), [1])
        [early] = hear(raft, second)
        assert (early.reject, early.log_index, early.hint) == (True, 2, 0)
        [answer] = hear(raft, first)
        assert (answer.reject, answer.log_index) == (False, 2)
        [answer] = hear(raft, second)
        assert (answer.reject, answer.log_index) == (False, 3)

    @pytest.mark.parametrize(
        ("log", "previous", "hint"),
        [
            pytest.param([1, 1, 2, 2], (5, 4), (4, 2), id="shorter: our last, whose term is older"),
            pytest.param([1, 3, 5, 5, 6], (3, 3), (2, 3), id="longer: our last of the leader's term"),
            pytest.param([5, 5], (2, 3), (0, 0), id="nothing of that term or older"),
            pytest.param([], (4, 4), (0, 0), id="empty"),
            pytest.param([1] * 5, (9, 1), (5, 1), id="only shorter"),
        ],
    )
    def test_a_rejection_names_the_last_entry_that_may_agree(self, log, previous, hint):
        """Rules of replication, etcd's hint: both sides search by term, so each term costs one probe at most."""
        raft = replica(terms=log, term=6)
        [answer] = hear(raft, append(2, 6, previous))
        assert (answer.reject, answer.log_index) == (True, previous[0])
        assert (answer.hint, answer.log_term) == hint

    @pytest.mark.parametrize(
        "broken",
        [
            pytest.param([Entry(3, 2)], id="a gap before"),
            pytest.param([Entry(2, 2), Entry(4, 2)], id="a gap between"),
            pytest.param([Entry(2, 2), Entry(3, 1)], id="a term that falls"),
            pytest.param([Entry(2, 0)], id="no term"),
            pytest.param([Entry(2, 3)], id="a term beyond its leader's"),
        ],
    )
    def test_entries_that_contradict_themselves_are_counted_and_change_nothing(self, broken):
        raft = replica(terms=[1, 2], term=2)
        message = append(2, 2, (1, 1))
        message.entries = tuple(broken)
        assert hear(raft, message) == []
        assert terms_of(raft) == [1, 2]
        assert raft.faults.total() == 1


def terms_of_entries(entries):
    return [entry.term for entry in entries]


class TestBugsThatBitOthers:
    """Bugs of logs, each named after what it would break."""

    def test_a_new_leader_that_knows_less_committed_does_not_move_the_commit_index_back(self):
        """BUG-L1 (pso#166): neither by its appends nor by its heartbeats, nor in what is saved."""
        raft = replica(terms=[1, 1, 1], term=1)
        hear(raft, append(2, 1, (3, 1), [], commit=3))
        hear(raft, append(3, 2, (3, 1), [2], commit=1))
        hear(raft, heartbeat(3, 2, commit=2))
        assert raft.log.committed == 3
        assert raft.log.storage.hard_state.commit == 3

    def test_a_saved_commit_index_older_than_the_snapshot_does_not_move_anything_back(self):
        """BUG-L1, BUG-L14: a commit index need not be flushed, so a snapshot may know more; applied <= committed holds."""
        log = disk([1, 1, 1, 1], commit=1)
        log.snapshot = Snapshot(3, 1, Membership((1, 2, 3)))
        restarted = RaftLog(log)
        assert (restarted.applied, restarted.committed) == (3, 3)

    def test_a_late_copy_with_fewer_entries_cuts_nothing_off(self):
        """BUG-L4 (pso 0.3.14 kept 1 of 5 entries): only a true conflict of terms does (thesis §3.5)."""
        raft = replica(term=1)
        hear(raft, append(2, 1, (0, 0), [1] * 5))
        [answer] = hear(raft, append(2, 1, (0, 0), [1]))
        assert (terms_of(raft), answer.log_index) == ([1] * 5, 1)
        hear(raft, append(2, 1, (5, 1), [], commit=5))
        [answer] = hear(raft, append(2, 1, (0, 0), [1]))
        assert (terms_of(raft), answer.log_index) == ([1] * 5, 5)

    def test_an_old_tail_that_the_leader_has_not_checked_is_not_committed(self):
        """BUG-L5 (ra#508): our entries behind the message's last may not be the leader's."""
        raft = replica(terms=[1, 1, 1], term=1)
        hear(raft, append(3, 2, (1, 1), [], commit=3))
        assert raft.log.committed == 1
        hear(raft, append(3, 2, (1, 1), [2, 2], commit=3))
        assert (terms_of(raft), raft.log.committed) == ([1, 2, 2], 3)

    def test_a_disk_that_lost_committed_entries_is_refused_at_the_start(self):
        """BUG-L6."""
        with pytest.raises(
            CorruptData, match=r"commit index 4 lies beyond the last entry 2.*remove this replica"
        ):
            RaftLog(disk([1, 1], commit=4))

    def test_no_message_of_a_leader_replaces_committed_entries(self):
        """INV14: a leader that says so proves that someone has lost data."""
        raft = replica(terms=[1, 1, 1], term=1, commit=2)
        with pytest.raises(ProtocolViolation, match="entry 2 is committed"):
            raft.log.replace_from(2, run_of(2, 5))
        hear(raft, append(3, 2, (1, 1), [2, 2]))
        assert terms_of(raft) == [1, 1, 1]

    @pytest.mark.parametrize("stored", range(7))
    def test_with_every_limit_a_page_is_a_prefix_without_a_gap(self, stored):
        """BUG-L9 (etcd 8ecce32): a store that returned more or fewer than asked skipped entries."""
        sizes = [1, 30, 2, 2, 50, 3]
        log = RaftLog(disk([Entry(term=1, payload=b"x" * size) for size in sizes[:stored]]))
        for index, size in enumerate(sizes[stored:], stored + 1):
            log.append(Run(index, 1, [b"x" * size]))
        costs = [size + ENTRY_OVERHEAD for size in sizes]
        for low, high in product(range(1, 7), range(1, 8)):
            wanted = list(range(low, high))
            for limit in range(sum(costs) + 2):
                page = [entry.index for entry in log.entries(low, high, limit)]
                assert page == wanted[: fitting(costs, low, high, limit)], (low, high, limit)


def fitting(costs, low, high, limit):
    """How many entries from `low` on a page of `limit` bytes holds: at least one."""
    count = total = 0
    for cost in costs[low - 1 : max(high - 1, low - 1)]:
        total += cost
        if count and total > limit:
            break
        count += 1
    return count


class TestLookingUp:
    @pytest.mark.parametrize("stored", range(4))
    @pytest.mark.parametrize(
        ("first", "terms", "found"),
        [
            (1, [], 0),
            (1, [1, 2, 3], 0),
            (2, [2, 3], 0),
            (3, [3], 0),
            (1, [1, 2, 3, 4, 4], 4),
            (2, [2, 3, 4, 5], 4),
            (3, [3, 4, 4], 4),
            (4, [4, 4], 4),
            (1, [4, 4], 1),
            (2, [1, 4, 4], 2),
            (3, [1, 2, 4, 4], 3),
        ],
    )
    def test_the_first_entry_that_differs_or_is_new(self, first, terms, found, stored):
        """D8, in a log of `[1, 2, 3]`, wherever its entries are held; 0 where nothing is new."""
        assert log_of(1, 2, 3, stored=stored).conflict(run_of(first, *terms)) == found

    @pytest.mark.parametrize(
        ("index", "term", "agreed"),
        [
            *[(index, 4, True) for index in (2, 3, 4)],
            *[(index, 2, False) for index in (2, 3, 4)],
            (2, 3, False),
            (3, 3, True),
            (4, 3, True),
        ],
    )
    def test_a_log_is_up_to_date_by_its_last_term_then_by_its_length(self, index, term, agreed):
        """D9, thesis §3.6.1, against a log whose last entry is 3 of term 3."""
        assert log_of(1, 2, 3).is_up_to_date(term, index) is agreed

    def test_terms_are_known_from_just_before_the_first_entry_to_the_last(self):
        log = log_of(3, 4, snapshot=Snapshot(5, 2), commit=5)
        assert [log.term(index) for index in (-1, 0, 4, 5, 6, 7, 8)] == [0, 0, 0, 2, 3, 4, 0]

    def test_the_unsaved_part_begins_at_the_first_entry_that_changed(self):
        """D10, log `[1, 2]` on disk."""
        for first, terms, last, unsaved_from in [
            (3, [], 2, 3),
            (3, [2], 3, 3),
            (1, [2], 1, 1),
            (2, [3, 3], 3, 2),
        ]:
            log = log_of(1, 2)
            take_in(log, run_of(first, *terms))
            _, runs = log.take_unsaved(1)
            assert (log.last_index, runs[0].first if runs else log.last_index + 1) == (last, unsaved_from)


class TestCommitting:
    @pytest.mark.parametrize(("index", "committed"), [(3, 3), (1, 2), (2, 2)])
    def test_the_commit_index_only_rises(self, index, committed):
        """D11, last 3, commit 2."""
        log = log_of(1, 2, 3, commit=2)
        assert log.commit_to(index) is (index > 2)
        assert log.committed == committed

    def test_it_never_passes_the_last_entry(self):
        """D11."""
        log = log_of(1, 2, 3, commit=2)
        with pytest.raises(ProtocolViolation, match="entry 4 is committed, but this log ends at 3"):
            log.commit_to(4)


class TestWhatIsDurable:
    """Reports name a write, where the peers' name an index and a term (D12, D13, D17, D18; rules of durability)."""

    def test_it_grows_write_by_write(self):
        """D12."""
        log = log_of(1, 1, stored=0)
        log.take_unsaved(1)
        log.append(Run(3, 1, [b"x"]))
        log.take_unsaved(2)
        assert log.stable == 0
        log.saved(1)
        assert log.stable == 2
        log.saved(2)
        assert log.stable == 3

    def test_a_report_that_comes_twice_or_for_a_write_of_nothing_changes_nothing(self):
        """D13, D17."""
        log = log_of(1, 1, stored=0)
        log.take_unsaved(3)
        log.saved(2)
        assert log.stable == 0
        log.saved(3)
        log.saved(3)
        log.saved(9)
        assert log.stable == 2

    def test_replacing_entries_makes_the_log_less_durable(self):
        """D18: down to the entry before the first that was replaced."""
        log = log_of(1, 1, 1)
        assert log.stable == 3
        log.append(Run(4, 2, [b"x"]))
        assert log.stable == 3
        take_in(log, run_of(2, 3, 3))
        assert log.stable == 1

    def test_a_write_that_was_overwritten_before_its_report_makes_only_the_rest_durable(self):
        """D12: entry 1 of the write stands, entry 2 does not."""
        log = log_of(1, 1, stored=0)
        log.take_unsaved(1)
        take_in(log, run_of(2, 2))
        log.saved(1)
        assert log.stable == 1

    def test_behind_a_snapshot_nothing_is_durable_though_the_log_before_it_was_longer(self):
        """BUG-L7: entry 3 of the leader's log stands where an entry 3 of ours was durable."""
        log = log_of(1, 1, 1)
        log.restore(Snapshot(2, 2))
        log.append(Run(3, 2, [b"x"]))
        log.take_unsaved(1)
        assert log.stable < 3
        log.saved(1)
        assert log.stable == 3

    def test_an_entry_that_was_applied_ahead_of_the_disk_is_held_until_it_is_durable(self):
        """`apply_unpersisted_limit`: peers may still need what the disk does not have yet."""
        log = log_of(1, 1, stored=0, memory=0)
        log.take_unsaved(1)
        log.commit_to(2)
        log.take_committed(UNLIMITED, 2)
        log.applied_to(2)
        assert log.entries(1, 3) == run_of(1, 1, 1)


class TestWhatMayBeApplied:
    """D15: a snapshot at 3, entries 4 to 6, of which 4 is durable and 5 committed."""

    def log(self, applying):
        log = log_of(1, stored=1, snapshot=Snapshot(3, 1), commit=3)
        log.append(Run(5, 1, [b"x", b"x"]))
        log.take_unsaved(1)
        log.commit_to(5)
        log.applying = applying
        return log

    @pytest.mark.parametrize(
        ("applying", "ahead", "given"),
        [
            pytest.param(3, UNLIMITED, [4, 5], id="unsaved ones too"),
            pytest.param(4, UNLIMITED, [5], id="unsaved ones too, 4 was given"),
            pytest.param(5, UNLIMITED, [], id="all was given"),
            pytest.param(3, 0, [4], id="only durable ones"),
            pytest.param(4, 0, [], id="only durable ones, 4 was given"),
            pytest.param(3, 1, [4, 5], id="one ahead of the disk"),
        ],
    )
    def test_committed_entries_are_given_once_and_when_durable(self, applying, ahead, given):
        log = self.log(applying)
        assert [entry.index for entry in Entries(log.take_committed(UNLIMITED, ahead))] == given
        assert log.take_committed(UNLIMITED, ahead) == []

    def test_none_while_a_snapshot_waits_to_be_loaded(self):
        """D15, rules of durability: apply pauses while a snapshot is pending."""
        log = self.log(3)
        log.restore(Snapshot(9, 1))
        log.append(Run(10, 1, [b"x"]))
        log.take_unsaved(2)
        log.saved(2)
        log.commit_to(10)
        assert log.take_committed(UNLIMITED) == []
        log.applied_to(9)
        assert [entry.index for entry in Entries(log.take_committed(UNLIMITED))] == [10]

    @pytest.mark.parametrize(
        ("limit", "pages"),
        [
            pytest.param(0, [[1], [2], [3], [4]], id="at least one at a time"),
            pytest.param(33, [[1], [2], [3], [4]], id="two do not fit"),
            pytest.param(34, [[1, 2], [3, 4]], id="two fit"),
            pytest.param(UNLIMITED, [[1, 2, 3, 4]], id="all fit"),
        ],
    )
    def test_a_bound_of_bytes_makes_pages(self, limit, pages):
        """Rules of options, `max_apply_bytes`: at least one entry passes. An entry of one byte counts 17."""
        log = log_of(1, 1, 1, 1, commit=4)
        seen = []
        while page := [entry.index for entry in Entries(log.take_committed(limit))]:
            seen.append(page)
            log.applied_to(page[-1])
        assert seen == pages

    @pytest.mark.parametrize(
        ("applied", "given"),
        [pytest.param(0, [], id="none of it"), pytest.param(2, [5, 6], id="a page of it")],
    )
    def test_a_slow_state_machine_is_given_no_more_than_the_bound_at_a_time(self, applied, given):
        """D16: what was handed out and not applied yet counts."""
        log = log_of(*[1] * 8, commit=8)
        pages = [[entry.index for entry in Entries(log.take_committed(40))] for _ in range(3)]
        assert pages == [[1, 2], [3, 4], []]
        log.applied_to(applied)
        assert [entry.index for entry in Entries(log.take_committed(40))] == given

    def test_a_replica_goes_on_where_messages_and_batches_are_bounded_to_one_entry(self):
        """D16: both bounds 0."""
        raft = replica(term=1, max_apply_bytes=0, max_message_bytes=0)
        out = hear(raft, append(2, 1, (0, 0), [1] * 4, commit=4))
        assert [entry.index for entry in out.committed] == [1, 2, 3, 4]


class TestCompaction:
    def leader(self):
        """A single voter that has applied 1000 entries, and has a snapshot of them."""
        raft = replica(voters=(1,), terms=[1] * 999)
        become_leader(raft)
        assert raft.log.applied == 1000
        raft.snapshot_taken(Snapshot(1000, raft.term, raft.membership))
        return raft

    def test_each_compaction_leaves_the_rest(self):
        """D14."""
        raft = self.leader()
        left = []
        for index in (300, 500, 800, 900):
            raft.compact(index)
            left.append(raft.log.last_index - raft.log.first_index + 1)
        assert left == [700, 500, 200, 100]
        assert raft.log.term(900) == 1, "the term before the first entry stays known"
        assert (raft.log.term(899), len(raft.log.entries(1, 1001))) == (0, 100)

    @pytest.mark.parametrize(("before", "index"), [(0, 1001), (300, 299), (300, 300)])
    def test_what_is_not_there_or_not_applied_cannot_be_compacted(self, before, index):
        """D14."""
        raft = self.leader()
        if before:
            raft.compact(before)
        with pytest.raises(
            ConfigError, match=f"compaction index={index}: entries {before + 1} to 1000 can be"
        ):
            raft.compact(index)

    def test_what_no_snapshot_holds_cannot_be_compacted(self):
        """A peer that lacks these entries could never catch up: neither the log nor a snapshot has them."""
        raft = replica(voters=(1,), terms=[1] * 9)
        become_leader(raft)
        with pytest.raises(ConfigError, match="before a snapshot of 1 or later is taken"):
            raft.compact(5)
        raft.snapshot_taken(Snapshot(4, 1, raft.membership))
        with pytest.raises(ConfigError, match="compaction index=5: entries 1 to 4 can be compacted"):
            raft.compact(5)
        raft.compact(4)
        assert raft.log.first_index == 5

    def test_a_disk_with_a_gap_between_snapshot_and_log_is_refused(self):
        """Else the missing entries were skipped silently, and the replica's state would differ from the others'."""
        log = disk([1] * 6, commit=6)
        log.compact(4)
        with pytest.raises(CorruptData, match="entries 1 to 4 are in neither the snapshot nor the log"):
            Raft(RaftConfig(replica_id=1), log)

    def test_a_disk_refuses_it_too(self):
        log = disk([1, 1, 1])
        log.compact(2)
        assert (log.first_index, log.last_index, log.term(2), log.term(1)) == (3, 3, 1, 0)
        with pytest.raises(ConfigError, match="entries 3 to 3 can be compacted"):
            log.compact(2)


class TestUnappliedChanges:
    """Rules of elections: who has a committed membership change to apply does not campaign; so it has to be found."""

    @pytest.mark.parametrize("stored", [0, 2, 5])
    @pytest.mark.parametrize(
        ("applied", "committed", "found"),
        [(0, 2, False), (0, 3, True), (2, 3, True), (3, 5, False), (5, 5, False)],
    )
    def test_only_what_is_committed_and_not_applied_is_asked(self, stored, applied, committed, found):
        """The change stands at 3, of five entries."""
        kinds = [EntryKind.CONFIG_CHANGE if index == 3 else EntryKind.COMMAND for index in range(1, 6)]
        given = [Entry(index, 1, kind) for index, kind in enumerate(kinds, 1)]
        log = RaftLog(disk(given[:stored]))
        for run in Entries.of(given[stored:]).runs:
            log.append(run)
        log.commit_to(committed)
        log.applied_to(applied)
        assert log.unapplied_change() is found
        assert [entry.index for entry in log.unapplied_changes(committed)] == ([3] if found else [])


# -- a plain list beside it ----------------------------------------------------------------------------------------

patient = settings(deadline=None, max_examples=40, stateful_step_count=30)
few_terms = st.lists(st.integers(0, 2), min_size=1, max_size=4)


class LogModel(RuleBasedStateMachine):
    """A log on a disk that is slow and crashes, beside a list that cannot be wrong.

    `mine[i]` is the entry at `base + 1 + i`. Writes wait in `writes` until `the_disk_is_done`; `the_process_crashes`
    forgets all that is not on disk.
    """

    def __init__(self):
        super().__init__()
        self.disk = MemoryLog(membership=(1,))
        self.log = RaftLog(self.disk, memory=LogMemory(1000))
        self.base, self.base_term, self.mine = 0, 0, []
        self.writes, self.number, self.drawn = deque(), 0, 0
        self.committed = self.applied = self.given = 0
        self.pages = []
        """Last index and size of what was given to be applied."""

    @property
    def last(self):
        return self.base + len(self.mine)

    def term(self, index):
        return self.mine[index - self.base - 1].term if index > self.base else self.base_term

    def make(self, first, rises):
        """New entries behind `first - 1`, whose terms rise by these steps; no two are alike."""
        term, made = max(self.term(first - 1), 1), []
        for index, rise in enumerate(rises, first):
            term += rise
            self.drawn += 1
            made.append(Entry(index, term, payload=b"%d" % self.drawn * (self.drawn % 5)))
        return tuple(made)

    @rule(rises=few_terms)
    def a_leader_appends(self, rises):
        made = self.make(self.last + 1, rises)
        for run in Entries.of(made).runs:
            self.log.append(run)
        self.mine += made

    @rule(rises=few_terms, at=st.integers(0, 8))
    def a_follower_takes_in(self, rises, at):
        """Some entries that it has, and then others."""
        start = max(self.last + 1 - at, self.committed + 1)
        low = max(start - 2, self.committed + 1)
        known = tuple(self.mine[low - self.base - 1 : start - self.base - 1])
        made = known + self.make(start, rises)
        same = 0
        while low + same <= self.last and same < len(made) and self.term(low + same) == made[same].term:
            same += 1
        found = take_in(self.log, Entries.of(made))
        assert found == (low + same if same < len(made) else 0)
        if found:
            del self.mine[found - self.base - 1 :]
            self.mine += made[same:]

    @rule(part=st.floats(0, 1))
    def some_is_committed(self, part):
        self.committed += int((self.last - self.committed) * part)
        self.log.commit_to(self.committed)

    @rule()
    def work_is_handed_out(self):
        self.number += 1
        snapshot, runs = self.log.take_unsaved(self.number)
        state = HardState(1, 0, self.committed)
        self.writes.append(Ready(self.number, state, Entries(runs), snapshot))
        assert not self.log.has_unsaved()

    @precondition(lambda self: self.writes)
    @rule(count=st.integers(1, 3))
    def the_disk_is_done(self, count):
        for _ in range(min(count, len(self.writes))):
            ready = self.writes.popleft()
            self.disk.save(ready)
        self.log.saved(ready.number)

    @rule(limit=st.integers(0, 60), ahead=st.integers(0, 2))
    def committed_entries_are_given(self, limit, ahead):
        waiting = sum(size for last, size in self.pages if last > self.applied)
        room = not waiting or waiting < limit
        there = self.log.pending_snapshot is None and self.given < min(
            self.committed, self.log.stable + ahead
        )
        given = self.log.take_committed(limit, ahead)
        assert Entries(given) == self.mine[self.given - self.base :][: len(Entries(given))]
        assert bool(given) == (room and there)
        self.given += len(Entries(given))
        self.pages.append((self.given, sum(run.size for run in given)))

    @rule(part=st.floats(0, 1))
    def some_is_applied(self, part):
        if self.log.pending_snapshot is None:
            self.applied += int((self.given - self.applied) * part)
        else:
            self.applied = self.base
        self.log.applied_to(self.applied)

    @precondition(lambda self: self.base < min(self.applied, self.log.stable))
    @rule(part=st.floats(0, 1))
    def some_is_compacted(self, part):
        """The host compacts its store behind what the core has forgotten."""
        durable = min(self.applied, self.log.stable, self.disk.last_index)
        index = self.base + max(1, int((durable - self.base) * part))
        if self.writes:
            return
        self.disk.snapshot = self.log.snapshot = Snapshot(index, self.term(index))
        self.log.compact(index)
        self.disk.compact(index)
        self.base_term = self.term(index)
        del self.mine[: index - self.base]
        self.base = index

    @rule(ahead=st.integers(1, 9))
    def a_snapshot_is_installed(self, ahead):
        """Of a newer leader: in place of the tail that is not committed, or beyond all."""
        index, term = self.committed + ahead, self.term(self.last) + 1
        self.log.restore(Snapshot(index, term))
        self.base, self.base_term, self.mine = index, term, []
        self.committed = self.given = index
        self.pages.clear()

    @rule()
    def the_process_crashes(self):
        self.writes.clear()
        self.log = RaftLog(self.disk, memory=LogMemory(1000))
        self.base, self.mine = self.disk.first_index - 1, list(self.disk.entries())
        self.base_term = self.disk.term(self.base)
        self.committed = max(self.disk.hard_state.commit, self.base)
        self.applied = self.given = self.log.snapshot.index
        self.pages.clear()
        assert self.log.stable == self.last

    @invariant()
    def both_hold_the_same(self):
        log = self.log
        assert (log.first_index, log.last_index, log.last_term) == (
            self.base + 1,
            self.last,
            self.term(self.last),
        )
        assert [log.term(i) for i in range(self.base, self.last + 2)] == [
            *(self.term(i) for i in range(self.base, self.last + 1)),
            0,
        ]
        assert log.entries(self.base + 1, self.last + 1) == self.mine
        assert log.committed == self.committed

    @precondition(lambda self: self.mine)
    @rule(part=st.floats(0, 1), limit=st.integers(0, 100))
    def a_page_is_read(self, part, limit):
        costs = [len(entry.payload) + ENTRY_OVERHEAD for entry in self.mine]
        at = 1 + int((len(costs) - 1) * part)
        page = list(self.log.entries(self.base + at, self.last + 1, limit))
        assert page == self.mine[at - 1 : at - 1 + fitting(costs, at, len(costs) + 1, limit)]

    @invariant()
    def what_is_called_durable_is_on_the_disk(self):
        """INV10, and the ABA of BUG-L7: the same index and term on disk may be an entry that was replaced since."""
        on_disk = {entry.index: entry for entry in self.disk.entries()}
        for index in range(self.base + 1, self.log.stable + 1):
            assert on_disk.get(index) == self.mine[index - self.base - 1], f"{index} is not durable"
        if not self.writes and not self.log.has_unsaved():
            assert self.disk.entries() == tuple(self.mine)


TestAPlainListBesideIt = LogModel.TestCase
TestAPlainListBesideIt.settings = patient


def test_a_log_of_single_short_commands_does_not_outgrow_its_bound_by_what_holds_them():
    """A run of one short command is mostly its own objects, so these are counted where memory is bounded."""
    storage = MemoryLog(membership=[1])
    log = RaftLog(storage, memory=LogMemory(10_000))
    for index in range(1, 101):
        log.append(Run(index, 1, [b"x"]))
        snapshot, runs = log.take_unsaved(index)
        assert snapshot is None
        storage._window.append(runs[0])
        log.saved(index)
        log.commit_to(index)
        log.applied_to(index)
    assert len(log._window.runs) < 40
    assert [entry.index for entry in log.entries(1, 101)] == list(range(1, 101))


def test_a_copy_of_a_log_in_memory_holds_the_same_and_changes_by_itself():
    """Also where it was compacted, and where nothing is left after that."""
    log = MemoryLog([Entry(term=1)] * 5, HardState(1, 2, 5), (1, 2, 3))
    log.compact(3)
    whole, emptied = log.copy(), log.copy()
    emptied.compact(5)
    log._window.cut(5)
    assert (log.last_index, whole.first_index, whole.last_index) == (4, 4, 5)
    assert [entry.index for entry in whole.entries()] == [4, 5]
    assert (whole.hard_state, whole.membership, whole.term(3)) == (HardState(1, 2, 5), log.membership, 1)
    nothing = emptied.copy()
    assert (nothing.first_index, nothing.last_index, nothing.term(5)) == (6, 5, 1)
