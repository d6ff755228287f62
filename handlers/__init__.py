"""Messages, the traits of their types, and the handler table, for any protocol.

Pure: no threads, clocks, sockets or files. The Raft machine is in `raft/`, and exported here as well. Start with
`raft.matrix`, which names the handler of every state and message type. Then read `raft.raft`, which a host calls, and
`raft.core`, the state of one replica. The other modules of `raft/` hold the handlers, one theme a file.
"""

from drakkar.handlers.effects import Answer, Effects, Failure, Told
from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.errors import (
    ConfigError,
    CorruptData,
    DrakkarError,
    ExtensionFailed,
    HandlerTableError,
    MissingExtension,
    ProtocolViolation,
    RequestDropped,
    Vetoed,
)
from drakkar.handlers.extension import LATER, Extension, delivers, handles
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, Transition
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import Entries, Entry, Run
from drakkar.handlers.raft.lives import Life, Lives, Meeting, Standing, founding_id, home_number
from drakkar.handlers.raft.log import EntriesNotLoaded, Storage
from drakkar.handlers.raft.matrix import raft_handlers
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.progress import Progress, ProgressState
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Changed, Dropped, LogQueryResult, ReadReady, Ready, Refusal
from drakkar.handlers.raft.state import HardState, Membership, Snapshot, State
from drakkar.handlers.services import NodeServices
from drakkar.handlers.table import SWALLOW, HandlerTable, Ignore, Never, Tally
from drakkar.handlers.table_node import NodeReady, TableNode
from drakkar.handlers.timers import Timer, Timers

__all__ = [
    "LATER",
    "SWALLOW",
    "Answer",
    "Change",
    "ChangeType",
    "Changed",
    "ConfigChange",
    "ConfigError",
    "CorruptData",
    "DrakkarError",
    "Dropped",
    "Effects",
    "Entries",
    "EntriesNotLoaded",
    "Entry",
    "EntryKind",
    "Extension",
    "ExtensionFailed",
    "Failure",
    "HandlerTable",
    "HandlerTableError",
    "HardState",
    "Ignore",
    "Life",
    "Lives",
    "LogQueryResult",
    "Meeting",
    "Membership",
    "MemoryLog",
    "Message",
    "MessageType",
    "MissingExtension",
    "Never",
    "NodeReady",
    "NodeServices",
    "Progress",
    "ProgressState",
    "ProtocolViolation",
    "Raft",
    "RaftConfig",
    "ReadReady",
    "Ready",
    "Refusal",
    "RequestDropped",
    "Run",
    "Snapshot",
    "Standing",
    "State",
    "Storage",
    "TableNode",
    "Tally",
    "Timer",
    "Timers",
    "Told",
    "Transition",
    "Vetoed",
    "delivers",
    "founding_id",
    "handles",
    "home_number",
    "raft_handlers",
]
