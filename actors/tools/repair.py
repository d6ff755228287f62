"""Repair a shard that lost its quorum for good, offline: `inspect`, `export`, `import_`.

A shard needs no repair as long as a majority of its voters can be started again. Otherwise no protocol can tell what the
lost voters had acknowledged, and an operator must decide that they will never be started again. Then

1. `inspect` the data directory of each survivor, and choose the one with the greatest (last term, last index);
2. `export` it: one file with the state machine's whole state, sessions included;
3. `import_` that file on every host of the new membership, and start these hosts again.

The hosts must be stopped. The functions block on disks: call them from a thread, never from a loop.
`docs/operations.md` shows the same as commands.
"""

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Self, final

from drakkar.actors.log.data_dir import LOG, SNAPSHOTS, DataDir
from drakkar.actors.log.records import Bootstrap, ReplicaKey, replica_key
from drakkar.actors.log.store import LogStore, StoredLog, at_once, log_on_disk
from drakkar.actors.machine.applied import AppliedState, ApplyFailed
from drakkar.actors.machine.content import Facts, names_in
from drakkar.actors.machine.state_machine import StateMachine, make_machine, type_name
from drakkar.actors.runtime.futures import brief
from drakkar.actors.snapshots.format import SnapshotReader
from drakkar.actors.snapshots.store import SnapshotFiles, Snapshots, create_file, read_file
from drakkar.actors.tools.extension_replay import ExtensionReplay
from drakkar.actors.tools.inspection import (
    PAGE_BYTES,
    HostReport,
    ReplicaReport,
    SnapshotReport,
    StoppedHost,
    inspect,
)
from drakkar.handlers.checks import MAX_SIGNED, MAX_TERM, check_whole, is_whole
from drakkar.handlers.errors import ActorFailed, ConfigError, CorruptData, DrakkarError
from drakkar.handlers.raft.confchange import decide_all
from drakkar.handlers.raft.config import Compression, RaftConfig
from drakkar.handlers.raft.ends import NEAR_END
from drakkar.handlers.raft.entries import EntryKind, Run, changes, pages
from drakkar.handlers.raft.state import HardState, Membership, Snapshot
from drakkar.handlers.table import HandlerTable
from drakkar.transport.addresses import canonical, parse_address

__all__ = [
    "Exported",
    "HostReport",
    "Imported",
    "ReplicaReport",
    "SnapshotReport",
    "export",
    "import_",
    "inspect",
]

logger = logging.getLogger("drakkar.actors.tools")

_METADATA: Final = int(EntryKind.METADATA)
_COPY_BYTES: Final = 1 << 20

_EXPORT: Final = "export"
"""The key, among the facts of a snapshot, of the fields of an `_Origin`."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where an export comes from. A file that `Replica.snapshot` wrote does not say that."""

    deployment: str
    state_machine: str
    replica: int
    host: str
    """The id of the host. A host that lost its disk gets a new one."""
    term: int
    """Of the replica."""
    last_term: int
    """Of the last entry of its log, exported or not."""
    last_index: int
    uncommitted: int

    @classmethod
    def of(cls, source: SnapshotReader, path: Path) -> Self | None:
        """Return the origin of an export, None for another snapshot. Raises `ConfigError` for unknown fields."""
        facts = source.facts.get(_EXPORT)
        if facts is None:
            return None
        kinds = {field.name: field.type for field in fields(cls)}
        if type(facts) is not dict or {name: type(fact) for name, fact in facts.items()} != kinds:
            raise ConfigError(
                "path",
                str(path),
                "was exported by a version whose files this one cannot read: use that version",
            )
        return cls(**facts)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export contains."""

    path: Path
    shard_id: int
    replica_id: int
    """The replica whose log and snapshot were read."""
    index: int
    """The last entry that the state contains."""
    term: int
    """Of that entry."""
    replayed: int
    """How many entries were applied to the newest snapshot."""
    uncommitted: int
    """How many of them the replica did not know to be committed."""
    left_out: int
    """How many entries at the end of the log were left out, since they were not known to be committed."""
    membership: Membership
    """After that entry."""
    size: int
    """Bytes of the file."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made."""

    shard_id: int
    replica_id: int
    index: int
    term: int
    """The term in which the replica will start."""
    membership: Membership
    replaced: tuple[int, ...]
    """Other replicas of the shard that were removed from this directory."""


# -- export ---------------------------------------------------------------------------------------------------------


def export(
    data_dir: str | os.PathLike[str],
    shard_id: int,
    state_machine: Callable[[], StateMachine],
    path: str | os.PathLike[str],
    *,
    replica_id: int | None = None,
    committed_only: bool = False,
    ordered_config_change: bool = False,
    compression: Compression = "none",
    handlers: HandlerTable | None = None,
) -> Exported:
    """Write the state of a shard, as the replica in this data directory has it, to the file `path`, durably.

    `state_machine`: as for `start_replica`. The newest snapshot is loaded into it, and the log after that applied.
    `replica_id`: needed only if the directory holds several replicas of the shard.
    `committed_only`: stop at the last entry that the replica knew to be committed. By default all entries of its log
    are applied: some may be committed, and acknowledged to clients, although this replica does not know it yet. So
    commands whose outcome was unknown may take effect. Of all survivors, the one with the greatest (last term, last
    index) holds every acknowledged command that any of them holds.
    `ordered_config_change`: as in the shard's `RaftConfig`.
    `compression`: "zlib" makes the file smaller.
    `handlers`: as for `start_replica`. Needed if its table uses extensions that take entries of the log: their state is part of the
    file.

    The directory is not changed. But a `DiskStateMachine` has its state elsewhere, and applies the missing entries to
    that: unless `committed_only`, do not start its host with that state again, except after an import.

    Raises `ConfigError` if the directory is in use, holds no such replica or a witness, if the type of the state machine
    is another, if `path` exists, or if `handlers` is needed and missing; `CorruptData` for a damaged log or snapshot;
    `ActorFailed` if the state machine fails, `ExtensionFailed` if an extension does, `MissingExtension` if the table lacks one;
    `StorageFailed` if the file cannot be written. No file is left then.
    """
    machine = make_machine(state_machine)
    with StoppedHost(data_dir) as host:
        key = host.find(shard_id, replica_id)
        log = host.log(key)
        _check_source(log, key, machine)
        config = RaftConfig(replica_id=key[1], shard_id=key[0], ordered_config_change=ordered_config_change)
        with (
            create_file(Path(path).absolute(), compression=compression) as file,
            closing(
                _Replay(machine, ExtensionReplay(log, config, handlers), key[0], host.snapshots(key))
            ) as replay,
        ):
            replay.load(log.snapshot)
            index = _last_to_apply(log, key, replay, committed_only=committed_only)
            membership, replayed = _apply_log(log, replay, index, config)
            if membership.is_witness(key[1]):
                raise _witness(key)
            facts = replay.write(file)
            origin = _origin(host, log, key, index)
            point = Snapshot(index, log.term(index), membership)
            written = file.finish(point, {**facts.encode(), _EXPORT: asdict(origin)})
    return Exported(
        Path(path).absolute(),
        *key,
        index,
        written.term,
        replayed,
        origin.uncommitted,
        origin.last_index - index,
        membership,
        written.size,
    )


def _check_source(log: StoredLog, key: ReplicaKey, machine: StateMachine) -> None:
    if log.bootstrap.state_machine != type_name(machine):
        raise ConfigError(
            "state_machine",
            type_name(machine),
            f"the log of replica {key[1]} was written for {log.bootstrap.state_machine!r}: name that one or, if it has "
            "only been renamed, set recorded_name in the class to the old name",
        )
    if not log.last_index:
        raise ConfigError("replica_id", key[1], "has no entries yet: export another replica")
    if log.snapshot.witness or log.membership.is_witness(key[1]):
        raise _witness(key)
    if log.snapshot.index < log.first_index - 1:
        raise CorruptData(
            f"shard {key[0]} replica {key[1]}: entries {log.snapshot.index + 1} to {log.first_index - 1} are missing, "
            "since its log begins after its snapshot: export another replica"
        )


def _witness(key: ReplicaKey) -> ConfigError:
    return ConfigError("replica_id", key[1], "is a witness, which keeps no commands: export another replica")


def _last_to_apply(log: StoredLog, key: ReplicaKey, replay: "_Replay", *, committed_only: bool) -> int:
    held = replay.state.index
    if held > log.last_index:
        raise CorruptData(
            f"the state machine of shard {key[0]} replica {key[1]} holds the log up to {held}, but that ends at "
            f"{log.last_index}: they do not belong together, or one was restored from an older copy"
        )
    # A state machine on disk has applied only committed entries, though the log may not say so, and cannot go back.
    return max(log.hard_state.commit, log.snapshot.index, held) if committed_only else log.last_index


def _origin(host: StoppedHost, log: StoredLog, key: ReplicaKey, index: int) -> _Origin:
    return _Origin(
        deployment=host.directory.deployment_id,
        state_machine=log.bootstrap.state_machine,
        replica=key[1],
        host=host.directory.host_id,
        term=log.hard_state.term,
        last_term=log.term(log.last_index),
        last_index=log.last_index,
        uncommitted=index - min(max(log.hard_state.commit, log.snapshot.index), index),
    )


def _apply_log(log: StoredLog, replay: "_Replay", index: int, config: RaftConfig) -> tuple[Membership, int]:
    """Apply the log up to `index`; return the membership there, and the number of entries applied."""
    membership, first = log.membership, log.snapshot.index + 1
    for runs in pages(log.runs, first, index + 1, PAGE_BYTES):
        if any(_METADATA in run.kinds for run in runs):
            raise _witness((config.shard_id, config.replica_id))
        replay.apply(runs)
        membership = decide_all(membership, changes(runs), config)
    return membership, max(index + 1 - first, 0)


class _Replay:
    """A state machine to which a log is applied, beside extensions. Its exceptions are raised as `ActorFailed`."""

    def __init__(
        self, machine: StateMachine, extensions: ExtensionReplay, shard_id: int, snapshots: Snapshots
    ) -> None:
        self.state = AppliedState(machine, shard_id)
        self._extensions, self._snapshots = extensions, snapshots

    def load(self, snapshot: Snapshot) -> None:
        """Load a snapshot, or only open the state machine if the snapshot has index 0."""
        with _naming(f"loading the snapshot at {snapshot.index}" if snapshot else "opening its state"):
            extensions = self.state.load(snapshot, self._snapshots)
        self._extensions.load(extensions, snapshot.index)

    def apply(self, runs: list[Run]) -> None:
        """Apply the next entries."""
        for run in runs:
            with _naming(f"applying entries {run.first} to {run.last}"):
                self.state.apply(run)
            self._extensions.deliver(run)

    def write(self, sink: BinaryIO) -> Facts:
        """Write the whole state, as the content of a snapshot. Return what is to be known of it."""
        extensions = self._extensions.save()
        with _naming("writing its state"):
            self.state.writer()(sink, extensions)
        return dataclasses.replace(self.state.facts(), extensions=names_in(extensions))

    def close(self) -> None:
        """Let a state machine on disk close its files."""
        if self.state.disk is not None:
            try:
                self.state.disk.close()
            except Exception:
                logger.exception("a state machine could not be closed")


@contextmanager
def _naming(doing: str) -> Iterator[None]:
    try:
        yield
    except ApplyFailed as error:
        raise ActorFailed(
            f"the state machine failed while {doing}, and nothing was exported: {error}"
        ) from error.__cause__
    except DrakkarError:
        raise
    except (Exception, SystemExit) as error:
        raise ActorFailed(
            f"the state machine failed while {doing}, and nothing was exported: {brief(error)}"
        ) from error


# -- import ---------------------------------------------------------------------------------------------------------


def import_(
    path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    shard_id: int,
    replica_id: int,
    members: Mapping[int, str],
    address: str,
    deployment_id: str,
    as_shard: int | None = None,
    state_machine: str | None = None,
    replace: bool = False,
) -> Imported:
    """Make a replica of an exported shard in the data directory of a host that is stopped or new, durably.

    `path`: a file that `export` or `Replica.snapshot(export_to=…)` wrote.
    `members`: all voters of the shard from now on, by replica id. Import the same file with the same members on the host
    of each. All other replicas that ever belonged to the shard are removed for good, and their ids never used again.
    The shard is founded anew by that, with a number that this file has: replicas of before, which an operator has
    forgotten, are refused by the new ones, and refuse them.
    Give a new machine a new id, so that the lost one is no member if it should start again.
    `address`, `deployment_id`: as for `NodeHost`.
    `shard_id`: that of the export. `as_shard`: import it under this number instead.
    `state_machine`: the name of its type, for a file that does not say it, as those of `Replica.snapshot`.
    `replace`: delete what is in the way in the directory: other replicas of the shard, which may never run again, or
    this one's log if it is damaged or holds more than the exported log did.

    Then start the host as after any restart: without members, and without `join`. A `DiskStateMachine` has its state
    elsewhere: remove that before the start, on every host, since the import brings it.

    The file is checked before anything is changed. A crash in the middle leaves the directory as it was, or without the
    replicas to be replaced: import again then.

    Raises `ConfigError` for arguments that contradict the export, each other or the directory, and for a directory that
    is in use; `CorruptData` for a damaged file; `TransportError` for an invalid address; `StorageFailed` if the disk
    fails.
    """
    key = replica_key(shard_id if as_shard is None else as_shard, replica_id)
    _check_members(members, replica_id, address)
    with read_file(Path(path)) as source:
        origin = _Origin.of(source, Path(path))
        _check_source_shard(source, Path(path), shard_id)
        name = _state_machine(origin, state_machine)
        if origin is not None and origin.deployment != deployment_id:
            raise ConfigError(
                "deployment_id",
                deployment_id,
                f"the export is of a shard of deployment {origin.deployment!r}: name that one",
            )
        membership = _rewritten(source.snapshot, members)
        source.verify()
        with DataDir.open(data_dir, deployment_id=deployment_id, address=canonical(address)) as directory:
            return _Import(source, origin, directory, key, replace=replace).run(membership, name)


def _check_source_shard(source: SnapshotReader, path: Path, shard_id: int) -> None:
    facts = Facts.decode(source.facts)
    if not facts.has_content:
        raise ConfigError(
            "path",
            str(path),
            "holds no state of a state machine: name a file that an export wrote, not one of a data directory",
        )
    if facts.shard_id != shard_id:
        raise ConfigError(
            "shard_id",
            shard_id,
            f"the export is of shard {facts.shard_id}: name that, and as_shard={shard_id} to import it under that number",
        )


def _state_machine(origin: _Origin | None, given: str | None) -> str:
    if origin is None and not given:
        raise ConfigError(
            "state_machine",
            given,
            "the file does not say the type of its state machine: name it",
        )
    if origin is not None and given and given != origin.state_machine:
        raise ConfigError(
            "state_machine", given, f"the export is of a {origin.state_machine!r}: leave it out"
        )
    return given or (origin.state_machine if origin is not None else "")


def _check_members(members: Mapping[int, str], replica_id: int, address: str) -> None:
    """Apply the same rules as to the first members of a shard."""
    for member, where in members.items():
        if not is_whole(member, 1, MAX_SIGNED):
            raise ConfigError(
                "members", dict(members), f"{member!r} is no replica id, which is a whole number from 1 up"
            )
        if not parse_address(where)[1]:
            raise ConfigError(
                "members", dict(members), f"{where} has no port, so the others cannot find it: name one"
            )
    if len({canonical(where) for where in members.values()}) < len(members):
        raise ConfigError(
            "members", dict(members), "two members have the same address: give each a host of its own"
        )
    if replica_id not in members:
        raise ConfigError("members", dict(members), f"must contain replica {replica_id} itself, at {address}")
    if canonical(members[replica_id]) != canonical(address):
        raise ConfigError(
            "address",
            address,
            f"the members say that replica {replica_id} is at {members[replica_id]}: name the host of that replica",
        )


def _rewritten(snapshot: Snapshot, members: Mapping[int, str]) -> Membership:
    """Return the membership with these voters; all other replicas that ever belonged to the shard are removed."""
    before = snapshot.membership
    again = sorted(frozenset(members) & frozenset(before.removed))
    if again:
        raise ConfigError(
            "members",
            dict(members),
            f"replica {', '.join(map(str, again))} was removed from the shard, and ids are never used again: choose a "
            "new one",
        )
    gone = (frozenset(before.removed) | before.everybody) - frozenset(members)
    # Homes are left out: where the replicas live now, the new log says.
    # An ordered change names the entry of the membership that it was made for, so none made before takes effect now.
    return Membership(voters=members, removed=gone, change_id=snapshot.index)


@final
class _Import:
    """An import of a checked file into a data directory that this process holds."""

    def __init__(
        self,
        source: SnapshotReader,
        origin: _Origin | None,
        directory: DataDir,
        key: ReplicaKey,
        *,
        replace: bool,
    ) -> None:
        point = source.snapshot
        self._source = source
        self._exported = (origin.last_term, origin.last_index) if origin else (point.term, point.index)
        known = max(origin.term if origin else 0, point.term)
        self._starts_over = known > NEAR_END
        """Hardly a term is left to the shard. Nothing of the old one is heard in the new one, so that begins with the first terms."""
        self._point_term = 1 if self._starts_over else point.term
        self._term = self._point_term if self._starts_over else known
        self._directory = directory
        self._key = key
        self._replace = replace

    def run(self, membership: Membership, state_machine: str) -> Imported:
        files = SnapshotFiles(self._directory.part(SNAPSHOTS))
        store = log_on_disk(self._directory.part(LOG), self._directory.host_id, create=self._directory.new)
        try:
            self._directory.complete()
            others = self._in_the_way(store)
            term = 1 + max(self._term, self._held_term(store))
            check_whole("term", term, 1, MAX_TERM)
            # The largest part comes first: if there is no room for it, nothing else has changed.
            snapshot = self._copied(files.of(*self._key), membership)
            for other in others:
                at_once(partial(store.remove, self._key[0], other))
                files.of(self._key[0], other).remove_all()
            record = Bootstrap(
                Membership(voters=membership.addresses),
                state_machine=state_machine,
                generation=self._source.fingerprint,
            )
            hard_state = HardState(term, 0, snapshot.index)
            at_once(partial(store.import_replica, *self._key, record, snapshot, hard_state))
            files.of(*self._key).prune(snapshot.payload.decode())
        finally:
            store.close()
        return Imported(*self._key, snapshot.index, term, membership, tuple(others))

    def _in_the_way(self, store: LogStore) -> list[int]:
        shard, replica = self._key
        others = [other for one, other in store.replicas() if one == shard and other != replica]
        if others and not self._replace:
            held = ", ".join(map(str, others))
            raise self._refusal(
                f"holds replica {held} of shard {shard}: import to another directory, or say replace=True to delete that "
                "for good"
            )
        return others

    def _held_term(self, store: LogStore) -> int:
        """Return the term of the replica's log in the directory, or 0. Refuse to replace one that holds more.

        A term near the last one counts only where this file was imported there before: votes in it were given to the new shard.
        """
        try:
            log = store.open(*self._key)
            held = (log.term(log.last_index), log.last_index) if log is not None else (0, 0)
        except CorruptData as error:
            if self._replace:
                return 0
            raise self._refusal(
                "holds it, damaged, so it cannot be seen whether it holds more than the export: say replace=True to "
                f"delete it ({error})"
            ) from error
        if held > self._exported and not self._replace:
            raise self._refusal(
                f"holds its log up to entry {held[1]} of term {held[0]}, and the exported one ended with entry "
                f"{self._exported[1]} of term {self._exported[0]}: export this one instead, or say replace=True to "
                "delete it"
            )
        if log is None:
            return 0
        again = log.bootstrap.generation == self._source.fingerprint
        return log.hard_state.term if again or log.hard_state.term <= NEAR_END else 0

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError("replica_id", self._key[1], f"{self._directory.path} {why}")

    def _copied(self, snapshots: Snapshots, membership: Membership) -> Snapshot:
        """Write it among the replica's snapshots, with the new membership inside, since it may be sent to others."""
        source, was = self._source, self._source.snapshot
        compression: Compression = "zlib" if was.size < source.content_size else "none"
        with snapshots.create(compression=compression) as sink:
            shutil.copyfileobj(source, sink, _COPY_BYTES)
            point = Snapshot(was.index, self._point_term, membership)
            facts = dataclasses.replace(Facts.decode(source.facts), shard_id=self._key[0])
            return sink.finish(point, {**source.facts, **facts.encode()})
