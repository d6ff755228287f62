"""Questions that a node answers later: each by its own message, and all when it ends."""

import pytest
from drakkar.actors.runtime import open_asks
from drakkar.actors.runtime.open_asks import OpenAsks
from drakkar.handlers.effects import Answer
from drakkar.handlers.errors import SystemBusy
from drakkar.handlers.messages import Message, MessageType

PING = MessageType.define("test.open_asks.ping", 1296)


def test_an_answer_goes_to_who_asked_that_very_message():
    asks = OpenAsks()
    one, other = Message(PING), Message(PING)
    first, second = asks.open(one), asks.open(other)
    asks.answer(Answer(other, 2))
    assert (first.done, second.get()) == (False, 2)
    assert len(asks) == 1
    asks.answer(Answer(one, 1))
    assert first.get() == 1
    assert (len(asks), asks.unasked) == (0, 0)


def test_all_who_have_asked_one_object_get_its_answer():
    asks = OpenAsks()
    message = Message(PING)
    askers = [asks.open(message), asks.open(message)]
    asks.answer(Answer(message, "both"))
    assert [asker.get() for asker in askers] == ["both", "both"]
    assert len(asks) == 0


def test_a_second_answer_and_one_to_what_nobody_asked_are_counted():
    asks = OpenAsks()
    message = Message(PING)
    asker = asks.open(message)
    asks.answer(Answer(message, 1))
    asks.answer(Answer(message, 2))
    asks.answer(Answer(Message(PING), 3))
    assert (asker.get(), asks.unasked) == (1, 2)


def test_questions_are_bounded_and_answers_make_room(monkeypatch):
    monkeypatch.setattr(open_asks, "MAX_ASKS", 2)
    asks = OpenAsks()
    messages = [Message(PING) for _ in range(2)]
    for message in messages:
        asks.open(message)
    with pytest.raises(SystemBusy, match="2 questions to this node have no answer yet"):
        asks.open(Message(PING))
    asks.answer(Answer(messages[0], 1))
    asks.open(Message(PING))


def test_the_end_fails_all_of_them():
    asks = OpenAsks()
    asker = asks.open(Message(PING))
    asks.fail(ZeroDivisionError("ended"))
    with pytest.raises(ZeroDivisionError):
        asker.get()
    assert len(asks) == 0
