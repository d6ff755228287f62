"""`NodeActor`: an inbox around `Raft.step`, and the execution of what `Raft.ready` asks for.

    inbox ─► the table ─► ready() ─┬─► router                                             messages
                                   ├─► persistence ─► log store ─► persisted() ─► router  messages_after_save
                                   └─► applier ─► state machine ─► applied() ─► futures

One turn of the actor is one batch: the messages that wait are stepped, the proposals that wait become one append, and
the work that results is handed out together. Nothing here waits.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Final, Protocol, cast

import pykka
from drakkar.actors.log.store import AppendRequest
from drakkar.actors.machine.applier import Applied, Applier, Hang
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.node import completions
from drakkar.actors.node.asks import Asks
from drakkar.actors.node.clients import Clients
from drakkar.actors.node.completions import EntriesApplied
from drakkar.actors.node.counters import counters_of
from drakkar.actors.node.departure import Departure, Leave
from drakkar.actors.node.disk_watch import DiskWatch, tell_of_room
from drakkar.actors.node.effects import EffectRunner
from drakkar.actors.node.events import AddressChanged, LeaderChanged, MembershipChanged, ReplicaRemoved
from drakkar.actors.node.extension_states import ExtensionStates
from drakkar.actors.node.inbox import NodeInbox, OwnMessagesTaken, ProposalsTaken, RequestsTaken
from drakkar.actors.node.introductions import (
    TERM_JUMP,
    Founding,
    Introduced,
    Introductions,
    IntroductionServices,
)
from drakkar.actors.node.operators import warn_of_missing_groups
from drakkar.actors.node.peer_snapshots import PeerSnapshots, Streams
from drakkar.actors.node.persistence import Persistence
from drakkar.actors.node.proposed import (
    MAX_COMMAND_BYTES,
    Bounds,
    Examined,
    ProposalExamined,
    Proposed,
    Verdict,
)
from drakkar.actors.node.received_snapshots import ReceivedSnapshots
from drakkar.actors.node.refusals import state_machine_failure
from drakkar.actors.node.removal import Removal
from drakkar.actors.node.router import Router
from drakkar.actors.node.snapshots import SnapshotKeeper, SnapshotServices
from drakkar.actors.node.state_lines import StateLines
from drakkar.actors.node.status import Ended, Status, status_of
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import ActorFuture, in_full
from drakkar.actors.runtime.handling import log_failure
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.actors.runtime.waits import Owner
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.errors import ActorFailed, ExtensionFailed, MissingExtension, ReplicaStopped
from drakkar.handlers.messages import Message, MessageType, is_own
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.log import Storage
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.raft.proposals import refuse_with
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Changed, Ready, Refusal
from drakkar.handlers.raft.room_watch import RoomWatch
from drakkar.handlers.raft.state import Snapshot, State
from drakkar.handlers.table import HandlerTable
from pykka._envelope import Envelope

__all__ = ["LOCAL_HANDLERS", "NodeActor", "Services"]

_HEARD_ALWAYS: Final = frozenset(
    {MessageType.ENTRIES_LOADED, MessageType.LANE_DRAINED, MessageType.NOT_SENT, MessageType.UNREACHABLE}
)
"""What a node's own host tells once: it is heard while the disk hangs too, since it makes nothing that waits
for the disk."""
_REFUSALS: Final = {
    Verdict.TOO_LARGE: Refusal.TOO_LARGE,
    Verdict.TOO_MANY: Refusal.TOO_MANY_UNCOMMITTED,
    Verdict.KIND_MISSING: Refusal.KIND_MISSING,
}
WORK_OF_A_MESSAGE: Final = 8 << 10
"""Bytes of commands that are decoded in about the time for which a useless message is charged."""
MAX_PORTIONS: Final = 2
"""Portions of committed entries, of `max_apply_bytes` each, that one turn applies on the loop."""


class Services(SnapshotServices, Streams, IntroductionServices, Protocol):
    """What a host does for its nodes. All of it is called in the loop's thread and never blocks."""

    def send(self, address: str, messages: Sequence[Message]) -> None:
        """Send messages to the host at `address`."""

    def recall(self, address: str, message: Message) -> None:
        """Drop what equals a message that was given to `send`, and is not bulk, where it still waits on this host."""

    def reachable(self, address: str) -> bool:
        """Return whether the host at `address` is connected, or was not tried yet."""
        ...

    def lane_room(self, address: str, shard: int, least: int) -> int:
        """Return how many bytes of bulk messages of a shard may be sent to the host at `address` now; see `Lanes.room`.

        They are `least` or more, or 0. Where it is 0, the node is told by LANE_DRAINED when there is room.
        """
        ...

    def lane_waiting(self, address: str, shard: int) -> int:
        """Return how many bulk messages of a shard were given to `send` and have not left; see `Lanes.waiting`."""
        ...

    def charge(self, address: str, count: int) -> None:
        """Charge the host at `address` for so many of its messages that were of no use: see `transport.budgets`."""

    def save(self, request: AppendRequest) -> None:
        """Make it durable; raises `SystemBusy` when too much waits."""

    def written(self) -> int:
        """Return how many writes of the log the disk has done so far, those of other replicas too."""
        ...

    def room(self, size: int) -> bool:
        """Return whether `size` bytes of entries, as `Entries.size` counts, can be saved beside all that was given to `save`.

        False is no failure: a full disk refuses and recovers. What a replica must write all the same, a term or a vote or
        the first entry of a term, is saved from a reserve, without asking.
        """

    def commit_untold(self, shard_id: int, *, untold: bool) -> None:
        """Send the node COMMIT_DUE about a millisecond from now, or no more.

        Before, set its `notice_waits` to False.
        """

    def announce(self, event: object) -> None:
        """Tell those who subscribed to the host's events."""


class NodeActor(TrioActor):
    """One replica of one shard. Its node, which handlers are given, is its `Raft`; `state`, `handlers` and `tally` are that one's."""

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
        max_command_bytes: int = MAX_COMMAND_BYTES,
        groups: Mapping[int, int] = MappingProxyType({}),
        home: int = 0,
        founding: Founding = Founding(),  # noqa: B008  # immutable
        handlers: HandlerTable | None = None,
        log_memory: LogMemory | None = None,
        tick_interval: float = math.inf,
        now: Callable[[], float] = time.monotonic,
        host_lines: HostLines | None = None,
        **kwargs: Any,
    ) -> None:
        """`origin` is a number of 63 random bits; `now` is the clock of the requests' deadlines, in seconds.

        `tick_interval` is in seconds of that clock.
        `log_memory` is shared by the nodes of a host, and bounds what their logs keep in memory.
        `max_waiting_commands` and `max_waiting_bytes` bound the lane of proposals, `max_waiting_reads` that of requests.
        `max_command_bytes`: other replicas' proposals of larger commands are refused.
        `host_lines` writes the log lines of its host.
        `home` is the number of its host, as in `Raft`, and `founding` tells how its shard was founded.

        Raises `HandlerTableError`, `ConfigError` and `CorruptData` as `Raft` does.
        """
        self.raft = raft = Raft(
            config, storage, handlers=handlers, random=Random(origin), memory=log_memory, home=home
        )
        raft.assign_groups(groups)
        host_lines = host_lines or HostLines()
        self.lines = lines = host_lines.of("drakkar.actors.node", config.shard_id, raft.id)
        inbox = NodeInbox(
            str(self),
            snapshots,
            background,
            max_messages=self.inbox_capacity,
            max_commands=max_waiting_commands,
            max_bytes=max_waiting_bytes,
            max_requests=max_waiting_reads,
            max_age=config.election_ticks * tick_interval,
            now=now,
        )
        super().__init__(inbox=inbox, **kwargs)
        self.handlers = raft.handlers
        # Only counted, not logged: where the leader has just changed, late messages of correct peers meet a `Never` too.
        self.tally = raft.tally
        self.unheard = 0
        """Messages that came while the disk hung."""
        self.tick_waits = False
        """A tick is in the inbox; the host hands no other one over meanwhile."""
        self.notice_waits = False
        """COMMIT_DUE is to come from the host, and is not here yet."""
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
            lines=host_lines.of("drakkar.actors.machine", config.shard_id, raft.id),
        )
        self.extension_states = ExtensionStates(raft)
        self.snapshots = SnapshotKeeper(
            raft,
            self._applier,
            snapshots,
            services=services,
            background=background,
            inbox=inbox,
            lines=lines,
            extensions=self.extension_states,
        )
        self.peer_snapshots = PeerSnapshots(
            raft,
            self._applier,
            streams=services,
            inbox=inbox,
            lines=lines,
            extensions=self.extension_states,
        )
        self.received_snapshots = ReceivedSnapshots(
            raft,
            self._applier,
            snapshots,
            background=background,
            inbox=inbox,
            lines=lines,
            extensions=self.extension_states,
            loaded=self._on_loaded,
        )
        self.router = raft.lanes = Router(raft, services, send_snapshot=self.peer_snapshots.send, lines=lines)
        self.persistence = Persistence(raft, append=services.save, inbox=inbox, durable=self._on_durable)
        self.disk = DiskWatch(lines, timeout_ticks=config.election_ticks)
        self.room = RoomWatch(raft, services.room, changed=lambda full: tell_of_room(raft, lines, full=full))
        self.introductions = Introductions(
            raft, founding, services=services, lines=lines, now=now, router=self.router
        )
        self.removal = Removal(raft, lines)
        self.state_lines = StateLines(raft, lines)
        self.clients = Clients(
            raft,
            self._applier,
            self.snapshots,
            inbox,
            disk=self.disk,
            room=self.room,
            removal=self.removal,
            lines=lines,
            origin=origin,
            max_waiting_reads=max_waiting_reads,
            now=now,
            slow_turn=lambda: self.actor_loop.slow_turn,
        )
        self.asks = Asks(
            raft,
            inbox,
            step=self._step,
            reason_to_refuse=self.clients.reason_to_refuse_all,
            now=now,
        )
        self.effects = EffectRunner(raft, self.asks, announce=services.announce, lines=lines)
        self.proposed = Proposed(
            raft,
            Bounds.of(max_command_bytes, config.max_message_bytes),
            pool=pool,
            inbox=inbox,
            judged=self._on_proposal_judged,
        )
        self.departure = Departure(raft)
        self._known_leader = (0, 0)
        self._known_address = raft.membership.addresses.get(raft.id, "")
        self._broken: BaseException | None = None
        """Why it must end, though an asker may have been told."""
        self._outlived: BaseException | None = None
        """The last exception of a handler that does not end it."""
        self._ended: Ended | None = None

    @property
    def state(self) -> State:
        """The state of its Raft, which alone changes it."""
        return self.raft.state

    def __str__(self) -> str:
        return f"replica {self.raft.id} of shard {self.raft.config.shard_id}"

    def on_start(self) -> None:
        """Begin where the last life ended."""
        self.state_lines.started(type(self._applier.machine).__name__)
        self.snapshots.start()
        self.introductions.start()
        self._check_removal()
        warn_of_missing_groups(self.raft, self.lines)

    # -- the inbox ----------------------------------------------------------------------------------------------

    def on_receive(self, message: Any) -> Any:
        """Take in one message. All that enters a node passes here: to trace its life, look here.

        A message of the protocol goes to the handler table, whose answer is the asker's; one of the node's own host goes
        to its function in `LOCAL_HANDLERS`, by its class. All else is logged as unexpected.
        """
        if type(message) is Message:
            if not message.sender and is_own(message.type):
                self.asks.put(message, None)
                return None
            return self._step(message)
        handle = LOCAL_HANDLERS.get(type(message))
        return handle(self, message) if handle is not None else TrioActor.on_receive(self, message)

    def _actor_answer(self, message: Any, reply_to: pykka.Future[Any]) -> None:
        """Let a message of the application's own type that was asked by pykka's `ask` be answered later, as by `Replica.ask`."""
        if type(message) is Message and is_own(message.type):
            self.asks.put(message, cast("ActorFuture[Any]", reply_to))
        else:
            super()._actor_answer(message, reply_to)

    def _step(self, message: Message) -> Any:
        if message.type is MessageType.LOCAL_TICK:
            return self._tick()
        if message.type.traits.perishable and self.actor_inbox.waited_too_long(message):
            return None
        if message.sender and self.introductions.refuses(message):
            if message.entries:
                self.actor_inbox.taken(message)
            self._charge(message)
            return self.received_snapshots.take(message)
        if message.type is MessageType.PROPOSE and message.sender not in {0, self.raft.id}:
            return self.proposed.take(message)
        return self._step_core(message)

    def _on_proposal_judged(self, message: Message, found: Examined) -> Any:
        if found.verdict is Verdict.SOUND:
            return self._step_core(message)
        self.actor_inbox.taken(message)
        if found.verdict is Verdict.POISON:
            self.raft.fault("proposed what no replica could apply")
            self._charge(message, 1 + found.work // WORK_OF_A_MESSAGE)
        else:
            refuse_with(self.raft, message, _REFUSALS[found.verdict])
        return None

    def _step_core(self, message: Message) -> Any:
        """Let the core answer a message that this replica takes."""
        if message.entries:
            self.actor_inbox.taken(message)
        if self.disk.hangs and message.type not in _HEARD_ALWAYS:
            self.unheard += 1  # what it answers would pile up behind the disk
            return self.received_snapshots.take(message)
        term = self.raft.term
        try:
            self.room.judge(message.entries)
            dropped, life = self.tally.dropped, self.introductions.unwelcome(message)
            answer = self.raft.step(message, life)
            of_stranger = life is not None and message.sender != self.raft.leader_id
            if self.tally.dropped != dropped or of_stranger:
                self._charge(message)
            if message.snapshot is not None:
                self.received_snapshots.take(message)
        except BaseException as error:
            self._on_handler_failed(message, error)
            raise
        if self.raft.term > term + TERM_JUMP and self.raft.log.last_index:
            self.introductions.tell_of_jump(message, term)
        return answer

    def _charge(self, message: Message, count: int = 1) -> None:
        """Have the host that sent a message charged, as it was of no use: as for so many messages."""
        # That a shard falls asleep is told by a message that a guard takes.
        if message.type.traits.local or message.type is MessageType.QUIESCE:
            return
        address = self.introductions.address_of(message.sender)
        if address is not None:
            self._services.charge(address, count)

    def _on_handler_failed(self, message: Message, error: BaseException) -> None:
        """Go on where only a handler of the application's own type failed, and its table does not forbid it."""
        own = is_own(message.type) and isinstance(error, Exception)
        if not own or self.tally.broken is not None:
            # Half of what it does may be done. An asker is told, but that does not make it whole.
            self._broken = self._broken or error
            return
        self._outlived = error
        log_failure("it", self.tally, message.type, error, self.lines)

    def outlives(self, error: Exception) -> bool:
        """Tell whether only a handler of the application's own has failed."""
        outlived, self._outlived = self._outlived, None
        return outlived is error

    def after_batch(self) -> None:
        """Take what clients ask, and hand out the work that results from the whole batch."""
        self._outlived = None
        self._check_unbroken()
        for taken in (*self.clients.take(), self.asks.waiting()):
            if taken is not None:
                self.on_receive(taken)
        self._check_unbroken()
        self.clients.ask()
        if self.departure.under_way:
            self.departure.proceed()
        self._hand_out()
        if self.persistence.stalled is None:
            self.snapshots.consider()
        self._ask_for_notice()
        self.clients.end_batch()
        self.state_lines.compare()
        self.introductions.look()
        self._announce_leader()

    def _check_unbroken(self) -> None:
        """Hand nothing out of a batch in which a handler has failed that had to do all or nothing."""
        broken = self._broken or self.tally.broken  # a wrapper may have caught what its inner handler raised
        if broken is not None:
            raise ActorFailed(f"{self} stops, since a handler failed: {in_full(broken)}") from broken

    # -- time ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.tick_waits = False
        now = self._now()
        self.clients.tick(now)
        self.asks.expire(now)
        self.snapshots.tick(now)
        self.room.tick()
        self.state_lines.tick()
        hung = self.disk.hangs
        if self.removal.is_over(hung=hung):
            self.actor_ref.stop(block=False)
        if self.disk.tick(self.persistence.waits_since, self._services.written()):
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
            self.effects.run_waiting()
            return
        portions = 0
        while self.raft.has_ready and portions < MAX_PORTIONS:
            ready = self.raft.ready()
            portions += bool(ready.committed)
            if not self._do(ready):
                return
        self.room.saved()
        if portions == MAX_PORTIONS:
            self.actor_inbox.wake()
        self.clients.answer()

    def _ask_for_notice(self) -> None:
        """Have the peers told of the last commit soon, unless an append does so before."""
        untold = self.raft.commit_untold
        if untold is not self.notice_waits:
            self.notice_waits = untold
            self._services.commit_untold(self.raft.config.shard_id, untold=untold)

    def _do(self, ready: Ready) -> bool:
        """Save, send, apply and report; False where the store is full, and everything waits until it has room.

        The write is ordered first, as it takes longest and runs beside the rest. Then entries go out, so that the
        others write them meanwhile; but a client that waits for a result has it before others hear that it is committed.
        """
        self.effects.run(ready)
        self.router.recall(ready.recalled)
        # Once only: while the store is full this is called again, and by then an equal order may have been sent anew.
        ready.recalled = []
        self.router.hold(ready.messages_after_save)
        if not self.persistence.save(ready, self.disk.ticks):
            self.router.hold(ready.messages)
            return False
        results_first = ready.committed and not any(message.entries for message in ready.messages)
        if not results_first:
            self.router.send(ready.messages)
        if ready.committed:
            self.actor_inbox.reserve()
            self.snapshots.given(ready.committed)
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
        for warning in ready.warnings:
            self.lines.warning("%s", warning)
        return True

    def _on_durable(self, ready: Ready) -> None:
        """What `ready` asked to save is durable."""
        self.raft.persisted(ready)
        if ready.lives is not None:
            self.introductions.on_durable(ready.lives)
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
            raise state_machine_failure(str(self), outcome)
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
        warn_of_missing_groups(raft, self.lines)
        self.state_lines.members()
        self._services.announce(MembershipChanged(raft.config.shard_id, raft.id, raft.membership))
        before, after = self._known_address, raft.membership.addresses.get(raft.id, "")
        self._known_address = after or before
        if before and after and before != after:
            self._services.announce(AddressChanged(raft.config.shard_id, raft.id, before, after))
            self.departure.move()

    def _check_removal(self) -> None:
        """A replica that the shard has removed takes nothing more, says so, and soon ends."""
        news = self.removal.notice()
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
        """Answer all who wait, and let the peers and the log know how far it is committed."""
        self._tell_of_commits()
        self.persistence.save_state_due()
        removed = self.removal.reason
        self._end_life(f"{self} was stopped" if removed is None else str(removed))

    def _tell_of_commits(self) -> None:
        if self.raft.commit_untold and self.persistence.stalled is None:
            self.raft.step(Message(MessageType.COMMIT_DUE, sender=self.raft.id))
            self.router.send(self.raft.ready().messages)

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del exception_type, traceback
        if exception_value is not None:
            self.lines.error("ended, since it failed: %s", in_full(exception_value), exc_info=exception_value)

    def on_failure(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Answer all who wait, and say why."""
        if isinstance(error, ActorFailed):
            self._end_life(str(error), error)  # it says itself what has ended
        elif isinstance(error, ExtensionFailed | MissingExtension):
            self._end_life(f"{self} stops: {error}", error)
        elif error is not None:
            self._end_life(f"{self} failed: {in_full(error)}", error)

    def _end_life(self, why: str, error: BaseException | None = None) -> None:
        """Say that it has ended, to all who ask from now on, to the host's subscribers, and to all who wait."""
        if self._ended is None or error is not None:
            self._ended = Ended(time.time(), why, error)
        term, leader = self._known_leader
        if leader:
            self._known_leader = (term, 0)
            self._services.announce(
                LeaderChanged(self.raft.config.shard_id, self.raft.id, *self._known_leader)
            )
        self.departure.end()
        stopped = ReplicaStopped(why)
        stopped.__cause__ = error
        self.clients.fail_all(stopped)
        self.asks.fail_all(stopped)
        self._applier.stop(stopped)
        self.extension_states.stop(stopped)
        self.snapshots.stop(stopped)
        self.received_snapshots.stop()
        self.raft.log.let_go()

    def leave(self) -> ActorFuture[bool]:
        """Hand over if this replica leads, since it is to stop; see `Departure.over`. For the loop's thread."""
        if not self.actor_inbox.closed:
            self.actor_inbox.reserve()
            self.actor_inbox.complete(Leave())
        return self.departure.over

    @property
    def owner(self) -> Owner:
        """The owner of its clients' futures."""
        return self._applier.owner

    @property
    def over(self) -> ActorFuture[None]:
        """Set when it has stopped, and no thread touches the state machine any more."""
        return self._applier.over

    def entries_loaded(self) -> None:
        """The log has read what `Storage.runs` did not wait for. For the loop's thread."""
        self.hear(Message(MessageType.ENTRIES_LOADED, sender=self.raft.id))

    def hear(self, report: Message) -> None:
        """Take in what its own host tells it once, of the log or a connection: never refused. For the loop's thread.

        What waits is bounded by what the node has asked for, and by the connections that are lost.
        """
        self.actor_inbox.reserve()
        self.actor_inbox.complete(report)

    def hear_last(self, report: Message) -> None:
        """Take in what its own host tells it once, behind all messages that wait. For the loop's thread.

        Raises `SystemBusy`, and counts it as refused, where the inbox has no room even for that; and
        `pykka.ActorDeadError` where the replica has ended.
        """
        self.actor_inbox.put_last(Envelope(report))

    def refuse_untaken(self, message: Message) -> None:
        """Tell a member that what it proposes has no effect, as the inbox could not take it. For the loop's thread.

        All else that finds no room is sent again: appends, heartbeats, votes. Where nothing can be sent now, the proposer
        hears nothing either, and its client waits until its timeout.
        """
        if message.type is MessageType.PROPOSE and self.persistence.stalled is None and not self.disk.hangs:
            refuse_with(self.raft, message, _REFUSALS[Verdict.TOO_MANY])
            self.actor_inbox.wake()

    # -- for any thread -----------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where the replica stands. May be called from any thread, and returns at once."""
        return status_of(
            self.raft,
            pending_proposals=self.clients.pending_proposals,
            pending_reads=self.clients.pending_reads,
            refused=self.introductions.refused,
            hang=self.hang,
            ended=self._ended,
        )

    @property
    def hang(self) -> Hang | None:
        """What its state machine has not returned from for long; None while it does not hang. From any thread."""
        return self._applier.hang

    def abandon(self, why: str) -> None:
        """Say from now on that it has ended: its loop hangs while its host stops. May be called from any thread."""
        self._ended = self._ended or Ended(time.time(), why, None)

    def counters(self) -> dict[str, int]:
        """What the replica has counted since its start; see `Replica.counters`. May be called from any thread."""
        return counters_of(
            self.raft.tally,
            refusals=self.actor_inbox.refusals,
            unheard=self.unheard,
            expired=self.actor_inbox.expired,
            faults=self.raft.faults,
            room=self.raft.room,
            not_loaded=self.raft.log.not_loaded,
            undeliverable=self.router.undeliverable,
            refused_lives=self.introductions.dropped,
            not_allowed=self.introductions.not_allowed,
            failed_snapshots=self.snapshots.failed,
            unasked=self.asks.open.unasked,
            undelivered=self.effects.teller.undelivered,
            records_refused=self.clients.records_refused,
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
    ProposalExamined: lambda node, done: node.proposed.on_examined(done),
    Leave: lambda node, _: node.departure.begin(),
    Introduced: lambda node, said: node.introductions.take(said),
    ProposalsTaken: lambda node, taken: node.clients.propose(taken),
    RequestsTaken: lambda node, taken: node.clients.request(taken),
    OwnMessagesTaken: lambda node, taken: node.asks.take(taken),
}
"""What a node does with each message of its own host: all that enters it beside the protocol's messages."""
