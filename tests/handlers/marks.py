"""An extension for tests of the tools: durable marks, counted commands, a timer, effects, asks, a veto, an invariant."""

from drakkar.handlers import (
    LATER,
    EntryKind,
    Extension,
    Message,
    MessageType,
    State,
    delivers,
    handles,
    raft_handlers,
)

MARK = EntryKind.define("marks.mark", 150)
WRITE = MessageType.define("marks.write", 1950)
SEEN = MessageType.define("marks.seen", 1951)
BEAT = MessageType.define("marks.beat", 1952, wakes=False)
BREAK = MessageType.define("marks.break", 1953)

BEATS = 2
"""Ticks between two beats."""


class Marks(Extension):
    """Takes all that is delivered. A write is answered when its mark is."""

    def __init__(self, node):
        self.node = node
        self.marks, self.commands, self.beats = [], 0, 0
        self.waiting = {}
        self.broken = ""
        node.every(BEATS, Message(BEAT))

    @handles(WRITE)
    def write(self, message):
        why = self.node.propose(MARK, message.payload)
        self.waiting[message.payload] = message
        return why or None

    @handles(SEEN)
    def seen(self, message):
        return {"marks": list(self.marks), "commands": self.commands}

    @handles(BEAT)
    def beat(self, message):
        self.beats += 1
        if self.broken == "beat":
            raise LookupError("no beat")

    @handles(BREAK, State.FOLLOWER, State.LEADER, elsewhere="only these break")
    def break_(self, message):
        self.broken = message.payload
        return LATER

    @handles(MessageType.PROPOSE, wrap=True)
    def object(self, message, inner):
        rest = self.node.veto(message, "it is forbidden", only=lambda entry: entry.payload == b"forbidden")
        if rest is not None:
            inner(rest)

    @delivers(MARK)
    def take(self, entry):
        self.marks.append(entry.payload)
        self.node.publish_event(("marked", entry.index))
        self.node.tell("an actor", entry.payload)
        asked = self.waiting.pop(entry.payload, None)
        if asked is not None:
            self.node.reply(asked, entry.index)

    @delivers(EntryKind.COMMAND)
    def count(self, entry):
        self.commands += 1

    def save(self):
        return b"%d;" % self.commands + b",".join(self.marks)

    def load(self, data):
        commands, _, marks = data.partition(b";")
        self.commands, self.marks = int(commands), marks.split(b",") if marks else []

    def check(self):
        assert len(set(self.marks)) == len(self.marks), f"a mark came twice: {self.marks}"
        assert not self.broken or self.broken == "beat", f"broken by {self.broken}"


def table_with_marks():
    table = raft_handlers()
    table.use(Marks)
    return table
