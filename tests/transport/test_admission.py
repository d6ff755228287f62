"""Who may come in: which connection loses its place to a newcomer, and for whom places are kept free."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from drakkar.transport.admission import Admission, AdmittedConnection, PendingConnection, Stage
from drakkar.transport.hello import FullError
from drakkar.transport.options import Counters, Options
from hypothesis import given, settings
from hypothesis import strategies as st

A, B, C, MEMBER = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.9.9.9"


class Door:
    """An admission, and who has lost a place."""

    def __init__(self, *, members: dict[str, str] | None = None, **options: int) -> None:
        self.counters = Counters()
        self.admission = Admission(Options(**options), self.counters)
        self.evicted: list[PendingConnection] = []
        self.places: list[PendingConnection] = []
        if members is not None:
            self.admission.reserve(frozenset(members), frozenset(members.values()))

    def enter(self, source: str, stage: Stage = Stage.SILENT) -> PendingConnection:
        place = self.admission.enter(source, source, len(self.places), self._close(len(self.places)))
        self.places.append(place)
        if stage >= Stage.INTRODUCING:
            self.admission.begin(place, self._close(len(self.places) - 1), print)
        if stage != Stage.INTRODUCING:
            self.admission.advance(place, stage)
        return place

    def _close(self, number: int) -> Callable[[], None]:
        return lambda: self.evicted.append(self.places[number])

    def admit(self, address: str, source: str = A, **how: Any) -> AdmittedConnection:
        return self.admission.admit(address, source, **{"at_home": True} | how)

    def is_full(self, address: str, source: str = A, **how: Any) -> str:
        before = self.counters.full
        with pytest.raises(FullError) as full:
            self.admit(address, source, **how)
        assert self.counters.full == before + 1
        return str(full.value)


# ---- until the introduction


def test_a_newcomer_gets_the_place_of_the_oldest_connection_of_its_own_source_where_that_has_its_share() -> (
    None
):
    door = Door(max_introducing=10, max_introducing_per_source=3)
    first, second = door.enter(A), door.enter(A)
    door.enter(B)
    door.enter(A)
    assert door.evicted == []
    door.enter(A)
    door.enter(A)
    assert door.evicted == [first, second]
    assert (len(door.admission), door.counters.evicted, first.evicted is not None) == (4, 2, True)


def test_a_newcomer_gets_a_place_of_the_source_with_most_where_all_are_taken() -> None:
    door = Door(max_introducing=6, max_introducing_per_source=4)
    few = [door.enter(A)]
    most = [door.enter(B) for _ in range(3)]
    few += [door.enter(C), door.enter(C)]
    door.enter(A)
    assert door.evicted == most[:1]
    door.enter("10.0.0.4")
    assert door.evicted == [
        *most[:1],
        few[0],
    ]  # three have two by now: the one that was there first loses one


def test_a_connection_that_has_said_something_outlives_silent_ones_and_one_that_is_further_outlives_both() -> (
    None
):
    door = Door(max_introducing_per_source=6)
    secured = door.enter(A, Stage.SECURED)
    introducing = door.enter(A, Stage.INTRODUCING)
    waiting = door.enter(A, Stage.WAITING)
    silent = [door.enter(A) for _ in range(3)]
    for _ in range(3):
        door.enter(A, Stage.WAITING)
    assert door.evicted == silent
    for _ in range(4):
        door.enter(A, Stage.WAITING)
    assert waiting in door.evicted
    assert introducing not in door.evicted
    assert secured not in door.evicted


def test_tasks_have_half_of_the_places_so_that_others_are_looked_at() -> None:
    door = Door(max_introducing_per_source=4)
    slow = [door.enter(A, Stage.INTRODUCING), door.enter(A, Stage.SECURED), door.enter(A, Stage.INTRODUCING)]
    assert door.evicted == slow[:1]
    door.enter(A, Stage.INTRODUCING)
    assert door.evicted == [slow[0], slow[2]]  # before the one that has shown its certificate
    door = Door(max_introducing=4, max_introducing_per_source=4)
    slow = [door.enter(source, Stage.INTRODUCING) for source in (A, B, C)]
    assert door.evicted == slow[:1]


def test_one_place_is_enough_for_all_in_turn() -> None:
    door = Door(max_introducing=1, max_introducing_per_source=1)
    for stage in Stage:
        door.enter(A, stage)
        assert len(door.admission) == 1
    assert len(door.evicted) == len(Stage) - 1


def test_a_source_of_members_loses_no_place_to_others() -> None:
    door = Door(members={"node:1": MEMBER}, max_introducing=4, max_introducing_per_source=3)
    members = [door.enter(MEMBER) for _ in range(3)]
    strangers = [door.enter(A), door.enter(B), door.enter(C)]
    assert door.evicted == strangers[:2]
    door.enter(MEMBER)
    assert door.evicted == [*strangers[:2], members[0]]  # within its own share


def test_where_only_sources_of_members_have_places_the_one_with_most_loses_one() -> None:
    door = Door(members={"a:1": A, "b:1": B}, max_introducing=3, max_introducing_per_source=3)
    flood = [door.enter(A), door.enter(A)]
    door.enter(B)
    door.enter(C)
    assert door.evicted == flood[:1]


def test_a_place_that_was_left_or_lost_changes_nothing_any_more() -> None:
    door = Door(max_introducing_per_source=1)
    first = door.enter(A)
    second = door.enter(A)
    door.admission.advance(first, Stage.SECURED)
    door.admission.leave(first)
    assert len(door.admission) == 1
    door.admission.leave(second)
    door.admission.leave(second)
    assert (len(door.admission), door.admission._sources, door.evicted) == (0, {}, [first])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "begin", "wait", "secure", "leave"]),
            st.integers(0, 5),
            st.integers(0, 30),
        ),
        max_size=80,
    )
)
def test_places_are_counted_and_never_more_than_there_are(steps: list[tuple[str, int, int]]) -> None:
    total, per_source = 6, 4
    door = Door(members={"m:1": "source 0"}, max_introducing=total, max_introducing_per_source=per_source)
    held: dict[PendingConnection, None] = {}

    def lose(place: list[PendingConnection]) -> None:
        del held[place[0]]

    for what, source, which in steps:
        if what == "enter":
            box: list[PendingConnection] = []
            before = set(held)
            place = door.admission.enter("", f"source {source}", 0, lambda box=box: lose(box))
            box.append(place)
            held[place] = None
            assert len(before - set(held)) <= 1
            continue
        if not held:
            continue
        place = list(held)[which % len(held)]
        if what == "leave":
            door.admission.leave(place)
            del held[place]
        elif what == "begin" and place.stage < Stage.INTRODUCING:
            door.admission.begin(place, place.close, print)
            assert place in held
        elif what == "wait" and place.stage == Stage.SILENT:
            door.admission.advance(place, Stage.WAITING)
        elif what == "secure" and place.stage == Stage.INTRODUCING:
            door.admission.advance(place, Stage.SECURED)
        counts = Counter(place.source for place in held)
        working = Counter(place.source for place in held if place.stage >= Stage.INTRODUCING)
        assert len(door.admission) == len(held) <= total
        assert max(counts.values(), default=0) <= per_source
        assert max(working.values(), default=0) <= per_source / 2
        assert working.total() <= total / 2
        assert not any(place.evicted for place in held)
    for place in list(held):
        door.admission.leave(place)
    assert (len(door.admission), door.admission._sources) == (0, {})


# ---- after the introduction


def test_others_share_what_is_not_kept_for_members() -> None:
    door = Door(members={"m:1": MEMBER, "m:2": MEMBER}, max_incoming=4)
    others = [door.admit("a:1"), door.admit("b:1", B)]
    assert "2 connections of hosts that are no members" in door.is_full("c:1", C)
    door.admit("m:1", MEMBER)
    door.admit("m:2", MEMBER)
    others[0].leave()
    door.admit("c:1", C)


def test_a_host_is_no_member_for_saying_so() -> None:
    door = Door(members={"m:1": MEMBER, "m:2": MEMBER}, max_incoming=3)
    pretends = door.admit("m:1", A, at_home=False)
    assert not door.admission.is_member(pretends)
    door.admit("a:1", A)  # of the others, it takes no place
    door.is_full("b:1", A)
    door.admit("m:2", A, at_home=False)
    member = door.admit("m:1", MEMBER)
    assert door.admission.is_member(member)
    door.is_full("m:1", A, at_home=False)
    door.admit(
        "m:2", B, at_home=False
    )  # nor has the first one shown anything, as behind an address translation


def test_members_are_let_in_however_many_and_some_places_are_left_for_those_who_join() -> None:
    members = {f"m:{number}": MEMBER for number in range(20)}
    door = Door(members=members, max_incoming=16)
    for address in members:
        door.admit(address, MEMBER)
    door.admit("a:1")
    door.admit("b:1")
    door.is_full("c:1")


def test_one_source_has_its_share_of_the_places_of_others() -> None:
    door = Door(max_incoming=10, max_incoming_per_source=2)
    door.admit("a:1", A)
    door.admit("b:1", A)
    assert f"2 connections from {A}" in door.is_full("c:1", A)
    door.admit("c:1", B)


def test_a_host_comes_back_before_its_old_connection_has_ended() -> None:
    door = Door(max_incoming=1)
    old = door.admit("a:1")
    new = door.admit("a:1")
    old.leave()
    door.is_full("b:1")
    new.leave()
    door.admit("b:1")


def test_a_host_at_its_address_does_not_lose_its_place_to_one_from_elsewhere() -> None:
    door = Door()
    here = door.admit("a:1", A)
    assert "from elsewhere" in door.is_full("a:1", B, at_home=False)
    door.admit("a:1", A)
    here.leave()
    elsewhere = Door()
    elsewhere.admit("a:1", A, at_home=False)
    elsewhere.admit("a:1", B, at_home=False)  # neither has shown anything
    elsewhere.admit("a:1", C)


def test_streams_take_no_places_from_messages_and_have_their_own() -> None:
    door = Door(members={"m:1": MEMBER}, max_incoming=1, max_incoming_streams=2)
    stream = door.admit("a:1", stream=True)
    assert "takes 1 streams of hosts that are no members" in door.is_full("b:1", B, stream=True)
    door.admit("a:1")
    door.admit("m:1", MEMBER, stream=True)
    stream.leave()
    door.admit("c:1", stream=True)


def test_a_source_of_no_members_has_a_quarter_of_the_places_for_streams() -> None:
    door = Door(members={"m:1": MEMBER}, max_incoming_streams=16)
    for number in range(4):
        door.admit(f"a:{number}", A, stream=True)
    assert f"4 streams from {A} at once already" in door.is_full("a:4", A, stream=True)
    for number in range(4):
        door.admit(f"b:{number}", B, stream=True)
    assert "8 streams of hosts that are no members" in door.is_full("c:1", C, stream=True)
    for _ in range(8):
        door.admit("m:1", MEMBER, stream=True)
    assert "16 streams at once already" in door.is_full("m:1", MEMBER, stream=True)
    pretends = door.is_full("m:1", A, at_home=False, stream=True)
    assert "16 streams at once already" in pretends


def test_what_was_reserved_changes_with_the_members() -> None:
    door = Door(members={"m:1": MEMBER}, max_incoming=2)
    joined = door.admit("a:1", A)
    door.is_full("b:1", B)
    door.admission.reserve(frozenset({"m:1", "a:1"}), frozenset({MEMBER, A}))
    assert door.admission.is_member(joined)
    assert door.admission.has_member(A)
    door.admission.reserve(frozenset(), frozenset())
    door.admit("b:1", B)
    door.is_full("c:1", C)
