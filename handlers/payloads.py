"""What a message may have with it: the payload, as bytes and back, and how much of it; and the numbers. For any protocol.

Strings, bytes, numbers, booleans, None, and lists and dicts of those. A tuple comes out as a list.
"""

from typing import Any, Final

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_UNSIGNED, is_whole
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message

__all__ = ["NUMBERS", "PAYLOAD_LIMIT", "check_message", "check_payload", "decode_payload", "encode_payload"]

NUMBERS: Final = ("shard", "term", "log_term", "log_index", "commit", "hint", "hint_high")
"""The fields of a `Message` that are numbers, beside its type and the two nodes."""

PAYLOAD_LIMIT: Final = 8 << 10
"""Maximum bytes of one message's encoded payload. It is for control; between replicas, bulk travels as entries."""

_MAX_DEPTH: Final = 16
"""Lists and dicts inside each other."""
_MAX_KEY: Final = (1 << 31) - 1
_SCALARS: Final = frozenset({type(None), bool, float, str, bytes})


def encode_payload(payload: Any) -> bytes:
    """Return the bytes of a payload. Raises `ValueError` that says what cannot be sent, or how long it is, and the remedy."""
    try:
        _check(payload, _MAX_DEPTH)
        encoded = cbor2.dumps(payload)
    except (cbor2.CBOREncodeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"its payload cannot be sent: {error}; use numbers, strings, bytes, lists and dicts"
        ) from error
    if len(encoded) > PAYLOAD_LIMIT:
        raise ValueError(
            f"its payload takes {len(encoded)} bytes, and {PAYLOAD_LIMIT} are allowed: send bulk as entries"
        )
    return encoded


def decode_payload(data: bytes | memoryview) -> Any:
    """Return the payload of these bytes, which may come from a hostile host. Raises `ValueError` unless `encode_payload` made them."""
    if len(data) > PAYLOAD_LIMIT:
        raise ValueError(f"a payload takes {len(data)} bytes, and {PAYLOAD_LIMIT} are allowed")
    value = cbor.loads(data, _MAX_DEPTH, plain_keys=False)
    _check(value, _MAX_DEPTH)
    return value


def check_payload(type_: Any, payload: Any) -> None:
    """Raise `ConfigError`, which names the type and the number of bytes, unless a message of the type can be sent with this payload."""
    if payload is None:
        return
    try:
        encode_payload(payload)
    except ValueError as error:
        raise ConfigError("message", str(type_), str(error)) from error


def check_message(message: Message) -> None:
    """Raise `ConfigError` unless a message can travel between nodes without Raft, which have numbers and a payload to send."""
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
    check_payload(message.type, message.payload)


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
