"""Quiesce (dragonboat): an idle shard falls silent, so that thousands of idle shards cost nothing.

While a replica is quiesced its ticks only count: no heartbeats, no elections. Any request, and any message that says
that the shard is in use, wakes it. All replicas of a shard must run it, or none.
"""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import notices
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.state import State

__all__ = ["is_idle", "tick", "track_activity"]

HEARTBEATS: Final = frozenset({MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP})

# If a campaigning replica fell asleep, a shard that was torn apart would stay without a leader when it is whole again.
CAMPAIGNING: Final = frozenset({State.PRE_CANDIDATE, State.CANDIDATE})


def tick(raft: RaftCore) -> bool:
    """A tick of the host's clock has passed; True if it is a quiesced one. Falls asleep when idle, and tells the voters."""
    if raft.quiesce.tick(may_sleep=_may_sleep(raft)):
        notices.tell(raft)
        for voter in raft.voters:
            if voter != raft.id:
                raft.send(Message(MessageType.QUIESCE, to=voter))
    return raft.quiesce.quiesced


def track_activity(raft: RaftCore, message: Message) -> None:
    """A guard: every message tells something about whether the shard is in use."""
    if not raft.quiesce.on:
        return
    if message.type is MessageType.QUIESCE and message.sender in raft.progress:
        if raft.quiesce.follow(may_sleep=_may_sleep(raft)):
            notices.tell(raft)
    elif _is_activity(raft, message) and raft.quiesce.note_activity():
        raft.wake()


def _may_sleep(raft: RaftCore) -> bool:
    """Whether the shard may do without this replica's ticks.

    A leader first makes sure that its peers know what is committed. Where it tells of commits by notices,
    which are not answered, it is their own commit index that shows it. Peers that were not heard of for a
    while, as CheckQuorum counts, are not waited for: they will hear a leader when they are back.
    """
    if raft.state is State.LEADER and raft.config.commit_notices:
        return all(
            peer.commit >= raft.log.committed
            for replica, peer in raft.progress.items()
            if replica != raft.id and (peer.active or peer.was_active)
        )
    return raft.state not in CAMPAIGNING


def is_idle(message: Message) -> bool:
    """Return whether it is a heartbeat, or the answer to one, of a leader that has nothing else to do: it serves no read."""
    return message.type in HEARTBEATS and not (message.hint or message.hint_high)


def _is_activity(raft: RaftCore, message: Message) -> bool:
    if message.type in HEARTBEATS:
        return not is_idle(message) or raft.quiesce.settled
    return message.type.traits.wakes
