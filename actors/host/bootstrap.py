"""The log of a replica that starts: what its first start records, and what a restart must agree with."""

from collections.abc import Mapping

import pykka
from drakkar.actors.log.records import Bootstrap
from drakkar.actors.log.store import AppendRequest, LogStore, StoredLog
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.checks import MAX_SIGNED, is_whole
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.raft.confchange import initial_log
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.state import Membership
from drakkar.transport.addresses import canonical

__all__ = ["check_snapshot", "open_log"]


def open_log(
    store: LogStore,
    config: RaftConfig,
    *,
    address: str,
    members: Mapping[int, str],
    join: bool,
    machine: str,
) -> StoredLog:
    """Open the log of a replica of the host at `address`; at its first start, record what it begins with.

    `machine` is the name of the state machine's class. Waits for the disk. Raises `ConfigError` where the arguments
    contradict one another or the record, `CorruptData` for a damaged log and `StorageFailed` for a failing disk.
    """
    shard_id, replica_id = config.shard_id, config.replica_id
    log = store.open(shard_id, replica_id)
    if log is None:
        if not join:
            _check_alone(store, shard_id, replica_id)
        _check_first_start(config, address, members, join=join)
        record = Bootstrap(Membership(voters=members), join=join, state_machine=machine)
        store.bootstrap(shard_id, replica_id, record)
        log = store.open(shard_id, replica_id)
        assert log is not None, "it was just made"
    else:
        _check_record(log.bootstrap, replica_id, members, machine, join=join)
    if (
        not log.bootstrap.join and not log.last_index
    ):  # a crash may have come between the record and the entry
        _write_initial_log(store, config, log.bootstrap.membership)
    return log


def check_snapshot(log: StoredLog, snapshots: Snapshots) -> None:
    """Find a snapshot's file that is missing or cut short before anything starts; the rest is found when it is loaded.

    Raises `CorruptData`.
    """
    if log.snapshot.has_content:
        snapshots.open(log.snapshot.payload.decode()).close()


def _check_alone(store: LogStore, shard_id: int, replica_id: int) -> None:
    """Two replicas on one machine would be lost together, so most likely the numbers are mixed up."""
    others = [other for held, other in store.replicas() if held == shard_id]
    if others:
        raise ConfigError(
            "replica_id",
            replica_id,
            f"this host's data directory holds replica {others[0]} of shard {shard_id}: start that or, if the shard "
            "has removed it, call remove_data first",
        )


def _check_first_start(config: RaftConfig, address: str, members: Mapping[int, str], *, join: bool) -> None:
    if join:
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


def _check_record(
    record: Bootstrap, replica: int, members: Mapping[int, str], machine: str, *, join: bool
) -> None:
    """At a restart everything must agree with what was recorded at the first start, or be left out."""
    if record.join and members:
        raise _wrong(members, f"replica {replica} joined its shard: leave the members out")
    if join and not record.join:
        raise ConfigError("join", join, f"replica {replica} is one of the first members: leave it out")
    recorded = dict(record.membership.addresses)
    if members and dict(members) != recorded:
        raise _wrong(members, f"replica {replica} was first started with {recorded}")
    if record.state_machine != machine:
        raise ConfigError(
            "state_machine", machine, f"the log of replica {replica} was written for {record.state_machine!r}"
        )


def _wrong(members: Mapping[int, str], remedy: str) -> ConfigError:
    return ConfigError("members", dict(members), remedy)


def _write_initial_log(store: LogStore, config: RaftConfig, membership: Membership) -> None:
    hard_state, run = initial_log(membership)
    written: pykka.Future[BaseException | None] = pykka.ThreadingFuture()
    store.save(AppendRequest(config.shard_id, config.replica_id, hard_state, [run], done=written.set))
    error = written.get(timeout=60)
    if error is not None:
        raise error
