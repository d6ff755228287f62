"""Breaks things on a schedule that is drawn from a seed, and keeps a record of it."""

import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

from tests.actors.support import until

LONG = 60.0
"""Seconds that a step of a replacement may take, with hosts coming and going."""
SIZES = {1: 5, 2: 4, 3: 1, 5: 1}
"""How many hosts a fault takes, and how often: mostly so few that the others can go on."""


class Nemesis:
    """Strikes at hosts for a while, one or two kinds of faults at a time, and heals them each time.

    `faults`: by name, functions that take the numbers of some hosts and return a context manager: the fault lasts as
    long as that. `times`: how often each kind of fault happens, and the leader changes, at least. `kinds`: how many come
    at a time, at most. `recovered`: waits until the next ones may come.
    """

    def __init__(self, cluster, faults, random, *, times, kinds=2, recovered=lambda: None):
        self._cluster, self._faults, self._random, self._times = cluster, faults, random, times
        self._kinds, self._recovered = kinds, recovered
        self._pause = threading.Event()
        self._bag = []
        self._began = time.monotonic()
        self.counts = Counter()
        self.schedule = []
        """What it did, a line each, with the seconds since it began."""
        self.leaderships = {}
        """The leaders that were seen, by term."""

    def rage(self, seconds):
        """Go on for so long, and until everything has happened that was to happen; all is healed in the end."""
        self._began = time.monotonic()
        self._note_leader()
        while time.monotonic() < self._began + seconds or not self._done:
            self._strike()
            self._note_leader()
            self._wait(0.2, 2.0)

    @property
    def _done(self):
        return (
            all(self.counts[name] >= self._times for name in self._faults)
            and len(self.leaderships) > self._times
        )

    def _strike(self):
        names = self._draw(min(self._random.choice((1, 1, 2)), self._kinds))
        with ExitStack() as faults:
            for name in names:
                victims = self._victims()
                self._note(f"{name} {victims}")
                faults.enter_context(self._faults[name](victims))
                self.counts[name] += 1
                self._wait(0.1, 1.0)
            self._wait(0.0, 2.0)
            self._note("heal")
        self._note("healed")
        self._recovered()
        self._wait(0.0, 0.5)

    def _draw(self, count):
        """Different kinds, each as often as the others in the long run."""
        names = set()
        while len(names) < min(count, len(self._faults)):
            if not self._bag:
                self._bag = self._random.sample(sorted(self._faults), len(self._faults))
            names.add(self._bag.pop())
        return sorted(names, key=lambda _: self._random.random())

    def _victims(self):
        """Some hosts, and in every other case the leader is one of them, if there is any."""
        (size,) = self._random.choices(list(SIZES), list(SIZES.values()))
        numbers = self._random.sample(sorted(self._cluster.hosts), len(self._cluster.hosts))
        if self.leaderships and self._random.random() < 0.5:
            leader = self.leaderships[max(self.leaderships)]
            numbers.remove(leader)
            numbers.insert(0, leader)
        return numbers[:size]

    def _note_leader(self):
        """Wait until there is a leader again, once all is healed, and note it."""

        def led():
            states = [host.ask("status")["value"] for host in self._cluster.hosts.values()]
            newest = max(states, key=lambda state: (state["term"], state["leader"]))
            return newest if newest["leader"] else None

        state = until(led)
        if state["term"] not in self.leaderships:
            self._note(f"{state['leader']} leads in term {state['term']}")
        assert self.leaderships.setdefault(state["term"], state["leader"]) == state["leader"], (
            "two leaders in a term"
        )

    def _wait(self, least, most):
        self._pause.wait(self._random.uniform(least, most))

    def _note(self, what):
        self.schedule.append(f"{time.monotonic() - self._began:7.2f} {what}")


def process_faults(cluster):
    """What can happen to processes."""

    @contextmanager
    def killed(numbers):
        cluster.kill(*numbers)
        yield
        cluster.start(*numbers)

    @contextmanager
    def stopped(numbers):
        for number in numbers:
            cluster.hosts[number].pause()
        yield
        for number in numbers:
            cluster.hosts[number].resume()

    return {"kill": killed, "stop": stopped}


def connection_faults(proxies):
    """What can happen to connections on one machine."""

    @contextmanager
    def broken(numbers):
        proxies.reset(numbers)
        yield

    return {"break": broken, "refuse": proxies.refusing, "freeze": proxies.frozen}


def link_faults(network):
    """What can happen to hosts that have a network."""
    return {"cut": network.cut, "split": network.split}


class Reformer:
    """Replaces one replica after the other by a new one on the same host, while other things happen; a context manager.

    Each step is repeated until it is seen to be done: hosts may be killed at any moment.
    """

    def __init__(self, cluster, random):
        self._cluster, self._random = cluster, random
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._next = max(cluster.hosts) + 1
        self.replaced = 0
        self.failure = None

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Finish what was begun."""
        self._over.set()
        self._thread.join(4 * LONG)

    def _run(self):
        try:
            while not self._over.wait(self._random.uniform(0.5, 3.0)):
                self._replace(self._random.choice(sorted(self._cluster.hosts)))
                self.replaced += 1
        except BaseException as error:  # noqa: BLE001  # the test reports it
            self.failure = error

    def _replace(self, number):
        host, new = self._cluster.hosts[number], self._next
        old, self._next = host.seat, new + 1
        self._change(host, "remove_replica", old, lambda members, _: old not in members)
        until(lambda: "value" in host.ask("leave", replica=old), LONG)
        host.seat = 0
        self._change(host, "add_observer", new, lambda members, _: new in members, address=host.address)
        host.seat, host.joined = new, True
        until(lambda: "value" in host.ask("join", replica=new), LONG)
        self._change(host, "add_replica", new, lambda _, voters: new in voters, address=host.address)
        # One that is removed before it has heard of anybody could never learn of that.
        until(lambda: new in host.ask("status").get("value", {"voters": []})["voters"], LONG)

    def _change(self, host, how, replica, is_done, **order):
        others = [other for other in self._cluster.hosts.values() if other is not host]

        def changed():
            asked = self._random.choice(others)
            asked.ask("change", how=how, replica=replica, **order)
            state = asked.ask("status").get("value")
            return state and state["term"] and is_done(state["members"], state["voters"])

        until(changed, LONG)
