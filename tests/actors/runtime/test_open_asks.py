"""What a node was asked and answers later: each ask by its own message, by its deadline, and all when the node ends."""

import pytest
from drakkar.actors.runtime import open_asks
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.open_asks import OpenAsks
from drakkar.handlers.effects import Answer
from drakkar.handlers.errors import OutcomeUnknown, SystemBusy
from drakkar.handlers.messages import Message, MessageType

PING = MessageType.define("test.open_asks.ping", 1296)


def take(node, message):
    """The handler of all."""


def opened(asks, message, deadline=10.0):
    future = ActorFuture()
    asks.open(message, future, deadline, take)
    return future


def test_an_answer_goes_to_who_asked_that_very_message():
    asks = OpenAsks()
    one, other = Message(PING), Message(PING)
    first, second = opened(asks, one), opened(asks, other)
    asks.answer(Answer(other, 2))
    assert (first.done, second.get()) == (False, 2)
    assert len(asks) == 1
    asks.answer(Answer(one, 1))
    assert first.get() == 1
    assert (len(asks), asks.unasked) == (0, 0)


def test_all_who_have_asked_one_object_get_its_answer():
    asks = OpenAsks()
    message = Message(PING)
    askers = [opened(asks, message), opened(asks, message)]
    asks.answer(Answer(message, "both"))
    assert [asker.get() for asker in askers] == ["both", "both"]
    assert len(asks) == 0


def test_a_second_answer_and_one_to_what_nobody_asked_are_counted():
    asks = OpenAsks()
    message = Message(PING)
    asker = opened(asks, message)
    asks.answer(Answer(message, 1))
    asks.answer(Answer(message, 2))
    asks.answer(Answer(Message(PING), 3))
    assert (asker.get(), asks.unasked) == (1, 2)


def test_each_ask_ends_at_its_deadline_also_of_one_object_that_is_asked_twice():
    asks = OpenAsks()
    message = Message(PING)
    first, second = opened(asks, message, 10.0), opened(asks, message, 20.0)
    asks.expire(9.9, "the node")
    assert len(asks) == 2
    asks.expire(10.0, "the node")
    with pytest.raises(
        OutcomeUnknown, match=r"test_open_asks\.take, which the node has for test\.open_asks\.ping"
    ):
        first.get()
    assert (second.done, len(asks)) == (False, 1)
    asks.answer(Answer(message, 1))
    assert (second.get(), len(asks), asks.unasked) == (1, 0, 0)
    asks.answer(Answer(message, 2))
    assert asks.unasked == 1


def test_asks_are_bounded_and_answers_make_room(monkeypatch):
    monkeypatch.setattr(open_asks, "MAX_ASKS", 2)
    asks = OpenAsks()
    messages = [Message(PING) for _ in range(2)]
    for message in messages:
        assert asks.reason_to_refuse("the node") is None
        opened(asks, message)
    refusal = asks.reason_to_refuse("the node")
    assert type(refusal) is SystemBusy
    assert "2 asks that the node has taken have no answer yet" in str(refusal)
    asks.answer(Answer(messages[0], 1))
    assert asks.reason_to_refuse("the node") is None


def test_the_end_fails_all_of_them():
    asks = OpenAsks()
    asker = opened(asks, Message(PING))
    asks.fail_all(ZeroDivisionError("ended"))
    with pytest.raises(ZeroDivisionError):
        asker.get()
    assert len(asks) == 0
