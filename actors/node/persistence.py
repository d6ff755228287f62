"""What `Raft.ready` hands out, on its way through the log store, and what rests on it."""

import contextlib
from collections import deque
from collections.abc import Callable

from drakkar.actors.log.store import AppendRequest
from drakkar.actors.node.completions import Saved
from drakkar.actors.runtime.inbox import Inbox
from drakkar.handlers.errors import ActorFailed, DrakkarError, SystemBusy
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Ready
from drakkar.handlers.raft.state import HardState

__all__ = ["Persistence"]


class Persistence:
    """Hands the work of each `Ready` to the log store, and completes it when it is durable, in order.

    All methods are for the loop's thread.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        append: Callable[[AppendRequest], None],
        inbox: Inbox,
        durable: Callable[[Ready], None],
    ) -> None:
        """`append` hands a request to the store, and raises `SystemBusy` where it has no room.

        `inbox` is the node's, for completions; `durable` is called for each `Ready` once it, and
        all before it, are durable.
        """
        self._raft = raft
        self._append, self._inbox, self._durable = append, inbox, durable
        self._unsaved: deque[tuple[Ready, int]] = deque()
        """Handed out and not yet durable, in order; each with the tick in which it was."""
        self._stalled: tuple[Ready, int] | None = None
        self._state_due: HardState | None = None
        """Handed out and not worth a write of its own: it goes with the next one."""

    def __len__(self) -> int:
        """How many wait for the store."""
        return len(self._unsaved)

    @property
    def stalled(self) -> Ready | None:
        """The work that the store had no room for: it is to be handed to `save` again, before any other."""
        return self._stalled[0] if self._stalled is not None else None

    @property
    def waits_since(self) -> int | None:
        """The tick in which the oldest work was handed out that is not durable; None if all is."""
        oldest = [self._stalled[1]] if self._stalled is not None else []
        if self._unsaved:
            oldest.append(self._unsaved[0][1])
        return min(oldest, default=None)

    def save(self, ready: Ready, tick: int) -> bool:
        """Have the work of `ready` made durable. Return False where the store is full: it is `stalled` then."""
        if not ready.must_save:
            # Nothing to write, or only how far the log is committed, which can be learned anew.
            self._state_due = ready.hard_state or self._state_due
            if self._unsaved:
                self._unsaved.append((ready, tick))
            else:
                self._durable(ready)
        elif not self._order(ready):
            if self._stalled is None:
                self._stalled = ready, tick
            return False
        else:
            self._state_due = None
            self._unsaved.append((ready, tick))
        self._stalled = None
        return True

    def _order(self, ready: Ready) -> bool:
        config = self._raft.config
        request = AppendRequest(
            config.shard_id,
            config.replica_id,
            # A replica that holds a membership change must also know, after a crash, that the one before it is
            # committed: else it might campaign among members of long ago. So what is known goes with what is written.
            ready.hard_state or self._state_due,
            ready.entries.runs,
            ready.snapshot,
            lives=ready.lives,
            done=lambda error: self._inbox.complete(Saved(ready, error)),
        )
        self._inbox.reserve()
        try:
            self._append(request)
        except SystemBusy:
            self._inbox.release()
            return False
        return True

    def on_saved(self, done: Saved) -> None:
        """A write is done, so all before it are, and what waited behind it without a write of its own.

        Raises `ActorFailed` where it failed.
        """
        if done.error is not None:
            raise ActorFailed(f"the log could not be made durable: {done.error}") from done.error
        while self._unsaved and self._unsaved[0][0].number <= done.ready.number:
            self._durable(self._unsaved.popleft()[0])
        while self._unsaved and not self._unsaved[0][0].must_save:
            self._durable(self._unsaved.popleft()[0])

    def save_state_due(self) -> None:
        """Let the log know how far it is committed, as the replica stops. That only makes the restart quicker."""
        if self._state_due is not None:
            config = self._raft.config
            request = AppendRequest(config.shard_id, config.replica_id, self._state_due, done=lambda _: None)
            with contextlib.suppress(DrakkarError):
                self._append(request)
