"""Directories of simulated hosts: which host a disk makes of a machine, and what peers are told of that.

    a host's directory ──► its home, and a run that counts its starts ──► Introduction ──► with each message that leaves
                                                                                          │
    Raft.meet, on each change ◄── the run, compared with the newest that was heard ◄──────┘

Real hosts introduce themselves once for each connection. A simulated message carries the introduction of its sender
as it was when the message left, so that what an older life has sent stays on its way, and is told from what
the next one sends.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from drakkar.handlers.messages import Message
from drakkar.handlers.raft.lives import Life, Lives, Meeting
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.testing.membership_changes import address
from drakkar.handlers.testing.plan import Plan

__all__ = ["COPIED", "Directories", "Directory", "Introduction"]

COPIED: Final = "a restored copy was refused"


@dataclass(slots=True)
class Directory:
    """What the disk of a host says of the host itself, beside the replica's log."""

    home: int
    """The number of the host that this directory makes of its machine."""
    runs: int = 0
    """How often a host was started with it."""
    copied: bool = False
    """Whether it was put in place of a newer one."""
    heard: dict[int, int] = field(default_factory=dict)
    """The newest run that this host has heard of each other one, by home."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a host says of itself and of its replica before the messages of the replica."""

    life: Life
    run: int
    copied: bool
    """Known to the simulation alone: an old message of an earlier run, and one of a copy, look alike."""
    forged: bool = False
    """Known to the simulation alone: a stranger speaks."""


@dataclass(slots=True)
class _Met:
    """What a replica has heard of another one last, and what it made of that."""

    introduction: Introduction
    version: int
    meeting: Meeting | None
    """None: the host did not let it in."""


class Resident(Protocol):
    """A host, as far as its directory concerns it."""

    id: int
    raft: Raft
    life: int
    directory: Directory

    @property
    def lives_told(self) -> Lives:
        """What it says of the life of its replica: only what is durable."""
        ...

    def meet(self, replica: int, life: Life, term: int) -> Meeting:
        """Introduce a replica to that of this host."""
        ...


class Shard(Protocol):
    """What directories use of the simulation."""

    plan: Plan
    invariants: Any

    def note(self, mark: str, what: Any) -> None:
        """Write a line into the trace."""


class Directories:
    """The directories of one simulated shard, and what hosts were told of one another. Nothing, unless the plan has homes."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._made = 0
        self._places: dict[int, str] = {}
        """The addresses of hosts that were started for a membership change, as it names them, by replica."""
        self._own: dict[int, tuple[Raft, Lives, Introduction]] = {}
        self._met: dict[int, tuple[int, dict[int, _Met]]] = {}

    def make(self) -> Directory:
        """Return the directory of a new host. Its home is 0 if the plan has no homes."""
        self._made += 1
        return Directory(1000 + self._made if self._shard.plan.homes else 0)

    def place(self, replica: int, address: str) -> None:
        """Say at which address the host of a replica is: it may be that of one which was removed meanwhile."""
        self._places[replica] = address

    # -- who sends ------------------------------------------------------------------------------------------------

    def introduction(self, host: Resident) -> Introduction | None:
        """Return what a host says of itself now; None if the plan has no homes."""
        if not self._shard.plan.homes:
            return None
        raft, lives = host.raft, host.lives_told
        known = self._own.get(host.id)
        if known is None or known[0] is not raft or known[1] is not lives:
            self._shard.invariants.identity.told(host, lives)
            directory = host.directory
            certified = self._shard.plan.certified
            where = self._places.get(host.id) or address(host.id)
            kinds = raft.handlers.kinds
            life = Life(lives.founding, directory.home, lives.standing, where, certified, kinds)
            self._own[host.id] = known = raft, lives, Introduction(life, directory.runs, directory.copied)
        return known[2]

    # -- who hears ------------------------------------------------------------------------------------------------

    def admits(
        self, host: Resident, message: Message, said: Introduction, before: Callable[[], None]
    ) -> Meeting | None:
        """Return what becomes of a message, None if the host of its sender is refused.

        `before` is called first if the replica must meet its sender (again): it has to handle all earlier messages.
        """
        life, raft = host.life, host.raft
        met = self._met_in(host)
        known = met.get(message.sender)
        if (
            known is None
            or known.introduction is not said
            or known.meeting is not Meeting.WELCOME
            or known.version != raft.lives.version
        ):
            before()
            if host.life != life:
                return None  # it has stopped
            meeting = self._meet(host, message, said)
            met[message.sender] = known = _Met(said, raft.lives.version, meeting)
        return known.meeting

    def _met_in(self, host: Resident) -> dict[int, _Met]:
        """Return what a host has heard since its last start."""
        life, met = self._met.get(host.id, (0, {}))
        if life != host.life:
            met = {}
            self._met[host.id] = host.life, met
        return met

    def _meet(self, host: Resident, message: Message, said: Introduction) -> Meeting | None:
        heard, home = host.directory.heard, said.life.home
        if said.copied and said.run <= heard.get(home, 0):
            self._shard.invariants.happened[COPIED] += 1
            return None
        heard[home] = max(heard.get(home, 0), said.run)
        meeting = host.meet(message.sender, said.life, message.term if message.type.traits.stamped else 0)
        if meeting is not Meeting.WELCOME:
            self._shard.invariants.happened[f"a meeting was refused: {meeting.name}"] += 1
            self._shard.note("#", f"{host.id} meets {message.sender}: {meeting.name}, {said.life}")
        return meeting
