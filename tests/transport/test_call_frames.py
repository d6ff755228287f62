"""Remote calls as bytes, and what a receiver refuses to decode."""

from typing import Any

import cbor2
import pytest
from drakkar.handlers.errors import TransportError
from drakkar.transport.call_frames import (
    LIST_HEAD,
    MAX_DEPTH,
    MAX_ITEMS,
    RECORDS_PER_FRAME,
    UNCOUNTED_BYTES,
    calls_body,
    check_items,
    check_record,
    decode_calls,
    is_calls,
    list_head,
)
from drakkar.transport.frames import FrameError, FrameReader
from drakkar.transport.message_frames import encode_messages
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.support import bulk, heartbeat

LIMIT = 1 << 20


def nested(depth: int) -> Any:
    """A record in which lists are so deep, itself included."""
    value: Any = []
    for _ in range(depth - 2):
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
        pytest.param([1, [1] * (UNCOUNTED_BYTES - 10)], id="too short to be counted"),
    ],
)
def test_what_a_sender_lets_out_its_receiver_takes(record: Any) -> None:
    encoded = cbor2.dumps(record)
    check_record(encoded, LIMIT)
    body = calls_body([encoded])
    for _ in check_items(body, MAX_ITEMS + 1):
        pass
    assert decode_calls(body) == [record]


def test_very_many_values_are_counted_in_steps_and_never_decoded() -> None:
    body = calls_body([cbor2.dumps([1, [[]] * (1 << 20)])])
    steps = check_items(body, MAX_ITEMS + 1)
    breaks = 0
    with pytest.raises(FrameError, match="65536 values"):
        while True:
            next(steps)
            breaks += 1
    assert breaks == MAX_ITEMS // 1024


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=3), inner, max_size=5),
    max_leaves=40,
)


def items(value: Any) -> int:
    """A value itself, and all in it."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(items, value.values()))
    return 1 + sum(map(items, value)) if isinstance(value, list) else 1


def counted(data: bytes) -> int:
    """How many items `check_items` finds."""
    most = 0
    while True:
        try:
            for _ in check_items(data, most):
                pass
        except FrameError:
            most += 1
        else:
            return most


@settings(deadline=None)
@given(VALUES)
def test_no_value_hides_items_from_the_count(value: Any) -> None:
    """Else a body could have more than were counted."""
    assert counted(cbor2.dumps(value)) == items(value)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        pytest.param(b"\x98\x02\x01\x02", 3, id="a list with a long head"),
        pytest.param(b"\x9b" + bytes(7) + b"\x02\x18\x05\x1b" + bytes(8), 3, id="numbers with long heads"),
        pytest.param(b"\x5b" + bytes(7) + b"\x02\x80\x80\x80", 2, id="a string with a long head, and a list"),
        pytest.param(b"\x82\xf8\x20\xe0", 3, id="simple values"),
        pytest.param(b"\x7f\x61", 1, id="what no decoder takes, to its end"),
    ],
)
def test_items_are_counted_however_they_are_encoded(data: bytes, count: int) -> None:
    assert counted(data) == count
