"""Runs a user's handlers under random faults, for `Cluster.storm`."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import TypeAlias

from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.testing.core_host import CoreHost
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.plan import TICK, Event, Plan, shrink
from drakkar.handlers.testing.simulated_host import SimulatedHost
from drakkar.handlers.testing.simulation import Simulation

__all__ = ["run_storm"]

Traffic: TypeAlias = Callable[[Raft, Random], None]
Check: TypeAlias = Callable[[dict[int, Raft]], None]


class _Storm(Simulation):
    """A simulation with the user's traffic and the user's invariant."""

    def __init__(
        self, plan: Plan, handlers: HandlerTable | None, traffic: Traffic | None, check: Check | None
    ) -> None:
        super().__init__(plan, partial(CoreHost, handlers=handlers))
        self._traffic = traffic
        self._check = check

    def traffic(self, replica: int) -> None:
        """Call the user's `traffic` with the core of a replica; 0 is the leader."""
        host = self._host(replica)
        if self._traffic is not None and host is not None and self.is_awake(host):
            self._traffic(host.raft, self.random)
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
        if self._check is None:
            return
        try:
            self._check({id_: other.raft for id_, other in self.hosts.items() if other.up})
        except Violation:
            raise
        except AssertionError as broken:
            raise Violation("your own check", str(broken)) from broken


def run_storm(
    plan: Plan, handlers: HandlerTable | None, traffic: Traffic | None, check: Check | None
) -> Counter[str]:
    """Run a plan with traffic added; return how often each rare event happened. See `Cluster.storm`."""
    plan = _with_traffic(plan)

    def run(tried: Plan) -> _Storm:
        storm = _Storm(tried, handlers, traffic, check)
        storm.run()
        return storm

    try:
        return run(plan).invariants.happened
    except Exception as error:
        name = _name(error)
        small = shrink(plan, lambda smaller: _failure_of(run, smaller) == name)
        replay = _Storm(small, handlers, traffic, check)
        try:
            replay.run()
        except Exception as again:  # the same error in the smaller schedule
            what = again.what if isinstance(again, Violation) else repr(again)
            text = f"{what}\n\nthe schedule, reduced:\n{small}\n\nwhat happened:\n{replay.story()}"
            raise Violation(name, text) from again
        raise


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


def _name(error: Exception) -> str:
    return error.check if isinstance(error, Violation) else type(error).__name__


def _failure_of(run: Callable[[Plan], object], plan: Plan) -> str:
    try:
        run(plan)
    except Exception as error:  # noqa: BLE001  # the user's handlers may raise any exception
        return _name(error)
    return ""
