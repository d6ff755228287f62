"""`make sim`: the seeds that it runs, and its output."""

import re

import pytest

from tests.simulation import __main__ as command


@pytest.fixture
def make_sim(monkeypatch, capsys):
    """Run the command with these arguments; return the seeds that it would have run, and its output."""

    def make_sim(*args):
        ranges = []

        def run_all(first, last, **_):
            ranges.append(range(first, last))
            return ()

        monkeypatch.setattr(command, "run_all", run_all)
        monkeypatch.setattr("sys.argv", ["tests.simulation", *args])
        with pytest.raises(SystemExit):
            command.main()
        (seeds,) = ranges
        return seeds, " ".join(capsys.readouterr().out.split())

    return make_sim


def test_seeds_are_fresh_each_time_and_can_be_run_again(make_sim):
    seeds, output = make_sim("20", "--hosts", "node")
    others, _ = make_sim("20", "--hosts", "node")
    assert len(seeds) == len(others) == 20
    assert not set(seeds) & set(others)
    first = re.search(r"make sim SEEDS=20 FIRST=(\d+) HOSTS=node", output)[1]
    assert make_sim("20", "--hosts", "node", "--first", first)[0] == seeds


def test_the_first_seed_can_be_given(make_sim):
    seeds, output = make_sim("20", "--first", "0")
    assert seeds == range(20)
    assert "make sim SEEDS=20 FIRST=0" in output
