"""Log lines name the host, shard and replica that they are about, cost nothing where they are off, and have a bound."""

import logging
import os

import pytest
from drakkar.actors.runtime.log_lines import LINES_PER_SECOND, MAX_BURST, HostLines


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Unprintable:
    def __str__(self) -> str:
        raise AssertionError("it was formatted")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host(clock: Clock, caplog: pytest.LogCaptureFixture) -> HostLines:
    caplog.set_level(logging.INFO)
    return HostLines("a:1", clock=clock)


def test_a_line_begins_with_what_it_is_about(host: HostLines, caplog: pytest.LogCaptureFixture) -> None:
    lines = host.of("drakkar.test")
    lines.info("starts with %d%% of %s", 5, "x")
    lines.about(3, 1).warning("has %s", {"a": 1})
    host.host = "b:2"
    lines.error("ends")
    HostLines().of("drakkar.test", 3, 1).info("is on no host")
    host.of("drakkar.test", 0, 1).info("has the first number")
    HostLines().of("drakkar.test").info("%s", {"only": "text"})
    assert caplog.messages == [
        "a:1: starts with 5% of x",
        "a:1 replica 1 of shard 3: has {'a': 1}",
        "b:2: ends",
        "replica 1 of shard 3: is on no host",
        "b:2 replica 1 of shard 0: has the first number",
        "{'only': 'text'}",
    ]
    assert [record.levelname for record in caplog.records[:3]] == ["INFO", "WARNING", "ERROR"]


def test_a_record_has_what_it_is_about_as_attributes_and_names_the_caller(
    host: HostLines, caplog: pytest.LogCaptureFixture
) -> None:
    host.of("drakkar.test", 3, 1).info("is here")
    try:
        print(1 / 0)
    except ZeroDivisionError:
        host.of("drakkar.test").exception("failed")
    about = [(record.host, record.shard, record.replica) for record in caplog.records]  # type: ignore[attr-defined]
    assert about == [("a:1", 3, 1), ("a:1", 0, 0)]
    for record in caplog.records:
        assert record.filename == "test_log_lines.py"
        assert (
            record.funcName == test_a_record_has_what_it_is_about_as_attributes_and_names_the_caller.__name__
        )
    assert caplog.records[1].exc_info is not None


def test_what_is_off_is_neither_formatted_nor_counted(
    host: HostLines, caplog: pytest.LogCaptureFixture
) -> None:
    lines = host.of("drakkar.test")
    for _ in range(2 * MAX_BURST):
        lines.debug("has %s", Unprintable())
    assert caplog.messages == []
    assert host.left_out == 0


def test_a_burst_of_one_kind_of_line_is_bounded_and_the_next_tells_what_was_left_out(
    host: HostLines, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for shard in range(1, MAX_BURST + 11):
        host.of("drakkar.test", shard, 1).info("has lost its leader")
    assert len(caplog.messages) == MAX_BURST
    assert caplog.messages[-1] == f"a:1 replica 1 of shard {MAX_BURST}: has lost its leader"
    host.of("drakkar.test").info("is another kind of line")
    assert caplog.messages[-1] == "a:1: is another kind of line"
    clock.now += 2 / LINES_PER_SECOND
    for _ in range(4):
        host.of("drakkar.test", 7, 1).info("has lost its leader")
    assert caplog.messages[MAX_BURST + 1 :] == [
        "a:1 replica 1 of shard 7: has lost its leader (10 lines like this one were left out)",
        "a:1 replica 1 of shard 7: has lost its leader",
    ]
    assert host.left_out == 12


def test_in_the_long_run_so_many_lines_of_a_kind_come_in_a_second(
    host: HostLines, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    lines = host.of("drakkar.test")
    for _ in range(100 * MAX_BURST // LINES_PER_SECOND):
        for _ in range(10 * LINES_PER_SECOND // 100):
            lines.info("comes too often")
        clock.now += 0.01
    seconds = MAX_BURST // LINES_PER_SECOND
    assert abs(len(caplog.messages) - MAX_BURST - seconds * LINES_PER_SECOND) < 10


def test_another_host_has_an_allowance_of_its_own(host: HostLines, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(MAX_BURST + 1):
        host.of("drakkar.test").info("is loud")
    HostLines("b:2").of("drakkar.test").info("is loud")
    assert caplog.messages[-1] == "b:2: is loud"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_can_log_though_another_thread_was_logging(host: HostLines) -> None:
    with host._lock:
        child = os.fork()
        if not child:
            os._exit(not host._lock.acquire(blocking=False))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
