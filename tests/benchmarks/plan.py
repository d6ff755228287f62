"""What one run of the benchmark measures, as its options choose."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.load import LoadError
from tests.benchmarks.rows import FAILOVER, FAILOVER_SYSTEMS, FLUSHES, GROUPS, ROWS, Row
from tests.benchmarks.systems import SYSTEMS

_MODULES: Final = tuple(dict.fromkeys(system.module for system in SYSTEMS.values()))


def title(row: Row) -> str:
    """A row's name for people, in which the option `--only` looks."""
    return f"{row.system}, {row.in_flight} in flight {row.what}".strip()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, in this order within a round."""

    rows: Sequence[Row]
    failovers: Sequence[str]
    """The systems whose leaders are killed."""
    flushes: Sequence[Row]
    """The rows with one in flight whose flushes are traced."""

    @property
    def modules(self) -> list[str]:
        """What hosts call the systems that it needs."""
        names = [each.system for each in (*self.rows, *self.flushes)] + list(self.failovers)
        return list(dict.fromkeys(SYSTEMS[name].module for name in names))

    def without(self, modules: Iterable[str]) -> "Plan":
        """The same, less all that needs these systems."""
        missing = set(modules)
        return Plan(
            [row for row in self.rows if row.module not in missing],
            [system for system in self.failovers if SYSTEMS[system].module not in missing],
            [row for row in self.flushes if row.module not in missing],
        )

    def __bool__(self) -> bool:
        return bool(self.rows or self.failovers or self.flushes)


def choose(systems: str = "", groups: str = "", only: str = "") -> Plan:
    """Choose by comma-separated names, and by what stands in the names of rows; empty: all.

    Raises `LoadError` for a name that is none, and where nothing is left.
    """
    modules = _names("system", systems, _MODULES)
    chosen = _names("group of rows", groups, GROUPS)

    def wanted(name: str) -> bool:
        return only.lower() in name.lower()

    plan = Plan(
        [row for row in ROWS if row.name in chosen and wanted(title(row))],
        [name for name in FAILOVER_SYSTEMS if FAILOVER in chosen and wanted(f"{name}, {FAILOVER}")],
        [row for row in ROWS if FLUSHES in chosen and row.name == "1" and wanted(f"{row.system}, {FLUSHES}")],
    ).without(set(_MODULES) - set(modules))
    if not plan:
        raise LoadError("nothing to measure: choose by --systems, --rows and --only what some row has")
    return plan


def _names(what: str, chosen: str, names: Sequence[str]) -> Sequence[str]:
    if not chosen:
        return names
    found = [name.strip() for name in chosen.split(",")]
    for name in found:
        if name not in names:
            raise LoadError(f"no {what} is called {name!r}: choose from {', '.join(names)}")
    return found


def share(kills: int, rounds: int, number: int) -> int:
    """How many of all kills belong to the round of this number, counted from 0."""
    return kills * (number + 1) // rounds - kills * number // rounds
