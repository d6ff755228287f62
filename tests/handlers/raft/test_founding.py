"""How a shard is founded (docs/protocol.md): the one time at which replicas without a past may vote."""

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    Entry,
    EntryKind,
    Life,
    Lives,
    Meeting,
    Membership,
    MemoryLog,
    Message,
    Raft,
    Snapshot,
    Standing,
    State,
)
from drakkar.handlers import MessageType as T
from drakkar.handlers.raft.confchange import initial_log

from tests.handlers.raft.lives_support import FOUNDING, Shard, config, founded


def newborn(members=(1, 2, 3), standing=Standing.NEWBORN, home=10, *, listened=True, **lives):
    """Replica 1 of a shard that begins; it has listened long enough to found with a majority."""
    state, run = initial_log(Membership(members))
    log = MemoryLog([run.entry(1)], state, members, lives=Lives(FOUNDING, standing, **lives))
    raft = Raft(config(1), log, home=home)
    raft.timers.ticks = 20 if listened else 0
    return raft


def sent(raft):
    """What it sends now, with all that it saves saved."""
    ready = raft.ready()
    raft.persisted(ready)
    if ready.committed:
        raft.applied(ready.committed[-1].index)
    return [*ready.messages, *ready.messages_after_save]


def change(shard, type_, replica):
    payload = ConfigChange((Change(type_, replica),)).encode()
    entry = Entry(kind=EntryKind.CONFIG_CHANGE, payload=payload)
    shard.raft(1).step(Message(T.PROPOSE, sender=1, entries=[entry]))
    shard.tick(3)


def answer(raft, sender, *, home=10, lives_at=None, reject=False):
    raft.meet(sender, Life(FOUNDING, lives_at or 10 * sender, Standing.NEWBORN))
    raft.step(Message(T.NEWBORN_RESP, to=1, sender=sender, shard=7, term=1, hint=home, reject=reject))


def test_a_snapshot_of_the_first_membership_is_no_past():
    raft = newborn()
    sent(raft)
    raft.snapshot_taken(Snapshot(1, 1, raft.membership))
    raft.compact(1)
    raft.step(Message(T.NEWBORN, sender=2, to=1, term=1, hint=20))
    (told,) = sent(raft)
    assert not told.reject


def test_a_newborn_asks_the_other_founders_at_once_and_at_each_tick():
    raft = newborn()
    for _ in range(3):
        asked = [(m.type, m.to, m.hint) for m in sent(raft)]
        assert asked == [(T.NEWBORN, 2, 10), (T.NEWBORN, 3, 10)]
        raft.tick()


@pytest.mark.parametrize(
    ("members", "answers", "standing"),
    [
        pytest.param((1,), 0, Standing.FOUNDER, id="alone"),
        pytest.param((1, 2), 0, Standing.NEWBORN, id="none of two"),
        pytest.param((1, 2), 1, Standing.FOUNDER, id="one of two"),
        pytest.param((1, 2, 3), 1, Standing.FOUNDER, id="one of three"),
        pytest.param((1, 2, 3, 4, 5), 1, Standing.NEWBORN, id="one of five"),
        pytest.param((1, 2, 3, 4, 5), 2, Standing.FOUNDER, id="two of five"),
    ],
)
def test_a_majority_that_is_empty_founds(members, answers, standing):
    raft = newborn(members)
    for founder in members[1 : answers + 1]:
        answer(raft, founder)
    assert raft.life.standing is standing
    if standing is Standing.FOUNDER:
        assert raft.lives.own.companions == {f: 10 * f for f in members[1 : answers + 1]}


@pytest.mark.parametrize(
    ("members", "answers", "standing"),
    [
        pytest.param((1,), 0, Standing.FOUNDER, id="alone"),
        pytest.param((1, 2), 1, Standing.FOUNDER, id="all of two"),
        pytest.param((1, 2, 3), 1, Standing.NEWBORN, id="two of three"),
        pytest.param((1, 2, 3), 2, Standing.FOUNDER, id="all of three"),
        pytest.param((1, 2, 3, 4, 5), 3, Standing.NEWBORN, id="four of five"),
    ],
)
def test_only_all_founders_found_at_once(members, answers, standing):
    raft = newborn(members, listened=False)
    for founder in members[1 : answers + 1]:
        answer(raft, founder)
    assert raft.life.standing is standing


def test_a_majority_founds_when_it_has_listened_for_two_election_timeouts():
    raft = newborn(listened=False)
    answer(raft, 2)
    for _ in range(19):
        raft.tick()
        assert raft.life.standing is Standing.NEWBORN
    raft.tick()
    assert raft.life.standing is Standing.FOUNDER


def test_a_founder_that_the_log_places_elsewhere_is_settled_as_a_newborn_is():
    """2 is wiped, and founds with 3, which never heard of the leader; the leader comes back before they do anything."""
    shard = Shard(1, 2, 3, up=(1, 2))
    shard.listen()
    assert shard.elect(1)
    shard.tick(3)
    assert shard.standings() == "SS"
    shard.isolate(1)
    shard.start(3)
    shard.wipe(2)
    shard.listen()
    assert shard.standings() == "SFF"
    home = shard.hosts[2].home
    raft = shard.raft(1)
    shard.heal()
    shard.cut((1, 3))
    raft.tick()
    shard.settle_down()
    assert shard.met[2, 1] is Meeting.WELCOME
    assert 2 in raft.lives.doubted
    written = shard.propose(1)
    assert raft.progress[2].match == written > raft.log.committed
    shard.tick(2)
    assert raft.home_of(2) == home
    assert raft.log.committed < written, "it does not count for the entry that settles it"
    shard.heal()
    shard.tick(5)
    assert shard.standings() == "SSS"
    assert shard.leader() == 1


def test_founders_that_are_wiped_found_no_grown_shard_a_second_time_that_has_a_leader():
    """The third founder was removed, so that none of those that are asked knows better."""
    shard = founded(1, 2, 3)
    for replica in (4, 5, 6):
        shard.join(replica)
        change(shard, ChangeType.ADD_VOTER, replica)
    change(shard, ChangeType.REMOVE, 3)
    shard.stop(3)
    assert shard.elect(4)
    shard.tick(3)
    shard.wipe(1)
    shard.wipe(2)
    shard.cut(*((founder, other) for founder in (1, 2) for other in (4, 5, 6)))
    shard.tick(5)
    assert shard.standings() == "NNSSS"
    shard.heal()
    shard.tick(30)
    assert shard.standings() == "SSSSS"
    assert shard.leader() == 4


def test_all_messages_wait_until_it_is_durable_that_a_replica_is_a_founder():
    raft = newborn()
    sent(raft)
    answer(raft, 2)
    raft.step(Message(T.REQUEST_VOTE, to=1, sender=2, shard=7, term=2, log_index=1, log_term=1))
    ready = raft.ready()
    assert ready.lives == Lives(FOUNDING, Standing.FOUNDER, {2: 20})
    assert ready.must_save
    assert not ready.messages
    assert [(m.type, m.reject) for m in ready.messages_after_save] == [(T.REQUEST_VOTE_RESP, False)]
    raft.step(Message(T.PROPOSE, sender=1))
    assert not raft.ready().messages
    raft.persisted(ready)


def test_an_answer_to_an_earlier_life_does_not_count():
    raft = newborn(home=11)
    answer(raft, 2, home=10)
    answer(raft, 3, home=10, reject=True)
    assert raft.life.standing is Standing.NEWBORN
    answer(raft, 2, home=11)
    assert raft.life.standing is Standing.FOUNDER


def test_the_answer_of_one_that_is_no_founder_does_not_count():
    raft = newborn((1, 2))
    raft.progress[9] = raft.new_progress(9)
    answer(raft, 9)
    assert raft.life.standing is Standing.NEWBORN


@pytest.mark.parametrize("told", ["reject", "settled", "inherited", "leader"])
def test_one_that_knows_more_ends_the_founding_for_this_life(told):
    raft = newborn()
    if told == "reject":
        answer(raft, 3, reject=True)
    elif told == "leader":
        raft.step(Message(T.HEARTBEAT, to=1, sender=3, shard=7, term=2))
    else:
        raft.meet(3, Life(FOUNDING, 30, Standing[told.upper()]))
    answer(raft, 2)
    assert raft.life.standing is Standing.NEWBORN
    sent(raft)
    raft.tick()
    assert not sent(raft)


def test_one_that_was_led_once_founds_no_more():
    raft = newborn()
    raft.step(
        Message(
            T.REPLICATE, to=1, sender=2, shard=7, term=2, log_index=1, log_term=1,
            entries=[Entry(2, 2, EntryKind.NO_OP)],
        )
    )  # fmt: skip
    raft.step(Message(T.REQUEST_VOTE, to=1, sender=3, shard=7, term=3, log_index=1, log_term=1))
    assert not raft.leader_id
    answer(raft, 2)
    assert raft.life.standing is Standing.NEWBORN


@pytest.mark.parametrize(
    ("standing", "term", "index", "companions", "rejects"),
    [
        pytest.param(Standing.NEWBORN, 1, 1, {}, False, id="as empty"),
        pytest.param(Standing.NEWBORN, 4, 1, {}, False, id="as empty, and asked for a vote"),
        pytest.param(Standing.NEWBORN, 1, 1, {3: 30}, False, id="as empty, and said so before"),
        pytest.param(Standing.NEWBORN, 1, 1, {3: 31}, None, id="as empty, but said so to another life of it"),
        pytest.param(Standing.NEWBORN, 2, 2, {}, True, id="led by another"),
        pytest.param(Standing.NEWBORN, 2, 2, {3: 30}, True, id="led by another since it said so"),
        pytest.param(Standing.FOUNDER, 1, 1, {}, False, id="has founded, and done nothing yet"),
        pytest.param(Standing.FOUNDER, 1, 1, {3: 31}, None, id="knew another life of it"),
        pytest.param(Standing.FOUNDER, 2, 1, {}, None, id="may have voted, and does not know"),
        pytest.param(Standing.FOUNDER, 1, 2, {}, True, id="has more than the first entry"),
        pytest.param(Standing.FOUNDER, 2, 2, {3: 30}, False, id="founded with this very life"),
        pytest.param(Standing.SETTLED, 2, 2, {3: 30}, False, id="founded with it, and settled"),
        pytest.param(Standing.SETTLED, 2, 2, {}, True, id="settled"),
        pytest.param(Standing.INHERITED, 1, 1, {}, True, id="of an older version"),
    ],
)
def test_what_a_newborn_is_told(standing, term, index, companions, rejects):
    raft = newborn(standing=standing, companions=companions)
    sent(raft)
    raft.term = term
    if index > 1:
        raft.step(
            Message(
                T.REPLICATE, to=1, sender=2, shard=7, term=raft.term, log_index=1, log_term=1,
                entries=[Entry(2, raft.term, EntryKind.NO_OP)],
            )
        )  # fmt: skip
        sent(raft)
    raft.step(Message(T.NEWBORN, to=1, sender=3, shard=7, term=1, hint=30))
    replies = [(m.to, m.hint, m.reject) for m in sent(raft) if m.type is T.NEWBORN_RESP]
    assert replies == ([] if rejects is None else [(3, 30, rejects)])


@pytest.mark.parametrize("standing", [Standing.NEWBORN, Standing.FOUNDER])
def test_one_that_has_done_nothing_yet_remembers_whom_it_let_in(standing):
    raft = newborn(standing=standing, companions={2: 20})
    sent(raft)
    raft.step(Message(T.NEWBORN, to=1, sender=3, shard=7, term=1, hint=30))
    ready = raft.ready()
    assert ready.lives == Lives(FOUNDING, standing, {2: 20, 3: 30})
    assert not ready.messages


def test_a_newborn_does_not_count_the_word_of_another_life_than_the_one_it_let_in():
    """The first life may have voted since, so that this one shows nothing."""
    raft = newborn(companions={2: 21})
    answer(raft, 2)
    assert raft.life.standing is Standing.NEWBORN
    answer(raft, 3)
    assert raft.lives.own == Lives(FOUNDING, Standing.FOUNDER, {2: 21, 3: 30})


def test_a_founder_that_was_let_in_by_a_newborn_votes_no_second_time_when_it_is_wiped():
    """3 tells the first life of 2 that it is empty too, and founds with 1; then 2 votes for 1."""
    shard = Shard(1, 2, 3)
    shard.raft(3).timers.ticks = 20
    shard.settle_down(lose=lambda m: m.type is T.NEWBORN and (m.sender, m.to) == (3, 2))
    assert shard.standings() == "FFF"
    shard.isolate(3)
    assert shard.elect(1)
    written = shard.propose(1, b"acknowledged")
    assert shard.raft(1).log.committed == written
    shard.heal()
    shard.isolate(1)
    shard.wipe(2)
    shard.settle_down()
    assert shard.raft(2).life.standing is Standing.NEWBORN
    assert not shard.elect(3)


def test_a_pair_is_founded_though_one_of_them_is_wiped_in_the_midst_of_it():
    shard = Shard(1, 2)
    shard.settle_down(keep=(2,))
    assert shard.standings() == "NN"
    shard.wire.clear()
    shard.wipe(2)
    shard.tick(2)
    assert shard.standings() == "FF"


def test_one_that_was_newborn_until_it_settled_founded_nothing():
    """It says of nobody that it was empty with it."""
    shard = Shard(1, 2, 3)
    shard.isolate(3)
    shard.listen()
    assert shard.standings() == "FFN"
    shard.heal()
    shard.raft(3).lives.own = Lives(FOUNDING, Standing.NEWBORN, {2: shard.hosts[2].home})
    assert shard.elect(1)
    shard.tick(3)
    assert shard.raft(3).lives.own == Lives(FOUNDING, Standing.SETTLED)


def test_who_joins_founds_nothing():
    log = MemoryLog(lives=Lives(standing=Standing.NEWBORN))
    raft = Raft(config(4), log, home=40)
    raft.tick()
    assert not sent(raft)
    assert raft.life.standing is Standing.NEWBORN


def test_a_founder_remembers_over_a_restart():
    shard = Shard(1, 2, 3)
    shard.settle_down()
    shard.restart(1)
    assert shard.raft(1).life.standing is Standing.FOUNDER
    assert shard.raft(1).remembers


def test_a_shard_is_founded_though_one_founder_is_down():
    shard = Shard(1, 2, 3, up=(1, 2))
    shard.listen()
    assert shard.elect(1)
    shard.start(3)
    shard.tick(3)
    assert shard.standings() == "SSS"


def test_a_shard_is_founded_though_a_founder_is_wiped_in_the_midst_of_it():
    shard = Shard(1, 2, 3, up=(1, 2))
    shard.listen()
    assert shard.standings() == "FF"
    shard.wipe(2)
    shard.settle_down()
    assert shard.standings() == "FN"
    shard.start(3)
    shard.listen()
    assert shard.standings() == "FFF"
    assert shard.elect(1)
    shard.tick(3)
    assert shard.standings() == "SSS"


def test_founders_that_are_too_few_to_elect_do_not_keep_the_others_from_founding():
    shard = Shard(1, 2, 3, 4, 5, up=(1, 2, 3))
    shard.settle_down(keep=(3,))
    assert shard.standings() == "NNN"
    shard.stop(3)
    for founder in (1, 2):
        other, raft = 3 - founder, shard.raft(founder)
        raft.lives.own = Lives(FOUNDING, Standing.FOUNDER, {other: shard.hosts[other].home})
    assert not shard.elect(1)
    assert shard.raft(2).term > 1
    for late in (3, 4, 5):
        shard.start(late)
    shard.listen()
    assert shard.standings() == "FFFFF"


def test_two_founders_that_are_wiped_one_after_the_other_do_not_vote_twice():
    """Replica 1 voted for 3, and forgot it; 2 knows that it had another life, and tells it."""
    shard = Shard(1, 2, 3)
    shard.settle_down()
    shard.cut((1, 2), (2, 3))
    assert shard.elect(3)
    shard.heal()
    shard.isolate(3)
    shard.wipe(1)
    shard.settle_down()
    assert shard.raft(1).life.standing is Standing.NEWBORN
    assert not shard.elect(2)


def test_a_founder_that_is_wiped_after_the_first_writes_waits_for_a_leader():
    shard = founded(1, 2, 3)
    shard.isolate(1)
    shard.wipe(3)
    shard.settle_down()
    assert shard.raft(3).life.standing is Standing.NEWBORN
    assert shard.raft(3).lives.too_late
    assert shard.raft(3).state is State.FOLLOWER


def test_witnesses_found_as_well():
    shard = Shard(1)
    shard.hosts.clear()
    shard.members = Membership({1, 2}, witnesses={3})
    shard.start(1)
    shard.start(3, is_witness=True)
    shard.listen()
    assert shard.standings() == "FF"
    assert shard.elect(1)
    shard.tick(3)
    assert shard.standings() == "SS"
