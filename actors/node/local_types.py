"""The types of the messages that a node gets from its own host: from its disk, its state machine and its clients.

They are local: a message of a peer that claims such a type is dropped and counted by the transport.
"""

from typing import Final

from drakkar.handlers.messages import MessageType
from drakkar.handlers.traits import Term, Traits

__all__ = [
    "ENTRIES_APPLIED",
    "EXPORT_CHECKED",
    "EXPORT_ENDED",
    "EXPORT_WRITTEN",
    "PEER_SNAPSHOT_WRITTEN",
    "PROPOSALS_TAKEN",
    "REQUESTS_TAKEN",
    "SAVED",
    "SNAPSHOT_DAMAGED",
    "SNAPSHOT_LOADED",
    "SNAPSHOT_RECORDED",
    "SNAPSHOT_SENT",
    "SNAPSHOT_WRITTEN",
]


def _own(name: str, number: int) -> MessageType:
    """Make a type of this room's own; its numbers are from 200 to 219."""
    return MessageType._add(name, number, Traits(Term.NONE, local=True, wakes=False))


SAVED: Final = _own("SAVED", 200)
ENTRIES_APPLIED: Final = _own("ENTRIES_APPLIED", 201)
SNAPSHOT_LOADED: Final = _own("SNAPSHOT_LOADED", 202)
SNAPSHOT_WRITTEN: Final = _own("SNAPSHOT_WRITTEN", 203)
SNAPSHOT_RECORDED: Final = _own("SNAPSHOT_RECORDED", 204)
PEER_SNAPSHOT_WRITTEN: Final = _own("PEER_SNAPSHOT_WRITTEN", 205)
SNAPSHOT_SENT: Final = _own("SNAPSHOT_SENT", 206)
SNAPSHOT_DAMAGED: Final = _own("SNAPSHOT_DAMAGED", 207)
EXPORT_CHECKED: Final = _own("EXPORT_CHECKED", 208)
EXPORT_WRITTEN: Final = _own("EXPORT_WRITTEN", 209)
EXPORT_ENDED: Final = _own("EXPORT_ENDED", 210)
PROPOSALS_TAKEN: Final = _own("PROPOSALS_TAKEN", 211)
REQUESTS_TAKEN: Final = _own("REQUESTS_TAKEN", 212)
