"""Which actor of a loop has its turn.

    any thread          `schedule(actor)` appends the actor to a queue, and wakes the loop if it sleeps
    the loop's thread   a round gives turns, one actor after the other, for 2 ms; what was put off to the end of the
                        round is done, for all of them together; then trio has its turn

The scheduler knows of an actor only what `Resident` says. What an actor does with its turn is in `actor`.
"""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import trio
from drakkar.actors.runtime.futures import ActorFuture, this_thread
from drakkar.actors.runtime.log_lines import HostLines, Lines

__all__ = ["Resident", "Scheduler", "SlowTurn"]

_ROUND_S: Final = 0.002
"""Seconds after which the actors let trio have its turn. An election timeout is five hundred times as long, and a pass
through trio's scheduler costs some 20 µs, one part in a hundred."""

_LONG_ROUND_EVERY: Final = 50
"""Of this many rounds without a rest, one is long enough for other threads to get the interpreter. Python makes a
thread give it up after another has waited for `sys.getswitchinterval()` without a break. Between two short rounds trio
gives it up for a few microseconds: too short for the other thread to wake up, and yet its wait begins anew."""

_OTHERS_EVERY_S: Final = 0.0005
"""After so long without a break other threads may have the interpreter, also within a round. The break takes some 0.1 ms, as coarse
as the kernel's timers are: about as long as a turn, so one after each would take as much as the turns."""

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


class SlowTurn(NamedTuple):
    """A turn that kept the loop's thread for too long."""

    actor: str
    seconds: float
    ended: float
    """In seconds of `time.monotonic`."""


class Scheduler:
    """Gives the actors of one loop their turns, in the order in which they asked."""

    def __init__(self, loop: object, lines: Lines | None = None) -> None:
        """`loop` is the `TrioLoop`, as `this_thread.loop` names it in its own thread; `lines` writes its lines."""
        self._lines = lines or HostLines().of("drakkar.actors.runtime")
        self.ready: deque[Resident] = deque()
        """The actors that have something to do."""
        self.turns = 0
        self.busy_with: Resident | None = None
        """The actor whose turn it is."""
        self.slow_turn: SlowTurn | None = None
        """The last turn that took so long that the loop's other work suffered."""
        self._put_off: list[Callable[[], None]] = []
        """To be called at the end of the round."""
        self._loop = loop
        self._awake = True
        self._sleeper: trio.lowlevel.Task | None = None
        """The task of `run`, while it sleeps."""
        self._token: trio.lowlevel.TrioToken | None = None

    def schedule(self, actor: Resident) -> None:
        """Give an actor a turn, soon. From any thread."""
        self.ready.append(actor)
        self._wake()

    def at_round_end(self, action: Callable[[], None]) -> None:
        """Call `action` once, when the actors that are ready have had their turns. In the loop's thread; it raises nothing."""
        self._put_off.append(action)
        self._wake()

    def end_round(self) -> None:
        """Do now what was put off, unless an actor has its turn. In the loop's thread."""
        if self.busy_with is None:
            put_off, self._put_off = self._put_off, []
            for action in put_off:
                action()

    def run_now(self, cause: Callable[[], None]) -> None:
        """Call `cause`, and then give turns to the actors that it woke. In the loop's thread, by a task.

        To wake the task of `run` first would cost 30 µs more.
        """
        if self._sleeper is None:
            cause()
            return
        self._awake = True
        cause()
        self._run_first_round()

    def _wake(self) -> None:
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
            if not ready and not self._put_off:
                rounds = 0
                await self._sleep()
            self._awake = True
            rounds += 1
            self._run_round(_ROUND_S if rounds % _LONG_ROUND_EVERY else 2 * sys.getswitchinterval())
            if ready or self._put_off:
                await trio.lowlevel.checkpoint()

    def _wake_up(self) -> None:
        """Run the first round at once, in trio's callback."""
        if self._sleeper is not None:
            self._run_first_round()

    def _run_first_round(self) -> None:
        """Run a round while the task of `run` sleeps, and wake it if there is more to do."""
        self._run_round(_ROUND_S)
        if not self.ready and not self._put_off:
            self._awake = False
        if self.ready or self._put_off:
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
        now = others_at = time.perf_counter()
        until = now + seconds
        while ready and now < until:
            began = now
            actor = self.busy_with = ready.popleft()
            self.turns += 1
            actor._take_turn(until)
            now = time.perf_counter()
            if now - began > _SLOW_TURN_S:
                self.slow_turn = SlowTurn(str(actor), now - began, time.monotonic())
                self._lines.warning(
                    "%s kept the thread of %s for %.2f seconds: its other actors waited",
                    actor,
                    self._loop,
                    now - began,
                )
            if ready and now - others_at >= _OTHERS_EVERY_S:
                # A turn makes no system call, since sockets and disk are served at the end of the round. Without one, other
                # threads would wait for the interpreter until Python takes it from this one, which takes 5 ms each time.
                time.sleep(0)
                now = others_at = time.perf_counter()
        self.busy_with = None
        self.end_round()
