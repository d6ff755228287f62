"""The ends of processes in simulated time: which hosts are told that another one's is gone, and when.

    a process ends ─► all that it has sent arrives, or is lost with its connection ─► LEADER_GONE at each other host
                 └──► or it is started again, and its next run introduces itself ──►  at a time of its own

A plan may also have hosts told by mistake. The random numbers are of their own, so that a plan without evidence is the
same with this module and without.
"""

from collections.abc import Callable
from random import Random
from typing import Any, Final, Protocol

from drakkar.handlers.testing.plan import TICK, Plan
from drakkar.handlers.testing.simulated_host import SimulatedHost

__all__ = ["Evidence"]

_LOSS: Final = 0.3
"""The probability that a connection is lost with all that it carries, when it is looked whether it carries anything."""


class Network(Protocol):
    """What evidence uses of the simulation."""

    plan: Plan
    hosts: dict[int, SimulatedHost]

    def later(self, host: SimulatedHost, delay: int, function: Callable[..., None], *args: Any) -> None:
        """See `SimulatedShard.later`."""

    def in_transit(self, sender: int, receiver: int) -> bool:
        """Whether the network carries anything from one replica to another."""
        ...

    def lose_in_transit(self, sender: int, receiver: int, *, snapshots: bool = False) -> None:
        """Lose all that the network carries from one replica to another now."""

    def tell_gone(self, host: SimulatedHost, gone: int) -> None:
        """Let a host's transport tell its replica that the process of another one is gone."""


class Evidence:
    """What the hosts of one shard know of the ends of others' processes. Nothing, unless the plan has evidence."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._longest = network.plan.weather.evidence
        self._random = Random(f"evidence of {network.plan.seed}")
        self._untold: dict[tuple[int, int], None] = {}
        """The replicas whose processes are gone, each with another one that was not told yet; in order."""

    def stopped(self, host: SimulatedHost) -> None:
        """A process ends. Of other ends it learns no more: in its next life it follows no leader."""
        for gone, told in list(self._untold):
            if told == host.id:
                del self._untold[gone, told]
        if not self._longest:
            return
        for other in self._network.hosts.values():
            if other is not host and other.up:
                self._untold[host.id, other.id] = None
                delay = self._random.randint(1, self._longest)
                self._network.later(other, delay, self._look, host.id, other)

    def started(self, host: SimulatedHost) -> None:
        """A process starts: to those that were not told of the end of the last one, it says so before all else."""
        for gone, told in list(self._untold):
            if gone == host.id:
                self._network.lose_in_transit(gone, told, snapshots=True)
                self._tell(gone, self._network.hosts[told])

    def mistake(self, host: SimulatedHost, side: int) -> None:
        """Tell others, by the bits of `side`, within a tick that a process is gone which is not."""
        for other in self._network.hosts.values():
            if other is not host and other.up and side >> (other.id % 8) & 1:
                delay = self._random.randint(1, TICK)
                self._network.later(other, delay, self._network.tell_gone, other, host.id)

    def _look(self, gone: int, other: SimulatedHost) -> None:
        """Tell a host, unless something is on its way to it that the process has sent."""
        if (gone, other.id) not in self._untold:
            return
        if self._network.in_transit(gone, other.id):
            if self._random.random() >= _LOSS:
                self._network.later(other, self._random.randint(1, TICK), self._look, gone, other)
                return
            self._network.lose_in_transit(gone, other.id, snapshots=True)
        self._tell(gone, other)

    def _tell(self, gone: int, other: SimulatedHost) -> None:
        del self._untold[gone, other.id]
        self._network.tell_gone(other, gone)
