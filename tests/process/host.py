"""One host in a process of its own, which takes orders: a JSON object a line, each answered by one with its number.

    {"id": 1, "do": "propose", "command": "x", "timeout": 2}  ->  {"id": 1, "value": 7}
    {"id": 2, "do": "read", "query": null, "timeout": 2}      ->  {"id": 2, "value": ["x", …]}
    {"id": 3, "do": "status"}                                 ->  {"id": 3, "value": {"leader": 1, …}}
    {"id": 4, "do": "propose", …}                             ->  {"id": 4, "error": "NotLeader", "known": true, "text": "…"}

The first line tells it who it is. Many orders may be on their way. It ends when the orders do. Other processes give
theirs at its door, a Unix socket, where it has one: such a socket is a file, so it is reached from all network namespaces.
"""

import json
import logging
import queue
import socketserver
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from drakkar.actors import ActorFuture, DrakkarError, NodeHost, StateMachine

from tests.actors.support import Ledger


class CountedLedger(Ledger):
    """A ledger that can also be asked how long it is."""

    def query(self, query):
        return len(self.commands) if query == "count" else [command.decode() for command in self.commands]


class Registers(StateMachine):
    """Texts under keys. A command is a kind, a key and an argument, as JSON; a query is a key, or null for all."""

    def __init__(self):
        self.values = {}

    def apply(self, command):
        kind, key, argument = json.loads(command)
        return getattr(self, kind)(key, self.values.get(key), argument)

    def put(self, key, before, text):
        self.values[key] = text
        return before

    def add(self, key, before, text):
        self.values[key] = (before or "") + text
        return self.values[key]

    def cas(self, key, before, change):
        expected, new = change
        if before == expected:
            self.values[key] = new
        return before == expected

    def query(self, query):
        return dict(self.values) if query is None else self.values.get(query)


MACHINES = {"ledger": CountedLedger, "registers": Registers}


class Answers:
    """Writes answers, from whatever thread they come, on a thread of its own: none of the loop's time is spent on it."""

    def __init__(self):
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def put(self, answer):
        self._lines.put(json.dumps(answer))

    def _write(self):
        while True:
            sys.stdout.write(self._lines.get() + "\n")
            sys.stdout.flush()


class Door(socketserver.ThreadingUnixStreamServer):
    """Where clients from other processes give their orders, one after the other on each connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path, replica):
        Path(path).unlink(missing_ok=True)  # it outlives a host that is killed
        super().__init__(path, Guest)
        self.replica = replica


class Guest(socketserver.StreamRequestHandler):
    def handle(self):
        with suppress(ConnectionError):  # clients leave when they like
            for line in self.rfile:
                order, done = json.loads(line), queue.SimpleQueue()
                begin(order, self.server.replica).add_done_callback(done.put)
                self.wfile.write(json.dumps(outcome(order["id"], done.get())).encode() + b"\n")


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    who = json.loads(sys.stdin.readline())
    number = who["replica"]
    members = {int(replica): address for replica, address in who["members"].items()}
    answers = Answers()
    with NodeHost(
        members[number], who["data"], listen_address=who.get("listen"), tick_interval=who["tick"]
    ) as host:
        if who.get("slow_disk"):
            slow_down(host._store._disk, who["slow_disk"])
        machine = MACHINES[who.get("machine", "ledger")]
        replica = host.start_replica(machine, shard_id=1, replica_id=number, members=members)
        if "door" in who:
            threading.Thread(target=Door(who["door"], replica).serve_forever, daemon=True).start()
        answers.put({"id": 0, "value": "started"})
        for line in sys.stdin:
            order = json.loads(line)
            begin(order, replica).add_done_callback(
                lambda done, number=order["id"]: answers.put(outcome(number, done))
            )


def slow_down(disk, seconds):
    """Writes take longer, on the store's thread, as they do on a busy disk."""
    write = disk.write

    def write_slowly(*changes):
        time.sleep(seconds)
        return write(*changes)

    disk.write = write_slowly


def begin(order, replica) -> ActorFuture:
    timeout = order.get("timeout", 5.0)
    match order["do"]:
        case "propose":
            return replica.propose(order["command"].encode(), timeout=timeout)
        case "read":
            return replica.read(order["query"], timeout=timeout)
        case "status":
            status, future = replica.status(), ActorFuture()
            future.set({"leader": status.leader_id, "term": status.term, "applied": status.applied})
            return future
        case other:
            raise AssertionError(f"{other!r} is no order")


def outcome(number, done):
    value, error = done.outcome()
    if error is None:
        return {"id": number, "value": value}
    known = isinstance(error, DrakkarError) and error.outcome_known
    return {"id": number, "error": type(error).__name__, "known": known, "text": str(error)[:300]}


if __name__ == "__main__":
    main()
