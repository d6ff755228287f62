"""A scheduler of which one runs at a time, on one of three hosts. Kill its host, and it runs on another within seconds.

    python -m examples.singleton 1 --data s1
    python -m examples.singleton 2 --data s2
    python -m examples.singleton 3 --data s3

Start each in a terminal of its own, or with --hosts on three machines. One says which jobs it does. Kill that one
with `kill -9`: another goes on, with a greater fencing number. Press Enter in any to ask the scheduler, wherever it is.

Only the number is a guarantee. A scheduler whose process stood still may not know yet that it was replaced. So what it
works on compares the numbers, and refuses those of the past. `Jobs` does that here, in place of your database.
"""

import argparse
import sys
import time
from contextlib import suppress
from typing import BinaryIO

import pykka
from drakkar.actors import DrakkarError, NodeHost, Refused, Replica, Singleton, StateMachine

SHARD = 1
INTERVAL_S = 0.3


def show(text: str) -> None:
    """Print a line as a whole, since several threads print."""
    print(f"{text}\n", end="", flush=True)


class Jobs(StateMachine):
    """Counts the jobs that are done. A command is the fencing number of the scheduler that does one."""

    def __init__(self) -> None:
        self.fence = self.done = 0

    def apply(self, command: bytes) -> int:
        """Do a job, and return its number. Raises `Refused` for a scheduler of the past."""
        fence = int(command)
        if fence < self.fence:
            raise Refused(f"the scheduler with fence {fence} is over: there is one with {self.fence}")
        self.fence, self.done = fence, self.done + 1
        return self.done

    def query(self, _: object) -> int:
        """Return how many jobs are done."""
        return self.done

    def save(self, sink: BinaryIO) -> None:
        """Write both numbers."""
        sink.write(b"%d %d" % (self.fence, self.done))

    def load(self, source: BinaryIO) -> None:
        """Read both numbers."""
        self.fence, self.done = map(int, source.read().split())


class Scheduler(pykka.ThreadingActor):
    """Does one job after the other. If one fails, so does the scheduler, and its host starts another one."""

    def __init__(self, jobs: Replica, address: str, fence: int) -> None:
        super().__init__()
        self._jobs, self._address, self._fence = jobs, address, fence
        self._last = 0

    def on_start(self) -> None:
        """Begin."""
        show(f"the scheduler runs here, with fence {self._fence}")
        self.actor_ref.tell("work")

    def on_receive(self, message: str) -> str:
        """Do a job, and tell itself to do the next; or say how far it is."""
        if message == "work":
            self._last = self._jobs.propose(b"%d" % self._fence, timeout=2).get()
            show(f"job {self._last}, fence {self._fence}")
            time.sleep(INTERVAL_S)
            self.actor_ref.tell("work")
        return f"job {self._last}, fence {self._fence}, at {self._address}"


def start(host: NodeHost, number: int, hosts: list[str]) -> Singleton:
    """Start this host's replica of the jobs, and have the scheduler run where that leads."""
    members = dict(enumerate(hosts, 1))
    jobs = host.start_replica(Jobs, shard_id=SHARD, replica_id=number, members=members)
    return host.singleton("scheduler", Scheduler, shard_id=SHARD, args=(jobs, host.address))


def ask(scheduler: Singleton) -> str:
    """Ask the scheduler how far it is, wherever it runs."""
    try:
        return str(scheduler.ref(timeout=10).ask("how far?", timeout=5))
    except (DrakkarError, pykka.ActorDeadError, pykka.Timeout) as error:
        return f"no answer: {error}"


def main() -> None:
    """Run one host, until standard input ends."""
    local = [f"127.0.0.1:710{number}" for number in (1, 2, 3)]
    parser = argparse.ArgumentParser(prog="singleton")
    parser.add_argument("number", type=int, choices=(1, 2, 3), help="which of the three hosts this is")
    parser.add_argument("--hosts", nargs=3, default=local, metavar="HOST:PORT", help="all three, in order")
    parser.add_argument("--data", required=True, metavar="DIR", help="where this host keeps its log")
    options = parser.parse_args()
    address = options.hosts[options.number - 1]
    with suppress(KeyboardInterrupt), NodeHost(address, options.data) as host:
        scheduler = start(host, options.number, options.hosts)
        show("ready")
        for _ in sys.stdin:
            show(f"asked: {ask(scheduler)}")


if __name__ == "__main__":
    main()
