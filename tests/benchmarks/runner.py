"""Runs a plan, and repeats what failed because the machine was too busy."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console

from tests.benchmarks import failover, flushes, programs
from tests.benchmarks.cluster import Cluster
from tests.benchmarks.failover import Failovers
from tests.benchmarks.load import Figures, LoadError
from tests.benchmarks.pair import Pair
from tests.benchmarks.plan import Plan, share, title
from tests.benchmarks.rows import FAILOVERS, MANY, MIDDLE, Results, Round, Row
from tests.benchmarks.systems import Unavailable, module_of

T = TypeVar("T")

_ATTEMPTS: Final = 3
"""For each row of each round: where the machine is so busy that a leader changes, it is measured again."""
_TRACED_SECONDS: Final = 2.0


def measure_row(cluster: Cluster, row: Row, seconds: float) -> tuple[Figures, float]:
    """Put a row's load on a cluster, as `Cluster.run` does."""
    if row.everywhere:
        return cluster.run_everywhere(row.load(seconds))
    return cluster.run(row.load(seconds), at_leader=row.at_leader)


class Runner:
    """Runs a plan. What cannot be measured is left out and noted in the results; it never ends the run."""

    def __init__(self, plan: Plan, directory: Path, console: Console) -> None:
        self.results = Results()
        self._directory = directory
        self._console = console
        self._plan = plan.without(self._missing(plan))
        self._given_up: set[object] = set()
        self._round = ""

    def run(self, rounds: int, seconds: float, kills: int) -> None:
        """Run all rounds, with so many kills of each system in all of them together. Raises `LoadError` for no figures."""
        for number in range(rounds):
            self._round = f"round {number + 1} of {rounds}"
            for row in self._plan.rows:
                self._measure(row, seconds)
            for name in self._plan.failovers:
                self._fail_over(name, share(kills, rounds, number))
            for row in self._plan.calls:
                self._ask(row, seconds)
        self._round = "strace"
        for row in self._plan.flushes:
            self._check_flushes(row)
        results = self.results
        if not (results.rounds or results.failovers or results.flushes or results.calls):
            raise LoadError("; ".join([*self.results.skipped, *self.results.failed]))

    def _missing(self, plan: Plan) -> list[str]:
        missing = []
        for module in plan.modules:
            with self._console.status(f"preparing {module}"):
                try:
                    programs.prepare(module)
                except Unavailable as error:
                    missing.append(module)
                    self._skip(f"{module}: {error}")
        return missing

    def _skip(self, why: str) -> None:
        self.results.skipped.append(why)
        self._console.print(f"Skipped: {why}", highlight=False, markup=False)

    def _measure(self, row: Row, seconds: float) -> None:
        def once(directory: Path) -> Round:
            with Cluster(row.module, row.options, directory) as cluster:
                return Round(*measure_row(cluster, row, seconds))

        outcome = self._attempt(row, title(row), once)
        if outcome is not None:
            self.results.add(row, outcome)
        else:
            self.results.rounds.pop(row, None)

    def _ask(self, row: Row, seconds: float) -> None:
        def once(directory: Path) -> Round:
            with Pair(row.system, directory) as pair:
                return Round(*pair.run(row.load(seconds)))

        outcome = self._attempt(row, title(row), once)
        if outcome is not None:
            self.results.calls.setdefault(row, []).append(outcome)
        else:
            self.results.calls.pop(row, None)

    def _fail_over(self, name: str, kills: int) -> None:
        killed = FAILOVERS[name]

        def once(directory: Path) -> Mapping[str, Sequence[float]]:
            system = module_of(killed.system)
            if name != MANY:
                return {name: failover.fail_over(system, killed.options, kills, directory)}
            times = failover.fail_over_all(system, killed.options, kills, directory)
            return {MIDDLE: [middle for middle, _ in times], MANY: [last for _, last in times]}

        found = self._attempt((name, "failover"), f"{name}, {kills} failovers", once)
        for each, times in (found or {}).items():
            self.results.failovers.setdefault(each, Failovers()).times.extend(times)

    def _check_flushes(self, row: Row) -> None:
        load = row.load(_TRACED_SECONDS, moments=True)
        try:
            check = self._attempt(
                (row.system, "flushes"),
                f"{row.system}, flushes",
                lambda directory: flushes.check(row.module, row.options, load, directory),
            )
        except Unavailable as error:
            self._skip(f"{row.system}, flushes: {error}")
        else:
            if check is not None:
                self.results.flushes[row.system] = check

    def _attempt(self, what: object, name: str, measure: Callable[[Path], T]) -> T | None:
        """Measure, up to three times; None, in this round and all others, if all fail."""
        if what in self._given_up:
            return None
        for _ in range(_ATTEMPTS):
            place = Path(tempfile.mkdtemp(dir=self._directory))
            try:
                with self._console.status(f"{self._round}: {name}"):
                    return measure(place / "cluster")
            except LoadError as error:
                self.results.repeated.append(f"{name}: {error}")
            finally:
                shutil.rmtree(place)
        self._given_up.add(what)
        self.results.failed.append(self.results.repeated.pop())
        return None
