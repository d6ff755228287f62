"""Commit notices: a leader tells its peers how far the log is committed, where no append does (thesis §3.5).

    a commit ─┬─► a REPLICATE leaves within about a millisecond, and carries it
              └─► none does: COMMIT_DUE, from the host, since the core counts no milliseconds ─► COMMIT

A COMMIT says no more than its receiver is known to hold, as a heartbeat does. So it may overtake entries, and needs no
answer; where one is lost, the next heartbeat makes up for it. What cannot wait is told at once:

    a membership change      a peer that it removes is sent nothing more once the change is applied
    the end of a leadership  before TIMEOUT_NOW, and before a leader steps down, retires, sleeps or is stopped
    a forwarded proposal     its client waits at the peer that forwarded it

Notices go to peers in REPLICATE alone, which the leader's own progress never is.

Only with the option `commit_notices`; without it, an empty REPLICATE tells of each commit, and is answered.
"""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import divergence
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.progress import Progress

__all__ = ["learn", "learn_as_follower", "note_ack", "note_commit", "on_due", "send_due", "tell", "untold"]

# -- the leader ----------------------------------------------------------------------------------------------------


def untold(raft: RaftCore) -> bool:
    """Whether there is a peer that a COMMIT would tell something."""
    committed = raft.log.committed
    return any(peer.notice_owed(committed) for peer in raft.progress.values())


def on_due(raft: RaftCore, _event: Message) -> None:
    """For about a millisecond no append told of the last commit."""
    tell(raft)


def tell(raft: RaftCore) -> None:
    """Tell all peers now what they may know."""
    if raft.config.commit_notices:
        for replica, peer in raft.progress.items():
            _tell(raft, replica, peer)


def note_commit(raft: RaftCore, *, at_once: bool) -> None:
    """The commit index has moved: where a peer cannot wait for the next append, tell it when `ready` is called."""
    if raft.config.commit_notices:
        raft.notices_due.update(
            replica for replica, peer in raft.progress.items() if at_once or peer.waits_for_commit
        )


def note_ack(raft: RaftCore, replica: int, peer: Progress) -> None:
    """A peer is known to hold more, and so may be told of more."""
    if peer.waits_for_commit and raft.config.commit_notices:
        raft.notices_due.add(replica)


def send_due(raft: RaftCore) -> None:
    """Tell the peers that cannot wait, unless an append has just told them."""
    due, raft.notices_due = raft.notices_due, set()
    for replica in sorted(due):
        peer = raft.progress.get(replica)
        if peer is not None:
            _tell(raft, replica, peer)


def _tell(raft: RaftCore, replica: int, peer: Progress) -> None:
    commit = peer.notice_owed(raft.log.committed)
    if commit:
        raft.send(Message(MessageType.COMMIT, to=replica, commit=commit))
        peer.sent_commit = commit


# -- the follower --------------------------------------------------------------------------------------------------


def learn(raft: RaftCore, notice: Message) -> None:
    """The leader is alive. Its commit index is clipped to what it knows us to hold, so all of it is committed."""
    raft.heard_leader(notice.sender)
    divergence.learn_commit(raft, notice)


def learn_as_follower(raft: RaftCore, notice: Message) -> None:
    """A candidate that hears from the leader of its own term has lost (thesis §3.4)."""
    raft.become_follower(notice.term, notice.sender)
    learn(raft, notice)
