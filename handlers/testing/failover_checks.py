"""Invariants of quick failover: who campaigns early, who forgets its leader, and that leases are kept."""

from collections import Counter
from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import BASE_STATES
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.history import History, Violation

__all__ = ["FailoverChecks"]

M = MessageType

_EARLY: Final = "INV55 a campaign before the timeout has a reason"
_FORGETS: Final = "INV56 a leader is forgotten only on evidence"
_LEASE: Final = "INV57 a lease that was confirmed is kept"


class _Known:
    """What is known of one replica since its start."""

    __slots__ = ("evidence", "lease_until", "may_forget", "message", "standing", "told", "yields_until")

    def __init__(self) -> None:
        self.standing = (0, 0, False)
        """Its leader, its term, and whether it neither led nor campaigned, when it was looked at last."""
        self.evidence: Counter[int] = Counter()
        """How often its host had evidence that one is gone which it was not told yet, by replica."""
        self.told = False
        """It was told that its leader is gone, and has followed none since."""
        self.may_forget = False
        """It may forget its leader now."""
        self.yields_until = 0
        """The tick of its own until which it leaves it to another to be elected."""
        self.lease_until = 0
        """The tick of its own until which it has promised to elect no other."""
        self.message = Message(M.LOCAL_TICK)
        """What it takes in now, or took in last."""


class FailoverChecks:
    """What all replicas were told of the ends of others, and what they have promised."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._known: dict[int, _Known] = {}

    def started(self, replica: int) -> None:
        """A replica has started, and has forgotten all this."""
        self._known[replica] = _Known()

    def evidence(self, replica: int, gone: int) -> None:
        """The host of a replica has evidence, be it mistaken, that the process of another one is gone."""
        self._known[replica].evidence[gone] += 1

    def forgets(self, replica: int) -> None:
        """The operator of a replica has it forget its leader."""
        self._known[replica].may_forget = True

    # -- what a replica hears ---------------------------------------------------------------------------------------

    def stepping(self, raft: Raft, message: Message) -> None:
        """A replica takes in a message."""
        known = self._known[raft.id]
        known.message = message
        known.may_forget = message.type is M.REMOVED
        if message.type is M.LEADER_GONE:
            if not known.evidence[message.sender]:
                raise Violation(_FORGETS, f"{raft!r} is told of {message}")
            known.evidence[message.sender] -= 1
            if message.sender == raft.leader_id:
                known.told = known.may_forget = True
                self._history.happened["a follower was told that its leader is gone"] += 1

    def stepped(self, raft: Raft, message: Message) -> None:
        """It has taken it in."""
        followed = raft.leader_id == message.sender and raft.term == message.term
        if message.type is M.HEARTBEAT and followed and type(message.payload) is int:
            known = self._known[raft.id]
            known.lease_until = max(known.lease_until, raft.timers.ticks + message.payload)

    def look(self, raft: Raft) -> None:
        """A replica may have changed."""
        known = self._known[raft.id]
        standing = raft.leader_id, raft.term, raft.state in BASE_STATES
        if standing == known.standing:
            return
        leader, term, rested = known.standing
        if leader and rested and standing == (0, term, True) and not known.may_forget:
            raise Violation(_FORGETS, f"{raft!r} has forgotten {leader}")
        if raft.leader_id:
            known.told, known.yields_until = False, 0
        known.standing, known.may_forget = standing, False

    # -- what it does -------------------------------------------------------------------------------------------------

    def campaigns(self, raft: Raft, elapsed: int, *, asks: bool) -> None:
        """A replica begins to ask for pre-votes, or else a term, when so many ticks have passed without a leader."""
        self.look(raft)  # it may have forgotten its leader in this very step
        known = self._known[raft.id]
        if (raft.id, raft.term) in self._history.asked_to_lead:
            return
        if raft.timers.ticks < known.lease_until:
            raise Violation(_LEASE, f"{raft!r} campaigns at {raft.timers.ticks}, before {known.lease_until}")
        if elapsed >= raft.config.election_ticks:
            return
        may_ask = known.told and raft.timers.ticks >= known.yields_until
        if not (may_ask if asks else raft.state is State.PRE_CANDIDATE):
            raise Violation(_EARLY, f"{raft!r}, after {elapsed} ticks")
        self._history.happened["a voter asked early, since its leader is gone"] += asks

    def answers(self, raft: Raft, message: Message) -> None:
        """A replica answers a request for its vote or pre-vote."""
        known, ask = self._known[raft.id], self._known[raft.id].message
        if message.reject:
            return
        if known.told and message.type is M.REQUEST_PRE_VOTE_RESP:
            known.yields_until = raft.timers.ticks + raft.config.election_ticks // 2
        if raft.timers.ticks >= known.lease_until:
            return
        by_leader = ask.type is M.REQUEST_VOTE and ask.hint == ask.sender != 0
        seen = self._history.seen[raft.id]
        repeated = message.type is M.REQUEST_VOTE_RESP and (seen.vote, seen.term) == (message.to, raft.term)
        if not by_leader and not repeated:
            raise Violation(_LEASE, f"{raft!r} answers {message} at {raft.timers.ticks}")
