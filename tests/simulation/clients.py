"""Simulated clients: each does one thing after the other, through any host, and writes down what it saw."""

from dataclasses import replace
from random import Random

from drakkar.handlers import State
from drakkar.handlers.testing.plan import TICK, Event
from drakkar.handlers.testing.simulation import Simulation

from tests.simulation.linearizability import Operation, check
from tests.simulation.store import command

KEYS = ("a", "b", "c")
KINDS = ("put", "get", "get", "add", "cas")


def draw_requests(random, plan):
    """What clients shall ask, if they are free then: who, where, of which register, and what."""
    clients = random.choice((1, 3, 5))
    replicas = plan.voters + plan.observers + plan.witnesses
    return tuple(
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
    )


class ShardSimulation(Simulation):
    """A simulation with clients, whose history must be linearizable."""

    def __init__(self, plan, make_host):
        super().__init__(plan, make_host)
        self.history = []
        self.refused = 0
        self._busy = set()
        self._values = 0
        self._last = {}
        self._reads_all = False
        self.until_over(self._has_read_all)

    def request(self, client, replica, key, kind, seconds):
        """A client asks something at a replica, unless it waits for an answer still; 0 is the leader."""
        host = self._who(replica)
        if client in self._busy or host is None or not self.is_awake(host):
            return
        argument = self._draw_argument(key, kind)
        operation = Operation(client, key, kind, argument, invoked=self.now)
        self._busy.add(client)
        self.trace.append((self.now, "?", operation))

        def answer(outcome, value):
            self._busy.discard(client)
            if client == "reader" and outcome != "done" and self._is_member(host):
                self._readers.insert(0, (replica, key))
            self.trace.append((self.now, "?", f"client {client}: {outcome} {value}"))
            if outcome == "refused":
                self.refused += 1
                return
            if outcome == "done":
                operation.result, operation.returned = value, self.now
                self._last[key] = value
            self.history.append(operation)

        content = key if kind == "get" else command(key, kind, argument)
        host.submit("read" if kind == "get" else "propose", content, seconds, answer)

    def _draw_argument(self, key, kind):
        self._values += 1
        value = f"{self._values}."
        if kind == "cas":
            return [self._last.get(key), value]
        return None if kind == "get" else value

    # -- the end ----------------------------------------------------------------------------------------------------

    def _has_read_all(self):
        """At last every register is read once more, at each host that can."""
        if not self._reads_all:
            self._reads_all = True
            readers = ((host.id, key) for host in self._members() if can_read(host) for key in KEYS)
            for reader, (replica, key) in enumerate(readers):
                self.request(-1 - reader, replica, key, "get", 2.0)
        return not self._busy

    def run(self):
        super().run()
        check(self.history)


def can_read(host):
    return host.raft.resting_state is not State.WITNESS


def with_requests(plan):
    """The plan with clients added."""
    requests = draw_requests(Random(f"clients {plan.seed}"), plan)
    return replace(plan, events=tuple(sorted((*plan.events, *requests), key=lambda event: event.time)))
