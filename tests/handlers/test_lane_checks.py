"""What the checks of lanes take for a reason to send entries again (INV31)."""

from dataclasses import replace

import pytest
from drakkar.handlers import MessageType
from drakkar.handlers.testing import Violation
from drakkar.handlers.testing.history import LastSeen
from drakkar.handlers.testing.lane_checks import LaneChecks

from tests.handlers.raft.support import (
    FakeLanes,
    acknowledge_all,
    become_leader,
    hear,
    heartbeat_answer,
    of_type,
    propose,
    replica,
    tick,
)

TWICE = "INV31 nothing is sent twice without a reason"


@pytest.fixture
def checks():
    return LaneChecks()


@pytest.fixture
def raft(checks):
    """Leads term 2 and is watched; peers hold all of its log."""
    raft = replica(lanes=FakeLanes(), term=1)
    checks.watch(raft, LastSeen(raft))
    become_leader(raft)
    acknowledge_all(raft)
    return raft


def heartbeat_behind_an_append(raft):
    """Send peer 2 an append, a heartbeat that names it, and a second append; returns the heartbeat."""
    propose(raft, b"x")
    (heartbeat,) = (message for message in of_type(tick(raft), MessageType.HEARTBEAT) if message.to == 2)
    propose(raft, b"y")
    return heartbeat


def unheard(heartbeat):
    """The answer of a peer that did not hear the append that a heartbeat names."""
    return heartbeat_answer(2, heartbeat.term, log_term=heartbeat.log_term, reject=True)


def test_an_append_that_no_message_overtook_is_no_reason(raft):
    heartbeat = heartbeat_behind_an_append(raft)
    with pytest.raises(Violation, match=TWICE):
        hear(raft, unheard(heartbeat))


def test_a_heartbeat_that_overtook_the_append_that_it_names_is_one_also_for_what_was_sent_since(raft, checks):
    heartbeat = heartbeat_behind_an_append(raft)
    checks.overtook(heartbeat)
    propose(raft, b"z")
    sent = of_type(hear(raft, unheard(heartbeat)), MessageType.REPLICATE)
    assert [(message.to, len(message.entries)) for message in sent] == [(2, 3)]


def test_the_answer_to_an_older_term_neither_is_a_reason_nor_uses_one_up(raft, checks):
    heartbeat = heartbeat_behind_an_append(raft)
    late = replace(unheard(heartbeat), term=raft.term - 1)
    checks.overtook(heartbeat)
    assert not of_type(hear(raft, late), MessageType.REPLICATE)
    propose(raft, b"z")
    assert of_type(hear(raft, unheard(heartbeat)), MessageType.REPLICATE)
