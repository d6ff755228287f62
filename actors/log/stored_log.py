"""`StoredLog`: one replica's log as the core reads it."""

from collections.abc import Callable
from typing import Any, Final, final

from drakkar.actors.log.files import Files
from drakkar.actors.log.index import Row, offset_of, segment_of
from drakkar.actors.log.kept_runs import KeptRuns
from drakkar.actors.log.loading import Loader, unreadable
from drakkar.actors.log.records import Bootstrap, decode_run, named
from drakkar.actors.log.replica import ReplicaLog
from drakkar.actors.log.segments import segment_name
from drakkar.actors.log.state import LogState
from drakkar.handlers.errors import CorruptData, ReplicaStopped
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.lives import Lives
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = ["RUN_OVERHEAD", "StoredLog"]

RUN_OVERHEAD = 512
"""Bytes that a run counts, in addition to its entries, towards the limit of a read.

Reading even the shortest run takes some 10 µs. So a page of 1 MiB in runs of one small entry would block the loop, and
every heartbeat of the host, for some 300 ms. With this overhead it is 20 ms.
"""

MAX_LOOP_BYTES: Final = 2 << 20
"""Stored bytes that one call reads on the loop at most, from the page cache: about a millisecond.

It holds the default pages of 1 MiB, and the runs of small entries, which are stored in parts of 1 MiB. So only entries that
are larger than that are always read elsewhere.
"""


@final
class StoredLog:
    """One replica's log as the core reads it: a `drakkar.handlers.raft.log.Storage`.

    For the log's thread. Compaction shows at once, other changes when they are durable. Raises `ReplicaStopped` if the
    store is closed or the replica was removed.
    """

    def __init__(
        self,
        files: Files,
        replica: ReplicaLog,
        read: Callable[[Callable[[], Any], Callable[[Any], None]], None] | None = None,
    ) -> None:
        """Made by `LogStore.open`. `read` has a job done by another thread; None: all is read at once."""
        self._files, self._replica = files, replica
        self._read_elsewhere = read
        self._loader: Loader | None = None
        self._kept = KeptRuns()

    def listen(self, loaded: Callable[[], None], memory: LogMemory | None = None) -> None:
        """Let the loop wait for no read from now on: `runs` raises `EntriesNotLoaded`, and `loaded` is called later.

        It changes nothing for a log in memory, and for one that does everything at once. What was read and is
        kept for a moment counts in `memory`.
        """
        self._kept.memory = memory
        if self._read_elsewhere is not None:
            self._loader = Loader(
                self._files, self._replica, self._kept, read=self._read_elsewhere, loaded=loaded
            )

    def let_go(self) -> None:
        """Keep nothing that was read in memory: the replica has ended."""
        self._kept.clear()

    @property
    def bootstrap(self) -> Bootstrap:
        """How the replica began."""
        return self._state().bootstrap

    @property
    def hard_state(self) -> HardState:
        """As last made durable. Its commit index is a lower bound, and lies within the log."""
        state = self._state()
        known = state.hard_state
        return HardState(known.term, known.vote, min(max(known.commit, state.marker[0]), state.last))

    @property
    def lives(self) -> Lives:
        """What the replica remembers of its own life."""
        return self._state().lives

    @property
    def recorded_commit(self) -> int:
        """The commit index as it was recorded. One beyond the last entry shows that entries were lost."""
        return self._state().hard_state.commit

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot; index 0 is none."""
        return self._state().snapshot

    @property
    def membership(self) -> Membership:
        """As of the snapshot, or the initial one."""
        return self._state().membership

    @property
    def first_index(self) -> int:
        """The index of the oldest entry."""
        return max(self._state().marker, self._replica.floor)[0] + 1

    @property
    def last_index(self) -> int:
        """The index of the newest durable entry; `first_index - 1` if there is none."""
        return self._state().last

    def term(self, index: int) -> int:
        """Return the term at `index`, known from `first_index - 1` to `last_index`; 0 elsewhere."""
        state = self._state()
        before = max(state.marker, self._replica.floor)
        if index <= before[0]:
            return before[1] if index == before[0] else 0
        return self._replica.index.term(index) if index <= state.last else 0

    def runs(self, low: int, high: int, limit: int) -> list[Run]:
        """Return entries `low` up to, but without, `high`: at most `limit` bytes, but at least one entry.

        Each run counts `RUN_OVERHEAD` bytes more, so that reading a page of short ones does not block the loop. Raises
        `IndexError` for entries that the log does not hold, `CorruptData` if they are damaged, `StorageFailed` if this process
        has too many files open to read them. After `listen`, only what is short and in the page cache is returned; it
        raises `EntriesNotLoaded` if the first entry is not.
        """
        state = self._state()
        if low >= high:
            return []
        if not self.first_index <= low or high > state.last + 1:
            raise IndexError(
                f"entries {low} to {high - 1} of {named(self._replica.key)}: it holds {self.first_index} to {state.last}"
            )
        page = _Page(low, high, limit)
        left = MAX_LOOP_BYTES
        for row, end in self._replica.index.rows(low, state.last + 1):
            left -= row.size
            run = self._known(row, state.cuts) or self._read(row, state.cuts, at_once=left >= 0)
            if run is None:
                if page.runs:
                    return page.runs
                raise self._not_loaded(low, limit)
            if not run.first <= page.next <= run.last:
                break
            # The rest of it may have been replaced by later entries.
            page.take(run.slice(run.first, end))
            if page.full:
                return page.runs
        raise CorruptData(f"{self._files.path}: {named(self._replica.key)}: entry {page.next} is missing")

    def _known(self, row: Row, cuts: int) -> Run | None:
        """Return a run that was read before."""
        run = self._kept.recent(row.first, cuts)
        if run is None:
            run = self._kept.take(row.first, cuts)
            if run is not None and row.size <= MAX_LOOP_BYTES:
                self._kept.remember(cuts, run)
        return run

    def _read(self, row: Row, cuts: int, *, at_once: bool) -> Run | None:
        """Read a run; None if the loop should not do it. `at_once`: it is short enough for the loop."""
        name, offset = segment_name(segment_of(row.place)), offset_of(row.place)
        try:
            if self._loader is None:
                data: bytes | bytearray | None = self._files.read(name, offset, row.size)
            else:
                data = self._files.read_cached(name, offset, row.size) if at_once else None
            if data is None:
                return None
            run = decode_run(self._replica.key, data)
        except (CorruptData, OSError) as error:
            raise unreadable(self._files, self._replica.key, row, error) from error
        self._kept.remember(cuts, run)
        return run

    def _not_loaded(self, low: int, limit: int) -> EntriesNotLoaded:
        assert self._loader is not None, "without one, all is read at once"
        self._loader.want(low, limit)
        return EntriesNotLoaded(f"{named(self._replica.key)}: entries from {low} on")

    def _state(self) -> LogState:
        state = self._replica.state
        if self._replica.gone or state is None:
            raise ReplicaStopped(f"{named(self._replica.key)}: {self._replica.gone}")
        return state


class _Page:
    """Runs up to a limit of bytes."""

    __slots__ = ("full", "high", "left", "next", "runs")

    def __init__(self, low: int, high: int, limit: int) -> None:
        self.next, self.high, self.left = low, high, limit
        self.runs: list[Run] = []
        self.full = False

    def take(self, run: Run) -> None:
        """Add the wanted entries of `run`, which holds the next one, as far as there is room."""
        wanted = run.slice(self.next, self.high)
        part = wanted.fitting(self.left)
        if self.runs and part.size > self.left:
            self.full = True
            return
        self.runs.append(part)
        self.next = part.last + 1
        self.left -= part.size + RUN_OVERHEAD
        self.full = part is not wanted or self.next >= self.high or self.left <= 0
