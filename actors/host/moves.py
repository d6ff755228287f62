"""Where a host may start next: at the addresses by which its shards reach its replicas from now on."""

from pathlib import Path

import trio
from drakkar.actors.log.disk_errors import explain
from drakkar.actors.log.moves_file import read_moves, write_moves
from drakkar.actors.node.events import AddressChanged
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.transport.addresses import canonical

__all__ = ["Moves"]


class Moves:
    """Notes in the data directory to which addresses shards have moved replicas of this host. For the loop's thread."""

    def __init__(self, directory: Path, address: str, loop: TrioLoop, lines: Lines) -> None:
        """Raises `CorruptData` where the file is damaged."""
        self._directory, self._address, self._loop, self._lines = directory, address, loop, lines
        self._known = self._written = read_moves(directory)
        self._writing = False

    def note(self, event: object) -> None:
        """Take in an event of the host. A move away from another address than ours is an old one, from the log."""
        if not isinstance(event, AddressChanged) or canonical(event.before) != self._address:
            return
        self._known |= {canonical(event.after)}
        if not self._writing and self._known != self._written:
            self._writing = True
            self._loop.spawn(self._write, name="moves")

    async def _write(self) -> None:
        try:
            while self._known != self._written:
                known = self._known
                # Not cancelled midway: the data directory is not released before it is done.
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(write_moves, self._directory, known)
                self._written = known
                self._lines.warning(
                    "is to start at %s next: a shard has moved its replica there", ", ".join(sorted(known))
                )
        except OSError as error:
            self._lines.error(
                "cannot note at which address it is to start next (%s): use `drakkar renumber`",
                explain(error),
            )
        finally:
            self._writing = False
