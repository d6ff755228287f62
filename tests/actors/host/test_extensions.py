"""Extensions on hosts: records on all replicas, their part of snapshots, vetoes, asks and events, over real sockets and disks."""

import time

import cbor2
import pykka
import pytest
from drakkar.actors import (
    ExtensionEvent,
    MissingExtension,
    ReplicaEnded,
    ReplicaStopped,
    Vetoed,
)
from drakkar.handlers.extension import Extension, delivers, handles
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import EntryKind
from drakkar.handlers.raft.matrix import raft_handlers
from drakkar.handlers.raft.ready import Refusal
from drakkar.handlers.raft.state import State

from tests.actors.support import Hosts, Ledger, Notices, commit, contents, kept, settled, until

MARK = EntryKind.define("test_host.mark", 236)
NOTE = MessageType.define("test_host.note", 40_411)
SEEN = MessageType.define("test_host.seen", 40_412)
WAIT = MessageType.define("test_host.wait", 40_413)
SAY = MessageType.define("test_host.say", 40_414)
WATCH = MessageType.define("test_host.watch", 40_415)
CALM = {"election_ticks": 50}


class Marks(Extension):
    """Remembers all records and commands, in the order in which they are delivered."""

    name = "marks"

    def __init__(self, node):
        self.node, self.seen, self.watchers = node, [], []

    @handles(NOTE)
    def note(self, message):
        return self.node.propose(MARK, message.payload)

    @handles(SEEN)
    def answer(self, message):
        return list(self.seen)

    @handles(WAIT)
    def never(self, message):
        pass

    @handles(SAY)
    def say(self, message):
        self.node.publish_event(message.payload)
        return "said"

    @handles(WATCH)
    def watch(self, message):
        self.watchers.append(message.payload)
        return "watching"

    @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
    def censor(self, message, inner):
        rest = self.node.veto(message, "no swearing", only=lambda entry: b"damn" in entry.payload)
        if rest is not None:
            inner(rest)

    @delivers(MARK, EntryKind.COMMAND)
    def deliver(self, entry):
        self.seen.append(entry.payload)
        for watcher in self.watchers:
            self.node.tell(watcher, entry.payload)

    def save(self):
        return cbor2.dumps(self.seen)

    def load(self, data):
        self.seen = cbor2.loads(data)


class Book(Ledger):
    """All commands, also in its snapshots."""

    def save(self, sink):
        cbor2.dump(self.commands, sink)

    def load(self, source):
        self.commands = cbor2.load(source)


def table():
    made = raft_handlers()
    made.use(Marks)
    return made


def note(hosts, number, payload):
    """Have a record logged, at the leader."""
    until(lambda: hosts[number].ask(Message(NOTE, payload=payload)) == "")


def seen(replica):
    return replica.ask(Message(SEEN))


def all_seen(hosts, count):
    """Wait until all have seen so much, and return it."""
    until(lambda: all(len(seen(replica)) == count for replica in hosts.replicas.values()))
    (first, *others) = [seen(replica) for replica in hosts.replicas.values()]
    assert all(other == first for other in others)
    return first


@pytest.fixture
def hosts():
    with Hosts() as hosts:
        yield hosts


def test_records_and_commands_are_delivered_alike_on_all_replicas(hosts):
    hosts.run(Book, config=CALM, handlers=table())
    leader = hosts.leader()
    follower = hosts.others(leader)[0]
    note(hosts, leader, b"first")
    assert settled(hosts[leader].propose(b"command")) == 1
    assert hosts[follower].ask(Message(NOTE, payload=b"forwarded")) == ""
    assert all_seen(hosts, 3) == [b"first", b"command", b"forwarded"]
    delivered = "cell_delivered_test_host_mark_in_leader_total"
    assert hosts.hosts[leader].metrics()[delivered] == 2


def test_a_kind_is_logged_only_once_all_hosts_have_the_extension(hosts):
    hosts.run(Book, config=CALM, handlers=table(), numbers=[1, 2])
    hosts.run(Book, config=CALM, numbers=[3])
    leader = hosts.leader()
    if leader == 3:
        hosts[3].transfer_leadership(1).get(timeout=20)
        leader = hosts.leader()
    commit(hosts[leader], b"x")
    refusal = hosts[leader].ask(Message(NOTE, payload=b"early"))
    assert refusal == f"{Refusal.KIND_MISSING.value}; those that have not: 3"
    hosts[3].stop()
    hosts.run(Book, config=CALM, handlers=table(), numbers=[3])
    note(hosts, hosts.leader(), b"mark")
    assert all_seen(hosts, 2) == [b"x", b"mark"]


def test_a_snapshot_brings_the_state_of_extensions_to_a_replica_that_was_away_and_a_restart_keeps_it(
    tmp_path,
):
    options = {"config": {**CALM, "snapshot_entries": 10, "compaction_overhead": 5}, "handlers": table()}
    with Hosts(data=tmp_path) as hosts:
        hosts.run(Book, **options)
        leader = hosts.leader()
        away = hosts.others(leader)[0]
        note(hosts, leader, b"first")
        all_seen(hosts, 1)
        hosts.stop(away)
        for number in range(30):
            commit(hosts[leader], b"%d" % number)
            note(hosts, leader, b"mark %d" % number)
        until(lambda: len(seen(hosts[leader])) == 1 + 30 + 30)  # a note is answered as soon as it is logged
        expected = seen(hosts[leader])
        until(lambda: hosts[leader].status().first_index > 20)
        hosts.run(Book, numbers=[away], **options)
        until(lambda: seen(hosts[away]) == expected)
        assert hosts.hosts[away].metrics()["snapshots_installed_total"] == 1
        for number in list(hosts.hosts):
            hosts.stop(number)
        hosts.run(Book, **options)
        hosts.leader()
        assert all_seen(hosts, len(expected)) == expected


def test_a_replica_without_the_extension_ends_at_the_record_and_goes_on_with_it(tmp_path):
    with Hosts(1, data=tmp_path) as hosts:
        hosts.run(Book, config=CALM, handlers=table())
        hosts.leader()
        note(hosts, 1, b"mark")
        commit(hosts[1], b"behind it")
        index = next(entry.index for entry in settled(hosts[1].query_log(1, 100)) if entry.kind == MARK)
        hosts.stop(1)

        host = hosts.start(1)
        notices = Notices.start()
        host.subscribe(notices)
        try:
            hosts.run(Book, config=CALM)
            ended = kept(notices).wait_for(lambda event: isinstance(event, ReplicaEnded))
        finally:
            notices.stop()
        assert type(ended.reason) is MissingExtension
        assert ended.reason.index == index
        assert f"index {index} has an entry of kind 236 (test_host.mark)" in hosts[1].status().ended.why
        hosts.stop(1)

        hosts.run(Book, config=CALM, handlers=table())
        hosts.leader()
        assert all_seen(hosts, 2) == [b"mark", b"behind it"]


def test_the_text_of_a_leaders_veto_reaches_the_client_of_a_follower_before_any_timeout(hosts):
    hosts.run(Book, config=CALM, handlers=table())
    leader = hosts.leader()
    follower = hosts.others(leader)[0]
    commit(hosts[leader], b"x")
    before = time.monotonic()
    mixed = [hosts[follower].propose(text, timeout=20.0) for text in (b"fine", b"damn", b"good")]
    outcomes = [settled(future) for future in mixed]
    session = settled(hosts[follower].session(timeout=20.0))
    in_session = settled(session.propose(b"damn", timeout=20.0))
    assert (type(in_session), str(in_session)) == (Vetoed, "no swearing")
    assert time.monotonic() - before < 10
    assert type(outcomes[1]) is Vetoed
    assert str(outcomes[1]) == "no swearing"
    assert [type(outcome) for outcome in (outcomes[0], outcomes[2])] == [int, int]
    assert contents(hosts[leader]) == [b"x", b"fine", b"good"]


def test_events_of_extensions_reach_subscribers_and_actors_are_told(hosts):
    hosts.run(Book, config=CALM, handlers=table(), numbers=[1])
    host = hosts.hosts[1]
    notices = Notices.start()
    host.subscribe(notices)
    try:
        assert hosts[1].ask(Message(SAY, payload="hello")) == "said"
        kept(notices).wait_for(lambda event: event == ExtensionEvent(1, 1, "hello"))
        assert hosts[1].ask(Message(WATCH, payload=notices)) == "watching"
        hosts.run(Book, config=CALM, handlers=table(), numbers=[2, 3])
        hosts.leader()
        commit(hosts[1], b"told")
        kept(notices).wait_for(lambda told: told == b"told")
    finally:
        notices.stop()


def test_what_is_asked_of_a_host_that_stops_is_answered(hosts):
    hosts.run(Book, config=CALM, handlers=table(), numbers=[1])
    replica, host = hosts[1], hosts.hosts[1]
    future = replica.ask(Message(WAIT), block=False, timeout=100)
    until(lambda: host.metrics()["asks_pending"] == 1)
    hosts.stop(1)
    assert type(settled(future)) is ReplicaStopped
    with pytest.raises(ReplicaStopped):
        replica.tell(Message(WAIT))


def test_a_handler_that_never_replies_is_not_waited_for_longer_than_the_timeout(hosts):
    hosts.run(Book, config=CALM, handlers=table(), numbers=[1])
    with pytest.raises(
        Exception, match=r"Marks\.never, which replica 1 of shard 1 has for test_host\.wait"
    ) as late:
        hosts[1].ask(Message(WAIT), timeout=0.1)
    assert not isinstance(late.value, pykka.Timeout), "the replica itself says so, within a tick"
