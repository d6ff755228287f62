"""Logs on disk, in LMDB: one file with atomic transactions.

There are two tables. `log` holds runs of entries under shard, replica and first index, so that a replica's log is
contiguous and in order. `meta` holds a replica's few records under shard, replica and kind. A transaction is one fsync
of the data and one synchronous write of a meta page. A transaction that a crash interrupts has no effect.

The map, the part of the address space in which LMDB sees its file, is doubled when it is full, and the file is replaced
by a shorter one when most of it is free (`space`). No transaction may be open meanwhile, so reads, which come from other
threads, hold a lock while they last.

Of a removed replica one record stays for ever, its tombstone, since others may still rely on votes that it gave.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final, final

import lmdb
from drakkar.actors.log import records
from drakkar.actors.log import space as log_space
from drakkar.actors.log.data_dir import make_directory, sync_directory
from drakkar.actors.log.pages import are_free
from drakkar.actors.log.records import ALL_ENTRIES, ReplicaKey
from drakkar.actors.log.state import LogChanges, LogState, RefusedReplica
from drakkar.handlers.errors import ConfigError, CorruptData, ReplicaStopped
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import Snapshot

__all__ = ["LmdbDisk"]

_log = logging.getLogger(__name__)

_LOG: Final = b"log"
_META: Final = b"meta"
_FORMAT_KEY: Final = b"format"
_FORMAT: Final = b"1"
_RESTORE: Final = "restore it, or remove the replicas of this host from their shards and add new ones, with an empty directory"
_TRIMMED_AT_ONCE: Final = 4096
"""Runs deleted in one transaction, in some milliseconds, so that the next transaction is not delayed much.

A transaction that adds more than that deletes twice as many as it adds, or deleting would fall behind under load.
"""
_COPIED_AT_ONCE: Final = 64 << 20
"""Bytes that are copied while requests wait, to make the file shorter; more are copied only when the store is opened."""


@final
class LmdbDisk:
    """The logs of a host's replicas in one LMDB environment.

    One thread at a time may `load` and `write`; any thread may read.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        map_size: int,
        spare_bytes: int = 64 << 20,
        *,
        read_only: bool = False,
    ) -> None:
        """Open the environment in `directory`, or create it.

        `spare_bytes` of the file may be free before it is made shorter. `read_only` creates and changes nothing; the
        caller must hold the lock of the data directory. Raises `ConfigError` if the directory cannot be used,
        `CorruptData` if the file in it cannot be read.
        """
        self.path = Path(directory) / "data.mdb"
        self.commit_seconds = 0.0
        """Seconds that the last commit took, which is the fsync and little else."""
        self._spare_bytes: int | None = spare_bytes
        self._reading = Lock()
        self._closed = False
        if read_only:
            self._check_present()
            self._use(_open_environment(Path(directory), map_size, read_only=True))
            return
        try:
            if _is_new(Path(directory)):
                _create(Path(directory), map_size)
            self._check_present()
            log_space.throw_copy_away(Path(directory))
        except OSError as error:
            raise ConfigError("data_dir", str(directory), f"cannot hold a log store: {error}") from error
        self._use(_open_environment(Path(directory), map_size))
        try:
            self._shrink(None)
        except OSError as error:
            self.close()
            raise ConfigError("data_dir", str(directory), f"cannot hold a log store: {error}") from error
        except BaseException:
            self.close()
            raise

    def _use(self, env: lmdb.Environment) -> None:
        self._env = env
        try:
            self._check_length()
            self._records = env.open_db(_META, create=False)
            self._runs = env.open_db(_LOG, create=False)
            self._check_format()
        except lmdb.Error as error:
            env.close()
            raise CorruptData(f"{self.path} cannot be read as a log store: {error}") from error
        except BaseException:
            env.close()
            raise

    # -- reading ------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self, key: ReplicaKey, low: int) -> Iterator[Iterator[Run]]:
        """Read the runs of a replica, from the one that holds `low` on. Be quick, since writing may wait for it.

        Raises `CorruptData` if a run does not match its checksum.
        """
        with self._snapshot() as txn:
            yield self._runs_from(txn.cursor(self._runs), key, low)

    def replicas(self) -> list[ReplicaKey]:
        """Return all replicas in the store."""
        with self._snapshot() as txn:
            return [key for key, kind, _ in self._records_of(txn) if kind == records.BOOTSTRAP]

    def unneeded(self) -> dict[ReplicaKey, int]:
        """Return for each replica the index up to which a crash may have left dropped entries."""
        found: dict[ReplicaKey, int] = {}
        with self._snapshot() as txn:
            runs = txn.cursor(self._runs)
            for key, kind, value in self._records_of(txn):
                if kind == records.REMOVED:
                    # A tombstone stays when all other data is gone.
                    if runs.set_range(records.run_key(key, 0)) and _belongs(runs, key):
                        found[key] = ALL_ENTRIES
                elif kind == records.MARKER:
                    try:
                        found[key] = records.decode_marker(self._unsealed(key, kind, value))[0]
                    except CorruptData as error:
                        # Opening this replica fails with the same error; the host's other replicas can run.
                        _log.error("%s", error)
        return found

    def removed(self, key: ReplicaKey) -> bool:
        """Return whether the replica was removed. A damaged tombstone counts, too."""
        with self._snapshot() as txn:
            return txn.get(records.replica_prefix(key) + records.REMOVED, db=self._records) is not None

    def load(self, key: ReplicaKey) -> LogState | None:
        """Return the state of the replica's log, None if it is not in the store.

        It reads the records and the two ends of the log; the entries between are checked when they are read. Raises
        `CorruptData` if one of these is damaged or contradicts the others.
        """
        with self._snapshot() as txn:
            stored = self._records_of(txn, key)
            found = {kind: self._unsealed(key, kind, value) for _, kind, value in stored}
            if records.REMOVED in found:
                return None
            cursor = txn.cursor(self._runs)
            tail = self._tail(cursor, key)
            if not found and tail is None:
                return None
            state = self._decoded(key, found)
            if tail is None or tail.last <= state.marker[0]:
                return self._consistent(key, state._replace(last=state.marker[0]))
            # The other end: the beginning of the log must not be missing.
            first = state.marker[0] + 1
            head = next(self._runs_from(cursor, key, first), None)
            if head is None or head.first > first:
                raise self._corrupt(key, f"entry {first} is missing")
            known = (max(tail.first, first),)
            return self._consistent(key, state._replace(last=tail.last, starts=known, terms=(tail.term,)))

    def _decoded(self, key: ReplicaKey, found: Mapping[bytes, bytes]) -> LogState:
        """Return the state that the records describe, without the entries."""
        if records.BOOTSTRAP not in found or records.HARD_STATE not in found:
            raise self._corrupt(key, "its bootstrap record or its hard state is missing")
        try:
            return LogState(
                bootstrap=records.decode_bootstrap(found[records.BOOTSTRAP]),
                hard_state=records.decode_hard_state(found[records.HARD_STATE]),
                snapshot=records.decode_snapshot(found[records.SNAPSHOT])
                if records.SNAPSHOT in found
                else Snapshot(),
                marker=records.decode_marker(found[records.MARKER]) if records.MARKER in found else (0, 0),
            )
        except CorruptData as error:
            raise self._corrupt(key, str(error)) from error

    def _consistent(self, key: ReplicaKey, state: LogState) -> LogState:
        if state.snapshot.index > state.last:
            raise self._corrupt(
                key, f"it has a snapshot at {state.snapshot.index}, but its log ends at {state.last}"
            )
        return state

    def _tail(self, cursor: "lmdb.Cursor[memoryview]", key: ReplicaKey) -> Run | None:
        beyond = cursor.set_range(records.run_key(key, ALL_ENTRIES))
        if not (cursor.prev() if beyond else cursor.last()):
            return None
        return self._run_at(cursor, key) if _belongs(cursor, key) else None

    def _runs_from(self, cursor: "lmdb.Cursor[memoryview]", key: ReplicaKey, low: int) -> Iterator[Run]:
        """Read from the last run that begins at or before `low`, or from the first if there is none."""
        wanted = records.run_key(key, low)
        if not (cursor.set_range(wanted) and bytes(cursor.key()) == wanted):
            before = cursor.prev() if cursor.key() else cursor.last()
            if not (before and _belongs(cursor, key)):
                cursor.set_range(records.run_key(key, 0))
        prefix = records.replica_prefix(key)
        if cursor.key():
            for stored_key, value in cursor.iternext():
                if stored_key[: len(prefix)] != prefix:
                    return
                yield self._run(key, bytes(stored_key), value)

    def _run_at(self, cursor: "lmdb.Cursor[Any]", key: ReplicaKey) -> Run:
        return self._run(key, bytes(cursor.key()), memoryview(cursor.value()))

    def _run(self, key: ReplicaKey, stored_key: bytes, value: memoryview) -> Run:
        try:
            return Run.decode(records.unseal(stored_key, value))
        except CorruptData as error:
            first = records.first_of(stored_key)
            raise self._corrupt(key, f"the run of entries from {first} on: {error}") from error

    def _records_of(
        self, txn: "lmdb.Transaction[memoryview]", key: ReplicaKey | None = None
    ) -> Iterator[tuple[ReplicaKey, bytes, memoryview]]:
        """Return key, kind and sealed content of all records of a replica, or of all replicas."""
        cursor = txn.cursor(self._records)
        placed = cursor.set_range(records.replica_prefix(key)) if key else cursor.first()
        while placed and (key is None or _belongs(cursor, key)):
            stored_key = bytes(cursor.key())
            if stored_key != _FORMAT_KEY:
                yield records.replica_of(stored_key), stored_key[-1:], cursor.value()
            placed = cursor.next()

    def _unsealed(self, key: ReplicaKey, kind: bytes, value: memoryview) -> bytes:
        try:
            return records.unseal(records.replica_prefix(key) + kind, value)
        except CorruptData as error:
            raise self._corrupt(key, f"record {kind.decode()!r}: {error}") from error

    @contextmanager
    def _snapshot(self) -> Iterator["lmdb.Transaction[memoryview]"]:
        with self._reading:
            if self._closed:
                raise ReplicaStopped(f"the log store in {self.path} is closed")
            with self._env.begin(buffers=True) as txn:
                yield txn

    def _corrupt(self, key: ReplicaKey, problem: str) -> CorruptData:
        return CorruptData(f"{self.path}: {records.named(key)}: {problem}")

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, changes: Sequence[LogChanges], trims: Mapping[ReplicaKey, int]) -> dict[ReplicaKey, int]:
        """Make all of it durable, or nothing. Returns the `trims` that are left.

        Raises `RefusedReplica` if the data of one replica is corrupt: nothing was written, and the call may be repeated
        without that replica. After any other error the disk cannot be trusted.
        """
        while True:
            try:
                return self._transact(changes, trims)
            except lmdb.MapFullError:
                self._grow()

    def _transact(
        self, changes: Sequence[LogChanges], trims: Mapping[ReplicaKey, int]
    ) -> dict[ReplicaKey, int]:
        txn = self._env.begin(write=True)
        try:
            for changed in changes:
                try:
                    self._put(txn, changed)
                except CorruptData as error:
                    raise RefusedReplica(changed.key, error) from error
            added = sum(isinstance(change, Run) for changed in changes for change in changed.log)
            left = self._trim(txn, trims, max(_TRIMMED_AT_ONCE, 2 * added))
            began = time.perf_counter()
            self._commit(txn)
        except BaseException:
            txn.abort()
            raise
        self.commit_seconds = time.perf_counter() - began
        return left

    def _commit(self, txn: "lmdb.Transaction[bytes]") -> None:
        txn.commit()

    def _put(self, txn: "lmdb.Transaction[bytes]", changed: LogChanges) -> None:
        for change in changed.log:
            if isinstance(change, Run):
                stored_key = records.run_key(changed.key, change.first)
                txn.put(stored_key, records.seal(stored_key, change.encode()), db=self._runs)
            else:
                self._cut(txn, changed.key, change)
        for kind, content in changed.records.items():
            stored_key = records.replica_prefix(changed.key) + kind
            if content is None:
                txn.delete(stored_key, db=self._records)
            else:
                txn.put(stored_key, records.seal(stored_key, content), db=self._records)

    def _cut(self, txn: "lmdb.Transaction[bytes]", key: ReplicaKey, index: int) -> None:
        """Delete `index` and all entries after it, and shorten the run that holds it."""
        cursor = txn.cursor(self._runs)
        placed = cursor.set_range(records.run_key(key, index))
        while placed and _belongs(cursor, key):
            placed = cursor.delete()
        if not ((cursor.prev() if cursor.key() else cursor.last()) and _belongs(cursor, key)):
            return
        straddling = self._run_at(cursor, key)
        if straddling.last >= index:
            stored_key = records.run_key(key, straddling.first)
            kept = straddling.slice(straddling.first, index)
            txn.put(stored_key, records.seal(stored_key, kept.encode()), db=self._runs)

    def _trim(
        self, txn: "lmdb.Transaction[bytes]", trims: Mapping[ReplicaKey, int], budget: int
    ) -> dict[ReplicaKey, int]:
        """Delete runs that are no longer needed, at most `budget`; return what is left of `trims`."""
        left = dict(trims)
        for key, upto in trims.items():
            budget = self._trim_one(txn, key, upto, budget)
            if budget == 0:
                break
            del left[key]
        return left

    def _trim_one(self, txn: "lmdb.Transaction[bytes]", key: ReplicaKey, upto: int, budget: int) -> int:
        """Delete runs, and return what is left of `budget`; 0 if there may be more to delete.

        The start of the next run shows that a run ends at or before `upto`, so no run is read. The last run of a log
        therefore stays, unless all entries are deleted.
        """
        cursor = txn.cursor(self._runs)
        placed = cursor.set_range(records.run_key(key, 0))
        while budget and placed and _belongs(cursor, key):
            if upto != ALL_ENTRIES:
                ends_before = cursor.next() and _belongs(cursor, key) and _first(cursor) <= upto + 1
                if not ends_before:
                    break
                cursor.prev()
            placed = cursor.delete()
            budget -= 1
        return budget

    def _grow(self) -> None:
        size = self._env.info()["map_size"] * 2
        with self._reading:
            self._env.set_mapsize(size)
        _log.info("%s: the map was full, and now has %d MiB", self.path, size >> 20)

    def reclaim(self) -> None:
        """Make the file shorter if most of it is free. For the thread that writes, when nothing is left to trim.

        It takes well below a second: if more than `_COPIED_AT_ONCE` is in use, the file stays as it is until the store
        is opened again. Readers wait for the last millisecond. A copy that fails is deleted, with a warning; an error
        while the copy replaces the file means that the disk cannot be trusted.
        """
        self._shrink(_COPIED_AT_ONCE)

    def _shrink(self, most: int | None) -> None:
        if self._spare_bytes is None:
            return
        used = log_space.measure(self._env, self._records, self._runs)
        if not used.is_wasteful(self._spare_bytes) or (most is not None and used.live > most):
            return
        began = time.perf_counter()
        if not self._copied():
            return
        log_space.replace_by_copy(self.path)
        self._reopen()
        seconds = time.perf_counter() - began
        _log.info(
            "%s: %d MiB of it were free and are given back, in %.2f s", self.path, used.free >> 20, seconds
        )

    def _copied(self) -> bool:
        try:
            log_space.copy_live(self._env, self.path.parent)
        except (OSError, lmdb.Error) as error:
            log_space.throw_copy_away(self.path.parent)
            # The next attempt would fail too.
            self._spare_bytes = None
            _log.warning(
                "%s: its free space is given back only at the next start, since copying the rest failed: %s",
                self.path,
                error,
            )
            return False
        return True

    def _reopen(self) -> None:
        """Open the file that has replaced the open one."""
        map_size = self._env.info()["map_size"]
        with self._reading:
            # Until it is open again, in case that fails.
            self._closed = True
            self._env.close()
            self._use(_open_environment(self.path.parent, map_size))
            self._closed = False

    def close(self) -> None:
        """Close the files. Later reads raise `ReplicaStopped`."""
        with self._reading:
            self._closed = True
            self._env.close()

    # -- opening ------------------------------------------------------------------------------------------------

    def _check_present(self) -> None:
        """Refuse to begin a new store in place of a lost one: its replicas would break their promises."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            raise CorruptData(
                f"{self.path} is missing or empty, although its directory was in use: {_RESTORE}"
            )

    def _check_length(self) -> None:
        """Check the length first: reading beyond the end of a file that was cut off would kill the process."""
        figures, page = self._env.info(), self._env.stat()["psize"]
        length = self.path.stat().st_size
        missing = range(length // page, figures["last_pgno"] + 1)
        if missing and not are_free(self.path, page, figures["last_txnid"], missing):
            raise CorruptData(
                f"{self.path} has {length} bytes, but its contents take {missing.stop * page}: it was cut off; {_RESTORE}"
            )

    def _check_format(self) -> None:
        with self._env.begin() as txn:
            found = txn.get(_FORMAT_KEY, b"", db=self._records)
        if found != _FORMAT:
            raise ConfigError(
                "data_dir",
                str(self.path.parent),
                f"holds a log store of format {found.decode(errors='replace')!r}, and this version reads "
                f"{_FORMAT.decode()!r}: use the version that wrote it",
            )


def _is_new(directory: Path) -> bool:
    return not directory.exists() or not any(directory.iterdir())


def _create(directory: Path, map_size: int) -> None:
    """Make a store in another directory and rename that, so that a half made store is never found."""
    made = directory.with_name(directory.name + ".new")
    shutil.rmtree(made, ignore_errors=True)
    make_directory(made)
    env = _open_environment(made, map_size)
    try:
        env.open_db(_LOG)
        with env.begin(write=True, db=env.open_db(_META)) as txn:
            txn.put(_FORMAT_KEY, _FORMAT)
    finally:
        env.close()
    sync_directory(made)
    made.replace(directory)
    sync_directory(directory.parent)


def _open_environment(directory: Path, map_size: int, *, read_only: bool = False) -> lmdb.Environment:
    try:
        return lmdb.open(
            str(directory),
            map_size=map_size,
            max_dbs=2,
            max_spare_txns=1,
            subdir=True,
            sync=True,
            metasync=True,
            writemap=False,
            readonly=read_only,
            # The lock is a file that would be written.
            lock=not read_only,
        )
    except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
        raise CorruptData(f"{directory / 'data.mdb'} is no log store, or a damaged one: {error}") from error
    except lmdb.Error as error:
        raise ConfigError("data_dir", str(directory), f"cannot hold a log store: {error}") from error


def _belongs(cursor: "lmdb.Cursor[Any]", key: ReplicaKey) -> bool:
    return bytes(cursor.key()).startswith(records.replica_prefix(key))


def _first(cursor: "lmdb.Cursor[Any]") -> int:
    return records.first_of(bytes(cursor.key()))
