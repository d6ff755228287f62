"""How many durable commits a second, and how soon each: Drakkar beside PySyncObj, in the same run.

    python -m tests.benchmarks.commits --json bench.json
    python -m tests.benchmarks.commits --profile 1000

Each row of the table runs on a fresh cluster of three processes, with data directories of their own. Rounds go through
all rows in turn, so that a machine that is busier for a while is so for all of them; the table gives medians, and
ratios within a round. Compare ratios, not figures of different machines or days.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from tests.benchmarks import report
from tests.benchmarks.cluster import ROOT, Cluster
from tests.benchmarks.load import LoadError
from tests.benchmarks.rows import ROWS, Results, Round, Row

_ATTEMPTS: Final = 3
"""For each row of each round: where the machine is so busy that a leader changes, it is measured again."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, or profile, and return the exit status."""
    options = _parser().parse_args(arguments)
    # A file has no width, and a table must not be cut off in it.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    base = options.data_dir or ROOT / "build"
    base.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    try:
        if options.profile:
            profile(options.profile, options.seconds, directory, console)
        else:
            measure(options, directory, console)
    except LoadError as error:
        console.print(f"[red]No figures:[/red] {error}")
        return 1
    finally:
        shutil.rmtree(directory)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.commits", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row in each round (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--only", help="only rows in whose name this stands, such as 'drakkar' or '1000'")
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="where the logs are kept meanwhile, on the disk to be measured (default: build/)",
    )
    parser.add_argument(
        "--profile",
        type=int,
        metavar="IN_FLIGHT",
        help="show where Drakkar's hosts spend their time, and nothing else",
    )
    return parser


def measure(options: argparse.Namespace, directory: Path, console: Console) -> Results:
    """Run all rounds, and show and write what they brought."""
    rows = [row for row in ROWS if (options.only or "").lower() in _name(row).lower()]
    if not rows or options.rounds < 1:
        raise LoadError("nothing to measure: name a row by --only, and at least one round by --rounds")
    about = report.machine(directory)
    results = Results()
    for number in range(options.rounds):
        for row in rows:
            with console.status(f"round {number + 1} of {options.rounds}: {_name(row)}"):
                results.add(row, _round(row, options.seconds, directory, results))
    report.show(results, about, console)
    if options.json is not None:
        settings = {"seconds": options.seconds, "rounds": options.rounds}
        options.json.write_text(json.dumps(report.as_json(results, about, settings), indent=2) + "\n")
    return results


def _name(row: Row) -> str:
    return f"{row.system}, {row.in_flight} in flight {row.what}".strip()


def _round(row: Row, seconds: float, directory: Path, results: Results) -> Round:
    for attempt in range(_ATTEMPTS):
        try:
            return _attempt(row, seconds, directory)
        except LoadError as error:
            results.repeated.append(f"{_name(row)}: {error}")
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("returned or raised above")


def _attempt(row: Row, seconds: float, directory: Path) -> Round:
    place = Path(tempfile.mkdtemp(dir=directory)) / "cluster"
    with Cluster(row.module, row.options, place) as cluster:
        outcome = Round(*cluster.run(row.load(seconds), at_leader=row.at_leader))
    shutil.rmtree(place.parent)
    return outcome


def profile(in_flight: int, seconds: float, directory: Path, console: Console) -> None:
    """Show where the time of the leader's loop goes, and that of a follower's."""
    row = Row("Drakkar", in_flight, client="waiting" if in_flight == 1 else "calling")
    with Cluster(row.module, row.options, directory / "cluster", profile=True) as cluster:
        figures, cpu = cluster.run(row.load(seconds))
    console.print(
        f"{_name(row)}: {figures.rate:,.0f} commits/s, {cpu:.1f} µs of CPU each, while it was watched"
    )
    follower = next(replica for replica in cluster.profiles if replica != cluster.leader)
    for role, replica in (("the leader", cluster.leader), ("a follower", follower)):
        console.rule(f"The loop of {role}")
        console.print(cluster.profiles[replica], highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
