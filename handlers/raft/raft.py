"""One replica of one shard: its state, the rules that hold for every cell, and what it hands to its host.

`step` takes a message in, `ready` hands out what is to be done, `persisted` and `applied` report back that it was.
Nothing is done inside: no clock is read, no byte is sent. Who answers what stands in `matrix`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from drakkar.handlers.checks import MAX_SIGNED, check_whole
from drakkar.handlers.errors import ConfigError, ProtocolViolation
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import membership as members
from drakkar.handlers.raft import replication, transfer
from drakkar.handlers.raft import snapshot as snapshots
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, Run
from drakkar.handlers.raft.limits import RateLimit
from drakkar.handlers.raft.log import RaftLog, Storage, check_compaction
from drakkar.handlers.raft.matrix import checked_handlers, raft_handlers
from drakkar.handlers.raft.progress import Progress
from drakkar.handlers.raft.quiesce import Quiesce
from drakkar.handlers.raft.reads import ReadQueue
from drakkar.handlers.raft.ready import Changed, Dropped, LogQueryResult, ReadReady, Ready, Refusal
from drakkar.handlers.raft.state import HardState, Membership, Snapshot, State
from drakkar.handlers.raft.transfer import Transfer
from drakkar.handlers.table import HandlerTable, Tally

__all__ = ["Raft"]

NOBODY: Final = 0
RESTING: Final = frozenset({State.FOLLOWER, State.OBSERVER, State.WITNESS})
"""The states of a replica that neither leads nor wants to."""


# What may leave beside the write: it acknowledges nothing that the write holds (thesis §10.2.1 for REPLICATE).
_BESIDE_THE_WRITE: Final = frozenset(
    {
        MessageType.REPLICATE,
        MessageType.HEARTBEAT,
        MessageType.HEARTBEAT_RESP,
        MessageType.INSTALL_SNAPSHOT,
        MessageType.TIMEOUT_NOW,
        MessageType.PROPOSE,
        MessageType.READ_INDEX,
        MessageType.READ_INDEX_RESP,
        MessageType.LEADER_TRANSFER,
        MessageType.RATE_LIMIT,
        MessageType.PING,
        MessageType.PONG,
        MessageType.QUIESCE,
    }
)

# Sent without a term, or with one that the sender chose.
_TERM_OF_THEIR_OWN: Final = frozenset(
    {
        MessageType.PROPOSE,
        MessageType.READ_INDEX,
        MessageType.LEADER_TRANSFER,
        MessageType.QUIESCE,
        MessageType.REQUEST_VOTE,
        MessageType.REQUEST_PRE_VOTE,
        MessageType.REQUEST_PRE_VOTE_RESP,
    }
)


class Raft:
    """The Raft state of one replica. Pure: the same messages and the same random source give the same life.

    Not thread-safe: all calls come from one thread, in a host its loop.
    """

    def __init__(
        self,
        config: RaftConfig,
        log: Storage,
        *,
        handlers: HandlerTable | None = None,
        random: Random | None = None,
    ) -> None:
        """Continue where `log` stands, as a follower, observer or witness.

        Raises `HandlerTableError` for a table with undeclared cells, `ConfigError` for a role that the membership
        contradicts, `CorruptData` for a log that contradicts itself.
        """
        self.handlers = raft_handlers() if handlers is None else checked_handlers(handlers)
        self.config = config
        self.id = config.replica_id
        self.random = random or Random()
        self.log = RaftLog(log)
        self.membership = log.membership
        self.resting_state = self._resting_state()
        self.state = self.resting_state
        self.term = log.hard_state.term
        self.vote = log.hard_state.vote
        self.leader_id = NOBODY
        self.priority = config.priority
        self.check_quorum = config.check_quorum

        self.progress: dict[int, Progress] = {}
        self.votes: dict[int, bool] = {}
        self.ticks = 0
        self.no_votes_before = self._end_of_forgotten_lease()
        """The tick until which votes are refused, as before the restart a leader's lease may have been confirmed."""
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_timeout = config.randomized_timeout(self.random)
        self.requested_snapshot = 0
        """The index up to which, or beyond, this replica waits for a snapshot that it asked for; 0 for none."""
        self.groups: dict[int, int] = {}
        """The groups that were assigned, by replica; see `assign_groups`."""
        self.transfer_target, self.transfer = NOBODY, Transfer()
        self.is_transfer_target = False
        self.pending_change_index = 0
        self.uncommitted_bytes = 0
        self.reads = ReadQueue(config.max_pending_reads)
        self.rate_limit = RateLimit(config)
        self.quiesce = Quiesce(config)
        self.log_query: LogQueryResult | None = None

        self.tally = Tally()
        """What became of the messages since the start, by state and type."""
        self.faults: Counter[str] = Counter()
        """Messages that no correct peer sends, by what is wrong with them."""

        self._messages: list[Message] = []
        self._reads_ready: list[ReadReady] = []
        self._dropped: list[Dropped] = []
        self._changes: list[Changed] = []
        self._numbers = 0
        self._handed_state = log.hard_state
        self._unsaved_votes: list[int] = []
        self._appends_due: dict[int, bool] = {}
        self.reset_progress()

    def _resting_state(self) -> State:
        listed = self.membership.state_of(self.id) if self.id in self.membership.everybody else None
        if self.config.is_witness or self.config.is_observer:
            wanted = State.WITNESS if self.config.is_witness else State.OBSERVER
            promoted = wanted is State.OBSERVER and listed is State.FOLLOWER
            if listed not in (wanted, None) and not promoted:
                raise ConfigError(
                    "role",
                    wanted.name,
                    f"the membership lists replica {self.id} as {listed.name}: leave is_observer and is_witness out",
                )
            return State.FOLLOWER if promoted else wanted
        return listed if listed is not None else State.FOLLOWER

    def _end_of_forgotten_lease(self) -> int:
        took_part = self.term > 0
        return self.config.election_ticks if took_part and self.config.read_mode == "lease" else 0

    def __repr__(self) -> str:
        return f"<Raft {self.id} {self.state.name} term={self.term} vote={self.vote} leader={self.leader_id} {self.log!r}>"

    # -- messages in --------------------------------------------------------------------------------------------

    def step(self, message: Message) -> Any:
        """Answer one message: the guards, then the table. Returns what the handler returns.

        Never raises for anything a peer may send, however wrong; `ProtocolViolation` where an invariant of safety
        would break: then this replica must stop.
        """
        return self.handlers.dispatch(self, message)

    def tick(self) -> None:
        """One tick of the host's clock has passed."""
        self.step(Message(MessageType.LOCAL_TICK, sender=self.id, reject=self.quiesce.tick(self)))

    # -- messages out -------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message, stamped with this replica's id and, but for requests and votes, its term."""
        message.sender = self.id
        message.shard = self.config.shard_id
        if message.type not in _TERM_OF_THEIR_OWN:
            message.term = self.term
        self._messages.append(message)

    def reply(self, to: Message, type_: MessageType, **fields: Any) -> None:
        """Queue an answer to whoever sent `to`."""
        self.send(Message(type_, to=to.sender, **fields))

    def drop(self, dropped: Dropped) -> None:
        """Report a request of this host's as dropped."""
        self._dropped.append(dropped)

    def release(self, read: ReadReady) -> None:
        """Report a read of this host's as confirmed."""
        self._reads_ready.append(read)

    def fault(self, what: str) -> None:
        """Count a message that no correct peer sends."""
        self.faults[what] += 1

    # -- who takes part -----------------------------------------------------------------------------------------

    @property
    def electorate(self) -> tuple[frozenset[int], frozenset[int]]:
        """The sets whose majorities decide."""
        return self.membership.electorate

    @property
    def voters(self) -> list[int]:
        """All who vote, of both halves, in order."""
        incoming, outgoing = self.membership.electorate
        return sorted(incoming | outgoing)

    @property
    def peers(self) -> list[int]:
        """All other replicas that receive the log, in order."""
        return [peer for peer in self.progress if peer != self.id]

    @property
    def promotable(self) -> bool:
        """May campaign: a voter of the applied membership, with no snapshot waiting to be loaded."""
        return (
            self.resting_state is State.FOLLOWER
            and self.membership.is_voter(self.id)
            and self.log.pending_snapshot is None
        )

    @property
    def has_committed_in_term(self) -> bool:
        """The leader has committed an entry of its own term, so it knows all that is committed (thesis §6.4)."""
        return self.log.term(self.log.committed) == self.term

    def match_of(self, replica: int) -> int:
        """How far `replica` is known to hold the log, durably."""
        progress = self.progress.get(replica)
        return progress.match if progress is not None else 0

    def group_of(self, replica: int) -> int:
        """Where `replica` stands, for group commit; 0 is nowhere."""
        progress = self.progress.get(replica)
        return progress.group if progress is not None else 0

    # -- changes of state ---------------------------------------------------------------------------------------

    def heard_leader(self, leader: int) -> None:
        """A message of this term's leader arrived: there is no reason for an election."""
        self.election_elapsed = 0
        self.leader_id = leader

    def become_follower(self, term: int, leader: int, *, keep_timer: bool = False) -> None:
        """Neither lead nor campaign any more; an observer or witness stays what it is."""
        elapsed, timeout = self.election_elapsed, self.randomized_timeout
        self._reset(term)
        self.state = self.resting_state
        self.leader_id = leader
        if keep_timer:
            self.election_elapsed, self.randomized_timeout = elapsed, timeout

    def become_pre_candidate(self) -> None:
        """Ask around whether an election could be won. Term and vote stay (thesis §9.6)."""
        self._leave_for(State.PRE_CANDIDATE)
        self._reset(self.term)
        self.requested_snapshot = 0
        self.state = State.PRE_CANDIDATE
        self.leader_id = NOBODY

    def become_candidate(self) -> None:
        """Begin a new term with a vote for oneself (thesis §3.4)."""
        self._leave_for(State.CANDIDATE)
        self._reset(self.term + 1)
        self.state = State.CANDIDATE
        self.leader_id = NOBODY
        self.vote = self.id

    def become_leader(self) -> None:
        """Lead this term, and begin it with an empty entry, which commits all that was inherited (thesis §6.4)."""
        if self.state is not State.CANDIDATE:
            raise ProtocolViolation(
                f"{self.state.name} of replica {self.id} cannot become leader without an election"
            )
        self._reset(self.term)
        self.state = State.LEADER
        self.leader_id = self.id
        # Changes that were inherited may be in effect elsewhere; no further one until they are applied here.
        self.pending_change_index = self.log.last_index
        self.append_entries([Run(0, 0, [b""], bytes([EntryKind.NO_OP]))])

    def _leave_for(self, state: State) -> None:
        if self.state is State.LEADER or self.resting_state is not State.FOLLOWER:
            raise ProtocolViolation(f"{self.state.name} of replica {self.id} cannot become {state.name}")

    def _reset(self, term: int) -> None:
        """What every change of state begins with."""
        transfer.step_down(self, term)
        if term != self.term:
            self.term = term
            self.vote = NOBODY
            self.requested_snapshot = 0
        self.votes = {}
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_timeout = self.config.randomized_timeout(self.random)
        self.pending_change_index = 0
        self.uncommitted_bytes = 0
        self.rate_limit.reset()
        self._appends_due = {}
        for context in self.reads.clear():
            self.drop(Dropped(MessageType.READ_INDEX, Refusal.STEPPED_DOWN, *context))
        self.reset_progress()

    def reset_progress(self) -> None:
        """Forget what was known of the peers: nothing is, in a new term."""
        self.progress = {
            replica: self.new_progress(replica, active=replica == self.id)
            for replica in sorted(self.membership.everybody)
        }
        if self.id in self.progress:
            self.progress[self.id].accepted(self.log.stable)

    def switch_membership(self, after: Membership) -> None:
        """Another membership is in effect: who is sent the log, and what this replica itself may do."""
        listed = after.everybody
        role = after.state_of(self.id) if self.id in listed else self.resting_state
        if not members.may_become(self.resting_state, role):
            raise ProtocolViolation(members.misfit(self.id, self.resting_state, role))
        self.membership = after
        # A new peer counts as active, or it would be sent no snapshot, and could cost the leader its quorum.
        known = self.progress
        self.progress = {id_: known.get(id_) or self.new_progress(id_, active=True) for id_ in sorted(listed)}
        if role is not self.resting_state:
            self.resting_state = role
            if self.state in RESTING:
                self.state = role
            elif role is not State.FOLLOWER:
                self.become_follower(self.term, NOBODY)

    def new_progress(self, replica: int, *, active: bool = False) -> Progress:
        """What is known of a replica that was not heard yet."""
        progress = Progress(
            next=self.log.last_index + 1,
            max_inflight_messages=self.config.max_inflight_messages,
            max_inflight_bytes=self.config.max_inflight_bytes,
            active=active,
        )
        progress.group = self.groups.get(replica, 0)
        return progress

    # -- the leader's log ---------------------------------------------------------------------------------------

    def append_entries(self, runs: Sequence[Run]) -> None:
        """A leader adds entries to its log, at the end and in its own term: it never changes another (§3.5)."""
        for run in runs:
            self.log.append(run.placed(self.log.last_index + 1, self.term))

    def append_due(self, replica: int, *, even_empty: bool) -> None:
        """Note that a peer is to be sent the log when `ready` is called next: one message for many reasons."""
        self._appends_due[replica] = self._appends_due.get(replica, False) or even_empty

    def send_due_appends(self) -> None:
        """Send what was noted by `append_due`, and fill the windows."""
        due, self._appends_due = self._appends_due, {}
        for replica, even_empty in due.items():
            sent = replication.send_now(self, replica, even_empty=even_empty)
            while sent:
                sent = replication.send_now(self, replica, even_empty=False)

    # -- the conversation with the host -------------------------------------------------------------------------

    def ready(self) -> Ready:
        """Hand out, once, what is to be done; see `Ready`. Falsy when there is nothing."""
        if self._appends_due:
            self.send_due_appends()
        self._numbers += 1
        ready = Ready(self._numbers)
        self._hand_out_state(ready)
        ready.snapshot, runs = self.log.take_unsaved(ready.number)
        ready.entries = Entries(runs)
        ready.must_save |= bool(runs) or ready.snapshot is not None
        self._hand_out_messages(ready)
        ahead = self.config.apply_unpersisted_limit if self.state is State.LEADER else 0
        ready.committed = Entries(self.log.take_committed(self.config.max_apply_bytes, ahead))
        ready.reads, self._reads_ready = self._reads_ready, []
        ready.dropped, self._dropped = self._dropped, []
        ready.changes, self._changes = self._changes, []
        ready.log_query, self.log_query = self.log_query, None
        return ready

    @property
    def has_ready(self) -> bool:
        """Whether `ready` would hand anything out."""
        ahead = self.config.apply_unpersisted_limit if self.state is State.LEADER else 0
        return bool(
            self._messages
            or self._appends_due
            or self.log.has_unsaved()
            or self.log.may_apply(self.config.max_apply_bytes, ahead)
            or self._handed_state != HardState(self.term, self.vote, self.log.committed)
            or self._reads_ready
            or self._dropped
            or self._changes
            or self.log_query
        )

    def _hand_out_state(self, ready: Ready) -> None:
        state = HardState(self.term, self.vote, self.log.committed)
        if state == self._handed_state:
            return
        ready.hard_state = state
        if (state.term, state.vote) != (self._handed_state.term, self._handed_state.vote):
            ready.must_save = True
            self._unsaved_votes.append(ready.number)
        self._handed_state = state

    def _hand_out_messages(self, ready: Ready) -> None:
        messages, self._messages = self._messages, []
        if self._unsaved_votes:
            # A term or a vote that a crash can forget must not be known to anybody before it is durable.
            ready.messages_after_save = messages
            return
        for message in messages:
            beside = message.type in _BESIDE_THE_WRITE or message.type >= MessageType.FIRST_FREE
            (ready.messages if beside else ready.messages_after_save).append(message)

    def persisted(self, ready: Ready) -> None:
        """What `ready` asked to save, and all that was asked before, is durable. In order, once for each."""
        while self._unsaved_votes and self._unsaved_votes[0] <= ready.number:
            self._unsaved_votes.pop(0)
        stable = self.log.stable
        self.log.saved(ready.number)
        if self.state is State.LEADER and self.log.stable > stable:
            replication.count_own(self)

    def applied(self, index: int) -> None:
        """The state machine has loaded the snapshot, or applied all entries, up to `index`.

        Membership changes up to there take effect now (thesis §4.1 as etcd and dragonboat have it).
        Raises `ConfigError` for an index that was not handed out.
        """
        if index > self.log.applying:
            raise ConfigError(
                "applied index", index, f"only entries up to {self.log.applying} were handed out"
            )
        before = self.log.applied
        self._release_uncommitted(before + 1, index)
        changes = list(self.log.changes(max(before, self.log.first_index - 1) + 1, index + 1))
        for entry in changes:
            self.log.applied_to(entry.index)
            self._apply_change(entry)
        self.log.applied_to(index)
        members.leave_when_due(self)

    def _apply_change(self, entry: Entry) -> None:
        outcome = members.decide(self.membership, entry, self.config)
        rejected = outcome if isinstance(outcome, str) else ""
        event = Message(
            MessageType.CONFIG_CHANGE_EVENT, sender=self.id, log_index=entry.index, reject=bool(rejected)
        )
        if not isinstance(outcome, str):
            event.payload = outcome
        self.step(event)
        self._changes.append(Changed(entry.index, self.membership, rejected, entry.origin, entry.key))

    def _release_uncommitted(self, low: int, high: int) -> None:
        if self.uncommitted_bytes:
            applied = sum(run.payload_bytes for run in self.log.runs(low, high + 1))
            self.uncommitted_bytes = max(0, self.uncommitted_bytes - applied)

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which a snapshot holds. The host drops them from its store as well.

        Raises `ConfigError` where `index` is beyond the last snapshot, or gone already: a peer that needs what is
        in neither could never catch up.
        """
        check_compaction(index, self.log.first_index, self.log.snapshot.index)
        self.log.compact(index)

    def snapshot_taken(self, snapshot: Snapshot) -> None:
        """The host took a snapshot, which peers that are too far behind will be sent.

        Raises `ConfigError` where it is beyond what is applied; one that is no newer than the last is ignored.
        """
        if snapshot.index > self.log.applied:
            raise ConfigError(
                "snapshot index", snapshot.index, f"only entries up to {self.log.applied} are applied"
            )
        if snapshot.index > self.log.snapshot.index:
            self.log.snapshot = snapshot
            for peer in self.peers:
                if self.progress[peer].requested_snapshot:
                    replication.send(self, peer)

    def snapshot_point(self, index: int) -> Snapshot | None:
        """Index, term and membership of a snapshot of the state at `index`; None if none can be taken there now.

        `index` is that of the last entry that the state machine was given: only its owner knows it, since `ready`
        hands entries out before they are passed on. The membership is that of the index, though changes may not have
        been reported as applied yet (thesis §5.1). None where `index` is not durable in this log yet, or behind what
        the log holds, or a leader's snapshot is not loaded.
        """
        log = self.log
        if log.pending_snapshot is not None or not log.applied <= index <= log.stable or not log.term(index):
            return None
        witness = self.resting_state is State.WITNESS
        return Snapshot(index, log.term(index), members.once_applied(self, index), witness=witness)

    @property
    def snapshot_wanted(self) -> int:
        """The index that a peer wants a snapshot to reach, which none does yet; 0 for none. For a leader's host."""
        wanted = max((peer.requested_snapshot for peer in self.progress.values()), default=0)
        return wanted if wanted > self.log.snapshot.index else 0

    # -- what an operator may ask for -----------------------------------------------------------------------------

    def request_snapshot(self) -> None:
        """Ask the leader for its snapshot, though the log would do (raft-rs): where the state machine's state is lost.

        It must reach the last entry held here. Until it has come, no entries are taken in; asking again changes
        nothing. The request ends with the term, and with a campaign of this replica.

        Raises `RequestDropped`, which says why, at a leader, without one, while another snapshot is not loaded yet,
        and where the last entry is not of the current term.
        """
        snapshots.request(self)

    def forget_leader(self) -> None:
        """Do as if no leader were known, so that this replica may vote, and pre-vote, inside its lease (etcd).

        For an operator who knows that the leader is gone. The next message of a leader tells of it again. Changes
        nothing at a leader, nor where reads rely on leases.
        """
        if self.state is not State.LEADER and self.config.read_mode != "lease":
            self.leader_id = NOBODY

    def assign_groups(self, groups: Mapping[int, int]) -> None:
        """Say to which group each of these replicas belongs, for `group_commit`; 0 is none (raft-rs).

        Replicas that are not named keep theirs, over changes of leadership too, until this one restarts; any of them
        may lead, so tell them all. Raises `ConfigError` for what is no replica or no group; then nothing is changed.
        """
        for replica, group in groups.items():
            check_whole("replica id", replica, 1, MAX_SIGNED)
            check_whole("group", group, 0, MAX_SIGNED)
        self.groups.update(groups)
        for replica, progress in self.progress.items():
            progress.group = self.groups.get(replica, 0)
        if self.state is State.LEADER:
            replication.commit_and_announce(self)

    def groups_consistent(self) -> bool | None:
        """Whether all that is committed is on a majority in two groups, so that the loss of one group loses nothing.

        Only a leader that has applied an entry of its term knows, and only where groups are in use: else None.
        """
        in_use = self.config.group_commit and any(map(self.group_of, self.voters))
        if self.state is not State.LEADER or not in_use or self.log.term(self.log.applied) != self.term:
            return None
        return replication.groups_agree(self)
