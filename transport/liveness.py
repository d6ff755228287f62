"""What a host knows of the life of others: by heartbeats, which make a guess, and by evidence that a process has ended.

*Heartbeats.* In each tick a host sends one to every host that it tracks: the members of its shards, and those that an actor
watches. It has the number of the tick, and is answered with the same number. An answer shows that the other host was alive when that
number was sent, or later; when the answer comes does not matter. So one that is late, or overtaken by a newer one, makes no host
younger. Time is this host's ticks: one that stalls, or whose clock jumps, counts none meanwhile, and takes no host for dead.

That is a guess. A host that is cut off, or that is slow, or whose disk hangs, looks as one that is dead.

*Gone* is more: the process of a run has ended, and nothing of it will be heard any more. What Raft does before its election timeout
rests on that alone. Either

- this host has had a connection to that run and lost it, no connection from that run is open any more, and then the kernel at
  each address of the host has refused a connection, since nothing listens there (ECONNREFUSED); or
- at its address the host has introduced itself in another run, and the connections of the one before have ended.

A timeout is no evidence, nor is a connection that was reset, nor an address that leads nowhere, nor a host that has no place. Where the
evidence is wrong all the same, the host says so itself: see `returned`. docs/transport.md tells who can forge it, and how.

Plain data without clock and sockets, for the thread of the loop; `life` and `states` may be read from any thread.
"""

import struct
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from drakkar.transport.addresses import canonical
from drakkar.transport.frames import FrameError, FrameKind, encode_frame
from drakkar.transport.hello import ALIVE_FEATURE, Hello

__all__ = [
    "DEAD_TICKS",
    "SUSPECT_TICKS",
    "HostState",
    "HostStateChanged",
    "Life",
    "Liveness",
    "RunId",
    "decode_alive",
    "encode_alive",
]

SUSPECT_TICKS: Final = 3
"""Heartbeats in a row without an answer after which a host is suspect. One or two are late whenever a host is busy for a moment."""
DEAD_TICKS: Final = 10
"""The same, after which it counts as dead: as long as a follower waits for its leader, at the least, by default."""
EVIDENCE_TICKS: Final = 3
"""Ticks after the end of the last connection in which a refusal is evidence. The first attempt follows at once. But a process that is
killed closes its connections one by one, its listener perhaps after them, so that attempt may come too early. What is refused much
later says nothing of the process that was lost: by then its address may have been moved."""

_NUMBER: Final = struct.Struct(">Q")


class HostState(Enum):
    """What is known of the life of another host. A guess: one that is cut off looks as one that is dead."""

    UNKNOWN = "unknown"
    """It has not answered in its present run, or nothing is sent to it."""
    ALIVE = "alive"
    SUSPECT = "suspect"
    """It has not answered for three ticks."""
    DEAD = "dead"
    """It has not answered for ten ticks, or its process has ended."""


@dataclass(frozen=True, slots=True)
class HostStateChanged:
    """Another host is in another state than before.

    It is told of the members of this host's shards, and of hosts whose actors are watched from here. `run` is the number of that
    host's start: where a host starts again, its old run is dead before the new one is heard. `address` is in canonical spelling.
    """

    address: str
    host_id: str
    run: int
    state: HostState
    why: str


class RunId(NamedTuple):
    """One run of one host."""

    host_id: str
    starts: int
    nonce: int

    @classmethod
    def of(cls, hello: Hello) -> "RunId":
        """Return the one that introduces itself."""
        return cls(hello.host_id, *hello.run.start)


_NONE: Final = RunId("", 0, 0)


class Life(NamedTuple):
    """What is known of a host now."""

    state: HostState
    host_id: str
    run: int


def encode_alive(number: int) -> bytes:
    """Return an ALIVE frame: a heartbeat, or its answer."""
    return encode_frame(FrameKind.ALIVE, _NUMBER.pack(number))


def decode_alive(body: memoryview) -> int:
    """Return the number in the body of an ALIVE frame. Raises `FrameError` where it is malformed."""
    if len(body) != _NUMBER.size:
        raise FrameError(f"an ALIVE frame has {len(body)} bytes, and not {_NUMBER.size}")
    number: int = _NUMBER.unpack(body)[0]
    return number


@dataclass(slots=True)
class _Host:
    """What is known of the host at one canonical address."""

    name: str
    run: RunId = _NONE
    """The one that introduced itself last, on a connection that this host had opened."""
    connected: bool = False
    """That connection is open."""
    answers: bool = False
    """It knows heartbeats."""
    state: HostState = HostState.UNKNOWN
    answered: int | None = None
    """The newest heartbeat that this run has answered."""
    alone_since: int = 0
    """The tick in which the last connection with this run ended, whichever of the two had opened it."""
    gone: bool = False
    """This run is."""
    reported: RunId = _NONE
    """The run that was reported last as gone."""
    home: RunId = _NONE
    """The last run of which a connection came that had shown to be at home."""
    replaced: RunId = _NONE
    """A run in whose place another one is, though a connection of it is still open."""


class _Caller(NamedTuple):
    """A connection that another host has opened."""

    name: str
    run: RunId
    at_home: bool


def _nothing(*_: object) -> None:
    return None


class Liveness:
    """The lives of all hosts that this one deals with."""

    def __init__(
        self,
        changed: Callable[[HostStateChanged], None] = _nothing,
        gone: Callable[[str, str, int], None] = _nothing,
    ) -> None:
        """`changed` is called with each change of a tracked host's state.

        `gone` is called with the canonical address, the host id and the run of one whose process has ended: once a run, and after
        the last of its messages was delivered. Both must return soon and raise nothing.
        """
        self._changed, self._gone = changed, gone
        self.number = 0
        """Of the newest heartbeat: how many ticks there were."""
        self.silent = False
        """No heartbeats are sent, and none answered: this host is as good as dead. It counts no ticks then."""
        self.tracked: frozenset[str] = frozenset()
        """The canonical addresses of hosts that are sent heartbeats. Replaced, never changed."""
        self.members: frozenset[str] = frozenset()
        """Of these, those of members."""
        self._rounds: deque[int] = deque(maxlen=DEAD_TICKS + 1)
        """The newest heartbeats that were sent to those, too, that are no members."""
        self._watched: Counter[str] = Counter()
        self._hosts: dict[str, _Host] = {}
        """Those that are tracked or have a connection with this host, in either direction."""
        self._callers: dict[object, _Caller] = {}

    # ---- who is tracked

    def set_members(self, names: Iterable[str]) -> None:
        """Track the hosts at these canonical addresses, instead of those that were members before."""
        members = frozenset(names)
        missed = {
            host.name: self._missed(host)
            for host in self._hosts.values()
            if host.name in members - self.members
        }
        self.members = members
        for name, count in missed.items():
            if (host := self._hosts[name]).answered is not None:
                host.answered = self.number - 1 - count  # of all heartbeats, which it is sent from now on
        self._track()

    def watch(self, name: str) -> None:
        """Track the host at a canonical address until `unwatch` was called as often."""
        self._watched[name] += 1
        self._track()

    def unwatch(self, name: str) -> bool:
        """Undo one `watch`; return whether there was one."""
        if name not in self._watched:
            return False
        self._watched[name] -= 1
        self._watched += Counter()  # drops what counts zero
        self._track()
        return True

    def _track(self) -> None:
        before, self.tracked = self.tracked, self.members | self._watched.keys()
        for name in before - self.tracked:
            if (host := self._hosts.get(name)) is not None:
                host.state, host.answered = HostState.UNKNOWN, None
                self._forget(host)

    # ---- heartbeats

    def tick(self, due: frozenset[str] | None = None) -> int:
        """A tick has passed; return the number of the heartbeat that is to be sent to the hosts that are `due`.

        These are all that are tracked, by default, or the members alone.
        """
        self.number += 1
        due = self.tracked if due is None else due
        if due is not self.members:
            self._rounds.append(self.number)
        for name in due:
            host = self._hosts.get(name)
            if host is not None and host.answered is not None:
                self._judge(host)
        return self.number

    def answered(self, name: str, run: RunId, number: int) -> bool:
        """The host at `name` has answered a heartbeat, on a connection to this run; return whether that is news.

        Raises `FrameError` for one that was not sent yet.
        """
        if number > self.number:
            raise FrameError(f"heartbeat {number} is answered, and {self.number} was the last that was sent")
        host = self._hosts.get(name)
        if host is None or name not in self.tracked or host.gone or host.run != run:
            return False
        if host.answered is not None and number <= host.answered:
            return False
        host.answered = number
        if host.state is not HostState.ALIVE:
            self._judge(host)
        return True

    def _missed(self, host: _Host) -> int:
        """Return how many heartbeats in a row it has not answered. The newest one has only just left."""
        answered = host.answered or 0
        if host.name in self.members:
            return self.number - 1 - answered
        return max(0, sum(number > answered for number in self._rounds) - 1)

    def _judge(self, host: _Host) -> None:
        missed = self._missed(host)
        if missed < SUSPECT_TICKS:
            self._become(host, HostState.ALIVE, "it answers")
        elif missed < DEAD_TICKS:
            self._become(host, HostState.SUSPECT, f"it has not answered for {SUSPECT_TICKS} ticks")
        else:
            self._become(host, HostState.DEAD, f"it has not answered for {DEAD_TICKS} ticks")

    # ---- connections that this host opens

    def introduced(self, name: str, hello: Hello) -> None:
        """This host has opened a connection, and this is what the other one says there."""
        host, run = self._host(name), RunId.of(hello)
        host.connected, host.answers = True, ALIVE_FEATURE in hello.features
        if run != host.run:
            self._meet(host, run)
        elif host.gone:
            self._return(host)

    def _meet(self, host: _Host, run: RunId) -> None:
        if host.run != _NONE:
            # No evidence, if it is another host: the one before may live on at another address.
            self._become(host, HostState.DEAD, "at its address is another host, or run, now")
        host.run, host.gone, host.answered = run, False, None
        self._become(host, HostState.UNKNOWN, "it has introduced itself, and not answered yet")

    def lost(self, name: str) -> None:
        """The connection that this host had opened has ended."""
        host = self._hosts[name]
        host.connected = False
        if not self._calls(host, host.run):
            host.alone_since = self.number
        self._forget(host)

    def may_be_gone(self, name: str) -> bool:
        """Return whether a refusal would be evidence now that the run which was reached last at `name` is gone."""
        host = self._hosts.get(name)
        return (
            host is not None
            and name in self.tracked
            and host.run != _NONE
            and not (host.connected or host.gone or self._calls(host, host.run))
            and self.number - host.alone_since <= EVIDENCE_TICKS
        )

    def refused(self, name: str) -> None:
        """The kernel at each address of the host has refused a connection."""
        if self.may_be_gone(name):
            host = self._hosts[name]
            self._end(host, host.run, "its connections are lost, and nothing listens at its address")

    # ---- connections that other hosts open

    def opened(self, link: object, hello: Hello, *, at_home: bool) -> None:
        """Another host has opened a connection, and says this there. `at_home`: it has shown that it is at its address."""
        caller = _Caller(canonical(hello.address), RunId.of(hello), at_home)
        self._callers[link] = caller
        host = self._host(caller.name)
        if at_home:
            host.home = caller.run

    def ended(self, link: object) -> bool:
        """Such a connection has ended, and all that came was delivered or dropped.

        Return whether the host is to be dialed at once, since a refusal would be evidence now.
        """
        caller = self._callers.pop(link, None)
        if caller is None:
            return False
        host = self._hosts[caller.name]
        if caller.run == host.run and not self._calls(host, host.run):
            host.alone_since = self.number
        self._end_replaced(host)
        due = caller.run == host.run and self.may_be_gone(host.name)
        self._forget(host)
        return due

    def _calls(self, host: _Host, run: RunId) -> bool:
        """Return whether a connection from this run is open.

        Any process can say that it is this run, since hosts are told the runs of those that they reach. So where one of its
        connections has shown to be at home, no other counts.
        """
        return any(
            caller.name == host.name and caller.run == run and (caller.at_home or host.home != run)
            for caller in self._callers.values()
        )

    # ---- runs that end

    def replaced(self, name: str, host_id: str, start: tuple[int, int], links: Collection[object]) -> None:
        """The host has introduced itself at its address in another run than this, whose connections were given up."""
        run = RunId(host_id, *start)
        host = self._hosts.get(name)
        # Nothing that they bring is delivered any more.
        given_up = [link for link in links if self._callers.pop(link, None) is not None]
        if host is None:
            return
        # Others are known from before this host started: they concern no one.
        heard = bool(given_up) or run in {host.run, host.home}
        if heard and name in self.tracked:
            host.replaced = run
            self._end_replaced(host)
        self._forget(host)

    def _end_replaced(self, host: _Host) -> None:
        run = host.replaced
        if run != _NONE and not self._calls(host, run):
            host.replaced = _NONE
            self._end(host, run, "it has introduced itself in another run")

    def _end(self, host: _Host, run: RunId, why: str) -> None:
        if run == host.run:
            host.gone, host.answered = True, None
            self._become(host, HostState.DEAD, why)
        # Once only: where a proxy refuses again and again while the host lives, its shards are disturbed once a run.
        if host.reported != run:
            host.reported = run
            self._gone(host.name, run.host_id, run.starts)

    def has_gone(self, name: str) -> bool:
        """Return whether the run that was reached last at a canonical address is taken for gone."""
        host = self._hosts.get(name)
        return host is not None and host.gone

    def is_gone(self, hello: Hello) -> bool:
        """Return whether the run that introduces itself is taken for gone.

        What it sends is not to be delivered before it has answered a question. It may have been sent before it ended, and a leader's
        heartbeat would restore that leader.
        """
        host = self._hosts.get(canonical(hello.address))
        return host is not None and host.gone and host.run == RunId.of(hello)

    def returned(self, hello: Hello) -> None:
        """The run that introduced itself has answered a question since: where it was taken for gone, that was wrong."""
        if self.is_gone(hello):
            self._return(self._hosts[canonical(hello.address)])

    def _return(self, host: _Host) -> None:
        host.gone = False
        if host.answers:
            host.answered = self.number - 1
        state = HostState.ALIVE if host.answers else HostState.UNKNOWN
        self._become(host, state, "it was taken for gone, and has introduced itself in the same run")

    # ---- what is known

    def life(self, name: str) -> Life:
        """Return what is known of the host at a canonical address. From any thread."""
        host = self._hosts.get(name)
        if host is None:
            return Life(HostState.UNKNOWN, "", 0)
        return Life(host.state, host.run.host_id, host.run.starts)

    def states(self) -> Counter[HostState]:
        """Return how many of the tracked hosts are in which state. From any thread."""
        return Counter(self.life(name).state for name in self.tracked)

    def _become(self, host: _Host, state: HostState, why: str) -> None:
        if host.state is not state and host.name in self.tracked:
            host.state = state
            self._changed(HostStateChanged(host.name, host.run.host_id, host.run.starts, state, why))

    def _host(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(name)
        return host

    def _forget(self, host: _Host) -> None:
        used = host.connected or any(caller.name == host.name for caller in self._callers.values())
        if not used and host.name not in self.tracked:
            self._hosts.pop(host.name, None)
