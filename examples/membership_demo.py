"""Membership changes while clients write, on hosts of this machine, each a process that you can watch.

`make demo-membership` starts three hosts and clients that write all the time. Then a host joins and is promoted, a
witness joins, a follower is removed, then the leader, a dead machine is replaced, and two voters are swapped for two
others at once. After each step it prints the members that the shard reports, and what became of the writes meanwhile.
At the end it checks that every acknowledged write is on every member; the exit status is 0 only then.

From top to bottom: the hosts, each a process of `python -m examples.member`, which has the calls that change members;
the clients; the tools of the steps; the steps; the command line.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.kv import between
from examples.kv_demo import END_SIGNALS, ROOT, DemoError, free_ports, key, signals_ignored, value

# -- The hosts --------------------------------------------------------------------------------------------------


class HostError(Exception):
    """A command failed on a host. Where `known` is false, it may still have had an effect."""

    def __init__(self, name: str, text: str, *, known: bool) -> None:
        super().__init__(f"{name}: {text}")
        self.name, self.known = name, known


@dataclass(frozen=True)
class Members:
    """The members of the shard, by role."""

    voters: tuple[int, ...]
    observers: tuple[int, ...] = ()
    witnesses: tuple[int, ...] = ()

    @property
    def short(self) -> str:
        """The members in short: o4 is an observer, w5 a witness."""
        marked = [("", self.voters), ("o", self.observers), ("w", self.witnesses)]
        return " ".join(f"{mark}{number}" for mark, numbers in marked for number in numbers)

    def __str__(self) -> str:
        named = {"voters": self.voters, "observers": self.observers, "witness": self.witnesses}
        return "; ".join(f"{role} {', '.join(map(str, each))}" for role, each in named.items() if each)


@dataclass(frozen=True)
class Report:
    """What a host reported about its replica."""

    state: str
    term: int
    leader: int
    commit: int
    applied: int
    first: int
    members: Members


@dataclass(eq=False)
class Host:
    """One host in a process of its own. From any thread."""

    replica: int
    address: str
    directory: Path
    process: "subprocess.Popen[str] | None" = None
    killed: bool = False
    _events: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: "dict[int, Future[Any]]" = field(default_factory=dict)
    _commands: int = 0
    _ended: bool = False

    @property
    def log(self) -> Path:
        """Where the process writes its errors."""
        return self.directory / f"host-{self.replica}.log"

    def start(self, *options: str) -> None:
        """Start the process, without waiting for it."""
        identity = ["--replica", str(self.replica), "--address", self.address]
        data_dir = ["--data-dir", str(self.directory / f"host-{self.replica}")]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603  # our own program, with our own options
                [sys.executable, "-m", "examples.member", *identity, *data_dir, *options],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches only the demo, which then stops its hosts
            )
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def state(self) -> str:
        """The state of the process, in one word."""
        if self.running:
            return "removed" if self.has_reported("removed") else "up"
        return "new" if self.process is None else "killed" if self.killed else "ended"

    def ask(self, do: str, arguments: Sequence[Any] = (), *, timeout: float, grace: float = 5.0) -> Any:
        """Have the host run a command within `timeout` seconds, and wait `grace` longer for the answer. Raises `HostError`."""
        answer: Future[Any] = Future()
        with self._lock:
            if self._ended:
                raise HostError("Ended", f"host {self.replica} has ended", known=True)
            self._commands += 1
            number, self._waiting[self._commands] = self._commands, answer
            self._write({"id": number, "do": do, "arguments": arguments, "timeout": timeout})
        try:
            return answer.result(timeout + grace)
        except FutureTimeoutError:
            raise HostError("Silent", f"host {self.replica} did not answer {do}", known=False) from None

    def report(self) -> Report | None:
        """Ask the host for the state of its replica; None where it does not answer."""
        try:
            status = self.ask("status", timeout=1.0, grace=0.0)
        except HostError:
            return None
        members = Members(*(tuple(status.pop(role)) for role in ("voters", "observers", "witnesses")))
        return Report(**status, members=members)

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return not self.running

    def has_reported(self, event: str) -> bool:
        """Whether the host has reported an event: "ready" or "removed"."""
        return event in self._events

    def _write(self, command: Mapping[str, Any]) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # `_read` fails all commands when the process ends
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                answer = json.loads(line)
                if "event" in answer:
                    self._events.add(answer["event"])
                    continue
                with self._lock:
                    future = self._waiting.pop(answer["id"])
                if "error" in answer:
                    future.set_exception(HostError(answer["error"], answer["text"], known=answer["known"]))
                else:
                    future.set_result(answer["value"])
        with self._lock:
            self._ended = True
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(HostError("Ended", f"host {self.replica} ended meanwhile", known=False))

    def log_end(self) -> str:
        """Return the last lines of the log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"host {self.replica}: {line}" for line in lines[-5:] or ["its log is empty"])

    def kill(self) -> None:
        """Kill the process at once, without a chance to clean up."""
        assert self.process is not None
        self.killed = True
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the process by closing its input, and kill it after eight seconds."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with self._lock, suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(8)
        except subprocess.TimeoutExpired:
            self.kill()


class Shard:
    """All hosts that were ever started. Their processes end with the `with` block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = iter(free_ports(16))
        self.hosts: dict[int, Host] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with signals_ignored(), ThreadPoolExecutor(len(self.hosts) or 1) as pool:
            for stopping in [pool.submit(host.stop) for host in self.hosts.values()]:
                stopping.result()

    def new_host(self) -> Host:
        """Return a new host, with an id that was never used, a port and a directory of its own."""
        number = len(self.hosts) + 1
        host = self.hosts[number] = Host(number, f"127.0.0.1:{next(self._ports)}", self._directory)
        return host

    def running(self) -> list[Host]:
        """Return the hosts whose processes run."""
        return [host for host in self.hosts.values() if host.running]

    def check(self) -> None:
        """Raise `DemoError` where a host has ended that was neither killed nor removed."""
        for host in self.hosts.values():
            if host.process is not None and not host.running and not host.killed:
                status = host.process.returncode
                if status or not host.has_reported("removed"):
                    raise DemoError(f"host {host.replica} ended with status {status}\n{host.log_end()}")

    def log_ends(self) -> str:
        """Return the last lines of all logs."""
        return "\n".join(host.log_end() for host in self.hosts.values())

    def leader(self) -> tuple[int, Report] | None:
        """Return the leader of the newest term that has one, and its report; None where no member leads."""
        reports = [(host.replica, host.report()) for host in self.running()]
        leading = [
            (report.term, number, report)
            for number, report in reports
            if report and report.state == "LEADER" and number in report.members.voters
        ]
        return max(leading, key=lambda found: found[0])[1:] if leading else None


# -- The clients ------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """The outcomes of writes, and how long none was acknowledged."""

    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    pause: float = 0.0
    """The longest time without an acknowledgement, in seconds."""
    latest: float = 0.0
    """Seconds since the last acknowledgement."""


class Load:
    """Clients that write without pause, each write through a host chosen at random, and the writes acknowledged to them.

    A host that failed lately is not chosen as long as there are others.
    """

    TIMEOUT_S: Final = 1.0
    """How long a write may take."""
    AVOID_S: Final = 1.0
    """How long a host is avoided after a failure."""

    def __init__(self, shard: Shard, clients: int, batch: int) -> None:
        self._shard, self._batch = shard, batch
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._failed: dict[int, float] = {}
        """The hosts in use, and when each failed last."""
        self.acknowledged: list[tuple[int, int]] = []
        """Client and number of each acknowledged write."""
        self._tally = Tally()
        self._latest = self._newest_sent = 0.0
        self._threads = [
            threading.Thread(target=self._write_on, args=(client,), daemon=True) for client in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def use(self, *hosts: int) -> None:
        """Write through these hosts too, from now on."""
        with self._lock:
            self._failed.update(dict.fromkeys(hosts, 0.0))

    def leave(self, *hosts: int) -> None:
        """Write through these hosts no longer."""
        with self._lock:
            for host in hosts:
                self._failed.pop(host, None)

    def begin(self) -> None:
        """Start a new tally."""
        with self._lock:
            self._tally, self._latest = Tally(), time.monotonic()

    def tally(self) -> Tally:
        """Return the tally so far."""
        with self._lock:
            latest = time.monotonic() - self._latest
            return replace(self._tally, pause=max(self._tally.pause, latest), latest=latest)

    def acknowledged_since(self, moment: float) -> bool:
        """Return whether a write was acknowledged that was sent after `moment`."""
        with self._lock:
            return self._newest_sent > moment

    def _write_on(self, client: int) -> None:
        at = 0
        while not self._over.is_set():
            host = self._choose()
            writes = [(client, number) for number in range(at, at + self._batch)]
            if host is None or not self._write(host, writes):
                self._over.wait(0.02)
            at += self._batch

    def _choose(self) -> Host | None:
        with self._lock:
            known = self._failed
            good = [number for number, failed in known.items() if failed < time.monotonic() - self.AVOID_S]
            number = random.choice(good) if good else min(known, key=known.__getitem__, default=None)
        return None if number is None else self._shard.hosts[number]

    def _write(self, host: Host, writes: list[tuple[int, int]]) -> bool:
        sent = time.monotonic()
        try:
            host.ask("write", [(key(*write), value(*write)) for write in writes], timeout=self.TIMEOUT_S)
        except HostError as error:
            self._note_failure(host, len(writes), error)
            return False
        self._note(sent, writes)
        return True

    def _note(self, sent: float, writes: list[tuple[int, int]]) -> None:
        with self._lock:
            now = time.monotonic()
            self.acknowledged += writes
            self._tally.acknowledged += len(writes)
            self._tally.pause = max(self._tally.pause, now - self._latest)
            self._latest, self._newest_sent = now, max(sent, self._newest_sent)

    def _note_failure(self, host: Host, writes: int, error: HostError) -> None:
        with self._lock:
            if error.name == "ReplicaStopped":
                self._failed.pop(host.replica, None)  # it was removed for good
            elif host.replica in self._failed:
                self._failed[host.replica] = time.monotonic()
            if error.known:
                self._tally.refused += writes
            else:
                self._tally.unknown += writes


# -- The tools of the steps ------------------------------------------------------------------------------------------------


class Story:
    """Runs the steps: changes the shard, waits for what should follow, prints it, and sums it up in a table."""

    TIMEOUT_S: Final = 20.0
    """How long a step waits for anything that should happen."""

    def __init__(self, console: Console, shard: Shard, load: Load, seconds: float) -> None:
        self._console, self._seconds = console, seconds
        self.shard, self.load = shard, load
        self._began = self._asked = time.monotonic()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._drawn = 0.0
        self.table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for title in ("step", "members", "leader"):
            self.table.add_column(title, no_wrap=True)
        for title in ("seconds", "acknowledged", "refused", "unknown", "pause"):
            self.table.add_column(title, justify="right", no_wrap=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(Text(), refresh=True)
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print what has just happened."""
        self._console.print(f"{self._elapsed():5.1f} s  {text}", style=style, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Run the block as a step and, after some more load, print what became of the writes meanwhile."""
        self.say(title, "bold")
        began = time.monotonic()
        self.load.begin()
        try:
            yield
            self._load_on()
        except DemoError as error:
            raise DemoError(f"{title}: {error}") from error
        tally, (leader, report) = self.load.tally(), self.leader()
        self.say(
            f"  writes meanwhile: {tally.acknowledged:,} acknowledged, {tally.refused:,} refused, "
            f"{tally.unknown:,} of unknown outcome; none for {tally.pause:.2f} s at most",
            "green",
        )
        took = f"{time.monotonic() - began:.1f}"
        counts = (f"{count:,}" for count in (tally.acknowledged, tally.refused, tally.unknown))
        self.table.add_row(title, report.members.short, str(leader), took, *counts, f"{tally.pause:.2f} s")

    def _load_on(self) -> None:
        """Let the clients write for a while, without any change."""
        done = time.monotonic()
        self.wait("a write is acknowledged again", lambda: self.load.acknowledged_since(done))
        until = time.monotonic() + self._seconds
        self.wait("the time is over", lambda: time.monotonic() >= until, self._seconds + self.TIMEOUT_S)

    def wait(self, what: str, done: Callable[[], Any], timeout: float = TIMEOUT_S) -> Any:
        """Wait until `done()` is true, and return its value. Raises `DemoError` after `timeout`, or where a host ends."""
        deadline = time.monotonic() + timeout
        while not (found := done()):
            self.shard.check()
            if time.monotonic() >= deadline:
                raise DemoError(f"waited {timeout:.0f} s in vain until {what}\n{self.shard.log_ends()}")
            self._draw()
            time.sleep(0.02)
        return found

    def leader(self) -> tuple[int, Report]:
        """Wait until a member leads, and return it with its report."""
        found: tuple[int, Report] = self.wait("a member leads", self.shard.leader)
        return found

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _draw(self) -> None:
        if self._live is not None and time.monotonic() >= self._drawn + 0.25:
            self._drawn = time.monotonic()
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Table:
        tally = self.load.tally()
        writes = f"{tally.acknowledged:,} writes acknowledged in this step, the last {tally.latest:.2f} s ago"
        picture = Table(title=f"{self._elapsed():.0f} s: {writes}", title_justify="left")
        for title in ("host", "state", "role", "knows as members"):
            picture.add_column(title)
        for title in ("leader", "term", "commit", "applied"):
            picture.add_column(title, justify="right")
        for host in self.shard.hosts.values():
            seen = host.report() if host.running else None
            cells = [str(host.replica), host.state]
            if seen is not None:
                figures = (seen.leader or "?", seen.term, seen.commit, seen.applied)
                cells += [seen.state.lower(), seen.members.short, *map(str, figures)]
            leads = seen is not None and seen.state == "LEADER"
            picture.add_row(*cells, style="bold green" if leads else "dim" if seen is None else "")
        return picture

    # -- Changes of the shard

    def ready(self, host: Host) -> None:
        """Wait until a started host is ready."""
        self.wait(f"host {host.replica} is ready", partial(host.has_reported, "ready"))

    def join(self, host: Host, role: str = "FOLLOWER") -> None:
        """Start a host that knows only its own id and role."""
        host.start("--join", "--role", role)
        self.ready(host)
        extra = "" if role == "FOLLOWER" else f", role={role}"
        self.say(f"  host {host.replica} is started on an empty directory: join=True{extra}")

    def change(self, do: str, *arguments: Any, by: Host | None = None) -> None:
        """Change the membership by one call, at the leader unless `by` names another host.

        A change that was refused, such as during an election, is repeated. One whose outcome is unknown is not.
        """
        deadline = time.monotonic() + self.TIMEOUT_S
        listed = ", ".join(repr(each) for each in arguments)
        while True:
            host = by or self.shard.hosts[self.leader()[0]]
            self._asked = time.monotonic()
            try:
                host.ask(do, arguments, timeout=10.0)
            except HostError as error:
                self.say(f"  {do}({listed}), asked of host {host.replica}: {error}", "yellow")
                if not error.known or time.monotonic() > deadline:
                    raise DemoError(f"{do}({listed}) failed at host {host.replica}: {error}") from error
                time.sleep(0.2)
            else:
                took = time.monotonic() - self._asked
                self.say(f"  {do}({listed}), asked of host {host.replica}: done in {took:.2f} s")
                return

    def agree(self, members: Members) -> None:
        """Wait until all members report these members."""
        hosts = [self.shard.hosts[number] for number in (*members.voters, *members.observers)]

        def agreed() -> bool:
            return all((report := host.report()) is not None and report.members == members for host in hosts)

        self.wait(f"all members report {members}", agreed)
        leader, report = self.leader()
        self.say(f"  the shard says: {members}; host {leader} leads, in term {report.term}")

    def caught_up(self, *hosts: Host) -> None:
        """Wait until hosts have applied every entry that is committed now."""
        goal = self.leader()[1].commit
        for host in hosts:

            def caught_up(host: Host = host) -> Report | None:
                report = host.report()
                return report if report is not None and report.applied >= goal else None

            report: Report = self.wait(f"host {host.replica} has applied entry {goal}", caught_up)
            took = time.monotonic() - self._asked
            how = f"a snapshot, and the log from {report.first:,} on" if report.first > 2 else "the log"
            self.say(f"  host {host.replica} holds {goal:,} entries {took:.1f} s later, by {how}")

    def removed(self, *hosts: Host) -> None:
        """Wait until removed hosts have reported that, and have ended by themselves."""
        for host in hosts:
            self.wait(f"host {host.replica} says that it was removed", partial(host.has_reported, "removed"))
            self.say(f"  host {host.replica} says that its shard removed it")
        for host in hosts:
            self.wait(f"host {host.replica} ends by itself", host.has_ended)
            took = time.monotonic() - self._asked
            self.say(f"  host {host.replica} has ended by itself, {took:.1f} s after it was removed")
        self.load.leave(*(host.replica for host in hosts))


# -- The steps --------------------------------------------------------------------------------------------------


def run_steps(story: Story) -> None:
    """Change the members of a shard in every way."""
    shard, load = story.shard, story.load
    first = [shard.new_host() for _ in range(3)]
    with story.step("start three"):
        members = ",".join(f"{host.replica}={host.address}" for host in first)
        for host in first:
            host.start("--members", members)
        for host in first:
            story.ready(host)
        story.agree(Members((1, 2, 3)))
        load.use(1, 2, 3)
        load.begin()
    with story.step("add an observer, promote it"):
        fourth = shard.new_host()
        story.join(fourth, "OBSERVER")
        story.change("add_observer", 4, fourth.address)
        story.agree(Members((1, 2, 3), (4,)))
        story.caught_up(fourth)
        load.use(4)
        story.change("add_replica", 4, fourth.address)
        story.agree(Members((1, 2, 3, 4)))
    with story.step("add a witness"):
        fifth = shard.new_host()
        story.join(fifth, "WITNESS")
        story.change("add_witness", 5, fifth.address)
        story.agree(Members((1, 2, 3, 4), (), (5,)))
    voters = remove_two(story)
    voters = replace_a_dead_machine(story, voters)
    exchange_two(story, voters)


def remove_two(story: Story) -> tuple[int, ...]:
    """Remove a follower, then the leader. Returns the voters that remain."""
    hosts = story.shard.hosts
    voters: tuple[int, ...] = (1, 2, 3, 4)
    with story.step("remove a follower"):
        leader = story.leader()[0]
        follower = next(number for number in voters if number != leader)
        story.change("remove_replica", follower)
        voters = tuple(number for number in voters if number != follower)
        story.agree(Members(voters, (), (5,)))
        story.removed(hosts[follower])
    with story.step("remove the leader"):
        leader = story.leader()[0]
        story.change("remove_replica", leader, by=hosts[leader])
        voters = tuple(number for number in voters if number != leader)
        story.agree(Members(voters, (), (5,)))
        story.removed(hosts[leader])
    return voters


def replace_a_dead_machine(story: Story, voters: tuple[int, ...]) -> tuple[int, ...]:
    """Kill a follower, remove it, and add another one under a new id. Returns the voters afterwards."""
    with story.step("replace a dead machine"):
        leader = story.leader()[0]
        dead = next(number for number in voters if number != leader)
        story.shard.hosts[dead].kill()
        story.load.leave(dead)
        story.say(f"  host {dead} is killed with SIGKILL, and its disk is gone for good", "red")
        story.change("remove_replica", dead)
        voters = tuple(number for number in voters if number != dead)
        story.agree(Members(voters, (), (5,)))
        new = story.shard.new_host()
        story.join(new)
        story.change("add_replica", new.replica, new.address)
        voters = (*voters, new.replica)
        story.agree(Members(voters, (), (5,)))
        story.caught_up(new)
        story.load.use(new.replica)
    return voters


def exchange_two(story: Story, voters: tuple[int, ...]) -> None:
    """Swap both voters for two others at once."""
    hosts = story.shard.hosts
    with story.step("swap two voters at once"):
        new = [story.shard.new_host() for _ in range(2)]
        for host in new:
            story.join(host, "OBSERVER")
            story.change("add_observer", host.replica, host.address)
        numbers = tuple(host.replica for host in new)
        story.agree(Members(voters, numbers, (5,)))
        story.caught_up(*new)
        story.load.use(*numbers)
        adding = [("ADD_VOTER", host.replica, host.address) for host in new]
        story.change("change_membership", *adding, *(("REMOVE", number, "") for number in voters))
        story.agree(Members(numbers, (), (5,)))
        story.removed(*(hosts[number] for number in voters))


def check(story: Story) -> bool:
    """Look for every acknowledged write on every voter and observer. Returns whether all are there."""
    members = story.leader()[1].members
    hosts = [story.shard.hosts[number] for number in (*members.voters, *members.observers)]
    count = len(story.load.acknowledged)
    with ThreadPoolExecutor(len(hosts)) as pool:
        missed = list(pool.map(lambda host: missing(host, story.load.acknowledged), hosts))
    if any(missed):
        missing_on = ", ".join(
            f"host {host.replica} lacks {lost:,}" for host, lost in zip(hosts, missed, strict=True)
        )
        story.say(f"LOST: of {count:,} acknowledged writes, {missing_on}", "bold red")
        return False
    named = " and ".join(str(host.replica) for host in hosts)
    story.say(
        f"all {count:,} acknowledged writes are there, on all members that keep them: {named}", "bold green"
    )
    return True


def missing(host: Host, writes: Sequence[tuple[int, int]]) -> int:
    """Count the writes that a host lacks, by linearizable reads. Raises `DemoError` where it does not answer."""
    lost = 0
    for first in range(0, len(writes), 1000):
        part = writes[first : first + 1000]
        try:
            found = host.ask("read", [key(*write) for write in part], timeout=15.0)
        except HostError as error:
            raise DemoError(
                f"host {host.replica} does not answer, so its writes cannot be checked: {error}"
            ) from error
        lost += sum(value(*write) != there for write, there in zip(part, found, strict=True))
    return lost


# -- The command line -------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Ends the process with status 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="membership_demo",
        description="Hosts that join and leave a shard on this machine, while clients write.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    seconds = between(0, 60, float)
    add("--seconds", type=seconds, default=2.0, help="seconds of load after each step (default: %(default)s)")
    add(
        "--clients",
        type=between(1, 64, int),
        default=4,
        help="clients that write at once (default: %(default)s)",
    )
    add("--batch", type=between(1, 500, int), default=16, help="writes sent at a time (default: %(default)s)")
    return parser.parse_args(arguments)


def play(options: argparse.Namespace) -> bool:
    """Run the hosts, the clients and the steps. Returns whether every acknowledged write is on every member."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    with tempfile.TemporaryDirectory(prefix="drakkar-members-", ignore_cleanup_errors=True) as directory:
        with Shard(Path(directory)) as shard:
            load = Load(shard, options.clients, options.batch)
            with Story(console, shard, load, options.seconds) as story:
                with load:
                    run_steps(story)
                story.say("the clients stop, and every acknowledged write is looked for")
                complete = check(story)
        console.print(story.table)
    return complete


def limit_time(seconds: float) -> None:
    """End the demo after two minutes, or later where --seconds is longer, even where something hangs."""

    def end(*_: object) -> None:
        raise DemoError("the demo takes too long: the machine is very slow, or something hangs")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(120 + round(7 * seconds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 0 only where all steps succeeded, and every acknowledged write is on every member."""
    options = parse(arguments)
    for number in END_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    limit_time(options.seconds)
    try:
        return 0 if play(options) else 1
    except KeyboardInterrupt:
        return 130
    except (DemoError, OSError) as error:
        print(f"membership_demo: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
