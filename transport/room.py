"""The shards that wait for room in a bulk lane, in the order in which they were refused."""

__all__ = ["RoomQueue"]


class RoomQueue:
    """Who may use the room of a lane: first refused, first told.

    A shard that has much to send would always take what has just become free, before one that waits hears of it. So
    while any shard waits, only those that were told get room, and each only for a share of bytes. The first message of one
    that was told may be larger than what is free: else it could wait for ever beside others that fill the lane.

    A shard with little to send need not wait behind them: it gets a reserve, in which nothing of it waits already. Of that
    all together get a share of bytes between two times that shards are told, so that the lane drains in any case.
    """

    __slots__ = ("_passed", "_refused", "_share", "_told")

    def __init__(self, share: int) -> None:
        """`share` is how many bytes a shard that was told may send, and the least room that is told of; 1 or more."""
        self._share = share
        self._refused: dict[int, None] = {}
        self._told: dict[int, int] = {}
        """What is left of its share, for each shard that was told."""
        self._passed = 0
        """Bytes that others have sent since any were told, while some waited."""

    def __len__(self) -> int:
        """How many shards wait."""
        return len(self._refused)

    def ask(self, shard: int, room: int, *, least: int = 1, reserve: int = 0) -> int:
        """Return what a shard gets of the room that there is: `least` or more, or 0. It waits where it gets 0.

        `reserve` is what there is besides, for this shard alone.
        """
        left = self._told.get(shard, 0)
        if room >= least and (left or not self._refused):
            return room
        if left == self._share:
            return least
        if reserve >= least and self._passed < self._share:
            return reserve
        return self.refuse(shard)

    def refuse(self, shard: int) -> int:
        """Let a shard wait until it is told; return 0, the room that it has."""
        self._told.pop(shard, None)
        self._refused[shard] = None
        return 0

    def used(self, shard: int, size: int) -> None:
        """Note that a shard has used so many bytes of its room."""
        if shard in self._told:
            self._told[shard] -= size
            if self._told[shard] <= 0:
                del self._told[shard]
        elif self._refused:
            self._passed += size

    def tell(self, room: int) -> list[int]:
        """Take out the shards that may use `room` now, a share each, in order."""
        chosen = list(self._refused)[: room // self._share]
        for shard in chosen:
            del self._refused[shard]
            self._told[shard] = self._share
        if chosen:
            self._passed = 0
        return chosen

    def clear(self) -> None:
        """Forget all."""
        self._refused.clear()
        self._told.clear()
        self._passed = 0
