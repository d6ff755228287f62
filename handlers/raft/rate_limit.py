"""Whether a shard's replicas hold too much log that is not applied yet (dragonboat's rate limit)."""

from typing import Final

from drakkar.handlers.raft.config import RaftConfig

__all__ = ["RateLimit"]

_STALE_AFTER: Final = 3
"""Rate ticks after which a follower's report no longer counts."""
_FLIP_AFTER: Final = 10
"""Rate ticks that must pass between two changes of mind, so that the limit does not flutter."""
_RELAX_BELOW: Final = 0.7
"""The limit is lifted below this part of it, for the same reason."""


class RateLimit:
    """Whether the shard's replicas hold too much log that is not applied yet.

    A leader knows its own size and what its followers report; the largest counts. A rate tick is one election
    timeout. The host asks `limited`, and refuses proposals as long as it is set.
    """

    def __init__(self, config: RaftConfig) -> None:
        self.bound = config.max_in_mem_log_bytes
        self.interval = config.election_ticks
        self.limited = False
        self._ticks = 0
        self._flipped_at: int | None = None
        self._reports: dict[int, tuple[int, int]] = {}

    @property
    def on(self) -> bool:
        """Whether limiting is configured."""
        return self.bound > 0

    def tick(self) -> bool:
        """A tick of the core has passed; True once every rate tick."""
        self._ticks += 1
        return self._ticks % self.interval == 0

    @property
    def rate_ticks(self) -> int:
        """Rate ticks since the start."""
        return self._ticks // self.interval

    def note(self, replica: int, size: int) -> None:
        """A follower's report; 0 says that it is within its own bound."""
        self._reports[replica] = (self.rate_ticks, size)

    def reset(self) -> None:
        """A new term, a new state: what was reported no longer holds."""
        self._reports.clear()

    def largest(self, own: int) -> int:
        """The largest size known: this replica's, or a fresh report's."""
        now = self.rate_ticks
        self._reports = {who: what for who, what in self._reports.items() if now - what[0] <= _STALE_AFTER}
        return max([own, *(size for _, size in self._reports.values())])

    def update(self, own: int) -> bool:
        """Decide anew, with this replica's present size; returns `limited`."""
        if not self.on:
            return False
        largest = self.largest(own)
        wanted = largest >= _RELAX_BELOW * self.bound if self.limited else largest > self.bound
        may_flip = self._flipped_at is None or self.rate_ticks - self._flipped_at > _FLIP_AFTER
        if wanted != self.limited and may_flip:
            self.limited = wanted
            self._flipped_at = self.rate_ticks
        return self.limited
