"""Limits on what a shard holds in memory: uncommitted proposals (etcd's rule) and unapplied log (dragonboat's)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore

__all__ = ["note_follower_size", "observe", "report", "too_many_uncommitted"]


def too_many_uncommitted(raft: RaftCore, size: int) -> bool:
    """Whether `size` more payload bytes would exceed the bound on what this leader has not committed yet.

    An empty tail takes a proposal of any size, and empty payloads always pass: else nothing could begin.
    """
    bound = raft.config.max_uncommitted_bytes
    return bool(bound and raft.uncommitted_bytes and size and raft.uncommitted_bytes + size > bound)


def observe(raft: RaftCore) -> None:
    """A leader's tick: decide anew whether proposals are taken."""
    if raft.rate_limit.on:
        raft.rate_limit.tick()
        raft.rate_limit.update(raft.log.size_after(raft.log.applied))


def report(raft: RaftCore) -> None:
    """Every election timeout, tell the leader how much log waits here to be applied; 0 while it is bearable."""
    limit = raft.rate_limit
    if not limit.on or not limit.tick() or not raft.leader_id:
        return
    held = raft.log.size_after(raft.log.applied)
    uncommitted = raft.log.size_after(max(raft.log.committed, raft.log.applied))
    size = max(0, held - uncommitted) if limit.update(held) else 0
    raft.send(Message(MessageType.RATE_LIMIT, to=raft.leader_id, hint=size))


def note_follower_size(raft: RaftCore, message: Message) -> None:
    """A follower reports how much log waits there to be applied."""
    if raft.rate_limit.on:
        raft.rate_limit.note(message.sender, message.hint)
