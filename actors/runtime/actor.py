"""`TrioActor`: a pykka actor that lives on a `TrioLoop`.

For an application it is a pykka actor: refs, proxies, futures, the registry and `stop_all` are pykka's. But it has no
thread of its own, its inbox is bounded, its futures can be awaited, and its end is always reported. pykka by itself
leaves an asker without an answer when a handler raises `SystemExit` (and then stops every actor of the process), does not
call `on_failure` when `on_start` fails, and loses a question that races with the stop.

Only this file, `inbox` and `monitor` use private parts of pykka; `_check_pykka` names them. What is private here is named
`_actor_…`: applications name methods and attributes of their actors as they like, and `self._answer = 42` must not replace a part of it.
"""

import logging
import os
import threading
import time
from collections import deque
from functools import partial
from importlib import metadata
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeVar, cast

import pykka
from drakkar.actors.runtime.forks import here
from drakkar.actors.runtime.futures import ActorFuture, brief, forbid_blocking, in_full
from drakkar.actors.runtime.inbox import Inbox, reply, reply_error
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorCrashed
from drakkar.actors.runtime.workers import Worker
from drakkar.handlers.errors import ConfigError, LoopError
from pykka import messages
from pykka._envelope import Envelope
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr, _ActorStop

__all__ = ["TrioActor", "TrioActorRef", "launch"]

A = TypeVar("A", bound=pykka.Actor)


def _check_pykka() -> None:
    """Raise `ImportError` for a pykka whose private parts are not those that this file was written for."""
    relied_on: dict[object, str] = {
        pykka.Actor: "_create_actor_inbox _create_future _start_actor_loop _stop _handle_failure _handle_receive",
        pykka.ActorRef: "ask tell stop is_alive proxy",
        pykka.ActorRegistry: "_actor_refs _actor_refs_lock",
        messages: "_ActorStop ProxyCall ProxyGetAttr ProxySetAttr",
        Envelope: "message reply_to",
    }
    for owner, names in relied_on.items():
        for name in names.split():
            if not hasattr(owner, name):
                raise ImportError(
                    f"pykka {metadata.version('pykka')} has no {owner}.{name}, which drakkar's actors are built on: "
                    "install pykka>=4.5,<4.6"
                )


_check_pykka()


_PROXY_MESSAGES: Final = frozenset({ProxyCall, ProxyGetAttr, ProxySetAttr})


class TrioActorRef(pykka.ActorRef[A]):
    """pykka's `ActorRef`, which refuses to block a loop's thread before it does anything else.

    In a process that was forked from the actor's, its methods raise `ForkedError`, and `is_alive` is False.
    """

    actor_inbox: "Inbox"

    def is_alive(self) -> bool:
        """Tell whether the actor lives, in this process."""
        return not self.actor_stopped.is_set() and self.actor_inbox.process is here.process

    def proxy(self) -> pykka.ActorProxy[A]:
        """Return a proxy for the actor. Raises `pykka.ActorDeadError` if it has ended."""
        self.actor_inbox.process.check(self)
        return super().proxy()

    def tell(self, message: Any) -> None:
        """Send a message that has no answer. Never blocks.

        Raises `pykka.ActorDeadError` if the actor has ended, and `SystemBusy` if its inbox is full.
        """
        self.actor_inbox.put(Envelope(message))

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send a message and wait for the answer; with `block=False`, return an `ActorFuture` of it.

        Raises `SystemBusy` if the inbox is full, and `DeadlockError` where it would block the thread of a `TrioLoop`.
        """
        if self.actor_inbox.process is not here.process:
            self.actor_inbox.process.check(self)
        if block:
            forbid_blocking(f"ask() of {self}", "ask(…, block=False)")
        return super().ask(message, block=block, timeout=timeout)

    def stop(self, *, block: bool = True, timeout: float | None = None) -> Any:
        """Ask the actor to stop after what is in its inbox, and wait until it has; as `pykka.ActorRef.stop`.

        Raises `DeadlockError` where it would block the thread of a `TrioLoop`.
        """
        self.actor_inbox.process.check(self)
        if block:
            forbid_blocking(f"stop() of {self}", "stop(block=False)")
        stopped: ActorFuture[bool] = ActorFuture()
        asked = cast("ActorFuture[None]", super().ask(_ActorStop(), block=False))
        asked.add_done_callback(lambda _: stopped.set(asked.outcome()[1] is None))
        return stopped.get(timeout=timeout) if block else stopped


class TrioActor(pykka.Actor):
    """A pykka actor that runs on a `TrioLoop`, together with any number of others.

    Write it as any pykka actor, and never block in it: `await` what takes time in a task (`self.actor_loop.spawn`), or
    leave it to a thread. `start(…, loop=…)` names the loop; without it, actors started by an actor run on the same
    loop, and all others on `TrioLoop.default()`. A constructor of yours must pass `loop` on:

        class Counter(TrioActor):
            def __init__(self, first, **kwargs):
                super().__init__(**kwargs)
                self.value = first

    Everything but the constructor runs in the loop's thread. An exception in answer to a question goes to the asker, and
    the actor goes on. Any other exception ends this actor, and no other: it is logged as an error, counted, and given to
    `on_failure` (after a failing `on_start` or `on_stop` too) and to all who `watch` the actor (see `monitor`). All who
    wait for an answer get an `ActorCrashed` at once.

    A handler that cannot answer yet returns an `AnswerLater`: the asker gets its outcome when that is set.
    """

    inbox_capacity: ClassVar[int] = 10_000
    """Messages that may wait. Further ones are refused: their senders get `SystemBusy`. But an actor can always be stopped,
    and always hears of the end of an actor that it watches."""

    batch: ClassVar[int] = 1_000
    """Messages handled in one turn, at most. A turn ends sooner when 2 ms have passed."""

    actor_loop: TrioLoop
    """The loop it runs on."""

    actor_inbox: Inbox

    # Where a constructor forgets to call ours, pykka's own explanation appears instead of an AttributeError.
    _actor_ref: pykka.ActorRef[Any] = None  # type: ignore[assignment]

    def __init__(
        self, *args: Any, loop: TrioLoop | None = None, inbox: Inbox | None = None, **kwargs: Any
    ) -> None:
        """`inbox` is one with further lanes, for a class that has them; by default a plain one is made."""
        super().__init__(*args, **kwargs)
        if inbox is not None:
            self.actor_inbox = inbox
        if loop is not None and not isinstance(loop, TrioLoop):
            raise ConfigError("loop", brief(loop), "name a TrioLoop, or None for the default one")
        if self.batch < 1:
            raise ConfigError(
                f"{type(self).__name__}.batch", self.batch, "a turn handles at least one message"
            )
        self._actor_ref = TrioActorRef(self)
        self.actor_loop = loop or TrioLoop.nearest()

    def after_batch(self) -> None:
        """Run at the end of each turn, when the messages that waited are handled, and before a stop. For work in bulk.

        `self.actor_inbox.wake()` has it run again in another turn, though no message may wait.
        """

    def outlives(self, error: Exception) -> bool:
        """Tell whether the actor goes on after `error`, raised by a message that has no asker. No, unless a class says so."""
        del error
        return False

    def on_receive(self, message: Any) -> Any:
        """Handle a message that is no proxy's, or a completion. This one logs it as unexpected."""
        self.actor_loop.lines.warning("unexpected message for %s: %s", self, brief(message))

    @classmethod
    def start_actor(cls, *args: Any, **kwargs: Any) -> Self:
        """Start an actor as `start` does, and return the actor itself: for code that serves it in its loop's thread."""
        actor = cls(*args, **kwargs)
        launch(actor)
        return actor

    # How pykka makes and starts an actor

    @classmethod
    def _create_actor_inbox(cls) -> Inbox:
        return Inbox(cls.__name__, cls.inbox_capacity)

    @staticmethod
    def _create_future() -> ActorFuture[Any]:
        return ActorFuture()

    def _start_actor_loop(self) -> None:
        try:
            self.actor_loop._admit(self)
        except LoopError as error:
            self._actor_leave()
            self._actor_publish_end(error, [])
            raise
        self.actor_inbox.open(str(self), partial(self.actor_loop._scheduler.schedule, self))

    # Its turns

    def _actor_take_turn(self, until: float) -> None:
        """Handle what waits: at most a batch of messages, and until the time `until`. In the loop's thread."""
        inbox = self.actor_inbox
        if inbox.closed:
            return
        try:
            if not inbox.begun:
                inbox.begun = inbox.woken = True
                self.on_start()
            if inbox.completions or inbox.queue:
                self._actor_handle_waiting(inbox, until)
            elif inbox.woken:
                self._actor_end_batch()
        except BaseException as error:  # noqa: BLE001  # it ends this actor, and no other
            self._actor_fail(error)
        if not inbox.closed:
            inbox.rest()

    def _actor_handle_waiting(self, inbox: Inbox, until: float) -> None:
        now = time.perf_counter
        completions, waiting = inbox.completions, inbox.queue
        for _ in range(self.batch):
            if completions:
                self.on_receive(inbox.take_completion())
            else:
                self._actor_handle_next(waiting)
                if inbox.closed:
                    return
            if not (completions or waiting) or now() >= until:
                break
        self._actor_end_batch()

    def _actor_handle_next(self, waiting: deque[Envelope[Any]]) -> None:
        envelope = waiting.popleft()
        message = envelope.message
        if type(message) is _ActorStop:
            waiting.appendleft(envelope)  # so that it is answered even if the hook fails
            self._actor_end_batch()
            waiting.remove(envelope)  # another thread may have put a message before it
            self._stop(envelope.reply_to)
        elif envelope.reply_to is None:
            try:
                self._handle_receive(message)
            except Exception as error:
                if not self.outlives(error):
                    raise
        else:
            self._actor_answer(message, envelope.reply_to)
        del envelope, message  # the traceback in `_actor_answer` may hold this frame too

    def _actor_end_batch(self) -> None:
        # Before the lanes are looked at, so that what comes meanwhile wakes the actor again.
        self.actor_inbox.woken = False
        self.after_batch()

    def _handle_receive(self, message: Any) -> Any:
        # One lookup, where pykka makes four `isinstance` checks before the usual case.
        if type(message) in _PROXY_MESSAGES:
            return super()._handle_receive(message)
        return self.on_receive(message)

    def _actor_answer(self, message: Any, reply_to: pykka.Future[Any]) -> None:
        try:
            answer = self._handle_receive(message)
        except Exception as error:  # noqa: BLE001  # it goes to the asker
            self.actor_loop.lines.info("%s answers %s with an exception", self, _what(message), exc_info=True)
            reply_error(reply_to, error, unread=f"{self} answered {_what(message)} with an exception")
            # The error's traceback holds this frame, so this frame must not hold the error's future: the future reports an
            # error that is never read when it is thrown away.
            del reply_to
        except BaseException as error:
            reply_error(reply_to, self._actor_crashed(error, "while it handled the message"))
            del reply_to
            raise
        else:
            reply(reply_to, answer)

    # Its end

    def _stop(self, reply_to: pykka.Future[Any] | None = None) -> None:
        """Stop now, since it was asked to."""
        self._actor_leave()
        reason: BaseException | None = None
        try:
            self.on_stop()
        except BaseException as error:  # noqa: BLE001  # as above
            reason = error
            self._actor_report(error)
        self._actor_publish_end(reason, [] if reply_to is None else [reply_to])

    def _actor_fail(self, error: BaseException) -> None:
        """End, since `error` was raised."""
        self._actor_leave()
        stops = self._actor_refuse_waiting(error)
        self._actor_report(error)
        self._actor_publish_end(error, stops)

    @property
    def _actor_end(self) -> ActorFuture[BaseException | None]:
        return self.actor_inbox.termination.end

    def _actor_leave(self) -> None:
        pykka.ActorRegistry.unregister(self.actor_ref)
        self.actor_stopped.set()
        self.actor_inbox.close()

    def _actor_report(self, error: BaseException) -> None:
        self.actor_loop.failures += 1
        description = type(error), error, error.__traceback__
        try:
            self._handle_failure(*description)
            self.on_failure(*description)
        except BaseException:  # noqa: BLE001  # logged; the actor ends anyway
            self.actor_loop.lines.exception("on_failure of %s failed", self)

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Log why the actor ends. Its registration and inbox are closed already, which pykka's own would do here."""
        del exception_type, traceback
        self.actor_loop.lines.error("%s failed: %s", self, brief(exception_value), exc_info=exception_value)

    def _actor_publish_end(self, reason: BaseException | None, stops: list[pykka.Future[Any]]) -> None:
        stops += self._actor_refuse_waiting(reason)
        self.actor_loop._forget(self)
        self.actor_inbox.termination.publish(reason)
        for stopped in stops:
            reply(stopped, None)

    def _actor_refuse_waiting(self, reason: BaseException | None) -> list[pykka.Future[Any]]:
        """Empty the closed inbox, and answer all askers in it. Return the futures of those who asked for the stop."""
        waiting = self.actor_inbox.queue
        stops: list[pykka.Future[Any]] = []
        lost = 0
        while waiting:
            try:
                envelope = waiting.popleft()
            except IndexError:  # its sender took it back
                break
            self.actor_inbox.dropped(envelope.message)
            if envelope.reply_to is None:
                lost += type(envelope.message) is not _ActorStop
            elif type(envelope.message) is _ActorStop:
                stops.append(envelope.reply_to)
            else:
                reply_error(envelope.reply_to, self._actor_unanswered(reason))
        if lost:
            self.actor_loop.dead_letters += lost
            self.actor_loop.lines.log(
                logging.INFO if reason is None else logging.WARNING, "%s ended before %d messages", self, lost
            )
        return stops

    def _actor_unanswered(self, reason: BaseException | None) -> Exception:
        if reason is None:
            return pykka.ActorDeadError(f"{self.actor_ref} stopped before handling the message")
        error = self._actor_crashed(reason, "before it handled the message")
        error.outcome_known = True  # surely no effect
        return error

    def _actor_crashed(self, cause: BaseException, when: str) -> ActorCrashed:
        error = ActorCrashed(f"{self.actor_ref} failed {when}: {in_full(cause)}")
        error.__cause__ = cause
        return error


def launch(actor: TrioActor) -> None:
    """Start an actor that its constructor has made. Raises `LoopError` if its loop does not run."""
    pykka.ActorRegistry.register(actor.actor_ref)
    actor._start_actor_loop()


def _forget_actors_of_parent() -> None:
    """Take our actors out of pykka's registry in a forked child, which could never stop them."""
    registry = pykka.ActorRegistry
    registry._actor_refs_lock = threading.RLock()  # a thread that is gone may hold it
    registry._actor_refs[:] = [
        ref for ref in registry._actor_refs if not issubclass(ref.actor_class, TrioActor | Worker)
    ]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_actors_of_parent)


def _what(message: Any) -> str:
    """Name a message for the log, without its content."""
    if type(message) in _PROXY_MESSAGES:
        return f"{type(message).__name__} of {'.'.join(message.attr_path)}"
    return brief(message)
