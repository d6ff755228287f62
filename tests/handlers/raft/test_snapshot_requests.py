"""A replica asks its leader for a snapshot, though the log would do (raft-rs; rules of snapshots, H21 and H22)."""

import pytest
from drakkar.handlers import (
    Message,
    MessageType,
    ProgressState,
    Snapshot,
    State,
)
from drakkar.handlers.errors import RequestDropped

from tests.handlers.raft.support import (
    ack,
    acknowledge_all,
    append,
    campaign,
    cluster,
    hear,
    heartbeat,
    heartbeat_answer,
    install,
    of_type,
    propose,
    replica,
    routes,
    terms_of,
    tick,
)

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT
T = MessageType
BATCHED = pytest.mark.parametrize("batch_append", [False, True], ids=["", "batched"])


def shard_at(commit, **options):
    """Three replicas; 1 leads, and all of them have applied `commit` entries of term 1."""
    shard = cluster(3, **options)
    shard.elect(1)
    while shard[1].log.committed < commit:
        shard.propose(1, b"x")
    assert [shard[each].log.applied for each in (1, 2, 3)] == [commit] * 3
    return shard


def take_snapshot(raft):
    index = raft.log.applied
    raft.snapshot_taken(Snapshot(index, raft.log.term(index), raft.membership))


def asking(**options):
    """2 follows 1 in term 1, holds five entries of which three are committed, and has asked for a snapshot."""
    raft = replica(2, terms=[1] * 5, leader=1, **options)
    hear(raft, heartbeat(1, 1, commit=3))
    raft.request_snapshot()
    return raft


def request(index=5, committed=3, sender=2):
    """What such a replica says."""
    return Message(
        T.SNAPSHOT_REQUEST,
        sender=sender,
        term=1,
        commit=committed,
        log_index=index,
        log_term=1,
        hint=index,
    )


def leader(entries=5, **options):
    """1 leads term 1, and has applied all of its entries, which 2 and 3 hold as well."""
    raft = replica(state=State.LEADER, **options)
    for _ in range(entries - 1):
        propose(raft, b"x")
    acknowledge_all(raft)
    acknowledge_all(raft)
    assert raft.log.applied == entries
    return raft


# -- the story -----------------------------------------------------------------------------------------------------------


@BATCHED
def test_a_follower_that_asks_gets_a_snapshot_and_then_entries_again(batch_append):
    """H21."""
    shard = shard_at(15, batch_append=batch_append)
    take_snapshot(shard[1])
    loaded = []
    disk = shard[2].log.storage
    save = disk.save
    disk.save = lambda ready: (loaded.extend([ready.snapshot.index] if ready.snapshot else []), save(ready))
    shard[2].request_snapshot()
    shard.deliver()
    shard.propose(1, b"y")
    assert loaded == [15]
    assert (shard[1].log.committed, shard[2].log.committed) == (16, 15)
    assert shard[1].progress[2].state is SNAPSHOT
    shard.step(1, Message(T.SNAPSHOT_STATUS, sender=2))
    assert shard[1].progress[2].state is PROBE
    shard.tick()
    shard.propose(1, b"z")
    shard.tick()
    assert (shard[1].log.committed, shard[2].log.committed) == (17, 17)
    assert shard[1].progress[2].state is REPLICATE
    assert loaded == [15]


@BATCHED
def test_the_leader_waits_for_a_snapshot_that_reaches_far_enough(batch_append):
    """raft-rs' case of a snapshot that is not there yet: nothing else is of use to the peer meanwhile."""
    shard = shard_at(10, batch_append=batch_append)
    take_snapshot(shard[1])
    shard.propose(1, b"y")
    shard[2].request_snapshot()
    shard.tick(3)
    shard.propose(1, b"z")
    assert shard[1].snapshot_wanted == 11
    assert shard[2].log.last_index == 11
    assert of_type(shard.seen, T.INSTALL_SNAPSHOT) == []
    take_snapshot(shard[1])
    shard.deliver()
    assert shard[1].snapshot_wanted == 0
    shard.tick(2)
    assert (shard[2].requested_snapshot, shard[2].log.first_index, shard[2].log.committed) == (0, 13, 12)


def test_a_snapshot_that_is_lost_is_sent_again():
    shard = shard_at(5)
    take_snapshot(shard[1])
    shard.cut(1, 2)
    shard.step(1, request(5, 5))
    assert shard[1].progress[2].state is SNAPSHOT
    shard.heal()
    shard[2].request_snapshot()
    shard.tick(25)  # the reports of its failure, and of the next one's delivery, are waited for
    assert (shard[2].log.first_index, shard[2].requested_snapshot) == (6, 0)
    assert shard[1].progress[2].state is REPLICATE


def test_two_voters_do_not_wait_for_each_other():
    """A snapshot up to the last entry wants its commit, and that the word of the very replica that asks."""
    shard = cluster(2)
    shard.elect(1)
    shard.tick()
    shard.cut_one_way(2, 1)
    shard.propose(1, b"x")
    assert (shard[1].log.committed, shard[2].log.last_index) == (1, 2)
    shard[2].request_snapshot()
    shard.heal()
    shard.tick()
    assert shard[1].log.committed == 2
    take_snapshot(shard[1])
    shard.tick(15)
    assert (shard[2].log.first_index, shard[2].log.committed) == (3, 2)


# -- who asks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "role", [{}, {"voters": (1, 3), "observers": (2,)}, {"voters": (1, 3), "witnesses": (2,)}]
)
def test_the_request_says_what_is_held(role):
    raft = asking(**role)
    (sent,) = hear(raft)
    assert (sent.type, sent.to, sent.term) == (T.SNAPSHOT_REQUEST, 1, 1)
    assert (sent.log_index, sent.log_term, sent.commit, sent.hint) == (5, 1, 3, 5)


def test_each_answer_repeats_the_request_and_no_entry_is_taken_in():
    """Rules of the matrix. An entry that was taken in and acknowledged would be dropped with the log."""
    raft = asking()
    (first,) = hear(raft)
    assert hear(raft, append(1, 1, (5, 1), [1, 1], commit=5)) == [first]
    (second,) = hear(raft, heartbeat(1, 1, commit=4, hint=7))
    assert (second.type, second.hint, second.commit) == (T.SNAPSHOT_REQUEST, 5, 4)
    assert (raft.log.last_index, raft.log.committed) == (5, 4)


def test_to_ask_again_changes_nothing():
    raft = asking()
    assert len(hear(raft)) == 1
    raft.request_snapshot()
    assert hear(raft) == []


@pytest.mark.parametrize(
    ("raft", "why"),
    [
        pytest.param(leader, "it leads", id="a leader"),
        pytest.param(lambda: replica(2, terms=[1]), "no leader is known", id="without a leader"),
        pytest.param(lambda: replica(2, terms=[1], term=2, leader=1), "leader's term 2", id="an old log"),
        pytest.param(lambda: replica(2, term=1, leader=1), "leader's term 1", id="no log"),
    ],
)
def test_where_it_cannot_be_asked_for_the_reason_is_told(raft, why):
    raft = raft()
    with pytest.raises(RequestDropped, match=why):
        raft.request_snapshot()
    assert (hear(raft), raft.requested_snapshot) == ([], 0)


def test_not_while_another_snapshot_is_not_loaded():
    raft = replica(2, term=1, leader=1)
    raft.step(install(1, 1, (5, 1)))
    with pytest.raises(RequestDropped, match="the snapshot of 5 is not loaded yet"):
        raft.request_snapshot()


# -- what comes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [3, 5], ids=["beyond the commit index", "at the commit index"])
def test_what_was_asked_for_replaces_a_log_that_has_it_all(committed):
    """Rules of snapshots: no fast-forward. The commit index does not fall."""
    raft = asking()
    hear(raft, heartbeat(1, 1, commit=committed))
    raft.step(install(1, 1, (5, 1)))
    ready = raft.ready()
    assert ready.snapshot.index == 5
    assert (raft.log.first_index, raft.log.committed, raft.requested_snapshot) == (6, 5, 0)
    raft.persisted(ready)
    raft.applied(5)
    (answer,) = ready.messages_after_save[-1:]
    assert (answer.type, answer.reject, answer.log_index) == (T.REPLICATE_RESP, False, 5)
    (accept,) = hear(raft, append(1, 1, (5, 1), [1], commit=6))
    assert (accept.reject, accept.log_index, raft.log.applied) == (False, 6, 6)


@pytest.mark.parametrize("index", [2, 3, 4], ids=["old", "at the commit index", "beyond it"])
def test_a_snapshot_that_ends_before_what_is_held_drops_no_entry(index):
    """It may have been acknowledged, and be committed by that: without it a majority could elect another leader."""
    raft = asking()
    hear(raft, install(1, 1, (index, 1)))
    assert (raft.log.first_index, terms_of(raft), raft.log.committed) == (1, [1] * 5, max(3, index))
    assert raft.requested_snapshot == 5


@pytest.mark.parametrize(
    ("event", "kept"),
    [
        pytest.param(campaign, False, id="it asks for pre-votes or votes"),
        pytest.param(
            lambda raft: hear(raft, Message(T.TIMEOUT_NOW, sender=1, term=1)), False, id="it is asked to"
        ),
        pytest.param(lambda raft: hear(raft, heartbeat(3, 2)), False, id="a new term"),
        pytest.param(lambda raft: raft.become_follower(1, 0), True, id="a follower of the same term"),
        pytest.param(lambda raft: raft.forget_leader(), True, id="it forgets its leader"),
    ],
)
@pytest.mark.parametrize("pre_vote", [False, True])
def test_what_ends_a_request(event, kept, pre_vote):
    """H22."""
    raft = asking(pre_vote=pre_vote)
    event(raft)
    assert bool(raft.requested_snapshot) is kept


# -- at the leader -------------------------------------------------------------------------------------------------------


def test_a_request_is_no_rejection():
    """What the peer holds counts, and `next` falls no further than to what was sent ahead and not taken in."""
    raft = leader(6)
    propose(raft, b"in vain")
    peer = raft.progress[2]
    assert (peer.state, peer.match, peer.next) == (REPLICATE, 6, 8)
    assert hear(raft, request(6, 3)) == []
    assert (peer.state, peer.match, peer.next, peer.requested_snapshot) == (PROBE, 6, 7, 6)
    assert [
        message for message in propose(raft, b"y") + tick(raft) if message.to == 2 and message.entries
    ] == []


def test_what_the_peer_holds_counts_for_the_commit():
    raft = leader(2, voters=(1, 2))
    propose(raft, b"x")
    assert raft.log.committed == 2
    hear(raft, request(3, 2))
    assert raft.log.committed == 3


@pytest.mark.parametrize(
    "answer", [heartbeat_answer(2, 1), ack(2, 1, 5)], ids=["to a heartbeat", "to an append"]
)
def test_an_answer_without_the_request_takes_it_back(answer):
    """A replica that has campaigned in vain asks no more, and must not be starved of entries."""
    raft = leader()
    hear(raft, request())
    hear(raft, answer)
    assert raft.progress[2].requested_snapshot == 0
    sent = of_type(propose(raft, b"x"), T.REPLICATE)
    assert [len(message.entries) for message in sent if message.to == 2] == [1]


@pytest.mark.parametrize("failed", [False, True])
def test_how_the_sending_ended_clears_the_request(failed):
    """Rules of the matrix: a peer that still wants one says so with its next answer."""
    raft = leader()
    take_snapshot(raft)
    assert routes(hear(raft, request())) == [(T.INSTALL_SNAPSHOT, 2)]
    assert hear(raft, request()) == [], "it is on its way"
    hear(raft, Message(T.SNAPSHOT_STATUS, sender=2, reject=failed))
    assert (raft.progress[2].state, raft.progress[2].requested_snapshot) == (PROBE, 0)
    assert routes(hear(raft, request())) == [(T.INSTALL_SNAPSHOT, 2)]


def test_a_snapshot_on_its_way_that_is_too_old_is_followed_by_another():
    raft = leader(5)
    take_snapshot(raft)
    hear(raft, request(5, 5))
    propose(raft, b"x")
    hear(raft, ack(3, 1, 6), request(6, 5))
    assert (raft.progress[2].pending_snapshot, raft.snapshot_wanted) == (5, 6)
    hear(raft, Message(T.SNAPSHOT_STATUS, sender=2))
    assert raft.progress[2].requested_snapshot == 0
    assert hear(raft, request(6, 6)) == []
    take_snapshot(raft)
    assert routes(hear(raft)) == [(T.INSTALL_SNAPSHOT, 2)]


@pytest.mark.parametrize("wrong", [{"hint": 9}, {"hint": 0}, {"log_index": 9}])
def test_a_request_of_what_was_never_sent_is_counted(wrong):
    raft = leader()
    message = request()
    for name, value in wrong.items():
        setattr(message, name, value)
    assert hear(raft, message) == []
    assert raft.faults.total() == 1
    assert raft.progress[2].requested_snapshot == 0


def test_what_is_claimed_of_an_older_term_is_no_acknowledgement():
    raft = replica(terms=[1, 1, 1], state=State.LEADER, term=2)
    message = request(3, 0)
    message.term = 2
    hear(raft, message)
    assert (raft.progress[2].match, raft.progress[2].requested_snapshot) == (0, 3)
