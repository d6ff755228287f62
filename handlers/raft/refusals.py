"""A request that was forwarded, and that the other replica refused."""

from typing import Final

from drakkar.handlers.checks import is_whole
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.ready import MAX_TEXT, REFUSAL_OF, Dropped, Refusal

__all__ = ["plain", "report_refusal"]

REQUEST_OF: Final = {refusal: request for request, refusal in REFUSAL_OF.items()}

MAX_PROPOSALS: Final = 1 << 20
"""Proposals that one refusal may name: more cannot be on their way from one replica."""


def plain(text: str) -> str:
    """Return what is shown of a text that another host may have sent: `MAX_TEXT` printable characters, the others as "?"."""
    return "".join(character if character.isprintable() else "?" for character in text[:MAX_TEXT])


def report_refusal(raft: RaftCore, message: Message) -> None:
    """Tell this host that its request has no effect, and why. The fields are those of `RaftCore.refuse`."""
    if message.log_index > MAX_PROPOSALS:
        raft.fault("a refusal of more than was asked")
        return
    named = message.payload if isinstance(message.payload, list) else [message.payload]
    because = Refusal.named(named[0] if named else None)
    vetoed = because is Refusal.VETOED
    refused = Dropped(
        REQUEST_OF[message.type],
        because,
        message.hint,
        message.hint_high,
        message.log_index,
        replicas=() if vetoed else tuple(replica for replica in named[1:] if is_whole(replica)),
        text=plain(named[1]) if vetoed and len(named) == 2 and isinstance(named[1], str) else "",
    )
    raft.outbox.dropped.append(refused)
