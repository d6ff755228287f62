"""Messages and their types, for any protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, Final, TypeAlias

from drakkar.handlers.checks import is_whole
from drakkar.handlers.errors import HandlerTableError
from drakkar.handlers.numbered import Numbered, clash
from drakkar.handlers.traits import Term, Traits

__all__ = ["PEER_NEWS", "Message", "MessageType", "NodeId", "is_own"]

NodeId: TypeAlias = Any
"""How nodes are told apart: the id of a replica, or the name of a node without Raft."""


class MessageType(Numbered):
    """The type of a message: an integer with a name. It is the second key of the handler table.

    It works as an enum that users extend: `MessageType.define("audit.ping", 1000)` adds a type. `MessageType(12)`
    looks up a type by number (`ValueError` if unknown), `MessageType["REPLICATE"]` by name (`KeyError` if unknown).

    Types are shared by the whole process. Define yours when your module is imported; do not define types from two
    threads at once.
    """

    what: ClassVar[str] = "message type"
    traits: Traits
    """Facts that hold for every message of this type."""
    known: ClassVar[dict[int, "MessageType"]] = {}
    """All types, by number."""
    FIRST_FREE: ClassVar[int] = 1000
    """The lowest number for types of users; lower ones are Raft's."""

    LOCAL_TICK: ClassVar["MessageType"]
    ELECTION: ClassVar["MessageType"]
    LEADER_HEARTBEAT: ClassVar["MessageType"]
    CONFIG_CHANGE_EVENT: ClassVar["MessageType"]
    NO_OP: ClassVar["MessageType"]
    PING: ClassVar["MessageType"]
    PONG: ClassVar["MessageType"]
    PROPOSE: ClassVar["MessageType"]
    SNAPSHOT_STATUS: ClassVar["MessageType"]
    UNREACHABLE: ClassVar["MessageType"]
    CHECK_QUORUM: ClassVar["MessageType"]
    BATCHED_READ_INDEX: ClassVar["MessageType"]
    REPLICATE: ClassVar["MessageType"]
    REPLICATE_RESP: ClassVar["MessageType"]
    REQUEST_VOTE: ClassVar["MessageType"]
    REQUEST_VOTE_RESP: ClassVar["MessageType"]
    INSTALL_SNAPSHOT: ClassVar["MessageType"]
    HEARTBEAT: ClassVar["MessageType"]
    HEARTBEAT_RESP: ClassVar["MessageType"]
    READ_INDEX: ClassVar["MessageType"]
    READ_INDEX_RESP: ClassVar["MessageType"]
    QUIESCE: ClassVar["MessageType"]
    SNAPSHOT_RECEIVED: ClassVar["MessageType"]
    LEADER_TRANSFER: ClassVar["MessageType"]
    TIMEOUT_NOW: ClassVar["MessageType"]
    RATE_LIMIT: ClassVar["MessageType"]
    REQUEST_PRE_VOTE: ClassVar["MessageType"]
    REQUEST_PRE_VOTE_RESP: ClassVar["MessageType"]
    LOG_QUERY: ClassVar["MessageType"]
    PROPOSE_REFUSED: ClassVar["MessageType"]
    READ_REFUSED: ClassVar["MessageType"]
    TRANSFER_REFUSED: ClassVar["MessageType"]
    REMOVAL_QUERY: ClassVar["MessageType"]
    REMOVED: ClassVar["MessageType"]
    SNAPSHOT_REQUEST: ClassVar["MessageType"]
    DISK_HUNG: ClassVar["MessageType"]
    LOG_FULL: ClassVar["MessageType"]
    DISK_FULL: ClassVar["MessageType"]
    DISK_ROOM: ClassVar["MessageType"]
    ENTRIES_LOADED: ClassVar["MessageType"]
    COMMIT: ClassVar["MessageType"]
    COMMIT_DUE: ClassVar["MessageType"]
    LANE_DRAINED: ClassVar["MessageType"]
    NOT_SENT: ClassVar["MessageType"]
    NEWBORN: ClassVar["MessageType"]
    NEWBORN_RESP: ClassVar["MessageType"]
    CONTRADICTION: ClassVar["MessageType"]
    CONTRADICTION_RESP: ClassVar["MessageType"]
    LEADER_GONE: ClassVar["MessageType"]

    PEER_UP: ClassVar["MessageType"]
    """At a node without Raft: its peer `sender`, a name, was found, or found again."""
    PEER_DOWN: ClassVar["MessageType"]
    """At a node without Raft: its peer `sender` ended, or is out of reach; `payload` says why."""

    @classmethod
    def _add(cls, name: str, number: int, traits: Traits | None = None) -> "MessageType":
        added = cls._make(name, number)
        if traits is not None:
            added.traits = traits
        cls.known[number] = added
        return added

    @classmethod
    def define(
        cls,
        name: str,
        number: int,
        *,
        local: bool = False,
        from_members: bool = False,
        from_any_host: bool = False,
        after_write: bool = False,
        wakes: bool = True,
        bulk: bool = False,
    ) -> "MessageType":
        """Add a message type of your own, and return it.

        `number` is from 1000 to 65535. It is sent over the wire, so all hosts must agree on it; `name` is for people.
        The other arguments are the type's `Traits`. With `after_write`, for example, a message leaves only after
        everything that its sender appended before it is durable; and without `from_any_host` it is taken only of the host
        of the member that is named as its sender. Defining the same type again returns it.

        Raises `HandlerTableError` if the number or the name belongs to another type, or if the traits differ.
        """
        if not is_whole(number, cls.FIRST_FREE, 0xFFFF):
            raise HandlerTableError(
                f"message type {name!r} has number {number!r}: choose a whole number from {cls.FIRST_FREE} to 65535"
            )
        traits = Traits(
            local=local,
            from_members=from_members,
            from_any_host=from_any_host,
            after_write=after_write,
            wakes=wakes,
            bulk=bulk,
        )
        known: MessageType | None = clash(cls, name, number)
        if known is None:
            return cls._add(name, number, traits)
        if known.traits != traits:
            raise HandlerTableError(
                f"message type {known!r} is already defined with {_difference(known.traits, traits)}: "
                "define it with the same traits everywhere"
            )
        return known

    @classmethod
    def reserve(cls, name: str, number: int, traits: Traits) -> "MessageType":
        """Add a message type of the library itself, for a room above this one, and return it.

        `number` is below 1000; those from 1000 up are for `define`. Raises `HandlerTableError` if the number is not, or
        if the number or the name belongs to another type.
        """
        if not is_whole(number, 0, cls.FIRST_FREE - 1):
            raise HandlerTableError(
                f"message type {name!r} has number {number!r}: the library's own are from 0 to {cls.FIRST_FREE - 1}"
            )
        taken = next((known for known in cls.known.values() if known == number or known.name == name), None)
        if taken is not None:
            raise HandlerTableError(
                f"message type {name!r} = {number} clashes with {taken!r}: choose another name and number"
            )
        return cls._add(name, number, traits)


def is_own(type_: MessageType | IntEnum) -> bool:
    """Return whether a type is a user's own: from number 1000 up, or of an enum of theirs."""
    return not isinstance(type_, MessageType) or type_ >= MessageType.FIRST_FREE


def _difference(known: Traits, other: Traits) -> str:
    """Return the traits of `known` that `other` does not share: "bulk=True, wakes=False"."""
    names = (field.name for field in fields(Traits))
    return ", ".join(
        f"{name}={getattr(known, name)}" for name in names if getattr(known, name) != getattr(other, name)
    )


# The numbers and the order are dragonboat's.
_BUILT_IN: Final = [
    "LOCAL_TICK",
    "ELECTION",
    "LEADER_HEARTBEAT",
    "CONFIG_CHANGE_EVENT",
    "NO_OP",
    "PING",
    "PONG",
    "PROPOSE",
    "SNAPSHOT_STATUS",
    "UNREACHABLE",
    "CHECK_QUORUM",
    "BATCHED_READ_INDEX",
    "REPLICATE",
    "REPLICATE_RESP",
    "REQUEST_VOTE",
    "REQUEST_VOTE_RESP",
    "INSTALL_SNAPSHOT",
    "HEARTBEAT",
    "HEARTBEAT_RESP",
    "READ_INDEX",
    "READ_INDEX_RESP",
    "QUIESCE",
    "SNAPSHOT_RECEIVED",
    "LEADER_TRANSFER",
    "TIMEOUT_NOW",
    "RATE_LIMIT",
    "REQUEST_PRE_VOTE",
    "REQUEST_PRE_VOTE_RESP",
    "LOG_QUERY",
    # From here on the numbers are our own: dragonboat uses a flag of another type for these, or has no such message.
    "PROPOSE_REFUSED",
    "READ_REFUSED",
    "TRANSFER_REFUSED",
    "REMOVAL_QUERY",
    "REMOVED",
    "SNAPSHOT_REQUEST",
    "DISK_HUNG",
    "LOG_FULL",
    "DISK_FULL",
    "DISK_ROOM",
    "ENTRIES_LOADED",
    "COMMIT",
    "COMMIT_DUE",
    "LANE_DRAINED",
    "NOT_SENT",
    "NEWBORN",
    "NEWBORN_RESP",
    "CONTRADICTION",
    "CONTRADICTION_RESP",
    "LEADER_GONE",
]
for _number, _name in enumerate(_BUILT_IN):
    # Their traits are Raft's rows, which `raft.matrix` adds: a type without a row has none, and fails at its first use.
    setattr(MessageType, _name, MessageType._add(_name, _number))
MessageType.PEER_UP = MessageType.reserve("PEER_UP", 220, Traits(Term.NONE, local=True, wakes=False))
MessageType.PEER_DOWN = MessageType.reserve("PEER_DOWN", 221, Traits(Term.NONE, local=True, wakes=False))

PEER_NEWS: Final = frozenset({MessageType.PEER_UP, MessageType.PEER_DOWN})
"""What a node without Raft is told of its peers. Only handlers of an application take it."""


@dataclass(slots=True)
class Message:
    """One message between replicas of a shard, between nodes without Raft, or from a host to its own node.

    Do not change a message after it was sent or stepped. Zero in a number means "none": replica ids, log indexes and
    terms begin at 1. `payload` is for message types of your own; it takes any value that CBOR encodes without tags, and is
    sent as it is at that time.

    The meaning of `log_index`, `log_term`, `commit`, `hint` and `hint_high` depends on the type. The table in
    docs/protocol.md lists it, type by field.

    On the wire, `shard` tells the receiving host which of its replicas is addressed. The core does not read it.
    """

    type: MessageType
    to: NodeId = 0
    """The id of the replica that receives the message; between nodes without Raft, the name of the node."""
    sender: NodeId = 0
    """The id of the replica, or the name of the node, that sent it. In a host's report about a peer, that of the peer."""
    shard: int = 0
    """The id of the shard."""
    term: int = 0
    """What it means is a trait of the type: see `Traits.term`."""
    log_term: int = 0
    log_index: int = 0
    commit: int = 0
    reject: bool = False
    hint: int = 0
    hint_high: int = 0
    entries: Sequence[Any] = ()
    """Raft only: `Entry` objects, or an `Entries`."""
    snapshot: Any = None
    """Raft only: a `Snapshot`."""
    payload: Any = None

    def __str__(self) -> str:
        """Return one line with the fields that are set, for traces and logs. Its length is bounded."""
        parts = [f"{self.sender}->{self.to} {self.type}"]
        numbers = ("shard", "term", "log_index", "log_term", "commit", "hint", "hint_high")
        parts += [f"{name}={value}" for name in numbers if (value := getattr(self, name))]
        if self.reject:
            parts.append("reject")
        if self.entries:
            parts.append(f"entries={len(self.entries)}")
        if self.snapshot is not None:
            parts.append(f"snapshot={self.snapshot.index}/{self.snapshot.term}")
        if self.payload is not None:
            text = repr(self.payload)
            parts.append("payload=" + (text if len(text) <= 60 else text[:57] + "..."))
        return " ".join(parts)
