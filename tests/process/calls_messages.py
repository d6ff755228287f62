"""Actors of all kinds that other processes call, and what they are told: see `actors_host`.

They remember which numbers each sender has told them, so that a test finds out what was lost, doubled or out of order.
"""

import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import pykka
from drakkar.actors import ActorFuture, TableActor, TrioActor, failure, message
from drakkar.handlers import HandlerTable

__all__ = ["KINDS", "Do", "Note", "Overdrawn", "Unregistered"]


class Kind(IntEnum):
    """What a message is, for the table of the one that has a table."""

    NOTE = 2001
    DO = 2002


class Phase(IntEnum):
    OPEN = 0


@message("tests.process.note")
@dataclass(frozen=True, slots=True)
class Note:
    """A number of a sender, each of which it tells once. The answer is the number."""

    type: ClassVar[Kind] = Kind.NOTE
    sender: str
    number: int
    padding: bytes = b""


@message("tests.process.do")
@dataclass(frozen=True, slots=True)
class Do:
    """Call a method, as a proxy would; but a message."""

    type: ClassVar[Kind] = Kind.DO
    method: str
    arguments: Any = ()


@failure("tests.process.overdrawn")
class Overdrawn(Exception):
    def __init__(self, account, missing):
        super().__init__(account, missing)
        self.account, self.missing = account, missing


class Unregistered(Exception):
    pass


class Seen:
    """The numbers that one sender has told."""

    def __init__(self):
        self.numbers = set()
        self.last, self.twice, self.late = -1, 0, 0

    def add(self, number):
        self.twice += number in self.numbers
        self.late += number < self.last
        self.numbers.add(number)
        self.last = max(self.last, number)


class Keeper:
    """What the actors of all kinds do alike. `_hang` and `_let_go` are those of each kind."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.limit = 5
        self._seen, self._kept = {}, []

    def _note(self, note):
        self._seen.setdefault(note.sender, Seen()).add(note.number)
        return note.number

    def _do(self, order):
        return getattr(self, order.method)(*order.arguments)

    def kind(self):
        return type(self).__name__

    def echo(self, value):
        return value

    def fail(self):
        raise Unregistered("no")

    def overdraw(self, account):
        raise Overdrawn(account, 7)

    def unsendable(self):
        return {"deep": [object()]}

    def hang(self):
        """Never return, or not before the test says so."""
        return self._hang()

    def keep(self, refs):
        """Take references, and say which actors they are."""
        self._kept = refs
        return len(refs)

    def give(self):
        return self._kept

    def spawn(self, count):
        """Start so many actors, and return references to them."""
        self._kept = [Numbered.start(number) for number in range(count)]
        return self._kept

    def _private(self):
        return "secret"


class _Dispatching(Keeper):
    def on_receive(self, message):
        match message:
            case Note():
                return self._note(message)
            case Do():
                return self._do(message)
            case _:
                return message


class Threaded(_Dispatching, pykka.ThreadingActor):
    use_daemon_thread = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._gate = threading.Event()

    def _hang(self):
        self._gate.wait()
        return "let go"

    def _let_go(self):
        self._gate.set()


class _OnLoop:
    """It never blocks: what it answers with has no outcome yet."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._later = ActorFuture()

    def _hang(self):
        return self._later

    def _let_go(self):
        self._later.try_set("let go")


class OnLoop(_OnLoop, _Dispatching, TrioActor):
    pass


TABLE = HandlerTable(Phase)
TABLE.on(Kind.NOTE)(lambda actor, message: actor._note(message))
TABLE.on(Kind.DO)(lambda actor, message: actor._do(message))


class ByTable(_OnLoop, Keeper, TableActor):
    handlers = TABLE
    state = Phase.OPEN


class Numbered(TrioActor):
    """One of a thousand: it answers with its number."""

    def __init__(self, number, **kwargs):
        super().__init__(**kwargs)
        self._number = number

    def on_receive(self, message):
        return self._number


KINDS = {"thread": Threaded, "trio": OnLoop, "table": ByTable}
