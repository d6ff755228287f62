"""The turns of the actors of a loop: all get theirs, none keeps the thread, and none is overlooked."""

import itertools
import time
from types import SimpleNamespace

import trio
import trio.lowlevel
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.scheduler import Scheduler
from drakkar.handlers.errors import SystemBusy

from tests.actors.runtime.support import TIMEOUT_S, Echo, Meddled, Recorder, wait_until


def test_a_turn_that_keeps_the_loop_for_long_is_named_in_the_log(loop, caplog, monkeypatch):
    monkeypatch.setattr("drakkar.actors.runtime.scheduler._SLOW_TURN_S", 0)
    Echo.start(loop=loop).ask("hello", timeout=TIMEOUT_S)
    # The turn ends, and is named, after it has answered.
    wait_until(lambda: any("Echo" in text and "kept the thread" in text for text in caplog.messages))
    assert "Echo" in loop.slow_turn.actor
    assert loop.slow_turn.ended <= time.monotonic()


class Batches(Recorder):
    batch = 10

    def after_batch(self):
        self._seen.append("|")


def batches_of(seen):
    return [len(batch) for batch in "".join(seen).split("|")[:-1]]


def test_a_turn_handles_a_batch_and_then_calls_the_hook_once(loop, held):
    seen = []
    ref = Batches.start(seen, loop=loop)
    for _ in range(25):
        ref.tell("x")
    held.opened.set()
    ref.ask("y", timeout=TIMEOUT_S)
    ref.stop()
    assert batches_of(seen)[:3] == [10, 10, 6]


def test_the_hook_runs_after_on_start_and_before_on_stop(loop, held):
    class Whole(Batches):
        def on_start(self):
            self._seen.append("start")

        def on_stop(self):
            self._seen.append("stop")

    seen, quiet = [], []
    ref = Whole.start(seen, loop=loop)
    ref.tell("x")
    stopped = ref.stop(block=False)
    idle = Whole.start(quiet, loop=loop)
    held.opened.set()
    stopped.get(timeout=TIMEOUT_S)
    wait_until(lambda: quiet == ["start", "|"])
    idle.stop()
    assert seen == ["start", "x", "|", "stop"]
    assert quiet == ["start", "|", "|", "stop"]


def test_a_turn_ends_early_when_its_time_is_up(loop, monkeypatch):
    monkeypatch.setattr("drakkar.actors.runtime.scheduler._ROUND_S", 1e-9)
    seen = []
    ref = Batches.start(seen, loop=loop)
    for _ in range(5):
        ref.tell("x")
    ref.ask("y", timeout=TIMEOUT_S)
    ref.stop()
    assert set(batches_of(seen)) <= {0, 1}


def test_a_saturated_actor_starves_neither_actors_nor_tasks(loop):
    """It sends itself two messages for each, so its inbox is always full."""

    class Greedy(TrioActor):
        inbox_capacity = 2000
        turns = 0

        def on_receive(self, _):
            try:
                self.actor_ref.tell("more")
                self.actor_ref.tell("more")
            except SystemBusy:
                Greedy.turns += 1

    async def tick():
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        return "ticked"

    greedy = Greedy.start(loop=loop)
    greedy.tell("begin")
    other = Echo.start(loop=loop)
    wait_until(lambda: Greedy.turns)
    for _ in range(10):
        assert other.ask("hello", timeout=TIMEOUT_S) == "hello"
        assert loop.call(tick, timeout=TIMEOUT_S) == "ticked"
    assert greedy.is_alive()
    assert len(greedy.actor_inbox) > 1000
    Greedy.on_receive = lambda _self, _message: None


def test_an_actor_that_tells_itself_for_ever_can_still_be_stopped(loop):
    class Restless(TrioActor):
        def on_receive(self, message):
            self.actor_ref.tell(message)

    ref = Restless.start(loop=loop)
    ref.tell("again")
    assert ref.stop(timeout=TIMEOUT_S)


def test_an_idle_loop_is_woken_once_however_many_messages_come(loop, held, monkeypatch):
    class Token:
        def run_sync_soon(self, *args, **kwargs):
            wakes.append(args)
            token.run_sync_soon(*args, **kwargs)

    wakes, token = [], loop._scheduler._token
    monkeypatch.setattr(loop._scheduler, "_token", Token())
    seen = []
    refs = [Recorder.start(seen, loop=loop) for _ in range(10)]
    for ref in refs * 100:
        ref.tell("x")
    assert wakes == []
    held.opened.set()
    assert refs[0].ask("last", timeout=TIMEOUT_S)
    assert len(wakes) <= 1


def test_an_actor_that_is_scheduled_as_the_loop_goes_back_to_sleep_is_not_overlooked(monkeypatch):
    scheduler, turns = Scheduler("a loop"), []
    scheduler.ready = Meddled(lambda: None)
    scheduler._sleeper = object()
    actor = SimpleNamespace(_take_turn=turns.append)

    def round_then_meddle(seconds):
        Scheduler._run_round(scheduler, seconds)
        scheduler.ready.meddle = [lambda: scheduler.schedule(actor)]

    monkeypatch.setattr(scheduler, "_run_round", round_then_meddle)
    monkeypatch.setattr("trio.lowlevel.reschedule", turns.append)
    scheduler._wake_up()
    assert scheduler._sleeper is None, "it was woken for another round"
    assert len(turns) == 1


def breaks_of_a_round(loop, held, monkeypatch, seconds_of_a_turn):
    """Have four turns in one round; return the breaks between them in which other threads may have the interpreter."""
    given_up, clock = [], itertools.count(time.perf_counter() + 0.01, seconds_of_a_turn)
    monkeypatch.setattr(
        "drakkar.actors.runtime.scheduler.time",
        SimpleNamespace(perf_counter=lambda: next(clock), sleep=given_up.append),
    )
    seen = []
    recorders = [Recorder.start(seen, loop=loop) for _ in range(3)]
    for recorder in recorders:
        recorder.tell("x")
    held.opened.set()
    wait_until(lambda: seen.count("x") == 3)
    for recorder in recorders:
        recorder.stop()
    return given_up


def test_other_threads_may_have_the_interpreter_between_two_turns_of_a_round(loop, held, monkeypatch):
    """A turn may make no system call, and Python takes the interpreter from a thread only after 5 ms."""
    given_up = breaks_of_a_round(loop, held, monkeypatch, 0.001)
    assert given_up == [0, 0, 0]  # after the held turn, and two of the three


def test_turns_that_are_short_have_no_break_each(loop, held, monkeypatch):
    """It takes as long as a turn. With hundreds of actors that would be half of the time."""
    assert breaks_of_a_round(loop, held, monkeypatch, 0.0001) == [0]  # after the held turn
