"""Linearizable reads without a log entry (thesis §6.4), and by a lease (§6.4.1).

The leader notes its commit index, makes sure by a round of heartbeats that it still leads, and hands the index
out; whoever asked serves the read once its state machine has applied that far. Observers and followers send their
reads on to the leader, which is how they share the load.

A round is named by its newest read. A read of this host is named by its own context, which hosts do not repeat.
A context from another host may come twice, as the network duplicates, and late answers to its first round must
not confirm its second: so the leader gives such reads, and any context that it has seen before, a name of its own.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import quorum, replication
from drakkar.handlers.raft.ready import Dropped, ReadReady, Refusal

if TYPE_CHECKING:
    from drakkar.handlers.raft.raft import Raft

__all__ = ["ReadQueue", "forward_read", "publish", "refuse_read", "serve_read"]

Context: TypeAlias = tuple[int, int]

_NONE: Final[Context] = (0, 0)
_OWN_NAMES: Final = 1 << 63
"""The high part of names that the leader gives; hosts draw theirs below it."""


@dataclass(slots=True)
class PendingRead:
    """A read that waits for a quorum to confirm that its leader still leads."""

    index: int
    context: Context
    requester: int
    """The replica that asked; 0 is this host."""
    confirmed_by: set[int] = field(default_factory=set)


class ReadQueue:
    """The reads of one term's leader, oldest first."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.pending: OrderedDict[Context, PendingRead] = OrderedDict()
        self.postponed: list[tuple[Context, int]] = []
        """Came before the first commit of the term: what is committed is not known yet (thesis §6.4)."""
        self.lease_stamps: dict[int, int] = {}
        """For each peer, the tick at which the newest heartbeat that it answered had left."""
        self.lease_revoked = False
        """This leader asked another replica to campaign, lease or not, so it must not rely on the lease any more."""
        self._seen: OrderedDict[Context, None] = OrderedDict()
        self._names = 0

    def __len__(self) -> int:
        return len(self.pending) + len(self.postponed)

    @property
    def full(self) -> bool:
        """No more reads are taken."""
        return len(self) >= self.bound

    @property
    def newest(self) -> Context:
        """The name of the newest round, which confirms all before it; (0, 0) is none."""
        return next(reversed(self.pending)) if self.pending else _NONE

    def holds(self, context: Context, requester: int) -> bool:
        """Whether this very read waits already."""
        return any(
            read.context == context and read.requester == requester for read in self.pending.values()
        ) or ((context, requester) in self.postponed)

    def add(self, index: int, context: Context, requester: int) -> Context:
        """Let a read at `index` wait; returns the name of its round."""
        name = context
        if requester or context == _NONE or context in self._seen:
            self._names += 1
            name = (self._names, _OWN_NAMES)
        else:
            self._seen[context] = None
            if len(self._seen) > 4 * self.bound:
                self._seen.popitem(last=False)
        self.pending[name] = PendingRead(index, context, requester)
        return name

    def release_through(self, name: Context) -> list[PendingRead]:
        """Take out this read and all before it, each of which is confirmed as well."""
        released = []
        while self.pending:
            oldest, read = self.pending.popitem(last=False)
            released.append(read)
            if oldest == name:
                break
        return released

    def clear(self) -> list[Context]:
        """The term is over; returns the contexts of this host's own reads."""
        waiting = [(read.context, read.requester) for read in self.pending.values()] + self.postponed
        self.pending.clear()
        self.postponed = []
        self.lease_stamps.clear()
        self.lease_revoked = False
        return [context for context, requester in waiting if not requester]


# -- whoever asks --------------------------------------------------------------------------------------------------


def forward_read(raft: "Raft", ask: Message) -> None:
    """A read goes to the leader, if one is known; else whoever asked is told."""
    if raft.leader_id and ask.sender in (0, raft.id):
        raft.send(Message(MessageType.READ_INDEX, to=raft.leader_id, hint=ask.hint, hint_high=ask.hint_high))
    else:
        _drop(raft, (ask.hint, ask.hint_high), _requester(raft, ask), Refusal.NO_LEADER)


def refuse_read(raft: "Raft", ask: Message) -> None:
    """Nobody can confirm a read while an election is going on."""
    _drop(raft, (ask.hint, ask.hint_high), _requester(raft, ask), Refusal.CAMPAIGNING)


def publish(raft: "Raft", answer: Message) -> None:
    """The leader confirmed our read. What it has committed is committed here too, where we hold it."""
    raft.heard_leader(answer.sender)
    context = (answer.hint, answer.hint_high)
    if answer.reject:
        raft.drop(Dropped(MessageType.READ_INDEX, Refusal.NO_LEADER, *context))
        return
    if raft.log.term(answer.log_index) == raft.term:
        raft.log.commit_to(answer.log_index)
    raft.release(ReadReady(answer.log_index, context))


# -- the leader ----------------------------------------------------------------------------------------------------


def serve_read(raft: "Raft", ask: Message) -> None:
    """Thesis §6.4: once an entry of this term is committed, note the commit index and ask for a quorum's word."""
    requester, context = _requester(raft, ask), (ask.hint, ask.hint_high)
    if raft.membership.is_witness(requester) or raft.reads.holds(context, requester):
        return
    if raft.reads.full:
        _drop(raft, context, requester, Refusal.TOO_MANY_READS)
    elif not raft.has_committed_in_term:
        raft.reads.postponed.append((context, requester))
    else:
        _begin(raft, context, requester)


def _requester(raft: "Raft", ask: Message) -> int:
    return 0 if ask.sender == raft.id else ask.sender


def _begin(raft: "Raft", context: Context, requester: int) -> None:
    index = raft.log.committed
    if quorum.has_quorum(raft.electorate, (raft.id,)) or _holds_lease(raft):
        _release(raft, PendingRead(index, context, requester))
        return
    name = raft.reads.add(index, context, requester)
    replication.send_beats(raft, name)


def answer_postponed(raft: "Raft") -> None:
    """The first entry of this term is committed: now it is known what reads must see."""
    if raft.reads.postponed and raft.has_committed_in_term:
        postponed, raft.reads.postponed = raft.reads.postponed, []
        for context, requester in postponed:
            _begin(raft, context, requester)


def count_confirmation(raft: "Raft", answer: Message) -> None:
    """A peer that answered the round's heartbeat knew no newer term by then. Only voters' words count."""
    name = (answer.hint, answer.hint_high)
    read = raft.reads.pending.get(name)
    if read is None:
        return
    read.confirmed_by.add(answer.sender)
    if quorum.has_quorum(raft.electorate, read.confirmed_by | {raft.id}):
        _release_through(raft, name)


def recount(raft: "Raft") -> None:
    """The membership changed, and with it what a quorum is."""
    for name in reversed(raft.reads.pending):
        if quorum.has_quorum(raft.electorate, raft.reads.pending[name].confirmed_by | {raft.id}):
            _release_through(raft, name)
            return


def _release_through(raft: "Raft", name: Context) -> None:
    index = raft.reads.pending[name].index
    for read in raft.reads.release_through(name):
        read.index = index
        _release(raft, read)


def _release(raft: "Raft", read: PendingRead) -> None:
    hint, hint_high = read.context
    if not read.requester:
        raft.release(ReadReady(read.index, read.context))
    else:
        raft.send(
            Message(
                MessageType.READ_INDEX_RESP,
                to=read.requester,
                log_index=read.index,
                hint=hint,
                hint_high=hint_high,
            )
        )


def _drop(raft: "Raft", context: Context, requester: int, because: Refusal) -> None:
    """Tell this host, or as leader the one that asked, that the read will not be answered."""
    hint, hint_high = context
    if not requester:
        raft.drop(Dropped(MessageType.READ_INDEX, because, hint, hint_high))
    elif raft.leader_id == raft.id:
        raft.send(
            Message(MessageType.READ_INDEX_RESP, to=requester, reject=True, hint=hint, hint_high=hint_high)
        )


# -- leases --------------------------------------------------------------------------------------------------------


def note_lease(raft: "Raft", answer: Message) -> None:
    """Remember when the heartbeat that a peer answered had left: from then on it refuses votes for a while."""
    if 0 < answer.log_index <= raft.ticks:
        stamps = raft.reads.lease_stamps
        stamps[answer.sender] = max(stamps.get(answer.sender, 0), answer.log_index)


def _holds_lease(raft: "Raft") -> bool:
    """Thesis §6.4.1: for an election timeout after a quorum was heard, nobody else can have been elected.

    Only with `read_mode="lease"`, which assumes that all clocks tick at the same rate within a tenth, and that no
    process stands still unnoticed: a leader that was paused does not know that its lease is over. Measured from when the
    answered heartbeats left, and shorter than the election timeout by a tenth for the drift and a tick for the
    rounding. CheckQuorum's flags, which etcd relies on, would let the lease last up to two election timeouts.
    """
    if raft.config.read_mode != "lease" or not raft.check_quorum or raft.reads.lease_revoked:
        return False
    timeout = raft.config.election_ticks
    stamps = raft.reads.lease_stamps
    start = quorum.joint_committed(
        raft.electorate, lambda replica: raft.ticks if replica == raft.id else stamps.get(replica, 0)
    )
    return start > 0 and raft.ticks - start < timeout - 1 - -(-timeout // 10)
