"""Reading the committed log from outside (dragonboat's log query)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.raft.ready import Dropped, LogQueryResult, Refusal

__all__ = ["answer_query", "answer_waiting_query"]


def answer_query(raft: RaftCore, ask: Message) -> None:
    """Answer the committed entries from `sender` up to, but without, `to`, of at most `hint` bytes.

    The two fields carry indexes here, which is dragonboat's economy. At least one entry is answered; one query at
    a time, collected with `Ready.log_query`. If they are not loaded, they are answered when they are.
    """
    if raft.outbox.log_query is not None or raft.waiting_query is not None:
        raft.outbox.dropped.append(Dropped(MessageType.LOG_QUERY, Refusal.QUERY_PENDING, key=ask.sender))
        return
    _answer(raft, ask)


def answer_waiting_query(raft: RaftCore) -> None:
    """The host has read something: try again the query that waits for that, if there is one."""
    ask, raft.waiting_query = raft.waiting_query, None
    if ask is not None:
        _answer(raft, ask)


def _answer(raft: RaftCore, ask: Message) -> None:
    first, end = raft.log.first_index, raft.log.committed + 1
    low, high = ask.sender, min(ask.to, end)
    if not first <= low < end or low >= high:
        raft.outbox.log_query = LogQueryResult(first, end, out_of_range=True)
        return
    try:
        raft.outbox.log_query = LogQueryResult(first, end, raft.log.entries(low, high, ask.hint))
    except EntriesNotLoaded:
        raft.waiting_query = ask
