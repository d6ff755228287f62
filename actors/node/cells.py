"""What the cells of handler tables have counted, as figures of a host: `cell_handled_audit_ask_in_leader_total`."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

from drakkar.handlers.tally import Tally

__all__ = ["OUTCOMES", "CellCounts", "Cells", "figures_of"]

OUTCOMES: Final = ("handled", "failed", "ignored", "swallowed", "impossible", "delivered")
"""The counters of a `Tally`, each by state and message type or, of what is delivered, kind of entry; failed methods by name."""

Cells: TypeAlias = Counter[tuple[str, str, str]]
"""Counts by the names of outcome, state, and message type or kind."""

_OTHERS: Final = re.compile(r"[^a-z0-9]+")


class CellCounts:
    """The counts of several nodes, added up cell by cell. A cell that nothing has met has none."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[tuple[Any, Any]]] = {outcome: Counter() for outcome in OUTCOMES}

    def add(self, tally: Tally) -> None:
        """Add what one node has counted. From any thread, while it counts on."""
        for outcome, counts in self._counts.items():
            counts.update(dict(getattr(tally, outcome)))  # `dict` copies in one step

    def add_all(self, others: "CellCounts") -> None:
        """Add what others have added up."""
        for outcome, counts in self._counts.items():
            counts.update(others._counts[outcome])

    def copy(self) -> "CellCounts":
        """Return a copy, to which others can be added."""
        twin = CellCounts()
        twin._counts = {outcome: Counter(counts) for outcome, counts in self._counts.items()}
        return twin

    def cells(self) -> Cells:
        """Return them by name."""
        return Counter(
            {
                (outcome, _name_of(state), _name_of(what)): count
                for outcome, counts in self._counts.items()
                for (state, what), count in counts.items()
            }
        )


def _name_of(what: Any) -> str:
    """Return the name of a state, a type or a kind; of what is none, as a node may be set to any state, the thing itself."""
    return str(getattr(what, "name", what))


def figures_of(cells: Mapping[tuple[str, str, str], int]) -> dict[str, float]:
    """Return the counts under names that Prometheus takes. Cells whose names differ in other characters alone share one."""
    figures: dict[str, float] = {}
    for (outcome, state, what), count in cells.items():
        name = _figure(outcome, state, what)
        figures[name] = figures.get(name, 0) + count
    return figures


@lru_cache(maxsize=10_000)
def _figure(outcome: str, state: str, what: str) -> str:
    return f"cell_{outcome}_{_plain(what)}_in_{_plain(state)}_total"


def _plain(name: str) -> str:
    return _OTHERS.sub("_", name.lower()).strip("_") or "unnamed"
