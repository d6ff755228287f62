"""The end of a replica that its shard has removed."""

import logging
from typing import Final

from drakkar.handlers.errors import ReplicaStopped
from drakkar.handlers.raft.raft import Raft

__all__ = ["Removal"]

logger = logging.getLogger(__name__)

LINGER_ELECTION_TIMEOUTS: Final = 4
"""Election timeouts for which a removed replica stays: others may need its vote to learn that it was removed."""


class Removal:
    """Whether the shard has removed this replica, and when it ends. All methods are for the loop's thread."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._ends_at = 0
        self.reason: ReplicaStopped | None = None
        """Why no request is taken any more; None for a replica that is not removed."""

    def notice(self, tick: int) -> ReplicaStopped | None:
        """Look whether the replica was removed, and return the reason if that is news. It goes on for a while."""
        raft = self._raft
        if self.reason is not None or raft.id not in raft.membership.removed:
            return None
        name = f"replica {raft.id} of shard {raft.config.shard_id}"
        self.reason = ReplicaStopped(
            f"{name} was removed from its shard, for good: ask another one, and add a new replica under a new id to "
            "bring this host back"
        )
        logger.warning("%s was removed from its shard, and ends", name)
        self._ends_at = tick + LINGER_ELECTION_TIMEOUTS * raft.config.election_ticks
        return self.reason

    def is_over(self, tick: int) -> bool:
        """Whether the replica was removed and is to stop now."""
        return self.reason is not None and tick >= self._ends_at
