"""Where a replica lives (docs/protocol.md): what may be believed of one that starts empty."""

from dataclasses import replace

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    EntriesNotLoaded,
    Entry,
    EntryKind,
    HardState,
    Life,
    Lives,
    Meeting,
    Membership,
    MemoryLog,
    Message,
    Progress,
    Raft,
    Refusal,
    Snapshot,
    Standing,
    State,
    Transition,
)
from drakkar.handlers import MessageType as T
from drakkar.handlers.raft.confchange import decide, initial_log
from drakkar.handlers.raft.lives import encode_settled

from tests.handlers.raft.lives_support import FOUNDING, Shard, config, founded

ADD, OBSERVE, REMOVE = ChangeType.ADD_VOTER, ChangeType.ADD_OBSERVER, ChangeType.REMOVE


def change(shard, leader, *changes, transition=Transition.AUTO):
    """Propose a change of the membership, several jointly, none to leave; return why it was refused, if it was."""
    payload = ConfigChange(tuple(Change(*one) for one in changes), transition, forced=True).encode()
    entry = Entry(kind=EntryKind.CONFIG_CHANGE, payload=payload)
    raft = shard.raft(leader)
    raft.step(Message(T.PROPOSE, sender=leader, entries=(entry,)))
    refused = list(raft.outbox.dropped)
    shard.settle_down()
    return refused


def committed(shard, replica):
    return shard.raft(replica).log.committed


# -- a wiped replica -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [(1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5)], ids=len)
def test_a_wiped_replica_is_settled_by_the_others_and_counts_again(members):
    shard = founded(*members)
    index = shard.propose(1)
    last = members[-1]
    shard.wipe(last)
    shard.settle_down()
    assert shard.standings() == "S" * (len(members) - 1) + "N"
    shard.tick(3)
    assert shard.standings() == "S" * len(members)
    assert shard.raft(1).membership.homes[last] == shard.hosts[last].home
    assert committed(shard, last) >= index
    for other in members[1 : -(len(members) // 2)]:
        shard.isolate(other)
    assert shard.propose(1) == committed(shard, 1)


def test_a_newborn_tells_its_term_to_a_candidate_of_an_older_one():
    """It never campaigns, so the candidate would hear of it in no other way."""
    shard = founded(1, 2)
    shard.isolate(2)
    raft = shard.wipe(2)
    raft.step(Message(T.REQUEST_VOTE, to=2, sender=9, shard=7, term=20))
    shard.wire.clear()
    raft.step(Message(T.REQUEST_VOTE, to=2, sender=1, shard=7, term=9))
    shard.work(2)
    assert (T.REQUEST_VOTE_RESP, 1, 20, True) in [(m.type, m.to, m.term, m.reject) for _, m in shard.wire]


def test_a_newborn_that_is_greeted_is_settled_without_waiting_for_a_heartbeat():
    shard = founded(1, 2, 3, greetings=True)
    shard.wipe(3)
    shard.settle_down()
    assert shard.standings() == "SSS"
    assert shard.raft(1).membership.homes[3] == shard.hosts[3].home


def test_an_answer_to_another_greeting_is_none():
    shard = founded(1, 2, 3)
    shard.wipe(3)
    shard.settle_down()
    raft = shard.raft(1)
    raft.step(Message(T.HEARTBEAT_RESP, sender=3, term=raft.term, hint=raft.lives.greeted[3] ^ 2))
    assert 3 not in raft.lives.present
    raft.step(Message(T.HEARTBEAT_RESP, sender=3, term=raft.term, hint=raft.lives.greeted[3]))
    assert 3 in raft.lives.present


@pytest.mark.parametrize("ask", [T.REQUEST_VOTE, T.REQUEST_PRE_VOTE], ids=str)
def test_a_newborn_grants_no_vote(ask):
    shard = founded(1, 2, 3)
    shard.isolate(3)
    shard.wipe(3)
    raft = shard.raft(3)
    shard.wire.clear()
    raft.step(Message(ask, to=3, sender=2, shard=7, term=9, log_index=50, log_term=8))
    shard.work(3)
    [answer] = [m for _, m in shard.wire if m.type is not T.NEWBORN]
    assert (answer.reject, raft.vote) == (True, 0)


@pytest.mark.parametrize("order", [T.ELECTION, T.TIMEOUT_NOW], ids=str)
def test_a_newborn_does_not_campaign(order):
    shard = founded(1, 2, 3)
    shard.isolate(3)
    raft = shard.wipe(3)
    raft.step(Message(order, to=3, sender=2, shard=7, term=0 if order is T.ELECTION else 9))
    shard.tick(50, 3)
    assert raft.state is State.FOLLOWER
    assert not raft.promotable


def test_a_deposed_leader_commits_nothing_with_a_replica_that_was_wiped_since():
    """Replica 3 acknowledged the write of the newer leader, 2, and forgot it."""
    shard = founded(1, 2, 3)
    shard.isolate(1)
    assert shard.elect(2)
    written = shard.propose(2, b"acknowledged")
    assert committed(shard, 2) == written
    shard.heal()
    shard.isolate(2)
    shard.wipe(3)
    shard.settle_down()
    before = committed(shard, 1)
    shard.propose(1, b"lost")
    shard.tick(5, 1, 3)
    assert committed(shard, 1) == before
    shard.heal()
    shard.tick(5)
    assert shard.holds(2, b"acknowledged")


def test_a_deposed_leader_commits_nothing_with_a_founder_that_it_never_met():
    """No entry says where replica 3 lives: that it starts empty tells nothing of what it was before."""
    shard = Shard(1, 2, 3)
    shard.settle_down()
    shard.cut((1, 3))
    assert shard.elect(1)
    shard.raft(1).lives.met.pop(3)
    shard.raft(1).membership = shard.raft(1).membership.__class__(
        (1, 2, 3), homes={r: h for r, h in shard.raft(1).membership.homes.items() if r != 3}
    )
    shard.isolate(1)
    assert shard.elect(2)
    written = shard.propose(2, b"acknowledged")
    assert committed(shard, 2) == written
    shard.heal()
    shard.isolate(2)
    shard.wipe(3)
    shard.settle_down()
    before = committed(shard, 1)
    shard.propose(1, b"lost")
    shard.tick(5, 1, 3)
    assert shard.raft(1).progress[3].match == shard.raft(1).log.last_index
    assert committed(shard, 1) == before


@pytest.mark.parametrize("type_", [T.HEARTBEAT, T.COMMIT, T.TIMEOUT_NOW], ids=str)
def test_a_commit_index_that_was_meant_for_an_earlier_life_commits_no_other_entries(type_):
    """Replica 2 leads, and knew of 1 that it held the write. Then 1 was wiped, and 3, which was deposed, feeds it its own."""
    shard = founded(1, 2, 3, leader=3)
    shard.isolate(3)
    for _ in range(2):
        shard.propose(3, b"lost")
    assert shard.elect(2)
    written = shard.propose(2, b"acknowledged")
    assert committed(shard, 2) == written
    life, term = shard.raft(2).life, shard.raft(2).term
    shard.heal()
    shard.isolate(2)
    shard.wipe(1)
    shard.tick(3, 1, 3)
    assert shard.raft(1).log.last_index >= written
    assert shard.holds(1, b"lost")
    before = committed(shard, 1)
    shard.deliver(life, Message(type_, to=1, sender=2, shard=7, term=term, commit=written))
    shard.work(1)
    assert committed(shard, 1) == before
    shard.heal()
    shard.tick(30)
    assert all(shard.holds(replica, b"acknowledged") for replica in (1, 2, 3))


def test_after_a_restart_a_replica_learns_again_what_is_committed():
    """Though no entry follows, and though it has forgotten what its leader sent it."""
    shard = founded(1, 2, 3, skip_commit_broadcast=True)
    written = shard.propose(1)
    assert committed(shard, 3) < written == shard.raft(3).log.last_index
    shard.restart(3)
    shard.tick(3)
    assert committed(shard, 3) == written


@pytest.mark.parametrize("standing", list(Standing), ids=str)
def test_a_commit_index_counts_as_far_as_this_leader_has_sent_the_log(standing):
    log = MemoryLog(
        [Entry(1, 1), Entry(2, 1)], HardState(1, 0, 1), Membership((1, 2, 3)), lives=Lives(FOUNDING, standing)
    )
    raft = Raft(config(1), log, home=10)
    said = {"to": 1, "sender": 2, "shard": 7}
    raft.step(Message(T.HEARTBEAT, term=2, commit=2, **said))
    assert raft.log.committed == 1
    raft.step(Message(T.REPLICATE, term=2, log_index=2, log_term=1, **said))
    raft.step(Message(T.HEARTBEAT, term=2, commit=2, **said))
    assert raft.log.committed == 2
    raft.step(Message(T.HEARTBEAT, term=3, commit=2, **{**said, "sender": 3}))
    assert raft.heard.matched == 0


def test_an_entry_that_settles_is_not_committed_by_its_own_replica():
    shard = founded(1, 2, 3)
    before = committed(shard, 1)
    shard.cut((1, 2))
    shard.wipe(3)
    shard.tick(4)
    assert shard.raft(1).home_of(3) == shard.hosts[3].home
    assert committed(shard, 1) == before
    assert shard.standings() == "SSN"
    shard.heal()
    shard.tick(3)
    assert shard.standings() == "SSS"


def test_a_deposed_leader_serves_no_read_with_a_replica_that_was_wiped_since():
    shard = founded(1, 2, 3)
    shard.cut((1, 2))
    shard.wipe(3)
    shard.settle_down()
    raft = shard.raft(1)
    raft.step(Message(T.READ_INDEX, sender=1, hint=5, hint_high=6))
    shard.settle_down()
    assert len(raft.reads) == 1
    shard.heal()
    shard.tick(3)
    assert len(raft.reads) == 0


def test_a_leader_is_not_kept_in_office_by_a_replica_that_was_wiped():
    shard = founded(1, 2, 3, check_quorum=True)
    shard.stop(2)
    shard.wipe(3)
    shard.tick(25)
    assert shard.raft(1).state is not State.LEADER


def test_a_vote_counts_no_more_when_its_replica_is_wiped_before_the_election_is_won():
    shard = founded(1, 2, 3, 4, 5)
    shard.isolate(4)
    shard.isolate(5)
    shard.raft(2).step(Message(T.ELECTION, sender=2))
    shard.settle_down(keep=(2,))
    votes = [(life, m) for life, m in shard.wire if m.type is T.REQUEST_VOTE_RESP]
    shard.wire.clear()
    shard.deliver(*next(vote for vote in votes if vote[1].sender == 3))
    shard.wipe(3)
    shard.work(3)
    shard.deliver(*next(sent for sent in shard.wire if (sent[1].sender, sent[1].to) == (3, 2)))
    shard.deliver(*next(vote for vote in votes if vote[1].sender == 1))
    assert shard.raft(2).state is State.CANDIDATE


def test_an_old_vote_of_a_replica_that_was_wiped_is_no_answer_of_the_new_one():
    """It would make the half that is doubted one that has refused, and two of four could elect against the other two."""
    shard = founded(1, 2, 3, 4)
    raft = shard.raft(1)
    raft.become_follower(raft.term, 0)
    raft.step(Message(T.ELECTION, sender=1))
    for voter in (3, 4):
        raft.votes[voter] = False
        raft.meet(voter, Life(FOUNDING, 90 + voter, Standing.NEWBORN))
    raft.step(Message(T.REQUEST_VOTE_RESP, to=1, sender=2, shard=7, term=raft.term))
    assert raft.state is State.CANDIDATE


def test_what_is_held_beside_the_entry_that_settles_is_committed_with_it():
    shard = founded(1, 2, 3)
    shard.wipe(3)
    shard.settle_down()
    shard.cut((1, 2))
    shard.tick(3, 1, 3)
    raft = shard.raft(1)
    settled = raft.log.last_index
    last = shard.propose(1)
    assert raft.progress[3].match == last
    answer = Message(T.REPLICATE_RESP, to=1, sender=2, shard=7, term=raft.term, log_index=settled)
    raft.step(answer)
    assert raft.log.committed == last


def test_groups_do_not_make_up_for_a_doubt():
    shard = founded(1, 2, 3, group_commit=True)
    shard.raft(1).assign_groups({1: 1, 2: 1, 3: 2})
    shard.wipe(3)
    shard.settle_down()
    shard.cut((1, 2))
    before = committed(shard, 1)
    shard.propose(1)
    shard.tick(3, 1, 3)
    assert shard.raft(1).progress[3].match == shard.raft(1).log.last_index
    assert committed(shard, 1) == before


def test_nothing_is_settled_while_the_leadership_is_being_transferred_and_it_is_made_up_for():
    shard = founded(1, 2, 3)
    raft = shard.raft(1)
    shard.cut((1, 2))
    raft.progress[2].match -= 1  # so the transfer waits for it
    raft.step(Message(T.LEADER_TRANSFER, sender=1, hint=2))
    shard.wipe(3)
    shard.tick(4, 1, 3)
    assert raft.transfer.target == 2
    assert raft.log.settled(3) == []
    raft.step(Message(T.LEADER_TRANSFER, sender=1, hint=1))
    raft.tick()
    assert raft.log.settled(3)


def test_what_an_earlier_life_acknowledged_is_not_counted_for_the_next_one():
    shard = founded(1, 2, 3, 4, 5)
    for other in (2, 4, 5):
        shard.isolate(other)
    index = shard.propose(1)
    assert shard.raft(1).progress[3].match == index
    shard.wipe(3)
    shard.work(3)
    for life, message in shard.wire:
        if (message.sender, message.to) == (3, 1):
            shard.deliver(life, message)
    assert shard.raft(1).progress[3].match == 0


def test_two_of_three_that_are_emptied_elect_no_leader_with_the_third_and_none_against_it():
    shard = founded(1, 2, 3)
    shard.propose(1)
    shard.restart(1)
    shard.wipe(2)
    shard.wipe(3)
    shard.settle_down()
    assert not shard.elect(1)
    assert shard.standings() == "SNN"
    shard.tick(40)
    assert shard.leader() is None


def test_a_newborn_takes_no_heartbeat_for_its_earlier_life_as_a_contradiction():
    shard = founded(1, 2, 3)
    index = shard.propose(1)
    newborn = shard.wipe(2)
    newborn.step(Message(T.HEARTBEAT, sender=1, to=2, term=shard.raft(1).term, commit=index))
    assert not newborn.faults
    assert newborn.log.committed == 1


def test_a_leader_settles_none_while_it_hands_over():
    shard = founded(1, 2, 3)
    leader = shard.raft(1)
    shard.wipe(2)
    shard.tick(1)
    shard.isolate(3)
    leader.step(Message(T.LEADER_TRANSFER, sender=1, hint=3))
    last = leader.log.last_index
    shard.tick(2)
    assert leader.transfer.target == 3
    assert leader.log.last_index == last
    shard.heal()
    shard.tick(20)
    assert shard.standings() == "SSS"


def test_a_newborn_refuses_a_pre_vote_in_the_term_of_the_asker_so_that_the_answer_is_heard():
    shard = founded(1, 2, pre_vote=True)
    shard.propose(1)
    shard.restart(1)
    shard.wipe(2)
    shard.settle_down()
    shard.tick(60)
    assert shard.standings() == "SS"


# -- even sizes ----------------------------------------------------------------------------------------------------


def test_one_of_two_elects_itself_beside_one_that_was_emptied_and_settles_it():
    shard = founded(1, 2)
    index = shard.propose(1)
    shard.restart(1)
    shard.wipe(2)
    shard.settle_down()
    assert shard.elect(1)
    shard.tick(3)
    assert shard.standings() == "SS"
    assert committed(shard, 2) > index


def test_one_of_two_is_not_elected_where_the_other_is_only_silent():
    shard = founded(1, 2)
    shard.restart(1)
    shard.stop(2)
    assert not shard.elect(1)


def test_two_of_four_elect_and_settle_two_that_were_emptied():
    shard = founded(1, 2, 3, 4)
    shard.propose(1)
    shard.restart(1)
    shard.wipe(3)
    shard.wipe(4)
    shard.settle_down()
    assert shard.elect(1)
    shard.tick(3)
    assert shard.standings() == "SSSS"


def test_two_of_four_do_not_elect_where_one_was_emptied_and_one_is_silent():
    """The silent one may have a leader with the emptied one, of before, and a third that is emptied only now."""
    shard = founded(1, 2, 3, 4)
    shard.restart(1)
    shard.isolate(3)
    shard.wipe(4)
    shard.settle_down()
    assert not shard.elect(1)


def test_two_of_four_commit_nothing_without_a_third_copy():
    shard = founded(1, 2, 3, 4)
    before = committed(shard, 1)
    shard.isolate(3)
    shard.stop(4)
    shard.propose(1)
    assert committed(shard, 1) == before
    shard.wipe(4)
    shard.tick(3)
    assert committed(shard, 1) == shard.raft(1).log.last_index


# -- replicas that are added ---------------------------------------------------------------------------------------


def test_one_that_was_added_counts_at_once():
    shard = founded(1)
    shard.join(2)
    change(shard, 1, (ADD, 2))
    shard.settle_down()
    assert shard.raft(1).membership.homes[2] == 0
    assert shard.propose(1) == committed(shard, 1)
    shard.tick(3)
    assert shard.standings() == "SS"


def test_one_that_was_added_counts_before_the_entry_that_settles_it():
    shard = founded(1, 2)
    shard.join(3)
    change(shard, 1, (ADD, 3))
    shard.cut((1, 2))
    assert shard.propose(1) == committed(shard, 1)
    assert shard.raft(1).home_of(3) == 0


def test_of_two_lives_of_one_that_was_added_only_the_first_counts_at_once():
    shard = founded(1, 2, 3)
    shard.join(4)
    change(shard, 1, (ADD, 4))
    shard.cut((1, 2), (1, 3))
    shard.tick(3, 1, 4)
    first = shard.raft(1)
    assert (first.home_of(4), first.membership.homes[4]) == (shard.hosts[4].home, 0)
    assert not first.lives.doubted
    shard.join(4)
    shard.tick(1, 1, 4)
    assert first.lives.doubted == {4}


def test_one_that_was_added_and_wiped_before_it_settled_does_not_count_as_new_again():
    shard = founded(1, 2)
    shard.join(3)
    change(shard, 1, (ADD, 3))
    shard.cut((1, 2))
    shard.tick(3, 1, 3)
    assert shard.raft(1).home_of(3) == shard.hosts[3].home
    shard.join(3)
    shard.tick(1)
    assert 3 in shard.raft(1).lives.doubted


def test_all_voters_can_be_replaced_at_once():
    shard = founded(1, 2, 3)
    for replica in (4, 5, 6):
        shard.join(replica)
    change(shard, 1, *((ADD, new) for new in (4, 5, 6)), *((REMOVE, old) for old in (1, 2, 3)))
    shard.tick(5)
    assert shard.raft(4).membership.electorate == ({4, 5, 6}, set())
    for replica in (1, 2, 3):
        shard.stop(replica)
    assert shard.elect(4)
    shard.tick(2)
    assert shard.standings() == "SSS"


def test_a_leader_does_not_leave_a_joint_membership_before_the_new_voters_may_vote():
    shard = founded(1)
    for replica in (2, 3):
        shard.join(replica)
    shard.cut((2, 3))
    change(shard, 1, (ADD, 2), (ADD, 3), (REMOVE, 1))
    assert shard.raft(1).membership.joint
    shard.heal()
    shard.tick(5)
    assert not shard.raft(2).membership.joint
    assert shard.raft(2).life.standing is Standing.SETTLED


@pytest.mark.parametrize(
    "changes",
    [((REMOVE, 1),), ((ADD, 5),), ((ADD, 5), (REMOVE, 1))],
    ids=["remove", "add", "both"],
)
def test_no_change_is_logged_while_a_voter_that_was_added_has_not_settled(changes):
    """By an election that does not ask it, and one of the next membership that does, a term would have two leaders."""
    shard = founded(1, 2, 3)
    change(shard, 1, (ADD, 4))
    leader = shard.raft(1)
    last = leader.log.last_index
    refused = change(shard, 1, *changes)
    assert [(it.because, it.replicas) for it in refused] == [(Refusal.VOTER_UNSETTLED, (4,))]
    assert leader.log.entries(last + 1, last + 2)[0].kind is EntryKind.NO_OP
    shard.join(4)
    shard.tick(3)
    assert change(shard, 1, *changes) == []
    assert leader.membership.change_id > last


@pytest.mark.parametrize(
    ("changes", "transition"),
    [
        pytest.param(((ADD, 4),), Transition.AUTO, id="one voter"),
        pytest.param(((OBSERVE, 2), (ADD, 4)), Transition.AUTO, id="jointly"),
        pytest.param(((OBSERVE, 2), (ADD, 4)), Transition.EXPLICIT, id="jointly, until told to leave"),
    ],
)
def test_no_change_is_logged_while_a_founder_is_newborn(changes, transition):
    """It may have forgotten in a crash that it was one. With it and 4 among the new voters, too few could vote."""
    shard = Shard(1, 2, 3, up=(2, 3))
    shard.listen()
    assert shard.elect(3)
    shard.start(1)
    shard.settle_down()
    refused = change(shard, 3, *changes, transition=transition)
    assert [(it.because, it.replicas) for it in refused] == [(Refusal.VOTER_UNSETTLED, (1,))]
    shard.tick(2)
    assert shard.standings() == "SSS"
    assert change(shard, 3, *changes, transition=transition) == []


def test_a_voter_that_was_added_can_be_removed_or_told_where_it_is_before_it_has_settled():
    shard = founded(1, 2, 3)
    change(shard, 1, (ADD, 4))
    assert change(shard, 1, (ChangeType.UPDATE, 4, "there:4")) == []
    assert change(shard, 1, (OBSERVE, 6)) == []
    assert change(shard, 1, (REMOVE, 4)) == []
    assert shard.raft(1).membership.voters == {1, 2, 3}
    change(shard, 1, (ADD, 5))
    assert change(shard, 1, (ADD, 7), (REMOVE, 5)) == []


def test_one_of_several_that_have_not_settled_is_not_removed_before_the_others_have():
    shard = founded(1, 2, 3)
    shard.join(4)
    change(shard, 1, (ADD, 4), (ADD, 5), (ADD, 6), (REMOVE, 3))
    shard.tick(3)
    assert not shard.raft(1).membership.joint
    refused = change(shard, 1, (REMOVE, 5))
    assert [(it.because, it.replicas) for it in refused] == [(Refusal.VOTER_UNSETTLED, (6,))]
    assert change(shard, 1, (REMOVE, 5), (REMOVE, 6)) == []


def test_a_leader_does_not_leave_the_shard_to_a_voter_that_was_wiped():
    shard = founded(1, 2)
    shard.wipe(2)
    shard.settle_down()
    assert [it.replicas for it in change(shard, 1, (REMOVE, 1))] == [(2,)]
    shard.tick(3)
    assert change(shard, 1, (REMOVE, 1)) == []
    shard.tick(40)
    assert shard.leader() == 2


def test_a_voter_that_was_wiped_can_be_removed():
    shard = founded(1, 2, 3)
    shard.wipe(3)
    shard.settle_down()
    assert shard.raft(1).lives.doubted == {3}
    assert change(shard, 1, (REMOVE, 3)) == []
    assert shard.raft(1).membership.voters == {1, 2}


def test_a_joint_change_goes_on_beside_one_that_was_wiped_and_one_that_was_added():
    """Together they are all of the new voters: none of them may vote, and the old ones settle both."""
    shard = founded(1, 2, 3, leader=2)
    change(shard, 2, (ADD, 4), (REMOVE, 2), (REMOVE, 3))
    shard.wipe(1)
    shard.join(4)
    shard.tick(5)
    assert shard.raft(4).membership.electorate == ({1, 4}, set())
    assert shard.leader() in {1, 4}


def test_a_shard_does_not_run_out_of_replicas_that_may_vote():
    """All of three or two are replaced at once, as soon as the leader lets them."""
    shard = founded(1, 2)
    for wanted in ((ADD, 3), (ADD, 4), (REMOVE, 2), (REMOVE, 1)):
        if wanted[0] is ADD:
            shard.join(wanted[1])
        leader = shard.leader()
        while change(shard, leader, wanted):
            shard.tick()
    shard.stop(1)
    shard.stop(2)
    shard.tick(40)
    assert shard.leader() in {3, 4}
    assert shard.standings() == "SS"


def test_a_leader_whose_validation_is_off_logs_a_change_all_the_same():
    shard = founded(1, 2, 3, disable_conf_change_validation=True)
    change(shard, 1, (ADD, 4))
    assert change(shard, 1, (ADD, 5)) == []


def test_a_change_that_its_rules_forbid_waits_for_no_voter():
    shard = founded(1, 2, 3)
    change(shard, 1, (REMOVE, 3))
    change(shard, 1, (ADD, 4))
    assert change(shard, 1, (ADD, 3)) == []


def test_a_leader_does_not_leave_a_joint_membership_for_an_observer_of_the_founding_that_it_never_heard():
    shard = Shard(1, observers=(2,))
    shard.settle_down()
    assert shard.elect(1)
    shard.tick(2)
    change(shard, 1, (ADD, 2), (REMOVE, 1), (OBSERVE, 3))
    shard.tick(2)
    assert shard.raft(1).membership.joint
    shard.start(2, is_observer=True)
    shard.tick(5)
    assert shard.raft(2).membership.electorate == ({2}, frozenset())
    assert shard.raft(2).life.standing is Standing.SETTLED


def test_a_leader_does_not_leave_a_joint_membership_for_one_that_does_not_know_yet_that_it_has_settled():
    """It was settled by the others while it was cut off, so it grants no vote; and the leader needs that once it has left."""
    shard = Shard(1, observers=(2,))
    shard.settle_down()
    shard.start(2, is_observer=True)
    assert shard.elect(1)
    shard.tick(2)
    shard.cut((1, 2))
    shard.raft(1).meet(2, replace(shard.raft(2).life, standing=Standing.NEWBORN))
    change(shard, 1, (ADD, 2), (REMOVE, 1), (OBSERVE, 3))
    shard.tick(5)
    leader = shard.raft(1)
    assert (leader.membership.homes[2], leader.membership.joint) == (shard.raft(2).life.home, True)
    assert not leader.log.holds_change(), "the old voters elect alone"
    shard.heal()
    shard.tick(5)
    assert shard.raft(2).membership.electorate == ({2}, frozenset())


def test_a_joint_change_ends_by_order_only_when_its_new_voters_have_settled():
    shard = founded(1, 2, 3)
    shard.cut((1, 5))
    for replica in (4, 5):
        shard.join(replica)
    explicit = Transition.EXPLICIT
    change(shard, 1, (ADD, 4), (ADD, 5), transition=explicit)
    shard.tick(3)
    shard.heal()
    leader = shard.raft(1)
    leader.meet(5, shard.raft(5).life)
    assert [it.replicas for it in change(shard, 1)] == [(5,)]
    shard.tick(3)
    assert change(shard, 1) == []
    assert not leader.membership.joint


def test_a_leader_stays_in_a_joint_membership_for_all_new_voters_that_it_has_met():
    shard = founded(1, 2, 3)
    shard.cut(*((5, other) for other in (1, 2, 3, 4)))
    for replica in (4, 5):
        shard.join(replica)
    shard.raft(1).meet(5, shard.raft(5).life)
    change(shard, 1, (ADD, 4), (ADD, 5))
    shard.tick(5)
    assert shard.raft(1).membership.joint
    assert 4 in shard.raft(1).membership.homes
    shard.heal()
    shard.tick(3)
    assert shard.standings() == "SSSSS"
    assert not shard.raft(1).membership.joint


def test_the_new_voters_of_a_joint_change_are_not_needed_to_elect():
    """One of three stays, and is gone for good before the two new ones could settle."""
    shard = founded(1, 2, 3, leader=3)
    change(shard, 3, (ADD, 4), (ADD, 5), (REMOVE, 2), (REMOVE, 3))
    assert shard.raft(2).membership.joint
    shard.stop(1)
    shard.restart(2)
    shard.restart(3)
    shard.join(4)
    shard.join(5)
    shard.settle_down()
    assert shard.elect(2)
    shard.tick(5)
    assert shard.standings() == "SSSS"
    assert shard.raft(4).membership.electorate == ({1, 4, 5}, set())


def test_the_new_voters_of_a_joint_change_are_needed_where_its_end_is_logged():
    shard = founded(1, 2, 3)
    for replica in (4, 5):
        shard.join(replica)
    change(shard, 1, (ADD, 4), (ADD, 5), transition=Transition.EXPLICIT)
    shard.tick(3)
    shard.isolate(1)
    change(shard, 1)
    shard.restart(1)
    shard.settle_down()
    shard.heal()
    shard.cut(*((1, other) for other in (3, 4, 5)))
    raft = shard.raft(1)
    [leave] = raft.log.entries(raft.log.last_index, raft.log.last_index + 1)
    assert (raft.membership.joint, leave.kind) == (True, EntryKind.CONFIG_CHANGE)
    assert not shard.elect(1)


def test_those_that_were_added_do_not_make_up_for_one_that_was_wiped():
    """Replica 4 was added. Leader 1 of the next term was elected by 1 and 3, two of the three that can vote."""
    shard = founded(1, 2, 3, leader=2)
    shard.join(4)
    change(shard, 2, (ADD, 4))
    assert not shard.raft(2).log.settled(4)
    shard.cut((1, 2), (1, 4), (3, 2), (3, 4))
    assert shard.elect(1)
    shard.heal()
    shard.isolate(1)
    shard.wipe(3)
    shard.settle_down()
    before = committed(shard, 2)
    shard.tick(6, 2, 3, 4)
    shard.propose(2, b"lost")
    deposed = shard.raft(2)
    assert {deposed.progress[it].match for it in (3, 4)} == {deposed.log.last_index}
    assert committed(shard, 2) == before
    shard.heal()
    shard.tick(10)
    assert shard.standings() == "SSSS"


def test_one_of_two_goes_on_beside_one_that_was_wiped_and_one_that_was_added():
    shard = founded(1, 2)
    shard.cut((1, 3))
    shard.join(3)
    change(shard, 1, (ADD, 3))
    shard.wipe(2)
    shard.heal()
    shard.tick(5)
    assert shard.standings() == "SSS"


def test_who_is_doubted_is_found_anew_when_the_voters_change():
    """Replica 4 was met in two lives as an observer, and becomes a voter."""
    shard = founded(1, 2, 3)
    shard.join(4)
    change(shard, 1, (OBSERVE, 4))
    shard.tick(3)
    shard.cut((1, 4))
    shard.join(4)
    leader = shard.raft(1)
    leader.meet(4, shard.raft(4).life)
    assert not leader.lives.doubted
    change(shard, 1, (ADD, 4))
    assert leader.lives.doubted == {4}


def test_an_observer_settles_as_well():
    shard = founded(1)
    shard.join(2)
    change(shard, 1, (OBSERVE, 2))
    shard.tick(3)
    assert shard.standings() == "SS"
    shard.join(2)
    shard.tick(3)
    assert shard.raft(1).membership.homes[2] == shard.hosts[2].home


def test_a_leader_of_a_grown_shard_is_elected_though_the_new_voter_has_not_settled():
    shard = founded(1)
    shard.join(2)
    change(shard, 1, (ADD, 2))
    shard.stop(2)
    shard.restart(1)
    shard.settle_down()
    assert shard.elect(1)


def test_of_one_that_was_removed_no_home_is_kept():
    shard = founded(1, 2, 3)
    change(shard, 1, (REMOVE, 3))
    assert set(shard.raft(1).membership.homes) == {1, 2}


# -- other lives ---------------------------------------------------------------------------------------------------


def life_of(shard, replica, **changes):
    return replace(shard.raft(replica).life, **changes)


def test_replicas_of_another_founding_refuse_each_other_whatever_they_say():
    shard = founded(1, 2, 3)
    other = life_of(shard, 2, founding=b"g" * 16)
    meeting = shard.raft(1).meet(2, other)
    assert meeting is Meeting.OTHER_FOUNDING
    raft = shard.raft(1)
    assert not any(raft.lets_in(meeting, Message(type_, sender=2, term=99), other) for type_ in T)


def test_one_without_a_home_has_only_its_founding_checked():
    shard = founded(1, 2, 3)
    assert shard.raft(1).meet(2, Life(b"g" * 16)) is Meeting.OTHER_FOUNDING
    assert shard.raft(1).meet(2, Life()) is Meeting.WELCOME


@pytest.mark.parametrize(
    ("type_", "term", "let_in"),
    [
        (T.REPLICATE_RESP, 2, False),
        (T.HEARTBEAT_RESP, 2, False),
        (T.REQUEST_VOTE_RESP, 2, False),
        (T.SNAPSHOT_REQUEST, 2, False),
        (T.REPLICATE_RESP, 3, True),
        (T.HEARTBEAT, 2, True),
        (T.REPLICATE, 2, True),
        (T.REQUEST_VOTE, 2, True),
        (T.READ_INDEX_RESP, 2, True),
        (T.PROPOSE, 0, True),
    ],
)
def test_of_a_replica_that_lives_elsewhere_nothing_counts_but_it_may_know_more(type_, term, let_in):
    shard = founded(1, 2, 3)
    raft, elsewhere = shard.raft(1), life_of(shard, 2, home=999)
    meeting = raft.meet(2, elsewhere)
    assert (meeting, raft.term) == (Meeting.OTHER_LIFE, 2)
    assert raft.lets_in(meeting, Message(type_, sender=2, term=term), elsewhere) is let_in


def test_an_old_copy_of_a_replica_does_not_count():
    shard = founded(1, 2, 3)
    old = shard.stop(3)
    shard.wipe(3)
    shard.tick(3)
    shard.stop(3)
    shard.start(3, log=old.log, home=old.home)
    shard.tick(3)
    assert shard.met[3, 1] is Meeting.OTHER_LIFE
    shard.stop(2)
    before = committed(shard, 1)
    shard.propose(1)
    assert committed(shard, 1) == before


def test_a_replica_whose_log_says_that_it_lives_elsewhere_neither_votes_nor_campaigns():
    shard = founded(1, 2, 3)
    home = shard.hosts[3].home
    shard.wipe(3)
    shard.tick(3)
    log = shard.stop(3).log
    raft = shard.start(3, log=log, home=home)
    shard.settle_down()
    assert not raft.remembers
    assert not shard.elect(3)


def test_a_late_message_of_a_dead_life_settles_nothing():
    """The one that lives would be refused from then on."""
    shard = founded(1, 2, 3)
    shard.isolate(3)
    shard.wipe(3)
    shard.work(3)
    late = next(sent for sent in shard.wire if (sent[1].sender, sent[1].to) == (3, 1))
    shard.heal()
    shard.wipe(3)
    shard.tick(3)
    assert shard.standings() == "SSS"
    shard.deliver(*late)
    shard.tick(3)
    assert shard.raft(1).home_of(3) == shard.hosts[3].home
    assert shard.met[3, 1] is Meeting.WELCOME
    assert not shard.raft(1).lives.doubted


def test_a_leader_does_not_settle_a_life_that_it_met_long_ago():
    shard = founded(1, 2, 3)
    raft = shard.raft(2)
    old = life_of(shard, 3, standing=Standing.FOUNDER)
    shard.wipe(3)
    shard.tick(3)
    raft.lives.met[3] = old
    shard.isolate(3)
    assert shard.elect(2)
    assert raft.home_of(3) == shard.hosts[3].home != old.home


def test_who_is_present_is_to_be_shown_anew_in_each_term():
    shard = founded(1, 2, 3)
    shard.wipe(3)
    shard.isolate(2)
    shard.tick(3, 1, 3)
    raft = shard.raft(1)
    assert 3 in raft.lives.present
    version = raft.lives.version
    raft.become_follower(raft.term + 1, 0)
    assert not raft.lives.present
    assert raft.lives.version > version


def test_two_lives_of_one_replica_do_not_fill_the_log():
    shard = founded(1, 2, 3)
    shard.isolate(2)
    lives = [Life(FOUNDING, home, Standing.NEWBORN) for home in (71, 72)]
    raft = shard.raft(1)
    last = raft.log.last_index
    for _ in range(5):
        for life in lives:
            raft.meet(3, life)
            answer = Message(
                T.HEARTBEAT_RESP, to=1, sender=3, shard=7, term=2, log_index=raft.timers.ticks + 1
            )
            raft.step(answer)
    assert raft.log.last_index == last + 1


def test_where_a_replica_lives_is_taken_back_with_the_entry_that_said_so():
    shard = founded(1, 2, 3)
    home = shard.hosts[3].home
    shard.cut((1, 2))
    shard.wipe(3)
    shard.tick(4)
    assert shard.raft(1).home_of(3) != home
    shard.stop(3)
    shard.isolate(1)
    shard.start(3, log=shard.first_log())
    assert shard.raft(2).home_of(3) == home
    entries = [Entry(shard.raft(1).log.last_index, 3, EntryKind.NO_OP)]
    previous = entries[0].index - 1
    shard.raft(1).step(
        Message(
            T.REPLICATE, to=1, sender=2, shard=7, term=3,
            log_index=previous, log_term=2, commit=previous, entries=entries,
        )
    )  # fmt: skip
    assert shard.raft(1).home_of(3) == home


def test_a_snapshot_says_as_well_where_a_replica_lives():
    shard = founded(1, 2, 3)
    shard.isolate(3)
    shard.propose(1)
    shard.wipe(3)
    raft = shard.raft(1)
    shard.heal()
    shard.cut((1, 3))
    shard.tick(1)
    shard.heal()
    shard.tick(3)
    point = raft.snapshot_point(raft.log.applied)
    assert point.membership.homes[3] == shard.hosts[3].home
    raft.snapshot_taken(point)
    again = MemoryLog(snapshot=point, lives=Lives(FOUNDING, Standing.NEWBORN))
    host = shard.hosts[3]
    assert shard.start(3, log=again, home=host.home).life.standing is Standing.SETTLED


def test_one_that_is_brought_up_by_a_snapshot_has_settled():
    shard = founded(1, 2, 3)
    shard.isolate(3)
    shard.wipe(3)
    raft = shard.raft(3)
    home = shard.hosts[3].home
    members = shard.raft(1).membership
    snapshot = Snapshot(9, 2, replace(members, homes={**members.homes, 3: home}))
    raft.step(Message(T.INSTALL_SNAPSHOT, to=3, sender=1, shard=7, term=2, snapshot=snapshot))
    ready = raft.ready()
    assert (ready.snapshot, ready.lives) == (snapshot, Lives(FOUNDING, Standing.SETTLED))


def test_a_heartbeat_for_the_earlier_life_is_no_contradiction():
    shard = founded(1, 2, 3)
    shard.isolate(3)
    shard.wipe(3)
    raft = shard.raft(3)
    raft.step(Message(T.HEARTBEAT, to=3, sender=1, shard=7, term=2, commit=5))
    assert raft.log.committed == 1
    assert raft.heard.doubt is None


def test_a_replica_that_was_founded_before_ours_ends_the_leader_that_hears_of_it():
    """INV49, INV51: a leader that was deposed may just be behind."""
    shard = founded(1, 2, 3)
    shard.stop(1)
    shard.wipe(2)
    shard.wipe(3)
    shard.listen()
    assert shard.standings() == "FF"
    assert shard.elect(2)
    shard.propose(2)
    old = Life(FOUNDING, 101, Standing.SETTLED)
    term = shard.raft(2).term
    assert shard.raft(2).meet(1, old) is Meeting.OTHER_LIFE
    assert shard.raft(2).meet(1, old, term) is Meeting.OLDER_LIFE
    assert shard.raft(2).meet(1, old, term + 1) is Meeting.OTHER_LIFE
    assert shard.raft(3).meet(1, old, term) is Meeting.WELCOME


@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize("standing", [Standing.INHERITED, Standing.SETTLED])
@pytest.mark.parametrize("founding", [b"", FOUNDING], ids=["of no founding", "of this founding"])
def test_what_a_replica_says_that_was_added_ends_no_leader(founding, standing, term):
    """It may run in a directory of some other use, or have been settled by a newer leader."""
    shard = founded(1, 2, 3)
    change(shard, 1, (ADD, 4))
    raft = shard.raft(1)
    assert raft.home_of(4) == 0
    assert raft.meet(4, Life(founding, 999, standing), term) is Meeting.OTHER_LIFE


def test_one_that_knows_of_no_founding_ends_no_leader():
    shard = founded(1, 2, 3)
    shard.raft(1).membership = Membership((1, 2, 3))
    meeting = shard.raft(1).meet(2, Life(b"", 999, Standing.INHERITED), 2)
    assert meeting is Meeting.OTHER_LIFE


def test_one_that_was_removed_ends_no_leader():
    shard = founded(1, 2, 3)
    old = shard.raft(3).life
    change(shard, 1, (REMOVE, 3))
    assert shard.raft(1).meet(3, old, 2) is Meeting.WELCOME


def test_one_that_founded_a_second_time_alone_ends_when_it_hears_of_the_first():
    """By a replica that the first shard had added, and that the second one does not know."""
    shard = founded(1)
    raft = shard.raft(1)
    assert raft.meet(2, Life(FOUNDING, 20, Standing.SETTLED), raft.term) is Meeting.OLDER_LIFE


def test_one_that_was_welcome_before_the_election_is_judged_anew_by_the_leader():
    """Before it has committed anything, since its log holds all that is committed."""
    shard = founded(1, 2, 3)
    shard.stop(1)
    shard.wipe(2)
    shard.wipe(3)
    shard.listen()
    old = Life(FOUNDING, 101, Standing.SETTLED)
    raft = shard.raft(2)
    assert raft.meet(1, old, 1) is Meeting.WELCOME
    raft.meet(3, shard.raft(3).life)
    version = raft.lives.version
    raft.step(Message(T.ELECTION, sender=2))
    raft.step(Message(T.REQUEST_VOTE_RESP, sender=3, to=2, term=raft.term))
    assert raft.state is State.LEADER
    assert raft.lives.version != version
    assert raft.home_of(1) is None
    assert raft.meet(1, old, raft.term) is Meeting.OLDER_LIFE


def test_a_candidate_of_a_second_founding_counts_no_vote_of_an_older_life():
    shard = founded(1, 2, 3)
    shard.stop(1)
    shard.wipe(2)
    shard.wipe(3)
    shard.listen()
    raft = shard.raft(2)
    raft.step(Message(T.ELECTION, sender=2))
    for standing in (Standing.SETTLED, Standing.INHERITED):
        assert raft.meet(1, Life(FOUNDING, 101, standing), raft.term) is Meeting.OTHER_LIFE


def test_a_welcome_holds_until_the_version_changes():
    shard = founded(1, 2, 3)
    raft = shard.raft(1)
    version = raft.lives.version
    for replica in (2, 3):
        raft.meet(replica, life_of(shard, replica))
    shard.propose(1)
    assert raft.lives.version == version
    raft.meet(3, life_of(shard, 3, home=999, standing=Standing.NEWBORN))
    assert raft.lives.version > version


def test_a_candidate_knows_of_all_entries_where_each_voter_lives():
    """Also of those that are not committed, and have to be read from the disk."""

    class Slow(MemoryLog):
        def runs(self, low, high, limit):
            if high > 3:
                raise EntriesNotLoaded
            return super().runs(low, high, limit)

    members = Membership((1, 2, 3))
    state, run = initial_log(members)
    log = Slow([run.entry(1), *(Entry(i, 1) for i in range(2, 5))], state, members, lives=Lives(FOUNDING))
    for home, expected in ((0, State.CANDIDATE), (101, State.FOLLOWER)):
        raft = Raft(config(1), log, home=home)
        ready = raft.ready()
        raft.applied(ready.committed[-1].index)
        raft.step(Message(T.ELECTION, sender=1))
        assert raft.state is expected


def test_a_new_life_is_frozen_no_more_and_its_appends_are_numbered_on():
    progress = Progress(match=3, next=9)
    progress.become_replicate()
    progress.frozen = "why"
    progress.number(5)
    progress.start_over(12)
    assert (progress.match, progress.next, progress.frozen, progress.state.name) == (0, 12, "", "PROBE")
    assert progress.lost_until == progress.numbered == 1


def test_before_any_home_is_known_one_that_is_added_may_have_lived():
    members = Membership((1,))
    add = Entry(2, 1, EntryKind.CONFIG_CHANGE, ConfigChange((Change(ADD, 2),)).encode())
    settle = Entry(3, 1, EntryKind.SETTLED, encode_settled(1, 7))
    assert decide(members, add, config(1)).homes == {}
    assert decide(decide(members, settle, config(1)), add, config(1)).homes == {1: 7, 2: 0}
    assert decide(members, Entry(4, 1, EntryKind.SETTLED, encode_settled(9, 7)), config(1)) == (
        "replica 9 is no member, so it lives nowhere"
    )


# -- shards of before ----------------------------------------------------------------------------------------------


def test_replicas_with_data_of_before_settle_with_their_first_leader():
    shard = Shard(1, 2, 3, standing=Standing.INHERITED)
    shard.settle_down()
    assert shard.elect(1)
    shard.tick(2)
    assert shard.standings() == "SSS"


def test_without_homes_nothing_is_settled():
    shard = Shard(1, 2, 3, standing=Standing.INHERITED)
    for host in shard.hosts.values():
        host.raft.lives.home = 0
    shard.settle_down()
    assert shard.elect(1)
    shard.tick(3)
    assert shard.standings() == "III"
    assert shard.raft(1).membership.homes == {}


def test_a_joiner_adopts_the_first_founding_that_it_hears_of_before_it_answers():
    shard = founded(1)
    raft = shard.join(2)
    raft.meet(1, shard.raft(1).life)
    raft.step(Message(T.HEARTBEAT, to=2, sender=1, shard=7, term=2))
    ready = raft.ready()
    assert ready.lives == Lives(FOUNDING, Standing.NEWBORN)
    assert not ready.messages
    assert [m.type for m in ready.messages_after_save] == [T.HEARTBEAT_RESP]
    assert raft.meet(3, Life(b"g" * 16)) is Meeting.OTHER_FOUNDING
