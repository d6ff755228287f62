"""One host in a process of its own, under attack: it runs shards, commits what an innocent client proposes, and says how it is.

    {"id": 1, "do": "start", "shard": 1}                  ->  {"id": 1, "value": null}
    {"id": 2, "do": "load", "shard": 1}                   ->  {"id": 2, "value": null}, and proposes from now on
    {"id": 3, "do": "commits"}                            ->  {"id": 3, "value": [[when, how many], …]}
    {"id": 4, "do": "propose", "shard": 1, "command": ""} ->  {"id": 4, "value": 7}

The first line tells it who it is; it ends when the orders do. See `tests.process.host`, which it shares its manners with.
"""

import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pykka
from drakkar.actors import ActorFuture, NodeHost, StateMachine, TlsConfig, TrioActor
from drakkar.transport.options import Options

from tests.actors.support import hand_over
from tests.process.host import Answers, CountedLedger, obey

CLIENTS = 2
LONG_S = 30.0


class Hanging(CountedLedger):
    """A ledger that hangs at one command until the process ends."""

    def apply(self, command):
        if command == b"hang":
            threading.Event().wait()
        return super().apply(command)


class Counting(StateMachine):
    """Counts commands, on the loop of the host."""

    blocks = False

    def __init__(self):
        self.count = 0

    def apply(self, command):
        self.count += 1
        return self.count

    def query(self, query):
        return self.count

    def save(self, sink):
        sink.write(str(self.count).encode())

    def load(self, source):
        self.count = int(source.read())


class Echo(TrioActor):
    """Answers with what it is sent."""

    def on_receive(self, message):
        return message

    def echo(self, value=None):
        return value

    def _private(self):
        raise SystemExit("a proxy has reached what is private")


class Never(TrioActor):
    """Never answers, and takes all that it is sent."""

    def on_receive(self, message):
        return ActorFuture()


class Blocked(pykka.ThreadingActor):
    """Hangs at the first message until the process ends."""

    use_daemon_thread = True

    def on_receive(self, message):
        threading.Event().wait()


ACTORS = {"echo": Echo, "never": Never, "blocked": Blocked}
MACHINES = {"ledger": CountedLedger, "hanging": Hanging, "counting": Counting}


class Load:
    """Innocent clients, each with one command on its way. `done`: how many were committed."""

    def __init__(self, replica):
        self._replica = replica
        self._over = threading.Event()
        self.done, self.latest, self.gap = 0, time.monotonic(), 0.0
        for _ in range(CLIENTS):
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while not self._over.is_set():
            try:
                self._replica.propose(b"innocent", timeout=2.0).get()
            except Exception:  # noqa: BLE001  # it is counted by what is missing
                self._over.wait(0.01)
                continue
            now = time.monotonic()
            self.gap = max(self.gap, now - self.latest)
            self.done, self.latest = self.done + 1, now

    def end(self):
        self._over.set()


class CallLoad:
    """Innocent clients that ask an actor of another host, one question at a time each. `done`: how many were answered."""

    def __init__(self, ref):
        self._ref = ref
        self._over = threading.Event()
        self.done, self.failures = 0, []
        for _ in range(CLIENTS):
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while not self._over.is_set():
            try:
                assert self._ref.ask("innocent", timeout=2.0) == "innocent"
            except Exception as error:  # noqa: BLE001  # it is counted by what is missing
                self.failures.append(repr(error)[:200])
                self._over.wait(0.01)
                continue
            self.done += 1

    def end(self):
        self._over.set()


class Orders:
    """What the host can be told. Each waits in a thread of its own."""

    def __init__(self, host, who):
        self._host, self._number = host, who["replica"]
        self._members = {int(replica): address for replica, address in who["members"].items()}
        self._replicas = {}
        self._load = self._call_load = None

    def start(self, shard, machine="ledger", numbers=None, config=None, others=None):
        """`others`: members that live on no host of this cluster."""
        members = {
            each: address for each, address in self._members.items() if each in (numbers or self._members)
        } | {int(each): address for each, address in (others or {}).items()}
        if self._number in members:
            self._replicas[shard] = self._host.start_replica(
                MACHINES[machine], shard_id=shard, replica_id=self._number, members=members, config=config
            )

    def lead(self, shard):
        hand_over(self._replicas[shard], self._number)

    def status(self, shard):
        status = self._replicas[shard].status()
        return {
            "term": status.term,
            "leader": status.leader_id,
            "commit": status.commit,
            "applied": status.applied,
            "ended": str(status.ended or ""),
        }

    def counts(self, shard):
        return self._replicas[shard].counters

    def hang(self, shard):
        return str(self._replicas[shard].status().hang or "")

    def propose(self, shard, command, within=LONG_S):
        return self._replicas[shard].propose(command.encode(), timeout=within).get()

    def read(self, shard, query="count"):
        return self._replicas[shard].read(query, timeout=2.0).get()

    def load(self, shard=1):
        self._load = Load(self._replicas[shard])

    def rest(self):
        self._load.end()
        self._load = None

    def seen(self):
        """How many commits since the load began, and the longest time without one since this was asked last."""
        load, now = self._load, time.monotonic()
        gap, load.gap = max(load.gap, now - load.latest), 0.0
        return {"now": now, "commits": load.done, "gap": gap}

    def publish(self, name, kind="echo", proxy=False, acl=None):
        where = {} if kind == "blocked" else {"loop": self._host.loop}
        self._host.publish(name, ACTORS[kind].start(**where), proxy=proxy, acl=acl)

    def published(self):
        return sorted(self._host.published)

    def place(self, name):
        """What a host is told that finds an actor: the numbers of the run and the actor."""
        return [self._host._transport.run, self._host._calls._published.by_name(name).number]

    def call_load(self, address, name):
        self._call_load = CallLoad(self._host.remote(address, name, timeout=5.0))

    def call_rest(self):
        self._call_load.end()
        self._call_load = None

    def called(self):
        """How many questions were answered since that load began, and what some failed by."""
        load = self._call_load
        return {"now": time.monotonic(), "calls": load.done, "failures": load.failures[-3:]}

    def questions(self):
        """How many questions of others have no answer yet, and how many watches they have here."""
        figures = self._host.metrics()
        return [figures["remote_questions_open"], figures["remote_watchers"]]

    def counters(self):
        return self._host.counters

    def host_id(self):
        return self._host._transport.host_id

    def run(self):
        run = self._host._transport._identity.run
        return [run.count, list(run.nonces)]

    def call(self, method, *arguments):
        return getattr(self._host, method)(*arguments)


def _go_first():
    """Before what else this machine does, which is no part of the attack. Where that is not allowed, figures are rougher."""
    os.setsid()  # Linux shares processors among sessions first
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("-10")
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def main():
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    _go_first()
    who = json.loads(sys.stdin.readline())
    answers = Answers()
    with NodeHost(
        who["members"][str(who["replica"])],
        who["data"],
        tick_interval=who["tick"],
        tls=TlsConfig(**who["tls"][str(who["replica"])]) if who.get("tls") else None,
        transport_options=Options(**who.get("options", {})),
    ) as host:
        obey(Orders(host, who), answers)


if __name__ == "__main__":
    main()
