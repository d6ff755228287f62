"""Linearizable reads on their way: many at a time share one round of the leader (thesis §6.4)."""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from drakkar.actors.futures import ActorFuture
from drakkar.handlers.errors import RequestDropped
from drakkar.handlers.ready import ReadReady

__all__ = ["ReadRequest", "ReadRequests"]

_ROUNDS: Final = 4
"""Rounds on their way at a time. What comes meanwhile shares the next one, so that load makes them larger, not more."""


class ReadRequest(NamedTuple):
    """A question for the state machine, to be answered from a state no older than now."""

    query: Any
    future: ActorFuture[Any]
    deadline: float


class _Round:
    __slots__ = ("asked_at", "index", "requests")

    def __init__(self, requests: list[ReadRequest], asked_at: int) -> None:
        self.requests, self.asked_at = requests, asked_at
        self.index: int | None = None


class ReadRequests:
    """A replica's reads. For the loop's thread.

    A round that brings no answer within an election timeout, because a message of it was lost, is asked again under
    a new name: reads change nothing, so that is safe, and names must not be used twice.
    """

    def __init__(self, origin: int, *, patience: int, ask: Callable[[int, int], None]) -> None:
        """`ask(hint, hint_high)` starts a round; `patience` is how many ticks it may take."""
        self._origin = origin & ((1 << 62) - 1)
        self._patience = patience
        self._ask = ask
        self._waiting: deque[ReadRequest] = deque()
        self._rounds: dict[int, _Round] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(each.requests) for each in self._rounds.values())

    def add(self, request: ReadRequest) -> None:
        """Let a read wait for the next round."""
        self._waiting.append(request)

    def start(self, tick: int) -> None:
        """Start a round for all that wait, unless enough are on their way."""
        if self._waiting and sum(each.index is None for each in self._rounds.values()) < _ROUNDS:
            requests, self._waiting = list(self._waiting), deque()
            self._begin(requests, tick)

    def _begin(self, requests: list[ReadRequest], tick: int) -> None:
        self._number += 1
        self._rounds[self._number] = _Round(requests, tick)
        self._ask(self._number, self._origin)

    def confirmed(self, ready: ReadReady) -> None:
        """The leader confirmed a round: its reads see the state once `ready.index` is applied."""
        each = self._rounds.get(ready.context[0]) if ready.context[1] == self._origin else None
        if each is not None:
            each.index = ready.index

    def due(self, applied: int) -> list[ReadRequest]:
        """Take the reads whose state is reached."""
        reached = [
            number
            for number, each in self._rounds.items()
            if each.index is not None and each.index <= applied
        ]
        return [request for number in reached for request in self._rounds.pop(number).requests]

    def dropped(self, number: int, error: Exception) -> None:
        """A round was refused."""
        each = self._rounds.pop(number, None)
        for request in each.requests if each is not None else ():
            request.future.try_fail(error)

    def expire(self, now: float, tick: int) -> None:
        """Answer those whose deadline has passed, and ask again for those that were left without an answer."""
        late = RequestDropped(
            "no answer by the read's deadline: a leader, or this replica's applying, is slow; repeat it"
        )
        self._waiting = deque(request for request in self._waiting if not _is_over(request, now, late))
        for number, each in list(self._rounds.items()):
            each.requests = [request for request in each.requests if not _is_over(request, now, late)]
            if not each.requests:
                del self._rounds[number]
            elif each.index is None and tick - each.asked_at >= self._patience:
                del self._rounds[number]
                self._begin(each.requests, tick)

    def fail_all(self, error: Exception) -> None:
        """The replica is over."""
        for request in self._waiting:
            request.future.try_fail(error)
        for number in list(self._rounds):
            self.dropped(number, error)
        self._waiting.clear()


def _is_over(request: ReadRequest, now: float, error: Exception) -> bool:
    if request.deadline <= now:
        request.future.try_fail(error)
    return request.future.done
