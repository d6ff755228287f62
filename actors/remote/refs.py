"""References to actors of other hosts. They are used like pykka's own, and travel in messages."""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import pykka
from drakkar.actors.remote.records import Attributes
from drakkar.actors.runtime.futures import ActorFuture, forbid_waiting
from drakkar.actors.runtime.monitor import Termination, Watcher

if TYPE_CHECKING:
    from drakkar.actors.remote.proxies import RemoteProxy

__all__ = ["DEFAULT_ASK_S", "Place", "RemoteRef"]

DEFAULT_ASK_S: Final = 10.0
"""The deadline of a call that names none, in seconds."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor lives: in one run of one host, under a number that it alone has."""

    address: str
    run: int
    """The nonce of the run, which no other run of any host has."""
    number: int


class Caller(Protocol):
    """What sends the messages of references: see `calls.Calls`. From any thread."""

    def tell(self, ref: "RemoteRef", message: Any) -> None:
        """Send a message that has no answer. Raises `pykka.ActorDeadError`, `SystemBusy` and `ValueRefused`."""

    def ask(self, ref: "RemoteRef", message: Any, timeout: float | None) -> ActorFuture[Any]:
        """Send a message, and return the future of its answer."""
        ...

    def answer_of(self, ref: "RemoteRef", future: ActorFuture[Any], timeout: float | None) -> Any:
        """Wait for the answer to a question of `ask`."""

    def watch(self, ref: "RemoteRef") -> None:
        """Have the reference's `end` set when its actor has ended, or its host is lost."""

    def unwatch(self, ref: "RemoteRef") -> None:
        """Nobody watches any more."""


class _NoActor:
    """The class of an actor that lives elsewhere, as far as it is known here: its name."""


class RemoteRef(pykka.ActorRef[Any]):
    """A reference to an actor of another host. Its methods may be called from any thread, and those that do not wait from the loop.

    Two references to one actor are equal. It refers to that actor alone, and not to one that is published under the name later:
    `NodeHost.remote` finds that. Not for `pickle`: send it in a message, or keep the name.
    """

    def __init__(
        self, caller: Caller, place: Place, *, name: str = "", class_name: str = "", attributes: Attributes | None = None
    ) -> None:
        # Not pykka's constructor, which takes the actor.
        self._caller, self.place = caller, place
        self.name = name
        """The name under which it was found, empty for one that came in a message without one."""
        self.attributes: Attributes = attributes or {}
        """What a proxy reaches."""
        self.actor_class = type(class_name or "Actor", (_NoActor,), {})  # type: ignore[assignment]
        self.actor_urn = f"urn:drakkar:{place.run:x}:{place.number:x}"
        self.actor_stopped = threading.Event()
        self.termination = RemoteTermination(self)

    def __repr__(self) -> str:
        return f"<RemoteRef {self}>"

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"{self.actor_class.__name__}{name} at {self.place.address}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteRef) and self.actor_urn == other.actor_urn

    def __hash__(self) -> int:
        return hash(self.actor_urn)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self} cannot be pickled: send it in a message, or keep its name and address")

    def is_alive(self) -> bool:
        """Return False where it is known that the actor has ended: a watch, or an answer, has told it. Never asks."""
        return not self.actor_stopped.is_set()

    def tell(self, message: Any) -> None:
        """Send a message that has no answer, at most once. Never blocks.

        Raises `pykka.ActorDeadError` if the actor is known to have ended, `SystemBusy` if too much waits for its host,
        and `ValueRefused` for a message that cannot be sent. What is lost on the way is not told: `watch` the actor, or ask.
        """
        self._caller.tell(self, message)

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send a message, at most once, and wait for the answer; with `block=False`, return an `ActorFuture` of it.

        `timeout`: seconds until the deadline, which each question has: 10 by default.

        Raises as `tell` does; what the actor raised, as the same type where that is registered, else as `RemoteError`;
        `HostGone` where the message has not left this host, so that it surely had no effect; `AnswerTimeout` at the deadline, and
        `OutcomeUnknown` where the connection is lost: the message may have been handled. Raises `DeadlockError` where it would block
        the thread of a loop.
        """
        if block:
            forbid_waiting(f"ask() of {self}", "use ask(…, block=False), and await the future or give it a callback")
        future = self._caller.ask(self, message, timeout)
        return self._caller.answer_of(self, future, timeout) if block else future

    def stop(self, *, block: bool = True, timeout: float | None = None) -> NoReturn:
        """Not for other hosts. Raises `TypeError`."""
        del block, timeout
        raise TypeError(f"{self} lives at another host, which alone may stop it: send it a message that has it stop")

    def proxy(self) -> "RemoteProxy":  # type: ignore[override]
        """Return a proxy: `proxy.deposit("ann", 5).get()`. It reaches what was published with `proxy=…`, and nothing else.

        Raises `pykka.ActorDeadError` if the actor is known to have ended, and `TypeError` where nothing was published for proxies.
        """
        from drakkar.actors.remote.proxies import RemoteProxy  # proxies are made of references

        return RemoteProxy(self)


class RemoteTermination:
    """The end of a remote actor, as its watchers are told of it.

    Where the connection is lost, they are told that, once: whether the actor lives is not known then. Whoever watches again
    after that is told of what comes.
    """

    def __init__(self, ref: RemoteRef) -> None:
        self._ref = ref
        self._lock = threading.Lock()
        self._watched: Termination | None = None
        self._ended: Termination | None = None

    def watch(self, ref: pykka.ActorRef[Any], watcher: Watcher) -> None:
        """See `monitor.watch`."""
        with self._lock:
            termination, first = self._ended or self._watched, False
            if termination is None:
                termination, first = Termination(), True
                self._watched = termination
        termination.watch(ref, watcher)
        if first:
            self._ref._caller.watch(self._ref)

    def unwatch(self, watcher: Watcher) -> bool:
        """See `monitor.unwatch`."""
        with self._lock:
            termination = self._watched
        if termination is None or not termination.unwatch(watcher):
            return False
        with self._lock:
            idle = self._watched is termination and not termination.watched
            if idle:
                self._watched = None
        if idle:
            self._ref._caller.unwatch(self._ref)
        return True

    def lost(self, reason: BaseException) -> None:
        """Tell the watchers that the actor is out of reach, which it may be for a while only."""
        with self._lock:
            termination, self._watched = self._watched, None
        if termination is not None:
            termination.publish(reason)

    def ended(self, reason: BaseException | None) -> None:
        """The actor has ended: tell the watchers, and all that come later."""
        with self._lock:
            if self._ended is not None:
                return
            self._ended = termination = self._watched or Termination()
            self._watched = None
        self._ref.actor_stopped.set()
        termination.publish(reason)
