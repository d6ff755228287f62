"""Drakkar as the target of a load: one `NodeHost` with a replica of each shard, used as an application that embeds it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import cycle
from typing import Any, Final

from drakkar.actors import ActorFuture, DrakkarError, NodeHost, Replica, ReplicaSpec, StateMachine
from drakkar.handlers.raft.state import State

from tests.benchmarks import recovery
from tests.benchmarks.load import Done, LoadError


class CountingMachine(StateMachine):
    """Counts its commands, in a worker's thread, as state machines do that may block."""

    def __init__(self) -> None:
        self._count = 0

    def apply(self, command: bytes) -> int:
        self._count += 1
        return self._count

    def query(self, query: None) -> int:
        return self._count


class InlineCountingMachine(CountingMachine):
    """Counts its commands on the loop."""

    blocks = False


_CONFIG: Final = {"snapshot_entries": 0}
"""No snapshots: the other systems take none either."""

_MACHINES: Final = {"worker": CountingMachine, "loop": InlineCountingMachine}


class DrakkarTarget:
    """One host of three. `apply_on` says where its state machines run: on the "loop", or on a "worker"."""

    def __init__(
        self,
        replica_id: int,
        members: Mapping[int, str],
        data_dir: str,
        apply_on: str = "loop",
        shards: int = 1,
    ) -> None:
        self._host = NodeHost(members[replica_id], data_dir=data_dir)
        machine = _MACHINES[apply_on]
        self._replicas = self._host.start_replicas(
            [
                ReplicaSpec(machine, shard_id=shard, replica_id=replica_id, members=members, config=_CONFIG)
                for shard in range(1, shards + 1)
            ]
        )
        self._replica, self._replica_id = self._replicas[0], replica_id

    def leads(self) -> bool:
        """Whether all shards have a leader, and this host leads some."""
        statuses = [replica.status() for replica in self._replicas]
        return all(status.leader_id for status in statuses) and any(
            status.state is State.LEADER for status in statuses
        )

    @cached_property
    def _led(self) -> "cycle[Replica]":
        return cycle(replica for replica in self._replicas if replica.status().state is State.LEADER)

    def led(self) -> list[int]:
        """The shards that this host leads."""
        return [replica.shard_id for replica in self._replicas if replica.status().state is State.LEADER]

    def lead(self, within: float) -> None:
        """Have this host lead all shards. Raises `LoadError`."""
        until = time.monotonic() + within
        while others := [each for each in self._replicas if each.status().state is not State.LEADER]:
            if time.monotonic() > until:
                raise LoadError(f"{len(others)} shards are not led here after {within:g} s")
            asked = [each.transfer_leadership(self._replica_id, timeout=2.0) for each in others]
            for transfer in asked:
                with suppress(DrakkarError):  # another one was elected, or is in the middle of a transfer
                    transfer.get(timeout=within)

    def recover_all(self, within: float, since: float) -> list[float]:
        """See `recovery.recover_all`."""
        return recovery.recover_all(self._host, self._replicas, within, since)

    def propose_to(self, shard: int, commands: Sequence[bytes], done: Done) -> None:
        """Propose to one shard."""
        _propose(self._replicas[shard - 1], commands, done)

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        """Propose one command by `propose`, several by `propose_many`; of many shards, to those led here in turn."""
        replica = self._replica if len(self._replicas) == 1 else next(self._led)
        _propose(replica, commands, done)

    def read(self, done: Done) -> None:
        self._replica.read(None).add_done_callback(lambda answered: done(answered.outcome()[1]))

    def propose_and_wait(self, command: bytes) -> None:
        self._replica.propose(command).get(timeout=10)

    def stop(self) -> None:
        self._host.stop()


def _propose(replica: Replica, commands: Sequence[bytes], done: Done) -> None:
    future: ActorFuture[Any]
    future = replica.propose(commands[0]) if len(commands) == 1 else replica.propose_many(commands)
    future.add_done_callback(lambda answered: done(answered.outcome()[1]))
