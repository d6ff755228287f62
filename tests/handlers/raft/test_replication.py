"""Replication at the leader (thesis §3.5, §3.6, §10.2.1): what it sends, how it finds where logs part, what it commits."""

import pytest
from drakkar.handlers import (
    Entry,
    EntryKind,
    Membership,
    Message,
    MessageType,
    ProgressState,
    Refusal,
    State,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    ack,
    acknowledge_all,
    append,
    become_candidate,
    cluster,
    disk,
    hear,
    heartbeat,
    heartbeat_answer,
    of_type,
    propose,
    rejection,
    replica,
    routes,
    terms_of,
    tick,
    vote,
)

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT
T = MessageType


def leader(**options):
    """Leads term 1; its empty entry 1 is committed, and 2 and 3 have all it has."""
    raft = replica(state=State.LEADER, **options)
    acknowledge_all(raft)
    return raft


def appends(messages):
    """Receiver, entry before, terms of the entries and commit index of each append."""
    return [
        (m.to, (m.log_index, m.log_term), [entry.term for entry in m.entries], m.commit)
        for m in of_type(messages, T.REPLICATE)
    ]


def standing_of(raft, peer):
    """State, match and next of a peer."""
    progress = raft.progress[peer]
    return progress.state, progress.match, progress.next


def disks(*logs, term=None):
    """Logs of replicas 1, 2, 3 … to start a cluster from."""
    everybody = Membership(range(1, len(logs) + 1))
    return {number: disk(terms, term=term, membership=everybody) for number, terms in enumerate(logs, 1)}


def deliver_without(shard, lost):
    """Deliver until the network is quiet, but for one type of message."""
    while shard.network:
        if shard.network[0].type is lost:
            shard.network.popleft()
        else:
            shard.deliver_one()


class TestProposals:
    def test_a_proposal_is_logged_and_sent_at_once_to_all(self):
        """E1, thesis §3.5 and §10.2.1: without waiting for the leader's own disk."""
        raft = leader()
        sent = propose(raft, b"x")
        assert (raft.log.last_index, raft.log.committed) == (2, 1)
        assert appends(sent) == [(2, (1, 1), [1], 1), (3, (1, 1), [1], 1)]

    def test_it_is_committed_when_a_majority_holds_it_and_all_are_told(self):
        """E2, thesis §3.5."""
        raft = leader()
        propose(raft, b"x")
        sent = hear(raft, ack(2, 1, 2))
        assert raft.log.committed == 2
        assert [entry.payload for entry in sent.committed] == [b"x"]
        assert appends(sent) == [(2, (2, 1), [], 2), (3, (2, 1), [], 2)]

    @pytest.mark.parametrize("old", [[], [2], [1, 2], [1]])
    def test_it_commits_all_before_it(self, old):
        """E3, thesis §3.5 and §3.6.2: in order, beginning with what older leaders left."""
        raft = replica(state=State.LEADER, terms=old, term=3)
        given = propose(raft, b"x").committed
        given += acknowledge_all(raft).committed
        assert [entry.term for entry in given] == [*old, 3, 3]
        assert [entry.index for entry in given] == list(range(1, len(old) + 3))

    @pytest.mark.parametrize(
        ("size", "dead", "logged", "committed"),
        [
            pytest.param(3, [], 2, 2, id="all three up"),
            pytest.param(3, [3], 2, 2, id="one of three dead"),
            pytest.param(3, [2, 3], 0, 0, id="two of three dead"),
            pytest.param(4, [3, 4], 0, 0, id="two of four dead"),
            pytest.param(5, [4, 5], 2, 2, id="two of five dead"),
        ],
    )
    @pytest.mark.parametrize("at", [1, 2], ids=["at the leader", "by proxy"])
    def test_a_majority_is_enough_and_necessary(self, size, dead, logged, committed, at):
        """E10, E11."""
        shard = cluster(size)
        for replica_id in dead:
            shard.crash(replica_id)
        shard.elect(1)
        shard.propose(at, b"x")
        assert (shard[1].log.last_index, shard[1].log.committed) == (logged, committed)
        assert shard[1].term == 1
        assert shard.applied(1) == ([b"x"] if committed else [])
        if not committed and at not in dead:
            [dropped] = shard.nodes[at].dropped
            assert dropped.because in {Refusal.CAMPAIGNING, Refusal.NO_LEADER}

    def test_all_replicas_apply_the_same_in_the_same_order(self):
        """E7, across a change of leader."""
        shard = cluster()
        shard.elect(1)
        shard.propose(1, b"a")
        assert shard[1].log.committed == 2
        shard.elect(2)
        shard.propose(2, b"b")
        assert [shard[n].log.committed for n in (1, 2, 3)] == [4, 4, 4]
        assert [shard.applied(n) for n in (1, 2, 3)] == [[b"a", b"b"]] * 3

    def test_an_empty_proposal_changes_nothing(self):
        """Rules of the matrix."""
        raft = leader()
        assert propose(raft) == []
        assert raft.log.last_index == 1

    def test_every_proposer_finds_its_own_proposals_in_the_log(self):
        """`origin` and `key` survive, also where one batch has several of them."""
        raft = leader()
        asked = (
            Entry(payload=b"a", origin=7, key=1),
            Entry(payload=b"b", origin=9, key=4),
            Entry(payload=b"c"),
        )
        hear(raft, Message(T.PROPOSE, entries=asked))
        logged = raft.log.entries(2, 5)
        assert [(e.payload, e.origin, e.key) for e in logged] == [(b"a", 7, 1), (b"b", 9, 4), (b"c", 0, 0)]


class TestCommitting:
    @pytest.mark.parametrize(("index", "committed"), [(1, 0), (2, 0), (3, 3)])
    def test_only_an_entry_of_the_own_term_is_committed_by_counting(self, index, committed):
        """E4, thesis §3.6.2."""
        raft = replica(voters=(1, 2), state=State.LEADER, terms=[1, 2], term=3)
        hear(raft, ack(2, 3, index))
        assert raft.log.committed == committed

    def test_an_older_entry_on_a_majority_can_still_be_replaced(self):
        """BUG-L3 and E8, thesis figure 3.7: so it is not committed before an entry of the new term is."""
        shard = cluster(5)
        shard.elect(1)
        for far in (3, 4, 5):
            shard.cut(1, far)
        shard.propose(1, b"a")
        shard.propose(1, b"b")
        assert shard[1].log.committed == 1
        shard.heal()
        shard.auto_deliver = False
        shard.elect(2)
        deliver_without(shard, T.REPLICATE)
        assert (shard[2].state, shard[2].log.committed) == (State.LEADER, 1)
        shard.auto_deliver = True
        shard.tick(1, 2)
        shard.propose(2, b"c")
        assert [shard[n].log.committed for n in range(1, 6)] == [5] * 5

    def test_the_first_entry_of_the_new_term_commits_what_was_left(self):
        """BUG-L3 and E9: a prefix of old terms does not stop the commit index for ever."""
        shard = cluster(5)
        shard.elect(1)
        for far in (3, 4, 5):
            shard.cut(1, far)
        shard.propose(1, b"a")
        shard.propose(1, b"b")
        shard.heal()
        shard.elect(2)
        assert shard[2].log.committed == 4
        assert [shard.applied(n) for n in range(1, 6)] == [[b"a", b"b"]] * 5

    def test_the_own_copy_counts_once_it_is_durable(self):
        """E12, INV10, thesis §10.2.1."""
        raft = replica(state=State.CANDIDATE, term=1)
        raft.step(vote(2, 1))
        raft.step(Message(T.PROPOSE, entries=(Entry(payload=b"x"),) * 5))
        ready = raft.ready()
        raft.step(ack(2, 1, 6))
        assert (raft.progress[1].match, raft.log.committed) == (0, 0)
        raft.step(Message(T.PROPOSE, entries=(Entry(payload=b"later"),)))
        raft.persisted(ready)
        assert (raft.progress[1].match, raft.progress[1].next, raft.log.committed) == (6, 7, 6)

    def test_what_a_new_leader_had_not_saved_as_follower_does_not_count_either(self):
        """INV10: it won while its disk was slow."""
        raft = replica(voters=(1, 2), term=1)
        raft.step(append(2, 1, (0, 0), [1, 1]))
        slow = raft.ready()
        raft.step(Message(T.ELECTION))
        raft.step(vote(2, 2))
        assert (raft.state, raft.progress[1].match) == (State.LEADER, 0)
        raft.persisted(slow)
        assert raft.progress[1].match == 2

    def test_a_majority_of_others_commits_what_is_not_durable_here(self):
        """Thesis §10.2.1; but it is not applied here before it is (rules of durability)."""
        raft = leader()
        raft.step(Message(T.PROPOSE, entries=(Entry(payload=b"x"),)))
        ready = raft.ready()
        raft.step(ack(2, 1, 2))
        raft.step(ack(3, 1, 2))
        assert raft.log.committed == 2
        assert not raft.ready().committed
        raft.persisted(ready)
        assert [entry.payload for entry in raft.ready().committed] == [b"x"]


class TestFollowersWhoseLogsDiffer:
    LOG = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]

    @pytest.mark.parametrize(
        "log",
        [
            pytest.param(LOG[:9], id="a: lacks the last"),
            pytest.param([1, 1, 1, 4], id="b: lacks many"),
            pytest.param([*LOG, 6], id="c: one too many"),
            pytest.param([*LOG, 7, 7], id="d: two too many"),
            pytest.param([1, 1, 1, 4, 4, 4, 4], id="e: lacks some, has others"),
            pytest.param([1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3], id="f: has many others"),
        ],
    )
    def test_each_comes_to_equal_the_leaders(self, log):
        """E5, thesis figure 3.5 (figure 7 of the paper)."""
        shard = cluster(3, logs=disks(self.LOG, log, [], term=8))
        shard.elect(1)
        shard.propose(1, b"x")
        assert shard[1].state is State.LEADER
        assert [shard.terms(n) for n in (1, 2, 3)] == [[*self.LOG, 9, 9]] * 3
        assert [shard[n].log.committed for n in (1, 2, 3)] == [12] * 3

    def test_each_is_found_to_part_where_it_does_in_one_round(self):
        """E6, etcd's trace of figure 7: hints by term, so at most one more probe for each."""
        old = [1] * 13
        mine = [*old, 4, 4, 5, 5, 6, 6, 6]
        logs = [
            mine,
            [*old, 4, 4, 5, 5, 6, 6],
            [*old, 4],
            [*mine, 6],
            [*old, 4, 4, 5, 5, 6, 7, 7, 7, 7],
            [*old, 4, 4, 4, 4],
            [*old, 2, 2, 2, 3, 3, 3, 3, 3],
        ]
        shard = cluster(7, logs=disks(*logs, term=7))
        shard.elect(1)
        refused = {m.sender for m in of_type(shard.seen, T.REQUEST_VOTE_RESP) if m.reject}
        hints = {m.sender: (m.hint, m.log_term) for m in of_type(shard.seen, T.REPLICATE_RESP) if m.reject}
        probes = {n: [] for n in range(2, 8)}
        for to, previous, terms, _ in appends(shard.seen):
            if terms:
                probes[to].append(previous)
        assert refused == {4, 5}
        assert hints == {2: (19, 6), 3: (14, 4), 5: (18, 6), 6: (17, 4), 7: (20, 3)}
        assert probes == {
            2: [(20, 6), (19, 6)],
            3: [(20, 6), (14, 4)],
            4: [(20, 6)],
            5: [(20, 6), (18, 6)],
            6: [(20, 6), (15, 4)],
            7: [(20, 6), (13, 1)],
        }
        assert [shard.terms(n) for n in range(1, 8)] == [[*mine, 8]] * 7

    @pytest.mark.parametrize(
        ("mine", "its", "probes"),
        [
            pytest.param([1, 1, 4, 4, 4], [1, 1, 2, 2], [5, 2], id="the example in the rules of replication"),
            pytest.param([1, 3, 3], [1, 3, 5, 5, 6], [3, 2], id="its mirror"),
            pytest.param([2] * 40, [1] * 40, [40, 0], id="a term a probe, not an entry a probe"),
            pytest.param([1, 2, 3, 4, 5, 5], [1, 1, 1, 1, 1, 1], [6, 1], id="many terms of ours, one of its"),
        ],
    )
    def test_a_term_costs_one_probe_at_most(self, mine, its, probes):
        shard = cluster(3, logs=disks(mine, its, mine, term=8))
        shard.elect(1)
        assert [m.log_index for m in of_type(shard.seen, T.REPLICATE) if m.to == 2 and m.entries] == probes
        assert shard.terms(2) == [*mine, 9]


class TestAnswers:
    """Leader of log `[1, 1]`, its empty entry at 3; peer 2 was probed with it: match 0, next 3 (E13)."""

    @pytest.mark.parametrize(
        ("answer", "match", "next_", "sent"),
        [
            pytest.param(rejection(2, 2, 3, 3), 0, 3, [], id="a rejection of what was not probed"),
            pytest.param(
                rejection(2, 2, 2, 2), 0, 2, [(2, (1, 1), [1, 2], 0)], id="a rejection of the probe"
            ),
            pytest.param(
                ack(2, 2, 2), 2, 4, [(2, (2, 1), [2], 0)], id="an accept up to the entry before", marks=()
            ),
            pytest.param(ack(2, 2, 0), 0, 4, [(2, (0, 0), [1, 1, 2], 0)], id="an accept of nothing"),
        ],
    )
    def test_the_peer_is_sent_what_it_lacks(self, answer, match, next_, sent):
        raft = replica(state=State.LEADER, terms=[1, 1])
        assert standing_of(raft, 2) == (PROBE, 0, 3)
        got = hear(raft, answer)
        assert appends(got) == sent
        assert standing_of(raft, 2)[1:] == (match, next_)

    def test_an_accept_that_commits_sends_the_commit_index_to_all(self):
        """E13: an accept of 3 in a shard of three."""
        raft = replica(state=State.LEADER, terms=[1, 1])
        sent = appends(hear(raft, ack(2, 2, 3)))
        assert (2, (3, 2), [], 3) in sent
        assert raft.log.committed == 3

    def test_one_from_a_non_member_is_ignored(self):
        """E30."""
        raft = leader()
        assert hear(raft, ack(9, 1, 1), rejection(9, 1, 1, 0), heartbeat_answer(9, 1)) == []
        assert 9 not in raft.progress
        assert raft.faults.total() == 3

    def test_one_for_more_than_was_ever_logged_is_ignored(self):
        """INV12: match <= the leader's last."""
        raft = leader()
        assert hear(raft, ack(2, 1, 9), rejection(2, 1, 9, 9)) == []
        assert standing_of(raft, 2) == (REPLICATE, 1, 2)


class TestWhatAPeerIsSent:
    @pytest.mark.parametrize(("state", "next_"), [(REPLICATE, 6), (PROBE, 2)])
    def test_next_moves_ahead_of_the_answers_only_in_replicate(self, state, next_):
        """E14: three entries, the empty one and a proposal."""
        raft = replica(state=State.LEADER, terms=[1, 1, 1])
        peer = raft.progress[2]
        peer.match = 1
        peer.become_replicate() if state is REPLICATE else peer.become_probe()
        propose(raft, b"x")
        assert peer.next == next_

    def test_replicate_sends_without_waiting(self):
        """E16."""
        raft = leader()
        sent = [len(of_type(propose(raft, b"x"), T.REPLICATE)) for _ in range(10)]
        assert sent == [2] * 10
        assert raft.progress[2].next == 12

    def test_a_peer_that_waits_for_its_snapshot_is_sent_nothing(self):
        """E16."""
        raft = leader()
        raft.progress[2].become_snapshot(1)
        sent = [m for _ in range(10) for m in propose(raft, b"x")]
        assert {m.to for m in sent} == {3}

    def test_probe_sends_once_and_waits(self):
        """E17."""
        raft = leader()
        hear(raft, Message(T.UNREACHABLE, sender=2))
        sent = [m for _ in range(3) for m in propose(raft, b"x") if m.to == 2]
        assert appends(sent) == [(2, (1, 1), [1], 1)]

    @pytest.mark.parametrize(
        ("state", "before", "after"),
        [
            (REPLICATE, (3, 6), (PROBE, 3, 4)),
            (PROBE, (3, 4), (PROBE, 3, 4)),
            (SNAPSHOT, (3, 4), (SNAPSHOT, 3, 4)),
        ],
    )
    def test_a_failed_connection_makes_it_probe_again(self, state, before, after):
        """E15: what was sent ahead may be lost."""
        raft = replica(state=State.LEADER, terms=[1] * 5)
        peer = raft.progress[2]
        peer.match = before[0]
        {
            REPLICATE: peer.become_replicate,
            PROBE: peer.become_probe,
            SNAPSHOT: lambda: peer.become_snapshot(5),
        }[state]()
        peer.next = before[1]
        hear(raft, Message(T.UNREACHABLE, sender=2))
        assert standing_of(raft, 2) == after

    def test_a_late_rejection_does_not_take_back_what_was_accepted(self):
        """E18 and BUG-L2 (er#149, raft.tla#18): next never comes down to match."""
        raft = leader()
        propose(raft, b"a")
        propose(raft, b"b")
        hear(raft, ack(2, 1, 2), Message(T.UNREACHABLE, sender=2))
        assert standing_of(raft, 2) == (PROBE, 2, 3)
        sent = hear(raft, rejection(2, 1, 1, 0), rejection(2, 1, 2, 0))
        assert standing_of(raft, 2)[1:] == (2, 3)
        assert [previous for _, previous, _, _ in appends(sent)] in ([], [(2, 1)])

    @pytest.mark.parametrize("late", [ack(2, 1, 1), ack(2, 1, 0), ack(2, 1, 2)])
    def test_a_late_accept_does_not_lower_match(self, late):
        """BUG-L2 (pso#167), V3."""
        raft = leader()
        for payload in (b"a", b"b"):
            propose(raft, payload)
        hear(raft, ack(2, 1, 3))
        before = standing_of(raft, 2)
        assert hear(raft, late) == []
        assert standing_of(raft, 2) == before == (REPLICATE, 3, 4)

    def test_entries_always_follow_the_one_that_is_named_before_them(self):
        """BUG-L10 (openraft#1795), checked on every append that a lossy network sees."""
        shard = cluster(3, seed=5, max_message_bytes=40, max_inflight_messages=2)
        shard.elect(1)
        shard.faults(loss=0.2, duplication=0.2, reordering=0.3)
        for number in range(40):
            shard.propose(1, b"%d" % number)
            shard.tick()
        sent = [m for m in [*shard.seen, *shard.lost] if m.type == T.REPLICATE and m.entries]
        assert len(sent) > 40
        for message in sent:
            assert [e.index for e in message.entries] == list(
                range(message.log_index + 1, message.log_index + 1 + len(message.entries))
            )
            assert message.log_term or not message.log_index


class TestHeartbeats:
    def test_one_goes_to_every_peer_at_each_interval(self):
        """E21 and E22, thesis §3.4."""
        raft = replica(voters=(1, 2), state=State.LEADER, election_ticks=5)
        assert [len(of_type(tick(raft), T.HEARTBEAT)) for _ in range(10)] == [1] * 10
        raft = replica(state=State.LEADER, heartbeat_ticks=3)
        assert [len(of_type(tick(raft), T.HEARTBEAT)) for _ in range(6)] == [0, 0, 2, 0, 0, 2]

    @pytest.mark.parametrize("state", [State.FOLLOWER, State.PRE_CANDIDATE, State.CANDIDATE])
    def test_only_a_leader_sends_them(self, state):
        """E21."""
        assert hear(replica(state=state, term=1), Message(T.LEADER_HEARTBEAT)) == []

    def test_it_says_committed_only_what_the_peer_is_known_to_hold(self):
        """E20, INV6: so that a peer may rely on it without a check of its log."""
        raft = leader()
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2))
        raft.step(Message(T.LEADER_HEARTBEAT))
        assert {m.to: m.commit for m in of_type(drain(raft), T.HEARTBEAT)} == {2: 2, 3: 1}

    def test_its_answer_makes_a_laggard_be_sent_the_log_again(self):
        """E19."""
        raft = replica(state=State.LEADER)
        hear(raft, ack(3, 1, 1))
        for _ in range(2):
            sent = hear(raft, heartbeat_answer(2, 1))
            assert appends(sent) == [(2, (0, 0), [1], 1)]
        hear(raft, ack(2, 1, 1))
        assert hear(raft, heartbeat_answer(2, 1)) == []

    def test_a_peer_that_lost_nothing_comes_back_to_replicate_without_a_proposal(self):
        """E23 and BUG-S2 (etcd PR10308): an idle shard does not leave a caught-up peer probing."""
        raft = leader()
        hear(raft, Message(T.UNREACHABLE, sender=2))
        assert standing_of(raft, 2) == (PROBE, 1, 2)
        sent = hear(raft, heartbeat_answer(2, 1))
        assert appends(sent) == [(2, (1, 1), [], 1)]
        hear(raft, ack(2, 1, 1))
        assert standing_of(raft, 2) == (REPLICATE, 1, 2)

    def test_every_peer_ends_in_replicate_after_faults_though_nothing_is_proposed(self):
        """BUG-S2, INV26."""
        shard = cluster(3)
        shard.elect(1)
        shard.faults(loss=0.6)
        for number in range(10):
            shard.propose(1, b"%d" % number)
            shard.step(1, Message(T.UNREACHABLE, sender=2 + number % 2))
        shard.heal()
        shard.tick(3)
        assert shard[1].state is State.LEADER
        assert [standing_of(shard[1], peer) for peer in (2, 3)] == [(REPLICATE, 11, 12)] * 2

    def test_a_follower_answers_with_what_came_and_commits_what_it_was_told(self):
        raft = replica(terms=[1, 1], term=1)
        [answer] = hear(raft, heartbeat(2, 1, commit=1, hint=5, hint_high=6))
        assert routes([answer]) == [(T.HEARTBEAT_RESP, 2)]
        assert (answer.hint, answer.hint_high, raft.log.committed, raft.leader_id) == (5, 6, 1, 2)


class TestOptions:
    def test_batched_appends_are_one_message_for_all_that_was_proposed_meanwhile(self):
        """`batch_append` (raft-rs): the host asks for work once for many proposals."""
        raft = leader(batch_append=True)
        for number in range(5):
            raft.step(Message(T.PROPOSE, entries=(Entry(payload=b"%d" % number),)))
        assert appends(drain(raft)) == [(2, (1, 1), [1] * 5, 1), (3, (1, 1), [1] * 5, 1)]

    @pytest.mark.parametrize(("skip", "messages"), [(False, 80), (True, 40)])
    def test_without_commit_broadcasts_a_proposal_takes_one_message_and_one_answer_a_peer(
        self, skip, messages
    ):
        shard = cluster(3, skip_commit_broadcast=skip)
        shard.elect(1)
        shard.tick(3)
        before = len(shard.seen)
        for number in range(10):
            shard.propose(1, b"%d" % number)
        assert len(shard.seen) - before == messages
        shard.tick(3)
        assert shard.applied(3) == [b"%d" % number for number in range(10)], "heartbeats tell of the last one"

    def test_a_new_commit_index_travels_with_the_next_message_where_it_is_not_broadcast(self):
        """`skip_commit_broadcast` (raft-rs)."""
        raft = leader(skip_commit_broadcast=True)
        propose(raft, b"x")
        sent = hear(raft, ack(2, 1, 2))
        assert raft.log.committed == 2
        assert 3 not in {m.to for m in sent}
        assert appends(propose(raft, b"y"))[1] == (3, (2, 1), [1], 2)

    def test_messages_are_cut_to_their_bound_of_bytes(self):
        """Rules of options, `max_message_bytes`: at least one entry always goes. An entry of one byte counts 17."""
        for bound, sizes in [(0, [1] * 5), (34, [2, 2, 1]), (1 << 20, [5])]:
            raft = leader(max_message_bytes=bound)
            sent = appends(propose(raft, *[b"x"] * 5))
            assert [len(terms) for to, _, terms, _ in sent if to == 2] == sizes[:1]
            sent = sent + appends(hear(raft, ack(2, 1, 1 + sizes[0])))
            assert [len(terms) for to, _, terms, _ in sent if to == 2 and terms] == sizes

    def test_a_leader_appends_only_and_never_changes_what_it_has(self):
        """INV2, thesis §3.5: not by any answer, vote or stale append."""
        raft = replica(state=State.LEADER, terms=[1, 2], term=3)
        before = list(raft.log.entries(1, 4))
        hear(
            raft,
            append(2, 2, (0, 0), [2, 2]),
            append(2, 3, (0, 0), [3]),
            rejection(2, 3, 2, 0),
            heartbeat(2, 3),
        )
        assert list(raft.log.entries(1, 4)) == before
        assert (raft.state, terms_of(raft)) == (State.LEADER, [1, 2, 3])


class TestRefusals:
    @pytest.mark.parametrize(
        ("state", "because"),
        [
            (State.FOLLOWER, Refusal.NO_LEADER),
            (State.PRE_CANDIDATE, Refusal.CAMPAIGNING),
            (State.CANDIDATE, Refusal.CAMPAIGNING),
        ],
    )
    def test_a_replica_that_cannot_log_a_proposal_says_so(self, state, because):
        """Dropped requests are reported, and surely have no effect."""
        raft = replica(state=state, term=1)
        asked = (Entry(payload=b"a", origin=7, key=3), Entry(payload=b"b", origin=7, key=4))
        out = hear(raft, Message(T.PROPOSE, entries=asked))
        [dropped] = out.dropped
        assert (dropped.because, dropped.origin, dropped.key, dropped.count) == (because, 7, 3, 2)
        assert raft.log.last_index == 0

    def test_a_leader_that_refuses_a_forwarded_proposal_tells_the_one_who_sent_it_on(self):
        """INV22: the proposer is told, also at another replica."""
        shard = cluster(3)
        shard.elect(1)
        shard[1].transfer.target = 3
        shard.step(2, Message(T.PROPOSE, entries=(Entry(payload=b"a", origin=7, key=3),)))
        [dropped] = shard.nodes[2].dropped
        assert (dropped.because, dropped.origin, dropped.key) == (Refusal.TRANSFERRING, 7, 3)
        assert shard.nodes[1].dropped == []

    def test_a_proposal_is_not_sent_on_twice(self):
        """Two followers that each take the other for the leader would send it round for ever."""
        raft = replica(term=1, leader=3)
        message = Message(T.PROPOSE, sender=2, entries=(Entry(payload=b"a", origin=7, key=3),))
        [refusal] = hear(raft, message)
        assert (refusal.type, refusal.to) == (T.PROPOSE_REFUSED, 2)
        assert (refusal.hint, refusal.hint_high, refusal.log_index, refusal.payload) == (7, 3, 1, "NO_LEADER")

    @pytest.mark.parametrize(("sender", "believed"), [(3, True), (2, True), (9, False)])
    def test_a_refusal_is_believed_of_a_member_and_of_the_leader_that_is_not_known_as_one(
        self, sender, believed
    ):
        """The leader may have been added by a change that is not applied here, or removed in office."""
        raft = replica(term=1, membership=Membership((1, 2), removed=(3,)))
        raft.leader_id = 3
        raft.step(
            Message(
                T.PROPOSE_REFUSED, sender=sender, hint=7, hint_high=3, log_index=1, payload="NOT_A_MEMBER"
            )
        )
        assert [dropped.because for dropped in drain(raft).dropped] == [Refusal.NOT_A_MEMBER] * believed
        assert raft.faults.total() == (not believed)

    def test_a_refusal_of_more_than_can_be_on_its_way_is_counted_and_not_believed(self):
        raft = replica(term=1, leader=3)
        raft.step(Message(T.PROPOSE_REFUSED, sender=3, hint=7, hint_high=3, log_index=1 << 40))
        assert (drain(raft).dropped, raft.faults.total()) == ([], 1)

    def test_a_candidate_keeps_nothing_of_a_proposal(self):
        raft = replica(term=1)
        become_candidate(raft)
        assert [d.because for d in propose(raft, b"x", kind=EntryKind.CONFIG_CHANGE).dropped] == [
            Refusal.CAMPAIGNING
        ]
        assert raft.log.last_index == 0
