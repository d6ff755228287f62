"""Simulated clients: each sends one request at a time, to any host, and records the answers."""

from contextlib import nullcontext
from dataclasses import replace
from random import Random

from drakkar.handlers import State
from drakkar.handlers.testing.plan import TICK, Event

from tests.simulation.linearizability import Operation, check
from tests.simulation.lives import Lives
from tests.simulation.node_host import NodeHost
from tests.simulation.once import SessionClient
from tests.simulation.records import RecordSimulation
from tests.simulation.store import command

KEYS = ("a", "b", "c")
KINDS = ("put", "get", "get", "add", "cas")
CONVERGES = "INV26 without faults a shard converges"
FIRST_TOGETHER = 50
"""Clients from this number on send their commands together."""
FIRST_WITH_SESSION = 100
"""Clients with this number or a higher one have sessions."""


def draw_requests(random, plan):
    """Draw the requests of clients: client, replica, register, kind and timeout in seconds."""
    clients = random.choice((1, 3, 5))
    replicas = plan.voters + plan.observers + plan.witnesses
    requests = [
        Event(
            random.randrange(plan.ticks * TICK),
            "request",
            (
                random.randrange(clients),
                random.randrange(replicas + 1),
                random.choice(KEYS[: random.choice((1, 3))]),
                random.choice(KINDS),
                random.choice((0.3, 1.0, 3.0)),
            ),
        )
        for _ in range(plan.ticks // random.choice((1, 2, 5)))
    ]
    clients = random.choice((1, 3, 6))  # six are more than a shard keeps sessions for
    requests += [
        Event(
            random.randrange(plan.ticks * TICK),
            "once",
            (
                FIRST_WITH_SESSION + random.randrange(clients),
                random.randrange(replicas + 1),
                random.choice(KEYS),
                random.choice((0.1, 0.3, 1.0)),
            ),
        )
        for _ in range(plan.ticks // random.choice((2, 5, 10)))
    ]
    return tuple(requests)


class ShardSimulation(RecordSimulation):
    """A simulation with clients. Their history must be linearizable."""

    def __init__(self, plan, make_host):
        super().__init__(plan, make_host)
        self.history = []
        """All operations that were asked for, but for those that were refused."""
        self.refused = 0
        self._busy = set()
        self._with_session = {}
        self._values = 0
        self._last = {}
        self._reads_all = False
        self.end_only_when(self._has_read_all)
        self.lives = Lives(self, super().tell_gone)

    def request(self, client, replica, key, kind, seconds):
        """A client sends a request to a replica, unless it still waits for an answer; 0 is the leader."""
        host = self._host(replica)
        if client in self._busy or host is None or not self.is_awake(host):
            return
        argument = self._draw_argument(key, kind)
        operation = Operation(client, key, kind, argument, invoked=self.now)
        self._busy.add(client)
        self.history.append(operation)
        self.trace.append((self.now, "?", operation))

        def answer(outcome, value):
            self._busy.discard(client)
            self.trace.append((self.now, "?", f"client {client}: {outcome} {value}"))
            if outcome == "refused":
                self.check_refusal(content, value)
                self.refused += 1
                self.history.remove(operation)
            elif outcome == "done":
                operation.result, operation.returned = value, self.now
                self._last[key] = value

        content = key if kind == "get" else command(key, kind, argument)
        host.submit("read" if kind == "get" else "propose", content, seconds, answer)

    def together(self, replica, count, seconds):
        """Several clients send commands to a replica at once; 0 is the leader. At a node they travel in one message."""
        host = self._host(replica)
        if host is None or not self.is_awake(host):
            return
        with host.at_once() if isinstance(host, NodeHost) else nullcontext():
            for client in range(FIRST_TOGETHER, FIRST_TOGETHER + count):
                self.request(client, replica, KEYS[client % len(KEYS)], "add", seconds)

    def once(self, client, replica, key, seconds):
        """A client with a session appends to a register, unless it still waits for an answer; 0 is the leader."""
        host = self._host(replica)
        if host not in self.with_sessions():
            return
        if client not in self._with_session:
            random = Random(f"session {self.plan.seed} {client}")
            self._with_session[client] = SessionClient(self, client, random)
        asking = self._with_session[client]
        if not asking.busy:
            asking.append(host, key, self._draw_argument(key, "add"), seconds)

    def with_sessions(self):
        """Return the hosts that can take a command of a session now."""
        return [host for host in self.hosts.values() if self.is_awake(host) and keeps_sessions(host)]

    def _draw_argument(self, key, kind):
        self._values += 1
        value = f"{self._values}."
        if kind == "cas":
            return [self._last.get(key), value]
        return None if kind == "get" else value

    # -- the lives of hosts ----------------------------------------------------------------------------------------

    def _start(self, host):
        self.lives.starts(host)
        super()._start(host)
        self.lives.started(host)

    def _stop(self, host, kept):
        if host.up:
            self.lives.stopped(host)
        super()._stop(host, kept)

    def _tick(self, host):
        self.lives.ticked(host)
        super()._tick(host)

    def tell_gone(self, host, gone):
        """There is evidence of the end of a process. Whether its replicas are told is up to the host's `Liveness`."""
        self.lives.evidence(host, gone)

    def _check_failover(self):
        """A host tells of the end of a run once. So those that were taken for gone by mistake start again before."""
        for replica in self.lives.mistaken() if self.plan.weather.evidence else ():
            if self.hosts[replica] in self._members():
                self._stop(self.hosts[replica], 1.0)
                self._start(self.hosts[replica])
                self._await(CONVERGES, self._has_converged)
        super()._check_failover()

    # -- the end ----------------------------------------------------------------------------------------------------

    def _has_read_all(self):
        """At the end, read every register once more at each host that can."""
        if any(each.busy for each in self._with_session.values()):
            return False
        if not self._reads_all:
            self._reads_all = True
            readers = ((host.id, key) for host in self._members() if can_read(host) for key in KEYS)
            for reader, (replica, key) in enumerate(readers):
                self.request(-1 - reader, replica, key, "get", 2.0)
        return not self._busy

    def run(self):
        super().run()
        check(self.history if self.lost_at is None else list(before(self.lost_at, self.history)))


def before(time, history):
    """What was answered before a moment; all else has an unknown outcome, if it was asked by then."""
    for operation in history:
        if operation.invoked <= time:
            late = operation.returned is not None and operation.returned > time
            yield replace(operation, returned=None) if late else operation


def keeps_sessions(host):
    """Return whether a host keeps sessions: only real nodes do, and not with a state machine on disk."""
    return isinstance(host, NodeHost) and host.keeps_sessions


def can_read(host):
    return host.raft.base_state is not State.WITNESS


def with_requests(plan):
    """Return the plan with clients added."""
    requests = draw_requests(Random(f"clients {plan.seed}"), plan)
    return replace(plan, events=tuple(sorted((*plan.events, *requests), key=lambda event: event.time)))
