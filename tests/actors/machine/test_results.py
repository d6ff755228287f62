"""Results that are kept for a second asker: they come back as they were, or are refused."""

import enum
import math
from decimal import Decimal

import cbor2
import pytest
from drakkar.actors.machine.results import MAX_BYTES, MAX_DEPTH, NotEncodable, decode_result, encode_result
from drakkar.handlers.errors import Refused
from hypothesis import given
from hypothesis import strategies as st

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 64), (1 << 64) - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
)
RESULTS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.one_of(PLAIN, st.tuples(PLAIN, PLAIN)), inner),
    ),
    max_leaves=10,
)


def shape(value):
    """A value with the types of all that it holds, since 1 == 1.0 == True, and with the order of dicts."""
    if type(value) in {list, tuple}:
        return type(value), [shape(each) for each in value]
    if type(value) is dict:
        return dict, [(shape(key), shape(each)) for key, each in value.items()]
    return type(value), repr(value)


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


@given(RESULTS)
def test_a_result_comes_back_as_it_was_with_all_its_types(result):
    assert shape(decode_result(encode_result(result))) == shape(result)


def test_what_is_no_number_comes_back_as_none_too():
    assert math.isnan(decode_result(encode_result(math.nan)))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_refusal_comes_back_as_one_with_its_text(text):
    kept = decode_result(encode_result(Refused(text)))
    assert type(kept) is Refused
    assert str(kept) == text


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "result",
    [
        pytest.param({1, 2}, id="a set, whose order differs from host to host"),
        pytest.param(Colour.RED, id="a subclass, which would come back as what it is made of"),
        pytest.param(Decimal(1), id="what CBOR needs a tag for"),
        pytest.param(1 << 64, id="a number that is too large"),
        pytest.param(-(1 << 64) - 1, id="a number that is too small"),
        pytest.param("\ud800", id="half a character"),
        pytest.param([("deep", {"down": object()})], id="an object inside"),
        pytest.param([Refused("no")], id="a refusal that is no outcome, but a value"),
        pytest.param(nested(MAX_DEPTH + 1), id="too deep"),
        pytest.param(bytes(MAX_BYTES + 1), id="too many bytes"),
        pytest.param([None] * (MAX_BYTES + 1), id="too many values"),
        pytest.param([1000] * (MAX_BYTES // 2), id="too large only as bytes"),
    ],
)
def test_what_would_not_come_back_as_it_was_is_not_kept(result):
    with pytest.raises(NotEncodable):
        encode_result(result)


def test_one_thing_held_many_times_over_ends_soon():
    many = []
    for _ in range(MAX_DEPTH - 1):
        many = [many] * 10
    with pytest.raises(NotEncodable, match=r"larger"):
        encode_result(many)


def test_a_list_that_holds_itself_is_not_kept():
    endless = []
    endless += [endless] * 10
    with pytest.raises(NotEncodable, match=r"in each other"):
        encode_result(endless)


def test_the_deepest_result_that_is_kept_comes_back():
    assert decode_result(encode_result(nested(MAX_DEPTH))) == nested(MAX_DEPTH)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({}, id="a map"),
        pytest.param([], id="a list without its kind"),
        pytest.param([True], id="a kind that is no number"),
        pytest.param([3, 1], id="an unknown kind"),
        pytest.param([2, 1], id="a key without a value"),
        pytest.param([2, 1, 2, 1, 3], id="a key twice"),
        pytest.param([2, [0], 1], id="a list as a key"),
        pytest.param(Decimal(1), id="a tag"),
        pytest.param(nested(MAX_DEPTH + 2), id="too deep"),
    ],
)
def test_bytes_of_no_result_are_refused(value):
    with pytest.raises(ValueError):
        decode_result(cbor2.dumps(value))
