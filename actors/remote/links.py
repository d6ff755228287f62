"""One other host as the actors of this one reach it: what waits to leave for it, and what it has not answered."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from secrets import randbits
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from drakkar.actors.remote.deadlines import Deadlines
from drakkar.actors.remote.errors import HostGone
from drakkar.actors.remote.questions import Question
from drakkar.actors.remote.records import Answer, Died, Failed, Record, Unwatch, encode
from drakkar.handlers.errors import DrakkarError, LoopError, SystemBusy, TransportError
from drakkar.transport.addresses import canonical, peer_name
from drakkar.transport.call_rooms import CallRoom

__all__ = ["MAX_QUESTIONS", "Link", "Links", "LoopThread", "Wire"]

MAX_QUESTIONS: Final = 10_000
"""Questions to one host that have no answer yet."""
_ANSWERS: Final = (Answer, Failed, Died)
"""What a host is sent that waits for it."""


class Wire(Protocol):
    """What carries records: see `TcpTransport`. For the thread of the loop, but for `call_room` and `unreached`."""

    def call_room(self, address: str) -> CallRoom:
        """Return how much room there is on the way to a host. From any thread."""
        ...

    def send_calls(
        self,
        address: str,
        records: Sequence[bytes],
        *,
        admitted: bool = False,
        now: bool = False,
        answers: bool = False,
    ) -> int:
        """Send records; return how many found no room: the last ones. `answers`: they are nothing else."""
        ...

    def away(self, address: str) -> str:
        """Return why a host could not be reached, until the next attempt is due; else ""."""
        ...

    def unreached(self, address: str) -> str:
        """Return why the last attempt to reach a host failed; else "". From any thread."""
        ...

    def knock(self, address: str) -> None:
        """See soon whether it can be reached now."""


class LoopThread(Protocol):
    """The thread in which records leave: see `TrioLoop`."""

    def in_loop(self) -> bool:
        """Return whether this thread is it."""
        ...

    def run_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Call a function there. From any thread. Raises `LoopError`."""

    def at_round_end(self, fn: Callable[[], object]) -> None:
        """Call a function at the end of the round that is under way. In this thread."""


class RemoteEnd(Protocol):
    """The end of an actor that is watched: see `refs.RemoteTermination`."""

    def lost(self, watch: int, reason: DrakkarError) -> None:
        """The watch of this number is over, though the actor may live."""

    def ended(self, reason: BaseException | None) -> None:
        """The actor has ended."""


class Link:
    """The records for one other host, and what it has not answered. From any thread, but for what is said to be for the loop's.

    Questions and watches have numbers, which begin at random: so no answer to an earlier run of this host, or to what another
    link has asked, is taken for one of this link, and no host can guess what another one was asked.
    """

    def __init__(self, address: str, wire: Wire, loop: LoopThread, deadlines: Deadlines) -> None:
        self.address: Final = address
        self._wire, self._loop, self._deadlines = wire, loop, deadlines
        self._room = wire.call_room(address)
        self._outbox: deque[tuple[bytes, Question | None, bool]] = deque()
        """What has been put, until the loop comes to it."""
        self._scheduled = self._knocks = False
        self._numbers = count(randbits(62) + 1)
        self._questions: dict[int, Question] = {}
        self._closed = ""
        """Why nothing is sent any more; empty: it is."""
        self.watches: dict[int, RemoteEnd] = {}
        """Actors of that host that are watched here, by the number of the watch."""
        self.owed = 0
        """Questions and watches that have ended here, of which the host may not know. Threads that count at the same moment may
        lose one, which does no harm: see `forgive`."""
        self.heard = False
        """Something has come from it, so it can reach this host."""
        self.incoming = False
        """It has a connection to this host, opened or heard on since one was last lost."""

    @property
    def questions(self) -> int:
        """Questions that have no answer yet."""
        return len(self._questions)

    @property
    def waits(self) -> bool:
        """Something is waited for."""
        return bool(self._questions or self.watches)

    def number(self) -> int:
        """Return a number that no other question or watch has."""
        return next(self._numbers)

    # ---- sending

    def put(self, record: Record, question: Question | None = None) -> None:
        """Send a record, with the question that it asks.

        Raises `SystemBusy` where too much waits, `HostGone` when this host has stopped, and `TransportError` for a record that is
        too long.
        """
        data = encode(record)
        if self._closed:
            raise HostGone(self._closed)
        if question is not None and len(self._questions) >= MAX_QUESTIONS:
            raise SystemBusy(
                f"{MAX_QUESTIONS} questions to {self.address} have no answer yet, and more are not allowed: wait a little, "
                "and try again"
            )
        self._room.admit(data, math.inf if question is None else question.timeout)
        if question is not None:
            question.record = data
            self._questions[question.number] = question
        self._outbox.append((data, question, isinstance(record, _ANSWERS)))
        if not self._scheduled:
            self._schedule()
        if (
            self._closed and question is not None
        ):  # it was closed meanwhile, and may not have seen the question
            self.end(question, question.cut_off(self._closed))

    def check_reached(self, what: object) -> None:
        """Raise `HostGone` where the last attempt to reach the host failed: for a message of which nothing else is ever told.

        Then another attempt is made soon, so that the next message is sent where the host is back.
        """
        why = self._wire.unreached(self.address)
        if not why:
            return
        if not self._knocks:
            self._knocks = True
            with suppress(LoopError):
                self._loop.run_soon(self._knock)
        raise HostGone(f"{what} was not reached: {why}")

    def _knock(self) -> None:
        self._knocks = False
        self._wire.knock(self.address)

    def _schedule(self) -> None:
        self._scheduled = True
        if self._loop.in_loop():
            self._loop.at_round_end(self._flush)
            return
        try:
            self._loop.run_soon(self._flush)
        except LoopError as error:  # it has ended without a word, as by a crash
            self.close(str(error))
            raise HostGone(self._closed) from error

    def _flush(self) -> None:
        """Hand over to the transport what has been put. In the loop's thread."""
        self._scheduled = False  # before the outbox is emptied, so that what comes meanwhile is seen
        away = self._wire.away(self.address)
        records, answers = [], True
        for data, question, is_answer in self._taken():
            if question is None or self._is_to_leave(question, away):
                records.append(data)
                answers = answers and is_answer
        if not records:
            return
        try:
            refused = self._wire.send_calls(self.address, records, admitted=True, now=True, answers=answers)
        except TransportError as error:
            self.handed_back(records, error)
        else:
            if refused:
                self.handed_back(records[-refused:], TransportError("this host stops"))

    def _taken(self) -> Iterable[tuple[bytes, Question | None, bool]]:
        outbox = self._outbox
        while outbox:
            yield outbox.popleft()

    def _is_to_leave(self, question: Question, away: str) -> bool:
        """Return whether a question may leave: its time is not over, and the host not known to be out of reach."""
        if away and not question.patient:
            self.end(question, question.unreached(away))
        if question.number not in self._questions:
            self._room.give_back(1, len(question.record))
            return False
        question.sent = True
        self._deadlines.add(question)
        return True

    # ---- the ends of questions

    def end(self, question: Question, error: DrakkarError) -> None:
        """Fail a question, unless it has ended."""
        if self._questions.pop(question.number, None) is not None:
            self.owed += question.sent
            question.future.try_fail(error)

    def answered(self, number: int) -> Question | None:
        """Take the question that an answer is for; None where it has ended. In the loop's thread."""
        question = self._questions.pop(number, None)
        if question is not None:
            self._deadlines.remove(question)
        return question

    def forgive(self) -> bool:
        """Return whether a record about what has ended here is no fault of the host, since it could not know."""
        if self.owed <= 0:
            return False
        self.owed -= 1
        return True

    def handed_back(self, records: Iterable[bytes], why: TransportError) -> None:
        """Records have not left this host. In the loop's thread."""
        unsent = set(map(id, records))
        for question in list(self._questions.values()):
            if id(question.record) in unsent:
                self._deadlines.remove(question)
                question.sent = False
                self.end(question, question.unreached(why))

    def lost(self, why: str, *, hangs: bool = False) -> None:
        """What the host has been asked it will not answer, though it may have handled it. In the loop's thread.

        A connection to it or from it has ended. Or it hangs, and may not: then it is told which watches are over.
        """
        self.incoming = self.incoming and hangs
        for question in list(self._questions.values()):
            if question.sent:
                self._deadlines.remove(question)
                self.end(question, question.cut_off(why))
        for watch in list(self.watches):
            if watch not in self._questions:  # else it has not left yet
                self._end_watch(watch, HostGone(f"{why}: whether the actor lives is not known"), tell=hangs)

    def unwatch(self, watch: int) -> None:
        """End a watch that is not needed any more."""
        if self.watches.pop(watch, None) is not None:
            self.owed += 1
            self._tell_unwatched(watch)

    def _end_watch(self, watch: int, reason: DrakkarError, *, tell: bool = False) -> None:
        end = self.watches.pop(watch, None)
        if end is None:
            return
        self.owed += 1
        if tell:
            self._tell_unwatched(watch)
        end.lost(watch, reason)

    def _tell_unwatched(self, watch: int) -> None:
        """Where there is no room for that, the host learns it when the connection ends."""
        with suppress(DrakkarError):
            self.put(Unwatch(watch))

    def close(self, why: str) -> None:
        """Fail all that waits, and all that comes: this host stops."""
        self._closed = why
        for question in list(self._questions.values()):
            self.end(question, question.cut_off(why))
        for watch in list(self.watches):
            self._end_watch(watch, HostGone(why))


class Links:
    """The links to all hosts. From any thread.

    A link lives as long as something holds it: a reference to an actor there, a question, a watch, or who is connected. So hosts that
    come and go, under as many addresses as they like, leave nothing behind.
    """

    def __init__(self, wire: Wire, loop: LoopThread, deadlines: Deadlines) -> None:
        self._wire, self._loop, self._deadlines = wire, loop, deadlines
        self._lock = threading.Lock()
        self._links: WeakValueDictionary[str, Link] = WeakValueDictionary()
        """By the canonical address."""
        self._watching: set[Link] = set()
        """Those with watches, which may have nothing else that holds them."""
        self._closed = ""

    def of(self, address: str) -> Link:
        """Return the link to the host at an address. Raises `TransportError` for what is none."""
        name = peer_name(address)
        link = self._links.get(name)
        return self._make(canonical(address)) if link is None else link

    def _make(self, name: str) -> Link:
        made = Link(name, self._wire, self._loop, self._deadlines)
        with self._lock:
            link: Link = self._links.setdefault(name, made)
        if self._closed:
            link.close(self._closed)
        return link

    def known(self, address: str) -> Link | None:
        """Return the link to a host, where there is one."""
        return self._links.get(peer_name(address))

    def all(self) -> list[Link]:
        """Return all of them."""
        with self._lock:
            return list(self._links.values())

    def watch(self, link: Link, watch: int, end: RemoteEnd) -> None:
        """Note a watch, so that its link lasts."""
        link.watches[watch] = end
        self._watching.add(link)

    def let_go(self) -> None:
        """Hold no links any more that have no watches."""
        for link in list(self._watching):
            if not link.watches:
                self._watching.discard(link)
                if link.watches:  # of another thread, which has held it before it was let go
                    self._watching.add(link)

    def close(self, why: str) -> None:
        """This host stops."""
        self._closed = why
        for link in self.all():
            link.close(why)
