"""The budget of memory that the logs of a host share: who drops what, how often all are looked at, who gives back."""

import sys

import pytest
from drakkar.handlers import ConfigError, MemoryLog, Run
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.log import RaftLog
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.raft.window import Window
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

KIB = 1 << 10


def window(memory, *sizes, first=1, released=True):
    """A window with one run for each size, all of them spare unless said."""
    made = Window(first, memory)
    for size in sizes:
        grow(made, size, released=released)
    return made


def grow(made, size=KIB, *, released=True):
    """Append a run of one entry; it is spare at once, unless said."""
    made.append(Run(made.last + 1, 1, [bytes(size)]))
    if released:
        made.release(made.last)


@pytest.mark.parametrize("limit", [-1, 1.5, True, 1 << 63])
def test_a_limit_that_is_no_number_of_bytes_is_refused(limit):
    with pytest.raises(ConfigError, match="log_memory_bytes"):
        LogMemory(limit)


@pytest.mark.parametrize("size", [10, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize("count", [1, 10, 100])
def test_a_run_counts_what_it_really_takes_with_the_encoded_bytes(size, count):
    """Within a quarter, and never much less: all objects of it, as Python measures them."""
    sent = Run(1000, 1000, [bytes(size) for _ in range(count)], origin=1 << 40, key=1000)
    run = Run.decode(sent.encode())
    parts = [run, run.payloads, run._encoded, *run.payloads, run.first, run.term, run.origin, run.key]
    real = sum(map(sys.getsizeof, parts))
    assert 0.9 * real < run.memory < 1.25 * real + 200


def test_a_run_of_large_commands_is_in_memory_once():
    """Else a host whose peers are behind would hold twice what they lack."""
    sent = Run(1, 1, [bytes(1 << 20)])
    run = Run.decode(sent.encode())
    assert run._encoded is sent._encoded is None
    assert run.encode() == sent.encode()
    assert run.memory < 1.01 * (1 << 20)


class TestWhoDropsWhat:
    def test_within_the_limit_all_is_kept(self):
        memory = LogMemory(100 * KIB)
        held = [window(memory, *[KIB] * 10) for _ in range(2)]
        assert [len(one.runs) for one in held] == [10, 10]

    def test_beyond_it_a_quiet_large_window_gives_up_its_entries_and_not_the_small_ones_theirs(self):
        memory = LogMemory(400 * KIB)
        quiet = window(memory, *[KIB] * 150)
        small = window(memory, *[KIB] * 10)
        busy = window(memory)
        while len(quiet.runs) == 150:
            grow(busy)
        assert memory.held <= 300 * KIB
        for _ in range(1000):
            grow(busy)
        assert len(small.runs) == 10
        assert quiet.bytes >= 100 * KIB  # it has less than half of the budget, and keeps its share of it

    def test_what_is_not_released_stays_and_the_others_pay(self):
        memory = LogMemory(100 * KIB)
        needed = window(memory, *[KIB] * 40, released=False)
        busy = window(memory)
        for _ in range(200):
            grow(busy)
            assert memory.held <= memory.limit
        assert len(needed.runs) == 40

    def test_where_the_needed_entries_alone_fill_it_no_window_keeps_more_than_it_must(self):
        memory = LogMemory(100 * KIB)
        needed = window(memory, *[KIB] * 100, released=False)
        busy = window(memory)
        for _ in range(20):
            grow(busy)
            assert busy.runs == []
        assert len(needed.runs) == 100
        assert memory.tight

    def test_a_tight_budget_is_one_no_more_when_the_needed_entries_are_released(self):
        memory = LogMemory(100 * KIB)
        needed = window(memory, *[KIB] * 100, released=False)
        needed.release(80)
        assert memory.held <= 75 * KIB
        assert not memory.tight

    def test_a_limit_of_0_keeps_nothing_that_may_be_dropped(self):
        memory = LogMemory(0)
        made = window(memory, KIB, KIB)
        assert made.runs == []
        grow(made, released=False)
        assert len(made.runs) == 1


class TestHowOftenAllAreLookedAt:
    @pytest.fixture
    def looks(self, monkeypatch):
        seen = []
        inner = LogMemory._make_room
        monkeypatch.setattr(LogMemory, "_make_room", lambda memory: (seen.append(1), inner(memory)))
        return seen

    def test_once_for_each_quarter_of_the_limit(self, looks):
        memory = LogMemory(100 * KIB)
        others = [window(memory, 100) for _ in range(30)]
        busy = window(memory)
        start = memory.held
        appended = 0
        while appended < 1000 * KIB:
            grow(busy)
            appended += busy.runs[-1].memory
        assert 0 < len(looks) <= (start + appended - memory.limit) / (memory.limit / 4) + 1
        assert all(len(other.runs) == 1 for other in others)

    def test_once_where_nothing_can_be_dropped(self, looks):
        memory = LogMemory(10 * KIB)
        window(memory, *[KIB] * 100, released=False)
        assert len(looks) == 1


class TestWhatIsGivenBack:
    def test_what_is_left_of_a_run_that_was_cut(self):
        log = RaftLog(MemoryLog(membership=[1]), memory=LogMemory(0))
        log.append(Run(1, 1, [b"kept", b"replaced"]))
        log.take_unsaved(1)
        log.saved(1)
        log.commit_to(1)
        log.take_committed(1, 0)
        log.applied_to(1)
        assert log.runs_in_memory(), "entry 2 is not applied"
        log.replace_from(2, Entries([Run(2, 2, [b"new"])]))
        assert [run.first for run in log.runs_in_memory()] == [2]

    def test_a_log_that_ends_gives_back_all(self):
        memory = LogMemory(100 * KIB)
        log, other = (RaftLog(MemoryLog(membership=[1]), memory=memory) for _ in range(2))
        for one in (log, other):
            one.append(Run(1, 1, [bytes(KIB)]))
        log.let_go()
        assert memory.held == other.memory_bytes > KIB
        assert memory._holders.keys() == {other._window}
        assert (log.last_index, log.last_term, log.memory_bytes) == (1, 1, 0)

    def test_an_idle_log_is_not_known_to_the_budget(self):
        memory = LogMemory()
        RaftLog(MemoryLog(membership=[1]), memory=memory)
        assert not memory._holders


class Budget(RuleBasedStateMachine):
    """Some windows of one budget, and whatever logs do to them. Sizes are such that the limit matters."""

    LIMIT = 20 * KIB

    def __init__(self):
        super().__init__()
        self.memory = LogMemory(self.LIMIT)
        self.windows = [Window(1, self.memory) for _ in range(3)]
        self.released = [0] * 3
        self.counted = [0] * 3

    which = st.integers(0, 2)

    @rule(at=which, sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=4))
    def one_appends(self, at, sizes):
        made = self.windows[at]
        made.append(Run(made.last + 1, 1, [bytes(size) for size in sizes]))

    @rule(at=which, part=st.floats(0, 1))
    def one_releases(self, at, part):
        last, released = self.windows[at].last, self.released[at]
        self.released[at] = max(released, released + int((last - released) * part))
        self.windows[at].release(self.released[at])

    @rule(at=which, part=st.floats(0, 1))
    def one_is_truncated(self, at, part):
        low = self.released[at] + 1
        self.windows[at].cut(low + int((self.windows[at].last + 1 - low) * part))
        self.windows[at].release(self.released[at])  # now perhaps all of a run that was cut

    @rule(at=which, part=st.floats(0, 1))
    def one_is_compacted(self, at, part):
        self.windows[at].drop_through(int(self.released[at] * part))

    @rule(at=which, ahead=st.integers(0, 5))
    def one_begins_anew(self, at, ahead):
        first = self.windows[at].last + 1 + ahead
        self.windows[at].clear(first)
        self.released[at] = first - 1

    @precondition(lambda self: self.memory.held)
    @rule(at=which)
    def one_ends(self, at):
        self.windows[at].clear(1)
        self.windows[at], self.released[at] = Window(1, self.memory), 0

    @invariant()
    def the_sum_is_within_the_budget_and_what_cannot_be_dropped(self):
        for made, released in zip(self.windows, self.released, strict=True):
            assert made.bytes == sum(run.memory for run in made.runs)
            assert made.spare == sum(run.memory for run in made.runs if run.last <= released)
            assert made.firsts == [run.first for run in made.runs]
            covered = [i for run in made.runs for i in range(run.first, run.last + 1)]
            assert covered == list(range(made.first, made.last + 1))
            assert made.first <= released + 1
        assert self.memory.held == sum(made.bytes for made in self.windows)
        needed = sum(made.bytes - made.spare for made in self.windows)
        assert self.memory.held <= max(self.LIMIT, needed)
        assert self.memory._holders.keys() == {made for made in self.windows if made.runs}


TestABudget = Budget.TestCase
TestABudget.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
