"""Which actor of a loop has its turn.

    any thread          `schedule(actor)` appends the actor to a queue, and wakes the loop if it sleeps
    the loop's thread   a round gives turns, one actor after the other, for 2 ms; then trio has its turn

The scheduler knows of an actor only what `Resident` says. What an actor does with its turn is in `actor`.
"""

import contextlib
import logging
import sys
import time
from collections import deque
from typing import Final, Protocol

import trio
from drakkar.actors.runtime.futures import ActorFuture, this_thread

__all__ = ["Resident", "Scheduler"]

logger = logging.getLogger(__name__)

_ROUND_S: Final = 0.002
"""Seconds after which the actors let trio have its turn. An election timeout is five hundred times as long, and a pass
through trio's scheduler costs some 20 µs, one part in a hundred."""

_LONG_ROUND_EVERY: Final = 50
"""Of this many rounds without a rest, one is long enough for other threads to get the interpreter. Python makes a
thread give it up after another has waited for `sys.getswitchinterval()` without a break. Between two short rounds trio
gives it up for a few microseconds: too short for the other thread to wake up, and yet its wait begins anew."""

_SLOW_TURN_S: Final = 0.5
"""Seconds after which one turn is logged: half of the shortest election timeout by default."""


class Resident(Protocol):
    """An actor, as its loop sees it. All but `stop` is called in the loop's thread only."""

    actor_urn: str

    def stop(self) -> None:
        """Ask it to stop. Raises `pykka.ActorDeadError` if it has ended."""

    @property
    def _end(self) -> ActorFuture[BaseException | None]:
        """Set when it has ended."""
        ...

    def _take_turn(self, until: float) -> None:
        """Handle what waits, until that time of `time.perf_counter`. Raises nothing."""

    def _fail(self, error: BaseException) -> None:
        """End now, because the loop ends."""


class Scheduler:
    """Gives the actors of one loop their turns, in the order in which they asked."""

    def __init__(self, loop: object) -> None:
        """`loop` is the `TrioLoop`, as `this_thread.loop` names it in its own thread."""
        self.ready: deque[Resident] = deque()
        """The actors that have something to do."""
        self.turns = 0
        self.busy_with: Resident | None = None
        """The actor whose turn it is."""
        self._loop = loop
        self._awake = True
        self._sleeper: trio.lowlevel.Task | None = None
        """The task of `run`, while it sleeps."""
        self._token: trio.lowlevel.TrioToken | None = None

    def schedule(self, actor: Resident) -> None:
        """Give an actor a turn, soon. From any thread."""
        self.ready.append(actor)
        # This appends first, and then looks whether the loop is awake; the loop says first that it sleeps, and then
        # looks for actors. So one of the two sees the other.
        if not self._awake:
            self._awake = True
            if this_thread.loop is self._loop:
                self._wake_task()
            elif self._token is not None:
                with contextlib.suppress(trio.RunFinishedError):  # the inbox is closed then, and says so
                    self._token.run_sync_soon(self._wake_up, idempotent=True)

    async def run(self) -> None:
        """Give turns until it is cancelled, in the loop's thread."""
        self._token = trio.lowlevel.current_trio_token()
        ready = self.ready
        rounds = 0
        while True:
            self._awake = False
            if not ready:
                rounds = 0
                await self._sleep()
            self._awake = True
            rounds += 1
            self._run_round(_ROUND_S if rounds % _LONG_ROUND_EVERY else 2 * sys.getswitchinterval())
            if ready:
                await trio.lowlevel.checkpoint()

    def _wake_up(self) -> None:
        """Run the first round at once, in trio's callback: to wake the task first would cost 30 µs more."""
        if self._sleeper is None:
            return
        self._run_round(_ROUND_S)
        if not self.ready:
            self._awake = False
        if self.ready:
            self._awake = True
            self._wake_task()

    def _wake_task(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            trio.lowlevel.reschedule(sleeper)

    async def _sleep(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._sleeper = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _run_round(self, seconds: float) -> None:
        """Give turns until no actor wants one, or the time is up."""
        ready = self.ready
        now = time.perf_counter()
        until = now + seconds
        while ready and now < until:
            began = now
            actor = self.busy_with = ready.popleft()
            self.turns += 1
            actor._take_turn(until)
            now = time.perf_counter()
            if now - began > _SLOW_TURN_S:
                logger.warning(
                    "%s kept the thread of %s for %.2f seconds: its other actors waited",
                    actor,
                    self._loop,
                    now - began,
                )
        self.busy_with = None
