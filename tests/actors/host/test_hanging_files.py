"""A host stops although a file of a snapshot that it sends or receives hangs, and tells what it left behind."""

import threading
import time

import pytest
from drakkar.actors import ConfigError, NodeHost
from drakkar.actors.host import file_threads
from drakkar.actors.host.snapshot_traffic import _Arrival, _Source

from tests.actors.support import (
    TIMEOUT_S,
    Hosts,
    InlineLedger,
    commit,
    founded_by_a_majority,
    hand_over,
    until,
)

CALM = {"election_ticks": 100}


class Saved(InlineLedger):
    def save(self, sink):
        sink.write(b"\n".join(self.commands))

    def load(self, source):
        self.commands = source.read().split(b"\n")


class Gate:
    """A disk that hangs from the first call of a function until `open`."""

    def __init__(self):
        self.arrived, self._opened, self.left = threading.Event(), threading.Event(), threading.Event()

    def before(self, function):
        def hang(*args):
            self.arrived.set()
            try:
                assert self._opened.wait(TIMEOUT_S)
                return function(*args)
            finally:
                self.left.set()

        return hang

    def open(self):
        self._opened.set()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()


def save_a_snapshot(hosts):
    """Start hosts 1 and 2, of which 1 leads, and has nothing but a snapshot for a third."""
    with founded_by_a_majority():
        hosts.run(Saved, numbers=[1, 2], config=CALM)
        hosts.leader()
    hand_over(hosts[2], 1)
    for each in range(10):
        commit(hosts[1], b"%d" % each)
    hosts[1].snapshot(compaction_overhead=0).get(timeout=TIMEOUT_S)


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """Hosts 1 and 2; 1 leads, and can send host 3 nothing but its snapshot."""
    monkeypatch.setattr(file_threads, "FILE_TIMEOUT_S", 0.3)
    with Hosts(data=tmp_path) as hosts:
        save_a_snapshot(hosts)
        yield hosts


def stop(host):
    began = time.monotonic()
    host.stop()
    return time.monotonic() - began


def test_a_file_that_hangs_while_it_is_sent(hosts, gate, caplog, monkeypatch):
    init = _Source.__init__

    class File:
        def __init__(self, file):
            self.read, self.close = gate.before(file.read), file.close

    monkeypatch.setattr(
        _Source, "__init__", lambda self, traffic, file, what: init(self, traffic, File(file), what)
    )
    hosts.run(Saved, numbers=[3], config=CALM)
    assert gate.arrived.wait(TIMEOUT_S)
    assert stop(hosts.hosts[1]) < 5
    assert "leaves 1 threads behind, whose files hang: the snapshot for replica 3 of shard 1" in caplog.text
    assert "stays locked" not in caplog.text
    again = hosts.start(1)  # it was only read, so another one may have the directory
    assert again.loop.running


def test_a_file_that_hangs_while_it_is_received(hosts, gate, caplog, monkeypatch):
    monkeypatch.setattr(_Arrival, "_complete", gate.before(_Arrival._complete))
    hosts.run(Saved, numbers=[3], config=CALM)
    assert gate.arrived.wait(TIMEOUT_S)
    host = hosts.hosts.pop(3)
    assert stop(host) < 5
    assert "the snapshot for replica 3 of shard 1 from" in caplog.text
    assert "stays locked until they have ended" in caplog.text
    directory = hosts.data / "3"
    with pytest.raises(ConfigError, match=r"in use|locked"):
        NodeHost(hosts.addresses[2], directory)
    gate.open()
    assert gate.left.wait(TIMEOUT_S)

    def reopened():
        try:
            return NodeHost(hosts.addresses[2], directory)
        except ConfigError:
            return None

    until(reopened).stop()


def test_files_that_are_read_in_time_are_read_to_their_end(hosts, caplog):
    hosts.run(Saved, numbers=[3], config=CALM)
    until(lambda: hosts[3].status().applied >= 10)
    for number in list(hosts.hosts):
        hosts.stop(number)
    assert "behind" not in caplog.text
