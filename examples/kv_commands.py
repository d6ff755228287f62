"""The commands of the key-value example as they stand in the log: what `KeyValue` applies, and nothing else.

A host's own front writes them well formed. But an entry of the log comes from any host that may propose, and what a
state machine fails at stops the replica, on every host. So each command is checked as a whole before any of it is applied.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from drakkar.handlers import cbor

__all__ = ["MAX_PATTERN", "WrongCommandError", "decode"]

MAX_PATTERN: Final = 1 << 10
"""Maximum bytes of a pattern of KEYS."""


class WrongCommandError(Exception):
    """The bytes are no command of this store. The text says why, and is the same on every host."""


def decode(command: bytes) -> tuple[str, Sequence[Any]]:
    """Return the name of a command, and its arguments. Those of EXEC are decoded commands themselves.

    Raises `WrongCommandError`.
    """
    name, arguments = _decode(command)
    if name == "EXEC":
        if not _are_bytes(arguments):
            raise WrongCommandError("EXEC takes commands")
        arguments = [_checked(*_decode(each)) for each in arguments]
        return name, arguments
    return _checked(name, arguments)


def _decode(command: bytes) -> tuple[Any, list[Any]]:
    try:
        decoded = cbor.loads(command, 2)
    except ValueError:
        decoded = None
    if type(decoded) is not list or not decoded:
        raise WrongCommandError(f"{len(command)} bytes are not the CBOR list of a name and arguments")
    return decoded[0], decoded[1:]


def _checked(name: Any, arguments: list[Any]) -> tuple[str, list[Any]]:
    fits = _COMMANDS.get(name) if type(name) is str else None
    if fits is None:
        raise WrongCommandError(f"there is no command {name!r:.40}")
    if not fits(arguments):
        raise WrongCommandError(f"{name} was given arguments that it does not take")
    return name, arguments


def _are_bytes(arguments: Sequence[Any]) -> bool:
    return all(type(argument) is bytes for argument in arguments)


def _is_number(argument: Any) -> bool:
    # The amount of a DECRBY is turned round, so it may be 2**63.
    return type(argument) is int and -(1 << 63) <= argument <= 1 << 63


def _fits_set(arguments: Sequence[Any]) -> bool:
    options = arguments[2:]
    return (
        len(arguments) >= 2
        and _are_bytes(arguments[:2])
        and (not options or (len(options) <= 3 and all(option in ("NX", "XX", "GET") for option in options)))
    )


def _fits_mset(arguments: Sequence[Any]) -> bool:
    return len(arguments) % 2 == 0 and _are_bytes(arguments)


def _fits_incr(arguments: Sequence[Any]) -> bool:
    return len(arguments) == 2 and type(arguments[0]) is bytes and _is_number(arguments[1])


def _fits_append(arguments: Sequence[Any]) -> bool:
    return len(arguments) == 3 and _are_bytes(arguments[:2]) and _is_number(arguments[2])


def _fits_get(arguments: Sequence[Any]) -> bool:
    return len(arguments) == 1 and _are_bytes(arguments)


def _fits_keys(arguments: Sequence[Any]) -> bool:
    return _fits_get(arguments) and len(arguments[0]) <= MAX_PATTERN


def _is_empty(arguments: Sequence[Any]) -> bool:
    return not arguments


_COMMANDS: Final[Mapping[str, Callable[[Sequence[Any]], bool]]] = {
    "SET": _fits_set,
    "MSET": _fits_mset,
    "DEL": _are_bytes,
    "INCR": _fits_incr,
    "APPEND": _fits_append,
    "FLUSHALL": _is_empty,
    # Reads, in a transaction.
    "GET": _fits_get,
    "MGET": _are_bytes,
    "EXISTS": _are_bytes,
    "DBSIZE": _is_empty,
    "KEYS": _fits_keys,
}
