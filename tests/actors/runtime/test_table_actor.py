"""An actor that does what a table says, for a protocol that has nothing to do with Raft."""

import logging
from enum import IntEnum

import pytest
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.table_actor import TableActor
from drakkar.handlers.errors import ConfigError, HandlerTableError, RequestDropped
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.table import SWALLOW, HandlerTable

from tests.actors.runtime.support import wait_until

TIMEOUT_S = 10  # after this a test is stuck

PRESS = MessageType.define("test.light.press", 1290)
TICK = MessageType.define("test.light.tick", 1291)
UNKNOWN = MessageType.define("test.light.unknown", 1292)


class Light(IntEnum):
    RED = 0
    GREEN = 1


class Button(IntEnum):
    BELL = 7
    EQUAL = 1  # to `Light.GREEN`


def light_table():
    table = HandlerTable(Light)

    @table.on(PRESS, Light.RED)
    def turn_green(light, message):
        light.state = Light.GREEN
        return f"green for {message.sender}"

    @table.on(TICK, Light.GREEN)
    def turn_red(light, _message):
        light.state = Light.RED

    table.ignore(PRESS, Light.GREEN, because="it is green already")
    table.impossible(TICK, Light.RED, because="the clock runs while it is green")
    return table


class TrafficLight(TableActor):
    state = Light.RED


@pytest.fixture
def loop():
    with TrioLoop() as loop:
        yield loop


@pytest.fixture
def light(loop):
    return TrafficLight.start(handlers=light_table(), loop=loop)


def state_of(light):
    return light.proxy().state.get(timeout=TIMEOUT_S)


def test_the_cell_of_state_and_type_answers(light):
    assert state_of(light) is Light.RED
    assert light.ask(Message(PRESS, sender=3), timeout=TIMEOUT_S) == "green for 3"
    assert state_of(light) is Light.GREEN
    assert light.ask(Message(TICK), timeout=TIMEOUT_S) is None
    assert state_of(light) is Light.RED


def test_messages_in_cells_without_a_handler_are_counted_by_cell(light, caplog):
    for _ in range(3):
        light.tell(Message(TICK))
    for _ in range(3):
        light.tell(Message(PRESS))
    light.tell(Message(UNKNOWN))
    proxy = light.proxy()
    assert proxy.tally.get(timeout=TIMEOUT_S).impossible == {(Light.RED, TICK): 3}
    assert proxy.tally.get(timeout=TIMEOUT_S).ignored == {(Light.GREEN, PRESS): 2, (Light.GREEN, UNKNOWN): 1}
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "test.light.tick in RED, which cannot be: the clock runs while it is green" in warning


@pytest.mark.parametrize(
    ("type_", "why"),
    [
        pytest.param(TICK, r"test\.light\.tick: the clock runs while it is green", id="impossible"),
        pytest.param(UNKNOWN, ": a message type that this table does not know", id="unknown"),
    ],
)
def test_who_asks_for_what_no_handler_takes_is_told_why(light, caplog, type_, why):
    with pytest.raises(RequestDropped, match=why):
        light.ask(Message(type_), timeout=TIMEOUT_S)
    assert light.is_alive()


def test_guards_run_first_and_may_end_a_message(loop):
    table, seen = light_table(), []

    @table.guard
    def see(light, message):
        seen.append((light.state, message.sender))

    @table.guard
    def not_from_nine(_light, message):
        return SWALLOW if message.sender == 9 else None

    light = TrafficLight.start(handlers=table, loop=loop)
    with pytest.raises(RequestDropped, match="a guard swallowed it"):
        light.ask(Message(PRESS, sender=9), timeout=TIMEOUT_S)
    assert state_of(light) is Light.RED
    assert light.ask(Message(PRESS, sender=8), timeout=TIMEOUT_S) == "green for 8"
    assert seen == [(Light.RED, 9), (Light.RED, 8)]
    assert light.proxy().tally.get(timeout=TIMEOUT_S).swallowed == {(Light.RED, PRESS): 1}


def test_the_table_may_stand_in_the_class_and_the_state_may_be_given(loop):
    class Classy(TableActor):
        handlers = light_table()

    light = Classy.start(state=Light.GREEN, loop=loop)
    light.tell(Message(TICK))
    assert state_of(light) is Light.RED
    assert light.proxy().handlers.get(timeout=TIMEOUT_S) is Classy.handlers


def test_types_may_be_of_any_enum(loop):
    table = light_table()
    table.on(Button.BELL)(lambda _light, message: message.payload)
    light = TrafficLight.start(handlers=table, loop=loop)
    assert light.ask(Message(Button.BELL, payload="ring"), timeout=TIMEOUT_S) == "ring"


def test_a_message_without_a_type_is_unexpected_and_changes_nothing(light, caplog):
    class Odd:
        type = ["unhashable"]

    for message in ("text", Odd(), None):
        assert light.ask(message, timeout=TIMEOUT_S) is None
    assert caplog.text.count("unexpected message for TrafficLight") == 3
    assert light.proxy().tally.get(timeout=TIMEOUT_S).ignored == {}


def test_a_failing_handler_goes_to_the_asker(loop):
    table = light_table()

    @table.wrap(PRESS, Light.RED)
    def fail(_light, _message, _inner):
        raise ZeroDivisionError

    light = TrafficLight.start(handlers=table, loop=loop)
    with pytest.raises(ZeroDivisionError):
        light.ask(Message(PRESS), timeout=TIMEOUT_S)
    assert light.is_alive()


def holed():
    table = HandlerTable(Light)
    table.on(PRESS, Light.RED)(print)
    return table


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        pytest.param({}, HandlerTableError, "handlers=None is no HandlerTable", id="no table"),
        pytest.param({"handlers": {1: 2}}, HandlerTableError, "is no HandlerTable", id="no table but a dict"),
        pytest.param({"handlers": light_table(), "state": 5}, ConfigError, "RED, GREEN", id="no such state"),
        pytest.param(
            {"handlers": light_table(), "state": 1}, ConfigError, "RED, GREEN", id="a state's number"
        ),
        pytest.param(
            {"handlers": light_table(), "state": Button.EQUAL},
            ConfigError,
            "RED, GREEN",
            id="equal to a state",
        ),
        pytest.param({"handlers": holed()}, HandlerTableError, "GREEN is undeclared", id="a hole"),
    ],
)
def test_a_wrong_table_is_refused_before_the_start(loop, options, error, named):
    with pytest.raises(error, match=named):
        TrafficLight.start(loop=loop, **options)


def test_a_handler_that_sets_a_state_of_another_table_is_told_of_it(loop):
    table = light_table()
    table.on(PRESS, Light.RED, replace=True)(lambda light, _message: setattr(light, "state", "dark"))
    light = TrafficLight.start(handlers=table, loop=loop)
    light.ask(Message(PRESS), timeout=TIMEOUT_S)
    with pytest.raises(HandlerTableError, match="'dark' is not a state of this table: use one of RED, GREEN"):
        light.ask(Message(PRESS), timeout=TIMEOUT_S)
    wait_until(lambda: not light.is_alive())


def test_a_missing_state_is_named(loop):
    with pytest.raises(ConfigError, match=r"state=None: must be one of the table's states, RED, GREEN"):
        TableActor.start(handlers=light_table(), loop=loop)
