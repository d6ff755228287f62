"""The door of the room, on a transport that does what a test says: hosts that come, go, hang and send nonsense."""

from collections import Counter
from contextlib import suppress

import cbor2
import pytest
from drakkar.actors import watch
from drakkar.actors.remote import asking
from drakkar.actors.remote.calls import LINGER_TICKS, Calls
from drakkar.actors.remote.errors import HostGone, UnknownName
from drakkar.actors.remote.records import (
    Answer,
    Ask,
    Died,
    Failed,
    FailKind,
    Lookup,
    Names,
    Target,
    Tell,
    Unwatch,
    Watch,
    encode,
)
from drakkar.actors.remote.refs import Place, RemoteRef
from drakkar.actors.remote.serving import MANY_ITEMS
from drakkar.actors.remote.values import pack
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.handlers.errors import ConfigError, DrakkarError, OutcomeUnknown, TransportError
from drakkar.transport.frames import FrameError
from drakkar.transport.liveness import HostState
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.remote.fakes import HERE, NOT_SENT, OTHER_RUN, RUN, THERE, Fake, Thread, Wire
from tests.actors.remote.support import PLAIN, RECORDS, REFS

LONG = 60_000


class Host:
    """The calls of a host."""

    def __init__(self):
        self.thread = Thread()
        self.wire = Wire(self.thread)
        self.counters = Counter()
        lines = HostLines("fake:1").of("drakkar.actors.remote")
        self.calls = Calls(self.wire, self.thread, self.counters, lines)

    def ref(self, number=6):
        return RemoteRef(self.calls._asking, Place(THERE, OTHER_RUN, number))

    def ask(self):
        future = self.ref().ask("who", block=False)
        self.thread.run()
        return future

    def publish(self, name="keeper"):
        ref = Fake()
        self.calls.publish(name, ref)
        self.thread.run()
        return ref, Target(RUN, self.calls._published.by_name(name).number)

    def hear(self, *records, address=THERE):
        self.calls.called(address, [cbor2.loads(encode(record)) for record in records])

    def tick(self, count=1):
        for _ in range(count):
            self.calls.tick()
        self.thread.run()


@pytest.fixture
def host():
    return Host()


def packed(value):
    return pack(value, REFS)


def error_of(future):
    assert future.done
    return future.outcome()[1]


# ---- what comes


def test_records_are_handled_in_order_and_answered(host):
    ref, target = host.publish()
    host.hear(Lookup(1, "keeper"), Tell(target, packed("a")), Ask(2, target, LONG, packed("b")))
    assert [ref.take().message for _ in range(2)] == ["a", "b"]
    [found] = host.wire.take()
    assert found.question == 1
    assert host.wire.charged == {}


def test_a_record_that_no_host_sends_is_a_fault_of_its_host_and_those_before_it_count(host):
    ref, target = host.publish()
    rows = [cbor2.loads(encode(Tell(target, packed("before")))), [99], [2, 1, "no target"], [1, "never seen"]]
    with pytest.raises(FrameError):
        host.calls.called(THERE, rows)
    assert ref.take().message == "before"
    assert ref.idle
    assert host.wire.charged == {THERE: 1}, "for the kind that is not known"


def test_what_a_newer_version_adds_does_no_harm(host):
    ref, target = host.publish()
    row = [*cbor2.loads(encode(Tell(target, packed("a")))), "one more field"]
    host.calls.called(THERE, [[1000, "another kind"], row])
    assert ref.take().message == "a"
    assert host.wire.charged == {THERE: 1}


def test_a_message_of_very_many_values_is_charged_with_all_that_came_with_it_though_it_is_of_use(host):
    """Those that came with it would hide what it costs, as the time of each is known as a part of all."""
    ref, target = host.publish()
    host.hear(Tell(target, packed([0] * (MANY_ITEMS - 1))), Tell(target, packed(b"x" * 100_000)))
    assert host.wire.charged == {}
    host.hear(Tell(target, packed("a")), Tell(target, packed([0] * MANY_ITEMS)), Tell(target, packed("b")))
    assert host.wire.charged == {THERE: 3}
    assert [ref.take().message for _ in range(5)][2:] == ["a", [0] * MANY_ITEMS, "b"]


@given(
    st.lists(
        st.one_of(RECORDS.map(encode).map(cbor2.loads), st.lists(PLAIN, min_size=1, max_size=6)), max_size=5
    )
)
def test_whatever_comes_raises_nothing_but_a_fault_of_its_host(rows):
    with suppress(FrameError):
        FUZZED.calls.called(THERE, rows)
    FUZZED.tick()


FUZZED = Host()


# ---- hosts that come and go


def test_the_first_connection_of_a_host_is_no_bad_news(host):
    future = host.ask()
    host.calls.greeted(THERE)
    assert not future.done
    host.calls.parted(THERE)
    assert type(error_of(future)) is OutcomeUnknown
    assert f"the connection from {THERE} was lost" in str(error_of(future))


def test_a_connection_in_place_of_another_ends_what_was_asked_before(host):
    host.calls.greeted(THERE)
    future = host.ask()
    host.calls.greeted(THERE)
    assert "connected anew" in str(error_of(future))
    assert type(error_of(future)) is OutcomeUnknown


def test_what_is_asked_after_a_loss_does_not_end_by_what_is_left_of_it(host):
    """The host has started again, and comes back while its old connection still looks as if it was open."""
    host.calls.greeted(THERE)
    before = host.ask()
    host.calls.unreachable(THERE)
    assert before.done
    after = host.ask()
    host.calls.greeted(THERE)
    assert not after.done
    host.calls.greeted(THERE)
    assert after.done, "this time it was another one that was lost"


def test_a_connection_that_is_heard_on_counts_though_the_other_one_was_lost(host):
    host.calls.greeted(THERE)
    host.calls.unreachable(THERE)
    future = host.ask()
    host.hear(Names(1))
    host.calls.greeted(THERE)
    assert future.done


def test_a_host_that_connects_anew_waits_for_nothing_of_before(host):
    ref, target = host.publish()
    host.calls.greeted(THERE)
    host.hear(Ask(1, target, LONG, packed("a")), Watch(2, target))
    host.wire.take()
    assert host.calls.figures[1::2] == (1, 1)
    host.calls.greeted(THERE)
    ref.take().reply_to.set("for nobody")
    ref.end()
    assert host.wire.take() == []
    assert host.calls.figures[1::2] == (0, 0)


@pytest.mark.parametrize("lost", ["parted", "unreachable"])
def test_a_lost_connection_ends_what_both_sides_wait_for(host, lost):
    ref, target = host.publish()
    died = []
    watch(host.ref(), died.append)
    future = host.ask()
    host.hear(Ask(1, target, LONG, packed("a")))
    host.wire.take()
    getattr(host.calls, lost)(THERE)
    assert isinstance(error_of(future), OutcomeUnknown)
    assert len(died) == 1
    ref.take().reply_to.set("for nobody")
    assert host.wire.take() == []
    assert host.calls.figures[:4] == (0, 0, 0, 0)


def test_records_that_are_handed_back_have_no_effect(host):
    future = host.ask()
    [question] = host.calls._links.of(THERE)._questions.values()
    host.calls.handed_back(THERE, [question.record], NOT_SENT)
    assert isinstance(error_of(future), HostGone)
    host.calls.handed_back("10.9.9.9:1", [b"of nobody"], NOT_SENT)


# ---- liveness


def test_heartbeats_are_exchanged_while_something_is_waited_for_and_some_time_after(host):
    future = host.ask()
    [ask] = [each for each in host.wire.take() if isinstance(each, Ask)]
    assert host.wire.attended == []
    host.tick()
    assert host.wire.attended == [THERE]
    host.hear(Answer(ask.question, packed(1)))
    assert future.get() == 1
    for _ in range(3):  # one question a second, say, neither begins nor ends them
        host.tick(LINGER_TICKS - 1)
        assert host.wire.attended == [THERE]
        host.ask()
        host.tick()
        host.calls.unreachable(THERE)
    host.tick(LINGER_TICKS)
    assert host.wire.attended == [THERE]
    host.tick()
    assert host.wire.attended == []


def test_the_connection_to_a_host_that_waits_for_this_one_is_kept_until_it_has_gone(host):
    """On that the answer goes back. No heartbeats are exchanged, which strangers in any number could ask for."""
    _, target = host.publish()
    host.hear(Ask(1, target, LONG, packed("a")))
    host.tick()
    assert host.wire.kept == {THERE}
    assert host.wire.attended == []
    host.calls.parted(THERE)
    host.tick()
    assert host.wire.kept == set()


def test_what_a_dead_host_was_asked_ends_also_what_it_is_asked_then(host):
    died = []
    watch(host.ref(), died.append)
    [asked] = host.wire.take()
    host.hear(Answer(asked.watch, packed(None)))
    before = host.ask()
    host.tick()
    assert not before.done
    host.wire.states[THERE] = HostState.DEAD
    host.tick()
    assert type(error_of(before)) is OutcomeUnknown
    assert "taken for dead" in str(error_of(before))
    assert [type(notice.reason) for notice in died] == [HostGone]
    after = host.ask()
    watch(host.ref(), died.append)
    host.thread.run()
    host.tick()
    assert after.done
    assert len(died) == 2
    told = [record for record in host.wire.take() if isinstance(record, Unwatch)]
    assert Unwatch(asked.watch) in told, "it may only hang: then it forgets the watch"
    host.wire.states[THERE] = HostState.ALIVE
    alive = host.ask()
    host.tick()
    assert not alive.done


def test_what_is_for_a_dead_host_without_a_connection_waits_for_the_next_attempt_to_connect(host):
    """It has not left, and the host may have been started again: only the transport knows what comes of it."""
    host.wire.states[THERE] = HostState.DEAD
    host.wire.unreachable.add(THERE)
    asked, died = host.ask(), []
    watch(host.ref(), died.append)
    host.thread.run()
    host.tick(3)
    assert not asked.done
    assert not died


@pytest.mark.parametrize("state", [HostState.SUSPECT, HostState.UNKNOWN, HostState.ALIVE])
def test_no_other_state_of_a_host_ends_anything(host, state):
    host.wire.states[THERE] = state
    future = host.ask()
    host.tick(3)
    assert not future.done


def test_a_dead_asker_may_still_get_its_answer(host):
    """Its connection tells whether it is gone. One that was only stopped for a while waits for its answers."""
    ref, target = host.publish()
    host.hear(Ask(1, target, LONG, packed("a")))
    host.wire.states[THERE] = HostState.DEAD
    host.tick(3)
    ref.take().reply_to.set("at last")
    assert [type(record) for record in host.wire.take()] == [Answer]


# ---- actors that end


def test_the_end_of_an_actor_takes_its_name_and_is_told(host):
    ref, target = host.publish()
    host.hear(Watch(1, target), Ask(2, target, LONG, packed("a")))
    host.wire.take()
    ref.end(ValueError("crashed"))
    failed, died = host.wire.take()
    assert (failed.question, failed.kind) == (2, FailKind.DEAD)
    assert isinstance(died, Died)
    assert died.reason.text == "crashed"
    assert host.calls.published == {}
    assert not ref.termination.watched


def test_what_is_unpublished_is_as_good_as_dead_to_others_and_lives_on(host):
    ref, target = host.publish()
    host.hear(Watch(1, target), Ask(2, target, LONG, packed("a")))
    host.wire.take()
    assert host.calls.unpublish("keeper")
    [died] = host.wire.take()
    assert "not published any more" in died.reason.text
    ref.take().reply_to.set("what it was asked before")
    host.hear(Ask(3, target, LONG, packed("b")))
    answer, failed = host.wire.take()
    assert (type(answer), type(failed), failed.kind) == (Answer, Failed, FailKind.DEAD)
    assert not ref.termination.watched, "nothing is left of this host at the actor"
    assert not host.calls.unpublish("keeper")


def test_a_name_that_is_taken_over_still_ends_what_the_one_before_was_asked(host):
    ref, target = host.publish()
    host.hear(Ask(1, target, LONG, packed("a")), Watch(2, target))
    host.wire.take()
    ref.actor_stopped.set()  # the notice of its end is on its way
    second, _ = host.publish()
    host.hear(Ask(3, target, LONG, packed("b")))
    [failed] = host.wire.take()
    assert (failed.question, failed.kind) == (3, FailKind.DEAD)
    ref.end(ValueError("crashed"))
    failed, died = host.wire.take()
    assert (failed.question, failed.kind) == (1, FailKind.DEAD)
    assert died.reason.text == "crashed"
    assert host.calls.published == {"keeper": second}


# ---- at home


def test_a_host_does_not_ask_itself(host):
    ref, _ = host.publish()
    assert host.calls.remote(HERE, "keeper") is ref
    assert host.calls.remote(HERE, "keeper", block=False).get() is ref
    assert host.calls.remote_names(HERE) == ["keeper"]
    with pytest.raises(UnknownName):
        host.calls.remote(HERE, "nobody")
    assert isinstance(error_of(host.calls.remote(HERE, "nobody", block=False)), UnknownName)
    assert host.wire.take() == []
    for timeout in (-1, "3"):
        with pytest.raises(ConfigError, match="timeout"):
            host.calls.remote(HERE, "keeper", timeout=timeout)
    with pytest.raises(TransportError, match="nonsense"):
        host.calls.remote("nonsense", "keeper")
    with pytest.raises(ConfigError, match="printable"):
        host.calls.remote(HERE, "")


@pytest.mark.parametrize("ref", [None, "keeper", Fake, object()])
def test_only_references_are_published(host, ref):
    with pytest.raises(ConfigError, match="of this process"):
        host.calls.publish("keeper", ref)


def test_a_reference_to_an_actor_elsewhere_is_not_published_here(host):
    with pytest.raises(ConfigError, match="of this process"):
        host.calls.publish("keeper", host.ref())


def test_an_acl_ends_the_watches_of_those_whom_it_keeps_out(host):
    host.wire.certified = True
    ref, target = host.publish()
    host.hear(Watch(1, target))
    host.calls.publish("keeper", ref)
    assert [type(record) for record in host.wire.take()] == [Answer]
    host.calls.publish("keeper", ref, acl=["teller.example"])
    assert [type(record) for record in host.wire.take()] == [Failed]


def test_an_acl_needs_certificates(host):
    with pytest.raises(ConfigError, match="give the hosts tls"):
        host.calls.publish("keeper", Fake(), acl=["teller.example"])
    host.wire.certified = True
    host.calls.publish("keeper", Fake(), acl=["teller.example"])


# ---- the end of the host


def test_a_host_that_stops_ends_all_that_it_waits_for_and_takes_nothing_more(host):
    ref, target = host.publish()
    died = []
    watch(host.ref(), died.append)
    sent = host.ask()
    unsent = host.ref().ask("who", block=False)
    host.hear(Ask(1, target, LONG, packed("a")))
    host.calls.close()
    assert type(error_of(sent)) is OutcomeUnknown
    assert isinstance(error_of(unsent), HostGone)
    assert f"this host, {HERE}, has stopped" in str(error_of(unsent))
    assert len(died) == 1
    ref.take().reply_to.set("for nobody")
    for call in (
        lambda: host.ref().tell("hello"),
        lambda: host.ref(99).ask("who"),
        lambda: host.calls.remote(THERE, "keeper"),
        lambda: host.calls.remote_names(THERE, block=False),
        lambda: host.calls.publish("another", Fake()),
        lambda: watch(host.ref(), print),
    ):
        with pytest.raises(HostGone, match="has stopped"):
            call()
    host.thread.run()
    assert not ref.termination.watched
    assert host.calls.published == {}


def test_a_loop_that_has_ended_by_itself_takes_nothing_either(host):
    ref, target = host.publish()
    host.hear(Ask(1, target, LONG, packed("a")))
    host.thread.inside, host.thread.ended = False, True
    ref.take().reply_to.set("for nobody")
    ref.end()
    for call in (lambda: host.ref().ask("who"), lambda: host.calls.publish("another", Fake())):
        with pytest.raises(DrakkarError, match="has ended"):
            call()


def test_figures_say_what_there_is(host):
    _, target = host.publish()
    host.ask()
    watch(host.ref(), print)
    host.hear(Ask(1, target, LONG, packed("a")), Watch(2, target))
    assert host.calls.figures == (2, 1, 1, 1, 1)
    host.hear(Answer(12345, packed(None)))
    assert host.counters[asking.LATE_ANSWERS] == 1


def test_actors_named_in_messages_are_reached_without_a_name(host):
    mine = Fake()
    host.ref().tell({"to": mine})
    host.thread.run()
    [number] = host.calls._published._numbers
    host.hear(Tell(Target(RUN, number), packed("hello")))
    assert mine.take().message == "hello"
    mine.end()
    host.thread.run()
    assert len(host.calls._published) == 0
