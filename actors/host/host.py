"""`NodeHost`: everything that the replicas of one machine share."""

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from types import NoneType, TracebackType
from typing import Any, Final, Self

import pykka
import trio
from drakkar.actors.host.bootstrap import Logs, find_logs, founding_told
from drakkar.actors.host.commit_timer import CommitTimer
from drakkar.actors.host.file_threads import FileThreads
from drakkar.actors.host.flush_watch import FlushWatch
from drakkar.actors.host.handover import HAND_OVER_TIMEOUT_S, hand_over
from drakkar.actors.host.hang_watch import HangWatch
from drakkar.actors.host.known_runs import KnownRuns
from drakkar.actors.host.member_addresses import MemberAddresses
from drakkar.actors.host.metrics import Metrics, Sources
from drakkar.actors.host.moves import Moves
from drakkar.actors.host.options import InMemory
from drakkar.actors.host.registry import ReplicaRegistry
from drakkar.actors.host.replica import Replica
from drakkar.actors.host.services import NodeInputs, NodeServices
from drakkar.actors.host.snapshot_room import SnapshotRoom
from drakkar.actors.host.snapshot_traffic import SnapshotTraffic
from drakkar.actors.host.specs import ReplicaSpec, Start, check_specs, naming
from drakkar.actors.host.store_asker import StoreAsker
from drakkar.actors.host.subscribers import Subscriber
from drakkar.actors.host.table_actors import TableActors
from drakkar.actors.log.data_dir import LOG, SNAPSHOTS, DataDir
from drakkar.actors.log.driver import LoopDriver
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.segments import RESERVE_BYTES
from drakkar.actors.log.store import LogStore, StoredLog, StoreStatus, log_in_memory
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.names.directory import MAX_LISTED, Directory, Owner
from drakkar.actors.names.registered import Names
from drakkar.actors.names.singletons import Singleton, Singletons
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.events import MembershipChanged, ReplicaEnded
from drakkar.actors.node.proposed import MAX_COMMAND_BYTES
from drakkar.actors.remote.calls import Calls
from drakkar.actors.runtime.actor import launch
from drakkar.actors.runtime.forks import here
from drakkar.actors.runtime.futures import ActorFuture, forbid_waiting
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorDied, watch
from drakkar.actors.runtime.workers import WORKER_HANG_S, WorkerPool
from drakkar.actors.snapshots.store import MemorySnapshots, SnapshotFiles, SnapshotStore
from drakkar.handlers.checks import MAX_SIGNED, check_number, check_type, check_whole
from drakkar.handlers.errors import ConfigError, LoopError, OutcomeUnknown, TransportError
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.lives import home_number
from drakkar.handlers.raft.log_memory import DEFAULT_LOG_MEMORY_BYTES, LogMemory
from drakkar.handlers.raft.state import State
from drakkar.handlers.table import HandlerTable
from drakkar.transport.addresses import canonical, parse_address
from drakkar.transport.hello import Run
from drakkar.transport.options import Options
from drakkar.transport.peer import PeerStatus
from drakkar.transport.streams import StreamSink
from drakkar.transport.tcp import TcpTransport
from drakkar.transport.tls import TlsConfig

__all__ = ["NodeHost"]

_BACKGROUND_WORKERS: Final = 2
"""Threads that write and load snapshots; others apply commands."""
_BACKGROUND_HANG_S: Final = 30.0
"""A snapshot may be large: seconds after which such a thread counts as hanging, if it has not used the processor."""
NODES_AT_ONCE: Final = 8
"""Nodes that are made before others have a turn on the loop: one takes some 0.3 ms."""
LISTEN_TIMEOUT_S: Final = 30.0
SINGLETONS_TIMEOUT_S: Final = 1.0
"""How long a host that stops waits for its singletons, before it hands over."""
TABLE_ACTORS_TIMEOUT_S: Final = 1.0
"""How long it waits for its table actors, so that their peers hear that they stop."""
LOOP_STOP_TIMEOUT_S: Final = 10.0
REPLAY_TIMEOUT_S: Final = 3600.0
"""How long `wait_ready` waits."""


class NodeHost:
    """A host of replicas: the loop, transport, log store and workers that they share. A context manager.

        with NodeHost("10.0.0.1:7000", data_dir="data") as host:
            counter = host.start_replica(Counter, shard_id=1, replica_id=1, members={1: "10.0.0.1:7000", …})

    It starts when it is made. Its methods may be called from any thread; those that wait raise `DeadlockError` in its
    own loop. All of them raise `ForkedError` in a process that was forked from the one that made the host: it runs there,
    and its port, directory and connections are let go in the child, which may make hosts of its own.
    """

    def __init__(
        self,
        address: str,
        data_dir: str | os.PathLike[str] | InMemory | None = None,
        *,
        deployment_id: str = "default",
        listen_address: str | None = None,
        tick_interval: float = 0.1,
        tls: TlsConfig | None = None,
        workers: int = 4,
        max_workers: int = 64,
        max_waiting_commands: int = 10_000,
        max_waiting_bytes: int = 64 << 20,
        max_waiting_reads: int = 10_000,
        max_command_bytes: int = 8 << 20,
        log_memory_bytes: int = DEFAULT_LOG_MEMORY_BYTES,
        transport_options: Options | None = None,
    ) -> None:
        """Open the data directory and listen.

        `address`: "host:port", by which the other hosts know and reach this one; port 0 takes a free one.
        `data_dir`: where logs and snapshots are kept. `IN_MEMORY` keeps everything in memory, for tests: a restart
        forgets acknowledged writes, and votes. None does the same, with a warning when a replica starts that votes.
        `deployment_id`: hosts of different deployments refuse one another.
        `listen_address`: where to listen, if not at `address`.
        `tick_interval`: seconds, from 0.001 to 60; elections and heartbeats are counted in ticks.
        `tls`: certificates for mutual TLS between the hosts.
        `workers`: threads, from 1 to 64, that all state machines which may block share.
        `max_workers`: threads, up to 1,024, that there may be with those whose state machines hang: others take their place.
        `max_waiting_commands`: commands that may wait at each replica; more fail with `SystemBusy`.
        `max_waiting_bytes`: bytes of these commands, likewise. As many bytes of entries from other replicas may
        wait as well; more are dropped, and sent again later.
        `max_waiting_reads`: reads without an answer at each replica; more fail with `SystemBusy`.
        `max_command_bytes`: the greatest size of one command, up to 32 MiB; the same on all hosts, since a leader refuses larger
        ones of the others. What a command is compressed to does not count.
        `log_memory_bytes`: how much memory the logs of all replicas share, 256 MiB by default. They keep
        recent entries in it, for replicas that lag a little; older ones are read from the disk. What is not
        applied or not on disk yet cannot be dropped, and counts.
        `transport_options`: limits and times of the connections to other hosts.

        Raises `ConfigError` for an option out of its bounds and for a data directory that cannot be used, and
        `TransportError` for an address that is malformed or in use. Nothing is left running then.
        """
        check_number("tick_interval", tick_interval, 0.001, 60.0)
        check_whole("workers", workers, 1, 64)
        check_whole("max_workers", max_workers, workers, 1024)
        check_whole("max_waiting_commands", max_waiting_commands, 1, 1 << 30)
        check_whole("max_waiting_bytes", max_waiting_bytes, 1, 1 << 40)
        check_whole("max_waiting_reads", max_waiting_reads, 1, 1 << 30)
        check_whole("max_command_bytes", max_command_bytes, 1, MAX_COMMAND_BYTES)
        check_type("deployment_id", deployment_id, str, "a text")
        check_type("tls", tls, (TlsConfig, NoneType), "a TlsConfig, or None")
        check_type(
            "transport_options", transport_options, (Options, NoneType), "Options of the transport, or None"
        )
        self._log_memory = LogMemory(log_memory_bytes)
        check_type("data_dir", data_dir, (str, os.PathLike, InMemory, NoneType), "a path, IN_MEMORY, or None")
        _check_address(address, data_dir)
        self._is_to_warn = data_dir is None
        """Voters have their logs in memory, which was perhaps not meant."""
        self.tick_interval = tick_interval
        self.deployment_id = deployment_id
        self._max_command_bytes = max_command_bytes
        self._lane_bounds: dict[str, Any] = {
            "max_waiting_commands": max_waiting_commands,
            "max_waiting_bytes": max_waiting_bytes,
            "max_waiting_reads": max_waiting_reads,
        }
        self._counters: Counter[str] = Counter()
        self._host_lines = HostLines(address)
        self._lines = self._host_lines.of("drakkar.actors.host")
        self._registry = ReplicaRegistry(self)
        self._inputs = NodeInputs(
            self._registry.nodes, self._counters, self._charge, certified=tls is not None
        )
        self._loop = TrioLoop(f"drakkar-{address}", lines=self._host_lines.of("drakkar.actors.runtime"))
        self._transport = TcpTransport(
            address,
            deliver=self._inputs.deliver,
            greeted=self._on_greeted,
            parted=self._on_parted,
            introduced=self._inputs.hear_introduction,
            introduction=self._inputs.introduction,
            unreachable=self._on_unreachable,
            drained=self._inputs.report_drained,
            handed_back=self._inputs.hand_back,
            host_changed=self._announce,
            gone=self._inputs.report_gone,
            at_round_end=self._loop.at_round_end,
            run_now=self._loop.run_now,
            deployment_id=deployment_id,
            listen_address=listen_address,
            tls=tls,
            streams=self._receive_stream,
            called=self._on_called,
            calls_handed_back=self._on_calls_handed_back,
            options=transport_options,
            log=self._host_lines.of("drakkar.transport"),
        )
        self._process = here.process
        self._undo: list[Callable[[], None]] = []
        self._stopping = threading.Lock()
        self._stopping_in = 0
        """The thread that stops it; 0: none does."""
        try:
            self._open(data_dir, workers, max_workers, address)
        except BaseException:
            self._close()
            raise

    def _open(
        self, data_dir: str | os.PathLike[str] | InMemory | None, workers: int, max_workers: int, address: str
    ) -> None:
        self._store: LogStore
        self._snapshots: SnapshotStore
        self._directory: DataDir | None = None
        if data_dir is None or isinstance(data_dir, InMemory):
            self._store, self._snapshots = log_in_memory(), MemorySnapshots()
        else:
            self._directory = directory = DataDir.open(
                data_dir, deployment_id=self.deployment_id, address=canonical(address)
            )
            try:
                self._snapshots = SnapshotFiles(
                    self._directory.part(SNAPSHOTS), lines=self._host_lines.of("drakkar.actors.snapshots")
                )
                files = DiskFiles(self._directory.part(LOG))
                self._store = LogStore(
                    files,
                    self._directory.host_id,
                    create=self._directory.new,
                    lines=self._host_lines.of("drakkar.actors.log"),
                )
                self._directory.complete()
            except BaseException:
                self._directory.close()
                raise
            self._transport.identify(
                directory.host_id,
                Run(*directory.run),
                directory.known_runs,
                KnownRuns(directory.path, self._loop, self._lines).save,
            )
        self._file_threads = FileThreads()
        self._undo.append(self._close_store)
        self._left_behind = 0
        self._loop_ended = True
        self._pools: list[WorkerPool] = []
        self._undo.append(self._stop_workers)
        self._pool = self._new_pool(workers, max_workers, WORKER_HANG_S)
        most = max(max_workers, _BACKGROUND_WORKERS)
        self._background = self._new_pool(_BACKGROUND_WORKERS, most, _BACKGROUND_HANG_S)
        self._loop.start()
        self._undo.append(self._stop_loop)
        self._began = time.time_ns() // 1000
        self._open_calls()
        self._asker = StoreAsker(self._loop)
        self._flush_watch = FlushWatch(self._store, self._lines)
        self._traffic = SnapshotTraffic(
            self._transport,
            self._loop,
            self._registry.nodes,
            self._file_threads,
            SnapshotRoom(self._snapshots.free_bytes, RESERVE_BYTES),
            self._lines,
        )
        self._commit_timer = CommitTimer(self._inputs.tell_commit_due)
        self._services = NodeServices(
            self._store,
            self._transport,
            self._traffic,
            self._commit_timer,
            self._counters,
            self._lines,
        )
        self._metrics = Metrics(
            Sources(
                self._counters,
                self._loop,
                self._store,
                self._transport,
                self._log_memory,
                self._host_lines,
                self._pool,
                self._background,
                self._traffic,
                self._calls,
                self._table_actors,
            )
        )
        self._member_addresses = MemberAddresses(self._transport.members, self._transport.moved)
        self._services.subscribers.add(self._member_addresses.note)
        if self._directory is not None:
            self._services.subscribers.add(
                Moves(directory.path, directory.address, self._loop, self._lines).note
            )
            self._start_log(files)
        elif self._is_to_warn:
            self._services.subscribers.add(self._warn_of_promotion)
        self._loop.call(self._listen, timeout=LISTEN_TIMEOUT_S)
        self._undo.append(self._hand_over)
        self._undo.append(self._end_singletons)
        self._lines.info(
            "started: deployment %s, data %s",
            self.deployment_id,
            "in memory" if self._directory is None else data_dir,
        )

    def _open_calls(self) -> None:
        """Make what reaches actors of other hosts, and is reached by them."""
        self._calls = Calls(
            self._transport, self._loop, self._counters, self._host_lines.of("drakkar.actors.remote")
        )
        self._undo.append(self._calls.close)
        self._table_actors = TableActors(
            self._calls,
            self._loop,
            address=lambda: self.address,
            charge=self._charge,
            announce=self._announce,
        )
        self._undo.append(self._end_table_actors)
        self._names = Names(
            address=lambda: self.address,
            owner=self._owner,
            calls=self._calls,
            loop=self._loop,
            lines=self._host_lines.of("drakkar.actors.names"),
        )
        self._singletons = Singletons(
            self,
            self._calls,
            self._loop,
            announce=self._announce,
            gone=self._transport.is_gone,
        )

    def _new_pool(self, size: int, max_size: int, hang_s: float) -> WorkerPool:
        pool = WorkerPool(size, max_size=max_size, hang_s=hang_s, lines=self._loop.lines)
        self._pools.append(pool)
        return pool

    def _start_log(self, files: DiskFiles) -> None:
        loop = self._loop
        driver = LoopDriver(
            run_soon=loop.run_soon,
            run_now=loop.run_now,
            at_round_end=loop.at_round_end,
            lines=self._host_lines.of("drakkar.actors.log"),
        )
        driver.choose(files, self._store.active_file)
        loop.call(self._store.start, driver)
        # Without it no flush would be reported: what waits must fail.
        loop.spawn(driver.serve, name="log", on_crash=self._store.fail)

    async def _listen(self) -> None:
        """Start the transport and the clock as tasks. Raises `TransportError` if it cannot listen."""
        listening: ActorFuture[str] = ActorFuture()

        class Started:
            def started(self, address: str = "") -> None:
                listening.set(address)

        def fail(error: BaseException) -> None:
            if not listening.try_fail(error):
                self._lines.critical("cannot reach other hosts any more: restart it", exc_info=error)

        async def serve() -> None:
            try:
                await self._transport.serve(task_status=Started())
            except TransportError as error:
                fail(error)  # a port that is taken, say, is no crash

        self._loop.spawn(serve, name="transport", on_crash=fail)
        await listening
        self._host_lines.host = self.address  # port 0 has become a free one
        self._loop.spawn(self._inputs.tick, self.tick_interval, self._tick, name="ticks")
        self._loop.spawn(self._commit_timer.run, name="commit notices")
        self._loop.spawn(HangWatch(self._pools, self._registry.nodes).run, name="workers")

    def _tick(self) -> None:
        self._store.tick()
        self._asker.tick(self._store.no_space)
        self._transport.silence(self._flush_watch.tick())
        self._transport.tick()
        self._calls.tick()

    # What the transport calls, which is made before what is called.

    def _charge(self, address: str, count: int) -> None:
        self._transport.charge(address, count)

    def _on_unreachable(self, address: str) -> None:
        self._inputs.report_unreachable(address)
        self._calls.unreachable(address)

    def _on_greeted(self, address: str, host_id: str) -> None:
        self._inputs.greet(address, host_id)
        self._calls.greeted(address)

    def _on_parted(self, address: str, last: bool) -> None:
        self._inputs.forget(address)
        if last:  # else the host has another connection by now, under another spelling of its address
            self._calls.parted(address)

    def _on_called(self, address: str, records: list[list[Any]]) -> None:
        self._calls.called(address, records)

    def _on_calls_handed_back(self, address: str, records: list[bytes], why: TransportError) -> None:
        self._calls.handed_back(address, records, why)

    def _announce(self, event: object) -> None:
        self._services.announce(event)

    def _receive_stream(self, sender: str, header: bytes, member: bool) -> StreamSink:
        return self._traffic.receive(sender, header, member=member)

    # -- its life -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is here.process:  # a forked child that leaves the block has nothing to stop
            self.stop()

    def __repr__(self) -> str:
        return f"<NodeHost {self.address}>"

    def stop(self) -> None:
        """Stop all replicas, and release the port and the data directory. Stopping again does nothing.

        Replicas that lead first hand over to voters that are connected and up to date, all of them within a second, so
        that a host that is restarted costs its shards milliseconds, and no election. Where there is no such voter, nothing
        is waited for. Another thread that stops the host meanwhile waits for the end.

        A snapshot that is being sent or received is given up. Where its file hangs, its thread is left behind after three
        seconds, and a warning says so.

        Takes a moment; half a minute at most if a disk, a state machine or a handler on the loop hangs. Raises
        `OutcomeUnknown` then, and this process keeps the data directory, since a write may still reach it. Raises
        `DeadlockError` in the host's own loop, and in a state machine of it.
        """
        self._process.check(self)
        forbid_waiting(f"stop() of {self!r}", "call it in another thread")
        for pool in self._pools:
            pool.forbid_waiting(f"stop() of {self!r}")
        self._registry.close()
        if self._stopping_in == threading.get_ident():
            return  # by a signal handler, say, that has interrupted the call which stops it
        with self._stopping:
            self._stopping_in = threading.get_ident()
            try:
                if self._undo:
                    self._close()
                    self._lines.info("stopped")
            finally:
                self._stopping_in = 0

    def _close(self) -> None:
        """Undo what was opened, the last first. After a failure, go on with the others, and raise the first error.

        What a KeyboardInterrupt cuts short is undone when it is called again.
        """
        failures = []
        while self._undo:
            try:
                self._undo[-1]()
            except Exception as error:  # noqa: BLE001  # logged, and raised below
                self._lines.exception("could not be stopped cleanly")
                failures.append(error)
            self._undo.pop()
        if failures:
            raise failures[0]

    def _end_singletons(self) -> None:
        if not self._singletons.leave(timeout=SINGLETONS_TIMEOUT_S):
            self._lines.warning(
                "stops, though singletons had not ended within %s s: see their fencing numbers",
                SINGLETONS_TIMEOUT_S,
            )

    def _end_table_actors(self) -> None:
        left = self._table_actors.stop(timeout=TABLE_ACTORS_TIMEOUT_S)
        if left:
            self._lines.warning(
                "stops, though %d of its table actors had not ended within %s s: %s",
                len(left),
                TABLE_ACTORS_TIMEOUT_S,
                ", ".join(left[:10]),
            )

    def _owner(self) -> Owner:
        """Which run of which host this is, for directories. One without a data directory has no other id than its address."""
        count, nonce = self._transport.start
        if self._directory is not None:
            return Owner(self._transport.host_id, count, nonce)
        return Owner(self.address, self._began, nonce)

    def _hand_over(self) -> None:
        left = hand_over(self._loop, self._registry.nodes.values())
        if left:
            self._lines.warning(
                "stops, though %d of its leaders had not handed over within %s s: their shards may need an election",
                left,
                HAND_OVER_TIMEOUT_S,
            )

    def _stop_loop(self) -> None:
        with suppress(LoopError):  # it has crashed
            self._loop.run_soon(self._file_threads.stop)
        try:
            self._loop.stop(LOOP_STOP_TIMEOUT_S)
        except pykka.Timeout as error:
            self._loop_ended = False
            for node in list(self._registry.nodes.values()):
                node.abandon(f"{node} was stopped with its host, whose loop hangs: {error}")
            raise OutcomeUnknown(
                f"{self!r} has not ended: {error}. Its log stays open, and its data directory locked, until this process ends"
            ) from error

    def _stop_workers(self) -> None:
        self._left_behind = sum(pool.stop() for pool in self._pools)
        if self._left_behind:
            self._lines.error(
                "the state machines of shards %s have not returned",
                ", ".join(map(str, self._registry.ending())),
            )

    def _close_store(self) -> None:
        """Release the data directory only if this process surely writes to it no more."""
        if not self._loop_ended:
            return  # the log is the loop's
        self._store.close()
        if self._directory is None:
            return
        if self._left_behind:
            raise OutcomeUnknown(
                f"{self._left_behind} state machines of {self!r} are still at work, perhaps on its files: its data "
                "directory stays locked until this process ends"
            )
        unlocked = self._file_threads.when_written(self._directory.close)
        left = self._file_threads.left_behind()
        if left:
            self._lines.warning(
                "stops, and leaves %d threads behind, whose files hang: %s%s",
                len(left),
                ", ".join(left),
                ""
                if unlocked
                else "; its data directory stays locked until they have ended, or this process has",
            )

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
        self._process.check(self)
        counts = Counter(dict(self._counters))  # `dict` copies in one step, while the loop counts on
        for name, count in asdict(self._transport.counters).items():
            counts[f"transport: {name.replace('_', ' ')}"] = count
        for name, count in dict(self._calls.unknown_fields).items():
            counts[f"unknown fields of {name}"] = count
        return counts

    def metrics(self, shard_id: int | None = None) -> dict[str, float]:
        """Return all figures of this host by name, for monitoring; docs/metrics.md lists them.

        Those of replicas are sums over all that run here or have ended since the start of the host. With `shard_id`, only
        those of that shard's replica, since its start; raises `ConfigError` where none runs.

        From any thread, the host's loop too, and after `stop`; never waits. The values are whole numbers, or seconds as
        floats. Each is of the moment in which it was read, so sums may differ by what happened between two of them. Costs about
        20 µs a replica.
        """
        self._process.check(self)
        if shard_id is None:
            return self._metrics.all()
        check_whole("shard_id", shard_id, 0, MAX_SIGNED)
        figures = self._metrics.of_shard(shard_id)
        if figures is None:
            raise ConfigError("shard_id", shard_id, f"has no replica on {self!r}: start one first")
        return figures

    @property
    def store_status(self) -> StoreStatus:
        """Sizes, counts and health of the log store."""
        self._process.check(self)
        return self._store.status

    @property
    def log_memory(self) -> int:
        """Bytes that the logs of all replicas take in memory now. From any thread.

        What they keep encoded, and what they have read again and keep for a moment, counts too.
        """
        self._process.check(self)
        return self._log_memory.held

    def peers(self) -> dict[str, PeerStatus]:
        """The state of other hosts and of the connections to them, by address. Asks the loop.

        `state` says whether a host is alive, suspect or dead, as far as heartbeats tell, and `run` which start of it was heard last.
        """
        peers: dict[str, PeerStatus] = self._loop.call(self._transport.peers, timeout=10)
        return peers

    def reload_tls(self, tls: TlsConfig | None = None) -> None:
        """Read the files of the certificates again, or use those of another `TlsConfig`. New connections use them at once.

        Where they trust others than before (`ca`, `revoked`, `allowed`, `names`), all connections are closed and made anew.
        Changed files are taken without this too, within seconds.

        Raises `ConfigError` for files that cannot be used, and then keeps those that it has; also where the host was made
        without TLS. Raises `DeadlockError` in the host's own loop.
        """
        self._process.check(self)
        forbid_waiting(f"reload_tls() of {self!r}", "call it in another thread")
        check_type("tls", tls, (TlsConfig, NoneType), "a TlsConfig, or None")
        transport, replaced = self._transport, False
        while not replaced:  # again, where others were put in place while these were read: those may be newer
            used = transport.credentials
            credentials = (tls or used.config).load()
            replaced = self._loop.call(transport.use_certificates, credentials, used, timeout=10)

    # -- actors -------------------------------------------------------------------------------------------------

    def publish(
        self,
        name: str,
        ref: pykka.ActorRef[Any],
        *,
        proxy: bool | Iterable[str] = False,
        acl: Iterable[str] | None = None,
    ) -> Callable[[], bool]:
        """Let actors of other hosts reach an actor of this process under a name, until it ends. From any thread.

        `ref`: of any pykka actor: a `ThreadingActor`, a `TrioActor`, a `TableActor`.
        `proxy`: True lets others call its public methods, and read and set its public attributes, as there are now; a list of
        names, those alone. Without it they can only `tell` and `ask`.
        `acl`: names in certificates; only a host that has shown one with such a name reaches the actor. Without it each host
        that can connect does.

        The same actor may have up to 100 names; a host may do what those allow together whose `acl` lets it in, however it got its
        reference. Under a name that it has already the actor is reached by `proxy` and `acl` as they are given now. Another actor
        takes a name over when the one before has ended.

        Returns a function that takes the name away again, if it is this actor's still: see `unpublish`.
        Raises `NameTaken` where another actor has the name and lives, `ConfigError` for a name that is not 1 to 200
        printable characters, for an actor that has ended, and for an `acl` where the host has no TLS, `SystemBusy` where there are
        too many names, and `HostGone` when this host has stopped.
        """
        self._process.check(self)
        return self._calls.publish(name, ref, proxy=proxy, acl=acl)

    def unpublish(self, name: str) -> bool:
        """Take a name away; return whether it was there. From any thread.

        With the last name all references to the actor are of no use any more, but for those in messages, and in directories, that were
        given out when it had no name.
        """
        self._process.check(self)
        return self._calls.unpublish(name)

    @property
    def published(self) -> dict[str, pykka.ActorRef[Any]]:
        """The actors that others reach here, by name; a copy. From any thread."""
        self._process.check(self)
        return self._calls.published

    def remote(self, address: str, name: str, *, block: bool = True, timeout: float | None = None) -> Any:
        """Return a reference to the actor that is published under a name by the host at an address: a `RemoteRef`.

        It asks that host, and waits for `timeout` seconds, 10 by default. With `block=False` it returns an `ActorFuture` of
        the reference. For an actor of this host it is the actor's own reference. From any thread.

        Raises `UnknownName` where no actor has the name, `NotAllowed` where its `acl` leaves this host out, `HostGone` where the
        host cannot be reached, `AnswerTimeout` where it does not answer, `SystemBusy` where too much waits for it,
        `TransportError` for a malformed address, and `DeadlockError` where it would block the thread of a loop.
        """
        self._process.check(self)
        return self._calls.remote(address, name, block=block, timeout=timeout)

    def remote_names(self, address: str, *, block: bool = True, timeout: float | None = None) -> Any:
        """Return the names that the host at an address publishes for this one, sorted: 10,000 of them at most.

        Arguments and errors as those of `remote`.
        """
        self._process.check(self)
        return self._calls.remote_names(address, block=block, timeout=timeout)

    def start_directory(
        self,
        *,
        shard_id: int,
        replica_id: int,
        members: Mapping[int, str] | None = None,
        join: bool = False,
        role: State | None = None,
        config: RaftConfig | Mapping[str, Any] | None = None,
    ) -> Replica:
        """Start the replica of a shard that is a directory: names of actors, which survive hosts. Arguments and errors as `start_replica`.

        Any host with a replica of it, observers too, can `register` and `find` there, and serves hosts without one.
        """
        replica = self.start_replica(
            Directory,
            shard_id=shard_id,
            replica_id=replica_id,
            members=members,
            join=join,
            role=role,
            config=config,
        )
        if role is not State.WITNESS:  # it keeps no names
            self._names.serve(replica)
        return replica

    def register(
        self,
        name: str,
        ref: pykka.ActorRef[Any],
        *,
        shard_id: int | None = None,
        at: str | None = None,
        replace: bool = False,
        timeout: float = 5.0,
        block: bool = True,
    ) -> Any:
        """Let all hosts find an actor of this one by a name, until it ends, or this host's run does. From any thread.

        `shard_id` names the directory; it may be left out where this host knows only one. `at`: the address of a host that has
        a replica of it, where this one has none; it is remembered. A name that this host has registered for another actor goes to
        this one. One of another host is taken only if a newer run of that host is known to the directory, or with
        `replace=True`, for a host that is gone for good; its actor is not told.

        With `block=False` it returns a future. Raises `NameTaken`, `ConfigError`, `RequestDropped` where surely nothing was
        registered (`SystemBusy` among them: this host has 10,000 names), `OutcomeUnknown`, and `DeadlockError` where it would
        block the thread of a loop.
        """
        self._process.check(self)
        return self._names.register(
            name, ref, shard_id=shard_id, at=at, replace=replace, timeout=timeout, block=block
        )

    def unregister(
        self,
        name: str,
        *,
        shard_id: int | None = None,
        at: str | None = None,
        timeout: float = 5.0,
        block: bool = True,
    ) -> Any:
        """Give back a name that this host has registered; return whether it had it. As `register`."""
        self._process.check(self)
        return self._names.unregister(name, shard_id=shard_id, at=at, timeout=timeout, block=block)

    def find(
        self,
        name: str,
        *,
        shard_id: int | None = None,
        at: str | None = None,
        timeout: float = 5.0,
        block: bool = True,
    ) -> Any:
        """Return a reference to the actor that has a name in a directory, wherever it lives now. Linearizable. As `register`.

        The host of that actor may be gone: its names stay until a newer run of it is known, or another host replaces them.
        That host is asked what a proxy reaches, for a second at most.
        Raises `NotRegistered` where no actor has the name.
        """
        self._process.check(self)
        return self._names.find(name, shard_id=shard_id, at=at, timeout=timeout, block=block)

    def registered_names(
        self,
        prefix: str = "",
        *,
        after: str = "",
        limit: int = MAX_LISTED,
        shard_id: int | None = None,
        at: str | None = None,
        timeout: float = 5.0,
        block: bool = True,
    ) -> Any:
        """Return the names in a directory that begin with `prefix`, sorted; linearizable. As `find`.

        `limit` of them at most, 1,000 at most; for the next ones, name the last as `after`.
        """
        self._process.check(self)
        return self._names.registered_names(
            prefix, after=after, limit=limit, shard_id=shard_id, at=at, timeout=timeout, block=block
        )

    def singleton(
        self,
        name: str,
        start: type[pykka.Actor] | Callable[..., pykka.ActorRef[Any]],
        *,
        shard_id: int,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        proxy: bool | Iterable[str] = False,
        acl: Iterable[str] | None = None,
        start_timeout: float = 5.0,
        stop_timeout: float = 5.0,
    ) -> Singleton:
        """Run an actor on this host whenever it leads a shard; say so on each host that may. Never waits. From any thread.

        `start`: an actor's class, or a function that starts an actor and returns its reference. It is called with `args`, `kwargs`
        and `fence`, the number of this incarnation, in a thread of its own. If the actor fails, it is started again after a
        while, with a new number. It is published as "singleton:" and its name, with `proxy` and `acl` as in `publish`.

        When this host loses office, at the latest when no quorum has answered it for an election timeout, the actor is asked to
        stop. The next leader starts its own at once if it can tell that this one has ended, and else after two election timeouts
        and some. Only the number is a guarantee: where a process stands still, or an actor does not stop within `stop_timeout`
        seconds, two may be at work, of which the one with the greater number is the right one (docs/names.md).

        Raises `ConfigError` for a wrong argument, a name that is taken here, and a shard that has no replica here, sleeps
        (`quiesce`) or has no `check_quorum`; and `SystemBusy` where there are a thousand.
        """
        self._process.check(self)
        return self._singletons.declare(
            name,
            start,
            shard_id=shard_id,
            args=args,
            kwargs=kwargs,
            proxy=proxy,
            acl=acl,
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
        )

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
        spec = ReplicaSpec(
            state_machine,
            shard_id=shard_id,
            replica_id=replica_id,
            members=members,
            join=join,
            role=role,
            config=config,
            groups=groups,
            handlers=handlers,
        )
        return self._start([spec], "start_replica()")[0]

    def start_replicas(self, specs: Sequence[ReplicaSpec]) -> list[Replica]:
        """Start, or start again, replicas of any number of shards; return them in the order of `specs`.

        For many it is much faster than `start_replica`: they wait for the disk together.

        All is checked first: if one cannot start, none does, nothing is recorded, and the error names its shard. Only
        if the disk fails, or the host is stopped meanwhile, first starts may be recorded although no replica runs; the
        same call completes them later. Raises as `start_replica` does.
        """
        return self._start(specs, "start_replicas()")

    def _start(self, specs: Sequence[ReplicaSpec], call: str) -> list[Replica]:
        self._process.check(self)
        forbid_waiting(f"{call} of {self!r}", "call it in another thread")
        # Mistakes of the caller are found before anything is recorded.
        starts = check_specs(specs)
        with self._registry.reserve([start.options.shard_id for start in starts]):
            found = find_logs(self._store, self._asker, self._snapshots, starts, self.address)
            if len(starts) <= NODES_AT_ONCE:
                replicas: list[Replica] = self._asker.ask(found.requests, partial(self._run, found))
            else:
                self._asker.ask(found.requests)
                replicas = self._asker.call(self._run_many, found)
        replaying = [
            replica.when_applied(log.hard_state.commit, timeout=REPLAY_TIMEOUT_S)
            for start, log, replica in zip(starts, found.found, replicas, strict=True)
            if start.options.wait_ready and log is not None
        ]
        for replayed in replaying:
            replayed.get()
        return replicas

    def _run(self, found: Logs) -> list[Replica]:
        """Make the nodes, and start all of them, or none if one cannot be made. In the loop's thread."""
        return [self._launch(node) for node in list(self._nodes(found))]

    async def _run_many(self, found: Logs) -> list[Replica]:
        """Do as `_run`, and let others on the loop have their turns meanwhile."""
        nodes, replicas = [], []
        for node in self._nodes(found):
            nodes.append(node)
            if len(nodes) % NODES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        for node in nodes:
            replicas.append(self._launch(node))
            if len(replicas) % NODES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return replicas

    def _nodes(self, found: Logs) -> Iterator[NodeActor]:
        for start, log in zip(found.starts, found.opened(self._store), strict=True):
            with naming(*start.key):
                node = self._make_node(start, log)
            yield node

    def _make_node(self, start: Start, log: StoredLog) -> NodeActor:
        node = NodeActor(
            start.options,
            log,
            start.machine,
            services=self._services,
            pool=self._pool,
            background=self._background,
            snapshots=self._snapshots.of(*start.key),
            origin=secrets.randbits(62) | 1,
            **self._lane_bounds,
            max_command_bytes=self._max_command_bytes,
            tick_interval=self.tick_interval,
            groups=start.groups,
            home=home_number(self._transport.host_id),
            founding=founding_told(log.bootstrap),
            handlers=start.handlers,
            log_memory=self._log_memory,
            loop=self._loop,
            host_lines=self._host_lines,
        )
        log.listen(node.entries_loaded, self._log_memory)
        return node

    def _launch(self, node: NodeActor) -> Replica:
        if not node.raft.config.is_observer:
            self._warn_of_memory(node)
        launch(node)
        replica = Replica(node.actor_ref, node, max_command_bytes=self._max_command_bytes)
        self._registry.add(node.raft.config.shard_id, node, replica)
        # Others may have been told of the shard's last replica here.
        self._transport.reintroduce(node.raft.config.shard_id)
        self._metrics.add(node)
        self._member_addresses.add(node)
        watch(node.actor_ref, lambda died: self._on_replica_stopped(node, died))
        return replica

    def _warn_of_promotion(self, event: object) -> None:
        """Do as `_warn_of_memory` for an observer that has become a voter."""
        if isinstance(event, MembershipChanged) and event.replica in event.membership.voters:
            node = self._registry.nodes.get(event.shard)
            if node is not None:
                self._warn_of_memory(node)

    def _warn_of_memory(self, node: NodeActor) -> None:
        """Say once what no data directory means for a replica that votes, unless that was asked for."""
        if self._is_to_warn:
            self._is_to_warn = False
            node.lines.warning(
                "this host was made without data_dir, so its voters are in memory only: after a restart, acknowledged writes "
                "are lost, and votes may be given twice. Name a data_dir, or say data_dir=IN_MEMORY if that is meant"
            )

    def _on_replica_stopped(self, node: NodeActor, died: ActorDied) -> None:
        shard_id, replica_id = node.raft.config.shard_id, node.raft.id
        if isinstance(node.raft.log.storage, StoredLog):
            node.raft.log.storage.let_go()
        if died.reason is None:
            node.lines.info("stopped as %s of term %d", node.raft.state.name, node.raft.term)
        self._metrics.retire(node)
        self._registry.on_node_stopped(shard_id)
        node.over.add_done_callback(lambda _: self._registry.on_ended(shard_id))
        self._services.announce(ReplicaEnded(shard_id, replica_id, died.reason))

    def replica(self, shard_id: int) -> Replica:
        """Return the replica of a shard on this host. Raises `ConfigError` where none runs."""
        self._process.check(self)
        check_whole("shard_id", shard_id, 0, MAX_SIGNED)
        return self._registry.replica(shard_id)

    def config(self, shard_id: int) -> RaftConfig:
        """Return the options of the replica of a shard on this host. From any thread. Raises `ConfigError` where none runs."""
        self._process.check(self)
        self.replica(shard_id)  # raises
        node = self._registry.nodes.get(shard_id)
        if node is None:
            raise ConfigError("shard_id", shard_id, f"has no replica on {self!r} any more")
        return node.raft.config

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell `subscriber` of this host's events.

        They are `LeaderChanged`, `MembershipChanged`, `AddressChanged`, `ReplicaEnded`, `ReplicaRemoved`, `HostStateChanged`,
        `SingletonStarted` and `SingletonEnded`; and what handlers publish: `ExtensionEvent` of a replica, `NodeEvent` of a table actor.

        An actor, named by its ref or its proxy, is told by a message. One that has ended, or whose inbox is full, is told
        no more. A function is called with the event, in the thread of the host's loop: it must return at once, and never
        block. What it raises is logged and counted, and changes nothing else. To subscribe again changes nothing.

        Raises `TypeError` for all else, a class or an `async def` among it.
        """
        self._process.check(self)
        self._services.subscribers.add(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> bool:
        """Tell `subscriber` no more; return whether it was subscribed. An event that is being told may still reach it."""
        self._process.check(self)
        return self._services.subscribers.remove(subscriber)

    def remove_data(self, shard_id: int, replica_id: int) -> None:
        """Delete, for good, all that this host keeps of a stopped replica. Its id can never be used again here.

        For a replica that its shard has removed. If it is still a member, the shard loses it: remove it there first.
        Waits for the disk. Raises `ConfigError` if the replica runs, or if this host has none of that id, and
        `StorageFailed` if the disk fails: the same call completes it later.
        """
        self._process.check(self)
        forbid_waiting(f"remove_data() of {self!r}", "call it in another thread")
        check_whole("shard_id", shard_id, 0, MAX_SIGNED)
        check_whole("replica_id", replica_id, 1, MAX_SIGNED)
        with self._registry.reserve([shard_id]):
            if (shard_id, replica_id) not in self._store.replicas():
                raise ConfigError("replica_id", replica_id, f"has no data of shard {shard_id} on {self!r}")
            # The record goes last: until then, this can be repeated.
            self._snapshots.of(shard_id, replica_id).remove_all()
            self._asker.ask([partial(self._store.remove, shard_id, replica_id)])


def _check_address(address: str, data_dir: object) -> None:
    _, port = parse_address(address)
    if port == 0 and not isinstance(data_dir, InMemory | NoneType):
        raise ConfigError(
            "address", address, "name a port: other hosts must find this one again after a restart"
        )
