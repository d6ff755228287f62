"""One budget of memory for all logs of a host: which of them gives up how many of its old entries.

A log keeps recent entries in memory, for peers that lag a little. It needs those that are not applied or not
durable yet, so these stay, whatever the budget says. The others are *spare*. One limit for each log would
either be too small for a busy shard or, times a thousand shards, too large for the host. So the logs share
one:

    held <= limit                  all is kept
    held > limit                   each log may keep an equal share of what is left for spare entries, until 3/4 of the
                                   limit are held: the logs with the most spare bytes lose some, also where
                                   they are quiet
    not enough is spare for that   the budget is *tight*: no log keeps any spare entry until 3/4 of the limit are held

To look at all logs takes time in proportion to their number. That happens at most once for each quarter of
the limit that is appended: after it either so much is free, or the budget is tight, and then each log drops
its own.
"""

from typing import Final, Protocol

from drakkar.handlers.checks import MAX_SIGNED, check_whole

__all__ = ["DEFAULT_LOG_MEMORY_BYTES", "LogMemory"]

DEFAULT_LOG_MEMORY_BYTES: Final = 256 << 20


class Holder(Protocol):
    """The entries of one log that are in memory."""

    bytes: int
    """All that it holds."""
    spare: int
    """How many of these bytes it may drop."""

    def drop(self, size: int) -> None:
        """Drop the oldest spare entries: `size` bytes or a few more, or all if they are fewer."""


class LogMemory:
    """What the logs of one host hold in memory, and how much that may be.

    Not thread-safe, but `held` may be read anywhere.
    """

    def __init__(self, limit: int = DEFAULT_LOG_MEMORY_BYTES) -> None:
        """`limit`: bytes, 0 or more; 0 keeps no spare entry. Raises `ConfigError` for anything else."""
        check_whole("log_memory_bytes", limit, 0, MAX_SIGNED)
        self.limit = limit
        self.held = 0
        """Bytes that all logs hold now. More than `limit` only if so much cannot be dropped."""
        self.tight = False
        self._target = limit - limit // 4
        self._holders: dict[Holder, None] = {}
        """Those that hold anything."""

    def __repr__(self) -> str:
        return f"<LogMemory {self.held} of {self.limit} bytes{', tight' if self.tight else ''}>"

    def grew(self, holder: Holder, size: int) -> None:
        """A log holds `size` bytes more. It, or another one, may be asked to drop some before this returns."""
        self.held += size
        self._holders[holder] = None
        if self.held > self.limit and not self.tight:
            self._make_room()

    def shrank(self, holder: Holder, size: int) -> None:
        """A log holds `size` bytes less."""
        self.held -= size
        if not holder.bytes:
            self._holders.pop(holder, None)
        if self.held <= self._target:
            self.tight = False

    def spared(self, holder: Holder) -> None:
        """A log may drop more than before. Where the budget is tight, it is asked to."""
        if self.tight:
            holder.drop(self.held - self._target)

    def _make_room(self) -> None:
        """Have those with the most spare bytes drop some: all keep an equal share of what may stay."""
        holders = sorted(self._holders, key=lambda holder: holder.spare)
        room = max(sum(holder.spare for holder in holders) - (self.held - self._target), 0)
        for others, holder in zip(range(len(holders) - 1, -1, -1), holders, strict=True):
            holder.drop(holder.spare - room // (others + 1))
            room -= holder.spare
        self.tight = self.held > self._target
