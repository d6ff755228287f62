"""Time, counted in ticks: when to campaign, to send heartbeats, to check for a quorum (thesis §3.4, §6.2).

A tick is an event like any other. A process that stalls counts no ticks, and does not time out.
"""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import (
    failover,
    founding,
    limits,
    membership,
    notices,
    reach,
    room,
    sending,
    settling,
    transfer,
)
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.log import EntriesNotLoaded

__all__ = ["check_quorum", "tick_leader", "tick_non_voter", "tick_voter"]


def tick_voter(raft: RaftCore, tick: Message) -> None:
    """Without a leader's message for a random time, campaign (thesis §3.4); later without room, sooner if that one is gone.

    Never while a lease lasts that this replica has confirmed. A quiesced tick only counts.
    """
    if not raft.promotable:
        tick_non_voter(raft, tick)
        return
    _count(raft, tick)
    if tick.reject or raft.timers.lease_lasts or failover.ask_if_due(raft):
        return
    if raft.timers.election_elapsed < room.campaign_ticks(raft):
        return
    elapsed, raft.timers.election_elapsed = raft.timers.election_elapsed, 0
    raft.step(Message(MessageType.ELECTION, sender=raft.id))
    if not raft.log.searched:
        # There was no campaign yet: first the log must be searched. Each tick goes on with it.
        raft.timers.election_elapsed = elapsed


def tick_non_voter(raft: RaftCore, tick: Message) -> None:
    """Observers and witnesses never campaign: without a leader they ask, after each timeout, whether they were removed.

    So do voters that do not belong, or not yet, to the membership that they know. The timer runs on: begun anew, it would
    say that a leader was heard, and a witness would refuse its vote.
    """
    _count(raft, tick)
    founding.ask(raft)
    if not tick.reject and raft.timers.election_elapsed % raft.timers.randomized_timeout == 0:
        membership.ask_whether_removed(raft)


def _count(raft: RaftCore, tick: Message) -> None:
    raft.timers.ticks += 1
    raft.timers.election_elapsed += 1
    if not tick.reject:
        limits.report(raft)


def tick_leader(raft: RaftCore, tick: Message) -> None:
    """Heartbeats at their interval; once an election timeout, the question whether a quorum still listens."""
    raft.timers.ticks += 1
    raft.timers.election_elapsed += 1
    if tick.reject:
        return
    limits.observe(raft)
    if raft.timers.election_elapsed >= raft.config.election_ticks:
        raft.timers.election_elapsed = 0
        if raft.check_quorum:
            raft.step(Message(MessageType.CHECK_QUORUM, sender=raft.id))
        elif reach.counts_rounds(raft):
            reach.begin_round(raft)
        if raft.leader_id != raft.id:
            return
        room.ask_peers(raft)
    transfer.tick(raft)
    _heartbeat(raft)
    membership.leave_when_due(raft)
    settling.settle_due(raft)
    for peer in raft.peers:
        raft.progress[peer].tick()


def _heartbeat(raft: RaftCore) -> None:
    raft.timers.heartbeat_elapsed += 1
    if raft.timers.heartbeat_elapsed >= raft.config.heartbeat_ticks:
        raft.timers.heartbeat_elapsed = 0
        raft.step(Message(MessageType.LEADER_HEARTBEAT, sender=raft.id))


def check_quorum(raft: RaftCore, _message: Message) -> None:
    """Thesis §6.2: a leader that does not hear from a quorum within an election timeout steps down.

    So that clients of a leader that was cut off are not kept waiting, and look elsewhere.
    """
    heard = {replica for replica, peer in raft.progress.items() if peer.active or replica == raft.id}
    reach.begin_round(raft)
    if not settling.has_quorum(raft, heard - _waiting_witnesses(raft, heard)):
        notices.tell(raft)
        raft.become_follower(raft.term, 0)


def _waiting_witnesses(raft: RaftCore, heard: set[int]) -> set[int]:
    """The witnesses that cannot help to commit: no voter that stays is heard, and they are told no more than one holds.

    A leader that does not know yet that its own removal is committed may be heard by witnesses alone, since the voters
    that know it follow it no more. It would keep the witnesses from electing one of these voters for ever.
    """
    witnesses = set(filter(raft.membership.is_witness, heard))
    try:
        return witnesses if witnesses and not sending.voters_that_stay(raft) & heard else set()
    except EntriesNotLoaded:
        return set()
