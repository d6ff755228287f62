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

__all__ = ["MAX_BYTES", "decode", "encode"]

MAX_BYTES: Final = 256 << 20
"""The longest command that is decoded. Hosts take far shorter ones from clients."""

_HEADER: Final = struct.Struct(">BI")
_ZLIB: Final = 1
_LEVEL: Final = 1
"""zlib's fastest: it takes half the time of the default or less, and saves most of what that saves."""
_MIN_BYTES: Final = 64
"""Shorter commands hardly gain, since zlib's own frame takes 11 bytes."""


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


def decode(payload: bytes) -> bytes:
    """Return the command of a payload. Raises `CorruptData` if it is damaged.

    It never makes more bytes than the payload says, nor more than `MAX_BYTES`.
    """
    if len(payload) < _HEADER.size:
        raise CorruptData(
            f"an encoded command has {len(payload)} bytes, and its header alone takes {_HEADER.size}"
        )
    how, size = _HEADER.unpack_from(payload)
    if how != _ZLIB:
        raise CorruptData(f"a command has encoding {how}, which this version does not know")
    if size > MAX_BYTES:
        raise CorruptData(
            f"an encoded command says that it has {size} bytes, and at most {MAX_BYTES} are allowed"
        )
    decoder = zlib.decompressobj()
    try:
        command = decoder.decompress(memoryview(payload)[_HEADER.size :], size + 1)
    except zlib.error as error:
        raise CorruptData(f"an encoded command cannot be decoded: {error}") from error
    if len(command) != size or not decoder.eof or decoder.unused_data:
        raise CorruptData(f"an encoded command does not have {size} bytes, as it says")
    return command
