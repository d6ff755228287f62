"""A `TableActor` as a node: timers, answers that come later, extensions, what it does for handlers, and peers of this process."""

import logging
import re
import threading
from enum import IntEnum

import pykka
import pytest
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorCrashed, watch
from drakkar.actors.runtime.peers import NO_PEER, OUT_OF_REACH, Phase
from drakkar.actors.runtime.table_actor import EVENTS_DROPPED, TELLS_DROPPED, TableActor
from drakkar.handlers.errors import ConfigError, HandlerTableError, OutcomeUnknown, SystemBusy
from drakkar.handlers.extension import LATER, Extension, handles
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.table import HandlerTable

from tests.actors.runtime.support import TIMEOUT_S, Recorder, wait_until

DO = MessageType.define("test.node.do", 1280)
PING = MessageType.define("test.node.ping", 1281)
PONG = MessageType.define("test.node.pong", 1282)
RING = MessageType.define("test.node.ring", 1283)
ASK = MessageType.define("test.node.ask", 1284)


class State(IntEnum):
    ONLY = 0


def do(node, message):
    """Do what the message says: a function of the node. Its answer is the answer."""
    return message.payload(node)


def table(*extensions, **cells):
    """A table that does what it is told, notes all else, and has these cells too."""
    made = HandlerTable(State)
    made.on(DO)(do)
    made.on(PING)(lambda node, message: node.reply(message, PONG, hint=message.hint))
    for type_ in (PONG, RING, MessageType.PEER_UP, MessageType.PEER_DOWN):
        made.on(type_)(note)
    for name, handler in cells.items():
        made.on(MessageType[f"test.node.{name}"])(handler)
    made.use(*extensions)
    return made


def note(node, message):
    node.notes.append((message.type, message.sender, message.hint))
    node.noted.set()


class Node(TableActor):
    state = State.ONLY
    handlers = table()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, tick_interval=kwargs.pop("tick_interval", 0.01), **kwargs)
        self.notes, self.noted = [], threading.Event()


def run(ref, function):
    """Call a function of the node in a handler of it."""
    return ref.ask(Message(DO, payload=function), timeout=TIMEOUT_S)


def notes(ref, count):
    """Wait until the node has noted so much, and return it."""
    wait_until(lambda: len(run(ref, lambda node: list(node.notes))) >= count)
    return run(ref, lambda node: list(node.notes))


@pytest.fixture
def node(loop):
    return Node.start(loop=loop)


# ---- timers


def test_a_timer_rings_in_the_actors_own_turn(node):
    threads = []

    def rings(node):
        node.after(1, Message(RING, hint=5))
        threads.append(threading.get_ident())

    run(node, rings)
    assert notes(node, 1) == [(RING, "Node", 5)]


def test_one_that_repeats_rings_until_it_is_cancelled(node):
    timers = []
    run(node, lambda node: timers.append(node.every(1, Message(RING))))
    assert len(notes(node, 3)) >= 3
    run(node, lambda node: timers[0].cancel())
    rung = len(notes(node, 0))
    ticks = run(node, lambda node: node.tick_count)
    wait_until(lambda: run(node, lambda node: node.tick_count) > ticks + 3)
    assert len(notes(node, 0)) == rung


def test_timers_of_extensions_run_from_the_start(loop):
    class Clock(Extension):
        def __init__(self, node):
            self.node, self.rung = node, threading.Event()
            node.after(2, Message(ASK))

        @handles(ASK)
        def ring(self, message):
            self.node.rung.set()

    class WithClock(Node):
        rung = threading.Event()

    WithClock.start(handlers=table(Clock), loop=loop)
    assert WithClock.rung.wait(TIMEOUT_S)


def test_the_time_passes_for_one_without_timers_too(node):
    before = run(node, lambda node: node.tick_count)
    wait_until(lambda: run(node, lambda node: node.tick_count) > before + 2)


def test_a_node_without_timers_takes_no_turns(loop):
    node = Node.start(loop=loop, tick_interval=0.001)
    run(node, lambda node: node.after(1, Message(RING)))
    notes(node, 1)
    turns = loop.turns
    threading.Event().wait(0.1)  # a hundred ticks
    assert loop.turns - turns <= 2


def test_a_timer_whose_handler_fails_ends_nobody_and_is_logged(loop, caplog):
    def fail(node, message):
        raise ZeroDivisionError

    node = Node.start(handlers=table(ask=fail), loop=loop)
    with caplog.at_level(logging.ERROR):
        run(node, lambda node: node.after(1, Message(ASK)))
        wait_until(lambda: "goes on, though its handler of test.node.ask has failed" in caplog.text)
    assert run(node, lambda node: node.tally.failed[State.ONLY, ASK]) == 1
    assert node.is_alive()


@pytest.mark.parametrize("interval", [0, 0.0001, 61, "soon"])
def test_a_tick_has_its_bounds(loop, interval):
    with pytest.raises(ConfigError, match="tick_interval"):
        Node.start(loop=loop, tick_interval=interval)


# ---- answers


def test_an_answer_may_come_later(loop):
    asked = []

    def later(node, message):
        asked.append(message)
        return LATER

    node = Node.start(handlers=table(ask=later), loop=loop)
    future = node.ask(Message(ASK), block=False)
    other = node.ask(Message(ASK), block=False)
    run(node, lambda node: node.reply(asked[1], {"seen": 2}))
    assert other.get(timeout=TIMEOUT_S) == {"seen": 2}
    assert not future.done
    run(node, lambda node: node.reply(asked[0], None))
    assert future.get(timeout=TIMEOUT_S) is None


def test_or_in_the_same_turn_or_from_a_timer(loop):
    class Slow(Extension):
        def __init__(self, node):
            self.node = node

        @handles(ASK)
        def answer(self, message):
            if message.hint:
                self.node.reply(message, "at once")
            else:
                self.waiting = message
                self.node.after(1, Message(RING))

        @handles(RING, replace=True)
        def ring(self, message):
            self.node.reply(self.waiting, "later")

    node = Node.start(handlers=table(Slow), loop=loop)
    assert node.ask(Message(ASK, hint=1), timeout=TIMEOUT_S) == "at once"
    assert node.ask(Message(ASK), timeout=TIMEOUT_S) == "later"


def test_a_told_message_that_is_answered_later_keeps_nothing(loop):
    node = Node.start(handlers=table(ask=lambda node, message: LATER), loop=loop)
    assert run(node, lambda node: 1) == 1
    node.tell(Message(ASK))
    assert run(node, lambda node: len(node._actor_asks)) == 0


def test_one_that_a_handler_never_answers_ends_and_names_the_handler(loop):
    def forget(node, message):
        return LATER

    class Forgetful(Node):
        answer_timeout = 0.05

    node = Forgetful.start(handlers=table(ask=forget), loop=loop)
    with pytest.raises(
        OutcomeUnknown, match=r"forget, which Forgetful .* has for test\.node\.ask, has not replied"
    ):
        node.ask(Message(ASK), timeout=TIMEOUT_S)
    assert run(node, lambda node: len(node._actor_asks)) == 0
    turns = loop.turns
    threading.Event().wait(0.1)  # ten ticks
    assert loop.turns - turns <= 2, "nothing is open, so no time is watched"


def test_too_many_open_questions_are_refused_before_a_handler_takes_them(loop, monkeypatch):
    monkeypatch.setattr("drakkar.actors.runtime.open_asks.MAX_ASKS", 1)
    taken = []
    node = Node.start(handlers=table(ask=lambda node, message: taken.append(message) or LATER), loop=loop)
    node.ask(Message(ASK), block=False)
    with pytest.raises(SystemBusy):
        node.ask(Message(ASK), timeout=TIMEOUT_S)
    assert node.is_alive()
    assert len(taken) == 1


def test_a_stop_ends_open_questions(loop):
    node = Node.start(handlers=table(ask=lambda node, message: LATER), loop=loop)
    future = node.ask(Message(ASK), block=False)
    run(node, lambda node: None)
    node.stop()
    with pytest.raises(pykka.ActorDeadError, match="stopped before it had answered"):
        future.get(timeout=TIMEOUT_S)


# ---- mistakes


def failing(error):
    def fail(node, message):
        raise error

    return fail


def test_a_told_message_whose_handler_fails_ends_nobody(loop, caplog):
    node = Node.start(handlers=table(ask=failing(ZeroDivisionError("oh"))), loop=loop)
    for _ in range(4):
        node.tell(Message(ASK))
    assert run(node, lambda node: node.tally.failed[State.ONLY, ASK]) == 4
    lines = [record for record in caplog.records if "goes on, though" in record.getMessage()]
    assert len(lines) == 3, "the first, the second and the fourth"


def test_one_that_was_asked_is_told_and_not_the_log(loop, caplog):
    node = Node.start(handlers=table(ask=failing(ZeroDivisionError("oh"))), loop=loop)
    with pytest.raises(ZeroDivisionError):
        node.ask(Message(ASK), timeout=TIMEOUT_S)
    assert run(node, lambda node: node.tally.failed[State.ONLY, ASK]) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_where_the_handler_is_fatal_it_ends_the_node(loop):
    made = table()
    made.on(ASK, fatal=True)(failing(ZeroDivisionError("oh")))
    node = Node.start(handlers=made, loop=loop)
    ended = threading.Event()
    watch(node, lambda died: ended.set())
    node.tell(Message(ASK))
    assert ended.wait(TIMEOUT_S)


def test_even_where_an_asker_is_told(loop):
    made = table()
    made.on(ASK, fatal=True)(failing(ZeroDivisionError("oh")))
    node = Node.start(handlers=made, loop=loop)
    died = []
    ended = threading.Event()
    watch(node, lambda notice: (died.append(notice), ended.set()))
    with pytest.raises(ZeroDivisionError):
        node.ask(Message(ASK), timeout=TIMEOUT_S)
    assert ended.wait(TIMEOUT_S)
    assert isinstance(died[0].reason.__cause__, ZeroDivisionError)


def test_one_in_a_state_that_its_table_does_not_have_ends(loop):
    node = Node.start(loop=loop)
    run(node, lambda node: setattr(node, "state", "dark"))
    node.tell(Message(RING))
    wait_until(lambda: not node.is_alive())


def test_a_timer_ends_it_too(loop):
    node = Node.start(loop=loop)

    def darken(node):
        node.after(1, Message(RING))
        node.state = "dark"

    run(node, darken)
    wait_until(lambda: not node.is_alive())


def test_a_guard_that_fails_ends_the_node(loop):
    made = table()
    made.guard(failing(ZeroDivisionError("oh")))
    node = Node.start(handlers=made, loop=loop)
    node.tell(Message(RING))
    wait_until(lambda: not node.is_alive())


def test_a_call_by_a_proxy_that_fails_ends_it_as_ever(loop):
    class Callable(Node):
        def crash(self):
            raise ZeroDivisionError

    node = Callable.start(loop=loop)
    node.proxy().crash.defer()
    wait_until(lambda: not node.is_alive())


def test_open_questions_hear_of_the_failure(loop):
    made = table(ask=lambda node, message: LATER)
    made.on(RING, fatal=True, replace=True)(failing(ZeroDivisionError("oh")))
    node = Node.start(handlers=made, loop=loop)
    future = node.ask(Message(ASK), block=False)
    node.tell(Message(RING))
    with pytest.raises(ActorCrashed, match="before it had answered: ZeroDivisionError: oh"):
        future.get(timeout=TIMEOUT_S)


# ---- effects


def test_what_handlers_tell_other_actors_is_told_after_the_turn(loop, node):
    seen = []
    recorder = Recorder.start(seen, loop=loop)
    run(node, lambda node: [node.tell(recorder, number) for number in range(3)] and None)
    wait_until(lambda: len(seen) == 3)
    assert seen == [0, 1, 2]


def test_one_that_has_ended_is_told_nothing_and_ends_nobody(loop, node, caplog):
    recorder = Recorder.start([], loop=loop)
    recorder.stop()
    run(node, lambda node: node.tell(recorder, 1))
    wait_until(lambda: node.proxy().counts.get(timeout=TIMEOUT_S)[TELLS_DROPPED] == 1)
    assert "could not tell" in caplog.text


def test_events_that_nobody_can_hear_are_counted_and_told_once(node, caplog):
    run(node, lambda node: [node.publish_event(number) for number in range(3)] and None)
    wait_until(lambda: node.proxy().counts.get(timeout=TIMEOUT_S)[EVENTS_DROPPED] == 3)
    assert caplog.text.count("publishes events, and nobody can hear them: start it with host=") == 1


def test_what_is_sent_as_it_stops_is_sent(loop):
    seen = []
    recorder = Recorder.start(seen, loop=loop)

    class Polite(Node):
        def on_stop(self):
            self.tell(recorder, "bye")

    Polite.start(loop=loop).stop()
    wait_until(lambda: seen == ["bye"])


def test_a_class_with_work_in_bulk_need_not_know_of_it(loop):
    seen = []
    recorder = Recorder.start(seen, loop=loop)

    class Bulk(Node):
        def after_batch(self):
            if self.notes:
                self.tell(recorder, len(self.notes))

    Bulk.start(loop=loop).tell(Message(RING))
    wait_until(lambda: seen)


def test_it_shows_its_table_with_what_became_of_messages(node):
    run(node, lambda node: 1)
    node.tell(Message(RING))
    assert re.search(r"test\.node\.ring .*note 1", node.proxy().table().get(timeout=TIMEOUT_S))


# ---- extensions


def test_each_actor_has_an_extension_of_its_own(loop):
    class Count(Extension):
        def __init__(self, node):
            self.seen = 0

        @handles(DO, wrap=True)
        def count(self, message, inner):
            self.seen += 1
            return inner(message)

    made = table(Count)
    one, other = Node.start(handlers=made, loop=loop), Node.start(handlers=made, loop=loop)
    run(one, lambda node: "something")
    assert run(one, lambda node: node.extension(Count).seen) == 2
    assert run(other, lambda node: node.extension(Count).seen) == 1


def test_one_that_cannot_be_made_is_told_to_who_starts_the_actor(loop):
    class Broken(Extension):
        def __init__(self, node):
            raise ZeroDivisionError("oh")

        @handles(ASK)
        def answer(self, message):
            return 1

    with pytest.raises(HandlerTableError, match=r"Broken.*oh"):
        Node.start(handlers=table(Broken), loop=loop)


# ---- peers of this process


def pair(loop, **options):
    one = Node.start(name="one", loop=loop)
    two = Node.start(name="two", peers={"one": one}, loop=loop, **options)
    one.proxy().add_peer("two", two).get(timeout=TIMEOUT_S)
    return one, two


def types(noted):
    return [type_ for type_, _, _ in noted]


def test_peers_are_greeted_and_answer_each_other(loop):
    one, two = pair(loop)
    assert notes(one, 1) == [(MessageType.PEER_UP, "two", 0)]
    run(one, lambda node: [node.send(Message(PING, to="two", hint=number)) for number in (1, 2, 3)] and None)
    assert notes(one, 4)[1:] == [(PONG, "two", 1), (PONG, "two", 2), (PONG, "two", 3)]
    assert notes(two, 1) == [(MessageType.PEER_UP, "one", 0)]


def test_what_is_sent_before_the_peer_is_found_is_not_lost(loop):
    one = Node.start(name="one", loop=loop)

    def begin(node):
        node.add_peer("two", two)
        node.send(Message(PING, to="two", hint=7))

    two = Node.start(name="two", peers={"one": one}, loop=loop)
    run(one, begin)
    assert (PONG, "two", 7) in notes(one, 2)


def test_a_peer_that_stops_is_told_behind_all_that_it_sent(loop):
    one, two = pair(loop)
    notes(one, 1)
    notes(two, 1)
    run(two, lambda node: [node.send(Message(RING, to="one", hint=number)) for number in range(50)] and None)
    two.stop()
    noted = notes(one, 52)
    assert noted[1:51] == [(RING, "two", number) for number in range(50)]
    assert types(noted[51:]) == [MessageType.PEER_DOWN]


def test_what_is_sent_to_one_that_has_ended_is_counted(loop):
    one, two = pair(loop)
    two.stop()
    notes(one, 2)
    run(one, lambda node: node.send(Message(PING, to="two")))
    wait_until(lambda: one.proxy().counts.get(timeout=TIMEOUT_S)[OUT_OF_REACH] == 1)
    assert run(one, lambda node: node.peer_links.phases()) == {Phase.DOWN: 1}


def test_a_mistake_with_the_news_of_a_peer_ends_nobody(loop):
    made = table()
    made.on(MessageType.PEER_DOWN, replace=True)(failing(ZeroDivisionError("oh")))
    one = Node.start(name="one", handlers=made, loop=loop)
    two = Node.start(name="two", loop=loop)
    run(one, lambda node: node.add_peer("two", two))
    two.stop()
    wait_until(lambda: run(one, lambda node: node.tally.failed[State.ONLY, MessageType.PEER_DOWN]) == 1)


def test_a_table_that_has_no_rows_for_news_ignores_it(loop):
    plain = HandlerTable(State)
    plain.on(DO)(do)
    two = Node.start(name="two", loop=loop)
    one = Node.start(name="one", peers={"two": two}, handlers=plain, loop=loop)
    wait_until(lambda: run(one, lambda node: node.tally.ignored[State.ONLY, MessageType.PEER_UP]) == 1)


def test_a_node_on_another_loop_may_be_a_peer(loop):
    with TrioLoop() as other:
        one = Node.start(name="one", loop=loop)
        two = Node.start(name="two", peers={"one": one}, loop=other)
        run(one, lambda node: node.add_peer("two", two))
        run(two, lambda node: node.send(Message(PING, to="one", hint=3)))
        assert (PONG, "one", 3) in notes(two, 2)
    assert types(notes(one, 2))[-1] is MessageType.PEER_DOWN


def test_an_answer_to_a_peer_is_a_message(loop):
    made = table()
    made.on(PING, replace=True)(lambda node, message: node.reply(message, {"no": "type"}))
    one, two = pair(loop, handlers=made)
    run(one, lambda node: node.send(Message(PING, to="two")))
    wait_until(lambda: run(two, lambda node: node.tally.failed[State.ONLY, PING]) == 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            {"peers": {"two": "10.0.0.2:7000"}}, "start it with host=", id="an address without a host"
        ),
        pytest.param({"peers": {"two": 5}}, "must be the address of its host", id="no place"),
        pytest.param({"host": "10.0.0.2:7000"}, "must be a NodeHost", id="no host"),
        pytest.param({"name": ""}, "must be a string that is not empty", id="no name"),
    ],
)
def test_what_cannot_be_is_told_to_who_starts_the_actor(loop, options, said):
    with pytest.raises(ConfigError, match=said):
        Node.start(loop=loop, **options)


def test_names_are_of_one_node_each(loop):
    one, two = pair(loop)
    with pytest.raises(ConfigError, match="names of other nodes"):
        Node.start(name="one", peers={"one": one}, loop=loop)
    for name in ("two", "one"):
        with pytest.raises(ConfigError, match="'one' itself, or of a peer"):
            run(one, lambda node, name=name: node.add_peer(name, two))


def test_another_actor_may_have_the_name_of_a_peer_that_has_ended(loop):
    one, two = pair(loop)
    two.stop()
    notes(one, 2)
    again = Node.start(name="two", peers={"one": one}, loop=loop)
    run(one, lambda node: node.add_peer("two", again))
    run(one, lambda node: node.send(Message(PING, to="two", hint=7)))
    noted = notes(one, 4)
    assert types(noted[:3]) == [MessageType.PEER_UP, MessageType.PEER_DOWN, MessageType.PEER_UP]
    assert noted[3] == (PONG, "two", 7)
    assert run(one, lambda node: node.peers) == ("two",)
    with pytest.raises(ConfigError, match="a peer that it has already"):
        run(one, lambda node: node.add_peer("two", two))


def test_nobody_takes_letters_of_strangers(loop, node):
    stranger = Node.start(name="stranger", peers={"Node": node}, loop=loop)
    run(stranger, lambda node: node.send(Message(RING, to="Node")))
    wait_until(lambda: node.proxy().counts.get(timeout=TIMEOUT_S)[NO_PEER] == 1)
    assert notes(node, 0) == []
