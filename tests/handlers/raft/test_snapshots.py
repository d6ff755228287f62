"""Snapshots in the core (thesis chapter 5): when one is sent, whether one is taken, and how its sending ends."""

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    ConfigError,
    EntryKind,
    Membership,
    MemoryLog,
    Message,
    MessageType,
    ProgressState,
    ProtocolViolation,
    Raft,
    RaftConfig,
    Snapshot,
    State,
    Transition,
)
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import (
    FIXED,
    ack,
    acknowledge_all,
    append,
    cluster,
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
    ticks_until_campaign,
)

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT
T = MessageType
ALL = Membership((1, 2, 3))


def snap(index, term, membership=ALL, **fields):
    return Snapshot(index, term, membership, **fields)


def install(sender, term, snapshot):
    return Message(T.INSTALL_SNAPSHOT, sender=sender, term=term, snapshot=snapshot)


def leader(voters=(1, 2), **options):
    """Leads term 12 behind a snapshot of 11; its log is the empty entry 12, which no other replica has."""
    shot = Snapshot(11, 11, Membership(voters))
    return replica(
        voters=voters, state=State.LEADER, term=12, snapshot=shot, membership=shot.membership, **options
    )


def leader_sending(**options):
    """As above, with the snapshot on its way to 2."""
    raft = leader(**options)
    assert routes(hear(raft, rejection(2, 12, 11, 0))) == [(T.INSTALL_SNAPSHOT, 2)]
    return raft


def status(sender=2, **fields):
    return Message(T.SNAPSHOT_STATUS, sender=sender, **fields)


def standing_of(raft, peer):
    progress = raft.progress[peer]
    return progress.state, progress.match, progress.next, progress.pending_snapshot


class TestSending:
    def test_a_peer_that_needs_what_is_compacted_away_is_sent_the_snapshot(self):
        """H1, thesis §5.3."""
        raft = leader()
        [sent] = hear(raft, rejection(2, 12, 11, 0))
        assert (sent.type, sent.to, sent.snapshot.index, sent.term) == (T.INSTALL_SNAPSHOT, 2, 11, 12)
        assert standing_of(raft, 2) == (SNAPSHOT, 0, 1, 11)

    def test_one_that_is_not_heard_of_waits_until_it_is(self):
        """H2 and BUG-S11 (typesense#2821): it needs one, so it must get it once it is there."""
        raft = leader()
        peer = raft.progress[2]
        peer.become_probe()
        assert (peer.next, peer.active) == (1, False)
        assert of_type(propose(raft, b"x"), T.INSTALL_SNAPSHOT, T.REPLICATE) == []
        assert routes(hear(raft, heartbeat_answer(2, 12))) == [(T.INSTALL_SNAPSHOT, 2)]

    def test_nothing_but_heartbeats_goes_to_it_meanwhile(self):
        """H3, INV13."""
        raft = leader_sending()
        sent = propose(raft, b"x") + hear(raft, heartbeat_answer(2, 12)) + tick(raft, 3)
        assert set(routes(sent)) == {(T.HEARTBEAT, 2)}

    def test_a_leader_without_a_snapshot_of_what_it_compacted_says_so_and_goes_on(self):
        raft = leader()
        raft.log.snapshot = Snapshot()
        assert hear(raft, rejection(2, 12, 11, 0)) == []
        assert raft.faults["no snapshot stands in for what was compacted"] == 1

    def test_a_witness_is_sent_no_content(self):
        """Rules of snapshots: index, term and membership are all that it needs."""
        shot = Snapshot(11, 11, Membership((1, 3), witnesses=(2,)), payload=b"secret", size=6)
        raft = replica(state=State.LEADER, term=12, snapshot=shot, membership=shot.membership)
        [sent] = hear(raft, rejection(2, 12, 11, 0))
        assert sent.snapshot == Snapshot(11, 11, shot.membership, witness=True)


class TestHowItEnds:
    def test_it_failed(self):
        """H4 and BUG-S1 (etcd#10225): probing begins again, and with it a new attempt once the peer is heard."""
        raft = leader_sending()
        assert hear(raft, status(reject=True)) == []
        assert standing_of(raft, 2) == (PROBE, 0, 1, 0)
        assert raft.progress[2].paused
        assert routes(hear(raft, heartbeat_answer(2, 12))) == [(T.INSTALL_SNAPSHOT, 2)]

    def test_it_was_delivered(self):
        """H6: the peer's own answer tells more, so nothing is sent before it."""
        raft = leader_sending()
        assert hear(raft, status()) == []
        assert standing_of(raft, 2) == (PROBE, 0, 12, 0)
        assert raft.progress[2].paused
        [sent] = hear(raft, heartbeat_answer(2, 12))
        assert (sent.type, sent.log_index, len(sent.entries)) == (T.REPLICATE, 11, 1)

    def test_the_peers_answer_is_faster_than_any_report(self):
        """H5: entry 12 follows at once."""
        raft = leader_sending()
        sent = hear(raft, ack(2, 12, 11))
        assert standing_of(raft, 2) == (REPLICATE, 11, 13, 0)
        assert [(m.log_index, len(m.entries)) for m in of_type(sent, T.REPLICATE)] == [(11, 1)]
        assert raft.progress[2].inflight.count == 1

    def test_the_peer_then_has_all(self):
        """H7: the snapshot's last entry is the log's last."""
        raft = leader(voters=(1, 2, 3))
        hear(raft, ack(3, 12, 12))
        raft.snapshot_taken(snap(12, 12))
        raft.compact(12)
        hear(raft, rejection(2, 12, 11, 0))
        assert standing_of(raft, 2) == (SNAPSHOT, 0, 1, 12)
        sent = hear(raft, ack(2, 12, 12))
        assert standing_of(raft, 2) == (REPLICATE, 12, 13, 0)
        assert not any(m.entries for m in sent)

    @pytest.mark.parametrize(
        "late", [status(), status(reject=True), status(hint=3), status(hint=1, reject=True)]
    )
    def test_a_report_for_a_peer_that_waits_for_none_is_ignored(self, late):
        """H6, H18."""
        raft = leader_sending()
        hear(raft, ack(2, 12, 12), late)
        tick(raft, 5)
        assert standing_of(raft, 2) == (REPLICATE, 12, 13, 0)

    @pytest.mark.parametrize("failed", [False, True])
    def test_a_delayed_report_comes_into_force_in_its_time(self, failed):
        """Rules of snapshots: 10 ticks for the sender's word, 2 for the receiver's, so that the peer's own may win."""
        raft = leader_sending()
        hear(raft, status(hint=2, reject=failed))
        tick(raft)
        assert raft.progress[2].state is SNAPSHOT
        tick(raft)
        assert standing_of(raft, 2) == (PROBE, 0, 1 if failed else 12, 0)

    def test_a_peer_that_dies_while_it_receives_gets_another_when_it_is_back(self):
        """BUG-S1, V12: at any moment of the transfer."""
        shard = shard_with_a_laggard()
        shard.lost.clear()
        shard.crash(3)
        shard.heal()
        shard.step(1, Message(T.UNREACHABLE, sender=3))
        shard.propose(1, b"x")
        assert shard[1].progress[3].state is SNAPSHOT
        assert of_type(shard.lost, T.INSTALL_SNAPSHOT)
        shard.step(1, status(3, hint=10, reject=True))
        shard.restart(3)
        shard.tick(12)
        assert shard.terms(3) == shard.terms(1)
        assert shard[1].progress[3].state is REPLICATE

    def test_a_peer_whose_answer_was_lost_does_not_stay_paused_in_an_idle_shard(self):
        """BUG-S2 (er#52, etcd PR7042)."""
        shard = shard_with_a_laggard()
        shard.heal()
        shard.cut_one_way(3, 1)
        shard.step(1, Message(T.UNREACHABLE, sender=3))
        shard.propose(1, b"x")
        assert shard[3].log.first_index > 1
        shard.step(1, status(3))
        shard.heal()
        assert shard[1].progress[3].state is PROBE
        shard.tick(2)
        assert standing_of(shard[1], 3)[:2] == (REPLICATE, shard[1].log.last_index)


def shard_with_a_laggard():
    """Replica 3 was cut off, and what it lacks is compacted away at 1 and 2."""
    shard = cluster(3)
    shard.elect(1)
    shard.isolate(3)
    for number in range(5):
        shard.propose(1, b"%d" % number)
    for replica_id in (1, 2):
        shard.compact(replica_id, 6)
    return shard


class TestReceiving:
    def test_a_log_that_ends_before_it_is_replaced(self):
        """Thesis §5.3; the answer says what is held then, and leaves once that is durable."""
        raft = replica(terms=[1, 1], term=1)
        raft.step(install(2, 2, snap(5, 2)))
        ready = raft.ready()
        assert (ready.snapshot.index, ready.messages, ready.must_save) == (5, [], True)
        [answer] = ready.messages_after_save
        assert (answer.type, answer.to, answer.log_index, answer.reject) == (T.REPLICATE_RESP, 2, 5, False)
        log = raft.log
        assert (log.first_index, log.last_index, log.last_term, log.committed) == (6, 5, 2, 5)
        assert raft.leader_id == 2

    def test_entries_that_follow_it_are_taken_in_and_applied_after_it(self):
        """Rules of durability: at most one snapshot outstanding, and it precedes later entries."""
        raft = replica(term=1)
        raft.step(install(2, 1, snap(5, 1)))
        raft.step(append(2, 1, (5, 1), [1, 1], commit=7))
        ready = raft.ready()
        assert (ready.snapshot.index, [e.index for e in ready.entries]) == (5, [6, 7])
        raft.persisted(ready)
        assert not raft.ready().committed
        raft.applied(5)
        assert [e.index for e in raft.ready().committed] == [6, 7]

    @pytest.mark.parametrize(("index", "answered"), [(2, 3), (3, 3)])
    def test_an_old_one_is_answered_with_what_is_committed(self, index, answered):
        """Rules of snapshots: index <= own commit."""
        raft = replica(terms=[1, 1, 1, 1], term=1, commit=3)
        [answer] = hear(raft, install(2, 1, snap(index, 1)))
        assert (answer.log_index, answer.reject, terms_of(raft)) == (answered, False, [1, 1, 1, 1])

    def test_an_old_one_does_not_bring_back_what_was_compacted_away(self):
        """BUG-L1, V3: its entries cannot even be compared any more."""
        raft = replica(term=1)
        hear(raft, install(2, 1, snap(5, 1)), append(2, 1, (5, 1), [1], commit=6))
        [answer] = hear(raft, install(2, 1, snap(3, 1)))
        assert answer.log_index == 6
        assert (raft.log.first_index, raft.log.last_index, raft.log.committed) == (6, 6, 6)

    def test_one_whose_last_entry_is_here_only_moves_the_commit_index(self):
        """H8: no need to throw the log away."""
        raft = replica(terms=[1, 1, 1], term=1)
        raft.step(install(2, 1, snap(2, 1)))
        ready = raft.ready()
        assert ready.snapshot is None
        assert [m.log_index for m in ready.messages_after_save] == [2]
        assert (raft.log.committed, terms_of(raft)) == (2, [1, 1, 1])

    def test_its_membership_is_in_effect_at_once(self):
        """H9: an observer is one; the same again changes nothing."""
        raft = replica(voters=(1, 2), term=1)
        shot = snap(5, 1, Membership((1, 2), observers=(3,)))
        hear(raft, install(2, 1, shot))
        assert (raft.membership, sorted(raft.progress)) == (shot.membership, [1, 2, 3])
        out = hear(raft, install(2, 1, shot))
        assert ([m.log_index for m in out], raft.log.last_index) == ([5], 5)

    def test_the_old_half_of_a_joint_change_comes_with_it(self):
        """H10, and BUG-S5 (er e515a67, rrs#416): a voter of the old half only is a member, and votes there."""
        joint = Membership((2, 3, 4), outgoing=(1, 2, 3))
        raft = replica(term=1, **FIXED)
        raft.step(install(2, 1, snap(5, 1, joint)))
        raft.persisted(raft.ready())
        assert (sorted(raft.progress), raft.electorate) == ([1, 2, 3, 4], ({2, 3, 4}, {1, 2, 3}))
        assert ticks_until_campaign_without_applying(raft) == 0
        raft.applied(5)
        assert ticks_until_campaign(raft) > 0

    def test_no_replica_campaigns_before_it_is_loaded(self):
        """INV18: neither by the clock nor for a transfer."""
        raft = replica(term=1)
        raft.step(install(2, 1, snap(5, 1)))
        raft.persisted(raft.ready())
        raft.step(Message(T.TIMEOUT_NOW, sender=2, term=1))
        raft.step(Message(T.ELECTION))
        assert raft.state is State.FOLLOWER
        raft.applied(5)
        raft.step(Message(T.ELECTION))
        assert raft.state is State.CANDIDATE

    def test_an_observer_that_was_promoted_meanwhile_learns_it(self):
        """H11: same term, same leader."""
        raft = replica(3, voters=(1, 2), observers=(3,), term=1, leader=1)
        hear(raft, install(1, 1, snap(5, 1, ALL)))
        assert (raft.state, raft.term, raft.leader_id) == (State.FOLLOWER, 1, 1)
        assert raft.promotable

    def test_a_voter_that_a_joint_change_demoted_learns_it(self):
        """H12 as etcd has it: with joint changes, voters are demoted."""
        raft = replica(3, term=1, leader=1)
        hear(raft, install(1, 1, snap(5, 1, Membership((1, 2), observers=(3,)))))
        assert (raft.state, raft.promotable) == (State.OBSERVER, False)

    def test_a_new_observer_comes_to_hold_what_the_leader_has(self):
        """H13."""
        shard = cluster(Membership((1, 2), observers=(3,)))
        shard.isolate(3)
        shard.elect(1)
        shard.propose(1, b"x")
        shard.compact(1, 2)
        shard.heal()
        shard.tick(3)
        assert shard[3].state is State.OBSERVER
        assert shard[3].log.committed == shard[1].log.committed == 2

    @pytest.mark.parametrize("type_", [ChangeType.ADD_VOTER, ChangeType.ADD_OBSERVER, ChangeType.ADD_WITNESS])
    @pytest.mark.parametrize("knows", [Membership(), ALL], ids=["no members", "the first members"])
    def test_a_replica_that_joins_takes_one_from_before_it_was_added(self, type_, knows):
        """Else it would be sent that snapshot, and refuse it, until a newer one happens to be taken."""
        shard = cluster(3)
        shard.elect(1)
        shard.propose(1, b"x")
        shard.compact(1, 2)
        shard.add(
            4,
            MemoryLog(membership=knows),
            is_observer=type_ is ChangeType.ADD_OBSERVER,
            is_witness=type_ is ChangeType.ADD_WITNESS,
        )
        change = ConfigChange((Change(type_, 4),))
        shard.propose(1, change.encode(), kind=EntryKind.CONFIG_CHANGE)
        shard.tick(3)
        assert shard[4].log.applied == shard[1].log.committed == 3
        assert shard[4].membership == shard[1].membership
        assert shard[4].state is shard[1].membership.state_of(4)
        assert shard[1].progress[4].state is REPLICATE

    @pytest.mark.parametrize("answer_lost", [False, True])
    def test_the_network_of_a_cluster_reports_what_became_of_one(self, answer_lost):
        """As a transport does; else a peer whose snapshot, or whose answer, was lost would wait for ever."""
        shard = cluster(3)
        shard.elect(1)
        shard.isolate(3)
        shard.propose(1, b"x")
        shard.compact(1, 2)
        shard.heal()
        shard.cut_one_way(3, 1) if answer_lost else shard.cut_one_way(1, 3)
        shard[1].progress[3].active = True
        shard[1].progress[3].become_snapshot(2)
        shard[1].send(Message(T.INSTALL_SNAPSHOT, to=3, snapshot=shard[1].log.snapshot))
        shard.deliver()
        assert standing_of(shard[1], 3)[0] is SNAPSHOT
        shard.heal()
        shard.tick(12)
        assert standing_of(shard[1], 3)[0] is REPLICATE
        assert shard[3].log.applied == 2

    def test_a_replica_that_was_removed_learns_it(self):
        """Rules of snapshots."""
        raft = replica(term=1, **FIXED)
        shot = snap(5, 1, Membership((2, 3), removed=(1,)))
        [answer] = hear(raft, install(2, 1, shot))
        assert (answer.log_index, raft.membership) == (5, shot.membership)
        assert ticks_until_campaign(raft) == 0

    @pytest.mark.parametrize(
        ("shot", "options"),
        [
            pytest.param(snap(5, 1, Membership((2, 3))), {}, id="of a shard without this replica"),
            pytest.param(snap(5, 1, Membership((2, 3), witnesses=(1,))), {}, id="that makes it a witness"),
            pytest.param(
                snap(5, 1), {"voters": (2, 3), "witnesses": (1,)}, id="that makes a witness a voter"
            ),
            pytest.param(snap(5, 9), {}, id="of a term that is not reached"),
        ],
    )
    def test_one_that_cannot_be_right_is_refused_and_counted(self, shot, options):
        """Rules of snapshots; the answer says what is committed, so that the leader is not left waiting."""
        raft = replica(
            **{"term": 1, **options, **({"state": State.WITNESS} if "witnesses" in options else {})}
        )
        before = (raft.state, raft.membership)
        out = hear(raft, install(2, 1, shot))
        assert all((m.log_index, m.reject) == (0, False) for m in out)
        assert (raft.log.last_index, raft.state, raft.membership) == (0, *before)
        assert raft.faults.total() == 1

    @pytest.mark.parametrize("shot", [None, Snapshot(), Snapshot(5, 0, ALL)])
    def test_one_without_content_is_counted(self, shot):
        raft = replica(term=1)
        assert hear(raft, install(2, 1, shot)) == []
        assert raft.faults.total() == 1

    @pytest.mark.parametrize("state", [State.PRE_CANDIDATE, State.CANDIDATE])
    def test_a_candidate_takes_one_from_the_leader_of_its_own_term(self, state):
        """BUG-S6 (ra#607): else a lagging replica campaigns for ever while its snapshots are dropped."""
        raft = replica(state=state, term=3)
        [answer] = hear(raft, install(2, 3, snap(5, 2)))
        assert (raft.state, raft.term, raft.leader_id, raft.log.last_index) == (State.FOLLOWER, 3, 2, 5)
        assert answer.log_index == 5

    @pytest.mark.parametrize("state", list(State))
    def test_one_of_a_newer_term_is_taken_in_every_state(self, state):
        """BUG-S6 (ra 7bf151df): a leader that ignored it stayed behind."""
        roles = {State.OBSERVER: {"observers": (1,)}, State.WITNESS: {"witnesses": (1,)}}.get(state, {})
        voters = (2, 3) if roles else (1, 2, 3)
        raft = replica(state=state, term=3, voters=voters, **roles)
        hear(raft, install(2, 4, snap(5, 4, Membership(voters, **roles))))
        resting = state if roles else State.FOLLOWER
        assert (raft.state, raft.term, raft.leader_id, raft.log.last_index) == (resting, 4, 2, 5)

    def test_a_second_one_before_the_first_is_durable_is_not_taken_for_it(self):
        """BUG-S4 (rrs#417): nor is what follows the second applied before it is loaded."""
        raft = replica(term=1)
        raft.step(install(2, 1, snap(5, 1)))
        first = raft.ready()
        raft.step(install(2, 1, snap(9, 1)))
        raft.step(append(2, 1, (9, 1), [1], commit=10))
        raft.persisted(first)
        assert raft.log.stable < 9
        raft.applied(5)
        assert (raft.log.applied, raft.log.committed, raft.promotable) == (5, 10, False)
        second = raft.ready()
        assert (second.snapshot.index, [e.index for e in second.entries]) == (9, [10])
        raft.persisted(second)
        assert not raft.ready().committed
        raft.applied(9)
        assert [e.index for e in raft.ready().committed] == [10]

    def test_entries_that_were_on_their_way_to_the_disk_before_it_do_not_count_after_it(self):
        """BUG-S4 and BUG-L7: the same indexes stand there again, not yet durable."""
        raft = replica(term=1)
        raft.step(append(2, 1, (0, 0), [1] * 4))
        before = raft.ready()
        raft.step(install(3, 2, snap(2, 2)))
        raft.step(append(3, 2, (2, 2), [2, 2]))
        raft.persisted(before)
        assert raft.log.stable < 3

    def test_a_replica_that_restarts_before_it_is_durable_has_its_old_log(self):
        """BUG-S4, V7."""
        raft = replica(terms=[1, 1], term=1, commit=1)
        raft.step(install(2, 1, snap(5, 1)))
        raft.ready()
        again = Raft(raft.config, raft.log.storage)
        assert (again.log.last_index, again.log.committed, again.membership) == (2, 1, ALL)


def ticks_until_campaign_without_applying(raft, limit=40):
    """As `ticks_until_campaign`, but what it hands out is left undone."""
    for count in range(1, limit + 1):
        raft.tick()
        if raft.state is State.CANDIDATE:
            return count
    return 0


class TestMembershipInSnapshots:
    """BUG-S5: "without, or with the wrong, membership: just after a change; joint state dropped on restore"."""

    @pytest.mark.parametrize("at", range(1, 9))
    def test_a_replica_that_starts_from_a_snapshot_comes_to_the_same_membership(self, at):
        """V8, wherever around the changes it was taken: single, joint, leaving."""
        raft = replica(voters=(1,), state=State.LEADER)
        history = {raft.log.applied: raft.membership}

        def note():
            history.setdefault(raft.log.applied, raft.membership)

        for change in (
            ConfigChange((Change(ChangeType.ADD_OBSERVER, 2),)),
            None,
            ConfigChange(
                (Change(ChangeType.ADD_OBSERVER, 3), Change(ChangeType.ADD_VOTER, 2)), Transition.EXPLICIT
            ),
            None,
            ConfigChange(),
            ConfigChange((Change(ChangeType.REMOVE, 3),)),
            None,
        ):
            if change is None:
                propose(raft, b"x")
            else:
                propose(raft, change.encode(), kind=EntryKind.CONFIG_CHANGE)
            if 2 in raft.progress:
                hear(raft, ack(2, 1, raft.log.last_index))
            note()
        assert sorted(history) == list(range(1, 9))
        assert history[8].everybody == {1, 2}

        log = MemoryLog(raft.log.entries(at + 1, 9), None, None, Snapshot(at, 1, history[at]))
        log.hard_state = type(raft.log.storage.hard_state)(1, 0, 8)
        restored = Raft(RaftConfig(replica_id=1), log)
        assert restored.membership == history[at]
        drain(restored)
        assert restored.membership == raft.membership == history[8]

    def test_what_the_state_machine_loaded_is_in_effect(self):
        """Rules of snapshots, SNAPSHOT_RECEIVED in the core."""
        raft = replica(3, voters=(1, 2), observers=(3,), term=1, leader=1)
        hear(raft, Message(T.SNAPSHOT_RECEIVED, snapshot=snap(5, 1)))
        assert (raft.state, raft.leader_id, sorted(raft.progress)) == (State.FOLLOWER, 1, [1, 2, 3])

    def test_a_late_report_of_loading_does_not_undo_later_changes(self):
        """Else the replica would count a quorum of a membership that is long past."""
        shard = cluster(3)
        shard.elect(1)
        shard.compact(1, 1)
        old = shard[1].log.snapshot
        change = ConfigChange((Change(ChangeType.REMOVE, 3),))
        shard.propose(1, change.encode(), kind=EntryKind.CONFIG_CHANGE)
        shard.step(1, Message(T.SNAPSHOT_RECEIVED, snapshot=old))
        assert sorted(shard[1].membership.voters) == [1, 2]

    def test_what_another_replica_loaded_is_not(self):
        """O3, rules of message types: the core takes SNAPSHOT_RECEIVED from its own host alone."""
        raft = replica(term=1)
        hear(raft, Message(T.SNAPSHOT_RECEIVED, sender=2, snapshot=snap(5, 1, Membership((2, 3)))))
        assert raft.membership == ALL

    def test_a_leader_that_it_does_not_list_steps_down(self):
        """Rules of snapshots: FOLLOWER, no leader."""
        raft = replica(state=State.LEADER)
        hear(raft, Message(T.SNAPSHOT_RECEIVED, snapshot=snap(5, 1, Membership((2, 3)))))
        assert (raft.state, raft.leader_id) == (State.FOLLOWER, 0)

    def test_a_witness_that_it_makes_a_voter_stops(self):
        """Rules of snapshots: a fault."""
        raft = replica(voters=(2, 3), witnesses=(1,), state=State.WITNESS)
        with pytest.raises(ProtocolViolation, match="cannot become FOLLOWER from WITNESS"):
            raft.step(Message(T.SNAPSHOT_RECEIVED, snapshot=snap(5, 1)))


class TestTaking:
    def test_a_snapshot_is_of_what_is_applied(self):
        """INV24."""
        raft = replica(terms=[1, 1, 1], term=1, commit=2)
        drain(raft)
        with pytest.raises(ConfigError, match="snapshot index=3: only entries up to 2 are applied"):
            raft.snapshot_taken(snap(3, 1))
        raft.snapshot_taken(snap(2, 1))
        raft.snapshot_taken(snap(1, 1))
        assert raft.log.snapshot.index == 2, "an older one does not replace it"

    def test_entries_kept_behind_it_spare_a_laggard_the_snapshot(self):
        """Rules of snapshots, `compaction_overhead`: the log may reach back further."""
        raft = replica(state=State.LEADER, terms=[1] * 5, term=2)
        hear(raft, ack(3, 2, 6))
        raft.snapshot_taken(snap(6, 2))
        raft.compact(3)
        [sent, *_] = of_type(hear(raft, rejection(2, 2, 5, 3)), T.REPLICATE, T.INSTALL_SNAPSHOT)
        assert (sent.type, sent.log_index, len(sent.entries)) == (T.REPLICATE, 3, 3)

    def test_a_beat_does_not_break_a_replica_behind_a_snapshot(self):
        raft = replica(term=1)
        hear(raft, install(2, 1, snap(5, 1)))
        hear(raft, heartbeat(2, 1, commit=5))
        assert raft.log.committed == 5
        acknowledge_all(leader())


def test_a_cluster_takes_no_snapshot_with_the_membership_of_a_later_time():
    """BUG-S5 (matrixone PR23281), in the tool that tests are made with."""
    shard = cluster(3)
    shard.elect(1)
    shard.propose(
        1, ConfigChange((Change(ChangeType.ADD_OBSERVER, 4),)).encode(), kind=EntryKind.CONFIG_CHANGE
    )
    with pytest.raises(AssertionError, match=r"membership changes are applied at \[2\]"):
        shard.compact(1, 1)
    shard.compact(1, 2)
    assert shard[1].log.snapshot.membership.observers == {4}
