"""One replica's state machine, and what waits for it: what takes effect when, and in which thread."""

from collections import Counter
from contextlib import contextmanager

import cbor2
import pytest
from drakkar.actors.machine.applied import AppliedState, ApplyFailed
from drakkar.actors.machine.applier import Applier, LoadRequest, SaveRequest
from drakkar.actors.machine.compression import encode
from drakkar.actors.machine.sessions import FENCE
from drakkar.actors.machine.state_machine import ConcurrentStateMachine, DiskStateMachine, StateMachine
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.waits import Workers
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import MemorySnapshots
from drakkar.handlers.errors import ActorFailed, Refused, ReplicaStopped
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.state import Membership, Snapshot

from tests.actors.support import Failing, Ledger, settled, until

ORIGIN = 1234567


class FakePool:
    """A pool whose jobs a test runs, when and where it likes."""

    def __init__(self):
        self.jobs = []
        self.workers = Workers(1)

    def submit(self, job):
        self.jobs.append(job)


def entries(*commands, first=1, origin=ORIGIN):
    return Entries([Run(first, 1, list(commands), b"", origin, first)])


def test_batches_and_questions_take_effect_in_the_order_in_which_they_come():
    pool, reports = FakePool(), []
    applier = Applier(Ledger(), ORIGIN, pool, reports.append, MemorySnapshots().of(1, 1), shard_id=1)
    futures = [ActorFuture() for _ in range(3)]
    applier.query([(None, futures[0])])
    applier.apply(entries(b"a"))
    applier.query([(None, futures[1])])
    applier.apply(entries(b"b", first=2, origin=99))
    applier.query([(None, futures[2])])
    assert applier.unanswered == 3
    while pool.jobs:
        (job,) = pool.jobs
        pool.jobs.clear()
        job()
    assert [settled(future) for future in futures] == [[], [b"a"], [b"a", b"b"]]
    assert [(index, len(mine)) for index, mine in reports] == [(1, 1), (2, 0)]
    assert applier.unanswered == 0


@pytest.mark.parametrize(("index", "written"), [(2, True), (1, False), (3, False)])
def test_a_snapshot_is_written_only_of_the_index_that_the_state_machine_has_reached(index, written):
    pool, outcomes = FakePool(), []
    files = MemorySnapshots().of(1, 1)
    machine = Ledger()
    machine.save = lambda sink: sink.write(b"state")
    applier = Applier(machine, ORIGIN, pool, lambda _: None, files, shard_id=1)
    applier.apply(entries(b"a", b"b"))
    assert applier.given == 2
    applier.save(SaveRequest(Snapshot(index, 1, Membership({1})), outcomes.append))
    while pool.jobs:
        pool.jobs.pop(0)()
    (outcome,) = outcomes
    if written:
        assert outcome.index == 2
        assert files.open(outcome.payload.decode())
    else:
        assert isinstance(outcome, ActorFailed)
        assert "the state machine is at 2" in str(outcome)


def test_it_says_that_it_loads_until_a_snapshot_is_loaded():
    pool, loaded = FakePool(), []
    applier = Applier(Ledger(), ORIGIN, pool, lambda _: None, MemorySnapshots().of(1, 1), shard_id=1)
    applier.load(LoadRequest(Snapshot(0, 0), lambda part: loaded.append((applier.loading, part))))
    assert applier.loading
    while pool.jobs:
        pool.jobs.pop(0)()
    assert loaded == [(False, b"")]


# -- the state of extensions, which is part of snapshots ----------------------------------------------------------------

SAVED = cbor2.dumps({"audit": b"seen 3"})


class Book(Ledger):
    """All commands, also in its snapshots."""

    def save(self, sink):
        sink.write(b" ".join(self.commands))

    def load(self, source):
        self.commands = source.read().split()


class ConcurrentBook(ConcurrentStateMachine, Book):
    def capture(self):
        fixed = b" ".join(self.commands)
        return lambda sink: sink.write(fixed)


class BookOnDisk(DiskStateMachine):
    """Its own disk holds what it was given."""

    def __init__(self):
        self.commands, self.loaded = [], False

    def open(self):
        return len(self.commands)

    def apply_entries(self, given):
        self.commands += [command for _, command in given]
        return [None] * len(given)

    def sync(self):
        pass

    def capture(self):
        fixed = b" ".join(self.commands)
        return lambda sink: sink.write(fixed)

    def load(self, source):
        self.commands, self.loaded = source.read().split(), True


def run_all(*pools):
    while any(pool.jobs for pool in pools):
        for pool in pools:
            while pool.jobs:
                pool.jobs.pop(0)()


def taken(machine, files, *, extensions=SAVED, whole=False):
    """The snapshot at entry 2 of a state machine, beside extensions whose state comes while it is being written."""
    pool, outcomes, part = FakePool(), [], ActorFuture()
    applier = Applier(machine, ORIGIN, pool, lambda _: None, files, shard_id=1)
    if isinstance(machine, DiskStateMachine):
        applier.load(LoadRequest(Snapshot(0, 0), lambda _: None))
    applier.apply(entries(b"a", b"b"))
    request = SaveRequest(Snapshot(2, 1, Membership({1})), outcomes.append, whole=whole, extensions=part)
    applier.save(request)
    applier.apply(entries(b"c", first=3))
    run_all(pool)
    assert (applier._reached, outcomes) == (2, []), (
        "it stays at the index until the extensions are saved there"
    )
    part.set(extensions)
    run_all(pool)
    assert applier._reached == 3
    return outcomes[0]


def load(machine, files, snapshot):
    pool, parts, failures = FakePool(), [], []
    applier = Applier(machine, ORIGIN, pool, failures.append, files, shard_id=1)
    applier.load(LoadRequest(snapshot, parts.append))
    run_all(pool)
    assert failures == []
    return parts[0]


@pytest.mark.parametrize("machine", [Book, ConcurrentBook])
def test_what_extensions_save_is_part_of_the_snapshot_and_comes_back(machine):
    files = MemorySnapshots().of(1, 1)
    snapshot = taken(machine(), files)
    with files.open(snapshot.payload.decode()) as reader:
        assert reader.facts["extensions"] == ["audit"]
    other = machine()
    assert load(other, files, snapshot) == SAVED
    assert other.commands == [b"a", b"b"]


def test_a_snapshot_is_as_ever_where_no_extension_has_state():
    files = MemorySnapshots().of(1, 1)
    snapshot = taken(Book(), files, extensions=b"")
    with files.open(snapshot.payload.decode()) as reader:
        assert "extensions" not in reader.facts
    other = Book()
    assert (load(other, files, snapshot), other.commands) == (b"", [b"a", b"b"])


@pytest.mark.parametrize("whole", [False, True])
def test_the_snapshot_of_a_state_machine_on_disk_has_the_extensions_too(whole):
    """Also one that has nothing else, and also where the state machine holds that much by itself."""
    files = MemorySnapshots().of(1, 1)
    machine = BookOnDisk()
    snapshot = taken(machine, files, whole=whole)
    assert load(machine, files, snapshot) == SAVED
    assert not machine.loaded
    if whole:
        other = BookOnDisk()
        assert (load(other, files, snapshot), other.commands) == (SAVED, [b"a", b"b"])


@pytest.mark.parametrize("machine", [Book, ConcurrentBook])
def test_a_snapshot_fails_whose_node_ends_before_the_extensions_are_saved(machine):
    pool, outcomes, part, files = FakePool(), [], ActorFuture(), MemorySnapshots().of(1, 1)
    applier = Applier(machine(), ORIGIN, pool, lambda _: None, files, shard_id=1)
    applier.save(SaveRequest(Snapshot(0, 0, Membership({1})), outcomes.append, extensions=part))
    part.fail(ReplicaStopped("the node has ended"))
    run_all(pool)
    assert [type(outcome) for outcome in outcomes] == [ReplicaStopped]
    assert files._names() == [], "nothing is left of it"


def test_what_fails_where_the_results_are_reported_is_not_the_state_machines():
    """On the loop the node applies what it is told at once, and may find that it must end."""

    class Inline(Ledger):
        blocks = False

    reports = []

    def report(outcome):
        reports.append(outcome)
        raise ZeroDivisionError("an extension")

    applier = Applier(Inline(), ORIGIN, FakePool(), report, MemorySnapshots().of(1, 1), shard_id=1)
    with pytest.raises(ZeroDivisionError, match="an extension"):
        applier.apply(entries(b"a"))
    assert [index for index, _ in reports] == [1], "and it is told only once"


def test_work_that_comes_just_when_a_worker_has_finished_is_given_to_one_worker_only():
    pool = FakePool()
    applier = Applier(Ledger(), ORIGIN, pool, lambda _: None, MemorySnapshots().of(1, 1), shard_id=1)

    @contextmanager
    def lock_and_then_more_work():
        yield
        # The worker has seen that nothing waits, and let go of the lock.
        applier._lock = plain
        if not applier._busy:
            applier.apply(entries(b"b", first=2))

    plain = applier._lock
    applier.apply(entries(b"a"))
    (job,) = pool.jobs
    pool.jobs.clear()
    # The first use of the lock takes the work, the second one ends the turn.
    applier._lock = chain([plain, lock_and_then_more_work()])
    job()
    assert len(pool.jobs) == 1, "two workers would have the state machine at once"


class chain:  # noqa: N801  # reads as the function of that name
    """A lock that is another one at each use."""

    def __init__(self, locks):
        self.locks = list(locks)

    def __enter__(self):
        self.current = self.locks.pop(0)
        return self.current.__enter__()

    def __exit__(self, *trouble):
        return self.current.__exit__(*trouble)


def test_a_state_machine_that_failed_is_asked_nothing_more():
    pool, reports = FakePool(), []
    machine = Failing("apply", ZeroDivisionError("a bug"))
    applier = Applier(machine, ORIGIN, pool, reports.append, MemorySnapshots().of(1, 1), shard_id=1)
    before, behind, after = ActorFuture(), ActorFuture(), ActorFuture()
    applier.query([(None, before)])
    applier.apply(entries(b"fail"))
    applier.query([(None, behind)])
    while pool.jobs:
        pool.jobs.pop()()
    applier.query([(None, after)])
    assert settled(before) == []
    (failure,) = reports
    assert str(failure) == "apply failed at entry 1: ZeroDivisionError: a bug"
    assert failure.__cause__ is machine.error
    assert [type(settled(future)) for future in (behind, after)] == [ReplicaStopped] * 2


class Picky(Ledger):
    """Refuses what begins with no, and fails at "boom"."""

    def apply(self, command):
        if command.startswith(b"no"):
            raise Refused(command.decode())
        if command == b"boom":
            raise ZeroDivisionError("a bug")
        return super().apply(command)


class PickyBatches(Picky):
    """As `Picky`, with batches of its own."""

    def apply_many(self, commands):
        return [*super().apply_many(commands)]


class PickyOnDisk(DiskStateMachine):
    """As `Picky`, with its state elsewhere."""

    def __init__(self):
        self.picky = Picky()

    def open(self):
        return 0

    def apply_entries(self, entries):
        return self.picky.apply_many([command for _, command in entries])


def applied(machine, run):
    return [
        str(result) if type(result) is Refused else result
        for result in AppliedState(machine, shard_id=1).apply(run)
    ]


@pytest.mark.parametrize("machine", [Picky, PickyBatches, PickyOnDisk])
def test_a_refused_command_has_its_refusal_as_result_and_the_others_theirs(machine):
    run = Run(5, 1, [b"a", b"no", b"b"], b"", ORIGIN, 1)
    assert applied(machine(), run) == [1, "no", 2]


@pytest.mark.parametrize("machine", [Picky, PickyOnDisk])
def test_a_compressed_command_may_be_refused_too(machine):
    (packed,), kinds = encode([b"no" * 500])
    assert kinds
    plain = bytes([EntryKind.COMMAND])
    assert applied(machine(), Run(5, 1, [b"a", packed], plain + kinds, ORIGIN, 1)) == [1, "no" * 500]


@pytest.mark.parametrize("machine", [Picky, PickyBatches, PickyOnDisk])
def test_the_result_of_a_fence_is_its_index_and_the_state_machine_is_not_told_of_it(machine):
    kinds = bytes([EntryKind.COMMAND, EntryKind.SESSION, EntryKind.COMMAND, EntryKind.SESSION])
    assert applied(machine(), Run(5, 1, [b"a", FENCE, b"b", FENCE], kinds, ORIGIN, 1)) == [1, 6, 2, 8]


def test_a_fence_leaves_the_sessions_as_they_are():
    """All replicas must agree on them, also those of a version that knows no fences."""
    state = AppliedState(Ledger(), shard_id=1)
    before = state.sessions.encode()
    state.apply(Run(1, 1, [FENCE], bytes([EntryKind.SESSION]), ORIGIN, 1))
    assert state.sessions.encode() == before


def test_a_refusal_that_is_returned_counts_as_one_that_is_raised():
    class Poor(Refused):
        pass

    machine = Ledger()
    machine.apply = lambda _: Poor("no money")
    state = AppliedState(machine, shard_id=1)
    kinds = bytes([EntryKind.COMMAND, EntryKind.NO_OP])
    refused, nothing = state.apply(Run(1, 1, [b"a", b""], kinds, ORIGIN, 1))
    assert (type(refused), str(refused), nothing) == (Refused, "no money", None)


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        (Picky, "apply failed at entry 6: ZeroDivisionError: a bug"),
        (PickyBatches, "apply_many failed at entries 5 to 7: ZeroDivisionError: a bug"),
        (PickyOnDisk, "apply_entries failed at entries 5 to 7: ZeroDivisionError: a bug"),
    ],
)
def test_a_failure_names_the_entries_at_which_it_came(machine, text):
    with pytest.raises(ApplyFailed) as failed:
        AppliedState(machine(), shard_id=1).apply(Run(5, 1, [b"a", b"boom", b"b"], b"", ORIGIN, 1))
    assert str(failed.value) == text
    assert type(failed.value.__cause__) is ZeroDivisionError


def test_a_failure_among_entries_of_several_kinds_names_its_entry_too():
    kinds = bytes([EntryKind.COMMAND, EntryKind.NO_OP, EntryKind.COMMAND])
    with pytest.raises(ApplyFailed, match="apply failed at entry 7: ZeroDivisionError"):
        AppliedState(Picky(), shard_id=1).apply(Run(5, 1, [b"a", b"", b"boom"], kinds, ORIGIN, 1))


def test_a_batch_that_is_refused_as_a_whole_does_not_say_which_command_is():
    machine = Ledger()

    def refuse(_):
        raise Refused("no")

    machine.apply_many = refuse
    with pytest.raises(ApplyFailed, match=r"entries 5 to 6, .* return the Refused in the place of"):
        AppliedState(machine, shard_id=1).apply(Run(5, 1, [b"a", b"b"], b"", ORIGIN, 1))


def test_a_coroutine_is_no_result():
    async def later(_):
        """Nothing runs this."""

    machine, made = Ledger(), []

    def apply(command):
        made.append(later(command))
        return made[-1]

    machine.apply = apply
    with pytest.raises(ApplyFailed, match="it returned a coroutine, which nothing runs"):
        AppliedState(machine, shard_id=1).apply(Run(1, 1, [b"a"], b"", ORIGIN, 1))
    made[0].close()


def test_one_thread_at_a_time_touches_a_state_machine():
    pool = WorkerPool(4)
    inside, overlaps, applied = Counter(), [], Counter()

    class Watched(StateMachine):
        def __init__(self, name):
            self.name = name

        def apply_many(self, commands):
            inside[self.name] += 1
            if inside[self.name] != 1:
                overlaps.append(self.name)
            applied[self.name] += len(commands)
            inside[self.name] -= 1
            return commands

    count = 300
    appliers = [
        Applier(Watched(name), ORIGIN, pool, lambda _: None, MemorySnapshots().of(1, 1), shard_id=1)
        for name in range(6)
    ]
    for number in range(count):
        for applier in appliers:
            applier.apply(entries(b"x", first=number + 1))
    until(lambda: sum(applied.values()) == 6 * count)
    pool.stop()
    assert overlaps == []


# -- a state machine that does not return ---------------------------------------------------------------------------


class Watched(Ledger):
    """Calls what a test likes while it is at work."""

    def __init__(self):
        super().__init__()
        self.meanwhile = lambda: None

    def apply(self, command):
        self.meanwhile()
        return super().apply(command)

    def query(self, query):
        self.meanwhile()

    def save(self, sink):
        self.meanwhile()

    def load(self, source):
        self.meanwhile()


WORK = {
    "applying entries 1 to 2": (10, lambda applier: applier.apply(entries(b"a", b"b"))),
    "applying entry 1": (10, lambda applier: applier.apply(entries(b"a"))),
    "answering a query": (10, lambda applier: applier.query([(None, ActorFuture())])),
    "writing the snapshot at 0": (
        60,
        lambda applier: applier.save(SaveRequest(Snapshot(0, 0, Membership({1})), lambda _: None)),
    ),
}


@pytest.mark.parametrize(("what", "limit", "work"), [(what, *rest) for what, rest in WORK.items()], ids=WORK)
def test_it_says_what_the_state_machine_has_not_returned_from(what, limit, work):
    pool, now, hangs = FakePool(), [1000.0], []
    machine, files = Watched(), MemorySnapshots().of(1, 1)
    applier = Applier(machine, ORIGIN, pool, lambda _: None, files, shard_id=1, clock=lambda: now[0])

    def look():
        for seconds in (limit, 1):
            now[0] += seconds
            hangs.append(applier.hang)

    machine.meanwhile = look
    work(applier)
    now[0] += 100  # while it waits for a worker, it does not hang
    assert applier.hang is None
    while pool.jobs:
        pool.jobs.pop(0)()
    before, after = hangs[:2]
    assert before is None
    assert (after.what, after.seconds) == (what, limit + 1)
    assert applier.hang is None


def test_a_snapshot_that_is_written_beside_the_work_may_hang_too():
    class Concurrent(ConcurrentStateMachine, Ledger):
        def capture(self):
            return write

    def write(sink):
        now[0] += 61
        hangs.append(applier.hang)

    pool, background, now, hangs = FakePool(), FakePool(), [1000.0], []
    applier = Applier(
        Concurrent(),
        ORIGIN,
        pool,
        lambda _: None,
        MemorySnapshots().of(1, 1),
        shard_id=1,
        background=background,
        clock=lambda: now[0],
    )
    applier.save(SaveRequest(Snapshot(0, 0, Membership({1})), lambda _: None))
    pool.jobs.pop()()
    now[0] += 61
    assert applier.hang is None, "no worker has begun with it"
    background.jobs.pop()()
    assert hangs[0].what == "writing the snapshot at 0"
    assert applier.hang is None
