"""A host gets another address: only one that its shards have committed, or that the tool has set."""

import json

import pytest
from drakkar.actors import AddressChanged, ConfigError, MembershipRejected, NodeHost
from drakkar.actors.log.data_dir import renumber
from drakkar.actors.log.moves_file import read_moves

from tests.actors.support import Hosts, Ledger, commit, contents, settled, until
from tests.ports import free_addresses


@pytest.fixture
def hosts(tmp_path):
    with Hosts(data=tmp_path) as hosts:
        yield hosts


def directory(hosts, number):
    return hosts.data / str(number)


def move(hosts, number, address):
    """Start a stopped host at another address."""
    hosts.addresses[number - 1] = address
    return hosts.start(number).start_replica(Ledger, shard_id=1, replica_id=number)


def test_a_host_starts_where_its_shard_has_moved_its_replica(hosts):
    replicas = hosts.run()
    leader = hosts.leader(replicas)
    moved = hosts.others(leader)[0]
    [new] = free_addresses(1)
    told = []
    hosts.hosts[moved].subscribe(told.append)
    settled(replicas[leader].update_address(moved, new))
    old = hosts.members[moved]
    until(lambda: AddressChanged(1, moved, old, new) in told)
    until(lambda: read_moves(directory(hosts, moved)) == {new})
    hosts.stop(moved)
    commit(replicas[leader], b"while it moves")
    replica = move(hosts, moved, new)
    commit(replicas[leader], b"when it has moved")
    until(lambda: contents(replica) == [b"while it moves", b"when it has moved"])
    assert not read_moves(directory(hosts, moved))
    hosts.stop(moved)
    with pytest.raises(ConfigError, match=f"belongs to address='{new}'"):
        NodeHost(old, data_dir=directory(hosts, moved))
    move(hosts, moved, new)


def test_a_leader_that_its_shard_has_moved_hands_over(hosts, caplog):
    caplog.set_level("INFO")
    replicas = hosts.run()
    leader = hosts.leader(replicas)
    [new] = free_addresses(1)
    settled(replicas[leader].update_address(leader, new))
    until(lambda: hosts.leader(replicas) != leader)
    assert any(
        "hands leadership over" in record.getMessage() and record.replica == leader
        for record in caplog.records
    )
    assert "has known no leader" not in caplog.text


def test_a_host_that_was_down_meanwhile_is_moved_by_the_tool(hosts):
    replicas = hosts.run()
    leader = hosts.leader(replicas)
    moved = hosts.others(leader)[0]
    [new] = free_addresses(1)
    hosts.stop(moved)
    settled(replicas[leader].update_address(moved, new))
    commit(replicas[leader], b"a")
    with pytest.raises(ConfigError, match=r"update_address.*drakkar renumber"):
        NodeHost(new, data_dir=directory(hosts, moved))
    assert renumber(directory(hosts, moved), new) == hosts.members[moved]
    replica = move(hosts, moved, new)
    until(lambda: contents(replica) == [b"a"])


def test_an_address_that_belongs_to_another_or_to_nobody_is_refused(hosts):
    replicas = hosts.run()
    replica = replicas[hosts.leader(replicas)]
    assert isinstance(settled(replica.update_address(2, hosts.members[1])), MembershipRejected)
    assert isinstance(settled(replica.update_address(9, "10.0.0.9:7000")), MembershipRejected)
    assert isinstance(settled(replica.update_address(2, "")), ConfigError)
    assert replica.status().addresses == hosts.members


def test_a_directory_in_use_is_not_renumbered(hosts):
    hosts.run()
    with pytest.raises(ConfigError, match="is in use"):
        renumber(directory(hosts, 1), "10.0.0.9:7000")
    assert json.loads((directory(hosts, 1) / "IDENTITY").read_text())["address"] == hosts.members[1]
