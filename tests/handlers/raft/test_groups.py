"""Groups of replicas that fail together, and what is committed in more than one of them (raft-rs; rules of replication)."""

import pytest
from drakkar.handlers import (
    ConfigError,
    Membership,
    Message,
    MessageType,
    State,
)

from tests.handlers.raft.support import ack, become_leader, cluster, hear, heartbeat, propose, replica

T = MessageType


def leader(groups, **options):
    """1 leads term 1 with groups; only its own disk holds its empty entry, the first."""
    raft = replica(state=State.LEADER, **{"group_commit": True, **options})
    raft.assign_groups(groups)
    return raft


def held(raft, **upto):
    """Let peers acknowledge: `held(raft, _2=1)`."""
    return hear(raft, *(ack(int(peer[1:]), raft.term, index) for peer, index in upto.items()))


def test_what_one_group_holds_is_not_committed():
    raft = leader({1: 1, 2: 1, 3: 2})
    held(raft, _2=1)
    assert raft.log.committed == 0
    held(raft, _3=1)
    assert raft.log.committed == 1


def test_an_assignment_may_commit_what_was_waiting():
    """As raft-rs: all share one group, so that the plain majority counts."""
    raft = leader({1: 1, 2: 1, 3: 2})
    held(raft, _2=1)
    raft.assign_groups({3: 1})
    assert raft.log.committed == 1
    assert {(message.type, message.commit) for message in hear(raft)} == {(T.REPLICATE, 1)}


def test_groups_outlast_changes_of_leadership_and_of_the_membership():
    raft = leader({1: 1, 2: 1, 3: 2, 4: 3})
    hear(raft, heartbeat(2, 5))
    become_leader(raft)
    assert [raft.group_of(each) for each in (1, 2, 3, 4)] == [1, 1, 2, 0]
    raft.switch_membership(Membership((1, 2, 3, 4)))
    assert raft.group_of(4) == 3
    raft.assign_groups({3: 0})
    assert [raft.group_of(each) for each in (1, 2, 3, 4)] == [1, 1, 0, 3]


def test_a_follower_keeps_them_for_the_time_when_it_leads():
    shard = cluster(3, group_commit=True)
    for each in (1, 2, 3):
        shard[each].assign_groups({1: 1, 2: 1, 3: 2})
    shard.elect(1)
    shard.isolate(3)
    shard.elect(2)
    shard.propose(2, b"x")
    assert shard[2].log.committed == 1, "nothing of its term is in the second group"
    shard.heal()
    shard.tick()
    assert (shard[2].log.committed, shard[2].groups_consistent()) == (3, True)


@pytest.mark.parametrize(
    ("groups", "acknowledged", "consistent"),
    [
        pytest.param({1: 1, 2: 2, 3: 1}, {"_2": 1, "_3": 1}, True, id="both have it"),
        pytest.param({1: 1, 2: 2}, {"_2": 1, "_3": 1}, True, id="not all are assigned"),
        pytest.param({1: 1, 2: 1, 3: 1}, {"_2": 1, "_3": 1}, False, id="there is one group"),
        pytest.param({1: 1, 2: 1}, {"_2": 1, "_3": 1}, False, id="one group and some without"),
        pytest.param({1: 1, 2: 1, 3: 2}, {"_2": 1}, None, id="nothing of its term is applied"),
        pytest.param({}, {"_2": 1, "_3": 1}, None, id="no groups"),
        pytest.param({9: 1}, {"_2": 1, "_3": 1}, None, id="a group of non-members"),
    ],
)
def test_a_leader_knows_whether_the_loss_of_a_group_loses_anything(groups, acknowledged, consistent):
    """Q5."""
    raft = leader(groups)
    held(raft, **acknowledged)
    assert raft.groups_consistent() is consistent


def test_what_was_committed_before_the_groups_were_assigned_may_be_in_one_of_them():
    """Q5, the case of a commit index that is ahead."""
    raft = leader({})
    held(raft, _2=1, _3=1)
    propose(raft, b"x")
    raft.assign_groups({1: 1, 2: 1, 3: 1})
    held(raft, _2=2)
    assert raft.log.committed == 2
    raft.assign_groups({3: 2})
    assert raft.groups_consistent() is False
    held(raft, _3=2)
    assert raft.groups_consistent() is True


def test_each_half_of_a_joint_membership_needs_two_groups():
    joint = Membership((1, 2, 3), outgoing=(1, 2, 4))
    raft = leader({1: 1, 2: 1, 3: 2, 4: 1}, membership=joint)
    held(raft, _2=1, _3=1, _4=1)
    assert raft.groups_consistent() is False
    raft.assign_groups({4: 2})
    assert raft.groups_consistent() is True


@pytest.mark.parametrize("role", [{}, {"leader": 2}])
def test_no_other_replica_knows(role):
    raft = replica(terms=[1], commit=1, group_commit=True, **role)
    raft.assign_groups({1: 1, 2: 2, 3: 2})
    assert raft.groups_consistent() is None


def test_without_group_commit_groups_are_not_in_use():
    raft = leader({1: 1, 2: 2}, group_commit=False)
    held(raft, _2=1)
    assert (raft.log.committed, raft.groups_consistent()) == (1, None)


@pytest.mark.parametrize("wrong", [{0: 1}, {2: -1}, {2: True}, {"2": 1}, {2: 1 << 63}, {3: 1, 2: None}])
def test_what_is_no_replica_or_no_group_is_refused(wrong):
    raft = leader({3: 2})
    with pytest.raises(ConfigError, match=r"must be a whole number from [01] to"):
        raft.assign_groups(wrong)
    assert raft.groups == {3: 2}


def test_the_window_of_one_peer_may_be_changed_while_it_runs():
    """F7: raft-rs' way to pause a peer; priority and CheckQuorum are attributes as well."""
    raft = leader({}, group_commit=False)
    held(raft, _2=1, _3=1)
    raft.progress[2].inflight.max_messages = 0
    assert {message.to for message in propose(raft, b"x") if message.entries} == {3}
    raft.priority, raft.check_quorum = 3, True
    raft.progress[2].inflight.max_messages = 256
    sent = hear(raft, Message(T.HEARTBEAT_RESP, sender=2, term=1))
    assert [len(message.entries) for message in sent] == [1]
