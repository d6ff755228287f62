"""Leadership transfer (thesis §3.10).

The leader stops taking proposals, brings its successor up to date, and asks it to campaign at once. The asker is told
when the transfer is refused or given up; that it has succeeded, it sees by who leads.
"""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import sending
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.ready import Dropped, Refusal
from drakkar.handlers.raft.transfer_state import Transfer

__all__ = ["begin", "forward", "hand_over_when_caught_up", "refuse", "tick", "time_out_now"]


def forward(raft: RaftCore, ask: Message) -> None:
    """Only the leader can transfer its leadership."""
    if raft.leader_id and ask.sender in (0, raft.id):
        raft.send(Message(MessageType.LEADER_TRANSFER, to=raft.leader_id, hint=ask.hint))
    else:
        _refuse(raft, ask, Refusal.NO_LEADER)


def refuse(raft: RaftCore, ask: Message) -> None:
    """While an election is going on there is no leader that could transfer its leadership."""
    _refuse(raft, ask, Refusal.CAMPAIGNING)


def _refuse(raft: RaftCore, ask: Message, because: Refusal) -> None:
    raft.refuse(ask.sender, Dropped(MessageType.LEADER_TRANSFER, because, key=ask.hint))


def begin(raft: RaftCore, ask: Message) -> None:
    """Transfer to `hint`, which has one election timeout for it. A transfer to this replica itself calls the present one off."""
    target = ask.hint
    if target == raft.id:
        if not raft.transfer.target:
            _refuse(raft, ask, Refusal.ALREADY_LEADER)
        raft.give_up_transfer(Refusal.TRANSFER_CALLED_OFF)
        return
    # Of either half of a joint membership (§4.3): the winner needs both majorities, but need not belong to both.
    if not target or not raft.membership.is_voter(target):
        _refuse(raft, ask, Refusal.BAD_TARGET)
        return
    asker = 0 if ask.sender == raft.id else ask.sender
    if target == raft.transfer.target:
        raft.transfer.askers.add(asker)
        return
    raft.give_up_transfer(Refusal.TRANSFER_REPLACED)
    raft.transfer = Transfer(target, {asker})
    if not hand_over_when_caught_up(raft, target):
        sending.send(raft, target)


def hand_over_when_caught_up(raft: RaftCore, replica: int) -> bool:
    """True if the successor was asked to campaign. One that lacks entries would only lose the election."""
    peer = raft.progress.get(replica)
    if replica != raft.transfer.target or peer is None or peer.match != raft.log.last_index:
        return False
    raft.reads.lease_revoked = True
    raft.transfer.ordered = True
    raft.send(Message(MessageType.TIMEOUT_NOW, to=replica))
    return True


def tick(raft: RaftCore) -> None:
    """A transfer that takes longer than an election would has failed (thesis §3.10)."""
    if not raft.transfer.target:
        return
    raft.transfer.ticks += 1
    if raft.transfer.ticks >= raft.config.election_ticks:
        raft.give_up_transfer(Refusal.TRANSFER_TIMED_OUT)


def time_out_now(raft: RaftCore, order: Message) -> None:
    """Campaign at once, without asking first: the leader itself wants it, so its lease is no obstacle.

    A replica that may not campaign, for a membership change that is not applied, say, does nothing: the leader's own
    timeout ends the transfer.
    """
    raft.step(Message(MessageType.ELECTION, sender=raft.id, hint=order.sender))
