"""The data directory: one process at a time, one host for ever, and nothing that belongs to others is changed."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from drakkar.actors.log.data_dir import DataDir, make_directory
from drakkar.handlers.errors import ConfigError, CorruptData

NOBODY = 65534


def take(path: Path, deployment_id: str = "default", address: str = "10.0.0.1:7000") -> DataDir:
    return DataDir.open(path, deployment_id=deployment_id, address=address)


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


@contextmanager
def as_a_common_user() -> Iterator[Path]:
    """Become another user, since root may read and write everything; yields a directory that this user may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)


def test_a_directory_is_made_with_all_above_it_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "data"
    with take(path) as made:
        host_id = made.host_id
        assert made.path == path
        assert len(bytes.fromhex(host_id)) == 16
    with take(path) as found:
        assert (found.host_id, found.deployment_id, found.address) == (host_id, "default", "10.0.0.1:7000")
    assert sorted(each.name for each in path.iterdir()) == ["IDENTITY", "LOCK"]


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
        assert made.directory("log") == tmp_path / "data" / "log"
        assert (tmp_path / "data" / "log").is_dir()


def test_the_identity_can_be_read_by_people(tmp_path: Path) -> None:
    with take(tmp_path, "prod", "a:1") as made:
        assert json.loads((tmp_path / "IDENTITY").read_text()) == {
            "format": 1,
            "deployment_id": "prod",
            "address": "a:1",
            "host_id": made.host_id,
        }


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


def test_a_directory_of_another_format_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "IDENTITY").write_text(json.dumps({"format": 2, "anything": "else"}))
    before = picture(tmp_path)
    with pytest.raises(
        ConfigError, match=r"its format is 2, and this version reads 1: use the version that wrote it"
    ):
        take(tmp_path)
    assert picture(tmp_path) == before


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1}', "\xff\x00", '{"format": 1, "address": 7}']
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
        with pytest.raises(ConfigError, match=r"closed.* may not be read and written by this user"):
            take(closed)


def test_a_directory_that_may_not_be_written_is_refused() -> None:
    with as_a_common_user() as base:
        with pytest.raises(ConfigError, match=r"may not be read and written by this user"):
            take(base / "new" if os.getuid() == 0 else Path("/new"))
        with pytest.raises(ConfigError, match=r"may not be read and written by this user"):
            take(base if os.getuid() == 0 else Path("/lost+found"))


def test_a_path_that_cannot_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data_dir=.*cannot be used"):
        take(Path("/proc/no/such/place"))


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path) -> None:
    with holding(tmp_path / "data") as pid:
        with pytest.raises(ConfigError) as raised:
            take(tmp_path / "data")
        assert str(tmp_path / "data") in str(raised.value)
        assert f"is in use by process {pid}: stop that one first" in str(raised.value)


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


@pytest.mark.parametrize("left", [["LOCK"], ["IDENTITY.new"], ["LOCK", "IDENTITY.new"]])
def test_a_start_that_was_cut_short_is_begun_again(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_bytes(b"{")
    with take(tmp_path) as made:
        host_id = made.host_id
    with take(tmp_path) as found:
        assert found.host_id == host_id
    assert not (tmp_path / "IDENTITY.new").exists()


def test_an_identity_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name appears only after the content is on disk, and the directory is synced after that."""
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def record_fsync(handle: int) -> None:
        steps.append(f"fsync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    def record_rename(self: Path, target: Path) -> Path:
        steps.append(f"{self.name} -> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_rename)
    take(tmp_path / "data").close()
    assert steps == [
        f"fsync {tmp_path.name}",
        "fsync IDENTITY.new",
        "IDENTITY.new -> IDENTITY",
        "fsync data",
    ]


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
