"""The worker threads that the replicas of a host share."""

import threading
import time
from collections import Counter

import pykka
import pytest
from drakkar.actors.runtime.workers import WorkerPool

from tests.actors.support import TIMEOUT_S, until


@pytest.fixture
def pool():
    pool = WorkerPool(2)
    yield pool
    pool.stop()


def test_a_slow_job_holds_no_other_up(pool):
    gate, arrived, done = threading.Event(), threading.Event(), threading.Event()
    pool.submit(lambda: (arrived.set(), gate.wait(TIMEOUT_S)))
    assert arrived.wait(TIMEOUT_S)
    pool.submit(done.set)
    assert done.wait(TIMEOUT_S)
    gate.set()


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), SystemExit(3)])
def test_a_job_that_fails_is_logged_and_costs_no_worker(error, caplog):
    bystander = pykka.ThreadingActor.start()
    pool = WorkerPool(1)

    def fail():
        raise error

    done = threading.Event()
    pool.submit(fail)
    pool.submit(done.set)
    assert done.wait(TIMEOUT_S)
    assert "a job failed" in caplog.text
    assert bystander.is_alive(), "pykka stops all actors for a SystemExit"
    bystander.stop()
    pool.stop()


def test_all_jobs_are_done_however_many_threads_submit(pool):
    done, count = Counter(), 500

    def submit(name):
        for _ in range(count):
            pool.submit(lambda: done.update([name]))

    threads = [threading.Thread(target=submit, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    idle = threading.Event()
    until(lambda: len(pool._idle) == 2)
    pool.submit(idle.set)
    assert idle.wait(TIMEOUT_S)
    assert sum(done.values()) <= 4 * count
    assert set(done) == {0, 1, 2, 3}


def test_a_pool_stops_by_its_deadline_though_all_its_workers_hang(caplog):
    gate, before = threading.Event(), pykka.ActorRegistry.get_all()
    pool = WorkerPool(3)
    for _ in range(4):
        pool.submit(lambda: gate.wait(TIMEOUT_S))
    began = time.monotonic()
    pool.stop(timeout=0.2)
    assert time.monotonic() - began < 2
    assert "3 workers still work after 0.2 seconds" in caplog.text
    gate.set()
    until(lambda: pykka.ActorRegistry.get_all() == before)


@pytest.mark.parametrize("started", [0, 1])
def test_a_pool_that_cannot_start_a_thread_leaves_no_actor(monkeypatch, started):
    before, start, left = pykka.ActorRegistry.get_all(), threading.Thread.start, [started]

    def lacks_threads(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", lacks_threads)
    with pytest.raises(RuntimeError, match="new thread"):
        WorkerPool(2)
    assert pykka.ActorRegistry.get_all() == before


# -- jobs that hang -------------------------------------------------------------------------------------------------


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Stuck:
    """Jobs that hang until a test lets them go."""

    def __init__(self, pool, clock):
        self.gate, self.clock, self.pool = threading.Event(), clock, pool
        self.begun = []

    def hang(self, count):
        for number in range(count):
            self.pool.submit(lambda number=number: (self.begun.append(number), self.gate.wait(TIMEOUT_S)))

    def look_after(self, seconds):
        """Let time pass, and look at the pool twice, since it takes two looks to see that a thread does not compute."""
        for step in (seconds, 0.25):
            self.clock.now += step
            self.pool.look()


@pytest.fixture
def growing():
    clock = Clock()
    pool = WorkerPool(2, max_size=4, hang_s=1.0, clock=clock)
    stuck = Stuck(pool, clock)
    yield pool, stuck
    stuck.gate.set()
    pool.stop()


def test_where_jobs_hang_others_are_done_by_workers_in_their_place(growing):
    pool, stuck = growing
    stuck.hang(2)
    until(lambda: len(stuck.begun) == 2)
    done = [threading.Event() for _ in range(3)]
    for event in done:
        pool.submit(event.set)
    stuck.look_after(0.7)
    assert (pool.hanging, pool.threads, pool.waiting) == (0, 2, 3)
    stuck.look_after(0.2)
    assert (pool.hanging, pool.threads) == (2, 4)
    assert all(event.wait(TIMEOUT_S) for event in done)


def test_a_job_that_hangs_costs_no_thread_while_no_other_waits(growing):
    pool, stuck = growing
    stuck.hang(2)
    until(lambda: len(stuck.begun) == 2)
    stuck.look_after(30)
    assert (pool.hanging, pool.threads) == (2, 2)


def test_a_pool_has_its_size_again_when_the_jobs_have_returned(growing):
    pool, stuck = growing
    before = len(pykka.ActorRegistry.get_all())
    stuck.hang(2)
    until(lambda: len(stuck.begun) == 2)
    done = threading.Event()
    pool.submit(done.set)
    stuck.look_after(2)
    assert done.wait(TIMEOUT_S)
    assert pool.threads == 4
    stuck.gate.set()
    until(lambda: len(pool._idle) == 4)

    def small():
        pool.look()
        return pool.threads == 2

    until(small)
    until(lambda: len(pykka.ActorRegistry.get_all()) == before)
    pool.look()
    assert (pool.hanging, pool.threads) == (0, 2)
    again = [threading.Event() for _ in range(10)]
    for event in again:
        pool.submit(event.set)
    assert all(event.wait(TIMEOUT_S) for event in again)


def test_a_pool_shrinks_though_it_is_never_idle(growing):
    pool, stuck = growing
    busy = threading.Event()

    def job():
        if not busy.is_set():
            pool.submit(job)

    stuck.hang(2)
    until(lambda: len(stuck.begun) == 2)
    for _ in range(8):
        pool.submit(job)
    stuck.look_after(2)
    assert pool.threads == 4
    stuck.gate.set()

    def small():
        pool.look()
        return pool.threads == 2

    until(small)
    busy.set()


def test_a_pool_grows_to_its_bound_and_says_once_a_minute_that_all_of_it_hangs(growing, caplog):
    pool, stuck = growing
    stuck.hang(6)
    for count in (2, 4):
        until(lambda count=count: len(stuck.begun) == count)
        stuck.look_after(2)
    assert (pool.hanging, pool.threads, pool.waiting) == (4, 4, 2)
    stuck.look_after(30)
    assert caplog.text.count("all 4 workers hang, which is as many as there may be, and 2 jobs wait") == 1
    stuck.look_after(31)
    assert caplog.text.count("all 4 workers hang") == 2
    stuck.gate.set()
    until(lambda: len(stuck.begun) == 6)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="there all jobs count as computing")
def test_a_job_that_computes_has_five_times_as_long(growing):
    pool, stuck = growing
    computing, done = threading.Event(), threading.Event()

    def compute():
        computing.set()
        while not stuck.gate.is_set():
            pass

    stuck.hang(1)
    pool.submit(compute)
    pool.submit(done.set)
    until(lambda: stuck.begun and computing.is_set())
    stuck.clock.now += 1.5
    pool.look()
    used = sum(time.clock_gettime(each.cpu_clock) for each in pool._all)
    until(lambda: sum(time.clock_gettime(each.cpu_clock) for each in pool._all) > used + 0.1)
    stuck.clock.now += 0.5
    pool.look()
    assert pool.hanging == 1, "the one that waits"
    assert done.wait(TIMEOUT_S)
    stuck.clock.now += 2.9
    pool.look()
    assert pool.hanging == 1
    stuck.clock.now += 0.2
    pool.look()
    assert pool.hanging == 2


def test_a_process_that_can_have_no_more_threads_says_so_and_goes_on(growing, monkeypatch, caplog):
    pool, stuck = growing

    def lacks_threads(thread):
        raise RuntimeError("can't start new thread")

    stuck.hang(2)
    until(lambda: len(stuck.begun) == 2)
    done = threading.Event()
    pool.submit(done.set)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lacks_threads)
        stuck.look_after(2)
    assert "no worker can be started in the place of one that hangs: RuntimeError: can't start" in caplog.text
    assert pool.threads == 2
    stuck.look_after(0)
    assert done.wait(TIMEOUT_S)


def test_a_pool_that_was_stopped_does_not_grow():
    clock = Clock()
    pool = WorkerPool(1, max_size=4, clock=clock)
    stuck = Stuck(pool, clock)
    stuck.hang(1)
    until(lambda: stuck.begun)
    assert pool.stop(timeout=0.05) == 1
    pool.submit(lambda: None)
    stuck.look_after(2)
    assert pool.threads == 1
    stuck.gate.set()


def test_a_pool_doubles_as_long_as_all_of_it_hangs():
    """Each wave costs the others a second."""
    clock = Clock()
    pool = WorkerPool(2, max_size=20, clock=clock)
    stuck = Stuck(pool, clock)
    done = threading.Event()
    stuck.hang(14)
    pool.submit(done.set)
    for count in (2, 4, 8):
        until(lambda count=count: len(stuck.begun) == count)
        assert not done.is_set()
        stuck.look_after(2)
    assert pool.threads == 16
    assert done.wait(TIMEOUT_S)
    stuck.gate.set()
    pool.stop()


def test_a_worker_that_was_to_end_stays_where_others_hang_meanwhile(growing):
    pool, stuck = growing
    stuck.hang(2)
    until(lambda: len(stuck.begun) == 2)
    pool.submit(lambda: None)
    stuck.look_after(2)
    until(lambda: len(pool._idle) == 2)
    later = Stuck(pool, stuck.clock)
    stuck.gate.set()
    until(lambda: len(pool._idle) == 4)
    later.hang(4)
    until(lambda: len(later.begun) == 4)
    pool.look()  # none hangs, and two are too many
    later.look_after(2)
    assert pool.hanging == 4
    later.gate.set()
    until(lambda: len(pool._idle) == 4)
    assert pool.threads == 4
    pool.look()
    until(lambda: pool.threads == 3)
