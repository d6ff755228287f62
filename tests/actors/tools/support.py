"""Data directories as hosts leave them, made by hand, and the state that is expected to come out of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from drakkar.actors.log.data_dir import DataDir
from drakkar.actors.log.store import AppendRequest, Bootstrap, at_once, log_on_disk
from drakkar.actors.machine.compression import encode
from drakkar.actors.machine.sessions import REGISTER, encode_request
from drakkar.actors.machine.state_machine import DiskStateMachine
from drakkar.actors.snapshots.store import SnapshotFiles, read_file
from drakkar.actors.tools.repair import export, import_
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, initial_log
from drakkar.handlers.raft.entries import EntryKind, Run
from drakkar.handlers.raft.state import HardState, Membership

from tests.actors.support import Ledger

A, B, C, D, E = (f"10.0.0.{number}:7000" for number in range(1, 6))
OLD = {1: A, 2: B, 3: C}
NEW = {1: A, 4: D, 5: E}
CLIENT = 77
LONG = b"a command that is long enough to be worth compressing, " * 4


class Book(Ledger):
    """All commands, in order, also in its snapshots."""

    def save(self, sink):
        for command in self.commands:
            sink.write(json.dumps(command.decode()).encode() + b"\n")

    def load(self, source):
        self.commands = [json.loads(line).encode() for line in source]


class InlineBook(Book):
    blocks = False


class DiskBook(DiskStateMachine):
    """Keeps its commands in a file of its own, with their indexes."""

    path: Path | None

    def open(self):
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else []
        return self.rows[-1][0] if self.rows else 0

    def apply_entries(self, entries):
        self.rows += [[index, command.decode()] for index, command in entries]
        self.sync()
        return [len(self.rows)] * len(entries)

    def query(self, query):
        return [command.encode() for _, command in self.rows]

    def sync(self):
        self.path.write_text(json.dumps(self.rows))

    def capture(self):
        fixed = json.dumps(self.rows).encode()
        return lambda sink: sink.write(fixed)

    def load(self, source):
        self.rows = json.loads(source.read())
        self.sync()

    def close(self):
        self.path = None


# -- Directories as hosts leave them, made by hand


def command(number):
    return Run(0, 1, [b"%d" % number])


def compressed():
    payloads, kinds = encode([LONG])
    assert kinds == bytes([EntryKind.ENCODED])
    return Run(0, 1, list(payloads), kinds)


def record(kind, payload):
    return Run(0, 1, [payload], bytes([kind]))


def session(series, text=b""):
    request = encode_request(CLIENT, series, 0 if series == REGISTER else series - 1, text)
    return Run(0, 1, [request], bytes([EntryKind.SESSION]))


def change(*changes):
    payload = ConfigChange(tuple(Change(*each) for each in changes)).encode()
    return Run(0, 1, [payload], bytes([EntryKind.CONFIG_CHANGE]))


def first_entry(members):
    return initial_log(Membership(voters=members))[1]


LOG = [
    first_entry(OLD),
    Run(0, 1, [b""], bytes([EntryKind.NO_OP])),
    command(3),
    command(4),
    compressed(),
    session(REGISTER),
    session(1, b"pay"),
    change((ChangeType.ADD_OBSERVER, 9, "10.0.0.9:7000")),
    change((ChangeType.REMOVE, 3)),
    command(10),
    command(11),
    command(12),
]
"""Entries 1 to 12 of terms 1, and 2 from 10 on."""
STATE = [b"3", b"4", LONG, b"pay", b"10", b"11", b"12"]
MEMBERS_AFTER = Membership(
    voters={1: A, 2: B},
    observers={9},
    removed={3},
    change_id=9,
    addresses={1: A, 2: B, 9: "10.0.0.9:7000"},
)


class Directory:
    """The data directory of a host, filled with what its replicas would have left."""

    def __init__(self, path, *, address=A, deployment="default"):
        self.path, self.address, self.deployment = path, address, deployment

    def fill(
        self,
        log=LOG,
        *,
        replica=1,
        commit=9,
        snapshot=0,
        compacted=0,
        machine="Book",
        shard=1,
        term=3,
        joins=False,
        handlers=None,
    ):
        with DataDir.open(self.path, deployment_id=self.deployment, address=self.address) as directory:
            store = log_on_disk(directory.part("log"), directory.host_id, create=directory.new)
            directory.complete()
            members = Membership() if joins else Membership(OLD)
            record = Bootstrap(members, state_machine=machine, join=joins)
            at_once(lambda done: store.begin(shard, replica, record, None, done))
            runs = [run.placed(index, 1 if index < 10 else 2) for index, run in enumerate(log, 1)]
            hard = HardState(term, 2, commit)
            at_once(lambda done: store.save(AppendRequest(shard, replica, hard, runs, done=done)))
            if snapshot:
                self._take(store, directory, shard, replica, snapshot, log, handlers)
            if compacted:
                store.open(shard, replica)
                store.compact(shard, replica, compacted)
            store.close()
        return self

    def open_log(self, shard, replica):
        """Its hard state, its last index, and the term of that."""
        with DataDir.existing(self.path) as directory:
            store = log_on_disk(directory.part("log"), directory.host_id, create=False)
            log = store.open(shard, replica)
            found = log.hard_state, log.last_index, log.term(log.last_index)
            store.close()
        return found

    def vote(self, shard, replica, hard):
        """As if it had run on, up to this hard state."""
        with DataDir.existing(self.path) as directory:
            store = log_on_disk(directory.part("log"), directory.host_id, create=False)
            at_once(lambda done: store.save(AppendRequest(shard, replica, hard, done=done)))
            store.close()

    def _take(self, store, directory, shard, replica, index, log, handlers):
        """Have the snapshot made by an export of a log that ends there, as a host would have made it."""
        aside = self.path.with_name(f"{self.path.name}-{index}")
        whole = Directory(aside).fill(log[:index], shard=shard, replica=replica, commit=index)
        export(whole.path, shard, Book, aside.with_suffix(".file"), handlers=handlers)
        with (
            read_file(aside.with_suffix(".file")) as source,
            SnapshotFiles(directory.part("snapshots")).of(shard, replica).create() as sink,
        ):
            shutil.copyfileobj(source, sink)
            facts = {name: fact for name, fact in source.facts.items() if name != "export"}
            taken = sink.finish(replace(source.snapshot, payload=b"", size=0), facts)
        at_once(lambda done: store.record_snapshot(shard, replica, taken, done))

    def picture(self):
        """All that is in it, bytes and times."""
        return {
            path.relative_to(self.path): (
                path.read_bytes() if path.is_file() else b"",
                path.stat().st_mtime_ns,
            )
            for path in self.path.rglob("*")
        }

    def snapshot_files(self):
        return sorted((self.path / "snapshots").rglob("*.*"))

    def harm_snapshot(self):
        (file,) = self.snapshot_files()
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    def harm_log(self, needle):
        for file in sorted((self.path / "log").glob("*.segment")):
            content = file.read_bytes()
            if needle in content:
                file.write_bytes(content.replace(needle, bytes(len(needle))))
                return
        raise AssertionError(needle)


class Other(Ledger):
    pass


def bring_in(file, data_dir, **changes):
    arguments = {
        "shard_id": 1,
        "replica_id": 1,
        "members": NEW,
        "address": A,
        "deployment_id": "default",
        **changes,
    }
    return import_(file, data_dir, **arguments)


def started(path, machine=Book, *, address=A):
    """What a state machine holds that starts from a directory, found by exporting that."""
    made = machine()
    target = path.with_name(path.name + "-state")
    target.unlink(missing_ok=True)
    exported = export(path, 1, lambda: made, target)
    return made.commands, exported
