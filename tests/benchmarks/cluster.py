"""Three processes of one system, as a benchmark sees them."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from socket import create_server
from types import TracebackType
from typing import Any, Final, Self

from tests.benchmarks import hosts
from tests.benchmarks.hosts import Host
from tests.benchmarks.load import Figures, Load, LoadError

REPLICAS: Final = (1, 2, 3)

LEADER_WITHIN: Final = 60.0


class Cluster:
    """Three hosts on this machine, with data directories of their own. A context manager: it stops them at the end.

    `watch` is "loop" to have Drakkar's hosts profile their loops, "trace" to have them note moments; see `profiles`.

    Raises `LoadError` where they do not start, or elect no leader.
    """

    def __init__(self, system: str, options: Mapping[str, Any], directory: Path, *, watch: str = "") -> None:
        directory.mkdir(parents=True)
        self._errors = directory / "errors.txt"
        addresses = _free_addresses(2 * len(REPLICAS))
        members = dict(zip(REPLICAS, addresses, strict=False))
        clients = dict(zip(REPLICAS, addresses[len(REPLICAS) :], strict=True))
        self.leader = 0
        self.profiles: dict[int, str] = {}
        """What the hosts report of what they watched, by replica, once they have stopped."""
        self._orders: dict[int, dict[str, Any]] = {
            replica: {
                "system": system,
                "options": dict(options),
                "replica": replica,
                "members": members,
                "client": clients[replica],
                "data_dir": str(directory / f"host-{replica}"),
                "watch": watch,
            }
            for replica in REPLICAS
        }
        self._hosts: dict[int, Host] = {}

    def __enter__(self) -> Self:
        try:
            for replica in REPLICAS:
                self._start(replica)
            for host in self._hosts.values():
                host.hear()
            self.find_leader()
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for replica, host in self._hosts.items():
                    self.profiles[replica] = host.ask(do="stop")["profile"]
        finally:
            self._kill_all()

    def run(self, load: Load, *, at_leader: bool = True) -> tuple[Figures, float]:
        """Run a load in the leader's process, or in a follower's.

        Returns the figures, and the CPU time of all processes for a command, in microseconds. Raises `LoadError` where
        there are no figures.
        """
        return self._run([self._hosts[self.leader if at_leader else self.followers[0]]], load)

    def run_everywhere(self, load: Load) -> tuple[Figures, float]:
        """Run a load in each host's process at the same time; return, and raise, as `run` does."""
        self._await_leaders()
        return self._run(list(self._hosts.values()), load)

    def _run(self, hosts: Sequence[Host], load: Load) -> tuple[Figures, float]:
        before = self._cpu_seconds()
        for host in hosts:
            host.tell({"do": "run", "load": asdict(load)})
        answers = [host.hear(load.warm_up + load.seconds) for host in hosts]
        figures = Figures.together([Figures(**answer["figures"]) for answer in answers])
        return figures, (self._cpu_seconds() - before) / figures.answered * 1e6

    def ask_all(self, *, within: float, **order: Any) -> list[dict[str, Any]]:
        """Give all hosts an order that takes at most so many seconds, and return their answers. Raises `LoadError`."""
        for host in self._hosts.values():
            host.tell(order)
        return [host.hear(within) for host in self._hosts.values()]

    @property
    def followers(self) -> list[int]:
        """The replicas beside the leader."""
        return [replica for replica in REPLICAS if replica != self.leader]

    @property
    def replica_pids(self) -> list[int]:
        """The processes that hold the replicas."""
        return [self._hosts[replica].replica_pid for replica in REPLICAS]

    def find_leader(self) -> None:
        """Wait until a host leads. Raises `LoadError`."""
        until = time.monotonic() + LEADER_WITHIN
        while time.monotonic() < until:
            for replica, host in self._hosts.items():
                if host.ask(do="leads")["leads"]:
                    self.leader = replica
                    return
            time.sleep(0.05)
        raise LoadError(f"no host led within {LEADER_WITHIN:.0f} s")

    def _await_leaders(self) -> None:
        until = time.monotonic() + LEADER_WITHIN
        while not all(host.ask(do="leads")["leads"] for host in self._hosts.values()):
            if time.monotonic() > until:
                raise LoadError(f"not every host led a shard within {LEADER_WITHIN:.0f} s")
            time.sleep(0.05)

    def kill(self, replica: int) -> None:
        """Kill a host's processes (SIGKILL)."""
        self._hosts.pop(replica).kill()

    def restart(self, replica: int) -> None:
        """Start a killed host again, with what its data directory holds."""
        self._start(replica)
        self._hosts[replica].hear()

    def recover(self, replica: int, within: float) -> None:
        """Have this host propose commands until one is answered. Raises `LoadError` if that takes longer than `within`."""
        self._hosts[replica].ask(do="recover", within=within, seconds=within)

    def lead(self, replica: int, within: float) -> None:
        """Have this host lead all shards. Raises `LoadError` if that takes longer than `within`. Only for Drakkar."""
        self._hosts[replica].ask(do="lead", within=within, seconds=within)
        self.leader = replica

    def recover_all(self, replica: int, within: float, since: float) -> list[float]:
        """Have each shard answer a command through this host; see `recovery.recover_all`. Only for Drakkar."""
        answer = self._hosts[replica].ask(do="recover_all", within=within, since=since, seconds=within)
        times: list[float] = answer["times"]
        return times

    def _start(self, replica: int) -> None:
        self._hosts[replica] = hosts.start(self._orders[replica], self._errors)

    def _cpu_seconds(self) -> float:
        return sum(host.cpu_seconds() for host in self._hosts.values())

    def _kill_all(self) -> None:
        for host in self._hosts.values():
            host.kill()


def _free_addresses(count: int) -> list[str]:
    """Addresses that are free at this moment; asked for together, so that they differ."""
    with ExitStack() as stack:
        servers = [stack.enter_context(create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
