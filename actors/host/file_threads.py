"""Threads that read and write the files of streams, and what a host does that stops while one of them hangs."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import trio
from drakkar.handlers.errors import TransportError

__all__ = ["FILE_TIMEOUT_S", "FileThreads"]

MAX_THREADS: Final = 4
"""Threads that read and write files of streams at a time."""
FILE_TIMEOUT_S: Final = 3.0
"""How long a host that stops waits for them. A piece of a file takes milliseconds, even where its disk is slow."""

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Job:
    """One call that blocks on a disk."""

    what: str
    writes: bool


class FileThreads:
    """Calls functions that block on the disk, for a host's loop."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(MAX_THREADS)
        self._scopes: set[trio.CancelScope] = set()
        self._until = math.inf
        self._lock = threading.Lock()
        self._at_work: set[_Job] = set()
        self._when_written: Callable[[], object] | None = None

    async def read(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Call what reads a file; `what` names it. A cancellation takes effect when it has returned.

        Raises `TransportError` where the host stops and it does not return in time: its thread is left behind.
        """
        return await self._call(_Job(what, writes=False), function, args)

    async def write(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Call what changes a file, likewise: it is not cancelled midway, since the file would be left half written."""
        return await self._call(_Job(what, writes=True), function, args)

    async def _call(self, job: _Job, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        def work() -> T:
            with self._lock:
                self._at_work.add(job)
            try:
                return function(*args)
            finally:
                self._done(job)

        with trio.CancelScope(shield=True, deadline=self._until) as scope:
            self._scopes.add(scope)
            try:
                return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
            finally:
                self._scopes.discard(scope)
        raise TransportError(
            f"its host stops, and waits no longer for {job.what}: its file hangs, or is slow"
        )

    def _done(self, job: _Job) -> None:
        with self._lock:
            self._at_work.discard(job)
            written, self._when_written = self._when_written, None
            if any(each.writes for each in self._at_work):
                written, self._when_written = None, written
        if written is not None:
            written()

    def stop(self) -> None:
        """Wait for no call any longer than `FILE_TIMEOUT_S` from now on. In the loop's thread."""
        self._until = trio.current_time() + FILE_TIMEOUT_S
        for scope in self._scopes:
            scope.deadline = self._until

    def left_behind(self) -> list[str]:
        """Name the files of which threads have not come back. Once the loop has ended, from any thread."""
        with self._lock:
            return sorted(job.what for job in self._at_work)

    def when_written(self, function: Callable[[], object]) -> bool:
        """Call `function` when no thread changes a file any more: return True if that is at once. Once the loop has ended."""
        with self._lock:
            if any(job.writes for job in self._at_work):
                self._when_written = function
                return False
        function()
        return True
