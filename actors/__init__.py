"""The library's face: hosts, replicas, state machines and the actors that they are made of.

from drakkar.actors import NodeHost, StateMachine
"""

from drakkar.actors.host.host import NodeHost
from drakkar.actors.host.options import IN_MEMORY, InMemory
from drakkar.actors.host.replica import Replica
from drakkar.actors.host.session import Session
from drakkar.actors.host.specs import ReplicaSpec
from drakkar.actors.host.table_actors import NodeEvent
from drakkar.actors.log.store import StoreStatus
from drakkar.actors.machine.applier import Hang
from drakkar.actors.machine.decoding import command_of
from drakkar.actors.machine.no_commands import NoCommands
from drakkar.actors.machine.state_machine import ConcurrentStateMachine, DiskStateMachine, StateMachine
from drakkar.actors.names.directory import Directory, NotRegistered
from drakkar.actors.names.singletons import (
    Singleton,
    SingletonEnded,
    SingletonPhase,
    SingletonStarted,
    SingletonStatus,
)
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.events import (
    AddressChanged,
    ExtensionEvent,
    HostState,
    HostStateChanged,
    LeaderChanged,
    MembershipChanged,
    ReplicaEnded,
    ReplicaRemoved,
)
from drakkar.actors.node.status import Ended, Status
from drakkar.actors.remote.errors import AnswerTimeout, HostGone, NameTaken, NotAllowed, UnknownName
from drakkar.actors.remote.failures import RemoteError, failure
from drakkar.actors.remote.message_classes import message
from drakkar.actors.remote.proxies import RemoteProxy
from drakkar.actors.remote.refs import RemoteRef
from drakkar.actors.remote.values import ValueRefused
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorCrashed, ActorDied, unwatch, watch
from drakkar.actors.runtime.supervisor import (
    ChildPhase,
    ChildSpec,
    ChildStatus,
    Supervisor,
    TooManyRestarts,
)
from drakkar.actors.runtime.table_actor import TableActor
from drakkar.handlers.errors import (
    ActorFailed,
    AlreadySet,
    ConfigError,
    CorruptData,
    DeadlockError,
    DiskFull,
    DrakkarError,
    ExtensionFailed,
    ForkedError,
    HandlerTableError,
    LoopError,
    MembershipRejected,
    MissingExtension,
    NotLeader,
    OutcomeUnknown,
    ProtocolViolation,
    Refused,
    ReplicaStopped,
    RequestDropped,
    ResultLost,
    SessionExpired,
    SessionRefused,
    StorageFailed,
    SystemBusy,
    TransferInProgress,
    TransportError,
    Vetoed,
)
from drakkar.handlers.raft.confchange import Change, ChangeType, Transition
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.state import Membership, State
from drakkar.transport.options import Options
from drakkar.transport.peer import PeerStatus
from drakkar.transport.tls import TlsConfig

__all__ = [
    "IN_MEMORY",
    "ActorCrashed",
    "ActorDied",
    "ActorFailed",
    "ActorFuture",
    "AddressChanged",
    "AlreadySet",
    "AnswerTimeout",
    "Change",
    "ChangeType",
    "ChildPhase",
    "ChildSpec",
    "ChildStatus",
    "ConcurrentStateMachine",
    "ConfigError",
    "CorruptData",
    "DeadlockError",
    "Directory",
    "DiskFull",
    "DiskStateMachine",
    "DrakkarError",
    "Ended",
    "ExtensionEvent",
    "ExtensionFailed",
    "ForkedError",
    "HandlerTableError",
    "Hang",
    "HostGone",
    "HostState",
    "HostStateChanged",
    "InMemory",
    "LeaderChanged",
    "LoopError",
    "Membership",
    "MembershipChanged",
    "MembershipRejected",
    "MissingExtension",
    "NameTaken",
    "NoCommands",
    "NodeActor",
    "NodeEvent",
    "NodeHost",
    "NotAllowed",
    "NotLeader",
    "NotRegistered",
    "Options",
    "OutcomeUnknown",
    "PeerStatus",
    "ProtocolViolation",
    "RaftConfig",
    "Refused",
    "RemoteError",
    "RemoteProxy",
    "RemoteRef",
    "Replica",
    "ReplicaEnded",
    "ReplicaRemoved",
    "ReplicaSpec",
    "ReplicaStopped",
    "RequestDropped",
    "ResultLost",
    "Session",
    "SessionExpired",
    "SessionRefused",
    "Singleton",
    "SingletonEnded",
    "SingletonPhase",
    "SingletonStarted",
    "SingletonStatus",
    "State",
    "StateMachine",
    "Status",
    "StorageFailed",
    "StoreStatus",
    "Supervisor",
    "SystemBusy",
    "TableActor",
    "TlsConfig",
    "TooManyRestarts",
    "TransferInProgress",
    "Transition",
    "TransportError",
    "TrioActor",
    "TrioLoop",
    "UnknownName",
    "ValueRefused",
    "Vetoed",
    "command_of",
    "failure",
    "message",
    "unwatch",
    "watch",
]
