"""The log store's file gives back what it no longer needs, and a crash at any point of that harms nothing."""

import logging
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from drakkar.actors.log import lmdb as log_lmdb
from drakkar.actors.log import space as log_space
from drakkar.actors.log.store import AppendRequest, LmdbLogStore, StoredLog
from drakkar.handlers.errors import StorageFailed
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.log import UNLIMITED
from drakkar.handlers.raft.state import HardState

from tests.actors.log.support import Host, Waiter, check, of, run

MIB = 1 << 20


def size(directory: Path) -> int:
    return (directory / "data.mdb").stat().st_size


def flood(host: Host, count: int, first: int = 1) -> None:
    """Some MiB in runs of ten entries of a KiB, but for the last ten, which are small."""
    waiter = Waiter()
    runs = [Run(at, 1, [bytes(1000)] * 10) for at in range(first, first + count - 10, 10)]
    host.store.save(AppendRequest(1, 1, HardState(1), [*runs, run(first + count - 10, 10)], done=waiter))
    assert waiter.wait() == [None]


def settle(host: Host) -> None:
    """Wait until all that was to be deleted is, and the space it took given back."""
    host.store.open(1, 1)
    while host.store._trims:
        host.store.open(1, 1)
    # Space is given back behind the last of them.
    host.store.open(1, 1)


@contextmanager
def reading(log: StoredLog, low: int, high: int, wanted: object) -> Iterator[None]:
    """Two threads read all the while, from the disk."""
    stop, wrong = threading.Event(), []
    reads = [0, 0]

    def read(which: int) -> None:
        while not stop.is_set():
            try:
                log._recent = None
                assert list(Entries(log.runs(low, high, UNLIMITED))) == wanted
                reads[which] += 1
            except BaseException as error:  # noqa: BLE001  # shown by the assertion below
                wrong.append(error)
                return

    readers = [threading.Thread(target=read, args=(which,)) for which in (0, 1)]
    for reader in readers:
        reader.start()
    try:
        yield
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    assert min(reads) > 0


def test_the_file_is_short_again_after_the_compaction_of_a_long_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the limits that a host has, while others read and write."""
    caplog.set_level(logging.INFO)
    host = Host(lambda: LmdbLogStore(tmp_path / "log"))
    log = host.begin()
    payloads = [b"%04d" % at * 70 for at in range(100)]
    for first in range(1, 300_000, 10_000):
        runs = [Run(at, 1, payloads) for at in range(first, first + 10_000, 100)]
        assert host.save(*runs) is None
    host.begin(2, 2)
    assert host.save(run(1, 50, 3), shard=2, replica=2) is None
    assert size(tmp_path / "log") > 80 * MIB
    with reading(host.log(2, 2), 1, 51, of(run(1, 50, 3))):
        host.store.compact(1, 1, 299_000)
        for index in range(300_001, 300_101):
            assert host.save(run(index, 1, 2)) is None
        settle(host)
    assert size(tmp_path / "log") < 2 * MIB
    assert "of it were free and are given back" in caplog.text
    wanted = of(*(Run(at, 1, payloads) for at in range(299_001, 300_001, 100)), run(300_001, 100, 2))
    assert list(Entries(log.runs(299_001, 300_101, UNLIMITED))) == wanted
    for _ in range(2):
        check(host.log(), wanted, 299_001, 1)
        check(host.log(2, 2), of(run(1, 50, 3)), 1, 0)
        host.restart()
    host.store.close()


def test_floods_and_compactions_never_let_the_file_grow_for_good(tmp_path: Path) -> None:
    host = Host(lambda: LmdbLogStore(tmp_path / "log", map_size=MIB, spare_bytes=MIB))
    log = host.begin()
    for first in range(1, 20_000, 4000):
        flood(host, 4000, first)
        assert size(tmp_path / "log") > 4 * MIB
        host.store.compact(1, 1, first + 3989)
        settle(host)
        assert size(tmp_path / "log") < MIB
        check(log, of(run(first + 3990, 10)), first + 3990, 1)
    host.store.close()


@pytest.mark.parametrize("spare", [4 * MIB, 1])
def test_a_file_is_left_alone_where_there_is_little_to_win(tmp_path: Path, spare: int) -> None:
    """Too little is free, or too much of it is in use."""
    host = Host(lambda: LmdbLogStore(tmp_path / "log", spare_bytes=spare))
    host.begin()
    flood(host, 3000)
    before = (tmp_path / "log" / "data.mdb").stat().st_ino
    host.store.compact(1, 1, 2990 if spare > 1 else 2000)
    settle(host)
    host.restart()
    host.log()
    assert (tmp_path / "log" / "data.mdb").stat().st_ino == before
    host.store.close()


def test_what_is_too_much_to_copy_in_passing_is_copied_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lmdb, "_COPIED_AT_ONCE", 64 << 10)
    host = Host(lambda: LmdbLogStore(tmp_path / "log", spare_bytes=MIB))
    host.begin()
    flood(host, 3000)
    host.store.compact(1, 1, 2800)
    settle(host)
    assert size(tmp_path / "log") > 3 * MIB
    host.restart()
    assert size(tmp_path / "log") < MIB
    assert host.log().last_index == 3000
    host.store.close()


# -- crashes --------------------------------------------------------------------------------------------------------


class Observed:
    """What is done to files while the file is made shorter, and the directory as it is at each point."""

    def __init__(self, directory: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.images = directory, images
        self.seen: list[str] = []
        fsync, rename = os.fsync, Path.replace

        def observed_fsync(handle: int) -> None:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            self._around(f"sync {path.name}", lambda: fsync(handle))

        def observed_rename(path: Path, target: Path) -> Path:
            return self._around(f"rename {path.name} to {target.name}", lambda: rename(path, target))

        copyfd, opened = log_space.copy_live, log_lmdb._open_environment
        monkeypatch.setattr(os, "fsync", observed_fsync)
        monkeypatch.setattr(Path, "replace", observed_rename)
        monkeypatch.setattr(log_space, "copy_live", lambda *what: self._around("copy", lambda: copyfd(*what)))
        monkeypatch.setattr(
            log_lmdb, "_open_environment", lambda *what: self._around("open", lambda: opened(*what))
        )

    def _around(self, what: str, do: Callable[[], object]) -> object:
        self._image()
        done = do()
        self.seen.append(what)
        self._image()
        return done

    def _image(self) -> None:
        shutil.copytree(self.directory, self.images / str(len(list(self.images.iterdir()))))


def test_a_crash_at_any_point_of_it_leaves_the_one_file_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(lambda: LmdbLogStore(tmp_path / "log", spare_bytes=MIB))
    host.begin()
    flood(host, 3000)
    images = tmp_path / "images"
    images.mkdir()
    with monkeypatch.context() as patch:
        observed = Observed(tmp_path / "log", images, patch)
        host.store.compact(1, 1, 2990)
        settle(host)
    assert observed.seen == [
        "sync data.mdb.new",
        "copy",
        "rename data.mdb.new to data.mdb",
        "sync log",
        "open",
    ]
    assert size(tmp_path / "log") < MIB
    host.store.close()
    found = sorted(images.iterdir(), key=lambda image: int(image.name))
    assert len(found) == 10
    rng = random.Random(1)
    for image in found:
        leftover = image / "data.mdb.new"
        if leftover.exists():
            torn = bytearray(leftover.read_bytes()[: rng.randint(0, leftover.stat().st_size)])
            torn[: len(torn) // 2] = rng.randbytes(len(torn) // 2)
            leftover.write_bytes(torn)
        again = Host(lambda image=image: LmdbLogStore(image, spare_bytes=1 << 40))
        assert not leftover.exists()
        check(again.log(), of(run(2991, 10)), 2991, 1)
        assert again.save(run(3001, 5, 2)) is None
        again.store.close()


# -- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["copyfd", "fsync"])
def test_a_copy_that_fails_is_thrown_away_and_nothing_else_has_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A disk that is nearly full has no room for it."""
    host = Host(lambda: LmdbLogStore(tmp_path / "log", spare_bytes=MIB))
    log = host.begin()
    flood(host, 3000)

    def fail(*_arguments: object) -> None:
        if where == "copyfd":
            (tmp_path / "log" / "data.mdb.new").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "copyfd":
            patch.setattr(log_space, "copy_live", fail)
        else:
            patch.setattr(log_space.os, "fsync", fail)
        host.store.compact(1, 1, 2990)
        settle(host)
    assert "No space left on device" in caplog.text
    assert not (tmp_path / "log" / "data.mdb.new").exists()
    assert host.save(run(3001, 5, 2)) is None
    check(log, of(run(2991, 10), run(3001, 5, 2)), 2991, 1)
    host.restart()
    assert size(tmp_path / "log") < MIB, "the next start tries again"
    check(host.log(), of(run(2991, 10), run(3001, 5, 2)), 2991, 1)
    host.store.close()


def test_where_the_new_name_is_not_surely_durable_nothing_more_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came later would be in a file that a crash may take away."""
    host = Host(lambda: LmdbLogStore(tmp_path / "log", spare_bytes=MIB))
    host.begin()
    flood(host, 3000)

    def fail(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(log_space, "sync_directory", fail)
        host.store.compact(1, 1, 2990)
        with pytest.raises(StorageFailed, match="Input/output error"):
            settle(host)
    assert isinstance(host.save(run(3001, 5, 2)), StorageFailed)
    host.restart()
    check(host.log(), of(run(2991, 10)), 2991, 1)
    host.store.close()
