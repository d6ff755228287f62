"""The key-value example on three hosts of this machine, as three processes that you can watch.

`make demo` loads them with writes, kills the leader, starts it again from its data directory, and checks that no host
has lost an acknowledged write; the exit status is 0 only then. `make cluster` runs the hosts until Ctrl-C, for you to
use with `redis-cli` or any other client.

From top to bottom: the hosts, the writers, the watchers, the screen, the steps of the demo, the command line.
"""

import argparse
import contextlib
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.kv import between

HOSTS: Final = (1, 2, 3)
ROOT: Final = Path(__file__).resolve().parents[1]
END_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a demo as Ctrl-C does."""
LOAD_S: Final = 8.0
"""Seconds of load before the kill, unless --seconds says otherwise."""


class DemoError(Exception):
    """The demo cannot continue. The text says why, and what to do."""


# -- The hosts --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Host:
    """One process of `python -m examples.kv`, its ports and its data directory."""

    replica: int
    redis_port: int
    raft_port: int
    data_dir: Path
    members: str
    process: subprocess.Popen[str] | None = None
    killed: bool = False
    _ready: bool = False
    _ready_or_ended: threading.Event = field(default_factory=threading.Event)
    _reader: threading.Thread | None = None

    @property
    def log(self) -> Path:
        """Where the process writes its errors."""
        return self.data_dir.with_suffix(".log")

    @property
    def command(self) -> list[str]:
        """The command that starts the process, from the root of the repository."""
        options = {
            "--replica": str(self.replica),
            "--members": self.members,
            "--data-dir": str(self.data_dir),
            "--redis": f"127.0.0.1:{self.redis_port}",
        }
        return [sys.executable, "-m", "examples.kv", *chain.from_iterable(options.items())]

    def start(self) -> None:
        """Start the process, without waiting for it."""
        self._ready_or_ended.clear()
        self._ready = self.killed = False
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603  # our own program, with our own options
                self.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                if line.startswith("ready:"):
                    self._ready = True
                    self._ready_or_ended.set()
        self._ready_or_ended.set()

    @property
    def ready(self) -> bool:
        """Whether it accepts clients. Raises `DemoError` where the process has ended instead."""
        if self._ready_or_ended.is_set() and not self._ready:
            raise DemoError(f"host {self.replica} ended: {self.log_end()}")
        return self._ready

    def wait_until_ready(self, timeout: float = 20.0) -> None:
        """Wait until it accepts clients. Raises `DemoError` after `timeout` seconds."""
        self._ready_or_ended.wait(timeout)
        if not self.ready:
            raise DemoError(f"host {self.replica} is not ready after {timeout:.0f} s: {self.log_end()}")

    def log_end(self) -> str:
        """Return the last lines of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:]) or f"its log {self.log} is empty"

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def state(self) -> str:
        """Why it may not answer, in one word."""
        return "killed" if self.killed else "starting" if self.running else "ended"

    def kill(self) -> None:
        """Kill the process at once, without a chance to clean up."""
        assert self.process is not None
        self.killed = True
        self.process.kill()
        self.process.wait()
        if self._reader is not None:
            self._reader.join()  # else it might say of the next process that it has ended

    def stop(self) -> None:
        """Ask the process to end, and kill it after five seconds."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._reader is not None:
            self._reader.join()

    def client(self, timeout: float) -> "redis.Redis":
        """Return a client that raises errors and does not retry by itself."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.redis_port,
            socket_timeout=timeout,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
        )


class Cluster:
    """Three hosts. Their processes run within the `with` block."""

    def __init__(self, data_dir: Path, redis_ports: Sequence[int], raft_ports: Sequence[int]) -> None:
        members = ",".join(f"{n}=127.0.0.1:{port}" for n, port in zip(HOSTS, raft_ports, strict=True))
        self.hosts = {
            n: Host(n, redis_port, raft_port, data_dir / f"host-{n}", members)
            for n, redis_port, raft_port in zip(HOSTS, redis_ports, raft_ports, strict=True)
        }

    def __enter__(self) -> Self:
        try:
            for host in self.hosts.values():
                host.start()
            for host in self.hosts.values():
                host.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raise `DemoError` where a host has ended by itself."""
        for host in self.hosts.values():
            if not host.running and not host.killed:
                raise DemoError(f"host {host.replica} ended: {host.log_end()}")

    def stop(self) -> None:
        """End all processes. A further Ctrl-C does not interrupt this."""
        with signals_ignored(), ThreadPoolExecutor(len(self.hosts)) as pool:
            for stopping in [pool.submit(host.stop) for host in self.hosts.values()]:
                stopping.result()


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore the signals that end a demo, within the block."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *END_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_ports(count: int) -> list[int]:
    """Find ports on which no process listens. Raises `DemoError` where there are not enough.

    They are below the ports that the system gives to outgoing connections. One of those could take the port of a killed
    host before it is started again.
    """
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise DemoError(
        "no ports are free between 20000 and 32000: choose some with --redis-base and --raft-base"
    )


# -- The writers ------------------------------------------------------------------------------------------------


class Ledger:
    """What became of all writes. Safe to use from all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acknowledged: list[tuple[int, int]] = []
        """Writer and number of each write that a host answered with OK."""
        self.refused = self.unknown = 0
        self._mark: float | None = None
        self._resumed: float | None = None

    def note(self, sent: float, acknowledged: list[tuple[int, int]], refused: int, unknown: int) -> None:
        """Record the outcome of writes that were sent at `sent`."""
        with self._lock:
            self.acknowledged += acknowledged
            self.refused += refused
            self.unknown += unknown
            if acknowledged and self._mark is not None and sent >= self._mark and self._resumed is None:
                self._resumed = time.monotonic()

    def mark(self) -> None:
        """Start to wait for an acknowledgement of a write that is sent from now on."""
        with self._lock:
            self._mark, self._resumed = time.monotonic(), None

    def pause(self) -> float | None:
        """Return the seconds from the mark to that acknowledgement; None while there is none."""
        with self._lock:
            return None if self._resumed is None or self._mark is None else self._resumed - self._mark


def key(writer: int, number: int) -> str:
    """Return the key of a write. Each write has its own, so that it can be looked up afterwards."""
    return f"writer-{writer}:{number}"


def value(writer: int, number: int) -> str:
    """Return the value of a write. Each write has its own."""
    return f"{number}-of-{writer}"


class Writer(threading.Thread):
    """One client that writes without pause, to one host, and to the next one where that fails."""

    TIMEOUT_S: Final = 8.0
    """How long to wait for a reply. A host answers within five seconds, if need be with an error."""

    def __init__(self, number: int, hosts: Sequence[Host], ledger: Ledger, batch: int) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self._number, self._ledger, self._batch = number, ledger, batch
        self._hosts = deque(hosts)
        self._hosts.rotate(-number)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stop after the replies to the last writes."""
        self._stopping.set()

    def run(self) -> None:
        """Write until stopped."""
        at = 0
        while not self._stopping.is_set():
            with self._hosts[0].client(self.TIMEOUT_S) as client:
                while not self._stopping.is_set() and self._write(client, range(at, at + self._batch)):
                    at += self._batch
            at += self._batch
            self._hosts.rotate(-1)
            self._stopping.wait(0.05)

    def _write(self, client: "redis.Redis", numbers: Sequence[int]) -> bool:
        sent = time.monotonic()
        writes = [(self._number, number) for number in numbers]
        with client.pipeline(transaction=False) as pipe:
            for write in writes:
                pipe.set(key(*write), value(*write))
            try:
                replies = pipe.execute(raise_on_error=False)
            except redis.RedisError:
                self._ledger.note(sent, [], 0, len(writes))
                return False
        done = [write for write, reply in zip(writes, replies, strict=True) if reply is True]
        unknown = sum(str(reply).startswith("UNKNOWN") for reply in replies)
        self._ledger.note(sent, done, len(writes) - len(done) - unknown, unknown)
        return len(done) == len(writes)


@contextlib.contextmanager
def writing(cluster: Cluster, ledger: Ledger, count: int, batch: int) -> Iterator[None]:
    """Run `count` writers within the block."""
    writers = [Writer(number, list(cluster.hosts.values()), ledger, batch) for number in range(count)]
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        for writer in writers:
            writer.stop()
        for writer in writers:
            writer.join()


# -- The watchers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What a host last reported about itself."""

    role: str
    leader: int
    term: int
    commit: int
    applied: int


class Watcher(threading.Thread):
    """Asks one host for INFO four times a second."""

    PERIOD_S: Final = 0.25

    def __init__(self, host: Host) -> None:
        super().__init__(name=f"watcher-{host.replica}", daemon=True)
        self._host = host
        self.report: Report | None = None
        """The latest one; None while the host does not answer."""
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()

    def run(self) -> None:
        """Watch until stopped."""
        with self._host.client(timeout=1.0) as client:
            while not self._stopping.wait(self.PERIOD_S):
                try:
                    info: dict[str, Any] = client.info("replication")
                except redis.RedisError:
                    self.report = None
                else:
                    self.report = Report(
                        info["role"],
                        info["leader"],
                        info["term"],
                        info["commit_index"],
                        info["applied_index"],
                    )


class Watch:
    """The latest reports of all hosts, and how fast the hosts apply entries."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._watchers = {n: Watcher(host) for n, host in cluster.hosts.items()}
        self._progress: deque[tuple[float, int]] = deque(maxlen=5)

    def __enter__(self) -> Self:
        for watcher in self._watchers.values():
            watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self._watchers.values():
            watcher.stop()
        for watcher in self._watchers.values():
            watcher.join()

    def report(self, replica: int) -> Report | None:
        """Return the host's last report; None while it does not answer."""
        return self._watchers[replica].report

    def leader(self) -> int | None:
        """Return the leader of the newest term that has one; None where no host leads."""
        leaders = [(seen.term, n) for n in HOSTS if (seen := self.report(n)) and seen.role == "leader"]
        return max(leaders)[1] if leaders else None

    def caught_up(self) -> bool:
        """Return whether all hosts answer and have applied the same entries."""
        seen = [self.report(n) for n in HOSTS]
        return None not in seen and len({(each.commit, each.applied) for each in seen if each}) == 1

    def rate(self) -> float:
        """Return the entries applied per second, over the last few calls."""
        applied = max((seen.applied for n in HOSTS if (seen := self.report(n))), default=0)
        self._progress.append((time.monotonic(), applied))
        (then, before), (now, after) = self._progress[0], self._progress[-1]
        return max(after - before, 0) / (now - then) if now > then else 0.0


# -- The screen -------------------------------------------------------------------------------------------------


class Screen:
    """A live table on a terminal, plain lines elsewhere."""

    TICK_S: Final = 0.25

    def __init__(self, console: Console, cluster: Cluster, watch: Watch, ledger: Ledger | None) -> None:
        self._console, self._cluster, self._watch, self._ledger = console, cluster, watch, ledger
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._started = time.monotonic()
        self._next_line = 0.0
        self._phase = "starting"

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, style: str = "bold") -> None:
        """Print what has just happened, on a line that stays."""
        self._console.print(f"{self._elapsed():5.1f} s  {text}", style=style, highlight=False, soft_wrap=True)

    def show(
        self, phase: str, seconds: float, until: Callable[[], bool] = lambda: False, *, alone: bool = True
    ) -> bool:
        """Draw for `seconds`, or until `until()` is true; return whether it is.

        Raises `DemoError` where a host ended that the demo did not kill. Without `alone`, a user may kill hosts too.
        """
        self._phase = phase
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() >= deadline:
                return False
            if alone:
                self._cluster.check()
            self._draw()
            time.sleep(self.TICK_S)
        return True

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _draw(self) -> None:
        rate = self._watch.rate()
        if self._live is not None:
            self._live.update(Group(self._table(), Text(self._tally(rate))), refresh=True)
        elif self._elapsed() >= self._next_line:
            self._next_line = self._elapsed() + 1.0
            self._console.print(self._line(rate), highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(title=f"{self._phase}, {self._elapsed():.0f} s", title_justify="left")
        for title in ("host", "redis", "state", "role"):
            table.add_column(title)
        for title in ("leader", "term", "commit", "applied"):
            table.add_column(title, justify="right")
        for n, host in self._cluster.hosts.items():
            seen = self._watch.report(n)
            cells = [str(n), f"127.0.0.1:{host.redis_port}", host.state if seen is None else "up"]
            if seen is not None:
                cells += [
                    seen.role,
                    str(seen.leader or "?"),
                    str(seen.term),
                    str(seen.commit),
                    str(seen.applied),
                ]
            leads = seen is not None and seen.role == "leader"
            table.add_row(*cells, style="bold green" if leads else "red" if seen is None else "")
        return table

    def _tally(self, rate: float) -> str:
        if self._ledger is None:
            return f"{rate:,.0f} writes/s"
        return (
            f"{rate:,.0f} writes/s, {len(self._ledger.acknowledged):,} acknowledged, "
            f"{self._ledger.refused:,} refused, {self._ledger.unknown:,} of unknown outcome"
        )

    def _line(self, rate: float) -> str:
        hosts = []
        for n, host in self._cluster.hosts.items():
            seen = self._watch.report(n)
            state = (
                host.state if seen is None else f"{seen.role} term {seen.term} {seen.applied}/{seen.commit}"
            )
            hosts.append(f"{n}: {state}")
        leader = self._watch.leader()
        return f"{self._elapsed():5.1f} s  leader {leader or '?'} | {' | '.join(hosts)} | {self._tally(rate)}"


# -- The steps --------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """What the steps work with."""

    screen: Screen
    cluster: Cluster
    watch: Watch
    ledger: Ledger


def run_steps(stage: Stage, options: argparse.Namespace) -> bool:
    """Load, kill, restart, check. Returns whether every acknowledged write is on every host."""
    screen, ledger = stage.screen, stage.ledger
    say_ports(screen, stage.cluster)
    leader = wait_for_leader(stage)
    with writing(stage.cluster, ledger, options.writers, options.pipeline):
        screen.say(
            f"host {leader} leads; {options.writers} clients write, {options.pipeline} commands at a time"
        )
        began, before = time.monotonic(), len(ledger.acknowledged)
        screen.show("three hosts at work", options.seconds)
        rate = (len(ledger.acknowledged) - before) / (time.monotonic() - began)
        pause = kill_leader(stage, leader)
        screen.show("two hosts at work", options.seconds / 2)
        restart(stage, leader)
        screen.show("three hosts again", options.seconds / 4)
    screen.say("the clients stop, and everything that they were told is written is looked for on every host")
    lost = check(stage)
    conclude(stage, rate, pause, lost)
    return not any(lost.values())


def wait_for_leader(stage: Stage, *, besides: int | None = None) -> int:
    """Wait until a host leads, other than `besides`, and return it. Raises `DemoError` where none does for 20 seconds."""

    def found() -> bool:
        return stage.watch.leader() not in {None, besides}

    began = time.monotonic()
    if not stage.screen.show("waiting for a leader", 20, found):
        raise DemoError(
            f"no host leads after {time.monotonic() - began:.0f} s: look into the logs of the hosts"
        )
    leader = stage.watch.leader()
    assert leader is not None
    return leader


def kill_leader(stage: Stage, leader: int) -> float:
    """Kill the leader, and wait for its successor. Returns the seconds until a write was acknowledged again."""
    host = stage.cluster.hosts[leader]
    host.kill()
    stage.ledger.mark()
    stage.screen.say(f"host {leader}, the leader, is killed with SIGKILL", "bold red")
    if not stage.screen.show("writes are refused", 20, lambda: stage.ledger.pause() is not None):
        raise DemoError(
            "no write is acknowledged 20 s after the leader was killed: look into the logs of the hosts"
        )
    pause = stage.ledger.pause()
    assert pause is not None
    successor = wait_for_leader(stage, besides=leader)
    stage.screen.say(f"host {successor} leads; writes were refused for {pause:.2f} s", "bold green")
    return pause


def restart(stage: Stage, replica: int) -> None:
    """Start a killed host again from its data directory, and wait until it has caught up."""
    host = stage.cluster.hosts[replica]
    began = time.monotonic()
    goal = max((seen.commit for n in HOSTS if (seen := stage.watch.report(n))), default=0)
    host.start()
    stage.screen.say(f"host {replica} is started again, from {host.data_dir.name}")

    def caught_up() -> bool:
        seen = stage.watch.report(replica)
        return host.ready and seen is not None and seen.applied >= goal

    if not stage.screen.show(f"host {replica} catches up", 25, caught_up):
        raise DemoError(f"host {replica} has not applied entry {goal} after 25 s: {host.log_end()}")
    stage.screen.say(
        f"host {replica} has caught up, {time.monotonic() - began:.1f} s after its start", "bold green"
    )


def check(stage: Stage) -> dict[int, int]:
    """Look for every acknowledged write on every host. Returns how many each host lacks."""
    if not stage.screen.show("the last writes are applied", 20, stage.watch.caught_up):
        raise DemoError("the hosts have not applied the same after 20 s: look into their logs")
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        counts = {n: pool.submit(missing, host, stage.ledger) for n, host in stage.cluster.hosts.items()}
        stage.screen.show(
            "looking for every write", 60, lambda: all(count.done() for count in counts.values())
        )
        try:
            return {n: count.result() for n, count in counts.items()}
        except redis.RedisError as error:
            raise DemoError(f"a host does not answer, so its writes cannot be checked: {error}") from error


def missing(host: Host, ledger: Ledger) -> int:
    """Count the acknowledged writes that `host` lacks.

    A read is linearizable and answered from the host's own state, once that has all entries committed before the read.
    """
    lost = 0
    writes = ledger.acknowledged
    with host.client(timeout=15.0) as client:
        for first in range(0, len(writes), 1000):
            part = writes[first : first + 1000]
            found = client.mget([key(*write) for write in part])
            lost += sum(value(*write).encode() != there for write, there in zip(part, found, strict=True))
    return lost


def conclude(stage: Stage, rate: float, pause: float, lost: Mapping[int, int]) -> None:
    """Print the results."""
    ledger, say = stage.ledger, stage.screen.say
    say(
        f"{rate:,.0f} acknowledged writes a second with three hosts; none for {pause:.2f} s after the leader was killed"
    )
    say(
        f"{ledger.refused:,} writes were refused, {ledger.unknown:,} were left without an answer: no promise was given"
    )
    count = len(ledger.acknowledged)
    if any(lost.values()):
        missing_on = ", ".join(f"host {n} lacks {missed:,}" for n, missed in lost.items() if missed)
        say(f"LOST: of {count:,} acknowledged writes, {missing_on}", "bold red")
    else:
        say(f"all {count:,} acknowledged writes are there, on all three hosts", "bold green")


def say_ports(screen: Screen, cluster: Cluster) -> None:
    """Print how to connect to the hosts."""
    ports = [host.redis_port for host in cluster.hosts.values()]
    screen.say(
        f"connect to any of them: redis-cli -p {ports[0]}, -p {ports[1]} or -p {ports[2]}; or redis-benchmark -t set,get"
    )


def keep_running(screen: Screen, cluster: Cluster) -> None:
    """Run and show the hosts until Ctrl-C."""
    say_ports(screen, cluster)
    for host in cluster.hosts.values():
        screen.say(
            f"host {host.replica}: data in {host.data_dir}, log in {host.log}; kill it, and start it again with"
        )
        screen.say("  " + shlex.join(host.command), "")
    screen.say("Ctrl-C ends")
    while True:
        screen.show("running until Ctrl-C", 3600, alone=False)


# -- The command line -------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Ends the process with status 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="kv_demo",
        description="The replicated key-value example, as three processes on this machine.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    port = between(1024, 65533, int)
    add(
        "--keep-running",
        action="store_true",
        help="only run the hosts, until Ctrl-C, without load and without kills",
    )
    add(
        "--redis-base",
        type=port,
        metavar="PORT",
        help="the first of three ports for clients (6381 to keep running)",
    )
    add(
        "--raft-base",
        type=port,
        metavar="PORT",
        help="the first of three ports between hosts (7101 to keep running)",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where data and logs go (default: a temporary directory)",
    )
    add("--keep-data", action="store_true", help="keep the temporary directory")
    add(
        "--seconds",
        type=between(1, 600, float),
        default=LOAD_S,
        help="seconds of load before the kill (default: %(default)s)",
    )
    add(
        "--writers",
        type=between(1, 64, int),
        default=6,
        help="clients that write at once (default: %(default)s)",
    )
    add(
        "--pipeline",
        type=between(1, 500, int),
        default=16,
        help="writes sent at a time (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.keep_running:
        options.redis_base = options.redis_base or 6381
        options.raft_base = options.raft_base or 7101
    return options


def ports(base: int | None) -> list[int]:
    """Return three ports: from `base` up, or free ones."""
    return [base + offset for offset in range(len(HOSTS))] if base else free_ports(len(HOSTS))


@contextlib.contextmanager
def directory(options: argparse.Namespace) -> Iterator[Path]:
    """Provide the directory for data and logs."""
    if options.data_dir is not None:
        try:
            options.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DemoError(
                f"--data-dir {options.data_dir}: {error.strerror}: name another directory"
            ) from error
        yield options.data_dir.resolve()
        return
    made = Path(tempfile.mkdtemp(prefix="drakkar-kv-"))
    try:
        yield made
    finally:
        if options.keep_data:
            print(f"data and logs are in {made}")
        else:
            shutil.rmtree(made, ignore_errors=True)


def play(options: argparse.Namespace) -> bool:
    """Run the hosts and the steps. Returns whether every acknowledged write is on every host."""
    ledger = Ledger()
    console = Console()
    console.print("starting three hosts")
    with (
        directory(options) as data_dir,
        Cluster(data_dir, ports(options.redis_base), ports(options.raft_base)) as cluster,
        Watch(cluster) as watch,
        Screen(console, cluster, watch, None if options.keep_running else ledger) as screen,
    ):
        if options.keep_running:
            keep_running(screen, cluster)
        limit_time(options.seconds)
        return run_steps(Stage(screen, cluster, watch, ledger), options)


def limit_time(seconds: float) -> None:
    """End the demo after a minute, or later where --seconds is longer, even where something hangs."""

    def end(*_: object) -> None:
        raise DemoError(
            "the demo takes too long: the machine is very slow, or something hangs; look into the logs of the hosts"
        )

    signal.signal(signal.SIGALRM, end)
    signal.alarm(55 + round(max(0, 2 * (seconds - LOAD_S))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 0 only where every acknowledged write is on every host."""
    options = parse(arguments)
    for number in END_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        return 0 if play(options) else 1
    except KeyboardInterrupt:
        return 0 if options.keep_running else 130
    except (DemoError, OSError) as error:
        print(f"kv_demo: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
