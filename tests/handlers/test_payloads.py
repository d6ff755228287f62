"""What may be in the payload of a message: the sender is told of all that the receiver would refuse."""

import math

import cbor2
import pytest
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.payloads import (
    PAYLOAD_LIMIT,
    check_message,
    decode_payload,
    encode_payload,
    payload_bytes,
    sent_payload,
)
from hypothesis import given
from hypothesis import strategies as st

PING = MessageType.define("test.payloads.ping", 1299)
PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 64), (1 << 64) - 1),
        st.floats(allow_nan=False),
        st.text(max_size=5),
        st.binary(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(-9, 9)), inner, max_size=3),
    ),
    max_leaves=10,
)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@given(PLAIN)
def test_what_is_sent_comes_out(payload):
    assert decode_payload(encode_payload(payload)) == payload


@given(PLAIN)
def test_its_size_is_known_before_it_is_encoded(payload):
    assert payload_bytes(payload) == len(cbor2.dumps(payload))


@pytest.mark.parametrize("number", [*(1 << shift for shift in range(64)), math.inf, math.nan, -1.5])
def test_the_size_of_each_number_is_that_of_its_encoding(number):
    for each in (number, number - 1, -number):
        assert payload_bytes(each) == len(cbor2.dumps(each))


def test_what_this_process_alone_has_counts_what_it_takes_in_memory():
    assert payload_bytes(object()) == 1024
    assert 5000 < payload_bytes(bytearray(5000)) < 5100
    assert payload_bytes({3, "\ud800"}) == 1 + 1 + 4


def shared(depth):
    """A small object that means very many: each list has the next one often."""
    value = []
    for _ in range(depth):
        value = [value] * 1000
    return value


def cyclic():
    value = []
    value.append(value)
    return value


class Unread(list):
    """Fails where it is looked at as a whole."""

    def __iter__(self):
        raise AssertionError("it was walked")


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        pytest.param([object(), bytes(1 << 20)], "takes at least 10485", id="beside an object"),
        pytest.param({"key": [bytearray(1 << 20)]}, "takes at least 10486", id="memory of an object"),
        pytest.param([object()] * 9, "takes at least 81", id="many objects"),
        pytest.param("x" * (1 << 20), "takes 1048581 bytes", id="a text"),
        pytest.param("\u20ac" * 4000, "takes 12003 bytes", id="a text of long characters"),
        pytest.param(Unread([0] * 9000), "takes at least 9003 bytes", id="a long list"),
        pytest.param(shared(4), "takes at least", id="lists in lists"),
        pytest.param(cyclic(), "takes at least 8193 bytes", id="a list in itself"),
        pytest.param(1 << (1 << 20), "takes 131072 bytes", id="a long number"),
    ],
)
def test_no_more_of_a_large_payload_is_looked_at_than_is_allowed(payload, said):
    for function in (payload_bytes, encode_payload):
        with pytest.raises(
            ValueError,
            match=f"{said}.*and 8192 are allowed: send several messages, or bulk as a command or record",
        ):
            function(payload)


def test_the_deepest_and_the_longest_payloads_pass():
    assert decode_payload(encode_payload(nested(16))) == nested(16)
    longest = bytes(PAYLOAD_LIMIT - 3)
    assert len(encode_payload(longest)) == PAYLOAD_LIMIT
    assert decode_payload(encode_payload(longest)) == longest


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        pytest.param({"a": [{1, 2}]}, "set cannot be sent", id="a set"),
        pytest.param(1 << 64, "more than 64 bits", id="a large number"),
        pytest.param({(1, 2): 3}, "neither a string nor a small number", id="a tuple as key"),
        pytest.param({True: 3}, "neither a string nor a small number", id="a bool as key"),
        pytest.param(nested(17), "more than 16 lists and dicts", id="deep"),
        pytest.param("\ud800", "surrogates not allowed", id="half a character"),
        pytest.param(bytes(PAYLOAD_LIMIT - 2), "takes 8193 bytes, and 8192 are allowed", id="long"),
    ],
)
def test_the_sender_is_told_what_cannot_be_sent(payload, said):
    with pytest.raises(ValueError, match=said):
        encode_payload(payload)
    with pytest.raises(ConfigError, match=f"message='audit.ping': .*{said}"):
        sent_payload("audit.ping", payload)


def test_no_payload_can_always_be_sent():
    assert sent_payload("audit.ping", None) is None


def test_what_is_sent_is_the_payload_as_it_was_then():
    members = {"a": ["up"]}
    sent = sent_payload("audit.ping", [members, ("b", 2)])
    members["a"].append("down")
    assert sent == [{"a": ["up"]}, ["b", 2]]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(cbor2.dumps(1) + b"\x01", id="more after the value"),
        pytest.param(cbor2.dumps({b"key": 1}), id="bytes as key"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(2, b"\x01" * 9)), id="a tag"),
        pytest.param(cbor2.dumps(bytes(PAYLOAD_LIMIT)), id="long"),
        pytest.param(b"\x81" * 17 + b"\x01", id="deep"),
    ],
)
def test_bytes_that_no_sender_makes_are_refused(data):
    with pytest.raises(ValueError):
        decode_payload(data)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"hint": -1}, "hint=-1: must be a whole number from 0", id="a negative number"),
        pytest.param({"log_index": 1 << 63}, r"log_index=.* from 0 to 2\*\*63 - 1", id="a large number"),
        pytest.param({"term": "3"}, "term='3'", id="a text"),
        pytest.param({"reject": 1}, "reject=1: must be True or False", id="no bool"),
        pytest.param({"entries": [1]}, "are Raft's: send a payload", id="entries"),
        pytest.param({"snapshot": object()}, "are Raft's: send a payload", id="a snapshot"),
    ],
)
def test_what_a_node_without_raft_cannot_send_is_named_with_the_type(fields, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_message(Message(PING, **fields))
    assert "test.payloads.ping" in str(caught.value)


def test_all_that_a_message_has_can_be_sent():
    check_message(Message(PING, hint=(1 << 63) - 1, log_index=5, reject=True, payload={"a": [1]}))
