"""A handler table as text, with what became of a node's messages where that is asked for."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from drakkar.handlers.cells import Cell, Ignore, Never, Undeclared
from drakkar.handlers.tally import Tally

__all__ = ["Picture", "describe", "name_of"]


class Picture(str):
    """A string that the interactive prompt shows without quotes and escapes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def describe(
    states: Sequence[Any],
    rows: Mapping[Any, Sequence[Cell]],
    guards: Sequence[Callable[..., Any]],
    deliveries: Mapping[Any, Sequence[Callable[..., Any]]],
    counts: Tally | None,
) -> Picture:
    """Return a line for each message type, a column for each state, then the reasons, the deliveries and the guards."""
    reasons: dict[Cell, str] = {}
    lines = [["", *(state.name for state in states)]]
    for type_, cells in rows.items():
        texts = [
            _joined(_label(cell, reasons), _outcomes(counts, state, type_))
            for state, cell in zip(states, cells, strict=True)
        ]
        lines.append([str(type_), *texts])
    notes = [f"{mark:>4} {cell.because}" for cell, mark in reasons.items() if not callable(cell)]
    return Picture(
        "\n".join(
            line.rstrip()
            for line in (
                *_columns(lines),
                "",
                *notes,
                *_without_row(rows, counts),
                *_delivered(deliveries, counts),
                *_failed_methods(counts),
                *(["", "before dispatch: " + ", ".join(map(name_of, guards))] if guards else []),
            )
        )
    )


def _columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _outcomes(counts: Tally | None, state: Any, type_: Any) -> str:
    """What became of the messages of a cell, in so far as it is not 0: "12, 1 failed"."""
    if counts is None:
        return ""
    counters: tuple[tuple[Counter[Any], str], ...] = (
        (counts.handled, ""),
        (counts.failed, " failed"),
        (counts.ignored, " ignored"),
        (counts.impossible, " impossible"),
        (counts.swallowed, " swallowed"),
    )
    return ", ".join(f"{count}{what}" for counter, what in counters if (count := counter[state, type_]))


def _without_row(rows: Mapping[Any, object], counts: Tally | None) -> list[str]:
    """A line for the messages whose types the table does not have."""
    if counts is None:
        return []
    unknown: Counter[Any] = Counter()
    for counter in (counts.ignored, counts.swallowed, counts.failed):
        for (_, type_), count in counter.items():
            if type_ not in rows and not isinstance(type_, str):
                unknown[type_] += count
    found = [f"{type_} {count}" for type_, count in sorted(unknown.items())]
    return [f"without a row: {', '.join(found)}"] if found else []


def _delivered(deliveries: Mapping[Any, Sequence[Callable[..., Any]]], counts: Tally | None) -> Iterable[str]:
    """A line for each kind of entries that is delivered: "committed audit.mark: audit.Audit.mark 7"."""
    for kind in sorted(deliveries):
        times = sum(count for (_, of), count in counts.delivered.items() if of == kind) if counts else 0
        takers = ", ".join(map(name_of, deliveries[kind]))
        yield _joined(f"committed {kind}: {takers}", str(times) if times else "")


def _failed_methods(counts: Tally | None) -> list[str]:
    """A line for the methods of extensions that failed, and ended the replica: "failed: Audit.save 1"."""
    found = [
        f"{what} {count}"
        for (_, what), count in (counts.failed if counts else {}).items()
        if isinstance(what, str)
    ]
    return [f"failed: {', '.join(found)}"] if found else []


def _joined(label: str, outcomes: str) -> str:
    return f"{label} {outcomes}" if outcomes else label


def name_of(function: Any) -> str:
    """Return a handler's name with its module, such as `election.grant_vote`."""
    name: str = getattr(function, "__name__", type(function).__name__)
    module = str(getattr(function, "__module__", "")).rpartition(".")[2]
    return f"{module}.{name}" if module else name


def _label(cell: Cell, reasons: dict[Cell, str]) -> str:
    """Return a handler's name, or a mark with the number of its reason."""
    if isinstance(cell, Undeclared):
        return "?"
    if isinstance(cell, Ignore | Never):
        mark = "-" if isinstance(cell, Ignore) else "x"
        return reasons.setdefault(cell, f"{mark}{len(reasons) + 1}")
    return name_of(cell)
