"""Two processes of one system: an actor lives in the first, and the second asks it."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.benchmarks.hosts import Host
from tests.benchmarks.load import Figures, Load
from tests.benchmarks.systems import CALL_SYSTEMS

_COMMAND: Final = (sys.executable, "-m", "tests.benchmarks.call_host")


class Pair:
    """Both of them, on this machine. A context manager: it stops them at the end. Raises `LoadError` where they do not start."""

    def __init__(self, system: str, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._system = CALL_SYSTEMS[system]
        self._errors = directory / "errors.txt"
        self._hosts: list[Host] = []

    def __enter__(self) -> Self:
        try:
            self._start(asked=self._start()["address"])
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for host in reversed(self._hosts):
                    host.ask(do="stop")
        finally:
            self._kill_all()

    def _start(self, asked: str = "") -> Mapping[str, Any]:
        """Start a process; return what it says of itself. Without `asked` it has the actor, else it asks the one there."""
        who = {"target": self._system.target, "options": dict(self._system.options), "asked": asked}
        host = Host(_COMMAND, who, self._errors)
        self._hosts.append(host)
        return host.hear()

    def run(self, load: Load) -> tuple[Figures, float]:
        """Have so many questions on their way; return the figures, and the CPU time of both processes for one, in microseconds.

        Raises `LoadError` where there are no figures.
        """
        before = self._cpu_seconds()
        answer = self._hosts[-1].ask(do="run", load=asdict(load), seconds=load.warm_up + load.seconds)
        figures = Figures(**answer["figures"])
        return figures, (self._cpu_seconds() - before) / figures.answered * 1e6

    def _cpu_seconds(self) -> float:
        return sum(host.cpu_seconds() for host in self._hosts)

    def _kill_all(self) -> None:
        for host in self._hosts:
            host.kill()
