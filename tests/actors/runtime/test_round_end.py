"""What is put off to the end of a round is done once for all, always, and soon; and what a task causes is done at once."""

import threading
import time
from types import SimpleNamespace

import pytest
import trio
import trio.lowlevel
import trio.testing
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.scheduler import Scheduler

from tests.actors.runtime.support import TIMEOUT_S, Meddled, Recorder, wait_until


class Asking(TrioActor):
    """Puts something off in each of its turns."""

    def __init__(self, name, seen, *, loop, **kwargs):
        super().__init__(loop=loop, **kwargs)
        self._name, self._seen, self._its_loop = name, seen, loop

    def on_receive(self, message):
        self._seen.append(self._name)
        self._its_loop.at_round_end(lambda: self._seen.append(f"end {self._name}"))
        return message


def asking(name, seen, loop):
    return Asking.start(name, seen, loop=loop)


def test_it_is_done_when_all_actors_that_are_ready_had_their_turns(loop, held):
    seen = []
    actors = [asking(name, seen, loop) for name in "abc"]
    for actor in actors:
        actor.tell("x")
    held.opened.set()
    wait_until(lambda: len(seen) == 6)
    assert seen == ["a", "b", "c", "end a", "end b", "end c"]
    for actor in actors:
        actor.stop()


def test_a_round_is_over_when_its_time_passed_while_another_thread_had_the_interpreter(
    loop, held, monkeypatch
):
    late = []
    clock = SimpleNamespace(
        perf_counter=lambda: time.perf_counter() + TIMEOUT_S * len(late), sleep=late.append
    )
    monkeypatch.setattr("drakkar.actors.runtime.scheduler.time", clock)
    monkeypatch.setattr("drakkar.actors.runtime.scheduler._OTHERS_EVERY_S", 0)
    seen = []
    actors = [asking(name, seen, loop) for name in "abc"]
    for actor in actors:
        actor.tell("x")
    held.opened.set()
    wait_until(lambda: len(seen) == 6)
    assert seen == ["a", "end a", "b", "end b", "c", "end c"]
    for actor in actors:
        actor.stop()


def test_it_is_done_though_actors_never_rest(loop):
    """A round ends when its time is up."""
    done = threading.Event()

    class Restless(TrioActor):
        def on_receive(self, message):
            self.actor_ref.tell(message)

    restless = Restless.start(loop=loop)
    restless.tell("again")
    loop.run_soon(loop.at_round_end, done.set)
    assert done.wait(TIMEOUT_S)
    restless.stop()


@pytest.mark.parametrize("from_where", ["a task", "run_soon", "run_now"])
def test_it_is_done_where_no_actor_is_ready(loop, from_where):
    done = threading.Event()

    def put_off():
        loop.at_round_end(done.set)

    async def task():
        await trio.lowlevel.checkpoint()
        put_off()
        await trio.sleep_forever()

    async def now():
        await trio.lowlevel.checkpoint()
        loop.run_now(put_off)

    {
        "a task": lambda: loop.spawn(task),
        "run_soon": lambda: loop.run_soon(put_off),
        "run_now": lambda: loop.spawn(now),
    }[from_where]()
    assert done.wait(TIMEOUT_S)


def test_what_is_put_off_meanwhile_is_done_too_but_later(loop):
    seen, done = [], threading.Event()

    def again():
        seen.append(len(seen))
        if len(seen) < 5:
            loop.at_round_end(again)
            seen.append("put off")
        else:
            done.set()

    loop.run_soon(loop.at_round_end, again)
    assert done.wait(TIMEOUT_S)
    assert seen == [0, "put off", 2, "put off", 4]


def test_an_actor_that_it_wakes_gets_its_turn(loop):
    seen = []
    ref = Recorder.start(seen, loop=loop)
    loop.run_soon(loop.at_round_end, lambda: ref.tell("x"))
    wait_until(lambda: seen == ["x"])
    ref.stop()


@pytest.mark.parametrize("error", [ValueError("its own"), SystemExit("its own")])
def test_an_exception_is_logged_and_the_others_are_called(loop, caplog, error):
    done = threading.Event()

    def fail():
        raise error

    def put_off():
        loop.at_round_end(fail)
        loop.at_round_end(done.set)

    loop.run_soon(put_off)
    assert done.wait(TIMEOUT_S)
    assert loop.crashes == 1
    assert "its own" in caplog.text
    assert loop.running


def test_an_exception_of_what_a_task_does_now_is_logged(loop, caplog):
    async def task():
        loop.run_now(lambda: 1 // 0)
        return "goes on"

    assert loop.call(task, timeout=TIMEOUT_S) == "goes on"
    assert loop.crashes == 1
    assert "ZeroDivisionError" in caplog.text


def test_actors_that_a_task_wakes_have_their_turns_before_it_goes_on(loop):
    seen = []
    ref = Recorder.start(seen, loop=loop)

    async def task():
        await trio.testing.wait_all_tasks_blocked()
        loop.run_now(lambda: (ref.tell("x"), loop.at_round_end(lambda: seen.append("end"))))
        return list(seen)

    assert loop.call(task, timeout=TIMEOUT_S) == ["x", "end"]
    ref.stop()


def test_what_a_task_does_now_is_done_while_the_scheduler_is_awake(loop):
    seen = []
    ref = Recorder.start(seen, loop=loop)

    async def task():
        loop._scheduler.at_round_end(lambda: None)  # it is awake from now on
        loop.run_now(lambda: (seen.append("now"), ref.tell("x")))
        return list(seen)

    assert loop.call(task, timeout=TIMEOUT_S) == ["now"]
    wait_until(lambda: seen == ["now", "x"])
    ref.stop()


def test_calls_that_wait_when_the_loop_ends_are_never_made():
    loop, seen = TrioLoop().start(), []
    loop.stop()
    loop.at_round_end(lambda: seen.append("x"))
    assert seen == []


@pytest.mark.parametrize("where", ["run_now", "_wake_up"])
def test_an_actor_that_is_scheduled_as_the_loop_goes_back_to_sleep_is_not_overlooked(monkeypatch, where):
    """Another thread schedules between the last look and the sleep."""
    scheduler, turns = Scheduler("a loop"), []
    scheduler.ready = Meddled(lambda: None)
    scheduler._sleeper = object()

    class Actor:
        def _take_turn(self, until):
            turns.append(until)

    def round_then_meddle(seconds):
        Scheduler._run_round(scheduler, seconds)
        scheduler.ready.meddle = [lambda: scheduler.schedule(Actor())]

    woken = []
    monkeypatch.setattr(scheduler, "_run_round", round_then_meddle)
    monkeypatch.setattr("trio.lowlevel.reschedule", woken.append)
    if where == "run_now":
        scheduler.run_now(lambda: None)
    else:
        scheduler._wake_up()
    assert len(woken) == 1, "it was woken for another round"
    assert scheduler._sleeper is None


def test_no_wake_up_is_lost_while_threads_and_tasks_schedule_at_the_same_time(loop):
    """Each waits for its own message before it sends the next, so one that is overlooked stops the test."""
    rounds, threads = 300, 4
    ends = []

    class Confirming(TrioActor):
        def on_receive(self, message):
            loop.at_round_end(message.set)

    def send(ref):
        for _ in range(rounds):
            confirmed = threading.Event()
            ref.tell(confirmed)
            if not confirmed.wait(TIMEOUT_S):
                return
        ends.append("thread")

    async def cause(ref):
        for _ in range(rounds):
            confirmed = trio.Event()
            loop.run_now(lambda confirmed=confirmed: ref.tell(confirmed))
            await confirmed.wait()
        ends.append("task")

    refs = [Confirming.start(loop=loop) for _ in range(threads)]
    workers = [threading.Thread(target=send, args=(ref,)) for ref in refs]
    for worker in workers:
        worker.start()
    task = loop.spawn(cause, refs[0])
    for worker in workers:
        worker.join()
    task.finished.get(timeout=TIMEOUT_S)
    assert ends.count("thread") == threads
    assert ends.count("task") == 1
    for ref in refs:
        ref.stop()


def test_a_task_may_end_the_round_at_once_but_not_in_the_turn_of_an_actor(loop):
    called, seen = [], []

    def task():
        loop.at_round_end(lambda: called.append("task"))
        loop.end_round()
        seen.append(list(called))

    class Asker(TrioActor):
        def on_receive(self, message):
            loop.at_round_end(lambda: called.append("turn"))
            loop.end_round()
            seen.append(list(called))

    loop.call(task)
    Asker.start(loop=loop).ask("now")
    wait_until(lambda: called == ["task", "turn"])
    assert seen == [["task"], ["task"]]
