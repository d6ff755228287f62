"""The events of a host, which it tells its subscribers. `HostStateChanged` is made where it happens, in `transport.liveness`."""

from dataclasses import dataclass
from typing import Any

from drakkar.handlers.raft.state import Membership
from drakkar.transport.liveness import HostState, HostStateChanged

__all__ = [
    "AddressChanged",
    "ExtensionEvent",
    "HostState",
    "HostStateChanged",
    "LeaderChanged",
    "MembershipChanged",
    "ReplicaEnded",
    "ReplicaRemoved",
]


@dataclass(frozen=True, slots=True)
class LeaderChanged:
    """A replica of this host knows another leader, or term, than before.

    `leader` is 0 where none is known, and when a replica that knew one ends: then a `ReplicaEnded` follows.
    """

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
class AddressChanged:
    """The shard of a replica of this host reaches it at another address than before: start its host there."""

    shard: int
    replica: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ReplicaRemoved:
    """A replica of this host learnt that its shard removed it: it takes no more requests, and ends a few seconds later.

    Its data stay until `NodeHost.remove_data` is called.
    """

    shard: int
    replica: int


@dataclass(frozen=True, slots=True)
class ExtensionEvent:
    """A handler of a replica of this host has published `event`, by `node.publish_event`."""

    shard: int
    replica: int
    event: Any


@dataclass(frozen=True, slots=True)
class ReplicaEnded:
    """A replica of this host was stopped, or failed with `reason`."""

    shard: int
    replica: int
    reason: BaseException | None
