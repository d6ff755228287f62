"""The end of a replica that its shard has removed."""

from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.errors import ReplicaStopped
from drakkar.handlers.raft.membership import is_dispensable
from drakkar.handlers.raft.raft import Raft

__all__ = ["Removal"]


class Removal:
    """Whether the shard has removed this replica, and when it ends. All methods are for the loop's thread."""

    def __init__(self, raft: Raft, lines: Lines) -> None:
        self._raft, self._lines = raft, lines
        self.reason: ReplicaStopped | None = None
        """Why no request is taken any more; None for a replica that is not removed."""

    def notice(self) -> ReplicaStopped | None:
        """Look whether the replica was removed, and return the reason if that is news. It goes on while others need it."""
        raft = self._raft
        if self.reason is not None or raft.id not in raft.membership.removed:
            return None
        name = f"replica {raft.id} of shard {raft.config.shard_id}"
        self.reason = ReplicaStopped(
            f"{name} was removed from its shard, for good: ask another one, and add a new replica under a new id to "
            "bring this host back"
        )
        self._lines.warning("was removed from its shard, and ends when the others know it")
        return self.reason

    def is_over(self, *, hung: bool) -> bool:
        """Whether the replica was removed and is to stop now: a quorum of the others knows it, or a hung disk takes no vote."""
        return self.reason is not None and (hung or is_dispensable(self._raft))
