"""Facts about a message type, in one place: the guards, the wire, the transport and the simulator's checks read them.

The mechanism is here, since the wire needs it for any protocol. Raft's rows stand in `raft.matrix`; those of your own types
are given to `MessageType.define`.
"""

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Term", "Traits"]


class Term(Enum):
    """What the `term` of a message is."""

    NONE = "none: it is a request, or from this replica's own host"
    SENDERS = "that of its sender, which stamps it; a receiver adopts a newer one and refuses an older one"
    CHOSEN = "one that its sender chose; else as SENDERS"
    TOLD = "that of its sender, which stamps it; it changes no receiver's term"


@dataclass(frozen=True, slots=True)
class Traits:
    """What is true of every message of one type."""

    term: Term = Term.TOLD
    local: bool = False
    """From a host to its own replica; from a peer it is dropped."""
    from_leader: bool = False
    """Only the leader of its term sends it."""
    from_members: bool = False
    """It counts only where its sender is a member."""
    asks_for_vote: bool = False
    """Its sender wants to be elected."""
    after_write: bool = False
    """It leaves only when all that was appended and voted before it is durable at its sender (thesis §10.2.1)."""
    wakes: bool = True
    """It is a sign that a shard is in use, so that a sleeping replica wakes."""
    bulk: bool = False
    """It may be large, and keeps its order among others of its kind; what is not bulk may overtake it."""
    stamped: bool = field(init=False)
    """Its sender's term is written into it when it is sent."""
    binding: bool = field(init=False)
    """It must have a term, and its receiver compares it with its own (thesis §3.3)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamped", self.term in {Term.SENDERS, Term.TOLD})
        object.__setattr__(self, "binding", self.term in {Term.SENDERS, Term.CHOSEN})
