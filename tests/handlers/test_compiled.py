"""The wheel with the compiled core is as open to users as the sources are. `make check-compiled` runs this on it."""

import importlib
import os
import tomllib
from enum import IntEnum
from pathlib import Path

import pytest
from drakkar.handlers import (
    SWALLOW,
    EntryKind,
    Extension,
    HandlerTable,
    Message,
    MessageType,
    Raft,
    RaftConfig,
    State,
    delivers,
    handles,
    raft_handlers,
)
from drakkar.handlers.raft.log import RaftLog
from drakkar.handlers.testing import Cluster

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["drakkar"]
FILES = {
    path.relative_to(ROOT)
    for pattern in SETTINGS["compiled"]
    for path in ROOT.glob(pattern)
    if path.name != "__init__.py"
}
INTERPRETED = {Path(path) for path in SETTINGS["interpreted"]}

NUDGE = MessageType.define("test_compiled.nudge", 62001, from_members=True)
ANSWER = MessageType.define("test_compiled.answer", 62002, from_members=True)
MARK = EntryKind.define("test_compiled.mark", 254)


def is_compiled(path):
    module = importlib.import_module("drakkar." + ".".join(path.with_suffix("").parts))
    return not module.__file__.endswith(".py")


def test_what_is_to_stay_interpreted_is_there():
    assert INTERPRETED < FILES


@pytest.mark.parametrize("path", sorted(FILES), ids=str)
def test_a_module_is_compiled_where_that_was_asked_for(path):
    expected = os.environ.get("DRAKKAR_COMPILE") == "1" and path not in INTERPRETED
    assert is_compiled(path) is expected


@pytest.mark.parametrize("path", sorted(FILES), ids=str)
def test_no_native_class_takes_weak_references(path):
    """mypyc 2.4 forgets to clear them when an object of a native class with an interpreted base is freed."""
    module = importlib.import_module("drakkar." + ".".join(path.with_suffix("").parts))
    native = [
        each
        for each in vars(module).values()
        # A protocol has no objects of its own.
        if "__mypyc_attrs__" in getattr(each, "__dict__", ()) and not getattr(each, "_is_protocol", False)
    ]
    assert not [each for each in native if each.__weakrefoffset__]


def extended():
    table = raft_handlers().copy()

    @table.on(NUDGE, State.LEADER)
    def answer(raft, message):
        raft.nudges = getattr(raft, "nudges", 0) + 1
        raft.reply(message, ANSWER, payload={"nudges": raft.nudges})

    table.ignore(NUDGE, *(state for state in State if state is not State.LEADER))

    @table.on(ANSWER)
    def keep(raft, message):
        raft.answers = [*getattr(raft, "answers", []), message.payload]

    return table


def test_handlers_of_ones_own_call_the_core_and_keep_state_in_it():
    cluster = Cluster(3, handlers=extended(), seed=1)
    cluster.elect(1)
    for _ in range(2):
        raft = cluster.nodes[2].raft
        raft.send(Message(NUDGE, to=1))
        cluster.deliver()
    assert raft.answers == [{"nudges": 1}, {"nudges": 2}]


def test_a_handler_of_ones_own_runs_around_a_handler_of_the_core():
    table = raft_handlers().copy()
    seen = []

    @table.wrap(MessageType.REPLICATE, State.FOLLOWER)
    def count(raft, message, inner):
        seen.append(raft.id)
        return inner(raft, message)

    cluster = Cluster(3, handlers=table, seed=1)
    cluster.elect(1)
    cluster.propose(1, b"x")
    assert cluster.applied(3) == [b"x"]
    assert {2, 3} == set(seen)


def test_a_guard_of_ones_own_comes_before_the_core():
    table = raft_handlers().copy()

    @table.guard
    def deaf(raft, message):
        return SWALLOW if raft.id == 3 and message.type is MessageType.REPLICATE else None

    cluster = Cluster(3, handlers=table, seed=1)
    cluster.elect(1)
    cluster.propose(1, b"x")
    assert [cluster.applied(id_) for id_ in (1, 2, 3)] == [[b"x"], [b"x"], []]


def test_an_extension_keeps_records_wraps_handlers_of_the_core_and_refuses():
    class Marks(Extension):
        def __init__(self, node):
            self.node, self.marks, self.appends = node, [], 0
            node.every(2, Message(NUDGE))

        @handles(NUDGE, State.LEADER, elsewhere="only a leader proposes")
        def nudge(self, message):
            self.node.propose(MARK, b"%d" % self.appends)

        @handles(MessageType.REPLICATE, State.FOLLOWER, wrap=True)
        def count(self, message, inner):
            self.appends += 1
            inner(message)

        @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
        def check_it(self, message, inner):
            rest = self.node.veto(message, "no", lambda entry: entry.payload == b"bad")
            if rest is not None:
                inner(rest)

        @delivers(MARK)
        def mark(self, entry):
            self.marks.append(entry.index)

        def save(self):
            return bytes(self.marks)

        def load(self, data):
            self.marks = list(data)

    table = raft_handlers()
    table.use(Marks)
    cluster = Cluster(3, handlers=table, seed=1)
    cluster.elect(1)
    cluster.propose(2, b"bad", b"good")
    cluster.tick(3)
    raft = cluster.nodes[2].raft
    marks, saved = raft.extension(Marks), []
    raft.save_extensions(raft.log.applied, saved.append)
    fresh = cluster.add(4).raft
    fresh.load_extensions(saved[0], 9)
    assert cluster.applied(3) == [b"good"]
    assert [(dropped.text, dropped.count) for dropped in cluster.nodes[2].dropped] == [("no", 1)]
    assert marks.appends
    assert marks.marks == fresh.extension(Marks).marks == [3]


def test_a_table_for_another_protocol_stands_beside():
    class Light(IntEnum):
        RED = 0
        GREEN = 1

    class Lights(HandlerTable):
        """A user's own kind of table."""

    table = Lights(Light)
    table.on(NUDGE, Light.RED)(lambda node, message: setattr(node, "state", Light.GREEN))
    table.ignore(NUDGE, Light.GREEN)
    table.ignore(ANSWER)
    table.check()
    assert list(table.types) == [NUDGE, ANSWER]


def test_raft_can_be_extended_and_its_core_calls_what_is_overridden():
    class Told(Raft):
        def send(self, message):
            self.told = [*getattr(self, "told", []), message.type]
            super().send(message)

    cluster = Cluster(2, seed=1)
    raft = Told(RaftConfig(replica_id=1, shard_id=1), cluster.nodes[1].log)
    raft.step(Message(MessageType.ELECTION, sender=1))
    assert MessageType.REQUEST_PRE_VOTE in raft.told


def test_methods_can_be_replaced_on_one_raft():
    cluster = Cluster(2, seed=1)
    raft = cluster.nodes[1].raft
    told = []
    send = raft.send

    def tell(message):
        told.append(message.type)
        send(message)

    raft.send = tell
    cluster.elect(1)
    assert MessageType.REQUEST_VOTE in told


def test_a_log_can_be_extended():
    class Told(RaftLog):
        def append(self, run):
            told.append(run.last)
            super().append(run)

    told = []
    cluster = Cluster(1, seed=1)
    raft = cluster.nodes[1].raft
    raft.log = Told(raft.log.storage)
    cluster.elect(1)
    assert told == [raft.log.last_index]
