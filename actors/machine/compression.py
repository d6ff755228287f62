"""Compressed commands: the proposing host compresses what gains by it, and the log and the wire carry the result.

    1 byte    the encoding: 1 is zlib
    4 bytes   the length of the command, big-endian
    the rest  the compressed command

An entry says itself that it is encoded, so the replicas of a shard need not agree on an option.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Final

from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.entries import EntryKind

__all__ = ["HEADER_BYTES", "MAX_BYTES", "announced", "beginning", "check", "decode", "encode"]

MAX_BYTES: Final = 256 << 20
"""The longest command that is decoded. Hosts take far shorter ones from clients."""

_HEADER: Final = struct.Struct(">BI")
HEADER_BYTES: Final = _HEADER.size
_ZLIB: Final = 1
_LEVEL: Final = 1
"""zlib's fastest: it takes half the time of the default or less, and saves most of what that saves."""
_MIN_BYTES: Final = 64
"""Shorter commands hardly gain, since zlib's own frame takes 11 bytes."""
_PIECE: Final = 256 << 10
"""Bytes that `check` makes at once. Other threads run meanwhile, and between two pieces."""


def encode(commands: Sequence[bytes]) -> tuple[Sequence[bytes], bytes]:
    """Return the payloads of the commands, and their kinds: empty if no command was compressed.

    A command is compressed if that saves an eighth of it. From any thread; it computes for 5 to 10 ms a megabyte.
    """
    packed = [_packed(command) for command in commands]
    if not any(packed):
        return commands, b""
    kinds = bytes(EntryKind.ENCODED if pack else EntryKind.COMMAND for pack in packed)
    return [pack or command for pack, command in zip(packed, commands, strict=True)], kinds


def _packed(command: bytes) -> bytes:
    """Return the compressed payload, or nothing if it saves too little."""
    if not _MIN_BYTES <= len(command) <= MAX_BYTES:
        return b""
    packed = _HEADER.pack(_ZLIB, len(command)) + zlib.compress(command, _LEVEL)
    return packed if len(packed) <= len(command) - len(command) // 8 else b""


def decode(payload: bytes, limit: int = MAX_BYTES) -> bytes:
    """Return the command of a payload. Raises `CorruptData` if it is damaged.

    It never makes more bytes than the payload says, nor more than `limit`.
    """
    size = announced(payload)
    if size > limit:
        raise CorruptData(
            f"an encoded command says that it has {size} bytes, and at most {limit} are allowed"
        )
    decoder = zlib.decompressobj()
    try:
        command = decoder.decompress(memoryview(payload)[_HEADER.size :], size + 1)
    except zlib.error as error:
        raise CorruptData(f"an encoded command cannot be decoded: {error}") from error
    if len(command) != size or not decoder.eof or decoder.unused_data:
        raise _wrong_size(size)
    return command


def announced(payload: bytes) -> int:
    """Return how many bytes the command of a payload has, as the payload says. Raises `CorruptData` if it does not say."""
    if len(payload) < _HEADER.size:
        raise CorruptData(
            f"an encoded command has {len(payload)} bytes, and its header alone takes {_HEADER.size}"
        )
    how, size = _HEADER.unpack_from(payload)
    if how != _ZLIB:
        raise CorruptData(f"a command has encoding {how}, which this version does not know")
    return int(size)


def beginning(payload: bytes, limit: int) -> bytes:
    """Return the first `limit` bytes of the command of a payload, and make no more. Raises `CorruptData` if these cannot be decoded."""
    announced(payload)
    try:
        return zlib.decompressobj().decompress(memoryview(payload)[_HEADER.size :], limit)
    except zlib.error as error:
        raise CorruptData(f"an encoded command cannot be decoded: {error}") from error


def check(payload: bytes) -> None:
    """Raise `CorruptData` unless `decode` can decode the payload. It makes the same bytes, and holds few of them at a time."""
    size, made = announced(payload), 0
    decoder = zlib.decompressobj()
    packed = memoryview(payload)[_HEADER.size :]
    try:
        while packed and not decoder.eof:
            rest, packed = bytes(packed[:_PIECE]), packed[_PIECE:]
            more = True
            while more and made <= size:
                piece = decoder.decompress(rest, _PIECE)
                made += len(piece)
                rest = decoder.unconsumed_tail
                more = not decoder.eof and (bool(rest) or len(piece) == _PIECE)
            if made > size:
                raise _wrong_size(size)
    except zlib.error as error:
        raise CorruptData(f"an encoded command cannot be decoded: {error}") from error
    if made != size or not decoder.eof or decoder.unused_data or packed:
        raise _wrong_size(size)


def _wrong_size(size: int) -> CorruptData:
    return CorruptData(f"an encoded command does not have {size} bytes, as it says")
