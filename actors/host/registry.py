"""Which replicas a host runs, starts or ends: one a shard, at most."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from drakkar.actors.host.replica import Replica
from drakkar.actors.node.actor import NodeActor
from drakkar.handlers.errors import ConfigError, ReplicaStopped

__all__ = ["ReplicaRegistry"]

END_TIMEOUT_S: Final = 10.0
"""How long the start of a replica waits for the end of the one before it."""


class ReplicaRegistry:
    """The replicas of one host, by shard. Its methods may be called from any thread."""

    def __init__(self, host: object) -> None:
        """`host` is named in errors."""
        self._host = host
        self.nodes: dict[int, NodeActor] = {}
        """The nodes that run. The loop reads it without the lock, since a message that comes is looked up here."""
        self._replicas: dict[int, Replica] = {}
        self._reserved: set[int] = set()
        self._ending: set[int] = set()
        """Shards whose replica has stopped, while its state machine may still be at work."""
        self._closed = False
        self._changed = threading.Condition()

    def close(self) -> bool:
        """Let no replica start any more; return False where that was so already."""
        with self._changed:
            was_open, self._closed = not self._closed, True
        return was_open

    @contextmanager
    def reserve(self, shard_ids: Collection[int]) -> Iterator[None]:
        """Keep shards for the caller, who starts their replicas or deletes their data: all of them, or none.

        A replica that was just stopped may still be at work, and its state machine must not be opened twice: waits for
        the ends, for `END_TIMEOUT_S`. Raises `ConfigError` where one runs, starts or still ends, and `ReplicaStopped`
        once closed.
        """
        with self._changed:
            if self._closed:
                raise ReplicaStopped(f"{self._host!r} was stopped: make a new one")
            self._changed.wait_for(lambda: not any(map(self._ends, shard_ids)), END_TIMEOUT_S)
            for shard_id in shard_ids:
                self._check_free(shard_id)
            self._reserved.update(shard_ids)
        try:
            yield
        finally:
            with self._changed:
                self._reserved.difference_update(shard_ids)

    def _check_free(self, shard_id: int) -> None:
        if self._ends(shard_id):
            raise ConfigError(
                "shard_id",
                shard_id,
                f"has a replica on {self._host!r} that is ending, and its state machine is still at work: wait, or "
                "restart the process",
            )
        if shard_id in self.nodes or shard_id in self._reserved:
            raise ConfigError(
                "shard_id", shard_id, f"runs already on {self._host!r}: stop that replica first"
            )

    def _ends(self, shard_id: int) -> bool:
        node = self.nodes.get(shard_id)
        return shard_id in self._ending or (node is not None and node.actor_stopped.is_set())

    def add(self, shard_id: int, node: NodeActor, replica: Replica) -> None:
        """Note that a replica runs, whose shard the caller has reserved."""
        with self._changed:
            self.nodes[shard_id], self._replicas[shard_id] = node, replica

    def replica(self, shard_id: int) -> Replica:
        """Return the replica of a shard. Raises `ConfigError` where none runs."""
        with self._changed:
            found = self._replicas.get(shard_id)
        if found is None:
            raise ConfigError("shard_id", shard_id, f"has no replica on {self._host!r}: start one first")
        return found

    def on_node_stopped(self, shard_id: int) -> None:
        """Note that a replica takes no messages any more; its state machine may still be at work."""
        with self._changed:
            self.nodes.pop(shard_id, None)
            self._replicas.pop(shard_id, None)
            self._ending.add(shard_id)
            self._changed.notify_all()

    def ending(self) -> list[int]:
        """Return the shards whose replica has stopped, while its state machine may still be at work."""
        with self._changed:
            return sorted(self._ending)

    def on_ended(self, shard_id: int) -> None:
        """Note that nothing of a replica is at work any more."""
        with self._changed:
            self._ending.discard(shard_id)
            self._changed.notify_all()
