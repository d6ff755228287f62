"""The checks of callers' values: what passes, and what the error says."""

import math
from enum import IntEnum

import pytest
from drakkar.handlers.checks import (
    MAX_NAME,
    MAX_SIGNED,
    are_whole,
    check_choice,
    check_name,
    check_number,
    check_switch,
    check_timeout,
    check_type,
    check_wait,
    check_whole,
    is_whole,
)
from drakkar.handlers.errors import ConfigError


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize("value", [0, 1, MAX_SIGNED, Number.ONE])
def test_a_whole_number_is_an_int_within_its_bounds(value):
    assert is_whole(value)
    assert are_whole([2, value])


@pytest.mark.parametrize("value", [-1, MAX_SIGNED + 1, True, 1.0, "1", None])
def test_a_bool_a_float_and_a_number_out_of_bounds_are_no_whole_numbers(value):
    assert not is_whole(value)
    assert not are_whole([2, value])


def test_a_bound_of_ones_own_holds_for_each():
    assert are_whole([9, Number.ONE], 9)
    assert not are_whole([9, Number.ONE], 8)
    assert not are_whole([9, 1], 8)


def test_of_no_values_all_are_whole_numbers():
    assert are_whole([])


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lambda: check_whole("n", 0, 1, 64), "n=0: must be a whole number from 1 to 64"),
        (lambda: check_whole("n", 0, 1), "n=0: must be a whole number from 1 up"),
        (lambda: check_whole("n", 0, 1, MAX_SIGNED), "n=0: must be a whole number from 1 to 2**63 - 1"),
        (lambda: check_whole("n", True, 0, 9), "n=True: must be a whole number from 0 to 9, not bool"),
        (lambda: check_whole("n", "3", 0, 9), "n='3': must be a whole number from 0 to 9, not str"),
        (lambda: check_number("n", math.nan, 0.5, 9), "n=nan: must be a number from 0.5 to 9"),
        (lambda: check_number("n", 0, 0.5), "n=0: must be a number from 0.5 up"),
        (lambda: check_number("n", math.nan, 0.5), "n=nan: must be a number from 0.5 up"),
        (lambda: check_number("n", "x", 0.5, 9), "n='x': must be a number from 0.5 to 9, not str"),
        (lambda: check_number("n", True, 0.5, 9), "n=True: must be a number from 0.5 to 9, not bool"),
        (lambda: check_switch("s", 1), "s=1: must be True or False, not int"),
        (lambda: check_choice("c", "lz4", ("none", "zlib")), "c='lz4': must be 'none' or 'zlib'"),
        (lambda: check_choice("c", [], ("none", "zlib")), "c=[]: must be 'none' or 'zlib'"),
        (lambda: check_timeout(-1), "timeout=-1: must be a number of seconds, 0 or more"),
        (lambda: check_timeout(math.nan), "timeout=nan: must be a number of seconds, 0 or more"),
        (lambda: check_timeout(None), "timeout=None: must be a number of seconds, 0 or more"),
        (
            lambda: check_timeout(math.inf),
            "timeout=inf: must be a number of seconds, since a request ends by its deadline",
        ),
        (
            lambda: check_wait(math.nan),
            "timeout=nan: must be a number of seconds, or None to wait without an end",
        ),
        (lambda: check_wait("3"), "timeout='3': must be a number of seconds, or None to wait without an end"),
        (
            lambda: check_wait(True),
            "timeout=True: must be a number of seconds, or None to wait without an end",
        ),
        (lambda: check_name("n", 3), f"n=3: must be a string of 1 to {MAX_NAME} printable characters"),
        (lambda: check_name("n", ""), f"n='': must be a string of 1 to {MAX_NAME} printable characters"),
        (
            lambda: check_name("n", "a" * 1_000_000),
            f"n='{'a' * (MAX_NAME + 1)}': must be a string of 1 to {MAX_NAME} printable characters",
        ),
        (lambda: check_type("n", 3, str, "a text"), "n=3: must be a text, not int"),
    ],
)
def test_the_error_names_the_option_the_value_and_its_bounds(check, text):
    with pytest.raises(ConfigError) as caught:
        check()
    assert str(caught.value) == text


def test_what_is_within_its_bounds_passes():
    check_whole("n", 1, 1, 1)
    check_whole("n", 1 << 70, 1)
    check_number("n", 0.5, 0.5, 0.5)
    check_number("n", math.inf, 0.5)
    check_switch("s", False)
    check_choice("c", "none", ("none", "zlib"))
    check_timeout(0)
    check_timeout(1e30)
    check_name("n", "a" * MAX_NAME)
    check_type("n", {}, dict, "a mapping")
    for timeout in (None, 0, -0.5, 3, math.inf):
        check_wait(timeout)
