"""What the log says of elections, leaders, transfers and members: one line for each change, and none without one."""

import logging
from collections import Counter
from types import SimpleNamespace

import pytest
from drakkar.actors.node.state_lines import LONG_WITHOUT_LEADER, StateLines
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.handlers.raft.state import Membership, State

FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = (
    State.FOLLOWER,
    State.PRE_CANDIDATE,
    State.CANDIDATE,
    State.LEADER,
)
T = 10


class Core(SimpleNamespace):
    """What `StateLines` looks at; a test changes it as the core would."""

    def __init__(self):
        super().__init__(
            id=1,
            state=FOLLOWER,
            term=2,
            leader_id=0,
            transfer=SimpleNamespace(target=0),
            config=SimpleNamespace(election_ticks=T),
            voters=[1, 2, 3],
            faults=Counter(),
            membership=Membership(voters={1: "a:1", 2: "b:1", 3: "c:1"}),
            log=SimpleNamespace(snapshot=SimpleNamespace(index=4), last_index=9, committed=8),
        )

    def become(self, state, term, leader, target=0):
        self.state, self.term, self.leader_id, self.transfer.target = state, term, leader, target


@pytest.fixture
def core():
    return Core()


@pytest.fixture
def lines(core, caplog):
    caplog.set_level(logging.INFO)
    return StateLines(core, HostLines("a:1").of("drakkar.actors.node", 7, 1))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param((FOLLOWER, 2, 0), (FOLLOWER, 2, 0), [], id="nothing changed"),
        pytest.param((FOLLOWER, 2, 0), (FOLLOWER, 3, 0), [], id="a candidate's term, and no leader before"),
        pytest.param((FOLLOWER, 2, 0), (FOLLOWER, 3, 2), ["replica 2 leads in term 3"], id="it hears a leader"),
        pytest.param((FOLLOWER, 3, 2), (FOLLOWER, 4, 2), ["replica 2 leads in term 4"], id="elected again"),
        pytest.param((FOLLOWER, 3, 2), (FOLLOWER, 4, 3), ["replica 3 leads in term 4"], id="another one"),
        pytest.param(
            (FOLLOWER, 3, 2), (PRE_CANDIDATE, 3, 0), ["lost its leader, replica 2, and knows none in term 3"], id="no leader"
        ),
        pytest.param((PRE_CANDIDATE, 3, 0), (CANDIDATE, 4, 0), [], id="it campaigns"),
        pytest.param((CANDIDATE, 4, 0), (LEADER, 4, 1), ["won the election of term 4"], id="it wins"),
        pytest.param((FOLLOWER, 4, 0), (LEADER, 5, 1), ["won the election of term 5"], id="all in one batch"),
        pytest.param((LEADER, 4, 1), (LEADER, 6, 1), ["won the election of term 6"], id="twice in one batch"),
        pytest.param(
            (CANDIDATE, 4, 0),
            (FOLLOWER, 4, 3),
            ["lost the election of term 4", "replica 3 leads in term 4"],
            id="another wins",
        ),
        pytest.param((CANDIDATE, 4, 0), (CANDIDATE, 5, 0), ["lost the election of term 4"], id="a split vote"),
        pytest.param((CANDIDATE, 4, 0), (PRE_CANDIDATE, 4, 0), ["lost the election of term 4"], id="no answer"),
        pytest.param((PRE_CANDIDATE, 4, 0), (FOLLOWER, 4, 0), [], id="a pre-vote is no election"),
        pytest.param((LEADER, 4, 1), (FOLLOWER, 4, 0), ["leads no longer, and knows no leader in term 4"], id="it steps down"),
        pytest.param((LEADER, 4, 1), (FOLLOWER, 5, 2), ["replica 2 leads in term 5"], id="it hears its successor"),
        pytest.param((LEADER, 4, 1), (LEADER, 4, 1, 2), ["hands leadership over to replica 2"], id="a transfer"),
        pytest.param((LEADER, 4, 1, 2), (LEADER, 4, 1, 3), ["hands leadership over to replica 3"], id="another target"),
        pytest.param(
            (LEADER, 4, 1, 2), (LEADER, 4, 1), ["leads on: the transfer to replica 2 was given up"], id="it takes too long"
        ),
        pytest.param(
            (LEADER, 4, 1, 2),
            (FOLLOWER, 5, 0),
            ["leads no longer, and knows no leader in term 5"],
            id="the target campaigns",
        ),
    ],
)  # fmt: skip
def test_each_change_of_state_has_its_line(core, lines, caplog, before, after, told):
    core.become(*before)
    lines.compare()
    caplog.clear()
    core.become(*after)
    lines.compare()
    lines.compare()
    assert caplog.messages == [f"a:1 replica 1 of shard 7: {text}" for text in told]
    assert {(record.name, record.levelname) for record in caplog.records} <= {("drakkar.actors.node", "INFO")}


def test_elections_and_leaders_are_counted(core, lines):
    for state in [(CANDIDATE, 3, 0), (CANDIDATE, 4, 0), (LEADER, 4, 1), (FOLLOWER, 5, 0), (FOLLOWER, 5, 2)]:
        core.become(*state)
        lines.compare()
    assert (lines.won, lines.lost, lines.leaders) == (1, 1, 3)


def test_a_start_says_where_it_stands(core, lines, caplog):
    lines.started("Ledger")
    core.membership = Membership()
    StateLines(core, HostLines().of("drakkar.actors.node")).started("Ledger")
    assert caplog.messages == [
        f"{where}started as FOLLOWER of term 2 with Ledger: snapshot at 4, log up to 9, committed up to 8; {members}"
        for where, members in [
            ("a:1 replica 1 of shard 7: ", "voters 1, 2, 3"),
            ("", "no members are known yet"),
        ]
    ]


def test_each_membership_has_one_line(core, lines, caplog):
    lines.members()
    assert caplog.messages == []
    core.membership = Membership(voters=[1, 4], observers=[3], witnesses=[5], outgoing=[1, 2])
    lines.members()
    lines.members()
    assert caplog.messages == [
        "a:1 replica 1 of shard 7: the membership is now: voters 1, 4; observers 3; witnesses 5; outgoing voters 1, 2",
    ]


def test_a_long_time_without_a_leader_is_one_warning(core, lines, caplog):
    for _ in range(5 * LONG_WITHOUT_LEADER * T):
        lines.tick()
    [warning] = caplog.records
    assert warning.levelname == "WARNING"
    assert (
        "has known no leader for 10 election timeouts: a majority of its voters [1, 2, 3]"
        in warning.getMessage()
    )
    core.leader_id = 2
    lines.tick()
    core.leader_id = 0
    for _ in range(LONG_WITHOUT_LEADER * T - 1):
        lines.tick()
    assert len(caplog.records) == 1, "it had one meanwhile"


def test_a_replica_that_its_shard_reaches_elsewhere_says_where(core, lines, caplog):
    core.membership = Membership(voters={1: "a:2", 2: "b:1", 3: "c:1"})
    for _ in range(LONG_WITHOUT_LEADER * T):
        lines.tick()
    [text] = caplog.messages
    assert "its shard reaches it at a:2, where this host is not. Start the host there" in text
    core.membership = Membership(voters={1: "A:1", 2: "b:1", 3: "c:1"})
    core.leader_id = 2
    lines.tick()
    core.leader_id = 0
    for _ in range(LONG_WITHOUT_LEADER * T):
        lines.tick()
    assert "a majority of its voters" in caplog.messages[-1]


def test_what_no_correct_replica_sends_is_one_warning_for_each_kind(core, lines, caplog):
    for what in (
        "without a term",
        "answer from a non-member",
        "without a term",
        "from this replica to itself",
    ):
        core.faults[what] += 1
        lines.compare()
    lines.compare()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    told = [
        "(without a term): see" in caplog.messages[0],
        "(from this replica to itself): see" in caplog.messages[1],
    ]
    assert told == [True, True]


def test_a_replica_that_joins_and_is_never_added_says_what_to_do(core, lines, caplog):
    core.voters = []
    for _ in range(2 * LONG_WITHOUT_LEADER * T):
        lines.tick()
    [text] = caplog.messages
    assert text.endswith(
        "and knows no member: have a member of its shard add it, with the address of this host"
    )
