"""What this host does for the actors of others: their messages go to its own, and the answers go back.

Each message is for one actor in one run of this host. What cannot be delivered is answered at once, with the reason; a message
that was told is dropped then, and counted.

What a host can ask for is bounded: by questions without an answer, in all and to one actor (`clients`), by messages in an inbox, and
by bytes of all that wait (`loads`). A place among the questions is given back when the question's time is over, also where its answer is
a future that is never set.
"""

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeAlias
from weakref import WeakValueDictionary

import pykka
from drakkar.actors.remote.clients import Client, Pending
from drakkar.actors.remote.errors import AnswerTimeout, NotAllowed, UnknownName
from drakkar.actors.remote.from_host import FromHost, is_told_of_hosts
from drakkar.actors.remote.links import Link
from drakkar.actors.remote.loads import MAX_BYTES, MAX_BYTES_OF_ONE, Delivered, Load
from drakkar.actors.remote.peer_letters import stamped
from drakkar.actors.remote.published import Grant, Published, PublishedActor
from drakkar.actors.remote.reach import kind_at
from drakkar.actors.remote.records import (
    MAX_NAMES,
    Answer,
    Ask,
    Attributes,
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
    Unwatch,
    Watch,
    class_name,
    encode_found,
    encode_names,
)
from drakkar.actors.remote.replies import Replies
from drakkar.actors.remote.values import Refs, ValueRefused, unpack
from drakkar.handlers.cbor import has_more_items
from drakkar.handlers.errors import DrakkarError, SystemBusy
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

__all__ = ["MANY_ITEMS", "Home", "Serving", "takes_long"]

MAX_INBOX: Final = 10_000
"""Messages that may wait for an actor whose own inbox has no bound, as that of a pykka `ThreadingActor`."""
MANY_ITEMS: Final = 2048
"""Items of a value that are decoded within a turn of the loop, of a millisecond. Of more, the time is charged: see `takes_long`."""
MANY_BYTES: Final = 4096
"""Of what is told of an actor, as that takes a part of a millisecond."""
SWEEP_TICKS: Final = 10
"""In so many ticks each question is looked at, whether its time is over."""

_NOTHING: Final = b"\xf6"
"""None, as values are packed."""
_Asking: TypeAlias = Ask | Call | Get | Set
_UNDELIVERED: Final = (DrakkarError, pykka.ActorDeadError)
"""Why a message does not reach its actor."""


class Home(Protocol):
    """What is used of the host. In the thread of the loop."""

    @property
    def run(self) -> int:
        """The nonce of this run."""
        ...

    def is_certified_as(self, address: str, names: Iterable[str]) -> bool:
        """Return whether the host at an address has shown a certificate with one of these names."""
        ...


class Serving:
    """Serves the actors of other hosts. For the thread of the loop; answers may come from any."""

    def __init__(
        self, home: Home, published: Published, refs: Refs, replies: Replies, unknown_fields: Counter[str]
    ) -> None:
        """`unknown_fields`: see `values.unpack`."""
        self._home, self._run, self._published = home, home.run, published
        self._refs, self._replies, self._unknown_fields = refs, replies, unknown_fields
        self._clients: dict[str, Client] = {}
        """By address: the hosts that have a connection to this one, and have asked for something on it."""
        self._load = Load(MAX_BYTES, "other hosts")
        self._loads: WeakValueDictionary[str, Load] = WeakValueDictionary()
        """By address: a host that comes again does not begin anew while messages of it wait."""
        self._ticks = 0
        self.handlers: Final[Mapping[type[Any], Callable[[Link, Any], bool]]] = {
            Tell: self._tell,
            Ask: self._ask,
            Call: self._call,
            Get: self._ask,
            Set: self._ask,
            Lookup: self._look_up,
            Describe: self._describe,
            Names: self._list_names,
            Watch: self._watch,
            Unwatch: self._unwatch,
        }
        """What is done with a record of the host that a link leads to; False: the host is to be charged for it."""

    # ---- hosts

    @property
    def questions(self) -> int:
        """Questions of other hosts that have no answer yet. From any thread."""
        return sum(client.questions for client in list(self._clients.values()))

    @property
    def watches(self) -> int:
        """Actors that other hosts watch here, counted for each of them. From any thread."""
        return sum(client.watches for client in list(self._clients.values()))

    def waits(self, address: str) -> bool:
        """Return whether a host waits for something of this one."""
        client = self._clients.get(address)
        return client is not None and client.waits

    def lost(self, address: str) -> None:
        """A connection to or from a host has ended: it waits for nothing any more. What answers it is dropped."""
        client = self._clients.pop(address, None)
        if client is not None:
            client.forget()

    def _client(self, link: Link) -> Client:
        client = self._clients.get(link.address)
        if client is None:
            load = self._loads.get(link.address)
            if load is None:
                load = self._loads[link.address] = Load(MAX_BYTES_OF_ONE, link.address, self._load)
            client = self._clients[link.address] = Client(link, load)
        return client

    def tick(self) -> None:
        """Give places back whose time is over, and say again what found no room. Each tick does a part of the hosts."""
        self._ticks += 1
        for at, client in enumerate(list(self._clients.values())):
            if client.unsaid:
                unsaid, client.unsaid = client.unsaid, []
                for notice in unsaid:
                    self._replies.insist(client, notice)
            if (at + self._ticks) % SWEEP_TICKS == 0:
                for pending in client.late(time.monotonic()):
                    client.close(pending)

    # ---- messages

    def _tell(self, link: Link, record: Tell | Call) -> bool:
        """Deliver what needs no answer."""
        client = self._client(link)
        try:
            actor = self._actor(link, record.target)
            self._deliver(client, actor, self._message(link, actor, record), _size(record), None)
        except _UNDELIVERED as error:
            self._replies.dropped(link.address, error)
            return not _is_fault_of_sender(error)
        return True

    def _call(self, link: Link, record: Call) -> bool:
        return self._ask(link, record) if record.question else self._tell(link, record)

    def _ask(self, link: Link, record: _Asking) -> bool:
        client = self._client(link)
        try:
            if not record.milliseconds:
                raise AnswerTimeout("the time of the question was over before it reached the actor")
            actor = self._actor(link, record.target)
            message = self._message(link, actor, record)
            deadline = time.monotonic() + record.milliseconds / 1000
            pending = Pending(client, record.question, actor, deadline, self._replies.answer)
            client.open(pending)
        except _UNDELIVERED as error:
            return self._refuse(client, record.question, error)
        try:
            self._deliver(client, actor, message, _size(record), pending)
        except _UNDELIVERED as error:
            return not client.close(pending) or self._refuse(client, record.question, error)
        return True

    def _refuse(self, client: Client, question: int, error: Exception) -> bool:
        """Refuse a question. That is charged, also where the asker is not at fault: it costs as much as an answer, and no actor limits how often.

        An honest host has credit for some thousands, as after the end of an actor, or where one is busy.
        """
        self._replies.refuse(client, question, error, _kind(error))
        return False

    def _actor(self, link: Link, target: Target) -> PublishedActor:
        """Return the actor that a message is for. Raises `pykka.ActorDeadError` and `NotAllowed`."""
        actor = self._published.by_number(target.number) if target.run == self._run else None
        if actor is None or not actor.ref.is_alive():
            earlier = ", in an earlier run of its host" if target.run != self._run else ""
            raise pykka.ActorDeadError(f"the actor has ended, or is not published any more{earlier}")
        if not self._granted(link, actor):
            raise _kept_out(link, actor)
        return actor

    def _granted(self, link: Link, actor: PublishedActor) -> list[Grant]:
        return actor.granted_to(partial(self._home.is_certified_as, link.address))

    def _message(self, link: Link, actor: PublishedActor, record: Tell | _Asking) -> Any:
        """Return what the actor is to be given. Raises `ValueRefused` for what cannot be decoded, and `NotAllowed`."""
        match record:
            case Tell() | Ask():
                message = stamped(self._unpack(record.message), link.address)
                return FromHost(link.address, message) if is_told_of_hosts(actor.ref) else message
            case Call():
                self._check_reach(link, actor, record.path, callable_=True)
                args, kwargs = self._unpack(record.args, "args"), self._unpack(record.kwargs, "kwargs")
                if type(args) is not list or type(kwargs) is not dict:
                    raise ValueRefused("args", "are no list and dict", "call the method of a proxy")
                return ProxyCall(record.path, tuple(args), kwargs)
            case Get():
                self._check_reach(link, actor, record.path, callable_=False)
                return ProxyGetAttr(record.path)
            case Set():
                self._check_reach(link, actor, record.path, callable_=False)
                return ProxySetAttr(record.path, self._unpack(record.value, "value"))

    def _check_reach(
        self, link: Link, actor: PublishedActor, path: tuple[str, ...], *, callable_: bool
    ) -> None:
        """Raise `NotAllowed` unless a proxy of this host reaches a method, or an attribute, at a path."""
        if all(kind_at(grant.attributes, path) is not callable_ for grant in self._granted(link, actor)):
            what = "a method" if callable_ else "an attribute"
            raise NotAllowed(f"{'.'.join(path):.200} of {actor} was not published for proxies as {what}")

    def _unpack(self, data: bytes, what: str = "message") -> Any:
        return unpack(data, self._refs, what=what, dropped=self._unknown_fields)

    @staticmethod
    def _deliver(
        client: Client, actor: PublishedActor, message: Any, size: int, pending: Pending | None
    ) -> None:
        """Put a message into the actor's inbox. Raises `SystemBusy` and `pykka.ActorDeadError`."""
        client.load.check(size)
        inbox, envelope = actor.ref.actor_inbox, Delivered(message, pending, client.load, size)
        if not isinstance(inbox, queue.Queue):
            inbox.put(envelope)
        elif not _put(inbox, envelope):
            raise SystemBusy(
                f"{inbox.qsize()} messages wait for {actor}, which is too many: wait a little, and send it again"
            )

    # ---- ends

    def end_of(self, actor: PublishedActor, reason: BaseException | None) -> None:
        """An actor has ended: tell those who watch it. What it has not answered it never will, nor what it has promised to."""
        error = pykka.ActorDeadError(f"{actor} ended before it answered")
        for client in list(self._clients.values()):
            for pending in client.opened_to(actor.number):
                self._replies.answer(pending, None, error)
        self._end_watches(actor, reason)

    def _end_watches(self, actor: PublishedActor, reason: BaseException | None) -> None:
        for client in list(self._clients.values()):
            watches = client.take_watches(actor.number)
            if watches:
                failure = self._replies.failure(reason)
                for watch in watches:
                    self._replies.insist(client, Died(watch, failure))

    def regranted(self, actor: PublishedActor) -> None:
        """The names of an actor are others than they were: tell those hosts that watch it, and do not reach it any more."""
        now = self._published.by_number(actor.number)
        if now is None:
            self._end_watches(actor, pykka.ActorDeadError(f"{actor} is not published any more"))
            return
        for client in list(self._clients.values()):
            if not self._granted(client.link, now):
                failure = self._replies.failure_of(_kept_out(client.link, now))
                for watch in client.take_watches(now.number):
                    self._replies.insist(client, Failed(watch, FailKind.REFUSED, failure))

    def _watch(self, link: Link, record: Watch) -> bool:
        client = self._client(link)
        try:
            new = client.watch(record.watch, self._actor(link, record.target).number)
        except _UNDELIVERED as error:
            return self._refuse(client, record.watch, error)
        self._replies.send(client, record.watch, Answer(record.watch, _NOTHING))
        return new

    def _unwatch(self, link: Link, record: Unwatch) -> bool:
        self._client(link).unwatch(record.watch)
        return True

    # ---- names

    def _look_up(self, link: Link, record: Lookup) -> bool:
        client = self._client(link)
        try:
            actor = self._published.by_name(record.name)
            grant = actor.grants[record.name]
            if not self._is_for(link, grant):
                raise _kept_out(link, actor)
        except DrakkarError as error:
            return self._refuse(client, record.question, error)
        return self._found(client, record.question, actor, grant.attributes)

    def _describe(self, link: Link, record: Describe) -> bool:
        """Tell all that a proxy of the host reaches, by whichever name."""
        client = self._client(link)
        try:
            actor = self._actor(link, record.target)
        except _UNDELIVERED as error:
            return self._refuse(client, record.question, error)
        attributes: dict[str, Any] = {}
        for grant in self._granted(link, actor):
            attributes |= grant.attributes
        return self._found(client, record.question, actor, attributes)

    def _found(self, client: Client, question: int, actor: PublishedActor, attributes: Attributes) -> bool:
        """Tell what an actor is. That takes long where a proxy reaches much, so it is charged then."""
        found = Found(Target(self._run, actor.number), class_name(actor.ref.actor_class.__name__), attributes)
        value = encode_found(found)
        self._replies.send(client, question, Answer(question, value))
        return len(value) <= MANY_BYTES

    def _list_names(self, link: Link, record: Names) -> bool:
        """Tell which names the host may look up. That takes long where there are many, so it is charged."""
        names = [name for name in sorted(self._published.names()) if self._may_see(link, name)]
        answer = Answer(record.question, encode_names(names[:MAX_NAMES]))
        self._replies.send(self._client(link), record.question, answer)
        return False

    def _may_see(self, link: Link, name: str) -> bool:
        try:
            return self._is_for(link, self._published.by_name(name).grants[name])
        except UnknownName:
            return False

    def _is_for(self, link: Link, grant: Grant) -> bool:
        return grant.acl is None or self._home.is_certified_as(link.address, grant.acl)


def takes_long(record: Record | None) -> bool:
    """Return whether a message brings values that hold up the loop, useful or not: the host that sends many of them has to wait."""
    return isinstance(record, Tell | Ask | Call | Set) and any(
        type(field) is bytes and len(field) > MANY_ITEMS and has_more_items(field, MANY_ITEMS)
        for field in record
    )


def _kept_out(link: Link, actor: PublishedActor) -> NotAllowed:
    return NotAllowed(f"{actor} is published for other hosts than {link.address}: its acl names those")


def _put(inbox: "queue.Queue[Any]", envelope: Delivered) -> bool:
    """Put into an inbox of pykka's own kind, which has no bound, or blocks where it has one. Return False where it is full."""
    if inbox.qsize() >= MAX_INBOX:
        return False
    try:
        inbox.put_nowait(envelope)
    except queue.Full:
        return False
    return True


def _size(record: Tell | _Asking) -> int:
    """Return how many bytes of values it has."""
    return sum(len(field) for field in record if type(field) is bytes)


def _kind(error: Exception) -> FailKind:
    match error:
        case UnknownName():
            return FailKind.UNKNOWN
        case pykka.ActorDeadError():
            return FailKind.DEAD
        case SystemBusy():
            return FailKind.BUSY
        case NotAllowed() | ValueRefused():
            return FailKind.REFUSED
        case AnswerTimeout():
            return FailKind.LATE
        case _:
            return FailKind.RAISED


def _is_fault_of_sender(error: Exception) -> bool:
    """Return whether a host that tells such messages is to be charged. Not for those to an actor that has ended: it is not told."""
    return isinstance(error, NotAllowed | ValueRefused | UnknownName)
