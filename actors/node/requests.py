"""What clients ask of a replica, beside proposals. Each is answered by its future, by its deadline."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import DrakkarError
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.raft import Raft

__all__ = [
    "AppliedRequest",
    "ClientRequest",
    "CoreCall",
    "LogQuery",
    "ReadRequest",
    "SnapshotRequest",
    "TransferRequest",
]


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


@dataclass(frozen=True, slots=True)
class LogQuery(_Single):
    """Read the committed entries from `first` up to, but without, `end`: of `max_bytes`, but at least one."""

    first: int
    end: int
    max_bytes: int
    future: ActorFuture[Entries]
    deadline: float
    """In seconds of the node's clock."""


@dataclass(frozen=True, slots=True)
class CoreCall(_Single):
    """Call a function with the node's core, in its turn; `future` is set to what it returns."""

    function: Callable[[Raft], Any]
    future: ActorFuture[Any]

    deadline: ClassVar[float] = math.inf
    """None is needed: the node's next turn makes the call."""

    def execute(self, raft: Raft) -> None:
        """Make the call; a `DrakkarError` goes to the future alone."""
        try:
            result = self.function(raft)
        except DrakkarError as error:
            self.future.try_fail(error)
        else:
            self.future.try_set(result)


ClientRequest: TypeAlias = (
    ReadRequest | TransferRequest | AppliedRequest | SnapshotRequest | LogQuery | CoreCall
)
