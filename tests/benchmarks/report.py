"""The results, as a table on the screen and as JSON."""

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tests.benchmarks import programs
from tests.benchmarks.plan import title
from tests.benchmarks.rows import ASK, ASKS, FAILOVERS, MANY, Results, Round, Row, Summary
from tests.benchmarks.systems import CALL_SYSTEMS, DRAKKAR, FLUSHED, SYSTEMS, TRIO_ACTOR, UNFLUSHED

RATE_TO_REACH: Final = 50_000.0
"""Commits a second, with 1000 in flight."""
P50_TO_REACH: Final = 2.0
"""Milliseconds, with one in flight."""
ASK_TO_REACH: Final = 0.3
"""Milliseconds of the median question to another host, with one in flight."""
ASKS_TO_REACH: Final = 25_000.0
"""Questions a second, with 100 in flight."""
FAILOVER_TO_REACH: Final = 300.0
"""Milliseconds of the median failover."""
ELECTION_TIMEOUT: Final = 1000.0
"""Milliseconds that a follower waits at the least, without better knowledge: ten ticks of 0.1 s. For the 99th percentile."""

_LIBRARIES: Final = ("caio", "cbor2", "pykka", "pysyncobj", "trio", "xoscar")
"""Those that are installed are named."""


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
        **_versions(),
        **programs.versions(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions


def show(results: Results, about: dict[str, Any], console: Console) -> None:
    """Print the tables, what their words mean, and how it stands with the figures to reach."""
    for table, wanted in (
        (_loads(results), results.rounds),
        (_failovers(results), results.failovers),
        (_calls(results), results.calls),
        (_flushes(results), results.flushes),
    ):
        if wanted:
            console.print(table)
    for note in _notes(results, about):
        console.print(note, highlight=False)


def _loads(results: Results) -> Table:
    table = _table(
        "Durable commits: three processes on this machine, commands of 16 bytes, or as named", "in flight"
    )
    for name in ("commits/s", "p50 ms", "p99 ms", "CPU µs", "Drakkar x"):
        table.add_column(name, justify="right", no_wrap=True)
    name = ""
    for row in results.rounds:
        if row.name != name:
            table.add_section()
        name = row.name
        table.add_row(*_cells(results, row))
    return table


def _table(heading: str, first: str) -> Table:
    table = Table(title=heading, box=SIMPLE, pad_edge=False, title_justify="left")
    table.add_column(first, justify="right")
    table.add_column("", no_wrap=True)
    return table


def _cells(results: Results, row: Row) -> list[str]:
    summary = results.summary(row)
    ratio = results.drakkar_ratio(row)
    return [
        str(row.in_flight),
        f"{row.system}, {row.what}" if row.what else row.system,
        f"{summary.rate:,.0f}",
        f"{summary.p50:.2f}",
        f"{summary.p99:.2f}",
        f"{summary.cpu:.1f}",
        "" if ratio is None else f"{ratio:.2f}",
    ]


def _failovers(results: Results) -> Table:
    table = _table("Failover: from the leader's SIGKILL to an answer of another host", "kills")
    for name in ("p50 ms", "p99 ms", "worst ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in results.failovers.items():
        figures = (f"{value:,.0f}" for value in (each.p50, each.p99, each.worst))
        table.add_row(str(len(each.times)), name, *figures)
    return table


def _calls(results: Results) -> Table:
    table = _table("Questions to an actor of another process, 16 bytes each way", "in flight")
    for name in ("asks/s", "p50 ms", "p99 ms", "CPU µs", "TrioActor x"):
        table.add_column(name, justify="right", no_wrap=True)
    name = ""
    for row, rounds in results.calls.items():
        if row.name != name:
            table.add_section()
        name = row.name
        summary, ratio = Summary.of(rounds), results.call_ratio(row)
        table.add_row(
            str(row.in_flight),
            row.system,
            f"{summary.rate:,.0f}",
            f"{summary.p50:.3f}",
            f"{summary.p99:.3f}",
            f"{summary.cpu:.1f}",
            "" if ratio is None else f"{ratio:.2f}",
        )
    return table


def _flushes(results: Results) -> Table:
    table = _table("Flushes, as strace saw them: one in flight", "commands")
    table.add_column("between proposal and answer")
    for system, each in results.flushes.items():
        table.add_row(str(each.commands), system, each.verdict)
    return table


def _notes(results: Results, about: dict[str, Any]) -> list[str]:
    count = max(map(len, [*results.rounds.values(), *results.calls.values()]), default=0)
    killed = [FAILOVERS[name].system for name in results.failovers if name in FAILOVERS]
    systems = dict.fromkeys([*(row.system for row in results.rounds), *killed, *results.flushes])
    asked = dict.fromkeys(row.system for row in results.calls)
    medians = [
        f"Medians of {count} rounds. CPU is what all processes together, clients included, take for one command.",
        f"Drakkar x, TrioActor x: how many times the row's rate {DRAKKAR}, or {TRIO_ACTOR}, reaches in the same round, the median.",
        "Below 1 it is slower.",
    ]
    return [
        *(medians if count else []),
        *(
            f"{system}: measured {SYSTEMS[system].reached}; {SYSTEMS[system].durability}."
            for system in systems
        ),
        *(f"{system}: {CALL_SYSTEMS[system].what}." for system in asked),
        ", ".join(f"{name} {value}" for name, value in about.items()) + ".",
        *(f"Skipped: {why}" for why in results.skipped),
        *(f"Repeated: {why}" for why in results.repeated),
        *(f"FAILED: {why}" for why in results.failed),
        *(
            f"NOT DURABLE: {system} answered before a majority had flushed"
            for system in results.lacking_flushes
        ),
        *_errors(results),
        *(text for text, _ in reached(results)),
    ]


def _errors(results: Results) -> list[str]:
    """The commands that failed and whose clients went on."""
    lines = []
    for row, rounds in results.rounds.items():
        if count := results.summary(row).errors:
            last = next(each.figures.last_error for each in rounds if each.figures.last_error)
            lines.append(f"Errors: {title(row)}: {count}, such as: {last}")
    return lines


def reached(results: Results) -> list[tuple[str, bool]]:
    """How it stands with the figures to reach, where they were measured."""
    lines: list[tuple[str, bool]] = []
    for row in results.rounds:
        if row.system != DRAKKAR or row.what:
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
    lines += [*_reached_calls(results), *_reached_failovers(results)]
    return [(f"{text}: {'reached' if good else 'NOT reached'}", good) for text, good in lines]


def _reached_calls(results: Results) -> Iterator[tuple[str, bool]]:
    for row, rounds in results.calls.items():
        if row.system != TRIO_ACTOR:
            continue
        summary = Summary.of(rounds)
        if row.name == ASK:
            text = f"ask: a median of {summary.p50:.3f} ms, {ASK_TO_REACH:g} ms to reach"
            yield text, summary.p50 <= ASK_TO_REACH
        elif row.name == ASKS:
            yield (
                f"asks: {summary.rate:,.0f}/s of {ASKS_TO_REACH:,.0f} to reach",
                summary.rate >= ASKS_TO_REACH,
            )


def _reached_failovers(results: Results) -> Iterator[tuple[str, bool]]:
    for name in (DRAKKAR, MANY):
        each = results.failovers.get(name)
        if each is not None:
            text = f"failover, {name}: a median of {each.p50:,.0f} ms, {FAILOVER_TO_REACH:g} ms to reach"
            yield text, each.p50 <= FAILOVER_TO_REACH
            text = f"failover, {name}: {each.p99:,.0f} ms at the 99th percentile, {ELECTION_TIMEOUT:g} ms to reach"
            yield text, each.p99 <= ELECTION_TIMEOUT


def as_json(results: Results, about: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """All of it, each round by itself too."""
    return {
        "machine": about,
        "settings": settings,
        "systems": {
            name: {"durability": each.durability, "reached": each.reached} for name, each in SYSTEMS.items()
        },
        "to_reach": [{"what": text, "reached": good} for text, good in reached(results)],
        "skipped": results.skipped,
        "repeated": results.repeated,
        "failed": results.failed,
        "rows": [_row_as_json(results, row) for row in results.rounds],
        "calls": [_calls_as_json(results, row) for row in results.calls],
        "failover": {
            name: {"p50": each.p50, "p99": each.p99, "worst": each.worst, "times": each.times}
            for name, each in results.failovers.items()
        },
        "flushes": {
            system: {**asdict(each), "verdict": each.verdict} for system, each in results.flushes.items()
        },
    }


def _row_as_json(results: Results, row: Row) -> dict[str, Any]:
    return {
        **asdict(row),
        "name": row.name,
        "median": asdict(results.summary(row)),
        "drakkar_ratio": results.drakkar_ratio(row),
        "times_flushed_pysyncobj": results.ratio(row, FLUSHED),
        "times_unflushed_pysyncobj": results.ratio(row, UNFLUSHED),
        "rounds": [_round_as_json(each) for each in results.rounds[row]],
    }


def _calls_as_json(results: Results, row: Row) -> dict[str, Any]:
    return {
        "system": row.system,
        "name": row.name,
        "in_flight": row.in_flight,
        "median": asdict(Summary.of(results.calls[row])),
        "trio_actor_ratio": results.call_ratio(row),
        "rounds": [_round_as_json(each) for each in results.calls[row]],
    }


def _round_as_json(outcome: Round) -> dict[str, Any]:
    figures = asdict(outcome.figures)
    del figures["moments"]
    return {**figures, "rate": outcome.figures.rate, "cpu": outcome.cpu}
