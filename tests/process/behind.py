"""Replicas that come back far behind, on real hosts: what it costs the others, and how fast they catch up.

Three hosts in processes of their own. Host 1 leads every shard. Host 3 has a replica of an idle shard, the
neighbour, and is in touch; then its replicas of all other shards start, and lack everything. All three hosts
read the neighbour meanwhile, and watch their own loops and memory.

    python -m tests.process.behind [NAME …]

runs these cases, or all, and prints their figures.
"""

import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from drakkar.handlers.raft.log_memory import DEFAULT_LOG_MEMORY_BYTES
from drakkar.transport.options import Options

from tests.actors.support import until
from tests.ports import free_addresses
from tests.process.proxy import Link, Proxies
from tests.process.shards_host import LONG
from tests.process.support import Cluster, HostProcess

HOSTS = (1, 2, 3)
LEADER, LATE = 1, 3
NEIGHBOUR = 1
"""The shard that is read; those that are behind follow it."""
TICK = 0.1
MIB = 1 << 20
LOG_ALONE = {"snapshot_entries": 0}
"""Else a small snapshot could take the place of the log."""
SNAPSHOT_ALONE = {"snapshot_entries": 50, "compaction_overhead": 1}
WAN = Link(bytes_per_second=25e6, delay=0.05)
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""So that a process is as large as what it uses. Else glibc has heaps for several threads, and a large block that one frees is of
no use to another: one run in five grew by up to 110 MiB more than the others, which differ by 20."""


@dataclass(frozen=True)
class Case:
    """`shards` shards lack `count` commands of `size` bytes each on host 3, on which a snapshot or the log is sent."""

    name: str
    shards: int = 1
    count: int = 300
    size: int = MIB
    machine: str = "counted"
    config: dict = field(default_factory=lambda: LOG_ALONE)
    observer: bool = False
    """Host 3 joins each shard as an observer, rather than come back as a voter, and becomes one when it has
    caught up."""
    link: Link | None = None
    """What lies between the hosts."""
    tls: bool = False
    slow_disk: float = 0.0
    """Seconds that each flush of host 3 takes longer."""
    tick: float = TICK
    quick: float = 30.0
    """Seconds within which it should be up to date, on a machine with nothing else to do."""

    @property
    def missing(self):
        return self.shards * self.count * self.size

    @property
    def by_snapshot(self):
        return self.config is SNAPSHOT_ALONE


CASES = {
    case.name: case
    for case in (
        Case("300 x 1 MiB", quick=15),
        Case("400 x 1 MiB", count=400, quick=20),
        Case("150 x 4 MiB", count=150, size=4 * MIB, quick=30),
        Case("snapshot of 300 MiB", machine="kept", config=SNAPSHOT_ALONE, quick=20),
        Case("observer, 300 x 1 MiB", observer=True, quick=15),
        Case("24 shards, 12 x 1 MiB", shards=24, count=12, quick=15),
        Case("10 shards, 16 x 4 MiB", shards=10, count=16, size=4 * MIB, quick=30),
        Case("60 x 8 MiB", count=60, size=8 * MIB, quick=30),
        Case("TLS, 300 x 1 MiB", tls=True, quick=20),
        Case("slow disk, 10 x 16 x 4 MiB", shards=10, count=16, size=4 * MIB, slow_disk=0.2, quick=60),
        Case("slow link, 300 x 1 MiB", link=WAN, quick=15),
    )
}


@dataclass(frozen=True)
class Bounds:
    """How long a case may take. By default as on a machine with nothing else to do."""

    patience: float = 1.0
    """Times `Case.quick`."""
    read: float = 0.5
    """Seconds of the slowest read of the neighbour."""
    link: float = 0.9
    """The part of a link's rate that must be of use."""

    def __str__(self):
        return f"{self.patience:g} times what is `quick`, reads of {self.read} s, {self.link:.0%} of a link's rate"


@dataclass
class Figures:
    """What came of a case."""

    case: Case
    caught_up: bool
    seconds: float
    """From the start of the late replicas until they have applied everything."""
    sent: int
    """Bytes that hosts 1 and 2 sent meanwhile, also to one another, and in streams."""
    terms: tuple[dict, dict]
    """The term of each shard, as host 1 knows it, before and after."""
    leads: bool
    """Whether host 1 still leads every shard."""
    seen: dict
    """By host, what it saw of itself."""
    grown: dict
    """By host, the MiB by which its process grew at most, over what it was before the first command."""

    def count(self, name):
        return sum(seen["counters"].get(f"transport: {name}", 0) for seen in self.seen.values())

    @property
    def waste(self):
        """Bytes sent for each that was missing."""
        return self.sent / self.case.missing

    @property
    def slowest(self):
        return max(seen["slowest"] for seen in self.seen.values())

    @property
    def failed(self):
        return [failure for seen in self.seen.values() for failure in seen["failures"]]

    @property
    def rate(self):
        """Useful bytes a second."""
        return self.case.missing / self.seconds

    def faults(self):
        """What is wrong, by counts alone."""
        case, (before, after) = self.case, self.terms
        dropped, lost = self.count("dropped"), self.count("lost")
        return [
            fault
            for wrong, fault in (
                (not self.caught_up, "it did not catch up"),
                (before != after, f"terms changed: {before}, then {after}"),
                (not self.leads, "another host leads"),
                (dropped, f"{dropped} messages were dropped"),
                (lost, f"{lost} connections were lost"),
                (self.failed, f"reads of the neighbour failed: {self.failed[:3]}"),
                (self.waste > 1.3, f"{self.waste:.2f} bytes were sent for each that was missing"),
                (case.by_snapshot and not self.count("stream bytes sent"), "no snapshot was sent"),
            )
            if wrong
        ]

    def slow(self, bounds):
        """What took too long or too much."""
        case, longest = self.case, bounds.patience * self.case.quick
        least = bounds.link * case.link.bytes_per_second if case.link else 0
        allowed = {number: allowance(case, number) for number in HOSTS}
        return [
            fault
            for wrong, fault in (
                (self.seconds > longest, f"it took {self.seconds:.1f} s, more than {longest:.0f} s"),
                (
                    self.slowest > bounds.read,
                    f"the slowest read of the neighbour took {self.slowest:.2f} s, more than {bounds.read} s",
                ),
                (
                    any(self.grown[number] > allowed[number] for number in HOSTS),
                    f"processes grew by {self.grown} MiB, and {allowed} are allowed",
                ),
                (
                    self.rate < least,
                    f"the link carried {self.rate / 1e6:.1f} MB/s, less than {least / 1e6:.1f} MB/s",
                ),
            )
            if wrong
        ]

    def row(self):
        hosts = self.seen.values()
        cells = (
            f"{self.case.name:<24}",
            f"{self.seconds:6.1f}" + (" " if self.caught_up else "!"),
            f"{self.rate / 1e6:6.1f}",
            f"{self.waste:6.2f}",
            f"{self.count('dropped'):7}",
            "changed" if self.terms[0] != self.terms[1] or not self.leads else "   same",
            f"{self.slowest:7.3f}",
            f"{max(seen['median'] for seen in hosts):7.3f}",
            f"{len(self.failed):6}",
            " ".join(f"{seen['lateness']:5.2f}" for seen in hosts),
            " ".join(f"{mib:5}" for mib in self.grown.values()),
        )
        return " ".join(cells)


HEAD = " ".join(
    (
        f"{'case':<24}",
        "seconds",
        "  MB/s",
        " waste",
        "dropped",
        "  terms",
        "slowest",
        " median",
        "failed",
        f"{'lateness, s':<17}",
        f"{'grown, MiB':<17}",
    )
)


LOG_QUEUE_MIB = 64
"""What may wait for a host's log to be written."""


def allowance(case, number):
    """MiB by which a host may grow: the sum of its budgets, and 64; the state is beside them.

    Host 1 has what waits in its lanes; the others send nothing large, but put together what comes in parts.
    """
    state = case.missing // MIB if case.machine == "kept" else 0
    wire = 2 * (Options().queue_bytes if number == LEADER else case.size) // MIB
    return state + LOG_QUEUE_MIB + wire + DEFAULT_LOG_MEMORY_BYTES // MIB + 64


def certificates(directory):
    """The files by which the hosts prove to one another who they are."""
    authority, names = trustme.CA(), {name: str(directory / f"{name}.pem") for name in ("ca", "cert", "key")}
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(names["ca"])
    issued.cert_chain_pems[0].write_to_path(names["cert"])
    issued.private_key_pem.write_to_path(names["key"])
    return names


class Fleet:
    """The three hosts of a case; a context manager."""

    def __init__(self, case, directory):
        self._case, self._stack = case, ExitStack()
        addresses = free_addresses(6)
        self._fronts, self._backs = (
            dict(zip(HOSTS, half, strict=True)) for half in (addresses[:3], addresses[3:])
        )
        direct = case.link is None
        self._proxies = (
            None
            if direct
            else Proxies(
                {number: (self._fronts[number], self._backs[number]) for number in HOSTS},
                random.Random(1),
                case.link,
            )
        )
        more = {"tls": certificates(directory)} if case.tls else {}
        self._cluster = Cluster(
            HostProcess(
                number,
                self._fronts,
                directory,
                program="tests.process.shards_host",
                environment=ONE_HEAP,
                tick=case.tick,
                slow_disk=case.slow_disk if number == LATE else 0.0,
                **({} if direct else {"listen": self._backs[number]}),
                **more,
            )
            for number in HOSTS
        )
        self._late = list(range(NEIGHBOUR + 1, NEIGHBOUR + 1 + case.shards))

    def __enter__(self):
        with ExitStack() as stack:
            if self._proxies is not None:
                stack.enter_context(self._proxies)
            stack.enter_context(self._cluster)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure):
        return self._stack.__exit__(*failure)

    def _do(self, number, do, **order):
        answer = self._cluster.hosts[number].ask(do, answer_timeout=LONG, **order)
        assert "value" in answer, f"host {number} cannot {do}: {answer}"
        return answer["value"]

    def _status(self, number):
        return {int(shard): status for shard, status in self._do(number, "status").items()}

    def run(self):
        case = self._case
        self._prepare()
        sizes = {number: self._do(number, "memory") for number in HOSTS}
        self._do(LEADER, "fill", shards=self._late, count=case.count, size=case.size)
        self._do(LEADER, "lead", shards=[NEIGHBOUR, *self._late])  # the disks may have been slow meanwhile
        wanted = self._status(LEADER)
        self._meet()
        for number in HOSTS:
            self._do(number, "watch", shard=NEIGHBOUR)
        before = self._terms()
        began = time.monotonic()
        self._come_late()
        caught_up = self._wait(wanted, began + 4 * case.quick)
        seconds = time.monotonic() - began
        seen = {number: self._do(number, "seen") for number in HOSTS}
        if case.observer and caught_up:
            self._change("add_replica")
        return Figures(
            case=case,
            caught_up=caught_up,
            seconds=seconds,
            sent=sum(seen[number]["counters"]["transport: sent bytes"] for number in HOSTS if number != LATE),
            terms=(before, self._terms()),
            leads=all(status["leader_id"] == LEADER for status in self._status(LEADER).values()),
            seen=seen,
            grown={number: seen[number]["peak_mib"] - sizes[number] for number in HOSTS},
        )

    def _prepare(self):
        """Start all but what is late, with host 1 as the leader of everything."""
        for number in (1, 2):
            self._do(number, "start", shards=[NEIGHBOUR], members=self._fronts)
            self._start_late(number)
        self._do(LEADER, "lead", shards=[NEIGHBOUR, *self._late])

    def _meet(self):
        """Start the neighbour on host 3, and wait until it is served."""
        self._do(LATE, "start", shards=[NEIGHBOUR], members=self._fronts)
        until(lambda: self._status(LATE)[NEIGHBOUR]["leader_id"])
        self._do(LATE, "read", shard=NEIGHBOUR)

    def _come_late(self):
        if self._case.observer:
            self._change("add_observer")
        self._start_late(LATE)

    def _change(self, how):
        self._do(LEADER, "change", shards=self._late, how=how, replica=LATE, address=self._fronts[LATE])

    def _start_late(self, number):
        case = self._case
        members = dict(self._fronts)
        if case.observer:
            members = None if number == LATE else {each: members[each] for each in (1, 2)}
        self._do(
            number,
            "start",
            shards=self._late,
            machine=case.machine,
            members=members,
            config=case.config,
        )

    def _wait(self, wanted, deadline):
        """Return whether all late replicas hold, in time, what had been committed before."""
        while time.monotonic() < deadline:
            late = self._status(LATE)
            if all(late[shard]["applied"] >= wanted[shard]["commit"] for shard in self._late):
                return True
            time.sleep(0.05)
        return False

    def _terms(self):
        return {shard: status["term"] for shard, status in self._status(LEADER).items()}


def run(case, directory):
    with Fleet(case, directory) as fleet:
        return fleet.run()


def main(names):
    for name in names:
        if name not in CASES:
            sys.exit(f"{name!r} is no case: name one of {', '.join(map(repr, CASES))}")
    print(f"bounds: {Bounds()}", HEAD, sep="\n")
    for name in names or CASES:
        with tempfile.TemporaryDirectory(prefix="drakkar-") as directory:
            figures = run(CASES[name], Path(directory))
        print(figures.row(), flush=True)
        for fault in figures.faults() + figures.slow(Bounds()):
            print("    wrong:", fault, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
