"""The guards: what is settled before the table is asked, for every state alike (thesis §3.3).

After them a handler may assume that the message is for this replica, that an answer comes from a member, and that
the terms agree.
"""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import election, ends, membership
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.state import State
from drakkar.handlers.table import SWALLOW
from drakkar.handlers.traits import Term

__all__ = ["reconcile_terms", "reject_misdelivered", "reject_non_members", "reject_removed_replicas"]


def reject_misdelivered(raft: RaftCore, message: Message) -> bool | None:
    """Swallow a message for another replica, and one that lacks the term it must have: it would skip the rules below.

    Also one from this replica itself: it is not its own peer, and would follow, or answer, itself for ever.
    """
    traits = message.type.traits
    # What a host says to its own replica needs no address; LOG_QUERY has an index in its place.
    if message.to not in (0, raft.id) and not traits.local:
        raft.fault("addressed to another replica")
        return SWALLOW
    if not traits.binding:
        return None
    if not message.term:
        raft.fault("without a term")
        return SWALLOW
    if message.sender == raft.id:
        raft.fault("from this replica to itself")
        return SWALLOW
    return None


def reject_removed_replicas(raft: RaftCore, message: Message) -> bool | None:
    """A removed replica neither leads here, nor is voted for, nor raises our term; the leader lets it know.

    A replica that was cut off when it was removed asks for votes for ever, or leads on without a quorum. And where a
    shard was repaired without some replicas, a majority of the old one may come back, and elect a leader whose term would
    make ours follow. It depends on the sender and not on the type alone, so it is a guard and not a cell.
    """
    traits = message.type.traits
    if not traits.binding or not raft.has_removed(message):
        return None
    if raft.state is State.LEADER and (traits.from_leader or traits.asks_for_vote):
        membership.tell_of_removal(raft, message.sender)
    return SWALLOW


def reject_non_members(raft: RaftCore, message: Message) -> bool | None:
    """Answers of replicas that are no members, or no more, count for nothing.

    A replica that has not learnt its membership yet takes them from any replica: it knows no member. The leader of this
    term may be one that this replica does not know as a member yet, or that was removed in office.
    """
    if not message.type.traits.from_members or not raft.progress or message.sender in raft.progress:
        return None
    if message.sender == raft.leader_id != raft.id:
        return None
    own = message.type is MessageType.LEADER_TRANSFER or message.type >= MessageType.FIRST_FREE
    if own and message.sender in (0, raft.id):
        return None  # its own host may always ask, and so may its timers
    raft.fault("answer from a non-member")
    return SWALLOW


def reconcile_terms(raft: RaftCore, message: Message) -> bool | None:
    """Thesis §3.3: a newer term is adopted, an older one is refused. Here are also the exceptions.

    Types that only tell their sender's term take no part, and so do those of your own: the rules
    that protect a leader (§4.2.3) could not judge them.
    """
    traits = message.type.traits
    if not message.term or message.term == raft.term or traits.term is Term.TOLD:
        return None
    if message.term < raft.term:
        return _refuse_older(raft, message)
    if not traits.binding:
        return None  # its type has no term, so none is adopted
    if traits.asks_for_vote and _in_lease(raft) and not election.asked_by_leader(message):
        return SWALLOW
    if _asks_ahead(message):
        return None
    reached = ends.reachable(raft.term, message.term)
    if reached != message.term:
        raft.fault("a term so near the last one that it is approached in steps")
        raft.become_follower(reached, 0)
        return SWALLOW
    _adopt(raft, message)
    return None


def _in_lease(raft: RaftCore) -> bool:
    """Thesis §4.2.3: a replica that hears a leader regularly does not let others disturb it.

    A leader hears itself, so that it is protected too. One that serves reads by its lease is protected whatever the
    options of this replica are, and also where its process is said to be gone: see `reads.keep_lease`.
    """
    hears_leader = bool(raft.leader_id) and raft.timers.election_elapsed < raft.config.election_ticks
    return raft.timers.lease_lasts or (raft.check_quorum and hears_leader)


def _asks_ahead(message: Message) -> bool:
    """Pre-votes carry the term that would be, not one that is (thesis §9.6). A refusal carries a real one."""
    granted = message.type is MessageType.REQUEST_PRE_VOTE_RESP and not message.reject
    return message.type is MessageType.REQUEST_PRE_VOTE or granted


def _adopt(raft: RaftCore, message: Message) -> None:
    leader = message.sender if message.type.traits.from_leader else 0
    # Dragonboat's rule: a request alone does not put off our own election. A replica with slow ticks would be
    # pushed back by every other candidate and never have its turn. A vote that is granted resets the timer.
    raft.become_follower(message.term, leader, keep_timer=message.type is MessageType.REQUEST_VOTE)


def _refuse_older(raft: RaftCore, message: Message) -> bool:
    if message.type is MessageType.REQUEST_PRE_VOTE:
        # Raises the sender's term: else an old log of a high term and a new log of a low term block each other.
        raft.reply(message, MessageType.REQUEST_PRE_VOTE_RESP, term=raft.term, reject=True)
    elif message.type is MessageType.REQUEST_VOTE and not (
        raft.promotable and message.sender in raft.progress
    ):
        # One that may campaign tells the newer term in its own vote requests, but only to those it knows as members.
        raft.reply(message, MessageType.REQUEST_VOTE_RESP, reject=True)
    elif message.type.traits.from_leader and (
        raft.check_quorum or raft.config.pre_vote or not raft.promotable
    ):
        # This replica raised its term while it was cut off. Its vote requests are swallowed inside the lease, and it does
        # not listen to the leader. The answer makes the leader step down, and a fresh election follows. A replica that
        # cannot campaign needs it too: it may have its term from a candidate that is gone.
        raft.reply(message, MessageType.NO_OP)
    return SWALLOW
