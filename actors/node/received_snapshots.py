"""The snapshots that a leader sends to this replica (thesis chapter 5).

    it has come, in a file ─► the log store records it ─► the state machine loads it ─► the core applies behind it

One that cannot be loaded ends the replica.
"""

from collections.abc import Callable
from functools import partial

from drakkar.actors.machine.applier import Applier, LoadRequest
from drakkar.actors.node.completions import SnapshotLoaded
from drakkar.actors.node.extension_states import ExtensionStates
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers.errors import StorageFailed
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Snapshot

__all__ = ["ReceivedSnapshots", "prune"]


def prune(files: Snapshots, keep: str, lines: Lines) -> None:
    """Delete all files that are not needed but `keep`. For workers; a failure is logged, and made good the next time."""
    try:
        files.prune(keep)
    except StorageFailed as error:
        lines.warning("old snapshots stay for now: %s", error)


class ReceivedSnapshots:
    """Has the state machine load a leader's snapshots. All methods are for the loop's thread."""

    def __init__(
        self,
        raft: Raft,
        applier: Applier,
        files: Snapshots,
        *,
        background: WorkerPool,
        inbox: Inbox,
        lines: Lines,
        extensions: ExtensionStates,
        loaded: Callable[[Snapshot], None],
    ) -> None:
        """`background` is for what waits for the disk; `inbox` is the node's, for completions.

        `extensions` gets what is theirs of each snapshot, the replica's own first one too. `loaded` is called with each snapshot
        that the state machine has loaded.
        """
        self._raft, self._applier, self._files = raft, applier, files
        self._background, self._lines = background, lines
        self._inbox, self._extensions, self._loaded = inbox, extensions, loaded
        self.installed = 0
        """How many the state machine has loaded."""
        self._received: dict[str, Snapshot] = {}
        """By the name of their file, which is pinned until it is loaded."""

    def take(self, message: Message) -> None:
        """The core was given a leader's snapshot. Delete its file if the core did not take it."""
        snapshot = message.snapshot
        if snapshot is None or not snapshot.payload:
            return
        self._received[snapshot.payload.decode()] = snapshot
        if self._raft.log.pending_snapshot is not snapshot:
            self._release(snapshot)

    def install(self, snapshot: Snapshot) -> None:
        """Have the state machine load a leader's snapshot, which is on record."""
        if snapshot.witness:
            self.on_loaded(SnapshotLoaded(snapshot))
            return
        self._inbox.reserve()
        loaded = lambda extensions: self._inbox.complete(SnapshotLoaded(snapshot, extensions))  # noqa: E731
        self._applier.load(LoadRequest(snapshot, loaded))

    def on_loaded(self, done: SnapshotLoaded) -> None:
        """Tell the core that the state machine has a leader's snapshot, and let go of files that are of no use now."""
        raft, snapshot = self._raft, done.snapshot
        self._extensions.loaded(snapshot, done.extensions)
        # Else a newer one is being loaded, or this is the replica's own.
        if raft.log.pending_snapshot is snapshot:
            raft.applied(snapshot.index)
            raft.step(Message(MessageType.SNAPSHOT_RECEIVED, sender=raft.id, snapshot=snapshot))
            self.installed += 1
            self._lines.info("installed the snapshot at %d of its leader", snapshot.index)
            self._loaded(snapshot)
        for other in [each for each in self._received.values() if each.index <= snapshot.index]:
            self._release(other)

    def _release(self, snapshot: Snapshot) -> None:
        """Unpin a file, which the host pinned when it came, and delete it unless it is the newest."""
        name = snapshot.payload.decode()
        del self._received[name]
        newest = self._raft.log.snapshot is snapshot

        def release() -> None:
            if not newest:
                self._files.discard(name)
            self._files.unpin(name)
            if newest:
                prune(self._files, name, self._lines)

        self._background.submit(release)

    def stop(self) -> None:
        """Hold no file any more, as the replica ends."""
        for name in self._received:
            self._background.submit(partial(self._files.unpin, name))
        self._received.clear()
