"""Whether the voters of another membership can be reached now, as far as their leader knows (etcd's strict check).

A change that leaves too few of them ends the shard: nothing is committed any more, and so no further change either. From
one voter to two, an address with a mistake in it is enough.

A replica is reachable that answered within the last two rounds of CheckQuorum, and whose connection was not lost since. One
that is no voter yet must have caught up, too: it must hold what was committed when the round before this one began.
Commits that need it wait for no longer than two election timeouts then.
"""

from drakkar.handlers.raft import quorum
from drakkar.handlers.raft.confchange import ConfigChange, decide
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entry, EntryKind
from drakkar.handlers.raft.state import Membership

__all__ = ["begin_round", "counts_rounds", "hears_quorum", "missing_for", "unreachable"]


def counts_rounds(raft: RaftCore) -> bool:
    """Whether a leader begins a round each election timeout: what it may do depends on who is heard."""
    return raft.check_quorum or raft.quiesce.on or raft.config.strict_membership_changes


def hears_quorum(raft: RaftCore) -> bool:
    """Whether a leader has heard a quorum within the last two rounds; False where it counts none."""
    heard = {
        replica
        for replica, peer in raft.progress.items()
        if replica == raft.id or peer.active or peer.was_active
    }
    return counts_rounds(raft) and quorum.has_quorum(raft.electorate, heard)


def begin_round(raft: RaftCore) -> None:
    """A round of CheckQuorum begins: note anew which peers are heard, and what a new voter must hold."""
    for replica, peer in raft.progress.items():
        peer.begin_round(raft.log.committed, active=replica == raft.id)


def missing_for(raft: RaftCore, payload: bytes) -> tuple[int, ...]:
    """The voters that a membership change needs and that cannot be reached, in order; none where a quorum can.

    None also for a change that is forced, that its rules forbid, or that does not change who decides. Nor for one that
    leaves a joint membership: to stay in it takes more voters.
    """
    config = raft.config
    if not config.strict_membership_changes or config.disable_conf_change_validation or raft.membership.joint:
        return ()
    after = decide(raft.membership, Entry(kind=EntryKind.CONFIG_CHANGE, payload=payload), config)
    if isinstance(after, str) or after.electorate == raft.electorate or ConfigChange.decode(payload).forced:
        return ()
    return unreachable(raft, after)


def unreachable(raft: RaftCore, after: Membership) -> tuple[int, ...]:
    """The voters of a membership that cannot be reached, in order; none where those that can are a quorum."""
    voters = frozenset().union(*after.electorate)
    reached = {voter for voter in voters if _is_reachable(raft, voter)}
    return () if quorum.has_quorum(after.electorate, reached) else tuple(sorted(voters - reached))


def _is_reachable(raft: RaftCore, replica: int) -> bool:
    if replica == raft.id:
        return True
    peer = raft.progress.get(replica)
    if peer is None or not peer.reachable:
        return False
    votes = any(replica in half for half in raft.electorate)
    return votes or peer.caught_up
