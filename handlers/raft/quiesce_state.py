"""Whether a replica of an idle shard sleeps, counted in ticks of its own, which go on while it does (dragonboat)."""

from drakkar.handlers.raft.config import RaftConfig

__all__ = ["Quiesce"]


class Quiesce:
    """The sleep of one replica: when it may begin, and that it has begun."""

    def __init__(self, config: RaftConfig) -> None:
        self.on = config.quiesce
        self.settling = 2 * config.election_ticks
        """Ticks after falling asleep in which heartbeats still come from others that are about to."""
        self.threshold = 10 * self.settling
        """Idle ticks before falling asleep, and waking ticks before being put to sleep again."""
        self.quiesced = False
        self._now = 0
        self._idle_since = 0
        self._entered_at = 0
        self._left_at: int | None = None

    def tick(self, *, may_sleep: bool) -> bool:
        """A tick has passed. True if the replica falls asleep at this one, since it was idle for so long."""
        self._now += 1
        if not self._may_enter(may_sleep) or self._now - self._idle_since <= self.threshold:
            return False
        self._enter()
        return True

    def follow(self, *, may_sleep: bool) -> bool:
        """Another replica fell asleep. True if this one does too.

        One that has just woken up has a reason to stay awake.
        """
        just_left = self._left_at is not None and self._now - self._left_at < self.threshold
        if just_left or not self._may_enter(may_sleep):
            return False
        self._enter()
        return True

    @property
    def settled(self) -> bool:
        """Asleep for so long that all others are asleep too, so that even a heartbeat is news."""
        return self.quiesced and self._now - self._entered_at >= self.settling

    def note_activity(self) -> bool:
        """The shard is in use. True if that wakes this replica."""
        self._idle_since = self._now
        if not self.quiesced:
            return False
        self.quiesced = False
        self._left_at = self._now
        return True

    def _may_enter(self, may_sleep: bool) -> bool:
        return self.on and not self.quiesced and may_sleep

    def _enter(self) -> None:
        self.quiesced = True
        self._entered_at = self._idle_since = self._now
