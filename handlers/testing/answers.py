"""Whether each request to a host is answered: once, and in time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from drakkar.handlers.testing.invariants import Violation
from drakkar.handlers.testing.plan import TICK

__all__ = ["Answer", "Answers"]

Answer = Callable[[str, Any], None]
"""Called with "done" and the result, "refused" (surely without effect) and why, or "unknown" and why."""

_GRACE: Final = 2
"""Ticks of the host's own clock that it may take to notice that a deadline has passed."""


class Asked(Protocol):
    """A simulated host, as far as requests go."""

    raft: Any
    life: int
    ticks: int

    def submit(self, kind: str, content: Any, seconds: float, answer: Answer) -> None:
        """As `SimulatedHost.submit`."""

    def transfer(self, target: int, seconds: float, answer: Answer) -> None:
        """As `SimulatedHost.transfer`."""


class Calendar(Protocol):
    """Calls something when simulated time has passed."""

    def after(self, delay: int, function: Callable[..., None], *args: Any) -> None:
        """In `delay` units of time."""


@dataclass(slots=True)
class _Request:
    kind: str
    host: Asked
    life: int
    answered: bool = False
    ticks: int = -1
    """What the host's clock showed at the deadline."""

    def __str__(self) -> str:
        return f"a {self.kind} at {self.host.raft!r}"


class Answers:
    """The requests of one simulated shard. Raises `Violation` where one is answered twice, or never."""

    def __init__(self, simulation: Calendar, units_a_second: int) -> None:
        """`units_a_second` is how long a second is in units of the simulation's time."""
        self._simulation = simulation
        self._units_a_second = units_a_second

    def watch(self, host: Asked) -> None:
        """See all that the host is asked, whoever asks."""
        submit, transfer = host.submit, host.transfer

        def watched_submit(kind: str, content: Any, seconds: float, answer: Answer) -> None:
            submit(kind, content, seconds, self._expect(kind, host, seconds, answer))

        def watched_transfer(target: int, seconds: float, answer: Answer) -> None:
            transfer(target, seconds, self._expect("transfer", host, seconds, answer))

        host.submit = watched_submit  # type: ignore[method-assign]
        host.transfer = watched_transfer  # type: ignore[method-assign]

    def _expect(self, kind: str, host: Asked, seconds: float, answer: Answer) -> Callable[[str, Any], None]:
        request = _Request(kind, host, host.life)
        if kind != "read":  # which waits for the state machine, however long that takes
            self._simulation.after(round(seconds * self._units_a_second), self._check, request)

        def answer_once(outcome: str, value: Any) -> None:
            if request.answered:
                raise Violation("V11 a request is answered once", f"{request} now hears {outcome} {value}")
            request.answered = True
            answer(outcome, value)

        return answer_once

    def _check(self, request: _Request) -> None:
        """A host that stands still, or whose clock is slow, is told of the deadline when its clock has moved on."""
        host = request.host
        if request.answered:
            return
        if request.ticks < 0:
            request.ticks = host.ticks
        if host.life != request.life or host.ticks > request.ticks + _GRACE:
            raise Violation("V11 a request is answered in time", str(request))
        self._simulation.after(TICK, self._check, request)
