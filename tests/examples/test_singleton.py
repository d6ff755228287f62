"""The scheduler as its docstring says: on three real processes, one of which is killed, or stands still."""

import re
import signal
from itertools import pairwise

import pytest
from drakkar.actors import Refused

from examples import singleton
from tests.actors.support import until
from tests.ports import free_addresses

NUMBERS = (1, 2, 3)


class Three:
    """The three hosts, and where the scheduler is."""

    def __init__(self, run, directory):
        self._run, self._directory = run, directory
        self.hosts = free_addresses(3)
        self.programs = {}
        for number in NUMBERS:
            self.start(number)
        for program in self.programs.values():
            program.wait_for("ready")

    def start(self, number):
        options = ("--hosts", *self.hosts, "--data", self._directory / f"s{number}")
        self.programs[number] = self._run("singleton", number, *options)

    def runs(self, *, among=NUMBERS, above=0):
        """Wait until a scheduler has begun with a greater number than `above`; return its host and its number."""

        def begun():
            found = [
                (int(line[1]), number)
                for number in among
                for text in self.programs[number].said
                if (line := re.fullmatch(r"the scheduler runs here, with fence (\d+)", text))
            ]
            return max((each for each in found if each[0] > above), default=None)

        fence, number = until(begun, timeout=60)
        return number, fence

    def jobs(self):
        """All jobs that were done, in their order, each with the number of the scheduler that did it."""
        found = [
            re.fullmatch(r"job (\d+), fence (\d+)", text)
            for program in self.programs.values()
            for text in program.said
        ]
        return sorted((int(job[1]), int(job[2])) for job in found if job)


@pytest.fixture
def three(run, tmp_path):
    return Three(run, tmp_path)


def test_one_scheduler_works_and_each_host_can_ask_it(three):
    number, _ = three.runs()
    three.programs[number].wait_for("job 3, fence")
    for each in NUMBERS:
        said = three.programs[each].ask("", "asked: ")
        answer = re.fullmatch(r"asked: job \d+, fence (\d+), at (\S+)", said)
        assert answer
        where = three.programs[three.hosts.index(answer[2]) + 1]
        assert f"the scheduler runs here, with fence {answer[1]}" in where.said
    jobs = [job for job, _ in three.jobs()]
    assert jobs == list(range(1, len(jobs) + 1)), "each is done once"
    assert [three.programs[each].end()[0] for each in NUMBERS] == [0, 0, 0]


def test_where_its_host_is_killed_another_one_goes_on_with_a_greater_number(three):
    first, old = three.runs()
    three.programs[first].wait_for("job 2, fence")
    three.programs[first].kill()
    others = [number for number in NUMBERS if number != first]
    second, new = three.runs(among=others, above=old)
    three.programs[second].wait_for(f", fence {new}")
    third = next(number for number in others if number != second)
    assert f", fence {new}, at " in three.programs[third].ask("", "asked: ")
    jobs = three.jobs()
    assert {old, new} <= {fence for _, fence in jobs}
    assert all(before <= after for (_, before), (_, after) in pairwise(jobs))
    assert len({job for job, _ in jobs}) == len(jobs), "it goes on where the other one was"
    three.start(first)
    three.programs[first].wait_for("ready")
    assert f", fence {new}, at " in three.programs[first].ask("", "asked: ")


@pytest.mark.slow
def test_a_scheduler_that_stood_still_does_no_job_when_it_goes_on(three):
    first, old = three.runs()
    program = three.programs[first]
    program.wait_for("job 2, fence")
    program.send(signal.SIGSTOP)
    others = [number for number in NUMBERS if number != first]
    second, new = three.runs(among=others, above=old)
    three.programs[second].wait_for(f", fence {new}")
    said = len(program.said)
    program.send(signal.SIGCONT)
    until(lambda: f", fence {new}, at " in program.ask("", "asked: "))  # it has learnt where the other one is
    late = [text for text in program.said[said:] if text.startswith("job ")]
    jobs = three.jobs()
    assert all(before <= after for (_, before), (_, after) in pairwise(jobs)), late


# -- What the number is for


def test_jobs_of_a_scheduler_of_the_past_are_refused():
    jobs = singleton.Jobs()
    assert [jobs.apply(fence) for fence in (b"3", b"3", b"8")] == [1, 2, 3]
    with pytest.raises(Refused, match="fence 3 is over: there is one with 8"):
        jobs.apply(b"3")
    assert jobs.query(None) == 3


def test_what_a_snapshot_has_is_what_was_there(tmp_path):
    jobs, copy = singleton.Jobs(), singleton.Jobs()
    for fence in (b"3", b"8"):
        jobs.apply(fence)
    with (tmp_path / "snapshot").open("wb") as sink:
        jobs.save(sink)
    with (tmp_path / "snapshot").open("rb") as source:
        copy.load(source)
    assert (copy.done, copy.fence) == (2, 8)
    with pytest.raises(Refused):
        copy.apply(b"7")
