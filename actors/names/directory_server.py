"""`DirectoryServer`: takes the operations of a host, or of others that ask it, into the log of a directory's shard.

It is beside a replica of the directory, and published, so that hosts without one reach it by the address of this host. What
waits together becomes one command. Commands go one by one through a client session, which proposes them again until they are
answered, and has each applied once: so all operations that come to one server take effect in the order in which they came,
and none takes effect late, when its name has long been given to another.

A message is [what, milliseconds, …], of plain values, as other hosts send it. Its answer is a list that begins with "ok",
"taken", "full" or "over", as the directory says, or ["failed", outcome known, text].
"""

import math
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

from drakkar.actors.names.directory import (
    MAX_LISTED,
    Registration,
    Result,
    check_operation,
    encode_command,
)
from drakkar.actors.names.shards import Session, Shard
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.alarm import Alarm
from drakkar.actors.runtime.futures import ActorFuture, AnswerLater, in_full
from drakkar.actors.runtime.monitor import ActorDied, watch
from drakkar.handlers.backoff import Backoff
from drakkar.handlers.checks import MAX_NAME, is_whole
from drakkar.handlers.errors import OutcomeUnknown, Refused, ReplicaStopped, ResultLost, SessionRefused

__all__ = ["DirectoryServer", "server_name"]

MAX_WAITING: Final = 5_000
"""Operations that wait for their command."""
MAX_TOGETHER: Final = 256
"""Operations of one command: half a megabyte at most."""
MAX_TIMEOUT_MS: Final = 3_600_000
ATTEMPT_S: Final = 5.0
"""How long the session tries, before it is asked again."""
FIRST_WAIT_S: Final = 0.02
LAST_WAIT_S: Final = 1.0
"""The first and the longest wait after a failure that came at once."""


def server_name(shard_id: int) -> str:
    """Return the name under which the server of this directory is published on each host that has a replica of it."""
    return f"drakkar:directory:{shard_id}"


@dataclass(eq=False, slots=True)
class _Operation:
    fields: list[Any]
    answer: AnswerLater[Result]
    deadline: float


class DirectoryServer(TrioActor):
    """Serves one directory on one host. It ends with the host's replica of it."""

    inbox_capacity: ClassVar[int] = MAX_WAITING

    def __init__(self, shard: Shard, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shard = shard
        self._waiting: deque[_Operation] = deque()
        self._batch: list[_Operation] = []
        """The operations of the command that is proposed, or is to be proposed again."""
        self._session: Session | None = None
        self._under_way: ActorFuture[Any] | None = None
        """The opening of the session, or a command of it."""
        self._opening = False
        self._not_before = -math.inf
        """When to try again after a failure."""
        self._earliest = math.inf
        """No deadline is before."""
        self._backoff = Backoff(FIRST_WAIT_S, LAST_WAIT_S)
        self._alarm = Alarm(self.actor_loop, self.actor_inbox.wake)

    def on_start(self) -> None:
        """End when the replica has."""
        watch(self._shard.ref, self.actor_ref)

    def on_receive(self, message: Any) -> Any:
        """Take a message of the form above; what is none is answered so."""
        if isinstance(message, ActorDied):
            self.stop()
            return None
        if type(message) is not list or len(message) < 3 or not is_whole(message[1], 0, MAX_TIMEOUT_MS):
            return _failed(
                "a directory takes lists of what to do, within how many milliseconds, and with what"
            )
        what, milliseconds, *rest = message
        timeout = milliseconds / 1000
        if what == "do":
            return self._do(rest[0], timeout)
        if what == "find" and len(rest) == 1 and type(rest[0]) is str:
            return self._read(["find", rest[0]], timeout)
        if what == "names" and _is_listing(rest):
            return self._read(["names", *rest], timeout)
        return _failed(f"a directory cannot do {what!r:.30} with {len(rest)} values of these types")

    # -- operations ---------------------------------------------------------------------------------------------

    def _do(self, fields: Any, timeout: float) -> Any:
        fault = check_operation(fields)
        if fault is not None:
            return _failed(fault)
        if len(self._waiting) >= MAX_WAITING:
            return _failed(
                f"{MAX_WAITING} operations wait for this directory already: wait a little and try again"
            )
        answer: AnswerLater[Result] = AnswerLater()
        deadline = time.monotonic() + timeout
        self._waiting.append(_Operation(fields, answer, deadline))
        self._earliest = min(self._earliest, deadline)
        return answer

    def after_batch(self) -> None:
        """Go on with what waits."""
        now = time.monotonic()
        if self._under_way is not None and self._under_way.done:
            outcome, self._under_way = self._under_way.outcome(), None
            if self._opening:
                self._on_opened(*outcome, now)
            else:
                self._on_answer(*outcome, now)
        self._expire(now)
        if self._under_way is None and now >= self._not_before and (self._batch or self._waiting):
            self._proceed()
        due = self._not_before if self._batch or self._waiting else math.inf
        self._alarm.set(min(self._earliest, due if due > now else math.inf))

    def _proceed(self) -> None:
        """Open a session, or propose through it, or ask again for what became of the last command."""
        self._opening = self._session is None
        if self._session is None:
            future = self._shard.session(timeout=ATTEMPT_S)
        elif self._session.open:
            future = self._session.retry(timeout=ATTEMPT_S)
        else:
            if not self._batch:
                count = min(len(self._waiting), MAX_TOGETHER)
                self._batch = [self._waiting.popleft() for _ in range(count)]
            command = encode_command([operation.fields for operation in self._batch])
            future = self._session.propose(command, timeout=ATTEMPT_S)
        self._under_way = future
        self.actor_inbox.wake_after(future)

    def _on_opened(self, session: Session | None, error: BaseException | None, now: float) -> None:
        if session is not None:
            self._session = session
            self._backoff.reset()
        else:
            self._try_later(error, now)

    def _on_answer(self, results: Any, error: BaseException | None, now: float) -> None:
        """A command has an outcome, or has none yet."""
        if error is None:
            self._backoff.reset()
            self._settle(list(results))
        elif isinstance(error, OutcomeUnknown):
            self._not_before = now + self._backoff.next()
        elif isinstance(error, Refused):
            self._settle([_failed(str(error))] * len(self._batch))
        elif isinstance(error, ResultLost):
            self._settle([_failed(str(error), known=False)] * len(self._batch))
        elif isinstance(error, SessionRefused):
            self._session = None
            if not error.outcome_known:
                self._settle([_failed(str(error), known=False)] * len(self._batch))
        else:
            self._try_later(error, now)

    def _try_later(self, error: BaseException | None, now: float) -> None:
        """It surely had no effect."""
        if isinstance(error, ReplicaStopped):
            self.stop()
        self._not_before = now + self._backoff.next()

    def _settle(self, results: list[Result]) -> None:
        batch, self._batch = self._batch, []
        for operation, result in zip(batch, results, strict=True):
            operation.answer.try_set(result)

    def _expire(self, now: float) -> None:
        """Answer those whose time is over. What is proposed may still take effect; what waits does not."""
        if now < self._earliest:
            return
        may_happen = self._under_way is not None or (self._session is not None and self._session.open)
        for operation in self._batch:
            if operation.deadline <= now:
                operation.answer.try_set(_late(known=not may_happen))
        if not may_happen:
            self._batch = [operation for operation in self._batch if operation.deadline > now]
        for operation in self._waiting:
            if operation.deadline <= now:
                operation.answer.try_set(_late(known=True))
        self._waiting = deque(operation for operation in self._waiting if operation.deadline > now)
        left = [each.deadline for each in (*self._batch, *self._waiting) if each.deadline > now]
        self._earliest = min(left, default=math.inf)

    # -- reads --------------------------------------------------------------------------------------------------

    def _read(self, query: list[Any], timeout: float) -> AnswerLater[Result]:
        answer: AnswerLater[Result] = AnswerLater()
        self._shard.read(query, timeout=timeout).add_done_callback(partial(_answer_read, answer))
        return answer

    # -- its end ------------------------------------------------------------------------------------------------

    def on_stop(self) -> None:
        """Answer all who wait."""
        self._answer_all(
            f"the replica of the directory in shard {self._shard.shard_id} has ended on this host"
        )

    def on_failure(self, _type: Any, error: BaseException | None, _traceback: Any) -> None:
        """Answer all who wait."""
        self._answer_all(f"the server of the directory in shard {self._shard.shard_id} has failed: {error}")

    def _answer_all(self, why: str) -> None:
        self._alarm.cancel()
        for operation in self._batch:
            operation.answer.try_set(_failed(why, known=False))
        for operation in self._waiting:
            operation.answer.try_set(_failed(why))
        self._batch.clear()
        self._waiting.clear()


def _failed(text: str, *, known: bool = True) -> Result:
    return ["failed", known, text]


def _late(*, known: bool) -> Result:
    if known:
        return _failed(
            "the directory's shard has not taken it by its deadline: it has no leader, or too much to do"
        )
    return _failed(
        "the directory's shard has not answered by the deadline; it may still take effect", known=False
    )


def _is_listing(values: list[Any]) -> bool:
    if len(values) != 3:
        return False
    prefix, after, limit = values
    texts = type(prefix) is str and type(after) is str and max(len(prefix), len(after)) <= MAX_NAME
    return texts and is_whole(limit, 1, MAX_LISTED)


def _answer_read(answer: AnswerLater[Result], read: ActorFuture[Any]) -> None:
    found, error = read.outcome()
    if error is not None:
        answer.try_set(_failed(in_full(error)))
    elif isinstance(found, Registration):
        answer.try_set(["ok", found.number, found.address, found.place])
    else:
        answer.try_set(["ok", found])
