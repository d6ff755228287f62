"""A simulated host with the real node: its actor, mailbox, queues, applier and log store. Time, disk and threads are not."""

from dataclasses import replace
from itertools import count

from drakkar.actors.futures import ActorFuture
from drakkar.actors.log_records import Bootstrap
from drakkar.actors.log_store import MemoryDisk, MemoryLogStore, Save
from drakkar.actors.loop import TrioLoop
from drakkar.actors.node import NodeActor, TransferRequest
from drakkar.actors.proposals import Proposal, ProposalQueue
from drakkar.actors.read_requests import ReadRequest
from drakkar.handlers.entries import Entries
from drakkar.handlers.errors import DrakkarError, SystemBusy
from drakkar.handlers.messages import EntryKind, HardState, Membership, MessageType
from drakkar.handlers.testing.core_host import config_of, first_entry
from drakkar.handlers.testing.invariants import Violation
from drakkar.handlers.testing.simulation import PATIENCE, UNITS_A_SECOND, SimulatedHost

from tests.simulation.store import OnLoop, Registers

SHARD = 1
FOREVER = float("inf")
MOST_WAITING_WRITES = 6


class SimulatedLoop(TrioLoop):
    """Gives actors their turns when it is told to, on whatever thread that is."""

    def __init__(self):
        super().__init__("simulated")
        self.elsewhere = False

    def _admit(self, actor):
        self._actors[actor.actor_urn] = actor

    def in_loop(self):
        return not self.elsewhere

    def run(self):
        while self._ready:
            self._ready.popleft()._take_turn(FOREVER)


class SimulatedPool:
    """Does a job when the simulation's time has come, as if on another thread."""

    def __init__(self, host):
        self._host = host

    def submit(self, job):
        simulation, host = self._host.simulation, self._host
        duration = simulation.random.randint(0, simulation.weather.apply) * host.apply_slowness
        simulation.later(host, duration, host.on_thread, job)


class NodeHost(SimulatedHost):
    """What a `drakkar.actors.NodeHost` is to its nodes."""

    def __init__(self, simulation, replica, role=None, *, handlers=None):
        super().__init__(simulation, replica)
        self._handlers = handlers
        self._config = config_of(simulation, replica, role)
        self._memory = MemoryDisk()
        self._loop = SimulatedLoop()
        self._joins = role is not None
        self._machine = simulation.random.choice((Registers, OnLoop))
        self._waiting = {}
        self._numbers = count()
        self._writes = 0
        self._open()
        membership = Membership() if self._joins else simulation.first_members
        self._store.bootstrap(
            SHARD, replica, Bootstrap(membership, join=self._joins, state_machine="Registers")
        )
        if not self._joins:
            self._write_first_entry(membership)
        self._log = self._store.open(SHARD, replica)

    def _open(self):
        self._store = MemoryLogStore(self._memory)

    def _write_first_entry(self, membership):
        runs = Entries.of([first_entry(membership)]).runs
        self._store.save(Save(SHARD, self.id, HardState(term=1, commit=1), runs, done=self._must_succeed))

    def _must_succeed(self, error):
        if error is not None:
            raise Violation("V7 the store keeps what it is given", repr(error))

    @property
    def storage(self):
        return self._log

    @property
    def raft(self):
        return self.node.raft

    # -- its life -------------------------------------------------------------------------------------------------

    def start(self):
        random = self.simulation.random
        self._open()
        self._log = self._store.open(SHARD, self.id)
        self._writes = 0
        self._ref = NodeActor.start(
            self._config,
            self._log,
            self._machine(),
            services=self,
            pool=SimulatedPool(self),
            origin=random.getrandbits(62) | 1,
            proposals=lambda wake: ProposalQueue(wake, max_commands=20, max_bytes=1 << 20),
            max_waiting_reads=20,
            handlers=self._handlers.copy() if self._handlers is not None else None,
            now=self.now,
            loop=self._loop,
        )
        self.node = self._ref.actor_inbox._actor

    def stop(self):
        """As by SIGKILL: nothing is told to anybody, and whoever waits never hears."""
        self.node._leave()
        self.node.actor_inbox.queue.clear()
        self._loop._ready.clear()
        self._loop._actors.clear()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer("unknown", "the host crashed")

    def leftovers(self):
        node = self.node
        held = {
            "unsaved": len(node._unsaved),
            "proposals": len(node._pending) + len(node.queue),
            "reads": len(node._reads) + len(node.requests),
            "transfers": len(node._transfers),
            "inbox": len(node.actor_inbox),
        }
        return [f"{name} {count}" for name, count in held.items() if count]

    # -- its turns ------------------------------------------------------------------------------------------------

    def receive(self, messages):
        for message in messages:
            if message.type is MessageType.LOCAL_TICK:
                if self.node.tick_waits:
                    continue
                self.node.tick_waits = True
            elif message.sender not in self.node.raft.membership.addresses:
                self.node.note_address(message.sender, f"host-{message.sender}:1")
            self._ref.tell(message)
        self._run()

    def _run(self):
        self._loop.run()
        if self.up and self.node.actor_inbox.closed:
            reason = self.node.actor_inbox.obituary.end.get()
            if isinstance(reason.__cause__, Violation):
                raise reason.__cause__
            raise (
                reason if isinstance(reason, Violation) else Violation("V11 no node fails", f"{reason!r}")
            ) from reason

    def on_thread(self, job):
        self._loop.elsewhere = True
        try:
            job()
        finally:
            self._loop.elsewhere = False
        self._run()
        self.simulation.turned(self)

    # -- what the node asks of its host -----------------------------------------------------------------------------

    def now(self):
        return self.simulation.now / UNITS_A_SECOND

    def send(self, _address, messages):
        self.simulation.send(self, messages)

    def announce(self, event):
        pass

    def save(self, save):
        if self._writes >= MOST_WAITING_WRITES:
            self.simulation.invariants.happened["the store had no room"] += 1
            raise SystemBusy("the store is full")
        self._writes += 1

        def keep():
            self._store.save(replace(save, done=self._must_succeed))

        def done():
            self._writes -= 1
            save.done(None)
            self._run()
            self.simulation.turned(self)

        self.disk.write(keep, done)

    # -- requests ---------------------------------------------------------------------------------------------------

    def submit(self, kind, content, seconds, answer):
        """Propose or read; `answer(outcome, value)` is called once, with "done", "refused" or "unknown"."""
        future, deadline = ActorFuture(), self.now() + seconds
        number = next(self._numbers)
        self._waiting[number] = answer
        future.add_done_callback(lambda done: self._answer(number, done))
        if kind == "read":
            self.node.requests.put(ReadRequest(content, future, deadline))
        else:
            kinds = bytes([EntryKind.CONFIG_CHANGE]) if kind == "change" else b""
            self.node.queue.put(Proposal((content,), future, deadline, single=True, kinds=kinds))
        self._run()
        self.simulation.turned(self)

    def _answer(self, number, future):
        outcome = outcome_of(future)
        answer = self._waiting.pop(number, None)
        if answer is not None:
            answer(*outcome)

    def snapshot(self, overhead):
        """The node takes none yet."""

    def transfer(self, target):
        future = ActorFuture()
        future.add_done_callback(lambda done: done.outcome())
        self.node.requests.put(TransferRequest(target, future, self.now() + PATIENCE))
        self._run()
        self.simulation.turned(self)


def outcome_of(future):
    value, error = future.outcome()
    if error is None:
        return "done", value
    if isinstance(error, DrakkarError) and error.outcome_known:
        return "refused", str(error)
    return "unknown", str(error)
