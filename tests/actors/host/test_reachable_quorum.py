"""Changes of the membership on real hosts whose new quorum is there, or is not."""

import pytest
from drakkar.actors import MembershipRejected
from drakkar.handlers.raft.state import State

from tests.actors.support import TIMEOUT_S, Hosts, InlineLedger, commit, settled, until


def join(hosts, number):
    """Start a replica that its shard adds as an observer."""
    if number not in hosts.hosts:
        hosts.start(number)
    joined = hosts.hosts[number].start_replica(
        InlineLedger, shard_id=1, replica_id=number, join=True, role=State.OBSERVER
    )
    hosts.replicas[number] = joined
    return joined


def make(change):
    """Make a change, which may be early for a replica that has only just caught up."""
    outcomes = []

    def made():
        outcomes.append(settled(change()))
        return not isinstance(outcomes[-1], MembershipRejected)

    until(made)
    return outcomes[-1]


@pytest.fixture
def alone():
    """A shard of one voter, and two more hosts."""
    with Hosts() as hosts:
        members = {1: hosts.addresses[0]}
        host = hosts.start(1)
        hosts.replicas[1] = host.start_replica(InlineLedger, shard_id=1, replica_id=1, members=members)
        hosts.leader()
        yield hosts


@pytest.mark.parametrize("how", ["add_replica", "add_witness"])
def test_a_second_replica_that_is_not_there_does_not_end_the_shard(alone, how):
    refused = settled(getattr(alone[1], how)(2, alone.addresses[1], timeout=TIMEOUT_S))
    assert type(refused) is MembershipRejected
    assert "does not hear replicas 2" in str(refused)
    assert commit(alone[1], b"a") == 1


def test_from_one_voter_a_shard_grows_by_way_of_an_observer_to_three(alone):
    commit(alone[1], b"a")
    for number in (2, 3):
        address = alone.addresses[number - 1]
        alone[1].add_observer(number, address, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
        join(alone, number)
        membership = make(lambda number=number, address=address: alone[1].add_replica(number, address))
        assert number in membership.voters
    assert membership.voters == {1, 2, 3}
    alone.stop(1)
    assert commit(alone[alone.leader()], b"b") == 2


def test_a_dead_replica_is_removed_and_a_living_one_is_not_while_one_is_dead():
    with Hosts() as hosts:
        hosts.run(InlineLedger, config={"election_ticks": 20})
        leader = hosts.leader()
        dead, living = hosts.others(leader)
        hosts.stop(dead)
        until(lambda: not hosts[leader]._node.raft.progress[dead].reachable)  # the leader notices
        refused = settled(hosts[leader].remove_replica(living, timeout=TIMEOUT_S))
        assert type(refused) is MembershipRejected
        assert f"does not hear replicas {dead}, or" in str(refused)
        assert commit(hosts[leader], b"a") == 1
        membership = hosts[living].remove_replica(dead, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
        assert membership.voters == {leader, living}


def test_a_forced_change_is_made_without_its_quorum(alone):
    address = alone.addresses[1]
    future = alone[1].add_replica(2, address, force=True, timeout=TIMEOUT_S)
    assert 2 in future.get(timeout=TIMEOUT_S).voters  # by the old quorum
    waits = alone[1].propose(b"a", timeout=TIMEOUT_S)
    join_as_voter = alone.start(2).start_replica(InlineLedger, shard_id=1, replica_id=2, join=True)
    assert waits.get(timeout=TIMEOUT_S) == 1
    until(lambda: join_as_voter.status().voters == (1, 2))
