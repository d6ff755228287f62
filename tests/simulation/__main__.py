"""Simulate many schedules on all cores: `python -m tests.simulation 1000`, or one: `python -m tests.simulation --seed 7`."""

import argparse
import json
import os
import secrets
import sys
import time
from collections import Counter
from pathlib import Path

from drakkar.handlers import raft_handlers
from drakkar.handlers.testing.plan import Plan
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.simulation.simulate import HOSTS, Total, host_of, plan_of, report, run, run_all, shrunk

MAX_SHOWN = 5
"""How many failures are shown in full."""
FRESH_SEEDS = 10**9
"""Fresh seeds are drawn below this, so two runs hardly ever share one."""


def arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="?", type=int, default=1000, help="how many schedules to run")
    parser.add_argument("--first", type=int, help="the first seed; without it, seeds are drawn")
    parser.add_argument(
        "--seed", type=int, help="replay only this seed; if it fails, reduce its plan and show it"
    )
    parser.add_argument("--whole", action="store_true", help="with --seed: do not reduce the plan")
    parser.add_argument(
        "--hosts", choices=sorted(HOSTS), help="use only hosts of this kind; otherwise both take turns"
    )
    parser.add_argument("--plan", type=argparse.FileType(), help="replay a plan from a JSON file")
    parser.add_argument("--save", type=Path, help="with --seed: write the reduced plan to this file")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="number of processes; by default the number of cores"
    )
    parser.add_argument(
        "--coverage",
        action="store_true",
        help="show how often each handler was called and each rare event happened",
    )
    return parser.parse_args()


def run_many(args, console):
    first = secrets.randbelow(FRESH_SEEDS) if args.first is None else args.first
    hosts = f" HOSTS={args.hosts}" if args.hosts else ""
    again = f"make sim SEEDS={args.seeds} FIRST={first}{hosts}"
    console.print(f"seeds from {first}; run the same again: {again}", highlight=False, soft_wrap=True)
    total = Total()
    began = time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[found]}"))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("schedules", total=args.seeds, found="")
        for part in run_all(first, first + args.seeds, hosts=args.hosts, jobs=args.jobs):
            total.add(part)
            progress.update(bar, completed=total.runs, found=f"{len(total.failures)} failed")
    spent = time.monotonic() - began
    console.print(
        f"{total.runs} schedules in {spent:.0f} s: {total.runs / spent:.1f} schedules, {total.steps / spent:,.0f} "
        f"steps and {total.faults.total() / spent:,.0f} faults a second; recovery took at most "
        f"{total.settled_after} ticks"
    )
    if args.coverage:
        show_coverage(console, total)
    for seed, kind, check, text in sorted(total.failures)[:MAX_SHOWN]:
        console.print(f"\n[red]seed {seed} ({kind} hosts): {check}[/red]", highlight=False)
        console.print(text[:400], markup=False, highlight=False)
        console.print(f"replay: make sim SEED={seed} HOSTS={kind}", highlight=False)
    if len(total.failures) > MAX_SHOWN:
        kinds = Counter(check for _, _, check, _ in total.failures)
        console.print(f"and {len(total.failures) - MAX_SHOWN} more: {kinds}")
    return 1 if total.failures else 0


def show_coverage(console, total):
    handlers = raft_handlers()
    table = Table("", *(state.name for state in handlers.states), title="How often each handler was called")
    for type_ in handlers.types:
        row = [
            f"{total.cells[state.name, str(type_)]:,}" if handlers[state][type_] else ""
            for state in handlers.states
        ]
        table.add_row(str(type_), *row)
    console.print(table)
    for title, counter in (("Rare events", total.happened), ("Faults and requests", total.faults)):
        table = Table(title, "times")
        for name, times in counter.most_common():
            table.add_row(name, f"{times:,}")
        console.print(table)


def replay(args, console):
    if args.plan:
        data = json.load(args.plan)
        kind, plan = args.hosts or data["hosts"], Plan.from_json(data["plan"])
    else:
        kind, plan = args.hosts or host_of(args.seed), plan_of(args.seed)
    outcome = run(plan, kind)
    if not outcome.check:
        console.print(f"no check failed: {outcome.steps} steps, {outcome.operations} operations")
        return 0
    if not args.whole and not args.plan:
        console.print(f"{outcome.check}: reducing the plan ...")
        plan = shrunk(plan, kind, outcome.check)
        outcome = run(plan, kind)
    console.print(report(plan, kind, outcome), markup=False, highlight=False, soft_wrap=True)
    if args.save:
        data = {"hosts": kind, "check": outcome.check, "plan": plan.to_json()}
        args.save.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 1


def main():
    args = arguments()
    console = Console()
    one = args.seed is not None or args.plan
    sys.exit(replay(args, console) if one else run_many(args, console))


if __name__ == "__main__":
    main()
