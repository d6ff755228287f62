"""`Inbox`: what waits for an actor that lives on a `TrioLoop`, and how its askers are answered.

An inbox has lanes, which share one schedule: whichever lane something comes into, the actor gets one turn for all.

    completions   what came of work that the actor ordered: never refused, as each place is reserved when the work is
                  ordered, and taken before all else
    the queue     messages, one by one; at most `capacity`
    further ones  as many `Lane`s as an actor adds: taken many at once, by the actor, in `after_batch`
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import pykka
from drakkar.actors.runtime.forks import here, on_fork
from drakkar.actors.runtime.futures import ActorFuture, AnswerLater
from drakkar.actors.runtime.letters import PeerNews
from drakkar.actors.runtime.monitor import ActorDied, Termination
from drakkar.handlers.errors import AlreadySet, ConfigError, SystemBusy
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

__all__ = ["MAX_NEWS", "Inbox", "Lane", "Request", "ask_to_stop", "question", "reply", "reply_error"]

logger = logging.getLogger("drakkar.actors.runtime")

_ALWAYS_TAKEN: Final = frozenset({_ActorStop, ActorDied, PeerNews})
"""What the queue takes even when it is full; all are at most as many as there are actors, askers and peers."""
MAX_NEWS: Final = 64
"""Messages for which a full queue has room when they are put last: as many peers as a shard rarely has."""


class Inbox:
    """The messages that wait for an actor, and what lasts of the actor when it has ended.

    Any thread may put, complete and wake; only the loop's takes. (While several threads put at once, each of them may
    go over the bound by one.)
    """

    __slots__ = (
        "__weakref__",
        "_give_turn",
        "_scheduled",
        "begun",
        "capacity",
        "closed",
        "completions",
        "outstanding",
        "owner",
        "process",
        "queue",
        "refused",
        "termination",
        "woken",
    )

    def __init__(self, owner: str, capacity: int) -> None:
        """`owner` names the actor in errors; `capacity` is how many messages may wait in the queue.

        Raises `ConfigError` for a capacity below 1.
        """
        if capacity < 1:
            raise ConfigError(
                f"{owner}.inbox_capacity", capacity, "an actor needs room for at least one message"
            )
        self.owner = owner
        self.process = here.process
        """The process whose loop empties it."""
        self.capacity = capacity
        self.queue: deque[Envelope[Any]] = deque()
        self.completions: deque[Any] = deque()
        """What came of work that the actor ordered. As many as `outstanding`, at most, so the orders bound it."""
        self.outstanding = 0
        """Pieces of work that the actor ordered, and of which it has not heard. For the loop's thread."""
        self.refused = 0
        """Messages that found the queue full."""
        self.begun = False
        """The actor's `on_start` was called."""
        self.closed = False
        self.woken = False
        """`after_batch` is to run in the next turn, even if no message waits."""
        self.termination = Termination()
        self._give_turn: Callable[[], None] | None = None
        self._scheduled = True  # as if, until `open`
        on_fork(self)

    def __len__(self) -> int:
        """How many messages and completions wait."""
        return len(self.queue) + len(self.completions)

    def __repr__(self) -> str:
        return f"<Inbox of {self.owner}: {len(self.queue)} of {self.capacity}>"

    # -- for any thread -----------------------------------------------------------------------------------------

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message, and see to it that the actor gets a turn. Never blocks.

        Raises `SystemBusy` if the queue is full, `pykka.ActorDeadError` if the actor has ended, and `ForkedError` if it
        lives in the process that this one was forked from; a question gets the latter two by its future instead.
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

    def put_last(self, envelope: Envelope[Any]) -> None:
        """Add a message behind all that wait, as `put` does, though the queue is full: then for up to `MAX_NEWS` of them.

        For news that is rare, told once, and must not come before older messages, as a completion would.
        """
        if len(self.queue) < self.capacity:
            self.put(envelope)
            return
        if len(self.queue) >= self.capacity + MAX_NEWS:
            self.refused += 1
            raise SystemBusy(
                f"{self.owner} has not taken {len(self.queue)} messages yet, so there is no room for news either"
            )
        self.queue.append(envelope)
        if not self._scheduled:
            self._schedule()
        if self.closed:  # as in `put`
            self._take_back(envelope)

    def put_first(self, envelope: Envelope[Any]) -> None:
        """Add a message before all that wait. Never refused, so only for what comes once, as a stop does."""
        self.queue.appendleft(envelope)
        if not self._scheduled:
            self._schedule()
        if self.closed:  # as in `put`
            self._take_back(envelope)

    def complete(self, completion: Any) -> None:
        """Tell the actor what came of work that it ordered. Never refused, and never blocks.

        Its place was reserved by `reserve` when the work was ordered. A completion for an actor that has ended is dropped.
        """
        self.completions.append(completion)
        if not self._scheduled:
            self._schedule()
        if self.closed:  # as in `put`
            self._drop_completions()

    def wake(self) -> None:
        """Have `after_batch` run in a turn soon, though no message may wait."""
        self.woken = True
        if not self._scheduled:
            self._schedule()

    def wake_after(self, future: ActorFuture[Any]) -> ActorFuture[Any]:
        """Call `wake` when the future is set, in whichever thread that is. Returns the future."""
        future.add_done_callback(lambda _: self.wake())
        return future

    # -- for pykka's own loop, which a `TrioActor` does not use -----------------------------------------------------

    def get(self) -> Envelope[Any]:
        """Take the oldest message. Raises `queue.Empty`."""
        try:
            return self.queue.popleft()
        except IndexError:
            raise queue.Empty from None

    def empty(self) -> bool:
        """Tell whether no message waits."""
        return not self.queue

    # -- for the loop's thread ----------------------------------------------------------------------------------

    def reserve(self) -> None:
        """Reserve the place of a completion, before work is ordered that is completed once."""
        self.outstanding += 1

    def release(self) -> None:
        """Give a reserved place back: the work is done, or was not ordered after all."""
        self.outstanding -= 1
        assert self.outstanding >= 0, f"{self.owner} was told of more work than it had ordered"

    def take_completion(self) -> Any:
        """Take the oldest completion, and give its place back."""
        self.release()
        return self.completions.popleft()

    def dropped(self, message: Any) -> None:
        """Take note of a message or a completion that came too late: the actor has ended. Called in any thread.

        For an inbox whose messages hold something that is to be let go. This one does nothing.
        """

    def open(self, owner: str, give_turn: Callable[[], None]) -> None:
        """Give the actor its first turn, and one from now on whenever something comes in.

        `give_turn` is called by the threads that put, and by the loop's.
        """
        self.owner = owner
        self._give_turn = give_turn
        self._schedule()

    def rest(self) -> None:
        """End a turn."""
        if self._waits():
            self._schedule()
            return
        self._scheduled = False
        # A thread that put something meanwhile may have seen it scheduled still.
        if self._waits() and not self._scheduled:
            self._schedule()

    def _waits(self) -> bool:
        return bool(self.queue or self.completions or self.woken)

    def _schedule(self) -> None:
        self._scheduled = True
        give_turn = self._give_turn
        if give_turn is not None:
            give_turn()

    def close(self) -> None:
        """Take no more messages, and drop the completions."""
        self.closed = True
        self._scheduled = True  # as if: there are no more turns
        self._give_turn = None
        self._drop_completions()

    def _let_go_in_child(self) -> None:
        """Take nothing in a forked child: what waits here waits for the parent's actor."""
        self.queue, self.completions = deque(), deque()
        self.closed = self._scheduled = True
        self._give_turn = None

    def _drop_completions(self) -> None:
        while True:
            try:
                completion = self.completions.popleft()
            except IndexError:
                return
            self.dropped(completion)

    def _take_back(self, envelope: Envelope[Any]) -> None:
        try:
            self.queue.remove(envelope)
        except ValueError:
            return  # the actor found it, and saw to it
        error: Exception = pykka.ActorDeadError(f"{self.owner} has ended")
        if self.process is not here.process:
            error = self.process.error(self.owner)
        if envelope.reply_to is None:
            raise error
        reply_error(envelope.reply_to, error)


class Request(Protocol):
    """What waits in a `Lane`."""

    @property
    def future(self) -> ActorFuture[Any]:
        """Gets the answer, or why there is none."""

    @property
    def deadline(self) -> float:
        """In seconds of the clock that is given to `expire`."""

    @property
    def count(self) -> int:
        """How much of the lane's `max_count` it takes."""

    @property
    def size(self) -> int:
        """How many of the lane's `max_bytes` it takes."""


R = TypeVar("R", bound=Request)


class Lane(Generic[R]):
    """A lane of an inbox for requests, which are refused by their futures: any thread puts, the loop takes many at once.

    It has bounds of its own, so that however much clients ask, messages of other hosts find room in the queue.
    """

    def __init__(self, inbox: Inbox, unit: str, *, max_count: int, max_bytes: float = float("inf")) -> None:
        """`unit` is what `max_count` counts, in errors. A request that exceeds a bound alone may wait alone."""
        self._inbox, self._unit = inbox, unit
        self._max_count, self._max_bytes = max_count, max_bytes
        self._lock = threading.Lock()
        self._waiting: list[R] = []
        self._count = self._bytes = 0
        self._closed: Exception | None = None
        self.refused = 0
        """Requests that found it full."""
        on_fork(self)

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def put(self, request: R) -> None:
        """Add a request, and wake the actor if it does not know of any. Never blocks; a refusal goes to the future."""
        with self._lock:
            waiting = self._waiting
            count = self._count + request.count
            size = self._bytes + request.size
            refusal = self._closed
            if refusal is None and waiting and (count > self._max_count or size > self._max_bytes):
                refusal = self._busy()
            if refusal is None:
                waiting.append(request)
                self._count, self._bytes = count, size
                first = len(waiting) == 1
        if refusal is not None:
            request.future.try_fail(refusal)
        elif first:
            self._inbox.wake()

    def _busy(self) -> SystemBusy:
        self.refused += 1
        held, bounds = f"{self._count} {self._unit}", f"{self._max_count} {self._unit}"
        if self._max_bytes < float("inf"):
            held, bounds = f"{held} of {self._bytes} bytes", f"{bounds} and {self._max_bytes} bytes"
        return SystemBusy(
            f"{held} wait for {self._inbox.owner}, which takes up to {bounds}: wait a little and try again"
        )

    def take(self, max_count: float = float("inf"), max_bytes: float = float("inf")) -> list[R]:
        """Take all that wait, or the oldest of them within these bounds, but at least one. In the loop's thread.

        Where some are left, the actor gets another turn for them, after others have had theirs.
        """
        if not self._waiting:
            return []
        with self._lock:
            if self._count <= max_count and self._bytes <= max_bytes:
                taken, self._waiting = self._waiting, []
                self._count = self._bytes = 0
                return taken
            taken = self._take_oldest(max_count, max_bytes)
        if self._waiting:
            self._inbox.wake()
        return taken

    def _take_oldest(self, max_count: float, max_bytes: float) -> list[R]:
        count = size = number = 0
        for request in self._waiting:
            count += request.count
            size += request.size
            if number and (count > max_count or size > max_bytes):
                count -= request.count
                size -= request.size
                break
            number += 1
        taken, self._waiting = self._waiting[:number], self._waiting[number:]
        self._count -= count
        self._bytes -= size
        return taken

    def expire(self, now: float, error: Exception) -> None:
        """Fail those whose deadline has passed with `error`: the actor never took them. In the loop's thread."""
        if not self._waiting:
            return
        with self._lock:
            late = [request for request in self._waiting if request.deadline <= now]
            if late:
                self._waiting = [request for request in self._waiting if request.deadline > now]
                self._count = sum(request.count for request in self._waiting)
                self._bytes = sum(request.size for request in self._waiting)
        for request in late:
            request.future.try_fail(error)

    def close(self, error: Exception) -> None:
        """Fail those that wait, and all that come, with `error`: the actor never took them."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._closed = error
        for request in waiting:
            request.future.try_fail(error)

    def _let_go_in_child(self) -> None:
        """Refuse all in a forked child: what waits here waits for the parent's actor."""
        self._lock, self._waiting = threading.Lock(), []
        self._closed = self._inbox.process.error(self._inbox.owner)


def reply(future: pykka.Future[Any], answer: Any) -> None:
    """Give an asker its answer, unless it has one already; an `AnswerLater` when that is set."""
    if type(answer) is AnswerLater:
        answer.add_done_callback(partial(_pass_on, future))
        return
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


def _pass_on(future: pykka.Future[Any], answer: ActorFuture[Any]) -> None:
    value, error = answer.outcome()
    if error is None:
        reply(future, value)
    else:
        reply_error(future, cast("Exception", error))


def question(ref: pykka.ActorRef[Any], message: Any, *, first: bool = False) -> ActorFuture[Any]:
    """Ask any actor of this process, one of pykka's own too; the future calls back, and can be awaited. Never waits.

    `first`: before all that waits in its inbox. One of pykka's own that ends at this very moment may leave the question
    without an answer, so watch it as well. The future fails with `pykka.ActorDeadError` if the actor has ended, and with
    `SystemBusy` if its inbox is full.
    """
    answer: ActorFuture[Any] = ActorFuture()
    if not ref.is_alive():
        answer.fail(pykka.ActorDeadError(f"{ref} has ended"))
        return answer
    envelope = Envelope(message, reply_to=answer)
    try:
        if first:
            _put_first(ref.actor_inbox, envelope)
        else:
            ref.actor_inbox.put(envelope)
    except SystemBusy as error:
        answer.try_fail(error)
    return answer


def ask_to_stop(ref: pykka.ActorRef[Any], *, first: bool = False) -> ActorFuture[Any]:
    """Ask any actor of this process to stop, as `question` asks. The future is set when its `on_stop` has returned.

    `first`: it handles none of the messages that wait.
    """
    return question(ref, _ActorStop(), first=first)


def _put_first(inbox: Any, envelope: Envelope[Any]) -> None:
    if isinstance(inbox, Inbox):
        inbox.put_first(envelope)
    elif isinstance(inbox, queue.Queue):  # as pykka's own actors have it, which has no method for this
        with inbox.mutex:
            inbox.queue.appendleft(envelope)
            inbox.unfinished_tasks += 1
            inbox.not_empty.notify()
    else:
        inbox.put(envelope)
