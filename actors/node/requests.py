"""What clients ask of a replica, beside proposals. Each is answered by its future, by its deadline."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from drakkar.actors.runtime.futures import ActorFuture

__all__ = ["AppliedRequest", "ClientRequest", "ReadRequest", "SnapshotRequest", "TransferRequest"]


class _Single:
    """It takes one place in the lane of requests, and no bytes."""

    __slots__ = ()
    count = 1
    size = 0


# Not frozen: each read makes one, and a frozen class takes twice as long to make.
@dataclass(slots=True, eq=False)
class ReadRequest(_Single):
    """A question for the state machine, to be answered from a state no older than now."""

    query: Any
    future: ActorFuture[Any]
    deadline: float
    """In seconds of the node's clock."""
    stale: bool = False
    """The state as it is here and now will do."""


@dataclass(frozen=True, slots=True)
class TransferRequest(_Single):
    """Ask for `target` to become leader; `future` is set to its id once this replica sees it lead."""

    target: int
    future: ActorFuture[Any]
    deadline: float
    """In seconds of the node's clock."""


@dataclass(frozen=True, slots=True)
class AppliedRequest(_Single):
    """Wait until all up to `index` is applied here; `future` is set to the last index that is."""

    index: int
    future: ActorFuture[Any]
    deadline: float
    """In seconds of the node's clock."""


@dataclass(frozen=True, slots=True)
class SnapshotRequest(_Single):
    """Ask for a snapshot; `future` is set to its index."""

    future: ActorFuture[Any]
    deadline: float
    """In seconds of the node's clock."""
    overhead: int | None = None
    """Entries to keep behind it; None as the options say."""
    export: Path | None = None
    """Write it to this file, and leave the log, and the snapshot that is kept, as they are."""


ClientRequest: TypeAlias = ReadRequest | TransferRequest | AppliedRequest | SnapshotRequest
