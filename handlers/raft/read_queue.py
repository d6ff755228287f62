"""The reads of one leader that wait for a quorum to confirm that it still leads (thesis §6.4).

A round is named by its newest read. A read of this host is named by its own context, which hosts do not repeat.
A context from another host may come twice, as the network duplicates, and late answers to its first round must
not confirm its second: so the leader gives such reads, and any context that it has seen before, a name of its own.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, TypeAlias

__all__ = ["Context", "PendingRead", "ReadQueue"]

Context: TypeAlias = tuple[int, int]

_NONE: Final[Context] = (0, 0)
_OWN_NAMES: Final = 1 << 63
"""The high part of names that the leader gives; hosts draw theirs below it."""


@dataclass(slots=True)
class PendingRead:
    """A read that waits for a quorum to confirm that its leader still leads."""

    index: int
    context: Context
    requester: int
    """The replica that asked; 0 is this host."""
    confirmed_by: set[int] = field(default_factory=set)


class ReadQueue:
    """The reads of one term's leader, oldest first."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.pending: OrderedDict[Context, PendingRead] = OrderedDict()
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
        self.pending[name] = PendingRead(index, context, requester)
        return name

    def release_through(self, name: Context) -> list[PendingRead]:
        """Take out this read and all before it, each of which is confirmed as well."""
        released = []
        while self.pending:
            oldest, read = self.pending.popitem(last=False)
            released.append(read)
            if oldest == name:
                break
        return released

    def clear(self) -> list[Context]:
        """The term is over; returns the contexts of this host's own reads."""
        waiting = [(read.context, read.requester) for read in self.pending.values()] + self.postponed
        self.pending.clear()
        self.postponed = []
        self.lease_stamps.clear()
        self.lease_revoked = False
        return [context for context, requester in waiting if not requester]
