"""Results of commands as bytes, for whoever asks for one again: they come back as they were, of the very same types.

None, bool, int of 64 bits, float, str and bytes stand for themselves. CBOR would make a list of a tuple, and has keys
that are none of ours, so whatever holds other values is a list with a number in front that says what it was.
"""

from collections.abc import Iterable
from itertools import chain
from types import NoneType
from typing import Any, Final

import cbor2
from drakkar.handlers import cbor

__all__ = ["MAX_BYTES", "MAX_DEPTH", "NotEncodable", "decode_result", "encode_result"]

MAX_BYTES: Final = 1 << 20
"""Of one result. Part of what replicas agree on, like all that decides whether a result is kept."""
MAX_DEPTH: Final = 16
"""Containers in each other."""

_PLAIN: Final = frozenset({NoneType, bool, float})
_LIST, _TUPLE, _DICT = range(3)


class NotEncodable(ValueError):
    """The result cannot be kept; says why, in few words and alike on all replicas."""


def encode_result(result: Any) -> bytes:
    """The bytes of a result. Equal results give equal bytes on every host, dicts if they are in the same order.

    Raises `NotEncodable` for any other type, subclasses included, and for more than `MAX_BYTES` or `MAX_DEPTH`.
    """
    try:
        kept = cbor2.dumps(_Packer().pack(result, 0))
    except UnicodeEncodeError:
        raise NotEncodable("a text that is no valid Unicode") from None
    if len(kept) > MAX_BYTES:
        raise _too_large()
    return kept


def decode_result(kept: bytes) -> Any:
    """The result of these bytes. Raises `ValueError` where they are none."""
    try:
        return _unpack(cbor.loads(kept, max_depth=MAX_DEPTH + 1))
    except TypeError as error:  # a list as a key
        raise ValueError(f"no kept result: {error}") from error


def _too_large() -> NotEncodable:
    return NotEncodable(f"larger than {MAX_BYTES} bytes")


class _Packer:
    """Makes CBOR's values of a result, and gives up as soon as it is sure to be too large.

    A list may hold itself, or one thing many times over, so the values are counted as they are met.
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
        raise NotEncodable(f"of type {kind.__qualname__!a:.100}")

    def _pack_all(self, which: int, values: Iterable[Any], depth: int) -> list[Any]:
        return [which, *(self.pack(value, depth + 1) for value in values)]


def _unpack(value: Any) -> Any:
    kind = type(value)
    if kind is not list:
        if kind is dict:
            raise ValueError("no kept result: a map")
        return value
    if not value or type(value[0]) is not int:
        raise ValueError("no kept result: a list that does not say what it was")
    which, *packed = value
    values = [_unpack(each) for each in packed]
    if which == _LIST:
        return values
    if which == _TUPLE:
        return tuple(values)
    if which != _DICT or len(values) % 2:
        raise ValueError(f"no kept result: {len(values)} values of the unknown kind {which}")
    result = dict(zip(values[::2], values[1::2], strict=True))
    if 2 * len(result) != len(values):
        raise ValueError("no kept result: a dict has a key twice")
    return result
