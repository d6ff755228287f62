"""What a replica is started with, and the checks of it that need neither disk nor loop."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from types import NoneType
from typing import Any

from drakkar.actors.host.options import check_groups, replica_config
from drakkar.actors.machine.state_machine import DiskStateMachine, StateMachine, make_machine
from drakkar.actors.runtime.futures import brief
from drakkar.handlers.checks import check_switch, check_type
from drakkar.handlers.errors import ConfigError, HandlerTableError, TransportError
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.matrix import checked_handlers
from drakkar.handlers.raft.state import State
from drakkar.handlers.table import HandlerTable

__all__ = ["ReplicaSpec", "Start", "check_specs", "naming"]


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One replica of a shard, for `NodeHost.start_replicas`: the arguments of `NodeHost.start_replica`, which explains them.

    It is checked when it is used.
    """

    state_machine: Callable[[], StateMachine]
    _: KW_ONLY
    shard_id: int
    replica_id: int
    members: Mapping[int, str] | None = None
    join: bool = False
    role: State | None = None
    config: RaftConfig | Mapping[str, Any] | None = None
    groups: Mapping[int, int] | None = None
    handlers: HandlerTable | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A spec that was checked."""

    options: RaftConfig
    members: Mapping[int, str]
    join: bool
    machine: StateMachine
    groups: Mapping[int, int]
    handlers: HandlerTable | None

    @property
    def key(self) -> tuple[int, int]:
        """Shard and replica."""
        return self.options.shard_id, self.options.replica_id


def check_specs(specs: Sequence[ReplicaSpec]) -> list[Start]:
    """Check all specs, and make their state machines. Raises `ConfigError` and `HandlerTableError` for the first mistake."""
    starts: dict[int, Start] = {}
    check_type("specs", specs, Iterable, "a list of ReplicaSpecs")
    for spec in specs:
        if not isinstance(spec, ReplicaSpec):
            raise ConfigError("specs", brief(spec), "must be a ReplicaSpec")
        with naming(spec.shard_id, spec.replica_id):
            start = _checked(spec)
        if spec.shard_id in starts:
            raise ConfigError(
                "specs", spec.shard_id, "is named twice, and a host runs one replica of a shard: name it once"
            )
        starts[spec.shard_id] = start
    return list(starts.values())


def _checked(spec: ReplicaSpec) -> Start:
    check_type("members", spec.members, (Mapping, NoneType), "a mapping of replica ids to addresses, or None")
    check_type(
        "config",
        spec.config,
        (RaftConfig, Mapping, NoneType),
        "a RaftConfig, a mapping of its options, or None",
    )
    check_type("groups", spec.groups, (Mapping, NoneType), "a mapping of replica ids to groups, or None")
    check_switch("join", spec.join)
    options = replica_config(spec.config, spec.shard_id, spec.replica_id, spec.role)
    members, groups = spec.members or {}, spec.groups or {}
    check_groups(options, groups, members)
    if spec.handlers is not None:
        checked_handlers(spec.handlers)
    machine = make_machine(spec.state_machine)
    if isinstance(machine, DiskStateMachine) and options.apply_unpersisted_limit:
        raise ConfigError(
            "apply_unpersisted_limit",
            options.apply_unpersisted_limit,
            "must be 0 for a state machine on disk",
        )
    return Start(options, members, spec.join, machine, groups, spec.handlers)


@contextmanager
def naming(shard_id: object, replica_id: object) -> Iterator[None]:
    """Name the replica in errors about its options, which are one of many where many are started."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            error.option,
            error.value,
            f"{error.remedy} (shard {brief(shard_id)}, replica {brief(replica_id)})",
        ) from error
    except (HandlerTableError, TransportError) as error:
        raise type(error)(f"{error} (shard {brief(shard_id)}, replica {brief(replica_id)})") from error
