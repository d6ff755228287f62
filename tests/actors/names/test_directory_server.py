"""The server of a directory, beside a shard that answers when and how the test says."""

import time
from types import SimpleNamespace

import pykka
import pytest
from drakkar.actors.names import directory_server
from drakkar.actors.names.directory import Directory
from drakkar.actors.names.directory_server import DirectoryServer
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import (
    NotLeader,
    OutcomeUnknown,
    Refused,
    ReplicaStopped,
    ResultLost,
    SessionExpired,
    SystemBusy,
)

from tests.actors.names.test_directory import A, register
from tests.actors.support import TIMEOUT_S, until


class FakeShard:
    """Its commands have the outcomes that the test gives, one after the other, or futures of them; None is what a directory says."""

    shard_id = 9

    def __init__(self, loop, outcomes=(), opening=()):
        self.directory = Directory()
        self.outcomes, self.opening = list(outcomes), list(opening)
        self.ref = TrioActor.start(loop=loop)
        self.commands, self.sessions, self.under_way, self.reads = [], 0, 0, []

    def session(self, *, timeout):
        future = ActorFuture()
        error = self.opening.pop(0) if self.opening else None
        if error is None:
            self.sessions += 1
            future.set(FakeSession(self))
        else:
            future.fail(error)
        return future

    def read(self, query, *, timeout):
        future = ActorFuture()
        self.reads.append(future)
        if query[1] != "slow":
            future.set(self.directory.query(query))
        return future


class FakeSession:
    def __init__(self, shard):
        self.shard, self.command = shard, None

    @property
    def open(self):
        return self.command is not None

    def propose(self, command, *, timeout):
        assert self.command is None, "one at a time"
        self.command = command
        self.shard.commands.append(command)
        return self._outcome()

    def retry(self, *, timeout):
        assert self.command is not None
        return self._outcome()

    def _outcome(self):
        future = ActorFuture()
        outcome = self.shard.outcomes.pop(0) if self.shard.outcomes else None
        if outcome is None:
            command, self.command = self.command, None
            future.set(self.shard.directory.apply(command))
        elif outcome == "never":
            pass
        elif isinstance(outcome, ActorFuture):
            return outcome
        else:
            if not isinstance(outcome, OutcomeUnknown):
                self.command = None
            future.fail(outcome)
        return future


@pytest.fixture
def loop():
    with TrioLoop() as loop:
        yield loop


def serve(loop, *outcomes, opening=()):
    shard = FakeShard(loop, outcomes, opening)
    return DirectoryServer.start(shard, loop=loop), shard


def do(server, operation, milliseconds=TIMEOUT_S * 1000):
    return server.ask(["do", int(milliseconds), operation], timeout=TIMEOUT_S)


def propose(server, shard, operation):
    """Ask for an operation whose deadline is soon, until it is proposed before that; return the future of its answer."""

    def proposed():
        answer = server.ask(["do", 100, operation], block=False)
        until(lambda: shard.commands or answer.done)
        return answer if shard.commands else None

    return until(proposed)


def lost():
    error = SessionExpired("forgotten")
    error.outcome_known = True
    return error


@pytest.mark.parametrize(
    ("outcomes", "commands", "sessions"),
    [
        pytest.param([], 1, 1, id="it goes well"),
        pytest.param([NotLeader(1)], 2, 1, id="surely not applied: proposed again"),
        pytest.param([SystemBusy("full")] * 3, 4, 1, id="and again"),
        pytest.param(
            [OutcomeUnknown("late")] * 2, 1, 1, id="unknown: the session is asked what became of it"
        ),
        pytest.param([lost()], 2, 2, id="the session was lost before it was applied"),
        pytest.param([OutcomeUnknown("late"), lost()], 2, 2, id="so it was found out later"),
    ],
)
def test_an_operation_is_repeated_as_long_as_that_is_safe(loop, outcomes, commands, sessions):
    server, shard = serve(loop, *outcomes)
    assert do(server, register("ledger", A)) == ["ok"]
    assert (len(shard.commands), shard.sessions) == (commands, sessions)


@pytest.mark.parametrize("error", [SessionExpired("forgotten"), ResultLost("too large")])
def test_where_it_may_have_been_applied_and_nobody_can_tell_the_asker_is_told_so(loop, error):
    server, _ = serve(loop, error)
    assert do(server, register("ledger", A))[:2] == ["failed", False]
    assert do(server, register("ledger", A)) == ["ok"], "it goes on"


def test_a_command_that_the_directory_refuses_is_told_as_without_effect(loop):
    server, _ = serve(loop, Refused("no"))
    assert do(server, register("ledger", A)) == ["failed", True, "no"]


def test_a_session_that_cannot_be_opened_is_tried_again(loop):
    server, shard = serve(loop, opening=[NotLeader(1), NotLeader(1)])
    assert do(server, register("ledger", A)) == ["ok"]
    assert shard.sessions == 1


def test_what_waits_together_becomes_one_command_in_order(loop):
    server, shard = serve(loop, opening=[NotLeader(1)])
    futures = [server.ask(["do", 20_000, register("ledger", A, each)], block=False) for each in range(1, 301)]
    assert [future.get(timeout=TIMEOUT_S) for future in futures] == [["ok"]] * 300
    assert len(shard.commands) <= 4
    assert shard.directory.query(["find", "ledger"]).number == 300


def test_what_is_not_proposed_by_its_deadline_has_surely_no_effect(loop):
    server, shard = serve(loop, "never")
    stuck = propose(server, shard, register("a", A))
    waiting = server.ask(["do", 100, register("b", A)], block=False)
    assert stuck.get(timeout=TIMEOUT_S)[:2] == ["failed", False]
    assert waiting.get(timeout=TIMEOUT_S)[:2] == ["failed", True]
    assert len(shard.commands) == 1


def test_what_expired_while_its_outcome_was_unknown_is_settled_before_the_next_is_proposed(loop):
    late = ActorFuture()
    server, shard = serve(loop, late, *[OutcomeUnknown("late")] * 2)
    assert propose(server, shard, register("a", A)).get(timeout=TIMEOUT_S)[:2] == ["failed", False]
    late.fail(OutcomeUnknown("late"))
    assert do(server, register("b", A)) == ["ok"]
    assert len(shard.directory) == 2, "the first was applied, once"


def test_operations_that_wait_are_bounded(loop, monkeypatch):
    monkeypatch.setattr(directory_server, "MAX_WAITING", 3)
    server, shard = serve(loop, "never")
    server.ask(["do", 5000, register("first", A)], block=False)
    until(lambda: shard.commands)
    for each in range(3):
        server.ask(["do", 5000, register(f"{each}", A)], block=False)
    assert do(server, register("one more", A)) == [
        "failed",
        True,
        "3 operations wait for this directory already: wait a little and try again",
    ]


def test_reads_do_not_wait_for_commands(loop):
    server, shard = serve(loop, None, "never")
    do(server, register("ledger", A, 7))
    server.ask(["do", 5000, register("stuck", A)], block=False)
    found = server.ask(["find", 5000, "ledger"], timeout=TIMEOUT_S)
    assert found == ["ok", 7, "10.0.0.1:7000", b"place of 7"]
    assert server.ask(["find", 5000, "other"], timeout=TIMEOUT_S) == ["ok", None]
    assert server.ask(["names", 5000, "", "", 10], timeout=TIMEOUT_S) == ["ok", ["ledger"]]
    slow = server.ask(["find", 5000, "slow"], block=False)
    until(lambda: len(shard.reads) == 4)
    shard.reads[3].fail(NotLeader(1))
    assert slow.get(timeout=TIMEOUT_S)[:2] == ["failed", True]


@pytest.mark.parametrize(
    "message",
    [
        None,
        7,
        [],
        ["do"],
        ["do", 5000],
        ["do", -1, ["announce", A, 1, 1]],
        ["do", 1 << 40, ["announce", A, 1, 1]],
        ["do", "soon", ["announce", A, 1, 1]],
        ["do", 5000, ["announce", A, 1]],
        ["do", 5000, "announce"],
        ["find", 5000, 7],
        ["find", 5000, "a", "b"],
        ["names", 5000, "", ""],
        ["names", 5000, "", 7, 10],
        ["names", 5000, "", "", 1001],
        ["names", 5000, "x" * 201, "", 10],
        ["drop", 5000, "all"],
        [["do"], 5000, ["announce", A, 1, 1]],
    ],
)
def test_what_other_hosts_say_that_is_no_question_is_answered_so(loop, message):
    server, shard = serve(loop)
    answer = server.ask(message, timeout=TIMEOUT_S)
    assert answer[:2] == ["failed", True]
    assert len(answer[2]) < 500
    assert server.ask(["names", 5000, "", "", 10], timeout=TIMEOUT_S) == ["ok", []]
    assert shard.commands == []


def test_it_ends_with_its_replica_and_answers_all_who_wait(loop):
    server, shard = serve(loop, "never")
    proposed = server.ask(["do", 5000, register("a", A)], block=False)
    until(lambda: shard.commands)
    waiting = server.ask(["do", 5000, register("b", A)], block=False)
    loop.call(int)
    shard.ref.stop(timeout=TIMEOUT_S)
    until(lambda: not server.is_alive())
    assert proposed.get(timeout=TIMEOUT_S)[:2] == ["failed", False]
    assert waiting.get(timeout=TIMEOUT_S)[:2] == ["failed", True]
    with pytest.raises(pykka.ActorDeadError):
        do(server, register("c", A))


def test_it_ends_where_the_replica_says_that_it_has(loop):
    server, _ = serve(loop, opening=[ReplicaStopped("gone")])
    assert do(server, register("a", A))[:2] == ["failed", True]
    until(lambda: not server.is_alive())


def test_it_does_not_ask_without_a_pause_a_shard_that_refuses_at_once(loop):
    server, shard = serve(loop, opening=[NotLeader(1)] * 10_000)
    began = time.monotonic()
    do(server, register("a", A), milliseconds=300)
    tried = 10_000 - len(shard.opening)
    assert tried < 20, f"{tried} times in {time.monotonic() - began:.1f} s"


def test_the_double_refuses_what_a_session_refuses():
    session = FakeSession(SimpleNamespace(commands=[], outcomes=["never"]))
    session.propose(b"", timeout=1)
    with pytest.raises(AssertionError):
        session.propose(b"", timeout=1)
