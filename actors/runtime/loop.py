"""`TrioLoop`: one thread that runs trio, and on it any number of actors and tasks.

    any thread            ref.tell(message) ──► the actor's inbox ──► `scheduler`: the actors with something to do
    the loop's thread     a turn: the actor handles what waits, a batch at most; then the next actor's turn
                          every 2 ms: trio's turn, with the sockets and the tasks

This file starts and stops the loop; `scheduler` gives actors their turns, and `tasks` runs async functions.
"""

import contextlib
import enum
import functools
import itertools
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ClassVar, Final, Protocol, Self, cast

import pykka
import trio
from drakkar.actors.runtime.forks import here, on_fork
from drakkar.actors.runtime.futures import forbid_waiting, in_full, lock_timeout, this_thread
from drakkar.actors.runtime.log_lines import HostLines, Lines
from drakkar.actors.runtime.scheduler import Resident, Scheduler, SlowTurn
from drakkar.actors.runtime.tasks import Task
from drakkar.handlers.checks import check_wait
from drakkar.handlers.errors import LoopError

__all__ = ["TrioLoop"]

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

    A forked child has none of its parent's loops: all that it asks of one raises `ForkedError`.

    Call the methods from any thread, except those that wait (`stop`, `call`): not from the thread of any loop.
    """

    _default: ClassVar["TrioLoop | None"] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()
    _numbers: ClassVar["itertools.count[int]"] = itertools.count(1)

    def __init__(self, name: str | None = None, *, lines: Lines | None = None) -> None:
        """`lines`: writes the lines of this loop and its actors; by default they begin with its name."""
        self.name = name or f"drakkar-loop-{next(self._numbers)}"
        """The thread's name too."""
        self.lines = lines or HostLines(self.name).of("drakkar.actors.runtime")
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
        self._process = here.process
        self._phase = _Phase.NEW
        self._admission = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=self.name)
        self._up = threading.Event()
        self._trouble: BaseException | None = None
        self._actors: dict[str, Resident] = {}
        self._tasks: dict[Task, None] = {}
        self._scheduler = Scheduler(self, self.lines)
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery
        self._stop_requested: trio.Event
        self._descriptors: list[_Closable] = []
        """What trio has open for this loop."""
        self.poller: object = None
        """What looks here for the ends of actors that do not tell of them; made and used by `monitor`."""
        on_fork(self)

    def __repr__(self) -> str:
        return f"TrioLoop {self.name!r}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is here.process:  # a forked child that leaves the block has nothing to stop
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

    @classmethod
    def nearest(cls) -> "TrioLoop":
        """Return the loop of this thread, or the one for which it starts actors, or the default one."""
        return cls.current() or cast("TrioLoop | None", this_thread.starts_on) or cls.default()

    @property
    def turns(self) -> int:
        """How many turns actors have had."""
        return self._scheduler.turns

    @property
    def slow_turn(self) -> SlowTurn | None:
        """The last turn that kept the thread so long that it was logged."""
        return self._scheduler.slow_turn

    @property
    def running(self) -> bool:
        """It takes actors and tasks: it was started, and was not asked to stop."""
        return self._phase is _Phase.RUNNING and self._process is here.process

    def in_loop(self) -> bool:
        """Return whether this thread is the loop's own."""
        return this_thread.loop is self

    # Start and stop

    def start(self) -> Self:
        """Start the thread, and return when it runs. Starting a running loop changes nothing.

        Raises `LoopError` for a loop that has run before.
        """
        self._process.check(self)
        with self._admission:
            if self._phase is _Phase.NEW and not self._thread.is_alive():
                self._thread.start()
        self._up.wait()
        if not self.running:
            why = self._why_not() if self._trouble is None else in_full(self._trouble)
            raise LoopError(f"{self} cannot start: {why}") from self._trouble
        return self

    def stop(self, timeout: float | None = 10.0) -> None:
        """Ask all actors to stop, the newest first, wait for their ends, cancel the tasks, and return when the thread has ended.

        Each actor handles what is in its inbox before it stops. Stopping a loop that has ended changes nothing.

        Raises `pykka.Timeout` after `timeout` seconds (None: never) and names what has not ended; the loop goes on
        stopping, and `stop` may be called again. Raises `DeadlockError` in the thread of a loop.
        """
        self._process.check(self)
        if self._phase is _Phase.ENDED:
            return
        forbid_waiting(f"stop() of {self}", "call it in another thread")
        check_wait(timeout)
        with self._admission:
            if self._phase is _Phase.NEW and not self._thread.is_alive():
                self._phase = _Phase.ENDED
                self._up.set()
                return
        self._up.wait()
        self._request_stop()
        self._thread.join(None if timeout is None else lock_timeout(timeout))
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
        except BaseException as error:  # noqa: BLE001  # logged, and kept for those who wait
            self._trouble = error
            if self._process is here.process:
                self.lines.critical("%s crashed, and its actors with it", self, exc_info=True)
        finally:
            # Else a handler has forked, and the child has come back from it.
            if self._process is here.process:
                self._close()

    def _let_go_in_child(self) -> None:
        """Close what trio has open, and forget who held locks: a forked child has no loop. The parent's goes on."""
        for descriptor in self._descriptors:
            descriptor.close()
        self._token = None
        TrioLoop._default_lock = threading.Lock()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._descriptors = _open_in_trio()
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
        """Ask all, then wait for all: each stops in its next turn, however many there are."""
        actors = list(reversed(self._actors.values()))  # no other is admitted any more
        for actor in actors:
            with contextlib.suppress(pykka.ActorDeadError):
                actor.stop()
        for actor in actors:
            await actor._actor_end

    async def _cancel_tasks(self) -> None:
        with self._admission:
            self._phase = _Phase.CLOSING
        tasks = list(self._tasks)
        for task in tasks:
            task._cancel()
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
            actor._actor_fail(error)
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
            self._process.check(self)
            raise LoopError(f"{self} cannot call {fn!r:.100}: {self._why_not()}")
        try:
            self._token.run_sync_soon(self._call_guarded, fn, args)
        except trio.RunFinishedError:
            raise LoopError(f"{self} cannot call {fn!r:.100}: {self._why_not()}") from None

    def at_round_end(self, fn: Callable[[], object]) -> None:
        """Call `fn` when the actors that are ready have had their turns: once for what they ask for together.

        In the loop's thread. An exception is logged. Calls that still wait when the loop ends are never made.
        """
        self._scheduler.at_round_end(functools.partial(self._call_guarded, fn, ()))

    def end_round(self) -> None:
        """Do now what was put off to the end of the round, unless an actor has its turn. In the loop's thread.

        For a task or a `run_soon` function that knows that nothing more will come: it need not wait for another round.
        """
        self._scheduler.end_round()

    def run_now(self, fn: Callable[[], object]) -> None:
        """Call `fn`, then give the actors that it woke their turns at once. By a task of this loop, which must not be in a turn.

        An exception is logged.
        """
        self._scheduler.run_now(functools.partial(self._call_guarded, fn, ()))

    def _call_guarded(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            fn(*args)
        except BaseException:  # noqa: BLE001  # logged; even a SystemExit must not end the loop, which others use
            self.crashes += 1
            self.lines.exception("%s: %.200r failed", self, fn)

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
        self._process.check(self)
        check_wait(timeout)
        forbid_waiting(f"call() of {self}", "call or await the function itself, or use spawn()")

        task = self._admitted_task(_name(fn))
        self.run_soon(self._begin_call, task, fn, args)
        try:
            result = task.finished.get(timeout=timeout)
        except BaseException:
            task.cancel()
            raise
        if task.cancelled:
            raise LoopError(f"{self} stopped before the call of {task.name} returned")
        return result

    def _begin_call(self, task: Task, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        async def wait(result: Awaitable[Any]) -> Any:
            return await result

        def begin() -> None:
            result = task._call(fn, args)
            if result is not None:
                self._nursery.start_soon(task._run, wait, (result,), None, name=task.name)

        self._scheduler.run_now(begin)

    def _spawn(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        name: str,
        report: Callable[[Task, BaseException], None] | None,
    ) -> Task:
        task = self._admitted_task(name)
        start = functools.partial(self._nursery.start_soon, task._run, async_fn, args, report, name=name)
        if self.in_loop():
            start()
        else:
            self.run_soon(start)
        return task

    def _admitted_task(self, name: str) -> Task:
        self._process.check(self)
        task = Task(name, str(self), self.run_soon, self._forget_task)
        with self._admission:
            if self._phase not in {_Phase.RUNNING, _Phase.STOPPING}:
                raise LoopError(f"{self} cannot run {name}: {self._why_not()}")
            self._tasks[task] = None
        return task

    def _forget_task(self, task: Task) -> None:
        self._tasks.pop(task, None)

    def _report_crash(
        self, task: Task, error: BaseException, on_crash: Callable[[BaseException], object] | None
    ) -> None:
        self.crashes += 1
        self.lines.error("%r crashed", task, exc_info=error)
        if on_crash is not None:
            self._call_guarded(on_crash, (error,))

    # Actors

    def _admit(self, actor: Resident) -> None:
        self._process.check(self)
        with self._admission:
            if self._phase is not _Phase.RUNNING:
                raise LoopError(f"{self} cannot run {actor}: {self._why_not()}")
            self._actors[actor.actor_urn] = actor

    def _forget(self, actor: Resident) -> None:
        self._actors.pop(actor.actor_urn, None)


class _Closable(Protocol):
    def close(self) -> object: ...


def _open_in_trio() -> list[_Closable]:
    """Return what trio has open for the run in this thread: an epoll and the sockets that wake it.

    They are private parts of trio. What a version names otherwise stays open in a forked child, which does no harm.
    """
    runner = getattr(trio._core._run.GLOBAL_RUN_CONTEXT, "runner", None)
    io = getattr(runner, "io_manager", None)
    wakers = [
        getattr(getattr(runner, "entry_queue", None), "wakeup", None),
        getattr(io, "_force_wakeup", None),
    ]
    sockets = [getattr(waker, name, None) for waker in wakers for name in ("wakeup_sock", "write_sock")]
    return [each for each in (getattr(io, "_epoll", None), *sockets) if each is not None]


def _name(fn: Callable[..., object]) -> str:
    return str(getattr(fn, "__qualname__", fn))[:200]
