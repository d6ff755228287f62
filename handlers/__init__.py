"""The pure core: the vocabulary, the handler table and the Raft machine. No threads, clocks, sockets or files.

Start with `matrix`, which says who answers what; then `raft`, the state of one replica; then the conversations,
one thesis chapter a file.
"""

from drakkar.handlers.config import RaftConfig
from drakkar.handlers.entries import Entries, Run
from drakkar.handlers.errors import (
    ConfigError,
    CorruptData,
    DrakkarError,
    HandlerTableError,
    ProtocolViolation,
)
from drakkar.handlers.log import MemoryLog, Storage
from drakkar.handlers.matrix import raft_handlers
from drakkar.handlers.membership import Change, ChangeType, ConfigChange, Transition
from drakkar.handlers.messages import (
    Entry,
    EntryKind,
    HardState,
    Membership,
    Message,
    MessageType,
    Snapshot,
    State,
)
from drakkar.handlers.progress import Progress, ProgressState
from drakkar.handlers.raft import Raft
from drakkar.handlers.ready import Changed, Dropped, LogQueryResult, ReadReady, Ready, Refusal
from drakkar.handlers.table import SWALLOW, HandlerTable, Ignore, Never

__all__ = [
    "SWALLOW",
    "Change",
    "ChangeType",
    "Changed",
    "ConfigChange",
    "ConfigError",
    "CorruptData",
    "DrakkarError",
    "Dropped",
    "Entries",
    "Entry",
    "EntryKind",
    "HandlerTable",
    "HandlerTableError",
    "HardState",
    "Ignore",
    "LogQueryResult",
    "Membership",
    "MemoryLog",
    "Message",
    "MessageType",
    "Never",
    "Progress",
    "ProgressState",
    "ProtocolViolation",
    "Raft",
    "RaftConfig",
    "ReadReady",
    "Ready",
    "Refusal",
    "Run",
    "Snapshot",
    "State",
    "Storage",
    "Transition",
    "raft_handlers",
]
