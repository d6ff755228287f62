"""Who may send streams to a host at a time."""

from contextlib import ExitStack

import pytest
from drakkar.transport.hello import FullError
from drakkar.transport.stream_places import StreamPlaces

LIMIT = 16


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def fill(stack, places, *, member, addresses, source="10.0.0.9"):
    """Take places until none is given any more; return how many there were, and why there are no more."""
    for count in range(1000):
        try:
            stack.callback(places.take(addresses(count), source, member=member))
        except FullError as error:
            return count, str(error)
    raise AssertionError("there is no end")


def test_one_member_has_three_quarters_of_the_places(stack):
    places = StreamPlaces(LIMIT)
    taken, why = fill(stack, places, member=True, addresses=lambda _: "a:1")
    assert taken == len(places) == 12
    assert why == "this host takes 12 streams of a:1 at once already; try again later"


def test_all_who_are_no_members_have_half_of_the_places_and_a_source_a_quarter(stack):
    places = StreamPlaces(LIMIT)
    for number, source in enumerate(["10.0.0.8", "10.0.0.9"]):
        taken, why = fill(stack, places, member=False, addresses=lambda count: f"a:{count}", source=source)
        assert taken == 4
        assert why.startswith(
            f"this host takes {'4 streams from 10.0.0.8' if not number else '4 streams from 10.0.0.9'}"
        )
    taken, why = fill(stack, places, member=False, addresses=lambda count: f"a:{count}", source="10.0.0.7")
    assert taken == 0
    assert "8 streams of hosts that are no members" in why


def test_a_member_that_sends_none_always_finds_a_place(stack):
    places = StreamPlaces(LIMIT)
    fill(stack, places, member=False, addresses=lambda count: f"a:{count}")
    fill(stack, places, member=True, addresses=lambda _: "b:1")
    fill(stack, places, member=True, addresses=lambda _: "c:1")
    assert len(places) == LIMIT + 1
    taken, why = fill(stack, places, member=True, addresses=lambda _: "d:1")
    assert taken == 1
    assert f"{LIMIT + 2} streams at once already" in why


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_few_places_are_places_for_everyone(stack, limit):
    places = StreamPlaces(limit)
    assert fill(stack, places, member=False, addresses=lambda _: "a:1")[0] == 1


def test_a_place_is_free_again_after_its_stream():
    places = StreamPlaces(1)
    for member in (True, False, True):
        free = places.take("a:1", "10.0.0.9", member=member)
        assert len(places) == 1
        free()
        assert len(places) == 0
