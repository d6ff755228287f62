"""`TrioLoop`: one thread that runs trio, and on it any number of actors and tasks.

    any thread            ref.tell(message) ──► the actor's inbox ──► `scheduler`: the actors with something to do
    the loop's thread     a turn: the actor handles what waits, a batch at most; then the next actor's turn
                          every 2 ms: trio's turn, with the sockets and the tasks

This file starts and stops the loop; `scheduler` gives actors their turns, and `tasks` runs async functions.
"""

import contextlib
import enum
import functools
import inspect
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ClassVar, Final, Self, cast

import pykka
import trio
from drakkar.actors.runtime.futures import forbid_waiting, this_thread
from drakkar.actors.runtime.scheduler import Resident, Scheduler
from drakkar.actors.runtime.tasks import Task
from drakkar.handlers.errors import LoopError

__all__ = ["TrioLoop"]

logger = logging.getLogger(__name__)

_CLOCK_INTERVAL_S: Final = 0.1
"""Seconds between two measurements of how late the loop runs."""


class _Phase(enum.IntEnum):
    NEW = 0
    RUNNING = 1
    STOPPING = 2
    """Its actors stop, and new ones are refused."""
    CLOSING = 3
    """Its tasks are being cancelled, and new ones are refused."""
    ENDED = 4


class TrioLoop:
    """One thread that runs trio, and on it any number of actors and tasks.

        with TrioLoop() as loop:
            counter = Counter.start(loop=loop)
            loop.spawn(serve, counter)

    Its thread keeps the process alive, as a pykka actor's does. After the main thread has ended, a loop without actors
    ends too. A loop runs once: make a new one to run again.

    Call the methods from any thread, except those that wait (`stop`, `call`): not from the thread of any loop.
    """

    _default: ClassVar["TrioLoop | None"] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()
    _numbers: ClassVar["itertools.count[int]"] = itertools.count(1)

    def __init__(self, name: str | None = None) -> None:
        self.name = name or f"drakkar-loop-{next(self._numbers)}"
        """The thread's name too."""
        self.failures = 0
        """Actors that ended by a failure."""
        self.crashes = 0
        """Tasks and `run_soon` functions that ended by an exception."""
        self.dead_letters = 0
        """Messages sent by `tell` that were lost because the actor ended before it handled them."""
        self.lateness = 0.0
        """Seconds by which the loop's last timer was late. There is one every 0.1 s."""
        self.worst_lateness = 0.0
        """The greatest lateness so far. Set it to 0.0 to measure from now on."""
        self._phase = _Phase.NEW
        self._admission = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=self.name)
        self._up = threading.Event()
        self._trouble: BaseException | None = None
        self._actors: dict[str, Resident] = {}
        self._tasks: dict[Task, None] = {}
        self._scheduler = Scheduler(self)
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery
        self._stop_requested: trio.Event

    def __repr__(self) -> str:
        return f"TrioLoop {self.name!r}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @classmethod
    def current(cls) -> "TrioLoop | None":
        """Return the loop whose thread this is, or None in all other threads."""
        return cast("TrioLoop | None", this_thread.loop)

    @classmethod
    def default(cls) -> "TrioLoop":
        """Return the loop of actors that were started without one. The first call starts it."""
        with TrioLoop._default_lock:
            if TrioLoop._default is None or not TrioLoop._default.running:
                TrioLoop._default = TrioLoop("drakkar-default-loop").start()
            return TrioLoop._default

    @property
    def turns(self) -> int:
        """How many turns actors have had."""
        return self._scheduler.turns

    @property
    def running(self) -> bool:
        """It takes actors and tasks: it was started, and was not asked to stop."""
        return self._phase is _Phase.RUNNING

    def in_loop(self) -> bool:
        """Return whether this thread is the loop's own."""
        return this_thread.loop is self

    # Start and stop

    def start(self) -> Self:
        """Start the thread, and return when it runs. Starting a running loop changes nothing.

        Raises `LoopError` for a loop that has run before.
        """
        with self._admission:
            if self._phase is _Phase.NEW and not self._thread.is_alive():
                self._thread.start()
        self._up.wait()
        if not self.running:
            raise LoopError(f"{self} cannot start: {self._why_not()}") from self._trouble
        return self

    def stop(self, timeout: float | None = 10.0) -> None:
        """Stop the actors, the newest first, then cancel the tasks, and return when the thread has ended.

        Each actor handles what is in its inbox before it stops. Stopping a loop that has ended changes nothing.

        Raises `pykka.Timeout` after `timeout` seconds (None: never) and names what has not ended; the loop goes on
        stopping, and `stop` may be called again. Raises `DeadlockError` in the thread of a loop.
        """
        if self._phase is _Phase.ENDED:
            return
        forbid_waiting(f"stop() of {self}", "call it in another thread")
        with self._admission:
            if self._phase is _Phase.NEW and not self._thread.is_alive():
                self._phase = _Phase.ENDED
                self._up.set()
                return
        self._up.wait()
        self._request_stop()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise pykka.Timeout(f"{self} did not stop within {timeout} seconds: {self._not_ended()}")

    def _request_stop(self) -> None:
        with self._admission:
            if self._phase is not _Phase.RUNNING:
                return
            self._phase = _Phase.STOPPING
        with contextlib.suppress(LoopError):  # it ended meanwhile
            self.run_soon(self._stop_requested.set)

    def _not_ended(self) -> str:
        alive = [f"{len(self._actors)} actors are alive", f"{len(self._tasks)} tasks run"]
        if (busy_with := self._scheduler.busy_with) is not None:
            alive.append(f"{busy_with} is in the middle of a turn: see what its handler waits for")
        alive += [f"task {task.name!r} has not ended yet" for task in list(self._tasks)[:5]]
        return "; ".join(alive)

    def _why_not(self) -> str:
        return {
            _Phase.NEW: "it was not started, so call start() first",
            _Phase.RUNNING: "it runs",
            _Phase.STOPPING: "it is stopping, so make a new one",
            _Phase.CLOSING: "it is stopping, so make a new one",
            _Phase.ENDED: "it has ended, so make a new one",
        }[self._phase]

    def _run(self) -> None:
        this_thread.loop = self
        try:
            trio.run(self._main)
        except BaseException as error:
            self._trouble = error
            logger.critical("%s crashed, and its actors with it", self, exc_info=True)
        finally:
            self._close()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop_requested = trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._scheduler.run)
            nursery.start_soon(self._watch_clock)
            self._phase = _Phase.RUNNING
            self._up.set()
            await self._stop_requested.wait()
            await self._stop_actors()
            await self._cancel_tasks()
            nursery.cancel_scope.cancel()

    async def _stop_actors(self) -> None:
        while self._actors:
            for actor in reversed(list(self._actors.values())):
                with contextlib.suppress(pykka.ActorDeadError):
                    actor.stop()
                await actor._end

    async def _cancel_tasks(self) -> None:
        with self._admission:
            self._phase = _Phase.CLOSING
        tasks = list(self._tasks)
        for task in tasks:
            task._scope.cancel()
        for task in tasks:
            with contextlib.suppress(Exception):  # its crash was reported when it happened
                await task.finished

    def _close(self) -> None:
        """Fail every future that is still waited for, after a crash of trio too."""
        with self._admission:
            self._phase = _Phase.ENDED
        error = LoopError(f"{self} crashed")
        error.__cause__ = self._trouble
        for actor in reversed(list(self._actors.values())):
            actor._fail(error)
        for task in list(self._tasks):
            task._fail(error)
        this_thread.loop = None
        self._up.set()

    async def _watch_clock(self) -> None:
        while True:
            due = trio.current_time() + _CLOCK_INTERVAL_S
            await trio.sleep_until(due)
            self.lateness = trio.current_time() - due
            self.worst_lateness = max(self.worst_lateness, self.lateness)
            if not self._actors and not threading.main_thread().is_alive():
                self._request_stop()

    # Functions and tasks

    def run_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Call `fn(*args)` in the loop's thread, soon and in order, and forget its result; an exception is logged.

        The number of calls that wait is unbounded, so the caller must be bounded. Calls that still wait when the loop
        ends are never made. Raises `LoopError` if the loop does not run.
        """
        if self._token is None:
            raise LoopError(f"{self} cannot call {fn!r:.100}: {self._why_not()}")
        try:
            self._token.run_sync_soon(self._call_guarded, fn, args)
        except trio.RunFinishedError:
            raise LoopError(f"{self} cannot call {fn!r:.100}: {self._why_not()}") from None

    def _call_guarded(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            fn(*args)
        except BaseException:  # even a SystemExit must not end the loop, which others use
            self.crashes += 1
            logger.exception("%s: %.200r failed", self, fn)

    def spawn(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        name: str | None = None,
        on_crash: Callable[[BaseException], object] | None = None,
    ) -> Task:
        """Run `async_fn(*args)` as a task of this loop, and return a handle to it.

        An exception is logged as an error, counted in `crashes`, given to `on_crash` (called in the loop's thread) and
        to `Task.finished`; other tasks and actors go on. `stop` cancels the tasks after the actors have stopped.

        Raises `LoopError` if the loop does not run.
        """
        report = functools.partial(self._report_crash, on_crash=on_crash)
        return self._spawn(async_fn, args, name or _name(async_fn), report)

    def call(self, fn: Callable[..., Any], *args: Any, timeout: float | None = None) -> Any:
        """Call `fn(*args)` in the loop's thread and return its result, awaited if need be; raise what it raises.

        Raises `pykka.Timeout` after `timeout` seconds (None: never) and cancels the call; `LoopError` if the loop does
        not run, or stops before the call returns; `DeadlockError` in the thread of a loop.
        """
        forbid_waiting(f"call() of {self}", "call or await the function itself, or use spawn()")

        async def run() -> Any:
            result = fn(*args)
            return await result if inspect.isawaitable(result) else result

        task = self._spawn(run, (), _name(fn), None)
        try:
            result = task.finished.get(timeout=timeout)
        except BaseException:
            task.cancel()
            raise
        if task.cancelled:
            raise LoopError(f"{self} stopped before the call of {task.name} returned")
        return result

    def _spawn(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        name: str,
        report: Callable[[Task, BaseException], None] | None,
    ) -> Task:
        task = Task(name, str(self), self.run_soon, self._forget_task)
        with self._admission:
            if self._phase not in {_Phase.RUNNING, _Phase.STOPPING}:
                raise LoopError(f"{self} cannot run {name}: {self._why_not()}")
            self._tasks[task] = None
        start = functools.partial(self._nursery.start_soon, task._run, async_fn, args, report, name=name)
        if self.in_loop():
            start()
        else:
            self.run_soon(start)
        return task

    def _forget_task(self, task: Task) -> None:
        self._tasks.pop(task, None)

    def _report_crash(
        self, task: Task, error: BaseException, on_crash: Callable[[BaseException], object] | None
    ) -> None:
        self.crashes += 1
        logger.error("%r crashed", task, exc_info=error)
        if on_crash is not None:
            self._call_guarded(on_crash, (error,))

    # Actors

    def _admit(self, actor: Resident) -> None:
        with self._admission:
            if self._phase is not _Phase.RUNNING:
                raise LoopError(f"{self} cannot run {actor}: {self._why_not()}")
            self._actors[actor.actor_urn] = actor

    def _forget(self, actor: Resident) -> None:
        self._actors.pop(actor.actor_urn, None)


def _name(fn: Callable[..., object]) -> str:
    return str(getattr(fn, "__qualname__", fn))[:200]
