"""A forked child has none of its parent's loops and actors, is told so at once, and may have its own."""

import asyncio
import os
import threading

import pykka
import pytest
import trio
from drakkar.actors import ActorFuture, ForkedError, TrioActor, TrioLoop, watch
from drakkar.actors.runtime.workers import WorkerPool

from tests.actors.forking import in_child, open_files, told

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
]
FORKED = "ForkedError"


class Echo(TrioActor):
    number = 7

    def on_receive(self, message):
        return message

    def fork(self):
        """What a child says that is forked in the loop's thread."""
        return in_child(lambda: Echo.start(loop=TrioLoop().start()).ask("new", timeout=5))


@pytest.fixture
def loop():
    with TrioLoop() as loop:
        yield loop


def never():
    return ActorFuture()


def waits_at_once(future, *, of=FORKED):
    """That each way to wait for a future tells at once, in a child."""

    async def wait():
        await future

    return (
        told(
            future.get,
            lambda: future.get(timeout=30),
            lambda: future.add_done_callback(print),
            future.outcome,
            lambda: trio.run(wait),
            lambda: asyncio.run(wait()),
        )
        == [of] * 6
    )


def test_futures_of_before_the_fork_tell_at_once(loop):
    pending, late = never(), never()
    mapped, joined = pending.map(str), pending.join(never())
    done = never()
    done.set(5)
    failed = never()
    failed.fail(OSError("no"))
    assert in_child(
        lambda: [
            waits_at_once(pending),
            waits_at_once(mapped),
            waits_at_once(joined),
            done.get(),
            done.map(str).get(),
            told(failed.get),
            late.try_set(1) and late.get(),
        ]
    ) == [True, True, True, 5, "5", ["OSError"], 1]
    pending.set(3)
    assert mapped.get() == "3"


def test_the_error_names_both_processes_and_says_that_the_outcome_is_unknown(loop):
    future = never()
    parent = os.getpid()

    def ask():
        try:
            future.get()
        except ForkedError as error:
            return [error.pid == os.getpid(), error.owner, error.outcome_known, str(error)]

    own, owner, known, text = in_child(ask)
    assert (own, owner, known) == (True, parent, False)
    assert f"was forked from process {parent}, which runs" in text


def test_futures_that_a_child_makes_wait_for_its_own_threads(loop):
    def use():
        future = never()
        threading.Timer(0.05, future.set, [9]).start()
        return [future.get(timeout=30), told(lambda: never().get(timeout=0.01))]

    assert in_child(use) == [9, ["Timeout"]]


def test_a_lock_that_another_thread_of_the_parent_held_does_not_stop_a_child(loop):
    source = never()
    mapped = source.map(str)
    reader = threading.Thread(target=mapped.get)
    opaque, reads, go_on = never(), threading.Event(), threading.Event()

    def read(_timeout):
        reads.set()
        go_on.wait()
        return 4

    opaque.set_get_hook(read)
    slow = threading.Thread(target=opaque.get)
    for thread in (reader, slow):
        thread.start()
    reads.wait()

    def ask():
        go_on.set()
        return [told(mapped.get), opaque.get(timeout=30)]

    try:
        assert in_child(ask) == [[FORKED], 4]
    finally:
        go_on.set()
        source.set(1)
        reader.join()
        slow.join()


def test_refs_proxies_and_loops_of_the_parent_tell_at_once(loop):
    ref = Echo.start(loop=loop)
    proxy = ref.proxy()
    ended = Echo.start(loop=loop)
    ended.stop()
    task = loop.spawn(trio.sleep_forever)

    def use():
        return [
            told(
                lambda: ref.tell(1),
                lambda: ref.ask(1),
                lambda: ref.ask(1, block=False),
                ref.proxy,
                ref.stop,
                lambda: ref.stop(block=False),
                lambda: proxy.number,
                lambda: ended.ask(1),
                lambda: watch(ref, print),
                lambda: loop.call(int),
                lambda: loop.spawn(trio.sleep, 0),
                lambda: loop.run_soon(int),
                loop.start,
                loop.stop,
                task.cancel,
                task.finished.get,
                lambda: Echo.start(loop=loop),
            ),
            [ref.is_alive(), loop.running, loop.in_loop(), ref in pykka.ActorRegistry.get_all()],
        ]

    assert in_child(use) == [[FORKED] * 17, [False] * 4]
    assert ref.ask("still there") == "still there"


def test_a_full_inbox_and_a_held_lane_are_no_other_answer(loop):
    class Small(Echo):
        inbox_capacity = 1

    started, go_on = threading.Event(), threading.Event()
    loop.run_soon(lambda: (started.set(), go_on.wait()))
    started.wait()
    ref = Small.start(loop=loop)
    ref.tell(1)
    try:
        assert in_child(lambda: told(lambda: ref.tell(2), lambda: ref.ask(2))) == [FORKED] * 2
    finally:
        go_on.set()


def test_a_child_has_loops_of_its_own_and_its_child_too(loop):
    ref = Echo.start(loop=loop)
    default = Echo.start()

    def use():
        child_loop = TrioLoop().start()
        mine, pending = Echo.start(loop=child_loop), never()
        stopped = told(lambda: pykka.ActorRegistry.stop_all(timeout=10))
        mine = Echo.start(loop=child_loop)
        below = in_child(
            lambda: [
                told(lambda: ref.ask(1), lambda: mine.ask(1), pending.get, default.ask),
                Echo.start(loop=TrioLoop().start()).ask(3, timeout=30),
            ]
        )
        return [Echo.start().ask(1, timeout=30), mine.ask(2, timeout=30), stopped, below]

    try:
        assert in_child(use) == [1, 2, [None], [[FORKED, FORKED, FORKED, "TypeError"], 3]]
    finally:
        TrioLoop.default().stop()


def test_a_handler_may_fork(loop):
    proxy = Echo.start(loop=loop).proxy()
    assert proxy.fork().get(timeout=30) == "new"
    assert proxy.number.get(timeout=30) == 7


def test_a_child_that_comes_back_into_the_loop_ends_without_a_word(loop, capfd):
    children = []

    class Forks(TrioActor):
        def on_receive(self, message):
            child = os.fork()
            if child:
                children.append(child)

    Forks.start(loop=loop).ask("fork", timeout=30)
    os.waitpid(children[0], 0)
    assert capfd.readouterr().err == ""


def test_a_child_that_leaves_the_block_of_a_loop_stops_nothing(loop):
    def leave():
        with loop:
            pass
        return told(loop.__enter__)

    # `with` asks for the start, which a child has not got.
    assert in_child(lambda: told(leave)) == [FORKED]
    assert in_child(lambda: loop.__exit__(None, None, None)) is None
    assert loop.running


def test_a_child_keeps_nothing_open_of_a_loop():
    before = open_files()
    with TrioLoop() as loop:
        Echo.start(loop=loop).ask(1)
        assert "anon_inode:[eventpoll]" in (open_files().items() - before.items()).__str__()

        def left():
            return sorted(
                name for number, name in open_files().items() - before.items() if "pipe" not in name
            )

        assert in_child(left) == []
        assert Echo.start(loop=loop).ask(2) == 2


def test_workers_of_the_parent_are_not_stopped_by_a_child():
    pool = WorkerPool(2)
    try:
        assert in_child(lambda: [len(pykka.ActorRegistry.get_all()), pykka.ActorRegistry.stop_all()]) == [
            0,
            [],
        ]
    finally:
        assert pool.stop() == 0
