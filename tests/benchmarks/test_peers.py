"""The programs in Go build, keep their style, and do what the benchmark asks of them. Skipped without Go."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.benchmarks import flushes, programs
from tests.benchmarks.cluster import Cluster
from tests.benchmarks.failover import fail_over
from tests.benchmarks.load import Load
from tests.benchmarks.systems import Unavailable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("go") is None, reason="needs Go"),
    pytest.mark.timeout(600),
]

SHORT = 0.2


def go(*arguments: str, where: str) -> str:
    ran = subprocess.run(arguments, cwd=programs.SOURCES / where, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def fetched(name: str) -> None:
    """Skip the test where the modules that a program needs cannot be had."""
    if subprocess.run(["go", "mod", "download"], cwd=programs.SOURCES / name, check=False).returncode:
        pytest.skip("the Go modules cannot be fetched")


def prepared(name: str) -> None:
    fetched(name)
    if name == "etcd" and shutil.which("etcd") is None:
        pytest.skip("needs etcd")
    programs.prepare(name)


def test_the_load_in_go_counts_errors_and_takes_orders() -> None:
    assert "ok" in go("go", "test", "-count=1", ".", where="load")


@pytest.mark.parametrize("name", ["load", "dragonboat", "etcd"])
def test_the_programs_are_formatted_and_vetted(name: str) -> None:
    fetched(name)
    assert not go("gofmt", "-l", ".", where=name)
    go("go", "vet", ".", where=name)


@pytest.mark.parametrize("name", ["dragonboat", "etcd"])
def test_a_peer_is_measured_alike(name: str, tmp_path: Path) -> None:
    prepared(name)
    with Cluster(name, {}, tmp_path / "cluster") as cluster:
        loads = [
            Load(1, SHORT),
            Load(64, SHORT),
            Load(200, SHORT, batch=100),
            Load(64, SHORT, read=True),
            Load(2, SHORT, size=1 << 20),
        ]
        outcomes = [cluster.run(load) for load in loads]
        outcomes.append(cluster.run(Load(16, SHORT), at_leader=False))
    for figures, cpu in outcomes:
        assert figures.commits > 0
        assert cpu > 0


def test_each_host_of_dragonboat_has_the_load_of_the_shards_that_it_leads(tmp_path: Path) -> None:
    prepared("dragonboat")
    with Cluster("dragonboat", {"shards": 60}, tmp_path / "cluster") as cluster:
        figures, _ = cluster.run_everywhere(Load(60, SHORT))
    assert figures.answered >= 3 * 60


@pytest.mark.parametrize("name", ["dragonboat", "etcd"])
def test_a_peers_leader_is_killed_and_its_host_started_again(name: str, tmp_path: Path) -> None:
    prepared(name)
    assert len(fail_over(name, {}, 2, tmp_path / "cluster")) == 2


@pytest.mark.parametrize("name", ["dragonboat", "etcd"])
def test_a_peer_flushes_on_a_majority(name: str, tmp_path: Path) -> None:
    prepared(name)
    try:
        outcome = flushes.check(name, {}, Load(1, 1.0, moments=True), tmp_path / "cluster")
    except Unavailable as error:
        pytest.skip(str(error))
    assert outcome.flushed == outcome.commands > 0
