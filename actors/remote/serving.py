"""What this host does for the actors of others: their messages go to its own, and the answers go back.

Each message is for one actor in one run of this host. What cannot be delivered is answered at once, with the reason.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, TypeAlias

import pykka
from drakkar.actors.remote.errors import NotAllowed, UnknownName
from drakkar.actors.remote.failures import encode_failure
from drakkar.actors.remote.published import Published, PublishedActor
from drakkar.actors.remote.records import (
    Answer,
    Ask,
    Call,
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
    Unwatch,
    Watch,
    class_name,
    encode_found,
    encode_names,
)
from drakkar.actors.remote.values import Refs, ValueRefused, pack, unpack
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.monitor import ActorDied, unwatch, watch
from drakkar.handlers.errors import DrakkarError, SystemBusy
from pykka._envelope import Envelope
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

__all__ = ["Serving"]

Asking: TypeAlias = Ask | Call | Get | Set

MAX_INBOX: Final = 10_000
"""Messages that may wait for an actor whose own inbox has no bound, as that of a pykka `ThreadingActor`."""
MAX_QUESTIONS: Final = 4_000
"""Questions of one host that have no answer yet."""
MAX_QUESTIONS_TO_ONE: Final = 1_000
"""Questions of one host to one actor that have no answer yet: one that hangs leaves places for others."""
MAX_WATCHES: Final = 10_000
"""Actors that one host watches here."""


class Replies(Protocol):
    """What carries answers back. From any thread."""

    def send(self, address: str, record: Record) -> None:
        """Send a record to a host. Raises `SystemBusy` and `TransportError`."""

    def is_allowed(self, address: str, actor: PublishedActor) -> bool:
        """Return whether the actor's `acl` lets the host in. In the thread of the loop."""
        ...


class Client:
    """Another host, as far as it asks this one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.open: dict[int, Pending] = {}
        """Its questions that have no answer yet."""
        self.open_to: Counter[int] = Counter()
        """How many of these are for each actor, by its number."""
        self.watches: dict[int, tuple[pykka.ActorRef[Any], Callable[[ActorDied], object]]] = {}


class Pending:
    """A question of another host: what answers it is what a pykka actor calls to answer. From any thread, once."""

    __slots__ = ("_answer", "_answered", "actor", "number")

    def __init__(self, number: int, actor: PublishedActor, answer: Callable[["Pending", Any, BaseException | None], None]) -> None:
        self.number, self.actor, self._answer = number, actor, answer
        self._answered = [True]

    def set(self, value: Any = None) -> None:
        """Answer with a value; with a future, when that has its outcome."""
        if isinstance(value, ActorFuture):
            value.add_done_callback(self._settle)
        else:
            self._end(value, None)

    def _settle(self, future: ActorFuture[Any]) -> None:
        self._end(*future.outcome())

    def set_exception(
        self, exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None] | None = None
    ) -> None:
        """Answer with an exception; by default with the one that is being handled."""
        import sys

        _, error, _ = sys.exc_info() if exc_info is None else exc_info
        self._end(None, error or RuntimeError("the actor answered with an exception that has no value"))

    def _end(self, value: Any, error: BaseException | None) -> None:
        try:
            self._answered.pop()
        except IndexError:
            return  # it has an answer
        self._answer(self, value, error)


class Serving:
    """Serves the actors of other hosts. For the thread of the loop, but for what answers questions."""

    def __init__(
        self, run: int, published: Published, refs: Refs, replies: Replies, counters: Counter[str], lines: Lines
    ) -> None:
        """`run`: the nonce of this run of the host."""
        self._run, self._published, self._refs, self._replies = run, published, refs, replies
        self._counters, self._lines = counters, lines
        self._clients: dict[str, Client] = {}
        self._lock = threading.Lock()
        """Of what actors change in threads of theirs: the open questions."""

    def waits(self, address: str) -> bool:
        """Return whether a host waits for something of this one."""
        client = self._clients.get(address)
        return client is not None and bool(client.open or client.watches)

    def lost(self, address: str) -> None:
        """A host is out of reach: what it asked for is of no use to it any more."""
        client = self._clients.pop(address, None)
        if client is not None:
            for ref, told in client.watches.values():
                unwatch(ref, told)

    # ---- what comes

    def hear(self, address: str, record: Record) -> bool:
        """Handle a record that asks for something; return whether it was of use."""
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = Client(address)
        match record:
            case Tell():
                return self._tell(client, record)
            case Call(question=0):
                return self._call(client, record)
            case Ask() | Call() | Get() | Set():
                return self._ask(client, record)
            case Lookup():
                return self._look_up(client, record)
            case Names():
                names = [name for name in self._published.names() if self._may_see(client, name)]
                return self._reply(client, Answer(record.question, encode_names(names)))
            case Watch():
                return self._watch(client, record)
            case Unwatch():
                return self._unwatch(client, record)
            case _:
                return False

    def _tell(self, client: Client, record: Tell) -> bool:
        try:
            actor = self._actor(client, record.target)
            message = self._unpack(record.message)
            self._deliver(actor, message, None)
        except (DrakkarError, pykka.ActorDeadError) as error:
            return self._drop(client, error)
        return True

    def _call(self, client: Client, record: Call) -> bool:
        """Call a method whose result nobody waits for."""
        try:
            actor = self._actor(client, record.target)
            self._deliver(actor, self._message(actor, record), None)
        except (DrakkarError, pykka.ActorDeadError) as error:
            return self._drop(client, error)
        return True

    def _drop(self, client: Client, error: Exception) -> bool:
        self._counters["remote messages dropped"] += 1
        self._lines.debug("dropped a message from %s: %s", client.address, error)
        return isinstance(error, SystemBusy)  # no fault of the sender

    def _ask(self, client: Client, record: Asking) -> bool:
        try:
            actor = self._actor(client, record.target)
            message = self._message(actor, record)
            pending = self._open(client, actor, record.question)
        except (DrakkarError, pykka.ActorDeadError) as error:
            self._fail(client, record.question, error)
            return isinstance(error, SystemBusy)
        try:
            self._deliver(actor, message, pending)
        except (DrakkarError, pykka.ActorDeadError) as error:
            pending.set_exception((type(error), error, None))
        return True

    def _message(self, actor: PublishedActor, record: Asking) -> Any:
        """Return what the actor is to be given. Raises `ValueRefused` for what cannot be decoded, and `NotAllowed`."""
        if isinstance(record, Ask):
            return self._unpack(record.message)
        if not actor.reaches(record.path):
            raise NotAllowed(f"{'.'.join(record.path)} of {_told(actor)} was not published for proxies")
        match record:
            case Call():
                args, kwargs = self._unpack(record.args, "args"), self._unpack(record.kwargs, "kwargs")
                if type(args) is not list or type(kwargs) is not dict:
                    raise ValueRefused("args", "are no list and no dict", "call the method of a proxy")
                return ProxyCall(record.path, tuple(args), kwargs)
            case Get():
                return ProxyGetAttr(record.path)
            case Set():
                return ProxySetAttr(record.path, self._unpack(record.value, "value"))

    def _unpack(self, data: bytes, what: str = "message") -> Any:
        return unpack(data, self._refs, what=what, dropped=self._counters)

    def _actor(self, client: Client, target: Target) -> PublishedActor:
        """Return the actor that a message is for. Raises `pykka.ActorDeadError` and `NotAllowed`."""
        actor = self._published.by_number(target.number) if target.run == self._run else None
        if actor is None or not actor.ref.is_alive():
            earlier = ", in an earlier run of its host" if target.run != self._run else ""
            raise pykka.ActorDeadError(f"the actor has ended, or is not published any more{earlier}")
        self._check_allowed(client, actor)
        return actor

    def _check_allowed(self, client: Client, actor: PublishedActor) -> None:
        if not self._replies.is_allowed(client.address, actor):
            raise NotAllowed(f"{_told(actor)} is published for others than {client.address}: see its acl")

    def _may_see(self, client: Client, name: str) -> bool:
        try:
            return self._replies.is_allowed(client.address, self._published.by_name(name))
        except UnknownName:
            return False

    @staticmethod
    def _deliver(actor: PublishedActor, message: Any, pending: Pending | None) -> None:
        """Put a message into the actor's inbox. Raises `SystemBusy` and `pykka.ActorDeadError`."""
        inbox = actor.ref.actor_inbox
        size = getattr(inbox, "qsize", None)  # pykka's own, which have no bound
        if size is not None and size() >= MAX_INBOX:
            raise SystemBusy(f"{MAX_INBOX} messages wait for {_told(actor)}: wait a little, and send it again")
        inbox.put(Envelope(message, reply_to=pending))  # type: ignore[arg-type]  # pykka only sets it

    # ---- answers

    def _open(self, client: Client, actor: PublishedActor, number: int) -> Pending:
        with self._lock:
            if len(client.open) >= MAX_QUESTIONS or client.open_to[actor.number] >= MAX_QUESTIONS_TO_ONE:
                raise SystemBusy(
                    f"{len(client.open)} questions of {client.address} have no answer yet, {client.open_to[actor.number]} of them "
                    f"to {_told(actor)}; {MAX_QUESTIONS} and {MAX_QUESTIONS_TO_ONE} are allowed: wait a little, and ask again"
                )
            pending = Pending(number, actor, lambda *answer: self._answer(client, *answer))
            client.open[number] = pending
            client.open_to[actor.number] += 1
        return pending

    def _answer(self, client: Client, pending: Pending, value: Any, error: BaseException | None) -> None:
        """Send the answer to a question. In the thread of the actor."""
        with self._lock:
            client.open.pop(pending.number, None)
            client.open_to[pending.actor.number] -= 1
            if not client.open_to[pending.actor.number]:
                del client.open_to[pending.actor.number]
        if error is None:
            try:
                data = pack(value, self._refs, what="answer")
                self._reply(client, Answer(pending.number, data))
                return
            except DrakkarError as refused:
                error = refused
        ended = isinstance(error, pykka.ActorDeadError) and not pending.actor.ref.is_alive()
        self._fail(client, pending.number, error, FailKind.DEAD if ended else FailKind.RAISED)

    def _fail(
        self, client: Client, question: int, error: BaseException, kind: FailKind | None = None
    ) -> None:
        self._reply(client, Failed(question, kind or _kind(error), encode_failure(error, self._refs)))

    def _reply(self, client: Client, record: Record) -> bool:
        """Send a record back; return True. One for which there is no room is lost, as on the way."""
        try:
            self._replies.send(client.address, record)
        except SystemBusy:
            self._counters["remote answers dropped"] += 1
        return True

    def end_of(self, actor: PublishedActor) -> None:
        """An actor has ended: what it has not answered it never will."""
        for client in list(self._clients.values()):
            with self._lock:
                left = [pending for pending in client.open.values() if pending.actor is actor]
            for pending in left:
                error = pykka.ActorDeadError(f"{_told(actor)} ended before it answered")
                pending.set_exception((type(error), error, None))

    # ---- names and ends

    def _look_up(self, client: Client, record: Lookup) -> bool:
        try:
            actor = self._published.by_name(record.name)
            self._check_allowed(client, actor)
        except DrakkarError as error:
            self._fail(client, record.question, error)
            return False
        target = Target(self._run, actor.number)
        found = Found(target, class_name(actor.ref.actor_class.__name__), actor.attributes)
        return self._reply(client, Answer(record.question, encode_found(found)))

    def _watch(self, client: Client, record: Watch) -> bool:
        try:
            actor = self._actor(client, record.target)
        except (DrakkarError, pykka.ActorDeadError) as error:
            return self._reply(client, Died(record.watch, encode_failure(error, self._refs)))
        if len(client.watches) >= MAX_WATCHES:
            busy = SystemBusy(f"{client.address} watches {MAX_WATCHES} actors here, and more are not allowed")
            return self._reply(client, Died(record.watch, encode_failure(busy, self._refs)))

        def told(died: ActorDied) -> None:
            reason = None if died.reason is None else encode_failure(died.reason, self._refs)
            client.watches.pop(record.watch, None)
            self._reply(client, Died(record.watch, reason))

        client.watches[record.watch] = actor.ref, told
        watch(actor.ref, told)
        return True

    @staticmethod
    def _unwatch(client: Client, record: Unwatch) -> bool:
        ref, told = client.watches.pop(record.watch, (None, None))
        return ref is not None and told is not None and unwatch(ref, told)


def _kind(error: BaseException) -> FailKind:
    match error:
        case UnknownName():
            return FailKind.UNKNOWN
        case pykka.ActorDeadError():
            return FailKind.DEAD
        case SystemBusy():
            return FailKind.BUSY
        case NotAllowed() | ValueRefused():
            return FailKind.REFUSED
        case _:
            return FailKind.RAISED


def _told(actor: PublishedActor) -> str:
    """Name an actor to other hosts."""
    kind = actor.ref.actor_class.__name__
    return f"{kind} {actor.name!r}" if actor.name else kind
