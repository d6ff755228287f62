"""Invariants of votes and elections (thesis §3.4, §3.6)."""

from typing import Final

from drakkar.handlers.raft.entries import changes
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.history import History, LastSeen, Violation
from drakkar.handlers.testing.identity_checks import IdentityChecks
from drakkar.handlers.testing.log_checks import check_complete
from drakkar.handlers.testing.slow_reads import reading

__all__ = ["check_campaign", "check_transition", "check_vote"]

_NON_VOTERS: Final = frozenset({State.OBSERVER, State.WITNESS})
"""The states of replicas that never campaign. A witness votes, but for others only."""


def check_vote(raft: Raft, seen: LastSeen) -> None:
    """The term never falls, and a vote does not change within a term."""
    if raft.term < seen.term:
        raise Violation("INV8 terms never fall", f"{raft!r} was at {seen.term}")
    if raft.term == seen.term and seen.vote not in (0, raft.vote):
        raise Violation("INV8 a vote stands for its term", f"{raft!r} had voted for {seen.vote}")


def check_transition(history: History, raft: Raft, seen: LastSeen, identity: IdentityChecks) -> None:
    """A replica has changed its state or its term."""
    state = raft.state
    if state is State.LEADER:
        _check_election(history, raft, seen, identity)
    if seen.state is State.LEADER and state is not State.LEADER:
        history.happened["a leader stepped down" if raft.term == seen.term else "a leader was deposed"] += 1
    if seen.state is State.PRE_CANDIDATE and state in (State.FOLLOWER, State.PRE_CANDIDATE):
        history.happened["a pre-vote was not won"] += 1
    if seen.state is State.CANDIDATE and state is not State.LEADER:
        history.happened["an election was not won"] += 1


_CAMPAIGN_TIMEOUTS: Final = 3
"""How many election timeouts a voter without room waits at least."""


def check_campaign(raft: Raft, seen: LastSeen) -> None:
    """A replica begins a campaign or its pre-vote."""
    if raft.room.full and 0 < seen.elapsed < _CAMPAIGN_TIMEOUTS * raft.config.election_ticks:
        raise Violation("INV29 a voter without room waits", f"{raft!r}, after {seen.elapsed} ticks")
    log = raft.log
    with reading(log):
        unapplied = [change.index for change in changes(log.runs(log.applied + 1, log.committed + 1))]
    if unapplied or raft.log.pending_snapshot is not None:
        raise Violation("INV18 no campaign with an unapplied change", f"{raft!r}, changes at {unapplied}")
    if raft.base_state in _NON_VOTERS or not raft.membership.is_voter(raft.id):
        raise Violation("INV17 only voters campaign", repr(raft))


def _check_election(history: History, raft: Raft, seen: LastSeen, identity: IdentityChecks) -> None:
    first = history.leaders.setdefault(raft.term, raft.id)
    if first != raft.id:
        raise Violation("INV1 one leader per term", f"{first} and {raft.id} lead term {raft.term}")
    if raft.base_state in _NON_VOTERS or not raft.membership.is_voter(raft.id):
        raise Violation("INV17 only voters lead", repr(raft))
    if not identity.elect(raft, seen):
        raise Violation("INV1 a majority elects", f"{raft!r}, of {raft.membership}")
    history.happened["an election was won"] += 1
    seen.leading_since = raft.timers.ticks
    seen.transfer = 0
    seen.heard = {}
    seen.commits.clear()
    seen.probed = {}
    seen.peers = {}
    check_complete(history, raft)
