"""The loop: it starts, measures how late it runs, stops its actors and tasks, and ends."""

import logging
import subprocess
import sys
import textwrap
import threading

import pykka
import pytest
import trio
import trio.lowlevel
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import watch
from drakkar.handlers.errors import DeadlockError, LoopError

from tests.actors.runtime.support import TIMEOUT_S, Echo, Gate, Held, Recorder, TroubleError, wait_until


def test_a_loop_is_one_named_thread_that_is_gone_after_stop():
    loop = TrioLoop("my loop")
    assert not loop.running
    with loop:
        assert loop.running
        assert loop.call(threading.current_thread).name == "my loop"
        assert loop.call(TrioLoop.current) is loop
        assert loop.call(loop.in_loop)
    assert not loop.running
    assert "my loop" not in {thread.name for thread in threading.enumerate()}
    assert TrioLoop.current() is None
    assert not loop.in_loop()


def test_starting_and_stopping_twice_changes_nothing():
    loop = TrioLoop()
    assert loop.start() is loop.start()
    loop.stop()
    loop.stop()


def test_a_loop_that_never_ran_can_be_stopped_and_then_does_not_start():
    loop = TrioLoop()
    loop.stop()
    with pytest.raises(LoopError, match="make a new one"):
        loop.start()


@pytest.mark.parametrize(
    "use",
    [
        lambda loop: Echo.start(loop=loop),
        lambda loop: loop.spawn(trio.sleep, 0),
        lambda loop: loop.call(int),
        lambda loop: loop.run_soon(int),
    ],
    ids=["start an actor", "spawn", "call", "run_soon"],
)
def test_a_loop_that_does_not_run_says_what_to_do(use):
    loop = TrioLoop()
    with pytest.raises(LoopError, match=r"call start\(\) first"):
        use(loop)
    with loop:
        pass
    with pytest.raises(LoopError, match="make a new one"):
        use(loop)
    assert pykka.ActorRegistry.get_all() == []


def test_a_loop_cannot_be_stopped_from_within(loop):
    with pytest.raises(DeadlockError, match="another thread"):
        loop.call(loop.stop)


def test_stop_asks_the_actors_newest_first():
    order = []
    with TrioLoop() as loop:
        for number in range(3):
            ref = Echo.start(loop=loop)
            watch(ref, lambda _, number=number: order.append(number))
            ref.ask("a question")  # it has started, and has nothing to do
    assert order == [2, 1, 0]


def test_stop_asks_all_actors_at_once_each_ends_after_its_messages_and_then_the_tasks_are_cancelled(
    monkeypatch,
):
    monkeypatch.setattr("drakkar.actors.runtime.scheduler._ROUND_S", 1e-9)  # one turn between two checkpoints

    class Last(Recorder):
        batch = 1  # so that the newest, with twenty-one messages, needs as many turns, and the others end before it

        def on_stop(self):
            self._seen.append("stopped")

    async def task():
        try:
            await trio.sleep_forever()
        finally:
            order.append("task cancelled")

    order = []
    with TrioLoop() as loop:
        loop.spawn(task)
        gate = Gate()
        Held.start(loop=loop).tell(gate)
        for number in range(3):
            ref = Last.start([], loop=loop)
            watch(ref, lambda _, ref=ref, number=number: order.append((number, ref.seen)))
            ref.seen = ref._actor_weakref()._seen
            for _ in range(10 * number + 1):
                ref.tell("told")
        gate.opened.set()
    assert order == [
        (0, ["told", "stopped"]),
        (1, ["told"] * 11 + ["stopped"]),
        (2, ["told"] * 21 + ["stopped"]),
        "task cancelled",
    ]


def test_a_stop_that_takes_too_long_says_what_it_waits_for_and_can_be_repeated():
    loop, gate = TrioLoop().start(), Gate()
    Held.start(loop=loop).tell(gate)
    assert gate.reached.wait(TIMEOUT_S)
    with pytest.raises(pykka.Timeout, match=r"1 actors are alive.*Held .* middle of a turn"):
        loop.stop(timeout=0.01)
    with pytest.raises(LoopError, match="it is stopping"):
        Echo.start(loop=loop)
    gate.opened.set()
    loop.stop(TIMEOUT_S)


def test_a_task_that_will_not_be_cancelled_is_named_by_stop():
    async def stubborn():
        with trio.CancelScope(shield=True):
            await release.wait()

    loop = TrioLoop().start()
    release = loop.call(trio.Event)
    loop.spawn(stubborn, name="the stubborn one")
    with pytest.raises(pykka.Timeout, match="task 'the stubborn one' has not ended"):
        loop.stop(timeout=0.05)
    loop.run_soon(release.set)
    loop.stop(TIMEOUT_S)


def test_a_crash_of_the_loop_itself_leaves_no_one_waiting(caplog, monkeypatch):
    async def crash(_):
        await going_down.wait()
        raise TroubleError("trio is broken")

    monkeypatch.setattr(TrioLoop, "_watch_clock", crash)
    going_down = trio.Event()
    loop = TrioLoop().start()
    ref, deaths = Echo.start(loop=loop), []
    watch(ref, deaths.append)
    task = loop.spawn(trio.sleep_forever)
    loop.run_soon(going_down.set)
    with pytest.raises(LoopError, match="crashed"):
        task.finished.get(timeout=TIMEOUT_S)
    loop._thread.join(TIMEOUT_S)
    assert isinstance(deaths[0].reason, LoopError)
    assert not ref.is_alive()
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("hello", timeout=TIMEOUT_S)
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)
    loop.stop()


def test_a_hundred_loops_leave_no_threads():
    before = threading.active_count()
    for _ in range(100):
        with TrioLoop() as loop:
            Echo.start(loop=loop)
    assert threading.active_count() <= before


def test_lateness_is_measured(loop):
    """The loop misses two of its appointments, a tenth of a second apart, while an actor holds it up."""
    wait_until(lambda: loop.lateness > 0)
    gate = Gate()
    Held.start(loop=loop).tell(gate)
    assert gate.reached.wait(TIMEOUT_S)
    threading.Event().wait(0.3)
    gate.opened.set()
    wait_until(lambda: loop.worst_lateness > 0.15)
    wait_until(lambda: loop.lateness < 0.15)


# The default loop, in processes of its own


def run_python(program):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S * 3,
        check=False,
    )


ACTOR = """
    import threading
    from drakkar.actors.runtime.actor import TrioActor
    class Echo(TrioActor):
        def on_receive(self, message):
            print(threading.current_thread().name, message, flush=True)
            return message
        def on_stop(self):
            print("stopped", flush=True)
"""


def test_actors_without_a_loop_share_the_default_one_which_ends_with_the_program():
    result = run_python(
        ACTOR
        + """
    refs = [Echo.start() for _ in range(3)]
    for ref in refs:
        ref.ask("hello", timeout=10)
    assert threading.active_count() == 2
    for ref in refs:
        ref.stop()
    """
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["drakkar-default-loop hello"] * 3 + ["stopped"] * 3


def test_an_actor_keeps_the_program_alive_until_it_is_stopped_as_in_pykka():
    result = run_python(
        ACTOR
        + """
    class Delayed(Echo):
        def on_receive(self, message):
            threading.main_thread().join()
            self.stop()
    Delayed.start().tell("go")
    print("main ends", flush=True)
    """
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["main ends", "stopped"]


def test_the_default_loop_is_made_anew_after_a_stop():
    first = TrioLoop.default()
    assert TrioLoop.default() is first
    first.stop()
    ref = Echo.start()
    assert ref.ask("hello", timeout=TIMEOUT_S) == "hello"
    assert ref._actor_weakref().actor_loop is TrioLoop.default() is not first
    TrioLoop.default().stop()


def test_an_actor_started_by_an_actor_lives_on_the_same_loop(loop):
    class Parent(TrioActor):
        def bear(self):
            return Echo.start()

    child = Parent.start(loop=loop).proxy().bear().get(timeout=TIMEOUT_S)
    assert child._actor_weakref().actor_loop is loop
