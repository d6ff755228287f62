"""`HandlerTable` for any protocol: how messages are dispatched and counted, and which mistakes are refused."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import pytest
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.table import SWALLOW, HandlerTable, Never, Tally

from tests.handlers.raft.support import replica

PRESS = MessageType.define("table.press", 1940)
WAIT = MessageType.define("table.wait", 1941)
UNKNOWN = MessageType.define("table.unknown", 1942)


class Light(IntEnum):
    RED = 0
    GREEN = 1


@dataclass
class Lamp:
    """The least that a table dispatches to."""

    state: Any = Light.RED
    tally: Tally = field(default_factory=Tally)


def turn_green(lamp, message):
    lamp.state = Light.GREEN
    return f"green for {message.sender}"


def light_table():
    table = HandlerTable(Light)
    table.on(PRESS, Light.RED)(turn_green)
    table.impossible(PRESS, Light.GREEN, because="the button is dead while it is green")
    table.ignore(WAIT, because="waiting is free")
    table.check()
    return table


def counted(tally):
    return tally.handled, tally.ignored, tally.impossible, tally.swallowed


class TestDispatch:
    def test_it_returns_what_the_handler_returns_and_counts_the_state_it_was_entered_in(self):
        lamp = Lamp()
        assert light_table().dispatch(lamp, Message(PRESS, sender=3)) == "green for 3"
        assert lamp.state is Light.GREEN
        assert counted(lamp.tally) == ({(Light.RED, PRESS): 1}, {}, {}, {})

    def test_it_returns_what_a_wrapper_returns(self):
        table = light_table()

        @table.wrap(PRESS, Light.RED)
        def shout(lamp, message, inner):
            return inner(lamp, message).upper()

        assert table.dispatch(Lamp(), Message(PRESS, sender=3)) == "GREEN FOR 3"

    @pytest.mark.parametrize("type_", [WAIT, UNKNOWN], ids=str)
    def test_what_is_ignored_or_unknown_is_counted_and_answered_by_none(self, type_):
        lamp = Lamp()
        assert light_table().dispatch(lamp, Message(type_)) is None
        assert counted(lamp.tally) == ({}, {(Light.RED, type_): 1}, {}, {})

    def test_what_is_impossible_is_counted_each_time_and_reported_once_for_each_cell(self):
        reported = []
        lamp = Lamp(Light.GREEN, Tally(lambda *report: reported.append(report)))
        table = light_table()
        for _ in range(3):
            assert table.dispatch(lamp, Message(PRESS)) is None
        assert counted(lamp.tally) == ({}, {}, {(Light.GREEN, PRESS): 3}, {})
        assert reported == [(Light.GREEN, PRESS, Never("the button is dead while it is green"))]

    def test_what_a_guard_ends_is_counted_as_swallowed_and_nothing_else(self):
        table, lamp = light_table(), Lamp()
        table.guard(lambda lamp, message: SWALLOW)
        assert table.dispatch(lamp, Message(PRESS)) is None
        assert counted(lamp.tally) == ({}, {}, {}, {(Light.RED, PRESS): 1})

    def test_the_cell_is_that_of_the_state_in_which_the_guards_leave_the_node(self):
        table, lamp = light_table(), Lamp(Light.GREEN)

        @table.guard
        def reset(lamp, message):
            lamp.state = Light.RED

        assert table.dispatch(lamp, Message(PRESS, sender=1)) == "green for 1"

    def test_raft_answers_with_what_its_handler_returns(self):
        raft: Raft = replica(term=1)
        raft.handlers.on(PRESS)(lambda raft, message: (raft.id, message.payload))
        assert raft.step(Message(PRESS, sender=2, payload="hello")) == (raft.id, "hello")
        assert raft.tally.handled == {(raft.state, PRESS): 1}
