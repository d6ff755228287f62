"""Small tools of the log store's tests: waiting for callbacks, restarting a store, and looking at all of a log."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lmdb
import pytest
from drakkar.actors.log import lmdb as log_lmdb
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore, StoredLog
from drakkar.handlers.raft.entries import Entries, Entry, Run
from drakkar.handlers.raft.log import UNLIMITED
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

WAIT = 20.0
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

    def restart(self) -> None:
        self.store.close()
        self.store = self._make()

    def begin(self, shard: int = 1, replica: int = 1) -> StoredLog:
        self.store.bootstrap(shard, replica, RECORD)
        return self.log(shard, replica)

    def log(self, shard: int = 1, replica: int = 1) -> StoredLog:
        log = self.store.open(shard, replica)
        assert log is not None
        return log

    def save(
        self,
        *runs: Run,
        hard: HardState | None = None,
        snapshot: Snapshot | None = None,
        shard: int = 1,
        replica: int = 1,
    ) -> BaseException | None:
        waiter = Waiter()
        self.store.save(AppendRequest(shard, replica, hard, runs, snapshot, done=waiter))
        return waiter.wait()[0]


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
def held_commits(
    store: LogStore, monkeypatch: pytest.MonkeyPatch, term: int = 1000
) -> Iterator[threading.Event]:
    """The disk hangs from now on, until the event is set; on return the commit of a new term is under way."""
    go, entered = threading.Event(), threading.Event()

    def hang(_self: log_lmdb.LmdbDisk, txn: "lmdb.Transaction[bytes]") -> None:
        entered.set()
        assert go.wait(WAIT)
        txn.commit()

    monkeypatch.setattr(log_lmdb.LmdbDisk, "_commit", hang)
    store.save(AppendRequest(1, 1, HardState(term), done=lambda _error: None))
    assert entered.wait(WAIT)
    try:
        yield go
    finally:
        go.set()
