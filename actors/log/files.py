"""The folder in which the segments are: on disk, or in memory for hosts without a data directory and for tests.

Names are those of files in one folder. `read`, `read_cached`, `write`, `sync` and `forget` are for the log's own thread,
which keeps some of the files open; `read_apart` is for any thread. The others may block, and are for any one thread at a time.
"""

import errno
import os
import secrets
from abc import ABC, abstractmethod
from collections import OrderedDict
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final, final

from drakkar.actors.log.data_dir import make_directory, sync_directory
from drakkar.actors.runtime.forks import Descriptor

__all__ = ["DiskFiles", "Files", "MemoryFiles"]

_MAX_OPEN: Final = 64
"""Files that are kept open. A log may have more segments than a process may open files."""
_ZEROS: Final = bytes(1 << 20)
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)
"""Linux: read only what is in the page cache."""
_NO_NOWAIT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""How a kernel or a file system says that it does not know the flag."""


class Files(ABC):
    """A folder. All methods raise `OSError`."""

    path: str | Path
    """Its name in errors."""

    @abstractmethod
    def salt(self) -> int:
        """Return 32 bits for a new segment: others have other ones, and where a write may be torn, no client can guess them."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files; none if the folder does not exist."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the bytes of a file."""

    @abstractmethod
    def allocate(self, name: str, size: int, *, filled: bool) -> None:
        """Make a file of `size` bytes, all zero, durably. If there is no room for all of it, nothing is left of it.

        If `filled`, the zeros are written: a later flush need not allocate them.
        """

    @abstractmethod
    def put(self, name: str, offset: int, data: bytes) -> None:
        """Write into a file, durably."""

    @abstractmethod
    def rename(self, name: str, new: str) -> None:
        """Rename a file, durably. A file that has the new name is replaced."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Return the bytes of its disk that a process without privileges may still take."""

    @abstractmethod
    def read_apart(self, name: str, places: list[tuple[int, int]]) -> list[bytes]:
        """Return the bytes at these offsets, of these sizes. For another thread than `read`."""

    @abstractmethod
    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return the bytes of a part of a file, fewer at its end."""

    def read_cached(self, name: str, offset: int, size: int) -> bytes | bytearray | None:
        """Return the bytes of a part of a file if that does not have to wait for the disk; else None.

        Where that cannot be known, it reads as `read` does.
        """
        return self.read(name, offset, size)

    @abstractmethod
    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write into a file. It is durable after the next `sync`."""

    @abstractmethod
    def sync(self, name: str) -> None:
        """Make durable what was written into a file. Blocks."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Close a file, if it is open."""

    @abstractmethod
    def close(self) -> None:
        """Close all files."""


@final
class DiskFiles(Files):
    """A real folder."""

    path: Path

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """The folder need not exist before something is written to it. `read_only`: nothing will be."""
        self.path = path
        self._mode = os.O_RDONLY if read_only else os.O_RDWR
        self._open: OrderedDict[str, Descriptor] = OrderedDict()
        self._written = ""
        """The file that was written last. It stays open: a write must not fail since reads have taken all descriptors."""
        self._nowait = _NOWAIT

    def salt(self) -> int:
        """Draw it at random."""
        return secrets.randbits(32)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def allocate(self, name: str, size: int, *, filled: bool) -> None:
        make_directory(self.path)
        with Descriptor.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as handle:
            try:
                os.posix_fallocate(handle, 0, size)
                for offset in range(0, size if filled else 0, len(_ZEROS)):
                    _write_all(handle, _ZEROS[: size - offset], offset)
                os.fsync(handle)
            except OSError:
                with suppress(OSError):
                    (self.path / name).unlink()
                raise
        sync_directory(self.path)

    def put(self, name: str, offset: int, data: bytes) -> None:
        with Descriptor.open(self.path / name, os.O_WRONLY) as handle:
            _write_all(handle, data, offset)
            os.fsync(handle)

    def read_apart(self, name: str, places: list[tuple[int, int]]) -> list[bytes]:
        with Descriptor.open(self.path / name, os.O_RDONLY) as handle:
            return [os.pread(handle, size, offset) for offset, size in places]

    def read_cached(self, name: str, offset: int, size: int) -> bytes | bytearray | None:
        if not self._nowait:
            return super().read_cached(name, offset, size)
        data = bytearray(size)
        try:
            count = os.preadv(self.handle(name), [data], offset, self._nowait)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _NO_NOWAIT:
                raise
            self._nowait = 0
            return super().read_cached(name, offset, size)
        # A file that ends too early is found by `read_apart`.
        return data if count == size else None

    def rename(self, name: str, new: str) -> None:
        (self.path / name).replace(self.path / new)
        sync_directory(self.path)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def free_bytes(self) -> int:
        figures = os.statvfs(self.path)
        return figures.f_bavail * figures.f_frsize

    def read(self, name: str, offset: int, size: int) -> bytes:
        return os.pread(self.handle(name), size, offset)

    def write(self, name: str, offset: int, data: bytes) -> None:
        _write_all(self.handle(name), data, offset)
        self._written = name

    def sync(self, name: str) -> None:
        os.fdatasync(self.handle(name))

    def handle(self, name: str) -> int:
        """Return an open file handle, valid until the next call of `read`, `write`, `sync`, `forget` or this."""
        handle = self._open.get(name)
        if handle is None:
            handle = self._open[name] = Descriptor.open(self.path / name, self._mode)
            if len(self._open) > _MAX_OPEN:
                self.forget(next(other for other in self._open if other not in (name, self._written)))
        else:
            self._open.move_to_end(name)
        return handle.number

    def forget(self, name: str) -> None:
        handle = self._open.pop(name, None)
        if handle is not None:
            handle.close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _write_all(handle: int, data: bytes, offset: int) -> None:
    written = os.pwrite(handle, data, offset)
    while written < len(data):
        written += os.pwrite(handle, memoryview(data)[written:], offset + written)


class MemoryFiles(Files):
    """A folder in memory, which lasts as long as this object. Another log that is given it goes on from there.

    It holds the same bytes in every run.
    """

    path = "memory"

    def __init__(self) -> None:
        self._salts = count(1)
        self._files: dict[str, bytearray] = {}

    def salt(self) -> int:
        """Return the next number: what ends with the process is never torn."""
        return next(self._salts) & 0xFFFFFFFF

    def names(self) -> list[str]:
        return sorted(self._files)

    def size(self, name: str) -> int:
        return len(self._files[name])

    def allocate(self, name: str, size: int, *, filled: bool) -> None:
        del filled
        self._files[name] = bytearray(size)

    def put(self, name: str, offset: int, data: bytes) -> None:
        self.write(name, offset, data)

    def rename(self, name: str, new: str) -> None:
        self._files[new] = self._files.pop(name)

    def remove(self, name: str) -> None:
        del self._files[name]

    def free_bytes(self) -> int:
        return 1 << 62

    def read_apart(self, name: str, places: list[tuple[int, int]]) -> list[bytes]:
        return [self.read(name, offset, size) for offset, size in places]

    def read(self, name: str, offset: int, size: int) -> bytes:
        return bytes(self._files[name][offset : offset + size])

    def write(self, name: str, offset: int, data: bytes) -> None:
        self._files[name][offset : offset + len(data)] = data

    def sync(self, name: str) -> None:
        pass

    def forget(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass
