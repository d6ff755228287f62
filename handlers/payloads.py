"""What a message may have with it: the payload, as bytes and back, and how much of it; and the numbers. For any protocol.

Strings, bytes, numbers, booleans, None, and lists and dicts of those. A tuple comes out as a list.
"""

import math
import sys
from itertools import chain
from typing import Any, Final

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_UNSIGNED, is_whole
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message

__all__ = [
    "NUMBERS",
    "PAYLOAD_LIMIT",
    "check_message",
    "decode_payload",
    "encode_payload",
    "payload_bytes",
    "sent_payload",
]

NUMBERS: Final = ("shard", "term", "log_term", "log_index", "commit", "hint", "hint_high")
"""The fields of a `Message` that are numbers, beside its type and the two nodes."""

PAYLOAD_LIMIT: Final = 8 << 10
"""Maximum bytes of one message's encoded payload. It is for control; between replicas, bulk travels as entries."""

_MAX_DEPTH: Final = 16
"""Lists and dicts inside each other."""
_MAX_KEY: Final = (1 << 31) - 1
_SCALARS: Final = frozenset({type(None), bool, float, str, bytes})
_CONTAINERS: Final = (list, tuple, dict, set, frozenset)
_OBJECT_BYTES: Final = 1 << 10
"""What an object that cannot be sent counts at least, such as an actor's reference: what it refers to is not known."""


def payload_bytes(payload: Any) -> int:
    """Return how many bytes a payload takes when it is encoded. Objects of this process count what they take in memory, or 1 KiB.

    Raises `ValueError` that says how many bytes it takes where they are too many. No more of it is looked at than is allowed.
    """
    size, waiting = 0, [payload]
    while waiting:
        value = waiting.pop()
        size += _bytes_of(value)
        inside = len(value) if isinstance(value, _CONTAINERS) else 0
        if size + len(waiting) + inside > PAYLOAD_LIMIT:
            size, more = size + len(waiting) + inside, bool(waiting or inside)
            raise ValueError(
                f"its payload takes {'at least ' if more else ''}{size} bytes, and {PAYLOAD_LIMIT} are allowed: send several messages, or bulk as a command or record"
            )
        if inside:
            waiting += chain(value, value.values()) if isinstance(value, dict) else value
    return size


def _bytes_of(value: Any) -> int:
    """How many bytes a value takes without what is inside it. Of a long text no copy is made: its characters count."""
    if isinstance(value, str):
        long = len(value) > PAYLOAD_LIMIT
        size = len(value) if long else len(value.encode(errors="surrogatepass"))
        return _head(size) + size
    if isinstance(value, bytes):
        return _head(len(value)) + len(value)
    if isinstance(value, int):
        number = value if value >= 0 else -1 - value
        return _head(number) if number <= MAX_UNSIGNED else number.bit_length() // 8
    if isinstance(value, float):
        return 9 if math.isfinite(value) else 3
    if isinstance(value, _CONTAINERS):
        return _head(len(value))
    return 1 if value is None else max(_OBJECT_BYTES, sys.getsizeof(value))


def _head(number: int) -> int:
    """How many bytes CBOR needs for a small number, or for the length of what follows."""
    return (
        1
        if number < 24
        else 2
        if number < 1 << 8
        else 3
        if number < 1 << 16
        else 5
        if number < 1 << 32
        else 9
    )


def encode_payload(payload: Any) -> bytes:
    """Return the bytes of a payload. Raises `ValueError` that says what cannot be sent, or how long it is, and the remedy."""
    payload_bytes(payload)  # before the rest of one that is too large is looked at, and all of it encoded
    try:
        _check(payload, _MAX_DEPTH)
        return cbor2.dumps(payload)
    except (cbor2.CBOREncodeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"its payload cannot be sent: {error}; use numbers, strings, bytes, lists and dicts"
        ) from error


def decode_payload(data: bytes | memoryview) -> Any:
    """Return the payload of these bytes, which may come from a hostile host. Raises `ValueError` unless `encode_payload` made them."""
    if len(data) > PAYLOAD_LIMIT:
        raise ValueError(f"a payload takes {len(data)} bytes, and {PAYLOAD_LIMIT} are allowed")
    value = cbor.loads(data, _MAX_DEPTH, plain_keys=False)
    _check(value, _MAX_DEPTH)
    return value


def sent_payload(type_: Any, payload: Any) -> Any:
    """Return a payload as it is now and as it travels: a copy, with lists for tuples.

    Raises `ConfigError`, which names the type and the number of bytes, unless a message of the type can be sent with it.
    """
    if payload is None:
        return None
    try:
        return decode_payload(encode_payload(payload))
    except ValueError as error:
        raise ConfigError("message", str(type_), str(error)) from error


def check_message(message: Message) -> None:
    """Raise `ConfigError` unless a message can travel between nodes without Raft, but for its payload: see `sent_payload`."""
    for name in NUMBERS:
        if not is_whole(value := getattr(message, name)):
            raise ConfigError(
                name,
                value,
                f"must be a whole number from 0 to 2**63 - 1, in a message of type {message.type}",
            )
    if type(message.reject) is not bool:
        raise ConfigError(
            "reject", message.reject, f"must be True or False, in a message of type {message.type}"
        )
    if message.entries or message.snapshot is not None:
        raise ConfigError(
            "message", str(message.type), "has entries or a snapshot, which are Raft's: send a payload"
        )


def _check(value: Any, depth: int) -> None:
    """Raise `ValueError` unless CBOR encodes `value` without tags, with so many lists and dicts inside each other at most."""
    kind = type(value)
    if kind in _SCALARS:
        return
    if kind is int:
        if not -MAX_UNSIGNED - 1 <= value <= MAX_UNSIGNED:
            raise ValueError("a number has more than 64 bits")
        return
    if kind not in {list, tuple, dict}:
        raise ValueError(f"{kind.__name__} cannot be sent to another host")
    if depth == 0:
        raise ValueError(f"more than {_MAX_DEPTH} lists and dicts are inside each other")
    if kind is dict:
        for key in value:
            if type(key) is not str and not (type(key) is int and abs(key) <= _MAX_KEY):
                raise ValueError(f"the key {key!r:.60} is neither a string nor a small number")
    for item in value.values() if kind is dict else value:
        _check(item, depth - 1)
