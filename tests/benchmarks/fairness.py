"""How long a hundred quiet shards wait beside a saturated one, with a command a second each, on three hosts.

    python -m tests.benchmarks.fairness [--shards 100] [--seconds 5] [--loads 1000x16,64x64KiB,8x1MiB]

Shard 1 is saturated by a closed loop in the process of its leader. All other shards are quiet: the host that
leads one proposes to it. Times are from proposing to the answer, in milliseconds: at the host that leads the
saturated shard, where its clients and its loop share one interpreter with those of the quiet shards, and at
the two others, which only follow it.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from tests.benchmarks.load import ANSWERS_WITHIN, Done, Load, LoadError, run
from tests.benchmarks.on_drakkar import DrakkarTarget

EVERY_S: Final = 1.0
"""Seconds between two commands of a quiet shard."""
SIZES: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}


class _First:
    """The saturated shard, as the target of a load."""

    def __init__(self, target: DrakkarTarget) -> None:
        self._target = target

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        self._target.propose_to(1, commands, done)

    def propose_and_wait(self, command: bytes) -> None:
        raise NotImplementedError

    def read(self, done: Done) -> None:
        raise NotImplementedError


def measure(target: DrakkarTarget, order: dict[str, Any]) -> dict[str, Any]:
    """In a host's process: propose to the quiet shards that it leads, and saturate the first one if it leads that.

    Returns how long each quiet command took, in milliseconds, and the rate of the saturated shard; 0 where it
    is led elsewhere.
    """
    led = target.led()
    figures: list[Any] = []
    saturating = threading.Thread(
        target=lambda: figures.append(run(_First(target), Load(**order["load"]))), daemon=True
    )
    busy = order["load"] is not None and 1 in led
    if busy:
        saturating.start()
    times = _propose_to_all(target, [shard for shard in led if shard != 1], order["seconds"])
    if busy:
        saturating.join(order["seconds"] + ANSWERS_WITHIN)
        if not figures:
            raise LoadError("the saturated shard has no figures: see what the host wrote")
    return {"times": times, "rate": figures[0].rate if figures else 0.0, "leads": 1 in led}


def _propose_to_all(target: DrakkarTarget, shards: Sequence[int], seconds: float) -> list[float]:
    """Propose to each of these shards once in `EVERY_S`, at moments that are drawn.

    Raises `LoadError` if a command fails.
    """
    times: list[float] = []
    errors: list[BaseException] = []
    draw = random.Random(0)
    due = sorted(draw.uniform(0, seconds) for _ in range(round(len(shards) * seconds / EVERY_S)))
    order = [draw.choice(shards) for _ in due]
    all_answered = threading.Event()
    began = perf_counter()

    def propose(shard: int) -> None:
        since = perf_counter()

        def done(error: BaseException | None) -> None:
            times.append(1000 * (perf_counter() - since))
            if error is not None:
                errors.append(error)
            if len(times) == len(due):
                all_answered.set()

        target.propose_to(shard, [b"x" * 16], done)

    for moment, shard in zip(due, order, strict=True):
        time.sleep(max(began + moment - perf_counter(), 0))
        propose(shard)
    if due and not all_answered.wait(ANSWERS_WITHIN):
        raise LoadError(f"{len(due) - len(times)} answers did not come within {ANSWERS_WITHIN:.0f} s")
    if errors:
        raise LoadError(f"a command of a quiet shard failed: {errors[0]!r}")
    return times


def load_of(text: str, seconds: float) -> Load:
    """The load that "64x16" or "8x1MiB" means. Raises `LoadError`."""
    count, _, size = text.partition("x")
    number = size.rstrip("KMiB")
    if not (count.isdigit() and number.isdigit() and size[len(number) :] in SIZES):
        raise LoadError(f"{text!r} is no load: write commands in flight and their size, such as 64x64KiB")
    return Load(int(count), seconds, size=int(number) * SIZES[size[len(number) :]])


def main() -> None:
    """Print a line for each load."""
    # Not at the top: a host's process imports this module too, and needs no cluster.
    from tests.benchmarks.cluster import Cluster

    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fairness", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--shards", type=int, default=100, help="quiet shards (default: 100)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default: 5)")
    parser.add_argument("--loads", default="1000x16,64x64KiB,8x1MiB", help="of the saturated shard")
    parser.add_argument("--profile", action="store_true", help="show where the hosts spend their time")
    options = parser.parse_args()
    loads = [None, *(load_of(text, options.seconds) for text in options.loads.split(","))]
    print(f"{options.shards} quiet shards, each with a command every {EVERY_S:g} s; times in ms\n")
    print(
        f"{'beside':<16} {'commits/s':>10}   {'at its leader: p50':>18} {'p99':>8} {'worst':>8}   {'elsewhere: p50':>14} {'p99':>8} {'worst':>8}"
    )
    with tempfile.TemporaryDirectory(prefix="fairness-") as directory:
        watch = "loop" if options.profile else ""
        shards = {"shards": options.shards + 1}
        with Cluster("drakkar", shards, Path(directory) / "cluster", watch=watch) as cluster:
            for load in loads:
                answers = cluster.ask_all(
                    do="fairness",
                    load=load and asdict(load),
                    seconds=options.seconds,
                    within=options.seconds + ANSWERS_WITHIN,
                )
                print(_line(load, answers), flush=True)
        for replica, profile in cluster.profiles.items():
            if profile:
                print(f"\nhost {replica}\n{profile}")


def _line(load: Load | None, answers: Sequence[dict[str, Any]]) -> str:
    name = "nothing" if load is None else f"{load.in_flight} x {load.size} B"
    here = [each for answer in answers if answer["leads"] for each in answer["times"]]
    elsewhere = [each for answer in answers if not answer["leads"] for each in answer["times"]]
    rate = sum(answer["rate"] for answer in answers)
    first, others = (
        " ".join(f"{part:>{width}}" for part, width in zip(_percentiles(times), (18, 8, 8), strict=True))
        for times in (here, elsewhere)
    )
    return f"{name:<16} {rate:>10,.0f}   {first}   {others[4:]}"


def _percentiles(times: Sequence[float]) -> list[str]:
    """The middle, the 99th percentile and the worst; dashes where nothing was measured."""
    if not times:
        return ["-"] * 3
    ordered = sorted(times)
    return [f"{ordered[min(int(part * len(ordered)), len(ordered) - 1)]:.1f}" for part in (0.5, 0.99, 1)]


if __name__ == "__main__":
    try:
        main()
    except LoadError as error:
        sys.exit(str(error))
