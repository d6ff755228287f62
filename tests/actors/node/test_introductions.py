"""What a node makes of what other replicas say of themselves."""

import logging

import pytest
from drakkar.actors.node.introductions import LAG_S, MAX_STRANGERS, Founding, Introduced, Introductions
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.handlers.errors import ActorFailed
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.lives import Lives, Meeting, Standing
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership
from drakkar.transport.shard_frames import ShardHello, decode_shard

MEMBERS = {1: "a:1", 2: "b:1", 3: "c:1"}
OURS, THEIRS = b"o" * 16, b"t" * 16


class Services:
    def __init__(self):
        self.introduced, self.reintroduced = [], []

    def introduce(self, address, shard_id):
        self.introduced.append((address, shard_id))

    def reintroduce(self, shard_id):
        self.reintroduced.append(shard_id)


class Node:
    """The introductions of replica 1 of shard 9, and a clock that is turned by hand."""

    def __init__(self, meeting=None):
        lives = Lives(OURS, Standing.SETTLED)
        log = MemoryLog(membership=Membership(MEMBERS), lives=lives)
        self.raft = Raft(RaftConfig(replica_id=1, shard_id=9), log, home=11)
        self.raft.term = 1
        if meeting is not None:
            self.raft.meet = lambda *_: meeting
        self.services = Services()
        self.now = 100.0
        self.introductions = Introductions(
            self.raft,
            Founding(MEMBERS),
            services=self.services,
            lines=HostLines("h:1").of("drakkar.actors.node", 9, 1),
            now=lambda: self.now,
        )

    def take(self, founding=OURS, standing=Standing.SETTLED, *, replica=2, home=22, term=0):
        hello = ShardHello(9, replica, founding, standing, {2: "b:1"}, term=term)
        self.introductions.take(Introduced(hello, home, "b:1"))

    def refuses(self, type_=MessageType.HEARTBEAT, *, sender=2, term=1):
        return self.introductions.refuses(Message(type_, sender=sender, shard=9, term=term))


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_replica_of_the_same_founding_is_welcome_and_asked_for_once(caplog):
    node = Node()
    node.take()
    asked = []
    meet, node.raft.meet = node.raft.meet, lambda *given: asked.append(given) or meet(*given)
    assert not node.refuses()
    assert not node.refuses()
    assert asked == []
    node.raft.lives.version += 1
    assert not node.refuses()
    assert len(asked) == 1
    assert (warned(caplog), node.introductions.refused) == ([], {})


def test_one_of_another_founding_is_refused_with_both_lists_and_told_so(caplog):
    node = Node()
    node.take(THEIRS)
    for _ in range(3):
        assert node.refuses()
    assert node.introductions.dropped == 3
    (told,) = warned(caplog)
    assert "h:1 replica 1 of shard 9: refuses replica 2 at b:1" in told
    assert "founded with the members {2: b:1}" in told
    assert "with the members {1: a:1, 2: b:1, 3: c:1}" in told
    assert "look which list is right" in node.introductions.refused[2]
    assert node.services.introduced == [("b:1", 9)]


def test_what_its_own_host_tells_of_a_refused_peer_is_heard():
    node = Node()
    node.take(THEIRS)
    assert not node.refuses(MessageType.UNREACHABLE)
    assert not node.refuses(MessageType.UNREACHABLE, sender=3), "nor was that one introduced"


def test_a_refused_one_that_is_mended_is_taken_again(caplog):
    node = Node()
    caplog.set_level(logging.INFO)
    node.take(THEIRS)
    node.take(OURS)
    assert node.introductions.refused == {}
    assert not node.refuses()
    assert any(
        "takes the messages of replica 2 at b:1 again" in record.getMessage() for record in caplog.records
    )


def test_another_life_is_worth_a_warning_only_after_a_while(caplog):
    """The log here may be behind what the other one knows."""
    node = Node(Meeting.OTHER_LIFE)
    node.take()
    assert node.refuses(MessageType.REPLICATE_RESP)
    assert not node.refuses(MessageType.REPLICATE), "a leader may know better"
    assert "another host" in node.introductions.refused[2]
    assert warned(caplog) == []
    node.now += LAG_S
    assert node.refuses(MessageType.REPLICATE_RESP)
    assert len(warned(caplog)) == 1


def test_one_that_is_older_ends_the_replica_and_says_where_to_look():
    node = Node(Meeting.OLDER_LIFE)
    with pytest.raises(
        ActorFailed, match="replica 1 of shard 9 stops, and keeps its data: replica 2 at b:1 is older"
    ):
        node.take()
    assert "delete" not in node.introductions.refused[2]


@pytest.mark.parametrize(
    ("message", "said", "judged"), [(1, 0, 1), (1, 3, 3), (3, 1, 3), (0, 3, 0)], ids=repr
)
def test_an_old_message_is_judged_by_the_term_of_what_its_sender_said_since(message, said, judged):
    """A leader that was deposed would end over it."""
    node = Node()
    terms = []
    node.raft.meet = lambda _replica, _life, term: terms.append(term) or Meeting.OTHER_LIFE
    node.take(term=said)
    node.refuses(term=message)
    assert terms == [0, judged]


@pytest.mark.parametrize(("founding", "meeting"), [(OURS, "another host"), (THEIRS, "wrong list")])
def test_one_with_the_id_of_this_replica_is_never_welcome(founding, meeting):
    node = Node()
    node.take(founding, Standing.NEWBORN, replica=1)
    assert node.refuses(MessageType.REQUEST_VOTE_RESP, sender=1)
    assert meeting in node.introductions.refused[1]
    assert 1 not in node.raft.lives.met


def test_a_newborn_that_has_lived_elsewhere_is_told_of_once(caplog):
    node = Node()
    node.raft.membership = Membership(MEMBERS, homes={2: 5})
    for _ in range(2):
        node.take(standing=Standing.NEWBORN)
    (told,) = warned(caplog)
    assert "replica 2 at b:1 starts with an empty data directory" in told
    assert "mount it" in told


def test_a_replica_that_moved_away_is_told_so(caplog):
    node = Node()
    node.raft.leader_id = 2
    node.introductions.look()
    node.raft.membership = Membership(MEMBERS, homes={1: 5})
    for _ in range(2):
        node.introductions.look()
    (told,) = warned(caplog)
    assert "neither votes nor leads: by the log, this replica has moved to another host" in told
    assert "has moved" in node.introductions.refused[1]
    node.raft.membership = Membership(MEMBERS, homes={1: 11})
    node.introductions.look()
    assert node.introductions.refused == {}


def test_only_what_is_durable_is_told():
    node = Node()
    node.raft.lives.own = Lives(OURS, Standing.NEWBORN)
    assert decode_shard(node.introductions.body) == ShardHello(
        9, 1, OURS, Standing.SETTLED, MEMBERS, term=1, kinds={}
    )
    node.introductions.on_durable(node.raft.lives.own)
    assert decode_shard(node.introductions.body).standing is Standing.NEWBORN
    assert node.services.reintroduced == [9]


def test_how_a_shard_was_founded_reads_well():
    assert str(Founding({2: "b:1", 1: "a:1"})) == "with the members {1: a:1, 2: b:1}"
    imported = "by the import of the file 0000000000000002 with the members {1: a:1}"
    assert str(Founding({1: "a:1"}, 2)) == imported
    assert "joined later" in str(Founding())


# ---- strangers


class Addresses:
    def __init__(self):
        self.learned, self.home = {}, []

    def learn(self, replica, address, *, moved=False):
        self.learned[replica] = (address, moved)

    def at_home(self, replica):
        self.home.append(replica)


class Member(Node):
    """As `Node`, where hosts say where they are."""

    def __init__(self, **options):
        super().__init__(**options)
        self.introductions._router = self.addresses = Addresses()
        self.services.confirms = lambda address: address in self.known
        self.services.proves = lambda speaker, address: (speaker, address) in self.proven
        self.known, self.proven = set(), set()

    def say(self, address, *, replica=2, home=22, standing=Standing.SETTLED, certified=False, founding=OURS):
        hello = ShardHello(9, replica, founding, standing)
        self.introductions.take(Introduced(hello, home, address, certified))


def test_a_stranger_is_counted_and_warned_of_once_whatever_names_it_takes(caplog):
    node = Member()
    for number in range(20):
        node.say(f"stranger:{number}", replica=2 + number % 3)
        assert node.refuses(MessageType.PROPOSE, sender=2 + number % 3, term=0)
        assert not node.refuses(MessageType.REQUEST_VOTE, sender=2 + number % 3)
    assert node.introductions.not_allowed == {"STRANGER": 20}
    (told,) = warned(caplog)
    assert "drops PROPOSE of replica 2 at stranger:0: by our membership" in told
    assert node.introductions.refused == {}, "the member is not refused"


def test_a_member_is_known_however_its_address_is_spelt():
    node = Member()
    node.say("B:1")
    assert not node.refuses(MessageType.PROPOSE, term=0)
    assert node.addresses.home == [2]


def test_a_stranger_is_answered_only_where_it_surely_is():
    node = Member()
    node.say("stranger:1", replica=7)
    assert not node.refuses(MessageType.REQUEST_VOTE, sender=7)
    assert node.addresses.learned == {}
    node.known.add("stranger:1")
    assert not node.refuses(MessageType.REQUEST_VOTE, sender=7)
    assert node.addresses.learned == {7: ("stranger:1", False)}


def test_one_that_knows_no_members_answers_all():
    node = Member()
    node.raft.switch_membership(Membership())
    node.say("leader:1", replica=7)
    assert node.addresses.learned == {7: ("leader:1", False)}


@pytest.mark.parametrize(
    ("certified", "proven", "is_member"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_a_member_that_moved_is_known_by_its_home_unless_its_certificate_is_of_another(
    certified, proven, is_member
):
    node = Member()
    node.raft.membership = Membership(MEMBERS, homes={2: 22})
    node.known.add("moved:1")
    if proven:
        node.proven.add(("moved:1", "b:1"))
    node.say("moved:1", certified=certified)
    assert node.refuses(MessageType.PROPOSE, term=0) is not is_member
    assert node.addresses.learned == ({2: ("moved:1", True)} if is_member else {})


def test_of_strangers_only_so_many_are_remembered():
    node = Member()
    for number in range(2 * MAX_STRANGERS):
        node.say("stranger:1", replica=100 + number, founding=THEIRS if number % 2 else OURS)
        node.introductions.heard_on[100 + number] = "a connection"
    node.say("b:1")
    for table in (node.introductions._known, node.introductions.refused, node.introductions._refused_since):
        assert len(table) <= MAX_STRANGERS + len(MEMBERS) + 1
    assert len(node.introductions.heard_on) <= MAX_STRANGERS + len(MEMBERS) + 1
    assert not node.refuses(MessageType.PROPOSE, term=0)


def test_what_follows_an_introduction_that_was_forgotten_is_refused_and_counted(caplog):
    node = Member()
    for number in range(2 * MAX_STRANGERS):
        node.say("stranger:1", replica=100 + number)
    for type_ in (MessageType.PROPOSE, MessageType.REPLICATE_RESP, MessageType.REQUEST_VOTE):
        assert node.refuses(type_, sender=100)
    assert (node.introductions.not_allowed, node.introductions.dropped) == ({"NOT_INTRODUCED": 3}, 3)
    assert [text for text in warned(caplog) if "drops PROPOSE of replica 100" in text]
    node.say("stranger:1", replica=100)
    assert not node.refuses(MessageType.REQUEST_VOTE, sender=100)


def test_what_has_not_come_yet_is_refused_as_it_would_be():
    node = Member()
    snapshot = Message(MessageType.INSTALL_SNAPSHOT, sender=2, shard=9, term=3)

    def objection(address, founding=OURS, *, certified=False):
        hello = ShardHello(9, 2, founding, Standing.SETTLED)
        return node.introductions.objection(Introduced(hello, 22, address, certified), snapshot)

    assert objection("b:1") is None
    assert objection("stranger:1") is None, "it may lead members that are not known here"
    assert "does not say" in objection("stranger:1", b"")
    assert "founded" in objection("b:1", THEIRS)
    node.raft.check_quorum = True
    node.raft.heard_leader(3)
    assert "no member" in objection("stranger:1", certified=True)
    assert objection("b:1", certified=True) is None
    assert node.raft.lives.claim is None, "no message of it is stepped yet"
    node.raft.quiesce.quiesced = True
    assert "no member" in objection("stranger:1", certified=True)
    assert node.raft.quiesce.quiesced, "a question wakes no one"
    node.say("stranger:1", certified=True)
    assert node.refuses(MessageType.INSTALL_SNAPSHOT)
    assert not node.raft.quiesce.quiesced, "a message does"


def test_strangers_are_not_told_how_the_shard_was_founded_unless_they_surely_are_where_they_say():
    node = Member()
    node.say("stranger:1", replica=7, founding=THEIRS)
    assert node.services.introduced == []


def test_a_jump_of_the_term_is_told_once_a_minute(caplog):
    node = Member()
    node.say("b:1")
    for _ in range(3):
        node.introductions.tell_of_jump(Message(MessageType.HEARTBEAT, sender=2, term=1 << 40), 3)
    (told,) = warned(caplog)
    assert "its term rose from 3 to 1 by a HEARTBEAT of replica 2 at b:1" in told
