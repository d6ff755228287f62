"""What the log says of the state of a replica: who leads, how elections end, who the members are.

The core has no I/O, so it logs nothing. Its node compares what it shows after each batch with what it showed before.
"""

from collections.abc import Collection
from typing import Final

from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership, State
from drakkar.transport.addresses import canonical

__all__ = ["StateLines"]

LONG_WITHOUT_LEADER: Final = 10
"""Election timeouts without a leader after which that is a warning: an election takes one or two."""

MAY_BE_LATE: Final = "answer from a non-member"
"""The fault that a correct peer may cause too, just after it was removed."""


class StateLines:
    """Logs each change of a replica's leader and members, once. All methods are for the loop's thread."""

    def __init__(self, raft: Raft, lines: Lines) -> None:
        self._raft, self._lines = raft, lines
        self._seen = self._look()
        self._members = _members(raft.membership)
        self._ticks_without_leader = 0
        self._faults = {MAY_BE_LATE}
        self.won = self.lost = 0
        """Elections."""
        self.leaders = 0
        """How many times another leader, or none, was known than before."""

    def _look(self) -> tuple[State, int, int, int]:
        raft = self._raft
        return raft.state, raft.term, raft.leader_id, raft.transfer.target

    def started(self, state_machine: str) -> None:
        """Log with what the replica begins."""
        raft, log = self._raft, self._raft.log
        self._lines.info(
            "started as %s of term %d with %s: snapshot at %d, log up to %d, committed up to %d; %s",
            raft.state.name,
            raft.term,
            state_machine,
            log.snapshot.index,
            log.last_index,
            log.committed,
            self._members or "no members are known yet",
        )

    def compare(self) -> None:
        """Log what has changed since the last call. Called after every batch."""
        now = self._look()
        if now != self._seen:
            before, self._seen = self._seen, now
            self._tell_of_election(before, now)
            self._tell_of_leader(before, now)
            self._tell_of_transfer(before, now)
        if not self._faults.issuperset(self._raft.faults):
            self._tell_of_faults()

    def _tell_of_election(
        self, before: tuple[State, int, int, int], now: tuple[State, int, int, int]
    ) -> None:
        was, asked_in, *_ = before
        state, term, *_ = now
        if state is State.LEADER and (was, asked_in) != (State.LEADER, term):
            self.won += 1
            self._lines.info("won the election of term %d", term)
        elif was is State.CANDIDATE and (state, term) != (State.CANDIDATE, asked_in):
            self.lost += 1
            self._lines.info("lost the election of term %d", asked_in)

    def _tell_of_leader(self, before: tuple[State, int, int, int], now: tuple[State, int, int, int]) -> None:
        _, old_term, old, _ = before
        state, term, leader, _ = now
        if leader == old and (not leader or term == old_term):
            return
        self.leaders += 1
        if leader == 0 and old == self._raft.id:
            self._lines.info("leads no longer, and knows no leader in term %d", term)
        elif leader == 0:
            self._lines.info("lost its leader, replica %d, and knows none in term %d", old, term)
        elif state is not State.LEADER:
            self._lines.info("replica %d leads in term %d", leader, term)

    def _tell_of_transfer(
        self, before: tuple[State, int, int, int], now: tuple[State, int, int, int]
    ) -> None:
        *_, old_target = before
        state, term, _, target = now
        if target not in (0, old_target):
            self._lines.info("hands leadership over to replica %d", target)
        elif old_target and not target and (state, term) == (State.LEADER, before[1]):
            self._lines.info("leads on: the transfer to replica %d was given up", old_target)

    def _tell_of_faults(self) -> None:
        """Warn of the first of each kind only, since a faulty peer may go on for ever."""
        for what in self._raft.faults.keys() - self._faults:
            self._lines.warning(
                "a message came that no correct replica sends, and was not heeded (%s): see whether all hosts run the same "
                "version, and the members that they were started with; further ones are only counted",
                what,
            )
        self._faults.update(self._raft.faults)

    def tick(self) -> None:
        """Count a tick, and warn once where no leader has been known for long."""
        if self._raft.leader_id:
            self._ticks_without_leader = 0
            return
        self._ticks_without_leader += 1
        if self._ticks_without_leader == LONG_WITHOUT_LEADER * self._raft.config.election_ticks:
            self._warn_of_no_leader()

    def _warn_of_no_leader(self) -> None:
        address = self._raft.membership.addresses.get(self._raft.id, "")
        if address and self._lines.host and canonical(address) != canonical(self._lines.host):
            self._lines.warning(
                "has known no leader for %d election timeouts: its shard reaches it at %s, where this host is not. Start the "
                "host there, or tell the shard where it is with Replica.update_address, on a host that works",
                LONG_WITHOUT_LEADER,
                address,
            )
        elif self._raft.voters:
            self._lines.warning(
                "has known no leader for %d election timeouts: a majority of its voters %s must be up, and reach one "
                "another",
                LONG_WITHOUT_LEADER,
                self._raft.voters,
            )
        else:
            self._lines.warning(
                "has heard of no leader for %d election timeouts, and knows no member: have a member of its shard add it, "
                "with the address of this host",
                LONG_WITHOUT_LEADER,
            )

    def members(self) -> None:
        """Log the members, unless they are those of the last call."""
        members = _members(self._raft.membership)
        if members != self._members:
            self._members = members
            self._lines.info("the membership is now: %s", members)


def _members(membership: Membership) -> str:
    """Return the members by role, such as "voters 1, 2, 3; observers 4"."""
    roles: dict[str, Collection[int]] = {
        "voters": membership.voters,
        "observers": membership.observers,
        "witnesses": membership.witnesses,
        "outgoing voters": membership.outgoing,
    }
    named = {role: ", ".join(map(str, sorted(ids))) for role, ids in roles.items() if ids}
    return "; ".join(f"{role} {ids}" for role, ids in named.items())
