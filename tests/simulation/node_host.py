"""A simulated host with the real node: its actor, inbox, applier and log store. Time, disk and threads are simulated."""

from collections import Counter, deque
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import count
from random import Random

import pykka
from drakkar.actors.log.records import Bootstrap
from drakkar.actors.log.store import AppendRequest, at_once, log_in_memory
from drakkar.actors.machine.sessions import REGISTER, SessionTable, encode_request
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.events import ExtensionEvent
from drakkar.actors.node.introductions import Introduced
from drakkar.actors.node.proposals import Proposal
from drakkar.actors.node.requests import OwnMessage, ReadRequest, SnapshotRequest, TransferRequest
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.snapshots.files import MemoryFiles
from drakkar.actors.snapshots.store import MemorySnapshots
from drakkar.handlers.errors import (
    ActorFailed,
    CorruptData,
    DrakkarError,
    MissingExtension,
    RequestDropped,
    SystemBusy,
)
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import initial_log
from drakkar.handlers.raft.entries import Entries, EntryKind
from drakkar.handlers.raft.lives import Meeting
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.testing.core_host import config_of
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.plan import REQUEST_TIMEOUT_S, UNITS_PER_SECOND
from drakkar.handlers.testing.simulated_host import NoticeTimer, SimulatedHost
from drakkar.transport.shard_frames import ShardHello

from tests.simulation.once import MAX_UNCONFIRMED
from tests.simulation.store import Concurrent, OnDisk, OnLoop, Registers
from tests.simulation.torn import TearableFiles

SHARD = 1
FOREVER = float("inf")
MAX_PENDING_WRITES = 6
SEGMENT_BYTES = 1 << 12
"""Bytes of a segment of the log: few, so that segments are dropped all the time."""
MAX_WAITING = 20
"""How many proposals may wait for a node, and how many requests."""
KINDS = {"change": EntryKind.CONFIG_CHANGE, "session": EntryKind.SESSION}
"""The kinds of entries, by kind of request; all others are commands."""
SESSIONS = 3
"""How many sessions a shard keeps: few, so that some are evicted."""
OPENING = encode_request(1, REGISTER, 0, b"")[9:]
"""The last bytes of a request that opens a session."""


class SimulatedLoop(TrioLoop):
    """A loop that gives actors their turns when the simulation calls it, in the thread of the caller."""

    def __init__(self):
        super().__init__("simulated")
        self.elsewhere = False

    def _admit(self, actor):
        self._actors[actor.actor_urn] = actor

    def in_loop(self):
        return not self.elsewhere

    def run(self):
        while self._scheduler.ready:
            self._scheduler.ready.popleft()._actor_take_turn(FOREVER)


class SimulatedPool:
    """A pool that runs a job after some simulated time, as if on another thread."""

    workers = None
    """There are no threads that could wait for one another."""

    def __init__(self, host):
        self._host = host
        self.unfinished = 0
        """The number of jobs that are not done yet."""

    def submit(self, job):
        simulation, host = self._host.simulation, self._host
        duration = simulation.random.randint(0, simulation.weather.apply) * host.apply_slowness
        self.unfinished += 1
        simulation.later(host, duration, self._do, job)

    def _do(self, job):
        self.unfinished -= 1
        self._host.on_thread(job)


class Sessions(SessionTable):
    """A session table that counts repeated requests."""

    def __init__(self, happened):
        super().__init__(SESSIONS)
        self._happened = happened

    def _update(self, session, request, apply):
        self._happened["a session's command was answered from the table"] += request.series in session.kept
        return super()._update(session, request, apply)


class NodeHost(SimulatedHost):
    """A host that gives a node the services of a `drakkar.actors.NodeHost`."""

    def __init__(self, simulation, replica, role=None, *, handlers=None):
        super().__init__(simulation, replica)
        self.handlers = handlers
        self._config = config_of(simulation, replica, role)
        self._memory = TearableFiles()
        # Of its own, so that schedules that were kept go on as they did.
        self._tearing = Random(simulation.plan.seed * 1000 + replica)
        self._snapshots = MemorySnapshots()
        self.own_disk = {}
        """The durable data of a state machine on disk."""
        self._loop = SimulatedLoop()
        self._joins = role is not None
        self._machine = simulation.random.choice((Registers, OnLoop, Concurrent))
        if simulation.plan.seed % 5 == 0:
            self._machine = partial(OnDisk, self.own_disk)
        self._waiting = {}
        self._numbers = count()
        self._gathers = False
        self._append_ticks = deque()
        """For each unfinished write, the tick in which it was ordered."""
        self._written = self._written_at = 0
        """How many writes are done, and the tick of the last one."""
        self._begin()

    def _begin(self):
        self._open()
        membership = Membership() if self._joins else self.simulation.first_members
        record = Bootstrap(membership, join=self._joins, state_machine="")
        lives = self.first_lives(joins=self._joins)
        at_once(partial(self._store.begin, SHARD, self.id, record, None, lives=lives))
        if not self._joins:
            self._write_first_entry(membership)
        self._log = self._store.open(SHARD, self.id)

    def empty_disk(self):
        self._memory, self._snapshots = TearableFiles(), MemorySnapshots()
        self.own_disk.clear()
        self._begin()

    def copy_disk(self):
        memory, snapshots = deepcopy(self._memory), copy_of(self._snapshots)
        own_disk = deepcopy(self.own_disk)

        def put_back():
            self._memory, self._snapshots = memory, snapshots
            self.own_disk.clear()
            self.own_disk.update(own_disk)
            self._open()
            self._log = self._store.open(SHARD, self.id)

        return put_back

    def _open(self):
        self._store = log_in_memory(self._memory, segment_bytes=SEGMENT_BYTES)

    def _write_first_entry(self, membership):
        hard_state, run = initial_log(membership)
        self._store.save(AppendRequest(SHARD, self.id, hard_state, [run], done=self._must_succeed))

    def _must_succeed(self, error):
        if error is not None and self._memory.tearing is None:
            raise Violation("V7 the store keeps what it is given", repr(error))

    def tear(self, keep):
        self._memory.tearing = self._tearing
        keep()
        self._memory.tearing = None
        self.simulation.invariants.happened["a record was torn"] += self._store.poisoned is not None

    @property
    def storage(self):
        return self._log

    @property
    def raft(self):
        return self.node.raft

    @property
    def idle(self):
        """Whether nothing is in progress. A snapshot may still be written, if it began while the state machine was slow."""
        return super().idle and not self._pool.unfinished

    # -- start and stop -------------------------------------------------------------------------------------------

    def start(self):
        random = self.simulation.random
        self._open()
        self._log = self._store.open(SHARD, self.id)
        self._snapshots = self._snapshots.restarted()
        self._files = self._snapshots.of(SHARD, self.id)
        self._pool = SimulatedPool(self)
        self._append_ticks.clear()
        self._notices = NoticeTimer(self.simulation, self, self._tell_of_commits)
        self._streams = Counter()
        """Snapshots that are on their way in streams, by peer."""
        self.node = NodeActor.start_actor(
            self._config,
            self.slow_reads(),
            self._machine(),
            services=self,
            pool=self._pool,
            background=self._pool,
            snapshots=self._files,
            origin=random.getrandbits(62) | 1,
            max_waiting_commands=MAX_WAITING,
            max_waiting_bytes=1 << 20,
            max_waiting_reads=MAX_WAITING,
            handlers=self.handlers.copy() if self.handlers is not None else None,
            log_memory=self.log_memory(),
            home=self.directory.home,
            now=self.now,
            loop=self._loop,
        )
        if self.lanes() is None:
            self.node.raft.lanes = None
        self._ref = self.node.actor_ref
        self.node._applier.state.sessions = Sessions(self.simulation.invariants.happened)
        self._watch_loading(self.node.received_snapshots)
        self._useless = 0
        self._unheard = 0
        self._refused = 0

    def _watch_loading(self, received):
        loaded = received._loaded

        def watched(snapshot):
            self.simulation.invariants.happened["a node loaded a leader's snapshot"] += not snapshot.witness
            loaded(snapshot)

        received._loaded = watched

    def stop(self):
        """Crash as by SIGKILL: the node reports nothing, and its futures are never set."""
        self.node.actor_inbox.completions.clear()
        self.node.actor_inbox.queue.clear()
        self.node._actor_leave()
        self._loop._scheduler.ready.clear()
        self._loop._actors.clear()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer("unknown", "the host crashed")

    def leftovers(self):
        node = self.node
        held = {
            "unsaved": len(node.persistence),
            "proposals": node.clients.pending_proposals,
            "reads": node.clients.pending_reads,
            "transfers": len(node.clients.transfers),
            "stalled work": int(node.persistence.stalled is not None),
            "log queries": len(node.clients.log_queries),
            "waits for an index": len(node.clients._applied_requests),
            "messages of its own": len(node.actor_inbox.own),
            "asks": len(node.asks.open),
            "states to be saved": len(node.extension_states._open) + len(node.raft.undelivered.saves),
            "entries to be delivered": len(node.raft.undelivered.runs),
            "inbox": len(node.actor_inbox),
            "outstanding completions": node.actor_inbox.outstanding,
            "snapshots": node.snapshots._taking + len(node.snapshots._requests),
            "unrecorded snapshots": int(node.snapshots._unrecorded is not None),
            "exports": len(node.snapshots.exports),
            "received snapshots": len(node.received_snapshots._received),
            "pinned files": sum(self._files._pins.values()),
            "peers that are brought up": len(node.peer_snapshots._bringing_up),
            "damaged snapshots": int(
                node.snapshots._damaged is not None
            ),  # no file is ever damaged in a simulation
            "results": sum(
                max(len(session.kept) - MAX_UNCONFIRMED, 0)
                for session in node._applier.state.sessions._sessions.values()
            ),
        }
        return [f"{name} {count}" for name, count in held.items() if count]

    # -- lives ----------------------------------------------------------------------------------------------------

    @property
    def lives_told(self):
        return self.node.introductions._own

    def meet(self, replica, life, term):
        """Tell the node, in order with the messages: it judges each of them by itself."""
        kinds = {int(kind): EntryKind(kind).name for kind in life.kinds or ()}
        hello = ShardHello(SHARD, replica, life.founding, life.standing, kinds=kinds)
        self._tell(Introduced(hello, life.home, life.address, life.certified))
        return Meeting.WELCOME

    def introduce(self, address, shard):
        pass

    def make_known(self, address, shard):
        pass

    def reintroduce(self, shard):
        pass

    def proves(self, speaker, address):
        return speaker == address

    def confirms(self, address):
        return True

    def reachable(self, address):
        return True

    # -- turns ----------------------------------------------------------------------------------------------------

    def entries_loaded(self):
        self.node.entries_loaded()
        self._run()

    def receive(self, messages, life=None):
        for message in messages:
            if message.type is MessageType.LOCAL_TICK:
                self._check_disk()
                self._check_removed()
                if self.node.tick_waits:
                    continue
                self.node.tick_waits = True
            else:
                self._learn(message.sender)
            if message.type is MessageType.SNAPSHOT_STATUS and self._streams[message.sender]:
                self._streams[message.sender] -= 1
                self.node.peer_snapshots.was_sent(message.sender, failed=message.reject)
            elif message.snapshot is not None and not message.snapshot.witness:
                self._take_in(message)
            else:
                self._tell(message)
        self._run()
        if self.node.unheard != self._unheard:  # what it drops while its disk hangs must be sent again
            self._unheard = self.node.unheard
            self._lose(messages)
        if self.node.introductions.dropped != self._refused:
            self._refused = self.node.introductions.dropped
            self.simulation.faults["refused message"] += 1
            self._lose(messages)

    def _learn(self, sender):
        """Where hosts have no homes none is introduced, which is when a node learns addresses."""
        if not self.directory.home and sender not in self.node.raft.membership.addresses:
            self.node.router.learn(sender, f"host-{sender}:1")

    def _lose(self, messages):
        for message in messages:
            self.simulation.invariants.lanes.lost(message)

    def _check_removed(self):
        """A removed replica stays while others may need its vote, so not while its disk hangs."""
        useless = self.knows_its_removal and self.node.disk.hangs
        self._useless = self._useless + 1 if useless else 0
        if self._useless > self.raft.config.election_ticks:
            raise Violation("V13 a removed replica stops", repr(self.raft))

    def _check_disk(self):
        """A leader whose disk does no write for an election timeout must step down; two more ticks are allowed."""
        raft = self.raft
        waits = self.ticks - max(self._append_ticks[0], self._written_at) if self._append_ticks else 0
        if raft.state is State.LEADER and waits > raft.config.election_ticks + 2:
            raise Violation("V15 a leader's disk writes", f"{raft!r} has waited for {waits} ticks")

    def _tell(self, message):
        with suppress(pykka.ActorDeadError):  # a removed replica that has just stopped
            self._ref.tell(message)

    def _take_in(self, message):
        """Receive a snapshot as from a stream: it is first written to a file, on another thread."""
        raft = self.node.raft
        if message.snapshot.index <= raft.log.committed and not raft.requested_snapshot:
            return

        def keep():
            incoming = self._files.receive()
            incoming.write(message.snapshot.payload)
            snapshot, _ = incoming.finish()
            self._files.pin(snapshot.payload.decode())
            self._tell(replace(message, snapshot=snapshot))

        self._pool.submit(keep)

    @contextmanager
    def at_once(self):
        """Let requests that are sent meanwhile come in one turn of the node."""
        self._gathers = True
        yield
        self._gathers = False
        self._run()
        self.simulation.turned(self)

    def _run(self):
        if self._gathers:
            return
        self._loop.run()
        if self.up and self.raft.commit_untold and not (self._notices.runs or self.node.actor_inbox.closed):
            raise Violation("V17 a node asks for the notices that it owes", repr(self.raft))
        if self.up and self.node.actor_inbox.closed:
            if self.node.removal.reason is not None:
                self.simulation.end_removed(self)
                return
            reason = self.node.actor_inbox.termination.end.get()
            missing = next(
                (each for each in (reason, reason.__cause__) if isinstance(each, MissingExtension)), None
            )
            if missing is not None:
                self.simulation.lacks(self, missing)
                return
            if isinstance(reason, ActorFailed) and "keeps its data" in str(reason):
                self.simulation.end(self, str(reason))
                return
            if isinstance(reason.__cause__, Violation):
                raise reason.__cause__
            if isinstance(reason, Violation):
                raise reason
            raise Violation("V11 no node fails", f"{reason!r}") from reason

    def on_thread(self, job):
        self._loop.elsewhere = True
        try:
            job()
        finally:
            self._loop.elsewhere = False
        self._run()
        self.simulation.turned(self)

    # -- services for the node --------------------------------------------------------------------------------------

    def now(self):
        return self.simulation.now / UNITS_PER_SECOND

    def send(self, _address, messages):
        self.simulation.send(self, messages)

    def recall(self, _address, message):
        self.simulation.recall(message)

    def charge(self, address, count):
        """Nothing is charged here."""

    def lane_room(self, address, _shard, least):
        return self.simulation.lanes.room(self, self._replica_at(address), least)

    def lane_waiting(self, address, _shard):
        return self.simulation.lanes.waiting(self, self._replica_at(address))

    def _replica_at(self, address):
        """A new replica may have the address of one that was removed, whose host is down."""
        addresses = self.node.raft.membership.addresses
        return next((replica for replica in addresses if addresses[replica] == address), replica_at(address))

    def announce(self, event):
        self.simulation.invariants.happened["a handler published an event"] += isinstance(
            event, ExtensionEvent
        )

    def commit_untold(self, _shard, *, untold):
        self._notices.set(untold=untold)

    def _tell_of_commits(self):
        self.node.notice_waits = False
        self._tell(Message(MessageType.COMMIT_DUE, sender=self.id))
        self._run()

    def written(self):
        return self._written

    def room(self, size):
        return self.disk.room(size)

    def save(self, save):
        if len(self._append_ticks) >= MAX_PENDING_WRITES:
            self.simulation.invariants.happened["the store was full"] += 1
            raise SystemBusy("the store is full")
        self._append_ticks.append(self.ticks)
        self.disk.take(Entries(save.runs).size)

        def keep():
            self._store.save(replace(save, done=self._must_succeed))

        def done():
            self._append_ticks.popleft()
            self._written, self._written_at = self._written + 1, self.ticks
            save.done(None)
            self._run()
            self.simulation.turned(self)

        self.disk.write(keep, done)

    def record_snapshot(self, shard, replica, snapshot, done):
        outcome = []

        def keep():
            self._store.record_snapshot(shard, replica, snapshot, outcome.append)

        def tell():
            if not any(outcome):
                self._count_recorded(snapshot)
            done(outcome[0])
            self._run()
            self.simulation.turned(self)

        self.disk.write(keep, tell)

    def _count_recorded(self, snapshot):
        happened = self.simulation.invariants.happened
        happened["a node recorded a snapshot"] += 1
        if not snapshot.witness:
            happened[f"a snapshot of {type(self.node._applier.machine).__name__} was recorded"] += 1

    def compact(self, shard, replica, index):
        self._store.compact(shard, replica, index)

    def send_snapshot(self, _address, message, *, temporary):
        name = message.snapshot.payload.decode()
        self._streams[message.to] += 1

        def read():
            try:
                with self._files.open(name) as reader:
                    raw = reader.raw().read()
            except (
                CorruptData
            ) as error:  # the file is gone: a newer one replaced it, or `leftovers` reports it
                self.node.peer_snapshots.found_damaged(message.snapshot, error)
                self._streams[message.to] -= 1
                self.node.peer_snapshots.was_sent(message.to, failed=True)
                return
            if temporary:
                self._files.discard(name)
            self.simulation.send(self, [replace(message, snapshot=replace(message.snapshot, payload=raw))])

        self._pool.submit(read)

    # -- requests ---------------------------------------------------------------------------------------------------

    def submit(self, kind, content, seconds, answer):
        """See `SimulatedHost.submit`. A request may also be a "session" command."""
        future, deadline = self._expect(seconds, answer)
        if kind == "read":
            self.node.actor_inbox.requests.put(ReadRequest(content, future, deadline))
        elif kind == "ask":
            self.node.actor_inbox.own.put(OwnMessage(content, future, deadline))
        else:
            kinds = bytes([KINDS[kind]]) if kind in KINDS else b""
            self.node.actor_inbox.proposals.put(
                Proposal((content,), future, deadline, single=True, kinds=kinds)
            )
        self._check_lanes()
        self._run()
        self.simulation.turned(self)

    def _check_lanes(self):
        inbox = self.node.actor_inbox
        waiting = len(inbox.proposals), len(inbox.requests)
        if max(waiting) > MAX_WAITING:
            raise Violation("V14 queues are bounded", f"{waiting} proposals and requests of {self.raft!r}")
        self.simulation.invariants.happened["a lane was full"] += max(waiting) == MAX_WAITING

    def _expect(self, seconds, answer):
        """Return a future whose outcome goes to `answer`, and its deadline in seconds."""
        future, number = ActorFuture(), next(self._numbers)
        self._waiting[number] = answer
        future.add_done_callback(lambda done: self._answer(number, done))
        return future, self.now() + seconds

    def _answer(self, number, future):
        outcome = outcome_of(future)
        answer = self._waiting.pop(number, None)
        if answer is not None:
            answer(*outcome)

    def snapshot(self, overhead):
        future = ActorFuture()
        future.add_done_callback(lambda done: done.outcome())
        self.node.actor_inbox.requests.put(SnapshotRequest(future, self.now() + REQUEST_TIMEOUT_S, overhead))
        self._run()
        self.simulation.turned(self)

    def request_snapshot(self):
        with suppress(RequestDropped):
            self.raft.request_snapshot()
        self.node.actor_inbox.wake()
        self._run()
        self.simulation.turned(self)

    def transfer(self, target, seconds, answer):
        future, deadline = self._expect(seconds, answer)
        self.node.actor_inbox.requests.put(TransferRequest(target, future, deadline))
        self._run()
        self.simulation.turned(self)

    @property
    def keeps_sessions(self):
        """Whether it keeps sessions. Not with a state machine on disk, which would have to store them; nor as a witness."""
        on_disk = isinstance(self.node._applier.machine, OnDisk)
        return not on_disk and self.raft.base_state is not State.WITNESS

    def may_come_twice(self, message):
        """A repeated command of a session is applied once. But a repeated request to open one opens another session."""
        if message.type is not MessageType.PROPOSE:
            return True
        runs = Entries.of(message.entries).runs
        return bool(runs) and all(
            set(run.kinds) == {EntryKind.SESSION} and all(payload[9:] != OPENING for payload in run.payloads)
            for run in runs
        )

    def state(self):
        applier = self.node._applier
        is_witness = self.raft.base_state is State.WITNESS
        return None if is_witness else (applier.machine.values, applier.state.sessions.encode())


def copy_of(snapshots):
    files, original = MemoryFiles(), snapshots._memory
    files._files = {path: bytes(content) for path, content in original._files.items()}
    files._tokens = count(next(original._tokens))
    return MemorySnapshots(files=files)


def replica_at(address):
    return int(address.removeprefix("host-").removesuffix(":1"))


def outcome_of(future):
    value, error = future.outcome()
    if error is None:
        return "done", value
    if isinstance(error, DrakkarError) and error.outcome_known:
        return "refused", str(error)
    return "unknown", str(error)
