"""What came of the work that a node ordered: messages from its own disk, state machine and host.

Each has a `MessageType` of its own, as the messages of other replicas do, so that a node's whole life is one sequence of
typed messages, which `NodeActor.on_receive` sees one by one. They are local: they have no form on the wire, and a message
of a peer that claims such a type is dropped and counted there.
"""

from dataclasses import dataclass
from typing import ClassVar

from drakkar.actors.machine.applier import Applied
from drakkar.handlers.errors import CorruptData, DrakkarError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.ready import Ready
from drakkar.handlers.raft.state import Snapshot
from drakkar.handlers.traits import Term, Traits

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
    "Written",
    "own_type",
]


def own_type(name: str, number: int) -> MessageType:
    """Make a type for messages of a node's own host; the numbers from 200 to 219 are for them."""
    return MessageType.reserve(name, number, Traits(Term.NONE, local=True, wakes=False))


class Completion:
    """What came of work that a node ordered."""

    __slots__ = ()
    type: ClassVar[MessageType]


@dataclass(frozen=True, slots=True)
class Saved(Completion):
    """The log store has made the work of `ready` durable, or never will: then `error` says why."""

    type: ClassVar[MessageType] = own_type("SAVED", 200)
    ready: Ready
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class EntriesApplied(Completion):
    """The state machine has applied entries: how far, and with which results; or what it failed with."""

    type: ClassVar[MessageType] = own_type("ENTRIES_APPLIED", 201)
    outcome: Applied | BaseException


@dataclass(frozen=True, slots=True)
class SnapshotLoaded(Completion):
    """The state machine has loaded a snapshot: a leader's or, at the start, its own."""

    type: ClassVar[MessageType] = own_type("SNAPSHOT_LOADED", 202)
    snapshot: Snapshot
    extensions: bytes = b""
    """The encoded state of the extensions, which is part of it; none, if it has none."""


class Written(Completion):
    """The state machine has written a snapshot, of which only this completion knows; or what went wrong."""

    __slots__ = ()
    outcome: Snapshot | BaseException


@dataclass(frozen=True, slots=True)
class SnapshotWritten(Written):
    """The snapshot is the next that this replica keeps."""

    type: ClassVar[MessageType] = own_type("SNAPSHOT_WRITTEN", 203)
    outcome: Snapshot | BaseException


@dataclass(frozen=True, slots=True)
class SnapshotRecorded(Completion):
    """The log store has recorded a snapshot, or has not: then `error` says why."""

    type: ClassVar[MessageType] = own_type("SNAPSHOT_RECORDED", 204)
    snapshot: Snapshot
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class PeerSnapshotWritten(Written):
    """The snapshot, of a state machine on disk, is for `message`, which goes to `address`."""

    type: ClassVar[MessageType] = own_type("PEER_SNAPSHOT_WRITTEN", 205)
    address: str
    message: Message
    outcome: Snapshot | BaseException


@dataclass(frozen=True, slots=True)
class SnapshotSent(Completion):
    """The stream of a snapshot to `peer` has ended."""

    type: ClassVar[MessageType] = own_type("SNAPSHOT_SENT", 206)
    peer: int
    failed: bool


@dataclass(frozen=True, slots=True)
class SnapshotDamaged(Completion):
    """The file of a snapshot could not be read whole."""

    type: ClassVar[MessageType] = own_type("SNAPSHOT_DAMAGED", 207)
    snapshot: Snapshot
    error: CorruptData


@dataclass(frozen=True, slots=True)
class ExportChecked(Completion):
    """The file of the first export in line can be written, or cannot: then `error` says why."""

    type: ClassVar[MessageType] = own_type("EXPORT_CHECKED", 208)
    error: DrakkarError | None


@dataclass(frozen=True, slots=True)
class ExportWritten(Written):
    """The snapshot is to be exported."""

    type: ClassVar[MessageType] = own_type("EXPORT_WRITTEN", 209)
    outcome: Snapshot | BaseException


@dataclass(frozen=True, slots=True)
class ExportEnded(Completion):
    """The first export in line has ended: with the index of its snapshot, or with what went wrong."""

    type: ClassVar[MessageType] = own_type("EXPORT_ENDED", 210)
    outcome: int | DrakkarError
