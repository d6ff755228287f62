"""Snapshots in the core (thesis chapter 5): when one is sent, and whether one is accepted."""

from typing import TYPE_CHECKING

from drakkar.handlers.messages import Message, MessageType, Snapshot, State
from drakkar.handlers.progress import Progress, ProgressState

if TYPE_CHECKING:
    from drakkar.handlers.raft import Raft

__all__ = ["install", "install_as_follower", "note_status", "recovered", "send"]


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


def install(raft: "Raft", message: Message) -> None:
    """Thesis §5.3: take the leader's snapshot in place of a log that ends before it."""
    snapshot = message.snapshot
    if snapshot is None or not snapshot or not 0 < snapshot.term <= message.term:
        raft.fault("a snapshot without index, or of a term that its leader cannot know")
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


def _fits(raft: "Raft", snapshot: Snapshot) -> bool:
    """Whether it is news, and of a shard in which this replica can be what it is."""
    membership = snapshot.membership
    if snapshot.index <= raft.log.committed:
        return False
    # One that joins need not be listed: it was added behind the snapshot. A member is, or was removed.
    known = membership.everybody | frozenset(membership.removed)
    if raft.id in raft.membership.everybody and raft.id not in known:
        raft.fault("a snapshot of a shard without this replica")
        return False
    if not _role_fits(raft, snapshot):
        raft.fault("a snapshot that changes a role as no membership change can")
        return False
    return True


def _role_fits(raft: "Raft", snapshot: Snapshot) -> bool:
    """A witness stays one, and nobody becomes one. Observers are promoted; joint changes may demote a voter."""
    membership = snapshot.membership
    if raft.id not in membership.everybody:
        return True
    return (raft.resting_state is State.WITNESS) == membership.is_witness(raft.id)


def _take_in(raft: "Raft", snapshot: Snapshot) -> None:
    if raft.log.matches(snapshot.index, snapshot.term):
        # All of it is here already, and now known to be committed: no need to throw the log away.
        raft.log.commit_to(snapshot.index)
        return
    raft.log.restore(snapshot)
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
