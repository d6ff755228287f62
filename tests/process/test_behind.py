"""Replicas that come back far behind catch up, and harm nobody meanwhile.

What is counted holds on every machine: nothing is sent twice, dropped or refused, and no leader loses its office. The
full cases bound times too, generously; `python -m tests.process.behind` prints the figures and judges them strictly.
"""

import pytest

from tests.process.behind import (
    CASES,
    HEAD,
    HOSTS,
    LEADER,
    MIB,
    SNAPSHOT_ALONE,
    Bounds,
    Case,
    Figures,
    allowance,
    run,
)

BUSY = Bounds(patience=3.0, read=1.0, link=0.8)
"""For a machine that does other things too. How much of a link is used depends little on that, and a read that takes an
election timeout, 1 s, is a fault anywhere."""
SMALL = (
    Case("two shards, by the log", shards=2, count=40),
    Case("an observer, large commands", count=12, size=4 * MIB, observer=True),
    Case("by a snapshot", count=60, machine="kept", config=SNAPSHOT_ALONE),
)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_replica_that_is_behind_costs_what_it_lacks(case, tmp_path):
    figures = run(case, tmp_path)
    assert figures.faults() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_replicas_far_behind_harm_nobody(case, tmp_path):
    figures = run(case, tmp_path)
    print(HEAD, figures.row(), sep="\n")
    assert figures.faults() + figures.slow(BUSY) == []


def figures(case, *, seconds=12.5, slowest=0.2, grown=(0, 0, 0)):
    return Figures(
        case=case,
        caught_up=True,
        seconds=seconds,
        sent=case.missing,
        terms=({}, {}),
        leads=True,
        seen={1: {"slowest": slowest}},
        grown=dict(zip(HOSTS, grown, strict=True)),
    )


SLOW_LINK = CASES["slow link, 300 x 1 MiB"]


@pytest.mark.parametrize(
    ("seconds", "bounds", "wrong"),
    [
        pytest.param(13.0, Bounds(), False, id="97 %"),
        pytest.param(14.5, Bounds(), True, id="87 %, where 90 % are wanted"),
        pytest.param(14.5, BUSY, False, id="87 %, on a busy machine"),
        pytest.param(16.0, BUSY, True, id="79 %, on a busy machine"),
    ],
)
def test_most_of_a_slow_link_is_to_be_used_also_on_a_busy_machine(seconds, bounds, wrong):
    assert (
        any("the link carried" in fault for fault in figures(SLOW_LINK, seconds=seconds).slow(bounds))
        == wrong
    )


def test_only_the_host_that_sends_may_hold_what_waits_to_be_sent():
    case = CASES["300 x 1 MiB"]
    most = allowance(case, LEADER)
    assert figures(case, grown=(most, 0, 0)).slow(Bounds()) == []
    assert len(figures(case, grown=(0, 0, most)).slow(Bounds())) == 1
