"""The data directory of a host: it belongs to one host for ever, and one process at a time uses it.

    IDENTITY      deployment, address and host id, in JSON
    LOCK          the process that uses the directory
    MOVES         at which other addresses the host may start next: see `moves_file`
    RUN, HOSTS    how often it was started, and what is known of other hosts' starts: see `runs_file`
    log/          the log store
    snapshots/    the files of snapshots, and OWNER: the host id again, in JSON

A directory belongs to the deployment and the address under which it was made, because its replicas have promised votes
and entries under these names; only a committed change of its address, or the tool, moves it. A host without one of the
parts has forgotten some of its promises, so it never starts anew by itself: a directory that lacks a part, or has
another host's, is refused before anything in it is changed.

The first start writes the identity under the name `IDENTITY.new`, makes the parts, and renames it last. So a start that
was cut short is told from a part that was lost, and the next start completes it, as the same host.

A process holds `LOCK` and the identity by `flock` while it uses the directory, so that both are released even if it is
killed. The identity too, since people remove lock files.
"""

import fcntl
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

from drakkar.actors.log.disk_errors import explain
from drakkar.actors.log.json_files import read_json, sync_directory, write_json
from drakkar.actors.log.lock_holder import describe_holder
from drakkar.actors.log.moves_file import MOVES, MOVES_FILES, read_moves
from drakkar.actors.log.runs_file import RUN_FILES, raise_run, read_known_runs
from drakkar.actors.runtime.forks import Descriptor, close_below, here, on_fork
from drakkar.handlers.errors import ConfigError, CorruptData

__all__ = [
    "LOG",
    "LOST_AND_FOUND",
    "REMEDY",
    "SNAPSHOTS",
    "DataDir",
    "make_directory",
    "renumber",
    "sync_directory",
]

LOG: Final = "log"
SNAPSHOTS: Final = "snapshots"
_PARTS: Final = (LOG, SNAPSHOTS)

_FORMAT: Final = 2
_LMDB_FORMAT: Final = 1
_LMDB_REMEDY: Final = (
    "its log is one file of LMDB (log/data.mdb), so export its shards with the version that wrote it, and import them "
    "into an empty directory"
)
_IDENTITY: Final = "IDENTITY"
_NEW_IDENTITY: Final = "IDENTITY.new"
_MOVED_IDENTITY: Final = "IDENTITY.moved"
"""The next identity, while it is written: `IDENTITY.new` is that of a first start."""
_OWNER: Final = "OWNER"
_NEW_OWNER: Final = "OWNER.new"
_LOCK: Final = "LOCK"
LOST_AND_FOUND: Final = "lost+found"
"""What a new file system has."""
_HARMLESS: Final = frozenset({_LOCK, _NEW_IDENTITY, LOST_AND_FOUND})
"""What a new directory may hold."""
_MOVE_REMEDY: Final = "; to move the host there, tell its shards with `Replica.update_address`, or set it with `drakkar renumber`"
REMEDY: Final = (
    "put it back as it was, or replace the replicas of this host by new ones in an empty directory"
)
"""What to do about a part of the directory, or a file in it, that is missing or damaged."""


@dataclass(frozen=True, slots=True)
class _Identity:
    format: int
    deployment_id: str
    address: str
    host_id: str


@final
class DataDir:
    """An open data directory, locked until `close`. A context manager.

    From any thread, but `open`, `existing` and `complete` block on the disk: do not call them on the loop.
    """

    def __init__(self, path: Path, identity: _Identity, locks: list[Descriptor], *, new: bool) -> None:
        """Made by `open` and `existing`."""
        self.path = path
        self.deployment_id = identity.deployment_id
        self.address = identity.address
        self.host_id = identity.host_id
        """Drawn at random when the directory was made. A host whose directory was emptied gets a new one."""
        self.new = new
        """Its first start has not come to `complete` yet. Only then may something be missing in a part."""
        self.run: tuple[int, tuple[int, ...]] = (0, ())
        """The number of this start, and the nonces of it and of those before, the newest first; (0, ()) after `existing`."""
        self.known_runs: dict[str, tuple[int, int, str]] = {}
        """By host id, number and nonce of the last start that this host has heard of."""
        self._locks = locks
        self._files = [os.path.realpath(path / name) for name in (*_PARTS, *RUN_FILES, *MOVES_FILES)]
        """What threads of this process open now and then, without links."""
        on_fork(self)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, deployment_id: str, address: str) -> Self:
        """Lock the directory at `path` for this process, make it if it does not exist, and begin a run.

        Fill the parts of a `new` one, then call `complete`.

        Raises `ConfigError` if it cannot be read or written, is in use by another process, belongs to another
        deployment or address, has another host's part or another version's format, or holds other files. Raises
        `CorruptData` if a part is missing, or its identity cannot be read. It is left as it was then.
        """
        directory = _named(path)
        locks: list[Descriptor] = []
        try:
            make_directory(directory)
            _check(directory, deployment_id, address)
            # The file stays at the end, since removing it would race.
            lock = _hold(directory / _LOCK, os.O_RDWR | os.O_CREAT, locks)
            # Another process may have written its identity before we had the lock.
            identity, new = _check(directory, deployment_id, address)
            if identity is not None and identity.address != address:
                identity = _move(directory, identity, address)
            if identity is None:
                identity = _Identity(_FORMAT, deployment_id, address, secrets.token_hex(16))
                write_json(directory / _NEW_IDENTITY, asdict(identity))
            _hold(directory / (_NEW_IDENTITY if new else _IDENTITY), os.O_RDONLY, locks)
            _sign_lock(lock)
            if new:
                _make_parts(directory, identity.host_id)
            opened = cls(directory, identity, locks, new=new)
            opened.known_runs = read_known_runs(directory)
            opened.run = raise_run(directory)
        except OSError as error:
            _release(locks)
            raise ConfigError("data_dir", str(directory), _remedy(error)) from error
        except BaseException:
            _release(locks)
            raise
        return opened

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> Self:
        """Lock the directory of a stopped host, of any deployment and address, and change nothing in it.

        Raises `ConfigError` if it is not a host's directory, is in use, cannot be read, or has another host's part, and
        `CorruptData` if a part is missing or its identity cannot be read.
        """
        directory = _named(path)
        locks: list[Descriptor] = []
        try:
            present = _check_existing(directory)
            if _LOCK in present:
                _hold(directory / _LOCK, os.O_RDONLY, locks)
            _hold(directory / _IDENTITY, os.O_RDONLY, locks)
            identity = _read_identity(directory / _IDENTITY)
            _check_parts(directory, identity.host_id)
            return cls(directory, identity, locks, new=False)
        except OSError as error:
            _release(locks)
            raise ConfigError("data_dir", str(directory), _remedy(error)) from error
        except BaseException:
            _release(locks)
            raise

    def part(self, name: str) -> Path:
        """Return the directory of a part, `LOG` or `SNAPSHOTS`. It exists, durably."""
        return self.path / name

    def complete(self) -> None:
        """Note, durably, that all parts of a `new` directory have what they need. Does nothing for another one.

        Raises `ConfigError` if the disk fails.
        """
        if not self.new:
            return
        try:
            for name in _PARTS:
                sync_directory(self.part(name))
            (self.path / _NEW_IDENTITY).replace(self.path / _IDENTITY)
            sync_directory(self.path)
        except OSError as error:
            raise ConfigError("data_dir", str(self.path), _remedy(error)) from error
        self.new = False

    def close(self) -> None:
        """Unlock the directory. A second call does nothing."""
        _release(self._locks)

    def _let_go_in_child(self) -> None:
        close_below(self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DataDir({str(self.path)!r}, {self.deployment_id!r}, {self.address!r})"


def _named(path: object) -> Path:
    """Return the path that a caller names. Raises `ConfigError` for what names none."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError("data_dir", path, "must be the path of a directory, a text or a Path")
    return Path(text).absolute()


def make_directory(path: Path) -> None:
    """Make a directory and those above it. Each is durable before something is created in it."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=0o750, exist_ok=True)
    sync_directory(path.parent)


# -- what is there -------------------------------------------------------------------------------------------------


def _check(directory: Path, deployment_id: str, address: str) -> tuple[_Identity | None, bool]:
    """Return the identity of this host's directory, None if it has none yet, and whether it is new. Changes nothing.

    Raises as `DataDir.open` does.
    """
    present = _names(directory)
    new = _IDENTITY not in present
    identity = _begun_identity(directory, present) if new else _read_identity(directory / _IDENTITY)
    if identity is None:
        return None, True
    for option, stored, given in (
        ("deployment_id", identity.deployment_id, deployment_id),
        ("address", identity.address, address),
    ):
        if stored != given and not (option == "address" and given in read_moves(directory)):
            raise ConfigError(
                option,
                given,
                f"the data directory {directory} belongs to {option}={stored!r}: start with that, or name another "
                f"directory{_MOVE_REMEDY if option == 'address' else ''}",
            )
    if not new:
        _check_parts(directory, identity.host_id)
    return identity, new


def _check_existing(directory: Path) -> frozenset[str]:
    """Return the names in a host's directory. Raises as `DataDir.existing` does."""
    try:
        present = _names(directory)
    except FileNotFoundError as error:
        raise ConfigError(
            "data_dir",
            str(directory),
            "does not exist, so perhaps its disk is not mounted: name the data directory of a host",
        ) from error
    if _IDENTITY in present:
        return present
    if _NEW_IDENTITY not in present:
        _refuse_parts_alone(directory, present)
    why = f"holds no {_IDENTITY}" if present else "is empty"
    raise ConfigError(
        "data_dir",
        str(directory),
        f"{why}, so no host was ever started there, or its disk is not mounted: name the data directory of a host",
    )


def _begun_identity(directory: Path, present: frozenset[str]) -> _Identity | None:
    """Return the identity under which a first start was begun and cut short, None if it did not come so far."""
    parts = present.intersection(_PARTS)
    if _NEW_IDENTITY not in present:
        _refuse_parts_alone(directory, present)
    harmless = _HARMLESS | RUN_FILES if _NEW_IDENTITY in present else _HARMLESS
    foreign = sorted(present - harmless - parts)
    if foreign:
        raise ConfigError(
            "data_dir",
            str(directory),
            f"holds {', '.join(foreign[:3])}{' and more' if foreign[3:] else ''}, but no {_IDENTITY} of ours: name an "
            "empty or a new directory",
        )
    if _NEW_IDENTITY not in present:
        return None
    try:
        return _read_identity(directory / _NEW_IDENTITY)
    except CorruptData:
        # It is durable before a part is made.
        if parts:
            raise
        return None


def _refuse_parts_alone(directory: Path, present: frozenset[str]) -> None:
    parts = [name for name in _PARTS if name in present]
    if parts:
        raise CorruptData(
            f"{directory / _IDENTITY} is missing, beside {' and '.join(parts)}: {REMEDY}; or name another directory, if this is "
            "none of a host"
        )


def _check_parts(directory: Path, host_id: str) -> None:
    """Raise `CorruptData` where a part is missing or was emptied, and `ConfigError` where one is another host's."""
    for name in _PARTS:
        part = directory / name
        if not part.exists():
            raise CorruptData(f"{part} is missing: {REMEDY}")
        if not _names(part) - {LOST_AND_FOUND}:
            raise CorruptData(f"{part} is empty, so perhaps its disk is not mounted: {REMEDY}")
    _check_owner(directory / SNAPSHOTS, host_id)


def _check_owner(part: Path, host_id: str) -> None:
    path = part / _OWNER
    if not path.exists():
        raise CorruptData(f"{path} is missing, so {part} may be another host's: {REMEDY}")
    owner = read_json(path, REMEDY).get("host_id")
    if owner != host_id:
        raise ConfigError(
            "data_dir",
            str(part.parent),
            f"{part} belongs to the host with the id {owner}, and this one is {host_id}: {REMEDY}",
        )


def _names(directory: Path) -> frozenset[str]:
    return frozenset(entry.name for entry in directory.iterdir())


def _read_identity(path: Path) -> _Identity:
    fields = read_json(path, REMEDY)
    version = fields.get("format")
    if version != _FORMAT:
        raise ConfigError(
            "data_dir",
            str(path.parent),
            f"its format is {version!r}, and this version reads {_FORMAT}: "
            + (_LMDB_REMEDY if version == _LMDB_FORMAT else "use the version that wrote it"),
        )
    texts = {name: value for name, value in fields.items() if type(value) is str}
    try:
        return _Identity(_FORMAT, **texts)
    except TypeError as error:
        raise CorruptData(f"{path} does not have the fields of an identity: {error}") from error


# -- another address -----------------------------------------------------------------------------------------------


def renumber(path: str | os.PathLike[str], address: str) -> str:
    """Give the host of a data directory another address, durably; return the one that it had.

    The host must be stopped. Its shards must reach its replicas there: tell them with `Replica.update_address`. Waits for the disk.

    Raises `ConfigError` if the directory cannot be used, and `CorruptData`, as `DataDir.existing` does.
    """
    with DataDir.existing(path) as directory:
        before = directory.address
        try:
            _move(directory.path, _read_identity(directory.path / _IDENTITY), address)
        except OSError as error:
            raise ConfigError("data_dir", str(directory.path), _remedy(error)) from error
    return before


def _move(directory: Path, identity: _Identity, address: str) -> _Identity:
    """Write another address into an identity, durably. A power failure leaves one of the two."""
    moved = replace(identity, address=address)
    write_json(directory / _MOVED_IDENTITY, asdict(moved))
    (directory / _MOVED_IDENTITY).replace(directory / _IDENTITY)
    (directory / MOVES).unlink(missing_ok=True)
    sync_directory(directory)
    return moved


# -- the first start -----------------------------------------------------------------------------------------------


def _make_parts(directory: Path, host_id: str) -> None:
    """Make what is not there yet, durably."""
    for name in _PARTS:
        make_directory(directory / name)
    snapshots = directory / SNAPSHOTS
    if _names(snapshots) - {LOST_AND_FOUND, _NEW_OWNER}:
        _check_owner(snapshots, host_id)
    else:
        write_json(snapshots / _NEW_OWNER, {"host_id": host_id})
        (snapshots / _NEW_OWNER).replace(snapshots / _OWNER)


# -- locks ---------------------------------------------------------------------------------------------------------


def _sign_lock(lock: Descriptor) -> None:
    """Say in `LOCK` which process holds it, for the error of the next one."""
    with suppress(OSError):  # on a full disk
        os.ftruncate(lock.number, 0)
        os.pwrite(lock.number, b"%d\n" % os.getpid(), 0)


def _hold(path: Path, flags: int, locks: list[Descriptor]) -> Descriptor:
    """Open and lock a file, and add its descriptor to `locks`: it is held until that is closed."""
    lock = _opened(path, flags)
    locks.append(lock)
    try:
        fcntl.flock(lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()  # this process would else be found to have it open
        raise ConfigError(
            "data_dir",
            str(path.parent),
            f"is in use by {describe_holder(path)}: stop that one first, or name another directory",
        ) from error
    return lock


def _opened(path: Path, flags: int) -> Descriptor:
    """Open a file that no forked child has open too: it would hold the lock as long as it lives."""
    while True:
        forks = here.forks_begun
        lock = Descriptor.open(path, flags)
        if here.forks_begun == forks:
            return lock
        lock.close()  # another thread has forked meanwhile, perhaps before the descriptor was noted


def _release(locks: list[Descriptor]) -> None:
    while locks:
        lock = locks.pop()
        if lock.number >= 0:
            # A child that is being forked at this moment may have it open too, and would hold the lock.
            with suppress(OSError):
                fcntl.flock(lock.number, fcntl.LOCK_UN)
        lock.close()


def _remedy(error: OSError) -> str:
    """Return what is wrong with the directory, and what to do."""
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{error.filename} is a file: name a directory"
    where = f"{error.filename} " if error.filename else ""
    return f"{where}cannot be used: {explain(error)}; or name another directory"
