"""Letters: a message comes out as it went in, and what no node sends is refused whatever a host puts into one."""

from dataclasses import replace

import cbor2
import pytest
from drakkar.actors.runtime.letters import Letter, UnknownType
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.payloads import NUMBERS

PING = MessageType.define("test.letters.ping", 1298)
LOCAL = MessageType.define("test.letters.local", 1297, local=True)
LETTER = Letter(int(PING), "a")


def test_a_message_comes_out_as_it_went_in():
    numbers = {name: number for number, name in enumerate(NUMBERS, 1)}
    sent = Message(PING, to="b", sender="a", payload={"votes": [True, None]}, reject=True, **numbers)
    assert Letter.of(sent).open("b") == sent


def test_each_side_has_a_payload_of_its_own():
    payload = [1]
    letter = Letter.of(Message(PING, to="b", sender="a", payload=payload))
    payload.append(2)
    assert letter.open("b").payload == [1]
    assert letter.open("b").payload is not letter.open("b").payload
    assert letter.size == 2


def test_no_payload_takes_no_bytes_and_stays_none():
    letter = Letter.of(Message(PING, to="b", sender="a"))
    assert (letter.size, letter.open("b").payload) == (0, None)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"type": int(MessageType.REPLICATE)}, id="a type of Raft"),
        pytest.param({"type": int(MessageType.PEER_DOWN)}, id="the death of a peer"),
        pytest.param({"type": int(LOCAL)}, id="a local type"),
        pytest.param({"term": -1}, id="a negative number"),
        pytest.param({"hint": 1 << 63}, id="a large number"),
        pytest.param({"commit": "1"}, id="a text for a number"),
        pytest.param({"log_index": True}, id="a bool for a number"),
        pytest.param({"shard": None}, id="nothing for a number"),
        pytest.param({"reject": 1}, id="a number for a bool"),
        pytest.param({"payload": "text"}, id="no bytes"),
        pytest.param({"payload": b""}, id="no payload in the bytes"),
        pytest.param({"payload": cbor2.dumps(bytes(9_000))}, id="a long payload"),
    ],
)
def test_what_no_node_sends_is_refused(fields):
    with pytest.raises(ValueError) as caught:
        replace(LETTER, **fields).open("b")
    assert not isinstance(caught.value, UnknownType)


@pytest.mark.parametrize("type_", [64_999, -1, 1 << 16, "test.letters.ping", None, [1], True, 1298.0])
def test_a_type_that_is_not_defined_here_is_told_apart(type_):
    with pytest.raises(UnknownType):
        replace(LETTER, type=type_).open("b")
