"""Peers: where a node's messages go while a peer is sought, there, or gone, and whose messages are taken in."""

import logging
import math
import threading
from collections import Counter
from dataclasses import fields, replace

import pykka
import pytest
from drakkar.actors.runtime import peers as peers_module
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.letters import Heard, Letter, PeerNews
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.actors.runtime.monitor import Termination
from drakkar.actors.runtime.peers import (
    FAULTY,
    FIRST_WAIT_S,
    LAST_WAIT_S,
    NO_PEER,
    NOT_TAKEN,
    OUT_OF_REACH,
    PATIENCE_S,
    RECEIVED,
    SENT,
    UNKNOWN,
    Peers,
    Phase,
)
from drakkar.handlers.errors import ConfigError, DrakkarError, SystemBusy
from drakkar.handlers.messages import Message, MessageType
from hypothesis import given
from hypothesis import strategies as st

PING = MessageType.define("test.peers.ping", 1295)
THERE, ELSEWHERE = "10.0.0.2:7000", "10.0.0.3:7000"


class Ref(pykka.ActorRef):
    """Stands for an actor: what it is told is in a list."""

    def __init__(self):
        self.told = []
        self.actor_class = type("Other", (), {})
        self.actor_urn = f"urn:test:{id(self)}"
        self.actor_stopped = threading.Event()
        self.termination = Termination()
        self.error = None

    def tell(self, message):
        if self.error is not None:
            raise self.error
        self.told.append(message)

    def end(self, reason=None):
        self.actor_stopped.set()
        self.termination.publish(reason)

    @property
    def numbers(self):
        return [each.hint for each in self.told]


class Bell:
    """An alarm that rings when a test says so."""

    def __init__(self, ring):
        self.ring, self.at = ring, math.inf

    def set(self, at):
        self.at = at

    def cancel(self):
        self.at = math.inf

    def go(self):
        self.cancel()
        self.ring()


class Home:
    """A host on which a test finds what it likes."""

    def __init__(self):
        self.sought = []
        self.charged = Counter()
        self.error = None

    def check_name(self, name):
        if len(name) > 200:
            raise ConfigError("name", name, "is too long")

    def enter(self, actor): ...

    def leave(self, actor): ...

    def announce(self, actor, event): ...

    def find(self, address, name):
        if self.error is not None:
            raise self.error
        future = ActorFuture()
        self.sought.append((address, name, future))
        return future

    def deliver(self, ref, letter):
        ref.tell(letter)

    def charge(self, address):
        self.charged[address] += 1


class Node:
    """A node with the peer b, in a test that is its loop."""

    def __init__(self, place=THERE, home=True, capacity=100):
        self.now = 1000.0
        self.home = Home() if home else None
        self.inbox = Inbox("node", capacity)
        self.bells = []
        lines = HostLines("here").of("drakkar.actors.runtime")
        self.peers = Peers("a", self.home, self.inbox, self._bell, lines, now=lambda: self.now)
        self.peers.add("b", place)
        self.peers.begin()

    def _bell(self, ring):
        self.bells.append(Bell(ring))
        return self.bells[-1]

    @property
    def bell(self):
        return self.bells[0]

    def found(self, ref):
        self.home.sought.pop()[2].set(ref)
        return self.hear()

    def missed(self, error=DrakkarError("nobody")):  # noqa: B008
        self.home.sought.pop()[2].fail(error)
        return self.hear()

    def hear(self):
        """Take what is in the inbox, and return what the node is told, as texts."""
        told = []
        while self.inbox.queue:
            news = self.inbox.get().message
            assert type(news) is PeerNews
            message = self.peers.take(news)
            if message is not None:
                assert (message.to, message.sender) == ("a", "b")
                told.append((message.type, message.payload))
        return told

    def send(self, *numbers, **fields):
        for number in numbers:
            self.peers.send(Message(PING, to="b", sender="a", hint=number, **fields))

    @property
    def phase(self):
        [phase] = self.peers.phases()
        return phase

    def lost(self):
        return self.peers.counts[OUT_OF_REACH]


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch):
    monkeypatch.setattr("drakkar.handlers.backoff.Backoff.jitter", lambda self, wait: wait)


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def ref():
    return Ref()


def up(node, ref):
    [(type_, _)] = node.found(ref)
    assert type_ is MessageType.PEER_UP
    return ref


# ---- searching


def test_a_peer_is_sought_under_its_name_and_greeted_when_it_is_found(node, ref):
    assert [row[:2] for row in node.home.sought] == [(THERE, "b")]
    assert node.found(ref) == [(MessageType.PEER_UP, f"found at {THERE}")]
    assert node.phase is Phase.UP


def test_what_was_sent_before_it_is_found_arrives_first_and_in_order(node, ref):
    node.send(1, 2)
    assert ref.told == []
    node.missed()
    node.send(3)
    node.bell.go()
    up(node, ref)
    node.send(4)
    assert ref.numbers == [1, 2, 3, 4]
    assert (node.peers.counts[SENT], node.lost()) == (4, 0)


def test_it_is_sought_again_ever_more_seldom(node):
    waits = []
    for _ in range(9):
        node.missed()
        waits.append(node.bell.at - node.now)
        node.bell.go()
    assert waits[:3] == pytest.approx([FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S])
    assert waits[-1] == LAST_WAIT_S


def test_a_search_that_cannot_begin_is_a_search_that_failed(ref):
    node = Node()
    node.missed()
    node.home.error = SystemBusy("too much")
    node.bell.go()
    assert node.hear() == []
    assert node.bell.at > node.now
    node.home.error = None
    node.bell.go()
    up(node, ref)


def test_messages_wait_within_bounds(monkeypatch, node, ref):
    monkeypatch.setattr(peers_module, "MAX_WAITING", 3)
    node.send(1, 2, 3, 4, 5)
    assert node.lost() == 2
    up(node, ref)
    assert ref.numbers == [1, 2, 3]


def test_so_do_their_bytes(monkeypatch, node, ref):
    monkeypatch.setattr(peers_module, "MAX_WAITING_BYTES", 250)
    node.send(1, 2, 3, payload=bytes(100))
    node.send(4)
    assert node.lost() == 1
    up(node, ref)
    assert ref.numbers == [1, 2, 4]


def test_one_that_is_not_found_in_time_counts_as_down_and_its_messages_are_dropped(node, ref):
    node.send(1, 2)
    node.now += PATIENCE_S - 1
    assert node.missed() == []
    node.bell.go()
    node.now += 1
    assert node.missed() == [(MessageType.PEER_DOWN, "it was not found in time: DrakkarError: nobody")]
    node.send(3)
    assert (node.phase, node.lost()) == (Phase.DOWN, 3)
    node.bell.go()
    assert node.missed() == []  # it is told once
    node.bell.go()
    up(node, ref)
    assert ref.told == []


# ---- ends


def test_the_end_of_a_peer_is_told_with_its_reason(node, ref):
    up(node, ref)
    ref.end(ZeroDivisionError("oh"))
    assert node.hear() == [(MessageType.PEER_DOWN, "ZeroDivisionError: oh")]
    assert node.phase is Phase.DOWN


def test_a_peer_that_was_stopped_is_told_of_so(node, ref):
    up(node, ref)
    ref.end()
    assert node.hear() == [(MessageType.PEER_DOWN, "it was stopped")]


def test_a_reason_has_a_bounded_length(node, ref):
    up(node, ref)
    ref.end(ValueError("x" * 10_000))
    [(_, text)] = node.hear()
    assert len(text) == peers_module.MAX_REASON


def test_what_is_sent_to_one_that_is_down_is_dropped_until_another_is_found(node, ref):
    up(node, ref)
    ref.end()
    node.hear()
    node.send(1)
    node.bell.go()
    node.send(2)
    other = up(node, Ref())
    node.send(3)
    assert (ref.told, other.numbers, node.lost()) == ([], [3], 2)


def speaks(node):
    """The peer sends a message."""
    letter = Letter.of(Message(PING, to="a", sender="b"))
    assert node.peers.open(Heard(letter, THERE)) is not None


def test_what_is_sent_to_one_that_speaks_again_waits_until_it_is_found(node, ref):
    up(node, ref)
    ref.end()
    node.hear()
    node.send(1)
    speaks(node)
    node.send(2)
    assert (node.phase, node.bell.at) == (Phase.SOUGHT, node.now + FIRST_WAIT_S)
    node.bell.go()
    other = up(node, Ref())
    assert (other.numbers, node.lost()) == ([2], 1)


def test_one_that_has_only_spoken_counts_as_down_again_and_is_told_once(node, ref):
    up(node, ref)
    ref.end()
    assert [type_ for type_, _ in node.hear()] == [MessageType.PEER_DOWN]
    speaks(node)
    node.send(1)
    node.now += PATIENCE_S
    node.bell.go()
    assert node.missed() == [], "it is down, as before"
    assert (node.phase, node.lost()) == (Phase.DOWN, 1)
    node.bell.go()
    again = up(node, Ref())
    again.end()
    assert [type_ for type_, _ in node.hear()] == [MessageType.PEER_DOWN]


def test_what_is_sent_before_the_end_is_heard_of_is_counted(node, ref):
    up(node, ref)
    ref.error = pykka.ActorDeadError("ended")
    node.send(1)
    ref.error = SystemBusy("full")
    node.send(2)
    assert (node.peers.counts[NOT_TAKEN], node.peers.counts[SENT]) == (2, 0)


def test_one_that_ended_between_search_and_find_was_never_up(node, ref):
    ref.end()
    assert node.found(ref) == []
    assert node.phase is Phase.SOUGHT
    assert node.bell.at < math.inf


def test_one_that_ends_as_it_is_watched_was_up_for_a_moment(node, ref):
    ref.termination.publish(None)
    assert [type_ for type_, _ in node.found(ref)] == [MessageType.PEER_UP, MessageType.PEER_DOWN]


def test_one_that_cannot_be_watched_is_sought_again(node, ref, monkeypatch):
    def busy(*_):
        raise SystemBusy("too many watches")

    monkeypatch.setattr(peers_module, "watch", busy)
    assert node.found(ref) == []
    assert node.bell.at < math.inf


def test_one_that_comes_and_goes_is_sought_ever_more_seldom_and_one_that_stays_is_forgiven(node):
    waits = []
    for life in (0, 0, LAST_WAIT_S + 1):
        ref = up(node, Ref())
        node.now += life
        ref.end()
        node.hear()
        waits.append(node.bell.at - node.now)
        node.bell.go()
    assert waits == pytest.approx([FIRST_WAIT_S, 2 * FIRST_WAIT_S, FIRST_WAIT_S])


def test_news_comes_behind_the_messages_before_it_and_finds_room_in_a_full_inbox(ref):
    node = Node(capacity=1)
    up(node, ref)
    node.inbox.put(pykka._envelope.Envelope("before"))
    with pytest.raises(SystemBusy):
        node.inbox.put(pykka._envelope.Envelope("more"))
    ref.end()
    assert node.inbox.get().message == "before"
    assert [type_ for type_, _ in node.hear()] == [MessageType.PEER_DOWN]


# ---- whose messages are taken in


def letter(sender="b", **fields):
    return replace(Letter(int(PING), sender), **fields)


def test_a_message_of_a_peer_from_its_host_is_taken_in(node):
    message = node.peers.open(Heard(letter(hint=3), THERE))
    assert (message.type, message.to, message.sender, message.hint) == (PING, "a", "b", 3)
    assert node.peers.counts[RECEIVED] == 1


@pytest.mark.parametrize(
    ("sender", "address"),
    [
        pytest.param("c", THERE, id="no peer"),
        pytest.param("b", ELSEWHERE, id="of another host"),
        pytest.param("b", "", id="of this process"),
        pytest.param("a", THERE, id="the node itself"),
    ],
)
def test_only_the_host_of_a_peer_speaks_for_it(node, sender, address, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert node.peers.open(Heard(letter(sender), address)) is None
    assert (node.peers.counts[NO_PEER], node.peers.counts[RECEIVED]) == (4, 0)
    assert not node.home.charged, "others may rely on the connection of that host"
    assert len(caplog.records) == 3, "the first, the second and the fourth"


def test_where_a_peer_was_expected_is_told(node, caplog):
    node.peers.open(Heard(letter(), ELSEWHERE))
    assert f"drops a message of 'b' at {ELSEWHERE}, and that peer is at {THERE}" in caplog.text


def test_addresses_may_be_spelt_in_any_way():
    node = Node(place="Host.example:7000")
    assert node.peers.open(Heard(letter(), "host.example:7000")) is not None


def test_a_message_of_an_unknown_type_is_dropped_without_a_charge(node):
    assert node.peers.open(Heard(letter(type=64_998), THERE)) is None
    assert node.peers.counts == {UNKNOWN: 1}
    assert not node.home.charged


@pytest.mark.parametrize(
    "faulty",
    [
        pytest.param(lambda: letter(type=int(MessageType.PEER_DOWN)), id="a type of the node's own host"),
        pytest.param(lambda: letter(7), id="a number as the sender"),
        pytest.param(lambda: letter(["b"]), id="a list as the sender"),
    ],
)
def test_a_message_that_no_peer_sends_is_charged(node, faulty):
    assert node.peers.open(Heard(faulty(), THERE)) is None
    assert node.peers.counts == {FAULTY: 1}
    assert node.home.charged == {THERE: 1}


def test_one_that_is_heard_of_is_sought_soon(node, ref):
    for _ in range(6):
        node.missed()
        node.bell.go()
    node.missed()
    assert node.bell.at > node.now + 1
    node.peers.open(Heard(letter(), THERE))
    assert node.bell.at == node.now + FIRST_WAIT_S
    node.now += FIRST_WAIT_S / 2
    soon = node.bell.at
    node.peers.open(Heard(letter(), THERE))
    assert node.bell.at == soon, "no message puts the search off"
    node.bell.go()
    node.peers.open(Heard(letter(), THERE))
    assert node.bell.at == math.inf, "it is being sought already"
    up(node, ref)


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=9)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.fixed_dictionaries({}, optional={field.name: ANYTHING for field in fields(Letter)}), st.booleans())
def test_whatever_is_in_a_letter_it_is_a_message_or_is_counted(odd, known):
    node = Node()
    sent = Letter(
        **{"type": int(PING), **odd, **({"sender": "b"} if known else {"sender": odd.get("sender")})}
    )
    message = node.peers.open(Heard(sent, THERE))
    assert sum(node.peers.counts.values()) == 1
    assert (message is not None) is (node.peers.counts[RECEIVED] == 1)


# ---- peers of this process


def test_a_reference_is_a_peer_of_this_process(ref):
    node = Node(place=ref, home=False)
    node.send(1)
    assert node.hear() == [(MessageType.PEER_UP, "found in this process")]
    node.send(2)
    assert [(heard.address, heard.letter.hint) for heard in ref.told] == [("", 1), ("", 2)]
    assert node.peers.open(Heard(letter(), "")) is not None
    assert node.peers.open(Heard(letter(), THERE)) is None, "no host speaks for it"


def test_where_there_is_a_host_too(ref):
    node = Node(place=ref)
    node.hear()
    node.send(1)
    assert type(ref.told[0]) is Heard


def test_the_end_of_a_reference_is_for_good(ref):
    node = Node(place=ref, home=False)
    node.hear()
    ref.end()
    assert node.hear() == [(MessageType.PEER_DOWN, "it was stopped")]
    assert node.bell.at == math.inf


def test_a_reference_that_had_ended_is_down_at_once(ref):
    ref.end()
    node = Node(place=ref, home=False)
    [(type_, text)] = node.hear()
    assert type_ is MessageType.PEER_DOWN
    assert "has ended" in text


@pytest.mark.parametrize(
    ("place", "home", "said"),
    [
        pytest.param("nowhere", True, "write it as 'host:port'", id="no address"),
        pytest.param(7000, True, "must be the address of its host", id="a number"),
        pytest.param(None, True, "must be the address of its host", id="nothing"),
        pytest.param(THERE, False, "start it with host=", id="an address without a host"),
    ],
)
def test_what_is_no_place_is_named(place, home, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Node(place=place, home=home)
    assert "peers['b']" in str(caught.value)


def test_a_name_that_no_actor_can_have_is_named_at_once(node):
    with pytest.raises(ConfigError, match="too long"):
        node.peers.add("x" * 201, THERE)


def test_a_reference_to_another_host_is_no_place(ref):
    ref.place = "there"
    with pytest.raises(ConfigError, match="name the address of that host"):
        Node(place=ref)


def test_a_peer_that_is_added_later_is_sought_at_once(node, ref):
    node.peers.add("c", ELSEWHERE)
    assert node.home.sought[-1][:2] == (ELSEWHERE, "c")


# ---- the end of the node


def test_the_end_lets_all_go(node, ref):
    node.send(1)
    node.missed()
    node.peers.close()
    assert (node.bell.at, node.lost()) == (math.inf, 1)


def test_and_ends_the_watches(node, ref):
    up(node, ref)
    node.peers.close()
    assert not ref.termination.watched
    ref.end()
    assert node.hear() == []
