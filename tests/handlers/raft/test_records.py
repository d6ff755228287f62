"""Rules of records: handlers propose them, and extensions take them, in log order, on all that keep commands."""

import pytest
from drakkar.handlers import (
    SWALLOW,
    ConfigError,
    Entry,
    EntryKind,
    Extension,
    ExtensionFailed,
    HandlerTable,
    Life,
    Membership,
    Message,
    MessageType,
    MissingExtension,
    Refusal,
    Snapshot,
    State,
    delivers,
    handles,
    raft_handlers,
)
from drakkar.handlers.effects import MAX_EFFECTS
from drakkar.handlers.raft.records import MAX_RECORD_BYTES
from drakkar.handlers.raft.room_watch import RoomWatch
from drakkar.handlers.testing import drain

from tests.handlers.raft.lives_support import Shard
from tests.handlers.raft.support import (
    acknowledge_all,
    append,
    cluster,
    hear,
    install,
    propose,
    replica,
    routes,
)

MARK = EntryKind.define("records.mark", 190)
UNKNOWN = 191
"""A kind that no process of these tests defines."""


class Marks(Extension):
    """Notes all that it is given, and how far the log was applied then."""

    def __init__(self, node):
        self.node = node
        self.taken = []

    @delivers(MARK)
    def mark(self, entry):
        self.taken.append((entry.index, entry.kind, entry.payload))
        assert self.node.log.applied >= entry.index


class Everything(Marks):
    @delivers(MARK, EntryKind.COMMAND, EntryKind.SESSION, EntryKind.ENCODED)
    def mark(self, entry):
        super().mark(entry)


def table_of(*classes) -> HandlerTable:
    table = raft_handlers()
    table.use(*classes)
    return table


def taken(raft, class_=Marks):
    return raft.extension(class_).taken


def leader(*classes, **options):
    """A leader whose first entry is committed."""
    raft = replica(state=State.LEADER, terms=(1,), handlers=table_of(*classes), **options)
    acknowledge_all(raft)
    return raft


class TestDelivery:
    def test_records_and_commands_come_in_log_order_on_all_that_keep_commands(self):
        shard = cluster(Membership({1, 2}, {3}, {4}), handlers=table_of(Everything))
        shard.elect(1)
        shard.propose(1, b"a")
        assert shard[1].propose(MARK, b"b") == ""
        shard.deliver()
        shard.propose(2, b"c")
        shard.tick(2)
        expected = [(2, EntryKind.COMMAND, b"a"), (3, MARK, b"b"), (4, EntryKind.COMMAND, b"c")]
        assert [taken(shard[r], Everything) for r in (1, 2, 3)] == [expected] * 3
        assert taken(shard[4], Everything) == []
        assert [entry.kind for entry in shard.nodes[4].applied] == [EntryKind.METADATA] * 4

    def test_only_kinds_that_are_asked_for_are_delivered_and_counted(self):
        raft = leader(Marks)
        propose(raft, b"a")
        raft.propose(MARK, b"b")
        acknowledge_all(raft)
        assert taken(raft) == [(4, MARK, b"b")]
        assert raft.tally.delivered == {(State.LEADER, MARK): 1}

    def test_nothing_is_delivered_before_it_is_applied(self):
        raft = leader(Marks)
        raft.propose(MARK, b"b")
        raft.step(Message(MessageType.REPLICATE_RESP, sender=2, term=raft.term, log_index=3))
        ready = raft.ready()
        raft.persisted(ready)
        ready = raft.ready()
        assert [entry.payload for entry in ready.committed] == [b"b"]
        assert taken(raft) == []
        raft.applied(3)
        assert taken(raft) == [(3, MARK, b"b")]

    def test_what_is_applied_in_two_steps_is_delivered_once(self):
        raft = leader(Everything)
        propose(raft, b"a", b"b", b"c")
        raft.step(Message(MessageType.REPLICATE_RESP, sender=2, term=raft.term, log_index=5))
        ready = raft.ready()
        assert len(ready.committed) == 3
        for index in (3, 4, 5, 5):
            raft.applied(index)
            assert [entry for entry, _, _ in taken(raft, Everything)] == [1, *range(3, index + 1)]

    def test_after_a_restart_the_new_instance_is_told_all_that_no_snapshot_has(self):
        shard = cluster(3, handlers=table_of(Marks))
        shard.elect(1)
        shard[1].propose(MARK, b"a")
        shard[1].propose(MARK, b"b")
        shard.tick(2)
        shard.compact(2, 2)
        before = taken(shard[2])
        shard.restart(2)
        shard.tick(2)
        assert taken(shard[2]) is not before
        assert before == [(2, MARK, b"a"), (3, MARK, b"b")]
        assert taken(shard[2]) == [(3, MARK, b"b")]

    def test_two_extensions_may_take_commands_and_each_is_told(self):
        class Second(Extension):
            def __init__(self, node):
                self.taken = []

            @delivers(EntryKind.COMMAND)
            def note(self, entry):
                self.taken.append(entry.payload)

        raft = leader(Everything, Second)
        propose(raft, b"a")
        acknowledge_all(raft)
        assert [payload for _, _, payload in taken(raft, Everything)] == taken(raft, Second) == [b"x", b"a"]
        assert raft.tally.delivered == {(State.LEADER, EntryKind.COMMAND): 4}

    def test_entries_that_a_snapshot_stands_for_are_not_delivered_behind_it(self):
        """They were handed out, and the host has loaded a leader's snapshot instead."""
        raft = replica(2, term=1, leader=1, handlers=table_of(Marks))
        mark = Entry(1, 1, MARK, b"old")
        raft.step(append(1, 1, (0, 0), [mark], commit=1))
        ready = raft.ready()
        raft.persisted(ready)
        assert raft.ready().committed
        raft.step(install(1, 1, (5, 1)))
        raft.persisted(raft.ready())
        raft.load_extensions(b"", 5)
        raft.applied(5)
        assert taken(raft) == []
        hear(raft, append(1, 1, (5, 1), [Entry(6, 1, MARK, b"new")], commit=6))
        assert taken(raft) == [(6, MARK, b"new")]

    def test_a_table_that_takes_nothing_keeps_nothing(self):
        raft = replica(state=State.LEADER, terms=(1,))
        propose(raft, b"a")
        raft.step(Message(MessageType.REPLICATE_RESP, sender=2, term=raft.term, log_index=3))
        assert raft.ready().committed
        assert not raft.undelivered.runs

    def test_a_mistake_ends_the_replica_and_is_named(self):
        class Fails(Extension):
            @delivers(MARK)
            def mark(self, entry):
                raise KeyError("x")

        raft = leader(Fails)
        raft.propose(MARK, b"a")
        with pytest.raises(ExtensionFailed) as caught:
            acknowledge_all(raft)
        assert str(caught.value) == "Fails.mark failed at index 3: KeyError('x')"
        assert isinstance(caught.value.__cause__, KeyError)
        assert raft.tally.broken is caught.value
        assert raft.tally.failed == {(State.LEADER, "Fails.mark"): 1}
        assert "failed: Fails.mark 1" in raft.handlers.describe(raft.tally).splitlines()

    def test_many_records_may_each_have_an_effect_in_one_batch(self):
        """A replay after a restart: what may wait for the end of a batch is half as many."""

        class Publishes(Marks):
            @delivers(MARK)
            def mark(self, entry):
                self.node.publish_event(entry.index)

        raft = replica(2, term=1, leader=1, handlers=table_of(Publishes))
        entries = [Entry(index, 1, MARK, b"") for index in range(1, 2 * MAX_EFFECTS + 1)]
        raft.step(append(1, 1, (0, 0), entries, commit=len(entries)))
        assert drain(raft).events == [entry.index for entry in entries]

    def test_what_waits_when_a_handler_has_failed_is_not_handed_out(self):
        class Publishes(Marks):
            @delivers(MARK)
            def mark(self, entry):
                for _ in range(MAX_EFFECTS):
                    self.node.publish_event(entry.index)

        raft = leader(Publishes)
        raft.effects.on_many = lambda: pytest.fail("handed out")
        raft.propose(MARK, b"a")
        raft.tally.note_broken(KeyError(), raft.state, MessageType.PING)
        raft.step(Message(MessageType.REPLICATE_RESP, sender=2, term=raft.term, log_index=3))
        raft.persisted(raft.ready())
        raft.ready()
        raft.applied(3)
        assert len(raft.effects.events) == MAX_EFFECTS

    def test_what_a_delivery_sends_leaves(self):
        note = MessageType.define("records.note", 1790)

        class Tells(Extension):
            def __init__(self, node):
                self.node = node

            @delivers(MARK)
            def mark(self, entry):
                self.node.send(Message(note, to=2, hint=entry.index))

        raft = leader(Tells)
        raft.propose(MARK, b"a")
        assert [message.hint for message in acknowledge_all(raft) if message.type is note] == [3]


class TestAKindThatAReplicaDoesNotTake:
    """It would lead one day without the state of that extension, so it stops, and names it."""

    @pytest.mark.parametrize("classes", [(), (Marks,)], ids=["no extension", "another extension"])
    def test_it_stops_before_the_entry_after_all_before_it_was_handed_out(self, classes):
        raft = replica(2, term=1, leader=1, handlers=table_of(*classes))
        entries = [
            Entry(1, 1, EntryKind.COMMAND, b"a"),
            Entry(2, 1, EntryKind(0), b"b"),
            Entry(3, 1, unknown(), b"c"),
        ]
        raft.step(append(1, 1, (0, 0), [*entries, Entry(4, 1, EntryKind.COMMAND, b"d")], commit=4))
        raft.persisted(raft.ready())
        ready = raft.ready()
        assert [entry.payload for entry in ready.committed] == [b"a", b"b"]
        raft.applied(2)
        assert raft.has_ready
        for _ in range(2):
            with pytest.raises(MissingExtension) as caught:
                raft.ready()
        assert (caught.value.index, raft.log.applied) == (3, 2)
        assert "index 3 has an entry of kind 191 (not defined in this process)" in str(caught.value)
        assert "start it with a table that uses this extension" in str(caught.value)

    def test_a_kind_that_is_defined_here_is_named(self):
        raft = replica(2, term=1, leader=1)
        with pytest.raises(MissingExtension, match=r"index 1 has an entry of kind 190 \(records.mark\)"):
            hear(raft, append(1, 1, (0, 0), [Entry(1, 1, MARK, b"a")], commit=1))

    def test_it_is_kept_as_long_as_it_is_not_committed(self):
        raft = replica(2, term=1, leader=1)
        hear(raft, append(1, 1, (0, 0), [Entry(1, 1, MARK, b"a")]))
        assert raft.log.last_index == 1
        hear(raft, append(3, 2, (0, 0), [2], commit=1))
        assert raft.log.applied == 1

    def test_a_witness_votes_on(self):
        shard = cluster(Membership({1, 2}, (), {3}), handlers=table_of(Marks))
        shard.elect(1)
        shard[1].propose(MARK, b"a")
        shard.tick(2)
        assert shard[3].log.applied == 2
        assert taken(shard[3]) == []


def unknown():
    return EntryKind.of_log(UNKNOWN)


class TestProposing:
    def test_a_leader_logs_it_and_a_follower_sends_it_on(self):
        raft = leader(Marks)
        assert raft.propose(MARK, b"a") == ""
        last = raft.log.entries(3, 4)[0]
        assert (last.kind, last.payload, last.origin) == (MARK, b"a", 0)
        follower = replica(2, leader=1, term=1, handlers=table_of(Marks))
        assert follower.propose(MARK, b"a") == ""
        assert routes(drain(follower)) == [(MessageType.PROPOSE, 1)]

    @pytest.mark.parametrize(
        ("options", "because"),
        [
            pytest.param({"term": 1}, Refusal.NO_LEADER.value, id="no leader"),
            pytest.param(
                {"state": State.CANDIDATE, "terms": (1,)}, Refusal.CAMPAIGNING.value, id="a campaign"
            ),
            pytest.param(
                {"leader": 1, "term": 1, "disable_proposal_forwarding": True},
                Refusal.FORWARDING_DISABLED.value,
                id="no forwarding",
            ),
            pytest.param(
                {"voters": (1, 3), "witnesses": (2,), "term": 1}, "a witness keeps no records", id="a witness"
            ),
        ],
    )
    def test_who_does_not_take_it_says_why_and_no_one_else_is_told(self, options, because):
        raft = replica(2, handlers=table_of(Marks), **options)
        drain(raft)
        assert raft.propose(MARK, b"a") == because
        out = drain(raft)
        assert (out.dropped, list(out)) == ([], [])

    def test_what_a_guard_swallows_is_not_called_proposed(self):
        table = table_of(Marks)
        table.guard(lambda raft, message: SWALLOW if message.type is MessageType.PROPOSE else None)
        raft = replica(state=State.LEADER, terms=(1,), handlers=table)
        assert raft.propose(MARK, b"a") == "a guard swallowed it"

    def test_what_a_wrapper_keeps_back_is_not_called_proposed(self):
        table = table_of(Marks)
        table.wrap(MessageType.PROPOSE)(lambda raft, message, inner: None)
        raft = replica(state=State.LEADER, terms=(1,), handlers=table)
        assert raft.propose(MARK, b"a") == "its handler neither logged it nor sent it on"

    @pytest.mark.parametrize("options", [{"state": State.LEADER, "terms": (1,)}, {"leader": 2, "term": 1}])
    def test_what_else_a_wrapper_does_changes_nothing(self, options):
        table = table_of(Marks)

        @table.wrap(MessageType.PROPOSE)
        def step_what_is_ignored(raft, message, inner):
            inner(raft, message)
            raft.step(Message(MessageType.NO_OP))

        raft = replica(handlers=table, **options)
        assert raft.propose(MARK, b"a") == ""

    def test_a_leader_asks_its_host_for_room_first(self):
        """Rules of full disks: no message of the host has brought the record, so none was judged."""
        raft = leader(Marks)
        room = RoomWatch(raft, lambda size: size < 100)
        assert raft.propose(MARK, b"small") == ""
        last = raft.log.last_index
        assert raft.propose(MARK, b"x" * 100) == Refusal.DISK_FULL.value
        assert (raft.log.last_index, raft.room.full) == (last, True)
        room.saved()
        for _ in range(2):
            room.tick()
        # There must be room for what was refused.
        assert raft.propose(MARK, b"small") == Refusal.DISK_FULL.value

    def test_the_text_of_a_veto_is_returned(self):
        class Strict(Marks):
            @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
            def check_it(self, message, inner):
                assert self.node.veto(message, "not today") is None

        raft = leader(Strict)
        assert raft.propose(MARK, b"a") == "not today"
        assert drain(raft).dropped == []

    def test_an_earlier_refusal_of_someone_elses_stays(self):
        raft = replica(2, term=1, handlers=table_of(Marks))
        raft.step(Message(MessageType.PROPOSE, sender=2, entries=(Entry(payload=b"x"),)))
        assert raft.propose(MARK, b"a")
        assert [dropped.entries[0].payload for dropped in drain(raft).dropped] == [b"x"]

    @pytest.mark.parametrize("kind", [EntryKind.COMMAND, EntryKind.CONFIG_CHANGE, 190, "records.mark", None])
    def test_only_kinds_that_the_table_delivers_are_proposed(self, kind):
        with pytest.raises(ConfigError, match=r"kind=.* delivers: records.mark"):
            leader(Marks).propose(kind, b"a")

    def test_a_kind_that_is_defined_and_that_no_extension_takes_is_refused(self):
        with pytest.raises(ConfigError, match=r"kind=records.mark\(190\): .* delivers: none"):
            replica(state=State.LEADER).propose(MARK, b"a")

    @pytest.mark.parametrize("payload", ["a", None, bytearray(b"a"), 3])
    def test_its_payload_is_bytes(self, payload):
        with pytest.raises(ConfigError, match="payload="):
            leader(Marks).propose(MARK, payload)

    def test_its_payload_is_bounded_and_the_error_has_the_number(self):
        raft = leader(Marks)
        assert raft.propose(MARK, bytes(MAX_RECORD_BYTES)) == ""
        with pytest.raises(ConfigError, match="payload='1048577 bytes': a record has at most 1048576 bytes"):
            raft.propose(MARK, bytes(MAX_RECORD_BYTES + 1))


class TestAKindIsProposedOnceAllHaveIt:
    def shard(self, *without, members=(1, 2, 3), **options):
        """A shard with introductions whose replica 1 leads; those `without` have a table that takes no marks."""
        shard = Shard(*members, up=(), **options)
        for id_ in (*members, *options.get("observers", ())):
            shard.start(id_, handlers=raft_handlers() if id_ in without else table_of(Marks))
        shard.listen()
        assert shard.elect(1)
        return shard

    def test_all_members_have_said_so_in_their_introductions(self):
        shard = self.shard()
        assert shard.raft(1).life.kinds == {MARK}
        assert shard.raft(1).propose(MARK, b"a") == ""
        shard.settle_down()
        shard.tick()
        assert [[payload for _, _, payload in taken(shard.raft(r))] for r in (1, 2, 3)] == [[b"a"]] * 3

    @pytest.mark.parametrize(
        "options", [{}, {"members": (1, 2), "observers": (3,)}], ids=["voter", "observer"]
    )
    def test_one_that_lacks_it_is_named_and_the_record_is_not_logged(self, options):
        shard = self.shard(3, **options)
        raft = shard.raft(1)
        last = raft.log.last_index
        raft.step(Message(MessageType.PROPOSE, sender=1, entries=(Entry(payload=b"x", origin=7, key=1),)))
        mixed = (
            Entry(payload=b"y", origin=7, key=2),
            Entry(0, 0, MARK, b"a", 7, 3),
            Entry(payload=b"z", origin=7, key=4),
        )
        raft.step(Message(MessageType.PROPOSE, sender=1, entries=mixed))
        [dropped] = drain_reports(raft)
        assert (dropped.because, dropped.replicas, dropped.key, dropped.count) == (
            Refusal.KIND_MISSING,
            (3,),
            3,
            1,
        )
        logged = raft.log.entries(last + 1, raft.log.last_index + 1)
        assert [(e.kind, e.payload, e.key) for e in logged] == [
            (EntryKind.COMMAND, b"x", 1),
            (EntryKind.COMMAND, b"y", 2),
            (EntryKind.NO_OP, b"", 3),
            (EntryKind.COMMAND, b"z", 4),
        ]

    def test_the_proposer_of_a_record_is_told(self):
        why = self.shard(3).raft(1).propose(MARK, b"a")
        assert why == f"{Refusal.KIND_MISSING.value}; those that have not: 3"

    @pytest.mark.parametrize(
        "kinds", [None, frozenset(), frozenset({UNKNOWN})], ids=["none told", "no kinds", "others"]
    )
    def test_who_has_said_nothing_of_it_lacks_it(self, kinds):
        shard = self.shard()
        raft = shard.raft(1)
        known = raft.lives.met[2]
        raft.meet(2, Life(known.founding, known.home, known.standing, kinds=kinds), raft.term)
        assert raft.propose(MARK, b"a").startswith(Refusal.KIND_MISSING.value)

    def test_who_was_not_met_lacks_it(self):
        shard = self.shard()
        raft = shard.raft(1)
        del raft.lives.met[2]
        assert raft.propose(MARK, b"a").startswith(Refusal.KIND_MISSING.value)

    def test_what_a_replica_says_at_its_next_start_counts(self):
        shard = self.shard(3)
        log, home = shard.hosts[3].log, shard.hosts[3].home
        shard.start(3, log=log, home=home, handlers=table_of(Marks))
        shard.tick(3)
        assert shard.raft(1).propose(MARK, b"a") == ""

    def test_a_leader_that_lacks_it_refuses_what_others_send_on(self):
        shard = self.shard(1)
        assert shard.raft(2).propose(MARK, b"a") == ""
        for _ in range(3):
            shard.settle_down()
        assert all(
            e.kind < EntryKind.FIRST_FREE
            for e in shard.raft(1).log.entries(1, shard.raft(1).log.last_index + 1)
        )

    def test_without_introductions_only_this_replica_is_asked(self):
        raft = replica(state=State.LEADER, terms=(1,))
        raft.step(Message(MessageType.PROPOSE, sender=2, entries=(Entry(0, 0, MARK, b"a", 7, 3),)))
        [refusal] = [m for m in drain(raft) if m.type is MessageType.PROPOSE_REFUSED]
        assert (refusal.to, refusal.payload, refusal.hint_high) == (2, ["KIND_MISSING", 1], 3)

    def test_a_witness_need_not_have_it(self):
        shard = cluster(Membership({1, 2}, (), {3}), handlers=table_of(Marks))
        shard.elect(1)
        raft = shard[1]
        raft.lives.home = 100
        raft.lives.met[2] = Life(home=200, kinds=frozenset({MARK}))
        assert raft.propose(MARK, b"a") == ""


def drain_reports(raft):
    """What is reported as dropped now, without the rest of the work."""
    return raft.ready().dropped


def test_a_snapshot_may_be_labelled_with_a_records_index():
    raft = leader(Marks)
    raft.propose(MARK, b"a")
    acknowledge_all(raft)
    assert raft.snapshot_point(3) == Snapshot(3, raft.term, raft.membership)
