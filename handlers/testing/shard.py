"""A shard in simulated time: its network, disks and clocks are drawn from a seed, and fail as a `Plan` says.

    plan ─► events ──► a host takes a turn ──► the invariants are checked ──► its messages, writes and entries are
               ▲                                                              delivered, durable and applied later
               └────────────────────────────────────────────────────────────────────────┘

The shard does not know what a host consists of: `SimulatedHost` says what it must do. The same plan gives the same
run, to the last message.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, Final

from drakkar.handlers.errors import MissingExtension, ProtocolViolation
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import ChangeType
from drakkar.handlers.raft.lives import Life, Meeting
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.testing.answers import Answers
from drakkar.handlers.testing.directories import Directories, Introduction
from drakkar.handlers.testing.evidence import Evidence
from drakkar.handlers.testing.extension_checks import check_extensions
from drakkar.handlers.testing.history import Violation, halves
from drakkar.handlers.testing.invariants import Invariants
from drakkar.handlers.testing.links import Link, arrived
from drakkar.handlers.testing.membership_changes import choose_change, first_members, is_forced
from drakkar.handlers.testing.plan import REQUEST_TIMEOUT_S, TICK, Event, Plan
from drakkar.handlers.testing.simulated_host import PlannedCrash, SimulatedHost
from drakkar.handlers.testing.simulated_lanes import SimulatedLanes
from drakkar.handlers.testing.waiting_orders import WaitingOrders

__all__ = ["PROBE", "SimulatedShard", "ignore"]

_SNAPSHOT_REPORT_TICKS: Final = 10
"""Dragonboat's delay of the report, so that the receiver's own answer usually comes first."""
_MAX_SNAPSHOT_TIME: Final = 15 * TICK
"""The longest additional time that a snapshot travels, in units of time."""
_LINGER_TIMES: Final = (0, 0, 1, 3, 8)
"""For how long a host may hold back received messages, in units of time. It then gets several at once."""
_FOUNDED_ONCE: Final = "INV49 no shard is taken for a second founding"
PROBE: Final = b"probe"
"""A command that changes nothing."""

_ROLES: Final = {
    ChangeType.ADD_VOTER: State.FOLLOWER,
    ChangeType.ADD_OBSERVER: State.OBSERVER,
    ChangeType.ADD_WITNESS: State.WITNESS,
}


def ignore(_outcome: str, _value: Any) -> None:
    """The `Answer` of a request whose outcome does not matter."""


def _protocol_violation(error: BaseException | None) -> ProtocolViolation | None:
    """What a core raised; a host may name it as the cause of its own failure."""
    while error is not None and not isinstance(error, ProtocolViolation):
        error = error.__cause__
    return error


class SimulatedShard:
    """The hosts of one shard, and the network between them. Its public methods are the events that a plan can name."""

    def __init__(
        self, plan: Plan, make_host: Callable[["SimulatedShard", int, State | None], SimulatedHost]
    ) -> None:
        """`make_host(shard, replica, role)` makes a host. `role` is None for a first member."""
        self.plan = plan
        self.random = Random(f"run {plan.seed}")
        self.weather = plan.weather
        self.now = 0
        self.steps = 0
        self.messages = 0
        """The number of messages that were delivered."""
        self.faults: Counter[str] = Counter()
        """How often each fault happened."""
        self.trace: deque[tuple[int, str, Any]] = deque(maxlen=4_000)
        self.hosts: dict[int, SimulatedHost] = {}
        self.invariants = Invariants(self.hosts)
        self._answers = Answers(self)
        self.over = False
        """Whether the faults are over and everything is repaired."""
        self._make_host = make_host
        self._cells: Counter[tuple[str, str]] = Counter()
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._cut: Counter[tuple[int, int]] = Counter()
        """The number of faults that cut each link now."""
        self._healed = 0
        self._links: defaultdict[tuple[int, int, bool], Link] = defaultdict(Link)
        self._first = first_members(plan)
        self.invariants.identity.first = self._first.everybody
        self.invariants.identity.founders, _ = halves(self._first)
        self.lanes = SimulatedLanes(self)
        self.orders = WaitingOrders(self)
        self.evidence = Evidence(self)
        self.directories = Directories(self)

    @property
    def first_members(self) -> Membership:
        """The membership of the shard at the start."""
        return self._first

    # -- time -----------------------------------------------------------------------------------------------------

    def after(self, delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function `delay` units of time from now."""
        heappush(self._queue, (self.now + delay, next(self._numbers), function, args))

    def later(self, host: SimulatedHost, delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function of a host `delay` units of time from now.

        It is not called if the host crashes before. While the host is frozen, the call waits.
        """
        self.after(delay, self._if_alive, host, host.life, function, args)

    def _if_alive(
        self, host: SimulatedHost, life: int, function: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        if life != host.life:
            return
        if host.frozen_until > self.now:
            self.after(host.frozen_until - self.now, self._if_alive, host, life, function, args)
        else:
            function(*args)

    def _run_until(self, time: int) -> None:
        queue = self._queue
        while queue and queue[0][0] <= time:
            self.now, _, function, args = heappop(queue)
            function(*args)
        self.now = time

    def _happen(self, event: Event) -> None:
        self.trace.append((self.now, "!", event))
        self.faults[event.kind] += 1
        getattr(self, event.kind)(*event.args)

    # -- hosts ----------------------------------------------------------------------------------------------------

    def _add(self, replica: int, role: State | None) -> SimulatedHost:
        host = self.hosts[replica] = self._make_host(self, replica, role)
        self._answers.watch(host)
        self._start(host)
        return host

    def _start(self, host: SimulatedHost) -> None:
        self.evidence.started(host)
        host.life += 1
        host.up = True
        host.directory.runs += 1
        host.frozen_until = 0
        self.trace.append((self.now, "^", host.id))
        self._count_cells(host)
        host.start()
        self.invariants.started(host)
        self.lanes.started(host)
        self.later(host, self.random.randint(1, TICK), self._tick, host)
        self.turned(host)

    def _stop(self, host: SimulatedHost, kept: float) -> None:
        if host.up:
            self.trace.append((self.now, "v", host.id))
            host.up = False
            host.life += 1
            host.sends_left = None
            for message, _ in host.held:
                self._lose(message)
            host.held = []
            host.disk.crash(kept)
            host.stop()
            self.invariants.lanes.stopped(host.id)
            self.lanes.stopped(host)
            self.orders.stopped(host)
            self.evidence.stopped(host)

    def _tick(self, host: SimulatedHost) -> None:
        """Missed ticks are lost. Messages that are held back are handled first, in the same turn."""
        self.steps += 1
        host.ticks += 1
        self._hand_over(host, Message(MessageType.LOCAL_TICK, sender=host.id))
        if host.up:  # a removed replica may just have stopped
            self.invariants.ticked(host)
            self.later(host, host.tick_every, self._tick, host)

    def _hand_over(self, host: SimulatedHost, *last: Message) -> None:
        """Give a host all messages that it holds back, and then `last`, in one turn."""
        held, host.held = host.held, []
        messages: list[Message] = []
        life: Life | None = None
        """What the sender of the first message has said of itself, where it is not welcome."""

        def take() -> None:
            nonlocal life
            if messages:
                taken, messages[:] = list(messages), []
                self._give(host, taken, (), life)
            life = None

        lost = self.invariants.lost
        ends = False
        for message, said in held:
            meeting = Meeting.WELCOME if said is None else self.directories.admits(host, message, said, take)
            forged = said is not None and said.forged
            if lost is not None and said is not None and host.up and not forged:
                ends |= lost.heard(host, message, said)
            if not host.up:
                self._lose(message)
            elif meeting is not None and (said is None or host.raft.lets_in(meeting, message, said.life)):
                messages.append(message)
                if said is not None and meeting is not Meeting.WELCOME:
                    life = said.life  # all before it were taken, for it to be met
            elif not forged or meeting is Meeting.OLDER_LIFE:
                self._refuse(host, message, meeting)
        if host.up:
            self._give(host, messages, last, life)
        if ends and lost is not None:
            lost.must_end(host)

    def _give(
        self, host: SimulatedHost, messages: list[Message], last: Iterable[Message], life: Life | None
    ) -> None:
        self.trace.extend((self.now, ">", message) for message in messages)
        self.steps += len(messages)
        self.messages += len(messages)
        try:
            host.receive([*messages, *last], life)
        except (ProtocolViolation, Violation) as error:
            self._contradicted(host, messages, error)
        self.turned(host)
        for message in messages:
            self._report_snapshot(message, lost=False)

    def _refuse(self, host: SimulatedHost, message: Message, meeting: Meeting | None) -> None:
        """A host drops what comes from a replica that it has refused, or ends where its own shard is the wrong one."""
        self.faults["refused message"] += 1
        self.note("#", message)
        self.invariants.lanes.lost(message)
        self._report_snapshot(message, lost=True)
        if meeting is Meeting.OLDER_LIFE:
            self.end(host, f"{meeting.value}, as {message.sender} says")

    def _contradicted(self, host: SimulatedHost, messages: list[Message], error: Exception) -> None:
        """A replica stops: that is right only where it and its leader belong to two foundings of the shard."""
        lost, cause = self.invariants.lost, _protocol_violation(error)
        if lost is None or cause is None or not any(lost.divides(host.id, message) for message in messages):
            raise error
        self.invariants.happened["a replica of another founding than its leader's stopped"] += 1
        self.end(host, str(cause))

    def end(self, host: SimulatedHost, because: str) -> None:
        """A replica ends for good, and keeps its disk, where a shard was founded a second time."""
        if self.invariants.lost is None:
            raise Violation(_FOUNDED_ONCE, f"{host.raft!r}: {because}")
        self.invariants.happened["a replica ended"] += 1
        self.note("#", f"{host.id} ends: {because}")
        host.ended = because
        self._stop(host, 1.0)

    def end_removed(self, host: SimulatedHost) -> None:
        """A replica stops that was removed, and that no other needs any more."""
        self.invariants.happened["a removed replica stopped"] += 1
        self._stop(host, 1.0)

    def lacks(self, host: SimulatedHost, missing: MissingExtension) -> None:
        """A replica stops, since its log or a snapshot has what its table cannot take. Here all have the same table."""
        self.note("#", f"{host.id} stops: {missing}")
        raise missing

    def turned(self, host: SimulatedHost) -> None:
        """A host has taken a turn: check the invariants, and those of extensions."""
        if host.up:
            check_extensions(host.raft)
            self.invariants.turned(host)

    def leader(self) -> SimulatedHost | None:
        """Return the leader of the newest term, or None."""
        return max(self._leaders(), key=lambda host: host.raft.term, default=None)

    def _leaders(self) -> list[SimulatedHost]:
        return [host for host in self.hosts.values() if host.up and host.raft.state is State.LEADER]

    def _host(self, replica: int) -> SimulatedHost | None:
        """Return a replica's host; 0 stands for the leader."""
        return self.hosts.get(replica) if replica else self.leader()

    def close(self) -> None:
        """Stop all hosts."""
        for host in self.hosts.values():
            if host.up:
                self._stop(host, 0.0)

    def _count_cells(self, host: SimulatedHost) -> None:
        """Keep the counts of a core that is about to be replaced."""
        if host.life > 1:
            for (state, type_), times in host.raft.tally.handled.items():
                self._cells[state.name, str(type_)] += times

    def cells(self) -> Counter[tuple[str, str]]:
        """Return how often each handler was called, by the names of state and message type."""
        cells = Counter(self._cells)
        for host in self.hosts.values():
            cells.update(
                {(state.name, str(type_)): times for (state, type_), times in host.raft.tally.handled.items()}
            )
        return cells

    # -- the network ------------------------------------------------------------------------------------------------

    def send(self, host: SimulatedHost, messages: Iterable[Message]) -> None:
        """Send messages from a host. They may wait in a lane; then the network may lose, delay and duplicate them."""
        for message in messages:
            if host.sends_left is not None:
                host.sends_left -= 1
                if host.sends_left < 0:
                    return
            self.invariants.sent(host, message)
            if not self.lanes.take(host, message):
                self.invariants.lanes.left(message)
                if not self.orders.take(host, message):
                    self.transmit(host, message)

    def recall(self, message: Message) -> None:
        """Drop what equals a message, where it still waits at its sender."""
        self.orders.recall(message)

    def transmit(self, host: SimulatedHost, message: Message) -> None:
        """Let the network carry a message, perhaps twice."""
        said = self.directories.introduction(host)
        self._transmit(message, said)
        twice = self.weather.duplication if host.may_come_twice(message) else 0.0
        if twice and self.random.random() < twice:
            self.faults["duplicated message"] += 1
            self._transmit(message, said)

    def _transmit(self, message: Message, said: Introduction | None) -> None:
        random, weather = self.random, self.weather
        if weather.loss and random.random() < weather.loss:
            self.faults["lost message"] += 1
            self._lose(message)
            return
        delay = random.randint(1, 3)
        if weather.delay and random.random() < weather.delay:
            self.faults["delayed message"] += 1
            delay = random.randint(3, 5 * TICK)
        if message.type is MessageType.INSTALL_SNAPSHOT:
            delay += random.randint(0, _MAX_SNAPSHOT_TIME)
        arrival = self.now + delay
        # Snapshots have a connection of their own, and delay no other messages.
        link = self._links[message.sender, message.to, message.type is MessageType.INSTALL_SNAPSHOT]
        if not weather.reordering:
            arrival = link.arrival_in_order(arrival)
        heappush(
            self._queue, (arrival, next(self._numbers), self._deliver, (message, said, link, link.send()))
        )

    def _deliver(self, message: Message, said: Introduction | None, link: Link, number: int) -> None:
        if link.is_lost(number):
            self.note("x", message)
            self._report_snapshot(message, lost=True)
            return
        if link.arrive(number):
            self.invariants.lanes.overtook(message)
        host = self.hosts.get(message.to)
        if host is None or not host.up or (message.sender, message.to) in self._cut:
            self._lose(message)
        elif host.frozen_until > self.now or host.held:
            host.held.append((arrived(message), said))
        else:
            host.held.append((arrived(message), said))
            linger = min(self.weather.linger, self.random.choice(_LINGER_TIMES)) if self.weather.linger else 0
            if linger:
                self.later(host, linger, self._hand_over_held, host)
            else:
                self._hand_over(host)

    def _hand_over_held(self, host: SimulatedHost) -> None:
        if host.held:
            self._hand_over(host)

    def _lose(self, message: Message) -> None:
        if message.type.traits.local:
            return  # what the transport of a host that stops had to tell
        self.note("x", message)
        self.invariants.lanes.lost(message)
        self._report_snapshot(message, lost=True)
        # The transport may notice the loss and report it.
        if self.random.random() < 0.2:
            if self.lanes.capacity:
                self.lanes.lose_connection(message.sender, message.to)
            else:
                self.report(message.sender, Message(MessageType.UNREACHABLE, sender=message.to))

    def in_transit(self, sender: int, receiver: int) -> bool:
        """Return whether a message or snapshot from one replica to another has not arrived yet, and is not lost."""
        return not all(self._links[sender, receiver, snapshot].idle for snapshot in (False, True))

    def lose_in_transit(self, sender: int, receiver: int, *, snapshots: bool = False) -> None:
        """Lose all messages of a connection that have not arrived yet, and the snapshots, which have another one."""
        self._links[sender, receiver, False].lose()
        if snapshots:
            self._links[sender, receiver, True].lose()
        self.invariants.lanes.disturbed(sender, receiver)

    def tell_gone(self, host: SimulatedHost, gone: int) -> None:
        """Let a host's transport tell its replica that the process of another one is gone, behind all that has arrived."""
        self.invariants.failover.evidence(host.id, gone)
        host.held.append((Message(MessageType.LEADER_GONE, to=host.id, sender=gone), None))
        if host.frozen_until <= self.now:
            self._hand_over(host)

    def is_reachable(self, sender: int, receiver: int) -> bool:
        """Return whether a connection can be made now."""
        host = self.hosts.get(receiver)
        return host is not None and host.up and (sender, receiver) not in self._cut

    def note(self, mark: str, what: Any) -> None:
        """Write a line into the trace."""
        self.trace.append((self.now, mark, what))

    def _report_snapshot(self, message: Message, *, lost: bool) -> None:
        # That of a witness travels like any other message, and no transport tells what became of it.
        if message.type is MessageType.INSTALL_SNAPSHOT and not message.snapshot.witness:
            report = Message(
                MessageType.SNAPSHOT_STATUS, sender=message.to, reject=lost, hint=_SNAPSHOT_REPORT_TICKS
            )
            self.report(message.sender, report)

    def report(self, replica: int, report: Message) -> None:
        """Let a host's transport tell its replica something."""
        host = self.hosts.get(replica)
        if host is not None and host.up:
            self.later(host, 1, self._receive_report, host, report)

    def _receive_report(self, host: SimulatedHost, report: Message) -> None:
        host.receive([report])
        self.turned(host)

    # -- events of a plan: the network --------------------------------------------------------------------------------

    def isolate(self, replica: int, time: int) -> None:
        """Cut all links of one replica for some time, in units of time."""
        host = self._host(replica)
        if host is not None:
            others = [other for other in self.hosts if other != host.id]
            self._cut_for(time, [link for other in others for link in ((host.id, other), (other, host.id))])

    def partition(self, side: int, time: int) -> None:
        """Separate the replicas into two groups, by the bits of `side`, for some time."""
        one = [replica for replica in self.hosts if side >> (replica % 8) & 1]
        other = [replica for replica in self.hosts if replica not in one]
        self._cut_for(time, [link for a in one for b in other for link in ((a, b), (b, a))])

    def cut(self, one: int, other: int, both: bool, time: int) -> None:
        """Cut the link between two replicas, in one direction or in both, for some time."""
        links = self._between(one, other)
        self._cut_for(time, links if both else links[:1])

    def flap(self, one: int, other: int, period: int, time: int) -> None:
        """Cut and repair the link between two replicas repeatedly."""
        links = self._between(one, other)
        for begin in range(0, time, 2 * period):
            self.after(begin, self._cut_for, period, links)

    def _between(self, one: int, other: int) -> list[tuple[int, int]]:
        first, second = self._host(one), self._host(other)
        if first is None or second is None or first is second:
            return []
        return [(first.id, second.id), (second.id, first.id)]

    def disconnect(self, one: int, other: int) -> None:
        """Lose the connection from one replica to another. They can make another one at once."""
        for sender, receiver in self._between(one, other)[:1]:
            self.lanes.lose_connection(sender, receiver)

    def clog(self, one: int, other: int, time: int) -> None:
        """Let nothing leave the lane from one replica to another for some time. All but bulk messages overtake it."""
        for sender, receiver in self._between(one, other)[:1]:
            if not self.over:
                self.lanes.clog(sender, receiver, time)

    def _cut_for(self, time: int, links: list[tuple[int, int]]) -> None:
        if not self.over:
            self._cut.update(links)
            self.after(time, self._repair, links, self._healed)

    def _repair(self, links: list[tuple[int, int]], healed: int) -> None:
        if healed == self._healed:
            self._cut -= Counter(links)

    def heal(self) -> None:
        """Repair all links."""
        self._cut.clear()
        self._healed += 1

    # -- events of a plan: hosts ----------------------------------------------------------------------------------------

    def crash(self, replica: int, kept: float, time: int) -> None:
        """Stop a replica at once, keep a part of its current write, and start it again `time` units later."""
        host = self._host(replica)
        if host is not None and host.up:
            self.crash_for(host, kept, time)

    def crash_in_write(self, replica: int, nth: int, where: str, time: int) -> None:
        """Let a replica crash in the middle of its `nth` write from now on. `where` is one of `WHERE_IT_CRASHES`."""
        host = self._host(replica)
        if host is not None and host.up and not self.over:
            host.disk.planned_crash = PlannedCrash(nth, where, time)

    def crash_for(self, host: SimulatedHost, kept: float, time: int) -> None:
        """Stop a host, and start it again `time` units later. See `SimulatedDisk.crash` for `kept`."""
        self._stop(host, kept)
        self.after(time, self._restart, host, host.life)

    def _restart(self, host: SimulatedHost, life: int) -> None:
        if life == host.life and not host.ended and not self._is_dispensable(host.id):
            self._start(host)

    def _is_dispensable(self, replica: int) -> bool:
        """Whether a replica is removed and no longer needed.

        It is needed until all members know that it was removed, since it may know more than they do.
        """
        newest = self.invariants.newest
        if newest is None or replica not in newest.removed:
            return False
        leader = self.leader()
        members = self._members()
        if leader is None or leader not in members or not leader.raft.has_committed_in_term:
            return False
        return all(
            host.raft.membership.change_id >= newest.change_id and host.raft.term == leader.raft.term
            for host in members
        )

    @property
    def _newest(self) -> Membership:
        return self.invariants.newest or self._first

    def _members(self) -> list[SimulatedHost]:
        return [self.hosts[replica] for replica in sorted(self._newest.everybody)]

    def freeze(self, replica: int, time: int) -> None:
        """Pause a process for some time; messages wait for it."""
        host = self._host(replica)
        if host is not None:
            host.frozen_until = max(host.frozen_until, self.now + time)

    def clock(self, replica: int, every: int, time: int) -> None:
        """Let a clock run fast or slowly for some time: with a tick each `every` units of time instead of ten."""
        self._set_for(time, replica, "tick_every", every, TICK)

    def slow_disk(self, replica: int, factor: int, time: int) -> None:
        """Let writes take longer for some time."""
        host = self._host(replica)
        if host is not None:
            host.disk.slowness = factor
            self.after(time, setattr, host.disk, "slowness", 1)

    def full_disk(self, replica: int, space: int, time: int) -> None:
        """Leave only `space` bytes for entries on a replica's disk, for some time."""
        host = self._host(replica)
        if host is not None and not self.over:
            host.disk.space = space
            self.after(time, self._free_disk, host)

    def _free_disk(self, host: SimulatedHost) -> None:
        if not self.over:
            host.disk.space = None

    def strand(self, replica: int, factor: int, gap: int, time: int) -> None:
        """Slow down a replica's disk and isolate it while it writes, so only this replica holds its last entries."""
        host = self._host(replica)
        if host is not None:
            self.slow_disk(host.id, factor, gap + time)
            self.burst(host.id, 2)
            self.after(gap, self.isolate, host.id, time)

    def slow_apply(self, replica: int, factor: int, time: int) -> None:
        """Let a state machine take longer for some time."""
        self._set_for(time, replica, "apply_slowness", factor, 1)

    def _set_for(self, time: int, replica: int, name: str, value: int, usual: int) -> None:
        host = self._host(replica)
        if host is not None:
            setattr(host, name, value)
            self.after(time, setattr, host, name, usual)

    # -- events of a plan: requests -------------------------------------------------------------------------------------

    def transfer(self, replica: int, target: int) -> None:
        """Ask a replica to transfer the leadership."""
        host, successor = self._host(replica), self._host(target)
        if host is not None and successor is not None and self.is_awake(host):
            host.transfer(successor.id, REQUEST_TIMEOUT_S, ignore)

    def burst(self, replica: int, count: int) -> None:
        """Propose `count` commands at once."""
        host = self._host(replica)
        for _ in range(count):
            if host is not None and self.is_awake(host):
                host.submit("propose", PROBE, REQUEST_TIMEOUT_S, ignore)

    def snapshot(self, replica: int, overhead: int) -> None:
        """Let a replica take a snapshot and compact its log up to `overhead` entries before it."""
        host = self._host(replica)
        if host is not None and self.is_awake(host):
            host.snapshot(overhead)
            self.turned(host)

    def request_snapshot(self, replica: int) -> None:
        """Let a replica ask its leader for a snapshot."""
        host = self._host(replica)
        if host is not None and self.is_awake(host):
            host.request_snapshot()
            self.turned(host)

    def forget_leader(self, replica: int) -> None:
        """Let a replica forget its leader."""
        host = self._host(replica)
        if host is not None and self.is_awake(host):
            self.invariants.failover.forgets(host.id)
            host.raft.forget_leader()
            self.turned(host)

    def false_evidence(self, replica: int, side: int) -> None:
        """Let the hosts that the bits of `side` name be told that a replica's process is gone, which is not."""
        host = self._host(replica)
        if host is not None and host.up:
            self.evidence.mistake(host, side)

    def query(self, replica: int, first: int, count: int) -> None:
        """Query a part of a replica's committed log."""
        host = self._host(replica)
        if host is not None and self.is_awake(host):
            host.receive([Message(MessageType.LOG_QUERY, sender=first, to=first + count, hint=1 << 10)])
            self.turned(host)

    def change(self, replica: int, choice: int) -> None:
        """Ask a replica for a random membership change. `choice` is the seed of the change."""
        host = self._host(replica)
        if host is None or not self.is_awake(host) or not host.raft.membership.voters:
            return
        change = choose_change(Random(choice), host.raft.membership, self.hosts)
        if host.raft.config.strict_membership_changes:
            change = replace(change, forced=is_forced(choice))
        wanted = ", ".join(f"{one.type.name} {one.replica}" for one in change.changes) or "leave"
        self.trace.append((self.now, "*", f"{wanted} ({change.transition.name})"))
        for one in change.changes:
            if one.replica not in self.hosts and one.type is not ChangeType.REMOVE:
                self.directories.place(one.replica, one.address)
                self._add(one.replica, _ROLES[one.type])
        host.submit("change", change.encode(), REQUEST_TIMEOUT_S, ignore)

    def is_awake(self, host: SimulatedHost) -> bool:
        """Return whether a host can take requests now."""
        return host.up and host.frozen_until <= self.now

    def story(self, lines: int = 120) -> str:
        """Return the last events of the run, one per line."""
        marks = {
            "!": "", ">": "", "x": "lost: ", "^": "starts: ", "v": "stops: ", "*": "change: ", "?": "client: ",
            "<": "handed back: ", "~": "connection lost: ", "#": "identity: ",
        }  # fmt: skip
        newest = list(self.trace)[-lines:]
        return "\n".join(f"{time:6} {marks[mark]}{what}" for time, mark, what in newest)
