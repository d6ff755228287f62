"""The handler matrix: every cell declared, and what is expected there; and the table that it is made of."""

import ast
import inspect
import subprocess
import sys
from enum import IntEnum
from textwrap import dedent

import pytest
from drakkar.handlers import (
    SWALLOW,
    HandlerTable,
    HandlerTableError,
    Ignore,
    MemoryLog,
    Message,
    MessageType,
    Never,
    RaftConfig,
    State,
    raft_handlers,
    testing,
)
from drakkar.handlers.raft.matrix import GUARDS, RAFT
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import replica, standing

T = MessageType

# `.` is ignored, `x` must stay empty; the same code in two cells is the same handler.
EXPECTED = """
                       FOLLOWER PRE_CANDIDATE CANDIDATE LEADER OBSERVER WITNESS
LOCAL_TICK             a1       a1            a1        a2     a3       a3
ELECTION               b1       b1            b1        .      x        x
LEADER_HEARTBEAT       .        .             .         c1     .        .
CONFIG_CHANGE_EVENT    d1       d1            d1        d1     d1       d1
NO_OP                  .        .             .         .      .        .
PING                   .        .             .         .      .        .
PONG                   .        .             .         .      .        .
PROPOSE                e1       e2            e2        e3     e1       x
SNAPSHOT_STATUS        x        x             x         f1     .        .
UNREACHABLE            x        x             x         f2     .        .
CHECK_QUORUM           .        .             .         c2     .        .
BATCHED_READ_INDEX     .        .             .         .      .        .
REPLICATE              g1       g2            g2        x      g1       g1
REPLICATE_RESP         x        x             x         h1     x        x
REQUEST_VOTE           i1       i1            i1        i1     i1       i1
REQUEST_VOTE_RESP      .        .             j1        .      x        x
INSTALL_SNAPSHOT       g3       g4            g4        x      g3       g3
HEARTBEAT              g5       g6            g6        x      g5       g5
HEARTBEAT_RESP         x        x             x         h2     x        x
READ_INDEX             k1       k2            k2        k3     k1       x
READ_INDEX_RESP        k4       .             .         x      k4       x
QUIESCE                .        .             .         .      .        .
SNAPSHOT_RECEIVED      l1       l1            l1        l1     l1       l1
LEADER_TRANSFER        m1       .             .         m2     .        .
TIMEOUT_NOW            n1       .             .         .      .        .
RATE_LIMIT             .        .             .         o1     .        .
REQUEST_PRE_VOTE       i2       i2            i2        i2     i2       i2
REQUEST_PRE_VOTE_RESP  x        j2            x         x      x        x
LOG_QUERY              p1       p1            p1        p1     p1       x
"""

_STATES, *_ROWS = (line.split() for line in EXPECTED.strip().splitlines())
CELLS = [
    pytest.param(State[state], T[row[0]], code, id=f"{state}-{row[0]}")
    for row in _ROWS
    for state, code in zip(_STATES, row[1:], strict=True)
]

WITH_TERM = {
    T.REPLICATE,
    T.REPLICATE_RESP,
    T.REQUEST_VOTE,
    T.REQUEST_VOTE_RESP,
    T.INSTALL_SNAPSHOT,
    T.HEARTBEAT,
    T.HEARTBEAT_RESP,
    T.READ_INDEX_RESP,
    T.TIMEOUT_NOW,
    T.RATE_LIMIT,
    T.REQUEST_PRE_VOTE,
    T.REQUEST_PRE_VOTE_RESP,
}


def in_state(state):
    roles = {State.OBSERVER: {"observers": (1,)}, State.WITNESS: {"witnesses": (1,)}}.get(state, {})
    raft = replica(voters=(2, 3) if roles else (1, 2, 3), state=state, terms=[1], term=2, **roles)
    drain(raft)
    return raft


def message_of(type_, raft):
    """One that gets past the guards: from a member, in the replica's term."""
    return Message(type_, sender=2, term=raft.term if type_ in WITH_TERM else 0)


def remembered(raft):
    """What a message without a handler must not change."""
    return (
        standing(raft),
        raft.log.last_index,
        raft.log.committed,
        raft.election_elapsed,
        raft.randomized_timeout,
        raft.membership,
        dict(raft.votes),
        [str(progress) for progress in raft.progress.values()],
    )


class TestTheMatrix:
    @pytest.mark.parametrize(("state", "type_", "code"), CELLS)
    def test_every_cell_is_what_is_expected(self, state, type_, code):
        cell = raft_handlers()[state][type_]
        if code == ".":
            assert isinstance(cell, Ignore)
        elif code == "x":
            assert isinstance(cell, Never)
        else:
            assert callable(cell)
            assert cell.__doc__, "a handler states its rule"
        assert bool(cell) is (code not in {".", "x"})

    def test_the_same_behaviour_is_the_same_handler(self):
        """And another behaviour is another one."""
        table = raft_handlers()
        handlers = {}
        for param in CELLS:
            state, type_, code = param.values
            handlers.setdefault(code, set()).add(table[state][type_])
        filled = {code: found for code, found in handlers.items() if code not in {".", "x"}}
        assert {code: len(found) for code, found in filled.items()} == dict.fromkeys(filled, 1)
        assert len(set().union(*filled.values())) == len(filled)

    def test_every_message_type_has_a_row_and_every_state_a_column(self):
        """V14."""
        assert [type_ for type_, *_ in RAFT] == [T(number) for number in range(29)]
        assert raft_handlers().types == tuple(T(number) for number in range(29))
        assert raft_handlers().states == tuple(State)
        assert len(CELLS) == 29 * 6

    def test_every_empty_cell_has_its_reason(self):
        for state, type_, cell in raft_handlers().cells():
            assert cell or len(cell.because) > 10, (state, type_)

    @pytest.mark.parametrize(("state", "type_", "code"), [p for p in CELLS if p.values[2] in {".", "x"}])
    def test_a_message_that_reaches_an_empty_cell_is_counted_and_changes_nothing(self, state, type_, code):
        raft = in_state(state)
        before = remembered(raft)
        raft.step(message_of(type_, raft))
        assert remembered(raft) == before
        counter = raft.tally.impossible if code == "x" else raft.tally.ignored
        assert counter == {(state, type_): 1}
        assert drain(raft) == []

    @pytest.mark.parametrize(("state", "type_", "code"), [p for p in CELLS if p.values[2] not in {".", "x"}])
    def test_a_message_that_reaches_a_handler_is_counted_there(self, state, type_, code):
        raft = in_state(state)
        raft.tally.handled.clear()
        raft.step(message_of(type_, raft))
        assert raft.tally.handled[state, type_] == 1
        assert (raft.tally.ignored, raft.tally.impossible, raft.tally.swallowed) == ({}, {}, {})

    @pytest.mark.parametrize(("state", "type_", "code"), [p for p in CELLS if p.values[2] == "x"])
    def test_no_handler_may_ever_stand_where_the_protocol_forbids_it(self, state, type_, code):
        """The library asserts it at the start (rules of the matrix); so a `Raft` refuses the table."""
        table = raft_handlers()
        table.on(type_, state)(lambda raft, message: None)
        with pytest.raises(
            HandlerTableError, match=f"{type_} in {state.name} has a handler, but must stay empty"
        ):
            table.check()
        with pytest.raises(HandlerTableError):
            replica(handlers=table)

    def test_each_caller_has_a_table_of_its_own(self):
        mine = raft_handlers()
        mine.on(T.PING, State.LEADER)(lambda raft, message: None)
        mine.guard(lambda raft, message: SWALLOW)
        assert not raft_handlers()[State.LEADER][T.PING]
        assert raft_handlers().guards == list(GUARDS)

    def test_the_command_line_prints_it(self):
        """`python -m drakkar.handlers`."""
        run = subprocess.run(
            [sys.executable, "-m", "drakkar.handlers"], capture_output=True, text=True, timeout=60, check=True
        )
        assert run.stdout.rstrip("\n") == str(raft_handlers().describe())
        for name in (*State.__members__, *(type_.name for type_, *_ in RAFT)):
            assert name in run.stdout


class Light(IntEnum):
    RED = 0
    GREEN = 1
    DARK = 2


PRESS = T.define("matrix.press", 1901)
WAIT = T.define("matrix.wait", 1902)


def light():
    """A table for a protocol of one's own."""
    table = HandlerTable(Light)
    table.on(PRESS, Light.RED, Light.GREEN)(press)
    table.impossible(PRESS, Light.DARK, because="nobody sees the button")
    table.ignore(WAIT, because="waiting is free")
    return table


def press(node, message):
    node.append("pressed")


class TestATableOfOnesOwn:
    def test_it_is_whole_when_every_cell_of_every_row_is_declared(self):
        light().check()

    def test_a_forgotten_cell_is_named_with_its_remedy(self):
        """V14, BUG-P18: every state of a type that has a row."""
        table = HandlerTable(Light)
        table.on(PRESS, Light.RED)(press)
        with pytest.raises(HandlerTableError) as refused:
            table.check()
        assert "matrix.press in GREEN is undeclared: use on, ignore or impossible" in str(refused.value)
        assert "matrix.press in DARK is undeclared" in str(refused.value)
        assert "RED" not in str(refused.value)

    def test_a_row_with_a_cell_too_few_cannot_be_built(self):
        with pytest.raises(HandlerTableError, match=r"the row of matrix.press has 2 cells for 3 states"):
            HandlerTable(Light, [(PRESS, press, press)])

    def test_on_without_states_fills_all_but_the_impossible(self):
        table = light()

        @table.on(PRESS)
        def other(node, message):
            node.append("other")

        assert table[Light.RED][PRESS] is table[Light.GREEN][PRESS] is other
        assert isinstance(table[Light.DARK][PRESS], Never)
        table.check()

    def test_wrappers_stand_around_each_other_and_decide_whether_the_inner_one_runs(self):
        table = light()

        @table.wrap(PRESS, Light.RED)
        def inner_wrapper(node, message, inner):
            node.append("in")
            inner(node, message)

        @table.wrap(PRESS, Light.RED)
        def outer_wrapper(node, message, inner):
            node.append("out")
            if message.hint:
                inner(node, message)

        done = []
        table[Light.RED][PRESS](done, Message(PRESS, hint=1))
        assert done == ["out", "in", "pressed"]
        done.clear()
        table[Light.RED][PRESS](done, Message(PRESS))
        assert done == ["out"]
        table[Light.GREEN][PRESS](done, Message(PRESS))
        assert done == ["out", "pressed"]

    def test_wrap_without_states_takes_every_handler_of_the_row(self):
        table = light()
        seen = []

        @table.wrap(PRESS)
        def count(node, message, inner):
            seen.append(message)
            inner(node, message)

        for state in (Light.RED, Light.GREEN):
            table[state][PRESS]([], Message(PRESS))
        assert len(seen) == 2
        assert isinstance(table[Light.DARK][PRESS], Never)

    @pytest.mark.parametrize(
        ("type_", "states", "named"),
        [
            pytest.param(WAIT, (), "RED, GREEN, DARK", id="a row without a handler"),
            pytest.param(PRESS, (Light.RED, Light.DARK), "DARK", id="one of the states has none"),
        ],
    )
    def test_there_must_be_something_to_wrap(self, type_, states, named):
        with pytest.raises(HandlerTableError, match=f"no handler stands in {named}; fill the cell with `on`"):
            light().wrap(type_, *states)(lambda node, message, inner: None)

    def test_a_cell_that_was_declared_impossible_stays_so(self):
        table = light()
        table.on(PRESS, Light.DARK)(press)
        with pytest.raises(
            HandlerTableError, match="in DARK has a handler, but must stay empty: nobody sees"
        ):
            table.check()

    def test_a_copy_is_changed_alone(self):
        table = light()
        twin = table.copy()
        twin.ignore(PRESS, Light.RED)
        twin.guard(lambda node, message: None)
        twin.on(PRESS, Light.DARK)(press)
        assert table[Light.RED][PRESS] is press
        assert table.guards == []
        assert raft_handlers().copy().guards == list(GUARDS)
        table.check()
        with pytest.raises(HandlerTableError):
            twin.check()

    def test_a_state_that_it_does_not_have_is_refused_with_those_it_has(self):
        with pytest.raises(
            HandlerTableError, match=r"is no state of this table; its states are RED, GREEN, DARK"
        ):
            light().on(PRESS, State.WITNESS)(press)

    def test_a_type_that_it_does_not_know_is_ignored(self):
        """An unknown number from a peer is counted and dropped."""
        unknown = T.define("matrix.unknown", 1903)
        assert isinstance(light()[Light.RED][unknown], Ignore)
        raft = replica(term=1)
        raft.step(Message(unknown, sender=2))
        assert raft.tally.ignored == {(State.FOLLOWER, unknown): 1}

    def test_it_describes_itself(self):
        """A line for each type, a column for each state, then the reasons, each once."""
        table = light()
        table.guard(press)
        table.on(T.define("matrix.hole", 1904), Light.RED)(press)
        lines = table.describe().splitlines()
        assert lines[0].split() == ["RED", "GREEN", "DARK"]
        assert lines[1].split() == ["matrix.press", "test_matrix.press", "test_matrix.press", "x1"]
        assert lines[2].split() == ["matrix.wait", "-2", "-2", "-2"]
        assert lines[3].split() == ["matrix.hole", "test_matrix.press", "?", "?"]
        assert [line.strip() for line in lines[5:7]] == ["x1 nobody sees the button", "-2 waiting is free"]
        assert lines[-1] == "before dispatch: test_matrix.press"
        assert repr(table.describe()) == str(table.describe())


class TestATableThatWasExtended:
    def test_a_guard_may_end_a_message_before_the_table_is_asked(self):
        table = raft_handlers()

        @table.guard
        def not_from_three(raft, message):
            return SWALLOW if message.sender == 3 else None

        raft = replica(term=1, handlers=table)
        raft.step(Message(T.HEARTBEAT, sender=3, term=1))
        assert raft.leader_id == 0
        assert raft.tally.swallowed == {(State.FOLLOWER, T.HEARTBEAT): 1}
        assert raft.tally.handled == {}
        raft.step(Message(T.HEARTBEAT, sender=2, term=1))
        assert raft.leader_id == 2

    def test_a_handler_of_ones_own_answers_a_type_of_ones_own(self):
        table = raft_handlers()
        ping = T.define("matrix.ping", 1905)
        table.on(ping, State.LEADER)(
            lambda raft, message: raft.reply(message, ping, payload=raft.log.committed)
        )
        with pytest.raises(HandlerTableError, match=r"matrix.ping in FOLLOWER is undeclared"):
            table.check()
        table.ignore(ping, *(state for state in State if state is not State.LEADER), because="not audited")
        raft = replica(state=State.LEADER, handlers=table)
        raft.step(Message(ping, sender=2))
        [answer] = drain(raft)
        assert (answer.type, answer.to, answer.payload) == (ping, 2, 0)

    def test_a_built_in_handler_may_be_wrapped(self):
        table = raft_handlers()
        seen = []

        @table.wrap(T.HEARTBEAT, State.FOLLOWER)
        def count(raft, message, inner):
            seen.append(message.sender)
            inner(raft, message)

        raft = replica(term=1, handlers=table)
        raft.step(Message(T.HEARTBEAT, sender=2, term=1))
        assert (seen, raft.leader_id) == ([2], 2)
        assert "count(replication.follow_beat)" in table.describe()


EXAMPLES = (
    HandlerTable,
    HandlerTable.copy,
    HandlerTable.on,
    HandlerTable.wrap,
    HandlerTable.guard,
    HandlerTable.ignore,
    HandlerTable.impossible,
    raft_handlers,
    testing,
)


def code_in(documented):
    """The paragraphs of a docstring that are code, in order."""
    found = []
    for paragraph in inspect.getdoc(documented).split("\n\n"):
        try:
            tree = ast.parse(dedent(paragraph))
        except SyntaxError:
            continue
        if tree.body:
            found.append(dedent(paragraph))
    return found


@pytest.mark.parametrize("documented", EXAMPLES, ids=lambda documented: documented.__name__)
def test_the_example_in_its_docstring_runs(documented):
    audit_ping, audit_pong = T.define("matrix.audit_ping", 1906), T.define("matrix.audit_pong", 1907)
    names = {
        "AUDIT_PING": audit_ping,
        "AUDIT_PONG": audit_pong,
        "HandlerTable": HandlerTable,
        "IntEnum": IntEnum,
        "Message": Message,
        "MessageType": MessageType,
        "Raft": Raft,
        "SWALLOW": SWALLOW,
        "State": State,
        "config": RaftConfig(replica_id=1),
        "count_replications": lambda raft, message, inner: inner(raft, message),
        "log": MemoryLog(membership=(1, 2, 3)),
        "raft_handlers": raft_handlers,
        "seen": {2: 0},
        "table": raft_handlers(),
    }
    examples = code_in(documented)
    assert examples
    for example in examples:
        exec(example, names)  # it is what the test is about
    for name, made in names.items():
        if name.startswith("test_"):
            made()
    if "raft" in names:
        assert names["raft"].handlers is names["table"]
