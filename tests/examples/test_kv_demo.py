"""The demo as a person runs it: three real processes, real sockets, real disks, a real SIGKILL."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from rich.console import Console

from examples import kv_demo

ROOT = Path(__file__).parents[2]


def processes_of(directory: Path) -> dict[int, str]:
    """The processes that have something to do with `directory`, by their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(directory) in line:
                found[int(entry.name)] = line
    return found


class Demo:
    """A running demo: what it says, line by line, and how it ends."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.kv_demo", *options],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._silent = False
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.said.append(line)
                self._more.notify_all()
        with self._more:
            self._silent = True
            self._more.notify_all()

    def wait_for(self, words: str, seconds: float = 60.0) -> str:
        with self._more:
            self._more.wait_for(lambda: self._silent or any(words in line for line in self.said), seconds)
            found = [line for line in self.said if words in line]
        assert found, f"{words!r} was not said, but {self.said}; ended: {self._silent and self.end()}"
        return found[0]

    def end(self, seconds: float = 60.0) -> tuple[int, str]:
        """Wait until it has ended; its exit status, and what it complained about."""
        status = self.process.wait(seconds)
        self._reader.join(10)
        assert self.process.stderr is not None
        complaint = self.process.stderr.read()
        assert processes_of(self.directory) == {}, "a host outlived the demo"
        return status, complaint


@contextmanager
def demo(directory: Path, *options: str) -> Iterator[Demo]:
    running = Demo(directory, *options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(20)
        for stream in (running.process.stdout, running.process.stderr):
            assert stream is not None
            stream.close()


@pytest.mark.slow
def test_the_demo_loses_its_leader_and_no_write(tmp_path):
    with demo(tmp_path, "--seconds", "3") as running:
        status, complaint = running.end(90)
        said = "".join(running.said)
    assert (status, complaint) == (0, ""), said
    for words in (
        "the leader, is killed with SIGKILL",
        "writes were refused for",
        "is started again",
        "has caught up",
        "acknowledged writes are there, on all three hosts",
        "leader term",
        "writes/s",
    ):
        assert words in said
    assert "all 0 acknowledged" not in said
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_demo_with_all_its_hosts(tmp_path):
    with demo(tmp_path) as running:
        running.wait_for("leads; 6 clients write")
        assert len(processes_of(tmp_path)) == 3
        running.process.send_signal(signal.SIGINT)
        status, complaint = running.end()
    assert (status, complaint) == (130, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_host_that_ends_by_itself_is_not_passed_over(tmp_path):
    with demo(tmp_path, "--seconds", "60") as running:
        running.wait_for("leads; 6 clients write")
        victim = next(pid for pid, line in processes_of(tmp_path).items() if "--replica 2" in line)
        os.kill(victim, signal.SIGTERM)
        status, complaint = running.end()
    assert status == 1
    assert "host 2 ended" in complaint
    assert "Traceback" not in complaint


@pytest.mark.slow
def test_a_cluster_runs_until_ctrl_c_and_its_data_stays_where_it_was_told(tmp_path):
    data = tmp_path / "data"
    first, raft = kv_demo.free_ports(1)[0], kv_demo.free_ports(1)[0]
    options = [
        "--keep-running",
        "--redis-base",
        str(first),
        "--raft-base",
        str(raft),
        "--data-dir",
        str(data),
    ]
    for attempt in (b"first", b"second"):
        with demo(tmp_path, *options) as running:
            running.wait_for(f"redis-cli -p {first}")
            running.wait_for("leader term")
            with redis.Redis(port=first + 2, socket_timeout=20) as client:
                before = client.get("k")
                assert client.set("k", attempt)
            running.process.send_signal(signal.SIGINT)
            status, complaint = running.end()
        assert (status, complaint) == (0, "")
    assert before == b"first"
    assert {"host-1", "host-2", "host-3", "host-1.log"} <= {entry.name for entry in data.iterdir()}


def test_a_taken_port_ends_the_demo_with_its_name(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo(tmp_path, "--redis-base", str(port)) as running:
            status, complaint = running.end()
    assert status == 1
    assert f"127.0.0.1:{port}" in complaint
    assert "choose another port" in complaint
    assert "Traceback" not in complaint


# -- A cluster to talk to


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kv_demo.Cluster]:
    ports = kv_demo.free_ports(6)
    with kv_demo.Cluster(tmp_path_factory.mktemp("cluster"), ports[:3], ports[3:]) as running:
        yield running


@pytest.fixture
def clients(cluster: kv_demo.Cluster) -> Iterator[list[Any]]:
    each = [host.client(timeout=20.0) for host in cluster.hosts.values()]
    assert each[0].flushall()
    yield each
    for client in each:
        client.close()


@pytest.mark.xdist_group("one cluster")
def test_a_write_through_any_host_is_read_at_once_on_every_host(clients):
    for number in range(30):
        writer, reader = clients[number % 3], clients[(number + 1) % 3]
        assert writer.set("k", number)
        assert reader.get("k") == b"%d" % number
    assert [client.dbsize() for client in clients] == [1, 1, 1]


@pytest.mark.xdist_group("one cluster")
def test_counting_at_all_hosts_at_once_loses_nothing(clients):
    def count(client: Any) -> list[int]:
        with client.pipeline(transaction=False) as pipe:
            for _ in range(200):
                pipe.incr("n")
            return pipe.execute()

    with ThreadPoolExecutor(3) as pool:
        seen = [number for numbers in pool.map(count, clients) for number in numbers]
    assert sorted(seen) == list(range(1, 601))


@pytest.mark.xdist_group("one cluster")
def test_a_large_value_goes_through_any_host_and_a_larger_one_is_refused(clients):
    largest = os.urandom(512 << 10)
    for number, client in enumerate(clients):
        assert client.set(f"large {number}", largest)
        with pytest.raises(redis.ResponseError, match="524289 bytes is over the limit of 524288"):
            client.set("larger", largest + b"!")
        assert client.ping()
    assert clients[0].mget("large 0", "large 1", "large 2", "larger") == [largest] * 3 + [None]


@pytest.mark.xdist_group("one cluster")
def test_the_hosts_agree_on_who_leads(clients):
    told = [client.info("replication") for client in clients]
    assert len({(each["leader"], each["term"]) for each in told}) == 1
    assert sorted(each["role"] for each in told) == ["follower", "follower", "leader"]
    assert told[told[0]["leader"] - 1]["role"] == "leader"


# -- The parts


def test_only_a_write_sent_after_the_kill_ends_the_pause():
    ledger = kv_demo.Ledger()
    sent_before = 0.0
    ledger.mark()
    ledger.note(sent_before, [(1, 1)], 0, 0)
    assert ledger.pause() is None
    sent_after = time.monotonic()
    ledger.note(sent_after, [], 1, 0)
    assert ledger.pause() is None
    ledger.note(sent_after, [(1, 2)], 0, 0)
    assert ledger.pause() is not None


class FakeHost:
    """A host that answers from a dictionary."""

    def __init__(self, data: dict[str, str]) -> None:
        self._data = data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def client(self, timeout: float) -> Self:
        assert timeout > 0
        return self

    def mget(self, keys: list[str]) -> list[bytes | None]:
        return [self._data[key].encode() if key in self._data else None for key in keys]


def test_a_lost_and_a_changed_write_are_both_noticed():
    ledger = kv_demo.Ledger()
    writes = [(1, number) for number in range(2500)]
    ledger.note(0.0, writes, 0, 0)
    data = {kv_demo.key(*write): kv_demo.value(*write) for write in writes}
    assert kv_demo.missing(FakeHost(data), ledger) == 0
    del data[kv_demo.key(1, 1234)]
    data[kv_demo.key(1, 2499)] = "something else"
    assert kv_demo.missing(FakeHost(data), ledger) == 2


def test_a_terminal_shows_a_table(cluster):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with (
        kv_demo.Watch(cluster) as watch,
        kv_demo.Screen(console, cluster, watch, kv_demo.Ledger()) as screen,
    ):
        assert screen.show("waiting", 20, lambda: watch.leader() is not None)
        screen.show("looking", 0.5)
        screen.say("something happened")
    shown = out.getvalue()
    for words in ("host", "applied", "leader", "follower", "writes/s", "something happened"):
        assert words in shown


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [("--redis-base", "80", "1024"), ("--writers", "0", "from 1 to 64"), ("--seconds", "long", "'long'")],
)
def test_a_wrong_option_is_named(capsys, option, value, complaint):
    with pytest.raises(SystemExit) as ended:
        kv_demo.parse([option, value])
    assert ended.value.code == 2
    complained = capsys.readouterr().err
    assert option in complained
    assert complaint in complained


class SlowToEnd(kv_demo.Host):
    """A process that does nothing, whose reader takes its time at the end."""

    @property
    def command(self):
        return [sys.executable, "-c", "import time; time.sleep(60)"]

    def _read(self, output):
        super()._read(output)
        threading.Event().wait(0.2)


def test_a_killed_host_is_done_with_before_it_is_started_again(tmp_path):
    """What its reader says at the end must not be taken for the end of the next process."""
    host = SlowToEnd(1, 1, 1, tmp_path / "host-1", "")
    host.start()
    host.kill()
    assert not host._reader.is_alive()
