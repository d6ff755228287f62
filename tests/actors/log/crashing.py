"""A disk that crashes, a driver that takes its time, and lives of a log on both: for the tests of recovery.

A crash is an image: what was durable, and of all else any part, in any order, torn anywhere. Each operation of `Files`
promises what is durable when it returns; while it runs, and for `write` and `remove` until the next `sync` or change of
names, anything may be there. That a disk writes what does not change in a sector as it was is all that is asked of it.
"""

import errno
import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from drakkar.actors.log.driver import Driver, InlineDriver, Outcome
from drakkar.actors.log.files import Files
from drakkar.actors.log.records import ReplicaKey
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore
from drakkar.handlers.errors import DrakkarError
from drakkar.handlers.raft.entries import Entries, Entry, Run
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

SECTOR = 512
OWNER = "the host"
SEGMENT_BYTES = 1 << 12
RECORD = Bootstrap(Membership({1: "a:1", 2: "b:1"}, observers={3: "c:1"}), state_machine="Counter")
MEMBERS = Membership({1: "a:1"}, observers={4}, witnesses={5: "e:1"}, removed={9}, change_id=17)


# -- the disk ---------------------------------------------------------------------------------------------------------


class _File:
    """What a process sees of a file, what is on the disk, and which sectors the system is still to write."""

    def __init__(self, content: bytes = b"", durable: bytes | None = None) -> None:
        self.seen = bytearray(content)
        self.durable = bytearray(content if durable is None else durable)
        self.dirty: set[int] = set()

    def write(self, offset: int, data: bytes) -> None:
        self.seen.extend(bytes(max(offset - len(self.seen), 0)))
        self.seen[offset : offset + len(data)] = data
        self.dirty.update(range(offset // SECTOR, (offset + max(len(data), 1) - 1) // SECTOR + 1))

    def sync(self) -> None:
        grown = len(self.seen) - len(self.durable)
        self.durable.extend(bytes(max(grown, 0)))
        for sector in self.dirty:
            self.durable[sector * SECTOR : (sector + 1) * SECTOR] = self._sector(self.seen, sector)
        self.dirty.clear()

    def crashed(self, rng: random.Random, share: float) -> bytes:
        """What a crash leaves, if this share of the sectors was written, and as many are torn."""
        if not self.dirty and len(self.seen) == len(self.durable):
            return bytes(self.durable)
        image = bytearray(self.durable)
        if len(self.seen) > len(image):
            image.extend(
                bytes(rng.choice([0, (len(self.seen) - len(image)) // 2, len(self.seen) - len(image)]))
            )
        for sector in self.dirty:
            at = sector * SECTOR
            old, new = image[at : at + SECTOR], self._sector(self.seen, sector)[: len(image) - at]
            if rng.random() < share:
                image[at : at + SECTOR] = new
            elif rng.random() < share:
                image[at : at + SECTOR] = _torn(rng, old, new)
        return bytes(image)

    @staticmethod
    def _sector(content: bytearray, sector: int) -> bytearray:
        return content[sector * SECTOR : (sector + 1) * SECTOR]


def _torn(rng: random.Random, old: bytearray, new: bytearray) -> bytes:
    """Of what differs, the beginning is new, and the rest is old or garbage."""
    at, garbage = rng.randint(0, len(new)), rng.random() < 0.5
    rest = [
        (rng.randrange(256) if garbage and was != will else was)
        for was, will in zip(old[at:], new[at:], strict=True)
    ]
    return bytes(new[:at]) + bytes(rest)


Names = dict[str, _File]


def _renaming(name: str, new: str, file: _File) -> Callable[[Names], None]:
    def change(names: Names) -> None:
        names.pop(name, None)
        names[new] = file

    return change


class CrashingFiles(Files):
    """A folder that knows what a crash may leave of it. Each operation may be made to fail."""

    def __init__(self, content: dict[str, bytes] | None = None) -> None:
        self.path = "disk"
        # From what is there: the same in every run, and new ones after each crash.
        self._salts = random.Random(b"".join((content or {}).values()))
        self.content: Names = {name: _File(data) for name, data in (content or {}).items()}
        """As a process sees it."""
        self._durable: Names = dict(self.content)
        self._changes: list[Callable[[Names], object]] = []
        """Changes of names that are not durable yet."""
        self.watch: Callable[[str], None] = lambda _operation: None
        """Called in the middle of each operation that changes something."""
        self.fault: Callable[[str], OSError | None] = lambda _operation: None
        """Called at the begin of each operation."""
        self.dropped = 0
        """Segments that were given back."""

    def crash(self, rng: random.Random, share: float) -> "CrashingFiles":
        """Return what is there after a crash; `share`: how much of what is not durable was written all the same."""
        names = dict(self._durable)
        for change in self._changes:
            if rng.random() < share:
                change(names)
        return CrashingFiles({name: file.crashed(rng, share) for name, file in names.items()})

    def everything(self) -> dict[str, bytes]:
        """Return all files, as a process sees them."""
        return {name: bytes(file.seen) for name, file in self.content.items()}

    # -- what changes nothing --

    def salt(self) -> int:
        return self._salts.getrandbits(32)

    def names(self) -> list[str]:
        self._enter("names")
        return sorted(self.content)

    def size(self, name: str) -> int:
        self._enter("size")
        return len(self._file(name).seen)

    def read(self, name: str, offset: int, size: int) -> bytes:
        self._enter("read")
        return bytes(self._file(name).seen[offset : offset + size])

    def read_apart(self, name: str, places: list[tuple[int, int]]) -> list[bytes]:
        self._enter("read_apart")
        return [bytes(self._file(name).seen[offset : offset + size]) for offset, size in places]

    def free_bytes(self) -> int:
        self._enter("free_bytes")
        return 1 << 40

    def forget(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass

    # -- what changes a file --

    def write(self, name: str, offset: int, data: bytes) -> None:
        if (error := self.fault("write")) is not None:
            self._file(name).write(offset, data[: len(data) // 2])
            raise error
        assert offset + len(data) <= len(self._file(name).seen), "a file grows"
        self._file(name).write(offset, data)
        self.watch("write")

    def sync(self, name: str) -> None:
        self._sync(self._file(name), "sync")

    def put(self, name: str, offset: int, data: bytes) -> None:
        self._file(name).write(offset, data)
        self._sync(self._file(name), "put")

    def _sync(self, file: _File, operation: str) -> None:
        if (error := self.fault(operation)) is not None:
            # It stays in the cache, is not on the disk, and the system forgets that.
            file.dirty.clear()
            raise error
        self.watch(operation)
        file.sync()

    # -- what changes names --

    def allocate(self, name: str, size: int, *, filled: bool) -> None:
        self._enter("allocate")
        file = _File(bytes(size), b"")
        self._change(lambda names: names.update({name: file}))
        self.watch("allocate")
        file.sync()
        self._settle()

    def rename(self, name: str, new: str) -> None:
        self._enter("rename")
        file = self._file(name)
        self.dropped += new.startswith("spare")
        self._change(_renaming(name, new, file))
        self.watch("rename")
        self._settle()

    def remove(self, name: str) -> None:
        self._enter("remove")
        self._file(name)
        self._change(lambda names: names.pop(name, None))
        self.watch("remove")

    def _change(self, change: Callable[[Names], object]) -> None:
        change(self.content)
        self._changes.append(change)

    def _settle(self) -> None:
        for change in self._changes:
            change(self._durable)
        self._changes.clear()

    def _file(self, name: str) -> _File:
        try:
            return self.content[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def _enter(self, operation: str) -> None:
        if (error := self.fault(operation)) is not None:
            raise error


# -- the driver -------------------------------------------------------------------------------------------------------


class SlowDriver(Driver):
    """Does nothing before it is told to: flushes and jobs are done, and reported, when the test says so.

    As the log's driver promises, one job is done after the other, and outcomes are reported in that order.
    """

    def __init__(self) -> None:
        self._deferred: deque[Callable[[], None]] = deque()
        self._flush: deque[tuple[Callable[[], Any], Outcome]] = deque()
        self._flushed: deque[tuple[Outcome, Any]] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Outcome]] = deque()
        self._done: deque[tuple[Outcome, Any]] = deque()
        self._ended = False

    def defer(self, action: Callable[[], None]) -> None:
        self._deferred.append(action)
        self._hurry()

    def flush(self, files: Files, name: str, done: Callable[[BaseException | None], None]) -> None:
        assert not self._flush, "two flushes at once"
        self._flush.append((lambda: files.sync(name), done))
        self._hurry()

    def background(self, job: Callable[[], Any], done: Outcome) -> None:
        self._jobs.append((job, done))
        self._hurry()

    def read(self, job: Callable[[], Any], done: Outcome) -> None:
        self.background(job, done)

    def finish(self) -> None:
        while self.choices:
            self.step(self.choices[0])
        self._ended = True

    def _hurry(self) -> None:
        while self._ended and self.choices:
            self.step(self.choices[0])

    @property
    def choices(self) -> list[str]:
        """What may happen next."""
        waits = {
            "round": self._deferred,
            "flush": self._flush,
            "flushed": self._flushed,
            "job": self._jobs,
            "done": self._done,
        }
        return [name for name, queue in waits.items() if queue]

    def step(self, choice: str) -> None:
        match choice:
            case "round":
                self._deferred.popleft()()
            case "flush":
                self._do(self._flush, self._flushed)
            case "job":
                self._do(self._jobs, self._done)
            case _:
                done, outcome = (self._flushed if choice == "flushed" else self._done).popleft()
                done(outcome)

    @staticmethod
    def _do(queue: deque[tuple[Callable[[], Any], Outcome]], outcomes: deque[tuple[Outcome, Any]]) -> None:
        job, done = queue.popleft()
        try:
            outcomes.append((done, job()))
        except (OSError, DrakkarError) as error:
            outcomes.append((done, error))


# -- what must be there -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What must be there of one replica."""

    record: Bootstrap = RECORD
    hard: HardState = field(default_factory=HardState)
    snapshot: Snapshot = field(default_factory=Snapshot)
    marker: tuple[int, int] = (0, 0)
    entries: tuple[Entry, ...] = ()

    @property
    def last(self) -> int:
        return self.marker[0] + len(self.entries)

    def term(self, index: int) -> int:
        return self.marker[1] if index == self.marker[0] else self.entries[index - self.marker[0] - 1].term


World = dict[ReplicaKey, Known | None]
"""None is a replica that was removed."""


def look(store: LogStore) -> World:
    """Read all that is in a store."""
    world: World = {key: None for key in store._replicas if store.removed(*key)}
    for key in store.replicas():
        world |= look_at(store, key)
    return world


def look_at(store: LogStore, key: ReplicaKey) -> World:
    """Read all that is in a store of one replica."""
    log = store.open(*key)
    assert log is not None
    marker = (log.first_index - 1, log.term(log.first_index - 1))
    entries = tuple(Entries(log.runs(log.first_index, log.last_index + 1, UNLIMITED)))
    return {key: Known(log.bootstrap, log._state().hard_state, log.snapshot, marker, entries)}


def difference(found: World, expected: World) -> str:
    """What differs, in a few words."""
    for key in sorted(found.keys() | expected.keys()):
        there, wanted = (world.get(key, "nothing") for world in (found, expected))
        if there != wanted:
            return f"of replica {key} there is {str(there)[:1500]} instead of {str(wanted)[:1500]}"
    return ""


# -- a life -----------------------------------------------------------------------------------------------------------


class Life:
    """Random requests of some replicas, one of them quiet, and what may be in the log at each moment."""

    def __init__(self, rng: random.Random, worlds: list[World] | None = None, *, busy: int = 3) -> None:
        """`worlds`: what may be there at the begin."""
        self.random = rng
        self.worlds: list[World] = worlds or [{}]
        """After each request."""
        self.acknowledged = 0
        """How many of them are durable at least."""
        self.failed: list[BaseException] = []
        self.waiting = 0
        """Requests that are not reported yet."""
        self.begun = worlds is not None
        self._busy = busy
        self._imported: dict[ReplicaKey, int] = {}
        self._ids = iter(
            range(1 + max((key[1] for world in self.worlds for key in world), default=0), 1 << 20)
        )
        self.store: LogStore

    @property
    def may_be(self) -> list[World]:
        """What may be found after a crash at this moment."""
        return self.worlds[self.acknowledged :]

    def open(self, files: Files, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open the log, and see that it holds what it may."""
        self.store = LogStore(files, OWNER, create=not self.begun, segment_bytes=segment_bytes)
        found = look(self.store)
        assert self.allows(found), difference(found, self.may_be[-1])
        self.worlds, self.acknowledged, self.begun = [found], 0, True
        self._imported.clear()

    def allows(self, found: World) -> bool:
        """Whether this may be found after a crash."""
        return any(found == world for world in self.may_be)

    def close(self) -> None:
        """Close the log: all that was requested is durable."""
        # Other lives may be lived in the middle of it.
        self.store.close(timeout=600)
        assert not self.waiting
        if not self.failed:
            self.acknowledged = len(self.worlds) - 1

    def request(self) -> None:
        """Make a request, or a few in one round."""
        living = [key for key, known in self.worlds[-1].items() if known is not None]
        if len(living) < self._busy + 1 or self.random.random() < 0.03:
            self._begin()
        elif self.random.random() < 0.05:
            self._replace(self.random.choice(list(self.worlds[-1])))
        else:
            # The first one is quiet: only what is left of it keeps old segments.
            key = living[0] if self.random.random() < 0.04 else self.random.choice(living[1:])
            known = self.worlds[-1][key]
            assert known is not None
            kinds = [self._append, self._append, self._append, self._compact, self._compact, self._record]
            self.random.choice([*kinds, self._install] if self.random.random() < 0.3 else kinds)(key, known)

    def _expect(self, key: ReplicaKey, known: Known | None) -> Callable[[BaseException | None], None]:
        """Note what is there after a request; return its `done`."""
        self.worlds.append({**self.worlds[-1], key: known})
        number, reported = len(self.worlds) - 1, False
        self.waiting += 1

        def done(error: BaseException | None) -> None:
            nonlocal reported
            assert not reported, "reported twice"
            reported = True
            self.waiting -= 1
            if error is not None:
                self.failed.append(error)
            else:
                assert number > self.acknowledged, "out of order"
                assert not self.failed, "a request became durable after one that did not"
                self.acknowledged = number

        return done

    def _runs(self, first: int, term: int) -> list[Run]:
        runs = []
        for _ in range(self.random.choice([1, 1, 1, 2, 5])):
            size = self.random.choice([0, 30, 30, 300, 300, 1000] if self.random.random() < 0.97 else [6000])
            payloads = [self.random.randbytes(size) for _ in range(self.random.choice([1, 1, 2, 3]))]
            runs.append(Run(first, term, payloads))
            first += len(payloads)
        return runs

    def _append(self, key: ReplicaKey, known: Known) -> None:
        committed = max(known.hard.commit, known.marker[0], known.snapshot.index) - known.marker[0]
        kept = self.random.choice(
            [len(known.entries)] * 4 + [self.random.randint(committed, len(known.entries))]
        )
        term = known.hard.term + self.random.choice([0, 0, 0, 1])
        commit = self.random.randint(committed, kept) + known.marker[0]
        hard = HardState(max(term, 1), key[1], commit) if self.random.random() < 0.8 else known.hard
        runs = self._runs(known.marker[0] + kept + 1, max(hard.term, known.term(known.marker[0] + kept)))
        entries = (*known.entries[:kept], *Entries(runs))
        done = self._expect(key, replace(known, hard=hard, entries=entries))
        self.store.save(AppendRequest(*key, hard, runs, done=done))

    def _compact(self, key: ReplicaKey, known: Known) -> None:
        log = self.store.open(*key) if self.store.poisoned is None else None
        if log is None or self._imported.get(key, 0) > self.acknowledged:
            return
        # Only what is committed and durable is ever compacted.
        most = min(log.hard_state.commit, log.last_index)
        index = self.random.randint(max(most - 3, 0), most) if self.random.random() < 0.9 else most
        if known.marker[0] < index <= known.last and index >= log.first_index:
            kept = known.entries[index - known.marker[0] :]
            self.worlds.append(
                {**self.worlds[-1], key: replace(known, marker=(index, known.term(index)), entries=kept)}
            )
        self.store.compact(*key, index)

    def _record(self, key: ReplicaKey, known: Known) -> None:
        if known.snapshot.index >= known.hard.commit:
            self._append(key, known)
            return
        index = self.random.randint(max(known.snapshot.index + 1, known.marker[0]), known.hard.commit)
        snapshot = Snapshot(index, known.term(index), MEMBERS, self.random.randbytes(20))
        self.store.record_snapshot(*key, snapshot, self._expect(key, replace(known, snapshot=snapshot)))

    def _install(self, key: ReplicaKey, known: Known) -> None:
        snapshot = Snapshot(known.last + self.random.randint(1, 3), known.hard.term, MEMBERS, b"streamed")
        runs = self._runs(snapshot.index + 1, known.hard.term)
        marker = (snapshot.index, snapshot.term)
        done = self._expect(
            key, replace(known, snapshot=snapshot, marker=marker, entries=tuple(Entries(runs)))
        )
        self.store.save(AppendRequest(*key, None, runs, snapshot, done=done))

    def _begin(self) -> None:
        key = (self.random.randint(0, 3), next(self._ids))
        first = (HardState(1, 0, 1), Run(1, 1, [b"members"])) if self.random.random() < 0.5 else None
        known = Known(hard=first[0], entries=tuple(Entries([first[1]]))) if first else Known()
        self.store.begin(*key, RECORD, first, self._expect(key, known))

    def _replace(self, key: ReplicaKey) -> None:
        """Remove it, or import it."""
        if self.worlds[-1][key] is not None and self.random.random() < 0.4:
            self.store.remove(*key, self._expect(key, None))
            return
        record = Bootstrap(Membership({key[1]: "x:1"}), join=True)
        snapshot = Snapshot(self.random.randint(1, 50), 4, MEMBERS)
        hard = HardState(5, 0, snapshot.index)
        done = self._expect(key, Known(record, hard, snapshot, (snapshot.index, 4)))
        self._imported[key] = len(self.worlds) - 1
        self.store.import_replica(*key, record, snapshot, hard, done)


def opened(files: Files, *, segment_bytes: int = SEGMENT_BYTES) -> World:
    """Return what a log holds that must be there, and open."""
    return look(LogStore(files, OWNER, create=False, segment_bytes=segment_bytes))


def lived(rng: random.Random, requests: int, *, clean: bool) -> tuple[CrashingFiles, World]:
    """Return a log after so many requests, closed or not, and what it holds."""
    files, life = CrashingFiles(), Life(rng)
    life.open(files)
    life.store.start(InlineDriver())
    for _ in range(requests):
        life.request()
    assert not life.failed
    if clean:
        life.close()
    return files, life.worlds[-1]


def images(files: CrashingFiles, rng: random.Random, count: int) -> Iterator[CrashingFiles]:
    """Return some of what a crash may leave at this moment: nothing, all, and parts of what is not durable."""
    for share in rng.sample([0.0, 1.0, 0.1, 0.5, 0.9, 0.5], count):
        yield files.crash(rng, share)
