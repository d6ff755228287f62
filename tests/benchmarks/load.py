"""The load: so many commands outstanding at any time, each replaced as soon as it is answered, and how long each took.

A closed loop: it measures what the system can do, and waits rather than pile up. There are three kinds of clients.

    waiting      one after the other in a thread of its own, which blocks for each answer: what `get()` costs is in it
    calling      each answer's callback proposes the next command, in the thread that answers
    threaded     each answer's callback wakes a thread of the client's own, which proposes the next one
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter
from typing import Final, Literal, Protocol

Client = Literal["waiting", "calling", "threaded"]
Done = Callable[[BaseException | None], None]

COMMAND: Final = b"sixteen bytes..."

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


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of it."""

    commits: int
    """Commands answered in the time that was measured."""
    seconds: float
    """How long that was."""
    p50: float
    """Milliseconds from proposing to the answer, like the next two."""
    p99: float
    worst: float
    answered: int
    """Commands answered at all, the warm-up and the end included."""

    @property
    def rate(self) -> float:
        """Commands a second."""
        return self.commits / self.seconds


def run(target: Target, load: Load) -> Figures:
    """Put the load on the target, and measure. Raises `LoadError` if a single command fails."""
    if load.client == "waiting":
        return _one_after_the_other(target, load)
    return _Outstanding(target, load).run()


def _figures(times: list[float], seconds: float, load: Load, answered: int) -> Figures:
    if not times:
        raise LoadError(f"nothing was answered within {seconds:.1f} s")
    times.sort()
    p50, p99, worst = (1000 * times[min(int(part * len(times)), len(times) - 1)] for part in (0.5, 0.99, 1))
    return Figures(len(times) * load.batch, seconds, p50, p99, worst, answered * load.batch)


def _one_after_the_other(target: Target, load: Load) -> Figures:
    if (load.in_flight, load.batch) != (1, 1):
        raise LoadError(f"a waiting client has one command in flight, and not {load.in_flight}")
    times: list[float] = []
    answered = 0
    now = perf_counter()
    begin = now + load.warm_up
    while now < begin + load.seconds:
        before = now
        try:
            target.propose_and_wait(COMMAND)
        except Exception as error:
            raise LoadError(f"a command failed: {error!r}") from error
        now = perf_counter()
        answered += 1
        if before >= begin:
            times.append(now - before)
    return _figures(times, now - begin, load, answered)


class _Outstanding:
    """Clients that each have one answer outstanding."""

    def __init__(self, target: Target, load: Load) -> None:
        self.propose = target.propose
        self.times: list[float] = []
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
        self._clients = [kind(self, [COMMAND] * load.batch) for _ in range(load.in_flight // load.batch)]
        self._running = len(self._clients)

    def run(self) -> Figures:
        proposer = threading.Thread(target=self._propose_again, name="client", daemon=True)
        proposer.start()
        for client in self._clients:
            client.propose()
        self._ended.wait(self._load.warm_up)
        warm, self.times, began = self.times, [], perf_counter()
        self._ended.wait(self._load.seconds)
        measured, self.times, seconds = self.times, [], perf_counter() - began
        self.open = False
        all_answered = self._ended.wait(ANSWERS_WITHIN)
        self.hand_over(None)
        proposer.join()
        if self._error is not None:
            raise LoadError(f"a command failed: {self._error!r}") from self._error
        if not all_answered:
            raise LoadError(f"{self._running} answers did not come within {ANSWERS_WITHIN:.0f} s")
        return _figures(measured, seconds, self._load, len(warm) + len(measured) + len(self.times))

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
        everybody = self._all
        if error is None:
            everybody.times.append(perf_counter() - self._since)
            if everybody.open:
                self._go_on()
                return
        everybody.leave(error)

    def _go_on(self) -> None:
        self.propose()


class _ThreadedClient(_Client):
    """Proposes again in the clients' thread."""

    __slots__ = ()

    def _go_on(self) -> None:
        self._all.hand_over(self)
