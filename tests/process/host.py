"""One host in a process of its own, which takes orders: a JSON object a line, each answered by one with its number.

    {"id": 1, "do": "propose", "command": "x", "timeout": 2}  ->  {"id": 1, "value": 7}
    {"id": 2, "do": "read", "timeout": 2}                     ->  {"id": 2, "value": 7}, how many commands there are
    {"id": 3, "do": "ledger", "timeout": 2}                   ->  {"id": 3, "value": ["x", …]}
    {"id": 4, "do": "status"}                                 ->  {"id": 4, "value": {"leader": 1, …}}
    {"id": 5, "do": "propose", …}                             ->  {"id": 5, "error": "NotLeader", "known": true, "text": "…"}

The first line tells it who it is. Many orders may be on their way. It ends when the orders do.
"""

import json
import logging
import queue
import sys
import threading
import time

from drakkar.actors import ActorFuture, DrakkarError, NodeHost

from tests.actors.support import Ledger


class CountedLedger(Ledger):
    """A ledger that can also be asked how long it is."""

    def query(self, query):
        return len(self.commands) if query == "count" else [command.decode() for command in self.commands]


class Answers:
    """Writes answers, from whatever thread they come, on a thread of its own: none of the loop's time is spent on it."""

    def __init__(self):
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def put(self, **answer):
        self._lines.put(json.dumps(answer))

    def put_outcome(self, number, future):
        value, error = future.outcome()
        if error is None:
            self.put(id=number, value=value)
        else:
            known = isinstance(error, DrakkarError) and error.outcome_known
            self.put(id=number, error=type(error).__name__, known=known, text=str(error)[:300])

    def _write(self):
        while True:
            sys.stdout.write(self._lines.get() + "\n")
            sys.stdout.flush()


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    who = json.loads(sys.stdin.readline())
    members = {int(replica): address for replica, address in who["members"].items()}
    answers = Answers()
    with NodeHost(members[who["replica"]], who["data"], tick_interval=who["tick"]) as host:
        if who["slow_disk"]:
            slow_down(host._store._disk, who["slow_disk"])
        replica = host.start_replica(CountedLedger, shard_id=1, replica_id=who["replica"], members=members)
        answers.put(id=0, value="started")
        for line in sys.stdin:
            obey(json.loads(line), replica, answers)


def slow_down(disk, seconds):
    """Writes take longer, on the store's thread, as they do on a busy disk."""
    write = disk.write

    def write_slowly(*changes):
        time.sleep(seconds)
        return write(*changes)

    disk.write = write_slowly


def obey(order, replica, answers):
    number, timeout = order["id"], order.get("timeout", 5.0)
    if order["do"] == "status":
        status = replica.status()
        answers.put(
            id=number,
            value={"leader": status.leader_id, "term": status.term, "applied": status.applied},
        )
        return
    future: ActorFuture = {
        "propose": lambda: replica.propose(order["command"].encode(), timeout=timeout),
        "read": lambda: replica.read("count", timeout=timeout),
        "ledger": lambda: replica.read("all", timeout=timeout),
    }[order["do"]]()
    future.add_done_callback(lambda done: answers.put_outcome(number, done))


if __name__ == "__main__":
    main()
