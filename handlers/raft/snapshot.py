"""Snapshots in the core (thesis chapter 5): when one is sent, and whether one is accepted.

A replica may ask its leader for one (raft-rs' request), where its state machine has lost its state, say. Until it has
one that reaches its last entry it takes in nothing else, and each of its answers repeats the request. The snapshot
drops no entry that it has acknowledged: there is none beyond.
"""

from typing import TYPE_CHECKING

from drakkar.handlers.errors import ProtocolViolation, RequestDropped
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import membership as members
from drakkar.handlers.raft import replication, transfer
from drakkar.handlers.raft.progress import Progress, ProgressState
from drakkar.handlers.raft.state import Snapshot, State

if TYPE_CHECKING:
    from drakkar.handlers.raft.raft import Raft

__all__ = [
    "install",
    "install_as_follower",
    "learn_of_removal",
    "note_request",
    "note_status",
    "recovered",
    "repeat_request",
    "request",
    "send",
    "send_requested",
    "tells_of_removal",
]


def send(raft: "Raft", replica: int, peer: Progress) -> bool:
    """Bring up a peer that needs entries which are compacted away. One that is not heard of waits."""
    snapshot = raft.log.snapshot
    if not peer.active:
        return False
    if not snapshot:
        raft.fault("no snapshot stands in for what was compacted")
        return False
    if raft.membership.is_witness(replica):
        snapshot = Snapshot(snapshot.index, snapshot.term, snapshot.membership, witness=True)
    peer.become_snapshot(snapshot.index)
    raft.send(Message(MessageType.INSTALL_SNAPSHOT, to=replica, snapshot=snapshot))
    return False


def send_requested(raft: "Raft", replica: int, peer: Progress) -> bool:
    """A peer that asked for a snapshot is sent one as soon as the host has taken one that reaches far enough."""
    if raft.log.snapshot.index >= peer.requested_snapshot:
        return send(raft, replica, peer)
    return False


# -- asking for one ------------------------------------------------------------------------------------------------


def request(raft: "Raft") -> None:
    """Ask the leader for a snapshot. Raises `RequestDropped`, which says why, where that cannot be now."""
    refusal = _reason_not_to_ask(raft)
    if refusal:
        raise RequestDropped(f"replica {raft.id} cannot ask for a snapshot now: {refusal}")
    if not raft.requested_snapshot:
        raft.requested_snapshot = raft.log.last_index
        repeat_request(raft)


def _reason_not_to_ask(raft: "Raft") -> str:
    if raft.state is State.LEADER:
        return "it leads, so there is nobody to ask; transfer the leadership first"
    if not raft.leader_id:
        return "no leader is known; wait for one and ask again"
    if raft.log.pending_snapshot is not None:
        return f"the snapshot of {raft.log.pending_snapshot.index} is not loaded yet; wait for it"
    if raft.log.last_term != raft.term:
        # Whether the leader has the same last entry is not known yet.
        return f"no entry of the leader's term {raft.term} has come yet; wait for one and ask again"
    return ""


def repeat_request(raft: "Raft") -> None:
    """A rejection that carries the request, and says what we hold: our last entry is one of this leader's own."""
    raft.send(
        Message(
            MessageType.REPLICATE_RESP,
            to=raft.leader_id,
            reject=True,
            log_index=raft.log.committed,
            log_term=raft.log.last_term,
            hint=raft.log.last_index,
            hint_high=raft.requested_snapshot,
            commit=raft.log.committed,
        )
    )


def note_request(raft: "Raft", ask: Message, peer: Progress) -> None:
    """A peer asks for a snapshot up to `hint_high` or beyond. What it holds counts as if it had accepted it.

    Otherwise the snapshot might have to wait for a commit that waits for this very peer.
    """
    if max(ask.hint, ask.hint_high) > raft.log.last_index:
        raft.fault("asked for a snapshot of what was never sent")
        return
    holds_ours = ask.log_term == raft.term and raft.log.matches(ask.hint, ask.log_term)
    news = holds_ours and peer.accepted(ask.hint)
    peer.asked(ask.hint_high)
    if news:
        replication.commit_and_announce(raft)
        transfer.hand_over_when_caught_up(raft, ask.sender)
    replication.send(raft, ask.sender)


# -- taking one in -------------------------------------------------------------------------------------------------


def install(raft: "Raft", message: Message) -> None:
    """Thesis §5.3: take the leader's snapshot in place of a log that ends before it."""
    snapshot = _sound(raft, message)
    if snapshot is None:
        return
    raft.heard_leader(message.sender)
    if _fits(raft, snapshot):
        _take_in(raft, snapshot)
    # Up to there, which is the snapshot's end if it was taken in, our log agrees with the leader's; behind it may not.
    known = raft.log.committed
    raft.reply(message, MessageType.REPLICATE_RESP, log_index=known, commit=known)


def install_as_follower(raft: "Raft", message: Message) -> None:
    """A candidate that hears from the leader of its own term has lost (thesis §3.4)."""
    raft.become_follower(message.term, message.sender)
    install(raft, message)


def tells_of_removal(raft: "Raft", message: Message) -> bool:
    """Whether it is a snapshot without content of a shard that has removed this replica."""
    if message.type is not MessageType.INSTALL_SNAPSHOT or message.snapshot is None:
        return False
    return message.snapshot.witness and raft.id in message.snapshot.membership.removed


def learn_of_removal(raft: "Raft", message: Message) -> None:
    """Take in such news from a leader of an older term: it holds what is committed, of which no term is ever taken back.

    The own term stays, and that leader is not followed. Whoever campaigns or leads gives up: it has no shard to do so.
    """
    snapshot = _sound(raft, message)
    if snapshot is not None and _fits(raft, snapshot):
        raft.become_follower(raft.term, 0)
        _take_in(raft, snapshot)


def _sound(raft: "Raft", message: Message) -> Snapshot | None:
    snapshot: Snapshot | None = message.snapshot
    if snapshot is None or not snapshot or not 0 < snapshot.term <= message.term:
        raft.fault("a snapshot without index, or of a term that its leader cannot know")
        return None
    return snapshot


def _fits(raft: "Raft", snapshot: Snapshot) -> bool:
    """Whether it is news, and of a shard in which this replica can be what it is."""
    membership = snapshot.membership
    if snapshot.index <= raft.log.committed and not _asked_for(raft, snapshot):
        return False
    # One that joins need not be listed: it was added behind the snapshot. A member is, or was removed.
    known = membership.everybody | frozenset(membership.removed)
    joins = raft.id not in raft.membership.everybody
    if not joins and raft.id not in known:
        raft.fault("a snapshot of a shard without this replica")
        return False
    role = membership.state_of(raft.id) if raft.id in membership.everybody else raft.resting_state
    if members.may_become(raft.resting_state, role):
        return True
    if joins:
        # It was started in another role than it was added in: it would be sent this for ever, and never take it.
        raise ProtocolViolation(members.misfit(raft.id, raft.resting_state, role))
    raft.fault("a snapshot that changes a role as no membership change can")
    return False


def _asked_for(raft: "Raft", snapshot: Snapshot) -> bool:
    return 0 < raft.requested_snapshot <= snapshot.index


def _take_in(raft: "Raft", snapshot: Snapshot) -> None:
    if raft.log.matches(snapshot.index, snapshot.term) and not _asked_for(raft, snapshot):
        # All of it is here already, and now known to be committed: no need to throw the log away.
        raft.log.commit_to(snapshot.index)
        return
    raft.log.restore(snapshot)
    raft.requested_snapshot = 0
    raft.switch_membership(snapshot.membership)
    raft.reset_progress()


def recovered(raft: "Raft", message: Message) -> None:
    """The state machine has loaded a snapshot: its membership is in effect (thesis §5.1).

    A late report changes nothing: what was applied behind the snapshot may have changed the membership since. Nor
    does another replica's, as the type also goes between hosts.
    """
    foreign = message.sender not in (0, raft.id)
    if foreign or message.snapshot is None or message.snapshot.index < raft.log.applied:
        return
    raft.switch_membership(message.snapshot.membership)
    if raft.state is State.LEADER and not raft.membership.is_voter(raft.id):
        raft.become_follower(raft.term, 0)


def note_status(raft: "Raft", report: Message) -> None:
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
