"""What a leader sends to its peers: entries, snapshots and heartbeats (thesis §3.5, §5.1, §10.2.1)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.progress import Progress
from drakkar.handlers.raft.state import Snapshot, State

__all__ = [
    "broadcast",
    "feed_witnesses",
    "fill_window",
    "send",
    "send_due_appends",
    "send_empty",
    "send_heartbeats",
    "voters_that_stay",
]

# -- entries -------------------------------------------------------------------------------------------------------


def broadcast(raft: RaftCore) -> None:
    """Send every peer what it lacks; to one that lacks nothing, the commit index."""
    for peer in raft.peers:
        send(raft, peer)


def send(raft: RaftCore, replica: int, *, even_empty: bool = True) -> None:
    """Send one peer what it lacks, now or, where appends are batched, when the host asks for work."""
    if raft.config.batch_append:
        raft.appends_due[replica] = raft.appends_due.get(replica, False) or even_empty
    else:
        _send_now(raft, replica, even_empty=even_empty)


def send_due_appends(raft: RaftCore) -> None:
    """Send what `send` put off, one message a peer for many reasons, and fill the windows."""
    due, raft.appends_due = raft.appends_due, {}
    for replica, even_empty in due.items():
        if _send_now(raft, replica, even_empty=even_empty):
            _send_until_full(raft, replica)


def fill_window(raft: RaftCore, replica: int) -> None:
    """Send one peer all entries that it lacks and that its window takes."""
    if raft.config.batch_append:
        send(raft, replica, even_empty=False)
    else:
        _send_until_full(raft, replica)


def _send_until_full(raft: RaftCore, replica: int) -> None:
    while _send_now(raft, replica, even_empty=False):
        pass


def _send_now(raft: RaftCore, replica: int, *, even_empty: bool = True) -> bool:
    """Send one peer the entries from `next` on, up to the size limit; True if a message with them went out.

    Where they, or the term before them, are compacted away, a snapshot goes instead; to a peer that asked for a
    snapshot goes nothing else.
    """
    peer = raft.progress.get(replica)
    if peer is None or raft.state is not State.LEADER or peer.paused:
        return False
    if peer.requested_snapshot:
        if raft.log.snapshot.index >= peer.requested_snapshot:
            _send_snapshot(raft, replica, peer)
        return False
    previous_term = _term_before(raft, peer)
    if previous_term is None:
        _send_snapshot(raft, replica, peer)
        return False
    entries = raft.log.entries(peer.next, _end_for(raft, replica), raft.config.max_message_bytes)
    if not entries and not even_empty:
        return False
    _send_append(raft, replica, peer, previous_term, entries)
    return True


def send_empty(raft: RaftCore, replica: int, peer: Progress) -> None:
    """Send an append without entries, whose answer shows what was lost. Without the term before it, it would show nothing."""
    previous_term = _term_before(raft, peer)
    if previous_term is None:
        _send_snapshot(raft, replica, peer)
    else:
        _send_append(raft, replica, peer, previous_term, Entries())


def _term_before(raft: RaftCore, peer: Progress) -> int | None:
    """The term of the entry before the first that the peer needs; None where it is compacted away."""
    previous = peer.next - 1
    term = raft.log.term(previous)
    return None if previous < raft.log.first_index - 1 or (previous and not term) else term


def _send_append(raft: RaftCore, replica: int, peer: Progress, previous_term: int, entries: Entries) -> None:
    previous = peer.next - 1
    size = entries.size
    if raft.membership.is_witness(replica):
        entries = Entries(run.without_content() for run in entries.runs)
    raft.send(
        Message(
            MessageType.REPLICATE,
            to=replica,
            log_index=previous,
            log_term=previous_term,
            commit=raft.log.committed,
            entries=entries,
        )
    )
    peer.sent(len(entries), size)
    peer.sent_commit = max(peer.sent_commit, raft.log.committed)


# -- witnesses -----------------------------------------------------------------------------------------------------


def _end_for(raft: RaftCore, replica: int) -> int:
    """Behind the last entry that the peer may know: a witness less than others."""
    known = _kept_by_voters(raft) if raft.membership.is_witness(replica) else raft.log.last_index
    return known + 1


def _kept_by_voters(raft: RaftCore) -> int:
    """The last index that a voter surely keeps that is still one when all changes in the log have taken effect.

    A witness must not know more. It votes, but cannot lead: if it remembered what only a voter knew that is gone, or has
    crashed before its write, no replica could ever win its vote.
    """
    log = raft.log
    if raft.pending_change_index <= log.applied and raft.membership.is_voter(raft.id):
        return log.stable
    return max(map(raft.match_of, voters_that_stay(raft)))


def voters_that_stay(raft: RaftCore) -> frozenset[int]:
    """The replicas that may lead when all changes in the log have taken effect."""
    after = raft.membership_at(raft.log.last_index)
    return frozenset(filter(after.is_voter, after.everybody))


def feed_witnesses(raft: RaftCore) -> None:
    """Send witnesses what has become durable elsewhere: they wait for that."""
    if raft.membership.witnesses or raft.membership.outgoing_witnesses:
        for peer in raft.peers:
            if raft.membership.is_witness(peer):
                send(raft, peer, even_empty=False)


# -- snapshots -----------------------------------------------------------------------------------------------------


def _send_snapshot(raft: RaftCore, replica: int, peer: Progress) -> None:
    """Bring up a peer that needs entries which are compacted away. One that is not heard of waits."""
    snapshot = raft.log.snapshot
    if not peer.active:
        return
    if not snapshot:
        raft.fault("no snapshot stands in for what was compacted")
        return
    if raft.membership.is_witness(replica):
        snapshot = Snapshot(snapshot.index, snapshot.term, snapshot.membership, witness=True)
    peer.become_snapshot(snapshot.index)
    raft.send(Message(MessageType.INSTALL_SNAPSHOT, to=replica, snapshot=snapshot))


# -- heartbeats ----------------------------------------------------------------------------------------------------


def send_heartbeats(raft: RaftCore, context: tuple[int, int]) -> None:
    """A heartbeat carries no more commit index than the peer is known to hold, so that it may rely on it.

    It also carries the tick at which it left, which is how the leader's lease is measured.
    """
    for replica in raft.peers:
        hint, hint_high = (0, 0) if replica in raft.membership.observers else context
        raft.send(
            Message(
                MessageType.HEARTBEAT,
                to=replica,
                commit=min(raft.progress[replica].match, raft.log.committed),
                hint=hint,
                hint_high=hint_high,
                log_index=raft.timers.ticks if raft.config.read_mode == "lease" else 0,
            )
        )
