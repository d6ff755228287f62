"""`OpenAsks`: what a node was asked, took, and has not answered yet. For replicas and for nodes without Raft."""

from dataclasses import dataclass
from typing import Any, Final

from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.effects import Answer
from drakkar.handlers.errors import OutcomeUnknown, SystemBusy
from drakkar.handlers.messages import Message
from drakkar.handlers.table import Cell
from drakkar.handlers.table_text import name_of

__all__ = ["ANSWER_TIMEOUT_S", "MAX_ASKS", "OpenAsks"]

MAX_ASKS: Final = 10_000
"""Asks that the handlers of one node have taken and not answered yet."""
ANSWER_TIMEOUT_S: Final = 60.0
"""How long an answer may take where the asker does not say, as pykka's `ask` does not. It ends askers that wait for ever."""


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """An ask that a handler has taken."""

    message: Message  # kept, so that no other has its identity
    future: ActorFuture[Any]
    deadline: float
    handler: str


class OpenAsks:
    """The asks of one node. For the thread of its loop, but for `len`."""

    def __init__(self) -> None:
        self._open: dict[int, list[_Open]] = {}
        """By the identity of their messages in memory: one object may be asked twice."""
        self._count = 0
        self.unasked = 0
        """Answers that came twice, or too late, or to what nobody had asked."""

    def __len__(self) -> int:
        """How many there are. From any thread."""
        return self._count

    def reason_to_refuse(self, node: object) -> SystemBusy | None:
        """Why no handler of `node` is to be asked now; None if one may be."""
        if self._count < MAX_ASKS:
            return None
        return SystemBusy(
            f"{MAX_ASKS} asks that {node} has taken have no answer yet: see that its handlers reply to each, wait a little and ask again"
        )

    def open(self, message: Message, future: ActorFuture[Any], deadline: float, handler: Cell) -> None:
        """A handler has taken `message`, and answers it later. `deadline` is in seconds of the clock of `expire`."""
        self._open.setdefault(id(message), []).append(_Open(message, future, deadline, name_of(handler)))
        self._count += 1

    def answer(self, answer: Answer) -> None:
        """A handler has replied: answer all who have asked this very message."""
        taken = self._open.pop(id(answer.message), [])
        self._count -= len(taken)
        if not [each for each in taken if each.future.try_set(answer.value)]:
            self.unasked += 1

    def expire(self, now: float, node: object) -> None:
        """Answer those whose deadline has passed: a handler of `node` may have done what was asked, or may still do it."""
        late = [each for taken in self._open.values() for each in taken if each.deadline <= now]
        for each in late:
            self._close(each)
            each.future.try_fail(
                OutcomeUnknown(
                    f"{each.handler}, which {node} has for {each.message.type}, has not replied by the deadline: "
                    "what was asked may have been done, or may still be"
                )
            )

    def _close(self, one: _Open) -> None:
        taken = self._open[id(one.message)]
        taken.remove(one)
        if not taken:
            del self._open[id(one.message)]
        self._count -= 1

    def fail_all(self, error: Exception) -> None:
        """Fail all that wait: the node ends."""
        waiting = [each for taken in self._open.values() for each in taken]
        self._open.clear()
        self._count = 0
        for each in waiting:
            each.future.try_fail(error)
