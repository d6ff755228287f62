"""What a leader sends to its peers: entries, snapshots and heartbeats (thesis §3.5, §5.1, §10.2.1)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.lanes import UNLIMITED, left
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.raft.progress import Progress
from drakkar.handlers.raft.state import Snapshot, State

__all__ = [
    "broadcast",
    "feed_witnesses",
    "fill_window",
    "resume",
    "send",
    "send_at_once",
    "send_due_appends",
    "send_empty",
    "send_heartbeat",
    "send_heartbeats",
    "voters_that_stay",
    "waiting",
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


def send_at_once(raft: RaftCore, replica: int) -> None:
    """The same, but also where appends are batched: a host that asks for work late would get the next one too soon."""
    _send_now(raft, replica)


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
    snapshot goes nothing else. Where they are not loaded nothing goes, and the peer waits for that. Where its lane has
    no room for them nothing goes either.
    """
    peer = raft.progress.get(replica)
    if peer is None or raft.state is not State.LEADER or peer.paused or peer.busy or peer.frozen:
        return False
    if peer.requested_snapshot:
        if raft.log.snapshot.index >= peer.requested_snapshot:
            _send_snapshot(raft, replica, peer)
        # A probe of a peer without room that goes late would be followed too soon by the next one of the clock.
        peer.probe_sent |= peer.full
        return False
    previous_term = _term_before(raft, peer)
    if previous_term is None:
        _send_snapshot(raft, replica, peer)
        return False
    try:
        end = _end_for(raft, replica)
        if not even_empty and peer.next >= end:
            return False
        room = _room(raft, replica, peer)
        if not room:
            _wait_for_room(raft, replica, peer)
            return False
        entries = raft.log.entries(peer.next, end, min(room, raft.config.max_message_bytes))
    except EntriesNotLoaded:
        if not peer.full:
            raft.awaiting_load[replica] = None
        elif even_empty:
            send_empty(raft, replica, peer)  # the probe of a peer without room is due now, and may be empty
        return False
    return _send_if_it_fits(raft, replica, peer, previous_term, entries, room)


def send_empty(raft: RaftCore, replica: int, peer: Progress) -> None:
    """Send an append without entries, whose answer shows what was lost. Without the term before it, it would show nothing."""
    previous_term = _term_before(raft, peer)
    if previous_term is None:
        _send_snapshot(raft, replica, peer)
    else:
        _send_if_it_fits(raft, replica, peer, previous_term, Entries(), _room(raft, replica, peer))


def _term_before(raft: RaftCore, peer: Progress) -> int | None:
    """The term of the entry before the first that the peer needs; None where it is compacted away."""
    previous = peer.next - 1
    term = raft.log.term(previous)
    return None if previous < raft.log.first_index - 1 or (previous and not term) else term


def _send_if_it_fits(
    raft: RaftCore, replica: int, peer: Progress, previous_term: int, entries: Entries, room: int
) -> bool:
    """Send an append, if the lane has room for it; True if it did."""
    size = entries.size
    if raft.membership.is_witness(replica):
        entries = Entries(run.without_content() for run in entries.runs)
    least = max(entries.size, 1)
    if 0 < room < least:
        room = _room(raft, replica, peer, least)
    if room < least:
        _wait_for_room(raft, replica, peer)
        return False
    previous = peer.next - 1
    raft.send(
        Message(
            MessageType.REPLICATE,
            to=replica,
            log_index=previous,
            log_term=previous_term,
            commit=raft.log.committed,
            hint=0 if raft.lanes is None else peer.number(entries.size),
            entries=entries,
        )
    )
    peer.sent(len(entries), size)
    peer.sent_commit = max(peer.sent_commit, raft.log.committed)
    return True


# -- lanes ---------------------------------------------------------------------------------------------------------


def _room(raft: RaftCore, replica: int, peer: Progress, least: int = 1) -> int:
    """Bytes that may be sent to the peer now, beside those that its lane has not been told of yet.

    Where its lane does not take `least` bytes more, it is told when it does.
    """
    if raft.lanes is None:
        return UNLIMITED
    room = raft.lanes.room(replica, least + peer.queued)
    return left(room, peer.queued, raft.config.max_message_bytes)


def _wait_for_room(raft: RaftCore, replica: int, peer: Progress) -> None:
    """The peer is busy until its lane has drained; but the lane is asked once more when it has what was sent so far."""
    if peer.queued:
        raft.appends_due[replica] = True
    else:
        peer.busy = True


def resume(raft: RaftCore, replica: int) -> None:
    """The lane of a busy peer has room again, or may have: go on.

    The commit index is repeated, since it may have been due.
    """
    raft.progress[replica].busy = False
    send(raft, replica)
    fill_window(raft, replica)


def waiting(raft: RaftCore, replica: int) -> int:
    """How many of the messages for the peer wait in its lane; 0 without lanes."""
    return 0 if raft.lanes is None else raft.lanes.waiting(replica)


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
    """The replicas that may lead when all changes in the log have taken effect.

    Raises `EntriesNotLoaded` while these changes are not known.
    """
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
    if not _room(raft, replica, peer):
        _wait_for_room(raft, replica, peer)
        return
    peer.become_snapshot(snapshot.index)
    if raft.membership.is_witness(replica):
        snapshot = Snapshot(snapshot.index, snapshot.term, snapshot.membership, witness=True)
        # It travels like an append, so no host reports what became of it: if the peer is silent, a probe tells.
        peer.delay_status(raft.config.election_ticks, rejected=False)
    raft.send(Message(MessageType.INSTALL_SNAPSHOT, to=replica, snapshot=snapshot))


# -- heartbeats ----------------------------------------------------------------------------------------------------


def send_heartbeats(raft: RaftCore, context: tuple[int, int]) -> None:
    """A heartbeat carries no more commit index than the peer is known to hold, so that it may rely on it.

    It also carries the tick at which it left, which is how the leader's lease is measured, and how it is known that a peer
    answers now and did not answer in an earlier life; with lanes, the number of the last append that has left before it;
    and, where reads rely on leases, for how many ticks the peer must elect no other.
    """
    for replica in raft.peers:
        send_heartbeat(raft, replica, (0, 0) if replica in raft.membership.observers else context)


def send_heartbeat(raft: RaftCore, replica: int, context: tuple[int, int]) -> None:
    """Send one; the answer repeats the context."""
    peer = raft.progress[replica]
    leases = raft.config.read_mode == "lease"
    raft.send(
        Message(
            MessageType.HEARTBEAT,
            to=replica,
            commit=min(peer.match, raft.log.committed),
            log_term=max(peer.handed - waiting(raft, replica), 0) if peer.handed else 0,
            hint=context[0],
            hint_high=context[1],
            log_index=raft.timers.ticks if raft.lives.home or leases else 0,
            payload=raft.config.election_ticks if leases else None,
        )
    )
