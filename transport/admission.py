"""Who may come in: which of the connections that other hosts open to this one are kept. Plain data: no socket and no clock.

A connection is *pending* until its caller has introduced itself, and then, if there is a place for it, *admitted*.

Any process that reaches the port can open connections, without a word, as often as it likes. So a new one is always taken, and
if there are too many pending ones, the source that has most of them loses one: it is *evicted*. Of a source's connections that
is the one which is least far, and of those the oldest: a host introduces itself without delay. Sources at which members of the
shards of this host live lose none to others.

An admitted connection is kept until it ends. So a newcomer is admitted only if a place is free; else it is told so, and tries
again. Each member has a place of its own, for the host that introduces itself at the member's address. Which
address it says is its own choice: so one that has shown that it is there takes the place over from one that has not, and not
the other way round; and all others have their places by source, too. Connections for streams have places of their own: see
`stream_places`.
"""

from collections.abc import Callable, Collection
from enum import IntEnum
from functools import partial
from typing import Final

from drakkar.transport.hello import FullError
from drakkar.transport.options import Counters, Options
from drakkar.transport.stream_places import StreamPlaces

__all__ = ["Admission", "AdmittedConnection", "PendingConnection", "Stage"]

_MIN_SHARE_OF_OTHERS: Final = 1 / 8
"""Of all places, so much is for hosts that are no members, however many members there are: some join."""


class Stage(IntEnum):
    """How far a connection is that has not introduced itself yet."""

    SILENT = 0
    """Nothing has come from it."""
    WAITING = 1
    """It has said something, and waits for its turn."""
    INTRODUCING = 2
    """A task reads its introduction."""
    SECURED = 3
    """It has shown a certificate that is trusted."""


_HAVE_TASKS: Final = (Stage.INTRODUCING, Stage.SECURED)


class PendingConnection:
    """A connection whose caller has not introduced itself yet."""

    __slots__ = ("close", "evicted", "ip", "since", "source", "spend", "stage")

    def __init__(self, ip: str, source: str, since: float, close: Callable[[], None]) -> None:
        self.ip = ip
        """Where it comes from."""
        self.source = source
        """What it is counted under: the IP address, or the network that it is in."""
        self.since = since
        """When it was opened."""
        self.close = close
        """Called when it is evicted."""
        self.evicted: FullError | None = None
        """Why it had to give way to another one; None where it did not."""
        self.stage = Stage.SILENT
        self.spend: Callable[[float], None]
        """Called with the seconds of this thread that its handshake took, once it has a task."""


class AdmittedConnection:
    """A connection of a host that has introduced itself, and has a place."""

    __slots__ = ("address", "at_home", "leave", "source")

    def __init__(self, address: str, source: str, *, at_home: bool) -> None:
        self.address, self.source = address, source
        self.at_home = at_home
        """It has shown that it is at its address."""
        self.leave: Callable[[], None]
        """Free the place, once."""


class _Source:
    """The pending connections of one source, by stage, those that reached the stage first in front."""

    __slots__ = ("_stages",)

    def __init__(self) -> None:
        self._stages: tuple[dict[PendingConnection, None], ...] = tuple({} for _ in Stage)

    def __len__(self) -> int:
        return sum(map(len, self._stages))

    def at_work(self) -> int:
        """Return how many have a task."""
        return sum(len(self._stages[stage]) for stage in _HAVE_TASKS)

    def put(self, pending: PendingConnection) -> None:
        self._stages[pending.stage][pending] = None

    def drop(self, pending: PendingConnection) -> bool:
        """Take one out; return False where it is none of these."""
        stage = self._stages[pending.stage]
        if pending not in stage:
            return False
        del stage[pending]
        return True

    def first(self, stages: Collection[Stage] = tuple(Stage)) -> PendingConnection:
        """Return the one to evict: of the earliest stage, the oldest. There is one."""
        return next(pending for stage in stages for pending in self._stages[stage])


class Admission:
    """The connections that other hosts have opened to one host."""

    def __init__(self, options: Options, counters: Counters) -> None:
        self._options, self._counters = options, counters
        self._sources: dict[str, _Source] = {}
        self._pending = 0
        self._admitted: dict[str, list[AdmittedConnection]] = {}
        """By canonical address: a host that comes back is here twice, until its old connection has ended."""
        self.streams = StreamPlaces(options.max_incoming_streams)
        self._members: frozenset[str] = frozenset()
        self._member_sources: frozenset[str] = frozenset()

    def reserve(self, addresses: frozenset[str], sources: frozenset[str]) -> None:
        """Keep places for members: for these canonical addresses, and for connections from these sources."""
        self._members, self._member_sources = addresses, sources

    # ---- until the introduction

    def __len__(self) -> int:
        """How many connections are pending."""
        return self._pending

    def has_member(self, source: str) -> bool:
        """Return whether a member lives at a source."""
        return source in self._member_sources

    def enter(self, ip: str, source: str, now: float, close: Callable[[], None]) -> PendingConnection:
        """Take a new connection. Another one may be evicted for it: its `close` is called."""
        if self._count(source) >= self._options.max_introducing_per_source:
            self._evict(self._sources[source].first())
        elif self._pending >= self._options.max_introducing:
            self._evict(self._largest(len).first())
        pending = PendingConnection(ip, source, now, close)
        if source not in self._sources:
            self._sources[source] = _Source()
        self._sources[source].put(pending)
        self._pending += 1
        return pending

    def begin(
        self, pending: PendingConnection, close: Callable[[], None], spend: Callable[[float], None]
    ) -> None:
        """Note that a task begins to read the introduction; from now on `close` ends that. `spend`: see `PendingConnection`.

        Half of the pending connections have tasks at most: the other half is for those that are still to be looked at.
        """
        options = self._options
        if self._sources[pending.source].at_work() >= max(1, options.max_introducing_per_source / 2):
            self._evict(self._sources[pending.source].first(_HAVE_TASKS))
        elif self._at_work() >= max(1, options.max_introducing / 2):
            self._evict(self._largest(_Source.at_work).first(_HAVE_TASKS))
        pending.close, pending.spend = close, spend
        self.advance(pending, Stage.INTRODUCING)

    def advance(self, pending: PendingConnection, stage: Stage) -> None:
        """Note that a connection is further. Nothing happens if it was evicted, or has left."""
        source = self._sources.get(pending.source)
        if source is not None and source.drop(pending):
            pending.stage = stage
            source.put(pending)

    def leave(self, pending: PendingConnection) -> None:
        """Forget a connection that has ended, or has introduced itself. Nothing happens if it was evicted, or has left."""
        source = self._sources.get(pending.source)
        if source is not None and source.drop(pending):
            self._pending -= 1
            if not len(source):
                del self._sources[pending.source]

    def count_late(self, seconds: float, missed: str = "no introduction") -> FullError:
        """Count a connection that did not introduce itself in time. Return what it is told: what it `missed`, and in which time."""
        self._counters.late += 1
        return FullError(f"{missed} within {seconds:g} s", "late")

    def _count(self, source: str) -> int:
        found = self._sources.get(source)
        return 0 if found is None else len(found)

    def _at_work(self) -> int:
        return sum(source.at_work() for source in self._sources.values())

    def _largest(self, size: Callable[[_Source], int]) -> _Source:
        """Return the source that has most of them, by some count. Members' sources count where there are no others."""
        others = [
            source
            for name, source in self._sources.items()
            if name not in self._member_sources and size(source)
        ]
        return max(others or self._sources.values(), key=size)

    def _evict(self, pending: PendingConnection) -> None:
        pending.evicted = FullError(
            f"{self._pending} connections to this host have not introduced themselves, {self._count(pending.source)} of them "
            f"from {pending.source}, and a newer one has got the place of this one",
            "evicted",
        )
        self._counters.evicted += 1
        self.leave(pending)
        pending.close()

    # ---- after the introduction

    def admit(self, address: str, source: str, *, at_home: bool, stream: bool = False) -> AdmittedConnection:
        """Give a place to the host that has introduced itself at a canonical address. Raises `FullError`.

        `at_home`: it has shown that it is there. A host that is here already comes back in place of its old connection, but
        one that has not shown this does not take the place of one that has. `stream`: the connection is for a stream.
        """
        admitted = AdmittedConnection(address, source, at_home=at_home)
        try:
            if stream:
                admitted.leave = self.streams.take(address, source, member=self.is_member(admitted))
            else:
                self._check_room(admitted)
                self._admitted.setdefault(address, []).append(admitted)
                admitted.leave = partial(self._remove, admitted)
        except FullError:
            self._counters.full += 1
            raise
        return admitted

    def is_member(self, admitted: AdmittedConnection) -> bool:
        """Return whether it is of a member of a shard of this host, and has shown it."""
        return admitted.at_home and admitted.address in self._members

    def _remove(self, admitted: AdmittedConnection) -> None:
        here = self._admitted[admitted.address]
        here.remove(admitted)
        if not here:
            del self._admitted[admitted.address]

    def _check_room(self, admitted: AdmittedConnection) -> None:
        """Raise `FullError` where there is no place."""
        address = admitted.address
        here = self._admitted.get(address, [])
        if not here and address not in self._members:
            self._check_room_for_others(admitted.source)
        if not admitted.at_home and any(other.at_home for other in here):
            raise FullError(
                f"a host is connected from where {address} leads to, and does not lose its place to one from elsewhere"
            )

    def _check_room_for_others(self, source: str) -> None:
        """Raise `FullError` where a host that is no member finds no place."""
        options = self._options
        others = [here[-1] for address, here in self._admitted.items() if address not in self._members]
        room = max(options.max_incoming - len(self._members), options.max_incoming * _MIN_SHARE_OF_OTHERS)
        if len(others) >= room:
            raise FullError(
                f"this host has {len(others)} connections of hosts that are no members of its shards, and takes no more"
            )
        from_there = sum(other.source == source for other in others)
        if from_there >= options.max_incoming_per_source:
            raise FullError(
                f"this host has {from_there} connections from {source} of hosts that are no members of its shards, and "
                "takes no more"
            )
