"""Linearizable reads of clients: those that come together are one read to the core (thesis §6.4)."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from drakkar.actors.node.deadlines import DeadlineErrors
from drakkar.actors.node.requests import ReadRequest
from drakkar.handlers.errors import RequestDropped
from drakkar.handlers.raft.ready import ReadReady

__all__ = ["ReadRequests"]

MAX_BATCHES: Final = 4
"""Batches that wait for the leader at a time. Reads that come meanwhile share the next one: under load
batches become larger."""


class _Batch:
    __slots__ = ("asked_at", "index", "requests")

    def __init__(self, requests: list[ReadRequest], asked_at: int) -> None:
        self.requests, self.asked_at = requests, asked_at
        self.index: int | None = None


class ReadRequests:
    """A replica's reads. All methods are for the loop's thread.

    A batch that was not confirmed is asked for again under a new context: of the next leader at once, since what
    the last one was asked is lost with it; and after `timeout_ticks`, since a message may be lost. That is safe, since
    reads change nothing, and a context must not be used twice.
    """

    def __init__(self, origin: int, *, timeout_ticks: int, ask: Callable[[int, int], None]) -> None:
        """`ask(hint, hint_high)` asks the core for a read of that context.

        `timeout_ticks` is how many ticks it may take.
        """
        self._origin = origin & ((1 << 62) - 1)
        self._timeout_ticks = timeout_ticks
        self._ask = ask
        self._waiting: deque[ReadRequest] = deque()
        self._batches: dict[int, _Batch] = {}
        self._asked: deque[ReadRequest] = deque()
        """Reads that went to the state machine, which may have answered them since."""
        self._leader = (0, 0)
        """Whom the batches on their way were asked: a term, and its leader."""
        self._number = 0
        self._count = 0

    def __len__(self) -> int:
        """How many wait for the leader, or for the state that they are to see. From any thread."""
        return self._count

    def add(self, request: ReadRequest) -> None:
        """Add a read, which waits for the next batch."""
        self._waiting.append(request)
        self._count += 1

    def start(self, tick: int, leader: tuple[int, int]) -> None:
        """Ask for all that wait as one batch, unless enough are on their way. `leader`: of which term, and which."""
        if leader != self._leader:
            self._leader = leader
            self._take_back()
        if self._waiting and sum(each.index is None for each in self._batches.values()) < MAX_BATCHES:
            requests, self._waiting = list(self._waiting), deque()
            self._begin(requests, tick)

    def _take_back(self) -> None:
        """What was asked of another leader waits again, in its order."""
        for number, each in reversed(list(self._batches.items())):
            if each.index is None:
                self.postpone(number)

    def _begin(self, requests: list[ReadRequest], tick: int) -> None:
        self._number += 1
        self._batches[self._number] = _Batch(requests, tick)
        self._ask(self._number, self._origin)

    def confirmed(self, ready: ReadReady) -> None:
        """The leader has confirmed a batch: its reads are due once `ready.index` is applied."""
        each = self._batches.get(ready.context[0]) if ready.context[1] == self._origin else None
        if each is not None:
            each.index = ready.index

    def due(self, applied: int) -> list[ReadRequest]:
        """Take the reads that the state machine is to answer now."""
        reached = [
            number
            for number, each in self._batches.items()
            if each.index is not None and each.index <= applied
        ]
        due = [request for number in reached for request in self._batches.pop(number).requests]
        self._count -= len(due)
        return due

    def asked(self, requests: Iterable[ReadRequest]) -> None:
        """Keep to the deadlines of reads that went to the state machine, which may be slow."""
        self._asked += [request for request in requests if not request.future.done]

    def postpone(self, number: int) -> None:
        """There is no leader to ask: the reads of a batch wait for the next leader."""
        each = self._batches.pop(number, None)
        if each is not None:
            self._waiting.extendleft(reversed(each.requests))

    def dropped(self, number: int, error: Exception) -> None:
        """Fail the reads of a batch that was refused."""
        each = self._batches.pop(number, None)
        if each is not None:
            self._count -= len(each.requests)
            for request in each.requests:
                request.future.try_fail(error)

    def expire(self, now: float, tick: int, late: DeadlineErrors) -> None:
        """Fail those whose deadline has passed, and ask again for batches that take too long."""
        if not self._count and not self._asked:
            return
        no_leader = late.no_leader()
        unconfirmed = no_leader or late.unconfirmed_read()
        self._asked = deque(_still_open(self._asked, now, late.query()))
        self._waiting = deque(_still_open(self._waiting, now, unconfirmed))
        for number, each in list(self._batches.items()):
            error = unconfirmed if each.index is None else late.read(each.index)
            each.requests = _still_open(each.requests, now, error)
            if not each.requests:
                del self._batches[number]
            elif no_leader is None and each.index is None and tick - each.asked_at >= self._timeout_ticks:
                del self._batches[number]
                self._begin(each.requests, tick)
        self._count = len(self._waiting) + sum(len(each.requests) for each in self._batches.values())

    def fail_all(self, error: Exception) -> None:
        """Fail all, as the replica ends."""
        for number in list(self._batches):
            self.dropped(number, error)
        for request in (*self._waiting, *self._asked):
            request.future.try_fail(error)
        self._waiting.clear()
        self._asked.clear()
        self._count = 0


def _still_open(requests: Iterable[ReadRequest], now: float, late: RequestDropped) -> list[ReadRequest]:
    """Return those without an answer. Those whose deadline has passed fail with `late`."""
    still_open = []
    for request in requests:
        if request.future.done:
            continue
        if request.deadline > now:
            still_open.append(request)
        else:
            request.future.try_fail(late)
    return still_open
