"""Leadership transfer (thesis §3.10).

The leader stops taking proposals, brings its successor up to date, and asks it to campaign at once.
"""

from typing import TYPE_CHECKING

from drakkar.handlers import replication
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.ready import Dropped, Refusal

if TYPE_CHECKING:
    from drakkar.handlers.raft import Raft

__all__ = ["begin", "forward", "hand_over_when_caught_up", "time_out_now"]


def forward(raft: "Raft", ask: Message) -> None:
    """Only the leader can hand its office over."""
    if raft.leader_id and ask.sender in (0, raft.id):
        raft.send(Message(MessageType.LEADER_TRANSFER, to=raft.leader_id, hint=ask.hint))
    else:
        _refuse(raft, ask, Refusal.NO_LEADER)


def _refuse(raft: "Raft", ask: Message, because: Refusal) -> None:
    """Tell this host that there will be no transfer."""
    if ask.sender in (0, raft.id):
        raft.drop(Dropped(MessageType.LEADER_TRANSFER, because, key=ask.hint))


def begin(raft: "Raft", ask: Message) -> None:
    """Hand over to `hint`, which has one election timeout for it. Oneself as target calls a transfer off."""
    target = ask.hint
    if target == raft.id:
        if not raft.transfer_target:
            _refuse(raft, ask, Refusal.ALREADY_LEADER)
        raft.transfer_target = 0
        return
    # Of either half of a joint membership (§4.3): who wins needs both majorities, but need not belong to both.
    if not target or not raft.membership.is_voter(target):
        _refuse(raft, ask, Refusal.BAD_TARGET)
        return
    if target == raft.transfer_target:
        return
    raft.transfer_target = target
    raft.election_elapsed = 0
    if not hand_over_when_caught_up(raft, target):
        replication.send(raft, target)


def hand_over_when_caught_up(raft: "Raft", replica: int) -> bool:
    """True if the successor was asked to campaign. One that lacks entries would only lose the election."""
    peer = raft.progress.get(replica)
    if replica != raft.transfer_target or peer is None or peer.match != raft.log.last_index:
        return False
    raft.reads.lease_revoked = True
    raft.send(Message(MessageType.TIMEOUT_NOW, to=replica))
    return True


def time_out_now(raft: "Raft", message: Message) -> None:
    """Campaign at once, without asking first: the leader itself wants it, so its lease is no obstacle.

    The mark lasts for this one attempt. Who may not campaign, for a membership change that is not applied, say,
    does nothing: the leader's own timeout ends the transfer.
    """
    raft.is_transfer_target = True
    raft.step(Message(MessageType.ELECTION, sender=raft.id))
    raft.is_transfer_target = False
