"""What a crash, a failing disk or a full one leaves of the log opens again, with everything acknowledged."""

import errno
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import pytest
from drakkar.actors.log import records, recovery, segments
from drakkar.actors.log import state as log_state
from drakkar.actors.log import store as log_store
from drakkar.actors.log.cleaning import Move
from drakkar.actors.log.driver import InlineDriver
from drakkar.actors.log.manifest import Listed, Manifest
from drakkar.actors.log.records import Kind, Record, RecordBuilder, ReplicaKey, read_record
from drakkar.actors.log.replica import Usage
from drakkar.actors.log.segments import HEADER_BYTES, Segment, Segments
from drakkar.actors.log.store import AppendRequest, LogStore
from drakkar.handlers.errors import ConfigError, CorruptData, StorageFailed
from drakkar.handlers.raft.entries import Entries, Run

from tests.actors.log.crashing import (
    OWNER,
    RECORD,
    SEGMENT_BYTES,
    CrashingFiles,
    Known,
    Life,
    SlowDriver,
    World,
    difference,
    images,
    lived,
    look_at,
    opened,
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little data is enough for long runs that are stored in parts."""
    monkeypatch.setattr(log_state, "MAX_RUN_BYTES", 2000)


class Broken(BaseException):
    """What no log takes for the failure of a disk."""


class Crashes:
    """A life in which there is a crash in the middle of each operation, after each of which another life goes on."""

    def __init__(self, rng: random.Random, life: Life, *, count: int, depth: int) -> None:
        self.random, self.life, self._count, self._depth = rng, life, count, depth
        self.operations = self.goes_on = 0
        self.broken: Broken | None = None

    def watch(self, operation: str) -> None:
        self.operations += 1
        for image in images(self.files, self.random, self._count):
            again = Life(self.random, self.life.may_be)
            again.begun = self.life.begun
            try:
                if self._depth and self.random.random() < 0.1:
                    self.goes_on += 1
                    Crashes(self.random, again, count=1, depth=self._depth - 1).go(image, 12)
                else:
                    again.open(image)
            except Exception as error:
                self.broken = Broken(f"after a crash in operation {self.operations}, {operation}")
                raise self.broken from error

    def go(self, files: CrashingFiles, requests: int) -> None:
        """Live on until so many requests were made."""
        self.files = files
        files.watch = self.watch
        self.life.open(files)
        driver = SlowDriver()
        self.life.store.start(driver)
        hurry = {
            each: self.random.choice([0.05, 0.3, 1]) for each in ("round", "flush", "flushed", "job", "done")
        }
        hurry["request"] = 0.5
        most = self.random.choice([1, 3, 10])
        while requests:
            choices = ["request", *driver.choices] if self.life.waiting < most else driver.choices
            (choice,) = self.random.choices(choices, [hurry[each] for each in choices])
            if choice == "request":
                self.life.request()
                requests -= 1
            else:
                driver.step(choice)
        if self.random.random() < 0.5:
            self.life.close()
        if self.broken is not None:  # in the thread that closed the log
            raise self.broken
        assert not self.life.failed
        assert not self.life.store.status.failed_callbacks
        self.watch("the end")


@pytest.mark.parametrize("seed", [1, 2, 3])  # in which jobs are not so slow that no segment is dropped
def test_a_crash_at_any_moment_loses_nothing_that_was_acknowledged(seed: int) -> None:
    """In the middle of each operation, with what is not durable yet lost, torn and reordered; then again after that.

    BUG-L16: opening writes too, and may crash.
    """
    rng = random.Random(seed)
    crashes = Crashes(rng, Life(rng), count=2, depth=1)
    crashes.go(CrashingFiles(), 70)
    assert crashes.operations > 150
    assert crashes.goes_on > 10
    assert crashes.files.dropped > 1


def test_a_life_leaves_the_same_bytes_each_time() -> None:
    """Else a crash would tear other bytes in each run, and a seed would not tell which life failed."""
    (files, world), (again, same) = (lived(random.Random(7), 70, clean=False) for _ in range(2))
    assert world == same
    assert files.everything() == again.everything()


@pytest.mark.slow
@pytest.mark.timeout(600)  # some two minutes of one core
@pytest.mark.parametrize("seed", [100, 101, 102, 112])
def test_more_crashes_lose_nothing_either(seed: int) -> None:
    """Longer lives, and crashes in what follows a crash that followed a crash."""
    rng = random.Random(seed)
    Crashes(rng, Life(rng), count=2, depth=2).go(CrashingFiles(), 150)


# -- a disk that fails ------------------------------------------------------------------------------------------------


REQUESTS = 100


class Failing:
    """Operation `number` of a disk fails, or it and all later ones of its kind."""

    def __init__(self, number: int, error: int, *, once: bool) -> None:
        self._number, self._error, self._once = number, error, once
        self.operations = 0
        self.kinds: defaultdict[str, list[int]] = defaultdict(list)
        self.failed = ""
        """The operation that failed first."""
        self.ended = False

    def __call__(self, operation: str) -> OSError | None:
        self.operations += 1
        self.kinds[operation].append(self.operations)
        if self.ended or (self.failed and (self._once or operation != self.failed)):
            return None
        if not self.failed and self.operations != self._number:
            return None
        self.failed = self.failed or operation
        return OSError(self._error, os.strerror(self._error))


def live_with(fault: Failing, seed: int, requests: int, *, slow: bool) -> tuple[CrashingFiles, Life, str]:
    """Live on a disk that fails; return also why the log could not be opened, if so."""
    rng = random.Random(seed)
    files, life = CrashingFiles(), Life(rng)
    files.fault = fault
    try:
        life.open(files)
    except ConfigError as error:
        return files, life, str(error)
    driver = SlowDriver() if slow else InlineDriver()
    life.store.start(driver)
    for _ in range(requests):
        if not life.failed and life.waiting < 20:
            life.request()
        while isinstance(driver, SlowDriver) and driver.choices and rng.random() < 0.8:
            driver.step(rng.choice(driver.choices))
        life.store.tick()
    return files, life, ""


def check_failure(fault: Failing, error: int, seed: int, *, slow: bool) -> None:
    """Nothing that was acknowledged is lost, and what is seen after a restart is durable."""
    files, life, refused = live_with(fault, seed, REQUESTS, slow=slow)
    assert not refused or ("cannot hold a log" in refused and fault.failed)
    if not refused:
        for share in (0.0, 0.5):
            Life(life.random, life.may_be).open(files.crash(life.random, share))
        check_end(fault, life, full=fault.failed == "allocate" and error == errno.ENOSPC)
    fault.ended = True
    life.open(files)
    # The power fails too, before anything new was written.
    life.open(files.crash(life.random, 0.0))


def check_end(fault: Failing, life: Life, *, full: bool) -> None:
    """What failed fails for good, but for want of space: when there is room, all becomes durable."""
    assert all(type(each) is StorageFailed for each in life.failed)
    assert not (full and life.store.poisoned)
    assert life.store.poisoned or fault.failed not in ("write", "sync", "put")
    fault.ended = True
    life.store.tick()
    life.store.close()
    assert not life.waiting
    assert not life.store.status.failed_callbacks
    assert not (full and life.failed)


def trials(most: int, seed: int, *, slow: bool) -> Iterator[tuple[Failing, int]]:
    """At most so many operations of each kind, each with each error, once and for ever."""
    counting = Failing(0, 0, once=True)
    live_with(counting, seed, REQUESTS, slow=slow)
    rng = random.Random(seed)
    for numbers in counting.kinds.values():
        for number in rng.sample(numbers, min(most, len(numbers))):
            for error in (errno.EIO, errno.ENOSPC):
                for once in (True, False):
                    yield Failing(number, error, once=once), error


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_RETRY_S", 0.0)


def check_failures(most: int, seed: int, *, slow: bool) -> None:
    failed = Counter[str]()
    for fault, error in trials(most, seed, slow=slow):
        try:
            check_failure(fault, error, seed, slow=slow)
        except Exception as problem:
            problem.add_note(
                f"{errno.errorcode[error]} in operation {fault.operations}, {fault.failed}, seed {seed}"
            )
            raise
        failed[fault.failed] += 1
    assert failed.keys() >= {"write", "sync", "put", "rename", "allocate", "read_apart"}, failed


@pytest.mark.parametrize("slow", [False, True], ids=["at once", "in the background"])
@pytest.mark.usefixtures("_at_once")
def test_an_operation_that_fails_loses_nothing_that_was_acknowledged(*, slow: bool) -> None:
    """Once or for ever, for want of space or not: what waits fails or waits on, and goes on when there is room."""
    check_failures(3, 1, slow=slow)


@pytest.mark.slow
@pytest.mark.timeout(300)  # some 40 seconds of one core
@pytest.mark.parametrize("slow", [False, True], ids=["at once", "in the background"])
@pytest.mark.usefixtures("_at_once")
def test_any_operation_may_fail(*, slow: bool) -> None:
    """Each in turn."""
    check_failures(1 << 20, 2, slow=slow)


def test_what_a_failed_flush_left_in_the_cache_is_written_again() -> None:
    """A restart sees the record, and the disk does not have it: so the next loss of power must not take it back."""
    files, life = CrashingFiles(), Life(random.Random(3))
    life.open(files)
    life.store.start(InlineDriver())
    for _ in range(10):
        life.request()
    files.fault = lambda operation: OSError(errno.EIO, "broken") if operation == "sync" else None
    while not life.failed:
        life.request()
    requested = life.worlds[life.acknowledged + 1]
    files.fault = lambda _operation: None
    life.store.close()
    assert opened(files.crash(life.random, 1.0)) != requested
    assert opened(files) == requested
    assert opened(files.crash(life.random, 0.0)) == requested


# -- a disk that lies -------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """A log of several segments, as it is on the disk."""

    files: dict[str, bytes]
    worlds: list[World]
    """What it may hold. When it was not closed, the last record may be lost, in which the last request was alone."""
    closed: bool

    @property
    def ends_empty(self) -> bool:
        """The last record changes nothing, and says of the one before that it was durable."""
        return not self._records[-1][3]

    @property
    def last_record(self) -> tuple[str, int, int]:
        """In which file the last record is that changes something, where it begins and where it ends."""
        return next((name, begin, end) for name, begin, end, changes in reversed(self._records) if changes)

    @property
    def _records(self) -> list[tuple[str, int, int, bool]]:
        segments_ = Segments(CrashingFiles(self.files), OWNER, SEGMENT_BYTES)
        segments_.load()
        found = []
        for segment in segments_.in_use:
            data, at = memoryview(self.files[segment.name]), HEADER_BYTES
            while (record := read_record(data, at, segment.number, segment.salt)) is not None:
                found.append((segment.name, at, record.end, bool(record.runs or record.others)))
                at = record.end
        return found


def made_log(*, closed: bool) -> Log:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_state, "MAX_RUN_BYTES", 2000)
        rng = random.Random(11)
        files, life = CrashingFiles(), Life(rng)
        life.open(files)
        life.store.start(InlineDriver())
        for _ in range(70):
            life.request()
        if closed:
            life.close()
        made = Log(files.everything(), life.worlds[-1:] if closed else life.worlds[-2:], closed)
        while not closed and made.ends_empty:
            life.request()
            made = Log(files.everything(), life.worlds[-2:], closed)
    assert sum(name.endswith(".segment") for name in made.files) > 3
    assert opened(CrashingFiles(made.files)) == life.worlds[-1] != life.worlds[-2]
    return made


@pytest.fixture(scope="module", params=[True, False], ids=["closed", "crashed"])
def log(request: pytest.FixtureRequest) -> Log:
    return made_log(closed=request.param)


def judge(files: dict[str, bytes], worlds: list[World], name: str) -> str:
    """Open a log that was damaged: all that was acknowledged is there, or an error tells what is damaged, and where."""
    disk = CrashingFiles(files)
    try:
        store = LogStore(disk, OWNER, create=False, segment_bytes=SEGMENT_BYTES)
    except (CorruptData, ConfigError) as error:
        problem = str(error)
    else:
        return compare(store, worlds, name)
    assert name in problem
    assert disk.everything() == files, "something was changed before all was known to be well"
    return "refused"


def compare(store: LogStore, worlds: list[World], name: str) -> str:
    broken: dict[ReplicaKey, str] = {}
    found: World = {key: None for key in store._replicas if store.removed(*key)}
    for key in store.replicas():
        try:
            found |= look_at(store, key)
        except CorruptData as error:
            broken[key] = str(error)
    for key, problem in broken.items():
        assert f"shard {key[0]} replica {key[1]}: " in problem
        assert re.search(rf"{name}, offset \d+, from index \d+ on", problem)
    expected = [{key: known for key, known in world.items() if key not in broken} for world in worlds]
    assert found in expected, difference(found, expected[-1])
    return "one replica fails" if broken else "whole" if found == expected[-1] else "cut"


def damaged(content: bytes, at: int, mask: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= mask
    return bytes(changed)


def flips(log: Log, masks: list[int], every: int, *, only: str = "") -> Counter[str]:
    """Flip bits of bytes that are used, and of some others, in each file or in one."""
    outcomes = Counter[str]()
    for name, content in log.files.items() if not only else [(only, log.files[only])]:
        used = 0 if name.startswith("spare") else len(content.rstrip(b"\0 \n")) + 50
        for at in range(0, len(content), every):
            if (at < used and content[at] != ord(" ")) or at % 97 == 0:
                mask = masks[at % len(masks)]
                outcome = judge(log.files | {name: damaged(content, at, mask)}, log.worlds, name)
                outcomes[outcome] += 1
    return outcomes


def check_flips(log: Log, masks: list[int], every: int) -> None:
    outcomes = flips(log, masks, every)
    assert outcomes["refused"] > 50
    assert outcomes["one replica fails"] > 50
    assert bool(outcomes["cut"]) == (not log.closed)


def flip_the_end(*, closed: bool) -> None:
    """Flip bits in the file of the last record."""
    log = made_log(closed=closed)
    assert flips(log, [0xFF], 7, only=log.last_record[0])["refused"]


def test_flipped_bits_are_found_wherever_they_are(log: Log) -> None:
    """Only the last record may be cut off, and only after a crash."""
    check_flips(log, [0x01, 0x80, 0xFF, 0x10], 11)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_flipped_bits_are_found_in_each_byte(log: Log, mask: int) -> None:
    check_flips(log, [mask], 1)


def test_a_file_that_was_cut_off_at_any_byte_is_found(log: Log) -> None:
    """No crash does that: a segment has its size before it is in use."""
    for name, content in log.files.items():
        places = {0, 1, 39, 63, 64, 65, len(content) - 1, *range(5, len(content), 61)}
        for at in places:
            outcome = judge(log.files | {name: content[:at]}, log.worlds, name)
            assert outcome == "refused" if name.endswith("segment") else outcome in ("refused", "whole")


def test_a_last_record_that_ends_at_any_byte_is_cut_off(log: Log) -> None:
    """What follows in its sectors may be zero, or what was there in an earlier life of the file. After a close it is found."""
    name, begin, end = log.last_record
    content = log.files[name]
    rng = random.Random(1)
    for at in range(begin, end):
        for rest in (bytes(end - at), rng.randbytes(end - at)):
            if rest == content[at:end]:
                continue
            image = {name: content[:at] + rest + content[end:]}
            outcome = judge(log.files | image, log.worlds, name)
            assert outcome in (("refused", "one replica fails") if log.closed else ("cut",)), at


def test_a_file_that_is_gone_or_another_is_found(log: Log) -> None:
    segments_of = sorted(name for name in log.files if name.endswith("segment"))
    for name in log.files:
        without = {other: content for other, content in log.files.items() if other != name}
        assert judge(without, log.worlds, name) == ("whole" if name.startswith("spare") else "refused")
    for name, other in pairwise(segments_of):
        swapped = {name: log.files[other], other: log.files[name]}
        assert judge(log.files | swapped, log.worlds, "segment") == "refused"
        assert judge(log.files | {name: log.files[other]}, log.worlds, name) == "refused"


def test_an_older_copy_of_a_file_is_found() -> None:
    """But for the last segment and the log as a whole, since nothing else tells what was added to them.

    An older copy of the last segment looks like a log that ends there, and an older copy of the whole folder is a log:
    neither can be told from what it was then.
    """
    files, life = CrashingFiles(), Life(random.Random(5))
    life.open(files)
    life.store.start(InlineDriver())
    copies = []
    for _ in range(60):
        life.request()
        copies.append((files.everything(), life.worlds[-1], life.store.active_file))
    tried = Counter[str]()
    for now, world, last in copies[15:20] + copies[-1:]:
        for old, _, _ in copies:
            for name, content in old.items():
                if name != last and content != now.get(name) and old is not now:
                    outcome = judge(now | {name: content}, [world], "")
                    tried[f"{name[-7:]} {outcome}"] += 1
            if old is now:
                break
    assert tried["segment refused"] > 20
    assert tried["LOG refused"] > 40
    assert not tried["LOG one replica fails"]


def test_two_crashes_while_the_manifest_is_written_leave_one_copy_whole() -> None:
    """The first one tore a copy of it, so the next start must not begin with the other one."""
    rng = random.Random(1)
    files, world = CrashingFiles(made_log(closed=True).files), made_log(closed=True).worlds[-1]
    more = Segments(files, OWNER, SEGMENT_BYTES)
    more.load()
    # The start will take it out of the manifest.
    more._add(None, more.in_use[-1].number + 1, SEGMENT_BYTES)
    whole = files.everything()
    for copy in (0, len(whole["LOG"]) // 2):
        torn = CrashingFiles(whole | {"LOG": damaged(whole["LOG"], copy + 5, 0xFF)})

        def crash(operation: str, files: CrashingFiles = torn) -> None:
            for _ in range(100 if operation == "put" else 0):
                assert opened(files.crash(rng, 0.5)) == world

        torn.watch = crash
        assert opened(torn) == world


def test_what_a_client_sends_is_never_taken_for_a_record() -> None:
    """Not even where a crash left it alone: a record's checksum begins with a number that no client knows."""
    files = CrashingFiles()
    store = LogStore(files, OWNER, segment_bytes=SEGMENT_BYTES)
    store.start(InlineDriver())
    store.begin(1, 1, RECORD, None, fail_on_error)
    active = store._segments.active
    builder = RecordBuilder()
    builder.add(Kind.REMOVED, (1, 1), b"")
    forged = builder.finish(active.number, 0, store._sequence + 1, store._sequence)
    begin = active.end
    run = Run(1, 1, [bytes(700) + forged])
    store.save(AppendRequest(1, 1, None, [run], done=fail_on_error))
    image = files.everything()
    torn = bytearray(image[active.name])
    torn[begin : begin + 300] = bytes(300)
    assert opened(CrashingFiles(image | {active.name: bytes(torn)})) == {(1, 1): Known()}


def test_what_a_client_sends_never_makes_a_start_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload full of heads of records lies in what a crash left, where later records are looked for."""
    files = CrashingFiles()
    store = LogStore(files, OWNER, segment_bytes=1 << 16)
    store.start(InlineDriver())
    store.begin(1, 1, RECORD, None, fail_on_error)
    active = store._segments.active
    builder = RecordBuilder()
    builder.add(Kind.SNAPSHOT, (1, 1), bytes(1 << 14))
    forged = builder.finish(active.number, 0, store._sequence + 1, store._sequence)[:100]
    begin = active.end
    store.save(AppendRequest(1, 1, None, [Run(1, 1, [forged * 400])], done=fail_on_error))
    files.content[active.name].seen[begin : begin + 150] = bytes(150)
    checked = 0

    def counted(data: bytes | memoryview, start: int = 0) -> int:
        nonlocal checked
        checked += len(data)
        return crc32(data, start)

    monkeypatch.setattr(records, "crc32", counted)
    assert opened(files, segment_bytes=1 << 16) == {(1, 1): Known()}
    assert checked < 1 << 17


def test_what_a_crash_left_of_a_record_is_never_taken_for_damage() -> None:
    """A record was torn in the next segment; later ones were written before that, and after it."""
    files = CrashingFiles()
    runs = [Run(index, 1, [bytes(size)]) for index, size in enumerate((2000, 100, 5000), 1)]

    def start() -> LogStore:
        store = LogStore(files, OWNER, segment_bytes=SEGMENT_BYTES)
        store.start(InlineDriver())
        return store

    def save(run: Run) -> None:
        store.save(AppendRequest(1, 1, None, [run], done=fail_on_error))

    store = start()
    store.begin(1, 1, RECORD, None, fail_on_error)
    save(runs[0])
    save(Run(2, 1, [bytes(range(250)) * 10]))
    active = store._segments.active
    assert active.number == 2
    files.content[active.name].seen[1000 : active.end] = bytes(active.end - 1000)
    store = start()
    save(runs[1])
    save(runs[2])
    assert [segment.end > HEADER_BYTES for segment in store._segments.in_use] == [True, False, True]
    assert opened(files) == {(1, 1): Known(entries=tuple(Entries(runs)))}


@pytest.mark.parametrize("apart", [False, True], ids=["in one segment", "in two"])
@pytest.mark.parametrize("harmed", ["head", "entries"])
def test_the_head_of_a_torn_record_tells_that_the_one_before_it_is_damaged(
    harmed: str, *, apart: bool
) -> None:
    files = CrashingFiles()
    store = LogStore(files, OWNER, segment_bytes=SEGMENT_BYTES)
    store.start(InlineDriver())
    for replica in (1, 2):
        store.begin(1, replica, RECORD, None, fail_on_error)
    places = []
    for first, size in enumerate((100, 3400 if apart else 700), 1):
        active = store._segments.active
        places.append((active.number, active.end))
        run = Run(first, 1, [bytes(size)])
        store._flushing = True  # all go into one record
        for replica in (1,) if apart else (1, 2):
            store.save(AppendRequest(1, replica, None, [run], done=fail_on_error))
        store._flushing = False
        store._pump()
    image = files.everything()
    last = store._segments.active
    assert (last.number != places[0][0]) == apart
    begin = HEADER_BYTES if apart else places[1][1]
    torn = bytearray(image[last.name])
    torn[begin + 60 :] = bytes(len(torn) - begin - 60)
    image[last.name] = bytes(torn)
    name = segments.segment_name(places[0][0])
    image[name] = damaged(image[name], places[0][1] + (20 if harmed == "head" else 150), 1)
    with pytest.raises(CorruptData):
        opened(CrashingFiles(image))


def fail_on_error(error: BaseException | None) -> None:
    assert error is None


# -- logs that do less ------------------------------------------------------------------------------------------------


def list_first(patch: pytest.MonkeyPatch) -> None:
    """A segment is listed before its header is durable."""

    def write_header(self: Segments, number: int, size: int) -> Segment:
        if self.manifest.exists:
            self.manifest.save(self.manifest.listed.first, number, self.manifest.listed.sequence)
        return right(self, number, size)

    right = Segments._write_header
    patch.setattr(Segments, "_write_header", write_header)


def list_late(patch: pytest.MonkeyPatch) -> None:
    """A segment is written to before it is listed: the header is there, the manifest only when the next one is made."""
    patch.setattr(Manifest, "save", lambda self, *listed: setattr(self, "listed", Listed(*listed)))


def drop_first(patch: pytest.MonkeyPatch) -> None:
    """A segment is used again before it has left the manifest."""

    def drop(self: Segments, name: str, oldest: Segment, spare: str | None) -> None:
        listed = []
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Manifest, "save", lambda _self, *numbers: listed.append(numbers))
            right(self, name, oldest, spare)
        self.manifest.save(*listed[0])

    right = Segments._drop
    patch.setattr(Segments, "_drop", drop)


def trust_what_is_found(patch: pytest.MonkeyPatch) -> None:
    """The last record is not written again after a restart."""
    patch.setattr(LogStore, "_settle", lambda self, active, _last: self._segments.settle(active))


def leave_remains(patch: pytest.MonkeyPatch) -> None:
    """What a crash left of the last record is not struck out."""
    patch.setattr(log_store, "RECORD_BYTES", 0)


def drop_unsettled(patch: pytest.MonkeyPatch) -> None:
    """Segments are dropped although damage to the last record would bring back the need for them."""
    patch.setattr(Usage, "is_settled", lambda _self, _segment: True)


def ignore_what_is_not_listed(patch: pytest.MonkeyPatch) -> None:
    """Segments that are not in the manifest are not looked into."""
    patch.setattr(Segments, "_check_unlisted", lambda *_arguments: None)


def ignore_salts(patch: pytest.MonkeyPatch) -> None:
    """All segments have the same one."""
    patch.setattr(CrashingFiles, "salt", lambda _self: 0)


def ignore_watermarks(patch: pytest.MonkeyPatch) -> None:
    """Any record that is not whole is taken for the end."""
    patch.setattr(recovery, "find_head", lambda *_arguments, after: None)


def ignore_sequence_numbers(patch: pytest.MonkeyPatch) -> None:
    """Records follow one another wherever they are found."""

    def read(data: memoryview, at: int, segment: int, salt: int) -> Record | None:
        record = read_record(data, at, segment, salt)
        return None if record is None else record._replace(sequence=Anything())

    patch.setattr(recovery, "read_record", read)


class Anything(int):
    """Equal to all numbers."""

    def __eq__(self, _other: object) -> bool:
        return True

    def __ne__(self, _other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


def acknowledge_first(patch: pytest.MonkeyPatch) -> None:
    """Requests are reported, and segments dropped, before the flush has ended."""

    def flush(
        self: SlowDriver, files: CrashingFiles, name: str, done: Callable[[BaseException | None], None]
    ) -> None:
        right(self, files, name, lambda _error: None)
        done(None)

    right = SlowDriver.flush
    patch.setattr(SlowDriver, "flush", flush)


def drop_early(patch: pytest.MonkeyPatch) -> None:
    """Segments are dropped when what is needed of them is read, and not durable at its new place yet."""

    def move(self: LogStore, moves: list[Move], done: Callable[[], None]) -> None:
        right(self, moves, done)
        segments_ = self._segments
        if (
            len(segments_.in_use) > 2
            and sum(move.size for move in moves) >= self._usage.live[segments_.in_use[0].number]
        ):
            segments_.drop_oldest()

    right = LogStore._move
    patch.setattr(LogStore, "_move", move)


def live_and_crash(seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        Crashes(rng, Life(rng), count=2, depth=0).go(CrashingFiles(), 80)


@pytest.mark.parametrize("less", [list_first, list_late, drop_first, drop_early, acknowledge_first])
def test_a_log_that_does_less_does_not_survive_crashes(
    less: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crashes above could fail: where a step is left out or comes too early, they do."""
    less(monkeypatch)
    with pytest.raises(Broken):
        live_and_crash(range(10))


@pytest.mark.parametrize(
    ("less", "check"),
    [
        (trust_what_is_found, test_what_a_failed_flush_left_in_the_cache_is_written_again),
        (ignore_watermarks, lambda: flip_the_end(closed=True)),
        (ignore_sequence_numbers, test_an_older_copy_of_a_file_is_found),
        (drop_unsettled, lambda: flip_the_end(closed=False)),
        (ignore_what_is_not_listed, test_an_older_copy_of_a_file_is_found),
        (ignore_salts, test_what_a_client_sends_is_never_taken_for_a_record),
        (leave_remains, test_what_a_crash_left_of_a_record_is_never_taken_for_damage),
    ],
)
def test_a_log_that_believes_too_much_is_caught(
    less: Callable[[pytest.MonkeyPatch], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above could fail."""
    less(monkeypatch)
    with pytest.raises((AssertionError, CorruptData)):
        check()
