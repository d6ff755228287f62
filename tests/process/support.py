"""Hosts in processes of their own, clients that load three of them, and the judge of what the clients saw."""

import itertools
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.actors.support import TIMEOUT_S, until
from tests.ports import free_addresses

ROOT = Path(__file__).parents[2]
START_S = 60.0
"""Seconds within which a process has started: some of work, and much where others use the cores."""
TICK = 0.05
"""Seconds a tick: an election takes 0.5 to 1 s then."""


class HostProcess:
    """One host, seen from the process that gives it orders. Its methods may be called from any thread.

    `within`: the command that starts another one, given after it, where this host is to live. `settings`: what else it
    is told of itself (see `host`): `slow_disk`, `listen`, `machine`, `door`. `program`: the module that it runs;
    `environment`: variables that it has more than this process.
    """

    def __init__(
        self,
        replica,
        members,
        directory,
        *,
        within=(),
        program="tests.process.host",
        environment=None,
        **settings,
    ):
        self.replica, self._members, self._directory = replica, members, directory
        self._within, self._program, self._settings = within, program, settings
        self._environment = {**os.environ, **(environment or {})}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._process = None
        self._numbers = itertools.count(1)
        self._waiting = {}
        self.alive = False
        self.seat, self.joined = replica, False
        """The id of its replica, 0 for none, and whether that joined the others later."""

    @property
    def address(self):
        return self._members[self.replica]

    def launch(self):
        """Start it, again if need be; `wait_started` returns when it listens."""
        with (self._directory / f"{self.replica}.log").open("a") as log:
            self._process = subprocess.Popen(
                [*self._within, sys.executable, "-m", self._program],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._started = self._waiting[0] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()
        who = {
            "replica": self.replica,
            "members": self._members,
            "data": str(self._directory / f"data-{self.replica}"),
            "tick": TICK,
            "seat": self.seat,
            "joined": self.joined,
            **self._settings,
        }
        self._write(json.dumps(who))

    def wait_started(self):
        answer = self._started.get(timeout=START_S)
        assert answer == {"id": 0, "value": "started"}, f"{answer}\n{self.log()}"
        self.alive = True

    def fail_to_start(self):
        """Start it, wait until it has given up, and return the end of its log."""
        self.launch()
        answer = self._started.get(timeout=START_S)
        assert answer.get("error") == "Gone", answer
        self._end()
        return self.log()

    def double(self, directory, **settings):
        """Return a host like this one, with the copy of its directory in `directory`, which no client reaches."""
        settings = {name: value for name, value in self._settings.items() if name != "door"} | settings
        double = HostProcess(self.replica, self._members, directory, within=self._within, **settings)
        double.seat, double.joined = self.seat, self.joined
        return double

    @property
    def pid(self):
        return self._process.pid

    def log(self):
        return (self._directory / f"{self.replica}.log").read_text(errors="replace")[-4000:]

    def ask(self, do, *, timeout=2.0, answer_timeout=TIMEOUT_S, **order):
        """Give an order and wait for the answer; `{"error": "Gone"}` where the process ended before it answered."""
        answer = queue.SimpleQueue()
        with self._lock:
            number = next(self._numbers)
            if not self.alive:
                # It was asked nothing.
                return {"error": "Gone", "known": True}
            self._waiting[number] = answer
        self._write(json.dumps({"id": number, "do": do, "timeout": timeout, **order}))
        try:
            return answer.get(timeout=answer_timeout)
        except queue.Empty:
            raise AssertionError(f"no answer to {do} from {self.replica}: {self.log()}") from None

    def kill(self):
        """Send it the signal; `wait_killed` returns when it is gone."""
        self._process.send_signal(signal.SIGKILL)

    def wait_killed(self):
        self._end()

    def pause(self):
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        self._process.send_signal(signal.SIGCONT)

    def stop(self):
        """End it in good order, by the end of its orders."""
        self._process.stdin.close()
        return self._end()

    def _end(self):
        code = self._process.wait(TIMEOUT_S)
        self._listener.join(TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # what was not written yet is of no interest
                pipe.close()
        return code

    def _write(self, line):
        # If it was killed, `_listen` answers those that wait.
        with suppress(BrokenPipeError, ValueError), self._writing:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _listen(self, answers):
        for line in answers:
            answer = json.loads(line)
            with self._lock:
                waiting = self._waiting.pop(answer["id"], None)
            if waiting is not None:
                waiting.put(answer)
        with self._lock:
            self.alive = False
            waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.put({"error": "Gone", "known": False})

    def close(self):
        """End it, in any state."""
        if self._process is not None:
            self.kill()  # nothing, where it has ended
            self._end()


class Cluster:
    """Several of them; a context manager, which leaves no process behind."""

    def __init__(self, hosts):
        self.hosts = {host.replica: host for host in hosts}

    def __enter__(self):
        try:
            self.start(*self.hosts)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for host in self.hosts.values():
            host.close()

    def start(self, *numbers):
        for number in numbers:
            self.hosts[number].launch()
        for number in numbers:
            self.hosts[number].wait_started()

    def kill(self, *numbers):
        """All at once."""
        for number in numbers:
            self.hosts[number].kill()
        for number in numbers:
            self.hosts[number].wait_killed()

    def leader(self, among=None):
        """Wait until one of these hosts leads, by its own word, and return its number."""

        def led():
            for number in among or self.hosts:
                answer = self.hosts[number].ask("status")
                if "value" in answer and answer["value"]["leader"] == number:
                    return number
            return None

        return until(led)

    def contents(self):
        """What each host holds at last, by linearizable reads."""

        def read(host):
            answer = host.ask("read", query=None)
            return answer.get("value")

        return [until(lambda host=host: read(host)) for host in self.hosts.values()]


def three_hosts(directory, *, slow_disk=0.0):
    """Hosts on loopback that keep a ledger.

    `slow_disk`: seconds by which each write takes longer than it does by itself. What is acknowledged before it is
    durable is then lost with a host that is killed.
    """
    members = dict(enumerate(free_addresses(3), start=1))
    return Cluster(HostProcess(replica, members, directory, slow_disk=slow_disk) for replica in members)


@dataclass
class Operation:
    """What a client did, when, and what came of it."""

    do: str
    command: str
    began: float
    ended: float
    answer: dict

    @property
    def acknowledged(self):
        return "value" in self.answer

    @property
    def refused(self):
        """Surely without effect."""
        return not self.acknowledged and self.answer["known"]


class Load:
    """Clients that write and read through all hosts, one thing after the other each; a context manager."""

    def __init__(self, cluster, clients=4):
        self._cluster = cluster
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.history = []
        self.failures = []
        self._threads = [threading.Thread(target=self._run, args=(name,)) for name in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        assert not self.failures, self.failures

    def _run(self, name):
        try:
            for number in itertools.count():
                if self._over.is_set():
                    return
                host = self._cluster.hosts[(name + number) % 3 + 1]
                if not host.alive:
                    self._over.wait(0.01)
                    continue
                self._do(host, "read" if number % 4 == 3 else "propose", f"{name}-{number}")
        except BaseException as error:  # noqa: BLE001  # the test reports it
            self.failures.append(error)

    def write(self, number, command):
        """Write through one host, until it is acknowledged or may have been."""
        until(lambda: not self._do(self._cluster.hosts[number], "propose", command).refused)

    @contextmanager
    def reading(self, number, clients=4):
        """Have further clients read through one host, once each: the answers are there at the end."""
        host = self._cluster.hosts[number]
        threads = [threading.Thread(target=self._do, args=(host, "read", "")) for _ in range(clients)]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(TIMEOUT_S)

    def _do(self, host, what, command):
        began = time.monotonic()
        answer = host.ask(what, command=command, query="count")
        operation = Operation(what, command, began, time.monotonic(), answer)
        with self._lock:
            self.history.append(operation)
        if not operation.acknowledged:
            self._over.wait(0.01)
        return operation

    @property
    def acknowledged(self):
        with self._lock:
            return sum(each.acknowledged and each.do == "propose" for each in self.history)

    def progress(self, count=30):
        """Wait until so many more writes are acknowledged."""
        wanted = self.acknowledged + count
        until(lambda: self.acknowledged >= wanted or self.failures)


def judge(history, ledger):
    """Nothing acknowledged is lost, nothing refused is there, nothing is there twice, and all of it is linearizable.

    The ledger says in which order the writes took effect, so each operation has its place: a write that of its entry,
    a read the gap behind the last entry that it saw. Linearizable then means: what ended before another thing began
    has no later place than that.
    """
    places = {command: place for place, command in enumerate(ledger, start=1)}
    assert len(places) == len(ledger), "a command was applied twice"
    steps = []
    for each in history:
        if each.do == "propose" and each.acknowledged:
            assert places.get(each.command) == each.answer["value"], (
                f"{each} was acknowledged, and is not there"
            )
        if each.refused:
            assert each.command not in places, f"{each} was refused, and is there"
        if each.do == "read" and each.acknowledged:
            steps.append((each.began, each.ended, 2 * each.answer["value"] + 1, each))
        elif each.do == "propose" and each.command in places:
            ended = each.ended if each.acknowledged else math.inf
            steps.append((each.began, ended, 2 * places[each.command], each))
    _check_order(steps)


def _check_order(steps):
    by_end = sorted(steps, key=lambda step: step[1])
    latest, at = (0, None), 0
    for began, _, place, each in sorted(steps, key=lambda step: step[0]):
        while at < len(by_end) and by_end[at][1] < began:
            latest = max(latest, (by_end[at][2], by_end[at][3]), key=lambda seen: seen[0])
            at += 1
        assert place >= latest[0], f"{each} is older than what was seen before it: {latest[1]}"
