"""Time, counted in ticks: when to campaign, to send heartbeats, to check for a quorum (thesis §3.4, §6.2).

A tick is an event like any other. A process that stalls counts no ticks, and does not time out.
"""

from typing import TYPE_CHECKING

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import (
    limits,
    membership,
    quorum,
    terms,
    transfer,
)

if TYPE_CHECKING:
    from drakkar.handlers.raft.raft import Raft

__all__ = ["check_quorum", "tick_leader", "tick_onlooker", "tick_voter"]


def tick_voter(raft: "Raft", tick: Message) -> None:
    """Without a leader's message for a random time, campaign (thesis §3.4). A quiesced tick only counts."""
    if not raft.promotable:
        tick_onlooker(raft, tick)
        return
    _count(raft, tick)
    if tick.reject or raft.election_elapsed < raft.randomized_timeout:
        return
    raft.election_elapsed = 0
    raft.step(Message(MessageType.ELECTION, sender=raft.id))


def tick_onlooker(raft: "Raft", tick: Message) -> None:
    """Observers and witnesses never campaign: they ask, each time that long, whether they were removed.

    So do voters that are not, or not yet, of the membership that they know. The timer runs on: begun anew, it would say
    that a leader was heard, and a witness would refuse its vote.
    """
    _count(raft, tick)
    if not tick.reject and raft.election_elapsed % raft.randomized_timeout == 0:
        terms.ask_whether_removed(raft)


def _count(raft: "Raft", tick: Message) -> None:
    raft.ticks += 1
    raft.election_elapsed += 1
    if not tick.reject:
        limits.report(raft)


def tick_leader(raft: "Raft", tick: Message) -> None:
    """Heartbeats at their interval; once an election timeout, the question whether a quorum still listens."""
    raft.ticks += 1
    raft.election_elapsed += 1
    if tick.reject:
        return
    limits.observe(raft)
    if raft.election_elapsed >= raft.config.election_ticks:
        raft.election_elapsed = 0
        if raft.check_quorum:
            raft.step(Message(MessageType.CHECK_QUORUM, sender=raft.id))
        if raft.leader_id != raft.id:
            return
    transfer.tick(raft)
    _beat(raft)
    membership.leave_when_due(raft)
    for peer in raft.peers:
        raft.progress[peer].tick()


def _beat(raft: "Raft") -> None:
    raft.heartbeat_elapsed += 1
    if raft.heartbeat_elapsed >= raft.config.heartbeat_ticks:
        raft.heartbeat_elapsed = 0
        raft.step(Message(MessageType.LEADER_HEARTBEAT, sender=raft.id))


def check_quorum(raft: "Raft", _message: Message) -> None:
    """Thesis §6.2: a leader that does not hear from a quorum within an election timeout steps down.

    So that clients of a leader that was cut off are not kept waiting, and look elsewhere.
    """
    heard = {replica for replica, peer in raft.progress.items() if peer.active or replica == raft.id}
    for replica, peer in raft.progress.items():
        peer.active = replica == raft.id
    if not quorum.has_quorum(raft.electorate, heard - _waiting_witnesses(raft, heard)):
        raft.become_follower(raft.term, 0)


def _waiting_witnesses(raft: "Raft", heard: set[int]) -> set[int]:
    """Those who cannot help to commit, since no voter is heard that stays: they are told no more than one has on disk.

    A leader that does not know yet that its own removal is committed may be heard by witnesses alone: the voters that
    do know it follow it no more. It would hold the witnesses back for ever from electing one of them.
    """
    if membership.voters_that_stay(raft) & heard:
        return set()
    return set(filter(raft.membership.is_witness, heard))
