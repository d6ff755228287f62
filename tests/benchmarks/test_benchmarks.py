"""The benchmark itself works. How fast anything is, is asserted nowhere: that is for `make bench`."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import pytest
from rich.console import Console

from tests.actors.support import until
from tests.benchmarks import fairness, programs, report
from tests.benchmarks.cluster import Cluster
from tests.benchmarks.commits import main
from tests.benchmarks.failover import Failovers, fail_over, fail_over_all
from tests.benchmarks.flushes import FlushCheck
from tests.benchmarks.load import Client, Done, Figures, Load, LoadError, run
from tests.benchmarks.on_drakkar import DrakkarTarget
from tests.benchmarks.plan import Plan, share
from tests.benchmarks.recovery import recover
from tests.benchmarks.rows import ROWS, Results, Round, Row
from tests.benchmarks.runner import Runner
from tests.benchmarks.systems import COMPILED, DRAGONBOAT, DRAKKAR, ETCD, FLUSHED, SYSTEMS, UNFLUSHED
from tests.ports import free_addresses

SHORT = 0.2


class Echo:
    """A target that answers from a thread of its own, and knows how many commands were outstanding at a time."""

    def __init__(self, fail_after: int = 1 << 60) -> None:
        self.outstanding = self.most_outstanding = self.answered = self.reads = 0
        self.sizes: set[int] = set()
        self._fail_after = fail_after
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[tuple[Sequence[bytes], Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._answer, daemon=True)

    @contextmanager
    def running(self) -> Iterator["Echo"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._waiting.put(None)
            self._thread.join()

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        with self._lock:
            self.outstanding += len(commands)
            self.most_outstanding = max(self.most_outstanding, self.outstanding)
        self._waiting.put((commands, done))

    def read(self, done: Done) -> None:
        self.reads += 1
        self.propose([b""], done)

    def propose_and_wait(self, command: bytes) -> None:
        answered = threading.Event()
        errors: list[BaseException | None] = []
        self.propose([command], lambda error: (errors.append(error), answered.set()))
        assert answered.wait(5)
        if errors[0] is not None:
            raise errors[0]

    def _answer(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            commands, done = waiting
            self.sizes |= set(map(len, commands))
            self.answered += len(commands)
            with self._lock:
                self.outstanding -= len(commands)
            done(RuntimeError("no more") if self.answered > self._fail_after else None)


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(Load(1, SHORT, client="waiting"), id="one that waits"),
        pytest.param(Load(64, SHORT), id="64 that are called back"),
        pytest.param(Load(64, SHORT, client="threaded"), id="64 in another thread"),
        pytest.param(Load(60, SHORT, batch=20), id="three lists"),
        pytest.param(Load(4, SHORT, size=1 << 16), id="four large ones"),
    ],
)
def test_as_many_commands_are_outstanding_as_asked_for_and_all_are_answered(load: Load) -> None:
    with Echo().running() as target:
        figures = run(target, load)
        assert target.most_outstanding == load.in_flight
        assert target.outstanding == 0
        assert figures.answered == target.answered
        assert target.sizes == {load.size}
        assert not target.reads
    assert 0 < figures.commits < figures.answered
    assert 0 < figures.p50 <= figures.p99 <= figures.worst
    assert figures.seconds >= SHORT


@pytest.mark.parametrize("client", ["waiting", "calling", "threaded"])
def test_a_single_command_that_fails_spoils_the_run(client: Client) -> None:
    load = Load(1 if client == "waiting" else 8, 5.0, client=client)
    with Echo(fail_after=100).running() as target, pytest.raises(LoadError, match="no more"):
        run(target, load)


def test_a_client_that_waits_has_one_command_in_flight_and_does_not_read() -> None:
    with pytest.raises(LoadError, match="one command in flight, and not 2"):
        run(Echo(), Load(2, SHORT, client="waiting"))
    with pytest.raises(LoadError, match="does not read"):
        run(Echo(), Load(1, SHORT, client="waiting", read=True))


def test_reads_are_asked_for_as_reads() -> None:
    with Echo().running() as target:
        figures = run(target, Load(8, SHORT, read=True))
        assert (target.reads, target.most_outstanding) == (figures.answered, 8)


def test_the_moments_of_each_command_are_told_if_they_are_asked_for() -> None:
    with Echo().running() as target:
        before = time.time()
        figures = run(target, Load(1, SHORT, client="waiting", moments=True))
        assert len(figures.moments) == figures.commits
        flat = [before, *(moment for moments in figures.moments for moment in moments), time.time()]
        assert flat == sorted(flat)
        assert not run(target, Load(1, SHORT, client="waiting")).moments


def test_a_cluster_has_recovered_when_a_command_is_answered() -> None:
    """Those before it may fail: there was no leader."""

    class Leaderless(Echo):
        def propose(self, commands: Sequence[bytes], done: Done) -> None:
            self.answered += 1
            done(None if self.answered > 3 else RuntimeError("no leader"))

    target = Leaderless()
    recover(target, within=5)
    assert target.answered == 4
    target.answered = -(1 << 30)
    with pytest.raises(LoadError, match="no command was answered within"):
        recover(target, within=0.05)


def test_three_hosts_commit_what_is_proposed_to_the_leader_and_to_a_follower(tmp_path: Path) -> None:
    with Cluster("drakkar", {}, tmp_path / "cluster") as cluster:
        waited, _ = cluster.run(Load(1, SHORT, client="waiting"))
        many, cpu = cluster.run(Load(64, SHORT))
        lists, _ = cluster.run(Load(200, SHORT, batch=20))
        forwarded, _ = cluster.run(Load(16, SHORT), at_leader=False)
        large, _ = cluster.run(Load(4, SHORT, size=1 << 20))
        reads, _ = cluster.run(Load(64, SHORT, read=True))
    assert cpu > 0
    assert min(each.commits for each in (waited, many, lists, forwarded, large, reads)) > 0
    for host in (1, 2, 3):
        assert any(file.stat().st_size for file in (tmp_path / "cluster" / f"host-{host}" / "log").iterdir())


@pytest.mark.slow
def test_leaders_are_killed_and_hosts_started_again(tmp_path: Path) -> None:
    times = fail_over("drakkar", {}, 2, tmp_path / "cluster")
    assert len(times) == 2
    assert min(times) > 1, "a failover without an election"


@pytest.mark.slow
def test_hosts_are_killed_that_lead_many_shards(tmp_path: Path) -> None:
    times = fail_over_all("drakkar", {"shards": 12}, 2, tmp_path / "cluster")
    assert len(times) == 2
    assert all(0 < middle <= last for middle, last in times)


@pytest.mark.slow
@pytest.mark.parametrize("flush", [True, False])
def test_pysyncobj_is_measured_alike(flush: bool, tmp_path: Path) -> None:
    pytest.importorskip("pysyncobj")
    row = next(row for row in ROWS if row.options.get("flush") is flush)
    with Cluster(row.module, row.options, tmp_path / "cluster") as cluster:
        one_by_one, _ = cluster.run(Load(1, SHORT, client="waiting"))
        many, _ = cluster.run(Load(64, 3 * SHORT))
    assert one_by_one.commits > 0
    assert many.commits > 0


def test_a_host_that_cannot_start_is_reported_with_its_error(tmp_path: Path) -> None:
    with (
        pytest.raises(LoadError, match="apply_on"),
        Cluster("drakkar", {"apply_on": "nowhere"}, tmp_path / "cluster"),
    ):
        pass


@pytest.mark.slow
def test_a_run_prints_a_table_and_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    options = [
        "--systems",
        "drakkar",
        "--rows",
        "lists,1",
        "--rounds",
        "2",
        "--seconds",
        str(SHORT),
        "--data-dir",
        str(tmp_path),
    ]
    picture = tmp_path / "bench.png"
    assert main(["--json", str(file), "--plot", str(picture), *options]) == 0
    assert "ten lists of 100" in capsys.readouterr().out
    _, row = json.loads(file.read_text())["rows"]
    assert (row["name"], row["in_flight"], row["batch"], len(row["rounds"])) == ("lists", 1000, 100, 2)
    assert row["median"]["rate"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["bench.json", "bench.png"], "the logs were left behind"


@pytest.mark.slow
def test_a_profile_shows_the_loops_of_the_leader_and_a_follower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--profile", "64", "--seconds", "0.5", "--data-dir", str(tmp_path)]) == 0
    _, leader, follower = capsys.readouterr().out.split("The loop of ")
    assert "proposals.py" in leader, "proposals are taken by the leader's loop"
    assert "message_frames.py" in follower, "messages are decoded by a follower's loop"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "paxos"], "nothing to measure: choose by --systems"),
        (["--rounds", "0"], "nothing to measure: --rounds is at least 1"),
        (["--kills", "2"], "--kills is at least --rounds"),
        (
            ["--systems", "drakkar,paxos"],
            "no system is called 'paxos': choose from drakkar, drakkar-compiled",
        ),
        (["--rows", "65"], "no group of rows is called '65': choose from 1, 64, 1000"),
        (["--systems", "pysyncobj", "--rows", "reads"], "nothing to measure"),
    ],
)
def test_to_measure_nothing_is_an_error(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--data-dir", str(tmp_path)]) == 1
    assert told in " ".join(capsys.readouterr().out.split())


def figures(rate: float, p50: float = 1.0) -> Round:
    return Round(Figures(int(rate * 10), 10.0, p50, 2.0, 3.0, int(rate * 10)), 20.0)


def test_ratios_are_those_within_a_round() -> None:
    """A machine that is slow for one round is so for both systems."""
    ours, theirs = Row("Drakkar", 1000), Row(FLUSHED, 1000)
    results = Results()
    for mine, other in ((60_000, 20_000), (10_000, 2_000), (90_000, 10_000)):
        results.add(ours, figures(mine))
        results.add(theirs, figures(other))
    assert results.summary(ours).rate == 60_000
    assert results.ratio(ours, FLUSHED) == 5.0, "and not the ratio of the medians, which is 6"
    assert results.ratio(ours, "another") is None
    assert results.drakkar_ratio(theirs) == 5.0
    assert results.drakkar_ratio(ours) is None


def test_rows_are_compared_with_their_counterparts_alone() -> None:
    results = Results()
    lists, plain = Row(ETCD, 1000, "Txns", "lists", batch=100), Row(ETCD, 1000)
    for row, rate in (
        (Row(DRAKKAR, 1000), 100),
        (Row(DRAKKAR, 1000, "lists", "lists"), 300),
        (lists, 150),
        (plain, 50),
    ):
        results.add(row, figures(rate))
    assert (results.drakkar_ratio(lists), results.drakkar_ratio(plain)) == (2.0, 2.0)
    assert results.drakkar_ratio(Row(ETCD, 64)) is None


def test_each_system_of_the_whole_bench_has_all_rows_that_are_compared() -> None:
    names = {system: [row.name for row in ROWS if row.system == system] for system in SYSTEMS}
    for system, lacks in ((COMPILED, set()), (DRAGONBOAT, set()), (ETCD, {"shards"})):
        others = {"thread", "worker"} | lacks
        assert [name for name in names[DRAKKAR] if name not in others] == names[system]
    assert names[FLUSHED] == names[UNFLUSHED] == ["1", "64", "1000"]


def test_hosts_that_are_measured_together_are_summed_up() -> None:
    """Each has answered its own commands; the time of a command is that of the middle host."""
    parts = [Figures(100, 1.0, p50, 9.0, 10.0, 120, errors) for p50, errors in ((2.0, 0), (3.0, 1), (7.0, 2))]
    both = Figures.together(parts)
    assert (both.commits, both.rate, both.p50, both.answered, both.errors) == (300, 300.0, 3.0, 360, 3)


@pytest.mark.slow
def test_each_host_has_the_load_of_the_shards_that_it_leads(tmp_path: Path) -> None:
    with Cluster("drakkar", {"shards": 60}, tmp_path / "cluster") as cluster:
        figures, _ = cluster.run_everywhere(Load(60, SHORT))
    assert figures.answered >= 3 * 60


def test_kills_are_shared_among_the_rounds() -> None:
    assert [share(30, 3, number) for number in range(3)] == [10, 10, 10]
    assert [share(5, 3, number) for number in range(3)] == [1, 2, 2]


def test_the_report_tells_failovers_flushes_errors_and_how_each_system_was_reached() -> None:
    results = Results()
    erring = figures(1000)
    results.add(
        Row(ETCD, 4000), replace(erring, figures=replace(erring.figures, errors=7, last_error="busy"))
    )
    results.failovers[DRAKKAR] = Failovers([float(time) for time in range(1, 31)])
    results.flushes[DRAKKAR] = FlushCheck(300, 299)
    results.flushes[UNFLUSHED] = FlushCheck(300, 0)
    results.skipped.append("dragonboat: Go is missing")
    results.failed.append("etcd, 1 MiB: no leader")
    shown = StringIO()
    report.show(results, {}, Console(file=shown, width=200))
    text = " ".join(shown.getvalue().split())
    for line in (
        "30 Drakkar 16 30 30",
        "NOT flushed before 1 of 300 answers",
        "not flushed before any of 300 answers",
        "etcd: measured through gRPC, from another process",
        "Skipped: dragonboat: Go is missing",
        "FAILED: etcd, 1 MiB: no leader",
        "NOT DURABLE: Drakkar answered before a majority had flushed",
        "Errors: etcd, 4000 in flight: 7, such as: busy",
    ):
        assert line in text
    assert "NOT DURABLE: PySyncObj" not in text, "it does not claim to be"
    told = report.as_json(results, {}, {})
    assert (told["failover"][DRAKKAR]["p50"], told["failover"][DRAKKAR]["worst"]) == (15.5, 30.0)
    assert told["flushes"][UNFLUSHED]["flushed"] == 0


def test_a_system_that_cannot_be_built_is_skipped_with_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(programs, "BUILT", tmp_path / "nothing is built")
    monkeypatch.setenv("PATH", "/nowhere")
    options = ["--systems", "dragonboat,etcd", "--rows", "1", "--data-dir", str(tmp_path)]
    assert main(options) == 1
    told = capsys.readouterr().out
    assert "Skipped: dragonboat: Go is missing: install Go 1.22 or newer" in told
    assert "Skipped: etcd: etcd is missing: on Debian, `apt-get install etcd-server`" in told


def test_a_row_that_fails_each_time_is_left_out_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.benchmarks.runner.Cluster", FakeCluster)
    failing, well = Row(DRAKKAR, 13), Row(DRAKKAR, 1000)
    runner = Runner(Plan([failing, well], [], []), tmp_path, Console(file=StringIO()))
    runner.run(rounds=2, seconds=1.0, kills=2)
    assert list(runner.results.rounds) == [well]
    assert runner.results.failed == ["Drakkar, 13 in flight: unlucky"]
    assert len(runner.results.repeated) == 2, "two of three attempts, and none in the second round"
    with pytest.raises(LoadError, match="unlucky"):
        Runner(Plan([failing], [], []), tmp_path, Console(file=StringIO())).run(1, 1.0, 1)


class FakeCluster:
    """Fails with 13 in flight."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, load: Load, *, at_leader: bool) -> tuple[Figures, float]:
        if load.in_flight == 13:
            raise LoadError("unlucky")
        return figures(1000).figures, 1.0


@pytest.mark.parametrize(
    ("rate", "p50", "verdicts"),
    [(50_000, 2.0, [True, True]), (49_999, 2.0, [True, False]), (50_000, 2.01, [False, True])],
)
def test_the_report_says_whether_the_figures_to_reach_were_reached(
    rate: float, p50: float, verdicts: list[bool]
) -> None:
    results = Results()
    results.add(Row("Drakkar", 1, client="waiting"), figures(500, p50))
    results.add(Row("Drakkar", 1000), figures(rate))
    results.add(Row("Drakkar", 1000, "ten lists of 100", batch=100), figures(200_000))
    assert [good for _, good in report.reached(results)] == verdicts
    shown = StringIO()
    report.show(results, {"cores": 2}, Console(file=shown, width=120))
    assert shown.getvalue().count("NOT reached") == verdicts.count(False)
    assert json.loads(json.dumps(report.as_json(results, {}, {})))["to_reach"][0]["reached"] is verdicts[0]


@pytest.mark.parametrize(
    ("text", "in_flight", "size"), [("64x64KiB", 64, 65536), ("8x1MiB", 8, 1 << 20), ("1x16", 1, 16)]
)
def test_a_load_of_the_busy_shard_is_written_as_commands_in_flight_and_their_size(text, in_flight, size):
    load = fairness.load_of(text, 2.0)
    assert (load.in_flight, load.size, load.seconds) == (in_flight, size, 2.0)


@pytest.mark.parametrize("text", ["", "64", "x16", "64x", "64x16KB", "64xMiB", "-1x16"])
def test_what_is_no_load_is_refused_with_an_example(text):
    with pytest.raises(LoadError, match="write commands in flight and their size, such as 64x64KiB"):
        fairness.load_of(text, 2.0)


def test_quiet_shards_are_measured_beside_a_busy_one(tmp_path):
    (address,) = free_addresses(1)
    target = DrakkarTarget(1, {1: address}, str(tmp_path / "host"), shards=3)
    try:
        until(lambda: target.led() == [1, 2, 3])
        order = {"load": asdict(Load(4, 1.0)), "seconds": 1.0}
        found = fairness.measure(target, order)
        assert found["leads"]
        assert found["rate"] > 0
        assert len(found["times"]) == 2
        assert fairness.measure(target, order | {"load": None})["rate"] == 0.0
    finally:
        target.stop()
