"""The demo of actors as a person runs it: three real processes, a real SIGKILL; and what it would notice."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from examples import actors_demo
from examples.actors_demo import Customers, Line, Said
from examples.kv_demo import DemoError
from tests.actors.support import until
from tests.examples.test_kv_demo import processes_of

ROOT = Path(__file__).parents[2]


@contextmanager
def demo_of(module, directory, *options):
    """A demo, in a process whose hosts are known by their directory."""
    running = subprocess.Popen(
        [sys.executable, "-m", f"examples.{module}", *options],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(directory)},
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


demo = partial(demo_of, "actors_demo")


def ended(running, directory, timeout=80):
    """Its exit status, what it said and what it complained about; it has left nothing behind."""
    said, complaint = running.communicate(timeout=timeout)
    until(lambda: not processes_of(directory))
    assert list(directory.iterdir()) == []
    return running.returncode, said, complaint


def read_to(running, words):
    for line in running.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} was not said, but {running.stderr.read()}")


@pytest.mark.slow
def test_a_host_is_killed_and_no_order_is_lost_or_done_twice(tmp_path):
    began = time.monotonic()
    with demo(tmp_path, "--seconds", "1") as running:
        status, said, complaint = ended(running, tmp_path)
    assert (status, complaint) == (0, ""), said
    assert time.monotonic() - began < 60
    at = 0
    for words in (
        "three hosts start",
        "the bank's ledger runs on host 1, its tellers on host 2",
        "the scheduler runs on host 1, fence ",
        "now the ledger fails",
        "its supervisor has started it again",
        "host 1 is killed with SIGKILL",
        "s after the kill",
        "host 1 is started again",
        "the tellers have found the ledger again",
        "host 1 asks the scheduler how far it is, and host ",
        "the ledger has each of them once",
        "jobs were done, with fence ",
    ):
        assert words in said[at:], said
        at = said.index(words, at)
    assert "told that 0 orders" not in said
    assert ", then " in said[at:], "schedulers with two numbers have worked"
    assert "none by a scheduler of the past" in said[at:]
    assert "nowhere" not in said


def test_ctrl_c_ends_the_demo_with_all_its_hosts(tmp_path):
    with demo(tmp_path, "--seconds", "10") as running:
        read_to(running, "customers order")
        assert len(processes_of(tmp_path)) == 3
        running.send_signal(signal.SIGINT)
        status, _, complaint = ended(running, tmp_path)
    assert (status, complaint) == (130, "")


@pytest.mark.slow
def test_a_host_that_ends_by_itself_ends_the_demo_with_the_reason(tmp_path):
    with demo(tmp_path, "--seconds", "5") as running:
        read_to(running, "customers order")
        victim = next(pid for pid, line in processes_of(tmp_path).items() if "--host 3" in line)
        os.kill(victim, signal.SIGKILL)
        status, _, complaint = ended(running, tmp_path)
    assert status == 1
    assert complaint.startswith("actors_demo: error: host 3 has ended")
    assert "Traceback" not in complaint


# -- What it would notice


class Tellers:
    """Answers as it is told to."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def ask(self, line):
        return self.answers.pop(0) if self.answers else threading.Event().wait(0.05) or "no more"


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        pytest.param(("ann has 1", "ann has 3"), "ann has 3", id="an order was done twice"),
        pytest.param(("ann has 1", "ann has 1"), "ann has 1", id="an order was lost"),
        pytest.param(("ann has 1", "not done: away"), "not done: away", id="an order failed"),
    ],
)
def test_customers_notice_what_is_wrong(answers, wrong):
    customers = Customers(Tellers(*answers))
    customers.start()
    with pytest.raises(DemoError, match=wrong):
        customers.wait_for(5)
    customers.stop()
    assert customers.done == 1


def test_what_is_waited_for_is_found_by_words_host_and_time():
    said = Said()
    said.add(1, "ready")
    said.add(2, "ready")
    between = time.monotonic()
    said.add(1, "ready again")
    assert said.wait_for("", "ready").host == 1
    assert said.wait_for("", "ready", host=2).text == "ready"
    assert said.wait_for("", "ready", since=between).text == "ready again"
    with pytest.raises(DemoError, match="it is there: that has not happened within 0 s"):
        said.wait_for("it is there", "gone", timeout=0.01)


def test_jobs_are_put_into_their_order_whoever_has_done_them():
    texts = ["job 12, fence 9", "ready", "job 2, fence 5", "asked: job 2, fence 5, at 127.0.0.1:1"]
    lines = [Line(1, text, 0.0) for text in texts]
    assert actors_demo.done_jobs(lines) == [(2, 5), (12, 9)]
    assert actors_demo.fence_of(Line(1, "the scheduler runs here, with fence 9", 0.0)) == "fence 9"


def test_a_wrong_option_is_named(capsys):
    with pytest.raises(SystemExit) as left:
        actors_demo.parse(["--seconds", "long"])
    assert left.value.code == 2
    assert "--seconds" in capsys.readouterr().err
