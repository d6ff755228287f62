"""Replication: the leader's appends, the followers' answers, and what the leader learns from them (thesis §3.5)."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import commit, divergence, notices, room, sending, snapshot, transfer
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.progress import Progress, ProgressState

__all__ = ["append", "append_as_follower", "on_append_response", "on_log_full", "peer_unreachable"]

# -- the follower --------------------------------------------------------------------------------------------------


def append(raft: RaftCore, message: Message) -> None:
    """Take in what agrees with our log up to the entry before it; else say where to try next (thesis §3.5)."""
    if not _well_formed(raft, message):
        return
    raft.heard_leader(message.sender)
    raft.heard.number = max(raft.heard.number, message.hint)
    log = raft.log
    if raft.requested_snapshot:
        snapshot.repeat_request(raft)
        return
    contradicted = divergence.contradiction(raft, message) if message.log_index <= log.committed else 0
    if contradicted:
        divergence.doubt(raft, message, contradicted)
    elif message.log_index < log.committed:
        # An old copy: all of it up to the commit index is here already, and nothing is cut off.
        room.accept(raft, message, log.committed)
    elif log.matches(message.log_index, message.log_term):
        _take_in(raft, message)
    else:
        hint, term = log.last_not_after(message.log_index, message.log_term)
        raft.reply(
            message,
            MessageType.REPLICATE_RESP,
            reject=True,
            log_index=message.log_index,
            hint=hint,
            log_term=term,
            commit=log.committed,
        )


def append_as_follower(raft: RaftCore, message: Message) -> None:
    """A candidate that hears from the leader of its own term has lost (thesis §3.4)."""
    raft.become_follower(message.term, message.sender)
    append(raft, message)


def _take_in(raft: RaftCore, message: Message) -> None:
    entries = room.admitted(raft, Entries.of(message.entries))
    last = message.log_index + len(entries)
    conflict = raft.log.conflict(entries)
    if conflict:
        # Only a real conflict cuts the log: a late copy with fewer entries must not drop what was acknowledged.
        raft.log.replace_from(conflict, entries)
    raft.heard.matched = max(raft.heard.matched, last)
    # Our entries behind `last` were not compared with the leader's, so they may not be committed by this.
    raft.log.commit_to(min(max(message.commit, raft.heard.vouched), last))
    room.accept(raft, message, last)


def _well_formed(raft: RaftCore, message: Message) -> bool:
    """Guaranteed from here on: indexes follow without a gap, and terms never fall nor pass the leader's."""
    index, term = message.log_index, message.log_term
    entries = Entries.of(message.entries)
    for run in entries.runs:
        if run.first != index + 1 or not max(term, 1) <= run.term <= message.term:
            raft.fault("entries that do not follow one another")
            return False
        index, term = run.last, run.term
    return True


# -- the leader ----------------------------------------------------------------------------------------------------


def on_append_response(raft: RaftCore, answer: Message) -> None:
    """Learn how far a peer's log agrees with ours (thesis §3.5), and commit what a majority holds (§3.6.2)."""
    peer = _answering_peer(raft, answer)
    if peer is None:
        return
    if answer.reject:
        _step_back(raft, answer, peer)
    else:
        _step_forward(raft, answer, peer)
        room.hand_over(raft, answer.sender)


def _answering_peer(raft: RaftCore, answer: Message) -> Progress | None:
    """The sender of an answer, which counts as heard; None for an answer that no correct peer gives."""
    if answer.log_index > raft.log.last_index:
        raft.fault("acknowledged what was never sent")
        return None
    peer = raft.progress[answer.sender]
    peer.note_answer()
    peer.commit = max(peer.commit, answer.commit)
    peer.silent = 0
    peer.asked(0)
    return peer


def _step_back(raft: RaftCore, answer: Message, peer: Progress) -> None:
    """The logs part before `log_index`. Both sides search by term, so each term costs one probe at most."""
    hint = answer.hint
    if answer.log_term:
        hint, _ = raft.log.last_not_after(hint, answer.log_term)
    if not peer.rejected(answer.log_index, hint):
        return
    if peer.state is ProgressState.REPLICATE:
        peer.become_probe()
    sending.send(raft, answer.sender)


def _step_forward(raft: RaftCore, answer: Message, peer: Progress) -> None:
    was_paused = peer.paused
    if answer.log_index >= peer.match:
        peer.full = False
    probed = peer.state is ProgressState.PROBE and answer.log_index == peer.match
    if not peer.accepted(answer.log_index) and not probed:
        return
    if peer.state is ProgressState.PROBE:
        peer.become_replicate()
    elif peer.state is ProgressState.SNAPSHOT and peer.match + 1 >= raft.log.first_index:
        # It has caught up to where the log can take over, by this snapshot or by an earlier one.
        peer.become_replicate()
    commit.advance(raft)
    notices.note_ack(raft, answer.sender, peer)
    owed = commit.tells_commits(raft) and peer.lacks_commit(raft.log.committed)
    if was_paused or owed:
        sending.send(raft, answer.sender, even_empty=owed)
    sending.fill_window(raft, answer.sender)
    _on_news(raft, answer.sender)


def _on_news(raft: RaftCore, replica: int) -> None:
    transfer.hand_over_when_caught_up(raft, replica)
    if raft.pending_change_index > raft.log.applied:
        sending.feed_witnesses(raft)


def on_log_full(raft: RaftCore, answer: Message) -> None:
    """A peer holds the log up to `log_index`, which counts, and has no room for more: it is probed again later (`room`).

    One that names less than the peer is known to hold is an old answer, and changes nothing.
    """
    peer = _answering_peer(raft, answer)
    if peer is None or answer.log_index < peer.match:
        return
    news = peer.accepted(answer.log_index)
    if peer.state is not ProgressState.SNAPSHOT or peer.match + 1 >= raft.log.first_index:
        peer.become_probe()
    peer.ran_full()
    if news:
        commit.advance(raft)
        _on_news(raft, answer.sender)


def peer_unreachable(raft: RaftCore, report: Message) -> None:
    """The connection failed: what was sent ahead may be lost, so probe before sending more."""
    peer = raft.progress[report.sender]
    peer.connection_lost()
    if raft.lanes is None:
        peer.unreachable()
    else:
        peer.lost()
        sending.send(raft, report.sender)
