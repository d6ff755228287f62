"""What this host asks of the actors of others: messages, questions and watches go out, and their answers come back.

Messages are packed in the thread that sends them; answers are unpacked in the thread of the loop.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import pykka
from drakkar.actors.remote.errors import AnswerTimeout, HostGone
from drakkar.actors.remote.failures import decode_failure
from drakkar.actors.remote.links import Link, Links
from drakkar.actors.remote.questions import Asked, Question, settled
from drakkar.actors.remote.records import (
    Answer,
    Ask,
    Call,
    Describe,
    Died,
    Failed,
    FailKind,
    Found,
    Get,
    Lookup,
    Names,
    Record,
    Set,
    Target,
    Tell,
    Watch,
    decode_found,
    decode_names,
    to_milliseconds,
)
from drakkar.actors.remote.refs import DEFAULT_ASK_S, Place, RemoteRef, RemoteTermination
from drakkar.actors.remote.values import Refs, pack, unpack
from drakkar.actors.runtime.forks import here
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.checks import check_name, check_number
from drakkar.handlers.errors import DrakkarError, OutcomeUnknown
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

__all__ = ["LATE_ANSWERS", "Asking", "seconds_of"]

MAX_TIMEOUT_S: Final = 86_400.0 * 365
LATE_ANSWERS: Final = "remote answers that came too late"
_PROXIED: Final = frozenset({ProxyCall, ProxyGetAttr, ProxySetAttr})


def seconds_of(timeout: float | None) -> float:
    """Return how long to wait for an answer, at most. Raises `ConfigError` for what is no time."""
    if timeout is None:
        return DEFAULT_ASK_S
    check_number("timeout", timeout, 0.0, MAX_TIMEOUT_S)
    return timeout


class Asking:
    """Asks the actors of other hosts: the `Caller` of all references. From any thread, but for what comes in."""

    def __init__(
        self,
        links: Links,
        refs: Refs,
        *,
        counters: Counter[str],
        unknown_fields: Counter[str],
        longest_value: int,
    ) -> None:
        """`unknown_fields`: see `values.unpack`. `longest_value`: maximum bytes of a message."""
        self._links, self._refs, self._longest = links, refs, longest_value
        self._counters, self._unknown_fields = counters, unknown_fields
        self._process = here.process
        self._lock = threading.Lock()
        self._terminations: WeakValueDictionary[Place, RemoteTermination] = WeakValueDictionary()
        self.handlers: Final[Mapping[type[Any], Callable[[Link, Any], bool]]] = {
            Answer: self._hear_answer,
            Failed: self._hear_failure,
            Died: self._hear_end,
        }
        """What is done with a record of the host that a link leads to; False: the host is to be charged for it."""

    # ---- what references need: see `refs.Caller`

    def link_to(self, address: str) -> Link:
        """See `Caller`."""
        return self._links.of(address)

    def termination_of(self, place: Place) -> RemoteTermination:
        """See `Caller`."""
        with self._lock:
            termination = self._terminations.get(place)
            if termination is None:
                termination = self._terminations[place] = RemoteTermination(self, place)
        return termination

    def tell(self, ref: RemoteRef, message: Any) -> None:
        """See `Caller`."""
        self._check(ref)
        if ref.actor_stopped.is_set():
            raise pykka.ActorDeadError(f"{ref} has ended")
        link: Link = ref.link
        link.check_reached(ref)
        if type(message) is ProxyCall:
            link.put(self._call(0, ref.target, 0, message))
        else:
            link.put(Tell(ref.target, self._packed(message)))

    def ask(self, ref: RemoteRef, message: Any, timeout: float | None) -> Asked:
        """See `Caller`. What it raises is of the caller's making, or too much; all else is in the future."""
        self._check(ref)
        seconds = seconds_of(timeout)
        if ref.actor_stopped.is_set():
            return settled(error=pykka.ActorDeadError(f"{ref} has ended"))  # as pykka does it
        link: Link = ref.link
        question = Question(link, link.number(), seconds, ref, self._read, ref.actor_stopped.set)
        link.put(self._asking(question.number, ref.target, to_milliseconds(seconds), message), question)
        return question

    def _asking(self, number: int, target: Target, milliseconds: int, message: Any) -> Record:
        if type(message) not in _PROXIED:
            return Ask(number, target, milliseconds, self._packed(message))
        path = tuple(message.attr_path)
        match message:
            case ProxyGetAttr():
                return Get(number, target, milliseconds, path)
            case ProxySetAttr():
                return Set(number, target, milliseconds, path, self._packed(message.value, "value"))
            case _:
                return self._call(number, target, milliseconds, message)

    def _call(self, number: int, target: Target, milliseconds: int, call: ProxyCall) -> Call:
        args, kwargs = self._packed(list(call.args), "args"), self._packed(call.kwargs, "kwargs")
        return Call(number, target, milliseconds, tuple(call.attr_path), args, kwargs)

    def _packed(self, value: Any, what: str = "message") -> bytes:
        return pack(value, self._refs, what=what, limit=self._longest)

    def _read(self, value: bytes) -> Any:
        return unpack(value, self._refs, what="answer", dropped=self._unknown_fields)

    def _check(self, what: object) -> None:
        """Raise `ForkedError` in a process that was forked: before anything else, since a thread that is gone may hold a lock."""
        if self._process is not here.process:
            self._process.check(what)

    # ---- names

    def look_up(self, address: str, name: str, timeout: float | None) -> Question:
        """Ask a host for a reference to the actor that it publishes under a name."""
        check_name("name", name)

        def read(value: bytes) -> RemoteRef:
            found = decode_found(value)
            place = Place(link.address, found.target.run, found.target.number)
            return RemoteRef(self, place, name=name, class_name=found.cls, attributes=found.attributes)

        link = self._links.of(address)
        question = Question(link, link.number(), seconds_of(timeout), f"{name!r} at {address}", read)
        link.put(Lookup(question.number, name), question)
        return question

    def describe(self, ref: RemoteRef, timeout: float) -> ActorFuture[Any]:
        """Ask the host of an actor what a proxy reaches of it now; the future is set to the reference, also where that fails.

        Raises `ConfigError` for a timeout that is no time.
        """
        described: ActorFuture[Any] = ActorFuture()

        def on_answered(answer: ActorFuture[Any]) -> None:
            found, error = answer.outcome()
            if isinstance(found, Found):
                ref.attributes = found.attributes
            else:
                ref.undescribed = error
            described.try_set(ref)

        link: Link = ref.link
        number, stopped = link.number(), ref.actor_stopped.set
        question = Question(link, number, seconds_of(timeout), ref, decode_found, stopped)
        try:
            link.put(Describe(number, ref.target), question)
        except DrakkarError as error:
            question.future.try_fail(error)
        question.future.add_done_callback(on_answered)
        return described

    def list_names(self, address: str, timeout: float | None) -> Question:
        """Ask a host for the names that it publishes."""
        link = self._links.of(address)
        what = f"the list of names at {address}"
        question = Question(
            link, link.number(), seconds_of(timeout), what, lambda value: sorted(decode_names(value))
        )
        link.put(Names(question.number), question)
        return question

    # ---- watches

    def watch(self, termination: RemoteTermination) -> None:
        """See `Caller`. The host answers that the watch stands, so one that does not hear of it is noticed."""
        place = termination.place
        link = self._links.of(place.address)
        number = termination.watch_number = link.number()
        what = f"the watch of an actor at {place.address}"
        # One that is watched anew with each bad news must not ask again and again, without a break.
        question = Question(
            link, number, DEFAULT_ASK_S, what, _no_answer, termination.stopped.set, patient=True
        )
        self._links.watch(link, number, termination)
        try:
            link.put(Watch(number, Target(place.run, place.number)), question)
        except DrakkarError:
            link.watches.pop(number, None)
            raise
        question.future.add_done_callback(partial(self._on_watch_answered, link, number, termination))

    @staticmethod
    def _on_watch_answered(
        link: Link, number: int, termination: RemoteTermination, future: ActorFuture[Any]
    ) -> None:
        _, error = future.outcome()
        if error is None:
            return
        if isinstance(error, AnswerTimeout):
            link.unwatch(number)  # it may stand all the same
        else:
            link.watches.pop(number, None)
        if termination.stopped.is_set():
            termination.ended(error)
        elif isinstance(error, OutcomeUnknown):
            termination.lost(number, HostGone(f"{error}; whether the actor lives is not known"))
        else:
            termination.lost(number, error)

    def unwatch(self, termination: RemoteTermination) -> None:
        """See `Caller`."""
        link = self._links.known(termination.place.address)
        number, termination.watch_number = termination.watch_number, 0
        if link is not None:
            link.unwatch(number)

    # ---- what comes, in the thread of the loop

    def _hear_answer(self, link: Link, record: Answer) -> bool:
        question = link.answered(record.question)
        if question is None:
            return self._is_late(link)
        try:
            value = question.read(record.value)
        except Exception as error:  # noqa: BLE001  # the question has to end in any case
            question.future.try_fail(error)
        else:
            question.future.try_set(value)
        return True

    def _hear_failure(self, link: Link, record: Failed) -> bool:
        question = link.answered(record.question)
        if question is None:
            return self._hear_watch_refused(link, record)
        if record.kind is FailKind.DEAD and question.stopped is not None:
            question.stopped()
        handled = record.kind is FailKind.RAISED
        question.future.try_fail(decode_failure(record.failure, self._refs, handled=handled))
        return True

    def _hear_watch_refused(self, link: Link, record: Failed) -> bool:
        """A watch that stood does not any more, as the actor is published for others now."""
        end = link.watches.pop(record.question, None)
        if end is None:
            return self._is_late(link)
        error = decode_failure(record.failure, self._refs)
        end.lost(
            record.question, error if isinstance(error, DrakkarError) else HostGone(f"not watched: {error}")
        )
        return True

    def _is_late(self, link: Link) -> bool:
        self._counters[LATE_ANSWERS] += 1
        return link.forgive()

    def _hear_end(self, link: Link, record: Died) -> bool:
        end = link.watches.pop(record.watch, None)
        if end is None:
            return link.forgive()
        end.ended(None if record.reason is None else decode_failure(record.reason, self._refs))
        return True


def _no_answer(_: bytes) -> None:
    """What the answer to a watch says: nothing."""
