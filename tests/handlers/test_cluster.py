"""`Cluster`, as used with extensions: asks, effects, timers, records, snapshots, restarts, invariants of one's own."""

import pytest
from drakkar.handlers import (
    LATER,
    ConfigError,
    Membership,
    Message,
    MessageType,
    RequestDropped,
    raft_handlers,
)
from drakkar.handlers.errors import ReplicaStopped
from drakkar.handlers.raft.ready import Refusal
from drakkar.handlers.testing import Cluster, Violation

from tests.handlers.marks import BEATS, BREAK, MARK, SEEN, WRITE, Marks, table_with_marks


def cluster_of(members=3, **options):
    cluster = Cluster(members, seed=1, handlers=table_with_marks(), **options)
    cluster.elect(1)
    return cluster


def marks(cluster, replica):
    return cluster[replica].extension(Marks).marks


class TestAsking:
    def test_what_a_handler_returns_is_the_answer(self):
        cluster = cluster_of()
        cluster.propose(1, b"x", b"y")
        assert cluster.ask(2, Message(SEEN)) == {"marks": [], "commands": 2}

    def test_an_answer_that_comes_while_messages_are_delivered_is_returned_too(self):
        cluster = cluster_of()
        assert cluster.ask(2, Message(WRITE, payload=b"m")) == cluster[2].log.applied

    def test_without_an_answer_it_is_later_and_comes_to_light_when_it_is_there(self):
        cluster = cluster_of()
        cluster.isolate(1)
        asked = Message(WRITE, payload=b"m")
        assert cluster.ask(1, asked) is LATER
        assert cluster.nodes[1].answers == []
        cluster.heal()
        cluster.tick(3)
        assert [(each.message, each.value) for each in cluster.nodes[1].answers] == [
            (asked, cluster[1].log.applied)
        ]

    def test_an_earlier_answer_to_the_same_message_is_none(self):
        cluster = cluster_of()
        asked = Message(WRITE, payload=b"m")
        assert cluster.ask(1, asked) == cluster[1].log.applied
        cluster.isolate(1)
        asked.payload = b"n"
        assert cluster.ask(1, asked) is LATER

    def test_it_is_dropped_where_no_handler_takes_it(self):
        cluster = cluster_of(Membership((1, 2, 3), observers=(4,)))
        with pytest.raises(
            RequestDropped, match=r"no handler took marks\.break in OBSERVER: only these break"
        ):
            cluster.ask(4, Message(BREAK))

    def test_the_error_of_a_handler_is_raised(self):
        cluster = cluster_of()
        with pytest.raises(ConfigError, match="payload"):
            cluster.ask(1, Message(WRITE, payload="no bytes"))

    @pytest.mark.parametrize("how", ["ask", "tell"])
    def test_only_what_runs_can_be_asked_and_only_of_a_type_of_ones_own(self, how):
        cluster = cluster_of()
        with pytest.raises(ConfigError, match="PROPOSE"):
            getattr(cluster, how)(1, Message(MessageType.PROPOSE))
        cluster.crash(1)
        with pytest.raises(ReplicaStopped, match="replica 1 is down"):
            getattr(cluster, how)(1, Message(SEEN))

    def test_what_is_told_is_not_answered(self):
        cluster = cluster_of()
        assert cluster.tell(3, Message(WRITE, payload=b"m")) is None
        assert marks(cluster, 3) == [b"m"]


class TestWhatHandlersAskFor:
    def test_it_is_kept_at_each_replica(self):
        cluster = cluster_of()
        cluster.tell(1, Message(WRITE, payload=b"m"))
        index = cluster[1].log.applied
        for node in cluster.nodes.values():
            assert node.events == [("marked", index)]
            assert [(told.ref, told.message) for told in node.tells] == [("an actor", b"m")]

    def test_a_timer_is_due_when_its_ticks_have_passed(self):
        cluster = cluster_of()
        cluster.tick(2 * BEATS + 1, 2)
        assert [cluster[replica].extension(Marks).beats for replica in (1, 2)] == [0, 2]

    def test_the_error_of_a_timers_handler_is_raised_at_once(self):
        cluster = cluster_of()
        cluster.tell(1, Message(BREAK, payload="beat"))
        with pytest.raises(LookupError, match="no beat"):
            cluster.tick(BEATS)

    def test_a_veto_is_seen_with_its_text(self):
        cluster = cluster_of()
        cluster.propose(2, b"x", b"forbidden", b"y")
        assert cluster.applied(3) == [b"x", b"y"]
        assert [(each.because, each.text) for each in cluster.nodes[2].dropped] == [
            (Refusal.VETOED, "it is forbidden")
        ]


class TestRecords:
    def test_they_are_delivered_on_all_that_keep_commands(self):
        cluster = cluster_of(Membership((1, 2), observers=(3,), witnesses=(4,)))
        cluster.propose(1, b"a", kind=MARK)
        cluster.tell(2, Message(WRITE, payload=b"b"))
        cluster.tick()
        assert [marks(cluster, replica) for replica in (1, 2, 3)] == [[b"a", b"b"]] * 3
        assert [cluster.applied(replica, MARK) for replica in (1, 3)] == [[b"a", b"b"]] * 2
        assert marks(cluster, 4) == []

    def test_a_restart_makes_extensions_anew_and_replays_the_log(self):
        cluster = cluster_of()
        cluster.propose(1, b"a", b"b", kind=MARK)
        before = cluster[3].extension(Marks)
        cluster.crash(3)
        cluster.restart(3)
        assert cluster[3].extension(Marks) is not before
        assert marks(cluster, 3) == []
        cluster.tick(2)
        assert marks(cluster, 3) == [b"a", b"b"]

    def test_a_snapshot_carries_their_part_to_a_restart_and_to_a_peer(self):
        cluster = cluster_of()
        cluster.crash(3)
        cluster.propose(1, b"a", b"b", kind=MARK)
        cluster.propose(1, b"x")
        cluster.tick()
        for replica in (1, 2):
            cluster.compact(replica)
        cluster.propose(1, b"c", kind=MARK)
        cluster.crash(2)
        cluster.restart(2)
        # Out of its own snapshot, before the log behind it is replayed:
        assert marks(cluster, 2) == [b"a", b"b"]
        cluster.restart(3)
        cluster.tick(3)
        for replica in cluster.nodes:
            assert cluster.ask(replica, Message(SEEN)) == {"marks": [b"a", b"b", b"c"], "commands": 1}
        assert cluster.applied(3, MARK) == [b"c"]  # the rest came with the snapshot of its leader

    def test_their_part_can_be_saved_only_as_it_is_now(self):
        cluster = cluster_of()
        cluster.propose(1, b"a", b"b", kind=MARK)
        with pytest.raises(AssertionError, match=r"take the snapshot there, as by `compact\(replica\)`"):
            cluster.compact(1, cluster[1].log.applied - 1)


class Impatient(Marks):
    def check(self):
        assert not self.waiting, "it waits"


class TestInvariantsOfOnesOwn:
    def test_they_are_checked_after_each_step(self):
        cluster = cluster_of()
        with pytest.raises(Violation, match=r"Marks.check: broken by a hammer"):
            cluster.tell(2, Message(BREAK, payload="a hammer"))

    @pytest.mark.parametrize("how", ["ask", "tell", "step"])
    def test_they_are_checked_before_anything_comes_of_the_step(self, how):
        cluster = Cluster(1, seed=1, handlers=raft_handlers().use(Impatient))
        cluster.elect(1)
        with pytest.raises(Violation, match=r"Impatient.check: it waits"):
            getattr(cluster, how)(1, Message(WRITE, payload=b"m"))

    def test_they_are_checked_after_a_tick(self):
        class Quick(Marks):
            def check(self):
                assert not self.beats

        cluster = Cluster(1, seed=1, handlers=raft_handlers().use(Quick), auto_deliver=False)
        for _ in range(BEATS - 1):
            cluster.nodes[1].tick()
        with pytest.raises(Violation, match=r"Quick\.check"):
            cluster.nodes[1].tick()

    def test_they_are_checked_after_each_delivery_of_a_record(self):
        cluster = cluster_of(1)
        cluster.propose(1, b"a", kind=MARK)
        with pytest.raises(Violation, match=r"Marks.check: a mark came twice"):
            cluster.propose(1, b"a", kind=MARK)
