"""Checks of values that callers pass. Each raises a `ConfigError` that names the option, the value and its bounds."""

from collections.abc import Iterable, Sequence
from math import inf, isfinite, isnan
from typing import Any, Final, TypeGuard

from drakkar.handlers.errors import ConfigError

__all__ = [
    "MAX_INDEX",
    "MAX_NAME",
    "MAX_SIGNED",
    "MAX_TERM",
    "MAX_UNSIGNED",
    "are_whole",
    "check_choice",
    "check_name",
    "check_number",
    "check_switch",
    "check_timeout",
    "check_type",
    "check_wait",
    "check_whole",
    "is_text",
    "is_whole",
]

MAX_SIGNED: Final = (1 << 63) - 1
"""The largest signed 64-bit number: the limit of ids, origins, keys and hints, and of counts that a caller chooses."""
MAX_INDEX: Final = (1 << 62) - 1
"""The largest index of an entry. What counts on from an index, a term or an id fits 64 bits, wherever it is stored or sent."""
MAX_TERM: Final = (1 << 62) - 1
"""The last term: no replica campaigns after it."""
MAX_UNSIGNED: Final = (1 << 64) - 1
"""The largest unsigned 64-bit number: the limit of numbers of applications, and of clients and series of sessions."""
MAX_NAME: Final = 200
"""Characters of the name of an actor, of its class and of an attribute of it."""

_INT: Final = frozenset({int})


def is_whole(value: object, low: int = 0, high: int = MAX_SIGNED) -> TypeGuard[int]:
    """Return whether `value` is an int from `low` to `high`, both allowed. A bool does not pass, an IntEnum member does."""
    return isinstance(value, int) and low <= value <= high and not isinstance(value, bool)


def are_whole(values: Sequence[Any], high: int = MAX_SIGNED) -> bool:
    """Return whether each of `values` is an int from 0 to `high`, as `is_whole` says; of many, this is several times as fast."""
    if _INT.issuperset(map(type, values)):
        return not values or (min(values) >= 0 and max(values) <= high)
    return all(is_whole(value, 0, high) for value in values)


def is_text(value: object, most: int) -> TypeGuard[str]:
    """Return whether `value` is a str, and of no class derived from it, of 1 to `most` printable characters."""
    return type(value) is str and 1 <= len(value) <= most and value.isprintable()


def check_whole(option: str, value: object, low: int, high: int | None = None) -> None:
    """Check that `value` is an int from `low` to `high`, both allowed. Without `high` there is no upper bound."""
    if not _is_number(value, int) or value < low or (high is not None and value > high):
        raise ConfigError(option, value, f"must be a whole number {_bounds(low, high)}{_type(value, int)}")


def check_number(option: str, value: object, low: float, high: float | None = None) -> None:
    """Check that `value` is an int or a float from `low` to `high`, both allowed. NaN does not pass.

    Without `high` there is no upper bound, and infinity passes.
    """
    if not _is_number(value, int, float) or not low <= value <= (inf if high is None else high):
        raise ConfigError(option, value, f"must be a number {_bounds(low, high)}{_type(value, int, float)}")


def check_switch(option: str, value: object) -> None:
    """Check that `value` is True or False."""
    if type(value) is not bool:
        raise ConfigError(option, value, f"must be True or False{_type(value, bool)}")


def check_choice(option: str, value: object, choices: Iterable[object]) -> None:
    """Check that `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ConfigError(option, value, f"must be {' or '.join(map(repr, choices))}")


def check_name(option: str, value: object) -> None:
    """Check that `value` can name an actor, or an attribute of one, on its way between hosts."""
    if not is_text(value, MAX_NAME):
        shown = value[: MAX_NAME + 1] if isinstance(value, str | bytes) else value
        raise ConfigError(option, shown, f"must be a string of 1 to {MAX_NAME} printable characters")


def check_type(option: str, value: object, types: type | tuple[type, ...], description: str) -> None:
    """Check that `value` is an instance of `types`; `description` says what it must be."""
    if not isinstance(value, types):
        raise ConfigError(option, value, f"must be {description}, not {type(value).__name__}")


def check_timeout(timeout: object) -> None:
    """Check the timeout of a request, in seconds. None and infinity do not pass, since a request ends by its deadline."""
    if not _is_number(timeout, int, float) or not timeout >= 0:
        raise ConfigError("timeout", timeout, "must be a number of seconds, 0 or more")
    if not isfinite(timeout):
        raise ConfigError(
            "timeout", timeout, "must be a number of seconds, since a request ends by its deadline"
        )


def check_wait(timeout: object) -> None:
    """Check how many seconds a thread waits. None and infinity, for ever, pass; what is below 0 is as 0; NaN does not pass."""
    if timeout is not None and (not _is_number(timeout, int, float) or isnan(timeout)):
        raise ConfigError("timeout", timeout, "must be a number of seconds, or None to wait without an end")


def _is_number(value: object, *types: type) -> TypeGuard[float]:
    return isinstance(value, types) and not isinstance(value, bool)


def _bounds(low: float, high: float | None) -> str:
    return f"from {low} up" if high is None else f"from {low} to {_shown(high)}"


def _shown(bound: float) -> str:
    """Write 2**63 - 1 in this form, not as 19 digits."""
    if type(bound) is int and bound > 1 << 32 and not bound & (bound + 1):
        return f"2**{bound.bit_length()} - 1"
    return str(bound)


def _type(value: object, *allowed: type) -> str:
    return "" if type(value) in allowed else f", not {type(value).__name__}"
