"""The state of extensions is part of what is exported, imported and inspected."""

import cbor2
import pytest
from drakkar.actors import ConfigError
from drakkar.actors.machine.content import read_extensions, read_sessions
from drakkar.actors.snapshots.store import read_file
from drakkar.actors.tools import cli
from drakkar.actors.tools.repair import export, inspect
from drakkar.handlers.errors import ExtensionFailed, HandlerTableError, MissingExtension
from drakkar.handlers.extension import Extension, delivers
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import EntryKind, Run
from drakkar.handlers.raft.matrix import raft_handlers

from tests.actors.tools.support import OLD, Book, bring_in, command, first_entry, record

MARK = EntryKind.define("test_tools.mark", 211)


class Marks(Extension):
    """Remembers all records and commands, in order."""

    name = "marks"

    def __init__(self, node):
        self.seen = []

    @delivers(MARK, EntryKind.COMMAND)
    def deliver(self, entry):
        if entry.payload == b"bad":
            raise ZeroDivisionError("a bug")
        self.seen.append(entry.payload)

    def save(self):
        return cbor2.dumps(self.seen)

    def load(self, data):
        self.seen = cbor2.loads(data)


def table():
    handlers = raft_handlers()
    handlers.use(Marks)
    return handlers


LOG = [
    first_entry(OLD),
    command(2),
    record(MARK, b"early"),
    command(4),
    record(MARK, b"late"),
    command(6),
]
SEEN = [b"2", b"early", b"4", b"late", b"6"]


def marks_in(file):
    """What the extension has saved in an export."""
    with read_file(file) as source:
        assert source.facts["extensions"] == ["marks"]
        read_sessions(source)
        return cbor2.loads(cbor2.loads(read_extensions(source))["marks"])


@pytest.mark.parametrize("snapshot", [0, 4], ids=["all from the log", "some from a snapshot"])
def test_an_export_holds_what_the_extensions_would_have_after_a_restart(survivor, target, snapshot):
    survivor.fill(LOG, commit=6, snapshot=snapshot, handlers=table())
    before = survivor.picture()
    export(survivor.path, 1, Book, target, handlers=table())
    assert survivor.picture() == before
    assert marks_in(target) == SEEN


def test_what_is_left_out_of_an_export_is_not_delivered_either(survivor, target):
    survivor.fill(LOG, commit=4)
    export(survivor.path, 1, Book, target, handlers=table(), committed_only=True)
    assert marks_in(target) == SEEN[:3]


def test_an_import_brings_the_state_of_the_extensions(survivor, target, tmp_path):
    survivor.fill(LOG, commit=6, snapshot=4, handlers=table())
    export(survivor.path, 1, Book, target, handlers=table())
    bring_in(target, tmp_path / "new", members={1: "10.0.0.1:7000", 4: "10.0.0.4:7000"}, as_shard=9)
    machine = Book()
    export(tmp_path / "new", 9, lambda: machine, tmp_path / "again", handlers=table())
    assert marks_in(tmp_path / "again") == SEEN
    assert machine.commands == [b"2", b"4", b"6"]


@pytest.mark.parametrize(
    ("snapshot", "says"),
    [(0, "entry 3 is a record of an extension"), (4, r"the snapshot has the state of extensions \(marks\)")],
)
def test_without_its_table_a_shard_with_extensions_is_not_exported(survivor, target, snapshot, says):
    survivor.fill(LOG, commit=6, snapshot=snapshot, handlers=table())
    with pytest.raises(ConfigError, match=rf"handlers=None: {says}: name the table that uses it"):
        export(survivor.path, 1, Book, target)
    assert not target.exists()


def restless_table():
    """Its extension asks for all that it can, with each record."""
    peer = MessageType.define("test_tools.peer", 1252)

    class Restless(Marks):
        def __init__(self, node):
            super().__init__(node)
            self.node = node

        @delivers(MARK)
        def deliver(self, entry):
            super().deliver(entry)
            self.node.tell(None, entry)
            for event in range(12):
                self.node.publish_event(event)
            self.node.after(100, Message(peer))
            self.node.send(Message(peer, to=2, payload=len(self.seen)))
            assert len(self.node.outbox.messages) <= 1000, "what is sent piles up"

        def save(self):
            return cbor2.dumps([self.node.log.applied, len(self.seen)])

    handlers = raft_handlers()
    handlers.use(Restless)
    return handlers


def test_what_extensions_ask_for_in_an_export_is_thrown_away_and_ends_nothing(survivor, target):
    """Of each sort 10,000 may wait, and here nothing takes them."""
    many = 12_000
    survivor.fill([first_entry(OLD), Run(0, 1, [b"x"] * many, bytes([MARK]) * many)], commit=2)
    export(survivor.path, 1, Book, target, handlers=restless_table())
    assert marks_in(target) == [many + 1, many], "how far the log is applied, and what was seen of it"


def test_a_table_that_lacks_the_extension_is_refused(survivor, target):
    survivor.fill(LOG, commit=6)
    with pytest.raises(MissingExtension, match="index 3 has an entry of kind 211"):
        export(survivor.path, 1, Book, target, handlers=raft_handlers())
    with pytest.raises(HandlerTableError, match="is no HandlerTable"):
        export(survivor.path, 1, Book, target, handlers={})
    assert not target.exists()


def test_an_extension_that_fails_is_named_and_nothing_is_exported(survivor, target):
    survivor.fill([*LOG, record(MARK, b"bad")], commit=7)
    with pytest.raises(ExtensionFailed, match=r"Marks\.deliver failed at index 7: ZeroDivisionError"):
        export(survivor.path, 1, Book, target, handlers=table())
    assert not target.exists()


def test_an_inspection_tells_of_records_and_of_extensions_in_the_snapshot(survivor, capsys):
    survivor.fill(LOG, commit=6, snapshot=4, handlers=table())
    (replica,) = inspect(survivor.path).replicas
    assert replica.kinds == (int(MARK),)
    assert (replica.snapshot.extensions, replica.snapshot.problem) == (("marks",), "")
    assert cli.main(["inspect", str(survivor.path)]) == 0
    shown = capsys.readouterr().out
    assert "records of the kinds 211 in the log" in shown
    assert "extensions in the snapshot: marks" in shown


@pytest.mark.parametrize("name", ["table", "made"], ids=["a function", "a table"])
def test_the_command_line_names_the_table_too(survivor, target, name, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_imported", lambda option, given, form: IMPORTED[given])
    survivor.fill(LOG, commit=6)
    arguments = ["--shard", "1", "--state-machine", "Book", "--handlers", name, "--to", str(target)]
    assert cli.main(["export", str(survivor.path), *arguments]) == 0
    assert marks_in(target) == SEEN
    assert "bytes" in capsys.readouterr().out


IMPORTED = {"Book": Book, "table": table, "made": table()}
