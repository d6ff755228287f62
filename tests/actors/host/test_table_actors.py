"""Table actors of several hosts, over real sockets: they find each other by name, and hear of each other's ends."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import pykka
import pytest
import trustme
from drakkar.actors import (
    IN_MEMORY,
    ChildSpec,
    ConfigError,
    NameTaken,
    NodeEvent,
    NodeHost,
    Supervisor,
    TableActor,
    TlsConfig,
    TrioLoop,
    message,
)
from drakkar.actors.runtime.letters import Letter
from drakkar.actors.runtime.peers import NO_PEER, OUT_OF_REACH, UNKNOWN
from drakkar.handlers.extension import LATER
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.table import HandlerTable

from tests.actors.support import TIMEOUT_S, until
from tests.ports import free_addresses

TICK = 0.02

DO = MessageType.define("test.hosts.do", 1270)
PING = MessageType.define("test.hosts.ping", 1271)
PONG = MessageType.define("test.hosts.pong", 1272)
NOTE = MessageType.define("test.hosts.note", 1273)


class State(IntEnum):
    ONLY = 0


class Question(IntEnum):
    SLOW = 1


@message("tests.table_actors.ask")
@dataclass(frozen=True)
class Ask:
    """What an actor of another host asks a table actor."""

    text: str
    type: ClassVar[Question] = Question.SLOW


TABLE = HandlerTable(State)
TABLE.on(DO)(lambda node, message: message.payload(node))
TABLE.on(PING)(lambda node, message: node.reply(message, PONG, hint=message.hint, payload=message.payload))


def note(node, message):
    node.notes.append((message.type, message.sender, message.hint or message.payload))


for each in (PONG, NOTE, MessageType.PEER_UP, MessageType.PEER_DOWN):
    TABLE.on(each)(note)


@TABLE.on(Question.SLOW)
def ask(node, question):
    node.asked = question
    return LATER


class Node(TableActor):
    handlers = TABLE
    state = State.ONLY

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.notes = []

    def on_stop(self):
        for peer in self.peers:
            self.send(Message(NOTE, to=peer, payload="bye"))

    def on_receive(self, message):
        if message == "crash":
            raise ZeroDivisionError("oh")
        return super().on_receive(message)


def run(ref, function):
    """Call a function of the node in a handler of it."""
    return ref.ask(Message(DO, payload=function), timeout=TIMEOUT_S)


def notes(ref):
    return run(ref, lambda node: list(node.notes))


def noted(ref, *types):
    """Wait until the node has noted messages of these types and no more of others, in this order, and return the last."""
    until(lambda: [type_ for type_, _, _ in notes(ref)] == list(types))
    return notes(ref)[-1]


def counts(ref):
    return ref.proxy().counts.get(timeout=TIMEOUT_S)


UP, DOWN = MessageType.PEER_UP, MessageType.PEER_DOWN


def host_at(address="127.0.0.1:0", **options):
    return NodeHost(address, data_dir=IN_MEMORY, **{"tick_interval": TICK, **options})


@contextmanager
def stopped_in_the_end():
    things = []
    try:
        yield things
    finally:
        for thing in reversed(things):
            thing.stop()


@pytest.fixture
def things():
    with stopped_in_the_end() as things:
        yield things


@pytest.fixture
def hosts(things):
    things += [host_at(), host_at()]
    return things[:2]


def node_at(host, name, **peers):
    """A node with peers at these hosts."""
    return Node.start(host=host, name=name, peers={peer: at.address for peer, at in peers.items()})


@pytest.fixture
def pair(hosts):
    home, other = hosts
    return node_at(home, "a", b=other), node_at(other, "b", a=home)


def up(*refs):
    for ref in refs:
        until(lambda ref=ref: UP in [type_ for type_, _, _ in notes(ref)])


# ---- to each other


def test_nodes_find_each_other_and_talk_in_order(pair):
    a, b = pair
    up(a, b)
    for number in range(1, 301):
        run(a, lambda node, number=number: node.send(Message(PING, to="b", hint=number)))
    until(lambda: len(notes(a)) == 301)
    assert notes(a)[1:] == [(PONG, "b", number) for number in range(1, 301)]


def test_what_is_sent_before_the_peer_has_started_is_not_lost(hosts):
    home, other = hosts
    a = node_at(home, "a", b=other)
    run(a, lambda node: node.send(Message(PING, to="b", hint=1)))
    run(a, lambda node: node.send(Message(PING, to="b", hint=2)))
    node_at(other, "b", a=home)
    until(lambda: len(notes(a)) == 3)
    assert sorted(notes(a)[1:]) == [(PONG, "b", 1), (PONG, "b", 2)]


def test_a_payload_comes_out_as_it_went_in(pair):
    a, _ = pair
    payload = {"votes": [1, None, True, b"x", "text", 0.5], "nested": {"a": []}}
    run(a, lambda node: node.send(Message(PING, to="b", payload=payload)))
    until(lambda: (PONG, "b", payload) in notes(a))


def test_peers_may_live_on_one_host(things):
    things.append(home := host_at())
    a, b = node_at(home, "a", b=home), node_at(home, "b", a=home)
    up(a, b)
    run(a, lambda node: node.send(Message(PING, to="b", hint=1)))
    until(lambda: (PONG, "b", 1) in notes(a))
    b.stop()
    until(lambda: notes(a)[-1] == (DOWN, "b", "it was stopped"))


def test_a_message_that_is_too_long_is_the_senders_mistake_and_names_the_limit(pair):
    a, _ = pair
    with pytest.raises(ConfigError, match=r"takes 9003 bytes, and 8192 are allowed"):
        run(a, lambda node: node.send(Message(PING, to="b", payload=bytes(9_000))))


# ---- ends


def test_a_peer_that_stops_says_good_bye_and_is_down(pair):
    a, b = pair
    up(a, b)
    b.stop()
    until(lambda: notes(a)[1:] == [(NOTE, "b", "bye"), (DOWN, "b", "it was stopped")])


def test_one_that_fails_is_down_with_its_reason(pair):
    a, b = pair
    up(a, b)
    b.tell("crash")
    _, _, why = noted(a, UP, DOWN)
    assert "ZeroDivisionError: oh" in why


def test_one_that_is_started_again_under_its_name_is_found_again(hosts, pair):
    home, other = hosts
    a, b = pair
    up(a, b)
    b.stop()
    until(lambda: DOWN in [type_ for type_, _, _ in notes(a)])
    run(a, lambda node: node.send(Message(PING, to="b", hint=1)))
    node_at(other, "b", a=home)
    noted(a, UP, NOTE, DOWN, UP)
    run(a, lambda node: node.send(Message(PING, to="b", hint=2)))
    assert noted(a, UP, NOTE, DOWN, UP, PONG) == (PONG, "b", 2)
    assert counts(a)[OUT_OF_REACH] == 1


def test_a_supervisor_may_do_that(hosts):
    home, other = hosts
    a = node_at(home, "a", b=other)
    options = {"host": other, "name": "b", "peers": {"a": home.address}}
    supervisor = Supervisor.start([ChildSpec("b", Node, kwargs=options)], loop=other.loop)
    up(a)
    supervisor.proxy().ref_of("b").get(timeout=TIMEOUT_S).tell("crash")
    noted(a, UP, DOWN, UP)


def test_a_host_that_stops_takes_its_nodes_with_it(hosts, pair):
    a, b = pair
    up(a, b)
    hosts[1].stop()
    assert not b.is_alive()
    until(lambda: DOWN in [type_ for type_, _, _ in notes(a)])


def test_a_host_that_comes_back_brings_its_nodes_back(things):
    address = free_addresses(1)[0]
    things.append(home := host_at())
    other = host_at(address)
    a, b = node_at(home, "a", b=other), node_at(other, "b", a=home)
    up(a, b)
    other.stop()
    until(lambda: DOWN in [type_ for type_, _, _ in notes(a)])
    things.append(other := host_at(address))
    node_at(other, "b", a=home)
    until(lambda: [type_ for type_, _, _ in notes(a)].count(UP) == 2)
    run(a, lambda node: node.send(Message(PING, to="b", hint=9)))
    until(lambda: (PONG, "b", 9) in notes(a))


def test_a_node_on_another_loop_outlives_its_host_without_its_peers(hosts):
    home, other = hosts
    with TrioLoop() as loop:
        a = node_at(home, "a", b=other)
        b = Node.start(host=other, name="b", peers={"a": home.address}, loop=loop)
        up(a, b)
        home.stop()
        until(lambda: DOWN in [type_ for type_, _, _ in notes(b)])
        assert b.is_alive()


# ---- names


def test_a_name_belongs_to_one_actor_of_a_host(hosts):
    home, other = hosts
    first = node_at(home, "a", b=other)
    before = len(pykka.ActorRegistry.get_all())
    with pytest.raises(NameTaken):
        node_at(home, "a", b=other)
    assert len(pykka.ActorRegistry.get_all()) == before, "nothing is left of the second"
    assert first.is_alive()
    assert home._table_actors.figures().actors == 1


def test_a_stopped_actors_name_is_free_at_once(hosts):
    home, other = hosts
    for _ in range(20):
        node_at(home, "a", b=other).stop()
    assert home.metrics()["table_actors"] == 0


def test_a_stopped_host_takes_no_nodes(hosts):
    home, other = hosts
    home.stop()
    with pytest.raises(Exception, match="stop"):
        node_at(home, "a", b=other)


# ---- strangers


def test_another_host_does_not_speak_for_a_peer(hosts, pair, things):
    home, other = hosts
    a, b = pair
    up(a, b)
    things.append(stranger := host_at())
    stranger.remote(home.address, "a").tell(Letter(int(NOTE), "b", hint=1))
    until(lambda: counts(a)[NO_PEER] == 1)
    other.remote(home.address, "a").tell(Letter(int(NOTE), "c", hint=2))
    until(lambda: counts(a)[NO_PEER] == 2)
    other.remote(home.address, "a").tell(Letter(int(NOTE), "b", hint=3))
    assert noted(a, UP, NOTE) == (NOTE, "b", 3)
    assert home.metrics()["transport_useless_total"] == 0, "what is of no peer here is not charged"
    other.remote(home.address, "a").tell(Letter(int(DOWN), "b"))
    until(lambda: home.metrics()["transport_useless_total"] == 1)


def test_a_type_that_is_not_defined_here_is_counted(hosts, pair):
    home, other = hosts
    a, _ = pair
    other.remote(home.address, "a").tell(Letter(64_997, "b"))
    until(lambda: counts(a)[UNKNOWN] == 1)
    assert home.metrics()["table_messages_refused_total"] == 1


def test_no_peer_tells_that_another_is_gone(hosts, pair):
    home, other = hosts
    a, b = pair
    up(a, b)
    other.remote(home.address, "a").tell(Letter(int(DOWN), "b"))
    until(lambda: home.metrics()["table_messages_refused_total"] == 1)
    noted(a, UP)


def test_under_tls_the_certificate_says_who_speaks(tmp_path, things):
    ca = trustme.CA()

    def tls(name):
        issued = ca.issue_cert("127.0.0.1", name)
        blobs = {"cert": issued.cert_chain_pems[0], "key": issued.private_key_pem, "ca": ca.cert_pem}
        for kind, blob in blobs.items():
            blob.write_to_path(str(tmp_path / f"{name}.{kind}"))
        return TlsConfig(**{kind: tmp_path / f"{name}.{kind}" for kind in blobs})

    hosts = [host_at(tls=tls(name)) for name in ("a.example", "b.example", "c.example")]
    things += hosts
    a, b = node_at(hosts[0], "a", b=hosts[1]), node_at(hosts[1], "b", a=hosts[0])
    run(a, lambda node: node.send(Message(PING, to="b", hint=5)))
    until(lambda: (PONG, "b", 5) in notes(a))
    hosts[2].remote(hosts[0].address, "a").tell(Letter(int(NOTE), "b", hint=1))
    until(lambda: counts(a)[NO_PEER] == 1)
    assert b.is_alive()


# ---- what a host shows of them


def test_the_figures_of_nodes_are_among_those_of_their_host_and_never_shrink(hosts, pair):
    home, _ = hosts
    a, b = pair
    up(a, b)
    run(a, lambda node: node.send(Message(PING, to="b", hint=1)))
    until(lambda: (PONG, "b", 1) in notes(a))
    at = home.metrics()
    assert (at["table_actors"], at["table_peers_up"], at["table_peers_down"]) == (1, 1, 0)
    assert (at["table_messages_sent_total"], at["table_messages_received_total"]) == (1, 1)
    assert at["cell_handled_test_hosts_pong_in_only_total"] == 1
    a.stop()
    after = home.metrics()
    assert after["table_actors"] == after["table_peers_up"] == 0
    for name in at:
        assert not name.endswith("_total") or after[name] >= at[name]
    assert after["cell_handled_test_hosts_pong_in_only_total"] == 1


def test_an_event_of_a_node_reaches_the_subscribers_of_its_host(hosts, pair):
    a, _ = pair
    events, told = [], threading.Event()
    hosts[0].subscribe(lambda event: isinstance(event, NodeEvent) and (events.append(event), told.set()))
    run(a, lambda node: node.publish_event({"elected": "b"}))
    assert told.wait(TIMEOUT_S)
    assert events == [NodeEvent("a", {"elected": "b"})]


def test_a_node_lives_on_the_loop_of_its_host_and_ticks_with_it(hosts):
    home, other = hosts
    a = node_at(home, "a", b=other)
    assert run(a, lambda node: node.actor_loop) is home.loop
    assert run(a, lambda node: node._actor_ticks._interval) == TICK


def test_an_actor_of_another_host_may_be_answered_later(hosts, pair):
    home, other = hosts
    a, _ = pair
    future = other.remote(home.address, "a").ask(Ask("how many?"), block=False)
    until(lambda: run(a, lambda node: getattr(node, "asked", None)) is not None)
    run(a, lambda node: node.effects.answer(node.asked, 7, {}))
    assert future.get(timeout=TIMEOUT_S) == 7
