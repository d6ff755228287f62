"""For a host around the core: asks for room before entries reach the core, and tells it when the answer changes."""

from collections.abc import Callable, Sequence

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries, Entry

__all__ = ["RoomWatch"]


class RoomWatch:
    """Judges room before each message with entries is stepped. Not thread-safe: for the thread that steps the core."""

    def __init__(
        self,
        raft: RaftCore,
        has_room: Callable[[int], bool],
        *,
        changed: Callable[[bool], None] | None = None,
    ) -> None:
        """`has_room` tells whether so many bytes of entries fit beside all that was saved before.

        `changed` is called when the core was told that the disk is full (True), or has room again (False).
        """
        self._raft, self._has_room = raft, has_room
        self._changed = changed or (lambda _full: None)
        self._unsaved = 0
        """Bytes of entries that were let through, and may not be handed to the store yet."""
        self._refused = 0
        """Bytes of the largest message since the last tick for which there was no room."""
        self._wanted = 0
        """The same, of the last tick with such a message."""
        raft.room.judge = self.judge  # for what handlers propose

    def judge(self, entries: Sequence[Entry]) -> None:
        """Tell the core that the disk is full, if these entries of the next message do not fit.

        While it is full, it stays so until a `tick` finds room, even if a smaller message would fit: it would turn with each
        message otherwise.
        """
        if not entries:
            return
        size = Entries.of(entries).size
        if self._raft.room.full:
            self._refused = max(self._refused, size)
        elif self._has_room(self._unsaved + size):
            self._unsaved += size
        else:
            self._refused = size
            self._tell(MessageType.DISK_FULL)

    def saved(self) -> None:
        """Note that all that the core took in is handed to the store."""
        self._unsaved = 0

    def tick(self) -> None:
        """Once a tick: tell the core if there is room again for the largest of what was wanted last."""
        if self._refused:
            self._wanted, self._refused = self._refused, 0
        if self._raft.room.full and self._has_room(self._unsaved + self._wanted):
            self._tell(MessageType.DISK_ROOM)

    def _tell(self, news: MessageType) -> None:
        self._raft.step(Message(news, sender=self._raft.id))
        self._changed(self._raft.room.full)
