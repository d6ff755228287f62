"""What a host tells those who subscribe to it."""

from dataclasses import dataclass

from drakkar.handlers.raft.state import Membership

__all__ = ["LeaderChanged", "MembershipChanged", "ReplicaEnded", "ReplicaRemoved"]


@dataclass(frozen=True, slots=True)
class LeaderChanged:
    """A replica of this host knows another leader than before; `leader` 0 is none."""

    shard: int
    replica: int
    term: int
    leader: int


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """A membership change is in effect at a replica of this host."""

    shard: int
    replica: int
    membership: Membership


@dataclass(frozen=True, slots=True)
class ReplicaRemoved:
    """A replica of this host learnt that its shard removed it: it takes nothing more, and ends a few seconds later.

    Its data stay, until `NodeHost.remove_data` is called.
    """

    shard: int
    replica: int


@dataclass(frozen=True, slots=True)
class ReplicaEnded:
    """A replica of this host was stopped, or failed with `reason`."""

    shard: int
    replica: int
    reason: BaseException | None
