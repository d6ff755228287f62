"""Invariants of membership changes (thesis chapter 4)."""

from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.testing.history import History, LastSeen, Violation, halves

__all__ = ["check_membership"]


def check_membership(history: History, raft: Raft, seen: LastSeen) -> None:
    """A replica's membership may have changed."""
    before, after = seen.membership, raft.membership
    if after is before:
        return
    seen.membership = after
    if after.change_id > raft.log.committed:
        raise Violation("INV15 a change takes effect when it is committed", f"{raft!r}: {after}")
    if raft.state is State.LEADER:
        seen.leading_since = raft.timers.ticks  # from now on it must hear another quorum
        seen.peers = {id_: known for id_, known in seen.peers.items() if id_ in raft.progress}
    known = history.memberships.get(after.change_id)
    if known is not None:
        if known != after:
            raise Violation("V8 one membership per index", f"{raft!r} has {after}, elsewhere it is {known}")
        return
    history.memberships[after.change_id] = after
    roles = (after.voters, after.observers, after.witnesses)
    listed = [id_ for role in roles for id_ in role]
    addresses = [after.addresses[id_] for id_ in sorted(after.everybody)]
    unique = len(set(listed)) == len(listed) and len(set(addresses)) == len(addresses)
    if not after.voters or not unique or after.everybody & frozenset(after.removed):
        raise Violation("INV25 a membership is sound", f"{raft!r}: {after}")
    if history.newest is None or after.change_id > history.newest.change_id:
        history.newest = after
    if before.everybody and not _overlap(before, after):
        raise Violation("INV15 successive quorums overlap", f"{raft!r}: {before} to {after}")
    if after.joint:
        history.happened["a joint membership was entered"] += 1


def _overlap(before: Membership, after: Membership) -> bool:
    """Return whether each quorum of one membership has a replica in common with each quorum of the other."""
    (old, old_outgoing), (new, new_outgoing) = halves(before), halves(after)
    if new_outgoing:
        return new_outgoing == old or (new, new_outgoing) == (old, old_outgoing)
    if old_outgoing:
        return new == old
    return len(old ^ new) <= 1
