"""Progress and its window: the tables of the peers, a plain model, and a conversation over a wire that fails."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from drakkar.handlers.raft.progress import Inflight, Progress, ProgressState
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT

# A shared machine may stand still for a moment: that is no failure.
patient = settings(deadline=None, max_examples=150)


def progress_in(
    state: ProgressState, match: int = 0, to_send: int = 0, pending: int = 11, window: int = 256
) -> Progress:
    """A progress that was brought into `state` by its own moves, and then to `to_send` as its `next`."""
    progress = Progress(match=match, next=match + 1, max_inflight_messages=window)
    if state is REPLICATE:
        progress.become_replicate()
    elif state is SNAPSHOT:
        progress.become_snapshot(pending)
    if to_send:
        progress.next = to_send
    return progress


class TestWindow:
    def test_it_counts_and_frees_in_order(self) -> None:
        """F4, etcd's arithmetic."""
        window = Inflight(10, 0)
        for index in range(10):
            window.add(index, 100 + index)
        seen = [(window.count, window.bytes)]
        for upto in (0, 4, 8):
            window.free_to(upto)
            seen.append((window.count, window.bytes))
        for index in range(10, 15):
            window.add(index, 100 + index)
        for upto in (12, 14):
            window.free_to(upto)
            seen.append((window.count, window.bytes))
        assert seen == [(10, 1045), (9, 945), (5, 535), (1, 109), (2, 227), (0, 0)]

    def test_it_is_full_at_its_number_of_messages(self) -> None:
        """F1."""
        window = Inflight(256, 0)
        for index in range(1, 257):
            assert not window.full
            window.add(index, 1)
        assert window.full
        window.free_to(1)
        assert not window.full

    def test_the_message_that_crosses_the_bound_of_bytes_still_goes(self) -> None:
        window = Inflight(256, 1000)
        window.add(1, 999)
        assert not window.full
        window.add(2, 5000)
        assert window.full
        window.free_to(1)
        assert window.full
        window.free_to(2)
        assert not window.full

    def test_exactly_the_bound_of_bytes_is_full(self) -> None:
        window = Inflight(256, 1000)
        window.add(1, 1000)
        assert window.full

    def test_a_window_of_no_messages_stops_sending_until_it_is_opened(self) -> None:
        """F7, raft-rs."""
        window = Inflight(2, 0)
        window.add(1, 10)
        window.max_messages = 0
        assert window.full
        window.free_to(1)
        assert window.full
        window.max_messages = 1
        assert not window.full

    def test_clearing_leaves_nothing(self) -> None:
        window = Inflight(3, 100)
        window.add(4, 60)
        window.add(5, 60)
        window.clear()
        assert (window.count, window.bytes, window.indexes, window.full) == (0, 0, (), False)

    def test_sending_over_a_full_window_is_a_bug_of_the_caller(self) -> None:
        window = Inflight(1, 0)
        window.add(4, 10)
        with pytest.raises(AssertionError, match="full with 1 messages of 10 bytes"):
            window.add(5, 10)

    def test_sending_backwards_is_a_bug_of_the_caller(self) -> None:
        window = Inflight(9, 0)
        window.add(4, 10)
        with pytest.raises(AssertionError, match="4 is not above 4"):
            window.add(4, 10)


@pytest.mark.parametrize(
    ("match", "to_send", "index", "news", "expected"),
    [
        pytest.param(3, 5, 2, False, (3, 5), id="E24 below match: late"),
        pytest.param(3, 5, 3, False, (3, 5), id="E24 at match: a duplicate"),
        pytest.param(3, 5, 4, True, (4, 5), id="E24 one of what was sent"),
        pytest.param(3, 5, 5, True, (5, 6), id="E24 beyond what was sent"),
        pytest.param(10, 20, 20, True, (20, 21), id="E25 dragonboat: at next"),
        pytest.param(10, 20, 18, True, (18, 20), id="E25 dragonboat: below next - 1"),
        pytest.param(10, 20, 19, True, (19, 20), id="E25 dragonboat: at next - 1"),
        pytest.param(10, 20, 9, False, (10, 20), id="E25 dragonboat: late"),
    ],
)
@pytest.mark.parametrize("state", list(ProgressState))
def test_an_accept_only_ever_raises(
    state: ProgressState, match: int, to_send: int, index: int, news: bool, expected: tuple[int, int]
) -> None:
    """Thesis §3.5: messages may come twice, late and in any order."""
    progress = progress_in(state, match, to_send)
    progress.probe_sent = True
    assert progress.accepted(index) is news
    assert (progress.match, progress.next, progress.state) == (*expected, state)
    assert progress.probe_sent is not news, "E29: news unpause, and nothing else does"


@pytest.mark.parametrize(
    ("state", "match", "to_send", "rejected", "hint", "expected"),
    [
        pytest.param(REPLICATE, 5, 10, 5, 5, None, id="E26 accepted since: late"),
        pytest.param(REPLICATE, 5, 10, 4, 4, None, id="E26 below match: late"),
        pytest.param(REPLICATE, 5, 10, 9, 9, 6, id="E26 sent ahead in vain: back to match + 1"),
        pytest.param(PROBE, 0, 10, 5, 5, None, id="E26 another than the last probe: late"),
        pytest.param(PROBE, 0, 10, 9, 9, 9, id="E26 one back"),
        pytest.param(PROBE, 0, 10, 9, 2, 3, id="E26 behind the hint"),
        pytest.param(PROBE, 0, 10, 9, 0, 1, id="E26 nothing in common"),
        pytest.param(PROBE, 0, 2, 1, 1, 1, id="E26 the first entry differs"),
        pytest.param(PROBE, 0, 1, 0, 0, 1, id="E26 never below the first index"),
        pytest.param(PROBE, 0, 10, 9, 40, 9, id="a hint beyond what was rejected is no help"),
        pytest.param(PROBE, 4, 10, 9, 2, 5, id="the floor: never back to match"),
        pytest.param(
            PROBE, 4, 5, 4, 0, 5, id="E18 a late rejection of what was accepted: probe again at match"
        ),
        pytest.param(SNAPSHOT, 0, 10, 9, 4, 5, id="in SNAPSHOT as in PROBE"),
        pytest.param(SNAPSHOT, 0, 10, 8, 4, None, id="in SNAPSHOT as in PROBE: late"),
        pytest.param(REPLICATE, 10, 15, 9, 0, None, id="E27 below match"),
        pytest.param(REPLICATE, 10, 15, 10, 0, None, id="E27 at match"),
        pytest.param(REPLICATE, 10, 15, 12, 0, 11, id="E27 above match"),
    ],
)
def test_a_rejection_steps_back_unless_it_is_late(
    state: ProgressState, match: int, to_send: int, rejected: int, hint: int, expected: int | None
) -> None:
    """Thesis §3.5 and etcd's `MaybeDecrTo`."""
    progress = progress_in(state, match, to_send)
    progress.probe_sent = True
    assert progress.rejected(rejected, hint) is (expected is not None)
    assert (progress.match, progress.next, progress.state) == (match, expected or to_send, state)
    if state is PROBE:
        assert progress.probe_sent is (expected is None), "E29: only a genuine rejection unpauses"
    elif state is SNAPSHOT:
        assert progress.paused


@pytest.mark.parametrize(
    ("state", "sent", "paused"),
    [
        (PROBE, [], False),
        (PROBE, [0, 0], False),
        (PROBE, [3], True),
        (REPLICATE, [], False),
        (REPLICATE, [3], False),
        (REPLICATE, [3, 0, 0], False),
        (REPLICATE, [3, 1], True),
        (SNAPSHOT, [], True),
    ],
)
def test_who_is_paused(state: ProgressState, sent: list[int], paused: bool) -> None:
    """E28 and F1, with a window of two: empty messages never count."""
    progress = progress_in(state, window=2)
    for count in sent:
        progress.sent(count, 100)
    assert progress.paused is paused


def test_a_probe_leaves_next_where_it_is_and_sending_ahead_moves_it() -> None:
    """E14, E16 and E17."""
    probe, ahead = progress_in(PROBE, 1), progress_in(REPLICATE, 1)
    probe.sent(4, 64)
    ahead.sent(4, 64)
    assert (probe.next, probe.inflight.count) == (2, 0)
    assert (ahead.next, ahead.inflight.indexes, ahead.inflight.bytes) == (6, (5,), 64)
    for _ in range(10):
        ahead.sent(1, 16)
    assert (ahead.next, ahead.inflight.count) == (16, 11)


def test_nothing_is_sent_while_a_snapshot_is_on_its_way() -> None:
    """H3: the leader asks `paused` first; one that does not has a bug."""
    with pytest.raises(AssertionError, match="snapshot is on its way"):
        progress_in(SNAPSHOT).sent(1, 16)


def test_match_is_below_next_from_the_start() -> None:
    with pytest.raises(AssertionError, match="match=5 is not below next=5"):
        Progress(match=5, next=5)


@pytest.mark.parametrize(
    ("state", "expected"),
    [(PROBE, (PROBE, 6)), (REPLICATE, (PROBE, 4)), (SNAPSHOT, (SNAPSHOT, 6))],
)
def test_a_lost_connection_ends_sending_ahead_and_nothing_else(
    state: ProgressState, expected: tuple[ProgressState, int]
) -> None:
    """E15."""
    progress = progress_in(state, 3, 6)
    progress.probe_sent = True
    progress.unreachable()
    assert (progress.state, progress.next) == expected
    assert progress.probe_sent is (state is not REPLICATE)


def test_a_peer_without_room_that_rejects_is_probed_further_back_with_the_clock() -> None:
    """Each probe may bring it entries that it must throw away."""
    progress = progress_in(PROBE, 4, 8)
    progress.ran_full()
    assert progress.rejected(7, 5) is True
    assert (progress.next, progress.paused) == (6, True)
    progress.retry()
    assert progress.paused is False


def test_a_late_rejection_after_a_lost_connection_does_not_go_below_match() -> None:
    """E18: the answers came in the wrong order, and the connection failed between."""
    progress = progress_in(REPLICATE, 3)
    progress.sent(2, 32)
    progress.accepted(5)
    progress.unreachable()
    assert progress.rejected(4, 3) is False
    assert progress.rejected(5, 3) is True
    assert (progress.match, progress.next) == (5, 6)


def test_a_heartbeat_answer_ends_the_wait_for_a_probe() -> None:
    """E23: the message, or its answer, was lost."""
    progress = progress_in(PROBE, 11)
    progress.sent(1, 16)
    assert (progress.paused, progress.active) == (True, False)
    progress.heard()
    assert (progress.paused, progress.active, progress.state) == (False, True, PROBE)
    assert progress.accepted(11) is False
    progress.become_replicate()
    assert (progress.state, progress.match, progress.next) == (REPLICATE, 11, 12)


def test_a_heartbeat_answer_opens_neither_a_full_window_nor_a_snapshot() -> None:
    """F2 and H3: only an answer to what was sent does."""
    full, snapshot = progress_in(REPLICATE, window=1), progress_in(SNAPSHOT)
    full.sent(1, 16)
    full.heard()
    snapshot.heard()
    assert full.paused
    assert snapshot.paused


def test_accepting_frees_the_window_up_to_the_index() -> None:
    progress = progress_in(REPLICATE)
    for count in (2, 3, 1):
        progress.sent(count, 10 * count)
    progress.accepted(5)
    assert (progress.inflight.indexes, progress.inflight.bytes) == ((6,), 10)


@pytest.mark.parametrize(
    ("match", "rejected", "to_send"),
    [
        pytest.param(0, True, 1, id="H4 failed: from the entry after match"),
        pytest.param(7, True, 8, id="failed, and match had risen meanwhile"),
        pytest.param(0, False, 12, id="delivered: from the entry behind the snapshot"),
        pytest.param(15, False, 16, id="delivered, but the peer is further already"),
    ],
)
@pytest.mark.parametrize("ticks", [0, 1, 10])
def test_after_a_snapshot_the_peer_is_probed_once_it_is_heard(
    match: int, rejected: bool, to_send: int, ticks: int
) -> None:
    """Thesis §5.3; dragonboat's delay lets the peer's own answer come first."""
    progress = progress_in(SNAPSHOT, match, pending=11)
    if ticks:
        progress.delay_status(ticks, rejected)
        assert [progress.tick() for _ in range(ticks)] == [False] * (ticks - 1) + [True]
    else:
        progress.snapshot_done(rejected)
    assert (progress.state, progress.next, progress.pending_snapshot) == (PROBE, to_send, 0)
    assert progress.delayed_status is None
    assert progress.paused
    progress.heard()
    assert not progress.paused


@pytest.mark.parametrize("state", [PROBE, REPLICATE])
def test_a_report_about_a_snapshot_is_ignored_elsewhere(state: ProgressState) -> None:
    """H6 and H18."""
    progress = progress_in(state, 3, 6)
    before = str(progress)
    progress.snapshot_done(rejected=False)
    progress.delay_status(1, rejected=True)
    assert progress.tick() is False
    assert str(progress) == before


def test_the_last_of_two_delayed_reports_counts() -> None:
    progress = progress_in(SNAPSHOT)
    progress.delay_status(10, rejected=True)
    progress.tick()
    progress.delay_status(2, rejected=False)
    assert [progress.tick(), progress.tick(), progress.tick()] == [False, True, False]
    assert progress.next == 12


def test_the_peers_own_answer_overtakes_a_delayed_report() -> None:
    """H5 and H7: an accept at the snapshot's index ends the wait, and the late report finds nothing to end."""
    progress = progress_in(SNAPSHOT, pending=11)
    progress.delay_status(2, rejected=True)
    assert progress.accepted(11)
    progress.become_replicate()
    assert (progress.pending_snapshot, progress.next, progress.delayed_status) == (0, 12, None)
    progress.sent(1, 16)
    assert (progress.tick(), progress.state, progress.next, progress.inflight.count) == (
        False,
        REPLICATE,
        13,
        1,
    )


MOVES: list[Callable[[Progress], None]] = [
    Progress.become_probe,
    Progress.become_replicate,
    lambda progress: progress.become_snapshot(20),
]


@pytest.mark.parametrize("state", list(ProgressState))
@pytest.mark.parametrize("move", MOVES, ids=["to PROBE", "to REPLICATE", "to SNAPSHOT"])
def test_a_change_of_state_leaves_nothing_behind(
    state: ProgressState, move: Callable[[Progress], None]
) -> None:
    """What is not cleared counts for ever: etcd once refused to send again (BUG-N5)."""
    progress = progress_in(state, 3)
    if state is SNAPSHOT:
        progress.delay_status(5, rejected=False)
    else:
        progress.sent(2, 32)
    progress.probe_sent = True
    move(progress)
    assert (progress.inflight.count, progress.inflight.bytes) == (0, 0)
    assert progress.probe_sent is False
    assert progress.delayed_status is None
    assert progress.pending_snapshot == (20 if progress.state is SNAPSHOT else 0)


@pytest.mark.parametrize(
    ("sent_commit", "commit", "lacks"),
    [
        pytest.param(3, 4, True, id="news"),
        pytest.param(4, 4, False, id="told already"),
        pytest.param(3, 9, True, id="it may commit a part of it"),
        pytest.param(5, 9, False, id="all entries sent are committed there"),
        pytest.param(7, 9, False, id="told more than it holds"),
    ],
)
def test_a_commit_index_is_worth_a_message_only_if_it_is_of_use(
    sent_commit: int, commit: int, lacks: bool
) -> None:
    """etcd's rule, for a peer to which entries up to 5 went out."""
    progress = progress_in(REPLICATE, 2, 6)
    progress.sent_commit = sent_commit
    assert progress.lacks_commit(commit) is lacks


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda progress: progress.rejected(5, 3), id="rejected"),
        pytest.param(lambda progress: progress.unreachable(), id="unreachable"),
    ],
)
def test_a_commit_index_that_may_be_lost_is_worth_sending_again(lose: Callable[[Progress], object]) -> None:
    progress = progress_in(REPLICATE, 2, 6)
    progress.sent_commit = 5
    lose(progress)
    assert progress.sent_commit == 2


def test_a_progress_is_one_line() -> None:
    progress = Progress(match=3, next=5)
    assert str(progress) == "PROBE match=3 next=5"
    progress.heard()
    progress.become_replicate()
    progress.sent(2, 40)
    progress.sent_commit, progress.group = 3, 1
    assert str(progress) == ("REPLICATE match=3 next=6 inflight=1/40B sent_commit=3 group=1 active")
    progress.become_snapshot(9)
    progress.delay_status(10, rejected=True)
    assert repr(progress) == (
        "Progress(SNAPSHOT match=3 next=6 snapshot=9 failed-in=10 sent_commit=3 group=1 paused active)"
    )


@pytest.mark.parametrize(
    "change",
    [
        Progress.become_probe,
        Progress.become_replicate,
        lambda progress: progress.become_snapshot(9),
        Progress.lost,
    ],
    ids=["probe", "replicate", "snapshot", "lost"],
)
def test_what_was_sent_before_a_change_is_no_loss_any_more(change: Callable[[Progress], object]) -> None:
    progress = Progress(match=3, next=9)
    for _ in range(2):
        progress.number(0)
        progress.sent(0, 0)
    assert progress.unanswered
    change(progress)
    assert progress.lost_until == 2
    assert not progress.unanswered


def test_a_misspelt_attribute_is_refused() -> None:
    with pytest.raises(AttributeError):
        Progress().nxt = 3  # type: ignore[attr-defined]


class AnyCall(RuleBasedStateMachine):
    """Any calls that a leader may make, in any order, beside a plain model; INV12 and INV13 after each."""

    LIMIT = 3
    BYTES = 100

    def __init__(self) -> None:
        super().__init__()
        self.real = Progress(max_inflight_messages=self.LIMIT, max_inflight_bytes=self.BYTES)
        self.state = PROBE
        self.match, self.next, self.pending = 0, 1, 0
        self.window: list[tuple[int, int, int]] = []
        self.waiting = False
        self.best = 0
        self.appends: list[tuple[int, int, int]] = []

    def enter(self, state: ProgressState, pending: int = 0) -> None:
        self.state, self.pending, self.window, self.waiting = state, pending, [], False

    @rule()
    def become_probe(self) -> None:
        self.real.become_probe()
        self.next = max(self.match, self.pending) + 1
        self.enter(PROBE)

    @rule()
    def become_replicate(self) -> None:
        self.real.become_replicate()
        self.next = self.match + 1
        self.enter(REPLICATE)

    @rule(ahead=st.integers(1, 9))
    def become_snapshot(self, ahead: int) -> None:
        self.real.become_snapshot(self.match + ahead)
        self.enter(SNAPSHOT, self.match + ahead)

    @precondition(lambda self: not self.real.paused)
    @rule(count=st.integers(0, 4), size=st.integers(0, 120))
    def send(self, count: int, size: int) -> None:
        self.appends.append((self.next - 1, count, self.real.number(size)))
        self.real.sent(count, size)
        if count and self.state is PROBE:
            self.waiting = True
        elif count:
            self.next += count
            self.window.append((self.next - 1, size, self.appends[-1][2]))

    @rule(offset=st.integers(-9, 9))
    def accept(self, offset: int) -> None:
        index = max(0, self.match + offset)
        assert self.real.accepted(index) is (index > self.match)
        if index > self.match:
            self.match = index
            self.next = max(self.next, index + 1)
            self.window = [slot for slot in self.window if slot[0] > index]
            self.waiting = False

    @rule(rejected=st.integers(-3, 3), hint=st.integers(0, 30))
    def reject(self, rejected: int, hint: int) -> None:
        index = max(0, self.next - 1 + rejected)
        late = index <= self.match if self.state is REPLICATE else index != self.next - 1
        assert self.real.rejected(index, hint) is not late
        if late:
            return
        if self.state is REPLICATE:
            self.become_probe()
        else:
            self.next = max(self.match + 1, min(index, hint + 1))
            self.waiting = False

    @rule()
    def hear(self) -> None:
        self.real.heard()
        self.waiting = False

    @rule()
    def lose_the_connection(self) -> None:
        self.real.unreachable()
        if self.state is REPLICATE:
            self.next = self.match + 1
            self.enter(PROBE)

    @rule()
    def lose_what_is_out(self) -> None:
        self.real.lost()
        if self.state is REPLICATE:
            self.become_probe()
        self.waiting = False

    @precondition(lambda self: self.appends)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        before, count, number = data.draw(st.sampled_from(self.appends))
        self.real.handed_back(before, count, number)
        if number in [number for _, _, number in self.window]:
            self.next = max(self.match, before) + 1
            self.window = [slot for slot in self.window if slot[0] < self.next]
        elif self.state is not REPLICATE and number == self.appends[-1][2]:
            self.waiting = False
        assert self.real.busy

    @rule()
    def hand_back_the_snapshot(self) -> None:
        self.real.snapshot_handed_back()
        if self.state is SNAPSHOT:
            self.next = self.match + 1
            self.enter(PROBE)
        self.waiting = False

    @rule(held=st.booleans())
    def hand_out(self, held: bool) -> None:
        before = self.real.handed
        self.real.handed_out(held=held)
        assert self.real.handed == (before if held else len(self.appends))
        assert not self.real.queued

    @rule(failed=st.booleans(), ticks=st.integers(0, 2))
    def report_the_snapshot(self, failed: bool, ticks: int) -> None:
        if ticks:
            self.real.delay_status(ticks, failed)
            for _ in range(ticks):
                self.real.tick()
        else:
            self.real.snapshot_done(failed)
        if self.state is SNAPSHOT:
            self.next = (self.match if failed else max(self.match, self.pending)) + 1
            self.enter(PROBE)
            self.waiting = True

    @invariant()
    def agrees_with_the_model(self) -> None:
        real = self.real
        assert (real.state, real.match, real.next) == (self.state, self.match, self.next)
        assert real.pending_snapshot == self.pending
        assert real.inflight.indexes == tuple(index for index, _, _ in self.window)
        assert real.inflight.bytes == sum(size for _, size, _ in self.window)
        if self.state is REPLICATE:
            full = len(self.window) >= self.LIMIT or sum(size for _, size, _ in self.window) >= self.BYTES
            assert real.paused is full
        else:
            assert real.paused is (self.waiting or self.state is SNAPSHOT)

    @invariant()
    def numbers_rise(self) -> None:
        real = self.real
        assert real.handed <= real.numbered == len(self.appends)
        assert real.lost_until <= real.numbered
        assert not (real.unanswered and self.state is SNAPSHOT)

    @invariant()
    def keeps_inv12_and_inv13(self) -> None:
        real, indexes = self.real, self.real.inflight.indexes
        assert self.best <= real.match < real.next
        self.best = real.match
        assert list(indexes) == sorted(set(indexes))
        assert all(real.match < index < real.next for index in indexes)
        assert len(indexes) <= self.LIMIT
        assert not indexes or real.state is REPLICATE


AnyCall.TestCase.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
TestAnyCall = AnyCall.TestCase


Delivery = Callable[[], None]
"""What a message on the wire will do when it arrives."""


@dataclass
class Conversation:
    """A leader with a `Progress`, a follower, and a wire between them that loses, repeats and reorders.

    A log is the list of its terms; index 1 is the first. The logs are equal up to `common` and differ behind it,
    as two logs do that two leaders wrote (thesis §3.5, figure 3.6).
    """

    leader: list[int]
    follower: list[int]
    compacted: int = 0
    wire: list[Delivery] = field(default_factory=list)
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(
            next=len(self.leader) + 1, max_inflight_messages=3, max_inflight_bytes=100, active=True
        )

    @property
    def common(self) -> int:
        """How far the logs really agree."""
        pairs = zip(self.leader, self.follower, strict=False)
        return next(
            (at for at, (a, b) in enumerate(pairs) if a != b), min(len(self.leader), len(self.follower))
        )

    def check(self) -> None:
        """INV12 and INV13."""
        progress, indexes = self.progress, self.progress.inflight.indexes
        assert progress.match <= self.common
        assert progress.match < progress.next <= len(self.leader) + 1
        assert list(indexes) == sorted(set(indexes))
        assert all(progress.match < index < progress.next for index in indexes)
        assert len(indexes) <= 3

    # The leader's side.

    def append(self, count: int) -> None:
        self.leader += [99] * count
        self.send()

    def compact(self) -> None:
        self.compacted = len(self.leader) - 1

    def send(self, even_if_full: bool = False) -> None:
        progress = self.progress
        if progress.next - 1 < self.compacted and progress.state is not SNAPSHOT:
            self.send_snapshot()
        while not progress.paused:
            entries = self.leader[progress.next - 1 :][:2]
            self.replicate(progress.next - 1, entries)
            progress.sent(len(entries), 30 * len(entries))
            if not entries:
                return
        if even_if_full and progress.state is REPLICATE:
            self.replicate(progress.next - 1, [])

    def send_snapshot(self) -> None:
        index = self.compacted
        self.progress.become_snapshot(index)
        snapshot = self.leader[:index]
        self.wire.append(lambda: self.install(snapshot))

    def replicate(self, previous: int, entries: list[int]) -> None:
        term = self.leader[previous - 1] if previous else 0
        self.wire.append(lambda: self.receive(previous, term, list(entries)))

    def hear_accept(self, index: int) -> None:
        progress = self.progress
        at_match = progress.state is PROBE and index == progress.match
        if not progress.accepted(index) and not at_match:
            return
        if progress.state is PROBE or (
            progress.state is SNAPSHOT and progress.match >= progress.pending_snapshot
        ):
            progress.become_replicate()
        self.send()

    def hear_reject(self, rejected: int, hint: int, term: int) -> None:
        while term and hint and self.leader[hint - 1] > term:
            hint -= 1
        if self.progress.rejected(rejected, hint):
            if self.progress.state is REPLICATE:
                self.progress.become_probe()
            self.send()

    def hear_heartbeat(self) -> None:
        self.progress.heard()
        self.send(even_if_full=True)

    # The follower's side.

    def receive(self, previous: int, term: int, entries: list[int]) -> None:
        log = self.follower
        if previous > len(log) or (previous and log[previous - 1] != term):
            hint = min(previous, len(log))
            while hint and log[hint - 1] > term:
                hint -= 1
            hint_term = log[hint - 1] if hint else 0
            self.wire.append(lambda: self.hear_reject(previous, hint, hint_term))
            return
        for at, its_term in enumerate(entries, start=previous):
            if at < len(log) and log[at] != its_term:
                del log[at:]
            if at == len(log):
                log.append(its_term)
        index = previous + len(entries)
        self.wire.append(lambda: self.hear_accept(index))

    def install(self, snapshot: list[int]) -> None:
        if self.follower[: len(snapshot)] != snapshot:
            self.follower[:] = snapshot
        self.wire.append(lambda: self.hear_accept(len(snapshot)))

    # The wire.

    def deliver(self, at: int) -> None:
        self.wire.pop(at)()

    def repeat(self, at: int) -> None:
        self.wire[at]()

    def lose(self, at: int) -> None:
        self.wire.pop(at)
        # The transport cannot tell which one it was: the worst case is a report about another snapshot.
        self.progress.delay_status(2, rejected=True)

    def heartbeat(self) -> None:
        self.progress.tick()
        self.wire.append(self.hear_heartbeat)

    def settle(self) -> None:
        """A fair network, for as many heartbeats as one probe a term and a snapshot can take."""
        for _ in range(4 * len(self.leader) + 20):
            self.heartbeat()
            while self.wire:
                self.deliver(0)
                self.check()


LOGS = st.builds(
    lambda common, mine, theirs: (
        sorted(common) + sorted(20 + 2 * term for term in mine),
        sorted(common) + sorted(21 + 2 * term for term in theirs),
    ),
    st.lists(st.integers(1, 9), max_size=5),
    st.lists(st.integers(0, 9), max_size=8),
    st.lists(st.integers(0, 9), max_size=8),
)


def disturb(talk: Conversation, random: Random) -> None:
    """One thing that can happen, likely or not."""
    what = random.choice(
        ["append", "heartbeat", "unreachable", "compact", *["deliver"] * 4, "repeat", "lose"]
    )
    if what == "append":
        talk.append(random.randint(1, 4))
    elif what == "heartbeat":
        talk.heartbeat()
    elif what == "unreachable":
        talk.progress.unreachable()
    elif what == "compact" and talk.leader:
        talk.compact()
    elif talk.wire and what in {"deliver", "repeat", "lose"}:
        getattr(talk, what)(random.randrange(len(talk.wire)))


@patient
@given(LOGS, st.integers(0, 60), st.randoms(use_true_random=False))
def test_a_follower_catches_up_over_any_wire(
    logs: tuple[list[int], list[int]], steps: int, random: Random
) -> None:
    """INV12 and INV13 at each step; then INV26, and an idle window is an empty one (BUG-N5)."""
    talk = Conversation(leader=list(logs[0]), follower=list(logs[1]))
    talk.send()
    for _ in range(steps):
        disturb(talk, random)
        talk.check()
    talk.settle()
    talk.append(1)
    talk.settle()
    assert talk.follower == talk.leader
    assert (talk.progress.state, talk.progress.match) == (REPLICATE, len(talk.leader))
    assert (talk.progress.inflight.count, talk.progress.inflight.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("leader", "follower", "probes"),
    [
        pytest.param([1, 1, 4, 4, 4, 9], [1, 1, 2, 2], [6, 2], id="the follower's terms are older"),
        pytest.param([1, 3, 3, 8], [1, 3, 5, 5, 6], [4, 3, 2], id="the follower's terms are newer"),
        pytest.param([1] * 9, [], [9, 0], id="the follower is empty"),
        pytest.param([2] * 9, [1] * 9, [9, 0], id="nothing in common"),
    ],
)
def test_it_takes_one_probe_a_term_to_find_where_the_logs_part(
    leader: list[int], follower: list[int], probes: list[int]
) -> None:
    """Thesis §3.5, with etcd's search by term on both sides."""
    talk = Conversation(leader, follower)
    tried = []
    talk.send()
    while talk.progress.state is PROBE:
        if talk.progress.next - 1 not in tried:
            tried.append(talk.progress.next - 1)
        talk.heartbeat()
        talk.deliver(0)
    assert tried == probes
