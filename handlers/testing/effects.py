"""What handlers have asked their nodes to do, as a test sees it; and asks, as `Replica.ask` has them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from drakkar.handlers.cells import EMPTY
from drakkar.handlers.effects import Answer, Failure, Told
from drakkar.handlers.errors import ConfigError, RequestDropped
from drakkar.handlers.extension import LATER
from drakkar.handlers.messages import Message, is_own

__all__ = ["HandedOut", "SeenEffects", "check_own"]


class HandedOut(Protocol):
    """The effects in a `Ready` or `NodeReady`."""

    @property
    def tells(self) -> Sequence[Told]:
        """Messages for other actors."""
        ...

    @property
    def events(self) -> Sequence[Any]:
        """What was published."""
        ...

    @property
    def answers(self) -> Sequence[Answer]:
        """Answers to messages that were asked."""
        ...

    @property
    def failures(self) -> Sequence[Failure]:
        """Messages of timers whose handlers have failed."""
        ...


class Asked(Protocol):
    """A node that can be asked."""

    state: Any

    def step(self, message: Message) -> Any:
        """Answer one message."""


class SeenEffects:
    """What the handlers of one node have asked for, over all its lives, oldest first."""

    def __init__(self) -> None:
        self.tells: list[Told] = []
        self.events: list[Any] = []
        self.answers: list[Answer] = []

    def note(self, handed_out: HandedOut) -> None:
        """Take note of effects. Raises the error of the first timer's message whose handler failed."""
        self.tells += handed_out.tells
        self.events += handed_out.events
        self.answers += handed_out.answers
        for failure in handed_out.failures:
            raise failure.error

    def ask(self, node: Asked, message: Message, settle: Callable[[], object]) -> Any:
        """Step a message, let happen what follows by `settle`, and return the answer; `LATER` if there is none by then.

        Raises `RequestDropped`, which says why, if no handler takes it.
        """
        check_own(message)
        answered = len(self.answers)
        answer = node.step(message)
        if isinstance(answer, EMPTY):
            raise RequestDropped(f"no handler took {message.type} in {node.state.name}: {answer.because}")
        settle()
        if answer is not LATER:
            return answer
        later = (each.value for each in self.answers[answered:] if each.message is message)
        return next(later, LATER)


def check_own(message: Message) -> None:
    """Raise `ConfigError` unless a message may be told and asked: one of a type of the application's own."""
    if not is_own(message.type):
        raise ConfigError(
            "message",
            message.type,
            "types of your own are told and asked: use `step`, or the method for it, such as `propose`",
        )
