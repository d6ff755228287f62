"""What handlers ask their node to do beyond messages to other nodes: data, until the host executes it after the batch."""

from dataclasses import dataclass
from typing import Any, Final

from drakkar.handlers.messages import Message

__all__ = ["MAX_EFFECTS", "Answer", "Effects", "Failure", "Told"]

MAX_EFFECTS: Final = 10_000
"""Effects of each sort that may wait until the host takes them."""


@dataclass(frozen=True, slots=True)
class Told:
    """A message for another actor."""

    ref: Any
    message: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a message that was asked; `message` is the very object that was stepped."""

    message: Message
    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """A timer's message whose handler raised `error`. The node goes on."""

    message: Message
    error: Exception


class Effects:
    """The effects that wait for the host; each list is in order."""

    def __init__(self) -> None:
        self.tells: list[Told] = []
        self.events: list[Any] = []
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []

    def answer(self, message: Message, value: Any, fields: dict[str, Any]) -> None:
        """Answer a message that was asked in this process. A value has no `fields`: those of a reply to another node."""
        raise NotImplementedError
