"""Reading the committed log from outside (dragonboat's LOG_QUERY)."""

import pytest
from drakkar.handlers import (
    Message,
    MessageType,
    Refusal,
    Snapshot,
    State,
)
from drakkar.handlers.raft.entries import ENTRY_OVERHEAD

from tests.handlers.raft.support import hear, replica

T = MessageType
COST = 1 + ENTRY_OVERHEAD
"""Bytes that one entry counts."""


def query(raft, first, end, limit=1 << 20):
    """The fields carry indexes: dragonboat's economy."""
    return hear(raft, Message(T.LOG_QUERY, sender=first, to=end, hint=limit)).log_query


def replica_with_eleven(**options):
    """Entries 4 to 12, of which 11 is the last that is committed; 1 to 3 are compacted away."""
    roles = {State.OBSERVER: {"observers": (1,)}}.get(options.get("state"), {})
    voters = (2, 3) if roles else (1, 2, 3)
    raft = replica(
        terms=[1] * 9, term=1, commit=11, snapshot=Snapshot(3, 1), voters=voters, **roles, **options
    )
    hear(raft)
    return raft


@pytest.mark.parametrize(
    ("first", "end", "given"),
    [
        pytest.param(4, 12, range(4, 12), id="all"),
        pytest.param(6, 8, range(6, 8), id="some"),
        pytest.param(11, 12, [11], id="the last"),
        pytest.param(10, 99, [10, 11], id="no further than what is committed"),
    ],
)
def test_committed_entries_are_answered(first, end, given):
    answer = query(replica_with_eleven(), first, end)
    assert [entry.index for entry in answer.entries] == list(given)
    assert (answer.first_index, answer.end, answer.out_of_range) == (4, 12, False)


@pytest.mark.parametrize(
    ("first", "end"),
    [
        pytest.param(13, 14, id="P6 beyond the last"),
        pytest.param(12, 13, id="logged, but not committed"),
        pytest.param(3, 6, id="compacted away"),
        pytest.param(0, 6, id="before the first ever"),
        pytest.param(6, 6, id="nothing"),
        pytest.param(7, 6, id="backwards"),
    ],
)
def test_anything_else_is_out_of_range_and_says_what_is_there(first, end):
    """P6."""
    answer = query(replica_with_eleven(), first, end)
    assert (answer.out_of_range, list(answer.entries)) == (True, [])
    assert (answer.first_index, answer.end) == (4, 12)


@pytest.mark.parametrize(("limit", "count"), [(0, 1), (2 * COST - 1, 1), (2 * COST, 2), (3 * COST, 3)])
def test_the_answer_is_bounded_in_bytes_but_has_one_entry_at_least(limit, count):
    assert len(query(replica_with_eleven(), 5, 12, limit).entries) == count


@pytest.mark.parametrize("state", [State.PRE_CANDIDATE, State.CANDIDATE, State.OBSERVER])
def test_every_state_but_a_witness_answers(state):
    raft = replica_with_eleven(state=state)
    assert len(query(raft, 4, 6).entries) == 2


def test_a_witness_has_nothing_to_show():
    raft = replica(voters=(2, 3), witnesses=(1,), state=State.WITNESS)
    assert query(raft, 1, 2) is None
    assert raft.tally.impossible[State.WITNESS, T.LOG_QUERY] == 1


def test_a_second_query_before_the_first_was_collected_is_refused():
    """It names the first index that it asked for; the first answer stands."""
    raft = replica_with_eleven()
    raft.step(Message(T.LOG_QUERY, sender=4, to=6, hint=999))
    raft.step(Message(T.LOG_QUERY, sender=7, to=9, hint=999))
    ready = raft.ready()
    assert [entry.index for entry in ready.log_query.entries] == [4, 5]
    assert [(d.because, d.key) for d in ready.dropped] == [(Refusal.QUERY_PENDING, 7)]
    assert query(raft, 7, 9) is not None
