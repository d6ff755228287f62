"""Heartbeats: the leader is alive, and so are its peers (thesis §3.4); they also confirm reads (§6.4).

They also show what was lost. Without lanes, a probe that is not answered before a heartbeat is. But with
lanes a heartbeat may overtake appends. So each append has a number, and a heartbeat names the last one that
has left this host before it. A peer that did not hear that one never will, since a connection is one ordered
stream. Where the peer heard it, only the answer may be lost, or take long; an empty append, which takes its
turn in the lane, is then answered in its place.
"""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import divergence, reads, sending, settling, snapshot
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.progress import Progress, ProgressState

__all__ = ["handle_heartbeat", "handle_heartbeat_as_follower", "heartbeat", "on_heartbeat_response"]

_ASK_AGAIN_AFTER: Final = 2
"""Heartbeats for which a leader waits for the answer to an append before it asks again: an answer may have to
wait for a disk."""


def heartbeat(raft: RaftCore, _event: Message) -> None:
    """Tell all peers that this term has a leader (thesis §3.4); repeat the newest read that is not confirmed."""
    for replica in raft.peers:
        raft.progress[replica].heartbeat_sent()
    sending.send_heartbeats(raft, raft.reads.newest)


def handle_heartbeat(raft: RaftCore, message: Message) -> None:
    """The leader is alive. Its commit index is clipped to what it knows us to hold, so all of it is committed.

    The answer says whether the append that the heartbeat names was heard here.
    """
    raft.heard_leader(message.sender)
    reads.keep_lease(raft, message)
    divergence.learn_commit(raft, message)
    if raft.requested_snapshot:
        snapshot.repeat_request(raft)
        return
    raft.reply(
        message,
        MessageType.HEARTBEAT_RESP,
        hint=message.hint,
        hint_high=message.hint_high,
        log_index=message.log_index,
        log_term=message.log_term,
        reject=message.log_term > raft.heard.number,
        commit=raft.log.committed,
    )


def handle_heartbeat_as_follower(raft: RaftCore, message: Message) -> None:
    """A candidate that hears from the leader of its own term has lost (thesis §3.4)."""
    raft.become_follower(message.term, message.sender)
    handle_heartbeat(raft, message)


def on_heartbeat_response(raft: RaftCore, answer: Message) -> None:
    """The peer is there: go on sending to it, and count its confirmation of a read."""
    peer = raft.progress[answer.sender]
    reads.note_lease(raft, answer)
    peer.present()
    peer.commit = max(peer.commit, answer.commit)
    if raft.lanes is None:
        _go_on(raft, answer, peer)
    elif answer.reject and answer.log_term > peer.lost_until:
        peer.lost()
        sending.send(raft, answer.sender)
    else:
        _go_on_in_lanes(raft, answer.sender, peer)
    # Only now: it may log a home and send it to all, and that must not go ahead of what was lost.
    settling.note_presence(raft, answer)
    if answer.hint or answer.hint_high:
        reads.count_confirmation(raft, answer)


def _go_on(raft: RaftCore, answer: Message, peer: Progress) -> None:
    """Count a probe that is still out as lost.

    A full window gets one empty append, so that the loss of all of its messages cannot stall the peer for ever. So does one that
    was started anew: it commits nothing before an append shows that its log is the leader's (`divergence.learn_commit`).
    """
    peer.heard()
    started = raft.lives.home and answer.commit < min(raft.log.committed, peer.match)
    if peer.state is ProgressState.REPLICATE and (peer.inflight.full or started):
        sending.send_empty(raft, answer.sender, peer)
    elif peer.match < raft.log.last_index or peer.state is ProgressState.PROBE:
        sending.send(raft, answer.sender)


def _go_on_in_lanes(raft: RaftCore, replica: int, peer: Progress) -> None:
    """Send nothing again, but let nothing wait for ever: for a lost answer, or for a lane that says nothing."""
    if peer.busy:
        sending.resume(raft, replica)
    elif not peer.unanswered:
        peer.unpause()
        if peer.match < raft.log.last_index or peer.state is ProgressState.PROBE:
            sending.send(raft, replica)
    elif peer.silent >= _ASK_AGAIN_AFTER and not sending.waiting(raft, replica):
        peer.silent = 0
        sending.send_empty(raft, replica, peer)
    elif peer.next <= raft.log.last_index:
        sending.fill_window(raft, replica)
