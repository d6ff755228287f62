"""The log store: what must survive a crash, for all replicas of a host, with one fsync for all of them.

Saves wait in a queue, from any thread. The store takes all that wait, plans what they change (`log_state`), writes
that in one transaction (`log_lmdb`) and then tells each saver; meanwhile the next ones gather. So the busier the
host, the more saves share an fsync, and nobody ever waits for a timer.

The first write that fails poisons the store for good: after a failed fsync the system may have dropped the very
pages it could not write, and the next fsync would report success without them. All that wait, and all that come
later, are told so; the host must be restarted. Data of one replica that turns out to be corrupt, or a save that
contradicts its log, fails that replica alone, until it is opened again.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, Self, final

import pykka
from drakkar.actors.log.lmdb import LmdbDisk
from drakkar.actors.log.memory import MemoryDisk
from drakkar.actors.log.records import Bootstrap, ReplicaKey, replica_key
from drakkar.actors.log.state import LogChanges, LogState, RefusedReplica
from drakkar.handlers.checks import check_whole
from drakkar.handlers.errors import (
    ConfigError,
    CorruptData,
    DeadlockError,
    DrakkarError,
    OutcomeUnknown,
    ProtocolViolation,
    ReplicaStopped,
    StorageFailed,
    SystemBusy,
)
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = [
    "AppendRequest",
    "Bootstrap",
    "Disk",
    "Done",
    "LmdbLogStore",
    "LogStore",
    "MemoryDisk",
    "MemoryLogStore",
    "StoreStatus",
    "StoredLog",
]

_logger = logging.getLogger(__name__)

Done = Callable[[BaseException | None], None]
"""Called exactly once: with None when it is durable, else with the reason why it never will be."""

RUN_OVERHEAD: Final = 512
"""Bytes that a run counts beside its entries where reads are limited.

To read even the shortest run takes some 10 µs. A page of 1 MiB in runs of one small entry would so hold up the loop,
and every heartbeat of the host, for some 300 ms; counted like this, it is 20.
"""

_WAKE: Final = "wake"


@dataclass(slots=True)
class AppendRequest:
    """What one replica must have on disk before it may go on. All of it becomes durable together, or none."""

    shard_id: int
    replica_id: int
    hard_state: HardState | None = None
    """None leaves it as it was. One that differs only in `commit` is not flushed by itself."""
    runs: Sequence[Run] = ()
    """Consecutive. The first index of the first run cuts off whatever stood at or after it."""
    snapshot: Snapshot | None = None
    """One that the leader sent: the whole log goes, and `runs` begin behind it."""
    _: KW_ONLY
    done: Done
    """Called on the store's thread, in the order of the saves; it must be quick, and may call `save`."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """A moment's figures of a log store."""

    waiting: int
    """Requests that are not done yet, those being written included."""
    waiting_bytes: int
    refused: int
    """Requests that found the queue full."""
    saves: int
    """Requests that were done, well or badly."""
    commits: int
    """Transactions."""
    entries: int
    """Entries written."""
    last_commit_seconds: float
    """How long the last fsync took."""
    busy_since: float | None
    """When the transaction that is being written began (`time.monotonic`); None between transactions."""
    poisoned: StorageFailed | None
    failed_callbacks: int
    """Callbacks that raised an exception, which was logged."""


class Disk(Protocol):
    """Where a `LogStore` keeps things. One thread at a time writes and loads; any thread reads."""

    commit_seconds: float
    """How long the last commit took."""

    @property
    def path(self) -> str | Path:
        """What to call it in errors."""
        ...

    def replicas(self) -> list[ReplicaKey]:
        """All replicas that are on it."""
        ...

    def load(self, key: ReplicaKey) -> LogState | None:
        """Where a replica's log stands. Raises `CorruptData`."""
        ...

    def removed(self, key: ReplicaKey) -> bool:
        """Whether it was removed, and its id must not be used again."""
        ...

    def unneeded(self) -> dict[ReplicaKey, int]:
        """Up to where entries may still be there that were dropped in an earlier life."""
        ...

    def reading(self, key: ReplicaKey, low: int) -> AbstractContextManager[Iterator[Run]]:
        """Read the runs from the one that holds `low` on, as they stand at this moment. Raises `CorruptData`."""
        ...

    def write(self, changes: Sequence[LogChanges], trims: Mapping[ReplicaKey, int]) -> dict[ReplicaKey, int]:
        """All of it, or none, durable on return; what is returned of `trims` waits for the next time.

        Raises `RefusedReplica` where only that one's data is at fault; any other error poisons the store.
        """
        ...

    def reclaim(self) -> None:
        """Give space that is free back to the system, if it is worth it; any error poisons the store."""
        ...

    def close(self) -> None:
        """Let go of all files."""
        ...


class _Replica:
    """What all parts of the store, on whatever thread, know of one replica. Each field is replaced as a whole."""

    __slots__ = ("broken", "floor", "gone", "log", "removed", "state", "written")

    def __init__(self, state: LogState | None, *, removed: bool = False) -> None:
        self.removed = removed
        """It was in the store once."""
        self.state = state
        """As of the last write that is done."""
        self.written = state.hard_state if state else None
        """The hard state on disk, whose commit index may be older."""
        self.floor = (0, 0)
        """Index and term up to which the log is to be compacted: for readers, these entries are gone already."""
        self.broken: Exception | None = None
        self.log: StoredLog | None = None
        """As it was opened last."""
        self.gone = ""
        """Why there is nothing to read any more."""

    def publish(self, changed: LogChanges) -> "_Replica | None":
        """Show what has become durable. Returns who stands for the replica from now on."""
        if changed.state is None:
            self.gone = "it was removed from the log store"
            return None
        if changed.successor:
            self.gone = "its log was replaced by an import"
            return _Replica(changed.state)
        self.state = changed.state
        return self


@dataclass(slots=True)
class _Work:
    """One request in the queue."""

    key: ReplicaKey
    plan: Callable[[LogChanges], None]
    done: Done
    size: int = 0
    reopens: bool = False
    """It looks anew at a replica that failed."""
    discards: bool = False
    """It does not matter what was there, nor that it is corrupt."""
    error: Exception | None = None


@final
class StoredLog:
    """One replica's log as the core reads it: a `drakkar.handlers.raft.log.Storage`.

    Reads are short and come from the page cache as a rule, so that they are fit for the loop; any one thread at a
    time may do them. Compaction shows at once, other changes when they are durable. Raises `ReplicaStopped` when
    the store is closed or the replica removed.
    """

    def __init__(self, disk: Disk, key: ReplicaKey, replica: _Replica) -> None:
        """Made by `LogStore.open`."""
        self._disk, self._key, self._replica = disk, key, replica
        # The last run that was read: the next page, or the term before it, is often in it too.
        self._recent: tuple[int, Run] | None = None

    @classmethod
    def of(cls, disk: Disk, key: ReplicaKey, state: LogState) -> Self:
        """Return a log to read without a store, as it stands on a disk that is not written."""
        return cls(disk, key, _Replica(state))

    @property
    def bootstrap(self) -> Bootstrap:
        """How the replica began."""
        return self._state().bootstrap

    @property
    def hard_state(self) -> HardState:
        """As last made durable, with a commit index that lies within the log: it is only a lower bound."""
        state = self._state()
        known = state.hard_state
        return HardState(known.term, known.vote, min(max(known.commit, state.marker[0]), state.last))

    @property
    def snapshot(self) -> Snapshot:
        """The newest one; index 0 is none."""
        return self._state().snapshot

    @property
    def membership(self) -> Membership:
        """As of the snapshot, or the initial one."""
        return self._state().membership

    @property
    def first_index(self) -> int:
        """The oldest entry still held."""
        return max(self._state().marker, self._replica.floor)[0] + 1

    @property
    def last_index(self) -> int:
        """The newest entry that is durable; `first_index - 1` where there is none."""
        return self._state().last

    def term(self, index: int) -> int:
        """Return the term at `index`, known from `first_index - 1` to `last_index`; 0 elsewhere.

        Read from the log only for entries that were written before the log was opened. Raises `CorruptData`
        where what is on disk is damaged.
        """
        state = self._state()
        before = max(state.marker, self._replica.floor)
        if index <= before[0]:
            return before[1] if index == before[0] else 0
        term = state.term(index)
        return self.runs(index, index + 1, 0)[0].term if term is None else term

    def runs(self, low: int, high: int, limit: int) -> list[Run]:
        """Return entries `low` up to, but without, `high`: at most `limit` bytes, but at least one entry.

        A run counts some bytes itself, so that reading a page of short ones cannot hold up the loop. Raises
        `IndexError` for entries that are not held, `CorruptData` where what is on disk is damaged.
        """
        state = self._state()
        if low >= high:
            return []
        if not self.first_index <= low or high > state.last + 1:
            raise IndexError(
                f"entries {low} to {high - 1} of {_named(self._key)}: it holds {self.first_index} to {state.last}"
            )
        page = _Page(low, high, limit)
        recent = self._recent
        if recent is not None and recent[0] == state.cuts and recent[1].first <= low <= recent[1].last:
            page.take(recent[1])
        if not page.full:
            self._read(page, state.cuts)
        return page.runs

    def _read(self, page: "_Page", cuts: int) -> None:
        with self._disk.reading(self._key, page.next) as stored:
            for run in stored:
                if not run.first <= page.next <= run.last:
                    break
                self._recent = (cuts, run)
                page.take(run)
                if page.full:
                    return
        if page.next < self.first_index:
            raise IndexError(f"entry {page.next} of {_named(self._key)} was compacted while it was read")
        raise CorruptData(f"{self._disk.path}: {_named(self._key)}: entry {page.next} is missing")

    def _state(self) -> LogState:
        state = self._replica.state
        if self._replica.gone or state is None:
            raise ReplicaStopped(f"{_named(self._key)}: {self._replica.gone}")
        return state


class _Page:
    """Runs gathered up to a limit."""

    __slots__ = ("full", "high", "left", "next", "runs")

    def __init__(self, low: int, high: int, limit: int) -> None:
        self.next, self.high, self.left = low, high, limit
        self.runs: list[Run] = []
        self.full = False

    def take(self, run: Run) -> None:
        """Add what is wanted of `run`, which holds the next entry, as far as there is room."""
        wanted = run.slice(self.next, self.high)
        part = wanted.fitting(self.left)
        if self.runs and part.size > self.left:
            self.full = True
            return
        self.runs.append(part)
        self.next = part.last + 1
        self.left -= part.size + RUN_OVERHEAD
        self.full = part is not wanted or self.next >= self.high or self.left <= 0


class LogStore:
    """The logs of all replicas of a host.

    `save`, `compact` and `record_snapshot` never block, from any thread, and so suit the loop; the others wait for
    the disk. Requests of one replica take effect, and are reported, in the order in which they were made.
    """

    def __init__(
        self, disk: Disk, *, max_queue_bytes: int, max_queue_saves: int, own_thread: bool = True
    ) -> None:
        """Bounds on what waits: bytes of entries (one save may be larger, if nothing else waits), and requests."""
        check_whole("max_queue_bytes", max_queue_bytes, 1)
        check_whole("max_queue_saves", max_queue_saves, 1)
        self._disk = disk
        self._max_bytes, self._max_saves = max_queue_bytes, max_queue_saves
        self._replicas: dict[ReplicaKey, _Replica] = {}
        """Those that were asked for, and are there."""
        self._stored = set(disk.replicas())
        """All that are there. To ask the disk for each of a thousand replicas that start took minutes."""
        self._trims = disk.unneeded()
        self._trimmed = False
        """All was deleted that was to be, and nobody has looked since what that leaves free."""

        # These are shared by all threads, under the lock.
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._queue: list[_Work] = []
        self._waiting = self._waiting_bytes = 0
        self._scheduled = self._closed = False
        self._finished = threading.Event()
        self._worker: int | None = None

        # These are written by whoever works the queue, and read by all.
        self._poison: StorageFailed | None = None
        self._busy_since: float | None = None
        self._refused = self._saves = self._commits = self._entries = self._failed_callbacks = 0

        self._writer = _LogWriter.start(self) if own_thread else None

    # -- for any thread, without blocking -----------------------------------------------------------------------

    def save(self, request: AppendRequest) -> None:
        """Make it durable, and then call `request.done`.

        Raises `SystemBusy` when the queue is full, `ReplicaStopped` when the store is closed; `done` is then never
        called.
        """
        size = sum(run.size for run in request.runs)
        if request.snapshot is not None:
            size += len(request.snapshot.payload)
        self._enqueue(
            _Work(
                (request.shard_id, request.replica_id),
                lambda changed: changed.save(request.hard_state, request.runs, request.snapshot),
                request.done,
                size,
            )
        )

    def compact(self, shard: int, replica: int, index: int) -> None:
        """Drop the entries up to `index`, as far as they are durable; `index` itself keeps its term.

        Readers see it at once; the space is freed little by little, and used again. Where these entries are gone
        already there is nothing to do. One thread at a time for a replica, which must be open.

        Raises `SystemBusy` and `ReplicaStopped` as `save` does, `CorruptData` where the term cannot be read.
        """
        key = (shard, replica)
        known = self._replicas.get(key)
        if known is None or known.log is None:
            raise ConfigError("replica", _named(key), "is not open in this log store: open it first")
        log = known.log
        index = min(index, log.last_index)
        if index < log.first_index:
            return
        term = log.term(index)
        before = known.floor
        # First, or a reader on another thread could find entries missing that are deleted already.
        known.floor = (index, term)
        try:
            self._enqueue(
                _Work(key, lambda changed: changed.compact(index, term), _logged(key, "compaction"))
            )
        except DrakkarError:
            known.floor = before
            raise

    def record_snapshot(self, shard: int, replica: int, snapshot: Snapshot, done: Done | None = None) -> None:
        """Keep a snapshot that was taken here, as the newest; the log stays as it is.

        `done` tells when files of older ones may go; it gets `RequestDropped` where a newer one is known. Raises
        as `save` does.
        """
        key = (shard, replica)
        done = done or _logged(key, "recording a snapshot")
        self._enqueue(
            _Work(key, lambda changed: changed.record_snapshot(snapshot), done, len(snapshot.payload))
        )

    @property
    def busy_since(self) -> float | None:
        """When the transaction that is being written began (`time.monotonic`), for a watchdog; None between them."""
        return self._busy_since

    @property
    def poisoned(self) -> StorageFailed | None:
        """Why nothing becomes durable any more; None while all is well."""
        return self._poison

    @property
    def status(self) -> StoreStatus:
        """The figures of this moment."""
        with self._lock:
            return StoreStatus(
                waiting=self._waiting,
                waiting_bytes=self._waiting_bytes,
                refused=self._refused,
                saves=self._saves,
                commits=self._commits,
                entries=self._entries,
                last_commit_seconds=self._disk.commit_seconds,
                busy_since=self._busy_since,
                poisoned=self._poison,
                failed_callbacks=self._failed_callbacks,
            )

    # -- for any thread but the loop's, waiting for the disk ----------------------------------------------------

    def bootstrap(self, shard: int, replica: int, record: Bootstrap, *, timeout: float = 60.0) -> None:
        """Begin a replica; durable on return.

        Raises `ConfigError` where it is in the store already or was ever removed from it, `StorageFailed` where the disk fails, and
        `OutcomeUnknown` when it takes longer than `timeout` seconds.
        """
        self._wait(replica_key(shard, replica), lambda changed: changed.bootstrap(record), timeout)

    def open(self, shard: int, replica: int, *, timeout: float = 60.0) -> StoredLog | None:
        """Return a replica's log, after all that was asked for earlier; None for one that is not in the store.

        However long the log is, only its ends are read. Raises `CorruptData` where they are damaged, and as
        `bootstrap` does.
        """
        key = replica_key(shard, replica)
        self._wait(key, _change_nothing, timeout, reopens=True)
        known = self._replicas.get(key)
        if known is None:
            return None
        if known.state is not None and known.state.hard_state.commit > known.state.last:
            _logger.warning(
                "%s: the commit index %d lies beyond the last entry %d and is lowered to it: entries may have been lost; "
                "if the disk was restored from a copy, remove this replica and add a new one",
                _named(key),
                known.state.hard_state.commit,
                known.state.last,
            )
        known.log = StoredLog(self._disk, key, known)
        return known.log

    def import_replica(
        self,
        shard: int,
        replica: int,
        record: Bootstrap,
        snapshot: Snapshot,
        hard_state: HardState,
        *,
        timeout: float = 60.0,
    ) -> None:
        """Begin a replica behind `snapshot`, in place of whatever there is, or was, of it; durable on return.

        At once or not at all. What was there may be corrupt, and may have been removed: this is the one way to use
        an id again, for those who repair a shard that lost its majority for good, and know that none of the old
        one will ever speak again. Logs of it that are open raise `ReplicaStopped` from now on; open it again.

        Raises `ConfigError` where the snapshot has no index or `hard_state` does not fit it, and as `bootstrap` does.
        """
        if not snapshot:
            raise ConfigError("snapshot", snapshot, "has index 0, which is none: name one to begin behind")
        if hard_state.term < snapshot.term or hard_state.commit > snapshot.index:
            raise ConfigError(
                "hard_state",
                hard_state,
                f"does not fit a log that holds nothing but the snapshot at {snapshot.index}: its term must be "
                f"{snapshot.term} or more, its commit index {snapshot.index} or less",
            )
        self._wait(
            replica_key(shard, replica),
            lambda changed: changed.replace(record, snapshot, hard_state),
            timeout,
            discards=True,
        )

    def replicas(self) -> list[ReplicaKey]:
        """Shard and replica of all that are in the store; never waits, and may be called from any thread."""
        with self._lock:
            return sorted(self._stored)

    def remove(self, shard: int, replica: int, *, timeout: float = 60.0) -> None:
        """Forget a replica and its log, even a corrupt one, durably on return. Raises as `bootstrap` does.

        Its id is not forgotten: what it promised holds for ever, so that `bootstrap` never takes it again.
        """
        self._wait(replica_key(shard, replica), LogChanges.remove, timeout, discards=True)

    def close(self, timeout: float = 10.0) -> None:
        """Take no more, make all that waits durable, and close the files. Closing again does nothing.

        Raises `OutcomeUnknown` when it takes longer than `timeout` seconds: the disk hangs, and what waits may or
        may not become durable yet.
        """
        self._refuse_worker()
        if self._writer is not None:
            with self._lock:
                self._closed = True
            self._writer.stop(block=False)
        elif self._claim(timeout):
            self._finish()
        # Not for the actor: to pykka it is dead before it does its last work.
        if not self._finished.wait(timeout):
            raise self._late(timeout)

    # -- the queue ----------------------------------------------------------------------------------------------

    def _enqueue(self, work: _Work, *, bounded: bool = True) -> None:
        with self._lock:
            if self._closed:
                raise ReplicaStopped(f"the log store in {self._disk.path} is closed")
            if bounded and self._waiting and self._is_full(work.size):
                self._refused += 1
                raise SystemBusy(
                    f"the log store in {self._disk.path} has {self._waiting} requests of {self._waiting_bytes} bytes "
                    f"waiting, of at most {self._max_saves} and {self._max_bytes}: wait for some to be done"
                )
            self._queue.append(work)
            self._waiting += 1
            self._waiting_bytes += work.size
            wake, self._scheduled = not self._scheduled, True
        if wake:
            self._wake()

    def _is_full(self, size: int) -> bool:
        return self._waiting >= self._max_saves or self._waiting_bytes + size > self._max_bytes

    def _wake(self) -> None:
        if self._writer is None:
            self._work()
            return
        try:
            self._writer.tell(_WAKE)
        except pykka.ActorDeadError:
            # Somebody stops all actors. What is in the queue by now is done before the writer's end.
            _logger.debug("the log store in %s is being stopped", self._disk.path)

    def _wait(
        self,
        key: ReplicaKey,
        plan: Callable[[LogChanges], None],
        timeout: float,
        *,
        reopens: bool = False,
        discards: bool = False,
    ) -> None:
        self._refuse_worker()
        finished = threading.Event()
        outcome: list[BaseException | None] = []

        def done(error: BaseException | None) -> None:
            outcome.append(error)
            finished.set()

        self._enqueue(_Work(key, plan, done, reopens=reopens, discards=discards), bounded=False)
        if not finished.wait(timeout):
            raise self._late(timeout)
        if outcome[0] is not None:
            raise outcome[0]

    def _refuse_worker(self) -> None:
        if self._worker == threading.get_ident():
            raise DeadlockError(
                "the log store was asked to wait for itself, by a `done` callback: do it on another thread"
            )

    def _late(self, timeout: float) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"the log store in {self._disk.path} did not finish within {timeout} s: its disk is very busy, or hangs"
        )

    # -- working the queue: one thread at a time ----------------------------------------------------------------

    def _work(self) -> None:
        """Do all that waits, and what comes meanwhile."""
        try:
            while (batch := self._take()) is not None:
                self._do(batch)
        except BaseException:
            # A Ctrl-C on the main thread: the next one who makes a request goes on.
            with self._lock:
                self._scheduled, self._worker = False, None
            raise

    def _claim(self, timeout: float) -> bool:
        """Become the last one to work the queue, when nobody does; False where somebody was that already."""
        with self._lock:
            free = self._idle.wait_for(lambda: not self._scheduled, timeout) and not self._closed
            if free:
                self._closed = self._scheduled = True
            return free

    def _take(self) -> list[_Work] | None:
        with self._lock:
            if not self._queue and (self._closed or not self._trims):
                self._scheduled, self._worker = False, None
                self._idle.notify_all()
                return None
            self._worker = threading.get_ident()
            batch, self._queue = self._queue, []
            return batch

    def _do(self, batch: list[_Work]) -> None:
        try:
            self._change(batch)
        except Exception as error:  # noqa: BLE001  # whatever happened to the disk, it cannot be trusted now
            self._fail(error, batch)
        with self._lock:
            self._waiting -= len(batch)
            self._waiting_bytes -= sum(work.size for work in batch)
            self._saves += len(batch)
        for work in batch:
            self._report(work)
        # Not while others wait: under a steady load the space is used again, and the pause would come ever again.
        if self._trimmed and not self._queue and self._poison is None and not self._closed:
            self._reclaim()

    def _change(self, batch: list[_Work]) -> None:
        if self._poison is not None:
            raise self._poison
        changes: dict[ReplicaKey, LogChanges] = {}
        for work in batch:
            self._plan(work, changes)
        if self._trims or any(changed.urgent for changed in changes.values()):
            self._write(batch, changes)
        for key, changed in changes.items():
            self._publish(key, changed)

    def _publish(self, key: ReplicaKey, changed: LogChanges) -> None:
        known = self._replicas[key].publish(changed)
        if known is None:
            del self._replicas[key]
        else:
            self._replicas[key] = known
        if (known is not None) != (key in self._stored):
            with self._lock:
                self._stored ^= {key}

    def _plan(self, work: _Work, changes: dict[ReplicaKey, LogChanges]) -> None:
        try:
            known = self._known(work)
            if work.key not in changes:
                changes[work.key] = LogChanges(work.key, known.state, known.written, removed=known.removed)
            work.plan(changes[work.key])
        except Exception as error:  # noqa: BLE001  # whatever it is, the saver is told
            work.error = error
            if not isinstance(error, DrakkarError) or isinstance(error, CorruptData | ProtocolViolation):
                self._break(work.key, error)

    def _known(self, work: _Work) -> _Replica:
        known = self._replicas.get(work.key)
        if known is None or (known.broken is not None and work.reopens):
            known = self._replicas[work.key] = self._loaded(work)
        if known.broken is not None and work.discards:
            known.broken = None
        if known.broken is not None:
            raise known.broken
        return known

    def _loaded(self, work: _Work) -> _Replica:
        try:
            state = self._disk.load(work.key)
        except CorruptData as error:
            if not work.discards:
                raise
            _logger.warning("%s is corrupt, and goes: %s", _named(work.key), error)
            state = None
        return _Replica(state, removed=state is None and self._disk.removed(work.key))

    def _break(self, key: ReplicaKey, error: Exception) -> None:
        """No more of this replica: what comes next rests on what just failed."""
        known = self._replicas.get(key)
        if known is not None and known.broken is not None:
            return
        _logger.error("%s fails, until it is opened again: %s", _named(key), error)
        if known is not None:
            known.broken = error

    def _write(self, batch: list[_Work], changes: dict[ReplicaKey, LogChanges]) -> None:
        self._busy_since = time.monotonic()
        try:
            while not self._written(batch, changes):
                pass
            self._commits += 1
        finally:
            self._busy_since = None

    def _written(self, batch: list[_Work], changes: dict[ReplicaKey, LogChanges]) -> bool:
        """Write all; False where it must be tried again without a replica whose data is at fault."""
        trims = dict(self._trims)
        for changed in changes.values():
            changed.seal()
            if changed.trim is not None:
                trims[changed.key] = changed.trim
        try:
            self._trims = self._disk.write(list(changes.values()), trims)
        except RefusedReplica as refused:
            del changes[refused.key]
            self._break(refused.key, refused.error)
            for work in batch:
                if work.key == refused.key:
                    work.error = work.error or refused.error
            return False
        if trims:
            self._trimmed = not self._trims
        for changed in changes.values():
            self._replicas[changed.key].written = changed.state.hard_state if changed.state else None
            self._entries += sum(len(change) for change in changed.log if isinstance(change, Run))
        return True

    def _reclaim(self) -> None:
        self._trimmed = False
        self._busy_since = time.monotonic()
        try:
            self._disk.reclaim()
        except Exception as error:  # noqa: BLE001  # which file a restart would find is unknown
            self._fail(error)
        finally:
            self._busy_since = None

    def _fail(self, error: Exception, batch: Sequence[_Work] = ()) -> None:
        if self._poison is None:
            self._trims = {}
            self._poison = StorageFailed(
                f"writing to {self._disk.path} failed, and nothing is taken any more: see to the disk, which may "
                f"be full, then restart this host ({error!r})"
            )
            self._poison.__cause__ = error
            _logger.critical("%s", self._poison, exc_info=error)
        for work in batch:
            work.error = work.error or self._poison

    def _report(self, work: _Work) -> None:
        try:
            work.done(work.error)
        except BaseException:
            # Whoever waits for the other saves must hear of them all the same.
            self._failed_callbacks += 1
            _logger.exception("a callback of %s failed", _named(work.key))

    def _finish(self) -> None:
        """End well: write all that waits, and the commit indexes that nobody waited for."""
        with self._lock:
            self._closed = True
        try:
            self._work()
            self._flush_commits()
        except Exception as error:  # noqa: BLE001  # it is logged, and nobody waits for it
            self._fail(error)
        finally:
            for known in self._replicas.values():
                known.gone = "the log store is closed"
            self._disk.close()
            self._finished.set()

    def _flush_commits(self) -> None:
        changes = [LogChanges(key, known.state, known.written) for key, known in self._replicas.items()]
        late = {changed.key: changed for changed in changes if changed.is_late()}
        if late and self._poison is None:
            self._write([], late)


@final
class LmdbLogStore(LogStore):
    """The logs on disk, in LMDB, on a thread of its own."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        map_size: int = 256 << 20,
        spare_bytes: int = 64 << 20,
        max_queue_bytes: int = 64 << 20,
        max_queue_saves: int = 10_000,
    ) -> None:
        """Open the store in `directory`, or create it.

        `map_size`, in bytes, is what the file may grow to before the map is doubled: address space, not memory.
        When more than `spare_bytes` of it, and more than three quarters, are free after a compaction, the file is
        made shorter.

        Raises `ConfigError` where the directory cannot be used, `CorruptData` where the file in it cannot.
        """
        check_whole("map_size", map_size, 1 << 16, (1 << 47) - 1)
        check_whole("spare_bytes", spare_bytes, 0)
        super().__init__(
            LmdbDisk(directory, map_size, spare_bytes),
            max_queue_bytes=max_queue_bytes,
            max_queue_saves=max_queue_saves,
        )


@final
class MemoryLogStore(LogStore):
    """The logs in memory. It has no thread: requests are done, and reported, by the thread that makes them.

    Where two threads make requests at once, one of them does both.
    """

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        """`disk` is one that another store wrote: as if the host was restarted."""
        super().__init__(
            disk or MemoryDisk(), max_queue_bytes=64 << 20, max_queue_saves=10_000, own_thread=False
        )


class _LogWriter(pykka.ThreadingActor):
    """The actor whose thread works the queue. Its inbox holds one message at most, however much there is to do."""

    use_daemon_thread: ClassVar[bool] = True

    def __init__(self, store: LogStore) -> None:
        super().__init__()
        self._store = store

    @staticmethod
    def _create_actor_inbox() -> "queue.SimpleQueue[Any]":
        # pykka's own is a `queue.Queue`, which takes three locks to wake its reader; and each save wakes it.
        return queue.SimpleQueue()

    def on_receive(self, message: Any) -> None:
        if message == _WAKE:
            self._store._work()

    def on_stop(self) -> None:
        self._store._finish()


def _change_nothing(_changes: LogChanges) -> None:
    pass


def _named(key: ReplicaKey) -> str:
    return f"shard {key[0]} replica {key[1]}"


def _logged(key: ReplicaKey, what: str) -> Done:
    def done(error: BaseException | None) -> None:
        if error is not None:
            _logger.warning("%s of %s failed: %s", what, _named(key), error)

    return done
