"""The bank and the scheduler on three hosts of this machine, as three processes, one of which is killed.

`make demo-actors` starts them: the ledger of `examples.bank` on host 1, its tellers on host 2, and the scheduler of
`examples.singleton` on host 1 too. While customers order, the ledger fails and is started again; then host 1 is killed,
the scheduler goes on elsewhere, and host 1 is started again. At the end the ledger must have each order once that the
customers were told is done, and no job may have been done by a scheduler of the past; the exit status is 0 only then.

From top to bottom: what each process runs; the processes; what they say; the customers; the story; the command line.
"""

import argparse
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Final

from drakkar.actors import ChildSpec, DrakkarError, NodeHost, Supervisor

from examples import bank, singleton
from examples.kv import between
from examples.kv_demo import END_SIGNALS, LOAD_S, ROOT, DemoError, free_ports, limit_time, signals_ignored

LEDGER: Final = 1
"""The host with the ledger. It also has the scheduler, at first."""
TELLERS: Final = 2
HOSTS: Final = (1, 2, 3)
TIMEOUT_S: Final = 20.0
"""Within which each step of the story must be done."""
RUNS: Final = "the scheduler runs here"
"""What a host says that has started it."""

# -- What each process runs -------------------------------------------------------------------------------------


def run_host(number: int, hosts: Sequence[str], data: Path) -> None:
    """Run one host, and do what the lines say that come in, until they end."""
    with NodeHost(hosts[number - 1], data / f"host-{number}") as host:
        scheduler = singleton.start(host, number, list(hosts))
        find_ledger = partial(host.remote, hosts[LEDGER - 1], "ledger", timeout=3)
        ledger = ChildSpec("ledger", bank.Ledger, args=(str(data / "ledger.sqlite"),), publish="ledger")
        teller = ChildSpec("teller", bank.Teller, args=(find_ledger,))
        specs = {LEDGER: [ledger], TELLERS: [teller]}.get(number, [])
        supervisor = Supervisor.start(specs, publish=host.publish).proxy()
        try:
            supervisor.ready().get(timeout=TIMEOUT_S)
            singleton.show("ready")
            for line in sys.stdin:
                if line == "lead\n":
                    with suppress(DrakkarError):  # it is said again
                        host.replica(singleton.SHARD).transfer_leadership(number, timeout=2).get()
                elif line == "scheduler\n":
                    singleton.show(f"asked: {singleton.ask(scheduler)}")
                else:
                    answer = bank.do(line, supervisor.ref_of("teller").get().proxy(), find_ledger)
                    singleton.show(f"bank: {answer}")
        finally:
            supervisor.actor_ref.stop()


# -- The processes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What a process has said."""

    host: int
    text: str
    at: float


class Said:
    """What all processes have said. From any thread."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._more = threading.Condition()

    def add(self, host: int, text: str) -> None:
        """Add a line."""
        with self._more:
            self._lines.append(Line(host, text, time.monotonic()))
            self._more.notify_all()

    def lines(self) -> list[Line]:
        """Return all lines, in the order in which they came."""
        with self._more:
            return list(self._lines)

    def wait_for(
        self,
        what: str,
        words: str,
        *,
        host: int | None = None,
        since: float = 0.0,
        timeout: float = TIMEOUT_S,
    ) -> Line:
        """Wait for the first line with `words`, of one host or any. Raises `DemoError` where none comes."""

        def found() -> Line | None:
            return next((line for line in self._lines if fits(line)), None)

        def fits(line: Line) -> bool:
            return words in line.text and host in {None, line.host} and line.at >= since

        with self._more:
            line = self._more.wait_for(found, timeout)
        if line is None:
            raise DemoError(f"{what}: that has not happened within {timeout:.0f} s")
        return line


@dataclass(eq=False)
class Host:
    """One process of this program with --host."""

    number: int
    hosts: Sequence[str]
    data: Path
    said: Said
    _answers: "queue.Queue[str]" = field(default_factory=queue.Queue)
    _asking: threading.Lock = field(default_factory=threading.Lock)
    _process: "subprocess.Popen[str] | None" = None
    _reader: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Where other hosts find it."""
        return self.hosts[self.number - 1]

    @property
    def log(self) -> Path:
        """Where the process writes its errors."""
        return self.data / f"host-{self.number}.log"

    def start(self) -> None:
        """Start the process, without waiting for it."""
        options = ["--host", str(self.number), "--hosts", *self.hosts, "--data-dir", str(self.data)]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own program, with our own options
                [sys.executable, "-m", "examples.actors_demo", *options],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches only the demo, which then stops its hosts
            )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                text = line.rstrip("\n")
                if text.startswith("bank: "):
                    self._answers.put(text.removeprefix("bank: "))
                else:
                    self.said.add(self.number, text)
        self._answers.put("the process has ended")

    def say(self, line: str) -> None:
        """Tell it to do something. Where it has ended, or is ended meanwhile, nothing happens."""
        process = self._process
        if process is None or process.stdin is None:
            return
        with suppress(OSError, ValueError):  # ValueError: its input is closed
            process.stdin.write(f"{line}\n")
            process.stdin.flush()

    def ask(self, line: str) -> str:
        """Have the tellers do something, and return what they answer."""
        with self._asking:
            self.say(line)
            return self._answers.get()

    def check(self) -> None:
        """Raise `DemoError` where it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            lines = self.log.read_text(errors="replace").splitlines()
            raise DemoError(f"host {self.number} has ended: " + "\n".join(lines[-5:]))

    def kill(self) -> None:
        """Kill it at once, without a chance to clean up."""
        process, self._process = self._process, None
        if process is not None and self._reader is not None:
            process.kill()
            process.wait()
            self._reader.join()
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()

    def stop(self) -> None:
        """Let it end, as its input does; kill it where it has not after five seconds."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self.kill()


@contextmanager
def running(hosts: Sequence[Host]) -> Iterator[None]:
    """Start all hosts; stop them at the end of the block. A further Ctrl-C does not interrupt that."""
    try:
        for host in hosts:
            host.start()
        yield
    finally:
        with signals_ignored(), ThreadPoolExecutor(len(hosts)) as pool:
            for stopped in [pool.submit(host.stop) for host in hosts]:
                stopped.result()


# -- The customers ----------------------------------------------------------------------------------------------


class Customers(threading.Thread):
    """Order one after the other, and see whether the ledger has each order once."""

    PAUSE_S: Final = 0.01

    def __init__(self, tellers: Host) -> None:
        super().__init__(name="customers", daemon=True)
        self._tellers = tellers
        self._over = threading.Event()
        self._changed = threading.Condition()
        self.done = 0
        """Orders that the ledger has done, as the customers were told."""
        self.longest_wait = 0.0
        """In seconds, since it was set to 0."""
        self.wrong: str | None = None
        """An answer that cannot be right."""

    def run(self) -> None:
        """Order until stopped, or until an answer is wrong."""
        while not self._over.wait(self.PAUSE_S):
            asked = time.monotonic()
            answer = self._tellers.ask("ann 1")
            with self._changed:
                if answer == f"ann has {self.done + 1}":
                    self.done += 1
                else:
                    self.wrong = answer
                self.longest_wait = max(self.longest_wait, time.monotonic() - asked)
                self._changed.notify_all()
            if self.wrong is not None:
                return

    def wait_for(self, more: int) -> None:
        """Wait until so many more orders are done. Raises `DemoError` where they are not, or an answer is wrong."""
        with self._changed:
            goal = self.done + more
            self._changed.wait_for(lambda: self.done >= goal or self.wrong is not None, TIMEOUT_S)
            if self.wrong is not None:
                raise DemoError(f"after {self.done} orders that were done, a teller says: {self.wrong}")
            if self.done < goal:
                raise DemoError(f"no order is done for {TIMEOUT_S:.0f} s: look into the logs of the hosts")

    def stop(self) -> None:
        """Stop after the answer to the last order."""
        self._over.set()
        self.join(TIMEOUT_S)


# -- The story --------------------------------------------------------------------------------------------------


class Story:
    """Tells, step by step, with the seconds since its beginning."""

    def __init__(self, hosts: Sequence[Host], said: Said, seconds: float) -> None:
        self._hosts = {host.number: host for host in hosts}
        self._said, self._seconds = said, seconds
        self._began = time.monotonic()
        self._customers = Customers(self._hosts[TELLERS])

    def tell(self, text: str) -> None:
        """Print what has just happened."""
        print(f"{time.monotonic() - self._began:5.1f} s  {text}", flush=True)

    def run(self) -> bool:
        """Run the whole of it. Returns whether all orders and jobs are as they should be."""
        self.tell("three hosts start, each in a process of its own")
        self._begin()
        self._watch()
        self._let_ledger_fail()
        self._watch()
        self._kill_and_restart()
        self._watch()
        self._ask_scheduler()
        return self._check()

    def _watch(self) -> None:
        """Let time pass, in which no host may end."""
        time.sleep(self._seconds)
        for host in self._hosts.values():
            host.check()

    def _begin(self) -> None:
        for number in HOSTS:
            self._said.wait_for(f"host {number} is ready", "ready", host=number)
        runs = self._said.wait_for("the scheduler runs", RUNS)
        if runs.host != LEDGER:  # it is to be lost with the ledger, so that there is more to see
            self.tell(
                f"the scheduler runs on host {runs.host}, {fence_of(runs)}, and is moved to host {LEDGER}"
            )
            runs = self._move_scheduler()
        self.tell(f"the bank's ledger runs on host {LEDGER}, its tellers on host {TELLERS}")
        self.tell(f"the scheduler runs on host {runs.host}, {fence_of(runs)}")
        self._customers.start()
        self._customers.wait_for(1)
        self.tell("customers order, one after the other")

    def _move_scheduler(self) -> Line:
        what, since = f"the scheduler comes to host {LEDGER}", time.monotonic()
        for _ in range(5):
            self._hosts[LEDGER].say("lead")
            with suppress(DemoError):
                return self._said.wait_for(what, RUNS, host=LEDGER, since=since, timeout=3)
        raise DemoError(f"{what}: that has not happened in five attempts")

    def _let_ledger_fail(self) -> None:
        self.tell(f"{self._customers.done:,} orders are done; now the ledger fails, by an exception")
        self._customers.longest_wait = 0.0
        self._hosts[TELLERS].ask("crash")
        self._customers.wait_for(2)  # the first may have been answered before
        wait = self._customers.longest_wait
        self.tell(f"its supervisor has started it again: an order waited {wait:.2f} s, and is done")

    def _kill_and_restart(self) -> None:
        killed = self._hosts[LEDGER]
        self._customers.longest_wait = 0.0
        at = time.monotonic()
        killed.kill()
        self.tell(f"host {LEDGER} is killed with SIGKILL, and with it the ledger and the scheduler")
        runs = self._said.wait_for("the scheduler goes on elsewhere", RUNS, since=at)
        self.tell(
            f"the scheduler runs on host {runs.host}, {fence_of(runs)}, {runs.at - at:.2f} s after the kill"
        )
        killed.start()
        self.tell(f"host {LEDGER} is started again, with its files")
        self._customers.wait_for(2)
        wait = self._customers.longest_wait
        self.tell(f"the tellers have found the ledger again: an order waited {wait:.2f} s, and is done")

    def _ask_scheduler(self) -> None:
        asked = time.monotonic()
        self._hosts[LEDGER].say("scheduler")
        answer = self._said.wait_for("the scheduler answers", "asked: ", host=LEDGER, since=asked)
        job, _, address = answer.text.removeprefix("asked: ").partition(", at ")
        where = next((host.number for host in self._hosts.values() if host.address == address), "nowhere")
        self.tell(f"host {LEDGER} asks the scheduler how far it is, and host {where} answers: {job}")

    def _check(self) -> bool:
        self._customers.stop()
        done = self._customers.done
        jobs = done_jobs(self._said.lines())
        right = self._hosts[TELLERS].ask("ann 0") == f"ann has {done}"
        in_order = all(before <= after for (_, before), (_, after) in pairwise(jobs))
        self.tell(
            f"the customers were told that {done:,} orders are done, and the ledger has "
            + ("each of them once" if right else "OTHERS")
        )
        fences = ", then ".join(map(str, sorted({fence for _, fence in jobs})))
        self.tell(
            f"{len(jobs)} jobs were done, with fence {fences}: "
            + ("none by a scheduler of the past" if in_order else "SOME BY A SCHEDULER OF THE PAST")
        )
        return right and in_order


def fence_of(line: Line) -> str:
    """Return the fencing number in what a scheduler says when it starts."""
    return line.text.rpartition(", with ")[2]


def done_jobs(lines: Sequence[Line]) -> list[tuple[int, int]]:
    """Return the jobs that schedulers said they have done, each with its fence, in the order of the jobs."""
    found = (re.fullmatch(r"job (\d+), fence (\d+)", line.text) for line in lines)
    return sorted((int(job[1]), int(job[2])) for job in found if job)


# -- The command line -------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Ends the process with status 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="actors_demo",
        description="A bank and a scheduler on three hosts of this machine, one of which is killed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--seconds",
        type=between(0.1, 10, float),
        default=2.0,
        help="seconds between the steps (default: %(default)s)",
    )
    add("--host", type=int, choices=HOSTS, help=argparse.SUPPRESS)
    add("--hosts", nargs=len(HOSTS), help=argparse.SUPPRESS)
    add("--data-dir", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def play(seconds: float) -> bool:
    """Run the hosts and the story. Returns whether all orders and jobs are as they should be."""
    limit_time(LOAD_S)
    said = Said()
    addresses = [f"127.0.0.1:{port}" for port in free_ports(len(HOSTS))]
    with tempfile.TemporaryDirectory(prefix="drakkar-actors-", ignore_cleanup_errors=True) as data:
        hosts = [Host(number, addresses, Path(data), said) for number in HOSTS]
        with running(hosts):
            return Story(hosts, said, seconds).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, or with --host one of its hosts. Returns 0 only where all is as it should be."""
    options = parse(arguments)
    if options.host is not None:
        run_host(options.host, options.hosts, options.data_dir)
        return 0
    for number in END_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        return 0 if play(options.seconds) else 1
    except KeyboardInterrupt:
        return 130
    except (DemoError, OSError) as error:
        print(f"actors_demo: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
