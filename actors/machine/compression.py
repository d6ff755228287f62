"""Commands that travel, and are stored, compressed: by whoever proposes them, where they gain by it.

    1 byte    how: 1 is zlib
    4 bytes   the length of the command, big-endian
    the rest  the compressed command

How a command was proposed says how it is decoded, so that the replicas of a shard need not agree on an option.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Final

from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.entries import EntryKind

__all__ = ["MAX_BYTES", "decode", "encode"]

MAX_BYTES: Final = 256 << 20
"""No command is decoded to more; what hosts take from clients is far less."""

_HEADER: Final = struct.Struct(">BI")
_ZLIB: Final = 1
_LEVEL: Final = 1
"""The fastest: it takes half the time of zlib's default or less, and saves most of what that saves."""
_MIN_BYTES: Final = 64
"""Of fewer there is hardly anything to gain, since zlib's own frame takes 11."""


def encode(commands: Sequence[bytes]) -> tuple[Sequence[bytes], bytes]:
    """The payloads of the commands, and their kinds: none where all of them stay as they are.

    A command is compressed if that saves an eighth of it. From any thread, but it computes: 5 to 10 ms a megabyte.
    """
    packed = [_packed(command) for command in commands]
    if not any(packed):
        return commands, b""
    kinds = bytes(EntryKind.ENCODED if pack else EntryKind.COMMAND for pack in packed)
    return [pack or command for pack, command in zip(packed, commands, strict=True)], kinds


def _packed(command: bytes) -> bytes:
    """The payload; empty where it would not be worth while."""
    if not _MIN_BYTES <= len(command) <= MAX_BYTES:
        return b""
    packed = _HEADER.pack(_ZLIB, len(command)) + zlib.compress(command, _LEVEL)
    return packed if len(packed) <= len(command) - len(command) // 8 else b""


def decode(payload: bytes) -> bytes:
    """The command of a payload. Never makes more of it than the payload says, and than `MAX_BYTES`.

    Raises `CorruptData`.
    """
    if len(payload) < _HEADER.size:
        raise CorruptData(f"{len(payload)} bytes are no encoded command")
    how, size = _HEADER.unpack_from(payload)
    if how != _ZLIB:
        raise CorruptData(f"a command is encoded in the way {how}, which this version does not know")
    if size > MAX_BYTES:
        raise CorruptData(f"an encoded command says that it has {size} bytes; {MAX_BYTES} are the most")
    decoder = zlib.decompressobj()
    try:
        command = decoder.decompress(memoryview(payload)[_HEADER.size :], size + 1)
    except zlib.error as error:
        raise CorruptData(f"an encoded command cannot be decoded: {error}") from error
    if len(command) != size or not decoder.eof or decoder.unused_data:
        raise CorruptData(f"an encoded command is not one of {size} bytes, as it says")
    return command
