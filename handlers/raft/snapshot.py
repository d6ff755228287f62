"""Snapshots in the core (thesis chapter 5): asked for, installed, and known to have arrived.

A replica may ask its leader for one (raft-rs), where its state machine has lost its state, say. Until it has
one that reaches its last entry it takes in nothing else, and each of its answers repeats the request. The snapshot
drops no entry that it has acknowledged: there is none beyond.
"""

from drakkar.handlers.errors import ProtocolViolation, RequestDropped
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import commit, ends, room, sending, settling, transfer
from drakkar.handlers.raft.confchange import may_become, role_conflict
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.raft.state import Snapshot, State

__all__ = [
    "install",
    "install_as_follower",
    "is_news",
    "learn_of_removal",
    "note_status",
    "on_snapshot_request",
    "recovered",
    "recovered_as_leader",
    "repeat_request",
    "request",
    "taken",
]


def taken(raft: RaftCore, snapshot: Snapshot) -> None:
    """The host took a snapshot: peers that asked for one are sent it."""
    raft.log.snapshot = snapshot
    for peer in raft.peers:
        if raft.progress[peer].requested_snapshot:
            sending.send(raft, peer)


# -- asking for one ------------------------------------------------------------------------------------------------


def request(raft: RaftCore) -> None:
    """Ask the leader for a snapshot. Raises `RequestDropped`, which says why, where that cannot be now."""
    refusal = _reason_not_to_ask(raft)
    if refusal:
        raise RequestDropped(f"replica {raft.id} cannot ask for a snapshot now: {refusal}")
    if not raft.requested_snapshot:
        raft.requested_snapshot = raft.log.last_index
        repeat_request(raft)


def _reason_not_to_ask(raft: RaftCore) -> str:
    if raft.state is State.LEADER:
        return "it leads, so there is no other to ask; transfer the leadership first"
    if not raft.leader_id:
        return "no leader is known; wait for one and ask again"
    if raft.log.pending_snapshot is not None:
        return f"the snapshot of {raft.log.pending_snapshot.index} is not loaded yet; wait for it"
    if raft.log.last_term != raft.term:
        # Whether the leader has the same last entry is not known yet.
        return f"no entry of the leader's term {raft.term} has come yet; wait for one and ask again"
    return ""


def repeat_request(raft: RaftCore) -> None:
    """Ask again, and say what we hold: our last entry is one of this leader's own."""
    raft.send(
        Message(
            MessageType.SNAPSHOT_REQUEST,
            to=raft.leader_id,
            log_index=raft.log.last_index,
            log_term=raft.log.last_term,
            hint=raft.requested_snapshot,
            commit=raft.log.committed,
        )
    )


def on_snapshot_request(raft: RaftCore, ask: Message) -> None:
    """A peer asks for a snapshot up to `hint` or beyond. What it holds counts as if it had accepted it.

    Otherwise the snapshot might have to wait for a commit that waits for this very peer.
    """
    if not ask.hint or max(ask.log_index, ask.hint) > raft.log.last_index:
        raft.fault("asked for a snapshot of what was never sent")
        return
    peer = raft.progress[ask.sender]
    peer.note_answer()
    holds_ours = ask.log_term == raft.term and raft.log.matches(ask.log_index, ask.log_term)
    news = holds_ours and peer.accepted(ask.log_index)
    peer.asked(ask.hint)
    if news:
        commit.advance(raft)
        transfer.hand_over_when_caught_up(raft, ask.sender)
    # It asks in place of an answer to a heartbeat, which would have its lane asked again too.
    peer.busy = False
    sending.send(raft, ask.sender)


# -- taking one in -------------------------------------------------------------------------------------------------


def install(raft: RaftCore, message: Message) -> None:
    """Thesis §5.3: take the leader's snapshot in place of a log that ends before it."""
    snapshot = _sound(raft, message)
    if snapshot is None:
        return
    raft.heard_leader(message.sender)
    if _fits(raft, snapshot):
        _take_in(raft, snapshot)
    # Up to there, which is the snapshot's end if it was taken in, our log agrees with the leader's; behind it may not.
    known = raft.log.committed
    room.accept(raft, message, known)


def install_as_follower(raft: RaftCore, message: Message) -> None:
    """A candidate that hears from the leader of its own term has lost (thesis §3.4)."""
    raft.become_follower(message.term, message.sender)
    install(raft, message)


def learn_of_removal(raft: RaftCore, message: Message) -> None:
    """The shard has removed this replica: take its membership in, as a snapshot without content.

    A leader says so. To a replica that knew it and asked whether the others know it too, any other may say that they do.

    What that leader holds is committed, and is never taken back, also where its term is older than ours. It is not
    followed. A replica that campaigns or leads gives up: it has no shard to do so. One that this replica knows as
    removed is not believed: both may have been removed, each by the other's half of a shard that was repaired.
    """
    snapshot = _sound(raft, message)
    if snapshot is None or raft.has_removed(message):
        return
    if not snapshot.witness or raft.id not in snapshot.membership.removed:
        raft.fault("news of a removal that does not name this replica")
    elif message.log_index:
        raft.heard.removal_confirmed = True
    elif message.term == raft.term and raft.leader_id not in (0, message.sender):
        raft.fault("news of a removal from a second leader of the term")
    elif message.log_index:
        raft.heard.removal_confirmed = True
    elif _fits(raft, snapshot):
        raft.become_follower(max(raft.term, snapshot.term), 0)
        _take_in(raft, snapshot)


def _sound(raft: RaftCore, message: Message) -> Snapshot | None:
    snapshot = message.snapshot
    if not isinstance(snapshot, Snapshot) or not snapshot or not 0 < snapshot.term <= message.term:
        raft.fault("a snapshot without index, or of a term that its leader cannot know")
        return None
    if snapshot.index > ends.NEAR_END:
        raft.fault("a snapshot so near the last index that the log could hardly grow")
        return None
    return snapshot


def _fits(raft: RaftCore, snapshot: Snapshot) -> bool:
    """Whether it is news, and of a shard in which this replica can be what it is."""
    membership = snapshot.membership
    if not is_news(raft, snapshot):
        return False
    # A replica that joins need not be listed: it was added behind the snapshot. A member is, or was removed.
    known = membership.everybody | frozenset(membership.removed)
    joins = raft.id not in raft.membership.everybody
    if not joins and raft.id not in known:
        raft.fault("a snapshot of a shard without this replica")
        return False
    role = membership.state_of(raft.id) if raft.id in membership.everybody else raft.base_state
    if may_become(raft.base_state, role):
        return True
    if joins:
        # It was started in another role than it was added in: it would be sent this for ever, and never take it.
        raise ProtocolViolation(role_conflict(raft.id, raft.base_state, role))
    raft.fault("a snapshot that changes a role as no membership change can")
    return False


def is_news(raft: RaftCore, snapshot: Snapshot) -> bool:
    """Whether a snapshot reaches beyond what is committed here, or is one that this replica has asked for."""
    return snapshot.index > raft.log.committed or _asked_for(raft, snapshot)


def _asked_for(raft: RaftCore, snapshot: Snapshot) -> bool:
    return 0 < raft.requested_snapshot <= snapshot.index


def _take_in(raft: RaftCore, snapshot: Snapshot) -> None:
    if raft.log.matches(snapshot.index, snapshot.term) and not _asked_for(raft, snapshot):
        # All of it is here already, and now known to be committed: no need to throw the log away.
        raft.log.commit_to(snapshot.index)
        return
    raft.log.restore(snapshot)
    raft.heard.matched = snapshot.index
    raft.requested_snapshot = 0
    raft.switch_membership(snapshot.membership)
    raft.reset_progress()
    settling.note_standing(raft)


def recovered(raft: RaftCore, report: Message) -> None:
    """The state machine has loaded a snapshot: its membership is in effect (thesis §5.1)."""
    if _is_news(raft, report):
        raft.switch_membership(report.snapshot.membership)


def recovered_as_leader(raft: RaftCore, report: Message) -> None:
    """A leader that the snapshot does not list as a voter leads no more."""
    if _is_news(raft, report):
        raft.switch_membership(report.snapshot.membership)
        if not raft.membership.is_voter(raft.id):
            raft.become_follower(raft.term, 0)


def _is_news(raft: RaftCore, report: Message) -> bool:
    """A late report changes nothing: what was applied behind the snapshot may have changed the membership since.

    Nor does one that claims to be from another replica: the report is its own host's.
    """
    own = report.sender in (0, raft.id)
    return own and report.snapshot is not None and report.snapshot.index >= raft.log.applied


def note_status(raft: RaftCore, report: Message) -> None:
    """The transport says how the sending of a snapshot ended; with `hint`, to be believed that many ticks later.

    The delay lets the peer's own answer come first, which says more.
    """
    peer = raft.progress[report.sender]
    if peer.state is not ProgressState.SNAPSHOT:
        return
    if report.hint:
        peer.delay_status(report.hint, report.reject)
    else:
        peer.snapshot_done(report.reject)
