"""Elections (thesis §3.4), asking first (§9.6), and who may be elected (§3.6.1)."""

from typing import TYPE_CHECKING

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import quorum, replication
from drakkar.handlers.raft.quorum import Vote
from drakkar.handlers.raft.state import State

if TYPE_CHECKING:
    from drakkar.handlers.raft.raft import Raft

__all__ = ["campaign", "count_pre_vote", "count_vote", "grant_pre_vote", "grant_vote"]


def campaign(raft: "Raft", _message: Message) -> None:
    """Try to become leader: ask first, unless a leader asked us to (thesis §9.6, §3.10).

    Not while a committed membership change waits to be applied: the quorum that we would count may be too small to
    meet that of the new membership, and two leaders of one term would be possible.
    """
    if not raft.promotable or raft.log.unapplied_change():
        return
    if raft.config.pre_vote and not raft.is_transfer_target:
        _ask_first(raft)
    else:
        _ask_for_votes(raft)


def _ask_first(raft: "Raft") -> None:
    raft.become_pre_candidate()
    raft.votes[raft.id] = True
    if quorum.joint_tally(raft.electorate, raft.votes) is Vote.WON:
        _ask_for_votes(raft)
        return
    _ask_voters(raft, MessageType.REQUEST_PRE_VOTE, raft.term + 1)


def _ask_for_votes(raft: "Raft") -> None:
    raft.become_candidate()
    raft.votes[raft.id] = True
    if quorum.joint_tally(raft.electorate, raft.votes) is Vote.WON:
        _lead(raft)
        return
    _ask_voters(raft, MessageType.REQUEST_VOTE, raft.term)


def _ask_voters(raft: "Raft", request: MessageType, term: int) -> None:
    """Also tell how far we know the log committed: who refuses us may need to know (raft-rs' commit by vote)."""
    for voter in raft.voters:
        if voter == raft.id:
            continue
        raft.send(
            Message(
                request,
                to=voter,
                term=term,
                log_index=raft.log.last_index,
                log_term=raft.log.last_term,
                commit=raft.log.committed,
                hint=raft.id if raft.is_transfer_target and request is MessageType.REQUEST_VOTE else 0,
                hint_high=raft.log.term(raft.log.committed),
                payload=raft.priority or None,
            )
        )


def grant_vote(raft: "Raft", ask: Message) -> None:
    """Grant the vote, unless it is taken, or a leader is known, or the asker's log is behind ours.

    Thesis §3.4: one vote a term, first come, first served. §3.6.1: a log that may lack a committed entry must not
    win. Observers and witnesses answer like anyone: each may have become a voter without knowing it yet.
    """
    # The same candidate may ask twice, since our first reply may be lost. Answering it alike is no second vote.
    free = raft.vote == ask.sender or (not raft.vote and not raft.leader_id)
    granted = free and _deserves(raft, ask)
    if granted:
        raft.vote = ask.sender
        raft.election_elapsed = 0
    _answer(raft, ask, MessageType.REQUEST_VOTE_RESP, granted=granted, term=raft.term)


def grant_pre_vote(raft: "Raft", ask: Message) -> None:
    """Say whether the vote would be granted. Changes nothing here, and promises nothing (thesis §9.6)."""
    granted = ask.term > raft.term and _deserves(raft, ask)
    term = ask.term if granted else raft.term
    _answer(raft, ask, MessageType.REQUEST_PRE_VOTE_RESP, granted=granted, term=term)


def _deserves(raft: "Raft", ask: Message) -> bool:
    """Thesis §3.6.1; and among equal logs the preferred replica first (raft-rs' priority)."""
    if not raft.log.is_up_to_date(ask.log_term, ask.log_index):
        return False
    priority = ask.payload if type(ask.payload) is int else 0
    return ask.log_index > raft.log.last_index or raft.priority <= priority


def _answer(raft: "Raft", ask: Message, type_: MessageType, *, granted: bool, term: int) -> None:
    """A refusal tells what we know to be committed, and takes in what the asker knows."""
    if granted:
        raft.reply(ask, type_, term=term)
        return
    known = raft.log.committed
    raft.reply(ask, type_, term=term, reject=True, commit=known, hint_high=raft.log.term(known))
    learn_commit(raft, ask)


def learn_commit(raft: "Raft", message: Message) -> None:
    """raft-rs' commit by vote: an entry that is committed elsewhere, and that we hold too, is committed here.

    So a replica that may not campaign, because a membership change is not applied yet, learns that it may from
    one that cannot win.
    """
    index, term = message.commit, message.hint_high
    if (
        raft.state is State.LEADER
        or not term
        or index <= raft.log.committed
        or not raft.log.matches(index, term)
    ):
        return
    raft.log.commit_to(index)
    campaigning = raft.state in (State.PRE_CANDIDATE, State.CANDIDATE)
    if campaigning and raft.log.unapplied_change():
        raft.become_follower(raft.term, 0)


def count_pre_vote(raft: "Raft", answer: Message) -> None:
    """Count an answer of this round: a grant names the term that we asked for."""
    if not answer.reject and answer.term != raft.term + 1:
        return
    outcome = _count(raft, answer)
    if outcome is Vote.WON:
        _ask_for_votes(raft)
    elif outcome is Vote.LOST:
        raft.become_follower(raft.term, 0)


def count_vote(raft: "Raft", answer: Message) -> None:
    """Count a vote; a majority makes a leader (thesis §3.4)."""
    outcome = _count(raft, answer)
    if outcome is Vote.WON:
        _lead(raft)
    elif outcome is Vote.LOST:
        raft.become_follower(raft.term, 0)


def _count(raft: "Raft", answer: Message) -> Vote:
    """Each voter's first answer counts, and only once. What was learnt from it may end the campaign."""
    raft.votes.setdefault(answer.sender, not answer.reject)
    campaign_state = raft.state
    if answer.reject:
        learn_commit(raft, answer)
    if raft.state is not campaign_state:
        return Vote.PENDING
    return quorum.joint_tally(raft.electorate, raft.votes)


def _lead(raft: "Raft") -> None:
    raft.become_leader()
    replication.broadcast(raft)
