"""`NodeHost`: everything that the replicas of one machine share."""

import logging
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pykka
from drakkar.actors.host.bootstrap import check_snapshot, open_log
from drakkar.actors.host.options import check_groups, replica_config
from drakkar.actors.host.registry import ReplicaRegistry
from drakkar.actors.host.replica import Replica
from drakkar.actors.host.services import NodeInputs, NodeServices
from drakkar.actors.host.snapshot_traffic import SnapshotTraffic
from drakkar.actors.log.data_dir import DataDir
from drakkar.actors.log.store import LmdbLogStore, LogStore, MemoryLogStore, StoredLog, StoreStatus
from drakkar.actors.machine.state_machine import DiskStateMachine, StateMachine, make_machine
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.events import ReplicaEnded
from drakkar.actors.runtime.futures import ActorFuture, forbid_waiting
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorDied, watch
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import MemorySnapshots, SnapshotFiles, SnapshotStore
from drakkar.handlers.checks import check_number, check_whole
from drakkar.handlers.errors import ConfigError, OutcomeUnknown, TransportError
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.matrix import checked_handlers
from drakkar.handlers.raft.state import State
from drakkar.handlers.table import HandlerTable
from drakkar.transport.addresses import canonical, parse_address
from drakkar.transport.options import Options
from drakkar.transport.peer import PeerStatus
from drakkar.transport.streams import StreamSink
from drakkar.transport.tcp import TcpTransport
from drakkar.transport.tls import TlsConfig

__all__ = ["NodeHost"]

logger = logging.getLogger(__name__)

_BACKGROUND_WORKERS: Final = 2
"""Threads that write and load snapshots; others apply commands."""
LISTEN_TIMEOUT_S: Final = 30.0
REPLAY_TIMEOUT_S: Final = 3600.0
"""How long `wait_ready` waits."""


class NodeHost:
    """A host of replicas: the loop, transport, log store and workers that they share. A context manager.

        with NodeHost("10.0.0.1:7000", data_dir="data") as host:
            counter = host.start_replica(Counter, shard_id=1, replica_id=1, members={1: "10.0.0.1:7000", …})

    It starts when it is made. Its methods may be called from any thread; those that wait raise `DeadlockError` in its
    own loop.
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
        """Open the data directory and listen.

        `address`: "host:port", by which the other hosts know and reach this one; port 0 takes a free one.
        `data_dir`: where logs and snapshots are kept; None keeps everything in memory, for tests.
        `deployment_id`: hosts of different deployments refuse one another.
        `listen_address`: where to listen, if not at `address`.
        `tick_interval`: seconds, from 0.001 to 60; elections and heartbeats are counted in ticks.
        `tls`: certificates for mutual TLS between the hosts.
        `workers`: threads, from 1 to 64, that all state machines which may block share.
        `max_waiting_commands`, `max_waiting_bytes`: commands, and their bytes, that may wait at each replica; more fail
        with `SystemBusy`. `max_waiting_reads`: reads without an answer, likewise.
        `max_command_bytes`: the greatest size of one command, up to 32 MiB.
        `transport_options`: limits and times of the connections to other hosts.

        Raises `ConfigError` for an option out of its bounds and for a data directory that cannot be used, and
        `TransportError` for an address that is malformed or in use. Nothing is left running then.
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
        self._lane_bounds = {
            "max_waiting_commands": max_waiting_commands,
            "max_waiting_bytes": max_waiting_bytes,
            "max_waiting_reads": max_waiting_reads,
        }
        self._counters: Counter[str] = Counter()
        self._registry = ReplicaRegistry(self)
        self._inputs = NodeInputs(self._registry.nodes, self._counters)
        self._transport = TcpTransport(
            address,
            deliver=self._inputs.deliver,
            unreachable=self._inputs.report_unreachable,
            deployment_id=deployment_id,
            listen_address=listen_address,
            tls=tls,
            streams=self._receive_stream,
            options=transport_options,
        )
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
        self._traffic = SnapshotTraffic(self._transport, self._loop, self._registry.nodes)
        self._services = NodeServices(self._store, self._transport, self._traffic, self._counters)
        self._loop.call(self._listen, timeout=LISTEN_TIMEOUT_S)

    async def _listen(self) -> None:
        """Start the transport and the clock as tasks. Raises `TransportError` if it cannot listen."""
        listening: ActorFuture[str] = ActorFuture()

        class Started:
            def started(self, address: str = "") -> None:
                listening.set(address)

        def fail(error: BaseException) -> None:
            if not listening.try_fail(error):
                logger.critical("%r cannot reach other hosts any more: restart it", self, exc_info=error)

        async def serve() -> None:
            try:
                await self._transport.serve(task_status=Started())
            except TransportError as error:
                fail(error)  # a port that is taken, say, is no crash

        self._loop.spawn(serve, name="transport", on_crash=fail)
        await listening
        self._loop.spawn(self._inputs.tick, self.tick_interval, name="ticks")

    def _receive_stream(self, sender: str, header: bytes) -> StreamSink:
        return self._traffic.receive(sender, header)  # made after the transport, which it uses

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
        """Stop all replicas, and release the port and the data directory. Stopping again does nothing.

        Takes a moment; half a minute at most if a disk or a state machine hangs. Raises `OutcomeUnknown` then, and this
        process keeps the data directory, since a write may still reach it. Raises `DeadlockError` in the host's own
        loop.
        """
        forbid_waiting(f"stop() of {self!r}", "call it in another thread")
        if self._registry.close():
            self._close()

    def _close(self) -> None:
        """Undo what was opened, the last first. After a failure, go on with the others, and raise the first error."""
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
        """Release the data directory only if this process surely writes to it no more."""
        self._store.close()
        if self._directory is None:
            return
        if self._left_behind:
            raise OutcomeUnknown(
                f"{self._left_behind} state machines of {self!r} are still at work, perhaps on its files: its data "
                "directory stays locked until this process ends"
            )
        self._directory.close()

    @property
    def loop(self) -> TrioLoop:
        """The loop on which the replicas live; `spawn` tasks that serve them there, which never block or compute."""
        return self._loop

    @property
    def address(self) -> str:
        """The "host:port" by which other hosts know this one."""
        return self._transport.address

    @property
    def counters(self) -> Counter[str]:
        """What this host has counted since its start, by name; a copy. From any thread.

        Messages and events that were dropped, by reason, such as `events lost`; and what the transport counts, such as
        `transport: dropped` and `transport: connect failures` (see `drakkar.transport.options.Counters`).
        """
        counts = Counter(dict(self._counters))  # `dict` copies in one step, while the loop counts on
        for name, count in asdict(self._transport.counters).items():
            counts[f"transport: {name.replace('_', ' ')}"] = count
        return counts

    @property
    def store_status(self) -> StoreStatus:
        """Sizes, counts and health of the log store."""
        return self._store.status

    def peers(self) -> dict[str, PeerStatus]:
        """The state of the connections to other hosts, by address. Asks the loop."""
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
        groups: Mapping[int, int] | None = None,
        handlers: HandlerTable | None = None,
    ) -> Replica:
        """Start, or start again, the replica of a shard on this host.

        `state_machine`: a `StateMachine` class, or a function that makes one.
        `members`: the addresses of all first voters of the shard, by replica id; the same on every host. May be left
        out at a restart. `join`: join a shard that exists; its leader tells the members.
        `role`: `State.OBSERVER` or `State.WITNESS` for a replica that joins as such.
        `config`: a mapping of options of `RaftConfig` that differ from a host's defaults (docs/embedding.md), among
        which is a snapshot each 10,000 entries. Or a whole `RaftConfig`, which is taken as it is.
        `groups`: with the option `group_commit`, where the replicas stand, as in `Replica.assign_groups`.
        `handlers`: a table of your own, made from `raft_handlers()`.

        Waits for the disk. Raises `ConfigError` if members, role or options contradict one another or what was recorded
        at the first start, or if the shard runs here already; `CorruptData` for a damaged log or snapshot;
        `StorageFailed`; `HandlerTableError` for a table with mistakes; `ReplicaStopped` if the host was stopped.
        """
        forbid_waiting(f"start_replica() of {self!r}", "call it in another thread")
        options = replica_config(config, shard_id, replica_id, role)
        members, groups = members or {}, groups or {}
        check_groups(options, groups, members)
        # Mistakes of the caller are found before anything is recorded.
        machine = make_machine(state_machine)
        if isinstance(machine, DiskStateMachine) and options.apply_unpersisted_limit:
            raise ConfigError(
                "apply_unpersisted_limit",
                options.apply_unpersisted_limit,
                "must be 0 for a state machine on disk",
            )
        if handlers is not None:
            checked_handlers(handlers)
        with self._registry.reserve(shard_id):
            log = open_log(
                self._store,
                options,
                address=self.address,
                members=members,
                join=join,
                machine=type(machine).__name__,
            )
            node = self._start_node(options, log, machine, groups, handlers)
            replica = Replica(node.actor_ref, node, max_command_bytes=self._max_command_bytes)
            self._registry.add(shard_id, node, replica)
        watch(node.actor_ref, lambda died: self._on_replica_stopped(node, died))
        if options.wait_ready:
            replica.when_applied(log.hard_state.commit, timeout=REPLAY_TIMEOUT_S).get()
        return replica

    def _start_node(
        self,
        options: RaftConfig,
        log: StoredLog,
        machine: StateMachine,
        groups: Mapping[int, int],
        handlers: HandlerTable | None,
    ) -> NodeActor:
        snapshots = self._snapshots.of(options.shard_id, options.replica_id)
        check_snapshot(log, snapshots)
        return NodeActor.start_actor(
            options,
            log,
            machine,
            services=self._services,
            pool=self._pool,
            background=self._background,
            snapshots=snapshots,
            origin=secrets.randbits(62) | 1,
            **self._lane_bounds,
            groups=groups,
            handlers=handlers,
            loop=self._loop,
        )

    def _on_replica_stopped(self, node: NodeActor, died: ActorDied) -> None:
        shard_id, replica_id = node.raft.config.shard_id, node.raft.id
        self._registry.on_node_stopped(shard_id)
        node.over.add_done_callback(lambda _: self._registry.on_ended(shard_id))
        self._services.announce(ReplicaEnded(shard_id, replica_id, died.reason))

    def replica(self, shard_id: int) -> Replica:
        """Return the replica of a shard on this host. Raises `ConfigError` where none runs."""
        return self._registry.replica(shard_id)

    def subscribe(self, ref: pykka.ActorRef[Any]) -> None:
        """Tell an actor of this host's events: `LeaderChanged`, `MembershipChanged`, `ReplicaEnded`, `ReplicaRemoved`.

        An actor that has ended, or whose inbox is full, is told no more.
        """
        self._services.subscribe(ref)

    def remove_data(self, shard_id: int, replica_id: int) -> None:
        """Delete, for good, all that this host keeps of a stopped replica. Its id can never be used again here.

        For a replica that its shard has removed. If it is still a member, the shard loses it: remove it there first.
        Waits for the disk. Raises `ConfigError` if the replica runs, or if this host has none of that id.
        """
        forbid_waiting(f"remove_data() of {self!r}", "call it in another thread")
        with self._registry.reserve(shard_id):
            if (shard_id, replica_id) not in self._store.replicas():
                raise ConfigError("replica_id", replica_id, f"has no data of shard {shard_id} on {self!r}")
            # The record goes last: until then, this can be repeated.
            self._snapshots.of(shard_id, replica_id).remove_all()
            self._store.remove(shard_id, replica_id)


def _check_address(address: str, data_dir: object) -> None:
    _, port = parse_address(address)
    if port == 0 and data_dir is not None:
        raise ConfigError(
            "address", address, "name a port: other hosts must find this one again after a restart"
        )
