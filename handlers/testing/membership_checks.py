"""Invariants of membership changes (thesis chapter 4)."""

from dataclasses import replace

from drakkar.handlers.raft.confchange import ConfigChange, decide
from drakkar.handlers.raft.entries import Run, changes
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.testing.history import History, LastSeen, Violation, halves, is_quorum

__all__ = ["check_membership", "check_reach", "is_same"]


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
        if not is_same(known, after):
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


def is_same(one: Membership, other: Membership) -> bool:
    """Whether two memberships list the same members: where these live is no change of the membership."""
    return one == other or replace(one, homes={}) == replace(other, homes={})


def check_reach(history: History, raft: Raft, seen: LastSeen, run: Run) -> None:
    """A replica is about to append a run. An unforced change of who decides needs a quorum that its leader hears."""
    config = raft.config
    # One that slept may have heard its peers long ago.
    strict = config.strict_membership_changes and not raft.quiesce.on
    if not strict or raft.state is not State.LEADER or not run.origin or raft.membership.joint:
        return
    for entry in changes([run]):
        before, after = raft.membership, decide(raft.membership, entry, config)
        if isinstance(after, str) or halves(after) == halves(before):
            continue
        forced = ConfigChange.decode(entry.payload).forced
        history.happened["a membership change was forced"] += forced
        history.happened["a membership change had a quorum"] += not forced
        if not forced and not is_quorum(after, _heard(raft, seen, before)):
            raise Violation(
                "INV43 a change has a quorum that is heard",
                f"{raft!r} heard {seen.heard} at {raft.timers.ticks}, and logs {after} after {before}",
            )


def _heard(raft: Raft, seen: LastSeen, before: Membership) -> set[int]:
    """The replicas that a leader heard within two election timeouts; one without a vote must hold what was committed then."""
    oldest = raft.timers.ticks - 2 * raft.config.election_ticks - 1
    full = len(seen.commits) == seen.commits.maxlen
    commit = seen.commits[0][1] if full else 0
    voters = set().union(*halves(before))
    return {raft.id} | {
        id_
        for id_, tick in seen.heard.items()
        if tick >= oldest and (id_ in voters or raft.match_of(id_) >= commit)
    }


def _overlap(before: Membership, after: Membership) -> bool:
    """Return whether each quorum of one membership has a replica in common with each quorum of the other."""
    (old, old_outgoing), (new, new_outgoing) = halves(before), halves(after)
    if new_outgoing:
        return new_outgoing == old or (new, new_outgoing) == (old, old_outgoing)
    if old_outgoing:
        return new == old
    return len(old ^ new) <= 1
