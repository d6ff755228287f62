"""What the log does not wait for: flushes by the kernel or a thread, and jobs, all reported on the log's thread."""

import errno
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drakkar.actors.log import driver as log_driver
from drakkar.actors.log.driver import LoopDriver
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import StorageFailed
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import HardState, Membership

WAIT_S = 20.0
RECORD = Bootstrap(Membership({1: "a:1"}))
NAME = "file"


class Outcomes:
    """Collects what is reported, and by which thread."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self.threads: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self, outcome: Any) -> None:
        with self._changed:
            self.all.append(outcome)
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def wait(self, count: int = 1) -> list[Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, WAIT_S), self.all
            return list(self.all)


def no_aio(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The kernel or the file system does not know Linux AIO."""
    if how == "no extension":
        monkeypatch.setattr(log_driver, "linux_aio", None)
        return
    real = log_driver.linux_aio.Operation

    class Broken:
        @staticmethod
        def fdsync(handle: int) -> Any:
            if how == "refused":
                raise OSError(errno.EINVAL, "Invalid argument")
            # An operation on what cannot be flushed.
            return real.fdsync(PIPE[0]) if how == "an error result" else real.fdsync(handle)

    class Refusing:
        def __init__(self, *, max_requests: int) -> None:
            raise SystemError(f"io_setup for {max_requests} failed")

    class Silent:
        fileno = -1

        def __init__(self, *, max_requests: int) -> None:
            del max_requests

        def submit(self, _operation: object) -> None:
            pass

        def process_events(self, *_arguments: int) -> None:
            pass

        def poll(self) -> None:
            raise BlockingIOError

    class Extension:
        Operation = Broken
        Context = {"no context": Refusing, "never": Silent}.get(how, log_driver.linux_aio.Context)

    monkeypatch.setattr(log_driver, "linux_aio", Extension)


PIPE = os.pipe()
WAYS_TO_LACK_IT = ["no extension", "no context", "refused", "an error result", "never"]


@pytest.fixture(params=["aio", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "thread":
        no_aio(monkeypatch, "no extension")
    elif log_driver.linux_aio is None:
        pytest.skip("this system has no Linux AIO")
    return str(request.param)


@pytest.fixture
def loop() -> Iterator[TrioLoop]:
    with TrioLoop("the-loop") as loop:
        yield loop


@pytest.fixture
def files(tmp_path: Path) -> Iterator[DiskFiles]:
    (tmp_path / NAME).write_bytes(bytes(4096))
    files = DiskFiles(tmp_path)
    yield files
    files.close()


def driver_on(loop: TrioLoop, files: DiskFiles, name: str = NAME) -> LoopDriver:
    driver = LoopDriver(run_soon=loop.run_soon, run_now=loop.run_now, at_round_end=loop.at_round_end)
    driver.choose(files, name)
    loop.spawn(driver.serve)
    return driver


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("drakkar-log")}


def test_the_way_is_chosen_at_start_and_told(
    loop: TrioLoop, files: DiskFiles, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    driver = driver_on(loop, files)
    assert ("flushed by Linux AIO" in caplog.text) == (way == "aio")
    assert ("flushed by a thread" in caplog.text) == (way == "thread")
    assert ("drakkar-log-flush" in own_threads()) == (way == "thread")
    loop.stop()
    driver.finish()
    assert own_threads() == set()


@pytest.mark.parametrize("how", WAYS_TO_LACK_IT)
def test_a_thread_flushes_where_the_kernel_cannot(
    loop: TrioLoop,
    files: DiskFiles,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if log_driver.linux_aio is None:
        pytest.skip("this system has no Linux AIO")
    no_aio(monkeypatch, how)
    caplog.set_level(logging.INFO)
    driver = driver_on(loop, files)
    assert "flushed by a thread, since Linux AIO does not work: " in caplog.text
    assert not caplog.text.rstrip().endswith("work:")
    outcomes = Outcomes()
    loop.call(driver.flush, files, NAME, outcomes)
    assert outcomes.wait() == [None]
    loop.stop()
    driver.finish()


def test_flushes_and_jobs_are_reported_on_the_loop_in_order(
    loop: TrioLoop, files: DiskFiles, way: str
) -> None:
    del way
    driver, flushes, jobs = driver_on(loop, files), Outcomes(), Outcomes()
    for count in range(1, 30):
        loop.call(driver.flush, files, NAME, flushes)
        loop.call(driver.background, partial(int, count), jobs)
        flushes.wait(count)
    assert flushes.all == [None] * 29
    assert jobs.wait(29) == list(range(1, 30))
    assert flushes.threads == jobs.threads == {"the-loop"}
    loop.stop()
    driver.finish()


def test_an_error_of_a_flush_is_reported_with_its_number(
    loop: TrioLoop, files: DiskFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe cannot be flushed, which the kernel says even before it begins, and a thread afterwards."""
    no_aio(monkeypatch, "no extension")
    driver, outcomes = driver_on(loop, files), Outcomes()

    class Pipes(DiskFiles):  # type: ignore[misc]
        def handle(self, _name: str) -> int:
            return PIPE[1]

    loop.call(driver.flush, Pipes(files.path), NAME, outcomes)
    [error] = outcomes.wait()
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL
    assert error.strerror == os.strerror(errno.EINVAL)
    # The next one works again.
    loop.call(driver.flush, files, NAME, outcomes)
    assert outcomes.wait(2)[1] is None
    loop.stop()
    driver.finish()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_the_kernels_error_numbers_are_negative(number: int) -> None:
    aio = log_driver._Aio() if log_driver.linux_aio is not None else pytest.skip("no Linux AIO")
    outcomes: list[BaseException | None] = []
    aio._pending = outcomes.append
    aio._on_result((1 << 64) - number)
    aio.report(0)
    [error] = outcomes
    assert isinstance(error, OSError)
    assert error.errno == number


def test_a_flush_that_cannot_be_begun_is_not_waited_for(files: DiskFiles, loop: TrioLoop) -> None:
    driver = driver_on(loop, files)
    if driver._aio is None:
        pytest.skip("no Linux AIO")
    outcomes = Outcomes()

    class Closed(DiskFiles):  # type: ignore[misc]
        def handle(self, _name: str) -> int:
            return 1 << 20

    loop.call(driver.flush, Closed(files.path), NAME, outcomes)
    [error] = outcomes.all
    assert isinstance(error, OSError | SystemError | ValueError)
    loop.stop()
    driver.finish()
    assert len(outcomes.all) == 1


class Context:
    """The real context, of which a call fails a few times."""

    def __init__(self, real: Any, failing: str, error: Exception, times: int) -> None:
        self._real, self._failing, self._error, self.times = real, failing, error, times

    def __getattr__(self, name: str) -> Any:
        if name != self._failing:
            return getattr(self._real, name)

        def call(*arguments: Any) -> Any:
            if self.times:
                self.times -= 1
                raise self._error
            return getattr(self._real, name)(*arguments)

        return call


def test_a_wait_that_is_interrupted_goes_on(files: DiskFiles, loop: TrioLoop) -> None:
    driver, outcomes = driver_on(loop, files), Outcomes()
    if driver._aio is None:
        pytest.skip("no Linux AIO")
    interrupted = SystemError(errno.EINTR, "Interrupted system call")
    context = driver._aio._context = Context(driver._aio._context, "process_events", interrupted, 2)
    loop.call(driver.flush, files, NAME, outcomes)
    assert outcomes.wait() == [None]
    assert context.times == 0
    # Not so while a log is closed.
    loop.stop()
    driver.flush(files, NAME, outcomes)
    context.times = 2
    driver.finish()
    assert outcomes.all == [None, None]
    assert loop.crashes == context.times == 0


def test_a_wait_that_fails_is_no_interruption(files: DiskFiles) -> None:
    aio = log_driver._Aio.probed(files.handle(NAME)) if log_driver.linux_aio else pytest.skip("no Linux AIO")
    aio._context = Context(aio._context, "process_events", SystemError(errno.EINVAL, "Invalid argument"), 1)
    with pytest.raises(SystemError, match="Invalid argument"):
        aio.report(0)


def test_a_thread_does_a_flush_for_which_the_kernel_has_no_room(files: DiskFiles, loop: TrioLoop) -> None:
    driver, outcomes = driver_on(loop, files), Outcomes()
    if driver._aio is None:
        pytest.skip("no Linux AIO")
    context = driver._aio._context = Context(driver._aio._context, "submit", OverflowError("[EAGAIN]"), 1)
    assert "drakkar-log-flush" not in own_threads()
    loop.call(driver.flush, files, NAME, outcomes)
    assert outcomes.wait() == [None]
    assert "drakkar-log-flush" in own_threads()
    # The kernel does the next one again.
    worker, driver._flushes = driver._flushes, None
    loop.call(driver.flush, files, NAME, outcomes)
    assert outcomes.wait(2) == [None, None]
    assert driver._flushes is None
    assert context.times == 0
    driver._flushes = worker
    loop.stop()
    driver.finish()
    assert own_threads() == set()


def test_an_exception_of_a_job_is_its_outcome(loop: TrioLoop, files: DiskFiles) -> None:
    driver, outcomes = driver_on(loop, files), Outcomes()
    loop.call(driver.background, lambda: 1 // 0, outcomes)
    assert isinstance(outcomes.wait()[0], ZeroDivisionError)
    loop.stop()
    driver.finish()


def test_an_exception_of_an_outcome_is_logged_and_others_go_on(
    loop: TrioLoop, files: DiskFiles, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    del way
    driver, outcomes = driver_on(loop, files), Outcomes()

    def fail(_outcome: object) -> None:
        raise RuntimeError("the callback's own")

    loop.call(driver.flush, files, NAME, fail)
    loop.call(driver.background, lambda: None, fail)
    loop.call(driver.background, lambda: 7, outcomes)
    assert outcomes.wait() == [7]
    loop.call(driver.background, lambda: 8, outcomes)
    outcomes.wait(2)
    while caplog.text.count("RuntimeError: the callback's own") < 2:
        loop.call(lambda: None)
    assert loop.crashes == 2
    flushed = Outcomes()
    loop.call(driver.flush, files, NAME, flushed)
    assert flushed.wait() == [None]
    loop.stop()
    driver.finish()


def test_what_is_under_way_at_the_end_is_waited_for_and_reported(files: DiskFiles, way: str) -> None:
    """The loop has ended, so nothing else reports it."""
    del way
    loop = TrioLoop().start()
    driver, outcomes = driver_on(loop, files), Outcomes()
    go = threading.Event()
    loop.call(driver.background, lambda: go.wait(WAIT_S), outcomes)
    loop.call(driver.background, lambda: 2, outcomes)
    held = threading.Event()
    loop.run_soon(held.wait, WAIT_S)
    loop.run_soon(driver.flush, files, NAME, outcomes)
    held.set()
    loop.stop()
    finisher = threading.Thread(target=driver.finish)
    finisher.start()
    go.set()
    finisher.join(WAIT_S)
    assert sorted(map(str, outcomes.all)) == ["2", "None", "True"]
    assert outcomes.all.index(True) < outcomes.all.index(2)


def test_jobs_at_the_end_do_not_overtake_those_of_the_thread(files: DiskFiles, way: str) -> None:
    """What a flush reports asks for another job, while one is under way."""
    del way
    loop = TrioLoop().start()
    driver = driver_on(loop, files)
    begun: list[str] = []
    first_may_go, first_runs = threading.Event(), threading.Event()

    def first() -> None:
        first_runs.set()
        first_may_go.wait(WAIT_S)
        begun.append("first")

    loop.call(driver.background, first, lambda _outcome: None)
    assert first_runs.wait(WAIT_S)
    loop.stop()
    driver.flush(
        files, NAME, lambda _error: driver.background(lambda: begun.append("second"), lambda _outcome: None)
    )
    finisher = threading.Thread(target=driver.finish)
    finisher.start()
    finisher.join(0.2)
    first_may_go.set()
    finisher.join(WAIT_S)
    assert begun == ["first", "second"]


# -- with a log ---------------------------------------------------------------------------------------------------


def open_handles() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the folder itself
            found.add(f"{link.name} {link.readlink()}")
    return found


def saved(loop: TrioLoop, store: LogStore, index: int, size: int, done: Callable[[Any], None]) -> None:
    request = AppendRequest(1, 1, HardState(1, 1, index), [Run(index, 1, [bytes(size)])], done=done)
    loop.call(store.save, request)


def test_a_closed_log_leaves_no_thread_and_no_open_file(tmp_path: Path, way: str) -> None:
    del way
    gc.collect()
    before, threads = open_handles(), set(threading.enumerate())
    loop = TrioLoop().start()
    files = DiskFiles(tmp_path / "log")
    store = LogStore(files, "h", segment_bytes=4096)
    driver = driver_on(loop, files, store.active_file)
    loop.call(store.start, driver)
    outcomes = Outcomes()
    loop.call(store.begin, 1, 1, RECORD, None, outcomes)
    for index in range(1, 101):
        saved(loop, store, index, 3000, outcomes)
        outcomes.wait(index + 1)
    assert outcomes.all == [None] * 101
    log = store.open(1, 1)
    assert log is not None
    assert store.status.segments > 80
    for index in range(1, 101):
        assert loop.call(log.runs, index, index + 1, 1)[0].payloads == (bytes(3000),)
    assert len(open_handles() - before) < 64 + 12
    loop.call(store.compact, 1, 1, 90)
    loop.stop()
    store.close()
    gc.collect()
    assert open_handles() - before == set()
    assert set(threading.enumerate()) <= threads


def test_a_flush_that_fails_poisons_the_log(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = TrioLoop().start()
    files = DiskFiles(tmp_path / "log")
    store = LogStore(files, "h")
    driver = driver_on(loop, files, store.active_file)
    loop.call(store.start, driver)
    outcomes = Outcomes()
    loop.call(store.begin, 1, 1, RECORD, None, outcomes)
    assert outcomes.wait() == [None]
    if way == "aio":
        assert driver._aio is not None
        aio, on_result = driver._aio, driver._aio._on_result
        monkeypatch.setattr(aio, "_on_result", lambda _result: on_result((1 << 64) - errno.EIO))
    else:
        monkeypatch.setattr(log_driver.os, "fdatasync", fail_with_eio)
    saved(loop, store, 1, 10, outcomes)
    error = outcomes.wait(2)[1]
    assert isinstance(error, StorageFailed)
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.EIO
    monkeypatch.undo()
    saved(loop, store, 1, 10, outcomes)
    assert outcomes.wait(3)[2] is store.poisoned
    loop.stop()
    store.close()


def fail_with_eio(_handle: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
