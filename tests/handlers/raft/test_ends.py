"""The last terms and indexes: no message takes them away, and at the end there is a clear stop and not a broken shard."""

import pytest
from drakkar.handlers import Message, MessageType, State
from drakkar.handlers.checks import MAX_INDEX, MAX_TERM
from drakkar.handlers.raft.ends import MAX_STEP, NEAR_END, reachable
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    ack,
    append,
    campaign,
    heartbeat,
    install,
    replica,
    standing,
    vote_request,
)


@pytest.mark.parametrize(
    ("own", "told", "reached"),
    [
        (1, NEAR_END, NEAR_END),
        (1, NEAR_END + 1, NEAR_END),
        (1, MAX_TERM, NEAR_END),
        (NEAR_END - 1, NEAR_END + 1, NEAR_END + 1),
        (NEAR_END, NEAR_END + MAX_STEP, NEAR_END + MAX_STEP),
        (NEAR_END, NEAR_END + MAX_STEP + 1, NEAR_END + MAX_STEP),
        (MAX_TERM - 1, MAX_TERM, MAX_TERM),
    ],
)
def test_a_newer_term_is_adopted_at_once_but_near_the_end_in_steps(own, told, reached):
    assert reachable(own, told) == reached


@pytest.mark.parametrize("message", [heartbeat, ack, vote_request], ids=["heartbeat", "ack", "vote"])
@pytest.mark.parametrize("state", [State.FOLLOWER, State.CANDIDATE, State.LEADER])
def test_no_message_takes_the_terms_away(state, message):
    raft = replica(1, state=state, term=10)
    raft.step(message(3, MAX_TERM, *([0] if message is ack else [])))
    assert standing(raft) == (State.FOLLOWER, NEAR_END, 0, 0)
    assert raft.faults == {"a term so near the last one that it is approached in steps": 1}
    campaign(raft)
    assert (raft.state, raft.term) == (State.CANDIDATE, NEAR_END + 1)


def test_a_replica_that_is_far_behind_comes_to_its_leader_in_steps():
    """Else one that slept while the terms were raised could never be told anything again."""
    raft = replica(1, term=10)
    term = NEAR_END + 2 * MAX_STEP + 1
    for reached in (NEAR_END, NEAR_END + MAX_STEP, NEAR_END + 2 * MAX_STEP):
        raft.step(append(2, term))
        assert standing(raft) == (State.FOLLOWER, reached, 0, 0)
    raft.step(append(2, term))
    assert standing(raft) == (State.FOLLOWER, term, 0, 2)


@pytest.mark.parametrize("pre_vote", [False, True])
@pytest.mark.parametrize("kind", [MessageType.ELECTION, MessageType.TIMEOUT_NOW], ids=str)
def test_no_replica_campaigns_behind_the_last_term(kind, pre_vote):
    """It says so, once, and goes on to follow: the leader of the last term may still be there."""
    raft = replica(1, term=MAX_TERM, pre_vote=pre_vote)
    ready = []
    for _ in range(2):
        raft.step(Message(kind, to=1, sender=1 if kind is MessageType.ELECTION else 2, term=MAX_TERM))
        ready.append(raft.ready())
    assert standing(raft) == (State.FOLLOWER, MAX_TERM, 0, 0)
    assert [message for each in ready for message in each.messages] == []
    (warning,) = [text for each in ready for text in each.warnings]
    assert "cannot campaign" in warning
    assert "export it" in warning
    raft.step(heartbeat(2, MAX_TERM))
    assert raft.leader_id == 2


def test_a_shard_with_one_voter_stops_at_the_last_term_too():
    raft = replica(1, voters=(1,), term=MAX_TERM - 1)
    campaign(raft)
    assert (raft.state, raft.term) == (State.LEADER, MAX_TERM)
    raft.step(Message(MessageType.DISK_HUNG, sender=1))
    campaign(raft)
    assert (raft.state, raft.term) == (State.FOLLOWER, MAX_TERM)


@pytest.mark.parametrize("index", [NEAR_END + 1, MAX_INDEX])
def test_a_snapshot_near_the_last_index_is_not_taken_in(index):
    raft = replica(1, term=3)
    raft.step(install(2, 3, (index, 3)))
    assert raft.log.last_index == 0
    assert list(raft.faults) == ["a snapshot so near the last index that the log could hardly grow"]
    raft.step(install(2, 3, (NEAR_END, 3)))
    assert raft.log.last_index == NEAR_END
    assert drain(raft)
