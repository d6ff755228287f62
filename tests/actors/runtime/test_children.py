"""What follows when a supervisor's child ends: the strategies, the order, the waits and the limit, in time that is made up."""

import math
from random import Random

import pykka
import pytest
from drakkar.actors.runtime.child_specs import ChildSpec, Limits
from drakkar.actors.runtime.children import (
    MAX_CHILDREN,
    MAX_LEFT,
    ChildPhase,
    Family,
    TooManyRestarts,
)
from drakkar.actors.runtime.futures import ActorFuture, AnswerLater
from drakkar.actors.runtime.incarnation import START_GRACE_S
from drakkar.actors.runtime.launching import StartTimedOut
from drakkar.handlers.errors import ConfigError, SystemBusy

from tests.actors.runtime.support import Latest, Ref, TroubleError

DOWN, STARTING, UP = ChildPhase.DOWN, ChildPhase.STARTING, ChildPhase.UP
MINE = TroubleError("mine")


class World:
    """A family, its hands, and the time."""

    def __init__(self, names="abc", *, strategy="one_for_one", specs=None, at_once=True, **limits):
        self.now = 0.0
        self.at_once = at_once
        """Starts and stops are done at once."""
        self.done = []
        """What was begun, in order: "+a1" is the first start of a, "-a1" the stop of that."""
        self.starts, self.stops, self.numbers = {}, {}, {}
        self.abandoned, self.watched, self.lines = [], set(), []
        self.left = []
        """Those whose names were taken away."""
        self.family = Family("the supervisor", strategy, Limits(**limits), self, random=Latest())
        for name in names:
            self.family.add((specs or {}).get(name) or spec(name))
        self.proceed()

    # -- its hands

    def start(self, spec):
        name = spec.name
        number = self.numbers[name] = self.numbers.get(name, 0) + 1
        self.done.append(f"+{name}{number}")
        self.starts[name] = future = ActorFuture()
        if self.at_once:
            future.set(Ref(name, number))
        return future

    def stop(self, ref):
        self.done.append(f"-{ref}")
        self.stops[ref.actor_urn] = future = ActorFuture()
        if self.at_once:
            ref.alive = False
            future.set(None)
        return future

    def abandon(self, started):
        self.abandoned.append(started)

    def leave(self, ref):
        self.left.append(ref.actor_urn)

    def watch(self, ref):
        self.watched.add(ref.actor_urn)

    def unwatch(self, ref):
        self.watched.discard(ref.actor_urn)

    def tell(self, level, text, *args):
        self.lines.append(text % args)

    # -- what happens to it

    def proceed(self, seconds=0.0):
        """Let time pass, and all be done that follows."""
        until = self.now + seconds
        while True:
            before = len(self.done)
            for _ in range(20):
                self.family.proceed(self.now)
            due = self.family.next_time(self.now)
            if len(self.done) == before and due > until:
                self.now = until
                self.family.proceed(self.now)
                return self.take()
            if len(self.done) == before:
                self.now = max(self.now, due)

    def take(self):
        done, self.done = self.done, []
        return done

    def child(self, name):
        return self.family.children[name]

    def phases(self):
        return {name: child.phase for name, child in self.family.children.items()}

    def die(self, name, error=MINE):
        ref = self.child(name).ref
        ref.alive = False
        self.family.on_died(ref, error, self.now)

    def ref(self, name, timeout=math.inf):
        asker = AnswerLater()
        self.family.ask_ref(name, asker, self.now + timeout)
        return asker


def spec(name, **options):
    return ChildSpec(name, pykka.ThreadingActor, **options)


# -- starts


def test_children_start_in_order_each_when_the_one_before_it_is_up():
    world = World(at_once=False, strategy="rest_for_one")
    assert world.proceed() == []
    assert list(world.starts) == ["a"]
    for name, following in (("a", ["+b1"]), ("b", ["+c1"]), ("c", [])):
        world.starts[name].set(Ref(name, 1))
        assert world.proceed() == following
    assert set(world.phases().values()) == {UP}
    assert world.watched == {"a1", "b1", "c1"}


def test_a_first_start_that_fails_holds_up_none_of_those_that_depend_on_no_other():
    world = World(at_once=False)
    world.starts["a"].fail(TroubleError("mine"))
    assert world.proceed() == ["+b1"]
    assert world.phases() == {"a": DOWN, "b": STARTING, "c": DOWN}


@pytest.mark.parametrize("strategy", ["all_for_one", "rest_for_one"])
def test_those_that_depend_on_others_wait_until_these_are_up(strategy):
    world = World(at_once=False, strategy=strategy)
    world.starts["a"].fail(TroubleError("mine"))
    assert world.proceed() == []
    assert world.proceed(0.1) == ["+a2"]
    world.starts["a"].set(Ref("a", 2))
    assert world.proceed() == ["+b1"]


def test_who_asks_for_one_that_has_died_waits_for_the_next_though_the_supervisor_has_not_heard():
    world = World("a")
    world.child("a").ref.alive = False
    asker = world.ref("a")
    world.proceed()
    assert not asker.done
    world.die("a")
    world.proceed(1)
    assert asker.get().actor_urn == "a2"


# -- the strategies


@pytest.mark.parametrize(
    ("strategy", "follows"),
    [
        pytest.param("one_for_one", ["+b2"], id="that one"),
        pytest.param("all_for_one", ["-c1", "-a1", "+a2", "+b2", "+c2"], id="all, the newest stopped first"),
        pytest.param("rest_for_one", ["-c1", "+b2", "+c2"], id="that one and those after it"),
    ],
)
def test_what_is_restarted_when_one_fails(strategy, follows):
    world = World(strategy=strategy)
    world.die("b")
    assert world.proceed(1) == follows
    assert set(world.phases().values()) == {UP}


def test_stops_come_one_after_the_other_and_starts_after_all_stops():
    world = World(strategy="all_for_one")
    world.at_once = False
    world.die("a")
    assert world.proceed(0.2) == ["-c1"], "the wait is over, and yet nothing starts"
    world.stops["c1"].set(None)
    assert world.proceed() == ["-b1"]
    world.stops["b1"].set(None)
    assert world.proceed() == ["+a2"]


def test_one_that_dies_while_it_waits_to_be_stopped_is_no_failure_of_its_own():
    world = World(strategy="all_for_one", max_restarts=1)
    world.at_once = False
    world.die("a")
    world.proceed()
    world.die("b")
    world.stops["c1"].set(None)
    assert world.proceed(0.2) == ["+a2"]
    assert world.family.failure is None


def test_one_that_dies_during_the_restart_of_others_begins_it_anew():
    world = World("abc", strategy="rest_for_one")
    world.at_once = False
    world.die("b")
    assert world.proceed() == ["-c1"]
    world.stops["c1"].set(None)
    assert world.proceed(0.2) == ["+b2"]
    world.die("a")
    world.starts["b"].set(Ref("b", 2))
    assert world.proceed() == ["-b2"], "what it depends on is gone"
    world.stops["b2"].set(None)
    assert world.proceed(0.4) == ["+a2"]


@pytest.mark.parametrize(
    ("restart", "error", "again"),
    [
        ("permanent", TroubleError("mine"), True),
        ("permanent", None, True),
        ("transient", TroubleError("mine"), True),
        ("transient", None, False),
        ("temporary", TroubleError("mine"), False),
        ("temporary", None, False),
    ],
)
def test_which_child_is_started_again(restart, error, again):
    world = World("a", specs={"a": spec("a", restart=restart)})
    world.die("a", error)
    assert world.proceed(1) == (["+a2"] if again else [])
    assert ("a" in world.family.children) == (restart != "temporary")


def test_a_temporary_child_is_not_restarted_with_others():
    world = World("ab", strategy="all_for_one", specs={"b": spec("b", restart="temporary")})
    world.die("a")
    assert world.proceed(1) == ["-b1", "+a2"]
    assert list(world.family.children) == ["a"]


# -- waits and limits


def test_each_failure_doubles_the_wait_up_to_the_longest():
    world = World("a", max_restarts=100, first_wait=1.0, last_wait=6.0)
    waits = []
    for _ in range(5):
        began = world.now
        world.die("a")
        while not world.proceed(0.25):
            pass
        waits.append(world.now - began)
    assert waits == [1.0, 2.0, 4.0, 6.0, 6.0]


def test_a_child_that_was_up_for_a_window_begins_with_the_shortest_wait():
    world = World("a", first_wait=1.0, window=10.0)
    for number in (2, 3, 4):
        world.die("a")
        assert world.proceed(0.9) == []
        assert world.proceed(0.2) == [f"+a{number}"]
        world.proceed(10.0)


def test_waits_are_cut_at_random_so_that_not_all_come_back_at_once():
    world = World("")
    world.family._random = Random(1)
    world.family.add(spec("a"))
    world.proceed()
    waits = set()
    for _ in range(4):
        world.family._restarts.clear()
        world.child("a").backoff.reset()
        world.die("a")
        waits.add(world.child("a").due - world.now)
        world.proceed(1)
    assert len(waits) == 4
    assert all(0.05 <= wait <= 0.1 for wait in waits)


def test_as_many_restarts_as_are_allowed_are_made_and_then_all_are_stopped_and_the_reason_is_told():
    world = World("ab", max_restarts=2, window=10.0, first_wait=0.0, last_wait=0.0)
    error = TroubleError("the last")
    world.take()
    world.die("a")
    assert world.proceed(1) == ["+a2"]
    world.die("b")
    assert world.proceed(1) == ["+b2"]
    world.die("a", error)
    assert world.proceed(1) == ["-b2"]
    assert world.family.over
    assert isinstance(world.family.failure, TooManyRestarts)
    assert world.family.failure.__cause__ is error
    assert "3 times within 10.0 seconds" in str(world.family.failure)
    assert "'a': TroubleError: the last" in str(world.family.failure)


def test_what_failed_before_the_window_does_not_count():
    world = World("a", max_restarts=1, window=10.0, first_wait=0.0, last_wait=0.0)
    for _ in range(5):
        world.die("a")
        world.proceed(10.0)
    assert world.family.failure is None


def test_starts_that_fail_count_as_failures():
    world = World("a", at_once=False, max_restarts=2, first_wait=0.0, last_wait=0.0)
    for _ in range(3):
        world.starts["a"].fail(TroubleError("mine"))
        world.proceed()
    assert isinstance(world.family.failure, TooManyRestarts)


# -- what hangs


def test_a_start_that_hangs_is_given_up_and_what_comes_of_it_is_unwanted():
    world = World("a", at_once=False, specs={"a": spec("a", start_timeout=2.0)})
    hanging = world.starts["a"]
    assert world.proceed(1.9 + START_GRACE_S) == []
    assert world.abandoned == []
    assert world.proceed(0.3) == ["+a2"]
    assert world.abandoned == [hanging]
    assert world.family.abandoned == 1
    assert "did not start within 2.0 seconds" in str(world.child("a").reason)


def test_an_actor_that_does_not_stop_is_left_behind_and_the_others_follow():
    world = World("ab", strategy="all_for_one", specs={"b": spec("b", stop_timeout=2.0)})
    world.at_once = False
    world.die("a")
    assert world.proceed(1.9) == ["-b1"]
    assert world.left == []
    assert world.proceed(0.2) == ["+a2"]
    assert world.left == ["b1"], "its name is for the next one"
    assert world.family.abandoned == 1
    assert any("left behind" in line for line in world.lines)


def test_one_whose_stop_is_never_answered_but_that_has_ended_was_not_left_behind():
    """pykka's own actors may lose the request when they end at that moment."""
    world = World("a")
    world.at_once = False
    world.family.remove("a", AnswerLater())
    ref = world.child("a").ref
    world.proceed()
    ref.alive = False
    world.proceed(10)
    assert world.family.children == {}
    assert world.family.abandoned == 0


def test_children_of_a_supervisor_that_has_failed_are_waited_for_by_none_and_lose_their_names():
    world = World("ab", at_once=True)
    world.family.let_go(MINE)
    assert world.take() == ["-a1", "-b1"]
    assert world.left == ["a1", "b1"]


def test_beside_too_many_that_hang_no_more_are_started():
    """Otherwise a child whose constructor hangs would take a thread every few seconds, for ever."""
    world = World("a", at_once=False, max_restarts=1000, first_wait=0.0, last_wait=0.0)
    for _ in range(MAX_LEFT):
        world.proceed(5.0 + START_GRACE_S)
    assert world.family.failure is None
    world.proceed(5.0 + START_GRACE_S)
    assert "hang at a time" in str(world.family.failure)


def test_what_hung_and_has_ended_counts_no_more():
    world = World("a", at_once=False, max_restarts=1000, first_wait=0.0, last_wait=0.0)
    for _ in range(2 * MAX_LEFT):
        world.proceed(5.0 + START_GRACE_S)
        world.abandoned[-1].fail(TroubleError("at last"))
    assert world.family.failure is None


def test_an_actor_whose_on_start_hangs_counts_as_left_behind_until_it_has_ended():
    world = World("a", at_once=False, first_wait=0.0, last_wait=0.0)
    error = StartTimedOut("it hangs")
    error.ref = Ref("a", 1)
    world.starts["a"].fail(error)
    world.proceed()
    assert len(world.family._left) == 1
    assert world.left == ["a1"]
    error.ref.alive = False
    world.proceed()
    assert len(world.family._left) == 0


# -- the end


def test_children_are_stopped_one_after_the_other_the_newest_first():
    world = World()
    world.at_once = False
    world.family.end()
    for name in "cba":
        assert world.proceed() == [f"-{name}1"]
        assert not world.family.over
        world.stops[f"{name}1"].set(None)
    world.proceed()
    assert world.family.over
    assert world.watched == set()


def test_an_end_during_a_restart_waits_for_the_start_that_is_under_way_and_stops_what_comes_of_it():
    world = World("ab", first_wait=0.0, last_wait=0.0)
    world.at_once = False
    world.die("b")
    world.proceed()
    world.take()
    world.family.end()
    assert world.proceed(1) == []
    world.starts["b"].set(Ref("b", 2))
    assert world.proceed() == ["-b2"]
    world.stops["b2"].set(None)
    assert world.proceed() == ["-a1"]
    world.stops["a1"].set(None)
    world.proceed()
    assert world.family.over


def test_an_end_during_a_start_that_hangs_comes_after_the_start_s_time():
    world = World("a", at_once=False)
    world.family.end()
    world.proceed(4.0)
    assert not world.family.over
    world.proceed(1.1 + START_GRACE_S)
    assert world.family.over
    assert world.abandoned == [world.starts["a"]]


def test_a_child_that_waits_for_its_restart_does_not_start_after_the_end():
    world = World("a", first_wait=5.0)
    world.die("a")
    world.family.end()
    assert world.proceed(20) == []
    assert world.family.over


def test_one_that_fails_during_the_end_is_not_restarted():
    world = World("ab")
    world.at_once = False
    world.family.end()
    assert world.proceed() == ["-b1"]
    world.die("a")
    world.stops["b1"].set(None)
    assert world.proceed(10) == []
    assert world.family.over


# -- what is asked


def test_the_present_incarnation_is_told_at_once_and_the_next_one_when_it_is_up():
    world = World("a")
    assert world.ref("a").get().actor_urn == "a1"
    world.die("a")
    asker = world.ref("a")
    assert not asker.done
    world.proceed(1)
    assert asker.get().actor_urn == "a2"


def test_who_waits_for_too_long_is_told_so():
    world = World("a", first_wait=5.0)
    world.die("a")
    asker = world.ref("a", timeout=1.0)
    world.proceed(0.9)
    assert not asker.done
    world.proceed(0.2)
    with pytest.raises(pykka.Timeout, match="child 'a' of the supervisor is not up"):
        asker.get()


def test_who_asks_for_one_that_has_ended_for_good_is_told_why():
    world = World("a", specs={"a": spec("a", restart="transient")})
    world.die("a", None)
    with pytest.raises(pykka.ActorDeadError, match="has ended"):
        world.ref("a").get()
    with pytest.raises(ConfigError, match="its children: a"):
        world.ref("b")


def test_all_are_ready_when_each_is_up_that_is_to_be():
    world = World("ab", at_once=False)
    ready = AnswerLater()
    world.family.ask_ready(ready, math.inf)
    for name in "ab":
        world.proceed()
        assert not ready.done
        world.starts[name].set(Ref(name, 1))
    world.proceed()
    assert ready.get() is True


def test_a_child_that_is_added_later_is_not_kept_if_its_first_start_fails():
    world = World("a", max_restarts=0)
    world.at_once = False
    asker = AnswerLater()
    world.family.add(spec("b"), asker, math.inf)
    world.proceed()
    world.starts["b"].fail(TroubleError("mine"))
    world.proceed()
    with pytest.raises(TroubleError):
        asker.get()
    assert list(world.family.children) == ["a"]
    assert world.family.failure is None


def test_a_child_that_was_added_later_is_restarted_like_the_others():
    world = World("a")
    asker = AnswerLater()
    world.family.add(spec("b"), asker, math.inf)
    world.proceed()
    assert asker.get().actor_urn == "b1"
    world.take()
    world.die("b")
    assert world.proceed(1) == ["+b2"]


def test_names_are_taken_once_and_children_are_bounded():
    world = World("")
    for number in range(MAX_CHILDREN):
        world.family.add(spec(f"child {number}"))
    with pytest.raises(ConfigError, match="already"):
        world.family.add(spec("child 7"))
    with pytest.raises(SystemBusy, match="supervise supervisors"):
        world.family.add(spec("one more"))


@pytest.mark.parametrize("strategy", ["one_for_one", "all_for_one", "rest_for_one"])
def test_a_child_that_is_stopped_for_good_takes_no_other_with_it(strategy):
    world = World(strategy=strategy)
    stopper = AnswerLater()
    world.take()
    world.family.remove("b", stopper)
    assert world.proceed(1) == ["-b1"]
    assert stopper.get() is None
    assert list(world.family.children) == ["a", "c"]


def test_a_child_that_is_stopped_while_it_starts_is_stopped_when_it_is_up():
    world = World("a", at_once=False)
    stopper = AnswerLater()
    world.family.remove("a", stopper)
    world.proceed(1)
    assert not stopper.done
    world.starts["a"].set(Ref("a", 1))
    world.proceed()
    world.stops["a1"].set(None)
    world.proceed()
    assert stopper.done
    assert world.family.children == {}


def test_a_restart_that_is_asked_for_follows_the_strategy_and_counts_as_no_failure():
    world = World(strategy="rest_for_one", max_restarts=0)
    asker = AnswerLater()
    world.family.restart("b", asker, math.inf)
    assert world.proceed() == ["-c1", "-b1", "+b2", "+c2"]
    assert asker.get().actor_urn == "b2"
    assert world.family.failure is None


def test_a_restart_ends_the_wait_and_brings_back_one_that_had_ended_for_good():
    world = World("ab", first_wait=50.0, last_wait=50.0, specs={"b": spec("b", restart="transient")})
    world.die("a")
    world.die("b", None)
    assert world.proceed(1) == []
    for name in "ab":
        world.family.restart(name, AnswerLater(), math.inf)
    assert world.proceed() == ["+a2", "+b2"]


# -- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": 7}, "a text"),
        ({"start": int}, "actor's class"),
        ({"start": 7}, "actor's class"),
        ({"args": "abc"}, "args"),
        ({"kwargs": 7}, "kwargs"),
        ({"restart": "often"}, "'permanent' or 'transient' or 'temporary'"),
        ({"start_timeout": 0}, "start_timeout"),
        ({"stop_timeout": -1}, "stop_timeout"),
        ({"stop_timeout": "long"}, "stop_timeout"),
        ({"publish": ""}, "publish"),
    ],
)
def test_a_spec_is_checked_when_it_is_made(options, words):
    with pytest.raises(ConfigError, match=words):
        ChildSpec(**{"name": "a", "start": pykka.ThreadingActor, **options})


def test_an_async_function_starts_nothing():
    async def start():
        pass

    with pytest.raises(ConfigError, match="async"):
        ChildSpec("a", start)


@pytest.mark.parametrize(
    "limits",
    [{"max_restarts": -1}, {"window": 0}, {"first_wait": -1}, {"first_wait": 2.0, "last_wait": 1.0}],
)
def test_limits_are_checked_when_they_are_made(limits):
    with pytest.raises(ConfigError, match=r"max_restarts|window|wait"):
        Limits(**limits)
