"""The contract of `Ready` (thesis §10.2.1, rules of durability): what leaves before the write, what after it, and what counts."""

import pytest
from drakkar.handlers import (
    ConfigError,
    Entry,
    EntryKind,
    HandlerTable,
    HardState,
    Membership,
    Message,
    MessageType,
    Raft,
    RaftConfig,
    Snapshot,
    State,
    raft_handlers,
)
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange
from drakkar.handlers.testing import Cluster, drain

from tests.handlers.raft.support import (
    DEFAULTS,
    ack,
    acknowledge_all,
    append,
    campaign,
    cluster,
    disk,
    hear,
    heartbeat,
    heartbeat_answer,
    of_type,
    pre_vote_request,
    propose,
    rejection,
    replica,
    routes,
    terms_of,
    vote,
    vote_request,
)

T = MessageType


def proposal(*payloads):
    return Message(T.PROPOSE, entries=tuple(Entry(payload=payload) for payload in payloads))


def types(messages):
    return [message.type for message in messages]


class TestWhatMayLeaveBeforeTheWrite:
    def test_a_leaders_appends(self):
        """O4, thesis §10.2.1: its disk and its followers' work side by side."""
        raft = leader()
        raft.step(proposal(b"x"))
        ready = raft.ready()
        assert [e.payload for e in ready.entries] == [b"x"]
        assert routes(ready.messages) == [(T.REPLICATE, 2), (T.REPLICATE, 3)]
        assert (ready.messages_after_save, list(ready.committed)) == ([], [])

    def test_heartbeats_and_their_answers(self):
        """Neither acknowledges an entry."""
        raft = leader()
        raft.step(proposal(b"x"))
        raft.step(Message(T.LEADER_HEARTBEAT))
        assert routes(of_type(raft.ready().messages, T.HEARTBEAT)) == [(T.HEARTBEAT, 2), (T.HEARTBEAT, 3)]
        raft = replica(term=1)
        raft.step(append(2, 1, (0, 0), [1]))
        raft.step(heartbeat(2, 1))
        assert types(raft.ready().messages) == [T.HEARTBEAT_RESP]

    def test_snapshots_and_the_call_to_campaign(self):
        raft = leader()
        raft.snapshot_taken(Snapshot(1, 1, raft.membership))
        raft.compact(1)
        raft.step(proposal(b"x"))
        hear(raft, rejection(3, 1, 1, 0))
        raft.step(proposal(b"y"))
        raft.progress[3].become_probe()
        raft.progress[3].next = 1
        raft.step(heartbeat_answer(3, 1))
        assert T.INSTALL_SNAPSHOT in types(raft.ready().messages)
        raft = leader()
        raft.step(Message(T.LEADER_TRANSFER, hint=2))
        assert types(raft.ready().messages) == [T.TIMEOUT_NOW]

    def test_what_is_sent_on_to_the_leader(self):
        raft = replica(term=1, leader=2)
        raft.step(append(2, 1, (0, 0), [1]))
        raft.step(proposal(b"x"))
        raft.step(Message(T.READ_INDEX, hint=1))
        raft.step(Message(T.LEADER_TRANSFER, hint=3))
        assert types(raft.ready().messages) == [T.PROPOSE, T.READ_INDEX, T.LEADER_TRANSFER]


class TestWhatWaitsForTheWrite:
    """INV10: what a crash can forget must not be known to anybody."""

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(append(2, 1, (0, 0), [1]), id="an acknowledgement"),
            pytest.param(append(2, 1, (5, 1)), id="a rejection"),
            pytest.param(append(2, 1), id="an acknowledgement of nothing new"),
            pytest.param(vote_request(2, 1), id="a vote"),
            pytest.param(vote_request(2, 1, hint=0), id="a vote, asked again"),
            pytest.param(pre_vote_request(2, 2), id="a pre-vote"),
            pytest.param(
                Message(T.INSTALL_SNAPSHOT, sender=2, term=1, snapshot=Snapshot(4, 1, Membership((1, 2, 3)))),
                id="a snapshot taken in",
            ),
        ],
    )
    def test_an_answer_that_rests_on_it(self, message):
        raft = replica(term=1)
        raft.step(message)
        ready = raft.ready()
        assert ready.messages == []
        assert len(ready.messages_after_save) == 1

    def test_a_refusal_of_the_vote_too(self):
        """Rules of durability: it may rest on a vote that is not saved yet."""
        raft = replica(term=1)
        raft.step(vote_request(2, 1))
        raft.step(vote_request(3, 1))
        ready = raft.ready()
        assert (ready.hard_state, ready.must_save) == (HardState(1, 2, 0), True)
        assert [(m.to, m.reject) for m in ready.messages_after_save] == [(2, False), (3, True)]
        assert ready.messages == []

    def test_everything_while_a_new_term_is_not_durable(self):
        """Rules of elections: the self vote counts at once, but nothing leaves before durability."""
        raft = replica(voters=(1, 2), term=1)
        raft.step(Message(T.ELECTION))
        first = raft.ready()
        assert (first.messages, types(first.messages_after_save)) == ([], [T.REQUEST_VOTE])
        raft.step(vote(2, 2))
        assert raft.state is State.LEADER
        second = raft.ready()
        assert (second.messages, types(second.messages_after_save)) == ([], [T.REPLICATE])
        raft.persisted(first)
        raft.step(proposal(b"x"))
        raft.step(Message(T.LEADER_HEARTBEAT))
        assert types(raft.ready().messages) == [T.HEARTBEAT], "the term is durable now"

    def test_an_earlier_write_does_not_make_the_term_durable(self):
        """BUG-L7: a report names the write that it completes."""
        raft = replica(voters=(1, 2), term=1)
        raft.step(append(2, 1, (0, 0), [1]))
        earlier = raft.ready()
        raft.step(Message(T.ELECTION))
        raft.ready()
        raft.persisted(earlier)
        raft.step(vote(2, 2))
        assert raft.state is State.LEADER
        assert raft.ready().messages == []

    def test_a_leader_of_one_counts_nothing_before_its_disk_is_done(self):
        """V7: a single replica that answered and then lost it (etcd#13766)."""
        raft = replica(voters=(1,))
        raft.step(Message(T.ELECTION))
        raft.step(proposal(b"x"))
        ready = raft.ready()
        assert (raft.state, raft.log.committed, list(ready.committed)) == (State.LEADER, 0, [])
        raft.persisted(ready)
        ready = raft.ready()
        assert ([e.payload for e in ready.committed], ready.hard_state.commit) == ([b"", b"x"], 2)

    @pytest.mark.parametrize(
        ("saved", "stands", "given"),
        [
            pytest.param((1, 2), (0, 0), [1, 2], id="committed 1-2, all saved before"),
            pytest.param((0, 0), (1, 2), [], id="committed 1-2, saved with this"),
            pytest.param((1, 1), (2, 4), [1], id="committed 1-2, saved 2-4 with this"),
            pytest.param((1, 2), (3, 4), [1, 2], id="committed 1-2, saved 3-4 with this"),
        ],
    )
    def test_an_entry_is_not_applied_before_it_is_durable_here(self, saved, stands, given):
        """O1 and O2: dragonboat applies at once what does not overlap; here that is the only rule."""
        raft = replica(terms=[1] * saved[1], term=1)
        previous = (saved[1], 1 if saved[1] else 0)
        count = stands[1] - stands[0] + 1 if stands[1] else 0
        raft.step(append(2, 1, previous, [1] * count, commit=2))
        ready = raft.ready()
        assert [e.index for e in ready.committed] == given
        assert ready.hard_state.commit == 2
        raft.persisted(ready)
        rest = [e.index for e in raft.ready().committed]
        assert given + rest == [1, 2]

    def test_a_leader_may_be_let_ahead_of_its_disk_a_little(self):
        """`apply_unpersisted_limit` (raft-rs): a majority of others holds it; a follower never is."""
        raft = leader(apply_unpersisted_limit=1)
        raft.step(proposal(b"x", b"y"))
        slow = raft.ready()
        raft.step(ack(2, 1, 3))
        raft.step(ack(3, 1, 3))
        assert [e.payload for e in raft.ready().committed] == [b"x"]
        raft.persisted(slow)
        assert [e.payload for e in raft.ready().committed] == [b"y"]
        raft = replica(term=1, apply_unpersisted_limit=9)
        raft.step(append(2, 1, (0, 0), [1], commit=1))
        assert not raft.ready().committed


class TestHandingOut:
    def test_work_is_handed_out_once(self):
        """`ready` never waits for the batch before."""
        raft = leader()
        raft.step(proposal(b"x"))
        first = raft.ready()
        assert first
        assert not raft.ready()
        raft.step(proposal(b"y"))
        second = raft.ready()
        assert [e.payload for e in second.entries] == [b"y"]
        assert second.number > first.number

    def test_reports_come_in_order_and_cover_what_came_before(self):
        raft = leader()
        readies = []
        for payload in (b"x", b"y", b"z"):
            raft.step(proposal(payload))
            readies.append(raft.ready())
        raft.persisted(readies[1])
        assert raft.progress[1].match == 3
        raft.persisted(readies[2])
        assert raft.progress[1].match == 4

    def test_nothing_is_said_to_be_ready_when_nothing_is(self):
        raft = leader()
        assert not raft.has_ready
        assert not raft.ready()
        raft.step(proposal(b"x"))
        assert raft.has_ready

    @pytest.mark.parametrize(
        ("message", "must_save"),
        [
            pytest.param(heartbeat(2, 1, commit=1), False, id="only the commit index moved"),
            pytest.param(heartbeat(2, 2), True, id="a new term"),
            pytest.param(vote_request(2, 1, 9, 1), True, id="a vote"),
            pytest.param(append(2, 1, (1, 1), [1]), True, id="an entry"),
        ],
    )
    def test_what_has_to_be_flushed(self, message, must_save):
        """Rules of durability: a commit index alone need not be."""
        raft = replica(terms=[1], term=1)
        raft.step(message)
        ready = raft.ready()
        assert ready
        assert ready.must_save is must_save

    def test_the_commit_of_a_membership_change_is_flushed(self):
        """A replica that forgets it may need the vote of one that it has removed, and that has ended since."""
        payload = ConfigChange((Change(ChangeType.REMOVE, 3),)).encode()
        change = Entry(index=2, term=1, kind=EntryKind.CONFIG_CHANGE, payload=payload)
        raft = replica(terms=[1, change], term=1)
        raft.step(heartbeat(2, 1, commit=1))
        assert not raft.ready().must_save
        raft.step(heartbeat(2, 1, commit=2))
        ready = raft.ready()
        assert (ready.hard_state.commit, ready.must_save) == (2, True)

    def test_an_index_that_was_not_handed_out_cannot_be_applied(self):
        """INV7."""
        raft = leader()
        with pytest.raises(ConfigError, match="applied index=2: only entries up to 1 were handed out"):
            raft.applied(2)
        raft.applied(1)
        raft.applied(0)
        assert raft.log.applied == 1

    def test_a_restart_from_what_was_saved_applies_everything_again(self):
        raft = leader()
        propose(raft, b"x")
        acknowledge_all(raft)
        again = Raft(raft.config, raft.log.storage)
        out = drain(again)
        assert [e.payload for e in out.committed] == [b"", b"x"]
        assert (again.term, again.vote, again.state) == (1, 1, State.FOLLOWER)

    def test_a_restarted_replica_hands_out_nothing_that_is_on_disk(self):
        raft = Raft(RaftConfig(replica_id=1), disk([1, 1], commit=1, membership=Membership((1, 2, 3))))
        ready = raft.ready()
        assert (ready.hard_state, list(ready.entries), ready.must_save) == (None, [], False)
        assert [e.index for e in ready.committed] == [1]


class TestWritesThatWereOvertaken:
    """BUG-L7 and O5: after two truncations the same index and term can stand there again, not yet durable (ABA)."""

    def test_a_write_of_the_first_does_not_make_the_second_durable(self):
        """Tail A is overwritten by B, and then A comes again; the disk is still busy with the first A."""
        raft = replica(terms=[1], term=2)
        tail_a = append(2, 2, (1, 1), [2, 2])
        raft.step(tail_a)
        first = raft.ready()
        raft.step(append(3, 3, (1, 1), [3]))
        second = raft.ready()
        raft.step(append(2, 4, (1, 1), [2, 2], commit=3))
        third = raft.ready()
        assert terms_of(raft) == [1, 2, 2]
        raft.persisted(first)
        assert raft.log.stable == 1
        assert not [e for e in raft.ready().committed if e.index > 1]
        raft.persisted(second)
        assert raft.log.stable == 1
        raft.persisted(third)
        assert raft.log.stable == 3
        assert [e.index for e in raft.ready().committed] == [2, 3]

    def test_a_leader_does_not_count_its_own_copy_by_an_old_write(self):
        """BUG-L7 (ra 39490978): it would commit what it can still lose."""
        raft = replica(voters=(1, 2), term=1)
        raft.step(append(2, 1, (0, 0), [1, 1, 1]))
        old = raft.ready()
        raft.step(append(2, 2, (1, 1), [2]))
        newer = raft.ready()
        raft.step(Message(T.ELECTION))
        raft.step(vote(2, 3))
        assert (raft.state, terms_of(raft)) == (State.LEADER, [1, 2, 3])
        own = raft.ready()
        raft.step(ack(2, 3, 3))
        raft.persisted(old)
        assert (raft.progress[1].match, raft.log.committed) == (1, 0)
        raft.persisted(newer)
        assert (raft.progress[1].match, raft.log.committed) == (2, 0)
        raft.persisted(own)
        assert (raft.progress[1].match, raft.log.committed) == (3, 3)

    def test_what_a_leader_saved_in_an_earlier_term_of_its_own_counts_where_it_still_stands(self):
        raft = leader()
        raft.step(proposal(b"x"))
        slow = raft.ready()
        raft.step(heartbeat(2, 2))
        raft.step(Message(T.ELECTION))
        raft.step(vote(2, 3))
        assert (raft.state, raft.progress[1].match) == (State.LEADER, 1)
        raft.persisted(slow)
        assert raft.progress[1].match == 2


class TestUnderSlowDisks:
    @pytest.mark.parametrize("seed", range(5))
    def test_all_that_was_acknowledged_or_voted_survives_a_crash_at_that_moment(self, seed):
        """V7, INV9, INV10: every replica's disk lags by a random number of writes, and crashes lose them."""
        slow = SlowCluster(seed)
        for _ in range(2000):
            slow.do_something()
        assert slow.checked > 20


class SlowCluster:
    """Three replicas whose writes become durable late, and in order; messages leave as `Ready` says."""

    def __init__(self, seed):
        self.shard = Cluster(3, seed=seed, auto_deliver=False, **DEFAULTS)
        self.random = self.shard.random
        self.pending = {n: [] for n in self.shard.nodes}
        self.network = []
        self.checked = 0

    def do_something(self):
        replica_id = self.random.choice([1, 2, 3])
        raft = self.shard[replica_id]
        action = self.random.random()
        if action < 0.01:
            raft.step(Message(T.ELECTION))
        elif action < 0.03:
            raft.step(Message(T.LEADER_HEARTBEAT))
        elif action < 0.1:
            raft.step(proposal(b"x"))
        elif action < 0.65 and self.network:
            message = self.network.pop(self.random.randrange(len(self.network)))
            self.shard[message.to].step(message)
        elif action < 0.99:
            self.save(replica_id)
        else:
            self.pending[replica_id].clear()
            self.shard.restart(replica_id)
        for number in (1, 2, 3):
            self.take(number)

    def take(self, replica_id):
        ready = self.shard[replica_id].ready()
        if ready:
            self.pending[replica_id].append(ready)
            self.network += ready.messages
            durable = self.shard[replica_id].log.storage.hard_state.term
            assert all(message.term <= durable for message in ready.messages)

    def save(self, replica_id):
        if not self.pending[replica_id]:
            return
        ready = self.pending[replica_id].pop(0)
        raft = self.shard[replica_id]
        raft.log.storage.save(ready)
        raft.persisted(ready)
        for message in ready.messages_after_save:
            self.check(raft.log.storage, message)
        self.network += ready.messages_after_save
        if ready.committed:
            raft.applied(ready.committed.runs[-1].last)

    def check(self, stored, message):
        """What this message says is on the disk now."""
        if message.type is T.REPLICATE_RESP and not message.reject:
            self.checked += 1
            assert stored.last_index >= message.log_index
            assert stored.hard_state.term >= message.term
        elif message.type is T.REQUEST_VOTE_RESP and not message.reject:
            self.checked += 1
            assert stored.hard_state.term > message.term or (
                (stored.hard_state.term, stored.hard_state.vote) == (message.term, message.to)
            )
        elif message.type is T.REQUEST_VOTE:
            assert stored.hard_state.term >= message.term


def leader(**options):
    """Leads term 1; its empty entry 1 is committed and applied, and 2 and 3 have it."""
    raft = replica(state=State.LEADER, **options)
    acknowledge_all(raft)
    return raft


class TestAsynchronousMessagesOfUsers:
    def test_a_type_of_ones_own_leaves_at_once(self):
        """What it acknowledges is its user's business."""
        ping = MessageType.define("ready.ping", 1801)
        table: HandlerTable = raft_handlers()
        table.on(ping)(lambda raft, message: raft.reply(message, ping, payload="pong"))
        raft = replica(term=1, handlers=table)
        raft.step(append(2, 1, (0, 0), [1]))
        raft.step(Message(ping, sender=2))
        ready = raft.ready()
        assert [(m.type, m.to, m.term, m.payload) for m in ready.messages] == [(ping, 2, 1, "pong")]

    def test_but_not_before_the_term_that_it_names(self):
        ping = MessageType.define("ready.ping", 1801)
        table = raft_handlers()
        table.on(ping)(lambda raft, message: raft.reply(message, ping))
        raft = replica(term=1, handlers=table)
        raft.step(heartbeat(2, 5))
        raft.step(Message(ping, sender=2))
        assert raft.ready().messages == []


class TestDisruption:
    def test_a_candidate_that_hears_its_leader_while_its_vote_is_being_saved_follows(self):
        """A24: late answers to itself change nothing."""
        raft = replica(term=1)
        raft.step(Message(T.ELECTION))
        saving = raft.ready()
        raft.step(heartbeat(2, 2))
        raft.persisted(saving)
        hear(raft, vote(1, 2))
        assert (raft.state, raft.leader_id, raft.vote, raft.votes) == (State.FOLLOWER, 2, 1, {})

    def test_an_old_acknowledgement_of_its_own_is_ignored(self):
        """A25."""
        raft = leader()
        raft.step(proposal(b"x"))
        raft.ready()
        hear(raft, ack(1, 1, 2))
        assert raft.progress[1].match == 1, "only its disk can say so"

    def test_a_shard_elects_and_commits_with_every_write_reported_late(self):
        shard = cluster(3)
        shard.elect(1)
        shard.propose(1, b"x")
        assert [shard.applied(n) for n in (1, 2, 3)] == [[b"x"]] * 3
        assert campaign(shard[1]) == []
