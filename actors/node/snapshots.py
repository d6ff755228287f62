"""When a replica takes a snapshot, and what becomes of it, and of those that a leader sends (thesis chapter 5).

    applied far enough ─► the state machine writes a file ─► the log store records it ─► the core knows of it
                              (`Applier`, on a worker)                                  ─► the log behind it goes
    a leader's has come ─► the log store records it ─► the state machine loads it ─► the core applies behind it

Nothing is told, compacted or removed before what takes its place is durable. What goes wrong while a snapshot is taken
costs that one alone; one that was sent and cannot be loaded ends the replica.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from drakkar.actors.log.store import Done
from drakkar.actors.machine.applier import Applier, LoadRequest, SaveRequest
from drakkar.actors.machine.state_machine import DiskStateMachine
from drakkar.actors.runtime.futures import ActorFuture, brief
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots, check_free, export_to
from drakkar.handlers.errors import (
    ActorFailed,
    CorruptData,
    DrakkarError,
    OutcomeUnknown,
    RequestDropped,
    StorageFailed,
    SystemBusy,
)
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Snapshot, State

__all__ = ["SnapshotKeeper", "SnapshotRequest", "SnapshotServices"]

logger = logging.getLogger(__name__)

STATUS_DELAY: Final = 10
"""Ticks after which the core believes that a stream ended as it was told: the peer's own answer says more."""
_WITNESS_ENTRIES: Final = 10_000
"""A witness has nothing to save: it only gives up its log each time that so many entries were applied."""
_MOST_REQUESTS: Final = 100
_MOST_HELD_BACK: Final = 10
"""Snapshots' worth of entries that the log keeps, at most, for peers that are still catching up."""


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
        background: WorkerPool,
        call_soon: Callable[[Callable[[], None]], None],
        loaded: Callable[[Snapshot], None],
    ) -> None:
        """`background` is for what waits for the disk; `call_soon` has something done in the node's turn.

        `loaded` hears of a leader's snapshot that the state machine has.
        """
        self.failed = 0
        """Snapshots that could not be taken."""
        self.files = snapshots
        """For threads that may wait for the disk."""
        self._raft, self._applier = raft, applier
        self._services, self._background = services, background
        self._call_soon, self._loaded = call_soon, loaded
        self.on_disk = isinstance(applier.machine, DiskStateMachine)
        self._taking = False
        self._tried = 0
        """Up to where the last one went that was begun, well or badly."""
        self._not_before = 0
        self._damaged: bytes | None = None
        """The payload of the snapshot whose file was found to be damaged."""
        self._unrecorded: Snapshot | None = None
        """Written, and the log store had no room to record it."""
        self._requests: list[tuple[SnapshotRequest, int]] = []
        """Each with how far the log was applied when it was asked."""
        self._exports: list[SnapshotRequest] = []
        """The first of them is being written."""
        self._received: dict[str, Snapshot] = {}
        """Files that a leader sent and the core took in, which are pinned until they are loaded."""
        self._bringing_up: set[int] = set()
        """Peers for which a state machine on disk is being written, or sent."""

    def start(self) -> None:
        """Continue with what the last life left: before anything is applied."""
        log = self._raft.log
        keep = log.snapshot.payload.decode()
        if self.on_disk or log.snapshot.has_content:
            self._applier.load(LoadRequest(log.snapshot, partial(self._prune, keep), log.last_index))
        else:
            self._background.submit(partial(self._prune, keep))

    # -- when to take one ---------------------------------------------------------------------------------------

    @property
    def _every(self) -> int:
        is_witness = self._raft.base_state is State.WITNESS
        return _WITNESS_ENTRIES if is_witness else self._raft.config.snapshot_entries

    def request(self, request: SnapshotRequest) -> None:
        """Take one now, or as soon as the one that is being taken is done."""
        if len(self._requests) + len(self._exports) >= _MOST_REQUESTS:
            request.future.try_fail(SystemBusy("too many snapshots are asked for: wait for one"))
        elif self._raft.base_state is State.WITNESS:
            request.future.try_fail(
                RequestDropped(f"replica {self._raft.id} is a witness, which has no state: ask another")
            )
        elif request.export is None:
            self._requests.append((request, self._raft.log.applied))
        else:
            self._exports.append(request)
            if len(self._exports) == 1:
                self._export(request, request.export)

    def consider(self) -> None:
        """Take one if it is time; called after every batch."""
        if self._unrecorded is not None:
            self._record(self._unrecorded)
        elif not self._taking and (self._requests or self._is_time()):
            self._take()

    def _is_time(self) -> bool:
        log = self._raft.log
        # One that is damaged stands in for nothing: the first entry behind it will do to take the next.
        every = 1 if log.snapshot.payload == self._damaged else self._every
        return 0 < every <= log.applied - max(log.snapshot.index, self._tried)

    def tick(self, now: float) -> None:
        """Mind the deadlines, and peers that asked their leader for a snapshot."""
        raft = self._raft
        wanted = raft.snapshot_wanted if raft.state is State.LEADER else 0
        if 0 < wanted <= raft.log.applied and not self._taking and raft.timers.ticks >= self._not_before:
            self._not_before = raft.timers.ticks + raft.config.election_ticks
            self._take()
        late = OutcomeUnknown("the snapshot was not taken by the deadline; it may be yet")
        if self._requests:
            self._answer(lambda request, _: request.deadline <= now, late)
        for request in self._exports:
            if request.deadline <= now:
                request.future.try_fail(late)

    def _take(self) -> None:
        point = self._point()
        # One that was removed may have been told so without the state: its state machine is then behind its log.
        if point is None or self._raft.id in self._raft.membership.removed:
            return
        if point.index <= self._raft.log.snapshot.index:
            # Nothing was applied since the last one, but somebody may want a shorter log behind it.
            self._compact(self._raft.log.snapshot)
            self._answer(lambda _, asked_at: asked_at <= point.index, None)
            return
        self._taking, self._tried = True, point.index
        if point.witness:
            self._record(point)
        else:
            self._applier.save(SaveRequest(point, self._report(self._on_written)))

    def _point(self) -> Snapshot | None:
        raft, log = self._raft, self._raft.log
        if raft.base_state is not State.WITNESS:
            return raft.snapshot_point(self._applier.given)
        # Nobody saves anything behind what was handed out, so what is reported as applied must do.
        if log.pending_snapshot is not None or log.applied > log.stable:
            return None
        return Snapshot(log.applied, log.term(log.applied), raft.membership, witness=True)

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
        self._answer(lambda _, asked_at: asked_at <= self._tried, _failure(outcome))

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
            self._in_background(self.files.discard, snapshot)  # a leader has sent a newer one meanwhile
        elif error is not None:
            raise ActorFailed(f"a snapshot could not be recorded: {error}") from error
        else:
            self._raft.snapshot_taken(snapshot)
            if self._raft.log.snapshot is snapshot:
                self._compact(snapshot)
                self._background.submit(partial(self._prune, snapshot.payload.decode()))
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
        """Up to where no peer that is catching up needs the log, as far as that is not too far back.

        Else one that takes longer for a snapshot than the leader for the next would be sent one after the other.
        """
        raft = self._raft
        if raft.state is not State.LEADER:
            return index
        catching_up = [peer for replica, peer in raft.progress.items() if replica != raft.id and peer.active]
        needed = min((max(peer.match, peer.pending_snapshot) for peer in catching_up), default=index)
        return max(needed, index - _MOST_HELD_BACK * max(self._every, raft.config.compaction_overhead))

    def _answer(self, over: Callable[[SnapshotRequest, int], bool], error: Exception | None) -> None:
        done = [request for request, asked_at in self._requests if over(request, asked_at)]
        self._requests = [each for each in self._requests if not over(*each)]
        for request in done:
            if error is None:
                request.future.try_set(self._raft.log.snapshot.index)
            else:
                request.future.try_fail(error)

    # -- one for somebody else ----------------------------------------------------------------------------------

    def _export(self, request: SnapshotRequest, path: Path) -> None:
        """One at a time; that the file can be written is found out before the state is."""

        def check() -> None:
            try:
                check_free(path)
            except Exception as error:  # noqa: BLE001  # it goes to whoever asked, and those behind have their turn
                self._call_soon(partial(self._exported, _failure(error)))
            else:
                self._call_soon(order)

        def order() -> None:
            point = self._raft.snapshot_point(self._applier.given)
            if request.future.done or point is None:
                self._exported(RequestDropped("a leader's snapshot is being loaded: wait and ask again"))
            else:
                told = self._report(written)
                self._applier.save(SaveRequest(point, told, whole=True))

        def written(outcome: Snapshot | BaseException) -> None:
            if isinstance(outcome, Snapshot):
                self._background.submit(partial(copy, outcome))
            else:
                self._exported(_failure(outcome))

        def copy(snapshot: Snapshot) -> None:
            name = snapshot.payload.decode()
            try:
                with self.files.open(name) as reader:
                    export_to(reader, path)
            except Exception as error:  # noqa: BLE001  # likewise
                self._call_soon(partial(self._exported, _failure(error)))
            else:
                self._call_soon(partial(self._exported, snapshot.index))
            finally:
                self.files.discard(name)

        self._background.submit(check)

    def _exported(self, outcome: int | DrakkarError) -> None:
        request = self._exports.pop(0)
        if isinstance(outcome, DrakkarError):
            request.future.try_fail(outcome)
        else:
            request.future.try_set(outcome)
        if self._exports:
            following = self._exports[0]
            assert following.export is not None, "it is an export"
            self._export(following, following.export)

    def send(self, address: str, message: Message) -> None:
        """Bring up a peer: with the file that there is or, of a state machine on disk, with one made for it."""
        if not self.on_disk:
            self._services.send_snapshot(address, message, temporary=False)
            return
        point = self._raft.snapshot_point(self._applier.given)
        if point is None or message.to in self._bringing_up:
            self._tell_status(message.to, failed=True)
            return
        self._bringing_up.add(message.to)
        told = self._report(partial(self._send_whole, address, message))
        self._applier.save(SaveRequest(point, told, whole=True))

    def _send_whole(self, address: str, message: Message, written: Snapshot | BaseException) -> None:
        if isinstance(written, Snapshot):
            self._services.send_snapshot(address, replace(message, snapshot=written), temporary=True)
            return
        logger.error("no snapshot could be made for replica %d: %s", message.to, brief(written))
        self.failed += 1
        self.was_sent(message.to, failed=True)

    def was_sent(self, peer: int, *, failed: bool) -> None:
        """A snapshot for a peer arrived, or did not: then it is tried again. From any thread."""

        def tell() -> None:
            self._bringing_up.discard(peer)
            self._tell_status(peer, failed=failed)

        self._call_soon(tell)

    def _tell_status(self, peer: int, *, failed: bool) -> None:
        self._raft.step(Message(MessageType.SNAPSHOT_STATUS, sender=peer, reject=failed, hint=STATUS_DELAY))

    def found_damaged(self, snapshot: Snapshot, error: CorruptData) -> None:
        """The file of a snapshot could not be read whole: take another as soon as there is anything new. From any thread.

        But an older one than the newest may have gone, which is no damage: the newest is sent the next time. Nobody waits
        for what takes the place of a damaged one, so it is a note, not a request: each try to send it finds it again.
        """

        def judge() -> None:
            if self._raft.log.snapshot.payload == snapshot.payload:
                logger.critical("%s", error)
                self._damaged = snapshot.payload
            else:
                logger.info("a newer snapshot took the place of the one that was to be sent: %s", error)

        self._call_soon(judge)

    # -- one that a leader sent ---------------------------------------------------------------------------------

    def received(self, message: Message) -> None:
        """The core was given a leader's snapshot. One that it did not take in is of no use."""
        snapshot = message.snapshot
        if snapshot is None or not snapshot.payload:
            return
        self._received[snapshot.payload.decode()] = snapshot
        if self._raft.log.pending_snapshot is not snapshot:
            self._release(snapshot)

    def install(self, snapshot: Snapshot) -> None:
        """A leader's snapshot is on record: let the state machine load it."""
        if snapshot.witness:
            self._on_loaded(snapshot)
        else:
            self._applier.load(
                LoadRequest(snapshot, lambda: self._call_soon(lambda: self._on_loaded(snapshot)))
            )

    def _on_loaded(self, snapshot: Snapshot) -> None:
        raft = self._raft
        if raft.log.pending_snapshot is snapshot:  # else a newer one is being loaded
            raft.applied(snapshot.index)
            raft.step(Message(MessageType.SNAPSHOT_RECEIVED, sender=raft.id, snapshot=snapshot))
            self._loaded(snapshot)
        for other in [each for each in self._received.values() if each.index <= snapshot.index]:
            self._release(other)

    def _release(self, snapshot: Snapshot) -> None:
        """The host pinned it when it came. The newest stays, all others are of no use any more."""
        name = snapshot.payload.decode()
        del self._received[name]
        newest = self._raft.log.snapshot is snapshot

        def release() -> None:
            if not newest:
                self.files.discard(name)
            self.files.unpin(name)
            if newest:
                self._prune(name)

        self._background.submit(release)

    # -- files, which are for workers ---------------------------------------------------------------------------

    def _prune(self, keep: str) -> None:
        try:
            self.files.prune(keep)
        except StorageFailed as error:
            logger.warning("old snapshots stay for now: %s", error)

    def _in_background(self, action: Callable[[str], None], snapshot: Snapshot) -> None:
        if snapshot.payload:
            self._background.submit(partial(action, snapshot.payload.decode()))

    def stop(self, error: Exception) -> None:
        """The replica is over: nobody is left waiting, and no file is held for it."""
        self._answer(lambda *_: True, error)
        for request in self._exports:
            request.future.try_fail(error)
        for name in self._received:
            self._background.submit(partial(self.files.unpin, name))
        self._received.clear()


def _failure(error: BaseException) -> DrakkarError:
    if isinstance(error, DrakkarError):
        return error
    failed = ActorFailed(f"the snapshot could not be written: {brief(error)}")
    failed.__cause__ = error
    failed.outcome_known = True
    return failed
