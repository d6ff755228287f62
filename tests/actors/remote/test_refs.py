"""References to actors of other hosts, where pykka's own code and its users meet them; their watchers; and their proxies."""

import copy
import pickle

import pykka
import pytest
from drakkar.actors import ActorDied, ConfigError, RemoteProxy, RemoteRef, TrioActor, unwatch, watch
from drakkar.actors.remote.questions import settled
from drakkar.actors.remote.refs import Place, RemoteTermination
from drakkar.actors.runtime.forks import Process
from drakkar.handlers.errors import ForkedError, SystemBusy
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

from tests.actors.remote.fakes import THERE

PLACE = Place(THERE, 5, 6)


class Caller:
    """What sends for references: it keeps what is asked, and answers at once."""

    def __init__(self):
        self.asked, self.watches = [], []
        self.refuses = None
        self.terminations = {}

    def link_to(self, address):
        return object()

    def termination_of(self, place):
        return self.terminations.setdefault(place, RemoteTermination(self, place))

    def tell(self, ref, message):
        self.asked.append((message, None))

    def ask(self, ref, message, timeout):
        self.asked.append((message, timeout))
        return settled("answer")

    def watch(self, termination):
        if self.refuses is not None:
            raise self.refuses
        self.watches.append("watch")
        termination.watch_number = len(self.watches)

    def unwatch(self, termination):
        self.watches.append("unwatch")


@pytest.fixture
def caller():
    return Caller()


@pytest.fixture
def ref(caller):
    attributes = {"balance": False, "deposit": True, "library": {"titles": False, "search": True}}
    return RemoteRef(caller, PLACE, name="ledger", class_name="Keeper", attributes=attributes)


# ---- references


def test_it_says_what_and_where_it_is(ref, caller):
    assert str(ref) == f"Keeper 'ledger' at {THERE}"
    assert repr(ref) == f"<RemoteRef {ref}>"
    assert str(RemoteRef(caller, PLACE)) == f"Actor at {THERE}"


def test_two_references_to_one_actor_are_equal_and_no_others_are(ref, caller):
    same = RemoteRef(caller, PLACE, name="another name")
    others = [RemoteRef(caller, Place(THERE, *numbers)) for numbers in ((5, 7), (4, 6))]
    assert ref == same
    assert hash(ref) == hash(same)
    assert ref not in others
    assert ref != ref.actor_urn
    assert len({ref, same, *others}) == 3


def test_it_counts_as_a_reference_of_pykka_and_pykkas_registry_does_not_mind(ref):
    assert isinstance(ref, pykka.ActorRef)
    local = Quiet.start()
    try:
        assert ref not in pykka.ActorRegistry.get_all()
        pykka.ActorRegistry.unregister(ref)
        assert local in pykka.ActorRegistry.get_all()
        assert local != ref
        assert ref != local
        assert pykka.ActorRegistry.get_by_urn(ref.actor_urn) is None
    finally:
        local.stop()


class Quiet(TrioActor):
    pass


def test_what_is_only_at_its_own_host_is_no_attribute_here(ref):
    assert not hasattr(ref, "actor_inbox")
    with pytest.raises(AttributeError, match=r"use its proxy\(\)"):
        pykka.ActorProxy(actor_ref=ref)


def test_it_is_neither_stopped_nor_pickled_from_here(ref):
    for block in (True, False):
        with pytest.raises(TypeError, match="may stop it"):
            ref.stop(block=block)
    for dump in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="send it in a message"):
            dump(ref)


def test_ask_waits_or_returns_a_future(ref, caller):
    assert ref.ask("who", timeout=3) == "answer"
    assert ref.ask("who", block=False).get() == "answer"
    ref.tell("hello")
    assert caller.asked == [("who", 3), ("who", None), ("hello", None)]


def test_a_forked_child_has_no_use_of_it(ref, monkeypatch):
    monkeypatch.setattr(ref.termination, "process", Process(1))
    assert not ref.is_alive()
    with pytest.raises(ForkedError):
        watch(ref, print)
    with pytest.raises(ForkedError):
        unwatch(ref, print)


# ---- watchers


def test_a_watcher_is_told_of_the_end_once_and_so_are_those_that_come_later(ref, caller):
    died = []
    watch(ref, died.append)
    watch(ref, died.append)
    reason = ValueError("crashed")
    ref.termination.ended(reason)
    ref.termination.ended(None)
    assert died == [ActorDied(ref, reason)]
    assert not ref.is_alive()
    watch(ref, died.append)
    assert died[1:] == [ActorDied(ref, reason)]
    assert caller.watches == ["watch"], "one for all watchers, and none any more after the end"


def test_all_references_to_an_actor_share_what_is_known_of_its_end(ref, caller):
    same, died = RemoteRef(caller, PLACE), []
    watch(same, died.append)
    assert unwatch(ref, died.append)
    assert not unwatch(ref, died.append)
    assert caller.watches == ["watch", "unwatch"]
    watch(ref, died.append)
    ref.termination.ended(None)
    assert not same.is_alive()
    assert len(died) == 1


def test_the_watch_ends_with_its_last_watcher(ref, caller):
    first, second = [], []
    watch(ref, first.append)
    watch(ref, second.append)
    assert unwatch(ref, first.append)
    assert caller.watches == ["watch"]
    assert unwatch(ref, second.append)
    assert caller.watches == ["watch", "unwatch"]
    ref.termination.ended(None)
    assert first == second == []


def test_one_that_is_lost_may_be_watched_again_in_the_very_notice(ref, caller):
    reasons = []

    def again(notice):
        reasons.append(str(notice.reason))
        if len(reasons) < 3:
            watch(ref, again)

    watch(ref, again)
    ref.termination.lost(1, OSError("cut"))
    assert reasons == ["cut"]
    assert ref.is_alive(), "it may be"
    ref.termination.lost(1, OSError("the same news again"))
    assert reasons == ["cut"]
    ref.termination.lost(2, OSError("cut again"))
    ref.termination.ended(ValueError("crashed"))
    assert reasons == ["cut", "cut again", "crashed"]
    assert caller.watches == ["watch"] * 3


def test_a_watch_that_cannot_be_asked_for_is_refused_and_leaves_nothing(ref, caller):
    died = []
    caller.refuses = SystemBusy("too much waits")
    with pytest.raises(SystemBusy):
        watch(ref, died.append)
    caller.refuses = None
    watch(ref, died.append)
    assert caller.watches == ["watch"], "it is asked for anew"
    ref.termination.ended(None)
    assert len(died) == 1


def test_what_is_no_reference_cannot_be_watched():
    with pytest.raises(ConfigError, match="the ref of an actor"):
        watch("ledger", print)


# ---- proxies


@pytest.fixture
def proxy(ref):
    return ref.proxy()


def test_a_method_is_called_and_returns_a_future(proxy, caller):
    assert proxy.deposit("ann", amount=5).get() == "answer"
    proxy.deposit.defer("bob")
    proxy.deposit.within(3.0)("eve")
    assert caller.asked == [
        (ProxyCall(("deposit",), ("ann",), {"amount": 5}), None),
        (ProxyCall(("deposit",), ("bob",), {}), None),
        (ProxyCall(("deposit",), ("eve",), {}), 3.0),
    ]
    assert repr(proxy.deposit) == f"<RemoteMethod Keeper 'ledger' at {THERE}.deposit>"


def test_an_attribute_is_read_by_a_future_and_set_at_once(proxy, caller):
    assert proxy.balance.get() == "answer"
    proxy.balance = 7
    assert caller.asked == [(ProxyGetAttr(("balance",)), None), (ProxySetAttr(("balance",), 7), None)]


def test_it_goes_down_into_what_is_traversable(proxy, caller):
    library = proxy.library
    assert isinstance(library, RemoteProxy)
    library.search("poe")
    _ = library.titles
    library.titles = []
    assert [message.attr_path for message, _ in caller.asked] == [
        ("library", "search"),
        ("library", "titles"),
        ("library", "titles"),
    ]


def test_it_reaches_nothing_else_and_says_what_it_reaches(proxy, caller):
    with pytest.raises(AttributeError, match="has no 'stop': it reaches balance, deposit, library"):
        proxy.stop  # noqa: B018
    with pytest.raises(AttributeError, match="public"):
        proxy._secret  # noqa: B018
    for name in ("deposit", "library", "nothing"):
        with pytest.raises(AttributeError):
            setattr(proxy, name, 1)
    with pytest.raises(AttributeError):
        proxy.library.nothing  # noqa: B018
    assert caller.asked == []
    assert {"balance", "deposit", "library", "actor_ref"} <= set(dir(proxy))


def test_proxies_are_equal_where_they_reach_the_same(ref, proxy):
    assert proxy == ref.proxy()
    assert hash(proxy) == hash(ref.proxy())
    assert proxy.library == proxy.library != proxy
    assert proxy != ref


def test_a_proxy_that_is_copied_asks_nothing(proxy, caller):
    with pytest.raises(TypeError, match="send it in a message"):
        copy.deepcopy(proxy)
    assert copy.copy(proxy) == proxy
    assert caller.asked == []


def test_there_is_no_proxy_of_one_that_has_ended_or_was_not_published_for_it(ref, caller):
    with pytest.raises(TypeError, match="proxy=True"):
        RemoteRef(caller, Place(THERE, 5, 9)).proxy()
    ref.termination.ended(None)
    with pytest.raises(pykka.ActorDeadError):
        ref.proxy()
