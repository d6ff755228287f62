"""Monitoring: `watch` tells when an actor ends, and why."""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pykka
from drakkar.actors.runtime.forks import Process
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import ActorFailed, ConfigError

__all__ = ["ActorCrashed", "ActorDied", "Termination", "Watchable", "Watcher", "unwatch", "watch"]

logger = logging.getLogger("drakkar.actors.runtime")


@dataclass(frozen=True, slots=True)
class ActorDied:
    """The notice that `watch` sends, once, when the actor has ended."""

    ref: pykka.ActorRef[Any]
    reason: BaseException | None
    """The exception with which it failed; None if it was stopped."""


class ActorCrashed(ActorFailed, pykka.ActorDeadError):
    """The actor failed before or while it handled the message; `__cause__` is the failure."""


Watcher: TypeAlias = pykka.ActorRef[Any] | Callable[[ActorDied], object]


def watch(ref: pykka.ActorRef[Any], watcher: Watcher) -> None:
    """Tell `watcher` once, by an `ActorDied`, when the actor has failed or stopped; at once if it has ended.

    A ref is told by `tell`, even if its inbox is full. A function is called in the loop's thread, or in this one if the
    actor has ended; it must not block. Watching again before the notice changes nothing. From any thread.

    Raises `ConfigError` for a ref of an actor that is no `TrioActor`, since pykka's own actors do not tell of their end,
    and `ForkedError` for one that lives in the process that this one was forked from.
    """
    _termination_of(ref).watch(ref, watcher)


def unwatch(ref: pykka.ActorRef[Any], watcher: Watcher) -> bool:
    """End a `watch`; return whether there was one whose notice was not sent yet. From any thread."""
    return _termination_of(ref).unwatch(watcher)


def _termination_of(ref: pykka.ActorRef[Any]) -> "Watchable":
    if isinstance(own := getattr(ref, "termination", None), Watchable):
        return own
    termination = getattr(ref.actor_inbox, "termination", None)
    if not isinstance(termination, Termination):
        raise ConfigError("ref", str(ref), "only TrioActors can be watched: derive its class from TrioActor")
    process = ref.actor_inbox.process  # type: ignore[attr-defined]
    assert isinstance(process, Process)
    process.check(ref)
    return termination


@runtime_checkable
class Watchable(Protocol):
    """What `watch` and `unwatch` turn to: an actor's `Termination`, or the `termination` of a reference to one elsewhere."""

    def watch(self, ref: pykka.ActorRef[Any], watcher: Watcher) -> None:
        """See the function of that name."""

    def unwatch(self, watcher: Watcher) -> bool:
        """See the function of that name."""
        ...


class Termination:
    """An actor's end: its watchers until then, the reason afterwards. It outlives the actor."""

    __slots__ = ("_sweep_at", "_watches", "end")

    def __init__(self) -> None:
        self.end: ActorFuture[BaseException | None] = ActorFuture()
        """Set when the actor has ended: to the exception with which it failed, or None if it was stopped."""
        self._watches: dict[Hashable, _Watch] = {}
        self._sweep_at = 16

    @property
    def watched(self) -> bool:
        """Somebody watches."""
        return bool(self._watches)

    def publish(self, reason: BaseException | None) -> None:
        """Set `end`, and tell all watchers, in this thread."""
        self.end.set(reason)
        self._watches.clear()

    def watch(self, ref: pykka.ActorRef[Any], watcher: Watcher) -> None:
        """Tell `watcher` when `ref` has ended; see the function of that name."""
        new = _Watch(ref, watcher)
        if self.end.done:
            new(self.end)
        elif self._watches.setdefault(_identity(watcher), new) is new:
            if len(self._watches) >= self._sweep_at:
                self._sweep()
            self.end.add_done_callback(new)

    def unwatch(self, watcher: Watcher) -> bool:
        """End a watch; see the function of that name."""
        old = self._watches.pop(_identity(watcher), None)
        if old is None:
            return False
        self.end._forget(old)
        return old.disarm()

    def _sweep(self) -> None:
        """Forget watchers that have ended themselves, so that their number stays bounded."""
        for watch in list(self._watches.values()):
            if isinstance(watch.watcher, pykka.ActorRef) and not watch.watcher.is_alive():
                self.unwatch(watch.watcher)
        self._sweep_at = 2 * len(self._watches) + 16


def _identity(watcher: Watcher) -> Hashable:
    return watcher.actor_urn if isinstance(watcher, pykka.ActorRef) else watcher


class _Watch:
    """One watcher of one actor. It is called when the actor has ended, and tells the watcher once."""

    __slots__ = ("_armed", "ref", "watcher")

    def __init__(self, ref: pykka.ActorRef[Any], watcher: Watcher) -> None:
        self.ref, self.watcher = ref, watcher
        self._armed = [True]

    def disarm(self) -> bool:
        """Return True to the first caller only, of all threads."""
        try:
            return self._armed.pop()
        except IndexError:
            return False

    def __call__(self, end: ActorFuture[BaseException | None]) -> None:
        if not self.disarm():
            return
        notice = ActorDied(self.ref, end.get())
        try:
            if isinstance(self.watcher, pykka.ActorRef):
                self.watcher.tell(notice)
            else:
                self.watcher(notice)
        except pykka.ActorDeadError:
            logger.debug("%s ended before it could be told that %s had", self.watcher, self.ref)
        except BaseException:  # an error of the watcher must not reach the watched actor
            logger.exception("%.200r could not be told that %s ended", self.watcher, self.ref)
