"""The format of a snapshot's file: written once from front to back, and checked block by block as it is read.

    header    "DRKSNAP", the version of the format (1), and eight bytes that differ from file to file
    blocks    each 4 bytes of length, 1 of encoding (0 as it is, 1 zlib), 4 of checksum, then at most 1 MiB
    footer    a CBOR list of the snapshot, encoded as in the log store, and a map of facts
    tail      8 bytes of the content's size, 4 of the blocks' checksum, 4 of the footer's length, 4 of the checksum
              of header, footer and tail, and "DRKSNEND"

Numbers are big-endian, checksums CRC-32. A block's checksum covers all bytes before it, the header included, so it
shows that a block was lost, moved, or taken from another file. The tail is found from the end, so opening a file that
was cut short fails, without reading the blocks.
"""

import io
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Final, NoReturn, final
from zlib import crc32

import cbor2
from drakkar.actors.log.records import decode_snapshot, encode_snapshot
from drakkar.actors.snapshots.files import FileContent
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM, check_whole
from drakkar.handlers.errors import ConfigError, CorruptData
from drakkar.handlers.raft.config import Compression
from drakkar.handlers.raft.state import Snapshot

__all__ = ["BLOCK_BYTES", "RECEIVED_FOOTER_BYTES", "Encoder", "SnapshotReader"]

BLOCK_BYTES: Final = 1 << 20
"""Bytes of content in a block, at most. Writing or reading a snapshot takes that much memory."""

_FOOTER_BYTES: Final = 16 << 20
"""The longest footer, with room for the ids of a million removed replicas."""
RECEIVED_FOOTER_BYTES: Final = 256 << 10
"""The longest footer of a file that another host sends. The message that announces it holds the same membership in less; and to
decode 16 MiB that are made for it would take seconds, in which no other thread runs, and a gigabyte."""

_MAGIC: Final = b"DRKSNAP"
_VERSION: Final = 1
_END: Final = b"DRKSNEND"
_HEADER: Final = Struct(">7sB8s")
_BLOCK: Final = Struct(">IBI")
_BLOCK_START: Final = Struct(">IB")
_TAIL: Final = Struct(">QIII8s")
_TAIL_START: Final = Struct(">QII")
_PLAIN: Final = 0
_ZLIB: Final = 1
_LEVEL: Final = 1
"""zlib's fastest, since proposals need the same processors at the same time."""
_PEEK_BYTES: Final = 8192
_DEPTH: Final = 16
"""How deep the facts may be nested, the footer's own list included."""


@final
class Encoder:
    """Encodes one file, in order: `header`, any number of `block`, `end`."""

    def __init__(self, token: str, compression: Compression) -> None:
        self.header: Final = _HEADER.pack(_MAGIC, _VERSION, token.encode())
        self._compress = compression == "zlib"
        self._chain = crc32(self.header)
        self._size = 0

    def block(self, content: memoryview | bytearray) -> bytes:
        """Encode the next 1 to `BLOCK_BYTES` bytes of content. They are compressed only if that makes them shorter."""
        how, stored = _PLAIN, bytes(content)
        if self._compress and len(packed := zlib.compress(stored, _LEVEL)) < len(stored):
            how, stored = _ZLIB, packed
        start = _BLOCK_START.pack(len(stored), how)
        self._chain = crc32(stored, crc32(start, self._chain))
        self._size += len(content)
        return _BLOCK.pack(len(stored), how, self._chain) + stored

    def end(self, snapshot: Snapshot, facts: Mapping[str, Any]) -> bytes:
        """Encode footer and tail. Raises `ConfigError` for what cannot be decoded again."""
        check_whole("index", snapshot.index, 1, MAX_INDEX)
        check_whole("term", snapshot.term, 0, MAX_TERM)
        try:
            footer = cbor2.dumps([encode_snapshot(replace(snapshot, payload=b"", size=0)), dict(facts)])
            _decode_footer(footer)
        except (CorruptData, ValueError, TypeError, cbor2.CBOREncodeError) as error:
            raise ConfigError(
                "facts",
                facts,
                f"must be a map of names to values that CBOR encodes without tags, and the membership valid: {error}",
            ) from error
        if len(footer) > _FOOTER_BYTES:
            raise ConfigError("facts", f"{len(footer)} bytes", f"must be at most {_FOOTER_BYTES}")
        start = _TAIL_START.pack(self._size, self._chain, len(footer))
        checksum = crc32(start, crc32(footer, crc32(self.header)))
        return footer + start + checksum.to_bytes(4, "big") + _END


def _decode_footer(footer: bytes) -> tuple[Snapshot, dict[str, Any]]:
    """Decode the footer. Raises `CorruptData` or `ValueError`."""
    columns = cbor.loads(footer, max_depth=_DEPTH)
    if type(columns) is not list or tuple(map(type, columns)) != (bytes, dict):
        raise ValueError("it is not a list of a snapshot and a map of facts")
    snapshot = decode_snapshot(columns[0])
    if not snapshot:
        raise ValueError("its index is 0, which is none")
    return snapshot, columns[1]


def _fingerprint(header: bytes, chain: int, footer_at: int, size: int, footer: bytes) -> int:
    """Number a file by what sums it up: random bytes are in its header, and the checksum of all blocks in `chain`."""
    summary = b"".join([header, *(number.to_bytes(8, "big") for number in (chain, footer_at, size)), footer])
    return (int.from_bytes(sha256(summary).digest()[:8], "big") & MAX_SIGNED) or 1


@final
class SnapshotReader(io.BufferedIOBase, BinaryIO):
    """An open snapshot's file: a binary file of its content, decompressed and checked as it is read.

    `read(n)` returns n bytes, or fewer at the end; there is no seeking. It blocks on the disk, so use it in worker
    threads, one at a time. It stays readable if its file is removed.

    All methods that read raise `CorruptData`, with file, index and offset, for a damaged block, and again at each
    further call, so that the damage is not taken for the end.
    """

    def __init__(
        self, content: FileContent, path: Path, remedy: str, footer_limit: int = _FOOTER_BYTES
    ) -> None:
        """Made by `Snapshots.open` and `read_file`. Raises `CorruptData` unless it is a whole snapshot's file.

        Nor may its footer have more than `footer_limit` bytes.
        """
        super().__init__()
        self._content, self._path, self._remedy = content, path, remedy
        self._footer_limit = footer_limit
        self._index = 0
        self._damage: CorruptData | None = None
        self._block, self._at = b"", 0
        try:
            tail = self._read_tail()
            self._header, self._chain, self._footer_at, self.content_size = tail[0], tail[1], tail[2], tail[3]
            stored, self.facts = self._read_footer(tail[4])
            self.fingerprint: Final = _fingerprint(*tail)
            """A number from 1 to 2**63 - 1: the same for each copy of this file, another one for every other file."""
        except BaseException:
            content.close()
            raise
        self.snapshot: Final = replace(stored, payload=path.name.encode(), size=content.size)
        """The snapshot as it was taken, with the file's name as payload and its length as size."""
        self._index = stored.index
        self._blocks = self._contents()

    @property
    def mode(self) -> str:
        """Return "rb", as a file opened for reading."""
        return "rb"

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes of content; all that is left if it is None or negative."""
        wanted = sys.maxsize if size is None or size < 0 else size
        if wanted <= len(self._block) - self._at:
            return self._take(wanted)
        parts: list[bytes] = []
        while wanted and self._fill():
            parts.append(self._take(wanted))
            wanted -= len(parts[-1])
        return b"".join(parts)

    def read1(self, size: int = -1, /) -> bytes:
        """Read the rest of one block, at most `size` bytes."""
        return self._take(sys.maxsize if size < 0 else size) if size and self._fill() else b""

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read up to the end of the line, at most `size` bytes."""
        wanted = sys.maxsize if size is None or size < 0 else size
        parts: list[bytes] = []
        while wanted and self._fill():
            end = self._block.find(b"\n", self._at)
            parts.append(self._take(wanted if end < 0 else min(wanted, end + 1 - self._at)))
            wanted -= len(parts[-1])
            if parts[-1].endswith(b"\n"):
                break
        return b"".join(parts)

    def peek(self, size: int = 0, /) -> bytes:
        """Return the next bytes without reading them, about `size`; none only at the end."""
        return self._block[self._at : self._at + (size or _PEEK_BYTES)] if self._fill() else b""

    def raw(self) -> BinaryIO:
        """Open the bytes of the file itself, to send them. The caller closes it; this one may be closed before."""
        return self._content.file()

    def verify(self) -> None:
        """Read and check all blocks, without moving the position. Raises `CorruptData`."""
        for _ in self._contents():
            pass

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if not self.closed:
            self._content.close()
            self._block, self._at = b"", 0
        super().close()

    def __repr__(self) -> str:
        return f"SnapshotReader({str(self._path)!r}, index={self._index})"

    def _take(self, size: int) -> bytes:
        taken = self._block[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def _fill(self) -> bool:
        """Read the next block if none is left of the present one; return False at the end."""
        if self.closed:
            raise ValueError(f"{self!r} was closed")
        if self._damage is not None:
            raise self._damage
        if self._at == len(self._block):
            try:
                self._block, self._at = next(self._blocks, b""), 0
            except CorruptData as error:
                self._damage = error
                raise
        return bool(self._block)

    def _contents(self) -> Iterator[bytes]:
        """Read and check block after block, and at the end that none was missing."""
        offset, chain, size = _HEADER.size, crc32(self._header), 0
        while offset < self._footer_at:
            length, how, checksum = _BLOCK.unpack(self._read(offset, _BLOCK.size))
            after = offset + _BLOCK.size + length
            if not 0 < length <= BLOCK_BYTES or after > self._footer_at:
                self._fail(f"the block at byte {offset} says that it has {length} bytes")
            stored = self._read(offset + _BLOCK.size, length)
            chain = crc32(stored, crc32(_BLOCK_START.pack(length, how), chain))
            if chain != checksum:
                self._fail(f"the block at byte {offset} does not match its checksum")
            content = self._decode(offset, how, stored)
            size += len(content)
            yield content
            offset = after
        if (chain, size) != (self._chain, self.content_size):
            self._fail(f"blocks are missing before byte {offset}")

    def _decode(self, offset: int, how: int, stored: bytes) -> bytes:
        if how == _PLAIN:
            return stored
        if how != _ZLIB:
            self._fail(f"the block at byte {offset} has encoding {how}, which this version does not know")
        decoder = zlib.decompressobj()
        try:
            content = decoder.decompress(stored, BLOCK_BYTES + 1)
        except zlib.error as error:
            self._fail(f"the block at byte {offset} cannot be decompressed: {error}")
        if not 0 < len(content) <= BLOCK_BYTES or not decoder.eof or decoder.unused_data:
            self._fail(f"the block at byte {offset} is not a compressed one of 1 to {BLOCK_BYTES} bytes")
        return content

    def _read_tail(self) -> tuple[bytes, int, int, int, bytes]:
        """Return the header, the blocks' checksum, the offset of the footer, the content's size, and the footer."""
        least = _HEADER.size + _TAIL.size
        if self._content.size < least:
            self._fail(f"it has {self._content.size} bytes, and the shortest has {least}")
        header = self._read(0, _HEADER.size)
        magic, version, _ = _HEADER.unpack(header)
        if magic != _MAGIC:
            self._fail("it does not begin as a snapshot's file does")
        if version != _VERSION:
            self._fail(f"its format is {version}, and this version reads {_VERSION}")
        tail = self._read(self._content.size - _TAIL.size, _TAIL.size)
        size, chain, length, checksum, end = _TAIL.unpack(tail)
        if end != _END:
            self._fail("it does not end as a snapshot's file does, so it was cut short")
        if length > min(self._footer_limit, self._content.size - least):
            self._fail(f"its footer says that it has {length} bytes")
        footer_at = self._content.size - _TAIL.size - length
        footer = self._read(footer_at, length)
        if checksum != crc32(tail[: _TAIL_START.size], crc32(footer, crc32(header))):
            self._fail("header and footer do not match their checksum")
        return header, chain, footer_at, size, footer

    def _read_footer(self, footer: bytes) -> tuple[Snapshot, dict[str, Any]]:
        try:
            return _decode_footer(footer)
        except (CorruptData, ValueError) as error:
            self._fail(f"its footer cannot be decoded: {error}")

    def _read(self, offset: int, length: int) -> bytes:
        data = self._content.read_at(offset, length)
        if len(data) != length:
            self._fail(f"it ends at byte {offset + len(data)}, before it should")
        return data

    def _fail(self, what: str) -> NoReturn:
        about = f" (snapshot at index {self._index})" if self._index else ""
        raise CorruptData(f"{self._path}{about}: {what}; {self._remedy}")
