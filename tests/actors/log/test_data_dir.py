"""The data directory: one process at a time, one host for ever, and nothing that belongs to others is changed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from drakkar.actors.log.data_dir import LOG, SNAPSHOTS, DataDir, make_directory
from drakkar.handlers.errors import ConfigError, CorruptData

from tests.actors.users import as_a_common_user


def begin(path: Path, deployment_id: str = "default", address: str = "10.0.0.1:7000") -> DataDir:
    """Open a directory, as far as it needs no log store."""
    return DataDir.open(path, deployment_id=deployment_id, address=address)


def take(path: Path, deployment_id: str = "default", address: str = "10.0.0.1:7000") -> DataDir:
    """Open a directory as a host does."""
    directory = begin(path, deployment_id, address)
    try:
        if directory.new:
            (directory.part(LOG) / "manifest").write_bytes(b"of the log store")
        directory.complete()
    except BaseException:
        directory.close()
        raise
    return directory


def picture(path: Path) -> dict[str, bytes | None]:
    """All that is in a directory, with its content."""
    return {
        str(each.relative_to(path)): each.read_bytes() if each.is_file() else None for each in path.rglob("*")
    }


@contextmanager
def holding(path: Path) -> Iterator[int]:
    """Another process has the directory; yields its id."""
    code = (
        "import sys; from drakkar.actors.log.data_dir import DataDir\n"
        "DataDir.open(sys.argv[1], deployment_id='default', address='10.0.0.1:7000')\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield child.pid
        finally:
            child.kill()


def test_a_directory_is_made_with_all_above_it_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "data"
    with take(path) as made:
        host_id = made.host_id
        assert made.path == path
        assert len(bytes.fromhex(host_id)) == 16
    with take(path) as found:
        assert (found.host_id, found.deployment_id, found.address) == (host_id, "default", "10.0.0.1:7000")
    assert sorted(each.name for each in path.iterdir()) == ["IDENTITY", "LOCK", "RUN", "log", "snapshots"]


def test_an_empty_directory_and_a_new_disk_are_taken(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    with take(tmp_path) as made:
        assert made.host_id


def test_two_directories_are_two_hosts(tmp_path: Path) -> None:
    with take(tmp_path / "a") as first, take(tmp_path / "b") as second:
        assert first.host_id != second.host_id


def test_a_relative_path_means_the_same_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with take(Path("data")) as made:
        monkeypatch.chdir("/")
        assert made.part(LOG) == tmp_path / "data" / "log"


def test_the_identity_can_be_read_by_people(tmp_path: Path) -> None:
    with take(tmp_path, "prod", "a:1") as made:
        assert json.loads((tmp_path / "IDENTITY").read_text()) == {
            "format": 2,
            "deployment_id": "prod",
            "address": "a:1",
            "host_id": made.host_id,
        }
        assert json.loads((tmp_path / "snapshots" / "OWNER").read_text()) == {"host_id": made.host_id}


@pytest.mark.parametrize(
    ("option", "deployment_id", "address", "stored"),
    [
        ("deployment_id", "test", "10.0.0.1:7000", "default"),
        ("address", "default", "10.0.0.9:7000", "10.0.0.1:7000"),
    ],
)
def test_a_directory_of_another_deployment_or_address_is_refused_untouched(
    tmp_path: Path, option: str, deployment_id: str, address: str, stored: str
) -> None:
    take(tmp_path).close()
    before = picture(tmp_path)
    with pytest.raises(ConfigError) as raised:
        take(tmp_path, deployment_id, address)
    assert raised.value.option == option
    assert raised.value.value in (deployment_id, address)
    assert f"{tmp_path} belongs to {option}={stored!r}: start with that" in str(raised.value)
    assert picture(tmp_path) == before
    take(tmp_path).close()


def test_a_directory_of_others_is_refused_and_not_changed(tmp_path: Path) -> None:
    for name in ("thesis.tex", "figures", "notes", "zebra"):
        (tmp_path / name).write_text("precious")
    before = picture(tmp_path)
    with pytest.raises(
        ConfigError, match=r"holds figures, notes, thesis.tex and more, but no IDENTITY of ours"
    ):
        take(tmp_path)
    assert picture(tmp_path) == before


@pytest.mark.parametrize("below", ["", "data", "data/deeper"])
def test_a_file_in_place_of_the_directory_is_refused_untouched(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match=r"file.* is a file: name a directory"):
        take(tmp_path / "file" / below)
    assert picture(tmp_path) == {"file": b"precious"}


@pytest.mark.parametrize(
    ("version", "says"),
    [
        pytest.param(
            1,
            "its log is one file of LMDB .*, so export its shards with the version that wrote it",
            id="LMDB",
        ),
        pytest.param(3, "use the version that wrote it", id="a later one"),
        pytest.param([], "use the version that wrote it", id="none"),
    ],
)
@pytest.mark.parametrize("way", [begin, DataDir.existing])
def test_a_directory_of_another_format_is_refused_untouched(
    tmp_path: Path, way: Callable[[Path], DataDir], version: object, says: str
) -> None:
    (tmp_path / "IDENTITY").write_text(
        json.dumps(
            {"format": version, "deployment_id": "default", "address": "10.0.0.1:7000", "host_id": "5"}
        )
    )
    (tmp_path / "LOCK").touch()
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "data.mdb").touch()
    (tmp_path / "snapshots").mkdir()
    before = picture(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"its format is {re.escape(str(version))}, and this version reads 2: {says}"
    ):
        way(tmp_path)
    assert picture(tmp_path) == before


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 2}', "\xff\x00", '{"format": 2, "address": 7}']
)
def test_an_identity_that_cannot_be_read_is_refused_untouched(tmp_path: Path, content: str) -> None:
    (tmp_path / "IDENTITY").write_bytes(content.encode("latin-1"))
    before = picture(tmp_path)
    with pytest.raises((CorruptData, ConfigError), match=r"IDENTITY|format"):
        take(tmp_path)
    assert picture(tmp_path) == before


def test_a_directory_that_may_not_be_read_is_refused() -> None:
    with as_a_common_user() as base:
        euid = os.geteuid()
        os.seteuid(os.getuid())
        closed = base / "closed"
        closed.mkdir(mode=0o000)
        os.seteuid(euid)
        with pytest.raises(
            ConfigError,
            match=r"closed.* cannot be used: Permission denied: this user may not use it, so change its owner",
        ):
            take(closed)


def test_a_directory_that_may_not_be_written_is_refused() -> None:
    with as_a_common_user() as base:
        with pytest.raises(
            ConfigError,
            match=r"cannot be used: Permission denied: this user may not use it, so change its owner",
        ):
            take(base / "new" if os.getuid() == 0 else Path("/new"))
        with pytest.raises(
            ConfigError,
            match=r"cannot be used: Permission denied: this user may not use it, so change its owner",
        ):
            take(base if os.getuid() == 0 else Path("/lost+found"))


def test_a_path_that_cannot_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data_dir=.*cannot be used"):
        take(Path("/proc/no/such/place"))


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path) -> None:
    with holding(tmp_path / "data") as pid:
        with pytest.raises(ConfigError) as raised:
            take(tmp_path / "data")
        assert str(tmp_path / "data") in str(raised.value)
        assert f"is in use by process {pid} (" in str(raised.value)


def test_a_killed_process_leaves_the_directory_free(tmp_path: Path) -> None:
    with holding(tmp_path / "data"):
        pass
    take(tmp_path / "data").close()


def test_one_process_cannot_have_it_twice(tmp_path: Path) -> None:
    with take(tmp_path) as first:
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            take(tmp_path)
        first.close()
        take(tmp_path).close()


def test_a_refused_start_does_not_keep_the_lock(tmp_path: Path) -> None:
    take(tmp_path).close()
    with pytest.raises(ConfigError):
        take(tmp_path, address="elsewhere:1")
    take(tmp_path).close()


# -- the first start


@pytest.mark.parametrize("left", [["LOCK"], ["IDENTITY.new"], ["LOCK", "IDENTITY.new"]])
def test_a_start_that_was_cut_short_before_its_identity_was_written_is_begun_again(
    tmp_path: Path, left: list[str]
) -> None:
    for name in left:
        (tmp_path / name).write_bytes(b"{")
    with take(tmp_path) as made:
        host_id = made.host_id
    with take(tmp_path) as found:
        assert found.host_id == host_id
    assert not (tmp_path / "IDENTITY.new").exists()


class Crash(BaseException):
    """The process ends here."""


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, crash_at: int = 0) -> Iterator[list[str]]:
    """Note each step of a first start, and crash before the one of that number."""
    steps: list[str] = []
    fsync, replace, mkdir = os.fsync, Path.replace, Path.mkdir

    def note(step: str) -> None:
        if len(steps) + 1 == crash_at:
            raise Crash
        steps.append(step)

    def note_fsync(handle: int) -> None:
        note(f"fsync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        note(f"{self.name} -> {target.name}")
        return replace(self, target)

    def note_mkdir(self: Path, mode: int = 0o777, *, exist_ok: bool = False) -> None:
        note(f"mkdir {self.name}")
        mkdir(self, mode, exist_ok=exist_ok)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note_fsync)
        patch.setattr(Path, "replace", note_replace)
        patch.setattr(Path, "mkdir", note_mkdir)
        yield steps


def test_the_identity_gets_its_name_when_all_parts_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch) as steps:
        take(tmp_path / "data").close()
    assert steps == [
        "mkdir data",
        f"fsync {tmp_path.name}",
        "fsync IDENTITY.new",
        "fsync data",
        "mkdir log",
        "fsync data",
        "mkdir snapshots",
        "fsync data",
        "fsync OWNER.new",
        "fsync snapshots",
        "OWNER.new -> OWNER",
        "fsync RUN.new",
        "fsync data",
        "RUN.new -> RUN",
        "fsync data",
        "fsync log",
        "fsync snapshots",
        "IDENTITY.new -> IDENTITY",
        "fsync data",
    ]


@pytest.mark.parametrize("step", range(1, 20))
def test_a_first_start_that_crashes_at_any_step_is_completed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = tmp_path / "data"
    with counted(monkeypatch, crash_at=step), pytest.raises(Crash):
        take(path)
    begun = [path / name for name in ("IDENTITY", "IDENTITY.new") if (path / name).exists()]
    promised = json.loads(begun[0].read_text())["host_id"] if begun else None
    with take(path) as made:
        assert promised in (None, made.host_id)
        host_id = made.host_id
    with take(path) as found:
        assert (found.host_id, found.new) == (host_id, False)
    assert sorted(each.name for each in path.iterdir()) == ["IDENTITY", "LOCK", "RUN", "log", "snapshots"]


def test_a_directory_is_new_until_its_parts_are_complete(tmp_path: Path) -> None:
    with begin(tmp_path) as made:
        host_id = made.host_id
        assert made.new
    with begin(tmp_path) as again:
        assert (again.new, again.host_id) == (True, host_id)
        (again.part(LOG) / "manifest").touch()
        again.complete()
        assert not again.new
    with begin(tmp_path) as found:
        assert (found.new, found.host_id) == (False, host_id)
        found.complete()


def test_a_first_start_that_was_cut_short_is_completed_only_by_the_same_host(tmp_path: Path) -> None:
    begin(tmp_path).close()
    with pytest.raises(ConfigError, match=r"belongs to address='10.0.0.1:7000'"):
        begin(tmp_path, address="10.0.0.9:7000")


def test_a_first_start_does_not_take_the_snapshots_of_another_host(tmp_path: Path) -> None:
    take(tmp_path / "other").close()
    begin(tmp_path / "data").close()
    (tmp_path / "other" / SNAPSHOTS / "OWNER").replace(tmp_path / "data" / SNAPSHOTS / "OWNER")
    with pytest.raises(ConfigError, match=r"data/snapshots belongs to the host with the id"):
        begin(tmp_path / "data")


# -- a part that is missing, or another host's


def open_it(path: Path) -> DataDir:
    return begin(path)


def look_into_it(path: Path) -> DataDir:
    return DataDir.existing(path)


both_ways = pytest.mark.parametrize("way", [open_it, look_into_it])


@both_ways
@pytest.mark.parametrize("part", ["log", "snapshots", "snapshots/OWNER"])
def test_a_part_that_is_missing_is_named_and_nothing_is_made_anew(
    tmp_path: Path, way: Callable[[Path], DataDir], part: str
) -> None:
    take(tmp_path).close()
    (tmp_path / SNAPSHOTS / "1-1").mkdir()
    (tmp_path / part).rename(tmp_path / "lost+found")
    before = picture(tmp_path)
    with pytest.raises(
        CorruptData, match=rf"{tmp_path / part} is missing.*: put it back as it was, or replace the replicas"
    ):
        way(tmp_path)
    assert picture(tmp_path) == before
    (tmp_path / "lost+found").rename(tmp_path / part)
    way(tmp_path).close()


@both_ways
@pytest.mark.parametrize("part", ["log", "snapshots"])
def test_a_part_that_is_empty_may_be_a_disk_that_is_not_mounted(
    tmp_path: Path, way: Callable[[Path], DataDir], part: str
) -> None:
    take(tmp_path).close()
    (tmp_path / part).rename(tmp_path / "lost+found")
    (tmp_path / part / "lost+found").mkdir(parents=True)
    before = picture(tmp_path)
    with pytest.raises(CorruptData, match=rf"{tmp_path / part} is empty, so perhaps its disk is not mounted"):
        way(tmp_path)
    assert picture(tmp_path) == before


@both_ways
def test_an_identity_that_is_missing_beside_its_parts_is_named(
    tmp_path: Path, way: Callable[[Path], DataDir]
) -> None:
    take(tmp_path).close()
    (tmp_path / "IDENTITY").unlink()
    before = picture(tmp_path)
    with pytest.raises(CorruptData, match=r"IDENTITY is missing, beside log and snapshots: put it back"):
        way(tmp_path)
    assert picture(tmp_path) == before


@both_ways
def test_snapshots_of_another_host_are_refused_untouched(
    tmp_path: Path, way: Callable[[Path], DataDir]
) -> None:
    with take(tmp_path / "a") as one, take(tmp_path / "b") as other:
        ids = one.host_id, other.host_id
    (tmp_path / "a" / SNAPSHOTS).rename(tmp_path / "aside")
    (tmp_path / "b" / SNAPSHOTS).rename(tmp_path / "a" / SNAPSHOTS)
    before = picture(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"a/snapshots belongs to the host with the id {ids[1]}, and this one is {ids[0]}"
    ):
        way(tmp_path / "a")
    assert picture(tmp_path) == before


@both_ways
def test_a_file_in_place_of_a_part_is_refused(tmp_path: Path, way: Callable[[Path], DataDir]) -> None:
    take(tmp_path).close()
    (tmp_path / LOG).rename(tmp_path / "lost+found")
    (tmp_path / LOG).touch()
    with pytest.raises(ConfigError, match=r"/log is a file: name a directory"):
        way(tmp_path)


@both_ways
def test_without_its_lock_file_a_directory_that_is_in_use_is_refused_all_the_same(
    tmp_path: Path, way: Callable[[Path], DataDir]
) -> None:
    """People remove lock files. The file holds nothing, so a stopped host starts without it."""
    with take(tmp_path):
        (tmp_path / "LOCK").unlink()
        with pytest.raises(
            ConfigError, match=r"is in use by process [0-9]+, which is this one: stop that one first"
        ):
            way(tmp_path)
    (tmp_path / "LOCK").unlink(missing_ok=True)
    way(tmp_path).close()


# -- several processes


def test_two_processes_that_race_to_make_it_agree_on_one(tmp_path: Path) -> None:
    code = (
        "import sys; from drakkar.actors.log.data_dir import DataDir; from drakkar.handlers.errors import ConfigError\n"
        "sys.stdin.readline()\n"
        "while True:\n"
        "    try: made = DataDir.open(sys.argv[1], deployment_id='d', address='a'); break\n"
        "    except ConfigError as error: assert 'in use by' in str(error), error\n"
        "print(made.host_id)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "data")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=60)[0] for child in children]
    assert len(set(answers)) == 1
    assert all(child.returncode == 0 for child in children)


def test_making_a_directory_that_is_there_does_nothing(tmp_path: Path) -> None:
    make_directory(tmp_path)
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
