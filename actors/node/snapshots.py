"""The snapshots that a replica takes, and what of its log and its files they replace (thesis chapter 5).

    applied far enough ─► the state machine writes a file ─► the log store records it ─► the core knows of it
                              (`Applier`, on a worker)                                  ─► the log behind it goes

No log and no file is deleted before what replaces it is durable. An error while a snapshot is taken costs that snapshot
only.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from drakkar.actors.log.store import Done
from drakkar.actors.machine.applier import Applier, LoadRequest, SaveRequest
from drakkar.actors.machine.state_machine import DiskStateMachine
from drakkar.actors.node.completions import (
    SnapshotDamaged,
    SnapshotLoaded,
    SnapshotRecorded,
    SnapshotWritten,
)
from drakkar.actors.node.exports import Exports
from drakkar.actors.node.received_snapshots import prune
from drakkar.actors.node.refusals import snapshot_failure
from drakkar.actors.node.requests import SnapshotRequest
from drakkar.actors.runtime.futures import brief
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.errors import (
    ActorFailed,
    OutcomeUnknown,
    RequestDropped,
    SystemBusy,
)
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Snapshot, State

__all__ = ["SnapshotKeeper", "SnapshotServices"]

logger = logging.getLogger(__name__)

WITNESS_ENTRIES: Final = 10_000
"""A witness has nothing to save: it only deletes its log each time that so many entries were applied."""
MAX_REQUESTS: Final = 100
"""Snapshots and exports that clients may wait for at a time."""
MAX_HELD_BACK: Final = 10
"""Snapshots' worth of entries that the log keeps, at most, for peers that are still catching up."""


class SnapshotServices(Protocol):
    """What a host does for the snapshots of its nodes. Called in the loop's thread; never blocks."""

    def record_snapshot(
        self, shard_id: int, replica_id: int, snapshot: Snapshot, done: Done | None = None
    ) -> None:
        """As `LogStore.record_snapshot`."""

    def compact(self, shard_id: int, replica_id: int, index: int) -> None:
        """As `LogStore.compact`."""


class SnapshotKeeper:
    """Takes the snapshots of one node. All methods are for the loop's thread."""

    def __init__(
        self,
        raft: Raft,
        applier: Applier,
        snapshots: Snapshots,
        *,
        services: SnapshotServices,
        background: WorkerPool,
        inbox: Inbox,
    ) -> None:
        """`background` is for what waits for the disk; `inbox` is the node's, for completions."""
        self.failed = 0
        """How many snapshots could not be taken."""
        self.files = snapshots
        """The files. For threads that may wait for the disk."""
        self._raft, self._applier = raft, applier
        self._services, self._background = services, background
        self._inbox = inbox
        self.on_disk = isinstance(applier.machine, DiskStateMachine)
        self._taking = False
        self._tried = 0
        """The index of the last one that was begun, whether it was finished or not."""
        self._not_before = 0
        self._damaged: bytes | None = None
        """The payload of the snapshot whose file was found to be damaged."""
        self._unrecorded: Snapshot | None = None
        """One that is written and that the log store has no room to record yet."""
        self._requests: list[tuple[SnapshotRequest, int]] = []
        """Each with the last index that was applied when it was made."""
        self.exports = Exports(raft, applier, snapshots, background=background, inbox=inbox)

    def start(self) -> None:
        """Load the newest snapshot, before anything is applied, and delete all others."""
        log = self._raft.log
        keep = log.snapshot.payload.decode()
        if self.on_disk or log.snapshot.has_content:
            self._inbox.reserve()
            self._applier.load(LoadRequest(log.snapshot, partial(self._loaded, log.snapshot), log.last_index))
        else:
            self._background.submit(partial(prune, self.files, keep))

    def _loaded(self, snapshot: Snapshot) -> None:
        prune(self.files, snapshot.payload.decode())
        self._inbox.complete(SnapshotLoaded(snapshot))

    # -- when to take one ---------------------------------------------------------------------------------------

    @property
    def _every(self) -> int:
        is_witness = self._raft.base_state is State.WITNESS
        return WITNESS_ENTRIES if is_witness else self._raft.config.snapshot_entries

    def request(self, request: SnapshotRequest) -> None:
        """Take one now, or as soon as the one that is being taken is done."""
        if len(self._requests) + len(self.exports) >= MAX_REQUESTS:
            request.future.try_fail(
                SystemBusy(f"{MAX_REQUESTS} snapshots are waited for already: wait for one")
            )
        elif request.export is None:
            self._requests.append((request, self._raft.log.applied))
        else:
            self.exports.add(request, request.export)

    def consider(self) -> None:
        """Take a snapshot if it is time. Called after every batch."""
        if self._unrecorded is not None:
            self._record(self._unrecorded)
        elif not self._taking and (self._requests or self._is_time()):
            self._take()

    def _is_time(self) -> bool:
        log = self._raft.log
        # A damaged one is of no use, so the first entry behind it is enough to take the next.
        every = 1 if log.snapshot.payload == self._damaged else self._every
        return 0 < every <= log.applied - max(log.snapshot.index, self._tried)

    def tick(self, now: float) -> None:
        """Look at the deadlines, and at peers that asked their leader for a snapshot."""
        raft = self._raft
        wanted = raft.snapshot_wanted if raft.state is State.LEADER else 0
        if 0 < wanted <= raft.log.applied and not self._taking and raft.timers.ticks >= self._not_before:
            self._not_before = raft.timers.ticks + raft.config.election_ticks
            self._take()
        late = OutcomeUnknown("the snapshot was not taken by the deadline; it may still be")
        if self._requests:
            self._answer(lambda request, _: request.deadline <= now, late)
        self.exports.expire(now)

    def _take(self) -> None:
        point = self._point()
        # One that was removed may have been told so without the state: its state machine is then behind its log.
        if point is None or self._raft.id in self._raft.membership.removed:
            return
        if point.index <= self._raft.log.snapshot.index:
            # Nothing was applied since the last one, but the client may want a shorter log behind it.
            self._compact(self._raft.log.snapshot)
            self._answer(lambda _, asked_at: asked_at <= point.index, None)
            return
        self._taking, self._tried = True, point.index
        if point.witness:
            self._record(point)
        else:
            self._inbox.reserve()
            self._applier.save(
                SaveRequest(point, lambda outcome: self._inbox.complete(SnapshotWritten(outcome)))
            )

    def _point(self) -> Snapshot | None:
        raft, log = self._raft, self._raft.log
        if raft.base_state is not State.WITNESS:
            return raft.snapshot_point(self._applier.given)
        # A witness has no state machine, so what is reported as applied must do.
        if log.pending_snapshot is not None or log.applied > log.stable:
            return None
        return Snapshot(log.applied, log.term(log.applied), raft.membership, witness=True)

    # -- one that was taken here --------------------------------------------------------------------------------

    def on_written(self, done: SnapshotWritten) -> None:
        """Record the snapshot that was written; one that failed is taken again later."""
        outcome = done.outcome
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
        self._answer(lambda _, asked_at: asked_at <= self._tried, snapshot_failure(outcome))

    def _record(self, snapshot: Snapshot) -> None:
        config = self._raft.config
        self._unrecorded = None
        self._inbox.reserve()
        try:
            self._services.record_snapshot(
                config.shard_id,
                config.replica_id,
                snapshot,
                lambda error: self._inbox.complete(SnapshotRecorded(snapshot, error)),
            )
        except SystemBusy:
            self._inbox.release()
            self._unrecorded = snapshot  # and nothing else is taken meanwhile

    def on_recorded(self, done: SnapshotRecorded) -> None:
        """Tell the core of the snapshot, and delete the log and the snapshots that it replaces.

        Raises `ActorFailed` where the log store could not record it.
        """
        snapshot, error = done.snapshot, done.error
        self._taking = False
        if isinstance(error, RequestDropped):
            self._in_background(self.files.discard, snapshot)  # a leader has sent a newer one meanwhile
        elif error is not None:
            raise ActorFailed(f"a snapshot could not be recorded: {error}") from error
        else:
            self._raft.snapshot_taken(snapshot)
            if self._raft.log.snapshot is snapshot:
                self._compact(snapshot)
                self._background.submit(partial(prune, self.files, snapshot.payload.decode()))
        self._answer(lambda _, asked_at: asked_at <= snapshot.index, None)

    def _compact(self, snapshot: Snapshot) -> None:
        raft, config = self._raft, self._raft.config
        asked = [
            request.overhead
            for request, asked_at in self._requests
            if request.overhead is not None and asked_at <= snapshot.index
        ]
        if config.disable_auto_compactions and not asked:
            return
        index = snapshot.index - min(asked, default=config.compaction_overhead)
        if not asked:
            index = min(index, self._needed_by_peers(snapshot.index))
        if index < raft.log.first_index:
            return
        try:
            # The store first: should it have no room, the next snapshot makes up for it.
            self._services.compact(config.shard_id, config.replica_id, index)
        except SystemBusy as busy:
            logger.info("the log is compacted with the next snapshot: %s", busy)
            return
        raft.compact(index)

    def _needed_by_peers(self, index: int) -> int:
        """The index up to which no peer that is catching up needs the log, but not too far back.

        Without this, a peer that needs longer to load a snapshot than the leader to take the next would be sent one
        snapshot after the other.
        """
        raft = self._raft
        if raft.state is not State.LEADER:
            return index
        catching_up = [peer for replica, peer in raft.progress.items() if replica != raft.id and peer.active]
        needed = min((max(peer.match, peer.pending_snapshot) for peer in catching_up), default=index)
        return max(needed, index - MAX_HELD_BACK * max(self._every, raft.config.compaction_overhead))

    def _answer(self, over: Callable[[SnapshotRequest, int], bool], error: Exception | None) -> None:
        done = [request for request, asked_at in self._requests if over(request, asked_at)]
        self._requests = [each for each in self._requests if not over(*each)]
        for request in done:
            if error is None:
                request.future.try_set(self._raft.log.snapshot.index)
            else:
                request.future.try_fail(error)

    def on_damaged(self, done: SnapshotDamaged) -> None:
        """Take another snapshot in place of a damaged one, as soon as there is anything new.

        But an older one than the newest may have gone, which is no damage: the newest is sent the next time. No client
        waits for the next one, so this is a note, not a request: each try to send the damaged one finds it again.
        """
        if self._raft.log.snapshot.payload == done.snapshot.payload:
            logger.critical("%s", done.error)
            self._damaged = done.snapshot.payload
        else:
            logger.info("a newer snapshot took the place of the one that was to be sent: %s", done.error)

    def _in_background(self, action: Callable[[str], None], snapshot: Snapshot) -> None:
        if snapshot.payload:
            self._background.submit(partial(action, snapshot.payload.decode()))

    def stop(self, error: Exception) -> None:
        """Answer all who wait with `error`, as the replica ends."""
        if self._unrecorded is not None:
            self._in_background(self.files.discard, self._unrecorded)
        self._answer(lambda *_: True, error)
        self.exports.fail_all(error)
