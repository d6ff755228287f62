"""A full disk is not a failed flush: what must be written has its reserve, and all goes on by itself when there is room."""

import logging
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from drakkar.actors.log import segments as log_segments
from drakkar.actors.log.driver import InlineDriver, LoopDriver
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import StorageFailed
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import HardState, Membership

from tests.actors.log.doubles import CappedFiles, StepDriver
from tests.actors.log.test_space import SEGMENT, Load


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is tried again after a second, which each tick brings."""
    monkeypatch.setattr(log_segments, "time", Clock)
    Clock.now = 1000.0


class Clock:
    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


class Full(Load):
    """A log that asks whether there is room, as replicas do, on a disk that fills up."""

    def __init__(self, files: CappedFiles, steps: StepDriver | None = None) -> None:
        super().__init__(files=files, steps=steps)
        self.saves_done = 0

    def fill(self, number: int = 1, size: int = 300) -> int:
        """Save as long as there is room; return how many requests that were."""
        shard = self.shards.get(number) or self.begin(number)
        count = 0
        while self.store.room(size + 200):
            self.save(shard, [bytes(size)])
            self.settle()
            count += 1
            assert count < 10_000
        return count

    def vote(self, term: int, number: int = 1) -> bool:
        """Return whether a hard state becomes durable."""
        outcomes: list[BaseException | None] = []
        self.store.save(AppendRequest(number, 1, HardState(term), done=outcomes.append))
        self.settle()
        assert outcomes in ([], [None])
        return outcomes == [None]

    def tick(self) -> None:
        Clock.now += 2
        self.store.tick()
        self.settle()

    @property
    def full(self) -> bool:
        return self.store.status.full


@pytest.fixture(params=[None, StepDriver], ids=["at once", "in the background"])
def steps(request: pytest.FixtureRequest) -> StepDriver | None:
    return request.param() if request.param is not None else None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_there_is_no_room_before_anything_fails_and_hard_states_go_on(
    steps: StepDriver | None, caplog: pytest.LogCaptureFixture
) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    assert load.fill() > 100
    assert load.full
    assert not load.store.room(500)
    assert load.store.status.waiting == 0
    for term in range(2, 100):
        assert load.vote(term)
    run = Run(load.shards[1].last + 1, 99, [b"the first entry of a new leader"])
    load.store.save(AppendRequest(1, 1, HardState(99), [run], done=load.done))
    load.settle()
    assert load.failed == []
    assert load.store.poisoned is None
    assert [text for text in warnings(caplog) if "the disk is full" in text] == warnings(caplog)
    assert len(warnings(caplog)) == 1


def test_entries_never_get_into_the_reserve_that_votes_have_begun_to_use(steps: StepDriver | None) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    assert load.fill() > 100
    # As many as have room in one of the two files.
    for term in range(2, 200):
        assert load.vote(term)
        load.fill()
    assert load.store.poisoned is None


def test_a_large_request_without_room_does_not_block_the_votes_behind_it(steps: StepDriver | None) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    shard = load.begin(1)
    while not load.full:
        load.save(shard, [bytes(300)])
        load.settle()
    segments = load.store._segments
    rests = [segment.rest for segment in (segments.active, segments.next) if segment is not None]
    assert not load.store.room(max(rests))
    assert load.vote(7)


def test_it_goes_on_by_itself_when_the_disk_grows(
    steps: StepDriver | None, caplog: pytest.LogCaptureFixture
) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    load.fill()
    for _ in range(5):
        load.tick()
        assert load.full
    load.files.capacity *= 2
    load.tick()
    assert not load.full
    assert load.store.room(500)
    assert [("is full" in text, "has room again" in text) for text in warnings(caplog)] == [
        (True, False),
        (False, True),
    ]
    load.save(load.shards[1], [b"goes on"])
    load.settle()
    load.check()


def test_it_goes_on_by_itself_when_the_log_is_compacted(
    steps: StepDriver | None, caplog: pytest.LogCaptureFixture
) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    load.begin(2)
    load.save(load.shards[2], [b"quiet"])
    load.fill()
    load.compact(load.shards[1], 5)
    load.settle()
    assert load.store.room(500)
    load.tick()
    assert not load.full
    assert load.store.room(500)
    assert len(warnings(caplog)) == 2
    load.check()


def test_room_is_seen_at_once_though_a_dropped_file_was_being_taken_when_the_disk_was_tried() -> None:
    """No file is made then that would show it."""
    steps = StepDriver()
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    load.fill()
    load.compact(load.shards[1], 5)
    while steps.step_any(steps.deferred, steps.flushes, steps.jobs):
        load.files.fill()
    while not steps.jobs:
        load.save(load.shards[1], [bytes(300)])
        steps.settle_but(lambda: bool(steps.jobs))
    assert load.full
    load.files.capacity *= 2
    load.tick()
    assert not load.full
    load.check()


def test_what_is_left_is_moved_to_get_room_back_on_a_full_disk(steps: StepDriver | None) -> None:
    """Half of each segment is needed for long, so nothing comes back without cleaning."""
    load = Full(CappedFiles(capacity=20 * SEGMENT + 2048), steps)
    quiet, busy = load.begin(1), load.begin(2)
    while load.store.room(1000):
        load.save(quiet, [bytes(300)])
        load.save(busy, [bytes(300)])
        load.settle()
    load.files.fill()
    load.compact(busy, 0)
    load.settle()
    assert load.store.room(SEGMENT // 2)
    while load.store.room(1000):
        load.save(busy, [bytes(300)])
        load.settle()
    assert load.store.poisoned is None
    load.check()


def test_a_request_that_waits_for_a_segment_is_written_when_there_is_room(steps: StepDriver | None) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    load.fill()
    shard = load.shards[1]
    while load.vote(2 + len(shard.entries)):
        load.save(shard, [bytes(3000)])
        load.settle()
    waiting = load.store.status.waiting
    assert waiting > 0
    assert load.store.status.busy_since is None, "a full disk does not hang"
    load.files.capacity *= 2
    load.tick()
    assert load.store.status.waiting == 0
    load.check()


def test_a_request_that_waits_for_a_segment_fails_when_the_log_is_closed(steps: StepDriver | None) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    load.fill()
    shard = load.shards[1]
    waiting: list[BaseException | None] = []
    index = shard.last + 1
    for at in range(200):
        run = Run(index + at, 1, [bytes(3000)])
        load.store.save(AppendRequest(1, 1, None, [run], done=waiting.append))
        load.settle()
    written = len(waiting)
    assert written < 200
    load.store.close()
    assert len(waiting) == 200
    assert all(isinstance(error, StorageFailed) for error in waiting[written:])
    assert "full" in str(waiting[-1])
    again = LogStore(load.files, "h", segment_bytes=SEGMENT)
    log = again.open(1, 1)
    assert log is not None
    assert log.last_index == index - 1 + written


def test_cleaning_goes_on_while_a_request_waits_for_a_segment() -> None:
    """Otherwise the log waits for room that only it can give back."""
    steps = StepDriver()
    load = Full(CappedFiles(capacity=20 * SEGMENT + 2048), steps)
    quiet, busy = load.begin(1), load.begin(2)
    while load.store.room(1000):
        load.save(quiet, [bytes(300)])
        load.save(busy, [bytes(300)])
        load.settle()
    # All that is ready is used up at once, but for the reserve of cleaning.
    load.compact(busy, 0)
    for _ in range(100):
        load.save(busy, [bytes(1000)])
    load.files.fill()
    for _ in range(5):
        load.settle()
        load.tick()
    assert load.store.status.waiting == 0
    load.check()


@pytest.mark.parametrize("size", [SEGMENT, 3 * SEGMENT])
def test_a_request_larger_than_a_segment_uses_up_nothing_while_it_waits(
    steps: StepDriver | None, size: int
) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    shard = load.begin(1)
    while load.store.room(size):
        load.save(shard, [bytes(300)])
        load.settle()
    load.save(shard, [bytes(size)])
    load.files.fill()
    for _ in range(20):
        load.tick()
    before = load.files.used
    assert load.store.status.waiting in {0, 1}
    load.files.capacity += SEGMENT  # not enough
    for _ in range(20):
        load.tick()
    assert load.files.used <= before + SEGMENT
    load.files.capacity += 8 * SEGMENT
    load.tick()
    load.tick()
    assert load.store.status.waiting == 0
    load.check()


def test_it_opens_on_a_full_disk(steps: StepDriver | None) -> None:
    load = Full(CappedFiles(capacity=10 * SEGMENT + 2048), steps)
    load.fill()
    load.files.fill()
    load.check()
    load.store.start(InlineDriver())
    assert not load.store.room(SEGMENT)
    load.steps = None
    assert load.vote(7)
    load.check()


@pytest.mark.parametrize("seed", range(10))
def test_a_disk_that_is_full_now_and_then_loses_nothing(seed: int) -> None:
    rng = random.Random(seed)
    steps = StepDriver()
    load = Full(CappedFiles(capacity=14 * SEGMENT), steps)
    shards = [load.begin(number) for number in range(1, 5)]

    def tick() -> None:
        Clock.now += rng.choice([0.1, 2])
        load.store.tick()

    actions: list[Callable[[], None]] = [
        lambda: setattr(load.files, "capacity", max(load.files.used, rng.randint(10, 40) * SEGMENT)),
        load.files.fill,
        tick,
        lambda: load.compact(rng.choice(shards[1:]), rng.randint(0, 50)),
    ]
    refused = 0
    for _ in range(2000):
        size = rng.choice([16, 300, 300, 2000, 2 * SEGMENT])
        if rng.random() < 0.1:
            rng.choice(actions)()
        elif load.store.room(size + 300):
            load.save(rng.choice(shards), [rng.randbytes(size)])
        else:
            refused += 1
        for _ in range(rng.randint(0, 6)):
            steps.step(rng, 0.5)
    assert refused
    assert load.store.poisoned is None
    load.files.capacity = 1 << 40
    load.tick()
    assert load.store.status.waiting == 0
    assert not load.full
    load.check()


# -- a real disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB in memory."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


class LiveLog:
    """A log on a loop, as a host has one."""

    def __init__(self, folder: Path) -> None:
        self.loop = TrioLoop().start()
        files = DiskFiles(folder)
        self.store = LogStore(files, "h", segment_bytes=1 << 16)
        driver = LoopDriver(
            run_soon=self.loop.run_soon, run_now=self.loop.run_now, at_round_end=self.loop.at_round_end
        )
        driver.choose(files, self.store.active_file)
        self.loop.call(self.store.start, driver)
        self.loop.spawn(driver.serve)

    def ask(self, request: Callable[[Callable[[BaseException | None], None]], None]) -> None:
        """Make a request on the loop, and wait until it is done."""
        outcomes: list[BaseException | None] = []
        done = threading.Event()

        def on_done(error: BaseException | None) -> None:
            outcomes.append(error)
            done.set()

        self.loop.call(request, on_done)
        assert done.wait(20)
        assert outcomes == [None]

    def save(self, index: int, size: int, term: int = 1) -> None:
        runs = [Run(index, term, [bytes(size)])] if size else []
        self.ask(
            lambda done: self.store.save(AppendRequest(1, 1, HardState(term, 1, index - 1), runs, done=done))
        )

    def room(self, size: int) -> bool:
        return bool(self.loop.call(self.store.room, size))

    def tick_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not is_so():
            assert time.monotonic() < deadline, self.store.status
            Clock.now += 2
            self.loop.call(self.store.tick)

    def close(self) -> None:
        self.loop.stop()
        self.store.close()


def test_a_real_disk_fills_up_and_has_room_again(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = LiveLog(small_disk / "log")
    log.ask(lambda done: log.store.begin(1, 1, Bootstrap(Membership({1: "a:1"})), None, done))
    assert log.loop.call(log.store.open, 1, 1) is not None
    index = 0
    while log.room(3000):
        index += 1
        log.save(index, 2000)
    assert index > 100
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert os.statvfs(small_disk).f_bavail == 0
    for term in range(2, 50):
        log.save(index + 1, 0, term)
    index += 1
    log.save(index, 30, 50)
    log.tick_until(lambda: log.store.status.full)
    log.loop.call(log.store.compact, 1, 1, index - 5)
    log.tick_until(lambda: log.room(3000))
    for _ in range(20):
        index += 1
        log.save(index, 2000, 50)
    ballast.unlink()
    log.tick_until(lambda: not log.store.status.full)
    while index % 300:
        index += 1
        log.save(index, 2000, 50)
        log.loop.call(log.store.compact, 1, 1, index - 5)
    assert log.store.poisoned is None
    assert len([text for text in warnings(caplog) if "is full" in text]) == 1
    log.close()
    again = LogStore(DiskFiles(small_disk / "log"), "h", segment_bytes=1 << 16)
    found = again.open(1, 1)
    assert found is not None
    assert (found.last_index, found.term(index)) == (index, 50)
    again.close()
