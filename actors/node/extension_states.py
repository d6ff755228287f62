"""The state of extensions as a part of snapshots: what the core saves and loads, and what workers write and read.

    snapshot, export, copy for a peer ─► at(index) ─► the core has delivered all up to it ─► save() ─► a worker writes it
    a worker has read a snapshot ─► loaded(…) ─► load()

The core saves on the loop, in the moment in which exactly the entries up to the index are delivered. The state machine rests
until then, and no thread waits.
"""

from collections.abc import Callable
from functools import partial

from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import RequestDropped
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Snapshot

__all__ = ["ExtensionStates"]


class ExtensionStates:
    """The parts of one node's snapshots that extensions save. All methods are for the loop's thread."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._open: dict[ActorFuture[bytes], None] = {}
        """Those that are waited for."""
        self._later: list[Callable[[], None]] = []
        """What is to be saved when the snapshot with which the replica starts is loaded."""

    def at(self, index: int) -> ActorFuture[bytes] | None:
        """Return a future of the encoded state as of `index`, which is not delivered yet or is the last that is.

        It has no bytes if no extension saves any. None: there are no extensions. It fails where the node ends.
        """
        if not self._raft.handlers.extensions:
            return None
        future: ActorFuture[bytes] = ActorFuture()
        self._open[future] = None
        save = partial(self._raft.save_extensions, index, partial(self._saved, future))
        if self._raft.extensions_loading:
            self._later.append(save)
        else:
            save()
        return future

    def _saved(self, future: ActorFuture[bytes], state: bytes | None) -> None:
        self._open.pop(future, None)
        if state is None:
            future.try_fail(RequestDropped("a leader's snapshot has taken the place of this state"))
        else:
            future.try_set(state)

    def begin(self) -> None:
        """The replica's own snapshot, with which it starts, is to be loaded: until then its extensions have not their state."""
        self._raft.extensions_loading = bool(self._raft.handlers.extensions)

    def loaded(self, snapshot: Snapshot, state: bytes) -> None:
        """Hand extensions what a worker has read of a snapshot, the replica's own or a leader's.

        Raises as `Raft.load_extensions`: the replica is to end then.
        """
        self._raft.load_extensions(state, snapshot.index)
        self._raft.extensions_loading = False
        later, self._later = self._later, []
        for save in later:
            save()

    def stop(self, error: Exception) -> None:
        """Let no snapshot wait any more, as the node ends."""
        while self._open:
            self._open.popitem()[0].try_fail(error)
