"""Waits that could never end are refused at once; all others are as long as they are."""

import asyncio
import threading

import pykka
import pytest
from drakkar.actors.runtime.futures import ActorFuture, forbid_waiting_for, this_thread
from drakkar.actors.runtime.waits import Owner, Workers
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.handlers.errors import DeadlockError

from tests.actors.support import TIMEOUT_S, settled, until


@pytest.fixture
def me():
    """The owner whose work this thread does."""
    this_thread.owner = Owner("shard 1")
    yield this_thread.owner
    this_thread.owner = None


def mine(me):
    return ActorFuture.of(me)


WAITS = {
    "get": lambda future: future.get(timeout=TIMEOUT_S),
    "mapped": lambda future: future.map(str).get(timeout=TIMEOUT_S),
    "joined": lambda future: ActorFuture().join(future).get(timeout=TIMEOUT_S),
    "mapped and joined": lambda future: ActorFuture().join(future.map(str)).get(timeout=TIMEOUT_S),
    "awaited in asyncio": lambda future: asyncio.run(awaits(future)),
}


async def awaits(future):
    return await future


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_work_does_not_wait_for_itself(me, wait):
    with pytest.raises(DeadlockError, match="would wait for shard 1, which is set only after"):
        wait(mine(me))


@pytest.mark.parametrize("wait", [WAITS["get"], WAITS["mapped"], WAITS["awaited in asyncio"]])
def test_what_is_set_is_read(me, wait):
    future = mine(me)
    future.set(1)
    assert str(wait(future)) == "1"


def test_what_has_no_owner_or_another_one_is_waited_for(me):
    for future in (ActorFuture(), ActorFuture.of(Owner("shard 2"))):
        with pytest.raises(pykka.Timeout):
            future.get(timeout=0.01)
    assert me.waits_for is None


def test_a_thread_that_works_for_no_owner_waits_for_any():
    with pytest.raises(pykka.Timeout):
        ActorFuture.of(Owner("shard 1")).get(timeout=0.01)


def test_a_circle_of_waits_is_refused_where_it_would_close(me):
    second, third = Owner("shard 2"), Owner("shard 3")
    with second.waiting(third, None, "a test"), third.waiting(me, None, "a test"):
        with pytest.raises(DeadlockError, match="for shard 2, which waits for the state machine of shard 1"):
            ActorFuture.of(second).get(timeout=TIMEOUT_S)
        with pytest.raises(DeadlockError):
            forbid_waiting_for(third, "a test")
    forbid_waiting_for(third, "a test")


def test_what_works_beside_another_does_not_wait_for_that_and_nothing_waits_for_it(me):
    this_thread.owner = beside = Owner("shard 1", beside=me)
    with pytest.raises(DeadlockError):
        mine(me).get(timeout=TIMEOUT_S)
    with beside.waiting(Owner("shard 2"), None, "a test"):
        Owner("shard 2").check(me, "a test")


def test_the_last_worker_does_not_wait_for_work_of_its_own_pool():
    pool = WorkerPool(3)
    target, elsewhere = Owner("shard 9", pool.workers), Owner("shard 8", Workers(1))
    futures = [ActorFuture.of(target) for _ in range(3)]
    outcomes, started = [], threading.Semaphore(0)

    def job(number, future):
        this_thread.owner = Owner(f"shard {number}", pool.workers)
        started.release()
        try:
            outcomes.append(settled(future))
        finally:
            this_thread.owner = None

    for number in (0, 1):
        pool.submit(lambda number=number: job(number, futures[number]))
        until(lambda number=number: pool.workers.waiting == number + 1)
    pool.submit(lambda: job(2, futures[2]))
    (refused,) = until(lambda: outcomes)
    assert type(refused) is DeadlockError
    assert "all 3 workers of the host" in str(refused)
    other = ActorFuture.of(elsewhere)
    pool.submit(lambda: job(3, other))
    for number, future in enumerate([*futures[:2], other]):
        future.set(number)
    until(lambda: len(outcomes) == 4)
    assert sorted(outcomes[1:]) == [0, 1, 2]
    assert pool.workers.waiting == 0
    assert pool.stop() == 0


def test_a_pool_is_not_stopped_by_its_own_thread():
    pool, told = WorkerPool(1), ActorFuture()

    def job():
        try:
            pool.forbid_waiting("a test")
        except DeadlockError as error:
            told.set(error)

    pool.submit(job)
    assert "would wait for the state machine that calls it" in str(told.get(timeout=TIMEOUT_S))
    pool.forbid_waiting("a test")
    pool.stop()
