"""A leader contradicts a replica's log: it is asked whether it means it, and only then is somebody wrong for good."""

import pytest
from drakkar.handlers import Message, MessageType, ProtocolViolation, State
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    ack,
    append,
    hear,
    heartbeat,
    of_type,
    propose,
    replica,
    terms_of,
)

ASK, ANSWER = MessageType.CONTRADICTION, MessageType.CONTRADICTION_RESP


def asked_by(raft, message):
    """The question that a replica asks when it hears a message, if it asks one."""
    return next(iter(of_type(hear(raft, message), ASK)), None)


def answer(question, *, sender=2, log_term=1, reject=False, **fields):
    """What the leader says to a question."""
    told = {"log_index": question.log_index, "hint": question.hint, "term": question.term, **fields}
    return Message(ANSWER, sender=sender, log_term=log_term, reject=reject, **told)


CLAIMS = [
    pytest.param(heartbeat(2, 1, commit=5), 5, 0, id="a heartbeat commits what was lost"),
    pytest.param(Message(MessageType.COMMIT, sender=2, term=1, commit=5), 5, 0, id="a notice does"),
    pytest.param(append(2, 4, (1, 2)), 1, 1, id="the entry before differs, below the commit index"),
    pytest.param(append(2, 4, (2, 2), [4]), 2, 1, id="the entry before differs, at the commit index"),
    pytest.param(append(2, 4, (1, 1), [2, 4]), 2, 1, id="an entry differs that is committed"),
    pytest.param(append(2, 4, (0, 0), [2, 2]), 1, 1, id="the first entry differs"),
]


class TestAClaim:
    """BUG-L6 (etcd#7239)."""

    @pytest.mark.parametrize(("claim", "index", "term"), CLAIMS)
    def test_it_ends_no_replica_and_changes_nothing(self, claim, index, term):
        raft = replica(terms=[1, 1, 1], term=1, commit=2)
        question = asked_by(raft, claim)
        assert (question.to, question.log_index, question.log_term, question.commit) == (2, index, term, 2)
        assert (terms_of(raft), raft.log.committed, raft.leader_id) == ([1, 1, 1], 2, 2)
        assert raft.faults["contradicts what is committed here, or was acknowledged"] == 1

    @pytest.mark.parametrize(("claim", "index", "term"), CLAIMS)
    def test_a_replica_whose_leader_confirms_it_stops_and_says_what_to_look_at(self, claim, index, term):
        raft = replica(terms=[1, 1, 1], term=1, commit=2)
        question = asked_by(raft, claim)
        with pytest.raises(ProtocolViolation, match=rf"entry {index} of term 3.*Keep both directories"):
            raft.step(answer(question, log_term=3))

    @pytest.mark.parametrize(("claim", "index", "term"), CLAIMS)
    def test_one_whose_leader_takes_it_back_goes_on(self, claim, index, term):
        raft = replica(terms=[1, 1, 1], term=1, commit=2)
        question = asked_by(raft, claim)
        assert hear(raft, answer(question, reject=True)) == []
        assert hear(raft, answer(question, log_term=3)) == []  # it counts once
        assert raft.faults["answered a question that was not asked"] == 1

    @pytest.mark.parametrize("wrong", [{"hint": 7}, {"sender": 3}, {"term": 2}])
    def test_what_is_no_answer_to_the_question_ends_nobody(self, wrong):
        raft = replica(terms=[1, 1, 1], term=1, commit=2)
        question = asked_by(raft, heartbeat(2, 1, commit=5))
        hear(raft, answer(question, log_term=3, **wrong))
        assert raft.faults["answered a question that was not asked"] == 1

    def test_it_is_asked_again_in_the_same_words(self):
        """The question or its answer may be lost."""
        raft = replica(terms=[1], term=1)
        first = asked_by(raft, heartbeat(2, 1, commit=5))
        assert asked_by(raft, heartbeat(2, 1, commit=5)) == first
        assert asked_by(raft, heartbeat(3, 2, commit=5)).hint != first.hint

    def test_the_heartbeat_is_answered_all_the_same(self):
        raft = replica(terms=[1], term=1)
        assert of_type(hear(raft, heartbeat(2, 1, commit=5)), MessageType.HEARTBEAT_RESP)

    def test_what_is_compacted_is_not_compared(self):
        raft = replica(terms=[1, 1, 1], term=1, commit=3)
        drain(raft)
        raft.log.compact(2)
        assert asked_by(raft, append(2, 2, (0, 0), [2, 2])) is None
        assert asked_by(raft, append(2, 2, (0, 0), [1, 1, 2])).log_index == 3

    def test_a_late_copy_that_agrees_is_acknowledged(self):
        raft = replica(terms=[1, 1, 1], term=1, commit=2)
        [told] = hear(raft, append(2, 1, (0, 0), [1]))
        assert (told.type, told.log_index) == (MessageType.REPLICATE_RESP, 2)


class TestTheLeader:
    def leader(self):
        raft = replica(state=State.LEADER, terms=[1, 1])
        hear(raft, ack(2, raft.term, 3), ack(3, raft.term, 3))
        return raft

    def doubt(self, raft, index, term):
        return hear(
            raft,
            Message(ASK, sender=2, term=raft.term, log_index=index, log_term=term, hint=9, commit=2),
        )

    @pytest.mark.parametrize(
        ("index", "term", "held"),
        [
            pytest.param(3, 0, 1, id="it lost what it acknowledged"),
            pytest.param(2, 7, 1, id="it committed something else"),
        ],
    )
    def test_it_confirms_what_is_so_and_counts_the_peer_no_more(self, index, term, held):
        raft = self.leader()
        [told] = self.doubt(raft, index, term)
        assert (told.type, told.to, told.hint, told.reject) == (ANSWER, 2, 9, False)
        assert told.log_term == raft.log.term(index) == (1 if index < 3 else raft.term)
        assert raft.progress[2].frozen
        assert raft.state is State.LEADER

    def test_a_peer_that_is_frozen_is_sent_nothing_and_does_not_count(self):
        raft = self.leader()
        self.doubt(raft, 3, 0)
        sent = propose(raft, b"x")
        assert {message.to for message in of_type(sent, MessageType.REPLICATE)} == {3}
        hear(raft, ack(2, raft.term, 4))
        assert raft.log.committed == 3
        hear(raft, ack(3, raft.term, 4))
        assert raft.log.committed == 4

    def test_its_operator_is_told_once(self):
        raft = self.leader()
        for _ in range(2):
            raft.step(Message(ASK, sender=2, term=raft.term, log_index=3, hint=9))
        [warning] = raft.ready().warnings
        assert "replica 2 is not counted" in warning
        assert not raft.has_ready or not raft.ready().warnings

    @pytest.mark.parametrize(
        ("index", "term"),
        [
            pytest.param(9, 0, id="it was never told that it holds so much"),
            pytest.param(2, 1, id="the logs agree there"),
            pytest.param(9, 4, id="this leader has nothing there"),
        ],
    )
    def test_it_takes_back_what_another_has_said_in_its_name(self, index, term):
        raft = self.leader()
        [told] = self.doubt(raft, index, term)
        assert told.reject
        assert not raft.progress[2].frozen

    def test_a_new_term_counts_it_again(self):
        raft = self.leader()
        self.doubt(raft, 3, 0)
        hear(raft, heartbeat(3, raft.term + 1))
        assert not raft.progress[2].frozen
