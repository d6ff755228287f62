"""Return space that LMDB no longer uses to the system.

LMDB writes to freed pages again, but never makes its file shorter: after a flood of entries the file stays as long as
it was. If most of it is free, the rest is copied to a new file, which replaces it by an atomic rename. Nothing
has changed before that, so a copy that a crash or a full disk cut short is deleted.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

import lmdb
from drakkar.actors.log.data_dir import sync_directory

__all__ = ["Usage", "copy_live", "measure", "replace_by_copy", "throw_copy_away"]

_COPY: Final = "data.mdb.new"
_FREE_PER_LIVE: Final = 3
"""Free bytes that there must be for each byte in use. So at most a third of what is freed is copied."""


class Usage(NamedTuple):
    """How a file is used, in bytes."""

    live: int
    free: int

    def is_wasteful(self, spare: int) -> bool:
        """Return whether more than `spare` bytes, and most of the file, are free."""
        return self.free > spare and self.free > _FREE_PER_LIVE * self.live


def measure(env: lmdb.Environment, *tables: "lmdb._Database") -> Usage:
    """Return the figures that LMDB keeps. Takes some microseconds, however long the file is."""
    with env.begin() as txn:
        page = env.stat()["psize"]
        pages = 2  # the meta pages
        for figures in (txn.stat(), *(txn.stat(table) for table in tables)):
            pages += figures["branch_pages"] + figures["leaf_pages"] + figures["overflow_pages"]
        total = env.info()["last_pgno"] + 1
    return Usage(pages * page, (total - pages) * page)


def copy_live(env: lmdb.Environment, directory: Path) -> None:
    """Copy what is in use to a new file, durably. Other threads may read meanwhile, but not write.

    Raises `OSError` or `lmdb.Error`; only the copy is damaged then.
    """
    handle = os.open(directory / _COPY, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        env.copyfd(handle, compact=True)
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_by_copy(file: Path) -> None:
    """Replace `file` by the copy, durably, so that what is written from now on is not lost with its name.

    Raises `OSError`; it is unknown then which of the two a restart would find.
    """
    file.with_name(_COPY).replace(file)
    sync_directory(file.parent)


def throw_copy_away(directory: Path) -> None:
    """Remove an unused copy, if there is one. Raises `OSError`."""
    (directory / _COPY).unlink(missing_ok=True)
