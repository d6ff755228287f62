"""Proposals between the inbox and the log: each is answered once, and with its own result."""

from typing import NamedTuple

import pytest
from drakkar.actors.machine.compression import encode
from drakkar.actors.machine.decoding import command_size
from drakkar.actors.machine.sessions import encode_request
from drakkar.actors.node.proposals import PendingProposals, Proposal
from drakkar.actors.node.proposed import Bounds, Verdict, examine
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import OutcomeUnknown, RequestDropped, SystemBusy
from drakkar.handlers.raft.entries import EntryKind, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

ORIGIN = 77
NEVER = float("inf")
CHANGE = bytes([EntryKind.CONFIG_CHANGE])


def late():
    return OutcomeUnknown("no answer by its deadline")


def proposal(*commands, deadline=NEVER, single=None, kinds=b""):
    alone = len(commands) == 1 if single is None else single
    return Proposal(commands, ActorFuture(), deadline, alone, kinds)


def outcome(future):
    """The value, the class of the error, or None for one that waits."""
    if not future.done:
        return None
    value, error = future.outcome()
    return value if error is None else type(error)


def results_of(run):
    """What a state machine makes of it here: the commands in capitals."""
    return [payload.upper() for payload in run.payloads]


# -- What is on its way


def pending(max_run_bytes=1 << 20):
    return PendingProposals(ORIGIN, max_run_bytes=max_run_bytes)


def test_proposals_of_one_moment_become_one_run_with_keys_of_their_own():
    waiting = pending()
    (run,) = waiting.add([proposal(b"a"), proposal(b"b", b"c")], 0.0, term=1)
    assert (run.payloads, run.origin, run.key, run.plain) == ((b"a", b"b", b"c"), ORIGIN, 1, True)
    (run,) = waiting.add([proposal(b"d")], 0.0, term=1)
    assert (run.payloads, run.key) == ((b"d",), 4)
    assert len(waiting) == 4


def test_a_single_proposal_gets_its_result_and_a_list_gets_a_list():
    waiting = pending()
    one, many, alone = proposal(b"a"), proposal(b"b", b"c"), proposal(b"d", single=False)
    (run,) = waiting.add([one, many, alone], 0.0, term=1)
    waiting.applied(run, results_of(run))
    assert (outcome(one.future), outcome(many.future), outcome(alone.future)) == (b"A", [b"B", b"C"], [b"D"])
    assert len(waiting) == 0


def test_what_a_replaced_leader_did_not_get_applied_is_answered_when_the_next_ones_entry_is():
    waiting = pending()
    old, new = proposal(b"a"), proposal(b"b")
    waiting.add([old], 0.0, term=1)
    waiting.add([new], 0.0, term=2)
    waiting.overtaken(1)
    assert not old.future.done
    waiting.overtaken(2)
    assert outcome(old.future) is OutcomeUnknown
    assert not new.future.done
    assert len(waiting) == 1


def test_a_membership_change_is_marked_where_it_stands():
    waiting = pending()
    (run,) = waiting.add(
        [proposal(b"a", b"b"), proposal(b"change", kinds=CHANGE), proposal(b"c")], 0.0, term=1
    )
    assert run.kinds == bytes([0, 0, EntryKind.CONFIG_CHANGE, 0])
    (plain,) = waiting.add([proposal(b"d")], 0.0, term=1)
    assert plain.plain


def test_a_proposal_whose_time_is_over_is_not_logged():
    waiting = pending()
    late, in_time = proposal(b"late", deadline=5.0), proposal(b"in time", deadline=5.1)
    (run,) = waiting.add([late, in_time], 5.0, term=1)
    assert run.payloads == (b"in time",)
    assert outcome(late.future) is RequestDropped
    assert waiting.add([proposal(b"late", deadline=1.0)], 5.0, term=1) == []


def test_a_large_list_goes_out_in_runs_of_bounded_size_and_comes_back_as_one():
    waiting = pending(max_run_bytes=10)
    large = proposal(*[b"%04d" % number for number in range(20)], b"change" * 5)
    runs = waiting.add([proposal(b"a"), large], 0.0, term=1)
    assert [payload for run in runs for payload in run.payloads] == [b"a", *large.commands]
    assert all(run.payload_bytes <= 10 or len(run) == 1 for run in runs)
    assert [run.key for run in runs] == [
        1 + sum(len(earlier) for earlier in runs[:at]) for at in range(len(runs))
    ]
    for run in runs:
        assert not large.future.done
        waiting.applied(run, results_of(run))
    assert outcome(large.future) == [command.upper() for command in large.commands]
    assert len(waiting) == 0


def test_runs_are_joined_up_to_the_bound_and_a_change_stays_where_it_is_when_a_run_is_cut():
    waiting = pending(max_run_bytes=4)
    runs = waiting.add([proposal(b"abc"), proposal(b"de"), proposal(b"f")], 0.0, term=1)
    assert [run.payloads for run in runs] == [(b"abc", b"de"), (b"f",)]
    big = [b"x" * 3] * 4
    runs = waiting.add([proposal(*big), proposal(b"change", kinds=CHANGE), proposal(*big)], 0.0, term=1)
    kinds = [kind for run in runs for kind in (run.kinds or bytes(len(run)))]
    assert kinds.index(EntryKind.CONFIG_CHANGE) == [p for run in runs for p in run.payloads].index(b"change")


def test_a_leader_that_logs_half_of_a_run_leaves_the_outcome_of_the_list_unknown():
    waiting = pending()
    many, one = proposal(b"a", b"b", b"c"), proposal(b"d")
    (run,) = waiting.add([many, one], 0.0, term=1)
    waiting.applied(Run(9, 2, run.payloads[:2], b"", ORIGIN, run.key), [b"A", b"B"])
    assert not many.future.done
    waiting.dropped(run.key + 2, 2, SystemBusy("no room"))
    assert outcome(many.future) is OutcomeUnknown
    assert "2 of 3 commands were applied" in str(many.future.outcome()[1])
    assert outcome(one.future) is SystemBusy


def test_a_deadline_concerns_only_the_proposal_that_has_it():
    waiting = pending()
    short, long_ = proposal(b"a", deadline=1.0), proposal(b"b", deadline=2.0)
    (run,) = waiting.add([short, long_], 0.0, term=1)
    waiting.expire(0.9, late)
    assert not short.future.done
    waiting.expire(1.0, late)
    assert (outcome(short.future), outcome(long_.future)) == (OutcomeUnknown, None)
    assert len(waiting) == 2
    waiting.applied(run, results_of(run))
    assert (outcome(short.future), outcome(long_.future)) == (OutcomeUnknown, b"B")
    assert len(waiting) == 0


def test_what_was_applied_is_told_even_if_its_neighbours_were_lost():
    waiting = pending()
    applied, lost = proposal(b"a", b"b"), proposal(b"c", deadline=1.0)
    (run,) = waiting.add([applied, lost], 0.0, term=1)
    waiting.applied(run.slice(run.first, run.first + 2), [b"A", b"B"])
    assert outcome(applied.future) == [b"A", b"B"], "it need not wait for its neighbours"
    waiting.expire(1.0, late)
    assert (outcome(applied.future), outcome(lost.future)) == ([b"A", b"B"], OutcomeUnknown)
    assert len(waiting) == 0


@pytest.mark.parametrize("key", [0, 3, 1000])
def test_what_is_not_known_here_is_passed_over(key):
    waiting = pending()
    mine = proposal(b"a", b"b")
    waiting.add([mine], 0.0, term=1)
    waiting.applied(Run(5, 1, [b"x"], b"", ORIGIN, key), [b"X"])
    waiting.resolve(key, "other")
    waiting.dropped(key, 1, SystemBusy("other"))
    assert not mine.future.done


# -- What a leader may be asked to decode

LIMIT = 3000


def _compressed(sizes, *, session):
    """A proposal of commands of so many bytes each, as a host with compression makes it."""
    if not session:
        made = proposal(*map(bytes, sizes), single=False)
        made.compress()
        return made
    (payload,), kinds = encode((bytes(sizes[0]),))
    return proposal(
        encode_request(1, 1, 0, payload, encoded=bool(kinds)), single=True, kinds=bytes([EntryKind.SESSION])
    )


@given(
    st.lists(
        st.builds(
            _compressed, st.lists(st.integers(0, 2 * LIMIT), min_size=1, max_size=12), session=st.booleans()
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, LIMIT),
)
def test_what_a_host_sends_keeps_to_the_bounds_of_hosts_with_its_options(proposals, max_run_bytes):
    """Compressed commands are bounded as what they are, since a leader examines what another host proposes."""
    bounds = Bounds.of(2 * LIMIT, max_run_bytes)
    runs = pending(max_run_bytes).add(proposals, 0.0, term=1)
    for run in runs:
        assert examine([run], bounds).verdict is Verdict.SOUND
        sizes = [*map(command_size, run.kinds or bytes(len(run)), run.payloads)]
        assert len(run) == 1 or sum(sizes) <= 2 * max_run_bytes
    assert [payload for run in runs for payload in run.payloads] == [
        command for each in proposals for command in each.commands
    ]
    assert [run.key for run in runs[1:]] == [run.key + len(run) for run in runs[:-1]]


# -- The same against a model: applied, dropped and late in any order and in any parts


class Expected(NamedTuple):
    proposal: Proposal
    first: int


class Journey(RuleBasedStateMachine):
    """Proposals whose commands are applied or dropped one by one, in runs or parts of them, once or twice."""

    runs = Bundle("runs")

    def __init__(self):
        super().__init__()
        self.pending = PendingProposals(ORIGIN, max_run_bytes=12)
        self.now = 0.0
        self.next_key = 1
        self.expected: list[Expected] = []
        self.outcomes: dict[int, object] = {}
        self.answers: dict[int, object] = {}

    @rule(
        target=runs,
        lists=st.lists(
            st.tuples(
                st.lists(st.binary(max_size=8), min_size=1, max_size=6),
                st.integers(min_value=0, max_value=20),
            ),
            min_size=1,
            max_size=5,
        ),
    )
    def propose(self, lists):
        proposals = [proposal(*commands, deadline=self.now + timeout) for commands, timeout in lists]
        runs = self.pending.add(proposals, self.now, 1)
        for each in proposals:
            if each.deadline <= self.now:
                assert outcome(each.future) is RequestDropped
            else:
                self.expected.append(Expected(each, self.next_key))
                self.next_key += len(each.commands)
        return multiple(*runs)

    @rule(run=runs, cut=st.tuples(st.integers(0, 30), st.integers(0, 30)))
    def apply(self, run, cut):
        low, high = (min(each, len(run)) for each in sorted(cut))
        if low == high:
            low, high = 0, len(run)
        part = Run(1, 1, run.payloads[low:high], b"", ORIGIN, run.key + low)
        results = [("done", part.key + at) for at in range(len(part))]
        self._note(part.key, results)
        self.pending.applied(part, results)

    @rule(run=runs, at=st.integers(0, 30))
    def resolve(self, run, at):
        key = run.key + min(at, len(run) - 1)
        self._note(key, [("done", key)])
        self.pending.resolve(key, ("done", key))

    @rule(run=runs, cut=st.tuples(st.integers(0, 30), st.integers(1, 30)))
    def drop(self, run, cut):
        low = min(cut[0], len(run) - 1)
        count = min(cut[1], len(run) - low)
        error = SystemBusy("no room")
        self._note(run.key + low, [error] * count)
        self.pending.dropped(run.key + low, count, error)

    @rule(seconds=st.integers(0, 8))
    def expire(self, seconds):
        self.now += seconds
        self.pending.expire(self.now, late)
        for each in self.expected:
            if each.proposal.deadline <= self.now and each.first not in self.answers:
                self.answers[each.first] = self._answer(each) or OutcomeUnknown

    @rule()
    def stop(self):
        self.pending.fail_all(OutcomeUnknown("it was stopped"))
        for each in self.expected:
            self.answers.setdefault(each.first, self._answer(each) or OutcomeUnknown)
        assert len(self.pending) == 0

    def _note(self, key, results):
        """Each command's first outcome counts, and a proposal's answer is there with its last one."""
        for at, result in enumerate(results):
            self.outcomes.setdefault(key + at, result)

    def _answer(self, each):
        """What the batch has to say; None as long as a command of it has no outcome."""
        keys = range(each.first, each.first + len(each.proposal.commands))
        outcomes = [self.outcomes.get(key) for key in keys]
        if None in outcomes:
            return None
        lost = [one for one in outcomes if isinstance(one, SystemBusy)]
        if len(lost) == len(outcomes):
            return SystemBusy
        if lost:
            return OutcomeUnknown
        return outcomes[0] if each.proposal.single else outcomes

    @invariant()
    def every_answer_is_the_right_one_and_stays(self):
        for each in self.expected:
            answer = outcome(each.proposal.future)
            if answer is None:
                assert each.first not in self.answers
                assert self._answer(each) is None, "all of it is known"
                continue
            if each.first not in self.answers:
                self.answers[each.first] = self._answer(each)
            assert answer == self.answers[each.first]

    @invariant()
    def no_proposal_waits_whose_neighbours_have_all_been_answered(self):
        if all(key in self.outcomes for key in range(1, self.next_key)):
            assert all(each.proposal.future.done for each in self.expected)
            assert len(self.pending) == 0

    @invariant()
    def the_count_of_what_waits_is_right(self):
        open_ = sum(len(each.proposal.commands) for each in self.expected if not each.proposal.future.done)
        assert open_ <= len(self.pending) <= self.next_key


TestJourney = Journey.TestCase
TestJourney.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
