"""Facts about a message type in one place, read by the guards, the wire, the transport and the simulator's checks.

The mechanism is here because the wire needs it for any protocol. The traits of Raft's types are in `raft.matrix`. For
types of your own, pass them to `MessageType.define`.
"""

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Term", "Traits"]


class Term(Enum):
    """The meaning of a message's `term`."""

    NONE = "none: it is a request, or comes from the replica's own host"
    SENDERS = (
        "the sender's term, written when it is sent; receivers adopt a newer one and refuse an older one"
    )
    CHOSEN = "a term that the sender chose; a receiver treats it like SENDERS"
    TOLD = "the sender's term, written when it is sent; no guard compares it, and a handler may"


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts that hold for every message of one type."""

    term: Term = Term.TOLD
    local: bool = False
    """It goes from a host to its own replica. If it comes from a peer, it is dropped."""
    from_leader: bool = False
    """It shows who leads its term: a receiver follows its sender, and answers one of an older term.

    TIMEOUT_NOW and READ_INDEX_RESP come from a leader as well, but show nothing that is not known.
    """
    from_members: bool = False
    """It counts only if its sender is a member of the shard."""
    from_any_host: bool = False
    """Each host that knows the shard's founding may say it, whatever our membership says; all else only the host of the
    member that is named as its sender. See `raft.permissions`."""
    asks_for_vote: bool = False
    """Its sender wants to be elected."""
    after_write: bool = False
    """It leaves only after its sender's earlier entries, term and vote are durable (thesis §10.2.1)."""
    wakes: bool = True
    """It shows that the shard is in use, so it wakes a quiesced replica."""
    bulk: bool = False
    """It may be large. The transport's lanes are to keep the order of bulk messages, and to let others overtake them."""
    weight: int = 1
    """As how many messages it counts where the messages of a host for one shard are bounded (`transport.budgets`): more for what
    has the receiver write to its log and send to all others."""
    perishable: bool = False
    """An old one is worse than none: one that waited for an election timeout is dropped."""
    stamped: bool = field(init=False)
    """The sender's term is written into it when it is sent."""
    binding: bool = field(init=False)
    """It must have a term, which the receiver compares with its own (thesis §3.3)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamped", self.term in {Term.SENDERS, Term.TOLD})
        object.__setattr__(self, "binding", self.term in {Term.SENDERS, Term.CHOSEN})
