"""Records: what goes out comes in; what no host sends ends the connection, and nothing else comes out."""

import math
from typing import Any

import cbor2
import pytest
from drakkar.actors.remote.failures import MAX_ARGS_BYTES, MAX_TEXT, MAX_TRACEBACK, MAX_TYPE, Failure
from drakkar.actors.remote.records import (
    MAX_ATTRIBUTE_DEPTH,
    MAX_MILLISECONDS,
    MAX_NAMES,
    MAX_PATH,
    RECORD_DEPTH,
    Attributes,
    Call,
    Died,
    Failed,
    FailKind,
    Found,
    Get,
    Record,
    Target,
    decode,
    decode_found,
    decode_names,
    encode,
    encode_found,
    encode_names,
    to_milliseconds,
)
from drakkar.handlers.cbor import loads
from drakkar.handlers.checks import MAX_NAME, MAX_SIGNED, check_name
from drakkar.handlers.errors import ConfigError
from drakkar.transport.frames import FrameError
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.remote.support import RECORDS, printable, targets

HERE = [5, 7]
LOST = ["bank.overdrawn", "ann lacks 5", "Traceback", b"\x80"]
ROWS: dict[str, list[Any]] = {
    "Tell": [1, HERE, b"m"],
    "Ask": [2, 9, HERE, 3000, b"m"],
    "Call": [3, 9, HERE, 3000, ["account", "balance"], b"\x80", b"\xa0"],
    "Get": [4, 9, HERE, 3000, ["limit"]],
    "Set": [5, 9, HERE, 3000, ["limit"], b"\x01"],
    "Answer": [6, 9, b"\x01"],
    "Failed": [7, 9, "raised", LOST],
    "Lookup": [8, 9, "ledger"],
    "Names": [9, 9],
    "Watch": [10, 9, HERE],
    "Unwatch": [11, 9],
    "Died": [12, 9, LOST],
    "Describe": [13, 9, HERE],
}
"""Each record as the protocol says: hosts of different versions must agree on it."""


def _levels(attributes: Any) -> int:
    return 1 + max(map(_levels, attributes.values()), default=0) if isinstance(attributes, dict) else 0


names = st.from_regex(r"[a-z]{1,5}", fullmatch=True)
ATTRIBUTES = st.recursive(
    st.dictionaries(names, st.booleans(), min_size=1, max_size=4),
    lambda inner: st.dictionaries(names, st.one_of(st.booleans(), inner), min_size=1, max_size=4),
    max_leaves=6,
).filter(lambda there: _levels(there) <= MAX_ATTRIBUTE_DEPTH)


def known(row: list[Any]) -> Record:
    record = decode(row)
    assert record is not None
    return record


@given(RECORDS)
def test_a_record_comes_in_as_it_went_out(record: Record) -> None:
    row = loads(encode(record), RECORD_DEPTH)
    assert known(row) == record
    assert type(known(row)) is type(record)


@pytest.mark.parametrize("name", ROWS)
def test_the_bytes_are_those_that_the_protocol_says(name: str) -> None:
    record = known(ROWS[name])
    assert type(record).__name__ == name
    assert encode(record) == cbor2.dumps(ROWS[name])


def test_what_comes_out_is_named_and_typed() -> None:
    call = known(ROWS["Call"])
    assert call == Call(9, Target(5, 7), 3000, ("account", "balance"), b"\x80", b"\xa0")
    failed = known(ROWS["Failed"])
    assert failed == Failed(9, FailKind.RAISED, Failure(*LOST))
    assert isinstance(failed, Failed)
    assert type(failed.kind) is FailKind
    assert known([12, 9, None]) == Died(9, None)


@pytest.mark.parametrize("name", ROWS)
def test_a_field_that_a_later_version_appends_is_ignored(name: str) -> None:
    assert known([*ROWS[name], "new"]) == known(ROWS[name])


@pytest.mark.parametrize("name", ROWS)
def test_a_record_with_a_field_too_few_is_refused(name: str) -> None:
    with pytest.raises(FrameError, match=f"a {name} has"):
        decode(ROWS[name][:-1])


@pytest.mark.parametrize("kind", [0, 14, 1000, MAX_SIGNED])
def test_a_kind_of_a_later_version_is_none(kind: int) -> None:
    assert decode([kind]) is None
    assert decode([kind, "whatever", b"it", ["says"]]) is None


@pytest.mark.parametrize(
    "row",
    [
        None,
        1,
        "ab",
        b"\x01",
        {},
        {1: 2},
        [],
        [None],
        ["1"],
        [True, HERE, b"m"],
        [1.0],
        [-1],
        [1 << 63],
        [[1]],
        [[]],
    ],
    ids=repr,
)
def test_what_is_no_record_is_refused(row: Any) -> None:
    with pytest.raises(FrameError, match="no list that begins with a number"):
        decode(row)


NO_NUMBERS = [-1, 1 << 63, 1.0, True, "1", None, b"1", [1], {}]
NO_TARGETS = [
    None,
    5,
    [],
    [5],
    [5, 7, 9],
    [5, -1],
    [-1, 7],
    [5, 1 << 63],
    [True, 7],
    ["5", 7],
    {"a": 1},
    b"57",
]
NO_TIMES = [-1, MAX_MILLISECONDS + 1, 1.5, True, None, "1"]
NO_BYTES = [None, "m", 1, [], ["m"], {}]
NO_NAMES = [None, "", "a\nb", "a" * (MAX_NAME + 1), b"a", 1, ["a"], "\u200b"]
NO_PATHS = [None, [], "ab", ["a"] * (MAX_PATH + 1), {}, *([name] for name in NO_NAMES if name != ["a"])]
NO_KINDS = [None, "", "RAISED", "other", 1, b"raised", ["raised"], {}]
NO_FAILURES = [
    None,
    [],
    LOST[:3],
    "lost",
    *([text, *LOST[1:]] for text in (None, 1, b"a", "x" * (MAX_TYPE + 1))),
    *([LOST[0], text, *LOST[2:]] for text in (None, 1, b"a", "x" * (MAX_TEXT + 1))),
    *([*LOST[:2], text, LOST[3]] for text in (None, 1, b"a", "x" * (MAX_TRACEBACK + 1))),
    *([*LOST[:3], args] for args in (1, "a", [], {}, bytes(MAX_ARGS_BYTES + 1))),
]
BAD: dict[str, list[list[Any]]] = {
    "Tell": [NO_TARGETS, NO_BYTES],
    "Ask": [NO_NUMBERS, NO_TARGETS, NO_TIMES, NO_BYTES],
    "Call": [NO_NUMBERS, NO_TARGETS, NO_TIMES, NO_PATHS, NO_BYTES, NO_BYTES],
    "Get": [NO_NUMBERS, NO_TARGETS, NO_TIMES, NO_PATHS],
    "Set": [NO_NUMBERS, NO_TARGETS, NO_TIMES, NO_PATHS, NO_BYTES],
    "Answer": [NO_NUMBERS, NO_BYTES],
    "Failed": [NO_NUMBERS, NO_KINDS, NO_FAILURES],
    "Lookup": [NO_NUMBERS, NO_NAMES],
    "Names": [NO_NUMBERS],
    "Watch": [NO_NUMBERS, NO_TARGETS],
    "Unwatch": [NO_NUMBERS],
    "Describe": [NO_NUMBERS, NO_TARGETS],
    "Died": [NO_NUMBERS, [bad for bad in NO_FAILURES if bad is not None]],
}


@pytest.mark.parametrize(("name", "at"), [(name, at) for name in BAD for at in range(len(BAD[name]))])
def test_each_field_is_checked(name: str, at: int) -> None:
    for bad in BAD[name][at]:
        row = list(ROWS[name])
        row[1 + at] = bad
        with pytest.raises(FrameError):
            decode(row)


def test_every_field_of_every_record_has_its_table() -> None:
    assert {name: len(row) - 1 for name, row in ROWS.items()} == {name: len(bad) for name, bad in BAD.items()}


def test_the_longest_fields_pass() -> None:
    longest = Failure("x" * MAX_TYPE, "x" * MAX_TEXT, "x" * MAX_TRACEBACK, bytes(MAX_ARGS_BYTES))
    for record in (
        Failed(MAX_SIGNED, FailKind.LATE, longest),
        Died(MAX_SIGNED, longest),
        Get(0, Target(0, 0), MAX_MILLISECONDS, ("a" * MAX_NAME,) * MAX_PATH),
    ):
        assert known(loads(encode(record), RECORD_DEPTH)) == record


def test_an_error_shows_no_more_than_a_part_of_a_field() -> None:
    with pytest.raises(FrameError) as caught:
        decode([8, 9, "x" * 100_000])
    assert len(str(caught.value)) < 200


# ---- what is known of an actor, and names


@given(targets, printable, st.one_of(st.just({}), ATTRIBUTES))
def test_what_is_known_of_an_actor_comes_out(target: Target, cls: str, attributes: Attributes) -> None:
    found = Found(target, cls, attributes)
    assert decode_found(encode_found(found)) == found


def test_attributes_that_no_record_can_name_are_left_out() -> None:
    """Else one odd attribute of an actor would end the connection of all who look for it."""
    odd = dict.fromkeys(("b" * (MAX_NAME + 1), "", "c\n", "x.y", "x()"), True)
    found = Found(Target(1, 2), "x" * 300, {"a": True, **odd, "below": odd, "d": False})
    assert decode_found(encode_found(found)) == Found(Target(1, 2), "x" * MAX_NAME, {"a": True, "d": False})
    assert decode_found(encode_found(Found(Target(1, 2), "a\n", {}))).cls == "?"
    many = {f"a{number}": True for number in range(MAX_NAMES + 1)}
    there = decode_found(encode_found(Found(Target(1, 2), "Ledger", many))).attributes
    assert list(there) == list(many)[:-1]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        *map(
            cbor2.dumps,
            [
                None,
                [],
                [HERE, "Ledger"],
                [None, "Ledger", None],
                [HERE, 1, None],
                [HERE, "Ledger", 1],
                [HERE, "Ledger", [1]],
                [HERE, "Ledger", [["a"]]],
                [HERE, "Ledger", ["a"] * (MAX_NAMES + 1)],
                [HERE, "Ledger", ["a.b.c.d.e"]],
                [HERE, "Ledger", ["()"]],
                [HERE, "Ledger", ["a..b"]],
                [HERE, "Ledger", ["a()()"]],
                [HERE, "Ledger", ["a", "a.b"]],
                [HERE, "Ledger", ["a()", "a.b"]],
                {"a": 1},
            ],
        ),
    ],
    ids=lambda value: f"{value[:8]!r}",
)
def test_what_tells_of_no_actor_is_refused(value: bytes) -> None:
    with pytest.raises(FrameError):
        decode_found(value)


@given(st.lists(printable, max_size=5))
def test_names_come_out(names: list[str]) -> None:
    assert decode_names(encode_names(names)) == names


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x9a\x00\x10\x00\x00" + b"\x80" * (1 << 20),
        *map(cbor2.dumps, [None, "ab", {"a": 1}, [1], [""], [["a"]], ["a"] * (MAX_NAMES + 1)]),
    ],
    ids=lambda value: f"{value[:8]!r}",
)
def test_what_are_no_names_is_refused(value: bytes) -> None:
    with pytest.raises(FrameError):
        decode_names(value)


def test_a_name_is_checked_before_it_is_sent() -> None:
    check_name("name", "a" * MAX_NAME)
    for bad in NO_NAMES:
        with pytest.raises(ConfigError, match="name="):
            check_name("name", bad)


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [
        (0, 0),
        (-1, 0),
        (3, 3000),
        (0.0001, 1),
        (1.0005, 1001),
        (1e300, MAX_MILLISECONDS),
        (math.inf, MAX_MILLISECONDS),
    ],
)
def test_a_deadline_is_never_earlier_than_it_was_meant(seconds: float, milliseconds: int) -> None:
    assert to_milliseconds(seconds) == milliseconds
