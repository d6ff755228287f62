"""One replica of one shard: its state, and the rules by which it changes (thesis figure 3.1).

This is what the conversations talk about, one thesis chapter a file; it knows none of them. What a host talks to is `Raft`.
"""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from drakkar.handlers.compiling import mypyc_attr
from drakkar.handlers.effects import Effects, not_a_type
from drakkar.handlers.errors import ConfigError, ProtocolViolation
from drakkar.handlers.messages import Message, MessageType, is_own
from drakkar.handlers.payloads import sent_payload
from drakkar.handlers.raft.confchange import decide_all, may_become, role_conflict
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import EntryKind, Run
from drakkar.handlers.raft.failover_state import Failover
from drakkar.handlers.raft.heard_state import Heard
from drakkar.handlers.raft.lanes import Lanes
from drakkar.handlers.raft.lives import Claim, KnownLives, Life, Standing
from drakkar.handlers.raft.log import RaftLog, Storage
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.raft.outbox import Outbox
from drakkar.handlers.raft.progress import Progress
from drakkar.handlers.raft.quiesce_state import Quiesce
from drakkar.handlers.raft.rate_limit import RateLimit
from drakkar.handlers.raft.read_queue import ReadQueue
from drakkar.handlers.raft.ready import REFUSAL_OF, Dropped, Refusal
from drakkar.handlers.raft.room_state import Room
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.raft.timers import Timers
from drakkar.handlers.raft.transfer_state import Order, Transfer
from drakkar.handlers.raft.undelivered import Undelivered
from drakkar.handlers.table import HandlerTable, Tally

__all__ = ["BASE_STATES", "RaftCore"]

NO_REPLICA: Final = 0

BASE_STATES: Final = frozenset({State.FOLLOWER, State.OBSERVER, State.WITNESS})
"""The states of a replica that neither leads nor campaigns."""


@mypyc_attr(allow_interpreted_subclasses=True)  # `Raft` extends it, and is interpreted.
class RaftCore:
    """The state of one replica. Not thread-safe: all calls come from one thread, in a host its loop's."""

    def __init__(
        self,
        config: RaftConfig,
        log: Storage,
        handlers: HandlerTable,
        random: Random | None,
        lanes: Lanes | None,
        memory: LogMemory | None,
        home: int,
    ) -> None:
        self.handlers = handlers
        self.config = config
        self.id = config.replica_id
        self.random = random or Random()
        self.lanes = lanes
        """How much of what is sent fits on its way; None: not known, and all counts as sent."""
        self.lives = KnownLives(home, log.lives)
        self.log = RaftLog(log, memory=memory)
        self.log.takes(handlers.kinds)
        self.membership = log.membership
        self.base_state = self._base_state()
        """The state in which this replica neither leads nor campaigns: FOLLOWER, OBSERVER or WITNESS."""
        self.state = self.base_state
        self.term, self.vote = log.hard_state.term, log.hard_state.vote
        self.leader_id = NO_REPLICA
        self.priority = config.priority
        self.check_quorum = config.check_quorum

        self.progress: dict[int, Progress] = {}
        self.votes: dict[int, bool] = {}
        self.timers = Timers(no_votes_before=self._end_of_forgotten_lease())
        self.timers.restart(config, self.random)
        self.transfer, self.order = Transfer(), Order()
        self.failover = Failover()
        self.requested_snapshot = 0
        """The index up to which, or beyond, this replica waits for a snapshot that it asked for; 0 for none."""
        self.heard = Heard()
        self.groups: dict[int, int] = {}
        """The groups that were assigned, by replica; see `assign_groups`."""
        self.pending_change_index = 0
        """At a leader: the index of the last membership change in its log; no other is logged before it is applied."""
        self.uncommitted_bytes = 0
        self.reads, self.rate_limit = ReadQueue(config.max_pending_reads), RateLimit(config)
        self.quiesce = Quiesce(config)
        self.room = Room()
        self.outbox, self.effects, self.undelivered = Outbox(), Effects(), Undelivered()
        self.awaiting_load: dict[int, None] = {}
        """Peers that are sent nothing, in this order, before the host has read the entries that they need from its disk."""
        self.waiting_query: Message | None = None
        """The LOG_QUERY whose entries are not loaded."""
        self.appends_due: dict[int, bool] = {}
        """Peers that are to be sent the log when `ready` is called next; True: even where there is nothing new."""

        self.notices_due: set[int] = set()
        """Peers that are to be told of the commit index when `ready` is called next, unless an append tells
        them then."""

        self.told_of_last_term = False
        """The operator knows that no campaign is possible any more."""

        self.tally = Tally()
        """What became of the messages since the start, by state and type."""
        self.faults: Counter[str] = Counter()
        """Messages that no correct peer sends, by what is wrong with them."""
        self.reset_progress()

    def _base_state(self) -> State:
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
        took_part = self.log.storage.hard_state.term > 0
        return self.config.election_ticks if took_part and self.config.read_mode == "lease" else 0

    def __repr__(self) -> str:
        return f"<Raft {self.id} {self.state.name} term={self.term} vote={self.vote} leader={self.leader_id} {self.log!r}>"

    # -- messages in --------------------------------------------------------------------------------------------

    def step(self, message: Message, life: Life | None = None) -> Any:
        """Answer one message: the guards, then the table. Returns what `HandlerTable.dispatch` does.

        `life`: what its sender has said of itself, as `lets_in` was told, where that one is not welcome; else None.

        Never raises for anything a peer may send, however wrong; `ProtocolViolation` where an invariant of safety
        would break: then this replica must stop.
        """
        if life is None:
            return self.handlers.dispatch(self, message)
        self.lives.claim = Claim(message.sender, message.term, life)
        try:
            return self.handlers.dispatch(self, message)
        finally:
            self.lives.claim = None

    # -- messages and reports out ---------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message, stamped with this replica's id and, where its type says so, its term. Its payload is sent as it is now.

        Raises `ConfigError` for a payload of a type of one's own that cannot be sent: it names the number of bytes, and the limit.
        """
        message.sender = self.id
        message.shard = self.config.shard_id
        if message.payload is not None and message.type >= MessageType.FIRST_FREE:
            # Here a mistake is the sender's error, and what it does to its own state later changes no message.
            message.payload = sent_payload(message.type, message.payload)
        if message.type.traits.stamped:
            message.term = self.term
        self.outbox.messages.append(message)

    def reply(self, message: Message, answer: Any, **fields: Any) -> None:
        """Queue an answer to the sender of `message`: of the type `answer`, with these fields.

        If it was asked in this process, `answer` is the value that the ask returns, and there are no fields. Only own types are
        asked: one of Raft's that names no sender came from a peer at fault, and its answer reaches nobody.
        """
        if message.sender in (0, self.id) and is_own(message.type):
            self.effects.answer(message, answer, fields)
            return
        if not isinstance(answer, MessageType):
            raise not_a_type(message, answer)
        self.send(Message(answer, to=message.sender, **fields))

    def refuse(self, asker: int, refused: Dropped) -> None:
        """Report that a request has no effect: to this host (`asker` 0 or this replica), or to the replica that forwarded it."""
        if asker in (0, self.id):
            self.outbox.dropped.append(refused)
            return
        refusal = Message(
            REFUSAL_OF[refused.type],
            to=asker,
            hint=refused.origin,
            hint_high=refused.key,
            log_index=refused.count,
            payload=refused.reason,
        )
        self.send(refusal)

    def has_removed(self, message: Message) -> bool:
        """Whether the sender was removed. Not the leader of this term: with `step_down_on_removal` off it leads on."""
        leads = message.sender == self.leader_id and message.term == self.term
        return message.sender in self.membership.removed and not leads

    def fault(self, what: str) -> None:
        """Count a message that no correct peer sends."""
        self.faults[what] += 1

    @property
    def life(self) -> Life:
        """What this replica says of itself, before its first message on a connection, once `Ready.lives` is durable."""
        own = self.lives.own
        return Life(own.founding, self.lives.home, own.standing, kinds=self.handlers.kinds)

    def warn(self, what: str) -> None:
        """Have the host tell its operator."""
        self.outbox.warnings.append(what)

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

    def membership_at(self, index: int) -> Membership:
        """The membership when all up to `index` is applied, if nothing cuts the log off before.

        Raises `EntriesNotLoaded` while that is not known, but never for an index that was handed out to apply.
        """
        return decide_all(self.membership, self.log.unapplied_changes(index), self.config)

    @property
    def promotable(self) -> bool:
        """May campaign: a voter of the applied membership, with no snapshot waiting to be loaded."""
        return (
            self.base_state is State.FOLLOWER
            and self.membership.is_voter(self.id)
            and self.log.pending_snapshot is None
            and self.remembers
        )

    def home_of(self, replica: int) -> int | None:
        """The number of the host on which `replica` lives, by the newest entry in the log that says so, committed or not.

        0: it was added, and has lived nowhere yet. None: not known.
        """
        settled = self.log.settled(replica)
        return settled[-1][1] if settled else self.membership.homes.get(replica)

    @property
    def remembers(self) -> bool:
        """This replica knows all its promises, so it may vote.

        It is no newborn, and by the log it lives on no other host.
        """
        home = self.lives.home
        if not home:
            return True
        return self.lives.own.standing is not Standing.NEWBORN and self.home_of(self.id) in {None, 0, home}

    @property
    def has_committed_in_term(self) -> bool:
        """The leader has committed an entry of its own term, so it knows all that is committed (thesis §6.4)."""
        return self.log.term(self.log.committed) == self.term

    def match_of(self, replica: int) -> int:
        """How far `replica` is known to hold the log, durably; 0 for one that is not counted."""
        progress = self.progress.get(replica)
        return progress.match if progress is not None and not progress.frozen else 0

    def group_of(self, replica: int) -> int:
        """Where `replica` stands, for group commit; 0 is nowhere."""
        progress = self.progress.get(replica)
        return progress.group if progress is not None else 0

    # -- changes of state ---------------------------------------------------------------------------------------

    def heard_leader(self, leader: int) -> None:
        """A message of this term's leader arrived: there is no reason for an election."""
        self.timers.election_elapsed = 0
        self.timers.leader_heard = self.timers.ticks
        if leader != self.leader_id:
            self._follow(leader)

    def _follow(self, leader: int) -> None:
        self.leader_id = leader
        if leader:
            self.failover.end()
            self.lives.follow(leader, self.term)

    def wake(self) -> None:
        """While all slept no message could come: neither our silence nor that of others is a reason for an election."""
        self.timers.election_elapsed = 0
        self.timers.leader_heard = self.timers.ticks
        if self.state is State.LEADER:
            for peer in self.progress.values():
                peer.active = True

    def become_follower(self, term: int, leader: int, *, keep_timer: bool = False) -> None:
        """Neither lead nor campaign any more; an observer or witness stays what it is."""
        elapsed, timeout = self.timers.election_elapsed, self.timers.randomized_timeout
        self._reset(term)
        self.state = self.base_state
        self._follow(leader)
        if keep_timer:
            self.timers.election_elapsed, self.timers.randomized_timeout = elapsed, timeout

    def become_pre_candidate(self) -> None:
        """Ask around whether an election could be won. Term and vote stay (thesis §9.6)."""
        self._leave_for(State.PRE_CANDIDATE)
        self._reset(self.term)
        self.requested_snapshot = 0
        self.state = State.PRE_CANDIDATE
        self.leader_id = NO_REPLICA

    def become_candidate(self) -> None:
        """Begin a new term with a vote for oneself (thesis §3.4)."""
        self._leave_for(State.CANDIDATE)
        self._reset(self.term + 1)
        self.failover.end()
        self.state = State.CANDIDATE
        self.leader_id = NO_REPLICA
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
        if self.state is State.LEADER or self.base_state is not State.FOLLOWER:
            raise ProtocolViolation(f"{self.state.name} of replica {self.id} cannot become {state.name}")

    def _reset(self, term: int) -> None:
        """What every change of state begins with."""
        if self.state is State.LEADER:
            self.timers.leader_heard = self.timers.ticks
        self._leave_transfer(term)
        if term != self.term:
            self.term = term
            self.vote = NO_REPLICA
            self.requested_snapshot = 0
            self.heard.number = self.heard.matched = 0
        self.votes = {}
        self.order = Order()
        self.timers.restart(self.config, self.random)
        self.pending_change_index = 0
        self.uncommitted_bytes = 0
        self.rate_limit.reset()
        self.appends_due = {}
        self.notices_due = set()
        self.awaiting_load = {}
        self.lives.present.clear()
        self.lives.version += 1
        for context in self.reads.clear():
            self.outbox.dropped.append(Dropped(MessageType.READ_INDEX, Refusal.STEPPED_DOWN, *context))
        self.reset_progress()

    def _leave_transfer(self, term: int) -> None:
        """A leader that steps down gives its transfer up, unless the newer term may well be that of its successor."""
        if self.transfer.order is not None and term > self.term:
            self._end_transfer()
        else:
            self.give_up_transfer(Refusal.STEPPED_DOWN)

    def give_up_transfer(self, because: Refusal) -> None:
        """End the transfer that is in progress, if one is: take proposals again, and tell who asked for it."""
        given_up = self._end_transfer()
        for asker in sorted(given_up.askers):
            self.refuse(asker, Dropped(MessageType.LEADER_TRANSFER, because, key=given_up.target))

    def _end_transfer(self) -> Transfer:
        """A target that is asked to campaign when the transfer is over would only disturb (thesis §3.10)."""
        ended, self.transfer = self.transfer, Transfer()
        if ended.order is not None:
            self.outbox.recall(ended.order)
        return ended

    def reset_progress(self) -> None:
        """Forget what was known of the peers: in a new term nothing is."""
        self.progress = {
            replica: self.new_progress(replica, active=replica == self.id)
            for replica in sorted(self.membership.everybody)
        }
        if self.id in self.progress:
            self.progress[self.id].accepted(self.log.stable)

    def switch_membership(self, after: Membership) -> None:
        """Another membership is in effect: who is sent the log, and what this replica itself may do."""
        listed = after.everybody
        role = after.state_of(self.id) if self.id in listed else self.base_state
        if not may_become(self.base_state, role):
            raise ProtocolViolation(role_conflict(self.id, self.base_state, role))
        self.membership = after
        self.lives.version += 1  # all that were met are judged anew
        # A new peer counts as active, or it would be sent no snapshot, and could cost the leader its quorum.
        known = self.progress
        self.progress = {id_: known.get(id_) or self.new_progress(id_, active=True) for id_ in sorted(listed)}
        if role is not self.base_state:
            self.base_state = role
            if self.state in BASE_STATES:
                self.state = role
            elif role is not State.FOLLOWER:
                self.become_follower(self.term, NO_REPLICA)

    def new_progress(self, replica: int, *, active: bool = False) -> Progress:
        """What is known of a replica that was not heard yet."""
        progress = Progress(
            next=self.log.last_index + 1,
            max_inflight_messages=self.config.max_inflight_messages,
            max_inflight_bytes=self.config.max_inflight_bytes or 0,
            active=active,
        )
        progress.group = self.groups.get(replica, 0)
        return progress

    # -- the leader's log ---------------------------------------------------------------------------------------

    def append_entries(self, runs: Sequence[Run]) -> None:
        """A leader adds entries to its log, at the end and in its own term: it never changes another (§3.5)."""
        for run in runs:
            self.log.append(run.placed(self.log.last_index + 1, self.term))
