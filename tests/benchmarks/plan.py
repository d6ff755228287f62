"""What one run of the benchmark measures, as its options choose."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.load import LoadError
from tests.benchmarks.rows import CALLS, FAILOVER, FAILOVERS, FLUSHES, GROUPS, ROWS, Row
from tests.benchmarks.systems import CALL_SYSTEMS, SYSTEMS, module_of

_MODULES: Final = tuple(dict.fromkeys(module_of(system) for system in (*SYSTEMS, *CALL_SYSTEMS)))


def title(row: Row) -> str:
    """A row's name for people, in which the option `--only` looks."""
    return f"{row.system}, {row.in_flight} in flight {row.what}".strip()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, in this order within a round."""

    rows: Sequence[Row]
    failovers: Sequence[str]
    """The titles of those whose leaders are killed, as in `FAILOVERS`."""
    flushes: Sequence[Row]
    """The rows with one in flight whose flushes are traced."""
    calls: Sequence[Row] = ()
    """The rows of questions between two processes, after the others."""

    @property
    def modules(self) -> list[str]:
        """What hosts call the systems that it needs."""
        names = [each.system for each in (*self.rows, *self.calls, *self.flushes)]
        names += [FAILOVERS[name].system for name in self.failovers]
        return list(dict.fromkeys(map(module_of, names)))

    def without(self, modules: Iterable[str]) -> "Plan":
        """The same, less all that needs these systems."""
        missing = set(modules)
        return Plan(
            [row for row in self.rows if row.module not in missing],
            [name for name in self.failovers if module_of(FAILOVERS[name].system) not in missing],
            [row for row in self.flushes if row.module not in missing],
            [row for row in self.calls if row.module not in missing],
        )

    def __bool__(self) -> bool:
        return bool(self.rows or self.failovers or self.flushes or self.calls)


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
        [name for name in FAILOVERS if FAILOVER in chosen and wanted(f"{name}, {FAILOVER}")],
        [row for row in ROWS if FLUSHES in chosen and row.name == "1" and wanted(f"{row.system}, {FLUSHES}")],
        [row for row in CALLS if row.name in chosen and wanted(title(row))],
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
