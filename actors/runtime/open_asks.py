"""`OpenAsks`: questions that a node has not answered yet, by the messages that asked them."""

from typing import Final

from drakkar.actors.runtime.futures import AnswerLater
from drakkar.handlers.effects import Answer
from drakkar.handlers.errors import SystemBusy
from drakkar.handlers.messages import Message

__all__ = ["MAX_ASKS", "OpenAsks"]

MAX_ASKS: Final = 10_000
"""Questions to one node that have no answer yet."""


class OpenAsks:
    """The questions of one node. For the thread of its loop."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Message, list[AnswerLater[object]]]] = {}
        """By the identity of the message, which is kept so that it has no other's."""
        self._count = 0
        self.unasked = 0
        """Answers that nobody waited for."""

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def open(self, message: Message) -> AnswerLater[object]:
        """Return what the asker is to wait for. Raises `SystemBusy` where too many wait."""
        if self._count >= MAX_ASKS:
            raise SystemBusy(
                f"{MAX_ASKS} questions to this node have no answer yet, and more are not allowed: see that its handlers reply "
                "to each, and ask again later"
            )
        self._count += 1
        later: AnswerLater[object] = AnswerLater()
        self._open.setdefault(id(message), (message, []))[1].append(later)
        return later

    def answer(self, answer: Answer) -> None:
        """Answer all who have asked this message."""
        _, waiting = self._open.pop(id(answer.message), (None, []))
        self._count -= len(waiting)
        self.unasked += not waiting
        for later in waiting:
            later.set(answer.value)

    def fail(self, error: Exception) -> None:
        """Fail all that wait: the node ends."""
        waiting = [later for _, some in self._open.values() for later in some]
        self._open.clear()
        self._count = 0
        for later in waiting:
            later.fail(error)
