"""How a client finds out that its commands are answered again, after the leader's process was killed."""

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from tests.benchmarks.load import Load, LoadError, Target

PROBE_EVERY_S: Final = 0.01
PROBE_ALL_EVERY_S: Final = 0.1
"""Where there are many shards: so much later they try again what has failed."""


def recover(target: Target, within: float) -> None:
    """Propose a command every few milliseconds, without waiting for those before, until one is answered.

    Raises `LoadError` if none is within so many seconds. Commands may fail meanwhile: there may be no leader.
    """
    probe = Load(1, within).command
    answered = threading.Event()

    def done(error: BaseException | None) -> None:
        if error is None:
            answered.set()

    until = time.monotonic() + within
    while time.monotonic() < until:
        target.propose([probe], done)
        if answered.wait(PROBE_EVERY_S):
            return
    raise LoadError(f"no command was answered within {within:g} s")


def recover_all(host: Any, replicas: Sequence[Any], within: float, since: float) -> list[float]:
    """Have a command answered in each of these shards of a Drakkar host.

    Returns, in order, how many seconds after `since` (of `time.monotonic`, which all processes of a machine share) each was.
    Raises `LoadError` if one was not within so many seconds.

    A client of each shard proposes at once, when its leader is lost, and whenever that has failed: to propose to 300 shards every few
    milliseconds would take more of the machine than the elections. The host keeps what it cannot send to a leader yet.
    """
    clients = _Clients(replicas, since)
    host.subscribe(clients.hear)
    try:
        until = time.monotonic() + within
        while True:
            clients.propose_idle()
            if clients.all_answered.wait(PROBE_ALL_EVERY_S):
                return sorted(clients.times.values())
            if time.monotonic() > until:
                missing = len(replicas) - len(clients.times)
                raise LoadError(
                    f"{missing} of {len(replicas)} shards answered no command within {within:g} s"
                )
    finally:
        host.unsubscribe(clients.hear)


class _Clients:
    """One of each shard."""

    def __init__(self, replicas: Sequence[Any], since: float) -> None:
        self._replicas = {replica.shard_id: replica for replica in replicas}
        self._since = since
        self._expected: dict[int, Any] = {}
        """What each shard is to answer: what was proposed last, unless that has failed."""
        self.times: dict[int, float] = {}
        """When each shard answered first."""
        self.all_answered = threading.Event()

    def hear(self, event: Any) -> None:
        """A host has something to tell. Of all events, one that names no leader is of interest: what it was to answer is lost."""
        if getattr(event, "leader", 1) == 0 and event.shard in self._replicas:
            self._propose(event.shard)

    def propose_idle(self) -> None:
        """Propose to all that have not answered, and of which no answer is expected."""
        for shard in self._replicas.keys() - self._expected.keys():
            self._propose(shard)

    def _propose(self, shard: int) -> None:
        if shard not in self.times:
            proposed = self._expected[shard] = self._replicas[shard].propose(b"again")
            proposed.add_done_callback(lambda done: self._answered(shard, done))

    def _answered(self, shard: int, proposed: Any) -> None:
        _, error = proposed.outcome()
        if error is None:
            self.times.setdefault(shard, time.monotonic() - self._since)
            if len(self.times) == len(self._replicas):
                self.all_answered.set()
        elif self._expected.get(shard) is proposed:
            del self._expected[shard]
