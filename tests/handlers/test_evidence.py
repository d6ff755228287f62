"""Simulated hosts are told that a process is gone behind all that it has sent, and before all that its next run says."""

from collections import Counter, deque
from dataclasses import replace

import pytest
from drakkar.handlers import MessageType
from drakkar.handlers.testing.core_host import CoreHost
from drakkar.handlers.testing.plan import CALM, TICK, Event, Plan
from drakkar.handlers.testing.simulation import Simulation

LEADER, EVERYBODY = 0, 0xFF


class Noting(Simulation):
    """Notes which run of its sender has sent each message."""

    def __init__(self, *args):
        super().__init__(*args)
        self.trace = deque()
        self.sent = {}

    def transmit(self, host, message):
        self.sent[id(message)] = message, host.directory.runs
        super().transmit(host, message)


def run(seed, evidence, *events, **weather):
    """Run a plan with these events."""
    plan = Plan(
        seed,
        voters=3,
        ticks=100,
        weather=replace(CALM, evidence=evidence, **weather),
        config={"election_ticks": 5},
        events=events,
        begins_led=True,
    )
    simulation = Noting(plan, CoreHost)
    simulation.run()
    simulation.close()
    return simulation


def trace_of(*args, **weather):
    """Run a plan; returns all that happened."""
    return run(*args, **weather).trace


def kills(down):
    """Leaders are killed, and started again after some time."""
    return [Event(time, "crash", (LEADER, 1.0, down)) for time in range(0, 90 * TICK, 15 * TICK)]


@pytest.mark.parametrize("down", [1, 2 * TICK, 10 * TICK], ids=["at once", "soon", "later"])
@pytest.mark.parametrize("evidence", [1, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_news_of_an_end_stands_between_two_runs(seed, evidence, down):
    up, owed, told, count = set(), set(), set(), 0
    for _, mark, what in trace_of(seed, evidence, *kills(down), delay=0.2, reordering=True):
        if mark == "^":
            assert not {pair for pair in owed if pair[0] == what}, f"{what} speaks before they know"
            told -= {pair for pair in told if what in pair}
            up.add(what)
        elif mark == "v":
            up.discard(what)
            owed = {pair for pair in owed if pair[1] != what} | {(what, other) for other in up}
        elif mark == ">" and what.type is MessageType.LEADER_GONE:
            owed.remove((what.sender, what.to))
            told.add((what.sender, what.to))
            count += 1
        elif mark == ">":
            assert (what.sender, what.to) not in told, f"{what} comes late"
    assert count >= 6


@pytest.mark.parametrize("down", [1, 2 * TICK], ids=["at once", "soon"])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_run_has_sent_is_lost_when_the_next_one_has_started(seed, down):
    simulation = run(seed, 30, *kills(down), delay=0.5, reordering=True)
    runs = Counter()
    for _, mark, what in simulation.trace:
        if mark == "^":
            runs[what] += 1
        elif mark == ">" and id(what) in simulation.sent:
            assert simulation.sent[id(what)][1] == runs[what.sender], what
    assert max(runs.values()) > 1


def test_nobody_is_told_without_evidence():
    assert not [what for _, mark, what in trace_of(1, 0, *kills(TICK)) if mark == ">" and is_news(what)]


def test_hosts_may_be_told_by_mistake():
    mistake = Event(20 * TICK, "false_evidence", (LEADER, EVERYBODY))
    trace = trace_of(1, 0, mistake)
    assert len([what for _, mark, what in trace if mark == ">" and is_news(what)]) == 2
    ended = [what for _, mark, what in trace if mark == "v"]
    assert len(ended) == len(set(ended)), "each only at the end of the run"


def is_news(message):
    return message.type is MessageType.LEADER_GONE
