"""What operators ask of a replica beside its membership: the log, groups of replicas, and a leader that is gone."""

import pytest
from drakkar.actors import (
    IN_MEMORY,
    ConfigError,
    LeaderChanged,
    NodeHost,
    OutcomeUnknown,
    ReplicaStopped,
    RequestDropped,
    State,
    SystemBusy,
)
from drakkar.actors.node.operators import MAX_LOG_QUERIES
from drakkar.handlers import EntryKind, MessageType

from tests.actors.support import TICK, TIMEOUT_S, Hosts, Ledger, Notices, commit, hand_over, settled, until

CALM = {"election_ticks": 50, "snapshot_entries": 0}
"""An election timeout of a second, for tests in which no leader may change."""


class Saving(Ledger):
    """A ledger of which a snapshot can be taken."""

    def save(self, sink):
        sink.write(b" ".join(self.commands))

    def load(self, source):
        self.commands = source.read().split()


@pytest.fixture
def hosts():
    with Hosts() as hosts:
        yield hosts


@pytest.fixture
def notices():
    ref = Notices.start()
    yield ref
    ref.stop()


# -- The log


def commands(replica, first=1, **options):
    """Read the whole committed log, page by page, as one would do it."""
    found = []
    end = replica.status().commit + 1
    while first < end:
        page = replica.query_log(first, end, **options).get(timeout=TIMEOUT_S)
        found += [entry.payload for entry in page if entry.kind is EntryKind.COMMAND]
        assert [entry.index for entry in page] == list(range(first, first + len(page)))
        first += len(page)
    return found


def test_the_committed_log_is_read_page_by_page_at_any_replica(hosts):
    hosts.run(config=CALM)
    leader = hosts.leader()
    written = [b"%d" % number for number in range(40)]
    hosts[leader].propose_many(written, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
    for replica in hosts.replicas.values():
        until(lambda replica=replica: replica.status().commit == hosts[leader].status().commit)
        assert commands(replica) == written
        assert commands(replica, max_bytes=100) == written
    few = hosts[leader].query_log(3, 1 << 40, max_bytes=1).get(timeout=TIMEOUT_S)
    assert [entry.index for entry in few] == [3], "at least one, of any size"


def test_many_queries_at_once_are_all_answered(hosts):
    replica = hosts.run(numbers=[1, 2, 3], config=CALM)[1]
    commit(replica, b"x")
    indexes = [number % replica.status().commit + 1 for number in range(MAX_LOG_QUERIES)]
    began = replica._node.disk.ticks
    asked = [replica.query_log(index, index + 1, timeout=TIMEOUT_S) for index in indexes]
    assert [future.get(timeout=TIMEOUT_S)[0].index for future in asked] == indexes
    assert replica._node.disk.ticks - began < MAX_LOG_QUERIES / 4, "no query waits for a tick"


def test_too_many_queries_are_refused_and_the_others_answered(hosts):
    replica = hosts.run(config=CALM)[1]
    commit(replica, b"x")
    host = hosts.hosts[1]

    async def flood():
        return [replica.query_log(1, 2, timeout=TIMEOUT_S) for _ in range(MAX_LOG_QUERIES + 10)]

    outcomes = [settled(future) for future in host.loop.call(flood, timeout=TIMEOUT_S)]
    refused = [each for each in outcomes if isinstance(each, SystemBusy)]
    assert 0 < len(refused) <= 10
    assert all(len(each) == 1 for each in outcomes if each not in refused)


def test_what_is_compacted_or_not_committed_is_refused_with_the_range_that_is_there(hosts):
    replica = hosts.run(machine=Saving, config=CALM)[1]
    for number in range(10):
        commit(replica, b"%d" % number)
    commit_index = replica.status().commit
    beyond = settled(replica.query_log(commit_index + 1, commit_index + 9))
    assert isinstance(beyond, RequestDropped)
    assert f"holds the committed entries 1 to {commit_index}" in str(beyond)
    replica.snapshot(compaction_overhead=2).get(timeout=TIMEOUT_S)
    until(lambda: replica.status().first_index > 1)
    first = replica.status().first_index
    compacted = settled(replica.query_log(1, 5))
    assert isinstance(compacted, RequestDropped)
    assert f"entries 1 to 4 cannot be read here: this replica holds the committed entries {first} to" in str(
        compacted
    )


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        pytest.param((0, 5), {}, "first=0", id="an index below 1"),
        pytest.param((5, 5), {}, "end=5: must be a whole number from 6", id="nothing"),
        pytest.param(("1", 5), {}, "first='1'", id="a text"),
        pytest.param((1, 5), {"max_bytes": 0}, "max_bytes=0", id="no room"),
        pytest.param((1, 5), {"max_bytes": 1 << 30}, "from 1 to 8388608", id="too much at once"),
    ],
)
def test_a_query_that_is_none_says_why(hosts, arguments, options, text):
    replica = hosts.run(numbers=[1])[1]
    error = settled(replica.query_log(*arguments, **options))
    assert isinstance(error, ConfigError)
    assert text in str(error)


def test_a_witness_has_no_log_to_read(hosts):
    hosts.run(config=CALM)
    leader = hosts[hosts.leader()]
    with NodeHost("127.0.0.1:0", IN_MEMORY, tick_interval=TICK) as host:
        leader.add_witness(4, host.address, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
        witness = host.start_replica(
            Saving, shard_id=1, replica_id=4, join=True, role=State.WITNESS, config={"election_ticks": 50}
        )
        refused = settled(witness.query_log(1, 2))
        assert isinstance(refused, RequestDropped)
        assert "witness" in str(refused)


def test_a_stopped_replica_answers_operators_too(hosts):
    replica = hosts.run(numbers=[1])[1]
    replica.stop()
    for future in (replica.query_log(1, 2), replica.forget_leader(), replica.assign_groups({1: 1})):
        assert isinstance(settled(future), ReplicaStopped)


# -- A leader that is gone


def test_a_replica_that_forgets_its_leader_tells_so_and_hears_of_it_again(hosts, notices):
    hosts.run(config=CALM)
    leader = hosts.leader()
    other = hosts.others(leader)[0]
    hosts.hosts[other].subscribe(notices)
    assert hosts[other].forget_leader().get(timeout=TIMEOUT_S) is None
    told = notices._actor_weakref().wait_for(lambda event: isinstance(event, LeaderChanged))
    assert told.leader == 0
    until(lambda: hosts[other].status().leader_id == leader)
    assert hosts[leader].forget_leader().get(timeout=TIMEOUT_S) is None
    assert hosts[leader].status().state is State.LEADER


# -- Groups


GROUPS = {1: 1, 2: 1, 3: 2}


def grouped(hosts, **options):
    hosts.run(config={**CALM, "group_commit": True}, groups=GROUPS, **options)
    return hosts.leader()


def test_a_commit_waits_for_a_second_group_until_the_groups_are_assigned_anew(hosts):
    grouped(hosts)
    hand_over(hosts[1], 1)
    commit(hosts[1], b"in both")
    until(lambda: hosts[1].groups_consistent().get(timeout=TIMEOUT_S))
    hosts.stop(3)
    lost = settled(hosts[1].propose(b"in one", timeout=0.5))
    assert isinstance(lost, OutcomeUnknown), "a majority has it, of one group alone"
    for replica in hosts.replicas.values():
        replica.assign_groups({2: 3}).get(timeout=TIMEOUT_S)
    assert commit(hosts[1], b"in two again") == 3
    assert hosts[1].groups_consistent().get(timeout=TIMEOUT_S) is True


def test_groups_that_are_none_change_nothing(hosts):
    grouped(hosts)
    error = settled(hosts[1].assign_groups({1: 2, 0: 1}))
    assert isinstance(error, ConfigError)
    assert "0" in str(error)
    assert hosts[1]._node.raft.groups == GROUPS


def test_a_voter_without_a_group_is_warned_of_until_it_has_one(hosts, caplog):
    leader = grouped(hosts)
    assert "have no group" not in caplog.text
    hosts[leader].add_replica(4, "127.0.0.1:9", timeout=TIMEOUT_S)
    until(lambda: f"replica {leader} of shard 1: voters [4] have no group" in caplog.text)
    assert "call Replica.assign_groups" in caplog.text
    caplog.clear()
    hosts[leader].assign_groups({4: 2}).get(timeout=TIMEOUT_S)
    assert f"replica {leader} of shard 1: voters" not in caplog.text


@pytest.mark.parametrize("groups", [{1: 1 << 63, 2: 1}, {1: -1, 2: 1}, {1: 1, 2: 2, 1 << 63: 1}])
def test_a_start_with_groups_that_are_none_records_nothing(hosts, groups):
    host = hosts.start(1)
    with pytest.raises(ConfigError, match="2\\*\\*63 - 1"):
        host.start_replica(
            Ledger,
            shard_id=1,
            replica_id=1,
            members=hosts.members,
            config={"group_commit": True},
            groups=groups,
        )
    assert host._store.replicas() == []


def test_groups_without_group_commit_are_refused_later_as_at_the_start(hosts):
    hosts.run(numbers=[1])
    error = settled(hosts[1].assign_groups({1: 1}))
    assert isinstance(error, ConfigError)
    assert "need group_commit=True, on all replicas of the shard" in str(error)
    assert hosts[1].assign_groups({}).get(timeout=TIMEOUT_S) is None
    assert hosts[1]._node.raft.groups == {}


def test_a_voter_without_a_group_is_warned_of_after_a_restart_from_a_snapshot(tmp_path, caplog):
    """No entry of the log says then who votes."""
    alone = {"config": {"group_commit": True}, "groups": {1: 1, 2: 2}}
    with Hosts(2, data=tmp_path) as hosts:
        hosts.run(Saving, **alone)
        leader = hosts.leader()
        commit(hosts[leader], b"x")
        until(lambda: hosts[1].status().applied >= 3)
        hosts[1].snapshot(compaction_overhead=0).get(timeout=TIMEOUT_S)
        hosts.stop(1)
        hosts.stop(2)
        assert "have no group" not in caplog.text
        hosts.start(1).start_replica(
            Saving, shard_id=1, replica_id=1, config={"group_commit": True}, groups={1: 1, 3: 2}
        )
        until(lambda: "replica 1 of shard 1: voters [2] have no group" in caplog.text)


# -- How far it is, and what it counts


@pytest.mark.parametrize("index", ["x", None, 1.0, -1, 1 << 63, True])
def test_an_index_that_is_none_costs_its_future_only(hosts, index):
    replica = hosts.run(numbers=[1])[1]
    error = settled(replica.when_applied(index))
    assert isinstance(error, ConfigError)
    assert "index" in str(error)
    assert replica.when_applied(0).get(timeout=TIMEOUT_S) >= 0


def test_a_replica_tells_what_it_has_counted(hosts):
    hosts.run()
    leader = hosts.leader()
    commit(hosts[leader], b"x")
    node = hosts[leader]._node
    node.unheard, node.router.undeliverable, node.snapshots.failed = 1, 2, 3
    node.actor_inbox.refused, node.actor_inbox.proposals.refused, node.actor_inbox.requests.refused = 4, 5, 6
    counters = hosts[leader].counters
    assert [counters[f"{lane} refused"] for lane in ("messages", "proposals", "requests")] == [4, 5, 6]
    assert counters["messages while the disk hung"] == 1
    assert counters["messages without an address"] == 2
    assert counters["snapshots failed"] == 3
    assert counters["handled REPLICATE_RESP in LEADER"] > 0
    node.raft.fault("without a term")
    assert hosts[leader].counters["faulty: without a term"] == 1
    assert type(counters) is dict
    node.raft.tally.swallowed[State.LEADER, MessageType.PING] += 7
    assert hosts[leader].counters["swallowed PING in LEADER"] == 7


def test_a_host_tells_what_it_and_its_transport_have_counted(hosts):
    hosts.run()
    host = hosts.hosts[hosts.leader()]
    host._counters["events lost"] = 1
    host._transport.counters.connect_failures = 9
    counters = host.counters
    assert counters["events lost"] == 1
    assert counters["transport: connect failures"] >= 9
    assert counters["transport: received"] > 0
    counters.clear()
    assert host.counters["events lost"] == 1, "it was a copy"


def test_groups_are_known_at_the_replica_that_leads_only(hosts):
    leader = grouped(hosts)
    for number in hosts.others(leader):
        assert hosts[number].groups_consistent().get(timeout=TIMEOUT_S) is None
