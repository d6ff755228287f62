"""The leadership transfer that is in progress at a leader (thesis §3.10)."""

from dataclasses import dataclass, field

__all__ = ["Transfer"]


@dataclass(slots=True)
class Transfer:
    """The leadership transfer that is in progress at a leader (thesis §3.10)."""

    target: int = 0
    """The replica that is to lead; 0: no transfer is in progress."""
    askers: set[int] = field(default_factory=set)
    """The replicas that asked for it; 0 is this host."""
    ticks: int = 0
    """Since it began. Not the election timer: transfers without end could keep that from its CheckQuorum."""
    ordered: bool = False
    """The target was asked to campaign, and may win even if the transfer is given up."""
