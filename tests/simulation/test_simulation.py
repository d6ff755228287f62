"""Schedules that must not break anything: a fixed set of seeds, and all that once did."""

import json
from pathlib import Path

import pytest
from drakkar.handlers import raft_handlers
from drakkar.handlers.testing.plan import Event, Plan, shrink

from tests.simulation.simulate import Total, plan_of, run, run_all

SEEDS = 1500
REGRESSIONS = sorted(Path(__file__).parent.glob("regressions/*.json"))

SELDOM = {
    (
        "CONFIG_CHANGE_EVENT",
        "PRE_CANDIDATE",
    ): "nobody campaigns with a change to apply, and who learns of one stops",
    ("CONFIG_CHANGE_EVENT", "CANDIDATE"): "likewise",
    ("SNAPSHOT_RECEIVED", "PRE_CANDIDATE"): "nobody campaigns with a snapshot to load",
    ("SNAPSHOT_RECEIVED", "CANDIDATE"): "likewise",
    ("SNAPSHOT_RECEIVED", "LEADER"): "likewise",
    ("INSTALL_SNAPSHOT", "CANDIDATE"): "the winner would have to compact before the loser hears of it",
}


@pytest.fixture(scope="module")
def total():
    total = Total()
    for part in run_all(0, SEEDS):
        total.add(part)
    return total


@pytest.mark.timeout(600)
def test_no_schedule_breaks_an_invariant(total):
    assert total.runs == SEEDS
    assert not total.failures, "\n".join(
        f"make sim SEED={seed} HOSTS={hosts}   # {check}: {text[:200]}"
        for seed, hosts, check, text in sorted(total.failures)[:5]
    )


def test_every_cell_with_a_handler_was_entered(total):
    handlers = raft_handlers()
    missed = {
        (str(type_), state.name)
        for state, type_, cell in handlers.cells()
        if callable(cell) and not total.cells[state.name, str(type_)]
    }
    assert missed <= SELDOM.keys()


@pytest.mark.parametrize(
    "what",
    [
        "a conflict was cut off",
        "a joint membership was entered",
        "a leader stepped down",
        "a leader was deposed",
        "a membership change was cut off",
        "a pre-vote was not won",
        "a shard fell silent",
        "a snapshot was installed",
        "a transfer began",
        "a transfer was given up",
        "a vote was refused within the lease",
        "an election was not won",
        "progress went from PROBE to SNAPSHOT",
        "progress went from REPLICATE to PROBE",
        "progress went from SNAPSHOT to PROBE",
        "progress went from SNAPSHOT to REPLICATE",
        "the store had no room",
    ],
)
def test_rare_things_happened(total, what):
    assert total.happened[what] > 0


def test_the_same_plan_gives_the_same_run():
    for hosts in ("core", "node"):
        one, other = run(plan_of(4), hosts), run(plan_of(4), hosts)
        assert (one.steps, one.operations, one.happened, one.cells) == (
            other.steps,
            other.operations,
            other.happened,
            other.cells,
        )


def test_a_plan_survives_being_written_down():
    for seed in range(50):
        plan = plan_of(seed)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_is_cut_down_to_what_makes_it_fail():
    plan = plan_of(3)
    culprits = {plan.events[4], plan.events[-2]}
    small = shrink(plan, lambda smaller: culprits <= set(smaller.events))
    assert set(small.events) == culprits
    assert small.weather == type(small.weather)()
    assert not small.config


def test_a_plan_that_needs_no_event_loses_all_of_them():
    assert shrink(Plan(events=(Event(5, "heal"),)), lambda _: True).events == ()


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_what_once_broke_stays_mended(path):
    data = json.loads(path.read_text(encoding="utf-8"))
    outcome = run(Plan.from_json(data["plan"]), data["hosts"])
    assert not outcome.check, f"{data['check']} again: {outcome.error}"
