"""One host in a process of its own, which takes orders: a JSON object a line, each answered by one with its number.

    {"id": 1, "do": "propose", "command": "x", "timeout": 2}  ->  {"id": 1, "value": 7}
    {"id": 2, "do": "read", "query": null, "timeout": 2}      ->  {"id": 2, "value": ["x", …]}
    {"id": 3, "do": "status"}                                 ->  {"id": 3, "value": {"leader": 1, …}}
    {"id": 4, "do": "propose", …}                             ->  {"id": 4, "error": "NotLeader", "known": true, "text": "…"}
    {"id": 5, "do": "change", "how": "add_observer", "replica": 7, "address": "…"}  ->  {"id": 5, "value": null}
    {"id": 6, "do": "leave", "replica": 3}                    ->  {"id": 6, "value": null}, once that one has ended
    {"id": 7, "do": "join", "replica": 7}                     ->  {"id": 7, "value": null}

The first line tells it who it is. Many orders may be on their way. It ends when the orders do. Other processes give
theirs at its door, a Unix socket, where it has one: such a socket is a file, so it is reached from all network namespaces.
"""

import json
import logging
import queue
import socketserver
import sys
import threading
from contextlib import suppress
from pathlib import Path

import trio
from drakkar.actors import (
    ActorFuture,
    ConcurrentStateMachine,
    ConfigError,
    DrakkarError,
    NodeHost,
    NotLeader,
)
from drakkar.handlers import State

from tests.actors.support import Ledger, until


class CountedLedger(Ledger):
    """A ledger that can also be asked how long it is."""

    def query(self, query):
        return len(self.commands) if query == "count" else [command.decode() for command in self.commands]

    def save(self, sink):
        sink.write(json.dumps([command.decode() for command in self.commands]).encode())

    def load(self, source):
        self.commands = [command.encode() for command in json.loads(source.read())]


class Registers(ConcurrentStateMachine):
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

    def capture(self):
        fixed = dict(self.values)
        return lambda sink: sink.write(json.dumps(fixed).encode())

    def load(self, source):
        self.values = json.loads(source.read())


MACHINES = {"ledger": CountedLedger, "registers": Registers}


class Answers:
    """Writes answers on a thread of its own, so that the loop spends no time on it. Callable from any thread."""

    def __init__(self):
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def put(self, answer):
        self._lines.put(json.dumps(answer))

    def _write(self):
        while True:
            sys.stdout.write(self._lines.get() + "\n")
            sys.stdout.flush()


def obey(orders, answers):
    """Do what standard input says: each line names a method of `orders` and its arguments."""
    answers.put({"id": 0, "value": "started"})
    for line in sys.stdin:
        order = json.loads(line)
        number, do = order.pop("id"), order.pop("do")
        del order["timeout"]
        in_thread(getattr(orders, do), **order).add_done_callback(
            lambda done, number=number: answers.put(outcome(number, done))
        )


class Seat:
    """The place of this host in the shard, and the replica that has it: none for a while, where it is replaced."""

    def __init__(self, host, who):
        self.host, self._who = host, who
        self._members = {int(replica): address for replica, address in who["members"].items()}
        self._machine = MACHINES[who.get("machine", "ledger")]
        self._config = who.get("config")
        self.replica = None

    def take(self):
        """Start the replica of this host, if it has one that was not removed."""
        if self._who["joined"]:
            with suppress(ConfigError):  # it was removed, and its data, when this host was killed
                self.join(self._who["seat"])
        elif self._who["seat"]:
            with suppress(ConfigError):
                self.replica = self.host.start_replica(
                    self._machine,
                    shard_id=1,
                    replica_id=self._who["seat"],
                    members=self._members,
                    config=self._config,
                )

    def join(self, number):
        if self._runs(number):
            return
        self.replica = self.host.start_replica(
            self._machine,
            shard_id=1,
            replica_id=number,
            join=True,
            role=State.OBSERVER,
            config=self._config,
        )

    def leave(self, number):
        """Wait until the replica has ended, as it was removed, and forget its data."""
        until(lambda: not self._runs(number))
        self.replica = None
        with suppress(ConfigError):  # done before this host was killed
            self.host.remove_data(1, number)

    def _runs(self, number):
        try:
            return self.host.replica(1).replica_id == number
        except ConfigError:
            return False

    def status(self):
        if self.replica is None:
            return {"leader": 0, "term": 0, "applied": 0, "voters": [], "standing": "", "refused": []}
        status = self.replica.status()
        numbers = {address: number for number, address in self._members.items()}
        leader = numbers.get(status.addresses.get(status.leader_id), 0)
        return {
            "leader": leader,
            "term": status.term if leader else 0,
            "applied": status.applied,
            "voters": status.voters,
            "members": [*status.voters, *status.observers],
            "first": status.first_index,
            "standing": status.standing.name,
            "refused": sorted(status.refused),
        }


class Door(socketserver.ThreadingUnixStreamServer):
    """Where clients from other processes give their orders, one after the other on each connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path, seat):
        Path(path).unlink(missing_ok=True)  # it outlives a host that is killed
        super().__init__(path, Guest)
        self.seat = seat


class Guest(socketserver.StreamRequestHandler):
    """A client, with a session of its own for what shall happen exactly once."""

    session = None

    def handle(self):
        with suppress(ConnectionError):  # clients leave when they like
            for line in self.rfile:
                order, done = json.loads(line), queue.SimpleQueue()
                self._begin(order).add_done_callback(done.put)
                self.wfile.write(json.dumps(outcome(order["id"], done.get())).encode() + b"\n")

    def _begin(self, order):
        seat = self.server.seat
        if order["do"] != "once" or seat.replica is None:
            return begin(order, seat)
        try:
            # One whose last outcome is not known is of no use to this client, which goes on to other things.
            if self.session is None or self.session.open:
                self.session = seat.replica.session(timeout=order["timeout"]).get()
            return self.session.propose(order["command"].encode(), timeout=order["timeout"])
        except DrakkarError as error:
            self.session = None
            return failed(error)


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    who = json.loads(sys.stdin.readline())
    answers = Answers()
    with NodeHost(
        who["members"][str(who["replica"])],
        who["data"],
        listen_address=who.get("listen"),
        tick_interval=who["tick"],
    ) as host:
        if who.get("slow_disk"):
            slow_down(host, who["slow_disk"])
        seat = Seat(host, who)
        seat.take()
        if "door" in who:
            threading.Thread(target=Door(who["door"], seat).serve_forever, daemon=True).start()
        answers.put({"id": 0, "value": "started"})
        for line in sys.stdin:
            order = json.loads(line)
            begin(order, seat).add_done_callback(
                lambda done, number=order["id"]: answers.put(outcome(number, done))
            )


def slow_down(host, seconds):
    """Flushes take longer, as they do on a busy disk."""
    driver = host._store._driver
    flush = driver.flush

    async def flush_later(*flushed):
        await trio.sleep(seconds)
        flush(*flushed)

    driver.flush = lambda *flushed: host.loop.spawn(flush_later, *flushed)


def begin(order, seat) -> ActorFuture:
    timeout, replica = order.get("timeout", 5.0), seat.replica
    match order["do"]:
        case "status":
            future = ActorFuture()
            future.set(seat.status())
            return future
        case "join":
            return in_thread(seat.join, order["replica"])
        case "leave":
            return in_thread(seat.leave, order["replica"])
        case _ if replica is None:
            return failed(NotLeader(0, 0, "no replica has this seat now"))
        case "propose" | "once":
            return replica.propose(order["command"].encode(), timeout=timeout)
        case "read":
            return replica.read(order["query"], timeout=timeout)
        case "change":
            who = [order["replica"], *([order["address"]] if "address" in order else [])]
            return as_null(getattr(replica, order["how"])(*who, timeout=timeout))
        case other:
            raise AssertionError(f"{other!r} is no order")


def in_thread(function, *args, **kwargs):
    """For what may wait."""
    future = ActorFuture()

    def work():
        try:
            future.set(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # it is the answer
            future.fail(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def as_null(asked):
    """The new membership is of no interest."""
    future = ActorFuture()

    def told(done):
        _, error = done.outcome()
        future.set(None) if error is None else future.fail(error)

    asked.add_done_callback(told)
    return future


def failed(error):
    future = ActorFuture()
    future.fail(error)
    return future


def outcome(number, done):
    value, error = done.outcome()
    if error is None:
        return {"id": number, "value": value}
    known = isinstance(error, DrakkarError) and error.outcome_known
    return {"id": number, "error": type(error).__name__, "known": known, "text": str(error)[:300]}


if __name__ == "__main__":
    main()
