"""How many durable commits a second, and how soon each: Drakkar beside dragonboat, etcd and PySyncObj, in the same run.

    python -m tests.benchmarks.commits --json bench.json --plot bench.png
    python -m tests.benchmarks.commits --systems drakkar,dragonboat --rows 1,64 --rounds 2
    python -m tests.benchmarks.commits --rows failover,flushes
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

from rich.console import Console

from tests.benchmarks import plot, report
from tests.benchmarks.cluster import Cluster
from tests.benchmarks.hosts import ROOT
from tests.benchmarks.load import LoadError
from tests.benchmarks.plan import choose, title
from tests.benchmarks.rows import GROUPS, ROWS, Results
from tests.benchmarks.runner import Runner, measure_row
from tests.benchmarks.systems import DRAKKAR, Unavailable


def main(arguments: list[str] | None = None) -> int:
    """Measure, or profile, and return the exit status.

    It is 1 where figures are lacking, or a system was not as durable as it claims to be.
    """
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
            results = measure(options, directory, console)
            return 1 if results.failed or results.lacking_flushes else 0
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
    parser.add_argument(
        "--systems", default="", help="drakkar, dragonboat, etcd, pysyncobj, trio, xoscar (default: all)"
    )
    parser.add_argument("--rows", default="", help=f"{', '.join(GROUPS)} (default: all)")
    parser.add_argument(
        "--only", default="", help="only rows in whose name this stands, such as 'drakkar' or '1000'"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row in each round (default: 2)")
    parser.add_argument(
        "--kills", type=int, default=30, help="of each system, over all rounds together (default: 30)"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the plain rows as a PNG in this file")
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="where the logs are kept meanwhile, on the disk to be measured (default: build/)",
    )
    parser.add_argument(
        "--profile",
        metavar="ROW",
        choices=[row.name for row in ROWS if row.system == DRAKKAR],
        help="show where Drakkar's hosts spend their time in a row, such as 1000 or lists, and nothing else",
    )
    return parser


def measure(options: argparse.Namespace, directory: Path, console: Console) -> Results:
    """Run all rounds, and show and write what they brought. Raises `LoadError` where they brought nothing."""
    plan = choose(options.systems, options.rows, options.only)
    if options.rounds < 1 or options.seconds <= 0:
        raise LoadError("nothing to measure: --rounds is at least 1, and --seconds more than 0")
    if plan.failovers and options.kills < options.rounds:
        raise LoadError("nothing to measure: --kills is at least --rounds, since each round kills a leader")
    about = report.machine(directory)
    runner = Runner(plan, directory, console)
    runner.run(options.rounds, options.seconds, options.kills)
    report.show(runner.results, about, console)
    if options.json is not None:
        settings = {name: getattr(options, name) for name in ("seconds", "rounds", "kills")}
        options.json.write_text(json.dumps(report.as_json(runner.results, about, settings), indent=2) + "\n")
    if options.plot is not None:
        try:
            plot.plot(runner.results, about, options.plot)
        except Unavailable as error:
            console.print(str(error), highlight=False)
    return runner.results


def profile(name: str, seconds: float, directory: Path, console: Console) -> None:
    """Show where the time of the leader's loop goes, and that of a follower's."""
    row = next(row for row in ROWS if (row.system, row.name) == (DRAKKAR, name))
    with Cluster(row.module, row.options, directory / "cluster", watch="loop") as cluster:
        figures, cpu = measure_row(cluster, row, seconds)
    console.print(
        f"{title(row)}: {figures.rate:,.0f} commits/s, {cpu:.1f} µs of CPU each, while it was watched"
    )
    follower = next(replica for replica in cluster.profiles if replica != cluster.leader)
    for role, replica in (("the leader", cluster.leader), ("a follower", follower)):
        console.rule(f"The loop of {role}")
        console.print(cluster.profiles[replica], highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
