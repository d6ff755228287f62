"""The frames of a stream: bytes that are too big for messages, on a connection of their own.

STREAM_HELLO ► ◄ HELLO   STREAM_BEGIN ► STREAM_PIECE 0 ► STREAM_PIECE 1 ► … STREAM_END ► ◄ STREAM_DONE
"""

import struct
from typing import Final

from drakkar.transport.frames import FrameError, FrameKind, encode_frame

__all__ = [
    "STREAM_FRAME_LIMIT",
    "STREAM_HEADER_LIMIT",
    "STREAM_PIECE_LIMIT",
    "decode_stream_end",
    "decode_stream_piece",
    "encode_stream_end",
    "encode_stream_piece",
]

_PIECE_NUMBER: Final = struct.Struct(">Q")
_STREAM_END: Final = struct.Struct(">QI")

STREAM_HEADER_LIMIT: Final = 64 << 10
"""Maximum bytes of a stream's header, the body of its STREAM_BEGIN."""
STREAM_PIECE_LIMIT: Final = 1 << 20
"""Maximum bytes of a stream in one piece."""
STREAM_FRAME_LIMIT: Final = STREAM_PIECE_LIMIT + _PIECE_NUMBER.size
"""Maximum bytes of a frame's body on a connection for a stream, independent of `Options.frame_limit`."""


def encode_stream_piece(number: int, data: bytes | memoryview) -> bytes:
    """Encode a STREAM_PIECE frame."""
    return encode_frame(FrameKind.STREAM_PIECE, _PIECE_NUMBER.pack(number), data)


def decode_stream_piece(body: memoryview) -> tuple[int, memoryview]:
    """Decode the body of a STREAM_PIECE frame: its number, and a view of its bytes. Raises `FrameError`."""
    if len(body) <= _PIECE_NUMBER.size:
        raise FrameError("a piece of a stream has no bytes")
    return _PIECE_NUMBER.unpack_from(body)[0], body[_PIECE_NUMBER.size :]


def encode_stream_end(total: int, checksum: int) -> bytes:
    """Encode a STREAM_END frame: the bytes of all pieces together, and their CRC-32."""
    return encode_frame(FrameKind.STREAM_END, _STREAM_END.pack(total, checksum))


def decode_stream_end(body: memoryview) -> tuple[int, int]:
    """Decode the body of a STREAM_END frame: the number of bytes, and their checksum. Raises `FrameError`."""
    if len(body) != _STREAM_END.size:
        raise FrameError(f"a STREAM_END has {len(body)} bytes, and must have {_STREAM_END.size}")
    total, checksum = _STREAM_END.unpack(body)
    return total, checksum
