"""Leadership transfer (thesis §3.10).

The leader stops taking proposals, brings its successor up to date, and asks it to campaign at once. Whoever asked for
it is told when it is refused or given up; that it has succeeded, everybody sees by who leads.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import replication
from drakkar.handlers.raft.ready import Dropped, Refusal
from drakkar.handlers.table import SWALLOW

if TYPE_CHECKING:
    from drakkar.handlers.raft.raft import Raft

__all__ = [
    "Transfer",
    "begin",
    "forward",
    "give_up",
    "hand_over_when_caught_up",
    "hear_refusal",
    "step_down",
    "tick",
    "time_out_now",
]


@dataclass(slots=True)
class Transfer:
    """What a leader remembers of the transfer to its `transfer_target`, beside the target."""

    askers: set[int] = field(default_factory=set)
    """The replicas that asked for it; 0 is this host."""
    ticks: int = 0
    """Since it began. Not the election's counter, which transfers without end could keep from its CheckQuorum."""
    ordered: bool = False
    """The target was asked to campaign, and may win whatever becomes of the transfer."""


def forward(raft: "Raft", ask: Message) -> None:
    """Only the leader can hand its office over."""
    if raft.leader_id and ask.sender in (0, raft.id):
        raft.send(Message(MessageType.LEADER_TRANSFER, to=raft.leader_id, hint=ask.hint))
    else:
        _refuse(raft, _asker(raft, ask), ask.hint, Refusal.NO_LEADER)


def _asker(raft: "Raft", ask: Message) -> int:
    return 0 if ask.sender == raft.id else ask.sender


def _refuse(raft: "Raft", asker: int, target: int, because: Refusal) -> None:
    """Tell whoever asked that there will be no transfer: this host, or the one that sent the request on."""
    if not asker:
        raft.drop(Dropped(MessageType.LEADER_TRANSFER, because, key=target))
    else:
        raft.send(
            Message(
                MessageType.LEADER_TRANSFER,
                to=asker,
                reject=True,
                hint=target,
                payload=because.name,
            )
        )


def hear_refusal(raft: "Raft", message: Message) -> bool | None:
    """A guard: the leader refused, or gave up, a transfer that we sent on, so this host is told."""
    if message.type is not MessageType.LEADER_TRANSFER or not message.reject:
        return None
    raft.drop(Dropped(MessageType.LEADER_TRANSFER, Refusal.named(message.payload), key=message.hint))
    return SWALLOW


def begin(raft: "Raft", ask: Message) -> None:
    """Hand over to `hint`, which has one election timeout for it. Oneself as target calls a transfer off."""
    asker, target = _asker(raft, ask), ask.hint
    if target == raft.id:
        if not raft.transfer_target:
            _refuse(raft, asker, target, Refusal.ALREADY_LEADER)
        give_up(raft, Refusal.TRANSFER_CALLED_OFF)
    # Of either half of a joint membership (§4.3): who wins needs both majorities, but need not belong to both.
    elif not target or not raft.membership.is_voter(target):
        _refuse(raft, asker, target, Refusal.BAD_TARGET)
    elif target == raft.transfer_target:
        raft.transfer.askers.add(asker)
    else:
        give_up(raft, Refusal.TRANSFER_REPLACED)
        raft.transfer_target, raft.transfer = target, Transfer({asker})
        if not hand_over_when_caught_up(raft, target):
            replication.send(raft, target)


def hand_over_when_caught_up(raft: "Raft", replica: int) -> bool:
    """True if the successor was asked to campaign. One that lacks entries would only lose the election."""
    peer = raft.progress.get(replica)
    if replica != raft.transfer_target or peer is None or peer.match != raft.log.last_index:
        return False
    raft.reads.lease_revoked = True
    raft.transfer.ordered = True
    raft.send(Message(MessageType.TIMEOUT_NOW, to=replica))
    return True


def tick(raft: "Raft") -> None:
    """A transfer that takes longer than an election would has failed (thesis §3.10)."""
    if not raft.transfer_target:
        return
    raft.transfer.ticks += 1
    if raft.transfer.ticks >= raft.config.election_ticks:
        give_up(raft, Refusal.TRANSFER_TIMED_OUT)


def give_up(raft: "Raft", because: Refusal) -> None:
    """The leader stays in office, or another way out of it was found: take proposals again, and tell who asked."""
    target, given_up = raft.transfer_target, raft.transfer
    raft.transfer_target, raft.transfer = 0, Transfer()
    if target:
        for asker in sorted(given_up.askers):
            _refuse(raft, asker, target, because)


def step_down(raft: "Raft", term: int) -> None:
    """A leader that leaves office gives its transfer up, unless a newer term may well be that of its successor."""
    if raft.transfer.ordered and term > raft.term:
        raft.transfer_target, raft.transfer = 0, Transfer()
    else:
        give_up(raft, Refusal.STEPPED_DOWN)


def time_out_now(raft: "Raft", message: Message) -> None:
    """Campaign at once, without asking first: the leader itself wants it, so its lease is no obstacle.

    The mark lasts for this one attempt. Who may not campaign, for a membership change that is not applied, say,
    does nothing: the leader's own timeout ends the transfer.
    """
    raft.is_transfer_target = True
    raft.step(Message(MessageType.ELECTION, sender=raft.id))
    raft.is_transfer_target = False
