"""The conversation about membership changes (thesis chapter 4); the changes themselves are in `confchange`.

A change is a CONFIG_CHANGE entry, and takes effect when it is applied, as in dragonboat and etcd, not when it is
logged as in the thesis. That is safe with two rules: one unapplied change at a time, and no replica campaigns while a
committed change waits to be applied.

    propose ─► logged ─► committed ─► applied: `confchange.decide` gives the new membership, or the rule that was broken
                                                 └─► CONFIG_CHANGE_EVENT ─► `change_membership`
"""

from collections.abc import Iterable

from drakkar.handlers.errors import CorruptData, MembershipRejected
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import commit, notices, quorum, reads, sending, settling, transfer
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, MembershipBuilder, decide
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entry, EntryKind, Run
from drakkar.handlers.raft.ready import Refusal
from drakkar.handlers.raft.state import Membership, Snapshot, State

__all__ = [
    "answer_removal_query",
    "ask_whether_removed",
    "change_membership",
    "change_membership_as_leader",
    "confirm_removal",
    "is_dispensable",
    "leave_when_due",
    "reason_to_refuse",
    "tell_of_removal",
    "unsettled_for",
]


def reason_to_refuse(raft: RaftCore, payload: bytes) -> Refusal | None:
    """Why a leader does not log this change; what only its rules forbid is found out when it is applied.

    Whether it lacks voters is asked after that: `reach.missing_for`, `unsettled_for`.
    """
    if raft.config.disable_conf_change_validation:
        return None
    if raft.pending_change_index > raft.log.applied:
        return Refusal.CHANGE_PENDING
    try:
        change = ConfigChange.decode(payload)
    except CorruptData:
        return None
    leaves = not change.changes
    # The first membership stands on every disk before there is a leader; later it would bypass all rules.
    valid = leaves == raft.membership.joint and not change.initialize
    return None if valid else Refusal.CHANGE_INVALID


def unsettled_for(raft: RaftCore, payload: bytes) -> tuple[int, ...]:
    """The voters that this change has to wait for, as `settling.unsettled`; also where it is forced."""
    if raft.config.disable_conf_change_validation:
        return ()
    after = decide(raft.membership, Entry(kind=EntryKind.CONFIG_CHANGE, payload=payload), raft.config)
    return () if isinstance(after, str) else settling.unsettled(raft, after)


def change_membership(raft: RaftCore, event: Message) -> None:
    """A change was applied, or rejected by its rules: the next one may be logged.

    `payload` is the new membership. Without it, `hint` and `hint_high` are a replica and a `ChangeType`, which
    the host has checked; replica 0 changes nothing.
    """
    after = _after(raft, event)
    if after is not None:
        raft.switch_membership(after)


def change_membership_as_leader(raft: RaftCore, event: Message) -> None:
    """A leader also tells its peers, answers what the new quorum decides, and steps down where it is no voter."""
    after = _after(raft, event)
    if after is None:
        return
    if not after.is_voter(raft.id):
        _retire(raft, after)
        return
    notices.tell(raft)  # a peer that leaves is told nothing more
    raft.switch_membership(after)
    settling.recount(raft)
    if not after.is_voter(raft.transfer.target):
        raft.give_up_transfer(Refusal.BAD_TARGET)
    reads.recount(raft)
    if commit.commit(raft):
        commit.announce(raft)
    else:
        for peer in raft.peers:
            # Where a new peer stands is not known before it answers, so it is asked at once.
            sending.send(raft, peer, even_empty=not raft.progress[peer].match)


def _after(raft: RaftCore, event: Message) -> Membership | None:
    if not event.log_index:
        raft.pending_change_index = 0
    if event.reject:
        return None
    if isinstance(event.payload, Membership):
        return event.payload
    return _as_told(raft, event) if event.hint else None


def _as_told(raft: RaftCore, event: Message) -> Membership | None:
    builder = MembershipBuilder.of(raft.membership)
    try:
        builder.apply(Change(ChangeType(event.hint_high), event.hint))
        return builder.build(raft.membership)
    except (ValueError, MembershipRejected):
        raft.fault("a membership change that its host should have refused")
        return None


def _retire(raft: RaftCore, after: Membership) -> None:
    """A leader that is no voter any more (thesis §4.2.2): first it tells the others, so that none has to time out.

    Then it steps down, and asks one of them to campaign at once.
    """
    # What a witness may know depends on who votes from now on, so it hears last.
    _tell(raft, [peer for peer in raft.peers if not after.is_witness(peer)])
    notices.tell(raft)  # an append may have found a full window
    steps_down = raft.config.step_down_on_removal or after.state_of(raft.id) is not State.FOLLOWER
    if steps_down:
        transfer.leave(raft, after)
    raft.switch_membership(after)
    settling.recount(raft)
    _tell(raft, after.witnesses)
    if steps_down:
        raft.become_follower(raft.term, 0)
    elif commit.commit(raft):
        commit.announce(raft)


def _tell(raft: RaftCore, peers: Iterable[int]) -> None:
    for peer in sorted(peers):
        sending.send(raft, peer)
    sending.send_due_appends(raft)


def leave_when_due(raft: RaftCore) -> None:
    """Thesis §4.3: once the joint membership is in effect, the leader proposes the new one.

    Asked again at every tick and apply, so that a leave which was lost with its leader, or put off by a transfer,
    is made up for.
    """
    due = raft.state is State.LEADER and raft.membership.joint and raft.membership.auto_leave
    if not due or raft.transfer.target or raft.pending_change_index > raft.log.applied:
        return
    if settling.unsettled(raft, raft.membership):
        return
    # It names the change that it follows, or it would be rejected, again and again, where changes are ordered.
    leave = ConfigChange(change_id=raft.membership.change_id).encode()
    raft.append_entries([Run(0, 0, [leave], bytes([EntryKind.CONFIG_CHANGE]))])
    raft.pending_change_index = raft.log.last_index
    sending.broadcast(raft)


# -- the removed ---------------------------------------------------------------------------------------------------


def ask_whether_removed(raft: RaftCore) -> None:
    """For a replica that cannot campaign, and hears no leader: its shard may have removed it, and none would tell it.

    All peers that it knows are asked, since an observer may lead by now. One that never heard of a term knows no shard
    that it could be removed from. One that knows that it was removed asks whether the others know it too, and says up to where
    it has applied the log: they may need its vote until then. It asks until that is confirmed.
    """
    if not raft.term or raft.heard.removal_confirmed:
        return
    known = raft.log.applied if raft.id in raft.membership.removed else 0
    for peer in raft.peers:
        raft.send(Message(MessageType.REMOVAL_QUERY, to=peer, log_index=known))


def answer_removal_query(raft: RaftCore, ask: Message) -> None:
    """A leader tells a replica that it was removed; and one that knows it, once a quorum knows it too."""
    if not ask.log_index or _is_known(raft, ask.log_index):
        _tell_if_removed(raft, ask)
    else:
        confirm_removal(raft, ask)


def confirm_removal(raft: RaftCore, ask: Message) -> None:
    """One that knows that it was removed may not know who leads by now. Any replica that saw a later change answers it.

    The leader of that change logged it after it had applied this one, and said so to the quorum that holds it.
    """
    if 0 < ask.log_index < raft.membership.change_id:
        _tell_if_removed(raft, ask)


def _is_known(raft: RaftCore, index: int) -> bool:
    """Whether a quorum knows that the entry at `index` is committed: then an election needs no replica that is removed there.

    One of them is in any quorum that is left, and its vote, or its question for votes, tells the others.
    """

    def knows(replica: int) -> int:
        return raft.log.committed if replica == raft.id else raft.progress[replica].commit

    return quorum.joint_committed(raft.electorate, knows) >= index


def _tell_if_removed(raft: RaftCore, ask: Message) -> None:
    if ask.sender in raft.membership.removed:
        tell_of_removal(raft, ask.sender, known=ask.log_index)


def is_dispensable(raft: RaftCore) -> bool:
    """Whether this replica was removed, and no other needs its vote to learn of that: then it may stop."""
    if raft.id not in raft.membership.removed:
        return False
    return _is_known(raft, raft.log.applied) if raft.state is State.LEADER else raft.heard.removal_confirmed


def tell_of_removal(raft: RaftCore, replica: int, *, known: int = 0) -> None:
    """A removed replica is sent no log, so it learns of its removal by the membership, as a snapshot without content.

    `known`: one that knows it has asked whether a quorum knows what it has applied up to there, and one does.
    """
    applied = raft.log.applied
    news = Snapshot(applied, raft.log.term(applied), raft.membership, witness=True)
    raft.send(Message(MessageType.REMOVED, to=replica, log_index=known, snapshot=news))
