"""Checks that each request to a host is answered once, and in time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.plan import TICK, UNITS_PER_SECOND

__all__ = ["Answer", "Answers"]

Answer = Callable[[str, Any], None]
"""Called with "done" and the result, with "refused" (surely no effect) and the reason, or with "unknown" and the reason."""

_GRACE: Final = 2
"""Ticks of its own clock within which a host must notice that a deadline has passed."""


class Target(Protocol):
    """The part of a simulated host that takes requests."""

    raft: Any
    life: int
    ticks: int

    def submit(self, kind: str, content: Any, seconds: float, answer: Answer) -> None:
        """See `SimulatedHost.submit`."""

    def transfer(self, target: int, seconds: float, answer: Answer) -> None:
        """See `SimulatedHost.transfer`."""


class Timer(Protocol):
    """Calls functions when simulated time has passed."""

    def after(self, delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function `delay` units of time from now."""


@dataclass(slots=True)
class _Request:
    kind: str
    host: Target
    life: int
    answered: bool = False
    ticks: int = -1
    """The time on the host's clock at the deadline, in ticks; -1 before the deadline."""

    def __str__(self) -> str:
        return f"a {self.kind} at {self.host.raft!r}"


class Answers:
    """The requests of one simulated shard. Raises `Violation` if one is answered twice, late or never."""

    def __init__(self, timer: Timer) -> None:
        """`timer` counts time in the units of a `Plan`."""
        self._timer = timer

    def watch(self, host: Target) -> None:
        """Observe all requests to a host from now on."""
        submit, transfer = host.submit, host.transfer

        def watched_submit(kind: str, content: Any, seconds: float, answer: Answer) -> None:
            submit(kind, content, seconds, self._expect(kind, host, seconds, answer))

        def watched_transfer(target: int, seconds: float, answer: Answer) -> None:
            transfer(target, seconds, self._expect("transfer", host, seconds, answer))

        host.submit = watched_submit  # type: ignore[method-assign]
        host.transfer = watched_transfer  # type: ignore[method-assign]

    def _expect(self, kind: str, host: Target, seconds: float, answer: Answer) -> Callable[[str, Any], None]:
        request = _Request(kind, host, host.life)
        if kind != "read":  # a read waits for the state machine, without a deadline
            self._timer.after(round(seconds * UNITS_PER_SECOND), self._check, request)

        def answer_once(outcome: str, value: Any) -> None:
            if request.answered:
                raise Violation(
                    "V11 a request is answered once", f"{request} is answered again: {outcome} {value}"
                )
            request.answered = True
            answer(outcome, value)

        return answer_once

    def _check(self, request: _Request) -> None:
        """The deadline counts on the host's own clock: a paused or slow host notices it later."""
        host = request.host
        if request.answered:
            return
        if request.ticks < 0:
            request.ticks = host.ticks
        if host.life != request.life or host.ticks > request.ticks + _GRACE:
            raise Violation("V11 a request is answered in time", str(request))
        self._timer.after(TICK, self._check, request)
