"""Records under faults: extensions that take all that is delivered, clients that write records, tables that lack them."""

from dataclasses import replace
from hashlib import sha256
from random import Random
from zlib import crc32

from drakkar.handlers import (
    EntryKind,
    Extension,
    Message,
    MessageType,
    State,
    delivers,
    handles,
    raft_handlers,
)
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.plan import TICK, Event
from drakkar.handlers.testing.record_checks import LOGGED
from drakkar.handlers.testing.shard import PROBE
from drakkar.handlers.testing.simulation import STUCK, Simulation

RECORD = EntryKind.define("simulation.record", 160)
WRITE = MessageType.define("simulation.write", 1960)
BEAT = MessageType.define("simulation.beat", 1961, wakes=False)

BEATS = 3
"""Ticks between two beats."""
OBJECTION = "it is not wanted"
MAX_AWAY = 40
"""Ticks after which a replica at most starts again that has stopped at a record."""


class Journal(Extension):
    """Takes all commands: its state is a digest of them. Leaders veto some. All replicas have it."""

    def __init__(self, node):
        self.node = node
        self.digest = b""
        self.ticks = self.beats = self.unwanted = 0
        node.every(BEATS, Message(BEAT))

    @handles(MessageType.LOCAL_TICK, wrap=True)
    def tick(self, message, inner):
        self.ticks += 1
        inner(message)

    @handles(BEAT)
    def beat(self, message):
        self.beats += 1

    @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
    def object(self, message, inner):
        rest = self.node.veto(message, OBJECTION, only=is_unwanted)
        if rest is not None:
            inner(rest)

    @delivers(EntryKind.COMMAND, EntryKind.SESSION, EntryKind.ENCODED)
    def take(self, entry):
        self.unwanted += is_unwanted(entry)
        self.digest = sha256(self.digest + bytes([entry.kind]) + entry.payload).digest()

    def save(self):
        return self.digest

    def load(self, data):
        self.digest = data

    def check(self):
        assert not self.unwanted, "a command was applied that its leader had vetoed"
        assert 0 <= self.ticks - BEATS * self.beats <= BEATS, f"{self.beats} beats in {self.ticks} ticks"


def is_unwanted(entry):
    """Whether leaders veto an entry: one in eight of the clients' commands and records."""
    return entry.kind in (EntryKind.COMMAND, RECORD) and unwanted(entry.payload)


def unwanted(payload):
    return payload != PROBE and not crc32(payload) % 8


class Ledger(Extension):
    """Takes records. Who asks to have one written is answered when it is delivered here."""

    def __init__(self, node):
        self.node = node
        self.records = []
        self.delivered = {}
        """The tick at which each record was delivered here."""
        self.waiting = {}

    @handles(WRITE)
    def write(self, message):
        why = self.node.propose(RECORD, message.payload)
        self.waiting[message.payload] = message
        return why or None

    @delivers(RECORD)
    def take(self, entry):
        self.records.append(entry.payload)
        self.delivered[entry.payload] = self.node.timers.ticks
        self.node.publish_event(entry.index)
        asked = self.waiting.pop(entry.payload, None)
        if asked is not None:
            self.node.reply(asked, entry.index)

    def save(self):
        return b",".join(self.records)

    def load(self, data):
        self.records = data.split(b",") if data else []

    def check(self):
        assert len(set(self.records)) == len(self.records), f"a record came twice: {self.records}"


def with_records(plan):
    """Return the plan with clients that write records, in every third plan; in some, tables lack them for a while."""
    random = Random(f"records {plan.seed}")
    if random.randrange(3):
        return plan
    events = [
        Event(time_in(random, plan), "write", (any_replica(random, plan), random.choice((0.3, 1.0, 3.0))))
        for _ in range(plan.ticks // random.choice((1, 2, 5)))
    ]
    events += [
        Event(time_in(random, plan), "together", (any_replica(random, plan), random.choice((2, 5)), 1.0))
        for _ in range(plan.ticks // random.choice((5, 10, 20)))
    ]
    # Where replicas have no homes they do not introduce themselves, and a leader takes for granted that all have its table.
    if plan.homes and not plan.loses_quorum and random.random() < 0.5:
        events += old_tables(random, plan)
    return replace(plan, events=tuple(sorted((*plan.events, *events), key=lambda event: event.time)))


def old_tables(random, plan):
    """Some replicas begin with an older table and soon get the newer one; later, some get the older one again by mistake."""
    replicas = range(1, plan.voters + plan.observers + plan.witnesses + 1)
    soon, end = plan.ticks * TICK // 3, plan.ticks * TICK
    for replica in random.sample(replicas, random.randint(1, len(replicas))):
        yield Event(random.randrange(soon), "newer", (replica, random.randrange(1, 10 * TICK)))
    for _ in range(random.choice((0, 1, 3))):
        time = random.randrange(soon, end)
        yield Event(time, "older", (random.choice(replicas), random.randrange(1, 10 * TICK)))


def time_in(random, plan):
    return random.randrange(plan.ticks * TICK)


def any_replica(random, plan):
    """Return a random replica; 0 stands for the leader at the time of the event."""
    return random.randrange(plan.voters + plan.observers + plan.witnesses + 1)


class RecordSimulation(Simulation):
    """A simulation whose hosts have extensions, if the plan has records."""

    def __init__(self, plan, make_host):
        self._records = any(event.kind == "write" for event in plan.events)
        self._begin_older = {event.args[0] for event in plan.events if event.kind == "newer"}
        self._tables = None
        self._downgraded = set()
        self._away = Random(f"tables {plan.seed}")
        self._written = {}
        """What became of each record: "done", "refused" or "unknown"; empty while its client waits."""
        super().__init__(plan, lambda *args: self._equipped(make_host(*args)))

    def _equipped(self, host):
        if self._records:
            self._tables = self._tables or tables_of(host.handlers)
            host.handlers = self._tables["older" if host.id in self._begin_older else "newer"]
        return host

    def write(self, replica, seconds):
        """A client asks a replica to have a record written; 0 is the leader."""
        host = self._host(replica)
        if host is None or not self.is_awake(host):
            return
        record = b"%d" % len(self._written)
        self._written[record] = ""
        life = host.life

        def answer(outcome, value):
            if outcome == "unknown" and host.life == life:
                self._check_unanswered(host, record)
            refused = outcome == "done" and isinstance(value, str)
            self._written[record] = "refused" if refused else outcome
            self.trace.append((self.now, "?", f"record {record}: {outcome} {value}"))
            self.invariants.happened[f"the writer of a record had the answer {self._written[record]}"] += 1

        host.submit("ask", Message(WRITE, payload=record), seconds, answer)

    def _check_unanswered(self, host, record):
        """It was not delivered at the replica that was asked, or only now."""
        raft = host.raft
        if not self._records or raft.handlers.extensions[-1] is not Ledger:
            return
        delivered = raft.extension(Ledger).delivered.get(record, raft.timers.ticks)
        if delivered < raft.timers.ticks - 1:
            self._found("V11 an ask is answered when its handler replies", f"{raft!r} delivered {record}")

    def check_refusal(self, content, why):
        """A veto falls on single commands, whatever else travelled in the same message."""
        if OBJECTION in str(why) and not (isinstance(content, bytes) and unwanted(content)):
            self._found("V11 a veto falls on single proposals", f"{content} was refused: {why}")

    def _found(self, check, what):
        """Raise a violation outside the callback of an answer, which would swallow it."""
        self.after(0, fail, Violation(check, what))

    # -- tables ---------------------------------------------------------------------------------------------------

    def newer(self, replica, time):
        """Stop a replica, and start it again with the table that takes records."""
        self._exchange(self.hosts[replica], "newer", time)

    def older(self, replica, time):
        """Stop a replica, and start it again with a table that does not take them, though it has said that it does."""
        host = self.hosts[replica]
        if self._records and host.handlers is self._tables["newer"]:
            self._downgraded.add(replica)
            self._exchange(host, "older", time)

    def _exchange(self, host, table, time):
        if self._records and not self.over and not host.ended:
            host.handlers = self._tables[table]
            self._stop(host, 1.0)
            self.after(time, self._restart, host, host.life)

    def lacks(self, host, missing):
        """A replica stops at a record, or at what a snapshot has of some, only if it had said before that it takes them.

        It starts again with a table that does.
        """
        if host.id not in self._downgraded:
            raise Violation(LOGGED, f"{host.raft!r} has never said that it takes records: {missing}")
        self.note("#", f"{host.id} stops: {missing}")
        self.invariants.happened["a replica stopped at what it could not take"] += 1
        self._stop(host, 1.0)
        host.handlers = self._tables["newer"]
        self.after(self._away.randrange(1, MAX_AWAY * TICK), self._restart, host, host.life)

    def _settle(self):
        for host in self.hosts.values():
            if self._records and host.handlers is self._tables["older"]:
                self._stop(host, 1.0)
                host.handlers = self._tables["newer"]
        super()._settle()

    # -- the end ----------------------------------------------------------------------------------------------------

    def run(self):
        super().run()
        recovered = self.lost_at is None and not self.invariants.happened[STUCK]
        if self._records and recovered:
            self._check_written()

    def _check_written(self):
        """What was answered is kept, and what was refused is not; a witness keeps nothing."""
        for host in self._members():
            records = set(host.raft.extension(Ledger).records)
            if host.raft.base_state is State.WITNESS:
                if records:
                    raise Violation("INV63 a witness is delivered nothing", f"{host.raft!r} has {records}")
                continue
            for record, outcome in self._written.items():
                if outcome == "done" and record not in records:
                    raise Violation("V7 a record that was answered is kept", f"{host.raft!r} has no {record}")
                if outcome == "refused" and record in records:
                    raise Violation("INV22 a proposal has one outcome", f"{host.raft!r} has {record}")


def tables_of(handlers):
    """Return both tables by name: one that takes commands alone, and one that takes records too."""
    older = (handlers or raft_handlers()).copy()
    older.use(Journal)
    newer = older.copy()
    newer.use(Ledger)
    return {"older": older, "newer": newer}


def fail(violation):
    raise violation
