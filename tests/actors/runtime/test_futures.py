"""The futures of actors: the first outcome counts, no reader waits for ever, no loop is blocked."""

import asyncio
import contextlib
import gc
import logging
import threading
import time
import traceback

import pykka
import pytest
import trio
import trio.lowlevel
from drakkar.actors.runtime.futures import ActorFuture, in_full
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import AlreadySet, DeadlockError, DrakkarError

from tests.actors.runtime.support import TIMEOUT_S, TroubleError


def in_thread(fn, *args):
    thread = threading.Thread(target=fn, args=args)
    thread.start()
    return thread


def blocked_getters(future):
    return len(future._callbacks or ())


def wait_for_getters(future, count):
    deadline = time.monotonic() + TIMEOUT_S
    while blocked_getters(future) < count:
        assert time.monotonic() < deadline, f"only {blocked_getters(future)} wait"
        threading.Event().wait(0.001)


# Outcomes


@pytest.mark.parametrize("value", [42, None, False, ()])
def test_what_is_set_is_got_again_and_again(value):
    future = ActorFuture()
    assert not future.done
    future.set(value)
    assert future.done
    assert future.get() == value
    assert future.get(timeout=0) == value
    assert future.outcome() == (value, None)


def test_set_without_a_value_sets_none():
    future = ActorFuture()
    future.set()
    assert future.get(timeout=0) is None


def test_the_first_outcome_counts_and_a_second_is_refused():
    future = ActorFuture()
    future.set("first")
    with pytest.raises(AlreadySet, match="try_set"):
        future.set("second")
    with pytest.raises(AlreadySet, match="TroubleError"):
        future.fail(TroubleError("second"))
    with pytest.raises(AlreadySet):
        future.set_exception((TroubleError, TroubleError(), None))
    with pytest.raises(AlreadySet):
        future.set_get_hook(lambda _: "second")
    assert not future.try_set("second")
    assert not future.try_fail(TroubleError("second"))
    assert future.get() == "first"


def test_of_many_threads_that_settle_a_future_exactly_one_succeeds():
    for _ in range(200):
        future = ActorFuture()
        start = threading.Barrier(8)
        won = []

        def settle(number, future=future, start=start, won=won):
            start.wait(TIMEOUT_S)
            if future.try_set(number) if number % 2 else future.try_fail(TroubleError(number)):
                won.append(number)

        for thread in [in_thread(settle, number) for number in range(8)]:
            thread.join(TIMEOUT_S)
        value, error = future.outcome()
        assert won == [value if error is None else error.args[0]]


def test_an_exception_is_raised_by_get_with_its_own_traceback_every_time():
    future = ActorFuture()
    try:
        raise TroubleError("deep down")  # noqa: TRY301  # its traceback is what is tested
    except TroubleError:
        future.set_exception()
    depths = []
    for _ in range(3):
        with pytest.raises(TroubleError, match="deep down") as caught:
            future.get()
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert depths[0] == depths[1] == depths[2]
    assert isinstance(future.outcome()[1], TroubleError)


def test_an_exception_may_be_given_by_its_type_alone_as_in_pykka():
    future = ActorFuture()
    future.set_exception((TroubleError, None, None))
    with pytest.raises(TroubleError):
        future.get()


def test_set_exception_where_there_is_none_is_a_clear_error():
    with pytest.raises(ValueError, match="except block"):
        ActorFuture().set_exception()


def test_outcome_of_a_pending_future_does_not_wait():
    with pytest.raises(pykka.Timeout, match="no outcome yet"):
        ActorFuture().outcome()


def test_a_future_costs_nothing_before_it_is_used():
    assert ActorFuture().__dict__ == {}


def test_a_garbage_collection_at_its_first_use_leaves_it_whole():
    """Python 3.11 made two dicts of it, which shared memory, and crashed in a later collection."""

    class Garbage:
        def __init__(self, future):
            self.itself, self.future = self, future

        def __del__(self):
            seen.append(self.future.__dict__)

    seen = []
    future = ActorFuture()
    garbage = Garbage(future)
    thresholds = gc.get_threshold()
    gc.disable()
    try:
        taken = [{} for _ in range(500)]  # so that no dict is left over, and the next one is allocated
        gc.set_threshold(1, 1000, 1000)
        garbage = None
        gc.enable()
        own = future.__dict__
        taken.append([])
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    assert garbage is None
    gc.collect()
    assert all(each is own for each in seen)
    assert len(seen) == 1


def test_its_picture_is_of_bounded_length_and_does_not_print_what_it_holds():
    class Huge:
        def __repr__(self):
            raise AssertionError("the whole state machine")

    for outcome in (Huge(), "x" * 100_000):
        future = ActorFuture()
        future.set(outcome)
        assert len(repr(future)) < 200
    failed = ActorFuture()
    failed.fail(TroubleError("x" * 100_000))
    assert len(repr(failed)) < 500
    assert "pending" in repr(ActorFuture())


# Waiting in threads


def test_all_threads_that_wait_get_the_value():
    future, got = ActorFuture(), []
    threads = [in_thread(lambda: got.append(future.get(timeout=TIMEOUT_S))) for _ in range(8)]
    wait_for_getters(future, 8)
    future.set("value")
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert got == ["value"] * 8


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_a_timeout_that_passes_is_told_and_leaves_nothing_behind(timeout):
    future = ActorFuture()
    with pytest.raises(pykka.Timeout, match=f"{timeout} seconds"):
        future.get(timeout=timeout)
    assert blocked_getters(future) == 0
    future.set(1)
    assert future.get(timeout=timeout) == 1


def test_pykkas_get_all_understands_them():
    futures = [ActorFuture() for _ in range(3)]
    for number, future in enumerate(futures):
        future.set(number)
    assert pykka.get_all(futures, timeout=1) == [0, 1, 2]


# Callbacks


def test_callbacks_run_in_order_and_at_once_when_it_is_done():
    future, seen = ActorFuture(), []
    future.add_done_callback(lambda f: seen.append(("a", f.get())))
    future.add_done_callback(lambda f: seen.append(("b", f.get())))
    assert seen == []
    future.set(1)
    assert seen == [("a", 1), ("b", 1)]
    future.add_done_callback(lambda f: seen.append(("c", f.get())))
    assert seen[2:] == [("c", 1)]


def test_callbacks_run_in_the_thread_that_sets():
    future, threads = ActorFuture(), []
    future.add_done_callback(lambda _: threads.append(threading.current_thread()))
    setter = in_thread(future.set, 1)
    setter.join(TIMEOUT_S)
    assert threads == [setter]


@pytest.mark.parametrize("error", [TroubleError("mine"), SystemExit(3)])
def test_a_failing_callback_is_logged_and_costs_no_other_callback(caplog, error):
    def fail(_):
        raise error

    future, seen = ActorFuture(), []
    future.add_done_callback(fail)
    future.add_done_callback(lambda f: seen.append(f.get()))
    future.set(1)
    assert seen == [1]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info[1] is error


def test_ctrl_c_in_a_callback_of_the_main_thread_is_not_lost():
    def interrupt(_):
        raise KeyboardInterrupt

    future, seen = ActorFuture(), []
    future.add_done_callback(interrupt)
    future.add_done_callback(lambda f: seen.append(f.get()))
    with pytest.raises(KeyboardInterrupt):
        future.set(1)
    assert seen == [1]


def test_a_callback_added_while_another_thread_sets_runs_exactly_once():
    for _ in range(2000):
        future, seen, start = ActorFuture(), [], threading.Barrier(2)

        def settle(future=future, start=start):
            start.wait(TIMEOUT_S)
            future.set(1)

        setter = in_thread(settle)
        start.wait(TIMEOUT_S)
        for number in range(5):
            future.add_done_callback(lambda _, number=number, seen=seen: seen.append(number))
        setter.join(TIMEOUT_S)
        assert sorted(seen) == [0, 1, 2, 3, 4]


# Awaiting


def settle_after(progress: threading.Event, future, value="value"):
    """Sets the future only when the loop that awaits it has moved on meanwhile."""

    def settle():
        if progress.wait(TIMEOUT_S):
            future.set(value)

    return in_thread(settle)


def test_trio_goes_on_while_a_future_is_awaited_by_several_tasks():
    future, progress, got = ActorFuture(), threading.Event(), []

    async def take():
        got.append(await future)

    async def tick():
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        progress.set()

    async def main():
        with trio.fail_after(TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(take)
                nursery.start_soon(tick)

    thread = settle_after(progress, future)
    trio.run(main)
    thread.join(TIMEOUT_S)
    assert got == ["value"] * 3


def test_asyncio_goes_on_while_a_future_is_awaited_by_several_tasks():
    future, progress = ActorFuture(), threading.Event()

    async def take():
        return await future

    async def tick():
        for _ in range(5):
            await asyncio.sleep(0)
        progress.set()

    async def main():
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.gather(take(), take(), future, tick())

    thread = settle_after(progress, future)
    assert asyncio.run(main())[:3] == ["value"] * 3
    thread.join(TIMEOUT_S)


def run_in_trio(async_fn):
    async def main():
        with trio.fail_after(TIMEOUT_S):
            return await async_fn()

    return trio.run(main)


def run_in_asyncio(async_fn):
    return asyncio.run(asyncio.wait_for(async_fn(), TIMEOUT_S))


both_libraries = pytest.mark.parametrize("run", [run_in_trio, run_in_asyncio], ids=["trio", "asyncio"])


async def cancelled_after(seconds, future):
    """Awaits a future that does not come, in trio or asyncio."""
    if trio.lowlevel.in_trio_task():
        with trio.move_on_after(seconds) as scope:
            await future
        return scope.cancelled_caught
    try:
        await asyncio.wait_for(future, seconds)
    except TimeoutError:
        return True
    return False


@both_libraries
@pytest.mark.parametrize("value", [7, None])
def test_a_done_future_can_be_awaited(run, value):
    future = ActorFuture()
    future.set(value)

    async def main():
        return await future

    assert run(main) is value


@both_libraries
def test_an_awaited_failure_is_raised(run):
    future = ActorFuture()
    future.fail(TroubleError("told"))

    async def main():
        await future

    with pytest.raises(TroubleError, match="told"):
        run(main)


@both_libraries
def test_a_future_set_within_the_same_loop_wakes_its_task(run):
    future = ActorFuture()

    async def main():
        if trio.lowlevel.in_trio_task():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(setter)
                return await future
        task = asyncio.create_task(setter())
        value = await future
        await task
        return value

    async def setter():
        future.set("here")

    assert run(main) == "here"


@both_libraries
def test_cancelling_the_wait_leaves_the_future_alone(run):
    future = ActorFuture()

    async def main():
        assert await cancelled_after(0.01, future)
        assert blocked_getters(future) == 0
        future.set("still")
        return await future

    assert run(main) == "still"


@both_libraries
def test_a_future_that_outlives_the_loop_that_awaited_it_is_set_without_complaint(run, caplog):
    future = ActorFuture()
    kept = []

    async def main():
        notify = future._notify
        future._notify = lambda callback: (kept.append(callback), notify(callback))
        await cancelled_after(0.01, future)

    run(main)
    kept[0](future)
    assert caplog.records == []


def test_awaiting_in_no_loop_at_all_is_an_error():
    with pytest.raises(RuntimeError, match="no running event loop"):
        ActorFuture().__await__().send(None)


# Futures made of futures


def derived(source):
    return [
        source.map(sum),
        source.filter(lambda item: item > 1),
        source.reduce(lambda a, b: a * b),
        source.reduce(lambda a, b: a * b, 10),
        source.map(sum).map(str),
    ]


VALUES = [6, [2, 3], 6, 60, "6"]


def test_derived_futures_give_what_pykkas_give():
    source = ActorFuture()
    futures = derived(source)
    assert not any(future.done for future in futures)
    source.set([1, 2, 3])
    assert all(future.done for future in futures)
    assert [future.get() for future in futures] == VALUES


@both_libraries
def test_derived_futures_are_awaited_without_blocking(run):
    source, progress = ActorFuture(), threading.Event()
    futures = derived(source)
    threads_before = threading.active_count()

    async def main():
        progress.set()
        values = [await future for future in futures]
        assert threading.active_count() <= threads_before + 1  # only the one that sets
        return values

    thread = settle_after(progress, source, [1, 2, 3])
    assert run(main) == VALUES
    thread.join(TIMEOUT_S)


def test_a_derived_future_calls_back_when_its_last_source_is_done():
    first, second, seen = ActorFuture(), ActorFuture(), []
    joined = first.join(second).map(sum)
    joined.add_done_callback(lambda future: seen.append(future.outcome()))
    second.set(2)
    assert seen == []
    first.set(1)
    assert seen == [(3, None)]


def test_the_function_of_a_derived_future_runs_once_even_if_it_returns_none():
    source, calls = ActorFuture(), []
    mapped = source.map(calls.append)
    source.set(5)
    assert [mapped.get(), mapped.get()] == [None, None]
    assert calls == [5]


def test_the_function_of_a_derived_future_runs_once_for_all_threads():
    class CountingLock:
        def __init__(self):
            self.lock, self.arrived = threading.Lock(), []
            self.release = self.lock.release

        def acquire(self, timeout):
            self.arrived.append(threading.get_ident())
            return self.lock.acquire(timeout=timeout)

    def slow(value):
        assert go_on.wait(TIMEOUT_S)
        calls.append(value)

    source, calls, go_on = ActorFuture(), [], threading.Event()
    mapped = source.map(slow)
    mapped._outcome.lock = lock = CountingLock()
    source.set(5)
    threads = [in_thread(lambda: mapped.get(timeout=TIMEOUT_S)) for _ in range(4)]
    deadline = time.monotonic() + TIMEOUT_S
    while len(lock.arrived) < 4:
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)
    go_on.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert calls == [5]


def test_a_failing_source_fails_what_was_derived_from_it():
    source = ActorFuture()
    mapped = source.map(sum)
    source.fail(TroubleError("source"))
    with pytest.raises(TroubleError, match="source"):
        mapped.get()
    assert isinstance(mapped.outcome()[1], TroubleError)


def test_a_join_has_one_deadline_for_all(monkeypatch):
    class Clock:
        now = 100.0

        @classmethod
        def monotonic(cls):
            return cls.now

    def slow(timeout):
        left.append(timeout)
        Clock.now += 1

    monkeypatch.setattr("drakkar.actors.runtime.futures.time", Clock)
    left, futures = [], [ActorFuture() for _ in range(4)]
    for future in futures:
        future.set_get_hook(slow)
    futures[0].join(*futures[1:]).get(timeout=2.5)
    assert left == [2.5, 1.5, 0.5, 0]


def test_a_join_keeps_order_and_takes_pykkas_own_futures():
    mine, theirs = ActorFuture(), pykka.ThreadingFuture()
    joined = mine.join(theirs)
    assert not joined.done
    mine.set("mine")
    theirs.set("theirs")
    assert joined.get(timeout=1) == ["mine", "theirs"]
    assert joined.done


@both_libraries
def test_a_join_with_pykkas_own_future_is_awaited_in_a_worker_thread(run):
    mine, theirs, progress = ActorFuture(), pykka.ThreadingFuture(), threading.Event()
    mine.set(1)

    async def main():
        progress.set()
        return await mine.join(theirs)

    thread = settle_after(progress, theirs, 2)
    assert run(main) == [1, 2]
    thread.join(TIMEOUT_S)


@both_libraries
def test_a_hook_runs_in_a_worker_thread_when_awaited(run):
    future, threads = ActorFuture(), []
    future.set_get_hook(lambda timeout: (threads.append(threading.current_thread()), timeout)[1])

    async def main():
        return await future

    assert run(main) is None
    assert threads != [threading.current_thread()]
    assert future.get(timeout=3) is None, "the first result is kept"
    assert len(threads) == 1


def test_a_hook_gets_what_is_left_of_the_timeout_and_its_errors_are_not_kept():
    future, timeouts = ActorFuture(), []

    def hook(timeout):
        timeouts.append(timeout)
        if len(timeouts) == 1:
            raise pykka.Timeout("too early")
        return "late"

    future.set_get_hook(hook)
    with pytest.raises(pykka.Timeout):
        future.get(timeout=1)
    assert future.get(timeout=2) == "late"
    assert timeouts[0] == pytest.approx(1, abs=0.2)
    assert timeouts[1] == pytest.approx(2, abs=0.2)


def test_a_hook_that_comes_late_wakes_those_who_wait():
    future, got = ActorFuture(), []
    waiter = in_thread(lambda: got.append(future.get(timeout=TIMEOUT_S)))
    wait_for_getters(future, 1)
    future.set_get_hook(lambda _: "hooked")
    waiter.join(TIMEOUT_S)
    assert got == ["hooked"]


def test_a_future_with_a_hook_of_its_own_cannot_call_back():
    future = ActorFuture()
    future.set_get_hook(lambda _: 1)
    with pytest.raises(DrakkarError, match="the future that its function reads"):
        future.add_done_callback(print)


# In a loop's own thread


@pytest.mark.parametrize(
    "make", [lambda f: f, lambda f: f.map(str), lambda f: f.join(pykka.ThreadingFuture())]
)
def test_get_in_a_loops_own_thread_raises_at_once_instead_of_deadlocking(make):
    future = make(ActorFuture())
    with TrioLoop() as loop, pytest.raises(DeadlockError, match="await it, or use add_done_callback"):
        loop.call(future.get, timeout=TIMEOUT_S)


def test_get_of_a_done_future_is_fine_in_a_loops_own_thread():
    future = ActorFuture()
    future.set(4)
    with TrioLoop() as loop:
        assert loop.call(lambda: future.get() + future.map(int).get(), timeout=TIMEOUT_S) == 8


# Failures that are never read


def warnings_of(caplog):
    gc.collect()
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_failure_that_was_never_read_is_logged_when_the_future_is_deleted(caplog):
    future = ActorFuture()
    future.fail(TroubleError("unseen"), unread="deposit failed")
    del future
    assert warnings_of(caplog) == ["deposit failed, and its future was never read: TroubleError: unseen"]


@pytest.mark.parametrize("look", [lambda f: f.outcome(), lambda f: f.map(str).outcome(), lambda f: f.get()])
def test_a_failure_that_was_read_is_not_logged_again(caplog, look):
    future = ActorFuture()
    future.fail(TroubleError("seen"), unread="deposit failed")
    with contextlib.suppress(TroubleError):
        look(future)
    del future
    assert warnings_of(caplog) == []


def test_a_failure_that_came_late_or_has_no_line_for_the_log_is_not_logged(caplog):
    late = ActorFuture()
    late.set(1)
    assert not late.try_fail(TroubleError("late"), unread="deposit failed")
    quiet = ActorFuture()
    quiet.fail(TroubleError("quiet"))
    del late, quiet
    assert warnings_of(caplog) == []


def test_an_error_for_a_future_has_all_of_its_text_whatever_that_does():
    class Unspeakable(Exception):
        def __str__(self):
            raise ValueError("no text")

    assert in_full(TroubleError("x" * 10_000)) == "TroubleError: " + "x" * 10_000
    assert "Unspeakable" in in_full(Unspeakable())
