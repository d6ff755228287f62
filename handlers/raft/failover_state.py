"""The campaign of a voter whose leader's process is gone; the conversation is in `failover`."""

from dataclasses import dataclass

__all__ = ["Failover"]


@dataclass(slots=True)
class Failover:
    """When a voter asks for pre-votes since its leader is gone, and how often it still may."""

    attempts: int = 0
    """How often it may still ask; 0: it does not campaign for this reason."""
    due: int = 0
    """The value of `Timers.ticks` from which on it asks."""
    place: int = 0
    """How many other voters ask before it."""
    gone: int = 0
    """The leader whose process is gone."""

    def end(self) -> None:
        """There is a leader again, or an election that is won or lost by the ordinary rules."""
        self.attempts = 0
