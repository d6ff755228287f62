"""Options of a replica, as a host takes them: a host's own defaults, and what it cannot act on."""

import enum
from collections.abc import Mapping
from typing import Any, Final

from drakkar.actors.node.operators import check_groups_in_use
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.raft import commit
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.state import State

__all__ = ["HOST_DEFAULTS", "IN_MEMORY", "InMemory", "check_groups", "replica_config"]


class InMemory(enum.Enum):
    """Where a host keeps its logs and snapshots, if not in a directory."""

    IN_MEMORY = "in memory"

    def __repr__(self) -> str:
        return self.name


IN_MEMORY: Final = InMemory.IN_MEMORY
"""For `NodeHost(data_dir=…)`: all is kept in memory, and meant to be: a restart forgets acknowledged writes, and votes."""

HOST_DEFAULTS: Final[Mapping[str, Any]] = {
    # One message to a peer for everything that one turn of the node brought.
    "batch_append": True,
    # A commit costs no message of its own where others follow, and no answer where none does.
    "commit_notices": True,
    # An address with a mistake in it would end a shard that grows from one voter to two.
    "strict_membership_changes": True,
    # What may pile up at a leader without a quorum, or with a slow state machine.
    "max_uncommitted_bytes": 64 << 20,
    "max_in_mem_log_bytes": 64 << 20,
    # A log that is never compacted would fill the disk. One that is compacted to its end would have every follower
    # that is an entry behind sent the whole state; hence `compaction_overhead`, which is half of this by default.
    "snapshot_entries": 10_000,
    # A segment of the log: entries may be large, and disks small.
    "snapshot_bytes": 16 << 20,
}
"""Options of `RaftConfig` whose default is another one on a host."""

_START_ROLES: Final = (State.FOLLOWER, State.OBSERVER, State.WITNESS)


def replica_config(
    config: RaftConfig | Mapping[str, Any] | None, shard_id: int, replica_id: int, role: State | None
) -> RaftConfig:
    """Return the options of a replica. A `RaftConfig` is taken as it is; a mapping is completed by `HOST_DEFAULTS`.

    Raises `ConfigError` for an unknown option, a value out of bounds, a role that the config contradicts, and an option
    that has no effect on a host.
    """
    if isinstance(config, RaftConfig):
        _check_owner(config, shard_id, replica_id, role)
        complete = config
    else:
        complete = _from_mapping(config or {}, shard_id, replica_id, role)
    if complete.notify_commit:
        raise ConfigError(
            "notify_commit",
            True,
            "a host cannot do that: a future is set once its command is applied; leave it out",
        )
    return complete


def _check_owner(config: RaftConfig, shard_id: int, replica_id: int, role: State | None) -> None:
    if (config.shard_id, config.replica_id) != (shard_id, replica_id):
        raise ConfigError(
            "config",
            (config.shard_id, config.replica_id),
            f"is for another replica than {(shard_id, replica_id)}",
        )
    if role is not None:
        raise ConfigError("role", role, "a RaftConfig says itself what the replica is: leave it out")


def _from_mapping(
    config: Mapping[str, Any], shard_id: int, replica_id: int, role: State | None
) -> RaftConfig:
    options = {**HOST_DEFAULTS, **config}
    if role is not None:
        if role not in _START_ROLES:
            raise ConfigError("role", role, "a replica starts as FOLLOWER, OBSERVER or WITNESS")
        options |= {"is_observer": role is State.OBSERVER, "is_witness": role is State.WITNESS}
    if options.get("is_witness") and "snapshot_entries" not in config:
        options["snapshot_entries"] = 0  # it has nothing to save
    entries = options["snapshot_entries"]
    if entries == 0 and "snapshot_bytes" not in config:
        options["snapshot_bytes"] = 0  # 0 means never
    # RaftConfig refuses what is no number.
    options.setdefault("compaction_overhead", entries // 2 if type(entries) is int else 0)
    try:
        return RaftConfig(**options, shard_id=shard_id, replica_id=replica_id)
    except TypeError as error:
        raise ConfigError(
            "config", dict(options), f"has an option that RaftConfig does not know: {error}"
        ) from error


def check_groups(config: RaftConfig, groups: Mapping[int, int], members: Mapping[int, str]) -> None:
    """Refuse what would make `group_commit` wait for all voters, or do nothing. Raises `ConfigError`.

    `members` may be empty, at a restart; a voter without a group is warned of then.
    """
    check_groups_in_use(config, groups)
    if not config.group_commit:
        return
    commit.check_groups(groups)
    if not groups:
        raise ConfigError(
            "group_commit",
            True,
            "needs groups, or all voters would have to be up to commit: give start_replica(groups={replica_id: group})",
        )
    missing = [replica for replica in members if not groups.get(replica)]
    if missing:
        raise ConfigError(
            "groups",
            dict(groups),
            f"name the groups of {missing} too, or all voters would have to be up to commit",
        )
    if len(set(groups.values()) - {0}) < 2:
        raise ConfigError(
            "groups", dict(groups), "name two groups or more: each entry is to be in two of them"
        )
