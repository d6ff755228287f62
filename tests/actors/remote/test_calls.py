"""Actors of two hosts, over real sockets: what a reference to one elsewhere does as pykka's own does, and what differs."""

import asyncio
import socket
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
    ActorCrashed,
    ActorDied,
    ActorFuture,
    AnswerTimeout,
    ConfigError,
    DeadlockError,
    HostGone,
    HostState,
    NameTaken,
    NodeHost,
    NotAllowed,
    OutcomeUnknown,
    RemoteError,
    RemoteRef,
    RequestDropped,
    SystemBusy,
    TableActor,
    TlsConfig,
    TrioActor,
    TrioLoop,
    UnknownName,
    ValueRefused,
    failure,
    message,
    unwatch,
    watch,
)
from drakkar.actors.remote import calls, replies
from drakkar.actors.remote.records import Describe
from drakkar.actors.remote.refs import Place
from drakkar.handlers.table import HandlerTable
from drakkar.transport.options import Options

from tests.actors.forking import in_child, told
from tests.actors.remote.gate import Gate
from tests.actors.support import TIMEOUT_S, until
from tests.ports import free_addresses

TICK = 0.4
"""A host is taken for dead after ten of these: no busy machine is to bring that about, where a test does not want it."""


@message("tests.calls.deposit")
@dataclass(frozen=True)
class Deposit:
    account: str
    amount: int


@failure("tests.calls.overdrawn")
class Overdrawn(Exception):
    pass


class Unregistered(Exception):
    pass


@pykka.traversable
class Library:
    def __init__(self):
        self.titles = ["poems"]

    def search(self, word):
        return [title for title in self.titles if word in title]


class Keeper:
    """What the actors of all kinds do alike."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accounts = {"ann": 0}
        self.library = Library()
        self.told = []

    def on_receive(self, message):
        match message:
            case Deposit(account, amount):
                self.accounts[account] += amount
                return self.accounts[account]
            case {"fail": name}:
                raise {
                    "known": Overdrawn("ann", 5),
                    "unknown": Unregistered("no"),
                    "builtin": KeyError("bob"),
                }[name]
            case {"ask": ref}:
                return ref.ask("who", block=False)
            case {"tell all": refs}:
                for ref in refs:
                    ref.tell("hello")
                return len(refs)
            case "who":
                return type(self).__name__
            case "told":
                return self.told
            case "unsendable":
                return object()
            case "never":
                return ActorFuture()
            case {"crash": _}:
                raise ValueError("crashed")
            case _:
                self.told.append(message)
                return message

    def balance(self, account):
        return self.accounts[account]

    def fail(self):
        raise Overdrawn("ann", 7)

    def unsendable(self):
        return object()

    def never(self):
        return ActorFuture()

    def _private(self):
        return "secret"


class Threaded(Keeper, pykka.ThreadingActor):
    use_daemon_thread = True


class OnLoop(Keeper, TrioActor):
    pass


class Light(IntEnum):
    RED = 0
    GREEN = 1


class Button(IntEnum):
    BELL = 7


LIGHTS = HandlerTable(Light)


@LIGHTS.on(Button.BELL, Light.RED)
def turn_green(light, press):
    light.state = Light.GREEN
    return f"green for {press.who}"


LIGHTS.ignore(Button.BELL, Light.GREEN, because="it is green already")


class TrafficLight(TableActor):
    handlers = LIGHTS
    state = Light.RED

    def color(self):
        return self.state.name


class Table(Keeper, TrafficLight):
    pass


KINDS = (Threaded, OnLoop, Table)


def host_at(address="127.0.0.1:0", **options):
    return NodeHost(address, data_dir=IN_MEMORY, **{"tick_interval": TICK, **options})


@contextmanager
def stopped_in_the_end():
    """Hosts and actors that are put into the list are stopped, the last first."""
    things = []
    try:
        yield things
    finally:
        for thing in reversed(things):
            if isinstance(thing, NodeHost) or thing.is_alive():
                thing.stop()


@pytest.fixture
def things():
    with stopped_in_the_end() as things:
        yield things


@pytest.fixture
def hosts(things):
    things += [host_at(), host_at()]
    return things[:2]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def actor(kind, things):
    ref = kind.start()
    things.append(ref)
    return ref


@pytest.fixture
def ledger(hosts, actor):
    home, other = hosts
    home.publish("ledger", actor, proxy=True)
    return other.remote(home.address, "ledger")


class Notices:
    """A watcher that waits for what it is told."""

    def __init__(self):
        self.all = []
        self._told = threading.Event()

    def __call__(self, notice):
        self.all.append(notice)
        self._told.set()

    def only(self):
        assert self._told.wait(TIMEOUT_S)
        [notice] = self.all
        return notice


def error_of(future):
    with pytest.raises(Exception) as caught:
        future.get(timeout=TIMEOUT_S)
    return caught.value


# ---- tell, ask, proxy


def test_ask_answers_as_a_local_reference_does(ledger, actor):
    assert ledger.ask(Deposit("ann", 5), timeout=TIMEOUT_S) == actor.ask(Deposit("ann", 0)) == 5
    future = ledger.ask(Deposit("ann", 2), block=False)
    assert future.get(timeout=TIMEOUT_S) == 7


def test_tell_arrives_in_order(ledger):
    for number in range(1000):
        ledger.tell(number)
    assert ledger.ask("told", timeout=TIMEOUT_S) == list(range(1000))


def test_messages_of_each_thread_arrive_in_its_order(ledger):
    def send(name):
        for number in range(200):
            ledger.tell([name, number])
            if not number % 50:
                ledger.ask([name, "asked"], timeout=TIMEOUT_S)

    threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = ledger.ask("told", timeout=TIMEOUT_S)
    for name in range(4):
        assert [number for who, number in told if who == name and number != "asked"] == list(range(200))


def test_a_proxy_calls_methods_and_reads_and_sets_attributes(ledger, actor):
    proxy = ledger.proxy()
    assert proxy.balance("ann").get(timeout=TIMEOUT_S) == 0
    assert proxy.accounts.get(timeout=TIMEOUT_S) == {"ann": 0}
    proxy.accounts = {"ann": 3}
    assert actor.proxy().accounts.get() == {"ann": 3}
    assert proxy.library.search("poe").get(timeout=TIMEOUT_S) == ["poems"]
    assert proxy.library.titles.get(timeout=TIMEOUT_S) == ["poems"]
    with pytest.raises(Overdrawn) as caught:
        proxy.fail().get(timeout=TIMEOUT_S)
    assert caught.value.args == ("ann", 7)
    assert "in fail" in "".join(caught.value.__notes__)


def test_a_proxys_method_that_returns_nothing_that_can_be_sent_or_never(ledger):
    proxy = ledger.proxy()
    assert isinstance(error_of(proxy.unsendable()), ValueRefused)
    assert isinstance(error_of(proxy.never.within(0.1)()), AnswerTimeout)
    assert proxy.balance("ann").get(timeout=TIMEOUT_S) == 0


@pytest.mark.parametrize(
    "name", ["_private", "stop", "on_receive", "actor_urn", "actor_inbox", "handlers", "tally", "nothing"]
)
def test_a_proxy_reaches_no_more_than_was_published(ledger, name):
    with pytest.raises(AttributeError):
        getattr(ledger.proxy(), name)


@pytest.mark.parametrize("name", ["private", "stop", "on_stop", "actor_urn", "actor_inbox"])
def test_a_proxy_that_claims_to_reach_more_is_refused(ledger, name):
    forged = RemoteRef(ledger._caller, ledger.place, attributes={name: True})
    with pytest.raises(NotAllowed, match="not published"):
        getattr(forged.proxy(), name)().get(timeout=TIMEOUT_S)
    assert ledger.ask("who", timeout=TIMEOUT_S)


def test_without_proxy_there_is_none(hosts, actor):
    home, other = hosts
    home.publish("plain", actor)
    with pytest.raises(TypeError, match="proxy=True"):
        other.remote(home.address, "plain").proxy()
    home.publish("listed", actor, proxy=["balance"])
    listed = other.remote(home.address, "listed").proxy()
    assert listed.balance("ann").get(timeout=TIMEOUT_S) == 0
    with pytest.raises(AttributeError, match="reaches balance"):
        _ = listed.accounts


@message("tests.calls.press")
@dataclass
class Press:
    who: str
    type: ClassVar = Button.BELL


def test_a_table_answers_messages_of_other_hosts(hosts, things):
    home, other = hosts
    things.append(TrafficLight.start(loop=home.loop))
    home.publish("light", things[-1], proxy=True)
    light = other.remote(home.address, "light")
    assert light.ask(Press("ann"), timeout=TIMEOUT_S) == "green for ann"
    with pytest.raises(RequestDropped, match="it is green already"):
        light.ask(Press("bob"), timeout=TIMEOUT_S)
    assert light.proxy().color().get(timeout=TIMEOUT_S) == "GREEN"
    assert dir(light.proxy()).count("color") == 1
    assert not {"state", "handlers", "tally"} & set(dir(light.proxy()))


def test_futures_can_be_awaited_in_trio_and_in_asyncio(hosts, ledger):
    _, other = hosts

    async def ask():
        return await ledger.ask(Deposit("ann", 4), block=False)

    assert other.loop.call(ask, timeout=TIMEOUT_S) == 4
    assert asyncio.run(ask()) == 8


def test_what_would_block_the_loop_is_refused_and_nothing_sent(hosts, ledger):
    home, other = hosts
    for call in (
        lambda: ledger.ask(Deposit("ann", 1)),
        lambda: other.remote(home.address, "ledger"),
        lambda: other.remote_names(home.address),
        lambda: setattr(ledger.proxy(), "accounts", {}),
    ):
        with pytest.raises(DeadlockError):
            other.loop.call(call, timeout=TIMEOUT_S)
    assert ledger.ask(Deposit("ann", 0), timeout=TIMEOUT_S) == 0


def test_actors_on_the_loop_of_a_host_ask_those_of_another(hosts, things):
    """Neither loop is left for a thread: what is asked in a turn leaves at the end of its round."""
    home, other = hosts
    things += [OnLoop.start(loop=home.loop), OnLoop.start(loop=other.loop)]
    home.publish("far", things[-2])
    far = other.remote(home.address, "far")
    near = things[-1]
    answers = [near.ask({"ask": far}, block=False) for _ in range(100)]
    assert [answer.get(timeout=TIMEOUT_S).get(timeout=TIMEOUT_S) for answer in answers] == ["OnLoop"] * 100


def test_an_actor_on_a_loop_of_its_own_is_reached(hosts, things):
    home, other = hosts
    with TrioLoop() as loop:
        home.publish("own", OnLoop.start(loop=loop))
        own, notices = other.remote(home.address, "own"), Notices()
        watch(own, notices)
        assert own.ask("who", timeout=TIMEOUT_S) == "OnLoop"
    assert notices.only().reason is None


# ---- failures


def test_exceptions_come_back_as_what_they_are_where_they_are_registered(ledger):
    with pytest.raises(Overdrawn):
        ledger.ask({"fail": "known"}, timeout=TIMEOUT_S)
    with pytest.raises(KeyError, match="bob"):
        ledger.ask({"fail": "builtin"}, timeout=TIMEOUT_S)
    with pytest.raises(RemoteError) as caught:
        ledger.ask({"fail": "unknown"}, timeout=TIMEOUT_S)
    assert caught.value.type.endswith("Unregistered")
    assert caught.value.text == "no"
    assert "on_receive" in caught.value.traceback


def test_what_cannot_be_sent_is_refused_where_it_is_said(ledger):
    for send in (ledger.tell, ledger.ask):
        with pytest.raises(ValueRefused, match="a list"):
            send({"names": {"ann"}})
    with pytest.raises(ValueRefused, match="answer"):
        ledger.ask("unsendable", timeout=TIMEOUT_S)
    assert ledger.ask("who", timeout=TIMEOUT_S)


def test_a_message_of_a_mebibyte_goes_there_and_back(ledger):
    large = bytes(range(256)) * 4000
    assert ledger.ask(large, timeout=TIMEOUT_S) == large
    with pytest.raises(ValueRefused, match="send it in several messages"):
        ledger.ask(bytes(1 << 20))


def test_an_unknown_name_is_a_clear_error(hosts):
    home, other = hosts
    with pytest.raises(UnknownName, match="ledger"):
        other.remote(home.address, "ledger")
    with pytest.raises(UnknownName):
        other.remote(home.address, "ledger", block=False).get(timeout=TIMEOUT_S)


def test_a_host_that_is_gone_is_a_clear_error_at_once(things):
    """Also while the next attempt to reach it is not due: nobody waits for that."""
    things.append(other := host_at(transport_options=Options(backoff_first=1000, backoff_last=1000)))
    [nobody] = free_addresses(1)
    for _ in range(3):
        with pytest.raises(HostGone, match="refused"):
            other.remote(nobody, "ledger")


def test_a_host_is_known_by_the_address_that_it_says(hosts, ledger):
    home, other = hosts
    port = home.address.rpartition(":")[2]
    with pytest.raises(HostGone, match="name each member by the address that its host advertises"):
        other.remote(f"localhost:{port}", "ledger")


@pytest.fixture
def swept_each_tick(monkeypatch):
    """Places of questions whose time is over are given back soon."""
    monkeypatch.setattr("drakkar.actors.remote.serving.SWEEP_TICKS", 1)


@pytest.mark.usefixtures("swept_each_tick")
def test_a_deadline_ends_a_question_and_gives_its_place_back_on_both_hosts(hosts, ledger):
    home, other = hosts
    never = ledger.ask("never", block=False, timeout=1.0)
    until(lambda: home.metrics()["remote_questions_open"] == 1)
    assert other.metrics()["remote_questions"] == 1
    error = error_of(never)
    assert isinstance(error, AnswerTimeout)
    assert isinstance(error, pykka.Timeout)
    assert isinstance(error, OutcomeUnknown)
    assert "ever heard" not in str(error)
    assert other.metrics()["remote_questions"] == 0
    until(lambda: home.metrics()["remote_questions_open"] == 0)
    with pytest.raises(AnswerTimeout):
        ledger.ask("never", timeout=0.05)
    assert ledger.ask("who", timeout=TIMEOUT_S)


@pytest.mark.usefixtures("swept_each_tick")
def test_an_actor_with_too_many_questions_is_busy_and_others_are_not(hosts, things, monkeypatch):
    monkeypatch.setattr("drakkar.actors.remote.clients.MAX_QUESTIONS_TO_ONE", 5)
    home, other = hosts
    things += [OnLoop.start(), OnLoop.start()]
    for name, ref in zip("ab", things[-2:], strict=True):
        home.publish(name, ref)
    one, another = (other.remote(home.address, name) for name in "ab")
    futures = [one.ask("never", block=False, timeout=0.5) for _ in range(5)]
    assert isinstance(error_of(one.ask("never", block=False, timeout=TIMEOUT_S)), SystemBusy)
    assert another.ask("who", timeout=TIMEOUT_S) == "OnLoop"
    assert isinstance(error_of(futures[0]), AnswerTimeout)
    until(lambda: home.metrics()["remote_questions_open"] == 0)
    assert one.ask("who", timeout=TIMEOUT_S) == "OnLoop"
    assert home.metrics()["remote_questions_refused_total"] == 1


def test_too_much_that_waits_is_refused_at_once(things):
    things.append(other := host_at(transport_options=Options(call_bytes=1 << 20, connect_timeout=100)))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and says nothing
        ref = RemoteRef(other._calls._asking, Place(f"127.0.0.1:{silent.getsockname()[1]}", 1, 1))
        ref.tell(b"x" * (1 << 19))
        with pytest.raises(SystemBusy):
            ref.tell(b"x" * (1 << 19))


# ---- ends


def test_a_watch_tells_of_the_end_once(hosts, ledger, kind, actor):
    home, other = hosts
    notices = Notices()
    watch(ledger, notices)
    watch(ledger, notices)
    until(lambda: home.metrics()["remote_watchers"] == 1)
    ledger.tell({"crash": 1})
    notice = notices.only()
    assert notice == ActorDied(ledger, notice.reason)
    assert isinstance(notice.reason, ValueError)
    assert not ledger.is_alive()
    late = []
    watch(ledger, late.append)
    assert len(late) == 1
    assert (home.metrics()["remote_watchers"], other.metrics()["remote_watches"]) == (0, 0)
    assert home.published == {}


def test_one_that_is_watched_no_more_is_not_told(hosts, ledger, actor):
    home, _ = hosts
    notices = Notices()
    watch(ledger, notices)
    until(lambda: home.metrics()["remote_watchers"] == 1)
    assert unwatch(ledger, notices)
    until(lambda: home.metrics()["remote_watchers"] == 0)
    actor.stop()
    until(lambda: home.published == {})
    assert notices.all == []


def test_what_an_actor_has_not_answered_when_it_ends_fails_at_once(hosts, things):
    home, other = hosts

    class Slow(pykka.ThreadingActor):
        use_daemon_thread = True
        entered, gate = threading.Event(), threading.Event()

        def on_receive(self, message):
            self.entered.set()
            self.gate.wait(TIMEOUT_S)
            self.stop()

    things.append(Slow.start())
    home.publish("slow", things[-1])
    slow = other.remote(home.address, "slow")
    first = slow.ask("first", block=False)
    assert Slow.entered.wait(TIMEOUT_S)
    stops = things[-1].stop(block=False)
    later = slow.ask("behind the stop", block=False)
    until(lambda: home.metrics()["remote_questions_open"] == 2)
    Slow.gate.set()
    assert first.get(timeout=TIMEOUT_S) is None
    assert isinstance(error_of(later), pykka.ActorDeadError)
    stops.get(timeout=TIMEOUT_S)
    assert not slow.is_alive()


def test_an_actor_that_crashes_in_the_middle_says_so(hosts, things):
    home, other = hosts

    class Crashing(TrioActor):
        def on_receive(self, message):
            raise SystemExit(3)

    things.append(Crashing.start())
    home.publish("crashing", things[-1])
    crashing = other.remote(home.address, "crashing")
    with pytest.raises(ActorCrashed, match="while it handled the message"):
        crashing.ask("now", timeout=TIMEOUT_S)
    until(lambda: home.published == {})
    with pytest.raises(pykka.ActorDeadError):
        crashing.ask("now", timeout=TIMEOUT_S)
    assert not crashing.is_alive()


def test_the_end_of_the_host_ends_what_it_was_asked_and_watched_for(hosts, things):
    home, other = hosts
    things.append(actor := OnLoop.start())
    home.publish("ledger", actor)
    ledger, notices = other.remote(home.address, "ledger"), Notices()
    watch(ledger, notices)
    never = ledger.ask("never", block=False, timeout=TIMEOUT_S)
    until(lambda: home.metrics()["remote_questions_open"] == 1)
    home.stop()
    assert type(error_of(never)) is OutcomeUnknown
    notice = notices.only()
    assert notice.ref == ledger
    assert isinstance(notice.reason, HostGone)
    assert ledger.is_alive(), "nobody has said that it has ended"
    with pytest.raises((HostGone, OutcomeUnknown)):
        ledger.ask("who", timeout=TIMEOUT_S)


def test_a_host_that_stops_ends_what_its_own_actors_have_asked(hosts, things):
    home, other = hosts
    things.append(actor := OnLoop.start())
    home.publish("ledger", actor)
    ledger, notices = other.remote(home.address, "ledger"), Notices()
    watch(ledger, notices)
    outcome = []
    never = ledger.ask("never", block=False, timeout=TIMEOUT_S)

    def wait():
        try:
            ledger.ask("never", timeout=TIMEOUT_S)
        except OutcomeUnknown as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: home.metrics()["remote_questions_open"] == 2)
    other.stop()
    waiting.join(TIMEOUT_S / 2)
    assert not waiting.is_alive()
    for error in (error_of(never), *outcome):
        assert type(error) is OutcomeUnknown
        assert f"this host, {other.address}, has stopped" in str(error)
    assert isinstance(notices.only().reason, HostGone)
    for call in (
        lambda: ledger.ask("who"),
        lambda: ledger.tell("hello"),
        lambda: other.remote(home.address, "ledger"),
        lambda: other.publish("ledger", actor),
    ):
        with pytest.raises(HostGone, match="has stopped"):
            call()
    assert other.published == {}
    until(lambda: home.metrics()["remote_questions_open"] == 0)
    assert home.metrics()["remote_watchers"] == 0


def test_the_answer_for_an_asker_that_is_gone_is_dropped_and_counted(hosts, things):
    home, other = hosts
    promise = ActorFuture()

    class Promising(TrioActor):
        def on_receive(self, message):
            return promise

    things.append(Promising.start())
    home.publish("promising", things[-1])
    asked = other.remote(home.address, "promising").ask("who", block=False)
    until(lambda: home.metrics()["remote_questions_open"] == 1)
    other.stop()
    assert isinstance(error_of(asked), OutcomeUnknown)
    until(lambda: home.metrics()["remote_questions_open"] == 0)
    promise.set("for nobody")
    until(lambda: home.metrics()["remote_answers_dropped_total"] == 1)


# ---- cuts, through a proxy before the host


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


def hosts_behind(gate, things, tick=TICK):
    """A host behind the gate, and one that reaches it through that."""
    options = {"tick_interval": tick, "transport_options": Options(backoff_first=0.01, backoff_last=0.05)}
    things += [host_at(gate.address, listen_address=gate.behind, **options), host_at(**options)]
    return things[-2:]


def asked_and_watched(home, other, things):
    things.append(actor := OnLoop.start())
    home.publish("ledger", actor)
    ledger, notices = other.remote(home.address, "ledger"), Notices()
    watch(ledger, notices)
    until(lambda: home.metrics()["remote_watchers"] == 1)
    never = ledger.ask("never", block=False, timeout=TIMEOUT_S)
    until(lambda: home.metrics()["remote_questions_open"] == 1)
    return ledger, notices, never


def test_a_cut_ends_what_waits_and_the_same_reference_is_of_use_again(gate, things):
    home, other = hosts_behind(gate, things)
    ledger, notices, never = asked_and_watched(home, other, things)
    gate.cut()
    assert type(error_of(never)) is OutcomeUnknown
    assert isinstance(notices.only().reason, HostGone)
    until(lambda: answers(ledger))
    until(lambda: home.metrics()["remote_questions_open"] == home.metrics()["remote_watchers"] == 0)
    again = Notices()
    watch(ledger, again)
    until(lambda: home.metrics()["remote_watchers"] == 1)
    ledger.tell({"crash": 1})
    assert isinstance(again.only().reason, ValueError)
    assert len(notices.all) == 1


def answers(ref):
    try:
        return ref.ask("who", timeout=TIMEOUT_S)
    except (HostGone, OutcomeUnknown):
        return None


def test_a_host_that_falls_silent_ends_what_waits_long_before_the_deadline(gate, things):
    home, other = hosts_behind(gate, things, tick=0.2)
    ledger, notices, never = asked_and_watched(home, other, things)
    until(lambda: other.peers()[home.address].state is HostState.ALIVE)
    gate.hold()
    error = error_of(never)
    assert type(error) is OutcomeUnknown
    assert "taken for dead" in str(error)
    assert isinstance(notices.only().reason, HostGone)
    gate.release()
    until(lambda: answers(ledger))


# ---- names and references


def test_names_are_listed_and_taken_away(hosts, actor):
    home, other = hosts
    home.publish("b", actor)
    home.publish("a", actor)
    assert home.published == {"a": actor, "b": actor}
    assert other.remote_names(home.address) == home.remote_names(home.address) == ["a", "b"]
    assert other.remote_names(home.address, block=False).get(timeout=TIMEOUT_S) == ["a", "b"]
    old = other.remote(home.address, "b")
    watch(old, notices := Notices())
    until(lambda: home.metrics()["remote_watchers"] == 1)
    assert home.unpublish("b")
    assert not home.unpublish("b")
    assert other.remote_names(home.address) == ["a"]
    assert old.ask("who", timeout=TIMEOUT_S), "it is one actor, and has a name yet"
    assert old.is_alive()
    assert old == other.remote(home.address, "a")
    assert home.unpublish("a")
    assert "not published any more" in str(notices.only().reason)
    with pytest.raises(pykka.ActorDeadError):
        old.ask("who", timeout=TIMEOUT_S)
    home.publish("a", actor)
    assert other.remote(home.address, "a").ask("who", timeout=TIMEOUT_S)


def test_at_home_it_is_the_actors_own_reference(hosts, actor):
    home, _ = hosts
    home.publish("ledger", actor)
    assert home.remote(home.address, "ledger") is actor


def test_an_actor_under_two_names_is_one_for_others_and_a_proxy_reaches_what_its_name_says(hosts, things):
    home, other = hosts
    things.append(actor := OnLoop.start())
    home.publish("all", actor, proxy=True)
    home.publish("some", actor, proxy=["balance"])
    all_of_it, some = (other.remote(home.address, name) for name in ("all", "some"))
    assert all_of_it == some == other.remote(home.address, "some")
    assert len({all_of_it, some}) == 1
    with pytest.raises(AttributeError):
        some.proxy().accounts  # noqa: B018  # it is asked for
    assert all_of_it.proxy().accounts.get(timeout=TIMEOUT_S)
    notices = [Notices(), Notices()]
    for ref, notice in zip((all_of_it, some), notices, strict=True):
        watch(ref, notice)
    until(lambda: home.metrics()["remote_watchers"] == 1)
    actor.stop()
    assert [notice.only().reason for notice in notices] == [None, None]


def test_who_finds_an_actor_does_not_wait_long_for_a_host_that_does_not_say_what_a_proxy_reaches(
    hosts, actor, monkeypatch
):
    monkeypatch.setattr(calls, "MAX_DESCRIBE_S", 0.05)
    home, other = hosts
    home.publish("ledger", actor, proxy=True)
    _, place = home._calls.place_of(actor)
    handlers = home._calls._handlers
    monkeypatch.setattr(home._calls, "_handlers", {**handlers, Describe: lambda *_: True})
    found = other._calls.ref_of(place, 1000.0).get(timeout=TIMEOUT_S)
    with pytest.raises(HostGone, match="no answer"):
        found.proxy()
    assert found.ask("who", timeout=TIMEOUT_S)
    monkeypatch.setattr(home._calls, "_handlers", handlers)
    monkeypatch.setattr(calls, "MAX_DESCRIBE_S", TIMEOUT_S)
    assert other._calls.ref_of(place, TIMEOUT_S).get(timeout=TIMEOUT_S).proxy()


def test_one_that_was_restarted_is_another_one(hosts, kind, things):
    home, other = hosts
    things += [first := kind.start(), second := kind.start()]
    home.publish("ledger", first)
    with pytest.raises(NameTaken):
        home.publish("ledger", second)
    old = other.remote(home.address, "ledger")
    first.stop()
    home.publish("ledger", second)  # at once, though the notice of the end may not have come yet
    with pytest.raises(pykka.ActorDeadError):
        old.ask("who", timeout=TIMEOUT_S)
    assert not old.is_alive()
    new = other.remote(home.address, "ledger")
    assert new != old
    assert new.ask("who", timeout=TIMEOUT_S) == kind.__name__
    until(lambda: home.metrics()["remote_published"] == 1)
    assert home.published == {"ledger": second}


def test_a_host_that_starts_again_has_other_actors(things, tmp_path):
    [address] = free_addresses(1)
    things.append(other := host_at())
    things.append(actor := OnLoop.start())
    data = {"data_dir": tmp_path, "tick_interval": TICK}
    with NodeHost(address, **data) as home:
        home.publish("ledger", actor)
        old, notices = other.remote(address, "ledger"), Notices()
        assert old.ask(Deposit("ann", 1), timeout=TIMEOUT_S) == 1
        watch(old, notices)
    assert isinstance(notices.only().reason, HostGone)
    with NodeHost(address, **data) as home:
        home.publish("ledger", actor)
        new = until(lambda: found(other, address, "ledger"))
        assert new.ask(Deposit("ann", 1), timeout=TIMEOUT_S) == 2
        assert new != old
        with pytest.raises(pykka.ActorDeadError, match="earlier run"):
            old.ask("who", timeout=TIMEOUT_S)
        again = Notices()
        watch(old, again)
        assert isinstance(again.only().reason, pykka.ActorDeadError)
        assert actor.ask(Deposit("ann", 0)) == 2


def found(host, address, name):
    try:
        return host.remote(address, name)
    except (HostGone, OutcomeUnknown):
        return None


def test_references_travel_and_are_usable_at_the_other_side(hosts, ledger, things):
    things.append(mine := OnLoop.start())
    assert ledger.ask({"ask": mine}, timeout=TIMEOUT_S) == "OnLoop"
    assert ledger.ask({"ref": mine}, timeout=TIMEOUT_S) == {"ref": mine}, "it comes home as what it was"
    assert ledger.ask({"ref": ledger}, timeout=TIMEOUT_S) == {"ref": ledger}


def test_a_reference_travels_over_a_third_host(hosts, ledger, things):
    things += [third := host_at(), courier := OnLoop.start()]
    third.publish("courier", courier)
    _, other = hosts
    assert other.remote(third.address, "courier").ask({"ask": ledger}, timeout=TIMEOUT_S) == ledger.ask("who")


def test_a_reference_to_an_actor_that_has_ended_travels_and_is_of_no_use(hosts, ledger, things):
    ended = OnLoop.start()
    ended.stop()
    with pytest.raises(pykka.ActorDeadError):
        ledger.ask({"ask": ended}, timeout=TIMEOUT_S)
    until(lambda: hosts[1].metrics()["remote_published"] == 0)


def test_a_thousand_references_in_one_message(hosts, ledger, things):
    _, other = hosts
    mine = [OnLoop.start(loop=other.loop) for _ in range(1000)]
    assert ledger.ask({"tell all": mine}, timeout=TIMEOUT_S) == 1000
    until(lambda: all(ref.ask("told") == ["hello"] for ref in mine))
    assert other.metrics()["remote_published"] == 1000
    for ref in mine:
        ref.stop(block=False)
    until(lambda: other.metrics()["remote_published"] == 0)


# ---- certificates


def test_an_acl_lets_in_hosts_by_the_names_in_their_certificates(things, tmp_path):
    ca = trustme.CA()

    def tls(name):
        issued = ca.issue_cert("127.0.0.1", name)
        files = {}
        for kind, blob in (
            ("cert", issued.cert_chain_pems[0]),
            ("key", issued.private_key_pem),
            ("ca", ca.cert_pem),
        ):
            files[kind] = tmp_path / f"{name}.{kind}"
            blob.write_to_path(str(files[kind]))
        return TlsConfig(**files)

    hosts = [host_at(tls=tls(name)) for name in ("home.example", "teller.example", "stranger.example")]
    things += hosts
    home, teller, stranger = hosts
    things.append(actor := OnLoop.start())
    home.publish("ledger", actor, acl=["teller.example"])
    ledger = teller.remote(home.address, "ledger")
    assert ledger.ask("who", timeout=TIMEOUT_S) == "OnLoop"
    with pytest.raises(NotAllowed, match="acl"):
        stranger.remote(home.address, "ledger")
    assert teller.remote_names(home.address) == ["ledger"]
    assert stranger.remote_names(home.address) == []
    # Even one that was told the number is not let in.
    things.append(courier := OnLoop.start())
    stranger.publish("courier", courier)
    with pytest.raises(NotAllowed, match="acl"):
        teller.remote(stranger.address, "courier").ask({"ask": ledger}, timeout=TIMEOUT_S)


# ---- forks


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_at_once_whatever_it_asks(hosts, ledger, actor):
    home, other = hosts
    proxy = ledger.proxy()
    waits = ledger.ask("never", block=False, timeout=TIMEOUT_S)
    links, rooms = other._calls._links, other._transport._call_rooms
    with links._lock, rooms.lock, ledger.termination._lock:  # as threads may that are gone in the child
        outcome = in_child(
            lambda: [
                told(
                    lambda: ledger.tell("hello"),
                    lambda: ledger.ask("who"),
                    lambda: ledger.ask("who", block=False),
                    ledger.proxy,
                    lambda: proxy.balance("ann"),
                    lambda: watch(ledger, print),
                    lambda: unwatch(ledger, print),
                    lambda: waits.get(timeout=1),
                    lambda: other.remote(home.address, "ledger"),
                    lambda: other.remote_names(home.address),
                    lambda: other.publish("ledger", actor),
                    lambda: other.unpublish("ledger"),
                    lambda: other.published,
                ),
                ledger.is_alive(),
            ]
        )
    assert outcome == [["ForkedError"] * 13, False]
    assert ledger.ask("who", timeout=TIMEOUT_S)


# ---- mistakes


def test_a_bad_publish_names_the_value(hosts, actor):
    for name, more, text in (
        ("", {}, "printable"),
        ("a", {"proxy": "balance"}, "list of names"),
        ("a", {"acl": []}, "tls"),
    ):
        with pytest.raises(ConfigError, match=text):
            hosts[0].publish(name, actor, **more)
    actor.stop()
    with pytest.raises(ConfigError, match="has ended"):
        hosts[0].publish("a", actor)


def test_only_references_of_this_process_are_published(hosts, ledger):
    for ref in (ledger, OnLoop):
        with pytest.raises(ConfigError, match="this process"):
            hosts[1].publish("again", ref)


def test_a_proxy_may_be_published_in_place_of_its_reference(hosts, actor):
    home, other = hosts
    home.publish("ledger", actor.proxy())
    assert other.remote(home.address, "ledger").ask("who", timeout=TIMEOUT_S)


def test_figures_of_a_host_tell_of_its_calls(hosts, ledger, actor):
    home, other = hosts
    figures = home.metrics()
    assert figures["remote_published"] == 1
    assert figures["remote_messages_dropped_total"] == 0
    gone = RemoteRef(ledger._caller, Place(home.address, ledger.place.run, 7))
    gone.tell("hello")
    assert ledger.ask("who", timeout=TIMEOUT_S)
    assert home.metrics()["remote_messages_dropped_total"] == home.counters[replies.DROPPED_MESSAGES] == 1
    assert other.metrics()["remote_answers_late_total"] == 0
