"""`NodeHost.metrics`: all figures of a host in one flat mapping.

To add a figure of a host: add one line to `HOST_METRICS`, and one row to docs/metrics.md. One that is counted in
`NodeHost.counters` needs no more than `_counted("its name there")`. A figure of a replica stands in `node.metrics`, one of the
transport in `transport.options.Counters`; both are one line too.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from drakkar.actors.host.snapshot_traffic import SnapshotTraffic
from drakkar.actors.host.table_actors import NodeFigures, TableActors
from drakkar.actors.log.store import LogStore, StoreStatus
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.cells import CellCounts, figures_of
from drakkar.actors.node.metrics import REPLICA_METRICS, SHARD_METRICS
from drakkar.actors.remote.asking import LATE_ANSWERS
from drakkar.actors.remote.calls import CallFigures, Calls
from drakkar.actors.remote.replies import DROPPED_ANSWERS, DROPPED_MESSAGES, REFUSED
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.peers import LOST, RECEIVED, SENT, STRANGE, Phase
from drakkar.actors.runtime.table_actor import TELLS_DROPPED, UNASKED
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.transport.liveness import HostState
from drakkar.transport.peer import PeerStatus
from drakkar.transport.tcp import TcpTransport

__all__ = ["Metrics", "Sources"]


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts of a host that count something."""

    counters: Counter[str]
    loop: TrioLoop
    store: LogStore
    transport: TcpTransport
    log_memory: LogMemory
    lines: HostLines
    workers: WorkerPool
    background: WorkerPool
    traffic: SnapshotTraffic
    calls: Calls
    tables: TableActors


class _Moment:
    """What several figures are read from, taken once."""

    __slots__ = ("calls", "host", "log", "now", "peers", "replicas", "states", "tables")

    def __init__(self, host: Sources, replicas: int) -> None:
        self.host, self.replicas = host, replicas
        self.log: StoreStatus = host.store.status
        self.peers: list[PeerStatus] = list(host.transport.peers().values())
        self.states: Counter[HostState] = host.transport.host_states()
        self.calls: CallFigures = host.calls.figures
        self.tables: NodeFigures = host.tables.figures()
        self.now = time.monotonic()


Read = Callable[[_Moment], float]


def _counted(name: str) -> Read:
    return lambda at: at.host.counters[name]


def _transport(field: str) -> Read:
    return lambda at: getattr(at.host.transport.counters, field)


def _peers(field: str) -> Read:
    return lambda at: sum(getattr(peer, field) for peer in at.peers)


def _table_peers(phase: Phase) -> Read:
    return lambda at: at.tables.phases[phase]


def _table_counts(*names: str) -> Read:
    return lambda at: sum(at.tables.counts[name] for name in names)


def _hosts(state: HostState) -> Read:
    return lambda at: at.states[state]


HOST_METRICS: Final[Mapping[str, Read]] = {
    "replicas": lambda at: at.replicas,
    "events_lost_total": _counted("events lost"),
    "subscribed_functions_failed_total": _counted("subscribed functions failed"),
    "messages_for_unknown_shards_total": _counted("messages for shards that are not here"),
    "messages_not_taken_total": _counted("messages for nodes that could not take them"),
    "messages_without_introduction_total": _counted("messages of replicas that were not introduced"),
    "introductions_forgotten_total": _counted("introductions forgotten"),
    "snapshots_without_stream_total": _counted("snapshots that came without a stream"),
    "snapshots_sending": lambda at: at.host.traffic.sending,
    "snapshots_receiving": lambda at: at.host.traffic.receiving,
    "workers_waiting_jobs": lambda at: at.host.workers.waiting,
    "workers_threads": lambda at: at.host.workers.threads,
    "workers_hanging": lambda at: at.host.workers.hanging,
    "background_waiting_jobs": lambda at: at.host.background.waiting,
    "background_threads": lambda at: at.host.background.threads,
    "background_hanging": lambda at: at.host.background.hanging,
    "lines_left_out_total": lambda at: at.host.lines.left_out,
    "loop_lateness_seconds": lambda at: at.host.loop.lateness,
    "loop_worst_lateness_seconds": lambda at: at.host.loop.worst_lateness,
    "loop_turns_total": lambda at: at.host.loop.turns,
    "loop_actor_failures_total": lambda at: at.host.loop.failures,
    "loop_crashes_total": lambda at: at.host.loop.crashes,
    "loop_dead_letters_total": lambda at: at.host.loop.dead_letters,
    "log_waiting_requests": lambda at: at.log.waiting,
    "log_waiting_bytes": lambda at: at.log.waiting_bytes,
    "log_refused_requests_total": lambda at: at.log.refused,
    "log_requests_total": lambda at: at.log.saves,
    "log_entries_total": lambda at: at.log.entries,
    "log_flushes_total": lambda at: at.log.commits,
    "log_flush_seconds_total": lambda at: at.log.flush_seconds,
    "log_last_flush_seconds": lambda at: at.log.last_commit_seconds,
    "log_running_flush_seconds": lambda at: 0.0 if at.log.busy_since is None else at.now - at.log.busy_since,
    "log_failed_callbacks_total": lambda at: at.log.failed_callbacks,
    "log_failed": lambda at: at.log.poisoned is not None,
    "log_disk_full": lambda at: at.log.full,
    "log_segments": lambda at: at.log.segments,
    "log_disk_bytes": lambda at: at.log.disk_bytes,
    "log_live_bytes": lambda at: at.log.live_bytes,
    "logs_memory_bytes": lambda at: at.host.log_memory.held,
    "logs_memory_limit_bytes": lambda at: at.host.log_memory.limit,
    "logs_memory_tight": lambda at: at.host.log_memory.tight,
    "remote_questions": lambda at: at.calls.questions,
    "remote_questions_open": lambda at: at.calls.open_questions,
    "remote_watches": lambda at: at.calls.watches,
    "remote_watchers": lambda at: at.calls.watchers,
    "remote_published": lambda at: at.calls.published,
    "remote_messages_dropped_total": _counted(DROPPED_MESSAGES),
    "remote_unknown_fields_total": lambda at: sum(at.host.calls.unknown_fields.values()),
    "remote_questions_refused_total": _counted(REFUSED),
    "remote_answers_dropped_total": _counted(DROPPED_ANSWERS),
    "remote_answers_late_total": _counted(LATE_ANSWERS),
    "table_actors": lambda at: at.tables.actors,
    "table_peers_sought": _table_peers(Phase.SOUGHT),
    "table_peers_up": _table_peers(Phase.UP),
    "table_peers_down": _table_peers(Phase.DOWN),
    "table_messages_sent_total": _table_counts(SENT),
    "table_messages_received_total": _table_counts(RECEIVED),
    "table_messages_lost_total": _table_counts(*LOST),
    "table_messages_refused_total": _table_counts(*STRANGE),
    "table_tells_dropped_total": _table_counts(TELLS_DROPPED),
    "table_answers_unasked_total": _table_counts(UNASKED),
    "hosts_unknown": _hosts(HostState.UNKNOWN),
    "hosts_alive": _hosts(HostState.ALIVE),
    "hosts_suspect": _hosts(HostState.SUSPECT),
    "hosts_dead": _hosts(HostState.DEAD),
    "host_state_changes_total": _transport("state_changes"),
    "hosts_gone_total": _transport("gone"),
    "silent_on_hung_disk": lambda at: at.host.transport.is_silent,
    "peers": lambda at: len(at.peers),
    "peers_connected": _peers("connected"),
    "lane_waiting_messages": _peers("queued_messages"),
    "lane_waiting_bytes": _peers("queued_bytes"),
    "lane_bulk_waiting_messages": _peers("bulk_messages"),
    "lane_bulk_waiting_bytes": _peers("bulk_bytes"),
    "lane_calls_waiting": _peers("call_records"),
    "lane_calls_waiting_bytes": _peers("call_bytes"),
    "lane_busy_shards": _peers("busy_shards"),
    "transport_sent_messages_total": _transport("sent"),
    "transport_received_messages_total": _transport("received"),
    "transport_sent_bytes_total": _transport("sent_bytes"),
    "transport_received_bytes_total": _transport("received_bytes"),
    "transport_dropped_messages_total": _transport("dropped"),
    "transport_handed_back_messages_total": _transport("handed_back"),
    "transport_recalled_messages_total": _transport("recalled"),
    "transport_sent_calls_total": _transport("calls_sent"),
    "transport_received_calls_total": _transport("calls_received"),
    "transport_handed_back_calls_total": _transport("calls_handed_back"),
    "transport_refused_calls_total": lambda at: at.host.transport.refused_calls,
    "transport_busy_total": _transport("busy"),
    "transport_unknown_types_total": _transport("unknown_types"),
    "transport_local_types_total": _transport("local_types"),
    "transport_anonymous_total": _transport("anonymous"),
    "transport_unknown_frames_total": _transport("unknown_frames"),
    "transport_gone_messages_total": _transport("gone_messages"),
    "transport_useless_total": _transport("useless"),
    "transport_pauses_total": _transport("pauses"),
    "transport_unfinished_bytes": lambda at: at.host.transport.unfinished_bytes,
    "transport_malformed_total": _transport("malformed"),
    "transport_refused_total": _transport("refused"),
    "transport_full_total": _transport("full"),
    "transport_evicted_total": _transport("evicted"),
    "transport_late_total": _transport("late"),
    "transport_connects_total": _transport("connects"),
    "transport_connect_failures_total": _transport("connect_failures"),
    "transport_lost_connections_total": _transport("lost"),
    "transport_accepted_connections_total": _transport("accepted"),
    "transport_failures_total": _transport("failed"),
    "tls_certificate_seconds": lambda at: at.host.transport.certificate_seconds,
    "streams_sent_total": _transport("streams_sent"),
    "streams_received_total": _transport("streams_received"),
    "streams_failed_total": _transport("streams_failed"),
    "streams_sent_bytes_total": _transport("stream_bytes_sent"),
    "streams_received_bytes_total": _transport("stream_bytes_received"),
}
"""The figures of a host beside those of its replicas. Read from any thread, while the loop goes on."""


class Metrics:
    """The figures of one host. From any thread; nothing here waits for the loop or the disk."""

    def __init__(self, host: Sources) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._nodes: dict[int, NodeActor] = {}
        """Those that run, by shard."""
        self._ended: Counter[str] = Counter()
        """What replicas that have ended had counted: a sum that only grows must not shrink when one ends."""
        self._ended_cells = CellCounts()
        """Likewise."""

    def add(self, node: NodeActor) -> None:
        """Show a replica that starts."""
        with self._lock:
            self._nodes[node.raft.config.shard_id] = node

    def retire(self, node: NodeActor) -> None:
        """Keep what a replica that ended has counted."""
        with self._lock:
            del self._nodes[node.raft.config.shard_id]
            for name, read in REPLICA_METRICS.items():
                if name.endswith("_total"):
                    self._ended[name] += int(read(node))
            self._ended_cells.add(node.tally)

    def all(self) -> dict[str, float]:
        """Return the figures of the host, and those of all its replicas together."""
        with self._lock:
            nodes, ended = list(self._nodes.values()), dict(self._ended)
            cells = self._ended_cells.copy()
        cells.add_all(self._host.tables.cells())
        at = _Moment(self._host, len(nodes))
        figures = {name: _number(read(at)) for name, read in HOST_METRICS.items()}
        for name, read in REPLICA_METRICS.items():
            figures[name] = ended.get(name, 0) + sum(map(read, nodes))
        for node in nodes:
            cells.add(node.tally)
        return figures | figures_of(cells.cells())

    def of_shard(self, shard_id: int) -> dict[str, float] | None:
        """Return the figures of one replica; None where no replica of the shard runs."""
        with self._lock:
            node = self._nodes.get(shard_id)
        if node is None:
            return None
        cells = CellCounts()
        cells.add(node.tally)
        figures = {name: _number(read(node)) for name, read in {**REPLICA_METRICS, **SHARD_METRICS}.items()}
        return figures | figures_of(cells.cells())


def _number(figure: float) -> float:
    return int(figure) if isinstance(figure, bool) else figure
