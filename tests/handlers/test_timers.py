"""Timers of a node: messages that are due some ticks later."""

from random import Random

import pytest
from drakkar.handlers import ConfigError, Message, MessageType, Timers
from drakkar.handlers.errors import SystemBusy
from drakkar.handlers.timers import MAX_TICKS, MAX_TIMERS

WAKE = MessageType.define("timers.wake", 1720)


def wake(hint=0):
    return Message(WAKE, hint=hint)


def due(timers, ticks=1):
    """The hints of what is due in each of the next ticks."""
    return [[message.hint for message in timers.advance()] for _ in range(ticks)]


def test_it_is_due_once_after_so_many_ticks():
    timers = Timers(1)
    timer = timers.after(3, wake(5))
    assert timer.active
    assert due(timers, 5) == [[], [], [5], [], []]
    assert not timer.active
    assert len(timers) == 0


def test_one_that_repeats_is_due_until_it_is_cancelled():
    timers = Timers(1)
    timer = timers.every(2, wake(5))
    assert due(timers, 5) == [[], [5], [], [5], []]
    timer.cancel()
    timer.cancel()
    assert not timer.active
    assert due(timers, 3) == [[], [], []]
    assert len(timers) == 0


def test_those_of_one_tick_are_due_in_the_order_in_which_they_were_set():
    timers = Timers(1)
    timers.every(1, wake(1))
    timers.after(2, wake(2))
    timers.after(1, wake(3))
    timers.every(2, wake(4))
    assert due(timers, 3) == [[1, 3], [1, 2, 4], [1]]


def test_the_sender_is_the_node_and_each_message_is_a_copy():
    timers = Timers("north")
    given = wake()
    timers.every(1, given)
    first, second = (next(timers.advance()) for _ in range(2))
    assert first.sender == second.sender == "north"
    assert first is not second
    assert given.sender == 0


def test_one_that_is_cancelled_in_the_tick_in_which_it_is_due_is_not_due():
    timers = Timers(1)
    timers.after(1, wake(1))
    later = timers.after(1, wake(2))
    seen = []
    for message in timers.advance():
        seen.append(message.hint)
        later.cancel()
    assert seen == [1]


def test_one_that_is_set_while_another_is_due_waits_for_its_own_tick():
    timers = Timers(1)
    timers.after(1, wake(1))
    for _ in timers.advance():
        timers.after(1, wake(2))
    assert due(timers, 2) == [[2], []]


def test_one_that_was_due_frees_no_place_twice():
    timers = Timers(1)
    timer = timers.after(1, wake())
    due(timers)
    timer.cancel()
    assert len(timers) == 0
    timers.after(1, wake(7))
    assert len(timers) == 1
    assert due(timers) == [[7]]


@pytest.mark.parametrize("ticks", [0, -1, MAX_TICKS + 1, 1.5, True, "3", None])
def test_a_time_out_of_bounds_is_refused(ticks):
    for set_ in (Timers(1).after, Timers(1).every):
        with pytest.raises(
            ConfigError, match=f"ticks={ticks!r}: must be a whole number from 1 to 2147483648"
        ):
            set_(ticks, wake())


def test_the_longest_time_is_taken():
    assert Timers(1).after(MAX_TICKS, wake()).active


@pytest.mark.parametrize("type_", [MessageType.ELECTION, MessageType.PEER_DOWN], ids=str)
def test_a_built_in_type_is_refused(type_):
    with pytest.raises(
        ConfigError, match=f"message={type_.name}.*: a timer steps a message of a type of your own"
    ):
        Timers(1).after(1, Message(type_))


def test_one_node_has_a_bounded_number_of_them():
    timers = Timers(1)
    first = timers.after(1, wake())
    for _ in range(MAX_TIMERS - 1):
        timers.after(5, wake())
    with pytest.raises(SystemBusy, match="10000 active timers"):
        timers.after(1, wake())
    first.cancel()
    assert timers.after(1, wake(9)).active
    assert due(timers) == [[9]]


def test_cancelled_ones_take_no_memory_until_they_would_be_due():
    """An election timer that is set anew at each heartbeat is cancelled ever again."""
    timers = Timers(1)
    for _ in range(10_000):
        timers.after(1_000_000, wake()).cancel()
    assert len(timers) == 0
    assert len(timers.waiting) < 100


def test_they_do_what_a_plain_list_of_them_would():
    """Against a model that looks at every timer in every tick."""
    random = Random(1)
    timers, model, handles = Timers(1), [], []
    for now in range(1, 400):
        for _ in range(random.randrange(3)):
            number, ticks, repeats = len(handles), random.randint(1, 20), random.random() < 0.3
            handles.append((timers.every if repeats else timers.after)(ticks, wake(number)))
            model.append([now - 1 + ticks, ticks if repeats else 0, True])
        if handles and random.random() < 0.8:
            chosen = random.randrange(len(handles))
            handles[chosen].cancel()
            model[chosen][2] = False
        expected = []
        for number, timer in enumerate(model):
            if timer[2] and timer[0] == now:
                expected.append(number)
                timer[0], timer[2] = now + timer[1], bool(timer[1])
        assert due(timers) == [expected]
        assert len(timers) == sum(timer[2] for timer in model)
        assert [handle.active for handle in handles] == [timer[2] for timer in model]
