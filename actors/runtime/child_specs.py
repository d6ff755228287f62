"""What an application says of a supervisor's children: how each is started, and how often that may happen."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType, NoneType
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import pykka
from drakkar.actors.runtime.futures import brief
from drakkar.handlers.checks import MAX_NAME, check_choice, check_number, check_type, check_whole
from drakkar.handlers.errors import ConfigError

__all__ = ["ChildSpec", "Limits", "Restart", "Start", "Strategy", "call_start", "check_start"]

Restart = Literal["permanent", "transient", "temporary"]
Start: TypeAlias = type[pykka.Actor] | Callable[..., pykka.ActorRef[Any]]
Strategy = Literal["one_for_one", "all_for_one", "rest_for_one"]

MAX_WAIT_S: Final = 86_400.0
"""A day: the longest time that an option may name."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How a supervisor starts one child, and when it does so again. Checked when it is made: raises `ConfigError`.

    `start` is an actor's class, or a function that starts an actor and returns its ref; either is called with `args` and
    `kwargs`, in a thread of its own, so it may block. TrioActors that name no loop run on the supervisor's.
    """

    name: str
    """By which the supervisor knows it: 1 to 200 characters."""
    start: Start
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    _: KW_ONLY
    publish: str | None = None
    """The name under which the supervisor publishes it each time it has started; None: under none."""
    restart: Restart = "permanent"
    """When it is started again: "permanent" always, "transient" only after a failure, "temporary" never.

    One that was stopped has not failed, also where its supervisor did not ask it to. To stop a permanent one for good, ask
    its supervisor.
    """
    start_timeout: float = 5.0
    """Seconds for its constructor, its `on_start` and its publication together. Taking longer is a failure."""
    stop_timeout: float | None = None
    """Seconds after which one that was asked to stop is left behind. None: 5 s, and a minute for a supervisor."""

    def __post_init__(self) -> None:
        """Check what users pass."""
        _check_name("name", self.name)
        if self.publish is not None:
            _check_name("publish", self.publish)
        check_type("args", self.args, (tuple, list), "a tuple of the arguments")
        check_type("kwargs", self.kwargs, Mapping, "a mapping of the named arguments")
        check_choice("restart", self.restart, get_args(Restart))
        check_number("start_timeout", self.start_timeout, 0.001, MAX_WAIT_S)
        check_type("stop_timeout", self.stop_timeout, (int, float, NoneType), "a number of seconds, or None")
        if self.stop_timeout is not None:
            check_number("stop_timeout", self.stop_timeout, 0.0, MAX_WAIT_S)
        if isinstance(self.start, pykka.ActorRef | pykka.ActorProxy):
            raise ConfigError(
                "start", str(self.start), "is an actor that runs: name its class, so that it can be restarted"
            )
        check_start(self.start)
        if inspect.iscoroutinefunction(self.start):
            raise ConfigError(
                "start", brief(self.start), "is async, so calling it would start nothing: write it with `def`"
            )

    def make(self) -> pykka.ActorRef[Any]:
        """Start the actor. May block, and raises what its constructor raises."""
        return call_start(self.start, *self.args, **self.kwargs)


def call_start(start: Start, *args: Any, **kwargs: Any) -> pykka.ActorRef[Any]:
    """Start an actor. May block, and raises what its constructor raises."""
    function: Any = cast("type[pykka.Actor]", start).start if isinstance(start, type) else start
    ref: pykka.ActorRef[Any] = function(*args, **kwargs)
    return ref


def check_start(start: object) -> None:
    """Check that `call_start` can call `start`. Raises `ConfigError`."""
    fits = issubclass(start, pykka.Actor) if isinstance(start, type) else callable(start)
    if not fits:
        shown = start.__name__ if isinstance(start, type) else brief(start)
        raise ConfigError("start", shown, "must be an actor's class, or a function that starts one")


def _check_name(option: str, name: object) -> None:
    check_type(option, name, str, "a text")
    assert isinstance(name, str)
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise ConfigError(option, brief(name), f"must be 1 to {MAX_NAME} printable characters")


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a supervisor restarts its children. Checked when it is made: raises `ConfigError`."""

    max_restarts: int = 5
    window: float = 30.0
    """Seconds within which there may be so many restarts, of all children together."""
    first_wait: float = 0.1
    """Seconds before the first restart of a child. Each further one doubles it, and each is cut by up to half at random."""
    last_wait: float = 5.0
    """The longest wait. A child that was up for a whole window begins anew with the shortest."""

    def __post_init__(self) -> None:
        """Check what users pass."""
        check_whole("max_restarts", self.max_restarts, 0, 1 << 20)
        check_number("window", self.window, 0.001, MAX_WAIT_S)
        check_number("first_wait", self.first_wait, 0.0, MAX_WAIT_S)
        check_number("last_wait", self.last_wait, self.first_wait, MAX_WAIT_S)
