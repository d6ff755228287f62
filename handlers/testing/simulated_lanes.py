"""Lanes in simulated time: what waits at a host for a peer, and the connection by which it leaves.

    a host ─┬─ bulk ──► a lane of some bytes ── one message after the other ──► the network, in order
            └─ control ────────────────────────────────────────────────────────────▲

A lane is full, drains late, hands messages back as if another shard had taken the room meanwhile, and loses
what waits when its connection is lost. The sender is told of a loss once, and makes another connection when
it is asked for room or has something to send. All this is drawn from random numbers of its own, so that a
plan without lanes is the same with this module and without.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.lanes import UNLIMITED, left, not_sent
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.testing.invariants import Invariants
from drakkar.handlers.testing.plan import TICK, Plan, Weather

__all__ = ["Endpoint", "LanesOfHost", "Network", "SimulatedLanes", "is_bulk", "size_of"]

M = MessageType

_DIAL_TIME: Final = 4
"""The longest time until a connection is made, in units of time."""
_DIAL_TIMEOUT: Final = 2 * TICK
"""The longest time until it is known that none can be made, in units of time."""


class Endpoint(Protocol):
    """A host, as its lanes see it."""

    id: int
    raft: Raft
    up: bool

    def unsent(self) -> Iterable[Message]:
        """Messages that the core has handed out and that wait for a write."""
        ...


class Network(Protocol):
    """What lanes use of the simulation."""

    now: int
    plan: Plan
    weather: Weather
    invariants: Invariants

    def later(self, host: Any, delay: int, function: Callable[..., None], *args: Any) -> None:
        """See `SimulatedShard.later`."""

    def is_reachable(self, sender: int, receiver: int) -> bool:
        """Whether a connection can be made now."""
        ...

    def transmit(self, host: Any, message: Message) -> None:
        """Let the network carry a message."""

    def lose_in_transit(self, sender: int, receiver: int) -> None:
        """Lose all that the network carries from one replica to another now."""

    def report(self, replica: int, report: Message) -> None:
        """Let a host's transport tell its replica something."""

    def note(self, mark: str, what: Any) -> None:
        """Write a line into the trace."""


def is_bulk(message: Message) -> bool:
    """Whether a message waits in a lane. Snapshots have a connection of their own, but for those of witnesses."""
    snapshot = message.snapshot
    return message.type.traits.bulk and (snapshot is None or snapshot.witness)


def size_of(message: Message) -> int:
    """How many bytes of a lane a message takes: those of its entries."""
    return Entries.of(message.entries).size


@dataclass(slots=True)
class _Lane:
    """What waits at one host for one peer."""

    host: Any
    to: int
    open: bool = False
    """Whether there is a connection."""
    dialing: bool = False
    losses: int = 0
    """How many connections were lost: what was due on an older one does not happen."""
    waiting: deque[Message] = field(default_factory=deque)
    size: int = 0
    """The bytes of all that waits."""
    leaving: bool = False
    """Whether the oldest message is on its way out."""
    asked: bool = False
    """The core was told that there is no room, so it must be told when there is."""
    telling: bool = False
    clogged_until: int = 0
    """Nothing leaves before that moment."""
    handed_back_at: int = -1
    """When a message was handed back the last time: those behind it are handed back too."""


class SimulatedLanes:
    """All lanes of one shard. Without lanes in the plan, none of them holds anything, and all messages pass."""

    def __init__(self, network: Network) -> None:
        self._network = network
        plan = network.plan
        self.capacity = plan.weather.lanes
        """The bytes that a lane holds; 0: there are no lanes. A single message may be larger."""
        self._random = Random(f"lanes of {plan.seed}")
        self._lanes: dict[tuple[int, int], _Lane] = {}

    def _lane(self, host: Any, to: int) -> _Lane:
        key = (host.id, to)
        if key not in self._lanes:
            self._lanes[key] = _Lane(host, to)
        return self._lanes[key]

    # -- for cores ------------------------------------------------------------------------------------------------

    def room(self, host: Any, to: int, least: int = 1) -> int:
        """See `Lanes.room`."""
        if not self.capacity:
            return UNLIMITED
        lane = self._lane(host, to)
        if not lane.open:
            lane.asked = True
            self._dial(lane)
            return 0
        if not lane.waiting:
            return UNLIMITED
        room = max(self.capacity - lane.size, 0)
        if room < least:
            self._count("a lane was full for its core")
            lane.asked = True
            return 0
        return room

    def waiting(self, host: Any, to: int) -> int:
        """See `Lanes.waiting`."""
        return len(self._lane(host, to).waiting) if self.capacity else 0

    # -- what waits -----------------------------------------------------------------------------------------------

    def take(self, host: Any, message: Message) -> bool:
        """Let a message of a host wait, or hand it back. False: it does not wait in any lane, but leaves at once."""
        if not self.capacity:
            return False
        lane = self._lane(host, message.to)
        if not lane.open:
            self._dial(lane)
        if not is_bulk(message):
            if lane.waiting and lane.open:
                self._count("control overtook bulk")
            return False
        if not self._fits(lane, message):
            self._hand_back(lane, message)
            return True
        lane.waiting.append(message)
        lane.size += size_of(message)
        self._begin_leaving(lane)
        return True

    def _fits(self, lane: _Lane, message: Message) -> bool:
        network = self._network
        if not lane.open or lane.handed_back_at == network.now:
            return False
        if self._random.random() < network.weather.hand_back:
            return False  # another shard has taken the room
        fits = not lane.waiting or lane.size + max(size_of(message), 1) <= self.capacity
        if not fits and message.type is M.REPLICATE:
            network.invariants.lanes.overflowed(message, lane.size, self.capacity)
        return fits

    def _hand_back(self, lane: _Lane, message: Message) -> None:
        self._count(f"a lane handed back a {message.type.name}")
        self._network.note("<", message)
        self._network.invariants.lanes.left(message)  # it waits no more
        lane.handed_back_at = self._network.now
        lane.asked = True
        self._network.report(lane.host.id, not_sent(message))
        self._tell_if_drained(lane)

    def _begin_leaving(self, lane: _Lane) -> None:
        if lane.waiting and lane.open and not lane.leaving:
            lane.leaving = True
            network = self._network
            delay = max(self._random.randint(0, network.weather.lane_time), lane.clogged_until - network.now)
            network.later(lane.host, delay, self._leave, lane, lane.losses)

    def _leave(self, lane: _Lane, losses: int) -> None:
        if losses != lane.losses:
            return
        lane.leaving = False
        if lane.clogged_until <= self._network.now:
            message = lane.waiting.popleft()
            lane.size -= size_of(message)
            self._network.invariants.lanes.left(message)
            self._network.transmit(lane.host, message)
        if losses == lane.losses:  # the network may have lost the connection with it
            self._begin_leaving(lane)
            self._tell_if_drained(lane)

    def _tell_if_drained(self, lane: _Lane) -> None:
        if lane.asked and lane.open and not lane.telling and 2 * lane.size <= self.capacity:
            lane.telling = True
            delay = 1 + self._random.randint(0, self._network.weather.lane_time)
            self._network.later(lane.host, delay, self._tell_drained, lane, lane.losses)

    def _tell_drained(self, lane: _Lane, losses: int) -> None:
        if losses != lane.losses:
            return
        lane.telling = lane.asked = False
        self._count("a lane told that it has drained")
        self._network.report(lane.host.id, Message(M.LANE_DRAINED, sender=lane.to))

    # -- connections ------------------------------------------------------------------------------------------------

    def _dial(self, lane: _Lane) -> None:
        if not lane.dialing:
            lane.dialing = True
            self._network.later(lane.host, self._random.randint(1, _DIAL_TIME), self._connect, lane)

    def _connect(self, lane: _Lane) -> None:
        if self._network.is_reachable(lane.host.id, lane.to):
            lane.open, lane.dialing = True, False
            self._tell_if_drained(lane)
        else:
            delay = self._random.randint(1, _DIAL_TIMEOUT)
            self._network.later(lane.host, delay, self._fail_to_connect, lane)

    def _fail_to_connect(self, lane: _Lane) -> None:
        lane.dialing = lane.asked = False
        self._count("a connection could not be made")
        self._network.report(lane.host.id, Message(M.UNREACHABLE, sender=lane.to))

    def lose_connection(self, sender: int, receiver: int) -> None:
        """Lose the connection from one replica to another, if there is one, with all that waits for it."""
        lane = self._lanes.get((sender, receiver))
        if lane is None or not lane.open:
            return
        network = self._network
        network.note("~", f"{sender}->{receiver}")
        self._count("a connection was lost")
        self._count("a connection was lost while messages waited", bool(lane.waiting))
        self._close(lane)
        if self._random.random() < 0.5:
            network.lose_in_transit(sender, receiver)
        network.report(sender, Message(M.UNREACHABLE, sender=receiver))

    def _close(self, lane: _Lane) -> None:
        lost, lane.waiting = lane.waiting, deque()
        lane.losses += 1
        lane.size = 0
        lane.open = lane.leaving = lane.asked = lane.telling = False
        for message in lost:
            self._network.invariants.lanes.left(message)
            if message.type is M.PROPOSE:
                self._count("a lost connection handed back a PROPOSE")
                self._network.report(lane.host.id, not_sent(message))
            else:
                self._network.note("x", message)
                self._network.invariants.lanes.lost(message)

    def stopped(self, host: Endpoint) -> None:
        """A host stops: what waits there is gone, and some peers notice at once that their connection is lost."""
        for lane in self._of(host):
            lane.waiting.clear()
            del self._lanes[lane.host.id, lane.to]
        for lane in self._to(host):
            if self._random.random() < 0.5:
                self.lose_connection(lane.host.id, host.id)

    def started(self, host: Endpoint) -> None:
        """A host starts: no connection to its last life is left."""
        for lane in self._to(host):
            self.lose_connection(lane.host.id, host.id)

    def _of(self, host: Endpoint) -> Iterator[_Lane]:
        return iter([lane for lane in self._lanes.values() if lane.host.id == host.id])

    def _to(self, host: Endpoint) -> Iterator[_Lane]:
        return iter([lane for lane in self._lanes.values() if lane.to == host.id])

    def clog(self, sender: int, receiver: int, time: int) -> None:
        """Let nothing leave the lane from one replica to another for some time, in units of time."""
        host = self._lanes.get((sender, receiver))
        if host is not None:
            host.clogged_until = max(host.clogged_until, self._network.now + time)

    def repair(self) -> None:
        """Let all lanes drain."""
        for lane in self._lanes.values():
            lane.clogged_until = 0

    def _count(self, what: str, times: int = 1) -> None:
        self._network.invariants.happened[what] += times


class LanesOfHost:
    """The lanes of one host: a `Lanes` for its core. What the host holds until a write is done counts as waiting."""

    def __init__(self, lanes: SimulatedLanes, host: Endpoint) -> None:
        self._lanes, self._host = lanes, host

    def room(self, replica: int, least: int = 1) -> int:
        """See `Lanes.room`."""
        unsent = sum(size_of(message) or 1 for message in self._unsent(replica))
        room = self._lanes.room(self._host, replica, least + unsent)
        return left(room, unsent, self._host.raft.config.max_message_bytes)

    def waiting(self, replica: int) -> int:
        """See `Lanes.waiting`."""
        return self._lanes.waiting(self._host, replica) + len(self._unsent(replica))

    def _unsent(self, replica: int) -> list[Message]:
        return [message for message in self._host.unsent() if message.to == replica and is_bulk(message)]
