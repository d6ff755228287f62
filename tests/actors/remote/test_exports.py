"""References in messages: what they become on the way, and where they come out."""

import gc

import pykka
import pytest
from drakkar.actors import RemoteRef
from drakkar.actors.names.directory import MAX_PLACE_BYTES
from drakkar.actors.remote.refs import Place
from drakkar.actors.remote.values import ValueRefused, pack, unpack
from drakkar.handlers.errors import ConfigError, DrakkarError, SystemBusy
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.remote.fakes import HERE, OTHER_RUN, RUN, THERE, Fake, Side
from tests.actors.remote.support import PLAIN


class Host(Side):
    """A host with an address and a run of its own."""

    def __init__(self, address=HERE, run=RUN):
        super().__init__()
        self.wire.address, self.wire.run = address, run

    def send(self, value, to):
        return unpack(pack(value, self.exports), to.exports)


class Account:
    def __init__(self):
        self.balance = 1

    def deposit(self): ...


@pytest.fixture
def home():
    return Host()


@pytest.fixture
def other():
    return Host(THERE, OTHER_RUN)


def test_a_local_actor_comes_out_as_a_reference_to_it(home, other):
    ref = Fake(actor=Account())
    home.published.publish("ledger", ref, proxy=True)
    there = home.send({"to": [ref]}, other)["to"][0]
    assert isinstance(there, RemoteRef)
    assert there.place == Place(HERE, RUN, home.published.by_name("ledger").number)
    assert str(there) == f"Account 'ledger' at {HERE}"
    assert there.attributes == {"balance": False, "deposit": True}


def test_it_comes_home_as_what_it_was_and_over_a_third_host_too(home, other):
    third, ref = Host("10.0.0.3:7000", 79), Fake()
    there = home.send(ref, other)
    assert other.send(there, home) is ref
    assert third.send(other.send(there, third), home) is ref
    assert third.send(other.send(there, third), other) == there


def test_one_that_has_ended_comes_home_as_one_that_has(home, other):
    ref = Fake()
    there = home.send(ref, other)
    home.published.forget(ref.actor_urn)
    back = other.send(there, home)
    assert isinstance(back, RemoteRef)
    assert not back.is_alive()
    with pytest.raises(pykka.ActorDeadError):
        back.ask("who")
    assert home.wire.take() == [], "the host does not ask itself"


def test_one_of_an_earlier_run_of_this_host_has_ended(other):
    there = Host(run=1).send(Fake(), other)
    assert not other.send(there, Host(run=2)).is_alive()
    assert there.is_alive(), "as far as others know"


def test_a_number_of_another_run_is_no_actor_of_this_one(home, other):
    """Numbers are drawn anew in each run, so one of an earlier run, or one that is forged, may be that of an actor here."""
    ref = Fake()
    there = home.send(ref, other)
    exported = other.exports.export(there)
    assert home.exports.import_(exported) is ref
    exported[1] = OTHER_RUN
    assert not home.exports.import_(exported).is_alive()


def test_a_proxy_travels_as_its_reference(home, other):
    ref = Fake(actor=Account())
    home.published.publish("ledger", ref, proxy=True)
    there = home.send(ref, other)
    assert other.send(there.proxy(), home) is ref


def test_references_to_one_actor_share_what_is_known_of_it(home, other):
    ref = Fake()
    first, second = home.send(ref, other), home.send(ref, other)
    assert first == second
    assert first is not second
    assert first.termination is second.termination
    places = other.asking._terminations
    assert len(places) == 1
    del first, second
    gc.collect()
    assert len(places) == 0, "and nothing is left of what nobody refers to"


def test_a_reference_that_cannot_be_sent_refuses_the_message(home, other, monkeypatch):
    monkeypatch.setattr("drakkar.actors.remote.published.MAX_ACTORS", 0)
    with pytest.raises((SystemBusy, ValueRefused), match="can be reached by others"):
        home.send([Fake()], other)


@pytest.mark.parametrize(
    "exported",
    [
        [],
        [HERE, 1, 2, "a", "Keeper"],
        [HERE, 1, 2, "a", "Keeper", [], None],
        [None, 1, 2, "a", "Keeper", []],
        ["nonsense", 1, 2, "a", "Keeper", []],
        [HERE, -1, 2, "a", "Keeper", []],
        [HERE, 1, 1 << 63, "a", "Keeper", []],
        [HERE, True, 2, "a", "Keeper", []],
        [HERE, 1, 2, None, "Keeper", []],
        [HERE, 1, 2, "a\0b", "Keeper", []],
        [HERE, 1, 2, "a" * 1000, "Keeper", []],
        [HERE, 1, 2, "a", "Kee\0per", []],
        [HERE, 1, 2, "a", "", []],
        [HERE, 1, 2, "a", "K" * 1000, []],
        [HERE, 1, 2, "a", "Keeper", None],
        [HERE, 1, 2, "a", "Keeper", [1]],
        [HERE, 1, 2, "a", "Keeper", ["a()", "a.b"]],
    ],
    ids=str,
)
def test_what_no_host_sends_is_refused(other, exported):
    with pytest.raises(DrakkarError):
        other.exports.import_(exported)


LEAVES = st.one_of(PLAIN, st.sampled_from([HERE, THERE, RUN, "ledger", "Keeper"]))


@given(st.lists(st.one_of(LEAVES, st.lists(LEAVES, max_size=3)), max_size=7))
def test_whatever_stands_in_a_message_it_is_a_reference_or_refused(exported):
    try:
        ref = SIDE.exports.import_(exported)
    except DrakkarError:
        return
    assert isinstance(ref, RemoteRef)
    assert SIDE.exports.export(ref)[1:3] == exported[1:3]


SIDE = Host()


# ---- places, for directories


def test_the_place_of_an_actor_is_a_reference_on_any_host(home, other):
    ref = Fake(actor=Account())
    home.published.publish("ledger", ref, proxy=True)
    number, place = home.exports.place_of(ref)
    assert number == home.published.by_name("ledger").number
    found = other.exports.ref_of(place)
    assert found == home.send(ref, other)
    assert str(found) == f"Account 'ledger' at {HERE}"
    assert home.exports.ref_of(place) is ref


def test_a_place_has_a_bound_whatever_its_actor_is_and_lasts_as_long_as_it(other):
    home = Host("h" * 253 + ":65535", (1 << 63) - 1)
    account = type("K" + chr(0x10000) * 199, (Account,), {})()
    for number in range(900):
        setattr(account, f"attribute_{number}", number)
    ref = Fake(actor=account)
    home.published.publish(chr(0x10000) * 200, ref, proxy=True)
    _, place = home.exports.place_of(ref)
    assert 1_800 < len(place) <= MAX_PLACE_BYTES
    home.published.unpublish(chr(0x10000) * 200)
    assert home.exports.ref_of(place) is ref


def test_only_actors_that_live_here_have_a_place(home, other):
    ended = Fake()
    ended.actor_stopped.set()
    for ref in (ended, home.send(Fake(), other), "ledger", None):
        with pytest.raises(ConfigError, match="of this process that lives"):
            other.exports.place_of(ref)


@pytest.mark.parametrize("place", [b"", b"\xff", b"\x01", b"\x80", b"\x85\x01\x02\x03\x04\x05"])
def test_what_is_no_place_is_a_value_error(home, place):
    with pytest.raises(ValueError, match=r"place|CBOR"):
        home.exports.ref_of(place)
