"""Messages of an application's own types that come from this process: told, or asked for an answer.

    replica.ask(…) ─► its lane of the inbox ─► the handler table ─┬─► the handler's answer, or exception ─► the future
                                                                  └─► LATER ─► node.reply(message, …)    ─► the future

An ask has an answer by its deadline, to within a tick: where no handler takes the message, the replica ends, or a handler
never replies, an error that says so.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from drakkar.actors.node.inbox import NodeInbox, OwnMessagesTaken
from drakkar.actors.node.refusals import refusal_of_the_table
from drakkar.actors.node.requests import OwnMessage
from drakkar.actors.runtime.futures import ActorFuture, in_full
from drakkar.actors.runtime.open_asks import ANSWER_TIMEOUT_S, OpenAsks
from drakkar.handlers.cells import EMPTY
from drakkar.handlers.effects import Answer
from drakkar.handlers.errors import ActorFailed, DrakkarError, ReplicaStopped, RequestDropped
from drakkar.handlers.extension import LATER
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.raft import Raft

__all__ = ["Asks"]

MAX_TURN_MESSAGES: Final = 256
MAX_TURN_BYTES: Final = 1 << 20
"""Messages, and bytes of their payloads, that one turn brings to the table, at most."""


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
        self.open = OpenAsks()
        """Those that handlers have taken and not answered yet."""

    def put(self, message: Message, asker: ActorFuture[Any] | None) -> None:
        """Let a message wait for its turn as those of `Replica.tell` and `ask`: it came by pykka's `tell`, or `ask`."""
        # A copy, since an answer names it, and the asker may ask the same one again.
        own = OwnMessage(replace(message), asker or ActorFuture(), math.inf, asked=asker is not None)
        if own.asked:
            own.deadline = self._now() + ANSWER_TIMEOUT_S
        self._inbox.own.put(own)

    def waiting(self) -> OwnMessagesTaken | None:
        """Take what waits in the inbox: as much as one turn may bring to the table.

        Nothing before extensions have the state of the snapshot with which the replica starts: they would answer from none.
        """
        if self._raft.extensions_loading:
            return None
        messages = self._inbox.own.take(MAX_TURN_MESSAGES, MAX_TURN_BYTES)
        return OwnMessagesTaken(messages) if messages else None

    def take(self, taken: OwnMessagesTaken) -> None:
        """Bring messages to the table, until one shows that the node must end; answer those that are asked."""
        waiting = deque(taken.messages)
        try:
            while waiting and self._raft.tally.broken is None:
                self._handle(waiting.popleft())
        finally:
            for each in waiting:
                each.future.try_fail(ReplicaStopped(f"{self._name} failed before it took the message"))

    def _handle(self, own: OwnMessage) -> None:
        """Bring one message to the table. An exception that is no `Exception` passes, and ends the node."""
        refusal = self._refusal(own) if own.asked else None
        if refusal is not None:
            own.future.try_fail(refusal)
            return
        state = self._raft.state
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
                self._settle(own, answer, state)

    def _refusal(self, own: OwnMessage) -> DrakkarError | None:
        if own.deadline <= self._now():
            return _late()
        return self._reason_to_refuse() or self.open.reason_to_refuse(self._name)

    def _settle(self, own: OwnMessage, answer: Any, state: Any) -> None:
        """The table, in `state`, has taken what was asked, or not."""
        type_ = own.message.type
        if isinstance(answer, EMPTY):
            own.future.try_fail(
                refusal_of_the_table(self._raft, type_)
                or RequestDropped(f"{self._name} did not take {type_}: {answer.because}")
            )
        elif answer is LATER:
            self.open.open(own.message, own.future, own.deadline, self._raft.handlers[state][type_])
        else:
            own.future.try_set(answer)

    @property
    def _name(self) -> str:
        return f"replica {self._raft.id} of shard {self._raft.config.shard_id}"

    # -- answers that come later --------------------------------------------------------------------------------------

    def answered(self, answers: Iterable[Answer]) -> None:
        """Handlers have replied."""
        for answer in answers:
            self.open.answer(answer)

    def expire(self, now: float) -> None:
        """Answer those whose deadline has passed; `now` is in seconds of the node's clock."""
        if len(self._inbox.own):
            self._inbox.own.expire(now, _late())
        self.open.expire(now, self._name)

    def fail_all(self, stopped: ReplicaStopped) -> None:
        """Answer all who wait, and all who come: the replica has ended. What a handler has taken may have had its effect."""
        self._inbox.own.close(stopped)
        taken = ReplicaStopped(f"{stopped}; it had taken what was asked, and had not answered")
        taken.__cause__ = stopped.__cause__
        taken.outcome_known = False
        self.open.fail_all(taken)


def _late() -> RequestDropped:
    return RequestDropped(
        "its deadline passed before the replica, which is busy or starts, took it: repeat it"
    )


def _crashed(replica: str, cause: BaseException) -> ActorFailed:
    error = ActorFailed(f"{replica} failed while it handled the message: {in_full(cause)}")
    error.__cause__ = cause
    return error
