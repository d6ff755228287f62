"""The benchmark of questions between two processes works, and that of failovers with many shards. Nothing asserts how fast anything is."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from drakkar.transport.frames import FrameReader
from rich.console import Console

from tests.actors.support import Hosts, InlineLedger, until
from tests.benchmarks import calls_on_trio, programs, recovery, report
from tests.benchmarks.failover import Failovers
from tests.benchmarks.load import Figures, Load, LoadError
from tests.benchmarks.pair import Pair
from tests.benchmarks.plan import Plan, choose
from tests.benchmarks.rows import ASK, ASKS, CALLS, FAILOVERS, MANY, MIDDLE, Results, Round, Row
from tests.benchmarks.runner import Runner
from tests.benchmarks.systems import (
    CALL_SYSTEMS,
    DRAKKAR,
    ECHO,
    THREADING_ACTOR,
    TRIO_ACTOR,
    XOSCAR,
    Unavailable,
)

SHORT = 0.2
SMALL = 16


@pytest.mark.parametrize(
    "system",
    [TRIO_ACTOR, THREADING_ACTOR, ECHO, pytest.param(XOSCAR, marks=pytest.mark.slow)],
)
def test_questions_are_asked_and_answered_one_at_a_time_and_many(system: str, tmp_path: Path) -> None:
    if system == XOSCAR:
        pytest.importorskip("xoscar")
    with Pair(system, tmp_path / "pair") as pair:
        one, cpu = pair.run(Load(1, SHORT, client="waiting"))
        many, _ = pair.run(Load(50, SHORT))
    assert cpu > 0
    for figures in (one, many):
        assert 0 < figures.commits <= figures.answered
        assert 0 < figures.p50 <= figures.p99 <= figures.worst
    assert many.answered > one.answered / 10, "they are asked together"


def test_the_echo_moves_as_many_bytes_as_a_question_and_its_answer() -> None:
    message = Load(1, SHORT).command
    question, answer = calls_on_trio.question(message), calls_on_trio.answer(message)
    for frame in (question, answer):
        assert len(FrameReader().feed(frame)) == 1
        assert message in frame
    assert 0 < len(answer) - SMALL < len(question) - SMALL < 100


def test_a_process_that_cannot_start_is_reported_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = replace(CALL_SYSTEMS[TRIO_ACTOR], target="calls_on_nothing:Calls")
    monkeypatch.setattr("tests.benchmarks.pair.CALL_SYSTEMS", {TRIO_ACTOR: strange})
    with pytest.raises(LoadError, match="calls_on_nothing"), Pair(TRIO_ACTOR, tmp_path / "pair"):
        pass


def test_all_systems_are_asked_alike_and_in_turn() -> None:
    for group, in_flight in ((ASK, 1), (ASKS, 100)):
        rows = [row for row in CALLS if row.name == group]
        assert [row.system for row in rows] == list(CALL_SYSTEMS)
        assert {row.in_flight for row in rows} == {in_flight}


@pytest.mark.parametrize(
    ("systems", "groups", "only", "chosen"),
    [
        ("", "ask,asks", "", [row.system for row in CALLS]),
        ("drakkar", "ask", "", [TRIO_ACTOR, THREADING_ACTOR]),
        ("trio,xoscar", "asks", "", [ECHO, XOSCAR]),
        ("", "ask", "threading", [THREADING_ACTOR]),
    ],
)
def test_rows_of_calls_are_chosen_as_others(systems: str, groups: str, only: str, chosen: list[str]) -> None:
    plan = choose(systems, groups, only)
    assert [row.system for row in plan.calls] == chosen
    assert not [*plan.rows, *plan.failovers, *plan.flushes]


def test_failovers_with_many_shards_are_chosen_with_the_others() -> None:
    assert choose(groups="failover").failovers == list(FAILOVERS)
    assert choose(groups="failover", only="300 shards").failovers == [MANY]
    assert choose("etcd", "failover").failovers == ["etcd"]


def test_what_does_not_install_is_skipped_with_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="pip install xoscar"):
        programs.prepare("xoscar")
    said = StringIO()
    runner = Runner(
        Plan([], [], [], [row for row in CALLS if row.system == XOSCAR]), tmp_path, Console(file=said)
    )
    with pytest.raises(LoadError, match="xoscar is missing"):
        runner.run(1, SHORT, 1)
    assert "Skipped: xoscar" in said.getvalue()


def figures(rate: float, p50: float) -> Round:
    return Round(Figures(int(rate * 10), 10.0, p50, 2 * p50, 3 * p50, int(rate * 10)), 20.0)


def row(system: str, group: str) -> Row:
    return next(row for row in CALLS if (row.system, row.name) == (system, group))


def test_ratios_are_those_to_a_trio_actor_within_a_round() -> None:
    ours, theirs, results = row(TRIO_ACTOR, ASKS), row(XOSCAR, ASKS), Results()
    results.calls[ours] = [figures(rate, 1.0) for rate in (60_000, 10_000, 90_000)]
    results.calls[theirs] = [figures(rate, 1.0) for rate in (20_000, 2_000, 10_000)]
    assert results.call_ratio(theirs) == 5.0
    assert results.call_ratio(ours) is None
    assert results.call_ratio(row(XOSCAR, ASK)) is None


@pytest.mark.parametrize(
    ("p50", "rate", "failover", "verdicts"),
    [
        (0.3, 25_000, [300.0] * 29 + [1000.0], [True] * 4),
        (0.31, 25_000, [300.0] * 30, [False, True, True, True]),
        (0.3, 24_999, [301.0] * 30, [True, False, False, True]),
        (0.3, 25_000, [100.0] * 29 + [1001.0], [True, True, True, False]),
    ],
)
def test_the_report_says_whether_the_figures_to_reach_were_reached(
    p50: float, rate: float, failover: list[float], verdicts: list[bool]
) -> None:
    results = Results()
    for system, factor in ((TRIO_ACTOR, 1), (ECHO, 1000)):
        results.calls[row(system, ASK)] = [figures(1000 * factor, p50 * factor)]
        results.calls[row(system, ASKS)] = [figures(rate * factor, 1.0)]
    results.failovers[DRAKKAR] = Failovers(failover)
    results.failovers[MIDDLE] = Failovers([5000.0])
    assert [good for _, good in report.reached(results)] == verdicts
    shown = StringIO()
    report.show(results, {}, Console(file=shown, width=200))
    text = " ".join(shown.getvalue().split())
    assert text.count("NOT reached") == verdicts.count(False)
    assert "trio, an echo: as many bytes as a question" in text
    assert "Drakkar: measured in process" in text
    told = report.as_json(results, {}, {})
    assert [each["name"] for each in told["calls"]] == [ASK, ASKS, ASK, ASKS]
    assert told["calls"][2]["trio_actor_ratio"] == 0.001


def test_many_shards_have_recovered_when_each_has_answered() -> None:
    with Hosts(1) as hosts:
        replicas = [hosts.run(InlineLedger, shard_id=shard)[1] for shard in (1, 2, 3)]
        until(lambda: all(replica.status().leader_id for replica in replicas))
        taken = recovery.recover_all(hosts.hosts[1], replicas, within=10.0, since=0.0)
        assert len(taken) == 3
        assert taken == sorted(taken)
        replicas[1].stop()
        with pytest.raises(LoadError, match="1 of 3 shards answered no command"):
            recovery.recover_all(hosts.hosts[1], replicas, within=0.1, since=0.0)
