"""Functions and tasks on a loop: their results, their failures, and their end."""

import logging
import sys
import threading

import pykka
import pytest
import trio
import trio.lowlevel
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import ActorFailed, DeadlockError, LoopError

from tests.actors.runtime.support import TIMEOUT_S, Echo, TroubleError, wait_until


def test_functions_run_soon_in_order_and_a_failing_one_is_logged(loop, caplog):
    seen = []
    loop.run_soon(seen.append, 1)
    loop.run_soon(lambda: 1 / 0)
    loop.run_soon(sys.exit, 3)
    loop.run_soon(seen.append, 2)
    assert loop.call(lambda: list(seen), timeout=TIMEOUT_S) == [1, 2]
    assert loop.crashes == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


@pytest.mark.parametrize("value", [5, None])
def test_call_returns_what_sync_and_async_functions_return(loop, value):
    async def later():
        await trio.lowlevel.checkpoint()
        return value

    future = ActorFuture()
    future.set(value)
    assert loop.call(lambda: value) is value
    assert loop.call(later) is value
    assert loop.call(lambda: future) is value


def test_call_raises_what_the_function_raises_and_that_is_no_crash(loop, caplog):
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda: 1 / 0)
    with pytest.raises(ActorFailed, match="SystemExit"):
        loop.call(sys.exit)
    assert loop.crashes == 0
    assert caplog.records == []
    assert loop.running


def test_call_returns_what_becomes_of_a_future_in_the_moment_when_it_is_set(loop):
    passes = []

    def later(outcome):
        future = ActorFuture()
        loop.spawn(settle, future, outcome)
        return future

    async def settle(future, outcome):
        await trio.lowlevel.checkpoint()
        if isinstance(outcome, Exception):
            future.fail(outcome)
        else:
            future.set(outcome)
        passes.append(list(loop._tasks))  # of the call, none is left

    assert loop.call(later, 5) == 5
    with pytest.raises(TroubleError, match="no"):
        loop.call(later, TroubleError("no"))
    wait_until(lambda: len(passes) == 2)
    assert [len(tasks) for tasks in passes] == [1, 1]
    hooked = ActorFuture()
    hooked.set_get_hook(lambda _timeout: 7)
    assert loop.call(lambda: hooked) == 7


def test_a_call_that_waits_for_a_future_is_told_of_a_stop_and_keeps_no_loop_from_stopping():
    loop, never, outcomes = TrioLoop().start(), ActorFuture(), []

    def call():
        try:
            loop.call(lambda: never)
        except LoopError as error:
            outcomes.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: any(task._future is never for task in list(loop._tasks)))
    with pytest.raises(pykka.Timeout):
        loop.call(ActorFuture, timeout=0.01)
    loop.stop(TIMEOUT_S)
    caller.join(TIMEOUT_S)
    assert "stopped before the call" in str(outcomes[0])
    never.set(None)


def test_a_call_that_takes_too_long_is_cancelled(loop):
    cancelled = threading.Event()

    async def forever():
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    with pytest.raises(pykka.Timeout):
        loop.call(forever, timeout=0.01)
    assert cancelled.wait(TIMEOUT_S)


def test_a_call_that_the_stop_interrupts_is_told_so():
    loop, begun, told = TrioLoop().start(), threading.Event(), []

    async def forever():
        begun.set()
        await trio.sleep_forever()

    def call():
        try:
            loop.call(forever)
        except LoopError as error:
            told.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    assert begun.wait(TIMEOUT_S)
    loop.stop()
    caller.join(TIMEOUT_S)
    assert "stopped before" in told[0]


def test_call_in_a_loops_own_thread_raises_at_once(loop):
    with pytest.raises(DeadlockError, match="use spawn"):
        loop.call(lambda: loop.call(int))


def test_a_task_finishes_with_what_its_function_returned(loop):
    async def add(a, b):
        await trio.lowlevel.checkpoint()
        return a + b

    task = loop.spawn(add, 1, 2, name="adder")
    assert task.finished.get(timeout=TIMEOUT_S) == 3
    assert not task.cancelled
    assert "adder" in repr(task)
    assert loop.call(lambda: loop.spawn(add, 3, 4).finished, timeout=TIMEOUT_S) == 7


@pytest.mark.parametrize("error", [TroubleError("mine"), SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_crashes_is_reported_and_ends_no_other(loop, caplog, error):
    async def crash():
        await trio.lowlevel.checkpoint()
        raise error

    told = []
    other = loop.spawn(trio.sleep_forever)
    task = loop.spawn(crash, on_crash=told.append)
    with pytest.raises(TroubleError if isinstance(error, Exception) else ActorFailed) as caught:
        task.finished.get(timeout=TIMEOUT_S)
    assert error in {caught.value, caught.value.__cause__}
    assert loop.call(lambda: (told, loop.crashes)) == ([error], 1)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert not other.finished.done
    assert loop.running


def test_a_cancelled_task_finishes_with_none(loop):
    task = loop.spawn(trio.sleep_forever)
    task.cancel()
    assert task.finished.get(timeout=TIMEOUT_S) is None
    assert task.cancelled
    task.cancel()
    assert loop.crashes == 0


def test_a_task_awaits_an_actor_while_other_tasks_go_on(loop):
    async def ask():
        return await ref.ask("hello", block=False)

    ref = Echo.start(loop=loop)
    assert loop.call(ask, timeout=TIMEOUT_S) == "hello"
