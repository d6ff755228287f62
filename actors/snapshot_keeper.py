"""When a replica takes a snapshot, and what becomes of it, and of those that a leader sends (thesis chapter 5).

    applied far enough ─► the state machine writes a file ─► the log store records it ─► the core knows of it
                              (`Applier`, on a worker)                                  ─► the log behind it goes
    a leader's has come ─► the log store records it ─► the state machine loads it ─► the core applies behind it

Nothing is told, compacted or removed before what takes its place is durable. What goes wrong while a snapshot is taken
costs that one alone; one that was sent and cannot be loaded ends the replica.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from drakkar.actors.applier import Applier, LoadOrder, SaveOrder
from drakkar.actors.futures import ActorFuture, brief
from drakkar.actors.log_store import Done
from drakkar.actors.snapshots import Snapshots, export_to
from drakkar.actors.state_machine import DiskStateMachine
from drakkar.actors.workers import WorkerPool
from drakkar.handlers.errors import (
    ActorFailed,
    DrakkarError,
    RequestDropped,
    StorageFailed,
    SystemBusy,
)
from drakkar.handlers.messages import Message, MessageType, Snapshot, State
from drakkar.handlers.raft import Raft

__all__ = ["SnapshotKeeper", "SnapshotRequest", "SnapshotServices"]

logger = logging.getLogger(__name__)

STATUS_DELAY: Final = 10
"""Ticks after which the core believes that a stream ended as it was told: the peer's own answer says more."""
_WITNESS_ENTRIES: Final = 10_000
"""A witness has nothing to save: it only gives up its log each time that so many entries were applied."""
_MOST_REQUESTS: Final = 100


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """Ask for a snapshot; `future` is set to its index."""

    future: ActorFuture[Any]
    deadline: float
    overhead: int | None = None
    """Entries to keep behind it; None as the options say."""
    export: Path | None = None
    """Write it to this file, and leave the log, and what is kept, as they are."""


class SnapshotServices(Protocol):
    """What a host does for the snapshots of its nodes. Called in the loop's thread; never blocks."""

    def record_snapshot(self, shard: int, replica: int, snapshot: Snapshot, done: Done | None = None) -> None:
        """As `LogStore.record_snapshot`."""

    def compact(self, shard: int, replica: int, index: int) -> None:
        """As `LogStore.compact`."""

    def send_snapshot(self, address: str, message: Message, *, temporary: bool) -> None:
        """Stream the file of an INSTALL_SNAPSHOT to the host at `address`, and tell the node how that ended.

        A `temporary` one is discarded afterwards.
        """


class SnapshotKeeper:
    """The snapshots of one node. All methods are for the loop's thread."""

    def __init__(
        self,
        raft: Raft,
        applier: Applier,
        snapshots: Snapshots,
        *,
        services: SnapshotServices,
        pool: WorkerPool,
        call_soon: Callable[[Callable[[], None]], None],
        loaded: Callable[[Snapshot], None],
    ) -> None:
        """`call_soon` has something done in the node's turn, from any thread; `loaded` hears of a leader's snapshot."""
        self.failed = 0
        """Snapshots that could not be taken."""
        self.files = snapshots
        """For threads that may wait for the disk."""
        self._raft, self._applier = raft, applier
        self._services, self._pool = services, pool
        self._call_soon, self._loaded = call_soon, loaded
        self.on_disk = isinstance(applier.machine, DiskStateMachine)
        self._taking = False
        self._tried = 0
        """Up to where the last one went that was begun, well or badly."""
        self._not_before = 0
        self._unrecorded: Snapshot | None = None
        """Written, and the log store had no room to record it."""
        self._requests: list[SnapshotRequest] = []

    def start(self) -> None:
        """Continue with what the last life left: before anything is applied."""
        snapshot = self._raft.log.snapshot
        if self.on_disk or (snapshot and not snapshot.witness):
            keep = snapshot.payload.decode()
            self._applier.load(LoadOrder(snapshot, partial(self._prune, keep)))

    # -- when to take one ---------------------------------------------------------------------------------------

    @property
    def _every(self) -> int:
        is_witness = self._raft.resting_state is State.WITNESS
        return _WITNESS_ENTRIES if is_witness else self._raft.config.snapshot_entries

    def request(self, request: SnapshotRequest) -> None:
        """Take one now, or as soon as the one that is being taken is done."""
        if len(self._requests) >= _MOST_REQUESTS:
            request.future.try_fail(SystemBusy("too many snapshots are asked for: wait for one"))
        elif self._raft.resting_state is State.WITNESS:
            request.future.try_fail(
                RequestDropped(f"replica {self._raft.id} is a witness, which has no state: ask another")
            )
        elif request.export is not None:
            self._export(request, request.export)
        else:
            self._requests.append(request)

    def consider(self) -> None:
        """Take one if it is time; called after every batch."""
        if self._unrecorded is not None:
            self._record(self._unrecorded)
        elif not self._taking and (self._requests or self._is_time()):
            self._take()

    def _is_time(self) -> bool:
        log, every = self._raft.log, self._every
        return 0 < every <= log.applied - max(log.snapshot.index, self._tried)

    def tick(self, now: float) -> None:
        """Mind the deadlines, and peers that asked their leader for a snapshot."""
        raft = self._raft
        wanted = raft.snapshot_wanted if raft.state is State.LEADER else 0
        if 0 < wanted <= raft.log.applied and not self._taking and raft.ticks >= self._not_before:
            self._not_before = raft.ticks + raft.config.election_ticks
            self._take()
        if self._requests:
            late = RequestDropped("the snapshot was not taken by the deadline; it may be yet")
            self._answer(lambda request: request.deadline <= now, late)

    def _take(self) -> None:
        raft = self._raft
        point = raft.snapshot_point()
        if point is None:
            return
        if point.index <= raft.log.snapshot.index:
            self._answer(lambda _: True, None)  # nothing was applied since the last one
            return
        self._taking, self._tried = True, point.index
        if point.witness:
            self._record(point)
        else:
            self._applier.save(SaveOrder(point, self._report(self._on_written)))

    def _report(self, told: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda outcome: self._call_soon(lambda: told(outcome))

    # -- one that was taken here --------------------------------------------------------------------------------

    def _on_written(self, outcome: Snapshot | BaseException) -> None:
        if isinstance(outcome, Snapshot):
            self._record(outcome)
            return
        self._taking = False
        self.failed += 1
        raft = self._raft
        logger.error(
            "replica %d of shard %d could not take a snapshot, and tries again later: %s",
            raft.id,
            raft.config.shard_id,
            brief(outcome),
            exc_info=outcome,
        )
        self._answer(lambda _: True, _failure(outcome))

    def _record(self, snapshot: Snapshot) -> None:
        config = self._raft.config
        self._unrecorded = None
        done = self._report(partial(self._on_recorded, snapshot))
        try:
            self._services.record_snapshot(config.shard_id, config.replica_id, snapshot, done)
        except SystemBusy:
            self._unrecorded = snapshot  # and nothing else is taken meanwhile

    def _on_recorded(self, snapshot: Snapshot, error: BaseException | None) -> None:
        self._taking = False
        if isinstance(error, RequestDropped):
            self._discard(snapshot)  # a leader has sent a newer one meanwhile
            self._answer(lambda _: True, None)
            return
        if error is not None:
            raise ActorFailed(f"a snapshot could not be recorded: {error}") from error
        raft = self._raft
        raft.snapshot_taken(snapshot)
        if raft.log.snapshot is snapshot:
            self._compact(snapshot)
            self._in_background(partial(self._prune, snapshot.payload.decode()))
        self._answer(lambda _: True, None)

    def _compact(self, snapshot: Snapshot) -> None:
        raft, config = self._raft, self._raft.config
        asked = [request.overhead for request in self._requests if request.overhead is not None]
        if config.disable_auto_compactions and not asked:
            return
        index = snapshot.index - min(asked, default=config.compaction_overhead)
        if index < raft.log.first_index:
            return
        try:
            # The store first: should it have no room, the next snapshot makes up for it.
            self._services.compact(config.shard_id, config.replica_id, index)
        except SystemBusy as busy:
            logger.info("the log is compacted with the next snapshot: %s", busy)
            return
        raft.compact(index)

    def _answer(self, over: Callable[[SnapshotRequest], bool], error: Exception | None) -> None:
        done = [request for request in self._requests if over(request)]
        self._requests = [request for request in self._requests if not over(request)]
        for request in done:
            if error is None:
                request.future.try_set(self._raft.log.snapshot.index)
            else:
                request.future.try_fail(error)

    # -- one for somebody else ----------------------------------------------------------------------------------

    def _export(self, request: SnapshotRequest, path: Path) -> None:
        point = self._raft.snapshot_point()
        if point is None:
            request.future.try_fail(RequestDropped("a leader's snapshot is being loaded: wait and ask again"))
            return

        def copy(written: Snapshot | BaseException) -> None:
            if isinstance(written, BaseException):
                request.future.try_fail(_failure(written))
                return
            try:
                with self.files.open(written.payload.decode()) as reader:
                    export_to(reader, path)
                self.files.discard(written.payload.decode())
            except Exception as error:  # noqa: BLE001  # it goes to whoever asked
                request.future.try_fail(error)
            else:
                request.future.try_set(written.index)

        self._applier.save(SaveOrder(point, copy, whole=True))

    def send(self, address: str, message: Message) -> None:
        """Bring up a peer: with the file that there is or, of a state machine on disk, with one made for it."""
        if not self.on_disk:
            self._services.send_snapshot(address, message, temporary=False)
            return
        point = self._raft.snapshot_point()
        if point is None:
            self.sending_failed(message.to)
        else:
            told = self._report(partial(self._send_whole, address, message))
            self._applier.save(SaveOrder(point, told, whole=True))

    def _send_whole(self, address: str, message: Message, written: Snapshot | BaseException) -> None:
        if isinstance(written, Snapshot):
            whole = Message(
                MessageType.INSTALL_SNAPSHOT,
                to=message.to,
                sender=message.sender,
                shard=message.shard,
                term=message.term,
                snapshot=written,
            )
            self._services.send_snapshot(address, whole, temporary=True)
            return
        logger.error("no snapshot could be made for replica %d: %s", message.to, brief(written))
        self.failed += 1
        self.sending_failed(message.to)

    def sending_failed(self, peer: int) -> None:
        """Tell the core that a peer was not sent its snapshot: it is tried again."""
        self._raft.step(Message(MessageType.SNAPSHOT_STATUS, sender=peer, reject=True, hint=STATUS_DELAY))

    # -- one that a leader sent ---------------------------------------------------------------------------------

    def received(self, message: Message) -> None:
        """The core was given a leader's snapshot. One that it did not take in is of no use."""
        snapshot = message.snapshot
        if snapshot is not None and snapshot.payload and self._raft.log.pending_snapshot is not snapshot:
            self._release(snapshot, discard=True)

    def install(self, snapshot: Snapshot) -> None:
        """A leader's snapshot is on record: let the state machine load it."""
        if snapshot.witness:
            self._on_loaded(snapshot)
        else:
            self._applier.load(
                LoadOrder(snapshot, lambda: self._call_soon(lambda: self._on_loaded(snapshot)))
            )

    def _on_loaded(self, snapshot: Snapshot) -> None:
        raft = self._raft
        if raft.log.pending_snapshot is snapshot:  # else a newer one is being loaded
            raft.applied(snapshot.index)
            raft.step(Message(MessageType.SNAPSHOT_RECEIVED, sender=raft.id, snapshot=snapshot))
            self._loaded(snapshot)
        if snapshot.payload:
            self._release(snapshot, discard=raft.log.snapshot is not snapshot)

    # -- files, which are for workers ---------------------------------------------------------------------------

    def _release(self, snapshot: Snapshot, *, discard: bool) -> None:
        """The host pinned it when it came."""
        name = snapshot.payload.decode()

        def release() -> None:
            if discard:
                self.files.discard(name)
            self.files.unpin(name)
            if not discard:
                self._prune(name)

        self._in_background(release)

    def _discard(self, snapshot: Snapshot) -> None:
        if snapshot.payload:
            self._in_background(partial(self.files.discard, snapshot.payload.decode()))

    def _prune(self, keep: str) -> None:
        try:
            self.files.prune(keep)
        except StorageFailed as error:
            logger.warning("old snapshots stay for now: %s", error)

    def _in_background(self, job: Callable[[], None]) -> None:
        self._pool.submit(job)

    def stop(self, error: Exception) -> None:
        """The replica is over: nobody is left waiting."""
        self._answer(lambda _: True, error)


def _failure(error: BaseException) -> DrakkarError:
    if isinstance(error, DrakkarError):
        return error
    failed = ActorFailed(f"the state machine could not be saved: {brief(error)}")
    failed.__cause__ = error
    failed.outcome_known = True
    return failed
