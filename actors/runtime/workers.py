"""A pool of worker threads that all replicas of a host share, for jobs that may take long, or never end."""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, final

import pykka
from drakkar.actors.runtime.futures import brief, this_thread
from drakkar.actors.runtime.log_lines import HostLines, Lines
from drakkar.actors.runtime.waits import Workers
from drakkar.handlers.errors import DeadlockError

__all__ = ["LOOK_INTERVAL_S", "WORKER_HANG_S", "Worker", "WorkerPool"]

WORKER_HANG_S: Final = 1.0
"""A job may take that long, in seconds, before another worker is started in the place of its own."""

LOOK_INTERVAL_S: Final = 0.25
"""How often a host looks at its pools."""
BUSY_FACTOR: Final = 5
"""A job that computes may take this many times longer than one that waits, before its worker counts as hanging.

Another worker would only compete with it for the interpreter, and so would the host's loop.
"""
BUSY_SHARE: Final = 0.01
"""The part of a core that a thread uses at least which computes, even where many compete."""
REMINDER_S: Final = 60.0
"""How often a pool says that it can grow no more."""

Job = Callable[[], None]


class _Retired(BaseException):
    """The worker that runs this job is not needed any more."""


@final
class _Watch:
    """What a pool sees of one worker, from outside of its thread."""

    __slots__ = ("_cpu", "_seen", "cpu_clock", "ref", "since")

    def __init__(self) -> None:
        self.ref: pykka.ActorRef[Any]
        self.since = math.inf
        """When its job began; infinity: it has none."""
        self.cpu_clock: int | None = None
        """Counts the processor's time of its thread; None where a platform has no such clock."""
        self._seen = math.inf
        """The begin of the job for which `_cpu` was read."""
        self._cpu = (0.0, 0.0)
        """When it was first seen to be late with this job, and the processor's time that it had used then."""

    def hangs(self, now: float, limit: float) -> bool:
        """Return whether its job has taken more than `limit` seconds without using the processor, or far more with it."""
        since = self.since
        if now - since <= limit:
            return False
        return now - since > limit * BUSY_FACTOR or not self._computes(since, now)

    def _computes(self, since: float, now: float) -> bool:
        """Return whether it has used the processor since it was first seen to be late; at that moment it counts as busy."""
        if self.cpu_clock is None:
            return True
        try:
            used = time.clock_gettime(self.cpu_clock)
        except OSError:  # the thread has just ended
            return True
        if self._seen != since:
            self._seen, self._cpu = since, (now, used)
            return True
        began, before = self._cpu
        return used - before >= (now - began) * BUSY_SHARE


class Worker(pykka.ThreadingActor):
    """Does one job at a time, and then asks its pool for more."""

    use_daemon_thread = True  # a state machine that hangs must not keep the process alive

    def __init__(self, pool: "WorkerPool", watch: _Watch) -> None:
        super().__init__()
        self._pool, self._watch = pool, watch

    def _start_actor_loop(self) -> None:
        try:
            super()._start_actor_loop()
        except BaseException:
            # pykka has registered it already, and no thread will ever take it out.
            pykka.ActorRegistry.unregister(self.actor_ref)
            raise

    def on_start(self) -> None:
        """Let waits in this thread know whose it is, and the pool whether it computes."""
        this_thread.workers = self._pool.workers
        with contextlib.suppress(AttributeError, OSError):  # not every platform has it
            self._watch.cpu_clock = time.pthread_getcpuclockid(threading.get_ident())

    def on_receive(self, message: Job) -> None:
        """Do the job, and those that wait then."""
        job: Job | None = message
        watch, clock = self._watch, self._pool.clock
        while job is not None:
            watch.since = clock()
            try:
                job()
            except _Retired:
                self._pool._forget(watch)
                self.stop()
                return
            except BaseException:  # noqa: BLE001
                # A job reports its errors itself, so this one is a bug of ours. The other replicas still need the worker,
                # and pykka would stop every actor of the process for a SystemExit.
                self._pool.lines.exception("a job failed without a report: %s", brief(job))
            # Before it is idle: what it is given then is a new job.
            watch.since = math.inf
            job = self._pool._next(watch)


class WorkerPool:
    """Runs jobs on `size` threads, in the order in which they were submitted. From any thread.

    The queue is bounded by the number of replicas, since each submits only a few jobs at a time. For jobs that must run
    in order, submit the next one when the one before is done.

    A job may hang for ever. Its worker is then not counted: where jobs wait, others are started in the place of those that
    hang, up to `max_size` threads. When a job that hung returns, the pool shrinks again. It does both in `look`.
    """

    def __init__(
        self,
        size: int,
        *,
        max_size: int | None = None,
        hang_s: float = WORKER_HANG_S,
        lines: Lines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_size`: None is `size`. `hang_s`: seconds after which a job that waits hangs. `clock`: in seconds."""
        self.lines = lines or HostLines().of("drakkar.actors.runtime")
        self.clock = clock
        self.size, self.max_size = size, max_size or size
        self.hanging = 0
        """Workers whose jobs hang, as of the last `look`."""
        self._hang_s = hang_s
        self._waiting: deque[Job] = deque()
        self._abandoned = self._stopped = False
        self._retiring = False
        """One worker is about to end."""
        self._reminded = -math.inf
        self.workers = Workers(size)
        """The threads, for what must know which of them wait."""
        self._idle: deque[_Watch] = deque()
        self._all: list[_Watch] = []
        self._lock = threading.Lock()
        """Held while `_all` changes."""
        try:
            for _ in range(size):
                self._start_one()
        except BaseException:
            self.stop()
            raise

    @property
    def waiting(self) -> int:
        """Jobs that no worker has begun yet."""
        return len(self._waiting)

    @property
    def threads(self) -> int:
        """Workers, those that hang included."""
        return len(self._all)

    def submit(self, job: Job) -> None:
        """Run `job()` on a worker, soon."""
        self._waiting.append(job)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            try:
                worker = self._idle.popleft()
            except IndexError:  # another thread was faster, and the worker will ask for more
                return
            try:
                job = self._waiting.popleft()
            except IndexError:
                self._idle.append(worker)
                continue
            # If the pool is being stopped, the job is not needed any more.
            with contextlib.suppress(pykka.ActorDeadError):
                worker.ref.tell(job)

    def _next(self, worker: _Watch) -> Job | None:
        try:
            return None if self._abandoned else self._waiting.popleft()
        except IndexError:
            self._idle.append(worker)
            # A job that was submitted just before that found no idle worker.
            self._dispatch()
            return None

    # -- its size -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Find out which workers hang, and start others in their place, or end those that are not needed any more.

        For one thread at a time, each `LOOK_INTERVAL_S` or so.
        """
        now = self.clock()
        with self._lock:
            self.hanging = sum(worker.hangs(now, self._hang_s) for worker in self._all)
            needed = self.size + self.hanging
            if self._waiting and self.hanging == len(self._all):
                needed = max(needed, 2 * self.hanging)  # many more may be about to hang
            missing = min(needed, self.max_size) - len(self._all)
        if missing < 0:
            self._shrink()
        elif self._waiting and self.hanging:
            if missing > 0:
                self._grow(missing)
            elif self.hanging == len(self._all) and now - self._reminded >= REMINDER_S:
                self._reminded = now
                self.lines.error(
                    "all %d workers hang, which is as many as there may be, and %d jobs wait: the other state machines of "
                    "this host wait, too. Look at which hang (`Status.hang`), and restart the host",
                    len(self._all),
                    len(self._waiting),
                )

    def _grow(self, count: int) -> None:
        started = 0
        try:
            with self._lock:
                while started < count and not self._stopped:
                    self._start_one()
                    started += 1
        except RuntimeError as error:  # no more threads for this process
            self.lines.error("no worker can be started in the place of one that hangs: %s", brief(error))
        if started:
            self.lines.info(
                "%d workers hang, so %d were added; %d threads now", self.hanging, started, len(self._all)
            )
        self._dispatch()

    def _shrink(self) -> None:
        """Let the worker that is idle, or that is free first, end: one at a time, so that none too many does."""
        if not self._retiring:
            self._retiring = True
            self.submit(self._retire)

    def _retire(self) -> None:
        self._retiring = False
        if len(self._all) > self.size + self.hanging:
            raise _Retired

    def _start_one(self) -> None:
        """Raises `RuntimeError` where the process can have no more threads."""
        watch = _Watch()
        watch.ref = Worker.start(self, watch)
        self._all.append(watch)
        self._idle.append(watch)

    def _forget(self, worker: _Watch) -> None:
        with self._lock:
            self._all.remove(worker)

    # -- its end ------------------------------------------------------------------------------------------------

    def forbid_waiting(self, what: str) -> None:
        """Raise `DeadlockError` in one of its own threads, for `what` waits until these have ended."""
        if this_thread.workers is self.workers:
            raise DeadlockError(
                f"{what} would wait for the state machine that calls it: let that return, and call it in another thread"
            )

    def stop(self, timeout: float = 5.0) -> int:
        """Let the workers end after all jobs that wait; return how many are still busy after `timeout` seconds.

        Those are abandoned, with an error in the log, and the jobs that still wait are dropped.
        """
        until = time.monotonic() + timeout
        with self._lock:
            self._stopped = True
            stopped = [worker.ref.stop(block=False) for worker in self._all]
        left = 0
        for future in stopped:
            try:
                future.get(timeout=max(0.0, until - time.monotonic()))
            except pykka.Timeout:
                left += 1
        if left:
            self._abandoned = True
            self._waiting.clear()
            self.lines.error(
                "%d workers still work after %s seconds: they and their state machines are abandoned",
                left,
                timeout,
            )
        return left
