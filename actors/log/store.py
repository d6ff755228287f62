"""The log store: what must survive a crash, for all replicas of a host, in one log, with one flush for all that waits.

    a request ──► the queue ──► one record for all that waits ──► the active segment ──► a flush ──► `done` of each

Requests gather in a queue until the end of the round, or until the flush that is under way ends. Then all that wait
become one record, which is written and flushed. So at most one record is not durable, no request waits for a timer, and
the busier the host is, the more requests share a flush.

The first flush that fails poisons the store for good: the system may have dropped the pages that it could not write,
and the next flush would report success without them. All requests that wait fail, and so do all later ones; the host
must be restarted. If a request contradicts the log of its replica, only that replica fails, until it is opened again.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Final, final

from drakkar.actors.log.cleaning import Cleaner, Move
from drakkar.actors.log.disk_errors import explain
from drakkar.actors.log.driver import Driver, InlineDriver
from drakkar.actors.log.fair_queue import FairQueue
from drakkar.actors.log.files import DiskFiles, Files, MemoryFiles
from drakkar.actors.log.records import (
    CHANGE_BYTES,
    RECORD_BYTES,
    Bootstrap,
    RecordBuilder,
    ReplicaKey,
    encode_bootstrap,
    encode_lives,
    encode_snapshot,
    named,
    replica_key,
)
from drakkar.actors.log.recovery import recover
from drakkar.actors.log.replica import ReplicaLog
from drakkar.actors.log.segments import HEADER_BYTES, SEGMENT_BYTES, Segment, Segments
from drakkar.actors.log.state import MAX_RUN_BYTES, LogChanges, Placed
from drakkar.actors.log.stored_log import StoredLog
from drakkar.actors.runtime.log_lines import HostLines, Lines
from drakkar.handlers.checks import check_whole
from drakkar.handlers.errors import (
    ConfigError,
    CorruptData,
    DrakkarError,
    OutcomeUnknown,
    ProtocolViolation,
    ReplicaStopped,
    StorageFailed,
    SystemBusy,
)
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.lives import Lives
from drakkar.handlers.raft.state import HardState, Snapshot

__all__ = [
    "AppendRequest",
    "Bootstrap",
    "Done",
    "LogStore",
    "StoreStatus",
    "StoredLog",
    "log_in_memory",
    "log_on_disk",
]

Done = Callable[[BaseException | None], None]
"""Called exactly once: with None when the request is durable, otherwise with the reason why it never will be."""

_MEMORY_SEGMENT_BYTES: Final = 1 << 20
_MAX_RECORD_BYTES: Final = 8 << 20
"""Bytes of requests in a record, unless a single request is larger."""
_FEW_BYTES: Final = 64 << 10
"""Bytes of a request that is taken from any replica of which none waits, however much others have waiting."""
_RUN_OVERHEAD_BYTES: Final = 96
"""Bytes of a stored run beside its entries, at most."""
_FACTS_BYTES: Final = 256
"""Bytes that a request takes beside its entries and payloads, at most."""
_NO_LIFE: Final = Lives()
_NO_REPLICA: Final = (0, 0)
"""The key of work that concerns no replica: ids of replicas begin with 1."""


@dataclass(slots=True)
class AppendRequest:
    """What one replica must have on disk before it goes on. It becomes durable as a whole, or not at all."""

    shard_id: int
    replica_id: int
    hard_state: HardState | None = None
    """None leaves the stored one as it is."""
    runs: Sequence[Run] = ()
    """Consecutive. Entries at or after the first index of the first run are deleted first."""
    snapshot: Snapshot | None = None
    """A snapshot that the leader sent: it replaces the whole log, and `runs` begin after it."""
    _: KW_ONLY
    lives: Lives | None = None
    """None leaves what the replica remembers of its own life as it is."""
    done: Done
    """Called on the log's thread, in the order of the requests. It must be quick, and may call `save`."""


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
    """Records that were flushed."""
    entries: int
    """Entries written."""
    last_commit_seconds: float
    """Seconds that the last flush took."""
    flush_seconds: float
    """Seconds that all flushes took together."""
    busy_since: float | None
    """When the flush that is under way began (`time.monotonic`); None between flushes."""
    poisoned: StorageFailed | None
    failed_callbacks: int
    """Callbacks that raised an exception, which was logged."""
    full: bool
    """The disk is full: no entries are taken beyond what was allocated before."""
    segments: int
    """Files of the log that are in use."""
    disk_bytes: int
    """Bytes of these files."""
    live_bytes: int
    """Bytes in these files that are needed."""


@dataclass(slots=True)
class _Work:
    """One request in the queue."""

    key: ReplicaKey
    plan: Callable[[LogChanges], None]
    done: Done
    size: int = 0
    """Bytes of what has no fixed size: entries, snapshots and bootstrap records. The bound of the queue counts these."""
    entries: int = 0
    moves: bool = False
    """It is no request: it writes again what the log holds."""
    discards: bool = False
    """It does not depend on the old data, even if that is corrupt."""
    error: Exception | None = None
    """Why it could not be planned."""
    turn: int = 0
    """See `FairQueue`."""

    @property
    def room(self) -> int:
        """Bytes that it takes in a record, at most."""
        return self.size + _FACTS_BYTES


@final
class LogStore:
    """The logs of all replicas of a host.

    All methods are for one thread, that of the host's loop if it has one, and none of them waits for the disk, except
    `close`, which may be called from any thread once the loop has ended. `status`, `poisoned`, `replicas` and `removed` are
    for any thread. The requests of one replica take effect, and are reported, in the order in which they were made.
    """

    def __init__(
        self,
        files: Files,
        owner: str,
        *,
        create: bool = True,
        read_only: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
        max_queue_bytes: int = 64 << 20,
        max_queue_saves: int = 10_000,
        lines: Lines | None = None,
    ) -> None:
        """Read the log in `files`, or begin one there if `create`. Blocks.

        Unless `read_only`, it also writes to the disk: it makes durable what it found, strikes out what a crash left
        behind that, and deletes files that belong to the log no longer. Requests wait until `start`.

        `owner`: the id of the host to which the log belongs.
        `read_only`: change nothing of a log on the disk; `start` may not be called then, and `create` should be False. A
        replica of which some entries are damaged can be opened, and its other entries can be read.
        `segment_bytes`: bytes of a file of the log.
        `max_queue_bytes`, `max_queue_saves`: bounds of the queue. A single request may be larger if it waits alone.
        `lines`: writes what the host's log is to say.

        Raises `ConfigError` if the folder cannot be used, or holds another host's log or one of another format, and
        `CorruptData` if a part of the log is missing or damaged.
        """
        check_whole("segment_bytes", segment_bytes, 1 << 12, 1 << 31)
        check_whole("max_queue_bytes", max_queue_bytes, 1)
        check_whole("max_queue_saves", max_queue_saves, 1)
        self._files = files
        self._lines = lines or HostLines().of("drakkar.actors.log")
        self._segments = Segments(files, owner, segment_bytes, self._lines)
        self._max_bytes, self._max_saves = max_queue_bytes, max_queue_saves
        try:
            if create and not self._segments.manifest.exists:
                self._segments.create()
            self._segments.load()
            found = recover(self._segments, salvage=read_only)
            if not read_only:
                self._settle(found.active, found.last_record)
        except OSError as error:
            files.close()
            raise ConfigError(
                "data_dir",
                str(files.path),
                f"{error.filename or files.path} cannot hold a log: {explain(error)}",
            ) from error
        except BaseException:
            files.close()
            raise
        self._replicas, self._usage, self._sequence = found.replicas, found.usage, found.sequence
        self._stored = {key for key, replica in self._replicas.items() if not replica.removed}

        self._queue: FairQueue[_Work] = FairQueue(_MAX_RECORD_BYTES)
        self._moves: deque[_Work] = deque()
        """What is to be written again, to free a segment."""
        self._moves_first = False
        """None of them had room beside the last requests."""
        self._waiting = self._waiting_bytes = 0
        self._waiting_of: Counter[ReplicaKey] = Counter()
        """How many requests of each replica are not done."""
        self._scheduled = self._pumping = False
        self._flushing = True
        """No record may be written: one is being flushed, or the next waits for a segment, or `start` was not called yet."""
        self._awaits_segment = False
        """The next record waits for a segment; `_flushing` is set then too."""
        self._under_way: list[_Work] | None = None
        """What is in the record that is being flushed."""
        self._closed = False
        self._poison: StorageFailed | None = None
        self._busy_since: float | None = None
        self._flush_seconds = self._last_flush_seconds = 0.0
        self._refused = self._saves = self._commits = self._entries = self._failed_callbacks = 0
        self._driver: Driver = InlineDriver()
        self._cleaner: Cleaner | None = None
        """None before `start`."""

    def _settle(self, active: Segment, last_record: int) -> None:
        """Make durable what was found, before anything relies on it: the flush of the last record may have failed.

        What a crash left of a further record is struck out. The next record may be written to another place, and then
        that remainder would look like damage.
        """
        self._segments.settle(active)
        last = self._files.read(active.name, last_record, active.end - last_record)
        self._files.put(active.name, last_record, last + bytes(min(RECORD_BYTES, active.rest)))
        if (following := self._segments.next) is not None:
            self._files.put(following.name, HEADER_BYTES, bytes(RECORD_BYTES))

    def start(self, driver: Driver) -> None:
        """Write from now on, by means of `driver`."""
        self._driver = driver
        self._cleaner = Cleaner(self._segments, self._usage, self._replicas, driver=driver, move=self._move)
        self._flushing = False
        self._segments.start(driver, ready=self._on_segment_ready, failed=self.fail)
        self._pump()

    # -- requests -------------------------------------------------------------------------------------------------

    def save(self, request: AppendRequest) -> None:
        """Make a request durable, and then call its `done`.

        Raises `SystemBusy` if the queue is full, `ReplicaStopped` if the store is closed; `done` is not called then.
        """
        size = sum(_stored_bytes(run) for run in request.runs) + _snapshot_bytes(request.snapshot)
        size += _lives_bytes(request.lives)
        self._enqueue(
            _Work(
                (request.shard_id, request.replica_id),
                lambda changed: changed.save(
                    request.hard_state, request.runs, request.snapshot, request.lives
                ),
                request.done,
                size,
                sum(map(len, request.runs)),
            )
        )

    def compact(self, shard_id: int, replica_id: int, index: int) -> None:
        """Drop the entries up to `index`, as far as they are durable; the term of `index` stays known.

        Readers no longer see them from now on; the space comes back later. Does nothing if the entries are gone already.

        Raises `ConfigError` for a replica that is not open, `SystemBusy` and `ReplicaStopped` as `save` does.
        """
        key = (shard_id, replica_id)
        replica = self._replicas.get(key)
        if replica is None or not replica.opened or replica.state is None:
            raise ConfigError("replica", named(key), "is not open in this log store: open it first")
        log = StoredLog(self._files, replica)
        index = min(index, log.last_index)
        if index < log.first_index:
            return
        term, before = log.term(index), replica.floor
        replica.floor = index, term
        try:
            self._enqueue(
                _Work(
                    key,
                    lambda changed: changed.compact(index, term),
                    _logged(self._lines.about(*key), "compaction"),
                )
            )
        except DrakkarError:
            replica.floor = before
            raise

    def record_snapshot(
        self, shard_id: int, replica_id: int, snapshot: Snapshot, done: Done | None = None
    ) -> None:
        """Record a snapshot that was taken here as the newest; the log stays as it is.

        The files of older snapshots may be deleted when `done` is called with None. It gets `RequestDropped` if a newer
        snapshot is known. Raises as `save` does.
        """
        key = (shard_id, replica_id)
        done = done or _logged(self._lines.about(*key), "recording a snapshot")
        self._enqueue(
            _Work(key, lambda changed: changed.record_snapshot(snapshot), done, _snapshot_bytes(snapshot))
        )

    def begin(
        self,
        shard_id: int,
        replica_id: int,
        record: Bootstrap,
        first: tuple[HardState, Run] | None,
        done: Done,
        lives: Lives = _NO_LIFE,
    ) -> None:
        """Begin a replica with its first entries, if any. It can be opened when `done` was called with None.

        `done` gets `ConfigError` if the replica is in the store or was removed from it. Raises `ConfigError` for an id out of
        bounds, and `ReplicaStopped` as `save` does. The queue's bounds do not hold for it: many replicas may begin with
        one flush.
        """

        def plan(changed: LogChanges) -> None:
            changed.begin(record, lives)
            if first is not None:
                changed.save(first[0], [first[1]], None)

        size = len(encode_bootstrap(record)) + _lives_bytes(lives)
        size += _stored_bytes(first[1]) if first is not None else 0
        self._enqueue(_Work(replica_key(shard_id, replica_id), plan, done, size), bounded=False)

    def live(self, shard_id: int, replica_id: int, lives: Lives, done: Done) -> None:
        """Record what a replica remembers of its own life. Raises `ReplicaStopped` as `save` does; no bounds hold for it."""
        key = replica_key(shard_id, replica_id)
        self._enqueue(
            _Work(key, lambda changed: changed.live(lives), done, _lives_bytes(lives)), bounded=False
        )

    def import_replica(
        self,
        shard_id: int,
        replica_id: int,
        record: Bootstrap,
        snapshot: Snapshot,
        hard_state: HardState,
        done: Done,
    ) -> None:
        """Begin a replica after `snapshot`, in place of all data that the store has of it. Atomic.

        The old data may be corrupt, and the replica may have been removed. This is the only way to use an id again, for
        an operator who repairs a shard that lost its majority for good and knows that no old replica will run again.
        Logs of it that are open raise `ReplicaStopped` from now on: open it again.

        Raises `ConfigError` if the snapshot has index 0 or `hard_state` does not fit it, and as `begin` does.
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
        self._enqueue(
            _Work(
                replica_key(shard_id, replica_id),
                lambda changed: changed.replace(record, snapshot, hard_state),
                done,
                _snapshot_bytes(snapshot) + len(encode_bootstrap(record)),
                discards=True,
            ),
            bounded=False,
        )

    def remove(self, shard_id: int, replica_id: int, done: Done) -> None:
        """Delete a replica and its log, even a corrupt one. Raises as `begin` does.

        Its id stays recorded, and `begin` never takes it again, since its votes and acknowledgements hold for ever.
        """
        key = replica_key(shard_id, replica_id)
        self._enqueue(_Work(key, LogChanges.remove, done, discards=True), bounded=False)

    def after_all(self, done: Done) -> None:
        """Call `done` when all requests so far are done. Raises `ReplicaStopped` if the store is closed."""
        self._enqueue(_Work(_NO_REPLICA, _change_nothing, done), bounded=False, last=True)

    # -- what is in it --------------------------------------------------------------------------------------------

    def open(self, shard_id: int, replica_id: int) -> StoredLog | None:
        """Return a replica's log as far as it is durable; None if the replica is not in the store. Does not read the disk.

        If a request has failed the replica, requests are taken again from now on. That holds for those too that wait
        already, though they may rely on the one that failed: open it again only when all its requests are done.

        Raises `CorruptData` if what is stored of it contradicts itself, and `StorageFailed`, `ReplicaStopped`.
        """
        replica = self._replicas.get(replica_key(shard_id, replica_id))
        if self._poison is not None:
            raise self._poison
        if self._closed:
            raise self._stopped()
        if replica is None or (replica.state is None and replica.broken is None):
            return None
        if replica.state is None:
            assert replica.broken is not None
            raise replica.broken
        if replica.broken is not None:
            # Compactions failed with it.
            replica.broken, replica.floor = None, (0, 0)
        replica.opened = True
        if replica.state.hard_state.commit > replica.state.last:
            self._lines.about(*replica.key).warning(
                "the commit index %d lies beyond the last entry %d and is lowered to it: entries may have been lost; "
                "if the disk was restored from a copy, remove this replica and add a new one",
                replica.state.hard_state.commit,
                replica.state.last,
            )
        inline = isinstance(self._driver, InlineDriver)
        return StoredLog(self._files, replica, None if inline else self._driver.read)

    def replicas(self) -> list[ReplicaKey]:
        """Return shard and replica of all in the store. From any thread."""
        return sorted(self._stored.copy())

    def removed(self, shard_id: int, replica_id: int) -> bool:
        """Return whether the replica was removed, so that its id must not be used again. From any thread."""
        replica = self._replicas.get((shard_id, replica_id))
        return replica is not None and replica.removed

    def room(self, size: int) -> bool:
        """Return whether `size` bytes of entries can be written, beside all that waits. False on a full disk.

        `size` is as `Run.size` counts it. On a full disk all but entries is still written: files are reserved for that.
        """
        overhead = _FACTS_BYTES * (self._waiting + 1) + _parts(size) * (CHANGE_BYTES + _RUN_OVERHEAD_BYTES)
        return self._segments.room(RECORD_BYTES + size + self._waiting_bytes + overhead)

    @property
    def active_file(self) -> str:
        """The name of the file that is being written."""
        return self._segments.active.name

    @property
    def poisoned(self) -> StorageFailed | None:
        """Why nothing becomes durable any more; None if the store works."""
        return self._poison

    @property
    def no_space(self) -> str:
        """Why nothing can be allocated now, and the remedy; empty unless the disk is full."""
        return explain(self._segments.no_space) if self._segments.no_space is not None else ""

    @property
    def written(self) -> int:
        """How many records were made durable since it was opened."""
        return self._commits

    @property
    def status(self) -> StoreStatus:
        """The figures of this moment. From any thread."""
        return StoreStatus(
            waiting=self._waiting,
            waiting_bytes=self._waiting_bytes,
            refused=self._refused,
            saves=self._saves,
            commits=self._commits,
            entries=self._entries,
            last_commit_seconds=self._last_flush_seconds,
            flush_seconds=self._flush_seconds,
            busy_since=self._busy_since,
            poisoned=self._poison,
            failed_callbacks=self._failed_callbacks,
            full=self._segments.no_space is not None,
            segments=len(self._segments.in_use),
            disk_bytes=self._segments.disk_bytes,
            live_bytes=self._usage.total,
        )

    # -- the queue ------------------------------------------------------------------------------------------------

    def _enqueue(self, work: _Work, *, bounded: bool = True, last: bool = False) -> None:
        if self._closed:
            raise self._stopped()
        if bounded and self._waiting and self._is_busy(work):
            self._refused += 1
            raise SystemBusy(
                f"the log store in {self._files.path} has {self._waiting} requests of {self._waiting_bytes} bytes "
                f"waiting, of at most {self._max_saves} and {self._max_bytes}: wait for some to be done"
            )
        if last:
            self._queue.put_last(work)
        else:
            self._queue.put(work)
        self._waiting += 1
        self._waiting_bytes += work.size
        self._waiting_of[work.key] += 1
        self._schedule()

    def _schedule(self) -> None:
        if self._awaits_segment and self._moves:
            self._awaits_segment = self._flushing = False
        if not self._flushing and not self._scheduled:
            self._scheduled = True
            self._driver.defer(self._run)

    def _is_busy(self, work: _Work) -> bool:
        """Whether there is no room for a request: others must not keep a replica from writing a little at a time."""
        if work.size <= _FEW_BYTES and not self._waiting_of[work.key]:
            return False
        return self._waiting >= self._max_saves or self._waiting_bytes + work.size > self._max_bytes

    def _stopped(self) -> ReplicaStopped:
        return ReplicaStopped(f"the log store in {self._files.path} is closed")

    def _run(self) -> None:
        self._scheduled = False
        self._pump()

    def _pump(self) -> None:
        """Write what waits, unless a flush is under way. A driver that does all at once calls it again meanwhile."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while (self._queue or self._moves) and not self._flushing:
                if self._poison is not None:
                    self._moves.clear()
                    self._report(self._take_all(), self._poison)
                else:
                    self._write()
        finally:
            self._pumping = False

    def _take_all(self) -> list[_Work]:
        works = list(self._queue)
        self._queue.clear()
        return works

    def _take(self) -> list[_Work]:
        """Return what the next record is to hold: requests, then moves. Empty if a segment must be made first.

        Requests come first, and moves get the room that is left. If that was too little for any move, the next record
        takes moves first, since a steady load of large requests would keep them waiting for ever.
        """
        assert self._cleaner is not None, "nothing is written before `start`"
        moves: list[_Work] = []
        if self._moves_first:
            moves = self._fitting(self._moves, self._cleaner.pace(0), RECORD_BYTES)
        requests = self._fitting(self._queue, _MAX_RECORD_BYTES, RECORD_BYTES + _room_for(moves))
        if not moves:
            written = _room_for(requests)
            moves = self._fitting(self._moves, self._cleaner.pace(written), RECORD_BYTES + written)
        self._moves_first = bool(self._moves) and not moves
        return requests + moves

    def _fitting(self, queue: FairQueue[_Work] | deque[_Work], limit: int, size: int) -> list[_Work]:
        """Take from the queue what still fits into a record of `size` bytes: at most `limit` bytes, or the first alone.

        An empty record goes to the next segment if the first does not fit into this one.
        """
        if not queue:
            return []
        first = queue[0]
        cleans = self._cleaner is not None and self._cleaner.busy
        if self._segments.only_for_cleaning and cleans and not first.moves:
            return []  # without this room, no other would come back
        if size == RECORD_BYTES and not self._segments.advance(
            size + first.room, self._sequence, moving=first.moves
        ):
            return []
        works: list[_Work] = []
        left = self._segments.active.rest - size
        while queue and queue[0].room <= left and (not works or queue[0].room <= limit):
            works.append(queue.popleft())
            left -= works[-1].room
            limit -= works[-1].room
        return works

    def _write(self) -> None:
        """Write the next requests as one record, and begin to flush it."""
        self._busy_since = time.monotonic()
        self._flushing = True
        works = self._take()
        if not works:
            # A driver that does all at once has reported already that no file can be made.
            self._flushing = self._awaits_segment = self._poison is None
            if self._segments.no_space is not None:
                self._busy_since = None  # a full disk does not hang
            return
        self._under_way = works
        try:
            self._put(works)
        except Exception as error:  # noqa: BLE001  # what is on the disk is not known, and what waits must be told
            self._on_flushed(works, [], 0, error)

    def _put(self, works: list[_Work]) -> None:
        """Plan this work and write its record. Work that changes nothing is reported without one, unless it is a move."""
        changes: dict[ReplicaKey, LogChanges] = {}
        for work in works:
            self._plan(work, changes)
        builder = RecordBuilder()
        placed = [(changed, changed.encode(builder)) for changed in changes.values()]
        if not builder and not any(work.moves for work in works):
            self._flushing, self._busy_since, self._under_way = False, None, None
            self._report(works)
            return
        segment = self._append(builder)
        flushed = partial(self._on_flushed, works, placed, builder.size)
        self._driver.flush(self._files, segment.name, flushed)

    def _append(self, builder: RecordBuilder) -> Segment:
        segment = self._segments.active
        assert builder.size <= segment.rest, f"a record of {builder.size} bytes in {segment.rest}"
        record = builder.finish(segment.number, segment.salt, self._sequence, self._sequence - 1)
        self._files.write(segment.name, segment.end, record)
        return segment

    def _plan(self, work: _Work, changes: dict[ReplicaKey, LogChanges]) -> None:
        replica = self._replicas.get(work.key)
        try:
            if replica is not None and not work.moves:
                replica.check_usable(discards=work.discards)
            if work.key not in changes:
                changes[work.key] = (
                    LogChanges(work.key, replica.state, removed=replica.removed)
                    if replica is not None
                    else LogChanges(work.key, None)
                )
            work.plan(changes[work.key])
        except Exception as error:  # noqa: BLE001  # it is reported by `done`
            work.error = error
            contradicts = not isinstance(error, DrakkarError) or isinstance(
                error, CorruptData | ProtocolViolation
            )
            if contradicts and replica is not None and replica.broken is None:
                self._lines.about(*work.key).error("fails, until it is opened again: %s", error)
                # All further requests may rely on this one.
                replica.broken = error

    def _on_flushed(
        self,
        works: list[_Work],
        placed: list[tuple[LogChanges, list[Placed]]],
        size: int,
        error: BaseException | None,
    ) -> None:
        began, self._busy_since = self._busy_since or 0.0, None
        if self._under_way is not works:
            return  # `fail` gave it up, and reported its requests
        self._under_way = None
        self._flushing = False
        if error is None:
            self._last_flush_seconds = time.monotonic() - began
            self._flush_seconds += self._last_flush_seconds
            try:
                self._take_over(placed, size)
            except Exception as failure:  # noqa: BLE001  # what is known does not fit what is on the disk
                error = failure
        if error is not None:
            self._poisoned_by(error)
        self._report(works, self._poison if error is not None else None)
        self._clean(_room_for(work for work in works if not work.moves))
        self._pump()

    def _clean(self, written: int) -> None:
        try:
            if self._cleaner is not None and self._poison is None:
                self._cleaner.consider(written)
        except Exception as error:  # noqa: BLE001  # nothing may drop a segment by mistake
            self._poisoned_by(error)

    def _take_over(self, placed: list[tuple[LogChanges, list[Placed]]], size: int) -> None:
        """Let readers see what has become durable."""
        segment = self._segments.active
        begin, self._usage.sequence = segment.end, self._sequence
        # This comes before what may fail: the next record must not take the place of this one.
        segment.end += size
        self._sequence += 1
        self._commits += 1
        for changed, places in placed:
            self._publish(changed, places, segment.number, begin)

    def _publish(self, changed: LogChanges, placed: list[Placed], segment: int, begin: int) -> None:
        replica = self._replicas.get(changed.key)
        if replica is None:
            if not placed:
                return
            replica = self._replicas[changed.key] = ReplicaLog(changed.key, self._usage)
        if changed.successor:
            replica = self._replicas[changed.key] = replica.succeeded("its log was replaced by an import")
        replica.apply(changed, placed, segment, begin)
        if replica.removed:
            replica = self._replicas[changed.key] = replica.succeeded("it was removed from the log store")
            self._stored.discard(changed.key)
        elif changed.state is not None:
            self._stored.add(changed.key)

    def _report(self, works: list[_Work], error: BaseException | None = None) -> None:
        requests = [work for work in works if not work.moves]
        self._waiting -= len(requests)
        for work in requests:
            self._waiting_of[work.key] -= 1
            if not self._waiting_of[work.key]:
                del self._waiting_of[work.key]
        self._waiting_bytes -= sum(work.size for work in requests)
        self._saves += len(requests)
        if error is None:
            self._entries += sum(work.entries for work in works if work.error is None)
        for work in works:
            try:
                work.done(error or work.error)
            except Exception:  # noqa: BLE001  # logged; the other requests must be reported all the same
                self._failed_callbacks += 1
                self._lines.about(*work.key).exception("a callback failed")

    def _poisoned_by(self, error: BaseException) -> None:
        if self._poison is None:
            self._poison = StorageFailed(
                f"writing to {self._files.path} failed, and nothing more is written. {_problem(error)}; then restart this host"
            )
            self._poison.__cause__ = error
            self._lines.critical("%s", self._poison, exc_info=error)

    # -- space ----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Try whether a full disk has room again. Call it now and then, on the log's thread."""
        self._segments.retry()
        if self._awaits_segment:
            self._clean(0)
            self._on_segment_ready()

    def _on_segment_ready(self) -> None:
        if self._awaits_segment:
            self._awaits_segment = self._flushing = False
            self._pump()

    def fail(self, error: BaseException) -> None:
        """Write nothing more, and fail all that waits: flushes cannot be trusted, or cannot be reported, any more."""
        self._poisoned_by(error)
        works, self._under_way = self._under_way, None
        if works is not None:
            self._report(works, self._poison)
        self._awaits_segment = self._flushing = False
        self._pump()

    def _move(self, moves: list[Move], done: Done) -> None:
        """Write again what keeps a segment, a little with each record. Without any moves, have one record written.

        `done` is called when all of it is durable.
        """
        left = max(len(moves), 1)

        def moved(_error: BaseException | None) -> None:
            nonlocal left
            left -= 1
            if not left:
                done(self._poison)

        if self._closed:
            return
        for move in moves:
            self._moves.append(_Work(move.key, partial(self._plan_move, move), moved, move.size, moves=True))
        if not moves:
            self._moves.append(_confirmation(moved))
        self._schedule()

    def _plan_move(self, move: Move, changed: LogChanges) -> None:
        move.plan(changed, self._replicas[move.key])

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self, timeout: float = 10.0) -> None:
        """Refuse new requests, make all that wait durable, and close the files. A second call does nothing.

        From any thread, when the loop of its driver has ended. Raises `OutcomeUnknown` if it takes longer than `timeout`
        seconds: the disk hangs, and the requests that wait may still become durable.
        """
        if self._closed:
            return
        self._closed = True
        if isinstance(self._driver, InlineDriver):
            self._finish()
            return
        failures: list[BaseException] = []

        def finish() -> None:
            try:
                self._finish()
            except BaseException as error:  # noqa: BLE001  # it is raised to the caller
                failures.append(error)

        thread = threading.Thread(target=finish, name="drakkar-log-close", daemon=True)
        thread.start()
        thread.join(timeout)
        if failures:
            raise failures[0]
        if thread.is_alive():
            raise OutcomeUnknown(
                f"the log store in {self._files.path} did not finish within {timeout} s: its disk is very busy, or hangs"
            )

    def _finish(self) -> None:
        """Write all that waits, then an empty record: it says that all records before it are durable."""
        self._driver.finish()
        self._pump()
        if self._awaits_segment:
            reason = StorageFailed(
                f"writing to {self._files.path} failed. {self.no_space or 'Its disk is full'}"
            )
            self._report(self._take_all(), reason)
        whole = self._cleaner is not None and self._poison is None and not self._awaits_segment
        if whole and self._segments.advance(RECORD_BYTES, self._sequence):
            self._flush_last()
        for replica in self._replicas.values():
            replica.gone = "the log store is closed"
        self._files.close()

    def _flush_last(self) -> None:
        try:
            self._files.sync(self._append(RecordBuilder()).name)
        except OSError as error:
            self._poisoned_by(error)


def _problem(error: BaseException) -> str:
    return explain(error) if isinstance(error, OSError) else f"See to the disk ({error!r})"


def log_on_disk(directory: Path, owner: str, *, create: bool, segment_bytes: int = SEGMENT_BYTES) -> LogStore:
    """Return the log in a folder, which does everything at once, in the caller's thread. Raises as `LogStore` does."""
    store = LogStore(DiskFiles(directory), owner, create=create, segment_bytes=segment_bytes)
    store.start(InlineDriver())
    return store


def log_in_memory(
    files: MemoryFiles | None = None, *, segment_bytes: int = _MEMORY_SEGMENT_BYTES
) -> LogStore:
    """Return a log in memory. `files` are those of another one, as after a restart of the host."""
    store = LogStore(files or MemoryFiles(), "memory", segment_bytes=segment_bytes)
    store.start(InlineDriver())
    return store


def at_once(request: Callable[[Done], None]) -> None:
    """Make a request of a store that does everything at once, and raise what comes of it.

    `request` is called with a `done` to hand over. Raises `StorageFailed` if the disk is full.
    """
    outcomes: list[BaseException | None] = []
    request(outcomes.append)
    if not outcomes:
        raise StorageFailed("the disk of the log is full: free some space")
    if outcomes[0] is not None:
        raise outcomes[0]


def _stored_bytes(run: Run) -> int:
    """Return how many bytes a run takes in a record, at most: each part of it has some overhead."""
    return run.size + _parts(run.size) * (CHANGE_BYTES + _RUN_OVERHEAD_BYTES)


def _parts(size: int) -> int:
    """Return in how many parts a run of `size` bytes is stored, at most."""
    return 1 + 2 * (size // MAX_RUN_BYTES)


def _room_for(works: Iterable[_Work]) -> int:
    return sum(work.room for work in works)


def _snapshot_bytes(snapshot: Snapshot | None) -> int:
    # Snapshots are rare, so they may be encoded once more merely to be counted.
    return len(encode_snapshot(snapshot)) if snapshot is not None else 0


def _lives_bytes(lives: Lives | None) -> int:
    return len(encode_lives(lives)) if lives is not None else 0


def _confirmation(done: Done) -> _Work:
    """Return what has a record written even if nothing else waits: each record confirms that those before are durable."""
    return _Work(_NO_REPLICA, _change_nothing, done, moves=True)


def _change_nothing(_changes: LogChanges) -> None:
    pass


def _logged(lines: Lines, what: str) -> Done:
    def done(error: BaseException | None) -> None:
        if error is not None:
            lines.warning("%s failed: %s", what, error)

    return done
