"""The loop, and the actors that live on it."""

import contextlib
import logging
import queue
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from importlib import metadata
from types import SimpleNamespace

import pykka
import pytest
import trio
import trio.lowlevel
from drakkar.actors.runtime import actor as trio_actor
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import watch
from drakkar.actors.runtime.scheduler import Scheduler
from drakkar.handlers.errors import ActorFailed, ConfigError, DeadlockError, LoopError, SystemBusy
from pykka._envelope import Envelope

TIMEOUT_S = 10  # seconds after which a test is stuck


class TroubleError(Exception):
    pass


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.001)


class Echo(TrioActor):
    def on_receive(self, message):
        return message


class Recorder(TrioActor):
    """Writes down what it is told, in a list that the test holds."""

    def __init__(self, seen, **kwargs):
        super().__init__(**kwargs)
        self._seen = seen

    def on_receive(self, message):
        self._seen.append(message)
        return len(self._seen)


class Gate:
    """Something a handler can be held up at, on purpose: it blocks the whole loop."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self):
        self.reached.set()
        assert self.opened.wait(TIMEOUT_S)


class Held(Echo):
    def on_receive(self, message):
        if isinstance(message, Gate):
            message.pass_through()
        return message


@pytest.fixture
def loop():
    with TrioLoop() as loop:
        yield loop


@pytest.fixture
def held(loop):
    """An actor that holds the loop up, so that the test can fill inboxes at leisure; and what lets it go on."""
    gate = Gate()
    Held.start(loop=loop).tell(gate)
    assert gate.reached.wait(TIMEOUT_S)
    yield gate
    gate.opened.set()


# The life of a loop


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


def test_stop_stops_actors_newest_first_each_after_its_messages_and_then_cancels_the_tasks(monkeypatch):
    monkeypatch.setattr("drakkar.actors.runtime.scheduler._ROUND_S", 1e-9)  # one turn between two checkpoints

    class Last(Recorder):
        batch = 1  # so that the newest, with twenty-one messages, needs as many turns

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
        (2, ["told"] * 21 + ["stopped"]),
        (1, ["told"] * 11 + ["stopped"]),
        (0, ["told", "stopped"]),
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


# Functions and tasks


def test_functions_run_soon_in_order_and_a_failing_one_is_logged(loop, caplog):
    seen = []
    loop.run_soon(seen.append, 1)
    loop.run_soon(lambda: 1 / 0)
    loop.run_soon(sys.exit, 3)
    loop.run_soon(seen.append, 2)
    assert loop.call(lambda: list(seen), timeout=TIMEOUT_S) == [1, 2]
    assert loop.crashes == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


@pytest.mark.parametrize("value", [5, None])
def test_call_returns_what_sync_and_async_functions_return(loop, value):
    async def later():
        await trio.lowlevel.checkpoint()
        return value

    future = ActorFuture()
    future.set(value)
    assert loop.call(lambda: value) is value
    assert loop.call(later) is value
    assert loop.call(lambda: future) is value


def test_call_raises_what_the_function_raises_and_that_is_no_crash(loop, caplog):
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda: 1 / 0)
    with pytest.raises(ActorFailed, match="SystemExit"):
        loop.call(sys.exit)
    assert loop.crashes == 0
    assert caplog.records == []
    assert loop.running


def test_a_call_that_takes_too_long_is_cancelled(loop):
    cancelled = threading.Event()

    async def forever():
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    with pytest.raises(pykka.Timeout):
        loop.call(forever, timeout=0.01)
    assert cancelled.wait(TIMEOUT_S)


def test_a_call_that_the_stop_interrupts_is_told_so():
    loop, begun, told = TrioLoop().start(), threading.Event(), []

    async def forever():
        begun.set()
        await trio.sleep_forever()

    def call():
        try:
            loop.call(forever)
        except LoopError as error:
            told.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    assert begun.wait(TIMEOUT_S)
    loop.stop()
    caller.join(TIMEOUT_S)
    assert "stopped before" in told[0]


def test_call_in_a_loops_own_thread_raises_at_once(loop):
    with pytest.raises(DeadlockError, match="use spawn"):
        loop.call(lambda: loop.call(int))


def test_a_task_finishes_with_what_its_function_returned(loop):
    async def add(a, b):
        await trio.lowlevel.checkpoint()
        return a + b

    task = loop.spawn(add, 1, 2, name="adder")
    assert task.finished.get(timeout=TIMEOUT_S) == 3
    assert not task.cancelled
    assert "adder" in repr(task)
    assert loop.call(lambda: loop.spawn(add, 3, 4).finished, timeout=TIMEOUT_S) == 7


@pytest.mark.parametrize("error", [TroubleError("mine"), SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_crashes_is_reported_and_ends_no_other(loop, caplog, error):
    async def crash():
        await trio.lowlevel.checkpoint()
        raise error

    told = []
    other = loop.spawn(trio.sleep_forever)
    task = loop.spawn(crash, on_crash=told.append)
    with pytest.raises(TroubleError if isinstance(error, Exception) else ActorFailed) as caught:
        task.finished.get(timeout=TIMEOUT_S)
    assert error in {caught.value, caught.value.__cause__}
    assert loop.call(lambda: (told, loop.crashes)) == ([error], 1)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert not other.finished.done
    assert loop.running


def test_a_cancelled_task_finishes_with_none(loop):
    task = loop.spawn(trio.sleep_forever)
    task.cancel()
    assert task.finished.get(timeout=TIMEOUT_S) is None
    assert task.cancelled
    task.cancel()
    assert loop.crashes == 0


def test_a_task_awaits_an_actor_while_other_tasks_go_on(loop):
    async def ask():
        return await ref.ask("hello", block=False)

    ref = Echo.start(loop=loop)
    assert loop.call(ask, timeout=TIMEOUT_S) == "hello"


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


def test_a_turn_that_keeps_the_loop_for_long_is_named_in_the_log(loop, caplog, monkeypatch):
    monkeypatch.setattr("drakkar.actors.runtime.scheduler._SLOW_TURN_S", 0)
    Echo.start(loop=loop).ask("hello", timeout=TIMEOUT_S)
    # The turn ends, and is named, after it has answered.
    wait_until(lambda: any("Echo" in text and "kept the thread" in text for text in caplog.messages))


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


# What pykka users know


class Station(TrioActor):
    volume = 3

    def __init__(self, name, **kwargs):
        super().__init__(**kwargs)
        self.name = name
        self.player = pykka.traversable(Player())
        self.threads = []

    def on_start(self):
        self.threads.append(threading.current_thread())

    def rename(self, name, *, shout=False):
        self.name = name.upper() if shout else name
        self.threads.append(threading.current_thread())

    def fail(self):
        raise TroubleError("as asked")


class Player:
    def __init__(self):
        self.song = None

    def play(self, song):
        self.song = song
        return f"playing {song}"


def test_proxies_reach_attributes_methods_and_traversable_objects(loop):
    station = Station.start("one", loop=loop).proxy()
    assert station.name.get(timeout=TIMEOUT_S) == "one"
    assert station.rename("two", shout=True).get(timeout=TIMEOUT_S) is None
    assert station.name.get(timeout=TIMEOUT_S) == "TWO"
    station.volume = 11
    assert station.volume.get(timeout=TIMEOUT_S) == 11
    assert station.player.play("song").get(timeout=TIMEOUT_S) == "playing song"
    assert station.player.song.get(timeout=TIMEOUT_S) == "song"
    station.rename.defer("three")
    assert station.name.get(timeout=TIMEOUT_S) == "three"
    with pytest.raises(TroubleError, match="as asked"):
        station.fail().get(timeout=TIMEOUT_S)
    assert {thread.name for thread in station.threads.get(timeout=TIMEOUT_S)} == {loop.name}


@pytest.mark.parametrize("message", ["text", None, 0, {"a": [1]}])
def test_what_is_asked_is_answered(loop, message):
    ref = Echo.start(loop=loop)
    assert ref.ask(message, timeout=TIMEOUT_S) == message
    assert ref.ask(message, block=False).get(timeout=TIMEOUT_S) == message


def test_messages_are_handled_in_order(loop):
    seen = []
    ref = Recorder.start(seen, loop=loop)
    for number in range(5000):
        ref.tell(number)
    assert ref.ask("last", timeout=TIMEOUT_S) == 5001
    assert seen[:-1] == list(range(5000))


def test_messages_that_were_sent_before_the_start_wait_for_it(loop):
    class Eager(Recorder):
        def __init__(self, seen, **kwargs):
            super().__init__(seen, **kwargs)
            self.actor_ref.tell("from the constructor")

        def on_start(self):
            self._seen.append("started")

    seen = []
    Eager.start(seen, loop=loop).ask("asked", timeout=TIMEOUT_S)
    assert seen == ["started", "from the constructor", "asked"]


def test_the_registry_knows_them_and_stop_all_stops_the_newest_first(loop):
    class Named(Recorder):
        def on_stop(self):
            self._seen.append(self.actor_urn)

    seen = []
    refs = [Named.start(seen, loop=loop) for _ in range(3)]
    assert pykka.ActorRegistry.get_by_class(Named) == refs
    assert pykka.ActorRegistry.get_by_urn(refs[1].actor_urn) is refs[1]
    assert pykka.ActorRegistry.stop_all(timeout=TIMEOUT_S) == [True] * 3
    assert seen == [ref.actor_urn for ref in reversed(refs)]
    assert pykka.ActorRegistry.get_all() == []


def test_broadcast_reaches_them(loop):
    seen = []
    refs = [Recorder.start(seen, loop=loop) for _ in range(3)]
    pykka.ActorRegistry.broadcast("all", Recorder)
    for ref in refs:
        ref.ask("done", timeout=TIMEOUT_S)
    assert seen.count("all") == 3


def test_stop_returns_true_once_and_false_for_the_dead(loop):
    ref = Echo.start(loop=loop)
    assert ref.stop(timeout=TIMEOUT_S) is True
    assert not ref.is_alive()
    assert ref.stop(timeout=TIMEOUT_S) is False
    assert ref.stop(block=False).get(timeout=TIMEOUT_S) is False


def test_messages_before_a_stop_are_handled_and_those_after_it_are_refused(loop, held):
    seen = []
    ref = Recorder.start(seen, loop=loop)
    before = ref.ask("before", block=False)
    stops = [ref.stop(block=False), ref.stop(block=False)]
    after = ref.ask("after", block=False)
    ref.tell("lost")
    held.opened.set()
    assert before.get(timeout=TIMEOUT_S) == 1
    assert [stop.get(timeout=TIMEOUT_S) for stop in stops] == [True, True]
    with pytest.raises(pykka.ActorDeadError, match="before handling"):
        after.get(timeout=TIMEOUT_S)
    assert seen == ["before"]
    assert loop.dead_letters == 1


def test_a_stopped_actor_takes_nothing(loop):
    ref = Echo.start(loop=loop)
    ref.stop()
    with pytest.raises(pykka.ActorDeadError, match=r"Echo .* has ended"):
        ref.tell("too late")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("too late")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("too late", block=False).get(timeout=TIMEOUT_S)


def test_pykkas_own_actors_and_these_talk_to_each_other(loop):
    class Threaded(pykka.ThreadingActor):
        def on_receive(self, message):
            return mine.ask(message, timeout=TIMEOUT_S)

    mine = Echo.start(loop=loop)
    theirs = Threaded.start()
    assert theirs.ask("hello", timeout=TIMEOUT_S) == "hello"

    async def ask():
        return await trio.to_thread.run_sync(theirs.ask, "from a task")

    assert loop.call(ask, timeout=TIMEOUT_S) == "from a task"
    theirs.stop()


def test_an_unexpected_message_is_logged_without_its_content(loop, caplog):
    class Huge:
        def __repr__(self):
            raise AssertionError("the whole state machine")

    class Deaf(TrioActor):
        pass

    assert Deaf.start(loop=loop).ask(Huge(), timeout=TIMEOUT_S) is None
    assert "unexpected message for Deaf" in caplog.text
    assert "a test_an_unexpected" in caplog.text


def test_a_constructor_that_forgets_ours_is_told_so(loop):
    class Forgetful(TrioActor):
        def __init__(self):
            pass

    with pytest.raises(AssertionError, match="forget to call super"):
        Forgetful.start()


@pytest.mark.parametrize(
    ("attributes", "options", "named"),
    [
        ({"inbox_capacity": 0}, {}, "Wrong.inbox_capacity=0"),
        ({"batch": 0}, {}, "Wrong.batch=0"),
        ({}, {"loop": "mine"}, "loop="),
    ],
)
def test_wrong_options_are_named(attributes, options, named):
    wrong = type("Wrong", (TrioActor,), attributes)
    with pytest.raises(ConfigError, match=named):
        wrong.start(**options)


def test_what_is_used_of_pykka_below_its_surface_is_as_it_was_seen():
    """If this fails with a new pykka, read its _actor.py, _ref.py and _envelope.py before you change it."""
    assert metadata.version("pykka").startswith("4.5.")
    trio_actor._check_pykka()
    names = {
        pykka.Actor.__init__: {
            "ActorRef",
            "_actor_ref",
            "_create_actor_inbox",
            "actor_inbox",
            "actor_stopped",
        },
        pykka.Actor.start.__func__: {"ActorRegistry", "actor_ref", "_start_actor_loop"},
        pykka.Actor._handle_receive: {"ProxyCall", "ProxyGetAttr", "ProxySetAttr", "on_receive"},
        pykka.Actor._handle_failure: {"ActorRegistry", "actor_stopped", "error"},
        pykka.ActorRef.ask: {"_create_future", "is_alive", "set_exception", "actor_inbox", "put", "Envelope"},
    }
    for function, expected in names.items():
        assert expected <= set(function.__code__.co_names), function
    assert Envelope.__slots__ == ["message", "reply_to"]
    assert issubclass(Station, pykka.Actor)
    assert isinstance(Inbox("mine", 1).termination.end, pykka.Future)


# Waiting in the loop's own thread


@pytest.mark.parametrize("wait", ["ask", "stop", "get", "proxy"])
def test_a_handler_that_would_wait_for_an_actor_of_its_loop_gets_an_error_at_once(loop, wait):
    class Impatient(TrioActor):
        def on_receive(self, ref):
            if wait == "ask":
                ref.ask("me", timeout=TIMEOUT_S)
            elif wait == "stop":
                ref.stop(timeout=TIMEOUT_S)
            elif wait == "get":
                ref.ask("me", block=False).get(timeout=TIMEOUT_S)
            else:
                ref.proxy().volume = 3

    seen = []
    ref = Recorder.start(seen, loop=loop)
    with pytest.raises(DeadlockError, match="whose thread must do what is waited for"):
        Impatient.start(loop=loop).ask(ref, timeout=TIMEOUT_S)
    assert ref.ask("still there", timeout=TIMEOUT_S) == (2 if wait == "get" else 1), (
        "nothing was sent in vain"
    )


# Turns


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


# Full inboxes


class Small(Echo):
    inbox_capacity = 3


def test_a_full_inbox_refuses_at_once_and_names_actor_and_bound(loop, held):
    ref = Small.start(loop=loop)
    for _ in range(3):
        ref.tell("x")
    for send in (ref.tell, ref.ask, lambda _: ref.proxy().batch):
        with pytest.raises(SystemBusy, match=r"inbox of Small .* holds 3 messages, and its bound is 3"):
            send("one too many")
    assert ref.actor_inbox.refused == 3
    held.opened.set()
    assert ref.stop(timeout=TIMEOUT_S)


def test_a_full_inbox_still_takes_a_stop(loop, held):
    ref = Small.start(loop=loop)
    answers = [ref.ask(number, block=False) for number in range(3)]
    stopped = ref.stop(block=False)
    held.opened.set()
    assert stopped.get(timeout=TIMEOUT_S) is True
    assert [answer.get(timeout=TIMEOUT_S) for answer in answers] == [0, 1, 2]


def test_room_comes_back_when_messages_are_handled(loop, held):
    ref = Small.start(loop=loop)
    answers = [ref.ask(number, block=False) for number in range(3)]
    held.opened.set()
    pykka.get_all(answers, timeout=TIMEOUT_S)
    assert ref.ask("again", timeout=TIMEOUT_S) == "again"


def test_a_hundred_thousand_questions_without_reading_an_answer_end_in_busy_and_not_in_a_deadlock(loop):
    ref, futures, busy = Echo.start(loop=loop), [], 0
    for number in range(100_000):
        try:
            futures.append(ref.ask(number, block=False))
        except SystemBusy:
            busy += 1
    assert len(pykka.get_all(futures, timeout=TIMEOUT_S)) + busy == 100_000


def test_the_inbox_answers_what_pykka_asks_of_one():
    inbox = Inbox("mine", 2)
    assert inbox.empty()
    inbox.put(Envelope("hello"))
    assert (len(inbox), inbox.empty()) == (1, False)
    assert "1 of 2" in repr(inbox)
    assert inbox.get().message == "hello"
    with pytest.raises(queue.Empty):
        inbox.get()


# Races, acted out


class Meddled(deque):
    """A queue into which another thread puts something at the very moment that it is found empty."""

    def __init__(self, meddle):
        super().__init__()
        self.meddle = [meddle]

    def __bool__(self):
        empty = len(self) == 0
        if empty and self.meddle:
            self.meddle.pop()()
        return not empty


def test_a_message_that_comes_as_the_turn_ends_is_not_overlooked():
    scheduled = []
    inbox = Inbox("mine", 10)
    inbox.queue = Meddled(lambda: inbox.put(Envelope("late")))
    inbox._give_turn = lambda: scheduled.append(inbox)
    inbox.rest()
    assert scheduled == [inbox]


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


def test_a_question_that_is_put_after_the_inbox_was_emptied_for_the_last_time_is_answered(loop):
    ref = Echo.start(loop=loop)
    ref.stop()
    question = Envelope("late", reply_to=ActorFuture())
    ref.actor_inbox.put(question)
    with pytest.raises(pykka.ActorDeadError, match="has ended"):
        question.reply_to.get(timeout=0)
    with pytest.raises(pykka.ActorDeadError, match="has ended"):
        ref.actor_inbox.put(Envelope("late"))
    assert ref.actor_inbox.empty()


# Many


def test_ten_thousand_actors_live_on_one_thread(loop):
    before = threading.active_count()
    refs = [Echo.start(loop=loop) for _ in range(10_000)]
    answers = [ref.ask(number, block=False) for number, ref in enumerate(refs)]
    assert pykka.get_all(answers, timeout=60) == list(range(10_000))
    assert threading.active_count() <= before
    loop.stop(timeout=60)
    assert pykka.ActorRegistry.get_all() == []


def test_ten_thousand_starts_and_stops_leave_nothing(loop):
    threads = threading.active_count()
    for _ in range(10_000):
        ref = Echo.start(loop=loop)
        ref.tell("hello")
        stopped = ref.stop(block=False)
    assert stopped.get(timeout=60)
    assert threading.active_count() <= threads
    assert loop._actors == {}
    assert not loop._scheduler.ready
    assert loop.deaths == 0
    assert loop.dead_letters == 0


def test_a_dead_actor_is_freed_without_the_garbage_collector(loop):
    ref = Echo.start(loop=loop)
    weak = ref._actor_weakref
    ref.stop()
    loop.call(int)
    assert weak() is None


def test_every_future_resolves_when_eight_threads_ask_while_the_actor_stops(loop):
    for _ in range(20):
        ref, start, futures = Echo.start(loop=loop), threading.Barrier(9), [[] for _ in range(8)]

        def storm(mine, ref=ref, start=start):
            start.wait(TIMEOUT_S)
            while ref.is_alive():
                with contextlib.suppress(SystemBusy):
                    mine.append(ref.ask("hello", block=False))
            mine += [ref.ask("late", block=False) for _ in range(10)]

        threads = [threading.Thread(target=storm, args=(mine,)) for mine in futures]
        for thread in threads:
            thread.start()
        start.wait(TIMEOUT_S)
        assert ref.stop(timeout=TIMEOUT_S)
        for thread in threads:
            thread.join(TIMEOUT_S)
        for future in (future for mine in futures for future in mine):
            with contextlib.suppress(pykka.ActorDeadError):
                assert future.get(timeout=TIMEOUT_S) == "hello"
        assert ref.actor_inbox.empty()
