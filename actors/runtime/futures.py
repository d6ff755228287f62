"""`ActorFuture`: a pykka future that is cheap to make, calls back, and can be awaited from trio and from asyncio.

Futures are dear: one lies on the way of every question, so this one is made and set in a third of a microsecond,
a tenth of what a `ThreadingFuture` takes. It has no lock. An outcome is stored by a single `dict.setdefault`, which
the interpreter runs as a whole, and whoever waits brings a lock of their own.
"""

import asyncio
import contextlib
import logging
import reprlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias, TypeVar, cast

import pykka
import trio
from drakkar.handlers.errors import AlreadySet, DeadlockError, DrakkarError

__all__ = ["ActorFuture", "brief", "forbid_waiting", "this_thread"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
J = TypeVar("J")
M = TypeVar("M")
R = TypeVar("R")

ExcInfo: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
Callback: TypeAlias = "Callable[[ActorFuture[Any]], object]"


def brief(value: object) -> str:
    """Describe a value for a log or an error in bounded length, and without asking it to print all it holds."""
    if value is None or isinstance(value, str | bytes | int | float):
        return reprlib.repr(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value!s:.300}"
    return f"a {type(value).__qualname__}"


class _ThisThread(threading.local):
    """What a future must know of the thread that it is used in."""

    loop: Any = None
    """The `TrioLoop` that this thread runs; None in all others."""


this_thread: Final = _ThisThread()


def forbid_waiting(what: str, instead: str) -> None:
    """Raise `DeadlockError` in a thread that runs a `TrioLoop`: actors live there, and none of them could answer."""
    if this_thread.loop is not None:
        raise DeadlockError(
            f"{what} would block {this_thread.loop}, whose thread has to do what is waited for: {instead}"
        )


class _Failure:
    """An exception as an outcome, which knows whether anybody has looked at it."""

    __slots__ = ("error", "read", "traceback", "unread")

    def __init__(self, error: BaseException, traceback: TracebackType | None, unread: str) -> None:
        self.error, self.traceback, self.unread = error, traceback, unread
        self.read = False

    def raise_it(self) -> NoReturn:
        self.read = True
        try:
            # As it was where it happened, without the frames of those who raised it again before.
            raise self.error.with_traceback(self.traceback)
        finally:
            # The traceback holds this frame, which must not hold the traceback in turn.
            del self

    def __del__(self) -> None:
        if self.unread and not self.read:
            logger.warning("%s, and nobody looked: %s", self.unread, brief(self.error))


class _Hook:
    """A function in place of an outcome, which `get()` runs once."""

    __slots__ = ("function", "lock", "result", "sources")

    def __init__(self, function: Callable[[float | None], Any]) -> None:
        self.function = function
        self.sources: tuple[pykka.Future[Any], ...] = ()
        """The futures that the function waits for, and for nothing else; empty where that is not known."""
        self.lock = threading.Lock()
        self.result: tuple[Any] | None = None

    @property
    def opaque(self) -> bool:
        """Only running it can tell whether it would block."""
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
        if not self.lock.acquire(timeout=_patience(timeout)):
            raise pykka.Timeout(f"{timeout} seconds")
        try:
            if self.result is None:
                self.result = (self.function(remaining()),)
        finally:
            self.lock.release()


class ActorFuture(pykka.Future[T]):
    """A handle to a value, or an exception, that is there now or will be.

    Every method may be called from any thread. The first outcome counts, and there is never a second. None is a
    value like any other.

        future = ref.ask(question, block=False)
        answer = future.get(timeout=3)     # in a thread
        answer = await future              # in a trio or asyncio task, which both go on meanwhile
        future.add_done_callback(print)    # anywhere
    """

    if not TYPE_CHECKING:  # mypy takes what such a class makes for Any
        # pykka's would cost more than all the rest.
        __init__ = object.__init__

    _outcome: tuple[T] | _Failure | _Hook | None = None
    _callbacks: deque[Callback] | None = None

    def __repr__(self) -> str:
        outcome = self._outcome
        if isinstance(outcome, tuple):
            return f"<ActorFuture: {brief(outcome[0])}>"
        if isinstance(outcome, _Failure):
            return f"<ActorFuture failed: {brief(outcome.error)}>"
        return f"<ActorFuture {'done' if self.done else 'pending'}>"

    # Giving it an outcome

    def set(self, value: T | None = None) -> None:
        """Give it its value, and run the callbacks in this thread. Raises `AlreadySet` if it has an outcome."""
        # As `_settle` does it, but without the call: this is the hot path.
        outcome = (value,)
        if self.__dict__.setdefault("_outcome", outcome) is not outcome:
            raise self._already_set(f"set({brief(value)})")
        if self._callbacks is not None:
            self._call_back()

    def try_set(self, value: T | None = None) -> bool:
        """As `set`, for those who race with a deadline: returns False, and changes nothing, if they come late."""
        # As in `set`, without a call: every proposal's answer comes this way.
        outcome = (value,)
        if self.__dict__.setdefault("_outcome", outcome) is not outcome:
            return False
        if self._callbacks is not None:
            self._call_back()
        return True

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        """Give it an exception, as `sys.exc_info()` describes one; by default the one that is being handled.

        Raises `AlreadySet` if it has an outcome, and `ValueError` where there is no exception to give.
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

        `unread` is a line for the log, written as a warning if the future is thrown away before anybody looked.
        """
        if not self.try_fail(exception, unread=unread):
            raise self._already_set(f"fail({brief(exception)})")

    def try_fail(self, exception: BaseException, *, unread: str = "") -> bool:
        """As `fail`, for those who race with an answer: returns False, and changes nothing, if they come late."""
        return self._settle(_Failure(exception, exception.__traceback__, unread))

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Let `func(timeout)` find the value when somebody asks for it; its first result is kept.

        It runs in the thread that calls `get`; for those who await it, in a worker thread. Raises `AlreadySet` if
        there is an outcome, or a hook, already.
        """
        if not self._settle(_Hook(func)):
            raise self._already_set("set_get_hook()")

    def _settle(self, outcome: Any) -> bool:
        if self.__dict__.setdefault("_outcome", outcome) is not outcome:
            if isinstance(outcome, _Failure):
                outcome.read = True  # it came late, so there is nothing for anybody to look at
            return False
        if self._callbacks is not None:
            self._call_back()
        return True

    def _already_set(self, call: str) -> AlreadySet:
        return AlreadySet(
            f"{call} on {self!r}, which has its outcome: use try_set or try_fail where two may race"
        )

    # Looking at it

    @property
    def done(self) -> bool:
        """`get()` would return, or raise, without waiting."""
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
            raise pykka.Timeout(f"{self!r} has no outcome yet: get() or await it, or use a callback")
        try:
            return self.get(timeout=0), None
        except Exception as error:  # noqa: BLE001  # it is the outcome
            return None, error

    def get(self, *, timeout: float | None = None) -> T:
        """Wait for the outcome, at most `timeout` seconds, and return the value or raise the exception.

        Raises `pykka.Timeout` if it does not come in time, and `DeadlockError` at once in the thread of a `TrioLoop`
        where it would have to wait.
        """
        outcome = self._outcome
        if type(outcome) is tuple:  # the common case, first
            return outcome[0]
        if not self.done:
            forbid_waiting(f"get() of {self!r}", "await it, or use add_done_callback()")
        if outcome is None:
            remaining = _countdown(timeout)
            self._wait(timeout)
            outcome, timeout = self._outcome, remaining()
        if isinstance(outcome, _Hook):
            return cast("T", outcome.get(timeout))
        if isinstance(outcome, _Failure):
            outcome.raise_it()
        return cast("tuple[T]", outcome)[0]

    def _wait(self, timeout: float | None) -> None:
        """Block until there is an outcome: a value, an exception or a hook."""
        door = threading.Lock()
        door.acquire()

        def open_door(_: ActorFuture[Any]) -> None:
            door.release()

        self._notify(open_door)
        try:
            if not door.acquire(timeout=_patience(timeout)) and self._outcome is None:
                raise pykka.Timeout(f"{timeout} seconds")
        finally:
            self._forget(open_door)

    # Callbacks

    def add_done_callback(self, fn: Callable[["ActorFuture[T]"], object]) -> None:
        """Call `fn(self)` once there is an outcome: in the thread that sets it, or at once if it is there.

        Callbacks run in the order they were added, must not block, and read the outcome with `outcome()` or `get()`.
        What they raise is logged. Raises `DrakkarError` for a future with a hook of unknown sources, which only
        `get()` or `await` runs.
        """
        if not isinstance(self._outcome, _Hook):  # the common case, first
            self._notify(fn)
            return
        if self._is_opaque:
            raise DrakkarError(
                f"{self!r} finds its value by a function when get() is called, so it can call nobody back: "
                "await it, or add the callback to the future that its function reads"
            )
        pending = self._pending()
        if pending is None:
            self._notify(fn)
        else:
            # One source after the other: when the last is there, nothing is pending.
            pending._notify(lambda _: self.add_done_callback(fn))

    def _notify(self, callback: Callback) -> None:
        """Call back as soon as there is a value, an exception or a hook."""
        callbacks = self._callbacks
        if callbacks is None:
            callbacks = self.__dict__.setdefault("_callbacks", deque())
        callbacks.append(callback)
        # Whoever sets the outcome sets it before it looks for callbacks, and this looks for it after adding one. So one
        # of the two sees the other, and `popleft` gives each callback to only one of them.
        if self._outcome is not None:
            self._call_back()

    def _forget(self, callback: Callback) -> None:
        """Take a callback of `_notify` back, if it is still there."""
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
            except BaseException as error:  # nobody else's callback may be lost by it
                logger.exception("the callback %.200r of a future failed", callback)
                interrupt = error
        # Ctrl-C, which Python raises wherever the main thread happens to be.
        if isinstance(interrupt, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise interrupt

    # Futures made of futures: theirs is the value's way, so they wait as it does

    @property
    def _is_opaque(self) -> bool:
        """It has a hook, and nobody knows what for."""
        return isinstance(self._outcome, _Hook) and self._outcome.opaque

    def _pending(self) -> "ActorFuture[Any] | None":
        """Return the first one to wait for, itself or a source. Not for opaque ones."""
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
        """Make a future of the list of all their values. A timeout is one for all of them together."""
        sources = (self, *futures)

        def values(timeout: float | None) -> list[Any]:
            remaining = _countdown(timeout)
            return [source.get(timeout=remaining()) for source in sources]

        joined: ActorFuture[Iterable[Any]] = ActorFuture()
        joined.set_get_hook(values)
        return joined._reads(*sources)

    # Awaiting it

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for it in a trio or an asyncio task; cancelling the wait does not touch the future."""
        return self._arrive().__await__()

    __iter__ = __await__

    async def _arrive(self) -> T:
        if trio.lowlevel.in_trio_task():
            await trio.lowlevel.checkpoint()
            park, in_worker = _park_in_trio, _trio_worker
        else:
            park, in_worker = _park_in_asyncio, _asyncio_worker
        while not self._is_opaque:
            pending = self._pending()
            if pending is None:
                return self.get()
            await park(pending)
        return cast("T", await in_worker(self.get))


async def _trio_worker(function: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


async def _asyncio_worker(function: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(function)


async def _park_in_trio(future: ActorFuture[Any]) -> None:
    arrived = trio.Event()
    token = trio.lowlevel.current_trio_token()
    thread = threading.get_ident()

    def wake(_: ActorFuture[Any]) -> None:
        # Within the same run nobody needs to be called from outside.
        if threading.get_ident() == thread and trio.lowlevel.in_trio_task():
            arrived.set()
            return
        with contextlib.suppress(trio.RunFinishedError):  # and with it whoever waited
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
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it whoever waited
            loop.call_soon_threadsafe(arrived.set)

    future._notify(wake)
    try:
        await arrived.wait()
    finally:
        future._forget(wake)


def _patience(timeout: float | None) -> float:
    """Express a timeout as locks understand it, where minus one is for ever."""
    return -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)


def _countdown(timeout: float | None) -> Callable[[], float | None]:
    """Return a function that tells what is left of a timeout, in seconds."""
    if timeout is None:
        return lambda: None
    deadline = time.monotonic() + timeout
    return lambda: max(deadline - time.monotonic(), 0)
