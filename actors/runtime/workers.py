"""A pool of worker threads that all replicas of a host share, for jobs that may take long."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pykka
from drakkar.actors.runtime.futures import brief

__all__ = ["WorkerPool"]

logger = logging.getLogger(__name__)

Job = Callable[[], None]


class _Worker(pykka.ThreadingActor):
    """Does one job at a time, and then asks its pool for more."""

    use_daemon_thread = True  # a state machine that hangs must not keep the process alive

    def __init__(self, pool: "WorkerPool") -> None:
        super().__init__()
        self._pool = pool

    def on_receive(self, message: Job) -> None:
        job: Job | None = message
        while job is not None:
            try:
                job()
            except BaseException:
                # A job reports its errors itself, so this one is a bug of ours. The other replicas still need the worker,
                # and pykka would stop every actor of the process for a SystemExit.
                logger.exception("a job failed without a report: %s", brief(job))
            job = self._pool._next(self)


class WorkerPool:
    """Runs jobs on `size` threads, in the order in which they were submitted.

    The queue is bounded by the number of replicas, since each submits only a few jobs at a time. For jobs that must run
    in order, submit the next one when the one before is done. From any thread.
    """

    def __init__(self, size: int) -> None:
        self._waiting: deque[Job] = deque()
        self._abandoned = False
        self._refs = [_Worker.start(self) for _ in range(size)]
        self._idle: deque[pykka.ActorRef[Any]] = deque(self._refs)

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
                worker.tell(job)

    def _next(self, worker: _Worker) -> Job | None:
        try:
            return None if self._abandoned else self._waiting.popleft()
        except IndexError:
            self._idle.append(worker.actor_ref)
            # A job that was submitted just before that found no idle worker.
            self._dispatch()
            return None

    def stop(self, timeout: float = 5.0) -> int:
        """Let the workers end after all jobs that wait; return how many are still busy after `timeout` seconds.

        Those are abandoned, with an error in the log, and the jobs that still wait are dropped.
        """
        until = time.monotonic() + timeout
        stopped = [ref.stop(block=False) for ref in self._refs]
        left = 0
        for future in stopped:
            try:
                future.get(timeout=max(0.0, until - time.monotonic()))
            except pykka.Timeout:
                left += 1
        if left:
            self._abandoned = True
            self._waiting.clear()
            logger.error(
                "%d workers still work after %s seconds: they and their state machines are abandoned",
                left,
                timeout,
            )
        return left
