"""Commands that the state machine refuses, on real hosts: the proposer is told, everywhere alike, and no replica stops."""

import pytest
from drakkar.actors import (
    ConcurrentStateMachine,
    DiskStateMachine,
    OutcomeUnknown,
    Refused,
    ReplicaEnded,
    StateMachine,
)
from drakkar.actors.host.session import Session
from drakkar.handlers.errors import ConfigError

from tests.actors.support import TIMEOUT_S, Hosts, Ledger, Notices, commit, contents, settled, until


class Book(StateMachine):
    """Keeps all commands; refuses one that it has already."""

    def __init__(self):
        self.commands = []

    def apply(self, command):
        if command in self.commands:
            raise Refused(f"{command.decode()} is there already")
        self.commands.append(command)
        return len(self.commands)

    def query(self, _query):
        return list(self.commands)

    def save(self, sink):
        sink.write(b"\n".join(self.commands))

    def load(self, source):
        self.commands = source.read().split(b"\n")


class InlineBook(Book):
    """On the loop."""

    blocks = False


class SharedBook(Book, ConcurrentStateMachine):
    """Fixes its state by a copy."""

    save = ConcurrentStateMachine.save

    def capture(self):
        commands = list(self.commands)
        return lambda sink: sink.write(b"\n".join(commands))


class DiskBook(DiskStateMachine):
    """Would have its state elsewhere, if the test went on after a restart."""

    def __init__(self):
        self.book = Book()

    def open(self):
        return 0

    def apply_entries(self, entries):
        return self.book.apply_many([command for _, command in entries])

    def query(self, query):
        return self.book.query(query)

    def sync(self):
        """It is lost anyway."""


@pytest.fixture
def on_disk(tmp_path):
    with Hosts(data=tmp_path / "data") as hosts:
        yield hosts


def is_refusal(outcome, command):
    return (
        type(outcome) is Refused and str(outcome) == f"{command} is there already" and outcome.outcome_known
    )


def refused(future, command):
    """Whether it fails so; a refusal that is its value would not do."""
    with pytest.raises(Refused) as failed:
        future.get(timeout=TIMEOUT_S)
    return is_refusal(failed.value, command)


@pytest.mark.parametrize("machine", [Book, InlineBook, SharedBook, DiskBook])
def test_every_proposer_is_told_and_no_replica_stops(machine):
    with Hosts() as hosts:
        hosts.run(machine)
        hosts.leader()
        commit(hosts[1], b"first")
        for number in hosts.members:
            assert refused(hosts[number].propose(b"first"), "first")
            one, again, other = settled(
                hosts[number].propose_many([b"a%d" % number, b"first", b"b%d" % number])
            )
            assert (one, other) == (2 * number, 2 * number + 1)
            assert is_refusal(again, "first")
        for number in hosts.members:
            assert contents(hosts[number]) == [b"first", b"a1", b"b1", b"a2", b"b2", b"a3", b"b3"]


def test_a_session_hears_the_same_again_on_another_host_and_after_a_snapshot(on_disk):
    config = {"compaction_overhead": 0}
    on_disk.run(Book, config=config)
    leader = on_disk.leader()
    one, other = on_disk.others(leader)
    commit(on_disk[leader], b"first")
    session = settled(on_disk[one].session())
    assert refused(session.propose(b"first"), "first")
    assert not session.open
    assert settled(session.propose(b"second")) == 2
    # A client that did not hear the answer asks again, by way of another host, and after a restart from a snapshot.
    client = session.client

    def ask(number):
        return Session(on_disk[number]._endpoint, client, 3, b"first").retry(timeout=TIMEOUT_S)

    assert refused(ask(other), "first")
    assert settled(on_disk[other].snapshot()) > 0
    on_disk.stop(other)
    on_disk.run(Book, numbers=[other], config=config)
    assert refused(ask(other), "first")
    assert contents(on_disk[other]) == [b"first", b"second"]


class Wrong(Book):
    """Has a bug."""

    def apply(self, command):
        if command == b"boom":
            raise ZeroDivisionError("a bug")
        return super().apply(command)


def test_any_other_exception_stops_the_replicas_and_says_where_and_what_to_do():
    events = Notices.start()
    try:
        with Hosts() as hosts:
            hosts.run(Wrong)
            leader = hosts.leader()
            for host in hosts.hosts.values():
                host.subscribe(events)
            assert commit(hosts[leader], b"first") == 1
            outcome = settled(hosts[leader].propose(b"boom"))
            assert isinstance(outcome, OutcomeUnknown)
            # Two are a majority. Where both end before the third one hears that the entry is committed, it is left without a leader.
            ends = until(lambda: (len(all_ends(events)) >= 2 and all_ends(events)) or None)
    finally:
        events.stop()
    for end in ends:
        text = str(end.reason)
        assert "apply failed at entry" in text
        assert "ZeroDivisionError: a bug" in text
        assert "Every replica whose state machine is deterministic stops at this entry" in text
        assert "raising Refused" in text


def all_ends(events):
    return [event for event in events.proxy().events.get() if isinstance(event, ReplicaEnded)]


class Renamed(Ledger):
    """Was called `Ledger`."""

    recorded_name = "Ledger"


def test_a_renamed_state_machine_goes_on_under_its_recorded_name(on_disk):
    on_disk.run(Ledger, numbers=[1], config={"election_ticks": 20})
    host = on_disk.hosts[1]
    on_disk[1].stop()

    class New(Ledger):
        pass

    with pytest.raises(
        ConfigError, match=r"'Ledger': start that or, .* set recorded_name = 'Ledger' in the class New"
    ):
        host.start_replica(New, shard_id=1, replica_id=1)
    assert host.start_replica(Renamed, shard_id=1, replica_id=1).status().replica_id == 1
