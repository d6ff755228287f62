"""What the invariants know: all replicas, all disks, and all that ever happened in one simulated shard."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from drakkar.handlers.raft.entries import EntryKind, Run, changes
from drakkar.handlers.raft.lives import decode_settled
from drakkar.handlers.raft.log import Storage
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership
from drakkar.handlers.testing.directories import Directory
from drakkar.handlers.testing.slow_reads import reading

__all__ = ["Former", "History", "LastSeen", "Observed", "Violation", "halves", "homes_in", "is_quorum"]


class Violation(AssertionError):
    """An invariant is broken. `check` is its name, `what` says how."""

    def __init__(self, check: str, what: str) -> None:
        super().__init__(f"{check}: {what}")
        self.check = check
        self.what = what


class Observed(Protocol):
    """A replica, as the checks see it: its core since the last start, and its disk."""

    id: int
    raft: Raft
    up: bool
    directory: Directory

    @property
    def storage(self) -> Storage:
        """The durable log, also readable while the replica is down."""
        ...

    def has_room(self, size: int) -> bool:
        """Return whether so many bytes of entries fit on its disk now."""
        ...


@dataclass(frozen=True, slots=True)
class Former:
    """A disk that a replica once had, as it was when it was emptied or put away."""

    home: int
    storage: Storage


class LastSeen:
    """The state of one replica after its last turn, and what is known of it since its last start."""

    __slots__ = (
        "applied",
        "applying",
        "base",
        "base_homes",
        "changes",
        "commits",
        "committed",
        "elapsed",
        "first",
        "heard",
        "heard_append",
        "homes",
        "last",
        "leading_since",
        "membership",
        "peer_homes",
        "peers",
        "picture",
        "probed",
        "settled",
        "state",
        "term",
        "terms",
        "transfer",
        "transfer_since",
        "vote",
        "vouched",
    )

    def __init__(self, raft: Raft) -> None:
        log = raft.log
        self.state, self.term, self.vote = raft.state, raft.term, raft.vote
        self.committed, self.applied, self.applying = log.committed, log.applied, log.applying
        self.first, self.last = log.first_index, log.last_index
        self.settled = log.committed  # when entries were handed out the last time
        self.membership = raft.membership
        self.picture: tuple[Any, ...] = ()
        # The log as it was handed out: the term before its first entry, then the term of each entry.
        self.base = log.first_index - 1
        self.terms = [log.term(index) for index in range(self.base, log.last_index + 1)]
        with reading(log):
            runs = log.runs(log.first_index, log.last_index + 1)
        self.changes = [entry.index for entry in changes(runs) if entry.kind is EntryKind.CONFIG_CHANGE]
        self.base_homes = raft.membership.homes
        self.homes = [home for run in runs for home in homes_in(run)]
        self.transfer = self.transfer_since = self.leading_since = 0
        self.elapsed = 0  # ticks without a leader, while a tick is handled; else 0
        # When each peer without room was sent something the last two times, in ticks.
        self.probed: dict[int, tuple[int, int]] = {}
        self.heard: dict[int, int] = {}
        # At a leader: the last ticks, oldest first, each with what was committed then.
        self.commits: deque[tuple[int, int]] = deque(maxlen=2 * raft.config.election_ticks + 2)
        self.heard_append = (0, 0)  # a term, and the highest number of an append of its leader
        self.vouched = 0  # the highest index that a leader named in an answer to a read
        self.peers: dict[int, tuple[int, int, ProgressState]] = {}
        self.peer_homes: dict[int, int] = {}  # where each peer lived when its progress was looked at last

    def term_at(self, index: int) -> int:
        """Return the term of an entry that was handed out; 0 if there is none at `index`."""
        at = index - self.base
        return self.terms[at] if 0 <= at < len(self.terms) else 0


class History:
    """What happened so far in one simulated shard."""

    def __init__(self, replicas: dict[int, Any]) -> None:
        """`replicas` are all replicas by id, each an `Observed`. The mapping may grow."""
        self.replicas: dict[int, Observed] = replicas
        self.seen: dict[int, LastSeen] = {}
        self.happened: Counter[str] = Counter()
        """How often each rare event happened."""
        self.leaders: dict[int, int] = {}
        self.former: dict[int, list[Former]] = {}
        """The disks that were emptied or put away, by replica."""
        self.votes: dict[tuple[int, int, int], int] = {}
        """Who was voted for, by replica, the home that it had then, and term."""
        self.sent_term: dict[int, int] = {}
        self.entries: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        self.committed: list[int] = [0]
        """The term of each committed entry, by index."""
        self.committed_in: list[int] = [0]
        """The term of the leader that committed each entry, by index. It never falls."""
        self.memberships: dict[int, Membership] = {}
        self.newest: Membership | None = None
        """The newest membership that is in effect at any replica."""
        self.reads: dict[tuple[int, int, int], int] = {}
        self.asked_to_lead: set[tuple[int, int]] = set()
        """The replicas that a leader told to campaign at once, each with that leader's term."""
        self.proposals: dict[tuple[int, int], int] = {}
        """The index at which each proposal was applied, by origin and key; 0 if it was reported as dropped."""

    def committed_term(self, index: int) -> int:
        """Return the term of a committed entry; 0 if none is committed at `index`."""
        return self.committed[index] if index < len(self.committed) else 0

    def holds(self, replica: int, index: int, term: int) -> bool:
        """Return whether the replica would still have the entry after a crash now."""
        known = self.replicas.get(replica)
        return known is not None and _has(known.storage, index, term)

    def homes_that_hold(self, replica: int, index: int, term: int) -> Iterator[int]:
        """Yield the homes of all disks with the entry that the replica has, or had when it was emptied."""
        known = self.replicas.get(replica)
        if known is not None and _has(known.storage, index, term):
            yield known.directory.home
        for former in self.former.get(replica, ()):
            if _has(former.storage, index, term):
                yield former.home

    def disks(self, index: int) -> dict[int, int]:
        """Return the term that each disk holds at an index."""
        return {id_: known.storage.term(index) for id_, known in self.replicas.items()}

    def has_left(self, replica: int, term: int) -> bool:
        """Return whether a replica has a newer term, whose leader may have replaced its entries."""
        known = self.replicas.get(replica)
        return known is None or known.storage.hard_state.term > term


def _has(storage: Storage, index: int, term: int) -> bool:
    if index < storage.first_index - 1:
        return True
    return storage.term(index) == term


def homes_in(run: Run) -> Iterable[tuple[int, int, int]]:
    """Return index, replica and home of each SETTLED entry of a run."""
    if EntryKind.SETTLED not in run.kinds:
        return ()
    return [
        (run.first + place, *decode_settled(run.payloads[place]))
        for place, kind in enumerate(run.kinds)
        if kind == EntryKind.SETTLED
    ]


def halves(membership: Membership) -> tuple[set[int], set[int]]:
    """Return the voters of both halves; the second is empty unless the membership is joint."""
    return {*membership.voters, *membership.witnesses}, set(membership.outgoing)


def is_quorum(membership: Membership, replicas: set[int]) -> bool:
    """Return whether `replicas` are a quorum. This does not use the core's code, which it is meant to check."""
    return all(2 * len(replicas & half) > len(half) for half in halves(membership) if half)
