"""Letters of table actors at the door of a host: each says truly of which host it comes, whatever is in it."""

import pytest
from drakkar.actors.remote.records import Ask, Target, Tell
from drakkar.actors.remote.values import ValueRefused, pack, unpack
from drakkar.actors.runtime.letters import Heard, Letter
from drakkar.handlers.messages import Message, MessageType

from tests.actors.remote.fakes import RUN, THERE, Fake, Side
from tests.actors.remote.support import REFS

PING = MessageType.define("test.peer_letters.ping", 1278)
SENT = Letter.of(Message(PING, to="b", sender="a", payload={"votes": [1, 2]}, hint=3, reject=True))


@pytest.fixture
def side():
    return Side()


@pytest.fixture
def keeper(side):
    ref = Fake()
    side.published.publish("b", ref)
    return ref


def target(side):
    return Target(RUN, side.published.by_name("b").number)


def test_a_letter_travels_as_a_registered_message():
    assert unpack(pack(SENT, REFS), REFS) == SENT


def test_it_arrives_with_the_address_of_its_host(side, keeper):
    assert side.hear(Tell(target(side), pack(SENT, REFS)))
    assert keeper.take().message == Heard(SENT, THERE)


def test_so_does_one_that_is_asked(side, keeper):
    assert side.hear(Ask(1, target(side), 60_000, pack(SENT, REFS)))
    assert keeper.take().message == Heard(SENT, THERE)


def test_no_host_can_say_that_a_letter_comes_from_another(side, keeper):
    with pytest.raises(ValueRefused, match="Heard"):
        pack(Heard(SENT, "10.0.0.9:7000"), REFS)
    side.hear(Tell(target(side), pack({"letter": SENT, "address": "10.0.0.9:7000"}, REFS)))
    assert type(keeper.take().message) is dict


def test_what_is_no_letter_comes_as_it_is(side, keeper):
    side.hear(Tell(target(side), pack("hello", REFS)))
    assert keeper.take().message == "hello"


def test_a_letter_with_anything_in_its_fields_reaches_the_actor_which_refuses_it(side, keeper):
    odd = Letter(type=["x"], sender=None, payload="text", hint={"a": 1})
    assert side.hear(Tell(target(side), pack(odd, REFS)))
    assert keeper.take().message.letter == odd
