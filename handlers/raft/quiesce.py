"""Quiesce (dragonboat): an idle shard falls silent, so that thousands of idle shards cost nothing.

While a replica is quiesced its ticks only count: no heartbeats, no elections. Any request, and any message that says
that the shard is in use, wakes it. All replicas of a shard must run it, or none.
"""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.state import State

__all__ = ["tick", "track_activity"]

HEARTBEATS: Final = frozenset({MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP})

# If a campaigning replica fell asleep, a shard that was torn apart would stay without a leader when it is whole again.
CAMPAIGNING: Final = frozenset({State.PRE_CANDIDATE, State.CANDIDATE})


def tick(raft: RaftCore) -> bool:
    """A tick of the host's clock has passed; True if it is a quiesced one. Falls asleep when idle, and tells the voters."""
    if raft.quiesce.tick(may_sleep=raft.state not in CAMPAIGNING):
        for voter in raft.voters:
            if voter != raft.id:
                raft.send(Message(MessageType.QUIESCE, to=voter))
    return raft.quiesce.quiesced


def track_activity(raft: RaftCore, message: Message) -> None:
    """A guard: every message tells something about whether the shard is in use."""
    if not raft.quiesce.on:
        return
    if message.type is MessageType.QUIESCE and message.sender in raft.progress:
        raft.quiesce.follow(may_sleep=raft.state not in CAMPAIGNING)
    elif _is_activity(raft, message) and raft.quiesce.note_activity():
        _wake(raft)


def _is_activity(raft: RaftCore, message: Message) -> bool:
    if message.type in HEARTBEATS:
        reads = bool(message.hint or message.hint_high)
        return reads or raft.quiesce.settled
    return message.type.traits.wakes


def _wake(raft: RaftCore) -> None:
    """While all slept no message could come: neither our silence nor that of others is a reason for an election."""
    raft.timers.election_elapsed = 0
    if raft.state is State.LEADER:
        for peer in raft.progress.values():
            peer.active = True
