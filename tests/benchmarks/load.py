"""The load: so many commands outstanding at any time, each replaced as soon as it is answered, and how long each took.

A closed loop: it measures what the system can do, and waits rather than pile up. There are three kinds of clients.

    waiting      one after the other in a thread of its own, which blocks for each answer: what `get()` costs is in it
    calling      each answer's callback proposes the next command, in the thread that answers
    threaded     each answer's callback wakes a thread of the client's own, which proposes the next one
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Final, Literal, Protocol

Client = Literal["waiting", "calling", "threaded"]
Done = Callable[[Exception | None], None]

COMMAND: Final = b"sixteen bytes..."

ANSWERS_WITHIN: Final = 30.0
"""Seconds after which an answer that did not come is an error of the run."""


class LoadError(Exception):
    """The load could not be run as it was asked for, so there are no figures."""


class Target(Protocol):
    """A replica, of whatever system, as the load sees it."""

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        """Have commands committed and applied, together if there are several; then call `done` in any thread."""

    def propose_and_wait(self, command: bytes) -> None:
        """Have a command committed and applied. Raises where that failed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to do to a target, and for how long."""

    in_flight: int
    """Commands that are proposed and not yet answered."""
    seconds: float
    """What is measured; the warm-up before it is a fifth as long."""
    batch: int = 1
    """Commands that are proposed together."""
    client: Client = "calling"

    @property
    def warm_up(self) -> float:
        """Seconds that are not measured: connections, caches and windows are filled meanwhile."""
        return self.seconds / 5

    @classmethod
    def of(cls, order: dict[str, Any]) -> "Load":
        """Make it of what `asdict` made of one."""
        return cls(**order)


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of it."""

    commits: int
    seconds: float
    p50: float
    """Milliseconds, like the next two."""
    p99: float
    worst: float

    @property
    def rate(self) -> float:
        """Commits a second."""
        return self.commits / self.seconds

    @classmethod
    def of(cls, times: list[float], seconds: float, batch: int) -> "Figures":
        """Sum up how many seconds each answer took."""
        if not times:
            raise LoadError(f"nothing was answered within {seconds:.1f} s")
        ordered = sorted(times)
        p50, p99, worst = (
            1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.5, 0.99, 1.0)
        )
        return cls(len(ordered) * batch, seconds, p50, p99, worst)

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def run(target: Target, load: Load) -> Figures:
    """Put the load on the target, and measure. Raises `LoadError` if a single command fails."""
    if load.client == "waiting":
        return _one_after_the_other(target, load)
    return _Outstanding(target, load).run()


def _one_after_the_other(target: Target, load: Load) -> Figures:
    if (load.in_flight, load.batch) != (1, 1):
        raise LoadError(f"a waiting client has one command in flight, and not {load.in_flight}")
    times: list[float] = []
    now = perf_counter()
    begin = now + load.warm_up
    end = begin + load.seconds
    while now < end:
        began = now
        try:
            target.propose_and_wait(COMMAND)
        except Exception as error:
            raise LoadError(f"a command failed: {error!r}") from error
        now = perf_counter()
        if began >= begin:
            times.append(now - began)
    return Figures.of(times, now - begin, 1)


class _Outstanding:
    """Clients that each have one answer outstanding."""

    def __init__(self, target: Target, load: Load) -> None:
        self._load = load
        self.propose = target.propose
        self.times: list[float] = []
        """What is measured lands here; until then, and afterwards, in a list that nobody reads."""
        self.open = True
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._all_done = threading.Event()
        self._answered: SimpleQueue[_Client | None] = SimpleQueue()
        calls_back = load.client == "calling"
        kind = _Client if calls_back else _ThreadedClient
        self._clients = [kind(self, [COMMAND] * load.batch) for _ in range(load.in_flight // load.batch)]
        self._running = len(self._clients)
        self.answered = self._answered.put

    def run(self) -> Figures:
        proposer = threading.Thread(target=self._propose_again, name="client", daemon=True)
        proposer.start()
        for client in self._clients:
            client.propose()
        self._all_done.wait(self._load.warm_up)
        began, measured = perf_counter(), []
        self.times = measured
        self._all_done.wait(self._load.seconds)
        self.times, seconds = [], perf_counter() - began
        self.open = False
        answered = self._all_done.wait(ANSWERS_WITHIN)
        self._answered.put(None)
        proposer.join()
        if self._error is not None:
            raise LoadError(f"a command failed: {self._error!r}") from self._error
        if not answered:
            raise LoadError(f"{self._running} answers did not come within {ANSWERS_WITHIN:.0f} s")
        return Figures.of(measured, seconds, self._load.batch)

    def _propose_again(self) -> None:
        while (client := self._answered.get()) is not None:
            client.propose()

    def leave(self, error: Exception | None) -> None:
        """One client proposes no more."""
        with self._lock:
            self._running -= 1
            self._error = self._error or error
            last = not self._running
        if error is not None:
            self.open = False
        if last:
            self._all_done.set()


class _Client:
    """Has one answer outstanding, and proposes again where it gets it."""

    __slots__ = ("_all", "_began", "_commands")

    def __init__(self, outstanding: _Outstanding, commands: list[bytes]) -> None:
        self._all, self._commands = outstanding, commands
        self._began = 0.0

    def propose(self) -> None:
        self._began = perf_counter()
        self._all.propose(self._commands, self._done)

    def _done(self, error: Exception | None) -> None:
        everybody = self._all
        if error is None:
            everybody.times.append(perf_counter() - self._began)
            if everybody.open:
                self._again()
                return
        everybody.leave(error)

    def _again(self) -> None:
        self.propose()


class _ThreadedClient(_Client):
    """Proposes again in the client's thread."""

    __slots__ = ()

    def _again(self) -> None:
        self._all.answered(self)
