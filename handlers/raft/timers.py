"""The timers of one replica, counted in ticks of its host's clock."""

from dataclasses import dataclass
from random import Random

from drakkar.handlers.raft.config import RaftConfig

__all__ = ["Timers"]


@dataclass(slots=True)
class Timers:
    """How much time has passed, in ticks."""

    ticks: int = 0
    """Since the start."""
    election_elapsed: int = 0
    """Since a leader was heard or a vote granted; at a leader, since it last checked for a quorum."""
    leader_heard: int = 0
    """The value of `ticks` when a leader was last heard, or this replica led; 0 if neither was yet."""
    heartbeat_elapsed: int = 0
    """At a leader: since the last heartbeats."""
    randomized_timeout: int = 0
    """`election_elapsed` at which this replica campaigns; drawn anew at each change of state (thesis §3.4)."""
    no_votes_before: int = 0
    """The value of `ticks` before which this replica neither votes nor campaigns, unless its leader asks for that: it has
    confirmed the leader's lease, or may have done so before it restarted."""

    def restart(self, config: RaftConfig, random: Random) -> None:
        """Begin to wait anew, with a new random timeout."""
        self.election_elapsed = self.heartbeat_elapsed = 0
        self.randomized_timeout = config.randomized_timeout(random)

    @property
    def lease_lasts(self) -> bool:
        """Whether a leader may serve reads by a lease that this replica has confirmed."""
        return self.ticks < self.no_votes_before
