"""The children of a supervisor: in which order they start and stop, and what follows when one ends.

Plain data, and decisions about it. What they need done, `Hands` do: so there is neither a clock nor a thread here.

    add                                DOWN ── its time has come, and those before it are up ──► STARTING
    STARTING ── it runs ──► UP         UP ── it is doomed, and the newest of the doomed ──► STOPPING ── it ended ──► DOWN
    a failure: DOWN, and by the strategy the others are doomed; then all of them start again, after a wait

A child is *doomed* when its present incarnation is to end: since it is stopped, or restarted with another, or since the
supervisor ends. A child is *wanted* if it is to be up again after that.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, get_args

import pykka
from drakkar.actors.runtime.child_specs import ChildSpec, Limits, Strategy
from drakkar.actors.runtime.futures import AnswerLater, brief, in_full
from drakkar.actors.runtime.hands import Hands
from drakkar.actors.runtime.incarnation import Change, ChildPhase, Incarnation, LeftBehind
from drakkar.handlers.backoff import Backoff
from drakkar.handlers.checks import check_choice
from drakkar.handlers.errors import ActorFailed, ConfigError, SystemBusy

__all__ = ["Child", "ChildPhase", "ChildStatus", "Family", "TooManyRestarts"]

MAX_CHILDREN: Final = 1_000
"""Children of one supervisor, since each turn looks at all of them. For more, let it supervise supervisors."""
MAX_ASKERS: Final = 1_000
"""Those who wait for one child, or for all."""
MAX_LEFT: Final = 16
"""Starts that hang, and actors that do not stop, beside which a supervisor still starts others in their place."""
DEFAULT_STOP_S: Final = 5.0


class TooManyRestarts(ActorFailed):
    """A supervisor gave up: its children failed more often than it may restart them. `__cause__` is the last failure."""


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """Where a child stands, as its supervisor knows it."""

    name: str
    phase: ChildPhase
    ref: pykka.ActorRef[Any] | None
    """Its present incarnation; None while there is none that runs."""
    restarts: int
    """How often it was restarted since the supervisor knows it, also because of others."""
    reason: BaseException | None
    """With what it failed the last time."""


@dataclass(slots=True)
class _Asker:
    answer: AnswerLater[Any]
    deadline: float


@dataclass(slots=True, eq=False)
class Child(Incarnation):
    """One child, and what is known of it."""

    spec: ChildSpec
    backoff: Backoff
    fresh: bool = False
    """Added while the supervisor runs, and not up yet: if its first start fails, it is not kept."""
    wanted: bool = True
    doomed: bool = False
    kept: bool = True
    """It is known while it is down."""
    tried: bool = False
    """Its first start has succeeded or failed."""
    due: float = -math.inf
    """Before that, it is not started again."""
    restarts: int = 0
    reason: BaseException | None = None
    askers: list[_Asker] = field(default_factory=list)
    """They wait until it is up."""
    stoppers: list[AnswerLater[None]] = field(default_factory=list)
    """They wait until it is down, for good."""

    @property
    def status(self) -> ChildStatus:
        """As others are told. Of one that has just died, its supervisor may not have heard yet."""
        up = self.phase is ChildPhase.UP and not self.doomed and self.ref is not None and self.ref.is_alive()
        return ChildStatus(self.spec.name, self.phase, self.ref if up else None, self.restarts, self.reason)

    @property
    def stop_timeout(self) -> float:
        """See `ChildSpec.stop_timeout`. An actor's class may name a time of its own."""
        if self.spec.stop_timeout is not None:
            return self.spec.stop_timeout
        kind = self.ref.actor_class if self.ref is not None else None
        return float(getattr(kind, "usual_stop_s", DEFAULT_STOP_S))


class Family:
    """The children of one supervisor, in the order in which they start. For one thread.

    Call `proceed` after each call of another method, when a future of the hands is set, and at `next_time`.
    """

    def __init__(
        self,
        owner: object,
        strategy: Strategy,
        limits: Limits,
        hands: Hands[ChildSpec],
        *,
        random: Random | None = None,
    ) -> None:
        """`owner` is named in errors. Raises `ConfigError` for an unknown strategy."""
        check_choice("strategy", strategy, get_args(Strategy))
        self.children: dict[str, Child] = {}
        self.ending = False
        """All children are to stop, for good."""
        self.failure: TooManyRestarts | None = None
        """Why it ends; None if it was asked to."""
        self._owner = owner
        self._independent = strategy == "one_for_one"
        self._all = strategy == "all_for_one"
        self._limits, self._hands, self._random = limits, hands, random or Random()
        self._restarts: deque[float] = deque()
        """When there was a restart, within the window."""
        self._left = LeftBehind()
        self._waiting_for_all: list[_Asker] = []

    @property
    def abandoned(self) -> int:
        """Starts and actors that were left behind so far, since they did not end in time."""
        return self._left.total

    @property
    def over(self) -> bool:
        """Whether it was to end, and no child is left."""
        return self.ending and all(child.phase is ChildPhase.DOWN for child in self.children.values())

    # -- what is asked ------------------------------------------------------------------------------------------

    def add(self, spec: ChildSpec, asker: AnswerLater[Any] | None = None, deadline: float = math.inf) -> None:
        """Add a child behind the others. `asker` gets its ref; then a child whose first start fails is not kept.

        Raises `ConfigError` where a child has that name, `SystemBusy` where there are too many, and
        `pykka.ActorDeadError` where the supervisor is ending.
        """
        self._check_not_ending()
        if spec.name in self.children:
            raise ConfigError("name", spec.name, f"is a child of {self._owner} already: choose another name")
        if len(self.children) >= MAX_CHILDREN:
            raise SystemBusy(
                f"{self._owner} has {MAX_CHILDREN} children: let it supervise supervisors instead"
            )
        backoff = Backoff(self._limits.first_wait, self._limits.last_wait, self._random)
        child = Child(f"child {spec.name!r}", self._hands, self._left, spec, backoff, asker is not None)
        self.children[spec.name] = child
        if asker is not None:
            child.askers.append(_Asker(asker, deadline))

    def remove(self, name: str, stopper: AnswerLater[None]) -> None:
        """Stop a child, and forget it; `stopper` is set when it has ended. Raises `ConfigError` for an unknown name."""
        child = self._known(name)
        child.stoppers.append(stopper)
        child.wanted = child.kept = False
        self._fail_askers(child, pykka.ActorDeadError(f"child {name!r} of {self._owner} is being stopped"))
        if child.phase is ChildPhase.DOWN:
            self._on_ended(child)
        else:
            child.doomed = True

    def restart(self, name: str, asker: AnswerLater[Any], deadline: float) -> None:
        """Stop a child and start it again, by the strategy with others; `asker` gets its new ref. Counts as no failure.

        It need not be up: one that had ended for good is wanted again. Raises as `add`, for an unknown name as `remove`.
        """
        self._check_not_ending()
        child = self._known(name)
        self._add_asker(child.askers, asker, deadline)
        child.wanted, child.due = True, -math.inf
        self._begin_restart(child, -math.inf)

    def ask_ref(self, name: str, asker: AnswerLater[Any], deadline: float) -> None:
        """Give `asker` the child's ref, as soon as it is up. Raises `ConfigError` for an unknown name."""
        child = self._known(name)
        if child.status.ref is not None:
            asker.set(child.ref)
        elif not child.wanted:
            asker.fail(self._ended_for_good(child))
        else:
            self._add_asker(child.askers, asker, deadline)

    def ask_ready(self, asker: AnswerLater[bool], deadline: float) -> None:
        """Give `asker` True when all children are up that are to be."""
        self._check_not_ending()
        self._add_asker(self._waiting_for_all, asker, deadline)

    def end(self, failure: TooManyRestarts | None = None) -> None:
        """Stop all children, the newest first, and start none any more."""
        if self.ending:
            return
        self.ending, self.failure = True, failure
        error = pykka.ActorDeadError(f"{self._owner} is stopping")
        for child in self.children.values():
            child.wanted = False
            child.doomed = child.phase is not ChildPhase.DOWN
            self._fail_askers(child, error)
        for asker in self._waiting_for_all:
            asker.answer.try_fail(error)
        self._waiting_for_all.clear()

    def let_go(self, error: Exception) -> None:
        """Ask all children at once to stop, and wait for none, since the supervisor itself has ended."""
        self.end()
        for child in list(self.children.values()):
            if child.phase is ChildPhase.STARTING and child.work is not None:
                self._hands.abandon(child.work)
            elif child.ref is not None:
                self._hands.stop(child.ref)
                self._hands.leave(child.ref)
            for stopper in child.stoppers:
                stopper.try_fail(error)

    def _check_not_ending(self) -> None:
        if self.ending:
            raise pykka.ActorDeadError(f"{self._owner} is stopping, and starts no more children")

    def _known(self, name: str) -> Child:
        child = self.children.get(name) if isinstance(name, str) else None
        if child is None or not child.kept:
            known = ", ".join(sorted(self.children)) or "none"
            raise ConfigError(
                "name", brief(name), f"is no child of {self._owner}; its children: {known:.500}"
            )
        return child

    @staticmethod
    def _add_asker(askers: list[_Asker], answer: AnswerLater[Any], deadline: float) -> None:
        if len(askers) >= MAX_ASKERS:
            raise SystemBusy(f"{MAX_ASKERS} wait for the same already: wait a little and ask again")
        askers.append(_Asker(answer, deadline))

    @staticmethod
    def _fail_askers(child: Child, error: Exception) -> None:
        askers, child.askers = child.askers, []
        for asker in askers:
            asker.answer.try_fail(error)

    def _ended_for_good(self, child: Child) -> pykka.ActorDeadError:
        why = "it was stopped" if child.reason is None else in_full(child.reason)
        return pykka.ActorDeadError(
            f"child {child.spec.name!r} of {self._owner} has ended, and is not started again by itself: {why}"
        )

    # -- what happens -------------------------------------------------------------------------------------------

    def on_died(self, ref: pykka.ActorRef[Any], reason: BaseException | None, now: float) -> None:
        """An actor that is watched has ended: failed with `reason`, or stopped if that is None."""
        for child in self.children.values():
            if child.died(ref):
                if now - child.up_since >= self._limits.window:
                    child.backoff.reset()
                self._on_failed(child, reason, now)
                return

    def proceed(self, now: float) -> None:
        """Take note of what is done or takes too long, and begin with what is next; `now` in seconds of any clock."""
        self._left.forget_ended()
        for child in list(self.children.values()):
            self._look_at(child, now)
        self._stop_doomed(now)
        self._start_due(now)
        self._answer_askers(now)

    def next_time(self, now: float) -> float:
        """When to call `proceed` again at the latest; infinity: when something happens."""
        times = [asker.deadline for asker in self._waiting_for_all]
        for child in self.children.values():
            times += (asker.deadline for asker in child.askers)
            times.append(child.deadline)
            if child.phase is ChildPhase.DOWN and child.wanted and child.due > now:
                times.append(child.due)
        return min(times, default=math.inf)

    def _look_at(self, child: Child, now: float) -> None:
        change = child.look(now)
        if change is Change.LEFT_BEHIND:
            self._hands.tell(
                logging.ERROR,
                "child %r of %s has not stopped within %s seconds, and is left behind: see what its handler waits for",
                child.spec.name,
                self._owner,
                child.timeout,
            )
        if len(self._left) > MAX_LEFT:
            self._fail(f"{len(self._left)} of its starts and actors hang at a time", None)
        if change is Change.STARTED:
            child.tried, child.fresh = True, False
        elif change is Change.FAILED:
            child.tried = True
            self._on_failed(child, child.error, now)
        elif change is not None:
            self._on_ended(child)

    # -- starts -------------------------------------------------------------------------------------------------

    def _start_due(self, now: float) -> None:
        """Start those whose time has come, in their order."""
        blocked = self.ending or (
            not self._independent and any(child.doomed for child in self.children.values())
        )
        for child in list(self.children.values()):
            if blocked:
                return
            if child.phase is ChildPhase.DOWN and child.wanted and now >= child.due:
                child.start(self._hands.start(child.spec), now, child.spec.start_timeout)
            # Children that depend on one another wait for those before them. Others do so only when they start first.
            blocked = (
                not child.tried if self._independent else child.wanted and child.phase is not ChildPhase.UP
            )

    # -- stops --------------------------------------------------------------------------------------------------

    def _stop_doomed(self, now: float) -> None:
        """Ask those to stop that are to end: the newest before the others, where they may depend on one another."""
        doomed = [child for child in self.children.values() if child.doomed]
        if self.ending or not self._independent:
            doomed = doomed[-1:]
        for child in doomed:
            child.stop(now, child.stop_timeout)

    def _on_ended(self, child: Child) -> None:
        """It has no incarnation any more."""
        child.doomed = False
        stoppers, child.stoppers = child.stoppers, []
        for stopper in stoppers:
            stopper.try_set(None)
        if not child.kept:
            self._forget(child)

    def _forget(self, child: Child) -> None:
        self._fail_askers(child, self._ended_for_good(child))
        if self.children.get(child.spec.name) is child:
            del self.children[child.spec.name]

    # -- failures -----------------------------------------------------------------------------------------------

    def _on_failed(self, child: Child, error: BaseException | None, now: float) -> None:
        """It did not start, or ended unasked: `error` is None if something else than the family has stopped it."""
        expected = child.doomed or not child.wanted
        child.reason = error or child.reason
        self._on_ended(child)
        if expected or self.ending:
            return
        if child.fresh:
            child.kept = child.wanted = False
            self._fail_askers(child, _as_exception(error))
            self._forget(child)
        elif child.spec.restart == "permanent" or (child.spec.restart == "transient" and error is not None):
            self._restart(child, error, now)
        else:
            self._end_for_good(child, error)

    def _end_for_good(self, child: Child, error: BaseException | None) -> None:
        child.wanted = False
        self._hands.tell(
            logging.INFO,
            "child %r of %s has ended, and is not started again: %s",
            child.spec.name,
            self._owner,
            _why(error),
        )
        self._fail_askers(child, self._ended_for_good(child))
        if child.spec.restart == "temporary":
            self._forget(child)

    def _restart(self, child: Child, error: BaseException | None, now: float) -> None:
        """Let it start again after a wait; or give up, if that was too often."""
        self._restarts.append(now)
        while self._restarts[0] <= now - self._limits.window:
            self._restarts.popleft()
        if len(self._restarts) > self._limits.max_restarts:
            self._fail(
                f"its children failed {len(self._restarts)} times within {self._limits.window} seconds, and it may restart "
                f"them {self._limits.max_restarts} times; the last was {child.spec.name!r}: {_why(error)}",
                error,
            )
            return
        wait = child.backoff.next()
        self._hands.tell(
            logging.WARNING,
            "child %r of %s is started again in %.2f seconds, since it ended: %s",
            child.spec.name,
            self._owner,
            wait,
            _why(error),
        )
        self._begin_restart(child, now + wait)

    def _begin_restart(self, child: Child, due: float) -> None:
        """Let it end and start again, at `due` at the earliest, with those that the strategy says."""
        for each in self._affected(child):
            each.due = max(each.due, due)
            each.restarts += 1
            each.doomed = each.phase is not ChildPhase.DOWN
            if each is not child and each.spec.restart == "temporary":
                each.wanted = each.kept = False
                if each.phase is ChildPhase.DOWN:
                    self._forget(each)

    def _affected(self, child: Child) -> Iterable[Child]:
        """Those that are restarted with a child, itself among them."""
        if self._independent:
            return [child]
        children = list(self.children.values())
        if not self._all:
            children = children[children.index(child) :]
        return [each for each in children if each.wanted]

    def _fail(self, why: str, cause: BaseException | None) -> None:
        failure = TooManyRestarts(f"{self._owner} gives up and stops its children: {why}")
        failure.__cause__ = cause
        self.end(failure)

    # -- those who wait -----------------------------------------------------------------------------------------

    def _answer_askers(self, now: float) -> None:
        for child in self.children.values():
            if child.askers:
                child.askers = self._still_waiting(
                    child.askers,
                    child.status.ref,
                    now,
                    f"child {child.spec.name!r} of {self._owner} is not up",
                )
        if self._waiting_for_all:
            up = all(child.status.ref is not None for child in self.children.values() if child.wanted)
            self._waiting_for_all = self._still_waiting(
                self._waiting_for_all, up or None, now, f"not all children of {self._owner} are up"
            )

    @staticmethod
    def _still_waiting(askers: list[_Asker], answer: Any, now: float, late: str) -> list[_Asker]:
        """Answer those who wait, if `answer` is not None; fail those whose time is over; return the others."""
        for asker in askers:
            if answer is not None:
                asker.answer.try_set(answer)
            elif now >= asker.deadline:
                asker.answer.try_fail(pykka.Timeout(late))
        return [asker for asker in askers if not asker.answer.done]


def _why(error: BaseException | None) -> str:
    return "it was stopped" if error is None else in_full(error)


def _as_exception(error: BaseException | None) -> Exception:
    if isinstance(error, Exception):
        return error
    failed = ActorFailed(f"it did not start: {_why(error)}")
    failed.__cause__ = error
    return failed
