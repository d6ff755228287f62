"""The decoders of the room under random bytes, changed bytes, and random CBOR that looks like what hosts send.

`tests/attacks` fuzzes the same decoders led by coverage; here the inputs know the form of a value, and so come further.
"""

from typing import Any

import cbor2
import pytest
from drakkar.actors.remote.failures import decode_failure
from drakkar.actors.remote.records import decode, encode
from drakkar.actors.remote.values import MAX_DEPTH, ValueRefused, pack, unpack
from drakkar.handlers.cbor import loads
from drakkar.transport.frames import FrameError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actors.remote.support import (
    RECORDS,
    REFS,
    TEXTS,
    VALUES,
    Deposit,
    Note,
    Nothing,
    Ref,
    nested,
    shape,
)

patient = settings(max_examples=300)

MARKS = st.sampled_from(
    [
        "test.deposit",
        "test.note",
        "test.nothing",
        "test.unknown",
        ["a:1", 7, ["balance", "deposit"], None],
        ["a:1", 1000, [], None],
        {"@": "test.deposit"},
        [],
        {},
        None,
        0,
    ]
)
FIELDS = st.sampled_from(["account", "amount", "text", "more", "@", "other"])
STRANGE = st.one_of(
    st.sampled_from(
        [cbor2.undefined, cbor2.CBORSimpleValue(1), cbor2.CBORTag(2, b"1" * 9), b"", float("nan")]
    ),
    st.builds(cbor2.CBORTag, st.just(28), st.builds(list)),  # a sample has to be hashable
)
WIRES = st.recursive(
    st.one_of(st.none(), st.integers(-9, 9), TEXTS, st.binary(max_size=3), MARKS, STRANGE),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(FIELDS, TEXTS, st.integers(0, 3), st.binary(max_size=2)), inner, max_size=4
        ),
        st.builds(lambda mark, rest: {**rest, "@": mark}, MARKS, st.dictionaries(FIELDS, inner, max_size=3)),
        st.builds(lambda inner: {"@": inner}, inner),
    ),
    max_leaves=15,
)
"""What may come from a host that knows the form of values, and keeps no rule."""


def check_value(data: bytes) -> bool:
    """Decode a value, and see that what comes out can be sent on and comes out alike; return whether any did."""
    try:
        value = unpack(data, REFS)
    except ValueRefused as error:
        check_text(error, 2000)
        return False
    only_known(value, MAX_DEPTH)
    assert shape(unpack(pack(value, REFS), REFS)) == shape(value)
    return True


def check_text(error: Exception, most: int) -> None:
    """See that no peer has a long text written."""
    assert len(str(error)) < most


def only_known(value: Any, depth: int) -> None:
    """See that there is nothing but what may be sent, and no more of it inside each other than is allowed."""
    kind = type(value)
    if kind in {type(None), bool, int, float, str, bytes, Ref}:
        return
    assert depth > 0
    if kind is list:
        parts = value
    elif kind is dict:
        assert {type(key) for key in value} <= {str}
        parts = list(value.values())
    else:
        assert kind in {Deposit, Note, Nothing}
        parts = list(vars(value).values()) if hasattr(value, "__dict__") else [value.account, value.amount]
    for part in parts:
        only_known(part, depth - 1)


@st.composite
def changed(draw: st.DrawFn, seeds: st.SearchStrategy[bytes]) -> bytes:
    """Good bytes, a few of which were replaced, cut out, or put in."""
    data = bytearray(draw(seeds))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([0, 1, 1, 1, 4])))
        data[at:end] = draw(st.binary(max_size=4))
    return bytes(data)


@patient
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    check_value(data)


@patient
@given(changed(VALUES.map(lambda value: pack(value, REFS))))
def test_changed_values_are_values_or_refused(data: bytes) -> None:
    check_value(data)


@patient
@given(WIRES)
def test_any_cbor_is_a_value_or_refused(wire: Any) -> None:
    check_value(cbor2.dumps(wire))


@pytest.mark.parametrize(
    "wire",
    [
        {"@": "test.deposit", "account": 1, "other": 2},
        {"@": "test.note", "text": [{"@": {"@": 1}}]},
        [{"@": ["a:1", 7, ["balance", "deposit"], None]}],
    ],
)
def test_good_inputs_come_through(wire: Any) -> None:
    """Else the fuzz would see refusals alone."""
    assert check_value(cbor2.dumps(wire))


@pytest.mark.parametrize(
    "mark", ["test.deposit", "test.unknown", {"@": 1}, [], ["a:1", 7, [], None]], ids=repr
)
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 2 * MAX_DEPTH + 4, 1000])
def test_marks_inside_each_other_end_at_the_bound(mark: Any, depth: int) -> None:
    for maker in (
        lambda inner: {"@": mark, "account": inner},
        lambda inner: {"@": [inner]},
        lambda inner: {"@": {"@": inner}},
        lambda inner: {"@": inner},
    ):
        wire = nested([maker], min(depth, 150))
        data = cbor2.dumps(wire)
        check_value(data)
    check_value(b"\x81" * depth + b"\x80")
    check_value(b"\xa1\x61@" * depth + b"\xa0")


# ---- records and failures


def check_record(data: bytes) -> None:
    try:
        row = loads(data, 10, plain_keys=False)
    except ValueError:  # no CBOR
        return
    try:
        record = decode(row)
    except FrameError as error:
        check_text(error, 400)
        return
    if record is not None:
        again = decode(loads(encode(record), 10))
        assert again == record
        assert type(again) is type(record)
        check_failure(record)


def check_failure(record: Any) -> None:
    failed = getattr(record, "failure", None) or getattr(record, "reason", None)
    if failed is not None:
        assert isinstance(decode_failure(failed, REFS), Exception)


@patient
@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    check_record(data)


@patient
@given(changed(RECORDS.map(encode)))
def test_changed_records_are_records_or_refused(data: bytes) -> None:
    check_record(data)


@patient
@given(st.integers(0, 13), st.lists(WIRES, max_size=7))
def test_any_fields_make_a_record_or_are_refused(kind: int, fields: list[Any]) -> None:
    check_record(cbor2.dumps([kind, *fields]))
