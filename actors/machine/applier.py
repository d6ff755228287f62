"""The order in which a state machine does its work: committed entries, queries and snapshots, one after the other.

Most of it is done by the threads of a pool, so that a state machine may take its time. What is done is in `applied`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from drakkar.actors.machine.applied import AppliedState
from drakkar.actors.machine.content import Facts, WriteContent, names_in, write_extensions
from drakkar.actors.machine.decoding import decoding_work
from drakkar.actors.machine.state_machine import ConcurrentStateMachine, StateMachine
from drakkar.actors.runtime.futures import ActorFuture, in_full, this_thread
from drakkar.actors.runtime.log_lines import HostLines, Lines
from drakkar.actors.runtime.waits import Owner
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots, SnapshotWriter
from drakkar.handlers.errors import ActorFailed, ReplicaStopped
from drakkar.handlers.raft.config import Compression
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.state import Snapshot

__all__ = ["Applied", "Applier", "Hang", "LoadRequest", "SaveRequest"]

HANG_S: Final = 10.0
"""Seconds after which a state machine that has not returned counts as hanging: a batch is bounded, and takes milliseconds."""
SNAPSHOT_HANG_S: Final = 60.0
"""Likewise while it writes or loads a snapshot, which may be large."""
MAX_WORK_ON_LOOP: Final = 1 << 20
"""What entries may take to decode on the loop, in bytes: some 5 ms. Those that take more are applied by a worker."""

Applied: TypeAlias = tuple[int, list[tuple[Run, Sequence[Any]]]]
"""The last index that was applied, and the results of the runs that this host proposed."""
Query: TypeAlias = tuple[Any, ActorFuture[Any]]


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """Write the state as of `point`."""

    point: Snapshot
    """Index, term and membership of the state to be written; the index is `Applier.given` when the request is made."""
    done: Callable[[Snapshot | BaseException], None]
    """Called once, on a worker's thread: with the snapshot, whose payload names its file, or with what went wrong."""
    whole: bool = False
    """Write the content for a state machine on disk, too. By default its snapshot only says that the log may be deleted."""
    extensions: ActorFuture[bytes] | None = None
    """Will have the encoded state of the extensions at that index, as soon as the loop has delivered all up to it; it fails, and
    with it this snapshot, where the node ends. Until then nothing else is done with the state machine, and no thread waits. None:
    no extension has any."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Replace the state by that of a snapshot; as the first request, open a state machine on disk."""

    snapshot: Snapshot
    """One with index 0 leaves the state as it is."""
    done: Callable[[bytes], None]
    """Called once, on a worker's thread, when it is loaded, with the encoded state of the extensions, which is the node's to
    load; a failure is reported as one of the state machine."""
    log_end: int | None = None
    """The last entry of the log, at the start: a state machine on disk cannot hold more."""


Work: TypeAlias = Entries | list[Query] | SaveRequest | LoadRequest


@dataclass(frozen=True, slots=True)
class Hang:
    """What a state machine has not returned from for long."""

    since: float
    """When that began, in seconds since 1970, as `time.time()`."""
    seconds: float
    """How long ago that is."""
    what: str
    """In words, such as "applying entries 5 to 9"."""


class _Task:
    """A piece of work that a worker does with the state machine."""

    __slots__ = ("since", "work")

    def __init__(self, work: Work, now: float) -> None:
        self.work, self.since = work, now

    def hang(self, now: float) -> Hang | None:
        took = now - self.since
        limit = SNAPSHOT_HANG_S if isinstance(self.work, SaveRequest | LoadRequest) else HANG_S
        return Hang(time.time() - took, took, _in_words(self.work)) if took > limit else None


def _in_words(work: Work) -> str:
    if isinstance(work, SaveRequest):
        return f"writing the snapshot at {work.point.index}"
    if isinstance(work, LoadRequest):
        return (
            f"loading the snapshot at {work.snapshot.index}" if work.snapshot.index else "opening its files"
        )
    if isinstance(work, list):
        return "answering a query" if len(work) == 1 else f"answering {len(work)} queries"
    first, last = work.runs[0].first, work.runs[-1].last
    return f"applying entry {first}" if first == last else f"applying entries {first} to {last}"


class Applier:
    """One replica's state machine, and the work that waits for it.

    Entries, queries and snapshots take effect in the order in which they come. Call all methods in the loop's thread.
    One thread at a time uses the state machine: a worker's, or the loop's if the state machine never blocks.
    """

    def __init__(
        self,
        machine: StateMachine,
        origin: int,
        pool: WorkerPool,
        report: Callable[[Applied | BaseException], None],
        snapshots: Snapshots,
        *,
        shard_id: int,
        background: WorkerPool | None = None,
        may_apply_here: Callable[[], bool] = lambda: True,
        compression: Compression = "none",
        lines: Lines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`report` is called after each batch: by a worker, or at once if the state machine never blocks.

        The threads of `background` write and load snapshots, so that no other replica's commands wait for that.
        `may_apply_here()` returns False while an earlier report is on its way to the loop. `clock` is in seconds.
        """
        self.machine = machine
        self._lines = lines or HostLines().of("drakkar.actors.machine")
        self.state = AppliedState(machine, shard_id, self._lines)
        self.owner = Owner(f"shard {shard_id}", pool.workers if machine.blocks else None)
        """Owns the futures that are set when the state machine has done its work."""
        self.given = 0
        """The last index that was given to the state machine, applied or not. For the loop's thread."""
        self.loading = False
        """A snapshot waits to be loaded, or is being loaded. From any thread."""
        self.over: ActorFuture[None] = ActorFuture.of(self.owner)
        """Set after `stop`, when no thread uses the state machine any more."""
        self._origin = origin
        self._pool, self._background = pool, background or pool
        self._may_apply_here = may_apply_here
        self._report = report
        self._clock = clock
        self._snapshots = snapshots
        self._compression: Compression = compression
        self._reached = 0
        """The last index that was applied or loaded."""
        self._waiting: deque[Work] = deque()
        self._lock = threading.Lock()
        self._busy = self._stopping = False
        self._task: _Task | None = None
        """What a worker does with the state machine; None where the loop does it, which would hang with it."""
        self._writes = 0
        """Snapshots that are being written while entries are applied, or wait for a worker that does so."""
        self._writing: list[_Task] = []
        """Those that a worker has begun with."""
        self._failed: BaseException | None = None
        self._asked = 0
        self._answered = 0
        """Written by the thread that uses the state machine."""

    @property
    def unanswered(self) -> int:
        """The number of queries that were not answered yet."""
        return self._asked - self._answered

    @property
    def hang(self) -> Hang | None:
        """What the state machine has not returned from for long; None while it does not hang. From any thread."""
        now = self._clock()
        for task in (self._task, *self._writing):
            hang = task.hang(now) if task is not None else None
            if hang is not None:
                return hang
        return None

    def apply(self, entries: Entries) -> None:
        """Apply committed entries, which follow those given before."""
        self.given = entries.runs[-1].last
        self._do(entries, on_loop=not self.machine.blocks and decoding_work(entries.runs) <= MAX_WORK_ON_LOOP)

    def query(self, queries: list[Query]) -> None:
        """Answer queries, from the state after all entries given before."""
        self._asked += len(queries)
        self._do(queries, on_loop=not self.machine.blocks)

    def save(self, request: SaveRequest) -> None:
        """Write a snapshot of the state after all entries given before."""
        self._do(request, on_loop=False)

    def load(self, request: LoadRequest) -> None:
        """Load a snapshot, before all entries that are given later."""
        self.given = request.snapshot.index
        self.loading = True
        self._do(request, on_loop=False)

    def stop(self, error: Exception) -> None:
        """Refuse all work that waits, and all that comes, because of `error`. `over` is set when that is done."""
        self._failed = self._failed or error
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            self._stopping = True
        for work in waiting:
            self._refuse(work)
        self._end_if_done()

    # -- the order of work --------------------------------------------------------------------------------------

    def _do(self, work: Work, *, on_loop: bool) -> None:
        if self._failed is not None:
            self._refuse(work)
            return
        # Only the loop sets `_busy`. While it is False no worker uses the state machine; but the loop must hear the
        # last worker's report before it applies more.
        if on_loop and not self._busy and self._may_apply_here():
            self._work(work)
            return
        with self._lock:
            self._waiting.append(work)
            idle, self._busy = not self._busy, True
        if idle:
            self._pool.submit(self._work_on_worker)

    def _work_on_worker(self) -> None:
        """Do one piece of work, then go to the back of the pool's queue, since other replicas wait there too."""
        with self._lock:
            work = self._waiting.popleft() if self._waiting else None
        if isinstance(work, SaveRequest) and work.extensions is not None and not work.extensions.done:
            work.extensions.add_done_callback(lambda _: self._pool.submit(lambda: self._begin(work)))
        else:
            self._begin(work)

    def _begin(self, work: Work | None) -> None:
        if work is not None and self._takes_long(work):
            self._background.submit(lambda: self._turn(work))
        else:
            self._turn(work)

    def _takes_long(self, work: Work) -> bool:
        if isinstance(work, SaveRequest):
            return not isinstance(self.machine, ConcurrentStateMachine)
        return isinstance(work, LoadRequest)

    def _turn(self, work: Work | None) -> None:
        if work is not None:
            self._task = _Task(work, self._clock())
            this_thread.owner = self.owner
            try:
                self._work(work)
            finally:
                this_thread.owner = self._task = None
        with self._lock:
            # As soon as `_busy` is False, the loop may submit the next piece to another worker: do not read it again.
            more = self._busy = bool(self._waiting)
        if more:
            self._pool.submit(self._work_on_worker)
        else:
            self._end_if_done()

    def _end_if_done(self) -> None:
        with self._lock:
            done = self._stopping and not self._busy and not self._writes
            self._busy |= done  # no thread may begin after that
        if not done:
            return
        if self.state.disk is None:
            self.over.try_set(None)
        else:
            self._background.submit(self._close)  # it may take a while

    def _close(self) -> None:
        try:
            if self.state.disk is not None:
                self.state.disk.close()
        except Exception:  # noqa: BLE001  # logged; the replica ends anyway
            self._lines.exception("its state machine could not be closed")
        finally:
            self.over.try_set(None)

    def _refuse(self, work: Work) -> None:
        """A state machine that failed, perhaps in the middle of a command, answers nothing more."""
        assert self._failed is not None, "only what has ended refuses"
        ended = ReplicaStopped(f"the state machine has ended: {in_full(self._failed)}")
        if isinstance(work, SaveRequest):
            work.done(ended)
        elif isinstance(work, list):
            for _, future in work:
                future.try_fail(ended)

    # -- the work -----------------------------------------------------------------------------------------------

    def _work(self, work: Work) -> None:
        if self._failed is not None:
            self._refuse(work)
        elif isinstance(work, list):
            for query, future in work:
                self.state.query(query, future)
            self._answered += len(work)
        elif isinstance(work, SaveRequest):
            self._save(work)
        elif isinstance(work, LoadRequest):
            self._load(work)
        else:
            self._apply(work)

    def _apply(self, entries: Entries) -> None:
        try:
            results = [(run, self.state.apply(run)) for run in entries.runs]
        except BaseException as error:  # noqa: BLE001  # any error of the state machine ends the replica
            self._fail(error)
            return
        mine = [(run, answers) for run, answers in results if run.origin == self._origin]
        self._reached = entries.runs[-1].last
        self._report((self._reached, mine))

    def _load(self, request: LoadRequest) -> None:
        try:
            extensions = self.state.load(request.snapshot, self._snapshots, log_end=request.log_end)
            self._reached = request.snapshot.index
            self.loading = False
            request.done(extensions)
        except BaseException as error:  # noqa: BLE001  # likewise
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failed = error
        self._report(error)

    def _save(self, request: SaveRequest) -> None:
        """Write a snapshot, in another job if the state machine can go on meanwhile."""
        try:
            self._check_point(request.point)
            # Before the state is fixed: a full disk must not leave a transaction open that is never ended.
            sink = self._snapshots.create(compression=self._compression)
        except BaseException as error:  # noqa: BLE001  # it is reported, and costs this snapshot alone
            request.done(error)
            return
        try:
            if self.state.disk is not None and not request.whole:
                self.state.disk.sync()
                self._write(request, sink, self.state.facts(has_content=False), write_extensions)
            elif isinstance(self.machine, ConcurrentStateMachine):
                self._write_beside(request, sink, self.state.facts(), self.state.writer())
            else:
                self._write(request, sink, self.state.facts(), self.state.writer())
        except BaseException as error:  # noqa: BLE001  # likewise
            sink.abort()
            request.done(error)

    def _check_point(self, point: Snapshot) -> None:
        """A file of one index with the state of another would make the peer that loads it skip commands for ever."""
        if point.index != self._reached:
            raise ActorFailed(
                f"a snapshot of index {point.index} was ordered, and the state machine is at {self._reached}: "
                "nothing was written; please report this"
            )

    def _write(self, request: SaveRequest, sink: SnapshotWriter, facts: Facts, write: WriteContent) -> None:
        with sink:
            extensions = b"" if request.extensions is None else request.extensions.get(timeout=0)
            write(sink, extensions)
            facts = replace(facts, extensions=names_in(extensions))
            written = sink.finish(request.point, facts.encode())
        request.done(written)

    def _write_beside(
        self, request: SaveRequest, sink: SnapshotWriter, facts: Facts, write: WriteContent
    ) -> None:
        """Write a state that is fixed, while entries are applied to the next one."""

        def job() -> None:
            this_thread.owner = Owner(self.owner.name, beside=self.owner)
            task = _Task(request, self._clock())
            self._writing.append(task)
            try:
                self._write(request, sink, facts, write)
            except BaseException as error:  # noqa: BLE001  # it is reported, and costs this snapshot alone
                request.done(error)
            finally:
                this_thread.owner = None
                self._writing.remove(task)
                with self._lock:
                    self._writes -= 1
                self._end_if_done()

        with self._lock:
            self._writes += 1
        self._background.submit(job)
