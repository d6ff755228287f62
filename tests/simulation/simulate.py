"""Run a seed, or a plan, and tell what came of it."""

import functools
import gc
import logging
import multiprocessing
import os
from collections import Counter
from dataclasses import dataclass, field

from drakkar.handlers.testing.core_host import CoreHost
from drakkar.handlers.testing.plan import draw_plan, shrink

from tests.simulation.clients import ShardSimulation, with_requests
from tests.simulation.node_host import NodeHost
from tests.simulation.store import InBytes

HOSTS = {"core": functools.partial(CoreHost, machine=InBytes), "node": NodeHost}
"""What stands around the core: a host of the simulation's own, which takes snapshots, or the real node."""


@dataclass
class Outcome:
    """What came of one run."""

    check: str = ""
    """The invariant that broke, or the error that was raised; empty if all was well."""
    error: Exception | None = None
    story: str = ""
    steps: int = 0
    settled_after: int = 0
    operations: int = 0
    faults: Counter = field(default_factory=Counter)
    happened: Counter = field(default_factory=Counter)
    cells: Counter = field(default_factory=Counter)
    """How often each cell of the table was entered, by the names of state and message type."""


def plan_of(seed, **given):
    """The plan of a seed, clients included; `given` are those of `draw_plan`."""
    return with_requests(draw_plan(seed, **given))


def host_of(seed):
    """Seeds take turns."""
    return "node" if seed % 2 else "core"


def run(plan, hosts, handlers=None):
    """Run a plan on hosts of that kind."""
    simulation = ShardSimulation(plan, functools.partial(HOSTS[hosts], handlers=handlers))
    outcome = Outcome()
    # What goes wrong in a simulation is meant to, and told by its outcome.
    disabled, logging.root.manager.disable = logging.root.manager.disable, logging.CRITICAL
    try:
        simulation.run()
    except Exception as error:  # noqa: BLE001  # an error in the core is as much of a find as a broken invariant
        outcome.check = getattr(error, "check", type(error).__name__)
        outcome.error = error
        outcome.story = simulation.story()
    finally:
        logging.root.manager.disable = disabled
        simulation.close()
    outcome.steps, outcome.settled_after = simulation.steps, simulation.settled_after
    outcome.operations, outcome.faults = len(simulation.history), simulation.faults
    outcome.happened, outcome.cells = simulation.invariants.happened, simulation.cells()
    return outcome


def shrunk(plan, hosts, check, handlers=None):
    """A small plan that breaks the same invariant."""
    return shrink(plan, lambda smaller: run(smaller, hosts, handlers).check == check)


def report(plan, hosts, outcome):
    """What a person wants to know of a failure."""
    return (
        f"{outcome.check}\n{outcome.error}\n\nthe plan, cut down ({hosts} hosts):\n{plan}\n\n"
        f"what happened:\n{outcome.story}"
    )


CHUNK = 20
"""Seeds that a process runs at a time."""


@dataclass
class Total:
    """What came of many runs."""

    runs: int = 0
    steps: int = 0
    settled_after: int = 0
    failures: list = field(default_factory=list)
    """(seed, hosts, check, text) of each."""
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
    """Run some seeds in a process of its own."""
    first, last, hosts = task
    total = Total()
    gc.collect()
    gc.freeze()
    for seed in range(first, last):
        kind = hosts or host_of(seed)
        total.count(seed, kind, run(plan_of(seed), kind))
    return total


def run_all(first, last, *, hosts=None, jobs=None):
    """Run seeds on all cores; yields totals as they come."""
    tasks = [(at, min(at + CHUNK, last), hosts) for at in range(first, last, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(jobs or os.cpu_count()) as pool:
        yield from pool.imap_unordered(run_seeds, tasks)
