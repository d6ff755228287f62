"""What a `Raft` hands to its host: work, and reports on requests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from drakkar.handlers.effects import Answer, Failure, Told
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries, Entry
from drakkar.handlers.raft.lives import Lives
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = ["MAX_TEXT", "REFUSAL_OF", "Changed", "Dropped", "LogQueryResult", "ReadReady", "Ready", "Refusal"]


MAX_TEXT: Final = 500
"""Characters of the text with which a handler refuses a request."""


class Refusal(Enum):
    """Why a request was dropped. It surely has no effect, and may be repeated.

    One exception is a transfer that was given up: a target that was asked to campaign may still win the election.
    """

    NO_LEADER = "no leader is known"
    CAMPAIGNING = "an election is going on"
    TRANSFERRING = "a leadership transfer is in progress"
    NOT_A_MEMBER = "the leader is no member any more"
    TOO_MANY_UNCOMMITTED = "the leader holds too many bytes that are not yet committed"
    DISK_FULL = "the disk of the leader is full"
    TOO_LARGE = (
        "the leader's host takes no commands of that size: make them smaller, or raise its max_command_bytes"
    )
    CHANGE_PENDING = "another membership change is not yet applied"
    VOTER_UNSETTLED = "a voter that was added, or has lost its disk, may not vote before it is settled"
    QUORUM_UNREACHABLE = "too few voters of the new membership can be reached now"
    CHANGE_INVALID = "this membership change is not allowed now"
    FORWARDING_DISABLED = "this replica does not forward proposals"
    TOO_MANY_READS = "too many reads are waiting"
    STEPPED_DOWN = "the leader stepped down"
    BAD_TARGET = "the target of the transfer is no voter"
    ALREADY_LEADER = "the target of the transfer leads already"
    TRANSFER_TIMED_OUT = "the target of the transfer did not take over within an election timeout"
    TRANSFER_REPLACED = "a transfer to another target took its place"
    TRANSFER_CALLED_OFF = "the transfer was called off"
    NOT_SENT = "it could not be sent to the leader"
    KIND_MISSING = "not all replicas that keep commands have said that they take records of this kind"
    VETOED = "a handler refused it"
    QUERY_PENDING = "the answer of another log query was not collected yet"

    @classmethod
    def named(cls, name: object) -> "Refusal":
        """The reason of that name, which came from another host; NO_LEADER for one of a later version."""
        return cls[name] if isinstance(name, str) and name in cls.__members__ else cls.NO_LEADER


REFUSAL_OF: Final = {
    MessageType.PROPOSE: MessageType.PROPOSE_REFUSED,
    MessageType.READ_INDEX: MessageType.READ_REFUSED,
    MessageType.LEADER_TRANSFER: MessageType.TRANSFER_REFUSED,
}
"""How a replica that forwarded a request is told that it was refused."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A request that this replica, or the leader that it was sent on to, did not take or has given up.

    For a PROPOSE, `origin`, `key` and `count` name the proposals: those with the keys `key`..`key + count - 1`.
    For a READ_INDEX they are the read's context (`origin` is its hint, `key` its hint_high).
    For a LEADER_TRANSFER, `key` is the target; it also comes when a transfer that was begun is given up.
    """

    type: MessageType
    because: Refusal
    origin: int = 0
    key: int = 0
    count: int = 1
    entries: Sequence[Entry] = ()
    replicas: tuple[int, ...] = ()
    """The voters that cannot be reached, or were not met yet, or the replicas that lack the kind, where that is the reason."""
    text: str = ""
    """What the handler says that refused it: for VETOED. At most `MAX_TEXT` characters."""

    @property
    def reason(self) -> str | list[Any]:
        """The payload that tells another replica why: a name, or a list of the name and what belongs to it."""
        name = self.because.name
        if self.text:
            return [name, self.text]
        return [name, *self.replicas] if self.replicas else name


@dataclass(frozen=True, slots=True)
class ReadReady:
    """A read of this host's may be served once all up to `index` is applied (thesis §6.4)."""

    index: int
    context: tuple[int, int]
    """The READ_INDEX's hint and hint_high."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A membership change was applied, or rejected by its rules; `origin` and `key` name who asked for it."""

    index: int
    membership: Membership
    rejected: str = ""
    """The rule that it broke; empty where it was applied."""
    origin: int = 0
    key: int = 0


@dataclass(frozen=True, slots=True)
class LogQueryResult:
    """Committed entries that were asked for; `out_of_range` where they are compacted away or not committed yet."""

    first_index: int
    """The oldest entry that can be asked for."""
    end: int
    """The index behind the newest one that can be asked for."""
    entries: Entries = field(default_factory=Entries)
    out_of_range: bool = False


_NO_ENTRIES: Final = Entries()


@dataclass(slots=True, eq=False)
class Ready:
    """What the host has to do now. Each piece of work is handed out once.

    0. Drop what equals a message in `recalled` where it still waits: in the transport, if that can drop it, or for step 3.
    1. Hand `messages` to the transport: they rest on nothing that is still to be saved.
    2. Make `snapshot`, then `entries`, `hard_state` and `lives` durable, in one step. `entries` replace all that stood at
       or behind their first index; a `snapshot` replaces the whole log.
    3. When that, and the work of every earlier `Ready`, is durable: call `Raft.persisted(ready)` and hand
       `messages_after_save` to the transport.
    4. Load `snapshot`, then apply `committed`, to the state machine; then call `Raft.applied(index)`.

    Steps 2 and 4 may run beside each other and beside the next `Ready`, but each in its own order. A change of
    nothing but the commit index (`hard_state.commit`) need not be flushed.
    """

    number: int = 0
    """Counts up with each `Ready`: a completion names the write that it completes."""
    hard_state: HardState | None = None
    entries: Entries = _NO_ENTRIES
    snapshot: Snapshot | None = None
    messages: list[Message] = field(default_factory=list)
    messages_after_save: list[Message] = field(default_factory=list)
    recalled: list[Message] = field(default_factory=list)
    """Messages that an earlier `Ready` handed out and that should not leave any more: the TIMEOUT_NOW of a transfer
    that is over."""
    committed: Entries = _NO_ENTRIES
    reads: list[ReadReady] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What the operator of this host must know."""
    log_query: LogQueryResult | None = None
    lives: Lives | None = None
    """What is to be remembered of this replica's life from now on. All messages wait until it is durable.

    Until then others are told what was durable before, also with messages of an earlier `Ready`."""
    # Most have none of these, so they get no lists of their own.
    tells: Sequence[Told] = ()
    """Messages for other actors, to be told after the batch."""
    events: Sequence[Any] = ()
    """What handlers publish."""
    answers: Sequence[Answer] = ()
    """Answers to messages that were asked in this process."""
    failures: Sequence[Failure] = ()
    """Messages of timers whose handlers failed: to be logged."""
    must_save: bool = False
    """Something more than the commit index is to be made durable."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(
            self.messages
            or self.messages_after_save
            or self.committed
            or self.must_save
            or self.hard_state is not None
            or self.reads
            or self.dropped
            or self.changes
            or self.warnings
            or self.log_query
            or self.recalled
            or self.tells
            or self.events
            or self.answers
            or self.failures
        )
