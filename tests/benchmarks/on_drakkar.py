"""Drakkar as the target of a load: one `NodeHost` with one replica, used as an application would that embeds it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from drakkar.actors import ActorFuture, NodeHost, Replica, StateMachine
from drakkar.handlers.messages import State

from tests.benchmarks.load import Done

SHARD: Final = 1


class CountingMachine(StateMachine):
    """Counts its commands, in a worker's thread as any state machine may that blocks now and then."""

    def __init__(self) -> None:
        self._count = 0

    def apply(self, command: bytes) -> int:
        """Count one."""
        self._count += 1
        return self._count

    def query(self, query: object) -> int:
        """Tell how many there were."""
        return self._count


class InlineCountingMachine(CountingMachine):
    """Counts its commands on the loop."""

    blocks = False


_MACHINES: Final = {"worker": CountingMachine, "loop": InlineCountingMachine}


class DrakkarTarget:
    """One host of three. `apply_on` is "loop" or "worker": where the state machine runs."""

    def __init__(
        self, replica_id: int, members: Mapping[int, str], data_dir: str, apply_on: str = "loop"
    ) -> None:
        self.host = NodeHost(members[replica_id], data_dir=data_dir)
        self._replica: Replica = self.host.start_replica(
            _MACHINES[apply_on], shard_id=SHARD, replica_id=replica_id, members=members
        )

    def leads(self) -> bool:
        """Tell whether this replica leads."""
        return self._replica.status().state is State.LEADER

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        """Propose one command by `propose`, several by `propose_many`."""

        def answered(future: ActorFuture[Any]) -> None:
            done(future.outcome()[1])

        if len(commands) == 1:
            self._replica.propose(commands[0]).add_done_callback(answered)
        else:
            self._replica.propose_many(commands).add_done_callback(answered)

    def propose_and_wait(self, command: bytes) -> None:
        """Propose a command, and block until it is applied."""
        self._replica.propose(command).get(timeout=10)

    def counters(self) -> dict[str, Any]:
        """Tell what may explain the figures."""
        store = self.host.store_status
        return {"saves": store.saves, "fsyncs": store.commits, "entries": store.entries}

    def stop(self) -> None:
        """Stop the host."""
        self.host.stop()
