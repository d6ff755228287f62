"""What the clients of a replica wait for: proposals, reads, transfers and snapshots, from the inbox to their futures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from drakkar.actors.machine.applier import Applier
from drakkar.actors.node.applied import AppliedRequests
from drakkar.actors.node.deadlines import DeadlineErrors
from drakkar.actors.node.disk_watch import DiskWatch
from drakkar.actors.node.inbox import NodeInbox, ProposalsTaken, RequestsTaken
from drakkar.actors.node.operators import LogQueries, answer_with, assign_groups
from drakkar.actors.node.postponed_changes import PostponedChanges
from drakkar.actors.node.proposals import PendingProposals
from drakkar.actors.node.reads import ReadRequests
from drakkar.actors.node.refusals import error_for, reason_to_wait, refusal_of_the_table
from drakkar.actors.node.removal import Removal
from drakkar.actors.node.requests import (
    AppliedRequest,
    AssignGroups,
    ForgetLeader,
    GroupsConsistent,
    LogQuery,
    ReadRequest,
    SnapshotRequest,
    TransferRequest,
)
from drakkar.actors.node.snapshots import SnapshotKeeper
from drakkar.actors.node.transfers import Transfers
from drakkar.actors.runtime.log_lines import Lines, is_rare
from drakkar.actors.runtime.scheduler import SlowTurn
from drakkar.handlers.errors import (
    DrakkarError,
    MembershipRejected,
    NotLeader,
    OutcomeUnknown,
    ReplicaStopped,
    SystemBusy,
)
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Changed, Dropped
from drakkar.handlers.raft.room_watch import RoomWatch

__all__ = ["REQUEST_HANDLERS", "Clients"]

_COMMANDS: Final = frozenset({int(EntryKind.COMMAND), int(EntryKind.ENCODED), int(EntryKind.SESSION)})
"""The kinds of entries that the state machine answers."""

MAX_TURN_COMMANDS: Final = 1024
MAX_TURN_BYTES: Final = 2 << 20
"""Commands, and their bytes, that one turn logs at most, but for one list that is larger: some 3 ms of the loop."""


class Clients:
    """The clients of one replica. All methods are for the loop's thread."""

    def __init__(
        self,
        raft: Raft,
        applier: Applier,
        snapshots: SnapshotKeeper,
        inbox: NodeInbox,
        *,
        disk: DiskWatch,
        room: RoomWatch,
        removal: Removal,
        lines: Lines,
        origin: int,
        max_waiting_reads: int,
        now: Callable[[], float],
        slow_turn: Callable[[], SlowTurn | None],
    ) -> None:
        """`now` is the clock of the requests' deadlines, in seconds.

        `slow_turn` returns the last turn that kept the host's loop for long.
        """
        config = raft.config
        self._raft, self._applier, self._snapshots, self._inbox = raft, applier, snapshots, inbox
        self._disk, self._room, self._removal = disk, room, removal
        self._max_reads, self._lines = max_waiting_reads, lines
        self._now = now
        self._late = DeadlineErrors(raft, applier, slow_turn=slow_turn)
        self.pending = PendingProposals(origin, max_run_bytes=config.max_message_bytes)
        self.reads = ReadRequests(origin, timeout_ticks=config.election_ticks, ask=self._ask_read)
        self.transfers = Transfers(raft)
        self.log_queries = LogQueries(raft)
        self._applied_requests = AppliedRequests(max_requests=max_waiting_reads)
        self._postponed = PostponedChanges(raft, self.pending.run_of)
        self.records_refused = 0
        """Records, proposed by handlers here, that the core has dropped, here or at the leader."""
        self._stale_reads: list[ReadRequest] = []
        """Those of the requests that are being taken: the state machine is asked for all at once."""
        self._applied_term = self._settled_term = 0
        """The term of the newest entry that is applied, and up to which it is known what became of older ones."""

    # -- what they ask ------------------------------------------------------------------------------------------

    def take(self) -> list[ProposalsTaken | RequestsTaken]:
        """Take what waits in the lanes of the inbox, but for proposals without a leader: those wait for one.

        Of proposals, as many as one turn may log: a busy shard must not keep others on the loop waiting.
        """
        taken: list[ProposalsTaken | RequestsTaken] = []
        if not self._must_wait_for_a_leader():
            proposals = self._inbox.proposals.take(MAX_TURN_COMMANDS, MAX_TURN_BYTES)
            if proposals:
                taken.append(ProposalsTaken(proposals))
        requests = self._inbox.requests.take()
        if requests:
            taken.append(RequestsTaken(requests))
        return taken

    def _must_wait_for_a_leader(self) -> bool:
        """Requests wait for a leader as long as their deadlines allow."""
        return not self._raft.leader_id and self._reason_to_refuse(MessageType.PROPOSE) is None

    def reason_to_refuse_all(self) -> DrakkarError | None:
        """Why this replica takes no request at all now; None if it does. From any thread."""
        if self._removal.reason is not None:
            return self._removal.reason
        if self._disk.hangs:
            return SystemBusy("the disk of this host hangs, or is very slow: ask another replica")
        return None

    def _reason_to_refuse(self, type_: MessageType) -> DrakkarError | None:
        """Why this replica takes no request now that becomes a message of that type; None if it takes them."""
        return self.reason_to_refuse_all() or refusal_of_the_table(self._raft, type_)

    def propose(self, taken: ProposalsTaken) -> None:
        """Let the core log proposals, or send them on to the leader."""
        raft = self._raft
        refusal = self._reason_to_refuse(MessageType.PROPOSE) or reason_to_wait(raft, len(self.pending))
        if refusal is not None:
            for proposal in taken.proposals:
                proposal.future.try_fail(refusal)
            return
        for run in self.pending.add(taken.proposals, self._now(), raft.term):
            self._step_proposal(Entries([run]))

    def _step_proposal(self, entries: Entries) -> None:
        self._room.judge(entries)
        self._raft.step(Message(MessageType.PROPOSE, sender=self._raft.id, entries=entries))

    def request(self, taken: RequestsTaken) -> None:
        """Begin with what is asked, as `REQUEST_HANDLERS` says, or refuse it."""
        refusals = {type_: self._reason_to_refuse(type_) for type_ in _DECIDING}
        for request in taken.requests:
            type_, handle = REQUEST_HANDLERS[type(request)]
            refusal = refusals[type_] if type_ is not None else None
            if refusal is None:
                handle(self, request)
            else:
                request.future.try_fail(refusal)
        if self._stale_reads:
            stale, self._stale_reads = self._stale_reads, []
            self._query(stale)

    def _on_read(self, request: ReadRequest) -> None:
        if len(self.reads) + self._applier.unanswered + len(self._stale_reads) >= self._max_reads:
            request.future.try_fail(
                SystemBusy(f"{self._max_reads} reads wait for an answer already: wait a little and ask again")
            )
        elif request.stale:
            self._stale_reads.append(request)
        else:
            self.reads.add(request)

    def ask(self) -> None:
        """Ask the leader for all reads that wait, once there is one, and the core for the next part of the log."""
        self.log_queries.ask_next()
        if not self._must_wait_for_a_leader():
            raft = self._raft
            self.reads.start(raft.timers.ticks, (raft.term, raft.leader_id))

    def _ask_read(self, hint: int, hint_high: int) -> None:
        raft = self._raft
        raft.step(Message(MessageType.READ_INDEX, sender=raft.id, hint=hint, hint_high=hint_high))

    def _query(self, reads: list[ReadRequest]) -> None:
        self._applier.query([(read.query, read.future) for read in reads])
        self.reads.asked(reads)

    # -- what becomes of it -------------------------------------------------------------------------------------

    def on_applied(self, results: Sequence[tuple[Run, Sequence[Any]]], term: int) -> None:
        """Entries up to one of `term` were applied, those that were proposed here with these results."""
        for run, answers in results:
            if run.plain or _COMMANDS.issuperset(run.kinds):
                self.pending.applied(run, answers)
                continue
            # Membership changes are answered when the core reports them.
            for place, kind in enumerate(run.kinds):
                if kind in _COMMANDS:
                    self.pending.resolve(run.key + place, answers[place])
        self._applied_term = term

    def on_loaded(self, term: int) -> None:
        """A snapshot of `term` was loaded. What was proposed here and is in it has no result here."""
        self._applied_term = term

    def on_dropped(self, dropped: Dropped) -> None:
        """The core, here or at the leader, has dropped a request. Reads wait for the next leader."""
        error = error_for(self._raft, dropped.because, dropped.replicas, dropped.text)
        if dropped.type is MessageType.READ_INDEX:
            if isinstance(error, NotLeader):
                self.reads.postpone(dropped.origin)
            else:
                self.reads.dropped(dropped.origin, error)
        elif dropped.type is MessageType.LEADER_TRANSFER:
            self.transfers.dropped(dropped.key, error)
        elif not dropped.origin:
            self._on_record_refused(dropped.count, error)
        elif dropped.origin != self.pending.origin:
            return
        elif not self._postponed.take(dropped, error):
            self.pending.dropped(dropped.key, dropped.count, error)

    def _on_record_refused(self, count: int, error: DrakkarError) -> None:
        self.records_refused += count
        if is_rare(self.records_refused):
            self._lines.warning(
                "a record that a handler here proposed was refused (%d by now): %s",
                self.records_refused,
                error,
            )

    def on_changed(self, change: Changed) -> None:
        """A membership change was applied, or rejected."""
        if change.origin != self.pending.origin:
            return
        if change.rejected:
            self.pending.dropped(change.key, 1, MembershipRejected(change.rejected))
        else:
            self.pending.resolve(change.key, change.membership)

    def answer(self) -> None:
        """Answer those whose index is reached, once all that `Raft.ready` hands out is handed out."""
        raft, applied = self._raft, self._raft.log.applied
        due = self.reads.due(applied)
        if due:
            self._query(due)
        # Once all that was applied is reported, which for membership changes takes one `Ready` more.
        if self._applied_term > self._settled_term and not raft.has_ready:
            self._settled_term = self._applied_term
            self.pending.overtaken(self._applied_term)

    def end_batch(self) -> None:
        """Answer those who wait for the state machine to reach an index, and have the next log query asked soon."""
        if self.log_queries.due:
            self._inbox.wake()  # one a turn, so that others on the loop have theirs
        if self._applied_requests:
            self._applied_requests.answer(self._raft.log.applied, self._now(), self._late.applied)

    # -- when it ends -------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Answer those whose deadlines have passed."""
        late = self._late
        if len(self._inbox.proposals) and (no_leader := late.no_leader()) is not None:
            self._inbox.proposals.expire(now, no_leader)
        if self._postponed:  # seldom, and this is a part of each tick of each replica
            for key, error in self._postponed.late(lambda key: self.pending.is_late(key, now)):
                self.pending.dropped(key, 1, error)
        self.pending.expire(now, late.proposal)
        if self._postponed:
            self._propose_again()
        self.reads.expire(now, self._raft.timers.ticks, late)
        self.transfers.expire(now)
        self.log_queries.expire(now)

    def _propose_again(self) -> None:
        for run in self._postponed.due():
            self._step_proposal(Entries([run]))

    def on_removed(self, reason: ReplicaStopped) -> None:
        """The shard has removed this replica. Transfers, and waits for the state machine, end as they would."""
        # The news may have come without the state, so that what is applied says nothing about the state machine.
        self.reads.fail_all(reason)
        self.pending.fail_all(OutcomeUnknown(f"{reason}; what was proposed may still be committed"))

    def fail_all(self, stopped: ReplicaStopped) -> None:
        """Answer all who wait, and all who come: the replica has ended."""
        self._inbox.proposals.close(stopped)
        self._inbox.requests.close(stopped)
        self.pending.fail_all(
            OutcomeUnknown(
                f"what was proposed may or may not have been committed, and may still be: {stopped}"
            )
        )
        self.reads.fail_all(stopped)
        self._applied_requests.fail_all(stopped)
        self.log_queries.fail_all(stopped)
        self.transfers.fail_all(stopped)

    @property
    def pending_proposals(self) -> int:
        """Commands without an answer. From any thread."""
        return len(self.pending) + len(self._inbox.proposals)

    @property
    def pending_reads(self) -> int:
        """Reads without an answer, and requests that wait in the inbox. From any thread."""
        return len(self.reads) + len(self._inbox.requests)


REQUEST_HANDLERS: Final[Mapping[type, tuple[MessageType | None, Callable[[Clients, Any], None]]]] = {
    ReadRequest: (MessageType.READ_INDEX, Clients._on_read),
    SnapshotRequest: (MessageType.READ_INDEX, lambda clients, ask: clients._snapshots.request(ask)),
    TransferRequest: (MessageType.LEADER_TRANSFER, lambda clients, ask: clients.transfers.begin(ask)),
    LogQuery: (MessageType.LOG_QUERY, lambda clients, ask: clients.log_queries.add(ask)),
    AppliedRequest: (None, lambda clients, ask: clients._applied_requests.add(ask)),
    ForgetLeader: (None, lambda clients, ask: answer_with(ask.future, clients._raft.forget_leader)),
    AssignGroups: (
        None,
        lambda clients, ask: answer_with(
            ask.future, assign_groups, clients._raft, ask.groups, clients._lines
        ),
    ),
    GroupsConsistent: (None, lambda clients, ask: answer_with(ask.future, clients._raft.groups_consistent)),
}
"""What a node does with each request, and the message whose cell says whether the replica takes it: None if it always does.

A snapshot is a read of the whole state.
"""

_DECIDING: Final = {type_ for type_, _ in REQUEST_HANDLERS.values() if type_ is not None}
