"""Links of the simulated network: which messages arrive out of order, and which are lost."""

from itertools import permutations
from random import Random

import pytest
from drakkar.handlers.testing.links import Link


def link(sent):
    """A link with so many messages in transit."""
    made = Link()
    assert [made.send() for _ in range(sent)] == list(range(1, sent + 1))
    return made


@pytest.mark.parametrize("order", list(permutations(range(1, 6))))
def test_a_message_is_out_of_order_where_it_overtook_another_or_was_overtaken(order):
    made = link(len(order))
    told = [made.arrive(number) for number in order]
    assert told == [
        max(order[:place], default=0) > number or min(order[place + 1 :], default=number) < number
        for place, number in enumerate(order)
    ]


def test_what_was_lost_was_not_overtaken():
    made = link(3)
    made.arrive(3)
    made.lose()
    assert made.send() == 4
    assert [made.is_lost(number) for number in (1, 2, 4)] == [True, True, False]
    assert not made.arrive(4)


def test_what_keeps_its_order_waits_for_the_one_before_it():
    made = link(0)
    assert [made.arrival_in_order(time) for time in (3, 9, 5)] == [3, 9, 9]
    made.lose()
    assert made.arrival_in_order(5) == 5


def test_nothing_is_kept_of_what_has_arrived():
    made, random = link(1000), Random(1)
    for start in range(1, 1001, 10):
        for number in random.sample(range(start, start + 10), 10):
            made.arrive(number)
    assert made == Link(_sent=1000, _settled=1000)


def test_a_link_is_idle_when_all_has_arrived_in_any_order_or_is_lost():
    made = link(3)
    for number in (2, 3, 1):
        assert not made.idle
        made.arrive(number)
    assert made.idle
    made.send()
    assert not made.idle
    made.lose()
    assert made.idle
