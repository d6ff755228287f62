"""`Incarnation`: one actor that is started, is up, is asked to stop, and has ended or is left behind.

What the children of a supervisor and the singletons of a host have in common. Plain data, and decisions about it. What they need
done, `Hands` do: so there is neither a clock nor a thread here.

    DOWN ── start ──► STARTING ── it runs ──► UP ── stop ──► STOPPING ── it has ended, or its time is over ──► DOWN
    STARTING ── it failed, or its time is over ──► DOWN      UP ── it has died ──► DOWN
"""

import enum
import math
from dataclasses import dataclass, field
from typing import Any, Final

import pykka
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.hands import Hands
from drakkar.actors.runtime.launching import StartTimedOut

__all__ = ["Change", "ChildPhase", "Incarnation", "LeftBehind"]

START_GRACE_S: Final = 0.5
"""Beyond its time a start is given this long, since the thread that does it knows best what takes so long."""


class ChildPhase(enum.Enum):
    """Where a child stands."""

    DOWN = "down"
    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"


class Change(enum.Enum):
    """What `Incarnation.look` has found."""

    STARTED = "started"
    FAILED = "failed"
    """It did not start; `error` says why."""
    STOPPED = "stopped"
    LEFT_BEHIND = "left behind"
    """It did not stop in its time, and may still run."""


class LeftBehind:
    """Starts and actors that did not end in time, and are not waited for any longer. Its length: those not forgotten yet."""

    def __init__(self) -> None:
        self.total = 0
        """How many there were so far."""
        self._all: list[tuple[pykka.ActorRef[Any] | None, ActorFuture[Any]]] = []

    def __len__(self) -> int:
        return len(self._all)

    def add(self, ref: pykka.ActorRef[Any] | None, end: ActorFuture[Any]) -> None:
        """Leave an actor behind, or a start that hangs if that is None; `end` is set when it has ended."""
        self.total += 1
        self._all.append((ref, end))

    def forget_ended(self) -> None:
        """Forget those that have ended meanwhile."""
        self._all = [left for left in self._all if not _is_over(*left)]

    @property
    def over(self) -> bool:
        """Whether all of them have ended."""
        return all(_is_over(*left) for left in self._all)


def _is_over(ref: pykka.ActorRef[Any] | None, end: ActorFuture[Any]) -> bool:
    return end.done or (ref is not None and not ref.is_alive())


@dataclass(eq=False, slots=True)
class Incarnation:
    """The present incarnation of an actor that may be started again and again, if there is one. For one thread.

    Call `look` when a future of its start or its stop is set, and at `deadline`.
    """

    title: str
    """As errors name it: "child 'ann'"."""
    hands: Hands[Any]
    left: LeftBehind
    """Where it goes if it does not end in time."""
    phase: ChildPhase = field(default=ChildPhase.DOWN, init=False)
    ref: pykka.ActorRef[Any] | None = field(default=None, init=False)
    work: ActorFuture[Any] | None = field(default=None, init=False)
    """Its start or its stop, while that is under way."""
    timeout: float = field(default=0.0, init=False)
    """Seconds that the last of these might take."""
    deadline: float = field(default=math.inf, init=False)
    """When it takes too long."""
    up_since: float = field(default=math.inf, init=False)
    """When it came up, or the last one before it did."""
    error: BaseException | None = field(default=None, init=False)
    """Why the last start failed."""

    def start(self, started: ActorFuture[pykka.ActorRef[Any]], now: float, timeout: float) -> None:
        """A start was begun, which may take so many seconds."""
        self.phase, self.work, self.error = ChildPhase.STARTING, started, None
        self.timeout, self.deadline = timeout, now + timeout + START_GRACE_S

    def stop(self, now: float, timeout: float) -> None:
        """Ask it to stop, if it is up; it is left behind after so many seconds."""
        if self.phase is ChildPhase.UP and self.ref is not None:
            self.phase, self.work = ChildPhase.STOPPING, self.hands.stop(self.ref)
            self.timeout, self.deadline = timeout, now + timeout

    def died(self, ref: pykka.ActorRef[Any]) -> bool:
        """An actor that is watched has ended; return whether it was this one, and was not asked to stop."""
        # One that was asked to stop has ended when it has answered: its `on_stop` may still be running.
        mine = self.phase is ChildPhase.UP and self.ref is not None and self.ref.actor_urn == ref.actor_urn
        if mine:
            self._end()
        return mine

    def look(self, now: float) -> Change | None:
        """Take note of a start or a stop that is done or takes too long; `now` in seconds of any clock."""
        work = self.work
        if work is None:
            return None
        done, late = work.done, now >= self.deadline
        if not done and not late:
            return None
        if self.phase is ChildPhase.STARTING:
            return self._on_start_over(*(work.outcome() if done else self._give_up(work)), now)
        if done or self.ref is None or not self.ref.is_alive():
            self._end()
            return Change.STOPPED
        self._leave(self.ref, work)
        self._end()
        return Change.LEFT_BEHIND

    def _on_start_over(
        self, ref: pykka.ActorRef[Any] | None, error: BaseException | None, now: float
    ) -> Change:
        if ref is None:
            if isinstance(error, StartTimedOut) and error.ref is not None:
                self._leave(error.ref, ActorFuture())
            self._end()
            self.error = error
            return Change.FAILED
        self.phase, self.ref, self.work = ChildPhase.UP, ref, None
        self.deadline, self.up_since = math.inf, now
        self.hands.watch(ref)
        return Change.STARTED

    def _give_up(self, started: ActorFuture[Any]) -> tuple[None, StartTimedOut]:
        self.hands.abandon(started)
        self._leave(None, started)
        return None, StartTimedOut(
            f"{self.title} did not start within {self.timeout} seconds: its constructor, its on_start or its publication has not "
            "returned"
        )

    def _leave(self, ref: pykka.ActorRef[Any] | None, end: ActorFuture[Any]) -> None:
        self.left.add(ref, end)
        if ref is not None:
            self.hands.leave(ref)

    def _end(self) -> None:
        if self.ref is not None:
            self.hands.unwatch(self.ref)
        self.phase, self.ref, self.work, self.deadline = ChildPhase.DOWN, None, None, math.inf
