"""Invariants of messages: they say only what their sender would still know after a crash (thesis §3.8)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.state import HardState
from drakkar.handlers.testing.history import History, Observed, Violation

__all__ = ["check_durable"]


def check_durable(history: History, replica: Observed, message: Message) -> None:
    """After a crash now, the sender would still know the term, vote and entries that the message confirms."""
    state: HardState = replica.storage.hard_state
    term, type_ = message.term, message.type
    if state.term < term:
        raise Violation("INV10 durable before it is sent", f"the term of {message}: {state}")
    history.sent_term[replica.id] = max(term, history.sent_term.get(replica.id, 0))
    if type_ is MessageType.REQUEST_VOTE or (type_ is MessageType.REQUEST_VOTE_RESP and not message.reject):
        vote = replica.id if type_ is MessageType.REQUEST_VOTE else message.to
        if state.term == term and state.vote != vote:
            raise Violation("INV10 durable before it is sent", f"the vote of {message}: {state}")
        key = replica.id, replica.directory.home, term
        # A copy may well vote again; all others refuse it, so no vote of it counts.
        if not replica.directory.copied and history.votes.setdefault(key, vote) != vote:
            raise Violation("INV9 one vote per term", f"{message}, after {history.votes[key]}")
        if (
            type_ is MessageType.REQUEST_VOTE
            and message.hint
            and (replica.id, term - 1) not in history.asked_to_lead
        ):
            raise Violation("INV28 only the successor campaigns at once", str(message))
    elif type_ is MessageType.REPLICATE_RESP and not message.reject:
        _check_accept(replica, message)
    elif type_ is MessageType.CONTRADICTION and not replica.directory.copied:
        raise Violation("INV50 no leader contradicts a replica", f"{replica.raft!r} sends {message}")


def _check_accept(replica: Observed, message: Message) -> None:
    """The entries that a replica acknowledges are on its disk."""
    storage, log, index = replica.storage, replica.raft.log, message.log_index
    own = log.term(index)
    if storage.hard_state.term > message.term and (own == 0 or own > message.term):
        return  # a newer leader replaced the entry in the same turn, and that is durable too
    if index > storage.last_index:
        raise Violation(
            "INV10 durable before it is sent", f"{message}, the disk ends at {storage.last_index}"
        )
    known = own and index >= storage.first_index and replica.raft.term == message.term
    if known and storage.term(index) != own:
        raise Violation(
            "INV10 durable before it is sent",
            f"{message}, of term {own}; on disk is one of term {storage.term(index)}",
        )
