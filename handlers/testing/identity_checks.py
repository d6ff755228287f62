"""Invariants of identity: what a replica may do whose disk was emptied, and whose word decides.

    a disk that was emptied ──► a new home ──► NEWBORN: votes for none, decides nothing ──► SETTLED: as all others

The checks know which disks were emptied, and what stood on them. They find out where a replica lives from the
entries that were handed out, without the core's code. While fewer than a quorum of the voters were emptied since they
were last settled, all other invariants hold too; `forgets_too_much` says when they were more.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.lives import Lives, Standing
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Ready
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.history import Former, History, LastSeen, Observed, Violation, halves

__all__ = ["IdentityChecks"]

M = MessageType

_VOTES: Final = frozenset({M.REQUEST_VOTE_RESP, M.REQUEST_PRE_VOTE_RESP})
_CAMPAIGNS: Final = frozenset({M.REQUEST_VOTE, M.REQUEST_PRE_VOTE})
_COUNTS: Final = frozenset({State.CANDIDATE, State.LEADER})
_FIRST: Final = 1
"""The index of the entry that stands on the disk of each founder before there is a leader."""


@dataclass(slots=True)
class _Address:
    """Where a log says that a replica lives."""

    home: int | None
    """By what is committed; None: that is not known, 0: it was added, and has lived nowhere yet."""
    coming: int = 0
    """By a newer entry that is not committed; 0 if there is none."""


_Homes: TypeAlias = Callable[[int], Iterable[int]]


class IdentityChecks:
    """The checks of where the replicas of one simulated shard live. Its methods raise `Violation`."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.emptied: dict[int, int] = {}
        """The replicas whose disk was emptied, and which are not settled since. The home of each is the new one."""
        self.first: frozenset[int] = frozenset()
        """The members with which the shard began."""
        self.founders: set[int] = set()
        """The voters among them."""
        self._first_homes: dict[int, int] = {}
        self._standing: dict[int, tuple[int, Standing]] = {}
        self._refused: set[tuple[int, int]] = set()
        """The newborn that have answered a vote request: replica and term."""
        self._settled: list[tuple[int, int, int]] = []
        """Where replicas live by what is committed: index, replica and home."""

    @property
    def _on(self) -> bool:
        return bool(self._first_homes)

    # -- disks ----------------------------------------------------------------------------------------------------

    def started(self, replica: Observed) -> None:
        """A replica has started from its disk."""
        if replica.directory.home:
            self._first_homes.setdefault(replica.id, replica.directory.home)

    def emptying(self, replica: Observed) -> None:
        """The disk of a replica is about to be emptied, or put in the place of an older one."""
        history = self._history
        history.former.setdefault(replica.id, []).append(Former(replica.directory.home, replica.storage))
        history.sent_term.pop(replica.id, None)

    def was_emptied(self, replica: Observed) -> None:
        """The disk of a replica was emptied, and makes it a new home."""
        self.emptied[replica.id] = replica.directory.home
        self._standing.pop(replica.id, None)

    def is_settled(self, replica: int) -> bool:
        """Whether it is committed where a replica lives."""
        return any(settled == replica for _, settled, _ in self._settled)

    def forgets_too_much(self, others: Iterable[int] = ()) -> bool:
        """Whether so many voters were emptied, with these others, that what is committed may be forgotten.

        For n voters that is a quorum of them; or fewer, where a change of the voters is so fresh that few hold it. One that
        never was settled, and holds nothing, is as good as emptied. Most of the founders are too many at any time, since they
        may found the shard again, and do not know who joined it later.
        """
        history = self._history
        membership = history.newest
        if membership is None:
            return True
        lost = {*self.emptied, *others, *filter(self._is_empty, history.replicas)}
        last = len(history.committed) - 1
        if 2 * len(self.founders & lost) > len(self.founders):
            return True
        for half in halves(membership):
            staying = half - lost
            ignorant = {id_ for id_ in staying if not history.holds(id_, last, history.committed[last])}
            if half and (len(staying) < _least(len(half)) or len(ignorant) >= _least(len(half))):
                return True
        return False

    def _is_empty(self, replica: int) -> bool:
        storage = self._history.replicas[replica].storage
        standing = storage.lives.standing
        began = storage.hard_state.term > _FIRST or storage.last_index > _FIRST
        return standing is Standing.NEWBORN or (standing is Standing.FOUNDER and not began)

    # -- what counts ----------------------------------------------------------------------------------------------

    def address(self, seen: LastSeen, replica: int, committed: int) -> _Address:
        """Where a log says that a replica lives, with what is committed up to an index."""
        home = seen.base_homes.get(replica, None if replica in self.first else 0)
        address = _Address(home)
        for index, settled, where in seen.homes:
            if settled == replica:
                if index <= committed:
                    address = _Address(where)
                else:
                    address.coming = where
        return address

    def counts(self, replica: int, home: int, address: _Address) -> bool:
        """Whether the word of a replica with this home decides, by a log that says that it lives at `address`."""
        if not self._on:
            return True
        if address.home is None and home != self._first_homes.get(replica, home):
            return False  # a founder that was emptied may have a past that this log does not know
        if not address.home:
            return address.coming in (0, home)
        return address.home == home and address.coming in (0, home)

    def hold(self, raft: Raft, seen: LastSeen, index: int) -> bool:
        """Whether so many hold an entry durably, or did so before their disk was emptied, that a leader commits it.

        With an entry that settles a replica the replica counts for all that is committed after it.
        """
        steps = [at for at, _, _ in seen.homes if seen.committed < at < index]
        committed = seen.committed
        for at in (*steps, index):
            if not self._is_held(raft, seen, at, committed):
                return False
            committed = at
        return True

    def _is_held(self, raft: Raft, seen: LastSeen, index: int, committed: int) -> bool:
        term = raft.log.term(index)

        def holding(replica: int) -> Iterable[int]:
            return self._history.homes_that_hold(replica, index, term)

        if not self._are_enough(self._deciding(raft, seen), seen, committed, holding, lambda _: True):
            return False
        held = {replica for replica in raft.voters if any(True for _ in holding(replica))}
        return all(2 * len(half & held) > len(half) for half in halves(raft.membership) if half)

    def elect(self, raft: Raft, seen: LastSeen) -> bool:
        """Whether so many have voted for a replica that it leads.

        Where replicas live, one that was added votes when it is settled; the new voters of a joint change, when its end is
        logged. Of an even number half is enough beside one that was added, or that has said that it is newborn.
        """
        votes = {
            (id_, home)
            for (id_, home, term), vote in self._history.votes.items()
            if term == raft.term and vote == raft.id
        }
        votes.add((raft.id, self._history.replicas[raft.id].directory.home))

        def granted(replica: int) -> list[int]:
            return [home for id_, home in votes if id_ == replica]

        def may_vote(replica: int) -> bool:
            if not self._on:
                return True
            return replica not in added and (replica, raft.term) not in self._refused

        added = {replica for replica in raft.voters if self._is_added(seen, replica)}
        return self._are_enough(self._deciding(raft, seen), seen, seen.committed, granted, may_vote)

    def _deciding(self, raft: Raft, seen: LastSeen) -> Iterable[set[int]]:
        incoming, outgoing = halves(raft.membership)
        if self._on and outgoing and not (seen.changes and seen.changes[-1] > raft.log.applied):
            # All that is committed is on a majority of the old voters too, so that they are enough.
            return (outgoing,)
        return (incoming, outgoing)

    def _is_added(self, seen: LastSeen, replica: int) -> bool:
        """Whether a replica has joined, and a log does not say yet where it lives. So it has never voted."""
        address = self.address(seen, replica, seen.committed)
        return self._on and address.home == 0 and not address.coming

    def _are_enough(
        self,
        groups: Iterable[set[int]],
        seen: LastSeen,
        committed: int,
        homes: _Homes,
        may: Callable[[int], bool],
    ) -> bool:
        """Whether replicas decide. `homes` gives the homes, by replica, of all lives that agree.

        Half of them are enough where one of the others may not decide: with any majority they have one in common.
        """
        for half in groups:
            able, agreed = 0, 0
            for replica in half:
                address = self.address(seen, replica, committed)
                able += may(replica) and self.counts(replica, self._home(replica), address)
                agreed += any(self.counts(replica, home, address) for home in homes(replica))
            needed = len(half) // 2 + 1 if able == len(half) else _least(len(half))
            if half and agreed < needed:
                return False
        return True

    def _home(self, replica: int) -> int:
        known = self._history.replicas.get(replica)
        return known.directory.home if known is not None else 0

    # -- what happens ---------------------------------------------------------------------------------------------

    def sent(self, replica: Observed, message: Message) -> None:
        """A replica sends a vote."""
        standing = replica.storage.lives.standing
        if not self._on or standing is not Standing.NEWBORN:
            return
        if message.type is M.REQUEST_VOTE_RESP and message.reject:
            self._refused.add((replica.id, message.term))
        granted = message.type in _VOTES and not message.reject
        if granted or message.type in _CAMPAIGNS:
            raise Violation("INV44 a newborn votes for none", f"{replica.raft!r} sends {message}")

    def told(self, replica: Observed, lives: Lives) -> None:
        """The others are told of a replica's life, from its next message on. A standing only rises, as long as the disk is kept."""
        durable = replica.storage.lives
        if lives.standing > durable.standing or lives.founding not in {b"", durable.founding}:
            raise Violation(
                "INV10 durable before it is told", f"{replica.raft!r} tells of {lives}, on disk is {durable}"
            )

    def committed(self, seen: LastSeen) -> None:
        """A leader has committed something new: note where replicas live by that."""
        if self._on:
            known = self._settled[-1][0] if self._settled else 0
            last = len(self._history.committed) - 1
            self._settled += [each for each in seen.homes if known < each[0] <= last]

    def handed_out(self, raft: Raft, seen: LastSeen, ready: Ready) -> None:
        """A core that counts votes or answers has handed out its log: it and the checks agree on where replicas live."""
        news = ready.entries or ready.snapshot is not None or raft.state is not seen.state
        if not self._on or not news or raft.state not in _COUNTS:
            return
        for replica in raft.membership.everybody:
            address = self.address(seen, replica, 0)
            home = address.coming or address.home or 0
            if (raft.home_of(replica) or 0) != home:
                raise Violation(
                    "INV45 the newest entry says where a replica lives",
                    f"{raft!r}: {replica} at {raft.home_of(replica)}, by its log at {home}",
                )

    def applied(self, raft: Raft) -> None:
        """A replica may have applied where a replica lives. A snapshot's membership is in effect before it is loaded."""
        if not self._on or raft.log.pending_snapshot is not None:
            return
        applied = raft.log.applied
        homes: dict[int, int] = {}
        for index, replica, home in self._settled:
            if index > applied:
                break
            homes[replica] = home
        for replica, home in homes.items():
            if replica in raft.membership.everybody and raft.membership.homes.get(replica, 0) != home:
                raise Violation(
                    "INV46 a home is in effect when it is applied",
                    f"{raft!r}: {raft.membership.homes}, by what it has applied {homes}",
                )

    def turned(self, replica: Observed) -> None:
        """A replica has taken a turn, or its disk has finished a write."""
        lives, home = replica.storage.lives, replica.directory.home
        if not home or self._standing.get(replica.id) == (home, lives.standing):
            return
        self._standing[replica.id] = home, lives.standing
        if lives.standing is Standing.FOUNDER:
            self._check_founder(replica, home)
        elif lives.standing is Standing.SETTLED:
            self._check_settled(replica, home)

    def _check_founder(self, replica: Observed, home: int) -> None:
        """Where something was committed since the founding, none founds again that was emptied since."""
        self._history.happened["a founder was sure"] += 1
        began = len(self._history.committed) - 1 > _FIRST
        if began and home != self._first_homes[replica.id] and not self.forgets_too_much():
            raise Violation("INV47 a shard is founded once", f"{replica.raft!r}, {replica.storage.lives}")

    def _check_settled(self, replica: Observed, home: int) -> None:
        if not any(settled == replica.id and where == home for _, settled, where in self._settled):
            raise Violation("INV48 only what is committed settles a replica", repr(replica.raft))
        if self.emptied.get(replica.id) == home:
            del self.emptied[replica.id]
            self._history.happened["an emptied replica settled again"] += 1


def _least(voters: int) -> int:
    """How many of the voters that count must agree where another one does not count: as many as each quorum must meet."""
    return (voters + 1) // 2
