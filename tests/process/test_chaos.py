"""Five processes under faults of all kinds, with clients in others: what the clients saw is linearizable.

`DRAKKAR_CHAOS_SECONDS` says how long the long ones take, `DRAKKAR_CHAOS_SEED` from what seed the faults are drawn.
"""

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.actors.support import TIMEOUT_S, until
from tests.ports import free_addresses
from tests.process import namespaces
from tests.process.client import KINDS, Client
from tests.process.disks import Disks
from tests.process.nemesis import Nemesis, Reformer, connection_faults, link_faults, process_faults
from tests.process.proxy import Proxies
from tests.process.support import ROOT, Cluster, HostProcess
from tests.simulation.linearizability import Operation, check

SEED = int(os.environ.get("DRAKKAR_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
SECONDS = os.environ.get("DRAKKAR_CHAOS_SECONDS")
SPARE = 180
"""Seconds that a slow machine may take for all that is not chaos itself, and to make up for what did not happen."""


@dataclass(frozen=True)
class Dose:
    """How much chaos there is, and what must have come of it for the test to be worth its time."""

    seconds: float
    times: int
    """How often each kind of fault happens, the leader changes and a replica is replaced, at least."""
    operations: int
    """How many of each kind, and at each host, succeed at least."""


SHORT = Dose(6, times=1, operations=15)
LONG = Dose(float(SECONDS or 120), times=3, operations=50)
LONG_OF_LINKS = Dose(float(SECONDS or 60), times=3, operations=50)
LONG_OF_DISKS = Dose(float(SECONDS or 60), times=2, operations=50)
DOSES = [
    pytest.param(SHORT, marks=pytest.mark.timeout(SHORT.seconds + SPARE), id="a little"),
    pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(LONG.seconds + SPARE)], id="a lot"),
]

HOSTS = range(1, 6)
CONFIG = {"snapshot_entries": 300, "compaction_overhead": 20}
"""Snapshots are taken every few seconds, so that a host that was away needs one."""
PROCESSES, THREADS = 3, 3


class Clients:
    """Processes with several clients each, which use all hosts; a context manager."""

    def __init__(self, directory, doors):
        self._doors = doors
        self._files = [directory / f"history-{each}" for each in range(PROCESSES)]
        self._log = directory / "clients.log"
        self._processes = []

    def __enter__(self):
        with self._log.open("a") as log:
            for number, file in enumerate(self._files):
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.process.client"],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
                self._processes.append(process)
                names = range(number * THREADS, (number + 1) * THREADS)
                self._tell(process, doors=self._doors, clients=list(names), history=str(file))
        return self

    def _tell(self, process, **who):
        process.stdin.write(json.dumps({**who, "seed": SEED, "pause": 0.02}) + "\n")
        process.stdin.flush()

    def have_used_all(self, operations):
        """Whether they have done so many through each host, so far."""
        lines = [
            line
            for file in self._files
            if file.exists()
            for line in file.read_text().splitlines(keepends=True)
        ]
        hosts = Counter(
            each["host"]
            for each in map(json.loads, (line for line in lines if line.endswith("\n")))
            if done(each)
        )
        return all(hosts[number] >= operations for number in HOSTS)

    def end(self):
        """Let them finish what they do; return their history."""
        for process in self._processes:
            process.stdin.close()
        codes = [process.wait(TIMEOUT_S) for process in self._processes]
        assert not any(codes), f"clients failed:\n{self._log.read_text()}"
        return [json.loads(line) for file in self._files for line in file.read_text().splitlines()]

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.wait(TIMEOUT_S)
            process.stdin.close()


def doors(directory):
    return {number: str(directory / f"door-{number}") for number in HOSTS}


@pytest.fixture
def short():
    """A directory with a short name: that of a Unix socket has 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="drakkar-") as directory:
        yield Path(directory)


@contextmanager
def told(nemesis, cluster):
    """Say on failure what happened."""
    try:
        yield
    except BaseException:
        print(f"DRAKKAR_CHAOS_SEED={SEED}", *nemesis.schedule, sep="\n")
        for number, host in cluster.hosts.items():
            print(f"-- the end of the log of host {number}", host.log(), sep="\n")
        raise


def survive_reformed(cluster, nemesis, dose, directory, short):
    """The same, while replicas are replaced by new ones."""
    reformer = Reformer(cluster, random.Random(SEED))
    survive(cluster, nemesis, dose, directory, short, meanwhile=reformer)
    assert reformer.failure is None, reformer.failure
    print(f"{reformer.replaced} replicas were replaced")
    assert reformer.replaced >= dose.times


def survive(cluster, nemesis, dose, directory, short, *, meanwhile=None):
    """Have clients and the nemesis at the hosts together; judge what came of it."""
    with told(nemesis, cluster):
        with Clients(directory, doors(short)) as clients:
            with meanwhile or nullcontext():
                nemesis.rage(dose.seconds)
            # A host may have had no replica that is a member for most of the time.
            until(lambda: clients.have_used_all(dose.operations))
            history = clients.end()
        judge(history)  # a wrong answer tells more than a host that is stuck because of it
        history += last_words(cluster, doors(short), {each["key"] for each in history})
        (directory / "history").write_text("".join(json.dumps(each) + "\n" for each in history))
        judge(history)
        expect_something(history, nemesis, dose)
        firsts = [host.ask("status")["value"]["first"] for host in cluster.hosts.values()]
        print(f"the logs begin at {firsts}")
        assert min(firsts) > 1, "every log was given up behind a snapshot"


def last_words(cluster, doors, keys):
    """All is healed: every host writes and reads, and in the end all hold the same. Returns what that adds to the history."""
    client = Client(PROCESSES * THREADS, doors)
    attempts = itertools.count()
    for each in HOSTS:
        until(lambda host=each: done(client.do(host, "put", "last", f"the {next(attempts)}. attempt")))
        until(lambda host=each: done(client.do(host, "get", "last")))
    client.close()

    invoked = time.monotonic()
    contents = until(lambda: alike(cluster.contents()))
    seen = {"client": client.name, "invoked": invoked, "returned": time.monotonic()}
    seen |= {"host": "all", "kind": "get", "argument": None, "outcome": "done"}
    return client.history + [{**seen, "key": key, "result": contents.get(key)} for key in sorted(keys)]


def done(operation):
    return operation["outcome"] == "done"


def alike(contents):
    """What all hold; what was proposed late and given up may still be on its way to some."""
    first, *others = contents
    return first if all(other == first for other in others) else None


def judge(history):
    check(operations(history))


def operations(history):
    """What the checker is to judge: all but what was refused, which no read may have seen."""
    for each in history:
        if each["outcome"] != "refused":
            argument = tuple(each["argument"]) if each["kind"] == "cas" else each["argument"]
            yield Operation(
                each["client"],
                each["key"],
                each["kind"],
                argument,
                each["result"] if done(each) else None,
                each["invoked"],
                each["returned"] if done(each) else None,
            )


def expect_something(history, nemesis, dose):
    """The test was worth its time."""
    useful = [each for each in history if done(each)]
    kinds = Counter(each["kind"] for each in useful)
    hosts = Counter(each["host"] for each in useful)
    outcomes = Counter(each["outcome"] for each in history)
    print(SEED, dict(outcomes), dict(kinds), dict(nemesis.counts), f"{len(nemesis.leaderships)} leaders")
    assert all(kinds[kind] >= dose.operations for kind in KINDS), kinds
    assert all(hosts[number] >= dose.operations for number in HOSTS), hosts
    assert sum(each["kind"] == "cas" and each["result"] for each in useful) >= dose.operations // 5
    assert outcomes["unknown"], outcomes
    assert all(count >= dose.times for count in nemesis.counts.values()), nemesis.counts
    assert len(nemesis.leaderships) > dose.times, nemesis.leaderships


@pytest.mark.parametrize("dose", DOSES)
def test_five_processes_are_killed_stopped_and_disconnected(tmp_path, short, dose):
    addresses = free_addresses(2 * len(HOSTS))
    fronts, backs = (dict(zip(HOSTS, half, strict=True)) for half in (addresses[:5], addresses[5:]))
    source = random.Random(SEED)
    cluster = Cluster(
        HostProcess(
            number,
            fronts,
            tmp_path,
            listen=backs[number],
            machine="registers",
            config=CONFIG,
            door=doors(short)[number],
        )
        for number in HOSTS
    )
    with Proxies({number: (fronts[number], backs[number]) for number in HOSTS}, source) as proxies, cluster:
        nemesis = Nemesis(
            cluster, {**process_faults(cluster), **connection_faults(proxies)}, source, times=dose.times
        )
        survive_reformed(cluster, nemesis, dose, tmp_path, short)


@pytest.mark.slow
@pytest.mark.timeout(LONG_OF_DISKS.seconds + SPARE)
def test_the_data_directories_of_five_processes_are_wiped_put_back_swapped_and_cloned(tmp_path, short):
    members, source = dict(zip(HOSTS, free_addresses(len(HOSTS)), strict=True)), random.Random(SEED)
    (tmp_path / "doubles").mkdir()
    with Cluster(
        HostProcess(number, members, tmp_path, machine="registers", config=CONFIG, door=doors(short)[number])
        for number in HOSTS
    ) as cluster:
        disks = Disks(cluster, tmp_path, source, doubles=tmp_path / "doubles")
        disks.wait_settled()
        dose = LONG_OF_DISKS
        nemesis = Nemesis(
            cluster,
            {**process_faults(cluster), **disks.faults()},
            source,
            times=dose.times,
            kinds=1,
            recovered=disks.wait_settled,
        )
        survive(cluster, nemesis, dose, tmp_path, short)


@pytest.mark.slow
@pytest.mark.timeout(LONG_OF_LINKS.seconds + SPARE)
def test_five_processes_with_networks_of_their_own_are_cut_off_from_one_another(tmp_path, short):
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        network = stack.enter_context(namespaces.Network(HOSTS))
        members = {number: network.address(number) for number in HOSTS}
        cluster = stack.enter_context(
            Cluster(
                HostProcess(
                    number,
                    members,
                    tmp_path,
                    within=network.within(number),
                    machine="registers",
                    config=CONFIG,
                    door=doors(short)[number],
                )
                for number in HOSTS
            )
        )
        dose = LONG_OF_LINKS
        nemesis = Nemesis(cluster, link_faults(network), random.Random(SEED), times=dose.times)
        survive_reformed(cluster, nemesis, dose, tmp_path, short)
