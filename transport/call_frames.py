"""The body of a CALLS frame: records of remote calls as bytes, and back. Pure functions, no sockets.

A record is a call, an answer, or what else actors of two hosts say to each other: a CBOR list that begins with the
number of its kind. The transport knows no more of it. A body is the CBOR list of some records, in order, so records
that wait are joined without being encoded again. It begins with the head of that list, 0x81 to 0x9f; the body of a
MESSAGES frame begins with a zero, as its control part is short. So the parts of a large record need no kind of frame of
their own: what they make up tells what it is.

What it costs to decode a body is bounded before it is decoded, since the loop does nothing else meanwhile. A small one has
no more items than bytes, and the items of a large one are counted first: a megabyte of empty lists would take sixty
megabytes, and a tenth of a second. Our records have some thirty items, as the values of users are bytes in them.
"""

from collections.abc import Sequence
from typing import Any, Final

from drakkar.handlers.cbor import has_more_items
from drakkar.handlers.errors import TransportError
from drakkar.transport.frames import FrameError, loads_strict

__all__ = [
    "JOINED_BYTES",
    "LIST_HEAD",
    "MAX_DEPTH",
    "MAX_ITEMS",
    "RECORDS_PER_FRAME",
    "calls_body",
    "check_record",
    "decode_calls",
    "is_calls",
    "list_head",
]

RECORDS_PER_FRAME: Final = 128
"""Records in one body at most."""
LIST_HEAD: Final = 2
"""Maximum bytes before the records of a body."""
MAX_DEPTH: Final = 8
"""How deep lists and maps may be nested in a body, the list of records and the records included. Ours have three."""
MAX_ITEMS: Final = 8 << 10
"""Numbers, strings, lists and so on in one record at most: to decode them takes a millisecond."""
JOINED_BYTES: Final = MAX_ITEMS
"""Bytes of a body of several records at most, so that it has no more items either."""

_SHORT_LIST: Final = 24
"""Lists of fewer items have their length in their first byte."""


def is_calls(body: bytes | bytearray | memoryview) -> bool:
    """Return whether a body, or its beginning, is that of a CALLS frame and not of a MESSAGES frame. It has a byte."""
    return body[0] >> 5 == 4


def list_head(count: int) -> bytes:
    """Return what stands before so many records in a body, `RECORDS_PER_FRAME` at most."""
    return bytes((0x80 | count,)) if count < _SHORT_LIST else bytes((0x98, count))


def calls_body(records: Sequence[bytes]) -> bytes:
    """Return the body of a CALLS frame of some records, `RECORDS_PER_FRAME` at most."""
    return b"".join((list_head(len(records)), *records))


def check_record(record: bytes, limit: float) -> None:
    """Raise `TransportError` where a receiver would not take a record, and end the connection.

    `limit`: maximum bytes of a record. How deep it is nested is not looked at. From any thread.
    """
    size = len(record)
    if size > limit:
        raise TransportError(
            f"a call of {size} bytes is too long, and {limit} are allowed: send less at once, or raise "
            "call_limit on all hosts"
        )
    if not size or not is_calls(record):
        raise TransportError(f"a record of a call is no encoded list: it begins with {record[:8]!r}")
    if size > MAX_ITEMS and has_more_items(record, MAX_ITEMS):
        raise TransportError(
            f"a call of {size} bytes has more than {MAX_ITEMS} values: send what has very many values as bytes"
        )


def decode_calls(body: bytes | bytearray | memoryview) -> list[list[Any]]:
    """Decode the body of a CALLS frame.

    Each record has one field or more, and the first is a number; nothing else is checked.

    Raises `FrameError` for a body that no correct host sends.
    """
    # The list of records is an item, too.
    records = loads_strict(memoryview(body), MAX_DEPTH, max_items=MAX_ITEMS + 1)
    if type(records) is not list or not records:
        raise FrameError("a frame of calls is not a list of one record or more")
    if len(records) > RECORDS_PER_FRAME:
        raise FrameError(f"a frame has {len(records)} calls, and {RECORDS_PER_FRAME} are allowed")
    for record in records:
        if type(record) is not list or not record or type(record[0]) is not int:
            raise FrameError("a call is not a list that begins with the number of its kind")
    return records
