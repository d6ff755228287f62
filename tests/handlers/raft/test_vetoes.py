"""Rules of vetoes: a wrapper of one's own refuses a proposal, a read or a transfer with a text, which its proposer gets."""

import pytest
from drakkar.handlers import (
    ConfigError,
    Entries,
    Entry,
    EntryKind,
    Extension,
    Message,
    MessageType,
    Raft,
    Refusal,
    Run,
    State,
    handles,
    raft_handlers,
)
from drakkar.handlers.raft.ready import MAX_TEXT
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import cluster, replica

WHY = "bad weather"


class Strict(Extension):
    """Refuses, in the states of which a test says so, entries whose payload begins with `bad`, and reads and transfers."""

    states = (State.LEADER,)

    def __init__(self, node: Raft):
        self.node = node

    @handles(MessageType.PROPOSE, wrap=True)
    def proposal(self, message, inner):
        if self.node.state in self.states:
            message = self.node.veto(message, WHY, lambda entry: entry.payload.startswith(b"bad"))
        if message is not None:
            inner(message)

    @handles(MessageType.READ_INDEX, wrap=True)
    @handles(MessageType.LEADER_TRANSFER, wrap=True)
    def request(self, message, inner):
        if self.node.state not in self.states or self.node.veto(message, WHY) is not None:
            inner(message)


class StrictFollower(Strict):
    states = (State.FOLLOWER,)


def table_of(class_):
    table = raft_handlers()
    table.use(class_)
    return table


AT = [
    pytest.param(Strict, 1, id="at the leader"),
    pytest.param(Strict, 2, id="at the leader, to which it was forwarded"),
    pytest.param(StrictFollower, 2, id="at the follower"),
]


def shard_of(class_):
    shard = cluster(3, handlers=table_of(class_))
    shard.elect(1)
    return shard


@pytest.mark.parametrize(("class_", "at"), AT)
class TestItsProposerIsTold:
    def test_of_each_proposal_that_is_refused_and_the_others_are_logged(self, class_, at):
        """A veto falls on single proposals, not on the batch in which they happen to travel."""
        shard = shard_of(class_)
        payloads = [b"a", b"bad 1", b"bad 2", b"b", b"bad 3", b"c"]
        entries = tuple(Entry(payload=payload, origin=7, key=10 + n) for n, payload in enumerate(payloads))
        shard.step(at, Message(MessageType.PROPOSE, sender=at, entries=entries))
        reports = shard.nodes[at].dropped
        assert [(d.type, d.because, d.text, d.origin, d.key, d.count) for d in reports] == [
            (MessageType.PROPOSE, Refusal.VETOED, WHY, 7, 11, 2),
            (MessageType.PROPOSE, Refusal.VETOED, WHY, 7, 14, 1),
        ]
        log = shard[1].log
        logged = [(e.payload, e.key) for e in log.entries(2, log.last_index + 1)]
        assert logged == [(b"a", 10), (b"b", 13), (b"c", 15)]
        assert (
            shard.applied(3) == [b"a", b"b", b"c"] or shard.tick() or shard.applied(3) == [b"a", b"b", b"c"]
        )

    def test_of_a_read(self, class_, at):
        shard = shard_of(class_)
        shard.step(at, Message(MessageType.READ_INDEX, hint=8, hint_high=9))
        [dropped] = shard.nodes[at].dropped
        assert (dropped.type, dropped.because, dropped.text) == (MessageType.READ_INDEX, Refusal.VETOED, WHY)
        assert (dropped.origin, dropped.key) == (8, 9)
        assert shard.nodes[at].reads == []

    def test_of_a_transfer(self, class_, at):
        shard = shard_of(class_)
        shard.transfer(at, 3)
        [dropped] = shard.nodes[at].dropped
        assert (dropped.type, dropped.because, dropped.text, dropped.key) == (
            MessageType.LEADER_TRANSFER,
            Refusal.VETOED,
            WHY,
            3,
        )
        assert shard[1].state is State.LEADER


def leader():
    return replica(state=State.LEADER, terms=(1,))


def proposal(*payloads, sender=1, origin=7):
    entries = [Entry(payload=payload, origin=origin, key=n) for n, payload in enumerate(payloads, 1)]
    return Message(MessageType.PROPOSE, sender=sender, entries=tuple(entries))


class TestWhatIsLeft:
    def test_is_the_message_itself_where_nothing_is_refused(self):
        raft, ask = leader(), proposal(b"a")
        assert raft.veto(ask, WHY, lambda entry: False) is ask
        assert drain(raft).dropped == []

    @pytest.mark.parametrize("only", [None, lambda entry: True])
    def test_is_nothing_where_all_is_refused(self, only):
        raft = leader()
        assert raft.veto(proposal(b"a", b"b"), WHY, only) is None
        [dropped] = drain(raft).dropped
        assert (dropped.key, dropped.count, [e.payload for e in dropped.entries]) == (1, 2, [b"a", b"b"])

    def test_keeps_kinds_and_keys_also_of_proposals_that_came_in_runs(self):
        raft = leader()
        runs = [Run(0, 0, [b"a", b"b", b"c"], bytes([0, 3, 0]), 7, 1), Run(0, 0, [b"d"], b"", 8, 5)]
        ask = Message(MessageType.PROPOSE, sender=1, entries=Entries(runs))
        left = raft.veto(ask, WHY, lambda entry: entry.payload == b"a")
        assert [(e.kind, e.payload, e.origin, e.key) for e in left.entries] == [
            (EntryKind.SESSION, b"b", 7, 2),
            (EntryKind.COMMAND, b"c", 7, 3),
            (EntryKind.COMMAND, b"d", 8, 5),
        ]
        assert [e.payload for e in ask.entries] == [b"a", b"b", b"c", b"d"]

    def test_has_entries_without_a_proposer_that_waits(self):
        raft = leader()
        left = raft.veto(proposal(b"a", b"b", b"c", origin=0), WHY, lambda entry: entry.payload == b"b")
        assert [(e.payload, e.key) for e in left.entries] == [(b"a", 0), (b"c", 0)]

    def test_of_a_proposal_without_entries_is_itself(self):
        ask = proposal()
        assert leader().veto(ask, WHY) is ask


class TestItsText:
    @pytest.mark.parametrize(
        ("why", "told"),
        [
            pytest.param("x" * (MAX_TEXT + 1), "x" * MAX_TEXT, id="a long one is cut"),
            pytest.param("a\nb\x00c", "a?b?c", id="what is not printable is shown as such"),
            pytest.param("", "", id="none"),
            pytest.param("à la carte", "à la carte", id="any language"),
        ],
    )
    @pytest.mark.parametrize("sender", [1, 2], ids=["here", "at the replica that forwarded it"])
    def test_is_bounded_and_printable(self, why, told, sender):
        raft = leader()
        raft.veto(proposal(b"a", sender=sender), why)
        if sender == 1:
            [dropped] = drain(raft).dropped
        else:
            [refusal] = [m for m in drain(raft) if m.type is MessageType.PROPOSE_REFUSED]
            other = replica(2, term=raft.term, leader=1)
            other.step(refusal)
            [dropped] = drain(other).dropped
        assert (dropped.because, dropped.text) == (Refusal.VETOED, told)

    @pytest.mark.parametrize(
        ("payload", "because", "text"),
        [
            pytest.param(["VETOED", "x" * 600], Refusal.VETOED, "x" * MAX_TEXT, id="too long"),
            pytest.param(["VETOED", "a\nb"], Refusal.VETOED, "a?b", id="two lines"),
            pytest.param(["VETOED", 7], Refusal.VETOED, "", id="a number"),
            pytest.param(["VETOED", "a", "b"], Refusal.VETOED, "", id="two texts"),
            pytest.param(["DISK_FULL", "a"], Refusal.DISK_FULL, "", id="with another reason"),
        ],
    )
    def test_from_a_peer_is_not_trusted(self, payload, because, text):
        raft = replica(2, term=1, leader=1)
        raft.step(Message(MessageType.PROPOSE_REFUSED, sender=1, to=2, log_index=1, payload=payload))
        [dropped] = drain(raft).dropped
        assert (dropped.because, dropped.text, dropped.replicas) == (because, text, ())


class TestMistakes:
    @pytest.mark.parametrize("type_", [MessageType.TIMEOUT_NOW, MessageType.REPLICATE], ids=str)
    def test_only_requests_have_a_proposer_to_be_told(self, type_):
        with pytest.raises(
            ConfigError, match=f"message={type_.name}.*PROPOSE, READ_INDEX or LEADER_TRANSFER"
        ):
            leader().veto(Message(type_), WHY)

    def test_only_a_proposal_has_entries(self):
        with pytest.raises(ConfigError, match=r"only=.*goes with a PROPOSE"):
            leader().veto(Message(MessageType.READ_INDEX), WHY, lambda entry: True)

    def test_its_reason_is_a_text(self):
        with pytest.raises(ConfigError, match="why=None"):
            leader().veto(proposal(b"a"), None)
