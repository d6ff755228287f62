"""Drakkar as the target of a load: one `NodeHost` with one replica, used as an application would that embeds it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from drakkar.actors import ActorFuture, NodeHost, StateMachine
from drakkar.handlers.raft.state import State

from tests.benchmarks.load import Done


class CountingMachine(StateMachine):
    """Counts its commands, in a worker's thread, as state machines do that may block."""

    def __init__(self) -> None:
        self._count = 0

    def apply(self, command: bytes) -> int:
        self._count += 1
        return self._count


class InlineCountingMachine(CountingMachine):
    """Counts its commands on the loop."""

    blocks = False


_MACHINES: Final = {"worker": CountingMachine, "loop": InlineCountingMachine}


class DrakkarTarget:
    """One host of three. `apply_on` says where its state machine runs: on the "loop", or on a "worker"."""

    def __init__(
        self, replica_id: int, members: Mapping[int, str], data_dir: str, apply_on: str = "loop"
    ) -> None:
        self._host = NodeHost(members[replica_id], data_dir=data_dir)
        self._replica = self._host.start_replica(
            _MACHINES[apply_on], shard_id=1, replica_id=replica_id, members=members
        )

    def leads(self) -> bool:
        return self._replica.status().state is State.LEADER

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        """Propose one command by `propose`, several by `propose_many`."""
        future: ActorFuture[Any]
        if len(commands) == 1:
            future = self._replica.propose(commands[0])
        else:
            future = self._replica.propose_many(commands)
        future.add_done_callback(lambda answered: done(answered.outcome()[1]))

    def propose_and_wait(self, command: bytes) -> None:
        self._replica.propose(command).get(timeout=10)

    def stop(self) -> None:
        self._host.stop()
