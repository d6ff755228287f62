"""Two protocols that are tables, at work: a two-phase commit whose coordinator is killed, and a token ring whose link is cut.

`make demo-handlers` starts them, each host as a process of its own. First the bank of `examples.two_phase_commit`, with a file
for what is written, and its two accounts: the bank is killed once before it writes, and once after. Then the ring of
`examples.ring`, on five hosts in network namespaces: one is cut off, and comes back. At the end no money may be lost or made, and
no host may have worked under a number after another one had worked under a greater; the exit status is 0 only then.

From top to bottom: what each process runs; the processes; the payments; the ring; the command line.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Self, TypeAlias, TypeVar

from drakkar.actors import NodeEvent, NodeHost, TableActor
from drakkar.handlers import Message

from examples import networks, ring, two_phase_commit
from examples.actors_demo import Said
from examples.kv import between
from examples.kv_demo import END_SIGNALS, LOAD_S, ROOT, DemoError, free_ports, limit_time, signals_ignored

ACCOUNTS: Final = ("ann", "bob")
AMOUNT: Final = 3
TIMEOUT_S: Final = 30.0
"""Within which each step of a story must be done."""

Turn: TypeAlias = tuple[int, int, float]
"""The number of a host that has worked, the number of the token, and when that was."""
_Found = TypeVar("_Found")

# -- What each process runs -------------------------------------------------------------------------------------


def show(text: str) -> None:
    """Print a line as a whole, since several threads print."""
    print(f"{text}\n", end="", flush=True)


def show_events(host: NodeHost) -> None:
    """Print what the table actors of a host publish."""

    def told(event: object) -> None:
        if isinstance(event, NodeEvent):
            show(f"{event.name} {event.event}")

    host.subscribe(told)


def run_accounts(here: str, bank: str) -> None:
    """Run the host of both accounts, until standard input ends."""
    with NodeHost(here) as host:
        show_events(host)
        for name in ACCOUNTS:
            table, state = two_phase_commit.ACCOUNT, two_phase_commit.AccountState.FREE
            TableActor.start(handlers=table, state=state, host=host, name=name, peers={"bank": bank})
        show("ready")
        sys.stdin.read()


def run_bank(here: str, accounts: str, file: Path) -> None:
    """Run the host of the bank, and do what the lines say that come in: pay, write and tell."""
    payment, number = two_phase_commit, 0
    with NodeHost(here) as host, file.open("a+", encoding="utf-8") as written:
        peers = dict.fromkeys(ACCOUNTS, accounts)
        first = payment.BankState.NEW
        bank = TableActor.start(handlers=payment.BANK, state=first, host=host, name="bank", peers=peers)
        written.seek(0)
        bank.tell(Message(payment.WRITTEN, payload=[int(line) for line in written]))
        show("ready")
        for line in sys.stdin:
            what, _, rest = line.strip().partition(" ")
            if what == "pay":
                number = int(rest)
                ask = Message(payment.PAY, payload=[number, {"ann": -AMOUNT, "bob": AMOUNT}])
                show(f"{number} is promised" if bank.ask(ask, timeout=TIMEOUT_S) else f"{number} is refused")
            elif what == "write":
                written.write(f"{number}\n")
                written.flush()
                os.fsync(written.fileno())
                show(f"{number} is written")
            elif what == "tell":
                bank.tell(Message(payment.WRITTEN, payload=[number]))


def run_ring(number: int, hosts: Sequence[str], listen: str) -> None:
    """Run one host of the ring, until standard input ends."""
    peers = {f"n{each}": address for each, address in enumerate(hosts, 1)}
    name = f"n{number}"
    with NodeHost(peers.pop(name), listen_address=listen) as host:
        show_events(host)
        node = TableActor.start(handlers=ring.table, state=ring.State.NEW, host=host, name=name, peers=peers)
        node.tell(Message(ring.START, payload=time.time_ns() // 1_000_000))
        show("ready")
        sys.stdin.read()


# -- The processes ----------------------------------------------------------------------------------------------


class Process:
    """One process of this program with --run."""

    def __init__(self, number: int, command: Sequence[str], log: Path, said: Said) -> None:
        """`number` is that of its lines in `said`."""
        self.number = number
        self._command, self._log, self._said = command, log, said
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start it, without waiting for it."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own program, with our own options
                self._command,
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
                self._said.add(self.number, line.rstrip("\n"))

    def say(self, line: str) -> None:
        """Tell it to do something."""
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended, which `check` finds
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def check(self) -> None:
        """Raise `DemoError` if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            lines = self._log.read_text(errors="replace").splitlines()
            raise DemoError(f"a host has ended, {' '.join(self._command)}: " + "\n".join(lines[-5:]))

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


def command_of(role: str, *options: object) -> list[str]:
    """Return the command that runs a role of this program."""
    return [sys.executable, "-m", "examples.handlers_demo", "--run", role, *map(str, options)]


class Hosts:
    """Processes that are stopped at the end of a block, whatever happens. A further Ctrl-C does not interrupt that."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.said = Said()
        self.processes: dict[int, Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with signals_ignored():
            for process in self.processes.values():
                process.kill()

    def start(self, number: int, command: Sequence[str]) -> Process:
        """Start a process; its log is in a file of its number."""
        command = [*command, "--data-dir", str(self._data)]  # so that `ps` tells whose it is
        process = Process(number, command, self._data / f"host-{number}.log", self.said)
        self.processes[number] = process
        process.start()
        return process

    def watch(self, seconds: float) -> None:
        """Let time pass, in which no host may end."""
        time.sleep(seconds)
        for process in self.processes.values():
            process.check()


class Story:
    """Tells, step by step, with the seconds since its beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def tell(self, text: str) -> None:
        """Print what has just happened."""
        print(f"{time.monotonic() - self._began:5.1f} s  {text}", flush=True)


# -- The payments -----------------------------------------------------------------------------------------------


class Payments:
    """Ann pays bob three times. The bank is killed in the middle of the second and of the third payment."""

    def __init__(self, story: Story, hosts: Hosts, data: Path, seconds: float) -> None:
        self._tell, self._hosts, self._said, self._seconds = story.tell, hosts, hosts.said, seconds
        self._bank_at, self._accounts_at = (f"127.0.0.1:{port}" for port in free_ports(2))
        self._command = command_of("bank", self._bank_at, self._accounts_at, data / "paid.txt")
        self._since = 0.0

    def run(self) -> None:
        """Run the whole of it. Raises `DemoError` if an account has what it should not have."""
        self._tell(
            "two hosts start: the bank is on one, the accounts of ann and bob, who have 100 each, on the other"
        )
        self._hosts.start(2, command_of("accounts", self._accounts_at, self._bank_at))
        self._hosts.start(1, self._command)
        for number in (1, 2):
            self._said.wait_for("a host is ready", "ready", host=number)
        self._promise(1)
        self._write(1)
        self._bank.say("tell")
        self._tell(f"it tells the accounts: {self._balances(97, 103)}")
        self._hosts.watch(self._seconds)
        self._promise(2)
        self._kill("before it writes anything")
        self._tell(f"it knows of no second payment, so there was none: {self._balances(97, 103)}")
        self._hosts.watch(self._seconds)
        self._promise(3)
        self._write(3)
        self._kill("before it tells anyone")
        self._tell(f"it has the third payment in its file: {self._balances(94, 106)}")

    @property
    def _bank(self) -> Process:
        return self._hosts.processes[1]

    def _promise(self, number: int) -> None:
        self._since = time.monotonic()
        self._bank.say(f"pay {number}")
        self._said.wait_for("the accounts promise", f"{number} is promised", since=self._since)
        self._tell(f"payment {number}, of {AMOUNT}: ann has promised to give, and bob to take")

    def _write(self, number: int) -> None:
        self._bank.say("write")
        self._said.wait_for("the bank writes", f"{number} is written", since=self._since)
        self._tell(f"the bank has written down that payment {number} is done")

    def _kill(self, when: str) -> None:
        """Kill the bank, see that the accounts wait, and start it again."""
        self._bank.kill()
        self._tell(f"the bank is killed with SIGKILL, {when}")
        self._since = time.monotonic()
        time.sleep(max(1.0, self._seconds))
        decided = [line.text for line in self._said.lines() if line.host == 2 and line.at > self._since]
        if decided:
            raise DemoError(f"the accounts have promised, and did not wait: {', '.join(decided)}")
        self._tell("the accounts have promised, so they wait, and take part in nothing else")
        self._hosts.start(1, self._command)
        self._said.wait_for("the bank is back", "ready", host=1, since=self._since)
        self._tell("the bank is started again, and the accounts ask it")

    def _balances(self, ann: int, bob: int) -> str:
        """Wait until both have heard, and have what they should have."""
        for name, has in (("ann", ann), ("bob", bob)):
            what = f"{name} has {has}"
            self._said.wait_for(what, what, host=2, since=self._since)
        return f"ann has {ann}, bob has {bob}"


# -- The ring ---------------------------------------------------------------------------------------------------


class Ring:
    """Five hosts, of which one is cut off and comes back."""

    VICTIM: Final = 3

    def __init__(self, story: Story, hosts: Hosts, net: networks.Network, seconds: float) -> None:
        self._tell, self._net, self._seconds = story.tell, net, seconds
        self._hosts, self._said = hosts, hosts.said

    def run(self) -> None:
        """Run the whole of it. Raises `DemoError` if the host that is cut off works meanwhile, or the others do not."""
        self._begin()
        self._hosts.watch(self._seconds)
        cut_at = self._cut()
        self._hosts.watch(self._seconds)
        healed_at = self._heal()
        self._hosts.watch(self._seconds)
        self._check(cut_at, healed_at)

    def _begin(self) -> None:
        addresses = self._net.addresses
        for number, listen in enumerate(self._net.listen, 1):
            command = command_of(f"ring-{number}", *addresses, listen)
            self._hosts.start(number, [*self._net.start(number), *command])
        self._tell(f"five hosts start, with {self._net.what}")
        for number in self._hosts.processes:
            self._said.wait_for(f"host {number} is ready", "ready", host=number)
        turns = self._wait_for_round(5)
        self._tell(f"they have made a token, and it goes around: {shown(turns)}")

    def _cut(self) -> float:
        at = time.monotonic()
        greatest = max(number for _, number, _ in self._turns())
        self._net.cut(self.VICTIM)
        self._tell(f"the link of host {self.VICTIM} is cut, and the token is lost there")
        maker = self._wait(lambda: next((turn for turn in self._turns(at) if turn[1] > greatest), None))
        after = f"{maker[2] - at:.1f} s after the cut"
        self._tell(
            f"a majority has voted for another token, with a greater number: n{maker[0]} made it, {after}"
        )
        turns = self._wait_for_round(4, since=at)
        self._tell(
            f"the others know that host {self.VICTIM} is out of reach, and pass it over: {shown(turns)}"
        )
        return at

    def _heal(self) -> float:
        at = time.monotonic()
        self._net.heal(self.VICTIM)
        self._tell(f"the link of host {self.VICTIM} is back")
        self._wait(lambda: next((turn for turn in self._turns(at) if turn[0] == self.VICTIM), None))
        turns = self._wait_for_round(5, since=at)
        self._tell(f"host {self.VICTIM} is found again, and has the token in its turn: {shown(turns)}")
        return at

    def _check(self, cut_at: float, healed_at: float) -> None:
        """A host that is cut off may end its turn, and has no other one."""
        turns = self._turns()
        alone = [turn for turn in turns if turn[0] == self.VICTIM and cut_at + 1 < turn[2] < healed_at]
        if alone:
            raise DemoError(f"host {self.VICTIM} has worked {len(alone)} times while it was cut off")
        late = sum(
            number < max(before[1] for before in turns[: at + 1]) for at, (_, number, _) in enumerate(turns)
        )
        tokens = len({number for _, number, _ in turns})
        self._tell(
            f"there were {len(turns)} turns with {tokens} tokens; what they work on has to refuse {late} of them, "
            "whose numbers are smaller than one before"
        )

    def _turns(self, since: float = 0.0) -> list[Turn]:
        """Who has worked, with which token, and when."""
        found = (
            (line, re.fullmatch(r"n\d works with token (\d+)", line.text)) for line in self._said.lines()
        )
        return [(line.host, int(turn[1]), line.at) for line, turn in found if turn and line.at >= since]

    def _wait_for_round(self, hosts: int, since: float = 0.0) -> list[Turn]:
        """Wait until so many hosts have had one token in turn, twice, and no other was seen; return the last round."""

        def seen() -> list[Turn] | None:
            turns = self._turns(since)[-2 * hosts :]
            same = len({number for _, number, _ in turns}) == 1
            order = [host for host, _, _ in turns]
            twice = len(set(order)) == hosts and order[:hosts] == order[hosts:]
            return turns[hosts:] if same and twice else None

        return self._wait(seen)

    def _wait(self, found: Callable[[], _Found | None]) -> _Found:
        """Look again and again for what comes in lines. Raises `DemoError` if it does not come."""
        until = time.monotonic() + TIMEOUT_S
        while (value := found()) is None:
            if time.monotonic() > until:
                raise DemoError(
                    f"the token does not go as it should within {TIMEOUT_S:.0f} s: {self._turns()[-12:]}"
                )
            self._hosts.watch(0.05)
        return value


def shown(turns: Sequence[Turn]) -> str:
    """Return who had the token, and how long the round took."""
    names = ", ".join(f"n{host}" for host, _, _ in turns)
    return f"{names}, in {turns[-1][2] - turns[0][2]:.1f} s"


# -- The command line -------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Ends the process with status 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="handlers_demo",
        description="A two-phase commit and a token ring on hosts of this machine, which are killed and cut off.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--seconds",
        type=between(0.0, 10, float),
        default=1.0,
        help="seconds between the steps (default: %(default)s)",
    )
    add(
        "--relays",
        action="store_true",
        help="cut the ring by relays, also where network namespaces are allowed",
    )
    add("--run", help=argparse.SUPPRESS)
    add("--data-dir", help=argparse.SUPPRESS)
    add("options", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run(role: str, options: Sequence[str]) -> None:
    """Run one of the hosts."""
    if role == "accounts":
        run_accounts(*options)
    elif role == "bank":
        here, accounts, file = options
        run_bank(here, accounts, Path(file))
    else:
        *hosts, listen = options
        run_ring(int(role.removeprefix("ring-")), hosts, listen)


def play(seconds: float, *, relays: bool) -> None:
    """Run the hosts and both stories. Raises `DemoError` if something is not as it should be."""
    limit_time(LOAD_S + 20 + 3 * seconds)  # it ends after two minutes at most
    story = Story()
    with tempfile.TemporaryDirectory(prefix="drakkar-handlers-", ignore_cleanup_errors=True) as folder:
        data = Path(folder)
        story.tell("A TWO-PHASE COMMIT (examples/two_phase_commit.py)")
        with Hosts(data) as hosts:
            Payments(story, hosts, data, seconds).run()
        story.tell("A TOKEN RING (examples/ring.py)")
        why = "they are to be left out" if relays else networks.why_no_namespaces()
        if why is not None:
            story.tell(
                f"no network namespaces: {why}. So relays stand between the hosts, and hold back what is not to pass"
            )
        with networks.network(5, why) as net, Hosts(data) as hosts:
            Ring(story, hosts, net, seconds).run()
        story.tell("both went as they should")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, or with --run one of its hosts. Returns 0 only where all is as it should be."""
    options = parse(arguments)
    if options.run is not None:
        run(options.run, options.options)
        return 0
    for number in END_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        play(options.seconds, relays=options.relays)
    except KeyboardInterrupt:
        return 130
    except (DemoError, OSError) as error:
        print(f"handlers_demo: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
