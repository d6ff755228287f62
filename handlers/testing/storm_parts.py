"""What a user brings to a storm, and how a schedule that fails is reduced: for shards, and for nodes without Raft."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from drakkar.handlers.errors import ConfigError
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.plan import Schedule, shrink

__all__ = ["Parts", "StormRun", "run_or_reduce"]

NAMES: Final = ("traffic", "check", "settled", "effects")
"""What a user may bring, as functions, or as methods of a class."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a user brings. See `Cluster.storm` and `TableCluster.storm`."""

    traffic: Callable[..., None] | None = None
    check: Callable[..., None] | None = None
    settled: Callable[..., None] | None = None
    effects: Callable[..., None] | None = None
    user: Callable[[], Any] | None = None
    """Makes an object that has some of these four as methods. Each run has one of its own, so it may remember."""

    def begin(self) -> "Parts":
        """Return what one run has: the functions, or the methods of an object that is made for it. Raises `ConfigError`."""
        if self.user is None:
            return self
        user = self.user()
        methods = {name: getattr(user, name) for name in NAMES if hasattr(user, name)}
        if not methods:
            raise ConfigError("user", type(user).__name__, f"must have a method: one of {', '.join(NAMES)}")
        twice = [name for name in methods if getattr(self, name) is not None]
        if twice:
            raise ConfigError(
                "user", type(user).__name__, f"has {twice[0]}, and so has this call: give one of the two"
            )
        return replace(self, **methods)

    def check_after_step(self, nodes: dict[Any, Any]) -> None:
        """Call the user's `check`."""
        _call("your own check", self.check, nodes)

    def check_at_the_end(self, nodes: dict[Any, Any]) -> None:
        """Call the user's `settled`."""
        _call("your check of the end", self.settled, nodes)

    def see_effects(self, node: Any, ready: Any) -> None:
        """Call the user's `effects`, if there are any."""
        if ready.tells or ready.events or ready.answers:
            _call("your check of effects", self.effects, node, ready)


def _call(name: str, check: Callable[..., None] | None, *args: Any) -> None:
    """Call a check, if there is one. Raises `Violation` of this name for an `AssertionError`."""
    if check is None:
        return
    try:
        check(*args)
    except Violation:
        raise
    except AssertionError as broken:
        raise Violation(name, str(broken)) from broken


# -- running, and reducing ---------------------------------------------------------------------------------------


class StormRun(Protocol):
    """One run of a schedule."""

    def run(self) -> None:
        """Run it. Raises what fails."""

    def story(self) -> str:
        """Return what has happened, one event a line."""
        ...


_Plan = TypeVar("_Plan", bound=Schedule)
_Run = TypeVar("_Run", bound=StormRun)


def run_or_reduce(
    plan: _Plan, make: Callable[[_Plan], _Run], simpler: Callable[[_Plan], Iterable[Callable[[_Plan], _Plan]]]
) -> _Run:
    """Run a plan; return the run. Raises `Violation` with the smallest plan found that fails in the same way, and its story."""
    first = make(plan)
    error = _failure_of(first)
    if error is None:
        return first
    name = _name(error)
    small = shrink(plan, lambda smaller: _name(_failure_of(make(smaller))) == name, simpler)
    replay = make(small)
    again = _failure_of(replay)
    if again is None:
        raise error
    what = again.what if isinstance(again, Violation) else repr(again)
    text = f"{what}\n\nthe schedule, reduced:\n{small}\n\nwhat happened:\n{replay.story()}"
    # What failed in the first run says other numbers than this text. So it is not shown beside it.
    raise Violation(name, text) from (again.__cause__ or again)


def _name(error: Exception | None) -> str:
    return error.check if isinstance(error, Violation) else type(error).__name__


def _failure_of(run: StormRun) -> Exception | None:
    try:
        run.run()
    except Exception as error:  # noqa: BLE001  # the user's handlers may raise any exception
        return error
    return None
