"""The trace of a commit finds its way through three processes."""

from pathlib import Path

import pytest

from tests.benchmarks.journey import OWN_WRITE, WAY, Journey, main
from tests.benchmarks.load import LoadError
from tests.benchmarks.tracer import PLACES, Moments, find

PERIOD = 1_000_000
"""Nanoseconds from one commit to the next."""


def traced(*, slow: int = 0, commits: int = 10) -> tuple[Moments, Moments]:
    """The moments of a leader and a follower, the stages of whose commits take 1, 2, 3… µs; one is `slow` µs slower."""
    leader: Moments = []
    follower: Moments = []
    for number in range(commits):
        now = number * PERIOD
        leader.append((now, "propose"))
        for at, stage in enumerate(WAY):
            now += 1000 * (at + 1 + (slow if stage.what.startswith("the disk") else 0))
            (leader if stage.at_leader else follower).append((now, stage.until))
            if stage.until == "/order" and stage.at_leader:
                leader += [(now + 1000 * (at + 1), own.until) for at, own in enumerate(OWN_WRITE)]
    return sorted(leader), sorted(follower)


def test_each_stage_has_the_time_between_its_moments() -> None:
    leader, follower = traced()
    journey = Journey(leader, [follower])
    assert journey.stages == [float(at + 1) for at in range(len(WAY))]
    assert journey.total == sum(journey.stages)
    assert journey.own_write == [1.0, 1.0, 1.0]


def test_the_way_leads_over_the_follower_that_answered_first() -> None:
    leader, quick = traced()
    _, slow = traced(slow=300)
    assert Journey(leader, [slow, quick]).stages == Journey(leader, [quick]).stages


def test_places_are_counted_for_a_commit() -> None:
    leader, follower = traced()
    counts = {
        name: (at_leader, at_follower)
        for name, at_leader, at_follower in Journey(leader, [follower]).counts()
    }
    assert counts["PROPOSE"] == (1, 0)
    assert counts["REPLICATE"] == (0, 1)


def test_a_place_that_is_never_passed_is_an_error_that_lists_the_places() -> None:
    leader, follower = traced()
    with pytest.raises(LoadError, match=r"no commit passed all of /put, turn, PROPOSE"):
        Journey([each for each in leader if each[1] != "/ready"], [follower])


@pytest.mark.parametrize("place", PLACES.values())
def test_the_places_are_there(place: str) -> None:
    """Where a method is renamed that a trace names, this fails."""
    assert callable(getattr(*find(place)))


@pytest.mark.slow
def test_a_cluster_is_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.5", "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "step: REPLICATE_RESP" in shown
    assert "from the proposal to the answer" in shown
    assert not list(tmp_path.iterdir())
