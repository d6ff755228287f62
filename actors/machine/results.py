"""Results of commands as bytes, for a client that asks again: they come back with the same values and types.

None, bool, int of 64 bits, float, str and bytes are encoded as such. CBOR makes a list of a tuple and takes only some
keys, so a list, tuple or dict is encoded as a list that begins with a number for its type. So is a `Refused`, which is
the whole outcome of its command: a list with its text.
"""

from collections.abc import Iterable
from itertools import chain
from types import NoneType
from typing import Any, Final

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.errors import Refused

__all__ = ["MAX_BYTES", "MAX_DEPTH", "NotEncodable", "decode_result", "encode_result"]

MAX_BYTES: Final = 1 << 20
"""Bytes of one result. The replicas of a shard must agree on it, as on everything that decides whether a result is kept."""
MAX_DEPTH: Final = 16
"""Containers inside each other."""

_PLAIN: Final = frozenset({NoneType, bool, float})
_LIST, _TUPLE, _DICT, _REFUSED = range(4)


class NotEncodable(ValueError):
    """The result cannot be encoded. The text is part of the replicated state, so it is the same on all replicas."""


def encode_result(result: Any) -> bytes:
    """Return the bytes of a result. Equal results give equal bytes on every host, dicts only in the same order.

    Raises `NotEncodable` for any other type, subclasses included, and beyond `MAX_BYTES` or `MAX_DEPTH`.
    """
    try:
        encoded = cbor2.dumps(_Packer().pack(result, 0))
    except UnicodeEncodeError:
        raise NotEncodable("a text that is no valid Unicode") from None
    if len(encoded) > MAX_BYTES:
        raise _too_large()
    return encoded


def decode_result(encoded: bytes) -> Any:
    """Return the result of these bytes. Raises `ValueError` if they are not what `encode_result` makes."""
    try:
        value = cbor.loads(encoded, max_depth=MAX_DEPTH + 1)
        return Refused(value[1]) if _is_refusal(value) else _unpack(value)
    except TypeError as error:  # a list as a key
        raise ValueError(f"no encoded result: {error}") from error


def _is_refusal(value: Any) -> bool:
    return type(value) is list and list(map(type, value)) == [int, str] and value[0] == _REFUSED


def _too_large() -> NotEncodable:
    return NotEncodable(f"larger than {MAX_BYTES} bytes")


class _Packer:
    """Makes the values for CBOR, and gives up as soon as the result is sure to be too large.

    A list may hold itself, or one value many times, so it counts the values as it goes.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def pack(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self._left -= 1 + (len(value) if kind is str or kind is bytes else 0)
        if self._left < 0:
            raise _too_large()
        if kind in _PLAIN or kind is str or kind is bytes:
            return value
        if kind is int:
            if -(1 << 64) <= value < 1 << 64:
                return value
            raise NotEncodable("an int of more than 64 bits")
        if depth == MAX_DEPTH:
            raise NotEncodable(f"more than {MAX_DEPTH} containers in each other")
        if kind is list:
            return self._pack_all(_LIST, value, depth)
        if kind is tuple:
            return self._pack_all(_TUPLE, value, depth)
        if kind is dict:
            return self._pack_all(_DICT, chain.from_iterable(value.items()), depth)
        if kind is Refused and not depth:
            return self._pack_all(_REFUSED, [str(value)], depth)
        raise NotEncodable(f"of type {kind.__qualname__!a:.100}")

    def _pack_all(self, which: int, values: Iterable[Any], depth: int) -> list[Any]:
        return [which, *(self.pack(value, depth + 1) for value in values)]


def _unpack(value: Any) -> Any:
    kind = type(value)
    if kind is not list:
        if kind is dict:
            raise ValueError("no encoded result: a map")
        return value
    if not value or type(value[0]) is not int:
        raise ValueError("no encoded result: a list without its type")
    which, *packed = value
    values = [_unpack(each) for each in packed]
    if which == _LIST:
        return values
    if which == _TUPLE:
        return tuple(values)
    if which != _DICT or len(values) % 2:
        raise ValueError(f"no encoded result: {len(values)} values of the unknown type {which}")
    result = dict(zip(values[::2], values[1::2], strict=True))
    if 2 * len(result) != len(values):
        raise ValueError("no encoded result: a dict has a key twice")
    return result
