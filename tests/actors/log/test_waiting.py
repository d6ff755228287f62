"""The log store on a loop: what waits shares a flush, and nothing waits for the disk but the requests themselves.

With Linux AIO, and with a thread that flushes.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from drakkar.actors.log import driver as log_driver
from drakkar.actors.log import store as log_store
from drakkar.actors.log.files import DiskFiles, MemoryFiles
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore
from drakkar.handlers.errors import ConfigError, OutcomeUnknown, ReplicaStopped, StorageFailed, SystemBusy
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

from tests.actors.log.doubles import StepDriver
from tests.actors.log.support import (
    OWNER,
    RECORD,
    WAIT,
    LoopHost,
    Waiter,
    check,
    failing_flushes,
    held_flushes,
    of,
    run,
    without_aio,
)


@pytest.fixture(params=["aio", "thread"])
def flushes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "thread":
        without_aio(monkeypatch)
    return str(request.param)


@pytest.fixture
def host(flushes: str, tmp_path: Path) -> Iterator[LoopHost]:
    made = LoopHost(tmp_path / "log", segment_bytes=1 << 18)
    yield made
    made.close()


# -- who flushes ------------------------------------------------------------------------------------------------------


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_the_kernel_flushes_or_else_a_thread_and_the_log_says_so(
    flushes: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = threads()
    with caplog.at_level(logging.INFO):
        host = LoopHost(tmp_path / "log")
    if flushes == "aio":
        assert f"{tmp_path / 'log'}: the log is flushed by Linux AIO" in caplog.text
        assert "drakkar-log-flush" not in threads() - before
    else:
        assert "flushed by a thread, since Linux AIO does not work: not in this kernel" in caplog.text
        assert "drakkar-log-flush" in threads() - before
    host.begin()
    assert host.save(run(1, 1)) is None
    host.close()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("linux_aio", None),
        ("_PROBE_TIMEOUT_S", 0),
    ],
    ids=["the module cannot be imported", "a flush does not come to its end"],
)
def test_a_kernel_without_aio_is_found_by_a_flush(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    problem: object,
) -> None:
    if name == "_PROBE_TIMEOUT_S":
        monkeypatch.setattr(log_driver._Aio, "flush", lambda *_arguments: None)
    monkeypatch.setattr(log_driver, name, problem)
    with caplog.at_level(logging.INFO):
        host = LoopHost(tmp_path / "log")
    assert "flushed by a thread" in caplog.text
    host.begin()
    assert host.save(run(1, 1)) is None
    host.close()


# -- one flush for all ------------------------------------------------------------------------------------------------


def test_all_that_waits_while_a_flush_is_under_way_shares_the_next_one(
    host: LoopHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for replica in range(1, 41):
        host.begin(1, replica)
    before = host.store.status
    waiter = Waiter()
    with held_flushes(host, monkeypatch) as go:
        for index in range(1, 6):
            for replica in range(1, 41):
                host.call(host.store.save, AppendRequest(1, replica, None, [run(index, 1)], done=waiter))
        assert host.store.status.waiting == 201
        go.set()
        assert waiter.wait(200) == [None] * 200
    after = host.store.status
    assert after.commits - before.commits == 2, "the one that was under way, and one for all the others"
    assert after.entries - before.entries == 200
    assert (after.waiting, after.waiting_bytes) == (0, 0)
    host.restart()
    for replica in range(1, 41):
        check(host.log(1, replica), of(run(1, 5)), 1, 0)


def test_what_is_asked_for_in_one_round_shares_a_flush(host: LoopHost) -> None:
    before, waiter = host.store.status.commits, Waiter()

    def begin_many() -> None:
        for replica in range(1, 101):
            host.store.begin(1, replica, RECORD, (HardState(1, 0, 1), run(1, 1)), waiter)

    host.call(begin_many)
    assert waiter.wait(100) == [None] * 100
    assert host.store.status.commits == before + 1
    host.restart()
    assert len(host.store.replicas()) == 100
    check(host.log(1, 77), of(run(1, 1)), 1, 0)


def test_one_that_begins_in_vain_keeps_no_other_from_it(host: LoopHost) -> None:
    host.begin(1, 2)
    waiter = Waiter()

    def begin_many() -> None:
        for replica in (1, 2, 3):
            host.store.begin(1, replica, RECORD, None, waiter)

    host.call(begin_many)
    assert [type(outcome) for outcome in waiter.wait(3)] == [type(None), ConfigError, type(None)]
    assert host.store.replicas() == [(1, 1), (1, 2), (1, 3)]


def test_callbacks_come_after_the_flush_and_on_the_loops_thread(
    host: LoopHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = host.begin()
    seen: list[tuple[str, int]] = []
    waiter = Waiter()

    def done(error: BaseException | None) -> None:
        seen.append((threading.current_thread().name, log.last_index))
        waiter(error)

    with held_flushes(host, monkeypatch) as go:
        host.call(host.store.save, AppendRequest(1, 1, None, [run(1, 3)], done=done))
        assert not seen
        assert host.call(lambda: log.last_index) == 0
        assert host.call(lambda: log.hard_state) == HardState(), "it is written, but not durable"
        go.set()
        waiter.wait()
    assert seen == [("log", 3)]


def test_saves_of_many_replicas_are_reported_in_order_with_what_fails_among_them(host: LoopHost) -> None:
    for replica in (1, 2):
        host.begin(1, replica)
    told: list[int] = []
    waiter = Waiter()

    def save_all() -> None:
        for number in range(1, 11):
            # The second replica's log has a gap.
            each = run(number, 1) if number % 2 else run(number + 5, 1)

            def done(error: BaseException | None, number: int = number) -> None:
                told.append(number)
                waiter(error)

            host.store.save(AppendRequest(1, 1 + (number + 1) % 2, HardState(number), [each], done=done))

    host.call(save_all)
    outcomes = waiter.wait(10)
    assert told == list(range(1, 11))
    assert outcomes[0] is None
    assert [outcome is None for outcome in outcomes[1::2]] == [False] * 5


# -- a disk that hangs --------------------------------------------------------------------------------------------


def test_a_hung_disk_blocks_no_call(host: LoopHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.begin()
    host.save(run(1, 5))
    log = host.log()
    began = time.monotonic()
    assert host.store.status.busy_since is None
    waiter = Waiter()
    with held_flushes(host, monkeypatch) as go:
        busy_since = host.store.status.busy_since
        assert busy_since is not None
        assert began <= busy_since <= time.monotonic()
        host.call(host.store.save, AppendRequest(1, 1, None, [run(6, 1)], done=waiter))
        host.call(host.store.record_snapshot, 1, 1, Snapshot(2, 1), waiter)
        host.call(host.store.begin, 2, 2, RECORD, None, waiter)
        host.call(host.store.after_all, waiter)
        host.compact(2)
        host.call(check, log, of(run(3, 3)), 3, 1)
        assert host.call(host.store.open, 2, 2) is None
        assert not waiter.outcomes
        go.set()
        assert waiter.wait(4) == [None] * 4
    host.log(2, 2)


def test_closing_waits_for_a_hung_disk_only_so_long_and_what_waits_becomes_durable(
    host: LoopHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.begin()
    waiter = Waiter()
    with held_flushes(host, monkeypatch) as go:
        host.call(host.store.save, AppendRequest(1, 1, None, [run(1, 3)], done=waiter))
        host.loop.stop()
        with pytest.raises(OutcomeUnknown, match=r"did not finish within 0.01 s"):
            host.store.close(timeout=0.01)
        with pytest.raises(ReplicaStopped, match="is closed"):
            host.store.save(AppendRequest(1, 1, done=waiter))
        assert not waiter.outcomes
        go.set()
        assert waiter.wait() == [None]
    until_closed()
    host.restart()
    check(host.log(), of(run(1, 3)), 1, 0)
    assert host.log().hard_state.term == 1000


def until_closed() -> None:
    for thread in threading.enumerate():
        if thread.name == "drakkar-log-close":
            thread.join(WAIT)


def test_a_stop_makes_durable_what_waits(host: LoopHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.begin()
    waiter = Waiter()
    with held_flushes(host, monkeypatch) as go:
        host.call(host.store.save, AppendRequest(1, 1, None, [run(1, 3)], done=waiter))
        host.call(host.store.save, AppendRequest(1, 1, HardState(1001), [run(4, 1)], done=waiter))
        host.loop.stop()
        go.set()
        host.close()
    assert waiter.wait(2) == [None, None]
    host.restart()
    check(host.log(), of(run(1, 4)), 1, 0)
    assert host.log().hard_state.term == 1001


def test_what_was_asked_for_in_the_last_round_is_made_durable_too(host: LoopHost) -> None:
    host.begin()
    waiter = Waiter()

    def save_and_stop() -> None:
        host.store.save(AppendRequest(1, 1, None, [run(1, 3)], done=waiter))
        host.loop._request_stop()

    host.call(save_and_stop)
    host.restart()
    assert waiter.wait() == [None]
    check(host.log(), of(run(1, 3)), 1, 0)


def test_what_waits_for_the_end_of_a_round_that_never_comes_is_made_durable_too(
    host: LoopHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that has ended makes no more calls."""
    host.begin()
    waiter = Waiter()
    with monkeypatch.context() as patch:
        patch.setattr(log_driver.LoopDriver, "defer", lambda *_arguments: None)
        host.call(host.store.save, AppendRequest(1, 1, None, [run(1, 3)], done=waiter))
        host.close()
    assert waiter.outcomes == [None]
    host.restart()
    check(host.log(), of(run(1, 3)), 1, 0)


def test_a_log_that_was_closed_leaves_no_thread_and_no_open_file(flushes: str, tmp_path: Path) -> None:
    for _ in range(2):
        LoopHost(tmp_path / "log").close()
    before, files = threads(), open_files()
    for _ in range(10):
        host = LoopHost(tmp_path / "log")
        if not host.store.replicas():
            host.begin()
        host.save(hard=HardState(host.log().hard_state.term + 1))
        host.close()
    assert threads() == before
    assert open_files() <= files


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_takes_again_when_there_is_room(
    flushes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = LoopHost(tmp_path / "log", max_queue_bytes=1000, max_queue_saves=5)
    host.begin()
    waiter = Waiter()
    with held_flushes(host, monkeypatch) as go:
        for commit in range(4):
            host.call(host.store.save, AppendRequest(1, 1, HardState(1000, 0, commit), done=waiter))
        for refused in (
            partial(host.store.save, AppendRequest(1, 1, HardState(1000, 0, 9), done=waiter)),
            partial(host.store.record_snapshot, 1, 1, Snapshot(1, 1), waiter),
        ):
            with pytest.raises(SystemBusy, match="has 5 requests of 0 bytes waiting, of at most 5 and 1000"):
                host.call(refused)
        assert host.store.status.refused == 2
        go.set()
        assert waiter.wait(4) == [None] * 4
    with held_flushes(host, monkeypatch, term=1001) as go:
        host.call(host.store.save, AppendRequest(1, 1, None, [Run(1, 1, [bytes(500)])], done=waiter))
        with pytest.raises(SystemBusy, match=r"has 2 requests of 6\d\d bytes"):
            host.call(host.store.save, AppendRequest(1, 1, None, [Run(2, 1, [bytes(500)])], done=waiter))
        go.set()
        assert waiter.wait(5) == [None] * 5
    assert host.save(Run(2, 1, [bytes(50_000)])) is None, (
        "one that is too large alone would otherwise never go"
    )
    host.close()


def test_a_refused_compaction_leaves_the_log_as_it_was(
    flushes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = LoopHost(tmp_path / "log", max_queue_saves=1)
    host.begin()
    host.save(run(1, 5))
    log = host.log()
    with held_flushes(host, monkeypatch):
        with pytest.raises(SystemBusy):
            host.compact(3)
        host.call(check, log, of(run(1, 5)), 1, 0)
    host.close()


# -- a disk that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_the_first_failed_flush_poisons_the_store_for_good(
    host: LoopHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """BUG-L12: the next fsync may succeed, and the pages are lost all the same."""
    host.begin()
    host.begin(1, 2)
    host.save(run(1, 5), hard=HardState(1, 1, 0))
    log, waiter = host.log(), Waiter()

    def save_all() -> None:
        host.store.save(AppendRequest(1, 1, HardState(1001, 1, 3), done=waiter))
        host.store.save(AppendRequest(1, 1, None, [run(6, 1)], done=waiter))
        host.store.save(AppendRequest(1, 2, None, [run(1, 1)], done=waiter))

    with failing_flushes(monkeypatch, number):
        host.call(save_all)
        outcomes = waiter.wait(3)
    poison = host.store.poisoned
    assert isinstance(poison, StorageFailed)
    assert isinstance(poison.__cause__, OSError)
    assert poison.__cause__.errno == number
    assert outcomes == [poison] * 3
    host.call(check, log, of(run(1, 5)), 1, 0)
    assert host.save(hard=HardState(1001, 1, 5)) is poison, "a commit index too: no request may seem durable"
    assert host.save(run(1, 1), replica=2) is poison
    with pytest.raises(StorageFailed, match="restart this host"):
        host.bootstrap(3, 3)
    with pytest.raises(StorageFailed, match="restart this host"):
        host.log()
    assert host.store.status.poisoned is poison
    assert [record.levelno for record in caplog.records].count(logging.CRITICAL) == 1


def test_what_waits_behind_a_flush_that_fails_fails_too(
    host: LoopHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.begin()
    waiter = Waiter()
    with failing_flushes(monkeypatch, errno.EIO), held_flushes(host, monkeypatch) as go:
        host.call(host.store.save, AppendRequest(1, 1, None, [run(1, 3)], done=waiter))
        host.call(host.store.after_all, waiter)
        go.set()
        outcomes = waiter.wait(2)
    assert outcomes == [host.store.poisoned] * 2


def fail(*_arguments: object) -> None:
    raise OSError(errno.EMFILE, "too many")


@pytest.mark.parametrize("where", ["submit", "write"])
def test_what_fails_before_the_flush_is_not_left_unsaid(
    host: LoopHost, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    host.begin()
    submit = log_driver._Aio.flush
    # A pipe cannot be flushed.
    reader, writer = os.pipe()
    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(DiskFiles, "write", fail)
        else:
            patch.setattr(log_driver._Aio, "flush", lambda aio, _handle, done: submit(aio, writer, done))
            patch.setattr(os, "dup", fail)
        outcome = host.save(run(1, 1))
    os.close(reader)
    os.close(writer)
    assert isinstance(outcome, StorageFailed)
    # Nothing is waited for that will never come.
    host.loop.stop()
    host.store.close(timeout=WAIT)


def test_a_store_that_is_failed_tells_what_is_being_flushed_and_what_waits() -> None:
    """As when nothing is left that would report a flush."""
    steps = StepDriver()
    store = LogStore(MemoryFiles(), OWNER)
    store.start(steps)
    outcomes: list[BaseException | None] = []
    store.begin(1, 1, RECORD, None, outcomes.append)
    steps.settle()
    for index in (1, 2):
        store.save(AppendRequest(1, 1, None, [run(index, 1)], done=outcomes.append))
        if index == 1:
            steps.deferred.popleft()()
    store.fail(OSError("the eventfd is gone"))
    assert list(map(type, outcomes)) == [type(None), StorageFailed, StorageFailed]
    steps.settle()
    assert len(outcomes) == 3
    assert store.status.waiting == 0
    store.close()


def test_a_quiet_replica_is_written_with_the_next_record_however_much_of_a_busy_one_waits(
    flushes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the queue is full: it takes one small request of each replica at any time."""
    monkeypatch.setattr(log_store, "_MAX_RECORD_BYTES", 200_000)
    host = LoopHost(tmp_path / "log", segment_bytes=1 << 18, max_queue_bytes=500_000)
    host.begin()
    done = Waiter()
    host.call(host.store.begin, 2, 1, Bootstrap(Membership({1: "a:1"})), None, done)
    assert done.wait(1) == [None]
    order: list[str] = []

    def save(shard: int, index: int, size: int) -> None:
        def note(error: Exception | None) -> None:
            order.append("quiet" if shard == 2 else "busy")
            done(error)

        host.call(host.store.save, AppendRequest(shard, 1, None, [Run(index, 1, [bytes(size)])], done=note))

    with held_flushes(host, monkeypatch) as go:
        for index in range(1, 5):
            save(1, index, 100_000)
        for shard, index, size in ((1, 5, 100_000), (2, 1, 100_000)):
            with pytest.raises(SystemBusy):
                save(shard, index, size)
        save(2, 1, 1000)
        with pytest.raises(SystemBusy):
            save(2, 2, 99_000)
        go.set()
        assert done.wait(6) == [None] * 6
    assert order.index("quiet") <= 2
    host.close()
