"""docs/protocol_tutorial.md, done as it says by a new user: its files in memory, what storms find, and three real hosts."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from drakkar.handlers.testing import Violation

from tests.examples.support import Program
from tests.ports import free_addresses

PAGE = (Path(__file__).parents[1] / "docs" / "protocol_tutorial.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def files():
    """What comes later goes to the end of a file."""
    found = {}
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        found.setdefault(name, []).append(text)
    return {name: "\n\n".join(texts) for name, texts in found.items()}


FILES = files()


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def modules(folder, monkeypatch, types_of_one_test):
    """Import a file of the page, perhaps with one change."""
    monkeypatch.syspath_prepend(folder)

    def load(name, before="", after=""):
        text = (folder / f"{name}.py").read_text()
        assert before in text
        (folder / f"{name}.py").write_text(text.replace(before, after) if before else text)
        return importlib.import_module(name)

    yield load
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def assert_shown(shown, text):
    """All lines that are shown come, in this order; `...` stands for others."""
    lines = iter(text.splitlines())
    for line in shown.splitlines():
        if line.strip() != "...":
            assert any(line == each for each in lines), (
                f"{line!r} does not come, or comes earlier, in:\n{text}"
            )


def test_the_page_has_all_its_files():
    assert list(FILES) == [
        "first_barrier.py",
        "test_first_barrier.py",
        "barrier.py",
        "test_barrier.py",
        "station.py",
    ]


def test_the_table_looks_as_it_is_shown(modules):
    assert modules("first_barrier").table.describe() + "\n" == SHOWN[0]


def test_the_first_scenario_works_and_the_storm_finds_the_message_that_is_lost(modules):
    tests = modules("test_first_barrier")
    tests.test_all_go_on_when_the_last_one_arrives()
    with pytest.raises(Violation) as found:
        tests.test_whatever_happens()
    assert_shown(SHOWN[1], str(found.value))


def test_the_second_one_stands_three_hundred_storms(modules):
    modules("test_barrier").test_whatever_happens()


BREAKS = {
    "one other is enough": ("min(self.here.values())", "max(self.here.values())"),
    "the round is not looked at": ("max(here.hint, self.here[here.sender])", "self.round"),
    "one that waits in vain is not told": ("if here.hint < self.round:", "if False:"),
    "it is told too much": ("hint=self.round - 1)", "hint=self.round)"),
    "it says it once": ("node.every(5, Message(REPEAT))", "pass"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_rule_that_is_broken_is_found(modules, name):
    modules("barrier", *BREAKS[name])
    with pytest.raises(Violation) as found:
        modules("test_barrier").test_whatever_happens()
    if name == "one other is enough":
        assert_shown(SHOWN[2], str(found.value))


# -- on three hosts


class Stations:
    """The three programs of the page, with addresses that are free here."""

    def __init__(self, folder):
        self._folder = folder
        text = FILES["station.py"]
        for port, address in zip(("7000", "7001", "7002"), free_addresses(3), strict=True):
            text = text.replace(f"127.0.0.1:{port}", address)
        (folder / "station.py").write_text(text)
        self.programs, self.all = {}, []

    def __getitem__(self, name):
        return self.programs[name]

    def start(self, name):
        log = self._folder / f"{name}.log"
        self.programs[name] = Program(log, "station.py", name, cwd=self._folder)
        self.all.append(self.programs[name])
        self.programs[name].wait_for("Enter arrives; Ctrl-D ends")


@pytest.fixture
def stations(folder):
    stations = Stations(folder)
    for name in "abc":
        stations.start(name)
    yield stations
    for program in stations.all:
        program.clean_up()


def test_three_hosts_go_on_together_and_wait_for_one_that_is_killed(stations):
    for name in "abc":
        stations[name].type("")
    for name in "abc":
        stations[name].wait_for("round 2")
    stations["c"].kill()
    for name in "ab":
        stations[name].type("")
    stations.start("c")
    assert stations["c"].ask("") == "round 2", "the others have been there"
    assert not any("round 3" in stations[name].said for name in "ab")
    assert stations["c"].ask("") == "round 3"
    for name in "ab":
        stations[name].wait_for("round 3")
