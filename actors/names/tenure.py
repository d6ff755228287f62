"""`Tenure`: one singleton on one host: when it may start there, and when it must end.

Plain data, and decisions about it. What they need done, `Hands` do: so there is neither a clock nor a thread here.

    IDLE ── in office, and the one before has ended, or its time is over ──► FENCING ── committed ──► STARTING ──► UP
    UP ── out of office, barred, in doubt, or closed ──► STOPPING ──► IDLE        UP ── it failed ──► IDLE, for a while

docs/names.md says why two of them do not overlap as long as clocks run and processes do not stand still, and why only the
fencing number holds beyond that.
"""

import enum
import logging
import math
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

import pykka
from drakkar.actors.runtime.futures import ActorFuture, in_full
from drakkar.actors.runtime.launching import StartTimedOut
from drakkar.transport.backoff import Backoff

__all__ = ["Hands", "SingletonPhase", "Tenure"]

FIRST_WAIT_S: Final = 0.1
LAST_WAIT_S: Final = 5.0
"""The first and the longest wait after a failure, which doubles with each in a row."""
MAX_LEFT: Final = 8
"""Starts that hang, and actors that do not stop, beside which no other is started on this host."""
STEADY_S: Final = 30.0
"""One that was up for so long begins anew with the shortest wait."""
START_GRACE_S: Final = 0.5
"""Beyond its time a start is given this long, since the thread that does it knows best what takes so long."""


class SingletonPhase(enum.Enum):
    """Where a singleton stands on one host."""

    IDLE = "idle"
    FENCING = "fencing"
    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"


class Hands(Protocol):
    """What is done for a tenure. All of it is called in one thread and never blocks."""

    def fence(self) -> ActorFuture[int]:
        """Commit a fence through the shard; the future is set in every case."""
        ...

    def start(self, fence: int) -> ActorFuture[pykka.ActorRef[Any]]:
        """Begin to start the actor with this number, and to publish it; the future has its ref once it runs."""
        ...

    def abandon(self, started: ActorFuture[pykka.ActorRef[Any]]) -> None:
        """Stop what comes of a start, which is not waited for any longer."""

    def stop(self, ref: pykka.ActorRef[Any]) -> ActorFuture[Any]:
        """Ask it to stop before it handles more of what waits; the future is set when it has."""
        ...

    def leave(self, ref: pykka.ActorRef[Any]) -> None:
        """It was asked to stop, and is not waited for any longer: take away the name under which others find it."""

    def watch(self, ref: pykka.ActorRef[Any]) -> None:
        """Have `Tenure.on_died` called when it has ended."""

    def unwatch(self, ref: pykka.ActorRef[Any]) -> None:
        """End a `watch`."""

    def on_started(self, fence: int, ref: pykka.ActorRef[Any]) -> None:
        """It is up."""

    def on_ended(self, fence: int, reason: BaseException | None) -> None:
        """It has ended, or was left behind; `reason` is what it failed with, None if it was stopped."""

    def tell(self, level: int, text: str, *args: object) -> None:
        """Write a line into the log."""


@dataclass(slots=True)
class _Left:
    """What did not end in time, and was left behind."""

    ref: pykka.ActorRef[Any] | None
    """None: a start that hangs."""
    end: ActorFuture[Any]

    @property
    def over(self) -> bool:
        return self.end.done or (self.ref is not None and not self.ref.is_alive())


class Tenure:
    """A singleton of one host. For one thread.

    Call `proceed` after each call of another method, when a future of the `Hands` is set, and at `next_time`.
    """

    def __init__(
        self,
        name: str,
        hands: Hands,
        *,
        start_timeout: float,
        stop_timeout: float,
        random: Random | None = None,
    ) -> None:
        self.name = name
        self.phase = SingletonPhase.IDLE
        self.term = 0
        """The term in which this host leads the shard; 0: it does not."""
        self.running_term = 0
        """The term for which the present incarnation runs, or is being started."""
        self.fence = 0
        """Its number."""
        self.ref: pykka.ActorRef[Any] | None = None
        self.proven = False
        """The one before is known to have ended."""
        self.reason: BaseException | None = None
        """With what it failed the last time on this host."""
        self.starts = self.abandoned = 0
        """How often it was up here; and starts and actors that were left behind, since they did not end in time."""
        self._hands = hands
        self._start_timeout, self._stop_timeout = start_timeout, stop_timeout
        self._backoff = Backoff(FIRST_WAIT_S, LAST_WAIT_S, random or Random())
        self._work: ActorFuture[Any] | None = None
        self._deadline = math.inf
        self._not_before = math.inf
        """When the one before has surely ended, as far as clocks tell."""
        self._due = -math.inf
        """After a failure: when to try again."""
        self._up_since = math.inf
        self._barred, self._barred_until = 0, -math.inf
        """In no older term than this may it run, and until when that holds."""
        self._in_doubt = self._closed = False
        self._left: list[_Left] = []

    # -- what happens -------------------------------------------------------------------------------------------

    def on_office(self, term: int, now: float, bound: float) -> None:
        """This host leads the shard in `term`, or not if that is 0. `bound`: seconds after which the one before has ended."""
        if term == self.term:
            return
        self.term, self.proven = term, False
        if term:
            self._not_before, self._due = now + bound, -math.inf
            self._backoff.reset()

    def on_proof(self, term: int) -> None:
        """All others that may have led before `term` have said that theirs has ended, or are gone."""
        self.proven = self.proven or term == self.term

    def bar(self, term: int, until: float) -> None:
        """Another host says that it leads in `term`: it must not run in an older one, though this host may not know of that yet.

        If that is so, this host hears of it before the time `until`. So what is said holds no longer than that.
        """
        self._barred, self._barred_until = max(self._barred, term), until

    def doubt(self) -> None:
        """This host stood still for so long that another may have taken over: let it end, and begin with a new number."""
        self._in_doubt = self.phase in {SingletonPhase.FENCING, SingletonPhase.STARTING, SingletonPhase.UP}

    def close(self) -> None:
        """Let it run here no more."""
        self._closed = True

    def ended_before(self, term: float) -> bool:
        """Return whether none that was started here in an older term runs, or may still come up."""
        runs = (
            self.phase in {SingletonPhase.STARTING, SingletonPhase.UP, SingletonPhase.STOPPING}
            and self.running_term < term
        )
        return not runs and all(left.over for left in self._left)

    @property
    def over(self) -> bool:
        """Whether it is to run here no more, and none runs, or may still come up."""
        return self._closed and self.ended_before(math.inf)

    def on_died(self, ref: pykka.ActorRef[Any], reason: BaseException | None, now: float) -> None:
        """An actor that is watched has ended."""
        # One that was asked to stop has ended when it has answered: its `on_stop` may still be running.
        if self.phase is SingletonPhase.UP and self.ref is not None and self.ref.actor_urn == ref.actor_urn:
            if now - self._up_since >= STEADY_S:
                self._backoff.reset()
            self._gone(reason)
            self._try_later(reason, now)

    def proceed(self, now: float) -> None:
        """Take note of what is done or takes too long, and begin with what is next; `now` in seconds of any clock."""
        self._left = [left for left in self._left if not left.over]
        if now >= self._barred_until:
            self._barred = 0
        self._look_at_work(now)
        if self.phase is SingletonPhase.UP and not self._stays and self.ref is not None:
            self.phase, self._deadline = SingletonPhase.STOPPING, now + self._stop_timeout
            self._work = self._hands.stop(self.ref)
        in_time = now >= self._due and (self.proven or now >= self._not_before)
        if self.phase is SingletonPhase.IDLE and self._may_run and in_time and len(self._left) < MAX_LEFT:
            self.phase, self.running_term = SingletonPhase.FENCING, self.term
            self._work = self._hands.fence()

    def next_time(self, now: float) -> float:
        """When to call `proceed` again at the latest; infinity: when something happens."""
        if self.phase is not SingletonPhase.IDLE:
            return self._deadline
        if not self._may_run:
            return self._barred_until if self._barred and self.term else math.inf
        due = self._due if self.proven else max(self._due, self._not_before)
        if due > now:
            return due
        return now + 1.0 if len(self._left) >= MAX_LEFT else math.inf

    @property
    def _may_run(self) -> bool:
        return self.term > 0 and self.term >= self._barred and not self._closed

    @property
    def _stays(self) -> bool:
        """Whether the present incarnation is still the right one."""
        return self._may_run and self.running_term == self.term and not self._in_doubt

    # -- its work -----------------------------------------------------------------------------------------------

    def _look_at_work(self, now: float) -> None:
        work, late = self._work, now >= self._deadline
        if work is None:
            return
        if self.phase is SingletonPhase.FENCING:
            if not self._stays:
                self._rest()
            elif work.done:
                self._on_fenced(*work.outcome(), now)
        elif self.phase is SingletonPhase.STARTING:
            if work.done:
                self._on_start_over(*work.outcome(), now)
            elif late:
                self._give_up_start(work, now)
        elif work.done or (late and (self.ref is None or not self.ref.is_alive())):
            self._gone(None)
        elif late:
            self._leave_behind(work)

    def _on_fenced(self, fence: int | None, error: BaseException | None, now: float) -> None:
        if fence is None:
            self._rest()
            self._try_later(error, now)
            return
        self.phase, self.fence = SingletonPhase.STARTING, fence
        self._deadline = now + self._start_timeout + START_GRACE_S
        self._work = self._hands.start(fence)

    def _on_start_over(
        self, ref: pykka.ActorRef[Any] | None, error: BaseException | None, now: float
    ) -> None:
        if ref is None:
            if isinstance(error, StartTimedOut) and error.ref is not None:
                self._leave(_Left(error.ref, ActorFuture()))
            self._rest()
            self._try_later(error, now)
            return
        self.phase, self.ref, self._work, self._deadline = SingletonPhase.UP, ref, None, math.inf
        self._up_since = now
        self.starts += 1
        self._hands.watch(ref)
        self._hands.on_started(self.fence, ref)

    def _give_up_start(self, work: ActorFuture[Any], now: float) -> None:
        self._hands.abandon(work)
        self._leave(_Left(None, work))
        self._rest()
        self._try_later(
            StartTimedOut(
                f"the singleton {self.name!r} did not start within {self._start_timeout} seconds: its constructor, its on_start or "
                "its publication has not returned"
            ),
            now,
        )

    def _leave_behind(self, work: ActorFuture[Any]) -> None:
        self._hands.tell(
            logging.ERROR,
            "the singleton %r has not stopped within %s seconds and is left behind, though it may run elsewhere now: see what its "
            "handler waits for; its fencing number is %d",
            self.name,
            self._stop_timeout,
            self.fence,
        )
        self._leave(_Left(self.ref, work))
        self._gone(None)

    def _leave(self, left: _Left) -> None:
        self.abandoned += 1
        self._left.append(left)
        if left.ref is not None:
            self._hands.leave(left.ref)
        if len(self._left) == MAX_LEFT:
            self._hands.tell(
                logging.ERROR,
                "%d starts and actors of the singleton %r hang, and no other is started on this host until one of them ends: let "
                "another host lead its shard, or restart this one",
                MAX_LEFT,
                self.name,
            )

    def _gone(self, reason: BaseException | None) -> None:
        """The incarnation that was up has ended, or was left behind."""
        if self.ref is not None:
            self._hands.unwatch(self.ref)
        self._rest()
        self._hands.on_ended(self.fence, reason)

    def _rest(self) -> None:
        self.phase, self.ref, self._work = SingletonPhase.IDLE, None, None
        self._deadline = self._up_since = math.inf
        self._in_doubt = False

    def _try_later(self, error: BaseException | None, now: float) -> None:
        wait = self._backoff.next()
        self._due = now + wait
        self.reason = error or self.reason
        if self._may_run:
            why = "it was stopped" if error is None else in_full(error)
            self._hands.tell(
                logging.WARNING, "the singleton %r is started again in %.2f seconds: %s", self.name, wait, why
            )

    # -- its end ------------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Ask it to stop, and wait for nothing, since what serves it has ended."""
        self.close()
        if self.phase is SingletonPhase.STARTING and self._work is not None:
            self._hands.abandon(self._work)
        elif self.phase is SingletonPhase.UP and self.ref is not None:
            self._hands.stop(self.ref)
