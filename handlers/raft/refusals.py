"""A request that was forwarded, and that the other replica refused."""

from typing import Final

from drakkar.handlers.checks import is_whole
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.ready import REFUSAL_OF, Dropped, Refusal

__all__ = ["report_refusal"]

REQUEST_OF: Final = {refusal: request for request, refusal in REFUSAL_OF.items()}

MAX_PROPOSALS: Final = 1 << 20
"""Proposals that one refusal may name: more cannot be on their way from one replica."""


def report_refusal(raft: RaftCore, message: Message) -> None:
    """Tell this host that its request has no effect, and why. The fields are those of `RaftCore.refuse`."""
    if message.log_index > MAX_PROPOSALS:
        raft.fault("a refusal of more than was asked")
        return
    named = message.payload if isinstance(message.payload, list) else [message.payload]
    because = Refusal.named(named[0] if named else None)
    refused = Dropped(
        REQUEST_OF[message.type],
        because,
        message.hint,
        message.hint_high,
        message.log_index,
        replicas=tuple(replica for replica in named[1:] if is_whole(replica)),
    )
    raft.outbox.dropped.append(refused)
