"""Extensions without a replica that runs: the state that they have saved, and the log behind it delivered to them."""

from typing import Final

from drakkar.actors.log.store import StoredLog
from drakkar.actors.machine.content import names_in
from drakkar.handlers.errors import ConfigError, MissingExtension
from drakkar.handlers.raft import extension_states, records
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import EntryKind, Run
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.timers import Timers

__all__ = ["ExtensionReplay", "own_kinds"]

_BUILT_IN: Final = bytes(range(EntryKind.FIRST_FREE))
_AT_ONCE: Final = 1000
"""Entries after which what extensions have asked for is thrown away."""


def own_kinds(run: Run) -> bytes:
    """Return the kinds of the records in a run, which are an application's own, in order."""
    return run.kinds.translate(None, _BUILT_IN)


class ExtensionReplay:
    """The extensions of a table, in a node that stands at the snapshot of a log and does nothing by itself.

    Nothing that they ask for is done: no message leaves, no other actor is told, no event is published, and no time passes.
    Without a table, it raises `ConfigError` for what an extension should have.
    """

    def __init__(self, log: StoredLog, config: RaftConfig, handlers: HandlerTable | None) -> None:
        """Make the extensions. Raises `HandlerTableError` for a table with mistakes."""
        stood = MemoryLog(membership=log.membership, snapshot=log.snapshot)
        self._raft = Raft(config, stood, handlers=handlers)
        self._raft.effects.on_many = self._raft.ready
        self._named = handlers is not None

    def load(self, state: bytes, index: int) -> None:
        """Hand the extensions the part that they have of the snapshot at `index`."""
        if state and not self._named:
            names = ", ".join(names_in(state))
            raise ConfigError(
                "handlers", None, f"the snapshot has the state of extensions ({names}): {_REMEDY}"
            )
        if state:
            self._raft.load_extensions(state, index)

    def deliver(self, run: Run) -> None:
        """Deliver the next entries. Raises `MissingExtension` for a record that no extension takes."""
        missing = own_kinds(run).translate(None, bytes(self._raft.handlers.kinds))
        if missing:
            index = run.first + run.kinds.index(missing[0])
            if not self._named:
                raise ConfigError("handlers", None, f"entry {index} is a record of an extension: {_REMEDY}")
            raise MissingExtension(index, f"an entry of kind {missing[0]}")
        for first in range(run.first, run.last + 1, _AT_ONCE):
            part = run.slice(first, min(first + _AT_ONCE, run.last + 1))
            self._raft.log.applied_to(part.last)
            records.deliver_run(self._raft, part)
            self._throw_away()

    def _throw_away(self) -> None:
        """Forget what extensions have asked for, of which only so much may wait."""
        self._raft.ready()
        self._raft.message_timers = Timers(self._raft.id)

    def save(self) -> bytes:
        """Return the encoded state of the extensions; none where none saves any."""
        return extension_states.encode(self._raft)


_REMEDY = "name the table that uses it, as in start_replica(handlers=…)"
