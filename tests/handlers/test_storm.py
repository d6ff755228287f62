"""`Cluster.storm`, as used with handlers of one's own, and the examples of its document."""

import re
from pathlib import Path

import pytest
from drakkar.handlers import (
    LATER,
    ConfigError,
    Message,
    MessageType,
    State,
    raft_handlers,
)
from drakkar.handlers.testing import Cluster, Violation

DOCUMENT = Path(__file__).parents[2] / "docs" / "testing.md"
PING = MessageType.define("storm.ping", 1930)
PONG = MessageType.define("storm.pong", 1931)


def table_with_audit(answers):
    table = raft_handlers()

    @table.on(PING)
    def answer(raft, message):
        raft.send(Message(PONG, to=message.sender, payload=raft.log.committed))

    @table.on(PONG)
    def note(raft, message):
        answers.append(message.payload)

    return table


def ask_all(raft, random):
    for peer in raft.peers:
        raft.send(Message(PING, to=peer))


def test_messages_of_ones_own_travel_under_faults_and_do_no_harm():
    answers = []
    happened = Cluster(3, handlers=table_with_audit(answers)).storm(range(10), traffic=ask_all)
    assert len(answers) > 50
    assert happened["an election was won"] >= 10


def test_a_handler_that_breaks_raft_is_caught_and_its_schedule_cut_down():
    table = raft_handlers()

    @table.wrap(MessageType.REQUEST_VOTE, State.FOLLOWER)
    def grant_everybody(raft, message, inner):
        raft.vote = 0
        inner(raft, message)

    with pytest.raises(Violation) as caught:
        Cluster(3, handlers=table).storm(range(100))
    assert caught.value.check.startswith(("INV1 ", "INV8", "INV9"))
    assert "the schedule, reduced:" in str(caught.value)
    assert "REQUEST_VOTE" in str(caught.value)


def test_a_handler_that_raises_is_told_with_its_schedule():
    table = raft_handlers()

    @table.wrap(MessageType.HEARTBEAT, State.FOLLOWER)
    def stumble(raft, message, inner):
        raise LookupError("no such audit")

    with pytest.raises(Violation, match="no such audit") as caught:
        Cluster(3, handlers=table).storm(range(3))
    assert caught.value.check == "LookupError"


def test_an_invariant_of_ones_own_is_checked_after_every_step():
    def no_leader(rafts):
        assert all(raft.state is not State.LEADER for raft in rafts.values()), "there is a leader"

    with pytest.raises(Violation, match="there is a leader"):
        Cluster(3).storm(range(3), check=no_leader)


def test_a_storm_leaves_members_alone_where_it_is_told_to():
    happened = Cluster(3).storm(range(10), membership=False)
    assert not happened["a joint membership was entered"]


def test_each_run_has_a_user_of_its_own_that_remembers():
    class Terms:
        """The greatest term that was seen, which no run may take from another."""

        made = 0

        def __init__(self):
            Terms.made += 1
            self.greatest, self.traffic_came = 0, False

        def traffic(self, raft, random):
            self.traffic_came = True

        def check(self, rafts):
            greatest = max((raft.term for raft in rafts.values()), default=0)
            assert self.greatest or greatest <= 1, "a run has begun in the term of another"
            self.greatest = max(self.greatest, greatest)

        def settled(self, rafts):
            assert self.traffic_came
            assert self.greatest >= max(raft.term for raft in rafts.values())

    Cluster(3).storm(range(3), user=Terms)
    assert Terms.made == 3


@pytest.mark.parametrize(
    ("members", "given", "text"),
    [
        pytest.param(
            {"checks": print}, {}, "must have a method: one of traffic, check", id="none of its methods"
        ),
        pytest.param({"check": print}, {"check": print}, "has check, and so has this call", id="one twice"),
    ],
)
def test_a_user_that_cannot_be_meant_is_refused(members, given, text):
    with pytest.raises(ConfigError, match=text):
        Cluster(3).storm(range(1), user=type("User", (), members), **given)


@pytest.mark.usefixtures("types_of_one_test")
def test_the_documents_examples_run():
    names = {}
    for example in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL):
        exec(example, names)  # it is what the test is about
    assert names["happened"]
    cluster = Cluster(3, handlers=raft_handlers().use(names["Audit"]))
    cluster.elect(1)
    asks = [cluster[1].step(Message(names["AUDIT_MARK"], payload=b"a,b")) for _ in range(2)]
    cluster.tick(2)
    assert asks == [LATER] * 2
    assert [answer.value for answer in cluster.nodes[1].answers] == [2, 2], "both are answered"
    audit = cluster[1].extension(names["Audit"])
    audit.load(audit.save())
    assert audit.marks == [b"a,b"]
