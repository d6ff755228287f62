"""Another host as far as it asks this one: its questions that have no answer yet, and the actors that it watches."""

import sys
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, TypeAlias

from drakkar.actors.remote.links import Link
from drakkar.actors.remote.loads import Load
from drakkar.actors.remote.published import PublishedActor
from drakkar.actors.remote.records import Died, Failed
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import SystemBusy

__all__ = ["MAX_QUESTIONS", "MAX_QUESTIONS_TO_ONE", "MAX_WATCHES", "MAX_WATCHES_OF_ONE", "Client", "Pending"]

MAX_QUESTIONS: Final = 4_000
"""Questions of one host that have no answer yet."""
MAX_QUESTIONS_TO_ONE: Final = 1_000
"""Questions of one host to one actor that have no answer yet: one that hangs leaves places for others."""
MAX_WATCHES: Final = 10_000
"""Actors that one host watches here."""
MAX_WATCHES_OF_ONE: Final = 16
"""Of these, of one actor: a host needs one, and may have another one on the way. All are told in one go."""

ExcInfo: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


class Client:
    """What one host waits for. From any thread, as far as questions are concerned; else for the thread of the loop."""

    def __init__(self, link: Link, load: Load) -> None:
        self.link, self.load = link, load
        self.unsaid: list[Died | Failed] = []
        """Ends of watches that it was not told of yet, since too much waits for it."""
        self._lock = threading.Lock()
        self._open: dict[int, set[Pending]] = {}
        """Its questions, by the numbers of the actors."""
        self.questions = 0
        """How many these are."""
        self._watches: dict[int, int] = {}
        """The numbers of the actors that it watches, by the numbers of its watches."""
        self._watchers: dict[int, set[int]] = {}
        """And the other way round."""

    @property
    def waits(self) -> bool:
        """It waits for something."""
        return bool(self.questions or self._watches or self.unsaid)

    @property
    def watches(self) -> int:
        """How many actors it watches."""
        return len(self._watches)

    # ---- questions

    def open(self, pending: "Pending") -> None:
        """Note a question. Raises `SystemBusy` where there are too many."""
        number = pending.actor.number
        with self._lock:
            to_this = len(self._open.get(number, ()))
            if self.questions < MAX_QUESTIONS and to_this < MAX_QUESTIONS_TO_ONE:
                self._open.setdefault(number, set()).add(pending)
                self.questions += 1
                return
        raise SystemBusy(
            f"{self.questions} questions of {self.link.address} have no answer yet, {to_this} of them to {pending.actor}, and "
            f"{MAX_QUESTIONS} and {MAX_QUESTIONS_TO_ONE} are allowed: wait a little, and ask again"
        )

    def close(self, pending: "Pending") -> bool:
        """Forget a question; return False where it was forgotten already: it was answered, its time is over, or the host is away."""
        number = pending.actor.number
        with self._lock:
            open_to = self._open.get(number)
            if open_to is None or pending not in open_to:
                return False
            open_to.remove(pending)
            if not open_to:
                del self._open[number]
            self.questions -= 1
        return True

    def opened_to(self, number: int) -> list["Pending"]:
        """Return the questions to an actor."""
        with self._lock:
            return list(self._open.get(number, ()))

    def late(self, now: float) -> list["Pending"]:
        """Return the questions whose time is over, by `time.monotonic`."""
        with self._lock:
            return [each for open_to in self._open.values() for each in open_to if each.deadline < now]

    def forget(self) -> None:
        """The host is out of reach: it waits for nothing any more."""
        with self._lock:
            self._open.clear()
            self.questions = 0
        self._watches.clear()
        self._watchers.clear()
        self.unsaid.clear()

    # ---- watches

    def watch(self, watch: int, number: int) -> bool:
        """Note the watch of an actor; return whether its number is new, as it should be. Raises `SystemBusy` where there are too many."""
        new = not self.unwatch(watch)
        of_this = len(self._watchers.get(number, ()))
        if len(self._watches) >= MAX_WATCHES or of_this >= MAX_WATCHES_OF_ONE:
            raise SystemBusy(
                f"{self.link.address} has {len(self._watches)} watches of actors here, {of_this} of them of this one, and "
                f"{MAX_WATCHES} and {MAX_WATCHES_OF_ONE} are allowed: unwatch some first"
            )
        self._watches[watch] = number
        self._watchers.setdefault(number, set()).add(watch)
        return new

    def unwatch(self, watch: int) -> bool:
        """Forget one; return whether there was one."""
        number = self._watches.pop(watch, None)
        if number is None:
            return False
        watchers = self._watchers[number]
        watchers.discard(watch)
        if not watchers:
            del self._watchers[number]
        return True

    def take_watches(self, number: int) -> Iterable[int]:
        """Forget the watches of an actor, and return them."""
        watchers = self._watchers.pop(number, set())
        for watch in watchers:
            del self._watches[watch]
        return watchers


class Pending:
    """A question of another host: what an actor calls to answer, as if it was a pykka future. From any thread; raises nothing."""

    __slots__ = ("_answer", "actor", "client", "deadline", "number")

    def __init__(
        self,
        client: Client,
        number: int,
        actor: PublishedActor,
        deadline: float,
        answer: Callable[["Pending", Any, BaseException | None], None],
    ) -> None:
        """`deadline`: by `time.monotonic`. `answer` is called with the value, or the exception; it raises nothing."""
        self.client, self.number, self.actor, self.deadline = client, number, actor, deadline
        self._answer = answer

    def set(self, value: Any = None) -> None:
        """Answer with a value; with a future, when that has its outcome."""
        if not isinstance(value, ActorFuture):
            self._answer(self, value, None)
            return
        try:
            value.add_done_callback(self._settle)
        except Exception as error:  # noqa: BLE001  # of a future that does not call back
            self._answer(self, None, error)

    def _settle(self, future: ActorFuture[Any]) -> None:
        value, error = future.outcome()
        if error is None:
            self.set(value)
        else:
            self._answer(self, None, error)

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        """Answer with an exception; by default with the one that is being handled."""
        kind, error, _ = sys.exc_info() if exc_info is None else exc_info
        if error is None:
            error = (
                RuntimeError("the actor has answered with an exception that is none")
                if kind is None
                else kind()
            )
        self._answer(self, None, error)
