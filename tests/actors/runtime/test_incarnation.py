"""One actor that is started, is up, is stopped or left behind, in time that is made up.

What follows from that for others is in test_children and in names/test_tenure.
"""

import math

import pytest
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.incarnation import START_GRACE_S, Change, ChildPhase, Incarnation, LeftBehind
from drakkar.actors.runtime.launching import StartTimedOut

from tests.actors.runtime.support import Ref, TroubleError


class Hands:
    """Writes down what it is to do."""

    def __init__(self):
        self.done, self.stopped = [], ActorFuture()

    def stop(self, ref):
        self.done.append(f"stop {ref}")
        return self.stopped

    def abandon(self, started):
        self.done.append("abandon")

    def leave(self, ref):
        self.done.append(f"leave {ref}")

    def watch(self, ref):
        self.done.append(f"watch {ref}")

    def unwatch(self, ref):
        self.done.append(f"unwatch {ref}")

    def take(self):
        done, self.done = self.done, []
        return done


@pytest.fixture
def one():
    return Incarnation("child 'ann'", Hands(), LeftBehind())


@pytest.fixture
def ref():
    return Ref("ann", 1)


def start(one, outcome, now=0.0):
    started = ActorFuture()
    one.start(started, now, 2.0)
    if isinstance(outcome, BaseException):
        started.fail(outcome)
    else:
        started.set(outcome)
    return one.look(now)


def test_one_whose_start_is_done_is_up_and_watched_without_a_deadline(one, ref):
    assert start(one, ref, now=5.0) is Change.STARTED
    assert (one.phase, one.ref, one.up_since, one.deadline) == (ChildPhase.UP, ref, 5.0, math.inf)
    assert one.hands.take() == ["watch ann1"]
    assert one.look(1000.0) is None


def test_a_start_that_is_under_way_is_no_change_before_its_time_is_over(one):
    hanging = ActorFuture()
    one.start(hanging, 10.0, 2.0)
    assert one.deadline == 12.0 + START_GRACE_S
    assert one.look(11.9 + START_GRACE_S) is None
    assert one.look(one.deadline) is Change.FAILED
    assert one.hands.take() == ["abandon"]
    assert str(one.error).startswith("child 'ann' did not start within 2.0 seconds")
    assert (one.phase, len(one.left), one.left.over) == (ChildPhase.DOWN, 1, False)
    assert one.look(1000.0) is None, "it is told once"
    hanging.fail(TroubleError("at last"))
    assert one.left.over


def test_why_a_start_failed_is_known_until_the_next_one(one, ref):
    error = TroubleError("mine")
    assert start(one, error) is Change.FAILED
    assert one.error is error
    assert len(one.left) == 0
    start(one, ref)
    assert one.error is None


def test_what_did_not_start_in_time_and_was_asked_to_stop_is_left_behind_until_it_has_ended(one, ref):
    error = StartTimedOut("it hangs")
    error.ref = ref
    assert start(one, error) is Change.FAILED
    assert one.hands.take() == ["leave ann1"], "it was not watched yet"
    one.left.forget_ended()
    assert len(one.left) == 1
    ref.alive = False
    one.left.forget_ended()
    assert (len(one.left), one.left.total) == (0, 1)


def test_only_one_that_is_up_is_asked_to_stop_and_only_once(one, ref):
    one.stop(0.0, 3.0)
    one.start(ActorFuture(), 0.0, 2.0)
    one.stop(0.0, 3.0)
    assert one.hands.take() == []
    assert one.phase is ChildPhase.STARTING
    start(one, ref)
    one.stop(0.0, 3.0)
    one.stop(1.0, 3.0)
    assert one.hands.take() == ["watch ann1", "stop ann1"]
    assert one.deadline == 3.0


def test_one_that_was_asked_to_stop_has_ended_when_it_has_answered(one, ref):
    start(one, ref)
    one.stop(0.0, 3.0)
    ref.alive = False
    assert not one.died(ref), "its on_stop may still be running"
    assert one.look(2.9) is None
    one.hands.stopped.set(None)
    assert one.look(2.9) is Change.STOPPED
    assert one.hands.take() == ["watch ann1", "stop ann1", "unwatch ann1"]
    assert (one.phase, one.ref, one.deadline) == (ChildPhase.DOWN, None, math.inf)


@pytest.mark.parametrize(
    ("alive", "change", "left"),
    [
        pytest.param(True, Change.LEFT_BEHIND, ["leave ann1"], id="it hangs"),
        pytest.param(False, Change.STOPPED, [], id="its answer was lost"),
    ],
)
def test_one_that_has_not_answered_in_time_is_left_behind_if_it_is_alive(one, ref, alive, change, left):
    start(one, ref)
    one.stop(0.0, 3.0)
    one.hands.take()
    ref.alive = alive
    assert one.look(3.0) is change
    assert one.hands.take() == [*left, "unwatch ann1"]
    assert len(one.left) == len(left)


def test_only_the_present_incarnation_can_die_and_only_once(one, ref):
    start(one, ref)
    assert not one.died(Ref("ann", 0))
    assert one.died(ref)
    assert one.phase is ChildPhase.DOWN
    assert one.hands.take() == ["watch ann1", "unwatch ann1"]
    assert not one.died(ref)
