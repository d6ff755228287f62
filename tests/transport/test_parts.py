"""Large messages in parts, and what a receiver refuses."""

import struct

import pytest
from drakkar.handlers.messages import Message
from drakkar.transport.frames import FrameError, FrameKind, FrameReader
from drakkar.transport.message_frames import body_of, decode_messages, frame_of, pack
from drakkar.transport.parts import PART_BYTES, PartReader, PartWriter

from tests.transport.support import bulk

LIMIT = 1 << 20


def parts_of(message: Message) -> list[bytes]:
    writer = PartWriter(body_of([pack(message)]))
    parts = []
    while not writer.done:
        parts.append(writer.next())
    return parts


def part(total: int, offset: int, data: bytes) -> memoryview:
    return memoryview(struct.pack(">II", total, offset) + data)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 100, PART_BYTES, 3 * PART_BYTES, 700_000])
def test_a_message_in_parts_is_what_it_was_in_one_frame(size: int) -> None:
    parts = parts_of(bulk(size))
    reader = PartReader(LIMIT)
    bodies = [
        reader.feed(frame.body)
        for data in parts
        for frame in FrameReader().feed(data)
        if frame.kind == FrameKind.PART
    ]
    assert bodies[:-1] == [None] * (len(parts) - 1)
    (whole,) = FrameReader().feed(frame_of([pack(bulk(size))]))
    assert bodies[-1] == whole.body
    assert bodies[-1] is not None
    assert decode_messages(bodies[-1]).messages == [bulk(size)]
    assert all(len(data) <= 128 << 10 for data in parts)
    assert len(parts) == -(-len(whole.body) // PART_BYTES)


def test_the_end_of_a_message_lies_exactly_at_the_end_of_a_part() -> None:
    empty = sum(map(len, pack(bulk(PART_BYTES)).bulk)) + len(pack(bulk(PART_BYTES)).row) + 5 - PART_BYTES
    assert [len(data) for data in parts_of(bulk(2 * PART_BYTES - empty))] == [128 << 10] * 2


def test_messages_follow_one_another() -> None:
    reader = PartReader(LIMIT)
    for data in (b"ab", b"c", b"defg"):
        for offset in range(len(data)):
            body = reader.feed(part(len(data), offset, data[offset : offset + 1]))
        assert body == data


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        pytest.param([memoryview(b"")], "has no bytes", id="no head"),
        pytest.param([part(5, 0, b"")], "has no bytes", id="a part that brings nothing, and so never ends"),
        pytest.param([part(LIMIT + 1, 0, b"a")], "1048576 are allowed", id="too long by what it says"),
        pytest.param([part(5, 0, b"abcdef")], "of 5 bytes have 6", id="too long by what it has"),
        pytest.param([part(5, 0, b"ab"), part(5, 2, b"cdef")], "have 6", id="too long at its end"),
        pytest.param([part(5, 2, b"a")], "byte 0 of 5 was due", id="no beginning"),
        pytest.param([part(5, 0, b"a"), part(5, 2, b"a")], "byte 1 of 5 was due", id="a gap"),
        pytest.param([part(5, 0, b"ab"), part(5, 1, b"a")], "byte 2 of 5 was due", id="twice"),
        pytest.param(
            [part(5, 0, b"a"), part(5, 0, b"a")], "byte 1 of 5 was due", id="another message begins"
        ),
        pytest.param(
            [part(5, 0, b"a"), part(6, 1, b"a")], "byte 1 of 5 was due", id="another message's part"
        ),
        pytest.param([part(0, 0, b"a")], "of 0 bytes have 1", id="a message of no bytes"),
    ],
)
def test_parts_that_no_host_sends_are_refused(parts: list[memoryview], reason: str) -> None:
    reader = PartReader(LIMIT)
    for data in parts[:-1]:
        assert reader.feed(data) is None
    with pytest.raises(FrameError, match=reason):
        reader.feed(parts[-1])


def test_a_receiver_keeps_no_more_than_came() -> None:
    """What a peer says that it will send costs nothing."""
    reader = PartReader(64 << 20)
    assert reader.feed(part(64 << 20, 0, b"a")) is None
    assert reader._body.__alloc__() < 1000
