"""What came of the work that a node ordered: messages from its own disk, state machine and host.

Each has a `MessageType` of its own, as the messages of other replicas do, so that a node's whole life is one sequence of
typed messages, which `NodeActor.on_receive` sees one by one. They are local: they have no form on the wire, and a message
of a peer that claims such a type is dropped and counted there.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from drakkar.actors.machine.applier import Applied
from drakkar.actors.node.local_types import (
    ENTRIES_APPLIED,
    EXPORT_CHECKED,
    EXPORT_ENDED,
    EXPORT_WRITTEN,
    PEER_SNAPSHOT_WRITTEN,
    SAVED,
    SNAPSHOT_DAMAGED,
    SNAPSHOT_LOADED,
    SNAPSHOT_RECORDED,
    SNAPSHOT_SENT,
    SNAPSHOT_WRITTEN,
)
from drakkar.handlers.errors import CorruptData, DrakkarError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.ready import Ready
from drakkar.handlers.raft.state import Snapshot

__all__ = [
    "Completion",
    "EntriesApplied",
    "ExportChecked",
    "ExportEnded",
    "ExportWritten",
    "PeerSnapshotWritten",
    "Saved",
    "SnapshotDamaged",
    "SnapshotLoaded",
    "SnapshotRecorded",
    "SnapshotSent",
    "SnapshotWritten",
]


@dataclass(frozen=True, slots=True)
class Saved:
    """The log store has made the work of `ready` durable, or never will: then `error` says why."""

    type: ClassVar[MessageType] = SAVED
    ready: Ready
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class EntriesApplied:
    """The state machine has applied entries: how far, and with which results; or what it failed with."""

    type: ClassVar[MessageType] = ENTRIES_APPLIED
    outcome: Applied | BaseException


@dataclass(frozen=True, slots=True)
class SnapshotLoaded:
    """The state machine has loaded a leader's snapshot."""

    type: ClassVar[MessageType] = SNAPSHOT_LOADED
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class SnapshotWritten:
    """The state machine has written the snapshot that this replica takes; or what went wrong."""

    type: ClassVar[MessageType] = SNAPSHOT_WRITTEN
    outcome: Snapshot | BaseException


@dataclass(frozen=True, slots=True)
class SnapshotRecorded:
    """The log store has recorded a snapshot, or has not: then `error` says why."""

    type: ClassVar[MessageType] = SNAPSHOT_RECORDED
    snapshot: Snapshot
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class PeerSnapshotWritten:
    """A state machine on disk has written the snapshot for `message`, which goes to `address`; or what went wrong."""

    type: ClassVar[MessageType] = PEER_SNAPSHOT_WRITTEN
    address: str
    message: Message
    outcome: Snapshot | BaseException


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """The stream of a snapshot to `peer` has ended."""

    type: ClassVar[MessageType] = SNAPSHOT_SENT
    peer: int
    failed: bool


@dataclass(frozen=True, slots=True)
class SnapshotDamaged:
    """The file of a snapshot could not be read whole."""

    type: ClassVar[MessageType] = SNAPSHOT_DAMAGED
    snapshot: Snapshot
    error: CorruptData


@dataclass(frozen=True, slots=True)
class ExportChecked:
    """The file of the first export in line can be written, or cannot: then `error` says why."""

    type: ClassVar[MessageType] = EXPORT_CHECKED
    error: DrakkarError | None


@dataclass(frozen=True, slots=True)
class ExportWritten:
    """The state machine has written the snapshot that is to be exported; or what went wrong."""

    type: ClassVar[MessageType] = EXPORT_WRITTEN
    outcome: Snapshot | BaseException


@dataclass(frozen=True, slots=True)
class ExportEnded:
    """The first export in line has ended: with the index of its snapshot, or with what went wrong."""

    type: ClassVar[MessageType] = EXPORT_ENDED
    outcome: int | DrakkarError


Completion: TypeAlias = (
    Saved
    | EntriesApplied
    | SnapshotLoaded
    | SnapshotWritten
    | SnapshotRecorded
    | PeerSnapshotWritten
    | SnapshotSent
    | SnapshotDamaged
    | ExportChecked
    | ExportWritten
    | ExportEnded
)
