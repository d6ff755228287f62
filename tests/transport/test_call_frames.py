"""Remote calls as bytes, and what a receiver refuses to decode."""

from typing import Any

import cbor2
import pytest
from drakkar.handlers.errors import TransportError
from drakkar.transport.call_frames import (
    JOINED_BYTES,
    LIST_HEAD,
    MAX_DEPTH,
    MAX_ITEMS,
    RECORDS_PER_FRAME,
    calls_body,
    check_record,
    decode_calls,
    is_calls,
    list_head,
)
from drakkar.transport.frames import FrameError, FrameReader
from drakkar.transport.message_frames import encode_messages

from tests.transport.support import bulk, heartbeat

LIMIT = 1 << 20


def nested(depth: int) -> Any:
    """A record in which lists are so deep, itself included."""
    value: Any = 0
    for _ in range(depth - 1):
        value = [value]
    return [1, value]


@pytest.mark.parametrize("count", [1, 23, 24, RECORDS_PER_FRAME])
def test_a_body_is_the_list_of_its_records(count: int) -> None:
    records = [[1, number, {"text": "é", "bytes": b"\x80" * number}, None, 1.5] for number in range(count)]
    body = calls_body([cbor2.dumps(record) for record in records])
    assert decode_calls(body) == decode_calls(memoryview(body)) == records
    assert body[: len(list_head(count))] == list_head(count)
    assert len(list_head(count)) <= LIST_HEAD


def test_the_first_byte_tells_calls_from_messages() -> None:
    assert is_calls(calls_body([cbor2.dumps([1])]))
    assert is_calls(calls_body([cbor2.dumps([1])] * RECORDS_PER_FRAME))
    for frame in encode_messages([heartbeat(1)] * 512) + encode_messages([bulk(1 << 20)]):
        (whole,) = FrameReader().feed(frame)
        assert not is_calls(whole.body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80", id="no records"),
        pytest.param(cbor2.dumps([[1]] * (RECORDS_PER_FRAME + 1)), id="too many records"),
        pytest.param(cbor2.dumps({"a": [1]}), id="a map"),
        pytest.param(cbor2.dumps([7]), id="a record that is a number"),
        pytest.param(cbor2.dumps([[1], {}]), id="a record that is a map"),
        pytest.param(cbor2.dumps([[]]), id="a record of no fields"),
        pytest.param(cbor2.dumps([["1"]]), id="a kind that is a string"),
        pytest.param(cbor2.dumps([[True]]), id="a kind that is a boolean"),
        pytest.param(cbor2.dumps([[1, 1 << 64]]), id="a number of more than 64 bits"),
        pytest.param(cbor2.dumps([[1, {2: 3}]]), id="a key that is a number"),
        pytest.param(b"\x81\x82\x01\xc0\x60", id="a tag"),
        pytest.param(b"\x81\x82\x01\xa2\x61a\x01\x61a\x01", id="a key twice"),
        pytest.param(b"\x9f\x81\x01\xff", id="a list without a length"),
        pytest.param(b"\x81\x82\x01\x5f\x41a\xff", id="a string in pieces"),
        pytest.param(b"\x81\x81\x01\x00", id="bytes that belong to no record"),
        pytest.param(b"\x82\x81\x01", id="a record too few"),
        pytest.param(b"\x81\x82\x01\x7b\xff\xff\xff\xff\xff\xff\xff\xff", id="a string of 2**64 bytes"),
        pytest.param(b"\x81\x82\x01\x9b\xff\xff\xff\xff\xff\xff\xff\xff", id="a list of 2**64 items"),
        pytest.param(b"\x81\x82\x01\x61\xff", id="text that is no UTF-8"),
        pytest.param(cbor2.dumps([nested(MAX_DEPTH)]), id="lists too deep"),
        pytest.param(b"\x81" * 100_000, id="lists far too deep"),
    ],
)
def test_bodies_that_no_host_sends_are_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode_calls(body)


def test_values_may_be_nested_as_deep_as_is_said() -> None:
    assert decode_calls(cbor2.dumps([nested(MAX_DEPTH - 1)])) == [nested(MAX_DEPTH - 1)]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        pytest.param(b"", "no encoded list", id="empty"),
        pytest.param(cbor2.dumps({"a": 1}), "no encoded list", id="a map"),
        pytest.param(cbor2.dumps(7), "no encoded list", id="a number"),
        pytest.param(cbor2.dumps([1, bytes(LIMIT)]), "raise call_limit on all hosts", id="too long"),
        pytest.param(
            cbor2.dumps([1, [[]] * MAX_ITEMS]),
            "send what has very many values as bytes",
            id="very many values",
        ),
    ],
)
def test_what_a_receiver_would_not_take_is_refused_to_its_sender_with_the_remedy(
    record: bytes, reason: str
) -> None:
    with pytest.raises(TransportError, match=reason):
        check_record(record, LIMIT)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param([1, bytes(LIMIT - 10)], id="as long as may be"),
        # The record, its kind and the list of values are items too.
        pytest.param([1, [256] * (MAX_ITEMS - 3)], id="as many values as may be"),
        pytest.param([1, b"\x80" * (1 << 19), "\x01" * (1 << 18)], id="strings that look like many values"),
    ],
)
def test_what_a_sender_lets_out_its_receiver_takes(record: Any) -> None:
    encoded = cbor2.dumps(record)
    check_record(encoded, LIMIT)
    assert decode_calls(calls_body([encoded])) == [record]


def test_what_has_very_many_values_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("drakkar.handlers.cbor.cbor2.CBORDecoder")
    with pytest.raises(FrameError, match=f"more than {MAX_ITEMS + 1} items"):
        decode_calls(calls_body([cbor2.dumps([1, [[]] * (MAX_ITEMS - 2)])]))


def test_several_records_that_are_joined_have_no_more_values_than_one_may_have() -> None:
    records = [[1, [0] * 2000]] * 4
    body = calls_body([cbor2.dumps(record) for record in records])
    assert len(body) < JOINED_BYTES
    assert decode_calls(body) == records
    assert JOINED_BYTES <= MAX_ITEMS, "for each of the bytes may be an item"
