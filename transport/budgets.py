"""What the connections of other hosts may cost this one: loop time for what is of no use, memory for what is not complete.

*Loop time.* A message for a shard that is not here, one of an older term, one that its sender may not say, a PING more than
needed: each costs this host about as much as a useful one. So the time that a connection takes with them is charged to its
`Account`. Where that is overdrawn, the connection is not read until it is in credit again, and TCP slows its sender. Useful messages
are never charged. They even earn credit, so a busy peer is not held up by a few late messages.

Members of this host's shards have an account each. All other hosts also share one: there may be any number of them.

*Messages for one shard.* Useful ones cost loop time too, and a member of a shard may send as many as it likes. So they are counted, by
shard. The replicas of the busiest shard bring each other some fifty in a `PACE_S`, since one message carries all that a
turn has for a peer. A connection that brings many times more is not read until the `PACE_S` is over, and other shards go on.

*Calls of actors.* One host may ask so much that it takes all of the loop, and where nobody else needs that it may. While other hosts
are served too, the time that its calls take is put down. Where they take more than `CALLS_SHARE`, it gets no credit for more calls
until they are within it again: see `calls`. Those that are of no use have a budget of their own, as large as that for useless messages.
The connection is read on, so a vote, or a question whether this host is alive, does not wait for that.

*Memory.* A frame of more than `WHOLE_BYTES`, and a message in parts, take their announced size out of a `Room` before the
bytes are read. Where there is none, the connection is not read until there is. What is in the room must make progress. A quarter of
a megabyte a connection needs no room, and the number of connections is bounded.

Plain data, with a clock that tests turn by hand. For the thread of the loop only.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import trio
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.quiesce import is_idle

__all__ = [
    "AFTERWARDS",
    "CALLS_SAVED_S",
    "CALLS_SHARE",
    "CALL_S",
    "FRUITFUL_BYTES",
    "FRUITLESS_S",
    "OTHERS_SHARE",
    "OWN_SHARE",
    "PACE_MESSAGES",
    "PACE_S",
    "SERVED",
    "TRAFFIC_S",
    "WHOLE_BYTES",
    "Account",
    "CallTime",
    "LoopTime",
    "MemoryReservation",
    "Pace",
    "Room",
    "Rooms",
    "Work",
]

Clock = Callable[[], float]

OWN_SHARE: Final = 0.05
"""The share of the loop's time that the useless messages of one connection may take for long."""
OTHERS_SHARE: Final = 0.10
"""The same, for all connections together of hosts that are no members of this host's shards."""
SAVED_S: Final = 0.5
"""Seconds of loop time that an account holds at most: some 20,000 messages for shards that are about to start."""
OTHERS_SAVED_S: Final = 0.03
"""The same, of the account that all share which are no members: what a node has in its inbox before the first of it is found
useless holds up all others."""
LATE_S: Final = 30e-6
"""What a useless message costs at least, in seconds, where a node found it useless after the turn that brought it: the
node's own work, its answer, and the sending of that."""
LONGEST_TURN_S: Final = 1.0
"""What a turn is charged with at most, in seconds. None takes so long but where the process was stopped, or had no core."""
FRUITLESS_S: Final = 100e-6
"""What it costs to read a byte that completes nothing, and to pause after that."""
FRUITFUL_BYTES: Final = 2048
"""A read of so many costs no more than its bytes. One of fewer that completes nothing is charged for those that are missing: a network
that delivers packet by packet, of some 1,400 bytes, stays within its share up to a megabyte and a half a second."""
PACE_S: Final = 0.05
"""Seconds over which the messages for each shard are counted."""
PACE_MESSAGES: Final = 300
"""Messages for one shard that a connection may bring in that time, by their weight (`Traits.weight`), before it is not read for
the rest of it."""
CALLS_SHARE: Final = 0.3
"""The share of the loop's time that the calls of one host may take for long while other hosts are served too."""
CALLS_SAVED_S: Final = 0.02
"""Seconds of it that are saved up at most."""
CALL_S: Final = 30e-6
"""What comes after a call was handed over costs so many seconds at least: the turn of its actor, and its answer."""
AFTERWARDS: Final = 0.5
"""As a part of the time that it took to hand it over, where that is more: an answer like it takes long to encode."""
LONGEST_CALLS_S: Final = 0.1
"""What the calls of one frame are charged with at most, in seconds. They take longer only where the process was stopped, or had
no core."""
TRAFFIC_S: Final = 0.25
"""Seconds over which the messages and calls of all hosts are counted."""
SERVED: Final = 20
"""Messages and calls of other hosts in one to two `TRAFFIC_S`, from which on they are served too. So few come even where one host
holds the loop up for a tenth of a second each time."""
MAX_ACCOUNTS: Final = 1000
"""Hosts whose accounts are remembered; of more, the one that connected longest ago has a new one."""

WHOLE_BYTES: Final = 256 << 10
"""Frames of so many bytes need no room. A host writes no larger ones: 128 KiB of messages and one more, or one part, of 128 KiB."""
MEMBERS_PART: Final = 7 / 8
"""Of the room; the rest is for hosts that are no members."""
PROGRESS_BYTES: Final = 64 << 10
"""What a message in the room must grow by in each `Rooms.timeout`: a part of 128 KiB may have come and be incomplete."""
WANTED_BYTES_PER_SECOND: Final = 1 << 20
"""What a message in the room must come with, on the average, where others wait for the room."""


# ---- loop time


class LoopTime:
    """Seconds of loop time: a share of each second that passes, of which some are saved up. Below zero: overdrawn."""

    __slots__ = ("_at", "_credit", "_saved", "_share")

    def __init__(self, share: float, saved: float, now: float) -> None:
        self._share, self._saved = share, saved
        self._credit, self._at = saved, now

    def spend(self, seconds: float, now: float) -> None:
        """Take off `seconds`, or add them where they are below zero."""
        credit = min(self._credit + (now - self._at) * self._share, self._saved)
        self._credit, self._at = min(credit - seconds, self._saved), now

    def wait(self, now: float) -> float:
        """Return in how many seconds it is in credit again; 0.0 where it is."""
        return max(0.0, -self._credit / self._share - (now - self._at))

    def has(self, seconds: float, now: float) -> bool:
        """Return whether so many are saved up."""
        return min(self._credit + (now - self._at) * self._share, self._saved) >= seconds


class Traffic:
    """How many messages and calls came in this `TRAFFIC_S` and the one before.

    The times begin alike for one host and for all, so that the counts can be subtracted.
    """

    __slots__ = ("_before", "_count", "_number")

    def __init__(self) -> None:
        self._count = self._before = self._number = 0

    def add(self, count: int, now: float) -> None:
        """So many came."""
        self._turn_over(now)
        self._count += count

    def total(self, now: float) -> int:
        """Return how many."""
        self._turn_over(now)
        return self._count + self._before

    def _turn_over(self, now: float) -> None:
        number = int(now / TRAFFIC_S)
        if number > self._number:  # what comes late was read before what came first
            self._before = self._count if number == self._number + 1 else 0
            self._count, self._number = 0, number


class CallTime:
    """The time that the calls of one host take: all of them while other hosts are served too, and those that are of no use."""

    __slots__ = ("_all", "_own", "_time", "_until", "_useless")

    def __init__(self, all_: Traffic, now: float) -> None:
        """`all_`: of all hosts."""
        self._all, self._own = all_, Traffic()
        self._time = LoopTime(CALLS_SHARE, CALLS_SAVED_S, now)
        self._useless = LoopTime(OWN_SHARE, SAVED_S, now)
        self._until = 0.0
        """When useless ones may come again."""

    def served(self, count: int, now: float) -> None:
        """So many messages or calls came of the host."""
        self._all.add(count, now)
        self._own.add(count, now)

    def spend(self, count: int, seconds: float, now: float) -> None:
        """So many calls came, and took so many seconds to be handed over."""
        self.served(count, now)
        if self._all.total(now) - self._own.total(now) >= SERVED:
            self._time.spend(_cost(count, seconds), now)

    def spend_useless(self, count: int, seconds: float, now: float, others: LoopTime | None) -> None:
        """So many of them were of no use, and took so many of the seconds. `others`: charged with them too."""
        cost = _cost(count, seconds)
        budgets = (self._useless,) if others is None else (self._useless, others)
        for budget in budgets:
            budget.spend(cost, now)
        self._until = now + max(budget.wait(now) for budget in budgets)

    def wait(self, now: float) -> float:
        """Return for how many seconds to take no more."""
        return max(self._time.wait(now), self._until - now)


def _cost(count: int, seconds: float) -> float:
    """Return what so many calls cost that took so many seconds to be handed over."""
    return min(seconds + max(seconds * AFTERWARDS, count * CALL_S), LONGEST_CALLS_S)


class Pace:
    """How many messages of one host came for each shard in this `PACE_S`."""

    __slots__ = ("_counts", "_exceeded", "_until")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._until = 0.0
        self._exceeded = False

    def count(self, messages: Sequence[Message], now: float) -> None:
        """Count what came."""
        counts = self._counts
        if now >= self._until:
            counts.clear()
            self._until = now + PACE_S
            self._exceeded = False
        for message in messages:
            count = counts[message.shard] = counts.get(message.shard, 0) + message.type.traits.weight
            if count > PACE_MESSAGES:
                self._exceeded = True

    def wait(self, now: float) -> float:
        """Return for how many seconds not to read on."""
        return max(0.0, self._until - now) if self._exceeded else 0.0

    def forget_few(self) -> None:
        """The connection has ended: keep only what the next one of the host could add to, to be too many."""
        self._counts = {shard: count for shard, count in self._counts.items() if count > PACE_MESSAGES // 8}


class _Own(NamedTuple):
    """What is remembered of one host."""

    time: LoopTime
    pace: Pace
    calls: CallTime


class _Others(NamedTuple):
    """What all have together that are no members."""

    time: LoopTime
    calls: LoopTime


class Work:
    """The accounts of all connections."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self._others = _Others(*(LoopTime(OTHERS_SHARE, OTHERS_SAVED_S, clock()) for _ in range(2)))
        self._traffic = Traffic()
        self._own: dict[str, _Own] = {}
        """By address. A host that connects anew has its old account."""

    def account(self, address: str, is_member: Callable[[], bool]) -> "Account":
        """Return an account for a connection of the host at `address`."""
        own = self._own.pop(address, None)
        if own is None:
            now = self.clock()
            own = _Own(LoopTime(OWN_SHARE, SAVED_S, now), Pace(), CallTime(self._traffic, now))
        self._own[address] = own
        if len(self._own) > MAX_ACCOUNTS:
            del self._own[next(iter(self._own))]
        return Account(own, self._others, is_member, self.clock)


class Account:
    """The loop time that one connection takes, turn by turn, and how much of it was of no use."""

    __slots__ = (
        "_began",
        "_calls",
        "_carried",
        "_clock",
        "_is_member",
        "_late",
        "_mean",
        "_others",
        "_others_calls",
        "_own",
        "_pace",
        "_running",
        "_units",
        "useless",
        "useless_calls",
    )

    def __init__(self, own: _Own, others: _Others, is_member: Callable[[], bool], clock: Clock) -> None:
        self._own, self._pace, self._calls = own
        self._others, self._others_calls = others
        self._is_member, self._clock = is_member, clock
        self.useless = 0
        """Messages and frames found useless that are not charged yet."""
        self.useless_calls = 0
        """The same of calls."""
        self._late = 0
        self._began = 0.0
        self._running = False
        """Its turn has begun and is not over."""
        self._mean = 0.0
        """Seconds that a message or frame of the last turn took."""
        self._carried = 0.0
        self._units = 0
        """Of turns that brought parts of a message: they are charged when it is complete."""

    def charge(self, count: int) -> None:
        """So many messages of this connection turned out to be of no use."""
        self.useless += count

    def count(self, messages: Sequence[Message]) -> None:
        """The turn brought these messages, of use or not."""
        self._pace.count(messages, self._began)
        self._calls.served(sum(not is_idle(message) for message in messages), self._began)

    def called(self, count: int, seconds: float) -> None:
        """So many calls came, of use or not, and took so many seconds of the turn to be handed over."""
        now = self._clock()
        self._calls.spend(count, seconds, now)
        useless, self.useless_calls = self.useless_calls, 0
        if useless:
            others = None if self._is_member() else self._others_calls
            self._calls.spend_useless(useless, seconds * min(useless / count, 1.0), now, others)
        # The rest of the turn neither pays for them nor earns by them.
        self._began += seconds

    def calls_wait(self) -> float:
        """Return for how many seconds to give no credit for more calls: they took too long."""
        return self._calls.wait(self._clock())

    def rest(self) -> float:
        """Return for how many seconds not to read, as too many messages came for one shard."""
        return self._pace.wait(self._clock())

    def begin(self, at: float | None = None) -> float:
        """A turn of the connection begins, or began at that time. Return the time."""
        self._late += self.useless
        self.useless = 0
        self._began = self._clock() if at is None else at
        self._running = True
        return self._began

    def end(self, units: int, *, incomplete: bool = False) -> float:
        """The turn is over, and brought so many messages and frames, but calls. Return for how many seconds not to read on.

        `incomplete`: it brought only a part of a large one, which counts when it is complete. A turn that brought nothing earns
        nothing.
        """
        now = self._clock()
        self._running = False
        self._carried += min(now - self._began, LONGEST_TURN_S)
        self._units += units
        if incomplete:
            return 0.0
        units = self._units
        seconds = self._carried if units else 0.0
        self._carried, self._units = 0.0, 0
        if self.useless or self._late:
            return self._settle(seconds, units, now)
        self._own.spend(-seconds, now)
        return 0.0

    def _settle(self, seconds: float, units: int, now: float) -> float:
        useless, self.useless = self.useless, 0
        # A node may find more than came in this turn.
        now_found = min(useless, units)
        late, self._late = self._late + useless - now_found, 0
        mean = seconds / units if units else self._mean
        cost = now_found * mean
        self._own.spend(cost - (seconds - cost), now)
        cost += late * max(mean, LATE_S)
        self._own.spend(late * max(mean, LATE_S), now)
        self._mean = mean
        if not self._is_member():
            self._others.spend(cost, now)
        return self.wait()

    def wait(self) -> float:
        """Return for how many seconds not to read: until it is in credit again."""
        now = self._clock()
        own = self._own.wait(now)
        return own if self._is_member() else max(own, self._others.wait(now))

    def fruitless(self, size: int) -> float:
        """A read of so many bytes has completed nothing. Return for how many seconds not to read on, if that is worth it."""
        if size >= FRUITFUL_BYTES:
            return 0.0
        now = self._clock()
        cost = FRUITLESS_S * (1 - size / FRUITFUL_BYTES)
        self._own.spend(cost, now)
        if not self._is_member():
            self._others.spend(cost, now)
        wait = self.wait()
        return wait if wait >= FRUITLESS_S / OWN_SHARE else 0.0

    def abandon(self) -> None:
        """The connection has ended. What it has brought since the last turn that is charged was of no use.

        That is some of a large message, or a malformed frame.
        """
        self._pace.forget_few()
        if not self._running and not self._carried:
            return
        units = max(self._units, 1)
        self.begin(self._began if self._running else None)
        self.charge(units)
        self.end(units - self._units)


# ---- memory


class Room:
    """So many bytes, or one reservation alone that has more. Who came first is served first."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.taken = 0
        self._queue: deque[_Waiting] = deque()

    @property
    def wanted(self) -> bool:
        """Whether some connection waits for it."""
        return bool(self._queue)

    def fits(self, size: int) -> bool:
        """Whether so many bytes are free."""
        return not self.taken or self.taken + size <= self._limit

    async def take(self, size: int) -> None:
        """Take so many bytes, once they are free."""
        if not self._queue and self.fits(size):
            self.taken += size
            return
        waiting = _Waiting(size)
        self._queue.append(waiting)
        try:
            await waiting.served.wait()
        except BaseException:
            if waiting.served.is_set():
                self.taken -= size
            else:
                self._queue.remove(waiting)
            self._serve()
            raise

    def give_back(self, size: int) -> None:
        """Let others have so many bytes."""
        self.taken -= size
        self._serve()

    def _serve(self) -> None:
        while self._queue and self.fits(self._queue[0].size):
            waiting = self._queue.popleft()
            self.taken += waiting.size
            waiting.served.set()


class _Waiting:
    """One that waits for room."""

    __slots__ = ("served", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.served = trio.Event()


class Rooms:
    """The room of this host's members, and that of all other hosts."""

    def __init__(self, limit: float, timeout: float, clock: Clock = time.perf_counter) -> None:
        """`limit`: bytes of both together. `timeout`: seconds to wait for room, and for progress."""
        self.members, self.others = Room(limit * MEMBERS_PART), Room(limit * (1 - MEMBERS_PART))
        self.timeout, self.clock = timeout, clock

    @property
    def taken(self) -> int:
        """Bytes that connections have taken."""
        return self.members.taken + self.others.taken

    def reservation(self, is_member: Callable[[], bool]) -> "MemoryReservation":
        """Return what a connection without a large frame has of the room: nothing."""
        return MemoryReservation(self, is_member)


class MemoryReservation:
    """What the incomplete frame and message of one connection have of the room."""

    __slots__ = ("_came", "_due", "_is_member", "_room", "_rooms", "_until", "size")

    def __init__(self, rooms: Rooms, is_member: Callable[[], bool]) -> None:
        self._rooms, self._is_member = rooms, is_member
        self._room = rooms.others
        self.size = 0
        """Bytes that it has."""
        self._came = 0
        self._due = self._until = 0.0

    def grows(self, size: int) -> bool:
        """Whether `hold` may wait."""
        return size > self.size

    async def hold(self, size: int, came: int) -> None:
        """Have room for so many bytes, of which so many have come. May wait for it.

        Raises `TransportError` where there is none within `Rooms.timeout`, and where what was begun makes no progress.
        """
        if size > self.size:
            await self._grow(size)
            self._restart(came)
        elif size < self.size:
            self._room.give_back(self.size - size)
            self.size = size
            self._restart(came)
        elif size:
            self._check(came)

    async def _grow(self, size: int) -> None:
        if not self.size:
            self._room = self._rooms.members if self._is_member() else self._rooms.others
        with trio.move_on_after(self._rooms.timeout):
            await self._room.take(size - self.size)
            self.size = size
            return
        raise TransportError(
            f"no room for a message of {size} bytes within {self._rooms.timeout:g} s, as others are being received: "
            "where that happens often, raise unfinished_bytes"
        )

    def _restart(self, came: int) -> None:
        now = self._rooms.clock()
        self._came, self._due = came, now + self._rooms.timeout
        self._until = self._due + self.size / WANTED_BYTES_PER_SECOND

    def _check(self, came: int) -> None:
        now = self._rooms.clock()
        if came >= self._came + PROGRESS_BYTES:
            self._came, self._due = came, now + self._rooms.timeout
        if now > self._due or (now > self._until and self._room.wanted):
            raise TransportError(
                f"a message of {self.size} bytes comes too slowly: {came} of them are here, and others wait for the room"
                if now <= self._due
                else f"a message of {self.size} bytes does not go on: {came} of them are here"
            )

    def excuse(self, seconds: float) -> None:
        """This host has not read for so many seconds: that is no fault of the sender."""
        self._due += seconds
        self._until += seconds

    def end(self) -> None:
        """Give all of it back."""
        if self.size:
            self._room.give_back(self.size)
            self.size = 0
