"""Inspect the data directory of a stopped host, without changing anything in it.

It reads what the host would read at its next start, with the same checksums and the same rules of membership. So it
shows which survivor of a shard holds most (see `repair`), and whether a disk is damaged.
"""

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, final

from drakkar.actors.log.data_dir import LOG, SNAPSHOTS, DataDir
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.records import ReplicaKey, replica_key
from drakkar.actors.log.store import LogStore, StoredLog
from drakkar.actors.machine.content import Facts
from drakkar.actors.snapshots.files import DiskFiles as SnapshotFolder
from drakkar.actors.snapshots.store import Snapshots
from drakkar.actors.tools.extension_replay import own_kinds
from drakkar.handlers.errors import ConfigError, CorruptData, StorageFailed
from drakkar.handlers.raft.confchange import decide_all
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import changes, pages
from drakkar.handlers.raft.state import Membership

__all__ = ["HostReport", "ReplicaReport", "SnapshotReport", "StoppedHost", "inspect"]

PAGE_BYTES: Final = 4 << 20
"""Bytes of a log that are read at once."""
_NO_MEMBERS: Final = Membership()


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """The newest snapshot of a replica."""

    index: int
    term: int
    size: int
    """Bytes of its file when it was recorded; 0 for a witness, which has no file."""
    problem: str
    """What is wrong with the file; "" if it matches its checksums."""
    extensions: tuple[str, ...] = ()
    """The names of the extensions whose state is part of it: an export, and a start, need a table that uses them."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica, as its host would start it."""

    shard_id: int
    replica_id: int
    state_machine: str = ""
    """The type of its state machine, by name."""
    joined: bool = False
    """It was started with `join=True`."""
    term: int = 0
    vote: int = 0
    commit: int = 0
    """The last entry that it knows to be committed; more may be."""
    first_index: int = 0
    last_index: int = 0
    last_term: int = 0
    snapshot: SnapshotReport | None = None
    membership: Membership = _NO_MEMBERS
    """After all entries of the log, committed or not."""
    problem: str = ""
    """What is wrong with its log; "" if it is complete and matches its checksums."""
    founding: str = ""
    """How its shard was founded, in hexadecimal: equal at all its replicas; "" where it was not told, or not recorded yet."""
    standing: str = ""
    """What it may claim to remember: the name of a `Standing`, such as "SETTLED"."""
    kinds: tuple[int, ...] = ()
    """The kinds of records in its log, which are extensions' own."""

    @property
    def witness(self) -> bool:
        """Whether it is a witness, which holds no commands and cannot be exported."""
        return self.membership.is_witness(self.replica_id)

    @property
    def damaged(self) -> bool:
        """Whether its log or its snapshot is not what was written."""
        return bool(self.problem or (self.snapshot is not None and self.snapshot.problem))

    @property
    def reach(self) -> tuple[int, int]:
        """Term and index of the last entry, by which voters compare logs (thesis §3.6.1).

        Of two survivors of a shard, the one with the greater reach holds every committed entry that the other holds.
        """
        return self.last_term, self.last_index


@dataclass(frozen=True, slots=True)
class HostReport:
    """One data directory."""

    data_dir: str
    deployment_id: str
    address: str
    host_id: str
    replicas: tuple[ReplicaReport, ...]


def inspect(data_dir: str | os.PathLike[str]) -> HostReport:
    """Read and check all logs and snapshots in the data directory of a stopped host. Changes nothing.

    The report says what is damaged. It takes as long as the disk needs to read everything. From any thread except that
    of a loop.

    Raises `ConfigError` if it is not a host's directory or is in use, and `CorruptData` if its identity or its log store
    cannot be read at all.
    """
    with StoppedHost(data_dir) as host:
        return HostReport(
            str(host.directory.path),
            host.directory.deployment_id,
            host.directory.address,
            host.directory.host_id,
            tuple(_report(host, key) for key in host.replicas()),
        )


@final
class StoppedHost:
    """The data directory of a stopped host, for reading. It is locked until it is closed. A context manager."""

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        """Raises as `inspect` does."""
        self.directory = DataDir.existing(data_dir)
        try:
            files = DiskFiles(self.directory.part(LOG), read_only=True)
            self._store = LogStore(files, self.directory.host_id, create=False, read_only=True)
        except BaseException:
            self.directory.close()
            raise

    def replicas(self) -> list[ReplicaKey]:
        """Return shard and replica of all that it holds."""
        return self._store.replicas()

    def log(self, key: ReplicaKey) -> StoredLog:
        """Return a replica's log. Raises `CorruptData` if it is damaged."""
        log = self._store.open(*key)
        if log is None:
            raise ConfigError("replica", key, f"is not in {self.directory.path}")
        return log

    def snapshots(self, key: ReplicaKey) -> Snapshots:
        """Return a replica's snapshots, for reading only."""
        return Snapshots(SnapshotFolder(), self.directory.part(SNAPSHOTS) / f"{key[0]}-{key[1]}")

    def find(self, shard_id: int, replica_id: int | None) -> ReplicaKey:
        """Return the replica of a shard, or its only one if `replica_id` is None. Raises `ConfigError` if there is none."""
        if replica_id is not None:
            replica_key(shard_id, replica_id)
        held = [other for one, other in self.replicas() if one == shard_id]
        found = held if replica_id is None else [other for other in held if other == replica_id]
        if len(found) == 1:
            return shard_id, found[0]
        if len(found) > 1:
            raise ConfigError(
                "replica_id",
                None,
                f"{self.directory.path} holds {_listed(found)} of shard {shard_id}: name one",
            )
        if held:
            raise ConfigError(
                "replica_id", replica_id, f"{self.directory.path} holds {_listed(held)} of shard {shard_id}"
            )
        shards = sorted({one for one, _ in self.replicas()})
        raise ConfigError(
            "shard_id", shard_id, f"{self.directory.path} holds replicas of {_listed(shards) or 'no shard'}"
        )

    def close(self) -> None:
        """Unlock the directory."""
        self._store.close()
        self.directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _report(host: StoppedHost, key: ReplicaKey) -> ReplicaReport:
    shard, replica = key
    try:
        log = host.log(key)
        last_term = log.term(log.last_index)
    except CorruptData as error:
        return ReplicaReport(shard, replica, problem=str(error))
    membership, kinds, problem = _read_log(log, key)
    known = log.recorded_commit
    if known > log.last_index:
        problem = (
            f"it knew the log to be committed up to {known}, but that ends at {log.last_index}: "
            "entries were lost, or the directory was restored from an older copy"
        )
    return ReplicaReport(
        shard,
        replica,
        log.bootstrap.state_machine,
        log.bootstrap.join,
        log.hard_state.term,
        log.hard_state.vote,
        log.hard_state.commit,
        log.first_index,
        log.last_index,
        last_term,
        _snapshot(host, key, log),
        membership,
        problem,
        log.lives.founding.hex(),
        log.lives.standing.name,
        kinds,
    )


def _read_log(log: StoredLog, key: ReplicaKey) -> tuple[Membership, tuple[int, ...], str]:
    """Read the whole log; return the membership at its end, or up to the damage, the kinds of records, and what is wrong there."""
    membership, behind = log.membership, log.snapshot.index
    kinds: set[int] = set()
    problem = ""
    try:
        config = RaftConfig(replica_id=key[1], shard_id=key[0])
        for runs in pages(log.runs, log.first_index, log.last_index + 1, PAGE_BYTES):
            news = [run.slice(behind + 1, run.last + 1) for run in runs if run.last > behind]
            membership = decide_all(membership, changes(news), config)
            kinds.update(*map(own_kinds, runs))
    except CorruptData as error:
        problem = str(error)
    return membership, tuple(sorted(kinds)), problem


def _snapshot(host: StoppedHost, key: ReplicaKey, log: StoredLog) -> SnapshotReport | None:
    snapshot = log.snapshot
    if not snapshot:
        return None
    problem = ""
    extensions: tuple[str, ...] = ()
    if not snapshot.witness:
        try:
            with host.snapshots(key).open(snapshot.payload.decode(errors="replace")) as reader:
                extensions = Facts.decode(reader.facts).extensions
                reader.verify()
        except (CorruptData, StorageFailed) as error:
            problem = str(error)
    return SnapshotReport(snapshot.index, snapshot.term, snapshot.size, problem, extensions)


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids))
