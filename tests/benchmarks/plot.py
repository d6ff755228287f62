"""The plain rows as a picture: throughput and latency over the number of commands in flight."""

from pathlib import Path
from typing import Any, Final

from tests.benchmarks.rows import Results, Row
from tests.benchmarks.systems import SYSTEMS, Unavailable

_MARKERS: Final = dict(zip(SYSTEMS, "o*sD^v", strict=True))


def plot(results: Results, about: dict[str, Any], file: Path) -> None:
    """Draw and write a PNG. Raises `Unavailable` without matplotlib, and where there is nothing to draw."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("no plot: matplotlib is missing; it is among the extra `bench`") from error
    lines = {system: rows for system in SYSTEMS if (rows := _plain_rows(results, system))}
    if not lines:
        raise Unavailable("no plot: no plain row was measured, such as `--rows 1,64`")
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    for system, rows in lines.items():
        _draw(throughput, latency, system, rows, results)
    in_flight = sorted({row.in_flight for rows in lines.values() for row in rows})
    for axes, title, unit in (
        (throughput, "Throughput", "commits/s"),
        (latency, "Latency: median (line) and 99th percentile (dots)", "ms"),
    ):
        axes.set(xscale="log", yscale="log", title=title, xlabel="commands in flight", ylabel=unit)
        axes.set_xticks(in_flight, [str(number) for number in in_flight])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.grid(visible=True, alpha=0.3)
    throughput.legend()
    figure.suptitle("Durable commits of 16 bytes on three processes of one machine", fontsize=13)
    figure.supxlabel(
        f"medians of the rounds; {about.get('cores', '?')} cores, fdatasync of 4 KiB takes "
        f"{about.get('fdatasync_ms', '?')} ms",
        fontsize=8,
    )
    figure.savefig(file, dpi=120)


def _plain_rows(results: Results, system: str) -> list[Row]:
    rows = [row for row in results.rounds if row.system == system and not row.what]
    return sorted(rows, key=lambda row: row.in_flight)


def _draw(throughput: Any, latency: Any, system: str, rows: list[Row], results: Results) -> None:
    summaries = [results.summary(row) for row in rows]
    in_flight = [row.in_flight for row in rows]
    style = {"marker": _MARKERS[system], "linestyle": "-" if SYSTEMS[system].durable else "--"}
    label = system if SYSTEMS[system].in_process else f"{system}, through gRPC"
    (line,) = throughput.plot(in_flight, [each.rate for each in summaries], label=label, **style)
    latency.plot(in_flight, [each.p50 for each in summaries], color=line.get_color(), **style)
    latency.plot(
        in_flight, [each.p99 for each in summaries], color=line.get_color(), linestyle=":", alpha=0.6
    )
