"""Where the time of one commit goes, layer by layer: a trace of single proposals over three processes.

    python -m tests.benchmarks.journey
    python -m tests.benchmarks.journey --seconds 5 --apply-on worker

One client proposes one command after the other. Each host notes when a commit passes the places that `tracer`
names. The way of a commit is a chain of such moments, from host to host; the follower in it is the one whose
acknowledgement came first. The table shows the medians of the times between them, and how often each place is
passed for a commit.
"""

import argparse
import shutil
import sys
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.benchmarks.cluster import Cluster
from tests.benchmarks.hosts import ROOT
from tests.benchmarks.load import Load, LoadError
from tests.benchmarks.tracer import Moments, read_moments


class Stage(NamedTuple):
    """A part of the way: it ends at the first moment of this name after the end of the stage before."""

    at_leader: bool
    until: str
    what: str


WAY: Final = (
    Stage(True, "/put", "the client's thread: future, bounds, lane, wake-up"),
    Stage(True, "turn", "hop to the loop's thread"),
    Stage(True, "PROPOSE", "the turn: take the lane, make a run"),
    Stage(True, "/PROPOSE", "step: PROPOSE"),
    Stage(True, "/ready", "ready"),
    Stage(True, "/order", "the request to the log"),
    Stage(True, "/write", "encode and send REPLICATE"),
    Stage(False, "/read", "socket, and hop to the follower's loop"),
    Stage(False, "deliver", "cut frames, decode"),
    Stage(False, "REPLICATE", "deliver, turn"),
    Stage(False, "/REPLICATE", "step: REPLICATE"),
    Stage(False, "/ready", "ready"),
    Stage(False, "/order", "the request to the log"),
    Stage(False, "flush", "end of the round: record, write"),
    Stage(False, "/flush", "submit the flush"),
    Stage(False, "flushed", "the disk, and hop to the loop"),
    Stage(False, "write", "saved: turn, encode the acknowledgement"),
    Stage(False, "/write", "send the acknowledgement"),
    Stage(True, "/read", "socket, and hop to the leader's loop"),
    Stage(True, "deliver", "cut frames, decode"),
    Stage(True, "REPLICATE_RESP", "deliver, turn"),
    Stage(True, "/REPLICATE_RESP", "step: REPLICATE_RESP"),
    Stage(True, "/ready", "ready"),
    Stage(True, "/answer", "apply, set the future"),
    Stage(True, "/propose", "hop to the client's thread"),
)

OWN_WRITE: Final = (
    Stage(True, "flush", "end of the round: record, write"),
    Stage(True, "/flush", "submit the flush"),
    Stage(True, "flushed", "the disk, and hop to the loop"),
)
"""What the leader does for its own log meanwhile, after its request to the log."""


class _Host:
    """The moments of one host, by name."""

    def __init__(self, moments: Moments) -> None:
        self._times: dict[str, list[int]] = {}
        for moment, name in moments:
            self._times.setdefault(name, []).append(moment)

    def first(self, name: str, after: int) -> int | None:
        """The first moment of that name, at or after `after`."""
        times = self[name]
        at = bisect_left(times, after)
        return times[at] if at < len(times) else None

    def __getitem__(self, name: str) -> list[int]:
        return self._times.get(name, [])

    def counts(self, begin: int, end: int) -> Counter[str]:
        """How often each place was entered."""
        return Counter(
            {
                name: bisect_left(times, end) - bisect_left(times, begin)
                for name, times in self._times.items()
                if not name.startswith("/")
            }
        )


class Journey:
    """What the traces of a leader and its followers tell of the commits of a client that waits for each.

    Raises `LoadError` where a place that the way needs was never passed.
    """

    def __init__(self, leader: Moments, followers: Sequence[Moments]) -> None:
        self._leader, self._followers = _Host(leader), [_Host(each) for each in followers]
        begins = self._leader["propose"]
        # The first ones warm up.
        self._windows = list(pairwise(begins))[len(begins) // 5 :]
        ways = [(begin, self._way(begin, end)) for begin, end in self._windows]
        self.ways = [[begin, *way] for begin, way in ways if way is not None]
        """The moments of each commit: its begin, and the ends of all stages."""
        if not self.ways:
            raise LoadError(f"no commit passed all of {', '.join(stage.until for stage in WAY)}")

    def _way(self, begin: int, end: int) -> list[int] | None:
        ways = [self._chain(WAY, begin, follower, end) for follower in self._followers]
        return min((way for way in ways if way is not None), default=None, key=lambda way: way[_ANSWERED])

    def _chain(self, stages: Sequence[Stage], begin: int, follower: _Host, end: int) -> list[int] | None:
        moments: list[int] = []
        for stage in stages:
            moment = (self._leader if stage.at_leader else follower).first(stage.until, begin)
            if moment is None or moment > end:
                return None
            moments.append(begin := moment)
        return moments

    @property
    def total(self) -> float:
        """Microseconds from the proposal to the answer, the median."""
        return median(way[-1] - way[0] for way in self.ways) / 1000

    @property
    def stages(self) -> list[float]:
        """Microseconds of each stage of `WAY`, the medians."""
        return [median(way[at + 1] - way[at] for way in self.ways) / 1000 for at in range(len(WAY))]

    @property
    def own_write(self) -> list[float]:
        """Microseconds of each stage of `OWN_WRITE`, the medians."""
        chains = [self._chain(OWN_WRITE, way[_ORDERED], self._leader, way[-1] + 10**9) for way in self.ways]
        whole = [[way[_ORDERED], *chain] for way, chain in zip(self.ways, chains, strict=True) if chain]
        return [median(each[at + 1] - each[at] for each in whole) / 1000 for at in range(len(OWN_WRITE))]

    def counts(self) -> list[tuple[str, float, float]]:
        """How often each place is passed for a commit, at the leader and at a follower; without what is rare."""
        begin, end, commits = self._windows[0][0], self._windows[-1][1], len(self._windows)
        leader = self._leader.counts(begin, end)
        followers = sum((each.counts(begin, end) for each in self._followers), Counter[str]())
        return [
            (name, leader[name] / commits, followers[name] / commits / len(self._followers))
            for name in sorted({*leader, *followers})
            if leader[name] + followers[name] >= commits / 100
        ]


_ORDERED: Final = 1 + next(at for at, stage in enumerate(WAY) if stage.until == "/order")
_ANSWERED: Final = next(at for at, stage in enumerate(WAY) if stage.until == "REPLICATE_RESP")


def main(arguments: list[str] | None = None) -> int:
    """Trace, show, and return the exit status: 1 where nothing could be traced."""
    options = _parser().parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    base = options.data_dir or ROOT / "build"
    base.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="journey-", dir=base))
    load = Load(1, options.seconds, client="waiting")
    try:
        with Cluster("drakkar", {"apply_on": options.apply_on}, directory / "cluster") as plain:
            untraced, _ = plain.run(load)
        with Cluster(
            "drakkar", {"apply_on": options.apply_on}, directory / "traced", watch="trace"
        ) as cluster:
            cluster.run(load)
        traces = {replica: read_moments(report) for replica, report in cluster.profiles.items()}
        journey = Journey(traces[cluster.leader], [traces[each] for each in cluster.followers])
    except LoadError as error:
        console.print(f"[red]No trace:[/red] {error}")
        return 1
    finally:
        shutil.rmtree(directory)
    _show(journey, untraced.p50 * 1000, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.journey", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of the load (default: 3)")
    parser.add_argument("--apply-on", choices=["loop", "worker"], default="loop", help="default: loop")
    parser.add_argument("--data-dir", type=Path, help="where the logs are kept meanwhile (default: build/)")
    return parser


def _show(journey: Journey, untraced: float, console: Console) -> None:
    table = Table(
        "µs", "", "stage, medians", title=f"One commit, of {len(journey.ways)}", title_justify="left"
    )
    for stage, microseconds in zip(WAY, journey.stages, strict=True):
        table.add_row(f"{microseconds:.0f}", "leader" if stage.at_leader else "follower", stage.what)
    table.add_section()
    table.add_row(
        f"{journey.total:.0f}", "", f"from the proposal to the answer; {untraced:.0f} without the trace"
    )
    table.add_section()
    for stage, microseconds in zip(OWN_WRITE, journey.own_write, strict=True):
        table.add_row(f"{microseconds:.0f}", "leader", f"meanwhile: {stage.what}")
    console.print(table)
    counts = Table("", "leader", "a follower", title="How often for a commit", title_justify="left")
    for name, leader, follower in journey.counts():
        counts.add_row(name, f"{leader:.2f}", f"{follower:.2f}")
    console.print(counts)


if __name__ == "__main__":
    sys.exit(main())
