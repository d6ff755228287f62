"""What is promised when a quorum of the disks was emptied at once: a wrong answer ends when one that knows is heard.

The emptied founders may found the shard a second time, since most of them are empty and say so. Their leader has lost
what was committed, until a replica that still holds it speaks to it. From then on it commits nothing more, answers no
read, and ends. A replica whose log a leader of the other founding contradicts stops, on either side.
"""

from collections.abc import Iterable
from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.lives import Standing
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Ready
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.directories import Introduction
from drakkar.handlers.testing.history import History, Observed, Violation

__all__ = ["LostQuorum"]

_ENDS: Final = "INV51 a second founding ends when one that knows is heard"
_SILENT: Final = "INV52 a second founding answers nothing after one that knows was heard"


class LostQuorum:
    """The checks of one simulated shard from the moment on at which a quorum of its disks was emptied."""

    def __init__(self, history: History, emptied: Iterable[int]) -> None:
        self._history = history
        self._last = len(history.committed) - 1
        self._term = history.committed[self._last]
        emptied = set(emptied)
        self.knowing = {
            id_: known.directory.home
            for id_, known in history.replicas.items()
            if id_ not in emptied and known.storage.lives.standing is Standing.SETTLED and self._holds(id_)
        }
        """The replicas that still hold all that was committed, with their homes."""
        self._heard: dict[int, tuple[int, int]] = {}
        """The leaders that have heard one that knows: term, and the commit index then."""

    def _holds(self, replica: int) -> bool:
        return self._history.holds(replica, self._last, self._term)

    def divides(self, replica: int, answer: Message) -> bool:
        """Whether a leader confirms to a replica of the other founding that their logs differ: the replica has to stop.

        Only one of the two then holds what was committed at that index before the disks were emptied, or all of it where the index is newer.
        """
        if answer.type is not MessageType.CONTRADICTION_RESP or answer.reject:
            return False
        index = min(answer.log_index, self._last)
        term = self._history.committed[index]
        return self._history.holds(replica, index, term) != self._history.holds(answer.sender, index, term)

    def is_second(self, replica: int) -> bool:
        """Whether a replica belongs to a second founding: what was committed is not in its log."""
        return self._last > 1 and not self._holds(replica)

    def should_have_ended(self, raft: Raft) -> bool:
        """Whether a leader of a second founding has a member that knows, and all messages arrive."""
        return self.is_second(raft.id) and not raft.membership.everybody.isdisjoint(self.knowing)

    def heard(self, replica: Observed, message: Message, said: Introduction) -> bool:
        """Whether a leader of a second founding has just heard one that knows, which its term does not depose."""
        raft = replica.raft
        leads = raft.state is State.LEADER and raft.membership.is_voter(raft.id)
        knows = self.knowing.get(message.sender) == said.life.home
        if not (leads and knows and message.term == raft.term and self.is_second(replica.id)):
            return False
        if message.sender not in raft.membership.everybody or message.type.traits.from_leader:
            return False
        if raft.term != self._heard.get(replica.id, (0, 0))[0]:
            self._heard[replica.id] = raft.term, raft.log.committed
            self._history.happened["a second founding heard one that knows"] += 1
        return True

    def must_end(self, replica: Observed) -> None:
        """A leader has taken a message of one that knows."""
        if replica.up and replica.raft.state is State.LEADER:
            raise Violation(_ENDS, f"{replica.raft!r}, {self.knowing} know")

    def turned(self, raft: Raft) -> None:
        """A replica has taken a turn."""
        term, committed = self._heard.get(raft.id, (0, 0))
        if term == raft.term and raft.state is State.LEADER and raft.log.committed > committed:
            raise Violation(_SILENT, f"{raft!r} had committed {committed}")

    def handed_out(self, raft: Raft, ready: Ready) -> None:
        """A core hands out work for its host."""
        term, _ = self._heard.get(raft.id, (0, 0))
        if ready.reads and term == raft.term and raft.state is State.LEADER:
            raise Violation(_SILENT, f"{raft!r} answers {ready.reads}")
