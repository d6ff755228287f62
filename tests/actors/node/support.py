"""A node by itself, between a host, a store and peers that a test plays."""

import threading
from collections import Counter
from contextlib import suppress

import pykka
from drakkar.actors.host.replica import Replica
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.proposed import MAX_COMMAND_BYTES
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.monitor import watch
from drakkar.actors.snapshots.store import MemorySnapshots
from drakkar.handlers.errors import SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import EntryKind
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.state import Membership, State
from pykka.messages import ProxyGetAttr

from tests.actors.support import TIMEOUT_S

M = MessageType
T = 10
ORIGIN = 1234567
CHANGE = bytes([EntryKind.CONFIG_CHANGE])
ALONE = {1: "one:1"}
THREE = {1: "one:1", 2: "two:2", 3: "three:3"}


class Services:
    """The host, as the node sees it: what is sent is kept, what is saved is durable when the test says so."""

    def __init__(self):
        self.sent = []
        self.saves = []
        self.events = []
        self.full = False
        self.space = None
        self.hangs = False
        self.others_writes = 0
        self.failure = None
        self.recorded, self.compacted, self.streamed = [], [], []
        self.recalled = []
        self.charged = Counter()
        self.lane = UNLIMITED
        self.waits = 0

    def send(self, address, messages):
        self.sent += [(address, message) for message in messages]

    def recall(self, address, message):
        self.recalled.append((address, message))

    def charge(self, address, count):
        self.charged[address] += count

    def confirms(self, address):
        return False

    def lane_room(self, address, shard, least):
        return self.lane

    def lane_waiting(self, address, shard):
        return self.waits

    def make_known(self, address, shard_id):
        pass

    def save(self, save):
        if self.full:
            raise SystemBusy("the store is full")
        self.saves.append(save)
        if not self.hangs:
            self._finish(save, self.failure)

    def written(self):
        return self.others_writes

    def room(self, size):
        return self.space is None or size <= self.space

    def record_snapshot(self, shard, replica, snapshot, done=None):
        self.recorded.append(snapshot)
        done(None)

    def compact(self, shard, replica, index):
        self.compacted.append(index)

    def send_snapshot(self, address, message, *, temporary):
        self.streamed.append((address, message, temporary))

    def announce(self, event):
        self.events.append(event)

    def write_on(self):
        """The disk wakes up, and finishes what it was asked for."""
        self.hangs = False
        for save in list(self.saves):
            self._finish(save, None)

    def _finish(self, save, error):
        """A write is done once."""
        done, save.done = save.done, lambda _: None
        done(error)

    def messages(self, type_):
        return [message for _, message in self.sent if message.type is type_]


class Node:
    """A node under test, with the host's and the client's handle on it."""

    def __init__(self, loop, pool, machine, members, max_reads, handlers, role, config):
        command_bytes = config.pop("max_command_bytes", MAX_COMMAND_BYTES)
        voters = {} if role else members
        log = config.pop("log", None) or MemoryLog(membership=Membership(voters=voters))
        snapshots = config.pop("snapshots", None) or MemorySnapshots().of(1, 1)
        host = {name: config.pop(name) for name in ("home", "now") if name in config}
        self.loop = loop
        self.services = Services()
        self.actor = NodeActor.start_actor(
            RaftConfig(
                replica_id=1,
                election_ticks=T,
                min_election_ticks=T,
                max_election_ticks=T + 1,
                is_observer=role is State.OBSERVER,
                is_witness=role is State.WITNESS,
                **config,
            ),
            log,
            machine,
            services=self.services,
            pool=pool,
            background=pool,
            snapshots=snapshots,
            origin=ORIGIN,
            max_waiting_commands=100,
            max_waiting_bytes=1 << 20,
            max_waiting_reads=max_reads,
            max_command_bytes=command_bytes,
            handlers=handlers,
            loop=loop,
            **host,
        )
        self.ref = self.actor.actor_ref
        self.replica = Replica(self.ref, self.actor, max_command_bytes=1 << 20)
        self.died = ActorFuture()
        watch(self.ref, self.died.set)

    def settle(self):
        """Let it finish what it was told so far."""
        with suppress(pykka.ActorDeadError):
            self.ref.ask(ProxyGetAttr(["actor_urn"]), timeout=TIMEOUT_S)
        self.loop.call(lambda: None, timeout=TIMEOUT_S)

    def tell(self, type_, **fields):
        with suppress(pykka.ActorDeadError):
            self.ref.tell(Message(type_, **fields))
        self.settle()

    def tick(self, count=1):
        for _ in range(count):
            self.tell(M.LOCAL_TICK)

    def lead(self):
        """Let it campaign and be elected, by itself or by the others."""
        self.tick(T)
        term = self.replica.status().term + 1
        for sender in set(THREE) & set(self.replica.status().voters) - {1}:
            self.tell(M.REQUEST_PRE_VOTE_RESP, sender=sender, term=term)
            self.tell(M.REQUEST_VOTE_RESP, sender=sender, term=term)
        assert self.replica.status().state is State.LEADER
        return self

    def acknowledge(self, *senders):
        """Let followers hold all that the leader has."""
        status = self.replica.status()
        for sender in senders:
            self.tell(M.REPLICATE_RESP, sender=sender, term=status.term, log_index=status.last_index)

    def follow(self, leader=2, term=5):
        """Let it hear of a leader."""
        self.tell(M.HEARTBEAT, sender=leader, term=term)
        assert self.replica.status().leader_id == leader
        return self

    def reason(self):
        return self.died.get(timeout=TIMEOUT_S).reason


class Held:
    """Holds the loop up until told to go on, so that a test can fill lanes at leisure."""

    def __init__(self, one):
        self.one, self.entered, self.leave = one, threading.Event(), threading.Event()

    def __enter__(self):
        self.one.loop.run_soon(lambda: (self.entered.set(), self.leave.wait(TIMEOUT_S)))
        assert self.entered.wait(TIMEOUT_S)

    def __exit__(self, *trouble):
        self.leave.set()
