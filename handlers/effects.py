"""What handlers ask their node to do beyond messages to other nodes: data, until the host executes it after the batch."""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from drakkar.handlers.errors import ConfigError, SystemBusy
from drakkar.handlers.messages import Message

__all__ = ["MAX_EFFECTS", "Answer", "Effects", "Failure", "Told", "not_a_type"]

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


def not_a_type(message: Message, answer: Any) -> ConfigError:
    """Return the error for a value in answer to another node, which cannot be asked and is sent messages."""
    return ConfigError(
        "reply",
        reprlib.repr(answer),
        f"{message.type} came from node {message.sender}, so the answer is a MessageType, with the fields of the message",
    )


class Effects:
    """The effects that wait for the host; each list is in order, and bounded. Raises `SystemBusy` beyond 10,000 of a sort."""

    def __init__(self) -> None:
        self.tells: list[Told] = []
        self.events: list[Any] = []
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []
        self.waiting = False
        """There are some: asked by each `ready`, so it is no more than an attribute."""
        self.many = False
        """Of some sort there are half of those that may wait."""
        self.on_many: Callable[[], object] | None = None
        """Set by a host: takes them between two deliveries to extensions, of which there may be very many in one batch."""

    def tell(self, ref: Any, message: Any) -> None:
        """Tell another actor a message."""
        self._add(self.tells, Told(ref, message), "tells")

    def publish(self, event: Any) -> None:
        """Publish an event."""
        self._add(self.events, event, "events")

    def answer(self, message: Message, value: Any, fields: dict[str, Any]) -> None:
        """Answer a message that was asked in this process. A value has no `fields`: those of a reply to another node."""
        if fields:
            raise ConfigError(
                "reply",
                ", ".join(fields),
                f"{message.type} was asked in this process, so its answer is a value, without fields",
            )
        self._add(self.answers, Answer(message, value), "answers")

    def fail(self, message: Message, error: Exception) -> None:
        """Report a timer's message whose handler failed. Beyond the bound it is only counted, in `Tally.failed`."""
        if len(self.failures) < MAX_EFFECTS:
            self._add(self.failures, Failure(message, error), "failures")

    def _add(self, waiting: list[Any], effect: Any, what: str) -> None:
        if len(waiting) >= MAX_EFFECTS:
            raise SystemBusy(
                f"{MAX_EFFECTS} {what} wait already for the end of this batch: spread them over several"
            )
        waiting.append(effect)
        self.waiting = True
        self.many = self.many or len(waiting) >= MAX_EFFECTS // 2

    def hand_out(self, ready: Any) -> None:
        """Move everything into `ready`, which has lists of these names."""
        ready.tells, ready.events = self.tells, self.events
        ready.answers, ready.failures = self.answers, self.failures
        self.tells, self.events, self.answers, self.failures = [], [], [], []
        self.waiting = self.many = False
