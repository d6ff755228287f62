"""What a replica of a shard is and remembers: its role, its term and vote, who belongs to it, and its snapshots.

Thesis figures 3.1 and 5.1, and chapter 4.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

__all__ = ["HardState", "Membership", "Snapshot", "State"]


class State(IntEnum):
    """The six states of a replica: what it may do, and so the first key of the handler table."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    """Asks whether it could win, before it disturbs anybody with a new term (thesis §9.6)."""
    CANDIDATE = 2
    LEADER = 3
    OBSERVER = 4
    """Receives the log, never votes or counts (thesis §4.2.1, there a non-voting server)."""
    WITNESS = 5
    """Votes and counts, but keeps no commands: it knows only that entries exist (thesis §11.7.2)."""


@dataclass(frozen=True, slots=True)
class HardState:
    """What a replica must remember across a crash (thesis figure 3.1), plus how far the log was committed."""

    term: int = 0
    vote: int = 0
    """The replica voted for in `term`; 0 for none."""
    commit: int = 0
    """Up to which index the log was known to be committed. A replica that forgets it may campaign among members of long ago,
    since it no longer knows that its last membership change holds."""


_NO_ADDRESSES: Final[Mapping[int, str]] = {}
_NO_HOMES: Final[Mapping[int, int]] = {}


def _ids(members: Collection[int]) -> frozenset[int]:
    return members if isinstance(members, frozenset) else frozenset(members)


@dataclass(frozen=True, slots=True)
class Membership:
    """Who belongs to a shard, and in which role (thesis chapter 4).

    Roles may be given as any collection of replica ids, or as a mapping from ids to addresses.
    `outgoing` is the old set of voters while a joint change is on its way (thesis §4.3).
    """

    voters: Collection[int] = frozenset()
    observers: Collection[int] = frozenset()
    witnesses: Collection[int] = frozenset()
    outgoing: Collection[int] = frozenset()
    """Voters of the old half; empty when no joint change is on its way."""
    outgoing_witnesses: Collection[int] = frozenset()
    """Which of `outgoing` are witnesses, so that the old half is restored in its roles."""
    next_observers: Collection[int] = frozenset()
    """Voters of the old half that become observers on leaving it."""
    auto_leave: bool = False
    """The leader leaves the joint state by itself as soon as it may."""
    removed: Collection[int] = frozenset()
    """Ids that were removed, and are never used again."""
    change_id: int = 0
    """The index of the entry that made this membership; ordered changes must name it."""
    addresses: Mapping[int, str] = field(default_factory=lambda: _NO_ADDRESSES)
    homes: Mapping[int, int] = field(default_factory=lambda: _NO_HOMES)
    """The number of the host on which a replica lives, by the last SETTLED entry that was applied. 0: it was added, and has
    lived nowhere yet. Not listed: that is not known."""

    def __post_init__(self) -> None:
        addresses = dict(self.addresses)
        for role in (
            "voters",
            "observers",
            "witnesses",
            "outgoing",
            "outgoing_witnesses",
            "next_observers",
            "removed",
        ):
            members: Collection[int] = getattr(self, role)
            if isinstance(members, Mapping):
                addresses.update(members)
            object.__setattr__(self, role, _ids(members))
        object.__setattr__(self, "addresses", addresses)

    @property
    def joint(self) -> bool:
        """A joint change is on its way: elections and commits need both halves (thesis §4.3)."""
        return bool(self.outgoing)

    @property
    def electorate(self) -> tuple[frozenset[int], frozenset[int]]:
        """The two sets that must each agree by majority; the second is empty unless the change is joint.

        Witnesses count as voters, observers never do.
        """
        return frozenset(self.voters) | frozenset(self.witnesses), frozenset(self.outgoing)

    @property
    def everybody(self) -> frozenset[int]:
        """All replicas that receive the log."""
        return frozenset().union(self.voters, self.observers, self.witnesses, self.outgoing)

    def is_voter(self, replica: int) -> bool:
        """Whether `replica` may be elected: a voter, of either half, that is no witness."""
        return replica in self.voters or (replica in self.outgoing and not self.is_witness(replica))

    def is_witness(self, replica: int) -> bool:
        """Whether `replica` is to be sent no commands."""
        return replica in self.witnesses or replica in self.outgoing_witnesses

    def state_of(self, replica: int) -> State:
        """The state in which `replica` starts."""
        if self.is_witness(replica):
            return State.WITNESS
        if replica in self.observers:
            return State.OBSERVER
        return State.FOLLOWER


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a state machine up to `index`, and the membership there (thesis §5.1).

    The core reads only the first three and `witness`. `payload` belongs to the host: the name of the file with the
    content or, of a small snapshot, the content itself.
    """

    index: int = 0
    term: int = 0
    membership: Membership = field(default_factory=Membership)
    payload: bytes = b""
    witness: bool = False
    """Has no content, only what a witness needs."""
    size: int = 0
    """Bytes of content, where the host knows it."""

    def __bool__(self) -> bool:
        return self.index > 0

    @property
    def has_content(self) -> bool:
        """There is a state of a state machine to send and to load."""
        return self.index > 0 and not self.witness
