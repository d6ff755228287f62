"""Space that LMDB no longer uses goes back to the system.

LMDB takes pages that were freed for what it writes next, and never makes its file shorter: after a flood of entries
the file stays as long as it ever was. Where most of it is free, what is left is copied to a new file beside it,
which takes its place by an atomic rename. Until then nothing has changed, so a copy that a crash, or a full disk,
cut short is thrown away.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

import lmdb
from drakkar.actors.log.data_dir import sync_directory

__all__ = ["Usage", "copy_live", "measure", "replace_by_copy", "throw_copy_away"]

_COPY: Final = "data.mdb.new"
_FREE_PER_LIVE: Final = 3
"""More than this must be free for a byte that is in use. What is copied is so a third of what was freed, at most."""


class Usage(NamedTuple):
    """How a file is used, in bytes."""

    live: int
    free: int

    def is_wasteful(self, spare: int) -> bool:
        """Whether more than `spare` bytes, and most of the file, are free."""
        return self.free > spare and self.free > _FREE_PER_LIVE * self.live


def measure(env: lmdb.Environment, *tables: "lmdb._Database") -> Usage:
    """Look at the figures that LMDB keeps: some microseconds, however long the file is."""
    with env.begin() as txn:
        page = env.stat()["psize"]
        pages = 2  # the first two say where all the others are
        for figures in (txn.stat(), *(txn.stat(table) for table in tables)):
            pages += figures["branch_pages"] + figures["leaf_pages"] + figures["overflow_pages"]
        total = env.info()["last_pgno"] + 1
    return Usage(pages * page, (total - pages) * page)


def copy_live(env: lmdb.Environment, directory: Path) -> None:
    """Write what is in use to a file beside the one in use, durably. Others may read, but nobody write, meanwhile.

    Raises `OSError` or `lmdb.Error` where that fails; nothing but the copy has come to harm then.
    """
    handle = os.open(directory / _COPY, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        env.copyfd(handle, compact=True)
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_by_copy(file: Path) -> None:
    """Let the copy take the place of `file`, durably: what is written to it from now on must not be lost with its name.

    Raises `OSError`; which of the two a restart would find is then unknown.
    """
    file.with_name(_COPY).replace(file)
    sync_directory(file.parent)


def throw_copy_away(directory: Path) -> None:
    """Remove a copy that did not come to use, if there is one. Raises `OSError`."""
    (directory / _COPY).unlink(missing_ok=True)
