"""Drivers do the work that the log must not wait for: flushes, and work on files that may take long.

`InlineDriver` does each thing in the caller's thread: for tools, tests and logs in memory. `LoopDriver` is for a host:
flushes are done by the kernel (Linux AIO) where that works, else by a thread. Two more threads
read, and do other work, so that no read waits while a segment is made.
"""

import errno
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, final

import trio
from drakkar.actors.log.files import DiskFiles, Files
from drakkar.actors.runtime.forks import Descriptor, on_fork
from drakkar.actors.runtime.log_lines import HostLines, Lines

try:
    from caio import linux_aio
except ImportError:  # not on Linux, or a kernel that it does not know
    linux_aio = None  # type: ignore[assignment]

__all__ = ["Driver", "InlineDriver", "LoopDriver"]

_PROBE_TIMEOUT_S: Final = 10
_FOREVER: Final = -1
_SIGN: Final = 1 << 63

_CONTEXTS_OF_PARENT: Final[list[Any]] = []
"""What a forked child has of its parent's contexts."""

Result = TypeVar("Result")
Outcome = Callable[[Any], None]
"""Called on the log's thread, with a result or an exception."""
Done = Callable[[BaseException | None], None]
"""The same for what has no result."""


class Driver(ABC):
    """What the log asks for. All methods are for the log's thread; outcomes are reported there too, in order."""

    @abstractmethod
    def defer(self, action: Callable[[], None]) -> None:
        """Call `action` soon, after the others of this round have made their requests."""

    @abstractmethod
    def flush(self, files: Files, name: str, done: Done) -> None:
        """Make durable what was written to a file. One at a time."""

    @abstractmethod
    def background(self, job: Callable[[], Any], done: Outcome) -> None:
        """Do a job that may block, after all earlier ones."""

    @abstractmethod
    def read(self, job: Callable[[], Any], done: Outcome) -> None:
        """Do a job that reads old entries, after all earlier ones of these."""

    @abstractmethod
    def finish(self) -> None:
        """Complete all that is under way. From now on, each method does its work before it returns.

        Blocks; from any thread, at the end.
        """


@final
class InlineDriver(Driver):
    """Does each thing before the method returns."""

    def defer(self, action: Callable[[], None]) -> None:
        action()

    def flush(self, files: Files, name: str, done: Done) -> None:
        done(_outcome(partial(files.sync, name)))

    def background(self, job: Callable[[], Any], done: Outcome) -> None:
        done(_outcome(job))

    read = background

    def finish(self) -> None:
        pass


@final
class LoopDriver(Driver):
    """Works for a log that lives on a loop."""

    def __init__(
        self,
        *,
        run_soon: Callable[[Callable[[], None]], None],
        run_now: Callable[[Callable[[], None]], None],
        at_round_end: Callable[[Callable[[], None]], None],
        lines: Lines | None = None,
    ) -> None:
        """Use these three of the loop: see `TrioLoop`."""
        self._lines = lines or HostLines().of("drakkar.actors.log")
        self._run_soon, self._run_now, self._at_round_end = run_soon, run_now, at_round_end
        self._completed: queue.SimpleQueue[tuple[Outcome, Any]] = queue.SimpleQueue()
        self._under_way = 0
        """Jobs and flushes of the threads that are not reported yet."""
        self._ending = False
        self._jobs = _Worker("drakkar-log-files", self._complete)
        self._reads = _Worker("drakkar-log-reads", self._complete)
        self._flushes: _Worker | None = None
        self._aio: _Aio | None = None
        self._inline: InlineDriver | None = None

    def choose(self, files: DiskFiles, name: str) -> None:
        """Find out, by a flush of this file, whether the kernel flushes in the background; else start a thread. Blocks."""
        problem = ""
        try:
            self._aio = _Aio.probed(files.handle(name))
        except (OSError, SystemError, ValueError, OverflowError, NotImplementedError) as error:
            problem = str(error)
        if self._aio is None:
            self._start_flushes()
            self._lines.info(
                "%s: the log is flushed by a thread, since Linux AIO does not work: %s", files.path, problem
            )
        else:
            self._lines.info("%s: the log is flushed by Linux AIO", files.path)

    async def serve(self) -> None:
        """Report flushes, in the loop's thread, until cancelled."""
        if self._aio is None:
            await trio.sleep_forever()
            return
        while True:
            await trio.lowlevel.wait_readable(self._aio.fileno)
            self._run_now(partial(self._aio.report, 0))

    def defer(self, action: Callable[[], None]) -> None:
        if self._ending:
            action()
        else:
            self._at_round_end(action)

    def flush(self, files: Files, name: str, done: Done) -> None:
        if self._inline is not None:
            self._inline.flush(files, name, done)
            return
        try:
            assert isinstance(files, DiskFiles)
            handle = files.handle(name)
            if self._aio is not None:
                # EAGAIN: the kernel has no room for it now, so a thread does it.
                with suppress(OverflowError):
                    self._aio.flush(handle, done)
                    return
            # The handle may be closed meanwhile, to open another file.
            self._submit(self._start_flushes(), partial(_sync_and_close, Descriptor(os.dup(handle))), done)
        except Exception as error:  # noqa: BLE001  # it is reported
            done(error)

    def _start_flushes(self) -> "_Worker":
        """Return the thread for flushes, which runs from now on."""
        if self._flushes is None:
            self._flushes = _Worker("drakkar-log-flush", self._complete)
        return self._flushes

    def background(self, job: Callable[[], Any], done: Outcome) -> None:
        self._submit(self._jobs, job, done)

    def read(self, job: Callable[[], Any], done: Outcome) -> None:
        self._submit(self._reads, job, done)

    def _submit(self, worker: "_Worker", job: Callable[[], Any], done: Outcome) -> None:
        if self._inline is not None:
            self._inline.background(job, done)
        else:
            self._under_way += 1
            worker.submit(job, done)

    def finish(self) -> None:
        """As `Driver.finish`, and end the threads. The loop must have ended, or never begun."""
        self._ending = True
        # What is reported may ask for more, which must not overtake what is under way.
        while self._under_way or (self._aio is not None and self._aio.busy):
            if self._aio is not None and self._aio.busy:
                self._aio.report(_FOREVER)
            if self._under_way:
                self._report_next(self._completed.get())
        self._inline, self._aio = InlineDriver(), None
        for worker in (self._flushes, self._jobs, self._reads):
            if worker is not None:
                worker.stop()

    def _complete(self, done: Outcome, outcome: Any) -> None:
        self._completed.put((done, outcome))
        with suppress(Exception):  # the loop has ended: `finish` reports it
            self._run_soon(self._report)

    def _report(self) -> None:
        while not self._completed.empty():
            self._report_next(self._completed.get())

    def _report_next(self, completed: tuple[Outcome, Any]) -> None:
        self._under_way -= 1
        done, outcome = completed
        done(outcome)


class _Worker:
    """A thread that does one job after the other."""

    def __init__(self, name: str, complete: Callable[[Outcome, Any], None]) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Outcome] | None] = queue.SimpleQueue()
        self._complete = complete
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any], done: Outcome) -> None:
        self._queue.put((job, done))

    def stop(self) -> None:
        """Wait until all is done."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            job, done = work
            self._complete(done, _outcome(job))


class _Aio:
    """Flushes by Linux AIO: the kernel does them in a thread of its own, and says by an eventfd when one is done."""

    def __init__(self) -> None:
        self._context = linux_aio.Context(max_requests=1)
        self._pending: Done | None = None
        self._result: int | None = None
        on_fork(self)

    def _let_go_in_child(self) -> None:
        """Close the eventfd in a forked child, and keep the context for good.

        The context itself is the parent's. Its end would close the number of the eventfd once more, and destroy a context
        that the child has made meanwhile at the same place in memory.
        """
        _CONTEXTS_OF_PARENT.append(self._context)
        os.close(self._context.fileno)

    @classmethod
    def probed(cls, handle: int) -> "_Aio":
        """Return one that works for this file. Raises one of several errors if none does."""
        if linux_aio is None:
            raise NotImplementedError("this system has none")
        aio = cls()
        outcomes: list[BaseException | None] = []
        aio.flush(handle, outcomes.append)
        aio.report(_PROBE_TIMEOUT_S)
        if not outcomes:
            raise NotImplementedError("a flush did not come to its end")
        if outcomes[0] is not None:
            raise outcomes[0]
        return aio

    @property
    def busy(self) -> bool:
        """Whether a flush is under way."""
        return self._pending is not None

    @property
    def fileno(self) -> int:
        """Readable when a flush is done."""
        return self._context.fileno

    def flush(self, handle: int, done: Done) -> None:
        """Begin to flush the data of an open file. Raises `OverflowError` if the kernel has no room for it now."""
        operation = linux_aio.Operation.fdsync(handle)
        operation.set_callback(self._on_result)
        self._context.submit(operation)
        self._pending = done

    def report(self, seconds: int) -> None:
        """Report the flush that is under way, if there is one. Waits for its end at most so long, or `_FOREVER`."""
        while not self._processed(seconds):
            pass
        with suppress(BlockingIOError):
            self._context.poll()
        result, self._result = self._result, None
        done = self._pending
        if result is not None and done is not None:
            self._pending = None
            # A negative error number, as an unsigned one.
            number = (1 << 64) - result if result >= _SIGN else 0
            done(OSError(number, os.strerror(number)) if number else None)

    def _processed(self, seconds: int) -> bool:
        """Return whether the wait came to its end: a debugger, or SIGSTOP and SIGCONT, may interrupt it."""
        try:
            self._context.process_events(1, int(seconds != 0), seconds)
        except SystemError as error:
            if error.args[:1] != (errno.EINTR,):
                raise
            return False
        return True

    def _on_result(self, result: int) -> None:
        # The extension only prints what this raises, so `done` is called elsewhere.
        self._result = result


def _sync_and_close(file: Descriptor) -> None:
    with file as handle:
        os.fdatasync(handle)


def _outcome(job: Callable[[], Result]) -> Result | BaseException:
    try:
        return job()
    except Exception as error:  # noqa: BLE001  # it is reported
        return error
