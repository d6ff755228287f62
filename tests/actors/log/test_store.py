"""The log store, on a disk, in memory and on a loop: what was reported durable is there, and nothing else is."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drakkar.actors.log import state as log_state
from drakkar.actors.log.cleaning import Cleaner
from drakkar.actors.log.files import DiskFiles, MemoryFiles
from drakkar.actors.log.records import RecordBuilder
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore, StoredLog, log_in_memory
from drakkar.actors.log.stored_log import RUN_OVERHEAD
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM
from drakkar.handlers.errors import (
    ConfigError,
    CorruptData,
    ProtocolViolation,
    ReplicaStopped,
    RequestDropped,
    StorageFailed,
)
from drakkar.handlers.raft import runs
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, Run
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.lives import Lives, Standing
from drakkar.handlers.raft.log import RaftLog
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

from tests.actors.log.support import (
    MEMBERS,
    OWNER,
    RECORD,
    SMALL,
    WAIT,
    Host,
    LoopHost,
    Waiter,
    check,
    entries,
    of,
    on_disk,
    run,
    without_aio,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["disk", "memory", "aio", "thread"])
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Two that do all at once, and two on a loop: flushed by Linux AIO, and by a thread."""
    if request.param == "thread":
        without_aio(monkeypatch)
    made = {
        "disk": lambda: Host(lambda: on_disk(tmp_path / "log")),
        "memory": partial(Host, partial(log_in_memory, MemoryFiles())),
    }.get(request.param, lambda: LoopHost(tmp_path / "log"))()
    yield made
    made.close()


@pytest.fixture
def disk_host(tmp_path: Path) -> Iterator[Host]:
    made = Host(lambda: on_disk(tmp_path / "log"))
    yield made
    made.close()


# -- the same for all --------------------------------------------------------------------------------------------


def test_a_replica_is_unknown_until_it_is_bootstrapped(host: Host) -> None:
    assert host.call(host.store.open, 1, 1) is None
    assert host.store.replicas() == []
    assert isinstance(host.save(run(1, 1)), ConfigError)
    with pytest.raises(ConfigError, match="shard 1 replica 1"):
        host.compact(1)


def test_a_new_replica_is_empty_and_knows_how_it_began(host: Host) -> None:
    host.begin()
    host.restart()
    log = host.log()
    host.call(check, log, [], 1, 0)
    assert log.bootstrap == RECORD
    assert (log.hard_state, log.snapshot, log.membership) == (HardState(), Snapshot(), RECORD.membership)
    assert host.store.replicas() == [(1, 1)]


def test_a_replica_begins_only_once(host: Host) -> None:
    host.begin()
    with pytest.raises(ConfigError, match=r"shard 1 replica 1.*is in this log store already"):
        host.bootstrap(1, 1, Bootstrap(Membership({7: "x"}), join=True))
    assert host.log().bootstrap == RECORD


@pytest.mark.parametrize(
    ("shard", "replica"), [(-1, 1), (1, 0), (1 << 63, 1), (1, 1 << 63), ("1", 1), (True, 1)]
)
def test_ids_out_of_bounds_are_refused(host: Host, shard: int, replica: int) -> None:
    with pytest.raises(ConfigError, match="must be a whole number"):
        host.bootstrap(shard, replica, RECORD)


def test_the_largest_ids_are_kept_apart_from_all_others(host: Host) -> None:
    keys = [(0, 1), (0, MAX_SIGNED), (1, 1), (MAX_SIGNED, MAX_SIGNED)]
    for number, key in enumerate(keys, 1):
        host.begin(*key)
        host.save(run(1, 3, term=number), shard=key[0], replica=key[1])
    host.restart()
    assert host.store.replicas() == sorted(keys)
    for number, key in enumerate(keys, 1):
        host.call(check, host.log(*key), of(run(1, 3, term=number)), 1, 0)


def test_every_column_of_an_entry_comes_back_byte_for_byte(host: Host) -> None:
    """BUG-L18: encoded twice on one path only, and seen only after a restart."""
    kinds = bytes([EntryKind.NO_OP, EntryKind.CONFIG_CHANGE, EntryKind.SESSION, EntryKind.METADATA])
    runs = [
        Run(1, 3, [b"", b"\x00" * 300, b"x", b""], kinds, origin=MAX_SIGNED, key=7),
        Run(5, MAX_TERM, [os.urandom(70_000)], origin=9, key=1),
        Run(6, MAX_TERM, [b"plain"]),
    ]
    host.begin()
    assert host.save(*runs) is None
    for _ in range(2):
        assert [stored.encode() for stored in host.log().runs(1, 7, UNLIMITED)] == [
            sent.encode() for sent in runs
        ]
        host.restart()


UNREADABLE: dict[str, dict[str, Any]] = {
    "a term": {"hard_state": HardState(MAX_TERM + 1)},
    "a vote": {"hard_state": HardState(1, vote=MAX_SIGNED + 1)},
    "a commit index": {"hard_state": HardState(1, commit=MAX_INDEX + 1)},
    "an entry's term": {"runs": [Run(4, MAX_TERM + 1, [b"x"])]},
    "a proposer": {"runs": [Run(4, 3, [b"x"], origin=MAX_SIGNED + 1)]},
    "a snapshot's index": {"snapshot": Snapshot(MAX_INDEX + 1, 3)},
    "a snapshot's term": {"snapshot": Snapshot(9, MAX_TERM + 1)},
    "a member": {"snapshot": Snapshot(9, 3, Membership({MAX_SIGNED + 1: "a:1"}))},
    "a companion": {"lives": Lives(b"f" * 16, Standing.FOUNDER, {2: MAX_SIGNED + 1})},
}


@pytest.mark.parametrize("fields", UNREADABLE.values(), ids=UNREADABLE)
def test_what_could_not_be_read_back_is_not_stored(host: Host, fields: dict[str, Any]) -> None:
    """The replica fails, so that it does nothing that rests on it; the disk holds what it held."""
    host.begin()
    host.begin(1, 2)
    assert host.save(run(1, 3), hard=HardState(3, 1, 2)) is None
    error = host.outcome(lambda done: host.store.save(AppendRequest(1, 1, **fields, done=done)))
    assert isinstance(error, ProtocolViolation)
    assert isinstance(host.save(run(4, 1)), ProtocolViolation), "what follows may rest on it"
    assert host.save(run(1, 1), replica=2) is None, "another replica is not concerned"
    host.restart()
    assert host.log().hard_state == HardState(3, 1, 2)
    assert host.log().last_index == 3
    assert host.save(run(4, 1)) is None


@pytest.mark.parametrize("fields", UNREADABLE.values(), ids=UNREADABLE)
def test_a_replica_whose_numbers_are_out_of_bounds_is_corrupt_and_no_other_one(
    disk_host: Host, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """As an earlier version may have stored it: the start says so, and nothing fails later."""
    disk_host.begin()
    disk_host.begin(1, 2)
    assert disk_host.save(run(1, 3), hard=HardState(3, 1, 2)) is None
    with monkeypatch.context() as before:
        before.setattr(log_state, "_check_readable", lambda *_, **__: None)
        before.setattr(runs, "_beyond", lambda *_: "")
        disk_host.ask(lambda done: disk_host.store.save(AppendRequest(1, 1, **fields, done=done)))
    disk_host.restart()
    with pytest.raises(CorruptData, match=r"shard 1 replica 1"):
        entries(disk_host.log())  # where a proposer is out of bounds, it shows when the entry is read
    assert disk_host.log(1, 2).last_index == 0


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
    host.call(check, host.log(), expected, 1, 0)
    host.restart()
    host.call(check, host.log(), expected, 1, 0)
    host.call(check, host.log(1, 2), of(run(1, 9, 8)), 1, 0)


def test_one_save_may_hold_several_runs_and_cut_in_the_middle_of_one(host: Host) -> None:
    host.begin()
    assert host.save(run(1, 4, 1), run(5, 4, 2)) is None
    assert host.save(run(7, 1, 3), run(8, 2, 4), run(10, 1, 4), hard=HardState(4, 2, 6)) is None
    expected = of(run(1, 4, 1), run(5, 2, 2), run(7, 1, 3), run(8, 3, 4))
    host.call(check, host.log(), expected, 1, 0)
    host.restart()
    host.call(check, host.log(), expected, 1, 0)
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
    host.compact(3)
    with pytest.raises(IndexError, match="it holds 4 to 6"):
        host.log().runs(low, high, UNLIMITED)


@pytest.mark.parametrize("index", range(9))
def test_compaction_drops_entries_and_keeps_the_term_before_the_first(host: Host, index: int) -> None:
    runs = [run(1, 3, 1), run(4, 3, 2), run(7, 2, 3)]
    host.begin()
    log = host.log()
    host.save(*runs, hard=HardState(3, 1, 8))
    kept = of(*runs)[index:]
    host.compact(index)
    term = of(*runs)[index - 1].term if index else 0
    host.call(check, log, kept, index + 1, term)
    host.restart()
    host.call(check, host.log(), kept, index + 1, term)
    assert host.save(run(9, 2, 4)) is None
    host.call(check, host.log(), kept + of(run(9, 2, 4)), index + 1, term)


def test_compacting_again_does_nothing_and_never_reaches_beyond_the_last_entry(host: Host) -> None:
    host.begin()
    host.save(run(1, 5))
    host.compact(3)
    host.compact(2)
    host.call(check, host.log(), of(run(4, 2)), 4, 1)
    host.compact(100)
    host.call(check, host.log(), [], 6, 1)
    assert host.save(run(6, 1, 2)) is None
    host.restart()
    host.call(check, host.log(), of(run(6, 1, 2)), 6, 1)


@pytest.mark.parametrize("index", [2, 4, 5, 6, 12])
def test_an_installed_snapshot_replaces_the_whole_log(host: Host, index: int) -> None:
    host.begin()
    host.save(run(1, 4, 1), run(5, 4, 2), hard=HardState(2, 1, 3))
    snapshot = Snapshot(index, 7, MEMBERS, b"where it lies", size=1 << 40)
    assert host.save(run(index + 1, 2, 9), hard=HardState(9, 0, index), snapshot=snapshot) is None
    expected = of(run(index + 1, 2, 9))
    host.call(check, host.log(), expected, index + 1, 7)
    host.restart()
    log = host.log()
    host.call(check, log, expected, index + 1, 7)
    assert (log.snapshot, log.membership) == (snapshot, MEMBERS)
    assert log.bootstrap == RECORD
    assert log.hard_state == HardState(9, 0, index)


def test_a_snapshot_without_entries_leaves_an_empty_log_behind_it(host: Host) -> None:
    host.begin()
    host.save(run(1, 9, 1))
    assert host.save(snapshot=Snapshot(5, 2, MEMBERS)) is None
    host.restart()
    host.call(check, host.log(), [], 6, 2)
    assert host.log().hard_state.commit == 5, "what a snapshot covers is committed"
    assert host.save(run(6, 1, 3)) is None
    host.call(check, host.log(), of(run(6, 1, 3)), 6, 2)


def test_a_snapshot_never_brings_compacted_entries_back(host: Host) -> None:
    host.begin()
    host.save(run(1, 9))
    host.compact(6)
    assert isinstance(host.save(snapshot=Snapshot(5, 1, MEMBERS)), ProtocolViolation)
    host.call(check, host.log(), of(run(7, 3)), 7, 1)


def test_a_snapshot_taken_here_leaves_the_log_alone(host: Host) -> None:
    host.begin()
    host.save(run(1, 9))
    snapshot = Snapshot(6, 1, MEMBERS, b"file", witness=True, size=3)
    assert host.record(snapshot) is None
    host.restart()
    host.call(check, host.log(), of(run(1, 9)), 1, 0)
    assert (host.log().snapshot, host.log().membership) == (snapshot, MEMBERS)


def test_a_snapshot_that_is_out_of_date_is_refused_and_harms_nothing(host: Host) -> None:
    host.begin()
    host.save(run(1, 9))
    outcomes = [host.record(Snapshot(index, 1, MEMBERS)) for index in (6, 6, 5)]
    assert [type(outcome) for outcome in outcomes] == [type(None), RequestDropped, RequestDropped]
    assert host.save(run(10, 1)) is None
    assert host.log().snapshot.index == 6


def test_a_snapshot_beyond_the_log_is_refused(host: Host) -> None:
    host.begin()
    assert isinstance(host.record(Snapshot(3, 1, MEMBERS)), ProtocolViolation)
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
    host.compact(3)
    refused = host.save(*runs, hard=HardState(9, 9, 9))
    assert isinstance(refused, ProtocolViolation)
    assert "shard 1 replica 1" in str(refused)
    assert host.save(run(6, 1)) is refused, "what comes next rests on what failed"
    assert host.save(run(1, 1), shard=2, replica=2) is None
    assert "until it is opened again" in caplog.text
    host.call(check, host.log(), of(run(4, 2)), 4, 1)
    assert host.log().hard_state == HardState(1, 1, 3)
    assert host.save(run(6, 1)) is None, "and opened again, it goes on"


def test_a_compaction_that_failed_is_undone_when_the_log_is_opened_again(host: Host) -> None:
    host.begin()
    host.save(run(1, 5))
    assert isinstance(host.save(run(9, 1)), ProtocolViolation)
    host.compact(3)
    host.ask(host.store.after_all)
    for _ in range(2):
        host.call(check, host.log(), of(run(1, 5)), 1, 0)
        host.restart()


def test_a_removed_replica_is_gone_and_its_id_is_never_used_again(host: Host) -> None:
    log = host.begin()
    host.begin(1, 2)
    host.save(run(1, 5), hard=HardState(7, 7, 5), snapshot=None)
    host.save(run(1, 5), replica=2)
    host.remove()
    with pytest.raises(ReplicaStopped, match="removed"):
        _ = log.last_index
    assert host.call(host.store.open, 1, 1) is None
    assert host.store.replicas() == [(1, 2)]
    for _ in range(3):
        assert host.call(host.store.open, 1, 1) is None
        refused = host.save(run(6, 1))
        assert isinstance(refused, ConfigError)
        assert "shard 1 replica 1" in str(refused)
        with pytest.raises(
            ConfigError, match=r"shard 1 replica 1.*ids are never used again.*choose another id"
        ):
            host.bootstrap(1, 1, RECORD)
        host.restart()
    assert host.store.replicas() == [(1, 2)]
    host.call(check, host.log(1, 2), of(run(1, 5)), 1, 0)


def test_what_was_never_there_can_be_removed_before_it_comes(host: Host) -> None:
    host.remove(3, 3)
    assert host.store.replicas() == []
    with pytest.raises(ConfigError, match="never used again"):
        host.bootstrap(3, 3, RECORD)


@pytest.mark.parametrize("there", ["nothing", "a log", "a compacted log", "a tombstone"])
def test_an_import_replaces_all_that_is_there(host: Host, there: str) -> None:
    host.begin(1, 2)
    host.save(run(1, 3), replica=2)
    log = None
    if there != "nothing":
        log = host.begin()
        host.save(*(run(index, 1, 2) for index in range(1, 101)), hard=HardState(9, 2, 90))
    if there == "a compacted log":
        host.compact(70)
    if there == "a tombstone":
        host.remove()
    record, snapshot = Bootstrap(MEMBERS, state_machine="Counter"), Snapshot(50, 4, MEMBERS, b"file")
    host.import_(record, snapshot, HardState(6, 0, 50))
    assert host.store.replicas() == [(1, 1), (1, 2)]
    if log is not None:
        with pytest.raises(ReplicaStopped, match="removed" if there == "a tombstone" else "import"):
            _ = log.last_index
    for _ in range(2):
        imported = host.log()
        host.call(check, imported, [], 51, 4)
        assert (imported.bootstrap, imported.snapshot) == (record, snapshot)
        assert imported.hard_state == HardState(6, 0, 50)
        host.restart()
    assert host.save(run(51, 2, 6)) is None
    host.restart()
    host.call(check, host.log(), of(run(51, 2, 6)), 51, 4)
    host.call(check, host.log(1, 2), of(run(1, 3)), 1, 0)


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
        host.import_(RECORD, snapshot, hard)
    host.call(check, host.log(), of(run(1, 5)), 1, 0)


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
        raise ValueError("callback")

    host.begin()
    host.call(host.store.save, AppendRequest(1, 1, None, [run(1, 1)], done=fail))
    assert host.save(run(2, 1)) is None
    assert host.store.status.failed_callbacks == 1
    assert "replica 1 of shard 1: a callback failed" in caplog.text


def test_a_failure_behind_a_flush_reports_no_request_twice(tmp_path: Path) -> None:
    host = Host(lambda: on_disk(tmp_path / "log"))
    host.begin()
    waiter = Waiter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cleaner, "consider", lambda *_arguments: 1 / 0)
        host.store.save(AppendRequest(1, 1, None, [run(1, 1)], done=waiter))
    assert waiter.outcomes == [None]
    assert host.store.status.waiting == 0
    assert "ZeroDivisionError" in str(host.store.poisoned)
    host.close()


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

    host.call(host.store.save, AppendRequest(1, 1, None, [run(1, 1)], done=next_one(1)))
    assert finished.wait(WAIT)
    assert host.log().last_index == 300


def test_saves_are_reported_in_the_order_in_which_they_were_made(host: Host) -> None:
    for replica in (1, 2, 3):
        host.begin(1, replica)
    told: list[tuple[int, int]] = []
    waiter = Waiter()

    def save(replica: int, number: int, **what: object) -> None:
        def done(error: BaseException | None) -> None:
            told.append((replica, number))
            waiter(error)

        host.call(host.store.save, AppendRequest(1, replica, done=done, **what))  # type: ignore[arg-type]

    for number in range(1, 101):
        save(1, number, runs=[run(number, 1)])
        save(2, number, hard_state=HardState(0, 0, number))
        save(3, number, runs=[run(number, 1)], hard_state=HardState(number))
    assert set(waiter.wait(300)) == {None}
    for replica in (1, 2, 3):
        assert [number for which, number in told if which == replica] == list(range(1, 101))


def test_a_closed_store_takes_and_gives_nothing(host: Host) -> None:
    log = host.begin()
    host.save(run(1, 5))
    host.close()
    host.close()
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
    assert host.record(Snapshot(3, 1, MEMBERS)) is None
    host.compact(3)
    host.restart()
    core = RaftLog(host.log())
    assert (core.first_index, core.last_index, core.committed, core.last_term) == (4, 10, 8, 2)
    assert list(core.entries(4, 11)) == of(run(4, 2, 1), run(6, 5, 2))
    assert core.matches(5, 1)
    assert core.last_not_after(10, 1) == (5, 1)


@pytest.mark.parametrize("option", ["max_queue_bytes", "max_queue_saves", "segment_bytes"])
def test_options_out_of_bounds_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}=-1"):
        LogStore(DiskFiles(tmp_path / "log"), OWNER, **{option: -1})
    assert not (tmp_path / "log").exists()


# -- in many segments -----------------------------------------------------------------------------------------------


def test_a_log_grows_over_many_segments_while_it_is_read(host: Host) -> None:
    log = host.begin()
    host.save(run(1, 10))
    for index in range(11, 60):
        assert host.save(Run(index, 1, [os.urandom(60_000)])) is None
        log._kept.clear()
        assert list(Entries(log.runs(1, 11, UNLIMITED))) == of(run(1, 10))
    assert host.store.status.disk_bytes > 40 * 60_000
    assert host.store.status.segments > 2
    large = os.urandom(3_000_000)
    assert host.save(Run(60, 1, [large])) is None, "several times a segment at once"
    for _ in range(2):
        assert host.log().last_index == 60
        assert host.log().runs(60, 61, UNLIMITED)[0].payloads == (large,)
        host.restart()


def test_deleting_keeps_up_with_a_load_of_short_runs(disk_host: Host) -> None:
    disk_host.begin()
    sizes = []
    for first in range(1, 20001, 100):
        assert disk_host.save(*(run(index, 1) for index in range(first, first + 100))) is None
        disk_host.compact(first + 90)
        sizes.append(disk_host.store.status.disk_bytes)
    assert disk_host.store.status.commits * 4000 > 8 * SMALL, "several segments were written"
    assert max(sizes) <= 5 * SMALL


def test_a_replica_that_failed_keeps_no_space_from_the_others(disk_host: Host) -> None:
    """Its requests are refused until it is opened again, which may be never; what it holds is sound."""
    disk_host.begin()
    disk_host.begin(1, 2)
    disk_host.save(run(1, 9))
    assert isinstance(disk_host.save(run(20, 1)), ProtocolViolation)
    for index in range(1, 200):
        assert disk_host.save(Run(index, 1, [bytes(3000)]), replica=2) is None
        disk_host.compact(index, 1, 2)
    assert disk_host.store.status.segments <= 4
    assert isinstance(disk_host.save(run(10, 1)), ProtocolViolation)
    for _ in range(2):
        check(disk_host.log(), of(run(1, 9)), 1, 0)
        disk_host.restart()


@pytest.mark.parametrize("leave", ["compact", "remove"])
def test_what_a_stop_left_undeleted_is_deleted_in_the_next_life(
    disk_host: Host, tmp_path: Path, leave: str
) -> None:
    disk_host.begin()
    disk_host.begin(2, 1)
    for index in range(1, 101):
        disk_host.save(Run(index, 1, [bytes(3000)]))
    before = disk_host.store.status.segments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cleaner, "consider", lambda *_arguments: None)
        if leave == "compact":
            disk_host.compact(95)
        else:
            disk_host.remove()
        disk_host.close()
    disk_host.restart()
    assert disk_host.store.status.segments >= before
    for index in range(1, 30):
        disk_host.save(Run(index, 1, [bytes(3000)]), shard=2)
    if leave == "compact":
        disk_host.call(
            check, disk_host.log(), of(*(Run(index, 1, [bytes(3000)]) for index in range(96, 101))), 96, 1
        )
    else:
        assert disk_host.store.open(1, 1) is None
        assert disk_host.store.replicas() == [(2, 1)]
    assert disk_host.store.status.segments < before


def test_an_imported_log_never_loses_to_what_its_predecessor_left(host: Host) -> None:
    host.begin()
    host.save(*(run(index, 1) for index in range(1, 101)))
    with pytest.MonkeyPatch.context() as patch:
        # Nothing of the first replica's log is ever deleted.
        patch.setattr(Cleaner, "consider", lambda *_arguments: None)
        host.remove()
        host.import_(RECORD, Snapshot(50, 4, MEMBERS), HardState(4))
        assert host.save(run(51, 2, 5), run(53, 1, 6)) is None
        for _ in range(2):
            assert host.save(hard=HardState(host.log().hard_state.term + 1)) is None
            host.call(check, host.log(), of(run(51, 2, 5), run(53, 1, 6)), 51, 4)
            host.restart()


def test_a_log_of_a_million_entries_is_opened_without_decoding_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(lambda: on_disk(tmp_path / "log", 16 << 20))
    host.begin()
    payloads = [b"0123456789abcdef"] * 1000
    for first in range(1, 1_000_000, 100_000):
        host.save(*(Run(first + at, 1, payloads) for at in range(0, 100_000, 1000)))
    host.restart()
    read: list[bytes] = []
    decode = Run.decode
    monkeypatch.setattr(Run, "decode", lambda data: read.append(data) or decode(data))
    log = host.log()
    assert (log.first_index, log.last_index) == (1, 1_000_000)
    assert log.term(500_000) == 1
    assert log.term(499_999) == 1
    assert not read
    log.runs(500_000, 500_001, UNLIMITED)
    log.runs(499_999, 500_001, UNLIMITED)
    assert len(read) == 1, "the run that was just read is remembered"
    host.close()


def test_terms_are_known_without_reading(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.begin()
    host.save(run(1, 4, 1), run(5, 4, 2), run(9, 4, 3))
    host.save(run(7, 2, 4), run(9, 2, 5))
    host.compact(5)
    monkeypatch.setattr(StoredLog, "_read", lambda *_arguments: pytest.fail("it was read from the disk"))
    for _ in range(2):
        log = host.log()
        terms = host.call(lambda log=log: [log.term(index) for index in range(4, 12)])
        assert terms == [0, 2, 2, 4, 4, 5, 5, 0]
        host.restart()


def test_a_log_of_many_terms_knows_all_of_them(host: Host) -> None:
    host.begin()
    log = host.log()
    host.save(*(run(index, 1, 2 * index) for index in range(1, 1001)))
    assert [log.term(index) for index in range(1, 1001)] == [2 * index for index in range(1, 1001)]
    host.save(run(500, 1, 3000))
    assert [log.term(index) for index in (1, 499, 500)] == [2, 998, 3000]
    host.compact(498)
    host.call(check, log, of(run(499, 1, 998), run(500, 1, 3000)), 499, 996)


def test_a_remembered_run_is_forgotten_when_it_is_replaced(host: Host) -> None:
    host.begin()
    host.save(run(1, 9, 1))
    host.restart()
    log = host.log()
    assert log.runs(5, 6, UNLIMITED)[0].term == 1
    host.save(run(4, 6, 2))
    assert log.runs(5, 6, UNLIMITED)[0].term == 2
    host.save(run(4, 6, 3))
    assert log.runs(5, 6, UNLIMITED)[0].term == 3, "it begins where the old one began"
    host.save(run(7, 3, 4), snapshot=Snapshot(6, 3, MEMBERS))
    assert log.runs(7, 8, UNLIMITED)[0].term == 4
    host.save(run(8, 3, 5), snapshot=Snapshot(7, 4, MEMBERS))
    assert log.runs(8, 9, UNLIMITED)[0].term == 5
    host.save(run(8, 3, 6), snapshot=Snapshot(7, 5, MEMBERS))
    assert log.runs(8, 9, UNLIMITED)[0].term == 6


# -- when the process ends ------------------------------------------------------------------------------------------

FULL_DISK = """
import logging, resource, sys
from pathlib import Path
from drakkar.actors.log.store import AppendRequest, Bootstrap, at_once
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import Membership
from tests.actors.log.support import on_disk

logging.disable()
store = on_disk(Path(sys.argv[1]))
at_once(lambda done: store.begin(1, 1, Bootstrap(Membership({1: "a"})), None, done))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for index in range(1, 1000):
    outcome = []
    store.save(AppendRequest(1, 1, None, [Run(index, 1, [b"%d" % index * 1000 * index])], done=outcome.append))
    if outcome[0] is not None:
        print(index - 1, type(outcome[0]).__name__, type(store.poisoned).__name__)
        break
store.close()
"""


def test_a_file_that_cannot_grow_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """A limit on the size of files fails the allocation of a segment for a large request."""
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert child.returncode == 0, child.stderr
    acknowledged, error, poisoned = child.stdout.split()
    assert (error, poisoned) == ("StorageFailed", "StorageFailed")
    assert int(acknowledged) > 5
    host = Host(lambda: on_disk(tmp_path / "log"))
    assert [entry.payload[:4] for entry in entries(host.log())] == [
        (b"%d" % index * 4)[:4] for index in range(1, int(acknowledged) + 1)
    ]
    host.close()


KILLED = """
import os, sys
from pathlib import Path
from drakkar.actors.log.store import AppendRequest
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import HardState
from tests.actors.log.support import LoopHost

host = LoopHost(Path(sys.argv[1]))
store = host.store

def save(replica, index):
    def done(error):
        assert error is None, error
        os.write(1, b"%d %d\\n" % (replica, index))
        if index % 50 == 0:
            store.compact(1, replica, index - 20)
        save(replica, index + 1)
    content = b"%d/%d" % (replica, index)
    store.save(AppendRequest(1, replica, HardState(index, replica, index - 1), [Run(index, index, [content * 50])], done=done))

for replica in (1, 2, 3):
    log = host.log(1, replica)
    host.call(save, replica, log.last_index + 1)
sys.stdin.read()
"""


@pytest.mark.parametrize("flushes", ["aio", "thread"])
def test_killed_at_any_moment_it_keeps_all_that_it_acknowledged(tmp_path: Path, flushes: str) -> None:
    host = Host(lambda: on_disk(tmp_path / "log"))
    for replica in (1, 2, 3):
        host.begin(1, replica)
    host.close()
    acknowledged = {1: 0, 2: 0, 3: 0}
    script = KILLED if flushes == "aio" else "import sys\nsys.modules['caio'] = None\n" + KILLED
    for life in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(random.Random(life).randint(20, 1000))]
            child.kill()
            lines += child.stdout.read().splitlines(keepends=True)
        for line in lines:
            if line.endswith(b"\n"):
                replica, index = map(int, line.split())
                acknowledged[replica] = index
        host = Host(lambda: on_disk(tmp_path / "log"))
        for replica, index in acknowledged.items():
            log = host.log(1, replica)
            assert log.last_index >= index
            assert log.hard_state == HardState(log.last_index, replica, log.last_index - 1)
            assert log.first_index <= max(index - 19, 1)
            for entry in entries(log):
                assert entry == Entry(
                    entry.index, entry.index, payload=b"%d/%d" % (replica, entry.index) * 50
                )
        host.close()
    assert min(acknowledged.values()) > 20


def test_what_fails_while_a_record_is_put_together_poisons_the_store_and_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.begin()

    def fail(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(RecordBuilder, "finish", fail)
    assert isinstance(host.save(run(1, 1)), StorageFailed)
    assert isinstance(host.save(run(1, 1)), StorageFailed)
    assert host.store.poisoned is not None
