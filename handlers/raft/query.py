"""Reading the committed log from outside (dragonboat's log query)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.ready import Dropped, LogQueryResult, Refusal

__all__ = ["answer_query"]


def answer_query(raft: RaftCore, ask: Message) -> None:
    """Answer the committed entries from `sender` up to, but without, `to`, of at most `hint` bytes.

    The two fields carry indexes here, which is dragonboat's economy. At least one entry is answered; one query at
    a time, collected with `Ready.log_query`.
    """
    if raft.outbox.log_query is not None:
        raft.outbox.dropped.append(Dropped(MessageType.LOG_QUERY, Refusal.QUERY_PENDING, key=ask.sender))
        return
    first, end = raft.log.first_index, raft.log.committed + 1
    low, high = ask.sender, min(ask.to, end)
    if not first <= low < end or low >= high:
        raft.outbox.log_query = LogQueryResult(first, end, out_of_range=True)
    else:
        raft.outbox.log_query = LogQueryResult(first, end, raft.log.entries(low, high, ask.hint))
