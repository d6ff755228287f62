"""How often a host has started, and what it remembers of other hosts' starts."""

from pathlib import Path

import pytest
from drakkar.actors.log.runs_file import HOSTS, MAX_NONCES, RUN, raise_run, read_known_runs, write_known_runs
from drakkar.handlers.errors import CorruptData
from drakkar.transport import hello


def test_each_start_is_a_run_of_its_own_that_follows_those_before(tmp_path: Path) -> None:
    first, second, third = (raise_run(tmp_path) for _ in range(3))
    assert [count for count, _ in (first, second, third)] == [1, 2, 3]
    assert third[1][1:] == second[1]
    assert second[1][1:] == first[1]
    assert len(set(third[1])) == 3


def test_a_start_that_fails_before_the_file_is_in_place_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nonces = raise_run(tmp_path)

    def fail(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            raise_run(tmp_path)
    count, later = raise_run(tmp_path)
    assert (count, later[1:]) == (2, nonces)


def test_as_many_nonces_are_kept_as_an_introduction_carries(tmp_path: Path) -> None:
    for _ in range(MAX_NONCES + 3):
        count, nonces = raise_run(tmp_path)
    assert (count, len(nonces)) == (MAX_NONCES + 3, MAX_NONCES)
    assert MAX_NONCES == hello.MAX_NONCES


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"count": 0, "nonces": [1]}', '{"count": 2, "nonces": []}', '{"count": "2", "nonces": [1]}'],
)
def test_a_damaged_run_is_refused(tmp_path: Path, text: str) -> None:
    """It might be lower than that which others remember."""
    (tmp_path / RUN).write_text(text)
    with pytest.raises(CorruptData, match=r"RUN .*put it back as it was"):
        raise_run(tmp_path)
    assert (tmp_path / RUN).read_text() == text


def test_what_is_known_of_other_hosts_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_known_runs(tmp_path) == {}
    write_known_runs(tmp_path, {"ab": (3, 77, "a:1"), "cd": (1, 0, "")})
    known = {"ab": (4, 78, "b:1"), "cd": (1, 0, ""), "ab\nc:1": (9, 1, "c:1")}
    write_known_runs(tmp_path, known)
    assert read_known_runs(tmp_path) == known


def test_a_file_of_4_0_has_no_addresses(tmp_path: Path) -> None:
    (tmp_path / HOSTS).write_text('{"ab": [3, 77]}')
    assert read_known_runs(tmp_path) == {"ab": (3, 77, "")}


@pytest.mark.parametrize(
    "text", ["[", '{"ab": 3}', '{"ab": [1]}', '{"ab": [1, -1]}', '{"ab": [1, 1, 1]}', '{"ab": [1, 1, "", 1]}']
)
def test_damaged_knowledge_of_other_hosts_is_refused_with_its_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / HOSTS).write_text(text)
    with pytest.raises(CorruptData, match=r"HOSTS .*delete it"):
        read_known_runs(tmp_path)
