"""Which pages of an LMDB file may be missing at its end.

LMDB does not write a page that it took at the end of its file and freed within the same transaction, but counts it. So
an undamaged file may be shorter than its page count says, and only its list of free pages distinguishes that from a
file that was cut off. LMDB cannot tell: if it reads a page that is missing, the system kills the process.

The layout is that of LMDB's data format 1: a page has a header, pointers to its nodes, and the nodes. Integers have the
machine's byte order and size, as the file is not portable.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from struct import error as struct_error
from typing import Final

__all__ = ["are_free"]

_HEADER: Final = Struct("@NHHHH")
"""Page number, padding, flags, end of the pointers, begin of the nodes."""
_META: Final = Struct("@IIPN")
"""Magic, version, address, map size. The descriptions of the two trees follow."""
_TREE: Final = Struct("@IHHNNNNN")
"""Padding, flags, depth, branch pages, leaf pages, overflow pages, entries, root."""
_POINTER: Final = Struct("@H")
_NODE: Final = Struct("@HHHH")
"""Lower and upper half of a size, or of a page number whose top is in the flags, and the size of the key."""
_NUMBER: Final = Struct("@N")

_BRANCH, _LEAF, _META_PAGE = 0x01, 0x02, 0x08
_ELSEWHERE: Final = 0x01
"""Flag of a node whose value has pages of its own."""
_NO_ROOT: Final = (1 << (8 * _NUMBER.size)) - 1
_DEEPEST: Final = 32


class _Damaged(Exception):  # never leaves this file
    """The file does not have the layout of LMDB."""


def are_free(file: Path, page_size: int, transaction: int, pages: range) -> bool:
    """Return whether these missing pages are free as of the newest transaction; False if the file is damaged."""
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        missing = set(pages)
        for listed in _Reader(handle, page_size).free_lists(transaction):
            missing.difference_update(listed)
    except (_Damaged, struct_error):
        return False
    else:
        return not missing
    finally:
        os.close(handle)


class _Reader:
    """Reads the tree of free pages. Its values are lists of page numbers, each after its length."""

    def __init__(self, handle: int, page_size: int) -> None:
        self._handle, self._page_size = handle, page_size

    def free_lists(self, transaction: int) -> Iterator[tuple[int, ...]]:
        root = self._free_root(transaction)
        if root != _NO_ROOT:
            for value in self._values(root, _DEEPEST):
                (count,) = _NUMBER.unpack_from(value)
                yield Struct(f"@{count}N").unpack_from(value, _NUMBER.size)

    def _free_root(self, transaction: int) -> int:
        for number in (0, 1):
            page = self._read(number)
            (*_, root) = _TREE.unpack_from(page, _HEADER.size + _META.size)
            # After the descriptions of the two trees come the last page and the transaction.
            _, written = Struct("@NN").unpack_from(page, _HEADER.size + _META.size + 2 * _TREE.size)
            if written == transaction and _HEADER.unpack_from(page)[2] & _META_PAGE:
                return int(root)
        raise _Damaged("no meta page of the newest transaction")

    def _values(self, number: int, depth: int) -> Iterator[bytes]:
        page = self._read(number)
        _, _, flags, end, _ = _HEADER.unpack_from(page)
        if not depth or not flags & (_BRANCH | _LEAF):
            raise _Damaged(f"page {number} is no part of a tree")
        for pointer in range(_HEADER.size, end, _POINTER.size):
            (at,) = _POINTER.unpack_from(page, pointer)
            if flags & _BRANCH:
                yield from self._values(_child(page, at), depth - 1)
            else:
                yield self._value(page, at)

    def _value(self, page: bytes, at: int) -> bytes:
        low, high, flags, key_size = _NODE.unpack_from(page, at)
        begin, size = at + _NODE.size + key_size, low | high << 16
        if not flags & _ELSEWHERE:
            return page[begin : begin + size]
        (number,) = _NUMBER.unpack_from(page, begin)
        return self._read(number, _HEADER.size + size)[_HEADER.size :]

    def _read(self, number: int, size: int = 0) -> bytes:
        size = size or self._page_size
        data = os.pread(self._handle, size, number * self._page_size)
        if len(data) < size:
            raise _Damaged(f"page {number} is missing")
        return data


def _child(page: bytes, at: int) -> int:
    low, high, top, _ = _NODE.unpack_from(page, at)
    return int(low | high << 16 | top << 32)
