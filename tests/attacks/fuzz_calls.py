"""The whole path of what a host says of actors: from the body of a frame to the inboxes, questions and watches that it is about.

The actors are real, the sockets are not. Numbers that nobody can guess stand in the input as small ones, which are put in place here, so
that a fuzzer comes as far as a host that was told them.
"""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import cbor2
from drakkar.actors import ActorDied, ActorFuture, HostGone, TrioActor, TrioLoop, message, watch
from drakkar.actors.remote import clients
from drakkar.actors.remote.calls import Calls
from drakkar.actors.remote.failures import encode_failure
from drakkar.actors.remote.records import (
    Answer,
    Ask,
    Call,
    Died,
    Failed,
    FailKind,
    Target,
    Tell,
    decode,
    encode,
)
from drakkar.actors.remote.refs import Place, RemoteRef
from drakkar.actors.remote.values import pack
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.transport.call_frames import calls_body, decode_calls
from drakkar.transport.call_rooms import CallRoom, CallRooms
from drakkar.transport.frames import FrameError
from drakkar.transport.liveness import HostState
from drakkar.transport.options import Options

__all__ = ["FRIEND", "HERE", "SMALL", "Stage", "called", "end", "seeds"]

HERE: Final = 77
"""The run of the host that is told."""
PEER: Final = "127.0.0.2:7000"
INNOCENT: Final = "127.0.0.3:7000"
FRIEND: Final = "teller.example"
SMALL: Final = 8
"""Numbers below this stand for those of actors, questions and watches."""
WITHIN_S: Final = 10.0
_ANSWERS, _FAILED, _DIED = 6, 7, 12
_TARGET_AT: Final = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 10: 2}
"""By the kind of a record: the field that names its actor."""


@message("tests.attacks.picky")
@dataclass
class Picky:
    """A message whose class looks at its fields."""

    count: int
    more: Any = None

    def __post_init__(self) -> None:
        if self.count > 1000:
            raise ValueError(f"{self.count} is too many")


class Echo(TrioActor):
    """Answers with what it is sent, or never."""

    limit = 5

    def outlives(self, error: Exception) -> bool:
        """Go on, where others end by a message that fails."""
        return True

    def on_receive(self, message: Any) -> Any:
        return ActorFuture() if message == "hang" else message

    def echo(self, *values: Any, **named: Any) -> Any:
        """Return what it is given."""
        return [list(values), named]

    def fail(self) -> None:
        """Raise an exception."""
        raise LookupError("no")

    def _private(self) -> str:
        raise AssertionError("a proxy has reached what is private")


class Loop:
    """Does at once what is to be done in the loop, in one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def in_loop(self) -> bool:
        return True

    def at_round_end(self, function: Callable[[], object]) -> None:
        with self.lock:
            function()

    def run_soon(self, function: Callable[..., object], *args: Any) -> None:
        with self.lock:
            function(*args)

    def spawn(self, *_: object, **__: object) -> None:
        """No deadline passes."""


class Wire:
    """Takes what is sent; of that for the innocent one, `answers` has the records."""

    address = "127.0.0.1:7000"
    run = HERE
    certified = True
    options = Options()

    def __init__(self) -> None:
        self._rooms = CallRooms(self.options)
        self.charged = self.sent = 0
        self.answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.watched: Counter[str] = Counter()

    def call_room(self, address: str) -> CallRoom:
        return self._rooms.of(address)

    def send_calls(
        self,
        address: str,
        records: Sequence[bytes],
        *,
        admitted: bool = False,
        now: bool = False,
        answers: bool = False,
    ) -> int:
        assert admitted
        self.call_room(address).give_back(len(records), sum(map(len, records)))
        self.sent += len(records)
        if address == INNOCENT:
            for record in records:
                self.answers.put(record)
        return 0

    def away(self, address: str) -> str:
        return ""

    def charge_calls(self, address: str, count: int) -> None:
        assert count > 0
        self.charged += count

    def is_certified_as(self, address: str, names: Sequence[str]) -> bool:
        return address == INNOCENT and FRIEND in names

    def host_state(self, address: str) -> HostState:
        return HostState.ALIVE

    def unreached(self, address: str) -> str:
        return ""

    def knock(self, address: str) -> None:
        raise AssertionError("no host is out of reach")

    def reachable(self, address: str) -> bool:
        return True

    def keep(self, addresses: Iterable[str]) -> None:
        assert set(addresses) <= {PEER, INNOCENT}

    def watch_host(self, address: str) -> HostState:
        self.watched[address] += 1
        return HostState.ALIVE

    def unwatch_host(self, address: str) -> None:
        self.watched[address] -= 1
        assert self.watched[address] == 0, "it was not watched, or twice"


class Stage:
    """A host with some actors, questions and watches, and a peer that says what it likes."""

    def __init__(self) -> None:
        self.loop, self.wire, self.counters = Loop(), Wire(), Counter[str]()
        lines = HostLines(self.wire.address).of("drakkar.actors.remote")
        self.calls = Calls(self.wire, self.loop, self.counters, lines)  # type: ignore[arg-type]
        self.actors_loop = TrioLoop().start()
        self.echo, self.guarded = Echo.start(loop=self.actors_loop), Echo.start(loop=self.actors_loop)
        self.calls.publish("echo", self.echo, proxy=True)
        self.calls.publish("listed", self.echo, proxy=["limit"])
        self.calls.publish("plain", self.echo)
        self.calls.publish("guarded", self.guarded, proxy=True, acl=[FRIEND])
        published = self.calls._published
        self.actors = [published.by_name(name).number for name in ("echo", "listed", "plain", "guarded")]
        self.refs = self.calls._exports
        self.calls.greeted(INNOCENT)
        self.questions: list[int] = []
        self.watches: list[int] = []
        self.futures: list[ActorFuture[Any]] = []
        self.seen: Counter[str] = Counter()
        """What the peer has brought about: else the fuzz would show nothing."""
        self._innocent = self._places = 0

    # ---- what the peer says

    def hear(self, rows: list[list[Any]]) -> bool:
        """Have a peer say this, and see that no harm is done; return whether it was taken to the end."""
        self._begin()
        taken = True
        try:
            with self.loop.lock:
                self.calls.called(PEER, [self._placed(row) for row in rows])
        except FrameError:
            taken = False
        self._check()
        return taken

    def _begin(self) -> None:
        """Wait for answers, and watch, so that there is something to be answered."""
        with self.loop.lock:
            self.calls.parted(PEER)
            self.calls.greeted(PEER)
            link = self.calls._links.of(PEER)
            there = RemoteRef(self.calls._asking, self._place(), name="there", attributes={"echo": True})
            self.futures = [
                self.calls.remote(PEER, "ledger", block=False, timeout=WITHIN_S),
                self.calls.remote_names(PEER, block=False, timeout=WITHIN_S),
                there.ask("what?", block=False),
            ]
            self.questions = list(link._questions)
            watch(there, self._note_end)
            self.watches = list(link.watches)
        assert (len(self.questions), len(self.watches)) == (3, 1)

    def _place(self) -> Place:
        """Where an actor lives that has not ended yet, as far as this host knows."""
        self._places += 1
        return Place(PEER, 5, 1000 + self._places)

    def _note_end(self, died: ActorDied) -> None:
        self.seen["ends"] += not isinstance(died.reason, HostGone)

    def _placed(self, row: Any) -> Any:
        """Put the numbers in place for which small ones stand."""
        if type(row) is not list or not row or type(row[0]) is not int:
            return row
        kind = row[0]
        if kind in (_ANSWERS, _FAILED):
            _place(row, 1, self.questions)
        elif kind == _DIED:
            _place(row, 1, self.watches)
        elif (at := _TARGET_AT.get(kind)) is not None and len(row) > at and type(row[at]) is list:
            target = row[at]
            if len(target) == 2 and target[0] == HERE:
                _place(target, 1, self.actors)
        return row

    def _check(self) -> None:
        """What was said has harmed nobody: an innocent host is answered, and what is held is bounded."""
        self._note()
        self._innocent += 1
        asked = Ask(self._innocent, Target(HERE, self.actors[3]), 10_000, pack(self._innocent, self.refs))
        with self.loop.lock:
            self.calls.called(INNOCENT, [cbor2.loads(encode(asked))])
        answer = decode(cbor2.loads(self.wire.answers.get(timeout=WITHIN_S)))
        assert answer == Answer(self._innocent, pack(self._innocent, self.refs))
        with self.loop.lock:
            self.calls.tick()
            found = list(self.calls._serving._clients.values())
        assert len(found) <= 2
        for client in found:
            with client._lock:
                questions, there = client.questions, sum(map(len, client._open.values()))
            assert questions == there <= clients.MAX_QUESTIONS, "a question has left without its count"
            assert client.watches == sum(map(len, client._watchers.values())) <= clients.MAX_WATCHES
        assert len(self.echo.actor_inbox.termination._watches) == 1, (
            "an actor tells this host of its end, once"
        )
        assert self.echo.is_alive()
        assert self.guarded.is_alive()

    def _note(self) -> None:
        for future in self.futures:
            self.seen["answers"] += future.done and future.outcome()[1] is None
            self.seen["failures"] += future.done and future.outcome()[1] is not None
        client = self.calls._serving._clients.get(PEER)
        self.seen["questions"] += bool(client and client.questions)
        self.seen["watches"] += bool(client and client.watches)

    def close(self) -> None:
        """Stop the actors."""
        self.actors_loop.stop()


def _place(row: list[Any], at: int, numbers: Sequence[int]) -> None:
    if len(row) > at and type(row[at]) is int and 0 <= row[at] < SMALL:
        row[at] = numbers[row[at] % len(numbers)]


@cache
def _stage() -> Stage:
    return Stage()


def end() -> None:
    """Stop the actors that `called` has started: a process that leaves a loop running does not end."""
    if _stage.cache_info().currsize:
        _stage().close()
        _stage.cache_clear()


def called(data: bytes) -> None:
    """The body of a CALLS frame, and what its records bring about."""
    with suppress(FrameError):
        _stage().hear(decode_calls(data))


def seeds() -> list[bytes]:
    """Bodies that a fuzzer changes."""
    stage = Stage()
    try:
        return _seeds(stage)
    finally:
        stage.close()


def _seeds(stage: Stage) -> list[bytes]:
    refs = stage.refs
    here = [Target(HERE, number) for number in range(4)]
    values = [
        {"a": [1, None, {"@": 2}]},
        Picky(7, [Picky(1)]),
        [RemoteRef(stage.calls._asking, Place(PEER, 5, 9), name="there", class_name="Ledger")],
        "hang",
    ]
    asks = [encode(Ask(1 + n, here[n % 4], 1000, pack(value, refs))) for n, value in enumerate(values)]
    calls = [
        encode(Call(20, here[0], 1000, ("echo",), pack([1, "a"], refs), pack({"b": 2}, refs))),
        encode(Call(0, here[0], 0, ("echo",), pack([], refs), pack({}, refs))),
        encode(Tell(here[2], pack("told", refs))),
        cbor2.dumps([4, 21, list(here[1]), 1000, ["limit"]]),
        cbor2.dumps([5, 22, list(here[0]), 1000, ["limit"], pack(9, refs)]),
    ]
    names = [cbor2.dumps([8, 30, "echo"]), cbor2.dumps([9, 31])]
    watches = [cbor2.dumps([10, 40, list(here[0])]), cbor2.dumps([11, 40]), encode(Died(0, None))]
    found = cbor2.dumps([[5, 9], "Ledger", ["echo()", "book.title"]])
    answers = [
        encode(Answer(0, found)),
        encode(Answer(1, cbor2.dumps(["ledger"]))),
        encode(Answer(2, pack(values[0], refs))),
        encode(Failed(2, FailKind.DEAD, encode_failure(KeyError("ann"), refs))),
    ]
    return [
        calls_body(records) for records in (asks, calls, names, watches, answers, [*asks, *calls, *answers])
    ]
