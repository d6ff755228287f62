"""One replica's state machine, and what waits for it: what takes effect when, and in which thread."""

from collections import Counter
from contextlib import contextmanager

import pytest
from drakkar.actors.machine.applier import Applier, SaveRequest
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import MemorySnapshots
from drakkar.handlers.errors import ActorFailed, ReplicaStopped
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.state import Membership, Snapshot

from tests.actors.support import Failing, Ledger, settled, until

ORIGIN = 1234567


class FakePool:
    """A pool whose jobs a test runs, when and where it likes."""

    def __init__(self):
        self.jobs = []

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
    assert reports == [machine.error]
    assert [type(settled(future)) for future in (behind, after)] == [ReplicaStopped] * 2


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
