"""Actors of two hosts, over real sockets: what a reference to one elsewhere does as pykka's own does, and what differs."""

import threading
from dataclasses import dataclass

import pykka
import pytest
from drakkar.actors import (
    IN_MEMORY,
    ActorDied,
    AnswerTimeout,
    ConfigError,
    DeadlockError,
    HostGone,
    NameTaken,
    NodeHost,
    OutcomeUnknown,
    RemoteError,
    RemoteRef,
    SystemBusy,
    TrioActor,
    UnknownName,
    ValueRefused,
    failure,
    message,
    watch,
)

from tests.actors.support import TIMEOUT_S, until
from tests.ports import free_addresses


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


class Keeper:
    """What the actors of all kinds do alike."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accounts = {"ann": 0}
        self.told = []
        self.gate = threading.Event()

    def on_receive(self, message):
        match message:
            case Deposit(account, amount):
                self.accounts[account] += amount
                return self.accounts[account]
            case {"fail": name}:
                raise {"known": Overdrawn("ann", 5), "unknown": Unregistered("no"), "builtin": KeyError("bob")}[name]
            case {"ask": ref}:
                return ref.ask("who", block=False)
            case "who":
                return type(self).__name__
            case "told":
                return self.told
            case "unsendable":
                return object()
            case {"crash": _}:
                raise ValueError("crashed")
            case _:
                self.told.append(message)
                return message

    def balance(self, account):
        return self.accounts[account]

    def fail(self):
        raise Overdrawn("ann", 7)

    def _private(self):
        return "secret"


class Threaded(Keeper, pykka.ThreadingActor):
    use_daemon_thread = True


class OnLoop(Keeper, TrioActor):
    pass


KINDS = (Threaded, OnLoop)


@pytest.fixture
def hosts():
    made = []
    try:
        for _ in range(2):
            made.append(NodeHost("127.0.0.1:0", data_dir=IN_MEMORY))
        yield made
    finally:
        for host in made:
            host.stop()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def actor(kind):
    ref = kind.start()
    yield ref
    if ref.is_alive():
        ref.stop()


@pytest.fixture
def ledger(hosts, actor):
    home, other = hosts
    home.publish("ledger", actor, proxy=True)
    return other.remote(home.address, "ledger")


# ---- tell, ask, proxy


def test_ask_answers_as_a_local_reference_does(ledger, actor):
    assert ledger.ask(Deposit("ann", 5), timeout=TIMEOUT_S) == actor.ask(Deposit("ann", 0)) == 5
    future = ledger.ask(Deposit("ann", 2), block=False)
    assert future.get(timeout=TIMEOUT_S) == 7


def test_tell_arrives_in_order(ledger):
    for number in range(1000):
        ledger.tell(number)
    assert ledger.ask("told", timeout=TIMEOUT_S) == list(range(1000))


def test_a_proxy_calls_methods_and_reads_and_sets_attributes(ledger, actor):
    proxy = ledger.proxy()
    assert proxy.balance("ann").get(timeout=TIMEOUT_S) == 0
    assert proxy.accounts.get(timeout=TIMEOUT_S) == {"ann": 0}
    proxy.accounts = {"ann": 3}
    assert actor.proxy().accounts.get() == {"ann": 3}
    with pytest.raises(Overdrawn) as caught:
        proxy.fail().get(timeout=TIMEOUT_S)
    assert caught.value.args == ("ann", 7)
    assert "in fail" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("name", ["_private", "stop", "on_receive", "actor_ref", "nothing"])
def test_a_proxy_reaches_no_more_than_was_published(ledger, name):
    with pytest.raises(AttributeError):
        getattr(ledger.proxy(), name)


@pytest.mark.parametrize("name", ["_private", "stop", "__class__", "on_stop"])
def test_a_proxy_that_claims_to_reach_more_is_refused(ledger, name):
    forged = RemoteRef(ledger._caller, ledger.place, attributes={name: True})
    with pytest.raises(Exception, match="not published"):
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


def test_futures_can_be_awaited_on_the_loop(hosts, ledger):
    _, other = hosts

    async def ask():
        return await ledger.ask(Deposit("ann", 4), block=False)

    assert other.loop.call(ask, timeout=TIMEOUT_S) == 4


def test_what_would_block_the_loop_is_refused(hosts, ledger):
    home, other = hosts
    for call in (
        lambda: ledger.ask("who"),
        lambda: other.remote(home.address, "ledger"),
        lambda: other.remote_names(home.address),
    ):
        with pytest.raises(DeadlockError):
            other.loop.call(call, timeout=TIMEOUT_S)


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
        with pytest.raises(ValueRefused, match="a set"):
            send({"names": {"ann"}})
    with pytest.raises(ValueRefused, match="answer"):
        ledger.ask("unsendable", timeout=TIMEOUT_S)


def test_an_unknown_name_is_a_clear_error(hosts):
    home, other = hosts
    with pytest.raises(UnknownName, match="ledger"):
        other.remote(home.address, "ledger")


def test_a_host_that_is_gone_is_a_clear_error_at_once(hosts):
    _, other = hosts
    [nobody] = free_addresses(1)
    with pytest.raises(HostGone, match="refused"):
        other.remote(nobody, "ledger")


def test_a_deadline_ends_a_question(hosts, kind):
    home, other = hosts

    class Slow(kind):
        def on_receive(self, message):
            if message == "slow" and isinstance(self, pykka.ThreadingActor):
                self.gate.wait(TIMEOUT_S)
            return super().on_receive(message)

    actor = Slow.start()
    home.publish("slow", actor)
    slow = other.remote(home.address, "slow")
    if kind is Threaded:
        gate = actor.proxy().gate.get()
        with pytest.raises(AnswerTimeout) as caught:
            slow.ask("slow", timeout=0.05)
        assert isinstance(caught.value, pykka.Timeout) and isinstance(caught.value, OutcomeUnknown)
        gate.set()
    assert slow.ask("who", timeout=TIMEOUT_S) == "Slow"
    actor.stop()


def test_the_end_of_the_host_fails_what_it_has_not_answered(hosts):
    home, other = hosts
    actor = Threaded.start()
    home.publish("ledger", actor)
    ledger = other.remote(home.address, "ledger")
    died, seen = [], threading.Event()
    watch(ledger, lambda notice: (died.append(notice), seen.set()))
    assert ledger.ask("who", timeout=TIMEOUT_S)
    home.stop()
    assert seen.wait(TIMEOUT_S)
    [notice] = died
    assert notice.ref == ledger and isinstance(notice.reason, HostGone)
    with pytest.raises((HostGone, OutcomeUnknown)):
        ledger.ask("who", timeout=TIMEOUT_S)
    actor.stop()


# ---- names and references


def test_names_are_listed_and_taken_away(hosts, actor):
    home, other = hosts
    home.publish("b", actor)
    home.publish("a", actor)
    assert home.published == {"a": actor, "b": actor}
    assert other.remote_names(home.address) == home.remote_names(home.address) == ["a", "b"]
    old = other.remote(home.address, "b")
    assert home.unpublish("b") and not home.unpublish("b")
    with pytest.raises(pykka.ActorDeadError):
        old.ask("who", timeout=TIMEOUT_S)
    assert other.remote_names(home.address) == ["a"]


def test_at_home_it_is_the_actors_own_reference(hosts, actor):
    home, _ = hosts
    home.publish("ledger", actor)
    assert home.remote(home.address, "ledger") is actor


def test_one_that_was_restarted_is_another_one(hosts, kind):
    home, other = hosts
    first, second = kind.start(), kind.start()
    home.publish("ledger", first)
    with pytest.raises(NameTaken):
        home.publish("ledger", second)
    old = other.remote(home.address, "ledger")
    first.stop()
    until(lambda: "ledger" not in home.published)
    home.publish("ledger", second)
    with pytest.raises(pykka.ActorDeadError):
        old.ask("who", timeout=TIMEOUT_S)
    assert not old.is_alive()
    new = other.remote(home.address, "ledger")
    assert new != old and new.ask("who", timeout=TIMEOUT_S) == kind.__name__
    second.stop()


def test_references_travel_and_are_usable_at_the_other_side(hosts, ledger):
    _, other = hosts
    mine = OnLoop.start()
    assert ledger.ask({"ask": mine}, timeout=TIMEOUT_S) == "OnLoop"
    assert ledger.ask({"ref": mine}, timeout=TIMEOUT_S) == {"ref": mine}, "it comes home as what it was"
    assert ledger.ask({"ref": ledger}, timeout=TIMEOUT_S) == {"ref": ledger}
    mine.stop()


def test_a_watch_tells_of_the_end_once(hosts, kind):
    home, other = hosts
    actor = kind.start()
    home.publish("ledger", actor)
    ledger = other.remote(home.address, "ledger")
    died = []
    watch(ledger, died.append)
    watch(ledger, died.append)
    ledger.tell({"crash": 1})
    until(lambda: died)
    [notice] = died
    assert isinstance(notice, ActorDied) and not ledger.is_alive()
    assert kind is Threaded or isinstance(notice.reason, ValueError)
    late = []
    watch(ledger, late.append)
    assert len(late) == 1


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("", {}, "printable"),
        ("a" * 201, {}, "printable"),
        ("a\nb", {}, "printable"),
        (7, {}, "string"),
        ("a", {"proxy": "balance"}, "list of names"),
        ("a", {"proxy": ["nothing"]}, "no public method"),
        ("a", {"acl": ["teller.example"]}, "tls"),
    ],
)
def test_a_bad_publish_names_the_value(hosts, actor, name, more, text):
    with pytest.raises(ConfigError, match=text):
        hosts[0].publish(name, actor, **more)


def test_only_references_of_this_process_are_published(hosts, ledger):
    with pytest.raises(ConfigError, match="this process"):
        hosts[1].publish("again", ledger)
    with pytest.raises(ConfigError, match="this process"):
        hosts[1].publish("class", OnLoop)


def test_a_remote_actor_is_not_stopped_from_here(ledger):
    with pytest.raises(TypeError, match="its own|another host"):
        ledger.stop()


def test_too_much_that_waits_is_refused_at_once(hosts):
    _, other = hosts
    [nobody] = free_addresses(1)
    ref = RemoteRef(other._calls, type("P", (), {"address": nobody, "run": 1, "number": 1})())
    with pytest.raises(SystemBusy):
        for _ in range(100):
            ref.tell(b"x" * (1 << 19))
