"""Flow: what a replica does when its host says how the lanes stand (`lanes`)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import proposals, sending
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.ready import Refusal

__all__ = ["lane_drained", "not_sent", "not_sent_as_leader"]


def lane_drained(raft: RaftCore, event: Message) -> None:
    """The lane to a busy peer has room again: go on."""
    if raft.progress[event.sender].busy:
        sending.resume(raft, event.sender)


def not_sent(raft: RaftCore, report: Message) -> None:
    """The lane hands a message back.

    Proposals surely have no effect, and their proposers are told so. All else is a leader's.
    """
    message = report.payload
    if isinstance(message, Message) and message.type is MessageType.PROPOSE:
        proposals.refuse_with(raft, message, Refusal.NOT_SENT)


def not_sent_as_leader(raft: RaftCore, report: Message) -> None:
    """An append or a snapshot that the lane hands back does not count as sent.

    One of an older term, or to a replica that is no peer any more, means nothing.
    """
    not_sent(raft, report)
    message = report.payload
    if not isinstance(message, Message) or message.term != raft.term:
        return
    peer = raft.progress.get(message.to)
    if peer is None:
        return
    if message.type is MessageType.REPLICATE:
        peer.handed_back(message.log_index, len(Entries.of(message.entries)), message.hint)
    elif message.type is MessageType.INSTALL_SNAPSHOT:
        peer.snapshot_handed_back()
