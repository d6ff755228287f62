"""The strict profile: how many items bytes of CBOR have is known before any of them is decoded."""

import cbor2
import pytest
from drakkar.handlers.cbor import has_more_items, loads
from hypothesis import given
from hypothesis import strategies as st

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 64), (1 << 64) - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.sampled_from([b"x" * size for size in (23, 24, 255, 256, 65_535, 65_536)]),
    st.sampled_from(["x" * size for size in (23, 24, 255, 256, 65_535, 65_536)]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text("abc"), inner)), max_leaves=20
)


def items(value):
    """The number of items, counted in the value itself."""
    if isinstance(value, list):
        return 1 + sum(map(items, value))
    if isinstance(value, dict):
        return 1 + sum(1 + items(each) for each in value.values())
    return 1


@given(VALUES)
def test_items_are_counted_without_decoding_them(value):
    data, count = cbor2.dumps(value), items(value)
    assert has_more_items(data, count - 1)
    assert not has_more_items(data, count)


@given(VALUES)
def test_a_value_with_as_many_items_as_allowed_is_decoded_and_one_with_more_is_not(value):
    data, count = cbor2.dumps(value), items(value)
    assert repr(loads(data, 100, max_items=count)) == repr(loads(data, 100))
    with pytest.raises(ValueError, match="items"):
        loads(data, 100, max_items=count - 1)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x9a\x00\x10\x00\x00" + b"\x80" * (1 << 20), id="a million empty lists"),
        pytest.param(b"\xba\x00\x08\x00\x00" + b"\x60\x80" * (1 << 19), id="a map of them"),
        pytest.param(b"\xff" + b"\x80" * 5000, id="behind a mark that ends nothing"),
        pytest.param(b"\x9f" + b"\x80" * 5000, id="in a list of indefinite length"),
        pytest.param(b"\x1c" + b"\x80" * 5000, id="behind a byte without a meaning"),
        pytest.param(b"\x78\x00" + b"\x80" * 5000, id="behind an empty string"),
        pytest.param(b"\xd8\x80" * 5000, id="a million tags"),
        pytest.param(b"\xf8\x20" * 5000, id="simple values of two bytes"),
    ],
)
def test_a_body_of_many_items_is_refused_before_it_is_decoded(data, monkeypatch):
    monkeypatch.delattr(cbor2, "CBORDecoder")
    with pytest.raises(ValueError, match="more than 4000 items"):
        loads(data, 100, max_items=4000)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x58", id="a string without its length"),
        pytest.param(b"\x5b\x00\x00\x01", id="a string with half its length"),
        pytest.param(b"\x7b" + b"\xff" * 8, id="a string that is longer than all memory"),
        pytest.param(b"\x5a\x00\xff\xff\xff" + b"\x80" * 100, id="a string that ends after the bytes do"),
    ],
)
def test_bytes_that_end_too_soon_have_few_items(data):
    assert not has_more_items(data, 1)
    with pytest.raises(ValueError):
        loads(data, 100, max_items=1)


@given(st.binary(max_size=200), st.integers(0, 50))
def test_any_bytes_are_counted(data, most):
    has_more_items(data, most)
    assert has_more_items(memoryview(data), most) == has_more_items(data, most)
