"""Strangers: hosts that belong to no member, know the shard's founding, and speak as one of its replicas.

    stranger(receiver, sender, choice) ──► a forged message, with an introduction of its own ──► nothing may change

What a stranger may say (`raft.permissions`) is not forged here: a leader's messages of a newer term and requests for votes, where there
are no certificates, or no leader was heard lately. No replica can tell them from those of members that it has not heard of yet.
"""

from random import Random
from typing import Any, Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.handlers.raft.lives import Life, Standing, founding_id
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.directories import Introduction
from drakkar.handlers.testing.disk_faults import DiskFaults
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.simulated_host import SHARD, SimulatedHost

__all__ = ["Strangers"]

_CHECK: Final = "INV54 what a stranger may not say changes nothing"
_HOME: Final = 99
_UNKNOWN: Final = 77
"""The id of no replica."""

M = MessageType


class Strangers(DiskFaults):
    """A shard that is spoken to by strangers."""

    def stranger(self, receiver: int, sender: int, choice: int) -> None:
        """Let a stranger say to `receiver` what only the member `sender` may; 0 stands for the leader."""
        host, member = self._host(receiver), self._host(sender)
        # What is held is handled first, so that all that changes then is the stranger's doing.
        if host is not None and host.held and self.is_awake(host):
            self._hand_over_held(host)
        if host is None or self.over or not self.is_awake(host) or not self.plan.homes:
            return
        speaks_as = _UNKNOWN if member is None or member is host else member.id
        random = Random(choice)
        said = self._stranger(random, speaks_as)
        proven = said.life.founding == host.raft.lives.own.founding or not host.raft.lives.own.founding
        hopeless = not proven or (said.life.certified and _expects_leader(host.raft))
        message = _forge(random, host.raft, speaks_as, all_is_forbidden=hopeless)
        before = _state_of(host.raft, speaks_as)
        if host.raft.has_ready:
            return  # one that has just started may have to stop for what its table does not take: not over what a stranger says
        if not host.raft.progress and not host.raft.leader_id:
            return  # one that knows no members, and follows none, has to believe all
        self.note("#", f"a stranger speaks as {speaks_as}: {said.life}")
        host.held.append((message, said))
        self._hand_over_held(host)
        self.invariants.happened["a stranger spoke"] += 1
        self._check_unchanged(host, message, before)

    def _stranger(self, random: Random, speaks_as: int) -> Introduction:
        """Introduce a stranger. Where there are certificates it has one for its own address, and may know a member's home."""
        member, certified = self.hosts.get(speaks_as), self.plan.certified
        copies = member is not None and certified and random.random() < 0.5
        home = member.directory.home if member is not None and copies else _HOME
        founding = founding_id(SHARD, self.first_members.addresses) if random.random() < 0.8 else b""
        life = Life(founding, home, random.choice(tuple(Standing)), "stranger:1", certified)
        return Introduction(life, 0, copied=False, forged=True)

    def _check_unchanged(self, host: SimulatedHost, message: Message, before: dict[str, Any]) -> None:
        if not host.up:
            raise Violation(_CHECK, f"{host.id} has ended over {message}")
        after = _state_of(host.raft, message.sender)
        changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        if changed:
            raise Violation(_CHECK, f"{host.raft!r} took {message}: {changed}")


def _forge(random: Random, raft: Raft, speaks_as: int, *, all_is_forbidden: bool) -> Message:
    """Return what would do most to a replica as it is now, and may not be said to it."""
    sent: dict[str, Any] = {"to": raft.id, "sender": speaks_as, "shard": SHARD}
    last, term = raft.log.last_index, raft.term
    if raft.leader_id not in {0, raft.id} and random.random() < 0.3:
        # The host of the leader is known.
        return random.choice(
            (
                Message(M.REPLICATE, **sent, term=term, log_index=last, log_term=raft.log.last_term),
                Message(M.HEARTBEAT, **sent, term=term, commit=last),
                Message(M.COMMIT, **sent, term=term, commit=last),
                Message(M.TIMEOUT_NOW, **sent, term=term),
            )
        )
    if all_is_forbidden and speaks_as not in raft.membership.removed and random.random() < 0.5:
        return random.choice(
            (
                Message(M.REPLICATE, **sent, term=term + 1, log_index=last, log_term=raft.log.last_term),
                Message(M.HEARTBEAT, **sent, term=term + 1_000, commit=last),
                Message(M.COMMIT, **sent, term=max(term, 1), commit=last),
                Message(
                    M.REQUEST_PRE_VOTE, **sent, term=max(term, 1), commit=last, hint_high=raft.log.last_term
                ),
                Message(M.REQUEST_VOTE, **sent, term=term + 1, log_index=last + 1, log_term=term + 1),
            )
        )
    match raft.state:
        case State.LEADER:
            proposal = (Entry(payload=b"a stranger's"),)
            return random.choice(
                (
                    Message(M.REPLICATE_RESP, **sent, term=term, log_index=last),
                    Message(M.HEARTBEAT_RESP, **sent, term=term, log_index=1 << 40),
                    Message(M.NO_OP, **sent, term=term + 1),
                    Message(M.PROPOSE, **sent, entries=proposal),
                )
            )
        case State.CANDIDATE:
            return Message(M.REQUEST_VOTE_RESP, **sent, term=term)
        case State.PRE_CANDIDATE:
            return Message(M.REQUEST_PRE_VOTE_RESP, **sent, term=term + 1)
        case _ if raft.lives.own.standing in {Standing.NEWBORN, Standing.FOUNDER}:
            return Message(M.NEWBORN, **sent, term=1, hint=_HOME)
        case _:
            return random.choice(
                (
                    Message(M.TIMEOUT_NOW, **sent, term=term + 1),
                    Message(M.NO_OP, **sent, term=term + 1),
                    Message(M.NEWBORN_RESP, **sent, term=term, hint=raft.lives.home, reject=True),
                )
            )


def _expects_leader(raft: Raft) -> bool:
    """Whether a leader was heard of lately. One that leads need not be heard, without CheckQuorum."""
    if raft.quiesce.quiesced or not raft.leader_id:
        return False
    if raft.state is State.LEADER:
        return raft.check_quorum
    return raft.timers.election_elapsed < raft.config.election_ticks


def _state_of(raft: Raft, speaks_as: int) -> dict[str, Any]:
    """Return what a message may change."""
    peer = raft.progress.get(speaks_as)
    return {
        "term": raft.term,
        "vote": raft.vote,
        "state": raft.state,
        "leader": raft.leader_id,
        "last entry": raft.log.last_index,
        "commit index": raft.log.committed,
        "votes": dict(raft.votes),
        "elapsed": raft.timers.election_elapsed,
        "life": raft.lives.met.get(speaks_as),
        "peer": None if peer is None else (peer.match, peer.next, peer.active),
        "own life": raft.lives.own,
    }
