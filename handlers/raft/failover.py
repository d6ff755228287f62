"""Quick failover: a replica is told that the process of its leader is surely gone. The thesis waits for a timeout.

    LEADER_GONE ─► the leader is forgotten, so this replica grants votes again
               └─► a voter asks for pre-votes: the first in place at once, each other one a step after the one before
                     no answer ─► again, a step later: others were not told yet, and protect their leader
                     it grants another's pre-vote ─► it waits for longer than an election takes; of two that ask, one stops
                     it grants a vote, campaigns, or hears a leader ─► over: the election timer counts again

The host has evidence: its connection was lost and the next one refused, or the leader's host has begun another run.
Silence is none. Should the evidence be wrong all the same, it does no harm: those that were not told do not answer,
those that were ask before they begin a new term, also where `pre_vote` is off, and the next word of the leader restores
it. Leases are kept in any case.
"""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.failover_state import Failover

__all__ = ["ATTEMPTS", "ask_if_due", "forget_leader", "give_way", "leader_gone", "postpone"]

ATTEMPTS: Final = 15
"""How often a voter asks, a step apart. That takes longer than an election timeout, after which a voter that was never
told protects its leader no more."""


def forget_leader(raft: RaftCore, event: Message) -> None:
    """Observers and witnesses never campaign, but grant their votes to another from now on."""
    _forget(raft, event.sender)


def leader_gone(raft: RaftCore, event: Message) -> None:
    """A voter forgets its leader, and campaigns soon. Of another peer that is gone there is nothing to forget."""
    if not _forget(raft, event.sender) or not raft.promotable:
        return
    place = _place(raft, event.sender)
    begin = max(raft.timers.ticks, raft.timers.no_votes_before)  # a lease that was confirmed is kept
    raft.failover = Failover(ATTEMPTS, begin + _wait(raft, place), place, event.sender)
    ask_if_due(raft)


def _forget(raft: RaftCore, gone: int) -> bool:
    """True if this replica followed the one that is gone. One that sleeps wakes up: no leader will wake it."""
    if not gone or gone != raft.leader_id:
        return False
    if raft.quiesce.note_activity():
        raft.wake()
    raft.leader_id = 0
    return True


# -- who is first --------------------------------------------------------------------------------------------------


def _step(raft: RaftCore) -> int:
    """Ticks between two voters that ask, and between two attempts of one: more than a round trip and a flush take.

    The election timeout is chosen to be much longer than these, so a step is a part of it.
    """
    return max(1, raft.config.election_ticks // 10)


def _wait(raft: RaftCore, place: int) -> int:
    """Ticks until the voter in this place asks. The present tick may be over at once, so it does not count."""
    return place * _step(raft) + (1 if place else 0)


def _place(raft: RaftCore, gone: int) -> int:
    """How many voters ask before this one.

    How far the logs of others reach is not known here; but a voter that knows that its own log lags would be refused, and
    asks behind all others.
    """
    order = _order(raft, gone)
    place = order.index(raft.id)
    return place + len(order) if _lags(raft) else place


def _order(raft: RaftCore, gone: int) -> list[int]:
    """The voters in the order in which they ask, which all compute alike from the membership.

    The shard's number says who is first, so that the shards that one host led are spread over the others.
    """
    voters = [voter for voter in raft.voters if voter != gone and raft.membership.is_voter(voter)]
    first = raft.config.shard_id % len(voters)
    return voters[first:] + voters[:first]


def _lags(raft: RaftCore) -> bool:
    """Whether this replica lacks an entry of its leader's term, or one that is known to be committed, or its state."""
    log = raft.log
    return log.last_term < raft.term or log.last_index < raft.heard.vouched or raft.requested_snapshot > 0


# -- the campaign --------------------------------------------------------------------------------------------------


def ask_if_due(raft: RaftCore) -> bool:
    """Ask for pre-votes if it is time, and return whether it was. Not without room."""
    plan, timers = raft.failover, raft.timers
    if not plan.attempts or timers.ticks < plan.due or raft.room.full:
        return False
    plan.attempts -= 1
    plan.due = timers.ticks + _step(raft)
    raft.step(Message(MessageType.ELECTION, sender=raft.id, reject=True))
    return True


def postpone(raft: RaftCore) -> None:
    """A pre-vote was granted to another: leave it time to be elected. The election timer, which runs on, bounds that."""
    plan = raft.failover
    if plan.attempts:
        plan.due = raft.timers.ticks + raft.config.election_ticks // 2 + _wait(raft, plan.place)


def give_way(raft: RaftCore, other: int) -> None:
    """Another asks too, and its turn is before this one's: stop, since two that win their pre-votes split the votes."""
    plan = raft.failover
    if plan.attempts and other in _order(raft, plan.gone)[: plan.place]:
        raft.become_follower(raft.term, 0, keep_timer=True)
