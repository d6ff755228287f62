"""The snapshots that a replica takes, and what of its log and its files they replace (thesis chapter 5).

    applied far enough ─► the state machine writes a file ─► the log store records it ─► the core knows of it
                              (`Applier`, on a worker)                                  ─► the log behind it goes

No log and no file is deleted before what replaces it is durable. An error while a snapshot is taken costs that snapshot
only.
"""

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
from drakkar.actors.node.extension_states import ExtensionStates
from drakkar.actors.node.log_meter import LogMeter
from drakkar.actors.node.received_snapshots import prune
from drakkar.actors.node.refusals import snapshot_failure
from drakkar.actors.node.requests import SnapshotRequest
from drakkar.actors.runtime.futures import brief
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.errors import (
    ActorFailed,
    OutcomeUnknown,
    RequestDropped,
    SystemBusy,
)
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Snapshot, State

__all__ = ["SnapshotKeeper", "SnapshotServices"]

WITNESS_ENTRIES: Final = 10_000
"""A witness has nothing to save: it only deletes its log each time that so many entries were applied."""
MAX_REQUESTS: Final = 100
"""Snapshots and exports that clients may wait for at a time."""
MAX_HELD_BACK: Final = 10
"""Snapshots' worth of entries, or bytes, that the log keeps at most for peers that are still catching up."""
_STEPS: Final = 16
"""`snapshot_bytes` are counted in so many steps."""


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
        lines: Lines,
        extensions: ExtensionStates,
    ) -> None:
        """`background` is for what waits for the disk; `inbox` is the node's, for completions."""
        self.taken = self.failed = 0
        """How many snapshots were taken, and how many could not be."""
        self.files = snapshots
        """The files. For threads that may wait for the disk."""
        self._raft, self._applier = raft, applier
        self._services, self._background = services, background
        self._extensions = extensions
        self._inbox, self._lines = inbox, lines
        self.on_disk = isinstance(applier.machine, DiskStateMachine)
        self._bytes = LogMeter(raft.config.snapshot_bytes // _STEPS)
        self._taking = False
        self._held_back = False
        """More of the log could go, but for peers that are catching up, or a log store without room."""
        self._tried = 0
        """The index of the last one that was begun, whether it was finished or not."""
        self._not_before = 0
        self._damaged: bytes | None = None
        """The payload of the snapshot whose file was found to be damaged."""
        self._unrecorded: Snapshot | None = None
        """One that is written and that the log store has no room to record yet."""
        self._requests: list[tuple[SnapshotRequest, int]] = []
        """Each with the last index that was applied when it was made."""
        self.exports = Exports(
            raft,
            applier,
            snapshots,
            background=background,
            inbox=inbox,
            lines=lines,
            extensions=extensions,
        )

    def start(self) -> None:
        """Load the newest snapshot, before anything is applied, and delete all others."""
        log = self._raft.log
        keep = log.snapshot.payload.decode()
        if self.on_disk or log.snapshot.has_content:
            self._inbox.reserve()
            self._extensions.begin()
            self._applier.load(LoadRequest(log.snapshot, partial(self._loaded, log.snapshot), log.last_index))
        else:
            self._background.submit(partial(prune, self.files, keep, self._lines))

    def _loaded(self, snapshot: Snapshot, extensions: bytes) -> None:
        prune(self.files, snapshot.payload.decode(), self._lines)
        self._inbox.complete(SnapshotLoaded(snapshot, extensions))

    # -- when to take one ---------------------------------------------------------------------------------------

    @property
    def _every(self) -> int:
        is_witness = self._raft.base_state is State.WITNESS
        return WITNESS_ENTRIES if is_witness else self._raft.config.snapshot_entries

    @property
    def _enough_bytes(self) -> int:
        """Bytes of entries that bring on a snapshot: a large one is worth as many as it has itself. 0: none do."""
        least = self._raft.config.snapshot_bytes
        return max(least, self._raft.log.snapshot.size) if least else 0

    def given(self, entries: Entries) -> None:
        """Count entries that the state machine is given."""
        if self._raft.config.snapshot_bytes:
            self._bytes.note(entries)

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
        last = max(log.snapshot.index, self._tried)
        return 0 < every <= log.applied - last or 0 < self._enough_bytes <= self._bytes.behind(last)

    def tick(self, now: float) -> None:
        """Look at the deadlines, and at peers that asked their leader for a snapshot."""
        raft = self._raft
        wanted = raft.snapshot_wanted if raft.state is State.LEADER else 0
        if 0 < wanted <= raft.log.applied and not self._taking and raft.timers.ticks >= self._not_before:
            self._not_before = raft.timers.ticks + raft.config.election_ticks
            self._take()
        if self._held_back:
            self._compact(raft.log.snapshot)
        if self._requests:
            late = OutcomeUnknown("the snapshot was not taken by the deadline; it may still be")
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
            written = lambda outcome: self._inbox.complete(SnapshotWritten(outcome))  # noqa: E731
            self._inbox.reserve()
            self._applier.save(SaveRequest(point, written, extensions=self._extensions.at(point.index)))

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
        self._lines.error(
            "could not take a snapshot, and tries again later: %s", brief(outcome), exc_info=outcome
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
            self.taken += 1
            self._lines.info("took the snapshot at %d", snapshot.index)
            if self._raft.log.snapshot is snapshot:
                self._compact(snapshot)
                self._background.submit(partial(prune, self.files, snapshot.payload.decode(), self._lines))
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
        self._held_back = False
        index = snapshot.index - min(asked, default=config.compaction_overhead)
        if not asked:
            if self._enough_bytes:
                index = max(index, self._bytes.before(snapshot.index, self._enough_bytes // 2))
            needed = self._needed_by_peers(snapshot.index)
            self._held_back = needed < index
            index = min(index, needed)
        if index < raft.log.first_index:
            return
        try:
            # The store first: should it have no room, it is tried again.
            self._services.compact(config.shard_id, config.replica_id, index)
        except SystemBusy as busy:
            self._held_back = True
            self._lines.debug("the log is compacted a little later: %s", busy)
            return
        raft.compact(index)
        self._bytes.forget(index)

    def _needed_by_peers(self, index: int) -> int:
        """The index up to which no peer that is catching up needs the log, but not too far back.

        Without this, a peer that needs longer to load a snapshot than the leader to take the next would be sent one
        snapshot after the other. One that does not answer, or never did, is not waited for.
        """
        raft = self._raft
        if raft.state is not State.LEADER:
            return index
        catching_up = [
            peer for replica, peer in raft.progress.items() if replica != raft.id and peer.heard_lately
        ]
        needed = min((max(peer.match, peer.pending_snapshot) for peer in catching_up), default=index)
        return max(needed, self._too_far_back(index))

    def _too_far_back(self, index: int) -> int:
        """The index up to which the log goes even if peers need it."""
        by_bytes = self._bytes.before(index, MAX_HELD_BACK * self._enough_bytes) if self._enough_bytes else 0
        if by_bytes and not self._every:
            return by_bytes
        return max(by_bytes, index - MAX_HELD_BACK * max(self._every, self._raft.config.compaction_overhead))

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
            self._lines.critical("%s", done.error)
            self._damaged = done.snapshot.payload
        else:
            self._lines.info("a newer snapshot took the place of the one that was to be sent: %s", done.error)

    def _in_background(self, action: Callable[[str], None], snapshot: Snapshot) -> None:
        if snapshot.payload:
            self._background.submit(partial(action, snapshot.payload.decode()))

    def stop(self, error: Exception) -> None:
        """Answer all who wait with `error`, as the replica ends."""
        if self._unrecorded is not None:
            self._in_background(self.files.discard, self._unrecorded)
        self._answer(lambda *_: True, error)
        self.exports.fail_all(error)
