"""Heartbeats in simulated time: each host has a real `Liveness`, under the links, clocks, pauses and restarts of a plan.

    a host ticks ─► heartbeats ─► answers: lost, late, overtaken, of an older run ─► its Liveness ─► alive, suspect, dead
    a process ends, or a fault has others take it for gone ─► connections end, dials are refused ─► gone ─► LEADER_GONE

Connections are made at once where both hosts can be reached; what ends them is chance, a new one, or the end of a process.
When others notice that end, and are refused, is up to `handlers.testing.evidence`: as late as the plan says, or never.
The random numbers are of their own.
"""

from random import Random

from drakkar.handlers.testing.links import Link
from drakkar.handlers.testing.plan import TICK
from drakkar.transport.hello import ALIVE_FEATURE, PROTOCOL_VERSION, Hello, Run
from drakkar.transport.liveness import Liveness, RunId

from tests.simulation.life_checks import CALM_TICKS, LifeChecks

BREAKS = 0.1
"""The probability that a connection breaks when a heartbeat is lost since the link is cut."""


class Connection:
    """What one process has opened to another. The other end may be open still when this one is not."""

    def __init__(self, caller, callee):
        self.caller, self.callee = caller, callee
        self.there, self.back = Link(), Link()


class Process:
    """One run of a host: what it knows of others."""

    def __init__(self, lives, host):
        self.host, self.id, self.run = host, host.id, host.life + 1
        self.name = name_of(host.id)
        self.hello = introduction(self.name, self.run)
        self.run_id = RunId.of(self.hello)
        self.ended = False
        self.to, self.callers = {}, {}
        """The newest connections that it has opened, and those to it, by replica."""
        self.checks = LifeChecks(
            lambda gone, run: lives.really_gone(self, gone, run), lives.network.invariants.happened
        )
        self.liveness = Liveness(
            lambda event: self.checks.told(replica_of(event.address), event),
            lambda name, _, run: lives.gone(self, replica_of(name), run),
        )

    def look(self, other):
        self.checks.look(other, self.liveness.life(name_of(other)))

    def look_for_gone(self, other):
        """After evidence: it is reported once that a run is gone, so also look whether it is taken for that again."""
        if self.liveness.has_gone(name_of(other)):
            self.checks.takes_for_gone(other)


class Lives:
    """The processes of all hosts of a simulation, and their heartbeats."""

    def __init__(self, network, tell_gone):
        """`tell_gone(host, replica)` is called as a real host's transport would have its replicas told."""
        self.network = network
        self._tell_gone = tell_gone
        self._random = Random(f"lives of {network.plan.seed}")
        self._processes = {}
        self._ended, self._mistaken = set(), set()
        """(replica, run) of processes that have ended, and, with who was wrong, of those that were taken for gone."""
        self._calm_since = 0

    # -- processes ----------------------------------------------------------------------------------------------------

    def starts(self, host):
        """A process is about to start. Those that were not told of the end of the last one are so next."""
        self._processes[host.id] = Process(self, host)
        self._calm_since = self.network.now
        for process in self._processes.values():
            others = self._processes.keys() - {process.id}
            process.liveness.set_members(map(name_of, sorted(others)))

    def started(self, host):
        process = self._processes[host.id]
        for other in list(self._processes.values()):
            self._connect(process, other)

    def stopped(self, host):
        process = self._processes[host.id]
        process.ended = True
        self._calm_since = self.network.now
        self._ended.add((process.id, process.run))

    def really_gone(self, process, other, run):
        return (other, run) in self._ended or (process.id, other, run) in self._mistaken

    def mistaken(self):
        """Return the replicas in whose present run others were wrong: they are not told of its end once more."""
        runs = {(other, run) for _, other, run in self._mistaken}
        return [
            each.id for each in self._processes.values() if not each.ended and (each.id, each.run) in runs
        ]

    # -- heartbeats ---------------------------------------------------------------------------------------------------

    def ticked(self, host):
        process = self._processes[host.id]
        process.checks.ticked()
        number = process.liveness.tick()
        for other in self._processes.values():
            if other is not process:
                process.look(other.id)
                self._beat(process, other, number)
        if not self.network.over:
            self._calm_since = self.network.now
        elif self.network.now - self._calm_since > CALM_TICKS * TICK:
            for other in self._processes.values():
                if other is not process:
                    life = process.liveness.life(other.name)
                    process.checks.look_without_faults(other.id, life, up=not other.ended)

    def _beat(self, process, other, number):
        connection = process.to.get(other.id) or self._connect(process, other)
        if connection is None:
            return
        if connection.callee.ended:
            if not self.network.plan.weather.evidence:  # it is lost, and no other end will be told
                self._lose(connection)
        elif self._is_cut(process, other):
            if self._random.random() < BREAKS:
                self._lose(connection)
        else:
            self._carry(connection.there, other, self._take, connection, number)

    def _take(self, connection, number):
        """A heartbeat has arrived. Who answers lives, also where it was taken for gone."""
        caller, callee = connection.caller, connection.callee
        if self._is_cut(caller, callee) or callee.callers.get(caller.id) is not connection:
            return
        if callee.liveness.has_gone(caller.name):
            callee.checks.proved(caller.id, caller.run)
            callee.liveness.returned(caller.hello)
            callee.look(caller.id)
        self._carry(connection.back, caller, self._hear, connection, number)

    def _hear(self, connection, number):
        """An answer has arrived, perhaps over a connection that is being given up."""
        caller, callee = connection.caller, connection.callee
        if self._is_cut(callee, caller):
            return
        caller.checks.answered(callee.id, callee.run, number)
        caller.liveness.answered(callee.name, callee.run_id, number)
        caller.look(callee.id)

    def _carry(self, link, receiver, function, *args):
        weather, now = self.network.weather, self.network.now
        if self.network.over and self.network.is_awake(receiver.host):
            function(*args)  # most of a run is after the faults, where it takes no time, which is cheap
            return
        if weather.loss and self._random.random() < weather.loss:
            return
        late = weather.delay and self._random.random() < weather.delay
        arrival = now + (self._random.randint(3, 5 * TICK) if late else self._random.randint(1, 3))
        if not weather.reordering:
            arrival = link.arrival_in_order(arrival)
        self.network.later(receiver.host, arrival - now, function, *args)

    # -- connections --------------------------------------------------------------------------------------------------

    def _is_cut(self, sender, receiver):
        return not self.network.is_reachable(sender.id, receiver.id)

    def _connect(self, process, other):
        reached = not (other.ended or self._is_cut(process, other) or self._is_cut(other, process))
        if other is process or not reached or not self.network.is_awake(other.host):
            return None
        connection = Connection(process, other)
        if (old := other.callers.get(process.id)) is not None:
            other.liveness.ended(old)
        other.callers[process.id] = connection
        other.liveness.opened(connection, process.hello, at_home=True)
        other.look(process.id)
        process.to[other.id] = connection
        process.checks.met(other.id, other.run)
        process.liveness.introduced(other.name, other.hello)
        process.look(other.id)
        return connection

    def _lose(self, connection):
        """The process that has opened it notices that it is lost."""
        caller, callee = connection.caller, connection.callee
        if not caller.ended and caller.to.get(callee.id) is connection:
            del caller.to[callee.id]
            caller.liveness.lost(callee.name)
            caller.look(callee.id)

    def _end(self, connection):
        """Both ends notice."""
        self._lose(connection)
        caller, callee = connection.caller, connection.callee
        if not callee.ended and callee.callers.get(caller.id) is connection:
            del callee.callers[caller.id]
            callee.liveness.ended(connection)
            callee.look(caller.id)

    # -- evidence -----------------------------------------------------------------------------------------------------

    def evidence(self, host, replica):
        """What shows that a process has ended reaches a host: its next run, or a refusal. Or that is wrong."""
        process, other = self._processes[host.id], self._processes[replica]
        incoming, outgoing = process.callers.get(replica), process.to.get(replica)
        if self.network.hosts[replica].up:
            self._mistaken.add((process.id, replica, other.run))
        elif incoming is not None and not other.ended:  # the next run is about to start
            del process.callers[replica]
            start = incoming.caller.hello.run.start
            process.liveness.replaced(other.name, other.name, start, [incoming])
            process.look_for_gone(replica)
        for connection in (outgoing, incoming):
            if connection is not None:
                self._end(connection)
        process.liveness.refused(other.name)
        process.look_for_gone(replica)
        process.look(replica)

    def gone(self, process, replica, run):
        process.checks.gone(replica, run)
        self._tell_gone(process.host, replica)


def introduction(name, run):
    features = frozenset({ALIVE_FEATURE})
    return Hello(PROTOCOL_VERSION, "", name, "", features, host_id=name, run=Run(run, (run,)))


def name_of(replica):
    return f"host-{replica}:1"


def replica_of(name):
    return int(name.removeprefix("host-").removesuffix(":1"))
