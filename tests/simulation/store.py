"""The state machines that simulated clients use, and their commands."""

import io
import json

from drakkar.actors import ConcurrentStateMachine, DiskStateMachine, StateMachine
from drakkar.handlers.testing.shard import PROBE


class Registers(StateMachine):
    """Registers by name. A command is [key, kind, argument]; its result is as the model `Register` says."""

    def __init__(self):
        self.values = {}

    def apply(self, command):
        if command == PROBE:
            return None
        key, kind, argument = json.loads(command)
        old = self.values.get(key)
        if kind == "put":
            self.values[key] = argument
            return old
        if kind == "add":
            self.values[key] = (old or "") + argument
            return self.values[key]
        expected, new = argument
        if old == expected:
            self.values[key] = new
        return old == expected

    def query(self, query):
        return self.values.get(query)

    def save(self, sink):
        sink.write(json.dumps(self.values).encode())

    def load(self, source):
        self.values = json.loads(source.read())


class OnLoop(Registers):
    """Registers whose commands are applied on the host's loop."""

    blocks = False


class Concurrent(Registers, ConcurrentStateMachine):
    """Registers whose snapshot is written while commands are applied."""

    save = ConcurrentStateMachine.save

    def capture(self):
        fixed = json.dumps(self.values).encode()
        return lambda sink: sink.write(fixed)


class OnDisk(Registers, DiskStateMachine):
    """Registers on a disk of their own: a mapping that survives a crash and holds the state of the last sync."""

    def __init__(self, disk):
        super().__init__()
        self.disk = disk
        self.index = 0

    def open(self):
        self.index, state = self.disk.get("state", (0, "{}"))
        self.values = json.loads(state)
        return self.index

    def apply_entries(self, entries):
        results = []
        for index, command in entries:
            if index <= self.index:
                raise ValueError(f"entry {index} is applied again, after {self.index}")
            self.index = index
            results.append(self.apply(command))
        return results

    def sync(self):
        self.disk["state"] = (self.index, json.dumps(self.values))

    def capture(self):
        fixed = json.dumps([self.index, self.values]).encode()
        return lambda sink: sink.write(fixed)

    def load(self, source):
        self.index, self.values = json.loads(source.read())
        self.sync()


class InBytes(Registers):
    """Registers for a `CoreHost`, which keeps its snapshots in memory."""

    def save(self):
        sink = io.BytesIO()
        super().save(sink)
        return sink.getvalue()

    def load(self, state):
        super().load(io.BytesIO(state))


def command(key, kind, argument):
    """Encode a command."""
    return json.dumps([key, kind, argument]).encode()
