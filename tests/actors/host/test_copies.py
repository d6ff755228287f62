"""Copies of data directories: put back on all hosts, put back on one, and started beside the original."""

import json
import logging
import shutil

import pytest
from drakkar.actors import NodeHost
from drakkar.actors.log.runs_file import HOSTS
from drakkar.actors.tools.repair import export, import_, inspect

from tests.actors.support import TICK, Hosts, Ledger, commit, contents, settled, until
from tests.actors.tools.support import Book
from tests.ports import free_addresses


@pytest.fixture
def hosts(tmp_path):
    with Hosts(data=tmp_path / "data") as hosts:
        yield hosts


@pytest.fixture
def copies(tmp_path):
    return tmp_path / "copies"


def stop_all(hosts):
    for number in list(hosts.hosts):
        hosts.stop(number)


def copy(hosts, copies, *numbers):
    """Copy directories of stopped hosts."""
    for number in numbers:
        shutil.copytree(hosts.data / str(number), copies / str(number))


def put_back(hosts, copies, *numbers):
    for number in numbers:
        shutil.rmtree(hosts.data / str(number))
        shutil.copytree(copies / str(number), hosts.data / str(number))


def warnings(caplog, *words):
    said = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    return [line for line in said if all(word in line for word in words)]


def test_a_shard_goes_on_from_copies_of_all_hosts_that_were_taken_while_all_were_stopped(hosts, copies):
    replicas = hosts.run()
    commit(replicas[1], b"before")
    stop_all(hosts)
    copy(hosts, copies, 1, 2, 3)
    commit(hosts.run()[1], b"after")
    stop_all(hosts)
    put_back(hosts, copies, 1, 2, 3)
    replicas = hosts.run()
    commit(replicas[1], b"again")
    for replica in replicas.values():
        assert contents(replica) == [b"before", b"again"]


def test_copies_of_different_times_are_refused_and_the_newest_is_imported_everywhere(hosts, copies, caplog):
    replicas = hosts.run(Book)
    commit(replicas[1], b"a")
    hosts.stop(3)
    copy(hosts, copies, 3)
    commit(hosts.run(Book, numbers=[3])[3], b"b")
    stop_all(hosts)
    copy(hosts, copies, 1, 2)
    put_back(hosts, copies, 1, 2, 3)
    hosts.run(Book)
    until(lambda: warnings(caplog, f"at {hosts.members[3]} does not follow its run"))
    stop_all(hosts)
    reports = {number: inspect(copies / str(number)).replicas[0] for number in hosts.members}
    best = max(reports, key=lambda number: (reports[number].last_term, reports[number].last_index))
    export(copies / str(best), 1, Book, copies / "export")
    for number, address in hosts.members.items():
        shutil.rmtree(hosts.data / str(number))
        import_(
            copies / "export",
            hosts.data / str(number),
            shard_id=1,
            replica_id=number,
            members=hosts.members,
            address=address,
            deployment_id="default",
        )
    replicas = hosts.run(Book)
    commit(replicas[3], b"c")
    for replica in replicas.values():
        assert contents(replica) == [b"a", b"b", b"c"]


def test_a_single_host_that_was_put_back_is_refused_and_replaced_by_a_new_one(hosts, copies, caplog):
    """It has forgotten what it promised since: with it, two of three could forget what the third has acknowledged."""
    replicas = hosts.run()
    commit(replicas[1], b"a")
    hosts.stop(3)
    copy(hosts, copies, 3)
    replicas |= hosts.run(numbers=[3])
    commit(replicas[3], b"b")
    hosts.stop(3)
    put_back(hosts, copies, 3)
    replicas |= hosts.run(numbers=[3])
    until(lambda: warnings(caplog, hosts.members[1], "does not follow its run"))
    until(lambda: warnings(caplog, hosts.members[3], "does not follow its run"))
    commit(replicas[1], b"c")
    assert replicas[3].status().leader_id == 0
    # What the text says, and the page.
    hosts.stop(3)
    shutil.rmtree(hosts.data / "3")
    member = replicas[hosts.leader({number: replicas[number] for number in (1, 2)})]
    settled(member.remove_replica(3, timeout=10))
    settled(member.add_observer(4, hosts.members[3], timeout=10))
    replica = hosts.start(3).start_replica(Ledger, shard_id=1, replica_id=4, join=True)
    settled(member.add_replica(4, hosts.members[3], timeout=10))
    until(lambda: contents(replica) == [b"a", b"b", b"c"])


def test_all_hosts_hear_at_once_that_another_has_started_again(hosts):
    """So that a copy is told from it, though the leader, to which alone it speaks, may be down then."""
    replicas = hosts.run()
    commit(replicas[1], b"a")
    hosts.stop(3)
    hosts.run(numbers=[3])
    for number in (1, 2):
        until(lambda file=hosts.data / str(number) / HOSTS: runs(file, hosts.data / "3") == 2)


def runs(file, directory):
    """The number of the last start of a host that another one has heard of."""
    host_id = json.loads((directory / "IDENTITY").read_text())["host_id"]
    return json.loads(file.read_text()).get(host_id, [0])[0]


def test_a_copy_that_is_started_beside_the_original_is_refused_and_the_original_works_on(
    hosts, copies, caplog
):
    replicas = hosts.run()
    hosts.stop(3)
    copy(hosts, copies, 3)
    replicas |= hosts.run(numbers=[3])
    commit(replicas[3], b"a")
    [elsewhere] = free_addresses(1)
    with NodeHost(hosts.members[3], copies / "3", listen_address=elsewhere, tick_interval=TICK) as clone:
        twin = clone.start_replica(Ledger, shard_id=1, replica_id=3)
        until(lambda: warnings(caplog, "so one of the two data directories is a copy", hosts.members[3]))
        commit(replicas[3], b"b")
        assert twin.status().leader_id == 0
        assert twin.status().applied < replicas[3].status().applied
    assert contents(replicas[3]) == [b"a", b"b"]
