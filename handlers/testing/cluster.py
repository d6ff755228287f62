"""`drain` one replica, or run a scenario on a `Cluster` of them."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final

from drakkar.handlers.effects import Answer, Failure, Told
from drakkar.handlers.errors import ReplicaStopped
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import ConfigChange
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import Entry, EntryKind, changes
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Changed, Dropped, LogQueryResult, ReadReady, Ready
from drakkar.handlers.raft.state import Membership, Snapshot, State
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.testing.effects import SeenEffects, check_own
from drakkar.handlers.testing.extension_checks import check_extensions
from drakkar.handlers.testing.links import arrived
from drakkar.handlers.testing.plan import draw_plan
from drakkar.handlers.testing.storm import run_storm
from drakkar.handlers.testing.storm_parts import Parts

__all__ = ["Cluster", "Drained", "Node", "drain"]

_SNAPSHOT_REPORT_TICKS: Final = 10
"""Dragonboat's delay of the report, so that the receiver's own answer usually comes first."""


class Drained(list[Message]):
    """The messages that a replica sent. The attributes have everything else that it handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.committed: list[Entry] = []
        self.reads: list[ReadReady] = []
        self.dropped: list[Dropped] = []
        self.changes: list[Changed] = []
        self.log_query: LogQueryResult | None = None
        self.tells: list[Told] = []
        self.events: list[Any] = []
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []

    def take_effects(self, raft: Raft) -> None:
        """Take what handlers have asked for, in the middle of what is applied."""
        waiting = Ready()
        raft.effects.hand_out(waiting)
        self.note_effects(waiting)

    def note_effects(self, ready: Ready) -> None:
        """Add what handlers have asked for."""
        self.tells += ready.tells
        self.events += ready.events
        self.answers += ready.answers
        self.failures += ready.failures


def drain(raft: Raft) -> Drained:
    """Persist and apply at once everything that `raft` hands out, until there is nothing more; return its messages.

    Attributes of the result have the rest: `drain(raft).committed`, `.reads`, `.dropped`, `.changes`, `.log_query`, and what
    handlers asked for: `.tells`, `.events`, `.answers`, `.failures`. If
    the replica was started from a `MemoryLog`, that log is written too, so you can restart from it.

    Of a leader's snapshot the payload is taken for what extensions have saved, if the replica has any.
    """
    out = Drained()
    raft.effects.on_many = partial(out.take_effects, raft)
    try:
        _drain(raft, out)
    finally:
        raft.effects.on_many = None
    return out


def _drain(raft: Raft, out: Drained) -> None:
    while raft.has_ready:
        ready = raft.ready()
        if isinstance(raft.log.storage, MemoryLog):
            raft.log.storage.save(ready)
        out += ready.messages
        raft.persisted(ready)
        out += ready.messages_after_save
        if ready.snapshot is not None:
            _load_extensions(raft, ready.snapshot)
            raft.applied(ready.snapshot.index)
        if ready.committed:
            out.committed += ready.committed
            raft.applied(ready.committed.runs[-1].last)
        out.reads += ready.reads
        out.dropped += ready.dropped
        out.changes += ready.changes
        out.log_query = ready.log_query or out.log_query
        out.note_effects(ready)


def _saved(raft: Raft, index: int) -> bytes:
    """Return what the extensions save as of an index: no bytes if none saves anything."""
    if not any(hasattr(class_, "save") for class_ in raft.handlers.extensions):
        return b""
    applied = raft.log.applied
    assert index == applied, (
        f"the extensions have their state as of {applied}: take the snapshot there, as by `compact(replica)`"
    )
    saved: list[bytes | None] = []
    raft.save_extensions(index, saved.append)
    return saved[0] or b""


def _load_extensions(raft: Raft, snapshot: Snapshot) -> None:
    if raft.handlers.extensions:
        raft.load_extensions(b"" if snapshot.witness else snapshot.payload, snapshot.index)


class Node(SeenEffects):
    """One replica of a `Cluster`: its core, its disk, and what it has handed out.

    `applied` are the entries that its state machine has applied; `tells`, `events` and `answers` what its handlers have asked for.
    """

    def __init__(self, log: MemoryLog, make: Callable[[MemoryLog], Raft]) -> None:
        super().__init__()
        self.log = log
        self.make = make
        self.raft = self._start()
        self.up = True
        self.applied: list[Entry] = []
        self.reads: list[ReadReady] = []
        self.dropped: list[Dropped] = []
        self.changes: list[Changed] = []

    def _start(self) -> Raft:
        raft = self.make(self.log)
        _load_extensions(raft, self.log.snapshot)
        return raft

    def step(self, message: Message) -> Any:
        """Let the core answer a message, and check its extensions."""
        answer = self.raft.step(message)
        check_extensions(self.raft)
        return answer

    def tick(self) -> None:
        """Let a tick pass, and check the extensions."""
        self.raft.tick()
        check_extensions(self.raft)

    def drain(self) -> list[Message]:
        """Persist and apply what the core hands out, record it, and return the messages. Check the extensions."""
        out = drain(self.raft)
        self.applied += out.committed
        self.reads += out.reads
        self.dropped += out.dropped
        self.changes += out.changes
        self.note(out)
        check_extensions(self.raft)
        return out

    def restart(self) -> None:
        """Start again from the disk, with extensions that are made anew. The state machine and they replay the log."""
        self.raft = self._start()
        self.applied.clear()
        self.up = True


class Cluster:
    """A shard in memory: replicas 1, 2, 3 …, a network that you can break, and a clock that you advance.

    `deliver` delivers messages until the network is quiet. `elect`, `propose`, `tick` and similar methods deliver too,
    unless the cluster was made with `auto_deliver=False`. `faults(...)` lets the network lose, duplicate and reorder
    messages. `check` asserts basic invariants, and is called after each delivery; `Extension.check` after each step.

    What handlers ask their host to do is kept, and not done: see `nodes[replica].tells`, `.events` and `.answers`. The error of a
    handler is raised at once, also of one to which a timer has sent its message.

    Not thread-safe.
    """

    def __init__(
        self,
        members: int | Membership = 3,
        *,
        seed: int = 0,
        handlers: HandlerTable | None = None,
        logs: dict[int, MemoryLog] | None = None,
        auto_deliver: bool = True,
        **config: Any,
    ) -> None:
        """`members` is the number of voters, or a `Membership`. `config` are options of `RaftConfig` for all replicas.

        `logs` has logs to start from, by replica; the other replicas start empty. `seed` is the seed of all randomness.
        """
        self.random = Random(seed)
        self.handlers = handlers
        self.config = config
        self.auto_deliver = auto_deliver
        self.membership = members if isinstance(members, Membership) else Membership(range(1, members + 1))
        self.network: deque[Message] = deque()
        self.lost: list[Message] = []
        """Messages that the network did not deliver, newest last."""
        self.seen: list[Message] = []
        """All messages that were delivered, newest last."""
        self._cut: set[tuple[int, int]] = set()
        self._dropping: Counter[MessageType] = Counter()
        self._loss = self._duplication = self._reordering = 0.0
        self._leaders: dict[int, int] = {}
        self._committed: dict[int, tuple[int, bytes]] = {}
        self.nodes: dict[int, Node] = {}
        for replica in sorted(self.membership.everybody):
            self.add(replica, (logs or {}).get(replica))

    def add(self, replica: int, log: MemoryLog | None = None, **config: Any) -> Node:
        """Start another replica. Without a log it knows only the first membership, and a leader sends it the rest."""
        log = log or MemoryLog(membership=self.membership)
        options = {**self.config, **config}

        def make(log: MemoryLog) -> Raft:
            return Raft(
                RaftConfig(replica_id=replica, **options),
                log,
                handlers=self.handlers.copy() if self.handlers is not None else None,
                random=Random(self.random.random()),
            )

        self.nodes[replica] = Node(log, make)
        return self.nodes[replica]

    def __getitem__(self, replica: int) -> Raft:
        """Return the core of a replica."""
        return self.nodes[replica].raft

    @property
    def leader(self) -> Raft | None:
        """The running leader of the highest term, or None."""
        leaders = [node.raft for node in self.nodes.values() if node.up and node.raft.state is State.LEADER]
        return max(leaders, key=lambda raft: raft.term, default=None)

    def applied(self, replica: int, kind: EntryKind = EntryKind.COMMAND) -> list[bytes]:
        """Return the commands that a replica's state machine has applied, or the committed records of a kind, in order."""
        return [entry.payload for entry in self.nodes[replica].applied if entry.kind == kind]

    def terms(self, replica: int) -> list[int]:
        """Return the terms of the entries in a replica's log, such as `[1, 1, 2]`."""
        log = self[replica].log
        return [entry.term for entry in log.entries(log.first_index, log.last_index + 1)]

    # -- events -------------------------------------------------------------------------------------------------

    def step(self, replica: int, message: Message) -> None:
        """Pass a message to a replica, as its host would."""
        if self.nodes[replica].up:
            self.nodes[replica].step(message)
        self._settle()

    def tell(self, replica: int, message: Message) -> None:
        """Tell a replica a message of your own type, as `Replica.tell`. An error of its handler is raised."""
        check_own(message)
        self._running(replica).step(message)
        self._settle()

    def ask(self, replica: int, message: Message) -> Any:
        """Ask a replica a message of your own type, as `Replica.ask`; return the answer, or raise the error of its handler.

        Returns `LATER` if there is no answer when all messages are delivered; it appears in `nodes[replica].answers`. Raises
        `RequestDropped` if no handler takes the message, and `ReplicaStopped` if the replica is down.
        """
        node = self._running(replica)

        def settle() -> None:
            check_extensions(node.raft)
            self._settle()

        return node.ask(node.raft, message, settle)

    def _running(self, replica: int) -> Node:
        node = self.nodes[replica]
        if not node.up:
            raise ReplicaStopped(f"replica {replica} is down: restart it")
        return node

    def elect(self, replica: int) -> None:
        """Let a replica campaign now, after the leases of all replicas have expired."""
        for node in self.nodes.values():
            raft = node.raft
            raft.timers.election_elapsed = max(raft.timers.election_elapsed, raft.config.election_ticks)
            raft.timers.ticks = max(raft.timers.ticks, raft.timers.no_votes_before)
        self.step(replica, Message(MessageType.ELECTION, sender=replica))

    def propose(self, replica: int, *payloads: bytes, kind: EntryKind = EntryKind.COMMAND) -> None:
        """Propose commands at a replica, in one batch."""
        entries = tuple(Entry(kind=kind, payload=payload) for payload in payloads)
        self.step(replica, Message(MessageType.PROPOSE, sender=replica, entries=entries))

    def change(self, replica: int, change: ConfigChange) -> None:
        """Propose a membership change at a replica. Use `add` to start a replica that the change adds."""
        self.propose(replica, change.encode(), kind=EntryKind.CONFIG_CHANGE)

    def read(self, replica: int, context: int) -> None:
        """Request a linearizable read at a replica. Its index appears in `nodes[replica].reads`."""
        self.step(replica, Message(MessageType.READ_INDEX, hint=context))

    def transfer(self, replica: int, target: int) -> None:
        """Ask a replica to transfer the leadership to `target`."""
        self.step(replica, Message(MessageType.LEADER_TRANSFER, hint=target))

    def tick(self, count: int = 1, *replicas: int) -> None:
        """Let `count` ticks pass, for all replicas or for those given."""
        for _ in range(count):
            for replica in replicas or tuple(self.nodes):
                if self.nodes[replica].up:
                    self.nodes[replica].tick()
            self._settle()

    def tell_commits(self) -> None:
        """Let a millisecond pass: with `commit_notices`, leaders tell of commits that no append has told of."""
        for node in self.nodes.values():
            if node.up and node.raft.commit_untold:
                node.raft.step(Message(MessageType.COMMIT_DUE, sender=node.raft.id))
        self._settle()

    def fill_disk(self, replica: int) -> None:
        """Tell a replica that its disk has no room for entries."""
        self.step(replica, Message(MessageType.DISK_FULL, sender=replica))

    def free_disk(self, replica: int) -> None:
        """Tell a replica that its disk has room again."""
        self.step(replica, Message(MessageType.DISK_ROOM, sender=replica))

    def report_gone(self, replica: int, *told: int) -> None:
        """Tell others that the process of a replica is gone, as their hosts would: those given, or all that run."""
        for other in told or tuple(self.nodes):
            if other != replica and self.nodes[other].up:
                self.nodes[other].raft.step(Message(MessageType.LEADER_GONE, sender=replica))
        self._settle()

    def compact(self, replica: int, index: int = 0) -> None:
        """Let a replica take a snapshot at `index` and delete its log up to there; 0: at the last applied entry.

        Raises `AssertionError` if a later membership change is applied already, since the snapshot needs the membership
        at `index`; and if later entries are, and an extension has a part in snapshots, which it can only save as it is now.
        """
        raft, log = self[replica], self.nodes[replica].log
        index = index or raft.log.applied
        later = [change.index for change in changes(raft.log.runs(index + 1, raft.log.applied + 1))]
        assert not later, (
            f"membership changes are applied at {later}: take the snapshot at {later[-1]} or later"
        )
        snapshot = Snapshot(index, raft.log.term(index), raft.membership, _saved(raft, index))
        raft.snapshot_taken(snapshot)
        raft.compact(index)
        log.compact(index)
        log.snapshot = snapshot
        log.membership = snapshot.membership

    def crash(self, replica: int) -> None:
        """Stop a replica. It loses what is not durable and the state of its extensions, and messages to it are lost."""
        self.nodes[replica].up = False

    def restart(self, replica: int) -> None:
        """Start a replica again from its disk."""
        self.nodes[replica].restart()

    # -- the network --------------------------------------------------------------------------------------------

    def cut(self, one: int, other: int) -> None:
        """Cut the link between two replicas, in both directions."""
        self._cut |= {(one, other), (other, one)}

    def cut_one_way(self, sender: int, receiver: int) -> None:
        """Cut the link from `sender` to `receiver`."""
        self._cut.add((sender, receiver))

    def isolate(self, *replicas: int) -> None:
        """Cut the links between these replicas and all others."""
        for one in replicas:
            for other in self.nodes:
                if other not in replicas:
                    self.cut(one, other)

    def heal(self) -> None:
        """Repair all links. No message is lost, duplicated or reordered any more."""
        self._cut.clear()
        self._dropping.clear()
        self.faults()

    def drop_next(self, type_: MessageType, count: int = 1) -> None:
        """Lose the next `count` messages of a type."""
        self._dropping[type_] += count

    def faults(self, *, loss: float = 0.0, duplication: float = 0.0, reordering: float = 0.0) -> None:
        """Set the probabilities that a message is lost, is delivered twice, or is overtaken by others."""
        self._loss, self._duplication, self._reordering = loss, duplication, reordering

    def deliver(self, limit: int = 100_000) -> int:
        """Deliver until the network is quiet; return how many messages arrived.

        Raises `AssertionError` after `limit` messages, since two replicas may answer each other for ever.
        """
        arrived = 0
        self._collect()
        while self.network:
            arrived += self.deliver_one()
            assert arrived <= limit, (
                f"the network is not quiet after {limit} messages; next: {self.network[0]}"
            )
        self.check()
        return arrived

    def deliver_one(self) -> bool:
        """Deliver or lose the next message; return whether it arrived."""
        if self._reordering and self.random.random() < self._reordering:
            self.network.rotate(-self.random.randrange(len(self.network)))
        message = self.network.popleft()
        if self._duplication and self.random.random() < self._duplication:
            self.network.append(replace(message))
        node = self.nodes.get(message.to)
        broken = (message.sender, message.to) in self._cut or (
            self._loss and self.random.random() < self._loss
        )
        if self._dropping[message.type] > 0:
            self._dropping[message.type] -= 1
            broken = True
        if node is None or not node.up or broken:
            self.lost.append(message)
            self._report(message, reject=True)
            return False
        self.seen.append(message)
        node.step(arrived(message))
        self._report(message, reject=False)
        self.network.extend(node.drain())
        return True

    def _report(self, message: Message, *, reject: bool) -> None:
        """Report the outcome of a snapshot, as a transport does: later than the receiver itself answers."""
        sender = self.nodes.get(message.sender)
        if message.type is MessageType.INSTALL_SNAPSHOT and sender is not None and sender.up:
            delay = _SNAPSHOT_REPORT_TICKS
            sender.raft.step(
                Message(MessageType.SNAPSHOT_STATUS, sender=message.to, reject=reject, hint=delay)
            )

    def _collect(self) -> None:
        for node in self.nodes.values():
            if node.up:
                self.network.extend(node.drain())

    def _settle(self) -> None:
        if self.auto_deliver:
            self.deliver()
        else:
            self._collect()

    # -- random faults ------------------------------------------------------------------------------------------

    def storm(
        self,
        seeds: Iterable[int] = range(100),
        *,
        traffic: Callable[[Raft, Random], None] | None = None,
        check: Callable[[dict[int, Raft]], None] | None = None,
        settled: Callable[[dict[int, Raft]], None] | None = None,
        effects: Callable[[Raft, Ready], None] | None = None,
        user: Callable[[], Any] | None = None,
        membership: bool = True,
    ) -> Counter[str]:
        """Run shards like this one under random faults, a schedule for each seed, and check them after every step.

        Messages are lost, duplicated, delayed and reordered. Links and hosts fail and recover. Disks are full for a
        while. Disks, state machines and clocks run slowly. Leadership is transferred, and snapshots are taken. Members
        change unless `membership` is False. The shards have this cluster's size, handlers and options; each seed draws the
        options that it leaves open.

        `traffic(raft, random)` is called at random times with the core of a replica, to step or send your messages.
        `check(rafts)` is called after every step with the running cores by replica id, and `settled(rafts)` once, with those of
        the members, when the faults are over and the shard has converged. `effects(raft, ready)` is called with what a replica
        has handed out for other actors, subscribers and who asked: `ready.tells`, `.events` and `.answers`. Each raises
        `AssertionError` if your invariant is broken, as `Extension.check` does. Where they are to remember what has happened in a
        schedule, they are the methods of a class: each run makes a `user` of its own.

        Returns how often each rare event happened.

        Raises `Violation` for the first schedule that breaks one of Raft's invariants or yours. Its text has the
        smallest schedule found that still fails, and what happened. This cluster itself does not change.
        """
        parts = Parts(traffic, check, settled, effects, user)
        happened: Counter[str] = Counter()
        for seed in seeds:
            plan = draw_plan(
                seed,
                voters=len(self.membership.voters),
                observers=len(self.membership.observers),
                witnesses=len(self.membership.witnesses),
                config=self.config,
                membership=membership,
                homes=False,
            )
            happened += run_storm(plan, self.handlers, parts)
        return happened

    # -- invariants ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert election safety, state machine safety and the order of the indexes (thesis figure 3.2)."""
        for replica, node in self.nodes.items():
            raft = node.raft
            if raft.state is State.LEADER:
                first = self._leaders.setdefault(raft.term, replica)
                assert first == replica, f"term {raft.term} has two leaders: {first} and {replica}"
            assert raft.log.applied <= raft.log.committed <= raft.log.last_index, (
                f"applied, committed and last index are not in order: {raft!r}"
            )
            self._check_applied(replica, node.applied)

    def _check_applied(self, replica: int, applied: Iterable[Entry]) -> None:
        for entry in applied:
            first = self._committed.setdefault(entry.index, (entry.term, entry.payload))
            ours = (entry.term, entry.payload)
            assert first == ours or entry.kind == EntryKind.METADATA, (
                f"replica {replica} applied {ours} at {entry.index}, but another replica applied {first} there"
            )
