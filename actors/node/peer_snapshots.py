"""The snapshots that a leader sends to peers that are too far behind for its log (thesis chapter 5)."""

from dataclasses import replace
from typing import Final, Protocol

from drakkar.actors.machine.applier import Applier, SaveRequest
from drakkar.actors.machine.state_machine import DiskStateMachine
from drakkar.actors.node.completions import PeerSnapshotWritten, SnapshotDamaged, SnapshotSent
from drakkar.actors.node.extension_states import ExtensionStates
from drakkar.actors.runtime.futures import brief
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Snapshot

__all__ = ["PeerSnapshots", "Streams"]

STATUS_DELAY_TICKS: Final = 10
"""Ticks after which the core believes that a stream ended as it was told: the peer's own answer says more."""


class Streams(Protocol):
    """What a host does to send snapshots. Called in the loop's thread; never blocks."""

    def send_snapshot(self, address: str, message: Message, *, temporary: bool) -> None:
        """Stream the file of an INSTALL_SNAPSHOT to the host at `address`, and tell the node how that ended.

        A `temporary` one is discarded afterwards.
        """


class PeerSnapshots:
    """Sends snapshots to peers. All methods but two are for the loop's thread."""

    def __init__(
        self,
        raft: Raft,
        applier: Applier,
        *,
        streams: Streams,
        inbox: Inbox,
        lines: Lines,
        extensions: ExtensionStates,
    ) -> None:
        """`inbox` is the node's, for completions."""
        self._lines, self._extensions = lines, extensions
        self._raft, self._applier = raft, applier
        self._streams, self._inbox = streams, inbox
        self._on_disk = isinstance(applier.machine, DiskStateMachine)
        self.sent = self.failed = 0
        """How many snapshots peers have stored, and how many could not be made."""
        self._bringing_up: set[int] = set()
        """Peers for which the state of a state machine on disk is being written, or sent."""

    def send(self, address: str, message: Message) -> None:
        """Send a peer a snapshot: the file that there is or, of a state machine on disk, one made for it."""
        if not self._on_disk:
            self._inbox.reserve()
            self._streams.send_snapshot(address, message, temporary=False)
            return
        point = self._raft.snapshot_point(self._applier.given)
        if point is None or message.to in self._bringing_up:
            self._tell_status(message.to, failed=True)
            return
        self._bringing_up.add(message.to)
        self._inbox.reserve()
        self._applier.save(
            SaveRequest(
                point,
                lambda outcome: self._inbox.complete(PeerSnapshotWritten(address, message, outcome)),
                whole=True,
                extensions=self._extensions.at(point.index),
            )
        )

    def on_written(self, done: PeerSnapshotWritten) -> None:
        """Send the snapshot that was made for a peer."""
        message, outcome = done.message, done.outcome
        if isinstance(outcome, Snapshot):
            self._inbox.reserve()
            self._streams.send_snapshot(done.address, replace(message, snapshot=outcome), temporary=True)
            return
        self._lines.error("no snapshot could be made for replica %d: %s", message.to, brief(outcome))
        self.failed += 1
        self.on_sent(SnapshotSent(message.to, failed=True))

    def was_sent(self, peer: int, *, failed: bool) -> None:
        """For the host: the stream of a snapshot to `peer` has ended. From any thread."""
        self._inbox.complete(SnapshotSent(peer, failed))

    def on_sent(self, done: SnapshotSent) -> None:
        """Tell the core that a peer has its snapshot, or has not: then it is tried again."""
        self._bringing_up.discard(done.peer)
        self.sent += not done.failed
        self._tell_status(done.peer, failed=done.failed)

    def _tell_status(self, peer: int, *, failed: bool) -> None:
        self._raft.step(
            Message(MessageType.SNAPSHOT_STATUS, sender=peer, reject=failed, hint=STATUS_DELAY_TICKS)
        )

    def found_damaged(self, snapshot: Snapshot, error: CorruptData) -> None:
        """For the host: the file of a snapshot could not be read whole. In the loop's thread, as it was not ordered."""
        self._inbox.reserve()
        self._inbox.complete(SnapshotDamaged(snapshot, error))
