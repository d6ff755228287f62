"""A forked child owns nothing of its parent's hosts, is told so at once, and may run hosts of its own."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from drakkar.actors import IN_MEMORY, ConfigError, ForkedError, NodeHost
from drakkar.actors.log.data_dir import DataDir

from tests.actors.forking import in_child, open_files, told
from tests.actors.host import forked_programs
from tests.actors.support import TICK, Hosts, Ledger, Notices, commit, contents, settled, until
from tests.ports import free_addresses

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
]
FORKED = "ForkedError"


@pytest.fixture
def hosts(tmp_path):
    with Hosts(3, data=tmp_path) as hosts:
        hosts.run()
        hosts.leader()
        yield hosts


def test_a_child_is_told_at_once_whatever_it_asks_of_a_replica(hosts):
    replica = hosts[hosts.leader()]
    session = replica.session().get(timeout=20)
    # The loop has them, and answers none before the child has asked.
    held, go_on = threading.Event(), threading.Event()
    replica._node.actor_loop.run_soon(lambda: (held.set(), go_on.wait()))
    held.wait()
    waits = replica.propose(b"waits"), replica.read(None), session.propose(b"once")

    def ask():
        began = time.monotonic()
        futures = [
            replica.propose(b"1"),
            replica.propose_many([b"1"]),
            replica.read(None),
            replica.stale_read(None),
            replica.session(),
            replica.transfer_leadership(2),
            replica.remove_replica(2),
            replica.snapshot(),
            replica.query_log(1, 2),
            replica.forget_leader(),
            replica.assign_groups({1: 1}),
            replica.groups_consistent(),
            replica.when_applied(1),
            session.propose(b"1"),
            session.retry(),
            session.close(),
            *waits,
        ]
        return [
            sorted(set(told(*(future.get for future in futures)))),
            told(replica.status, lambda: replica.counters, replica.stop),
            time.monotonic() - began < 5,
        ]

    try:
        assert in_child(ask) == [[FORKED], [FORKED] * 3, True]
    finally:
        go_on.set()
    assert [isinstance(settled(future), Exception) for future in waits] == [False] * 3


def test_locks_that_threads_of_the_parent_hold_do_not_stop_a_child(hosts):
    replica = hosts[1]
    session = replica.session().get(timeout=20)
    lanes = replica._node.actor_inbox
    with lanes.proposals._lock, lanes.requests._lock, session._lock:
        assert (
            in_child(
                lambda: told(replica.propose(b"1").get, replica.read(None).get, session.propose(b"1").get)
            )
            == [FORKED] * 3
        )


def test_a_child_is_told_at_once_whatever_it_asks_of_a_host(hosts, tmp_path):
    host = hosts.hosts[1]
    listener = Notices.start()
    try:
        assert in_child(
            lambda: [
                *told(
                    host.stop,
                    host.peers,
                    host.metrics,
                    lambda: host.counters,
                    lambda: host.store_status,
                    lambda: host.log_memory,
                    lambda: host.replica(1),
                    lambda: host.subscribe(listener),
                    lambda: host.unsubscribe(listener),
                    lambda: host.remove_data(1, 1),
                    lambda: host.start_replica(Ledger, shard_id=2, replica_id=1, members={1: host.address}),
                ),
                host.__exit__(None, None, None),
            ]
        ) == [FORKED] * 11 + [None]
    finally:
        listener.stop()


def test_the_error_says_what_runs_where():
    with NodeHost("127.0.0.1:0", IN_MEMORY) as host:

        def ask():
            with pytest.raises(ForkedError) as raised:
                _ = host.counters
            return str(raised.value), os.getpid()

        text, child = in_child(ask)
    assert text.startswith(f"process {child} was forked from process {os.getpid()}, which runs {host!r}")


def test_a_child_keeps_nothing_open(tmp_path):
    before = open_files()
    with Hosts(2, data=tmp_path) as hosts:
        hosts.run()
        commit(hosts[1], b"1")
        # Connections have been made, the log is written, and its files are open.
        opened = [name for number, name in open_files().items() if before.get(number) != name]
        assert any(str(tmp_path) in name for name in opened)
        assert sum("socket:" in name for name in opened) > 8

        def left():
            return [
                name
                for number, name in open_files().items()
                if before.get(number) != name and "pipe" not in name
            ]

        assert in_child(left) == []
        commit(hosts[1], b"2")


def test_what_a_thread_opened_a_moment_ago_is_let_go_too(tmp_path):
    """Before it could note it: as if each of the host's files and sockets had just been opened once more."""
    (tmp_path / "fast").mkdir()
    (tmp_path / "data").symlink_to("fast")
    before = open_files()
    with Hosts(2, data=tmp_path / "data") as hosts:
        hosts.run()
        commit(hosts[1], b"1")
        ports = [address.partition(":")[2] for address in hosts.addresses]
        again = [
            os.dup(int(number))
            for number, name in open_files().items()
            if before.get(number) != name and ("segment" in name or at_one_of(int(number), ports))
        ]
        assert len(again) >= 6  # two logs, two listeners, and what they have accepted
        mine = socket.create_server(("127.0.0.1", 0))

        def left():
            return [number for number in again if str(number) in open_files()], mine.getsockname()[1]

        try:
            assert in_child(left) == [[], mine.getsockname()[1]]
        finally:
            mine.close()
            for number in again:
                os.close(number)
        commit(hosts[1], b"2")


def at_one_of(number, ports):
    """Whether a descriptor is a socket at one of these ports of this machine."""
    try:
        found = socket.socket(fileno=number)
    except OSError:
        return False
    try:
        name = found.getsockname()
    finally:
        found.detach()
    return isinstance(name, tuple) and len(name) > 1 and str(name[1]) in ports


def test_the_parent_goes_on_while_children_come_and_go(tmp_path):
    with Hosts(3, data=tmp_path, tick_interval=0.1) as hosts:
        hosts.run()
        leader = hosts[hosts.leader()]
        term = leader.status().term
        results = []

        def propose():
            results.extend(settled(leader.propose(b"%d" % number)) for number in range(300))

        client = threading.Thread(target=propose)
        client.start()
        children = 0
        while client.is_alive():
            in_child(lambda: told(leader.status))
            children += 1
        client.join()
        assert results == list(range(1, 301))
        assert leader.status().term == term
        assert children > 5


def test_port_and_directory_are_free_when_the_parent_stops_though_a_child_lives(tmp_path):
    [address] = free_addresses(1)
    host = NodeHost(address, tmp_path, tick_interval=TICK)
    replica = host.start_replica(Ledger, shard_id=1, replica_id=1, members={1: address})
    commit(replica, b"1")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)  # until the parent has closed it
        os._exit(0)
    os.close(read)
    try:
        host.stop()
        with NodeHost(address, tmp_path, tick_interval=TICK) as again:
            replica = again.start_replica(Ledger, shard_id=1, replica_id=1)
            assert contents(replica) == [b"1"]
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.close(write)
        os.waitpid(child, 0)


def test_port_and_directory_are_free_when_the_parent_is_killed_though_its_child_lives(tmp_path):
    [address] = free_addresses(1)
    parent = subprocess.Popen(
        [sys.executable, forked_programs.__file__, address, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        os.kill(child, 0)  # it lives
        with NodeHost(address, tmp_path, tick_interval=TICK) as again:
            assert contents(again.start_replica(Ledger, shard_id=1, replica_id=1)) == [b"1"]
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_lock_that_is_held_names_a_living_process(tmp_path):
    """A program was started with the open file, by mistake, and the process that had locked it has ended."""
    directory = DataDir.open(tmp_path, deployment_id="d", address="a:1")
    lock = directory._locks[0].number
    holder = subprocess.Popen(
        [sys.executable, "-c", "input() # holds it"], stdin=subprocess.PIPE, pass_fds=[lock]
    )
    for held in directory._locks:  # as at the end of a process that is killed, without a word
        os.close(held.number)
        held.number = -1
    (tmp_path / "LOCK").write_text(f"{_ended()}\n")
    try:
        with pytest.raises(
            ConfigError, match=rf"in use by process {holder.pid} \(.* input\(\) # holds it\): stop"
        ):
            DataDir.open(tmp_path, deployment_id="d", address="a:1")
    finally:
        holder.communicate(b"\n")
    DataDir.open(tmp_path, deployment_id="d", address="a:1").close()


def _ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_fork_while_the_lock_is_opened_leaves_it_to_the_parent(tmp_path, monkeypatch):
    """Before the descriptor is noted, so that the child cannot know of it."""
    real, children = os.open, []
    read, write = os.pipe()

    def open_and_fork(path, *args, **kwargs):
        number = real(path, *args, **kwargs)
        if str(path).endswith("LOCK") and not children:
            child = os.fork()
            if not child:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            children.append(child)
        return number

    monkeypatch.setattr(os, "open", open_and_fork)
    try:
        DataDir.open(tmp_path, deployment_id="d", address="a:1").close()
        DataDir.open(tmp_path, deployment_id="d", address="a:1").close()
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(children[0], 0)


def test_a_fork_while_the_lock_is_released_leaves_it_to_nobody(tmp_path, monkeypatch):
    """The descriptor is noted no more, and not closed yet, so that the child keeps it."""
    directory = DataDir.open(tmp_path, deployment_id="d", address="a:1")
    real, parent, children = os.close, os.getpid(), []
    read, write = os.pipe()

    def fork_and_close(number):
        # The child closes files before its fork returns, and must not fork for each, and so on.
        if not children and os.getpid() == parent:
            child = os.fork()
            if not child:
                real(write)
                os.read(read, 1)
                os._exit(0)
            children.append(child)
        real(number)

    monkeypatch.setattr(os, "close", fork_and_close)
    try:
        directory.close()
        monkeypatch.undo()
        DataDir.open(tmp_path, deployment_id="d", address="a:1").close()
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(children[0], 0)


def test_a_host_made_in_a_child_works_beside_its_parents(hosts, tmp_path):
    [address] = free_addresses(1)

    def run():
        with NodeHost(address, tmp_path / "child", tick_interval=TICK) as host:
            replica = host.start_replica(Ledger, shard_id=1, replica_id=1, members={1: address})
            session = replica.session(timeout=20).get()
            return [
                commit(replica, b"1"),
                session.propose(b"2", timeout=20).get(),
                in_child(lambda: told(replica.status)),
            ]

    assert in_child(run) == [1, 2, [FORKED]]
    commit(hosts[hosts.leader()], b"1")


def test_the_directory_of_the_parent_is_refused_to_a_child(tmp_path):
    [address, other] = free_addresses(2)
    with NodeHost(address, tmp_path, tick_interval=TICK):

        def steal():
            with pytest.raises(ConfigError, match=f"in use by process {os.getppid()}"):
                NodeHost(address, tmp_path)
            return socket.create_server(("127.0.0.1", int(other.split(":")[1]))).close()

        assert in_child(steal) is None


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_that_are_not_forked_from_here_are_like_any_process(method, hosts, tmp_path):
    [address] = free_addresses(1)
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(
        target=forked_programs.run_a_host, args=(address, str(tmp_path / "child"), answers)
    )
    child.start()
    assert answers.get(timeout=60) == 1
    child.join(60)
    assert child.exitcode == 0
    until(lambda: hosts[1].status().leader_id)
