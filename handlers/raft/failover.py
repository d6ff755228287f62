"""Quick failover: a replica is told that the process of its leader is surely gone. The thesis waits for a timeout.

    LEADER_GONE ─► the leader is forgotten, so that this replica grants votes again
               └─► a voter asks for pre-votes: the first in place at once, each other one a step later than the one before
                     no answer ─► once more a step later: the others may not have been told yet, and protect their leader
                     it grants another's pre-vote ─► it waits longer than an election takes, since that one may win
                     it grants a vote, campaigns itself, or hears a leader ─► it is over, and the election timer counts again

The host has evidence: its connection was lost and the next one refused, or the leader's host has begun another run. Silence is no
evidence. Should it be wrong all the same, no harm is done: those that were not told do not answer, those that were ask before
they begin a new term, also where `pre_vote` is off, and the next word of the leader restores it. Leases are kept in any case.
"""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.failover_state import Failover

__all__ = ["ATTEMPTS", "ask_if_due", "forget_leader", "leader_gone", "postpone"]

ATTEMPTS: Final = 15
"""How often a voter asks, a step apart: for longer than an election timeout, in which a voter that was never told protects its leader."""


def forget_leader(raft: RaftCore, event: Message) -> None:
    """Vote for another from now on: an observer or witness, which never campaigns. The progress of other peers is theirs."""
    _forget(raft, event.sender)


def leader_gone(raft: RaftCore, event: Message) -> None:
    """A voter campaigns soon as well, unless it is another replica that is gone."""
    if not _forget(raft, event.sender) or not raft.promotable:
        return
    place = _place(raft, event.sender)
    begin = max(raft.timers.ticks, raft.timers.no_votes_before)
    raft.failover = Failover(ATTEMPTS, begin + _wait(raft, place), place)
    ask_if_due(raft)


def _forget(raft: RaftCore, gone: int) -> bool:
    """True if the one that is gone was followed here. A shard that sleeps wakes up, since there is nobody to wake it any more."""
    if not gone or gone != raft.leader_id:
        return False
    if raft.quiesce.note_activity():
        raft.wake()
    raft.leader_id = 0
    return True


# -- who is first --------------------------------------------------------------------------------------------------


def _step(raft: RaftCore) -> int:
    """Ticks between two voters that ask, and between two attempts of one: more than a round trip and a flush take.

    An election timeout is chosen to be a good deal longer than these, so it is a part of that.
    """
    return max(1, raft.config.election_ticks // 10)


def _wait(raft: RaftCore, place: int) -> int:
    """Ticks until the voter in this place asks. The present tick is over soon, so it does not count."""
    return place * _step(raft) + (1 if place else 0)


def _place(raft: RaftCore, gone: int) -> int:
    """How many voters ask before this one; each has a place of its own, which all compute alike from the membership.

    The shard's number says who is first, so that the shards that one host led are spread over the others. How far the logs of the
    others reach is not known here. But a voter that knows that its own lags asks behind all others: it would be refused.
    """
    voters = [voter for voter in raft.voters if voter != gone and raft.membership.is_voter(voter)]
    place = (voters.index(raft.id) - raft.config.shard_id) % len(voters)
    return place + len(voters) if _lags(raft) else place


def _lags(raft: RaftCore) -> bool:
    """Whether this replica lacks the first entry of its leader's term, or what that one is known to have committed, or a state."""
    log = raft.log
    return log.last_term < raft.term or log.last_index < raft.heard.vouched or raft.requested_snapshot > 0


# -- the campaign --------------------------------------------------------------------------------------------------


def ask_if_due(raft: RaftCore) -> bool:
    """Ask for pre-votes if it is time; True if this replica did. Never before the lease of its leader is over, or without room."""
    plan, timers = raft.failover, raft.timers
    if not plan.attempts or timers.ticks < plan.due or timers.lease_lasts or raft.room.full:
        return False
    plan.attempts -= 1
    plan.due = timers.ticks + _step(raft)
    raft.step(Message(MessageType.ELECTION, sender=raft.id, reject=True))
    return True


def postpone(raft: RaftCore) -> None:
    """A pre-vote was granted to another: leave it the time to be elected. The election timer runs on, so it cannot stop this replica."""
    plan = raft.failover
    if plan.attempts:
        wait = raft.config.election_ticks // 2 + _wait(raft, plan.place)
        plan.due = max(plan.due, raft.timers.ticks + wait)
