"""The load: so many commands outstanding at any time, each replaced as soon as it is answered, and how long each took.

A closed loop: it measures what the system can do, and waits rather than pile up. There are three kinds of clients.

    waiting      one after the other in a thread of its own, which blocks for each answer: what `get()` costs is in it
    calling      each answer's callback proposes the next command, in the thread that answers
    threaded     each answer's callback wakes a thread of the client's own, which proposes the next one
"""

import random
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from statistics import median
from time import perf_counter
from typing import Final, Literal, Protocol

Client = Literal["waiting", "calling", "threaded"]
Done = Callable[[BaseException | None], None]

SMALL: Final = 16
"""Bytes of a command, unless the load says otherwise."""

ANSWERS_WITHIN: Final = 30.0
"""Seconds after which an answer that did not come is an error of the run."""


class LoadError(Exception):
    """The load could not be run as it was asked for, so there are no figures."""


class Target(Protocol):
    """A replica of any system, as the load sees it."""

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        """Have commands committed and applied, together if there are several; then call `done` in any thread."""

    def propose_and_wait(self, command: bytes) -> None:
        """Have a command committed and applied. Raises where that failed."""

    def read(self, done: Done) -> None:
        """Ask the state machine, linearizably; then call `done` in any thread."""


@dataclass(frozen=True)
class Load:
    """What to do to a target, and for how long."""

    in_flight: int
    """Commands that are proposed and not yet answered."""
    seconds: float
    """What is measured; the warm-up before it is a fifth as long."""
    batch: int = 1
    """Commands that are proposed together."""
    client: Client = "calling"
    size: int = SMALL
    """Bytes of a command."""
    read: bool = False
    """Whether the clients read, linearizably, rather than propose."""
    moments: bool = False
    """Whether the figures shall have the moments of each command. A waiting client has them, and the peers' clients."""

    @cached_property
    def command(self) -> bytes:
        """What is proposed: bytes that no compression makes smaller."""
        return random.Random(0).randbytes(self.size)

    @property
    def warm_up(self) -> float:
        """Seconds that are not measured: connections, caches and windows are filled meanwhile."""
        return self.seconds / 5


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of it."""

    commits: int
    """Commands, or reads, answered in the time that was measured."""
    seconds: float
    """How long that was."""
    p50: float
    """Milliseconds from proposing to the answer, like the next two."""
    p99: float
    worst: float
    answered: int
    """Commands answered at all, the warm-up and the end included."""
    errors: int = 0
    """Commands that failed, which only the peers' clients survive."""
    last_error: str = ""
    moments: list[tuple[float, float]] = field(default_factory=list)
    """When each command was proposed and answered, in seconds of the system's clock; empty unless it was asked for."""

    @property
    def rate(self) -> float:
        """Commands a second."""
        return self.commits / self.seconds

    @classmethod
    def together(cls, parts: Sequence["Figures"]) -> "Figures":
        """The figures of hosts that were measured at the same time: times are those of the middle host, or the worst."""
        return cls(
            sum(part.commits for part in parts),
            max(part.seconds for part in parts),
            median(part.p50 for part in parts),
            max(part.p99 for part in parts),
            max(part.worst for part in parts),
            sum(part.answered for part in parts),
            sum(part.errors for part in parts),
            next((part.last_error for part in parts if part.last_error), ""),
            [moment for part in parts for moment in part.moments or ()],  # the peers write none as null
        )


def run(target: Target, load: Load) -> Figures:
    """Put the load on the target, and measure. Raises `LoadError` if a single command fails."""
    if load.client == "waiting":
        return _one_after_the_other(target, load)
    return _Outstanding(target, load).run()


def figures_of(
    times: Iterable[float],
    seconds: float,
    load: Load,
    answered: int,
    moments: Sequence[tuple[float, float]] = (),
) -> Figures:
    """Sum up what was measured: how many seconds each answer took. Raises `LoadError` if there was none."""
    times = sorted(times)
    if not times:
        raise LoadError(f"nothing was answered within {seconds:.1f} s")
    p50, p99, worst = (1000 * times[min(int(part * len(times)), len(times) - 1)] for part in (0.5, 0.99, 1))
    commits = len(times) * load.batch
    return Figures(commits, seconds, p50, p99, worst, answered * load.batch, moments=list(moments))


def _one_after_the_other(target: Target, load: Load) -> Figures:
    if (load.in_flight, load.batch) != (1, 1):
        raise LoadError(f"a waiting client has one command in flight, and not {load.in_flight}")
    if load.read:
        raise LoadError("a waiting client does not read: use one that is calling")
    command = load.command
    times: list[float] = []
    moments: list[tuple[float, float]] = []
    answered = 0
    now = perf_counter()
    begin = now + load.warm_up
    while now < begin + load.seconds:
        before, moment = now, time.time()
        try:
            target.propose_and_wait(command)
        except Exception as error:
            raise LoadError(f"a command failed: {error!r}") from error
        now = perf_counter()
        answered += 1
        if before >= begin:
            times.append(now - before)
            if load.moments:
                moments.append((moment, time.time()))
    return figures_of(times, now - begin, load, answered, moments)


class _Outstanding:
    """Clients that each have one answer outstanding."""

    def __init__(self, target: Target, load: Load) -> None:
        self.propose = (lambda _commands, done: target.read(done)) if load.read else target.propose
        self.times = array("d")
        """Where the clients write what they measure."""
        self.open = True
        """Whether they shall go on."""
        self._answered: SimpleQueue[_Client | None] = SimpleQueue()
        self.hand_over = self._answered.put
        self._load = load
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        kind = _ThreadedClient if load.client == "threaded" else _Client
        self._clients = [kind(self, [load.command] * load.batch) for _ in range(load.in_flight // load.batch)]
        self._running = len(self._clients)

    def run(self) -> Figures:
        proposer = threading.Thread(target=self._propose_again, name="client", daemon=True)
        proposer.start()
        for client in self._clients:
            client.propose()
        self._ended.wait(self._load.warm_up)
        warm, self.times, began = self.times, array("d"), perf_counter()
        self._ended.wait(self._load.seconds)
        measured, self.times, seconds = self.times, array("d"), perf_counter() - began
        self.open = False
        all_answered = self._ended.wait(ANSWERS_WITHIN)
        self.hand_over(None)
        proposer.join()
        if self._error is not None:
            raise LoadError(f"a command failed: {self._error!r}") from self._error
        if not all_answered:
            raise LoadError(f"{self._running} answers did not come within {ANSWERS_WITHIN:.0f} s")
        return figures_of(measured, seconds, self._load, len(warm) + len(measured) + len(self.times))

    def _propose_again(self) -> None:
        while (client := self._answered.get()) is not None:
            client.propose()

    def leave(self, error: BaseException | None) -> None:
        """A client proposes no more; all stop where one of them failed."""
        with self._lock:
            self._running -= 1
            self._error = self._error or error
            last = not self._running
        if error is not None:
            self.open = False
        if last:
            self._ended.set()


class _Client:
    """Has one answer outstanding, and proposes again where it gets it."""

    __slots__ = ("_all", "_commands", "_since")

    def __init__(self, outstanding: _Outstanding, commands: list[bytes]) -> None:
        self._all, self._commands = outstanding, commands
        self._since = 0.0

    def propose(self) -> None:
        self._since = perf_counter()
        self._all.propose(self._commands, self._done)

    def _done(self, error: BaseException | None) -> None:
        outstanding = self._all
        if error is None:
            outstanding.times.append(perf_counter() - self._since)
            if outstanding.open:
                self._go_on()
                return
        outstanding.leave(error)

    def _go_on(self) -> None:
        self.propose()


class _ThreadedClient(_Client):
    """Proposes again in the clients' thread."""

    __slots__ = ()

    def _go_on(self) -> None:
        self._all.hand_over(self)
