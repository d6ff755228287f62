"""One timer for all commit notices of a host: after about a millisecond it tells of what no append has told."""

import math
from collections.abc import Callable
from typing import Final

import trio

__all__ = ["DELAY_S", "CommitTimer"]

DELAY_S: Final = 0.001
"""Long enough that a busy shard's next append tells of the commit; short beside what a client waits for a commit."""


class CommitTimer:
    """Remembers which shards have peers that were not told of a commit, and since when. For the loop's thread only."""

    def __init__(self, due: Callable[[int], None]) -> None:
        """`due` is called for a shard whose peers were still not told `DELAY_S` after `start`."""
        self._tell = due
        self._due: dict[int, float] = {}
        """When it is due for each shard, the earliest first."""
        self._sleep = trio.CancelScope()

    def start(self, shard_id: int) -> None:
        """The peers of the shard's leader are to be told."""
        due = trio.current_time() + DELAY_S
        if not self._due:
            self._sleep.deadline = due
        self._due[shard_id] = due

    def cancel(self, shard_id: int) -> None:
        """An append has told them.

        The task is not woken for a shard that is told in time, which a busy one always is.
        """
        self._due.pop(shard_id, None)
        if not self._due:
            self._sleep.deadline = math.inf

    async def run(self) -> None:
        """Serve as a task of the loop. Never returns."""
        while True:
            with trio.CancelScope(deadline=next(iter(self._due.values()), math.inf)) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            for shard_id in [shard_id for shard_id, due in self._due.items() if due <= now]:
                del self._due[shard_id]
                self._tell(shard_id)
