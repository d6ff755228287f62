"""Where a host keeps the snapshots of its replicas: whole files, durable before anybody hears their names.

    <directory>/<shard>-<replica>/<index as 20 digits>-<8 random digits>.snapshot
                                  <8 random digits>.tmp

A file is written under a temporary name, made durable, renamed, and its directory made durable; only then does its
name exist for the log store. So whatever moment the power fails at, a file with a complete name is complete, and what
was being written is an orphan, which the next life removes. Damage that comes later is found by the checksums in the
file (`snapshot_format`).

Everything here blocks on the disk, and so is for worker threads, never for the loop. Stores and `Snapshots` may be
used by any number of them at once; a reader or a writer by one at a time.
"""

import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Final, Self, final, get_args

from drakkar.actors.log.records import ReplicaKey, replica_key
from drakkar.actors.snapshots import format as snapshot_format
from drakkar.actors.snapshots.files import DiskFiles, Files, MemoryFiles, writing
from drakkar.actors.snapshots.format import Encoder, SnapshotReader
from drakkar.handlers.checks import check_choice
from drakkar.handlers.errors import ConfigError, CorruptData, StorageFailed
from drakkar.handlers.raft.config import Compression
from drakkar.handlers.raft.state import Snapshot

__all__ = [
    "DAMAGED",
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

_logger = logging.getLogger(__name__)

_SYNC_BYTES: Final = 32 << 20
"""So much is written between two syncs, so that the last one does not keep the disk from the log for long."""

_COPY_BYTES: Final = 1 << 20

_NO_FACTS: Final[Mapping[str, Any]] = MappingProxyType({})

_NAME: Final = re.compile(r"([0-9]{20})-[0-9a-f]{8}\.snapshot", re.ASCII)
_TEMPORARY: Final = ".tmp"

_KEPT: Final = "restore it from a copy, or replace the replica by a new one"
DAMAGED: Final = "damaged on its way"
_RECEIVED: Final = f"it was {DAMAGED}, so have it sent again"
_EXPORTED: Final = "take another copy of it"


@final
class _PendingFile:
    """A file under its temporary name: published whole, or removed. Its first failure is the answer ever after."""

    def __init__(self, files: Files, path: Path, over: Callable[[], None]) -> None:
        """Make the file; `over` is called once, when it is no longer written. Raises `StorageFailed`."""
        self.size = 0
        self._files, self._path, self._over = files, path, over
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
        """Where it is written. Raises what it failed with, and `ValueError` where it is over."""
        if self._failure is not None:
            raise self._failure
        if self._handle is None:
            raise ValueError(f"{self._path} was finished or aborted: begin another one")
        return self._handle

    def write(self, data: bytes) -> None:
        """Append it. Raises `StorageFailed`, and the file is gone then."""
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
        """Make it durable under this name. Raises `StorageFailed`, and neither name is there then."""
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
                _remove(self._files, target)
            self.abort()
            raise
        self._end()

    def abort(self) -> None:
        """Remove it, unless it was published. Doing so again does nothing."""
        if not self._open:
            return
        try:
            self._close()
        except OSError:
            _logger.warning("%s is removed, and could not be closed either", self._path, exc_info=True)
        _remove(self._files, self._path)
        self._end()

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._files.close(handle)

    def _end(self) -> None:
        self._open = False
        self._over()


def _remove(files: Files, path: Path) -> bool:
    """Remove it, or say in the log why it is still there. Nobody waits for the room, and `prune` tries again."""
    try:
        files.remove(path)
    except OSError:
        _logger.warning("%s cannot be removed now, and takes room until it is", path, exc_info=True)
        return False
    return True


@final
class SnapshotWriter(io.BufferedIOBase, BinaryIO):
    """A snapshot that is being taken: a binary file for the content, then `finish`.

    A context manager that aborts what was not finished. `close` only ends the content, so that a text or zip file
    laid around this one may close it. One thread at a time; 1 MiB of memory, and as much again while it compresses.
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
        """As of any file that is only written."""
        return "wb"

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any, /) -> int:
        """Append bytes of content; returns their number, which is always all of them. Raises `StorageFailed`."""
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
        """Make the snapshot durable, and return it with its file's name as payload and the file's bytes as size.

        `facts` is whatever else the reader needs: a small map of names to what CBOR encodes without tags. Raises
        `ConfigError` where snapshot or facts cannot be kept, and `StorageFailed` where the disk refuses; then there is
        no file of it.
        """
        end = self._encoded_end(snapshot, facts)
        self._file.write(end)
        name = self._publish(self._file, snapshot.index)
        return replace(snapshot, payload=name.encode(), size=self._file.size)

    def abort(self) -> None:
        """Remove what was written, unless it was finished. Doing so again does nothing."""
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
    """A snapshot's file of another host, as its bytes arrive.

    A context manager that aborts what was not finished. One thread at a time.
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
        """Append the next bytes of the file. Raises `StorageFailed`, and it is gone then."""
        self._file.write(bytes(raw))

    def finish(self) -> tuple[Snapshot, dict[str, Any]]:
        """Check all of it, make it durable, and return the snapshot and its facts.

        The payload is the name of the file here. Raises `CorruptData` where the bytes are not one whole, undamaged
        snapshot's file, and `StorageFailed` where the disk refuses; then there is no file of it.
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
        """Remove what has arrived, unless it was finished. Doing so again does nothing."""
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

    Worker threads only, any number of them. Names are the strings that `Snapshot.payload` holds as bytes.
    """

    def __init__(self, files: Files, directory: Path) -> None:
        """Touches nothing yet."""
        self._files, self._directory = files, directory
        self._lock = Lock()
        self._writing: set[str] = set()
        self._finished: set[str] = set()
        """In this life, and not pruned since: whoever finished them may be about to record them."""
        self._pins: Counter[str] = Counter()
        self._doomed: set[str] = set()
        """Pinned when they were to be removed."""

    def create(self, *, compression: Compression = "none") -> SnapshotWriter:
        """Begin a snapshot; "zlib" compresses it block by block.

        Raises `StorageFailed` where no file can be made, `ConfigError` for another compression.
        """
        check_choice("compression", compression, get_args(Compression))
        token, file = self._begin_file()
        return SnapshotWriter(file, Encoder(token, compression), self._publish)

    def receive(self) -> IncomingSnapshot:
        """Begin to take in the file of another host. Raises `StorageFailed` where no file can be made."""
        token, file = self._begin_file()
        return IncomingSnapshot(
            file,
            lambda: _opened(self._files, self._directory / (token + _TEMPORARY), _RECEIVED),
            self._publish,
        )

    def open(self, name: str) -> SnapshotReader:
        """Open a snapshot for reading. Close it.

        Raises `CorruptData`, with file and index, where it is missing, was cut short, or is no file of that snapshot;
        damage within the content is found as it is read. Raises `StorageFailed` where it cannot be opened now.
        """
        index = self._index(name)
        reader = _opened(self._files, self._directory / name, _KEPT)
        if reader.snapshot.index != index:
            reader.close()
            raise CorruptData(
                f"{self._directory / name} holds the snapshot at index {reader.snapshot.index}, not {index}; {_KEPT}"
            )
        return reader

    def prune(self, keep: str) -> None:
        """Remove all snapshots but `keep`, and all temporary files that nobody is writing; "" keeps none.

        Call it when the log store has `keep` on record. What is pinned goes when it is unpinned. What was finished in
        this life and is no older than `keep` stays, because the log store may be about to hear of it: if it never will,
        `discard` it. What cannot be removed is logged, and tried again the next time.

        Raises `StorageFailed` where the directory cannot be read.
        """
        kept = self._index(keep) if keep else 0
        with self._lock:
            for name in self._names():
                if name.endswith(_TEMPORARY):
                    if name not in self._writing:
                        _remove(self._files, self._directory / name)
                elif name != keep and (match := _NAME.fullmatch(name)):
                    recordable = name in self._finished and int(match[1]) >= kept
                    if not recordable:
                        self._drop(name)

    def discard(self, name: str) -> None:
        """Remove a snapshot; one that is pinned, as soon as it is unpinned. Does nothing where it is gone."""
        self._index(name)
        with self._lock:
            self._drop(name)

    def pin(self, name: str) -> None:
        """Keep a snapshot from being removed, as long as this process lives; as often as it is unpinned.

        Then `open` it, to learn that it was not removed just before.
        """
        self._index(name)
        with self._lock:
            self._pins[name] += 1

    def unpin(self, name: str) -> None:
        """Take back one `pin`, and remove the snapshot if that is due. Raises `ConfigError` where it has none."""
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
        """Remove everything of this replica, pinned or half written; what is being read stays readable.

        A writer that is at work finds its file gone when it finishes (`StorageFailed`). Raises `StorageFailed` where
        something cannot be removed; repeat it then.
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
        """Remove what earlier lives did not finish, and return how many there were."""
        orphans = [name for name in self._names() if name.endswith(_TEMPORARY)]
        removed = sum(_remove(self._files, self._directory / name) for name in orphans)
        if removed:
            _logger.warning(
                "%s: removed %d unfinished snapshots of an earlier life, such as %s",
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
        return token, _PendingFile(self._files, self._directory / name, lambda: self._written(name))

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
        """Remove it now, or when it is unpinned. The lock is held, so that no pin comes in between."""
        self._finished.discard(name)
        if self._pins[name]:
            self._doomed.add(name)
            return
        del self._pins[name]
        self._doomed.discard(name)
        _remove(self._files, self._directory / name)

    def _names(self) -> list[str]:
        try:
            return self._files.names(self._directory)
        except OSError as error:
            raise StorageFailed(
                f"{self._directory} cannot be read ({error.strerror}): see to its disk and its owner"
            ) from error

    def _index(self, name: str) -> int:
        """Return the index in a name, which may come from a damaged record and lead anywhere."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise CorruptData(f"{name!r} is no name of a snapshot in {self._directory}; {_KEPT}")
        return int(match[1])


class SnapshotStore:
    """The snapshots of all replicas of a host: `SnapshotFiles`, or `MemorySnapshots`."""

    def __init__(self, files: Files, directory: Path) -> None:
        """Made by one of those."""
        self.directory: Final = directory
        self.orphans = 0
        """Temporary files of earlier lives that were found and removed."""
        self._files = files
        self._lock = Lock()
        self._replicas: dict[ReplicaKey, Snapshots] = {}

    def of(self, shard: int, replica: int) -> Snapshots:
        """Return those of one replica, always the same object.

        The first call removes what earlier lives left unfinished, logs it, and counts it in `orphans`. Raises
        `ConfigError` where an id is out of bounds, `StorageFailed` where the directory cannot be read.
        """
        key = replica_key(shard, replica)
        with self._lock:
            snapshots = self._replicas.get(key)
            if snapshots is None:
                snapshots = Snapshots(self._files, self.directory / f"{shard}-{replica}")
                self.orphans += snapshots._remove_orphans()
                self._replicas[key] = snapshots
            return snapshots


@final
class SnapshotFiles(SnapshotStore):
    """Snapshots on disk, in a directory that no other process uses: one within a `DataDir`."""

    def __init__(self, directory: Path, *, files: Files | None = None) -> None:
        """Touches nothing yet; `files` is for tests."""
        super().__init__(files or DiskFiles(), directory)


@final
class MemorySnapshots(SnapshotStore):
    """Snapshots in memory, under the same rules: for hosts without a data directory, and for the simulator.

    Nothing in it is left to chance: the same calls make the same names and bytes.
    """

    def __init__(self, *, files: MemoryFiles | None = None) -> None:
        """Empty, or what `files` holds."""
        self._memory = files or MemoryFiles()
        super().__init__(self._memory, Path("memory"))

    def restarted(self) -> "MemorySnapshots":
        """Return what the host's next life finds: what was finished. This one is used no more."""
        return MemorySnapshots(files=self._memory)


def read_file(path: Path) -> SnapshotReader:
    """Open a snapshot's file that lies anywhere, such as an exported one; raises as `Snapshots.open` does."""
    return _opened(DiskFiles(), path, _EXPORTED)


def create_file(path: Path, *, compression: Compression = "none") -> SnapshotWriter:
    """Begin a snapshot's file that lies anywhere; the directory must be there, the file must not.

    Raises `ConfigError` where `path` is taken, `StorageFailed` where no file can be made.
    """
    check_free(path)
    files = DiskFiles()
    token = files.token()

    def publish(file: _PendingFile, _index: int) -> str:
        file.publish(path)
        return path.name

    return SnapshotWriter(_file_beside(files, path, token), Encoder(token, compression), publish)


def export_to(reader: SnapshotReader, path: Path) -> None:
    """Check a snapshot, and copy its file to `path`, durably; the directory must be there, the file must not.

    Raises `CorruptData` where the snapshot is damaged, `ConfigError` where `path` is taken, and `StorageFailed` where
    the disk refuses; then there is no file of it.
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
    """Raise `ConfigError` where there is a file of this name already."""
    if path.exists():
        raise ConfigError("path", str(path), "is there already: name another file")
    if not path.parent.is_dir():
        raise ConfigError("path", str(path), "lies in no directory: make that first")


def _file_beside(files: Files, path: Path, token: str) -> _PendingFile:
    return _PendingFile(files, path.with_name(f"{path.name}.{token}{_TEMPORARY}"), lambda: None)


def _opened(files: Files, path: Path, remedy: str) -> SnapshotReader:
    try:
        content = files.open(path)
    except CorruptData as error:
        raise CorruptData(f"{error}; {remedy}") from error
    return SnapshotReader(content, path, remedy)
