"""Who may be told of a host's events, and that none of them can do a replica any harm."""

import threading
from collections import Counter
from functools import partial

import pykka
import pytest
from drakkar.actors import LeaderChanged, ReplicaEnded, TrioLoop
from drakkar.actors.host.subscribers import Subscribers
from drakkar.actors.runtime.log_lines import HostLines

from tests.actors.support import TIMEOUT_S, Hosts, Ledger, Notices, commit, settled, until


class Listener(pykka.ThreadingActor):
    def on_receive(self, message):
        pass

    def on_event(self, event):
        pass


class Silent:
    """No function, and its text cannot be had."""

    def __repr__(self):
        raise RuntimeError


async def coroutine(event):
    pass


def generator(event):
    yield event


class Awaitable:
    async def __call__(self, event):
        pass


@pytest.fixture
def alone():
    """One host that leads shard 1."""
    with Hosts(1) as hosts:
        hosts.run(Ledger)
        hosts.leader()
        yield hosts


@pytest.fixture
def listener():
    ref = Listener.start()
    yield ref
    ref.stop()


def test_a_proxy_stands_for_its_actor(alone):
    ref = Notices.start()
    host = alone.hosts[1]
    host.subscribe(ref.proxy())
    host.subscribe(ref)
    alone[1].stop()
    ref._actor_weakref().wait_for(lambda event: isinstance(event, ReplicaEnded))
    events = ref.proxy().events.get()
    assert list(map(type, events)) == [LeaderChanged, ReplicaEnded], "each event comes once"
    assert host.unsubscribe(ref)
    assert not host.unsubscribe(ref.proxy())
    ref.stop()


def test_a_function_is_called_on_the_loop_until_it_is_unsubscribed(alone):
    host, heard, ended = alone.hosts[1], [], threading.Event()

    def hear(event):
        heard.append((event, TrioLoop.current()))
        if isinstance(event, ReplicaEnded):
            ended.set()

    host.subscribe(hear)
    alone[1].stop()
    assert ended.wait(TIMEOUT_S)
    assert [type(event) for event, _ in heard] == [LeaderChanged, ReplicaEnded]
    assert {loop for _, loop in heard} == {host.loop}
    assert host.unsubscribe(hear)
    alone.run(shard_id=2)
    until(lambda: alone[1].status().leader_id)
    assert len(heard) == 2


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
def test_a_function_that_raises_ends_no_replica_and_is_told_on(alone, error, caplog):
    host, calls = alone.hosts[1], []

    def fail(event):
        calls.append(event)
        raise error

    host.subscribe(fail)
    alone.run(shard_id=2)
    until(lambda: alone[1].status().leader_id)
    assert isinstance(commit(alone[1], b"x"), int)
    assert isinstance(commit(host.replica(1), b"x"), int)
    assert host.counters["subscribed functions failed"] == len(calls) >= 1
    assert "a subscribed function failed" in caplog.text


def test_a_function_that_waits_for_its_own_host_is_told_that_it_must_not(alone, caplog):
    host = alone.hosts[1]
    host.subscribe(lambda _: host.replica(1).propose(b"x").get())
    alone.run(shard_id=2)
    until(lambda: "DeadlockError" in caplog.text)
    assert host.counters["subscribed functions failed"]
    assert isinstance(settled(host.replica(1).propose(b"y")), int)


@pytest.mark.parametrize(
    ("wrong", "names", "remedy"),
    [
        pytest.param(lambda _: None, "None", "subscribe an actor's ref", id="nothing"),
        pytest.param(lambda _: "ear", "'ear'", "subscribe an actor's ref", id="a name"),
        pytest.param(lambda _: Silent(), "Silent", "subscribe an actor's ref", id="no text"),
        pytest.param(lambda _: Listener, "Listener", "start the actor", id="a class"),
        pytest.param(lambda ref: ref._actor_weakref(), "Listener", "its actor_ref", id="the actor itself"),
        pytest.param(lambda ref: ref.proxy().on_event, "CallableProxy", "subscribe the ref", id="a proxy's method"),
        pytest.param(lambda _: coroutine, "coroutine", "plain function", id="a coroutine function"),
        pytest.param(lambda _: partial(coroutine), "coroutine", "plain function", id="a partial of one"),
        pytest.param(lambda _: Awaitable(), "Awaitable", "plain function", id="an async callable"),
        pytest.param(lambda _: lambda: None, "<lambda>", "called as subscriber(event)", id="takes no event"),
        pytest.param(lambda _: generator, "generator", "without `yield`", id="a generator function"),
    ],
)  # fmt: skip
def test_all_else_is_refused_at_once(alone, listener, wrong, names, remedy):
    for call in (alone.hosts[1].subscribe, alone.hosts[1].unsubscribe):
        with pytest.raises(TypeError) as caught:
            call(wrong(listener))
        assert names in str(caught.value)
        assert remedy in str(caught.value)


def test_a_ref_of_a_class_of_its_own_that_fails_is_told_no_more(caplog):
    class Broken(pykka.ActorRef):
        def tell(self, message):
            raise ZeroDivisionError

    listener = Listener.start()
    ref = Broken(listener._actor_weakref())
    counters = Counter()
    subscribers = Subscribers(counters, HostLines().of("test"))
    subscribers.add(ref)
    subscribers.tell("event")
    subscribers.tell("event")
    assert counters["events lost"] == 1
    listener.stop()


def test_bound_methods_and_other_functions_may_be_subscribed_and_taken_back():
    class Ear:
        def __init__(self):
            self.events = []

        def hear(self, event):
            self.events.append(event)

    subscribers, ear, more = Subscribers(Counter(), HostLines().of("test")), Ear(), []
    subscribers.add(ear.hear)
    subscribers.add(ear.hear)  # another object, and the same method
    subscribers.add(more.append)
    subscribers.tell("event")
    assert ear.events == more == ["event"]
    assert subscribers.remove(ear.hear)
    assert not subscribers.remove(ear.hear)
    subscribers.tell("another")
    assert (ear.events, more) == (["event"], ["event", "another"])
