"""What is committed, and who is told (thesis §3.6.2); also by groups of replicas (raft-rs)."""

from collections.abc import Mapping
from typing import Any

from drakkar.handlers.checks import MAX_SIGNED, check_whole
from drakkar.handlers.raft import notices, quorum, reads, sending, settling
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.state import State

__all__ = [
    "advance",
    "announce",
    "assign_groups",
    "check_groups",
    "commit",
    "groups_consistent",
    "on_own_write",
]


def advance(raft: RaftCore) -> None:
    """Something was learnt of a replica, so that a majority may hold more than was known."""
    if commit(raft):
        announce(raft)


def commit(raft: RaftCore) -> bool:
    """Thesis §3.6.2: what a majority holds is committed, if it is of this term; and all before it with it."""
    if raft.config.group_commit:
        together = quorum.group_committed(raft.electorate, raft.match_of, raft.group_of)
        index = min(together, settling.agreed(raft, raft.match_of))
    else:
        index = settling.agreed(raft, raft.match_of)
    # By counting, only an entry of this term: an older one may be on a majority, and be replaced yet (figure 3.7).
    if index > raft.log.last_index or raft.log.term(index) != raft.term:
        return False
    if not raft.log.commit_to(index):
        return False
    if raft.lives.doubted:
        settling.recount(raft)
        commit(raft)  # with those that are settled from here on, more may be committed
    return True


def announce(raft: RaftCore) -> None:
    """Tell the peers, and answer the reads that waited for the first commit of this term (thesis §6.4)."""
    reads.answer_postponed(raft)
    at_once = tells_commits(raft)
    if at_once:
        sending.broadcast(raft)
    notices.note_commit(raft, at_once=at_once)


def tells_commits(raft: RaftCore) -> bool:
    """Whether peers are told of a commit at once, by an append; else it rides on the next one, a COMMIT or a heartbeat.

    By an append also where there are notices: it is not clipped to what the peer is known to hold. So a peer
    that is being removed hears of that even where its own acknowledgement of the change is still on its way.
    """
    if raft.pending_change_index > raft.log.applied:
        return True
    return not (raft.config.skip_commit_broadcast or raft.config.commit_notices)


def on_own_write(raft: RaftCore) -> None:
    """The leader's own copy counts once it is durable (thesis §10.2.1)."""
    own = raft.progress.get(raft.id)
    if own is not None and own.accepted(raft.log.stable):
        advance(raft)
    sending.feed_witnesses(raft)


# -- groups --------------------------------------------------------------------------------------------------------


def check_groups(groups: Mapping[Any, Any]) -> None:
    """Check that each key is a replica id and each value a group, 0 for none. Raises `ConfigError`."""
    for replica, group in groups.items():
        check_whole("replica_id", replica, 1, MAX_SIGNED)
        check_whole("group", group, 0, MAX_SIGNED)


def assign_groups(raft: RaftCore, groups: Mapping[int, int]) -> None:
    """Say to which group each of these replicas belongs; see `Raft.assign_groups`."""
    check_groups(groups)
    raft.groups.update(groups)
    for replica, progress in raft.progress.items():
        progress.group = raft.groups.get(replica, 0)
    if raft.state is State.LEADER:
        advance(raft)


def groups_consistent(raft: RaftCore) -> bool | None:
    """Whether two groups in each half of the electorate hold all that is committed; None where that is not known."""
    in_use = raft.config.group_commit and any(map(raft.group_of, raft.voters))
    if raft.state is not State.LEADER or not in_use or raft.log.term(raft.log.applied) != raft.term:
        return None
    held = quorum.group_committed(raft.electorate, raft.match_of, raft.group_of)
    return quorum.spans_groups(raft.electorate, raft.group_of) and held >= raft.log.committed
