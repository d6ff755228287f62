"""Quiesce (dragonboat's): an idle shard falls silent, so that thousands of idle shards cost nothing.

While a replica is quiesced its ticks only count: no heartbeats, no elections. Any request or other message wakes
it. All replicas of a shard must run it, or none.
"""

from typing import TYPE_CHECKING, Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.state import State

if TYPE_CHECKING:
    from drakkar.handlers.raft.raft import Raft

__all__ = ["Quiesce", "mind_quiesce"]

# These are no sign that anybody wants something of the shard.
_NO_ACTIVITY: Final = frozenset(
    {
        MessageType.LOCAL_TICK,
        MessageType.QUIESCE,
        MessageType.SNAPSHOT_STATUS,
        MessageType.UNREACHABLE,
        MessageType.ELECTION,
        MessageType.LEADER_HEARTBEAT,
        MessageType.CHECK_QUORUM,
        MessageType.RATE_LIMIT,
    }
)
_BEATS: Final = frozenset({MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP})
# If those who campaign fell asleep, a shard that was torn apart would stay without a leader when it is whole again.
_RESTLESS: Final = frozenset({State.PRE_CANDIDATE, State.CANDIDATE})


class Quiesce:
    """Whether this replica sleeps. Counted in ticks of its own, which go on while it does."""

    def __init__(self, config: RaftConfig) -> None:
        self.on = config.quiesce
        self.settling = 2 * config.election_ticks
        """Ticks after falling asleep in which heartbeats still come from others who are about to."""
        self.threshold = 10 * self.settling
        """Idle ticks before falling asleep, and waking ticks before being put to sleep again."""
        self.quiesced = False
        self._now = 0
        self._idle_since = 0
        self._entered_at = 0
        self._left_at: int | None = None

    def tick(self, raft: "Raft") -> bool:
        """A tick has passed; True if it is a quiesced one. Falls asleep when idle, and tells the other voters."""
        self._now += 1
        if self._may_enter(raft) and self._now - self._idle_since > self.threshold:
            self._enter()
            for voter in raft.voters:
                if voter != raft.id:
                    raft.send(Message(MessageType.QUIESCE, to=voter))
        return self.quiesced

    def asked(self, raft: "Raft") -> None:
        """Another replica fell asleep. One that has just woken up has a reason, and stays awake."""
        just_left = self._left_at is not None and self._now - self._left_at < self.threshold
        if self._may_enter(raft) and not just_left:
            self._enter()

    def note(self, raft: "Raft", message: Message) -> None:
        """A message came; unless it is mere routine, somebody wants something, and sleep is over."""
        if not self.on or self._is_routine(message):
            return
        self._idle_since = self._now
        if self.quiesced:
            self._leave(raft)

    def _is_routine(self, message: Message) -> bool:
        if message.type in _NO_ACTIVITY:
            return True
        if message.type not in _BEATS or message.hint or message.hint_high:
            return False
        return not self.quiesced or self._now - self._entered_at < self.settling

    def _may_enter(self, raft: "Raft") -> bool:
        return self.on and not self.quiesced and raft.state not in _RESTLESS

    def _enter(self) -> None:
        self.quiesced = True
        self._entered_at = self._idle_since = self._now

    def _leave(self, raft: "Raft") -> None:
        self.quiesced = False
        self._left_at = self._now
        # Nobody could be heard while all slept: neither our silence nor theirs is a reason for an election.
        raft.election_elapsed = 0
        if raft.state is State.LEADER:
            for peer in raft.progress.values():
                peer.active = True


def mind_quiesce(raft: "Raft", message: Message) -> None:
    """A guard: every message tells something about whether the shard is idle."""
    if message.type is MessageType.QUIESCE and message.sender in raft.progress:
        raft.quiesce.asked(raft)
    else:
        raft.quiesce.note(raft, message)
