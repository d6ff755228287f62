"""What a crash, a failing disk or a full one leaves of the log store opens again, with everything acknowledged.

A crash is an image: the file as it was before a commit, and of what that commit wrote any part, in any order, torn
anywhere. What a commit wrote is what the file differs by afterwards. LMDB writes data, waits for it with `fdatasync`,
and then writes the one sector of a meta page that makes it count: so the meta page can be there only with all the
data. That a disk writes a sector whole or not at all is all that is asked of it.
"""

import copy
import ctypes
import errno
import json
import platform
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import lmdb
import pytest
from drakkar.actors.log import lmdb as log_lmdb
from drakkar.actors.log.records import ReplicaKey
from drakkar.actors.log.state import LogChanges
from drakkar.actors.log.store import AppendRequest, Bootstrap, LmdbLogStore, LogStore, _Work
from drakkar.handlers.errors import StorageFailed
from drakkar.handlers.raft.entries import Entries, Entry, Run
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

from tests.actors.log.support import MEMBERS, RECORD, WAIT, Host, Waiter, check, entries, of, run

SECTOR, PAGE = 512, 4096
META_PAGES = 2


# -- a model of the store -----------------------------------------------------------------------------------------


@dataclass
class Known:
    """What must be there of one replica."""

    record: Bootstrap = RECORD
    hard: HardState = field(default_factory=HardState)
    snapshot: Snapshot = field(default_factory=Snapshot)
    marker: tuple[int, int] = (0, 0)
    entries: list[Entry] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.marker[0] + len(self.entries)

    def term(self, index: int) -> int:
        return self.marker[1] if index == self.marker[0] else self.entries[index - self.marker[0] - 1].term


World = dict[ReplicaKey, Known | None]
"""None is a replica that was removed."""


def look(store: LogStore, keys: list[ReplicaKey]) -> World:
    """Read all that is in a store."""
    world: World = {}
    for key in keys:
        log = store.open(*key)
        if log is not None:
            marker = (log.first_index - 1, log.term(log.first_index - 1))
            world[key] = Known(log.bootstrap, log._state().hard_state, log.snapshot, marker, entries(log))
        elif store._disk.removed(key):
            world[key] = None
    assert store.replicas() == sorted(key for key, known in world.items() if known is not None)
    return world


def difference(found: World, expected: World) -> str:
    """What differs, in a few words."""
    for key in sorted(found.keys() | expected.keys()):
        there, wanted = (world.get(key, "nothing") for world in (found, expected))
        if there != wanted:
            return f"of replica {key} there is {str(there)[:500]} instead of {str(wanted)[:500]}"
    return ""


def together(store: LogStore, requests: list[Callable[[], None]]) -> None:
    """Make them while the store's thread is busy, so that they share a transaction."""
    go, entered = threading.Event(), threading.Event()

    def hold(_error: BaseException | None) -> None:
        entered.set()
        assert go.wait(WAIT)

    store.save(AppendRequest(9, 9, done=hold))
    assert entered.wait(WAIT)
    for request in requests:
        request()
    go.set()


class Script:
    """A random life of some replicas, and what must be in the store after each step of it."""

    def __init__(self, store: LogStore, seed: int) -> None:
        self.store, self.random = store, random.Random(seed)
        self.world: World = {}
        self.waiter = Waiter()
        self._fresh = iter(range(1, 1000))

    @property
    def living(self) -> list[ReplicaKey]:
        return [key for key, known in self.world.items() if known is not None]

    def copy(self) -> World:
        """What must be there now."""
        return {key: copy.copy(known) for key, known in self.world.items()}

    def step(self) -> None:
        """One batch: the changes of some replicas, which share a transaction."""
        chosen = self.random.sample(
            self.living, self.random.randint(min(1, len(self.living)), min(3, len(self.living)))
        )
        works = [self._change(key) for key in chosen]
        if self.random.random() < 0.15 or len(self.living) < 2:
            works.append(self._begin())
        elif self.random.random() < 0.1:
            works.append(self._replace(self.random.choice(list(self.world))))
        self.waiter = Waiter()
        self._together([partial(work, self.waiter) for work in works])
        assert self.waiter.wait(len(works)) == [None] * len(works)
        while self.store._trims:
            self.store.open(9, 9)

    def _together(self, requests: list[Callable[[], None]]) -> None:
        together(self.store, requests)

    def _change(self, key: ReplicaKey) -> Callable[[Waiter], None]:
        known = self.world[key]
        assert known is not None
        kinds = [self._append, self._append, self._append, self._compact, self._record, self._install]
        return self.random.choice(kinds)(key, known)

    def _runs(self, first: int, term: int) -> list[Run]:
        runs = []
        for _ in range(self.random.choice([1, 1, 1, 2, 20])):
            size = self.random.choice([0, 30, 700, 5000])
            payloads = [self.random.randbytes(size) for _ in range(self.random.randint(1, 4))]
            runs.append(Run(first, term, payloads))
            first += len(payloads)
        return runs

    def _append(self, key: ReplicaKey, known: Known) -> Callable[[Waiter], None]:
        kept = self.random.choice([len(known.entries), len(known.entries), len(known.entries) // 2])
        kept = max(kept, known.snapshot.index - known.marker[0])
        hard = HardState(known.hard.term + self.random.choice([0, 0, 1]), key[1], known.marker[0] + kept)
        runs = self._runs(known.marker[0] + kept + 1, hard.term)
        known.entries = [*known.entries[:kept], *Entries(runs)]
        known.hard = hard
        return lambda waiter: self.store.save(AppendRequest(*key, hard, runs, done=waiter))

    def _compact(self, key: ReplicaKey, known: Known) -> Callable[[Waiter], None]:
        index = self.random.randint(known.marker[0], known.last)
        term = known.term(index)
        known.entries = known.entries[index - known.marker[0] :]
        known.marker = (index, term)
        return lambda waiter: self.store._enqueue(
            _Work(key, lambda changed: changed.compact(index, term), waiter)
        )

    def _record(self, key: ReplicaKey, known: Known) -> Callable[[Waiter], None]:
        if known.snapshot.index >= known.last:
            return self._append(key, known)
        index = self.random.randint(max(known.snapshot.index + 1, known.marker[0]), known.last)
        known.snapshot = Snapshot(index, known.term(index), MEMBERS, self.random.randbytes(20))
        return partial(self.store.record_snapshot, *key, known.snapshot)

    def _install(self, key: ReplicaKey, known: Known) -> Callable[[Waiter], None]:
        snapshot = Snapshot(known.last + self.random.randint(1, 3), known.hard.term, MEMBERS, b"streamed")
        runs = self._runs(snapshot.index + 1, known.hard.term)
        known.snapshot, known.marker = snapshot, (snapshot.index, snapshot.term)
        known.entries = list(Entries(runs))
        return lambda waiter: self.store.save(AppendRequest(*key, None, runs, snapshot, done=waiter))

    def _begin(self) -> Callable[[Waiter], None]:
        key = (self.random.randint(0, 3), next(self._fresh))
        self.world[key] = Known()
        return lambda waiter: self.store._enqueue(
            _Work(key, lambda changed: changed.bootstrap(RECORD), waiter)
        )

    def _replace(self, key: ReplicaKey) -> Callable[[Waiter], None]:
        """Remove it, or import it, perhaps behind another change in the same batch."""
        if self.world[key] is not None and self.random.random() < 0.5:
            self.world[key] = None
            return lambda waiter: self.store._enqueue(_Work(key, LogChanges.remove, waiter, discards=True))
        record = Bootstrap(Membership({key[1]: "x:1"}), join=True)
        snapshot = Snapshot(self.random.randint(1, 50), 4, MEMBERS)
        hard = HardState(5, 0, snapshot.index)
        self.world[key] = Known(record, hard, snapshot, (snapshot.index, 4))
        return lambda waiter: self.store._enqueue(
            _Work(key, lambda changed: changed.replace(record, snapshot, hard), waiter, discards=True)
        )


# -- a disk that writes what it likes, until it is told to wait ---------------------------------------------------


@dataclass
class Commit:
    """The file before and after one commit, and what the store must then hold."""

    before: bytes
    after: bytes
    old: World
    new: World

    def sectors(self, *, meta: bool) -> list[int]:
        """Where the sectors begin that it changed: of the meta pages, or of all others."""
        padded = self.before.ljust(len(self.after), b"\0")
        return [
            at
            for at in range(0, len(self.after), SECTOR)
            if (at < META_PAGES * PAGE) == meta and padded[at : at + SECTOR] != self.after[at : at + SECTOR]
        ]

    def image(self, sectors: list[int], length: int = 0) -> bytearray:
        """The file before, with these sectors as they are after."""
        image = bytearray(self.before.ljust(max(length, len(self.before)), b"\0"))
        for at in sectors:
            image.extend(bytes(max(at + SECTOR - len(image), 0)))
            image[at : at + SECTOR] = self.after[at : at + SECTOR]
        return image

    def crashes(self, rng: random.Random) -> Iterator[tuple[str, bytes, World]]:
        """What may be there after a crash, and what must then be in the store."""
        data = self.sectors(meta=False)
        yield "nothing was written", self.before, self.old
        yield "only the length was written", self.image([], len(self.after)), self.old
        yield "all but the meta page was written", self.image(data), self.old
        for share in (0.1, 0.5, 0.9):
            some = [at for at in data if rng.random() < share]
            yield f"{share} of the sectors were written", self.image(some), self.old
        pages = {at // PAGE for at in data if rng.random() < 0.5}
        yield "some pages were written", self.image([at for at in data if at // PAGE in pages]), self.old
        garbled = self.image(data)
        for at in data:
            torn = rng.randint(0, SECTOR)
            garbled[at + torn : at + SECTOR] = rng.randbytes(SECTOR - torn)
        yield "sectors were torn", garbled, self.old
        yield "all was written", self.after, self.new


def recorded(directory: Path, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int) -> list[Commit]:
    """Live through a script, and keep the file's state around each commit."""
    commits: list[Commit] = []
    store = LmdbLogStore(directory, map_size=1 << 18, spare_bytes=1 << 30)
    script = Script(store, seed)
    worlds: list[World] = [{}]
    seen = -1

    def commit(disk: log_lmdb.LmdbDisk, txn: "lmdb.Transaction[bytes]") -> None:
        nonlocal seen
        step = len(worlds) - 1
        assert seen == step or not script.waiter.outcomes, "`done` was called before it was durable"
        old = worlds[-1] if seen == step else worlds[-2]
        before = disk.path.read_bytes()
        txn.commit()
        commits.append(Commit(before, disk.path.read_bytes(), old, worlds[-1]))
        seen = step

    monkeypatch.setattr(log_lmdb.LmdbDisk, "_commit", commit)
    # As little as this leaves much to do when the next crash comes.
    monkeypatch.setattr(log_lmdb, "_TRIMMED_AT_ONCE", 7)
    planned = script._together

    def plan_first(requests: list[Callable[[], None]]) -> None:
        worlds.append(script.copy())
        planned(requests)

    monkeypatch.setattr(script, "_together", plan_first)
    for _ in range(steps):
        script.step()
    assert difference(look(store, list(script.world)), script.world) == ""
    store.close()
    monkeypatch.undo()
    return commits


def written(directory: Path, image: bytes) -> Path:
    directory.mkdir()
    (directory / "data.mdb").write_bytes(image)
    return directory


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crash_at_any_moment_of_a_commit_loses_nothing_that_was_acknowledged(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BUG-L14, BUG-L15: a crash at every commit, with what was not synced yet torn, dropped and reordered."""
    rng = random.Random(seed)
    commits = recorded(tmp_path / "log", monkeypatch, seed, steps=45)
    assert len(commits) > 45
    assert sum(commit.old != commit.new for commit in commits) > 35
    for number, commit in enumerate(commits):
        keys = list(commit.new | commit.old)
        assert len(commit.sectors(meta=True)) == (commit.before != commit.after), (
            "the one that makes it count"
        )
        for crash, image, expected in commit.crashes(rng):
            directory = written(tmp_path / "crashed", image)
            store = LmdbLogStore(directory)
            assert difference(look(store, keys), expected) == "", f"commit {number}, {crash}"
            store.close()
            shutil.rmtree(directory)


def test_a_crashed_store_goes_on_and_survives_the_next_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BUG-L16: recovery makes commits of its own, and may crash too."""
    rng = random.Random(7)
    for commit in rng.sample(recorded(tmp_path / "log", monkeypatch, 4, steps=40), 15):
        crash, image, expected = rng.choice(list(commit.crashes(rng)))
        store = LmdbLogStore(written(tmp_path / "crashed", image))
        script = Script(store, rng.randint(0, 1 << 30))
        script.world = look(store, list(commit.old | commit.new))
        assert difference(script.world, expected) == ""
        script._fresh = iter(range(2000, 3000))
        for _ in range(5):
            script.step()
        shutil.copytree(tmp_path / "crashed", tmp_path / "crashed again")
        again = LmdbLogStore(tmp_path / "crashed again")
        assert difference(look(again, list(script.world)), script.world) == "", crash
        again.close()
        store.close()
        shutil.rmtree(tmp_path / "crashed")
        shutil.rmtree(tmp_path / "crashed again")


def test_a_file_that_lacks_only_free_pages_is_whole(tmp_path: Path) -> None:
    """LMDB counts pages at the end that one transaction took and gave back, and never writes them."""
    host = Host(lambda: LmdbLogStore(tmp_path / "log"))
    host.begin()
    for term in range(1, 17):
        waiter = Waiter()
        large, small = Run(term, term, [bytes(1 << 20 + term % 4)]), Run(term, term + 1, [b"%d" % term])
        saves = [AppendRequest(1, 1, HardState(each.term), [each], done=waiter) for each in (large, small)]
        together(host.store, [partial(host.store.save, save) for save in saves])
        assert waiter.wait(2) == [None, None]
        pages = host.store._disk._env.info()["last_pgno"] + 1
        assert (tmp_path / "log" / "data.mdb").stat().st_size < pages * PAGE
        host.restart()
        assert [entry.payload for entry in entries(host.log())] == [
            b"%d" % each for each in range(1, term + 1)
        ]
    host.store.close()


DUMP = """
import json, sys
from drakkar.actors.log.store import LmdbLogStore
from tests.actors.log.test_recovery import look

store = LmdbLogStore(sys.argv[1])
print(look(store, [tuple(key) for key in json.loads(sys.argv[2])]))
"""


def test_a_disk_that_does_not_wait_for_the_data_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crashes above could fail: with the meta page written before the data, they do.

    In a process of its own, for LMDB may end it when it is led to pages that are not there.
    """
    rng = random.Random(5)
    commits = [each for each in recorded(tmp_path / "log", monkeypatch, 5, steps=40) if each.old != each.new]
    caught = 0
    for number, commit in enumerate(rng.sample(commits, 6)):
        some = [at for at in commit.sectors(meta=False) if rng.random() < 0.5]
        directory = written(tmp_path / str(number), commit.image(some + commit.sectors(meta=True)))
        child = subprocess.run(
            [sys.executable, "-c", DUMP, str(directory), json.dumps(list(commit.new | commit.old))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).parents[3],
        )
        caught += child.returncode != 0 or child.stdout.strip() not in (str(commit.new), str(commit.old))
    assert caught > 3


# -- a disk that is full, and one that fails ----------------------------------------------------------------------

ON_A_DISK_OF_ITS_OWN = """
import logging, os, sys, threading
from pathlib import Path
from drakkar.actors.log.store import AppendRequest, Bootstrap, LmdbLogStore
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.errors import StorageFailed
from drakkar.handlers.raft.state import HardState, Membership

logging.disable()
disk = Path(sys.argv[1])

def save(index):
    finished, outcome = threading.Event(), []
    def done(error):
        outcome.append(error)
        finished.set()
    run = Run(index, 1, [b"%d/" % index * 3000])
    store.save(AppendRequest(1, 1, HardState(index), [run], done=done))
    assert finished.wait(20)
    return outcome[0]

def check(last):
    log = store.open(1, 1)
    assert (log.last_index, log.hard_state.term) == (last, last), (log.last_index, log.hard_state, last)
    for entry in Entries(log.runs(1, last + 1, 1 << 30)):
        assert entry.payload == b"%d/" % entry.index * 3000
    return last

def fill():
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

ballast = disk / "ballast"
store = LmdbLogStore(disk / "log")
store.bootstrap(1, 1, Bootstrap(Membership({1: "a"})))
last = 0
for last in range(1, 101):
    assert save(last) is None
fill()
for life in range(4):
    while (error := save(last + 1)) is None:
        last += 1
    assert type(error) is StorageFailed and store.poisoned is error
    ballast.write_bytes(b"")                 # there is space again, and yet nothing is believed any more
    assert save(last + 1) is error
    fill()
    print(error, flush=True)
    store.close()
    store = LmdbLogStore(disk / "log")       # while it is full still
    check(last)
    if life % 2:
        ballast.write_bytes(b"")
        store.close()
        store = LmdbLogStore(disk / "log")
        check(last)
        for _ in range(10):
            last += 1
            assert save(last) is None
        fill()
ballast.unlink()
store.close()
store = LmdbLogStore(disk / "log")
check(last)
store.close()
print("sound", flush=True)
"""


def test_a_full_disk_stops_the_store_and_harms_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """On a file system of some megabytes, which no other process sees."""
    mount = f'mount -t tmpfs -o size=6m tmpfs "{tmp_path}"'
    alone = ["unshare", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*alone, mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system in a name space of its own: run it as root")
    child = subprocess.run(
        [*alone, f'{mount} && exec "$0" "$@"', sys.executable, "-c", ON_A_DISK_OF_ITS_OWN, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    *errors, verdict = child.stdout.splitlines()
    assert verdict == "sound"
    assert len(errors) == 4
    for error in errors:
        assert str(tmp_path / "log" / "data.mdb") in error
        assert "No space left on device" in error
        assert "may be full, then restart this host" in error


_FDATASYNC = {"x86_64": 75, "aarch64": 83}
"""Its number, by machine."""


def break_fdatasync() -> bool:
    """For ever, this thread's `fdatasync` fails with EIO; False where the system has no way to do that."""
    number = _FDATASYNC.get(platform.machine())
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


def test_a_disk_that_fails_to_sync_is_never_believed_again(tmp_path: Path) -> None:
    """BUG-L12: the kernel refuses the very call that LMDB makes, and what was written before it stays in its cache."""
    host = Host(lambda: LmdbLogStore(tmp_path / "log"))
    host.begin()
    host.save(run(1, 5), hard=HardState(1, 1, 0))
    broken: list[bool] = []
    told = Waiter()

    def done(error: BaseException | None) -> None:
        broken.append(break_fdatasync())
        told(error)

    host.store.save(AppendRequest(1, 1, HardState(1, 1, 1), done=done))
    assert told.wait() == [None]
    if broken != [True]:
        pytest.skip("needs Linux with seccomp filters, on x86-64 or ARM64")
    refused = host.save(run(6, 1), hard=HardState(2, 2, 5))
    assert isinstance(refused, StorageFailed)
    assert "Input/output error" in str(refused)
    assert f"{tmp_path / 'log' / 'data.mdb'}" in str(refused)
    for later in (host.save(hard=HardState(1, 1, 2)), host.save(run(6, 1)), host.save(run(7, 1))):
        assert later is refused
    host.restart()
    check(host.log(), of(run(1, 5)), 1, 0)
    assert host.log().hard_state.term == 1
    host.store.close()
