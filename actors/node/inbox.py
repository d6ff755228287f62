"""`NodeInbox`: all that comes to a node, in four lanes.

    completions  from its own disk, state machine and host: never refused, and taken first
    the queue    messages of other replicas, and ticks: one by one
    proposals    commands of clients: all at once, after the messages
    requests     reads, transfers and snapshots of clients: all at once, after the proposals

Whichever of them something comes into, the node gets one turn for all.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from drakkar.actors.node.completions import Written, own_type
from drakkar.actors.node.proposals import Proposal
from drakkar.actors.node.requests import ClientRequest
from drakkar.actors.runtime.inbox import Inbox, Lane
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.state import Snapshot

__all__ = ["NodeInbox", "ProposalsTaken", "RequestsTaken"]


@dataclass(frozen=True, slots=True)
class ProposalsTaken:
    """All proposals that waited, as one message of the node to itself."""

    type: ClassVar[MessageType] = own_type("PROPOSALS_TAKEN", 211)
    proposals: list[Proposal]


@dataclass(frozen=True, slots=True)
class RequestsTaken:
    """All requests that waited, as one message of the node to itself."""

    type: ClassVar[MessageType] = own_type("REQUESTS_TAKEN", 212)
    requests: list[ClientRequest]


class NodeInbox(Inbox):
    """A node's inbox. Clients put proposals and requests into its lanes, from any thread."""

    __slots__ = ("_background", "_files", "proposals", "requests")

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
    ) -> None:
        """Set the bounds of the lanes: `max_commands` and `max_bytes` are those of the proposals.

        `files` of snapshots that come when the node has ended are deleted in `background`.
        """
        super().__init__(owner, max_messages)
        self._files, self._background = files, background
        self.proposals: Lane[Proposal] = Lane(self, "commands", max_count=max_commands, max_bytes=max_bytes)
        self.requests: Lane[ClientRequest] = Lane(self, "requests", max_count=max_requests)

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
        }


def _give_back(files: Snapshots, name: str) -> None:
    """Delete a file that the host has pinned."""
    files.discard(name)
    files.unpin(name)
