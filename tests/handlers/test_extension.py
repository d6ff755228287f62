"""Extensions: state of one's own in each node, whose methods fill and wrap the cells of a table."""

from contextlib import suppress
from enum import IntEnum

import pytest
from drakkar.handlers import (
    LATER,
    EntryKind,
    Extension,
    HandlerTable,
    HandlerTableError,
    Ignore,
    Message,
    MessageType,
    Never,
    State,
    TableNode,
    delivers,
    handles,
    raft_handlers,
)

from tests.handlers.raft.support import replica

PRESS = MessageType.define("extension.press", 1730)
WAIT = MessageType.define("extension.wait", 1731)
HOLE = MessageType.define("extension.hole", 1732)
MARK = EntryKind.define("extension.mark", 230)
OTHER_MARK = EntryKind.define("extension.other_mark", 231)


class Light(IntEnum):
    RED = 0
    GREEN = 1
    DARK = 2


class Count(Extension):
    """State, a handler, a wrapper around it, an ask."""

    def __init__(self, node):
        self.node = node
        self.pressed = 0

    @handles(PRESS, Light.RED, Light.GREEN, elsewhere="it is dark")
    def press(self, message):
        self.pressed += 1
        self.node.state = Light.GREEN
        return self.pressed

    @handles(WAIT)
    def wait(self, message):
        pass


def table_of(*classes):
    return HandlerTable(Light).use(*classes)


def node_of(*classes, state=Light.RED):
    return TableNode("a", table_of(*classes), state, ["b"])


class TestItsState:
    def test_each_node_has_its_own_and_its_methods_find_it(self):
        one, other = node_of(Count), node_of(Count)
        assert [one.step(Message(PRESS)) for _ in range(2)] == [1, 2]
        assert other.step(Message(PRESS)) == 1
        assert (one.extension(Count).pressed, one.state) == (2, Light.GREEN)
        assert one.extension(Count).node is one

    def test_a_raft_has_extensions_too(self):
        class Seen(Extension):
            def __init__(self, node):
                self.seen = []
                self.leader_at_start = node.leader_id

            @handles(PRESS, *State)
            def note(self, message):
                self.seen.append(message.payload)
                return len(self.seen)

        table = raft_handlers()
        table.use(Seen)
        raft = replica(handlers=table)
        assert raft.step(Message(PRESS, sender=2, payload="x")) == 1
        assert (raft.extension(Seen).seen, raft.extension(Seen).leader_at_start) == (["x"], 0)
        assert raft.tally.handled[State.FOLLOWER, PRESS] == 1

    def test_one_without_an_init_of_its_own_knows_its_node(self):
        class Plain(Extension):
            pressed = 0

            @handles(PRESS, Light.RED, Light.GREEN, elsewhere="it is dark")
            def press(self, message):
                self.pressed += 1
                return self.node.name, self.pressed

        node = node_of(Plain)
        assert [node.step(Message(PRESS)) for _ in range(2)] == [("a", 1), ("a", 2)]
        assert node.extension(Plain).node is node

    def test_they_are_made_in_the_order_of_their_registration(self):
        made = []

        class First(Count):
            name = "first"

            def __init__(self, node):
                super().__init__(node)
                made.append(First)

        class Second(Extension):
            def __init__(self, node):
                made.append(node.extension(First).pressed)

            @handles(HOLE)
            def hole(self, message):
                pass

        node_of(First, Second)
        assert made == [First, 0]

    def test_one_that_the_table_does_not_use_is_not_found(self):
        with pytest.raises(
            HandlerTableError, match=r"Count \(.*\) is no extension of this node: call table.use"
        ):
            TableNode("a", table_of_plain(), Light.RED).extension(Count)

    def test_one_that_is_extended_is_found_by_its_own_class_too(self):
        class Hurried(Count):
            name = "hurried"

        node = node_of(Hurried)
        assert node.extension(Count) is node.extension(Hurried)

    def test_which_of_several_is_meant_must_be_said(self):
        class First(Count):
            name = "first"

        class Second(Extension):
            @handles(HOLE)
            def hole(self, message):
                pass

        with pytest.raises(
            HandlerTableError, match=r"Extension .* is extended by several .*: name one of .*First.*Second"
        ):
            node_of(First, Second).extension(Extension)

    def test_what_cannot_be_made_is_named_with_the_cause(self):
        class Fails(Count):
            def __init__(self, node):
                raise OSError("no such thing")

        with pytest.raises(HandlerTableError, match=r"Fails .* cannot be made: .*no such thing") as caught:
            node_of(Fails)
        assert isinstance(caught.value.__cause__, OSError)


def table_of_plain():
    table = HandlerTable(Light)
    table.on(PRESS)(lambda node, message: None)
    return table


class TestAnswers:
    def test_what_a_method_returns_is_the_answer_and_none_means_later(self):
        node = node_of(Count)
        assert node.step(Message(PRESS)) == 1
        assert node.step(Message(WAIT)) is LATER
        assert repr(LATER) == "LATER"

    def test_a_plain_function_answers_with_none(self):
        assert TableNode("a", table_of_plain(), Light.RED).step(Message(PRESS)) is None

    def test_a_wrapper_answers_with_what_it_returns(self):
        class Loud(Extension):
            @handles(PRESS, Light.RED, wrap=True)
            def shout(self, message, inner):
                return f"{inner(message)}!"

            @handles(WAIT, wrap=True)
            def drop(self, message, inner):
                inner(message)

        node = node_of(Count, Loud)
        assert node.step(Message(PRESS)) == "1!"
        assert node.step(Message(WAIT)) is LATER


class TestCells:
    def test_states_that_nothing_declares_are_ignored_for_the_reason_that_is_given(self):
        table = table_of(Count)
        assert table[Light.DARK][PRESS] == Ignore("it is dark")
        table.check()

    def test_without_states_all_cells_are_filled_but_the_impossible(self):
        table = HandlerTable(Light)
        table.impossible(WAIT, Light.DARK, because="nobody waits in the dark")
        table.use(Count)
        assert isinstance(table[Light.DARK][WAIT], Never)
        table.check()

    def test_two_methods_share_a_row_and_elsewhere_takes_the_rest(self):
        class Two(Extension):
            @handles(PRESS, Light.RED, elsewhere="the rest")
            def one(self, message):
                return "one"

            @handles(PRESS, Light.GREEN)
            def two(self, message):
                return "two"

        assert node_of(Two).step(Message(PRESS)) == "one"
        assert node_of(Two, state=Light.GREEN).step(Message(PRESS)) == "two"
        assert table_of(Two)[Light.DARK][PRESS] == Ignore("the rest")

    def test_one_method_takes_several_types(self):
        class Both(Extension):
            @handles(PRESS)
            @handles(WAIT)
            def both(self, message):
                return message.type

        node = node_of(Both)
        assert [node.step(Message(type_)) for type_ in (PRESS, WAIT)] == [PRESS, WAIT]

    def test_replace_takes_the_place_of_another_handler(self):
        class Mine(Extension):
            @handles(PRESS, replace=True)
            def mine(self, message):
                return "mine"

        assert node_of(Count, Mine).step(Message(PRESS)) == "mine"

    def test_a_wrapper_may_stand_before_what_it_wraps_in_the_class(self):
        class Both(Extension):
            @handles(PRESS, wrap=True)
            def around(self, message, inner):
                return ["around", inner(message)]

            @handles(PRESS)
            def inside(self, message):
                return "inside"

        assert node_of(Both).step(Message(PRESS)) == ["around", "inside"]

    def test_a_wrapper_decides_what_goes_on_and_with_which_message(self):
        class Change(Extension):
            @handles(PRESS, wrap=True)
            def change(self, message, inner):
                return inner(Message(PRESS, payload="changed")) if message.hint else "stopped"

        table = HandlerTable(Light)
        table.on(PRESS)(lambda node, message: message.payload)
        table.use(Change)
        node = TableNode("a", table, Light.RED)
        assert node.step(Message(PRESS, hint=1)) == "changed"
        assert node.step(Message(PRESS)) == "stopped"

    def test_a_subclass_overrides_and_inherits_handlers(self):
        class Double(Count):
            name = "double"

            def press(self, message):
                return 2 * super().press(message)

            @handles(WAIT, Light.RED, elsewhere="only red waits")
            def wait(self, message):
                return "waits"

        node = node_of(Double)
        assert node.step(Message(PRESS)) == 2
        assert table_of(Double)[Light.GREEN][WAIT] == Ignore("only red waits")

    def test_a_copy_of_the_table_keeps_them(self):
        table = table_of(Count)
        twin = table.copy()
        twin.use(Delivers)
        assert (table.extensions, twin.extensions) == ((Count,), (Count, Delivers))
        assert (table.kinds, twin.kinds) == (frozenset(), {MARK})
        assert TableNode("a", table, Light.RED).step(Message(PRESS)) == 1

    def test_the_printed_table_names_class_and_method(self):
        lines = table_of(Count, Delivers).describe().splitlines()
        assert lines[1].split() == ["extension.press", *["test_extension.Count.press"] * 2, "-1"]
        assert "committed extension.mark: test_extension.Delivers.mark" in lines


class Delivers(Extension):
    @delivers(MARK, EntryKind.COMMAND)
    def mark(self, entry):
        pass


class TestMistakesAtRunTime:
    @pytest.mark.parametrize("fatal", [False, True])
    def test_one_in_a_handler_of_ones_own_type_ends_nobody_unless_it_is_fatal(self, fatal):
        class Fails(Extension):
            @handles(PRESS, fatal=fatal)
            def fail(self, message):
                raise KeyError("x")

        node = node_of(Fails)
        with pytest.raises(KeyError):
            node.step(Message(PRESS))
        assert (node.tally.broken is not None) == fatal
        assert node.tally.failed == {(Light.RED, PRESS): 1}

    def test_news_of_a_peer_is_handled_as_a_type_of_ones_own(self):
        class Fails(Extension):
            @handles(MessageType.PEER_DOWN)
            def fail(self, message):
                raise KeyError("x")

        node = node_of(Fails)
        with pytest.raises(KeyError):
            node.step(Message(MessageType.PEER_DOWN, sender="b"))
        assert node.tally.broken is None

    @pytest.mark.parametrize("caught", [False, True])
    def test_one_inside_a_built_in_handler_is_noted_though_the_wrapper_catches_it(self, caught):
        table = HandlerTable(Light)

        @table.on(MessageType.PING)
        def fail(node, message):
            raise KeyError("x")

        class Wraps(Extension):
            @handles(MessageType.PING, wrap=True)
            def around(self, message, inner):
                with suppress(KeyError if caught else ()):
                    inner(message)

        table.use(Wraps)
        node = TableNode("a", table, Light.RED)
        with suppress(KeyError):
            node.step(Message(MessageType.PING))
        assert isinstance(node.tally.broken, KeyError)


def extension(**body):
    return type("Mine", (Extension,), body)


def method(*marks, form="self, message"):
    """A method of these parameters, with these marks."""
    scope = {}
    exec(f"def it({form}): pass", scope)
    function = scope["it"]
    function.__qualname__ = "Mine.it"
    for mark in marks:
        function = mark(function)
    return function


class Later(Extension):
    @handles(HOLE)
    async def later(self, message):
        pass


class NoNode(Count):
    name = "no_node"

    def __init__(self):
        pass


class Keyword(Count):
    name = "keyword"

    def __init__(self, node, *, more):
        pass


MISTAKES = [
    pytest.param("Count", ["'Count'", "extends Extension"], id="a name"),
    pytest.param(int, ["int", "extends Extension"], id="another class"),
    pytest.param(Count(None), ["use(<tests.handle", "extends Extension"], id="an instance"),
    pytest.param(extension(), ["Mine", "registers nothing", "@handles or @delivers"], id="nothing to do"),
    pytest.param(NoNode, ["NoNode", "takes ()", "NoNode(node)"], id="an __init__ without the node"),
    pytest.param(Keyword, ["Keyword", "Keyword(node)"], id="an __init__ that wants more"),
    pytest.param(
        extension(it=method(handles(HOLE), form="self")), ["Mine.it", "it(self, message)"], id="signature"
    ),
    pytest.param(
        extension(it=method(handles(HOLE), form="self, message, inner")),
        ["Mine.it", "it(self, message)"],
        id="a wrapper's signature",
    ),
    pytest.param(
        extension(it=method(handles(PRESS, wrap=True))),
        ["Mine.it", "message, inner)"],
        id="a handler as wrapper",
    ),
    pytest.param(
        extension(it=staticmethod(method(handles(HOLE), form="message"))),
        ["Mine.it", "(message)"],
        id="static",
    ),
    pytest.param(
        extension(it=method(delivers(MARK), form="self, entry, more")),
        ["Mine.it", "it(self, entry)"],
        id="delivery",
    ),
    pytest.param(Later, ["Later.later", "is async"], id="an async method"),
    pytest.param(
        extension(it=method(handles(HOLE)), save=method()), ["save(self)"], id="a save of a message"
    ),
    pytest.param(
        extension(it=method(handles(HOLE)), save=method(form="self")),
        ["Mine", "save and no load"],
        id="no load",
    ),
    pytest.param(
        extension(it=method(handles(HOLE)), load=method(form="self, data")),
        ["Mine", "load and no save"],
        id="no save",
    ),
    pytest.param(
        extension(it=method(handles(HOLE)), save=method(form="self"), load=method(form="self, data")),
        ["Mine", "has save, and takes no entries", "@delivers"],
        id="nothing to save",
    ),
    pytest.param(
        extension(it=method(handles(HOLE)), check=method()), ["check(self)"], id="a check with a parameter"
    ),
    pytest.param(
        extension(it=method(handles(HOLE, State.WITNESS))),
        ["Mine.it", "<State.WITNESS: 5> is not a state of this table", "RED, GREEN, DARK"],
        id="a state of another table",
    ),
    pytest.param(
        extension(it=method(handles(PRESS, Light.RED))),
        ["Mine.it", "already declared in RED (test_extension.Count.press)", "replace=True"],
        id="a cell twice",
    ),
    pytest.param(
        extension(it=method(handles(HOLE, wrap=True), form="self, message, inner")),
        ["Mine.it", "no handler in RED, GREEN, DARK"],
        id="a wrap of an empty row",
    ),
    pytest.param(
        extension(it=method(handles(PRESS, Light.DARK, wrap=True), form="self, message, inner")),
        ["Mine.it", "no handler in DARK"],
        id="a wrap of an empty cell",
    ),
    pytest.param(
        extension(it=method(handles(PRESS, wrap=True, elsewhere="no"), form="self, message, inner")),
        ["Mine.it", "neither replace, fatal nor elsewhere"],
        id="a wrap that is more",
    ),
    pytest.param(
        extension(it=method(delivers(EntryKind.CONFIG_CHANGE), form="self, entry")),
        ["Mine.it", "delivers(CONFIG_CHANGE)", "COMMAND, SESSION, ENCODED"],
        id="a kind of Raft's",
    ),
    pytest.param(
        extension(it=method(delivers(OTHER_MARK, MARK), form="self, entry")),
        ["Mine.it", "test_extension.Delivers.mark takes this kind already"],
        id="a kind that another takes",
    ),
    pytest.param(
        extension(it=method(delivers(OTHER_MARK, OTHER_MARK), form="self, entry")),
        ["Mine.it", "Mine.it takes this kind already"],
        id="a kind twice",
    ),
    pytest.param(Count, ["Count", "already uses", "each extension once"], id="the same class twice"),
    pytest.param(
        extension(name="Count", it=method(handles(HOLE))),
        ["Mine", "already uses", "under the name 'Count'"],
        id="a name twice",
    ),
    pytest.param(extension(name="x" * 65, it=method(handles(HOLE))), ["64 printable"], id="a long name"),
    pytest.param(
        extension(name="a\nb", it=method(handles(HOLE))), ["64 printable"], id="a name of two lines"
    ),
    pytest.param(extension(name=7, it=method(handles(HOLE))), ["has name 7"], id="a number as name"),
]


class TestMistakesOfItsAuthor:
    """Each is told when the table is built, with class and method, and changes nothing."""

    @pytest.mark.parametrize(("class_", "named"), MISTAKES)
    def test_it_is_refused(self, class_, named):
        class Innocent(Extension):
            @handles(WAIT, replace=True)
            def wait(self, message):
                pass

        table = table_of(Count, Delivers)
        before = [*table.cells()], table.extensions, table.deliveries, table.kinds
        with pytest.raises(HandlerTableError) as caught:
            table.use(Innocent, class_)
        for text in named:
            assert text in str(caught.value)
        assert ([*table.cells()], table.extensions, table.deliveries, table.kinds) == before

    @pytest.mark.parametrize(
        "type_",
        [lambda self, message: None, "PRESS", 1730, Light],
        ids=["a function", "a name", "a number", "an enum"],
    )
    def test_handles_wants_a_type(self, type_):
        with pytest.raises(
            HandlerTableError, match=r"@handles\(.*is not a message type: write @handles\(TYPE"
        ):
            handles(type_)

    @pytest.mark.parametrize(
        "kinds",
        [(), (200,), (MARK, "x"), (lambda self, entry: None,)],
        ids=["none", "a number", "a name", "a function"],
    )
    def test_delivers_wants_kinds(self, kinds):
        with pytest.raises(
            HandlerTableError, match=r"@delivers\(.*not kinds of entries: write @delivers\(KIND"
        ):
            delivers(*kinds)

    def test_a_forgotten_cell_is_named_by_check_as_ever(self):
        class Half(Extension):
            @handles(HOLE, Light.RED)
            def hole(self, message):
                pass

        with pytest.raises(HandlerTableError, match=r"extension.hole in GREEN is undeclared"):
            table_of(Half).check()
