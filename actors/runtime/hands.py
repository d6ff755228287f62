"""`Hands`: what an actor on a loop does for others that it starts and stops. Nothing in it waits."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pykka
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.inbox import ask_to_stop
from drakkar.actors.runtime.launching import abandon, launch_in_thread
from drakkar.actors.runtime.monitor import unwatch, watch

__all__ = ["Hands"]

T = TypeVar("T")


class Hands(ABC, Generic[T]):
    """Does for an `Incarnation` what takes an actor, a loop or a thread. Its owner has a turn when a future of it is set."""

    def __init__(self, owner: TrioActor) -> None:
        self._actor, self._inbox, self._loop = owner.actor_ref, owner.actor_inbox, owner.actor_loop

    @abstractmethod
    def start(self, what: T, /) -> ActorFuture[pykka.ActorRef[Any]]:
        """Begin to start an actor; the future has its ref once it runs. See `launch`."""

    def launch(
        self,
        make: Callable[[], pykka.ActorRef[Any]],
        name: str,
        timeout: float,
        publish: Callable[[pykka.ActorRef[Any]], object] | None,
    ) -> ActorFuture[pykka.ActorRef[Any]]:
        """Begin to start an actor, as `launch_in_thread` does; `leave` takes back what `publish` did."""
        return self._inbox.wake_after(
            launch_in_thread(make, name=name, loop=self._loop, timeout=timeout, then=publish, undo=self.leave)
        )

    def abandon(self, started: ActorFuture[pykka.ActorRef[Any]]) -> None:
        """Stop what comes of a start, which is not waited for any longer."""
        abandon(started, self.leave)

    def stop(self, ref: pykka.ActorRef[Any]) -> ActorFuture[Any]:
        """Ask it to stop; the future is set when it has, also where that failed."""
        return self._inbox.wake_after(ask_to_stop(ref))

    @abstractmethod
    def leave(self, ref: pykka.ActorRef[Any]) -> None:
        """It is not waited for any longer: take away the name under which others find it. In any thread."""

    def watch(self, ref: pykka.ActorRef[Any]) -> None:
        """Have the owner told when it has ended."""
        watch(ref, self._actor)

    def unwatch(self, ref: pykka.ActorRef[Any]) -> None:
        """End a `watch`."""
        unwatch(ref, self._actor)

    def tell(self, level: int, text: str, *args: object) -> None:
        """Write a line into the log."""
        self._loop.lines.log(level, text, *args)
