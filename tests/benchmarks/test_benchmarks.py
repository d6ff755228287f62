"""The benchmark itself works. How fast anything is, is asserted nowhere: that is for `make bench`."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from queue import SimpleQueue

import pytest
from rich.console import Console

from tests.benchmarks import report
from tests.benchmarks.cluster import Cluster
from tests.benchmarks.commits import main
from tests.benchmarks.load import COMMAND, Client, Done, Figures, Load, LoadError, run
from tests.benchmarks.rows import FLUSHED, ROWS, Results, Round, Row

SHORT = 0.2


class Echo:
    """A target that answers from a thread of its own, and knows how many commands were outstanding at a time."""

    def __init__(self, fail_after: int = 1 << 60) -> None:
        self.outstanding = self.most_outstanding = self.answered = 0
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
            assert set(commands) == {COMMAND}
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
    ],
)
def test_as_many_commands_are_outstanding_as_asked_for_and_all_are_answered(load: Load) -> None:
    with Echo().running() as target:
        figures = run(target, load)
        assert target.most_outstanding == load.in_flight
        assert target.outstanding == 0
        assert figures.answered == target.answered
    assert 0 < figures.commits < figures.answered
    assert 0 < figures.p50 <= figures.p99 <= figures.worst
    assert figures.seconds >= SHORT


@pytest.mark.parametrize("client", ["waiting", "calling", "threaded"])
def test_a_single_command_that_fails_spoils_the_run(client: Client) -> None:
    load = Load(1 if client == "waiting" else 8, 5.0, client=client)
    with Echo(fail_after=100).running() as target, pytest.raises(LoadError, match="no more"):
        run(target, load)


def test_a_client_that_waits_has_one_command_in_flight() -> None:
    with pytest.raises(LoadError, match="one command in flight, and not 2"):
        run(Echo(), Load(2, SHORT, client="waiting"))


def test_three_hosts_commit_what_is_proposed_to_the_leader_and_to_a_follower(tmp_path: Path) -> None:
    with Cluster("drakkar", {}, tmp_path / "cluster") as cluster:
        waited, _ = cluster.run(Load(1, SHORT, client="waiting"))
        many, cpu = cluster.run(Load(64, SHORT))
        lists, _ = cluster.run(Load(200, SHORT, batch=20))
        forwarded, _ = cluster.run(Load(16, SHORT), at_leader=False)
    assert cpu > 0
    assert min(each.commits for each in (waited, many, lists, forwarded)) > 0
    for host in (1, 2, 3):
        assert (tmp_path / "cluster" / f"host-{host}" / "log" / "data.mdb").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("flush", [True, False])
def test_pysyncobj_is_measured_alike(flush: bool, tmp_path: Path) -> None:
    pytest.importorskip("pysyncobj")
    row = next(row for row in ROWS if row.system != "Drakkar" and row.options["flush"] is flush)
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
        "--only",
        "lists of 100",
        "--rounds",
        "2",
        "--seconds",
        str(SHORT),
        "--data-dir",
        str(tmp_path),
    ]
    assert main(["--json", str(file), *options]) == 0
    assert "ten lists of 100" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["in_flight"], row["batch"], len(row["rounds"])) == (1000, 100, 2)
    assert row["median"]["rate"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"], "the logs were left behind"


@pytest.mark.slow
def test_a_profile_shows_the_loops_of_the_leader_and_a_follower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--profile", "64", "--seconds", "0.5", "--data-dir", str(tmp_path)]) == 0
    _, leader, follower = capsys.readouterr().out.split("The loop of ")
    assert "proposals.py" in leader, "proposals are taken by the leader's loop"
    assert "message_frames.py" in follower, "messages are decoded by a follower's loop"


def test_to_measure_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "etcd", "--data-dir", str(tmp_path)]) == 1
    assert "nothing to measure" in capsys.readouterr().out


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
