"""One host of a cluster, as the benchmark sees it: a process that takes orders, and for etcd the member that it serves."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from tests.benchmarks import programs
from tests.benchmarks.load import LoadError

ROOT: Final = Path(__file__).resolve().parents[2]

KILL_TIMEOUT_S: Final = 60.0
"""Seconds that an answer may take beyond those that the order itself takes."""


def start(who: dict[str, Any], errors: Path) -> "Host":
    """Start a host. What it writes to its standard error is appended to the file."""
    match who["system"]:
        case "etcd":
            return EtcdHost(who, errors)
        case "dragonboat":
            return Host([str(programs.program("dragonboat"))], who, errors)
        case "drakkar-compiled":
            return Host([programs.compiled_python(), "-m", "tests.benchmarks.host"], who, errors)
        case _:
            return Host([sys.executable, "-m", "tests.benchmarks.host"], who, errors)


class Host:
    """A process that takes the orders which `tests/benchmarks/host.py` describes."""

    def __init__(self, command: Sequence[str], who: dict[str, Any], errors: Path) -> None:
        self._errors = errors
        with errors.open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.tell(who)

    @property
    def replica_pid(self) -> int:
        """The process that holds the replica, and so its log."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """The CPU time that its processes took so far."""
        return _cpu_seconds(self._process.pid)

    def tell(self, order: dict[str, Any]) -> None:
        """Give an order, whose answer has to be heard. Raises `LoadError` where the host has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def hear(self, seconds: float = 0.0) -> dict[str, Any]:
        """Wait for an answer to an order that takes so many seconds. Raises `LoadError` where none comes."""
        assert self._process.stdout is not None
        killer = threading.Timer(seconds + KILL_TIMEOUT_S, self._process.kill)
        killer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            killer.cancel()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LoadError(answer["error"])
        return answer

    def _ended(self) -> LoadError:
        told = self._errors.read_text(errors="replace")[-4000:]
        return LoadError(f"a host ended, or did not answer: {told}")

    def ask(self, *, seconds: float = 0.0, **order: Any) -> dict[str, Any]:
        """Give an order that takes so many seconds, and return the answer."""
        self.tell(order)
        return self.hear(seconds)

    def kill(self) -> None:
        """End it at once, and let go of it."""
        _kill(self._process)


class EtcdHost(Host):
    """An etcd member, and the process of its client."""

    def __init__(self, who: dict[str, Any], errors: Path) -> None:
        with errors.open("a") as log:
            self._member = subprocess.Popen(_member_command(who), stdout=log, stderr=log)
        try:
            super().__init__([str(programs.program("etcd"))], who, errors)
        except BaseException:
            _kill(self._member)
            raise

    @property
    def replica_pid(self) -> int:
        return self._member.pid

    def cpu_seconds(self) -> float:
        return _cpu_seconds(self._member.pid) + super().cpu_seconds()

    def kill(self) -> None:
        _kill(self._member)
        super().kill()


def _member_command(who: dict[str, Any]) -> list[str]:
    """Elections as by Drakkar's defaults (etcd's too, but for pre-vote), no snapshots, room for large commands."""
    replica, members = who["replica"], who["members"]
    client, peer = f"http://{who['client']}", f"http://{members[replica]}"
    cluster = ",".join(f"m{each}=http://{address}" for each, address in members.items())
    options = {
        "name": f"m{replica}",
        "data-dir": who["data_dir"],
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": cluster,
        "pre-vote": "true",
        "snapshot-count": "100000000",
        "quota-backend-bytes": str(8 << 30),
        "logger": "zap",
        "log-level": "error",
    }
    return [programs.etcd(), *(f"--{name}={value}" for name, value in options.items())]


def _cpu_seconds(pid: int) -> float:
    # Linux's number of the CPU clock of another process, as `clock_getcpuclockid(3)` makes it.
    return time.clock_gettime(~pid << 3 | 2)


def _kill(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
    pipes: list[IO[Any] | None] = [process.stdin, process.stdout]
    for pipe in pipes:
        if pipe is not None:
            # The pipe may hold an order that the process did not live to read.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
