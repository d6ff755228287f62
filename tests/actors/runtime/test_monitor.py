"""Each way an actor can end, and who is told: no asker waits for ever, and no other actor ends."""

import gc
import logging
import queue
import sys
import threading

import pykka
import pytest
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorCrashed, ActorDied, unwatch, watch
from drakkar.handlers.errors import ActorFailed, ConfigError
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from tests.actors.runtime.support import TIMEOUT_S, Echo, TroubleError, wait_until


class Mortal(TrioActor):
    """Fails where it is told to, with what it is told to."""

    def __init__(self, where="handler", error=None, hooks=None, gate=None, **kwargs):
        super().__init__(**kwargs)
        self._where, self._error, self._gate = where, error, gate
        self._hooks = [] if hooks is None else hooks

    def _maybe_fail(self, where):
        if self._where == where:
            raise self._error

    def on_start(self):
        if self._gate is not None:
            assert self._gate.wait(TIMEOUT_S)
        self._maybe_fail("on_start")

    def on_receive(self, message):
        self._maybe_fail("handler")
        return message

    def method(self):
        self._maybe_fail("method")

    def after_batch(self):
        self._maybe_fail("after_batch")

    def on_stop(self):
        self._hooks.append("on_stop")
        self._maybe_fail("on_stop")

    def on_failure(self, exception_type, exception_value, traceback):
        assert exception_type is type(exception_value)
        assert traceback is exception_value.__traceback__
        self._hooks.append(exception_value)
        self._maybe_fail("on_failure too")


def errors_of(caplog):
    return [record for record in caplog.records if record.levelno == logging.ERROR]


ERRORS = [TroubleError, SystemExit, KeyboardInterrupt, GeneratorExit]


@pytest.mark.parametrize("error_type", ERRORS)
@pytest.mark.parametrize("where", ["on_start", "handler", "method", "after_batch", "on_stop"])
def test_a_failure_is_logged_counted_and_told_and_ends_no_other_actor(loop, caplog, where, error_type):
    error = error_type(3)
    gate, hooks, notices = threading.Event(), [], []
    other = Echo.start(loop=loop)
    ref = Mortal.start(where, error, hooks, gate, loop=loop)
    watch(ref, notices.append)
    if where == "method":
        ref.proxy().method.defer()
    elif where != "on_stop":
        ref.tell("first")
    stopped = ref.stop(block=False)
    question = ref.ask("are you there?", block=False)
    gate.set()

    with pytest.raises(pykka.ActorDeadError) as caught:
        question.get(timeout=TIMEOUT_S)
    assert isinstance(caught.value, ActorCrashed)
    assert caught.value.__cause__ is error
    assert caught.value.outcome_known, "it was never handled, so it surely has no effect"
    assert stopped.get(timeout=TIMEOUT_S) is True, "it is stopped, though not as it was meant"

    assert notices == [ActorDied(ref, error)]
    assert hooks[-1] is error
    assert hooks.count(error) == 1
    assert [record.exc_info[1] for record in errors_of(caplog)] == [error]
    assert "Mortal" in errors_of(caplog)[0].getMessage()
    assert loop.failures == 1
    assert not ref.is_alive()
    assert pykka.ActorRegistry.get_all() == [other]
    assert other.ask("still there", timeout=TIMEOUT_S) == "still there"


@pytest.mark.parametrize("error_type", ERRORS[1:])
def test_the_asker_whose_question_killed_the_actor_gets_an_error_of_his_own(loop, error_type):
    error, notices = error_type(3), []
    ref = Mortal.start("handler", error, loop=loop)
    watch(ref, notices.append)
    with pytest.raises(ActorFailed, match="while it handled the message") as caught:
        ref.ask("deadly", timeout=TIMEOUT_S)
    assert caught.value.__cause__ is error
    assert not caught.value.outcome_known
    assert loop.call(lambda: notices) == [ActorDied(ref, error)]


def test_an_exception_in_answer_to_a_question_goes_to_the_asker_and_ends_no_actor(loop, caplog):
    ref = Mortal.start("handler", TroubleError("mine"), loop=loop)
    for _ in range(2):
        with pytest.raises(TroubleError, match="mine"):
            ref.ask("deadly", timeout=TIMEOUT_S)
    assert ref.is_alive()
    assert loop.failures == 0
    assert errors_of(caplog) == []


def test_a_failed_call_that_is_never_read_is_logged_as_a_warning(loop, caplog):
    ref = Mortal.start("method", TroubleError("unseen"), loop=loop)
    ref.proxy().method()
    wait_until(lambda: any(record.levelno == logging.WARNING for record in caplog.records))
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "Mortal" in warning.getMessage()
    assert "ProxyCall of method" in warning.getMessage()
    assert "TroubleError: unseen" in warning.getMessage()


def test_a_failing_on_failure_is_logged_and_hides_nothing(loop, caplog):
    class Worse(Mortal):
        def on_failure(self, *_):
            sys.exit("even here")

    error, notices = TroubleError("first"), []
    ref = Worse.start("handler", error, loop=loop)
    watch(ref, notices.append)
    ref.tell("deadly")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("hello", timeout=TIMEOUT_S)
    assert loop.call(lambda: notices) == [ActorDied(ref, error)]
    assert [type(record.exc_info[1]) for record in errors_of(caplog)] == [TroubleError, SystemExit]


def test_an_actor_that_is_stopped_dies_of_nothing(loop, caplog):
    hooks, notices = [], []
    ref = Mortal.start(hooks=hooks, loop=loop)
    watch(ref, notices.append)
    ref.stop()
    assert notices == [ActorDied(ref, None)]
    assert hooks == ["on_stop"]
    assert loop.failures == 0
    assert errors_of(caplog) == []


@pytest.mark.parametrize(("error", "level"), [(None, logging.INFO), (TroubleError("mine"), logging.WARNING)])
def test_messages_that_an_actor_leaves_behind_are_counted_and_logged(loop, caplog, error, level):
    caplog.set_level(logging.INFO)
    gate = threading.Event()
    ref = Mortal.start("handler", error, gate=gate, loop=loop)
    if error is None:
        ref.actor_inbox.put(Envelope(_ActorStop()))
    for _ in range(4):
        ref.tell("unread")
    gate.set()
    assert loop.call(lambda: ref.actor_inbox.termination.end, timeout=TIMEOUT_S) is error
    expected = 4 if error is None else 3
    assert loop.dead_letters == expected
    [record] = [record for record in caplog.records if "ended before" in record.getMessage()]
    assert record.levelno == level
    assert f"ended before {expected} messages" in record.getMessage()


# Watching


class Watcher(TrioActor):
    inbox_capacity = 1

    def __init__(self, seen, **kwargs):
        super().__init__(**kwargs)
        self._seen = seen

    def on_receive(self, message):
        if isinstance(message, threading.Event):
            assert message.wait(TIMEOUT_S)
        else:
            self._seen.append(message)


def test_a_watching_actor_is_told_by_a_message_even_if_its_inbox_is_full():
    seen, gate = [], threading.Event()
    with TrioLoop() as watching, TrioLoop() as watched:
        watcher = Watcher.start(seen, loop=watching)
        watcher.tell(gate)
        while not watcher.actor_inbox.empty():
            threading.Event().wait(0.001)
        watcher.tell("full")
        ref = Echo.start(loop=watched)
        watch(ref, watcher)
        ref.stop()
        gate.set()
    assert seen == ["full", ActorDied(ref, None)]


def test_pykkas_own_actors_can_watch(loop):
    seen = []
    theirs = Threaded.start(seen)
    mine = Echo.start(loop=loop)
    watch(mine, theirs)
    mine.stop()
    theirs.stop()
    assert seen == [ActorDied(mine, None)]


# pykka's own actors, which do not tell of their ends


class Threaded(pykka.ThreadingActor):
    def __init__(self, seen=None, where=None):
        super().__init__()
        self._seen, self._where = seen, where

    def on_start(self):
        if self._where == "on_start":
            raise TroubleError("mine")

    def on_receive(self, message):
        if message == "deadly":
            raise TroubleError("mine")
        self._seen.append(message)

    def on_failure(self, *_):
        if self._where == "on_failure":
            raise TroubleError("worse")


@pytest.fixture
def told():
    return queue.Queue()


@pytest.mark.parametrize("on_loop", [True, False])
@pytest.mark.parametrize("where", [None, "on_failure"])
def test_the_failure_of_one_of_pykkas_own_actors_is_told_with_its_reason(loop, told, on_loop, where):
    ref = Threaded.start([], where)
    (loop.call if on_loop else lambda function: function())(lambda: watch(ref, told.put))
    ref.tell("deadly")
    notice = told.get(timeout=TIMEOUT_S)
    assert notice.ref is ref
    assert isinstance(notice.reason, TroubleError)
    assert str(notice.reason) == "mine", "the first one, which ended it"


def test_the_stop_of_one_of_pykkas_own_actors_is_told_without_a_reason(loop, told):
    ref = Threaded.start([])
    watch(ref, told.put)
    ref.stop()
    assert told.get(timeout=TIMEOUT_S) == ActorDied(ref, None)


def test_an_actor_on_the_loop_is_told_of_one_of_pykkas_own(loop):
    seen = []
    watcher, ref = Watcher.start(seen, loop=loop), Threaded.start([])
    watch(ref, watcher)
    ref.stop()
    wait_until(lambda: seen)
    assert seen == [ActorDied(ref, None)]


def test_one_of_pykkas_own_that_has_ended_is_told_at_once(loop):
    notices = []
    ref = Threaded.start([])
    ref.stop()
    watch(ref, notices.append)
    assert notices == [ActorDied(ref, None)]


def test_one_of_pykkas_own_that_failed_is_told_with_its_reason_to_those_who_watch_later(loop, told):
    ref, notices = Threaded.start([]), []
    watch(ref, told.put)
    ref.tell("deadly")
    reason = told.get(timeout=TIMEOUT_S).reason
    watch(ref, notices.append)
    assert notices == [ActorDied(ref, reason)]


def test_watching_one_of_pykkas_own_twice_tells_once_and_who_no_longer_watches_is_not_told(loop, told):
    ref, notices = Threaded.start([]), []
    for _ in range(2):
        watch(ref, notices.append)
    loop.call(lambda: watch(ref, told.put))
    assert unwatch(ref, notices.append)
    assert not unwatch(ref, notices.append)
    watch(ref, notices.append)
    ref.stop()
    assert told.get(timeout=TIMEOUT_S) == ActorDied(ref, None)
    wait_until(lambda: notices)
    assert notices == [ActorDied(ref, None)]


def test_what_looks_for_ends_rests_when_it_has_nothing_to_look_for(loop):
    refs, notices = [Threaded.start([]) for _ in range(20)], []
    loop.call(lambda: [watch(ref, notices.append) for ref in refs])
    assert len(loop._tasks) == 1, "one for all"
    for ref in refs[:10]:
        ref.stop()
    for ref in refs[10:]:
        assert unwatch(ref, notices.append)
    wait_until(lambda: not loop._tasks)
    assert {notice.ref for notice in notices} == set(refs[:10])
    for ref in refs[10:]:
        ref.stop()


def test_a_watched_actor_of_pykkas_own_is_not_kept_in_memory(loop, told, caplog):
    caplog.set_level(logging.CRITICAL, "pykka")  # what is logged would keep it
    ref = Threaded.start([])
    watch(ref, told.put)
    find = ref._actor_weakref
    ref.tell("deadly")
    told.get(timeout=TIMEOUT_S)
    del ref
    wait_until(lambda: gc.collect() is not None and find() is None)


def test_what_is_no_ref_cannot_be_watched(loop):
    ref = Echo.start(loop=loop)
    for wrong in (ref.proxy(), Echo, None):
        with pytest.raises(ConfigError, match="watch the ref of an actor"):
            watch(wrong, print)
    with pytest.raises(ConfigError, match="watch the ref of an actor"):
        unwatch(None, print)


def test_watching_the_dead_tells_at_once(loop):
    error, notices = TroubleError("mine"), []
    ref = Mortal.start("handler", error, loop=loop)
    ref.tell("deadly")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("hello", timeout=TIMEOUT_S)
    loop.call(int)
    watch(ref, notices.append)
    assert notices == [ActorDied(ref, error)]


def test_watching_twice_tells_once(loop):
    notices = []
    ref = Echo.start(loop=loop)
    watch(ref, notices.append)
    watch(ref, notices.append)
    ref.stop()
    assert len(notices) == 1


def test_who_no_longer_watches_is_not_told(loop):
    notices = []
    ref = Echo.start(loop=loop)
    assert not unwatch(ref, notices.append)
    watch(ref, notices.append)
    assert unwatch(ref, notices.append)
    assert not unwatch(ref, notices.append)
    ref.stop()
    assert notices == []


def test_who_watches_again_is_told_again(loop):
    notices = []
    ref = Echo.start(loop=loop)
    watch(ref, notices.append)
    unwatch(ref, notices.append)
    watch(ref, notices.append)
    ref.stop()
    assert len(notices) == 1


def test_of_watchers_that_race_with_the_death_each_is_told_exactly_once(loop):
    for _ in range(100):
        ref, start = Echo.start(loop=loop), threading.Barrier(5)
        notices = [[] for _ in range(4)]

        def race(mine, ref=ref, start=start):
            start.wait(TIMEOUT_S)
            watch(ref, mine.append)

        threads = [threading.Thread(target=race, args=(mine,)) for mine in notices]
        for thread in threads:
            thread.start()
        start.wait(TIMEOUT_S)
        ref.stop()
        for thread in threads:
            thread.join(TIMEOUT_S)
        loop.call(int)
        assert [len(mine) for mine in notices] == [1] * 4


def test_a_failing_watcher_is_logged_and_harms_no_other(loop, caplog):
    def fail(_):
        sys.exit(3)

    notices = []
    ref = Echo.start(loop=loop)
    watch(ref, fail)
    watch(ref, notices.append)
    assert ref.stop(timeout=TIMEOUT_S)
    assert len(notices) == 1
    assert "could not be told" in errors_of(caplog)[0].getMessage()
    assert loop.running


def test_watchers_that_have_died_do_not_pile_up(loop):
    ref = Echo.start(loop=loop)
    for _ in range(500):
        watcher = Echo.start(loop=loop)
        watch(ref, watcher)
        watcher.stop()
    assert len(ref.actor_inbox.termination._watches) < 50
    assert len(ref.actor_inbox.termination.end._callbacks) < 50
    ref.stop()


def test_a_supervisor_restarts_what_died(loop):
    """The pattern that `watch` is for."""

    class Supervisor(TrioActor):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.restarts = 0

        def on_start(self):
            self._hire()

        def _hire(self):
            self._worker = Mortal.start("method", TroubleError("mine"))
            watch(self._worker, self.actor_ref)

        def work(self):
            self._worker.proxy().method.defer()
            return self._worker

        def on_receive(self, message):
            if isinstance(message, ActorDied) and message.reason is not None:
                self.restarts += 1
                self._hire()

    supervisor = Supervisor.start(loop=loop).proxy()
    first = supervisor.work().get(timeout=TIMEOUT_S)
    with pytest.raises(pykka.ActorDeadError):
        first.ask("hello", timeout=TIMEOUT_S)
    loop.call(int)  # the turn in which it died is over
    assert supervisor.restarts.get(timeout=TIMEOUT_S) == 1
    assert supervisor.work().get(timeout=TIMEOUT_S) is not first
