"""`ActorFuture`: a pykka future that is cheap to make, calls back, and can be awaited from trio and from asyncio.

Every question makes a future, so making and setting one must be cheap: this takes a third of a microsecond, a tenth of
what a `ThreadingFuture` takes. It has no lock. An outcome is stored by a single `dict.setdefault`, which the interpreter
runs as a whole; a thread that waits makes a lock of its own.
"""

import asyncio
import contextlib
import logging
import os
import reprlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias, TypeVar, cast

import pykka
import trio
from drakkar.actors.runtime.forks import here
from drakkar.actors.runtime.waits import Owner, Workers
from drakkar.handlers.checks import check_wait
from drakkar.handlers.errors import AlreadySet, DeadlockError, DrakkarError

__all__ = [
    "ActorFuture",
    "AnswerLater",
    "brief",
    "forbid_blocking",
    "forbid_waiting",
    "forbid_waiting_for",
    "in_full",
    "settle",
    "this_thread",
]

logger = logging.getLogger("drakkar.actors.runtime")

T = TypeVar("T")
J = TypeVar("J")
M = TypeVar("M")
R = TypeVar("R")

ExcInfo: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
Callback: TypeAlias = "Callable[[ActorFuture[Any]], object]"


def brief(value: object) -> str:
    """Describe a value for a log or an error, in bounded length and without printing what it holds."""
    if value is None or isinstance(value, str | bytes | int | float):
        return reprlib.repr(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value!s:.300}"
    return f"a {type(value).__qualname__}"


def in_full(error: BaseException) -> str:
    """Describe an exception with all of its text, for the error of a future. Never raises, whatever `error` does."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as failure:  # noqa: BLE001  # an exception of an application, whose text cannot be read
        return (
            f"{type(error).__name__}, whose text cannot be read, since that raised a {type(failure).__name__}"
        )


class _ThisThread(threading.local):
    """What a future must know of the current thread."""

    loop: Any = None
    """The `TrioLoop` that runs in this thread, or None."""
    owner: Owner | None = None
    """Whose work this thread does: a state machine's, of which other work waits meanwhile."""
    workers: Workers | None = None
    """The pool that this thread belongs to."""
    starts_on: Any = None
    """The `TrioLoop` of the actors that this thread starts, where they name none: see `launching`."""


this_thread: Final = _ThisThread()


def forbid_waiting(what: str, instead: str) -> None:
    """Raise `DeadlockError` in the thread of a `TrioLoop`: while it blocks, none of the loop's actors can answer."""
    if this_thread.loop is not None:
        raise DeadlockError(
            f"{what} would block {this_thread.loop}, whose thread must do what is waited for: {instead}"
        )


def forbid_blocking(what: str, instead: str) -> None:
    """As `forbid_waiting`, for a call that can return a future: `instead` is the call that does."""
    if this_thread.loop is not None:  # the text is made only where it is needed
        forbid_waiting(what, f"use {instead}, and await the future or give it a callback")


def forbid_waiting_for(owner: Owner, what: str) -> None:
    """Raise `DeadlockError` in a thread of a state machine whose wait for `owner` could never end."""
    if this_thread.owner is not None:
        this_thread.owner.check(owner, what)


class _Failure:
    """An exception as an outcome; it knows whether it was read."""

    __slots__ = ("error", "read", "traceback", "unread")

    def __init__(self, error: BaseException, traceback: TracebackType | None, unread: str) -> None:
        self.error, self.traceback, self.unread = error, traceback, unread
        self.read = False

    def raise_it(self) -> NoReturn:
        self.read = True
        try:
            # The traceback of where it happened, without the frames of earlier readers.
            raise self.error.with_traceback(self.traceback)
        finally:
            # The traceback holds this frame, so the frame must not hold the traceback.
            del self

    def __del__(self) -> None:
        if self.unread and not self.read:
            logger.warning("%s, and its future was never read: %s", self.unread, brief(self.error))


class _Hook:
    """A function that `get()` runs once to find the outcome."""

    __slots__ = ("function", "lock", "process", "result", "sources")

    def __init__(self, function: Callable[[float | None], Any]) -> None:
        self.function = function
        self.process = here.process
        self.sources: tuple[pykka.Future[Any], ...] = ()
        """The futures that the function waits for, if it waits for nothing else; empty if that is unknown."""
        self.lock = threading.Lock()
        self.result: tuple[Any] | None = None

    @property
    def opaque(self) -> bool:
        """Whether the function would block is unknown until it runs."""
        if self.result is not None:
            return False
        return not self.sources or any(
            not isinstance(source, ActorFuture) or source._is_opaque for source in self.sources
        )

    def get(self, timeout: float | None) -> Any:
        if self.result is None:
            self._run(timeout)
        assert self.result is not None
        return self.result[0]

    def _run(self, timeout: float | None) -> None:
        remaining = _countdown(timeout)
        if self.process is not here.process:
            # A thread that does not exist in this forked child may hold the lock.
            self.process, self.lock = here.process, threading.Lock()
        if not self.lock.acquire(timeout=lock_timeout(timeout)):
            raise pykka.Timeout(f"{timeout} seconds")
        try:
            if self.result is None:
                self.result = (self.function(remaining()),)
        finally:
            self.lock.release()


class ActorFuture(pykka.Future[T]):
    """A handle to a value or an exception that is there now, or will be later.

    Call the methods from any thread. A future gets one outcome, once. None is a value like any other.

        future = ref.ask(question, block=False)
        answer = future.get(timeout=3)     # in a thread
        answer = await future              # in a trio or asyncio task, which both go on meanwhile
        future.add_done_callback(print)    # anywhere
    """

    if not TYPE_CHECKING:  # mypy would take the instances for Any
        # pykka's would cost more than everything else.
        if sys.version_info >= (3, 12):
            __init__ = object.__init__
        else:

            def __init__(self) -> None:
                # Python 3.11 makes the dict of an object when it is first asked for. That may collect garbage, whose
                # finalizers may let another thread ask for it too: then there are two, which share freed memory.
                _ = self.__dict__

    owner: Owner | None = None
    """Who must do its work before the future is set, where that is known: see `waits`."""
    _outcome: tuple[T] | _Failure | _Hook | None = None
    _callbacks: deque[Callback] | None = None
    _process = here.process
    """The process that it was made in. Only in forked children has each future one of its own."""

    @classmethod
    def of(cls, owner: Owner | None) -> Self:
        """Make a future that is set by the work of `owner`, if one is known."""
        future = cls()
        future.owner = owner
        return future

    def __repr__(self) -> str:
        outcome = self._outcome
        if isinstance(outcome, tuple):
            return f"<ActorFuture: {brief(outcome[0])}>"
        if isinstance(outcome, _Failure):
            return f"<ActorFuture failed: {brief(outcome.error)}>"
        return f"<ActorFuture {'done' if self.done else 'pending'}>"

    # Set the outcome

    def set(self, value: T | None = None) -> None:
        """Give it its value, and run the callbacks in this thread. Raises `AlreadySet` if it has an outcome."""
        # As in `_settle`, without the call: this is the hot path.
        outcome = (value,)
        if self.__dict__.setdefault("_outcome", outcome) is not outcome:
            raise self._already_set(f"set({brief(value)})")
        if self._callbacks is not None:
            self._call_back()

    def try_set(self, value: T | None = None) -> bool:
        """As `set`, but return False, and change nothing, if there is an outcome: a deadline may have been first."""
        # As in `_settle`, without the call: every proposal's answer is set here.
        outcome = (value,)
        if self.__dict__.setdefault("_outcome", outcome) is not outcome:
            return False
        if self._callbacks is not None:
            self._call_back()
        return True

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        """Give it an exception, in the form of `sys.exc_info()`; by default the one that is being handled.

        Raises `AlreadySet` if it has an outcome, and `ValueError` if no exception is given or being handled.
        """
        type_, error, traceback = sys.exc_info() if exc_info is None else exc_info
        if type_ is None:
            raise ValueError(
                "set_exception() without an exception: call it in an except block, or use fail(error)"
            )
        if error is None:
            error = type_()
        if not self._settle(_Failure(error, traceback, "")):
            raise self._already_set(f"set_exception({brief(error)})")

    def fail(self, exception: BaseException, *, unread: str = "") -> None:
        """Give it an exception. Raises `AlreadySet` if it has an outcome.

        `unread` is a line for the log, written as a warning if the future is deleted before its outcome was read.
        """
        if not self.try_fail(exception, unread=unread):
            raise self._already_set(f"fail({brief(exception)})")

    def try_fail(self, exception: BaseException, *, unread: str = "") -> bool:
        """As `fail`, but return False, and change nothing, if there is an outcome: an answer may have been first."""
        return self._settle(_Failure(exception, exception.__traceback__, unread))

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Let `func(timeout)` find the value when the future is first read; its first result is kept.

        It runs in the thread that calls `get`, or in a worker thread if the future is awaited. Raises `AlreadySet` if
        there is an outcome or a hook already.
        """
        if not self._settle(_Hook(func)):
            raise self._already_set("set_get_hook()")

    def _settle(self, outcome: Any) -> bool:
        if self.__dict__.setdefault("_outcome", outcome) is not outcome:
            if isinstance(outcome, _Failure):
                outcome.read = True  # it came too late, so there is nothing to read
            return False
        if self._callbacks is not None:
            self._call_back()
        return True

    def _already_set(self, call: str) -> AlreadySet:
        return AlreadySet(
            f"{call} on {self!r}, which has its outcome: use try_set or try_fail if two may race"
        )

    # Read the outcome

    @property
    def done(self) -> bool:
        """Whether `get()` would return or raise without waiting."""
        return not self._is_opaque and self._pending() is None

    def outcome(self) -> tuple[T | None, BaseException | None]:
        """Return the value and the exception of a future that is done, one of them None. For callbacks.

        Raises `pykka.Timeout` if it is not done.
        """
        outcome = self._outcome
        if isinstance(outcome, tuple):
            return outcome[0], None
        if isinstance(outcome, _Failure):
            outcome.read = True
            return None, outcome.error
        if not self.done:
            self._check_process()
            raise pykka.Timeout(f"{self!r} has no outcome yet: get() or await it, or use a callback")
        try:
            return self.get(timeout=0), None
        except Exception as error:  # noqa: BLE001  # it is the outcome
            return None, error

    def get(self, *, timeout: float | None = None) -> T:
        """Wait for the outcome, at most `timeout` seconds, and return the value or raise the exception.

        Without a `timeout` it waits as long as that takes. Raises `pykka.Timeout` if there is no outcome by then. Raises
        at once `DeadlockError` if it would have to wait in the thread of a `TrioLoop`, or in a state machine for what
        comes only when that returns (see `StateMachine`), and `ForkedError` if it was made before this process was forked:
        nothing sets it here.
        """
        outcome = self._outcome
        if type(outcome) is tuple:  # the common case, first
            return outcome[0]
        if not self.done:
            self._check_process()
            forbid_waiting(f"get() of {self!r}", "await it, or use add_done_callback()")
            self._check_waits()
        if outcome is None:
            remaining = _countdown(timeout)
            self._wait(timeout)
            outcome, timeout = self._outcome, remaining()
        if isinstance(outcome, _Hook):
            return cast("T", outcome.get(timeout))
        if isinstance(outcome, _Failure):
            outcome.raise_it()
        return cast("tuple[T]", outcome)[0]

    def _check_waits(self) -> None:
        """Raise `DeadlockError` in a state machine that waits for itself, though other sources of the value come first."""
        if this_thread.owner is None:
            return
        for source in self._unset_sources():
            if source.owner is not None:
                forbid_waiting_for(source.owner, f"waiting for {source!r}")

    def _unset_sources(self) -> "Iterator[ActorFuture[Any]]":
        outcome = self._outcome
        if outcome is None:
            yield self
        elif isinstance(outcome, _Hook) and outcome.result is None:
            for source in outcome.sources:
                if isinstance(source, ActorFuture):
                    yield from source._unset_sources()

    def _wait(self, timeout: float | None) -> None:
        """Block until there is an outcome: a value, an exception or a hook."""
        waiting, owner = this_thread.owner, self.owner
        if waiting is None or owner is None:
            self._block(timeout)
            return
        with waiting.waiting(owner, this_thread.workers, f"waiting for {self!r}"):
            self._block(timeout)

    def _block(self, timeout: float | None) -> None:
        door = threading.Lock()
        door.acquire()

        def open_door(_: ActorFuture[Any]) -> None:
            door.release()

        self._notify(open_door)
        try:
            if not door.acquire(timeout=lock_timeout(timeout)) and self._outcome is None:
                raise pykka.Timeout(f"{timeout} seconds")
        finally:
            self._forget(open_door)

    def _check_process(self) -> None:
        """Raise `ForkedError` if it waits for a future of the process that this one was forked from."""
        pending = None if self._is_opaque else self._pending()
        if pending is not None and pending._process is not here.process:
            error = pending._process.error(f"what sets {self!r}")
            error.outcome_known = False
            raise error

    # Callbacks

    def add_done_callback(self, fn: Callable[["ActorFuture[T]"], object]) -> None:
        """Call `fn(self)` once there is an outcome: in the thread that sets it, or at once if it is set.

        Callbacks run in the order in which they were added. They must not block, and read the outcome with `outcome()`
        or `get()`. What they raise is logged. Raises `ForkedError` as `get` does, and `DrakkarError` for a future with
        a hook of unknown sources, since only `get()` or `await` runs that.
        """
        if not isinstance(self._outcome, _Hook):  # the common case, first
            if self._outcome is None:
                self._check_process()
            self._notify(fn)
            return
        if self._is_opaque:
            raise DrakkarError(
                f"{self!r} finds its value only when get() is called, so it cannot call back: "
                "await it, or add the callback to the future that its function reads"
            )
        pending = self._pending()
        if pending is None:
            self._notify(fn)
        else:
            self._check_process()
            # One source after the other: once the last is done, nothing is pending.
            pending._notify(lambda _: self.add_done_callback(fn))

    def _notify(self, callback: Callback) -> None:
        """Call back as soon as there is a value, an exception or a hook."""
        callbacks = self._callbacks
        if callbacks is None:
            callbacks = self.__dict__.setdefault("_callbacks", deque())
        callbacks.append(callback)
        # The setter stores the outcome and then looks for callbacks; this adds a callback and then looks for the
        # outcome. So one of the two sees the other, and `popleft` gives each callback to only one of them.
        if self._outcome is not None:
            self._call_back()

    def _forget(self, callback: Callback) -> None:
        """Remove a callback of `_notify`, if it was not called yet."""
        callbacks = self._callbacks
        while callbacks:
            try:
                callbacks.remove(callback)
            except ValueError:
                return
            except IndexError:
                continue  # another thread took one while `remove` was looking
            return

    def _call_back(self) -> None:
        callbacks = self._callbacks
        interrupt: BaseException | None = None
        while callbacks:
            try:
                callback = callbacks.popleft()
            except IndexError:
                break
            try:
                callback(self)
            except BaseException as error:  # the other callbacks must run all the same
                logger.exception("the callback %.200r of a future failed", callback)
                interrupt = error
        # Ctrl-C, which Python raises wherever the main thread is at that moment.
        if isinstance(interrupt, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise interrupt

    # Futures made of futures

    @property
    def _is_opaque(self) -> bool:
        """It has a hook whose sources are unknown."""
        return isinstance(self._outcome, _Hook) and self._outcome.opaque

    def _pending(self) -> "ActorFuture[Any] | None":
        """Return the first future to wait for, this one or a source; None if all are done. Not for opaque ones."""
        outcome = self._outcome
        if outcome is None:
            return self
        if not isinstance(outcome, _Hook) or outcome.result is not None:
            return None
        pending = (cast("ActorFuture[Any]", source)._pending() for source in outcome.sources)
        return next((source for source in pending if source is not None), None)

    def _reads(self, *sources: pykka.Future[Any]) -> Self:
        assert isinstance(self._outcome, _Hook)
        self._outcome.sources = sources
        return self

    def map(self, func: Callable[[T], M]) -> "ActorFuture[M]":
        """Make a future of `func(value)`. The function runs once, where its result is read."""
        return cast("ActorFuture[M]", super().map(func))._reads(self)

    def filter(self: "ActorFuture[Iterable[J]]", func: Callable[[J], bool]) -> "ActorFuture[Iterable[J]]":
        """Make a future of the list of the items for which `func` is true."""
        return cast("ActorFuture[Iterable[J]]", super().filter(func))._reads(self)

    def reduce(self: "ActorFuture[Iterable[J]]", func: Callable[[R, J], R], *args: R) -> "ActorFuture[R]":
        """Make a future of the items combined by `func`, from left to right."""
        return cast("ActorFuture[R]", super().reduce(func, *args))._reads(self)

    def join(self, *futures: pykka.Future[Any]) -> "ActorFuture[Iterable[Any]]":
        """Make a future of the list of all values. A timeout of `get` is for all of them together."""
        sources = (self, *futures)

        def values(timeout: float | None) -> list[Any]:
            remaining = _countdown(timeout)
            return [source.get(timeout=remaining()) for source in sources]

        joined: ActorFuture[Iterable[Any]] = ActorFuture()
        joined.set_get_hook(values)
        return joined._reads(*sources)

    # Await it

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for it in a trio or an asyncio task. Cancelling the wait does not change the future."""
        return self._arrive().__await__()

    __iter__ = __await__

    async def _arrive(self) -> T:
        self._check_waits()
        if trio.lowlevel.in_trio_task():
            await trio.lowlevel.checkpoint()
            park, in_worker = _park_in_trio, _trio_worker
        else:
            park, in_worker = _park_in_asyncio, _asyncio_worker
        while not self._is_opaque:
            pending = self._pending()
            if pending is None:
                return self.get()
            self._check_process()
            await park(pending)
        return cast("T", await in_worker(self.get))


def settle(future: ActorFuture[Any], value: Any, error: BaseException | None) -> None:
    """Give a future the value, or the exception if there is one; unless it has an outcome."""
    if error is None:
        future.try_set(value)
    else:
        future.try_fail(error)


class AnswerLater(ActorFuture[T]):
    """What a handler of a `TrioActor` returns to answer later: the asker gets its outcome when that is set.

    The actor must set it in every case, also when it ends: an asker that gives no timeout waits for it.
    """


async def _trio_worker(function: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


async def _asyncio_worker(function: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(function)


async def _park_in_trio(future: ActorFuture[Any]) -> None:
    arrived = trio.Event()
    token = trio.lowlevel.current_trio_token()
    thread = threading.get_ident()

    def wake(_: ActorFuture[Any]) -> None:
        # In the same trio run there is no need for a call from outside.
        if threading.get_ident() == thread and trio.lowlevel.in_trio_task():
            arrived.set()
            return
        with contextlib.suppress(trio.RunFinishedError):  # the waiting task has ended with the run
            token.run_sync_soon(arrived.set)

    future._notify(wake)
    try:
        await arrived.wait()
    finally:
        future._forget(wake)


async def _park_in_asyncio(future: ActorFuture[Any]) -> None:
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wake(_: ActorFuture[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so the waiting task has ended
            loop.call_soon_threadsafe(arrived.set)

    future._notify(wake)
    try:
        await arrived.wait()
    finally:
        future._forget(wake)


def lock_timeout(timeout: float | None) -> float:
    """Return a timeout as locks take it: minus one is for ever. Raises `ConfigError` for what is no number."""
    check_wait(timeout)
    return -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)


def _countdown(timeout: float | None) -> Callable[[], float | None]:
    """Return a function that returns the seconds left of a timeout."""
    check_wait(timeout)
    if timeout is None:
        return lambda: None
    deadline = time.monotonic() + timeout
    return lambda: max(deadline - time.monotonic(), 0)


def _stamp(self: ActorFuture[Any]) -> None:
    self._process = here.process


def _in_child() -> None:
    """Tell, from now on, the futures of this forked child from those of its parent, which nothing sets here."""
    # It was forked in a loop's thread, perhaps, or a state machine's.
    this_thread.loop = this_thread.owner = this_thread.starts_on = None
    if ActorFuture._process is not here.process:
        ActorFuture.__init__ = _stamp  # type: ignore[assignment, method-assign]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
