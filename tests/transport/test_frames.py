"""Frames: found again in any stream of bytes, or refused."""

import struct
import zlib
from typing import Any

import cbor2
import pytest
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.transport.frames import (
    FRAME_LIMIT,
    FRAMES_AT_ONCE,
    HEADER_SIZE,
    FrameError,
    FrameKind,
    FrameReader,
    encode_frame,
    loads_strict,
)
from drakkar.transport.message_frames import encode_messages


def two_frames() -> tuple[bytes, list[tuple[int, bytes]]]:
    (first,) = encode_messages(
        [Message(MessageType.HEARTBEAT, sender=1, entries=(Entry(1, 1, payload=b"abc" * 50),))]
    )
    expected = [
        (int(FrameKind.MESSAGES), first[HEADER_SIZE:]),
        (int(FrameKind.PING), b""),
        (200, b"later kinds"),
    ]
    return first + encode_frame(FrameKind.PING) + encode_frame(200, b"later ", b"kinds"), expected


@pytest.mark.parametrize("piece", [1, 2, 7, HEADER_SIZE, HEADER_SIZE + 1, 100, 10_000])
def test_frames_are_found_however_the_stream_is_cut(piece: int) -> None:
    stream, expected = two_frames()
    reader = FrameReader()
    found = []
    for at in range(0, len(stream), piece):
        found += [(frame.kind, bytes(frame.body)) for frame in reader.feed(stream[at : at + piece])]
    assert found == expected


def test_a_large_frame_in_small_pieces_is_put_together() -> None:
    data = encode_frame(FrameKind.MESSAGES, bytes(16 << 20))
    reader = FrameReader()
    found = [frame for at in range(0, len(data), 1024) for frame in reader.feed(data[at : at + 1024])]
    assert [len(frame.body) for frame in found] == [16 << 20]


def test_a_frame_in_tiny_pieces_takes_little_more_memory_than_its_bytes() -> None:
    data = encode_frame(FrameKind.MESSAGES, bytes(100_000))
    reader = FrameReader()
    for at in range(0, len(data) - 2, 2):
        assert reader.feed(data[at : at + 2]) == []
        assert len(reader._pieces) <= 256 + len(data) // 4096
    (frame,) = reader.feed(data[-2:])
    assert frame.body == bytes(100_000)


def test_a_frame_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    assert FrameReader(1000).feed(encode_frame(FrameKind.MESSAGES, bytes(1000)))
    with pytest.raises(FrameError, match="1001 bytes, and 1000 are allowed"):
        FrameReader(1000).feed(encode_frame(FrameKind.MESSAGES, bytes(1001)))


def header(kind: int = 2, length: int = 0, magic: bytes = b"DK", framing: int = 1) -> bytes:
    start = struct.pack(">2sBBII", magic, framing, kind, length, zlib.crc32(b""))
    return start + struct.pack(">I", zlib.crc32(start))


def test_the_header_made_by_hand_is_good() -> None:
    assert FrameReader().feed(header())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(header(length=FRAME_LIMIT + 1), "are allowed", id="longer than allowed"),
        pytest.param(header(length=0xFFFFFFFF), "are allowed", id="huge"),
        pytest.param(header(magic=b"XX"), "not a Drakkar host", id="magic"),
        pytest.param(header(framing=2), "upgrade the older host", id="framing version"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not a Drakkar host", id="a browser"),
        pytest.param(
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20), "not a Drakkar host", id="TLS"
        ),
    ],
)
def test_a_header_that_is_none_is_refused_before_anything_is_waited_for(data: bytes, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        FrameReader().feed(data[:HEADER_SIZE])


def test_a_flipped_bit_anywhere_is_noticed_as_soon_as_the_frame_is_there() -> None:
    (frame,) = encode_messages(
        [Message(MessageType.REPLICATE, sender=1, entries=(Entry(1, 1, payload=b"abc"),))]
    )
    for bit in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            FrameReader().feed(bytes(flipped))


# ---- CBOR from a peer


TAGS = [0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 100, 256, 258, 260, 261, 1004, 43_000, 55_799, 12_345]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("content", [1, [], [[]], b"\x01", "2013-10-12"], ids=repr)
def test_no_tag_is_decoded(tag: int, content: Any) -> None:
    tagged = cbor2.dumps(cbor2.CBORTag(tag, content))
    for data in (tagged, b"\x81" + tagged, b"\xa1\x61k" + tagged):
        with pytest.raises(FrameError, match="tags are not allowed"):
            loads_strict(data, 16)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"\x9f\x01\xff", "indefinite", id="a list"),
        pytest.param(b"\xbf\x61k\x01\xff", "indefinite", id="a map"),
        pytest.param(b"\x5f\x41a\xff", "indefinite", id="bytes"),
        pytest.param(b"\x7f\x61a\xff", "indefinite", id="text"),
        pytest.param(b"\xa1\x01\x01", "map key", id="a number as key"),
        pytest.param(b"\xa1\x82\x01\x02\x01", "map key", id="a tuple as key"),
        pytest.param(b"\xa2\x61a\x01\x61a\x02", "Duplicate", id="a key twice"),
        pytest.param(b"\x01\x02", "1 bytes follow", id="a second value"),
        pytest.param(b"\x81\x81\x81\x81\x01", "depth", id="a list too deep"),
    ],
)
def test_what_the_strict_profile_forbids_is_malformed_wherever_it_stands(data: bytes, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        loads_strict(data, 3)


def test_a_reader_finds_a_bounded_number_of_frames_in_one_go() -> None:
    """A read may bring thousands of empty frames, and other tasks are to have their turn in between."""
    frames = [encode_frame(200, b"%d" % number) for number in range(2 * FRAMES_AT_ONCE + 10)]
    data = b"".join(frames)
    reader = FrameReader()
    found = [reader.feed(data[:-1])]
    while reader.more:
        found.append(reader.feed(b""))
    assert [len(some) for some in found] == [FRAMES_AT_ONCE, FRAMES_AT_ONCE, 9]
    found.append(reader.feed(data[-1:]))
    assert [bytes(frame.body) for some in found for frame in some] == [
        b"%d" % number for number in range(len(frames))
    ]


def test_a_reader_tells_what_is_not_complete() -> None:
    reader = FrameReader()
    frame = encode_frame(200, bytes(1000))
    assert reader.unfinished == (HEADER_SIZE, 0)
    reader.feed(frame[:100])
    assert reader.unfinished == (HEADER_SIZE + 1000, 100)
    reader.feed(frame[100:])
    assert reader.unfinished == (HEADER_SIZE, 0)
