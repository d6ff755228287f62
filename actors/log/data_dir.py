"""The data directory of a host: it belongs to one host for ever, and one process at a time uses it.

A directory belongs to the deployment and the address under which it was made, because its replicas have promised votes
and entries under these names. `IDENTITY` names them, in JSON. A process holds `LOCK` by `flock` while it uses the
directory, so that the lock is released even if the process is killed. A directory that may be another host's is refused
before anything in it is changed.
"""

import errno
import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, final

from drakkar.handlers.errors import ConfigError, CorruptData

__all__ = ["DataDir", "make_directory", "sync_directory"]

_FORMAT: Final = 1
_IDENTITY: Final = "IDENTITY"
_NEW_IDENTITY: Final = "IDENTITY.new"
_LOCK: Final = "LOCK"
_HARMLESS: Final = frozenset({_LOCK, _NEW_IDENTITY, "lost+found"})
"""What a new directory may hold: the remains of a start that was cut short, and what a new file system has."""


@dataclass(frozen=True, slots=True)
class _Identity:
    format: int
    deployment_id: str
    address: str
    host_id: str


@final
class DataDir:
    """An open data directory, locked until `close`. A context manager.

    From any thread, but `open`, `existing` and `directory` block on the disk: do not call them on the loop.
    """

    def __init__(self, path: Path, identity: _Identity, lock: int | None) -> None:
        """Made by `open` and `existing`."""
        self.path = path
        self.deployment_id = identity.deployment_id
        self.address = identity.address
        self.host_id = identity.host_id
        """Drawn at random when the directory was made. A host whose directory was emptied gets a new one."""
        self._lock = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, deployment_id: str, address: str) -> Self:
        """Lock the directory at `path` for this process, and make it if it does not exist.

        Raises `ConfigError` if it cannot be read or written, is in use by another process, belongs to another
        deployment or address, has another version's format, or holds other files; it is left as it was then. Raises
        `CorruptData` if its identity cannot be read.
        """
        directory = Path(path).absolute()
        try:
            make_directory(directory)
            _check(directory, deployment_id, address)
            lock = _take_lock(directory)
            try:
                # Another process may have written its identity before we had the lock.
                identity = _check(directory, deployment_id, address)
                if identity is None:
                    identity = _Identity(_FORMAT, deployment_id, address, secrets.token_hex(16))
                    _write_identity(directory, identity)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise ConfigError("data_dir", str(directory), _remedy(error)) from error
        return cls(directory, identity, lock)

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> Self:
        """Lock the directory of a stopped host, of any deployment and address, and change nothing in it.

        Raises `ConfigError` if it is not a host's directory, is in use, or cannot be read, and `CorruptData` if its
        identity cannot be read.
        """
        directory = Path(path).absolute()
        try:
            if not (directory / _IDENTITY).is_file():
                raise ConfigError(
                    "data_dir", str(directory), f"holds no {_IDENTITY}: name the data directory of a host"
                )
            lock = _take_lock_unchanged(directory)
            try:
                return cls(directory, _read_identity(directory / _IDENTITY), lock)
            except BaseException:
                if lock is not None:
                    os.close(lock)
                raise
        except OSError as error:
            raise ConfigError("data_dir", str(directory), _remedy(error)) from error

    def directory(self, name: str) -> Path:
        """Return the directory `name` within this one; make it, durably, if it does not exist."""
        inner = self.path / name
        make_directory(inner)
        return inner

    def close(self) -> None:
        """Unlock the directory. A second call does nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DataDir({str(self.path)!r}, {self.deployment_id!r}, {self.address!r})"


def make_directory(path: Path) -> None:
    """Make a directory and those above it. Each is durable before something is created in it."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=0o750, exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Otherwise a crash can lose a file whose content was synced."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check(directory: Path, deployment_id: str, address: str) -> _Identity | None:
    """Return the identity of this host's directory, None for a new one. Changes nothing. Raises `ConfigError`."""
    present = {entry.name for entry in directory.iterdir()}
    if _IDENTITY not in present:
        foreign = sorted(present - _HARMLESS)
        if foreign:
            raise ConfigError(
                "data_dir",
                str(directory),
                f"holds {', '.join(foreign[:3])}{' and more' if foreign[3:] else ''}, but no {_IDENTITY} of ours: name an "
                "empty or a new directory",
            )
        return None
    identity = _read_identity(directory / _IDENTITY)
    for option, stored, given in (
        ("deployment_id", identity.deployment_id, deployment_id),
        ("address", identity.address, address),
    ):
        if stored != given:
            raise ConfigError(
                option,
                given,
                f"the data directory {directory} belongs to {option}={stored!r}: start with that, or name another "
                "directory",
            )
    return identity


def _read_identity(path: Path) -> _Identity:
    try:
        fields: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptData(
            f"{path} is not JSON ({error}): restore it, or start with an empty directory"
        ) from error
    version = fields.get("format") if type(fields) is dict else None
    if version != _FORMAT:
        raise ConfigError(
            "data_dir",
            str(path.parent),
            f"its format is {version!r}, and this version reads {_FORMAT}: use the version that wrote it",
        )
    texts = {name: value for name, value in fields.items() if type(value) is str}
    try:
        return _Identity(_FORMAT, **texts)
    except TypeError as error:
        raise CorruptData(f"{path} does not have the fields of an identity: {error}") from error


def _write_identity(directory: Path, identity: _Identity) -> None:
    """Write it atomically: after a power failure it is there as a whole, or not at all."""
    new = directory / _NEW_IDENTITY
    with new.open("w", encoding="utf-8") as file:
        json.dump(asdict(identity), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(directory / _IDENTITY)
    sync_directory(directory)


def _take_lock(directory: Path) -> int:
    """Return the descriptor that holds the lock until it is closed. The file stays, since removing it would race."""
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        _hold(lock, directory)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _take_lock_unchanged(directory: Path) -> int | None:
    """Lock as `_take_lock` does, but write nothing. Returns None if there is no lock file: no process uses the directory."""
    try:
        lock = os.open(directory / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        _hold(lock, directory)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _hold(lock: int, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        raise ConfigError(
            "data_dir",
            str(directory),
            f"is in use by process {holder or 'unknown'}: stop that one first, or name another directory",
        ) from error


def _remedy(error: OSError) -> str:
    """Return what is wrong with the directory, and what to do."""
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{error.filename} is a file: name a directory"
    if isinstance(error, PermissionError):
        return f"{error.filename} may not be read and written by this user: change its owner, or name another directory"
    if error.errno == errno.ENOSPC:
        return "its disk is full: free some space"
    return f"cannot be used ({error}): name another directory"
