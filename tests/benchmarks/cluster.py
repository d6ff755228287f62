"""Three processes of one system, as a benchmark sees them."""

import json
import subprocess
import sys
import threading
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
KILL_TIMEOUT_S: Final = 60.0
"""Seconds that an answer may take beyond those that the order itself takes."""


class Host:
    """A process of `tests.benchmarks.host`."""

    def __init__(self, who: dict[str, Any], errors: Path) -> None:
        self._errors = errors
        with errors.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.host"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.tell(who)

    def tell(self, order: dict[str, Any]) -> None:
        """Give an order, whose answer has to be heard."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

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
            raise LoadError(
                f"a host ended, or did not answer: {self._errors.read_text(errors='replace')[-4000:]}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order that takes no time, and return the answer."""
        self.tell(order)
        return self.hear()

    def kill(self) -> None:
        """End it at once, and let go of it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Cluster:
    """Three hosts on this machine, with data directories of their own. A context manager: it stops them at the end.

    Raises `LoadError` where they do not start, or elect no leader.
    """

    def __init__(
        self, system: str, options: Mapping[str, Any], directory: Path, *, profile: bool = False
    ) -> None:
        directory.mkdir(parents=True)
        members = dict(zip(REPLICAS, _free_addresses(len(REPLICAS)), strict=True))
        self.leader = 0
        self.profiles: dict[int, str] = {}
        """By replica, once they have stopped."""
        self._hosts: dict[int, Host] = {}
        for replica in REPLICAS:
            who = {
                "system": system,
                "options": dict(options),
                "replica": replica,
                "members": members,
                "data_dir": str(directory / f"host-{replica}"),
                "profile": profile,
            }
            self._hosts[replica] = Host(who, directory / "errors.txt")

    def __enter__(self) -> Self:
        try:
            for host in self._hosts.values():
                host.hear()
            self.leader = self._find_leader()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for replica, host in self._hosts.items():
                    self.profiles[replica] = host.ask(do="stop")["profile"]
        finally:
            self._kill()

    def run(self, load: Load, *, at_leader: bool = True) -> tuple[Figures, float]:
        """Run a load in the leader's process, or in a follower's.

        Returns the figures, and the CPU time of all three processes for a command, in microseconds. Raises `LoadError`
        where a command failed.
        """
        follower = next(replica for replica in REPLICAS if replica != self.leader)
        host = self._hosts[self.leader if at_leader else follower]
        before = self._cpu_seconds()
        host.tell({"do": "run", "load": asdict(load)})
        answer = host.hear(load.warm_up + load.seconds)
        if "error" in answer:
            raise LoadError(answer["error"])
        figures = Figures(**answer["figures"])
        return figures, (self._cpu_seconds() - before) / figures.answered * 1e6

    def _cpu_seconds(self) -> float:
        return sum(host.ask(do="cpu")["cpu"] for host in self._hosts.values())

    def _find_leader(self) -> int:
        until = time.monotonic() + LEADER_WITHIN
        while time.monotonic() < until:
            for replica, host in self._hosts.items():
                if host.ask(do="leads")["leads"]:
                    return replica
            time.sleep(0.05)
        raise LoadError(f"no host led within {LEADER_WITHIN:.0f} s")

    def _kill(self) -> None:
        for host in self._hosts.values():
            host.kill()


def _free_addresses(count: int) -> list[str]:
    """Addresses that are free at this moment; asked for together, so that they differ."""
    with ExitStack() as stack:
        servers = [stack.enter_context(create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
