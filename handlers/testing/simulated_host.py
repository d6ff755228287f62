"""A host in a simulation: what the simulation calls, what it may call in return, and its disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.log import Storage
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership
from drakkar.handlers.testing.answers import Answer
from drakkar.handlers.testing.invariants import Invariants
from drakkar.handlers.testing.plan import TICK, Plan, Weather

__all__ = ["Environment", "SimulatedDisk", "SimulatedHost"]


class Environment(Protocol):
    """What a simulated host may use of its simulation."""

    plan: Plan
    random: Random
    weather: Weather
    invariants: Invariants

    @property
    def first_members(self) -> Membership:
        """The membership of the shard at the start."""
        ...

    def after(self, delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function `delay` units of time from now."""

    def later(self, host: "SimulatedHost", delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function `delay` units of time from now, unless the host crashes before; later if it is frozen."""

    def send(self, host: "SimulatedHost", messages: Iterable[Message]) -> None:
        """Send messages from a host."""

    def turned(self, host: "SimulatedHost") -> None:
        """Check the invariants after a turn of a host."""

    def crash_for(self, host: "SimulatedHost", kept: float, time: int) -> None:
        """Stop a host, and start it again `time` units later. See `SimulatedDisk.crash` for `kept`."""


@dataclass(slots=True)
class PlannedCrash:
    """A crash in the middle of a coming write."""

    writes: int
    """The number of the write, counted from now: 1 is the next."""
    where: str
    """One of `plan.WHERE_IT_CRASHES`."""
    time: int
    """How long the host is down, in units of time."""


class SimulatedDisk:
    """The disk of one host. All waiting writes are done together, in order; they take some time until they are durable."""

    def __init__(self, simulation: Environment, host: "SimulatedHost") -> None:
        self._simulation = simulation
        self._host = host
        self.slowness = 1
        """The factor by which writes take longer."""
        self.planned_crash: PlannedCrash | None = None
        self._waiting: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._writing: list[tuple[Callable[[], None], Callable[[], None]]] = []

    def write(self, keep: Callable[[], None], done: Callable[[], None]) -> None:
        """Call `keep()` when the write is durable, and then `done()`. Neither is called if the host crashes first."""
        self._waiting.append((keep, done))
        if not self._writing:
            self._begin()

    def _begin(self) -> None:
        self._writing, self._waiting = self._waiting, []
        simulation = self._simulation
        duration = simulation.random.randint(1, simulation.weather.disk) * self.slowness
        simulation.later(self._host, duration, self._end)

    def _end(self) -> None:
        if self.planned_crash is not None:
            self.planned_crash.writes -= 1
            if not self.planned_crash.writes:
                self._crash_in_write(self.planned_crash)
                return
        written, self._writing = self._writing, []
        for keep, _ in written:
            keep()
        for _, done in written:
            done()
        if self._waiting and not self._writing:
            self._begin()

    def _crash_in_write(self, crash: PlannedCrash) -> None:
        self._simulation.invariants.happened[f"a crash in a write: {crash.where}"] += 1
        kept = {"nothing is kept": 0.0, "a part is kept": 0.5}.get(crash.where, 1.0)
        if crash.where in ("nothing is sent", "a part is sent"):
            self._host.sends_left = (
                0 if crash.where == "nothing is sent" else self._simulation.random.randint(1, 3)
            )
            written, self._writing = self._writing, []
            for keep, _ in written:
                keep()
            for _, done in written:
                done()
            kept = 0.0  # the writes that `done` started are lost
        self._simulation.crash_for(self._host, kept, crash.time)

    def crash(self, kept: float) -> None:
        """Keep the current write as a whole (1.0), not at all (0.0), or any part of it. `done` is not called."""
        count = len(self._writing)
        through = round(kept * count) if kept in (0.0, 1.0) else self._simulation.random.randint(0, count)
        for keep, _ in self._writing[:through]:
            keep()
        self._writing, self._waiting, self.planned_crash = [], [], None

    @property
    def idle(self) -> bool:
        """Whether no write is in progress."""
        return not self._writing


class SimulatedHost(ABC):
    """One replica and its surroundings. It acts only when it is called, and passes the effects to its simulation."""

    raft: Raft
    """The core since the last start."""

    def __init__(self, simulation: Environment, replica: int) -> None:
        self.simulation = simulation
        self.id = replica
        self.up = False
        self.life = 0
        """How many starts and stops there were: what was due in an older life does not happen."""
        self.frozen_until = 0
        """The process is paused until that moment, in units of time."""
        self.tick_every = TICK
        self.apply_slowness = 1
        """The factor by which the state machine takes longer."""
        self.disk = SimulatedDisk(simulation, self)
        self.held: list[Message] = []
        """Received messages that are not handled yet. The host gets all of them in one turn."""
        self.ticks = 0
        """Ticks of its own clock since the simulation began."""
        self.sends_left: int | None = None
        """During a crash: how many messages are still sent."""

    @property
    @abstractmethod
    def storage(self) -> Storage:
        """The durable log, also readable while the host is down."""

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress that takes time."""
        return self.disk.idle

    @abstractmethod
    def start(self) -> None:
        """Start from what is durable."""

    @abstractmethod
    def stop(self) -> None:
        """Crash. Open requests are answered with "unknown"."""

    @abstractmethod
    def receive(self, messages: list[Message]) -> None:
        """Handle messages that arrived, and reports of the host's transport and clock, in one turn."""

    @abstractmethod
    def submit(self, kind: str, content: Any, seconds: float, answer: Answer) -> None:
        """Send a request: "propose" a command, "change" the membership, or "read". It times out after `seconds`.

        `answer` is called once; see `Answer`.
        """

    @abstractmethod
    def transfer(self, target: int, seconds: float, answer: Answer) -> None:
        """Request another leader. See `submit`; a transfer that is "refused" may still happen."""

    @abstractmethod
    def snapshot(self, overhead: int) -> None:
        """Take a snapshot and compact the log up to `overhead` entries before it, if the host can."""

    @abstractmethod
    def request_snapshot(self) -> None:
        """Ask the leader for a snapshot, if that is possible now."""

    def may_come_twice(self, message: Message) -> bool:
        """Whether the network may duplicate a message. Not a proposal: a copy of it would be a second proposal."""
        return message.type is not MessageType.PROPOSE

    def state(self) -> Any:
        """Return the state of the state machine, which must be equal on all replicas; None if the replica has none."""
        return None

    def leftovers(self) -> Iterable[str]:
        """Name what is still held in an idle shard. A correct host holds nothing."""
        return ()
