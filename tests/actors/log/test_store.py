"""The log store, on a real disk and in memory: what was reported durable is there, and nothing else is."""

import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pykka
import pytest
from drakkar.actors.log import lmdb as log_lmdb
from drakkar.actors.log.store import (
    RUN_OVERHEAD,
    AppendRequest,
    Bootstrap,
    LmdbLogStore,
    MemoryDisk,
    MemoryLogStore,
)
from drakkar.handlers.errors import (
    ConfigError,
    CorruptData,
    DeadlockError,
    OutcomeUnknown,
    ProtocolViolation,
    ReplicaStopped,
    RequestDropped,
    StorageFailed,
    SystemBusy,
)
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, Run
from drakkar.handlers.raft.log import UNLIMITED, RaftLog
from drakkar.handlers.raft.state import HardState, Membership, Snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actors.log.support import (
    MEMBERS,
    RECORD,
    WAIT,
    Host,
    Waiter,
    check,
    entries,
    held_commits,
    of,
    run,
)


@pytest.fixture(params=["lmdb", "memory"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    disk = MemoryDisk()
    made = Host(lambda: LmdbLogStore(tmp_path / "log") if request.param == "lmdb" else MemoryLogStore(disk))
    yield made
    made.store.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Host]:
    made = Host(lambda: LmdbLogStore(tmp_path / "log"))
    yield made
    made.store.close()


# -- the same for both --------------------------------------------------------------------------------------------


def test_a_replica_is_unknown_until_it_is_bootstrapped(host: Host) -> None:
    assert host.store.open(1, 1) is None
    assert host.store.replicas() == []
    assert isinstance(host.save(run(1, 1)), ConfigError)
    with pytest.raises(ConfigError, match="shard 1 replica 1"):
        host.store.compact(1, 1, 1)


def test_a_new_replica_is_empty_and_knows_how_it_began(host: Host) -> None:
    host.begin()
    host.restart()
    log = host.log()
    check(log, [], 1, 0)
    assert log.bootstrap == RECORD
    assert (log.hard_state, log.snapshot, log.membership) == (HardState(), Snapshot(), RECORD.membership)
    assert host.store.replicas() == [(1, 1)]


def test_a_replica_begins_only_once(host: Host) -> None:
    host.begin()
    with pytest.raises(ConfigError, match=r"shard 1 replica 1.*is in this log store already"):
        host.store.bootstrap(1, 1, Bootstrap(Membership({7: "x"}), join=True))
    assert host.log().bootstrap == RECORD


@pytest.mark.parametrize(
    ("shard", "replica"), [(-1, 1), (1, 0), (1 << 64, 1), (1, 1 << 64), ("1", 1), (True, 1)]
)
def test_ids_out_of_bounds_are_refused(host: Host, shard: int, replica: int) -> None:
    with pytest.raises(ConfigError, match="must be a whole number"):
        host.store.bootstrap(shard, replica, RECORD)


def test_the_largest_ids_are_kept_apart_from_all_others(host: Host) -> None:
    keys = [(0, 1), (0, (1 << 64) - 1), (1, 1), ((1 << 64) - 1, (1 << 64) - 1)]
    for number, key in enumerate(keys, 1):
        host.begin(*key)
        host.save(run(1, 3, term=number), shard=key[0], replica=key[1])
    host.restart()
    assert host.store.replicas() == sorted(keys)
    for number, key in enumerate(keys, 1):
        check(host.log(*key), of(run(1, 3, term=number)), 1, 0)


def test_every_column_of_an_entry_comes_back_byte_for_byte(host: Host) -> None:
    """BUG-L18: encoded twice on one path only, and seen only after a restart."""
    kinds = bytes([EntryKind.NO_OP, EntryKind.CONFIG_CHANGE, EntryKind.SESSION, EntryKind.METADATA])
    runs = [
        Run(1, 3, [b"", b"\x00" * 300, b"x", b""], kinds, origin=(1 << 64) - 1, key=7),
        Run(5, (1 << 63) + 1, [os.urandom(70_000)], origin=9, key=1),
        Run(6, (1 << 63) + 1, [b"plain"]),
    ]
    host.begin()
    assert host.save(*runs) is None
    for _ in range(2):
        assert [stored.encode() for stored in host.log().runs(1, 7, UNLIMITED)] == [
            sent.encode() for sent in runs
        ]
        host.restart()


def test_term_and_vote_survive_a_restart(host: Host) -> None:
    host.begin()
    assert host.save(hard=HardState(term=5, vote=2)) is None
    host.restart()
    assert host.log().hard_state == HardState(term=5, vote=2)


@pytest.mark.parametrize("position", range(1, 11))
def test_new_entries_cut_off_what_stood_at_or_after_them(host: Host, position: int) -> None:
    host.begin()
    host.begin(1, 2)
    before = [run(1, 3, 1), run(4, 1, 2), run(5, 4, 2), run(9, 1, 3)]
    for each in before:
        assert host.save(each) is None
    assert host.save(run(1, 9, 8), replica=2) is None
    assert host.save(run(position, 2, 4)) is None
    expected = of(*before)[: position - 1] + of(run(position, 2, 4))
    check(host.log(), expected, 1, 0)
    host.restart()
    check(host.log(), expected, 1, 0)
    check(host.log(1, 2), of(run(1, 9, 8)), 1, 0)


def test_one_save_may_hold_several_runs_and_cut_in_the_middle_of_one(host: Host) -> None:
    host.begin()
    assert host.save(run(1, 4, 1), run(5, 4, 2)) is None
    assert host.save(run(7, 1, 3), run(8, 2, 4), run(10, 1, 4), hard=HardState(4, 2, 6)) is None
    expected = of(run(1, 4, 1), run(5, 2, 2), run(7, 1, 3), run(8, 3, 4))
    check(host.log(), expected, 1, 0)
    host.restart()
    check(host.log(), expected, 1, 0)
    assert host.log().hard_state == HardState(4, 2, 6)


@pytest.mark.parametrize(
    ("size", "limits"),
    [
        pytest.param(1, [*range(120), 300, 500, 600, 1100, 1200, UNLIMITED], id="small entries"),
        pytest.param(100, [0, *range(400, 4000, 37), UNLIMITED], id="large entries"),
    ],
)
def test_pages_of_every_limit_give_all_entries_in_order(host: Host, size: int, limits: list[int]) -> None:
    """BUG-L9: a store that returns more or fewer entries than asked for."""
    host.begin()
    shapes = [(1, 5, 1, size), (6, 1, 1, 10 * size), (7, 3, 2, size), (10, 1, 3, size), (11, 6, 3, size)]
    runs = [run(*shape) for shape in shapes]
    assert host.save(*runs) is None
    host.restart()
    log, expected = host.log(), of(*runs)
    sizes = [Entries.of([entry]).size for entry in expected]
    for limit in limits:
        paged: list[Entry] = []
        while len(paged) < 16:
            page = log.runs(len(paged) + 1, 17, limit)
            found = list(Entries(page))
            taken = sum(piece.size for piece in page)
            assert found
            assert len(found) == 1 or taken <= limit
            paged += found
            # It stops early where there is no room for the next entry, counting something for each run.
            assert len(paged) == 16 or taken + sizes[len(paged)] + RUN_OVERHEAD * len(page) > limit
        assert paged == expected


@pytest.mark.parametrize("low", range(1, 11))
def test_any_part_of_the_log_can_be_read(host: Host, low: int) -> None:
    host.begin()
    host.save(run(1, 4, 1), run(5, 1, 2), run(6, 5, 2))
    log, whole = host.log(), of(run(1, 4, 1), run(5, 6, 2))
    for high in range(low, 12):
        assert list(Entries(log.runs(low, high, UNLIMITED))) == whole[low - 1 : high - 1]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 3), (4, 9), (8, 9)])
def test_entries_that_are_not_held_are_no_answer(host: Host, low: int, high: int) -> None:
    host.begin()
    host.save(run(1, 6))
    host.store.compact(1, 1, 3)
    with pytest.raises(IndexError, match="it holds 4 to 6"):
        host.log().runs(low, high, UNLIMITED)


@pytest.mark.parametrize("index", range(9))
def test_compaction_drops_entries_and_keeps_the_term_before_the_first(host: Host, index: int) -> None:
    runs = [run(1, 3, 1), run(4, 3, 2), run(7, 2, 3)]
    host.begin()
    log = host.log()
    host.save(*runs, hard=HardState(3, 1, 8))
    kept = of(*runs)[index:]
    host.store.compact(1, 1, index)
    term = of(*runs)[index - 1].term if index else 0
    check(log, kept, index + 1, term)
    host.restart()
    check(host.log(), kept, index + 1, term)
    assert host.save(run(9, 2, 4)) is None
    check(host.log(), kept + of(run(9, 2, 4)), index + 1, term)


def test_compacting_again_does_nothing_and_never_reaches_beyond_the_last_entry(host: Host) -> None:
    host.begin()
    host.save(run(1, 5))
    host.store.compact(1, 1, 3)
    host.store.compact(1, 1, 2)
    check(host.log(), of(run(4, 2)), 4, 1)
    host.store.compact(1, 1, 100)
    check(host.log(), [], 6, 1)
    assert host.save(run(6, 1, 2)) is None
    host.restart()
    check(host.log(), of(run(6, 1, 2)), 6, 1)


@pytest.mark.parametrize("index", [2, 4, 5, 6, 12])
def test_an_installed_snapshot_replaces_the_whole_log(host: Host, index: int) -> None:
    host.begin()
    host.save(run(1, 4, 1), run(5, 4, 2), hard=HardState(2, 1, 3))
    snapshot = Snapshot(index, 7, MEMBERS, b"where it lies", size=1 << 40)
    assert host.save(run(index + 1, 2, 9), hard=HardState(9, 0, index), snapshot=snapshot) is None
    expected = of(run(index + 1, 2, 9))
    check(host.log(), expected, index + 1, 7)
    host.restart()
    log = host.log()
    check(log, expected, index + 1, 7)
    assert (log.snapshot, log.membership) == (snapshot, MEMBERS)
    assert log.bootstrap == RECORD
    assert log.hard_state == HardState(9, 0, index)


def test_a_snapshot_without_entries_leaves_an_empty_log_behind_it(host: Host) -> None:
    host.begin()
    host.save(run(1, 9, 1))
    assert host.save(snapshot=Snapshot(5, 2, MEMBERS)) is None
    host.restart()
    check(host.log(), [], 6, 2)
    assert host.log().hard_state.commit == 5, "what a snapshot covers is committed"
    assert host.save(run(6, 1, 3)) is None
    check(host.log(), of(run(6, 1, 3)), 6, 2)


def test_a_snapshot_never_brings_compacted_entries_back(host: Host) -> None:
    host.begin()
    host.save(run(1, 9))
    host.store.compact(1, 1, 6)
    assert isinstance(host.save(snapshot=Snapshot(5, 1, MEMBERS)), ProtocolViolation)
    check(host.log(), of(run(7, 3)), 7, 1)


def test_a_snapshot_taken_here_leaves_the_log_alone(host: Host) -> None:
    host.begin()
    host.save(run(1, 9))
    waiter = Waiter()
    snapshot = Snapshot(6, 1, MEMBERS, b"file", witness=True, size=3)
    host.store.record_snapshot(1, 1, snapshot, waiter)
    assert waiter.wait() == [None]
    host.restart()
    check(host.log(), of(run(1, 9)), 1, 0)
    assert (host.log().snapshot, host.log().membership) == (snapshot, MEMBERS)


def test_a_snapshot_that_is_out_of_date_is_refused_and_harms_nothing(host: Host) -> None:
    host.begin()
    host.save(run(1, 9))
    waiter = Waiter()
    host.store.record_snapshot(1, 1, Snapshot(6, 1, MEMBERS), waiter)
    host.store.record_snapshot(1, 1, Snapshot(6, 1), waiter)
    host.store.record_snapshot(1, 1, Snapshot(5, 1), waiter)
    outcomes = waiter.wait(3)
    assert [type(outcome) for outcome in outcomes] == [type(None), RequestDropped, RequestDropped]
    assert host.save(run(10, 1)) is None
    assert host.log().snapshot.index == 6


def test_a_snapshot_beyond_the_log_is_refused(host: Host) -> None:
    host.begin()
    waiter = Waiter()
    host.store.record_snapshot(1, 1, Snapshot(3, 1, MEMBERS), waiter)
    assert isinstance(waiter.wait()[0], ProtocolViolation)
    assert host.log().snapshot == Snapshot()


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([run(7, 1)], id="a gap behind the last entry"),
        pytest.param([run(2, 2)], id="in place of a compacted entry"),
        pytest.param([run(6, 2), run(9, 1)], id="a gap between two runs"),
        pytest.param([run(6, 2), run(7, 1)], id="two runs that overlap"),
        pytest.param([Run(6, 1, [])], id="a run without entries"),
    ],
)
def test_entries_that_contradict_the_log_fail_that_replica_alone(
    host: Host, runs: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    host.begin()
    host.begin(2, 2)
    host.save(run(1, 5), hard=HardState(1, 1, 3))
    host.store.compact(1, 1, 3)
    refused = host.save(*runs, hard=HardState(9, 9, 9))
    assert isinstance(refused, ProtocolViolation)
    assert "shard 1 replica 1" in str(refused)
    assert host.save(run(6, 1)) is refused, "what comes next rests on what failed"
    assert host.save(run(1, 1), shard=2, replica=2) is None
    assert "until it is opened again" in caplog.text
    check(host.log(), of(run(4, 2)), 4, 1)
    assert host.log().hard_state == HardState(1, 1, 3)
    assert host.save(run(6, 1)) is None, "and opened again, it goes on"


def test_a_removed_replica_is_gone_and_its_id_is_never_used_again(host: Host) -> None:
    log = host.begin()
    host.begin(1, 2)
    host.save(run(1, 5), hard=HardState(7, 7, 5), snapshot=None)
    host.save(run(1, 5), replica=2)
    host.store.remove(1, 1)
    with pytest.raises(ReplicaStopped, match="removed"):
        _ = log.last_index
    assert host.store.open(1, 1) is None
    assert host.store.replicas() == [(1, 2)]
    for _ in range(3):
        assert host.store.open(1, 1) is None
        refused = host.save(run(6, 1))
        assert isinstance(refused, ConfigError)
        assert "shard 1 replica 1" in str(refused)
        with pytest.raises(
            ConfigError, match=r"shard 1 replica 1.*ids are never used again.*choose another id"
        ):
            host.store.bootstrap(1, 1, RECORD)
        host.store.open(1, 2)  # it trims what is left of the first
        host.restart()
    assert host.store.replicas() == [(1, 2)]
    check(host.log(1, 2), of(run(1, 5)), 1, 0)


def test_what_was_never_there_can_be_removed_before_it_comes(host: Host) -> None:
    host.store.remove(3, 3)
    assert host.store.replicas() == []
    with pytest.raises(ConfigError, match="never used again"):
        host.store.bootstrap(3, 3, RECORD)


@pytest.mark.parametrize("there", ["nothing", "a log", "a compacted log", "a tombstone"])
def test_an_import_replaces_all_that_is_there(host: Host, there: str) -> None:
    host.begin(1, 2)
    host.save(run(1, 3), replica=2)
    log = None
    if there != "nothing":
        log = host.begin()
        host.save(*(run(index, 1, 2) for index in range(1, 101)), hard=HardState(9, 2, 90))
    if there == "a compacted log":
        host.store.compact(1, 1, 70)
    if there == "a tombstone":
        host.store.remove(1, 1)
    record, snapshot = Bootstrap(MEMBERS, state_machine="Counter"), Snapshot(50, 4, MEMBERS, b"file")
    host.store.import_replica(1, 1, record, snapshot, HardState(6, 0, 50))
    assert host.store.replicas() == [(1, 1), (1, 2)]
    if log is not None:
        with pytest.raises(ReplicaStopped, match="removed" if there == "a tombstone" else "import"):
            _ = log.last_index
    for _ in range(2):
        imported = host.log()
        check(imported, [], 51, 4)
        assert (imported.bootstrap, imported.snapshot) == (record, snapshot)
        assert imported.hard_state == HardState(6, 0, 50)
        host.restart()
    assert host.save(run(51, 2, 6)) is None
    host.restart()
    check(host.log(), of(run(51, 2, 6)), 51, 4)
    check(host.log(1, 2), of(run(1, 3)), 1, 0)


@pytest.mark.parametrize(
    ("snapshot", "hard"),
    [
        (Snapshot(), HardState(5)),
        (Snapshot(5, 4, MEMBERS), HardState(3)),
        (Snapshot(5, 4), HardState(4, 0, 6)),
    ],
    ids=["no snapshot", "a term from before it", "a commit index beyond it"],
)
def test_an_import_that_contradicts_itself_changes_nothing(
    host: Host, snapshot: Snapshot, hard: HardState
) -> None:
    host.begin()
    host.save(run(1, 5))
    with pytest.raises(ConfigError, match=r"(snapshot|hard_state)="):
        host.store.import_replica(1, 1, RECORD, snapshot, hard)
    check(host.log(), of(run(1, 5)), 1, 0)


def test_a_commit_index_alone_needs_no_transaction(host: Host) -> None:
    host.begin()
    host.save(run(1, 9), hard=HardState(1, 1, 0))
    before = host.store.status.commits
    for commit in range(1, 8):
        assert host.save(hard=HardState(1, 1, commit)) is None
    assert host.store.status.commits == before
    assert host.log().hard_state.commit == 7
    host.restart()
    assert host.log().hard_state == HardState(1, 1, 7), "a clean stop remembers it"


@pytest.mark.parametrize("hard", [HardState(2, 1, 3), HardState(1, 2, 3)])
def test_a_term_or_a_vote_is_always_flushed(host: Host, hard: HardState) -> None:
    host.begin()
    host.save(hard=HardState(1, 1, 0))
    before = host.store.status.commits
    host.save(hard=hard)
    assert host.store.status.commits == before + 1


def test_a_callback_that_fails_keeps_no_other_from_being_called(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_error: BaseException | None) -> None:
        raise SystemExit("callback")

    host.begin()
    host.store.save(AppendRequest(1, 1, None, [run(1, 1)], done=fail))
    assert host.save(run(2, 1)) is None
    assert host.store.status.failed_callbacks == 1
    assert "a callback of shard 1 replica 1 failed" in caplog.text


def test_a_callback_may_save_again_and_again(host: Host) -> None:
    host.begin()
    finished = threading.Event()

    def next_one(index: int) -> Callable[[BaseException | None], None]:
        def done(error: BaseException | None) -> None:
            assert error is None
            if index == 300:
                finished.set()
            else:
                host.store.save(AppendRequest(1, 1, None, [run(index + 1, 1)], done=next_one(index + 1)))

        return done

    host.store.save(AppendRequest(1, 1, None, [run(1, 1)], done=next_one(1)))
    assert finished.wait(WAIT)
    assert host.log().last_index == 300


@pytest.mark.parametrize("call", ["open", "close", "bootstrap"])
def test_a_callback_may_not_wait_for_the_store(host: Host, call: str) -> None:
    host.begin()
    waiter = Waiter()

    def wait_for_the_store(_error: BaseException | None) -> None:
        try:
            {
                "open": lambda: host.store.open(1, 1),
                "close": host.store.close,
                "bootstrap": lambda: host.store.bootstrap(5, 5, RECORD),
            }[call]()
        except DeadlockError as error:
            waiter(error)

    host.store.save(AppendRequest(1, 1, None, [run(1, 1)], done=wait_for_the_store))
    assert isinstance(waiter.wait()[0], DeadlockError)


def test_saves_are_reported_in_the_order_in_which_they_were_made(host: Host) -> None:
    for replica in (1, 2, 3):
        host.begin(1, replica)
    told: list[tuple[int, int]] = []
    waiter = Waiter()

    def save(replica: int, number: int, **what: object) -> None:
        def done(error: BaseException | None) -> None:
            told.append((replica, number))
            waiter(error)

        host.store.save(AppendRequest(1, replica, done=done, **what))  # type: ignore[arg-type]

    for number in range(1, 101):
        save(1, number, runs=[run(number, 1)])
        save(2, number, hard_state=HardState(0, 0, number))
        save(3, number, runs=[run(number, 1)], hard_state=HardState(number))
    assert set(waiter.wait(300)) == {None}
    for replica in (1, 2, 3):
        assert [number for which, number in told if which == replica] == list(range(1, 101))


def test_many_threads_may_save_at_once(host: Host) -> None:
    waiter = Waiter()
    for replica in range(1, 9):
        host.begin(1, replica)

    def work(replica: int) -> None:
        for index in range(1, 51):
            host.store.save(AppendRequest(1, replica, HardState(index), [run(index, 1)], done=waiter))

    threads = [threading.Thread(target=work, args=(replica,)) for replica in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert set(waiter.wait(400)) == {None}
    host.restart()
    for replica in range(1, 9):
        check(host.log(1, replica), of(run(1, 50)), 1, 0)


def test_a_closed_store_takes_and_gives_nothing(host: Host) -> None:
    log = host.begin()
    host.save(run(1, 5))
    host.store.close()
    host.store.close()
    with pytest.raises(ReplicaStopped, match="is closed"):
        host.store.save(AppendRequest(1, 1, done=lambda _error: None))
    with pytest.raises(ReplicaStopped, match="is closed"):
        host.store.open(1, 1)
    for read in (lambda: log.runs(1, 2, 1), lambda: log.term(1), lambda: log.last_index):
        with pytest.raises(ReplicaStopped, match="closed"):
            read()


def test_the_core_starts_from_a_stored_log(host: Host) -> None:
    host.begin()
    host.save(run(1, 5, 1), run(6, 5, 2), hard=HardState(2, 1, 8))
    host.store.record_snapshot(1, 1, Snapshot(3, 1, MEMBERS))
    host.store.compact(1, 1, 3)
    host.restart()
    core = RaftLog(host.log())
    assert (core.first_index, core.last_index, core.committed, core.last_term) == (4, 10, 8, 2)
    assert list(core.entries(4, 11)) == of(run(4, 2, 1), run(6, 5, 2))
    assert core.matches(5, 1)
    assert core.last_not_after(10, 1) == (5, 1)


@pytest.mark.parametrize("option", ["max_queue_bytes", "max_queue_saves", "map_size", "spare_bytes"])
def test_options_out_of_bounds_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}=-1"):
        LmdbLogStore(tmp_path / "log", **{option: -1})


# -- against a model ----------------------------------------------------------------------------------------------

APPEND = st.tuples(st.just("append"), st.integers(0, 6), st.integers(1, 4), st.integers(0, 2))
STEPS = st.lists(
    st.one_of(
        APPEND,
        APPEND,
        st.tuples(st.just("compact"), st.integers(0, 12)),
        st.tuples(st.just("install"), st.integers(1, 5), st.integers(0, 3)),
        st.tuples(st.just("hard"), st.integers(1, 3), st.integers(0, 3), st.integers(0, 20)),
        st.tuples(st.just("restart")),
    ),
    max_size=14,
)


class Model:
    """A log as a list. Deliberately dumb."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.marker = (0, 0)
        self.hard = HardState()
        self.term = 1

    @property
    def last(self) -> int:
        return self.marker[0] + len(self.entries)

    def step(self, host: Host, step: tuple[object, ...]) -> None:
        getattr(self, step[0])(host, *step[1:])  # type: ignore[call-overload]

    def append(self, host: Host, back: int, count: int, newer: int) -> None:
        self.term += newer
        first = max(self.last + 1 - back, self.marker[0] + 1)
        added = run(first, count, self.term)
        assert host.save(added) is None
        self.entries = self.entries[: first - self.marker[0] - 1] + of(added)

    def compact(self, host: Host, index: int) -> None:
        host.store.compact(1, 1, index)
        gone = max(min(index, self.last) - self.marker[0], 0)
        if gone:
            self.marker = (self.entries[gone - 1].index, self.entries[gone - 1].term)
            del self.entries[:gone]

    def install(self, host: Host, ahead: int, count: int) -> None:
        snapshot = Snapshot(self.marker[0] + ahead, self.term, MEMBERS)
        runs = [run(snapshot.index + 1, count, self.term)] if count else []
        assert host.save(*runs, snapshot=snapshot) is None
        self.marker, self.entries = (snapshot.index, snapshot.term), of(*runs)

    def hard_state(self) -> HardState:
        return HardState(
            self.hard.term, self.hard.vote, min(max(self.hard.commit, self.marker[0]), self.last)
        )

    def restart(self, host: Host) -> None:
        host.restart()
        assert host.log().hard_state == self.hard_state()

    def hard_(self, host: Host, newer: int, vote: int, commit: int) -> None:
        self.hard = HardState(self.hard.term + newer, vote, commit)
        assert host.save(hard=self.hard) is None


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
@settings(max_examples=60, deadline=None)
@given(steps=STEPS, trimmed_at_once=st.sampled_from([1, 3, 4096]))
def test_any_history_leaves_the_log_that_a_list_would_be(
    kind: str, steps: list[tuple[object, ...]], trimmed_at_once: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk, path = MemoryDisk(), tmp_path_factory.mktemp("model") / "log"
    host = Host(lambda: LmdbLogStore(path) if kind == "lmdb" else MemoryLogStore(disk))
    model = Model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_lmdb, "_TRIMMED_AT_ONCE", trimmed_at_once)
        try:
            host.begin()
            for step in steps:
                name = "hard_" if step[0] == "hard" else str(step[0])
                model.step(host, (name, *step[1:]))
                check(host.log(), model.entries, model.marker[0] + 1, model.marker[1])
        finally:
            host.store.close()


# -- one transaction for all --------------------------------------------------------------------------------------


def test_all_that_waits_while_a_commit_is_under_way_shares_the_next_one(
    on_disk: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for replica in range(1, 41):
        on_disk.begin(1, replica)
    before = on_disk.store.status
    waiter = Waiter()
    with held_commits(on_disk.store, monkeypatch) as go:
        for index in range(1, 6):
            for replica in range(1, 41):
                on_disk.store.save(AppendRequest(1, replica, None, [run(index, 1)], done=waiter))
        assert on_disk.store.status.waiting == 201
        go.set()
        assert waiter.wait(200) == [None] * 200
    after = on_disk.store.status
    assert after.commits - before.commits == 2, "the one that was under way, and one for all the others"
    assert after.entries - before.entries == 200
    assert (after.waiting, after.waiting_bytes) == (0, 0)
    on_disk.restart()
    for replica in range(1, 41):
        check(on_disk.log(1, replica), of(run(1, 5)), 1, 0)


def test_callbacks_come_after_the_commit_and_on_the_stores_own_thread(
    on_disk: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.begin()
    log = on_disk.log()
    seen: list[tuple[str, int]] = []
    waiter = Waiter()

    def done(error: BaseException | None) -> None:
        seen.append((threading.current_thread().name, log.last_index))
        waiter(error)

    with held_commits(on_disk.store, monkeypatch) as go:
        on_disk.store.save(AppendRequest(1, 1, None, [run(1, 3)], done=done))
        assert not seen
        assert log.last_index == 0
        go.set()
        waiter.wait()
    assert [(name.startswith("_LogWriter"), last) for name, last in seen] == [(True, 3)]


def test_a_hung_disk_blocks_no_call_that_must_not_wait(
    on_disk: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.begin()
    on_disk.save(run(1, 5))
    log = on_disk.log()
    began = time.monotonic()
    assert on_disk.store.busy_since is None
    waiter = Waiter()
    with held_commits(on_disk.store, monkeypatch) as go:
        busy_since = on_disk.store.busy_since
        assert busy_since is not None
        assert began <= busy_since <= time.monotonic()
        on_disk.store.save(AppendRequest(1, 1, None, [run(6, 1)], done=waiter))
        on_disk.store.record_snapshot(1, 1, Snapshot(2, 1))
        on_disk.store.compact(1, 1, 2)
        check(log, of(run(3, 3)), 3, 1)
        for late in (
            lambda: on_disk.store.bootstrap(2, 2, RECORD, timeout=0.01),
            lambda: on_disk.store.open(1, 1, timeout=0.01),
            lambda: on_disk.store.close(timeout=0.01),
        ):
            with pytest.raises(OutcomeUnknown, match=r"did not finish within 0.01 s"):
                late()
        assert not waiter.outcomes
        go.set()
        assert waiter.wait() == [None]


def test_a_full_queue_refuses_at_once_and_takes_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(lambda: LmdbLogStore(tmp_path / "log", max_queue_bytes=1000, max_queue_saves=5))
    host.begin()
    waiter = Waiter()
    with held_commits(host.store, monkeypatch) as go:
        for commit in range(4):
            host.store.save(AppendRequest(1, 1, HardState(1000, 0, commit), done=waiter))
        for refused in (
            lambda: host.store.save(AppendRequest(1, 1, HardState(1000, 0, 9), done=waiter)),
            lambda: host.store.record_snapshot(1, 1, Snapshot(1, 1), waiter),
        ):
            with pytest.raises(SystemBusy, match="has 5 requests of 0 bytes waiting, of at most 5 and 1000"):
                refused()
        assert host.store.status.refused == 2
        go.set()
        assert waiter.wait(4) == [None] * 4
    with held_commits(host.store, monkeypatch, term=1001) as go:
        host.store.save(AppendRequest(1, 1, None, [Run(1, 1, [bytes(500)])], done=waiter))
        with pytest.raises(SystemBusy, match="516 bytes"):
            host.store.save(AppendRequest(1, 1, None, [Run(2, 1, [bytes(500)])], done=waiter))
        go.set()
        assert waiter.wait(5) == [None] * 5
    host.store.open(1, 1)
    assert host.save(Run(2, 1, [bytes(50_000)])) is None, (
        "one that is too large alone would otherwise never go"
    )
    host.store.close()


def test_a_refused_compaction_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(lambda: LmdbLogStore(tmp_path / "log", max_queue_saves=1))
    host.begin()
    host.save(run(1, 5))
    log = host.log()
    with held_commits(host.store, monkeypatch):
        with pytest.raises(SystemBusy):
            host.store.compact(1, 1, 3)
        check(log, of(run(1, 5)), 1, 0)
    host.store.close()


def test_stopping_all_actors_makes_durable_what_waits(on_disk: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk.begin()
    waiter = Waiter()
    with held_commits(on_disk.store, monkeypatch) as go:
        on_disk.store.save(AppendRequest(1, 1, None, [run(1, 3)], done=waiter))
        pykka.ActorRegistry.stop_all(block=False)
        on_disk.store.save(AppendRequest(1, 1, HardState(1001), [run(4, 1)], done=waiter))
        go.set()
        assert waiter.wait(2) == [None, None]
    on_disk.restart()
    check(on_disk.log(), of(run(1, 4)), 1, 0)
    assert on_disk.log().hard_state.term == 1001


def test_closing_stores_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    for _ in range(20):
        LmdbLogStore(tmp_path / "log").close()
    added = set(threading.enumerate()) - before
    for thread in added:
        thread.join(WAIT)
    assert not [thread for thread in added if thread.is_alive()]


# -- when the disk fails ------------------------------------------------------------------------------------------


def test_the_first_failed_commit_poisons_the_store_for_good(
    on_disk: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """BUG-L12: the next fsync may succeed, and the pages are lost all the same."""
    on_disk.begin()
    on_disk.begin(1, 2)
    on_disk.save(run(1, 5), hard=HardState(1, 1, 0))
    waiter = Waiter()

    def fail(_self: object, _txn: object) -> None:
        raise lmdb.DiskError("mdb_txn_commit", 5)

    with held_commits(on_disk.store, monkeypatch) as go:
        on_disk.store.save(AppendRequest(1, 1, HardState(1001, 1, 3), done=waiter))
        on_disk.store.save(AppendRequest(1, 1, None, [run(6, 1)], done=waiter))
        on_disk.store.save(AppendRequest(1, 2, None, [run(1, 1)], done=waiter))
        monkeypatch.setattr(log_lmdb.LmdbDisk, "_commit", fail)
        go.set()
        outcomes = waiter.wait(3)
    monkeypatch.undo()
    poison = on_disk.store.poisoned
    assert isinstance(poison, StorageFailed)
    assert isinstance(poison.__cause__, lmdb.DiskError)
    assert outcomes == [poison] * 3
    assert on_disk.save(hard=HardState(1001, 1, 5)) is poison, (
        "a commit index too: no request may seem durable"
    )
    assert on_disk.save(run(1, 1), replica=2) is poison
    with pytest.raises(StorageFailed, match="restart this host"):
        on_disk.store.bootstrap(3, 3, RECORD)
    assert on_disk.store.status.poisoned is poison
    assert [record.levelno for record in caplog.records].count(logging.CRITICAL) == 1
    on_disk.restart()
    check(on_disk.log(), of(run(1, 5)), 1, 0)
    check(on_disk.log(1, 2), [], 1, 0)


def test_what_fails_outside_the_disk_is_not_left_unsaid(
    on_disk: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.begin()
    monkeypatch.setattr(log_lmdb.LmdbDisk, "write", lambda *_arguments: 1 / 0)
    assert isinstance(on_disk.save(run(1, 1)), StorageFailed)


FULL_DISK = """
import logging, resource, sys, threading
from drakkar.actors.log.store import AppendRequest, Bootstrap, LmdbLogStore
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import Membership

logging.disable()
store = LmdbLogStore(sys.argv[1])
store.bootstrap(1, 1, Bootstrap(Membership({1: "a"})))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for index in range(1, 1000):
    finished, outcome = threading.Event(), []
    def done(error):
        outcome.append(error)
        finished.set()
    store.save(AppendRequest(1, 1, None, [Run(index, 1, [b"%d" % index * 3000])], done=done))
    assert finished.wait(20)
    if outcome[0] is not None:
        print(index - 1, type(outcome[0]).__name__, type(store.poisoned).__name__)
        break
store.close()
"""


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """A limit on the size of files fails the very writes that a full disk would."""
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    acknowledged, error, poisoned = child.stdout.split()
    assert (error, poisoned) == ("StorageFailed", "StorageFailed")
    assert int(acknowledged) > 5
    host = Host(lambda: LmdbLogStore(tmp_path / "log"))
    assert [entry.payload[:4] for entry in entries(host.log())] == [
        (b"%d" % index * 4)[:4] for index in range(1, int(acknowledged) + 1)
    ]
    host.store.close()


KILLED = """
import os, sys
from drakkar.actors.log.store import AppendRequest, LmdbLogStore
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import HardState

store = LmdbLogStore(sys.argv[1], map_size=1 << 17, spare_bytes=1 << 16)
logs = [store.open(1, replica) for replica in (1, 2, 3)]

def save(replica, index):
    def done(error):
        assert error is None, error
        os.write(1, b"%d %d\\n" % (replica, index))
        if index % 50 == 0:
            store.compact(1, replica, index - 20)
        save(replica, index + 1)
    content = b"%d/%d" % (replica, index)
    store.save(AppendRequest(1, replica, HardState(index, replica, index - 1), [Run(index, index, [content * 50])], done=done))

for replica, log in enumerate(logs, 1):
    save(replica, log.last_index + 1)
sys.stdin.read()
"""


def test_killed_at_any_moment_it_keeps_all_that_it_acknowledged(tmp_path: Path) -> None:
    host = Host(lambda: LmdbLogStore(tmp_path / "log"))
    for replica in (1, 2, 3):
        host.begin(1, replica)
    host.store.close()
    acknowledged = {1: 0, 2: 0, 3: 0}
    for life in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(random.Random(life).randint(20, 300))]
            child.kill()
            lines += child.stdout.read().splitlines(keepends=True)
        for line in lines:
            if line.endswith(b"\n"):
                replica, index = map(int, line.split())
                acknowledged[replica] = index
        host = Host(lambda: LmdbLogStore(tmp_path / "log"))
        for replica, index in acknowledged.items():
            log = host.log(1, replica)
            assert log.last_index >= index
            assert log.hard_state == HardState(log.last_index, replica, log.last_index - 1)
            assert log.first_index <= max(index - 19, 1)
            for entry in entries(log):
                assert entry == Entry(
                    entry.index, entry.index, payload=b"%d/%d" % (replica, entry.index) * 50
                )
        host.store.close()


# -- the map, and the space -----------------------------------------------------------------------------------------


def test_the_map_grows_as_often_as_it_must_while_others_read(tmp_path: Path) -> None:
    host = Host(lambda: LmdbLogStore(tmp_path / "log", map_size=1 << 16))
    log = host.begin()
    host.save(run(1, 10))
    stop, failures = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                assert list(Entries(log.runs(1, 11, UNLIMITED))) == of(run(1, 10))
                log._recent = None
            except Exception as error:  # noqa: BLE001  # shown by the assertion below
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for index in range(11, 60):
        assert host.save(Run(index, 1, [os.urandom(60_000)])) is None
    stop.set()
    for reader in readers:
        reader.join(WAIT)
    assert failures == []
    assert (tmp_path / "log" / "data.mdb").stat().st_size > 40 * 60_000
    host.restart()
    assert host.log().last_index == 59
    assert host.save(Run(60, 1, [os.urandom(3_000_000)])) is None, "several times the map at once"
    host.store.close()


def stored_keys(directory: Path, table: bytes = b"log") -> list[bytes]:
    with lmdb.open(str(directory), max_dbs=2) as env, env.begin() as txn:
        return [key for key, _ in txn.cursor(env.open_db(table, txn))]


def stored_indexes(directory: Path) -> list[int]:
    return [int.from_bytes(key[16:]) for key in stored_keys(directory)]


def test_compacted_entries_are_deleted_little_by_little(
    on_disk: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lmdb, "_TRIMMED_AT_ONCE", 10)
    on_disk.begin()
    on_disk.save(*(run(index, 1) for index in range(1, 101)))
    before = on_disk.store.status.commits
    on_disk.store.compact(1, 1, 95)
    assert on_disk.save(run(101, 1)) is None
    on_disk.store.open(1, 1)
    while on_disk.store._trims:
        on_disk.store.open(1, 1)
    assert on_disk.store.status.commits - before >= 10
    on_disk.store.close()
    assert stored_indexes(tmp_path / "log") == list(range(96, 102))


def test_deleting_keeps_up_with_a_load_of_short_runs(
    on_disk: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lmdb, "_TRIMMED_AT_ONCE", 1)
    on_disk.begin()
    sizes = []
    for first in range(1, 5001, 100):
        assert on_disk.save(*(run(index, 1) for index in range(first, first + 100))) is None
        on_disk.store.compact(1, 1, first + 90)
        sizes.append((tmp_path / "log" / "data.mdb").stat().st_size)
    assert sizes[-1] < 2 * sizes[10]


@pytest.mark.parametrize("leave", ["compact", "remove"])
def test_what_a_stop_left_undeleted_is_deleted_in_the_next_life(
    on_disk: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    on_disk.begin()
    on_disk.begin(2, 1)
    on_disk.save(*(run(index, 1) for index in range(1, 101)))
    with monkeypatch.context() as patch:
        patch.setattr(log_lmdb.LmdbDisk, "_trim_one", lambda *_arguments: 0)
        if leave == "compact":
            on_disk.store.compact(1, 1, 95)
        else:
            on_disk.store.remove(1, 1)
        on_disk.store.close()
    assert stored_indexes(tmp_path / "log") == list(range(1, 101))
    on_disk.restart()
    if leave == "compact":
        check(on_disk.log(), of(run(96, 5)), 96, 1)
    else:
        assert on_disk.store.open(1, 1) is None
        assert on_disk.store.replicas() == [(2, 1)]
    on_disk.store.close()
    assert stored_indexes(tmp_path / "log") == (list(range(96, 101)) if leave == "compact" else [])
    if leave == "remove":
        left = [key for key in stored_keys(tmp_path / "log", b"meta") if key.startswith(key_of())]
        assert left == [key_of(kind=b"r")], "its tombstone"


def test_an_imported_log_never_loses_to_what_its_predecessor_left(
    on_disk: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.begin()
    on_disk.save(*(run(index, 1) for index in range(1, 101)))
    with monkeypatch.context() as patch:
        # The deletion of the first replica's log is always put off.
        patch.setattr(log_lmdb.LmdbDisk, "_trim_one", lambda *_arguments: 0)
        on_disk.store.remove(1, 1)
        on_disk.store.import_replica(1, 1, RECORD, Snapshot(50, 4, MEMBERS), HardState(4))
        assert on_disk.save(run(51, 2, 5), run(53, 1, 6)) is None
    for _ in range(2):
        assert on_disk.save(hard=HardState(on_disk.log().hard_state.term + 1)) is None
        check(on_disk.log(), of(run(51, 2, 5), run(53, 1, 6)), 51, 4)
        on_disk.restart()


def test_opening_reads_the_ends_of_a_log_of_a_million_entries(
    on_disk: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.begin()
    payloads = [b"0123456789abcdef"] * 1000
    for first in range(1, 1_000_000, 100_000):
        on_disk.save(*(Run(first + at, 1, payloads) for at in range(0, 100_000, 1000)))
    on_disk.restart()
    read: list[bytes] = []
    decode = Run.decode
    monkeypatch.setattr(Run, "decode", lambda data: read.append(data) or decode(data))
    log = on_disk.log()
    assert (log.first_index, log.last_index) == (1, 1_000_000)
    assert len(read) == 2
    assert log.term(500_000) == 1
    assert log.term(499_999) == 1
    assert len(read) == 3, "the run that was just read is remembered"


def test_terms_of_what_was_written_in_this_life_are_known_without_reading(
    on_disk: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.begin()
    on_disk.save(run(1, 4, 1), run(5, 4, 2), run(9, 4, 3))
    on_disk.save(run(7, 2, 4), run(9, 2, 5))
    on_disk.store.compact(1, 1, 5)
    log = on_disk.log()
    monkeypatch.setattr(log, "_read", lambda *_arguments: pytest.fail("it was read from the disk"))
    assert [log.term(index) for index in range(4, 12)] == [0, 2, 2, 4, 4, 5, 5, 0]


def test_a_log_of_many_terms_keeps_the_newest_in_memory_and_reads_the_others(host: Host) -> None:
    host.begin()
    log = host.log()
    host.save(*(run(index, 1, 2 * index) for index in range(1, 1001)))
    assert len(log._state().starts) < 200
    assert [log.term(index) for index in range(1, 1001)] == [2 * index for index in range(1, 1001)]
    host.save(run(500, 1, 3000))
    assert [log.term(index) for index in (1, 499, 500)] == [2, 998, 3000]
    host.store.compact(1, 1, 498)
    check(log, of(run(499, 1, 998), run(500, 1, 3000)), 499, 996)


def test_a_remembered_run_is_forgotten_when_it_is_replaced(host: Host) -> None:
    host.begin()
    host.save(run(1, 9, 1))
    host.restart()
    log = host.log()
    assert log.runs(5, 6, UNLIMITED)[0].term == 1
    host.save(run(4, 6, 2))
    assert log.runs(5, 6, UNLIMITED)[0].term == 2
    host.save(run(7, 3, 3), snapshot=Snapshot(6, 2, MEMBERS))
    assert log.runs(7, 8, UNLIMITED)[0].term == 3
    host.save(run(8, 3, 4), snapshot=Snapshot(7, 2, MEMBERS))
    assert log.runs(8, 9, UNLIMITED)[0].term == 4


# -- when what is on disk is damaged --------------------------------------------------------------------------------


@contextmanager
def tampering(directory: Path, table: bytes) -> Iterator["lmdb.Transaction[bytes]"]:
    with lmdb.open(str(directory), max_dbs=2) as env, env.begin(write=True, db=env.open_db(table)) as txn:
        yield txn


def key_of(first: int | None = None, kind: bytes = b"") -> bytes:
    """The key of a run, of a record, or what all of shard 1 replica 1 begin with."""
    return (1).to_bytes(8) + (1).to_bytes(8) + (kind if first is None else first.to_bytes(8))


def damaged(host: Host, directory: Path, table: bytes, key: bytes, value: bytes | None) -> None:
    """Restart with this value in place of the one that is there."""
    host.store.close()
    with tampering(directory, table) as txn:
        assert txn.get(key) is not None
        if value is None:
            txn.delete(key)
        else:
            txn.put(key, value)
    host.restart()


def stored(directory: Path, table: bytes, key: bytes) -> bytes:
    with tampering(directory, table) as txn:
        value = txn.get(key)
        assert value is not None
        return value


def test_a_flipped_bit_in_any_byte_of_an_entry_is_found(on_disk: Host, tmp_path: Path) -> None:
    """BUG-L15: damage in the middle must never look like the end."""
    on_disk.begin()
    on_disk.save(run(1, 2))
    on_disk.save(run(3, 2))
    on_disk.save(run(5, 2))
    on_disk.store.close()
    whole = stored(tmp_path / "log", b"log", key_of(3))
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        damaged(on_disk, tmp_path / "log", b"log", key_of(3), bytes(flipped))
        log = on_disk.log()
        assert list(Entries(log.runs(1, 3, UNLIMITED))) == of(run(1, 2)), "what is sound can be read"
        for read in (lambda log=log: log.runs(2, 6, UNLIMITED), lambda log=log: log.term(4)):
            with pytest.raises(
                CorruptData, match=r"data\.mdb: shard 1 replica 1: the run of entries from 3 on"
            ):
                read()


@pytest.mark.parametrize("first", [1, 5], ids=["the first run", "the last run"])
@pytest.mark.parametrize("cut", [0, 3, 4, 20, -1])
def test_a_shortened_entry_at_either_end_is_found_at_once(
    on_disk: Host, tmp_path: Path, first: int, cut: int
) -> None:
    on_disk.begin()
    on_disk.save(run(1, 2))
    on_disk.save(run(3, 2))
    on_disk.save(run(5, 2))
    on_disk.store.close()
    whole = stored(tmp_path / "log", b"log", key_of(first))
    damaged(on_disk, tmp_path / "log", b"log", key_of(first), whole[:cut])
    with pytest.raises(CorruptData, match=f"shard 1 replica 1: the run of entries from {first} on"):
        on_disk.store.open(1, 1)


@pytest.mark.parametrize("kind", [b"b", b"h", b"m", b"s"])
def test_a_flipped_bit_in_any_byte_of_a_record_is_found(on_disk: Host, tmp_path: Path, kind: bytes) -> None:
    on_disk.begin()
    on_disk.begin(1, 2)
    on_disk.save(run(1, 5), hard=HardState(3, 2, 4))
    on_disk.store.record_snapshot(1, 1, Snapshot(4, 1, MEMBERS))
    on_disk.store.compact(1, 1, 2)
    on_disk.store.close()
    whole = stored(tmp_path / "log", b"meta", key_of(kind=kind))
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        damaged(on_disk, tmp_path / "log", b"meta", key_of(kind=kind), bytes(flipped))
        with pytest.raises(CorruptData, match=f"shard 1 replica 1: record '{kind.decode()}'"):
            on_disk.store.open(1, 1)
        assert isinstance(on_disk.save(run(6, 1)), CorruptData)
        on_disk.log(1, 2)


@pytest.mark.parametrize("kind", [b"b", b"h"])
def test_a_missing_record_is_no_new_replica(on_disk: Host, tmp_path: Path, kind: bytes) -> None:
    on_disk.begin()
    on_disk.save(run(1, 5), hard=HardState(3, 2, 4))
    damaged(on_disk, tmp_path / "log", b"meta", key_of(kind=kind), None)
    with pytest.raises(CorruptData, match="its bootstrap record or its hard state is missing"):
        on_disk.store.open(1, 1)
    with pytest.raises(CorruptData, match="missing"):
        on_disk.store.bootstrap(1, 1, RECORD)


@pytest.mark.parametrize("remedy", ["remove", "import"])
def test_a_corrupt_replica_can_be_removed_or_replaced(on_disk: Host, tmp_path: Path, remedy: str) -> None:
    on_disk.begin()
    on_disk.save(run(1, 5), hard=HardState(3, 2, 4))
    damaged(on_disk, tmp_path / "log", b"meta", key_of(kind=b"h"), b"????")
    with pytest.raises(CorruptData):
        on_disk.store.open(1, 1)
    if remedy == "remove":
        on_disk.store.remove(1, 1)
        assert on_disk.store.open(1, 1) is None
    else:
        on_disk.store.import_replica(1, 1, RECORD, Snapshot(3, 2, MEMBERS), HardState(2))
        check(on_disk.log(), [], 4, 2)
    on_disk.store.close()
    assert stored_indexes(tmp_path / "log") == []
    on_disk.restart()


def test_missing_entries_are_found_and_named(on_disk: Host, tmp_path: Path) -> None:
    on_disk.begin()
    on_disk.save(run(1, 2), run(3, 2), run(5, 2), run(7, 2))
    damaged(on_disk, tmp_path / "log", b"log", key_of(3), None)
    log = on_disk.log()
    for read in (lambda: log.runs(1, 9, UNLIMITED), lambda: log.term(4), lambda: log.runs(3, 5, 1)):
        with pytest.raises(CorruptData, match=r"shard 1 replica 1: entry [34] is missing"):
            read()
    damaged(on_disk, tmp_path / "log", b"log", key_of(1), None)
    with pytest.raises(CorruptData, match="entry 1 is missing"):
        on_disk.store.open(1, 1)


def test_an_entry_under_anothers_key_is_found(on_disk: Host, tmp_path: Path) -> None:
    on_disk.begin()
    on_disk.save(run(1, 2), run(3, 2), run(5, 2))
    on_disk.store.close()
    other = stored(tmp_path / "log", b"log", key_of(1))
    damaged(on_disk, tmp_path / "log", b"log", key_of(3), other)
    with pytest.raises(CorruptData, match="the run of entries from 3 on"):
        on_disk.log().runs(1, 7, UNLIMITED)


def test_a_snapshot_beyond_what_the_log_holds_is_a_contradiction(on_disk: Host, tmp_path: Path) -> None:
    on_disk.begin()
    on_disk.save(run(1, 2), run(3, 2))
    waiter = Waiter()
    on_disk.store.record_snapshot(1, 1, Snapshot(4, 1, MEMBERS), waiter)
    waiter.wait()
    damaged(on_disk, tmp_path / "log", b"log", key_of(3), None)
    with pytest.raises(CorruptData, match="snapshot at 4, but its log ends at 2"):
        on_disk.store.open(1, 1)


def test_a_commit_index_beyond_the_log_is_lowered_with_a_warning(
    on_disk: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BUG-L14: power was lost between two files, or the log was restored from a copy."""
    on_disk.begin()
    on_disk.save(run(1, 2), run(3, 2), hard=HardState(1, 1, 4))
    damaged(on_disk, tmp_path / "log", b"log", key_of(3), None)
    assert on_disk.log().hard_state == HardState(1, 1, 2)
    assert "the commit index 4 lies beyond the last entry 2" in caplog.text


def test_corrupt_entries_in_the_way_of_a_save_fail_that_replica_alone(
    on_disk: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.begin()
    on_disk.begin(1, 2)
    on_disk.save(run(1, 4), run(5, 4), run(9, 1))
    on_disk.store.close()
    whole = stored(tmp_path / "log", b"log", key_of(5))
    damaged(on_disk, tmp_path / "log", b"log", key_of(5), whole[:-1] + bytes([whole[-1] ^ 1]))
    on_disk.log()
    on_disk.log(1, 2)
    waiter, others = Waiter(), Waiter()
    with held_commits(on_disk.store, monkeypatch) as go:
        on_disk.store.save(AppendRequest(1, 2, None, [run(1, 1)], done=others))
        on_disk.store.save(AppendRequest(1, 1, HardState(1001), [run(7, 1, 2)], done=waiter))
        on_disk.store.save(AppendRequest(1, 2, None, [run(2, 1)], done=others))
        go.set()
        refused = waiter.wait()[0]
        assert others.wait(2) == [None, None]
    assert isinstance(refused, CorruptData)
    assert on_disk.store.poisoned is None
    on_disk.restart()
    assert on_disk.log().hard_state.term == 1000, "nothing of the refused save was kept"
    assert on_disk.log().last_index == 9
    check(on_disk.log(1, 2), of(run(1, 2)), 1, 0)


@pytest.mark.parametrize("left", [0, 1, 4096, 8192, 20_000, -1])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, left: int) -> None:
    host = Host(lambda: LmdbLogStore(tmp_path / "log"))
    host.begin()
    for index in range(1, 20):
        host.save(Run(index, 1, [bytes(5000)]))
    host.store.close()
    file = tmp_path / "log" / "data.mdb"
    os.truncate(file, left if left >= 0 else file.stat().st_size - 1)
    before = file.read_bytes()
    with pytest.raises(CorruptData, match=r"data\.mdb"):
        LmdbLogStore(tmp_path / "log")
    assert file.read_bytes() == before


def test_a_missing_file_is_no_new_store(tmp_path: Path) -> None:
    host = Host(lambda: LmdbLogStore(tmp_path / "log"))
    host.begin()
    host.store.close()
    (tmp_path / "log" / "data.mdb").unlink()
    with pytest.raises(CorruptData, match="is missing or empty"):
        LmdbLogStore(tmp_path / "log")
    assert not (tmp_path / "log" / "data.mdb").exists()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "data.mdb").write_bytes(b"not a log store " * 1000)
    with pytest.raises(CorruptData, match=r"data\.mdb is no log store, or a damaged one"):
        LmdbLogStore(tmp_path / "log")


def test_an_environment_of_another_program_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "log")) as env, env.begin(write=True) as txn:
        txn.put(b"their", b"data")
    with pytest.raises(CorruptData, match="cannot be read as a log store"):
        LmdbLogStore(tmp_path / "log")


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    LmdbLogStore(tmp_path / "log").close()
    with tampering(tmp_path / "log", b"meta") as txn:
        txn.put(b"format", b"2")
    with pytest.raises(ConfigError, match="format '2', and this version reads '1'"):
        LmdbLogStore(tmp_path / "log")


def test_a_start_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "log.new").mkdir()
    (tmp_path / "log.new" / "data.mdb").write_bytes(b"half")
    (tmp_path / "log").mkdir()
    host = Host(lambda: LmdbLogStore(tmp_path / "log"))
    host.begin()
    host.restart()
    assert host.store.replicas() == [(1, 1)]
    host.store.close()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("mine")
    with pytest.raises(ConfigError, match="cannot hold a log store"):
        LmdbLogStore(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "mine"


def test_a_second_store_in_the_same_directory_is_refused(on_disk: Host, tmp_path: Path) -> None:
    on_disk.begin()
    with pytest.raises(ConfigError, match="cannot hold a log store"):
        LmdbLogStore(tmp_path / "log")
    assert on_disk.save(run(1, 1)) is None
