"""What is said of a disk's errors: what the system says, and a remedy for each reason, wherever it is met."""

import errno
import os

import pytest
from drakkar.actors.log import store
from drakkar.actors.log.data_dir import DataDir
from drakkar.actors.log.disk_errors import explain
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.store import log_on_disk
from drakkar.actors.runtime.forks import Descriptor
from drakkar.actors.snapshots.store import SnapshotFiles, create_file
from drakkar.actors.tools.inspection import inspect
from drakkar.handlers.errors import ConfigError, StorageFailed
from drakkar.handlers.raft.state import Membership

from tests.actors.tools.support import Directory

KINDS = [
    pytest.param(errno.EROFS, "mounted for reading only", id="read-only file system"),
    pytest.param(errno.ENOMEM, "no memory left", id="no memory"),
    pytest.param(errno.ENOSPC, "the disk is full", id="no space"),
    pytest.param(errno.EDQUOT, "the quota of this user is used up", id="no space for this user"),
    pytest.param(errno.EACCES, "change its owner or its permissions", id="no permission"),
    pytest.param(errno.EMFILE, "ulimit -n", id="too many open files here"),
    pytest.param(errno.ENFILE, "fs.file-max", id="too many open files on the machine"),
    pytest.param(errno.EIO, "the disk failed", id="I/O error"),
]
each_kind = pytest.mark.parametrize(("number", "remedy"), KINDS)


def failing(number):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@each_kind
def test_each_has_a_remedy_of_its_own(number, remedy):
    said, _, told = explain(OSError(number, os.strerror(number))).partition(": ")
    assert said == os.strerror(number)
    assert remedy in told
    assert told not in {
        explain(OSError(kind.values[0])).partition(": ")[2] for kind in KINDS if kind.values[0] != number
    }


def test_an_error_without_a_number_is_explained_too():
    assert explain(OSError("broken")) == "broken: see to its disk and its owner"
    assert explain(OSError(errno.EXDEV, "")) == f"{os.strerror(errno.EXDEV)}: see to its disk and its owner"


@each_kind
def test_a_data_directory(number, remedy, tmp_path, monkeypatch):
    monkeypatch.setattr(Descriptor, "open", failing(number))
    with pytest.raises(ConfigError, match=f"{os.strerror(number)}: .*{remedy}"):
        DataDir.open(tmp_path / "data", deployment_id="d", address="a:1")


@each_kind
def test_a_new_log(number, remedy, tmp_path, monkeypatch):
    monkeypatch.setattr(DiskFiles, "allocate", failing(number))
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot hold a log: .*{remedy}"):
        log_on_disk(tmp_path, "h", create=True)


@each_kind
def test_a_write_to_the_log_which_poisons_it(number, remedy, tmp_path, monkeypatch):
    log, outcomes = log_on_disk(tmp_path, "h", create=True), []
    monkeypatch.setattr(DiskFiles, "write", failing(number))
    log.begin(1, 1, store.Bootstrap(Membership(voters={1: "a:1"})), None, outcomes.append)
    assert type(outcomes[0]) is StorageFailed
    assert f"writing to {tmp_path} failed" in str(outcomes[0])
    assert remedy in str(outcomes[0])
    assert str(outcomes[0]).endswith("restart this host")
    with pytest.raises(StorageFailed, match=remedy):
        log.open(1, 1)
    log.close()


@each_kind
def test_a_snapshot_that_is_written(number, remedy, tmp_path, monkeypatch):
    snapshots = SnapshotFiles(tmp_path).of(1, 1)
    monkeypatch.setattr(Descriptor, "open", failing(number))
    with pytest.raises(StorageFailed, match=f"{tmp_path}.* cannot be written: .*{remedy}.*; then try again"):
        snapshots.create()
    with pytest.raises(StorageFailed, match=f"{tmp_path}.* cannot be written: .*{remedy}"):
        create_file(tmp_path / "export")


@each_kind
def test_a_data_directory_that_is_inspected(number, remedy, tmp_path, monkeypatch):
    survivor = Directory(tmp_path / "data")
    survivor.fill()
    monkeypatch.setattr(DiskFiles, "read", failing(number))
    with pytest.raises(ConfigError, match=remedy):
        inspect(survivor.path)
