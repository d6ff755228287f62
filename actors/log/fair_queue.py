"""The order in which requests of replicas are written: a quiet one does not wait behind the backlog of a busy one.

Each request gets a turn, a number of bytes: that of the last request of its replica, or of the one that was
taken last if that is more, plus its own bytes. Requests are taken by their turns. So those of one replica
keep their order, replicas with a backlog share what is written by bytes, and one that had nothing waiting
comes before all that a busy one has beyond its share. (This is self-clocked fair queueing; Golestani, 1994.)
As long as all that waits can be written together, it stays in the order in which it came.
"""

from bisect import bisect_right
from operator import attrgetter
from typing import Final, Protocol, TypeVar

from drakkar.actors.log.records import ReplicaKey

__all__ = ["FairQueue"]

_TURN: Final = attrgetter("turn")


class Item(Protocol):
    """What waits."""

    turn: int
    """Set by the queue."""

    @property
    def key(self) -> ReplicaKey:
        """Whose it is."""
        ...

    @property
    def room(self) -> int:
        """Its bytes."""
        ...


ItemT = TypeVar("ItemT", bound=Item)


class FairQueue(list[ItemT]):
    """Requests that wait, the next one first. It changes by `put`, `put_last`, `popleft` and `clear`."""

    def __init__(self, together: int) -> None:
        """`together`: bytes that can be written at once."""
        super().__init__()
        self._together = together
        self._bytes = 0
        self._turn = 0
        """That of the request that was taken last."""
        self._turns: dict[ReplicaKey, int] = {}
        """Of the newest request of each replica."""

    def put(self, item: ItemT) -> None:
        """Add a request, at its place."""
        turn = max(self._turns.get(item.key, 0), self._turn) + item.room
        if self and self._bytes <= self._together:
            turn = max(turn, self[-1].turn)
        item.turn = self._turns[item.key] = turn
        self._bytes += item.room
        if not self or self[-1].turn <= turn:
            self.append(item)
        else:
            self.insert(bisect_right(self, turn, key=_TURN), item)

    def put_last(self, item: ItemT) -> None:
        """Add one that is taken after all that wait now."""
        item.turn = self[-1].turn if self else self._turn
        self._bytes += item.room
        self.append(item)

    def popleft(self) -> ItemT:
        """Take the next one. Raises `IndexError` where none waits."""
        item = self.pop(0)
        self._turn = item.turn
        self._bytes -= item.room
        if not self:
            self._begin_anew()
        return item

    def clear(self) -> None:
        """Drop all."""
        super().clear()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._turn = self._bytes = 0
        self._turns.clear()
