"""What a leader sends ahead of answers, and what it holds without a commit: bounded, and back to zero when idle."""

import pytest
from drakkar.handlers import (
    Entry,
    EntryKind,
    Message,
    MessageType,
    ProgressState,
    Raft,
    RaftConfig,
    Refusal,
    State,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    ack,
    acknowledge_all,
    campaign,
    cluster,
    disk,
    hear,
    heartbeat,
    heartbeat_answer,
    of_type,
    propose,
    replica,
)

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT
T = MessageType


def leader(**options):
    """Leads term 1; its empty entry 1 is committed, and 2 and 3 have all it has."""
    raft = replica(state=State.LEADER, **options)
    acknowledge_all(raft)
    return raft


def to(peer, messages):
    """The appends to one peer, as their numbers of entries."""
    return [len(m.entries) for m in of_type(messages, T.REPLICATE) if m.to == peer]


class TestTheWindow:
    def test_it_fills_and_then_nothing_is_sent(self):
        """F1, thesis §10.2.1: a message for each proposal, up to `max_inflight_messages`."""
        raft = leader()
        assert [to(2, propose(raft, b"x")) for _ in range(256)] == [[1]] * 256
        assert raft.progress[2].paused
        assert [to(2, propose(raft, b"x")) for _ in range(10)] == [[]] * 10

    def test_while_it_is_full_each_heartbeat_answer_brings_one_empty_append(self):
        """F2: so that the loss of a whole window does not stall the peer."""
        raft = leader(max_inflight_messages=3)
        for _ in range(5):
            propose(raft, b"x")
        for _ in range(4):
            assert to(2, hear(raft, heartbeat_answer(2, 1))) == [0]
            assert raft.progress[2].paused

    def test_an_answer_frees_what_it_covers(self):
        raft = leader(max_inflight_messages=3)
        for _ in range(5):
            propose(raft, b"x")
        sent = hear(raft, ack(2, 1, 3))
        assert sum(to(2, sent)) == 2
        assert raft.progress[2].inflight.indexes == (4, 6)

    def test_it_is_bounded_in_bytes_too(self):
        """F3, etcd's trace: 3 messages, 2048 bytes a message, 9000 bytes in the window."""
        raft = replica(
            state=State.LEADER, max_inflight_messages=3, max_message_bytes=2048, max_inflight_bytes=9000
        )
        raft.progress[2].become_probe()
        probes = []
        for number in range(1, 23):
            probes += to(2, propose(raft, b"x" * (5000 if 11 <= number <= 16 else 1000)))
        assert probes == [2], "the empty entry and the first proposal, then it waits"
        batches = []
        sent = hear(raft, ack(2, 1, 2))
        while sizes := to(2, sent):
            batches.append([size for size in sizes if size])
            last = [m for m in of_type(sent, T.REPLICATE) if m.to == 2 and m.entries][-1]
            sent = hear(raft, ack(2, 1, last.entries[-1].index))
            if raft.progress[2].match == raft.log.last_index:
                break
        assert batches == [[2, 2, 2], [2, 1, 1], [1, 1], [1, 1], [1, 2, 2], [2]]

    def test_a_capacity_of_zero_pauses_a_peer_until_it_is_raised(self):
        """F7 (raft-rs)."""
        raft = leader()
        raft.progress[2].inflight.max_messages = 0
        assert to(2, propose(raft, b"x")) == []
        raft.progress[2].inflight.max_messages = 2
        assert to(2, propose(raft, b"y")) == [2]

    @pytest.mark.parametrize(
        "event",
        [
            pytest.param(Message(T.UNREACHABLE, sender=2), id="the connection fails"),
            pytest.param(heartbeat(2, 2), id="another leads"),
        ],
    )
    def test_no_place_in_it_stays_taken_after_the_state_changed(self, event):
        """BUG-N5 (er e419ba5): in-flight bytes that were not zeroed refused for ever."""
        raft = leader(max_inflight_messages=2, max_message_bytes=1, max_inflight_bytes=10)
        for _ in range(3):
            propose(raft, b"x")
        assert raft.progress[2].inflight.full
        hear(raft, event)
        inflight = raft.progress[2].inflight
        assert (inflight.count, inflight.bytes) == (0, 0)

    def test_a_slow_follower_whose_entries_are_compacted_away_gets_a_snapshot_and_then_entries(self):
        """F9: window 2, some messages lost, the log compacted beyond what the peer has."""
        shard = cluster(3, max_inflight_messages=2)
        shard.elect(1)
        shard.propose(1, b"0")
        shard.cut(1, 3)
        for number in range(1, 6):
            shard.propose(1, b"%d" % number)
        peer = shard[1].progress[3]
        assert (peer.state, peer.inflight.full, peer.next) == (REPLICATE, True, 5)
        shard.compact(1, 4)
        shard.heal()
        shard.seen.clear()
        shard.tick(3)
        kinds = [
            m.type
            for m in shard.seen
            if 3 in {m.to, m.sender} and m.type not in (T.HEARTBEAT, T.HEARTBEAT_RESP)
        ]
        assert kinds[:4] == [T.REPLICATE, T.REPLICATE_RESP, T.INSTALL_SNAPSHOT, T.REPLICATE_RESP]
        assert (peer.state, peer.match) == (REPLICATE, 7)
        assert shard[3].log.last_index == 7

    def test_no_append_goes_out_behind_an_entry_whose_term_is_gone(self):
        """BUG-L8 (er 76f1249): with term 0 it would match nothing, or anything; the peer needs a snapshot."""
        shard = cluster(3, max_inflight_messages=1)
        shard.elect(1)
        shard.cut(1, 3)
        for number in range(6):
            shard.propose(1, b"%d" % number)
        assert shard[1].progress[3].inflight.full
        shard.compact(1, 6)
        shard.heal()
        shard.seen.clear()
        shard.tick(1)
        appends = of_type(shard.seen, T.REPLICATE)
        assert all(m.log_term or not m.log_index for m in appends)
        shard.tick(2)
        assert shard.terms(3) == shard.terms(1)
        assert shard[1].progress[3].match == 7


class TestUncommittedBytes:
    """`max_uncommitted_bytes` (rules of replication): payloads that this leader logged and that are not applied yet."""

    def test_it_bounds_the_log_of_a_leader_that_cannot_commit(self):
        """F5: a single voter whose disk stands still."""
        raft = Raft(
            RaftConfig(replica_id=1, max_uncommitted_bytes=16 * 4, pre_vote=False), disk(membership={1: ""})
        )
        campaign(raft)
        assert raft.state is State.LEADER
        for _ in range(1024):
            raft.step(Message(T.PROPOSE, entries=(Entry(payload=b"four"),)))
        ready = raft.ready()
        assert raft.log.last_index == 1 + 16
        assert [dropped.because for dropped in ready.dropped] == [Refusal.TOO_MANY_UNCOMMITTED] * 1008
        raft.persisted(ready)
        drain(raft)
        assert raft.uncommitted_bytes == 0
        assert raft.log.applied == 17
        assert propose(raft, b"four").dropped == []

    @pytest.mark.parametrize(
        ("held", "size", "taken"),
        [
            pytest.param(b"", b"x" * 99, True, id="an empty tail takes any size"),
            pytest.param(b"x" * 9, b"x", True, id="up to the bound"),
            pytest.param(b"x" * 9, b"xx", False, id="beyond it"),
            pytest.param(b"x" * 99, b"", True, id="nothing always fits"),
        ],
    )
    def test_what_is_refused(self, held, size, taken):
        """Rules of replication."""
        raft = leader(max_uncommitted_bytes=10)
        propose(raft, held)
        assert (propose(raft, size).dropped == []) is taken

    def test_a_new_term_begins_with_nothing_held(self):
        """F6 (raft-rs): neither where the leadership was lost nor where it was won."""
        raft = leader(max_uncommitted_bytes=10)
        propose(raft, b"x" * 10)
        hear(raft, heartbeat(2, 2))
        assert raft.uncommitted_bytes == 0
        shard = cluster(3, max_uncommitted_bytes=10)
        shard.elect(1)
        shard.isolate(1)
        shard.propose(1, b"x" * 10)
        shard.elect(2)
        shard.heal()
        shard.tick()
        shard.propose(2, b"y" * 10)
        assert shard.applied(2) == [b"y" * 10]
        assert [shard[n].uncommitted_bytes for n in (1, 2, 3)] == [0, 0, 0]

    @pytest.mark.parametrize("kind", [EntryKind.COMMAND, EntryKind.CONFIG_CHANGE])
    def test_nothing_stays_counted_when_all_is_applied(self, kind):
        """BUG-N5 (er a370b6f): also not the content of a membership change that was logged as an empty entry."""
        raft = leader(max_uncommitted_bytes=1000)
        propose(raft, b"one", kind=EntryKind.CONFIG_CHANGE)
        for _ in range(5):
            propose(raft, b"two", kind=kind)
            acknowledge_all(raft)
        assert raft.log.applied == raft.log.last_index == 7
        assert raft.uncommitted_bytes == 0

    def test_entries_of_older_terms_that_are_applied_do_not_make_room(self):
        """Subtraction stops at zero."""
        raft = replica(state=State.LEADER, terms=[1] * 9, max_uncommitted_bytes=4)
        propose(raft, b"four")
        acknowledge_all(raft)
        assert (raft.log.applied, raft.uncommitted_bytes) == (11, 0)


class TestForwarding:
    def test_a_follower_sends_a_proposal_on(self):
        """F8: one message to its leader."""
        raft = replica(term=1, leader=3)
        [sent] = propose(raft, b"x")
        assert (sent.type, sent.to, sent.term, [e.payload for e in sent.entries]) == (T.PROPOSE, 3, 0, [b"x"])

    def test_unless_it_was_told_not_to(self):
        """F8: dropped, and nothing sent."""
        raft = replica(term=1, leader=3, disable_proposal_forwarding=True)
        out = propose(raft, b"x")
        assert out == []
        assert [dropped.because for dropped in out.dropped] == [Refusal.FORWARDING_DISABLED]
