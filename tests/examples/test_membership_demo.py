"""The membership demo as a person runs it, and its parts; real processes, sockets and disks."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from examples import membership_demo
from examples.membership_demo import HostError, Load, Members, Shard, Story
from tests.actors.support import TIMEOUT_S, until
from tests.examples.test_kv_demo import processes_of
from tests.ports import free_addresses

ROOT = Path(__file__).parents[2]


@contextmanager
def demo(directory, *options):
    """The demo, in a process whose hosts are known by their directory."""
    running = subprocess.Popen(
        [sys.executable, "-m", "examples.membership_demo", *options],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.terminate()
                running.wait(20)


def ended(running, directory, timeout=100):
    """Its exit status, what it said and what it complained about; it has left nothing behind."""
    said, complaint = running.communicate(timeout=timeout)
    until(lambda: not processes_of(directory))
    assert list(directory.iterdir()) == []
    return running.returncode, said, complaint


@pytest.mark.slow
def test_members_come_and_go_and_no_acknowledged_write_is_lost(tmp_path):
    with demo(tmp_path, "--seconds", "0.2") as running:
        status, said, complaint = ended(running, tmp_path)
    assert (status, complaint) == (0, ""), said
    steps = [
        "the shard says: voters 1, 2, 3; host",
        "the shard says: voters 1, 2, 3; observers 4; host",
        "the shard says: voters 1, 2, 3, 4; host",
        "the shard says: voters 1, 2, 3, 4; witness 5; host",
        "says that its shard removed it",
        "has ended by itself",
        "is killed with SIGKILL",
        "change_membership(('ADD_VOTER', 7, ",
        "the shard says: voters 7, 8; witness 5; host",
        "acknowledged writes are there, on all members that keep them: 7 and 8",
    ]
    at = 0
    for words in steps:
        assert words in said[at:], said
        at = said.index(words, at)
    assert said.count("has ended by itself") == 4
    assert said.count("writes meanwhile: ") == 7
    assert "writes meanwhile: 0 acknowledged" not in said
    assert "all 0 acknowledged" not in said


@pytest.mark.slow
def test_a_host_that_fails_ends_the_demo_with_the_step_and_the_reason(tmp_path):
    with demo(tmp_path, "--seconds", "60") as running:
        read_to(running, "the shard says: voters 1, 2, 3")
        victim = next(pid for pid, line in processes_of(tmp_path).items() if "--replica 2" in line)
        os.kill(victim, signal.SIGKILL)
        status, _, complaint = ended(running, tmp_path)
    assert status == 1
    assert complaint.startswith("membership_demo: error: start three: host 2 ended with status -9")
    assert "Traceback" not in complaint


def test_ctrl_c_ends_the_demo_with_all_its_hosts(tmp_path):
    with demo(tmp_path) as running:
        read_to(running, "the shard says: voters 1, 2, 3")
        assert len(processes_of(tmp_path)) == 3
        running.send_signal(signal.SIGINT)
        status, _, complaint = ended(running, tmp_path)
    assert (status, complaint) == (130, "")


def read_to(running, words):
    for line in running.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} was not said, but {running.stderr.read()}")


# -- The parts


class FakeHost:
    """Does what it is told to a dictionary, or refuses."""

    def __init__(self, replica, data=None, error=None):
        self.replica, self.error = replica, error
        self.data = {} if data is None else data
        self.asked = 0

    def ask(self, do, arguments, *, timeout):
        self.asked += 1
        if self.error is not None:
            raise self.error
        if do == "write":
            self.data.update(arguments)
            return "done"
        return [self.data.get(key) for key in arguments]


def loaded(tmp_path, *hosts):
    shard = Shard(tmp_path)
    shard.hosts = {host.replica: host for host in hosts}
    load = Load(shard, 2, 5)
    load.use(*shard.hosts)
    load.begin()
    return load


@pytest.mark.parametrize(
    ("error", "count"),
    [
        (None, "acknowledged"),
        (HostError("NotLeader", "", known=True), "refused"),
        (HostError("OutcomeUnknown", "", known=False), "unknown"),
    ],
)
def test_what_is_acknowledged_refused_and_left_open_is_told_apart(tmp_path, error, count):
    host = FakeHost(1, error=error)
    load = loaded(tmp_path, host)
    with load:
        until(lambda: host.asked > 5)
    tally = load.tally()
    counts = {each: getattr(tally, each) for each in ("acknowledged", "refused", "unknown")}
    assert counts == {"acknowledged": 0, "refused": 0, "unknown": 0, count: 5 * host.asked}
    assert len(load.acknowledged) == tally.acknowledged


def test_a_host_that_was_removed_is_asked_no_more(tmp_path):
    refusing = FakeHost(1, error=HostError("NotLeader", "", known=True))
    removed = FakeHost(2, error=HostError("ReplicaStopped", "", known=True))
    with loaded(tmp_path, refusing, removed):
        until(lambda: refusing.asked > 10)
    assert removed.asked <= 2  # by each client, before it knew


def test_a_pause_is_noticed_and_only_a_later_write_ends_it(tmp_path):
    load = loaded(tmp_path, FakeHost(1))
    sent = time.monotonic()
    until(lambda: load.tally().pause > 0.05)
    assert not load.acknowledged_since(sent)
    load._note(sent, [(1, 1)])
    assert not load.acknowledged_since(sent)
    load._note(time.monotonic(), [(1, 2)])
    assert load.acknowledged_since(sent)
    assert load.tally().pause > 0.05
    load.begin()
    assert load.tally().pause < 0.05


def test_a_lost_and_a_changed_write_are_both_noticed():
    writes = [(1, number) for number in range(2500)]
    data = {membership_demo.key(*write): membership_demo.value(*write) for write in writes}
    host = FakeHost(1, data)
    assert membership_demo.missing(host, writes) == 0
    del data[membership_demo.key(1, 1234)]
    data[membership_demo.key(1, 2499)] = "something else"
    assert membership_demo.missing(host, writes) == 2


@pytest.mark.slow
def test_a_terminal_shows_who_belongs_and_who_leads(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Shard(tmp_path) as shard, Story(console, shard, Load(shard, 1, 1), 0.0) as story:
        host = shard.new_host()
        host.start("--members", f"1={host.address}")
        story.ready(host)
        story.agree(Members((1,)))
        story.wait("it was drawn", lambda: "leader" in out.getvalue().partition("1.")[2])
        assert host.running
    for words in ("knows as members", "writes acknowledged in this step", "the shard says: voters 1"):
        assert words in out.getvalue()


def test_a_member_answers_wrong_orders_and_goes_on(tmp_path):
    (address,) = free_addresses(1)
    told = [
        "--replica",
        "1",
        "--address",
        address,
        "--members",
        f"1={address}",
        "--data-dir",
        str(tmp_path / "d"),
    ]
    orders = [
        "no JSON",
        '{"id": 1, "do": "dance"}',
        '{"id": 2, "do": "change_membership", "arguments": [["MAKE_KING", 1]]}',
        '{"id": 3, "do": "add_replica", "arguments": ["2"]}',
        '{"id": 4, "do": "write", "arguments": [["k", "v"]]}',
        '{"id": 5, "do": "read", "arguments": ["k", "other"]}',
        '{"id": 6, "do": "add_replica", "arguments": [2, "127.0.0.1:9"]}',
        '{"id": 7, "do": "add_replica", "arguments": [2, "127.0.0.1:9"], "force": "yes"}',
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "examples.member", *told],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            running.stdin.write("".join(f"{order}\n" for order in orders))
            running.stdin.flush()
            said = [json.loads(running.stdout.readline()) for _ in range(9)]
            running.stdin.close()
            assert running.wait(TIMEOUT_S) == 0
        finally:
            running.kill()
    answers = {each.get("id"): each for each in said if "event" not in each}
    assert all("error" in answers[number] for number in (None, 1, 2, 3)), answers
    assert "'dance'" in answers[1]["text"]
    assert answers[4]["value"] == "done"
    assert answers[5]["value"] == ["v", None]
    assert "does not hear replicas 2" in answers[6]["text"]
    assert "force='yes'" in answers[7]["text"]


@pytest.mark.parametrize(("option", "value"), [("--clients", "0"), ("--seconds", "long")])
def test_a_wrong_option_is_named(capsys, option, value):
    with pytest.raises(SystemExit) as left:
        membership_demo.parse([option, value])
    assert left.value.code == 2
    assert option in capsys.readouterr().err
