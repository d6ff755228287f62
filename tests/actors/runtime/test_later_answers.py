"""Answers that come later, and questions to actors of any kind, also before all that waits for them."""

import threading

import pykka
import pytest
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.alarm import Alarm
from drakkar.actors.runtime.futures import AnswerLater
from drakkar.actors.runtime.inbox import ask_to_stop, question

from tests.actors.runtime.support import TIMEOUT_S, Echo, Recorder, TroubleError, wait_until


class Patient(TrioActor):
    """Answers each question when it is told to."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._waiting = []

    def on_receive(self, message):
        if message == "later":
            self._waiting.append(AnswerLater())
            return self._waiting[-1]
        answer = self._waiting.pop(0)
        if isinstance(message, Exception):
            answer.fail(message)
        else:
            answer.set(message)
        return None

    def method(self):
        return self.on_receive("later")


class Threaded(pykka.ThreadingActor):
    def __init__(self, seen):
        super().__init__()
        self._seen = seen

    def on_receive(self, message):
        if isinstance(message, threading.Event):
            message.wait(TIMEOUT_S)
        self._seen.append(message)
        return message

    def on_stop(self):
        self._seen.append("stop")


def test_an_asker_gets_the_answer_when_it_is_there_and_others_are_heard_meanwhile(loop):
    ref = Patient.start(loop=loop)
    first, second = ref.ask("later", block=False), ref.proxy().method()
    ref.tell(5)
    assert first.get(timeout=TIMEOUT_S) == 5
    assert not second.done
    ref.tell(None)
    assert second.get(timeout=TIMEOUT_S) is None


def test_an_answer_may_be_an_exception_and_the_actor_goes_on(loop):
    ref = Patient.start(loop=loop)
    asked = ref.ask("later", block=False)
    ref.tell(TroubleError("later"))
    with pytest.raises(TroubleError, match="later"):
        asked.get(timeout=TIMEOUT_S)
    assert ref.is_alive()


def test_an_answer_that_is_there_already_is_given_at_once(loop):
    class Ready(TrioActor):
        def on_receive(self, message):
            answer = AnswerLater()
            answer.set(message)
            return answer

    assert Ready.start(loop=loop).ask(7, timeout=TIMEOUT_S) == 7


def test_a_question_to_an_actor_of_any_kind_calls_back(loop):
    seen = []
    for ref in (Echo.start(loop=loop), Threaded.start(seen)):
        told = threading.Event()
        answer = question(ref, "hello")
        answer.add_done_callback(lambda _, told=told: told.set())
        assert told.wait(TIMEOUT_S)
        assert answer.get() == "hello"
        assert ask_to_stop(ref).get(timeout=TIMEOUT_S) is None
        assert not ref.is_alive()
        with pytest.raises(pykka.ActorDeadError):
            question(ref, "hello").get()


def test_a_stop_may_come_before_all_that_waits(loop, held):
    seen = []
    trio, threaded, gate = Recorder.start(seen, loop=loop), Threaded.start(seen), threading.Event()
    threaded.tell(gate)
    wait_until(threaded.actor_inbox.empty)
    for ref in (trio, threaded):
        for _ in range(100):
            ref.tell("unread")
        unread = question(ref, "unread")
        stopped = ask_to_stop(ref, first=True)
        held.opened.set()
        gate.set()
        assert stopped.get(timeout=TIMEOUT_S) is None
        with pytest.raises(pykka.ActorDeadError):
            unread.get(timeout=TIMEOUT_S)
    assert "unread" not in seen


def test_a_stop_that_comes_first_while_another_is_handled_leaves_no_asker_without_an_answer(loop):
    """Both are answered, though the second is put before the one that is being handled."""

    class Late(TrioActor):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self._late = []

        def after_batch(self):
            if not self._late and self.actor_inbox.queue:
                self._late.append(ask_to_stop(self.actor_ref, first=True))

        def late(self):
            return self._late

    actor = Late.start_actor(loop=loop)
    assert ask_to_stop(actor.actor_ref).get(timeout=TIMEOUT_S) is None
    for answer in actor.late():
        assert answer.get(timeout=TIMEOUT_S) is None


def test_an_alarm_rings_once_at_the_last_time_that_it_was_set_to(loop):
    rings = []

    def set_twice():
        alarm = Alarm(loop, lambda: rings.append(1))
        alarm.set(alarm._clock() + 60)
        alarm.set(alarm._clock() + 0.01)
        return alarm

    alarm = loop.call(set_twice)
    wait_until(lambda: rings)
    assert rings == [1]
    loop.call(lambda: alarm.set(alarm._clock() + 60))
    loop.call(alarm.cancel)
    wait_until(lambda: not loop._tasks)
    assert rings == [1]
