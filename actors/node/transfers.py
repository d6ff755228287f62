"""Leadership transfers that clients of this replica wait for (thesis §3.10)."""

from collections.abc import Callable
from typing import Final

from drakkar.actors.node.requests import TransferRequest
from drakkar.handlers.errors import OutcomeUnknown, RequestDropped, SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.raft import Raft

__all__ = ["Transfers"]

MAX_TRANSFERS: Final = 1_000
"""Transfers that clients may wait for at a time."""


class Transfers:
    """The transfers that clients wait for. All methods are for the loop's thread."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._waiting: list[tuple[TransferRequest, int]] = []
        """Each with the term in which it was asked for."""

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, request: TransferRequest) -> None:
        """Ask the leader, which may be this replica, for a transfer."""
        if len(self._waiting) >= MAX_TRANSFERS:
            request.future.try_fail(
                SystemBusy(f"{MAX_TRANSFERS} transfers are waited for already: wait for one")
            )
            return
        raft = self._raft
        self._waiting.append((request, raft.term))
        raft.step(Message(MessageType.LEADER_TRANSFER, sender=raft.id, hint=request.target))
        self.settle()

    def settle(self) -> None:
        """Answer the transfers whose target leads now, and those that an older leader was asked for: they are over."""
        if not self._waiting:
            return
        leader, term = self._raft.leader_id, self._raft.term
        for request, _ in self._waiting:
            if request.target == leader:
                request.future.try_set(leader)
        elected = RequestDropped(
            f"replica {leader} was elected instead: ask again if the target is still to lead"
        )
        self._fail(lambda _, asked_in: leader > 0 and asked_in < term, elected)

    def dropped(self, target: int, error: Exception) -> None:
        """Answer those who wait for `target`: the leader refused the transfer, or has given it up."""
        self._fail(lambda request, _: request.target == target, error)

    def expire(self, now: float) -> None:
        """Answer those whose deadline has passed; `now` is in seconds of the node's clock."""
        if self._waiting:
            late = OutcomeUnknown("the target was not seen to lead by the deadline; it may still be elected")
            self._fail(lambda request, _: request.deadline <= now, late)

    def fail_all(self, error: Exception) -> None:
        """Answer all, as the replica ends."""
        self._fail(lambda *_: True, error)

    def _fail(self, over: Callable[[TransferRequest, int], bool], error: Exception) -> None:
        """Answer those that are over, and forget them and those that are answered."""
        for request, asked_in in self._waiting:
            if over(request, asked_in):
                request.future.try_fail(error)
        self._waiting = [each for each in self._waiting if not each[0].future.done]
