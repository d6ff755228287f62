"""Snapshots, compaction and sessions on real hosts: state that outlives the log, the process and the replica."""

import errno
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pykka
import pytest
from drakkar.actors import (
    ConcurrentStateMachine,
    ConfigError,
    CorruptData,
    DiskStateMachine,
    DrakkarError,
    MembershipRejected,
    NotLeader,
    OutcomeUnknown,
    ReplicaEnded,
    ReplicaRemoved,
    ReplicaStopped,
    StorageFailed,
)
from drakkar.actors.host import registry
from drakkar.actors.node import exports
from drakkar.actors.node import snapshots as snapshot_keeper
from drakkar.actors.snapshots.files import DiskFiles
from drakkar.actors.snapshots.store import Snapshots, read_file
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.raft.state import Snapshot, State
from drakkar.transport.options import Options

from tests.actors.support import (
    TIMEOUT_S,
    Gated,
    Hosts,
    InlineLedger,
    Ledger,
    Notices,
    commit,
    contents,
    settled,
    until,
)

EVERY = 20
CONFIG = {"snapshot_entries": EVERY, "compaction_overhead": 0, "election_ticks": 20}


def _save(commands, sink):
    for command in commands:
        sink.write(json.dumps(command.decode()).encode() + b"\n")


def _load(source):
    return [json.loads(line).encode() for line in source]


class Book(Ledger):
    """In memory."""

    def save(self, sink):
        _save(self.commands, sink)

    def load(self, source):
        self.commands = _load(source)


class InlineBook(Book):
    """On the loop."""

    blocks = False


class SharedBook(Book, ConcurrentStateMachine):
    """Fixes its state by a copy."""

    save = ConcurrentStateMachine.save

    def capture(self):
        fixed = list(self.commands)
        return lambda sink: _save(fixed, sink)


class DiskBook(DiskStateMachine):
    """Keeps its state in a file of its own, as of its last sync; counts what it is given."""

    def __init__(self, path):
        self.path = path
        self.rows = []
        self.given = 0
        self.closed = False

    def open(self):
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else []
        return self.rows[-1][0] if self.rows else 0

    def apply_entries(self, entries):
        self.given += len(entries)
        self.rows += [[index, command.decode()] for index, command in entries]
        return [len(self.rows) for _ in entries]

    def query(self, query):
        return [command.encode() for _, command in self.rows]

    def sync(self):
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.rows))
        draft.replace(self.path)

    def capture(self):
        fixed = json.dumps(self.rows).encode()
        return lambda sink: sink.write(fixed)

    def load(self, source):
        self.rows = json.loads(source.read())
        self.sync()

    def close(self):
        self.closed = True


@pytest.fixture(params=["memory", "disk"])
def hosts(request, tmp_path):
    with Hosts(data=tmp_path / "data" if request.param == "disk" else None) as hosts:
        yield hosts


@pytest.fixture
def on_disk(tmp_path):
    with Hosts(data=tmp_path / "data") as hosts:
        yield hosts


def write(replica, numbers):
    commands = [b"%d" % number for number in numbers]
    for command in commands:
        commit(replica, command)
    return commands


def compacted(replica, beyond=0):
    return until(lambda: replica.status().first_index > beyond + 1 and replica.status().first_index)


def outgrow(replica):
    """Write until the log begins behind all that there was; return what was written."""
    last, commands = replica.status().last_index, []
    deadline = time.monotonic() + TIMEOUT_S
    while replica.status().first_index <= last + 1:  # what ends just there can go on from the log
        commands += write(replica, range(len(commands), len(commands) + EVERY))
        assert time.monotonic() < deadline, "the log was not given up"
    return commands


@pytest.mark.parametrize("machine", [Book, InlineBook, SharedBook])
def test_the_log_is_given_up_behind_snapshots_and_the_state_comes_back_from_them(on_disk, machine):
    on_disk.run(machine, config=CONFIG)
    leader = on_disk.leader()
    commands = write(on_disk[leader], range(3 * EVERY))
    for number, replica in on_disk.replicas.items():
        compacted(replica, EVERY)
        directory = on_disk.data / str(number) / "snapshots"
        until(lambda directory=directory: len(list(directory.rglob("*.snapshot"))) == 1)
    for number in on_disk.members:
        on_disk.stop(number)
    on_disk.run(machine, config=CONFIG)
    assert contents(on_disk[on_disk.leader()]) == commands
    more = write(on_disk[1], range(100, 103))
    assert contents(on_disk[2]) == commands + more


@pytest.mark.parametrize("machine", [Book, InlineBook, SharedBook])
def test_a_follower_that_was_away_for_too_long_is_sent_the_state(on_disk, machine):
    on_disk.run(machine, config=CONFIG)
    leader = on_disk.leader()
    away = on_disk.others(leader)[0]
    write(on_disk[leader], range(5))
    on_disk.stop(away)
    commands = [b"%d" % number for number in range(5)] + outgrow(on_disk[leader])
    on_disk.run(machine, numbers=[away], config=CONFIG)
    until(lambda: on_disk[away].stale_read(None).get(timeout=TIMEOUT_S) == commands)
    assert on_disk[away].status().first_index > EVERY
    assert commit(on_disk[away], b"more") == len(commands) + 1


def test_a_new_replica_is_brought_up_by_a_snapshot_and_becomes_a_voter(hosts):
    hosts.run(Book, config=CONFIG)
    leader = hosts[hosts.leader()]
    commands = write(leader, range(3 * EVERY))
    compacted(leader, EVERY)
    with Hosts(1, data=hosts.data and hosts.data / "fourth") as fourth:
        host = fourth.start(1)
        leader.add_observer(4, fourth.addresses[0]).get(timeout=TIMEOUT_S)
        joined = host.start_replica(
            Book, shard_id=1, replica_id=4, join=True, role=State.OBSERVER, config=CONFIG
        )
        until(lambda: joined.stale_read(None).get(timeout=TIMEOUT_S) == commands)
        leader.add_replica(4, fourth.addresses[0]).get(timeout=TIMEOUT_S)
        until(lambda: joined.status().state is State.FOLLOWER)
        assert joined.propose(b"x").get(timeout=TIMEOUT_S) == len(commands) + 1


def test_a_snapshot_can_be_asked_for_and_exported(on_disk, tmp_path):
    on_disk.run(Book)
    leader = on_disk[on_disk.leader()]
    commands = write(leader, range(10))
    index = leader.snapshot(compaction_overhead=2).get(timeout=TIMEOUT_S)
    assert index == leader.status().applied
    until(lambda: leader.status().first_index == index - 1)
    assert leader.snapshot().get(timeout=TIMEOUT_S) == index, "nothing was applied since"
    commands += write(leader, [10])
    exported = leader.snapshot(export_to=tmp_path / "copy").get(timeout=TIMEOUT_S)
    assert leader.status().first_index == index - 1, "an export gives up nothing"
    with read_file(tmp_path / "copy") as reader:
        assert reader.snapshot.index == exported
        assert set(reader.snapshot.membership.voters) == {1, 2, 3}
    error = settled(leader.snapshot(export_to=tmp_path / "copy"))
    assert isinstance(error, ConfigError)
    assert "copy" in str(error)


def test_a_damaged_or_missing_snapshot_is_named_and_nothing_starts(on_disk):
    on_disk.run(Book, config=CONFIG)
    leader = on_disk.leader()
    write(on_disk[leader], range(2 * EVERY))
    compacted(on_disk[leader])
    on_disk.stop(leader)
    (file,) = (on_disk.data / str(leader) / "snapshots" / f"1-{leader}").glob("*.snapshot")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(CorruptData, match=file.name):
        on_disk.run(Book, numbers=[leader], config=CONFIG)
    damaged = bytearray(content)
    damaged[30] ^= 1
    file.write_bytes(damaged)
    notices = Notices.start()
    try:
        on_disk.hosts[leader].subscribe(notices)
        on_disk.run(Book, numbers=[leader], config=CONFIG)
        ended = notices._actor_weakref().wait_for(lambda event: isinstance(event, ReplicaEnded))
        assert file.name in str(ended.reason)
    finally:
        notices.stop()
    file.write_bytes(content)
    on_disk.run(Book, numbers=[leader], config=CONFIG)
    assert len(contents(on_disk[leader])) == 2 * EVERY


def test_a_state_machine_on_disk_is_given_nothing_twice(on_disk, tmp_path):
    machines = {}

    def book(number):
        machines[number] = DiskBook(tmp_path / f"book-{number}")
        return machines[number]

    for number in on_disk.members:
        on_disk.run(lambda number=number: book(number), numbers=[number], config=CONFIG)
    leader = on_disk.leader()
    commands = write(on_disk[leader], range(2 * EVERY + 5))
    for number, replica in on_disk.replicas.items():
        compacted(replica)
        until(lambda number=number: len(machines[number].rows) == len(commands))
        machines[number].sync()
    for number in list(on_disk.members):
        on_disk.stop(number)
        until(lambda number=number: machines[number].closed)
    for number in on_disk.members:
        on_disk.run(lambda number=number: book(number), numbers=[number], config=CONFIG)
    assert contents(on_disk[on_disk.leader()]) == commands
    assert [machines[number].given for number in machines] == [0, 0, 0]
    away = on_disk.others(on_disk.leader())[0]
    on_disk.stop(away)
    commands += outgrow(on_disk[on_disk.leader()])
    on_disk.run(lambda: book(away), numbers=[away], config=CONFIG)
    until(lambda: on_disk[away].stale_read(None).get(timeout=TIMEOUT_S) == commands)
    error = settled(on_disk[away].session())
    assert isinstance(error, ConfigError)


def test_a_session_is_remembered_by_snapshots(on_disk):
    on_disk.run(Book, config=CONFIG)
    leader = on_disk.leader()
    away = on_disk.others(leader)[0]
    on_disk.stop(away)  # so that only the snapshot can tell it of the session
    session = on_disk[leader].session().get(timeout=TIMEOUT_S)
    assert session.propose(b"once").get(timeout=TIMEOUT_S) == 1
    token = session.token
    commands = outgrow(on_disk[leader])
    on_disk.run(Book, numbers=[away], config=CONFIG)
    until(lambda: on_disk[away].status().first_index > EVERY)
    again = on_disk[away].session(token=token).get(timeout=TIMEOUT_S)
    assert again.propose(b"twice").get(timeout=TIMEOUT_S) == len(commands) + 2


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_removed_replica_says_so_and_stops_itself(hosts, who):
    notices = Notices.start()
    try:
        hosts.run(Book, config=CONFIG)
        leader = hosts.leader()
        gone = leader if who == "leader" else hosts.others(leader)[0]
        asked = hosts.others(gone)[0]
        hosts.hosts[gone].subscribe(notices)
        commit(hosts[leader], b"before")
        hosts[asked].remove_replica(gone).get(timeout=TIMEOUT_S)
        kept = notices._actor_weakref()
        kept.wait_for(lambda event: isinstance(event, ReplicaRemoved) and event.replica == gone)
        error = settled(hosts[gone].propose(b"no"))
        assert isinstance(error, ReplicaStopped)
        assert "was removed" in str(error)
        kept.wait_for(lambda event: isinstance(event, ReplicaEnded))
        with pytest.raises(ConfigError, match="has no replica"):
            hosts.hosts[gone].replica(1)
        hosts.hosts[gone].remove_data(1, gone)
        with pytest.raises(ConfigError, match="never used again"):
            hosts.run(Book, numbers=[gone])
        assert commit(hosts[asked], b"after") == 2
    finally:
        notices.stop()


def test_a_replica_that_was_cut_off_when_it_was_removed_learns_of_it_when_it_is_back(on_disk):
    notices = Notices.start()
    try:
        on_disk.run(Book, config=CONFIG)
        leader = on_disk.leader()
        gone = on_disk.others(leader)[0]
        on_disk.stop(gone)
        on_disk[leader].remove_replica(gone).get(timeout=TIMEOUT_S)
        commit(on_disk[leader], b"after")
        on_disk.start(gone).subscribe(notices)
        on_disk.run(Book, numbers=[gone], config=CONFIG)
        kept = notices._actor_weakref()
        kept.wait_for(lambda event: isinstance(event, ReplicaRemoved) and event.replica == gone)
    finally:
        notices.stop()


def test_proposals_go_on_while_a_snapshot_is_written():
    gate, arrived = threading.Event(), threading.Event()

    class Slow(SharedBook):
        def capture(self):
            write_out = super().capture()

            def slowly(sink):
                arrived.set()
                assert gate.wait(TIMEOUT_S)
                write_out(sink)

            return slowly

    with Hosts() as hosts:
        hosts.run(Slow)
        leader = hosts[hosts.leader()]
        commands = write(leader, range(5))
        taken = leader.snapshot()
        assert arrived.wait(TIMEOUT_S)
        point = leader.status().applied
        commands += write(leader, range(5, 20))
        gate.set()
        assert taken.get(timeout=TIMEOUT_S) == point
        assert contents(leader) == commands


def test_wait_ready_starts_a_replica_that_has_applied_what_it_knew(on_disk):
    on_disk.run(InlineLedger)
    leader = on_disk.leader()
    commands = write(on_disk[leader], range(30))
    on_disk.stop(leader)
    # The log was written for a machine of that name.
    machine = type("InlineLedger", (Gated,), {})(apply_waits=True)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(on_disk.run, lambda: machine, numbers=[leader], config={"wait_ready": True})
        assert machine.arrived.wait(TIMEOUT_S)
        assert not starting.done()
        machine.gate.set()
        replica = starting.result(TIMEOUT_S)[leader]
    assert replica.stale_read(None).get(timeout=TIMEOUT_S)[:29] == commands[:29]


# -- what goes wrong on the way


class Large(Book):
    """Some megabytes of state, with any commands."""

    def save(self, sink):
        super().save(sink)
        sink.write(b"\n" + bytes(3 << 20))

    def load(self, source):
        self.commands = []
        for line in source:
            if line == b"\n":
                assert not any(source.read())
                return
            self.commands.append(json.loads(line).encode())


def test_a_follower_that_ends_while_it_is_sent_the_state_is_sent_it_again(tmp_path):
    slow = Options(stream_bytes_per_second=1 << 20)
    with Hosts(data=tmp_path, transport_options=slow) as hosts:
        hosts.run(Large, config=CONFIG)
        leader = hosts.leader()
        away = hosts.others(leader)[0]
        hosts.stop(away)
        commands = outgrow(hosts[leader])
        hosts.run(Large, numbers=[away], config=CONFIG)
        directory = tmp_path / str(away) / "snapshots"
        until(lambda: any(file.stat().st_size > 1 << 20 for file in directory.rglob("*.tmp")))
        hosts.stop(away)
        commands += write(hosts[leader], [1000])
        hosts.run(Large, numbers=[away], config=CONFIG)
        until(lambda: hosts[away].stale_read(None).get(timeout=TIMEOUT_S) == commands)
        assert list(directory.rglob("*.tmp")) == []
        until(lambda: len(list(directory.rglob("*.snapshot"))) == 1)


def test_a_receiver_that_cannot_keep_the_state_is_sent_it_again(on_disk, monkeypatch):
    on_disk.run(Book, config=CONFIG)
    leader = on_disk.leader()
    away = on_disk.others(leader)[0]
    on_disk.stop(away)
    commands = outgrow(on_disk[leader])
    refused = []
    receive = Snapshots.receive

    def full(snapshots):
        if len(refused) < 2:
            refused.append(snapshots)
            raise StorageFailed("no space left on device")
        return receive(snapshots)

    monkeypatch.setattr(Snapshots, "receive", full)
    on_disk.run(Book, numbers=[away], config=CONFIG)
    until(lambda: on_disk[away].stale_read(None).get(timeout=TIMEOUT_S) == commands)
    assert len(refused) == 2


@pytest.mark.parametrize("machine", [Book, InlineBook, SharedBook])
def test_a_snapshot_that_fails_costs_nothing_else(on_disk, machine, monkeypatch, caplog):
    broken = threading.Event()
    save = machine.save if machine is not SharedBook else None

    class Breaking(machine):
        def save(self, sink):
            sink.write(b"half")
            if broken.is_set():
                raise ValueError("this cannot be saved")
            save(self, sink)

        def capture(self):
            if broken.is_set():
                raise ValueError("this cannot be saved")
            return super().capture()

    if machine is SharedBook:
        Breaking.save = SharedBook.save
    broken.set()
    on_disk.run(Breaking)
    leader = on_disk[on_disk.leader()]
    commands = write(leader, range(5))
    error = settled(leader.snapshot())
    assert isinstance(error, DrakkarError)
    assert "this cannot be saved" in str(error)
    assert "could not take a snapshot" in caplog.text
    assert contents(leader) == commands
    assert leader.status().first_index == 1
    assert list(on_disk.data.rglob("*.tmp")) == []


def test_a_full_disk_refuses_the_snapshot_and_the_shard_goes_on(on_disk, monkeypatch):
    on_disk.run(Book)
    leader = on_disk[on_disk.leader()]
    commands = write(leader, range(5))
    with monkeypatch.context() as full:
        full.setattr(DiskFiles, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        error = settled(leader.snapshot())
        assert isinstance(error, StorageFailed)
        commands += write(leader, [5])
    assert leader.snapshot().get(timeout=TIMEOUT_S) == leader.status().applied
    assert contents(leader) == commands


def test_snapshots_come_by_streams_alone(hosts):
    hosts.run(Book)
    leader = hosts.leader()
    other = hosts.others(leader)[0]
    commit(hosts[leader], b"x")
    host = hosts.hosts[other]
    forged = Message(
        MessageType.INSTALL_SNAPSHOT,
        to=other,
        sender=leader,
        shard=1,
        term=hosts[leader].status().term,
        snapshot=Snapshot(99, 1, payload=b"../../etc/passwd"),
    )
    host.loop.call(host._inputs.deliver, hosts.addresses[leader - 1], [forged])
    assert host.counters["snapshots that came without a stream"] == 1
    assert contents(hosts[other]) == [b"x"]


def test_a_replica_that_loads_slower_than_the_leader_takes_snapshots_catches_up(tmp_path):
    slow = Options(stream_bytes_per_second=1 << 20)
    config = {**CONFIG, "election_ticks": 100}  # no leader may change
    with Hosts(data=tmp_path, transport_options=slow) as hosts:
        hosts.run(Large, config=config)
        leader = hosts.leader()
        away = hosts.others(leader)[0]
        hosts.stop(away)
        outgrow(hosts[leader])
        hosts.run(Large, numbers=[away], config=config)
        until(lambda: hosts[leader]._node.raft.progress[away].state is ProgressState.SNAPSHOT)
        taken = hosts[leader].status().applied
        for _ in range(3):
            hosts[leader].propose_many([b"more"] * EVERY, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
        until(lambda: hosts[leader]._node.raft.log.snapshot.index > taken + EVERY)
        until(lambda: hosts[away].status().first_index > 1)
        write(hosts[leader], range(EVERY))
        loaded = hosts[away].status().first_index
        until(lambda: hosts[away].status().applied == hosts[leader].status().applied)
        streams = hosts.hosts[leader]._transport.counters.streams_sent
        assert streams == 1, f"it went on from the log behind {loaded}"


# -- what others ask meanwhile


class Paused(Book):
    """Its snapshots wait at a gate."""

    def __init__(self, gate, arrived):
        super().__init__()
        self.gate, self.arrived = gate, arrived

    def save(self, sink):
        self.arrived.set()
        assert self.gate.wait(TIMEOUT_S)
        super().save(sink)


@pytest.fixture
def paused():
    """A host with one such replica: the replica, what waits, and what lets it go on."""
    gate, arrived = threading.Event(), threading.Event()
    with Hosts(1) as hosts:
        hosts.run(lambda: Paused(gate, arrived))
        hosts.leader()
        write(hosts[1], range(3))
        yield hosts, hosts[1], gate, arrived
        gate.set()


def test_a_snapshot_that_is_asked_for_during_another_is_one_of_now():
    gate, arrived = threading.Event(), threading.Event()

    class Slow(SharedBook):
        def capture(self):
            write_out = super().capture()

            def slowly(sink):
                arrived.set()
                assert gate.wait(TIMEOUT_S)
                write_out(sink)

            return slowly

    with Hosts(1) as hosts:
        hosts.run(Slow)
        hosts.leader()
        write(hosts[1], range(3))
        first = hosts[1].snapshot()
        assert arrived.wait(TIMEOUT_S)
        write(hosts[1], range(3))
        second = hosts[1].snapshot()
        until(lambda: len(hosts[1]._node.snapshots._requests) == 2)
        gate.set()
        assert first.get(timeout=TIMEOUT_S) + 3 == second.get(timeout=TIMEOUT_S)


def test_exports_keep_their_deadlines_and_leave_nothing_behind(paused, tmp_path):
    hosts, replica, gate, arrived = paused
    (tmp_path / "taken").write_bytes(b"")
    error = settled(replica.snapshot(export_to=tmp_path / "taken"))
    assert isinstance(error, ConfigError)
    assert not arrived.is_set(), "it was refused before anything was written"
    late = settled(replica.snapshot(export_to=tmp_path / "late", timeout=0.1))
    assert isinstance(late, OutcomeUnknown)
    assert arrived.wait(TIMEOUT_S)
    queued = replica.snapshot(export_to=tmp_path / "queued")
    gate.set()
    assert queued.get(timeout=TIMEOUT_S) == replica.status().applied
    with read_file(tmp_path / "queued") as reader:
        reader.verify()
    files = hosts.hosts[1]._snapshots.of(1, 1)
    until(lambda: files._names() == [])


def test_an_export_that_cannot_be_written_is_answered_at_once(hosts, tmp_path, monkeypatch):
    hosts.run(Book)
    leader = hosts[hosts.leader()]
    commit(leader, b"x")
    with monkeypatch.context() as broken:
        broken.setattr(exports, "check_free", lambda _: (_ for _ in ()).throw(PermissionError("not yours")))
        error = settled(leader.snapshot(export_to=tmp_path / "copy"))
        assert isinstance(error, DrakkarError)
        assert "not yours" in str(error)
    assert leader.snapshot(export_to=tmp_path / "copy").get(timeout=TIMEOUT_S) == leader.status().applied


def test_a_damaged_snapshot_is_replaced_as_soon_as_there_is_anything_new(on_disk):
    on_disk.run(Book)
    leader = on_disk[on_disk.leader()]
    write(leader, range(3))
    index = leader.snapshot().get(timeout=TIMEOUT_S)
    node = leader._node
    for _ in range(200):  # it is sent again and again, to a replica that lags
        node.actor_loop.call(
            node.peer_snapshots.found_damaged,
            node.raft.log.snapshot,
            CorruptData("damaged"),
            timeout=TIMEOUT_S,
        )
    assert leader.snapshot().get(timeout=TIMEOUT_S) == index
    write(leader, [3])
    until(lambda: leader._node.raft.log.snapshot.index > index)


def test_an_older_snapshot_that_is_gone_is_no_reason_to_take_another(on_disk):
    on_disk.run(Book)
    leader = on_disk[on_disk.leader()]
    write(leader, [1])
    leader.snapshot().get(timeout=TIMEOUT_S)
    older = leader._node.raft.log.snapshot
    write(leader, [2])
    index = leader.snapshot().get(timeout=TIMEOUT_S)
    assert index > older.index
    node = leader._node
    node.actor_loop.call(node.peer_snapshots.found_damaged, older, CorruptData("gone"), timeout=TIMEOUT_S)
    write(leader, [3])
    write(leader, [4])  # by now it would have begun
    assert not leader._node.snapshots._taking
    assert leader._node.raft.log.snapshot.index == index


def test_a_replica_has_stopped_when_its_state_machine_is_at_work_no_more(tmp_path, monkeypatch):
    opened = []

    class Slow(DiskBook):
        def open(self):
            opened.append("opens")
            return super().open()

        def apply_entries(self, entries):
            if any(command == b"slow" for _, command in entries):
                arrived.set()
                assert gate.wait(TIMEOUT_S)
            return super().apply_entries(entries)

        def close(self):
            opened.append("closes")

    gate, arrived = threading.Event(), threading.Event()
    with Hosts(1, data=tmp_path / "data") as hosts:
        hosts.run(lambda: Slow(tmp_path / "book"))
        hosts.leader()
        hosts[1].propose(b"slow")
        assert arrived.wait(TIMEOUT_S)
        with pytest.raises(pykka.Timeout):
            hosts[1].stop(timeout=0.2)
        with pytest.raises(ConfigError, match="has no replica"):
            hosts.hosts[1].replica(1)
        with monkeypatch.context() as hasty:
            hasty.setattr(registry, "END_TIMEOUT_S", 0.05)
            with pytest.raises(ConfigError, match="still at work: wait, or restart the process"):
                hosts.run(lambda: Slow(tmp_path / "book"))
        threading.Timer(0.2, gate.set).start()
        hosts.run(lambda: Slow(tmp_path / "book"))
        assert opened[:2] == ["opens", "closes"]
        assert commit(hosts[1], b"x") >= 1
    assert opened == ["opens", "closes"] * 2


def test_a_state_machine_on_disk_that_is_ahead_of_its_log_is_refused(on_disk, tmp_path):
    """The log was lost, say: to go on would be to leave out commands without a word."""
    machine = DiskBook(tmp_path / "book")
    machine.rows = [[index, f"{index}"] for index in range(1, 50)]
    machine.sync()
    notices = Notices.start()
    try:
        on_disk.start(1).subscribe(notices)
        on_disk.run(lambda: DiskBook(tmp_path / "book"), numbers=[1])
        ended = notices._actor_weakref().wait_for(lambda event: isinstance(event, ReplicaEnded))
        assert "the log ends at 1" in str(ended.reason)
    finally:
        notices.stop()


def test_a_witness_gives_up_its_log_too(on_disk, monkeypatch):
    monkeypatch.setattr(snapshot_keeper, "WITNESS_ENTRIES", EVERY)
    on_disk.run(Book, config=CONFIG)
    leader = on_disk[on_disk.leader()]
    with Hosts(1, data=on_disk.data / "fourth") as fourth:
        host = fourth.start(1)
        leader.add_witness(4, fourth.addresses[0]).get(timeout=TIMEOUT_S)
        witness = host.start_replica(Book, shard_id=1, replica_id=4, join=True, role=State.WITNESS)
        commands = write(leader, range(3 * EVERY))
        until(lambda: witness.status().first_index > 2 * EVERY)
        assert contents(leader) == commands
        assert witness.when_applied(1).get(timeout=TIMEOUT_S) >= 1
        witness.stop()
        witness = host.start_replica(Book, shard_id=1, replica_id=4, join=True, role=State.WITNESS)
        until(lambda: witness.status().applied == leader.status().applied)


def test_data_that_were_removed_in_part_can_be_removed_again(on_disk, monkeypatch):
    on_disk.run(Book, config=CONFIG)
    leader = on_disk.leader()
    write(on_disk[leader], range(2 * EVERY))
    gone = on_disk.others(leader)[0]
    compacted(on_disk[gone])
    on_disk[gone].stop()
    with monkeypatch.context() as broken:
        broken.setattr(
            DiskFiles, "remove_directory", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken"))
        )
        with pytest.raises(StorageFailed):
            on_disk.hosts[gone].remove_data(1, gone)
    on_disk.hosts[gone].remove_data(1, gone)
    assert list(on_disk.data.glob(f"{gone}/snapshots/*-*")) == []
    with pytest.raises(ConfigError, match="has no data"):
        on_disk.hosts[gone].remove_data(1, gone)


def test_no_replica_is_removed_by_a_typing_mistake(hosts):
    hosts.run(Book)
    replica = hosts[hosts.leader()]
    error = settled(replica.remove_replica(7))
    assert isinstance(error, MembershipRejected)
    assert "replica 7" in str(error)
    assert "[1, 2, 3]" in str(error)


class Slow(Gated):
    """Goes on with what a `Ledger` has written."""

    recorded_name = "Ledger"


@pytest.mark.parametrize("ask", [lambda r: r.propose(b"b", timeout=0.3), lambda r: r.read(None, timeout=0.3)])
def test_a_replica_whose_state_machine_catches_up_says_that_it_waits_for_it(tmp_path, ask):
    with Hosts(1, data=tmp_path / "data") as alone:
        alone.run()
        assert commit(alone[1], b"a") == 1
        alone.stop(1)
        machine = Slow(apply_waits=True)
        replica = alone.run(lambda: machine)[1]
        assert machine.arrived.wait(TIMEOUT_S)
        outcome = settled(ask(replica))
        machine.gate.set()
        assert type(outcome) is NotLeader
        assert "no leader was known" not in str(outcome)
        behind = r"by the deadline this replica's state machine had applied 0 of \d+ committed entries"
        assert re.search(behind, str(outcome))
        assert commit(replica, b"b") == 2
