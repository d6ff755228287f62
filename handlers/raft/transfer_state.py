"""What a replica knows of a leadership transfer: the leader, and the one that is to succeed it (thesis §3.10)."""

from dataclasses import dataclass, field

from drakkar.handlers.messages import Message

__all__ = ["Order", "Transfer"]


@dataclass(slots=True)
class Order:
    """A leader's order to campaign, which waits at its successor for a membership change to be applied."""

    leader: int = 0
    """Who gave it; 0: none waits."""
    until: int = 0
    """The value of `Timers.ticks` at which it is too old."""


@dataclass(slots=True)
class Transfer:
    """The leadership transfer that is in progress at a leader (thesis §3.10)."""

    target: int = 0
    """The replica that is to lead; 0: no transfer is in progress."""
    askers: set[int] = field(default_factory=set)
    """The replicas that asked for it; 0 is this host."""
    ticks: int = 0
    """Since it began. Not the election timer: transfers without end could keep that from its CheckQuorum."""
    order: Message | None = None
    """The TIMEOUT_NOW by which the target was asked to campaign: it may win even if the transfer is given up."""
