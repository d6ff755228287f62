"""The log store: what must survive a crash, for all replicas of a host, with one fsync for all of them.

Requests wait in a queue, from any thread. The store takes all that wait, plans what they change (`state`), writes that
in one transaction (`lmdb`) and then calls each request's `done`; meanwhile the next requests gather. So the busier the
host, the more requests share an fsync, and no request waits for a timer.

The first write that fails poisons the store for good: after a failed fsync the system may have dropped the pages that
it could not write, and the next fsync would report success without them. All requests that wait, and all that come
later, fail; the host must be restarted. If the data of one replica is corrupt, or a request contradicts its log, only
that replica fails, until it is opened again.
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
from drakkar.actors.log.records import Bootstrap, ReplicaKey, named, replica_key
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
"""Called exactly once: with None when the request is durable, otherwise with the reason why it never will be."""

RUN_OVERHEAD: Final = 512
"""Bytes that a run counts, in addition to its entries, towards the limit of a read.

Reading even the shortest run takes some 10 µs. So a page of 1 MiB in runs of one small entry would block the loop, and
every heartbeat of the host, for some 300 ms. With this overhead it is 20 ms.
"""

_WAKE: Final = "wake"


@dataclass(slots=True)
class AppendRequest:
    """What one replica must have on disk before it goes on. It becomes durable as a whole, or not at all."""

    shard_id: int
    replica_id: int
    hard_state: HardState | None = None
    """None leaves the stored one as it is. One that differs only in `commit` causes no flush by itself."""
    runs: Sequence[Run] = ()
    """Consecutive. Entries at or after the first index of the first run are deleted first."""
    snapshot: Snapshot | None = None
    """A snapshot that the leader sent: it replaces the whole log, and `runs` begin after it."""
    _: KW_ONLY
    done: Done
    """Called on the store's thread, in the order of the requests. It must be quick, and may call `save`."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The figures of a log store at one moment."""

    waiting: int
    """Requests that are not done yet, including those being written."""
    waiting_bytes: int
    refused: int
    """Requests that were refused because the queue was full."""
    saves: int
    """Requests that are done, successfully or not."""
    commits: int
    """Transactions."""
    entries: int
    """Entries written."""
    last_commit_seconds: float
    """Seconds that the last fsync took."""
    busy_since: float | None
    """When the transaction that is being written began (`time.monotonic`); None between transactions."""
    poisoned: StorageFailed | None
    failed_callbacks: int
    """Callbacks that raised an exception, which was logged."""


class Disk(Protocol):
    """Where a `LogStore` stores its data. One thread at a time writes and loads; any thread reads."""

    commit_seconds: float
    """Seconds that the last commit took."""

    @property
    def path(self) -> str | Path:
        """Its name in errors."""
        ...

    def replicas(self) -> list[ReplicaKey]:
        """Return all replicas on it."""
        ...

    def load(self, key: ReplicaKey) -> LogState | None:
        """Return the state of a replica's log, None if it is not there. Raises `CorruptData`."""
        ...

    def removed(self, key: ReplicaKey) -> bool:
        """Return whether the replica was removed, so that its id must not be used again."""
        ...

    def unneeded(self) -> dict[ReplicaKey, int]:
        """Return up to which index entries may be left that were dropped in an earlier run."""
        ...

    def reading(self, key: ReplicaKey, low: int) -> AbstractContextManager[Iterator[Run]]:
        """Read the runs from the one that holds `low` on, as of this moment. Raises `CorruptData`."""
        ...

    def write(self, changes: Sequence[LogChanges], trims: Mapping[ReplicaKey, int]) -> dict[ReplicaKey, int]:
        """Write all of it, durably, or nothing; return the `trims` that are left for the next call.

        Raises `RefusedReplica` if the data of one replica is corrupt; any other error poisons the store.
        """
        ...

    def reclaim(self) -> None:
        """Return free space to the system, if that is worth it. Any error poisons the store."""
        ...

    def close(self) -> None:
        """Close all files."""
        ...


class _Replica:
    """What the store knows of one replica, shared by all threads. Each field is replaced as a whole."""

    __slots__ = ("broken", "floor", "gone", "log", "removed", "state", "written")

    def __init__(self, state: LogState | None, *, removed: bool = False) -> None:
        self.removed = removed
        """It was in the store before, and was removed."""
        self.state = state
        """As of the last write that succeeded."""
        self.written = state.hard_state if state else None
        """The hard state on disk, whose commit index may be older."""
        self.floor = (0, 0)
        """Index and term up to which the log is being compacted: readers no longer see these entries."""
        self.broken: Exception | None = None
        self.log: StoredLog | None = None
        """The log that was opened last."""
        self.gone = ""
        """Why it cannot be read any more; "" if it can."""

    def publish(self, changed: LogChanges) -> "_Replica | None":
        """Show readers what has become durable. Returns the object for the replica from now on, None if it was removed."""
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
    """Load a replica that failed anew."""
    discards: bool = False
    """The old data does not matter, even if it is corrupt."""
    error: Exception | None = None


@final
class StoredLog:
    """One replica's log as the core reads it: a `drakkar.handlers.raft.log.Storage`.

    Reads are short and usually come from the page cache, so that the loop may do them; one thread at a time. Compaction
    shows at once, other changes when they are durable. Raises `ReplicaStopped` if the store is closed or the replica
    was removed.
    """

    def __init__(self, disk: Disk, key: ReplicaKey, replica: _Replica) -> None:
        """Made by `LogStore.open`."""
        self._disk, self._key, self._replica = disk, key, replica
        # The last run that was read often holds the next page too, or the term before it.
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
        """As last made durable. Its commit index is a lower bound, and lies within the log."""
        state = self._state()
        known = state.hard_state
        return HardState(known.term, known.vote, min(max(known.commit, state.marker[0]), state.last))

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
        """Return the term at `index`, known from `first_index - 1` to `last_index`; 0 elsewhere.

        It reads the log only for entries that were written before the log was opened. Raises `CorruptData` if these are
        damaged.
        """
        state = self._state()
        before = max(state.marker, self._replica.floor)
        if index <= before[0]:
            return before[1] if index == before[0] else 0
        term = state.term(index)
        return self.runs(index, index + 1, 0)[0].term if term is None else term

    def runs(self, low: int, high: int, limit: int) -> list[Run]:
        """Return entries `low` up to, but without, `high`: at most `limit` bytes, but at least one entry.

        Each run counts `RUN_OVERHEAD` bytes more, so that reading a page of short ones does not block the loop. Raises
        `IndexError` for entries that the log does not hold, `CorruptData` if they are damaged.
        """
        state = self._state()
        if low >= high:
            return []
        if not self.first_index <= low or high > state.last + 1:
            raise IndexError(
                f"entries {low} to {high - 1} of {named(self._key)}: it holds {self.first_index} to {state.last}"
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
            raise IndexError(f"entry {page.next} of {named(self._key)} was compacted while it was read")
        raise CorruptData(f"{self._disk.path}: {named(self._key)}: entry {page.next} is missing")

    def _state(self) -> LogState:
        state = self._replica.state
        if self._replica.gone or state is None:
            raise ReplicaStopped(f"{named(self._key)}: {self._replica.gone}")
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


class LogStore:
    """The logs of all replicas of a host.

    `save`, `compact` and `record_snapshot` never block: call them from any thread, also from the loop. The others wait
    for the disk. The requests of one replica take effect, and are reported, in the order in which they were made.
    """

    def __init__(
        self, disk: Disk, *, max_queue_bytes: int, max_queue_saves: int, own_thread: bool = True
    ) -> None:
        """Bounds of the queue: bytes of entries and number of requests. A single request may be larger if it waits alone."""
        check_whole("max_queue_bytes", max_queue_bytes, 1)
        check_whole("max_queue_saves", max_queue_saves, 1)
        self._disk = disk
        self._max_bytes, self._max_saves = max_queue_bytes, max_queue_saves
        self._replicas: dict[ReplicaKey, _Replica] = {}
        """The replicas that were used since the start."""
        self._stored = set(disk.replicas())
        """All replicas on the disk. To ask the disk again for each of a thousand that start took minutes."""
        self._trims = disk.unneeded()
        self._trimmed = False
        """All that was to be deleted is, and the free space was not looked at since."""

        # Shared by all threads, under the lock.
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._queue: list[_Work] = []
        self._waiting = self._waiting_bytes = 0
        self._scheduled = self._closed = False
        self._finished = threading.Event()
        self._worker: int | None = None

        # Written by the thread that works the queue, and read by all.
        self._poison: StorageFailed | None = None
        self._busy_since: float | None = None
        self._refused = self._saves = self._commits = self._entries = self._failed_callbacks = 0

        self._writer = _LogWriter.start(self) if own_thread else None

    # -- for any thread, without blocking -----------------------------------------------------------------------

    def save(self, request: AppendRequest) -> None:
        """Make a request durable, and then call its `done`.

        Raises `SystemBusy` if the queue is full, `ReplicaStopped` if the store is closed; `done` is not called then.
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

    def compact(self, shard_id: int, replica_id: int, index: int) -> None:
        """Drop the entries up to `index`, as far as they are durable; the term of `index` stays known.

        Readers see it at once; the space is freed little by little, and used again. It does nothing if the entries are
        gone already. One thread at a time for a replica, which must be open.

        Raises `SystemBusy` and `ReplicaStopped` as `save` does, `CorruptData` if the term cannot be read.
        """
        key = (shard_id, replica_id)
        known = self._replicas.get(key)
        if known is None or known.log is None:
            raise ConfigError("replica", named(key), "is not open in this log store: open it first")
        log = known.log
        index = min(index, log.last_index)
        if index < log.first_index:
            return
        term = log.term(index)
        before = known.floor
        # Before the request, or a reader on another thread could find that entries are missing.
        known.floor = (index, term)
        try:
            self._enqueue(
                _Work(key, lambda changed: changed.compact(index, term), _logged(key, "compaction"))
            )
        except DrakkarError:
            known.floor = before
            raise

    def record_snapshot(
        self, shard_id: int, replica_id: int, snapshot: Snapshot, done: Done | None = None
    ) -> None:
        """Record a snapshot that was taken here as the newest; the log stays as it is.

        `done` tells when files of older ones may go; it gets `RequestDropped` if a newer one is known. Raises
        as `save` does.
        """
        key = (shard_id, replica_id)
        done = done or _logged(key, "recording a snapshot")
        self._enqueue(
            _Work(key, lambda changed: changed.record_snapshot(snapshot), done, len(snapshot.payload))
        )

    @property
    def busy_since(self) -> float | None:
        """When the current transaction began (`time.monotonic`), None between transactions. For a watchdog."""
        return self._busy_since

    @property
    def poisoned(self) -> StorageFailed | None:
        """Why nothing becomes durable any more; None if the store works."""
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

    def bootstrap(self, shard_id: int, replica_id: int, record: Bootstrap, *, timeout: float = 60.0) -> None:
        """Begin a replica, durably.

        Raises `ConfigError` if it is in the store or was removed from it, `StorageFailed` if the disk fails, and
        `OutcomeUnknown` if it takes longer than `timeout` seconds.
        """
        self._wait(replica_key(shard_id, replica_id), lambda changed: changed.bootstrap(record), timeout)

    def open(self, shard_id: int, replica_id: int, *, timeout: float = 60.0) -> StoredLog | None:
        """Return a replica's log, after all earlier requests; None if it is not in the store.

        Only the ends of the log are read, however long it is. Raises `CorruptData` if they are damaged, and as
        `bootstrap` does.
        """
        key = replica_key(shard_id, replica_id)
        self._wait(key, _change_nothing, timeout, reopens=True)
        known = self._replicas.get(key)
        if known is None:
            return None
        if known.state is not None and known.state.hard_state.commit > known.state.last:
            _logger.warning(
                "%s: the commit index %d lies beyond the last entry %d and is lowered to it: entries may have been lost; "
                "if the disk was restored from a copy, remove this replica and add a new one",
                named(key),
                known.state.hard_state.commit,
                known.state.last,
            )
        known.log = StoredLog(self._disk, key, known)
        return known.log

    def import_replica(
        self,
        shard_id: int,
        replica_id: int,
        record: Bootstrap,
        snapshot: Snapshot,
        hard_state: HardState,
        *,
        timeout: float = 60.0,
    ) -> None:
        """Begin a replica after `snapshot`, durably, in place of all data of it. Atomic.

        The old data may be corrupt, and the replica may have been removed. This is the only way to use an id again, for
        an operator who repairs a shard that lost its majority for good and knows that no old replica will run again.
        Logs of it that are open raise `ReplicaStopped` from now on: open it again.

        Raises `ConfigError` if the snapshot has index 0 or `hard_state` does not fit it, and as `bootstrap` does.
        """
        if not snapshot:
            raise ConfigError("snapshot", snapshot, "has index 0, which is none: name one to begin after")
        if hard_state.term < snapshot.term or hard_state.commit > snapshot.index:
            raise ConfigError(
                "hard_state",
                hard_state,
                f"does not fit a log that holds nothing but the snapshot at {snapshot.index}: its term must be "
                f"{snapshot.term} or more, its commit index {snapshot.index} or less",
            )
        self._wait(
            replica_key(shard_id, replica_id),
            lambda changed: changed.replace(record, snapshot, hard_state),
            timeout,
            discards=True,
        )

    def replicas(self) -> list[ReplicaKey]:
        """Return shard and replica of all in the store. It never waits; from any thread."""
        with self._lock:
            return sorted(self._stored)

    def remove(self, shard_id: int, replica_id: int, *, timeout: float = 60.0) -> None:
        """Delete a replica and its log, even a corrupt one, durably. Raises as `bootstrap` does.

        Its id stays recorded, and `bootstrap` never takes it again, since its votes and acknowledgements hold for ever.
        """
        self._wait(replica_key(shard_id, replica_id), LogChanges.remove, timeout, discards=True)

    def close(self, timeout: float = 10.0) -> None:
        """Refuse new requests, make all that wait durable, and close the files. A second call does nothing.

        Raises `OutcomeUnknown` if it takes longer than `timeout` seconds: the disk hangs, and the requests that wait may
        still become durable.
        """
        self._refuse_worker()
        if self._writer is not None:
            with self._lock:
                self._closed = True
            self._writer.stop(block=False)
        elif self._claim(timeout):
            self._finish()
        # Not for the actor's end: to pykka it has ended before it does its last work.
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
            # All actors are being stopped. The writer does what is in the queue by now before it ends.
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
                "a `done` callback asked the log store to wait for itself: do it on another thread"
            )

    def _late(self, timeout: float) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"the log store in {self._disk.path} did not finish within {timeout} s: its disk is very busy, or hangs"
        )

    # -- working the queue: one thread at a time ----------------------------------------------------------------

    def _work(self) -> None:
        """Do all requests that wait, and those that come meanwhile."""
        try:
            while (batch := self._take()) is not None:
                self._do(batch)
        except BaseException:
            # A Ctrl-C on the main thread: the next request goes on from here.
            with self._lock:
                self._scheduled, self._worker = False, None
            raise

    def _claim(self, timeout: float) -> bool:
        """Become the last thread to work the queue, once no other does; False if another one was that already."""
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
        except Exception as error:  # noqa: BLE001  # after any error the disk cannot be trusted
            self._fail(error, batch)
        with self._lock:
            self._waiting -= len(batch)
            self._waiting_bytes -= sum(work.size for work in batch)
            self._saves += len(batch)
        for work in batch:
            self._report(work)
        # Not while requests wait: under a steady load the space is used again, and pauses would recur.
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
        except Exception as error:  # noqa: BLE001  # it is reported by `done`
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
            _logger.warning("%s is corrupt, and is deleted: %s", named(work.key), error)
            state = None
        return _Replica(state, removed=state is None and self._disk.removed(work.key))

    def _break(self, key: ReplicaKey, error: Exception) -> None:
        """Refuse all further requests of this replica, which may rely on the one that failed."""
        known = self._replicas.get(key)
        if known is not None and known.broken is not None:
            return
        _logger.error("%s fails, until it is opened again: %s", named(key), error)
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
        """Write all; return False if it must be tried again without a replica whose data is corrupt."""
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
        except Exception as error:  # noqa: BLE001  # it is unknown which file a restart would find
            self._fail(error)
        finally:
            self._busy_since = None

    def _fail(self, error: Exception, batch: Sequence[_Work] = ()) -> None:
        if self._poison is None:
            self._trims = {}
            self._poison = StorageFailed(
                f"writing to {self._disk.path} failed, and nothing more is written: see to the disk, which may "
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
            # The other requests must be reported all the same.
            self._failed_callbacks += 1
            _logger.exception("a callback of %s failed", named(work.key))

    def _finish(self) -> None:
        """Write all that waits, and the commit indexes that were not flushed, and close the disk."""
        with self._lock:
            self._closed = True
        try:
            self._work()
            self._flush_commits()
        except Exception as error:  # noqa: BLE001  # it is logged; no request waits
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

        `map_size` is the bytes to which the file may grow before the map is doubled: address space, not memory. When
        more than `spare_bytes` of the file, and more than three quarters, are free after a compaction, it is made
        shorter.

        Raises `ConfigError` if the directory cannot be used, `CorruptData` if the file in it cannot be read.
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
    """The logs in memory. It has no thread: the thread that makes a request does and reports it.

    If two threads make requests at once, one of them does both.
    """

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        """`disk` is one that another store wrote, as after a restart of the host."""
        super().__init__(
            disk or MemoryDisk(), max_queue_bytes=64 << 20, max_queue_saves=10_000, own_thread=False
        )


class _LogWriter(pykka.ThreadingActor):
    """The actor whose thread works the queue. Its inbox holds at most one message, however many requests wait."""

    use_daemon_thread: ClassVar[bool] = True

    def __init__(self, store: LogStore) -> None:
        super().__init__()
        self._store = store

    @staticmethod
    def _create_actor_inbox() -> "queue.SimpleQueue[Any]":
        # pykka's own is a `queue.Queue`, which takes three locks to wake its reader, and each request may wake it.
        return queue.SimpleQueue()

    def on_receive(self, message: Any) -> None:
        if message == _WAKE:
            self._store._work()

    def on_stop(self) -> None:
        self._store._finish()


def _change_nothing(_changes: LogChanges) -> None:
    pass


def _logged(key: ReplicaKey, what: str) -> Done:
    def done(error: BaseException | None) -> None:
        if error is not None:
            _logger.warning("%s of %s failed: %s", what, named(key), error)

    return done
