"""Three processes of one system, as whoever measures them sees them."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from socket import create_server
from types import TracebackType
from typing import Any, Final, Self

from tests.benchmarks.load import Figures, Load, LoadError

ROOT: Final = Path(__file__).resolve().parents[2]
REPLICAS: Final = (1, 2, 3)
LEADER_WITHIN: Final = 30.0
STOPS_WITHIN: Final = 30.0


class Cluster:
    """Three hosts on this machine, with data directories of their own. A context manager, which stops them."""

    def __init__(
        self, system: str, options: Mapping[str, Any], directory: Path, *, profile: bool = False
    ) -> None:
        self._errors = directory / "errors.txt"
        directory.mkdir(parents=True)
        members = dict(zip(REPLICAS, _free_addresses(len(REPLICAS)), strict=True))
        self.profiles: dict[int, dict[str, str]] = {}
        self._hosts = {
            replica: _start(
                {
                    "system": system,
                    "replica": replica,
                    "members": members,
                    "data_dir": str(directory / str(replica)),
                    "options": dict(options),
                    "profile": profile,
                },
                self._errors,
            )
            for replica in REPLICAS
        }

    def __enter__(self) -> Self:
        try:
            for host in self._hosts.values():
                self._hear(host)
            self.leader = self._find_leader()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for replica, host in self._hosts.items():
                self.profiles[replica] = self._ask(host, {"do": "stop"})["profile"]
            for host in self._hosts.values():
                host.wait(STOPS_WITHIN)
        finally:
            self._kill()

    def run(self, load: Load, *, at_leader: bool = True) -> tuple[Figures, dict[str, float]]:
        """Run a load in the leader's process, or in a follower's."""
        other = next(replica for replica in REPLICAS if replica != self.leader)
        host = self._hosts[self.leader if at_leader else other]
        before = self._cpu_seconds()
        answer = self._ask(host, {"do": "run", "load": asdict(load)})
        if "error" in answer:
            raise LoadError(answer["error"])
        cpu = [b - a for a, b in zip(before, self._cpu_seconds())]
        return Figures(**answer["figures"]), answer["counters"], [cpu[self.leader-1], sum(cpu)]

    def _cpu_seconds(self):
        return [self._ask(host, {"do": "cpu"})["seconds"] for host in self._hosts.values()]

    def _find_leader(self) -> int:
        until = time.monotonic() + LEADER_WITHIN
        while time.monotonic() < until:
            for replica, host in self._hosts.items():
                if self._ask(host, {"do": "leads"})["leads"]:
                    return replica
            time.sleep(0.05)
        raise LoadError(f"no host led within {LEADER_WITHIN:.0f} s: {self._last_errors()}")

    def _ask(self, host: "subprocess.Popen[str]", order: dict[str, Any]) -> dict[str, Any]:
        assert host.stdin is not None
        host.stdin.write(json.dumps(order) + "\n")
        host.stdin.flush()
        return self._hear(host)

    def _hear(self, host: "subprocess.Popen[str]") -> dict[str, Any]:
        assert host.stdout is not None
        line = host.stdout.readline()
        if not line:
            raise LoadError(f"a host ended: {self._last_errors()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_errors(self) -> str:
        return self._errors.read_text(errors="replace")[-4000:]

    def _kill(self) -> None:
        for host in self._hosts.values():
            host.kill()
            host.wait()
            for pipe in (host.stdin, host.stdout):
                if pipe is not None:
                    pipe.close()


def _start(who: dict[str, Any], errors: Path) -> "subprocess.Popen[str]":
    with errors.open("a") as log:
        host = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.host"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert host.stdin is not None
    host.stdin.write(json.dumps(who) + "\n")
    host.stdin.flush()
    return host


def _free_addresses(count: int) -> list[str]:
    """Ports that are free at this moment, all at once so that they differ."""
    with ExitStack() as stack:
        servers = [stack.enter_context(create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
