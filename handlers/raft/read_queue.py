"""The reads of one leader that wait for a quorum to confirm that it still leads (thesis §6.4).

Each read begins a round of heartbeats. A peer that answers the heartbeat of a round had heard of no newer
term when it did, so no newer leader had its vote when the round began, nor when any earlier round did. So one
number is kept of each peer, the newest round that it has answered, and what is confirmed is found as the
commit index is: by what a quorum has reached.

Heartbeats and their answers name a round by a context. No answer confirms a read that came after its
heartbeat had left:

1. A name means one round. A read of this host gives its round its own context, unless that was used before.
   All others get a name that the leader makes up: the network may duplicate a follower's READ_INDEX, and late
   answers to the first round must not confirm what has joined the queue since, before the second. The names
   of other terms come with their terms, and end there.
2. An answer that comes twice, or late, finds its round released, or tells what was known: the number of a
   peer never falls.
3. A follower's read is answered with the follower's own context, and so is its copy. Each answer holds by
   itself: its index was noted after the follower had asked. The follower uses each context once, and takes
   the first answer.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = ["Context", "PendingRead", "ReadQueue"]

Context: TypeAlias = tuple[int, int]

_NONE: Final[Context] = (0, 0)
_OWN_NAMES: Final = 1 << 62
"""The high part of names that the leader gives; hosts draw theirs below it."""


@dataclass(slots=True)
class PendingRead:
    """A read that waits for a quorum to confirm that its leader still leads."""

    index: int
    context: Context
    requester: int
    """The replica that asked; 0 is this host."""
    round: int = 0
    """The number of its round."""


class ReadQueue:
    """The reads of one term's leader, oldest first."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.pending: OrderedDict[Context, PendingRead] = OrderedDict()
        """By the names of their rounds."""
        self.rounds = 0
        """How many have begun, so the number of the newest."""
        self.answered: dict[int, int] = {}
        """For each peer, the newest round of which it answered the heartbeat."""
        self.postponed: list[tuple[Context, int]] = []
        """Came before the first commit of the term: what is committed is not known yet (thesis §6.4)."""
        self.lease_stamps: dict[int, int] = {}
        """For each peer, the tick at which the newest heartbeat that it answered had left."""
        self.lease_revoked = False
        """This leader asked another replica to campaign, lease or not, so it must not rely on the lease any more."""
        self._seen: OrderedDict[Context, None] = OrderedDict()
        self._names = 0

    def __len__(self) -> int:
        return len(self.pending) + len(self.postponed)

    @property
    def full(self) -> bool:
        """No more reads are taken."""
        return len(self) >= self.bound

    @property
    def newest(self) -> Context:
        """The name of the newest round, which confirms all before it; (0, 0) is none."""
        return next(reversed(self.pending)) if self.pending else _NONE

    def holds(self, context: Context, requester: int) -> bool:
        """Whether this very read waits already."""
        return any(
            read.context == context and read.requester == requester for read in self.pending.values()
        ) or ((context, requester) in self.postponed)

    def add(self, index: int, context: Context, requester: int) -> Context:
        """Let a read at `index` wait; returns the name of its round."""
        name = context
        if requester or context == _NONE or context in self._seen:
            self._names += 1
            name = (self._names, _OWN_NAMES)
        else:
            self._seen[context] = None
            if len(self._seen) > 4 * self.bound:
                self._seen.popitem(last=False)
        self.rounds += 1
        self.pending[name] = PendingRead(index, context, requester, self.rounds)
        return name

    def note_answer(self, name: Context, replica: int) -> bool:
        """Note that a peer answered the heartbeat of a round; False where no read waits for that round."""
        read = self.pending.get(name)
        if read is None:
            return False
        self.answered[replica] = max(self.answered.get(replica, 0), read.round)
        return True

    def release_through(self, confirmed: int) -> list[PendingRead]:
        """Take out the reads of all rounds up to this one, oldest first."""
        released = []
        while self.pending and next(iter(self.pending.values())).round <= confirmed:
            released.append(self.pending.popitem(last=False)[1])
        return released

    def clear(self) -> list[Context]:
        """The term is over; returns the contexts of this host's own reads."""
        waiting = [(read.context, read.requester) for read in self.pending.values()] + self.postponed
        self.pending.clear()
        self.postponed = []
        self.answered.clear()
        self.lease_stamps.clear()
        self.lease_revoked = False
        return [context for context, requester in waiting if not requester]
