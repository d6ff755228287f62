"""`HandlerTable` for any protocol: its cells, how messages are dispatched and counted, which mistakes are refused."""

import functools
import operator
import re
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from drakkar.handlers import (
    SWALLOW,
    EntryKind,
    Extension,
    HandlerTable,
    HandlerTableError,
    Ignore,
    Message,
    MessageType,
    Never,
    State,
    delivers,
    raft_handlers,
)
from drakkar.handlers.cells import EMPTY
from drakkar.handlers.raft.matrix import GUARDS
from drakkar.handlers.table import Tally

from tests.handlers.raft.support import replica

PRESS = MessageType.define("table.press", 1940)
WAIT = MessageType.define("table.wait", 1941)
HOLE = MessageType.define("table.hole", 1942)
UNKNOWN = MessageType.define("table.unknown", 1943)
MARK = EntryKind.define("table.mark", 194)


class Small(IntEnum):
    NUMBER = 7


class Light(IntEnum):
    RED = 0
    GREEN = 1
    DARK = 2


class Other(IntEnum):
    """Its members are equal to those of `Light`, and to message types."""

    FIRST = 0
    SECOND = 1
    TAKEN = int(PRESS)
    FREE = 1944


@dataclass
class Lamp:
    """The least that a table dispatches to."""

    state: Any = Light.RED
    tally: Tally = field(default_factory=Tally)
    done: list[str] = field(default_factory=list)


def press(lamp, message):
    lamp.done.append("pressed")
    lamp.state = Light.GREEN
    return f"pressed by {message.sender}"


def light_table():
    """A table for a protocol of one's own."""
    table = HandlerTable(Light)
    table.on(PRESS, Light.RED, Light.GREEN)(press)
    table.impossible(PRESS, Light.DARK, because="the button is unlit")
    table.ignore(WAIT, because="waiting is free")
    return table


def counted(lamp):
    tally = lamp.tally
    return tally.handled, tally.ignored, tally.impossible, tally.swallowed


class TestDispatch:
    def test_it_returns_what_the_handler_returns_and_counts_the_state_that_it_was_entered_in(self):
        lamp = Lamp()
        assert light_table().dispatch(lamp, Message(PRESS, sender=3)) == "pressed by 3"
        assert lamp.state is Light.GREEN
        assert counted(lamp) == ({(Light.RED, PRESS): 1}, {}, {}, {})

    def test_it_returns_what_a_wrapper_returns(self):
        table = light_table()

        @table.wrap(PRESS, Light.RED)
        def shout(lamp, message, inner):
            return inner(lamp, message).upper()

        assert table.dispatch(Lamp(), Message(PRESS, sender=3)) == "PRESSED BY 3"

    @pytest.mark.parametrize(
        ("type_", "fatal", "error", "ends"),
        [
            pytest.param(PRESS, False, ValueError(), False, id="of a type of one's own"),
            pytest.param(PRESS, True, ValueError(), True, id="where the table says so"),
            pytest.param(PRESS, False, SystemExit(), True, id="what is no Exception"),
            pytest.param(MessageType.PING, False, ValueError(), True, id="of a type of Raft"),
            pytest.param(MessageType.PEER_DOWN, False, ValueError(), False, id="of the death of a peer"),
            pytest.param(Small.NUMBER, False, ValueError(), False, id="of an enum of one's own"),
        ],
    )
    def test_an_exception_comes_through_and_is_noted(self, type_, fatal, error, ends):
        table = HandlerTable([Light.RED])

        @table.on(type_, fatal=fatal)
        def fail(lamp, message):
            raise error

        lamp = Lamp()
        with pytest.raises(type(error)):
            table.copy().dispatch(lamp, Message(type_))
        assert lamp.tally.broken is (error if ends else None)
        assert lamp.tally.failed == {(Light.RED, type_): 1}

    def test_an_exception_of_a_guard_is_counted_for_its_message(self):
        table, lamp = light_table(), Lamp()

        @table.guard
        def fail(lamp, message):
            raise LookupError

        for type_ in (WAIT, UNKNOWN):
            with pytest.raises(LookupError):
                table.dispatch(lamp, Message(type_))
        assert lamp.tally.failed == {(Light.RED, WAIT): 1}  # the node ends at the first one
        assert lamp.tally.handled == {}

    def test_a_handler_that_is_replaced_takes_what_it_is_from_its_successor(self):
        table = HandlerTable([Light.RED])
        table.on(PRESS, fatal=True)(press)
        assert table.is_fatal(Light.RED, PRESS)
        table.on(PRESS, replace=True)(press)
        assert not table.is_fatal(Light.RED, PRESS)

    def test_the_first_exception_that_must_end_the_node_is_kept_though_a_wrapper_catches_it(self):
        table, lamp, errors = HandlerTable([Light.RED]), Lamp(), [ValueError(), ValueError()]

        @table.on(MessageType.PING)
        def fail(lamp, message):
            raise errors[message.hint]

        @table.wrap(MessageType.PING)
        def catch(lamp, message, inner):
            with suppress(ValueError):
                inner(lamp, message)

        for hint in (1, 0):
            table.dispatch(lamp, Message(MessageType.PING, hint=hint))
        assert lamp.tally.broken is errors[1]
        assert lamp.tally.failed == {(Light.RED, MessageType.PING): 1}

    def test_an_exception_that_a_wrapper_lets_pass_is_counted_once(self):
        table, lamp = HandlerTable([Light.RED]), Lamp()
        table.on(MessageType.PING)(lambda lamp, message: 1 / 0)
        for _ in range(2):
            table.wrap(MessageType.PING)(lambda lamp, message, inner: inner(lamp, message))
        with pytest.raises(ZeroDivisionError):
            table.dispatch(lamp, Message(MessageType.PING))
        assert lamp.tally.failed == {(Light.RED, MessageType.PING): 1}

    @pytest.mark.parametrize("type_", [WAIT, UNKNOWN], ids=str)
    def test_what_is_ignored_or_unknown_is_counted_and_answered_by_the_reason(self, type_):
        lamp, table = Lamp(), light_table()
        reason = table.dispatch(lamp, Message(type_))
        assert isinstance(reason, EMPTY)
        assert reason == table[Light.RED][type_]
        assert counted(lamp) == ({}, {(Light.RED, type_): 1}, {}, {})

    def test_what_is_impossible_is_counted_each_time_and_reported_once_for_each_cell(self):
        reported = []
        lamp = Lamp(Light.DARK, Tally(lambda *report: reported.append(report)))
        table = light_table()
        for _ in range(3):
            assert table.dispatch(lamp, Message(PRESS)) == Never("the button is unlit")
        assert counted(lamp) == ({}, {}, {(Light.DARK, PRESS): 3}, {})
        assert reported == [(Light.DARK, PRESS, Never("the button is unlit"))]

    def test_what_a_guard_ends_is_counted_as_swallowed_and_nothing_else(self):
        table, lamp = light_table(), Lamp()
        table.guard(lambda lamp, message: SWALLOW)
        assert table.dispatch(lamp, Message(PRESS)) == Ignore("a guard swallowed it")
        assert counted(lamp) == ({}, {}, {}, {(Light.RED, PRESS): 1})

    def test_the_cell_is_that_of_the_state_in_which_the_guards_leave_the_node(self):
        table, lamp = light_table(), Lamp(Light.DARK)

        @table.guard
        def light_up(lamp, message):
            lamp.state = Light.RED

        assert table.dispatch(lamp, Message(PRESS, sender=1)) == "pressed by 1"

    def test_a_node_in_a_state_of_another_kind_is_an_error_that_names_the_states(self):
        with pytest.raises(
            HandlerTableError, match="'off' is not a state of this table: use one of RED, GREEN, DARK"
        ):
            light_table().dispatch(Lamp("off"), Message(PRESS))

    def test_raft_answers_with_what_its_handler_returns(self):
        table = raft_handlers()
        table.on(PRESS)(lambda raft, message: (raft.id, message.payload))
        raft = replica(term=1, handlers=table)
        assert raft.step(Message(PRESS, sender=2, payload="hello")) == (raft.id, "hello")
        assert counted(raft) == ({(State.FOLLOWER, PRESS): 1}, {}, {}, {})


class TestCells:
    def test_a_table_is_whole_when_every_cell_of_every_row_is_declared(self):
        light_table().check()

    def test_a_forgotten_cell_is_named_with_its_remedy(self):
        """V14, BUG-P18: every state of a type that has a row."""
        table = HandlerTable(Light)
        table.on(PRESS, Light.RED)(press)
        with pytest.raises(HandlerTableError) as refused:
            table.check()
        assert "table.press in GREEN is undeclared: use on, ignore or impossible" in str(refused.value)
        assert "table.press in DARK is undeclared" in str(refused.value)
        assert "RED" not in str(refused.value)

    def test_on_without_states_fills_all_but_the_impossible(self):
        table = light_table()

        @table.on(PRESS, replace=True)
        def other(lamp, message):
            lamp.done.append("other")

        assert table[Light.RED][PRESS] is table[Light.GREEN][PRESS] is other
        assert isinstance(table[Light.DARK][PRESS], Never)
        table.check()

    def test_wrappers_stand_around_each_other_and_decide_whether_the_inner_one_runs(self):
        table = light_table()

        @table.wrap(PRESS, Light.RED)
        def inner_wrapper(lamp, message, inner):
            lamp.done.append("in")
            inner(lamp, message)

        @table.wrap(PRESS, Light.RED)
        def outer_wrapper(lamp, message, inner):
            lamp.done.append("out")
            if message.hint:
                inner(lamp, message)

        def done_in(state, message):
            lamp = Lamp(state)
            table.dispatch(lamp, message)
            return lamp.done

        assert done_in(Light.RED, Message(PRESS, hint=1)) == ["out", "in", "pressed"]
        assert done_in(Light.RED, Message(PRESS)) == ["out"]
        assert done_in(Light.GREEN, Message(PRESS)) == ["pressed"]

    def test_wrap_without_states_takes_every_handler_of_the_row(self):
        table = light_table()
        seen = []

        @table.wrap(PRESS)
        def count(lamp, message, inner):
            seen.append(lamp.state)
            inner(lamp, message)

        for state in (Light.RED, Light.GREEN):
            table.dispatch(Lamp(state), Message(PRESS))
        assert seen == [Light.RED, Light.GREEN]
        assert isinstance(table[Light.DARK][PRESS], Never)

    @pytest.mark.parametrize(
        ("type_", "states", "named"),
        [
            pytest.param(WAIT, (), "RED, GREEN, DARK", id="a row without a handler"),
            pytest.param(PRESS, (Light.RED, Light.DARK), "DARK", id="one of the states has none"),
        ],
    )
    def test_there_must_be_something_to_wrap(self, type_, states, named):
        with pytest.raises(HandlerTableError, match=f"there is no handler in {named}: add one with `on`"):
            light_table().wrap(type_, *states)(lambda lamp, message, inner: None)

    @pytest.mark.parametrize("replace", [False, True])
    def test_a_cell_that_was_declared_impossible_stays_so(self, replace):
        table = light_table()
        table.on(PRESS, Light.DARK, replace=replace)(press)
        with pytest.raises(HandlerTableError, match="in DARK has a handler, but must stay empty: the button"):
            table.check()

    def test_a_copy_is_changed_alone(self):
        table = light_table()
        twin = table.copy()
        twin.ignore(PRESS, Light.RED, replace=True)
        twin.guard(lambda lamp, message: None)
        twin.on(PRESS, Light.DARK)(press)
        twin.ignore(HOLE)
        assert table[Light.RED][PRESS] is press
        assert (table.guards, table.types) == ([], (PRESS, WAIT))
        assert raft_handlers().copy().guards == list(GUARDS)
        table.check()
        with pytest.raises(HandlerTableError):
            twin.check()

    def test_cells_are_changed_by_the_table_alone(self):
        with pytest.raises(TypeError):
            light_table()[Light.RED][PRESS] = print

    def test_a_type_that_it_does_not_know_is_ignored(self):
        """An unknown number from a peer is counted and dropped."""
        assert isinstance(light_table()[Light.RED][UNKNOWN], Ignore)
        raft = replica(term=1)
        raft.step(Message(UNKNOWN, sender=2))
        assert raft.tally.ignored == {(State.FOLLOWER, UNKNOWN): 1}

    def test_it_describes_itself(self):
        """A line for each type, a column for each state, then the reasons, each once."""
        table = light_table()
        table.guard(press)
        table.on(HOLE, Light.RED)(press)
        lines = table.describe().splitlines()
        assert lines[0].split() == ["RED", "GREEN", "DARK"]
        assert lines[1].split() == ["table.press", "test_table.press", "test_table.press", "x1"]
        assert lines[2].split() == ["table.wait", "-2", "-2", "-2"]
        assert lines[3].split() == ["table.hole", "test_table.press", "?", "?"]
        assert [line.strip() for line in lines[5:7]] == ["x1 the button is unlit", "-2 waiting is free"]
        assert lines[-1] == "before dispatch: test_table.press"
        assert repr(table.describe()) == str(table.describe())


class TestWhatBecameOfMessages:
    def test_each_cell_shows_what_is_not_0(self):
        table, lamp = light_table(), Lamp()

        @table.on(HOLE)
        def fail(lamp, message):
            raise KeyError

        @table.guard
        def swallow(lamp, message):
            return SWALLOW if message.hint else None

        for type_, times in ((PRESS, 3), (WAIT, 2)):
            for _ in range(times):
                table.dispatch(lamp, Message(type_))
        lamp.state = Light.DARK
        for message in (Message(PRESS), Message(PRESS, hint=1), Message(UNKNOWN), Message(HOLE)):
            with suppress(KeyError):
                table.dispatch(lamp, message)
        lines = table.describe(lamp.tally).splitlines()
        cells = [re.split("  +", line) for line in lines[1:4]]
        assert cells == [
            ["table.press", "test_table.press 1", "test_table.press 2", "x1 1 impossible, 1 swallowed"],
            ["table.wait", "-2", "-2 2 ignored", "-2"],
            ["table.hole", *["test_table.fail"] * 2, "test_table.fail 1, 1 failed"],
        ]
        assert "without a row: table.unknown 1" in lines
        assert "1 ignored" not in table.describe()

    def test_what_ended_the_node_is_shown_too(self):
        table, tally = light_table(), Tally()
        tally.failed.update({(Light.RED, "Audit.save"): 1, (Light.RED, UNKNOWN): 2, (Light.DARK, PRESS): 1})
        lines = table.describe(tally).splitlines()
        assert lines[1].endswith("x1 1 failed")
        assert "without a row: table.unknown 2" in lines
        assert "failed: Audit.save 1" in lines

    def test_it_counts_nothing_by_being_asked(self):
        table, lamp = light_table(), Lamp()
        table.describe(lamp.tally)
        assert counted(lamp) == ({}, {}, {}, {})

    def test_deliveries_are_summed_over_the_states(self):
        class Marks(Extension):
            @delivers(MARK)
            def mark(self, entry):
                pass

        table, tally = light_table(), Tally()
        table.use(Marks)
        tally.delivered.update({(Light.RED, MARK): 2, (Light.GREEN, MARK): 3, (Light.GREEN, 0): 7})
        assert "committed table.mark: test_table.Marks.mark 5" in table.describe(tally).splitlines()


class Machine:
    """Handlers of other kinds than plain functions."""

    def handle(self, lamp, message):
        return "bound"

    @staticmethod
    def plain(lamp, message):
        return "static"

    def narrow(self, message):
        pass

    async def later(self, lamp, message):
        pass

    def __call__(self, lamp, message):
        return "called"


class Later:
    async def __call__(self, lamp, message):
        pass


class Quiet(Machine):
    """A handler that is false, as an empty collection is."""

    def __len__(self):
        return 0


def decorated(function):
    @functools.wraps(function)
    def inner(lamp, message):
        return function(lamp, message, "decorated")

    return inner


def one_argument(message):
    pass


def three_arguments(lamp, message, more):
    pass


def keyword_argument(lamp, message, *, more):
    pass


async def asynchronous(lamp, message):
    pass


async def stream(lamp, message):
    yield


def generator(lamp, message):
    yield


async def async_wrapper(lamp, message, inner):
    pass


FUNCTIONS = [
    pytest.param(lambda lamp, message: "lambda", "lambda", id="a lambda"),
    pytest.param(lambda lamp, message, more="default": more, "default", id="a default"),
    pytest.param(lambda *arguments: len(arguments), 2, id="any arguments"),
    pytest.param(lambda lamp, message, *, more="keyword": more, "keyword", id="a keyword with a default"),
    pytest.param(Machine().handle, "bound", id="a bound method"),
    pytest.param(Machine.plain, "static", id="a static method"),
    pytest.param(Machine(), "called", id="an object that is called"),
    pytest.param(Quiet(), "called", id="an object that is false"),
    pytest.param(functools.partial(three_arguments, more=1), None, id="a partial by name"),
    pytest.param(functools.partial(lambda more, lamp, message: more, "partial"), "partial", id="a partial"),
    pytest.param(decorated(lambda lamp, message, more: more), "decorated", id="a decorated function"),
    pytest.param(operator.is_, False, id="a built-in function"),
    pytest.param(max, None, id="a built-in function that does not tell its signature"),
    pytest.param(Mock(return_value="mocked"), "mocked", id="a mock"),
]


@pytest.mark.parametrize(("function", "answer"), FUNCTIONS)
def test_what_takes_two_arguments_is_a_handler_and_a_guard(function, answer):
    table = HandlerTable(Light)
    table.on(HOLE)(function)
    table.check()
    if function is not max:  # it compares
        assert table.dispatch(Lamp(), Message(HOLE)) == answer
    table.guard(function)
    table.check()


def test_a_handler_that_is_false_is_wrapped_and_refused_as_any_other():
    table = light_table()
    table.on(PRESS, Light.RED, replace=True)(Quiet())
    table.wrap(PRESS, Light.RED)(lambda lamp, message, inner: f"wrapped {inner(lamp, message)}")
    assert table.dispatch(Lamp(), Message(PRESS)) == "wrapped called"
    table.on(PRESS, Light.DARK)(Quiet())
    with pytest.raises(HandlerTableError, match="DARK has a handler, but must stay empty"):
        table.check()


TWO_ARGUMENTS = [
    pytest.param(one_argument, ["one_argument", "takes (message)"], id="one argument"),
    pytest.param(three_arguments, ["three_arguments", "takes (lamp, message, more)"], id="three arguments"),
    pytest.param(keyword_argument, ["keyword_argument", "*, more"], id="a keyword without a default"),
    pytest.param(Machine().narrow, ["Machine.narrow"], id="a method without the node"),
    pytest.param(Machine.handle, ["Machine.handle", "takes (self, lamp, message)"], id="an unbound method"),
    pytest.param(functools.partial(press, None), ["press", "takes (message)"], id="a partial that has one"),
    pytest.param(asynchronous, ["asynchronous", "is async"], id="async"),
    pytest.param(
        functools.partial(async_wrapper, inner=1), ["async_wrapper", "is async"], id="async partial"
    ),
    pytest.param(Machine().later, ["Machine.later", "is async"], id="an async method"),
    pytest.param(Later(), ["Later.__call__", "is async"], id="an object with an async call"),
    pytest.param(AsyncMock(), ["is async"], id="an async mock"),
    pytest.param(stream, ["stream", "is an async generator"], id="an async generator"),
    pytest.param(generator, ["generator", "is a generator"], id="a generator"),
]
NO_CELL = [
    pytest.param("press", ["'press' is not a function"], id="a string"),
    pytest.param(None, ["None is not a function"], id="None"),
]
NO_FUNCTION = [
    *NO_CELL,
    pytest.param(Ignore("late"), ["Ignore(because='late') is not a function"], id="an empty cell"),
]
THREE_ARGUMENTS = [
    pytest.param(press, ["press", "takes (lamp, message)"], id="two arguments"),
    pytest.param(lambda lamp, message, inner, more: None, ["<lambda>"], id="four arguments"),
    pytest.param(async_wrapper, ["async_wrapper", "is async"], id="async"),
]


def refused(mistake, *named):
    """The mistake is refused at once, with this in the text, and leaves the table as it was."""
    table = light_table()
    before = [*table.cells()], [*table.guards]
    with pytest.raises(HandlerTableError) as caught:
        mistake(table)
    for text in named:
        assert text in str(caught.value)
    assert ([*table.cells()], [*table.guards]) == before
    table.check()
    return str(caught.value)


def line_of(function):
    return f"({function.__module__}:{function.__code__.co_firstlineno})"


class TestFunctions:
    """Each is refused when it is registered, by its name, the line that defines it, and what it should look like."""

    @pytest.mark.parametrize(("function", "named"), [*TWO_ARGUMENTS, *NO_FUNCTION])
    def test_a_wrong_handler_is_refused(self, function, named):
        refused(lambda table: table.on(HOLE)(function), "handler(node, message)", *named)

    @pytest.mark.parametrize(("function", "named"), [*TWO_ARGUMENTS, *NO_CELL])
    def test_a_wrong_handler_in_a_row_is_refused(self, function, named):
        refused(
            lambda _: HandlerTable(Light, [(HOLE, function, function, function)]),
            "handler(node, message)",
            *named,
        )

    @pytest.mark.parametrize(("function", "named"), [*TWO_ARGUMENTS, *NO_FUNCTION])
    def test_a_wrong_guard_is_refused(self, function, named):
        refused(lambda table: table.guard(function), "guard(node, message)", *named)
        refused(lambda _: HandlerTable(Light, guards=[function]), "guard(node, message)", *named)

    @pytest.mark.parametrize(("function", "named"), [*THREE_ARGUMENTS, *NO_FUNCTION])
    def test_a_wrong_wrapper_is_refused(self, function, named):
        refused(lambda table: table.wrap(PRESS, Light.RED)(function), "wrapper(node, message, inner)", *named)

    @pytest.mark.parametrize(
        ("function", "defined"),
        [
            pytest.param(one_argument, one_argument, id="a function"),
            pytest.param(Machine().narrow, Machine.narrow, id="a method"),
            pytest.param(functools.partial(press, 1), press, id="a partial"),
            pytest.param(Later(), Later.__call__, id="an object"),
        ],
    )
    def test_the_line_that_defines_it_is_named(self, function, defined):
        refused(lambda table: table.guard(function), f"{defined.__qualname__} {line_of(defined)}")

    def test_one_guard_stands_in_a_table_once(self):
        table = light_table()
        table.guard(press)
        with pytest.raises(HandlerTableError) as caught:
            table.copy().guard(press)
        assert f"press {line_of(press)} is already a guard of this table: register it once" in str(
            caught.value
        )
        refused(lambda table: HandlerTable(Light, guards=[press, press]), "already")

    def test_a_guard_that_was_put_into_the_list_itself_is_refused_by_check(self):
        table = light_table()
        table.guards.append(press)
        table.check()
        table.guards.append(one_argument)
        with pytest.raises(HandlerTableError, match=r"one_argument .* is called as guard\(node, message\)"):
            table.check()


class TestTypesAndStates:
    @pytest.mark.parametrize(
        ("type_", "named"),
        [
            pytest.param("REPLICATE", "'REPLICATE' is not a message type", id="a string"),
            pytest.param(12, "12 is not a message type", id="a number"),
            pytest.param(True, "True is not a message type", id="a truth"),
            pytest.param(None, "None is not a message type", id="None"),
            pytest.param(Light.RED, "<Light.RED: 0> is not a message type", id="a state, in the wrong place"),
            pytest.param(MessageType, "MessageType (drakkar.handlers.messages) is no", id="the class itself"),
            pytest.param(press, "press (tests.handlers.test_table:", id="a function, as of a bare decorator"),
            pytest.param([PRESS], "[table.press(1940)] is not a message type", id="a list"),
        ],
    )
    def test_what_is_no_message_type_is_refused(self, type_, named):
        for register in (
            lambda table: table.on(type_, Light.RED)(press),
            lambda table: table.wrap(type_, Light.RED)(three_arguments),
            lambda table: table.ignore(type_, Light.RED),
            lambda table: table.impossible(type_, Light.RED),
            lambda table: HandlerTable(Light, [(type_, press, press, press)]),
        ):
            refused(register, named, "MessageType.define(name, number)")

    def test_an_enum_of_ones_own_will_do_for_messages_that_stay_in_the_process(self):
        table = light_table()
        table.on(Other.FREE)(press)
        table.check()
        assert table.dispatch(Lamp(), Message(Other.FREE, sender=2)) == "pressed by 2"

    def test_two_types_of_one_number_are_refused(self):
        refused(
            lambda table: table.ignore(Other.TAKEN),
            f"<Other.TAKEN: {int(PRESS)}> has the number of table.press({int(PRESS)})",
            "use another number",
        )

    @pytest.mark.parametrize(
        ("state", "named"),
        [
            pytest.param(State.WITNESS, "<State.WITNESS: 5>", id="another table's"),
            pytest.param(Other.FIRST, "<Other.FIRST: 0>", id="equal, but of another enum"),
            pytest.param(0, "0", id="a number"),
            pytest.param(WAIT, "table.wait(1941)", id="a message type"),
            pytest.param(Light, "<enum 'Light'>", id="all of them, as an enum"),
            pytest.param([Light.RED], "[<Light.RED: 0>]", id="a list of them"),
        ],
    )
    def test_a_state_that_it_does_not_have_is_refused_with_those_it_has(self, state, named):
        for register in (
            lambda table: table.on(HOLE, state)(press),
            lambda table: table.wrap(PRESS, state)(three_arguments),
            lambda table: table.ignore(HOLE, Light.RED, state),
            lambda table: table.impossible(HOLE, state),
        ):
            refused(register, f"{named} is not a state of this table: use one of RED, GREEN, DARK")

    @pytest.mark.parametrize(
        "states",
        [
            pytest.param(5, id="a number"),
            pytest.param((), id="none"),
            pytest.param("RED", id="a string"),
            pytest.param((Light.RED, Light.RED), id="one twice"),
            pytest.param((Light.RED, Other.FIRST), id="two that are equal"),
        ],
    )
    def test_states_are_members_of_an_enum(self, states):
        with pytest.raises(HandlerTableError, match="are not states of a table: pass an enum"):
            HandlerTable(states)

    def test_a_row_with_a_cell_too_few_cannot_be_built(self):
        refused(
            lambda _: HandlerTable(Light, [(PRESS, press, press)]),
            "the row of table.press has 2 cells for 3 states",
        )

    @pytest.mark.parametrize(
        ("states", "named"),
        [
            pytest.param(State, "FOLLOWER, PRE_CANDIDATE", id="quite others"),
            pytest.param((Light.RED, Light.GREEN), "RED, GREEN:", id="fewer"),
            pytest.param((*Light, Other.TAKEN), "RED, GREEN, DARK, TAKEN", id="more"),
            pytest.param((Other.FIRST, Other.SECOND, Other.FREE), "FIRST, SECOND, FREE", id="equal, in part"),
        ],
    )
    def test_a_table_of_other_states_than_its_nodes_is_refused_by_check(self, states, named):
        with pytest.raises(HandlerTableError) as caught:
            light_table().check(states)
        assert f"its states are RED, GREEN, DARK, but its node's are {named}" in str(caught.value)
        light_table().check(Light)


class TestACellIsDeclaredOnce:
    @pytest.mark.parametrize(
        ("mistake", "named"),
        [
            pytest.param(
                lambda table: table.on(PRESS, Light.GREEN)(one_of_two),
                ["one_of_two (tests.handlers.test_table:", "table.press", "GREEN (test_table.press)"],
                id="a second handler",
            ),
            pytest.param(
                lambda table: table.on(PRESS)(one_of_two),
                ["RED (test_table.press), GREEN (test_table.press)."],
                id="a second handler, without states",
            ),
            pytest.param(
                lambda table: table.on(WAIT, Light.RED)(one_of_two),
                ["RED (Ignore(because='waiting is free'))"],
                id="a handler where it was to be ignored",
            ),
            pytest.param(
                lambda table: table.ignore(PRESS, Light.RED),
                ["ignore(table.press)", "RED (test_table.press)"],
                id="ignore over a handler",
            ),
            pytest.param(
                lambda table: table.ignore(PRESS, Light.DARK),
                ["DARK (Never(because='the button is unlit'))"],
                id="ignore over the impossible",
            ),
            pytest.param(
                lambda table: table.impossible(PRESS),
                ["impossible(table.press)", "RED (", "GREEN (", "DARK ("],
                id="impossible over all",
            ),
            pytest.param(
                lambda _: HandlerTable(Light, [(PRESS, press, press, press), (PRESS, press, press, press)]),
                ["the row of table.press"],
                id="two rows of a type",
            ),
        ],
    )
    def test_a_second_declaration_is_refused_with_what_stands_there(self, mistake, named):
        refused(mistake, "is already declared in", "replace=True", "`wrap`", *named)

    def test_replace_declares_it_anew(self):
        table = light_table()
        table.on(PRESS, Light.RED, replace=True)(one_of_two)
        table.ignore(PRESS, Light.GREEN, because="it is green", replace=True)
        table.impossible(WAIT, because="the light never waits", replace=True)
        assert table[Light.RED][PRESS] is one_of_two
        assert table[Light.GREEN][PRESS] == Ignore("it is green")
        assert table[Light.DARK][WAIT] == Never("the light never waits")
        table.check()

    def test_on_needs_a_cell_that_may_be_filled(self):
        table = light_table()
        table.impossible(HOLE)
        with pytest.raises(
            HandlerTableError, match=r"on\(table.hole\): all cells of the row must stay empty"
        ):
            table.on(HOLE)(press)

    @pytest.mark.parametrize("copied", [False, True])
    def test_the_rows_that_a_table_was_built_with_count(self, copied):
        table = raft_handlers().copy() if copied else raft_handlers()
        for state, type_, cell in table.cells():
            if isinstance(cell, Never):
                continue  # `check` refuses a handler there
            with pytest.raises(HandlerTableError, match=f"{type_} is already declared in {state.name}"):
                table.on(type_, state)(press)
            table.on(type_, state, replace=True)(press)
        table.check(State)


def one_of_two(lamp, message):
    return "another"


def test_check_names_all_faults_at_once():
    table = light_table()
    table.on(HOLE, Light.RED)(press)
    table.on(PRESS, Light.DARK)(press)
    table.guards.append(one_argument)
    with pytest.raises(HandlerTableError) as caught:
        table.check(State)
    for fault in (
        "its states are RED, GREEN, DARK",
        "table.hole in GREEN is undeclared",
        "table.hole in DARK is undeclared",
        "table.press in DARK has a handler",
        "one_argument",
    ):
        assert fault in str(caught.value)
