"""How a replica leaves its shard without an election: a leader hands over before its replica stops, or moves."""

from dataclasses import dataclass
from typing import ClassVar

from drakkar.actors.node.completions import own_type
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import transfer
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State

__all__ = ["Departure", "Leave"]


@dataclass(frozen=True, slots=True)
class Leave:
    """The replica is to stop soon, as its own host says."""

    type: ClassVar[MessageType] = own_type("LEAVE", 213)


class Departure:
    """The last thing that a replica does for its shard. All methods are for the loop's thread."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self.under_way = False
        self.over: ActorFuture[bool] = ActorFuture()
        """Set when the replica may stop: to True if it led and another one does now, else to False.

        Whether a successor takes over is not certain, so wait for it with a bound.
        """

    def begin(self) -> None:
        """Hand over, if this replica leads. It is over at once if it does not, and where no voter can take over."""
        if not self.over.done:
            self.under_way = self._leads
            self.proceed()

    def proceed(self) -> None:
        """Go on; called in every batch. Where the successor is lost meanwhile, another one takes its place."""
        if not self.under_way:
            self.end()
        elif self._leads:
            self._hand_over()
        elif self._raft.leader_id:
            self.end(handed_over=True)

    @property
    def _leads(self) -> bool:
        return self._raft.state is State.LEADER

    def _hand_over(self) -> None:
        raft = self._raft
        target = transfer.successor(raft, raft.membership)
        if not target:
            self.end()
        elif target != raft.transfer.target:
            raft.step(Message(MessageType.LEADER_TRANSFER, sender=raft.id, hint=target))

    def move(self) -> None:
        """Let another one lead, if this replica does: the others answer at its new address, where it hears nothing yet."""
        target = transfer.successor(self._raft, self._raft.membership) if self._leads else 0
        if target and target != self._raft.transfer.target:
            self._raft.step(Message(MessageType.LEADER_TRANSFER, sender=self._raft.id, hint=target))

    def end(self, *, handed_over: bool = False) -> None:
        """Do no more: it is done, or in vain, or the replica has ended."""
        self.under_way = False
        self.over.try_set(handed_over)
