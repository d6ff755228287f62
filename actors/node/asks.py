"""Messages of an application's own types that come from this process: told, or asked for an answer.

    replica.ask(…) ─► its lane of the inbox ─► the handler table ─┬─► the handler's answer, or exception ─► the future
                                                                  └─► LATER ─► node.reply(message, …)    ─► the future

An ask has an answer by its deadline, to within a tick: where no handler takes the message, the replica ends, or a handler
never replies, an error that says so.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from drakkar.actors.node.inbox import NodeInbox, OwnMessagesTaken
from drakkar.actors.node.refusals import refusal_of_the_table
from drakkar.actors.node.requests import OwnMessage
from drakkar.actors.runtime.futures import in_full
from drakkar.handlers.cells import EMPTY
from drakkar.handlers.effects import Answer
from drakkar.handlers.errors import (
    ActorFailed,
    DrakkarError,
    OutcomeUnknown,
    ReplicaStopped,
    RequestDropped,
    SystemBusy,
)
from drakkar.handlers.extension import LATER
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State

__all__ = ["Asks"]

MAX_OPEN: Final = 10_000
"""Asks that handlers have taken and not answered yet."""
MAX_TURN_MESSAGES: Final = 256
MAX_TURN_BYTES: Final = 1 << 20
"""Messages, and bytes of their payloads, that one turn brings to the table, at most."""


@dataclass(frozen=True, slots=True)
class _Open:
    """An ask that a handler has taken."""

    ask: OwnMessage
    handler: str


class Asks:
    """The messages from this process, and those among them without an answer. All methods are for the loop's thread."""

    def __init__(
        self,
        raft: Raft,
        inbox: NodeInbox,
        *,
        step: Callable[[Message], Any],
        reason_to_refuse: Callable[[], DrakkarError | None],
        now: Callable[[], float],
    ) -> None:
        """`step` brings a message to the table; `reason_to_refuse` says why none is to be asked now.

        `now`: the clock of the deadlines, in seconds.
        """
        self._raft, self._inbox, self._step, self._now = raft, inbox, step, now
        self._reason_to_refuse = reason_to_refuse
        self._open: dict[int, _Open] = {}
        """By the identity of their messages in memory."""
        self.unasked = 0
        """Answers that came twice, or too late, or to what nobody had asked."""

    def __len__(self) -> int:
        """How many handlers have taken and not answered. From any thread."""
        return len(self._open)

    def waiting(self) -> OwnMessagesTaken | None:
        """Take what waits in the inbox: as much as one turn may bring to the table."""
        messages = self._inbox.own.take(MAX_TURN_MESSAGES, MAX_TURN_BYTES)
        return OwnMessagesTaken(messages) if messages else None

    def take(self, taken: OwnMessagesTaken) -> None:
        """Bring messages to the table, until one shows that the node must end; answer those that are asked."""
        waiting = deque(taken.messages)
        try:
            while waiting and self._raft.tally.broken is None:
                self.handle(waiting.popleft())
        finally:
            for each in waiting:
                each.future.try_fail(ReplicaStopped(f"{self._name} failed before it took the message"))

    def handle(self, own: OwnMessage, *, bare: bool = False) -> None:
        """Bring one message to the table. An exception that is no `Exception` passes, and ends the node.

        `bare`: it was asked by the `ask` of pykka's refs, whose answer is None where no handler takes the message.
        """
        refusal = self._refusal(own) if own.asked else None
        if refusal is not None:
            own.future.try_fail(refusal)
            return
        before = self._handled(own.message.type)
        try:
            answer = self._step(own.message)
        except Exception as error:  # noqa: BLE001  # it is the answer; the table knows whether it ends the node
            if own.asked:
                unread = f"{self._name} answered {own.message.type} with an exception"
                own.future.try_fail(error, unread=unread)
        except BaseException as error:
            if own.asked:
                own.future.try_fail(_crashed(self._name, error))
            raise
        else:
            if own.asked:
                self._settle(own, answer, self._which_handled(own.message.type, before), bare=bare)

    def _refusal(self, own: OwnMessage) -> DrakkarError | None:
        if own.deadline <= self._now():
            return _late()
        if len(self._open) >= MAX_OPEN:
            return SystemBusy(
                f"{MAX_OPEN} asks that {self._name} has taken have no answer yet: wait a little and ask again"
            )
        return self._reason_to_refuse()

    def _settle(self, own: OwnMessage, answer: Any, state: State | None, *, bare: bool) -> None:
        """An ask met a handler in `state`, or none."""
        type_ = own.message.type
        if state is not None and answer is LATER:
            handler = self._raft.handlers[state][type_]
            self._open[id(own.message)] = _Open(own, getattr(handler, "__name__", repr(handler)))
        elif state is not None or bare:
            own.future.try_set(None if isinstance(answer, EMPTY) else answer)
        else:
            own.future.try_fail(
                refusal_of_the_table(self._raft, type_)
                or RequestDropped(f"{self._name} did not take {type_}: a guard of its table swallowed it")
            )

    def _handled(self, type_: MessageType) -> list[int]:
        handled = self._raft.tally.handled
        return [handled[state, type_] for state in State]

    def _which_handled(self, type_: MessageType, before: list[int]) -> State | None:
        """Return the state whose handler has taken a message since; None if none has. A guard may have changed the state."""
        counts = zip(State, before, self._handled(type_), strict=True)
        return next((state for state, was, now in counts if now > was), None)

    @property
    def _name(self) -> str:
        return f"replica {self._raft.id} of shard {self._raft.config.shard_id}"

    # -- answers that come later --------------------------------------------------------------------------------------

    def answered(self, answers: Iterable[Answer]) -> None:
        """Handlers have replied."""
        for answer in answers:
            found = self._open.pop(id(answer.message), None)
            if found is None or not found.ask.future.try_set(answer.value):
                self.unasked += 1

    def expire(self, now: float) -> None:
        """Answer those whose deadline has passed; `now` is in seconds of the node's clock."""
        if len(self._inbox.own):
            self._inbox.own.expire(now, _late())
        for key, each in [(key, each) for key, each in self._open.items() if each.ask.deadline <= now]:
            del self._open[key]
            each.ask.future.try_fail(
                OutcomeUnknown(
                    f"{each.handler}, which {self._name} has for {each.ask.message.type}, has not replied by the deadline: "
                    "what was asked may have been done, or may still be"
                )
            )

    def fail_all(self, stopped: ReplicaStopped) -> None:
        """Answer all who wait, and all who come: the replica has ended. What a handler has taken may have had its effect."""
        self._inbox.own.close(stopped)
        taken = ReplicaStopped(f"{stopped}; it had taken what was asked, and had not answered")
        taken.__cause__ = stopped.__cause__
        taken.outcome_known = False
        while self._open:
            self._open.popitem()[1].ask.future.try_fail(taken)


def _late() -> RequestDropped:
    return RequestDropped("its deadline passed before the replica, which is busy, took it: repeat it")


def _crashed(replica: str, cause: BaseException) -> ActorFailed:
    error = ActorFailed(f"{replica} failed while it handled the message: {in_full(cause)}")
    error.__cause__ = cause
    return error
