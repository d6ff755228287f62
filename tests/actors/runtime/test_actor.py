"""An actor on a loop: all that a pykka user knows holds, and what it adds."""

import contextlib
import queue
import threading
from enum import IntEnum
from importlib import metadata

import pykka
import pytest
import trio
import trio.lowlevel
from drakkar.actors.names.directory_server import DirectoryServer
from drakkar.actors.names.singleton_keeper import SingletonKeeper
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.runtime import actor as trio_actor
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.supervisor import Supervisor
from drakkar.actors.runtime.table_actor import TableActor
from drakkar.handlers.errors import ConfigError, DeadlockError, SystemBusy
from drakkar.handlers.services import NodeServices
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.table_node import TableNode
from pykka._envelope import Envelope

from tests.actors.runtime.support import TIMEOUT_S, Echo, Meddled, Recorder, TroubleError, wait_until

# What pykka users know


class Station(TrioActor):
    volume = 3

    def __init__(self, name, **kwargs):
        super().__init__(**kwargs)
        self.name = name
        self.player = pykka.traversable(Player())
        self.threads = []

    def on_start(self):
        self.threads.append(threading.current_thread())

    def rename(self, name, *, shout=False):
        self.name = name.upper() if shout else name
        self.threads.append(threading.current_thread())

    def fail(self):
        raise TroubleError("as asked")


class Player:
    def __init__(self):
        self.song = None

    def play(self, song):
        self.song = song
        return f"playing {song}"


def test_proxies_reach_attributes_methods_and_traversable_objects(loop):
    station = Station.start("one", loop=loop).proxy()
    assert station.name.get(timeout=TIMEOUT_S) == "one"
    assert station.rename("two", shout=True).get(timeout=TIMEOUT_S) is None
    assert station.name.get(timeout=TIMEOUT_S) == "TWO"
    station.volume = 11
    assert station.volume.get(timeout=TIMEOUT_S) == 11
    assert station.player.play("song").get(timeout=TIMEOUT_S) == "playing song"
    assert station.player.song.get(timeout=TIMEOUT_S) == "song"
    station.rename.defer("three")
    assert station.name.get(timeout=TIMEOUT_S) == "three"
    with pytest.raises(TroubleError, match="as asked"):
        station.fail().get(timeout=TIMEOUT_S)
    assert {thread.name for thread in station.threads.get(timeout=TIMEOUT_S)} == {loop.name}


@pytest.mark.parametrize("message", ["text", None, 0, {"a": [1]}])
def test_what_is_asked_is_answered(loop, message):
    ref = Echo.start(loop=loop)
    assert ref.ask(message, timeout=TIMEOUT_S) == message
    assert ref.ask(message, block=False).get(timeout=TIMEOUT_S) == message


def test_messages_are_handled_in_order(loop):
    seen = []
    ref = Recorder.start(seen, loop=loop)
    for number in range(5000):
        ref.tell(number)
    assert ref.ask("last", timeout=TIMEOUT_S) == 5001
    assert seen[:-1] == list(range(5000))


def test_messages_that_were_sent_before_the_start_wait_for_it(loop):
    class Eager(Recorder):
        def __init__(self, seen, **kwargs):
            super().__init__(seen, **kwargs)
            self.actor_ref.tell("from the constructor")

        def on_start(self):
            self._seen.append("started")

    seen = []
    Eager.start(seen, loop=loop).ask("asked", timeout=TIMEOUT_S)
    assert seen == ["started", "from the constructor", "asked"]


def test_the_registry_knows_them_and_stop_all_stops_the_newest_first(loop):
    class Named(Recorder):
        def on_stop(self):
            self._seen.append(self.actor_urn)

    seen = []
    refs = [Named.start(seen, loop=loop) for _ in range(3)]
    assert pykka.ActorRegistry.get_by_class(Named) == refs
    assert pykka.ActorRegistry.get_by_urn(refs[1].actor_urn) is refs[1]
    assert pykka.ActorRegistry.stop_all(timeout=TIMEOUT_S) == [True] * 3
    assert seen == [ref.actor_urn for ref in reversed(refs)]
    assert pykka.ActorRegistry.get_all() == []


def test_broadcast_reaches_them(loop):
    seen = []
    refs = [Recorder.start(seen, loop=loop) for _ in range(3)]
    pykka.ActorRegistry.broadcast("all", Recorder)
    for ref in refs:
        ref.ask("done", timeout=TIMEOUT_S)
    assert seen.count("all") == 3


def test_stop_returns_true_once_and_false_for_the_dead(loop):
    ref = Echo.start(loop=loop)
    assert ref.stop(timeout=TIMEOUT_S) is True
    assert not ref.is_alive()
    assert ref.stop(timeout=TIMEOUT_S) is False
    assert ref.stop(block=False).get(timeout=TIMEOUT_S) is False


def test_messages_before_a_stop_are_handled_and_those_after_it_are_refused(loop, held):
    seen = []
    ref = Recorder.start(seen, loop=loop)
    before = ref.ask("before", block=False)
    stops = [ref.stop(block=False), ref.stop(block=False)]
    after = ref.ask("after", block=False)
    ref.tell("lost")
    held.opened.set()
    assert before.get(timeout=TIMEOUT_S) == 1
    assert [stop.get(timeout=TIMEOUT_S) for stop in stops] == [True, True]
    with pytest.raises(pykka.ActorDeadError, match="before handling"):
        after.get(timeout=TIMEOUT_S)
    assert seen == ["before"]
    assert loop.dead_letters == 1


def test_a_stopped_actor_takes_nothing(loop):
    ref = Echo.start(loop=loop)
    ref.stop()
    with pytest.raises(pykka.ActorDeadError, match=r"Echo .* has ended"):
        ref.tell("too late")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("too late")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("too late", block=False).get(timeout=TIMEOUT_S)


def test_pykkas_own_actors_and_these_talk_to_each_other(loop):
    class Threaded(pykka.ThreadingActor):
        def on_receive(self, message):
            return mine.ask(message, timeout=TIMEOUT_S)

    mine = Echo.start(loop=loop)
    theirs = Threaded.start()
    assert theirs.ask("hello", timeout=TIMEOUT_S) == "hello"

    async def ask():
        return await trio.to_thread.run_sync(theirs.ask, "from a task")

    assert loop.call(ask, timeout=TIMEOUT_S) == "from a task"
    theirs.stop()


def test_an_unexpected_message_is_logged_without_its_content(loop, caplog):
    class Huge:
        def __repr__(self):
            raise AssertionError("the whole state machine")

    class Deaf(TrioActor):
        pass

    assert Deaf.start(loop=loop).ask(Huge(), timeout=TIMEOUT_S) is None
    assert "unexpected message for Deaf" in caplog.text
    assert "a test_an_unexpected" in caplog.text


def test_a_constructor_that_forgets_ours_is_told_so(loop):
    class Forgetful(TrioActor):
        def __init__(self):
            pass

    with pytest.raises(AssertionError, match="forget to call super"):
        Forgetful.start()


@pytest.mark.parametrize(
    ("attributes", "options", "named"),
    [
        ({"inbox_capacity": 0}, {}, "Wrong.inbox_capacity=0"),
        ({"batch": 0}, {}, "Wrong.batch=0"),
        ({}, {"loop": "mine"}, "loop="),
    ],
)
def test_wrong_options_are_named(attributes, options, named):
    wrong = type("Wrong", (TrioActor,), attributes)
    with pytest.raises(ConfigError, match=named):
        wrong.start(**options)


def test_what_is_used_of_pykka_below_its_surface_is_as_it_was_seen():
    """If this fails with a new pykka, read its _actor.py, _ref.py and _envelope.py before you change it."""
    assert metadata.version("pykka").startswith("4.5.")
    trio_actor._check_pykka()
    names = {
        pykka.Actor.__init__: {
            "ActorRef",
            "_actor_ref",
            "_create_actor_inbox",
            "actor_inbox",
            "actor_stopped",
        },
        pykka.Actor.start.__func__: {"ActorRegistry", "actor_ref", "_start_actor_loop"},
        pykka.Actor._handle_receive: {"ProxyCall", "ProxyGetAttr", "ProxySetAttr", "on_receive"},
        pykka.Actor._handle_failure: {"ActorRegistry", "actor_stopped", "error"},
        pykka.ActorRef.ask: {"_create_future", "is_alive", "set_exception", "actor_inbox", "put", "Envelope"},
    }
    for function, expected in names.items():
        assert expected <= set(function.__code__.co_names), function
    assert Envelope.__slots__ == ["message", "reply_to"]
    assert issubclass(Station, pykka.Actor)
    assert isinstance(Inbox("mine", 1).termination.end, pykka.Future)


# Waiting in the loop's own thread


@pytest.mark.parametrize("wait", ["ask", "stop", "get", "proxy"])
def test_a_handler_that_would_wait_for_an_actor_of_its_loop_gets_an_error_at_once(loop, wait):
    class Impatient(TrioActor):
        def on_receive(self, ref):
            if wait == "ask":
                ref.ask("me", timeout=TIMEOUT_S)
            elif wait == "stop":
                ref.stop(timeout=TIMEOUT_S)
            elif wait == "get":
                ref.ask("me", block=False).get(timeout=TIMEOUT_S)
            else:
                ref.proxy().volume = 3

    seen = []
    ref = Recorder.start(seen, loop=loop)
    with pytest.raises(DeadlockError, match="whose thread must do what is waited for"):
        Impatient.start(loop=loop).ask(ref, timeout=TIMEOUT_S)
    assert ref.ask("still there", timeout=TIMEOUT_S) == (2 if wait == "get" else 1), (
        "nothing was sent in vain"
    )


# Full inboxes


class Small(Echo):
    inbox_capacity = 3


def test_a_full_inbox_refuses_at_once_and_names_actor_and_bound(loop, held):
    ref = Small.start(loop=loop)
    for _ in range(3):
        ref.tell("x")
    for send in (ref.tell, ref.ask, lambda _: ref.proxy().batch):
        with pytest.raises(SystemBusy, match=r"inbox of Small .* holds 3 messages, and its bound is 3"):
            send("one too many")
    assert ref.actor_inbox.refused == 3
    held.opened.set()
    assert ref.stop(timeout=TIMEOUT_S)


def test_a_full_inbox_still_takes_a_stop(loop, held):
    ref = Small.start(loop=loop)
    answers = [ref.ask(number, block=False) for number in range(3)]
    stopped = ref.stop(block=False)
    held.opened.set()
    assert stopped.get(timeout=TIMEOUT_S) is True
    assert [answer.get(timeout=TIMEOUT_S) for answer in answers] == [0, 1, 2]


def test_room_comes_back_when_messages_are_handled(loop, held):
    ref = Small.start(loop=loop)
    answers = [ref.ask(number, block=False) for number in range(3)]
    held.opened.set()
    pykka.get_all(answers, timeout=TIMEOUT_S)
    assert ref.ask("again", timeout=TIMEOUT_S) == "again"


def test_a_hundred_thousand_questions_without_reading_an_answer_end_in_busy_and_not_in_a_deadlock(loop):
    ref, futures, busy = Echo.start(loop=loop), [], 0
    for number in range(100_000):
        try:
            futures.append(ref.ask(number, block=False))
        except SystemBusy:
            busy += 1
    assert len(pykka.get_all(futures, timeout=TIMEOUT_S)) + busy == 100_000


def test_the_inbox_answers_what_pykka_asks_of_one():
    inbox = Inbox("mine", 2)
    assert inbox.empty()
    inbox.put(Envelope("hello"))
    assert (len(inbox), inbox.empty()) == (1, False)
    assert "1 of 2" in repr(inbox)
    assert inbox.get().message == "hello"
    with pytest.raises(queue.Empty):
        inbox.get()


# Races, acted out


def test_a_message_that_comes_as_the_turn_ends_is_not_overlooked():
    scheduled = []
    inbox = Inbox("mine", 10)
    inbox.queue = Meddled(lambda: inbox.put(Envelope("late")))
    inbox._give_turn = lambda: scheduled.append(inbox)
    inbox.rest()
    assert scheduled == [inbox]


def test_a_question_that_is_put_after_the_inbox_was_emptied_for_the_last_time_is_answered(loop):
    ref = Echo.start(loop=loop)
    ref.stop()
    question = Envelope("late", reply_to=ActorFuture())
    ref.actor_inbox.put(question)
    with pytest.raises(pykka.ActorDeadError, match="has ended"):
        question.reply_to.get(timeout=0)
    with pytest.raises(pykka.ActorDeadError, match="has ended"):
        ref.actor_inbox.put(Envelope("late"))
    assert ref.actor_inbox.empty()


# Many


def test_ten_thousand_actors_live_on_one_thread(loop):
    before = threading.active_count()
    refs = [Echo.start(loop=loop) for _ in range(10_000)]
    answers = [ref.ask(number, block=False) for number, ref in enumerate(refs)]
    assert pykka.get_all(answers, timeout=60) == list(range(10_000))
    assert threading.active_count() <= before
    loop.stop(timeout=60)
    assert pykka.ActorRegistry.get_all() == []


def test_ten_thousand_starts_and_stops_leave_nothing(loop):
    threads = threading.active_count()
    for _ in range(10_000):
        ref = Echo.start(loop=loop)
        ref.tell("hello")
        stopped = ref.stop(block=False)
    assert stopped.get(timeout=60)
    # One whose turn was cut off, since its round was over, ends after the last one.
    wait_until(lambda: not loop._actors)
    assert threading.active_count() <= threads
    assert loop._actors == {}
    assert not loop._scheduler.ready
    assert loop.failures == 0
    assert loop.dead_letters == 0


def test_a_dead_actor_is_freed_without_the_garbage_collector(loop):
    ref = Echo.start(loop=loop)
    weak = ref._actor_weakref
    ref.stop()
    loop.call(int)
    assert weak() is None


def test_every_future_resolves_when_eight_threads_ask_while_the_actor_stops(loop):
    for _ in range(20):
        ref, start, futures = Echo.start(loop=loop), threading.Barrier(9), [[] for _ in range(8)]

        def storm(mine, ref=ref, start=start):
            start.wait(TIMEOUT_S)
            while ref.is_alive():
                with contextlib.suppress(SystemBusy):
                    mine.append(ref.ask("hello", block=False))
            mine += [ref.ask("late", block=False) for _ in range(10)]

        threads = [threading.Thread(target=storm, args=(mine,)) for mine in futures]
        for thread in threads:
            thread.start()
        start.wait(TIMEOUT_S)
        assert ref.stop(timeout=TIMEOUT_S)
        for thread in threads:
            thread.join(TIMEOUT_S)
        for future in (future for mine in futures for future in mine):
            with contextlib.suppress(pykka.ActorDeadError):
                assert future.get(timeout=TIMEOUT_S) == "hello"
        assert ref.actor_inbox.empty()


# What applications name


@pytest.mark.parametrize("kind", [TrioActor, TableActor])
def test_no_private_part_has_a_name_that_an_application_may_choose(loop, kind):
    """`self._answer = 42` must not replace what answers askers: what is private is pykka's, or says so."""
    private = {
        name
        for name in vars(kind)
        if name.startswith("_") and not name.startswith(("__", "_actor_", "_abc_"))
    }
    assert private <= set(dir(pykka.Actor)) | {f"_{kind.__name__}__init__"}
    kept = {name for name in vars(TrioActor(loop=loop)) if name.startswith("_")}
    assert all(name.startswith("_actor_") for name in kept)


def test_a_node_keeps_nothing_under_a_name_that_an_application_may_choose(loop):
    """A table actor is also a node, whose private parts say so."""
    states = IntEnum("states", ["ONLY"])
    actor = TableActor(loop=loop, handlers=HandlerTable(states), state=states.ONLY)
    private = {name for kind in (TableNode, NodeServices) for name in vars(kind)} | vars(actor).keys()
    ours = {name for name in private if name.startswith("_") and not name.startswith("__")}
    assert {name for name in ours if not name.startswith(("_actor_", "_node_"))} == set()
    assert "_node_extensions" in ours


OURS = {
    # The children stop before it does, and those who asked for its stop are answered with its end.
    "Supervisor": {"_stop", "_actor_publish_end"},
    # The first says what became of the replica; a handler may answer later.
    "NodeActor": {"_handle_failure", "_actor_answer"},
    # Its peers are sought when it begins and told when it ends, and what its handlers ask for is done after a turn.
    "TableActor": {
        "_start_actor_loop",
        "_actor_take_turn",
        "_actor_answer",
        "_actor_end_batch",
        "_actor_publish_end",
    },
}
"""The classes of the library that replace parts of `TrioActor`, since they are to."""


def test_no_actor_of_the_library_replaces_a_private_part_of_another_by_chance():
    def heirs(kind):
        return {kind}.union(*(heirs(each) for each in kind.__subclasses__()))

    ours = [each for each in heirs(TrioActor) - {TrioActor} if each.__module__.startswith("drakkar.")]
    replaced = {
        each.__name__: {name for name in vars(each) if name.startswith("_") and not name.startswith("__")}
        & {name for base in each.__mro__[1:] for name in vars(base)} - {"_abc_impl"}
        for each in ours
    }
    assert {name: parts for name, parts in replaced.items() if parts} == OURS
    assert len(ours) >= len({DirectoryServer, SingletonKeeper, NodeActor, Supervisor, TableActor})
