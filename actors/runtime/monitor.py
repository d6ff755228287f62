"""Monitoring: `watch` tells when an actor ends, and why.

A `TrioActor` tells by itself. pykka's own actors only set an event, without a word: so for them each loop looks, ten times
a second. Why one failed, it tells the log and its own `on_failure`; from the first `watch` on, it is noted on the way there.
"""

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable
from weakref import WeakSet

import pykka
import trio
from drakkar.actors.runtime.forks import Process, on_fork
from drakkar.actors.runtime.futures import ActorFuture, brief
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import ActorFailed, ConfigError, LoopError

__all__ = ["ActorCrashed", "ActorDied", "Termination", "Watchable", "Watcher", "unwatch", "watch"]

logger = logging.getLogger("drakkar.actors.runtime")

POLL_INTERVAL_S: Final = 0.1
"""How often a loop looks whether pykka's own actors have ended that are watched."""


@dataclass(frozen=True, slots=True)
class ActorDied:
    """The notice that `watch` sends, once, when the actor has ended."""

    ref: pykka.ActorRef[Any]
    reason: BaseException | None
    """The exception with which it failed; None if it was stopped. None too for one of pykka's own actors that had failed
    before it was first watched."""


class ActorCrashed(ActorFailed, pykka.ActorDeadError):
    """The actor failed before or while it handled the message; `__cause__` is the failure."""


Watcher: TypeAlias = pykka.ActorRef[Any] | Callable[[ActorDied], object]


def watch(ref: pykka.ActorRef[Any], watcher: Watcher) -> None:
    """Tell `watcher` once, by an `ActorDied`, when the actor has failed or stopped; at once if it has ended.

    A ref is told by `tell`, even if its inbox is full. A function is called in a loop's thread, or in this one if the
    actor has ended; it must not block. Watching again before the notice changes nothing. From any thread.

    The end of one of pykka's own actors is noticed within 0.1 s, by this thread's loop or the default one, and counts as
    soon as it takes no more messages: its `on_stop` may still be running. Such a watch ends with that loop.

    An actor of another host has this notice too when it is out of reach, and perhaps alive: the reason is a `HostGone` then, an
    `OutcomeUnknown` or another error of the way to it. Watch it again to hear more.

    Raises `ConfigError` for what is no ref, `ForkedError` for an actor that lives in the process that this one was forked
    from, and `LoopError` where the loop that would have to look has ended. For an actor of another host it raises what `tell`
    raises.
    """
    termination = _termination_of(ref)
    if termination is not None:
        termination.watch(ref, watcher)
    else:
        loop = TrioLoop.nearest()
        _pollers.of(loop).watch(ref, watcher, loop)


def unwatch(ref: pykka.ActorRef[Any], watcher: Watcher) -> bool:
    """End a `watch`; return whether there was one whose notice was not sent yet. From any thread."""
    termination = _termination_of(ref)
    if termination is not None:
        return termination.unwatch(watcher)
    # Of each loop: it may have been watched in another thread than this one.
    ended = [poller.unwatch(ref, watcher) for poller in _pollers.all()]
    return any(ended)


def _termination_of(ref: pykka.ActorRef[Any]) -> "Watchable | None":
    """Return where an actor tells of its end; None for pykka's own actors of this host, which do not."""
    if not isinstance(ref, pykka.ActorRef):
        raise ConfigError("ref", brief(ref), "watch the ref of an actor")
    if isinstance(elsewhere := getattr(ref, "termination", None), Watchable):
        return elsewhere
    termination = getattr(ref.actor_inbox, "termination", None)
    if not isinstance(termination, Termination):
        return None
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
        """Whether anyone watches who was not told yet."""
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


# -- pykka's own actors ------------------------------------------------------------------------------------------------


class _Polled:
    """One of pykka's own actors, and those who wait for its end."""

    __slots__ = ("ref", "termination")

    def __init__(self, ref: pykka.ActorRef[Any]) -> None:
        self.ref, self.termination = ref, Termination()

    def publish(self) -> None:
        self.termination.publish(vars(self.ref.actor_stopped).get(_FAILURE))


class _Poller:
    """Looks, on one loop, whether actors have ended that do not tell of it. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._polled: dict[str, _Polled] = {}
        """By the actor's urn."""
        self._runs = False
        on_fork(self)

    def watch(self, ref: pykka.ActorRef[Any], watcher: Watcher, loop: TrioLoop) -> None:
        """See the function of that name; `loop` is the one that looks."""
        _note_failure(ref)
        if ref.actor_stopped.is_set():
            ended = _Polled(ref)
            ended.publish()
            ended.termination.watch(ref, watcher)
            return
        with self._lock:
            self._polled.setdefault(ref.actor_urn, _Polled(ref)).termination.watch(ref, watcher)
            starts, self._runs = not self._runs, True
        if starts:
            self._start(loop)

    def _start(self, loop: TrioLoop) -> None:
        try:
            loop.spawn(self._run, name="ends of pykka's actors")
        except LoopError:
            with self._lock:
                self._runs = False
                self._polled.clear()
            raise

    def unwatch(self, ref: pykka.ActorRef[Any], watcher: Watcher) -> bool:
        """See the function of that name."""
        with self._lock:
            polled = self._polled.get(ref.actor_urn)
            if polled is None:
                return False
            ended = polled.termination.unwatch(watcher)
            if not polled.termination.watched:
                del self._polled[ref.actor_urn]
            return ended

    async def _run(self) -> None:
        while True:
            await trio.sleep(POLL_INTERVAL_S)
            for each in self._take_ended():
                each.publish()
            with self._lock:
                if not self._polled:
                    self._runs = False
                    return

    def _take_ended(self) -> list[_Polled]:
        with self._lock:
            ended = [each for each in self._polled.values() if each.ref.actor_stopped.is_set()]
            for each in ended:
                del self._polled[each.ref.actor_urn]
        return ended

    def _let_go_in_child(self) -> None:
        """A forked child has none of the loops that look; and a thread that is gone may hold the lock."""
        self._lock = threading.Lock()
        self._polled.clear()


class _Pollers:
    """Those of all loops, each of which holds its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: WeakSet[_Poller] = WeakSet()
        on_fork(self)

    def of(self, loop: TrioLoop) -> _Poller:
        with self._lock:
            if loop.poller is None:
                loop.poller = _Poller()
                self._all.add(loop.poller)
            assert isinstance(loop.poller, _Poller)
            return loop.poller

    def all(self) -> list[_Poller]:
        with self._lock:
            return list(self._all)

    def _let_go_in_child(self) -> None:
        self._lock = threading.Lock()


_pollers: Final = _Pollers()

_FAILURE: Final = "drakkar failure"
"""With what one of pykka's own actors has failed: an attribute of its `actor_stopped`, which all its refs share."""


def _note_failure(ref: pykka.ActorRef[Any]) -> None:
    """Have one of pykka's own actors note with what it fails: pykka itself tells only the log."""
    find: Callable[[], pykka.Actor | None] | None = getattr(ref, "_actor_weakref", None)
    if find is None:  # of another host
        return
    actor = find()
    if actor is None or "_handle_failure" in vars(actor):
        return
    kind, stopped = type(actor), ref.actor_stopped

    def note(
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Before pykka sets the event: then it is known why. An `on_failure` may fail after that.
        vars(stopped).setdefault(_FAILURE, exception_value)
        failed = find()
        if failed is not None:
            kind._handle_failure(failed, exception_type, exception_value, traceback)

    vars(actor)["_handle_failure"] = note
