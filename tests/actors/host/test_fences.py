"""Fencing numbers: the index of an entry that changes nothing, from any replica, greater each time."""

import pytest
from drakkar.actors import ConfigError, DrakkarError, NotLeader

from tests.actors.support import TIMEOUT_S, Hosts, InlineLedger, Ledger, contents, hand_over, settled, until


def fence(replica):
    """Ask until there is a number: the leader may just change."""

    def ask():
        outcome = settled(replica.fence(timeout=2.0))
        assert isinstance(outcome, int | DrakkarError)
        return outcome if isinstance(outcome, int) else None

    return until(ask)


@pytest.mark.parametrize("machine", [Ledger, InlineLedger])
def test_each_number_is_greater_than_all_before_it_whoever_asks_and_whoever_leads(machine):
    with Hosts() as hosts:
        hosts.run(machine)
        leader = hosts.leader()
        numbers = []
        for target in (leader, *hosts.others(leader)):
            hand_over(hosts[leader], target)
            numbers += [fence(hosts[number]) for number in hosts.members for _ in range(2)]
        assert numbers == sorted(set(numbers))
        assert contents(hosts[leader]) == [], "the state machine is not told"


def test_a_number_is_the_index_of_a_committed_entry():
    with Hosts(1) as hosts:
        hosts.run(InlineLedger)
        hosts.leader()
        number = fence(hosts[1])
        assert hosts[1].status().applied >= number
        [entry] = settled(hosts[1].query_log(number, number + 1))
        assert entry.index == number


def test_without_a_leader_there_is_no_number():
    with Hosts() as hosts:
        hosts.run(InlineLedger, numbers=[1])
        assert isinstance(settled(hosts[1].fence(timeout=0.3), TIMEOUT_S), NotLeader)
        with pytest.raises(ConfigError):
            hosts[1].fence(timeout=None)
