"""Disk use stays within bounds, whatever mix of shards there is, and little is written again with each flush."""

import errno
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from drakkar.actors.log import state
from drakkar.actors.log.cleaning import Cleaner
from drakkar.actors.log.driver import InlineDriver
from drakkar.actors.log.index import RunIndex, segment_of
from drakkar.actors.log.records import RecordBuilder
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore
from drakkar.handlers.errors import CorruptData, ProtocolViolation, StorageFailed
from drakkar.handlers.raft.entries import Entries, Entry, Run
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.state import HardState, Membership

from tests.actors.log.doubles import CappedFiles, StepDriver

SEGMENT = 1 << 14
RECORD = Bootstrap(Membership({1: "a:1"}))
GIVEN_BACK_WITHIN = 6
"""What is freed at once is given back before so many segments, or requests if they are larger, were written."""
STEPS = 6
"""Of the driver after each request, at most."""
MOST_SEGMENTS = 12
"""Beside twice what is live: those being written and prepared, spare ones, and those that are not worth cleaning yet."""


@dataclass
class Shard:
    """A replica, with all that must be in its log."""

    number: int
    entries: list[Entry] = field(default_factory=list)
    first: int = 1
    gone: bool = False

    @property
    def last(self) -> int:
        return self.first + len(self.entries) - 1


class Load:
    """A log under load, with a model of what is in it."""

    def __init__(
        self,
        *,
        steps: StepDriver | None = None,
        files: CappedFiles | None = None,
        segment_bytes: int = SEGMENT,
    ) -> None:
        self.segment_bytes = segment_bytes
        self.files = files or CappedFiles()
        self.steps = steps
        self.store = LogStore(self.files, "h", segment_bytes=self.segment_bytes)
        self.store.start(steps or InlineDriver())
        self.shards: dict[int, Shard] = {}
        self.failed: list[BaseException] = []
        self.saved = 0
        """Bytes of entries."""
        self.largest = 0
        """Bytes of the largest request, which may be more than a segment."""
        self.peak = 0.0
        """The greatest number of segments beside twice what is live."""
        self._live: deque[tuple[int, int]] = deque()

    def done(self, error: BaseException | None) -> None:
        if error is not None:
            self.failed.append(error)

    def settle(self) -> None:
        if self.steps is not None:
            self.steps.settle()

    def begin(self, number: int) -> Shard:
        self.store.begin(number, 1, RECORD, None, self.done)
        self.settle()
        assert self.store.open(number, 1) is not None
        shard = self.shards[number] = Shard(number)
        return shard

    def save(self, shard: Shard, payloads: list[bytes], first: int | None = None, term: int = 1) -> None:
        """Append, or replace from `first` on."""
        first = first or shard.last + 1
        run = Run(first, term, payloads)
        self.largest = max(self.largest, run.size)
        self.saved += run.size
        self.store.save(AppendRequest(shard.number, 1, HardState(term, 1, first - 1), [run], done=self.done))
        del shard.entries[first - shard.first :]
        shard.entries += list(Entries([run]))

    def compact(self, shard: Shard, keep: int) -> None:
        """Keep so many entries."""
        log = self.store.open(shard.number, 1)
        assert log is not None
        upto = min(shard.last - keep, log.last_index)
        if upto >= shard.first:
            self.store.compact(shard.number, 1, upto)
            del shard.entries[: upto + 1 - shard.first]
            shard.first = upto + 1

    def remove(self, shard: Shard) -> None:
        self.store.remove(shard.number, 1, self.done)
        shard.gone = True

    def measure(self) -> None:
        """Note how many segments there are beside twice what is live.

        What is freed at once, and there is much of it at times, is given back while some more is written.
        """
        live = self._live
        live.append((self.saved, self.store.status.live_bytes))
        while live[0][0] < self.saved - GIVEN_BACK_WITHIN * max(SEGMENT, self.largest):
            live.popleft()
        beside = self.files.used - 2 * max(size for _, size in live) - self.largest
        self.peak = max(self.peak, beside / SEGMENT)

    def measure_at_rest(self) -> None:
        self._live.clear()
        self.measure()

    def check(self) -> None:
        """All is in the log, now and after a restart, and the bytes that are live were counted rightly."""
        assert self.failed == []
        self._check_entries()
        live = self.store.status.live_bytes
        self.store.close()
        self.store = LogStore(self.files, "h", segment_bytes=self.segment_bytes)
        assert self.store.status.live_bytes == live
        self._check_entries()

    def _check_entries(self) -> None:
        for shard in self.shards.values():
            log = self.store.open(shard.number, 1)
            if shard.gone:
                assert log is None
                assert self.store.removed(shard.number, 1)
                continue
            assert log is not None
            assert (log.first_index, log.last_index) == (shard.first, shard.last)
            assert list(Entries(log.runs(shard.first, shard.last + 1, UNLIMITED))) == shard.entries


@pytest.fixture(params=[None, StepDriver], ids=["at once", "in the background"])
def steps(request: pytest.FixtureRequest) -> StepDriver | None:
    return request.param() if request.param is not None else None


def payloads(rng: random.Random, size: int) -> list[bytes]:
    """So many bytes, in one entry or in many."""
    if rng.random() < 0.5:
        return [rng.randbytes(size)]
    each = rng.randint(1, 200)
    return [rng.randbytes(each) for _ in range(1 + size // each)]


def busy(load: Load, shard: Shard, rng: random.Random) -> None:
    load.save(shard, payloads(rng, rng.choice([16, 300, 2000])))
    if len(shard.entries) > 200 or rng.random() < 0.05:
        load.compact(shard, rng.randint(0, 20))


def replacing(load: Load, shard: Shard, rng: random.Random) -> None:
    """A leader's log replaces what is there, now and then."""
    first = rng.randint(shard.first, shard.last + 1) if rng.random() < 0.2 else shard.last + 1
    load.save(shard, payloads(rng, 300), first, term=1 + len(shard.entries))
    if rng.random() < 0.05:
        load.compact(shard, rng.randint(0, 20))


def huge(load: Load, shard: Shard, rng: random.Random) -> None:
    """Requests larger than a segment."""
    if rng.random() < 0.03:
        load.save(shard, payloads(rng, 3 * SEGMENT))
    if rng.random() < 0.03:
        load.compact(shard, 0)


def waves(load: Load, shard: Shard, rng: random.Random) -> None:
    """It grows for long, and then nearly all goes at once."""
    load.save(shard, payloads(rng, 500))
    if len(shard.entries) > 2000:
        load.compact(shard, 3)


def nothing(_load: Load, _shard: Shard, _rng: random.Random) -> None:
    pass


def rarely(load: Load, shard: Shard, rng: random.Random) -> None:
    if rng.random() < 0.01:
        load.save(shard, [rng.randbytes(10)])


def short_lived(load: Load, shard: Shard, rng: random.Random) -> None:
    """It is removed at some time, and another begins."""
    load.save(shard, payloads(rng, 100))
    if rng.random() < 0.02:
        load.remove(shard)


Behaviour = Callable[[Load, Shard, random.Random], None]

MIXES: dict[str, list[tuple[Behaviour, int]]] = {
    "one busy": [(busy, 1)],
    "busy, and many that rest": [(busy, 2), (nothing, 200)],
    "busy, and some that write rarely": [(busy, 3), (rarely, 20)],
    "replacing": [(replacing, 3), (rarely, 3)],
    "requests larger than a segment": [(huge, 2), (busy, 1), (rarely, 3)],
    "waves": [(waves, 2), (rarely, 5)],
    "short-lived": [(short_lived, 3), (busy, 1)],
    "all": [(busy, 2), (replacing, 1), (huge, 1), (rarely, 5), (short_lived, 2), (nothing, 20)],
}


@pytest.mark.parametrize("quiet_bytes", [0, 40 * SEGMENT], ids=["", "beside a large log that rests"])
@pytest.mark.parametrize("delay", [None, 1.0, 0.1], ids=["at once", "as it comes", "slow in the background"])
@pytest.mark.parametrize("mix", MIXES)
def test_disk_use_stays_under_twice_what_is_live_and_a_few_segments(
    mix: str, delay: float | None, quiet_bytes: int
) -> None:
    rng = random.Random(f"{mix} {delay} {quiet_bytes}")
    steps = StepDriver() if delay is not None else None
    load = Load(steps=steps)
    numbers = iter(range(1, 1000))
    actors = []
    for behaviour, count in MIXES[mix]:
        actors += [(behaviour, load.begin(next(numbers))) for _ in range(count)]
    quiet = load.begin(next(numbers))
    while sum(len(entry.payload) for entry in quiet.entries) < quiet_bytes:
        load.save(quiet, payloads(rng, rng.choice([50, 1000, 5000])))
    load.settle()
    for _ in range(1500):
        at = rng.randrange(len(actors)) if len(actors) < 20 or rng.random() < 0.05 else rng.randrange(4)
        behaviour, shard = actors[at]
        if shard.gone:
            shard = load.begin(next(numbers))
            actors[at] = behaviour, shard
        behaviour(load, shard, rng)
        load.measure()
        if steps is not None and delay is not None:
            for _ in range(rng.randint(0, STEPS)):
                steps.step(rng, delay)
                load.measure()
    load.settle()
    load.measure_at_rest()
    assert load.peak < MOST_SEGMENTS
    load.check()


# -- files --------------------------------------------------------------------------------------------------------


def test_the_reserve_and_the_next_segment_are_there_after_the_start() -> None:
    files = CappedFiles()
    store = LogStore(files, "h", segment_bytes=SEGMENT)
    store.start(InlineDriver())
    assert sorted(name.partition("-")[0] for name in files.names() if name != "LOG") == [
        "0000000000000001.segment",
        "0000000000000002.segment",
        "spare",
        "spare",
    ]


def test_a_steady_load_uses_its_files_again(steps: StepDriver | None) -> None:
    load = Load(steps=steps)
    quiet, busy_one = load.begin(1), load.begin(2)
    load.save(quiet, [bytes(100)])

    def go(count: int) -> None:
        for _ in range(count):
            load.save(busy_one, [bytes(300)])
            load.settle()
            load.compact(busy_one, 20)
            load.settle()

    go(500)
    before = load.files.calls.copy()
    go(2000)
    calls = load.files.calls - before
    assert calls["rename"] > 60, "segments are used again"
    assert calls["allocate"] == 0
    assert calls["remove"] == 0
    load.check()


def test_few_files_are_kept_when_many_segments_go_at_once(steps: StepDriver | None) -> None:
    load = Load(steps=steps)
    shard = load.begin(1)
    for _ in range(100):
        load.save(shard, [bytes(SEGMENT // 2)])
        load.settle()
    load.compact(shard, 0)
    load.settle()
    load.save(shard, [b"one more"])
    load.settle()
    assert load.files.used <= 8 * SEGMENT
    load.check()


def test_a_large_request_has_a_file_of_its_own_which_goes_away(steps: StepDriver | None) -> None:
    load = Load(steps=steps)
    shard = load.begin(1)
    load.save(shard, [bytes(10 * SEGMENT)])
    load.settle()
    assert any(load.files.size(name) > 10 * SEGMENT for name in load.files.names())
    load.save(shard, [b"small"])
    load.settle()
    load.compact(shard, 0)
    load.settle()
    assert all(load.files.size(name) <= SEGMENT for name in load.files.names())
    load.check()


# -- quiet replicas -------------------------------------------------------------------------------------------------


def test_metadata_of_ten_thousand_replicas_pins_no_segment() -> None:
    load = Load(segment_bytes=1 << 18)
    for number in range(2, 10_002):
        load.store.begin(number, 1, RECORD, None, load.done)
    busy_one = load.begin(1)
    first = load.store._segments.in_use[-1].number
    for _ in range(400):
        load.save(busy_one, [bytes(1 << 14)])
        load.compact(busy_one, 0)
    assert load.store._segments.in_use[0].number > first
    status = load.store.status
    assert status.disk_bytes < 2 * status.live_bytes + 4 * (1 << 18)
    load.store.close()
    store = LogStore(load.files, "h", segment_bytes=1 << 18)
    assert len(store.replicas()) == 10_001


def test_a_replica_that_failed_pins_no_segment() -> None:
    """Its log is as it was, and must be there when it is opened again."""
    load = Load()
    failing, busy_one = load.begin(1), load.begin(2)
    load.save(failing, [b"kept"])
    outcomes: list[BaseException | None] = []
    load.store.save(AppendRequest(1, 1, None, [Run(7, 1, [b"a gap"])], done=outcomes.append))
    assert isinstance(outcomes[0], ProtocolViolation)
    for _ in range(1000):
        load.save(busy_one, [bytes(300)])
        load.compact(busy_one, 0)
    assert load.store.status.segments < 6
    load.check()


def test_a_damaged_run_stops_the_cleaning_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    load = Load()
    quiet, busy_one = load.begin(1), load.begin(2)
    load.save(quiet, [b"needed" * 10])
    name = load.store.active_file
    at = load.files.read(name, 0, SEGMENT).index(b"needed")
    load.files.write(name, at, b"X")
    for _ in range(1000):
        load.save(busy_one, [bytes(300)])
        load.compact(busy_one, 0)
    assert load.failed == []
    [message] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert name in message
    assert "shard 1 replica 1: the run of entries from 1 on is damaged" in message
    assert load.store.status.segments > 10, "nothing is lost beside it"


def test_a_read_that_failed_once_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    load = Load()
    quiet, busy_one = load.begin(1), load.begin(2)
    load.save(quiet, [b"needed" * 10])
    load.files.failing["read_apart"] = OSError(errno.EIO, "Input/output error")
    for at in range(1000):
        load.save(busy_one, [bytes(300)])
        load.compact(busy_one, 0)
        if at == 500:
            assert load.store._segments.in_use[0].number == 1
            load.files.failing.clear()
    assert load.files.calls["read_apart"] > 3
    assert len([record for record in caplog.records if "could not be read" in record.message]) == 1
    assert load.store.status.segments < 6
    load.check()


def test_nothing_is_moved_or_dropped_once_a_move_failed() -> None:
    load = Load()
    load.begin(1)
    busy_one = load.begin(2)
    assert load.store._cleaner is not None
    load.store._cleaner._moved(StorageFailed("the disk failed"))
    before = load.store._segments.in_use[0].number
    for _ in range(1000):
        load.save(busy_one, [bytes(300)])
        load.compact(busy_one, 0)
    assert load.store._segments.in_use[0].number == before
    assert not load.files.calls["read_apart"]


def test_the_entries_of_a_replica_whose_facts_are_damaged_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is stored beside them was moved to later segments."""
    load = Load()
    quiet, busy_one = load.begin(1), load.begin(2)
    while load.store._segments.active.number == 1:
        load.save(busy_one, [bytes(300)])
    load.save(quiet, [b"needed" * 10])
    while load.store._segments.in_use[0].number == 1:
        load.save(busy_one, [bytes(300)])
        load.compact(busy_one, 0)
    with monkeypatch.context() as patch:
        patch.setattr(state, "encode_hard_state", lambda _state: b"damaged")
        load.store.save(AppendRequest(1, 1, HardState(2), done=load.done))
    load.store.close()
    load.store = LogStore(load.files, "h", segment_bytes=SEGMENT)
    load.store.start(InlineDriver())
    replica = load.store._replicas[1, 1]
    assert isinstance(replica.broken, CorruptData)
    [place] = replica.index.places
    assert all(segment > segment_of(place) for segment, _ in replica.facts.values())
    load.store.open(2, 1)
    for _ in range(1000):
        load.save(busy_one, [bytes(300)])
        load.compact(busy_one, 0)
    assert load.store._segments.in_use[0].number <= segment_of(place)


def test_cleaning_goes_on_by_itself_where_much_must_be_looked_at_in_vain() -> None:
    """What was written to the oldest segment is mostly not needed, and the load has stopped."""
    steps = StepDriver()
    load = Load(steps=steps, segment_bytes=1 << 18)
    quiet, busy_one = load.begin(1), load.begin(2)
    load.save(quiet, [b"needed"])
    for at in range(12_000):
        load.save(busy_one, [bytes(60)])
        if at % 1000 == 0:
            load.settle()
    load.settle()
    assert load.store._segments.in_use[0].number == 1, "it was not worth it before"
    load.compact(busy_one, 0)
    load.settle()
    assert load.store.status.disk_bytes <= 3 << 18
    load.check()


def test_what_is_left_of_a_run_of_which_a_part_was_replaced_meanwhile_is_moved_too() -> None:
    steps = StepDriver()
    load = Load(steps=steps)
    quiet, busy_one = load.begin(1), load.begin(2)
    load.save(quiet, [b"kept", b"replaced"])
    for _ in range(1000):
        load.save(busy_one, [bytes(300)])
        load.compact(busy_one, 0)
        steps.settle_but(lambda: bool(load.store._moves))
        if load.store._moves:
            break
    # It is in the same record as what is to be moved, and comes first.
    load.save(quiet, [b"new"], first=2, term=2)
    for _ in range(100):
        load.settle()
        load.save(busy_one, [bytes(300)])
        load.compact(busy_one, 0)
    load.settle()
    assert load.store._segments.in_use[0].number > 1
    load.check()


# -- delay ----------------------------------------------------------------------------------------------------------


def test_little_is_done_for_space_with_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that comes meanwhile waits for no more than that."""
    looks: list[int] = []
    moved: list[int] = []
    find, pack = RunIndex.find, RecordBuilder.finish

    def counted_find(index: RunIndex, first: int) -> object:
        looks[-1] += 1
        return find(index, first)

    def noted_finish(builder: RecordBuilder, *of: int) -> bytes:
        moved.append(builder.size)
        return pack(builder, *of)

    step = Cleaner._step

    def counted_step(cleaner: Cleaner) -> None:
        looks.append(0)
        step(cleaner)

    monkeypatch.setattr(RunIndex, "find", counted_find)
    monkeypatch.setattr(RecordBuilder, "finish", noted_finish)
    monkeypatch.setattr(Cleaner, "_step", counted_step)
    steps = StepDriver()
    load = Load(steps=steps, segment_bytes=1 << 20)
    quiet, busy_one = load.begin(1), load.begin(2)
    for _ in range(2000):
        load.save(quiet, [bytes(500)])
    load.settle()
    moved.clear()
    for at in range(4000):
        load.save(busy_one, [bytes(200_000 if at % 100 == 0 else 1000)])
        load.compact(busy_one, 0)
        steps.step_any(steps.deferred, steps.flushes, steps.jobs)
        steps.step_any(steps.flushes, steps.deferred, steps.jobs)
        steps.step_any(steps.jobs, steps.flushes, steps.deferred)
    assert max(looks) <= 512
    portion = (1 << 20) // 64
    assert sum(size > portion for size in moved) > 10, "much was moved"
    busiest = max(size for size in moved if size < 200_000)
    assert busiest < 4 * (portion + 4000), busiest
    load.settle()
    load.check()
