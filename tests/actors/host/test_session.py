"""A client's session: what it repeats and when, what it tells its client, and that nothing is ever applied twice."""

import heapq
import itertools
import threading
from collections import deque
from random import Random

import cbor2
import pytest
from drakkar.actors.host.session import Endpoint, later_on, open_session
from drakkar.actors.machine import sessions
from drakkar.actors.machine.sessions import REGISTER, SessionTable, encode_request
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import (
    ConfigError,
    LoopError,
    NotLeader,
    OutcomeUnknown,
    Refused,
    ReplicaStopped,
    RequestDropped,
    ResultLost,
    SessionExpired,
    SessionRefused,
    SystemBusy,
    TransferInProgress,
    Vetoed,
)
from drakkar.handlers.raft.entries import EntryKind
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

TEXT = b"a command of many words, most of which come again and again, " * 20

ANSWER = "applied, and answered"
MUTE = "applied, but the answer is lost"
LOST = "lost on its way to the leader"
LATE = "on its way until it is delivered"


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.ended = False
        self._calls = []
        self._numbers = itertools.count()

    def later(self, delay, fn):
        if self.ended:
            raise LoopError("the loop has ended")
        self.at(self.now + delay, fn)

    def at(self, when, fn):
        heapq.heappush(self._calls, (when, next(self._numbers), fn))

    def advance(self, seconds):
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            self.now, _, fn = heapq.heappop(self._calls)
            fn()
        self.now = end


class Shard:
    """A shard seen from outside: it treats each proposal as it is told to, and answers by its deadline."""

    def __init__(self, capacity=10):
        self.clock = Clock()
        self.table = SessionTable(capacity)
        self.applied = []
        self.fates = deque()
        """Of the next proposals: what becomes of them, or the error that they fail with. Those after that: ANSWER."""
        self.proposals = []
        self.late = []

    def endpoint(self, **options):
        return Endpoint(
            5,
            self.put,
            self.clock.later,
            **{"max_command_bytes": 2000, "now": lambda: self.clock.now, "random": Random(1)} | options,
        )

    def put(self, proposal):
        assert proposal.single
        assert proposal.kinds == bytes([EntryKind.SESSION])
        assert proposal.deadline >= self.clock.now
        self.proposals.append(proposal)
        fate = self.fates.popleft() if self.fates else ANSWER
        if isinstance(fate, Exception):
            proposal.future.try_fail(fate)
        elif fate == ANSWER:
            proposal.future.try_set(self.apply(proposal))
        else:
            if fate == MUTE:
                self.apply(proposal)
            if fate == LATE:
                self.late.append(proposal)
            unknown = OutcomeUnknown("no answer by its deadline")
            self.clock.at(proposal.deadline, lambda: proposal.future.try_fail(unknown))

    def deliver(self, at=0):
        """Something that was thought lost arrives, and its answer goes to the client if it still waits."""
        proposal = self.late.pop(at)
        result = self.apply(proposal)
        proposal.future.try_set(result)

    def apply(self, proposal):
        return self.table.apply(proposal.commands[0], self.machine)

    def machine(self, command):
        self.applied.append(command)
        return len(self.applied), command

    def session(self, **options):
        return open_session(self.endpoint(**options)).get(timeout=0)

    def forget(self, session):
        self.table.apply(encode_request(session.client, (1 << 64) - 1, 0, b""), None)


@pytest.fixture
def shard():
    return Shard()


def outcome(future):
    """The value, the class of the error, or None for one that waits."""
    if not future.done:
        return None
    value, error = future.outcome()
    return value if error is None else type(error)


def open_command(shard, session, command=b"a", fate=MUTE):
    """A command whose outcome is unknown."""
    shard.fates.extend([fate] * 4)
    future = session.propose(command, timeout=2)
    shard.clock.advance(2)
    assert outcome(future) is OutcomeUnknown
    assert session.open
    shard.fates.clear()
    return session


# -- what is repeated


def test_commands_one_after_the_other_are_applied_in_turn(shard):
    session = shard.session()
    assert [session.propose(command).get(timeout=0) for command in (b"a", b"b", b"b")] == [
        (1, b"a"),
        (2, b"b"),
        (3, b"b"),
    ]
    assert not session.open


def test_a_command_that_a_handler_vetoes_is_answered_at_once_and_not_repeated(shard):
    session = shard.session()
    shard.fates.append(Vetoed("no swearing"))
    future = session.propose(b"damn", timeout=8)
    with pytest.raises(Vetoed, match="no swearing"):
        future.get(timeout=0)
    assert not session.open
    assert session.propose(b"fine").get(timeout=0) == (1, b"fine")


def test_a_veto_does_not_hide_an_earlier_attempt_of_unknown_outcome(shard):
    session = shard.session()
    shard.fates.extend([LATE, Vetoed("no swearing")])
    future = session.propose(b"a", timeout=8)
    shard.clock.advance(4)
    assert outcome(future) is OutcomeUnknown
    assert session.open


@pytest.mark.parametrize(
    "fate",
    [
        NotLeader(1),
        SystemBusy("full"),
        TransferInProgress("moving"),
        RequestDropped("no"),
        OutcomeUnknown("overtaken"),
        LOST,
        MUTE,
    ],
    ids=lambda fate: fate if isinstance(fate, str) else type(fate).__name__,
)
def test_a_command_repeats_itself_until_it_is_applied_once(shard, fate):
    session = shard.session()
    shard.fates.extend([fate] * 2)
    future = session.propose(b"a", timeout=8)
    assert outcome(future) is None
    shard.clock.advance(8)
    assert outcome(future) == (1, b"a")
    assert shard.applied == [b"a"]
    assert len({proposal.commands for proposal in shard.proposals[1:]}) == 1
    assert session.propose(b"b").get(timeout=0) == (2, b"b")


def test_pauses_grow_and_no_request_outlives_the_deadline(shard):
    session = shard.session()
    shard.fates.extend(SystemBusy("full") for _ in range(1000))
    future = session.propose(b"a", timeout=4)
    shard.clock.advance(4)
    assert outcome(future) is SystemBusy
    # Half a second each but for the first few: eight at least, and fewer than if they did not grow.
    assert 8 <= len(shard.proposals) < 30
    assert all(proposal.deadline <= 1004 for proposal in shard.proposals[1:])


def test_what_is_late_after_its_repetition_changes_nothing(shard):
    session = shard.session()
    shard.fates.append(LATE)
    future = session.propose(b"a", timeout=8)
    shard.clock.advance(8)
    assert outcome(future) == (1, b"a")
    shard.deliver()
    session.propose(b"b").get(timeout=0)
    shard.late.append(shard.proposals[1])
    shard.deliver()
    assert shard.applied == [b"a", b"b"]


def test_the_next_command_may_be_proposed_by_the_callback_of_the_last(shard):
    session = shard.session()
    shard.fates.append(LATE)
    second = ActorFuture()

    def go_on(_):
        session.propose(b"b").add_done_callback(lambda future: second.set(future.get()))

    session.propose(b"a").add_done_callback(go_on)
    shard.deliver()
    assert outcome(second) == (2, b"b")


# -- what is not known


def test_an_open_command_is_retried_and_gives_the_first_result(shard):
    session = open_command(shard, shard.session())
    assert shard.applied == [b"a"]
    assert session.retry().get(timeout=0) == (1, b"a")
    assert shard.applied == [b"a"]
    assert not session.open
    assert session.propose(b"b").get(timeout=0) == (2, b"b")


def test_a_command_that_was_never_logged_is_applied_by_its_retry(shard):
    session = open_command(shard, shard.session(), fate=LOST)
    assert session.retry().get(timeout=0) == (1, b"a")
    assert shard.applied == [b"a"]


def test_a_retry_that_is_surely_refused_leaves_the_command_open(shard):
    session = open_command(shard, shard.session())
    shard.fates.append(ReplicaStopped("stopped"))
    with pytest.raises(OutcomeUnknown, match=r"stopped"):
        session.retry().get(timeout=0)
    assert session.open
    assert session.retry().get(timeout=0) == (1, b"a")


def test_one_request_without_an_answer_makes_the_outcome_unknown_though_others_are_refused(shard):
    session = shard.session()
    shard.fates.extend([MUTE, ReplicaStopped("stopped")])
    future = session.propose(b"a", timeout=8)
    shard.clock.advance(4)  # as nothing more can come, it does not wait for its deadline
    assert outcome(future) is OutcomeUnknown
    assert session.open


@pytest.mark.parametrize("error", [SystemBusy("full"), ReplicaStopped("stopped"), NotLeader(1)])
def test_a_command_that_surely_has_no_effect_fails_so_and_is_not_open(shard, error):
    session = shard.session()
    shard.fates.extend([error] * 100)
    future = session.propose(b"a", timeout=2)
    shard.clock.advance(2)
    assert outcome(future) is type(error)
    assert not session.open
    shard.fates.clear()
    assert session.propose(b"b").get(timeout=0) == (1, b"b")


def test_where_the_loop_has_ended_no_request_waits_for_another_attempt(shard):
    session = shard.session()
    shard.clock.ended = True
    shard.fates.append(NotLeader(1))
    assert outcome(session.propose(b"a")) is NotLeader


# -- one thing at a time


def test_nothing_else_is_proposed_while_a_command_is_under_way(shard):
    session = shard.session()
    shard.fates.append(LATE)
    first = session.propose(b"a")
    for future in (session.propose(b"b"), session.retry(), session.close()):
        with pytest.raises(RequestDropped, match=r"a command of this session is under way"):
            future.get(timeout=0)
    shard.deliver()
    assert outcome(first) == (1, b"a")
    assert shard.applied == [b"a"]


def test_nothing_else_is_proposed_while_a_command_is_open(shard):
    session = open_command(shard, shard.session())
    with pytest.raises(RequestDropped, match=r"retry\(\) it or close\(\)"):
        session.propose(b"b").get(timeout=0)
    assert session.retry().get(timeout=0) == (1, b"a")


def test_there_is_nothing_to_retry_where_no_command_is_open(shard):
    with pytest.raises(RequestDropped, match=r"nothing to retry"):
        shard.session().retry().get(timeout=0)


@pytest.mark.parametrize(("command", "error"), [("a", ConfigError), (bytes(2001), RequestDropped)])
def test_what_is_no_command_is_refused_at_once(shard, command, error):
    session = shard.session()
    assert outcome(session.propose(command)) is error
    assert len(shard.proposals) == 1
    assert not session.open


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused_at_once(shard, timeout):
    session = shard.session()
    for call in (lambda timeout: session.propose(b"a", timeout=timeout), session.retry, session.close):
        with pytest.raises(ConfigError):
            call(timeout=timeout)
    assert not session.open


def test_a_command_travels_compressed_where_it_gains_by_it(shard):
    session = shard.session(compress=True)
    assert session.propose(TEXT).get(timeout=0) == (1, TEXT)
    assert len(shard.proposals[-1].commands[0]) < len(TEXT) / 5
    assert session.propose(b"short").get(timeout=0) == (2, b"short")


# -- what the shard has to say


@pytest.mark.parametrize("way", ["set", "fail"])
def test_a_forgotten_session_says_that_its_command_was_not_applied(shard, way):
    session = shard.session()
    shard.forget(session)
    if way == "fail":  # a host may raise a refusal as well as return it
        shard.fates.append(SessionExpired("forgotten"))
    with pytest.raises(SessionExpired) as caught:
        session.propose(b"a").get(timeout=0)
    assert caught.value.outcome_known
    assert not session.open
    with pytest.raises(RequestDropped, match=r"open another"):
        session.propose(b"b").get(timeout=0)
    assert shard.applied == []


def test_a_session_that_is_forgotten_with_an_open_command_does_not_say_more_than_it_knows(shard):
    session = open_command(shard, shard.session())
    shard.forget(session)
    with pytest.raises(SessionExpired) as caught:
        session.retry().get(timeout=0)
    assert not caught.value.outcome_known
    with pytest.raises(RequestDropped, match=r"open another"):
        session.retry().get(timeout=0)
    assert outcome(session.close()) is None
    assert session.close().done


def test_a_lost_result_is_an_answer_and_the_session_goes_on(shard):
    shard.machine = lambda command: shard.applied.append(command) or object()
    session = open_command(shard, shard.session())
    assert outcome(session.retry()) is ResultLost
    assert not session.open
    session.propose(b"b").get(timeout=0)
    assert shard.applied == [b"a", b"b"]


def test_a_refusal_is_an_answer_and_the_session_goes_on(shard):
    session = shard.session()
    shard.fates.append(Refused("no"))
    assert outcome(session.propose(b"a")) is Refused
    assert not session.open
    open_command(shard, session, b"b", LATE)
    shard.fates.append(Refused("no"))
    assert outcome(session.retry()) is Refused
    assert not session.open
    assert outcome(session.propose(b"c")) == (1, b"c")
    requests = [sessions._decode_request(proposal.commands[0]) for proposal in shard.proposals]
    assert (requests[1].series, requests[-1].series) == (1, 3)


# -- opening and closing


def test_opening_repeats_itself_and_never_with_an_id_that_may_be_taken(shard):
    shard.fates.extend([NotLeader(1), LATE, MUTE])
    future = open_session(shard.endpoint(), timeout=8)
    shard.clock.advance(8)
    session = future.get(timeout=0)
    assert len({proposal.commands for proposal in shard.proposals}) == 4
    session.propose(b"a").get(timeout=0)
    shard.deliver()
    assert session.propose(b"b").get(timeout=0) == (2, b"b")


@pytest.mark.parametrize(
    ("fate", "error"),
    [(LOST, RequestDropped), (NotLeader(1), NotLeader), (ReplicaStopped("stopped"), ReplicaStopped)],
)
def test_where_no_session_was_opened_it_says_that_asking_again_is_safe(shard, fate, error):
    shard.fates.extend([fate] * 1000)
    future = open_session(shard.endpoint(), timeout=3)
    shard.clock.advance(3)
    assert outcome(future) is error
    assert future.outcome()[1].outcome_known


def test_a_closed_session_is_forgotten_and_takes_no_commands(shard):
    session = shard.session()
    session.close().get(timeout=0)
    assert len(shard.table) == 0
    for future in (session.propose(b"a"), session.retry()):
        with pytest.raises(RequestDropped, match=r"closed"):
            future.get(timeout=0)
    proposed = len(shard.proposals)
    session.close().get(timeout=0)
    assert len(shard.proposals) == proposed


def test_an_open_command_is_not_applied_after_the_session_was_closed(shard):
    session = open_command(shard, shard.session(), fate=LATE)
    session.close().get(timeout=0)
    while shard.late:
        shard.deliver()
    assert shard.applied == []
    assert not session.open


def test_closing_may_be_repeated_until_it_is_known(shard):
    session = shard.session()
    shard.fates.extend([MUTE] * 4)
    future = session.close(timeout=2)
    with pytest.raises(RequestDropped, match=r"close\(\) of this session is under way"):
        session.close().get(timeout=0)
    shard.fates.clear()
    shard.fates.extend([LOST] * 4)
    shard.clock.advance(2)
    assert outcome(future) is OutcomeUnknown
    shard.fates.clear()
    with pytest.raises(RequestDropped, match=r"being closed"):
        session.propose(b"a").get(timeout=0)
    session.close().get(timeout=0)
    assert session.close().get(timeout=0) is None


# -- on another host


def resume(shard, token):
    return open_session(shard.endpoint(), token=token).get(timeout=0)


def test_a_session_goes_on_elsewhere(shard):
    session = shard.session()
    session.propose(b"a").get(timeout=0)
    other = resume(shard, session.token)
    assert other.client == session.client
    assert other.propose(b"b").get(timeout=0) == (2, b"b")


def test_an_open_command_is_retried_elsewhere_and_applied_once(shard):
    session = open_command(shard, shard.session())
    other = resume(shard, session.token)
    assert other.open
    assert outcome(other.propose(b"b")) is RequestDropped
    assert other.retry().get(timeout=0) == (1, b"a")
    assert shard.applied == [b"a"]


def test_a_token_taken_under_way_holds_the_command(shard):
    session = shard.session()
    shard.fates.append(LATE)
    session.propose(b"a")
    other = resume(shard, session.token)
    assert other.retry().get(timeout=0) == (1, b"a")
    shard.deliver()
    assert shard.applied == [b"a"]


def test_an_old_token_gets_no_result_of_another_client(shard):
    session = shard.session()
    token = session.token
    session.propose(b"a").get(timeout=0)
    other = resume(shard, token)
    with pytest.raises(SessionRefused, match=r"another one") as caught:
        other.propose(b"b").get(timeout=0)
    assert caught.value.outcome_known
    assert outcome(other.propose(b"b")) is RequestDropped
    session.propose(b"c").get(timeout=0)
    with pytest.raises(SessionRefused, match=r"given up"):
        resume(shard, token).propose(b"a").get(timeout=0)
    other.close().get(timeout=0)
    assert session.propose(b"d").get(timeout=0) == (3, b"d")
    assert shard.applied == [b"a", b"c", b"d"]


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"\0",
        "text",
        cbor2.dumps([1, 5, 1, 1]),
        cbor2.dumps([2, 5, 1, 1, None]),
        cbor2.dumps([1, 6, 1, 1, None]),
        cbor2.dumps([1, 5, 0, 1, None]),
        cbor2.dumps([1, 5, 1, 0, None]),
        cbor2.dumps([1, 5, 1 << 64, 1, None]),
        cbor2.dumps([1, 5, 1, REGISTER, None]),
        cbor2.dumps([True, 5, 1, 1, None]),
        cbor2.dumps([1, 5, 1, True, None]),
        cbor2.dumps([1, 5, 1, 1, "a"]),
        cbor2.dumps([1, 5, 1, 1, None]) + b"\0",
    ],
)
def test_what_is_no_token_of_this_shard_is_refused(shard, token):
    future = open_session(shard.endpoint(), token=token)
    with pytest.raises(ConfigError, match=r"token"):
        future.get(timeout=0)


# -- the pause on a real loop


def test_a_pause_ends_in_its_time_and_with_the_loop():
    called, dropped = threading.Event(), threading.Event()
    with TrioLoop() as loop:
        later = later_on(loop)
        later(0.01, called.set)
        later(1000, dropped.set)
        assert called.wait(10)
        assert not dropped.is_set()
    assert dropped.wait(10)
    with pytest.raises(LoopError):
        later(0, called.set)


# -- anything at all

FATES = st.lists(
    st.sampled_from([ANSWER, MUTE, LOST, LATE, LATE, NotLeader(1), OutcomeUnknown("?"), ReplicaStopped("!")]),
    max_size=6,
)


class AnythingAtAll(RuleBasedStateMachine):
    """Requests are lost, late, and repeated; sessions are evicted, closed, and go on elsewhere, by old tokens too."""

    def __init__(self):
        super().__init__()
        self.shard = Shard(capacity=2)
        self.sessions = []
        self.tokens = []
        self.outcomes = {}
        self.numbers = itertools.count()

    def note(self, command, future):
        self.outcomes.setdefault(command, []).append(future)

    @rule(fates=FATES)
    def open(self, fates):
        self.shard.fates.extend(fates)
        future = open_session(self.shard.endpoint(), timeout=2)
        self.shard.clock.advance(2)
        self.shard.fates.clear()
        if isinstance(outcome(future), type):
            return
        self.sessions.append(future.get(timeout=0))

    @precondition(lambda self: self.sessions)
    @rule(at=st.integers(0), fates=FATES, seconds=st.sampled_from([0, 0.3, 2]))
    def propose(self, at, fates, seconds):
        session = self.sessions[at % len(self.sessions)]
        command = b"%d" % next(self.numbers)
        self.shard.fates.extend(fates)
        self.note(command, session.propose(command, timeout=2))
        self.tokens.append(session.token)
        self.shard.clock.advance(seconds)
        self.shard.fates.clear()

    @precondition(lambda self: self.sessions)
    @rule(at=st.integers(0), fates=FATES)
    def retry(self, at, fates):
        session = self.sessions[at % len(self.sessions)]
        command = cbor2.loads(session.token)[-1]
        self.shard.fates.extend(fates)
        future = session.retry(timeout=2)
        if command is not None:
            self.note(command, future)
        self.shard.clock.advance(2)
        self.shard.fates.clear()

    @precondition(lambda self: self.sessions)
    @rule(at=st.integers(0), fates=FATES)
    def close(self, at, fates):
        self.shard.fates.extend(fates)
        self.sessions[at % len(self.sessions)].close(timeout=2)
        self.shard.clock.advance(2)
        self.shard.fates.clear()

    @precondition(lambda self: self.tokens)
    @rule(at=st.integers(0))
    def resume(self, at):
        self.sessions.append(resume(self.shard, self.tokens[at % len(self.tokens)]))

    @precondition(lambda self: self.shard.late)
    @rule(at=st.integers(0))
    def deliver(self, at):
        self.shard.deliver(at % len(self.shard.late))

    @rule(seconds=st.sampled_from([0.01, 1, 5]))
    def wait(self, seconds):
        self.shard.clock.advance(seconds)

    @invariant()
    def nothing_is_applied_twice(self):
        assert len(set(self.shard.applied)) == len(self.shard.applied)

    @invariant()
    def what_clients_are_told_is_so(self):
        for command, futures in self.outcomes.items():
            for future in futures:
                value, error = future.outcome() if future.done else (None, None)
                if value is not None:
                    assert value == (self.shard.applied.index(command) + 1, command)
                if isinstance(error, ResultLost):
                    assert command in self.shard.applied
                # Another holder of the session may have retried it all the same.
                if error is not None and error.outcome_known and len(futures) == 1:
                    assert command not in self.shard.applied

    def teardown(self):
        self.shard.clock.advance(10)
        assert all(future.done for futures in self.outcomes.values() for future in futures)


TestAnythingAtAll = AnythingAtAll.TestCase
TestAnythingAtAll.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
