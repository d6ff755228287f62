"""One host with many shards in a process of its own, which takes orders as `host` does and watches itself meanwhile.

{"id": 1, "do": "start", "shards": [1, 2], "members": {…}, "config": {…}}  ->  {"id": 1, "value": null}
{"id": 2, "do": "lead", "shards": [1, 2]}               ->  {"id": 2, "value": null}, once it leads all of them
{"id": 3, "do": "fill", "shards": [1, 2], "count": 300, "size": 1048576}  ->  {"id": 3, "value": null}
{"id": 4, "do": "status"}                               ->  {"id": 4, "value": {"1": {"term": 2, …}, …}}
{"id": 5, "do": "watch", "shard": 3}                    ->  {"id": 5, "value": null}: it begins anew to watch itself,
                                                            and to read this shard
{"id": 6, "do": "recover", "shards": [1, 2], "since": 7.5}  ->  {"id": 6, "value": [0.2, 0.3]}: how many seconds after that time of
                                                            `time.monotonic` each has answered a command
{"id": 7, "do": "seen"}                                 ->  {"id": 7, "value": {"lateness": 0.02, …}}
"""

import json
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trio
from drakkar.actors import DrakkarError, NodeHost, StateMachine, SystemBusy
from drakkar.handlers import State
from drakkar.transport.tls import TlsConfig

from tests.actors.support import settled, until
from tests.benchmarks.recovery import recover_all
from tests.process.host import Answers, obey, slow_down

LONG = 300.0
"""Seconds after which an order is stuck."""
READ_TIMEOUT = 2.0
READ_EVERY = 0.02
LOOP_EVERY = 0.005


class Counted(StateMachine):
    """How many commands there were, and their bytes: hundreds of MiB of log, and hardly any state."""

    def __init__(self):
        self.count = self.size = 0

    def apply(self, command):
        self.count, self.size = self.count + 1, self.size + len(command)

    def query(self, query):
        return self.count

    def save(self, sink):
        sink.write(json.dumps([self.count, self.size]).encode())

    def load(self, source):
        self.count, self.size = json.loads(source.read())


class Kept(StateMachine):
    """All commands, which must be of one size: a state as large as the log."""

    def __init__(self):
        self.commands = []

    def apply(self, command):
        self.commands.append(command)

    def query(self, query):
        return len(self.commands)

    def save(self, sink):
        for command in self.commands:
            sink.write(len(command).to_bytes(8) + command)

    def load(self, source):
        self.commands = []
        while size := source.read(8):
            self.commands.append(source.read(int.from_bytes(size)))


TOLD = ("term", "leader_id", "commit", "applied", "first_index")
MACHINES = {"counted": Counted, "kept": Kept}


class Watch:
    """What a host sees of itself: how late its loop is, how large its process gets, how long reads of a shard take."""

    def __init__(self, host, replica):
        self._host, self._replica = host, replica
        self._over = threading.Event()
        self._lateness = 0.0
        self._reads, self._failures = [], []
        self._counters = host.counters
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._task = host.loop.spawn(self._watch_loop, name="lateness")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    async def _watch_loop(self):
        while not self._over.is_set():
            due = trio.current_time() + LOOP_EVERY
            await trio.sleep_until(due)
            self._lateness = max(self._lateness, trio.current_time() - due)

    def _read(self):
        while not self._over.wait(READ_EVERY):
            asked = time.monotonic()
            try:
                self._replica.read(None, timeout=READ_TIMEOUT).get()
            except Exception as error:  # noqa: BLE001  # it is a figure
                self._failures.append(f"{type(error).__name__}: {error}"[:200])
            self._reads.append(time.monotonic() - asked)

    def seen(self):
        reads = sorted(self._reads)
        now = self._host.counters
        return {
            "lateness": self._lateness,
            "peak_mib": memory_mib("VmHWM"),
            "reads": len(reads),
            "slowest": reads[-1] if reads else 0.0,
            "median": reads[len(reads) // 2] if reads else 0.0,
            "failures": self._failures,
            "counters": {name: now[name] - self._counters[name] for name in now},
        }

    def end(self):
        self._over.set()
        self._thread.join(READ_TIMEOUT + 1)


def memory_mib(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(what))


class Shards:
    """The replicas of this host, and what it is ordered to do with them. Each order waits in a thread of its own."""

    def __init__(self, host, number):
        self._host, self._number = host, number
        self._replicas = {}
        self._watch = None

    def start(self, shards, machine="counted", members=None, config=None):
        """Without members, join as an observer."""
        members = members and {int(replica): address for replica, address in members.items()}
        role = None if members else State.OBSERVER
        for shard in shards:
            self._replicas[shard] = self._host.start_replica(
                MACHINES[machine],
                shard_id=shard,
                replica_id=self._number,
                members=members,
                join=members is None,
                role=role,
                config=config,
            )

    def lead(self, shards):
        """All at once: hundreds of transfers, one after the other, take minutes on a busy machine."""
        until(lambda: self._leads(shards), LONG)

    def _leads(self, shards):
        """Return whether it leads all; have the others handed over to it."""
        replicas = [self._replicas[shard] for shard in shards]
        others = [each for each in replicas if each.status().state is not State.LEADER]
        asked = [each.transfer_leadership(self._number, timeout=2.0) for each in others]
        for transfer in asked:  # another one may be elected, or be in the middle of a transfer
            assert isinstance(settled(transfer), (int, DrakkarError))
        return not others

    def recover(self, shards, since):
        """See `tests.benchmarks.recovery`."""
        return recover_all(self._host, [self._replicas[shard] for shard in shards], LONG, since)

    def fill(self, shards, count, size, window=4):
        """Propose so many commands to each of these shards, one shard after the other, `window` at a time."""
        for shard in shards:
            with ThreadPoolExecutor(window) as pool:
                for done in [pool.submit(self._propose, shard, number, size) for number in range(count)]:
                    done.result()

    def _propose(self, shard, number, size):
        """Propose a command until it is not refused: the disk of a busy machine may be slow."""
        command = number.to_bytes(8) * (size // 8)  # each has memory of its own, of which every page is used
        until(lambda: not isinstance(settled(self._replicas[shard].propose(command), LONG), SystemBusy), LONG)

    def change(self, shards, how, replica, address):
        for shard in shards:
            getattr(self._replicas[shard], how)(replica, address, timeout=30).get()

    def status(self):
        return {
            shard: {"standing": status.standing.name, **{name: getattr(status, name) for name in TOLD}}
            for shard, replica in self._replicas.items()
            if (status := replica.status())
        }

    def read(self, shard):
        return self._replicas[shard].read(None, timeout=READ_TIMEOUT).get()

    def watch(self, shard):
        if self._watch is not None:
            self._watch.end()
        self._watch = Watch(self._host, self._replicas[shard])

    def seen(self):
        return self._watch.seen()

    def memory(self):
        return memory_mib("VmRSS")


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    who = json.loads(sys.stdin.readline())
    answers = Answers()
    with NodeHost(
        who["members"][str(who["replica"])],
        who["data"],
        listen_address=who.get("listen"),
        tick_interval=who["tick"],
        tls=TlsConfig(**who["tls"]) if "tls" in who else None,
    ) as host:
        if who["slow_disk"]:
            slow_down(host, who["slow_disk"])
        obey(Shards(host, who["replica"]), answers)


if __name__ == "__main__":
    main()
