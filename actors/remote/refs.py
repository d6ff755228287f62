"""References to actors of other hosts. They are used like pykka's own, and travel in messages."""

import threading
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import pykka
from drakkar.actors.remote.errors import HostGone, NotAllowed
from drakkar.actors.remote.proxies import RemoteProxy
from drakkar.actors.remote.questions import Asked
from drakkar.actors.remote.records import Attributes, Target
from drakkar.actors.runtime.forks import here
from drakkar.actors.runtime.futures import forbid_blocking, in_full, this_thread
from drakkar.actors.runtime.monitor import Termination, Watcher

__all__ = ["DEFAULT_ASK_S", "Caller", "Place", "RemoteRef", "RemoteTermination"]

DEFAULT_ASK_S: Final = 10.0
"""The deadline of a call that names none, in seconds."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor lives: in one run of one host, under a number that it alone has."""

    address: str
    """Of the host, in canonical spelling."""
    run: int
    """The nonce of the run, which no other run of any host has."""
    number: int


class Caller(Protocol):
    """What sends for references: see `asking.Asking`. From any thread."""

    def link_to(self, address: str) -> Any:
        """Return the link to a host, which lasts as long as something holds it."""
        ...

    def termination_of(self, place: Place) -> "RemoteTermination":
        """Return what all references to one actor share."""
        ...

    def tell(self, ref: "RemoteRef", message: Any) -> None:
        """Send a message that has no answer."""

    def ask(self, ref: "RemoteRef", message: Any, timeout: float | None) -> Asked:
        """Send a message that has one."""
        ...

    def watch(self, termination: "RemoteTermination") -> None:
        """Have it hear of its actor's end. It has the `watch` of its number from now on. Raises as `tell`."""

    def unwatch(self, termination: "RemoteTermination") -> None:
        """It need not hear of that any more."""


class RemoteActorClass(pykka.Actor):
    """Stands for the class of an actor that lives elsewhere, of which only the name is known here: `RemoteRef.class_name`."""


class RemoteRef(pykka.ActorRef[Any]):
    """A reference to an actor of another host. Its methods may be called from any thread, and those that do not wait from the loop.

    Two references to one actor are equal. It refers to that actor alone, and not to one that is published under the name later:
    `NodeHost.remote` finds that. Not for `pickle`: send it in a message, or keep the name.

    In a process that was forked from the one that has it, its methods raise `ForkedError`, and `is_alive` is False.
    """

    actor_class = RemoteActorClass

    def __init__(
        self,
        caller: Caller,
        place: Place,
        *,
        name: str = "",
        class_name: str = "",
        attributes: Attributes | None = None,
    ) -> None:
        # Not pykka's constructor, which takes the actor.
        self._caller = caller
        self.place = place
        self.name = name
        """The name under which it was published; empty for one that was never."""
        self.class_name = class_name or "Actor"
        """The name of its class."""
        self.attributes: Attributes = attributes or {}
        """What a proxy reaches: what there was when the reference was got."""
        self.undescribed: BaseException | None = None
        """Why it is not known what a proxy reaches."""
        self.target = Target(place.run, place.number)
        self.link = caller.link_to(place.address)
        self.termination = caller.termination_of(place)
        self.actor_urn = f"urn:drakkar:{place.run:x}:{place.number:x}"
        self.actor_stopped = self.termination.stopped

    def __repr__(self) -> str:
        return f"<RemoteRef {self}>"

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"{self.class_name}{name} at {self.place.address}"

    def __eq__(self, other: object) -> bool:
        return self.actor_urn == other.actor_urn if isinstance(other, RemoteRef) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.actor_urn)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self} cannot be pickled: send it in a message, or keep its name and address")

    @property
    def actor_inbox(self) -> NoReturn:  # type: ignore[override]
        """Not here. Raises `AttributeError`."""
        raise AttributeError(f"the inbox of {self} is at its own host: use tell and ask")

    @property
    def _actor_weakref(self) -> NoReturn:  # type: ignore[override]
        # Where a `pykka.ActorProxy` looks for the actor.
        raise AttributeError(f"{self} is at another host: use its proxy(), and not pykka.ActorProxy")

    def is_alive(self) -> bool:
        """Return False where it is known that the actor has ended: a watch, or an answer, has told it. Never asks."""
        return not self.actor_stopped.is_set() and self.termination.process is here.process

    def tell(self, message: Any) -> None:
        """Send a message that has no answer, at most once. Never blocks.

        Raises `pykka.ActorDeadError` if the actor is known to have ended, `SystemBusy` if too much waits for its host,
        `ValueRefused` for a message that cannot be sent, and `HostGone` if the last attempt to reach its host failed, or the host of
        this process has stopped: the message has not left then. What is lost on the way is not told: `watch` the actor, or ask.
        """
        self._caller.tell(self, message)

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send a message, at most once, and wait for the answer; with `block=False`, return an `ActorFuture` of it.

        `timeout`: seconds until the deadline, which each question has: 10 by default.

        Raises as `tell` does; what the actor raised, as the same type where that is registered, else as `RemoteError`;
        `HostGone` where the message has not left this host, so that it surely had no effect; `AnswerTimeout` at the deadline, and
        `OutcomeUnknown` where the connection is lost or the host dead: the message may have been handled. Raises `DeadlockError`
        where it would block the thread of a loop.
        """
        if block and this_thread.loop is not None:  # else its text would cost more than the rest
            forbid_blocking(f"ask() of {self}", "ask(…, block=False)")
        asked = self._caller.ask(self, message, timeout)
        return asked.wait() if block else asked.future

    def stop(self, *, block: bool = True, timeout: float | None = None) -> NoReturn:
        """Not for other hosts. Raises `TypeError`."""
        del block, timeout
        raise TypeError(
            f"{self} lives at another host, which alone may stop it: send it a message that has it stop"
        )

    def proxy(self) -> RemoteProxy:  # type: ignore[override]
        """Return a proxy: `proxy.deposit("ann", 5).get()`. It reaches what was published with `proxy=…`, and nothing else.

        Raises `pykka.ActorDeadError` if the actor is known to have ended, and `TypeError` where nothing was published for proxies. A
        reference of a directory may have been found while the actor's host did not answer, or kept this one out: `HostGone`, `NotAllowed`.
        """
        self.termination.process.check(self)
        if not self.is_alive():
            raise pykka.ActorDeadError(f"{self} has ended")
        if self.undescribed is not None:
            kind = NotAllowed if isinstance(self.undescribed, NotAllowed) else HostGone
            raise kind(
                f"{self} was found, but not what a proxy reaches of it: {in_full(self.undescribed)}. Find it again"
            ) from self.undescribed
        if not self.attributes:
            raise TypeError(
                f"{self} was not published for proxies: publish(…, proxy=True) lets others use its public methods"
            )
        return RemoteProxy(self, self.attributes)


class RemoteTermination:
    """The end of a remote actor, as its watchers are told of it. All references to the actor share it. From any thread.

    Where the connection is lost, or the host dead, the watchers are told that, once: whether the actor lives is not known then. Whoever
    watches again after that is told of what comes.
    """

    def __init__(self, caller: Caller, place: Place) -> None:
        self.place = place
        self.process = here.process
        self.stopped = threading.Event()
        """It is known that the actor has ended."""
        self.watch_number = 0
        """Of the watch at its host; 0: there is none."""
        self._caller = caller
        # What is held may be asked again by the same thread: a watch that cannot be sent is lost at once.
        self._lock = threading.RLock()
        self._watched: Termination | None = None
        """Of the present watch."""
        self._ended: Termination | None = None

    def watch(self, ref: pykka.ActorRef[Any], watcher: Watcher) -> None:
        """See `monitor.watch`. Raises as `RemoteRef.tell`."""
        self.process.check(ref)
        with self._lock:
            ended = self._ended
            if ended is None:
                (self._watched or self._begin()).watch(ref, watcher)
        if ended is not None:
            ended.watch(ref, watcher)

    def _begin(self) -> Termination:
        watched = self._watched = Termination()
        try:
            self._caller.watch(self)
        except BaseException:
            self._watched, self.watch_number = None, 0
            raise
        return watched

    def unwatch(self, watcher: Watcher) -> bool:
        """See `monitor.unwatch`."""
        self.process.check(f"the watch of an actor at {self.place.address}")
        with self._lock:
            watched = self._watched
            if watched is None or not watched.unwatch(watcher):
                return False
            if not watched.watched:
                self._watched = None
                self._caller.unwatch(self)
        return True

    def lost(self, watch: int, reason: BaseException) -> None:
        """The watch of this number is over: tell the watchers that the actor is out of reach, which it may be for a while only."""
        with self._lock:
            if watch != self.watch_number:
                return  # it was over already
            self.watch_number = 0
            termination, self._watched = self._watched, None
        if termination is not None:
            termination.publish(reason)

    def ended(self, reason: BaseException | None) -> None:
        """The actor has ended: tell the watchers, and all that come later."""
        with self._lock:
            if self._ended is not None:
                return
            self._ended = termination = self._watched or Termination()
            self._watched, self.watch_number = None, 0
        self.stopped.set()
        termination.publish(reason)
