"""`Inbox`: what waits for an actor that lives on a `TrioLoop`, and how its askers are answered."""

import logging
import queue
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import pykka
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.monitor import ActorDied, Termination
from drakkar.handlers.errors import AlreadySet, ConfigError, SystemBusy
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

__all__ = ["Inbox", "reply", "reply_error"]

logger = logging.getLogger(__name__)

_ALWAYS_TAKEN: Final = frozenset({_ActorStop, ActorDied})
"""What an inbox takes even when it is full; both are at most as many as there are actors and askers."""


class Inbox:
    """The messages that wait for an actor, at most `capacity` of them, and what lasts of the actor when it has ended.

    Any thread may put; only the loop's takes. (While several threads put at once, each of them may go over the bound
    by one.)
    """

    __slots__ = (
        "_give_turn",
        "_scheduled",
        "begun",
        "capacity",
        "closed",
        "owner",
        "queue",
        "refused",
        "termination",
    )

    def __init__(self, owner: str, capacity: int) -> None:
        if capacity < 1:
            raise ConfigError(
                f"{owner}.inbox_capacity", capacity, "an actor needs room for at least one message"
            )
        self.owner = owner
        self.capacity = capacity
        self.queue: deque[Envelope[Any]] = deque()
        self.refused = 0
        """Messages that found it full."""
        self.begun = False
        """The actor's `on_start` was called."""
        self.closed = False
        self.termination = Termination()
        self._give_turn: Callable[[], None] | None = None
        self._scheduled = True  # as if, until `open`

    def __len__(self) -> int:
        return len(self.queue)

    def __repr__(self) -> str:
        return f"<Inbox of {self.owner}: {len(self.queue)} of {self.capacity}>"

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message, and see to it that the actor gets a turn. Never blocks.

        Raises `SystemBusy` if it is full, and `pykka.ActorDeadError` if the actor has ended; a question gets the latter
        by its future instead.
        """
        waiting = self.queue
        if len(waiting) >= self.capacity and type(envelope.message) not in _ALWAYS_TAKEN:
            self.refused += 1
            raise SystemBusy(
                f"the inbox of {self.owner} holds {len(waiting)} messages, and its bound is {self.capacity}: "
                "wait a little and send it again, or raise inbox_capacity in the actor's class"
            )
        waiting.append(envelope)
        if not self._scheduled:
            self._schedule()
        # Only now: the actor closes the inbox before it empties it for the last time, so either it sees this message
        # there, or this sees that it is closed.
        if self.closed:
            self._take_back(envelope)

    def get(self) -> Envelope[Any]:
        """Take the oldest message. For pykka's own loop, which a `TrioActor` does not use; raises `queue.Empty`."""
        try:
            return self.queue.popleft()
        except IndexError:
            raise queue.Empty from None

    def empty(self) -> bool:
        """Tell whether nothing waits."""
        return not self.queue

    def open(self, owner: str, give_turn: Callable[[], None]) -> None:
        """Give the actor its first turn, and one from now on whenever something comes in.

        `give_turn` is called by the threads that put, and by the loop's.
        """
        self.owner = owner
        self._give_turn = give_turn
        self._schedule()

    def rest(self) -> None:
        """End a turn. In the loop's thread."""
        if self.queue:
            self._schedule()
            return
        self._scheduled = False
        # Whoever put a message meanwhile may have seen it scheduled still.
        if self.queue and not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        give_turn = self._give_turn
        if give_turn is not None:
            give_turn()

    def close(self) -> None:
        """Take no more messages. In the loop's thread."""
        self.closed = True
        self._scheduled = True  # as if: there are no more turns
        self._give_turn = None

    def _take_back(self, envelope: Envelope[Any]) -> None:
        try:
            self.queue.remove(envelope)
        except ValueError:
            return  # the actor found it, and saw to it
        error = pykka.ActorDeadError(f"{self.owner} has ended")
        if envelope.reply_to is None:
            raise error
        reply_error(envelope.reply_to, error)


def reply(future: pykka.Future[Any], answer: Any) -> None:
    """Give an asker its answer, unless it has one already."""
    try:
        future.set(answer)
    except (AlreadySet, queue.Full):
        logger.debug("an answer came too late for %r", future)


def reply_error(future: pykka.Future[Any], error: Exception, unread: str = "") -> None:
    """Give an asker an exception, unless it has an answer already; `unread` is logged if it is never read."""
    try:
        if isinstance(future, ActorFuture):
            future.fail(error, unread=unread)
        else:
            future.set_exception((type(error), error, error.__traceback__))
    except (AlreadySet, queue.Full):
        logger.debug("an exception came too late for %r", future)
