"""Where messages to one peer wait: control apart from bulk, since control is never behind bulk.

Control is small and most urgent: votes, heartbeats, acknowledgements. It is written first. Bulk may be large, so it has
a budget of bytes that all shards share, and they are served round robin by bytes: each in turn may send 64 KiB, and
what it sent beyond that is taken off its next turn. The bulk of one shard keeps its order.

A message too large for one frame leaves in parts, and control, and small messages of other shards, go between them. The
large messages of several shards go one after the other, each whole: no shard's turn comes between the parts of another's. Large
calls take turns with them: see `parts.PartTurns`.
"""

from collections import deque
from typing import Final

from drakkar.handlers.messages import Message
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.transport.message_frames import Packed, body_of
from drakkar.transport.parts import PART_BYTES, PartTurns, PartWriter

__all__ = ["BulkLane", "ControlLane", "size_of"]

_ITEM_OVERHEAD: Final = 256
"""Bytes that a waiting message counts in addition to its encoded bytes: about what its objects take."""
_QUANTUM: Final = 64 << 10
"""Bytes that a shard may send before it is the next shard's turn."""


class ControlLane:
    """Encoded messages and complete frames, first in, first out."""

    __slots__ = ("_max_bytes", "_max_items", "bytes", "items")

    def __init__(self, max_bytes: int, max_items: int) -> None:
        self._max_bytes, self._max_items = max_bytes, max_items
        self.items: deque[Packed | bytes] = deque()
        """What waits; to be read only."""
        self.bytes = 0

    def put(self, item: Packed | bytes) -> bool:
        """Queue an item; return False where there is no room. An item of any size fits where nothing waits."""
        items = self.items
        size = size_of(item) + _ITEM_OVERHEAD
        if items and (len(items) >= self._max_items or self.bytes + size > self._max_bytes):
            return False
        items.append(item)
        self.bytes += size
        return True

    def take(self, limit: int) -> list[Packed | bytes]:
        """Take items until they have `limit` bytes or more."""
        taken: list[Packed | bytes] = []
        items = self.items
        size = 0
        while items and size < limit:
            item = items.popleft()
            taken.append(item)
            size += size_of(item)
        self.bytes -= size + _ITEM_OVERHEAD * len(taken)
        return taken

    def recall(self, item: Packed) -> int:
        """Drop what equals an item; return how many those were."""
        kept = deque(waiting for waiting in self.items if waiting != item)
        dropped = len(self.items) - len(kept)
        self.items = kept
        self.bytes -= dropped * (size_of(item) + _ITEM_OVERHEAD)
        return dropped

    def clear(self) -> int:
        """Drop all; return how many those were."""
        dropped = len(self.items)
        self.items.clear()
        self.bytes = 0
        return dropped


class _ShardQueue:
    """What waits of one shard."""

    __slots__ = ("credit", "items", "shard")

    def __init__(self) -> None:
        self.shard = 0
        self.items: deque[tuple[Packed, Message | None]] = deque()
        self.credit = 0
        """Bytes that it may still send in its turn. Below zero: what it sent too much."""


class BulkLane:
    """Encoded messages of all shards, within one budget of bytes.

    It says that it has no room before it is full, at three quarters. What was let in before that is taken in any case: a
    lane that is not full takes a message of any size, so it holds at most one message more than its budget.
    """

    __slots__ = (
        "_cutting",
        "_max_bytes",
        "_max_messages",
        "_part_turns",
        "_queues",
        "_spare",
        "_turns",
        "_writer",
        "bytes",
        "count",
    )

    def __init__(self, max_bytes: int, max_messages: int, part_turns: PartTurns | None = None) -> None:
        """`part_turns`: shared with the lane of calls."""
        self._max_bytes, self._max_messages = min(max_bytes, UNLIMITED), max_messages
        self._part_turns = part_turns or PartTurns()
        self._queues: dict[int, _ShardQueue] = {}
        """Those in which something waits."""
        self._turns: deque[_ShardQueue] = deque()
        """The same queues; the first has its turn."""
        self._spare = _ShardQueue()
        """For the next shard: mostly one message waits, and then none."""
        self._cutting: _ShardQueue | None = None
        """The shard whose first message is being sent in parts."""
        self._writer: PartWriter
        self.count = 0
        """Messages that wait."""
        self.bytes = 0

    @property
    def share(self) -> int:
        """The least room that is worth telling of, in bytes: a quarter of the budget."""
        return max(self._max_bytes // 4, 1)

    @property
    def full(self) -> bool:
        """It takes nothing now."""
        return self.count > 0 and (self.bytes >= self._max_bytes or self.count >= self._max_messages)

    def room(self) -> int:
        """Return how many bytes fit: `UNLIMITED` where nothing waits, else a quarter of the budget or more, or 0."""
        if not self.count:
            return UNLIMITED
        free = self._max_bytes - self.bytes
        return free if free >= self.share and self.count < self._max_messages else 0

    def reserve(self, shard: int) -> int:
        """Return how many bytes of a shard fit where `room` is not for it: those of a turn, where nothing of it waits."""
        return 0 if shard in self._queues else min(self._max_bytes - self.bytes, _QUANTUM)

    def drained(self) -> int:
        """Return how many bytes are free, where that is half of the budget or more, else 0."""
        if 2 * self.bytes > self._max_bytes or 2 * self.count > self._max_messages:
            return 0
        return self._max_bytes - self.bytes

    def waiting(self, shard: int) -> int:
        """Return how many messages of a shard wait."""
        queue = self._queues.get(shard)
        return 0 if queue is None else len(queue.items)

    def put(self, packed: Packed, message: Message) -> None:
        """Queue a message. Ask `full` first."""
        queue = self._queues.get(message.shard)
        if queue is None:
            queue = self._add_queue(message.shard)
        # A leader sends again what was lost; of all else the sender must hear.
        queue.items.append((packed, None if message.type.traits.from_leader else message))
        self.count += 1
        self.bytes += packed.size + _ITEM_OVERHEAD

    def _add_queue(self, shard: int) -> _ShardQueue:
        queue = self._spare if not self._spare.items else _ShardQueue()
        queue.shard, queue.credit = shard, _QUANTUM
        self._queues[shard] = queue
        self._turns.append(queue)
        return queue

    def take(self, limit: int) -> list[Packed | bytes]:
        """Take messages, and PART frames of large ones, until they have `limit` bytes or more.

        Fewer, or nothing, where all that wait are large and must wait for a large call.
        """
        taken: list[Packed | bytes] = []
        turns = self._turns
        if self.count == 1 and (only := self._next(turns[0])) is not None:  # mostly it is one
            return [only]
        size = held_up = 0
        while turns and size < limit and held_up < len(turns):
            queue = turns[0]
            if queue.credit <= 0:
                queue.credit += _QUANTUM
                turns.rotate(-1)
                held_up = 0
            elif (item := self._next(queue)) is None:
                turns.rotate(-1)
                held_up += 1
            else:
                taken.append(item)
                count = size_of(item)
                size += count
                queue.credit -= count
                held_up = 0
        return taken

    def _next(self, queue: _ShardQueue) -> Packed | bytes | None:
        """Take what a shard sends next; None where it must wait for the end of another large message or call."""
        packed = queue.items[0][0]
        if packed.size <= PART_BYTES:
            self._remove_first(queue, packed)
            return packed
        if self._cutting is None:
            if not self._part_turns.take(self):
                return None
            self._cutting, self._writer = queue, PartWriter(body_of([packed]))
        elif self._cutting is not queue:
            return None
        part = self._writer.next()
        if self._writer.done:
            self._cutting = None
            self._part_turns.leave(self)
            self._remove_first(queue, packed)
        return part

    def _remove_first(self, queue: _ShardQueue, packed: Packed) -> None:
        """Forget the first message of the shard whose turn it is."""
        queue.items.popleft()
        self.count -= 1
        self.bytes -= packed.size + _ITEM_OVERHEAD
        if not queue.items:
            self._turns.popleft()
            del self._queues[queue.shard]
            self._spare = queue

    def clear(self) -> tuple[int, list[Message]]:
        """Drop all; return how many those were that a leader sends again, and the others."""
        unsent = [
            message for queue in self._queues.values() for _, message in queue.items if message is not None
        ]
        dropped = self.count - len(unsent)
        self._queues.clear()
        self._turns.clear()
        self._spare, self._cutting = _ShardQueue(), None
        self._part_turns.leave(self)
        self.count = self.bytes = 0
        return dropped, unsent


def size_of(item: Packed | bytes) -> int:
    """Return the bytes of a message or frame."""
    return item.size if type(item) is Packed else len(item)
