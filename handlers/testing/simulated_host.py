"""A host in a simulation: what the simulation calls, what it may call in return, and its disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

from drakkar.handlers.errors import MissingExtension
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.lanes import Lanes
from drakkar.handlers.raft.lives import Life, Lives, Meeting, Standing, founding_id
from drakkar.handlers.raft.log import Storage
from drakkar.handlers.raft.log_memory import DEFAULT_LOG_MEMORY_BYTES, LogMemory
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership
from drakkar.handlers.testing.answers import Answer
from drakkar.handlers.testing.directories import Directories, Directory, Introduction
from drakkar.handlers.testing.invariants import Invariants
from drakkar.handlers.testing.plan import TICK, Plan, Weather
from drakkar.handlers.testing.simulated_lanes import LanesOfHost, SimulatedLanes
from drakkar.handlers.testing.slow_reads import SlowReads

__all__ = ["SHARD", "Environment", "NoticeTimer", "SimulatedDisk", "SimulatedHost"]

SHARD: Final = 1
LOG_MEMORY: Final = (0, 5_000, DEFAULT_LOG_MEMORY_BYTES)
"""Budgets of bytes: for no entry that may be dropped, for some ten, and for all that a simulation ever logs."""


class Environment(Protocol):
    """What a simulated host may use of its simulation."""

    plan: Plan
    random: Random
    weather: Weather
    invariants: Invariants
    lanes: SimulatedLanes
    directories: Directories

    @property
    def first_members(self) -> Membership:
        """The membership of the shard at the start."""
        ...

    def after(self, delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function `delay` units of time from now."""

    def later(self, host: "SimulatedHost", delay: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function `delay` units of time from now, unless the host crashes before; later if it is frozen."""

    def recall(self, message: Message) -> None:
        """Drop what equals a message that was given to `send`, where it still waits at its sender."""

    def send(self, host: "SimulatedHost", messages: Iterable[Message]) -> None:
        """Send messages from a host."""

    def turned(self, host: "SimulatedHost") -> None:
        """Check the invariants after a turn of a host."""

    def end_removed(self, host: "SimulatedHost") -> None:
        """A replica stops that was removed, and that no other needs any more."""

    def lacks(self, host: "SimulatedHost", missing: MissingExtension) -> None:
        """A replica stops, since its log or a snapshot has what its table cannot take."""

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
        self.space: int | None = None
        """The bytes of entries for which there is room, beside the reserve; None: for as many as come."""
        self._waiting: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._writing: list[tuple[Callable[[], None], Callable[[], None]]] = []

    def room(self, size: int) -> bool:
        """Return whether so many bytes of entries fit beside all that was given to `save` before."""
        return self.space is None or size <= self.space

    def take(self, size: int) -> None:
        """Use so many bytes for entries. What must be written though there is no room comes out of the reserve."""
        if self.space is not None:
            self.space = max(0, self.space - size)

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
        if through < count:
            self._host.tear(self._writing[through][0])
        self._writing, self._waiting, self.planned_crash = [], [], None

    @property
    def idle(self) -> bool:
        """Whether no write is in progress."""
        return not self._writing


class NoticeTimer:
    """Has a host step COMMIT_DUE some time after its core asked for that."""

    slowest = TICK
    """The longest time, in units."""

    def __init__(self, simulation: Environment, host: "SimulatedHost", due: Callable[[], None]) -> None:
        """`due` is called when it is time."""
        self._simulation, self._host, self._tell = simulation, host, due
        self._random = Random(f"commit notices {simulation.plan.seed} {host.id} {host.life}")
        self.runs = False
        self._begun = 0

    def set(self, *, untold: bool) -> None:
        """There is something to tell, or nothing any more."""
        if untold is not self.runs:
            self.runs = untold
            self._begun += untold
            if untold:
                self._simulation.later(
                    self._host, self._random.randint(0, self.slowest), self._end, self._begun
                )

    def _end(self, begun: int) -> None:
        if self.runs and begun == self._begun:
            self.runs = False
            self._tell()
            self._simulation.turned(self._host)


class SimulatedHost(ABC):
    """One replica and its surroundings. It acts only when it is called, and passes the effects to its simulation."""

    raft: Raft
    """The core since the last start."""

    def __init__(self, simulation: Environment, replica: int) -> None:
        self.simulation = simulation
        self.id = replica
        self.up = False
        self.directory: Directory = simulation.directories.make()
        self.ended = ""
        """Why the replica has ended for good; empty if it has not."""
        self.life = 0
        """How many starts and stops there were: what was due in an older life does not happen."""
        self.frozen_until = 0
        """The process is paused until that moment, in units of time."""
        self.tick_every = TICK
        self.apply_slowness = 1
        """The factor by which the state machine takes longer."""
        self.disk = SimulatedDisk(simulation, self)
        self.held: list[tuple[Message, Introduction | None]] = []
        """Received messages that are not handled yet. The host gets all of them in one turn."""
        self.ticks = 0
        """Ticks of its own clock since the simulation began."""
        self.sends_left: int | None = None
        """During a crash: how many messages are still sent."""

    @property
    @abstractmethod
    def storage(self) -> Storage:
        """The durable log, also readable while the host is down."""

    def meet(self, replica: int, life: Life, term: int) -> Meeting:
        """Introduce a replica to that of this host, before a message of this term; see `Raft.meet`."""
        return self.raft.meet(replica, life, term)

    @property
    def lives_told(self) -> Lives:
        """What it says of the life of its replica: only what is durable."""
        return self.storage.lives

    def first_lives(self, *, joins: bool) -> Lives:
        """Return what an empty directory says of the replica's life."""
        if not self.directory.home:
            return Lives()
        members = self.simulation.first_members
        founding = b"" if joins else founding_id(SHARD, members.addresses)
        return Lives(founding, Standing.NEWBORN)

    @property
    def is_newborn(self) -> bool:
        """Whether it has no vote, since it began with an empty disk."""
        return bool(self.directory.home) and self.storage.lives.standing is Standing.NEWBORN

    @property
    def knows_its_removal(self) -> bool:
        """Whether this replica knows that it was removed."""
        return self.id in self.raft.membership.removed

    @property
    def is_settled(self) -> bool:
        """Whether its log says that it lives here, as it must in a shard that has recovered."""
        return not self.directory.home or self.storage.lives.standing is Standing.SETTLED

    @abstractmethod
    def empty_disk(self) -> None:
        """Begin with an empty disk, as a new host that is started in the same way. Only while the host is down."""

    @abstractmethod
    def copy_disk(self) -> Callable[[], None]:
        """Return a function that puts a copy of the disk, as it is now, in its place. It may be called while the host is down."""

    def has_room(self, size: int) -> bool:
        """Return whether so many bytes of entries fit on its disk now."""
        return self.disk.room(size)

    def tear(self, keep: Callable[[], None]) -> None:  # noqa: B027  # only some disks can do that
        """Write a part of what `keep` would, so that it is not whole after the crash. By default, nothing of it."""

    def slow_reads(self) -> SlowReads:
        """Return the durable log as the core is to read it in this life."""
        simulation = self.simulation

        def chance() -> float:
            return simulation.weather.slow_reads

        def later(delay: int, function: Callable[[], None]) -> None:
            simulation.invariants.happened["old entries were not loaded"] += 1
            simulation.later(self, delay, function)

        def loaded() -> None:
            self.entries_loaded()
            simulation.turned(self)

        random = Random(f"slow reads {simulation.plan.seed} {self.id} {self.life}")
        return SlowReads(self.storage, random, chance=chance, later=later, loaded=loaded)

    def unsent(self) -> Iterable[Message]:
        """Return the messages that the core has handed out and that wait for a write."""
        return ()

    def lanes(self) -> Lanes | None:
        """Return the lanes to its peers; None if the plan has none."""
        lanes = self.simulation.lanes
        return LanesOfHost(lanes, self) if lanes.capacity else None

    def entries_loaded(self) -> None:
        """Tell the core that old entries were read."""
        self.receive([Message(MessageType.ENTRIES_LOADED, sender=self.id)])

    def log_memory(self) -> LogMemory:
        """Return a budget for the log of one life: none at all if reads may be slow, else small in some lives."""
        plan = self.simulation.plan
        if plan.weather.slow_reads:
            return LogMemory(0)
        random = Random(f"log memory {plan.seed} {self.id} {self.life}")
        return LogMemory(random.choice(LOG_MEMORY))

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
    def receive(self, messages: list[Message], life: Life | None = None) -> None:
        """Handle messages that arrived, and reports of the host's transport and clock, in one turn.

        `life`: what the sender of the first one has said of itself, where it is not welcome.
        """

    @abstractmethod
    def submit(self, kind: str, content: Any, seconds: float, answer: Answer) -> None:
        """Send a request: "propose" a command, "change" the membership, "read", or "ask" a message. It times out after `seconds`.

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
