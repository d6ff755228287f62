"""What the core alone takes for a commit: three replicas in one thread, without a host, a disk or a network.

    python -m tests.benchmarks.core

It measures CPU time, and takes the best of several rounds, since other load only makes a round slower. Where
`make wheel` has built the compiled core, that is measured too, in turn with the interpreted one.
"""

import subprocess
import sys
import time
from random import Random

from drakkar.handlers import Entries, MemoryLog, Message, MessageType, Raft, RaftConfig, Run, State

from tests.benchmarks import programs
from tests.benchmarks.hosts import ROOT
from tests.benchmarks.systems import COMPILED, DRAKKAR, Unavailable

REPLICAS = (1, 2, 3)
COMMITS = 1000
"""Of each round."""
ROUNDS = 3
ONE = "one"
"""The argument that makes a process measure itself, and print the microseconds."""


class Shard:
    """Three replicas, of which the first leads. What they hand out is done at once."""

    def __init__(self) -> None:
        self._rafts = {
            replica: Raft(
                RaftConfig(replica_id=replica, shard_id=1),
                MemoryLog(membership=REPLICAS),
                random=Random(replica),
            )
            for replica in REPLICAS
        }
        self._leader = self._rafts[1]
        self._key = 1
        self._leader.step(Message(MessageType.ELECTION, sender=1))
        self._deliver()
        assert self._leader.state is State.LEADER

    def commit(self) -> None:
        """Propose one command, and go on until nothing is left to do."""
        run = Run(0, 0, [bytes(16)], b"", 7, self._key)
        self._key += 1
        self._leader.step(Message(MessageType.PROPOSE, sender=1, entries=Entries([run])))
        self._deliver()

    @property
    def applied(self) -> int:
        """How far all have applied the log."""
        return min(raft.log.applied for raft in self._rafts.values())

    def _deliver(self) -> None:
        turns = [1]
        while turns:
            raft = self._rafts[turns.pop(0)]
            while raft.has_ready:
                ready = raft.ready()
                raft.persisted(ready)
                if ready.committed:
                    raft.applied(ready.committed.runs[-1].last)
                for message in (*ready.messages, *ready.messages_after_save):
                    self._rafts[message.to].step(message)
                    turns.append(message.to)


def microseconds() -> float:
    """CPU time of one commit on all three replicas, the best of several rounds."""
    shard = Shard()
    best = float("inf")
    for _ in range(ROUNDS):
        before, start = shard.applied, time.process_time()
        for _ in range(COMMITS):
            shard.commit()
        best = min(best, time.process_time() - start)
        assert shard.applied == before + COMMITS
    return best / COMMITS * 1e6


def main() -> None:
    """Measure what there is."""
    if sys.argv[1:] == [ONE]:
        print(microseconds())
        return
    pythons = {DRAKKAR: sys.executable}
    try:
        pythons[COMPILED] = programs.compiled_python()
    except Unavailable as error:
        print(f"{COMPILED}: {error}")
    best = dict.fromkeys(pythons, float("inf"))
    for _ in range(ROUNDS):
        for system, python in pythons.items():
            command = [python, "-m", "tests.benchmarks.core", ONE]
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            best[system] = min(best[system], float(ran.stdout))
    for system, time_ in best.items():
        print(f"{system}: {time_:.0f} µs of CPU for a commit on three replicas in memory")


if __name__ == "__main__":
    main()
