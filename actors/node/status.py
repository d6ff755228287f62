"""`Status`: where a replica stands."""

from collections.abc import Mapping
from dataclasses import dataclass

from drakkar.actors.machine.applier import Hang
from drakkar.handlers.raft.lives import Standing
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State

__all__ = ["Ended", "Status", "status_of"]


@dataclass(frozen=True, slots=True)
class Ended:
    """When and why a replica has ended."""

    at: float
    """In seconds since 1970, as `time.time()`."""
    why: str
    """One sentence, in full."""
    reason: BaseException | None
    """What it failed with, as in `ReplicaEnded`; None if it was stopped, or removed from its shard."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a replica stands, as of a moment ago.

    Of one that has ended, what it was last. But it neither leads any more, nor knows a leader.
    """

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
    log_memory_bytes: int
    """Bytes that the log of this replica takes in memory; all logs of a host share `NodeHost(log_memory_bytes=…)`."""
    disk_full: bool
    """The disk of its host had no room when entries came last. It takes none until there is some."""
    full_peers: tuple[int, ...]
    """At a leader: the replicas that have told it that their disks are full. Empty elsewhere."""
    frozen_peers: dict[int, str]
    """At a leader: the replicas that it neither counts nor sends anything, since their logs contradict its own, and
    what it knows of that. Empty elsewhere."""
    standing: Standing
    """What the replica may claim to remember; one that is NEWBORN counts for nothing yet."""
    home: int
    """The number of the host on which it lives, by its data directory; 0: not known."""
    refused: dict[int, str]
    """The replicas whose messages are refused for what they say of themselves, and why: their shard was founded with other
    members, or by the log they live on another host. It names this replica itself where that holds for it."""
    hang: Hang | None
    """What its state machine has not returned from for ten seconds, or for a minute while it writes or loads a snapshot, and since
    when; None otherwise. Meanwhile the replica applies nothing, and answers no reads."""
    ended: Ended | None
    """When and why it has ended; None while it runs."""


def status_of(
    raft: Raft,
    *,
    pending_proposals: int,
    pending_reads: int,
    refused: Mapping[int, str],
    hang: Hang | None,
    ended: Ended | None,
) -> Status:
    """Describe a replica. May be called from any thread: what it reads is replaced, never half changed."""
    log, membership = raft.log, raft.membership
    leads = raft.state is State.LEADER and ended is None
    return Status(
        shard_id=raft.config.shard_id,
        replica_id=raft.id,
        state=raft.state if ended is None else raft.base_state,
        term=raft.term,
        leader_id=raft.leader_id if ended is None else 0,
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
        log_memory_bytes=log.memory_bytes,
        disk_full=raft.room.full,
        full_peers=tuple(replica for replica, peer in list(raft.progress.items()) if leads and peer.full),
        frozen_peers={
            replica: peer.frozen for replica, peer in list(raft.progress.items()) if leads and peer.frozen
        },
        standing=raft.lives.own.standing,
        home=raft.lives.home,
        refused=dict(refused),
        hang=hang,
        ended=ended,
    )
