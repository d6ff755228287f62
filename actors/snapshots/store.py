"""The snapshots of a host's replicas, as files. A file is whole and durable before its name is known.

    <directory>/<shard>-<replica>/<index as 20 digits>-<8 random digits>.snapshot
                                  <8 random digits>.tmp

A file is written under a temporary name, made durable and renamed; then its directory is made durable. Only after that
does the log store learn the name. So after a power failure, a file that has its final name is complete, and the next
start of the host removes the temporary ones. The checksums in a file show later damage (`format`).

Everything here blocks on the disk: call it from worker threads, never from the loop. Any number of threads may use a
store or a `Snapshots` at once, but only one thread at a time a reader or a writer.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Final, Self, final, get_args

from drakkar.actors.log.disk_errors import explain
from drakkar.actors.log.records import ReplicaKey, replica_key
from drakkar.actors.runtime.log_lines import HostLines, Lines
from drakkar.actors.snapshots import format as snapshot_format
from drakkar.actors.snapshots.files import DiskFiles, Files, MemoryFiles, writing
from drakkar.actors.snapshots.format import Encoder, SnapshotReader
from drakkar.handlers.checks import check_choice
from drakkar.handlers.errors import ConfigError, CorruptData, StorageFailed
from drakkar.handlers.raft.config import Compression
from drakkar.handlers.raft.state import Snapshot

__all__ = [
    "IncomingSnapshot",
    "MemorySnapshots",
    "SnapshotFiles",
    "SnapshotReader",
    "SnapshotStore",
    "SnapshotWriter",
    "Snapshots",
    "check_free",
    "create_file",
    "export_to",
    "read_file",
]

_SYNC_BYTES: Final = 32 << 20
"""Bytes written between two syncs. One sync of a large file would keep the disk from the log for long."""

_COPY_BYTES: Final = 1 << 20

_NO_FACTS: Final[Mapping[str, Any]] = MappingProxyType({})

_NAME: Final = re.compile(r"([0-9]{20})-[0-9a-f]{8}\.snapshot", re.ASCII)
_TEMPORARY: Final = ".tmp"

_REMEDY_STORED: Final = "restore it from a copy, or replace the replica by a new one"
_REMEDY_RECEIVED: Final = "it was damaged on its way, so have it sent again"
_REMEDY_EXPORTED: Final = "take another copy of it"


@final
class _PendingFile:
    """A file under its temporary name, until it is published or removed. After a failure every call raises it again."""

    def __init__(self, files: Files, path: Path, over: Callable[[], None], lines: Lines) -> None:
        """Create the file. `over` is called once, when it is no longer being written. Raises `StorageFailed`."""
        self.size = 0
        self._files, self._path, self._over, self._lines = files, path, over, lines
        self._unsynced = 0
        self._failure: StorageFailed | None = None
        try:
            with writing(path):
                files.make_directory(path.parent)
                self._handle: int | None = files.create(path)
        except BaseException:
            over()
            raise
        self._open = True

    def handle(self) -> int:
        """Return the open file's handle. Raises the earlier failure, or `ValueError` if it was finished or aborted."""
        if self._failure is not None:
            raise self._failure
        if self._handle is None:
            raise ValueError(f"{self._path} was finished or aborted: begin another one")
        return self._handle

    def write(self, data: bytes) -> None:
        """Append bytes. Raises `StorageFailed` and removes the file."""
        handle = self.handle()
        try:
            with writing(self._path):
                self._files.write(handle, data)
                self._unsynced += len(data)
                if self._unsynced >= _SYNC_BYTES:
                    self._files.sync(handle)
                    self._unsynced = 0
        except StorageFailed as error:
            self._failure = error
            self.abort()
            raise
        self.size += len(data)

    def publish(self, target: Path) -> None:
        """Make the file durable under this name. Raises `StorageFailed` and removes it under both names."""
        handle = self.handle()
        named = False
        try:
            with writing(target):
                self._files.sync(handle)
                self._close()
                named = True
                self._files.rename(self._path, target)
                self._files.sync_directory(target.parent)
        except BaseException as error:
            if isinstance(error, StorageFailed):
                self._failure = error
            if named:
                _remove(self._files, target, self._lines)
            self.abort()
            raise
        self._end()

    def abort(self) -> None:
        """Remove the file, unless it was published. A second call does nothing."""
        if not self._open:
            return
        try:
            self._close()
        except OSError:
            self._lines.warning("%s is removed, but could not be closed", self._path, exc_info=True)
        _remove(self._files, self._path, self._lines)
        self._end()

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._files.close(handle)

    def _end(self) -> None:
        self._open = False
        self._over()


def _remove(files: Files, path: Path, lines: Lines) -> bool:
    """Remove a file and return True, or log why that failed; `prune` tries again."""
    try:
        files.remove(path)
    except OSError:
        lines.warning("%s cannot be removed now, and will be tried again", path, exc_info=True)
        return False
    return True


@final
class SnapshotWriter(io.BufferedIOBase, BinaryIO):
    """A snapshot that is being written: a binary file for the content, then `finish`.

    As a context manager it aborts what was not finished. `close` only ends the content, so that a text or zip file
    around this one may close it. For one thread at a time. It takes 1 MiB of memory, and as much again to compress.
    """

    def __init__(
        self, file: _PendingFile, encoder: Encoder, publish: Callable[[_PendingFile, int], str]
    ) -> None:
        """Made by `Snapshots.create`."""
        super().__init__()
        self._file, self._encoder, self._publish = file, encoder, publish
        self._gathered = bytearray()
        file.write(encoder.header)

    @property
    def mode(self) -> str:
        """Return "wb", as a file opened for writing."""
        return "wb"

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any, /) -> int:
        """Append bytes of content, and return their number. Raises `StorageFailed`."""
        if self.closed:
            raise ValueError("the content was closed: write no more of it")
        rest = memoryview(data).cast("B")
        length, limit = len(rest), snapshot_format.BLOCK_BYTES
        while rest:
            if not self._gathered and len(rest) >= limit:
                self._file.write(self._encoder.block(rest[:limit]))
                rest = rest[limit:]
                continue
            room = limit - len(self._gathered)
            self._gathered += rest[:room]
            rest = rest[room:]
            if len(self._gathered) == limit:
                self._write_gathered()
        return length

    def finish(self, snapshot: Snapshot, facts: Mapping[str, Any] = _NO_FACTS) -> Snapshot:
        """Make the snapshot durable; return it with its file's name as payload and the file's bytes as size.

        `facts` is a small map of names to values that CBOR encodes without tags, for the reader. Raises `ConfigError`
        if snapshot or facts cannot be encoded, and `StorageFailed` if the disk fails; the file is removed then.
        """
        end = self._encoded_end(snapshot, facts)
        self._file.write(end)
        name = self._publish(self._file, snapshot.index)
        return replace(snapshot, payload=name.encode(), size=self._file.size)

    def abort(self) -> None:
        """Remove what was written, unless it was finished. A second call does nothing."""
        self._file.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _encoded_end(self, snapshot: Snapshot, facts: Mapping[str, Any]) -> bytes:
        if self._gathered:
            self._write_gathered()
        return self._encoder.end(snapshot, facts)

    def _write_gathered(self) -> None:
        self._file.write(self._encoder.block(self._gathered))
        self._gathered.clear()


@final
class IncomingSnapshot:
    """A snapshot's file that another host sends, as its bytes arrive. For one thread at a time.

    As a context manager it aborts what was not finished.
    """

    def __init__(
        self,
        file: _PendingFile,
        opened: Callable[[], SnapshotReader],
        publish: Callable[[_PendingFile, int], str],
    ) -> None:
        """Made by `Snapshots.receive`."""
        self._file, self._opened, self._publish = file, opened, publish

    def write(self, raw: bytes | bytearray | memoryview) -> None:
        """Append the next bytes of the file. Raises `StorageFailed` and removes it."""
        self._file.write(bytes(raw))

    def finish(self) -> tuple[Snapshot, dict[str, Any]]:
        """Check the whole file, make it durable, and return the snapshot and its facts.

        The payload is the name of the file here. Raises `CorruptData` unless the bytes are one whole, undamaged file of
        a snapshot, and `StorageFailed` if the disk fails; the file is removed then.
        """
        try:
            self._file.handle()
            with self._opened() as reader:
                reader.verify()
                snapshot, facts = reader.snapshot, reader.facts
            name = self._publish(self._file, snapshot.index)
        except BaseException:
            self.abort()
            raise
        return replace(snapshot, payload=name.encode()), facts

    def abort(self) -> None:
        """Remove what has arrived, unless it was finished. A second call does nothing."""
        self._file.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


@final
class Snapshots:
    """The snapshots of one replica. Made by `SnapshotStore.of`.

    For any number of worker threads. A name is what `Snapshot.payload` holds as bytes.
    """

    def __init__(self, files: Files, directory: Path, lines: Lines | None = None) -> None:
        """Made by `SnapshotStore.of`. Reads and writes nothing yet."""
        self._files, self._directory, self._lines = files, directory, lines or _no_host()
        self._lock = Lock()
        self._writing: set[str] = set()
        self._finished: set[str] = set()
        """Names finished since the start and not removed: the log store may not have recorded them yet."""
        self._pins: Counter[str] = Counter()
        self._doomed: set[str] = set()
        """Names to remove as soon as they are unpinned."""

    def create(self, *, compression: Compression = "none") -> SnapshotWriter:
        """Begin a snapshot; "zlib" compresses it block by block.

        Raises `StorageFailed` if no file can be created, `ConfigError` for an unknown compression.
        """
        check_choice("compression", compression, get_args(Compression))
        token, file = self._begin_file()
        return SnapshotWriter(file, Encoder(token, compression), self._publish)

    def receive(self) -> IncomingSnapshot:
        """Begin to receive the file of another host. Raises `StorageFailed` if no file can be created."""
        token, file = self._begin_file()
        return IncomingSnapshot(
            file,
            lambda: _opened(
                self._files,
                self._directory / (token + _TEMPORARY),
                _REMEDY_RECEIVED,
                snapshot_format.RECEIVED_FOOTER_BYTES,
            ),
            self._publish,
        )

    def open(self, name: str) -> SnapshotReader:
        """Open a snapshot for reading. The caller closes it.

        Raises `CorruptData`, with file and index, if the file is missing, cut short, or not that snapshot's; reading
        finds damage within the content. Raises `StorageFailed` if it cannot be opened now.
        """
        index = self._index(name)
        reader = _opened(self._files, self._directory / name, _REMEDY_STORED)
        if reader.snapshot.index != index:
            reader.close()
            raise CorruptData(
                f"{self._directory / name} holds the snapshot at index {reader.snapshot.index}, not {index}; {_REMEDY_STORED}"
            )
        return reader

    def prune(self, keep: str) -> None:
        """Remove all snapshots but `keep` ("" for none), and all temporary files that are not being written.

        Call it after the log store has recorded `keep`. A pinned snapshot is removed when it is unpinned. A snapshot
        that was finished since the start and is no older than `keep` stays, because the log store may be about to
        record it; if it never will, `discard` it. A file that cannot be removed is logged, and tried again next time.

        Raises `StorageFailed` if the directory cannot be read.
        """
        kept = self._index(keep) if keep else 0
        with self._lock:
            for name in self._names():
                if name.endswith(_TEMPORARY):
                    if name not in self._writing:
                        _remove(self._files, self._directory / name, self._lines)
                elif name != keep and (match := _NAME.fullmatch(name)):
                    recordable = name in self._finished and int(match[1]) >= kept
                    if not recordable:
                        self._drop(name)

    def discard(self, name: str) -> None:
        """Remove a snapshot, or if it is pinned, as soon as it is unpinned. Does nothing if it is gone."""
        self._index(name)
        with self._lock:
            self._drop(name)

    def pin(self, name: str) -> None:
        """Keep a snapshot from being removed until it was unpinned as many times, or until the process ends.

        `open` it afterwards, to be sure that it was not removed just before.
        """
        self._index(name)
        with self._lock:
            self._pins[name] += 1

    def unpin(self, name: str) -> None:
        """Undo one `pin`, and remove the snapshot if that is due. Raises `ConfigError` if it is not pinned."""
        with self._lock:
            if not self._pins[name]:
                del self._pins[name]
                raise ConfigError("name", name, "is not pinned: unpin only what was pinned, once each")
            self._pins[name] -= 1
            if self._pins[name]:
                return
            del self._pins[name]
            if name in self._doomed:
                self._drop(name)

    def remove_all(self) -> None:
        """Remove all files of this replica, also pinned and unfinished ones. Open readers can read on.

        A writer raises `StorageFailed` when it finishes, since its file is gone. Raises `StorageFailed` if a file
        cannot be removed: call it again then.
        """
        with self._lock:
            for name in self._names():
                if name.endswith(_TEMPORARY) or _NAME.fullmatch(name):
                    with writing(self._directory / name):
                        self._files.remove(self._directory / name)
            with writing(self._directory):
                self._files.remove_directory(self._directory)
            self._finished.clear()
            self._doomed.clear()

    def _remove_orphans(self) -> int:
        """Remove the files that earlier runs did not finish, and return how many there were."""
        orphans = [name for name in self._names() if name.endswith(_TEMPORARY)]
        removed = sum(_remove(self._files, self._directory / name, self._lines) for name in orphans)
        if removed:
            self._lines.warning(
                "%s: removed %d unfinished snapshots of an earlier run, such as %s",
                self._directory,
                removed,
                orphans[0],
            )
        return removed

    def _begin_file(self) -> tuple[str, _PendingFile]:
        token = self._files.token()
        name = token + _TEMPORARY
        with self._lock:
            self._writing.add(name)
        return token, _PendingFile(
            self._files, self._directory / name, lambda: self._written(name), self._lines
        )

    def _written(self, name: str) -> None:
        with self._lock:
            self._writing.discard(name)

    def _publish(self, file: _PendingFile, index: int) -> str:
        name = f"{index:020}-{self._files.token()}.snapshot"
        with self._lock:
            self._finished.add(name)
        try:
            file.publish(self._directory / name)
        except BaseException:
            with self._lock:
                self._finished.discard(name)
            raise
        return name

    def _drop(self, name: str) -> None:
        """Remove a snapshot now, or when it is unpinned. The caller holds the lock, so that no pin comes in between."""
        self._finished.discard(name)
        if self._pins[name]:
            self._doomed.add(name)
            return
        del self._pins[name]
        self._doomed.discard(name)
        _remove(self._files, self._directory / name, self._lines)

    def _names(self) -> list[str]:
        try:
            return self._files.names(self._directory)
        except OSError as error:
            raise StorageFailed(f"{self._directory} cannot be read: {explain(error)}") from error

    def _index(self, name: str) -> int:
        """Return the index in a name. Raises `CorruptData` for any other string, which might lead out of the directory."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise CorruptData(f"{name!r} is no name of a snapshot in {self._directory}; {_REMEDY_STORED}")
        return int(match[1])


class SnapshotStore:
    """The snapshots of all replicas of a host: `SnapshotFiles`, or `MemorySnapshots`."""

    def __init__(self, files: Files, directory: Path, lines: Lines | None = None) -> None:
        """Made by one of those."""
        self.directory: Final = directory
        self.orphans = 0
        """Temporary files of earlier runs that were found and removed."""
        self._files, self._lines = files, lines or _no_host()
        self._lock = Lock()
        self._replicas: dict[ReplicaKey, Snapshots] = {}

    def free_bytes(self) -> float:
        """Return how many bytes may still be written; `math.inf` in memory. Raises `StorageFailed`."""
        try:
            return self._files.free_bytes(self.directory)
        except OSError as error:
            raise StorageFailed(f"{self.directory} cannot be read: {explain(error)}") from error

    def of(self, shard_id: int, replica_id: int) -> Snapshots:
        """Return those of one replica, always the same object.

        The first call removes the files that earlier runs left unfinished, logs that, and counts them in `orphans`.
        Raises `ConfigError` for an id out of bounds, `StorageFailed` if the directory cannot be read.
        """
        key = replica_key(shard_id, replica_id)
        with self._lock:
            snapshots = self._replicas.get(key)
            if snapshots is None:
                snapshots = Snapshots(
                    self._files, self.directory / f"{shard_id}-{replica_id}", self._lines.about(*key)
                )
                self.orphans += snapshots._remove_orphans()
                self._replicas[key] = snapshots
            return snapshots


@final
class SnapshotFiles(SnapshotStore):
    """Snapshots on disk, in a directory of a `DataDir`, so that no other process uses it."""

    def __init__(self, directory: Path, *, files: Files | None = None, lines: Lines | None = None) -> None:
        """Reads and writes nothing yet. `files` is for tests; `lines` writes what the host's log is to say."""
        super().__init__(files or DiskFiles(), directory, lines)


@final
class MemorySnapshots(SnapshotStore):
    """Snapshots in memory, under the same rules: for hosts without a data directory, and for the simulator.

    The same calls make the same names and bytes, in every run.
    """

    def __init__(self, *, files: MemoryFiles | None = None) -> None:
        """`files` is what an earlier store wrote; by default there is nothing."""
        self._memory = files or MemoryFiles()
        super().__init__(self._memory, Path("memory"))

    def restarted(self) -> "MemorySnapshots":
        """Return the store as it is after a restart of the host. Do not use this one any more."""
        return MemorySnapshots(files=self._memory)


def read_file(path: Path) -> SnapshotReader:
    """Open a snapshot's file anywhere, such as an exported one. Raises as `Snapshots.open` does."""
    return _opened(DiskFiles(), path, _REMEDY_EXPORTED)


def create_file(path: Path, *, compression: Compression = "none") -> SnapshotWriter:
    """Begin a snapshot's file anywhere. The directory must exist, the file must not.

    Raises `ConfigError` as `check_free` does, and `StorageFailed` if no file can be created.
    """
    check_free(path)
    files = DiskFiles()
    token = files.token()

    def publish(file: _PendingFile, _index: int) -> str:
        file.publish(path)
        return path.name

    return SnapshotWriter(_file_beside(files, path, token), Encoder(token, compression), publish)


def export_to(reader: SnapshotReader, path: Path) -> None:
    """Check a snapshot, and copy its file to `path`, durably. The directory must exist, the file must not.

    Raises `CorruptData` if the snapshot is damaged, `ConfigError` as `check_free` does, and `StorageFailed` if the disk
    fails; the copy is removed then.
    """
    check_free(path)
    reader.verify()
    files = DiskFiles()
    file = _file_beside(files, path, files.token())
    try:
        with reader.raw() as source:
            while data := source.read(_COPY_BYTES):
                file.write(data)
        file.publish(path)
    finally:
        file.abort()


def check_free(path: Path) -> None:
    """Raise `ConfigError` if a new file cannot be created at `path`: it exists, or its directory does not or cannot be used."""
    try:
        exists, has_directory = path.exists(), path.parent.is_dir()
    except OSError as error:
        raise ConfigError("path", str(path), f"cannot be used: {explain(error)}") from error
    if exists:
        raise ConfigError("path", str(path), "exists already: name another file")
    if not has_directory:
        raise ConfigError("path", str(path), "is in a directory that does not exist: make that first")


def _no_host() -> Lines:
    return HostLines().of("drakkar.actors.snapshots")


def _file_beside(files: Files, path: Path, token: str) -> _PendingFile:
    return _PendingFile(files, path.with_name(f"{path.name}.{token}{_TEMPORARY}"), lambda: None, _no_host())


def _opened(files: Files, path: Path, remedy: str, *footer_limit: int) -> SnapshotReader:
    try:
        content = files.open(path)
    except CorruptData as error:
        raise CorruptData(f"{error}; {remedy}") from error
    return SnapshotReader(content, path, remedy, *footer_limit)
