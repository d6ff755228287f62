"""A question that this host has asked another one, until it has its outcome."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import pykka
from drakkar.actors.remote.deadlines import slot_of
from drakkar.actors.remote.errors import AnswerTimeout, HostGone
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import DrakkarError, OutcomeUnknown

__all__ = ["Asked", "Question", "settled"]


class Asked(Protocol):
    """What has been asked: a future of the answer, and a way to wait for it."""

    @property
    def future(self) -> ActorFuture[Any]:
        """Set to the answer, or to why there is none: by the deadline."""
        ...

    def wait(self) -> Any:
        """Return the answer, or raise why there is none: by the deadline. Not in the thread of a loop."""


class Way(Protocol):
    """The way to a host, which knows the questions that it has not answered: see `links.Link`."""

    @property
    def address(self) -> str:
        """Of the host."""
        ...

    @property
    def heard(self) -> bool:
        """Something has come from it."""
        ...

    def end(self, question: "Question", error: DrakkarError) -> None:
        """Fail a question, unless it has ended. From any thread."""


class Question:
    """A question without an answer."""

    __slots__ = (
        "deadline",
        "future",
        "number",
        "patient",
        "read",
        "record",
        "sent",
        "slot",
        "stopped",
        "timeout",
        "way",
        "what",
    )

    def __init__(
        self,
        way: Way,
        number: int,
        timeout: float,
        what: object,
        read: Callable[[bytes], Any],
        stopped: Callable[[], object] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """Begin to count the time.

        `timeout`: in seconds. `what` is whom it is for, in errors. `read` makes the answer of its bytes; it may raise
        `DrakkarError`. `stopped` is called if the answer is that the actor has ended. `patient`: where the host is out of reach,
        it waits for the next attempt to reach it, and does not fail at once.
        """
        self.way, self.number, self.what, self.read, self.stopped = way, number, what, read, stopped
        self.timeout, self.patient = timeout, patient
        self.future: ActorFuture[Any] = ActorFuture()
        self.deadline = time.monotonic() + timeout
        self.slot = slot_of(self.deadline)
        self.record = b""
        """What was sent, to know it again if it is handed back."""
        self.sent = False
        """It was given to the transport, so it may have left this host."""

    def wait(self) -> Any:
        """See `Asked`."""
        try:
            return self.future.get(timeout=max(0.0, self.deadline - time.monotonic()))
        except pykka.Timeout:
            self.give_up()  # unless that is what the actor has answered
        return self.future.get()

    def give_up(self) -> None:
        """Its time is over."""
        address = self.way.address
        hint = (
            ""
            if self.way.heard
            else f"; nothing was ever heard of {address}: can it reach this host at its address?"
        )
        text = (
            f"no answer of {self.what} by the deadline. It may have handled the message, or may still{hint}"
        )
        self.way.end(self, AnswerTimeout(text))

    def cut_off(self, why: str) -> DrakkarError:
        """Return the error of one that gets no answer any more, since the way is closed."""
        if self.sent:
            return OutcomeUnknown(f"{why} before {self.what} had answered: it may have handled the message")
        return self.unreached(why)

    def unreached(self, why: object) -> DrakkarError:
        """Return the error of one that has not left this host."""
        return HostGone(f"{self.what} was not reached: {why}")


class _Settled:
    """What had its outcome at once."""

    def __init__(self, future: ActorFuture[Any]) -> None:
        self.future = future

    def wait(self) -> Any:
        """See `Asked`."""
        return self.future.get()


def settled(value: Any = None, error: Exception | None = None) -> Asked:
    """Return what has this outcome already."""
    future: ActorFuture[Any] = ActorFuture()
    if error is None:
        future.set(value)
    else:
        future.fail(error)
    return _Settled(future)
