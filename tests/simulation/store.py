"""The state machine that simulated clients talk to, and how they ask."""

import io
import json

from drakkar.actors import ConcurrentStateMachine, DiskStateMachine, StateMachine
from drakkar.handlers.testing.shard import PROBE


class Registers(StateMachine):
    """Registers by name. A command is [key, kind, argument]; what it answers is what `Register` says it may."""

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
    """The same on the host's loop."""

    blocks = False


class Concurrent(Registers, ConcurrentStateMachine):
    """The same, and it is written as it was while it goes on."""

    save = ConcurrentStateMachine.save

    def capture(self):
        fixed = json.dumps(self.values).encode()
        return lambda sink: sink.write(fixed)


class OnDisk(Registers, DiskStateMachine):
    """The same on a disk of its own: a mapping that outlives it, and holds the state of its last sync."""

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
                raise ValueError(f"entry {index} was given again, behind {self.index}")
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
    """The same for a host made of the core alone, which keeps its snapshots in memory."""

    def save(self):
        sink = io.BytesIO()
        super().save(sink)
        return sink.getvalue()

    def load(self, state):
        super().load(io.BytesIO(state))


def command(key, kind, argument):
    return json.dumps([key, kind, argument]).encode()
