"""What the errors of late requests say: what each waited for."""

from types import SimpleNamespace

import pytest
from drakkar.actors.node.deadlines import DeadlineErrors
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.raft.state import Snapshot, State

LOADING = "this replica's state machine was still loading a snapshot"
BEHIND = "this replica's state machine had applied 3 of 9 committed entries"
NO_LEADER = "no leader was known by the deadline: repeat it"


def not_loaded():
    raise EntriesNotLoaded


def errors(*, applied=9, loading=False, role=State.FOLLOWER, leader=0, snapshot=None, change=lambda: False):
    log = SimpleNamespace(applied=applied, committed=9, pending_snapshot=snapshot, unapplied_change=change)
    raft = SimpleNamespace(id=1, leader_id=leader, base_state=role, log=log)
    return DeadlineErrors(raft, SimpleNamespace(loading=loading), slow_turn=lambda: None)


@pytest.mark.parametrize(
    ("late", "why"),
    [
        pytest.param(errors(), NO_LEADER, id="nothing is behind"),
        pytest.param(errors(applied=3), NO_LEADER, id="behind, but it may campaign"),
        pytest.param(errors(applied=3, change=lambda: True), BEHIND, id="behind a change"),
        pytest.param(errors(applied=3, change=not_loaded), BEHIND, id="perhaps behind a change"),
        pytest.param(
            errors(applied=3, change=lambda: True, role=State.OBSERVER), NO_LEADER, id="it never campaigns"
        ),
        pytest.param(errors(loading=True, snapshot=Snapshot(5, 1)), LOADING, id="a leader's snapshot"),
        pytest.param(errors(loading=True), NO_LEADER, id="its own snapshot, which keeps nothing back"),
    ],
)
def test_where_no_leader_is_known_the_text_says_what_keeps_this_replica_from_being_one(late, why):
    assert why in str(late.no_leader())


def test_where_a_leader_is_known_none_is_missing():
    assert errors(leader=2).no_leader() is None


@pytest.mark.parametrize(
    ("late", "why"),
    [
        (errors(leader=2), "it was not known here to be committed"),
        (errors(leader=2, applied=3), BEHIND),
        (errors(leader=2, loading=True), LOADING),
    ],
)
def test_a_late_proposal_waited_for_the_state_machine_or_for_its_commit(late, why):
    error = late.proposal()
    assert why in str(error)
    assert not error.outcome_known


@pytest.mark.parametrize(
    ("late", "index", "why"),
    [
        (errors(applied=3), 9, BEHIND),
        (errors(applied=3), 10, "this replica knew entries up to 9 to be committed"),
        (errors(loading=True), 10, LOADING),
    ],
)
def test_who_waited_for_an_index_is_told_of_the_state_machine_only_where_that_is_known_to_reach_it(
    late, index, why
):
    for error in (late.read(index), late.applied(index)):
        assert why in str(error)
        assert f"entry {index}" in str(error)
