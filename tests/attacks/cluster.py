"""An innocent cluster of three hosts, each a process of its own, and what an attack costs it.

The clients of shard 1 commit through host 1, one command after the other. An attack is measured by how many they commit
before, during and after it, by the longest time without a commit, and by the memory, descriptors and log of each host. Where an attack is
one by calls, clients at host 2 ask an actor of host 1 as well, one question after the other, and are counted alike.
"""

import os
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import trustme

from tests.actors.support import TIMEOUT_S, until
from tests.attacks.forge import STRANGER
from tests.ports import free_ports
from tests.process.support import TICK, Cluster, HostProcess

BEFORE_S = 0.4
"""Seconds over which commits are counted before and after an attack."""
RECOVERY_S = 15.0
BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
"""Other tests run at the same time."""
TOO_SLOW = "the innocent were slowed down"
INNOCENT = "innocent"
"""The name of the actor that the innocent ask."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_pause = threading.Event().wait


class Pace(NamedTuple):
    """What the innocent do a second."""

    commits: float
    gap: float
    """The longest time without a commit, in seconds."""
    calls: float
    """Questions that were answered; 0 where none are asked."""


@dataclass
class Figures:
    """What one attack cost. Rates are commits a second; the rest is growth, of the host where it is the largest."""

    name: str
    tls: bool
    memory_budget_mib: int
    log_budget_kib: int
    before: float = 0.0
    during: float = 0.0
    after: float = 0.0
    calls_before: float = 0.0
    """Questions a second; 0 where none are asked."""
    calls_during: float = 0.0
    calls_after: float = 0.0
    cpu: float = 0.0
    """Cores that the busiest host used during it."""
    gap: float = 0.0
    """The longest time without a commit, in seconds."""
    memory_mib: float = 0.0
    descriptors: int = 0
    left: int = 0
    """Descriptors that are open some seconds after the attack, and were not before it."""
    log_kib: float = 0.0
    notes: list[str] = field(default_factory=list)

    def judge(self, *, pace=True):
        """The innocent go on, at half the pace at least, and nothing grows out of bounds.

        Without `pace` they need only go on: beside other tests no pace means anything.
        """
        self._judge_pace(self.before, self.during, self.after, pace=pace)
        if self.calls_before:
            self._judge_pace(self.calls_before, self.calls_during, self.calls_after, pace=pace)
        assert self.memory_mib <= self.memory_budget_mib, f"memory grew out of bounds: {self}"
        assert self.log_kib <= self.log_budget_kib, f"the log grew out of bounds: {self}"
        assert self.left <= 10, f"descriptors were left open: {self}"

    def _judge_pace(self, before, during, after, *, pace):
        calm = (before + after) / 2 if pace else 0.0
        assert during > 0, f"the innocent were stopped: {self}"
        assert during >= calm / 2, f"{TOO_SLOW} by it: {self}"
        assert after >= (before / 2 if pace else 0.0), f"{TOO_SLOW}, {RECOVERY_S:g} s later still: {self}"

    def note(self, text):
        self.notes.append(text)


RESULTS = []
"""The figures of all attacks of this process, in order."""


class Authority:
    """Certificates of one authority, as files."""

    def __init__(self, folder):
        self._ca, self._folder = trustme.CA(), folder
        folder.mkdir(parents=True)
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, *names, **options):
        """Make the files for a host of these names; return the arguments of a `TlsConfig`."""
        stem = f"{names[0].replace('*', 'any')}-{len(list(self._folder.iterdir()))}"
        cert, key = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        issued = self._ca.issue_cert(*names, **options)
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return {"ca": str(self.ca), "cert": str(cert), "key": str(key)}

    def client(self, *names, **options):
        """A context that shows such a certificate, and checks none: an attacker is not picky."""
        return context(self.issue(*names, **options) if names else None)


def context(files=None):
    """A TLS context that checks nothing, and shows a certificate where it is given files of one."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if files:
        made.load_cert_chain(files["cert"], files["key"])
    return made


class Target(Cluster):
    """The three hosts. `host(n)` is one of them; shard 1 has all three, and host 1 leads it."""

    def __init__(self, directory, *, tls=False, **settings):
        self.directory = directory
        directory.mkdir(parents=True)
        self.tls = tls
        # With TLS each host has a certificate, and so a name, of its own.
        names = {n: f"127.0.1.{n}" if tls else "127.0.0.1" for n in (1, 2, 3)}
        self.members = {n: f"{name}:{free_ports(1, name)[0]}" for n, name in names.items()}
        self.authority = Authority(directory / "certificates") if tls else None
        self.files = {n: self.authority.issue(name) for n, name in names.items()} if tls else None
        super().__init__(
            HostProcess(n, self.members, directory, program="tests.attacks.host", tls=self.files, **settings)
            for n in names
        )
        self._outsider, self._callers = None, False
        self.opened = {}
        """Shards that were started: which state machine, on which hosts."""

    def __enter__(self):
        super().__enter__()
        self.open_shard(1)
        return self

    def open_shard(self, shard, machine="ledger", numbers=(1, 2, 3), config=None, others=None):
        """Start a shard on these hosts, of which the first then leads.

        `config`: options of it that differ. `others`: its members that are no hosts of this cluster, and their addresses.
        """
        self.opened[shard] = (machine, numbers, config, others)
        for n in numbers:
            self._open(n, shard)
        self.ask(numbers[0], "lead", shard=shard)

    def _open(self, number, shard):
        machine, numbers, config, others = self.opened[shard]
        self.ask(
            number,
            "start",
            shard=shard,
            machine=machine,
            numbers=list(numbers),
            config=config,
            others=others,
        )

    def start_again(self, *numbers):
        """Start hosts that were killed, and what they had."""
        self.start(*numbers)
        for number in numbers:
            for shard, (_, on, *_) in self.opened.items():
                if number in on:
                    self._open(number, shard)

    def ask(self, number, do, **order):
        """Give an order, and return what came of it. Raises `RuntimeError` where that is an error."""
        answer = self.hosts[number].ask(do, **order)
        if "error" in answer:
            raise RuntimeError(
                f"host {number}: {do}: {answer['error']}: {answer.get('text')}\n{self.hosts[number].log()}"
            )
        return answer["value"]

    def status(self, number=1, shard=1):
        return self.ask(number, "status", shard=shard)

    def counter(self, number, name):
        return self.ask(number, "counters").get(name, 0)

    @property
    def outsider(self):
        """How a host connects that has a valid certificate, and is no member: the TLS context; None without TLS."""
        if self.tls and self._outsider is None:
            self._outsider = self.authority.client(STRANGER)
        return self._outsider

    @property
    def stranger(self):
        """How an attacker without a certificate connects, likewise."""
        return context() if self.tls else None

    def member(self, number):
        """How a member connects: the arguments of a `Link`, and of `introduced` its address too."""
        return {
            "tls": context(self.files[number]) if self.tls else None,
            "source": self.members[number].rpartition(":")[0],
        }

    @property
    def healthy(self):
        """Whether a command is still committed, on all hosts."""
        try:
            self.ask(1, "lead", shard=1)
            self.ask(1, "propose", shard=1, command="healthy", within=5.0)
            return all(not self.status(n)["ended"] for n in self.hosts)
        except (RuntimeError, AssertionError):
            return False

    @contextmanager
    def attack(self, name, *, memory_mib=64, log_kib=64, calls=False):
        """Measure what happens within, and judge it. What counts as during the attack is what `watch` watches.

        `calls`: innocent clients of host 2 ask an actor of host 1 meanwhile, and are measured too.
        """
        figures = Figures(name, self.tls, memory_mib, log_kib)
        self.ask(1, "lead", shard=1)
        self.ask(1, "load")
        try:
            if calls:
                self._call()
            self._rate(0.2)  # until it is in its stride
            before = self._rate(BEFORE_S)
            figures.before, figures.calls_before = before.commits, before.calls
            with _Sampler(self, figures):
                yield _Watch(self, figures)
            after = self._recovered(before)
            figures.after, figures.calls_after = after.commits, after.calls
            figures.left = _descriptors_left(self, figures)
        except BaseException as error:
            figures.note(
                f"**{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}**"
            )
            raise
        finally:
            with suppress(RuntimeError):
                self.ask(1, "rest")
            with suppress(RuntimeError):
                self._call_no_more()
            RESULTS.append(figures)
        figures.judge(pace=not BESIDE_OTHERS)

    def _call(self):
        if INNOCENT not in self.ask(1, "published"):
            self.ask(1, "publish", name=INNOCENT)
        self.ask(2, "call_load", address=self.members[1], name=INNOCENT)
        self._callers = True

    def _call_no_more(self):
        if self._callers:
            self._callers = False
            self.ask(2, "call_rest")

    def rate(self, seconds):
        """What the innocent do."""
        return self._rate(seconds)

    def _rate(self, seconds):
        began = self.ask(1, "seen")
        called = self.ask(2, "called") if self._callers else None
        _pause(seconds)
        ended = self.ask(1, "seen")
        commits = (ended["commits"] - began["commits"]) / (ended["now"] - began["now"])
        return Pace(commits, ended["gap"], 0.0 if called is None else self._calls_since(called))

    def _calls_since(self, began):
        ended = self.ask(2, "called")
        return (ended["calls"] - began["calls"]) / (ended["now"] - began["now"])

    def _recovered(self, before):
        """The rate once it is what it was, nearly; or what it is after long enough."""
        deadline = time.monotonic() + RECOVERY_S
        while True:
            pace = self._rate(BEFORE_S)
            is_back = pace.commits >= before.commits / 2 and pace.calls >= before.calls / 2
            if is_back or time.monotonic() > deadline:
                return pace


class _Watch:
    """The attack goes on; what is seen of it goes into its figures."""

    def __init__(self, target, figures):
        self._target, self.figures = target, figures
        self.note = figures.note
        self._watched = 0.0

    def watch(self, seconds=1.2):
        """Count what the innocent commit in so many seconds; return the commits a second. Several times are taken together."""
        before = self._used()
        pace = self._target.rate(seconds)
        used = max(now - then for now, then in zip(self._used(), before, strict=True))
        figures, past = self.figures, self._watched
        self._watched += seconds
        figures.during = (figures.during * past + pace.commits * seconds) / self._watched
        figures.calls_during = (figures.calls_during * past + pace.calls * seconds) / self._watched
        figures.cpu = (figures.cpu * past + used) / self._watched
        figures.gap = max(pace.gap, figures.gap)
        return pace.commits

    def _used(self):
        """Seconds of processor that each host has used."""
        return [_seconds_used(host.pid) for host in self._target.hosts.values() if host.alive]


class _Sampler:
    """Watches memory, descriptors and log files of the hosts while an attack goes on."""

    EVERY_S = 0.05

    def __init__(self, target, figures):
        self._target, self._figures = target, figures
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._before = {}

    def __enter__(self):
        self._before = self._figures.start = {n: _size_of(host) for n, host in self._target.hosts.items()}
        self._thread.start()

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(TIMEOUT_S)

    def _run(self):
        while not self._over.wait(self.EVERY_S):
            for n, host in self._target.hosts.items():
                with suppress(OSError):  # it is being restarted
                    self._note(n, _size_of(host))

    def _note(self, number, now):
        figures, before = self._figures, self._before[number]
        figures.memory_mib = max(figures.memory_mib, (now[0] - before[0]) / (1 << 20))
        figures.descriptors = max(figures.descriptors, now[1] - before[1])
        figures.log_kib = max(figures.log_kib, (now[2] - before[2]) / (1 << 10))


def _size_of(host):
    """Resident bytes, open descriptors, and bytes of log of a host."""
    process = Path(f"/proc/{host.pid}")
    resident = int((process / "statm").read_text().split()[1]) * _PAGE
    return (
        resident,
        sum(1 for _ in (process / "fd").iterdir()),
        (host._directory / f"{host.replica}.log").stat().st_size,
    )


def _seconds_used(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _descriptors_left(target, figures):
    """Descriptors that stay open: those of connections that just ended may take a moment."""
    worst = 0

    def few():
        nonlocal worst
        with suppress(OSError):
            worst = max(_size_of(host)[1] - figures.start[n][1] for n, host in target.hosts.items())
        return worst <= 10

    with suppress(AssertionError):
        until(few, 10)
    return worst


def table(results):
    """The figures of attacks as a table in Markdown."""
    head = "| attack | TLS | commits/s before | during | after | cores | longest pause | memory | descriptors | log | |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"]
    lines += [
        f"| {each.name} | {'yes' if each.tls else 'no'} | {each.before:,.0f} | {each.during:,.0f} | {each.after:,.0f} "
        f"| {each.cpu:.2f} "
        f"| {each.gap:.2f} s | {each.memory_mib:+.0f} MiB | {each.descriptors:+d} | {each.log_kib:.0f} KiB | {'; '.join([*_calls_of(each), *each.notes])} |"
        for each in results
    ]
    return "\n".join(lines)


def _calls_of(figures):
    """What the table says of the calls of the innocent."""
    if not figures.calls_before:
        return []
    pace = (figures.calls_before, figures.calls_during, figures.calls_after)
    return ["calls/s of others: {:,.0f} before, {:,.0f} during it, {:,.0f} after".format(*pace)]


__all__ = ["INNOCENT", "RESULTS", "TICK", "Authority", "Figures", "Pace", "Target", "context", "table"]
