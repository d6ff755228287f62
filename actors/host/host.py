"""`NodeHost`: everything that the replicas of one machine share."""

import logging
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pykka
import trio
from drakkar.actors.host.replica import Replica
from drakkar.actors.host.snapshot_traffic import SnapshotTraffic
from drakkar.actors.log.data_dir import DataDir
from drakkar.actors.log.records import Bootstrap
from drakkar.actors.log.store import (
    AppendRequest,
    Done,
    LmdbLogStore,
    LogStore,
    MemoryLogStore,
    StoredLog,
    StoreStatus,
)
from drakkar.actors.machine.state_machine import DiskStateMachine, StateMachine, made
from drakkar.actors.node.actor import GetActor, NodeActor
from drakkar.actors.node.events import ReplicaEnded
from drakkar.actors.node.proposals import ProposalQueue
from drakkar.actors.runtime.futures import ActorFuture, forbid_waiting
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorDied, watch
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import MemorySnapshots, SnapshotFiles, SnapshotStore
from drakkar.handlers.checks import MAX_SIGNED, check_number, check_whole, is_whole
from drakkar.handlers.errors import ConfigError, OutcomeUnknown, ReplicaStopped, SystemBusy, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.membership import initial_log
from drakkar.handlers.raft.state import Membership, Snapshot, State
from drakkar.handlers.table import HandlerTable
from drakkar.transport.connection import canonical, parse_address
from drakkar.transport.streams import StreamSink
from drakkar.transport.tcp import Options, PeerStatus, TcpTransport
from drakkar.transport.tls import TlsConfig

__all__ = ["NodeHost"]

logger = logging.getLogger(__name__)

HOST_DEFAULTS: Final[Mapping[str, Any]] = {
    # One message to a peer for all that a turn of the node brought.
    "batch_append": True,
    # What a leader without a quorum, or with a slow state machine, may pile up.
    "max_uncommitted_bytes": 64 << 20,
    "max_in_mem_log_bytes": 64 << 20,
    # A log that is never given up would fill the disk; and one that is given up to its end would have every follower
    # that is an entry behind sent the whole state.
    "snapshot_entries": 10_000,
}
"""Options of `RaftConfig` that differ where a real host runs the replica."""

_BACKGROUND_WORKERS: Final = 2
"""Threads that write and load snapshots, beside those that apply commands."""
_LONGEST_END: Final = 10.0
"""Seconds that the start of a replica waits for the end of the one before it."""
_LONGEST_REPLAY: Final = 3600.0
"""Seconds that `wait_ready` waits, at most."""


class NodeHost:
    """A host of replicas: its loop, its transport, its log store and its workers. A context manager.

        with NodeHost("10.0.0.1:7000", data_dir="data") as host:
            counter = host.start_replica(Counter, shard_id=1, replica_id=1, members={1: "10.0.0.1:7000", …})

    It starts when it is made. Its methods may be called from any thread but its own loop's, since they wait.
    """

    def __init__(
        self,
        address: str,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        deployment_id: str = "default",
        listen_address: str | None = None,
        tick_interval: float = 0.1,
        tls: TlsConfig | None = None,
        workers: int = 4,
        max_waiting_commands: int = 10_000,
        max_waiting_bytes: int = 64 << 20,
        max_waiting_reads: int = 10_000,
        max_command_bytes: int = 8 << 20,
        transport_options: Options | None = None,
    ) -> None:
        """Open the data directory, and listen.

        `address`: "host:port", by which the other hosts know and reach this one; port 0 takes a free one.
        `data_dir`: where the logs are kept; None keeps everything in memory, for tests.
        `deployment_id`: hosts talk only to those of the same deployment.
        `listen_address`: where to listen, if that is something else than `address`.
        `tick_interval`: seconds, from 0.001 to 60; elections and heartbeats are counted in ticks.
        `tls`: certificates for mutual TLS between the hosts.
        `workers`: threads, from 1 to 64, that all state machines which may block share.
        `max_waiting_commands`, `max_waiting_bytes`: what may wait at each replica before it refuses with `SystemBusy`;
        `max_waiting_reads`: reads without an answer, likewise.
        `max_command_bytes`: the size of one command, at most.

        Raises `ConfigError` for an option out of its bounds and a data directory that cannot be used, and
        `TransportError` for an address that is none, or is taken. Nothing is left running then.
        """
        check_number("tick_interval", tick_interval, 0.001, 60.0)
        check_whole("workers", workers, 1, 64)
        check_whole("max_waiting_commands", max_waiting_commands, 1, 1 << 30)
        check_whole("max_waiting_bytes", max_waiting_bytes, 1, 1 << 40)
        check_whole("max_waiting_reads", max_waiting_reads, 1, 1 << 30)
        check_whole("max_command_bytes", max_command_bytes, 1, 32 << 20)
        _check_address(address, data_dir)
        self.tick_interval = tick_interval
        self.deployment_id = deployment_id
        self._max_command_bytes = max_command_bytes
        self._queue_bounds = {"max_commands": max_waiting_commands, "max_bytes": max_waiting_bytes}
        self._max_waiting_reads = max_waiting_reads
        self.counters: Counter[str] = Counter()
        """What was dropped, and why: messages for shards that are not here, and for nodes with a full inbox."""
        self._lock = threading.Condition()
        self._nodes: dict[int, tuple[NodeActor, Replica]] = {}
        self._starting: set[int] = set()
        """Shards whose replica is being started, or that are kept from being so."""
        self._ending: set[int] = set()
        """Shards whose replica has stopped, while its state machine may still be at work."""
        self._subscribers: list[Any] = []
        self._stopped = False

        self._transport = TcpTransport(
            address,
            deliver=self._deliver,
            unreachable=self._report_unreachable,
            deployment_id=deployment_id,
            listen_address=listen_address,
            tls=tls,
            streams=self._receive_stream,
            options=transport_options,
        )
        self._traffic = SnapshotTraffic(self._transport, self._node_of)
        self._undo: list[Callable[[], None]] = []
        try:
            self._open(data_dir, workers, address)
        except BaseException:
            self._close()
            raise

    def _open(self, data_dir: str | os.PathLike[str] | None, workers: int, address: str) -> None:
        self._store: LogStore
        self._snapshots: SnapshotStore
        self._directory: DataDir | None = None
        if data_dir is None:
            self._store, self._snapshots = MemoryLogStore(), MemorySnapshots()
        else:
            self._directory = DataDir.open(
                Path(data_dir), deployment_id=self.deployment_id, address=canonical(address)
            )
            try:
                self._snapshots = SnapshotFiles(self._directory.directory("snapshots"))
                self._store = LmdbLogStore(self._directory.directory("log"))
            except BaseException:
                self._directory.close()
                raise
        self._undo.append(self._close_store)
        self._left_behind = 0
        self._pool, self._background = WorkerPool(workers), WorkerPool(_BACKGROUND_WORKERS)
        self._undo.append(self._stop_workers)
        self._loop = TrioLoop(f"drakkar-{address}").start()
        self._undo.append(self._loop.stop)
        self._loop.call(self._listen, timeout=30)

    async def _listen(self) -> None:
        """Start the transport and the clock as tasks; raises what keeps it from listening."""
        listening: ActorFuture[str] = ActorFuture()

        class Started:
            def started(self, address: str = "") -> None:
                listening.set(address)

        def fail(error: BaseException) -> None:
            if not listening.try_fail(error):
                logger.critical("%r hears and tells nobody any more: restart it", self, exc_info=error)

        async def serve() -> None:
            try:
                await self._transport.serve(task_status=Started())
            except TransportError as error:
                fail(error)  # a port that is taken, say, is no crash

        self._loop.spawn(serve, name="transport", on_crash=fail)
        await listening
        self._loop.spawn(self._tick, name="ticks")

    # -- its life -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<NodeHost {self.address}>"

    def stop(self) -> None:
        """Stop all replicas, and let go of the port and the data directory. Stopping again does nothing.

        Takes a moment, and half a minute at most, where a disk or a state machine hangs. Raises `OutcomeUnknown` where
        one does: this process keeps the data directory then, since a write may come through yet. Raises
        `DeadlockError` in the host's own loop.
        """
        forbid_waiting(f"stop() of {self!r}", "call it in another thread")
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        self._close()

    def _close(self) -> None:
        """Undo what was opened, the last first; one failure does not keep the others from being undone."""
        failures = []
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                logger.exception("%r could not be stopped cleanly", self)
                failures.append(error)
        if failures:
            raise failures[0]

    def _stop_workers(self) -> None:
        self._left_behind = self._pool.stop() + self._background.stop()

    def _close_store(self) -> None:
        """Let the next process have the data directory only when this one surely writes to it no more."""
        self._store.close()
        if self._directory is None:
            return
        if self._left_behind:
            raise OutcomeUnknown(
                f"{self._left_behind} state machines of {self!r} still work, perhaps on its files: its data directory "
                "stays taken until this process ends"
            )
        self._directory.close()

    @property
    def loop(self) -> TrioLoop:
        """The loop on which the replicas live; `spawn` tasks that serve them there, which never block or compute."""
        return self._loop

    @property
    def address(self) -> str:
        """By which the other hosts know this one."""
        return self._transport.address

    @property
    def store_status(self) -> StoreStatus:
        """The figures of the log store."""
        return self._store.status

    def peers(self) -> dict[str, PeerStatus]:
        """How it stands with the other hosts, by address."""
        peers: dict[str, PeerStatus] = self._loop.call(self._transport.peers, timeout=10)
        return peers

    # -- replicas -----------------------------------------------------------------------------------------------

    def start_replica(
        self,
        state_machine: Callable[[], StateMachine],
        *,
        shard_id: int,
        replica_id: int,
        members: Mapping[int, str] | None = None,
        join: bool = False,
        role: State | None = None,
        config: RaftConfig | Mapping[str, Any] | None = None,
        handlers: HandlerTable | None = None,
    ) -> Replica:
        """Start, or start again, the replica of a shard on this host.

        `state_machine`: a `StateMachine` class, or any function that makes one.
        `members`: the shard's first voters, all of them and this one, by replica id: the same on every host. May be
        left out at a restart. `join`: enter a shard that exists, whose leader tells the members.
        `role`: `State.OBSERVER` or `State.WITNESS` for one that joins as such.
        `config`: a `RaftConfig`, or a mapping of its options that differ from the defaults. With a mapping, a host's own
        defaults hold (`HOST_DEFAULTS`): among them a snapshot each 10,000 entries, half of which stay in the log.
        `handlers`: a table of your own, made from `raft_handlers()`.

        Raises `ConfigError` where members, role or options contradict one another or what was recorded at the first
        start, `CorruptData` for a damaged log, and `HandlerTableError`.
        """
        options = _config(config, shard_id, replica_id, role)
        # What the caller got wrong is found before anything is recorded.
        machine = made(state_machine)
        if isinstance(machine, DiskStateMachine) and options.apply_unpersisted_limit:
            raise ConfigError(
                "apply_unpersisted_limit",
                options.apply_unpersisted_limit,
                "must be 0 for a state machine on disk",
            )
        if handlers is not None:
            handlers.check()
        self._reserve(shard_id)
        try:
            storage = self._stored(options, members or {}, type(machine).__name__, join=join)
            self._check_snapshot(options, storage)
            node = self._start_node(options, storage, machine, handlers)
            replica = Replica(node.actor_ref, node, max_command_bytes=self._max_command_bytes)
            with self._lock:
                self._nodes[shard_id] = (node, replica)
        finally:
            with self._lock:
                self._starting.discard(shard_id)
        watch(node.actor_ref, lambda died: self._bury(node, died))
        if options.wait_ready:
            replica.when_applied(storage.hard_state.commit, timeout=_LONGEST_REPLAY).get()
        return replica

    def _reserve(self, shard_id: int) -> None:
        with self._lock:
            if self._stopped:
                raise ReplicaStopped(f"{self!r} was stopped: make a new one")
            # One that was just stopped may still be at work, and its state machine must not be opened twice.
            self._lock.wait_for(lambda: not self._ends(shard_id), _LONGEST_END)
            if shard_id in self._nodes or shard_id in self._starting or shard_id in self._ending:
                raise ConfigError("shard_id", shard_id, f"runs already on {self!r}: stop that replica first")
            self._starting.add(shard_id)

    def _ends(self, shard_id: int) -> bool:
        found = self._nodes.get(shard_id)
        return shard_id in self._ending or (found is not None and found[0].actor_stopped.is_set())

    def _start_node(
        self, options: RaftConfig, storage: StoredLog, machine: StateMachine, handlers: HandlerTable | None
    ) -> NodeActor:
        # pykka's `start` returns a ref alone, and a ref's actor is found by asking it.
        ref = NodeActor.start(
            options,
            storage,
            machine,
            services=self,
            pool=self._pool,
            background=self._background,
            snapshots=self._snapshots.of(options.shard_id, options.replica_id),
            origin=secrets.randbits(62) | 1,
            proposals=lambda wake: ProposalQueue(wake, **self._queue_bounds),
            max_waiting_reads=self._max_waiting_reads,
            handlers=handlers,
            loop=self._loop,
        )
        node: NodeActor = ref.ask(GetActor(), timeout=30)  # type: ignore[assignment]
        return node

    def replica(self, shard_id: int) -> Replica:
        """Return the replica of a shard on this host. Raises `ConfigError` where there is none."""
        with self._lock:
            found = self._nodes.get(shard_id)
        if found is None:
            raise ConfigError("shard_id", shard_id, f"has no replica on {self!r}: start one first")
        return found[1]

    def _bury(self, node: NodeActor, died: ActorDied) -> None:
        shard, replica = node.raft.config.shard_id, node.raft.id
        with self._lock:
            self._nodes.pop(shard, None)
            self._ending.add(shard)
            self._lock.notify_all()
        node.over.add_done_callback(lambda _: self._forget(shard))
        self.announce(ReplicaEnded(shard, replica, died.reason))

    def _forget(self, shard: int) -> None:
        with self._lock:
            self._ending.discard(shard)
            self._lock.notify_all()

    def subscribe(self, ref: pykka.ActorRef[Any]) -> None:
        """Tell an actor of this host's events: see `events`. One that cannot take them is told no more."""
        with self._lock:
            self._subscribers = [*self._subscribers, ref]

    def remove_data(self, shard_id: int, replica_id: int) -> None:
        """Delete all that this host keeps of a replica that does not run, for good: its id is never used again here.

        For one that its shard has removed. One that is still a member is lost to it: remove it there first. Waits for
        the disk. Raises `ConfigError` where it runs, or where this host has no such replica.
        """
        self._reserve(shard_id)
        try:
            if (shard_id, replica_id) not in self._store.replicas():
                raise ConfigError("replica_id", replica_id, f"has no data of shard {shard_id} on {self!r}")
            # The record last: as long as it is there, this can be done again.
            self._snapshots.of(shard_id, replica_id).remove_all()
            self._store.remove(shard_id, replica_id)
        finally:
            with self._lock:
                self._starting.discard(shard_id)

    # -- the first start and the restart ------------------------------------------------------------------------

    def _stored(
        self, options: RaftConfig, members: Mapping[int, str], machine: str, *, join: bool
    ) -> StoredLog:
        shard, replica = options.shard_id, options.replica_id
        log = self._store.open(shard, replica)
        if log is None:
            if not join:
                self._check_alone(shard, replica)
            self._check_members(options, members, join=join)
            membership = Membership(voters=members)
            self._store.bootstrap(shard, replica, Bootstrap(membership, join=join, state_machine=machine))
            log = self._store.open(shard, replica)
            assert log is not None, "it was just made"
        else:
            _check_record(log.bootstrap, members, machine, replica, join=join)
        if not log.bootstrap.join and not log.last_index:
            self._write_first_entry(shard, replica, log.bootstrap.membership)
        return log

    def _check_snapshot(self, options: RaftConfig, log: StoredLog) -> None:
        """A file that is missing or cut short is better found before anything starts; the rest when it is loaded."""
        if log.snapshot and not log.snapshot.witness:
            files = self._snapshots.of(options.shard_id, options.replica_id)
            files.open(log.snapshot.payload.decode()).close()

    def _check_alone(self, shard: int, replica: int) -> None:
        """Two replicas on one machine would be lost together, so most likely the numbers are mixed up."""
        others = [other for held, other in self._store.replicas() if held == shard]
        if others:
            raise ConfigError(
                "replica_id",
                replica,
                f"this host's data directory holds replica {others[0]} of shard {shard}: start that or, if the shard "
                "has removed it, call remove_data first",
            )

    def _check_members(self, options: RaftConfig, members: Mapping[int, str], *, join: bool) -> None:
        replica = options.replica_id
        if join and members:
            raise ConfigError(
                "members", dict(members), "one that joins is told the members by the leader: leave them out"
            )
        if not join and not members:
            raise ConfigError(
                "members", {}, f"replica {replica} starts for the first time: name all members, or join=True"
            )
        if join:
            return
        if options.is_observer or options.is_witness:
            role = "OBSERVER" if options.is_observer else "WITNESS"
            raise ConfigError("role", role, "the first members are voters: start this one with join=True")
        if replica not in members:
            raise ConfigError(
                "members", dict(members), f"must contain replica {replica} itself, at {self.address}"
            )
        _check_addresses(members)
        if canonical(members[replica]) != canonical(self.address):
            raise ConfigError(
                "members", dict(members), f"replica {replica} is this host, whose address is {self.address}"
            )

    def _write_first_entry(self, shard: int, replica: int, membership: Membership) -> None:
        """The log begins with the first membership, the same on all hosts, so that who joins later learns it."""
        hard_state, run = initial_log(membership)
        written: pykka.Future[BaseException | None] = pykka.ThreadingFuture()
        self._store.save(AppendRequest(shard, replica, hard_state, [run], done=written.set))
        error = written.get(timeout=60)
        if error is not None:
            raise error

    # -- what the nodes and the transport need, in the loop ------------------------------------------------------

    def send(self, address: str, messages: Sequence[Message]) -> None:
        """For the nodes: send messages to another host, in the loop's thread."""
        self._transport.send(address, messages)

    def save(self, request: AppendRequest) -> None:
        """For the nodes: make it durable."""
        self._store.save(request)

    def record_snapshot(self, shard: int, replica: int, snapshot: Snapshot, done: Done | None = None) -> None:
        """For the nodes: remember a snapshot that was taken."""
        self._store.record_snapshot(shard, replica, snapshot, done)

    def compact(self, shard: int, replica: int, index: int) -> None:
        """For the nodes: give up the log up to `index`."""
        self._store.compact(shard, replica, index)

    def send_snapshot(self, address: str, message: Message, *, temporary: bool) -> None:
        """For the nodes: stream a snapshot to another host."""
        self._traffic.send(self._loop, address, message, temporary=temporary)

    def _receive_stream(self, address: str, header: bytes) -> StreamSink:
        return self._traffic.receive(address, header)

    def _node_of(self, shard: int) -> NodeActor | None:
        found = self._nodes.get(shard)
        return found[0] if found is not None else None

    def announce(self, event: object) -> None:
        """For the nodes: tell the subscribers."""
        for ref in self._subscribers:
            try:
                ref.tell(event)
            except (pykka.ActorDeadError, SystemBusy) as error:
                self.counters["events lost"] += 1
                logger.warning("%s is told no more events: %s", ref, error)
                with self._lock:
                    self._subscribers = [other for other in self._subscribers if other is not ref]

    def _deliver(self, address: str, messages: list[Message]) -> None:
        for message in messages:
            found = self._nodes.get(message.shard)
            if found is None:
                self.counters["messages for shards that are not here"] += 1
                continue
            if message.snapshot is not None and not message.snapshot.witness:
                self.counters["snapshots that came without a stream"] += 1
                continue
            node = found[0]
            if message.sender not in node.raft.membership.addresses:
                node.router.learn(message.sender, address)
            try:
                node.actor_ref.tell(message)
            except (SystemBusy, pykka.ActorDeadError):
                self.counters["messages for nodes that could not take them"] += 1

    def _report_unreachable(self, address: str) -> None:
        for node, _ in list(self._nodes.values()):
            for replica, known in node.raft.membership.addresses.items():
                if known == address:
                    self._tell(node, Message(MessageType.UNREACHABLE, sender=replica))

    async def _tick(self) -> None:
        """A stalled host does not make up for the ticks that it missed: it would elect before it has listened."""
        due = trio.current_time() + self.tick_interval
        while True:
            await trio.sleep_until(due)
            due = max(due + self.tick_interval, trio.current_time())
            for node, _ in list(self._nodes.values()):
                if not node.tick_waits:
                    node.tick_waits = self._tell(node, Message(MessageType.LOCAL_TICK))

    def _tell(self, node: NodeActor, message: Message) -> bool:
        try:
            node.actor_ref.tell(message)
        except SystemBusy:
            self.counters["messages for nodes that could not take them"] += 1
            return False
        except pykka.ActorDeadError:
            logger.debug("%s ended a moment ago", node)
            return False
        return True


def _config(
    config: RaftConfig | Mapping[str, Any] | None, shard_id: int, replica_id: int, role: State | None
) -> RaftConfig:
    if isinstance(config, RaftConfig):
        if (config.shard_id, config.replica_id) != (shard_id, replica_id):
            raise ConfigError(
                "config",
                (config.shard_id, config.replica_id),
                f"is for another replica than {(shard_id, replica_id)}",
            )
        if role is not None:
            raise ConfigError("role", role, "a RaftConfig says itself what the replica is: leave it out")
        _warn_of_idle_options(config)
        return config
    options = {**HOST_DEFAULTS, **(config or {})}
    if role is not None:
        if role not in (State.FOLLOWER, State.OBSERVER, State.WITNESS):
            raise ConfigError("role", role, "a replica starts as FOLLOWER, OBSERVER or WITNESS")
        options |= {"is_observer": role is State.OBSERVER, "is_witness": role is State.WITNESS}
    if options.get("is_witness") and "snapshot_entries" not in (config or {}):
        options["snapshot_entries"] = 0  # it has nothing to save
    options.setdefault("compaction_overhead", _half(options["snapshot_entries"]))
    try:
        made = RaftConfig(**options, shard_id=shard_id, replica_id=replica_id)
    except TypeError as error:
        raise ConfigError(
            "config", dict(options), f"has an option that RaftConfig does not know: {error}"
        ) from error
    _warn_of_idle_options(made)
    return made


def _half(entries: Any) -> Any:
    """What is no number is left for `RaftConfig` to refuse."""
    return entries // 2 if type(entries) is int else 0


def _warn_of_idle_options(config: RaftConfig) -> None:
    if config.notify_commit:
        logger.warning("notify_commit has no effect yet: a future is set when its command was applied")


def _check_record(
    record: Bootstrap, members: Mapping[int, str], machine: str, replica: int, *, join: bool
) -> None:
    """At a restart everything must agree with what was recorded at the first start, or be left out."""
    if record.join and members:
        raise ConfigError(
            "members", dict(members), f"replica {replica} joined its shard: leave the members out"
        )
    if join and not record.join:
        raise ConfigError("join", join, f"replica {replica} is one of the first members: leave it out")
    recorded = dict(record.membership.addresses)
    if members and dict(members) != recorded:
        raise ConfigError("members", dict(members), f"replica {replica} was first started with {recorded}")
    if record.state_machine != machine:
        raise ConfigError(
            "state_machine", machine, f"the log of replica {replica} was written for {record.state_machine!r}"
        )


def _check_addresses(members: Mapping[int, str]) -> None:
    addresses = set()
    for id_, address in members.items():
        if not is_whole(id_, 1, MAX_SIGNED):
            raise ConfigError(
                "members", dict(members), f"{id_!r} is no replica id, which is a whole number from 1 up"
            )
        addresses.add(canonical(address))
    if len(addresses) < len(members):
        raise ConfigError("members", dict(members), "two members have the same address")


def _check_address(address: str, data_dir: object) -> None:
    _, port = parse_address(address)
    if port == 0 and data_dir is not None:
        raise ConfigError(
            "address", address, "the others must find a host with a data directory again: name its port"
        )
