"""Which hosts a message is taken from; docs/protocol.md, "Who may say what"."""

from dataclasses import replace

import pytest
from drakkar.handlers import Life, Meeting, Membership, MemoryLog, Message, Raft, Standing, State
from drakkar.handlers import MessageType as T
from drakkar.handlers.raft.lives import Lives
from drakkar.handlers.raft.matrix import TRAITS
from drakkar.handlers.raft.permissions import MIN_SILENCE_ELECTIONS

from tests.handlers.raft.lives_support import FOUNDING, config

MEMBERS = {1: "one:1", 2: "two:1", 3: "three:1"}
ANY_HOST = {
    T.REPLICATE,
    T.HEARTBEAT,
    T.INSTALL_SNAPSHOT,
    T.COMMIT,
    T.REQUEST_VOTE,
    T.REQUEST_PRE_VOTE,
    T.REMOVAL_QUERY,
    T.REMOVED,
    T.NEWBORN,
}
FROM_MEMBERS_WHILE_LED = ANY_HOST - {T.REMOVAL_QUERY, T.NEWBORN}
PEERS = sorted((type_ for type_, traits in TRAITS.items() if not traits.local), key=int)


def replica(*, founding=FOUNDING, members=MEMBERS, removed=(), homes=None, **options):
    membership = Membership(members, removed=removed, homes=homes or {})
    lives = Lives(founding, Standing.SETTLED)
    return Raft(config(1, **options), MemoryLog(membership=membership, lives=lives), home=11)


def life(address, *, founding=FOUNDING, home=99, standing=Standing.SETTLED, certified=False):
    return Life(founding, home, standing, address, certified)


CERTIFIED = life("four:1", certified=True)


def taken(raft, sender, said, types=PEERS, **fields):
    """Return the types of messages that a replica takes of a sender."""
    meeting = raft.meet(sender, said)
    messages = [Message(type_, sender=sender, **fields) for type_ in types]
    return {it.type for it in messages if raft.lets_in(meeting, it, said)}


def test_the_table_says_of_each_type_who_may_say_it():
    assert {type_ for type_, traits in TRAITS.items() if traits.from_any_host} == ANY_HOST
    assert not any(
        traits.from_any_host and (traits.local or traits.from_members) for traits in TRAITS.values()
    )
    assert not T.define("test_permissions.own", 62101).traits.from_any_host
    assert T.define("test_permissions.open", 62102, from_any_host=True).traits.from_any_host


def test_a_member_at_its_address_may_say_all():
    raft = replica()
    assert taken(raft, 2, life("two:1")) == set(PEERS)
    assert raft.lives.met[2].address == "two:1"


@pytest.mark.parametrize(
    ("sender", "said"),
    [
        pytest.param(2, life("stranger:1"), id="a member's id at another address"),
        pytest.param(4, life("four:1"), id="an unknown id"),
        pytest.param(2, life("stranger:1", standing=Standing.NEWBORN), id="one that says it is newborn"),
        pytest.param(2, life("three:1"), id="a member's host, for another member"),
        pytest.param(2, life("stranger:1", home=22, certified=True), id="a home beside a certificate"),
    ],
)
def test_a_stranger_says_what_any_host_may_and_is_not_met(sender, said):
    raft = replica(homes={2: 22})
    assert raft.meet(sender, said) is Meeting.STRANGER
    assert taken(raft, sender, said) == (ANY_HOST - FROM_MEMBERS_WHILE_LED if said.certified else ANY_HOST)
    assert not raft.lives.met


def test_a_member_that_moved_is_known_by_its_home():
    raft = replica(homes={2: 22})
    assert taken(raft, 2, life("moved:1", home=22)) == set(PEERS)


def test_what_was_welcome_is_judged_anew_when_the_membership_changes():
    raft = replica()
    assert raft.meet(2, life("two:1")) is Meeting.WELCOME
    version = raft.lives.version
    raft.switch_membership(Membership({1: "one:1", 2: "moved:1", 3: "three:1"}))
    assert raft.lives.version > version
    assert raft.meet(2, life("two:1")) is Meeting.STRANGER


@pytest.mark.parametrize("founding", [b"", b"g" * 16], ids=["none", "another"])
def test_one_that_does_not_name_the_founding_says_nothing(founding):
    assert not taken(replica(), 4, life("four:1", founding=founding))


def test_a_stranger_tells_no_founding_to_one_that_knows_its_members():
    raft = replica(founding=b"")
    assert taken(raft, 4, life("four:1")) == ANY_HOST
    assert not raft.lives.own.founding
    raft.meet(2, life("two:1"))
    assert raft.lives.own.founding == FOUNDING


def test_one_that_joins_takes_all_of_any_host():
    raft = replica(founding=b"", members=())
    assert taken(raft, 4, life("four:1")) == set(PEERS)
    assert raft.lives.own.founding == FOUNDING


def followed(raft, leader=2, term=3, said=None):
    """Have a replica hear the heartbeat of a leader."""
    heartbeat = Message(T.HEARTBEAT, to=1, sender=leader, term=term)
    said = said or life(MEMBERS[leader])
    meeting = raft.meet(leader, said)
    assert raft.lets_in(meeting, heartbeat, said)
    raft.step(heartbeat, None if meeting is Meeting.WELCOME else said)
    assert raft.leader_id == leader
    return raft


@pytest.mark.parametrize("check_quorum", [False, True])
def test_while_a_leader_was_heard_lately_no_stranger_with_a_certificate_takes_its_place(check_quorum):
    raft = followed(replica(check_quorum=check_quorum))
    for _ in range(MIN_SILENCE_ELECTIONS * raft.config.election_ticks):
        assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST - FROM_MEMBERS_WHILE_LED
        raft.step(Message(T.LOCAL_TICK, sender=1))
        raft.ready()
    assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST


def test_where_hosts_have_no_certificates_a_stranger_could_name_a_members_address_as_well():
    raft = followed(replica(check_quorum=True))
    assert taken(raft, 4, life("four:1"), term=9) == ANY_HOST


def test_one_that_has_just_started_waits_for_the_leader_that_it_knows():
    raft = replica(check_quorum=True)
    assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST - FROM_MEMBERS_WHILE_LED


@pytest.mark.parametrize("strict", [False, True], ids=["no rounds", "rounds"])
def test_without_check_quorum_a_leader_believes_a_stranger_once_no_quorum_is_heard(strict):
    """Else one that was cut off would never learn of the leader that others have, nor would those that hear it."""
    options = {"check_quorum": False, "strict_membership_changes": strict}
    raft = replica(**options)
    raft.step(Message(T.ELECTION, sender=1))
    raft.step(Message(T.REQUEST_VOTE_RESP, to=1, sender=2, term=raft.term))
    for _ in range(2 * MIN_SILENCE_ELECTIONS * raft.config.election_ticks):
        raft.step(Message(T.HEARTBEAT_RESP, to=1, sender=2, term=raft.term))
        raft.tick()
    assert raft.state is State.LEADER
    unheard = ANY_HOST if not strict else ANY_HOST - FROM_MEMBERS_WHILE_LED
    assert taken(raft, 4, CERTIFIED, term=9) == unheard
    for _ in range(2 * raft.config.election_ticks):
        raft.tick()
    assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST


def test_a_leader_hears_itself_and_is_not_forgotten_at_once():
    raft = replica(members={1: "one:1"}, check_quorum=True)
    raft.step(Message(T.ELECTION, sender=1))
    assert raft.state is State.LEADER
    for _ in range(2 * MIN_SILENCE_ELECTIONS * raft.config.election_ticks):
        raft.tick()
    assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST - FROM_MEMBERS_WHILE_LED
    raft.step(Message(T.DISK_HUNG, sender=1))
    assert raft.state is not State.LEADER
    assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST - FROM_MEMBERS_WHILE_LED


def test_one_that_sleeps_wakes_up_and_listens_before_it_believes_a_stranger():
    """In an idle shard it hears no leader, and yet there is one."""
    raft = followed(replica(check_quorum=True, quiesce=True))
    while not raft.quiesce.quiesced:
        raft.step(Message(T.HEARTBEAT, to=1, sender=2, term=3))
        raft.tick()
    for _ in range(2 * MIN_SILENCE_ELECTIONS * raft.config.election_ticks):
        raft.tick()
    assert raft.quiesce.quiesced
    assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST - FROM_MEMBERS_WHILE_LED
    assert not raft.quiesce.quiesced
    for _ in range(MIN_SILENCE_ELECTIONS * raft.config.election_ticks):
        assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST - FROM_MEMBERS_WHILE_LED
        raft.tick()
        raft.ready()
    assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST


def test_what_is_asked_of_any_host_wakes_none():
    raft = followed(replica(check_quorum=True, quiesce=True))
    raft.quiesce.quiesced = True
    assert taken(raft, 4, CERTIFIED, [T.REMOVAL_QUERY, T.NEWBORN, T.PROPOSE]) == {T.REMOVAL_QUERY, T.NEWBORN}
    assert raft.quiesce.quiesced


def test_no_stranger_takes_the_place_of_a_newborn_founder():
    raft = replica()
    raft.lives.own = Lives(FOUNDING, Standing.FOUNDER)
    assert taken(raft, 2, life("stranger:1")) == ANY_HOST - {T.NEWBORN}
    assert taken(raft, 2, life("two:1")) == set(PEERS)


def test_the_leader_of_members_that_are_not_known_here_may_say_all():
    """It joined, was elected and added others while this replica slept."""
    raft = followed(replica(check_quorum=True), 4, said=life("four:1"))
    assert taken(raft, 4, life("four:1"), term=3) == set(PEERS)
    other = replace(CERTIFIED, address="five:1")
    assert taken(raft, 5, other, term=3) == ANY_HOST - FROM_MEMBERS_WHILE_LED


LEADERS = {type_ for type_, traits in TRAITS.items() if traits.from_leader}


@pytest.mark.parametrize("sender", [4, 5], ids=["by its id", "by another"])
@pytest.mark.parametrize("other", [life("five:1"), life("four:1", home=98)], ids=["address", "home"])
def test_no_other_host_speaks_as_the_leader_of_a_term(sender, other):
    raft = followed(replica(), 4, said=life("four:1"))
    assert taken(raft, sender, other, term=3) == ANY_HOST - LEADERS
    assert taken(raft, 4, life("four:1"), term=3) == set(PEERS)
    assert taken(raft, sender, other, term=4) == ANY_HOST, "of another term, it may lead"


def test_no_other_host_speaks_as_a_member_that_leads():
    raft = followed(replica())
    assert taken(raft, 2, life("five:1"), term=3) == ANY_HOST - LEADERS
    assert taken(raft, 2, life("two:1"), term=3) == set(PEERS)


def test_the_host_of_a_leader_is_known_while_this_replica_asks_for_votes():
    raft = replica(check_quorum=True)
    for _ in range(MIN_SILENCE_ELECTIONS * raft.config.election_ticks):
        raft.step(Message(T.LOCAL_TICK, sender=1))
    followed(raft, 4, said=CERTIFIED)
    raft.become_pre_candidate()
    assert taken(raft, 4, CERTIFIED, term=3) == LEADERS | {T.REMOVAL_QUERY, T.NEWBORN}


def test_a_leader_that_was_removed_in_office_is_followed_at_its_host_alone():
    raft = followed(replica(check_quorum=True))
    raft.switch_membership(Membership({1: "one:1", 3: "three:1"}, removed={2}))
    assert taken(raft, 2, life("two:1"), term=3) == set(PEERS)
    assert T.TIMEOUT_NOW not in taken(raft, 2, life("five:1"), term=3)


def test_the_member_takes_its_place_from_one_that_was_followed_in_its_name():
    raft = followed(replica(), said=life("five:1"))
    assert taken(raft, 2, life("five:1"), term=3) == set(PEERS)
    assert taken(raft, 2, life("two:1"), term=3) == set(PEERS)
    assert taken(raft, 2, life("five:1"), term=3) == ANY_HOST - LEADERS


@pytest.mark.parametrize(
    "to",
    [
        pytest.param(3, id="it is swallowed, as it is another replica's"),
        pytest.param(None, id="the disk hangs"),
    ],
)
def test_a_claim_that_is_not_handled_is_no_ones(to):
    """The member that speaks next, of the same term, is not that host."""
    raft = replica()
    said = life("five:1")
    claim = Message(T.HEARTBEAT, to=to or 1, sender=2, term=3)
    assert raft.lets_in(raft.meet(2, said), claim, said)
    if to:
        raft.step(claim, said)
    followed(raft)
    assert taken(raft, 2, said, term=3) == ANY_HOST - LEADERS


def test_one_that_joins_takes_all_of_the_leader_that_it_follows_and_little_of_others():
    raft = followed(replica(founding=b"", members=(), check_quorum=True), 4, said=CERTIFIED)
    assert taken(raft, 4, CERTIFIED, term=3) == set(PEERS)
    for sender in (4, 5):
        assert (
            taken(raft, sender, life("five:1", certified=True), term=9) == ANY_HOST - FROM_MEMBERS_WHILE_LED
        )
    for _ in range(MIN_SILENCE_ELECTIONS * raft.config.election_ticks):
        raft.tick()
    assert taken(raft, 5, life("five:1", certified=True), term=9) == ANY_HOST
    raft.become_follower(9, 0)
    assert taken(raft, 5, life("five:1"), term=9) == set(PEERS), "it follows none"


def test_a_known_leader_is_not_spoken_for_from_another_address():
    raft = followed(replica(check_quorum=True))
    assert taken(raft, 2, CERTIFIED, term=3) == ANY_HOST - FROM_MEMBERS_WHILE_LED


def test_a_removed_replica_is_heard_so_that_it_learns_of_its_removal():
    raft = replica(members={1: "one:1"}, removed={4}, check_quorum=True)
    raft.step(Message(T.ELECTION, sender=1))
    raft.persisted(raft.ready())
    assert taken(raft, 4, CERTIFIED, term=9) == ANY_HOST
    for ask in (T.REMOVAL_QUERY, T.REQUEST_PRE_VOTE, T.HEARTBEAT):
        raft.step(Message(ask, to=1, sender=4, term=9))
        (told,) = (message for message in raft.ready().messages if message.type is T.REMOVED)
        assert told.to == 4
    assert raft.term == 1


def test_no_stranger_ends_a_leader():
    """One that says that the shard was founded a second time: see `Meeting.OLDER_LIFE`."""
    raft = replica(check_quorum=True)
    raft.step(Message(T.ELECTION, sender=1))
    raft.step(Message(T.REQUEST_VOTE_RESP, to=1, sender=2, term=raft.term))
    assert raft.state is State.LEADER
    assert raft.meet(4, life("four:1"), raft.term) is Meeting.STRANGER
    assert raft.meet(3, life("stranger:1"), raft.term) is Meeting.STRANGER
    assert raft.meet(3, life("three:1"), raft.term) is Meeting.OLDER_LIFE


def test_where_no_address_is_told_no_rule_asks_for_it():
    raft = replica()
    assert taken(raft, 4, Life(FOUNDING, 99, Standing.SETTLED)) == set(PEERS)
