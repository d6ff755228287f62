"""A shard in simulated time: its network, disks and clocks are drawn from a seed, and break as a `Plan` says.

    plan ─► events ──► the hosts do something ──► the invariants are checked ──► what they send, write and apply is
               ▲                                                                 delivered, durable, done: later
               └─────────────────────────────────────────────────────────────────────────┘

Nothing here knows what a host is made of; `SimulatedHost` says what it must do. The same plan gives the same run, to
the last message.
"""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, Transition
from drakkar.handlers.raft.entries import EntryKind
from drakkar.handlers.raft.log import Storage
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.testing.answers import Answer, Answers
from drakkar.handlers.testing.invariants import Invariants, Violation
from drakkar.handlers.testing.plan import CALM, TICK, Event, Plan

__all__ = ["PROBE", "UNITS_A_SECOND", "Answer", "SimulatedDisk", "SimulatedHost", "Simulation"]

_MOST_REPLICAS: Final = 9
_SNAPSHOT_REPORT_TICKS: Final = 10
_LONGEST_SNAPSHOT: Final = 15 * TICK
"""Units of time that a snapshot travels, at most: it is large."""
_SETTLING_ELECTIONS: Final = 60
"""Election timeouts within which all must be well again once nothing goes wrong any more."""
_LINGERING: Final = (0, 0, 1, 3, 8)
"""Units of time that a host lets wait what came, so that it finds several messages at once."""
_CONVERGES: Final = "INV26 left in peace, a shard converges"
_ALL: Final = 1 << 62

UNITS_A_SECOND: Final = 10 * TICK
PATIENCE: Final = 2.0
"""Seconds that a request waits for its answer."""


@dataclass(slots=True)
class _Doom:
    """A crash that is due in the middle of a write."""

    writes: int
    """The how-manieth from now."""
    where: str
    """One of the plan's `WHERE_IT_CRASHES`."""
    time: int
    """Units of time that the host is down."""


class SimulatedDisk:
    """Writes of one host, in order: all that wait go together, take a while, and are then durable."""

    def __init__(self, simulation: "Simulation", host: "SimulatedHost") -> None:
        self._simulation = simulation
        self._host = host
        self.slowness = 1
        self.doom: _Doom | None = None
        """A crash in the middle of one of the next writes, if one is due."""
        self._waiting: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._writing: list[tuple[Callable[[], None], Callable[[], None]]] = []

    def write(self, keep: Callable[[], None], done: Callable[[], None]) -> None:
        """`keep()` is called when it is durable, and then `done()`; not when the host crashes before that."""
        self._waiting.append((keep, done))
        if not self._writing:
            self._begin()

    def _begin(self) -> None:
        self._writing, self._waiting = self._waiting, []
        simulation = self._simulation
        duration = simulation.random.randint(1, simulation.weather.disk) * self.slowness
        simulation.later(self._host, duration, self._end)

    def _end(self) -> None:
        if self.doom is not None:
            self.doom.writes -= 1
            if not self.doom.writes:
                self._break(self.doom)
                return
        written, self._writing = self._writing, []
        for keep, _ in written:
            keep()
        for _, done in written:
            done()
        if self._waiting and not self._writing:
            self._begin()

    def _break(self, doom: "_Doom") -> None:
        """The write is through as far as it comes, and the host with it."""
        self._simulation.invariants.happened[f"a crash in a write: {doom.where}"] += 1
        kept = {"nothing is kept": 0.0, "a part is kept": 0.5}.get(doom.where, 1.0)
        if doom.where in ("nothing is sent", "a part is sent"):
            self._host.sends_left = (
                0 if doom.where == "nothing is sent" else self._simulation.random.randint(1, 3)
            )
            written, self._writing = self._writing, []
            for keep, _ in written:
                keep()
            for _, done in written:
                done()
            kept = 0.0  # of what came of it
        self._simulation.crash_for(self._host, kept, doom.time)

    def crash(self, kept: float) -> None:
        """All of what was being written is on disk (1.0), nothing (0.0), or any part, though nobody was told."""
        count = len(self._writing)
        through = round(kept * count) if kept in (0.0, 1.0) else self._simulation.random.randint(0, count)
        for keep, _ in self._writing[:through]:
            keep()
        self._writing, self._waiting, self.doom = [], [], None

    @property
    def idle(self) -> bool:
        """Nothing is being written."""
        return not self._writing


class SimulatedHost(ABC):
    """One replica and what is around it. It acts only when it is called, and hands on what comes of it."""

    raft: Raft
    """The core in its present life."""

    def __init__(self, simulation: "Simulation", replica: int) -> None:
        self.simulation = simulation
        self.id = replica
        self.up = False
        self.life = 0
        self.frozen_until = 0
        self.tick_every = TICK
        self.apply_slowness = 1
        self.disk = SimulatedDisk(simulation, self)
        self.held: list[Message] = []
        """What came and was not looked at: it finds all of it at once."""
        self.ticks = 0
        """Of its own clock, in all its lives."""
        self.sends_left: int | None = None
        """While it is crashing: how many messages still get out."""

    @property
    @abstractmethod
    def storage(self) -> Storage:
        """What is durable, also while it is down."""

    @property
    def idle(self) -> bool:
        """Nothing is under way that takes its time."""
        return self.disk.idle

    @abstractmethod
    def start(self) -> None:
        """Begin a life from what is durable."""

    @abstractmethod
    def stop(self) -> None:
        """The life is over: nobody is answered any more."""

    @abstractmethod
    def receive(self, messages: list[Message]) -> None:
        """Messages arrived, or the host's transport or clock has something to say."""

    @abstractmethod
    def submit(self, kind: str, content: Any, seconds: float, answer: Answer) -> None:
        """Ask for something: "propose" a command, "change" the membership, or "read". See `Answer`."""

    @abstractmethod
    def transfer(self, target: int, seconds: float, answer: Answer) -> None:
        """Ask for another leader. See `Answer`; what is "refused" may happen yet."""

    @abstractmethod
    def snapshot(self, overhead: int) -> None:
        """Take a snapshot, and compact the log but for `overhead` entries, if the host can."""

    @abstractmethod
    def request_snapshot(self) -> None:
        """Ask the leader for a snapshot, if its host takes one when it is asked."""

    def may_come_twice(self, message: Message) -> bool:
        """Whether the network may double it: no transport repeats a request, and a copy of one would be another one."""
        return message.type is not MessageType.PROPOSE

    def state(self) -> Any:
        """What its state machine holds, if all replicas must hold the same; None for one that holds nothing."""
        return None

    def leftovers(self) -> Iterable[str]:
        """What is still held although nothing is going on: nothing, if all is well."""
        return ()


class Simulation:
    """One run of a plan. Its public methods are the events that a plan can name."""

    def __init__(
        self, plan: Plan, make_host: Callable[["Simulation", int, State | None], SimulatedHost]
    ) -> None:
        """`make_host(simulation, replica, role)` makes a host; `role` is None for one that is there from the start."""
        self.plan = plan
        self.random = Random(f"run {plan.seed}")
        self.weather = plan.weather
        self.now = 0
        self.steps = 0
        self.messages = 0
        """Delivered so far."""
        self.faults: Counter[str] = Counter()
        """How often each fault happened."""
        self.trace: deque[tuple[int, str, Any]] = deque(maxlen=4_000)
        self.hosts: dict[int, SimulatedHost] = {}
        self.invariants = Invariants(self.hosts)
        self._answers = Answers(self, UNITS_A_SECOND)
        self.over = False
        """All is healed: nothing goes wrong any more."""
        self._make_host = make_host
        self._cells: Counter[tuple[str, str]] = Counter()
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._cut: Counter[tuple[int, int]] = Counter()
        """How many faults cut each link; none that is whole."""
        self._healed = 0
        self._links: dict[tuple[int, int, bool], int] = {}
        self._first = _first_members(plan)
        self._finishers: list[Callable[[], bool]] = []

    @property
    def first_members(self) -> Membership:
        """Who belongs to the shard at the start."""
        return self._first

    # -- time -----------------------------------------------------------------------------------------------------

    def after(self, delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function `delay` units of time from now."""
        heappush(self._queue, (self.now + delay, next(self._numbers), function, args))

    def later(self, host: SimulatedHost, delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function of a host `delay` units of time from now: in its present life, and not while it is frozen."""
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

    def run(self) -> None:
        """Run the plan, heal all, and see that the shard recovers. Raises `Violation`."""
        for replica in sorted(self._first.everybody):
            self._add(replica, None)
        if self.plan.begins_led:
            self._await_first_leader()
        begin = self.now
        for event in self.plan.events:
            heappush(self._queue, (begin + event.time, next(self._numbers), self._happen, (event,)))
        self._run_until(begin + self.plan.ticks * TICK)
        self._settle()

    def _await_first_leader(self) -> None:
        """Half of all schedules would be over before anybody leads."""
        self.weather = CALM
        self._await(_CONVERGES, lambda: any(host.raft.has_committed_in_term for host in self._leaders()))
        self.weather = self.plan.weather

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

    def until_over(self, is_done: Callable[[], bool]) -> None:
        """Do not end before `is_done()`."""
        self._finishers.append(is_done)

    # -- hosts ----------------------------------------------------------------------------------------------------

    def _add(self, replica: int, role: State | None) -> SimulatedHost:
        host = self.hosts[replica] = self._make_host(self, replica, role)
        self._answers.watch(host)
        self._start(host)
        return host

    def _start(self, host: SimulatedHost) -> None:
        host.life += 1
        host.up = True
        host.frozen_until = 0
        self.trace.append((self.now, "^", host.id))
        self._count_cells(host)
        host.start()
        self.invariants.started(host)
        self.later(host, self.random.randint(1, TICK), self._tick, host)
        self.turned(host)

    def _stop(self, host: SimulatedHost, kept: float) -> None:
        if host.up:
            self.trace.append((self.now, "v", host.id))
            host.up = False
            host.life += 1
            host.sends_left = None
            for message in host.held:
                self._lose(message)
            host.held = []
            host.disk.crash(kept)
            host.stop()

    def _tick(self, host: SimulatedHost) -> None:
        """Ticks that were missed are not made up for; what came meanwhile is heard first, in the same turn."""
        self.steps += 1
        host.ticks += 1
        self._hear(host, Message(MessageType.LOCAL_TICK, sender=host.id))
        if host.up:  # a removed replica may just have ended
            self.invariants.ticked(host)
            self.later(host, host.tick_every, self._tick, host)

    def _hear(self, host: SimulatedHost, *last: Message) -> None:
        """Give a host all that came for it, in one turn."""
        messages, host.held = host.held, []
        self.trace.extend((self.now, ">", message) for message in messages)
        self.steps += len(messages)
        self.messages += len(messages)
        host.receive([*messages, *last])
        self.turned(host)
        for message in messages:
            self._report_snapshot(message, lost=False)

    def turned(self, host: SimulatedHost) -> None:
        """A host has done something: see whether all is as it must be."""
        if host.up:
            self.invariants.turned(host)

    def leader(self) -> SimulatedHost | None:
        """Who leads the newest term, if anybody does."""
        return max(self._leaders(), key=lambda host: host.raft.term, default=None)

    def _leaders(self) -> list[SimulatedHost]:
        return [host for host in self.hosts.values() if host.up and host.raft.state is State.LEADER]

    def _who(self, replica: int) -> SimulatedHost | None:
        return self.hosts.get(replica) if replica else self.leader()

    def close(self) -> None:
        """Stop all hosts."""
        for host in self.hosts.values():
            if host.up:
                self._stop(host, 0.0)

    def _count_cells(self, host: SimulatedHost) -> None:
        if host.life > 1:
            for (state, type_), times in host.raft.tally.handled.items():
                self._cells[state.name, str(type_)] += times

    def cells(self) -> Counter[tuple[str, str]]:
        """How often each cell of the handler tables was entered, by the names of state and message type."""
        cells = Counter(self._cells)
        for host in self.hosts.values():
            cells.update(
                {(state.name, str(type_)): times for (state, type_), times in host.raft.tally.handled.items()}
            )
        return cells

    # -- the network ------------------------------------------------------------------------------------------------

    def send(self, host: SimulatedHost, messages: Iterable[Message]) -> None:
        """Messages leave a host."""
        for message in messages:
            if host.sends_left is not None:
                host.sends_left -= 1
                if host.sends_left < 0:
                    return
            self.invariants.sent(host, message)
            self._transmit(message)
            twice = self.weather.duplication if host.may_come_twice(message) else 0.0
            if twice and self.random.random() < twice:
                self.faults["duplicated message"] += 1
                self._transmit(message)

    def _transmit(self, message: Message) -> None:
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
            delay += random.randint(0, _LONGEST_SNAPSHOT)
        arrival = self.now + delay
        if not weather.reordering:
            # Snapshots have a connection of their own, and hold nothing else up.
            link = (message.sender, message.to, message.type is MessageType.INSTALL_SNAPSHOT)
            arrival = self._links[link] = max(arrival, self._links.get(link, 0))
        heappush(self._queue, (arrival, next(self._numbers), self._deliver, (message,)))

    def _deliver(self, message: Message) -> None:
        host = self.hosts.get(message.to)
        if host is None or not host.up or (message.sender, message.to) in self._cut:
            self._lose(message)
        elif host.frozen_until > self.now or host.held:
            host.held.append(message)
        else:
            host.held.append(message)
            linger = min(self.weather.linger, self.random.choice(_LINGERING)) if self.weather.linger else 0
            if linger:
                self.later(host, linger, self._hear_what_came, host)
            else:
                self._hear(host)

    def _hear_what_came(self, host: SimulatedHost) -> None:
        if host.held:
            self._hear(host)

    def _lose(self, message: Message) -> None:
        self.trace.append((self.now, "x", message))
        self._report_snapshot(message, lost=True)
        # The transport may find out, and says so, or not.
        if self.random.random() < 0.2:
            self._report(message.sender, Message(MessageType.UNREACHABLE, sender=message.to))

    def _report_snapshot(self, message: Message, *, lost: bool) -> None:
        if message.type is MessageType.INSTALL_SNAPSHOT:
            report = Message(
                MessageType.SNAPSHOT_STATUS, sender=message.to, reject=lost, hint=_SNAPSHOT_REPORT_TICKS
            )
            self._report(message.sender, report)

    def _report(self, replica: int, report: Message) -> None:
        host = self.hosts.get(replica)
        if host is not None and host.up:
            self.later(host, 1, self._hear_report, host, report)

    def _hear_report(self, host: SimulatedHost, report: Message) -> None:
        host.receive([report])
        self.turned(host)

    # -- what a plan can name: the network ----------------------------------------------------------------------------

    def isolate(self, replica: int, ticks: int) -> None:
        """Cut one replica off from all others, for a while."""
        host = self._who(replica)
        if host is not None:
            others = [other for other in self.hosts if other != host.id]
            self._cut_for(ticks, [link for other in others for link in ((host.id, other), (other, host.id))])

    def partition(self, side: int, time: int) -> None:
        """Cut all replicas into two groups, by the bits of `side`, for a while."""
        one = [replica for replica in self.hosts if side >> (replica % 8) & 1]
        other = [replica for replica in self.hosts if replica not in one]
        self._cut_for(time, [link for a in one for b in other for link in ((a, b), (b, a))])

    def cut(self, one: int, other: int, both: bool, time: int) -> None:
        """Cut the link between two replicas, in one direction or in both."""
        links = self._between(one, other)
        self._cut_for(time, links if both else links[:1])

    def flap(self, one: int, other: int, period: int, time: int) -> None:
        """Cut and mend the link between two replicas again and again."""
        links = self._between(one, other)
        for begin in range(0, time, 2 * period):
            self.after(begin, self._cut_for, period, links)

    def _between(self, one: int, other: int) -> list[tuple[int, int]]:
        first, second = self._who(one), self._who(other)
        if first is None or second is None or first is second:
            return []
        return [(first.id, second.id), (second.id, first.id)]

    def _cut_for(self, time: int, links: list[tuple[int, int]]) -> None:
        if not self.over:
            self._cut.update(links)
            self.after(time, self._mend, links, self._healed)

    def _mend(self, links: list[tuple[int, int]], healed: int) -> None:
        if healed == self._healed:
            self._cut -= Counter(links)

    def heal(self) -> None:
        """All links work again."""
        self._cut.clear()
        self._healed += 1

    # -- what a plan can name: hosts ------------------------------------------------------------------------------------

    def crash(self, replica: int, kept: float, time: int) -> None:
        """Stop a replica at once, keep a part of the write that is under way, and start it again later."""
        host = self._who(replica)
        if host is not None and host.up:
            self.crash_for(host, kept, time)

    def crash_in_write(self, replica: int, nth: int, where: str, time: int) -> None:
        """Let a replica crash in the middle of its `nth` write from now on. `where` is one of the plan's `WHERE_IT_CRASHES`."""
        host = self._who(replica)
        if host is not None and host.up and not self.over:
            host.disk.doom = _Doom(nth, where, time)

    def crash_for(self, host: SimulatedHost, kept: float, time: int) -> None:
        """Stop a host, and start it again later."""
        self._stop(host, kept)
        self.after(time, self._restart, host, host.life)

    def _restart(self, host: SimulatedHost, life: int) -> None:
        if life == host.life and not self._may_retire(host.id):
            self._start(host)

    def freeze(self, replica: int, time: int) -> None:
        """Let a process stand still; what comes meanwhile waits for it."""
        host = self._who(replica)
        if host is not None:
            host.frozen_until = max(host.frozen_until, self.now + time)

    def clock(self, replica: int, every: int, time: int) -> None:
        """Let a clock run fast or slow for a while: `every` units of time a tick instead of ten."""
        self._set_for(time, replica, "tick_every", every, TICK)

    def slow_disk(self, replica: int, factor: int, time: int) -> None:
        """Let writes take longer for a while."""
        host = self._who(replica)
        if host is not None:
            host.disk.slowness = factor
            self.after(time, setattr, host.disk, "slowness", 1)

    def strand(self, replica: int, factor: int, gap: int, time: int) -> None:
        """Slow a replica's disk, and cut it off while it writes: what it has last is known to nobody else."""
        host = self._who(replica)
        if host is not None:
            self.slow_disk(host.id, factor, gap + time)
            self.burst(host.id, 2)
            self.after(gap, self.isolate, host.id, time)

    def slow_apply(self, replica: int, factor: int, time: int) -> None:
        """Let a state machine take longer for a while."""
        self._set_for(time, replica, "apply_slowness", factor, 1)

    def _set_for(self, time: int, replica: int, name: str, value: int, usual: int) -> None:
        host = self._who(replica)
        if host is not None:
            setattr(host, name, value)
            self.after(time, setattr, host, name, usual)

    # -- what a plan can name: requests ---------------------------------------------------------------------------------

    def transfer(self, replica: int, target: int) -> None:
        """Ask, at a replica, for another to lead."""
        host, successor = self._who(replica), self._who(target)
        if host is not None and successor is not None and self.is_awake(host):
            host.transfer(successor.id, PATIENCE, _ignore)

    def burst(self, replica: int, count: int) -> None:
        """Propose some commands at once, whose results nobody waits for."""
        host = self._who(replica)
        for _ in range(count):
            if host is not None and self.is_awake(host):
                host.submit("propose", PROBE, PATIENCE, _ignore)

    def snapshot(self, replica: int, overhead: int) -> None:
        """Let a replica take a snapshot and compact its log."""
        host = self._who(replica)
        if host is not None and self.is_awake(host):
            host.snapshot(overhead)
            self.turned(host)

    def request_snapshot(self, replica: int) -> None:
        """Let a replica ask its leader for a snapshot, where hosts take them."""
        host = self._who(replica)
        if host is not None and self.is_awake(host):
            host.request_snapshot()
            self.turned(host)

    def forget_leader(self, replica: int) -> None:
        """Let a replica do as if it knew no leader."""
        host = self._who(replica)
        if host is not None and self.is_awake(host):
            host.raft.forget_leader()
            self.turned(host)

    def query(self, replica: int, first: int, count: int) -> None:
        """Ask a replica for a part of its committed log."""
        host = self._who(replica)
        if host is not None and self.is_awake(host):
            host.receive([Message(MessageType.LOG_QUERY, sender=first, to=first + count, hint=1 << 10)])
            self.turned(host)

    def change(self, replica: int, choice: int) -> None:
        """Ask, at a replica, for a membership change that its membership allows; `choice` picks one."""
        host = self._who(replica)
        if host is None or not self.is_awake(host) or not host.raft.membership.voters:
            return
        change = _choose_change(Random(choice), host.raft.membership, self.hosts)
        wanted = ", ".join(f"{one.type.name} {one.replica}" for one in change.changes) or "leave"
        self.trace.append((self.now, "*", f"{wanted} ({change.transition.name})"))
        for one in change.changes:
            if one.replica not in self.hosts and one.type is not ChangeType.REMOVE:
                self._add(one.replica, _ROLES[one.type])
        host.submit("change", change.encode(), PATIENCE, _ignore)

    def is_awake(self, host: SimulatedHost) -> bool:
        """Whether it can be asked something now."""
        return host.up and host.frozen_until <= self.now

    # -- when nothing goes wrong any more ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Thesis §3.9: with a majority up, a shard that is left in peace elects, commits and converges."""
        begin = self.now
        self.over = True
        self.weather = CALM
        self.heal()
        for host in self.hosts.values():
            host.tick_every, host.apply_slowness, host.frozen_until = TICK, 1, 0
            host.disk.slowness, host.disk.doom = 1, None
        random = Random(f"settling {self.plan.seed}")
        if self.plan.ends_with_majority:
            self._check_majority(random)
        self._start_all(self.hosts)
        self._await(_CONVERGES, self._has_converged)
        self._insist(_CONVERGES, _probe)
        self._await(_CONVERGES, lambda: self._has_converged() and all(done() for done in self._finishers))
        self.settled_after = (self.now - begin) // TICK
        self._check_idle()
        self._check_operator(random)
        self._await(_CONVERGES, self._has_converged)
        self._check_idle()
        self._check_states()
        if any(host.raft.quiesce.on for host in self.hosts.values()):
            self._check_quiesce()

    settled_after = 0
    """Ticks that it took to converge."""

    def _start_all(self, replicas: Iterable[int]) -> None:
        for replica in list(replicas):
            if not self.hosts[replica].up:
                self._start(self.hosts[replica])

    def _await(self, check: str, condition: Callable[[], bool]) -> None:
        """Let time pass until something is so. Raises `Violation` where that takes too long."""
        for _ in range(self._patience):
            self._retire()
            if condition():
                return
            self._finish_joint_change()
            self._run_for(1)
        raise Violation(check, self._describe())

    @property
    def _patience(self) -> int:
        return _SETTLING_ELECTIONS * max(host.raft.config.election_ticks for host in self.hosts.values())

    def _insist(self, check: str, ask: Callable[[SimulatedHost, Answer], None]) -> None:
        """Ask whoever leads for something, until it is done. Raises `Violation` where that takes too long."""
        self._await(check, self._asking(ask))

    def _asking(self, ask: Callable[[SimulatedHost, Answer], None]) -> Callable[[], bool]:
        """What asks whoever leads for something, again and again, and tells whether it is done."""
        outcome = ""

        def hear(said: str, _value: Any) -> None:
            nonlocal outcome
            outcome = said

        def is_done() -> bool:
            nonlocal outcome
            leader = self.leader()
            if outcome not in ("done", "waits") and leader is not None:
                outcome = "waits"
                ask(leader, hear)
            return outcome == "done"

        return is_done

    def _check_majority(self, random: Random) -> None:
        """As many as a shard can do without stay away: the others elect somebody, and commit."""
        newest = self._newest
        staying = self._majority(random, newest)
        if not staying:
            return
        for host in self.hosts.values():
            if host.id not in staying:
                self._stop(host, random.choice((0.0, 1.0)))
        self._start_all(sorted(staying))
        probed = self._asking(_probe)
        # A change that was under way may make it another majority.
        self._await("INV26 a majority is enough", lambda: probed() or self._changes_from(newest))
        self.invariants.happened["a majority was enough"] += probed()

    def _majority(self, random: Random, newest: Membership) -> set[int]:
        """A smallest majority, and the observers; nobody where that cannot do, or where all are needed.

        Who is away may be the only one that knows of a membership change, or that holds what a witness knows of.
        """
        quorum = {*newest.voters, *newest.witnesses}
        dispensable = sorted(newest.witnesses or quorum)
        away = random.sample(dispensable, min((len(quorum) - 1) // 2, len(dispensable)))
        staying = frozenset(quorum).difference(away)
        informed = all(self._knows(self.hosts[replica], newest) for replica in staying)
        settled = informed and not newest.joint and not self._changes_from(newest)
        ranges = [self.hosts[replica].raft.config.election_range for replica in staying]
        settled &= all(end - begin > 1 for begin, end in ranges)  # or all may campaign at once, for ever
        return {*staying, *newest.observers} if away and settled else set()

    def _knows(self, host: SimulatedHost, newest: Membership) -> bool:
        """Whether it knows, for good, that this is the membership."""
        storage = host.storage
        durable = max(storage.hard_state.commit, storage.snapshot.index)
        return max(durable, host.raft.log.committed if host.up else 0) >= newest.change_id

    def _changes_from(self, membership: Membership) -> bool:
        """Whether the membership is another one, or may become one."""
        applied = max(host.raft.log.applied for host in self.hosts.values())
        logs = ((host.raft.log if host.up else host.storage) for host in self.hosts.values())
        return self._newest != membership or any(
            run.kind(at) == EntryKind.CONFIG_CHANGE
            for log in logs
            for run in log.runs(max(log.first_index, applied + 1), log.last_index + 1, _ALL)
            for at in range(run.first, run.last + 1)
        )

    def _check_operator(self, random: Random) -> None:
        """A shard that is well does what its operator asks for: a change of the membership, and of the leader."""
        newest = self._newest

        spare = 0

        def change(leader: SimulatedHost, answer: Answer) -> None:
            nonlocal spare
            members = leader.raft.membership
            if members.observers:
                one = Change(ChangeType.REMOVE, min(members.observers))
            else:
                if not spare or spare in members.removed:
                    spare = self._add(max(self.hosts) + 1, State.OBSERVER).id
                one = Change(ChangeType.ADD_OBSERVER, spare, address(spare))
            wanted = ConfigChange((one,), Transition.AUTO, members.change_id)
            leader.submit("change", wanted.encode(), PATIENCE, answer)

        def transfer(leader: SimulatedHost, answer: Answer) -> None:
            successors = sorted(set(leader.raft.membership.voters) - {leader.id})
            leader.transfer(random.choice(successors), PATIENCE, answer)

        self._insist("V11 a change is made", change)
        self._await(_CONVERGES, self._has_converged)
        if len(newest.voters) > 1:
            self._insist("V11 a transfer is made", transfer)

    def _leading(self) -> SimulatedHost:
        leader = self.leader()
        assert leader is not None, "it has just converged"
        return leader

    def _check_states(self) -> None:
        """All state machines have been given the same."""
        states = {host.id: host.state() for host in self._members()}
        known = [state for state in states.values() if state is not None]
        if any(state != known[0] for state in known):
            raise Violation("V6 state machines agree", f"{states}")

    def _may_retire(self, replica: int) -> bool:
        """A removed replica is still needed until all members know that it is removed: it may know more than they."""
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

    def _retire(self) -> None:
        """A removed replica is stopped by its operator: without a vote it would ask for ever."""
        for host in self.hosts.values():
            leads = host.up and host.raft.state is State.LEADER
            if host.up and not leads and self._may_retire(host.id):
                self._stop(host, 1.0)

    def _finish_joint_change(self) -> None:
        """Whoever entered a joint membership explicitly leaves it at last."""
        leader = self.leader()
        if leader is None:
            return
        membership, log = leader.raft.membership, leader.raft.log
        idle = leader.raft.pending_change_index <= log.applied and not leader.raft.transfer.target
        if membership.joint and not membership.auto_leave and idle:
            leave = ConfigChange(change_id=membership.change_id)
            leader.submit("change", leave.encode(), PATIENCE, _ignore)

    @property
    def _newest(self) -> Membership:
        return self.invariants.newest or self._first

    def _members(self) -> list[SimulatedHost]:
        newest = self._newest
        return [self.hosts[replica] for replica in sorted(newest.everybody)]

    def _has_converged(self) -> bool:
        leader = self.leader()
        if leader is None or leader.raft.membership.joint or leader.raft.transfer.target:
            return False
        last = leader.raft.log.last_index
        members = self._members()
        if {host.id for host in members} != set(leader.raft.progress) or leader not in members:
            return False
        return all(
            host.up
            and host.raft.term == leader.raft.term
            and host.raft.log.last_index == host.raft.log.committed == host.raft.log.applied == last
            and host.raft.membership == leader.raft.membership
            and leader.raft.progress[host.id].match == last
            and (host is leader or leader.raft.progress[host.id].state is ProgressState.REPLICATE)
            and host.idle
            for host in members
        )

    def _check_idle(self) -> None:
        """Whatever waited has been answered or given up: nothing grows with what once happened."""
        if any(True for host in self._members() for _ in _held(host)):
            # Somebody may wait for an answer that was lost long ago: until the deadline.
            self._run_until(self.now + round((PATIENCE + 1) * UNITS_A_SECOND))
        for host in self._members():
            held = ", ".join(_held(host))
            if held:
                raise Violation("V10 what waited is gone when all is idle", f"{host.raft!r}: {held}")

    def _check_quiesce(self) -> None:
        """Left idle, the shard falls silent, and wakes for the next request."""
        quiesce = max((host.raft.quiesce for host in self._members()), key=lambda each: each.threshold)
        self._run_for(quiesce.threshold + 3 * quiesce.settling)
        terms, steps = [host.raft.term for host in self._members()], self.messages
        self._run_for(quiesce.threshold // 2)
        if self.messages != steps or terms != [host.raft.term for host in self._members()]:
            raise Violation("INV27 an idle shard is silent", self._describe())
        self.invariants.happened["a shard fell silent"] += 1
        leader = self._leading()
        last = leader.raft.log.last_index
        leader.submit("propose", PROBE, PATIENCE, _ignore)
        self._run_for(4 * leader.raft.config.election_ticks)
        if not self._has_converged() or leader.raft.log.last_index == last:
            raise Violation("INV27 a silent shard wakes", self._describe())

    def _run_for(self, ticks: int) -> None:
        self._run_until(self.now + ticks * TICK)

    def _describe(self) -> str:
        lines = [f"newest membership: {self.invariants.newest}"]
        for host in self.hosts.values():
            raft = host.raft
            lines.append(f"{'up  ' if host.up else 'down'} {raft!r} elapsed={raft.timers.election_elapsed}")
            if raft.state is State.LEADER:
                lines += [f"       {replica}: {peer}" for replica, peer in raft.progress.items()]
        return "\n".join(lines)

    def story(self, lines: int = 120) -> str:
        """The newest part of what happened, a line each."""
        marks = {
            "!": "", ">": "", "x": "lost: ", "^": "starts: ", "v": "stops: ", "*": "change: ", "?": "client: ",
        }  # fmt: skip
        newest = list(self.trace)[-lines:]
        return "\n".join(f"{time:6} {marks[mark]}{what}" for time, mark, what in newest)


PROBE: Final = b"probe"
"""A command of no consequence, proposed when all is well again."""


def _probe(leader: SimulatedHost, answer: Answer) -> None:
    leader.submit("propose", PROBE, PATIENCE, answer)


def _ignore(_outcome: str, _value: Any) -> None:
    pass


_ROLES: Final = {
    ChangeType.ADD_VOTER: State.FOLLOWER,
    ChangeType.ADD_OBSERVER: State.OBSERVER,
    ChangeType.ADD_WITNESS: State.WITNESS,
}


def _held(host: SimulatedHost) -> Iterable[str]:
    raft = host.raft
    yield from host.leftovers()
    if len(raft.reads):
        yield f"{len(raft.reads)} reads"
    if raft.uncommitted_bytes:
        yield f"{raft.uncommitted_bytes} uncommitted bytes"
    for replica, peer in raft.progress.items():
        if peer.inflight:
            yield f"the window of {replica}"


def _first_members(plan: Plan) -> Membership:
    numbers = iter(range(1, plan.voters + plan.observers + plan.witnesses + 1))
    roles = [[next(numbers) for _ in range(size)] for size in (plan.voters, plan.observers, plan.witnesses)]
    voters, observers, witnesses = ({replica: address(replica) for replica in role} for role in roles)
    return Membership(voters, observers, witnesses)


def address(replica: int) -> str:
    """Of the host of a replica."""
    return f"host-{replica}:1"


def _choose_change(random: Random, membership: Membership, known: Iterable[int]) -> ConfigChange:
    """Some change that is allowed, as a rule; some are not, and must be refused."""
    fresh = (replica for replica in range(1, _MOST_REPLICAS + 1) if replica not in known)
    count = random.choice((1, 1, 1, 2, 3))
    changes = [_choose_one(random, membership, fresh) for _ in range(count)]
    change_id = membership.change_id
    if membership.joint and not membership.auto_leave:
        return ConfigChange(change_id=change_id)
    unique = {one.replica: one for one in changes if one is not None}
    transition = random.choice(tuple(Transition)) if random.random() < 0.4 else Transition.AUTO
    return ConfigChange(tuple(unique.values()), transition, change_id)


def _choose_one(random: Random, membership: Membership, fresh: Iterable[int]) -> Change | None:
    members, voters = sorted(membership.everybody), sorted(membership.voters)
    observers = sorted(membership.observers)
    kind = random.choice(("add", "add", "observe", "witness", "promote", "demote", "remove", "remove"))
    if kind in ("add", "observe", "witness"):
        replica = next(iter(fresh), None)
        if replica is None:
            return None
        host = replica if random.random() < 0.9 else random.choice(members)  # which is taken
        types = {
            "add": ChangeType.ADD_VOTER,
            "observe": ChangeType.ADD_OBSERVER,
            "witness": ChangeType.ADD_WITNESS,
        }
        return Change(types[kind], replica, address(host))
    if kind == "promote" and observers:
        replica = random.choice(observers)
        return Change(ChangeType.ADD_VOTER, replica, address(replica))
    if kind == "demote":
        replica = random.choice(voters)
        return Change(ChangeType.ADD_OBSERVER, replica, address(replica))
    return Change(ChangeType.REMOVE, random.choice(members))
