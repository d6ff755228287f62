"""What a leader that lies can do to a follower: end its replica by entries that are none, and nothing else on its host."""

import pytest
from drakkar.actors import ReplicaEnded
from drakkar.handlers.errors import ReplicaStopped
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange
from drakkar.handlers.raft.entries import Entry, EntryKind
from drakkar.handlers.raft.lives import encode_settled

from tests.actors.support import TIMEOUT_S, Hosts, Ledger, commit, settled, until
from tests.attacks import forge

TERM = 5
LIAR = 2
FIRST = 2
"""The log begins with the members, in the entry at 1 of term 1."""
SOUND = (EntryKind.COMMAND, b"sound")


class Shards:
    """One real host, with a follower of a shard whose leader is forged, and with an innocent shard."""

    def __init__(self, hosts):
        self.hosts, self.ended, self.commits = hosts, [], 0
        self.start()

    def start(self):
        """Start the host, or start it again."""
        self.ended.clear()
        host = self.hosts.start(1)
        host.subscribe(self._note)
        self.innocent = host.start_replica(Ledger, shard_id=2, replica_id=1, members={1: self.members[1]})
        self.follower = host.start_replica(Ledger, shard_id=1, replica_id=1, members=self.members)

    def restart(self):
        self.hosts.stop(1)
        self.start()

    def _note(self, event):
        if isinstance(event, ReplicaEnded):
            self.ended.append(event)

    @property
    def members(self):
        return self.hosts.members

    def replicate(self, *entries):
        """Say as the leader of the follower that these entries are committed, and wait until it has applied them, or has ended."""
        last = FIRST + len(entries) - 1
        said = [Entry(FIRST + place, TERM, kind, payload) for place, (kind, payload) in enumerate(entries)]
        message = Message(
            MessageType.REPLICATE, to=1, sender=LIAR, shard=1, term=TERM, log_index=FIRST - 1, log_term=1,
            commit=last, entries=tuple(said),
        )  # fmt: skip
        with forge.introduced(self.members[1], self.members[LIAR], source="127.0.0.1") as link:
            link.send(forge.shard(1, LIAR, self.members), forge.messages(message))
            until(lambda: self.ended or self.follower.status().applied >= last)

    def commands(self):
        return self.follower.stale_read(None).get(timeout=TIMEOUT_S)

    def check_innocent(self):
        """The other shard of the host commits, and has lost nothing."""
        self.commits += 1
        assert commit(self.innocent, b"innocent") == self.commits
        assert not any(event.shard == 2 for event in self.ended)


@pytest.fixture
def shards(tmp_path):
    with Hosts(3, data=tmp_path) as hosts:
        yield Shards(hosts)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param((EntryKind.CONFIG_CHANGE, b"\xff"), id="a change that is none"),
        pytest.param((EntryKind.CONFIG_CHANGE, b"\0" * (300 << 10)), id="a change that is too long"),
        pytest.param((EntryKind.CONFIG_CHANGE, ConfigChange().encode()), id="the end of no joint change"),
        pytest.param((EntryKind.SETTLED, b"\xff"), id="a home that is none"),
        pytest.param((EntryKind.SETTLED, encode_settled(77, 5)), id="the home of no member"),
        pytest.param((EntryKind.SETTLED, encode_settled(1, 5)), id="another home of the follower"),
        pytest.param((EntryKind.METADATA, b"x"), id="what only witnesses hold"),
        pytest.param((EntryKind.NO_OP, b"x"), id="an empty entry with content"),
    ],
)
def test_what_the_core_cannot_use_changes_nothing(shards, entry):
    shards.replicate(entry, SOUND)
    assert shards.commands() == [b"sound"]
    assert set(shards.follower.status().voters) == set(shards.members)
    assert not shards.ended
    shards.check_innocent()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        pytest.param((EntryKind.ENCODED, b"\xff"), "an encoded command has 1 bytes", id="compressed"),
        pytest.param((EntryKind.SESSION, b"\xff"), "a session's request has 1 bytes", id="of a session"),
    ],
)
def test_a_command_that_is_none_ends_the_replica_and_says_why_and_harms_no_other_shard(shards, entry, why):
    shards.replicate(SOUND, entry)
    for _ in range(2):  # it is in the log, so that a restart does not help
        until(lambda: shards.ended)
        [ended] = shards.ended
        assert (ended.shard, ended.replica) == (1, 1)
        assert "its state machine failed: CorruptData" in str(ended.reason)
        assert why in str(ended.reason)
        assert isinstance(settled(shards.follower.propose(b"x")), ReplicaStopped)
        shards.check_innocent()
        shards.restart()


def first_members(*, witnesses=(), voters=(), address="127.0.0.1:1"):
    """A whole membership, which replaces any other."""
    changes = [Change(ChangeType.ADD_WITNESS, number, address) for number in witnesses]
    changes += [Change(ChangeType.ADD_VOTER, number, address) for number in voters]
    return ConfigChange(tuple(changes), initialize=True)


def one(type_, replica, address=""):
    return ConfigChange((Change(type_, replica, address),))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(one(ChangeType.UPDATE, 1, "nonsense"), id="its address is none"),
        pytest.param(one(ChangeType.UPDATE, LIAR, "a\nb:1"), id="the address of the leader is none"),
        pytest.param(one(ChangeType.ADD_VOTER, 9, "\0:99999"), id="the address of a new one is none"),
        pytest.param(one(ChangeType.UPDATE, 3, "x" * 100_000 + ":1"), id="an address without end"),
        pytest.param(first_members(voters=[1]), id="alone"),
        pytest.param(first_members(voters=[9]), id="others alone"),
        pytest.param(first_members(voters=[1, 2, 3], address="[::1"), id="no address is one"),
    ],
)
def test_a_membership_that_is_made_up_is_taken_and_harms_no_other_shard(shards, change):
    shards.replicate((EntryKind.CONFIG_CHANGE, change.encode()), SOUND)
    shards.check_innocent()
    shards.restart()
    shards.check_innocent()
    until(lambda: shards.follower.status().applied >= FIRST + 1)
    assert not shards.ended
    assert shards.commands() == [b"sound"]


def test_a_role_that_it_cannot_take_ends_the_replica_and_harms_no_other_shard(shards):
    change = first_members(witnesses=[1], voters=[2, 3]).encode()
    shards.replicate((EntryKind.CONFIG_CHANGE, change), SOUND)
    until(lambda: shards.ended)
    [ended] = shards.ended
    assert "cannot become WITNESS from FOLLOWER" in str(ended.reason)
    shards.check_innocent()
