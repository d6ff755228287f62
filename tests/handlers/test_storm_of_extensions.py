"""`Cluster.storm` with extensions: records under faults, invariants of one's own, and what a storm says of mistakes."""

from itertools import count

import pytest
from drakkar.handlers import (
    EntryKind,
    Membership,
    Message,
    MessageType,
    State,
    delivers,
    handles,
    raft_handlers,
)
from drakkar.handlers.effects import MAX_EFFECTS
from drakkar.handlers.testing import Cluster, Violation

from tests.handlers.marks import BEAT, BREAK, MARK, SEEN, WRITE, Marks, table_with_marks

RING = MessageType.define("storm.ring", 1954)


def writing():
    """Traffic of asks, each with a mark of its own."""
    numbers = count()

    def write(raft, random):
        raft.step(Message(WRITE, payload=b"%d" % next(numbers)))

    return write


def table_of(class_):
    table = raft_handlers()
    table.use(class_)
    return table


def storm(class_, seeds=10, *, members=3, **options):
    return Cluster(members, handlers=table_of(class_)).storm(range(seeds), traffic=writing(), **options)


def found(class_, seeds=10, *, members=1, **options):
    """The check that finds what is wrong with an extension. A shard of one member is reduced fastest."""
    with pytest.raises(Violation) as caught:
        storm(class_, seeds, members=members, **options)
    assert "the schedule, reduced:" in str(caught.value)
    return caught.value.check


def test_records_are_delivered_saved_and_loaded_under_faults_and_answered():
    answered, marked = {}, {}

    def effects(raft, ready):
        for answer in ready.answers:
            answered[answer.message.payload] = answer.value
        for event, index in ready.events:
            assert marked.setdefault((raft.id, index), event) == "marked"

    def settled(rafts):
        keepers = [raft for raft in rafts.values() if raft.base_state is not State.WITNESS]
        first, *others = [raft.extension(Marks).marks for raft in keepers]
        assert others == [first] * len(others)
        missing = [payload for payload in answered if payload not in first]
        assert not missing, f"they were answered and are gone: {missing}"
        answered.clear()

    happened = storm(Marks, effects=effects, settled=settled)
    assert happened["a record was delivered"] > 500
    assert happened["extensions were saved"] > 50
    assert happened["extensions were loaded"] > 5
    assert marked


def test_what_a_batch_has_too_many_effects_for_is_handed_out_on_the_way():
    class Loud(Marks):
        @delivers(MARK)
        def take(self, entry):
            many = MAX_EFFECTS * 3 // 5 if entry.index < 10 else 0
            for _ in range(many):
                self.node.publish_event("loud")

        @delivers(EntryKind.COMMAND)
        def count(self, entry):
            self.take(entry)

    heard = 0

    def effects(raft, ready):
        nonlocal heard
        heard += len(ready.events)

    storm(Loud, 1, members=1, effects=effects)
    assert heard >= 2 * MAX_EFFECTS


def test_a_storm_with_a_witness_delivers_nothing_there():
    def check(rafts):
        for raft in rafts.values():
            assert raft.base_state is not State.WITNESS or not raft.extension(Marks).marks

    members = Membership((1, 2), witnesses=(3,))
    happened = Cluster(members, handlers=table_with_marks()).storm(range(3), traffic=writing(), check=check)
    assert happened["a record was delivered"]


def test_a_table_whose_timers_wake_the_shard_may_keep_it_awake():
    class Restless(Marks):
        def __init__(self, node):
            super().__init__(node)
            node.every(3, Message(RING))

        @handles(RING)
        def ring(self, message):
            for peer in self.node.peers:
                self.node.send(Message(BEAT, to=peer))

    happened = Cluster(3, handlers=table_of(Restless), quiesce=True).storm(range(2, 4))
    assert not happened["a shard quiesced"]
    assert Cluster(3, handlers=table_with_marks(), quiesce=True).storm(range(2, 4))["a shard quiesced"]


class Keeps(Marks):
    """Keeps what it is sent, and changes that later."""

    @handles(RING)
    def ring(self, message):
        assert message.payload == ["once"], "it was changed elsewhere"
        message.payload.append("twice")

    def ring_others(self):
        for peer in self.node.peers:
            self.node.send(Message(RING, to=peer, payload=["once"]))


def test_what_a_receiver_does_to_a_message_is_seen_nowhere_else():
    """Also not where it comes twice."""
    Cluster(3, handlers=table_of(Keeps)).storm(
        range(4), traffic=lambda raft, random: raft.extension(Keeps).ring_others()
    )
    cluster = Cluster(3, handlers=table_of(Keeps))
    cluster.faults(duplication=0.5)
    for _ in range(20):
        cluster[1].extension(Keeps).ring_others()
        cluster.deliver()
    rings = [message for message in cluster.seen if message.type is RING]
    assert len(rings) > 50, "some came twice"
    assert all(message.payload == ["once"] for message in rings)


class TestWhatIsFound:
    def test_an_invariant_of_an_extension(self):
        class Once(Marks):
            def check(self):
                assert len(self.marks) < 3, "there are three"

        assert found(Once) == "Once.check"

    def test_a_state_that_a_snapshot_does_not_hold(self):
        class Forgets(Marks):
            def save(self):
                return b"%d;" % self.commands + b",".join(self.marks[1:])

        assert found(Forgets) == "INV64 extensions are saved and loaded as of the index of the snapshot"

    def test_a_load_that_adds_to_what_was_there(self):
        class Adds(Marks):
            def load(self, data):
                commands, before = self.commands, list(self.marks)
                super().load(data)
                self.commands, self.marks = self.commands + commands, before + self.marks

            def check(self):
                """It is not what this test is about."""

        assert found(Adds, members=3).startswith("INV64")

    def test_a_state_that_does_not_follow_from_the_log_alone(self):
        class Local(Marks):
            @handles(SEEN, replace=True)
            def seen(self, message):
                self.commands += 1

        def look(raft, random):
            raft.step(Message(WRITE, payload=b"%d" % raft.log.last_index))
            if raft.state is State.LEADER:
                raft.step(Message(SEEN))

        class Quiet(Local):
            def check(self):
                """A mark may come twice here."""

        with pytest.raises(Violation, match="the state of Quiet as of") as caught:
            Cluster(3, handlers=table_of(Quiet)).storm(range(10), traffic=look)
        assert caught.value.check.startswith("INV64")

    def test_a_delivery_that_fails(self):
        class Stumbles(Marks):
            @delivers(MARK)
            def take(self, entry):
                raise LookupError("no such mark")

        assert found(Stumbles) == "ExtensionFailed"

    def test_the_handler_of_a_timer_that_fails(self):
        class Stumbles(Marks):
            @handles(BEAT)
            def beat(self, message):
                raise LookupError("no beat")

        assert found(Stumbles) == "LookupError"

    def test_what_does_not_hold_at_the_end(self):
        def settled(rafts):
            raise AssertionError("it is not over")

        assert found(Marks, settled=settled) == "your check of the end"

    def test_an_effect_that_is_wrong(self):
        def effects(raft, ready):
            assert not ready.tells, "it tells"

        assert found(Marks, effects=effects) == "your check of effects"

    def test_a_break_that_is_asked_for(self):
        def break_(raft, random):
            raft.step(Message(BREAK, payload="traffic"))

        with pytest.raises(Violation, match="broken by traffic") as caught:
            Cluster(3, handlers=table_with_marks()).storm(range(3), traffic=break_)
        assert caught.value.check == "Marks.check"
