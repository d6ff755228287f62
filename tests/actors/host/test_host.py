"""Three hosts in one process, over real sockets and, where it matters, on a real disk."""

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import IntEnum
from functools import partial
from pathlib import Path

import pykka
import pytest
import trio
from drakkar.actors import (
    IN_MEMORY,
    ConfigError,
    CorruptData,
    HandlerTableError,
    LeaderChanged,
    MembershipChanged,
    MembershipRejected,
    NodeHost,
    NotLeader,
    OutcomeUnknown,
    RaftConfig,
    ReplicaEnded,
    ReplicaSpec,
    ReplicaStopped,
    RequestDropped,
    StateMachine,
    StorageFailed,
    SystemBusy,
    TransferInProgress,
    TransportError,
)
from drakkar.actors.host import host as host_module
from drakkar.actors.log import driver as log_driver
from drakkar.actors.log.driver import LoopDriver
from drakkar.actors.log.store import AppendRequest
from drakkar.handlers.errors import DeadlockError, DrakkarError, LoopError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import Change, ChangeType
from drakkar.handlers.raft.matrix import raft_handlers
from drakkar.handlers.raft.state import HardState, State
from drakkar.handlers.table import HandlerTable

from tests.actors.support import (
    TICK,
    TIMEOUT_S,
    Failing,
    Gated,
    Hosts,
    InlineLedger,
    Ledger,
    Notices,
    commit,
    contents,
    hand_over,
    kept,
    settled,
    until,
)
from tests.ports import free_addresses

CALM = {"election_ticks": 50}
"""An election timeout of a second, for tests in which no leader may change."""


@pytest.fixture(params=["memory", "disk"])
def hosts(request, tmp_path):
    with Hosts(data=tmp_path if request.param == "disk" else None) as hosts:
        yield hosts


@pytest.fixture
def in_memory():
    with Hosts() as hosts:
        yield hosts


@pytest.fixture
def on_disk(tmp_path):
    with Hosts(data=tmp_path) as hosts:
        yield hosts


@pytest.fixture
def notices():
    ref = Notices.start()
    yield ref
    ref.stop()


# -- The example of the design, and what every client does


class Counter(StateMachine):
    def __init__(self):
        self.value = 0

    def apply(self, command: bytes):
        self.value += int(command)
        return self.value

    def query(self, query):
        return self.value

    def save(self, sink):
        sink.write(str(self.value).encode())

    def load(self, source):
        self.value = int(source.read())


def test_the_ten_lines_of_the_design_count_on_three_machines(tmp_path):
    a, b, c = free_addresses(3)
    members = {1: a, 2: b, 3: c}
    with ExitStack() as stack:
        counters = []
        for replica_id, address in members.items():
            host = stack.enter_context(
                NodeHost(address, data_dir=tmp_path / str(replica_id), tick_interval=TICK)
            )
            counters.append(host.start_replica(Counter, shard_id=1, replica_id=replica_id, members=members))
        until(lambda: all(counter.status().leader_id for counter in counters))
        assert counters[0].propose(b"5").get(timeout=3) == 5
        assert counters[1].propose(b"7").get(timeout=3) == 12
        for counter in counters:
            assert counter.read(None).get(timeout=3) == 12


@pytest.mark.parametrize("machine", [Ledger, InlineLedger])
def test_every_host_takes_commands_and_reads_and_answers_in_order(hosts, machine):
    hosts.run(machine)
    leader = hosts.leader()
    written = []
    for number in hosts.members:
        alone = [b"%d-%d" % (number, each) for each in range(20)]
        together = [b"%d+%d" % (number, each) for each in range(200)]
        futures = [hosts[number].propose(command) for command in alone]
        results = [settled(future) for future in futures] + settled(hosts[number].propose_many(together))
        assert results == list(range(len(written) + 1, len(written) + 221)), (
            f"through {number}, led by {leader}"
        )
        written += alone + together
        assert settled(hosts[number].read(None)) == written
    for number in hosts.members:
        assert settled(hosts[number].read(5)) == written[5]
        until(lambda number=number: settled(hosts[number].stale_read(None)) == written)
        status = hosts[number].status()
        assert (status.shard_id, status.replica_id, status.leader_id) == (1, number, leader)
        assert (status.state is State.LEADER) == (number == leader)
        assert status.addresses == hosts.members


def test_futures_can_be_awaited_in_trio_and_in_asyncio(in_memory):
    in_memory.run()
    in_memory.leader()

    async def use(number):
        first = await in_memory[number].propose(b"a")
        more = await in_memory[number].propose_many([b"b", b"c"])
        return [first, *more], await in_memory[number].read(-1)

    assert trio.run(use, 1) == ([1, 2, 3], b"c")
    assert asyncio.run(use(2)) == ([4, 5, 6], b"c")


def test_large_commands_and_large_lists_go_through_any_host(in_memory):
    in_memory.run(InlineLedger)
    leader = in_memory.leader()
    follower = in_memory.others(leader)[0]
    for number in (leader, follower):
        big = bytes(3 << 20)
        assert isinstance(settled(in_memory[number].propose(big, timeout=TIMEOUT_S)), int)
        many = [bytes([n % 256]) * 100_000 for n in range(100)]
        results = settled(in_memory[number].propose_many(many, timeout=TIMEOUT_S))
        assert results == list(range(results[0], results[0] + 100))
    assert type(settled(in_memory[leader].propose(bytes((8 << 20) + 1)))) is RequestDropped


def test_threads_of_all_hosts_may_propose_at_once_and_each_finds_its_own_in_order(in_memory):
    in_memory.run(InlineLedger)
    in_memory.leader()
    answers = {}

    def work(number, name):
        answers[number, name] = [
            commit(in_memory[number], b"%d %d %d" % (number, name, each)) for each in range(30)
        ]

    threads = [threading.Thread(target=work, args=(number, name)) for number in (1, 2, 3) for name in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    ledger = contents(in_memory[1])
    assert ledger == contents(in_memory[2]) == contents(in_memory[3])
    for (number, name), places in answers.items():
        assert [ledger[place - 1] for place in places] == [b"%d %d %d" % (number, name, n) for n in range(30)]


def test_leadership_can_be_handed_to_each_host_by_each_host(in_memory):
    in_memory.run()
    in_memory.leader()
    for number in in_memory.members:
        for target in in_memory.members:
            hand_over(in_memory[number], target)
            assert in_memory[number].status().leader_id == target
    assert isinstance(commit(in_memory[1], b"x"), int)


def test_changes_of_leader_under_load_lose_and_repeat_nothing(in_memory):
    in_memory.run(InlineLedger)
    leader = in_memory.leader()
    stop = threading.Event()
    outcomes = {}

    def work(number):
        for each in range(100_000):
            if stop.is_set():
                return
            command = b"%d %d" % (number, each)
            outcomes[command] = settled(in_memory[number].propose(command, timeout=5.0))

    threads = [threading.Thread(target=work, args=(number,)) for number in in_memory.members]
    for thread in threads:
        thread.start()
    for _ in range(4):
        leader = hand_over(in_memory[leader], leader % 3 + 1)
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    ledger = contents(in_memory[1])
    assert len(set(ledger)) == len(ledger), "nothing was applied twice"
    for command, outcome in outcomes.items():
        if not isinstance(outcome, Exception):
            assert ledger[outcome - 1] == command
        elif outcome.outcome_known:
            assert command not in ledger, outcome
    assert {type(outcome) for outcome in outcomes.values()} <= {
        int,
        NotLeader,
        TransferInProgress,
        OutcomeUnknown,
        RequestDropped,
    }


# -- Where there is no quorum


def test_requests_may_come_before_there_is_a_leader_and_wait_for_one(in_memory):
    in_memory.run()
    futures = [in_memory[number].propose(b"%d" % number, timeout=TIMEOUT_S) for number in in_memory.members]
    reads = [in_memory[number].read(None, timeout=TIMEOUT_S) for number in in_memory.members]
    assert sorted(settled(future) for future in futures) == [1, 2, 3]
    assert all(isinstance(settled(read), list) for read in reads)


def test_a_host_without_the_others_refuses_for_lack_of_a_leader(in_memory):
    in_memory.run(numbers=[1])
    for future in (
        in_memory[1].propose(b"a", timeout=0.3),
        in_memory[1].read(None, timeout=0.3),
        in_memory[1].transfer_leadership(2),
    ):
        outcome = settled(future)
        assert type(outcome) is NotLeader
        assert outcome.outcome_known
    assert settled(in_memory[1].stale_read(None)) == []


def test_a_leader_that_lost_its_followers_does_not_know_what_becomes_of_its_last_proposals(in_memory):
    in_memory.run(config=CALM)
    leader = in_memory.leader()
    commit(in_memory[leader], b"before")
    for number in in_memory.others(leader):
        in_memory.stop(number)
    began = time.monotonic()
    outcome = settled(in_memory[leader].propose(b"lost", timeout=0.3))
    assert type(outcome) is OutcomeUnknown
    assert time.monotonic() - began < 5
    # A leader that hears from no other replica steps down soon.
    until(lambda: in_memory[leader].status().leader_id == 0)
    assert type(settled(in_memory[leader].propose(b"refused", timeout=0.1))) is NotLeader
    assert settled(in_memory[leader].stale_read(None)) == [b"before"]


def test_two_of_three_hosts_go_on_and_the_third_one_catches_up(on_disk):
    on_disk.run()
    leader = on_disk.leader()
    commit(on_disk[leader], b"first")
    on_disk.stop(leader)
    rest = on_disk.others(leader)
    on_disk.leader()
    written = [b"first"]
    for each in range(50):
        commit(on_disk[rest[each % 2]], b"%d" % each)
        written.append(b"%d" % each)
    on_disk.run(numbers=[leader])
    until(lambda: settled(on_disk[leader].stale_read(None)) == written)


# -- Its end, which leaves no request unanswered


def test_every_future_is_answered_when_hosts_stop_under_load(hosts):
    hosts.run(InlineLedger)
    hosts.leader()
    futures, stop = [], threading.Event()
    handles = dict(hosts.replicas)

    def work(number):
        while not stop.is_set() and len(futures) < 20_000:
            futures.append(handles[number].propose(b"x", timeout=3.0))
            futures.append(handles[number].read(0, timeout=3.0))
            futures.append(handles[number].stale_read(0, timeout=3.0))
            futures.append(handles[number].propose_many([b"y", b"z"], timeout=3.0))
            stop.wait(0.0005)

    threads = [threading.Thread(target=work, args=(number,)) for number in handles]
    for thread in threads:
        thread.start()
    until(lambda: len(futures) > 300)
    for number in list(handles):
        hosts.stop(number)
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    unexpected = {
        type(outcome)
        for outcome in map(settled, futures)
        if isinstance(outcome, Exception) and not isinstance(outcome, DrakkarError | IndexError)
    }
    assert unexpected == set()
    assert type(settled(handles[1].propose(b"late"))) is ReplicaStopped


def test_a_replica_can_be_stopped_and_started_again_on_its_host(on_disk):
    on_disk.run()
    on_disk.leader()
    for each in range(3):
        commit(on_disk[1], b"%d" % each)
        old = on_disk[1]
        old.stop()
        assert type(settled(old.propose(b"x"))) is ReplicaStopped
        with pytest.raises(ConfigError, match="has no replica on"):
            on_disk.hosts[1].replica(1)
        on_disk.run(numbers=[1])
        assert on_disk.hosts[1].replica(1) is on_disk[1]
        until(lambda each=each: settled(on_disk[1].stale_read(None)) == [b"%d" % n for n in range(each + 1)])


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def nothing_left_running():
    """Threads, actors and descriptors are at the end what they were at the beginning."""
    threads = set(threading.enumerate())
    open_before = descriptors()
    actors = set(pykka.ActorRegistry.get_all())
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
    assert set(threading.enumerate()) <= threads
    assert set(pykka.ActorRegistry.get_all()) <= actors
    # A host that goes on may be making a file of its log at any moment.
    until(lambda: descriptors() <= open_before)


def test_stopping_leaves_no_thread_no_actor_and_no_descriptor(tmp_path):
    with Hosts(data=tmp_path) as warmed_up:  # what the first one loads stays, and is no leak
        warmed_up.run()
        warmed_up.leader()
    with nothing_left_running():
        for each in range(2):
            with Hosts(data=tmp_path / f"again-{each}") as hosts:
                hosts.run()
                commit(hosts[hosts.leader()], b"x")
                for shard in range(2, 5):
                    hosts.run(shard_id=shard)


def test_stopping_again_does_nothing_and_a_stopped_host_starts_no_replica(in_memory):
    host = in_memory.start(1)
    host.stop()
    host.stop()
    with pytest.raises(ReplicaStopped, match="make a new one"):
        host.start_replica(Ledger, shard_id=1, replica_id=1, members=in_memory.members)
    with pytest.raises(LoopError):
        host.peers()


def test_a_host_stops_cleanly_after_an_application_has_stopped_all_its_actors(on_disk):
    on_disk.run()
    commit(on_disk[on_disk.leader()], b"x")
    replica = on_disk[1]
    pykka.ActorRegistry.stop_all(timeout=TIMEOUT_S)
    assert type(settled(replica.propose(b"late"))) is ReplicaStopped
    for number in on_disk.members:
        on_disk.stop(number)
    on_disk.run()
    assert contents(on_disk[on_disk.leader()]) == [b"x"]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda host: host.stop(), id="stop"),
        pytest.param(lambda host: host.start_replica(Ledger, shard_id=2, replica_id=1), id="start_replica"),
        pytest.param(
            lambda host: host.start_replicas([ReplicaSpec(Ledger, shard_id=2, replica_id=1)]),
            id="start_replicas",
        ),
        pytest.param(lambda host: host.remove_data(2, 1), id="remove_data"),
        pytest.param(lambda host: host.peers(), id="peers"),
    ],
)
def test_a_host_refuses_to_wait_in_its_own_loop_and_goes_on(in_memory, call):
    in_memory.run()
    host = in_memory.hosts[1]
    with pytest.raises(DeadlockError):
        host.loop.call(lambda: call(host), timeout=TIMEOUT_S)
    in_memory.leader()
    assert commit(in_memory[1], b"x") == 1


# -- What a user gets wrong


WRONG_OPTIONS = [
    ({"tick_interval": 0}, "tick_interval=0: must be a number from 0.001 to 60"),
    ({"tick_interval": float("nan")}, "tick_interval=nan"),
    ({"tick_interval": "fast"}, "tick_interval='fast'"),
    ({"workers": 0}, "workers=0: must be a whole number from 1 to 64"),
    ({"workers": 2.5}, "workers=2.5"),
    ({"max_waiting_commands": -1}, "max_waiting_commands=-1"),
    ({"max_waiting_reads": True}, "max_waiting_reads=True"),
    ({"max_command_bytes": 64 << 20}, "max_command_bytes=67108864"),
    ({"log_memory_bytes": -1}, "log_memory_bytes=-1"),
]


@pytest.mark.parametrize(("options", "text"), WRONG_OPTIONS)
def test_a_wrong_option_of_a_host_names_itself_and_its_bounds(options, text):
    (address,) = free_addresses(1)
    with nothing_left_running(), pytest.raises(ConfigError) as caught:
        NodeHost(address, **options)
    assert text in str(caught.value)


def test_an_address_that_is_none_or_is_taken_is_named_with_the_remedy(tmp_path):
    with nothing_left_running():
        with pytest.raises(TransportError, match="'nowhere': write it as 'host:port'"):
            NodeHost("nowhere", tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(TransportError, match=f"{address}.*(in use|taken)"):
                NodeHost(address, tmp_path)
    with NodeHost(address, tmp_path):
        """What failed holds neither the directory nor the port."""


def test_a_port_that_changes_is_refused_where_others_must_find_the_host_again(tmp_path):
    with pytest.raises(ConfigError, match=r"address='127.0.0.1:0'.*name a port"):
        NodeHost("127.0.0.1:0", tmp_path)
    with NodeHost("127.0.0.1:0", IN_MEMORY) as host:
        assert not host.address.endswith(":0")


def test_a_directory_of_another_host_or_deployment_is_refused_untouched(tmp_path):
    first, second = free_addresses(2)
    with NodeHost(first, tmp_path):
        pass
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "LOCK"
    }
    with nothing_left_running():
        with pytest.raises(ConfigError, match=f"belongs to address='{first}'"):
            NodeHost(second, tmp_path)
        with pytest.raises(ConfigError, match="belongs to deployment_id='default'"):
            NodeHost(first, tmp_path, deployment_id="other")
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("part", ["log", "snapshots", "IDENTITY"])
def test_a_host_that_lost_a_part_of_its_directory_is_refused_until_it_is_back(on_disk, part):
    """Started anew, it could elect itself with the one that lacks the last command, which would be lost."""
    on_disk.run()
    commit(on_disk[on_disk.leader()], b"first")
    on_disk.stop(2)
    commit(on_disk[on_disk.leader()], b"acknowledged by 1 and 3")
    on_disk.stop(1)
    on_disk.stop(3)
    lost, aside = on_disk.data / "3" / part, on_disk.data / "aside"
    lost.rename(aside)
    on_disk.run(numbers=[2])
    with pytest.raises(
        CorruptData, match=rf"{lost} is missing.*: put it back as it was, or replace the repl"
    ):
        on_disk.run(numbers=[3])
    assert not lost.exists()
    aside.rename(lost)
    on_disk.run(numbers=[3])
    assert contents(on_disk[3]) == [b"first", b"acknowledged by 1 and 3"]


def test_something_elses_directory_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with (
        nothing_left_running(),
        pytest.raises(ConfigError, match=r"holds thesis.txt.*empty or a new directory"),
    ):
        NodeHost(free_addresses(1)[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_never_share_a_directory(tmp_path):
    first, second = free_addresses(2)
    code = (
        "import sys\nfrom drakkar.actors import ConfigError, NodeHost\n"
        "try:\n    NodeHost(sys.argv[1], sys.argv[2])\nexcept ConfigError as error:\n    print(error)\n"
    )
    with NodeHost(first, tmp_path):
        other = subprocess.run(
            [sys.executable, "-c", code, first, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert f"is in use by process {os.getpid()}" in other.stdout
    assert second


def wrong_starts():
    """What `start_replica` refuses at the first start: options, and what the error says."""
    yield "no members", lambda _: {}, "starts for the first time: name all members, or join=True"
    yield "both", lambda m: {"members": m, "join": True}, "leave them out"
    yield "others only", lambda m: {"members": {2: m[2], 3: m[3]}}, "must contain replica 1 itself"
    yield "another's address", lambda m: {"members": {**m, 1: m[2]}}, "two members have the same address"
    yield (
        "a foreign address",
        lambda m: {"members": {**m, 1: "127.0.0.1:9"}},
        "replica 1 is this host, whose address",
    )
    yield "a malformed address", lambda m: {"members": {**m, 3: "nowhere"}}, "'nowhere'"
    yield "an id that is out of bounds", lambda m: {"members": {**m, 0: "127.0.0.1:9"}}, "0 is no replica id"
    yield "an id that is a text", lambda m: {"members": {**m, "4": "127.0.0.1:9"}}, "'4' is no replica id"
    yield "a role of a first member", lambda m: {"members": m, "role": State.OBSERVER}, "join=True"
    yield (
        "a role in which no replica starts",
        lambda m: {"members": m, "role": State.LEADER},
        "FOLLOWER, OBSERVER or WITNESS",
    )
    yield "an unknown option", lambda m: {"members": m, "config": {"speed": 9}}, "'speed'"
    yield (
        "an option out of bounds",
        lambda m: {"members": m, "config": {"election_ticks": 1}},
        "election_ticks=1",
    )
    yield (
        "an option that a host cannot act on",
        lambda m: {"members": m, "config": {"notify_commit": True}},
        "notify_commit=True: a host cannot do that: a future is set once its command is applied; leave it out",
    )
    yield (
        "the same in a RaftConfig",
        lambda m: {"members": m, "config": RaftConfig(replica_id=1, notify_commit=True)},
        "notify_commit=True",
    )
    yield (
        "group commit without groups",
        lambda m: {"members": m, "config": {"group_commit": True}},
        "group_commit=True: needs groups, or all voters would have to be up to commit",
    )
    yield (
        "a member without a group",
        lambda m: {"members": m, "config": {"group_commit": True}, "groups": {1: 1, 2: 2}},
        "name the groups of [3] too",
    )
    yield (
        "one group",
        lambda m: {"members": m, "config": {"group_commit": True}, "groups": {1: 1, 2: 1, 3: 1}},
        "name two groups or more",
    )
    yield (
        "a group below 0",
        lambda m: {"members": m, "config": {"group_commit": True}, "groups": {1: 1, 2: 2, 3: -3}},
        "group=-3",
    )
    yield "groups for nothing", lambda m: {"members": m, "groups": {1: 1}}, "need group_commit=True"
    yield (
        "another's config",
        lambda m: {"members": m, "config": RaftConfig(replica_id=2)},
        "for another replica",
    )
    yield (
        "a role beside a config",
        lambda m: {"members": m, "config": RaftConfig(replica_id=1), "role": State.OBSERVER},
        "leave it out",
    )
    yield (
        "no state machine",
        lambda m: {"members": m, "state_machine": Ledger()},
        "must be a StateMachine class",
    )
    yield "another class", lambda m: {"members": m, "state_machine": dict}, "must be a StateMachine class"


@pytest.mark.parametrize(
    ("options", "text"), [pytest.param(options, text, id=name) for name, options, text in wrong_starts()]
)
def test_a_wrong_start_says_what_is_wrong_and_records_nothing(tmp_path, options, text):
    with Hosts(data=tmp_path) as hosts:
        host = hosts.start(1)
        given = {"state_machine": Ledger, "shard_id": 1, "replica_id": 1, **options(hosts.members)}
        with nothing_left_running(), pytest.raises((ConfigError, TransportError)) as caught:
            host.start_replica(given.pop("state_machine"), **given)
        assert text in str(caught.value)
        assert host._store.replicas() == []
        hosts.run(numbers=[1])


class Light(IntEnum):
    RED = 0


def with_a_hole():
    table = raft_handlers()
    table.on(MessageType.define("test_host.hole", 40_010), State.LEADER)(lambda _raft, _message: None)
    return table


@pytest.mark.parametrize(
    ("table", "named"),
    [
        pytest.param(with_a_hole(), "undeclared", id="a hole"),
        pytest.param(
            HandlerTable(Light), "its states are RED, but its node's are FOLLOWER", id="other states"
        ),
        pytest.param({}, r"handlers=\{\} is no HandlerTable: make one with raft_handlers", id="a dict"),
        pytest.param(HandlerTable(State), "no row of LOCAL_TICK", id="nothing of Raft"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_is_recorded(tmp_path, table, named):
    with Hosts(data=tmp_path) as hosts:
        host = hosts.start(1)
        with pytest.raises(HandlerTableError, match=named):
            host.start_replica(Ledger, shard_id=1, replica_id=1, members=hosts.members, handlers=table)
        assert host._store.replicas() == []


def test_a_shard_runs_once_on_a_host_however_many_threads_start_it(in_memory):
    host = in_memory.start(1)
    outcomes, start = [], threading.Barrier(4)

    def begin():
        start.wait(TIMEOUT_S)
        try:
            outcomes.append(host.start_replica(Ledger, shard_id=1, replica_id=1, members=in_memory.members))
        except ConfigError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    refused = [outcome for outcome in outcomes if isinstance(outcome, ConfigError)]
    assert len(refused) == 3
    assert all("runs already" in str(error) for error in refused)
    assert host.replica(1) in outcomes


# -- The restart


def test_all_that_was_acknowledged_is_there_after_a_restart_of_all_hosts(on_disk):
    on_disk.run()
    on_disk.leader()
    written = []
    for _ in range(3):
        for each in range(20):
            command = b"%d" % (len(written) + each)
            commit(on_disk[each % 3 + 1], command)
        written = contents(on_disk[1])
        for number in (1, 2, 3):
            on_disk.stop(number)
        for number in (1, 2, 3):
            host = on_disk.start(number)
            # Who belongs to the shard was recorded, and may be left out.
            on_disk.replicas[number] = host.start_replica(Ledger, shard_id=1, replica_id=number)
        on_disk.leader()
        for number in (1, 2, 3):
            assert contents(on_disk[number]) == written
    assert sorted(set(written), key=int) == [b"%d" % n for n in range(60)]


def test_a_restart_that_contradicts_the_first_start_is_refused(on_disk):
    on_disk.run(numbers=[1])
    on_disk[1].stop()
    host = on_disk.hosts[1]

    def start(machine=Ledger, **options):
        return host.start_replica(machine, shard_id=1, replica_id=1, **options)

    other = {**on_disk.members, 3: "127.0.0.1:9"}
    with pytest.raises(ConfigError, match="was first started with"):
        start(members=other)
    with pytest.raises(
        ConfigError, match="state_machine='Counter': the log of replica 1 was written for 'Ledger'"
    ):
        start(Counter, members=on_disk.members)
    with pytest.raises(ConfigError, match="one of the first members"):
        start(join=True)
    assert start(members=on_disk.members).status().replica_id == 1


def test_a_damaged_log_is_reported_and_the_other_replicas_of_the_host_start(on_disk, tmp_path):
    on_disk.run(shard_id=2)
    on_disk.run(shard_id=1)
    commit(on_disk[1], b"a bit of this is flipped")
    on_disk.stop(1)
    (segment,) = (path for path in tmp_path.glob("1/log/*.segment") if b"a bit of this" in path.read_bytes())
    content = bytearray(segment.read_bytes())
    content[content.index(b"a bit of this")] ^= 1
    segment.write_bytes(content)
    host = on_disk.start(1)
    with pytest.raises(
        CorruptData, match=r"shard 1 replica 1: a run of entries .* in [0-9a-f]+.segment, offset"
    ):
        host.start_replica(Ledger, shard_id=1, replica_id=1)
    assert host.start_replica(Ledger, shard_id=2, replica_id=1).status().shard_id == 2


# -- State machines that fail, or take their time


def test_an_exception_in_apply_stops_that_replica_loudly_and_no_other(in_memory, notices, caplog):
    machines = dict.fromkeys(in_memory.members, Ledger)
    machines[1] = lambda: Failing("apply", ZeroDivisionError("a bug in apply"))
    other = in_memory.run(shard_id=2)
    for number, machine in machines.items():
        in_memory.run(machine, numbers=[number])
    in_memory.hosts[1].subscribe(notices)
    in_memory.leader()
    waiting = in_memory[1].propose(b"fail")
    ended = kept(notices).wait_for(lambda event: isinstance(event, ReplicaEnded))
    assert (ended.shard, ended.replica) == (1, 1)
    assert "a bug in apply" in str(ended.reason)
    assert "a bug in apply" in caplog.text
    assert type(settled(waiting)) is OutcomeUnknown
    assert type(settled(in_memory[1].propose(b"x"))) is ReplicaStopped
    # The shard goes on elsewhere, and the host with its other replicas.
    assert isinstance(commit(in_memory[2], b"y"), int)
    assert isinstance(commit(other[1], b"z"), int)
    with pytest.raises(ConfigError, match="has no replica"):
        in_memory.hosts[1].replica(1)


def test_a_slow_apply_costs_no_leader_and_delays_no_other_replica(in_memory):
    slow = [Gated(apply_waits=True) for _ in range(3)]
    try:
        for number, machine in zip(in_memory.members, slow, strict=True):
            in_memory.run(lambda machine=machine: machine, numbers=[number], config=CALM)
        leader = in_memory.leader()
        others = in_memory.run(shard_id=2, config=CALM)
        in_memory.leader(others)
        in_memory.replicas.update(
            {number: in_memory.hosts[number].replica(1) for number in in_memory.members}
        )
        term = in_memory[leader].status().term
        waiting = in_memory[leader].propose(b"slow", timeout=60)
        for machine in slow:
            assert machine.arrived.wait(TIMEOUT_S)
        node = in_memory[leader]._node
        until_tick = node.raft.timers.ticks + 2 * CALM["election_ticks"]
        while node.raft.timers.ticks < until_tick:
            assert isinstance(commit(others[leader], b"fast"), int)
        assert not waiting.done
        assert {replica.status().term for replica in in_memory.replicas.values()} == {term}
        assert in_memory[leader].status().state is State.LEADER
    finally:
        for machine in slow:
            machine.gate.set()
    assert settled(waiting) == 1


def test_a_state_machine_that_hangs_does_not_keep_a_host_from_stopping(caplog, monkeypatch):
    machine = Gated(apply_waits=True)
    host = NodeHost("127.0.0.1:0", IN_MEMORY, tick_interval=TICK)
    replica = host.start_replica(lambda: machine, shard_id=1, replica_id=1, members={1: host.address})
    until(lambda: replica.status().leader_id)
    waiting = [replica.propose(b"a", timeout=60)]
    assert machine.arrived.wait(TIMEOUT_S)
    waiting += [replica.read(None, timeout=60), replica.stale_read(None, timeout=60)]
    monkeypatch.setattr(host._pool, "stop", partial(host._pool.stop, timeout=0.5))
    began = time.monotonic()
    host.stop()
    assert time.monotonic() - began < 5
    assert "1 workers still work" in caplog.text
    assert [type(settled(future)) for future in waiting] == [OutcomeUnknown, ReplicaStopped, ReplicaStopped]
    machine.gate.set()


def test_a_state_machine_that_hangs_keeps_the_data_directory_from_the_next_host(tmp_path, monkeypatch):
    """It may still be at work on files there."""
    machine = Gated(apply_waits=True)
    (address,) = free_addresses(1)
    host = NodeHost(address, tmp_path, tick_interval=TICK)
    replica = host.start_replica(lambda: machine, shard_id=1, replica_id=1, members={1: address})
    until(lambda: replica.status().leader_id)
    replica.propose(b"a", timeout=60)
    assert machine.arrived.wait(TIMEOUT_S)
    monkeypatch.setattr(host._pool, "stop", partial(host._pool.stop, timeout=0.5))
    with pytest.raises(OutcomeUnknown, match="still at work"):
        host.stop()
    with pytest.raises(ConfigError, match="is in use by process"):
        NodeHost(address, tmp_path)
    machine.gate.set()


def test_a_loop_that_hangs_keeps_its_log_open_and_the_data_directory_locked(tmp_path, monkeypatch):
    """A second thread that works on the log beside the loop's would ruin it."""
    monkeypatch.setattr(host_module, "LOOP_STOP_TIMEOUT_S", 0.2)
    (address,) = free_addresses(1)
    host = NodeHost(address, tmp_path, tick_interval=TICK)
    closed = []
    close = host._store.close
    monkeypatch.setattr(host._store, "close", lambda: closed.append(threading.current_thread()))
    arrived, gate = threading.Event(), threading.Event()

    def keep_the_thread():
        arrived.set()
        gate.wait(TIMEOUT_S)

    host.loop.run_soon(keep_the_thread)
    assert arrived.wait(TIMEOUT_S)
    try:
        with pytest.raises(
            OutcomeUnknown, match=r"has not ended: .* did not stop within 0.2 seconds.*stays open"
        ):
            host.stop()
        assert closed == []
        with pytest.raises(ConfigError, match="is in use by process"):
            NodeHost(address, tmp_path)
    finally:
        gate.set()
    host.loop.stop()
    close()
    host._directory.close()
    with NodeHost(address, tmp_path):
        pass


# -- The disk


def test_a_crash_of_what_reports_flushes_fails_the_log(tmp_path, monkeypatch):
    go, crashed = trio.Event(), ValueError("what reports flushes has crashed")

    async def serve(_driver):
        await go.wait()
        raise crashed

    monkeypatch.setattr(LoopDriver, "serve", serve)
    # It is not there to report: all is done by threads.
    monkeypatch.setattr(log_driver, "linux_aio", None)
    (address,) = free_addresses(1)
    with NodeHost(address, tmp_path, tick_interval=TICK) as host:
        replica = host.start_replica(Ledger, shard_id=1, replica_id=1, members={1: address})
        until(lambda: replica.status().leader_id)
        assert host.store_status.poisoned is None
        host.loop.run_soon(go.set)
        until(lambda: host.store_status.poisoned)
        assert host.store_status.poisoned.__cause__ is crashed
        outcomes = []
        host.loop.call(host._store.save, AppendRequest(1, 1, HardState(9), done=outcomes.append))
        until(lambda: outcomes)
        assert isinstance(outcomes[0], StorageFailed)


def test_a_failing_write_stops_the_replicas_of_that_host_and_loses_nothing_acknowledged(on_disk, notices):
    on_disk.run()
    leader = on_disk.leader()
    second = on_disk.run(shard_id=2)
    on_disk.replicas.update({number: on_disk.hosts[number].replica(1) for number in on_disk.members})
    on_disk.leader(second)
    acknowledged = [b"%d" % each for each in range(10)]
    for command in acknowledged:
        commit(on_disk[leader], command)
    host = on_disk.hosts[leader]
    host.subscribe(notices)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    host._store._files.write = no_space
    futures = [on_disk[leader].propose(b"lost", timeout=60) for _ in range(5)]
    ended = kept(notices).wait_for(lambda event: isinstance(event, ReplicaEnded) and event.shard == 1)
    assert "No space left" in str(ended.reason.__cause__)
    assert {type(settled(future)) for future in futures} <= {OutcomeUnknown, ReplicaStopped}
    # The second shard of that host stops too, as soon as it has to write.
    until(
        lambda: isinstance(
            settled(second[leader].propose(b"x", timeout=1.0)), ReplicaStopped | OutcomeUnknown
        )
    )
    kept(notices).wait_for(lambda event: isinstance(event, ReplicaEnded) and event.shard == 2)
    assert host.store_status.poisoned is not None
    on_disk.replicas.pop(leader)
    on_disk.leader()
    rest = on_disk.others(leader)
    commit(on_disk[rest[0]], b"after")
    assert [each for each in contents(on_disk[rest[1]]) if each != b"lost"] == [*acknowledged, b"after"]
    on_disk.stop(leader)
    on_disk.run(numbers=[leader])
    until(lambda: settled(on_disk[leader].stale_read(None)) == contents(on_disk[rest[0]]))


class HungDisk:
    """Between a host and its store: holds back every answer of the store, until it is mended."""

    def __init__(self, host):
        self._store = host._store
        self._save = self._store.save
        self._lock = threading.Lock()
        self._held = []
        self._hangs = True
        self._store.save = self.save

    def save(self, save):
        self._save(replace(save, done=lambda error: self._done(save.done, error)))

    def _done(self, done, error):
        with self._lock:
            if self._hangs:
                self._held.append((done, error))
                return
        done(error)

    def mend(self):
        with self._lock:
            self._hangs = False
            held, self._held = self._held, []
        for done, error in held:
            done(error)


def test_a_leader_whose_disk_hangs_gives_way_to_another_and_comes_back_when_it_writes_again(on_disk):
    on_disk.run()
    leader = on_disk.leader()
    commit(on_disk[leader], b"before")
    disk = HungDisk(on_disk.hosts[leader])
    try:
        unknown = on_disk[leader].propose(b"in the log", timeout=60)
        node = on_disk[leader]._node
        asked_at = node.disk.ticks
        until(lambda: on_disk[leader].status().state is not State.LEADER)
        assert node.disk.ticks - asked_at <= 2 * node.raft.config.election_ticks
        outcome = until(lambda: node.disk.hangs and settled(on_disk[leader].propose(b"refused")))
        assert type(outcome) is SystemBusy
        rest = {number: on_disk[number] for number in on_disk.others(leader)}
        successor = on_disk.leader(rest)
        term = on_disk[successor].status().term
        for each in range(5):
            commit(on_disk[successor], b"%d" % each)
    finally:
        disk.mend()
    ledger = contents(on_disk[successor])
    until(lambda: settled(on_disk[leader].stale_read(None)) == ledger)
    assert on_disk[leader].status().term >= term
    # Its last proposal had reached the others, who committed it; it hears of that at last.
    assert settled(unknown) == ledger.index(b"in the log") + 1


# -- Handlers of one's own


PING = MessageType.define("test_host.ping", 40_020)
PONG = MessageType.define("test_host.pong", 40_021)


def test_a_table_of_ones_own_speaks_between_hosts_beside_raft(in_memory):
    pongs, replicated, arrived = [], {}, threading.Event()
    for number in in_memory.members:
        table = raft_handlers()

        @table.on(PING)
        def answer(raft, message):
            if message.to:
                raft.reply(message, PONG, payload={"from": raft.id, "saw": message.payload})
            else:
                for peer in raft.peers:
                    raft.send(Message(PING, to=peer, payload=message.payload))

        @table.on(PONG)
        def note(_raft, message):
            pongs.append((message.sender, message.payload))
            if len(pongs) == 2:
                arrived.set()

        @table.wrap(MessageType.REPLICATE, State.FOLLOWER)
        def count(raft, message, inner):
            replicated[raft.id] = replicated.get(raft.id, 0) + len(message.entries)
            inner(raft, message)

        in_memory.run(numbers=[number], handlers=table)
        assert in_memory[number].ref.proxy().handlers.get() is table
    leader = in_memory.leader()
    commit(in_memory[leader], b"x")
    in_memory[1].ref.tell(Message(PING, payload="hello"))
    assert arrived.wait(TIMEOUT_S)
    assert sorted(pongs) == [(n, {"from": n, "saw": "hello"}) for n in (2, 3)]
    assert all(replicated[number] >= 1 for number in in_memory.others(leader))


# -- Events


def test_subscribers_hear_of_leaders_members_and_ends(in_memory, notices):
    deaf = Notices.start()
    host = in_memory.start(1)
    host.subscribe(notices)
    host.subscribe(deaf)
    deaf.stop()
    in_memory.run()
    leader = in_memory.leader()
    told = kept(notices).wait_for(lambda event: isinstance(event, LeaderChanged) and event.leader == leader)
    assert (told.shard, told.replica, told.term) == (1, 1, in_memory[1].status().term)
    removed = in_memory.others(leader)[-1]
    removed = removed if removed != 1 else in_memory.others(leader)[0]
    until(lambda: not isinstance(settled(in_memory[leader].remove_replica(removed)), RequestDropped))
    told = kept(notices).wait_for(
        lambda event: isinstance(event, MembershipChanged) and removed not in event.membership.voters
    )
    assert (told.shard, told.replica) == (1, 1)
    in_memory[1].stop()
    assert kept(notices).wait_for(lambda event: isinstance(event, ReplicaEnded)) == ReplicaEnded(1, 1, None)
    assert host.counters["events lost"] == 1


# -- Who belongs to a shard


def change(call):
    """Ask for a membership change until it is made, and return the new membership."""

    def asked():
        outcome = settled(call())
        if isinstance(outcome, DrakkarError):
            assert isinstance(outcome, RequestDropped | OutcomeUnknown), outcome
            assert not isinstance(outcome, MembershipRejected) or "not yet applied" in str(outcome), outcome
            return None
        return outcome

    return until(asked)


def test_a_host_joins_as_observer_is_promoted_and_others_leave_one_by_one(tmp_path):
    with Hosts(5, data=tmp_path) as hosts:
        first = {number: hosts.addresses[number - 1] for number in (1, 2, 3)}
        for number in first:
            host = hosts.start(number)
            hosts.replicas[number] = host.start_replica(Ledger, shard_id=1, replica_id=number, members=first)
        leader = hosts.leader()
        written = [b"%d" % each for each in range(30)]
        for command in written:
            commit(hosts[leader], command)

        # One joins, and learns all there is.
        joined = hosts.start(4).start_replica(
            Ledger, shard_id=1, replica_id=4, join=True, role=State.OBSERVER
        )
        assert type(settled(joined.propose(b"x", timeout=0.1))) is NotLeader
        membership = change(lambda: hosts[leader].add_observer(4, hosts.addresses[3]))
        assert (membership.voters, membership.observers) == ({1, 2, 3}, {4})
        until(lambda: settled(joined.stale_read(None)) == written)
        assert joined.status().state is State.OBSERVER
        assert contents(joined) == written

        # It becomes a voter, by a request that a follower sends on.
        follower = hosts.others(leader)[0]
        membership = change(lambda: hosts[follower].add_replica(4, hosts.addresses[3]))
        assert (membership.voters, membership.observers) == ({1, 2, 3, 4}, frozenset())
        until(lambda: joined.status().state is State.FOLLOWER)
        hosts.replicas[4] = joined

        # A follower leaves, then the leader does; both go on running, and disturb no other replica.
        gone = next(number for number in (1, 2, 3) if number not in {leader, follower})
        assert change(lambda: hosts[leader].remove_replica(gone)).voters == {1, 2, 3, 4} - {gone}
        hosts.replicas.pop(gone)
        leader = hosts.leader()
        left = change(lambda: hosts[leader].remove_replica(leader))
        retired = hosts.replicas.pop(leader)
        assert left.voters == set(hosts.replicas)
        until(lambda: retired.status().state is State.FOLLOWER)
        hosts.leader()
        for number in hosts.replicas:
            assert isinstance(commit(hosts[number], b"by %d" % number), int)

        # Ids are never used again, and the rest remember it all when they start again.
        outcome = settled(hosts[4].add_replica(gone, hosts.addresses[4]))
        assert type(outcome) is MembershipRejected
        assert "never used again" in str(outcome)
        remaining = sorted(hosts.replicas)
        ledger = contents(hosts[4])
        for number in remaining:
            hosts.stop(number)
        for number in remaining:
            hosts.replicas[number] = hosts.start(number).start_replica(Ledger, shard_id=1, replica_id=number)
        hosts.leader()
        for number in remaining:
            assert contents(hosts[number]) == ledger
            assert set(hosts[number].status().voters) == set(remaining)


def test_several_replicas_change_at_once_by_joint_consensus(tmp_path):
    with Hosts(4, data=tmp_path) as hosts:
        first = {number: hosts.addresses[number - 1] for number in (1, 2, 3)}
        for number in first:
            hosts.replicas[number] = hosts.start(number).start_replica(
                Ledger, shard_id=1, replica_id=number, members=first
            )
        leader = hosts.leader()
        commit(hosts[leader], b"x")
        joined = hosts.start(4).start_replica(Ledger, shard_id=1, replica_id=4, join=True)
        gone = hosts.others(leader)[0]
        swap = [Change(ChangeType.ADD_VOTER, 4, hosts.addresses[3]), Change(ChangeType.REMOVE, gone)]
        change(lambda: hosts[leader].change_membership(swap))
        wanted = tuple(sorted({1, 2, 3, 4} - {gone}))
        until(lambda: joined.status().voters == wanted)
        hosts.stop(gone)
        hosts.replicas[4] = joined
        hosts.leader()
        assert contents(joined) == [b"x"]


# -- Many shards


@pytest.mark.timeout(120)
def test_two_hundred_shards_on_three_hosts_elect_and_commit_with_few_threads():
    shards = range(1, 201)
    before = threading.active_count()
    with Hosts(tick_interval=0.25) as hosts:
        replicas = {shard: hosts.run(InlineLedger, shard_id=shard) for shard in shards}
        began = time.monotonic()
        for group in replicas.values():
            hosts.leader(group)
        elected = time.monotonic() - began
        futures = [
            (replicas[shard][number], replicas[shard][number].propose(b"%d" % number, timeout=30))
            for shard in shards
            for number in hosts.members
        ]
        for replica, future in futures:
            outcome = settled(future)
            if isinstance(outcome, DrakkarError):
                commit(replica, b"again")
        reads = [(group, group[1].read(None, timeout=30)) for group in replicas.values()]
        for group, future in reads:
            outcome = settled(future, timeout=40)
            ledger = contents(group[1]) if isinstance(outcome, DrakkarError) else outcome
            assert len(ledger) >= 3
        assert threading.active_count() - before <= 3 * 8
    assert elected < 60


# -- The rest of the host


def test_messages_for_shards_that_are_not_here_are_counted(in_memory):
    in_memory.run(numbers=[1])
    host = in_memory.start(2)
    until(lambda: host.counters["messages for shards that are not here"])
    assert in_memory.addresses[1] in in_memory.hosts[1].peers()


def test_a_stalled_host_does_not_make_up_for_the_ticks_that_it_missed(in_memory):
    in_memory.run()
    in_memory.leader()
    node, loop = in_memory[1]._node, in_memory.hosts[1]._loop
    entered, leave = threading.Event(), threading.Event()
    loop.run_soon(lambda: (entered.set(), leave.wait(TIMEOUT_S)))
    assert entered.wait(TIMEOUT_S)
    stalled_at, began = node.disk.ticks, time.monotonic()
    until(lambda: time.monotonic() - began > 30 * TICK)
    leave.set()
    until(lambda: node.disk.ticks > stalled_at)
    assert node.disk.ticks - stalled_at <= 5


@pytest.mark.parametrize("level", [logging.ERROR])
def test_an_ordinary_life_logs_no_error(hosts, caplog, level):
    with caplog.at_level(level):
        hosts.run()
        commit(hosts[hosts.leader()], b"x")
        for number in list(hosts.hosts):
            hosts.stop(number)
    assert [record for record in caplog.records if record.levelno >= level] == []


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        pytest.param("socket.socketpair", LoopError, "cannot start: OSError.*many files", id="for the loop"),
        pytest.param("trio.open_tcp_listeners", TransportError, "raise the limit", id="for the port"),
        pytest.param("threading.Thread.start", OSError, "many files", id="for the workers"),
    ],
)
def test_a_host_that_lacks_descriptors_leaves_nothing_open(tmp_path, monkeypatch, where, error, told):
    [address] = free_addresses(1)

    def too_many(*_args, **_named):
        raise OSError(errno.EMFILE, "too many files")

    with monkeypatch.context() as patch:
        patch.setattr(where, too_many)
        with pytest.raises(error, match=told):
            NodeHost(address, tmp_path / "data")
    NodeHost(address, tmp_path / "data").stop()
