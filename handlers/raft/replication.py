"""Replication: proposals, the leader's appends, the followers' answers, and what is committed (thesis §3.5, §3.6)."""

from typing import TYPE_CHECKING, Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import (
    limits,
    membership,
    quorum,
    reads,
    snapshot,
    transfer,
)
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.progress import Progress, ProgressState
from drakkar.handlers.raft.ready import Dropped, Refusal
from drakkar.handlers.raft.state import State
from drakkar.handlers.table import SWALLOW

if TYPE_CHECKING:
    from drakkar.handlers.raft.raft import Raft

__all__ = [
    "announce_commit",
    "append",
    "append_as_follower",
    "beat",
    "broadcast",
    "commit",
    "commit_and_announce",
    "count_ack",
    "count_beat",
    "follow_beat",
    "follow_beat_as_follower",
    "forward_proposal",
    "groups_agree",
    "hear_refusal",
    "log_proposal",
    "lose_peer",
    "refuse_proposal",
]

_CHANGE: Final = bytes([EntryKind.CONFIG_CHANGE])

# -- proposals ---------------------------------------------------------------------------------------------------


def forward_proposal(raft: "Raft", ask: Message) -> None:
    """A proposal goes to the leader, if one is known (thesis §6.2); else whoever asked is told."""
    if not raft.leader_id:
        _drop(raft, ask, Refusal.NO_LEADER)
    elif raft.config.disable_proposal_forwarding:
        _drop(raft, ask, Refusal.FORWARDING_DISABLED)
    elif ask.sender not in (0, raft.id):
        # Sent on once already: the sender's view of the leader is out of date, and ours may lead back to it.
        _drop(raft, ask, Refusal.NO_LEADER)
    else:
        raft.send(Message(MessageType.PROPOSE, to=raft.leader_id, entries=ask.entries))


def refuse_proposal(raft: "Raft", ask: Message) -> None:
    """Nobody can take proposals while an election is going on."""
    _drop(raft, ask, Refusal.CAMPAIGNING)


def log_proposal(raft: "Raft", ask: Message) -> None:
    """The leader appends the proposal to its log, and sends it out at once (thesis §3.5, §10.2.1)."""
    entries = Entries.of(ask.entries)
    if not entries:
        return
    refusal = _reason_to_refuse(raft, entries)
    if refusal is not None:
        _drop(raft, ask, refusal)
        return
    runs = _without_surplus_changes(raft, ask, entries)
    raft.uncommitted_bytes += sum(run.payload_bytes for run in runs)
    raft.append_entries(runs)
    broadcast(raft)


def _reason_to_refuse(raft: "Raft", entries: Entries) -> Refusal | None:
    if not raft.membership.is_voter(raft.id):
        return Refusal.NOT_A_MEMBER
    if raft.transfer_target:
        return Refusal.TRANSFERRING
    if limits.too_many_uncommitted(raft, entries.payload_bytes):
        return Refusal.TOO_MANY_UNCOMMITTED
    return None


def _without_surplus_changes(raft: "Raft", ask: Message, entries: Entries) -> list[Run]:
    """Thesis §4.1: one membership change at a time. One too many becomes an empty entry, and is reported."""
    runs, first = [], raft.log.last_index + 1
    for run in entries.runs:
        runs.append(_checked(raft, ask, run, first) if _CHANGE in run.kinds else run)
        first += len(run)
    return runs


def _checked(raft: "Raft", ask: Message, run: Run, first: int) -> Run:
    """The run as it may be logged from index `first` on."""
    kinds, payloads = bytearray(run.kinds), list(run.payloads)
    for at, kind in enumerate(run.kinds):
        if kind != EntryKind.CONFIG_CHANGE:
            continue
        refusal = membership.reason_to_refuse(raft, payloads[at])
        if refusal is None:
            raft.pending_change_index = first + at
            continue
        key = run.key + at if run.origin else 0
        lost = Run(0, 0, [payloads[at]], _CHANGE, run.origin, key)
        _drop(raft, Message(ask.type, sender=ask.sender, entries=Entries([lost])), refusal)
        kinds[at], payloads[at] = EntryKind.NO_OP, b""
    return Run(0, 0, payloads, bytes(kinds), run.origin, run.key)


def _drop(raft: "Raft", ask: Message, because: Refusal) -> None:
    """Tell whoever asked that the proposal surely has no effect: this host, or the one that sent it on."""
    for run in Entries.of(ask.entries).runs:
        if ask.sender in (0, raft.id):
            entries = Entries([run])
            raft.drop(Dropped(MessageType.PROPOSE, because, run.origin, run.key, len(run), entries))
        else:
            raft.send(
                Message(
                    MessageType.PROPOSE,
                    to=ask.sender,
                    reject=True,
                    hint=run.origin,
                    hint_high=run.key,
                    log_index=len(run),
                    payload=because.name,
                )
            )


def hear_refusal(raft: "Raft", message: Message) -> bool | None:
    """A guard: the leader did not take a proposal that we sent on, so whoever asked us is told."""
    if message.type is not MessageType.PROPOSE or not message.reject:
        return None
    because = Refusal.named(message.payload)
    raft.drop(Dropped(MessageType.PROPOSE, because, message.hint, message.hint_high, message.log_index))
    return SWALLOW


# -- the leader sends ----------------------------------------------------------------------------------------------


def broadcast(raft: "Raft") -> None:
    """Send every peer what it lacks; to one that lacks nothing, the commit index."""
    for peer in raft.peers:
        send(raft, peer)


def send(raft: "Raft", replica: int, *, even_empty: bool = True) -> None:
    """Send one peer what it lacks, now or, where appends are batched, when the host asks for work."""
    if raft.config.batch_append:
        raft.append_due(replica, even_empty=even_empty)
    else:
        send_now(raft, replica, even_empty=even_empty)


def send_now(raft: "Raft", replica: int, *, even_empty: bool = True) -> bool:
    """Send one peer the entries from `next` on, up to the size limit; True if a message went out.

    Where they, or the term before them, are compacted away, a snapshot goes instead; nothing but a snapshot goes to
    a peer that asked for one.
    """
    peer = raft.progress.get(replica)
    if peer is None or raft.state is not State.LEADER or peer.paused:
        return False
    if peer.requested_snapshot:
        return snapshot.send_requested(raft, replica, peer)
    previous_term = _term_before(raft, peer)
    if previous_term is None:
        return snapshot.send(raft, replica, peer)
    entries = raft.log.entries(peer.next, _end_for(raft, replica), raft.config.max_message_bytes)
    if not entries and not even_empty:
        return False
    _send_append(raft, replica, peer, previous_term, entries)
    return True


def _end_for(raft: "Raft", replica: int) -> int:
    """Behind the last entry that the peer may know: a witness less than others."""
    known = membership.kept_by_voters(raft) if raft.membership.is_witness(replica) else raft.log.last_index
    return known + 1


def _feed_witnesses(raft: "Raft") -> None:
    """They are waiting for entries to become durable elsewhere."""
    if raft.membership.witnesses or raft.membership.outgoing_witnesses:
        for peer in raft.peers:
            if raft.membership.is_witness(peer):
                send(raft, peer, even_empty=False)


def _term_before(raft: "Raft", peer: Progress) -> int | None:
    """The term of the entry before the first that the peer needs; None where it is compacted away."""
    previous = peer.next - 1
    term = raft.log.term(previous)
    return None if previous < raft.log.first_index - 1 or (previous and not term) else term


def _send_append(raft: "Raft", replica: int, peer: Progress, previous_term: int, entries: Entries) -> None:
    previous = peer.next - 1
    size = entries.size
    if raft.membership.is_witness(replica):
        entries = Entries(run.without_content() for run in entries.runs)
    raft.send(
        Message(
            MessageType.REPLICATE,
            to=replica,
            log_index=previous,
            log_term=previous_term,
            commit=raft.log.committed,
            entries=entries,
        )
    )
    peer.sent(len(entries), size)
    peer.sent_commit = max(peer.sent_commit, raft.log.committed)


def _send_all(raft: "Raft", replica: int) -> None:
    """Fill the peer's window."""
    if raft.config.batch_append:
        raft.append_due(replica, even_empty=False)
        return
    while send_now(raft, replica, even_empty=False):
        pass


# -- the follower answers ------------------------------------------------------------------------------------------


def append(raft: "Raft", message: Message) -> None:
    """Take in what agrees with our log up to the entry before it; else say where to try next (thesis §3.5)."""
    if not _well_formed(raft, message):
        return
    raft.heard_leader(message.sender)
    log = raft.log
    if raft.requested_snapshot:
        snapshot.repeat_request(raft)
        return
    if message.log_index < log.committed:
        # An old copy: all of it up to the commit index surely is here already, and nothing is cut off.
        _accept(raft, message, log.committed)
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


def append_as_follower(raft: "Raft", message: Message) -> None:
    """A candidate that hears from the leader of its own term has lost (thesis §3.4)."""
    raft.become_follower(message.term, message.sender)
    append(raft, message)


def _take_in(raft: "Raft", message: Message) -> None:
    entries = Entries.of(message.entries)
    last = message.log_index + len(entries)
    conflict = raft.log.conflict(entries)
    if conflict:
        # Only a real conflict cuts the log: a late copy with fewer entries must not drop what was acknowledged.
        raft.log.replace_from(conflict, entries)
    # Our entries behind `last` were not compared with the leader's, so they may not be committed by this.
    raft.log.commit_to(min(message.commit, last))
    _accept(raft, message, last)


def _accept(raft: "Raft", message: Message, index: int) -> None:
    raft.reply(message, MessageType.REPLICATE_RESP, log_index=index, commit=raft.log.committed)


def _well_formed(raft: "Raft", message: Message) -> bool:
    """Guaranteed from here on: indexes follow without a gap, and terms never fall."""
    index, term = message.log_index, message.log_term
    entries = Entries.of(message.entries)
    for run in entries.runs:
        if run.first != index + 1 or run.term < max(term, 1):
            raft.fault("entries that do not follow one another")
            return False
        index, term = run.last, run.term
    return True


def follow_beat(raft: "Raft", beat: Message) -> None:
    """The leader is alive. Its commit index is clipped to what it knows us to hold, so all of it is committed."""
    raft.heard_leader(beat.sender)
    raft.log.commit_to(beat.commit)
    if raft.requested_snapshot:
        snapshot.repeat_request(raft)
        return
    raft.reply(
        beat,
        MessageType.HEARTBEAT_RESP,
        hint=beat.hint,
        hint_high=beat.hint_high,
        log_index=beat.log_index,
        commit=raft.log.committed,
    )


def follow_beat_as_follower(raft: "Raft", beat: Message) -> None:
    """A candidate that hears from the leader of its own term has lost (thesis §3.4)."""
    raft.become_follower(beat.term, beat.sender)
    follow_beat(raft, beat)


# -- the leader counts ---------------------------------------------------------------------------------------------


def count_ack(raft: "Raft", ack: Message) -> None:
    """Learn how far a peer's log agrees with ours (thesis §3.5), and commit what a majority holds (§3.6.2)."""
    peer = raft.progress[ack.sender]
    if ack.sender == raft.id or ack.log_index > raft.log.last_index:
        raft.fault("acknowledged what was never sent")
        return
    peer.active = True
    if ack.reject and ack.hint_high:
        snapshot.note_request(raft, ack, peer)
        return
    peer.asked(0)
    if ack.reject:
        _step_back(raft, ack, peer)
    else:
        _step_forward(raft, ack, peer)


def _step_back(raft: "Raft", ack: Message, peer: Progress) -> None:
    """The logs part before `ack.log_index`. Both sides search by term, so each term costs one probe at most."""
    hint = ack.hint
    if ack.log_term:
        hint, _ = raft.log.last_not_after(hint, ack.log_term)
    if not peer.rejected(ack.log_index, hint):
        return
    if peer.state is ProgressState.REPLICATE:
        peer.become_probe()
    send(raft, ack.sender)


def _step_forward(raft: "Raft", ack: Message, peer: Progress) -> None:
    was_paused = peer.paused
    probed = peer.state is ProgressState.PROBE and ack.log_index == peer.match
    if not peer.accepted(ack.log_index) and not probed:
        return
    if peer.state is ProgressState.PROBE:
        peer.become_replicate()
    elif peer.state is ProgressState.SNAPSHOT and peer.match + 1 >= raft.log.first_index:
        # It has caught up to where the log can take over, by this snapshot or by an earlier one.
        peer.become_replicate()
    commit_and_announce(raft)
    if was_paused or peer.lacks_commit(raft.log.committed):
        send(raft, ack.sender, even_empty=peer.lacks_commit(raft.log.committed))
    _send_all(raft, ack.sender)
    transfer.hand_over_when_caught_up(raft, ack.sender)
    if raft.pending_change_index > raft.log.applied:
        _feed_witnesses(raft)


def count_own(raft: "Raft") -> None:
    """The leader's own copy counts once it is durable (thesis §10.2.1)."""
    own = raft.progress.get(raft.id)
    if own is not None and own.accepted(raft.log.stable):
        commit_and_announce(raft)
    _feed_witnesses(raft)


def commit(raft: "Raft") -> bool:
    """Thesis §3.6.2: what a majority holds is committed, if it is of this term; and all before it with it."""
    if raft.config.group_commit:
        index = quorum.group_committed(raft.electorate, raft.match_of, raft.group_of)
    else:
        index = quorum.joint_committed(raft.electorate, raft.match_of)
    # By counting, only an entry of this term: an older one may be on a majority, and be replaced yet (figure 3.7).
    if index > raft.log.last_index or raft.log.term(index) != raft.term:
        return False
    return raft.log.commit_to(index)


def groups_agree(raft: "Raft") -> bool:
    """Whether there are two groups in each half of the electorate, and both hold all that is committed (raft-rs)."""
    held = quorum.group_committed(raft.electorate, raft.match_of, raft.group_of)
    return quorum.spans_groups(raft.electorate, raft.group_of) and held >= raft.log.committed


def commit_and_announce(raft: "Raft") -> None:
    """Something was learnt of a replica, so that more may be on a majority than was known."""
    if commit(raft):
        announce_commit(raft)


def announce_commit(raft: "Raft") -> None:
    """Tell the peers, and answer the reads that waited for the first commit of this term (thesis §6.4)."""
    reads.answer_postponed(raft)
    if not raft.config.skip_commit_broadcast or raft.pending_change_index > raft.log.applied:
        broadcast(raft)


# -- heartbeats and lost peers -------------------------------------------------------------------------------------


def beat(raft: "Raft", _message: Message) -> None:
    """Tell all peers that this term has a leader (thesis §3.4); repeat the newest read that is not confirmed."""
    send_beats(raft, raft.reads.newest)


def send_beats(raft: "Raft", context: tuple[int, int]) -> None:
    """A heartbeat carries no more commit index than the peer is known to hold, so that it may rely on it.

    It also carries the tick at which it left, which is how the leader's lease is measured.
    """
    for replica in raft.peers:
        peer = raft.progress[replica]
        hint, hint_high = (0, 0) if replica in raft.membership.observers else context
        raft.send(
            Message(
                MessageType.HEARTBEAT,
                to=replica,
                commit=min(peer.match, raft.log.committed),
                hint=hint,
                hint_high=hint_high,
                log_index=raft.ticks if raft.config.read_mode == "lease" else 0,
            )
        )


def count_beat(raft: "Raft", answer: Message) -> None:
    """The peer is there: go on sending to it, and count its confirmation of a read.

    A full window gets one empty append, so that the loss of all of its messages cannot stall the peer for ever.
    """
    peer = raft.progress[answer.sender]
    peer.heard()
    reads.note_lease(raft, answer)
    if peer.state is ProgressState.REPLICATE and peer.inflight.full:
        _send_empty(raft, answer.sender, peer)
    elif peer.match < raft.log.last_index or peer.state is ProgressState.PROBE:
        send(raft, answer.sender)
    if answer.hint or answer.hint_high:
        reads.count_confirmation(raft, answer)


def _send_empty(raft: "Raft", replica: int, peer: Progress) -> None:
    """Its answer shows what was lost. Without the term before it, it would show nothing."""
    previous_term = _term_before(raft, peer)
    if previous_term is None:
        snapshot.send(raft, replica, peer)
    else:
        _send_append(raft, replica, peer, previous_term, Entries())


def lose_peer(raft: "Raft", report: Message) -> None:
    """The connection failed: what was sent ahead may be lost, so probe before sending more."""
    raft.progress[report.sender].unreachable()
