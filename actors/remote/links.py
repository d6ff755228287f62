"""One other host as the actors of this one reach it: what waits to leave for it, and the questions that it has not answered."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Final, Protocol

from drakkar.actors.remote.errors import AnswerTimeout, HostGone
from drakkar.actors.remote.records import Record, encode
from drakkar.actors.remote.refs import RemoteRef
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import DrakkarError, OutcomeUnknown, SystemBusy, TransportError
from drakkar.transport.call_rooms import CallRoom

__all__ = ["MAX_QUESTIONS", "Deadlines", "Link", "Question"]

MAX_QUESTIONS: Final = 10_000
"""Questions to one host that have no answer yet."""
SLOT_S: Final = 0.05
"""How much later than its deadline a question may end whose future nobody waits for in a thread."""


class Question:
    """A question without an answer."""

    __slots__ = ("deadline", "future", "number", "read", "record", "ref", "what")

    def __init__(
        self, number: int, timeout: float, what: str, read: Callable[[bytes], Any], ref: RemoteRef | None = None
    ) -> None:
        """`what` names whom it is for, in errors, and `ref` the actor. `read` makes the answer of its bytes; it may raise `DrakkarError`."""
        self.number, self.what, self.read, self.ref = number, what, read, ref
        self.future: ActorFuture[Any] = ActorFuture()
        self.deadline = time.monotonic() + timeout
        self.record = b""
        """What was sent, to know it again if it is handed back."""

    @property
    def slot(self) -> int:
        """The slot of its deadline: the first that ends after it."""
        return int(self.deadline / SLOT_S) + 1


class Wire(Protocol):
    """What carries records; see `TcpTransport`. For the thread of the loop, but for `call_room`."""

    def call_room(self, address: str) -> CallRoom:
        """Return how much room there is on the way to a host. From any thread."""
        ...

    def send_calls(self, address: str, records: Sequence[bytes], *, admitted: bool = False) -> int:
        """Send records."""
        ...


class Link:
    """The records for one other host, from any thread, and its answers, in the thread of the loop."""

    def __init__(self, address: str, wire: Wire, loop: TrioLoop, deadlines: "Deadlines") -> None:
        self.address = address
        self._wire, self._loop, self._deadlines = wire, loop, deadlines
        self._room = wire.call_room(address)
        self._outbox: deque[tuple[bytes, Question | None]] = deque()
        """What threads have put, until the loop comes to it."""
        self._scheduled = False
        self._numbers = count(1)
        self._questions: dict[int, Question] = {}
        self.watched: dict[int, RemoteRef] = {}
        """Actors of that host that are watched here, by the number of the watch."""
        self.heard = False
        """It has sent a record, so it can reach this host."""

    @property
    def idle(self) -> bool:
        """Nothing is waited for."""
        return not (self._questions or self.watched or self._outbox)

    # ---- from any thread

    def number(self) -> int:
        """Return a number that no other question or watch of this host has had."""
        return next(self._numbers)

    def put(self, record: Record, question: Question | None = None) -> None:
        """Send a record. Raises `SystemBusy` where too much waits, and `TransportError` for one that is too long."""
        data = encode(record)
        if question is not None:
            if len(self._questions) >= MAX_QUESTIONS:
                raise SystemBusy(
                    f"{MAX_QUESTIONS} questions to {self.address} have no answer yet, and more are not allowed: wait a little, and try again"
                )
            question.record = data
        self._room.admit(data)
        if question is not None:
            self._questions[question.number] = question
        self._outbox.append((data, question))
        if not self._scheduled:
            self._scheduled = True
            self._schedule()

    def _schedule(self) -> None:
        if self._loop.in_loop():
            self._loop.at_round_end(self._flush)
        else:
            self._loop.run_soon(self._flush)

    def give_up(self, question: Question) -> None:
        """Let a question end at its deadline, unless it has an outcome."""
        if self._questions.pop(question.number, None) is not None:
            question.future.try_fail(self.late(question.what))

    def late(self, what: str) -> AnswerTimeout:
        """Return why a question to `what` has no answer."""
        hint = "" if self.heard else f"; nothing was ever heard of {self.address}: can it reach this host at its address?"
        return AnswerTimeout(
            f"no answer of {what} by the deadline. It may have handled the message, or may still{hint}"
        )

    # ---- in the thread of the loop

    def _flush(self) -> None:
        self._scheduled = False  # before the outbox is emptied, so that what comes meanwhile is seen
        outbox = self._outbox
        records: list[bytes] = []
        while outbox:
            data, question = outbox.popleft()
            records.append(data)
            if question is not None:
                self._deadlines.add(self, question)
        try:
            refused = self._wire.send_calls(self.address, records, admitted=True)
        except TransportError as error:
            self.handed_back(records, error)
        else:
            if refused:
                self.handed_back(records[-refused:], TransportError("this host stops"))

    def answered(self, number: int) -> Question | None:
        """Take the question that an answer is for; None where it is answered, or ended, already."""
        question = self._questions.pop(number, None)
        if question is not None:
            self._deadlines.remove(question)
        return question

    def handed_back(self, records: Iterable[bytes], why: TransportError) -> None:
        """Records have not left this host."""
        unsent = set(map(id, records))
        self._fail(
            [question for question in self._questions.values() if id(question.record) in unsent],
            lambda question: HostGone(f"{question.what} was not reached: {why}"),
        )

    def lost(self, why: str) -> None:
        """A connection to or from the host has ended, or the host is dead: what it has not answered, it may have handled."""
        self._fail(
            list(self._questions.values()),
            lambda question: OutcomeUnknown(
                f"{why} before {question.what} had answered: it may have handled the message"
            ),
        )
        watched, self.watched = self.watched, {}
        for ref in watched.values():
            ref.termination.lost(HostGone(f"{ref} is out of reach, and perhaps alive: {why}"))

    def _fail(self, questions: Iterable[Question], error: Callable[[Question], DrakkarError]) -> None:
        for question in questions:
            if self.answered(question.number) is not None:
                question.future.try_fail(error(question))


class Deadlines:
    """Questions by the time of their deadlines, in slots of 50 ms. For the thread of the loop."""

    def __init__(self, wake: Callable[[], object]) -> None:
        """`wake` is called when there is a first one."""
        self._slots: dict[int, dict[Question, Link]] = {}
        self._wake = wake

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, link: Link, question: Question) -> None:
        """Have a question end at its deadline."""
        first = not self._slots
        self._slots.setdefault(question.slot, {})[question] = link
        if first:
            self._wake()

    def remove(self, question: Question) -> None:
        """A question has been answered."""
        slot = self._slots.get(question.slot)
        if slot is not None:
            slot.pop(question, None)
            if not slot:
                del self._slots[question.slot]

    def end_late(self, now: float) -> None:
        """End those whose deadline has passed, at this time of `time.monotonic`."""
        for late in [slot for slot in self._slots if slot * SLOT_S <= now]:
            for question, link in self._slots.pop(late).items():
                link.give_up(question)
