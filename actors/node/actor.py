"""`NodeActor`: an inbox around `Raft.step`, and the execution of what `Raft.ready` asks for.

    inbox ─► the table ─► ready() ─┬─► router                                             messages
                                   ├─► persistence ─► log store ─► persisted() ─► router  messages_after_save
                                   └─► applier ─► state machine ─► applied() ─► futures

One turn of the actor is one batch: the messages that wait are stepped, the proposals that wait become one append, and
the work that results is handed out together. Nothing here waits.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Final, Protocol

from drakkar.actors.log.store import AppendRequest
from drakkar.actors.machine.applier import Applied, Applier
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.node import completions
from drakkar.actors.node.clients import Clients
from drakkar.actors.node.completions import EntriesApplied
from drakkar.actors.node.counters import counters_of
from drakkar.actors.node.disk_watch import DiskWatch
from drakkar.actors.node.events import LeaderChanged, MembershipChanged, ReplicaRemoved
from drakkar.actors.node.inbox import NodeInbox, ProposalsTaken, RequestsTaken
from drakkar.actors.node.operators import warn_of_missing_groups
from drakkar.actors.node.peer_snapshots import PeerSnapshots, Streams
from drakkar.actors.node.persistence import Persistence
from drakkar.actors.node.received_snapshots import ReceivedSnapshots
from drakkar.actors.node.removal import Removal
from drakkar.actors.node.router import Router
from drakkar.actors.node.snapshots import SnapshotKeeper, SnapshotServices
from drakkar.actors.node.status import Status, status_of
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.table_actor import TableActor
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.errors import ActorFailed, ReplicaStopped
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.log import Storage
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Changed, Ready
from drakkar.handlers.raft.state import Snapshot, State
from drakkar.handlers.table import HandlerTable

__all__ = ["LOCAL_HANDLERS", "NodeActor", "Services"]

MAX_PORTIONS: Final = 2
"""Portions of committed entries, of `max_apply_bytes` each, that one turn applies on the loop."""


class Services(SnapshotServices, Streams, Protocol):
    """What a host does for its nodes. All of it is called in the loop's thread and never blocks."""

    def send(self, address: str, messages: Sequence[Message]) -> None:
        """Send messages to the host at `address`."""

    def save(self, request: AppendRequest) -> None:
        """Make it durable; raises `SystemBusy` when too much waits."""

    def announce(self, event: object) -> None:
        """Tell those who subscribed to the host's events."""


class NodeActor(TableActor):
    """One replica of one shard. `state` and `handlers` are its Raft's."""

    inbox_capacity: ClassVar[int] = 50_000
    """Messages of other replicas that may wait."""

    actor_inbox: NodeInbox

    def __init__(
        self,
        config: RaftConfig,
        storage: Storage,
        machine: StateMachine,
        *,
        services: Services,
        pool: WorkerPool,
        background: WorkerPool,
        snapshots: Snapshots,
        origin: int,
        max_waiting_commands: int = 10_000,
        max_waiting_bytes: int = 64 << 20,
        max_waiting_reads: int = 10_000,
        groups: Mapping[int, int] = MappingProxyType({}),
        handlers: HandlerTable | None = None,
        now: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        """`origin` is a number of 63 random bits; `now` is the clock of the requests' deadlines, in seconds.

        `max_waiting_commands` and `max_waiting_bytes` bound the lane of proposals, `max_waiting_reads` that of requests.

        Raises `HandlerTableError`, `ConfigError` and `CorruptData` as `Raft` does.
        """
        self.raft = raft = Raft(config, storage, handlers=handlers, random=Random(origin))
        raft.assign_groups(groups)
        inbox = NodeInbox(
            str(self),
            snapshots,
            background,
            max_messages=self.inbox_capacity,
            max_commands=max_waiting_commands,
            max_bytes=max_waiting_bytes,
            max_requests=max_waiting_reads,
        )
        super().__init__(handlers=raft.handlers, inbox=inbox, **kwargs)
        # Only counted, not logged: where the leader has just changed, late messages of correct peers meet a `Never` too.
        self.tally = raft.tally
        self.unheard = 0
        """Messages that came while the disk hung."""
        self.tick_waits = False
        """A tick is in the inbox; the host hands no other one over meanwhile."""
        self._services = services
        self._now = now
        self._applier = Applier(
            machine,
            origin,
            pool,
            self._report_applied,
            snapshots,
            shard_id=config.shard_id,
            background=background,
            may_apply_here=lambda: not inbox.completions,
            compression=config.snapshot_compression,
        )
        self.snapshots = SnapshotKeeper(
            raft,
            self._applier,
            snapshots,
            services=services,
            background=background,
            inbox=inbox,
        )
        self.peer_snapshots = PeerSnapshots(raft, self._applier, streams=services, inbox=inbox)
        self.received_snapshots = ReceivedSnapshots(
            raft,
            self._applier,
            snapshots,
            background=background,
            inbox=inbox,
            loaded=self._on_loaded,
        )
        self.router = Router(raft, send=services.send, send_snapshot=self.peer_snapshots.send)
        self.persistence = Persistence(raft, append=services.save, inbox=inbox, durable=self._on_durable)
        self.disk = DiskWatch(str(self), timeout_ticks=config.election_ticks)
        self.removal = Removal(raft)
        self.clients = Clients(
            raft,
            self._applier,
            self.snapshots,
            inbox,
            disk=self.disk,
            removal=self.removal,
            origin=origin,
            max_waiting_reads=max_waiting_reads,
            now=now,
        )
        self._known_leader = (0, 0)
        self._broken: BaseException | None = None

    @property
    def state(self) -> State:
        """The state of its Raft, which alone changes it."""
        return self.raft.state

    def __str__(self) -> str:
        return f"replica {self.raft.id} of shard {self.raft.config.shard_id}"

    def on_start(self) -> None:
        """Begin where the last life ended."""
        self.snapshots.start()
        self._check_removal()
        warn_of_missing_groups(self.raft)

    # -- the inbox ----------------------------------------------------------------------------------------------

    def on_receive(self, message: Any) -> Any:
        """Take in one message. All that enters a node passes here: to trace its life, look here.

        A message of the protocol goes to the handler table, whose answer is the asker's; one of the node's own host goes
        to its function in `LOCAL_HANDLERS`, by its class. All else is logged as unexpected.
        """
        if type(message) is Message:
            return self._step(message)
        handle = LOCAL_HANDLERS.get(type(message))
        return handle(self, message) if handle is not None else TrioActor.on_receive(self, message)

    def _step(self, message: Message) -> Any:
        if message.type is MessageType.LOCAL_TICK:
            return self._tick()
        if self.disk.hangs:
            self.unheard += 1  # what it answers would pile up behind the disk
            return self.received_snapshots.take(message)
        try:
            answer = self.raft.step(message)
            if message.snapshot is not None:
                self.received_snapshots.take(message)
        except BaseException as error:
            # Half of what it does may be done. An asker is told, but that does not make it whole.
            self._broken = error
            raise
        return answer

    def after_batch(self) -> None:
        """Take what clients ask, and hand out the work that results from the whole batch."""
        if self._broken is not None:
            raise ActorFailed(
                f"{self} stops, since a handler failed: {self._broken!r:.200}"
            ) from self._broken
        for taken in self.clients.take():
            self.on_receive(taken)
        self.clients.ask()
        self._hand_out()
        if self.persistence.stalled is None:
            self.snapshots.consider()
        self.clients.end_batch()
        self._announce_leader()

    # -- time ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.tick_waits = False
        now = self._now()
        self.clients.tick(now)
        self.snapshots.tick(now)
        if self.removal.is_over(self.disk.ticks):
            self.actor_ref.stop(block=False)
        hung = self.disk.hangs
        if self.disk.tick(self.persistence.waits_since):
            # A leader steps down, and no ticks are counted until the write is through: it neither leads nor campaigns.
            if not hung:
                self.raft.step(Message(MessageType.DISK_HUNG, sender=self.raft.id))
            # The news of its removal may wait for the disk too. It holds without: a replica that forgets it asks again.
            self._check_removal()
        else:
            self.raft.tick()

    # -- what goes out ------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Do what `Raft.ready` asks for, until it asks for nothing more or the store has no room.

        A long log to apply is taken in portions, so that others on the loop have their turn.
        """
        stalled = self.persistence.stalled
        if stalled is not None and not self._do(stalled):
            return
        portions = 0
        while self.raft.has_ready and portions < MAX_PORTIONS:
            ready = self.raft.ready()
            portions += bool(ready.committed)
            if not self._do(ready):
                return
        if portions == MAX_PORTIONS:
            self.actor_inbox.wake()
        self.clients.answer()

    def _do(self, ready: Ready) -> bool:
        """Save, send, apply and report; False where the store is full, and everything waits until it has room.

        The write is ordered first, as it takes longest and runs beside the rest. Then entries go out, so that the
        others write them meanwhile; but a client that waits for a result has it before others hear that it is committed.
        """
        if not self.persistence.save(ready, self.disk.ticks):
            return False
        results_first = ready.committed and not any(message.entries for message in ready.messages)
        if not results_first:
            self.router.send(ready.messages)
        if ready.committed:
            self.actor_inbox.reserve()
            self._applier.apply(ready.committed)
        if results_first:
            self.router.send(ready.messages)
        for read in ready.reads:
            self.clients.reads.confirmed(read)
        if ready.log_query is not None:
            self.clients.log_queries.answered(ready.log_query)
        for dropped in ready.dropped:
            self.clients.on_dropped(dropped)
        for change in ready.changes:
            self._on_changed(change)
        return True

    def _on_durable(self, ready: Ready) -> None:
        """What `ready` asked to save is durable."""
        self.raft.persisted(ready)
        if ready.snapshot is not None:
            self.received_snapshots.install(ready.snapshot)
        self.router.send(ready.messages_after_save)

    # -- what comes back ----------------------------------------------------------------------------------------

    def _report_applied(self, outcome: Applied | BaseException) -> None:
        """From the applier: on the loop if the state machine never blocks, else on a worker's thread."""
        if self.actor_loop.in_loop():
            self.actor_inbox.release()
            self.on_receive(EntriesApplied(outcome))
        else:
            self.actor_inbox.complete(EntriesApplied(outcome))

    def _on_applied(self, applied: EntriesApplied) -> None:
        outcome = applied.outcome
        if isinstance(outcome, BaseException):
            raise ActorFailed(f"{self} stops, since its state machine failed: {outcome!r:.200}") from outcome
        index, results = outcome
        self.raft.applied(index)
        self.clients.on_applied(results, self.raft.log.term(index))

    def _on_loaded(self, snapshot: Snapshot) -> None:
        self.clients.on_loaded(snapshot.term)
        self._announce_membership()
        self._check_removal()

    def _on_changed(self, change: Changed) -> None:
        self.clients.on_changed(change)
        if not change.rejected:
            self._announce_membership()
            self._check_removal()

    def _announce_membership(self) -> None:
        raft = self.raft
        warn_of_missing_groups(raft)
        self._services.announce(MembershipChanged(raft.config.shard_id, raft.id, raft.membership))

    def _check_removal(self) -> None:
        """A replica that the shard has removed takes nothing more, says so, and soon ends."""
        news = self.removal.notice(self.disk.ticks)
        if news is not None:
            self.clients.on_removed(news)
            self._services.announce(ReplicaRemoved(self.raft.config.shard_id, self.raft.id))

    def _announce_leader(self) -> None:
        """Tell of a new leader, once the batch is done."""
        now = (self.raft.term, self.raft.leader_id)
        if now != self._known_leader:
            self._known_leader = now
            self._services.announce(LeaderChanged(self.raft.config.shard_id, self.raft.id, *now))
            self.clients.transfers.settle()

    # -- the end ------------------------------------------------------------------------------------------------

    def on_stop(self) -> None:
        """Answer all who wait, and let the log know how far it is committed."""
        self.persistence.save_state_due()
        removed = self.removal.reason
        self._answer_all(f"{self} was stopped" if removed is None else str(removed))

    def on_failure(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Answer all who wait, and say why."""
        self._answer_all(f"{self} failed: {error!r:.200}")

    def _answer_all(self, why: str) -> None:
        stopped = ReplicaStopped(why)
        self.clients.fail_all(stopped)
        self._applier.stop(stopped)
        self.snapshots.stop(stopped)
        self.received_snapshots.stop()

    @property
    def over(self) -> ActorFuture[None]:
        """Set when it has stopped, and no thread touches the state machine any more."""
        return self._applier.over

    # -- for any thread -----------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where the replica stands. May be called from any thread, and returns at once."""
        return status_of(
            self.raft,
            pending_proposals=self.clients.pending_proposals,
            pending_reads=self.clients.pending_reads,
        )

    def counters(self) -> dict[str, int]:
        """What the replica has counted since its start; see `Replica.counters`. May be called from any thread."""
        return counters_of(
            self.raft.tally,
            refusals=self.actor_inbox.refusals,
            unheard=self.unheard,
            undeliverable=self.router.undeliverable,
            failed_snapshots=self.snapshots.failed,
        )


LOCAL_HANDLERS: Final[Mapping[type, Callable[[NodeActor, Any], None]]] = {
    completions.Saved: lambda node, done: node.persistence.on_saved(done),
    completions.EntriesApplied: lambda node, done: node._on_applied(done),
    completions.SnapshotLoaded: lambda node, done: node.received_snapshots.on_loaded(done),
    completions.SnapshotWritten: lambda node, done: node.snapshots.on_written(done),
    completions.SnapshotRecorded: lambda node, done: node.snapshots.on_recorded(done),
    completions.PeerSnapshotWritten: lambda node, done: node.peer_snapshots.on_written(done),
    completions.SnapshotSent: lambda node, done: node.peer_snapshots.on_sent(done),
    completions.SnapshotDamaged: lambda node, done: node.snapshots.on_damaged(done),
    completions.ExportChecked: lambda node, done: node.snapshots.exports.on_checked(done),
    completions.ExportWritten: lambda node, done: node.snapshots.exports.on_written(done),
    completions.ExportEnded: lambda node, done: node.snapshots.exports.on_ended(done),
    ProposalsTaken: lambda node, taken: node.clients.propose(taken),
    RequestsTaken: lambda node, taken: node.clients.request(taken),
}
"""What a node does with each message of its own host: all that enters it beside the protocol's messages."""
