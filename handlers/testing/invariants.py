"""Invariants that hold after every step of every replica, under all faults (Raft paper figure 3, thesis figure 3.2).

The checks see what no replica sees: all disks, all logs, and the whole history. Each has a name, so a test can say
which check a bug must trip. They only observe: a run is the same with and without them.
"""

from collections.abc import Callable
from typing import Any, Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.lives import Life
from drakkar.handlers.raft.log import RaftLog
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Dropped, Ready
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.table import Never
from drakkar.handlers.testing.election_checks import check_campaign, check_transition, check_vote
from drakkar.handlers.testing.extension_checks import check_steps
from drakkar.handlers.testing.failover_checks import FailoverChecks
from drakkar.handlers.testing.history import History, LastSeen, Observed, Violation, is_quorum
from drakkar.handlers.testing.identity_checks import IdentityChecks
from drakkar.handlers.testing.lane_checks import LaneChecks
from drakkar.handlers.testing.leader_checks import check_flow, check_heartbeat, check_leader, check_refusal
from drakkar.handlers.testing.log_checks import (
    check_commit,
    check_entry,
    check_handed_out,
    check_indexes,
    check_memory,
    check_prefix,
    check_room,
)
from drakkar.handlers.testing.lost_quorum import LostQuorum
from drakkar.handlers.testing.membership_checks import check_membership, check_reach, is_same
from drakkar.handlers.testing.message_checks import check_durable
from drakkar.handlers.testing.notice_checks import NoticeChecks
from drakkar.handlers.testing.record_checks import RecordChecks
from drakkar.handlers.testing.slow_reads import reading
from drakkar.handlers.traits import Term

__all__ = ["Invariants", "check_faults"]

M = MessageType

PRE_VOTES: Final = frozenset({M.REQUEST_PRE_VOTE, M.REQUEST_PRE_VOTE_RESP})
VOTES: Final = frozenset({M.REQUEST_VOTE_RESP, M.REQUEST_PRE_VOTE_RESP})
ANSWERS: Final = frozenset({M.REPLICATE_RESP, M.LOG_FULL, M.HEARTBEAT_RESP, M.SNAPSHOT_REQUEST})
_WATCHED: Final = ("step", "ready", "send", "refuse", "become_pre_candidate", "become_candidate")
"""The methods of a core that are observed."""
EXPECTED_FAULTS: Final = frozenset({"answer from a non-member", "addressed to another replica"})
"""Faults that a late message after a membership change causes without any bug."""
CONTRADICTED: Final = "contradicts what is committed here, or was acknowledged"
"""What a replica says of a correct leader if its own disk was put back from an older copy."""


class Invariants(History):
    """The checks of one simulated shard. Each of its methods raises `Violation` if an invariant is broken."""

    def __init__(self, replicas: dict[int, Any]) -> None:
        super().__init__(replicas)
        self.lanes = LaneChecks()
        self.notices = NoticeChecks(self)
        self.identity = IdentityChecks(self)
        self.failover = FailoverChecks(self)
        self.records = RecordChecks(self)
        self.lost: LostQuorum | None = None
        """What is checked instead once a quorum of the disks was emptied; None before."""

    def started(self, replica: Observed) -> None:
        """A replica has started from its disk."""
        raft = replica.raft
        self.seen[replica.id] = seen = LastSeen(raft)
        self.identity.started(replica)
        self.failover.started(replica.id)
        self.records.started(raft)
        check_steps(raft)
        if self.lost is not None:
            self._watch_lost(replica, self.lost)
            return
        if raft.term < self.sent_term.get(replica.id, 0):
            raise Violation("INV8 terms never fall", f"{raft!r} had sent term {self.sent_term[replica.id]}")
        if raft.term < raft.log.last_term:
            raise Violation("INV8 terms never fall", f"{raft!r} has an entry of term {raft.log.last_term}")
        if raft.log.committed < replica.storage.hard_state.commit:
            raise Violation("INV6 the commit index never falls", f"{raft!r}: {replica.storage.hard_state}")
        known = self.memberships.get(raft.membership.change_id, raft.membership)
        if not is_same(raft.membership, known):
            raise Violation("V8 one membership per index", f"{raft!r} has {raft.membership}, it was {known}")
        if len(self.committed) == 1 and seen.base == 0:
            # The first membership is at the head of each log, and committed.
            self.committed += seen.terms[1 : seen.committed + 1]
            self.committed_in += seen.terms[1 : seen.committed + 1]
        check_prefix(self, raft, seen.committed)
        if replica.id not in self.former:
            self._forget_lost_term(raft)
        previous = seen.terms[0]
        with reading(raft.log):
            entries = raft.log.entries(seen.base + 1, seen.last + 1)
        for entry in entries:
            check_entry(self, raft, entry.index, entry.term, previous, entry.kind, entry.payload)
            previous = entry.term
        if len(seen.changes) > 1 and seen.committed < seen.changes[-2]:
            # It could campaign with a membership that is no longer in effect.
            raise Violation(
                "INV18 only the newest change is uncommitted",
                f"{raft!r} starts with changes at {seen.changes}",
            )
        if raft.lanes is not None:
            self.lanes.watch(raft, seen)
        self.notices.watch(raft)
        self._watch(replica)
        _watch_heartbeats(raft)

    def lose_quorum(self) -> None:
        """So many disks were emptied that what is committed may be forgotten: from now on other promises hold."""
        self.lost = LostQuorum(self, self.identity.emptied)
        for replica in self.replicas.values():
            if replica.up:
                for name in _WATCHED:
                    vars(replica.raft).pop(name, None)
                self._watch_lost(replica, self.lost)
        self.records.lose_quorum()

    def _watch_lost(self, replica: Observed, lost: LostQuorum) -> None:
        raft = replica.raft
        ready = raft.ready

        def watched_ready() -> Ready:
            handed_out = ready()
            lost.handed_out(raft, handed_out)
            return handed_out

        raft.ready = watched_ready  # type: ignore[method-assign]

    def _forget_lost_term(self, raft: Raft) -> None:
        """A crash may lose the term of a leader that is the only voter. No other replica knew that term or its entries."""
        lost = [key for key in self.entries if key[1] > raft.term and self.leaders.get(key[1]) == raft.id]
        for key in lost:
            del self.entries[key]
        for term in [term for term, leader in self.leaders.items() if leader == raft.id and term > raft.term]:
            del self.leaders[term]

    def _watch(self, replica: Observed) -> None:
        """Observe every message that the core takes in, and everything that it hands out, with any kind of host."""
        self._watch_steps(replica)
        self._watch_messages_out(replica)
        self._watch_ready(replica)
        self._watch_appends(replica)
        self._watch_campaigns(replica.raft)

    def _watch_steps(self, replica: Observed) -> None:
        raft, step = replica.raft, replica.raft.step
        depth = 0  # a handler may step another message

        def watched_step(message: Message, life: Life | None = None) -> Any:
            nonlocal depth
            if message.type is M.READ_INDEX and message.sender in (0, replica.id):
                self.reads[replica.id, message.hint, message.hint_high] = len(self.committed) - 1
            elif message.type is M.TIMEOUT_NOW:
                self.asked_to_lead.add((replica.id, message.term))
            elif message.type is M.CONFIG_CHANGE_EVENT:
                self.turned(replica)  # entries that were committed before the change need the old quorum
            before = self._before(replica, message)
            if message.type is M.LOCAL_TICK:
                self.seen[replica.id].elapsed = raft.timers.election_elapsed + 1
            self.happened["a disk was found full"] += message.type is M.DISK_FULL
            if not depth:
                self.failover.stepping(raft, message)
            depth += 1
            answer = step(message, life)
            depth -= 1
            if message.type is M.LOCAL_TICK:
                self.seen[replica.id].elapsed = 0
            if before is not None:
                self._check_unchanged(raft, message, before)
            if not depth:
                self.failover.stepped(raft, message)
                self.turned(replica)  # a turn may take several messages and apply several changes
            return answer

        raft.step = watched_step  # type: ignore[method-assign]

    def _watch_messages_out(self, replica: Observed) -> None:
        raft = replica.raft
        send, refuse = raft.send, raft.refuse

        def watched_send(message: Message) -> None:
            if message.type is M.TIMEOUT_NOW and message.to != raft.transfer.target:
                raise Violation(
                    "INV28 only the successor is asked to campaign", f"{raft!r} asks {message.to}"
                )
            if message.type in (M.REPLICATE, M.INSTALL_SNAPSHOT):
                check_flow(raft, message, self.seen[replica.id])
            granted = message.type is M.REQUEST_PRE_VOTE_RESP and not message.reject
            if granted and _in_lease(raft):
                raise Violation("INV20 a lease protects its leader", f"{raft!r} answers {message}")
            if message.type in VOTES:
                self.failover.answers(raft, message)
            self.happened["a follower said that its disk is full"] += message.type is M.LOG_FULL
            send(message)

        def watched_refuse(asker: int, refused: Dropped) -> None:
            if refused.type is M.PROPOSE:
                check_refusal(raft, refused.because)
            refuse(asker, refused)

        raft.send = watched_send  # type: ignore[method-assign]
        raft.refuse = watched_refuse  # type: ignore[method-assign]

    def _watch_ready(self, replica: Observed) -> None:
        raft, ready = replica.raft, replica.raft.ready

        def watched_ready() -> Ready:
            handed_out = ready()
            self.turned(replica)
            check_handed_out(self, replica, handed_out)
            self.identity.handed_out(raft, self.seen[replica.id], handed_out)
            return handed_out

        raft.ready = watched_ready  # type: ignore[method-assign]

    def _watch_appends(self, replica: Observed) -> None:
        """Check each append when it happens, since there may be room, or none, at the end of the turn."""
        raft = replica.raft

        # It has done nothing yet. A log of another class, since the methods of a compiled object cannot be replaced.
        def show(run: Run) -> None:
            check_room(self, replica, run)
            self.records.appends(raft, run)
            if self.lost is None:  # else it is not noted any more who is heard
                check_reach(self, raft, self.seen[replica.id], run)

        raft.log = _WatchedLog(raft.log, show)

    def _watch_campaigns(self, raft: Raft) -> None:
        """Check each campaign when it begins, since it may be over at the end of the turn."""
        pre_campaign, campaign = raft.become_pre_candidate, raft.become_candidate

        def watched_pre_campaign() -> None:
            check_campaign(raft, self.seen[raft.id])
            self.failover.campaigns(raft, self.seen[raft.id].elapsed, asks=True)
            pre_campaign()

        def watched_campaign() -> None:
            check_campaign(raft, self.seen[raft.id])
            self.failover.campaigns(raft, self.seen[raft.id].elapsed, asks=False)
            campaign()

        raft.become_pre_candidate = watched_pre_campaign  # type: ignore[method-assign]
        raft.become_candidate = watched_campaign  # type: ignore[method-assign]

    def sent(self, replica: Observed, message: Message) -> None:
        """A replica's host sends a message."""
        type_ = message.type
        if type_ >= M.FIRST_FREE or self.lost is not None:
            return
        if type_.traits.local or message.sender != replica.id or message.to in (0, replica.id):
            raise Violation("INV23 only valid messages are sent", str(message))
        if (not message.term) is not (type_.traits.term is Term.NONE):
            raise Violation("INV23 only valid messages are sent", f"with or without a term: {message}")
        self.identity.sent(replica, message)
        if message.term and type_ not in PRE_VOTES:
            check_durable(self, replica, message)
        if type_ is M.HEARTBEAT:
            self.lanes.check_heartbeat(replica.raft, message)
        elif type_ is M.REPLICATE:
            self.lanes.enters(message)

    def _before(self, replica: Observed, message: Message) -> tuple[Any, ...] | None:
        """A message is about to be stepped. The result is for `_check_unchanged`."""
        raft = replica.raft
        # Other answers are left out: the replica that asked may have changed its state since.
        from_leader = message.type.traits.from_leader or message.type is M.READ_INDEX_RESP
        current = from_leader and message.term == raft.term
        if current and isinstance(raft.handlers[raft.state][message.type], Never):
            raise Violation("INV19 an impossible cell is never reached", f"{raft!r} gets {message}")
        if message.type is M.REQUEST_PRE_VOTE:
            kept = raft.term, raft.vote, raft.log.last_index, raft.timers.election_elapsed
            return *kept, raft.state, raft.quiesce.quiesced
        if message.type is M.REQUEST_VOTE:
            protected = _in_lease(raft) and not message.hint and message.term > raft.term
            return (raft.term,) if protected else None
        if message.type in ANSWERS and message.term == raft.term:
            self.seen[replica.id].heard[message.sender] = raft.timers.ticks
        return None

    def _check_unchanged(self, raft: Raft, message: Message, before: tuple[Any, ...]) -> None:
        """A vote request was stepped; `before` is the state before it."""
        if message.type is M.REQUEST_PRE_VOTE:
            # A candidate may learn from it that a membership change is committed, and stop its campaign. And a sleeper
            # wakes up, as by any message that is not of sleepers, and begins to wait anew.
            *_, known, state, slept = before
            elapsed = raft.timers.election_elapsed if raft.state is state and not slept else known
            after = raft.term, raft.vote, raft.log.last_index, elapsed
            if after != before[:4]:
                raise Violation("INV16 a pre-vote changes nothing", f"{before} became {after} by {message}")
        else:
            self.happened["a vote was refused within the lease"] += 1
            if raft.term != before[0]:
                raise Violation(
                    "INV20 a lease protects its leader", f"{raft!r} left term {before[0]} for {message}"
                )

    def ticked(self, replica: Observed) -> None:
        """A replica's clock has ticked."""
        raft, seen = replica.raft, self.seen[replica.id]
        if raft.state is State.LEADER:
            seen.commits.append((raft.timers.ticks, raft.log.committed))
        if self.lost is not None:
            return
        if raft.state is not State.LEADER or not raft.config.check_quorum or raft.quiesce.on:
            return
        oldest = raft.timers.ticks - 2 * raft.config.election_ticks - 1
        if seen.leading_since > oldest:
            return
        # A peer that has begun another life has said so itself. Its progress begins anew then, as one that was heard.
        signs = (*seen.heard.items(), *raft.lives.met_at.items())
        heard = {peer for peer, tick in signs if tick >= oldest}
        if not is_quorum(raft.membership, {raft.id, *heard}):
            raise Violation(
                "INV20 a leader without a quorum steps down",
                f"{raft!r} heard {seen.heard} at {raft.timers.ticks}",
            )

    def turned(self, replica: Observed) -> None:
        """A replica has taken a turn."""
        raft, seen = replica.raft, self.seen[replica.id]
        log = raft.log
        if self.lost is not None:
            self.lost.turned(raft)
            self._note_newest(raft.membership)
            return
        self.failover.look(raft)
        picture = (
            raft.state,
            raft.term,
            raft.vote,
            log.committed,
            log.applied,
            log.applying,
            log.first_index,
            log.last_index,
            raft.membership,
            len(raft.faults),
        )
        if picture != seen.picture:
            seen.picture = picture
            check_indexes(raft, seen)
            check_memory(raft)
            check_vote(raft, seen)
            check_faults(replica)
            check_membership(self, raft, seen)
            if log.applied != seen.applied:
                self.identity.applied(raft)
            if raft.state is not seen.state or raft.term != seen.term:
                check_transition(self, raft, seen, self.identity)
            if log.committed > seen.committed:
                check_commit(self, raft, seen, self.identity)
        if raft.state is State.LEADER:
            check_leader(self, raft, seen)
        self.identity.turned(replica)
        seen.state, seen.term, seen.vote = raft.state, raft.term, raft.vote
        seen.committed, seen.applied = log.committed, log.applied
        seen.first, seen.last = log.first_index, log.last_index
        seen.membership = raft.membership

    def _note_newest(self, membership: Membership) -> None:
        if self.newest is None or membership.change_id > self.newest.change_id:
            self.newest = membership


def _watch_heartbeats(raft: Raft) -> None:
    send = raft.send

    def watched_send(message: Message) -> None:
        send(message)
        if message.type is M.HEARTBEAT:
            check_heartbeat(raft, message)

    raft.send = watched_send  # type: ignore[method-assign]


class _WatchedLog(RaftLog):
    """The log of a `Raft` that has just started. It shows each run before it takes it in."""

    def __init__(self, log: RaftLog, show: Callable[[Run], object]) -> None:
        super().__init__(log.storage, memory=log.memory)
        self._taken_kinds = log._taken_kinds
        self._show = show

    def append(self, run: Run) -> None:
        self._show(run)
        super().append(run)


def check_faults(replica: Observed) -> None:
    """A correct replica finds no fault with others. One on an older copy of its disk lacks what it had acknowledged, and says so."""
    unexpected = replica.raft.faults.keys() - EXPECTED_FAULTS
    if replica.directory.copied:
        unexpected.discard(CONTRADICTED)
    if unexpected:
        raise Violation("INV19 no fault among correct replicas", f"{replica.raft!r}: {sorted(unexpected)}")


def _in_lease(raft: Raft) -> bool:
    """Return whether a replica has heard its leader within an election timeout, and so must not vote against it."""
    known = raft.config.check_quorum and raft.leader_id
    return bool(known) and raft.timers.election_elapsed < raft.config.election_ticks
