"""`NodeActor`: a mailbox around `Raft.step`, and the hands that do what `Raft.ready` asks for.

    inbox ─► the table ─► ready() ─┬─► transport                                      messages
                                   ├─► log store ─► persisted() ─► transport          messages_after_save
                                   └─► state machine ─► applied() ─► futures

One turn of the actor is one batch: the messages that wait are stepped, the proposals that wait become one append, and
what comes of it is handed out together. Nothing here waits.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, ClassVar, Final, Protocol

import pykka
from drakkar.actors.log.store import AppendRequest
from drakkar.actors.machine.applier import Applied, Applier
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.node.events import LeaderChanged, MembershipChanged, ReplicaRemoved
from drakkar.actors.node.proposals import PendingProposals, ProposalQueue
from drakkar.actors.node.reads import ReadRequest, ReadRequests, RequestQueue
from drakkar.actors.node.snapshots import SnapshotKeeper, SnapshotRequest, SnapshotServices
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.table_actor import TableActor
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.errors import (
    ActorFailed,
    DrakkarError,
    MembershipRejected,
    NotLeader,
    OutcomeUnknown,
    ReplicaStopped,
    RequestDropped,
    SystemBusy,
    TransferInProgress,
)
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import Entries, EntryKind
from drakkar.handlers.raft.log import Storage
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Changed, Dropped, Ready, Refusal
from drakkar.handlers.raft.state import HardState, Snapshot, State
from drakkar.handlers.table import HandlerTable

__all__ = ["AppliedRequest", "Itself", "NodeActor", "Services", "Status", "TransferRequest"]

logger = logging.getLogger(__name__)


_PORTIONS: Final = 2
"""Portions of committed entries, of `max_apply_bytes` each, that one turn applies on the loop."""

_MOST_PENDING: Final = 1 << 20
"""Commands that may be on their way from here; the log's own bounds, at the leader, come first as a rule."""

_COMMANDS: Final = frozenset({int(EntryKind.COMMAND), int(EntryKind.ENCODED), int(EntryKind.SESSION)})
"""The kinds of entries that the state machine answers."""

_MOST_TRANSFERS: Final = 1_000
_MOST_STRANGERS: Final = 100
"""Addresses to remember of replicas that the membership does not list."""


_LINGER: Final = 4
"""Election timeouts for which a removed replica stays: others may need its vote to learn that it was removed."""


class Services(SnapshotServices, Protocol):
    """What a host does for its nodes. All of it is called in the loop's thread and never blocks."""

    def send(self, address: str, messages: Sequence[Message]) -> None:
        """Send messages to the host at `address`."""

    def save(self, request: AppendRequest) -> None:
        """Make it durable; raises `SystemBusy` when too much waits."""

    def announce(self, event: object) -> None:
        """Tell those who subscribed to the host's events."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a replica stands, as of a moment ago."""

    shard_id: int
    replica_id: int
    state: State
    term: int
    leader_id: int
    """0: no leader is known."""
    commit: int
    applied: int
    first_index: int
    last_index: int
    voters: tuple[int, ...]
    observers: tuple[int, ...]
    witnesses: tuple[int, ...]
    addresses: dict[int, str]
    pending_proposals: int
    pending_reads: int
    match: dict[int, int]
    """At a leader: how far each replica is known to hold the log."""


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """Ask for `target` to become leader; `future` is set once this replica sees it lead."""

    target: int
    future: ActorFuture[Any]
    deadline: float


@dataclass(frozen=True, slots=True)
class AppliedRequest:
    """Wait until all up to `index` is applied here; `future` is set to how far it is."""

    index: int
    future: ActorFuture[Any]
    deadline: float


class Itself:
    """Ask a node for itself: for the host that started it."""


class _Wake:
    """Proposals wait in the queue."""


WAKE = _Wake()


class NodeActor(TableActor):
    """One replica of one shard. `state` and `handlers` are its Raft's."""

    inbox_capacity: ClassVar[int] = 50_000

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
        proposals: Callable[[Callable[[], None]], ProposalQueue],
        max_waiting_reads: int = 10_000,
        handlers: HandlerTable | None = None,
        now: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        """`origin` is a number of 63 random bits; `proposals` makes the queue that clients put into.

        `now` is the clock of the requests' deadlines, in seconds.

        Raises `HandlerTableError`, `ConfigError` and `CorruptData` as `Raft` does.
        """
        self.raft = Raft(config, storage, handlers=handlers, random=Random(origin))
        super().__init__(state=self.raft.state, handlers=self.raft.handlers, **kwargs)
        self.queue = proposals(self._wake)
        self.requests: RequestQueue[ReadRequest | TransferRequest | SnapshotRequest | AppliedRequest] = (
            RequestQueue(self._wake, max_requests=max_waiting_reads)
        )
        """Reads, transfers and snapshots that clients ask for."""
        self.undeliverable = 0
        """Messages for replicas whose address is not known."""
        self.unheard = 0
        """Messages that came while the disk hung."""
        self._max_reads = max_waiting_reads
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
            may_apply_here=lambda: not self._reports,
            compression=config.snapshot_compression,
        )
        self.snapshots = SnapshotKeeper(
            self.raft,
            self._applier,
            snapshots,
            services=services,
            background=background,
            call_soon=self._call_soon,
            loaded=self._on_loaded,
        )
        self._pending = PendingProposals(origin, max_run_bytes=config.max_message_bytes)
        self._reads = ReadRequests(origin, patience=config.election_ticks, ask=self._ask_read)
        self._transfers: list[tuple[TransferRequest, int]] = []
        """What clients wait for, each with the term in which they asked."""
        self._to_be_applied: list[AppliedRequest] = []
        self._reports: deque[Callable[[], None]] = deque()
        self._unsaved: deque[tuple[Ready, int]] = deque()
        """Handed out and not yet durable, with the tick of it; in order."""
        self._stalled: Ready | None = None
        """What the store had no room for; nothing else goes out before it."""
        self._stalled_since = 0
        self._age = 0
        """Ticks of the host's clock, counted even while the disk hangs."""
        self._hung = False
        self._state_due: HardState | None = None
        """Handed out and not worth a write of its own: it goes with the next one."""
        self._known_leader = (0, 0)
        self._applied_term = self._settled_term = 0
        """The term of the newest entry that is applied, and up to which it is known what became of older ones."""
        self._strangers: dict[int, str] = {}
        self._broken: BaseException | None = None
        self._removed: ReplicaStopped | None = None
        """Why nothing is taken any more: the shard goes on without this replica."""
        self._leaves_at = 0
        self._actions: dict[type, Callable[[Any], Any]] = {
            Message: self._step,
            _Wake: lambda _: None,
            Itself: lambda _: self,
        }

    def __str__(self) -> str:
        return f"replica {self.raft.id} of shard {self.raft.config.shard_id}"

    def on_start(self) -> None:
        """Begin where the last life ended."""
        self.snapshots.start()
        self._see_whether_removed()

    # -- the inbox ----------------------------------------------------------------------------------------------

    def on_receive(self, message: Any) -> Any:
        """Step a message of the protocol; others go the way of unexpected ones."""
        action = self._actions.get(type(message))
        if action is None:
            return super().on_receive(message)
        return action(message)

    def _step(self, message: Message) -> None:
        if message.type is MessageType.LOCAL_TICK:
            self._tick()
        elif self._hung:
            self.unheard += 1  # what it answers would pile up behind the disk
            self.snapshots.received(message)
        else:
            try:
                self.raft.step(message)
                if message.snapshot is not None:
                    self.snapshots.received(message)
            except BaseException as error:
                # Half of what it does may be done. Somebody who asked is told, but that does not make it whole.
                self._broken = error
                raise

    def note_address(self, replica: int, address: str) -> None:
        """A message of `replica` came from that host. In the loop's thread.

        One that joins must answer a leader that it does not know of yet.
        """
        strangers = self._strangers
        if replica not in strangers and len(strangers) >= _MOST_STRANGERS:
            del strangers[next(iter(strangers))]
        strangers[replica] = address

    def after_batch(self) -> None:
        """Take what clients ask, and hand out what came of the whole batch."""
        if self._broken is not None:
            raise ActorFailed(
                f"{self} stops, since a handler failed: {self._broken!r:.200}"
            ) from self._broken
        self._take_reports()
        self._propose()
        self._take_requests()
        if not self._must_wait_for_a_leader():
            self._reads.start(self.raft.ticks)
        self._hand_out()
        if self._stalled is None:
            self.snapshots.consider()
        if self._to_be_applied:
            self._tell_applied()
        self._notice()

    # -- time ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.tick_waits = False
        self._take_reports()  # before the disk is judged
        now = self._now()
        no_leader = NotLeader(self.raft.id, 0, "no leader was known by the deadline: repeat it")
        self.queue.expire(now, no_leader)
        self._pending.expire(now)
        self._reads.expire(now, self.raft.ticks, None if self.raft.leader_id else no_leader)
        self._expire_transfers(now)
        self.snapshots.tick(now)
        if self._removed is not None and self._age >= self._leaves_at:
            self.actor_ref.stop(block=False)
        if self._disk_hangs():
            # The news of its removal may wait for the disk too. It holds without: who forgets it is told again.
            self._see_whether_removed()
        else:
            self.raft.tick()

    def _disk_hangs(self) -> bool:
        """A write that takes longer than an election timeout: then this host is as good as dead, and must not lead.

        Writes are off the loop, so a leader whose disk hangs would go on sending heartbeats, and nobody else would
        be elected. It steps down, and counts no ticks until the write is through: it neither leads nor campaigns.
        """
        self._age += 1
        since = self._stalled_since if self._stalled is not None else self._age
        if self._unsaved:
            since = min(since, self._unsaved[0][1])
        hangs = self._age - since > self.raft.config.election_ticks
        if hangs and not self._hung:
            logger.error("%s: the disk has not finished a write for an election timeout", self)
            if self.raft.state is State.LEADER:
                self.raft.become_follower(self.raft.term, 0)
        elif self._hung and not hangs:
            logger.warning("%s: the disk writes again", self)
        self._hung = hangs
        return hangs

    # -- what comes in from clients -----------------------------------------------------------------------------

    def _propose(self) -> None:
        if self._must_wait_for_a_leader():
            return
        proposals = self.queue.take()
        if not proposals:
            return
        refusal = self._unfit() or self._too_busy()
        if refusal is not None:
            for proposal in proposals:
                proposal.future.try_fail(refusal)
            return
        for run in self._pending.add(proposals, self._now(), self.raft.term):
            self.raft.step(Message(MessageType.PROPOSE, sender=self.raft.id, entries=Entries([run])))

    def _must_wait_for_a_leader(self) -> bool:
        """Requests wait for a leader as long as their deadline allows, in the queues that bound them."""
        return not self.raft.leader_id and self._unfit() is None

    def _unfit(self) -> DrakkarError | None:
        """Why this replica can take no request at all, if so."""
        if self._removed is not None:
            return self._removed
        if self._hung:
            return SystemBusy("the disk of this host hangs, or is very slow: ask another replica")
        if self.raft.state is State.WITNESS:
            return RequestDropped(f"{self} is a witness, which keeps no commands: ask another replica")
        return None

    def _too_busy(self) -> SystemBusy | None:
        if self.raft.rate_limit.limited:
            return SystemBusy(
                "the state machine, here or on a follower, is too far behind: wait and propose again"
            )
        if len(self._pending) >= _MOST_PENDING:
            return SystemBusy(
                f"{len(self._pending)} commands are on their way: wait for some, and propose again"
            )
        return None

    def _take_requests(self) -> None:
        requests = self.requests.take()
        if not requests:
            return
        unfit = self._unfit()
        stale: list[ReadRequest] = []
        for request in requests:
            if isinstance(request, AppliedRequest):
                self._on_applied_request(request)
            elif unfit is not None:
                request.future.try_fail(unfit)
            elif isinstance(request, TransferRequest):
                self._on_transfer(request)
            elif isinstance(request, SnapshotRequest):
                self.snapshots.request(request)
            elif len(self._reads) + self._applier.unanswered + len(stale) >= self._max_reads:
                request.future.try_fail(
                    SystemBusy(
                        f"{self._max_reads} reads wait for an answer already: wait a little and ask again"
                    )
                )
            elif request.stale:
                stale.append(request)
            else:
                self._reads.add(request)
        if stale:
            self._query(stale)

    def _query(self, reads: list[ReadRequest]) -> None:
        self._applier.query([(read.query, read.future) for read in reads])
        self._reads.asked(reads)

    def _ask_read(self, hint: int, hint_high: int) -> None:
        self.raft.step(Message(MessageType.READ_INDEX, sender=self.raft.id, hint=hint, hint_high=hint_high))

    def _on_transfer(self, request: TransferRequest) -> None:
        if self.raft.state not in (State.FOLLOWER, State.LEADER):
            what = (
                "an observer has no say in who leads: ask a voter"
                if self.raft.state is State.OBSERVER
                else "an election is going on, so there is no leader: wait and repeat it"
            )
            request.future.try_fail(NotLeader(self.raft.id, self.raft.leader_id, what))
            return
        if len(self._transfers) >= _MOST_TRANSFERS:
            request.future.try_fail(SystemBusy("too many transfers are asked for: wait for one"))
            return
        self._transfers.append((request, self.raft.term))
        self.raft.step(Message(MessageType.LEADER_TRANSFER, sender=self.raft.id, hint=request.target))
        self._settle_transfers()

    # -- what goes out ------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Do what `Raft.ready` asks for, until it asks for nothing more or the store has no room.

        A long log to apply is taken in portions, so that others on the loop have their turn.
        """
        if self._stalled is not None and not self._do(self._stalled):
            return
        portions = 0
        while self.raft.has_ready and portions < _PORTIONS:
            ready = self.raft.ready()
            portions += bool(ready.committed)
            if not self._do(ready):
                return
        if portions == _PORTIONS:
            self._wake()
        self._answer_reads()
        self._give_up_overtaken()

    def _give_up_overtaken(self) -> None:
        """Once all that was applied has been told, which for membership changes takes one `Ready` more."""
        if self._applied_term > self._settled_term and not self.raft.has_ready:
            self._settled_term = self._applied_term
            self._pending.overtaken(self._applied_term)

    def _do(self, ready: Ready) -> bool:
        """Save, send, apply and report; False where the store is full, and everything waits until it has room.

        The write is ordered first, as it takes longest and runs beside the rest. Then entries go out, so that the
        others write them meanwhile; but whoever waits for a result has it before others hear that it is committed.
        """
        if not self._save(ready):
            if self._stalled is None:
                self._stalled, self._stalled_since = ready, self._age
            return False
        self._stalled = None
        results_first = ready.committed and not any(message.entries for message in ready.messages)
        if not results_first:
            self._send(ready.messages)
        if ready.committed:
            self._applier.apply(ready.committed)
        if results_first:
            self._send(ready.messages)
        for read in ready.reads:
            self._reads.confirmed(read)
        for dropped in ready.dropped:
            self._on_dropped(dropped)
        for change in ready.changes:
            self._on_changed(change)
        return True

    def _save(self, ready: Ready) -> bool:
        if not ready.must_save:
            # Nothing to write, or only how far the log is committed, which can be learned anew.
            self._state_due = ready.hard_state or self._state_due
            if self._unsaved:
                self._unsaved.append((ready, self._age))
            else:
                self._complete(ready)
            return True
        raft = self.raft
        request = AppendRequest(
            raft.config.shard_id,
            raft.id,
            # Whoever holds a membership change must also know, after a crash, that the one before it is committed:
            # else it might campaign among members of long ago. So what is known goes with what is written.
            ready.hard_state or self._state_due,
            ready.entries.runs,
            ready.snapshot,
            done=lambda error: self._call_soon(lambda: self._on_saved(ready, error)),
        )
        try:
            self._services.save(request)
        except SystemBusy:
            return False
        self._state_due = None
        self._unsaved.append((ready, self._age))
        return True

    def _on_saved(self, saved: Ready, error: BaseException | None) -> None:
        if error is not None:
            raise ActorFailed(f"{self} stops, since its log could not be made durable: {error}") from error
        while self._unsaved and self._unsaved[0][0].number <= saved.number:
            self._complete(self._unsaved.popleft()[0])
        while self._unsaved and not self._unsaved[0][0].must_save:
            self._complete(self._unsaved.popleft()[0])

    def _complete(self, ready: Ready) -> None:
        self.raft.persisted(ready)
        if ready.snapshot is not None:
            self.snapshots.install(ready.snapshot)
        self._send(ready.messages_after_save)

    def _send(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        letters: dict[str, list[Message]] = {}
        addresses = self.raft.membership.addresses
        for message in messages:
            address = addresses.get(message.to) or self._strangers.get(message.to)
            if address is None:
                self._count_undeliverable(message)
            elif message.snapshot is not None and not message.snapshot.witness:
                self.snapshots.send(address, message)
            elif address in letters:
                letters[address].append(message)
            else:
                letters[address] = [message]
        for address, letter in letters.items():
            self._services.send(address, letter)

    def _count_undeliverable(self, message: Message) -> None:
        self.undeliverable += 1
        level = logging.DEBUG if self.undeliverable > 1 else logging.INFO
        logger.log(level, "%s does not know the address of %d: dropped %s", self, message.to, message)

    # -- what comes back ----------------------------------------------------------------------------------------

    def _call_soon(self, report: Callable[[], None]) -> None:
        """Have something done in this actor's turn, asked for by a thread of the store's or of a state machine's.

        Not by the inbox, which may be full: these reports must not be lost, and what causes them is bounded.
        """
        self._reports.append(report)
        self._wake()

    def _wake(self) -> None:
        # A full inbox has its turn coming, in which the reports and proposals are seen as well.
        with contextlib.suppress(SystemBusy, pykka.ActorDeadError):
            self.actor_ref.tell(WAKE)

    def _take_reports(self) -> None:
        while self._reports:
            self._reports.popleft()()

    def _report_applied(self, outcome: Applied | BaseException) -> None:
        """From the applier: on the loop if the state machine never blocks, else on a worker's thread."""
        if self.actor_loop.in_loop():
            self._on_applied(outcome)
        else:
            self._call_soon(lambda: self._on_applied(outcome))

    def _on_applied(self, outcome: Applied | BaseException) -> None:
        if isinstance(outcome, BaseException):
            raise ActorFailed(f"{self} stops, since its state machine failed: {outcome!r:.200}") from outcome
        index, results = outcome
        self.raft.applied(index)
        for run, answers in results:
            if run.plain or _COMMANDS.issuperset(run.kinds):
                self._pending.applied(run, answers)
                continue
            # Membership changes are answered when the core reports them.
            for place, kind in enumerate(run.kinds):
                if kind in _COMMANDS:
                    self._pending.resolve(run.key + place, answers[place])
        self._applied_term = self.raft.log.term(index)

    def _on_loaded(self, snapshot: Snapshot) -> None:
        """What was proposed here and is in the snapshot has no result here."""
        self._applied_term = snapshot.term
        self._announce_membership()
        self._see_whether_removed()

    def _answer_reads(self) -> None:
        due = self._reads.due(self.raft.log.applied)
        if due:
            self._query(due)

    def _on_applied_request(self, request: AppliedRequest) -> None:
        if len(self._to_be_applied) >= self._max_reads:
            request.future.try_fail(SystemBusy(f"{self._max_reads} wait for the state machine already"))
        else:
            self._to_be_applied.append(request)

    def _tell_applied(self) -> None:
        applied, now = self.raft.log.applied, self._now()
        late = RequestDropped("the state machine was not there by the deadline: wait on")
        for request in self._to_be_applied:
            if request.index <= applied:
                request.future.try_set(applied)
            elif request.deadline <= now:
                request.future.try_fail(late)
        self._to_be_applied = [request for request in self._to_be_applied if not request.future.done]

    def _on_dropped(self, dropped: Dropped) -> None:
        error = self._error_for(dropped.because)
        if dropped.type is MessageType.READ_INDEX:
            if isinstance(error, NotLeader):
                self._reads.postpone(dropped.origin)
            else:
                self._reads.dropped(dropped.origin, error)
        elif dropped.type is MessageType.LEADER_TRANSFER:
            self._fail_transfers(lambda request, _: request.target == dropped.key, error)
        elif dropped.origin == self._pending.origin:
            self._pending.dropped(dropped.key, dropped.count, error)

    def _error_for(self, because: Refusal) -> DrakkarError:
        if because in (Refusal.NO_LEADER, Refusal.CAMPAIGNING, Refusal.STEPPED_DOWN):
            return NotLeader(self.raft.id, self.raft.leader_id, because.value)
        if because is Refusal.TRANSFERRING:
            return TransferInProgress("the leader is handing its office over: propose again in a moment")
        if because is Refusal.TRANSFER_TIMED_OUT:
            return OutcomeUnknown(f"{because.value}; it may be elected yet")
        if because in (Refusal.TOO_MANY_UNCOMMITTED, Refusal.TOO_MANY_READS):
            return SystemBusy(f"{because.value}: wait a little and repeat it")
        if because in (Refusal.CHANGE_PENDING, Refusal.CHANGE_INVALID):
            return MembershipRejected(because.value)
        return RequestDropped(because.value)

    def _on_changed(self, change: Changed) -> None:
        if change.origin == self._pending.origin:
            if change.rejected:
                self._pending.dropped(change.key, 1, MembershipRejected(change.rejected))
            else:
                self._pending.resolve(change.key, change.membership)
        if not change.rejected:
            self._announce_membership()
            self._see_whether_removed()

    def _announce_membership(self) -> None:
        raft = self.raft
        self._services.announce(MembershipChanged(raft.config.shard_id, raft.id, raft.membership))

    def _see_whether_removed(self) -> None:
        """A replica that the shard has removed takes nothing more, says so, and soon ends."""
        raft = self.raft
        if self._removed is not None or raft.id not in raft.membership.removed:
            return
        self._removed = ReplicaStopped(
            f"{self} was removed from its shard, for good: ask another one, and add a new replica under a new id to "
            "bring this host back"
        )
        logger.warning("%s was removed from its shard, and ends", self)
        # The news may have come without the state, so that what is applied says nothing about the state machine.
        self._reads.fail_all(self._removed)
        self._pending.fail_all(OutcomeUnknown(f"{self._removed}; what was proposed may be committed yet"))
        self._leaves_at = self._age + _LINGER * raft.config.election_ticks
        self._services.announce(ReplicaRemoved(raft.config.shard_id, raft.id))

    # -- who leads ----------------------------------------------------------------------------------------------

    def _notice(self) -> None:
        """Tell of a new leader, once the batch is done."""
        self.state = self.raft.state
        now = (self.raft.term, self.raft.leader_id)
        if now != self._known_leader:
            self._known_leader = now
            self._services.announce(LeaderChanged(self.raft.config.shard_id, self.raft.id, *now))
            self._settle_transfers()

    def _settle_transfers(self) -> None:
        """Whoever leads now, the transfers that an older leader was asked for are over."""
        if not self._transfers:
            return
        leader, term = self.raft.leader_id, self.raft.term
        for request, _ in self._transfers:
            if request.target == leader:
                request.future.try_set(leader)
        elected = RequestDropped(
            f"replica {leader} was elected in its place: ask again, if it still shall lead"
        )
        self._fail_transfers(lambda _, asked_in: leader > 0 and asked_in < term, elected)

    def _expire_transfers(self, now: float) -> None:
        if not self._transfers:
            return
        late = OutcomeUnknown("the target was not seen to lead by the deadline; it may do so yet")
        self._fail_transfers(lambda request, _: request.deadline <= now, late)

    def _fail_transfers(self, over: Callable[[TransferRequest, int], bool], error: Exception) -> None:
        """Answer those that are over, and forget them and those that are answered."""
        for request, asked_in in self._transfers:
            if over(request, asked_in):
                request.future.try_fail(error)
        self._transfers = [each for each in self._transfers if not each[0].future.done]

    # -- the end ------------------------------------------------------------------------------------------------

    def on_stop(self) -> None:
        """Leave nobody waiting, and let the log know how far it is committed."""
        self._save_state_due()
        why = f"{self} was stopped" if self._removed is None else str(self._removed)
        self._leave_nobody_waiting(why)

    def on_failure(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Leave nobody waiting, and say why."""
        self._leave_nobody_waiting(f"{self} failed: {error!r:.200}")

    def _save_state_due(self) -> None:
        """Not needed for anything but a quicker restart, so nobody waits for it."""
        if self._state_due is not None:
            config = self.raft.config
            request = AppendRequest(config.shard_id, config.replica_id, self._state_due, done=lambda _: None)
            with contextlib.suppress(DrakkarError):
                self._services.save(request)

    def _leave_nobody_waiting(self, why: str) -> None:
        stopped = ReplicaStopped(why)
        self.queue.close(stopped)
        self.requests.close(stopped)
        self._pending.fail_all(
            OutcomeUnknown(f"{why}, before the outcome was known: it may be committed yet")
        )
        self._reads.fail_all(stopped)
        self._applier.stop(stopped)
        self.snapshots.stop(stopped)
        for request in self._to_be_applied:
            request.future.try_fail(stopped)
        self._fail_transfers(lambda *_: True, stopped)

    @property
    def over(self) -> ActorFuture[None]:
        """Set when it has stopped, and nobody touches the state machine any more."""
        return self._applier.over

    # -- for any thread -----------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where the replica stands. May be called from any thread: what it reads is replaced, never half changed."""
        raft, log, membership = self.raft, self.raft.log, self.raft.membership
        leads = raft.state is State.LEADER
        return Status(
            shard_id=raft.config.shard_id,
            replica_id=raft.id,
            state=raft.state,
            term=raft.term,
            leader_id=raft.leader_id,
            commit=log.committed,
            applied=log.applied,
            first_index=log.first_index,
            last_index=log.last_index,
            voters=tuple(sorted(membership.voters)),
            observers=tuple(sorted(membership.observers)),
            witnesses=tuple(sorted(membership.witnesses)),
            addresses=dict(membership.addresses),
            pending_proposals=len(self._pending) + len(self.queue),
            pending_reads=len(self._reads) + len(self.requests),
            match={replica: peer.match for replica, peer in list(raft.progress.items())} if leads else {},
        )
