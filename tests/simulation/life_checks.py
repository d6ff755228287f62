"""Invariants of what one process knows of the life of others: judged by what it has heard, and by what really happened."""

from collections import Counter
from dataclasses import dataclass, field

from drakkar.handlers.testing.history import Violation
from drakkar.transport.liveness import DEAD_TICKS, SUSPECT_TICKS, HostState

HEARTBEATS = "INV59 a state follows from the newest heartbeat that was answered"
CHANGES = "INV60 a change of state is told once, in order"
GONE = "INV61 only a process that has ended is gone"
CALM = "INV62 without faults all see who is alive and who is not"
CALM_TICKS = 30
"""A process may be paused for half of that when the faults end, and then nothing was heard of it for as long."""


@dataclass
class Seen:
    """What a process has heard of another host, and has told of it."""

    run: int = 0
    newest: int | None = None
    """The newest heartbeat that this run has answered."""
    gone: bool = False
    told: tuple[int, HostState] = (0, HostState.UNKNOWN)
    """The run and the state in the last change that was told."""
    reported: set[int] = field(default_factory=set)
    """The runs that were reported as gone."""


class LifeChecks:
    """The checks of one process."""

    def __init__(self, really_gone, happened: Counter):
        """`really_gone(host, run)`: whether that run has ended, or a fault had this process take it for gone."""
        self._really_gone, self._happened = really_gone, happened
        self._ticks = 0
        self._seen = {}

    def of(self, host):
        return self._seen.setdefault(host, Seen())

    # -- what it hears: called before its Liveness is told ------------------------------------------------------------

    def ticked(self):
        self._ticks += 1

    def met(self, host, run):
        """It has reached this run. Where that was taken for gone, it lives, and was heard of just now."""
        seen = self.of(host)
        if seen.run != run:
            seen.run, seen.newest, seen.gone = run, None, False
        self.proved(host, run)

    def proved(self, host, run):
        """This run has answered a question."""
        seen = self.of(host)
        if seen.gone and seen.run == run:
            seen.gone, seen.newest = False, self._ticks - 1
            self._happened["a host that was taken for gone was heard again"] += 1

    def answered(self, host, run, number):
        seen = self.of(host)
        if seen.run == run and not seen.gone:
            seen.newest = max(number, seen.newest or 0)

    # -- what it tells ------------------------------------------------------------------------------------------------

    def told(self, host, event):
        seen = self.of(host)
        if (event.run, event.state) == seen.told or event.run < seen.told[0]:
            raise Violation(CHANGES, f"{event} after {seen.told}")
        if event.state is not HostState.DEAD and (event.run != seen.run or seen.gone):
            raise Violation(CHANGES, f"{event} of a run that is dead: {seen}")
        seen.told = event.run, event.state
        self._happened[f"a host was told to be {event.state.value}"] += 1

    def gone(self, host, run):
        """It is reported that a run is gone."""
        seen = self.of(host)
        if not self._really_gone(host, run):
            raise Violation(GONE, f"run {run} of {host} lives")
        if run in seen.reported:
            raise Violation(CHANGES, f"run {run} of {host} is gone once more")
        seen.reported.add(run)
        if run == seen.run:
            self.takes_for_gone(host)

    def takes_for_gone(self, host):
        """It takes the run that it has met last for gone, which it may have reported before."""
        seen = self.of(host)
        if seen.run not in seen.reported:
            raise Violation(GONE, f"no replica is told that {host} is gone: {seen}")
        seen.gone, seen.newest = True, None

    # -- what it knows ------------------------------------------------------------------------------------------------

    def look(self, host, life):
        """What its Liveness knows of a host, and has told, is what follows from what it has heard."""
        seen = self.of(host)
        expected = self._expected(seen)
        if life.state is not expected or life.run != seen.run:
            raise Violation(HEARTBEATS, f"{life} in tick {self._ticks}, and not {expected}: {seen}")
        if seen.told[1] is not expected:
            raise Violation(CHANGES, f"{life}, and what was told last is {seen.told}")

    def look_without_faults(self, host, life, *, up):
        if life.state is not HostState.ALIVE if up else life.state in (HostState.ALIVE, HostState.SUSPECT):
            raise Violation(CALM, f"{life} of {host}, which is {'up' if up else 'down'}: {self.of(host)}")

    def _expected(self, seen):
        if seen.gone:
            return HostState.DEAD
        if seen.newest is None:
            return HostState.UNKNOWN
        unanswered = self._ticks - seen.newest - 1  # the answer to that of this tick is not due yet
        if unanswered >= DEAD_TICKS:
            return HostState.DEAD
        return HostState.SUSPECT if unanswered >= SUSPECT_TICKS else HostState.ALIVE
