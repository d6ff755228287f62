"""The log on real disks: processes that are killed, a disk that is full, and calls of the kernel that fail."""

import ctypes
import errno
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from drakkar.actors.log import driver as log_driver
from drakkar.actors.log import segments
from drakkar.actors.log.driver import LoopDriver
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.records import ReplicaKey
from drakkar.actors.log.store import AppendRequest, LogStore, log_on_disk
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import StorageFailed
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.state import HardState

from tests.actors.log.crashing import OWNER, RECORD

SEGMENT_BYTES = 1 << 15
QUIET: ReplicaKey = (1, 9)
BUSY: list[ReplicaKey] = [(1, 1), (1, 2), (2, 1)]
KEPT = 20
"""Entries that are not compacted."""


def payload(key: ReplicaKey, index: int) -> bytes:
    return b"%d:%d:%d;" % (*key, index) * (1 + index * 7 % 40)


@contextmanager
def running(
    directory: Path, *, aio: bool, create: bool = False
) -> Iterator[tuple[LogStore, TrioLoop, LoopDriver]]:
    """A log on a loop, as on a host."""
    files = DiskFiles(directory)
    store = LogStore(files, OWNER, create=create, segment_bytes=SEGMENT_BYTES)
    loop = TrioLoop().start()
    driver = LoopDriver(run_soon=loop.run_soon, run_now=loop.run_now, at_round_end=loop.at_round_end)
    with pytest.MonkeyPatch.context() as patch:
        if not aio:
            patch.setattr(log_driver, "linux_aio", None)
        driver.choose(files, store.active_file)
    if aio and driver._aio is None:
        pytest.skip("needs Linux AIO")
    loop.call(store.start, driver)
    loop.spawn(driver.serve)
    try:
        yield store, loop, driver
    finally:
        loop.stop()
        store.close()


# -- processes that are killed ----------------------------------------------------------------------------------------


def write_until_killed(directory: Path, told: int, *, aio: bool) -> None:
    """Write to some replicas, and tell what is durable, in a process of its own."""
    with running(directory, aio=aio) as (store, loop, _):

        def write(key: ReplicaKey, first: int) -> None:
            if first % 50 == 0:
                store.compact(*key, first - KEPT)
            run = Run(first, first, [payload(key, index) for index in range(first, first + 1 + first % 3)])
            hard = HardState(first, key[1], first - 1)
            store.save(AppendRequest(*key, hard, [run], done=partial(written, key, run.last)))

        def written(key: ReplicaKey, last: int, error: BaseException | None) -> None:
            assert error is None
            os.write(told, b"%d %d %d\n" % (*key, last))
            write(key, last + 1)

        def begin() -> None:
            for key in BUSY:
                log = store.open(*key)
                assert log is not None
                write(key, log.last_index + 1)

        loop.run_soon(begin)
        time.sleep(1000)


def look(directory: Path, acknowledged: dict[ReplicaKey, int]) -> int:
    """See that all is there, by a process that only reads first; return the number of entries that were compacted."""
    store = LogStore(DiskFiles(directory), OWNER, create=False, segment_bytes=SEGMENT_BYTES)
    compacted = 0
    for key in (*BUSY, QUIET):
        log = store.open(*key)
        assert log is not None
        assert log.last_index >= acknowledged.get(key, 0)
        assert log.first_index <= max(log.last_index - KEPT, 0) + 2
        for entry in Entries(log.runs(log.first_index, log.last_index + 1, UNLIMITED)):
            assert entry.payload == payload(key, entry.index)
        acknowledged[key] = log.last_index
        compacted += log.first_index - 1
    store.close()
    return compacted


def kill_again_and_again(directory: Path, times: int, *, aio: bool) -> None:
    store = log_on_disk(directory, OWNER, create=True, segment_bytes=SEGMENT_BYTES)
    outcomes: list[BaseException | None] = []
    for key in (*BUSY, QUIET):
        run = Run(1, 1, [payload(key, index) for index in range(1, KEPT)])
        store.begin(*key, RECORD, (HardState(1, 0, 0), run), outcomes.append)
    assert outcomes == [None] * 4
    store.close()
    acknowledged: dict[ReplicaKey, int] = {}
    rng, compacted = random.Random(1), 0
    for _ in range(times):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            write_until_killed(directory, write, aio=aio)
            os._exit(1)
        os.close(write)
        with os.fdopen(read, "rb") as told:
            first = told.readline()
            assert first, "it ended before it wrote anything"
            time.sleep(rng.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for line in (first, *told):
                if line.endswith(b"\n"):
                    shard, replica, last = map(int, line.split())
                    acknowledged[shard, replica] = last
        compacted = look(directory, acknowledged)
    assert compacted > times
    print(sum(acknowledged.values()), compacted, sorted(path.name for path in directory.iterdir()))


def in_a_process(call: str, *arguments: object) -> str:
    """Call a function of this file in a process of its own, which has no threads yet; return what it printed."""
    script = f"import logging, pathlib; logging.disable(); from {__name__} import *; {call}"
    child = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return child.stdout


@pytest.mark.parametrize("aio", [True, False], ids=["AIO", "a thread"])
def test_a_process_that_is_killed_loses_nothing_that_it_told(aio: bool, tmp_path: Path) -> None:
    print(in_a_process(f"kill_again_and_again(pathlib.Path(sys.argv[1]), 12, aio={aio})", tmp_path / "log"))


@pytest.mark.slow
@pytest.mark.parametrize("aio", [True, False], ids=["AIO", "a thread"])
def test_many_processes_that_are_killed_lose_nothing_that_they_told(aio: bool, tmp_path: Path) -> None:
    in_a_process(f"kill_again_and_again(pathlib.Path(sys.argv[1]), 300, aio={aio})", tmp_path / "log")


# -- calls of the kernel that fail ------------------------------------------------------------------------------------

_CALLS = {"x86_64": {"fdatasync": 75, "io_submit": 209}, "aarch64": {"fdatasync": 83, "io_submit": 2}}
"""Their numbers, by machine."""


def break_call(name: str) -> bool:
    """For ever, this call of this thread fails with EIO; False where the system has no way to do that."""
    number = _CALLS.get(platform.machine(), {}).get(name)
    if sys.platform != "linux" or number is None:
        return False
    load, compare, answer = 0x20, 0x15, 0x06
    fail, allow = 0x00050000 | errno.EIO, 0x7FFF0000
    steps = [(load, 0, 0, 0), (compare, 0, 1, number), (answer, 0, 0, fail), (answer, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None)
    no_new_privileges, seccomp, filtering = 38, 22, 2
    program = struct.pack("HP", len(steps), ctypes.addressof(code))
    return not libc.prctl(no_new_privileges, 1, 0, 0, 0) and not libc.prctl(seccomp, filtering, program, 0, 0)


def at_once(loop: TrioLoop, request: Callable[[log_driver.Outcome], None]) -> BaseException | None:
    """Make a request on the loop, and wait for what comes of it."""
    finished, outcomes = threading.Event(), []

    def done(error: BaseException | None) -> None:
        outcomes.append(error)
        finished.set()

    loop.run_soon(partial(request, done))
    assert finished.wait(20)
    return outcomes[0]


@pytest.mark.parametrize("aio", [True, False], ids=["AIO", "a thread"])
def test_a_flush_that_the_kernel_refuses_is_the_last_one(aio: bool, tmp_path: Path) -> None:
    """BUG-L12: what was written before it stays in the cache, and the next flush would report success."""
    log_on_disk(tmp_path / "log", OWNER, create=True, segment_bytes=SEGMENT_BYTES).close()
    with running(tmp_path / "log", aio=aio) as (store, loop, driver):

        def save(index: int) -> BaseException | None:
            run = Run(index, 1, [payload((1, 1), index)])
            return at_once(
                loop, lambda done: store.save(AppendRequest(1, 1, HardState(index), [run], done=done))
            )

        assert at_once(loop, lambda done: store.begin(1, 1, RECORD, None, done)) is None
        assert save(1) is None
        broken: list[object] = []
        if aio:
            loop.run_soon(lambda: broken.append(break_call("io_submit")))
        else:
            assert driver._flushes is not None
            driver._under_way += 1
            driver._flushes.submit(partial(break_call, "fdatasync"), broken.append)
        while not broken:
            time.sleep(0.01)
        if broken != [True]:
            pytest.skip("needs Linux with seccomp filters, on x86-64 or ARM64")
        refused = save(2)
        assert isinstance(refused, StorageFailed)
        assert "Input/output error" in str(refused)
        assert str(tmp_path / "log") in str(refused)
        assert save(2) is refused
        assert store.poisoned is refused
    again = log_on_disk(tmp_path / "log", OWNER, create=False, segment_bytes=SEGMENT_BYTES)
    log = again.open(1, 1)
    assert log is not None
    assert log.last_index in (1, 2)
    assert log.hard_state.term == log.last_index
    again.close()


# -- a disk that is full ----------------------------------------------------------------------------------------------


def retry_at_once() -> None:
    """Look for room at each call of `tick`, in this process."""
    vars(segments)["_RETRY_S"] = 0.0


class FullDisk:
    """A log on a small disk, which is filled up by another file."""

    def __init__(self, disk: Path) -> None:
        self._ballast, self._directory = disk / "ballast", disk / "log"
        self.last = self.term = 0
        """What is durable."""
        self.outcomes: list[BaseException | None] = []
        self.store = log_on_disk(self._directory, OWNER, create=True, segment_bytes=SEGMENT_BYTES)
        self.store.begin(1, 1, RECORD, None, self.outcomes.append)

    def save(self) -> None:
        """Save an entry, which need not become durable at once."""
        self.last += 1
        run = Run(self.last, 1, [b"%d/" % self.last * 300])
        self.store.save(AppendRequest(1, 1, None, [run], done=self.outcomes.append))

    def vote(self) -> None:
        self.term += 1
        self.store.save(AppendRequest(1, 1, HardState(self.term), done=self.outcomes.append))

    def expect(self, count: int = 1) -> None:
        """All that was requested since the last call is durable."""
        assert self.outcomes == [None] * count
        self.outcomes.clear()

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        self._ballast.unlink()
        self.store.tick()

    def restart(self) -> None:
        self.store.close()
        self.store = log_on_disk(self._directory, OWNER, create=False, segment_bytes=SEGMENT_BYTES)
        self.check()

    def check(self) -> None:
        log = self.store.open(1, 1)
        assert log is not None
        assert (log.last_index, log.hard_state.term) == (self.last, self.term)
        for entry in Entries(log.runs(1, self.last + 1, UNLIMITED)):
            assert entry.payload == b"%d/" % entry.index * 300


def live_on_a_full_disk(disk: Path) -> None:
    """Fill the disk again and again, restart on the full one, and make room; to be called in a process of its own."""
    log = FullDisk(disk)
    log.expect()
    for life in range(4):
        log.fill()
        while log.store.room(2000):
            log.save()
            log.expect()
        assert log.store.status.full
        for _ in range(50):
            # Votes have a reserve.
            log.vote()
            log.expect()
            log.store.tick()
        log.check()
        log.restart()
        assert not log.store.room(SEGMENT_BYTES)
        log.vote()
        log.expect()
        saved = 0
        if life % 2:
            # What does not ask whether there is room is saved, until there is none, and then waits.
            while len(log.outcomes) == saved:
                log.save()
                saved += 1
            log.store.tick()
            assert len(log.outcomes) == saved - 1
        log.make_room()
        log.expect(saved)
        assert log.store.room(2000)
        for _ in range(100):
            log.save()
            log.expect()
        assert log.store.poisoned is None
        assert not log.store.status.full
        log.check()
    log.restart()
    log.store.close()
    print("sound", log.last)


def test_a_log_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """On a file system of some megabytes, which no other process sees."""
    mount = f'mount -t tmpfs -o size=6m tmpfs "{tmp_path}"'
    alone = ["unshare", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*alone, mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system in a name space of its own: run it as root")
    script = f"import sys, pathlib; from {__name__} import *; retry_at_once(); live_on_a_full_disk(pathlib.Path(sys.argv[1]))"
    child = subprocess.run(
        [*alone, f'{mount} && exec "$0" "$@"', sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert child.returncode == 0, child.stderr[-4000:]
    assert child.stdout.startswith("sound")


# -- the end of a loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aio", [True, False], ids=["AIO", "a thread"])
def test_what_is_asked_for_at_the_end_comes_after_what_is_under_way(aio: bool, tmp_path: Path) -> None:
    """Jobs read and write the same manifest: one that overtakes another brings its old text back."""
    files = DiskFiles(tmp_path)
    files.allocate("a file", 4096, filled=True)
    driver = LoopDriver(run_soon=lambda _fn: None, run_now=lambda fn: fn(), at_round_end=lambda _fn: None)
    with pytest.MonkeyPatch.context() as patch:
        if not aio:
            patch.setattr(log_driver, "linux_aio", None)
        driver.choose(files, "a file")
    begun, go = threading.Event(), threading.Event()
    order: list[object] = []

    def job() -> str:
        begun.set()
        assert go.wait(20)
        order.append("first job")
        return "first outcome"

    def flushed(error: BaseException | None) -> None:
        order.append(error)
        driver.background(lambda: order.append("second job"), lambda _outcome: order.append("second outcome"))
        go.set()

    driver.background(job, order.append)
    assert begun.wait(20)
    driver.flush(files, "a file", flushed)
    ending = threading.Thread(target=driver.finish)
    ending.start()
    if aio:
        ending.join(0.2)
    else:
        go.set()
    ending.join(20)
    assert not ending.is_alive()
    for what in ("job", "outcome"):
        assert order.index(f"first {what}") < order.index(f"second {what}")
    driver.background(lambda: order.append("third job"), order.append)
    assert order[-2:] == ["third job", None]
    files.close()
