"""Heartbeats: the leader is alive, and so are its peers (thesis §3.4); they also confirm reads (§6.4)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import reads, sending, snapshot
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.progress import ProgressState

__all__ = ["handle_heartbeat", "handle_heartbeat_as_follower", "heartbeat", "on_heartbeat_response"]


def heartbeat(raft: RaftCore, _event: Message) -> None:
    """Tell all peers that this term has a leader (thesis §3.4); repeat the newest read that is not confirmed."""
    sending.send_heartbeats(raft, raft.reads.newest)


def handle_heartbeat(raft: RaftCore, message: Message) -> None:
    """The leader is alive. Its commit index is clipped to what it knows us to hold, so all of it is committed."""
    raft.heard_leader(message.sender)
    raft.log.commit_to(message.commit)
    if raft.requested_snapshot:
        snapshot.repeat_request(raft)
        return
    raft.reply(
        message,
        MessageType.HEARTBEAT_RESP,
        hint=message.hint,
        hint_high=message.hint_high,
        log_index=message.log_index,
        commit=raft.log.committed,
    )


def handle_heartbeat_as_follower(raft: RaftCore, message: Message) -> None:
    """A candidate that hears from the leader of its own term has lost (thesis §3.4)."""
    raft.become_follower(message.term, message.sender)
    handle_heartbeat(raft, message)


def on_heartbeat_response(raft: RaftCore, answer: Message) -> None:
    """The peer is there: go on sending to it, and count its confirmation of a read.

    A full window gets one empty append, so that the loss of all of its messages cannot stall the peer for ever.
    """
    peer = raft.progress[answer.sender]
    peer.heard()
    reads.note_lease(raft, answer)
    if peer.state is ProgressState.REPLICATE and peer.inflight.full:
        sending.send_empty(raft, answer.sender, peer)
    elif peer.match < raft.log.last_index or peer.state is ProgressState.PROBE:
        sending.send(raft, answer.sender)
    if answer.hint or answer.hint_high:
        reads.count_confirmation(raft, answer)
