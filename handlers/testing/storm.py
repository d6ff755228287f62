"""Runs a user's handlers under random faults, for `Cluster.storm`."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final

from drakkar.handlers.errors import ConfigError
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Ready
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.testing.core_host import CoreHost
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.plan import TICK, Event, Plan, shrink
from drakkar.handlers.testing.simulated_host import SimulatedHost
from drakkar.handlers.testing.simulation import Simulation

__all__ = ["Storm", "run_storm"]

PARTS: Final = ("traffic", "check", "settled", "effects")
"""What a user may bring, as functions, or as methods of a class."""


@dataclass(frozen=True, slots=True)
class Storm:
    """What a user brings to a storm. See `Cluster.storm`."""

    handlers: HandlerTable | None = None
    traffic: Callable[[Raft, Random], None] | None = None
    check: Callable[[dict[int, Raft]], None] | None = None
    settled: Callable[[dict[int, Raft]], None] | None = None
    effects: Callable[[Raft, Ready], None] | None = None
    user: Callable[[], Any] | None = None
    """Makes an object that has some of these four as methods. Each run has one of its own, so it may remember."""

    def begin(self) -> "Storm":
        """Return what one run has: the functions, or the methods of an object that is made for it. Raises `ConfigError`."""
        if self.user is None:
            return self
        user = self.user()
        methods = {name: getattr(user, name) for name in PARTS if hasattr(user, name)}
        if not methods:
            raise ConfigError("user", type(user).__name__, f"must have a method: one of {', '.join(PARTS)}")
        twice = [name for name in methods if getattr(self, name) is not None]
        if twice:
            raise ConfigError(
                "user", type(user).__name__, f"has {twice[0]}, and so has this call: give one of the two"
            )
        return replace(self, **methods)


class _Run(Simulation):
    """A simulation with the user's traffic and the user's invariants."""

    def __init__(self, plan: Plan, storm: Storm) -> None:
        super().__init__(plan, partial(CoreHost, handlers=storm.handlers, effects=self._seen))
        self._storm = storm.begin()

    def run(self) -> None:
        """Run the plan, and check what the user says of the end."""
        super().run()
        if self._storm.settled is not None:
            members = {host.id: host.raft for host in self._members()}
            self._check("your check of the end", self._storm.settled, members)

    def traffic(self, replica: int) -> None:
        """Call the user's `traffic` with the core of a replica; 0 is the leader."""
        host = self._host(replica)
        if self._storm.traffic is not None and host is not None and self.is_awake(host):
            self._storm.traffic(host.raft, self.random)
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
        if self._storm.check is not None:
            rafts = {id_: host.raft for id_, host in self.hosts.items() if host.up}
            self._check("your own check", self._storm.check, rafts)

    def _seen(self, raft: Raft, ready: Ready) -> None:
        if self._storm.effects is not None:
            self._check("your check of effects", self._storm.effects, raft, ready)

    def _check(self, name: str, check: Callable[..., None], *args: Any) -> None:
        try:
            check(*args)
        except Violation:
            raise
        except AssertionError as broken:
            raise Violation(name, str(broken)) from broken


def run_storm(plan: Plan, storm: Storm) -> Counter[str]:
    """Run a plan with traffic added; return how often each rare event happened. See `Cluster.storm`."""
    plan = _with_traffic(plan)

    def run(tried: Plan) -> _Run:
        tried_run = _Run(tried, storm)
        tried_run.run()
        return tried_run

    try:
        return run(plan).invariants.happened
    except Exception as error:
        name = _name(error)
        small = shrink(plan, lambda smaller: _failure_of(run, smaller) == name)
        replay = _Run(small, storm)
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
