"""What this room uses of the rooms beside and above it: of a replica, of `actors.remote`, and of the host."""

from collections.abc import Mapping
from typing import Any, Protocol

import pykka
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.raft.config import RaftConfig

__all__ = ["Calls", "Home", "Session", "Shard", "ShardStatus"]


class Session(Protocol):
    """What is used of a client session: see `actors.host.session`."""

    @property
    def open(self) -> bool:
        """Whether a command has no outcome yet."""
        ...

    def propose(self, command: bytes, *, timeout: float) -> ActorFuture[Any]:
        """Have a command applied once."""
        ...

    def retry(self, *, timeout: float) -> ActorFuture[Any]:
        """Ask for the outcome of the open command."""
        ...


class ShardStatus(Protocol):
    """What is used of a replica's status."""

    @property
    def term(self) -> int:
        """Its term."""
        ...

    @property
    def leader_id(self) -> int:
        """The replica that leads, as far as this one knows; 0: none."""
        ...

    @property
    def voters(self) -> tuple[int, ...]:
        """Those who may lead."""
        ...

    @property
    def addresses(self) -> Mapping[int, str]:
        """The hosts of all members."""
        ...


class Shard(Protocol):
    """A replica of this host, as this room uses it: see `actors.host.replica`. None of its methods blocks."""

    @property
    def shard_id(self) -> int:
        """Of its shard."""
        ...

    @property
    def replica_id(self) -> int:
        """Its own."""
        ...

    @property
    def ref(self) -> pykka.ActorRef[Any]:
        """Its actor, which ends with it."""
        ...

    def status(self) -> ShardStatus:
        """Where it stands."""
        ...

    def session(self, *, timeout: float) -> ActorFuture[Any]:
        """Open a client session."""
        ...

    def read(self, query: Any, *, timeout: float) -> ActorFuture[Any]:
        """Ask the state machine, linearizably."""
        ...

    def fence(self, *, timeout: float) -> ActorFuture[int]:
        """Commit an entry that changes nothing, and tell its index."""
        ...


class Calls(Protocol):
    """What is used of `actors.remote`: actors of other hosts, and those of this one that others reach."""

    def publish(self, name: str, ref: pykka.ActorRef[Any], *, proxy: Any = False, acl: Any = None) -> Any:
        """Let other hosts reach an actor by a name, in place of one that has ended. It goes with the actor."""

    def unpublish(self, name: str, ref: pykka.ActorRef[Any] | None = None) -> bool:
        """Take a name away, with `ref` only where that actor has it; return whether it was there."""
        ...

    def remote(self, address: str, name: str, *, timeout: float, block: bool) -> Any:
        """Return, with `block=False`, an `ActorFuture` of the ref of the actor that has this name on that host."""

    def place_of(self, ref: pykka.ActorRef[Any]) -> tuple[int, bytes]:
        """Return the number of an actor of this host in this run of it, and how others reach it until it ends, as bytes.

        Raises `ConfigError` for an actor of another host, and one that has ended.
        """
        ...

    def ref_of(self, place: bytes, timeout: float) -> ActorFuture[Any]:
        """Return a future of the ref for what `place_of` returned, on any host. It is set within `timeout` seconds.

        Raises `ValueError` for what is no place.
        """
        ...


class Home(Protocol):
    """What is used of the host."""

    @property
    def address(self) -> str:
        """By which others know it."""
        ...

    @property
    def tick_interval(self) -> float:
        """Seconds of a tick."""
        ...

    def replica(self, shard_id: int) -> Shard:
        """Return the replica of a shard on this host. Raises `ConfigError` where none runs."""
        ...

    def config(self, shard_id: int) -> RaftConfig:
        """Return the options of that replica. Raises `ConfigError` where none runs."""
        ...

    def subscribe(self, subscriber: Any) -> None:
        """Call a function, in the loop's thread, with each event of this host."""
