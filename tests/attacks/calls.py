"""A host that calls others as it likes: what it says, how it keeps to its credit, and how it takes the answers."""

import itertools
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import cbor2
from drakkar.actors.remote.failures import Failure
from drakkar.actors.remote.records import (
    Answer,
    Ask,
    Call,
    Describe,
    Died,
    Failed,
    FailKind,
    Get,
    Lookup,
    Names,
    Set,
    Target,
    Tell,
    Unwatch,
    Watch,
    decode,
    encode,
)
from drakkar.transport.call_frames import RECORDS_PER_FRAME, calls_body
from drakkar.transport.calls import CallWindow
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.hello import ALIVE_FEATURE, CALLS_FEATURE
from drakkar.transport.parts import PART_BYTES

from tests.attacks import forge

__all__ = ["FLOODS", "MIB", "CallFlood", "Say", "Sink", "frames_of"]

MIB = 1 << 20
LONG_MS = 60_000


# ---- what it says: each makes the records of one frame, anew for each


class Say:
    """Makes records about some actors, which are named by what a host that has found them knows of them."""

    def __init__(self, actors):
        """`actors`: run and number, by name."""
        self._actors = {name: Target(*place) for name, place in actors.items()}
        self._numbers = itertools.count(1)
        self._random = random.Random(1)

    def _new(self, record: Callable[[int], tuple], count: int = RECORDS_PER_FRAME) -> list[bytes]:
        return [encode(record(next(self._numbers))) for _ in range(count)]

    def tells(self):
        return self._new(lambda _: Tell(self._actors["open"], b"\x01"))

    def asks(self):
        return self._new(lambda n: Ask(n, self._actors["open"], LONG_MS, b"\x01"))

    def asks_that_hang(self):
        return self._new(lambda n: Ask(n, self._actors["never"], LONG_MS, b"\x01"))

    def asks_by_one_number(self):
        return self._new(lambda _: Ask(7, self._actors["never"], LONG_MS, b"\x01"))

    def tells_that_wait(self):
        return self._new(lambda _: Tell(self._actors["blocked"], b"\x01"))

    def asks_of_nobody(self):
        return self._new(lambda n: Ask(n, Target(self._actors["open"].run, n), LONG_MS, b"\x01"))

    def guesses(self):
        run = self._actors["open"].run
        return self._new(lambda _: Tell(Target(run, self._random.getrandbits(62)), b"\x01"))

    def other_runs(self):
        number = self._actors["open"].number
        return self._new(lambda n: Ask(n, Target(self._random.getrandbits(62), number), LONG_MS, b"\x01"))

    def asks_without_leave(self):
        return self._new(lambda n: Ask(n, self._actors["guarded"], LONG_MS, b"\x01"))

    def methods(self):
        return self._new(lambda n: Call(n, self._actors["open"], LONG_MS, ("echo",), b"\x81\x01", b"\xa0"))

    def private_methods(self):
        names = itertools.cycle(["_private", "stop", "__init__", "actor_loop", "start_actor", "on_receive"])
        return self._new(lambda n: Call(n, self._actors["open"], LONG_MS, (next(names),), b"\x80", b"\xa0"))

    def private_attributes(self):
        paths = itertools.cycle(
            [("__class__", "__mro__"), ("actor_inbox",), ("echo", "__globals__"), ("actor_ref",)]
        )
        target = self._actors["open"]

        def record(n):
            return (
                Get(n, target, LONG_MS, next(paths))
                if n % 2
                else Set(n, target, LONG_MS, next(paths), b"\x01")
            )

        return self._new(record)

    def lookups(self):
        return self._new(lambda n: Lookup(n, "open"))

    def lookups_of_nobody(self):
        return self._new(lambda n: Lookup(n, f"nobody {n}"))

    def descriptions(self):
        return self._new(lambda n: Describe(n, self._actors["open"]))

    def names(self):
        return self._new(Names)

    def watches(self):
        return self._new(lambda n: Watch(n, self._actors["open"]))

    def watches_by_one_number(self):
        return self._new(lambda _: Watch(7, self._actors["open"]))

    def watches_that_end(self):
        pairs = (
            (Watch(n, self._actors["open"]), Unwatch(n))
            for n in itertools.islice(self._numbers, RECORDS_PER_FRAME // 2)
        )
        return [encode(record) for pair in pairs for record in pair]

    def watches_of_nobody(self):
        return self._new(lambda n: Watch(n, Target(self._actors["open"].run, n)))

    def ends_of_watches(self):
        return self._new(Unwatch)

    def answers(self):
        return self._new(lambda n: Answer(n, b"\x01"))

    def failures(self):
        failure = Failure("KeyError", "x" * 1000, "y" * 1000, b"\x81\x01")
        return self._new(lambda n: Failed(n, FailKind.RAISED, failure), 20)

    def deaths(self):
        return self._new(lambda n: Died(n, None))

    def unknown_kinds(self):
        return [cbor2.dumps([99, n]) for n in itertools.islice(self._numbers, RECORDS_PER_FRAME)]

    def values(self, value: bytes):
        """Such a value, in one question."""
        return self._new(lambda n: Ask(n, self._actors["open"], LONG_MS, value), 1)

    def large_tells(self):
        return self._new(lambda _: Tell(self._actors["blocked"], large(MIB - 100)), 1)


FLOODS: dict[str, Callable[[Say], list[bytes]]] = {
    "messages to an actor": Say.tells,
    "questions to an actor": Say.asks,
    "questions to an actor that never answers": Say.asks_that_hang,
    "questions by one number": Say.asks_by_one_number,
    "messages to an actor that hangs": Say.tells_that_wait,
    "questions to actors that do not exist": Say.asks_of_nobody,
    "messages by guessed numbers": Say.guesses,
    "questions to another run": Say.other_runs,
    "questions without leave": Say.asks_without_leave,
    "calls of methods": Say.methods,
    "calls of private methods": Say.private_methods,
    "private attributes": Say.private_attributes,
    "lookups": Say.lookups,
    "descriptions of an actor": Say.descriptions,
    "lookups of names that do not exist": Say.lookups_of_nobody,
    "questions for all names": Say.names,
    "watches": Say.watches,
    "watches by one number": Say.watches_by_one_number,
    "watches that end at once": Say.watches_that_end,
    "watches of actors that do not exist": Say.watches_of_nobody,
    "ends of watches that there are not": Say.ends_of_watches,
    "answers that nobody asked for": Say.answers,
    "exceptions that nobody asked for": Say.failures,
    "ends of actors that nobody watches": Say.deaths,
    "records of an unknown kind": Say.unknown_kinds,
    "values of thousands of empty lists": lambda say: say.values(empty_lists()),
    "values that are nested as deep as allowed": lambda say: say.values(nested()),
    "values of hundreds of messages": lambda say: say.values(messages()),
    "values of hundreds of references": lambda say: say.values(references()),
    "values of a megabyte": lambda say: say.values(large(MIB - 100)),
}


@cache
def empty_lists() -> bytes:
    """As many as a value may have."""
    return cbor2.dumps([[]] * 16_000)


@cache
def nested() -> bytes:
    """A value as deep as allowed, many times."""
    inner = cbor2.loads(b"\x81" * 30 + b"\x80")
    return cbor2.dumps([inner] * 500)


@cache
def messages() -> bytes:
    """Of a class that no host of the target knows, inside of lists; and maps that look like some."""
    return cbor2.dumps([[{"@": {"@": n}} for n in range(2000)], {"@": "attackers.own", "field": 1}])


@cache
def references() -> bytes:
    """To actors of a host that does not exist, each of another class."""
    return cbor2.dumps(
        [{"@": ["127.0.9.9:7", n, n, f"name {n}", f"Class{n}", ["a()", "b.c"]]} for n in range(1200)]
    )


@cache
def large(size: int) -> bytes:
    """One string of bytes."""
    return cbor2.dumps(bytes(size))


# ---- how it says it


class CallFlood:
    """Sends CALLS frames as fast as they have credit, and dials again when the connection is cut: see `forge.Attackers`."""

    def __init__(self, address, make: Callable[[], list[bytes]], *, as_address, first=b"", **link):
        self._address, self._make, self._as, self._first, self._link = address, make, as_address, first, link
        self._open = None
        self._window = CallWindow()
        self.records = self.bytes = 0

    def __call__(self):
        try:
            if self._open is None:
                self._dial()
            records = self._make()
            body = calls_body(records)
            self._wait_for_credit(len(records), len(body))
            self._open.socket.settimeout(0.5)
            for frame in frames_of(body):
                self._open.socket.sendall(frame)
            self._window.add(len(records), len(body))
            self.records += len(records)
            self.bytes += len(body)
        except TimeoutError:
            self.close()  # it is not read now
        except (OSError, ssl.SSLError):
            self.close()
            raise

    def _dial(self):
        self._open = forge.introduced(self._address, self._as, **self._link)
        self._window = CallWindow()
        self._open.socket.settimeout(0.5)
        self._open.socket.sendall(self._first)

    def _wait_for_credit(self, records, size):
        until = time.monotonic() + 2.0
        while not self._window.fits(records, size):
            if time.monotonic() > until:
                raise TimeoutError
            try:
                frame = self._open.next(0.5)
            except TimeoutError:
                continue
            if frame is None:
                raise ConnectionResetError
            if frame.kind == FrameKind.CALLS:
                self._window.take(frame.body)

    def close(self):
        if self._open is not None:
            self._open.close()
            self._open = None


def frames_of(body: bytes) -> Iterable[bytes]:
    """Return the frame of a body, or its parts where it is large."""
    if len(body) <= PART_BYTES:
        return [encode_frame(FrameKind.CALLS, body)]
    return _parts(body)


def _parts(body: bytes) -> Iterator[bytes]:
    for at in range(0, len(body), PART_BYTES):
        yield forge.part(len(body), at, body[at : at + PART_BYTES])


class Sink(forge.Callee):
    """A host that takes all that it is sent, and gives credit for it, so that it can be sent more."""

    def __init__(self, address, *, tls=None, keeps=False):
        super().__init__(address, b"", tls=tls, features=(CALLS_FEATURE, ALIVE_FEATURE))
        self._keeps = keeps
        self.heard = []
        """The records that have come, where it keeps them."""

    def _go_on(self, caller, reader):
        window = CallWindow()
        while not self._over.is_set():
            try:
                data = caller.recv(1 << 16)
            except TimeoutError:
                continue
            if not data:
                return
            for frame in reader.feed(data):
                self._take(caller, frame, window)
            if window.due:
                caller.sendall(window.give())

    def _take(self, caller, frame, window):
        if frame.kind == FrameKind.CALLS:
            rows = cbor2.loads(frame.body)
            window.add(len(rows), len(frame.body))
            if self._keeps:
                self.heard += map(decode, rows)
        elif frame.kind == FrameKind.PING:
            caller.sendall(encode_frame(FrameKind.PONG, bytes(frame.body)))
        elif frame.kind == FrameKind.ALIVE:
            caller.sendall(encode_frame(FrameKind.ALIVE, bytes(frame.body)))
