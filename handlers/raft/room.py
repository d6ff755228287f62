"""A full disk: what a replica does whose host has no room for entries. The thesis says nothing about it.

A full disk is not a failed one. The host judges it before a message is stepped, and says so by DISK_FULL and DISK_ROOM. Until
there is room again, a replica takes in no entries, so that none is lost that it acknowledged. All else goes on:

    a follower   drops new entries before they reach its log, and answers LOG_FULL in place of an accept; it commits what it
                 holds, votes, answers heartbeats and takes snapshots, which may be what frees its log
    its leader   sends it nothing but one probe in an election timeout (`Progress.full`); the first accept ends that
    a leader     refuses proposals, serves reads, and asks its peers by an empty append, at once and then once in an election
                 timeout; it hands over to the first voter that accepts and holds all of its log; where none does, it stays
    a voter      waits three times as long before it campaigns, so that those that have room come first; where these cannot
                 win, since their logs are shorter or they are down, it campaigns all the same. It obeys TIMEOUT_NOW at once

The host keeps a reserve for what must be written all the same: terms and votes, the empty entry that begins a term, and a
leader's entry that leaves a joint membership. So a shard without any room still elects a leader, and serves reads.
"""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import sending, transfer
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries, Run

__all__ = [
    "CAMPAIGN_TIMEOUTS",
    "accept",
    "admitted",
    "ask_peers",
    "campaign_ticks",
    "hand_over",
    "note_full",
    "note_full_as_leader",
    "note_room",
]

CAMPAIGN_TIMEOUTS: Final = 3
"""How many times its timeout a voter without room waits before it campaigns: one with room has then had its first try, and
a second one after a split vote."""

# -- what the host says --------------------------------------------------------------------------------------------


def note_full(raft: RaftCore, _event: Message) -> None:
    """The host has no room for more entries."""
    raft.room.full = True


def note_full_as_leader(raft: RaftCore, event: Message) -> None:
    """A leader that can log nothing is of no use to clients, so it asks its peers at once which of them has room."""
    note_full(raft, event)
    sending.broadcast(raft)


def note_room(raft: RaftCore, _event: Message) -> None:
    """The host has room again. A leader takes proposals at once; a follower is sent what it lacks with the next probe."""
    raft.room.full = False


# -- a follower without room ---------------------------------------------------------------------------------------


def admitted(raft: RaftCore, entries: Entries) -> Entries:
    """The part of a leader's entries that this replica may take in; the entry before them is known to agree.

    Without room, those that are here already and, right behind them, the empty entry that begins a term.
    """
    first_new = raft.log.conflict(entries) if raft.room.full else 0
    if not first_new:
        return entries
    end = first_new + any(_begins_term(raft, run, first_new) for run in entries.runs)
    kept = Entries(run.slice(run.first, end) for run in entries.runs if run.first < end)
    raft.room.dropped += len(entries) - len(kept)
    return kept


def _begins_term(raft: RaftCore, run: Run, index: int) -> bool:
    if not run.first <= index <= run.last:
        return False
    return raft.log.term(index - 1) < run.term and not run.payloads[index - run.first]


def accept(raft: RaftCore, message: Message, index: int) -> None:
    """Acknowledge the leader's log up to `index`; without room, say so in the same answer."""
    type_ = MessageType.LOG_FULL if raft.room.full else MessageType.REPLICATE_RESP
    raft.reply(message, type_, log_index=index, commit=raft.log.committed)


# -- a voter without room ------------------------------------------------------------------------------------------


def campaign_ticks(raft: RaftCore) -> int:
    """After how many ticks without a leader this voter campaigns: later without room, but not never."""
    return raft.timers.randomized_timeout * (CAMPAIGN_TIMEOUTS if raft.room.full else 1)


# -- a leader ------------------------------------------------------------------------------------------------------


def hand_over(raft: RaftCore, replica: int) -> None:
    """A leader without room hands over to the first voter that shows, by an accept, that it has room and the whole log."""
    peer = raft.progress[replica]
    fit = raft.membership.is_voter(replica) and not peer.full and peer.match == raft.log.last_index
    if raft.room.full and fit and not raft.transfer.target:
        transfer.start(raft, replica)


def ask_peers(raft: RaftCore) -> None:
    """Once in an election timeout, ask the peers without room whether they have some now; without room here, ask all."""
    for replica in raft.peers:
        peer = raft.progress[replica]
        if peer.full:
            peer.retry()
            sending.send_at_once(raft, replica)
        elif raft.room.full:
            sending.send(raft, replica)
