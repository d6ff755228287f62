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
    gate = threading.Event()
    pool = WorkerPool(3)
    for _ in range(4):
        pool.submit(lambda: gate.wait(TIMEOUT_S))
    began = time.monotonic()
    pool.stop(timeout=0.2)
    assert time.monotonic() - began < 2
    assert "3 workers still work after 0.2 seconds" in caplog.text
    gate.set()
