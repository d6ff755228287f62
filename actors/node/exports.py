"""Copies of a replica's state in files of their own, which operators ask for: one at a time."""

from collections import deque
from functools import partial
from pathlib import Path

from drakkar.actors.machine.applier import Applier, SaveRequest
from drakkar.actors.node.completions import ExportChecked, ExportEnded, ExportWritten
from drakkar.actors.node.extension_states import ExtensionStates
from drakkar.actors.node.refusals import snapshot_failure
from drakkar.actors.node.requests import SnapshotRequest
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import Snapshots, check_free, export_to
from drakkar.handlers.errors import DrakkarError, OutcomeUnknown, RequestDropped
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Snapshot

__all__ = ["Exports"]


class Exports:
    """The exports that were asked for. All methods are for the loop's thread.

    is the file free? ─► ExportChecked ─► the state machine writes ─► ExportWritten ─► copy ─► ExportEnded
    """

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
    ) -> None:
        """`background` is for what waits for the disk; `inbox` is the node's, for completions."""
        self._raft, self._applier, self._files = raft, applier, files
        self._background, self._inbox, self._lines = background, inbox, lines
        self._extensions = extensions
        self._requests: deque[tuple[SnapshotRequest, Path]] = deque()
        """The first of them is being written."""

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: SnapshotRequest, path: Path) -> None:
        """Write the state to the file at `path`, after the exports that were asked for before."""
        self._requests.append((request, path))
        if len(self._requests) == 1:
            self._begin()

    def _begin(self) -> None:
        """Find out that the file can be written before the state is."""
        _, path = self._requests[0]
        self._inbox.reserve()
        self._background.submit(partial(self._check, path))

    def _check(self, path: Path) -> None:
        try:
            check_free(path)
        except Exception as error:  # noqa: BLE001  # it goes to the client, and the next export has its turn
            self._inbox.complete(ExportChecked(snapshot_failure(error)))
        else:
            self._inbox.complete(ExportChecked(None))

    def on_checked(self, done: ExportChecked) -> None:
        """Have the state written, if the file is free."""
        request, _ = self._requests[0]
        point = self._raft.snapshot_point(self._applier.given)
        if done.error is not None:
            self._end(done.error)
        elif request.future.done or point is None:
            self._end(RequestDropped("a leader's snapshot is being loaded: wait and ask again"))
        else:
            written = lambda outcome: self._inbox.complete(ExportWritten(outcome))  # noqa: E731
            self._inbox.reserve()
            extensions = self._extensions.at(point.index)
            self._applier.save(SaveRequest(point, written, whole=True, extensions=extensions))

    def on_written(self, done: ExportWritten) -> None:
        """Copy the snapshot to the file that was asked for."""
        if isinstance(done.outcome, Snapshot):
            _, path = self._requests[0]
            self._inbox.reserve()
            self._background.submit(partial(self._copy, done.outcome, path))
        else:
            self._end(snapshot_failure(done.outcome))

    def _copy(self, snapshot: Snapshot, path: Path) -> None:
        name = snapshot.payload.decode()
        try:
            with self._files.open(name) as reader:
                export_to(reader, path)
        except Exception as error:  # noqa: BLE001  # it goes to the client, and the next export has its turn
            self._inbox.complete(ExportEnded(snapshot_failure(error)))
        else:
            self._inbox.complete(ExportEnded(snapshot.index))
        finally:
            self._files.discard(name)

    def on_ended(self, done: ExportEnded) -> None:
        """Answer the client, and begin with the next."""
        self._end(done.outcome)

    def _end(self, outcome: int | DrakkarError) -> None:
        request, path = self._requests.popleft()
        if isinstance(outcome, DrakkarError):
            self._lines.warning("could not export a snapshot to %s: %s", path, outcome)
            request.future.try_fail(outcome)
        else:
            self._lines.info("exported the snapshot at %d to %s", outcome, path)
            request.future.try_set(outcome)
        if self._requests:
            self._begin()

    def expire(self, now: float) -> None:
        """Answer those whose deadline has passed; `now` is in seconds of the node's clock."""
        if not self._requests:
            return
        late = OutcomeUnknown("the snapshot was not taken by the deadline; it may still be")
        for request, _ in self._requests:
            if request.deadline <= now:
                request.future.try_fail(late)

    def fail_all(self, error: Exception) -> None:
        """Answer all, as the replica ends."""
        for request, _ in self._requests:
            request.future.try_fail(error)
