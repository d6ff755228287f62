"""What can happen to data directories: they are lost, put back from older copies, mixed up, and started twice.

Each fault takes fewer hosts than a quorum, and none comes before the shard has got over the last one (`wait_settled`): then no
acknowledged write may be lost, and no read may be wrong.
"""

import shutil
from contextlib import contextmanager

from tests.actors.support import until
from tests.ports import free_addresses

MOST = 2
"""Directories of five that are lost at a time."""
RECOVERY_S = 60.0


class Disks:
    """The directories of a cluster's hosts."""

    def __init__(self, cluster, directory, random, *, doubles):
        """`doubles`: where the copies of hosts live, by name. `random` draws orders and which others go down."""
        self._cluster, self._directory, self._random, self._doubles = cluster, directory, random, doubles

    def faults(self):
        return {"wipe": self.wiped, "put back": self.put_back, "swap": self.swapped, "clone": self.cloned}

    def wait_settled(self):
        """Wait until the log says of each host's replica that it lives there, and none refuses another."""

        def settled():
            states = [host.ask("status").get("value") for host in self._cluster.hosts.values()]
            return all(state and state["standing"] == "SETTLED" and not state["refused"] for state in states)

        until(settled, RECOVERY_S)

    @contextmanager
    def wiped(self, numbers):
        """Some disks are lost; with them, now and then, all hosts go down, and come back one after the other."""
        down = list(self._cluster.hosts) if self._random.random() < 0.5 else numbers
        self._cluster.kill(*down)
        for number in numbers[:MOST]:
            shutil.rmtree(self._data(number))
        yield
        for number in self._random.sample(down, len(down)):
            self._cluster.start(number)

    @contextmanager
    def put_back(self, numbers):
        """Some directories are replaced by copies that were taken a while ago: the others refuse them, until they are emptied."""
        numbers = numbers[:MOST]
        self._cluster.kill(*numbers)
        for number in numbers:
            shutil.copytree(self._data(number), self._copy(number))
        self._cluster.start(*numbers)
        self._wait_for_leader(numbers)
        self._cluster.kill(*numbers)
        for number in numbers:
            shutil.rmtree(self._data(number))
            self._copy(number).rename(self._data(number))
        before = {number: self._refusals(number) for number in numbers}
        self._cluster.start(*numbers)
        for number in numbers:
            until(lambda each=number: self._refusals(each) > before[each])
        yield
        self._cluster.kill(*numbers)
        for number in numbers:
            shutil.rmtree(self._data(number))
        self._cluster.start(*numbers)

    @contextmanager
    def swapped(self, numbers):
        """Two hosts have each other's directory: neither starts."""
        one, other = [*numbers, *(each for each in self._cluster.hosts if each not in numbers)][:2]
        self._cluster.kill(one, other)
        self._swap(one, other)
        for number in (one, other):
            said = self._cluster.hosts[number].fail_to_start()
            assert "belongs to address=" in said, said
        yield
        self._swap(one, other)
        self._cluster.start(one, other)

    @contextmanager
    def cloned(self, numbers):
        """A host is started twice: the copy is refused, and the original works on."""
        number = numbers[0]
        host = self._cluster.hosts[number]
        self._cluster.kill(number)
        shutil.copytree(self._data(number), self._doubles / f"data-{number}")
        self._cluster.start(number)
        self._wait_for_leader([number])
        [elsewhere] = free_addresses(1)
        double = host.double(self._doubles, listen=elsewhere)
        try:
            double.launch()
            double.wait_started()
            until(lambda: "is a copy" in double.log())
            assert double.ask("status")["value"]["leader"] == 0
            yield
            assert double.ask("status")["value"]["leader"] == 0
        finally:
            double.close()
            shutil.rmtree(self._doubles)
            self._doubles.mkdir()

    def _wait_for_leader(self, numbers):
        for number in numbers:
            until(lambda host=self._cluster.hosts[number]: host.ask("status")["value"]["leader"])

    def _refusals(self, number):
        return (
            (self._directory / f"{number}.log").read_text(errors="replace").count("does not follow its run")
        )

    def _swap(self, one, other):
        self._data(one).rename(self._copy(one))
        self._data(other).rename(self._data(one))
        self._copy(one).rename(self._data(other))

    def _data(self, number):
        return self._directory / f"data-{number}"

    def _copy(self, number):
        return self._directory / f"copy-{number}"
