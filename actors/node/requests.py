"""What clients ask of a replica, beside proposals. Each is answered by its future, by its deadline."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.entries import Entries

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "AppliedRequest",
    "AssignGroups",
    "ClientRequest",
    "ForgetLeader",
    "GroupsConsistent",
    "LogQuery",
    "OwnMessage",
    "ReadRequest",
    "SnapshotRequest",
    "TransferRequest",
]

DEFAULT_TIMEOUT_S: Final = 5.0
"""How long a client waits for an answer, where it does not say."""


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


# Nor is this one, for the same reason.
@dataclass(slots=True, eq=False)
class OwnMessage(_Single):
    """A message of an application's own type for this replica: told, or asked for an answer. It has a lane of its own."""

    message: Message
    """No other one is this very object: an answer names it."""
    future: ActorFuture[Any]
    """Gets the answer if it is asked. If it is told, only why it was not taken."""
    deadline: float
    """In seconds of the node's clock."""
    size: int = 0
    """Bytes of its payload, as far as that could be sent to other hosts."""
    asked: bool = True


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


class _Now(_Single):
    """It is answered in the node's next turn, so it needs no deadline."""

    __slots__ = ()
    deadline: ClassVar[float] = math.inf


@dataclass(frozen=True, slots=True)
class ForgetLeader(_Now):
    """Do as if no leader were known."""

    future: ActorFuture[None]


@dataclass(frozen=True, slots=True)
class AssignGroups(_Now):
    """Say where replicas stand, for group commit: a group for each replica id, with 0 for none."""

    groups: Mapping[int, int]
    future: ActorFuture[None]


@dataclass(frozen=True, slots=True)
class GroupsConsistent(_Now):
    """Tell whether two groups hold all that is committed; `future` is set to None where that is not known."""

    future: ActorFuture[bool | None]


ClientRequest: TypeAlias = (
    ReadRequest
    | TransferRequest
    | AppliedRequest
    | SnapshotRequest
    | LogQuery
    | ForgetLeader
    | AssignGroups
    | GroupsConsistent
)
