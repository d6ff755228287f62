"""What a host publishes: who has which name and number, for how long, and what a proxy reaches of it."""

import pykka
import pytest
from drakkar.actors import TableActor, TrioActor
from drakkar.actors.remote import published
from drakkar.actors.remote.errors import NameTaken, UnknownName
from drakkar.actors.remote.published import Grant, Published
from drakkar.actors.remote.reach import MAX_ATTRIBUTES, kind_at, reach_of
from drakkar.handlers.errors import ConfigError, LoopError, SystemBusy

from tests.actors.remote.fakes import Fake


@pytest.fixture
def watched():
    return []


@pytest.fixture
def door(watched):
    return Published(watched.append, watched.remove)


def number_of(door, name):
    return door.by_name(name).number


# ---- names and numbers


def test_an_actor_has_one_number_for_all_its_names_and_references_that_is_not_guessed(door):
    ref, other = Fake(), Fake()
    number = door.export(ref).number
    for name in ("a", "b"):
        door.publish(name, ref)
    door.publish("c", other)
    assert number_of(door, "a") == number_of(door, "b") == door.export(ref).number == number
    assert number_of(door, "c") != number
    assert min(number, number_of(door, "c")) > 1 << 30
    assert door.by_number(number).ref is ref
    assert door.names() == {"a": ref, "b": ref, "c": other}
    assert len(door) == 2


def test_an_actor_that_ends_goes_with_all_its_names(door, watched):
    ref, other = Fake(), Fake()
    for name in ("a", "b"):
        door.publish(name, ref)
    door.publish("c", other)
    exported = door.export(ref)
    gone = door.forget(ref.actor_urn)
    assert list(gone.grants) == ["a", "b"]
    assert gone is exported
    assert door.names() == {"c": other}
    assert door.by_number(gone.number) is None
    assert door.forget(ref.actor_urn) is None
    assert len(door) == 1


def test_a_name_belongs_to_one_actor_while_that_lives(door):
    first, second = Fake(), Fake()
    door.publish("a", first)
    before = number_of(door, "a")
    with pytest.raises(NameTaken, match="unpublish it first"):
        door.publish("a", second)
    assert number_of(door, "a") == before
    first.actor_stopped.set()
    with pytest.raises(UnknownName):
        door.by_name("a")
    door.publish("a", second)
    assert number_of(door, "a") != before
    assert door.forget(first.actor_urn).number == before
    assert door.by_number(before) is None
    assert door.by_name("a").ref is second, "the notice of the first one's end takes nothing from the second"


def test_an_actor_that_is_published_again_stays_reachable_and_its_proxies_reach_what_is_said_now(door):
    ref = Fake(actor=Account())
    door.publish("a", ref)
    before = number_of(door, "a")
    door.publish("a", ref, proxy=["balance"], acl=["x"])
    actor = door.by_number(before)
    assert actor.grants == {"a": Grant({"balance": False}, frozenset("x"))}
    assert door.by_name("a") is actor
    assert len(door) == 1


def test_what_is_unpublished_is_out_of_reach_at_once(door):
    ref = Fake()
    door.publish("a", ref)
    before = number_of(door, "a")
    assert door.unpublish("a").number == before
    assert door.unpublish("a") is None
    assert door.by_number(before) is None
    with pytest.raises(UnknownName):
        door.by_name("a")


def test_an_actor_is_watched_once_and_for_as_long_as_it_can_be_reached(door, watched):
    ref = Fake()
    door.publish("a", ref)
    door.publish("b", ref)
    assert watched == [ref]
    door.unpublish("a")
    assert watched == [ref]
    door.unpublish("b")
    assert watched == []
    door.export(ref)
    assert watched == [ref]
    door.clear()
    assert (watched, len(door), door.names()) == ([], 0, {})


def test_an_actor_that_cannot_be_watched_is_not_reached(watched):
    def fail(_):
        raise LoopError("the loop has ended")

    door = Published(fail, watched.remove)
    with pytest.raises(LoopError):
        door.publish("a", Fake())
    with pytest.raises(LoopError):
        door.export(Fake())
    assert (len(door), door.names()) == (0, {})


# ---- references in messages


def test_a_reference_goes_by_the_first_name_that_is_for_all_hosts_or_else_the_first_or_by_none(door):
    ref = Fake(actor=Account())
    nameless = door.export(ref)
    assert (nameless.name, nameless.attributes) == ("", {})
    assert door.export(ref) is nameless, "however often it is sent"
    door.publish("z", ref, acl=["teller.example"])
    door.publish("y", ref, acl=["teller.example"])
    assert door.export(ref).name == "z"
    door.publish("b", ref, proxy=["deposit"])
    door.publish("a", ref)
    assert (door.export(ref).name, door.export(ref).attributes) == ("b", {"deposit": True})
    for name in ("a", "b", "y", "z"):
        door.unpublish(name)
    assert door.export(ref).name == ""
    assert door.by_number(nameless.number).ref is ref, "references that were sent stay of use"


def test_a_lasting_reference_outlives_the_names_of_its_actor_and_others_go_with_them(door):
    ref = Fake()
    door.publish("a", ref)
    number = door.export(ref).number
    door.unpublish("a")
    assert door.by_number(number) is None
    door.publish("a", ref)
    number = door.export(ref, lasting=True).number
    assert door.export(ref, lasting=True).name == "a"
    door.unpublish("a")
    assert door.by_number(number).ref is ref
    door.publish("a", ref)
    assert number_of(door, "a") == number


# ---- what others are granted


def lets_in(actor, *names):
    """Whether a host with these names in its certificate reaches an actor, and how far."""
    grants = actor.granted_to(lambda acl: bool(acl & set(names)))
    return bool(grants) and set().union(*(grant.attributes for grant in grants))


def test_names_decide_who_reaches_an_actor_however_a_reference_was_got(door):
    ref = Fake(actor=Account())
    number = door.export(ref).number
    assert lets_in(door.by_number(number)) == set()
    door.publish("manager", ref, proxy=["balance", "deposit"], acl=["manager.example"])
    assert lets_in(door.by_number(number)) is False
    assert lets_in(door.by_number(number), "manager.example") == {"balance", "deposit"}
    door.publish("teller", ref, proxy=["deposit"])
    assert lets_in(door.by_number(number)) == {"deposit"}
    assert lets_in(door.by_number(number), "manager.example") == {"balance", "deposit"}


def test_no_name_that_is_taken_away_lets_anyone_in(door):
    ref = Fake()
    number = door.export(ref).number
    door.publish("all", ref)
    door.publish("some", ref, acl=["teller.example"])
    door.unpublish("all")
    assert lets_in(door.by_number(number)) is False
    door.unpublish("some")
    assert lets_in(door.by_number(number)) is False
    assert lets_in(door.export(ref, lasting=True)) is False
    assert lets_in(door.by_number(number), "teller.example") == set()
    door.publish("all", ref)
    door.unpublish("all")
    assert lets_in(door.by_number(number)) == set()


def test_names_that_come_and_go_leave_nothing_behind(door):
    ref = Fake()
    for _ in range(100):
        door.publish("a", ref)
        door.export(ref)
        door.unpublish("a")
        door.export(ref)
    assert len(door) == 1


def test_so_many_actors_can_be_reached(door, monkeypatch):
    monkeypatch.setattr(published, "MAX_ACTORS", 2)
    refs = [Fake() for _ in range(3)]
    door.export(refs[0])
    door.publish("a", refs[1])
    for reach in (door.export, lambda ref: door.publish("b", ref)):
        with pytest.raises(SystemBusy, match="unpublish some"):
            reach(refs[2])
    door.export(refs[1])
    with pytest.raises(SystemBusy, match="unpublish some"):
        [door.publish(name, refs[1]) for name in ("b", "c")]
    for name in ("a", "b"):
        door.unpublish(name)
    door.export(refs[2])


def test_one_actor_has_so_many_names(door, monkeypatch):
    monkeypatch.setattr(published, "MAX_NAMES_OF_ONE", 2)
    ref = Fake()
    for name in ("a", "b", "a"):
        door.publish(name, ref)
    with pytest.raises(SystemBusy, match="unpublish some of them"):
        door.publish("c", ref)
    assert set(door.names()) == {"a", "b"}


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("", {}, "printable"),
        ("a" * 201, {}, "printable"),
        ("a\nb", {}, "printable"),
        (7, {}, "string"),
        ("a", {"proxy": "balance"}, "list of names"),
        ("a", {"proxy": 1}, "list of names"),
        ("a", {"proxy": ["nothing"]}, "no public method"),
        ("a", {"proxy": ["_secret"]}, "no public method"),
        ("a", {"proxy": [7]}, "no public method"),
        ("a", {"acl": "teller.example"}, "a list of names"),
        ("a", {"acl": 7}, "a list of names"),
        ("a", {"acl": ["teller.example", ""]}, "a name in certificates"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(door, name, more, text):
    with pytest.raises(ConfigError, match=text):
        door.publish(name, Fake(actor=Account()), **more)
    assert len(door) == 0


def test_an_actor_that_has_ended_is_not_published(door):
    ended = Fake()
    ended.actor_stopped.set()
    with pytest.raises(ConfigError, match="has ended"):
        door.publish("a", ended)
    thrown_away = Fake()
    thrown_away._actor = None
    with pytest.raises(ConfigError, match="has ended"):
        door.publish("a", thrown_away, proxy=True)


# ---- what a proxy reaches


class Account:
    bank = "a bank"

    def __init__(self):
        self.balance = 5
        self.note = None
        self._secret = 1

    def deposit(self, amount): ...

    @staticmethod
    def rate(): ...

    @property
    def worth(self):
        raise AssertionError("a property is not run to be looked at")

    def _check(self): ...


def test_a_proxy_reaches_what_is_public_and_no_property_is_run():
    assert reach_of(Fake(actor=Account()), proxy=True) == {
        "balance": False,
        "bank": False,
        "deposit": True,
        "note": False,
        "rate": True,
        "worth": False,
    }
    assert reach_of(Fake(actor=Account()), proxy=False) == {}
    assert reach_of(Fake(actor=Account()), ["deposit"]) == {"deposit": True}


class Own:
    """What an application adds to an actor, with names that actors of other kinds have."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mine = 1

    def method(self): ...

    def on_receive(self, message): ...


class Threaded(Own, pykka.ThreadingActor):
    state = "of the application"


class OnLoop(Own, TrioActor):
    handlers = ()


class Table(Own, TableActor):
    pass


@pytest.mark.parametrize(
    ("kind", "more"), [(Threaded, {"state": False}), (OnLoop, {"handlers": False}), (Table, {})]
)
def test_nothing_is_reached_that_makes_it_an_actor(kind, more):
    actor = kind.__new__(kind)
    # As its constructor makes it, and no more of that.
    for name in ("actor_inbox", "actor_stopped", "actor_urn", "_actor_ref", "mine"):
        vars(actor)[name] = 1
    if kind is not Threaded:
        vars(actor)["actor_loop"] = 1
    if kind is Table:
        for name in (
            "handlers",
            "state",
            "tally",
            "name",
            "peers",
            "peer_links",
            "tick_count",
            "effects",
            "message_timers",
        ):
            vars(actor)[name] = 1
    assert reach_of(Fake(actor=actor), proxy=True) == {"method": True, "mine": False, **more}
    for name in ("actor_inbox", "stop", "on_stop", "actor_ref"):
        with pytest.raises(ConfigError, match="no public method"):
            reach_of(Fake(actor=actor), [name])


@pykka.traversable
class Playlist:
    def __init__(self):
        self.length = 3
        self._hidden = 1

    def add(self): ...


class Deep:
    pykka_traversable = True

    def __init__(self):
        self.again = self


def test_a_proxy_reaches_into_what_is_traversable_as_deep_as_others_follow():
    actor = Account()
    actor.playlist, actor.deep = Playlist(), Deep()
    reach = reach_of(Fake(actor=actor), proxy=True)
    assert reach["playlist"] == {"add": True, "length": False}
    assert kind_at(reach, ("playlist", "add")) is True
    assert kind_at(reach, ("playlist", "length")) is False
    for path in (("playlist",), ("playlist", "_hidden"), ("playlist", "add", "x"), (), ("nothing",)):
        assert kind_at(reach, path) is None
    assert kind_at(reach, ("deep", *["again"] * 3)) is False
    assert kind_at(reach, ("deep", *["again"] * 4)) is None


def test_of_too_many_attributes_those_are_reached_that_are_listed():
    actor = Account()
    for number in range(MAX_ATTRIBUTES):
        setattr(actor, f"at_{number}", number)
    with pytest.raises(ConfigError, match=f"{MAX_ATTRIBUTES} can be reached: list those"):
        reach_of(Fake(actor=actor), proxy=True)
    listed = [f"at_{number}" for number in range(MAX_ATTRIBUTES)]
    assert len(reach_of(Fake(actor=actor), listed)) == MAX_ATTRIBUTES
    with pytest.raises(ConfigError, match=f"{MAX_ATTRIBUTES} can be reached"):
        reach_of(Fake(actor=actor), [*listed, "balance"])
