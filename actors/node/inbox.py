"""`NodeInbox`: all that comes to a node, in five lanes.

    completions  from its own disk, state machine and host: never refused, and taken first
    the queue    messages of other replicas, and ticks: one by one; bounded in number, and in bytes of their entries
    proposals    commands of clients: many at once, after the messages
    requests     reads, transfers and snapshots of clients: all at once, after the proposals
    own          messages of the application's own types, from this process: some at once, after the requests

Whichever of them something comes into, the node gets one turn for all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

from drakkar.actors.node.completions import Written, own_type
from drakkar.actors.node.proposals import Proposal
from drakkar.actors.node.requests import ClientRequest, OwnMessage
from drakkar.actors.runtime.inbox import Inbox, Lane
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.errors import SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.state import Snapshot
from pykka._envelope import Envelope

__all__ = ["NodeInbox", "OwnMessagesTaken", "ProposalsTaken", "RequestsTaken", "entry_bytes"]

MAX_OWN_MESSAGES: Final = 10_000
"""Messages of an application's own types, from this process, that may wait."""


@dataclass(frozen=True, slots=True)
class ProposalsTaken:
    """The proposals that waited longest, as one message of the node to itself."""

    type: ClassVar[MessageType] = own_type("PROPOSALS_TAKEN", 211)
    proposals: list[Proposal]


@dataclass(frozen=True, slots=True)
class RequestsTaken:
    """All requests that waited, as one message of the node to itself."""

    type: ClassVar[MessageType] = own_type("REQUESTS_TAKEN", 212)
    requests: list[ClientRequest]


@dataclass(frozen=True, slots=True)
class OwnMessagesTaken:
    """The messages of the application's own types that waited longest, as one message of the node to itself."""

    type: ClassVar[MessageType] = own_type("OWN_MESSAGES_TAKEN", 216)
    messages: list[OwnMessage]


class NodeInbox(Inbox):
    """A node's inbox. Clients put proposals and requests into its lanes, from any thread."""

    __slots__ = (
        "_arrivals",
        "_background",
        "_files",
        "_max_age",
        "_max_bytes",
        "_now",
        "entry_bytes",
        "expired",
        "own",
        "proposals",
        "requests",
    )

    def __init__(
        self,
        owner: str,
        files: Snapshots,
        background: WorkerPool,
        *,
        max_messages: int,
        max_commands: int,
        max_bytes: int,
        max_requests: int,
        max_age: float,
        now: Callable[[], float],
    ) -> None:
        """Set the bounds of the lanes: `max_commands` and `max_bytes` are those of the proposals.

        `max_bytes` also bounds the entries of the messages in the queue, and the payloads of the application's own. One message
        may exceed it alone.
        `max_age` is the time, in seconds of the clock `now`, after which a perishable message is worth nothing.
        `files` of snapshots that come when the node has ended are deleted in `background`.
        """
        super().__init__(owner, max_messages)
        self._files, self._background, self._max_bytes = files, background, max_bytes
        self.entry_bytes = 0
        """Bytes of the entries in the queue, as `Entries.size` counts them. Entries come and go in the loop's
        thread only."""
        self._max_age, self._now = max_age, now
        self._arrivals: dict[int, float] = {}
        """When the perishable messages in the queue came, by their identity in memory."""
        self.expired = 0
        """Perishable messages that waited for longer than `max_age`."""
        self.proposals: Lane[Proposal] = Lane(self, "commands", max_count=max_commands, max_bytes=max_bytes)
        self.requests: Lane[ClientRequest] = Lane(self, "requests", max_count=max_requests)
        self.own: Lane[OwnMessage] = Lane(self, "messages", max_count=MAX_OWN_MESSAGES, max_bytes=max_bytes)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message. Raises `SystemBusy` also where its entries are too many bytes beside those that wait.

        A leader finds out by its next heartbeat that such an append was not heard, and sends the entries again. A proposal
        is refused by the host: see `NodeActor.refuse_untaken`.
        """
        message = envelope.message
        size = entry_bytes(message) if type(message) is Message else 0
        if size and self.entry_bytes and self.entry_bytes + size > self._max_bytes:
            self.refused += 1
            raise SystemBusy(
                f"{self.entry_bytes} bytes of entries wait for {self.owner}, which takes up to {self._max_bytes}: wait a "
                "little and send it again, or raise the host's max_waiting_bytes"
            )
        if type(message) is Message and message.type.traits.perishable:
            self._put_perishable(envelope)
        else:
            super().put(envelope)
        self.entry_bytes += size

    def _put_perishable(self, envelope: Envelope[Any]) -> None:
        # Before it is put: the loop may take it at once.
        self._arrivals[id(envelope.message)] = self._now()
        try:
            super().put(envelope)
        except BaseException:
            self._arrivals.pop(id(envelope.message), None)
            raise

    def waited_too_long(self, message: Message) -> bool:
        """A perishable message has left the queue: return whether it is worth nothing any more, and count it then."""
        late = self._now() > self._arrivals.pop(id(message), math.inf) + self._max_age
        self.expired += late
        return late

    def is_half(self, size: int) -> bool:
        """Return whether so many bytes of entries are more than half of its bound."""
        return size > self._max_bytes // 2

    def taken(self, message: Message) -> None:
        """A message has left the queue."""
        self.entry_bytes -= entry_bytes(message)

    def dropped(self, message: Any) -> None:
        """Let go of the file of a snapshot that came too late. From any thread."""
        if isinstance(message, Written):
            if isinstance(message.outcome, Snapshot) and message.outcome.payload:
                self._background.submit(partial(self._files.discard, message.outcome.payload.decode()))
        elif type(message) is Message and message.snapshot is not None and message.snapshot.payload:
            self._background.submit(partial(_give_back, self._files, message.snapshot.payload.decode()))

    @property
    def refusals(self) -> dict[str, int]:
        """How many each lane refused, since it was full. From any thread."""
        return {
            "messages": self.refused,
            "proposals": self.proposals.refused,
            "requests": self.requests.refused,
            "own messages": self.own.refused,
        }


def entry_bytes(message: Message) -> int:
    """Bytes of the entries of a message, as `Entries.size` counts them."""
    return Entries.of(message.entries).size if message.entries else 0


def _give_back(files: Snapshots, name: str) -> None:
    """Delete a file that the host has pinned."""
    files.discard(name)
    files.unpin(name)
