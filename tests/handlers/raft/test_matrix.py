"""The handler matrix: every cell declared, and what is expected there; and what extends it."""

import ast
import inspect
import re
import subprocess
import sys
from enum import IntEnum
from pathlib import Path
from textwrap import dedent

import pytest
from drakkar.handlers import (
    SWALLOW,
    Entry,
    Extension,
    HandlerTable,
    HandlerTableError,
    Ignore,
    MemoryLog,
    Message,
    MessageType,
    Never,
    RaftConfig,
    State,
    handles,
    raft_handlers,
    testing,
)
from drakkar.handlers.raft.matrix import DECIDED_BESIDE, GUARDS, RAFT, TRAITS
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.testing import drain

from tests.compiled import reads_the_source
from tests.handlers.raft.support import replica, standing

T = MessageType

# `.` is ignored, `x` must stay empty; the same code in two cells is the same handler.
EXPECTED = """
                       FOLLOWER PRE_CANDIDATE CANDIDATE LEADER OBSERVER WITNESS
LOCAL_TICK             a1       a1            a1        a2     a3       a3
ELECTION               b1       b1            b1        .      x        x
LEADER_HEARTBEAT       .        .             .         c1     .        .
CONFIG_CHANGE_EVENT    d1       d1            d1        d2     d1       d1
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
SNAPSHOT_RECEIVED      l1       l1            l1        l2     l1       l1
LEADER_TRANSFER        m1       m3            m3        m2     .        .
TIMEOUT_NOW            n1       .             .         .      .        .
RATE_LIMIT             .        .             .         o1     .        .
REQUEST_PRE_VOTE       i2       i3            i2        i2     i2       i2
REQUEST_PRE_VOTE_RESP  x        j2            x         x      x        x
LOG_QUERY              p1       p1            p1        p1     p1       x
PROPOSE_REFUSED        r1       r1            r1        r1     r1       x
READ_REFUSED           r1       r1            r1        r1     r1       x
TRANSFER_REFUSED       r1       r1            r1        r1     r1       .
REMOVAL_QUERY          s3       s3            s3        s1     s3       s3
REMOVED                s2       s2            s2        s2     s2       s2
SNAPSHOT_REQUEST       x        x             x         h3     x        x
DISK_HUNG              .        .             .         c3     .        .
LOG_FULL               x        x             x         h4     x        x
DISK_FULL              t1       t1            t1        t2     t1       t1
DISK_ROOM              t3       t3            t3        t3     t3       t3
ENTRIES_LOADED         u1       u1            u1        u2     u1       u1
COMMIT                 v1       v2            v2        x      v1       v1
COMMIT_DUE             .        .             .         v3     .        .
LANE_DRAINED           .        .             .         w1     .        .
NOT_SENT               w2       w2            w2        w3     w2       x
NEWBORN                z1       z1            z1        z1     z1       z1
NEWBORN_RESP           z2       .             .         .      .        z2
CONTRADICTION          x        x             x         y1     x        x
CONTRADICTION_RESP     y2       .             .         .      y2       y2
LEADER_GONE            q1       .             .         .      q2       q2
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
    T.NO_OP,
    T.RATE_LIMIT,
    T.SNAPSHOT_REQUEST,
    T.LOG_FULL,
    T.COMMIT,
    T.CONTRADICTION,
    T.CONTRADICTION_RESP,
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
        raft.timers.election_elapsed,
        raft.timers.randomized_timeout,
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
        assert bool(cell) is (code not in {".", "x"})

    @reads_the_source
    def test_every_handler_states_its_rule(self):
        assert not [cell for _, _, cell in raft_handlers().cells() if callable(cell) and not cell.__doc__]

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
        assert [type_ for type_, *_ in RAFT] == [T(number) for number in range(49)]
        assert raft_handlers().types == tuple(T(number) for number in range(49))
        assert raft_handlers().states == tuple(State)
        assert len(CELLS) == 49 * 6

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
        mine.on(T.PING, State.LEADER, replace=True)(lambda raft, message: None)
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
        assert "count(heartbeat.handle_heartbeat)" in table.describe()


class Colour(IntEnum):
    """As many members as `State`, and equal to its."""

    RED, GREEN, BLUE, CYAN, MAGENTA, BLACK = range(6)


class Loose(IntEnum):
    TYPE = 1908


class Mourner(Extension):
    @handles(MessageType.PEER_DOWN)
    def mourn(self, message):
        pass


def with_a_loose_type():
    table = raft_handlers()
    table.ignore(Loose.TYPE)
    return table


class TestATableThatRaftCannotUse:
    @pytest.mark.parametrize(
        ("table", "named"),
        [
            pytest.param({}, ["handlers={} is no HandlerTable", "raft_handlers()"], id="a dict"),
            pytest.param(raft_handlers, ["is no HandlerTable", "raft_handlers()"], id="the function"),
            pytest.param(HandlerTable(Colour), ["RED, GREEN", "FOLLOWER, PRE_CAND"], id="other states"),
            pytest.param(
                HandlerTable(State), ["no row of LOCAL_TICK, ELECTION", "raft_handlers()"], id="empty"
            ),
            pytest.param(
                HandlerTable(State, RAFT[:-1]),
                [f"no row of {list(RAFT)[-1][0]}", "raft_handlers()"],
                id="a row missing",
            ),
            pytest.param(
                raft_handlers().use(Mourner),
                ["PEER_DOWN is news for nodes without Raft", "UNREACHABLE, which you can wrap"],
                id="news that never comes",
            ),
            pytest.param(
                with_a_loose_type(), ["<Loose.TYPE: 1908>", "MessageType.define"], id="a type of another enum"
            ),
        ],
    )
    def test_it_is_refused_with_the_remedy(self, table, named):
        with pytest.raises(HandlerTableError) as caught:
            Raft(RaftConfig(replica_id=1), MemoryLog(membership=(1, 2, 3)), handlers=table)
        for text in named:
            assert text in str(caught.value)


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


# -- decisions beside the table ------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]
IN_ACTORS = {
    "node.snapshots.SnapshotKeeper._every": "how often a role gives up its log",
    "node.snapshots.SnapshotKeeper._point": "a witness has no state to save",
    "node.snapshots.SnapshotKeeper.tick": "a leader's host takes the snapshots that peers ask for",
    "node.snapshots.SnapshotKeeper._needed_by_peers": "a leader's host keeps the log for its peers",
    "node.status.status_of": "a picture for people",
    "node.metrics": "the same, as figures",
    "node.deadlines.DeadlineErrors._campaigns_later": "why a request waited for a leader, told to people",
    "node.proposed.Proposed.take": "only a leader's host examines what others propose: the core refuses it elsewhere",
    "node.proposed.Proposed.on_examined": "likewise, where its replica leads no more",
    "node.departure.Departure._leads": "a leader's host waits for its successor before it stops",
}
"""Where a host asks for the state of its replica, for what is the host's own business."""


def asks_for_a_state(node, owner):
    """A comparison of the state of a replica, which the code calls by the names that `owner` matches."""
    return isinstance(node, ast.Compare) and any(
        re.search(rf"{owner}\.(state|base_state)$", ast.unparse(part))
        for part in (node.left, *node.comparators)
    )


def decisions(folder, owner):
    """The functions below a folder that compare a replica's state, as `module.Class.function`."""
    found = set()

    def visit(node, name):
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}" if isinstance(child, ast.FunctionDef | ast.ClassDef) else name
            if asks_for_a_state(child, owner):
                found.add(inner)
            visit(child, inner)

    for path in set(folder.rglob("*.py")) - {folder / "progress.py"}:
        visit(ast.parse(path.read_text()), ".".join(path.relative_to(folder).with_suffix("").parts))
    return found


def test_what_is_decided_beside_the_table_is_listed_with_its_reason():
    assert decisions(ROOT / "handlers" / "raft", "^(self|raft)") == set(DECIDED_BESIDE)
    assert decisions(ROOT / "actors", "raft") == set(IN_ACTORS)


# -- traits --------------------------------------------------------------------------------------------------------------


FACTS = """
                       term     local  shows_leader  members  vote  after_write  wakes  bulk
LOCAL_TICK             NONE     yes    -             -        -     -            -      -
ELECTION               NONE     yes    -             -        -     -            -      -
LEADER_HEARTBEAT       NONE     yes    -             -        -     -            -      -
CONFIG_CHANGE_EVENT    NONE     yes    -             -        -     -            yes    -
NO_OP                  SENDERS  -      -             -        -     yes          yes    -
PING                   NONE     -      -             -        -     -            yes    -
PONG                   NONE     -      -             -        -     -            yes    -
PROPOSE                NONE     -      -             -        -     -            yes    yes
SNAPSHOT_STATUS        NONE     yes    -             yes      -     -            -      -
UNREACHABLE            NONE     yes    -             yes      -     -            -      -
CHECK_QUORUM           NONE     yes    -             -        -     -            -      -
BATCHED_READ_INDEX     NONE     yes    -             -        -     -            yes    -
REPLICATE              SENDERS  -      yes           -        -     -            yes    yes
REPLICATE_RESP         SENDERS  -      -             yes      -     yes          yes    -
REQUEST_VOTE           CHOSEN   -      -             -        yes   yes          yes    -
REQUEST_VOTE_RESP      SENDERS  -      -             yes      -     yes          yes    -
INSTALL_SNAPSHOT       SENDERS  -      yes           -        -     -            yes    yes
HEARTBEAT              SENDERS  -      yes           -        -     -            -      -
HEARTBEAT_RESP         SENDERS  -      -             yes      -     -            -      -
READ_INDEX             NONE     -      -             -        -     -            yes    -
READ_INDEX_RESP        SENDERS  -      -             yes      -     -            yes    -
QUIESCE                NONE     -      -             -        -     -            -      -
SNAPSHOT_RECEIVED      NONE     yes    -             -        -     -            yes    -
LEADER_TRANSFER        NONE     -      -             yes      -     -            yes    -
TIMEOUT_NOW            SENDERS  -      -             -        -     -            yes    -
RATE_LIMIT             SENDERS  -      -             yes      -     -            -      -
REQUEST_PRE_VOTE       CHOSEN   -      -             -        yes   yes          yes    -
REQUEST_PRE_VOTE_RESP  CHOSEN   -      -             yes      -     yes          yes    -
LOG_QUERY              NONE     yes    -             -        -     -            yes    -
PROPOSE_REFUSED        NONE     -      -             yes      -     -            yes    -
READ_REFUSED           NONE     -      -             yes      -     -            yes    -
TRANSFER_REFUSED       NONE     -      -             yes      -     -            yes    -
REMOVAL_QUERY          TOLD     -      -             -        -     -            -      -
REMOVED                TOLD     -      -             -        -     -            yes    -
SNAPSHOT_REQUEST       SENDERS  -      -             yes      -     yes          yes    -
DISK_HUNG              NONE     yes    -             -        -     -            -      -
LOG_FULL               SENDERS  -      -             yes      -     yes          yes    -
DISK_FULL              NONE     yes    -             -        -     -            -      -
DISK_ROOM              NONE     yes    -             -        -     -            yes    -
ENTRIES_LOADED         NONE     yes    -             -        -     -            -      -
COMMIT                 SENDERS  -      yes           -        -     -            -      -
COMMIT_DUE             NONE     yes    -             -        -     -            -      -
LANE_DRAINED           NONE     yes    -             yes      -     -            -      -
NOT_SENT               NONE     yes    -             -        -     -            -      -
NEWBORN                TOLD     -      -             -        -     -            yes    -
NEWBORN_RESP           TOLD     -      -             yes      -     -            yes    -
CONTRADICTION          SENDERS  -      -             yes      -     -            yes    -
CONTRADICTION_RESP     SENDERS  -      -             yes      -     -            yes    -
LEADER_GONE            NONE     yes    -             -        -     -            -      -
"""
"""What acknowledges an entry or a vote must be `after_write` (thesis §10.2.1): a crash must not make it untrue."""


def facts(type_):
    traits = type_.traits
    flags = (
        traits.local,
        traits.from_leader,
        traits.from_members,
        traits.asks_for_vote,
        traits.after_write,
        traits.wakes,
        traits.bulk,
    )
    return [traits.term.name, *("yes" if flag else "-" for flag in flags)]


@pytest.mark.parametrize("row", FACTS.strip().splitlines()[1:], ids=lambda row: row.split()[0])
def test_every_type_has_its_traits(row):
    name, *expected = row.split()
    assert facts(T[name]) == expected


def test_the_table_of_traits_has_a_row_a_type():
    assert list(TRAITS) == [type_ for type_, *_ in RAFT]
    assert [row.split()[0] for row in FACTS.strip().splitlines()[1:]] == [type_.name for type_ in TRAITS]


@pytest.mark.parametrize("after_write", [True, False])
def test_a_type_of_ones_own_leaves_after_the_write_if_its_traits_say_so(after_write):
    """What it tells of an entry is then true after a crash as well."""
    told = T.define(f"matrix.told.{after_write}", 1910 + after_write, after_write=after_write)
    table = raft_handlers()

    @table.on(T.define("matrix.tell", 1912))
    def tell(raft, message):
        raft.step(Message(T.PROPOSE, entries=(Entry(payload=b"x"),)))
        raft.send(Message(told, to=2, payload=raft.log.last_index))

    table.ignore(told)
    raft = replica(state=State.LEADER, handlers=table)
    drain(raft)
    raft.step(Message(T(1912)))
    ready = raft.ready()
    assert ready.entries
    assert [m.type for m in ready.messages_after_save if m.type is told] == [told] * after_write
    assert [m.type for m in ready.messages if m.type is told] == [told] * (not after_write)


def test_a_type_cannot_be_defined_again_with_other_traits():
    T.define("matrix.again", 1913, bulk=True)
    assert T.define("matrix.again", 1913, bulk=True) is T(1913)
    with pytest.raises(HandlerTableError, match=r"matrix\.again.*is already defined with bulk=True: "):
        T.define("matrix.again", 1913)


def test_a_leader_whose_hosts_disk_hangs_steps_down_within_its_term():
    raft = replica(state=State.LEADER, term=4)
    drain(raft)
    raft.step(Message(T.DISK_HUNG, sender=1))
    assert standing(raft) == (State.FOLLOWER, 4, 1, 0)
