"""Runs a user's handlers under random faults, for `Cluster.storm`."""

from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random

from drakkar.handlers.table import HandlerTable
from drakkar.handlers.testing.core_host import CoreHost
from drakkar.handlers.testing.plan import TICK, Event, Plan, simpler_plans
from drakkar.handlers.testing.simulated_host import SimulatedHost
from drakkar.handlers.testing.simulation import Simulation
from drakkar.handlers.testing.storm_parts import Parts, run_or_reduce

__all__ = ["run_storm"]


class _Run(Simulation):
    """A simulation with the user's traffic and the user's invariants."""

    def __init__(self, plan: Plan, handlers: HandlerTable | None, parts: Parts) -> None:
        self._parts = parts.begin()
        super().__init__(plan, partial(CoreHost, handlers=handlers, effects=self._parts.see_effects))

    def run(self) -> None:
        """Run the plan, and check what the user says of the end."""
        super().run()
        self._parts.check_at_the_end({host.id: host.raft for host in self._members()})

    def traffic(self, replica: int) -> None:
        """Call the user's `traffic` with the core of a replica; 0 is the leader."""
        host = self._host(replica)
        if self._parts.traffic is not None and host is not None and self.is_awake(host):
            self._parts.traffic(host.raft, self.random)
            host.receive([])
            self.turned(host)

    def command(self, replica: int, number: int) -> None:
        """Propose a command at a replica; 0 is the leader."""
        host = self._host(replica)
        if host is not None and self.is_awake(host):
            host.submit("propose", b"command %d" % number, 1.0, lambda _outcome, _value: None)

    def turned(self, host: SimulatedHost) -> None:
        """Check the user's invariant as well."""
        super().turned(host)
        if self._parts.check is not None:
            self._parts.check_after_step({id_: other.raft for id_, other in self.hosts.items() if other.up})


def run_storm(plan: Plan, handlers: HandlerTable | None, parts: Parts) -> Counter[str]:
    """Run a plan with traffic added; return how often each rare event happened. See `Cluster.storm`."""
    run = run_or_reduce(_with_traffic(plan), lambda tried: _Run(tried, handlers, parts), simpler_plans)
    return run.invariants.happened


def _with_traffic(plan: Plan) -> Plan:
    random = Random(f"traffic {plan.seed}")
    replicas = plan.voters + plan.observers + plan.witnesses
    events = [
        Event(random.randrange(plan.ticks * TICK), kind, args)
        for number in range(plan.ticks)
        for kind, args in (
            ("traffic", (random.randrange(replicas + 1),)),
            ("command", (random.randrange(replicas + 1), number)),
        )
    ]
    return replace(plan, events=tuple(sorted((*plan.events, *events), key=lambda event: event.time)))
