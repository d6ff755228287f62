"""The last step of a proposal's journey: from committed entries to the state machine, and back with results."""

import logging
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TypeAlias

from drakkar.actors.machine.compression import decode
from drakkar.actors.machine.sessions import SessionTable
from drakkar.actors.machine.state_machine import ConcurrentStateMachine, DiskStateMachine, StateMachine
from drakkar.actors.runtime.futures import ActorFuture, brief
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import SnapshotReader, Snapshots, SnapshotWriter
from drakkar.handlers.errors import ActorFailed, CorruptData, ReplicaStopped, SessionRefused
from drakkar.handlers.raft.config import Compression
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.state import Snapshot

__all__ = ["Applied", "Applier", "LoadRequest", "SaveRequest"]

logger = logging.getLogger(__name__)

Applied: TypeAlias = tuple[int, list[tuple[Run, Sequence[Any]]]]
"""The last index that was applied, and the results of the runs that this host proposed."""
Query: TypeAlias = tuple[Any, ActorFuture[Any]]

_COMMAND: Final = int(EntryKind.COMMAND)
_ENCODED: Final = int(EntryKind.ENCODED)
_SESSION: Final = int(EntryKind.SESSION)

_SESSIONS_HEAD: Final = struct.Struct(">Q")
_MAX_SESSION_BYTES: Final = 256 << 20
_SHARD: Final = "shard"
_MACHINE_INDEX: Final = "machine_index"
_CONTENT: Final = "content"
"""Facts beside a snapshot: whose it is, how far the state machine was, and whether its state is in the file."""


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """Write the state as of `point`."""

    point: Snapshot
    """Index, term and membership of the state to be written; the index is `Applier.given` when the request is made."""
    done: Callable[[Snapshot | BaseException], None]
    """Called once, on a worker's thread: with the snapshot, whose payload names its file, or with what went wrong."""
    whole: bool = False
    """Also of a state machine on disk, whose snapshot is otherwise a mark that the log behind it may go."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Replace the state by a snapshot's, or at the start: continue with it."""

    snapshot: Snapshot
    done: Callable[[], None]
    """Called once, on a worker's thread, when that is done; a failure is reported as one of the state machine."""
    log_end: int | None = None
    """At the start: the last entry of the log, beyond which no state machine on disk can be."""


Work: TypeAlias = Entries | list[Query] | SaveRequest | LoadRequest


class Applier:
    """One replica's state machine, and what waits for it.

    Batches, queries and snapshots take effect in the order in which they come. All methods are for the loop's thread;
    the state machine itself is touched by one thread at a time, a worker's or, where it never blocks, the loop's.
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
    ) -> None:
        """`report` is called after each batch: at once where the state machine never blocks, else on a worker.

        Snapshots are written and loaded by the `background`'s threads, so that they keep no other replica's commands
        waiting. `may_apply_here()` is false where an earlier report is still on its way to the loop.
        """
        self.machine = machine
        self._origin = origin
        self._pool, self._background = pool, background or pool
        self._may_apply_here = may_apply_here
        self._report = report
        self._snapshots = snapshots
        self._shard = shard_id
        self._compression: Compression = compression
        self._sessions = SessionTable()
        self._disk = machine if isinstance(machine, DiskStateMachine) else None
        self._machine_index = 0
        """The last command that the state machine holds."""
        self.given = 0
        """The last index that the state machine was given, whether it has got there yet or not. For the loop's thread."""
        self._reached = 0
        """The last index that it has got to."""
        self._opened = False
        self.over: ActorFuture[None] = ActorFuture()
        """Set when it was stopped, and nobody touches the state machine any more."""
        self._waiting: deque[Work] = deque()
        self._lock = threading.Lock()
        self._busy = self._stopping = False
        self._writes = 0
        """Snapshots that are being written beside all else."""
        self._failed: BaseException | None = None
        self._asked = 0
        self._answered = 0
        """Written by whoever has the state machine, one thread at a time."""

    @property
    def unanswered(self) -> int:
        """Questions that wait for the state machine, or that it has not answered yet."""
        return self._asked - self._answered

    def apply(self, entries: Entries) -> None:
        """Apply committed entries, which follow on those given before."""
        self.given = entries.runs[-1].last
        self._do(entries, on_loop=not self.machine.blocks)

    def query(self, queries: list[Query]) -> None:
        """Answer questions, from the state after all that was given before."""
        self._asked += len(queries)
        self._do(queries, on_loop=not self.machine.blocks)

    def save(self, request: SaveRequest) -> None:
        """Write a snapshot of the state after all that was given before."""
        self._do(request, on_loop=False)

    def load(self, request: LoadRequest) -> None:
        """Take over a snapshot, before all that is given later."""
        self.given = request.snapshot.index
        self._do(request, on_loop=False)

    def stop(self, error: Exception) -> None:
        """Refuse what waits, and all that comes, because of `error`."""
        self._failed = self._failed or error
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            self._stopping = True
        for work in waiting:
            self._refuse(work)
        self._end_if_done()

    # -- one piece of work after the other ----------------------------------------------------------------------

    def _do(self, work: Work, *, on_loop: bool) -> None:
        if self._failed is not None:
            self._refuse(work)
            return
        # Only the loop makes it busy. Once it is idle again, no worker touches the state machine any more; but what
        # the worker reported must be heard first.
        if on_loop and not self._busy and self._may_apply_here():
            self._work(work)
            return
        with self._lock:
            self._waiting.append(work)
            idle, self._busy = not self._busy, True
        if idle:
            self._pool.submit(self._work_on_worker)

    def _work_on_worker(self) -> None:
        """Do one piece of work, and go to the back of the queue with the rest: other replicas wait there too."""
        with self._lock:
            work = self._waiting.popleft() if self._waiting else None
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
            self._work(work)
        with self._lock:
            # Once it is false, the loop may submit the next piece to another worker: it must not be looked at again.
            more = self._busy = bool(self._waiting)
        if more:
            self._pool.submit(self._work_on_worker)
        else:
            self._end_if_done()

    def _end_if_done(self) -> None:
        """A state machine on disk is closed when nobody uses it any more; that may take a while."""
        with self._lock:
            done = self._stopping and not self._busy and not self._writes
            self._busy |= done  # nobody comes after that
        if not done:
            return
        if self._disk is None:
            self.over.try_set(None)
        else:
            self._background.submit(self._close)

    def _close(self) -> None:
        try:
            if self._disk is not None:
                self._disk.close()
        except Exception:
            logger.exception("a state machine could not be closed")
        finally:
            self.over.try_set(None)

    def _refuse(self, work: Work) -> None:
        """Nobody is told anything by a state machine that failed, perhaps in the middle of a command."""
        ended = ReplicaStopped(f"the state machine has ended: {brief(self._failed)}")
        if isinstance(work, SaveRequest):
            work.done(ended)
        elif isinstance(work, list):
            for _, future in work:
                future.try_fail(ended)

    def _work(self, work: Work) -> None:
        if self._failed is not None:
            self._refuse(work)
        elif isinstance(work, list):
            for query, future in work:
                self._answer(query, future)
            self._answered += len(work)
        elif isinstance(work, SaveRequest):
            self._save(work)
        else:
            try:
                if isinstance(work, LoadRequest):
                    self._load(work)
                else:
                    self._apply_all(work)
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the state machine's, and ends the replica
                self._failed = error
                self._report(error)

    # -- commands and questions ---------------------------------------------------------------------------------

    def _apply_all(self, entries: Entries) -> None:
        results = [(run, self._apply(run)) for run in entries.runs]
        mine = [(run, answers) for run, answers in results if run.origin == self._origin]
        self._reached = entries.runs[-1].last
        self._report((self._reached, mine))

    def _apply(self, run: Run) -> Sequence[Any]:
        if self._disk is not None:
            return self._apply_on_disk(self._disk, run)
        self._machine_index = run.last
        if run.plain:
            return _checked("apply_many", self.machine.apply_many(run.payloads), len(run.payloads))
        return [
            self.machine.apply(payload) if kind == _COMMAND else self._apply_other(run, place, kind)
            for place, (kind, payload) in enumerate(zip(run.kinds, run.payloads, strict=True))
        ]

    def _apply_other(self, run: Run, place: int, kind: int) -> Any:
        """One at a time, since what was encoded may be large; membership changes and the like are the core's."""
        if kind == _SESSION:
            return self._sessions.apply(run.payloads[place], self.machine.apply)
        return self.machine.apply(_decoded(run, place)) if kind == _ENCODED else None

    def _apply_on_disk(self, machine: DiskStateMachine, run: Run) -> Sequence[Any]:
        """It is given what it does not hold yet; what it does was answered in an earlier life."""
        results: list[Any] = [None] * len(run.payloads)
        places, entries = [], []
        for place in range(max(self._machine_index + 1 - run.first, 0), len(run.payloads)):
            kind = run.kinds[place] if run.kinds else _COMMAND
            if kind in (_COMMAND, _ENCODED):
                command = run.payloads[place] if kind == _COMMAND else _decoded(run, place)
                places.append(place)
                entries.append((run.first + place, command))
            elif kind == _SESSION:
                results[place] = SessionRefused(
                    "a state machine on disk keeps no sessions: propose without one"
                )
        if entries:
            answers = _checked("apply_entries", machine.apply_entries(entries), len(entries))
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
            self._machine_index = entries[-1][0]
        return results

    def _answer(self, query: Any, future: ActorFuture[Any]) -> None:
        if future.done:  # its deadline passed while it waited
            return
        try:
            answer = self.machine.query(query)
        except Exception as error:  # noqa: BLE001  # it goes to whoever asked
            future.try_fail(error)
        except BaseException as error:  # noqa: BLE001  # neither the asker nor the worker must be ended by a SystemExit
            failed = ActorFailed(f"the state machine answered a query by raising {brief(error)}")
            failed.__cause__ = error
            failed.outcome_known = True  # it was a question
            future.try_fail(failed)
        else:
            future.try_set(answer)

    # -- snapshots ----------------------------------------------------------------------------------------------

    def _save(self, request: SaveRequest) -> None:
        """Where the state can be fixed, it is written beside all else, by another job."""
        machine = self.machine
        try:
            self._check_point(request.point)
            facts = {_SHARD: self._shard, _MACHINE_INDEX: self._machine_index, _CONTENT: True}
            # Before the state is fixed: a full disk must not leave a transaction open that nobody ends.
            sink = self._snapshots.create(compression=self._compression)
        except BaseException as error:  # noqa: BLE001  # it is reported, and costs this snapshot alone
            request.done(error)
            return
        try:
            if self._disk is not None and not request.whole:
                self._disk.sync()
                self._write(request, sink, {**facts, _CONTENT: False}, lambda _: None)
            elif isinstance(machine, ConcurrentStateMachine):
                self._write_beside(request, sink, facts, _behind(self._sessions.encode(), machine.capture()))
            else:
                self._write(request, sink, facts, _behind(self._sessions.encode(), machine.save))
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

    def _write(
        self,
        request: SaveRequest,
        sink: SnapshotWriter,
        facts: dict[str, Any],
        write: Callable[[BinaryIO], None],
    ) -> None:
        with sink:
            write(sink)
            written = sink.finish(request.point, facts)
        request.done(written)

    def _write_beside(
        self,
        request: SaveRequest,
        sink: SnapshotWriter,
        facts: dict[str, Any],
        write: Callable[[BinaryIO], None],
    ) -> None:
        def job() -> None:
            try:
                self._write(request, sink, facts, write)
            except BaseException as error:  # noqa: BLE001  # it is reported, and costs this snapshot alone
                request.done(error)
            finally:
                with self._lock:
                    self._writes -= 1
                self._end_if_done()

        with self._lock:
            self._writes += 1
        self._background.submit(job)

    def _load(self, request: LoadRequest) -> None:
        if self._disk is not None and not self._opened:
            self._open(self._disk, request.log_end)
        snapshot = request.snapshot
        if snapshot and not snapshot.witness:
            with self._snapshots.open(snapshot.payload.decode()) as source:
                self._take_over(source, snapshot)
        self._reached = snapshot.index
        request.done()

    def _open(self, machine: DiskStateMachine, log_end: int | None) -> None:
        self._opened = True
        self._machine_index = machine.open()
        if log_end is not None and self._machine_index > log_end:
            raise CorruptData(
                f"the state machine holds the log up to {self._machine_index}, and the log ends at {log_end}: they do "
                "not belong together. If the log was lost, replace this replica by a new one; if it was imported, remove "
                "the state machine's own data, which the import brings"
            )

    def _take_over(self, source: SnapshotReader, snapshot: Snapshot) -> None:
        shard, index = source.facts.get(_SHARD, self._shard), source.facts.get(_MACHINE_INDEX, snapshot.index)
        if shard != self._shard:
            raise CorruptData(f"the snapshot at {snapshot.index} is of shard {shard}, not {self._shard}")
        if self._disk is not None and self._machine_index >= index:
            return  # it holds that much by itself
        if not source.facts.get(_CONTENT, True):
            raise CorruptData(
                f"the state machine holds the log up to {self._machine_index} alone, and the log begins behind "
                f"{index}: its own data was lost or restored from an older copy; replace this replica by a new one"
            )
        size = _SESSIONS_HEAD.unpack(_exactly(source, _SESSIONS_HEAD.size))[0]
        if size > _MAX_SESSION_BYTES:
            raise CorruptData(f"the snapshot at {snapshot.index} says that its sessions take {size} bytes")
        sessions = SessionTable.decode(_exactly(source, size))
        self.machine.load(source)
        self._sessions, self._machine_index = sessions, index


def _behind(sessions: bytes, write: Callable[[BinaryIO], None]) -> Callable[[BinaryIO], None]:
    """The content of a snapshot: the sessions, and behind them the state."""

    def write_both(sink: BinaryIO) -> None:
        sink.write(_SESSIONS_HEAD.pack(len(sessions)))
        sink.write(sessions)
        write(sink)

    return write_both


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise CorruptData(f"a snapshot ends {size - len(data)} bytes before its state begins")
    return data


def _checked(method: str, results: Sequence[Any], commands: int) -> Sequence[Any]:
    if len(results) != commands:
        raise ValueError(f"{method} gave {len(results)} results for {commands} commands")
    return results


def _decoded(run: Run, place: int) -> bytes:
    try:
        return decode(run.payloads[place])
    except CorruptData as error:
        raise CorruptData(f"entry {run.first + place}: {error}") from error
