"""The results, as a table on the screen and as JSON."""

import os
import platform
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tests.benchmarks.rows import DURABILITY, FLUSHED, UNFLUSHED, Results, Row

RATE_TO_REACH: Final = 50_000.0
"""Commits a second, with 1000 in flight."""
P50_TO_REACH: Final = 2.0
"""Milliseconds, with one in flight."""

_LIBRARIES: Final = ("cbor2", "lmdb", "pykka", "pysyncobj", "trio")


def fdatasync_ms(directory: Path, times: int = 200) -> float:
    """How long the disk takes to make 4 KiB durable, the median in milliseconds: the floor under every latency."""
    path = directory / "fdatasync"
    with path.open("wb", buffering=0) as file:
        taken = [_sync_once(file.fileno()) for _ in range(times)]
    path.unlink()
    return 1000 * median(taken)


def _sync_once(fd: int) -> float:
    os.write(fd, bytes(4096))
    began = time.perf_counter()
    os.fdatasync(fd)
    return time.perf_counter() - began


def machine(directory: Path) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "fdatasync_ms": round(fdatasync_ms(directory), 3),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **{name: _version(name) for name in _LIBRARIES},
    }


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def show(results: Results, about: dict[str, Any], console: Console) -> None:
    """Print the table, what its words mean, and how it stands with the figures to reach."""
    title = "Durable commits: three processes on this machine, commands of 16 bytes"
    table = Table(title=title, box=SIMPLE, pad_edge=False, title_justify="left")
    table.add_column("in flight", justify="right")
    table.add_column("", no_wrap=True)
    for name in ("commits/s", "p50 ms", "p99 ms", "CPU µs", "x flushed", "x not"):
        table.add_column(name, justify="right", no_wrap=True)
    in_flight = 0
    for row in results.rounds:
        if row.in_flight != in_flight or row.what:
            table.add_section()
        in_flight = row.in_flight
        table.add_row(*_cells(results, row))
    console.print(table)
    for note in _notes(results, about):
        console.print(note, highlight=False)


def _cells(results: Results, row: Row) -> list[str]:
    summary = results.summary(row)
    return [
        str(row.in_flight),
        f"{row.system}, {row.what}" if row.what else row.system,
        f"{summary.rate:,.0f}",
        f"{summary.p50:.2f}",
        f"{summary.p99:.2f}",
        f"{summary.cpu:.1f}",
        *(
            _times(results.ratio(row, system)) if row.system == "Drakkar" else ""
            for system in (FLUSHED, UNFLUSHED)
        ),
    ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}"


def _notes(results: Results, about: dict[str, Any]) -> list[str]:
    count = max(map(len, results.rounds.values()))
    systems = dict.fromkeys(row.system for row in results.rounds)
    return [
        f"Medians of {count} rounds. CPU is what all three processes together take for one command.",
        "x flushed, x not: how many times the commits/s of PySyncObj in the same round, with its journal flushed or not.",
        *(f"{system}: {DURABILITY[system]}." for system in systems),
        ", ".join(f"{name} {value}" for name, value in about.items()) + ".",
        *(f"Repeated: {why}" for why in results.repeated),
        *(text for text, _ in reached(results)),
    ]


def reached(results: Results) -> list[tuple[str, bool]]:
    """How it stands with the figures to reach, where they were measured."""
    lines: list[tuple[str, bool]] = []
    for row in results.rounds:
        if row.system != "Drakkar" or row.what:
            continue
        summary = results.summary(row)
        if row.in_flight == 1000:
            good = summary.rate >= RATE_TO_REACH
            lines.append(
                (f"1000 in flight: {summary.rate:,.0f} commits/s of {RATE_TO_REACH:,.0f} to reach", good)
            )
        elif row.in_flight == 1:
            good = summary.p50 <= P50_TO_REACH
            lines.append(
                (f"1 in flight: a median of {summary.p50:.2f} ms, {P50_TO_REACH:g} ms to reach", good)
            )
    return [(f"{text}: {'reached' if good else 'NOT reached'}", good) for text, good in lines]


def as_json(results: Results, about: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """All of it, each round by itself too."""
    return {
        "machine": about,
        "settings": settings,
        "durability": dict(DURABILITY),
        "to_reach": [{"what": text, "reached": good} for text, good in reached(results)],
        "repeated": results.repeated,
        "rows": [_row_as_json(results, row) for row in results.rounds],
    }


def _row_as_json(results: Results, row: Row) -> dict[str, Any]:
    return {
        **asdict(row),
        "median": asdict(results.summary(row)),
        "times_flushed_pysyncobj": results.ratio(row, FLUSHED),
        "times_unflushed_pysyncobj": results.ratio(row, UNFLUSHED),
        "rounds": [
            {**asdict(each.figures), "rate": each.figures.rate, "cpu": each.cpu}
            for each in results.rounds[row]
        ],
    }
