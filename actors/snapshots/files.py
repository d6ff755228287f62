"""What snapshots do with files: an interface, and its implementations on a disk and in memory.

Tests put a disk in its place that fails, or that forgets what was not synced.
"""

import errno
import io
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol, final

from drakkar.actors.log.data_dir import make_directory, sync_directory
from drakkar.actors.log.disk_errors import explain
from drakkar.actors.runtime.forks import Descriptor
from drakkar.handlers.errors import CorruptData, StorageFailed

__all__ = ["DiskFiles", "FileContent", "Files", "MemoryFiles"]


class FileContent(Protocol):
    """A file that is open for reading. It stays readable after its name was removed."""

    size: int
    """Its bytes when it was opened."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Read `length` bytes, or fewer at the end of the file. Raises `CorruptData` or `StorageFailed`."""
        ...

    def file(self) -> BinaryIO:
        """Return a file object over all of it, with a position of its own. It stays open when this one is closed."""
        ...

    def close(self) -> None:
        """Close it. A second call does nothing."""
        ...


class Files(Protocol):
    """A place for files. From any thread. Methods raise `OSError` unless they say otherwise."""

    def token(self) -> str:
        """Return eight hexadecimal digits that no file in the same directory has yet."""
        ...

    def make_directory(self, path: Path) -> None:
        """Make a directory and those above it, durably. Does nothing if it exists."""
        ...

    def names(self, directory: Path) -> list[str]:
        """Return the sorted names in a directory; none if it does not exist."""
        ...

    def free_bytes(self, directory: Path) -> float:
        """Return how many bytes may be written in a directory, which need not exist; `math.inf` if there is no limit."""
        ...

    def create(self, path: Path) -> int:
        """Create an empty file, which must not exist, and return its handle."""
        ...

    def write(self, handle: int, data: bytes) -> None:
        """Append all bytes."""
        ...

    def sync(self, handle: int) -> None:
        """Make durable what was written, but not the file's name."""
        ...

    def close(self, handle: int) -> None:
        """Close a file that was written."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file within its directory, atomically."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file. Does nothing if it does not exist."""
        ...

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory. Does nothing if it does not exist."""
        ...

    def open(self, path: Path) -> FileContent:
        """Open a file for reading. Raises `CorruptData` if it does not exist or its disk cannot read it, else `StorageFailed`."""
        ...


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise `CorruptData` for a damaged or missing file, `StorageFailed` for one that this process cannot read now."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptData(f"{path} does not exist") from error
    except OSError as error:
        if error.errno == errno.EIO:
            raise CorruptData(f"{path} cannot be read: {explain(error)}") from error
        raise StorageFailed(f"{path} cannot be read: {explain(error)}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StorageFailed` that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{path} cannot be written: {explain(error)}; then try again") from error


class _Window(io.RawIOBase):
    """A file descriptor with a position of its own."""

    def __init__(self, handle: Descriptor, path: Path, size: int) -> None:
        super().__init__()
        self._handle, self._path, self._size, self._at = handle, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"offset={base + offset}: must not lie before the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        with _reading(self._path):
            read = os.preadv(self._handle.number, [buffer], self._at)
        self._at += read
        return read

    def close(self) -> None:
        self._handle.close()
        super().close()


@final
class _DiskContent:
    def __init__(self, path: Path) -> None:
        self._path = path
        with _reading(path):
            self._handle = Descriptor.open(path, os.O_RDONLY)
            self.size = os.fstat(self._handle.number).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        with _reading(self._path):
            while length and (part := os.pread(self._open().number, length, offset)):
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def file(self) -> BinaryIO:
        with _reading(self._path):
            return io.BufferedReader(_Window(self._open().duplicate(), self._path, self.size), 1 << 16)

    def close(self) -> None:
        self._handle.close()

    def _open(self) -> Descriptor:
        if self._handle.number < 0:
            raise ValueError(f"{self._path} was closed")
        return self._handle


@final
class DiskFiles:
    """Files on a disk."""

    def __init__(self) -> None:
        self._written: dict[int, Descriptor] = {}
        """The files that are being written, by their handles."""

    def token(self) -> str:
        """Draw it at random."""
        return secrets.token_hex(4)

    def make_directory(self, path: Path) -> None:
        """Make a directory and those above it, durably."""
        make_directory(path)

    def names(self, directory: Path) -> list[str]:
        """Return the sorted names in a directory."""
        try:
            return sorted(entry.name for entry in directory.iterdir())
        except FileNotFoundError:
            return []

    def free_bytes(self, directory: Path) -> float:
        """Ask the file system, which counts what this user may use."""
        while not directory.exists():
            directory = directory.parent
        system = os.statvfs(directory)
        return system.f_bavail * system.f_frsize

    def create(self, path: Path) -> int:
        """Create a file and open it for writing."""
        file = Descriptor.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._written[file.number] = file
        return file.number

    def write(self, handle: int, data: bytes) -> None:
        """Write all bytes, in several calls if the system takes only a part."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]

    def sync(self, handle: int) -> None:
        """Wait for the disk."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """Close the descriptor."""
        self._written.pop(handle).close()

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file."""
        old.rename(new)

    def sync_directory(self, path: Path) -> None:
        """Wait for the disk."""
        sync_directory(path)

    def remove(self, path: Path) -> None:
        """Unlink a file."""
        path.unlink(missing_ok=True)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory, durably."""
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        sync_directory(path.parent)

    def open(self, path: Path) -> FileContent:
        """Open a file for reading."""
        return _DiskContent(path)


@final
class _MemoryContent:
    def __init__(self, content: bytes) -> None:
        self._content, self.size = content, len(content)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def file(self) -> BinaryIO:
        return io.BytesIO(self._content)

    def close(self) -> None:
        pass


@final
class MemoryFiles:
    """Files in memory. They last as long as this object, and get the same names in every run."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._tokens = count(1)
        self._handles = count(3)
        self._open: dict[int, bytearray] = {}
        self._files: dict[Path, bytearray | bytes] = {}

    def token(self) -> str:
        """Return the next number."""
        return f"{next(self._tokens) & 0xFFFFFFFF:08x}"

    def make_directory(self, path: Path) -> None:
        """Do nothing: there are no directories."""

    def names(self, directory: Path) -> list[str]:
        """Return the sorted names in a directory."""
        with self._lock:
            return sorted(path.name for path in self._files if path.parent == directory)

    def free_bytes(self, directory: Path) -> float:  # noqa: ARG002  # of a disk it depends on it
        """Say that there is no limit."""
        return math.inf

    def create(self, path: Path) -> int:
        """Create an empty file."""
        with self._lock:
            handle = next(self._handles)
            self._files[path] = self._open[handle] = bytearray()
            return handle

    def write(self, handle: int, data: bytes) -> None:
        """Append bytes."""
        self._open[handle] += data

    def sync(self, handle: int) -> None:
        """Do nothing: this is as durable as memory is."""

    def close(self, handle: int) -> None:
        """Forget the handle."""
        with self._lock:
            del self._open[handle]

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file; it is not written any more."""
        with self._lock:
            if old not in self._files:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(old))
            self._files[new] = bytes(self._files.pop(old))

    def sync_directory(self, path: Path) -> None:
        """Do nothing."""

    def remove(self, path: Path) -> None:
        """Remove a file."""
        with self._lock:
            self._files.pop(path, None)

    def remove_directory(self, path: Path) -> None:
        """Do nothing: there are no directories."""

    def open(self, path: Path) -> FileContent:
        """Open a file for reading."""
        with self._lock, _reading(path):
            if path not in self._files:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return _MemoryContent(bytes(self._files[path]))
