"""The key-value example on disk: its commands, its crashes, its snapshots, and hosts that restart with it."""

import io
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cbor2
import pytest
from drakkar.actors import NodeHost

from examples import kv_demo
from examples.disk_kv import DiskKeyValue, Pairs
from examples.kv import KeyValue
from tests.actors.support import TICK, TIMEOUT_S, unless_busy
from tests.ports import free_addresses

ROOT = Path(__file__).parents[2]
BATCH = 7


@contextmanager
def opened(path):
    machine = DiskKeyValue(path)
    machine.open()
    try:
        yield machine
    finally:
        machine.close()


def do(machine, index, *commands):
    """Apply commands as one batch that ends at `index`."""
    first = index + 1 - len(commands)
    return machine.apply_entries([(first + at, cbor2.dumps(command)) for at, command in enumerate(commands)])


def contents(machine):
    keys = machine.query([["KEYS", b"*"]])[0]
    return dict(zip(keys, machine.query([["MGET", *keys]])[0], strict=True)) if keys else {}


def saved(machine):
    file = io.BytesIO()
    machine.capture()(file)
    file.seek(0)
    return file


# -- The commands


def random_command(source):
    key = b"k%d" % source.randrange(6)
    number = b"%d" % source.randrange(100)
    return source.choice(
        [
            ["SET", key, number],
            ["SET", key, b"new", source.choice(["NX", "XX"]), "GET"],
            ["MSET", key, b"1", b"other", number],
            ["DEL", key, b"k1", key],
            ["INCR", key, 3],
            ["APPEND", key, b"7", 20],
            ["EXISTS", key, b"k2"],
            ["EXEC", cbor2.dumps(["SET", key, b"5"]), cbor2.dumps(["INCR", key, 1]), cbor2.dumps(["DBSIZE"])],
            ["FLUSHALL"] if source.random() < 0.1 else ["DBSIZE"],
        ]
    )


@pytest.mark.parametrize("seed", range(5))
def test_it_answers_what_the_store_in_memory_answers_and_a_restart_changes_nothing(tmp_path, seed):
    source, memory, index = random.Random(seed), KeyValue(), 0
    for _ in range(20):
        with opened(tmp_path / "kv") as disk:
            for _ in range(5):
                commands = [random_command(source) for _ in range(source.randrange(1, 6))]
                index += len(commands)
                assert do(disk, index, *commands) == [memory.apply(cbor2.dumps(each)) for each in commands]
            assert contents(disk) == memory.data
            assert disk.query([["DBSIZE"]]) == [len(memory.data)]
            assert disk.open() == index  # again, as a host may


def test_a_batch_with_a_failing_command_leaves_no_trace(tmp_path, monkeypatch):
    def fail(*_):
        raise sqlite3.OperationalError("disk I/O error")

    with opened(tmp_path / "kv") as machine:
        do(machine, 1, ["SET", b"k", b"1"])
        monkeypatch.setattr(Pairs, "clear", fail)
        with pytest.raises(sqlite3.OperationalError):
            do(machine, 3, ["SET", b"k", b"2"], ["FLUSHALL"])
    with opened(tmp_path / "kv") as machine:
        assert machine.open() == 1
        assert contents(machine) == {b"k": b"1"}


# -- Crashes: a process that dies by SIGKILL, at any moment

APPLIER = f"""
import sys
from pathlib import Path
from tests.examples.test_disk_kv import DiskKeyValue, do
machine = DiskKeyValue(Path(sys.argv[1]))
index = machine.open()
while True:
    commands = [["INCR", b"n", 1] if at else ["SET", b"%d" % index, b""] for at in range({BATCH})]
    index += {BATCH}
    do(machine, index, *commands)
    if index % (100 * {BATCH}) == 0:
        machine.sync()
    print(index, flush=True)
"""

LOADER = """
import sys
from pathlib import Path
from tests.examples.test_disk_kv import DiskKeyValue
from tests.ports import free_addresses

class Source:
    left = int(sys.argv[2])
    def read(self, size):
        self.left -= size
        if self.left < 0:
            print("waiting", flush=True)
        return sys.stdin.buffer.read(size)

machine = DiskKeyValue(Path(sys.argv[1]))
machine.open()
machine.load(Source())
print("loaded", flush=True)
sys.stdin.buffer.read()
"""


@contextmanager
def process(program, *arguments):
    running = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


def test_index_and_data_agree_after_a_kill_in_the_middle_of_batches(tmp_path):
    source, path, before = random.Random(1), tmp_path / "kv", 0
    for _ in range(8):
        with process(APPLIER, path) as running:
            for _ in range(source.randrange(1, 60)):
                told = int(running.stdout.readline())
            running.kill()
        with opened(path) as machine:
            index = machine.open()
            batches = index // BATCH
            assert index >= told > before
            assert index % BATCH == 0
            assert machine.query([["GET", b"n"], ["DBSIZE"]]) == [
                b"%d" % (batches * (BATCH - 1)),
                batches + 1,
            ]
            before = index


def test_a_kill_within_a_load_leaves_the_old_state_and_a_later_one_the_new(tmp_path):
    old, new = {b"old %d" % at: b"x" for at in range(50)}, {b"new %d" % at: bytes(500) for at in range(3000)}
    with opened(tmp_path / "source") as machine:
        do(machine, 90, *(["SET", *pair] for pair in new.items()))
        snapshot = saved(machine).getvalue()
    with opened(tmp_path / "kv") as machine:
        do(machine, 60, *(["SET", *pair] for pair in old.items()))
    for part in (0, 7, 100, len(snapshot) // 2, len(snapshot) - 1):
        with process(LOADER, tmp_path / "kv", part) as running:
            running.stdin.write(snapshot[:part])
            running.stdin.flush()
            assert running.stdout.readline() == b"waiting\n"
            running.kill()
        with opened(tmp_path / "kv") as machine:
            assert (machine.open(), contents(machine)) == (60, old), f"after {part} bytes"
    with process(LOADER, tmp_path / "kv", len(snapshot)) as running:
        running.stdin.write(snapshot)
        running.stdin.flush()
        assert running.stdout.readline() == b"loaded\n"
        running.kill()
    with opened(tmp_path / "kv") as machine:
        assert (machine.open(), contents(machine)) == (90, new)


def test_a_snapshot_that_ends_too_soon_is_refused_and_changes_nothing(tmp_path):
    with opened(tmp_path / "kv") as machine:
        do(machine, 2, ["SET", b"a", b"1"], ["SET", b"b", b"2"])
        whole = saved(machine).getvalue()
        do(machine, 3, ["DEL", b"b"])
        for part in range(len(whole)):
            with pytest.raises(EOFError, match="the snapshot is cut off"):
                machine.load(io.BytesIO(whole[:part]))
        do(machine, 4, ["SET", b"c", b"3"])
        assert contents(machine) == {b"a": b"1", b"c": b"3"}
        assert machine.query([["DBSIZE"]]) == [2]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to see what is synced")
def test_sync_has_the_disk_write_what_was_applied_before_it(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from tests.examples.test_disk_kv import DiskKeyValue, do\n"
        "machine = DiskKeyValue(Path(sys.argv[1])); machine.open(); do(machine, 1, ['SET', b'k', b'v'])\n"
        "os.write(2, b'begin'); machine.sync(); os.write(2, b'synced'); machine.sync(); os._exit(0)"
    )
    trace = tmp_path / "trace"
    observed = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    ran = subprocess.run(
        [*observed, sys.executable, "-c", program, str(tmp_path / "kv")], cwd=ROOT, check=False
    )
    if ran.returncode:
        pytest.skip("strace may not look at other processes here")
    _, during, after = (
        part.partition("synced")[0]
        for part in trace.read_text().replace("begin", "synced", 1).split("synced", 2)
    )
    for part in (during, after):
        assert "kv-wal>)" in part


# -- Snapshots


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_a_snapshot_holds_everything_and_replaces_everything(tmp_path, count):
    with opened(tmp_path / "one") as one, opened(tmp_path / "other") as other:
        pairs = {b"key %d" % number: bytes(number % 1000) for number in range(count)}
        do(one, 10_000, *(["SET", *pair] for pair in pairs.items()), ["EXISTS", b"k"])
        do(other, 3, ["SET", b"from before", b""])
        other.load(saved(one))
        assert contents(other) == contents(one) == pairs
        assert do(other, 10_002, ["SET", b"more", b""], ["DBSIZE"])[1] == count + 1
    with opened(tmp_path / "other") as other:
        assert other.open() == 10_002


def test_a_capture_is_fixed_while_batches_are_applied(tmp_path):
    with opened(tmp_path / "kv") as machine, opened(tmp_path / "copy") as copy:
        do(machine, 2000, *(["SET", b"key %d" % number, b"then"] for number in range(2000)))
        write, file, failures = machine.capture(), io.BytesIO(), []
        begun, go_on = threading.Event(), threading.Event()

        class Slow(io.BytesIO):
            def writelines(self, lines):
                for number, line in enumerate(lines):
                    file.write(line)
                    if number == 1000:
                        begun.set()
                        failures.extend([] if go_on.wait(TIMEOUT_S) else ["stuck"])

            def write(self, data):
                return file.write(data)

        do(machine, 2001, ["SET", b"key 5", b"between"])
        writer = threading.Thread(target=write, args=(Slow(),))
        writer.start()
        assert begun.wait(TIMEOUT_S)
        do(machine, 4001, *(["SET", b"key %d" % number, b"now"] for number in range(2000)))
        do(machine, 4002, ["DEL", b"key 1999"])
        machine.sync()
        go_on.set()
        writer.join(TIMEOUT_S)
        assert not failures
        file.seek(0)
        copy.load(file)
        assert copy.open() == 2000
        assert contents(copy) == {b"key %d" % number: b"then" for number in range(2000)}
        assert set(contents(machine).values()) == {b"now"}
        assert machine.open() == 4002


def test_closing_while_a_capture_is_written_does_it_no_harm(tmp_path):
    with opened(tmp_path / "kv") as machine, opened(tmp_path / "copy") as copy:
        do(machine, 1, ["SET", b"k", b"v"])
        write = machine.capture()
        machine.close()
        machine.close()
        file = io.BytesIO()
        write(file)
        file.seek(0)
        copy.load(file)
        assert contents(copy) == {b"k": b"v"}
    assert not list(tmp_path.glob("*-wal"))


# -- Hosts


class Counted(DiskKeyValue):
    """Counts the entries that it is given in this life."""

    def __init__(self, path):
        super().__init__(path)
        self.given = self.loaded = 0

    def apply_entries(self, entries):
        self.given += len(entries)
        return super().apply_entries(entries)

    def load(self, source):
        self.loaded += 1
        super().load(source)


class Trio:
    """Three hosts in this process, on real sockets and directories, and what may join them."""

    def __init__(self, directory):
        self.directory = directory
        self.addresses = dict(enumerate(free_addresses(4), start=1))
        self.machines, self.replicas, self._hosts = {}, {}, {}

    def start(self, number, **options):
        host = self._hosts[number] = NodeHost(
            self.addresses[number], self.directory / f"host-{number}", tick_interval=TICK
        )
        machine = self.machines[number] = Counted(self.directory / f"kv-{number}")
        self.replicas[number] = host.start_replica(
            lambda: machine, shard_id=1, replica_id=number, config={"snapshot_entries": 50}, **options
        )

    def start_first(self):
        for number in (1, 2, 3):
            self.start(number, members={each: self.addresses[each] for each in (1, 2, 3)})

    def stop(self):
        while self._hosts:
            self._hosts.popitem()[1].stop()

    def write(self, keys):
        commands = [cbor2.dumps(["SET", b"%d" % key, b"x" * 100]) for key in keys]
        return unless_busy(lambda: self.replicas[1].propose_many(commands, timeout=TIMEOUT_S))

    def read_all(self):
        question = [["DBSIZE"], ["GET", b"7"]]
        return {
            number: replica.read(question, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
            for number, replica in self.replicas.items()
        }


def test_hosts_that_restart_replay_nothing_and_a_new_one_is_brought_up_by_a_snapshot(tmp_path):
    with ExitStack() as stack:
        trio = Trio(tmp_path)
        stack.callback(trio.stop)
        trio.start_first()
        for first in range(0, 300, 20):
            assert trio.write(range(first, first + 20)) == ["OK"] * 20
            # None of them is so far behind that it needs a snapshot.
            assert {count for count, _ in trio.read_all().values()} == {first + 20}
        assert [trio.machines[number].given for number in (1, 2, 3)] == [300] * 3
        trio.stop()
        trio.start_first()
        assert set(map(tuple, trio.read_all().values())) == {(300, b"x" * 100)}
        assert [trio.machines[number].given for number in (1, 2, 3)] == [0] * 3
        assert trio.write([300]) == ["OK"]
        trio.start(4, join=True)
        trio.replicas[1].add_replica(4, trio.addresses[4], timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
        assert trio.read_all()[4] == [301, b"x" * 100]
        assert trio.machines[4].loaded == 1
        assert trio.machines[4].given < 100


class DiskHost(kv_demo.Host):
    """As in the demo, with the data on disk, and a count of what was applied."""

    @property
    def command(self):
        program = (
            "import sys; from examples import kv; from tests.examples.test_disk_kv import Told\n"
            "sys.exit(kv.main(machine=lambda data_dir: Told(data_dir.with_suffix('.sqlite'))))"
        )
        return [sys.executable, "-c", program, *super().command[3:]]

    @property
    def told(self):
        return self.data_dir.with_suffix(".told")


class Told(DiskKeyValue):
    """Writes the indexes that it is given to a file, in one call a batch, which outlives a SIGKILL."""

    def __init__(self, path):
        super().__init__(path)
        self._told = os.open(path.with_suffix(".told"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def apply_entries(self, entries):
        replies = super().apply_entries(entries)
        os.write(self._told, b"".join(b"%d\n" % index for index, _ in entries))
        return replies


@pytest.mark.slow
def test_hosts_that_are_killed_lose_nothing_and_apply_nothing_twice(tmp_path):
    ports = kv_demo.free_ports(6)
    cluster = kv_demo.Cluster(tmp_path, ports[:3], ports[3:])
    cluster.hosts = {
        number: DiskHost(number, host.redis_port, host.raft_port, host.data_dir, host.members)
        for number, host in cluster.hosts.items()
    }
    with cluster:
        hosts = list(cluster.hosts.values())
        for life in range(3):
            with hosts[life].client(TIMEOUT_S) as client, client.pipeline(transaction=False) as pipe:
                for number in range(200):
                    pipe.incr("n")
                    pipe.set(f"{life}-{number}", number)
                replies = pipe.execute()
            assert replies[::2] == list(range(200 * life + 1, 200 * life + 201))
            for host in hosts:
                host.kill()
            for host in hosts:
                host.start()
            for host in hosts:
                host.wait_until_ready()
        for host in hosts:
            with host.client(TIMEOUT_S) as client:
                assert client.mget("n", "2-199") == [b"600", b"199"]
                assert client.dbsize() == 601
    for host in hosts:
        indexes = host.told.read_text().split()
        # A batch that was committed and not told of yet, when the process was killed, is missing here.
        assert len(indexes) == len(set(indexes)), f"host {host.replica} was given an entry twice"


def test_a_file_that_is_no_database_stops_the_replica_and_is_left_alone(tmp_path):
    (tmp_path / "kv").write_bytes(b"something else" * 100)
    machine = DiskKeyValue(tmp_path / "kv")
    with pytest.raises(sqlite3.DatabaseError):
        machine.open()
    machine.close()
    assert (tmp_path / "kv").read_bytes() == b"something else" * 100
