"""Small tools of the log store's tests: waiting for callbacks, restarting a store, and looking at all of a log."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drakkar.actors.log import driver as log_driver
from drakkar.actors.log.driver import LoopDriver
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.store import AppendRequest, Bootstrap, Done, LogStore, StoredLog, log_on_disk
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.raft.entries import Entries, Entry, Run
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

WAIT = 20.0
OWNER = "1f" * 16
"""The id of the host to which the logs belong."""
SMALL = 1 << 16
"""Bytes of a segment: few, since each start allocates some."""
RECORD = Bootstrap(Membership({1: "a:1", 2: "b:1"}, observers={3: "c:1"}), state_machine="Counter")
MEMBERS = Membership(
    voters={1: "a:1"},
    observers={4},
    witnesses={5: "e:1"},
    outgoing={1, 2},
    outgoing_witnesses={2},
    next_observers={4},
    auto_leave=True,
    removed={9},
    change_id=17,
)


class Waiter:
    """Counts the callbacks, and waits for a number of them."""

    def __init__(self) -> None:
        self.outcomes: list[BaseException | None] = []
        self._changed = threading.Condition()

    def __call__(self, error: BaseException | None) -> None:
        with self._changed:
            self.outcomes.append(error)
            self._changed.notify_all()

    def wait(self, count: int = 1) -> list[BaseException | None]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.outcomes) >= count, WAIT), (
                f"{len(self.outcomes)}/{count}"
            )
            return list(self.outcomes)


class Host:
    """A store that can be restarted, and short ways to ask it for things."""

    def __init__(self, make: Callable[[], LogStore]) -> None:
        self._make = make
        self.store = make()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call it in the store's thread."""
        return fn(*args)

    def close(self) -> None:
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.store = self._make()

    def outcome(self, request: Callable[[Done], None]) -> BaseException | None:
        """Make a request, and wait for what comes of it."""
        waiter = Waiter()
        self.call(request, waiter)
        return waiter.wait()[0]

    def ask(self, request: Callable[[Done], None]) -> None:
        """Make a request, wait, and raise what comes of it."""
        if (error := self.outcome(request)) is not None:
            raise error

    def bootstrap(self, shard: int, replica: int, record: Bootstrap = RECORD) -> None:
        self.ask(partial(self.store.begin, shard, replica, record, None))

    def begin(self, shard: int = 1, replica: int = 1) -> StoredLog:
        self.bootstrap(shard, replica)
        return self.log(shard, replica)

    def log(self, shard: int = 1, replica: int = 1) -> StoredLog:
        log = self.call(self.store.open, shard, replica)
        assert isinstance(log, StoredLog)
        return log

    def save(
        self,
        *runs: Run,
        hard: HardState | None = None,
        snapshot: Snapshot | None = None,
        shard: int = 1,
        replica: int = 1,
    ) -> BaseException | None:
        return self.outcome(
            lambda done: self.store.save(AppendRequest(shard, replica, hard, runs, snapshot, done=done))
        )

    def compact(self, index: int, shard: int = 1, replica: int = 1) -> None:
        self.call(self.store.compact, shard, replica, index)

    def record(self, snapshot: Snapshot, shard: int = 1, replica: int = 1) -> BaseException | None:
        return self.outcome(partial(self.store.record_snapshot, shard, replica, snapshot))

    def remove(self, shard: int = 1, replica: int = 1) -> None:
        self.ask(partial(self.store.remove, shard, replica))

    def import_(self, record: Bootstrap, snapshot: Snapshot, hard: HardState) -> None:
        self.ask(partial(self.store.import_replica, 1, 1, record, snapshot, hard))


class LoopHost(Host):
    """A store on a loop of its own, as a host with a data directory has it."""

    loop: TrioLoop

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self._options = {"segment_bytes": SMALL} | options
        super().__init__(self._begin_life)

    def _begin_life(self) -> LogStore:
        files = DiskFiles(self.directory)
        store = LogStore(files, OWNER, **self._options)
        self.loop = loop = TrioLoop("log").start()
        driver = LoopDriver(run_soon=loop.run_soon, run_now=loop.run_now, at_round_end=loop.at_round_end)
        driver.choose(files, store.active_file)
        loop.call(store.start, driver)
        loop.spawn(driver.serve, name="log")
        return store

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.loop.call(fn, *args, timeout=WAIT)

    def close(self) -> None:
        self.loop.stop()
        self.store.close()


def on_disk(directory: Path, segment_bytes: int = SMALL) -> LogStore:
    """The log in a folder, which does everything at once; a new one if there is none."""
    return log_on_disk(directory, OWNER, create=True, segment_bytes=segment_bytes)


def without_aio(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this is a kernel without Linux AIO."""

    def fail(_handle: int) -> None:
        raise NotImplementedError("not in this kernel")

    monkeypatch.setattr(log_driver._Aio, "probed", fail)


def run(first: int, count: int, term: int = 1, size: int = 4) -> Run:
    return Run(first, term, [(b"%d:%d;" % (term, index)) * size for index in range(first, first + count)])


def entries(log: StoredLog) -> list[Entry]:
    return list(Entries(log.runs(log.first_index, log.last_index + 1, UNLIMITED)))


def of(*runs: Run) -> list[Entry]:
    return list(Entries(runs))


def check(log: StoredLog, expected: list[Entry], first: int, term_before: int) -> None:
    """The log holds these entries, and every way to ask it says so."""
    assert (log.first_index, log.last_index) == (first, first + len(expected) - 1)
    assert entries(log) == expected
    assert [log.term(entry.index) for entry in expected] == [entry.term for entry in expected]
    assert log.term(first - 1) == term_before
    assert log.term(log.last_index + 1) == 0
    assert first < 2 or log.term(first - 2) == 0


@contextmanager
def held_flushes(
    host: LoopHost, monkeypatch: pytest.MonkeyPatch, term: int = 1000
) -> Iterator[threading.Event]:
    """The disk hangs from now on, until the event is set; on return the flush of a new term is under way."""
    go, entered = threading.Event(), threading.Event()
    submit = log_driver._Aio.flush
    sync = os.fdatasync

    def hang_in_kernel(aio: log_driver._Aio, handle: int, done: Done) -> None:
        entered.set()
        aio._pending = done
        held = os.dup(handle)

        def later() -> None:
            assert go.wait(WAIT)
            submit(aio, held, done)
            os.close(held)

        threading.Thread(target=later).start()

    def hang_in_thread(handle: int) -> None:
        entered.set()
        assert go.wait(WAIT)
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(log_driver._Aio, "flush", hang_in_kernel)
        patch.setattr(os, "fdatasync", hang_in_thread)
        host.call(host.store.save, AppendRequest(1, 1, HardState(term), done=lambda _error: None))
        assert entered.wait(WAIT)
        try:
            yield go
        finally:
            go.set()


@contextmanager
def failing_flushes(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """All flushes fail by this error, after they were done."""

    def fail(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(
            log_driver._Aio, "_on_result", lambda aio, _result: setattr(aio, "_result", (1 << 64) - number)
        )
        patch.setattr(os, "fdatasync", fail)
        yield
