"""Run a seed or a plan, and return the outcome."""

import functools
import gc
import logging
import multiprocessing
import os
from collections import Counter
from dataclasses import dataclass, field

from drakkar.handlers.testing.core_host import CoreHost
from drakkar.handlers.testing.plan import draw_plan, shrink, simpler_plans

from tests.simulation.clients import ShardSimulation, with_requests
from tests.simulation.node_host import NodeHost
from tests.simulation.records import with_records
from tests.simulation.store import InBytes

HOSTS = {"core": functools.partial(CoreHost, machine=InBytes), "node": NodeHost}
"""The kinds of hosts around the core: a simple one of the simulation, or the real node."""


@dataclass
class Outcome:
    """The outcome of one run."""

    check: str = ""
    """The name of the check that failed, or of the exception; empty if the run succeeded."""
    error: Exception | None = None
    story: str = ""
    steps: int = 0
    settled_after: int = 0
    operations: int = 0
    faults: Counter = field(default_factory=Counter)
    happened: Counter = field(default_factory=Counter)
    cells: Counter = field(default_factory=Counter)
    """How often each handler was called, by the names of state and message type."""


def plan_of(seed, **given):
    """Return the plan of a seed, with clients. `given` are arguments of `draw_plan`."""
    return with_records(with_requests(draw_plan(seed, **given)))


def host_of(seed):
    """Return the kind of host for a seed: the two kinds take turns."""
    return "node" if seed % 2 else "core"


def run(plan, hosts, handlers=None):
    """Run a plan on hosts of one kind."""
    simulation = ShardSimulation(plan, functools.partial(HOSTS[hosts], handlers=handlers))
    outcome = Outcome()
    # Faults in a simulation are intended, and the outcome tells of them, so nothing is logged.
    disabled, logging.root.manager.disable = logging.root.manager.disable, logging.CRITICAL
    try:
        simulation.run()
    except Exception as error:  # noqa: BLE001  # an exception in the core counts like a failed check
        outcome.check = getattr(error, "check", type(error).__name__)
        outcome.error = error
        outcome.story = simulation.story()
    finally:
        simulation.close()
        logging.root.manager.disable = disabled
    outcome.steps, outcome.settled_after = simulation.steps, simulation.settled_after
    outcome.operations, outcome.faults = len(simulation.history), simulation.faults
    outcome.happened, outcome.cells = simulation.invariants.happened, simulation.cells()
    return outcome


def shrunk(plan, hosts, check, handlers=None):
    """Return a smaller plan that fails the same check."""
    return shrink(plan, lambda smaller: run(smaller, hosts, handlers).check == check, simpler_plans)


def report(plan, hosts, outcome):
    """Return a report of a failure, for people."""
    return (
        f"{outcome.check}\n{outcome.error}\n\nthe plan, reduced ({hosts} hosts):\n{plan}\n\n"
        f"what happened:\n{outcome.story}"
    )


CHUNK = 20
"""The number of seeds in one task of a process."""


@dataclass
class Total:
    """The sum of the outcomes of many runs."""

    runs: int = 0
    steps: int = 0
    settled_after: int = 0
    failures: list = field(default_factory=list)
    """(seed, hosts, check, text) of each failure."""
    faults: Counter = field(default_factory=Counter)
    happened: Counter = field(default_factory=Counter)
    cells: Counter = field(default_factory=Counter)

    def count(self, seed, hosts, outcome):
        self.runs += 1
        self.steps += outcome.steps
        self.settled_after = max(self.settled_after, outcome.settled_after)
        if outcome.check:
            self.failures.append((seed, hosts, outcome.check, str(outcome.error)))
        self.faults += outcome.faults
        self.happened += outcome.happened
        self.cells += outcome.cells

    def add(self, part):
        self.runs += part.runs
        self.steps += part.steps
        self.settled_after = max(self.settled_after, part.settled_after)
        self.failures += part.failures
        self.faults += part.faults
        self.happened += part.happened
        self.cells += part.cells


def run_seeds(task):
    """Run some seeds. This is called in a separate process."""
    first, last, hosts = task
    total = Total()
    gc.collect()
    gc.freeze()
    for seed in range(first, last):
        kind = hosts or host_of(seed)
        total.count(seed, kind, run(plan_of(seed), kind))
    return total


def run_all(first, last, *, hosts=None, jobs=None):
    """Run seeds on all cores; yield totals as they become ready."""
    tasks = [(at, min(at + CHUNK, last), hosts) for at in range(first, last, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(jobs or os.cpu_count()) as pool:
        yield from pool.imap_unordered(run_seeds, tasks)
