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
from abc import abstractmethod
from random import Random
from typing import Any, Final

import pykka
from drakkar.actors.runtime.futures import ActorFuture, in_full
from drakkar.actors.runtime.hands import Hands
from drakkar.actors.runtime.incarnation import Change, ChildPhase, Incarnation, LeftBehind
from drakkar.handlers.backoff import Backoff

__all__ = ["SingletonPhase", "Tenure", "TenureHands"]

FIRST_WAIT_S: Final = 0.1
LAST_WAIT_S: Final = 5.0
"""The first and the longest wait after a failure, which doubles with each in a row."""
MAX_LEFT: Final = 8
"""Starts that hang, and actors that do not stop, beside which no other is started on this host."""
STEADY_S: Final = 30.0
"""One that was up for so long begins anew with the shortest wait."""


class SingletonPhase(enum.Enum):
    """Where a singleton stands on one host."""

    IDLE = "idle"
    FENCING = "fencing"
    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"


class TenureHands(Hands[int]):
    """Does for a tenure what takes an actor, a shard, a loop or a thread."""

    @abstractmethod
    def fence(self) -> ActorFuture[int]:
        """Commit a fence through the shard; the future is set in every case."""

    @abstractmethod
    def on_started(self, fence: int, ref: pykka.ActorRef[Any]) -> None:
        """It is up."""

    @abstractmethod
    def on_ended(self, fence: int, reason: BaseException | None) -> None:
        """It has ended, or was left behind; `reason` is what it failed with, None if it was stopped."""


class Tenure:
    """A singleton of one host. For one thread.

    Call `proceed` after each call of another method, when a future of the hands is set, and at `next_time`.
    """

    def __init__(
        self,
        name: str,
        hands: TenureHands,
        *,
        start_timeout: float,
        stop_timeout: float,
        random: Random | None = None,
    ) -> None:
        self.name = name
        self.term = 0
        """The term in which this host leads the shard; 0: it does not."""
        self.running_term = 0
        """The term for which the present incarnation runs, or is being started."""
        self.fence = 0
        """Its number."""
        self.proven = False
        """The one before is known to have ended."""
        self.reason: BaseException | None = None
        """With what it failed the last time on this host."""
        self.starts = 0
        """How often it was up here."""
        self._hands = hands
        self._start_timeout, self._stop_timeout = start_timeout, stop_timeout
        self._backoff = Backoff(FIRST_WAIT_S, LAST_WAIT_S, random or Random())
        self._left = LeftBehind()
        self._actor = Incarnation(f"the singleton {name!r}", hands, self._left)
        self._fencing: ActorFuture[int] | None = None
        """Its number, while that is being made."""
        self._not_before = math.inf
        """When the one before has surely ended, as far as clocks tell."""
        self._due = -math.inf
        """After a failure: when to try again."""
        self._barred, self._barred_until = 0, -math.inf
        """In no older term than this may it run, and until when that holds."""
        self._in_doubt = self._closed = False

    @property
    def phase(self) -> SingletonPhase:
        """Where it stands. From any thread."""
        phase = self._actor.phase
        if phase is not ChildPhase.DOWN:
            return SingletonPhase(phase.value)
        return SingletonPhase.IDLE if self._fencing is None else SingletonPhase.FENCING

    @property
    def ref(self) -> pykka.ActorRef[Any] | None:
        """The present incarnation; None while there is none that runs. From any thread."""
        return self._actor.ref

    @property
    def abandoned(self) -> int:
        """Starts and actors that were left behind so far, since they did not end in time."""
        return self._left.total

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
        runs = self._actor.phase is not ChildPhase.DOWN and self.running_term < term
        return not runs and self._left.over

    @property
    def over(self) -> bool:
        """Whether it is to run here no more, and none runs, or may still come up."""
        return self._closed and self.ended_before(math.inf)

    def on_died(self, ref: pykka.ActorRef[Any], reason: BaseException | None, now: float) -> None:
        """An actor that is watched has ended."""
        if self._actor.died(ref):
            if now - self._actor.up_since >= STEADY_S:
                self._backoff.reset()
            self._on_ended(reason)
            self._try_later(reason, now)

    def proceed(self, now: float) -> None:
        """Take note of what is done or takes too long, and begin with what is next; `now` in seconds of any clock."""
        self._left.forget_ended()
        if now >= self._barred_until:
            self._barred = 0
        if self._fencing is not None:
            self._look_at_fence(self._fencing, now)
        else:
            self._look_at_actor(now)
        if not self._stays:
            self._actor.stop(now, self._stop_timeout)
        in_time = now >= self._due and (self.proven or now >= self._not_before)
        if self.phase is SingletonPhase.IDLE and self._may_run and in_time and len(self._left) < MAX_LEFT:
            self.running_term, self._fencing = self.term, self._hands.fence()

    def next_time(self, now: float) -> float:
        """When to call `proceed` again at the latest; infinity: when something happens."""
        if self.phase is not SingletonPhase.IDLE:
            return self._actor.deadline
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

    def _look_at_fence(self, fencing: ActorFuture[int], now: float) -> None:
        if not self._stays:
            self._rest()
        elif fencing.done:
            fence, error = fencing.outcome()
            if fence is not None:
                self.fence = fence
                self._actor.start(self._hands.start(fence), now, self._start_timeout)
            self._rest()
            if fence is None:
                self._try_later(error, now)

    def _look_at_actor(self, now: float) -> None:
        change = self._actor.look(now)
        if change is Change.STARTED:
            assert self.ref is not None, "it is up"
            self.starts += 1
            self._hands.on_started(self.fence, self.ref)
        elif change is Change.FAILED:
            self._check_left()
            self._rest()
            self._try_later(self._actor.error, now)
        elif change is not None:
            if change is Change.LEFT_BEHIND:
                self._tell_left_behind()
                self._check_left()
            self._on_ended(None)

    def _tell_left_behind(self) -> None:
        self._hands.tell(
            logging.ERROR,
            "the singleton %r has not stopped within %s seconds and is left behind, though it may run elsewhere now: see what its "
            "handler waits for; its fencing number is %d",
            self.name,
            self._stop_timeout,
            self.fence,
        )

    def _check_left(self) -> None:
        if len(self._left) == MAX_LEFT:
            self._hands.tell(
                logging.ERROR,
                "%d starts and actors of the singleton %r hang, and no other is started on this host until one of them ends: let "
                "another host lead its shard, or restart this one",
                MAX_LEFT,
                self.name,
            )

    def _on_ended(self, reason: BaseException | None) -> None:
        """The incarnation that was up has ended, or was left behind."""
        self._rest()
        self._hands.on_ended(self.fence, reason)

    def _rest(self) -> None:
        self._fencing, self._in_doubt = None, False

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
        actor = self._actor
        if actor.phase is ChildPhase.STARTING and actor.work is not None:
            self._hands.abandon(actor.work)
        elif actor.phase is ChildPhase.UP and actor.ref is not None:
            self._hands.stop(actor.ref)
