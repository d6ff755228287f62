"""Who is told of a host's events: actors by a message, functions by a call."""

import inspect
import reprlib
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import pykka
from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.signature import fault_in

__all__ = ["Subscriber", "Subscribers"]

Subscriber: TypeAlias = "pykka.ActorRef[Any] | pykka.ActorProxy[Any] | Callable[[Any], object]"
"""An actor's ref or proxy, or a function that takes an event."""

_repr: Final = reprlib.Repr()
_repr.maxother = 200
"""Characters of a value in an error or a log line: where an object is in memory, too."""

_REMEDY: Final = "subscribe an actor's ref, an actor's proxy, or a plain function that takes an event"


class Subscribers:
    """The subscribers of one host, each of which is told once of each event. From any thread."""

    def __init__(self, counters: Counter[str], lines: Lines) -> None:
        """`counters` are the host's: events that could not be told, and functions that raised, are counted there."""
        self._counters, self._lines = counters, lines
        self._lock = threading.Lock()
        self._all: tuple[pykka.ActorRef[Any] | Callable[[Any], object], ...] = ()

    def add(self, subscriber: Subscriber) -> None:
        """Tell `subscriber` of all events from now on. To add it again changes nothing. Raises `TypeError`."""
        target = _checked(subscriber)
        with self._lock:
            if not any(_same(target, other) for other in self._all):
                self._all = (*self._all, target)

    def remove(self, subscriber: Subscriber) -> bool:
        """Tell `subscriber` no more; return whether it was told so far. Raises `TypeError` as `add` does."""
        return self._drop(_checked(subscriber))

    def _drop(self, target: object) -> bool:
        with self._lock:
            before = self._all
            self._all = tuple(other for other in before if not _same(target, other))
            return len(self._all) < len(before)

    def tell(self, event: object) -> None:
        """Tell all subscribers. Never raises: an actor that cannot take the event is told no more."""
        for target in self._all:
            if isinstance(target, pykka.ActorRef):
                self._send(target, event)
            else:
                self._call(target, event)

    def _send(self, ref: pykka.ActorRef[Any], event: object) -> None:
        try:
            ref.tell(event)
        except Exception as error:  # noqa: BLE001  # ActorDeadError, SystemBusy, or of a class of the application's own
            self._counters["events lost"] += 1
            self._drop(ref)
            self._lines.warning("%s is told no more events: %s", ref, error)

    def _call(self, function: Callable[[Any], object], event: object) -> None:
        try:
            function(event)
        except BaseException:  # noqa: BLE001  # logged; even a SystemExit must not end a replica
            self._counters["subscribed functions failed"] += 1
            self._lines.exception("a subscribed function failed: %s(%s)", _repr.repr(function), event)


def _checked(subscriber: object) -> pykka.ActorRef[Any] | Callable[[Any], object]:
    """Return what is to be told in the end. Raises `TypeError`, which names the value and the remedy."""
    if isinstance(subscriber, pykka.ActorRef):
        return subscriber
    if isinstance(subscriber, pykka.ActorProxy):
        return subscriber.actor_ref
    if isinstance(subscriber, type):
        raise _refusal(subscriber, "is a class: start the actor, and subscribe its ref")
    if isinstance(subscriber, pykka.Actor):
        raise _refusal(subscriber, "is the actor itself: subscribe its actor_ref")
    if isinstance(subscriber, pykka.CallableProxy):
        raise _refusal(
            subscriber, "is a method of a proxy: subscribe the ref, and handle events in on_receive"
        )
    if not callable(subscriber):
        raise _refusal(subscriber, f"cannot be told of events: {_REMEDY}")
    if _is_async(subscriber) or _is_async(type(subscriber).__call__):
        raise _refusal(
            subscriber, "returns a coroutine, which nothing would await: subscribe a plain function"
        )
    fault = fault_in(subscriber, "subscriber(event)")
    if fault is not None:
        raise _refusal(subscriber, f"cannot be told of events: {fault}")
    return subscriber


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _refusal(subscriber: object, why: str) -> TypeError:
    return TypeError(f"subscriber={_repr.repr(subscriber)} {why}")


def _same(one: object, other: object) -> bool:
    if isinstance(one, pykka.ActorRef) and isinstance(other, pykka.ActorRef):
        return one.actor_urn == other.actor_urn
    return bool(one == other)
