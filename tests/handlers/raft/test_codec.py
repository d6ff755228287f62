"""A membership as columns: they come back as they were, and nothing else passes."""

import cbor2
import pytest
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.codec import decode_membership, encode_membership
from drakkar.handlers.raft.state import Membership
from hypothesis import given
from hypothesis import strategies as st

ID = st.integers(1, MAX_SIGNED)
IDS = st.frozensets(ID, max_size=4)
MEMBERSHIPS = st.builds(
    Membership,
    IDS, IDS, IDS, IDS, IDS, IDS, st.booleans(), IDS, st.integers(0, MAX_INDEX),
    st.dictionaries(ID, st.text(max_size=9), max_size=4),
    st.dictionaries(ID, st.integers(0, MAX_SIGNED), max_size=4),
)  # fmt: skip

COLUMNS = encode_membership(
    Membership({1: "a:1", 2: "b:2"}, {3}, {4}, {1, 2, 5}, {5}, {6}, True, {7}, 8, {9: "c:3"})
)


@given(MEMBERSHIPS)
def test_a_membership_comes_back_as_it_was(membership):
    columns = cbor2.loads(cbor2.dumps(encode_membership(membership)))
    assert decode_membership(columns) == membership


def test_the_columns_are_those_that_stand_in_logs_and_snapshots_already():
    assert COLUMNS == [
        [1, 2], [3], [4], [1, 2, 5], [5], [6], True, [7], 8, [[1, "a:1"], [2, "b:2"], [9, "c:3"]]
    ]  # fmt: skip


def test_homes_are_a_column_of_their_own_where_any_is_known():
    membership = Membership({1: "a:1"}, homes={2: 0, 1: 77})
    assert encode_membership(membership)[10:] == [[[1, 77], [2, 0]]]


def with_column(number, value):
    return [*COLUMNS[:number], value, *COLUMNS[number + 1 :]]


WRONG = [
    (None, "not a list of 10 columns"),
    (COLUMNS[:9], "not a list of 10 columns"),
    ([*COLUMNS, [], 1], "not a list of 10 columns, or one more"),
    ([*COLUMNS, 1], "the homes of a membership are 1, which is no list"),
    ([*COLUMNS, [[1]]], "[1], which is no pair of an id and the number of a host"),
    ([*COLUMNS, [[1, 1 << 63]]], "which is no pair of an id and the number of a host"),
    ([*COLUMNS, [[1, 5], [1, 6]]], "the homes of a membership name a replica twice"),
    (tuple(COLUMNS), "not a list of 10 columns"),
    (with_column(0, {"1": 2}), "the voters of a membership are {'1': 2}, which is no list"),
    (with_column(1, [0]), "the observers of a membership name 0, which is no replica id"),
    (with_column(2, [True]), "the witnesses of a membership name True, which is no replica id"),
    (with_column(3, ["1"]), "the outgoing of a membership name '1', which is no replica id"),
    (with_column(4, [MAX_SIGNED + 1]), "which is no replica id"),
    (with_column(5, [[1]]), "the next_observers of a membership name [1], which is no replica id"),
    (with_column(6, 1), "the auto_leave of a membership is 1, which is no boolean"),
    (with_column(7, [3, 3]), "the removed of a membership name a replica twice"),
    (with_column(8, -1), "the change_id of a membership is -1, which is no index"),
    (with_column(8, MAX_INDEX + 1), "which is no index"),
    (with_column(8, False), "the change_id of a membership is False, which is no index"),
    (with_column(9, {}), "the addresses of a membership are {}, which is no list"),
    (with_column(9, [[1, 2]]), "[1, 2], which is no pair of an id and a string"),
    (with_column(9, [[1]]), "[1], which is no pair of an id and a string"),
    (with_column(9, [["1", "a:1"]]), "the addresses of a membership name '1', which is no replica id"),
    (with_column(9, [[1, "a:1"], [1, "b:2"]]), "the addresses of a membership name a replica twice"),
]


@pytest.mark.parametrize(("columns", "text"), WRONG)
def test_what_is_no_membership_is_refused_with_the_value(columns, text):
    with pytest.raises(CorruptData) as caught:
        decode_membership(columns)
    assert text in str(caught.value)
