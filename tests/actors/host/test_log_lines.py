"""What three hosts in one process write to the log in the life of a shard, and who is told apart how."""

import logging
import re
from pathlib import Path

import drakkar.actors
import drakkar.handlers
import drakkar.transport
import pytest

from tests.actors.support import TIMEOUT_S, Hosts, Ledger, commit, founded_by_a_majority, until

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
CALM = {"election_ticks": 50, "snapshot_entries": 0}
FORM = re.compile(r"^127\.0\.0\.1:\d+( replica \d of shard \d)?: \S")


class Saving(Ledger):
    """A ledger of which a snapshot can be taken."""

    def save(self, sink):
        sink.write(b" ".join(self.commands))

    def load(self, source):
        self.commands = source.read().split()


@pytest.fixture
def hosts(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with Hosts(data=tmp_path) as hosts:
        yield hosts


class Log:
    """What was written, by the replica that it is about."""

    def __init__(self, caplog, hosts):
        self._caplog, self._hosts = caplog, hosts

    def of(self, number, name="drakkar.actors.node"):
        """The lines of a replica, without their beginnings."""
        where = f"{self._hosts.addresses[number - 1]} replica {number} of shard 1: "
        found = [each for each in self._caplog.records if each.name == name and each.replica == number]
        assert all(each.getMessage().startswith(where) for each in found)
        assert all((each.host, each.shard) == (where.split(maxsplit=1)[0], 1) for each in found)
        return [each.getMessage().removeprefix(where) for each in found]

    def wait_for(self, number, text, name="drakkar.actors.node"):
        until(lambda: text in self.of(number, name))


@pytest.fixture
def log(caplog, hosts):
    return Log(caplog, hosts)


def test_the_life_of_a_shard_can_be_read(hosts, log, caplog):
    hosts.run(Saving, config=CALM)
    first = hosts.leader()
    commit(hosts[first], b"x")
    term = hosts[first].status().term
    for number in (1, 2, 3):
        assert log.of(number)[0] == (
            "started as FOLLOWER of term 1 with Saving: snapshot at 0, log up to 1, committed up to 1; voters 1, 2, 3"
        )
        won = f"won the election of term {term}"
        log.wait_for(number, won if number == first else f"replica {first} leads in term {term}")

    second, third = hosts.others(first)
    hosts[first].transfer_leadership(second).get(timeout=TIMEOUT_S)
    log.wait_for(second, f"won the election of term {term + 1}")
    log.wait_for(first, f"hands leadership over to replica {second}")
    for number in (first, third):
        log.wait_for(number, f"replica {second} leads in term {term + 1}")
    assert any(text.startswith("leads no longer") for text in log.of(first))

    index = hosts[second].snapshot().get(timeout=TIMEOUT_S)
    log.wait_for(second, f"took the snapshot at {index}")
    path = hosts.data / "copy"
    exported = hosts[second].snapshot(export_to=path).get(timeout=TIMEOUT_S)
    log.wait_for(second, f"exported the snapshot at {exported} to {path}")

    hosts[second].remove_replica(third).get(timeout=TIMEOUT_S)
    log.wait_for(second, f"the membership is now: voters {min(first, second)}, {max(first, second)}")
    log.wait_for(third, "was removed from its shard, and ends when the others know it")
    hosts[first].stop()
    log.wait_for(first, f"stopped as FOLLOWER of term {term + 1}")
    hosts.stop(second)
    log.wait_for(second, f"stopped as LEADER of term {term + 1}")

    of_hosts = [each.getMessage() for each in caplog.records if each.name == "drakkar.actors.host"]
    for number, address in hosts.members.items():
        assert f"{address}: started: deployment default, data {hosts.data / str(number)}" in of_hosts
    assert f"{hosts.addresses[second - 1]}: stopped" in of_hosts
    assert [each.getMessage() for each in caplog.records if not FORM.match(each.getMessage())] == []


def test_a_snapshot_that_travels_can_be_read_on_both_sides(hosts, log):
    with founded_by_a_majority():
        hosts.run(Saving, numbers=[1, 2], config=CALM)
        leader = hosts.leader()
    for _ in range(20):
        commit(hosts[leader], b"x")
    index = hosts[leader].snapshot(compaction_overhead=0).get(timeout=TIMEOUT_S)
    hosts.run(Saving, numbers=[3], config=CALM)
    address = hosts.addresses
    name = "drakkar.actors.host"
    log.wait_for(leader, f"sent the snapshot at {index} to replica 3 at {address[2]}", name)
    log.wait_for(3, f"received the snapshot at {index} from replica {leader} at {address[leader - 1]}", name)
    log.wait_for(3, f"installed the snapshot at {index} of its leader")
    figures = hosts.hosts[leader].metrics(), hosts.hosts[3].metrics()
    assert (figures[0]["snapshots_taken_total"], figures[1]["snapshots_installed_total"]) == (1, 1)
    until(lambda: hosts.hosts[leader].metrics()["peer_snapshots_sent_total"] == 1)
    assert hosts.hosts[leader].metrics()["snapshots_sending"] == 0


def test_a_failure_is_one_error_with_its_traceback(hosts, log, caplog):
    class Broken(Ledger):
        def apply(self, command):
            raise ZeroDivisionError("a bug")

    hosts.run(Broken, config=CALM)
    leader = hosts.leader()
    hosts[leader].propose(b"x")
    until(lambda: any("ended" in text for text in log.of(leader)))
    [error] = [each for each in caplog.records if each.levelname == "ERROR" and each.replica == leader]
    assert "ended, since it failed: ActorFailed: replica" in error.getMessage()
    assert "a bug" in error.getMessage()
    assert isinstance(error.exc_info[1].__cause__, ZeroDivisionError)


def test_a_host_on_a_free_port_names_the_port_that_it_has(caplog):
    caplog.set_level(logging.INFO)
    with drakkar.actors.NodeHost("127.0.0.1:0", drakkar.actors.IN_MEMORY) as host:
        address = host.address
    told = [each.getMessage() for each in caplog.records if each.name == "drakkar.actors.host"]
    assert [text.split(": ")[:2] for text in told] == [[address, "started"], [address, "stopped"]]


def loggers(room):
    """The names of the loggers in a room's files."""
    folder = Path(room.__path__[0])
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        yield from re.findall(r'(?:getLogger|\.of)\("(drakkar[\w.]+)"', text)
        if "getLogger(__name__)" in text:
            yield ".".join([room.__name__, *path.relative_to(folder).with_suffix("").parts])


def test_the_page_lists_the_loggers_that_there_are():
    listed = set(re.findall(r"^\| `(drakkar[\w.]*)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    used = {name for room in (drakkar.actors, drakkar.transport, drakkar.handlers) for name in loggers(room)}
    assert sorted(listed) == sorted(used), "a logger is named after its room, and has a row there"
