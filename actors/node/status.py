"""`Status`: where a replica stands."""

from dataclasses import dataclass

from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State

__all__ = ["Status", "status_of"]


@dataclass(frozen=True, slots=True)
class Status:
    """Where a replica stands, as of a moment ago."""

    shard_id: int
    replica_id: int
    state: State
    term: int
    leader_id: int
    """0: no leader is known."""
    commit: int
    applied: int
    first_index: int
    last_index: int
    voters: tuple[int, ...]
    observers: tuple[int, ...]
    witnesses: tuple[int, ...]
    addresses: dict[int, str]
    pending_proposals: int
    """Commands that were proposed here and are not answered yet."""
    pending_reads: int
    """Reads and other requests that were made here and are not answered yet."""
    match: dict[int, int]
    """At a leader: the last index that each replica is known to hold. Empty elsewhere."""


def status_of(raft: Raft, *, pending_proposals: int, pending_reads: int) -> Status:
    """Describe a replica. May be called from any thread: what it reads is replaced, never half changed."""
    log, membership = raft.log, raft.membership
    leads = raft.state is State.LEADER
    return Status(
        shard_id=raft.config.shard_id,
        replica_id=raft.id,
        state=raft.state,
        term=raft.term,
        leader_id=raft.leader_id,
        commit=log.committed,
        applied=log.applied,
        first_index=log.first_index,
        last_index=log.last_index,
        voters=tuple(sorted(membership.voters)),
        observers=tuple(sorted(membership.observers)),
        witnesses=tuple(sorted(membership.witnesses)),
        addresses=dict(membership.addresses),
        pending_proposals=pending_proposals,
        pending_reads=pending_reads,
        match={replica: peer.match for replica, peer in list(raft.progress.items())} if leads else {},
    )
