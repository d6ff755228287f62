"""Why a request has no answer by its deadline: what it waited for, as far as this replica knows."""

import time
from collections.abc import Callable
from typing import Final

from drakkar.actors.machine.applier import Applier
from drakkar.actors.runtime.scheduler import SlowTurn
from drakkar.handlers.errors import NotLeader, OutcomeUnknown, RequestDropped
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State

__all__ = ["DeadlineErrors"]

RECENT_S: Final = 10.0
"""For how long a turn that kept the loop may be why no leader is known: the default timeout of a request, twice."""


class DeadlineErrors:
    """The errors for requests whose deadline passes now. For the loop's thread."""

    def __init__(self, raft: Raft, applier: Applier, *, slow_turn: Callable[[], SlowTurn | None]) -> None:
        """`slow_turn` returns the last turn that kept the host's loop for long."""
        self._raft, self._applier, self._slow_turn = raft, applier, slow_turn

    def no_leader(self) -> NotLeader | None:
        """For requests that waited for a leader; None if one is known."""
        raft = self._raft
        if raft.leader_id:
            return None
        lag, slow = self._lag(), self._slow_turn()
        if lag and self._campaigns_later():
            detail = (
                f"by the deadline {lag}, and it does not campaign before the membership changes among them are applied: "
                "wait, then repeat it"
            )
        elif slow is not None and time.monotonic() - slow.ended < RECENT_S:
            detail = (
                f"no leader was heard by the deadline, after {slow.actor} had kept the loop of this host for "
                f"{slow.seconds:.1f} s: what runs on the loop, as a state machine with blocks = False does, must be quick"
            )
        else:
            detail = "no leader was known by the deadline: repeat it"
        return NotLeader(raft.id, 0, detail)

    def proposal(self) -> OutcomeUnknown:
        """For proposals that went to a leader."""
        return OutcomeUnknown(
            f"no answer by its deadline: {self._lag() or 'it was not known here to be committed'}. It may or may not have been "
            "committed, and may still be; read the state before proposing it again"
        )

    def unconfirmed_read(self) -> RequestDropped:
        """For reads that a leader has not confirmed."""
        return RequestDropped("the leader did not confirm the read by its deadline: repeat it")

    def read(self, index: int) -> RequestDropped:
        """For reads that are to see the state at `index`, as the leader has confirmed."""
        return RequestDropped(
            f"the read needs the state at entry {index}, and by its deadline {self._why_not(index)}: repeat it"
        )

    def query(self) -> RequestDropped:
        """For reads that went to the state machine."""
        return RequestDropped(
            "the state machine did not answer the read by its deadline: it is slow, or busy with what came before. Repeat it"
        )

    def applied(self, index: int) -> RequestDropped:
        """For those who wait until `index` is applied."""
        return RequestDropped(
            f"entry {index} was not applied by the deadline, by when {self._why_not(index)}: wait again"
        )

    def _why_not(self, index: int) -> str:
        committed = self._raft.log.committed
        lag = self._lag() if index <= committed or self._applier.loading else ""
        return lag or f"this replica knew entries up to {committed} to be committed"

    def _lag(self) -> str:
        """Say what the state machine has yet to do; nothing if it has done all that is committed."""
        log = self._raft.log
        if self._applier.loading:
            return "this replica's state machine was still loading a snapshot"
        if log.applied < log.committed:
            return (
                f"this replica's state machine had applied {log.applied} of {log.committed} committed entries"
            )
        return ""

    def _campaigns_later(self) -> bool:
        """Whether this replica cannot campaign yet: see `election.campaign`."""
        raft = self._raft
        if raft.base_state is not State.FOLLOWER:
            return False
        try:
            return raft.log.pending_snapshot is not None or raft.log.unapplied_change()
        except EntriesNotLoaded:
            return True
