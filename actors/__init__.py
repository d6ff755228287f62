"""The library's face: hosts, replicas, state machines and the actors that they are made of.

from drakkar.actors import NodeHost, StateMachine
"""

from drakkar.actors.deaths import ActorCrashed, ActorDied, unwatch, watch
from drakkar.actors.events import LeaderChanged, MembershipChanged, ReplicaEnded, ReplicaRemoved
from drakkar.actors.futures import ActorFuture
from drakkar.actors.host import NodeHost
from drakkar.actors.loop import TrioLoop
from drakkar.actors.node import NodeActor, Status
from drakkar.actors.replica import Replica
from drakkar.actors.session import Session
from drakkar.actors.state_machine import ConcurrentStateMachine, DiskStateMachine, StateMachine
from drakkar.actors.table_actor import TableActor
from drakkar.actors.trio_actor import TrioActor
from drakkar.handlers.config import RaftConfig
from drakkar.handlers.errors import (
    ActorFailed,
    ConfigError,
    CorruptData,
    DrakkarError,
    HandlerTableError,
    MembershipRejected,
    NotLeader,
    OutcomeUnknown,
    ProtocolViolation,
    ReplicaStopped,
    RequestDropped,
    ResultLost,
    SessionExpired,
    SessionRefused,
    StorageFailed,
    SystemBusy,
    TransferInProgress,
    TransportError,
)
from drakkar.handlers.membership import Change, ChangeType, Transition
from drakkar.handlers.messages import State
from drakkar.transport.tls import TlsConfig

__all__ = [
    "ActorCrashed",
    "ActorDied",
    "ActorFailed",
    "ActorFuture",
    "Change",
    "ChangeType",
    "ConcurrentStateMachine",
    "ConfigError",
    "CorruptData",
    "DiskStateMachine",
    "DrakkarError",
    "HandlerTableError",
    "LeaderChanged",
    "MembershipChanged",
    "MembershipRejected",
    "NodeActor",
    "NodeHost",
    "NotLeader",
    "OutcomeUnknown",
    "ProtocolViolation",
    "RaftConfig",
    "Replica",
    "ReplicaEnded",
    "ReplicaRemoved",
    "ReplicaStopped",
    "RequestDropped",
    "ResultLost",
    "Session",
    "SessionExpired",
    "SessionRefused",
    "State",
    "StateMachine",
    "Status",
    "StorageFailed",
    "SystemBusy",
    "TableActor",
    "TlsConfig",
    "TransferInProgress",
    "Transition",
    "TransportError",
    "TrioActor",
    "TrioLoop",
    "unwatch",
    "watch",
]
