"""Clients that wait for this replica's state machine to reach an index."""

from collections.abc import Callable

from drakkar.actors.node.requests import AppliedRequest
from drakkar.handlers.errors import RequestDropped, SystemBusy

__all__ = ["AppliedRequests"]


class AppliedRequests:
    """Those who wait. All methods are for the loop's thread."""

    def __init__(self, *, max_requests: int) -> None:
        self._max = max_requests
        self._waiting: list[AppliedRequest] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: AppliedRequest) -> None:
        """Let a request wait; `answer` is called after each batch."""
        if len(self._waiting) >= self._max:
            request.future.try_fail(
                SystemBusy(f"{self._max} wait for the state machine already: wait a little")
            )
        else:
            self._waiting.append(request)

    def answer(self, applied: int, now: float, late: Callable[[int], RequestDropped]) -> None:
        """Answer those whose index is reached, and those whose deadline has passed: `late(index)` says why."""
        for request in self._waiting:
            if request.index <= applied:
                request.future.try_set(applied)
            elif request.deadline <= now:
                request.future.try_fail(late(request.index))
        self._waiting = [request for request in self._waiting if not request.future.done]

    def fail_all(self, error: Exception) -> None:
        """Answer all, as the replica ends."""
        for request in self._waiting:
            request.future.try_fail(error)
        self._waiting.clear()
