"""The check of the flushes finds what was not flushed. The lines are what strace 6.1 writes."""

import shutil
from pathlib import Path

import pytest

from tests.benchmarks import flushes
from tests.benchmarks.flushes import Flush, count_flushed, flushes_in
from tests.benchmarks.load import Load, LoadError
from tests.benchmarks.rows import ROWS
from tests.benchmarks.systems import Unavailable

NEEDS_STRACE = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace, to see what is flushed"
)


def found(*lines: str) -> list[tuple[float, float]]:
    return [(flush.began, round(flush.ended, 6)) for flush in flushes_in(lines)]


@pytest.mark.parametrize("call", ["fsync(5)", "fdatasync(5)", "msync(0x7f2c, 4096, MS_SYNC)"])
def test_a_flush_is_a_call_that_returned_without_an_error(call: str) -> None:
    assert found(f"12 100.000001 {call} = 0 <0.000200>") == [(100.000001, 100.000201)]
    assert found(f"100.000001 {call}        = 0 <0.000200>") == [(100.000001, 100.000201)]
    assert not found(f"12 100.000001 {call} = -1 EIO (Input/output error) <0.000200>")
    assert not found(f"12 100.000001 {call} = ?")
    assert not found("12 100.000001 +++ exited with 0 +++")


def test_a_call_that_strace_tells_in_two_pieces_ends_where_it_is_resumed() -> None:
    lines = [
        "12 100.000100 fdatasync(5 <unfinished ...>",
        "13 100.000200 fsync(6 <unfinished ...>",
        "12 100.000300 <... fdatasync resumed>) = 0 <0.000200>",
        "13 100.000400 <... fsync resumed>)     = -1 EIO (Input/output error) <0.000200>",
    ]
    assert found(*lines) == [(100.0001, 100.0003)]


SUBMIT = "12 100.000100 io_submit(0x7fa1, 1, [{aio_data=0xc60, aio_lio_opcode=IOCB_CMD_FDSYNC, aio_fildes=4}]) = 1 <0.00001>"


def test_a_flush_by_linux_aio_lasts_until_its_completion_is_fetched() -> None:
    nothing = "12 100.000200 io_getevents(0x7fa1, 0, 512, [], {tv_sec=0, tv_nsec=0}) = 0 <0.00001>"
    end = "12 100.000300 io_getevents(0x7fa1, 0, 512, [{data=0xc60, obj=0xc98, res=0, res2=0}], NULL) = 1 <0.00001>"
    assert not found(SUBMIT), "submitted is not flushed"
    assert not found(SUBMIT, nothing)
    assert found(SUBMIT, nothing, end) == [(100.0001, 100.00031)]
    assert not found(SUBMIT, end.replace("res=0", "res=-5")), "it failed"
    assert not found(SUBMIT, end.replace("0xc60", "0xbad")), "another operation"
    assert not found(SUBMIT.replace("FDSYNC", "PWRITE"), end), "written is not flushed"
    assert not found(end)


def test_a_completion_may_be_fetched_before_the_submission_has_returned() -> None:
    lines = [
        f"{SUBMIT.partition(') =')[0].replace('100', '100', 1)} <unfinished ...>",
        "13 100.000200 io_getevents(0x7fa1, 1, 512,  <unfinished ...>",
        "13 100.000300 <... io_getevents resumed>[{data=0xc60, obj=0xc98, res=0, res2=0}], NULL) = 1 <0.0001>",
        "12 100.000400 <... io_submit resumed>) = 1 <0.0003>",
    ]
    assert found(*lines) == [(100.0001, 100.0003)]


def test_a_command_is_flushed_if_a_majority_flushed_between_its_proposal_and_its_answer() -> None:
    inside, before, late, across = Flush(1.1, 1.4), Flush(0.5, 0.9), Flush(1.2, 2.1), Flush(0.9, 1.5)
    answered = [(1.0, 2.0)]
    assert count_flushed(answered, [[inside], [inside], []]) == 1
    assert count_flushed(answered, [[before, inside], [], [inside, late]]) == 1
    for lacking in (before, late, across):
        assert count_flushed(answered, [[inside], [lacking], [lacking]]) == 0
    assert count_flushed(answered, [[inside, inside], [], []]) == 0, "one host is no majority"
    assert count_flushed([(1.0, 2.0), (3.0, 4.0)], [[inside], [inside], [inside]]) == 1


def checked(name: str, tmp_path: Path) -> flushes.FlushCheck:
    row = next(row for row in ROWS if (row.system, row.name) == (name, "1"))
    try:
        return flushes.check(row.module, row.options, row.load(1.0, moments=True), tmp_path / "cluster")
    except Unavailable as error:
        pytest.skip(str(error))


@NEEDS_STRACE
def test_drakkar_answers_nothing_before_a_majority_has_flushed_it(tmp_path: Path) -> None:
    outcome = checked("Drakkar", tmp_path)
    assert outcome.commands > 0
    assert outcome.flushed == outcome.commands


@pytest.mark.slow
@NEEDS_STRACE
def test_a_journal_that_is_not_flushed_is_found_out(tmp_path: Path) -> None:
    pytest.importorskip("pysyncobj")
    outcome = checked("PySyncObj, not flushed", tmp_path)
    assert outcome.flushed == 0 < outcome.commands
    assert outcome.verdict.startswith("not flushed")


@NEEDS_STRACE
@pytest.mark.slow
def test_a_check_that_saw_no_command_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no command's moments were told"):
        flushes.check("drakkar", {}, Load(1, 0.1, moments=True), tmp_path / "cluster")


def test_without_strace_the_check_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Unavailable, match="apt-get install strace"):
        flushes.check("drakkar", {}, Load(1, 0.1, client="waiting", moments=True), tmp_path / "cluster")
