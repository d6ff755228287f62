"""The logs of replicas that start: what their first starts record, and what a restart must agree with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from drakkar.actors.host.specs import Start, naming
from drakkar.actors.host.store_asker import Request, StoreAsker
from drakkar.actors.log.records import Bootstrap
from drakkar.actors.log.store import LogStore, StoredLog
from drakkar.actors.machine.state_machine import type_name
from drakkar.actors.node.introductions import Founding
from drakkar.actors.snapshots.store import Snapshots, SnapshotStore
from drakkar.handlers.checks import MAX_SIGNED, is_whole
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.raft.confchange import initial_log
from drakkar.handlers.raft.lives import Lives, Standing, founding_id
from drakkar.handlers.raft.state import Membership
from drakkar.transport.addresses import canonical

__all__ = ["Logs", "find_logs", "founding_told"]


@dataclass(frozen=True, slots=True)
class Logs:
    """The logs of replicas that start, as far as they were in the store, and what has to be recorded of the others."""

    starts: Sequence[Start]
    found: Sequence[StoredLog | None]
    requests: Sequence[Request]

    def opened(self, store: LogStore) -> list[StoredLog]:
        """Return all logs, when the requests are done."""
        return [log or _opened(store, start) for start, log in zip(self.starts, self.found, strict=True)]


def find_logs(
    store: LogStore, asker: StoreAsker, snapshots: SnapshotStore, starts: Sequence[Start], address: str
) -> Logs:
    """Open the logs of replicas that start on the host at `address`, and check them, and the arguments of first starts.

    Nothing is recorded. Waits for the disk. Raises `ConfigError` where arguments contradict one another or the record, and
    `CorruptData` for a damaged log or snapshot.
    """
    logs = [store.open(*start.key) for start in starts]
    if asker.overdue or (any(logs) and store.status.waiting):
        # Perhaps of these replicas: an earlier call had no time to wait, or their last life has ended a moment ago.
        asker.ask([store.after_all])
        logs = [store.open(*start.key) for start in starts]
    first = [start for start, log in zip(starts, logs, strict=True) if log is None]
    for start, log in zip(starts, logs, strict=True):
        with naming(*start.key):
            if log is None:
                _check_first_start(start, address)
                _check_never_used(store, start)
            else:
                _check_record(log.bootstrap, start)
                _check_snapshot(log, snapshots.of(*start.key))
    if first:
        _check_alone(store, first)
    requests = [_beginning(store, start) for start in first]
    return Logs(starts, logs, [*requests, *_inheritances(store, starts, logs)])


def _opened(store: LogStore, start: Start) -> StoredLog:
    log = store.open(*start.key)
    assert log is not None, "it was just made"
    return log


def _beginning(store: LogStore, start: Start) -> Request:
    """Return the request that records what a replica begins with: the record and the first entries, together."""
    record = Bootstrap(
        Membership(voters=start.members), join=start.join, state_machine=type_name(start.machine)
    )
    first = None if start.join else initial_log(record.membership)
    # A founder without others has no one to ask whether they are empty too.
    standing = Standing.FOUNDER if len(start.members) == 1 else Standing.NEWBORN
    lives = Lives(_founding_of(start.options.shard_id, record), standing)
    return partial(store.begin, *start.key, record, first, lives=lives)


def _founding_of(shard_id: int, record: Bootstrap) -> bytes:
    """Return the founding of a shard by the record of a replica's first start; empty for one that joined later."""
    if record.join:
        return b""
    founders = {replica: canonical(address) for replica, address in record.membership.addresses.items()}
    return founding_id(shard_id, founders, record.generation)


def founding_told(record: Bootstrap) -> Founding:
    """Return how a shard was founded, for people to read."""
    return Founding({} if record.join else dict(record.membership.addresses), record.generation)


def _inheritances(
    store: LogStore, starts: Sequence[Start], logs: Sequence[StoredLog | None]
) -> Iterator[Request]:
    """Yield the requests that record how shards were founded, for replicas of a directory of before, and for imported ones."""
    for start, log in zip(starts, logs, strict=True):
        if (
            log is not None
            and not log.lives.founding
            and (founding := _founding_of(start.options.shard_id, log.bootstrap))
        ):
            yield partial(store.live, *start.key, replace(log.lives, founding=founding))


def _check_snapshot(log: StoredLog, snapshots: Snapshots) -> None:
    """Find a snapshot's file that is missing or cut short before anything starts; the rest is found when it is loaded."""
    if log.snapshot.has_content:
        snapshots.open(log.snapshot.payload.decode()).close()


def _check_never_used(store: LogStore, start: Start) -> None:
    if store.removed(*start.key):
        raise ConfigError(
            "replica_id",
            start.options.replica_id,
            "its data was removed from this host, and ids are never used again, since others may still rely on its votes: "
            "choose another id",
        )


def _check_alone(store: LogStore, starts: Sequence[Start]) -> None:
    """Two replicas on one machine would be lost together, so most likely the numbers are mixed up."""
    held = dict(store.replicas())
    for start in starts:
        shard_id, replica_id = start.key
        if shard_id in held:
            raise ConfigError(
                "replica_id",
                replica_id,
                f"this host's data directory holds replica {held[shard_id]} of shard {shard_id}: start that or, if the "
                "shard has removed it, call remove_data first",
            )


def _check_first_start(start: Start, address: str) -> None:
    config, members = start.options, start.members
    if start.join:
        if members:
            raise _wrong(members, "one that joins is told the members by the leader: leave them out")
        return
    replica = config.replica_id
    if not members:
        raise _wrong(members, f"replica {replica} starts for the first time: name all members, or join=True")
    if config.is_observer or config.is_witness:
        role = "OBSERVER" if config.is_observer else "WITNESS"
        raise ConfigError("role", role, "the first members are voters: start this one with join=True")
    if replica not in members:
        raise _wrong(members, f"must contain replica {replica} itself, at {address}")
    _check_addresses(members)
    if canonical(members[replica]) != canonical(address):
        raise _wrong(members, f"replica {replica} is this host, whose address is {address}")


def _check_addresses(members: Mapping[int, str]) -> None:
    addresses = set()
    for id_, address in members.items():
        if not is_whole(id_, 1, MAX_SIGNED):
            raise _wrong(members, f"{id_!r} is no replica id, which is a whole number from 1 up")
        addresses.add(canonical(address))
    if len(addresses) < len(members):
        raise _wrong(members, "two members have the same address")


def _check_record(record: Bootstrap, start: Start) -> None:
    """At a restart everything must agree with what was recorded at the first start, or be left out."""
    replica, members, machine = start.options.replica_id, start.members, type_name(start.machine)
    if record.join and members:
        raise _wrong(members, f"replica {replica} joined its shard: leave the members out")
    if start.join and not record.join:
        raise ConfigError("join", start.join, f"replica {replica} is one of the first members: leave it out")
    recorded = dict(record.membership.addresses)
    if members and dict(members) != recorded:
        raise _wrong(members, f"replica {replica} was first started with {recorded}")
    if record.state_machine != machine:
        raise ConfigError(
            "state_machine",
            machine,
            f"the log of replica {replica} was written for {record.state_machine!r}: start that or, if it has only been "
            f"renamed, set recorded_name = {record.state_machine!r} in the class {type(start.machine).__name__}",
        )


def _wrong(members: Mapping[int, str], remedy: str) -> ConfigError:
    return ConfigError("members", dict(members), remedy)
