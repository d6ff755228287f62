"""Elections (thesis §3.4), asking first (§9.6), and who may be elected (§3.6.1)."""

from drakkar.handlers.checks import MAX_TERM
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import failover, notices, sending, settling
from drakkar.handlers.raft.core import BASE_STATES, RaftCore
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.raft.quorum import Vote
from drakkar.handlers.raft.state import State

__all__ = [
    "asked_by_leader",
    "campaign",
    "count_pre_vote",
    "count_vote",
    "forget_leader",
    "grant_pre_vote",
    "grant_pre_vote_and_give_way",
    "grant_vote",
    "step_down",
]


def campaign(raft: RaftCore, event: Message) -> None:
    """Try to become leader: ask first, unless `hint` names the leader that asked for it (thesis §9.6, §3.10).

    With `reject` it asks first though `pre_vote` is off: the timeout is not over, so others may still hear a leader.

    Not while a committed membership change waits to be applied: the quorum that we would count may be too small to
    meet that of the new membership, and two leaders of one term would be possible. Nor while it is not known whether
    one waits, since the log is not loaded; then the next tick tries again. Nor in the last term, behind which there is none.
    """
    if not raft.promotable or _may_have_unapplied_change(raft):
        return
    if raft.term >= MAX_TERM:
        _tell_of_the_end(raft)
        return
    by_order = event.hint != 0
    if (raft.config.pre_vote or event.reject) and not by_order:
        _ask_first(raft)
    else:
        _ask_for_votes(raft, by_order=by_order)


def _tell_of_the_end(raft: RaftCore) -> None:
    if not raft.told_of_last_term:
        raft.told_of_last_term = True
        raft.warn(
            f"cannot campaign: its term, {raft.term}, is the last one, and only a faulty or hostile host can have raised it so "
            "far. Without a leader the shard needs a repair: export it where its log is longest, and import it on its hosts, "
            "where it begins with new terms"
        )


def _may_have_unapplied_change(raft: RaftCore) -> bool:
    try:
        if raft.lives.home:
            # A candidate must know where each voter lives by its log, also by what is not committed.
            raft.log.unapplied_changes(raft.log.last_index)
        return raft.log.unapplied_change()
    except EntriesNotLoaded:
        return True


def _ask_first(raft: RaftCore) -> None:
    raft.become_pre_candidate()
    raft.votes[raft.id] = True
    if settling.tally(raft) is Vote.WON:
        _ask_for_votes(raft)
        return
    _ask_voters(raft, MessageType.REQUEST_PRE_VOTE, raft.term + 1)


def _ask_for_votes(raft: RaftCore, *, by_order: bool = False) -> None:
    raft.become_candidate()
    raft.votes[raft.id] = True
    if settling.tally(raft) is Vote.WON:
        _lead(raft)
        return
    _ask_voters(raft, MessageType.REQUEST_VOTE, raft.term, by_order=by_order)


def _ask_voters(raft: RaftCore, request: MessageType, term: int, *, by_order: bool = False) -> None:
    """Also tell how far we know the log committed: a voter that refuses may need to know (raft-rs' commit by vote)."""
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
                hint=raft.id if by_order else 0,
                hint_high=raft.log.term(raft.log.committed),
                payload=raft.priority or None,
            )
        )


def asked_by_leader(ask: Message) -> bool:
    """Whether a leader itself wants this election (thesis §3.10), so that its lease is no reason against it."""
    return ask.type is MessageType.REQUEST_VOTE and ask.hint == ask.sender != 0


def grant_vote(raft: RaftCore, ask: Message) -> None:
    """Grant the vote, unless it is taken, or a leader is known, or the asker's log is behind ours.

    Thesis §3.4: one vote a term, first come, first served. §3.6.1: a log that may lack a committed entry must not
    win. Observers and witnesses answer like anyone: each may have become a voter without knowing it yet.
    One that may have forgotten its promises grants nothing (`RaftCore.remembers`), nor does one that keeps a lease.
    """
    # The same candidate may ask twice, since our first reply may be lost. Answering it alike is no second vote.
    leased = raft.timers.lease_lasts and not asked_by_leader(ask)
    free = raft.vote == ask.sender or not (raft.vote or raft.leader_id or leased)
    granted = free and raft.remembers and _deserves(raft, ask)
    if granted:
        raft.vote = ask.sender
        raft.timers.election_elapsed = 0
        raft.failover.end()
    _answer(raft, ask, MessageType.REQUEST_VOTE_RESP, granted=granted, term=raft.term)


def grant_pre_vote(raft: RaftCore, ask: Message) -> None:
    """Say whether the vote would be granted. Promises nothing, and changes no term, vote or election timer (thesis §9.6)."""
    _grant_pre_vote(raft, ask)


def grant_pre_vote_and_give_way(raft: RaftCore, ask: Message) -> None:
    """A pre-candidate whose leader is gone does not compete with one whose turn was before its own."""
    if _grant_pre_vote(raft, ask):
        failover.give_way(raft, ask.sender)


def _grant_pre_vote(raft: RaftCore, ask: Message) -> bool:
    """Return whether it was granted.

    One that may not vote speaks in the term of the asker, which would take no answer of an older one: it counts that it is
    there.
    """
    granted = ask.term > raft.term and raft.remembers and _deserves(raft, ask)
    refusing = raft.term if raft.remembers else max(raft.term, ask.term - 1)
    term = ask.term if granted else refusing
    if granted:
        failover.postpone(raft)
    _answer(raft, ask, MessageType.REQUEST_PRE_VOTE_RESP, granted=granted, term=term)
    return granted


def _deserves(raft: RaftCore, ask: Message) -> bool:
    """Thesis §3.6.1; and among equal logs the preferred replica first (raft-rs' priority)."""
    if not raft.log.is_up_to_date(ask.log_term, ask.log_index):
        return False
    priority = ask.payload if type(ask.payload) is int else 0
    return ask.log_index > raft.log.last_index or raft.priority <= priority


def _answer(raft: RaftCore, ask: Message, type_: MessageType, *, granted: bool, term: int) -> None:
    """Each answer tells what we know to be committed; a refusal also takes in what the asker knows.

    raft-rs tells it in refusals alone. But a replica whose vote is granted may need it as much: where the entry that ends
    a joint membership is committed and it does not know, it would wait for ever for votes of the old half.
    """
    known = raft.log.committed
    raft.reply(ask, type_, term=term, reject=not granted, commit=known, hint_high=raft.log.term(known))
    if not granted:
        learn_commit(raft, ask)


def learn_commit(raft: RaftCore, message: Message) -> None:
    """raft-rs' commit by vote: an entry that is committed elsewhere, and that we hold too, is committed here.

    So a replica that may not campaign, because a membership change is not applied yet, learns that it may from one that
    cannot win. And a candidate learns from any voter which membership it has to count by.
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
    if raft.state not in BASE_STATES and _may_have_unapplied_change(raft):
        raft.become_follower(raft.term, 0)


def count_pre_vote(raft: RaftCore, answer: Message) -> None:
    """Count an answer of this round: a grant names the term that we asked for."""
    if not answer.reject and answer.term != raft.term + 1:
        return
    outcome = _count(raft, answer)
    if outcome is Vote.WON:
        _ask_for_votes(raft)
    elif outcome is Vote.LOST:
        raft.become_follower(raft.term, 0)


def count_vote(raft: RaftCore, answer: Message) -> None:
    """Count a vote; a majority makes a leader (thesis §3.4)."""
    outcome = _count(raft, answer)
    if outcome is Vote.WON:
        _lead(raft)
    elif outcome is Vote.LOST:
        raft.become_follower(raft.term, 0)


def _count(raft: RaftCore, answer: Message) -> Vote:
    """Each voter's first answer counts, and only once. What was learnt from it may end the campaign."""
    raft.votes.setdefault(answer.sender, not answer.reject)
    campaign_state = raft.state
    learn_commit(raft, answer)
    if raft.state is not campaign_state:
        return Vote.PENDING
    return settling.tally(raft)


def _lead(raft: RaftCore) -> None:
    raft.become_leader()
    raft.lives.version += 1  # all that were met are judged anew, by a log that holds all that is committed
    settling.settle(raft)
    sending.broadcast(raft)


# -- an end of the leadership, and of what is known of it -----------------------------------------------------------


def step_down(raft: RaftCore, _event: Message) -> None:
    """The host of this leader cannot write: another replica shall lead, in a newer term."""
    notices.tell(raft)
    raft.become_follower(raft.term, 0)


def forget_leader(raft: RaftCore) -> None:
    """Do as if no leader were known; see `Raft.forget_leader`."""
    if raft.state is not State.LEADER and raft.config.read_mode != "lease":
        raft.leader_id = 0
