"""Linearizable reads without a log entry (thesis §6.4), and by a lease (§6.4.1).

The leader notes its commit index, makes sure by a round of heartbeats that it still leads, and hands the index
out; the asker serves the read once its state machine has applied that far. Observers and followers forward their
reads to the leader, which is how they share the load.
"""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import sending, settling
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.read_queue import Context, PendingRead
from drakkar.handlers.raft.ready import Dropped, ReadReady, Refusal

__all__ = [
    "MAX_LEASE_TIMEOUTS",
    "answer_postponed",
    "count_confirmation",
    "forward",
    "keep_lease",
    "note_lease",
    "publish",
    "recount",
    "refuse",
    "serve",
]

# -- the asker -----------------------------------------------------------------------------------------------------


def forward(raft: RaftCore, ask: Message) -> None:
    """A read goes to the leader, if one is known; else the asker is told."""
    if raft.leader_id and ask.sender in (0, raft.id):
        raft.send(Message(MessageType.READ_INDEX, to=raft.leader_id, hint=ask.hint, hint_high=ask.hint_high))
    else:
        _refuse(raft, ask, Refusal.NO_LEADER)


def refuse(raft: RaftCore, ask: Message) -> None:
    """While an election is going on no replica can confirm a read."""
    _refuse(raft, ask, Refusal.CAMPAIGNING)


def _refuse(raft: RaftCore, ask: Message, because: Refusal) -> None:
    raft.refuse(ask.sender, Dropped(MessageType.READ_INDEX, because, ask.hint, ask.hint_high))


def publish(raft: RaftCore, answer: Message) -> None:
    """The leader confirmed our read. What it has committed is committed here too, where we hold it."""
    if answer.reject:
        raft.fault("a read that is confirmed and refused")
        return
    raft.heard_leader(answer.sender)
    raft.heard.vouched = max(raft.heard.vouched, answer.log_index)
    if raft.log.term(answer.log_index) == raft.term:
        raft.log.commit_to(answer.log_index)
    raft.outbox.reads.append(ReadReady(answer.log_index, (answer.hint, answer.hint_high)))


# -- the leader ----------------------------------------------------------------------------------------------------


def serve(raft: RaftCore, ask: Message) -> None:
    """Thesis §6.4: once an entry of this term is committed, note the commit index and ask a quorum to confirm."""
    requester, context = 0 if ask.sender == raft.id else ask.sender, (ask.hint, ask.hint_high)
    if raft.membership.is_witness(requester) or raft.reads.holds(context, requester):
        return
    if raft.reads.full:
        _refuse(raft, ask, Refusal.TOO_MANY_READS)
    elif not raft.has_committed_in_term:
        raft.reads.postponed.append((context, requester))
    else:
        _begin(raft, context, requester)


def _begin(raft: RaftCore, context: Context, requester: int) -> None:
    index = raft.log.committed
    if settling.has_quorum(raft, (raft.id,)) or _holds_lease(raft):
        _release(raft, PendingRead(index, context, requester))
        return
    name = raft.reads.add(index, context, requester)
    sending.send_heartbeats(raft, name)


def answer_postponed(raft: RaftCore) -> None:
    """The first entry of this term is committed: now it is known what reads must see."""
    if raft.reads.postponed and raft.has_committed_in_term:
        postponed, raft.reads.postponed = raft.reads.postponed, []
        for context, requester in postponed:
            _begin(raft, context, requester)


def count_confirmation(raft: RaftCore, answer: Message) -> None:
    """A peer that answered a round's heartbeat knew no newer term by then. Only voters count."""
    if raft.reads.note_answer((answer.hint, answer.hint_high), answer.sender):
        recount(raft)


def recount(raft: RaftCore) -> None:
    """Answer the reads whose rounds a quorum has confirmed, after an answer or a change of what a quorum is."""
    reads = raft.reads
    confirmed = settling.agreed(
        raft,
        lambda replica: reads.rounds if replica == raft.id else reads.answered.get(replica, 0),
    )
    released = reads.release_through(confirmed)
    for read in released:
        read.index = released[-1].index
        _release(raft, read)


def _release(raft: RaftCore, read: PendingRead) -> None:
    if not read.requester:
        raft.outbox.reads.append(ReadReady(read.index, read.context))
        return
    hint, hint_high = read.context
    answer = Message(
        MessageType.READ_INDEX_RESP,
        to=read.requester,
        log_index=read.index,
        hint=hint,
        hint_high=hint_high,
    )
    raft.send(answer)


# -- leases: the leader ------------------------------------------------------------------------------------------


def note_lease(raft: RaftCore, answer: Message) -> None:
    """Remember when the heartbeat left that a peer answered: from then on the peer refuses votes for a while."""
    if 0 < answer.log_index <= raft.timers.ticks:
        stamps = raft.reads.lease_stamps
        stamps[answer.sender] = max(stamps.get(answer.sender, 0), answer.log_index)


def _holds_lease(raft: RaftCore) -> bool:
    """Thesis §6.4.1: for an election timeout after a quorum was heard, no other replica can have been elected.

    Only with `read_mode="lease"`, which assumes that all clocks tick at the same rate within a tenth, and that no
    process stands still unnoticed: a leader that was paused does not know that its lease is over. Measured from when the
    answered heartbeats left, and shorter than the election timeout by a tenth for the drift and a tick for the
    rounding. CheckQuorum's flags, which etcd relies on, would let the lease last up to two election timeouts.
    """
    if raft.config.read_mode != "lease" or not raft.check_quorum or raft.reads.lease_revoked:
        return False
    timeout = raft.config.election_ticks
    stamps = raft.reads.lease_stamps
    start = settling.agreed(
        raft, lambda replica: raft.timers.ticks if replica == raft.id else stamps.get(replica, 0)
    )
    return start > 0 and raft.timers.ticks - start < timeout - 1 - -(-timeout // 10)


# -- leases: the others --------------------------------------------------------------------------------------------

MAX_LEASE_TIMEOUTS: Final = 4
"""Election timeouts of its own for which a replica believes at most that a lease lasts: a leader that is faulty must not
silence its shard for long."""


def keep_lease(raft: RaftCore, heartbeat: Message) -> None:
    """Neither vote nor campaign while the leader may read by this heartbeat, with any options of this replica.

    The leader counts from when it left, and this replica from when it came, so the lease is surely over by then. The
    promise outlives the term, and the news that the leader's process is gone, which may be wrong.
    """
    timers = raft.timers
    timers.no_votes_before = max(timers.no_votes_before, timers.ticks + _lease_ticks(raft, heartbeat))


def _lease_ticks(raft: RaftCore, heartbeat: Message) -> int:
    """The election timeout of a leader that reads by leases, else 0.

    One of version 4.1 does not say which it does: it is believed to do as this replica would.
    """
    timeout, said = raft.config.election_ticks, heartbeat.payload
    if type(said) is int:
        return min(max(said, 0), MAX_LEASE_TIMEOUTS * timeout)
    return timeout if heartbeat.log_index and raft.config.read_mode == "lease" else 0
