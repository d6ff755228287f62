"""Supervisors of actors of all kinds: what is decided in `children`, done on a loop, in threads and by messages."""

import logging
import threading
from enum import IntEnum
from types import SimpleNamespace

import pykka
import pytest
from drakkar.actors import NodeHost
from drakkar.actors.runtime import supervisor as supervisor_module
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.children import ChildPhase
from drakkar.actors.runtime.launching import StartTimedOut
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorDied, watch
from drakkar.actors.runtime.supervisor import ChildSpec, Supervisor, TooManyRestarts
from drakkar.actors.runtime.table_actor import TableActor
from drakkar.handlers.errors import ActorFailed, ConfigError, LoopError
from drakkar.handlers.table import HandlerTable

from tests.actors.runtime.support import TIMEOUT_S, TroubleError, wait_until
from tests.ports import free_addresses

QUICK = {"first_wait": 0.01, "last_wait": 0.05}


class Story:
    """What children did, in order; shared by their threads."""

    def __init__(self):
        self.lines = []
        self.refs = {}

    def __call__(self, line):
        self.lines.append(line)

    def publish(self, name, ref):
        self.refs[name] = ref


class _Child:
    """Does what the tests tell it, as an actor of whichever kind."""

    def __init__(self, story, name, fail=None, gate=None, **kwargs):
        super().__init__(**kwargs)
        self._story, self._name, self._fail, self._gate = story, name, fail, gate
        self._thread = None
        if fail == "constructor":
            raise TroubleError(name)
        if fail == "constructor hangs":
            gate.wait(TIMEOUT_S)

    def on_start(self):
        self._thread = threading.current_thread().name
        if self._fail == "on_start":
            raise TroubleError(self._name)
        if self._fail == "on_start hangs":
            self._gate.wait(TIMEOUT_S)
        self._story(f"+{self._name}")

    def on_receive(self, message):
        if message == "die":
            raise TroubleError(self._name)
        if isinstance(message, threading.Event):
            message.wait(TIMEOUT_S)
        return message

    def on_stop(self):
        self._story(f"-{self._name}")

    def thread(self):
        return self._thread


class Trio(_Child, TrioActor):
    pass


class Threaded(_Child, pykka.ThreadingActor):
    pass


class Light(IntEnum):
    RED = 0


class Button(IntEnum):
    BELL = 7


KINDS = [pytest.param(Trio, id="TrioActor"), pytest.param(Threaded, id="ThreadingActor")]


@pytest.fixture
def story():
    return Story()


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    pykka.ActorRegistry.stop_all()


def supervise(loop, story, kind, names="abc", *, failing=(), **options):
    specs = [
        ChildSpec(name, kind, (story, name, *((failing[name],) if name in failing else ())), publish=name)
        for name in names
    ]
    return Supervisor.start(specs, publish=story.publish, loop=loop, **{**QUICK, **options})


def up(ref):
    proxy = ref.proxy()
    assert proxy.ready(TIMEOUT_S).get(timeout=TIMEOUT_S) is True
    return proxy


def died(ref):
    """Wait for an actor's end, and return its notice."""
    notices, told = [], threading.Event()

    def note(notice):
        notices.append(notice)
        told.set()

    watch(ref, note)
    assert told.wait(TIMEOUT_S)
    return notices[0]


# -- what it starts and stops


@pytest.mark.parametrize("kind", KINDS)
def test_children_start_in_order_and_stop_in_reverse(loop, story, kind):
    ref = supervise(loop, story, kind)
    proxy = up(ref)
    assert story.lines == ["+a", "+b", "+c"]
    assert [status.phase for status in proxy.children().get(timeout=TIMEOUT_S).values()] == [
        ChildPhase.UP
    ] * 3
    assert list(story.refs) == ["a", "b", "c"], "published"
    assert ref.stop(timeout=TIMEOUT_S) is True
    assert story.lines[3:] == ["-c", "-b", "-a"]
    assert not ref.is_alive()


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_fails_is_started_again_and_published_again(loop, story, kind):
    proxy = up(supervise(loop, story, kind))
    first = proxy.ref_of("b").get(timeout=TIMEOUT_S)
    first.tell("die")
    assert isinstance(died(first).reason, TroubleError)
    wait_until(lambda: story.refs["b"] is not first)
    second = proxy.ref_of("b").get(timeout=TIMEOUT_S)
    assert story.refs["b"] is second
    assert second.ask("hello", timeout=TIMEOUT_S) == "hello"
    with pytest.raises(pykka.ActorDeadError):
        first.ask("hello", timeout=TIMEOUT_S)
    status = proxy.children().get(timeout=TIMEOUT_S)["b"]
    assert (status.restarts, type(status.reason)) == (1, TroubleError)
    assert story.lines == ["+a", "+b", "+c", "+b"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_strategies_hold_for_actors_of_all_kinds(loop, story, kind):
    proxy = up(supervise(loop, story, kind, strategy="rest_for_one"))
    proxy.ref_of("b").get(timeout=TIMEOUT_S).tell("die")
    wait_until(lambda: len(story.lines) == 6)
    up(proxy.actor_ref)
    assert story.lines == ["+a", "+b", "+c", "-c", "+b", "+c"]


def test_a_table_actor_is_a_child_like_any_other(loop):
    table = HandlerTable(Light)

    @table.on(Button.BELL, Light.RED)
    def ring(light, message):
        return "it rings"

    spec = ChildSpec("light", TableActor, kwargs={"handlers": table, "state": Light.RED})
    proxy = up(Supervisor.start([spec], loop=loop, **QUICK))
    ref = proxy.ref_of("light").get(timeout=TIMEOUT_S)
    assert ref.ask(SimpleNamespace(type=Button.BELL), timeout=TIMEOUT_S) == "it rings"


def test_what_a_child_starts_without_naming_a_loop_runs_on_that_of_its_supervisor(loop, story):
    specs = [
        ChildSpec("class", Trio, (story, "class")),
        ChildSpec("function", lambda: Trio.start(story, "function")),
    ]
    proxy = up(Supervisor.start(specs, loop=loop, **QUICK))
    for name in ("class", "function"):
        child = proxy.ref_of(name).get(timeout=TIMEOUT_S).proxy()
        assert child.thread().get(timeout=TIMEOUT_S) == loop.name
    assert TrioLoop.current() is None


def test_all_that_users_start_may_name_another_loop(loop, story):
    with TrioLoop() as other:
        proxy = up(Supervisor.start([ChildSpec("a", Trio, (story, "a"), {"loop": other})], loop=loop))
        child = proxy.ref_of("a").get(timeout=TIMEOUT_S).proxy()
        assert child.thread().get(timeout=TIMEOUT_S) == other.name
        proxy.actor_ref.stop(timeout=TIMEOUT_S)


# -- failures


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["constructor", "on_start"])
def test_a_start_that_fails_is_a_failure_and_the_limit_holds(loop, story, kind, where):
    ref = supervise(loop, story, kind, "ab", failing={"b": where}, max_restarts=2)
    notice = died(ref)
    assert isinstance(notice.reason, TooManyRestarts)
    assert "'b'" in str(notice.reason)
    assert story.lines == ["+a", "-a"], "the one that was up was stopped first"


@pytest.mark.parametrize("kind", KINDS)
def test_a_supervisor_that_gives_up_is_restarted_by_the_one_above_it(loop, story, kind):
    inner = ChildSpec(
        "inner",
        Supervisor,
        ([ChildSpec("leaf", kind, (story, "leaf"))],),
        {"max_restarts": 1, **QUICK},
    )
    proxy = up(Supervisor.start([inner], loop=loop, **QUICK))
    first = proxy.ref_of("inner").get(timeout=TIMEOUT_S)
    for _ in range(2):
        leaf = up(first).ref_of("leaf").get(timeout=TIMEOUT_S)
        leaf.tell("die")
        died(leaf)
    assert isinstance(died(first).reason, TooManyRestarts)
    second = proxy.ref_of("inner").get(timeout=TIMEOUT_S)
    assert second is not first
    assert up(second).ref_of("leaf").get(timeout=TIMEOUT_S).ask("hello", timeout=TIMEOUT_S) == "hello"


def test_what_fails_to_be_published_is_not_left_running(loop, story, caplog):
    refs = []

    def publish(name, ref):
        refs.append(ref)
        raise TroubleError("the name is taken")

    spec = ChildSpec("a", Trio, (story, "a"), publish="a")
    ref = Supervisor.start([spec], publish=publish, max_restarts=1, loop=loop, **QUICK)
    assert isinstance(died(ref).reason, TooManyRestarts)
    wait_until(lambda: not any(each.is_alive() for each in refs))
    assert len(refs) == 2


def test_a_function_that_returns_no_ref_is_a_failure_that_says_so(loop):
    ref = Supervisor.start([ChildSpec("a", lambda: 7)], max_restarts=0, loop=loop, **QUICK)
    cause = died(ref).reason.__cause__
    assert isinstance(cause, ConfigError)
    assert "must return the ref" in str(cause)


def test_an_exception_that_would_end_a_thread_ends_no_more_than_the_start(loop):
    def start():
        raise SystemExit(3)

    ref = Supervisor.start([ChildSpec("a", start)], max_restarts=1, loop=loop, **QUICK)
    assert isinstance(died(ref).reason.__cause__, SystemExit)
    assert loop.running


@pytest.mark.parametrize("kind", KINDS)
def test_a_permanent_child_that_another_stops_is_started_again_and_a_transient_one_is_not(loop, story, kind):
    specs = [
        ChildSpec("a", kind, (story, "a")),
        ChildSpec("b", kind, (story, "b"), restart="transient"),
    ]
    proxy = up(Supervisor.start(specs, loop=loop, **QUICK))
    refs = {name: proxy.ref_of(name).get(timeout=TIMEOUT_S) for name in "ab"}
    for ref in refs.values():
        ref.stop(timeout=TIMEOUT_S)
        died(ref)
    wait_until(lambda: proxy.children().get(timeout=TIMEOUT_S)["a"].restarts == 1)
    assert proxy.ref_of("a").get(timeout=TIMEOUT_S) is not refs["a"]
    wait_until(lambda: proxy.children().get(timeout=TIMEOUT_S)["b"].phase is ChildPhase.DOWN)
    with pytest.raises(pykka.ActorDeadError, match="it was stopped"):
        proxy.ref_of("b").get(timeout=TIMEOUT_S)


# -- what hangs


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.mark.parametrize(
    ("kind", "where"),
    [(Trio, "constructor hangs"), (Threaded, "constructor hangs"), (Threaded, "on_start hangs")],
)
def test_a_start_that_hangs_blocks_neither_the_loop_nor_its_siblings_and_is_a_failure(
    loop, story, gate, kind, where
):
    specs = [
        ChildSpec("slow", kind, (story, "slow", where, gate), start_timeout=0.2),
        ChildSpec("b", kind, (story, "b")),
    ]
    ref = Supervisor.start(specs, max_restarts=1, loop=loop, **QUICK)
    proxy = ref.proxy()
    assert proxy.ref_of("b", TIMEOUT_S).get(timeout=TIMEOUT_S).ask("hello", timeout=TIMEOUT_S) == "hello"
    reason = died(ref).reason
    assert isinstance(reason, TooManyRestarts)
    assert isinstance(reason.__cause__, ActorFailed)
    assert "did not start within 0.2 seconds" in str(reason.__cause__)
    assert loop.worst_lateness < TIMEOUT_S / 2


def test_an_actor_that_comes_too_late_is_stopped(loop, story, gate):
    spec = ChildSpec("slow", Trio, (story, "slow", "constructor hangs", gate), start_timeout=0.1)
    ref = Supervisor.start([spec], max_restarts=0, loop=loop, **QUICK)
    died(ref)
    gate.set()
    # Its constructor returns only now, so it is started, and stopped at once.
    wait_until(lambda: story.lines == ["+slow", "-slow"])


def test_a_publication_that_hangs_is_a_failure(loop, story, gate):
    spec = ChildSpec("a", Trio, (story, "a"), publish="a", start_timeout=0.1)
    ref = Supervisor.start(
        [spec], publish=lambda *_: gate.wait(TIMEOUT_S), max_restarts=0, loop=loop, **QUICK
    )
    assert "did not start within" in str(died(ref).reason)
    gate.set()
    wait_until(lambda: story.lines == ["+a", "-a"])


def test_a_child_that_does_not_stop_is_left_behind_with_an_error_and_the_others_stop(
    loop, story, gate, caplog
):
    specs = [
        ChildSpec("a", Threaded, (story, "a")),
        ChildSpec("stubborn", Threaded, (story, "stubborn"), stop_timeout=0.1),
    ]
    ref = Supervisor.start(specs, loop=loop, **QUICK)
    proxy = up(ref)
    proxy.ref_of("stubborn").get(timeout=TIMEOUT_S).tell(gate)
    assert ref.stop(timeout=TIMEOUT_S)
    assert "-a" in story.lines
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "'stubborn'" in error.getMessage()
    assert "left behind" in error.getMessage()


def test_a_child_that_does_not_stop_is_replaced_in_a_restart_and_counted(loop, story, gate):
    specs = [
        ChildSpec("a", Trio, (story, "a")),
        ChildSpec("stubborn", Threaded, (story, "stubborn"), stop_timeout=0.1),
    ]
    proxy = up(Supervisor.start(specs, strategy="all_for_one", loop=loop, **QUICK))
    old = proxy.ref_of("stubborn").get(timeout=TIMEOUT_S)
    old.tell(gate)
    proxy.ref_of("a").get(timeout=TIMEOUT_S).tell("die")
    wait_until(lambda: proxy.abandoned.get(timeout=TIMEOUT_S) == 1)
    assert proxy.ref_of("stubborn").get(timeout=TIMEOUT_S) is not old
    assert old.is_alive()


@pytest.fixture
def host():
    with NodeHost(*free_addresses(1)) as host:
        yield host


def test_one_that_is_left_behind_leaves_its_published_name_to_the_next(loop, story, gate, host):
    spec = ChildSpec("stubborn", Threaded, (story, "stubborn"), publish="stubborn", stop_timeout=0.1)
    proxy = up(Supervisor.start([spec], publish=host.publish, loop=loop, max_restarts=0, **QUICK))
    old = proxy.ref_of("stubborn").get(timeout=TIMEOUT_S)
    old.tell(gate)
    new = proxy.restart_child("stubborn").get(timeout=TIMEOUT_S)
    assert old.is_alive()
    assert host.published == {"stubborn": new}
    gate.set()
    wait_until(lambda: not old.is_alive())
    assert host.published == {"stubborn": new}


def test_one_that_fails_while_it_is_published_or_comes_too_late_leaves_its_name(loop, story, gate, host):
    def publish(name, ref):
        take_back = host.publish(name, ref)
        if len(story.lines) == 1:
            ref.tell(gate)  # it hangs from now on
            threading.Event().wait(0.2)
        return take_back

    spec = ChildSpec("a", Threaded, (story, "a"), publish="a", start_timeout=0.1)
    proxy = up(Supervisor.start([spec], publish=publish, loop=loop, max_restarts=1, **QUICK))
    assert story.lines == ["+a", "+a"], "the first one has not ended"
    assert host.published == {"a": proxy.ref_of("a").get(timeout=TIMEOUT_S)}


def test_a_name_that_cannot_be_taken_back_is_told_and_nothing_else_follows(loop, story, gate, caplog):
    def publish(name, ref):
        def take_back():
            raise TroubleError("mine")

        return take_back

    spec = ChildSpec("a", Threaded, (story, "a"), publish="a", stop_timeout=0.1)
    proxy = up(Supervisor.start([spec], publish=publish, loop=loop, **QUICK))
    old = proxy.ref_of("a").get(timeout=TIMEOUT_S)
    old.tell(gate)
    assert proxy.restart_child("a").get(timeout=TIMEOUT_S) is not old
    assert "could not be taken back" in caplog.text


# -- at run time


@pytest.mark.parametrize("kind", KINDS)
def test_children_are_added_stopped_and_restarted_by_proxy(loop, story, kind):
    proxy = up(supervise(loop, story, kind, "a"))
    ref = proxy.start_child(ChildSpec("b", kind, (story, "b"))).get(timeout=TIMEOUT_S)
    assert ref.ask("hello", timeout=TIMEOUT_S) == "hello"
    again = proxy.restart_child("b").get(timeout=TIMEOUT_S)
    assert again is not ref
    assert not ref.is_alive()
    proxy.stop_child("b").get(timeout=TIMEOUT_S)
    assert not again.is_alive()
    assert list(proxy.children().get(timeout=TIMEOUT_S)) == ["a"]
    assert story.lines == ["+a", "+b", "-b", "+b", "-b"]
    with pytest.raises(ConfigError, match="its children: a"):
        proxy.ref_of("b").get(timeout=TIMEOUT_S)


def test_a_child_whose_first_start_fails_is_told_to_the_one_who_adds_it_and_not_kept(loop, story):
    proxy = up(supervise(loop, story, Trio, "a", max_restarts=0))
    with pytest.raises(TroubleError):
        proxy.start_child(ChildSpec("b", Trio, (story, "b", "constructor"))).get(timeout=TIMEOUT_S)
    assert list(proxy.children().get(timeout=TIMEOUT_S)) == ["a"]


def test_a_call_that_is_refused_and_has_no_asker_does_not_end_the_supervisor(loop, story, caplog):
    proxy = up(supervise(loop, story, Trio, "a"))
    proxy.stop_child.defer("unknown")
    proxy.start_child.defer("no spec")
    assert list(proxy.children().get(timeout=TIMEOUT_S)) == ["a"]
    assert caplog.text.count("refused what had no asker") == 2


def test_answers_can_be_awaited_on_the_loop_itself(loop, story):
    proxy = up(supervise(loop, story, Trio, "a"))

    async def use():
        ref = await proxy.ref_of("a")
        return await ref.ask("hello", block=False)

    assert loop.call(use, timeout=TIMEOUT_S) == "hello"


# -- its end


def test_all_who_wait_are_answered_when_it_stops(loop, story, gate):
    spec = ChildSpec("slow", Threaded, (story, "slow", "on_start hangs", gate), start_timeout=0.3)
    ref = Supervisor.start([spec], loop=loop, **QUICK)
    proxy = ref.proxy()
    waiting = [proxy.ref_of("slow"), proxy.ready()]
    stops = [ref.stop(block=False) for _ in range(3)]
    for future in waiting:
        with pytest.raises(pykka.ActorDeadError):
            future.get(timeout=TIMEOUT_S)
    assert [stop.get(timeout=TIMEOUT_S) for stop in stops] == [True] * 3
    assert died(ref).reason is None


def test_it_starts_nothing_more_while_it_stops(loop, story, gate):
    specs = [ChildSpec("stubborn", Threaded, (story, "stubborn"), stop_timeout=0.5)]
    ref = Supervisor.start(specs, loop=loop, **QUICK)
    proxy = up(ref)
    proxy.ref_of("stubborn").get(timeout=TIMEOUT_S).tell(gate)
    stopped = ref.stop(block=False)
    with pytest.raises(pykka.ActorDeadError, match="is stopping"):
        proxy.start_child(ChildSpec("b", Trio, (story, "b"))).get(timeout=TIMEOUT_S)
    assert stopped.get(timeout=TIMEOUT_S)


def test_its_loop_stops_it_with_its_children(story):
    loop = TrioLoop().start()
    ref = supervise(loop, story, Trio)
    up(ref)
    loop.stop(TIMEOUT_S)
    assert not ref.is_alive()
    assert sorted(story.lines[3:]) == ["-a", "-b", "-c"]


def test_pykkas_stop_all_ends_it_and_its_children(loop, story):
    ref = supervise(loop, story, Threaded)
    up(ref)
    pykka.ActorRegistry.stop_all(timeout=TIMEOUT_S)
    wait_until(lambda: not pykka.ActorRegistry.get_all())
    assert not ref.is_alive()


def test_a_supervisor_that_fails_itself_leaves_no_child_running(loop, story, monkeypatch):
    ref = supervise(loop, story, Threaded)
    proxy = up(ref)
    children = [proxy.ref_of(name).get(timeout=TIMEOUT_S) for name in "abc"]

    def fail(*_):
        raise TroubleError("a bug")

    monkeypatch.setattr(supervisor_module.Family, "next_time", fail)
    ref.tell("a turn")
    assert isinstance(died(ref).reason, TroubleError)
    wait_until(lambda: not any(child.is_alive() for child in children))


def test_its_loop_must_run(story):
    loop = TrioLoop()
    with pytest.raises(LoopError):
        Supervisor.start([ChildSpec("a", Trio, (story, "a"))], loop=loop)


# -- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "simple"}, "strategy"),
        ({"max_restarts": -1}, "max_restarts"),
        ({"publish": 7}, "publish"),
        ({"children": 7}, "children"),
        ({"children": [7]}, "a ChildSpec"),
        ({"children": [ChildSpec("a", Trio), ChildSpec("a", Trio)]}, "already"),
        ({"children": [ChildSpec("a", Trio, publish="a")]}, "publish=host.publish"),
    ],
)
def test_options_are_checked_in_the_thread_that_starts_it(loop, options, words):
    with pytest.raises(ConfigError, match=words):
        Supervisor.start(**{"children": (), **options}, loop=loop)


def test_a_notice_of_a_stranger_changes_nothing(loop, story):
    ref = supervise(loop, story, Trio, "a")
    proxy = up(ref)
    with TrioLoop() as other:
        stranger = Trio.start(story, "stranger", loop=other)
        ref.tell(ActorDied(stranger, TroubleError("mine")))
        assert list(proxy.children().get(timeout=TIMEOUT_S)) == ["a"]


def test_a_start_timeout_names_the_actor_that_was_left_behind():
    error = StartTimedOut("it hangs")
    assert error.ref is None
    assert not error.outcome_known
