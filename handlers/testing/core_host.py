"""A simulated host around the core alone: it does what `Ready` says, with a simulated disk and state machine."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any, Protocol

from drakkar.handlers.cells import EMPTY
from drakkar.handlers.errors import MissingExtension, RequestDropped
from drakkar.handlers.extension import LATER
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import initial_log
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, Run
from drakkar.handlers.raft.lives import Life
from drakkar.handlers.raft.membership import is_dispensable
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Dropped, ReadReady, Ready
from drakkar.handlers.raft.room_watch import RoomWatch
from drakkar.handlers.raft.state import HardState, Snapshot, State
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.testing.answers import Answer
from drakkar.handlers.testing.plan import UNITS_PER_SECOND
from drakkar.handlers.testing.simulated_host import Environment, NoticeTimer, SimulatedHost

__all__ = ["CommandList", "CoreHost", "Machine"]


class Machine(Protocol):
    """A state machine of a simulated host."""

    def apply(self, command: bytes) -> Any:
        """Apply a command and return its result."""

    def query(self, query: Any) -> Any:
        """Return the answer to a query."""

    def save(self) -> bytes:
        """Return the whole state."""

    def load(self, state: bytes) -> None:
        """Replace the state by a saved one."""


class CommandList:
    """A state machine that keeps all commands. The result of a command or query is the number of commands."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply(self, command: bytes) -> int:
        """Add a command; return how many there are now."""
        self.commands.append(command)
        return len(self.commands)

    def query(self, _query: Any) -> int:
        """Return how many commands there are."""
        return len(self.commands)

    def save(self) -> bytes:
        """Return all commands in hexadecimal, one per line."""
        return "\n".join(command.hex() for command in self.commands).encode()

    def load(self, state: bytes) -> None:
        """Replace the commands by saved ones."""
        self.commands = [bytes.fromhex(line) for line in state.decode().splitlines()]


class CoreHost(SimulatedHost):
    """A host that writes, sends and applies what its core hands out, in the order that `Ready` requires."""

    def __init__(
        self,
        simulation: Environment,
        replica: int,
        role: State | None = None,
        *,
        config: RaftConfig | None = None,
        handlers: HandlerTable | None = None,
        machine: Callable[[], Machine] = CommandList,
        effects: Callable[[Raft, Ready], None] | None = None,
    ) -> None:
        """`effects` is called with each `Ready` that has something for other actors, subscribers or who asked."""
        super().__init__(simulation, replica)
        self.config = config or config_of(simulation, replica, role)
        self.handlers = handlers
        self._effects = effects
        self._make_machine = machine
        self.machine = machine()
        self._joins = role is not None
        self.empty_disk()
        self._unsaved: deque[Ready] = deque()
        self._to_apply: deque[Snapshot | list[Run]] = deque()
        self._applying = False
        self._state_due: HardState | None = None
        self._snapshot_due = 0
        self._origin = self._number = 0
        self._waiting: dict[int, Answer] = {}
        self._reads: dict[int, tuple[Any, Answer, int | None]] = {}
        self._asked: dict[int, Message] = {}
        """What handlers have taken and not answered yet, by the number of the request."""
        self._successors: dict[int, tuple[int, int]] = {}
        """The target of each open transfer, by the number of the request, and the term in which it was requested."""

    @property
    def storage(self) -> MemoryLog:
        """The log as it is on the simulated disk."""
        return self.log

    def empty_disk(self) -> None:
        """See `SimulatedHost.empty_disk`."""
        lives = self.first_lives(joins=self._joins)
        if self._joins:
            self.log = MemoryLog(lives=lives)
        else:
            hard_state, run = initial_log(self.simulation.first_members)
            self.log = MemoryLog(Entries([run]), hard_state, self.simulation.first_members, lives=lives)

    def copy_disk(self) -> Callable[[], None]:
        """See `SimulatedHost.copy_disk`."""
        copied = self.log.copy()

        def put_back() -> None:
            self.log = copied

        return put_back

    # -- start and stop -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start from what is durable. The state machine starts with the newest snapshot."""
        simulation = self.simulation
        self.raft = Raft(
            self.config,
            self.slow_reads(),
            handlers=self.handlers.copy() if self.handlers is not None else None,
            random=Random(simulation.random.random()),
            memory=self.log_memory(),
            lanes=self.lanes(),
            home=self.directory.home,
        )
        self.raft.effects.on_many = self._take_effects
        self._room = RoomWatch(self.raft, self.disk.room)
        self._notices = NoticeTimer(simulation, self, self._tell_of_commits)
        self._origin = simulation.random.getrandbits(62) | 1
        self._unsaved.clear()
        self._to_apply.clear()
        self._applying = False
        self._state_due = None
        self._snapshot_due = 0
        self.machine = self._make_machine()
        if self.log.snapshot:
            self._load(self.log.snapshot)

    def _load(self, snapshot: Snapshot) -> bool:
        """Load a snapshot. False: the replica stops, since it has what an extension must take that there is not."""
        extensions = b""
        if not snapshot.witness:
            extensions, state = _parts(snapshot.payload)
            self.machine.load(state)
        try:
            self.raft.load_extensions(extensions, snapshot.index)
        except MissingExtension as missing:
            # Its start is not over yet, perhaps.
            self.simulation.later(self, 0, self.simulation.lacks, self, missing)
            return False
        return True

    def stop(self) -> None:
        """Crash. Open requests are answered with "unknown"."""
        waiting = [*self._waiting.values(), *(answer for _, answer, _ in self._reads.values())]
        self._waiting.clear()
        self._reads.clear()
        self._asked.clear()
        self._successors.clear()
        for answer in waiting:
            answer("unknown", "the host crashed")

    def state(self) -> bytes | None:
        """Return the state machine's state as saved in a snapshot; None for a witness."""
        return None if self.raft.base_state is State.WITNESS else self.machine.save()

    def leftovers(self) -> Iterable[str]:
        """Name the queues that are not empty."""
        for name, held in (("unsaved", self._unsaved), ("to apply", self._to_apply)):
            if held:
                yield f"{name} {len(held)}"

    # -- input ------------------------------------------------------------------------------------------------------

    def receive(self, messages: list[Message], life: Life | None = None) -> None:
        """Step messages, and do what the core hands out. See `SimulatedHost.receive`."""
        for message in messages:
            if message.type is MessageType.LOCAL_TICK:
                self._room.tick()
                self.raft.tick()
            else:
                self._room.judge(message.entries)
                self.raft.step(message, life)
            life = None
        self._hand_out()
        if self.up and is_dispensable(self.raft):
            self.simulation.end_removed(self)

    def submit(self, kind: str, content: Any, seconds: float, answer: Answer) -> None:
        """See `SimulatedHost.submit`. The answer is "unknown" if the host crashes or after `seconds`."""
        if self.knows_its_removal:
            answer("refused", "this replica was removed")
            return
        self._number += 1
        number = self._number
        self.simulation.after(round(seconds * UNITS_PER_SECOND), self._expire, number)
        if kind == "ask":
            self._waiting[number] = answer
            self._ask(number, content)
            self.receive([])
        elif kind == "read":
            self._reads[number] = (content, answer, None)
            read = Message(MessageType.READ_INDEX, sender=self.id, hint=number, hint_high=self._origin)
            self.receive([read])
        else:
            self._waiting[number] = answer
            what = EntryKind.CONFIG_CHANGE if kind == "change" else EntryKind.COMMAND
            entry = Entry(kind=what, payload=content, origin=self._origin, key=number)
            self.receive([Message(MessageType.PROPOSE, sender=self.id, entries=(entry,))])
        self.simulation.turned(self)

    def _ask(self, number: int, message: Message) -> None:
        value = self.raft.step(message)
        if isinstance(value, EMPTY):
            self._answer(number, "refused", f"no handler takes {message.type}: {value.because}")
        elif value is LATER:
            self._asked[number] = message
        else:
            self._answer(number, "done", value)

    def _answered(self, message: Message, value: Any) -> None:
        for number, asked in list(self._asked.items()):
            if asked is message:
                self._answer(number, "done", value)

    def _expire(self, number: int) -> None:
        if number in self._reads:
            self._reads.pop(number)[1]("unknown", "no answer by the deadline")
        self._answer(number, "unknown", "no answer by the deadline")

    def _answer(self, number: int, outcome: str, value: Any) -> None:
        answer = self._waiting.pop(number, None)
        self._asked.pop(number, None)
        self._successors.pop(number, None)
        if answer is not None:
            answer(outcome, value)

    def transfer(self, target: int, seconds: float, answer: Answer) -> None:
        """See `SimulatedHost.transfer`. The answer is "done" when the target leads."""
        self._number += 1
        number = self._number
        self._waiting[number], self._successors[number] = answer, (target, self.raft.term)
        self.simulation.after(round(seconds * UNITS_PER_SECOND), self._expire, number)
        self.receive([Message(MessageType.LEADER_TRANSFER, sender=self.id, hint=target)])
        self.simulation.turned(self)

    def _answer_transfers(self) -> None:
        leader, term = self.raft.leader_id, self.raft.term
        for number, (target, asked_in) in list(self._successors.items()):
            if leader == target:
                self._answer(number, "done", leader)
            elif leader and asked_in < term:
                self._answer(number, "refused", f"replica {leader} was elected")

    def unsent(self) -> Iterable[Message]:
        """See `SimulatedHost.unsent`."""
        for ready in self._unsaved:
            yield from ready.messages_after_save

    def _recall(self, message: Message) -> None:
        """Drop what equals a message, wherever it still waits."""
        self.simulation.recall(message)
        for ready in self._unsaved:
            ready.messages_after_save = [held for held in ready.messages_after_save if held != message]

    # -- output -------------------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        raft = self.raft
        while self.up and raft.has_ready:
            try:
                ready = raft.ready()
            except MissingExtension as missing:
                self.simulation.lacks(self, missing)
                return
            self._execute(ready)
            for message in ready.recalled:
                self._recall(message)
            self._save(ready)
            self.simulation.send(self, ready.messages)
            if ready.snapshot is not None:
                self._to_apply.append(ready.snapshot)
            if ready.committed:
                self._to_apply.append(list(ready.committed.runs))
            for read in ready.reads:
                self._confirmed(read)
            for dropped in ready.dropped:
                self._drop(dropped)
            for change in ready.changes:
                if change.origin == self._origin:
                    outcome = "refused" if change.rejected else "done"
                    self._answer(change.key, outcome, change.rejected or change.membership)
        if not self.up:
            return
        self._room.saved()
        self._notices.set(untold=raft.commit_untold)
        self._apply_next()
        self._answer_reads()
        self._answer_transfers()
        if raft.snapshot_wanted:
            self.snapshot(self.config.compaction_overhead)

    def _take_effects(self) -> None:
        waiting = Ready()
        self.raft.effects.hand_out(waiting)
        self._execute(waiting)

    def _execute(self, ready: Ready) -> None:
        """Do what handlers have asked for."""
        for failure in ready.failures:
            raise failure.error
        for answer in ready.answers:
            self._answered(answer.message, answer.value)
        if self._effects is not None and (ready.tells or ready.events or ready.answers):
            self._effects(self.raft, ready)

    def _tell_of_commits(self) -> None:
        self.receive([Message(MessageType.COMMIT_DUE, sender=self.id)])

    def _save(self, ready: Ready) -> None:
        if not ready.must_save:
            self._state_due = ready.hard_state or self._state_due
            if self._unsaved:
                self._unsaved.append(ready)
            else:
                self._complete(ready)
            return
        # The commit index is written together with the entries. A replica that remembers a membership change must also
        # remember that the change before it is committed, or it could campaign with an older membership.
        state, self._state_due = ready.hard_state or self._state_due, None
        self._unsaved.append(ready)
        self.disk.take(ready.entries.size)
        self.disk.write(lambda: self._keep(ready, state), self._saved)

    def _keep(self, ready: Ready, state: HardState | None) -> None:
        self.log.save(
            Ready(hard_state=state, lives=ready.lives, entries=ready.entries, snapshot=ready.snapshot)
        )

    def _saved(self) -> None:
        self._complete(self._unsaved.popleft())
        while self._unsaved and not self._unsaved[0].must_save:
            self._complete(self._unsaved.popleft())
        self._hand_out()
        self.simulation.turned(self)

    def _complete(self, ready: Ready) -> None:
        self.raft.persisted(ready)
        self.simulation.send(self, ready.messages_after_save)

    # -- the state machine ----------------------------------------------------------------------------------------------

    def _apply_next(self) -> None:
        if self._to_apply and not self._applying:
            self._applying = True
            simulation = self.simulation
            duration = simulation.random.randint(0, simulation.weather.apply) * self.apply_slowness
            simulation.later(self, duration, self._apply)

    def _apply(self) -> None:
        self._applying = False
        work = self._to_apply.popleft()
        if isinstance(work, Snapshot):
            if not self._load(work):
                return
            self.raft.applied(work.index)
            self.raft.step(Message(MessageType.SNAPSHOT_RECEIVED, sender=self.id, snapshot=work))
            self._refuse_reads_if_removed()
        else:
            for run in work:
                self._apply_run(run)
            self.raft.applied(work[-1].last)
        self._hand_out()
        self.simulation.turned(self)
        if (
            self.up
            and 0 < self.config.snapshot_entries <= self.raft.log.applied - self.raft.log.snapshot.index
        ):
            self.snapshot(self.config.compaction_overhead)

    def _refuse_reads_if_removed(self) -> None:
        """A REMOVED message has no state, so the applied index says nothing about the state machine any more."""
        if self.knows_its_removal:
            reads, self._reads = self._reads, {}
            for _, answer, _ in reads.values():
                answer("refused", "this replica was removed")

    def _apply_run(self, run: Run) -> None:
        for index in range(run.first, run.last + 1):
            if run.kind(index) == EntryKind.COMMAND:
                result = self.machine.apply(run.payloads[index - run.first])
                if run.origin == self._origin:
                    self._answer(run.key + index - run.first, "done", result)

    def _confirmed(self, read: ReadReady) -> None:
        number, origin = read.context
        if origin == self._origin and number in self._reads:
            query, answer, _ = self._reads[number]
            self._reads[number] = (query, answer, read.index)

    def _answer_reads(self) -> None:
        applied = self.raft.log.applied
        due = [number for number, (_, _, at) in self._reads.items() if at is not None and at <= applied]
        for number in due:
            query, answer, _ = self._reads.pop(number)
            answer("done", self.machine.query(query))

    def _drop(self, dropped: Dropped) -> None:
        because = dropped.text or dropped.because.value
        if dropped.type is MessageType.READ_INDEX:
            found = self._reads.pop(dropped.origin, None) if dropped.key == self._origin else None
            if found is not None:
                found[1]("refused", because)
        elif dropped.type is MessageType.LEADER_TRANSFER:
            for number, (target, _) in list(self._successors.items()):
                if target == dropped.key:
                    self._answer(number, "refused", because)
        elif dropped.origin == self._origin:
            for number in range(dropped.key, dropped.key + dropped.count):
                self._answer(number, "refused", because)

    def request_snapshot(self) -> None:
        """Ask the leader for a snapshot. Its host takes one if necessary."""
        with suppress(RequestDropped):
            self.raft.request_snapshot()
        self._hand_out()

    # -- snapshots --------------------------------------------------------------------------------------------------------

    def snapshot(self, overhead: int) -> None:
        """Take a snapshot of the applied state; when it is durable, compact the log up to `overhead` entries before it."""
        raft = self.raft
        index = raft.log.applied
        late = index <= max(raft.log.snapshot.index, self._snapshot_due) or index > self.log.last_index
        if late or self._applying or raft.log.pending_snapshot is not None:
            return
        self._snapshot_due = index
        witness = raft.base_state is State.WITNESS
        content = b"" if witness else self._content(index)
        snapshot = Snapshot(index, raft.log.term(index), raft.membership, content, witness=witness)

        def keep() -> None:
            if snapshot.index > self.log.snapshot.index:
                self.log.snapshot, self.log.membership = snapshot, snapshot.membership

        def done() -> None:
            if self.raft.log.snapshot.index < snapshot.index:
                self._compact(snapshot, overhead)

        self.disk.write(keep, done)

    def _content(self, index: int) -> bytes:
        """Return the state of the extensions and of the state machine, which are both as of the last applied index."""
        saved: list[bytes | None] = []
        self.raft.save_extensions(index, saved.append)
        extensions = saved[0] or b""
        return len(extensions).to_bytes(8, "big") + extensions + self.machine.save()

    def _compact(self, snapshot: Snapshot, overhead: int) -> None:
        self.raft.snapshot_taken(snapshot)
        index = snapshot.index - overhead
        if index >= self.raft.log.first_index and index >= self.log.first_index:
            self.raft.compact(index)
            self.log.compact(index)
        self._hand_out()
        self.simulation.turned(self)


def _parts(content: bytes) -> tuple[bytes, bytes]:
    """Return the state of the extensions and that of the state machine in the content of a snapshot."""
    end = 8 + int.from_bytes(content[:8], "big")
    return content[8:end], content[end:]


_configs: dict[tuple[Any, ...], RaftConfig] = {}


def config_of(simulation: Environment, replica: int, role: State | None) -> RaftConfig:
    """Return the options of one replica. They are cached, since simulations need the same ones very often."""
    members = simulation.first_members
    plan = simulation.plan
    options = {
        **plan.config,
        **(plan.differing if plan.differ >> replica & 1 else {}),
        "is_witness": role is State.WITNESS or (role is None and replica in members.witnesses),
        "is_observer": role is State.OBSERVER or (role is None and replica in members.observers),
    }
    if options["is_witness"]:
        options["snapshot_entries"] = options["snapshot_bytes"] = 0
    key = (replica, *sorted(options.items()))
    if key not in _configs:
        with _quietly():
            _configs[key] = RaftConfig(replica_id=replica, **options)
    return _configs[key]


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress warnings about unwise options: a simulation uses such options on purpose."""
    log = logging.getLogger("drakkar.handlers.raft.config")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
