"""Leadership transfer (thesis §3.10).

The leader stops taking proposals, brings its successor up to date, and asks it to campaign at once. The asker is told
when the transfer is refused or given up; that it has succeeded, it sees by who leads.

A leader that leaves, since its host stops or its shard has removed it, names its successor itself.
"""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import divergence, notices, sending
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.raft.ready import Dropped, Refusal
from drakkar.handlers.raft.state import Membership
from drakkar.handlers.raft.transfer_state import Order, Transfer

__all__ = [
    "begin",
    "forward",
    "hand_over_when_caught_up",
    "leave",
    "obey_when_applied",
    "refuse",
    "start",
    "successor",
    "tick",
    "time_out_now",
]


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
    start(raft, target, asker)


def start(raft: RaftCore, target: int, *askers: int) -> None:
    """Transfer to `target`, a voter. Without `askers` it is the leader's own wish, and none is told if it fails."""
    raft.transfer = Transfer(target, set(askers))
    if not hand_over_when_caught_up(raft, target):
        sending.send(raft, target)


def hand_over_when_caught_up(raft: RaftCore, replica: int) -> bool:
    """True if the successor was asked to campaign. One that lacks entries would only lose the election."""
    peer = raft.progress.get(replica)
    if replica != raft.transfer.target or peer is None or peer.match != raft.log.last_index:
        return False
    raft.reads.lease_revoked = True
    raft.transfer.order = _order(raft, replica)
    return True


def _order(raft: RaftCore, replica: int) -> Message:
    order = Message(MessageType.TIMEOUT_NOW, to=replica)
    notices.tell(raft)
    raft.send(order)
    return order


# -- a leader that leaves ------------------------------------------------------------------------------------------


def successor(raft: RaftCore, membership: Membership) -> int:
    """The voter of a membership that can take over soonest: the target of the present transfer, or who holds most of the log.

    0 where none can: each voter is silent, unreachable, behind by a snapshot, without room, frozen, doubted or not
    settled yet. Where several hold as much, the shard's number decides, so that the shards of one host are spread over
    the others.
    """
    fit = [
        replica
        for replica in sorted(membership.voters)
        if replica != raft.id and _can_take_over(raft, replica)
    ]
    if not fit or raft.transfer.target in fit:
        return raft.transfer.target if fit else 0
    most = max(raft.match_of(replica) for replica in fit)
    best = [replica for replica in fit if raft.match_of(replica) == most]
    return best[raft.config.shard_id % len(best)]


def _can_take_over(raft: RaftCore, replica: int) -> bool:
    peer = raft.progress.get(replica)
    if peer is None or peer.state is not ProgressState.REPLICATE or peer.full or peer.frozen:
        return False
    if replica in raft.lives.doubted or raft.membership.homes.get(replica) == 0:
        return False  # it may not vote yet
    return peer.active or peer.was_active


def leave(raft: RaftCore, after: Membership) -> None:
    """A leader that is no voter `after` a change asks its successor to campaign, or an election timeout would pass.

    It steps down at once and does not wait for the outcome: its successor may be asked in vain, as one that lacks entries
    which others hold is, and then the timeout passes after all. The order overtakes appends, so it tells by itself that
    the change is committed: the successor counts by the membership that is in effect from now on.
    """
    target = successor(raft, after)
    raft.give_up_transfer(Refusal.STEPPED_DOWN)
    if target:
        raft.transfer.target = target
        _order(raft, target).commit = min(raft.log.committed, raft.match_of(target))
        raft.transfer = Transfer()  # it is not recalled: the order outlives the leadership


def tick(raft: RaftCore) -> None:
    """A transfer that takes longer than an election would has failed (thesis §3.10)."""
    if not raft.transfer.target:
        return
    raft.transfer.ticks += 1
    if raft.transfer.ticks >= raft.config.election_ticks:
        raft.give_up_transfer(Refusal.TRANSFER_TIMED_OUT)


def time_out_now(raft: RaftCore, order: Message) -> None:
    """Campaign at once, without asking first: the leader itself wants it, so its lease is no obstacle.

    A replica that may not campaign yet, since a committed change of the membership, or of where a replica lives, is not
    applied, campaigns when it has applied it. That is usual where a shard was just started: the leader tells its commit
    index right before the order. One that may not for another reason does nothing: the leader's own timeout ends the transfer.
    """
    divergence.learn_commit(raft, order)
    raft.order = Order(order.sender, raft.timers.ticks + raft.config.election_ticks)
    raft.step(Message(MessageType.ELECTION, sender=raft.id, hint=order.sender))


def obey_when_applied(raft: RaftCore) -> None:
    """Entries were applied: campaign if a leader asked for it, an election timeout ago at most, and one of them was in the way."""
    if raft.order.leader and raft.timers.ticks < raft.order.until:
        raft.step(Message(MessageType.ELECTION, sender=raft.id, hint=raft.order.leader))
