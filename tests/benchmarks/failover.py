"""How long writes stay unanswered after the leader's process was killed (SIGKILL)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import Any, Final

from tests.benchmarks.cluster import Cluster

RECOVERS_WITHIN: Final = 30.0
"""Seconds after which a cluster that answers nothing is an error."""
LEADS_WITHIN: Final = 60.0
"""The same, for one host to lead all shards."""


@dataclass(slots=True)
class Failovers:
    """How long each took, in milliseconds."""

    times: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return median(self.times)

    @property
    def p99(self) -> float:
        return sorted(self.times)[min(int(0.99 * len(self.times)), len(self.times) - 1)]

    @property
    def worst(self) -> float:
        return max(self.times)


def fail_over(system: str, options: Mapping[str, Any], kills: int, directory: Path) -> Sequence[float]:
    """Kill the leader of a fresh cluster so many times, and return how long each failover took, in milliseconds.

    It ends when a command is answered that was proposed after the kill, through a host that lives: its client proposes
    one every 10 ms. Then the killed host is started again from its directory, and the next leader is killed as soon as
    a command is answered through that host too. Raises `LoadError`.
    """
    times = []
    with Cluster(system, options, directory) as cluster:
        cluster.recover(cluster.leader, RECOVERS_WITHIN)
        for number in range(kills):
            killed, client = cluster.leader, cluster.followers[number % 2]
            began = perf_counter()
            cluster.kill(killed)
            cluster.recover(client, RECOVERS_WITHIN)
            times.append(1000 * (perf_counter() - began))
            cluster.restart(killed)
            cluster.recover(killed, RECOVERS_WITHIN)
            cluster.find_leader()
    return times


def fail_over_all(
    system: str, options: Mapping[str, Any], kills: int, directory: Path
) -> Sequence[tuple[float, float]]:
    """Kill a host that leads many shards so many times; return how long the middle one and the last one took, in milliseconds.

    A shard is there again when it has answered a command of a client at a host that lives, which proposes when its host hears of
    a leader. Then the killed host is started again, and another one leads all shards. Raises `LoadError`.
    """
    times = []
    with Cluster(system, options, directory) as cluster:
        for number in range(kills):
            victim, client = 1 + number % 3, 1 + (number + 1) % 3
            cluster.lead(victim, LEADS_WITHIN)
            began = monotonic()
            cluster.kill(victim)
            taken = cluster.recover_all(client, RECOVERS_WITHIN, began)
            times.append((1000 * median(taken), 1000 * max(taken)))
            cluster.restart(victim)
    return times
