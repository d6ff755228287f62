"""Reads of one replica's old entries that the loop must not wait for: large ones, and those that need the disk.

    runs() ──► wanted ──► one read after the other, by another thread ──► a page ──► runs() again, which takes it

What is wanted is read in the order in which it was asked for, one page at a time. The newest pages are kept
(`kept_runs`). If one was dropped before it was taken, it is wanted and read again.
"""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any, Final

from drakkar.actors.log.disk_errors import NO_RESOURCES, explain
from drakkar.actors.log.files import Files
from drakkar.actors.log.index import Row, offset_of, segment_of
from drakkar.actors.log.kept_runs import KeptRuns, Page, Unreadable
from drakkar.actors.log.records import decode_run, named
from drakkar.actors.log.replica import ReplicaLog
from drakkar.actors.log.segments import segment_name
from drakkar.handlers.errors import CorruptData, StorageFailed

__all__ = ["Loader", "unreadable"]

_PAGE_BYTES: Final = 4 << 20
"""Stored bytes of a page at most; but at least one run. So one replica holds two pages of 4 MiB, or of one entry each."""
_MAX_WANTED: Final = 8
"""Pages that may wait to be read. A shard hardly has more peers that are behind; a peer for which there is no room asks again."""

"""What this process or its machine lacks, which says nothing about the file."""


class Loader:
    """Reads pages for a `StoredLog`. For the log's thread."""

    def __init__(
        self,
        files: Files,
        replica: ReplicaLog,
        kept: KeptRuns,
        *,
        read: Callable[[Callable[[], Any], Callable[[Any], None]], None],
        loaded: Callable[[], None],
    ) -> None:
        """Pages go to `kept`.

        `read` is the driver's; `loaded` is called after each page, even if it could not be read.
        """
        self._files, self._replica, self._kept = files, replica, kept
        self._read, self._loaded = read, loaded
        self._wanted: dict[int, int] = {}
        """Index to read from, and bytes to read at most. The oldest first."""
        self._reading = 0
        """The index from which a page is being read; 0 for none."""

    def want(self, low: int, limit: int) -> None:
        """Have a page read from entry `low` on."""
        if low != self._reading and len(self._wanted) < _MAX_WANTED:
            self._wanted.setdefault(low, limit)
        if not self._reading:
            self._read_next()

    def _read_next(self) -> None:
        if not self._wanted:
            return
        low = self._reading = next(iter(self._wanted))
        rows = self._rows(low, min(self._wanted.pop(low), _PAGE_BYTES))
        cuts = self._replica.state.cuts if self._replica.state is not None else 0
        self._read(
            partial(_read_page, self._files, self._replica.key, rows), partial(self._on_read, rows, cuts)
        )

    def _rows(self, low: int, limit: int) -> list[Row]:
        """Return the runs of a page. None if the log does not hold `low` any more."""
        state, rows = self._replica.state, list[Row]()
        if state is None or not state.marker[0] < low <= state.last:
            return rows
        for row, _ in self._replica.index.rows(low, state.last + 1):
            limit -= row.size
            if rows and limit < 0:
                break
            rows.append(row)
        return rows

    def _on_read(self, rows: list[Row], cuts: int, page: Page | BaseException) -> None:
        self._reading = 0
        if isinstance(page, BaseException):
            page = {rows[0].first: unreadable(self._files, self._replica.key, rows[0], page)}
        for row in rows:
            moved = self._replica.index.find(row.first) != row
            if moved and isinstance(page.get(row.first), Unreadable):
                del page[row.first]  # its segment is gone, so it is read anew
        if page:
            self._kept.add_page(cuts, page)
        self._read_next()
        self._loaded()


def _read_page(files: Files, key: tuple[int, int], rows: list[Row]) -> Page:
    """Read and check these runs, up to the first that is damaged. In the thread for reads."""
    page: Page = {}
    for segment, group in groupby(rows, lambda row: segment_of(row.place)):
        part = list(group)
        row = part[0]
        try:
            places = [(offset_of(row.place), row.size) for row in part]
            for row, data in zip(part, files.read_apart(segment_name(segment), places), strict=True):
                page[row.first] = decode_run(key, data)
        except (CorruptData, OSError) as error:
            page[row.first] = unreadable(files, key, row, error)
            break
    return page


def unreadable(files: Files, key: tuple[int, int], row: Row, error: BaseException) -> Unreadable:
    """Return the error for a run that cannot be read: damage, unless this process lacks files or memory to read it."""
    problem = (
        f"{files.path}/{segment_name(segment_of(row.place))}, offset {offset_of(row.place)}: {named(key)}: the run of "
        f"entries from {row.first} on cannot be read: {explain(error) if isinstance(error, OSError) else error}"
    )
    reason: Unreadable
    if isinstance(error, OSError) and error.errno in NO_RESOURCES:
        reason = StorageFailed(f"{problem}; then restart this host")
    else:
        reason = CorruptData(problem)
    reason.__cause__ = error
    return reason
