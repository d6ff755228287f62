"""The figures of a replica that `NodeHost.metrics` shows.

To add one: count it on the node or one of its parts, add one line to `REPLICA_METRICS`, and one row to docs/metrics.md. The
name of what only grows ends in `_total`; bytes and seconds have their unit in the name.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from drakkar.actors.node.actor import NodeActor
from drakkar.handlers.raft.lives import Standing
from drakkar.handlers.raft.state import State

__all__ = ["REPLICA_METRICS", "SHARD_METRICS"]

Read = Callable[[NodeActor], float]


def _sum(counts: Counter[Any]) -> int:
    return sum(list(counts.values()))  # `list` copies in one step, while the loop counts on


REPLICA_METRICS: Final[Mapping[str, Read]] = {
    "messages_handled_total": lambda node: _sum(node.raft.tally.handled),
    "messages_failed_total": lambda node: _sum(node.raft.tally.failed),
    "messages_ignored_total": lambda node: _sum(node.raft.tally.ignored),
    "messages_swallowed_total": lambda node: _sum(node.raft.tally.swallowed),
    "messages_impossible_total": lambda node: _sum(node.raft.tally.impossible),
    "messages_faulty_total": lambda node: _sum(node.raft.faults),
    "messages_refused_total": lambda node: node.actor_inbox.refused,
    "messages_unheard_total": lambda node: node.unheard,
    "messages_expired_total": lambda node: node.actor_inbox.expired,
    "messages_without_address_total": lambda node: node.router.undeliverable,
    "messages_of_refused_replicas_total": lambda node: node.introductions.dropped,
    "messages_of_strangers_dropped_total": lambda node: _sum(node.introductions.not_allowed),
    "proposals_refused_total": lambda node: node.actor_inbox.proposals.refused,
    "requests_refused_total": lambda node: node.actor_inbox.requests.refused,
    "own_messages_refused_total": lambda node: node.actor_inbox.own.refused,
    "answers_unasked_total": lambda node: node.asks.open.unasked,
    "tells_dropped_total": lambda node: node.effects.teller.undelivered,
    "records_refused_total": lambda node: node.clients.records_refused,
    "full_disk_dropped_entries_total": lambda node: node.raft.room.dropped,
    "full_disk_refused_proposals_total": lambda node: node.raft.room.refused,
    "reads_waited_for_disk_total": lambda node: node.raft.log.not_loaded,
    "elections_won_total": lambda node: node.state_lines.won,
    "elections_lost_total": lambda node: node.state_lines.lost,
    "leader_changes_total": lambda node: node.state_lines.leaders,
    "snapshots_taken_total": lambda node: node.snapshots.taken,
    "snapshots_failed_total": lambda node: node.snapshots.failed,
    "snapshots_installed_total": lambda node: node.received_snapshots.installed,
    "peer_snapshots_sent_total": lambda node: node.peer_snapshots.sent,
    "peer_snapshots_failed_total": lambda node: node.peer_snapshots.failed,
    "replicas_leading": lambda node: node.raft.state is State.LEADER,
    "replicas_without_leader": lambda node: node.raft.leader_id == 0,
    "replicas_newborn": lambda node: node.raft.lives.own.standing is Standing.NEWBORN,
    "replicas_refused": lambda node: len(node.introductions.refused),
    "replicas_on_hung_disk": lambda node: node.disk.hangs,
    "replicas_on_full_disk": lambda node: node.raft.room.full,
    "replicas_hanging": lambda node: node.hang is not None,
    "inbox_waiting_messages": lambda node: len(node.actor_inbox.queue),
    "inbox_waiting_bytes": lambda node: node.actor_inbox.entry_bytes,
    "asks_pending": lambda node: len(node.asks.open) + len(node.actor_inbox.own),
    "timers_active": lambda node: len(node.raft.message_timers),
    "proposals_pending": lambda node: node.clients.pending_proposals,
    "reads_pending": lambda node: node.clients.pending_reads,
    "entries_uncommitted": lambda node: node.raft.log.last_index - node.raft.log.committed,
    "entries_unapplied": lambda node: node.raft.log.committed - node.raft.log.applied,
}
"""What can be added up over the replicas of a host. Read from any thread, while the loop goes on."""

SHARD_METRICS: Final[Mapping[str, Read]] = {
    "term": lambda node: node.raft.term,
    "leader_replica_id": lambda node: node.raft.leader_id,
    "first_index": lambda node: node.raft.log.first_index,
    "last_index": lambda node: node.raft.log.last_index,
    "commit_index": lambda node: node.raft.log.committed,
    "applied_index": lambda node: node.raft.log.applied,
    "snapshot_index": lambda node: node.raft.log.snapshot.index,
    "log_memory_bytes": lambda node: node.raft.log.memory_bytes,
}
"""What has a meaning for one replica only."""
